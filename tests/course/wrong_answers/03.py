"""Chapter 03: answers as people write them, wrong in ways that people are wrong, and what they should be told."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from nanovlm.models.modality_projector import pixel_shuffle

# -- pixel_shuffle.shuffle ---------------------------------------------------------------------------------------------


def side_of(x):
    return int(x.shape[1] ** 0.5)


def plain_reshape(x, factor):
    return x.reshape(x.shape[0], -1, x.shape[2] * factor * factor)


def torch_order(x, factor):
    b, _, d = x.shape
    image = x.transpose(1, 2).reshape(b, d, side_of(x), side_of(x))
    return F.pixel_unshuffle(image, factor).flatten(2).transpose(1, 2)


def down_the_columns(x, factor):
    b, _, d = x.shape
    s = side_of(x) // factor
    return x.view(b, s, factor, s, factor, d).permute(0, 1, 3, 4, 2, 5).reshape(b, s * s, -1)


def groups_by_column(x, factor):
    b, _, d = x.shape
    s = side_of(x) // factor
    return x.view(b, s, factor, s, factor, d).permute(0, 3, 1, 2, 4, 5).reshape(b, s * s, -1)


def both_turned(x, factor):
    b, _, d = x.shape
    s = side_of(x) // factor
    return x.view(b, s, factor, s, factor, d).permute(0, 3, 1, 4, 2, 5).reshape(b, s * s, -1)


def every_rth(x, factor):
    b, _, d = x.shape
    s = side_of(x) // factor
    return x.view(b, factor, s, factor, s, d).permute(0, 2, 4, 1, 3, 5).reshape(b, s * s, -1)


def no_transpose(x, factor):
    b, _, d = x.shape
    s = side_of(x) // factor
    return x.view(b, s, factor, s, factor, d).reshape(b, s * s, factor * factor * d)


def averages(x, factor):
    b, _, d = x.shape
    s = side_of(x) // factor
    return x.view(b, s, factor, s, factor, d).mean((2, 4)).reshape(b, s * s, d)


def keeps_one(x, factor):
    b, _, d = x.shape
    return x.view(b, side_of(x), side_of(x), d)[:, ::factor, ::factor].flatten(1, 2)


def dims_first(x, factor):
    b, _, d = x.shape
    s = side_of(x) // factor
    return x.view(b, s, factor, s, factor, d).permute(0, 1, 3, 5, 2, 4).reshape(b, s * s, -1)


def still_a_grid(x, factor):
    b, _, d = x.shape
    s = side_of(x) // factor
    return x.view(b, s, factor, s, factor, d).transpose(2, 3).reshape(b, s, s, -1)


def only_columns(x, factor):
    return x.reshape(x.shape[0], x.shape[1] // factor, x.shape[2] * factor)


def axes_moved_back(x, factor):
    return pixel_shuffle(x, factor).transpose(1, 2)


def cut_off(x, factor):
    return pixel_shuffle(x.detach(), factor)


def through_numpy(x, factor):
    return torch.from_numpy(pixel_shuffle(x.detach(), factor).numpy().copy())


def first_of_the_batch(x, factor):
    return pixel_shuffle(x[:1], factor)


# -- pixel_shuffle.unshuffle -------------------------------------------------------------------------------------------


def back_by_reshape(x, factor):
    return x.reshape(x.shape[0], x.shape[1] * factor**2, -1)


def back_inner_turned(x, factor):
    s = side_of(x)
    return x.view(x.shape[0], s, s, factor, factor, -1).permute(0, 1, 4, 2, 3, 5).flatten(1, 4)


def back_groups_turned(x, factor):
    s = side_of(x)
    return x.view(x.shape[0], s, s, factor, factor, -1).permute(0, 2, 3, 1, 4, 5).flatten(1, 4)


def back_all_turned(x, factor):
    s = side_of(x)
    return x.view(x.shape[0], s, s, factor, factor, -1).permute(0, 2, 4, 1, 3, 5).flatten(1, 4)


def back_torch(x, factor):
    b, _n, w = x.shape
    s = side_of(x)
    image = x.transpose(1, 2).reshape(b, w, s, s)
    return F.pixel_shuffle(image, factor).flatten(2).transpose(1, 2)


def once_more(x, factor):
    return pixel_shuffle(x, factor) if side_of(x) % factor == 0 else x


def shuffle_again(x, factor):
    return pixel_shuffle(x, factor)


def back_dilated(x, factor):
    s = side_of(x)
    return x.view(x.shape[0], s, s, factor, factor, -1).permute(0, 3, 1, 4, 2, 5).flatten(1, 4)


def back_dims_first(x, factor):
    b, n, w = x.shape
    s = side_of(x)
    x = x.view(b, s, s, w // factor**2, factor, factor).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(b, n * factor**2, -1)


def back_same_view(x, factor):
    """The shuffle's own first line, on its output."""
    b, n, w = x.shape
    s = side_of(x)
    d = w // factor**2
    return x.reshape(b, s, factor, s, factor, d).transpose(2, 3).reshape(b, n * factor**2, d)


