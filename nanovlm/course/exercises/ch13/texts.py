"""Chapter 13: what stands for a picture in the text, what it costs, and tiles put back together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nanovlm.config import TilingConfig
from nanovlm.course.exercises.common import noise
from nanovlm.course.judge.differences import first_apart
from nanovlm.course.judge.exercise import Case, Complaint, Exercise, expect
from nanovlm.data.tiling import FAKE, SMOLVLM_GLOBAL, TiledImageProcessor

IMAGE = "<image>"

# -- tiles.tokens ------------------------------------------------------------------------------------------------------


def text_of_the_package(rows: int, columns: int, num_image_tokens: int) -> str:
    """Ask the processor for a picture that has this grid."""
    from PIL import Image

    processor = TiledImageProcessor(4, tiling=TilingConfig("smolvlm", max_side=4 * max(rows, columns)))
    image = Image.new("RGB", (4 * columns, 4 * rows))
    return processor.image_texts([image], IMAGE, num_image_tokens)[0]


class TextExercise(Exercise):
    """Its output is a long text: of a wrong one the learner is told where it begins to differ."""

    def run(self, learner: Any, case: Case) -> Any:
        yours, right = super().run(learner, case), self.reference(*case.args, **case.kwargs)
        if type(yours) is str and yours != right:
            raise Complaint(parting(yours, right))
        return yours


def parting(yours: str, right: str) -> str:
    """Where two texts part, from the beginning of the token in which they do."""
    same = first_apart(yours, right)
    if right.rfind("<", 0, same) > right.rfind(">", 0, same):
        same = right.rindex("<", 0, same)
    own, wanted = (repr(text[same : same + 45]) + "…" * (len(text) > same + 45) for text in (yours, right))
    so_far = f"The first {same} characters are right" if same else "It differs from the start"
    expected = f"then comes {wanted}" if right[same:] else "then the text is at its end"
    found = f"yours goes on with {own}" if yours[same:] else "yours ends there"
    lengths = f" ({len(yours)} characters in all, expected {len(right)})" if len(yours) != len(right) else ""
    return f"{so_far}; {expected}, but {found}{lengths}."


TOKENS = TextExercise(
    id="tiles.tokens",
    chapter="13",
    title="What stands for a picture in the text",
    difficulty=2,
    minutes=12,
    why="A tile does not know where it was cut: only the token in front of it says so. And this text, not the picture, "
    "decides how many embeddings the decoder makes room for.",
    hints=(
        "One loop over the rows, one over the columns, and each tile is written in the same way. What follows a row, "
        "what follows the last one?",
        "Build the piece for the whole first: it is also the answer for a picture of one tile. Then a row: for each "
        "column the fake token, the place counted from 1, the image tokens; at its end a line break.",
        "whole = FAKE + GLOBAL + images + FAKE\n"
        "each tile: FAKE + its place + images\n"
        'each row ends with "\\n"; after the last row there is one more "\\n", then whole',
    ),
    reference=text_of_the_package,
    cases=lambda: [
        Case(1, 2, 2, note="one row of two tiles, two image tokens each"),
        Case(2, 3, 1, note="2 rows of 3 tiles"),
        Case(3, 1, 2, note="3 rows of one tile"),
        Case(1, 1, 3, note="a picture that is not cut"),
        Case(4, 4, 64, note="16 tiles with SmolVLM's 64 tokens"),
    ],
)


@TOKENS.property("there are as many image tokens as the tiles need")
def _(image_text) -> None:
    for rows, columns in ((1, 1), (1, 4), (2, 2), (3, 4)):
        views = rows * columns + (rows * columns > 1)
        found = image_text(rows, columns, 5).count(IMAGE)
        expect(found == 5 * views, f"{rows} x {columns}: {found} image tokens for {views} views of 5 tokens.")


def written(
    rows: int,
    columns: int,
    num_image_tokens: int,
    *,
    first: int = 1,
    fake: str = FAKE,
    close: str = FAKE,
    swap: bool = False,
    row_end: str = "\n",
    last: str = "\n",
    whole_first: bool = False,
    always: bool = False,
    tile: str = "{fake}<row_{row}_col_{column}>{images}",
    tile_images: int | None = None,
    opened: str = FAKE,
    by_columns: bool = False,
    with_whole: bool = True,
) -> str:
    """SmolVLM's text, or with the options a wrong one."""
    images = IMAGE * num_image_tokens
    whole = f"{opened}{SMOLVLM_GLOBAL}{images}{close}"
    if rows * columns == 1 and not always:
        return whole
    whole = whole if with_whole else ""
    in_tile = IMAGE * (num_image_tokens if tile_images is None else tile_images)
    text = ""
    for outer in range(columns if by_columns else rows):
        for inner in range(rows if by_columns else columns):
            r, c = (inner, outer) if by_columns else (outer, inner)
            a, b = (c, r) if swap else (r, c)
            text += tile.format(fake=fake, row=a + first, column=b + first, images=in_tile)
        text += row_end
    return whole + text + last if whole_first else text + last + whole


