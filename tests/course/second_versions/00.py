"""Chapter 00 once more, written another way."""

from __future__ import annotations

from operator import eq


def score(answers: list[str], expected: list[str]) -> float:
    """A mean over comparisons; `or 1` keeps the empty list from dividing by zero."""
    return float(sum(map(eq, answers, expected)) / (len(answers) or 1))


VERSIONS = {"start.score": score}
