"""Chapter 16: what the slow answers take."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nanovlm.course.judge.exercise import Case, Exercise, expect
from nanovlm.inference.watching import latency_percentiles

# -- compress.latency_percentiles --------------------------------------------------------------------------------------


def percentiles(
    answer: Callable[[], object], clock: Callable[[], float], repeats: int, percents: Sequence[int]
) -> list[float]:
    """One call to warm up, then one time for each call."""
    answer()
    times = []
    for _ in range(repeats):
        start = clock()
        answer()
        times.append(clock() - start)
    return latency_percentiles(times, percents)


def run_latency(measure, durations: Sequence[float], repeats: int, percents: Sequence[int]) -> list[float]:
    """A machine with a clock of its own; durations: what each call takes, the first one first."""
    now, calls = 50.0, 0

    def answer() -> str:
        nonlocal now, calls
        expect(calls < 4 * len(durations), "It answers again and again: one call to warm up, then `repeats`.")
        now += durations[calls % len(durations)]
        calls += 1
        return "yes"

    found = measure(answer, lambda: now, repeats, percents)
    wanted = repeats + 1
    expect(
        calls >= wanted,
        f"It makes {calls} calls, and {wanted} are asked for: the first call warms up, and {repeats} more are timed.",
    )
    expect(len(found) == len(percents), f"It returned {len(found)} values for {len(percents)} percentiles.")
    return [round(float(value), 6) for value in found]


UNEVEN = [9.0, 0.3, 0.1, 0.2, 0.8]  # the first one warms up
TAIL = [5.0, *(0.11 + 0.01 * (7 * i % 20) for i in range(19)), 2.5]

LATENCY = Exercise(
    id="compress.latency_percentiles",
    chapter="16",
    title="Measure it: what do the slow answers take?",
    difficulty=2,
    minutes=12,
    why="A camera waits for the slowest answers, not for the mean one. A percentile that is off by one place, or invented "
    "between two values, hides exactly those.",
    hints=(
        "Time each call on its own, and leave out the first. Which of the sorted times is it that at least 95 of 100 do not "
        "exceed?",
        "Sort the times. Of n values the p-th percentile is the value with the rank p n / 100, rounded up, where the first "
        "rank is 1. Python counts from 0.",
        "answer()                                          # to warm up\n"
        "for _ in range(repeats):\n"
        "    start = clock(); answer(); times.append(…)\n"
        "ordered = sorted(times)\n"
        "return [ordered[math.ceil(…) - 1] for p in percents]",
    ),
    reference=percentiles,
    cases=lambda: [
        Case(UNEVEN, 4, [50, 95], note="9 s to warm up, then 0.3, 0.1, 0.2 and 0.8 s"),
        Case(TAIL, 20, [50, 95, 99], note="twenty calls, the last one very slow"),
        Case([1.0, 0.4, 0.6, 0.2, 0.9, 0.5], 5, [20, 50, 100], note="five calls; 20, 50 and 100 percent"),
    ],
    call=run_latency,
)


@LATENCY.property("each percentile is a time that was measured")
def _(measure) -> None:
    durations = [3.0, 0.25, 0.5, 0.125, 1.0, 2.0, 0.75]
    for value in run_latency(measure, durations, 6, [10, 33, 50, 90]):
        expect(value in durations[1:], f"{value} s is no time that any call took.")


def _latency(answer, clock, repeats, percents, wrong: str):
    """percentiles, with one thing at a time to get wrong."""
    answer()
    times, began = [], clock()
    for _ in range(repeats):
        start = began if wrong == "since the start" else clock()
        answer()
        times.append(clock() - start)
    n = len(times)
    ordered = times if wrong == "unsorted" else sorted(times, reverse=wrong == "slowest first")
    if wrong == "mean":
        return [sum(times) / n] * len(percents)
    if wrong == "share":
        return [max(times) * p / 100 for p in percents]
    if wrong == "slowest":
        return [max(times)] * len(percents)
    if wrong == "between":
        return [_between(ordered, p / 100 * (n - 1)) for p in percents]
    ranks = {
        "one further": lambda p: min(p * n // 100, n - 1),
        "rounded": lambda p: max(round(p * n / 100) - 1, 0),
        "one less": lambda p: max(p * n // 100 - 1, 0),
        "of n - 1": lambda p: round(p * (n - 1) / 100),
    }
    rank = ranks.get(wrong, lambda p: -(-p * n // 100) - 1)
    return [ordered[rank(p)] for p in percents]


def _between(ordered: Sequence[float], place: float) -> float:
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


for sentence, wrong in (
    (
        "The value lies between two times (interpolated, as numpy and torch do by default). No call took so long: take the "
        "time with the rank p n / 100, rounded up.",
        "between",
    ),
    (
        "The percentile is one place too far: ordered[p * n // 100] forgets that Python counts from 0. Round up, then minus 1.",
        "one further",
    ),
    (
        "The rank is rounded down, so that the value may be exceeded by more than it should: round up, then minus 1.",
        "one less",
    ),
    (
        "The times are in the order in which they were measured: a percentile is a place among the sorted ones.",
        "unsorted",
    ),
    ("The times are sorted with the slowest first, so that 95 percent is nearly the fastest.", "slowest first"),
    ("This is the mean for every percentile: it hides the slow answers. Time each call and sort.", "mean"),
    ("This is a share of the slowest time. A percentile counts calls, not seconds.", "share"),
    ("This is the slowest time for every percentile.", "slowest"),
    ("Each time is counted since the start of the first call: look at the clock before each call.", "since the start"),
    (
        "The rank is taken among n - 1 steps and rounded: it is p n / 100, rounded up, where the first rank is 1.",
        "of n - 1",
    ),
):
    LATENCY.mistake(sentence)(lambda *args, wrong=wrong: _latency(*args, wrong=wrong))
