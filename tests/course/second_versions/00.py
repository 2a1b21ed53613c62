"""Chapter 00 once more, written in other ways."""

from __future__ import annotations

from operator import eq

import numpy as np
import torch


def score(answers: list[str], expected: list[str]) -> float:
    """A mean over comparisons; `or 1` keeps the empty list from dividing by zero."""
    return float(sum(map(eq, answers, expected)) / (len(answers) or 1))


def by_index(answers, expected):
    right, total = 0, len(answers)
    for i in range(total):
        if answers[i] == expected[i]:
            right = right + 1
    if total == 0:
        return 0.0
    return right / total


def an_int_for_nothing(answers, expected):
    try:
        return len([a for a, e in zip(answers, expected, strict=False) if a == e]) / len(answers)
    except ZeroDivisionError:
        return 0


def with_numpy(answers, expected):
    return float(np.mean(np.array(answers) == np.array(expected))) if answers else 0.0


def with_torch(answers, expected):
    hits = torch.tensor([a == e for a, e in zip(answers, expected, strict=True)], dtype=torch.float64)
    return hits.mean().item() if len(hits) else 0.0


def one_minus_errors(answers, expected):
    errors = 0
    for a, e in zip(answers, expected, strict=True):
        errors += a != e
    return (len(answers) - errors) / max(1, len(answers))


VERSIONS = {"start.score": (score, by_index, an_int_for_nothing, with_numpy, with_torch, one_minus_errors)}
