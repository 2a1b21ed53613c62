"""Chapter 13 once more, written another way."""

from __future__ import annotations

from fractions import Fraction

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


VERSIONS = {
    "tiles.grid": grid,
    "tiles.split": split,
    "tiles.tokens": tokens,
    "tiles.cost": cost,
    "tiles.rejoin": rejoin,
}
