"""Chapter 04: attention whose query heads share keys and values."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanovlm.config import LMConfig
from nanovlm.course.exercises.ch04.masks import ONE_PADDED
from nanovlm.course.exercises.ch04.norm_and_mlp import SMALL
from nanovlm.course.exercises.common import expect_gradients, expect_one_mask, noise
from nanovlm.course.judge.exercise import Case, Exercise, expect, with_weights
from nanovlm.models.language_model import (
    BlockCache,
    GroupedQueryAttention,
    RotaryEmbedding,
    apply_rope,
    attention_layout,
)

# -- decoder.gqa -------------------------------------------------------------------------------------------------------


def run_layer(
    layer: nn.Module, x: Tensor, config: LMConfig, padding: Tensor | None = None, one_by_one: bool = False
) -> Tensor:
    """Attention or a block on x [B, T, dim]: at once, or a token at a time through a cache."""
    rotary, (batch, length, _) = RotaryEmbedding(config.head_dim, config.rope_base), x.shape
    if not one_by_one:
        positions, mask = attention_layout(padding, None, length, x.device)
        return layer(x, rotary(positions), mask)
    cache = BlockCache(config, batch, length, like=x)
    steps = [layer(x[:, i : i + 1], rotary(torch.tensor([[i]])), None, cache) for i in range(length)]
    return torch.cat(steps, dim=1)


def run_attention(cls, x: Tensor, config: LMConfig, padding=None, one_by_one: bool = False) -> Tensor:
    return run_layer(with_weights(cls(config), like=GroupedQueryAttention(config)), x, config, padding, one_by_one)


GQA = Exercise(
    id="decoder.gqa",
    chapter="04",
    title="Heads that share keys and values",
    difficulty=3,
    minutes=20,
    why="Attention is the only place of the decoder where tokens exchange information. Sharing makes the KV cache of "
    "SmolLM2-135M three times smaller; sharing in the wrong order gives most heads keys that belong to others.",
    hints=(
        "The order: project, cut into heads, turn queries and keys, (cache), share, attend, join the heads, project.",
        "Cut: [B, T, heads * head_dim] -> [B, T, heads, head_dim] -> [B, heads, T, head_dim], and back the same way. "
        "Share: each key/value head serves num_heads / num_kv_heads query heads that *follow each other*: 0 0 1 1, "
        "not 0 1 0 1. A mask of None means causal, but a single new token may look at everything.",
        "q = self.q_proj(x).view(batch, length, -1, head_dim).transpose(1, 2)      # k and v alike; RoPE on q and k\n"
        "k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)                  # v alike\n"
        "x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=…)\n"
        "return self.out_proj(x.transpose(1, 2).reshape(batch, length, dim))",
    ),
    reference=GroupedQueryAttention,
    cases=lambda: [
        Case(noise(1, 3, 24), SMALL, note="three tokens, 4 query heads, 2 key/value heads"),
        Case(noise(2, 5, 24), SMALL, ONE_PADDED, note="two rows, one padded"),
        Case(noise(1, 4, 24, seed=1), SMALL, one_by_one=True, note="one token at a time, with a cache"),
        Case(noise(2, 4, 18), LMConfig(18, 20, 1, 9, 3, rope_base=30.0), note="9 query heads, 3 key/value heads"),
    ],
    axes="batch length dim",
    call=run_attention,
)


@GQA.property("the future cannot be seen")
def _(cls) -> None:
    layer, x = with_weights(cls(SMALL)), noise(1, 5, 24)
    changed = x.clone()
    changed[:, 3] += 1
    moved = (run_layer(layer, x, SMALL) - run_layer(layer, changed, SMALL)).abs().sum(dim=-1)[0] > 1e-6
    expect(not moved[:3].any(), "Changing token 3 changes the result of an earlier one.")


@GQA.property("one token at a time, through the cache, gives the same as all at once")
def _(cls) -> None:
    layer, x = with_weights(cls(SMALL)), noise(2, 6, 24)
    same = torch.allclose(run_layer(layer, x, SMALL), run_layer(layer, x, SMALL, one_by_one=True), atol=1e-5)
    expect(same, "With a cache, token by token, the result is another one.")


@GQA.property("gradients reach the input and every weight")
def _(cls) -> None:
    module, right = with_weights(cls(SMALL)), with_weights(GroupedQueryAttention(SMALL))
    expect_gradients(lambda layer, x: run_layer(layer, x, SMALL), module, right, noise(1, 4, 24))


@GQA.property("it runs with torch's plain kernel")
def _(cls) -> None:
    layer = with_weights(cls(SMALL))
    expect_one_mask(lambda: run_layer(layer, noise(2, 5, 24), SMALL, ONE_PADDED))


class _Attention(nn.Module):
    """Grouped-query attention to build wrong versions from."""

    bias, divide = False, True

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        dim, shared = config.hidden_dim, self.key_heads(config) * config.head_dim
        self.head_dim = config.head_dim
        self.q_proj, self.out_proj = nn.Linear(dim, dim, bias=self.bias), nn.Linear(dim, dim, bias=self.bias)
        self.k_proj, self.v_proj = nn.Linear(dim, shared, bias=self.bias), nn.Linear(dim, shared, bias=self.bias)

    def key_heads(self, config: LMConfig) -> int:
        return config.num_kv_heads

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (-1, self.head_dim)).transpose(1, 2)

    def rotate(self, q: Tensor, k: Tensor, v: Tensor, rope) -> tuple[Tensor, Tensor, Tensor]:
        return apply_rope(q, *rope), apply_rope(k, *rope), v

    def share(self, x: Tensor, groups: int) -> Tensor:
        return x.repeat_interleave(groups, dim=1)

    def causal(self, mask: Tensor | None, length: int) -> bool:
        return mask is None and length > 1

    def join(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)

    def forward(self, x: Tensor, rope, mask: Tensor | None, cache: BlockCache | None = None) -> Tensor:
        q, k, v = self.heads(self.q_proj(x)), self.heads(self.k_proj(x)), self.heads(self.v_proj(x))
        q, k, v = self.rotate(q, k, v, rope)
        if cache is not None:
            k, v = cache.update(k, v)
        groups, scale = q.shape[1] // k.shape[1], None if self.divide else 1.0
        k, v, causal = self.share(k, groups), self.share(v, groups), self.causal(mask, x.shape[1])
        return self.out_proj(self.join(F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale)))


@GQA.mistake(
    "The shared heads come in the wrong order: 0 1 0 1 (repeat) instead of 0 0 1 1 (repeat_interleave). Query heads "
    "that follow each other share one key/value head."
)
class _(_Attention):
    def share(self, x: Tensor, groups: int) -> Tensor:
        return x.repeat(1, groups, 1, 1)


@GQA.mistake(
    "The vectors are cut into heads with a view alone, which mixes tokens and heads. First [B, T, heads, head_dim], "
    "then swap T and heads."
)
class _(_Attention):
    def heads(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], -1, x.shape[1], self.head_dim)


@GQA.mistake(
    "The vectors are cut as [head_dim, heads]: a head gets every so-many-th number. A head is head_dim numbers in a "
    "row, so [B, T, heads, head_dim]."
)
class _(_Attention):
    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.head_dim, -1)).permute(0, 3, 1, 2)


@GQA.mistake(
    "The heads are joined without swapping back: from [B, heads, T, head_dim] transpose to [B, T, heads, head_dim] "
    "before you reshape to [B, T, dim]."
)
class _(_Attention):
    def join(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[2], -1)


@GQA.mistake("There is no RoPE: queries and keys must be turned before they meet.")
class _(_Attention):
    def rotate(self, q: Tensor, k: Tensor, v: Tensor, rope) -> tuple[Tensor, Tensor, Tensor]:
        return q, k, v


@GQA.mistake("Only the queries are turned. The product depends on the distance only if the keys are turned as well.")
class _(_Attention):
    def rotate(self, q: Tensor, k: Tensor, v: Tensor, rope) -> tuple[Tensor, Tensor, Tensor]:
        return apply_rope(q, *rope), k, v


@GQA.mistake("The values are turned too. RoPE belongs to queries and keys, which are compared; values are only summed.")
class _(_Attention):
    def rotate(self, q: Tensor, k: Tensor, v: Tensor, rope) -> tuple[Tensor, Tensor, Tensor]:
        return apply_rope(q, *rope), apply_rope(k, *rope), apply_rope(v, *rope)


@GQA.mistake("With mask=None the future can be seen. None means causal here, so is_causal must be True then.")
class _(_Attention):
    def causal(self, mask: Tensor | None, length: int) -> bool:
        return False


@GQA.mistake(
    "With a cache, the one new token sees only the very first: is_causal lines up query 0 with key 0. A single query "
    "comes last, and may look at all keys: no causal mask when length is 1."
)
class _(_Attention):
    def causal(self, mask: Tensor | None, length: int) -> bool:
        return mask is None


@GQA.mistake("The mask is not used, so padding can be seen: hand it to scaled_dot_product_attention as attn_mask.")
class _(_Attention):
    def forward(self, x: Tensor, rope, mask: Tensor | None, cache: BlockCache | None = None) -> Tensor:
        return super().forward(x, rope, None, cache)


@GQA.mistake("The scores are sqrt(head_dim) too large: divide them by it before the softmax.")
class _(_Attention):
    divide = False


@GQA.mistake("k_proj and v_proj are as wide as q_proj: that is ordinary attention. They make num_kv_heads heads.")
class _(_Attention):
    def key_heads(self, config: LMConfig) -> int:
        return config.num_heads


@GQA.mistake("The projections have biases; Llama's have none (bias=False), and its weights would not fit.")
class _(_Attention):
    bias = True


def _wrong_weights(sentence: str, weights) -> None:
    """weights(scores, may look, head_dim, dim) -> [B, heads, T, keys]"""

    class Wrong(_Attention):
        def forward(self, x: Tensor, rope, mask: Tensor | None, cache: BlockCache | None = None) -> Tensor:
            q, k, v = self.heads(self.q_proj(x)), self.heads(self.k_proj(x)), self.heads(self.v_proj(x))
            q, k, v = self.rotate(q, k, v, rope)
            if cache is not None:
                k, v = cache.update(k, v)
            k, v = (self.share(t, q.shape[1] // k.shape[1]) for t in (k, v))
            if mask is None:
                mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
            return self.out_proj(self.join(weights(q @ k.mT, mask, self.head_dim, x.shape[-1]) @ v))

    GQA.mistake(sentence)(Wrong)


def _hidden(scores: Tensor, mask: Tensor) -> Tensor:
    return scores.masked_fill(~mask, float("-inf"))


_wrong_weights(
    "The scores are divided by the root of the width of the whole vector, dim. Each head compares head_dim numbers, so "
    "divide by sqrt(head_dim).",
    lambda scores, mask, head_dim, dim: _hidden(scores / dim**0.5, mask).softmax(dim=-1),
)
_wrong_weights(
    "The scores are divided by head_dim itself. Take its root.",
    lambda scores, mask, head_dim, dim: _hidden(scores / head_dim, mask).softmax(dim=-1),
)
_wrong_weights(
    "The mask is applied after the softmax, so the weights no longer sum to 1. Hide the scores before it.",
    lambda scores, mask, head_dim, dim: (scores / head_dim**0.5).softmax(dim=-1) * mask,
)
_wrong_weights(
    "The softmax runs over the queries (dim -2). Each query's weights over the keys sum to 1: dim -1.",
    lambda scores, mask, head_dim, dim: _hidden(scores / head_dim**0.5, mask).softmax(dim=-2).nan_to_num(),
)


@GQA.mistake("The mask is inverted: with True where a query may look, it hides exactly what should be seen.")
class _(_Attention):
    def forward(self, x: Tensor, rope, mask: Tensor | None, cache: BlockCache | None = None) -> Tensor:
        return super().forward(x, rope, None if mask is None else ~mask, cache)


@GQA.mistake(
    "All query heads get the mean of the key/value heads: they are averaged. Give each group a head of its own."
)
class _(_Attention):
    def share(self, x: Tensor, groups: int) -> Tensor:
        return x.mean(dim=1, keepdim=True).expand(-1, groups * x.shape[1], -1, -1)


@GQA.mistake("The groups are reversed: the first query heads get the last key/value head.")
class _(_Attention):
    def share(self, x: Tensor, groups: int) -> Tensor:
        return x.flip(1).repeat_interleave(groups, dim=1)


@GQA.mistake("All query heads use the first key/value head. That is multi-query attention, with the others idle.")
class _(_Attention):
    def share(self, x: Tensor, groups: int) -> Tensor:
        return x[:, :1].expand(-1, groups * x.shape[1], -1, -1)


@GQA.mistake(
    "The keys go into the cache before they are turned. All keys that come back are then turned by the newest position: "
    "turn first, store then."
)
class _(_Attention):
    def forward(self, x: Tensor, rope, mask: Tensor | None, cache: BlockCache | None = None) -> Tensor:
        if cache is None:
            return super().forward(x, rope, mask)
        q, k, v = self.heads(self.q_proj(x)), self.heads(self.k_proj(x)), self.heads(self.v_proj(x))
        k, v = cache.update(k, v)
        cos, sin = (t[:, :, -k.shape[2] :] for t in rope)
        q, k = apply_rope(q, *rope), apply_rope(k, cos, sin)
        k, v = (self.share(t, q.shape[1] // k.shape[1]) for t in (k, v))
        return self.out_proj(self.join(F.scaled_dot_product_attention(q, k, v, mask)))


@GQA.mistake("out_proj is not used: the joined heads pass through it at the end.")
class _(_Attention):
    def forward(self, x: Tensor, rope, mask: Tensor | None, cache: BlockCache | None = None) -> Tensor:
        out_proj, self.out_proj = self.out_proj, nn.Identity()
        out = super().forward(x, rope, mask, cache)
        self.out_proj = out_proj
        return out


@GQA.part
def _(code, learner) -> None:
    code.language_model.GroupedQueryAttention = learner
