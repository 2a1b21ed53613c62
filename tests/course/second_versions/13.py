"""Chapter 13 once more, written another way."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import einops
import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F


def grid(width: int, height: int, tile: int = 512, longest: int = 2048) -> list[int]:
    """With exact fractions, the longer side first, and turned at the end."""
    short, long = sorted((width, height))
    inner = longest * short // long
    inner = max(inner + inner % 2, 1)
    many = -(-longest // tile)
    few = max(-(-int(Fraction(many * tile * inner, longest)) // tile), 1)
    return [few, many] if width >= height else [many, few]


def split(image: Tensor, tile: int) -> Tensor:
    tiles = rearrange(image, "c (r i) (s j) -> (r s) c i j", i=tile, j=tile)
    if len(tiles) == 1:
        return tiles
    window = (image.shape[1] // tile, image.shape[2] // tile)
    return torch.cat([tiles, F.avg_pool2d(image[None], window)])


def tokens(rows: int, columns: int, num_image_tokens: int) -> str:
    fake, images = "<fake_token_around_image>", "".join(["<image>"] * num_image_tokens)
    lines = ["".join(f"{fake}<row_{r}_col_{c}>{images}" for c in range(1, columns + 1)) for r in range(1, rows + 1)]
    whole = [f"{fake}<global-img>{images}{fake}"]
    return "\n".join([*lines, "", *whole] if rows * columns > 1 else whole)


def cost(grids: list[tuple[int, int]], num_image_tokens: int) -> int:
    """Every view has two special tokens and its own; every picture one that closes it."""
    views = [rows * columns + 1 if rows * columns > 1 else 1 for rows, columns in grids]
    return sum(views) * (num_image_tokens + 2) + len(views)


def rejoin(features: Tensor, rows: int, columns: int) -> Tensor:
    side = int(features.shape[1] ** 0.5 + 0.5)
    squares = [features[i].unflatten(0, (side, side)) for i in range(rows * columns)]
    lines = [torch.cat(squares[r * columns : (r + 1) * columns], dim=1) for r in range(rows)]
    return torch.cat(lines, dim=0)


# -- more styles -------------------------------------------------------------------------------------------------------


def _lengths(long, shape, tile, longest):
    """The longer side leads: whole, even pixels, then tiles. shape is shorter / longer's way of the processor."""
    short = int(shape(longest))
    return longest, max(short + (short & 1), 1)


