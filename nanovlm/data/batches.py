"""Data sets -> endless, resumable streams of batches."""

from __future__ import annotations

import itertools
import math
import os
import signal
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from nanovlm.data.collators import Batch
from nanovlm.data.datasets import Skipped, VQADataset
from nanovlm.data.streaming import Position, RawBatch, StreamReader, read_ahead

Collate = Callable[[Sequence[Any]], Batch]
MAX_WORKERS = 64  # on any machine; more where there are more cores
MAX_TRIES = 1000  # samples that may fail one after the other before the data are called unusable


class Fetched(NamedTuple):
    """What travels from a worker to the loader."""

    batch: Batch | None
    skipped: list[Skipped]
    truncated: int
    unusable: bool = False  # too many samples failed in a row


class BatchOrder:
    """Which samples make batch number n: a pure function of (seed, n), so any batch can be had without its forerunners.

    Each epoch is a new permutation of the samples, and the epochs are laid end to end: batches are always full, every
    sample comes once per epoch, and a batch may reach over the end of one.

    Args:
        indices: the samples of the data set that take part, [N].
    """

    def __init__(self, indices: torch.Tensor, batch_size: int, seed: int, shuffle: bool = True) -> None:
        self.indices = indices
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self._epoch: tuple[int, torch.Tensor] = (-1, indices)

    def __len__(self) -> int:
        """Batches per epoch, the last one counted in full."""
        return math.ceil(len(self.indices) / self.batch_size)

    def batch_indices(self, batch: int) -> list[int]:
        return self.samples(batch * self.batch_size, self.batch_size)

    def samples(self, first: int, count: int) -> list[int]:
        """Those at the places first … first + count - 1 of all epochs laid end to end."""
        size = len(self.indices)
        return [int(self._permuted(place // size)[place % size]) for place in range(first, first + count)]

    def _permuted(self, epoch: int) -> torch.Tensor:
        if not self.shuffle:
            return self.indices
        if self._epoch[0] != epoch:
            members = self._members(epoch)
            generator = torch.Generator().manual_seed(self.seed + 1_000_003 * epoch)
            self._epoch = epoch, members[torch.randperm(len(members), generator=generator)]
        return self._epoch[1]

    def _members(self, epoch: int) -> torch.Tensor:
        return self.indices

    def substitutes(self, place: int) -> Iterator[int]:
        """Samples to try when the one at `place` is bad: all others once, in jumps that spread them."""
        size = len(self.indices)
        jump = max(1, int(0.618 * size))
        while math.gcd(jump, size) != 1:
            jump += 1
        return (int(self.indices[(place + k * jump) % size]) for k in range(1, min(size, MAX_TRIES)))


class WeightedOrder(BatchOrder):
    """An epoch is as long, but each subset has its share of it by weight: a heavy one comes around more than once, a
    light one shows another part of itself each time.

    Args:
        subsets: the samples of each subset, disjoint.
    """

    def __init__(self, subsets: Sequence[torch.Tensor], weights: Sequence[float], batch_size: int, seed: int) -> None:
        super().__init__(torch.cat(list(subsets)), batch_size, seed)
        total, size = sum(weights), len(self.indices)
        ends = [round(size * sum(weights[: n + 1]) / total) for n in range(len(weights))]
        self.counts = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        self.subsets = [BatchOrder(indices, 1, seed + n) for n, indices in enumerate(subsets)]

    def _members(self, epoch: int) -> torch.Tensor:
        drawn = [own.samples(epoch * count, count) for own, count in zip(self.subsets, self.counts, strict=True)]
        return torch.tensor(list(itertools.chain.from_iterable(drawn)))


class MapBatches(Dataset):
    """The batch that begins with the sample at a place of the order, of a data set with random access."""

    def __init__(self, dataset: VQADataset, order: BatchOrder, collate: Collate, endless: bool) -> None:
        self.dataset = dataset
        self.order = order
        self.collate = collate
        self.endless = endless

    def __getitem__(self, first: int) -> Fetched:
        items, skipped = [], []
        count = self.order.batch_size
        if not self.endless:  # the last batch ends with the data
            count = min(count, len(self.order.indices) - first)
        for place, index in enumerate(self.order.samples(first, count), start=first):
            candidates = itertools.chain([index], self.order.substitutes(place) if self.endless else ())
            for candidate in candidates:
                item = self.dataset[candidate]
                if not isinstance(item, Skipped):
                    items.append(item)
                    break
                skipped.append(item)
            else:
                if self.endless:
                    return Fetched(None, skipped, 0, unusable=True)
        return _fetched(items, skipped, self.collate)


class StreamBatches(Dataset):
    """Batches of a stream, which its reader (in the main process) hands over undecoded."""

    def __init__(
        self, reader: StreamReader, encode: Callable[[Any, int], Any], collate: Collate, batch_size: int
    ) -> None:
        self.reader, self.encode, self.collate, self.batch_size = reader, encode, collate, batch_size

    def __getitem__(self, raw: RawBatch) -> Fetched:
        """A bad sample leaves its batch one shorter."""
        items = [self.encode(sample, number) for sample, number in zip(*raw, strict=True)]
        skipped = [item for item in items if isinstance(item, Skipped)]
        return _fetched([item for item in items if not isinstance(item, Skipped)], skipped, self.collate)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "reader": None}  # workers need none


class Loader:
    """Iterates over batches; endless for training, one pass for validation.

    Attributes:
        skipped: every sample that could not be used, once each, with its reason.
        num_truncated: how often a sample was cut to max_length.
        position: of a stream, behind the batches given so far in all processes; else None.

    Raises, while iterating: ValueError if sample after sample is unusable.
    """

    def __init__(self, batches: MapBatches | StreamBatches, num_workers: int = 0) -> None:
        most = max(MAX_WORKERS, 4 * (os.cpu_count() or 1))
        if num_workers > most:
            raise ValueError(f"num_workers {num_workers:,} is more than this machine can feed: at most {most}.")
        self.batches = batches
        self.num_workers = num_workers
        self.skipped: list[Skipped] = []
        self.num_truncated = 0
        self.position: Position | None = None
        self._seen: set[int] = set()
        self._failures = 0  # samples of a stream that could not be used, since the last one that could
        self._start, self._rank, self._world = 0, 0, 1
        self._places = _Places()
        self._loader: DataLoader | None = None

    def __len__(self) -> int:
        """Batches per epoch."""
        if isinstance(self.batches, StreamBatches):
            raise TypeError("A stream does not know its length: set the number of training steps instead.")
        return len(self.batches.order)

    def set_start(self, samples: int, rank: int = 0, world: int = 1, position: Position | None = None) -> None:
        """Let the next iteration begin behind so many samples, and take the batches that are `rank`'s of `world`.

        position: of a stream, what `position` was there. Without it the samples are read and dropped.
        """
        self._start, self._rank, self._world = samples, rank, world
        if isinstance(self.batches, StreamBatches):
            self.batches.reader.go_to(position or self.batches.reader.beginning)
            if samples and position is None:
                self.batches.reader.skip(samples)
            self.position = self.batches.reader.position()

    def __iter__(self) -> Iterator[Batch]:
        positions: deque[Position] = deque()
        for fetched in self._data_loader(positions):
            if positions:
                self.position = positions.popleft()
            self._count(fetched)
            if fetched.batch is not None:
                yield fetched.batch

    def _data_loader(self, positions: deque[Position]) -> DataLoader:
        options: dict[str, Any] = {
            "batch_size": None,
            "collate_fn": _as_it_is,
            "num_workers": self.num_workers,
            "pin_memory": torch.cuda.is_available(),
            "worker_init_fn": _leave_interrupts_to_the_main_process,
            "generator": torch.Generator().manual_seed(0),  # else every pass would draw from the global generator
        }
        if isinstance(self.batches, StreamBatches):
            self.batches.reader.go_to(self.position or self.batches.reader.beginning)
            read = read_ahead(self.batches.reader.batches(self.batches.batch_size, self._rank, self._world))
            return DataLoader(self.batches, sampler=_Noted(read, positions), **options)
        size = self.batches.order.batch_size
        start, step = self._start + self._rank * size, self._world * size
        endless = self.batches.endless
        self._places.places = (
            itertools.count(start, step) if endless else range(start, len(self.batches.order.indices), step)
        )
        if self._loader is None:  # workers stay from one pass to the next
            self._loader = DataLoader(
                self.batches, sampler=self._places, persistent_workers=self.num_workers > 0, **options
            )
        return self._loader

    def _count(self, fetched: Fetched) -> None:
        for skipped in fetched.skipped:
            if skipped.index not in self._seen:
                self._seen.add(skipped.index)
                self.skipped.append(skipped)
                if len(self.skipped) == 1:
                    warnings.warn(f"Skipped {skipped}. Others will only be counted.", stacklevel=3)
        self.num_truncated += fetched.truncated
        if isinstance(self.batches, StreamBatches):
            self._failures = 0 if fetched.batch is not None else self._failures + len(fetched.skipped)
            # Samples that come again are no others: of a small stream one pass tells.
            again = fetched.batch is None and self.batches.reader.passes > 1 and self._failures >= len(self._seen)
            fetched = fetched._replace(unusable=self._failures >= MAX_TRIES or again)
        if fetched.unusable:
            reasons = "; ".join(map(str, fetched.skipped[:3])) or "there is none"
            raise ValueError(f"Not one usable sample among the last {len(fetched.skipped)} of the data: {reasons}.")


class _Places:
    """Places of an order as a sampler, read anew at every pass."""

    def __init__(self) -> None:
        self.places: Iterable[int] = ()

    def __iter__(self) -> Iterator[int]:
        return iter(self.places)


class _Noted:
    """A stream's batches as a sampler; the positions behind them are kept until the batches come back encoded."""

    def __init__(self, read: Iterator[tuple[RawBatch, Position]], positions: deque[Position]) -> None:
        self.read, self.positions = read, positions

    def __iter__(self) -> Iterator[RawBatch]:
        for raw, position in self.read:
            self.positions.append(position)
            yield raw


def _fetched(items: list[Any], skipped: list[Skipped], collate: Collate) -> Fetched:
    return Fetched(collate(items) if items else None, skipped, sum(item["truncated"] for item in items))


def _as_it_is(fetched: Fetched) -> Fetched:
    return fetched


def _leave_interrupts_to_the_main_process(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgrp"):  # not on Windows
        os.setpgrp()  # torchrun and timeout send SIGTERM to the whole group: out of it, only the loader ends a worker
