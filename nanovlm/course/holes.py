"""Soft pictures with holes in them: what chapter 01 fills with positions alone, and the score of its challenge."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

Predict = Callable[[Tensor, Tensor], Tensor]


def clouds(count: int, grid: int = 8, seed: int | None = None) -> Tensor:
    """Soft random pictures, one colour for each patch. -> [count, grid * grid, 3]"""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 5, 5, generator=generator)
    scale, edge = grid * 3 // 2, grid // 4
    soft = F.interpolate(coarse, size=(scale, scale), mode="bicubic", align_corners=False)
    return soft[:, :, edge : edge + grid, edge : edge + grid].flatten(2).transpose(1, 2)


def holes(count: int, places: int = 64, seed: int | None = None) -> Tensor:
    """Which patches are hidden, about half of them. -> bool [count, places]"""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return torch.rand(count, places, generator=generator) < 0.5


def batches(steps: int = 300) -> Iterator[tuple[Tensor, Tensor]]:
    """(colours [32, 64, 3], hidden [32, 64]), new ones for each step of training."""
    for _ in range(steps):
        yield clouds(32), holes(32)


def score(train: Callable[[Iterator[tuple[Tensor, Tensor]]], Predict]) -> float:
    """The mean squared error in the holes of 200 new pictures; smaller is better.

    train(batches) -> predict(colours, hidden) -> [B, 64, 3]. When it is scored, hidden colours are 0.
    """
    torch.manual_seed(0)
    predict = train(batches())
    colours, hidden = clouds(200, seed=1), holes(200, seed=1)
    with torch.no_grad():
        filled = predict(colours.masked_fill(hidden[:, :, None], 0.0), hidden)
    if filled.shape != colours.shape:
        raise ValueError(f"predict should return {list(colours.shape)}; it returned {list(filled.shape)}.")
    return float((filled - colours)[hidden].pow(2).mean())


def by_positions(batches: Iterator[tuple[Tensor, Tensor]]) -> Predict:
    """The chapter's model, 64 positions of 32 numbers: the baseline of the challenge."""
    positions = (torch.randn(64, 32) * 0.02).requires_grad_()

    def predict(colours: Tensor, hidden: Tensor) -> Tensor:
        scores = (positions @ positions.T).masked_fill(hidden[:, None], float("-inf"))
        return scores.softmax(dim=-1) @ colours

    optimizer = torch.optim.Adam([positions], lr=0.03)
    for colours, hidden in batches:
        loss = (predict(colours, hidden) - colours)[hidden].pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return predict