def grid_by_turning(width, height, tile=512, longest=2048):
    """An upright picture is not turned, but its ratio is used the other way."""
    wide, ratio = width >= height, width / height
    long, short = _lengths(max(width, height), (lambda n: n / ratio) if wide else (lambda n: n * ratio), tile, longest)
    ratio = long / short if wide else short / long
    many = -(-long // tile)
    few = -(-int(many * tile / ratio if wide else many * tile * ratio) // tile)
    few = max(few, 1)
    return (few, many) if wide else (many, few)


def grid_in_pixels(width, height, tile=512, longest=2048):
    def up(length):
        return max(math.ceil(length / tile) * tile, tile)

    shape = width / height
    if width < height:
        size = [max(int(longest * shape), 1), longest]
        size[0] = size[0] + 1 if (size[0] % 2 and size[0] > 1) or int(longest * shape) == 1 else size[0]
        shape = size[0] / size[1]
        height = up(size[1])
        width = up(int(height * shape))
    else:
        size = [longest, max(int(longest / shape), 1)]
        size[1] = size[1] + 1 if (size[1] % 2 and size[1] > 1) or int(longest / shape) == 1 else size[1]
        shape = size[0] / size[1]
        width = up(size[0])
        height = up(int(width / shape))
    return height // tile, width // tile


def grid_in_numpy(width, height, tile=512, longest=2048):
    ratio = np.float64(width) / height
    if width >= height:
        w, h = longest, np.trunc(longest / ratio)
        h = max(h + h % 2, 1)
    else:
        w, h = np.trunc(longest * ratio), longest
        w = max(w + w % 2, 1)
    ratio = w / h
    if w >= h:
        columns = np.ceil(w / tile)
        rows = np.ceil(np.trunc(columns * tile / ratio) / tile)
    else:
        rows = np.ceil(h / tile)
        columns = np.ceil(np.trunc(rows * tile * ratio) / tile)
    return int(max(rows, 1)), int(max(columns, 1))


def grid_as_dict(width, height, tile=512, longest=2048):
    answer = dict(zip(("rows", "columns"), grid(width, height, tile, longest), strict=True))
    return answer["rows"], answer["columns"]


def _with_whole(image, tiles):
    whole = F.adaptive_avg_pool2d(image, tiles.shape[-1])
    return tiles if len(tiles) == 1 else torch.cat([tiles, whole.unsqueeze(0)])


def split_by_unfold(image, tile):
    strips = image.unfold(1, tile, tile).unfold(2, tile, tile)  # [channels, rows, columns, tile, tile]
    return _with_whole(image, strips.permute(1, 2, 0, 3, 4).flatten(0, 1))


def split_by_f_unfold(image, tile):
    columns = F.unfold(image[None], kernel_size=tile, stride=tile)[0]
    return _with_whole(image, columns.T.reshape(-1, len(image), tile, tile))


def split_by_chunks(image, tile):
    rows = image.split(tile, dim=1)
    return _with_whole(image, torch.stack([part for row in rows for part in row.split(tile, dim=2)]))


def split_into_a_buffer(image, tile):
    channels, height, width = image.shape
    across = width // tile
    count = height // tile * across
    out = image.new_zeros(count + (count > 1), channels, tile, tile)
    for i in range(count):
        top, left = divmod(i, across)
        out[i] = image[:, top * tile : (top + 1) * tile, left * tile : (left + 1) * tile]
    if count > 1:
        out[-1] = F.interpolate(image[None], size=(tile, tile), mode="area")[0]
    return out


def split_by_pixel_unshuffle(image, tile):
    """Two transposes make a space-to-depth of it."""
    channels, height, width = image.shape
    x = image.view(channels, height // tile, tile, width // tile, tile).transpose(2, 3)
    return _with_whole(image, x.movedim(0, 2).reshape(-1, channels, tile, tile))


FAKE, GLOBAL, IMAGE = "<fake_token_around_image>", "<global-img>", "<image>"


def tokens_by_product(rows, columns, num_image_tokens):
    text = ""
    if rows * columns != 1:
        for r, c in product(range(1, rows + 1), range(1, columns + 1)):
            text += FAKE + "<row_%d_col_%d>" % (r, c) + IMAGE * num_image_tokens + ("\n" if c == columns else "")  # noqa: UP031
        text += "\n"
    return text + FAKE + GLOBAL + IMAGE * num_image_tokens + FAKE


def tokens_in_a_list(rows, columns, num_image_tokens):
    parts = []
    several = max(rows, columns) > 1
    for r in range(rows) if several else ():
        for c in range(columns):
            parts.extend([FAKE, f"<row_{r + 1}_col_{c + 1}>", *[IMAGE] * num_image_tokens])
        parts.append("\n")
    parts += ["\n"] if several else []
    return "".join([*parts, FAKE, GLOBAL, *[IMAGE] * num_image_tokens, FAKE])


def tokens_by_replacing(rows, columns, num_image_tokens):
    """One letter for each thing, replaced at the end."""
    plan = "" if rows == columns == 1 else "\n".join("t" * columns for _ in range(rows)) + "\n\n"
    out, number = [], 0
    for letter in plan:
        if letter == "t":
            r, c = divmod(number, columns)
            number += 1
            out.append(f"{FAKE}<row_{r + 1}_col_{c + 1}>{IMAGE * num_image_tokens}")
        else:
            out.append(letter)
    return "".join(out) + f"{FAKE}{GLOBAL}{IMAGE * num_image_tokens}{FAKE}"


def tokens_recursively(rows, columns, num_image_tokens):
    images = "".ljust(num_image_tokens * len(IMAGE), IMAGE) if num_image_tokens == 0 else IMAGE * num_image_tokens

    def row(r):
        return (
            ""
            if r > rows
            else "".join(f"{FAKE}<row_{r}_col_{c + 1}>{images}" for c in range(columns)) + "\n" + row(r + 1)
        )

    return (row(1) + "\n" if rows * columns > 1 else "") + FAKE + GLOBAL + images + FAKE


def cost_by_text(grids, num_image_tokens):
    return sum(tokens_by_product(r, c, num_image_tokens).count("<") for r, c in grids)


def cost_in_numpy(grids, num_image_tokens):
    areas = np.array([r * c for r, c in grids], dtype=np.int64)
    return (areas[areas > 1].sum() * (num_image_tokens + 2) + len(areas) * (num_image_tokens + 3)).item()


def cost_in_torch(grids, num_image_tokens):
    if not grids:
        return 0
    areas = torch.tensor(grids).prod(dim=1)
    views = torch.where(areas > 1, areas + 1, 1)
    return int((views * (num_image_tokens + 2) + 1).sum())


def cost_by_parts(grids, num_image_tokens):
    total = 0
    for r, c in grids:
        images = special = 0
        if (r, c) != (1, 1):
            images += r * c * num_image_tokens
            special += 2 * r * c
        images += num_image_tokens
        special += 3
        total += images + special
    return total


def rejoin_with_einops(features, rows, columns):
    tiles = features[: rows * columns]
    s = math.isqrt(tiles.shape[1])
    return einops.rearrange(tiles, "(r c) (h w) d -> (r h) (c w) d", r=rows, c=columns, h=s, w=s)


def rejoin_by_fold(features, rows, columns):
    n, dim = features.shape[1:]
    side = math.isqrt(n)
    columns_of = features[: rows * columns].permute(2, 1, 0).reshape(1, dim * n, rows * columns)
    size = (rows * side, columns * side)
    return F.fold(columns_of, size, kernel_size=side, stride=side)[0].permute(1, 2, 0)


def rejoin_by_index(features, rows, columns):
    side = math.isqrt(features.shape[1])
    y = torch.arange(rows * side, dtype=torch.int32).long()[:, None]
    x = torch.arange(columns * side)[None]
    return features[y // side * columns + x // side, y % side * side + x % side]


def rejoin_in_a_buffer(features, rows, columns):
    side, dim = math.isqrt(features.shape[1]), features.shape[-1]
    out = torch.empty(rows, side, columns, side, dim, dtype=features.dtype)
    for i in range(rows * columns):
        out[i // columns, :, i % columns] = features[i].unflatten(0, (side, side))
    return out.flatten(2, 3).flatten(0, 1)


def views_by_the_package(width, height, tile=512, longest=2048):
    from nanovlm.config import TilingConfig
    from nanovlm.data.tiling import TiledImageProcessor

    rows, columns = TiledImageProcessor(tile, tiling=TilingConfig(max_side=longest)).grid((width, height))
    return 1 if rows == columns == 1 else rows * columns + 1


def views_by_cases(width, height, tile=512, longest=2048):
    from nanovlm.data.tiling import fill_tiles, scale_to_longest

    if width <= tile and height <= tile:
        return 1
    size = (width, height) if width <= longest and height <= longest else scale_to_longest((width, height), longest)
    area = math.prod(fill_tiles(size, tile)) // tile**2
    return area + bool(area > 1)


def views_with_a_dict(width, height, tile=512, longest=2048):
    from nanovlm.data.tiling import fill_tiles, scale_to_longest

    sizes = {True: scale_to_longest((width, height), longest), False: (width, height)}
    wide, high = (side // tile for side in fill_tiles(sizes[max(width, height) > longest], tile))
    return {1: 1}.get(wide * high, wide * high + 1)


def views_in_numpy(width, height, tile=512, longest=2048):
    from nanovlm.data.tiling import fill_tiles, scale_to_longest

    size = (width, height)
    size = scale_to_longest(size, longest) if np.max(size) > longest else size
    tiles = int(np.prod(np.array(fill_tiles(size, tile)) // tile))
    return max(1, tiles + min(tiles - 1, 1))


def views_by_grid(width, height, tile=512, longest=2048):
    """Exercise 13.1 does the large ones."""
    from nanovlm.data.tiling import fill_tiles

    if max(width, height) > longest:
        rows, columns = grid(width, height, tile, longest)
    else:
        wide, high = fill_tiles((width, height), tile)
        rows, columns = high // tile, wide // tile
    return rows * columns + (rows * columns > 1)


def test_all_tiles(split_image):
    image = torch.arange(48.0).reshape(2, 4, 6)
    wanted = [image[:, r : r + 2, c : c + 2] for r in (0, 2) for c in (0, 2, 4)]
    wanted.append(F.adaptive_avg_pool2d(image, 2))
    assert torch.equal(split_image(image, 2), torch.stack(wanted))
    assert torch.equal(split_image(image[:, :2, :2], 2), image[None, :, :2, :2])


def test_by_places(split_image):
    image = torch.zeros(1, 6, 9)
    image[0, 4, 1] = 7.0
    views = split_image(image, 3)
    assert views[3, 0, 1, 1] == 7 and views[:6].sum() == 7
    assert views[6].sum() > 0 and len(views) == 7
    image = torch.zeros(1, 6, 9)
    image[0, 0, 5] = 1.0
    assert split_image(image, 3)[1, 0, 0, 2] == 1 and split_image(image, 3)[6, 0, 0].sum() > 0
    assert len(split_image(image[:, :3, :3], 3)) == 1


def test_in_ifs(split_image):
    image = torch.arange(24.0).view(1, 4, 6)
    views = split_image(image, 2)
    if views[4].flatten().tolist() != [14, 15, 20, 21] or views[1].flatten().tolist() != [2, 3, 8, 9]:
        raise AssertionError("tiles")
    if not torch.allclose(views[-1].mean(), image.mean()) or len(views) != 7:
        raise AssertionError("whole")
    if split_image(image[:, :2, :2], 2).shape[0] != 1:
        raise AssertionError("one tile")


def test_by_reference(split_image):
    for rows, columns in ((1, 1), (2, 3), (3, 1), (1, 2)):
        image = torch.rand(3, 4 * rows, 4 * columns)
        torch.testing.assert_close(split_image(image, 4), split_by_chunks(image, 4))


def test_sorted(split_image):
    image = torch.arange(16.0).view(1, 4, 4)
    views = split_image(image, 2)
    assert [int(v[0, 0, 0]) for v in views[:4]] == [0, 2, 8, 10] and len(views) == 5
    assert views[2].flatten().tolist() == [8, 9, 12, 13]
    assert views[4].flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert split_image(image, 4).shape[0] == 1


VERSIONS = {
    "tiles.grid": (grid, grid_by_turning, grid_in_pixels, grid_in_numpy, grid_as_dict),
    "tiles.split": (
        split,
        split_by_unfold,
        split_by_f_unfold,
        split_by_chunks,
        split_into_a_buffer,
        split_by_pixel_unshuffle,
    ),
    "tiles.tokens": (tokens, tokens_by_product, tokens_in_a_list, tokens_by_replacing, tokens_recursively),
    "tiles.cost": (cost, cost_by_text, cost_in_numpy, cost_in_torch, cost_by_parts),
    "tiles.views": (views_by_the_package, views_by_cases, views_with_a_dict, views_in_numpy, views_by_grid),
    "tiles.test_split": (test_all_tiles, test_by_places, test_in_ifs, test_by_reference, test_sorted),
    "tiles.rejoin": (rejoin, rejoin_with_einops, rejoin_by_fold, rejoin_by_index, rejoin_in_a_buffer),
}
