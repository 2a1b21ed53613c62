"""Chapter 13: how many tiles a picture becomes, and cutting it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanovlm.config import TilingConfig
from nanovlm.course.exercises.common import noise
from nanovlm.course.judge.exercise import Case, Exercise, expect
from nanovlm.data.tiling import TiledImageProcessor


def numbered_image(height: int, width: int, channels: int = 1) -> Tensor:
    """Pixels that hold their own number: [channels, height, width], 0 1 2 3 … in reading order."""
    return torch.arange(channels * height * width, dtype=torch.float32).reshape(channels, height, width)


# -- tiles.grid --------------------------------------------------------------------------------------------------------


def grid_of_the_package(width: int, height: int, tile: int = 512, longest: int = 2048) -> tuple[int, int]:
    tiling = TilingConfig("smolvlm", max_side=longest, upscale=True)
    return TiledImageProcessor(tile, tiling=tiling).grid((width, height))


GRID = Exercise(
    id="tiles.grid",
    chapter="13",
    title="How many rows, how many columns?",
    difficulty=2,
    minutes=10,
    why="The grid decides what a picture costs and what can be read in it. If you round in another way "
    "than the processor, you count another number of tiles, and the placeholders in the text do not match them.",
    hints=(
        "Two steps, and in both the longer side comes first. The shorter one follows from it by the picture's shape, "
        "width / height.",
        "Step 1: the longer side is `longest`, always. Shorter side: from the shape, with int(), made even. "
        "Step 2: take the shape anew, round the longer side up to a multiple, derive the shorter one, round it up too.",
        "shape = width / height\n"
        "if width >= height: width, height = longest, even(int(longest / shape))\n"
        "else:               width, height = even(int(longest * shape)), longest\n"
        "then the same once more with up(…) = math.ceil(… / tile) * tile for each side, and divide both by tile",
    ),
    reference=grid_of_the_package,
    cases=lambda: [
        Case(1920, 1080, note="a screenshot of 1920 x 1080, SmolVLM-256M's settings"),
        Case(64, 64, note="an icon of 64 x 64"),
        Case(4000, 300, note="a banner of 4000 x 300"),
        Case(300, 4000, note="the banner upright, 300 x 4000"),
        Case(800, 900, note="a portrait of 800 x 900"),
        Case(50, 30, tile=16, longest=64, note="50 x 30, tiles of 16, longest 64"),
        Case(1280, 960, tile=384, longest=1536, note="1280 x 960 with SmolVLM-2.2B's settings"),
        Case(929, 3711, note="929 x 3711: step 1 makes it 512 x 2048"),
        Case(4000, 1, note="a line, 4000 x 1"),
        Case(1, 4000, note="a line upright, 1 x 4000"),
        Case(152, 600, tile=512, longest=2000, note="152 x 600, tiles of 512, longest 2000: no multiple of the tile"),
        Case(122, 600, tile=15, longest=64, note="122 x 600, tiles of 15, longest 64"),
        Case(161, 600, tile=16, longest=50, note="161 x 600, tiles of 16, longest 50"),
        Case(452, 600, tile=16, longest=50, note="452 x 600, tiles of 16, longest 50"),
        Case(470, 600, tile=16, longest=50, note="470 x 600, tiles of 16, longest 50"),
    ],
    axes={"rows": "", "columns": ""},
)


@GRID.property("a larger copy of a picture gets the same grid")
def _(grid) -> None:
    small, large = grid(160, 120), grid(1600, 1200)
    expect(
        tuple(small) == tuple(large),
        f"160 x 120 becomes {tuple(small)} and 1600 x 1200 becomes {tuple(large)}. Both are resized to the same size "
        "first, so the grids are equal.",
    )


@GRID.property("a turned picture has rows for columns")
def _(grid) -> None:
    wide, tall = tuple(grid(900, 500)), tuple(grid(500, 900))
    expect(wide == tall[::-1], f"900 x 500 becomes {wide}, 500 x 900 becomes {tall}: one is not the other, turned.")


def _rule(
    width: float,
    height: float,
    tile: int = 512,
    longest: int = 2048,
    *,
    enlarge: bool = True,
    whole: Callable[[float], float] = int,
    even: Callable[[Any], Any] = lambda length: length + length % 2,
    least: int = 1,
    first_shape: bool = False,
    whole_again: Callable[[float], float] = int,
    up: Callable[[float], int] = math.ceil,
    width_leads: bool = False,
    height_leads: bool = False,
) -> tuple[int, int]:
    """SmolVLM's rule in its two steps, or with the options a wrong one."""
    shape = width / height
    if enlarge or max(width, height) > longest:
        if (width >= height or width_leads) and not height_leads:
            width, height = longest, max(even(whole(longest / shape)), least)
        else:
            width, height = max(even(whole(longest * shape)), least), longest
    shape = shape if first_shape else width / height
    if (width >= height or width_leads) and not height_leads:
        columns = up(width / tile)
        return max(up(whole_again(columns * tile / shape) / tile), least), columns
    rows = up(height / tile)
    return rows, max(up(whole_again(rows * tile * shape) / tile), least)


