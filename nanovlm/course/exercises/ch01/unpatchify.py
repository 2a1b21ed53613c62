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
    why="A step that can be undone has lost nothing. You also need this function whenever you want to see as a picture "
    "what a model did to its patches.",
    hints=(
        "Read your patchify from its last line to its first, and undo each step in this order.",
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


def _unfolded(patches: Tensor, p: int) -> tuple[Tensor, int, int]:
    """([batch, grid row, grid column, channel, row, column], batch, side of the picture)"""
    grid = round(patches.shape[1] ** 0.5)
    return patches.reshape(patches.shape[0], grid, grid, -1, p, p), patches.shape[0], grid * p


@UNPATCHIFY.mistake(
    "The whole picture is turned: rows have become columns, of the grid and inside the patches. Rows come before columns."
)
def _(patches, patch_size):
    return put_back(patches, patch_size).transpose(2, 3)


@UNPATCHIFY.mistake(
    "In your order the row inside comes before the grid's row. A row of the picture is counted by the grid first: grid "
    "row, row inside, grid column, column inside."
)
def _(patches, patch_size):
    x, batch, side = _unfolded(patches, patch_size)
    return x.permute(0, 3, 4, 1, 5, 2).reshape(batch, -1, side, side)


@UNPATCHIFY.mistake("F.fold wants the patches as its last axis: [batch, numbers of a patch, patches]. Swap the axes first.")
def _(patches, patch_size):
    side = round(patches.shape[1] ** 0.5) * patch_size
    return F.fold(patches, (side, side), patch_size, stride=patch_size)


@UNPATCHIFY.mistake("The channels come last, as PIL stores a picture. PyTorch's layers want them before height and width.")
def _(patches, patch_size):
    return put_back(patches, patch_size).permute(0, 2, 3, 1)


@UNPATCHIFY.mistake("This expects three channels. Their number is the width of a patch, divided by patch_size ** 2.")
def _(patches, patch_size):
    if patches.shape[2] != 3 * patch_size**2:
        raise RuntimeError
    return put_back(patches, patch_size)


@UNPATCHIFY.mistake("Only the first picture of the batch comes back. Put all of them together.")
def _(patches, patch_size):
    return put_back(patches[:1], patch_size)


@UNPATCHIFY.mistake("The patches stand below each other, in one column. They form a square grid: rows and columns of it.")
def _(patches, patch_size):
    x, batch, side = _unfolded(patches, patch_size)
    return x.permute(0, 3, 1, 2, 4, 5).reshape(batch, x.shape[3], -1, patch_size)


@UNPATCHIFY.mistake("The grid is as wide as the root of the number of patches, not as patch_size.")
def _(patches, patch_size):
    if patches.shape[1] != patch_size**2:
        raise RuntimeError
    return put_back(patches, patch_size)
