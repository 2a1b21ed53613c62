"""The decoder: a Llama-style transformer, as SmolLM2 is (https://arxiv.org/abs/2502.02737)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nanovlm.config import LMConfig
from nanovlm.models.attention import attend
from nanovlm.tensor_types import Bool, Float, Int, Shaped

Rope = tuple[Float[Tensor, "#batch 1 length head_dim"], Float[Tensor, "#batch 1 length head_dim"]]  # cos and sin


class RMSNorm(nn.Module):
    """Scale each vector to root mean square 1, then by a learned weight. [..., dim] -> [..., dim]"""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


class RotaryEmbedding(nn.Module):
    """The angles of RoPE (Su et al. 2021, https://arxiv.org/abs/2104.09864).

    positions [B, T] -> cos and sin, each [B, 1, T, head_dim]
    """

    def __init__(self, head_dim: int, base: float) -> None:
        super().__init__()
        self.head_dim, self.base = head_dim, base

    def forward(self, positions: Int[Tensor, "batch length"]) -> Rope:
        # float32 whatever the model's type: in bfloat16 position 257 would be position 256. No buffer, for the same
        # reason: model.to(bfloat16) would round it.
        pairs = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=positions.device)
        frequencies = self.base ** (-pairs / self.head_dim)  # [head_dim / 2]
        angles = positions[:, None, :, None].float() * frequencies  # [B, 1, T, head_dim / 2]
        angles = torch.cat([angles, angles], dim=-1)  # [B, 1, T, head_dim]
        return angles.cos(), angles.sin()


def apply_rope(
    x: Float[Tensor, "batch num_heads length head_dim"],
    cos: Float[Tensor, "#batch 1 length head_dim"],
    sin: Float[Tensor, "#batch 1 length head_dim"],
) -> Float[Tensor, "batch num_heads length head_dim"]:
    """Rotate each pair (x[i], x[i + head_dim / 2]) by its position's angle. [B, num_heads, T, head_dim], same out."""
    first, second = x.chunk(2, dim=-1)
    rotated = torch.cat([-second, first], dim=-1)
    return x * cos.to(x.dtype) + rotated * sin.to(x.dtype)


class BlockCache:
    """One block's keys and values, [B, num_kv_heads, max_length, head_dim] each; the first `length` are filled."""

    def __init__(self, config: LMConfig, batch_size: int, max_length: int, like: Float[Tensor, "*any"]) -> None:
        shape = (batch_size, config.num_kv_heads, max_length, config.head_dim)
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)
        self.length = 0

    def update(
        self, k: Float[Tensor, "batch num_kv_heads new head_dim"], v: Float[Tensor, "batch num_kv_heads new head_dim"]
    ) -> tuple[Float[Tensor, "batch num_kv_heads seen head_dim"], Float[Tensor, "batch num_kv_heads seen head_dim"]]:
        """Store k, v [B, num_kv_heads, T, head_dim] behind what is there; return all of it."""
        end = self.length + k.shape[2]
        self.keys[:, :, self.length : end] = k
        self.values[:, :, self.length : end] = v
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class KVCache:
    """What the decoder has seen so far, in memory that is reserved once: one BlockCache a block."""

    def __init__(self, config: LMConfig, batch_size: int, max_length: int, like: Float[Tensor, "*any"]) -> None:
        self.blocks = [BlockCache(config, batch_size, max_length, like) for _ in range(config.num_blocks)]
        self.real = torch.zeros(batch_size, max_length, dtype=torch.bool, device=like.device)  # False: padding
        self.all_real = True

    @property
    def length(self) -> int:
        return self.blocks[0].length

    def layout(
        self, attention_mask: Shaped[Tensor, "batch {length}"] | None, length: int
    ) -> tuple[Int[Tensor, "#batch {length}"], Bool[Tensor, "#batch 1 {length} seen"] | None]:
        """Positions [B or 1, length] and mask of the next tokens; attention_mask [B, length] speaks of those alone."""
        start, end = self.length, self.length + length
        if end > self.real.shape[1]:
            raise ValueError(f"The cache has room for {self.real.shape[1]} tokens; these would be {end}.")
        self.real[:, start:end] = True if attention_mask is None else attention_mask.bool()
        self.all_real = self.all_real and (attention_mask is None or bool(attention_mask.all()))
        return attention_layout(None if self.all_real else self.real[:, :end], None, end, self.real.device, start)

    def select(self, rows: Int[Tensor, " new_batch"]) -> None:
        """Let row i go on from what row rows[i] has seen (beam search)."""
        self.real = self.real[rows]
        for block in self.blocks:
            block.keys, block.values = block.keys[rows], block.values[rows]


class GroupedQueryAttention(nn.Module):
    """Causal attention in which groups of query heads share one key/value head. [B, T, dim] -> [B, T, dim]"""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.hidden_dim, config.num_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_dim, config.num_kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_dim, config.num_kv_heads * config.head_dim, bias=False)
        self.out_proj = nn.Linear(config.hidden_dim, config.hidden_dim, bias=False)

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        rope: Rope,
        mask: Bool[Tensor, "#batch 1 length keys"] | None,
        cache: BlockCache | None = None,
    ) -> Float[Tensor, "batch length dim"]:
        """mask: bool [B, 1, T, keys], True where a query may look; None: causal, with nothing else to hide."""
        batch, length, dim = x.shape
        q = self.q_proj(x).view(batch, length, -1, self.head_dim).transpose(1, 2)  # [B, num_heads, T, head_dim]
        k = self.k_proj(x).view(batch, length, -1, self.head_dim).transpose(1, 2)  # [B, num_kv_heads, T, head_dim]
        v = self.v_proj(x).view(batch, length, -1, self.head_dim).transpose(1, 2)
        q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        if cache is not None:
            k, v = cache.update(k, v)  # [B, num_kv_heads, all positions so far, head_dim]
        x = attend(q, k, v, mask, is_causal=False if length == 1 else mask is None)
        return self.out_proj(x.transpose(1, 2).reshape(batch, length, dim))


