"""Clocks: several contenders in turn, so that a machine that slows down slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class Timing:
    """Seconds of one contender, run by run."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of the median."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / 2 / self.median


def clock(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def interleave(contenders: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, Timing]:
    """A B, B A, A B …: every contender once a round, the order turned each time."""
    timings = {name: Timing([]) for name in contenders}
    for round_number in range(rounds):
        order = list(contenders) if round_number % 2 == 0 else list(reversed(contenders))
        for name in order:
            timings[name].seconds.append(clock(contenders[name]))
    return timings


def median_ratio(slow: Timing, fast: Timing) -> float:
    """How many times as fast: the median over rounds, each compared with its neighbour in time."""
    return statistics.median(a / b for a, b in zip(slow.seconds, fast.seconds, strict=True))


def matmul_rate(dtype: torch.dtype, size: int = 2048, rounds: int = 5) -> float:
    """Floating-point operations a second of a square matrix product: the best of `rounds`, this machine's measure."""
    a, b = torch.randn(2, size, size).to(dtype)
    out = a @ b
    return 2 * size**3 / min(clock(lambda: torch.mm(a, b, out=out)) for _ in range(rounds))