def _wrong(**options: Any):
    return lambda rows, columns, num_image_tokens: written(rows, columns, num_image_tokens, **options)


TOKENS.mistake("The view of the whole comes first, as nanoVLM has it. SmolVLM puts it behind the tiles.")(
    _wrong(whole_first=True)
)
TOKENS.mistake("Rows and columns are counted from 0. The tokens count from 1: <row_1_col_1> is the top left tile.")(
    _wrong(first=0)
)
TOKENS.mistake("Row and column are swapped in the position token: the row changes slowly, the column with each tile.")(
    _wrong(swap=True)
)
TOKENS.mistake("The line breaks are missing: one after each row of tiles, and one more before the view of the whole.")(
    _wrong(row_end="", last="")
)
TOKENS.mistake("Each row ends with its line break, but the empty line before the view of the whole is missing.")(
    _wrong(last="")
)
TOKENS.mistake("The rows have no line break of their own: one follows each row, and then comes the empty line.")(
    _wrong(row_end="")
)
TOKENS.mistake(
    "The rows have no line break of their own: all tiles stand in one, and the two breaks come behind the last."
)(_wrong(row_end="", last="\n\n"))
TOKENS.mistake("A fake token stands behind each tile too. It stands in front of each, and behind the whole alone.")(
    _wrong(tile="{fake}<row_{row}_col_{column}>{images}{fake}")
)
TOKENS.mistake("There is no fake token in front of <global-img>. The whole has one on both sides.")(_wrong(opened=""))
TOKENS.mistake("The view of the whole is missing behind the tiles.")(_wrong(with_whole=False))
TOKENS.mistake("Each tile has one image token. It is as large as the whole: num_image_tokens times <image>.")(
    _wrong(tile_images=1)
)
TOKENS.mistake("A tile's place stands behind its image tokens. It comes in front, so that they can attend to it.")(
    _wrong(tile="{fake}{images}<row_{row}_col_{column}>")
)
TOKENS.mistake("There are spaces between the tokens. Each space would become a token of its own: leave them out.")(
    _wrong(tile="{fake} <row_{row}_col_{column}> {images}")
)
TOKENS.mistake("The tiles come column by column. They are in reading order: the loop over the rows is the outer one.")(
    _wrong(by_columns=True)
)
TOKENS.mistake("The text stops with the last image token. SmolVLM closes the whole with the fake token once more.")(
    _wrong(close="")
)
TOKENS.mistake("The tiles have no fake token in front. Each one has, not only the view of the whole.")(_wrong(fake=""))
TOKENS.mistake(
    "A picture of one tile gets <row_1_col_1> and the whole as well here. It is not cut, so the whole is all there is."
)(_wrong(always=True))


# -- tiles.cost --------------------------------------------------------------------------------------------------------


def cost_by_counting(grids: list[tuple[int, int]], num_image_tokens: int) -> int:
    """Write the text, and count what is special in it."""
    texts = "".join(written(rows, columns, num_image_tokens) for rows, columns in grids)
    return texts.count("<")


