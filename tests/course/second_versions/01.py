"""Chapter 01 once more, written another way."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


def normalize(pixels: Tensor) -> Tensor:
    """A table of what each of the 256 bytes becomes."""
    table = torch.linspace(-1, 1, 256)
    return table[pixels.long()]


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """einops says it in one line."""
    return rearrange(images, "b c (h i) (w j) -> b (h w) (c i j)", i=patch_size, j=patch_size)


def unpatchify(patches: Tensor, patch_size: int) -> Tensor:
    """One patch at a time, into an empty picture."""
    batch, num_patches, wide = patches.shape
    grid, p = round(num_patches**0.5), patch_size
    image = torch.zeros(batch, wide // p**2, grid * p, grid * p)
    for patch in range(num_patches):
        row, column = divmod(patch, grid)
        square = patches[:, patch].reshape(batch, -1, p, p)
        image[:, :, row * p : (row + 1) * p, column * p : (column + 1) * p] = square
    return image


def linear_from_conv(conv: nn.Conv2d) -> nn.Linear:
    """The weight handed over by name."""
    linear = nn.Linear(conv.weight[0].numel(), conv.weight.shape[0], bias=conv.bias is not None)
    weights = {"weight": rearrange(conv.weight, "dim c i j -> dim (c i j)")}
    if conv.bias is not None:
        weights["bias"] = conv.bias
    linear.load_state_dict(weights)
    return linear


class PatchEmbedding(nn.Module):
    """By hand: cut, multiply, add."""

    def __init__(self, config) -> None:
        super().__init__()
        self.p = config.patch_size
        self.conv = nn.Conv2d(3, config.hidden_dim, self.p, stride=self.p)
        self.position_embedding = nn.Parameter(torch.randn(1, config.num_patches, config.hidden_dim) * 0.02)

    def forward(self, images: Tensor) -> Tensor:
        return F.linear(patchify(images, self.p), self.conv.weight.flatten(1), self.conv.bias) + self.position_embedding


def resize_positions(positions: Tensor, grid_size: int) -> Tensor:
    """Both sides with einops; the same grid needs no exception, since resizing to it changes nothing."""
    old = round(positions.shape[1] ** 0.5)
    grid = rearrange(positions, "1 (row column) dim -> 1 dim row column", row=old)
    grid = nn.Upsample((grid_size, grid_size), mode="bicubic", align_corners=False)(grid)
    return rearrange(grid, "1 dim row column -> 1 (row column) dim")


VERSIONS = {
    "patches.normalize": normalize,
    "patches.patchify": patchify,
    "patches.unpatchify": unpatchify,
    "patches.conv_equals_linear": linear_from_conv,
    "patches.add_positions": PatchEmbedding,
    "patches.resize_positions": resize_positions,
}
