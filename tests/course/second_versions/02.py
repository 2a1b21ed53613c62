"""Chapter 02 once more, written another way."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from nanovlm.models.vision_transformer import PatchEmbedding, ViTAttention, ViTBlock, ViTMLP


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One query at a time, and exp by hand."""
    rows = []
    for i in range(q.shape[-2]):
        scores = (k * q[..., i : i + 1, :]).sum(-1) / math.sqrt(k.shape[-1])  # [..., keys]
        shares = torch.exp(scores - scores.amax(-1, keepdim=True))
        rows.append((shares[..., None] * v).sum(-2) / shares.sum(-1, keepdim=True))
    return torch.stack(rows, dim=-2)


def split_heads(qkv: Tensor, num_heads: int) -> list[Tensor]:
    return list(rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=num_heads))


class Attention(nn.Module):
    """torch's own module, on the same weights."""

    def __init__(self, config) -> None:
        super().__init__()
        self.config = config
        self.qkv_proj = nn.Linear(config.hidden_dim, 3 * config.hidden_dim)
        self.out_proj = nn.Linear(config.hidden_dim, config.hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)  # [N, B, dim], as this function wants it
        out, _ = F.multi_head_attention_forward(
            x,
            x,
            x,
            self.config.hidden_dim,
            self.config.num_heads,
            self.qkv_proj.weight,
            self.qkv_proj.bias,
            None,
            None,
            False,
            0.0,
            self.out_proj.weight,
            self.out_proj.bias,
            need_weights=False,
        )
        return out.transpose(0, 1)


class MLP(nn.Module):
    """The tanh formula, spelt out."""

    def __init__(self, config) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_dim, config.inter_dim)
        self.fc2 = nn.Linear(config.inter_dim, config.hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        bent = x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return self.fc2(bent)


class Block(nn.Module):
    """The norm by hand, and the two steps in a loop."""

    def __init__(self, config) -> None:
        super().__init__()
        self.eps = config.layer_norm_eps
        self.ln1, self.ln2 = (nn.LayerNorm(config.hidden_dim) for _ in range(2))
        self.attn, self.mlp = ViTAttention(config), ViTMLP(config)

    def forward(self, x: Tensor) -> Tensor:
        for norm, layer in ((self.ln1, self.attn), (self.ln2, self.mlp)):
            centred = x - x.mean(-1, keepdim=True)
            spread = (centred.square().mean(-1, keepdim=True) + self.eps).sqrt()
            x = x + layer(centred / spread * norm.weight + norm.bias)
        return x


class Encoder(nn.Module):
    """A Sequential for the stack."""

    def __init__(self, config) -> None:
        super().__init__()
        self.patch_embedding = PatchEmbedding(config)
        self.blocks = nn.Sequential(*(ViTBlock(config) for _ in range(config.num_blocks)))
        self.layer_norm = nn.LayerNorm(config.hidden_dim, config.layer_norm_eps)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer_norm(self.blocks(self.patch_embedding(images)))


def count_parameters(config) -> int:
    """From a list of shapes."""
    d, inter = config.hidden_dim, config.inter_dim
    block = [(3 * d, d), (3 * d,), (d, d), (d,), (inter, d), (inter,), (d, inter), (d,), (d,), (d,), (d,), (d,)]
    once = [(d, 3, config.patch_size, config.patch_size), (d,), (config.num_patches, d), (d,), (d,)]
    return sum(math.prod(shape) for shape in once + config.num_blocks * block)


VERSIONS = {
    "vit.attention": attend,
    "vit.split_heads": split_heads,
    "vit.attention_module": Attention,
    "vit.mlp": MLP,
    "vit.block": Block,
    "vit.encoder": Encoder,
    "vit.count_parameters": count_parameters,
}