COST = Exercise(
    id="tiles.cost",
    chapter="13",
    title="Measure it: what the pictures of a prompt cost",
    difficulty=1,
    minutes=6,
    why="The context of SmolLM2-135M holds 8,192 tokens. If you send ten large pictures, you should know "
    "beforehand that they do not fit.",
    hints=(
        "Count for one picture first: how many views, and which tokens stand around each?",
        "A tile: two special tokens and its image tokens. The whole: three special tokens and its image tokens. A "
        "picture of one tile is the whole alone.",
        "tiles = rows * columns if rows * columns > 1 else 0\none picture: tiles * (…) + (3 + n)\nadd them up",
    ),
    reference=cost_by_counting,
    cases=lambda: [
        Case([(1, 2)], 4, note="one picture in two tiles, 4 image tokens a view"),
        Case([(4, 4)], 64, note="SmolVLM's 16 tiles, 64 image tokens a view"),
        Case([(1, 1)], 64, note="a picture that is not cut"),
        Case([(3, 4), (1, 1), (2, 1)], 81, note="three pictures, SmolVLM-2.2B's 81 tokens a view"),
        Case([], 64, note="no picture"),
    ],
)


@COST.property("two pictures cost what each of them costs")
def _(prompt_cost) -> None:
    one, other, both = prompt_cost([(2, 3)], 9), prompt_cost([(1, 1)], 9), prompt_cost([(2, 3), (1, 1)], 9)
    expect(both == one + other, f"Alone they cost {one} and {other}, together {both}.")


def _views(grid: tuple[int, int]) -> int:
    return grid[0] * grid[1] + (grid[0] * grid[1] > 1)


@COST.mistake(
    "Only the image tokens are counted. Each tile has two special tokens in front, the whole three around it."
)
def _(grids, num_image_tokens):
    return sum(_views(grid) * num_image_tokens for grid in grids)


@COST.mistake("The view of the whole is not counted: a picture of 16 tiles is 17 views.")
def _(grids, num_image_tokens):
    return sum(rows * columns * (num_image_tokens + 2) for rows, columns in grids)


@COST.mistake("A picture of one tile is counted twice, as a tile and as the whole. It is shown once.")
def _(grids, num_image_tokens):
    return sum(rows * columns * (num_image_tokens + 2) + num_image_tokens + 3 for rows, columns in grids)


@COST.mistake("The fake token that closes the whole is not counted.")
def _(grids, num_image_tokens):
    return sum(_views(grid) * (num_image_tokens + 2) for grid in grids)


@COST.mistake("Only one view of the whole is counted for all pictures. Each picture has its own.")
def _(grids, num_image_tokens):
    tiles = sum(rows * columns for rows, columns in grids if rows * columns > 1)
    return tiles * (num_image_tokens + 2) + (num_image_tokens + 3 if grids else 0)


def _count(tile: int = 2, whole: int = 3, area: Any = lambda rows, columns: rows * columns) -> Any:
    """Special tokens of a tile and of the whole."""

    def count(grids: list[tuple[int, int]], n: int) -> int:
        cut = sum(area(*grid) * (n + tile) for grid in grids if grid[0] * grid[1] > 1)
        return cut + len(grids) * (n + whole)

    return count


COST.mistake("Each tile is closed by a fake token in your count. Only the whole is: a tile has one in front.")(
    _count(3)
)
COST.mistake("The fake tokens are not counted. Each view has one in front, and the whole one more behind it.")(
    _count(1, 1)
)
COST.mistake("The position tokens are not counted: <row_1_col_1> and <global-img> are one token each.")(_count(1, 2))
COST.mistake("You count rows + columns tiles. A grid has rows * columns of them.")(_count(area=lambda r, c: r + c))


@COST.mistake("A token more for each picture that is cut: a line break? Leave these out, as the exercise says.")
def _(grids, num_image_tokens):
    return cost_by_counting(grids, num_image_tokens) + sum(rows * columns > 1 for rows, columns in grids)


