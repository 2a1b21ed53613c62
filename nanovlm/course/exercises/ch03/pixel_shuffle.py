"""Chapter 03: pixel shuffle, and its way back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nanovlm.course.exercises.common import expect_same_gradients, noise
from nanovlm.course.judge.exercise import Case, Exercise, expect
from nanovlm.models.modality_projector import pixel_shuffle


def numbered(grid: int, dim: int = 1, batch: int = 1) -> Tensor:
    """Patches that hold their own number: [batch, grid * grid, dim], 0 1 2 3 … in reading order."""
    return torch.arange(batch * grid * grid * dim, dtype=torch.float32).reshape(batch, grid * grid, dim)


def unfolded(x: Tensor, factor: int) -> Tensor:
    """[B, N, dim] -> [B, row, r, column, r, dim]"""
    side = round(x.shape[1] ** 0.5) // factor
    return x.reshape(len(x), side, factor, side, factor, x.shape[2])


# -- pixel_shuffle.shuffle ---------------------------------------------------------------------------------------------

SHUFFLE = Exercise(
    id="pixel_shuffle.shuffle",
    chapter="03",
    title="Groups of patches become tokens",
    difficulty=2,
    minutes=12,
    why="It makes a picture four times shorter for the decoder at r = 2, without throwing a number away. With the wrong "
    "order every shape still fits and nothing complains, and weights trained for groups see a scrambled picture.",
    hints=(
        "A group is r rows of r neighbours. In reading order its patches do not follow each other: between the first "
        "row of a group and its second comes the rest of the picture's row.",
        "Split the one patch axis into four: row of groups, row inside the group, column of groups, column inside the "
        "group. Bring the two inner axes together. Then merge: two axes into tokens, three into the new, wider dim.",
        "x = x.reshape(batch, grid // r, r, grid // r, r, dim)\n"
        "x = x.transpose(…)                                     # [batch, row, column, r, r, dim]\n"
        "return x.reshape(batch, number of groups, r * r * dim)",
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
    expect_same_gradients(lambda x: shuffle(x, 2), lambda x: pixel_shuffle(x, 2), noise(2, 16, 3))


def _merged(x: Tensor, *order: int) -> Tensor:
    """Axes in this order, the first three of them batch, row and column."""
    return x.permute(*order).flatten(3).flatten(1, 2)


def _strips(x: Tensor, factor: int) -> Tensor:
    return x.reshape(x.shape[0], x.shape[1] // factor**2, x.shape[2] * factor**2)


def _channel_first(x: Tensor, factor: int) -> Tensor:
    return _merged(unfolded(x, factor), 0, 1, 3, 5, 2, 4)


def _dilated(x: Tensor, factor: int) -> Tensor:
    side = round(x.shape[1] ** 0.5) // factor
    return _merged(x.reshape(len(x), factor, side, factor, side, x.shape[2]), 0, 2, 4, 1, 3, 5)


# The projector is judged by the same table: whoever shuffles inside it in one of these ways is told the same.
WRONG_SHUFFLE = {
    "The shape is right and the tokens are wrong: a plain reshape takes r * r patches that follow each other in "
    "reading order, a strip of one row, instead of a group of r x r. Without a transpose no patch moves.": _strips,
    "The right groups, but the numbers inside a token are channel first (all patches' channel 0, then channel 1 …), as "
    "F.pixel_unshuffle orders them. The shipped weights expect patch after patch.": _channel_first,
    "The groups are right, but inside each of them you go down the columns first. Go along the rows.": (
        lambda x, factor: _merged(unfolded(x, factor), 0, 1, 3, 4, 2, 5)
    ),
    "The groups are right, but they come column by column. Tokens, like patches, are in reading order: along the "
    "rows.": lambda x, factor: _merged(unfolded(x, factor), 0, 3, 1, 2, 4, 5),
    "The picture is transposed: rows have become columns, both of the grid of groups and inside each group.": (
        lambda x, factor: _merged(unfolded(x, factor), 0, 3, 1, 4, 2, 5)
    ),
    "These are the patches at the same place of every group (every r-th one), a dilated grid. A token is made of "
    "neighbours: the axes inside the group are the second and the fourth, not the first and the third.": _dilated,
}

for _sentence, _version in WRONG_SHUFFLE.items():
    SHUFFLE.mistake(_sentence)(_version)


@SHUFFLE.mistake(
    "The vectors of a group are averaged, which is pooling. Pixel shuffle lays them end to end and loses nothing."
)
def _(x, factor):
    return unfolded(x, factor).mean((2, 4)).flatten(1, 2)


@SHUFFLE.mistake("This keeps one patch of each group and drops the others. Lay all r * r vectors end to end.")
def _(x, factor):
    return unfolded(x, factor)[:, :, 0, :, 0].flatten(1, 2)


@SHUFFLE.mistake(
    "The tokens are still a grid, with an axis of rows and columns each. The decoder reads one sequence: merge them "
    "into one axis."
)
def _(x, factor):
    return unfolded(x, factor).transpose(2, 3).flatten(3)


@SHUFFLE.mistake("The sequence is divided by r alone. A group is r wide and r high, so r * r patches become one token.")
def _(x, factor):
    return x.reshape(x.shape[0], x.shape[1] // factor, x.shape[2] * factor)


@SHUFFLE.mistake("The axes are in another order: it should be [batch, tokens, dim], and yours is [batch, dim, tokens].")
def _(x, factor):
    return pixel_shuffle(x, factor).mT


@SHUFFLE.mistake("Only the first picture of the batch comes back.")
def _(x, factor):
    return pixel_shuffle(x[:1], factor)


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
    return x.reshape(batch, -1, dim)[:, home.argsort()]


UNSHUFFLE = Exercise(
    id="pixel_shuffle.unshuffle",
    chapter="03",
    title="And back again",
    difficulty=2,
    minutes=8,
    why="An operation that can be undone has lost nothing. And with the inverse one can see what a wrong shuffle does "
    "to a picture, which the chapter draws.",
    hints=(
        "Read your pixel_shuffle from the last line to the first and undo each step.",
        "Split the tokens into rows and columns of groups, and the wide dim into r, r and dim. Then bring row next to "
        "row and column next to column.",
        "side = round(num_tokens ** 0.5)\n"
        "x = x.reshape(batch, side, side, …)\n"
        "x = x.transpose(2, 3)\n"
        "return x.reshape(batch, number of patches, dim)",
    ),
    reference=unshuffle,
    cases=lambda: [
        Case(pixel_shuffle(numbered(4), 2), 2, note="the shuffled 4x4 grid of numbers, which must be in order again"),
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


@UNSHUFFLE.property("gradients flow back to every token")
def _(back) -> None:
    expect_same_gradients(lambda x: back(x, 2), lambda x: unshuffle(x, 2), noise(2, 4, 12))


def _taken_apart(x: Tensor, factor: int) -> Tensor:
    """[B, tokens, wide] -> [B, row, column, r, r, dim]"""
    side = round(x.shape[1] ** 0.5)
    return x.reshape(len(x), side, side, factor, factor, -1)


@UNSHUFFLE.mistake(
    "A plain reshape gives back the right shape with the patches group by group: the second row of the first group is "
    "where the second group begins."
)
def _(x, factor):
    return _taken_apart(x, factor).flatten(1, 4)


@UNSHUFFLE.mistake(
    "This is pixel shuffle's inverse with columns for rows: inside each group the patches are transposed. Mind which "
    "of the two r axes is the row."
)
def _(x, factor):
    return _taken_apart(x, factor).permute(0, 1, 4, 2, 3, 5).flatten(1, 4)


@UNSHUFFLE.mistake(
    "The groups are whole, but their grid is turned: rows of groups have become columns. Of the axes that count "
    "groups, the row comes first."
)
def _(x, factor):
    return _taken_apart(x, factor).permute(0, 2, 3, 1, 4, 5).flatten(1, 4)


@UNSHUFFLE.mistake("The picture is turned: rows have become columns, both of the grid of groups and inside each group.")
def _(x, factor):
    return _taken_apart(x, factor).permute(0, 2, 4, 1, 3, 5).flatten(1, 4)


@UNSHUFFLE.mistake(
    "The patches of a group go to places far apart, one group's width from each other. They are neighbours: row next "
    "to row inside, column next to column inside."
)
def _(x, factor):
    return _taken_apart(x, factor).permute(0, 3, 1, 4, 2, 5).flatten(1, 4)


@UNSHUFFLE.mistake(
    "A token is read channel after channel, as F.pixel_shuffle does it to undo F.pixel_unshuffle. Here a token holds "
    "patch after patch."
)
def _(x, factor):
    batch, num_tokens, wide = x.shape
    side = round(num_tokens**0.5)
    return nn.functional.pixel_shuffle(x.mT.reshape(batch, wide, side, side), factor).flatten(2).mT


@UNSHUFFLE.mistake(
    "This shuffles once more instead of undoing it: the output should be longer than the input, not shorter."
)
def _(x, factor):
    return pixel_shuffle(x, factor)


@UNSHUFFLE.mistake(
    "This shuffles once more where the sizes allow it, and changes nothing elsewhere. Undo the steps instead, from the "
    "last to the first."
)
def _(x, factor):
    return pixel_shuffle(x, factor) if round(x.shape[1] ** 0.5) % factor == 0 else x


@UNSHUFFLE.mistake(
    "This is the first line of pixel_shuffle on its own output, [row, r, column, r]. The tokens' axes are [row, column, "
    "r, r] now: take them apart in that order."
)
def _(x, factor):
    batch, num_tokens, wide = x.shape
    side, dim = round(num_tokens**0.5), wide // factor**2
    return x.reshape(batch, side, factor, side, factor, dim).transpose(2, 3).reshape(batch, -1, dim)


@UNSHUFFLE.mistake(
    "The patches are still a grid, with an axis of rows and columns each. Merge them: [batch, patches, dim]."
)
def _(x, factor):
    x = _taken_apart(x, factor).transpose(2, 3)
    return x.flatten(3, 4).flatten(1, 2)


@UNSHUFFLE.mistake("The first patch of each token is repeated, and the other patches in it are never read.")
def _(x, factor):
    return x[..., : x.shape[-1] // factor**2].repeat_interleave(factor**2, dim=1)