def _wrong(**options: Any) -> Callable[..., tuple[int, int]]:
    return lambda width, height, tile=512, longest=2048: _rule(width, height, tile, longest, **options)


def _filled(width: float, height: float, tile: int) -> tuple[int, int]:
    """Each side alone, rounded up."""
    return max(math.ceil(height / tile), 1), max(math.ceil(width / tile), 1)


@GRID.mistake("Columns first: the answer is (rows, columns), and rows come from the height.")
def _(width, height, tile=512, longest=2048):
    return grid_of_the_package(width, height, tile, longest)[::-1]


GRID.mistake(
    "A small picture stays small here. That is sensible, and it is what our own default does; SmolVLM's rule enlarges "
    "every picture until its longer side is `longest`."
)(_wrong(enlarge=False))


@GRID.mistake("The picture is cut at its own size. First its longer side is brought to `longest`.")
def _(width, height, tile=512, longest=2048):
    return _filled(width, height, tile)


@GRID.mistake("Step 1 is missing: you fill the tiles from the picture's own size, and `longest` is not used.")
def _(width, height, tile=512, longest=2048):
    return _rule(width, height, tile, 10**9, enlarge=False)


@GRID.mistake(
    "The picture is resized once here, and each side is rounded up by itself. SmolVLM resizes twice: whole, even "
    "pixels come first, and step 2 computes the shorter side from those."
)
def _(width, height, tile=512, longest=2048):
    scale = longest / max(width, height)
    return _filled(width * scale, height * scale, tile)


@GRID.mistake(
    "In step 2 you round each side up by itself. Round the longer side up, then compute the shorter one from that and "
    "the shape."
)
def _(width, height, tile=512, longest=2048):
    shape = width / height
    long, short = longest, int(longest / max(shape, 1 / shape))
    short = max(short + short % 2, 1)
    return _filled(long, short, tile) if width >= height else _filled(short, long, tile)


GRID.mistake(
    "The sides are rounded down to whole tiles, which would cut off what is left over. They are rounded up: the "
    "picture is stretched a little to fill its last tile."
)(_wrong(up=math.floor))
GRID.mistake("The sides are rounded to the nearest number of tiles. They are rounded up.")(_wrong(up=round))


@GRID.mistake("Every picture becomes a square. Only the longer side becomes `longest`; the shorter keeps the shape.")
def _(width, height, tile=512, longest=2048):
    return math.ceil(longest / tile), math.ceil(longest / tile)


GRID.mistake(
    "You take the width for the longer side. In an upright picture the height is, and the width follows from it."
)(_wrong(width_leads=True))


@GRID.mistake("You bring the *shorter* side to `longest`, so that the longer one gets even longer.")
def _(width, height, tile=512, longest=2048):
    scale = longest / min(width, height)
    return _filled(width * scale, height * scale, tile)


GRID.mistake("In step 1 an odd shorter side loses a pixel. It is made even by adding one.")(
    _wrong(even=lambda length: length - length % 2)
)
GRID.mistake("In step 1 an odd shorter side stays odd. One pixel is added to make it even.")(
    _wrong(even=lambda length: length)
)
GRID.mistake(
    "In step 1 the shorter side is rounded, to the nearest or up. It is cut down with `int`, as the processor does."
)(_wrong(whole=round))
GRID.mistake("The shorter side is rounded, in both steps. It is cut down with `int`, as the processor does.")(
    _wrong(whole=round, whole_again=round)
)
GRID.mistake(
    "You take the height for the longer side. In a picture that is wider than high the width is, and the height "
    "follows from it."
)(_wrong(height_leads=True))


@GRID.mistake("These are pixels: the size that the picture is resized to. Divide both sides by `tile`.")
def _(width, height, tile=512, longest=2048):
    return tuple(side * tile for side in grid_of_the_package(width, height, tile, longest))


GRID.mistake("In step 2 the shorter side is not cut down with `int` before it is rounded up to tiles.")(
    _wrong(whole_again=float)
)
GRID.mistake(
    "Step 2 uses the shape that the picture had at first. Take it anew, from the whole, even pixels of step 1."
)(_wrong(first_shape=True))
GRID.mistake("A side can become 0 here. A line is a pixel wide after step 1, and fills one tile: never less than 1.")(
    _wrong(least=0)
)


