"""Chapter 03: what tiles save an encoder, a shuffle to mend, and a test that tells shuffles apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nanovlm.config import ViTConfig
from nanovlm.course.exercises import common
from nanovlm.course.exercises.ch03.pixel_shuffle import WRONG_SHUFFLE, numbered
from nanovlm.course.judge.exercise import Case, Exercise, expect
from nanovlm.models.modality_projector import pixel_shuffle

# -- pixel_shuffle.tile_savings ----------------------------------------------------------------------------------------


def tile_savings(num_patches: int, num_tiles: int, config: ViTConfig) -> tuple[float, float]:
    """Product by product."""
    dim, inter = config.hidden_dim, config.inter_dim
    linear = sum(2 * num_patches * a * b for a, b in ((dim, 3 * dim), (dim, dim), (dim, inter), (inter, dim)))

    def attention(length: int) -> int:
        return 2 * length * length * dim + 2 * length * length * dim  # scores, weighted sum

    pairs = num_patches**2 / (num_tiles * (num_patches / num_tiles) ** 2)
    part = num_patches // num_tiles
    return pairs, (linear + attention(num_patches)) / (linear + num_tiles * attention(part))


SAVINGS = Exercise(
    id="pixel_shuffle.tile_savings",
    chapter="03",
    title="Measure it: sixteen times less of what?",
    difficulty=2,
    minutes=12,
    why="A factor is only as good as what it counts. Tiles save an encoder pairs of patches, and a blog post that quotes "
    "this factor as the saving of compute promises four times too much.",
    hints=(
        "Count two things for the whole picture and for all tiles together: pairs of patches, and operations.",
        "Attention in one block takes 4 * n * n * dim operations for n patches. The linear layers take 2 * n * (4 * dim "
        "* dim + 2 * dim * inter). With tiles, attention runs num_tiles times on n / num_tiles patches, and the linear "
        "layers see as many patches as before.",
        "linear = 2 * n * (4 * dim**2 + 2 * dim * inter)\n"
        "whole = linear + 4 * n**2 * dim\n"
        "tiled = linear + …\n"
        "return n**2 / (num_tiles * (n // num_tiles)**2), whole / tiled",
    ),
    reference=tile_savings,
    cases=lambda: [
        Case(16, 4, ViTConfig(4, 10, 1, 2, 8, 2), note="16 patches in 4 tiles, hidden_dim 4, inter_dim 10"),
        Case(128 * 128, 16, ViTConfig(), note="2,048 pixels in 16 tiles of SigLIP-B"),
        Case(48 * 48, 9, ViTConfig(12, 20, 3, 3, 768, 16), note="2,304 patches in 9 tiles, hidden_dim 12"),
        Case(64, 1, ViTConfig(12, 20, 3, 3, 64, 8), note="one tile, which saves nothing"),
    ],
    axes={"pairs": "", "operations": ""},
)


@SAVINGS.property("the number of blocks makes no difference")
def _(fn) -> None:
    one, many = (fn(1024, 4, ViTConfig(num_blocks=n)) for n in (1, 12))
    expect(
        abs(one[1] - many[1]) < 1e-6, "With 12 blocks your factor is another than with one. All blocks cost the same."
    )


def _savings(
    n: int, tiles: int, c: ViTConfig, linear: float = 1.0, both: float = 1.0, split: bool = True, mlp: float = 2
) -> tuple[float, float]:
    weights = 2 * n * (4 * c.hidden_dim**2 + mlp * c.hidden_dim * c.inter_dim)
    attention = both * 4 * n * n * c.hidden_dim
    tiled = attention / tiles if split else attention / tiles**2
    return float(tiles), (linear * weights + attention) / (linear * weights + tiled)


for _sentence, _version in {
    "Your operations go down as the pairs do. Either the linear layers are left out, or tiles make them fewer in your "
    "count; but they see every patch, whichever tile it is in.": lambda n, t, c: _savings(n, t, c, linear=0),
    "You count one tile and not all of them: attention runs num_tiles times.": (
        lambda n, t, c: _savings(n, t, c, split=False)
    ),
    "The factor is upside down: how many times less the tiles cost.": (
        lambda n, t, c: (1 / float(t), 1 / _savings(n, t, c)[1])
    ),
    "The two products of attention are counted as one: scores, and the weighted sum of values.": (
        lambda n, t, c: _savings(n, t, c, both=0.5)
    ),
    "The two factors have changed places: pairs first, then operations.": (lambda n, t, c: _savings(n, t, c)[::-1]),
    "The MLP is left out: it has two layers, hidden_dim x inter_dim each.": lambda n, t, c: _savings(n, t, c, mlp=0),
    "The MLP has two layers; you count one.": lambda n, t, c: _savings(n, t, c, mlp=1),
    "The MLP's width is written in as 4 * hidden_dim. The config says it: inter_dim.": (
        lambda n, t, c: _savings(n, t, c, mlp=2 * 4 * c.hidden_dim / c.inter_dim)
    ),
    "num_tiles is squared for the pairs: each tile has 1 / num_tiles² of them, and there are num_tiles tiles.": (
        lambda n, t, c: (float(t * t), _savings(n, t, c)[1])
    ),
    "A multiplication and an addition are counted as one in the linear layers and as two in attention.": (
        lambda n, t, c: _savings(n, t, c, linear=0.5)
    ),
}.items():
    SAVINGS.mistake(_sentence)(_version)


# -- pixel_shuffle.shuffle_rectangle -----------------------------------------------------------------------------------


def shuffle_rectangle(x: Tensor, height: int, width: int, factor: int) -> Tensor:
    """One group at a time."""
    groups = []
    for row in range(0, height, factor):
        for column in range(0, width, factor):
            held = [x[:, (row + i) * width + column + j] for i in range(factor) for j in range(factor)]
            groups.append(torch.cat(held, dim=-1))
    return torch.stack(groups, dim=1)


RECTANGLE = Exercise(
    id="pixel_shuffle.shuffle_rectangle",
    chapter="03",
    title="Mend it: a shuffle for pictures that are not square",
    difficulty=2,
    minutes=10,
    why="Models with native resolution encode pictures as they are, wide or tall. Code that was only ever tried on squares "
    "hides two kinds of mistakes there.",
    hints=(
        "On a square picture rows and columns have the same number. Which of the sizes in the code is which?",
        "The patch axis is height rows of width patches. Split it in this order: rows of groups, rows inside, columns of "
        "groups, columns inside. Then bring the inner axes together.",
        "x = x.reshape(batch, …, factor, …, factor, dim)\n"
        "x = x.transpose(2, 3)\n"
        "return x.reshape(batch, (height // factor) * (width // factor), factor * factor * dim)",
    ),
    reference=shuffle_rectangle,
    cases=lambda: [
        Case(torch.arange(24.0).view(1, 24, 1), 4, 6, 2, note="4 rows of 6 patches that hold their own number, r = 2"),
        Case(torch.arange(2 * 54 * 3.0).view(2, 54, 3), 9, 6, 3, note="two pictures of 9 rows of 6 patches, r = 3"),
        Case(numbered(4, 2), 4, 4, 2, note="a square of 4 x 4 patches"),
    ],
    axes="batch tokens dim",
)


def _rectangle(x: Tensor, height: int, width: int, factor: int, *order: int) -> Tensor:
    x = x.reshape(len(x), height // factor, factor, width // factor, factor, x.shape[2])
    return x.permute(*order).flatten(3).flatten(1, 2)


for _sentence, _version in {
    "Height and width have changed places: this is the code as it was. The patches come in rows of width.": (
        lambda x, h, w, r: _rectangle(x, w, h, r, 0, 1, 3, 2, 4, 5)
    ),
    "The groups come column by column. Tokens are in reading order.": (
        lambda x, h, w, r: _rectangle(x, h, w, r, 0, 3, 1, 2, 4, 5)
    ),
    "Inside each group you go down the columns first. Go along the rows.": (
        lambda x, h, w, r: _rectangle(x, h, w, r, 0, 1, 3, 4, 2, 5)
    ),
    "The numbers inside a token are channel first. They should be patch after patch.": (
        lambda x, h, w, r: _rectangle(x, h, w, r, 0, 1, 3, 5, 2, 4)
    ),
    "Without a transpose no patch moves: these are strips of a row.": (
        lambda x, h, w, r: x.reshape(len(x), h * w // r**2, -1)
    ),
    "The picture is taken for a square: its side is the root of the number of patches.": (
        lambda x, h, w, r: pixel_shuffle(x, r)
    ),
    "The picture is transposed: rows have become columns, of the groups and inside them.": (
        lambda x, h, w, r: _rectangle(x, h, w, r, 0, 3, 1, 4, 2, 5)
    ),
}.items():
    RECTANGLE.mistake(_sentence)(_version)


# -- pixel_shuffle.test_shuffle ----------------------------------------------------------------------------------------

PLANTED = dict(
    zip(
        (
            "strips of a row",
            "channel first",
            "down the columns inside a group",
            "groups column by column",
            "a transposed picture",
            "a dilated grid",
        ),
        WRONG_SHUFFLE.values(),
        strict=True,
    )
) | {
    "the mean of each group, repeated": lambda x, r: pixel_shuffle(x, r).unflatten(-1, (r * r, -1)).mean(2).repeat(1, 1, r * r),
    "the first picture for all": lambda x, r: pixel_shuffle(x[:1].expand_as(x), r),
}  # fmt: skip


def test_shuffle(shuffle: Callable[[Tensor, int], Tensor]) -> None:
    """Two pictures of numbers, and the tokens written down by hand."""
    x = torch.arange(64.0).view(2, 16, 2)  # number 1 of patch 3 of picture 1 is 2 * (16 + 3) + 1
    tokens = shuffle(x, 2)
    assert tokens[0, 0].tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert tokens[0, 1].tolist() == [4, 5, 6, 7, 12, 13, 14, 15]
    assert tokens[1, 2].tolist() == [32 + n for n in (16, 17, 18, 19, 24, 25, 26, 27)]


test_shuffle.__test__ = False  # type: ignore[attr-defined]  # no test of ours: pytest would call it


def caught(test: Callable[[Any], None]) -> int:
    """How many of the planted versions make the learner's test fail, after it has passed with a right one."""
    return common.caught(test, pixel_shuffle, PLANTED, "shuffle")


