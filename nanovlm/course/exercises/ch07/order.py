"""Chapter 07: which samples make batch number n, as a pure function."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from nanovlm.course.judge.exercise import Case, Exercise, expect
from nanovlm.data.batches import BatchOrder

# -- data.resumable_order ----------------------------------------------------------------------------------------------

FACTS = (
    "every batch is full",
    "each sample once an epoch",
    "shuffled",
    "asked again: the same",
    "asked alone: the same",
    "another epoch, another order",
    "another seed, another order",
)
Order = Callable[[int, int, int, int], Sequence[int]]


def batch_indices(batch: int, size: int, batch_size: int, seed: int) -> list[int]:
    """The package's BatchOrder."""
    return BatchOrder(torch.arange(size), batch_size, seed).batch_indices(batch)


def facts_of(order: Order, size: int, batch_size: int, seed: int) -> dict[str, bool]:
    """What holds of an order, however it shuffles."""
    count = -(-3 * size // batch_size)  # batches of three epochs

    def batch(number: int, with_seed: int = seed) -> list[int]:
        out = order(number, size, batch_size, with_seed)
        out = out.tolist() if isinstance(out, torch.Tensor) else out
        expect(isinstance(out, (list, tuple)), f"It should return a list of indices; it returned {type(out).__name__}.")
        expect(
            all(0 <= int(i) < size for i in out), f"There are {size} samples, from 0 on, and it returned {list(out)}."
        )
        return [int(i) for i in out]

    batches = [batch(n) for n in range(count)]
    flat = [i for one in batches for i in one]
    epochs = [flat[e * size : (e + 1) * size] for e in range(3)]
    alone = torch.randperm(count, generator=torch.Generator().manual_seed(1)).tolist()
    again = [batch(n) for n in range(count)]
    shuffled_calls = {n: batch(n) for n in alone}
    facts = (
        all(len(one) == batch_size for one in batches),
        all(sorted(epoch) == list(range(size)) for epoch in epochs),
        epochs[0] != list(range(size)),
        again == batches,
        all(shuffled_calls[n] == batches[n] for n in alone),
        epochs[0] != epochs[1] and epochs[1] != epochs[2],
        [batch(n, seed + 1) for n in range(count)] != batches,
    )
    return dict(zip(FACTS, facts, strict=True))


RESUMABLE_ORDER = Exercise(
    id="data.resumable_order",
    chapter="07",
    title="Batch number n, asked alone",
    difficulty=3,
    minutes=15,
    why="A run that is killed at step 4,106 and resumed must go on with batch 4,106: not with the first one again, and "
    "not with a fresh shuffle in which some samples come twice and others never.",
    hints=(
        "Lay the epochs end to end: one endless list in which each stretch of `size` is a permutation of the samples. "
        "Batch n is a window of it. Which places does it cover?",
        "Batch n covers the places n * batch_size to (n + 1) * batch_size - 1. Place p is in epoch p // size, at "
        "p % size. The permutation of an epoch comes from a generator of its own, seeded with the seed and the epoch.",
        "for place in range(batch * batch_size, (batch + 1) * batch_size):\n"
        "    epoch, offset = divmod(place, size)\n"
        "    generator = torch.Generator().manual_seed(…)          # from seed and epoch\n"
        "    permutation = torch.randperm(size, generator=generator)\n"
        "    indices.append(int(permutation[offset]))",
    ),
    reference=batch_indices,
    cases=lambda: [
        Case(12, 4, 3, note="12 samples, batches of 4, seed 3: three batches are an epoch"),
        Case(10, 4, 0, note="10 samples, batches of 4: the third batch reaches into the next epoch"),
        Case(7, 3, 11, note="7 samples, batches of 3"),
    ],
    call=facts_of,
)


@RESUMABLE_ORDER.property("a batch can be larger than the data")
def _(fn) -> None:
    out = [int(i) for i in fn(0, 3, 7, 0)]
    expect(
        len(out) == 7 and sorted(out[:3]) == sorted(out[3:6]) == [0, 1, 2],
        f"Of 3 samples a batch of 7 holds two whole epochs and one more; it returned {out}.",
    )


def _permutation(size: int, seed: int) -> list[int]:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()


def _window(batch: int, size: int, batch_size: int, permuted: Callable[[int], list[int]]) -> list[int]:
    places = range(batch * batch_size, (batch + 1) * batch_size)
    orders = {epoch: permuted(epoch) for epoch in {place // size for place in places}}
    return [orders[place // size][place % size] for place in places]


@RESUMABLE_ORDER.mistake(
    "Every epoch has the same order: the seed alone makes the permutation. Put the epoch into the seed as well."
)
def _(batch, size, batch_size, seed):
    return _window(batch, size, batch_size, lambda epoch: _permutation(size, seed))


@RESUMABLE_ORDER.mistake(
    "The random numbers come from a global generator, so that the order depends on what has been drawn before. After a "
    "restart it is another one: make a generator here, and seed it."
)
def _(batch, size, batch_size, seed):
    return _window(batch, size, batch_size, lambda epoch: torch.randperm(size).tolist())


@RESUMABLE_ORDER.mistake(
    "Where an epoch ends inside a batch, samples are lost or come twice: the rest is dropped, or the batch is filled from "
    "the same epoch's beginning. Epochs lie end to end: let the batch reach into the next one."
)
def _(batch, size, batch_size, seed):
    per_epoch = max(1, size // batch_size)
    epoch, number = divmod(batch, per_epoch)
    return _permutation(size, seed + 1000 * epoch)[number * batch_size : (number + 1) * batch_size]


@RESUMABLE_ORDER.mistake(
    "The last batch of an epoch is short. Epochs lie end to end: let the batch reach into the next one, so that every "
    "step sees equally many samples."
)
def _(batch, size, batch_size, seed):
    per_epoch = -(-size // batch_size)
    epoch, number = divmod(batch, per_epoch)
    return _permutation(size, seed + 1000 * epoch)[number * batch_size : (number + 1) * batch_size]


@RESUMABLE_ORDER.mistake("Nothing is shuffled: the samples come in the order of the data, which is often by source.")
def _(batch, size, batch_size, seed):
    return _window(batch, size, batch_size, lambda epoch: list(range(size)))


@RESUMABLE_ORDER.mistake("The seed does not reach the shuffle: two runs with different seeds see the same order.")
def _(batch, size, batch_size, seed):
    return _window(batch, size, batch_size, lambda epoch: _permutation(size, epoch))


@RESUMABLE_ORDER.mistake(
    "Each batch draws its own samples from all of them (the batch's number is the seed). In one epoch some then come "
    "twice and others never: permute once an epoch, and cut."
)
def _(batch, size, batch_size, seed):
    order = _permutation(size, seed * 1000 + batch)
    return [order[i % size] for i in range(batch_size)]
