"""A light convolutional encoder in the place of the vision transformer.

Inverted bottlenecks with depthwise-separable kernels (MobileNetV2, Sandler et al. 2018, arXiv:1801.04381), channel
attention by squeeze and excitation (Hu et al. 2017, arXiv:1709.01507), and a last pointwise product of low rank
(Jaderberg et al. 2014, arXiv:1405.3866).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nanovlm.config import VLMConfig

EXPANSION = 2  # channels inside a block to channels outside
REDUCTION = 4  # what squeeze-excitation and the low rank divide the channels by


class SqueezeExcitation(nn.Module):
    """Each channel is scaled by a number in (0, 1) that the means of all channels decide. [P, C, H, W], same out"""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, max(1, channels // REDUCTION))
        self.excite = nn.Linear(max(1, channels // REDUCTION), channels)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.excite(F.silu(self.squeeze(x.mean(dim=(2, 3))))).sigmoid()  # [P, C]
        return x * scale[:, :, None, None]


class InvertedBottleneck(nn.Module):
    """[P, channels, H, W] -> [P, out_channels, H / stride, W / stride]

    A full 3x3 kernel mixes places and channels at once, in 9 C^2 products a place; here a depthwise kernel mixes the
    places (9 C) and pointwise ones the channels. The norm is over one picture: a batch norm would let the pictures of
    a batch change one another's answers.
    """

    def __init__(self, channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        inner, rank = EXPANSION * channels, max(1, out_channels // REDUCTION)
        self.norm = nn.GroupNorm(1, channels)
        self.expand = nn.Conv2d(channels, inner, 1)
        self.depthwise = spatial_conv(inner, inner, stride, groups=inner)
        self.attention = SqueezeExcitation(inner)
        self.reduce = nn.Conv2d(inner, rank, 1, bias=False)  # the two factors of a pointwise matrix of low rank
        self.project = nn.Conv2d(rank, out_channels, 1)
        self.residual = stride == 1 and channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        inner = F.silu(self.expand(self.norm(x)))  # [P, inner, H, W]
        inner = self.attention(F.silu(self.depthwise(inner)))  # [P, inner, H / stride, W / stride]
        out = self.project(self.reduce(inner))
        return x + out if self.residual else out


def spatial_conv(channels: int, out_channels: int, stride: int, groups: int = 1) -> nn.Conv2d:
    """3x3, or as large as the stride where that is larger; H -> H / stride for H that the stride divides."""
    return nn.Conv2d(channels, out_channels, max(3, stride), stride, padding=int(stride <= 2), groups=groups)


def init_conv(module: nn.Module) -> None:
    """As large behind a convolution as in front of it, without a bias (He et al. 2015, arXiv:1502.01852). torch's own
    start divides the variance by 3 at each, and behind a few of them biases are all that is left of a picture."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def strides_of(patch_size: int) -> list[int]:
    """Steps of two whose product is the patch size, and what is left: 8 -> [2, 2, 2], 14 -> [2, 7]."""
    strides = []
    while patch_size % 2 == 0:
        strides.append(2)
        patch_size //= 2
    return [*strides, patch_size] if patch_size > 1 or not strides else strides


class LightCNN(nn.Module):
    """[P, 3, image_size, image_size] -> [P, num_patches, hidden_dim], or, pooled, [P, 1, hidden_dim]

    The map has as many places as the vision transformer has patches, so that the same projector takes it: blocks of
    stride 2 shrink the picture to it, and num_blocks further ones keep its size.
    """

    def __init__(self, config: VLMConfig, pooled: bool = False) -> None:
        super().__init__()
        self.config, self.pooled = config.vision, pooled
        width, strides = self.config.hidden_dim, strides_of(self.config.patch_size)
        widths = [max(8, width >> steps) for steps in range(len(strides) - 1, 0, -1)] + [width]
        self.stem = spatial_conv(3, widths[0], strides[0])
        stages = [
            InvertedBottleneck(narrow, wide, stride)
            for narrow, wide, stride in zip(widths, widths[1:], strides[1:], strict=False)
        ]
        self.blocks = nn.ModuleList(
            [*stages, *(InvertedBottleneck(width, width) for _ in range(self.config.num_blocks))]
        )
        self.norm = nn.LayerNorm(width, eps=self.config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.apply(init_conv)

    def forward(self, images: Tensor) -> Tensor:
        size, used = self.config.image_size, self.config.grid_size * self.config.patch_size
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise ValueError(f"The CNN expects pictures of shape [B, 3, {size}, {size}]; got {list(images.shape)}.")
        x = self.stem(images[:, :, :used, :used])
        for block in self.blocks:
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        x = self.norm(x.flatten(2).transpose(1, 2))  # [P, num_patches, hidden_dim]
        return x.mean(dim=1, keepdim=True) if self.pooled else x


class PooledProjector(nn.Module):
    """One vector a picture, the same at each of its placeholders: [P, 1, vision_dim] -> [P, num_image_tokens, dim]"""

    def __init__(self, config: VLMConfig) -> None:
        super().__init__()
        self.num_image_tokens = config.num_image_tokens
        self.proj = nn.Linear(config.vision.hidden_dim, config.language.hidden_dim, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        return self.proj(features).expand(-1, self.num_image_tokens, -1)
