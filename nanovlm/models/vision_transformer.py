"""The vision encoder: SigLIP's vision transformer (Zhai et al. 2023, https://arxiv.org/abs/2303.15343)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nanovlm.config import ViTConfig
from nanovlm.models.attention import attend
from nanovlm.tensor_types import Float


def resize_positions(
    positions: Float[Tensor, "1 old_patches dim"], grid_size: int
) -> Float[Tensor, "1 {grid_size}*{grid_size} dim"]:
    """Stretch learned positions to another grid: [1, old * old, dim] -> [1, grid_size * grid_size, dim]."""
    _, num_patches, dim = positions.shape
    old = round(num_patches**0.5)
    if old == grid_size:
        return positions
    grid = positions.reshape(1, old, old, dim).permute(0, 3, 1, 2)  # [1, dim, old, old]
    grid = F.interpolate(grid, size=(grid_size, grid_size), mode="bicubic", align_corners=False)
    return grid.flatten(2).transpose(1, 2)  # [1, grid_size * grid_size, dim]


class PatchEmbedding(nn.Module):
    """Cut the picture into patches, project each one, add its position. [B, 3, H, W] -> [B, num_patches, dim]"""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        # A convolution whose stride is its kernel size is one linear layer applied to every patch.
        self.conv = nn.Conv2d(3, config.hidden_dim, config.patch_size, stride=config.patch_size)
        self.position_embedding = nn.Parameter(torch.randn(1, config.num_patches, config.hidden_dim) * 0.02)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch num_patches dim"]:
        size = self.config.image_size
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise ValueError(f"The ViT expects pictures of shape [B, 3, {size}, {size}]; got {list(images.shape)}.")
        x = self.conv(images)  # [B, dim, grid, grid]
        x = x.flatten(2).transpose(1, 2)  # [B, num_patches, dim]
        return x + self.position_embedding


class ViTAttention(nn.Module):
    """Every patch looks at every patch. [B, N, dim] -> [B, N, dim]"""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv_proj = nn.Linear(config.hidden_dim, 3 * config.hidden_dim)
        self.out_proj = nn.Linear(config.hidden_dim, config.hidden_dim)

    def forward(self, x: Float[Tensor, "batch num_patches dim"]) -> Float[Tensor, "batch num_patches dim"]:
        batch, num_patches, dim = x.shape
        qkv = self.qkv_proj(x).view(batch, num_patches, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, num_heads, N, head_dim]
        x = attend(q, k, v)  # [B, num_heads, N, head_dim]
        return self.out_proj(x.transpose(1, 2).reshape(batch, num_patches, dim))


class ViTMLP(nn.Module):
    """Each patch on its own: widen, bend, narrow. [B, N, dim] -> [B, N, dim]"""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_dim, config.inter_dim)
        self.fc2 = nn.Linear(config.inter_dim, config.hidden_dim)

    def forward(self, x: Float[Tensor, "batch num_patches dim"]) -> Float[Tensor, "batch num_patches dim"]:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class ViTBlock(nn.Module):
    """Pre-norm: normalise, transform, add back. [B, N, dim] -> [B, N, dim]"""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(config.hidden_dim, eps=config.layer_norm_eps)
        self.attn = ViTAttention(config)
        self.ln2 = nn.LayerNorm(config.hidden_dim, eps=config.layer_norm_eps)
        self.mlp = ViTMLP(config)

    def forward(self, x: Float[Tensor, "batch num_patches dim"]) -> Float[Tensor, "batch num_patches dim"]:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class ViT(nn.Module):
    """Pictures to patch vectors. [B, 3, image_size, image_size] -> [B, num_patches, hidden_dim]"""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = PatchEmbedding(config)
        self.blocks = nn.ModuleList(ViTBlock(config) for _ in range(config.num_blocks))
        self.layer_norm = nn.LayerNorm(config.hidden_dim, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch num_patches dim"]:
        x = self.patch_embedding(images)
        for block in self.blocks:
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return self.layer_norm(x)
