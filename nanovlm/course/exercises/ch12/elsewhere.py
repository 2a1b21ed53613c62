"""Chapter 12: three shape bugs in a captioner that is written as in another repository."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanovlm.course.exercises.ch12.reading import named_as
from nanovlm.course.exercises.common import learns, noise
from nanovlm.course.judge.exercise import Case, Exercise, expect, with_weights


class Captioner(nn.Module):
    """Pictures [B, 3, H, W] and ids [B, T] -> the loss. A convolution makes vectors of the picture, and the words
    attend to them by cross-attention."""

    def __init__(self, dim: int, heads: int, vocab: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, dim, kernel_size=4, stride=4)
        self.embed = nn.Embedding(vocab, dim)
        self.cross = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.head = nn.Linear(dim, vocab)

    def memory(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, places, dim]"""
        return self.stem(pixels).flatten(2).transpose(1, 2)

    def logits(self, memory: Tensor, ids: Tensor) -> Tensor:
        words = self.embed(ids)
        return self.head(words + self.cross(words, memory, memory, need_weights=False)[0])

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        return self.loss(self.logits(self.memory(pixels), ids[:, :-1]), ids[:, 1:])


def _ids(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape) * 7 % 11


def _run(cls: Any, sizes: tuple[int, int, int], pixels: Tensor, ids: Tensor) -> Tensor:
    module = named_as(cls(*sizes), Captioner(*sizes))
    expect(
        module.stem.weight.shape == Captioner(*sizes).stem.weight.shape and module.head.weight.shape[0] == sizes[2],
        "The sizes of `stem` or `head` have changed. The layers are right: mend how their outputs are used.",
    )
    return module(pixels, ids)


ELSEWHERE = Exercise(
    id="trace.elsewhere",
    chapter="12",
    title="Mend it: three bugs in a model from elsewhere",
    difficulty=3,
    minutes=15,
    why="You will meet more models of others than of your own. One error hides the next here, and one of the three "
    "raises no error at all if you happen to try it with a batch of one.",
    hints=(
        "Mend one error, trace again, read the next one. Write down what each dim counts: batch, places, dim, words.",
        "A convolution gives [B, dim, rows, columns], and attention wants places before dim. nn.MultiheadAttention "
        "takes the batch from dim 1 unless it is told otherwise. F.cross_entropy wants the classes on dim 1, or all "
        "positions in one dim.",
        "memory: self.stem(pixels).flatten(2).…\n"
        "cross: nn.MultiheadAttention(dim, heads, …)\n"
        "loss: F.cross_entropy(logits.…, targets.…)",
    ),
    reference=Captioner,
    cases=lambda: [
        Case((6, 2, 11), noise(2, 3, 8, 12), _ids(2, 6), note="two pictures of 8 x 12 pixels, six tokens, width 6"),
        Case((10, 5, 13), noise(3, 3, 16, 8, seed=1), _ids(3, 5), note="three upright pictures, five tokens, width 10"),
        Case(
            (6, 3, 11), noise(4, 3, 8, 8, seed=2), _ids(4, 5), note="a batch of four, with four words and four places"
        ),
    ],
    call=_run,
)


@ELSEWHERE.property("a picture does not move the loss of another one")
def _(cls) -> None:
    module = with_weights(cls(6, 2, 11))
    pixels, ids = noise(2, 3, 8, 12).requires_grad_(), _ids(2, 6)
    out = module.logits(module.memory(pixels), ids)
    learns(out)
    out[0].square().sum().backward()
    expect(pixels.grad is not None, "No gradient reaches the picture: it is cut off on the way.")
    expect(not pixels.grad[1].any(), "The logits of caption 0 depend on picture 1: batch and positions are mixed up.")


@ELSEWHERE.property("gradients reach every parameter")
def _(cls) -> None:
    module = with_weights(cls(6, 2, 11))
    learns(module(noise(2, 3, 8, 12), _ids(2, 6)), module)


def _variant(**methods: Any) -> Any:
    return type("_", (Captioner,), methods)


def _batch_second(self: Any, memory: Tensor, ids: Tensor) -> Tensor:
    words = self.embed(ids)
    queries, keys = words.flatten(0, 1)[:, None], memory.flatten(0, 1)[:, None]
    mixed = self.cross(queries.transpose(0, 1), keys.transpose(0, 1), keys.transpose(0, 1), need_weights=False)[0]
    return self.head(words + mixed.reshape(words.shape))


for sentence, methods in (
    (
        "The picture is reshaped to [B, places, dim] instead of transposed: every vector is made of several places of "
        "one channel. No shape tells.",
        {"memory": lambda self, pixels: (lambda x: x.reshape(x.shape[0], -1, x.shape[1]))(self.stem(pixels))},
    ),
    (
        "The places of the picture are averaged to one vector. The error is gone, and so is where anything was.",
        {"memory": lambda self, pixels: self.stem(pixels).flatten(2).mean(2)[:, None]},
    ),
    (
        "The whole batch is one long sequence for the attention: captions attend to other pictures.",
        {"logits": _batch_second},
    ),
    (
        "The logits are reshaped to [B, words, T] for the loss. Transpose them: a reshape mixes words and positions.",
        {"loss": lambda self, y, t: F.cross_entropy(y.reshape(y.shape[0], y.shape[2], y.shape[1]), t)},
    ),
    (
        "The loss is computed on the last position alone. The error is gone, and the other positions learn nothing.",
        {"loss": lambda self, y, t: F.cross_entropy(y[:, -1], t[:, -1])},
    ),
    (
        "The loss is computed on the first position alone. The error is gone, and the other positions learn nothing.",
        {"loss": lambda self, y, t: F.cross_entropy(y[:, 0], t[:, 0])},
    ),
    (
        "The loss is a sum. It was a mean: change only what is wrong.",
        {"loss": lambda self, y, t: F.cross_entropy(y.flatten(0, 1), t.flatten(), reduction="sum")},
    ),
    (
        "The words no longer attend to the picture: without cross-attention the caption is written blind.",
        {"logits": lambda self, memory, ids: self.head(self.embed(ids))},
    ),
    (
        "The residual connection is gone: the words were added to what attention brought.",
        {
            "logits": lambda self, memory, ids: self.head(
                self.cross(self.embed(ids), memory, memory, need_weights=False)[0]
            )
        },
    ),
    (
        "The words attend to themselves and not to the picture: keys and values come from the memory.",
        {
            "logits": lambda self, memory, ids: (lambda w: self.head(w + self.cross(w, w, w, need_weights=False)[0]))(
                self.embed(ids)
            )
        },
    ),
    (
        "Inputs and targets are the same tokens: each position should predict the next one, as it did before.",
        {"forward": lambda self, pixels, ids: self.loss(self.logits(self.memory(pixels), ids), ids)},
    ),
    (
        "The picture's rows and columns are swapped. Order does not matter to attention without positions, but the "
        "channels are mixed up here: transpose dim and places only.",
        {"memory": lambda self, pixels: self.stem(pixels).flatten(2).transpose(1, 2).flip(2)},
    ),
):
    ELSEWHERE.mistake(sentence)(_variant(**methods))
