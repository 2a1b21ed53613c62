"""Chapter 04 once more, written another way."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nanovlm.models import language_model as package


class Norm(nn.Module):
    """The size of a vector by its length: |x| / sqrt(n) is its root mean square."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps, self.dim = nn.Parameter(torch.ones(dim)), eps, dim

    def forward(self, x: Tensor) -> Tensor:
        length = x.double().norm(dim=-1, keepdim=True)
        return (self.weight * x / (length**2 / self.dim + self.eps).sqrt()).to(x.dtype)


class MLP(nn.Module):
    """Gate and up in one product of stacked weights, silu written out."""

    def __init__(self, config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_dim, config.inter_dim, bias=False)
        self.up_proj = nn.Linear(config.hidden_dim, config.inter_dim, bias=False)
        self.down_proj = nn.Linear(config.inter_dim, config.hidden_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        both = x @ torch.cat([self.gate_proj.weight, self.up_proj.weight]).mT
        gate, up = both.chunk(2, dim=-1)
        return self.down_proj(gate / (1 + (-gate).exp()) * up)


class Angles:
    """No module at all but for .to(): a table of loops, in Python's own floats."""

    def __init__(self, head_dim: int, base: float) -> None:
        self.frequencies = [base ** (-2 * (i % (head_dim // 2)) / head_dim) for i in range(head_dim)]

    def to(self, *args, **kwargs) -> Angles:
        return self

    def state_dict(self) -> dict:
        return {}

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = torch.stack([positions.double() * f for f in self.frequencies], dim=-1).unsqueeze(1)
        return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """A pair is a complex number; turning is multiplying."""
    half = x.shape[-1] // 2
    turn = torch.complex(cos[..., :half].double(), sin[..., :half].double())
    turned = torch.complex(x[..., :half].double(), x[..., half:].double()) * turn
    return torch.cat([turned.real, turned.imag], dim=-1).to(x.dtype)


def layout(attention_mask, document_ids, length, device, start=0):
    """Query by query, key by key."""
    rows = attention_mask if attention_mask is not None else torch.ones(1, length, dtype=torch.long, device=device)
    if document_ids is not None:
        rows = (document_ids >= 0) & (rows != 0)
    positions = torch.zeros(rows.shape, dtype=torch.long, device=device)
    mask = torch.zeros(rows.shape[0], 1, length, length, dtype=torch.bool, device=device)
    for row in range(rows.shape[0]):
        for query in range(length):
            seen = [
                key
                for key in range(query + 1)
                if rows[row, key] and (document_ids is None or document_ids[row, key] == document_ids[row, query])
            ]
            positions[row, query] = sum(key < query for key in seen)
            mask[row, 0, query, [*seen, query]] = True
    return positions[:, start:], mask[:, :, start:]


class Attention(nn.Module):
    """One query head after the other, softmax by hand, the mask made here."""

    def __init__(self, config) -> None:
        super().__init__()
        self.config, width = config, config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_dim, config.hidden_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_dim, width, bias=False)
        self.v_proj = nn.Linear(config.hidden_dim, width, bias=False)
        self.out_proj = nn.Linear(config.hidden_dim, config.hidden_dim, bias=False)

    def forward(self, x: Tensor, rope, mask, cache=None) -> Tensor:
        size = self.config.head_dim
        q = torch.stack(self.q_proj(x).split(size, dim=-1), dim=1)
        k = torch.stack(self.k_proj(x).split(size, dim=-1), dim=1)
        v = torch.stack(self.v_proj(x).split(size, dim=-1), dim=1)
        q, k = package.apply_rope(q, *rope), package.apply_rope(k, *rope)
        if cache is not None:
            k, v = cache.update(k, v)
        keys, queries = k.shape[2], q.shape[2]
        if mask is None:  # the queries are the last of the keys
            mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)[None, None]
        heads = []
        for head in range(self.config.num_heads):
            shared = head * self.config.num_kv_heads // self.config.num_heads
            scores = q[:, head] @ k[:, shared].mT / size**0.5
            weights = scores.masked_fill(~mask[:, 0], -torch.inf).softmax(dim=-1)
            heads.append(weights @ v[:, shared])
        return self.out_proj(torch.cat(heads, dim=-1))


class Block(nn.Module):
    """The two halves in a loop."""

    def __init__(self, config) -> None:
        super().__init__()
        self.norm1 = package.RMSNorm(config.hidden_dim, config.rms_norm_eps)
        self.norm2 = package.RMSNorm(config.hidden_dim, config.rms_norm_eps)
        self.attn, self.mlp = package.GroupedQueryAttention(config), package.SwiGLU(config)

    def forward(self, x: Tensor, rope, mask, cache=None) -> Tensor:
        for norm, work in (
            (self.norm1, lambda y: self.attn(y, rope, mask, cache)),
            (self.norm2, self.mlp),
        ):
            x = x + work(norm(x))
        return x


class Model(nn.Module):
    """The embedding tied to the head, not the head to the embedding; the angles made in forward."""

    def __init__(self, config) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_dim)
        self.head = nn.Linear(config.hidden_dim, config.vocab_size, bias=False)
        if config.tie_weights:
            self.token_embedding.weight = self.head.weight
        self.blocks = nn.ModuleList()
        for _ in range(config.num_blocks):
            self.blocks.append(package.DecoderBlock(config))
        self.norm = package.RMSNorm(config.hidden_dim, config.rms_norm_eps)
        self.config = config

    def forward(self, x, attention_mask=None, document_ids=None, cache=None, hidden_states=None) -> Tensor:
        length = x.shape[1]
        if cache is None:
            positions, mask = package.attention_layout(attention_mask, document_ids, length, x.device)
        else:
            positions, mask = cache.layout(attention_mask, length)
        rope = package.RotaryEmbedding(self.config.head_dim, self.config.rope_base)(positions)
        seen = [x]
        for block, memory in zip(self.blocks, cache.blocks if cache else [None] * len(self.blocks), strict=True):
            seen.append(block(seen[-1], rope, mask, memory))
        seen[-1] = self.norm(seen[-1])
        if hidden_states is not None:
            hidden_states.extend(seen)
        return seen[-1]


VERSIONS = {
    "decoder.rms_norm": Norm,
    "decoder.swiglu": MLP,
    "rope.angles": Angles,
    "rope.apply": rotate,
    "decoder.masks": layout,
    "decoder.gqa": Attention,
    "decoder.block": Block,
    "decoder.language_model": Model,
}
