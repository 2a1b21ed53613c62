"""Two models on the same questions: is one better? And how many questions does it take to know?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nanovlm.evaluation.scores import interval


class Paired(NamedTuple):
    difference: float  # mean score of the second model minus that of the first
    low: float  # 95 % interval of the difference
    high: float


def paired_bootstrap(first: Tensor, second: Tensor, resamples: int = 2_000, seed: int = 0) -> Paired:
    """The difference of two models' mean scores on the same questions, with a 95 % percentile interval (Efron 1979).

    first, second [questions]: one score for each question, in the same order. Each resample draws questions with
    replacement and takes both models' scores of the questions drawn.
    """
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(
            f"A paired test needs one score a question from both models; got {list(first.shape)} and "
            f"{list(second.shape)}."
        )
    gains = second.double() - first.double()  # [questions]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(gains), (resamples, len(gains)), generator=generator)
    means = gains[drawn].mean(dim=1)  # [resamples]
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Paired(gains.mean().item(), low, high)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """The exact two-sided p-value of McNemar's test (1947): of the questions on which exactly one of the two is right,
    how unlikely is this split if each were equally likely to win? 1.0 where they never differ."""
    pairs = list(zip(first, second, strict=True))
    wins = sum(bool(b) and not a for a, b in pairs)
    losses = sum(bool(a) and not b for a, b in pairs)
    total = wins + losses
    tail = sum(math.comb(total, k) for k in range(min(wins, losses) + 1)) / 2**total
    return min(1.0, 2 * tail)


def questions_needed(share: float, half_width: float) -> int:
    """The fewest questions whose 95 % Wilson interval round this share is at most 2 x half_width wide."""
    if not 0 <= share <= 1 or not 0 < half_width < 0.5:
        raise ValueError(f"A share is from 0 to 1 and half_width from 0 to 0.5, not {share} and {half_width}.")

    def wide(total: int) -> bool:
        low, high = interval(share * total, total)
        return high - low > 2 * half_width

    high = 1
    while wide(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if wide(middle) else (low, middle)
    return high


def best_of(share: float, questions: int, looks: int, trials: int = 2_000, seed: int = 0) -> Tensor:
    """What choosing the best of `looks` evaluations reports when nothing changes in between: [trials] highest scores,
    each of `looks` independent scores of a model that is right with probability `share` on `questions` questions."""
    generator = torch.Generator().manual_seed(seed)
    right = torch.full((trials, looks), share).expand(trials, looks)
    counts = torch.binomial(torch.full((trials, looks), float(questions)), right, generator=generator)
    return (counts / questions).amax(dim=1)
