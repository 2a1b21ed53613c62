"""Chapter 02: attention, and how a vector is cut into heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nanovlm.course.exercises.common import expect_same_gradients, noise
from nanovlm.course.judge.exercise import Case, Exercise, expect

# -- vit.attention -----------------------------------------------------------------------------------------------------


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What PyTorch has built in, on the same three arguments."""
    return F.scaled_dot_product_attention(q, k, v)


ATTENTION = Exercise(
    id="vit.attention",
    chapter="02",
    title="Attention in three lines",
    difficulty=2,
    minutes=10,
    why="Attention is the only place in a transformer where one patch learns anything about another. A softmax over "
    "the wrong axis or a forgotten scale runs without an error, and no shape gives it away.",
    hints=(
        "There are three steps: how well each query fits each key, which weight each value earns by that, and the "
        "weighted sum of the values.",
        "The scores are queries times keys, [num_queries, num_keys], divided by the square root of head_dim. A row of "
        "the table belongs to one query, and after the softmax each row must sum to 1. The output is that table times "
        "the values.",
        "scores = q @ k.transpose(-2, -1) / head_dim ** 0.5\nweights = scores.softmax(dim=…)\nreturn weights @ v",
    ),
    reference=attend,
    cases=lambda: [
        Case(
            torch.tensor([[2.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 2]]),
            torch.tensor([[2.0, 0, 0, 0], [0, 0, 0, 2], [1, 1, 0, 0]]),
            torch.tensor([[10.0, 0, 1, 0], [0, 20, 0, 1], [30, 30, 1, 1]]),
            note="three patches, head_dim 4",
        ),
        Case(
            noise(2, 3, 5, 6),
            noise(2, 3, 5, 6, seed=1),
            noise(2, 3, 5, 6, seed=2),
            note="two pictures, three heads, five patches, head_dim 6",
        ),
        Case(
            3 * noise(1, 2, 2, 9),
            noise(1, 2, 4, 9, seed=1),
            noise(1, 2, 4, 9, seed=2),
            note="two queries and four keys, head_dim 9",
        ),
    ],
    axes="batch num_heads num_queries head_dim",
)


@ATTENTION.property("each query's attention weights sum to 1")
def _(fn) -> None:
    same = torch.ones(1, 1, 4, 6) * noise(6)
    out = fn(noise(1, 1, 4, 6), noise(1, 1, 4, 6, seed=1), same.clone())
    expect(
        torch.allclose(out, same, atol=1e-5),
        "When all values are the same vector, any weighted mean of them is that vector. Yours is another one.",
    )


@ATTENTION.property("the order of the keys does not matter")
def _(fn) -> None:
    q, k, v = (noise(1, 2, 5, 6, seed=i) for i in range(3))
    order = torch.tensor([3, 0, 4, 1, 2])
    expect(
        torch.allclose(fn(q, k, v), fn(q, k[:, :, order], v[:, :, order]), atol=1e-5),
        "With keys and values in another order (both in the same one) your output changes.",
    )


@ATTENTION.property("large scores do no harm")
def _(fn) -> None:
    q, k, v = (noise(1, 1, 3, 4, seed=i) for i in range(3))
    expect(
        torch.isfinite(fn(1000 * q, k, v)).all(),
        "With scores in the thousands your output is not finite, because exp() overflows. torch's softmax subtracts "
        "the largest score first, which changes no weight.",
    )


@ATTENTION.property("gradients reach queries, keys and values")
def _(fn) -> None:
    expect_same_gradients(fn, attend, *(noise(1, 2, 5, 6, seed=i) for i in range(3)))


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mT / q.shape[-1] ** 0.5


