"""Chapter 01: patches, cut out of pictures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nanovlm.course.exercises.common import noise
from nanovlm.course.judge.exercise import Case, Exercise, expect


def numbered(*shape: int) -> Tensor:
    """Pixels that hold their own number: 0 1 2 3 … in reading order."""
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)


# -- patches.patchify --------------------------------------------------------------------------------------------------


def cut(images: Tensor, patch_size: int) -> Tensor:
    """Also of whole numbers, which F.unfold refuses."""
    rows = images.unfold(2, patch_size, patch_size)
    grid = rows.unfold(3, patch_size, patch_size)  # [B, channels, rows, columns, p, p]
    return grid.movedim(1, 3).flatten(3).flatten(1, 2)


PATCHIFY = Exercise(
    id="patches.patchify",
    chapter="01",
    title="Cut a picture into patches",
    difficulty=2,
    minutes=12,
    why="It turns a picture into a sequence of vectors, which is all that a transformer can read. A plain reshape gives "
    "the right shape too, but its patches are strips of pixels that do not belong together.",
    hints=(
        "A patch consists of p rows of p pixels, in each of three channels. In memory these rows are not adjacent, because "
        "the rest of the picture's row is between them.",
        "Unfold each side in two: the rows into (row of patches, row inside the patch), the columns likewise. Bring "
        "the two that count patches to the front, then merge: two axes into the patches, three into the vector.",
        "x = images.reshape(batch, channels, height // p, p, width // p, p)\n"
        "x = permute it to [batch, patch row, patch column, channel, row inside, column inside]\n"
        "return x.reshape(batch, number of patches, channels * p * p)",
    ),
    reference=cut,
    cases=lambda: [
        Case(numbered(1, 1, 4, 4), 2, note="one grey picture of 4x4 pixels that hold their own number, patches of 2"),
        Case(noise(2, 3, 6, 6), 3, note="two colour pictures of 6x6 pixels, patches of 3"),
        Case(noise(1, 3, 4, 8), 2, note="a picture that is wider than high"),
        Case(noise(1, 2, 3, 3), 1, note="patches of one pixel"),
    ],
    axes="batch patches numbers",
)


@PATCHIFY.property("every number of the picture is kept")
def _(patchify) -> None:
    x = noise(2, 3, 8, 8)
    same = torch.equal(patchify(x.clone(), 4).flatten().sort().values, x.flatten().sort().values)
    expect(same, "Some numbers of the picture are missing, or appear twice. Only their places may change.")


@PATCHIFY.property("a patch is a square of the picture")
def _(patchify) -> None:
    x = noise(1, 3, 8, 8)
    expect(
        torch.equal(patchify(x.clone(), 4)[0, 1], x[0, :, 0:4, 4:8].flatten()),
        "Patch 1 of an 8x8 picture should be the square at the top right: x[:, 0:4, 4:8], flattened.",
    )


@PATCHIFY.mistake(
    "The shape is right and the patches are wrong: a plain reshape takes numbers as they lie in memory, long strips of "
    "one channel, instead of squares of three."
)
def _(images, patch_size):
    return images.reshape(images.shape[0], -1, images.shape[1] * patch_size**2)


@PATCHIFY.mistake(
    "The right squares, but each is laid out colour last: red, green, blue of the first pixel, then of the second. A "
    "convolution's weight goes channel by channel, and so does this exercise."
)
def _(images, patch_size):
    x = cut(images, patch_size).unflatten(2, (images.shape[1], patch_size**2))
    return x.transpose(2, 3).flatten(2)


@PATCHIFY.mistake("The right patches, but they come column by column. Patches are in reading order: along the rows.")
def _(images, patch_size):
    _, _, height, width = images.shape
    x = cut(images, patch_size).unflatten(1, (height // patch_size, width // patch_size))
    return x.transpose(1, 2).flatten(1, 2)


@PATCHIFY.mistake("The right patches, but inside each of them you go down the columns first. Go along the rows.")
def _(images, patch_size):
    x = cut(images, patch_size).unflatten(2, (images.shape[1], patch_size, patch_size))
    return x.transpose(3, 4).flatten(2)


@PATCHIFY.mistake(
    "These are pixels from all over the picture, every so many apart. In the unfolded axes the *first* of each pair "
    "counts patches and the *second* counts pixels inside."
)
def _(images, patch_size):
    batch, channels, height, width = images.shape
    x = images.reshape(batch, channels, patch_size, height // patch_size, patch_size, width // patch_size)
    return x.permute(0, 3, 5, 1, 2, 4).reshape(batch, -1, channels * patch_size**2)


@PATCHIFY.mistake(
    "`unfold` on both sides leaves [batch, channel, patch row, patch column, row, column], and the reshape then gives each "
    "patch one channel. The channel belongs inside a patch: permute it behind the two axes that count patches."
)
def _(images, patch_size):
    windows = images.unfold(2, patch_size, patch_size).unfold(3, patch_size, patch_size)
    return windows.reshape(images.shape[0], -1, images.shape[1] * patch_size**2)


@PATCHIFY.mistake("The axes of patches and of numbers are the wrong way round: swap the last two.")
def _(images, patch_size):
    return F.unfold(images, patch_size, stride=patch_size)


@PATCHIFY.mistake("These patches overlap: they begin at every pixel. Move on by a whole patch, stride=patch_size.")
def _(images, patch_size):
    return F.unfold(images, patch_size).transpose(1, 2)


@PATCHIFY.mistake("The pictures of the batch have become one list of patches. Keep the batch as the first axis.")
def _(images, patch_size):
    return cut(images, patch_size).flatten(0, 1)


@PATCHIFY.mistake("Only the first picture of the batch comes out. Cut all of them.")
def _(images, patch_size):
    return cut(images[:1], patch_size)


@PATCHIFY.mistake(
    "Each channel became patches of its own. A patch holds all channels of its square: channels * patch_size ** 2 numbers."
)
def _(images, patch_size):
    windows = images.unfold(2, patch_size, patch_size).unfold(3, patch_size, patch_size)
    return windows.reshape(images.shape[0], -1, patch_size**2)


@PATCHIFY.mistake(
    "This works for a square picture only: the number of columns comes from the width, not from the height."
)
def _(images, patch_size):
    batch, channels, height, width = images.shape
    if height != width:
        raise RuntimeError
    return cut(images, patch_size)


@PATCHIFY.mistake("This expects three channels. Take their number from images.shape, since one example is grey.")
def _(images, patch_size):
    if images.shape[1] != 3:
        raise RuntimeError
    return cut(images, patch_size)


@PATCHIFY.mistake(
    "You flatten the picture's rows before you cut, so each patch is a stretch of rows instead of a square. Unfold both "
    "sides first."
)
def _(images, patch_size):
    return torch.stack(images.flatten(2).split(patch_size**2, dim=2), dim=1).flatten(2)


@PATCHIFY.mistake("Rows and columns of the grid should be merged into one axis, which counts the patches.")
def _(images, patch_size):
    return cut(images, patch_size).unflatten(1, (images.shape[2] // patch_size, images.shape[3] // patch_size))
