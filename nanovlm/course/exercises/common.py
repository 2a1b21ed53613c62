"""What the exercises of several chapters need."""

from __future__ import annotations

import torch
from torch import Tensor


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Normal random numbers that depend on the seed only."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def optimizers_ready() -> None:
    """The first optimizer of a process imports a good part of torch. That is not the learner's work."""
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
