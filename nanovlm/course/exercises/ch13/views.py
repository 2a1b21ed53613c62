"""Chapter 13: the number of views that a picture is worth, and the test of its tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nanovlm.config import TilingConfig
from nanovlm.course.exercises import common
from nanovlm.course.exercises.ch13.tiles import SPLIT, grid_of_the_package, numbered_image, split
from nanovlm.course.judge.exercise import Case, Exercise, expect
from nanovlm.data.tiling import TiledImageProcessor

# -- tiles.views -------------------------------------------------------------------------------------------------------


def views_of_the_default(width: int, height: int, tile: int = 512, longest: int = 2048) -> int:
    """The course's default."""
    return TiledImageProcessor(tile, tiling=TilingConfig(max_side=longest)).num_tiles((width, height))


VIEWS = Exercise(
    id="tiles.views",
    chapter="13",
    title="Mend it: an icon in 17 views",
    difficulty=2,
    minutes=10,
    why="The encoder's work grows with the views, and most pictures on the web are small. Under a rule that always "
    "enlarges, a page of twenty icons costs 340 views and shows what twenty would.",
    hints=(
        "Two things are wrong. One happens before the grid is computed, the other after it.",
        "Step 1 of the rule brings the longer side to `longest`. When is that needed? And how often is a picture shown "
        "that is one tile?",
        "if max(width, height) > longest: step 1\n"
        "rows, columns = step 2, fill_tiles of the size that you have now, divided by tile\n"
        "return rows * columns + …",
    ),
    reference=views_of_the_default,
    cases=lambda: [
        Case(64, 64, note="an icon of 64 x 64"),
        Case(512, 512, note="a picture that is one tile"),
        Case(513, 300, note="513 x 300: a pixel wider than a tile"),
        Case(1920, 1080, note="a screenshot, 1920 x 1080"),
        Case(2048, 1000, note="2048 x 1000: as long as `longest`"),
        Case(300, 4000, note="a banner upright, 300 x 4000, which has to be shrunk"),
        Case(50, 30, tile=16, longest=64, note="50 x 30, tiles of 16, longest 64"),
        Case(90, 70, tile=16, longest=64, note="90 x 70, tiles of 16, longest 64"),
        Case(600, 20, tile=512, longest=2048, note="600 x 20: low and wide"),
        Case(1499, 1000, note="1499 x 1000"),
        Case(3000, 400, note="a banner, 3000 x 400"),
        Case(2500, 1900, note="2500 x 1900: only one side is too long"),
    ],
)


@VIEWS.property("a picture never gets more views than SmolVLM's rule gives it")
def _(views) -> None:
    for width, height in ((64, 64), (700, 400), (2500, 400)):
        rows, columns = grid_of_the_package(width, height)
        most = rows * columns + (rows * columns > 1)
        expect(
            views(width, height) <= most, f"{width} x {height}: {views(width, height)} views, and SmolVLM has {most}."
        )


def _views(
    width: int,
    height: int,
    tile: int = 512,
    longest: int = 2048,
    *,
    shrink: Callable[[int, int, int], bool] = lambda w, h, n: max(w, h) > n,
    whole: Callable[[int], int] = lambda tiles: tiles > 1,
) -> int:
    from nanovlm.data.tiling import fill_tiles, scale_to_longest

    size = scale_to_longest((width, height), longest) if shrink(width, height, longest) else (width, height)
    wide, high = fill_tiles(size, tile)
    tiles = wide // tile * (high // tile)
    return tiles + int(whole(tiles))


def _wrong(**options: Any) -> Callable[..., int]:
    return lambda width, height, tile=512, longest=2048: _views(width, height, tile, longest, **options)


for sentence, options in (
    ("Small pictures are still enlarged. Step 1 is only for those that are longer than `longest`.",
     {"shrink": lambda w, h, n: True}),
    ("A picture of one tile is still shown twice. Its only view is the whole.", {"whole": lambda tiles: True}),
    ("The view of the whole is gone for pictures that are cut, too. They need it.", {"whole": lambda tiles: False}),
    ("Large pictures are not shrunk any more. Those longer than `longest` still need step 1.",
     {"shrink": lambda w, h, n: False}),
    ("You compare the shorter side with `longest`. A picture is too large as soon as its longer side is.",
     {"shrink": lambda w, h, n: min(w, h) > n}),
    ("You compare the width alone with `longest`. In an upright picture the height is the longer side.",
     {"shrink": lambda w, h, n: w > n}),
    ("You compare the height alone with `longest`. In a picture that is wider than high the width is the longer side.",
     {"shrink": lambda w, h, n: h > n}),
    ("You compare the number of pixels with longest * longest. A long, thin picture has few, and is too long.",
     {"shrink": lambda w, h, n: w * h > n * n}),
    ("The sum of both sides decides here. Compare the longer side with `longest`.",
     {"shrink": lambda w, h, n: w + h > n}),
):  # fmt: skip
    VIEWS.mistake(sentence)(_wrong(**options))


@VIEWS.mistake("`tile` and `longest` are not used: you write 512 and 2048 where they should stand.")
def _(width, height, tile=512, longest=2048):
    return _views(width, height)


