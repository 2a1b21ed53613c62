"""A projector with learned queries: the perceiver resampler (Jaegle et al. 2021, arXiv:2103.03206; Alayrac et al.
2022, arXiv:2204.14198)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nanovlm.config import ViTConfig, VLMConfig
from nanovlm.models.attention import attend
from nanovlm.models.vision_transformer import ViTMLP


class ResamplerBlock(nn.Module):
    """Queries look at patches, then each goes through an MLP.

    [P, queries, dim], [P, patches, dim] -> [P, queries, dim]
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dim, self.num_heads = config.hidden_dim, config.num_heads
        self.norm_queries, self.norm_patches = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.q_proj, self.k_proj = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.v_proj, self.out_proj = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.norm_mlp, self.mlp = nn.LayerNorm(dim), ViTMLP(config)

    def forward(self, queries: Tensor, patches: Tensor) -> Tensor:
        asked, patches = self.norm_queries(queries), self.norm_patches(patches)
        q, k, v = (
            layer(of)
            .unflatten(-1, (self.num_heads, -1))
            .transpose(1, 2)  # [P, num_heads, queries or patches, head_dim]
            for layer, of in ((self.q_proj, asked), (self.k_proj, patches), (self.v_proj, patches))
        )
        queries = queries + self.out_proj(attend(q, k, v).transpose(1, 2).flatten(2))
        return queries + self.mlp(self.norm_mlp(queries))


class Resampler(nn.Module):
    """[P, num_patches, vision_dim] -> [P, num_image_tokens, language_dim]

    As many queries as pixel shuffle makes tokens, for an equal comparison. Pixel shuffle says which patches a token
    stands for; here each query has to learn where to look, but the number of tokens is free of the grid.
    """

    def __init__(self, config: VLMConfig, num_blocks: int = 1) -> None:
        super().__init__()
        # Of unit length a number: equal queries would ask the same, and get the same gradient.
        self.queries = nn.Parameter(torch.randn(1, config.num_image_tokens, config.vision.hidden_dim))
        self.blocks = nn.ModuleList(ResamplerBlock(config.vision) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(config.vision.hidden_dim)
        self.proj = nn.Linear(config.vision.hidden_dim, config.language.hidden_dim, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        queries = self.queries.expand(features.shape[0], -1, -1)
        for block in self.blocks:
            queries = block(queries, features)
        return self.proj(self.norm(queries))
