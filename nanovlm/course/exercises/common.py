"""What the exercises of several chapters need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nanovlm.course.judge.exercise import expect


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Normal random numbers that depend on the seed only."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def optimizers_ready() -> None:
    """The first optimizer of a process imports a good part of torch. That is not the learner's work."""
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)


def expect_gradients(yours: Callable[..., Any], reference: Callable[..., Any], *inputs: Tensor) -> None:
    """A Complaint where a gradient, to an input or a parameter, is missing or another than the reference's.

    Both compute the same outputs; a detach or a no_grad on the way shows in the gradients alone.
    """
    ours, theirs = _gradients(yours, inputs), _gradients(reference, inputs)
    idle = [name for name, right in theirs.items() if right.any() and not ours[name].any()]
    expect(
        not idle,
        f"No gradient reaches {', '.join(idle)}, so it could never be trained: the result is cut off from it by "
        "no_grad, detach, .data or a way through numpy.",
    )
    off = [name for name, right in theirs.items() if not torch.allclose(ours[name], right, rtol=1e-3, atol=1e-5)]
    expect(
        not off,
        f"The results are right, and the gradient of {', '.join(off)} is not: one of the ways back is cut, by a detach "
        "or a no_grad inside.",
    )


def _gradients(function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """By name; zeros where none arrives."""
    given = {f"input {i}" if len(inputs) > 1 else "the input": x.clone().requires_grad_() for i, x in enumerate(inputs)}
    out = function(*given.values())
    flat = torch.cat([part.flatten() for part in (out if isinstance(out, (list, tuple)) else [out])])
    if flat.requires_grad:
        (flat * noise(len(flat), seed=7)).sum().backward()
    leaves = given | (dict(function.named_parameters()) if isinstance(function, nn.Module) else {})
    return {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}
