"""Chapter 01 once more, written another way."""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from PIL import Image
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


def mean_and_std(pixels):
    return (pixels.to(torch.float32) / 255.0 - 0.5) / 0.5


def in_place_on_its_own(pixels):
    x = pixels.float()
    x *= 2 / 255
    x -= 1
    return x


def by_interpolation(pixels):
    return torch.lerp(torch.tensor(-1.0), torch.tensor(1.0), pixels.float() / 255)


def through_double(pixels):
    return (pixels.double() * 2 / 255 - 1).float()


def channel_by_channel(pixels):
    return torch.stack([channel.float().sub(127.5).div(127.5) for channel in pixels])


def with_loops(images, patch_size):
    p, out = patch_size, []
    for image in images:
        rows = []
        for top in range(0, image.shape[1], p):
            for left in range(0, image.shape[2], p):
                rows.append(image[:, top : top + p, left : left + p].flatten())
        out.append(torch.stack(rows))
    return torch.stack(out)


def with_unfold(images, patch_size):
    return F.unfold(images, kernel_size=patch_size, stride=patch_size).permute(0, 2, 1)


def with_tensor_unfold(images, patch_size):
    x = images.unfold(2, patch_size, patch_size).unfold(3, patch_size, patch_size)
    return x.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def with_pixel_unshuffle(images, patch_size):
    return F.pixel_unshuffle(images, patch_size).flatten(2).mT


def with_a_convolution(images, patch_size):
    wide = images.shape[1] * patch_size**2
    kernel = torch.eye(wide).reshape(wide, images.shape[1], patch_size, patch_size)
    return F.conv2d(images, kernel, stride=patch_size).flatten(2).transpose(1, 2)


def with_chunks(images, patch_size):
    rows = images.split(patch_size, dim=2)
    return torch.stack([square.flatten(1) for row in rows for square in row.split(patch_size, dim=3)], dim=1)


def back_with_fold(patches, patch_size):
    side = int(patches.size(1) ** 0.5 + 0.5) * patch_size
    return F.fold(patches.mT.contiguous(), output_size=side, kernel_size=patch_size, stride=patch_size)


def back_with_pixel_shuffle(patches, patch_size):
    grid = round(patches.shape[1] ** 0.5)
    return F.pixel_shuffle(patches.mT.unflatten(2, (grid, grid)), patch_size)


def back_with_einops(patches, patch_size):
    grid = round(patches.shape[1] ** 0.5)
    return rearrange(patches, "b (h w) (c i j) -> b c (h i) (w j)", h=grid, i=patch_size, j=patch_size)


def back_with_cat(patches, patch_size):
    grid = round(patches.shape[1] ** 0.5)
    squares = patches.unflatten(2, (-1, patch_size, patch_size))
    rows = [torch.cat([squares[:, r * grid + c] for c in range(grid)], dim=-1) for r in range(grid)]
    return torch.cat(rows, dim=-2)


