"""Chapter 01: the way back from patches to a picture."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nanovlm.course.judge.exercise import Case, Exercise, expect
from nanovlm.course.exercises.ch01.patches import cut, numbered
from nanovlm.course.exercises.common import noise

# -- patches.unpatchify ------------------------------------------------------------------------------------------------


def put_back(patches: Tensor, patch_size: int) -> Tensor:
    side = round(patches.shape[1] ** 0.5) * patch_size
    return F.fold(patches.transpose(1, 2), (side, side), patch_size, stride=patch_size)


UNPATCHIFY = Exercise(
    id="patches.unpatchify",
    chapter="01",
    title="Put the picture back together",
    difficulty=2,
    minutes=8,
    why="What can be undone has lost nothing. And whenever you want to see what a model did to its patches, this is "
    "the way back to a picture.",
    hints=(
        "Read your patchify from the last line to the first and undo each step.",
        "The patches form a square grid, so its side is the root of their number. Unfold: patches into grid rows and "
        "grid columns, the vector into channel, row and column. Then bring row to row and column to column.",
        "x = patches.reshape(batch, grid, grid, channels, p, p)\n"
        "x = permute it to [batch, channel, grid row, row inside, grid column, column inside]\n"
        "return x.reshape(batch, channels, grid * p, grid * p)",
    ),
    reference=put_back,
    cases=lambda: [
        Case(cut(numbered(1, 1, 4, 4), 2), 2, note="four patches of a 4x4 picture: its numbers must be in order again"),
        Case(noise(2, 9, 12), 2, note="two colour pictures of 3x3 patches of 2x2 pixels"),
        Case(noise(1, 4, 3), 1, note="patches of one pixel"),
    ],
    axes="batch channel row column",
)


@UNPATCHIFY.property("it undoes patchify for patches of 1, 2, 3 and 4 pixels")
def _(back) -> None:
    x = noise(2, 3, 12, 12)
    for p in (1, 2, 3, 4):
        expect(torch.equal(back(cut(x, p), p), x), f"With patches of {p} pixels the picture does not come back.")


@UNPATCHIFY.mistake(
    "A plain reshape gives the right shape, with each patch's numbers laid out as a strip along the rows."
)
def _(patches, patch_size):
    batch, num_patches, wide = patches.shape
    side = round(num_patches**0.5) * patch_size
    return patches.reshape(batch, wide // patch_size**2, side, side)


@UNPATCHIFY.mistake(
    "The two axes of the grid stand beside each other, and so do the two inside a patch. A row of the picture runs "
    "through one row of several patches: the order is grid row, row inside, grid column, column inside."
)
def _(patches, patch_size):
    batch, num_patches, wide = patches.shape
    grid, channels = round(num_patches**0.5), wide // patch_size**2
    x = patches.reshape(batch, grid, grid, channels, patch_size, patch_size).permute(0, 3, 1, 2, 4, 5)
    return x.reshape(batch, channels, grid * patch_size, grid * patch_size)


@UNPATCHIFY.mistake(
    "The patches are whole, but the grid is turned: rows of patches have become columns. Reading order goes along rows."
)
def _(patches, patch_size):
    grid = round(patches.shape[1] ** 0.5)
    return put_back(patches.unflatten(1, (grid, grid)).transpose(1, 2).flatten(1, 2), patch_size)


@UNPATCHIFY.mistake("The patches are in their places, but each one is turned inside: its rows have become columns.")
def _(patches, patch_size):
    x = patches.unflatten(2, (-1, patch_size, patch_size))
    return put_back(x.transpose(3, 4).flatten(2), patch_size)


@UNPATCHIFY.mistake(
    "You take the vector for pixel after pixel, red, green, blue. It holds channel after channel: all of red first."
)
def _(patches, patch_size):
    x = patches.unflatten(2, (patch_size**2, -1))
    return put_back(x.transpose(2, 3).flatten(2), patch_size)