# The attention module is judged by the same table, so that one thought gets one sentence wherever it is written.
WRONG_ATTENTION = {
    "The scores are not scaled. Divide them by the square root of head_dim before the softmax.": (
        lambda q, k, v: (q @ k.mT).softmax(-1) @ v
    ),
    "The scores are divided by head_dim. Their standard deviation grows with its square root only, so this makes them "
    "too small.": lambda q, k, v: (q @ k.mT / q.shape[-1]).softmax(-1) @ v,
    "The scores are multiplied by the square root of head_dim. Divide instead: the scale has to make them smaller.": (
        lambda q, k, v: (q @ k.mT * q.shape[-1] ** 0.5).softmax(-1) @ v
    ),
    "You scale by the number of keys. What makes a score large is the number of products in it, which is head_dim.": (
        lambda q, k, v: (q @ k.mT / k.shape[-2] ** 0.5).softmax(-1) @ v
    ),
    "You scale by q.shape[1], which is head_dim only for a single matrix; with batch and heads in front it is the "
    "number of heads. Count from the end: q.shape[-1].": lambda q, k, v: (q @ k.mT / q.shape[1] ** 0.5).softmax(-1) @ v,
    "The scale is written in: 8 is the root of SigLIP's head_dim, 64. Take it from the query: q.shape[-1].": (
        lambda q, k, v: (q @ k.mT / 8).softmax(-1) @ v
    ),
    "The softmax runs over the queries, so each column sums to 1. A query distributes its attention over the keys, so "
    "each row must sum to 1.": lambda q, k, v: _scores(q, k).softmax(-2) @ v,
    "softmax(dim=0) runs over the queries of a single matrix, and over the pictures of a batch. The keys are the last "
    "axis: dim=-1.": lambda q, k, v: _scores(q, k).softmax(0) @ v,
    "softmax(dim=1) is the axis of the keys only when there are no batch and no heads in front. Count from the end: "
    "dim=-1.": lambda q, k, v: _scores(q, k).softmax(1) @ v,
    "The softmax runs over the whole table of scores, so that all queries share one sum. Each query needs its own: "
    "each row must sum to 1.": lambda q, k, v: _scores(q, k).flatten(-2).softmax(-1).view_as(_scores(q, k)) @ v,
    "There is no softmax: raw scores are no weights, since they can be negative and do not sum to 1.": (
        lambda q, k, v: _scores(q, k) @ v
    ),
    "These weights are logarithms (log_softmax), which are all negative. Use softmax.": (
        lambda q, k, v: _scores(q, k).log_softmax(-1) @ v
    ),
    "The scale comes after the softmax, where it makes the weights sum to less than 1. It belongs before.": (
        lambda q, k, v: (q @ k.mT).softmax(-1) / q.shape[-1] ** 0.5 @ v
    ),
    "Keys and queries have changed places: a row of scores must belong to one query.": (
        lambda q, k, v: _scores(k, q).softmax(-1) @ v
    ),
    "The keys are mixed instead of the values. Keys only decide the weights; what is handed over is v.": (
        lambda q, k, v: _scores(q, k).softmax(-1) @ k
    ),
    "This is causal: a query sees only the keys up to its own place. Patches have no order in time, so each of them "
    "attends to all.": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
}

for _sentence, _version in WRONG_ATTENTION.items():
    ATTENTION.mistake(_sentence)(_version)


@ATTENTION.mistake(
    "You scale by the number of queries. What makes a score large is the number of products in it, which is head_dim."
)
def _(q, k, v):
    return (q @ k.mT / q.shape[-2] ** 0.5).softmax(-1) @ v


@ATTENTION.mistake("These are the weights, one for each query and key. Use them to mix the values.")
def _(q, k, v):
    return _scores(q, k).softmax(-1)


@ATTENTION.mistake(
    "k is turned in a way that fits a single matrix alone. With batch and heads in front, .T turns all axes round and "
    "transpose(0, 1) swaps the wrong ones. Swap the last two: transpose(-2, -1)."
)
def _(q, k, v):
    turned = k.permute(*reversed(range(k.ndim)))
    return (q @ turned / q.shape[-1] ** 0.5).softmax(-1) @ v


