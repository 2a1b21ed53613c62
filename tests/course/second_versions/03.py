"""Chapter 03 once more, written in other ways."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


def pixel_shuffle(x: Tensor, factor: int) -> Tensor:
    """einops says it in one line."""
    side = round(x.shape[1] ** 0.5) // factor
    return rearrange(x, "b (h i w j) d -> b (h w) (i j d)", h=side, w=side, i=factor, j=factor)


def pixel_unshuffle(x: Tensor, factor: int) -> Tensor:
    """One patch at a time."""
    _, num_tokens, wide = x.shape
    side, dim = round(num_tokens**0.5), wide // factor**2
    rows = []
    for row in range(side * factor):
        for column in range(side * factor):
            token = (row // factor) * side + column // factor
            place = (row % factor) * factor + column % factor
            rows.append(x[:, token, place * dim : (place + 1) * dim])
    return torch.stack(rows, dim=1)


def patch_map(token: int, grid: int, factor: int) -> list[int]:
    """Ask every patch whether it is at home in this token."""

    def home(patch: int) -> int:
        return (patch // grid // factor) * (grid // factor) + patch % grid // factor

    return [patch for patch in range(grid * grid) if home(patch) == token]


class Projector(nn.Module):
    """A convolution over tiles is the same layer, once its weight is read as one."""

    def __init__(self, config) -> None:
        super().__init__()
        self.dim, self.r = config.vision_dim, config.pixel_shuffle_factor
        self.proj = nn.Linear(self.dim * self.r * self.r, config.language_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        grid = round(x.shape[1] ** 0.5)
        image = x.transpose(1, 2).unflatten(2, (grid, grid))
        kernel = self.proj.weight.unflatten(1, (self.r, self.r, self.dim)).permute(0, 3, 1, 2)
        return F.conv2d(image, kernel, stride=self.r).flatten(2).transpose(1, 2)


def token_budget(image_size: int, patch_size: int, factor: int, num_tiles: int = 1) -> int:
    """Area of the picture over area of a token's part of it."""
    return num_tiles * image_size**2 // (patch_size * factor) ** 2


def shuffle_by_loops(x, factor):
    grid = int(x.shape[1] ** 0.5)
    tokens = []
    for row in range(0, grid, factor):
        for column in range(0, grid, factor):
            held = [x[:, (row + i) * grid + column + j] for i in range(factor) for j in range(factor)]
            tokens.append(torch.cat(held, dim=-1))
    return torch.stack(tokens, dim=1)


def shuffle_by_unfold(x, factor):
    """Channel first from torch, put right afterwards."""
    grid = round(x.shape[1] ** 0.5)
    columns = F.unfold(x.mT.unflatten(2, (grid, grid)), factor, stride=factor)  # [B, dim * r * r, tokens]
    return columns.mT.unflatten(2, (x.shape[2], factor**2)).mT.flatten(2)


