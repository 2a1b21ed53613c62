"""A model that watches: it answers about the newest frame, and what came while it was answering is dropped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import ceil
from types import TracebackType
from typing import Any

from PIL import Image

from nanovlm.inference.frames import Clock, Frame, Source

WAKE_UP = 0.2  # seconds: on Windows, Ctrl-C does not interrupt a wait without an end


def latency_percentiles(seconds: Sequence[float], percents: Sequence[float] = (50, 95, 99)) -> list[float]:
    """The percentiles by the nearest-rank rule: the smallest of the values that at least so many percent of them do not
    exceed. Each is a value that was measured, nothing between two.

    Raises: ValueError without values, or for a percentage outside 0 < p <= 100.
    """
    if not seconds:
        raise ValueError("There are no percentiles of no values.")
    if not all(0 < percent <= 100 for percent in percents):
        raise ValueError(f"A percentile lies above 0 and at most at 100, not {', '.join(map(str, percents))}.")
    ordered = sorted(seconds)
    return [ordered[ceil(percent * len(ordered) / 100) - 1] for percent in percents]


class NewestFrame:
    """Runs a source in a thread and holds its newest frame only. Within `with`; at its end the thread is joined and the
    source closed.

    Attributes:
        seen: frames that the source has offered, with those that it passed over.
    """

    def __init__(self, source: Source, clock: Clock = time.monotonic) -> None:
        self.source, self.clock, self.seen = source, clock, 0
        self._frame: tuple[Frame, float] | None = None
        self._error: BaseException | None = None
        self._ended = False
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, name="frames", daemon=True)

    def __enter__(self) -> NewestFrame:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.source.close()  # after the thread: a capture that is released while it reads crashes

    def _read(self) -> None:
        try:
            for frame in self.source.frames(self._stop.wait):
                with self._changed:
                    self._frame = frame, self.clock()
                    self.seen += 1 + frame.passed_over
                    self._changed.notify()
                if self._stop.is_set():
                    break
        except Exception as error:  # told by `take`, in the thread that can tell it
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify()

    def take(self) -> tuple[Frame, float] | None:
        """The newest frame, and when it came; waits for one. None: the source has ended. Raises what the source did."""
        with self._changed:
            while not self._changed.wait_for(lambda: self._frame or self._ended, WAKE_UP):
                pass
            taken, self._frame = self._frame, None
        if taken is None and self._error is not None:
            raise self._error
        return taken


@dataclass
class Watched:
    """What was seen, and the seconds from each answered frame to its answer."""

    seen: int
    latencies: list[float]
    no_images: dict[str, str]

    @property
    def dropped(self) -> int:
        return self.seen - len(self.latencies)


def watch(
    source: Source,
    answer: Callable[[Image.Image], str],
    show: Callable[[Frame, str, float], Any],
    count: int | None = None,
    clock: Clock = time.monotonic,
) -> Watched:
    """Answer about the source's newest frame until it ends, `count` answers are given, or Ctrl-C.

    The source is closed afterwards. Raises what the source or `answer` raises.
    """
    latencies: list[float] = []
    with NewestFrame(source, clock) as newest, suppress(KeyboardInterrupt):
        while (count is None or len(latencies) < count) and (taken := newest.take()) is not None:
            frame, came = taken
            text = answer(frame.image)
            latencies.append(clock() - came)
            show(frame, text, latencies[-1])
    return Watched(newest.seen, latencies, source.no_images)