def back_with_movedim(patches, patch_size):
    b, n, wide = patches.shape
    g = round(n**0.5)
    x = patches.view(b, g, g, wide // patch_size**2, patch_size, patch_size)
    return torch.einsum("bhwcij->bchiwj", x).contiguous().view(b, -1, g * patch_size, g * patch_size)


def linear_with_data(conv):
    linear = nn.Linear(conv.weight[0].numel(), conv.out_channels, bias=conv.bias is not None)
    linear.weight.data = conv.weight.data.view(conv.out_channels, -1).clone()
    if conv.bias is not None:
        linear.bias.data = conv.bias.data.clone()
    return linear


def linear_with_new_parameters(conv):
    linear = nn.Linear(3 * conv.kernel_size[0] ** 2, conv.out_channels, conv.bias is not None)
    linear.weight = nn.Parameter(conv.weight.detach().flatten(1).clone())
    if conv.bias is not None:
        linear.bias = nn.Parameter(conv.bias.detach().clone())
    return linear


def linear_asked_by_basis(conv):
    c, p = conv.in_channels, conv.kernel_size[0]
    basis = torch.eye(c * p * p).view(-1, c, p, p)
    linear = nn.Linear(c * p * p, conv.out_channels)
    with torch.no_grad():
        linear.weight[:] = torch.nn.functional.conv2d(basis, conv.weight).flatten(1).T
        if conv.bias is None:
            linear.bias = None
        else:
            linear.bias[:] = conv.bias
    return linear


@torch.no_grad()
def linear_row_by_row(conv):
    linear = nn.Linear(conv.weight[0].numel(), conv.out_channels, bias=conv.bias is not None)
    for i in range(conv.out_channels):
        linear.weight[i] = conv.weight[i].flatten()
    if linear.bias is not None:
        linear.bias.set_(conv.bias.clone())
    return linear


class WithEinops(PatchEmbedding):
    def forward(self, images):
        return rearrange(self.conv(images), "b d h w -> b (h w) d") + self.position_embedding


class WithExpandedPositions(PatchEmbedding):
    def forward(self, images):
        x = self.conv(images).flatten(start_dim=2).permute(0, 2, 1)
        return x.add(self.position_embedding.expand(len(images), -1, -1))


class WithPositionsOnTheGrid(PatchEmbedding):
    def forward(self, images):
        x = self.conv(images)
        grid = self.position_embedding.mT.unflatten(2, x.shape[2:])
        return (x + grid).flatten(2).mT


class WithNormalInit(PatchEmbedding):
    def __init__(self, config):
        super().__init__(config)
        nn.init.normal_(self.position_embedding, std=0.02)

    def forward(self, images):
        x = self.conv(images)
        x = x.reshape(*x.shape[:2], -1).transpose(-2, -1)
        x += self.position_embedding
        return x


class WithTruncatedInit(PatchEmbedding):
    def __init__(self, config):
        super().__init__(config)
        nn.init.trunc_normal_(self.position_embedding, std=0.02)


def resized_always(positions, grid_size):
    old = int(positions.shape[1] ** 0.5 + 0.5)
    x = positions.mT.reshape(1, -1, old, old)
    x = F.interpolate(x, size=grid_size, mode="bicubic", align_corners=False)
    return x.reshape(1, positions.shape[-1], -1).mT


def resized_with_default_corners(positions, grid_size):
    _, n, dim = positions.shape
    grid = positions.unflatten(1, (round(n**0.5), -1)).movedim(-1, 1)
    return F.interpolate(grid, (grid_size, grid_size), mode="bicubic").movedim(1, -1).reshape(1, -1, dim)


def resized_dim_by_dim(positions, grid_size):
    old = round(positions.shape[1] ** 0.5)
    planes = [
        F.interpolate(positions[..., d].reshape(1, 1, old, old), (grid_size, grid_size), mode="bicubic").flatten()
        for d in range(positions.shape[2])
    ]
    return torch.stack(planes, dim=1)[None]


def resized_by_factor(positions, grid_size):
    old = round(positions.shape[1] ** 0.5)
    grid = rearrange(positions, "1 (h w) d -> 1 d h w", h=old)
    scale = (grid_size / old, grid_size / old)
    grid = F.interpolate(grid, scale_factor=scale, mode="bicubic", align_corners=False)
    return rearrange(grid, "1 d h w -> 1 (h w) d")


def prepare_in_two_steps(image, size):
    x = np.asarray(image.convert("RGB").resize((size, size), resample=Image.BICUBIC), dtype=np.float32)
    return torch.from_numpy((x.transpose(2, 0, 1)[None] / 255 - 0.5) / 0.5)


def prepare_resizing_each_channel(image, size):
    channels = [channel.resize((size, size), Image.Resampling.BICUBIC) for channel in image.convert("RGB").split()]
    return torch.stack([torch.tensor(list(c.tobytes())).reshape(size, size) for c in channels])[None] / 127.5 - 1


def prepare_with_movedim(image, size):
    x = torch.tensor(np.array(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)), dtype=torch.float32)
    return x.movedim(-1, 0).unsqueeze(0).sub(127.5).div(127.5)


def prepare_with_einops(image, size):
    x = torch.as_tensor(np.array(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)))
    return rearrange(x, "h w c -> 1 c h w").float().mul(2 / 255).sub(1)


def prepare_with_interleaved_bytes(image, size):
    small = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    flat = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).float()
    return torch.stack([flat[c::3].reshape(size, size) for c in range(3)]).div(255).sub(0.5).div(0.5)[None]


def ratio_with_loops(what, where):
    def spread(vectors):
        vectors = [v for sample in vectors for v in sample]
        centre = sum(vectors) / len(vectors)
        return sum(((v - centre) ** 2).sum().item() ** 0.5 for v in vectors) / len(vectors)

    return spread(where) / spread(what)


def ratio_with_cdist(what, where):
    a, b = where.reshape(-1, where.shape[-1]), what.reshape(-1, what.shape[-1])
    return (torch.cdist(a, a.mean(0, keepdim=True)).mean() / torch.cdist(b, b.mean(0, keepdim=True)).mean()).item()


def ratio_with_numpy(what, where):
    a, b = (v.double().numpy().reshape(-1, v.shape[-1]) for v in (where, what))
    a, b = (np.linalg.norm(v - v.mean(axis=0), axis=1).mean() for v in (a, b))
    return float(a / b)