@COST.mistake("Only the first picture is counted. Add up all of them; a return inside the loop ends it.")
def _(grids, num_image_tokens):
    return cost_by_counting(grids[:1], num_image_tokens)


@COST.mistake(
    "The pictures are counted as one large picture. Each has a view of the whole of its own, and one that is not cut "
    "has nothing else."
)
def _(grids, num_image_tokens):
    tiles = sum(rows * columns for rows, columns in grids)
    return tiles * (num_image_tokens + 2) + num_image_tokens + 3 if tiles else 0


# -- tiles.rejoin ------------------------------------------------------------------------------------------------------


def rejoin_by_slices(features: Tensor, rows: int, columns: int) -> Tensor:
    """Write each tile's square to its place."""
    _, num_tokens, dim = features.shape
    side = round(num_tokens**0.5)
    out = features.new_empty(rows * side, columns * side, dim)
    for i in range(rows * columns):
        top, left = i // columns * side, i % columns * side
        out[top : top + side, left : left + side] = features[i].reshape(side, side, dim)
    return out


def numbered_features(rows: int, columns: int, side: int) -> Tensor:
    """Tokens that hold their place in the whole picture, and a view of the whole that holds -1."""
    whole = torch.arange(rows * side * columns * side, dtype=torch.float32).reshape(rows, side, columns, side)
    tiles = whole.permute(0, 2, 1, 3).reshape(rows * columns, side * side, 1)
    return torch.cat([tiles, torch.full((1, side * side, 1), -1.0)])


class RejoinExercise(Exercise):
    """Who unfolds all views at once is stopped by torch; here it is said which view is too many."""

    def run(self, learner: Any, case: Case) -> Any:
        try:
            return super().run(learner, case)
        except RuntimeError as error:
            features, rows, columns = case.args
            tiles = rows * columns
            if len(features) == tiles or f"invalid for input of size {features.numel()}" not in str(error):
                raise
            raise Complaint(
                f"You unfold all {len(features)} views, but the map has {tiles} tiles, {rows} x {columns}: the view of "
                "the whole is still there. Take the first rows * columns views."
            ) from error


REJOIN = RejoinExercise(
    id="tiles.rejoin",
    chapter="13",
    title="One map from many tiles",
    difficulty=2,
    minutes=10,
    why="The decoder receives the tokens tile by tile. To draw over the *picture* what it attends to, you need the tokens "
    "of all tiles in one map.",
    hints=(
        "It is tiles.split backwards, with tokens for pixels. The view of the whole is no part of the map.",
        "Drop the last view. Unfold tiles into (rows, columns) and tokens into (side, side). Bring row next to row and "
        "column next to column, then merge. A picture of one view needs no dropping.",
        "side = round(num_tokens ** 0.5)\n"
        "tiles = features[: rows * columns]\n"
        "x = tiles.reshape(rows, columns, side, side, dim)\n"
        "swap … so that it reads [rows, side, columns, side, dim], and merge",
    ),
    reference=rejoin_by_slices,
    cases=lambda: [
        Case(numbered_features(1, 2, 2), 1, 2, note="one row of two tiles of 2 x 2 tokens that hold their place"),
        Case(noise(7, 9, 4), 2, 3, note="2 rows of 3 tiles, 3 x 3 tokens, dim 4"),
        Case(noise(7, 4, 2, seed=1), 3, 2, note="3 rows of 2 tiles"),
        Case(noise(1, 4, 3, seed=2), 1, 1, note="a picture that was not cut: its only view is the map"),
    ],
    axes="height width dim",
)


@REJOIN.property("a map that was cut comes back")
def _(rejoin) -> None:
    whole = noise(6, 8, 3, seed=4)
    tiles = whole.reshape(3, 2, 4, 2, 3).permute(0, 2, 1, 3, 4).reshape(12, 4, 3)
    views = torch.cat([tiles, torch.zeros(1, 4, 3)])
    expect(torch.equal(rejoin(views, 3, 4), whole), "A map cut into 3 x 4 tiles does not come back as it was.")


