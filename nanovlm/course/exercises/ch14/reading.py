"""Chapter 14: a linear probe, and how much attention goes to the first position."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nanovlm.course.exercises.common import as_wide_as, noise
from nanovlm.course.judge.exercise import Case, Exercise, expect

# -- inside.probe ------------------------------------------------------------------------------------------------------


def fit(x: Tensor, y: Tensor, ridge: float) -> Tensor:
    """x [N, dim], y [N, outputs] -> weight [dim, outputs]: least squares, and a penalty on the weight's square"""
    return torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1]), x.T @ y)


def probe(train: Tensor, labels: Tensor, test: Tensor, num_classes: int, ridge: float) -> Tensor:
    """Both sides centred by the training set, so that the bias carries no penalty."""
    targets, mean = F.one_hot(labels, num_classes).to(train.dtype), train.mean(dim=0)
    weight = fit(train - mean, targets - targets.mean(dim=0), ridge)
    return (test - mean) @ weight + targets.mean(dim=0)


def _vectors(rows: int, dim: int, classes: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Training vectors that are not centred, labels that are not evenly spread, test vectors of another mean."""
    labels = (torch.arange(rows) ** 2) % classes
    train = noise(rows, dim, seed=seed) + 2 + F.one_hot(labels, max(classes, dim))[:, :dim]
    return train, labels, noise(rows // 2 + 1, dim, seed=seed + 50) + 3


PROBE = Exercise(
    id="inside.probe",
    chapter="14",
    title="A linear probe",
    difficulty=2,
    minutes=12,
    why="A probe asks what can be read from a vector by one linear layer. It is only fair if nothing of the test "
    "vectors has gone into it.",
    hints=(
        "For each class the target is a 1 or a 0, and a linear layer should come as near to it as it can.",
        "Subtract the training vectors' mean from both sets, and the targets' mean from the one-hot targets. Solve "
        "(XᵀX + ridge · 1) W = XᵀY. The scores of the test vectors are their centred vectors times W, plus the "
        "targets' mean.",
        "mean = train.mean(dim=0)\n"
        "x, y = train - mean, F.one_hot(labels, num_classes).float()\n"
        "w = torch.linalg.solve(…, x.T @ (y - y.mean(dim=0)))\n"
        "return (test - mean) @ w + y.mean(dim=0)",
    ),
    reference=probe,
    cases=lambda: [
        Case(
            torch.tensor([[1.0, 0], [2, 1], [1, 1], [3, 0]]),
            torch.tensor([0, 1, 0, 1]),
            torch.tensor([[2.0, 2], [0, 1]]),
            2,
            0.5,
            note="four training vectors of two numbers, two classes, two test vectors",
        ),
        Case(*_vectors(12, 3, 3, seed=0), 3, 2.0, note="twelve training vectors, three classes"),
        Case(*_vectors(40, 6, 4, seed=1), 5, 0.3, note="four of five classes occur in the training set"),
    ],
    axes="vector class",
    tolerance=1e-4,
    call=lambda fn, train, *more: as_wide_as(train, fn(train, *more)),
)


@PROBE.property("no test vector changes the scores of another")
def _(fn) -> None:
    train, labels, test = _vectors(20, 4, 3, seed=2)
    alone, together = fn(train, labels, test[:1], 3, 1.0), fn(train, labels, test, 3, 1.0)
    expect(
        torch.allclose(alone[0].float(), together[0].float(), atol=1e-3),
        "A test vector has other scores when it is tested together with others, so that something of the test set goes "
        "into the probe.",
    )


def _scores(x: Tensor, labels: Tensor, test: Tensor, num_classes: int, ridge: float) -> Tensor:
    """Of vectors that are centred already."""
    y = F.one_hot(labels, num_classes).to(x.dtype)
    return test @ fit(x, y - y.mean(0), ridge) + y.mean(0)


def _with_ones(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones(len(x), 1)], dim=1)


for _sentence, _version in {
    "There is no bias, and nothing is centred: the layer has to pass through zero. Subtract the training vectors' mean, and "
    "the targets' mean.": lambda x, y, test, n, ridge: test @ fit(x, F.one_hot(y, n).float(), ridge),
    "The mean of the targets is not added at the end, so that rare classes look as likely as frequent ones.": (
        lambda x, y, test, n, ridge: (
            _scores(x - x.mean(0), y, test - x.mean(0), n, ridge) - F.one_hot(y, n).float().mean(0)
        )
    ),
    "The test vectors are centred by the test vectors' own mean. Whatever is measured on the training set, such as the mean, "
    "is used for both.": lambda x, y, test, n, ridge: _scores(x - x.mean(0), y, test - test.mean(0), n, ridge),
    "The mean is taken over the test vectors too, so that they have a part in the probe. Take the training vectors' mean.": (
        lambda x, y, test, n, ridge: _scores(
            x - torch.cat([x, test]).mean(0), y, test - torch.cat([x, test]).mean(0), n, ridge
        )
    ),
    "This is least squares without the ridge. Add ridge times the identity to XᵀX.": (
        lambda x, y, test, n, ridge: _scores(x - x.mean(0), y, test - x.mean(0), n, 0.0)
    ),
    "The bias is penalised like the weight, so that the scores are pulled to 0. Centre instead, or leave the bias out of the "
    "penalty.": lambda x, y, test, n, ridge: _with_ones(test) @ fit(_with_ones(x), F.one_hot(y, n).float(), ridge),
    "These are classes, the argmax. Return the scores, of which the largest is the class.": (
        lambda x, y, test, n, ridge: probe(x, y, test, n, ridge).argmax(-1)
    ),
    "There is a softmax at the end. Least squares gives scores, and they stay as they are.": (
        lambda x, y, test, n, ridge: probe(x, y, test, n, ridge).softmax(-1)
    ),
    "These are the scores of the training vectors, which the probe has seen. Return those of the test vectors.": (
        lambda x, y, test, n, ridge: probe(x, y, x, n, ridge)
    ),
    "The numbers of the classes are the targets, as if class 2 were twice class 1. Make them one-hot.": (
        lambda x, y, test, n, ridge: (
            (test - x.mean(0)) @ fit(x - x.mean(0), y[:, None] - y.float().mean(), ridge) + y.float().mean()
        )
    ),
    "The ridge is multiplied by the number of rows. Add it to XᵀX as it is.": (
        lambda x, y, test, n, ridge: probe(x, y, test, n, ridge * len(x))
    ),
    "Each number is divided by its standard deviation. That is a good habit, but the ridge then means something else: here "
    "the vectors are only centred.": lambda x, y, test, n, ridge: probe(x / x.std(0), y, test / x.std(0), n, ridge),
    "The scores are transposed: a row for each test vector, a column for each class.": (
        lambda x, y, test, n, ridge: probe(x, y, test, n, ridge).T
    ),
    "These are distances to the class means. A probe is a linear layer, fitted by least squares.": (
        lambda x, y, test, n, ridge: -torch.cdist(test, torch.stack([x[y == c].mean(0) for c in range(n)]))
    ),
}.items():
    PROBE.mistake(_sentence)(_version)


# -- inside.sink_share -------------------------------------------------------------------------------------------------


def sink_share(weights: Tensor) -> Tensor:
    """Loops over blocks, heads and queries."""
    num_blocks, num_heads, length, _ = weights.shape
    return torch.stack(
        [
            torch.stack([sum(weights[b, h, t, 0] for t in range(1, length)) / (length - 1) for h in range(num_heads)])
            for b in range(num_blocks)
        ]
    )


def _causal(*shape: int, seed: int) -> Tensor:
    return (
        noise(*shape, shape[-1], seed=seed)
        .masked_fill(~torch.ones(shape[-1], shape[-1]).tril().bool(), -9e9)
        .softmax(-1)
    )


SINK = Exercise(
    id="inside.sink_share",
    chapter="14",
    title="Measure it: how much goes to the first position?",
    difficulty=1,
    minutes=8,
    why="A head that has nothing to look for still has to spend 100 %. In many language models it spends them on the "
    "first position, and a map then shows a bright spot that means nothing.",
    hints=(
        "Of which position is a row of the weights, the one that attends or the one that is attended to?",
        "Take column 0, leave out the row of the first position, and average over the rows that are left.",
        "return weights[:, :, …, 0].mean(dim=-1)",
    ),
    reference=sink_share,
    cases=lambda: [
        Case(
            torch.tensor([[[[1.0, 0, 0], [0.4, 0.6, 0], [0.2, 0.3, 0.5]]]]), note="one block, one head, three positions"
        ),
        Case(_causal(2, 3, 5, seed=1), note="two blocks of three heads, five positions"),
        Case(_causal(3, 2, 4, seed=2), note="three blocks of two heads, four positions"),
    ],
    axes="block head",
    call=lambda fn, weights: as_wide_as(weights, fn(weights)),
)


for _sentence, _version in {
    "The first query is among them. It can attend to nothing but itself, so its 100 % say nothing: leave its row out.": (
        lambda w: w[..., 0].mean(-1)
    ),
    "This is the last query alone. Take the mean over all queries but the first.": lambda w: w[:, :, -1, 0],
    "The shares are summed over the queries. Take their mean.": lambda w: w[:, :, 1:, 0].sum(-1),
    "This is the row of position 0, what it attends to itself. You need its column: what the others give it.": (
        lambda w: w[:, :, 0, 1:].mean(-1)
    ),
    "The heads are averaged too. Return a number for each of them: some are sinks and others not.": (
        lambda w: w[:, :, 1:, 0].mean((1, 2))
    ),
    "The blocks are averaged too. Return a number for each block and head.": lambda w: w[:, :, 1:, 0].mean((0, 2)),
    "This is each query's largest weight, wherever it is. Take the weight on position 0.": (
        lambda w: w[:, :, 1:].amax(-1).mean(-1)
    ),
    "This is the most attended position, whichever it is. Take position 0.": lambda w: w[:, :, 1:].mean(-2).amax(-1),
    "This is the share of position 1. The first position is column 0.": lambda w: w[:, :, 1:, 1].mean(-1),
    "This is the share of the last position. The first one is column 0.": lambda w: w[:, :, 1:, -1].mean(-1),
    "Here is a share for each query. Take the mean over them.": lambda w: w[:, :, 1:, 0],
    "The sum goes over T - 1 queries and is divided by T. Divide by as many as there are.": (
        lambda w: w[:, :, 1:, 0].sum(-1) / w.shape[-1]
    ),
}.items():
    SINK.mistake(_sentence)(_version)
