"""Chapter 03 once more, written another way."""

from __future__ import annotations

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


VERSIONS = {
    "pixel_shuffle.shuffle": pixel_shuffle,
    "pixel_shuffle.unshuffle": pixel_unshuffle,
    "pixel_shuffle.patch_map": patch_map,
    "pixel_shuffle.projector": Projector,
    "pixel_shuffle.token_budget": token_budget,
}
