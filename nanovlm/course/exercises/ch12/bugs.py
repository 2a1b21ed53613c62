"""Chapter 12: two more bugs to find with a trace, each with ways to silence the error and still be wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nanovlm.course.exercises.ch12.reading import named_as
from nanovlm.course.exercises.common import learns, noise
from nanovlm.course.judge.exercise import Case, Complaint, Exercise, expect, with_weights

# -- trace.bug_heads ---------------------------------------------------------------------------------------------------


class SharedHeads(nn.Module):
    """The right one; `share` is what wrong versions change."""

    def __init__(self, dim: int, num_heads: int, num_kv_heads: int) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, dim // num_heads
        self.q = nn.Linear(dim, dim, bias=False)
        self.k = nn.Linear(dim, num_kv_heads * self.head_dim, bias=False)
        self.v = nn.Linear(dim, num_kv_heads * self.head_dim, bias=False)

    def share(self, x: Tensor, is_key: bool) -> Tensor:
        """[B, T, num_kv_heads * head_dim] -> [B, num_heads, T, head_dim], a copy for each query head that shares."""
        heads = x.unflatten(-1, (self.num_kv_heads, self.head_dim)).transpose(1, 2)
        group = self.num_heads // self.num_kv_heads
        return torch.stack([heads[:, head // group] for head in range(self.num_heads)], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
        k, v = self.share(self.k(x), True), self.share(self.v(x), False)
        weights = (q @ k.transpose(-2, -1) / self.head_dim**0.5).softmax(dim=-1)
        return (weights @ v).transpose(1, 2).flatten(2)


class _KeysMet(TorchFunctionMode):
    """Whether the keys have met the queries: what fails after that is the product with the values."""

    done = False

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ == "scaled_dot_product_attention" and len(args) > 2:
            self.done = args[0].shape[-3] == args[1].shape[-3] != args[2].shape[-3]
        out = func(*args, **(kwargs or {}))
        self.done = self.done or func.__name__ == "softmax"
        return out


def _attend(cls: Callable[..., nn.Module], sizes: tuple[int, int, int], x: Tensor) -> Tensor:
    module = named_as(cls(*sizes), SharedHeads(*sizes))
    dim, num_heads, num_kv_heads = sizes
    for name in ("k", "v"):
        weight, rows = getattr(module, name).weight, num_kv_heads * (dim // num_heads)
        expect(
            weight.shape == (rows, dim),
            f"{name}.weight is {list(weight.shape)} and should be [{rows}, {dim}]: {num_kv_heads} key/value heads of "
            f"{dim // num_heads}. Keep the layer as it was, and copy its heads in forward.",
        )
    with _KeysMet() as keys:
        try:
            return module(x)
        except RuntimeError as error:
            if not keys.done and "must match the size" in str(error):
                raise Complaint(
                    f"The product of queries and keys still fails: there are {num_heads} query heads and "
                    f"{num_kv_heads} key heads. The keys need the copies too, not only the values. torch said: {error}"
                ) from error
            values = "The keys fit now, and the product with v fails: the values need the same copies as the keys."
            expect(not keys.done, f"{values} torch said: {error}")
            raise


BUG_HEADS = Exercise(
    id="trace.bug_heads",
    chapter="12",
    title="Bug 2: shared heads",
    difficulty=2,
    minutes=8,
    why="Grouped-query attention is in nearly every decoder of today. Several repairs make the error go away, with "
    "the same shapes: only one of them gives each head the key of its own group.",
    hints=(
        "Which dim of the two operands clashes, and what does it count?",
        "Query heads 0 and 1 share key head 0, query heads 2 and 3 share key head 1. So each key head is needed twice, "
        "and the copies must stand next to each other. The values need the same.",
        "group = self.num_heads // self.num_kv_heads\n"
        "k = k.repeat_???(group, dim=1)      # 0 0 1 1, not 0 1 0 1\n"
        "v = the same",
    ),
    reference=SharedHeads,
    cases=lambda: [
        Case((8, 4, 2), noise(1, 2, 8), note="width 8, four query heads, two key/value heads, a line of two"),
        Case((12, 6, 2), noise(2, 5, 12, seed=1), note="six query heads, two key/value heads, a batch of two"),
        Case((12, 6, 3), noise(1, 4, 12, seed=2), note="six query heads, three key/value heads"),
    ],
    axes="batch length dim",
    call=_attend,
)


@BUG_HEADS.property("with as many key/value heads as query heads it is ordinary attention")
def _(cls) -> None:
    x = noise(1, 4, 8)
    module = with_weights(cls(8, 2, 2))
    q, k, v = (layer(x).view(1, 4, 2, 4).transpose(1, 2) for layer in (module.q, module.k, module.v))
    wanted = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, 4, 8)
    expect(torch.allclose(module(x), wanted, atol=1e-5), "With 2 and 2 heads it differs from torch's own attention.")


@BUG_HEADS.property("gradients reach the input and every weight")
def _(cls) -> None:
    x = noise(1, 4, 12).requires_grad_()
    module = with_weights(cls(12, 6, 2))
    out = module(x)
    learns(out, module)
    expect(x.grad is not None, "No gradient reaches the input.")


@BUG_HEADS.mistake(
    "The copies are in the wrong order, 0 1 0 1 instead of 0 0 1 1: repeat lays the whole set of heads down again, so "
    "most query heads meet another group's keys. No shape will tell."
)
class _(SharedHeads):
    def share(self, x: Tensor, is_key: bool) -> Tensor:
        heads = x.unflatten(-1, (self.num_kv_heads, self.head_dim)).transpose(1, 2)
        return heads.repeat(1, self.num_heads // self.num_kv_heads, 1, 1)


@BUG_HEADS.mistake(
    "A single key/value head is left, and broadcasting serves it to all query heads. The others are computed for "
    "nothing."
)
class _(SharedHeads):
    def share(self, x: Tensor, is_key: bool) -> Tensor:
        return x.unflatten(-1, (self.num_kv_heads, self.head_dim)).transpose(1, 2)[:, :1]


@BUG_HEADS.mistake(
    "Keys and values are copied in two orders: one as 0 0 1 1, the other as 0 1 0 1. A head looks by one key and gets "
    "the value of another."
)
class _(SharedHeads):
    def share(self, x: Tensor, is_key: bool) -> Tensor:
        heads = x.unflatten(-1, (self.num_kv_heads, self.head_dim)).transpose(1, 2)
        group = self.num_heads // self.num_kv_heads
        return heads.repeat_interleave(group, dim=1) if is_key else heads.repeat(1, group, 1, 1)


def _interleaved(heads: Tensor, group: int) -> Tensor:
    return heads.repeat_interleave(group, dim=1)


@BUG_HEADS.mistake(
    "Keys and values are copied in two orders: keys as 0 1 0 1, values as 0 0 1 1. A head looks by one key and gets "
    "the value of another."
)
class _(SharedHeads):
    def share(self, x: Tensor, is_key: bool) -> Tensor:
        heads = x.unflatten(-1, (self.num_kv_heads, self.head_dim)).transpose(1, 2)
        group = self.num_heads // self.num_kv_heads
        return heads.repeat(1, group, 1, 1) if is_key else _interleaved(heads, group)


for sentence, copies in (
    (
        "The key/value heads are averaged, and all query heads get the mean. Each group has a key/value "
        "head of its own.",
        lambda heads, group: heads.mean(1, keepdim=True).expand(-1, heads.shape[1] * group, -1, -1),
    ),
    (
        "The groups are reversed: the first query heads get the last key/value head.",
        lambda heads, group: _interleaved(heads.flip(1), group),
    ),
    (
        "The missing heads are filled with zeros, so these query heads look everywhere alike. Copy heads that exist.",
        lambda heads, group: torch.cat([heads, torch.zeros_like(heads).repeat(1, group - 1, 1, 1)], dim=1),
    ),
):

    def _share(self, x, is_key, copies=copies):
        heads = x.unflatten(-1, (self.num_kv_heads, self.head_dim)).transpose(1, 2)
        return copies(heads, self.num_heads // self.num_kv_heads)

    BUG_HEADS.mistake(sentence)(type("_", (SharedHeads,), {"share": _share}))


for sentence, attend in (
    (
        "The scores are not divided by sqrt(head_dim). That was right before: change only what is wrong.",
        lambda q, k, v: (q @ k.mT).softmax(-1) @ v,
    ),
    (
        "The scores are divided by sqrt(dim), the width of all heads together. It was sqrt(head_dim).",
        lambda q, k, v: (q @ k.mT / (q.shape[1] * q.shape[3]) ** 0.5).softmax(-1) @ v,
    ),
    (
        "The softmax runs over the queries, the wrong axis: the weights of one query should sum to 1 over the keys.",
        lambda q, k, v: (q @ k.mT / q.shape[3] ** 0.5).softmax(-2) @ v,
    ),
    (
        "A causal mask has come in. There was none, so that the example stays short: change only what is wrong.",
        lambda q, k, v: nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True),
    ),
    (
        "The heads are not brought back behind the positions: transpose(1, 2) first, then join them. A plain reshape "
        "mixes positions.",
        lambda q, k, v: (
            nn.functional.scaled_dot_product_attention(q, k, v)
            .unflatten(2, (-1, 1))
            .reshape(q.shape[0], q.shape[2], q.shape[1], q.shape[3])
            .transpose(1, 2)
        ),
    ),
):

    def _forward(self, x, attend=attend):
        q = self.q(x).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
        return attend(q, self.share(self.k(x), True), self.share(self.v(x), False)).transpose(1, 2).flatten(2)

    BUG_HEADS.mistake(sentence)(type("_", (SharedHeads,), {"forward": _forward}))


@BUG_HEADS.mistake(
    "You repeated the channels before they were cut into heads: each number stands there twice in a row, and a head is "
    "now half of an old one, doubled. Cut into heads first, then repeat heads."
)
class _(SharedHeads):
    def share(self, x: Tensor, is_key: bool) -> Tensor:
        wide = x.repeat_interleave(self.num_heads // self.num_kv_heads, dim=-1)
        return wide.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)


@BUG_HEADS.mistake(
    "The queries were made fewer instead of the keys more: the query heads of a group are averaged before they look. "
    "Each of them should look for itself."
)
class _(SharedHeads):
    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
        group = self.num_heads // self.num_kv_heads
        q = q.unflatten(1, (self.num_kv_heads, group)).mean(2).repeat_interleave(group, dim=1)
        k, v = self.share(self.k(x), True), self.share(self.v(x), False)
        weights = (q @ k.transpose(-2, -1) / self.head_dim**0.5).softmax(dim=-1)
        return (weights @ v).transpose(1, 2).flatten(2)


# -- trace.bug_positions -----------------------------------------------------------------------------------------------


class InputSequence(nn.Module):
    """The right one; `positioned` is what wrong versions change."""

    def __init__(self, vocab_size: int, dim: int, max_positions: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, dim)
        self.positions = nn.Embedding(max_positions, dim)

    def positioned(self, image: Tensor, words: Tensor) -> Tensor:
        line = torch.cat([image, words], dim=1)
        return line + self.positions.weight[: line.shape[1]]

    def forward(self, image_tokens: Tensor, ids: Tensor) -> Tensor:
        return self.positioned(image_tokens, self.tokens(ids))


def _ids(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape) * 3 % 7


BUG_POSITIONS = Exercise(
    id="trace.bug_positions",
    chapter="12",
    title="Bug 3: positions",
    difficulty=2,
    minutes=8,
    why="A picture in front of the text moves every word. Whoever counts the words alone puts them in the wrong place, "
    "and there are four ways to make that fit.",
    hints=(
        "The message names two lengths on one dim. One of them is the text. What is the other?",
        "After the picture has been put in front, the line is longer than the text. Count positions of the whole line, "
        "from 0 at the first image token.",
        "x = torch.cat([image_tokens, self.tokens(ids)], dim=1)\n"
        "positions = torch.arange(the length of x)\n"
        "return x + self.positions(positions)",
    ),
    reference=InputSequence,
    cases=lambda: [
        Case((7, 2, 9), noise(1, 2, 2), _ids(1, 3), note="two image tokens and three words, width 2"),
        Case((7, 4, 12), noise(2, 4, 4, seed=1), _ids(2, 4), note="a batch of two, four image tokens, four words"),
        Case((7, 3, 8), noise(1, 5, 3, seed=2), _ids(1, 1), note="five image tokens, one word"),
    ],
    axes="batch sequence dim",
    call=lambda cls, sizes, image, ids: named_as(cls(*sizes), InputSequence(*sizes))(image, ids),
)


@BUG_POSITIONS.property("gradients reach both tables")
def _(cls) -> None:
    module = with_weights(cls(7, 4, 12))
    learns(module(noise(1, 3, 4), torch.ones(1, 3, dtype=torch.long)), module)


for sentence, place in (
    (
        "The positions are counted from the words on: the picture, which comes first, has the later ones.",
        lambda i, w, p: torch.cat([i + p[w.shape[1] : w.shape[1] + i.shape[1]], w + p[: w.shape[1]]], dim=1),
    ),
    ("Nothing has a position: there are no positions at all in this sum.", lambda i, w, p: torch.cat([i, w], dim=1)),
    (
        "The positions count down: the first image token should stand at position 0.",
        lambda i, w, p: torch.cat([i, w], dim=1) + p[: i.shape[1] + w.shape[1]].flip(0),
    ),
    (
        "All of them get one position, that of place 0. Each place has its own.",
        lambda i, w, p: torch.cat([i, w], dim=1) + p[0],
    ),
    (
        "The positions are taken from the end of the table. Count from 0 at the first image token.",
        lambda i, w, p: torch.cat([i, w], dim=1) + p[-(i.shape[1] + w.shape[1]) :],
    ),
    (
        "The vectors are multiplied with the positions. A position is added.",
        lambda i, w, p: torch.cat([i, w], dim=1) * p[: i.shape[1] + w.shape[1]],
    ),
):

    def _positioned(self, image, words, place=place):
        return place(image, words, self.positions.weight)

    BUG_POSITIONS.mistake(sentence)(type("_", (InputSequence,), {"positioned": _positioned}))


@BUG_POSITIONS.property("two equal neighbours differ by their positions, in the picture and in the text")
def _(cls) -> None:
    line = with_weights(cls(7, 4, 12))(torch.zeros(1, 3, 4), torch.ones(1, 3, dtype=torch.long))[0]
    steps = (line[1:] - line[:-1]).abs().sum(-1)
    expect(bool((steps > 1e-6).all()), "Two tokens with the same content are the same vector: one has no position.")


@BUG_POSITIONS.mistake(
    "Only the words have positions, and they begin at 0: the addition fits again, but the picture has none at all."
)
class _(InputSequence):
    def positioned(self, image: Tensor, words: Tensor) -> Tensor:
        return torch.cat([image, words + self.positions.weight[: words.shape[1]]], dim=1)


@BUG_POSITIONS.mistake(
    "The words stand at the right places now, behind the picture, but the image tokens have no positions."
)
class _(InputSequence):
    def positioned(self, image: Tensor, words: Tensor) -> Tensor:
        length = image.shape[1]
        return torch.cat([image, words + self.positions.weight[length : length + words.shape[1]]], dim=1)


@BUG_POSITIONS.mistake(
    "Picture and text are each counted from 0, so that two tokens share each position. It is one line: go on counting."
)
class _(InputSequence):
    def positioned(self, image: Tensor, words: Tensor) -> Tensor:
        own = [part + self.positions.weight[: part.shape[1]] for part in (image, words)]
        return torch.cat(own, dim=1)


@BUG_POSITIONS.mistake("Positions are counted from 1 here. The first image token stands at position 0.")
class _(InputSequence):
    def positioned(self, image: Tensor, words: Tensor) -> Tensor:
        line = torch.cat([image, words], dim=1)
        return line + self.positions.weight[1 : line.shape[1] + 1]


@BUG_POSITIONS.mistake(
    "All image tokens stand at position 0 and the words go on from 1. The decoder could not tell top from bottom."
)
class _(InputSequence):
    def positioned(self, image: Tensor, words: Tensor) -> Tensor:
        table = self.positions.weight
        return torch.cat([image + table[0], words + table[1 : words.shape[1] + 1]], dim=1)


@BUG_POSITIONS.mistake(
    "The words stand in front of the picture now. Decoders are causal: words that come first cannot look at it."
)
class _(InputSequence):
    def positioned(self, image: Tensor, words: Tensor) -> Tensor:
        return super().positioned(words, image)
