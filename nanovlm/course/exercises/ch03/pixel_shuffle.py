"""Chapter 03: pixel shuffle, and its way back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nanovlm.course.exercises.common import noise
from nanovlm.course.judge.exercise import Case, Exercise, expect
from nanovlm.models.modality_projector import pixel_shuffle


def numbered(grid: int, dim: int = 1, batch: int = 1) -> Tensor:
    """Patches that hold their own number: [batch, grid * grid, dim], 0 1 2 3 … in reading order."""
    return torch.arange(batch * grid * grid * dim, dtype=torch.float32).reshape(batch, grid * grid, dim)


# -- pixel_shuffle.shuffle ---------------------------------------------------------------------------------------------

SHUFFLE = Exercise(
    id="pixel_shuffle.shuffle",
    chapter="03",
    title="Tiles to tokens",
    difficulty=2,
    minutes=12,
    why="It makes a picture four times shorter for the decoder at r = 2, without throwing a number away. Get the order "
    "wrong and every shape still fits, nothing complains, and weights trained for tiles see a scrambled picture.",
    hints=(
        "A tile is r rows of r neighbours. In reading order its patches do not stand next to each other: between the "
        "first row of a tile and its second lies the rest of the picture's row.",
        "Unfold the one patch axis into four: tile row, row inside the tile, tile column, column inside the tile. "
        "Bring the two 'inside' axes together. Then merge: two axes into tokens, three into the new, wider dim.",
        "x = x.reshape(batch, grid // r, r, grid // r, r, dim)\n"
        "x = swap the axes 2 and 3, so that it reads [batch, row, column, r, r, dim]\n"
        "return x.reshape(batch, number of tiles, r * r * dim)",
    ),
    reference=pixel_shuffle,
    cases=lambda: [
        Case(numbered(4), 2, note="a 4x4 grid whose patches hold their own number, r = 2"),
        Case(noise(2, 36, 5), 3, note="a batch of two 6x6 grids, dim 5, r = 3"),
        Case(noise(1, 16, 2), 1, note="r = 1, which must change nothing"),
        Case(noise(1, 64, 3), 4, note="an 8x8 grid, r = 4"),
    ],
    axes="batch tokens dim",
)


@SHUFFLE.property("every number of the picture is kept")
def _(shuffle) -> None:
    x = noise(2, 16, 3)
    same = torch.equal(shuffle(x.clone(), 2).flatten().sort().values, x.flatten().sort().values)
    expect(same, "Some numbers of the input are missing in the output, or appear twice. Only their places may change.")


@SHUFFLE.property("pictures of a batch do not mix")
def _(shuffle) -> None:
    x = noise(3, 16, 2)
    alone = torch.cat([shuffle(x[i : i + 1].clone(), 2) for i in range(3)])
    expect(torch.equal(shuffle(x.clone(), 2), alone), "A picture gives another result when others share its batch.")


@SHUFFLE.property("gradients flow back to every patch")
def _(shuffle) -> None:
    x = noise(1, 16, 2).requires_grad_()
    out = shuffle(x, 2)
    expect(
        out.requires_grad, "The output is cut off from the input: no gradient can flow (detach, or numpy on the way?)."
    )
    out.sum().backward()
    expect(x.grad is not None and bool((x.grad == 1).all()), "Some patches get no gradient.")


@SHUFFLE.mistake(
    "The shape is right and the tokens are wrong: a plain reshape takes r * r patches that follow each other in "
    "reading order, a strip of one row, instead of an r x r tile."
)
def _(x, factor):
    batch, num_patches, dim = x.shape
    return x.reshape(batch, num_patches // factor**2, dim * factor**2)


@SHUFFLE.mistake(
    "The right tiles, but the numbers inside a token stand channel first (all patches' channel 0, then channel 1 …), "
    "as F.pixel_unshuffle does it. The shipped weights expect patch after patch."
)
def _(x, factor):
    batch, num_patches, dim = x.shape
    grid = round(num_patches**0.5)
    image = x.transpose(1, 2).reshape(batch, dim, grid, grid)
    return nn.functional.pixel_unshuffle(image, factor).flatten(2).transpose(1, 2)


@SHUFFLE.mistake("The tiles are right, but inside each of them you go down the columns first. Go along the rows.")
def _(x, factor):
    batch, num_patches, dim = x.shape
    grid = round(num_patches**0.5)
    x = x.reshape(batch, grid // factor, factor, grid // factor, factor, dim).permute(0, 1, 3, 4, 2, 5)
    return x.reshape(batch, (grid // factor) ** 2, dim * factor**2)


@SHUFFLE.mistake(
    "The tiles are right, but they come column by column. Tokens, like patches, are in reading order: along the rows."
)
def _(x, factor):
    batch, num_patches, dim = x.shape
    grid = round(num_patches**0.5)
    x = x.reshape(batch, grid // factor, factor, grid // factor, factor, dim).permute(0, 3, 1, 2, 4, 5)
    return x.reshape(batch, (grid // factor) ** 2, dim * factor**2)


@SHUFFLE.mistake(
    "These are the patches at the same place of every tile (every r-th one), as a dilated grid. A token is made of "
    "neighbours: the axes inside the tile are the second and the fourth, not the first and the third."
)
def _(x, factor):
    batch, num_patches, dim = x.shape
    side = round(num_patches**0.5) // factor
    x = x.reshape(batch, factor, side, factor, side, dim).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(batch, side**2, dim * factor**2)


@SHUFFLE.part
def _(code, learner) -> None:
    code.modality_projector.pixel_shuffle = learner


# -- pixel_shuffle.unshuffle -------------------------------------------------------------------------------------------


def unshuffle(x: Tensor, factor: int) -> Tensor:
    """Number every patch, shuffle the numbers, and send each number home."""
    batch, num_tokens, wide = x.shape
    dim = wide // factor**2
    number = torch.arange(num_tokens * factor**2, dtype=torch.float64)[None, :, None]
    home = pixel_shuffle(number, factor).flatten().long()  # where the patches of each token come from
    out = torch.empty(batch, num_tokens * factor**2, dim, dtype=x.dtype)
    out[:, home] = x.reshape(batch, -1, dim)
    return out


UNSHUFFLE = Exercise(
    id="pixel_shuffle.unshuffle",
    chapter="03",
    title="And back again",
    difficulty=2,
    minutes=8,
    why="An operation that can be undone has lost nothing. And with the inverse one can see what a wrong shuffle does "
    "to a picture: the chapter draws it.",
    hints=(
        "Read your pixel_shuffle from the last line to the first and undo each step.",
        "Unfold tokens into tile rows and tile columns, and the wide dim into r, r and dim. Then bring row next to row "
        "and column next to column.",
        "side = round(num_tokens ** 0.5)\n"
        "x = x.reshape(batch, side, side, r, r, dim)\n"
        "x = swap the axes 2 and 3 again\n"
        "return x.reshape(batch, number of patches, dim)",
    ),
    reference=unshuffle,
    cases=lambda: [
        Case(pixel_shuffle(numbered(4), 2), 2, note="the shuffled 4x4 grid of numbers: they must be in order again"),
        Case(noise(2, 4, 45), 3, note="two pictures of 2x2 tokens, r = 3, dim 5"),
        Case(noise(1, 9, 2), 1, note="r = 1, which must change nothing"),
    ],
    axes="batch patches dim",
)


@UNSHUFFLE.property("it undoes pixel shuffle for r = 1, 2, 3 and 4")
def _(back) -> None:
    x = noise(2, 144, 2)
    for r in (1, 2, 3, 4):
        expect(
            torch.equal(back(pixel_shuffle(x, r), r), x), f"At r = {r} the patches do not come back to their places."
        )


@UNSHUFFLE.mistake(
    "A plain reshape gives back the right shape with the patches in tile order: the second row of the first tile "
    "stands where the second tile begins."
)
def _(x, factor):
    batch, num_tokens, wide = x.shape
    return x.reshape(batch, num_tokens * factor**2, wide // factor**2)


@UNSHUFFLE.mistake(
    "This is pixel shuffle's inverse with columns for rows: inside each tile the patches are transposed. Mind which "
    "of the two r axes is the row."
)
def _(x, factor):
    batch, num_tokens, _ = x.shape
    side = round(num_tokens**0.5)
    x = x.reshape(batch, side, side, factor, factor, -1).permute(0, 1, 4, 2, 3, 5)
    return x.reshape(batch, num_tokens * factor**2, -1)


@UNSHUFFLE.mistake(
    "The tiles are whole, but their grid is turned: rows of tiles have become columns. Of the axes that count tiles, "
    "the row comes first."
)
def _(x, factor):
    batch, num_tokens, _ = x.shape
    side = round(num_tokens**0.5)
    x = x.reshape(batch, side, side, factor, factor, -1).permute(0, 2, 3, 1, 4, 5)
    return x.reshape(batch, num_tokens * factor**2, -1)


@UNSHUFFLE.mistake(
    "F.pixel_shuffle undoes F.pixel_unshuffle, whose channels are in another order: here a token holds patch after "
    "patch, not channel after channel."
)
def _(x, factor):
    batch, num_tokens, wide = x.shape
    side = round(num_tokens**0.5)
    x = x.transpose(1, 2).reshape(batch, wide, side, side)
    return nn.functional.pixel_shuffle(x, factor).flatten(2).transpose(1, 2)


@UNSHUFFLE.mistake(
    "This shuffles once more instead of undoing it: the output should be longer than the input, not shorter."
)
def _(x, factor):
    return pixel_shuffle(x, factor)
