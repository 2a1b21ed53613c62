"""Chapter 12: a test for whatever counts FLOPs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nanovlm.course.exercises import common
from nanovlm.course.judge.exercise import Case, Exercise, expect
from nanovlm.trace import trace

Count = Callable[[nn.Module, Tensor], int]


def right(module: nn.Module, x: Tensor) -> int:
    return trace(module, x).flops


def _calls(module: nn.Module, x: Tensor) -> list[tuple[str, nn.Module, Tensor, Tensor]]:
    """Each call of a linear layer or a convolution: (its path, the layer, what goes in, what comes out)."""
    calls: list[tuple[str, nn.Module, Tensor, Tensor]] = []
    hooks = [
        layer.register_forward_hook(
            lambda _, args, out, path=path, layer=layer: calls.append((path, layer, args[0], out))
        )
        for path, layer in module.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d))
    ]
    try:
        with torch.no_grad():
            module(x)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _work(layer: nn.Module, out: Tensor) -> int:
    """Of one call: every number that comes out is a sum over the inputs of its row of weights."""
    return 2 * out.numel() * layer.weight[0].numel()


def _each_layer_once(module: nn.Module, x: Tensor) -> int:
    first = {path: (layer, out) for path, layer, _, out in reversed(_calls(module, x))}
    repeated = sum(_work(layer, out) for _, layer, _, out in _calls(module, x))
    return right(module, x) - repeated + sum(_work(layer, out) for layer, out in first.values())


def _by_weights(module: nn.Module, x: Tensor) -> int:
    tokens = {id(layer): out.numel() // layer.weight.shape[0] for _, layer, _, out in _calls(module, x)}
    return right(module, x) - sum(
        _work(layer, out) - _work(layer, out) // max(1, tokens[id(layer)]) for _, layer, _, out in _calls(module, x)
    )


def _layers_that_never_run(module: nn.Module, x: Tensor) -> int:
    ran = {id(layer) for _, layer, _, _ in _calls(module, x)}
    idle = [m for m in module.modules() if isinstance(m, (nn.Linear, nn.Conv2d)) and id(m) not in ran]
    return right(module, x) + sum(2 * m.weight.numel() for m in idle)


def _biases(module: nn.Module, x: Tensor) -> int:
    return right(module, x) + sum(out.numel() for _, layer, _, out in _calls(module, x) if layer.bias is not None)


def _containers(module: nn.Module, x: Tensor) -> int:
    return right(module, x) + sum(path.count(".") * _work(layer, out) for path, layer, _, out in _calls(module, x))


def _no_stride(module: nn.Module, x: Tensor) -> int:
    convolutions = [(layer, given, out) for _, layer, given, out in _calls(module, x) if isinstance(layer, nn.Conv2d)]
    more = sum(_work(c, out) * (given[0, 0].numel() / out[0, 0].numel() - 1) for c, given, out in convolutions)
    return right(module, x) + round(more)


PLANTED: dict[str, Count] = {
    "a multiplication and an addition count as one": lambda module, x: right(module, x) // 2,
    "only the first sample of the batch counts": lambda module, x: right(module, x[:1]),
    "each weight counts once, however many tokens pass": _by_weights,
    "a layer that runs twice counts once": _each_layer_once,
    "layers that never run count as well": _layers_that_never_run,
    "products without a layer, as attention's, are missing": (
        lambda module, x: sum(_work(layer, out) for _, layer, _, out in _calls(module, x))
    ),
    "the addition of a bias counts as well": _biases,
    "a layer inside of another counts twice": _containers,
    "a convolution counts as if it had no stride": _no_stride,
}


def _outputs_of_activations(module: nn.Module, x: Tensor) -> int:
    sizes: list[int] = []
    leaves = [m for m in module.modules() if not list(m.children()) and not isinstance(m, (nn.Linear, nn.Conv2d))]
    hooks = [leaf.register_forward_hook(lambda _, args, out: sizes.append(out.numel())) for leaf in leaves]
    try:
        return right(module, x) + sum(sizes)
    finally:
        for hook in hooks:
            hook.remove()


# What a test may ask for by mistake: a counter that would pass it -> what to say.
ALSO: dict[Count, str] = {
    PLANTED["a multiplication and an addition count as one"]: "Your test wants half of the right number. A "
    "multiplication and an addition count as two.",
    _biases: "Your test wants the addition of a bias to be counted. Here the products count, and nothing else.",
    _outputs_of_activations: "Your test wants an activation to be counted. Here products only are counted.",
}


def _passes(test: Callable[[Any], None], count: Count) -> bool:
    try:
        test(count)
    except Exception:
        return False
    return True


class Sample(nn.Module):
    """A layer that runs twice and is inside of another, one that never runs, and a product without a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(self.inner(x))
        return x @ x.mT


