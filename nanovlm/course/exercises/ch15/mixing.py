"""Chapter 15: old samples among the new, tasks in balance, and the largest batch that fits."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nanovlm.course.exercises.common import as_wide_as
from nanovlm.course.judge.exercise import Case, Exercise, expect
from nanovlm.data import mixing
from nanovlm.training.largest_batch import largest_batch

# -- adapt.replay_mix --------------------------------------------------------------------------------------------------


def _rows(new: Tensor, old: Tensor, counts: list[int], batch_size: int, restart: str = "") -> Tensor:
    """Batches with so many old samples each, the new ones first."""
    fresh = known = 0
    rows = []
    for of_old in counts:
        fresh, known = (0 if restart == "new" else fresh), (0 if restart == "old" else known)
        row = [int(new[(fresh + i) % len(new)]) for i in range(batch_size - of_old)]
        row += [int(old[(known + i) % len(old)]) for i in range(of_old)]
        fresh, known = fresh + batch_size - of_old, known + of_old
        rows.append(row)
    return torch.tensor(rows)


def _due(rate: float, num_batches: int, whole: Callable[[float], int] = math.floor) -> list[int]:
    """How many of each batch, where `rate` of them are due a batch."""
    return [whole(rate * (n + 1)) - whole(rate * n) for n in range(num_batches)]


def replay_mix(new: Tensor, old: Tensor, share: float, batch_size: int, num_batches: int) -> Tensor:
    return _rows(new, old, _due(share * batch_size, num_batches), batch_size)


REPLAY = Exercise(
    id="adapt.replay_mix",
    chapter="15",
    title="Old samples among the new",
    difficulty=2,
    minutes=15,
    why="A few old samples in each batch keep old skills alive. A share that is rounded batch by batch can become none "
    "at all, and the run looks exactly like one that replays.",
    hints=(
        "A quarter of a batch of two is half a sample. Where does the other half go?",
        "Count over the whole run: after n batches n * batch_size * share old samples, rounded down, must have come. This "
        "batch gets that number minus what came before. Two places, one in each list, go on from batch to batch "
        "and begin again at the end.",
        "for n in range(num_batches):\n"
        "    of_old = math.floor(…) - math.floor(n * batch_size * share)\n"
        "    row = the next batch_size - of_old of new, then the next of_old of old\n"
        "# the next of a list that begins again: new[(place + i) % len(new)]",
    ),
    reference=replay_mix,
    cases=lambda: [
        Case(torch.arange(5), torch.tensor([100, 101, 102]), 0.25, 2, 4, note="batches of 2, a quarter of them old"),
        Case(torch.arange(7), torch.tensor([70, 71]), 0.375, 4, 5, note="three eighths of 4: one or two a batch"),
        Case(torch.tensor([9, 4]), torch.arange(50, 59), 0.125, 3, 6, note="an eighth of 3: less than one a batch"),
        Case(torch.arange(6), torch.arange(20, 25), 0.625, 3, 4, note="more old ones than new ones"),
    ],
    axes="batch row",
)


@REPLAY.property("without replay all samples are new")
def _(fn) -> None:
    out = fn(torch.arange(4), torch.arange(50, 52), 0.0, 3, 2)
    expect(torch.equal(out, torch.tensor([[0, 1, 2], [3, 0, 1]])), "With a share of 0 there are old samples, too.")


def _replayed(counts: Callable[[float, int, int], list[int]], restart: str = "", turn: bool = False, other=False):
    def version(new: Tensor, old: Tensor, share: float, batch_size: int, num_batches: int) -> Tensor:
        new, old = (old, new) if other else (new, old)
        rows = _rows(new, old, counts(share, batch_size, num_batches), batch_size, restart)
        return rows.flip(1) if turn else rows

    return version


def _right(share: float, size: int, n: int) -> list[int]:
    return _due(share * size, n)


for _sentence, _version in {
    "The share is rounded in each batch by itself, so that a small share becomes none: carry the rest over to the next batch.": (
        _replayed(lambda share, size, n: [round(share * size)] * n)
    ),
    "What is left of a whole number is cut off in each batch, so that too few old samples come: carry the rest over.": (
        _replayed(lambda share, size, n: [int(share * size)] * n)
    ),
    "The share is rounded up in each batch, so that too many old samples come: carry the rest over to the next batch.": (
        _replayed(lambda share, size, n: [math.ceil(share * size)] * n)
    ),
    "Each batch gets at least one old sample, which is more than the share that was asked for.": (
        _replayed(lambda share, size, n: [max(1, int(share * size))] * n)
    ),
    "You count the share against the new samples. It is a share of all samples.": (
        _replayed(lambda share, size, n: _due(share / (1 + share) * size, n))
    ),
    "New and old are exchanged: `share` is that of the old ones.": _replayed(_right, other=True),
    "The old ones come first, or the order is turned round. In a batch the new ones first, then the old ones.": (
        _replayed(_right, turn=True)
    ),
    "The same old samples come in each batch: go on where the last batch ended, and begin again at the end of the list.": (
        _replayed(_right, restart="old")
    ),
    "The same new samples come in each batch: go on where the last batch ended.": _replayed(_right, restart="new"),
    "There are whole batches of old samples. Mix them within a batch: a step on old samples alone undoes the one before.": (
        _replayed(lambda share, size, n: [size * each for each in _due(share, n)])
    ),
    "The number of old samples is rounded up. After n batches it is the whole part of n * batch_size * share.": (
        _replayed(lambda share, size, n: _due(share * size, n, math.ceil))
    ),
    "No old samples come at all.": _replayed(lambda share, size, n: [0] * n),
}.items():
    REPLAY.mistake(_sentence)(_version)


@REPLAY.mistake("The old samples come on top of a whole batch of new ones: both together are batch_size.")
def _(new, old, share, batch_size, num_batches):
    counts, rows = _right(share, batch_size, num_batches), []
    fresh = known = 0
    for of_old in counts:
        row = [int(new[(fresh + i) % len(new)]) for i in range(batch_size)]
        row += [int(old[(known + i) % len(old)]) for i in range(of_old)]
        fresh, known = fresh + batch_size, known + of_old
        rows.append(row)
    longest = max(map(len, rows))
    return torch.tensor([row + row[: longest - len(row)] for row in rows])


# -- adapt.task_weights ------------------------------------------------------------------------------------------------


def task_weights(sizes: list[int], temperature: float) -> Tensor:
    return torch.tensor(mixing.task_weights(sizes, temperature))


WEIGHTS = Exercise(
    id="adapt.task_weights",
    chapter="15",
    title="How often each task comes up",
    difficulty=1,
    minutes=10,
    why="With a thousand cards beside a million pictures, a mixture by size asks about the cards once in a thousand "
    "samples. One number moves smoothly between that and every task alike.",
    hints=(
        "Which power of the sizes gives their own proportions, and which gives equal parts?",
        "Each part is size to the power 1 / temperature, divided by the sum of all of them. Sizes of millions, to a high "
        "power, overflow: a softmax over logarithms says the same and does not.",
        "logits = torch.tensor(sizes, dtype=torch.float32).log() …\nreturn logits.softmax(dim=0)",
    ),
    reference=task_weights,
    cases=lambda: [
        Case([200, 1800], 2.0, note="200 and 1,800 samples at temperature 2: roots in the proportion 1 to 3"),
        Case([1_200, 10_000, 30_000, 400], 3.5, note="four tasks at temperature 3.5"),
        Case([5, 1, 3], 0.5, note="a temperature below 1 favours the large ones"),
    ],
    axes="task",
    call=lambda fn, sizes, temperature: as_wide_as(torch.ones(1), fn(list(sizes), temperature)),
)


@WEIGHTS.property("temperature 1 is by size, a large one is even")
def _(fn) -> None:
    one, large = (torch.as_tensor(fn([30, 90, 280], t)).float() for t in (1.0, 1e6))
    expect(
        torch.allclose(one, torch.tensor([0.075, 0.225, 0.7]), atol=1e-4),
        "At temperature 1 the parts are not those of the sizes.",
    )
    expect(
        torch.allclose(large, torch.full((3,), 1 / 3), atol=1e-4), "At a very large temperature the parts are not even."
    )


@WEIGHTS.property("millions of samples are no trouble")
def _(fn) -> None:
    out = torch.as_tensor(fn([3_000_000, 40_000_000], 0.15)).float()
    expect(
        out.isfinite().all() and torch.allclose(out.sum(), torch.tensor(1.0), atol=1e-4),
        "With millions of samples and a temperature of 0.15 a power overflows to infinity, and infinity by infinity is "
        "NaN: subtract the largest logarithm first, as softmax does.",
    )


def _sizes(sizes: list[int]) -> Tensor:
    return torch.tensor(sizes, dtype=torch.float32)


def _share(x: Tensor) -> Tensor:
    return x / x.sum()


for _sentence, _version in {
    "The power is the temperature; it is 1 / temperature, so that a high temperature evens out.": (
        lambda sizes, t: (_sizes(sizes).log() * t).softmax(0)
    ),
    "The softmax is taken of the sizes themselves, which gives nearly all to the largest. Take it of their logarithms: log "
    "first.": lambda sizes, t: (_sizes(sizes) / t).softmax(0),
    "The temperature has no effect: these are the proportions of the sizes.": lambda sizes, t: _share(_sizes(sizes)),
    "The parts do not sum to 1: divide by their sum.": lambda sizes, t: _sizes(sizes) ** (1 / t),
    "You divide by the largest part. Divide by their sum.": (
        lambda sizes, t: _sizes(sizes) ** (1 / t) / (_sizes(sizes) ** (1 / t)).max()
    ),
    "The softmax is taken of the shares. Take it of the logarithms of the sizes: log first.": (
        lambda sizes, t: (_share(_sizes(sizes)) / t).softmax(0)
    ),
    "The logarithms themselves are shared out. They still have to become powers: exp, as softmax does.": (
        lambda sizes, t: _share(_sizes(sizes).log() / t)
    ),
    "Every task comes equally often, whatever its size: evenly is what a very large temperature gives.": (
        lambda sizes, t: torch.full((len(sizes),), 1 / len(sizes))
    ),
    "The smallest task comes most often: the sign is wrong.": lambda sizes, t: (-_sizes(sizes).log() / t).softmax(0),
}.items():
    WEIGHTS.mistake(_sentence)(_version)


# -- adapt.largest_batch -----------------------------------------------------------------------------------------------

FAR = "A try of {n} rows, where {room} fit, is far too much: on a real machine it ends in swapping. Begin with 1 and double."


def run_largest(fn, room: int, most: int) -> int:
    """A machine that holds `room` rows and counts what it is asked."""
    tried: list[int] = []

    def fits(rows: int) -> bool:
        expect(
            isinstance(rows, int) and rows >= 1,
            f"fits was asked about {rows!r} rows: it takes whole numbers from 1 on.",
        )
        expect(rows <= most, f"A batch of {rows} was tried, beyond the most, {most}, that anybody wants.")
        expect(
            rows not in tried, f"A batch of {rows} is tried twice, and each try is a step of training: keep the answer."
        )
        expect(rows <= 2 * max(1, room), FAR.format(n=rows, room=room))
        tried.append(rows)
        allowed = 2 * math.ceil(math.log2(max(2, room))) + 3
        expect(
            len(tried) <= allowed,
            f"More than {allowed} tries for a machine that holds {room} rows: double first, then halve the distance.",
        )
        return rows <= room

    return fn(fits, most)


LARGEST = Exercise(
    id="adapt.largest_batch",
    chapter="15",
    title="Measure it: the largest batch that fits",
    difficulty=3,
    minutes=15,
    why="Formulas for memory leave out what the allocator, the libraries and the neighbours take. A dozen tries tell the "
    "truth, if each costs one step and none is much too large.",
    hints=(
        "Between a batch that fits and one that does not lies the answer. How do you find the first two quickly, without "
        "ever trying one that is much too large?",
        "Double from 1 until one does not fit, or would be beyond the most; most + 1 counts as not fitting, and needs no try. "
        "Then halve the distance between the largest that fits and the smallest that does not, until they are "
        "neighbours. Never ask twice.",
        "low, high = 0, 1                      # low fits; high is the next to try\n"
        "while high <= most and fits(high):\n"
        "    low, high = high, …\n"
        "high = min(high, most + 1)            # does not fit, or is out of reach\n"
        "while …:\n"
        "    middle = (low + high) // 2\n"
        "    if fits(middle): low = middle\n"
        "    else: high = middle\n"
        "return low",
    ),
    reference=largest_batch,
    cases=lambda: [
        Case(5, 100, note="a machine that holds 5 rows; at most 100 are wanted"),
        Case(1, 64, note="one row and no more"),
        Case(0, 64, note="not even one row"),
        Case(37, 256, note="37 rows"),
        Case(90, 50, note="more room than is wanted: 50"),
        Case(64, 64, note="exactly as many as are wanted, 64"),
        Case(1000, 4096, note="1,000 rows"),
    ],
    call=run_largest,
)


def _bisected(low: int, high: int, fits: Callable[[int], bool], give: str = "low") -> int:
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low if give == "low" else high


def _doubled(fits: Callable[[int], bool], most: int) -> tuple[int, int]:
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    return low, min(high, most + 1)


for _sentence, _version in {
    "This is the doubling alone: between the last size that fits and the first that does not lie others.": (
        lambda fits, most: _doubled(fits, most)[0]
    ),
    "This is the smallest batch that does not fit. Return the one below, the largest that does.": (
        lambda fits, most: _bisected(*_doubled(fits, most), fits, "high")
    ),
}.items():
    LARGEST.mistake(_sentence)(_version)


@LARGEST.mistake("The most itself is never tried: where all up to it fit, it is the answer.")
def _(fits, most):
    low, high = 0, 1
    while high < most and fits(high):
        low, high = high, 2 * high
    return _bisected(low, min(high, most), fits)


@LARGEST.mistake("The most itself is never tried: where the doubling passes it, it may fit as well.")
def _(fits, most):
    low, high = _doubled(fits, most)
    return _bisected(low, min(high, most), fits)


@LARGEST.mistake("Where not even one row fits, the answer is 0, so that the caller can say so.")
def _(fits, most):
    return max(1, _bisected(*_doubled(fits, most), fits))


@LARGEST.mistake("The power of two is returned, or half of what fits. There is more room: bisect.")
def _(fits, most):
    low, _ = _doubled(fits, most)
    return low // 2
