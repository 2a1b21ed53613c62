"""Attention that costs less than every query with every key: linear attention, and a local window with sinks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nanovlm.config import VLMConfig
from nanovlm.designs.marked import MarkedLanguageModel, Seen
from nanovlm.models.language_model import BlockCache, GroupedQueryAttention, LanguageModel, Rope, apply_rope


def feature_map(x: Tensor) -> Tensor:
    """Positive numbers, so that no sum of weights is 0. [..., head_dim], same out"""
    return F.elu(x) + 1


def attend_linearly(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention with weights phi(q) phi(k)^T instead of their softmax (Katharopoulos et al. 2020,
    arXiv:2006.16236).

    q, k, v [B, num_heads, T, head_dim] -> [B, num_heads, T, head_dim], in T head_dim^2 operations: the products of
    keys and values are summed once, and every query reads the sum up to its place.
    """
    q, k = feature_map(q), feature_map(k)
    states = torch.einsum("bhtd,bhte->bhtde", k, v).cumsum(dim=2)  # [B, num_heads, T, head_dim, head_dim]
    weights = torch.einsum("bhtd,bhtd->bht", q, k.cumsum(dim=2))
    return torch.einsum("bhtd,bhtde->bhte", q, states) / weights[..., None]


def attend_linearly_masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """The same weights written out as a matrix [T, keys], of which a mask, bool [B or 1, 1, T, keys], can hide some.

    For padding and packed rows, which one running sum cannot leave out, and for queries behind a cache.
    """
    weights = (feature_map(q) @ feature_map(k).mT).masked_fill(~mask, 0.0)  # [B, num_heads, T, keys]
    return weights @ v / weights.sum(dim=-1, keepdim=True)


class LinearAttention(GroupedQueryAttention):
    """[B, T, dim] -> [B, T, dim]. With a cache it reads all keys, as softmax does; a state of head_dim^2 numbers a head
    would be enough, and is what makes linear attention cheap at long answers."""

    def forward(self, x: Tensor, rope: Rope, mask: Tensor | None, cache: BlockCache | None = None) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [B, heads, T, head_dim]
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        if cache is not None:
            k, v = cache.update(k, v)
        k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], dim=1) for part in (k, v))
        if mask is None and k.shape[2] == q.shape[2]:
            x = attend_linearly(q, k, v)
        else:  # without a mask, the one query behind a cache sees all
            x = attend_linearly_masked(q, k, v, q.new_ones(1, dtype=torch.bool) if mask is None else mask)
        return self.out_proj(x.transpose(1, 2).flatten(2))


class LinearAttentionDecoder(LanguageModel):
    """[B, S, dim] -> [B, S, dim]"""

    def __init__(self, config: VLMConfig) -> None:
        super().__init__(config.language)
        for block in self.blocks:
            block.attn = LinearAttention(config.language)


def window_with_sinks(visible: Tensor, window: int, sinks: int) -> Tensor:
    """Of what each query may see (bool [B or 1, 1, S, keys]) the last `window` keys and the first `sinks`; same shape.

    Counted among visible keys, so that padding and neighbours in a packed row take no place of the window.
    """
    rank = visible.cumsum(dim=-1)  # 1 for the first visible key
    from_end = rank[..., -1:] - rank  # 0 for the last
    return visible & ((from_end < window) | (rank <= sinks))


class LocalAttentionDecoder(MarkedLanguageModel):
    """A window (Longformer, Beltagy et al. 2020, arXiv:2004.05150) and the first tokens, on which softmax puts the
    weight that it needs nowhere else (StreamingLLM, Xiao et al. 2023, arXiv:2309.17453). [B, S, dim] -> [B, S, dim]

    What a word sees of a picture further back comes through the blocks below, a window at each. The mask only hides:
    operations are saved by a kernel that leaves hidden blocks out.
    """

    def __init__(self, config: VLMConfig, window: int = 16, sinks: int = 4) -> None:
        super().__init__(config)
        self.window, self.sinks = window, sinks

    def mask(self, seen: Seen) -> Tensor:
        return window_with_sinks(seen.visible, self.window, self.sinks)