def test_counter(count: Count) -> None:
    """Two examples, worked out by hand."""
    assert count(Sample(), torch.zeros(2, 7, 3)) == 2 * (2 * 14 * 3 * 3) + 2 * 2 * 7 * 7 * 3
    assert count(nn.Conv2d(3, 4, 2, stride=2), torch.zeros(1, 3, 4, 6)) == 2 * 6 * 12 * 4


test_counter.__test__ = False  # type: ignore[attr-defined]  # no test of ours: pytest would call it


def caught(test: Callable[[Any], None]) -> int:
    """How many of the planted counters make the learner's test fail, after it has passed with a right one."""
    if not _passes(test, right):
        for other, why in ALSO.items():
            expect(not _passes(test, other), why)
    return common.caught(test, right, PLANTED, "counter")


TEST_COUNTER = Exercise(
    id="trace.test_counter",
    chapter="12",
    title="Write the test: is this FLOP counter right?",
    difficulty=2,
    minutes=12,
    why="Papers and libraries count FLOPs in different ways, and a factor of two between them is common. Before you "
    "compare two numbers, test whether they count the same thing.",
    hints=(
        "Which numbers can you work out by hand? A small layer is enough, if its sizes are all different.",
        "One linear layer on several tokens of several samples. A module of your own with a layer that runs twice inside "
        "an nn.Sequential, a layer that never runs, and x @ x.mT. A convolution with a stride.",
        "class Sample(nn.Module): inner = nn.Sequential(nn.Linear(3, 3), nn.ReLU()), and unused = nn.Linear(3, 3)\n"
        "    forward: x = self.inner(self.inner(x)), then return x @ x.mT\n"
        "assert count(Sample(), torch.zeros(2, 7, 3)) == …\n"
        "assert count(nn.Conv2d(3, 4, 2, stride=2), torch.zeros(1, 3, 4, 6)) == …",
    ),
    reference=test_counter,
    cases=lambda: [Case(note=f"your test, on a right counter and on {len(PLANTED)} wrong ones")],
    call=caught,
)


@TEST_COUNTER.mistake("Your test asserts nothing that a wrong counter does not do as well. Compare with a number.")
def _(count):
    assert count(nn.Linear(3, 5), torch.zeros(2, 7, 3)) > 0


@TEST_COUNTER.mistake(
    "Your example has one token, so a counter that ignores the tokens gets through. Take several, in two samples."
)
def _(count):
    assert count(nn.Linear(3, 5), torch.zeros(1, 3)) == 2 * 3 * 5


@TEST_COUNTER.mistake(
    "Your example has one token, so a counter that ignores the tokens gets through. Take several, in two samples, and a "
    "layer with a bias."
)
def _(count):
    assert count(nn.Linear(3, 5, bias=False), torch.zeros(1, 3)) == 2 * 3 * 5


@TEST_COUNTER.mistake(
    "A single layer is too kind. Take a module in which a layer runs twice, one never runs, and two tensors are multiplied "
    "without a layer."
)
def _(count):
    assert count(nn.Linear(3, 5), torch.zeros(2, 7, 3)) == 2 * 14 * 3 * 5


@TEST_COUNTER.mistake(
    "That the count doubles with the batch holds for most wrong counters too. Compare with a number worked out by hand."
)
def _(count):
    assert count(nn.Linear(3, 5), torch.zeros(4, 7, 3)) == 2 * count(nn.Linear(3, 5), torch.zeros(2, 7, 3))
