"""What chapter 09 needs beside the package: the time that something takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def seconds(run: Callable[[], Any], times: int = 3) -> float:
    """The fastest of a few runs, since what else a machine does can only make a run slower."""
    measured = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        measured.append(time.perf_counter() - start)
    return min(measured)
