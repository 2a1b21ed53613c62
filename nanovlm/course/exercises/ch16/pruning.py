"""Chapter 16: matrices that are really smaller."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from nanovlm.course.exercises.common import noise
from nanovlm.course.judge.exercise import Case, Exercise, expect

# -- compress.prune_channels -------------------------------------------------------------------------------------------

Matrices = tuple[Tensor, Tensor, Tensor]


def prune_channels(gate: Tensor, up: Tensor, down: Tensor, keep: int) -> Matrices:
    """gate, up [inter_dim, dim], down [dim, inter_dim] -> the same with `keep` channels."""
    scores = gate.abs().sum(dim=1) + up.abs().sum(dim=1) + down.abs().sum(dim=0)  # [inter_dim]
    kept = scores.topk(keep).indices.sort().values
    return gate[kept], up[kept], down[:, kept]


def swiglu(gate: Tensor, up: Tensor, down: Tensor, x: Tensor) -> Tensor:
    return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T


def run_pruning(prune: Callable[..., Matrices], gate: Tensor, up: Tensor, down: Tensor, keep: int) -> Tensor:
    """What the smaller MLP computes: the order of its channels does not matter to that."""
    out = prune(gate, up, down, keep)
    expect(
        isinstance(out, (tuple, list)) and len(out) == 3 and all(isinstance(x, Tensor) and x.ndim == 2 for x in out),
        "Return three matrices: gate, up and down.",
    )
    inter, dim = gate.shape
    if all(o.shape == i.shape for o, i in zip(out, (gate, up, down), strict=True)) and keep < inter:
        expect(
            False, f"All {inter} channels are still there. A mask of zeros saves no byte and no product: cut them out."
        )
    for name, matrix, shape in zip(("gate", "up", "down"), out, ((keep, dim), (keep, dim), (dim, keep)), strict=True):
        if name == "down" and matrix.shape == down.shape:
            expect(False, f"down still has all {inter} channels, which are its columns: down[:, kept].")
        if matrix.shape[name == "down"] == inter - keep != keep:
            expect(False, f"{name} has {inter - keep} channels: `keep` says how many stay, not how many are left out.")
        expect(tuple(matrix.shape) == shape, f"{name} has the shape {list(matrix.shape)}; it should be {list(shape)}.")
    return swiglu(*out, noise(5, dim, seed=9))


def matrices(inter: int, dim: int, seed: int) -> Matrices:
    """Channels of different importance in each of the three matrices."""
    sizes = [0.3 + torch.rand(inter, generator=torch.Generator().manual_seed(seed + i)) for i in range(3)]
    gate, up, down = noise(inter, dim, seed=seed), noise(inter, dim, seed=seed + 1), noise(dim, inter, seed=seed + 2)
    return gate * sizes[0][:, None], up * sizes[1][:, None], down * sizes[2]


SMALL = (
    torch.tensor([[0.1, 0.1], [-3.0, -2.0], [1.0, 0.9], [0.5, 0.5]]),
    torch.tensor([[2.5, 0.1], [0.2, -0.1], [1.0, 1.1], [1.2, 1.4]]),
    torch.tensor([[0.1, -0.3, 1.0, 0.1], [0.1, 0.1, 0.8, 0.2]]),
)

PRUNE = Exercise(
    id="compress.prune_channels",
    chapter="16",
    title="Channels that are really gone",
    difficulty=2,
    minutes=15,
    why="A masked weight still takes its byte and its product. A channel that is cut out of all three matrices of an MLP "
    "makes them smaller on every machine, with no special kernel.",
    hints=(
        "One channel is a row of gate, the same row of up and the same column of down. What would the MLP lose with it?",
        "A score for each channel: the sum of absolute values over its row of gate, its row of up and its column of down. "
        "topk gives the channels that stay. Index all three with the same indices.",
        "scores = gate.abs().sum(dim=1) + up.abs().sum(dim=1) + …      # [inter_dim]\n"
        "kept = scores.topk(keep).indices\n"
        "return gate[kept], up[kept], …",
    ),
    reference=prune_channels,
    cases=lambda: [
        Case(*SMALL, 2, note="four channels, of which two stay"),
        Case(*matrices(10, 4, 1), 3, note="three of ten channels stay"),
        Case(*matrices(8, 3, 20), 6, note="six of eight channels stay"),
        Case(*matrices(12, 2, 41), 5, note="five of twelve channels stay"),
    ],
    axes="tokens dim",
    call=run_pruning,
)


@PRUNE.property("a channel that does nothing is cut out for nothing")
def _(prune) -> None:
    gate, up, down = matrices(6, 4, 60)
    for matrix in (gate, up):
        matrix[[1, 4]] = 0
    down[:, [1, 4]] = 0
    x = noise(3, 4, seed=61)
    same = torch.allclose(swiglu(*prune(gate, up, down, 4), x), swiglu(gate, up, down, x), atol=1e-5)
    expect(same, "Two of six channels were zero. With the other four the MLP computes something else.")


def _prune(
    score: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda g, u, d: (
        g.abs().sum(1) + u.abs().sum(1) + d.abs().sum(0)
    ),
    least: bool = False,
) -> Callable[..., Matrices]:
    def prune(gate, up, down, keep):
        kept = score(gate, up, down).topk(keep, largest=not least).indices
        return gate[kept], up[kept], down[:, kept]

    return prune


for sentence, wrong in (
    ("The least important channels stay. topk with largest=True, or the end of argsort.", _prune(least=True)),
    (
        "The gate alone decides. A channel also is a row of up and a column of down.",
        _prune(lambda g, u, d: g.abs().sum(1)),
    ),
    ("up alone decides. A channel also is a row of gate and a column of down.", _prune(lambda g, u, d: u.abs().sum(1))),
    (
        "The column of down is not in the score: what down multiplies by nearly zero is not important.",
        _prune(lambda g, u, d: g.abs().sum(1) + u.abs().sum(1)),
    ),
    ("down alone decides. A channel also is a row of gate and a row of up.", _prune(lambda g, u, d: d.abs().sum(0))),
    (
        "The sums are over signed numbers, which cancel: a channel of large weights may sum to zero: take absolute values.",
        _prune(lambda g, u, d: g.sum(1) + u.sum(1) + d.sum(0)),
    ),
    (
        "You sum squares, under which single large weights count more. The task asks for absolute values.",
        _prune(lambda g, u, d: g.square().sum(1) + u.square().sum(1) + d.square().sum(0)),
    ),
    (
        "You take the largest single weight of a channel. The task asks for the sum of all absolute values.",
        _prune(lambda g, u, d: g.abs().amax(1) + u.abs().amax(1) + d.abs().amax(0)),
    ),
    (
        "You multiply the three sums. The task asks for the sum of the three.",
        _prune(lambda g, u, d: g.abs().sum(1) * u.abs().sum(1) * d.abs().sum(0)),
    ),
):
    PRUNE.mistake(sentence)(wrong)


@PRUNE.mistake("The first channels stay, whatever they are worth: take those with the largest scores.")
def _(gate, up, down, keep):
    return gate[:keep], up[:keep], down[:, :keep]


@PRUNE.mistake("Each matrix keeps its own channels, so that row i of gate no longer belongs to column i of down.")
def _(gate, up, down, keep):
    a, b = gate.abs().sum(1).topk(keep).indices, up.abs().sum(1).topk(keep).indices
    return gate[a], up[b], down[:, down.abs().sum(0).topk(keep).indices]


@PRUNE.mistake("gate and up are in the order of the scores and down in another: index all three in the same order.")
def _(gate, up, down, keep):
    kept = (gate.abs().sum(1) + up.abs().sum(1) + down.abs().sum(0)).topk(keep).indices
    return gate[kept], up[kept], down[:, kept.sort().values]


@PRUNE.mistake(
    "gate and up are in their old order and down in the order of the scores: index all three in the same order."
)
def _(gate, up, down, keep):
    kept = (gate.abs().sum(1) + up.abs().sum(1) + down.abs().sum(0)).topk(keep).indices
    ordered = kept.sort().values
    return gate[ordered], up[ordered], down[:, kept]
