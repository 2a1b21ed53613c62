"""Does a model know when it is right? Calibration, and what it gains by not answering."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Bin(NamedTuple):
    confidence: float  # the mean in this bin
    accuracy: float
    count: int


def reliability(confidence: Tensor, right: Tensor, bins: int = 10) -> list[Bin]:
    """Answers grouped by confidence [N] (0 to 1) into bins of equal width, the empty ones left out."""
    if confidence.shape != right.shape or confidence.ndim != 1:
        raise ValueError(f"One confidence an answer: got {list(confidence.shape)} and {list(right.shape)}.")
    place = (confidence * bins).long().clamp(0, bins - 1)
    groups = [place == b for b in range(bins)]
    return [
        Bin(confidence[g].mean().item(), right[g].double().mean().item(), int(g.sum())) for g in groups if bool(g.any())
    ]


def expected_calibration_error(confidence: Tensor, right: Tensor, bins: int = 10) -> float:
    """The mean gap between confidence and accuracy over bins, weighted by their answers (Naeini et al. 2015)."""
    total = max(len(confidence), 1)
    return sum(abs(b.confidence - b.accuracy) * b.count for b in reliability(confidence, right, bins)) / total


def risk_coverage(confidence: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """What happens when only the most confident answers are given: coverage and risk, both [N].

    Entry i is the share of questions answered, and the share of wrong ones among them, with the i + 1 most confident.
    """
    order = confidence.argsort(descending=True, stable=True)
    wrong = (~right.bool()[order]).double().cumsum(dim=0)
    answered = torch.arange(1, len(confidence) + 1, dtype=torch.float64)
    return answered / max(len(confidence), 1), wrong / answered
