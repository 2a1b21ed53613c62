"""Chapter 13: answers as people write them, wrong in ways that people are wrong, and what they should be told."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def named(name, version):
    """A wrong answer under a name of its own: most of these differ in one expression."""
    version.__name__ = name
    return version


# -- tiles.grid --------------------------------------------------------------------------------------------------------


def _even(length):
    return length + length % 2


def _grid(
    whole=int,
    even=_even,
    least=1,
    up=math.ceil,
    again=True,
    enlarge=True,
    tile_is=lambda tile: tile,
    longest_is=lambda longest, tile: longest,
    lead=lambda w, h: w >= h,
    back=lambda rows, columns: (rows, columns),
    second=int,
):
    def smolvlm_grid(width, height, tile=512, longest=2048):
        longest, tile = longest_is(longest, tile), tile_is(tile)
        shape = width / height
        if enlarge or max(width, height) > longest:
            if lead(width, height):
                width, height = longest, max(even(whole(longest / shape)), least)
            else:
                width, height = max(even(whole(longest * shape)), least), longest
        shape = width / height if again else shape
        if lead(width, height):
            columns = up(width / tile)
            rows = up(second(columns * tile / shape) / tile)
        else:
            rows = up(height / tile)
            columns = up(second(rows * tile * shape) / tile)
        return back(max(rows, least), max(columns, least))

    return smolvlm_grid


def own_size(width, height, tile=512, longest=2048):
    return math.ceil(height / tile), math.ceil(width / tile)


def resized_once(width, height, tile=512, longest=2048):
    scale = longest / max(width, height)
    return max(1, math.ceil(height * scale / tile)), max(1, math.ceil(width * scale / tile))


def both_sides_longest(width, height, tile=512, longest=2048):
    return math.ceil(longest / tile), math.ceil(longest / tile)


def shorter_side_to_longest(width, height, tile=512, longest=2048):
    scale = longest / min(width, height)
    return math.ceil(height * scale / tile), math.ceil(width * scale / tile)


def floor_division(width, height, tile=512, longest=2048):
    return _grid(up=math.floor)(width, height, tile, longest)


def pixels_not_tiles(width, height, tile=512, longest=2048):
    rows, columns = _grid()(width, height, tile, longest)
    return rows * tile, columns * tile


def number_of_tiles(width, height, tile=512, longest=2048):
    rows, columns = _grid()(width, height, tile, longest)
    return rows * columns


# -- tiles.split -------------------------------------------------------------------------------------------------------


def _tiles(image, tile):
    c, h, w = image.shape
    return image.reshape(c, h // tile, tile, w // tile, tile).permute(1, 3, 0, 2, 4).reshape(-1, c, tile, tile)


def _split(cut=_tiles, whole=lambda image, tile: F.adaptive_avg_pool2d(image, tile), join=None, single=True):
    def split_image(image, tile):
        tiles = cut(image, tile)
        if len(tiles) == 1 and single:
            return tiles
        view = whole(image, tile)[None]
        return torch.cat([tiles, view]) if join is None else join(tiles, view)

    return split_image


def _columns_first(image, tile):
    c, h, w = image.shape
    return image.reshape(c, h // tile, tile, w // tile, tile).permute(3, 1, 0, 2, 4).reshape(-1, c, tile, tile)


def _strips(image, tile):
    return image.reshape(-1, image.shape[0], tile, tile)


def _spread(image, tile):
    c, h, w = image.shape
    return image.reshape(c, tile, h // tile, tile, w // tile).permute(2, 4, 0, 1, 3).reshape(-1, c, tile, tile)


def _transposed(image, tile):
    return _tiles(image, tile).transpose(2, 3)


def _not_permuted(image, tile):
    c, h, w = image.shape
    return image.reshape(c, h // tile, tile, w // tile, tile).reshape(-1, c, tile, tile)


def _backwards(image, tile):
    return _tiles(image, tile).flip(0)


def _rows_backwards(image, tile):
    rows, columns = image.shape[1] // tile, image.shape[2] // tile
    return _tiles(image, tile).unflatten(0, (rows, columns)).flip(0).flatten(0, 1)


def _unfolded(image, tile):
    """F.unfold's columns, with the channels left where they are."""
    patches = F.unfold(image[None], tile, stride=tile)[0].T
    return patches.reshape(-1, tile, tile, image.shape[0]).permute(0, 3, 1, 2)


