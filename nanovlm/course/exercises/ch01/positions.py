"""Chapter 01: positions for another grid, and what happens without positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nanovlm.course.exercises.ch01.patches import numbered
from nanovlm.course.exercises.common import noise
from nanovlm.course.judge.exercise import Case, Exercise, expect
from nanovlm.models.vision_transformer import resize_positions

# -- patches.resize_positions ------------------------------------------------------------------------------------------


def stretched(positions: Tensor, grid_size: int, mode: str = "bicubic", align_corners: bool | None = False) -> Tensor:
    """The package's, with other settings: to build wrong versions from."""
    old = round(positions.shape[1] ** 0.5)
    grid = positions.transpose(1, 2).unflatten(2, (old, old))
    return F.interpolate(grid, (grid_size, grid_size), mode=mode, align_corners=align_corners).flatten(2).mT


RESIZE_POSITIONS = Exercise(
    id="patches.resize_positions",
    chapter="01",
    title="Positions for another grid",
    difficulty=2,
    minutes=10,
    why="Positions are learned for one grid. Without resizing them, an encoder that was trained at 224 pixels could not "
    "even start its training at 512, because most places would have no vector.",
    hints=(
        "Read the sequence of vectors as a small picture, with one pixel for each place and dim channels.",
        "Pictures are resized with F.interpolate, which wants [batch, channels, rows, columns]. So unfold the "
        "sequence into a grid, bring dim to the front, resize, and go back the same way.",
        "grid = positions.reshape(1, old, old, dim), permuted to [1, dim, old, old]\n"
        'grid = F.interpolate(grid, size=(grid_size, grid_size), mode="bicubic", align_corners=False)\n'
        "return grid with rows and columns merged and dim at the end",
    ),
    reference=resize_positions,
    cases=lambda: [
        Case(numbered(1, 4, 1), 4, note="a 2x2 grid, dim 1, stretched to 4x4"),
        Case(noise(1, 9, 5), 6, note="a 3x3 grid, dim 5, stretched to 6x6"),
        Case(noise(1, 25, 3), 2, note="a 5x5 grid, shrunk to 2x2"),
        Case(noise(1, 9, 2, seed=1), 4, note="a 3x3 grid, stretched to 4x4, which is no whole factor"),
    ],
    axes="batch patches dim",
    tolerance=1e-4,
)


@RESIZE_POSITIONS.property("a slope stays a slope: rows stay rows, columns stay columns")
def _(resize) -> None:
    row, column = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    out = resize(torch.stack([row, column], dim=-1).reshape(1, 16, 2), 8).reshape(8, 8, 2)
    along, down = out[:, :, 0].std(dim=1).max(), out[:, :, 1].std(dim=0).max()
    expect(bool(along < 1e-4 and down < 1e-4), "Vectors that only say their row say something else after resizing.")


@RESIZE_POSITIONS.property("a grid of the right size comes back as it is")
def _(resize) -> None:
    positions = noise(1, 16, 2)
    same = torch.allclose(resize(positions.clone(), 4), positions, atol=1e-5)
    expect(same, "A 4x4 grid, asked for as a 4x4 grid, comes back changed.")


@RESIZE_POSITIONS.property("it can be learned through")
def _(resize) -> None:
    positions = noise(1, 9, 2).requires_grad_()
    out = resize(positions, 6)
    expect(out.requires_grad, "The output is cut off from the positions: no gradient can flow (detach, or no_grad?).")


@RESIZE_POSITIONS.mistake(
    "You read [1, old * old, dim] as [1, dim, old, old] with a plain reshape. The numbers of a vector then spread over "
    "the grid. Unfold the grid first, dim last, and permute."
)
def _(positions, grid_size):
    _, num_patches, dim = positions.shape
    old = round(num_patches**0.5)
    grid = positions.reshape(1, dim, old, old)
    return F.interpolate(grid, (grid_size, grid_size), mode="bicubic", align_corners=False).flatten(2).mT


@RESIZE_POSITIONS.mistake(
    "Both ways are a plain reshape, [1, old * old, dim] to [1, dim, old, old] and back, which moves no number: each "
    "vector is spread over the grid. Unfold the grid with dim last, and let permute bring dim to the front and back."
)
def _(positions, grid_size):
    _, num_patches, dim = positions.shape
    old = round(num_patches**0.5)
    grid = F.interpolate(
        positions.reshape(1, dim, old, old), (grid_size, grid_size), mode="bicubic", align_corners=False
    )
    return grid.reshape(1, grid_size**2, dim)