@GRID.mistake("You guard against 0 at the end only, but step 2 divides by that side before. Never let step 1 give 0.")
def _(width, height, tile=512, longest=2048):
    rows, columns = _rule(width, height, tile, longest, least=0)
    return max(rows, 1), max(columns, 1)


@GRID.mistake("`tile` is not used: you write 512 where it should stand.")
def _(width, height, tile=512, longest=2048):
    return grid_of_the_package(width, height, 512, longest)


@GRID.mistake("`longest` is not used: you write 2048 where it should stand.")
def _(width, height, tile=512, longest=2048):
    return grid_of_the_package(width, height, tile, 2048)


@GRID.mistake("`longest` is taken to be 4 tiles. That holds for SmolVLM's own settings, and not for others.")
def _(width, height, tile=512, longest=2048):
    return grid_of_the_package(width, height, tile, 4 * tile)


@GRID.mistake("Neither `tile` nor `longest` is used: you write 512 and 2048 where they should stand.")
def _(width, height, tile=512, longest=2048):
    return grid_of_the_package(width, height)


# -- tiles.split -------------------------------------------------------------------------------------------------------


def split(image: Tensor, tile: int) -> Tensor:
    """One slice at a time, in reading order."""
    _, height, width = image.shape
    tops, lefts = range(0, height, tile), range(0, width, tile)
    views = [image[:, top : top + tile, left : left + tile] for top in tops for left in lefts]
    if len(views) > 1:
        views.append(F.adaptive_avg_pool2d(image, tile))
    return torch.stack(views)


SPLIT = Exercise(
    id="tiles.split",
    chapter="13",
    title="Cut a picture into tiles",
    difficulty=2,
    minutes=10,
    why="The encoder takes squares of one size, and this makes them out of any picture. An error in the order changes "
    "no shape: the model then looks for the top right corner at the bottom left.",
    hints=(
        "It is pixel shuffle's first half, with pixels: name the row of tiles and the row inside the tile, then bring "
        "together what belongs to one tile.",
        "Unfold height into (rows, tile) and width into (columns, tile). Order the axes so that rows and columns come "
        "first and the picture's channels follow. Merge rows and columns. Put the view of the whole behind.",
        "x = picture.reshape(channels, rows, tile, columns, tile)\n"
        "x = x.permute(…)                 # rows, columns, channels, tile, tile\n"
        "tiles = x.reshape(rows * columns, channels, tile, tile)\n"
        "if there is more than one: torch.cat([tiles, whole_view(picture, tile)[None]])",
    ),
    reference=split,
    cases=lambda: [
        Case(numbered_image(4, 6), 2, note="a picture of 4 x 6 numbered pixels, tiles of 2"),
        Case(noise(3, 6, 9), 3, note="three channels, 2 rows of 3 tiles, tiles of 3"),
        Case(noise(3, 12, 4, seed=1), 4, note="an upright picture: 3 rows of one tile"),
        Case(noise(3, 5, 5, seed=2), 5, note="a picture that is one tile: it is not shown twice"),
    ],
    axes="tiles channels height width",
)


@SPLIT.property("every pixel is in exactly one tile")
def _(split_image) -> None:
    image = numbered_image(8, 12, channels=2)
    tiles = split_image(image.clone(), 4)[:-1]
    expect(
        torch.equal(tiles.flatten().sort().values, image.flatten()), "Some pixels are in no tile, or in two of them."
    )


@SPLIT.property("the view of the whole is as bright as the picture")
def _(split_image) -> None:
    image = noise(3, 8, 12, seed=3)
    whole = split_image(image.clone(), 4)[-1]
    expect(
        torch.allclose(whole.mean(), image.mean(), atol=1e-4),
        "The last view is not a view of the whole: its mean is not the picture's.",
    )


@SPLIT.property("gradients flow back to the picture")
def _(split_image) -> None:
    image = noise(3, 4, 6).requires_grad_()
    views = split_image(image, 2)
    expect(views.requires_grad, "The tiles are cut off from the picture (detach or no_grad): no gradient can flow.")
    views.sum().backward()
    expect(image.grad is not None and bool((image.grad != 0).all()), "No gradient reaches some of the pixels.")


def _again(tiles: Tensor, image: Tensor) -> Tensor:
    """These tiles, with the view of the whole behind them where there are several."""
    whole = F.adaptive_avg_pool2d(image, tiles.shape[-1])[None]
    return tiles if len(tiles) == 1 else torch.cat([tiles, whole])


def _without_whole(image: Tensor, tile: int) -> Tensor:
    views = split(image, tile)
    return views if len(views) == 1 else views[:-1]


@SPLIT.mistake("Inside each tile rows and columns are swapped: height comes before width in both.")
def _(image, tile):
    return _again(_without_whole(image, tile).transpose(2, 3), image)