class SwiGLU(nn.Module):
    """The gated MLP (Shazeer 2020, https://arxiv.org/abs/2002.05202). [B, T, dim] -> [B, T, dim]"""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_dim, config.inter_dim, bias=False)
        self.up_proj = nn.Linear(config.hidden_dim, config.inter_dim, bias=False)
        self.down_proj = nn.Linear(config.inter_dim, config.hidden_dim, bias=False)

    def forward(self, x: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length dim"]:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderBlock(nn.Module):
    """[B, T, dim] -> [B, T, dim]"""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.hidden_dim, config.rms_norm_eps)
        self.attn = GroupedQueryAttention(config)
        self.norm2 = RMSNorm(config.hidden_dim, config.rms_norm_eps)
        self.mlp = SwiGLU(config)

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        rope: Rope,
        mask: Bool[Tensor, "#batch 1 length keys"] | None,
        cache: BlockCache | None = None,
    ) -> Float[Tensor, "batch length dim"]:
        x = x + self.attn(self.norm1(x), rope, mask, cache)
        return x + self.mlp(self.norm2(x))


def attention_layout(
    attention_mask: Shaped[Tensor, "batch {length}"] | None,
    document_ids: Int[Tensor, "batch {length}"] | None,
    length: int,
    device: torch.device,
    start: int = 0,
) -> tuple[Int[Tensor, "#batch new"], Bool[Tensor, "#batch 1 new {length}"] | None]:
    """Who stands where, and who may look at whom.

    attention_mask [B, length] (nonzero: a real token) and document_ids [B, length] (packed rows; -1: padding) ->
    positions [B or 1, T] of the T = length - start last tokens, and the mask, bool [B, 1, T, length] or None where
    plain causal attention says it all. Positions count real tokens only, from 0 in each document, so that neither
    padding nor neighbours move a token.
    """
    index = torch.arange(length, device=device)
    if attention_mask is None and document_ids is None and (start == 0 or start == length - 1):
        return index[None, start:], None
    mask = (index[start:, None] >= index[None, :])[None]  # [1, T, length]: the past and oneself
    if attention_mask is not None:
        mask = mask & attention_mask.bool()[:, None, :]
    if document_ids is not None:
        mask = mask & (document_ids[:, start:, None] == document_ids[:, None, :]) & (document_ids >= 0)[:, None, :]
    positions = (mask.sum(dim=2) - 1).clamp(min=0)
    # A padding token may see itself: a row with nothing to look at would be 0 / 0.
    mask = mask | (index[start:, None] == index[None, :])
    return positions, mask[:, None]


class LanguageModel(nn.Module):
    """Token vectors in, token vectors out: [B, T, dim] -> [B, T, dim]. `head` turns them into logits."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_dim)
        self.rotary_embedding = RotaryEmbedding(config.head_dim, config.rope_base)
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.num_blocks))
        self.norm = RMSNorm(config.hidden_dim, config.rms_norm_eps)
        self.head = nn.Linear(config.hidden_dim, config.vocab_size, bias=False)
        if config.tie_weights:
            self.head.weight = self.token_embedding.weight
        self.gradient_checkpointing = False

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        attention_mask: Shaped[Tensor, "batch length"] | None = None,
        document_ids: Int[Tensor, "batch length"] | None = None,
        cache: KVCache | None = None,
        hidden_states: list[Tensor] | None = None,
    ) -> Float[Tensor, "batch length dim"]:
        """x: [B, T, dim]. With a cache, x is what comes after the cached positions. `hidden_states` collects the
        input of every block and the output."""
        if x.shape[1] + (0 if cache is None else cache.length) > self.config.max_positions:
            raise ValueError(
                f"The sequence is longer than this model's {self.config.max_positions} positions. Shorten the prompt."
            )
        positions, mask = self.layout(x, attention_mask, document_ids, cache)
        rope = self.rotary_embedding(positions)
        for i, block in enumerate(self.blocks):
            if hidden_states is not None:
                hidden_states.append(x)
            if self.gradient_checkpointing and self.training and cache is None:
                x = checkpoint(block, x, rope, mask, use_reentrant=False)
            else:
                x = block(x, rope, mask, cache.blocks[i] if cache is not None else None)
        x = self.norm(x)
        if hidden_states is not None:
            hidden_states.append(x)
        return x

    def layout(
        self,
        x: Float[Tensor, "batch length dim"],
        attention_mask: Shaped[Tensor, "batch length"] | None,
        document_ids: Int[Tensor, "batch length"] | None,
        cache: KVCache | None,
    ) -> tuple[Int[Tensor, "#batch length"], Any]:
        """Positions, and what every block gets as its mask: here a mask, in other designs what their blocks need."""
        if cache is None:
            return attention_layout(attention_mask, document_ids, x.shape[1], x.device)
        if document_ids is not None:
            raise ValueError("A cache goes on with one document a row: give document_ids or a cache, not both.")
        return cache.layout(attention_mask, x.shape[1])