@RESIZE_POSITIONS.mistake(
    "You resize the sequence, not the grid, so the end of one row blends into the beginning of the next. Fold the "
    "positions into rows and columns first."
)
def _(positions, grid_size):
    return F.interpolate(positions.mT, grid_size**2, mode="linear", align_corners=False).mT


@RESIZE_POSITIONS.mistake("This is bilinear. The package, as most others, resizes with mode='bicubic'.")
def _(positions, grid_size):
    return stretched(positions, grid_size, "bilinear")


@RESIZE_POSITIONS.mistake(
    "The nearest old vector is copied, so that neighbours of the new grid cannot be told apart. Blend them: bicubic."
)
def _(positions, grid_size):
    return stretched(positions, grid_size, "nearest", None)


@RESIZE_POSITIONS.mistake(
    "align_corners=True pins the middle of the corner patches to the corners of the new grid. Patches are areas, not "
    "points: leave it False."
)
def _(positions, grid_size):
    return stretched(positions, grid_size, "bicubic", True)


@RESIZE_POSITIONS.mistake(
    "The new grid is right, but on the way out [1, dim, rows, columns] became [1, places, dim] by a plain reshape. "
    "That cuts it as it lies in memory, dim first. Merge rows and columns, then bring dim to the end."
)
def _(positions, grid_size):
    return stretched(positions, grid_size).mT.reshape(1, grid_size**2, -1)


@RESIZE_POSITIONS.mistake(
    "Rows and columns are swapped, on the way in or on the way out: the new grid is read column by column. Only dim "
    "changes its place; rows stay before columns."
)
def _(positions, grid_size):
    return stretched(positions, grid_size).unflatten(1, (grid_size, grid_size)).transpose(1, 2).flatten(1, 2)


@RESIZE_POSITIONS.mistake("The mode 'area' takes averages of old vectors. Blend them smoothly: bicubic.")
def _(positions, grid_size):
    return stretched(positions, grid_size, "area", None)


@RESIZE_POSITIONS.mistake(
    "antialias=True blurs the grid when it shrinks, as one does with photographs. Here each new place is blended from its "
    "nearest old ones alone: leave it out."
)
def _(positions, grid_size):
    old = round(positions.shape[1] ** 0.5)
    grid = positions.mT.unflatten(2, (old, old))
    return F.interpolate(grid, (grid_size, grid_size), mode="bicubic", antialias=True).flatten(2).mT


@RESIZE_POSITIONS.mistake(
    "The result is still a grid, [1, dim, rows, columns]. Merge the grid and bring dim to the end."
)
def _(positions, grid_size):
    return stretched(positions, grid_size).mT.unflatten(2, (grid_size, grid_size))


@RESIZE_POSITIONS.mistake("dim is in the middle, as F.interpolate wants it. Bring it back to the end.")
def _(positions, grid_size):
    return stretched(positions, grid_size).mT


@RESIZE_POSITIONS.mistake(
    "The table is cut off, or filled up with zeros, so that new places have no vector of their own."
)
def _(positions, grid_size):
    missing = max(0, grid_size**2 - positions.shape[1])
    return F.pad(positions, (0, 0, 0, missing))[:, : grid_size**2]


@RESIZE_POSITIONS.mistake(
    "The old vectors are used again from the start, for places that are somewhere else in the picture."
)
def _(positions, grid_size):
    return positions[:, torch.arange(grid_size**2) % positions.shape[1]]


@RESIZE_POSITIONS.mistake(
    "Your grid grows by a whole factor only (grid_size // old), which is 0 or 1 in some examples. Give F.interpolate the "
    "size instead."
)
def _(positions, grid_size):
    factor = grid_size // round(positions.shape[1] ** 0.5)
    if factor == 0:
        raise RuntimeError
    return stretched(positions, factor * round(positions.shape[1] ** 0.5))


@RESIZE_POSITIONS.mistake(
    "You bring the new vectors to one length afterwards. A blend of two vectors may be shorter: leave it."
)
def _(positions, grid_size):
    x = stretched(positions, grid_size)
    return x / x.norm(dim=-1, keepdim=True) * positions.norm(dim=-1).mean()


@RESIZE_POSITIONS.mistake("The first axis, of size 1, is lost. Keep it: the positions are added to a whole batch.")
def _(positions, grid_size):
    return stretched(positions, grid_size)[0]
