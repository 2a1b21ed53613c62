"""Chapter 02: attention, and how a vector is cut into heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nanovlm.course.exercises.common import noise
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
    why="It is the only place in a transformer where one patch learns anything about another. A softmax over the wrong "
    "axis, or a forgotten scale, runs without an error, and no shape gives it away.",
    hints=(
        "Three steps: how well does each query fit each key, how much of each value does that earn, and the mixture.",
        "Scores: queries times keys, [num_queries, num_keys], divided by the square root of a query's length. Each row "
        "belongs to one query, and each row should sum to 1 after the softmax. Then rows times values.",
        "scores = q @ (k with its last two axes swapped) / head_dim ** 0.5\n"
        "weights = softmax of the scores over the keys, the last axis\n"
        "return weights @ v",
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


@ATTENTION.property("each query's weights sum to 1")
def _(fn) -> None:
    same = torch.ones(1, 1, 4, 8) * noise(8)
    out = fn(noise(1, 1, 4, 8), noise(1, 1, 4, 8, seed=1), same.clone())
    expect(
        torch.allclose(out, same, atol=1e-5),
        "When all values are the same vector, any mixture of them is that vector. Yours is another one.",
    )


@ATTENTION.property("the order of the keys does not matter")
def _(fn) -> None:
    q, k, v = (noise(1, 2, 5, 8, seed=i) for i in range(3))
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
        "With scores in the thousands your output is not finite: exp() overflows. torch's softmax takes the largest "
        "score away first.",
    )


def _weights(q: Tensor, k: Tensor, dim: int = -1) -> Tensor:
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim)


@ATTENTION.mistake("The scores are not scaled. Divide them by the square root of head_dim before the softmax.")
def _(q, k, v):
    return (q @ k.mT).softmax(-1) @ v


@ATTENTION.mistake(
    "The scores are divided by head_dim. Their spread grows with its square root only, so this makes them too small."
)
def _(q, k, v):
    return (q @ k.mT / q.shape[-1]).softmax(-1) @ v


@ATTENTION.mistake("The scores are multiplied by the square root of head_dim. Divide: the scale makes them smaller.")
def _(q, k, v):
    return (q @ k.mT * q.shape[-1] ** 0.5).softmax(-1) @ v


@ATTENTION.mistake(
    "You scale by the number of keys. What makes scores large is the number of products in each of them, head_dim."
)
def _(q, k, v):
    return (q @ k.mT / k.shape[-2] ** 0.5).softmax(-1) @ v


@ATTENTION.mistake(
    "You scale by the number of queries. What makes scores large is the number of products in each of them, head_dim."
)
def _(q, k, v):
    return (q @ k.mT / q.shape[-2] ** 0.5).softmax(-1) @ v


@ATTENTION.mistake(
    "The softmax runs over the queries, so each column sums to 1. A query shares out its attention over the keys: "
    "each row must."
)
def _(q, k, v):
    return _weights(q, k, -2) @ v


@ATTENTION.mistake(
    "softmax(dim=1) is the axis of the keys only when there are no batch and no heads in front. Count from the end."
)
def _(q, k, v):
    return _weights(q, k, 1) @ v


@ATTENTION.mistake("There is no softmax: raw scores are no shares. They can be negative, and do not sum to 1.")
def _(q, k, v):
    return q @ k.mT / q.shape[-1] ** 0.5 @ v


@ATTENTION.mistake(
    "The scale comes after the softmax, where it makes the weights sum to less than 1. It belongs before."
)
def _(q, k, v):
    return (q @ k.mT).softmax(-1) / q.shape[-1] ** 0.5 @ v


@ATTENTION.mistake("These are the weights, one for each query and key. Use them: mix the values.")
def _(q, k, v):
    return _weights(q, k)


@ATTENTION.mistake("Keys and queries have changed places: a row of scores must belong to one query.")
def _(q, k, v):
    return _weights(k, q) @ v


@ATTENTION.mistake(
    "That works for a single matrix. With batch and heads in front, .T turns all axes round: swap the last two only."
)
def _(q, k, v):
    turned = k.permute(*reversed(range(k.ndim)))
    return (q @ turned / q.shape[-1] ** 0.5).softmax(-1) @ v


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
    "pieces of several patches, and weights that somebody else trained mean nothing any more.",
    hints=(
        "The last axis holds three things at once: which of q, k, v; which head; and which number inside the head. The "
        "order in which they vary is said in the prompt.",
        "Unfold the last axis into three. A view can do that, because it moves nothing. Then move the axes: q, k, v in "
        "front, so that you can take them apart, and heads before patches. Only a transpose or permute does that.",
        "x = qkv.view(batch, num_patches, 3, num_heads, head_dim)\n"
        "x = permute x to [3, batch, num_heads, num_patches, head_dim]\n"
        "return x[0], x[1], x[2]",
    ),
    reference=split_heads,
    cases=lambda: [
        Case(told_apart(2, 12), 2, note="2 patches, 2 heads, head_dim 2; patch 1 holds the numbers from 100 on"),
        Case(noise(2, 5, 18), 3, note="two pictures of five patches, 3 heads, head_dim 2"),
        Case(noise(2, 4, 12), 1, note="a single head"),
    ],
    axes=dict.fromkeys(("q", "k", "v"), "batch num_heads num_patches head_dim"),
)


@SPLIT_HEADS.property("the heads, put side by side again, are what came in")
def _(fn) -> None:
    x = noise(2, 6, 24)
    parts = [part.transpose(1, 2).reshape(2, 6, 8) for part in fn(x.clone(), 4)]
    expect(torch.equal(torch.cat(parts, dim=-1), x), "Numbers are lost, or stand in another place, on the way back.")


@SPLIT_HEADS.property("a patch stays one patch")
def _(fn) -> None:
    x = noise(1, 6, 24)
    changed = x.clone()
    changed[0, 2] += 1
    for before, after in zip(fn(x, 4), fn(changed, 4), strict=True):
        moved = (before != after).any(-1)[0].any(0).nonzero().flatten().tolist()
        expect(moved == [2], f"A change of patch 2 of the input shows up in the patches {moved} of the heads.")


def _sizes(qkv: Tensor, num_heads: int) -> tuple[int, int, int, int]:
    batch, num_patches, width = qkv.shape
    return batch, num_patches, num_heads, width // (3 * num_heads)


@SPLIT_HEADS.mistake(
    "The right shape, the wrong numbers: one reshape to [batch, num_heads, num_patches, head_dim] deals the numbers "
    "out in reading order, so a head gets pieces of several patches. Split the last axis first, then swap axes."
)
def _(qkv, num_heads):
    batch, num_patches, num_heads, head_dim = _sizes(qkv, num_heads)
    return tuple(part.reshape(batch, num_heads, num_patches, head_dim) for part in qkv.chunk(3, dim=-1))


@SPLIT_HEADS.mistake(
    "Each head takes its own q, k and v from one stretch of the vector. The order here is all of q, then all of k, "
    "then all of v; heads are cut inside each of them."
)
def _(qkv, num_heads):
    batch, num_patches, num_heads, head_dim = _sizes(qkv, num_heads)
    x = qkv.view(batch, num_patches, num_heads, 3, head_dim).permute(3, 0, 2, 1, 4)
    return x[0], x[1], x[2]


@SPLIT_HEADS.mistake(
    "Every num_heads-th number goes to the same head. A head is a stretch of neighbouring numbers: the head's axis "
    "comes before head_dim when you unfold."
)
def _(qkv, num_heads):
    batch, num_patches, num_heads, head_dim = _sizes(qkv, num_heads)
    x = qkv.view(batch, num_patches, 3, head_dim, num_heads).permute(2, 0, 4, 1, 3)
    return x[0], x[1], x[2]


@SPLIT_HEADS.mistake(
    "Patches still stand before heads. Attention multiplies the last two axes, and those must be patches and head_dim."
)
def _(qkv, num_heads):
    batch, num_patches, num_heads, head_dim = _sizes(qkv, num_heads)
    return tuple(part.view(batch, num_patches, num_heads, head_dim) for part in qkv.chunk(3, dim=-1))


@SPLIT_HEADS.mistake("q, k and v are taken apart, but not yet cut into heads.")
def _(qkv, num_heads):
    return qkv.chunk(3, dim=-1)


@SPLIT_HEADS.mistake("The last two axes have changed places: it should read [batch, num_heads, num_patches, head_dim].")
def _(qkv, num_heads):
    return tuple(part.mT for part in split_heads(qkv, num_heads))
