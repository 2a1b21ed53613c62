"""The list of wrong models, and what they are fed."""

import torch

CASES: list[type] = []


def case(cls: type) -> type:
    CASES.append(cls)
    return cls


def image(*sizes: int) -> torch.Tensor:
    return torch.zeros(*sizes)


def ids(*sizes: int, high: int = 10) -> torch.Tensor:
    return torch.arange(torch.Size(sizes).numel()).reshape(sizes) % high