@SPLIT.mistake("The last tile comes first: the tiles are in reading order, backwards.")
def _(image, tile):
    return _again(_without_whole(image, tile).flip(0), image)


@SPLIT.mistake("The bottom row of tiles comes first. Reading order begins at the top left.")
def _(image, tile):
    rows, columns = image.shape[1] // tile, image.shape[2] // tile
    return _again(_without_whole(image, tile).unflatten(0, (rows, columns)).flip(0).flatten(0, 1), image)


@SPLIT.mistake(
    "The channels are taken for the last axis of what F.unfold gives. It writes one channel after the other: reshape "
    "to [tiles, channels, tile, tile]."
)
def _(image, tile):
    patches = F.unfold(image[None], tile, stride=tile)[0].T
    return _again(patches.reshape(-1, tile, tile, image.shape[0]).permute(0, 3, 1, 2), image)


for sentence, whole in (
    (
        "Its last view is the picture's first tile, its top left corner. The whole is all of it, made smaller.",
        lambda image, tile: image[:, :tile, :tile],
    ),
    (
        "The last view is the mean of the tiles, laid on top of each other. The whole is the picture itself, smaller.",
        lambda image, tile: _without_whole(image, tile).mean(0),
    ),
    (
        "The view of the whole takes the brightest of the pixels that it stands for. Take their mean, with whole_view.",
        lambda image, tile: F.adaptive_max_pool2d(image, tile),
    ),
    (
        "The view of the whole is turned: its rows are the picture's columns.",
        lambda image, tile: F.adaptive_avg_pool2d(image, tile).transpose(1, 2),
    ),
):

    @SPLIT.mistake(sentence)
    def _(image, tile, whole=whole):
        tiles = _without_whole(image, tile)
        return tiles if len(tiles) == 1 else torch.cat([tiles, whole(image, tile)[None]])


@SPLIT.mistake("The view of the whole comes first, as nanoVLM has it. SmolVLM puts it last.")
def _(image, tile):
    return split(image, tile).roll(1, dims=0)


@SPLIT.mistake("The tiles come column by column. They are in reading order: along the rows.")
def _(image, tile):
    rows, columns = image.shape[1] // tile, image.shape[2] // tile
    views = split(image, tile)
    order = [row * columns + column for column in range(columns) for row in range(rows)]
    return torch.cat([views[order], views[len(order) :]])


@SPLIT.mistake(
    "The shape is right and the tiles are wrong: a plain reshape takes pixels that follow each other in memory, so "
    "that a tile holds strips of rows."
)
def _(image, tile):
    channels = image.shape[0]
    tiles = image.reshape(-1, channels, tile, tile)
    return tiles if len(tiles) == 1 else torch.cat([tiles, F.adaptive_avg_pool2d(image, tile)[None]])


@SPLIT.mistake("The view of the whole is missing: a picture of several tiles is shown once more, small, at the end.")
def _(image, tile):
    views = split(image, tile)
    return views if len(views) == 1 else views[:-1]


@SPLIT.mistake(
    "Two things: the tiles come column by column, and the view of the whole is missing. They are in reading order, "
    "along the rows, and the whole follows."
)
def _(image, tile):
    rows, columns = image.shape[1] // tile, image.shape[2] // tile
    return split(image, tile)[[row * columns + column for column in range(columns) for row in range(rows)]]


@SPLIT.mistake(
    "Two things: a plain reshape takes pixels that follow each other in memory, so that a tile holds strips of rows, "
    "and the view of the whole is missing."
)
def _(image, tile):
    return image.reshape(-1, image.shape[0], tile, tile)


@SPLIT.mistake(
    "A picture that is one tile is shown twice here, as a tile and as the whole. One view is all there is to see."
)
def _(image, tile):
    views = split(image, tile)
    return torch.cat([views, views]) if len(views) == 1 else views


@SPLIT.mistake(
    "Each of these tiles is spread over the whole picture, every n-th pixel of it: of the two axes that a side unfolds "
    "into, the first says which tile and the second which pixel in it."
)
def _(image, tile):
    channels, height, width = image.shape
    rows, columns = height // tile, width // tile
    tiles = image.reshape(channels, tile, rows, tile, columns).permute(2, 4, 0, 1, 3).reshape(-1, channels, tile, tile)
    return tiles if len(tiles) == 1 else torch.cat([tiles, F.adaptive_avg_pool2d(image, tile)[None]])


@SPLIT.mistake(
    "The view of the whole skips pixels instead of averaging them: thin strokes fall through between those that it "
    "keeps. Use whole_view."
)
def _(image, tile):
    views = split(image, tile).clone()
    rows, columns = image.shape[1] // tile, image.shape[2] // tile
    views[-1] = image[:, ::rows, ::columns]
    return views