@REJOIN.property("gradients flow back to the tiles")
def _(rejoin) -> None:
    features = noise(7, 4, 2).requires_grad_()
    out = rejoin(features, 2, 3)
    expect(out.requires_grad, "The map is cut off from the tokens (detach or no_grad): no gradient can flow.")
    out.sum().backward()
    expect(features.grad is not None and bool((features.grad[:6] == 1).all()), "Some tiles get no gradient.")


@REJOIN.mistake("The last tile comes first: the tiles are in reading order, backwards.")
def _(features, rows, columns):
    return rejoin_by_slices(features[: rows * columns].flip(0), rows, columns)


@REJOIN.mistake("The first tile stands everywhere. Every place of the map has a tile of its own.")
def _(features, rows, columns):
    return rejoin_by_slices(features[:1].expand(rows * columns, -1, -1), rows, columns)


@REJOIN.mistake(
    "The rows of tokens outside, the rows of tiles inside: all first rows of tokens come before all second ones. The "
    "order is [rows, side, columns, side]."
)
def _(features, rows, columns):
    side, dim = round(features.shape[1] ** 0.5), features.shape[2]
    tiles = features[: rows * columns].reshape(rows, columns, side, side, dim)
    return tiles.permute(2, 0, 3, 1, 4).reshape(rows * side, columns * side, dim)


@REJOIN.mistake(
    "A plain reshape strings the tiles together: the second row of a tile stands where its neighbour begins."
)
def _(features, rows, columns):
    side = round(features.shape[1] ** 0.5)
    return features[: rows * columns].reshape(rows * side, columns * side, -1)


@REJOIN.mistake("You drop the first view. In SmolVLM's order the view of the whole is the last one.")
def _(features, rows, columns):
    return rejoin_by_slices(features[-rows * columns :], rows, columns)


@REJOIN.mistake(
    "The tiles are right in themselves, but they are set down column by column. They come in reading order."
)
def _(features, rows, columns):
    order = [(i % rows) * columns + i // rows for i in range(rows * columns)]  # place of tile i
    swapped = features.clone()
    for tile, place in enumerate(order):
        swapped[place] = features[tile]
    return rejoin_by_slices(swapped, rows, columns)


@REJOIN.mistake(
    "The map has rows for columns: it is [rows * side, columns * side, dim], and rows come first everywhere."
)
def _(features, rows, columns):
    side, dim = round(features.shape[1] ** 0.5), features.shape[2]
    tiles = features[: rows * columns].reshape(columns, rows, side, side, dim)
    return tiles.transpose(1, 2).reshape(columns * side, rows * side, dim)


@REJOIN.mistake("You unfold the tiles into (columns, rows). The tiles come row by row, so rows are the first axis.")
def _(features, rows, columns):
    side, dim = round(features.shape[1] ** 0.5), features.shape[2]
    tiles = features[: rows * columns].reshape(columns, rows, side, side, dim)
    return tiles.transpose(1, 2).reshape(rows * side, columns * side, dim)


@REJOIN.mistake("The map lies on its side: down go the rows of tiles and their tokens, across the columns.")
def _(features, rows, columns):
    return rejoin_by_slices(features, rows, columns).transpose(0, 1)


@REJOIN.mistake("Inside each tile rows and columns are swapped: its tokens are in reading order.")
def _(features, rows, columns):
    views, num_tokens, dim = features.shape
    side = round(num_tokens**0.5)
    turned = features.reshape(views, side, side, dim).transpose(1, 2).reshape(views, num_tokens, dim)
    return rejoin_by_slices(turned, rows, columns)


@REJOIN.mistake(
    "You always drop the last view, but a picture of one tile has only that one: nothing is left. Take the first "
    "rows * columns views instead."
)
def _(features, rows, columns):
    side = round(features.shape[1] ** 0.5)
    tiles = features[:-1].reshape(rows, columns, side, side, -1)
    return tiles.transpose(1, 2).reshape(rows * side, columns * side, -1)