def shuffle_by_index(x, factor):
    """One list of patches, in their new order."""
    batch, num_patches, dim = x.shape
    grid = round(num_patches**0.5)
    order = torch.arange(num_patches).view(grid // factor, factor, grid // factor, factor).transpose(1, 2).flatten()
    return x[:, order].reshape(batch, -1, dim * factor * factor)


def shuffle_in_two_steps(x, factor):
    """Columns first, as SmolVLM's code does it, then rows."""
    batch, num_patches, dim = x.size()
    grid = int(num_patches**0.5)
    x = x.view(batch, grid, grid // factor, dim * factor).permute(0, 2, 1, 3)
    x = x.reshape(batch, grid // factor, grid // factor, dim * factor**2).permute(0, 2, 1, 3)
    return x.reshape(batch, -1, dim * factor**2)


def unshuffle_einops(x, factor):
    side = round(x.shape[1] ** 0.5)
    return rearrange(x, "b (h w) (i j d) -> b (h i w j) d", h=side, w=side, i=factor, j=factor)


def unshuffle_by_index(x, factor):
    batch, num_tokens, wide = x.shape
    side = int(num_tokens**0.5)
    home = torch.arange(num_tokens * factor**2).view(side, factor, side, factor).transpose(1, 2).flatten()
    out = x.new_empty(batch, num_tokens * factor**2, wide // factor**2)
    out[:, home] = x.reshape(batch, num_tokens * factor**2, -1)
    return out


def unshuffle_by_torch(x, factor):
    """Channels put in torch's order first."""
    side = round(x.shape[1] ** 0.5)
    x = x.unflatten(2, (factor**2, -1)).mT.flatten(2)
    return F.pixel_shuffle(x.mT.unflatten(2, (side, side)), factor).flatten(2).mT


def unshuffle_by_permute(x, factor):
    b, n, _ = x.shape
    s = round(n**0.5)
    return x.view(b, s, s, factor, factor, -1).permute(0, 1, 3, 2, 4, 5).contiguous().view(b, n * factor * factor, -1)


def map_by_loops(token, grid, factor):
    row, column = token // (grid // factor), token % (grid // factor)
    out = []
    for i in range(row * factor, (row + 1) * factor):
        for j in range(column * factor, (column + 1) * factor):
            out.append(i * grid + j)
    return out


def map_in_numpy(token, grid, factor):
    numbers = np.arange(grid * grid).reshape(grid, grid)
    row, column = np.unravel_index(token, (grid // factor, grid // factor))
    return numbers[row * factor :, column * factor :][:factor, :factor].ravel().tolist()


def map_as_a_tuple(token, grid, factor):
    first = token // (grid // factor) * factor * grid + token % (grid // factor) * factor
    return tuple(first + i // factor * grid + i % factor for i in range(factor**2))


def map_by_shuffling(token, grid, factor):
    return pixel_shuffle(torch.arange(grid * grid).view(1, -1, 1), factor)[0, token].tolist()


class PlainProjector(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        wide = config.vision_dim * config.pixel_shuffle_factor * config.pixel_shuffle_factor
        self.proj = nn.Linear(in_features=wide, out_features=config.language_dim, bias=False)

    def forward(self, x):
        return self.proj(pixel_shuffle(x, self.config.pixel_shuffle_factor))


class MatrixProjector(PlainProjector):
    def forward(self, x):
        return shuffle_by_index(x, self.config.pixel_shuffle_factor) @ self.proj.weight.T


class SumOfPatches(PlainProjector):
    """Each patch of a group has its own piece of the matrix, and the results add up: nothing is laid end to end."""

    def forward(self, x):
        r, dim = self.config.pixel_shuffle_factor, self.config.vision_dim
        groups = pixel_shuffle(x, r).unflatten(-1, (r * r, dim))
        return torch.einsum("btpd,lpd->btl", groups, self.proj.weight.unflatten(1, (r * r, dim)))


class PictureByPicture(PlainProjector):
    def forward(self, x):
        return torch.stack(
            [self.proj(shuffle_in_two_steps(one[None], self.config.pixel_shuffle_factor))[0] for one in x]
        )


def budget_in_steps(image_size, patch_size, factor, num_tiles=1):
    patches = image_size // patch_size
    tokens = (patches // factor) * (patches // factor)
    total = 0
    for _ in range(num_tiles):
        total += tokens
    return total


def budget_as_int(image_size, patch_size, factor, num_tiles=1):
    return int(num_tiles * (image_size / (patch_size * factor)) ** 2)


def budget_by_shapes(image_size, patch_size, factor, num_tiles=1):
    return len(range(0, image_size, patch_size * factor)) ** 2 * num_tiles


def budget_by_power(image_size, patch_size, factor, num_tiles=1):
    return pow(image_size // (patch_size * factor), 2) * num_tiles


def savings_as_shares(num_patches, num_tiles, config):
    """Attention's share of the work, from a weight for each patch."""
    weights = 4 * config.hidden_dim**2 + 2 * config.hidden_dim * config.inter_dim
    attention = 2 * num_patches * config.hidden_dim
    return num_tiles, (weights + attention) / (weights + attention / num_tiles)


def savings_by_counting(num_patches, num_tiles, config):
    def flops(n):
        products = [(n, config.hidden_dim, 3 * config.hidden_dim), (n, config.hidden_dim, config.hidden_dim)]
        products += [(n, config.hidden_dim, config.inter_dim), (n, config.inter_dim, config.hidden_dim)]
        products += [(n, config.hidden_dim, n), (n, n, config.hidden_dim)]
        return sum(2 * a * b * c for a, b, c in products)

    part = num_patches // num_tiles
    return [num_patches**2 / sum(part**2 for _ in range(num_tiles)), flops(num_patches) / (num_tiles * flops(part))]


def savings_in_fractions(num_patches, num_tiles, config):
    """Exact until the end."""
    d, n, part = config.hidden_dim, num_patches, Fraction(num_patches, num_tiles)
    linear = 2 * n * (4 * d * d + 2 * d * config.inter_dim)
    tiled = linear + num_tiles * 4 * part * part * d
    return float(Fraction(n * n) / (num_tiles * part**2)), float((linear + 4 * n * n * d) / tiled)


def savings_tile_by_tile(num_patches, num_tiles, config):
    """A whole encoder, block by block."""

    def work(patches):
        done = 0
        for _ in range(config.num_blocks):
            done += 8 * patches * config.hidden_dim**2  # q, k, v, out
            done += 4 * patches * config.hidden_dim * config.inter_dim
            done += 4 * patches * patches * config.hidden_dim
        return done

    tile, pairs, tiled = num_patches // num_tiles, 0, 0
    for _ in range(num_tiles):
        pairs, tiled = pairs + tile**2, tiled + work(tile)
    return num_patches**2 / pairs, work(num_patches) / tiled


def savings_in_numpy(num_patches, num_tiles, config):
    n, t, d, i = (np.float64(value) for value in (num_patches, num_tiles, config.hidden_dim, config.inter_dim))
    lengths = np.array([n, n / t])
    work = np.array([1, t]) * (2 * lengths * (4 * d * d + 2 * d * i) + 4 * lengths**2 * d)
    return float(n**2 / (t * lengths[1] ** 2)), float(work[0] / work[1])


def rectangle_einops(x, height, width, factor):
    return rearrange(x, "b (h i w j) d -> b (h w) (i j d)", h=height // factor, w=width // factor, i=factor, j=factor)


def rectangle_by_index(x, height, width, factor):
    numbers = torch.arange(height * width).view(height, width)
    order = numbers.unfold(0, factor, factor).unfold(1, factor, factor).reshape(-1)
    return x[:, order].reshape(len(x), -1, x.shape[2] * factor**2)


def rectangle_by_unfold(x, height, width, factor):
    """torch's unfold gives channels first; turned afterwards."""
    image = x.mT.unflatten(2, (height, width))
    columns = F.unfold(image, kernel_size=factor, stride=factor)
    return columns.mT.unflatten(2, (x.shape[2], factor**2)).mT.flatten(2)


def rectangle_in_two_steps(x, height, width, factor):
    """Columns first, then rows, as in a square one."""
    batch, _, dim = x.shape
    x = x.reshape(batch, height, width // factor, dim * factor).transpose(1, 2)
    x = x.reshape(batch, width // factor, height // factor, dim * factor * factor).transpose(1, 2)
    return x.reshape(batch, -1, dim * factor * factor)


def rectangle_by_slices(x, height, width, factor):
    """Every factor-th row and column, as many times as a group has patches."""
    image = x.unflatten(1, (height, width))
    pieces = [image[:, i::factor, j::factor] for i in range(factor) for j in range(factor)]
    return torch.cat(pieces, dim=-1).flatten(1, 2)


def test_by_loops(shuffle):
    x = torch.randn(2, 36, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(shuffle(x, 3), shuffle_by_loops(x, 3))


def test_by_einops(shuffle):
    x = torch.arange(2 * 64 * 2).view(2, 64, 2)
    wanted = rearrange(x, "b (h i w j) d -> b (h w) (i j d)", h=4, w=4, i=2, j=2)
    np.testing.assert_array_equal(shuffle(x, 2).numpy(), wanted.numpy())


def test_by_unshuffling(shuffle):
    x = torch.arange(3 * 36 * 2.0).reshape(3, 36, 2)
    assert torch.equal(pixel_unshuffle(shuffle(x, 3), 3), x)


def test_by_names(shuffle):
    """Each number says where it comes from: picture, row, column, number."""
    numbers = [
        [[1000 * b + 100 * r + 10 * c + n for n in range(2)] for r in range(4) for c in range(4)] for b in (1, 2)
    ]
    out = shuffle(torch.tensor(numbers), 2)
    for b in (0, 1):
        for token in range(4):
            row, column = 2 * (token // 2), 2 * (token % 2)
            patches = [(row, column), (row, column + 1), (row + 1, column), (row + 1, column + 1)]
            wanted = [1000 * (b + 1) + 100 * r + 10 * c + n for r, c in patches for n in range(2)]
            assert out[b, token].tolist() == wanted, (b, token)


def test_by_slices(shuffle):
    x = torch.randn(2, 16, 3, generator=torch.Generator().manual_seed(5))
    out = shuffle(x, 2).reshape(2, 2, 2, 4, 3)
    image = x.reshape(2, 4, 4, 3)
    for place, (i, j) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        torch.testing.assert_close(out[:, :, :, place], image[:, i::2, j::2])


RIGHT_TESTS = (test_by_loops, test_by_einops, test_by_unshuffling, test_by_names, test_by_slices)
for _test in RIGHT_TESTS:
    _test.__test__ = False


VERSIONS = {
    "pixel_shuffle.shuffle": (
        pixel_shuffle,
        shuffle_by_loops,
        shuffle_by_unfold,
        shuffle_by_index,
        shuffle_in_two_steps,
    ),
    "pixel_shuffle.unshuffle": (
        pixel_unshuffle,
        unshuffle_einops,
        unshuffle_by_index,
        unshuffle_by_torch,
        unshuffle_by_permute,
    ),
    "pixel_shuffle.patch_map": (patch_map, map_by_loops, map_in_numpy, map_as_a_tuple, map_by_shuffling),
    "pixel_shuffle.projector": (Projector, PlainProjector, MatrixProjector, SumOfPatches, PictureByPicture),
    "pixel_shuffle.token_budget": (
        token_budget,
        budget_in_steps,
        budget_as_int,
        budget_by_shapes,
        budget_by_power,
    ),
    "pixel_shuffle.tile_savings": (
        savings_as_shares,
        savings_by_counting,
        savings_in_fractions,
        savings_tile_by_tile,
        savings_in_numpy,
    ),
    "pixel_shuffle.shuffle_rectangle": (
        rectangle_einops,
        rectangle_by_index,
        rectangle_by_unfold,
        rectangle_in_two_steps,
        rectangle_by_slices,
    ),
    "pixel_shuffle.test_shuffle": RIGHT_TESTS,
}