@ATTENTION.mistake(
    "transpose(1, 2) counts from the front, where there may be no batch and no heads. Count from the end: the last two "
    "axes of k are transpose(-2, -1)."
)
def _(q, k, v):
    return (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v


@ATTENTION.mistake(
    "q @ k multiplies rows of queries by columns of keys, and a key is a row. Swap the last two axes of k first."
)
def _(q, k, v):
    return (q @ k / q.shape[-1] ** 0.5).softmax(-1) @ v


# -- vit.split_heads ---------------------------------------------------------------------------------------------------


def split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """One slice for each of the three and each head."""
    head_dim = qkv.shape[-1] // (3 * num_heads)
    slices = qkv.split(head_dim, dim=-1)  # q's heads, then k's, then v's
    q, k, v = (torch.stack(slices[i * num_heads : (i + 1) * num_heads], dim=1) for i in range(3))
    return q, k, v


def told_apart(num_patches: int, width: int, batch: int = 1) -> Tensor:
    """[batch, num_patches, width]: 0 1 2 … for patch 0, 100 101 … for patch 1: the digits tell where a number was."""
    patches = 100.0 * torch.arange(batch * num_patches).reshape(batch, num_patches, 1)
    return patches + torch.arange(width)


SPLIT_HEADS = Exercise(
    id="vit.split_heads",
    chapter="02",
    title="One wide vector, many heads",
    difficulty=2,
    minutes=10,
    why="Heads are nothing but a way to cut a vector. A cut with the right shape and the wrong numbers gives each head "
    "pieces of several patches, and weights that somebody else has trained lose their meaning.",
    hints=(
        "The last axis holds three things at once: which of q, k and v; which head; and which number inside the head. "
        "The prompt says in which order they vary.",
        "Split the last axis into three axes. A view can do that, because it moves nothing. Then move the axes: q, k, "
        "v in front, so that you can take them apart, and heads before patches. Only transpose or permute does that.",
        "x = qkv.view(batch, num_patches, 3, num_heads, head_dim)\n"
        "x = x.permute(…)               # [3, batch, num_heads, num_patches, head_dim]\n"
        "return x[0], x[1], x[2]",
    ),
    reference=split_heads,
    cases=lambda: [
        Case(told_apart(2, 12), 2, note="2 patches, 2 heads, head_dim 2; patch 1 holds the numbers from 100 on"),
        Case(noise(2, 5, 27), 3, note="two pictures of five patches, 3 heads, head_dim 3"),
        Case(noise(2, 4, 12), 1, note="a single head"),
    ],
    axes=dict.fromkeys(("q", "k", "v"), "batch num_heads num_patches head_dim"),
)


@SPLIT_HEADS.property("the heads, put side by side again, are what came in")
def _(fn) -> None:
    x = noise(2, 6, 24)
    parts = [part.transpose(1, 2).reshape(2, 6, 8) for part in fn(x.clone(), 4)]
    expect(torch.equal(torch.cat(parts, dim=-1), x), "Numbers are lost, or are in another place, on the way back.")


@SPLIT_HEADS.property("a patch stays one patch")
def _(fn) -> None:
    x = noise(1, 6, 24)
    changed = x.clone()
    changed[0, 2] += 1
    for before, after in zip(fn(x, 4), fn(changed, 4), strict=True):
        moved = (before != after).any(-1)[0].any(0).nonzero().flatten().tolist()
        expect(moved == [2], f"A change of patch 2 of the input shows up in the patches {moved} of the heads.")


@SPLIT_HEADS.property("gradients go back through the cut")
def _(fn) -> None:
    expect_same_gradients(lambda x: fn(x, 3), lambda x: split_heads(x, 3), noise(2, 4, 18))


def _sizes(qkv: Tensor, num_heads: int) -> tuple[int, int, int, int]:
    batch, num_patches, width = qkv.shape
    return batch, num_patches, num_heads, width // (3 * num_heads)


def _heads_outside(qkv: Tensor, num_heads: int) -> tuple[Tensor, ...]:
    batch, num_patches, num_heads, head_dim = _sizes(qkv, num_heads)
    return tuple(qkv.view(batch, num_patches, num_heads, 3, head_dim).permute(3, 0, 2, 1, 4))


def _dealt_out(qkv: Tensor, num_heads: int) -> tuple[Tensor, ...]:
    batch, num_patches, num_heads, head_dim = _sizes(qkv, num_heads)
    return tuple(part.reshape(batch, num_heads, num_patches, head_dim) for part in qkv.chunk(3, dim=-1))


def _interleaved(qkv: Tensor, num_heads: int) -> tuple[Tensor, ...]:
    batch, num_patches, num_heads, head_dim = _sizes(qkv, num_heads)
    return tuple(qkv.view(batch, num_patches, 3, head_dim, num_heads).permute(2, 0, 4, 1, 3))


def _in_order(qkv: Tensor, num_heads: int, *places: int) -> tuple[Tensor, ...]:
    parts = split_heads(qkv, num_heads)
    return tuple(parts[place] for place in places)


# Those that the attention module can make as well: the shapes fit.
WRONG_SPLIT = {
    "The right shape, the wrong numbers: one reshape to [batch, num_heads, num_patches, head_dim] deals the numbers "
    "out in reading order, so a head gets pieces of several patches. Split the last axis first, then swap axes.": (
        _dealt_out
    ),
    "Each head takes its own q, k and v from one stretch of the vector. The order here is all of q, then all of k, "
    "then all of v; heads are cut inside each of them.": _heads_outside,
    "Every num_heads-th number goes to the same head. A head is a stretch of neighbouring numbers, so the axis of the "
    "heads comes before head_dim when you split the last axis.": _interleaved,
    "Queries and keys have changed places. The vector holds q first, then k, then v.": (
        lambda qkv, num_heads: _in_order(qkv, num_heads, 1, 0, 2)
    ),
    "Keys and values have changed places. The vector holds q first, then k, then v.": (
        lambda qkv, num_heads: _in_order(qkv, num_heads, 0, 2, 1)
    ),
    "All heads are copies of head 0: the other stretches of the vector are never read.": (
        lambda qkv, num_heads: tuple(part[:, :1].expand_as(part) for part in split_heads(qkv, num_heads))
    ),
}

for _sentence, _version in WRONG_SPLIT.items():
    SPLIT_HEADS.mistake(_sentence)(_version)


@SPLIT_HEADS.mistake(
    "One reshape of all of qkv deals the numbers out in reading order: what should be q holds whole patches, with "
    "their k and v. Split the last axis first, then move the axes."
)
def _(qkv, num_heads):
    batch, num_patches, num_heads, head_dim = _sizes(qkv, num_heads)
    return tuple(qkv.reshape(3, batch, num_heads, num_patches, head_dim))


@SPLIT_HEADS.mistake(
    "The 3 stands before the patches in your view, which deals the numbers out in reading order across patches. It is "
    "part of the last axis: view(batch, num_patches, 3, …)."
)
def _(qkv, num_heads):
    batch, num_patches, num_heads, head_dim = _sizes(qkv, num_heads)
    return tuple(qkv.reshape(batch, 3, num_patches, num_heads, head_dim).permute(1, 0, 3, 2, 4))


@SPLIT_HEADS.mistake(
    "Patches are still before heads. Attention multiplies the last two axes, and those must be patches and head_dim."
)
def _(qkv, num_heads):
    batch, num_patches, num_heads, head_dim = _sizes(qkv, num_heads)
    return tuple(part.view(batch, num_patches, num_heads, head_dim) for part in qkv.chunk(3, dim=-1))


@SPLIT_HEADS.mistake("q, k and v are taken apart, but not yet cut into heads.")
def _(qkv, num_heads):
    return qkv.chunk(3, dim=-1)


@SPLIT_HEADS.mistake(
    "The batch and heads are one axis here. Keep them apart: [batch, num_heads, num_patches, head_dim]."
)
def _(qkv, num_heads):
    return tuple(part.flatten(0, 1) for part in split_heads(qkv, num_heads))


@SPLIT_HEADS.mistake("The last two axes have changed places: it should be [batch, num_heads, num_patches, head_dim].")
def _(qkv, num_heads):
    return tuple(part.mT for part in split_heads(qkv, num_heads))
