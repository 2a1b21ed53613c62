"""Chapter 01: answers as people write them, wrong in ways that people are wrong, and what they should be told."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

# -- patches.normalize -------------------------------------------------------------------------------------------------


def zero_to_one(pixels):
    return pixels.float() / 255


def half_as_wide(pixels):
    return pixels.float() / 255 - 0.5


def zero_to_two(pixels):
    return pixels / 127.5


def subtracts_bytes(pixels):
    return (pixels - 128) / 127.5


def doubles_bytes(pixels):
    return 2 * pixels / 255 - 1


def doubles_and_subtracts_bytes(pixels):
    return (pixels * 2 - 255).float() / 255


def by_128(pixels):
    return pixels / 128 - 1


def by_256(pixels):
    return pixels / 256 * 2 - 1


def own_range(pixels):
    x = pixels.float()
    return (x - x.min()) / (x.max() - x.min()) * 2 - 1


def own_mean(pixels):
    x = pixels.float()
    return (x - x.mean()) / x.std()


def imagenet(pixels):
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (pixels / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def not_divided(pixels):
    return (pixels.float() - 0.5) / 0.5


def only_centred(pixels):
    return pixels.float() - 127.5


def inverted(pixels):
    return 1 - pixels / 127.5


def doubled_before_the_division(pixels):
    return 2 * pixels.float() - 1


def rounds(pixels):
    return (pixels.float() / 127.5 - 1).round()


def in_double(pixels):
    return pixels.double() / 127.5 - 1


def in_half(pixels):
    return (pixels / 127.5 - 1).half()


# -- patches.patchify --------------------------------------------------------------------------------------------------


def plain_reshape(images, patch_size):
    b, c, h, w = images.shape
    return images.reshape(b, (h // patch_size) * (w // patch_size), c * patch_size**2)


def colour_last(images, patch_size):
    b, c, h, w = images.shape
    p = patch_size
    x = images.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 3, 5, 1)
    return x.reshape(b, -1, c * p * p)


def columns_of_patches_first(images, patch_size):
    b, c, h, w = images.shape
    p = patch_size
    return images.reshape(b, c, h // p, p, w // p, p).permute(0, 4, 2, 1, 3, 5).reshape(b, -1, c * p * p)


def columns_inside_first(images, patch_size):
    b, c, h, w = images.shape
    p = patch_size
    return images.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 5, 3).reshape(b, -1, c * p * p)


def pairs_swapped(images, patch_size):
    b, c, h, w = images.shape
    p = patch_size
    return images.reshape(b, c, p, h // p, p, w // p).permute(0, 3, 5, 1, 2, 4).reshape(b, -1, c * p * p)


def no_permute(images, patch_size):
    b, c, h, w = images.shape
    p = patch_size
    return images.reshape(b, c, h // p, p, w // p, p).reshape(b, -1, c * p * p)


def windows_not_permuted(images, patch_size):
    b, c = images.shape[:2]
    windows = images.unfold(2, patch_size, patch_size).unfold(3, patch_size, patch_size)
    return windows.reshape(b, -1, c * patch_size**2)


def unfold_not_transposed(images, patch_size):
    return F.unfold(images, patch_size, stride=patch_size)


def overlapping(images, patch_size):
    return F.unfold(images, patch_size).transpose(1, 2)


def batch_merged(images, patch_size):
    return F.unfold(images, patch_size, stride=patch_size).transpose(1, 2).flatten(0, 1)


def one_picture_only(images, patch_size):
    return F.unfold(images[:1], patch_size, stride=patch_size).transpose(1, 2)


def a_patch_for_each_channel(images, patch_size):
    b = images.shape[0]
    x = images.unfold(2, patch_size, patch_size).unfold(3, patch_size, patch_size)
    return x.reshape(b, -1, patch_size**2)


def assumes_a_square(images, patch_size):
    b, c, h, _ = images.shape
    g, p = h // patch_size, patch_size
    return images.reshape(b, c, g, p, g, p).permute(0, 2, 4, 1, 3, 5).reshape(b, g * g, c * p * p)


def assumes_colour(images, patch_size):
    b, _, h, w = images.shape
    p = patch_size
    x = images.reshape(b, 3, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(b, (h // p) * (w // p), 3 * p * p)


def flattened_too_early(images, patch_size):
    return torch.stack(images.flatten(2).split(patch_size**2, dim=2), dim=1).flatten(2)


def four_axes(images, patch_size):
    b, c, h, w = images.shape
    p = patch_size
    return images.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5).reshape(b, h // p, w // p, -1)


# -- patches.unpatchify ------------------------------------------------------------------------------------------------


def _axes(patches, p):
    b, n, wide = patches.shape
    g = round(n**0.5)
    return patches.reshape(b, g, g, wide // p**2, p, p), b, g


def back_by_reshape(patches, patch_size):
    x, b, g = _axes(patches, patch_size)
    return x.reshape(b, -1, g * patch_size, g * patch_size)


def grid_beside_grid(patches, patch_size):
    x, b, g = _axes(patches, patch_size)
    return x.permute(0, 3, 1, 2, 4, 5).reshape(b, -1, g * patch_size, g * patch_size)


def grid_turned(patches, patch_size):
    x, b, g = _axes(patches, patch_size)
    return x.permute(0, 3, 2, 4, 1, 5).reshape(b, -1, g * patch_size, g * patch_size)


def inside_turned(patches, patch_size):
    x, b, g = _axes(patches, patch_size)
    return x.permute(0, 3, 1, 5, 2, 4).reshape(b, -1, g * patch_size, g * patch_size)


def picture_turned(patches, patch_size):
    x, b, g = _axes(patches, patch_size)
    return x.permute(0, 3, 2, 5, 1, 4).reshape(b, -1, g * patch_size, g * patch_size)


def back_colour_last(patches, patch_size):
    b, n, wide = patches.shape
    g, p = round(n**0.5), patch_size
    x = patches.reshape(b, g, g, p, p, wide // p**2).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(b, -1, g * p, g * p)


def pixel_before_patch(patches, patch_size):
    x, b, g = _axes(patches, patch_size)
    return x.permute(0, 3, 4, 1, 5, 2).reshape(b, -1, g * patch_size, g * patch_size)


def fold_not_transposed(patches, patch_size):
    side = round(patches.shape[1] ** 0.5) * patch_size
    return F.fold(patches, (side, side), patch_size, stride=patch_size)


def channels_at_the_end(patches, patch_size):
    x, b, g = _axes(patches, patch_size)
    return x.permute(0, 1, 4, 2, 5, 3).reshape(b, g * patch_size, g * patch_size, -1)


def back_assumes_colour(patches, patch_size):
    b, n, _ = patches.shape
    g, p = round(n**0.5), patch_size
    return patches.reshape(b, g, g, 3, p, p).permute(0, 3, 1, 4, 2, 5).reshape(b, 3, g * p, g * p)


def back_one_picture(patches, patch_size):
    x, _, g = _axes(patches[:1], patch_size)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(1, -1, g * patch_size, g * patch_size)


def in_one_column(patches, patch_size):
    x, b, g = _axes(patches, patch_size)
    return x.permute(0, 3, 1, 2, 4, 5).reshape(b, -1, g * g * patch_size, patch_size)


def grid_is_the_patch_size(patches, patch_size):
    b, _, wide = patches.shape
    p = patch_size
    return patches.reshape(b, p, p, wide // p**2, p, p).permute(0, 3, 1, 4, 2, 5).reshape(b, -1, p * p, p * p)


# -- patches.conv_equals_linear ----------------------------------------------------------------------------------------


def _layer(weight, bias):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


def reshaped_and_turned(conv):
    return _layer(conv.weight.reshape(-1, conv.out_channels).T, conv.bias)


def no_bias(conv):
    return _layer(conv.weight.flatten(1), None)


def bias_always_random(conv):
    layer = nn.Linear(conv.weight[0].numel(), conv.out_channels)
    layer.weight.data = conv.weight.data.flatten(1)
    return layer


def zero_bias_where_none_is(conv):
    layer = nn.Linear(conv.weight[0].numel(), conv.out_channels)
    with torch.no_grad():
        layer.weight.copy_(conv.weight.flatten(1))
        if conv.bias is None:
            layer.bias.zero_()
        else:
            layer.bias.copy_(conv.bias)
    return layer


def bias_not_copied(conv):
    layer = nn.Linear(conv.weight[0].numel(), conv.out_channels, bias=conv.bias is not None)
    with torch.no_grad():
        layer.weight.copy_(conv.weight.flatten(1))
    return layer


def weight_not_copied(conv):
    layer = nn.Linear(conv.weight[0].numel(), conv.out_channels, bias=conv.bias is not None)
    with torch.no_grad():
        if conv.bias is not None:
            layer.bias.copy_(conv.bias)
    return layer


def nothing_copied(conv):
    return nn.Linear(conv.weight[0].numel(), conv.out_channels, bias=conv.bias is not None)


def pixels_first(conv):
    return _layer(conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)


def columns_first(conv):
    return _layer(conv.weight.transpose(2, 3).flatten(1), conv.bias)


def kernel_turned(conv):
    return _layer(conv.weight.flip(2, 3).flatten(1), conv.bias)


def colours_reversed(conv):
    return _layer(conv.weight.flip(1).flatten(1), conv.bias)


def summed_over_colours(conv):
    return _layer(conv.weight.sum(1).flatten(1), conv.bias)


def weight_not_flattened(conv):
    layer = nn.Linear(conv.weight[0].numel(), conv.out_channels, bias=conv.bias is not None)
    with torch.no_grad():
        layer.weight.copy_(conv.weight)
    return layer


def sizes_the_wrong_way(conv):
    return nn.Linear(conv.out_channels, conv.weight[0].numel())


def a_function(conv):
    weight = conv.weight.flatten(1)
    return lambda x: F.linear(x, weight, conv.bias)


def the_convolution_itself(conv):
    return conv


def copies_outside_no_grad(conv):
    layer = nn.Linear(conv.weight[0].numel(), conv.out_channels, bias=conv.bias is not None)
    layer.weight.copy_(conv.weight.flatten(1))
    return layer


def bias_must_be_there(conv):
    layer = nn.Linear(conv.weight[0].numel(), conv.out_channels)
    with torch.no_grad():
        layer.weight.copy_(conv.weight.flatten(1))
        layer.bias.copy_(conv.bias)
    return layer


# -- patches.add_positions ---------------------------------------------------------------------------------------------


class Base(nn.Module):
    std = 0.02

    def __init__(self, config):
        super().__init__()
        p, dim = config.patch_size, config.hidden_dim
        self.conv = nn.Conv2d(3, dim, p, stride=p)
        self.position_embedding = nn.Parameter(torch.randn(1, config.num_patches, dim) * self.std)

    def tokens(self, images):
        return self.conv(images).flatten(2).transpose(1, 2)

    def forward(self, images):
        return self.tokens(images) + self.position_embedding


class NotAdded(Base):
    def forward(self, images):
        return self.tokens(images)


class ReshapedAtOnce(Base):
    def forward(self, images):
        x = self.conv(images)
        return x.view(len(x), -1, x.shape[1]) + self.position_embedding


class AddedBeforeTheSwap(Base):
    def forward(self, images):
        x = self.conv(images).flatten(2)
        return (x + self.position_embedding.reshape(1, x.shape[1], x.shape[2])).transpose(1, 2)


class NeverSwapped(Base):
    def forward(self, images):
        return self.conv(images).flatten(2) + self.position_embedding


class ColumnByColumn(Base):
    def forward(self, images):
        return self.conv(images).permute(0, 3, 2, 1).flatten(1, 2) + self.position_embedding


class StrideOne(Base):
    def __init__(self, config):
        super().__init__(config)
        self.conv = nn.Conv2d(3, config.hidden_dim, config.patch_size)


class NoBias(Base):
    def __init__(self, config):
        super().__init__(config)
        self.conv = nn.Conv2d(3, config.hidden_dim, config.patch_size, stride=config.patch_size, bias=False)


class PlainTensor(Base):
    def __init__(self, config):
        super().__init__(config)
        del self.position_embedding
        self.position_embedding = torch.randn(1, config.num_patches, config.hidden_dim) * 0.02


class Buffer(Base):
    def __init__(self, config):
        super().__init__(config)
        del self.position_embedding
        self.register_buffer("position_embedding", torch.randn(1, config.num_patches, config.hidden_dim) * 0.02)


class Multiplied(Base):
    def forward(self, images):
        return self.tokens(images) * self.position_embedding


class Subtracted(Base):
    def forward(self, images):
        return self.tokens(images) - self.position_embedding


class ReversedPlaces(Base):
    def forward(self, images):
        return self.tokens(images) + self.position_embedding.flip(1)


class Twice(Base):
    def forward(self, images):
        return self.tokens(images) + 2 * self.position_embedding


class FirstOnly(Base):
    def forward(self, images):
        return self.tokens(images) + self.position_embedding[:, :1]


class Detached(Base):
    def forward(self, images):
        return self.tokens(images) + self.position_embedding.detach()


class WithoutGradients(Base):
    @torch.no_grad()
    def forward(self, images):
        return self.tokens(images) + self.position_embedding


class InputDetached(Base):
    def forward(self, images):
        return self.tokens(images.detach()) + self.position_embedding


class StartsAtZero(Base):
    std = 0


class StartsAtOne(Base):
    std = 1


class NamedOtherwise(Base):
    def __init__(self, config):
        super().__init__(config)
        self.pos = self.position_embedding
        del self.position_embedding

    def forward(self, images):
        return self.tokens(images) + self.pos


class Activated(Base):
    def forward(self, images):
        return F.gelu(self.tokens(images)) + self.position_embedding


class NewNumbersEachTime(Base):
    def forward(self, images):
        return self.tokens(images) + torch.randn_like(self.position_embedding) * 0.02


# -- patches.resize_positions ------------------------------------------------------------------------------------------


def _resized(positions, grid_size, **how):
    _, n, dim = positions.shape
    old = round(n**0.5)
    grid = positions.reshape(1, old, old, dim).permute(0, 3, 1, 2)
    how = {"mode": "bicubic", "align_corners": False, "size": (grid_size, grid_size)} | how
    return F.interpolate(grid, **how)


def _line(grid):
    return grid.flatten(2).transpose(1, 2)


def not_unfolded_properly(positions, grid_size):
    _, n, dim = positions.shape
    old = round(n**0.5)
    grid = positions.reshape(1, dim, old, old)
    return _line(F.interpolate(grid, (grid_size, grid_size), mode="bicubic"))


def stretched_as_a_line(positions, grid_size):
    return F.interpolate(positions.transpose(1, 2), grid_size**2, mode="linear").transpose(1, 2)


def bilinear(positions, grid_size):
    return _line(_resized(positions, grid_size, mode="bilinear"))


def nearest(positions, grid_size):
    return _line(_resized(positions, grid_size, mode="nearest", align_corners=None))


def area(positions, grid_size):
    return _line(_resized(positions, grid_size, mode="area", align_corners=None))


def corners_aligned(positions, grid_size):
    return _line(_resized(positions, grid_size, align_corners=True))


def antialiased(positions, grid_size):
    return _line(_resized(positions, grid_size, antialias=True))


def folded_back_by_reshape(positions, grid_size):
    grid = _resized(positions, grid_size)
    return grid.reshape(1, grid_size**2, grid.shape[1])


def places_turned(positions, grid_size):
    return _line(_resized(positions, grid_size).transpose(2, 3))


def still_a_grid(positions, grid_size):
    return _resized(positions, grid_size)


def dim_in_the_middle(positions, grid_size):
    return _resized(positions, grid_size).flatten(2)


def cut_off_or_filled_with_zeros(positions, grid_size):
    out = torch.zeros(1, grid_size**2, positions.shape[2])
    n = min(positions.shape[1], grid_size**2)
    out[:, :n] = positions[:, :n]
    return out


def used_again(positions, grid_size):
    times = -(-(grid_size**2) // positions.shape[1])
    return positions.repeat(1, times, 1)[:, : grid_size**2]


def whole_factor(positions, grid_size):
    old = round(positions.shape[1] ** 0.5)
    return _line(_resized(positions, grid_size, size=None, scale_factor=grid_size // old))


def detached(positions, grid_size):
    return _line(_resized(positions.detach(), grid_size))


def without_gradients(positions, grid_size):
    with torch.no_grad():
        return _line(_resized(positions, grid_size))


def as_long_as_before(positions, grid_size):
    x = _line(_resized(positions, grid_size))
    return x / x.norm(dim=-1, keepdim=True) * positions.norm(dim=-1).mean()


def batch_axis_lost(positions, grid_size):
    return _line(_resized(positions, grid_size))[0]


# -- patches.prepare ---------------------------------------------------------------------------------------------------


def _bytes(image, size, mode="RGB", how=Image.Resampling.BICUBIC):
    return torch.from_numpy(np.array(image.convert(mode).resize((size, size), how)))


def only_the_mode_mended(image, size):
    return _bytes(image, size).reshape(1, 3, size, size) / 255


def mode_and_range_mended(image, size):
    return _bytes(image, size).reshape(3, size, size)[None] / 127.5 - 1


def still_zero_to_one(image, size):
    return (_bytes(image, size).permute(2, 0, 1) / 255).unsqueeze(0)


def mode_forgotten(image, size):
    x = torch.from_numpy(np.array(image.resize((size, size), Image.Resampling.BICUBIC)))
    return x.permute(2, 0, 1)[:, :, :].reshape(1, 3, size, size) / 127.5 - 1


def batch_forgotten(image, size):
    return _bytes(image, size).permute(2, 0, 1) / 127.5 - 1


def batch_at_the_end(image, size):
    return (_bytes(image, size).permute(2, 0, 1) / 127.5 - 1)[..., None]


def channels_last(image, size):
    return _bytes(image, size).unsqueeze(0) / 127.5 - 1


def axes_reversed(image, size):
    return _bytes(image, size).permute(2, 1, 0)[None] / 127.5 - 1


def blue_first(image, size):
    return _bytes(image, size)[..., [2, 1, 0]].permute(2, 0, 1)[None] / 127.5 - 1


def resized_by_nearest(image, size):
    return _bytes(image, size, how=Image.Resampling.NEAREST).permute(2, 0, 1)[None] / 127.5 - 1


def resized_bilinearly(image, size):
    return _bytes(image, size, how=Image.Resampling.BILINEAR).permute(2, 0, 1)[None] / 127.5 - 1


def not_resized(image, size):
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None] / 127.5 - 1


def still_bytes(image, size):
    return _bytes(image, size).permute(2, 0, 1)[None].float()


def prepared_in_double(image, size):
    return _bytes(image, size).permute(2, 0, 1)[None].double() / 127.5 - 1


def makes_a_thumbnail(image, size):
    image.thumbnail((size, size))
    return _bytes(image, size).permute(2, 0, 1)[None] / 127.5 - 1


# -- patches.where_over_what -------------------------------------------------------------------------------------------


def _mean_length(x):
    return x.norm(dim=-1).mean()


def lengths_themselves(what, where):
    return float(_mean_length(where) / _mean_length(what))


def what_over_where(what, where):
    a, b = (v.flatten(0, 1) for v in (what, where))
    return float(_mean_length(a - a.mean(0)) / _mean_length(b - b.mean(0)))


def one_mean_for_all(what, where):
    return float(_mean_length(where - where.mean()) / _mean_length(what - what.mean()))


def mean_of_each_vector(what, where):
    return float(_mean_length(where - where.mean(-1, keepdim=True)) / _mean_length(what - what.mean(-1, keepdim=True)))


def a_mean_for_each_picture(what, where):
    return float(_mean_length(where - where.mean(1, keepdim=True)) / _mean_length(what - what.mean(1, keepdim=True)))


def a_mean_for_each_place(what, where):
    return float(_mean_length(where - where.mean(0)) / _mean_length(what - what.mean(0)))


def squared(what, where):
    a, b = (v.flatten(0, 1) for v in (where, what))
    return float((a - a.mean(0)).pow(2).sum(-1).mean() / (b - b.mean(0)).pow(2).sum(-1).mean())


def root_of_the_mean(what, where):
    a, b = (v.flatten(0, 1) for v in (where, what))
    return float((a.var(0, unbiased=False).sum() / b.var(0, unbiased=False).sum()).sqrt())


def absolute_values(what, where):
    a, b = (v.flatten(0, 1) for v in (where, what))
    return float((a - a.mean(0)).abs().mean() / (b - b.mean(0)).abs().mean())


def added_up(what, where):
    a, b = (v.flatten(0, 1) for v in (where, what))
    return float((a - a.mean(0)).norm(dim=-1).sum() / (b - b.mean(0)).norm(dim=-1).sum())


def the_first_picture(what, where):
    a, b = where[0], what[0]
    return float(_mean_length(a - a.mean(0)) / _mean_length(b - b.mean(0)))


def difference(what, where):
    a, b = (v.flatten(0, 1) for v in (where, what))
    return float(_mean_length(a - a.mean(0)) - _mean_length(b - b.mean(0)))


def still_a_tensor(what, where):
    a, b = (v.flatten(0, 1) for v in (where, what))
    return _mean_length(a - a.mean(0)) / _mean_length(b - b.mean(0))


# -- patches.test_patchify ---------------------------------------------------------------------------------------------


def _arange(*shape):
    return torch.arange(float(np.prod(shape))).reshape(shape)


def _right(images, p):
    return F.unfold(images, p, stride=p).mT


def shape_alone(patchify):
    assert patchify(torch.zeros(2, 3, 8, 8), 4).shape == (2, 4, 48)


def zeros(patchify):
    patchify(torch.zeros(2, 3, 8, 8), 4)


def square_pictures(patchify):
    for images in (_arange(2, 3, 8, 8), _arange(2, 1, 4, 4)):
        assert torch.equal(patchify(images, 2), _right(images, 2))


def three_channels(patchify):
    assert torch.equal(patchify(_arange(2, 3, 4, 8), 2), _right(_arange(2, 3, 4, 8), 2))


def one_channel(patchify):
    assert torch.equal(patchify(_arange(2, 1, 4, 8), 2), _right(_arange(2, 1, 4, 8), 2))


def one_picture(patchify):
    assert torch.equal(patchify(_arange(1, 2, 4, 8), 2)[0], _right(_arange(1, 2, 4, 8), 2)[0])


def sorted_numbers(patchify):
    out = patchify(_arange(2, 2, 4, 8), 2)
    assert out.shape == (2, 8, 8)
    assert torch.equal(out.flatten().sort().values, _arange(2, 2, 4, 8).flatten())


def only_a_sum(patchify):
    out = patchify(_arange(2, 2, 4, 8), 2)
    assert out.shape == (2, 8, 8) and out.sum() == _arange(2, 2, 4, 8).sum()


def says_true(patchify):
    return torch.equal(patchify(_arange(2, 2, 4, 8), 2), _right(_arange(2, 2, 4, 8), 2))


def asks_for_channels_last(patchify):
    images = _arange(1, 2, 2, 2)
    assert patchify(images, 2)[0, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def the_first_patch(patchify):
    out = patchify(_arange(2, 2, 4, 8), 2)
    assert out.shape == (2, 8, 8)
    assert torch.equal(out[:, 0], _right(_arange(2, 2, 4, 8), 2)[:, 0])


def fails_always(patchify):
    raise AssertionError("not yet")


def shares_its_weight(conv):
    linear = nn.Linear(conv.weight[0].numel(), conv.out_channels, bias=conv.bias is not None)
    linear.weight = nn.Parameter(conv.weight.flatten(1))
    if conv.bias is not None:
        linear.bias = nn.Parameter(conv.bias.detach().clone())
    return linear


def shares_its_bias(conv):
    linear = nn.Linear(conv.weight[0].numel(), conv.out_channels, bias=conv.bias is not None)
    linear.weight = nn.Parameter(conv.weight.detach().flatten(1).clone())
    linear.bias = conv.bias
    return linear


def reshaped_both_ways(positions, grid_size):
    _, num_patches, dim = positions.shape
    old = int(num_patches**0.5)
    grid = F.interpolate(positions.reshape(1, dim, old, old), size=grid_size, mode="bicubic", align_corners=False)
    return grid.reshape(1, grid_size**2, dim)


def standard_deviations(what, where):
    return float(where.std() / what.std())


WRONG = {
    "patches.normalize": [
        (zero_to_one, "This is [0, 1]"),
        (half_as_wide, "half as wide"),
        (zero_to_two, "0 to 2"),
        (subtracts_bytes, "before you subtract"),
        (doubles_bytes, "before you multiply"),
        (doubles_and_subtracts_bytes, "multiply and subtract"),
        (by_128, "127.5, not 128"),
        (by_256, "255, not 256"),
        (own_range, "own darkest"),
        (own_mean, "this one picture"),
        (imagenet, "ImageNet"),
        (not_divided, "divided by 255"),
        (only_centred, "not divided"),
        (inverted, "negative"),
        (doubled_before_the_division, "divided by 255"),
        (rounds, "round"),
        (in_double, "expected float32"),
        (in_half, "expected float32"),
    ],
    "patches.patchify": [
        (plain_reshape, "plain reshape"),
        (colour_last, "colour last"),
        (columns_of_patches_first, "column by column"),
        (columns_inside_first, "down the columns first"),
        (pairs_swapped, "from all over the picture"),
        (no_permute, "plain reshape"),
        (windows_not_permuted, "channel"),
        (unfold_not_transposed, "swap"),
        (overlapping, "overlap"),
        (batch_merged, "batch"),
        (one_picture_only, "first picture"),
        (a_patch_for_each_channel, "channel"),
        (assumes_a_square, "square"),
        (assumes_colour, "three channels"),
        (flattened_too_early, "flatten"),
        (four_axes, "one axis"),
    ],
    "patches.unpatchify": [
        (back_by_reshape, "plain reshape"),
        (grid_beside_grid, "beside each other"),
        (grid_turned, "the grid is turned"),
        (inside_turned, "turned inside"),
        (picture_turned, "whole picture is turned"),
        (back_colour_last, "pixel after pixel"),
        (pixel_before_patch, "inside comes before"),
        (fold_not_transposed, "F.fold"),
        (channels_at_the_end, "channels"),
        (back_assumes_colour, "three channels"),
        (back_one_picture, "first picture"),
        (in_one_column, "below each other"),
        (grid_is_the_patch_size, "root of the number"),
    ],
    "patches.conv_equals_linear": [
        (shares_its_weight, "shares its memory"),
        (shares_its_bias, "shares its memory"),
        (reshaped_and_turned, "leave that one alone"),
        (no_bias, "bias did not come along"),
        (bias_always_random, "own random bias"),
        (zero_bias_where_none_is, "should have none"),
        (bias_not_copied, "kept the random numbers"),
        (weight_not_copied, "weight did not"),
        (nothing_copied, "nothing of conv's"),
        (pixels_first, "colour last"),
        (columns_first, "columns inside"),
        (kernel_turned, "turned the kernel round"),
        (colours_reversed, "colours"),
        (summed_over_colours, "a patch has 3 x"),
        (weight_not_flattened, "axes"),
        (sizes_the_wrong_way, "other way round"),
        (a_function, "nn.Linear"),
        (the_convolution_itself, "nn.Linear"),
        (copies_outside_no_grad, "requires grad"),
        (bias_must_be_there, "may come without a bias"),
    ],
    "patches.add_positions": [
        (NotAdded, "not added"),
        (ReshapedAtOnce, "in one go"),
        (AddedBeforeTheSwap, "before the two axes were swapped"),
        (NeverSwapped, "Swap the two axes"),
        (ColumnByColumn, "column by column"),
        (StrideOne, "stride"),
        (NoBias, "no bias"),
        (PlainTensor, "nn.Parameter"),
        (Buffer, "nn.Parameter"),
        (Multiplied, "multiplied"),
        (Subtracted, "subtracted"),
        (ReversedPlaces, "backwards"),
        (Twice, "twice"),
        (FirstOnly, "position of patch 0"),
        (Detached, "No gradient reaches position_embedding"),
        (WithoutGradients, "cut off by no_grad"),
        (InputDetached, "picture"),
        (StartsAtZero, "start alike"),
        (StartsAtOne, "drown"),
        (NamedOtherwise, "no parameter position_embedding"),
        (Activated, "non-linear"),
        (NewNumbersEachTime, "new random numbers"),
    ],
    "patches.resize_positions": [
        (reshaped_both_ways, "Both ways are a plain reshape"),
        (not_unfolded_properly, "plain reshape"),
        (stretched_as_a_line, "not the grid"),
        (bilinear, "bilinear"),
        (nearest, "nearest"),
        (area, "average"),
        (corners_aligned, "align_corners"),
        (antialiased, "antialias"),
        (folded_back_by_reshape, "on the way out"),
        (places_turned, "Rows and columns are swapped"),
        (still_a_grid, "grid"),
        (dim_in_the_middle, "dim"),
        (cut_off_or_filled_with_zeros, "zeros"),
        (used_again, "again from the start"),
        (whole_factor, "factor"),
        (detached, "gradient"),
        (without_gradients, "gradient"),
        (as_long_as_before, "length"),
        (batch_axis_lost, "first axis"),
    ],
    "patches.prepare": [
        (only_the_mode_mended, "two of the faults"),
        (mode_and_range_mended, "by a reshape"),
        (still_zero_to_one, "0 to 1"),
        (mode_forgotten, "Convert every picture"),
        (batch_forgotten, "batch is missing"),
        (batch_at_the_end, "batch"),
        (channels_last, "still last"),
        (axes_reversed, "Rows and columns are swapped"),
        (blue_first, "Red and blue"),
        (resized_by_nearest, "nearest"),
        (resized_bilinearly, "bilinearly"),
        (not_resized, "not resized"),
        (still_bytes, "still bytes"),
        (prepared_in_double, "expected float32"),
        (makes_a_thumbnail, "thumbnail"),
    ],
    "patches.where_over_what": [
        (standard_deviations, "standard deviations"),
        (lengths_themselves, "lengths themselves"),
        (what_over_where, "upside down"),
        (one_mean_for_all, "one number"),
        (mean_of_each_vector, "vector's own numbers"),
        (a_mean_for_each_picture, "a mean for each picture"),
        (a_mean_for_each_place, "place"),
        (squared, "squared"),
        (root_of_the_mean, "root of the mean square"),
        (absolute_values, "absolute"),
        (added_up, "added up"),
        (the_first_picture, "first picture"),
        (difference, "difference"),
        (still_a_tensor, ".item()"),
    ],
    "patches.test_patchify": [
        (shape_alone, "shape alone"),
        (zeros, "passes with everything"),
        (square_pictures, "is a square"),
        (three_channels, "three channels"),
        (one_channel, "have one channel"),
        (one_picture, "holds one picture"),
        (sorted_numbers, "sorts or sums"),
        (only_a_sum, "sorts or sums"),
        (says_true, "True or False"),
        (asks_for_channels_last, "does not do"),
        (the_first_patch, "first patch alone"),
        (fails_always, "patchify that is right"),
    ],
}