def _overlapping(image, tile):
    """A step of half a tile."""
    return image.unfold(1, tile, max(tile // 2, 1)).unfold(2, tile, tile).permute(1, 2, 0, 3, 4).flatten(0, 1)


def square_grid(image, tile):
    c, side = image.shape[0], image.shape[1] // tile
    tiles = image[:, :, : side * tile].reshape(c, side, tile, side, tile).permute(1, 3, 0, 2, 4)
    return torch.cat([tiles.reshape(-1, c, tile, tile), F.adaptive_avg_pool2d(image, tile)[None]])


# -- tiles.tokens ------------------------------------------------------------------------------------------------------

FAKE, GLOBAL, IMAGE = "<fake_token_around_image>", "<global-img>", "<image>"


def _text(
    tile=lambda r, c, images: f"{FAKE}<row_{r + 1}_col_{c + 1}>{images}",
    whole=lambda images: FAKE + GLOBAL + images + FAKE,
    between="\n",
    empty="\n",
    join=lambda tiles, whole: tiles + whole,
    alone=True,
):
    def image_text(rows, columns, num_image_tokens):
        images = IMAGE * num_image_tokens
        if rows * columns == 1 and alone:
            return whole(images)
        lines = ["".join(tile(r, c, images) for c in range(columns)) for r in range(rows)]
        return join("".join(line + between for line in lines) + empty, whole(images))

    return image_text


def one_row_of_all(rows, columns, num_image_tokens):
    images = IMAGE * num_image_tokens
    if rows * columns == 1:
        return _text()(1, 1, num_image_tokens)
    tiles = "".join(f"{FAKE}<row_{r + 1}_col_{c + 1}>{images}" for r in range(rows) for c in range(columns))
    return tiles + "\n\n" + FAKE + GLOBAL + images + FAKE


def columns_outside(rows, columns, num_image_tokens):
    images = IMAGE * num_image_tokens
    if rows * columns == 1:
        return _text()(1, 1, num_image_tokens)
    text = ""
    for c in range(columns):
        for r in range(rows):
            text += f"{FAKE}<row_{r + 1}_col_{c + 1}>{images}"
        text += "\n"
    return text + "\n" + FAKE + GLOBAL + images + FAKE


def a_list(rows, columns, num_image_tokens):
    return _text()(rows, columns, num_image_tokens).split("\n")


def prints_it(rows, columns, num_image_tokens):
    _text()(rows, columns, num_image_tokens)


# -- tiles.cost --------------------------------------------------------------------------------------------------------


def _cost(
    tile=lambda n: n + 2, whole=lambda n: n + 3, single=lambda n: n + 3, per=lambda rows, columns: rows * columns
):
    def prompt_cost(grids, num_image_tokens):
        n, total = num_image_tokens, 0
        for rows, columns in grids:
            if rows * columns == 1:
                total += single(n)
            else:
                total += per(rows, columns) * tile(n) + whole(n)
        return total

    return prompt_cost


def first_image_only(grids, num_image_tokens):
    return _cost()(grids[:1], num_image_tokens)


def first_of_them(grids, num_image_tokens):
    for grid in grids:
        return _cost()([grid], num_image_tokens)
    return 0


def one_whole_for_all(grids, num_image_tokens):
    tiles = sum(r * c for r, c in grids if r * c > 1)
    return tiles * (num_image_tokens + 2) + (num_image_tokens + 3 if grids else 0)


def all_as_one_grid(grids, num_image_tokens):
    tiles = sum(r * c for r, c in grids)
    return tiles * (num_image_tokens + 2) + num_image_tokens + 3 if tiles else 0


def fails_without_image(grids, num_image_tokens):
    if not grids:
        raise ValueError("no picture")
    return _cost()(grids, num_image_tokens)


def cost_as_float(grids, num_image_tokens):
    return float(_cost()(grids, num_image_tokens))


def cost_as_list(grids, num_image_tokens):
    return [_cost()([grid], num_image_tokens) for grid in grids]


# -- tiles.rejoin ------------------------------------------------------------------------------------------------------


def _rejoin(
    take=lambda features, n: features[:n],
    open_=lambda x, r, c, s: x.reshape(r, c, s, s, -1).transpose(1, 2).reshape(r * s, c * s, -1),
):
    def rejoin(features, rows, columns):
        side = int(features.shape[1] ** 0.5)
        return open_(take(features, rows * columns), rows, columns, side)

    return rejoin


def keeps_the_whole(features, rows, columns):
    side = int(features.shape[1] ** 0.5)
    return features.reshape(rows, columns, side, side, -1).transpose(1, 2).reshape(rows * side, columns * side, -1)


def drops_the_last_always(features, rows, columns):
    side = int(features.shape[1] ** 0.5)
    tiles = features[:-1].reshape(rows, columns, side, side, -1)
    return tiles.transpose(1, 2).reshape(rows * side, columns * side, -1)


def returns_tiles(features, rows, columns):
    side = int(features.shape[1] ** 0.5)
    return features[: rows * columns].reshape(rows, columns, side, side, -1)


def returns_a_line(features, rows, columns):
    return _rejoin()(features, rows, columns).flatten(0, 1)


def rejoin_detached(features, rows, columns):
    return _rejoin()(features.detach(), rows, columns)


def side_of_the_grid(features, rows, columns):
    return _rejoin()(features, columns, rows)


# -- tiles.views -------------------------------------------------------------------------------------------------------


def _views(shrink=lambda w, h, n: max(w, h) > n, count=lambda r, c: r * c + (r * c > 1), tile_is=lambda t: t):
    def views(width, height, tile=512, longest=2048):
        from nanovlm.data.tiling import fill_tiles, scale_to_longest

        size = scale_to_longest((width, height), longest) if shrink(width, height, longest) else (width, height)
        wide, high = fill_tiles(size, tile_is(tile))
        return count(high // tile_is(tile), wide // tile_is(tile))

    return views


# -- tiles.test_split --------------------------------------------------------------------------------------------------

SMALL = torch.arange(24.0).reshape(1, 4, 6)


def test_shapes(split_image):
    assert split_image(SMALL, 2).shape == (7, 1, 2, 2)
    assert split_image(SMALL[:, :2, :2], 2).shape == (1, 1, 2, 2)


def test_that_calls(split_image):
    split_image(SMALL, 2)


def test_one_colour(split_image):
    assert (split_image(torch.ones(1, 4, 6), 2) == 1).all() and len(split_image(torch.ones(1, 4, 6), 2)) == 7
    assert len(split_image(torch.ones(1, 2, 2), 2)) == 1


def test_first_tile(split_image):
    assert split_image(SMALL, 2)[0].flatten().tolist() == [0, 1, 6, 7]


def test_without_whole(split_image):
    views = split_image(SMALL, 2)
    assert views[1].flatten().tolist() == [2, 3, 8, 9] and views[3].flatten().tolist() == [12, 13, 18, 19]
    assert len(split_image(SMALL[:, :2, :2], 2)) == 1


def test_without_one_tile(split_image):
    views = split_image(SMALL, 2)
    assert views[1].flatten().tolist() == [2, 3, 8, 9] and views[3].flatten().tolist() == [12, 13, 18, 19]
    assert views[6].flatten().tolist() == [4, 7, 16, 19]


def test_that_returns(split_image):
    return split_image(SMALL, 2).shape == (7, 1, 2, 2)


def test_whole_first(split_image):
    assert split_image(SMALL, 2)[0].flatten().tolist() == [4, 7, 16, 19]


def test_a_list(split_image):
    assert isinstance(split_image(SMALL, 2), list)


def test_a_square(split_image):
    square = torch.arange(16.0).reshape(1, 4, 4)
    assert split_image(square, 2)[3].flatten().tolist() == [10, 11, 14, 15]
    assert len(split_image(square, 4)) == 1


def test_sums(split_image):
    assert split_image(SMALL, 2)[:6].sum() == SMALL.sum()
    assert len(split_image(SMALL[:, :2, :2], 2)) == 1


def test_one_tile_alone(split_image):
    assert torch.equal(split_image(SMALL[:, :2, :2], 2), SMALL[None, :, :2, :2])


WRONG = {
    "tiles.grid": [
        (named("columns_first", _grid(back=lambda r, c: (c, r))), "Columns first"),
        (named("no_enlarging", _grid(enlarge=False)), "small picture stays small"),
        (own_size, "at its own size"),
        (resized_once, "resized once"),
        (both_sides_longest, "becomes a square"),
        (shorter_side_to_longest, "*shorter* side"),
        (floor_division, "rounded down"),
        (named("nearest", _grid(up=round)), "nearest number"),
        (named("rounds_in_step_1", _grid(whole=round)), "shorter side is rounded"),
        (named("rounds_in_both", _grid(whole=round, second=round)), "rounded"),
        (named("ceils_in_step_1", _grid(whole=math.ceil)), "to the nearest or up"),
        (named("minus_one", _grid(even=lambda n: n - n % 2)), "loses a pixel"),
        (named("stays_odd", _grid(even=lambda n: n)), "stays odd"),
        (named("first_shape", _grid(again=False)), "shape that the picture had at first"),
        (named("no_int_in_step_2", _grid(second=float)), "not cut down"),
        (named("no_least", _grid(least=0)), "can become 0"),
        (named("width_leads", _grid(lead=lambda w, h: True)), "width for the longer side"),
        (named("height_leads", _grid(lead=lambda w, h: False)), "height for the longer side"),
        (named("tile_of_512", _grid(tile_is=lambda tile: 512)), "`tile` is not used"),
        (named("longest_of_2048", _grid(longest_is=lambda longest, tile: 2048)), "`longest` is not used"),
        (named("four_tiles", _grid(longest_is=lambda longest, tile: 4 * tile)), "taken to be 4 tiles"),
        (pixels_not_tiles, "pixels"),
        (number_of_tiles, "2 things"),
        (named("a_whole_too", _grid(back=lambda r, c: (r, c + 1))), "too many"),
    ],
    "tiles.split": [
        (named("column_by_column", _split(_columns_first)), "column by column"),
        (named("plain_reshape", _split(_strips)), "strips of rows"),
        (named("spread", _split(_spread)), "spread over the whole picture"),
        (named("transposed", _split(_transposed)), "rows and columns are swapped"),
        (named("forgot_to_permute", _split(_not_permuted)), "strips of rows"),
        (named("backwards", _split(_backwards)), "last tile comes first"),
        (named("rows_backwards", _split(_rows_backwards)), "bottom row"),
        (named("unfold_channels_last", _split(_unfolded)), "channels"),
        (named("overlapping", _split(_overlapping)), "shape"),
        (square_grid, "shape"),
        (named("whole_first", _split(join=lambda tiles, whole: torch.cat([whole, tiles]))), "comes first, as nanoVLM"),
        (named("no_whole", _split(join=lambda tiles, whole: tiles)), "is missing"),
        (named("single_twice", _split(single=False)), "shown twice"),
        (
            named("nearest_pixels", _split(whole=lambda x, t: x[:, :: x.shape[1] // t, :: x.shape[2] // t])),
            "skips pixels",
        ),
        (named("top_left_as_whole", _split(whole=lambda x, t: x[:, :t, :t])), "its top left corner"),
        (named("mean_of_tiles", _split(whole=lambda x, t: _tiles(x, t).mean(0))), "laid on top of each other"),
        (named("largest_pixels", _split(whole=F.adaptive_max_pool2d)), "brightest"),
        (
            named("whole_sideways", _split(whole=lambda x, t: F.adaptive_avg_pool2d(x, t).mT)),
            "view of the whole is turned",
        ),
        (named("a_list", lambda x, t: [*_split()(x, t)]), "expected a tensor"),
        (named("detached", lambda x, t: _split()(x, t).detach()), "gradient"),
    ],
    "tiles.tokens": [
        (
            named("whole_first", _text(join=lambda tiles, whole: whole + tiles)),
            "comes first, as nanoVLM",
        ),
        (named("from_zero", _text(lambda r, c, i: f"{FAKE}<row_{r}_col_{c}>{i}")), "counted from 0"),
        (named("row_and_column", _text(lambda r, c, i: f"{FAKE}<row_{c + 1}_col_{r + 1}>{i}")), "swapped"),
        (named("no_breaks", _text(between="", empty="")), "line breaks are missing"),
        (named("no_empty_line", _text(empty="")), "empty line"),
        (one_row_of_all, "no line break of their own"),
        (named("not_closed", _text(whole=lambda i: FAKE + GLOBAL + i)), "closes the whole"),
        (named("no_fake", _text(lambda r, c, i: f"<row_{r + 1}_col_{c + 1}>{i}")), "no fake token in front"),
        (
            named("fake_on_both_sides", _text(lambda r, c, i: f"{FAKE}<row_{r + 1}_col_{c + 1}>{i}{FAKE}")),
            "behind each tile",
        ),
        (named("whole_without_fake", _text(whole=lambda i: GLOBAL + i + FAKE)), "in front of <global-img>"),
        (named("always_cut", _text(alone=False)), "A picture of one tile gets"),
        (named("no_whole", _text(join=lambda tiles, whole: tiles)), "whole is missing"),
        (
            named("image_tokens_once", _text(lambda r, c, i: f"{FAKE}<row_{r + 1}_col_{c + 1}>{IMAGE}")),
            "num_image_tokens times",
        ),
        (
            named("place_behind", _text(lambda r, c, i: f"{FAKE}{i}<row_{r + 1}_col_{c + 1}>")),
            "behind its image tokens",
        ),
        (named("spaces", _text(lambda r, c, i: f"{FAKE} <row_{r + 1}_col_{c + 1}> {i}")), "spaces"),
        (columns_outside, "column by column"),
        (a_list, "expected a string"),
        (prints_it, "Is a `return` missing"),
    ],
    "tiles.cost": [
        (named("images_alone", _cost(lambda n: n, lambda n: n, lambda n: n)), "Only the image tokens"),
        (named("no_whole", _cost(whole=lambda n: 0, single=lambda n: n + 2)), "view of the whole is not counted"),
        (named("single_twice", _cost(single=lambda n: 2 * n + 5)), "counted twice"),
        (named("not_closed", _cost(whole=lambda n: n + 2, single=lambda n: n + 2)), "closes the whole"),
        (named("each_tile_closed", _cost(tile=lambda n: n + 3)), "closed"),
        (named("no_fake", _cost(tile=lambda n: n + 1, whole=lambda n: n + 1, single=lambda n: n + 1)), "fake tokens"),
        (
            named("no_places", _cost(tile=lambda n: n + 1, whole=lambda n: n + 2, single=lambda n: n + 2)),
            "position tokens",
        ),
        (named("line_breaks", _cost(per=lambda r, c: r * c, whole=lambda n: n + 4)), "line break"),
        (first_image_only, "first picture"),
        (first_of_them, "first picture"),
        (one_whole_for_all, "Each picture has its own"),
        (all_as_one_grid, "as one large picture"),
        (fails_without_image, "no picture"),
        (cost_as_float, "whole number"),
        (cost_as_list, "expected a whole number"),
        (named("sides_added", _cost(per=lambda r, c: r + c)), "rows + columns"),
    ],
    "tiles.rejoin": [
        (named("plain_reshape", _rejoin(open_=lambda x, r, c, s: x.reshape(r * s, c * s, -1))), "strings the tiles"),
        (named("drops_the_first", _rejoin(take=lambda x, n: x[-n:])), "drop the first view"),
        (keeps_the_whole, "the view of the whole is still there"),
        (drops_the_last_always, "always drop the last view"),
        (
            named(
                "down_the_columns",
                _rejoin(
                    open_=lambda x, r, c, s: x.reshape(c, r, s, s, -1).permute(1, 2, 0, 3, 4).reshape(r * s, c * s, -1)
                ),
            ),
            "column by column",
        ),
        (
            named(
                "columns_by_rows",
                _rejoin(open_=lambda x, r, c, s: x.reshape(c, r, s, s, -1).transpose(1, 2).reshape(r * s, c * s, -1)),
            ),
            "into (columns, rows)",
        ),
        (
            named(
                "on_its_side",
                _rejoin(
                    open_=lambda x, r, c, s: x.reshape(r, c, s, s, -1).permute(1, 3, 0, 2, 4).reshape(c * s, r * s, -1)
                ),
            ),
            "lies on its side",
        ),
        (
            named(
                "tiles_turned",
                _rejoin(
                    open_=lambda x, r, c, s: x.reshape(r, c, s, s, -1).permute(0, 3, 1, 2, 4).reshape(r * s, c * s, -1)
                ),
            ),
            "Inside each tile",
        ),
        (
            named(
                "tokens_outside",
                _rejoin(
                    open_=lambda x, r, c, s: x.reshape(r, c, s, s, -1).permute(2, 0, 3, 1, 4).reshape(r * s, c * s, -1)
                ),
            ),
            "rows of tokens outside",
        ),
        (named("backwards", _rejoin(take=lambda x, n: x[:n].flip(0))), "last tile comes first"),
        (side_of_the_grid, "rows for columns"),
        (returns_tiles, "too many"),
        (returns_a_line, "missing"),
        (
            named(
                "channels_first",
                _rejoin(
                    open_=lambda x, r, c, s: (
                        x.reshape(r, c, s, s, -1).transpose(1, 2).reshape(r * s, c * s, -1).permute(2, 0, 1)
                    )
                ),
            ),
            "another order",
        ),
        (rejoin_detached, "gradient"),
        (named("all_tiles_alike", _rejoin(take=lambda x, n: x[:1].expand(n, -1, -1))), "first tile stands everywhere"),
    ],
    "tiles.views": [
        (named("as_it_was", _views(lambda w, h, n: True, lambda r, c: r * c + 1)), "Small pictures are still enlarged"),
        (named("still_enlarged", _views(lambda w, h, n: True)), "Small pictures are still enlarged"),
        (named("one_tile_twice", _views(count=lambda r, c: r * c + 1)), "still shown twice"),
        (named("no_whole", _views(count=lambda r, c: r * c)), "The view of the whole is gone"),
        (named("never_shrunk", _views(lambda w, h, n: False)), "not shrunk any more"),
        (named("shorter_side", _views(lambda w, h, n: min(w, h) > n)), "shorter side"),
        (named("width_alone", _views(lambda w, h, n: w > n)), "the width alone"),
        (named("height_alone", _views(lambda w, h, n: h > n)), "the height alone"),
        (named("area", _views(lambda w, h, n: w * h > n * n)), "number of pixels"),
        (named("both_sides", _views(lambda w, h, n: w + h > n)), "sum of both sides"),
        (named("sides_added", _views(count=lambda r, c: r + c + 1 if r * c > 1 else 1)), "rows * columns"),
        (named("grid_back", _views(count=lambda r, c: (r, c))), "expected a whole number"),
        (named("always_512", lambda width, height, tile=512, longest=2048: _views()(width, height)), "not used"),
    ],
    "tiles.test_split": [
        (test_shapes, "shapes alone"),
        (test_that_calls, "no assert in it can fail"),
        (test_one_colour, "What gets through"),
        (test_first_tile, "What gets through"),
        (test_without_whole, "never looks at the last view"),
        (test_without_one_tile, "never cuts a picture that is one tile"),
        (test_that_returns, "True or False"),
        (test_whole_first, "does not promise"),
        (test_a_list, "does not promise"),
        (test_a_square, "What gets through"),
        (test_sums, "What gets through"),
        (test_one_tile_alone, "What gets through"),
    ],
}
