"""Chapter 09: how fast does it write?"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nanovlm.course.judge.exercise import Case, Exercise, expect

# -- generation.tokens_per_second --------------------------------------------------------------------------------------


def written(tokens: Tensor, end: int) -> int:
    """How many tokens the rows wrote, each up to its first end and with it: what follows is filled in."""
    before = (tokens == end).long().cumsum(dim=1) - (tokens == end).long()
    return int((before == 0).sum())


def tokens_per_second(generate: Callable[[], Tensor], clock: Callable[[], float], end: int, repeats: int) -> float:
    """Tokens that one call writes, divided by the median of its times, the first call left out."""
    tokens = generate()
    times = []
    for _ in range(repeats):
        start = clock()
        tokens = generate()
        times.append(clock() - start)
    return written(tokens, end) / statistics.median(times)


def run_speed(measure, rows: list[list[int]], durations: Sequence[float], end: int, repeats: int) -> float:
    """A machine with a clock of its own; durations: what each call takes, the first one first."""
    now, calls = 100.0, 0

    def generate() -> Tensor:
        nonlocal now, calls
        expect(calls < 4 * len(durations), "It calls generate again and again: one call to warm up, then `repeats`.")
        now += durations[calls % len(durations)]
        calls += 1
        return torch.tensor(rows)

    speed = measure(generate, lambda: now, end, repeats)
    expect(calls > 0, "It never calls generate().")
    return float(speed) if isinstance(speed, Tensor) and speed.numel() == 1 else speed


TWO_ROWS = [[4, 3, 1, 1, 1, 1], [5, 7, 2, 6, 8, 1]]  # 3 tokens and 6
SPEED = Exercise(
    id="generation.tokens_per_second",
    chapter="09",
    title="Measure it: how fast does it write?",
    difficulty=2,
    minutes=12,
    why="Tokens a second is the most quoted number about generation, and it can be doubled by counting what nobody "
    "reads, or halved by counting the first call.",
    hints=(
        "Three decisions: which calls are timed, which of their times counts, and which tokens were written at all.",
        "Call generate once without looking at the clock. Then, `repeats` times, look at the clock before and after, and "
        "take the middle one of the sorted differences. Of each row count the tokens up to its first end, and that end.",
        "tokens = generate()                                       # to warm up\n"
        "for _ in range(repeats):\n"
        "    start = clock(); tokens = generate(); times.append(…)\n"
        "ended = (tokens == end).long().cumsum(dim=1)              # 0 before the first end, 1 from it on, …\n"
        "count the places where ended is 0, and one more for …\n"
        "return count / statistics.median(times)",
    ),
    reference=tokens_per_second,
    cases=lambda: [
        Case(TWO_ROWS, [9.0, 1.0, 4.0, 2.0], 1, 3, note="3 and 6 tokens; 9 s to warm up, then 1 s, 4 s and 2 s"),
        Case([[1, 1, 1], [6, 5, 4], [4, 1, 1]], [3.0, 0.5, 0.7, 0.1, 0.6, 9.0], 1, 5, note="a row without an end"),
        Case([[2, 8, 7, 7]], [5.0, 0.25], 7, 1, note="one row, one repeat, and 7 is the end"),
    ],
    tolerance=1e-4,
    call=run_speed,
)


@SPEED.property("one slow call among the repeats changes nothing")
def _(measure) -> None:
    calm, disturbed = (run_speed(measure, TWO_ROWS, [2.0, 1.0, 1.1, slow], 1, 3) for slow in (1.2, 60.0))
    expect(
        calm == disturbed, f"One call that took a minute moves it from {calm:.3g} to {disturbed:.3g} tokens a second."
    )


def _speed(generate, clock, end, repeats, wrong=""):
    """tokens_per_second, with one thing at a time to get wrong."""
    if wrong != "cold":
        generate()
    times, began = [], clock()
    for _ in range(repeats):
        start = clock()
        tokens = generate()
        times.append(clock() - start)
    count = {
        "filled": tokens.numel(),
        "no end": int((tokens != end).sum()),
        "steps": tokens.shape[1],
        "rows": len(tokens),
        "first row": written(tokens[:1], end),
    }.get(wrong, written(tokens, end))
    taken = {
        "mean": sum(times) / repeats,
        "fastest": min(times),
        "last": times[-1],
        "one of many": clock() - began,
    }.get(wrong, statistics.median(times))
    return taken / count if wrong == "upside down" else count / taken


for sentence, wrong in (
    (
        "The first call is among those that you time. It reserves memory, and may compile: call generate once before you "
        "look at the clock.",
        "cold",
    ),
    (
        "The places behind a row's end are counted. Nobody wrote them: the loop fills them while other rows write.",
        "filled",
    ),
    ("The end token is not counted. The model wrote it, in a pass of its own, so it is one of the tokens.", "no end"),
    ("You count the steps of the loop. Each step writes a token in every row that has not ended.", "steps"),
    ("You count answers. Count the tokens of each of them.", "rows"),
    ("Only the first row is counted: a batch writes all of its rows in that time.", "first row"),
    ("This is the mean of the times: one call that was disturbed spoils it. Take the middle one.", "mean"),
    ("This is the fastest call, which flatters: others will not see it again. Take the middle one.", "fastest"),
    ("Only the last call is timed. Keep the times of all repeats, and take the middle one.", "last"),
    ("You divide the tokens of one call by the time of all repeats.", "one of many"),
    ("These are seconds for a token. Tokens a second is the count divided by the time.", "upside down"),
):
    SPEED.mistake(sentence)(lambda *args, wrong=wrong: _speed(*args, wrong=wrong))