TEST_SHUFFLE = Exercise(
    id="pixel_shuffle.test_shuffle",
    chapter="03",
    title="Write the test that no wrong shuffle passes",
    difficulty=2,
    minutes=10,
    why="Eight wrong shuffles have the right shape. One small example, with numbers that say where they come from, tells "
    "all of them apart.",
    hints=(
        "What must an example contain so that each mistake shows: how many pictures, how many numbers in a patch?",
        "Two pictures of 4 x 4 patches with two numbers each, all different: torch.arange. Write down two or three tokens "
        "by hand, one of them of the second picture.",
        "x = torch.arange(64.0).view(2, 16, 2)\n"
        "tokens = shuffle(x, 2)\n"
        "assert tokens[0, 0].tolist() == [0, 1, 2, 3, …]\n"
        "and the same for tokens[0, 1] and tokens[1, 2]",
    ),
    reference=test_shuffle,
    cases=lambda: [Case(note=f"your test, on a right shuffle and on {len(PLANTED)} wrong ones")],
    call=caught,
)


@TEST_SHUFFLE.mistake("Your test catches none: it asserts nothing, or looks at the shape alone. Compare the numbers.")
def _(shuffle):
    assert shuffle(torch.randn(2, 16, 2), 2).shape == (2, 4, 8)


@TEST_SHUFFLE.mistake(
    "Your test only asks whether all numbers are still there. They are, in nearly every wrong version, in other places."
)
def _(shuffle):
    x = torch.arange(64.0).view(2, 16, 2)
    assert shuffle(x, 2).flatten().sort().values.equal(x.flatten())


@TEST_SHUFFLE.mistake(
    "Your example has a single number in each patch, so that the order inside a token and inside a patch cannot be told "
    "apart. Take two, and a second picture."
)
def _(shuffle):
    x = torch.arange(16.0).view(1, 16, 1)
    assert shuffle(x, 2)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


@TEST_SHUFFLE.mistake(
    "Your example has one picture. A second one shows whether the pictures of a batch are kept apart."
)
def _(shuffle):
    x = torch.arange(32.0).view(1, 16, 2)
    assert shuffle(x, 2).equal(pixel_shuffle(x, 2))