def back_a_grid(x, factor):
    s = side_of(x)
    out = x.view(x.shape[0], s, s, factor, factor, -1).transpose(2, 3)
    return out.reshape(x.shape[0], s * factor, s * factor, -1)


def back_repeats(x, factor):
    return x[..., : x.shape[-1] // factor**2].repeat_interleave(factor**2, dim=1)


def back_cut_off(x, factor):
    s = side_of(x)
    out = x.detach().view(x.shape[0], s, s, factor, factor, -1).transpose(2, 3)
    return out.reshape(x.shape[0], (s * factor) ** 2, -1)


# -- pixel_shuffle.patch_map -------------------------------------------------------------------------------------------


def strip(token, grid, factor):
    return list(range(token * factor**2, (token + 1) * factor**2))


def by_columns(token, grid, factor):
    row, column = divmod(token, grid // factor)
    return [(row * factor + i) * grid + column * factor + j for j in range(factor) for i in range(factor)]


def divmod_grid(token, grid, factor):
    row, column = divmod(token, grid)
    return [(row * factor + i) * grid + column * factor + j for i in range(factor) for j in range(factor)]


def divmod_factor(token, grid, factor):
    row, column = divmod(token, factor)
    return [(row * factor + i) * grid + column * factor + j for i in range(factor) for j in range(factor)]


def row_and_column_swapped(token, grid, factor):
    column, row = divmod(token, grid // factor)
    return [(row * factor + i) * grid + column * factor + j for i in range(factor) for j in range(factor)]


def factor_missing(token, grid, factor):
    row, column = divmod(token, grid // factor)
    return [(row + i) * grid + column + j for i in range(factor) for j in range(factor)]


def factor_missing_for_the_row(token, grid, factor):
    row, column = divmod(token, grid // factor)
    return [(row + i) * grid + column * factor + j for i in range(factor) for j in range(factor)]


def factor_missing_for_the_column(token, grid, factor):
    row, column = divmod(token, grid // factor)
    return [(row * factor + i) * grid + column + j for i in range(factor) for j in range(factor)]


def rows_of_tokens(token, grid, factor):
    """Steps of a row of tokens, not of patches."""
    row, column = divmod(token, grid // factor)
    side = grid // factor
    return [(row * factor + i) * side + column * factor + j for i in range(factor) for j in range(factor)]


def top_left(token, grid, factor):
    row, column = divmod(token, grid // factor)
    return [row * factor * grid + column * factor]


def first_row(token, grid, factor):
    row, column = divmod(token, grid // factor)
    return [row * factor * grid + column * factor + j for j in range(factor)]


def from_one(token, grid, factor):
    row, column = divmod(token, grid // factor)
    return [(row * factor + i) * grid + column * factor + j + 1 for i in range(factor) for j in range(factor)]


def pairs(token, grid, factor):
    row, column = divmod(token, grid // factor)
    return [(row * factor + i, column * factor + j) for i in range(factor) for j in range(factor)]


def nested(token, grid, factor):
    row, column = divmod(token, grid // factor)
    return [[(row * factor + i) * grid + column * factor + j for j in range(factor)] for i in range(factor)]


def two_by_two(token, grid, factor):
    row, column = divmod(token, grid // 2)
    return [(row * 2 + i) * grid + column * 2 + j for i in range(2) for j in range(2)]


# -- pixel_shuffle.projector -------------------------------------------------------------------------------------------


class P(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.r = config.pixel_shuffle_factor
        self.proj = nn.Linear(config.vision_dim * self.r**2, config.language_dim, bias=False)


def projector(forward):
    return type(forward.__name__, (P,), {"forward": forward})


@projector
def strips(self, x):
    return self.proj(x.reshape(x.shape[0], -1, self.proj.in_features))


@projector
def torchs_channels(self, x):
    return self.proj(torch_order(x, self.r))


@projector
def columns_inside(self, x):
    return self.proj(down_the_columns(x, self.r))


@projector
def groups_turned(self, x):
    return self.proj(groups_by_column(x, self.r))


@projector
def dilated(self, x):
    return self.proj(every_rth(x, self.r))


@projector
def activated(self, x):
    return F.gelu(self.proj(pixel_shuffle(x, self.r)))


@projector
def relu(self, x):
    return F.relu(self.proj(pixel_shuffle(x, self.r)))


@projector
def normalised_first(self, x):
    return self.proj(F.layer_norm(pixel_shuffle(x, self.r), (self.proj.in_features,)))


@projector
def project_then_shuffle(self, x):
    return pixel_shuffle(self.proj(x), self.r)


@projector
def no_shuffle(self, x):
    return self.proj(x)


@projector
def only_shuffle(self, x):
    return pixel_shuffle(x, self.r)


@projector
def detached(self, x):
    return self.proj(pixel_shuffle(x.detach(), self.r))


@projector
def frozen(self, x):
    return F.linear(pixel_shuffle(x, self.r), self.proj.weight.detach())


@projector
def no_grad(self, x):
    with torch.no_grad():
        return self.proj(pixel_shuffle(x, self.r))


@projector
def pooled(self, x):
    return self.proj(pixel_shuffle(x, self.r)).mean(1, keepdim=True)


class WithBias(P):
    def __init__(self, config):
        super().__init__(config)
        self.proj = nn.Linear(config.vision_dim * self.r**2, config.language_dim)

    def forward(self, x):
        return self.proj(pixel_shuffle(x, self.r))


class Narrow(P):
    def __init__(self, config):
        super().__init__(config)
        self.proj = nn.Linear(config.vision_dim, config.language_dim, bias=False)


class RNotSquared(P):
    def __init__(self, config):
        super().__init__(config)
        self.proj = nn.Linear(config.vision_dim * self.r, config.language_dim, bias=False)


class OtherName(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.linear = nn.Linear(config.vision_dim * config.pixel_shuffle_factor**2, config.language_dim, bias=False)


class TwoWritten(P):
    """A factor written in."""

    def __init__(self, config):
        super().__init__(config)
        self.r = 2
        self.proj = nn.Linear(config.vision_dim * 4, config.language_dim, bias=False)

    def forward(self, x):
        return self.proj(pixel_shuffle(x, 2))


# -- pixel_shuffle.token_budget ----------------------------------------------------------------------------------------


def factor_once(image_size, patch_size, factor, num_tiles=1):
    return num_tiles * (image_size // patch_size) ** 2 // factor


def patches(image_size, patch_size, factor, num_tiles=1):
    return num_tiles * (image_size // patch_size) ** 2


def one_side(image_size, patch_size, factor, num_tiles=1):
    return num_tiles * (image_size // patch_size // factor)


def no_tiles(image_size, patch_size, factor, num_tiles=1):
    return (image_size // patch_size // factor) ** 2


def tiles_squared(image_size, patch_size, factor, num_tiles=1):
    return (num_tiles * image_size // patch_size // factor) ** 2


def true_division(image_size, patch_size, factor, num_tiles=1):
    return num_tiles * (image_size / patch_size / factor) ** 2


def one_more_view(image_size, patch_size, factor, num_tiles=1):
    return (num_tiles + 1) * (image_size // patch_size // factor) ** 2


def a_view_if_several(image_size, patch_size, factor, num_tiles=1):
    views = num_tiles + 1 if num_tiles > 1 else 1
    return views * (image_size // patch_size // factor) ** 2


def times_factor(image_size, patch_size, factor, num_tiles=1):
    return num_tiles * (image_size // patch_size * factor) ** 2


def class_token(image_size, patch_size, factor, num_tiles=1):
    return num_tiles * ((image_size // patch_size // factor) ** 2 + 1)


def patch_squared_away(image_size, patch_size, factor, num_tiles=1):
    return num_tiles * image_size**2 // patch_size // factor**2


def colours(image_size, patch_size, factor, num_tiles=1):
    return 3 * num_tiles * (image_size // patch_size // factor) ** 2


def factor_to_the_fourth(image_size, patch_size, factor, num_tiles=1):
    return num_tiles * (image_size // patch_size // factor**2) ** 2


# -- pixel_shuffle.tile_savings ----------------------------------------------------------------------------------------


def both_factors(n, t, c, linear=1.0, linear_tiles=1.0, attention_tiles=None, mlp=2, width=None):
    d, i = c.hidden_dim, width or c.inter_dim
    lin, att = linear * 2 * n * (4 * d * d + mlp * d * i), 4 * n * n * d
    tiled = lin / linear_tiles + att / (attention_tiles or t)
    return float(t), (lin + att) / tiled


def attention_alone(n, t, c):
    return both_factors(n, t, c, linear=0)


def linear_in_tiles_too(n, t, c):
    return both_factors(n, t, c, linear_tiles=t)


def a_single_tile(n, t, c):
    return both_factors(n, t, c, attention_tiles=t * t)


def inverted(n, t, c):
    return 1 / t, 1 / both_factors(n, t, c)[1]


def swapped(n, t, c):
    return both_factors(n, t, c)[::-1]


def no_mlp(n, t, c):
    return both_factors(n, t, c, mlp=0)


def half_mlp(n, t, c):
    return both_factors(n, t, c, mlp=1)


def four_times_wide(n, t, c):
    return both_factors(n, t, c, width=4 * c.hidden_dim)


def pairs_squared(n, t, c):
    return float(t * t), both_factors(n, t, c)[1]


def one_product(n, t, c):
    lin = 2 * n * (4 * c.hidden_dim**2 + 2 * c.hidden_dim * c.inter_dim)
    att = 2 * n * n * c.hidden_dim
    return float(t), (lin + att) / (lin + att / t)


def macs(n, t, c):
    return both_factors(n, t, c, linear=0.5)


def pairs_only(n, t, c):
    return float(t)


# -- pixel_shuffle.shuffle_rectangle -----------------------------------------------------------------------------------


def split_as(x, h, w, r, *order):
    b, _, d = x.shape
    return x.reshape(b, h // r, r, w // r, r, d).permute(*order).reshape(b, h * w // r**2, r * r * d)


def as_it_was(x, height, width, factor):
    return split_as(x, width, height, factor, 0, 1, 3, 2, 4, 5)


def column_by_column(x, height, width, factor):
    return split_as(x, height, width, factor, 0, 3, 1, 2, 4, 5)


def down_first(x, height, width, factor):
    return split_as(x, height, width, factor, 0, 1, 3, 4, 2, 5)


def channels_first(x, height, width, factor):
    return split_as(x, height, width, factor, 0, 1, 3, 5, 2, 4)


def no_move(x, height, width, factor):
    return x.reshape(x.shape[0], height * width // factor**2, factor**2 * x.shape[2])


def square_assumed(x, height, width, factor):
    return pixel_shuffle(x, factor)


def all_turned(x, height, width, factor):
    return split_as(x, height, width, factor, 0, 3, 1, 4, 2, 5)


# -- pixel_shuffle.test_shuffle ----------------------------------------------------------------------------------------


def shape_alone(shuffle):
    x = torch.randn(2, 36, 3)
    assert shuffle(x, 3).shape == (2, 4, 27)


def nothing_asserted(shuffle):
    shuffle(torch.randn(2, 36, 3), 3)


def all_there(shuffle):
    x = torch.arange(72.0).view(2, 36, 1)
    assert sorted(shuffle(x, 2).flatten().tolist()) == sorted(x.flatten().tolist())


def one_number(shuffle):
    assert shuffle(torch.arange(16).view(1, 16, 1), 2)[0, 0].tolist() == [0, 1, 4, 5]


def one_picture(shuffle):
    x = torch.arange(48.0).view(1, 16, 3)
    assert shuffle(x, 2)[0].equal(pixel_shuffle(x, 2)[0])


def says_true(shuffle):
    return shuffle(torch.zeros(1, 4, 1), 2).shape == (1, 1, 4)


def wrong_by_hand(shuffle):
    assert shuffle(torch.arange(16).view(1, 16, 1), 2)[0, 0].tolist() == [0, 1, 2, 3]


def factor_one(shuffle):
    x = torch.randn(2, 16, 3)
    assert shuffle(x, 1).equal(x)


WRONG = {
    "pixel_shuffle.shuffle": [
        (plain_reshape, "plain reshape"),
        (torch_order, "channel first"),
        (down_the_columns, "down the columns"),
        (groups_by_column, "column by column"),
        (both_turned, "transposed"),
        (every_rth, "every r-th"),
        (no_transpose, "plain reshape"),
        (averages, "averaged"),
        (keeps_one, "one patch of each"),
        (dims_first, "channel first"),
        (still_a_grid, "rows and columns"),
        (only_columns, "divided by r"),
        (axes_moved_back, "another order"),
        (cut_off, "radient"),
        (through_numpy, "radient"),
        (first_of_the_batch, "first picture"),
    ],
    "pixel_shuffle.unshuffle": [
        (back_by_reshape, "plain reshape"),
        (back_inner_turned, "inside each"),
        (back_groups_turned, "turned"),
        (back_all_turned, "turned"),
        (back_torch, "channel after channel"),
        (shuffle_again, "once more"),
        (back_dilated, "neighbours"),
        (back_dims_first, "channel after channel"),
        (back_same_view, "first line"),
        (back_a_grid, "rows and columns"),
        (back_repeats, "repeated"),
        (back_cut_off, "radient"),
        (once_more, "once more"),
    ],
    "pixel_shuffle.patch_map": [
        (strip, "in a row"),
        (by_columns, "column by column"),
        (divmod_grid, "divide by grid"),
        (divmod_factor, "divide by r"),
        (row_and_column_swapped, "swapped"),
        (factor_missing, "taken for its first patch's"),
        (factor_missing_for_the_row, "row is not multiplied"),
        (factor_missing_for_the_column, "column is not multiplied"),
        (rows_of_tokens, "grid patches"),
        (top_left, "top left patch alone"),
        (first_row, "first row"),
        (from_one, "from 0"),
        (pairs, "row and column"),
        (nested, "list of lists"),
        (two_by_two, "written in"),
    ],
    "pixel_shuffle.projector": [
        (strips, "plain reshape"),
        (torchs_channels, "channel first"),
        (columns_inside, "down the columns"),
        (groups_turned, "column by column"),
        (dilated, "every r-th"),
        (activated, "activation"),
        (relu, "activation"),
        (normalised_first, "normalised"),
        (project_then_shuffle, "Shuffle first"),
        (no_shuffle, "Shuffle first"),
        (only_shuffle, "proj is not used"),
        (detached, "radient"),
        (frozen, "radient"),
        (no_grad, "radient"),
        (pooled, "averaged"),
        (WithBias, "bias"),
        (Narrow, "r * r"),
        (RNotSquared, "r * r"),
        (OtherName, "proj.weight"),
        (TwoWritten, "r * r"),
    ],
    "pixel_shuffle.token_budget": [
        (factor_once, "divide by r once"),
        (patches, "counts patches"),
        (one_side, "one side"),
        (no_tiles, "not counted"),
        (tiles_squared, "squared with the side"),
        (true_division, "whole number"),
        (one_more_view, "view of the whole"),
        (a_view_if_several, "view of the whole"),
        (times_factor, "multiplied by r"),
        (class_token, "class token"),
        (patch_squared_away, "patch_size once"),
        (colours, "colour"),
        (factor_to_the_fourth, "r squared"),
    ],
    "pixel_shuffle.tile_savings": [
        (attention_alone, "linear layers are left out"),
        (linear_in_tiles_too, "every patch"),
        (a_single_tile, "one tile"),
        (inverted, "upside down"),
        (swapped, "changed places"),
        (no_mlp, "MLP is left out"),
        (half_mlp, "count one"),
        (four_times_wide, "inter_dim"),
        (pairs_squared, "squared"),
        (one_product, "as one"),
        (macs, "as one in the linear"),
        (pairs_only, "2 things"),
    ],
    "pixel_shuffle.shuffle_rectangle": [
        (as_it_was, "changed places"),
        (column_by_column, "column by column"),
        (down_first, "down the columns"),
        (channels_first, "channel first"),
        (no_move, "strips"),
        (square_assumed, "square"),
        (all_turned, "transposed"),
    ],
    "pixel_shuffle.test_shuffle": [
        (shape_alone, "shape alone"),
        (nothing_asserted, "asserts nothing"),
        (all_there, "still there"),
        (one_number, "single number"),
        (one_picture, "one picture"),
        (says_true, "returns nothing"),
        (wrong_by_hand, "a shuffle that is right"),
        (factor_one, "catches"),
    ],
}