def ratio_over_both_axes(what, where):
    a, b = ((v - v.mean(dim=(0, 1), keepdim=True)).norm(dim=2).mean() for v in (where, what))
    return float(a / b)


def ratio_by_hypot(what, where):
    spread = []
    for v in (what, where):
        v = rearrange(v, "b n d -> (b n) d")
        spread.append(torch.linalg.vector_norm(v - v.mean(0), dim=1).mean().item())
    return spread[1] / spread[0]


def tests_against_unfold(patchify):
    images = torch.randn(2, 2, 4, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(patchify(images, 2), F.unfold(images, 2, stride=2).mT)


def tests_by_slices(patchify):
    images = torch.arange(2 * 2 * 6 * 4.0).reshape(2, 2, 6, 4)
    out = patchify(images, 2)
    assert tuple(out.shape) == (2, 6, 8)
    for patch in range(6):
        row, column = divmod(patch, 2)
        square = images[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert torch.equal(out[:, patch], square.flatten(1)), f"patch {patch}"


def tests_three_pictures(patchify):
    for shape in ((1, 1, 4, 4), (2, 2, 4, 8), (3, 2, 9, 3)):
        p = 3 if shape[2] == 9 else 2
        images = torch.arange(float(np.prod(shape))).reshape(shape)
        out = patchify(images, p)
        wanted = rearrange(images, "b c (h i) (w j) -> b (h w) (c i j)", i=p, j=p)
        if out.shape != wanted.shape or not torch.equal(out, wanted):
            raise AssertionError(f"wrong for {shape}")


def tests_the_way_back(patchify):
    images = torch.randn(2, 2, 6, 4, generator=torch.Generator().manual_seed(1))
    out = patchify(images, 2)
    assert out.shape == (2, 6, 8)
    assert torch.equal(F.fold(out.mT, (6, 4), 2, stride=2), images)


def tests_one_patch_of_each(patchify):
    images = torch.arange(96.0).reshape(2, 2, 6, 4)
    out = patchify(images, 2)
    assert out.shape == (2, 6, 8) and out[0, 0].tolist() == [0, 1, 4, 5, 24, 25, 28, 29]
    assert out[0, 1].tolist() == [2, 3, 6, 7, 26, 27, 30, 31]
    assert out[1, 5, 0] == 48 + 18


def tests_with_whole_numbers(patchify):
    """The exercise draws its example in whole numbers."""
    out = patchify(torch.arange(16).reshape(1, 1, 4, 4), 2)
    assert out.tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]]
    images = torch.arange(64).reshape(2, 2, 2, 8)
    out = patchify(images, 2)
    assert out[0, 1].tolist() == [2, 3, 10, 11, 18, 19, 26, 27] and out[1].equal(out[0] + 32)


VERSIONS = {
    "patches.normalize": (
        normalize,
        mean_and_std,
        in_place_on_its_own,
        by_interpolation,
        through_double,
        channel_by_channel,
    ),
    "patches.patchify": (
        patchify,
        with_loops,
        with_unfold,
        with_tensor_unfold,
        with_pixel_unshuffle,
        with_a_convolution,
        with_chunks,
    ),
    "patches.unpatchify": (
        unpatchify,
        back_with_fold,
        back_with_pixel_shuffle,
        back_with_einops,
        back_with_cat,
        back_with_movedim,
    ),
    "patches.conv_equals_linear": (
        linear_from_conv,
        linear_with_data,
        linear_with_new_parameters,
        linear_asked_by_basis,
        linear_row_by_row,
    ),
    "patches.add_positions": (
        PatchEmbedding,
        WithEinops,
        WithExpandedPositions,
        WithPositionsOnTheGrid,
        WithNormalInit,
        WithTruncatedInit,
    ),
    "patches.resize_positions": (
        resize_positions,
        resized_always,
        resized_with_default_corners,
        resized_dim_by_dim,
        resized_by_factor,
    ),
    "patches.prepare": (
        prepare_in_two_steps,
        prepare_resizing_each_channel,
        prepare_with_movedim,
        prepare_with_einops,
        prepare_with_interleaved_bytes,
    ),
    "patches.where_over_what": (
        ratio_with_loops,
        ratio_with_cdist,
        ratio_with_numpy,
        ratio_over_both_axes,
        ratio_by_hypot,
    ),
    "patches.test_patchify": (
        tests_against_unfold,
        tests_by_slices,
        tests_three_pictures,
        tests_the_way_back,
        tests_one_patch_of_each,
        tests_with_whole_numbers,
    ),
}
