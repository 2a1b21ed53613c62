"""Chapter 17: a light convolution, and a projector whose queries are learned."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanovlm.course.exercises.common import expect_gradients, expect_same_gradients, noise
from nanovlm.course.judge.exercise import Case, Exercise, expect, with_weights

# -- designs.depthwise_separable ---------------------------------------------------------------------------------------


def depthwise_separable(x: Tensor, depthwise: Tensor, pointwise: Tensor) -> Tensor:
    """Shifted copies instead of a convolution."""
    height, width = x.shape[2:]
    padded = F.pad(x, (1, 1, 1, 1))
    mixed = sum(
        padded[:, :, i : i + height, j : j + width] * depthwise[None, :, i, j, None, None]
        for i in range(3)
        for j in range(3)
    )
    return torch.einsum("dc,bchw->bdhw", pointwise, mixed)


DEPTHWISE = Exercise(
    id="designs.depthwise_separable",
    chapter="17",
    title="A convolution in two cheap halves",
    difficulty=1,
    minutes=10,
    why="This pair of products is why a convolutional encoder runs on a telephone: it costs about a ninth of a full 3x3 "
    "kernel where there are many channels.",
    hints=(
        "One half lets neighbouring places meet and keeps channels apart; the other does the opposite.",
        "F.conv2d with as many groups as channels runs each channel with its own kernel; a padding of 1 keeps the size. "
        "Then every place is multiplied by the matrix `pointwise`, which is a convolution with a kernel of 1x1.",
        "channels = x.shape[1]\n"
        "x = F.conv2d(x, depthwise[:, None], padding=1, groups=…)\n"
        "return F.conv2d(x, pointwise[:, :, None, None])",
    ),
    reference=depthwise_separable,
    cases=lambda: [
        Case(noise(1, 2, 3, 3), noise(2, 3, 3, seed=1), noise(2, 2, seed=2), note="a picture of 3x3, two channels"),
        Case(noise(2, 3, 4, 5, seed=3), noise(3, 3, 3, seed=4), noise(3, 3, seed=5), note="two pictures of 4x5"),
        Case(noise(1, 3, 4, 4, seed=6), noise(3, 3, 3, seed=7), noise(5, 3, seed=8), note="three channels become five"),
    ],
    axes="batch channels height width",
)


@DEPTHWISE.property("pictures and both kernels get their gradients")
def _(fn) -> None:
    expect_same_gradients(fn, depthwise_separable, noise(1, 2, 3, 3), noise(2, 3, 3, seed=1), noise(4, 2, seed=2))


def _conv(x: Tensor, kernel: Tensor, padding: int = 1) -> Tensor:
    return F.conv2d(x, kernel[:, None], padding=padding, groups=x.shape[1])


def _mix(x: Tensor, pointwise: Tensor) -> Tensor:
    return torch.einsum("dc,bchw->bdhw", pointwise, x)


for _sentence, _version in {
    "The edges are cut off: without padding=1 a 3x3 kernel shrinks the picture by two.": (
        lambda x, d, p: _mix(_conv(x, d, padding=0), p)
    ),
    "The picture grows: padding=1 is enough for a 3x3 kernel.": lambda x, d, p: _mix(_conv(x, d, padding=2), p),
    "groups is missing. Without it conv2d wants a kernel for every pair of channels.": (
        lambda x, d, p: _mix(F.conv2d(x, d[:, None], padding=1), p)
    ),
    "The channels come first and the places second. Here the depthwise kernels read x itself.": (
        lambda x, d, p: _conv(_mix(x, p), d)
    ),
    "The pointwise matrix is transposed: a row of it makes one output channel.": (
        lambda x, d, p: _mix(_conv(x, d), p.T)
    ),
    "Every channel gets the kernel of the first. Each has one of its own.": (
        lambda x, d, p: _mix(_conv(x, d[:1].expand_as(d)), p)
    ),
    "The kernels are turned by 180 degrees, as in a convolution of mathematics. conv2d does not turn them.": (
        lambda x, d, p: _mix(_conv(x, d.flip(1, 2)), p)
    ),
    "Height and width of the kernels are exchanged.": lambda x, d, p: _mix(_conv(x, d.mT), p),
    "The depthwise half is missing, so that no place knows of its neighbours.": lambda x, d, p: _mix(x, p),
    "The pointwise half is missing, so that no channel knows of another.": lambda x, d, p: _conv(x, d),
    "The border is filled by repeating the picture's edge. Pad with zeros, as padding=1 does.": (
        lambda x, d, p: _mix(F.conv2d(F.pad(x, (1, 1, 1, 1), "replicate"), d[:, None], groups=x.shape[1]), p)
    ),
    "The picture is wrapped around at its edges. Pad with zeros.": (
        lambda x, d, p: _mix(F.conv2d(F.pad(x, (1, 1, 1, 1), "circular"), d[:, None], groups=x.shape[1]), p)
    ),
    "There is a non-linearity between the two halves. Here they are two products and nothing else.": (
        lambda x, d, p: _mix(_conv(x, d).relu(), p)
    ),
    "The residual connection does not belong to this function: return the product alone.": (
        lambda x, d, p: x + _mix(_conv(x, d), p)
    ),
    "The depthwise kernels are summed over the channels: each channel keeps its own result.": (
        lambda x, d, p: _mix(_conv(x, d).sum(1, keepdim=True).expand_as(x), p)
    ),
}.items():
    DEPTHWISE.mistake(_sentence)(_version)


# -- designs.resampler -------------------------------------------------------------------------------------------------


class Resampler(nn.Module):
    """Loops over the queries, one head."""

    def __init__(self, dim: int, num_queries: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_queries, dim))
        self.k_proj, self.v_proj = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        keys, values, rows = self.k_proj(features), self.v_proj(features), []
        for query in self.queries:
            weights = (keys @ query / query.numel() ** 0.5).softmax(dim=1)  # [P, N]
            rows.append(query + (weights[:, :, None] * values).sum(dim=1))
        return torch.stack(rows, dim=1)


def run_resampler(cls, features: Tensor, num_queries: int) -> Tensor:
    module = cls(features.shape[2], num_queries)
    return with_weights(module, like=Resampler(features.shape[2], num_queries))(features)


RESAMPLER = Exercise(
    id="designs.resampler",
    chapter="17",
    title="Learned queries instead of a grid",
    difficulty=2,
    minutes=15,
    why="With a resampler the number of image tokens is yours to choose, whatever the size of the picture. Flamingo and "
    "BLIP-2 have one; nanoVLM and SmolVLM decided against it.",
    hints=(
        "This is attention in which the queries do not come from the input: they are parameters, the same for each picture.",
        "Keys and values are projections of the patches. Each query gives its scores over the patches, divided by the "
        "root of dim, and a softmax over the patches. What it collects is added to the query itself.",
        "scores = self.queries @ self.k_proj(features).mT / dim**0.5     # [P, num_queries, N]\n"
        "collected = scores.softmax(dim=…) @ self.v_proj(features)\n"
        "return self.queries + …",
    ),
    reference=Resampler,
    cases=lambda: [
        Case(noise(1, 3, 2), 2, note="three patches of two numbers, two queries"),
        Case(noise(2, 5, 6, seed=1), 3, note="two pictures of five patches, three queries"),
        Case(noise(3, 4, 4, seed=2), 4, note="as many queries as patches"),
        Case(noise(1, 2, 3, seed=3), 5, note="more queries than patches"),
    ],
    axes="picture query dim",
    call=run_resampler,
)


@RESAMPLER.property("every parameter and the patches get their gradients")
def _(cls) -> None:
    own, right = (with_weights(kind(4, 3)) for kind in (cls, Resampler))
    expect_gradients(lambda module, x: module(x), own, right, noise(2, 5, 4), "the patches")


@RESAMPLER.property("at the start no two queries are equal")
def _(cls) -> None:
    torch.manual_seed(0)
    queries = cls(6, 4).queries.detach()
    expect(
        (queries[:1] - queries[1:]).abs().sum() > 0,
        "All queries start with the same numbers. Equal queries attend to the same patches and get the same gradient, so "
        "they stay equal for ever: draw them at random.",
    )


def _resampler(forward, start=torch.randn) -> type:
    class Version(nn.Module):
        def __init__(self, dim: int, num_queries: int) -> None:
            super().__init__()
            self.queries = nn.Parameter(start(num_queries, dim))
            self.k_proj, self.v_proj = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)

        def forward(self, features: Tensor) -> Tensor:
            return forward(self.queries, self.k_proj(features), self.v_proj(features), features)

    return Version


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mT / q.shape[-1] ** 0.5  # [P, queries, N]


for _sentence, _forward in {
    "The softmax runs over the queries. Each query shares its weight out among the patches, the last axis.": (
        lambda q, k, v, x: q + _scores(q, k).softmax(1) @ v
    ),
    "What a query collects is to be added to the query itself; here the query is lost.": (
        lambda q, k, v, x: _scores(q, k).softmax(-1) @ v
    ),
    "The scores are not divided by the root of dim.": lambda q, k, v, x: q + (q @ k.mT).softmax(-1) @ v,
    "The scores are divided by dim. Its root is enough.": (
        lambda q, k, v, x: q + (q @ k.mT / q.shape[-1]).softmax(-1) @ v
    ),
    "There is no softmax, so that the weights of a query do not sum to 1.": (lambda q, k, v, x: q + _scores(q, k) @ v),
    "What is collected are the patches themselves, not their projection by v_proj.": (
        lambda q, k, v, x: q + _scores(q, k).softmax(-1) @ x
    ),
    "What is collected are the keys. Collect the values, from v_proj.": (
        lambda q, k, v, x: q + _scores(q, k).softmax(-1) @ k
    ),
    "The queries are compared with the patches themselves, not with their projection by k_proj.": (
        lambda q, k, v, x: q + _scores(q, x).softmax(-1) @ v
    ),
    "All queries collect the mean of the patches: the scores are not used.": (
        lambda q, k, v, x: q + v.mean(1, keepdim=True)
    ),
    "Keys and values have changed places.": lambda q, k, v, x: q + _scores(q, v).softmax(-1) @ k,
    "Only the first picture is looked at. Each picture has a row of its own.": (
        lambda q, k, v, x: (q + _scores(q, k[:1]).softmax(-1) @ v[:1]).expand(len(x), -1, -1)
    ),
    "The queries are averaged to one. Each query is a token.": (
        lambda q, k, v, x: (q + _scores(q, k).softmax(-1) @ v).mean(1, keepdim=True)
    ),
    "The patches ask and the queries answer. It is the other way round: the result has a vector for each query.": (
        lambda q, k, v, x: x + (k @ q.T / q.shape[-1] ** 0.5).softmax(-1) @ q
    ),
}.items():
    RESAMPLER.mistake(_sentence)(_resampler(_forward))
