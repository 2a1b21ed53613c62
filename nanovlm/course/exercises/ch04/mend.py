"""Chapter 04: a mask to mend, which adds numbers where bools belong."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from nanovlm.course.exercises.ch04.masks import pieces, who_sees_whom
from nanovlm.course.exercises.common import expect_gradients, expect_one_mask, noise
from nanovlm.course.judge.exercise import Case, Exercise, expect


def masked_attention(q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=who_sees_whom(attention_mask))


def run_masked(attend, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor):
    """What comes out at padding does not matter, as long as it is a number."""
    out = attend(q, k, v, attention_mask)
    if not isinstance(out, Tensor) or out.shape != q.shape:
        return out
    broken = (~out.isfinite()).any(dim=-1).any(dim=1)  # [B, T]
    at_padding = bool((broken & (attention_mask == 0)).any())
    expect(not at_padding, "At a padding token the result is NaN, and on the way back it spreads into every gradient.")
    return out.masked_fill(attention_mask[:, None, :, None] == 0, 0)


def _inputs(dtype: torch.dtype, seed: int, far_below: float = 0.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """far_below: all scores are about this much below 0."""
    q, k, v = (noise(2, 2, 5, 4, seed=seed + i) for i in range(3))
    side = (far_below / 2) ** 0.5
    padded = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    return (q + side).to(dtype), (k - side).to(dtype), v.to(dtype), padded


MEND = Exercise(
    id="decoder.mend_mask",
    chapter="04",
    title="Mend it: the mask that turns into NaN",
    difficulty=3,
    minutes=15,
    why="The same three lines are in many models. They work until somebody runs them in half precision, and then the "
    "first optimizer step destroys every weight.",
    hints=(
        "What is float32's smallest number in float16? And what is a softmax over nothing but minus infinity?",
        "Use a mask of bools in place of the numbers to add, and let every token see itself, so that no row is empty. "
        "scaled_dot_product_attention takes such a mask as attn_mask; written out, masked_fill does the same.",
        "T = q.shape[2]\n"
        "causal = torch.ones(T, T, dtype=torch.bool).tril()\n"
        "mask = causal & attention_mask.bool()[:, None, :]\n"
        "mask = mask | …                                    # no row may be empty\n"
        "return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None])",
    ),
    reference=masked_attention,
    cases=lambda: [
        Case(*_inputs(torch.float32, 0), note="float32, one of two rows padded on the left"),
        Case(*_inputs(torch.float16, 3), note="the same in float16"),
        Case(*_inputs(torch.float16, 6, far_below=40.0), note="float16, with all scores far below 0"),
        Case(*_inputs(torch.float32, 9, far_below=2e4), note="float32, with all scores near -20,000"),
    ],
    axes="batch heads length head_dim",
    call=run_masked,
    tolerance=2e-2,  # float16, in which right versions round in different places
)


@MEND.property("all gradients are finite and right")
def _(attend) -> None:
    *qkv, padded = _inputs(torch.float32, 0)
    shown = (padded != 0)[:, None, :, None]

    def run(attend, x: Tensor) -> Tensor:
        return torch.where(shown, attend(*x, padded), 0.0)

    expect_gradients(run, attend, masked_attention, torch.stack(qkv), "queries, keys and values")


@MEND.property("it runs with torch's plain kernel")
def _(attend) -> None:
    expect_one_mask(lambda: attend(*_inputs(torch.float32, 0)))


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mT / q.shape[-1] ** 0.5


def _written_out(weights: Callable[[Tensor, Tensor], Tensor]):
    """weights(scores, may look) -> [B, heads, T, T]"""
    return lambda q, k, v, m: weights(_scores(q, k), who_sees_whom(m)) @ v


def additive(q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    smallest, length = torch.finfo(dtype).min, q.shape[2]
    future = torch.ones(length, length, dtype=dtype).triu(1) * smallest
    padding = (1 - attention_mask.to(dtype))[:, None, None, :] * smallest
    return (_scores(q, k) + (future + padding).to(q.dtype)).softmax(dim=-1) @ v


MEND.mistake(
    "This is still the code that was to be mended: float32's smallest number becomes minus infinity in float16."
)(additive)
MEND.mistake(
    "The smallest number of the type at hand is added. Two of them, or one and a score far below 0, are minus infinity "
    "again: use bools."
)(lambda q, k, v, m: additive(q, k, v, m, q.dtype))


@MEND.mistake(
    "A padding token in front has nothing to look at: its row is hidden throughout, and its softmax is 0 / 0. Let every "
    "token see itself."
)
def _(q, k, v, attention_mask):
    causal, real, _ = pieces(attention_mask)
    return _scores(q, k).masked_fill(~(causal & real)[:, None], float("-inf")).softmax(dim=-1) @ v


MEND.mistake("The mask is applied after the softmax, so the weights no longer sum to 1. Hide the scores before it.")(
    _written_out(lambda s, m: s.softmax(dim=-1) * m)
)
MEND.mistake("The mask is upside down: the query sees exactly what it may not see.")(
    _written_out(lambda s, m: s.masked_fill(m, float("-inf")).softmax(dim=-1).nan_to_num())
)
MEND.mistake("The padding can be seen: only the future is hidden.")(
    lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, is_causal=True)
)
MEND.mistake("The future can be seen: only the padding is hidden.")(
    lambda q, k, v, m: F.scaled_dot_product_attention(
        q, k, v, attn_mask=(pieces(m)[1] | pieces(m)[2])[:, None].expand(-1, 1, q.shape[2], -1)
    )
)
MEND.mistake("-10 is not enough: a hidden score stays visible beside one that is lower still. Use bools.")(
    _written_out(lambda s, m: (s + (~m) * -10.0).to(s.dtype).softmax(dim=-1))
)
MEND.mistake(
    "Hidden places get a score of -10,000, and a real one may be lower still: then the hidden one is seen. Take minus "
    "infinity, with masked_fill or a mask of bools."
)(_written_out(lambda s, m: s.masked_fill(~m, -1e4).softmax(dim=-1)))
MEND.mistake("Hidden places get a score of 0, and exp(0) is 1: they are seen. Their score must be minus infinity.")(
    _written_out(lambda s, m: (s * m).softmax(dim=-1))
)
MEND.mistake("The scores are not divided by sqrt(head_dim).")(
    lambda q, k, v, m: (q @ k.mT).masked_fill(~who_sees_whom(m), float("-inf")).softmax(dim=-1) @ v
)
MEND.mistake("The softmax runs over the queries (dim -2). Each query's weights over the keys sum to 1: dim -1.")(
    _written_out(lambda s, m: s.masked_fill(~m, float("-inf")).softmax(dim=-2).nan_to_num())
)
MEND.mistake("The numbers are right, but not in the type that came in: return q's dtype.")(
    lambda q, k, v, m: masked_attention(q.float(), k.float(), v.float(), m)
)