@VIEWS.mistake("Each side is rounded up by itself. In step 2 the shorter side follows from the longer one.")
def _(width, height, tile=512, longest=2048):
    scale = min(longest / max(width, height), 1)
    tiles = max(-(-int(width * scale) // tile), 1) * max(-(-int(height * scale) // tile), 1)
    return tiles + (tiles > 1)


@VIEWS.mistake("These are rows and columns added. A grid has rows * columns tiles.")
def _(width, height, tile=512, longest=2048):
    from nanovlm.data.tiling import fill_tiles, scale_to_longest

    size = scale_to_longest((width, height), longest) if max(width, height) > longest else (width, height)
    wide, high = fill_tiles(size, tile)
    tiles = wide // tile + high // tile
    return tiles + (tiles > 2) if tiles > 2 else 1


# -- tiles.test_split --------------------------------------------------------------------------------------------------


def planted() -> dict[str, Callable[..., Tensor]]:
    """What is wrong -> a wrong split_image: those of exercise 13.2."""
    beginnings = {
        "tiles column by column": "The tiles come column by column",
        "a plain reshape": "The shape is right and the tiles are wrong",
        "tiles spread over the picture": "Each of these tiles is spread",
        "rows and columns swapped in a tile": "Inside each tile",
        "the view of the whole comes first": "The view of the whole comes first",
        "no view of the whole": "The view of the whole is missing",
        "the top left corner for the whole": "Its last view is",
        "a picture of one tile is shown twice": "A picture that is one tile",
    }
    return {
        name: next(m.version for m in SPLIT.mistakes if m.sentence.startswith(begin))
        for name, begin in beginnings.items()
    }


def check_split(split_image: Callable[..., Tensor]) -> None:
    """Numbered pixels in two rows of three tiles, and a picture of one tile."""
    views = split_image(numbered_image(4, 6), 2)
    assert views.shape == (7, 1, 2, 2)
    assert views[1].flatten().tolist() == [2, 3, 8, 9] and views[3].flatten().tolist() == [12, 13, 18, 19]
    assert views[6].flatten().tolist() == [4, 7, 16, 19]
    assert split_image(numbered_image(3, 3), 3).shape == (1, 1, 3, 3)


def caught(test: Callable[[Any], None]) -> int:
    """How many of the planted versions make the learner's test fail, after it has passed with the right one."""
    return common.caught(test, split, planted(), "split_image")


TEST_SPLIT = Exercise(
    id="tiles.test_split",
    chapter="13",
    title="Write the test that no check of shapes can replace",
    difficulty=2,
    minutes=10,
    why="Most wrong ways to cut a picture give the right shape. A test with numbered pixels finds them in a "
    "millisecond, while a training run only ends with a worse score.",
    hints=(
        "Shapes will not do. Which picture makes every pixel say where it is from?",
        "torch.arange gives numbered pixels. Take two rows of three tiles, so that rows and columns cannot be "
        "confused, and write down two tiles and the last view by hand. Then a picture that is one tile.",
        "image = torch.arange(24.0).reshape(1, 4, 6)\n"
        "views = split_image(image, 2)\n"
        "assert views[1].flatten().tolist() == …       # the second tile of the first row\n"
        "assert the last view is the mean of …, and a picture of one tile gives one view",
    ),
    reference=check_split,
    cases=lambda: [Case(note=f"your test, on a right split_image and on {len(planted())} wrong ones")],
    call=caught,
)


@TEST_SPLIT.mistake(
    "Your test looks at shapes alone, or its picture is one colour: six of the eight wrong versions pass that."
)
def _(split_image):
    assert split_image(numbered_image(4, 6), 2).shape == (7, 1, 2, 2)
    assert split_image(numbered_image(3, 3), 3).shape == (1, 1, 3, 3)


@TEST_SPLIT.mistake("Your test passes with every version: no assert in it can fail.")
def _(split_image):
    split_image(numbered_image(4, 6), 2)


@TEST_SPLIT.mistake("Your test compares the first tile alone. The others can be anywhere.")
def _(split_image):
    assert split_image(numbered_image(4, 6), 2)[0].flatten().tolist() == [0, 1, 6, 7]


@TEST_SPLIT.mistake("Your test never looks at the last view: the whole can be missing, or something else.")
def _(split_image):
    views = split_image(numbered_image(4, 6), 2)
    assert [v.flatten().tolist() for v in views[:6]] == [
        v.flatten().tolist() for v in split(numbered_image(4, 6), 2)[:6]
    ]
    assert len(split_image(numbered_image(3, 3), 3)) == 1


@TEST_SPLIT.mistake("Your test never cuts a picture that is one tile.")
def _(split_image):
    assert torch.equal(split_image(numbered_image(4, 6), 2), split(numbered_image(4, 6), 2))


@TEST_SPLIT.mistake("Your test says True or False. pytest, and everybody else, waits for an AssertionError.")
def _(split_image):
    return True


@TEST_SPLIT.mistake("Your test asks for something that split_image does not promise. Read exercise 13.2 once more.")
def _(split_image):
    raise AssertionError
