"""What the exercises of several chapters need."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nanovlm.course.judge.exercise import expect


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Normal random numbers that depend on the seed only."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def as_wide_as(x: Tensor, out: Any) -> Any:
    """Who computes in float64 is not wrong: what came back, a tensor or several, is compared in the dtype of x."""
    if isinstance(out, (tuple, list)):
        return tuple(as_wide_as(x, part) for part in out)
    return out.to(x.dtype) if isinstance(out, Tensor) and out.dtype == torch.float64 else out


def learns(out: Tensor, module: nn.Module | None = None) -> None:
    """A gradient flows from this output, and, with `module`, reaches each of its parameters."""
    expect(
        out.requires_grad,
        "The output is cut off from what it was computed from (no_grad, detach or item), so no gradient can flow.",
    )
    if module is not None:
        out.square().sum().backward(retain_graph=True)
        idle = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]
        expect(not idle, f"No gradient reaches {', '.join(idle)}: it is cut off on the way (detach or no_grad).")


def optimizers_ready() -> None:
    """The first optimizer of a process imports a good part of torch. That is not the learner's work."""
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
