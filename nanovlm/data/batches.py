"""Data sets -> endless, resumable streams of batches."""

from __future__ import annotations

import itertools
import math
import os
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from nanovlm.data.collators import Batch
from nanovlm.data.datasets import Skipped, VQADataset

Collate = Callable[[Sequence[Any]], Batch]
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
        places = range(batch * self.batch_size, (batch + 1) * self.batch_size)
        return [int(self._permuted(place // len(self.indices))[place % len(self.indices)]) for place in places]

    def _permuted(self, epoch: int) -> torch.Tensor:
        if not self.shuffle:
            return self.indices
        if self._epoch[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed + 1_000_003 * epoch)
            self._epoch = epoch, self.indices[torch.randperm(len(self.indices), generator=generator)]
        return self._epoch[1]

    def substitutes(self, batch: int, place: int) -> Iterator[int]:
        """Samples to try when the one at `place` of a batch is bad: all others once, in jumps that spread them."""
        size = len(self.indices)
        jump = max(1, int(0.618 * size))
        while math.gcd(jump, size) != 1:
            jump += 1
        start = batch * self.batch_size + place
        return (int(self.indices[(start + k * jump) % size]) for k in range(1, min(size, MAX_TRIES)))


class MapBatches(Dataset):
    """Batch number n of a data set with random access."""

    def __init__(self, dataset: VQADataset, order: BatchOrder, collate: Collate, endless: bool) -> None:
        self.dataset = dataset
        self.order = order
        self.collate = collate
        self.endless = endless

    def __getitem__(self, batch: int) -> Fetched:
        items, skipped = [], []
        indices = self.order.batch_indices(batch)
        if not self.endless:  # the last batch ends with the data
            indices = indices[: len(self.order.indices) - batch * self.order.batch_size]
        for place, index in enumerate(indices):
            candidates = itertools.chain([index], self.order.substitutes(batch, place) if self.endless else ())
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


class StreamBatches(IterableDataset):
    """Batches of a stream, for ever: every pass over the stream is an epoch.

    Batch number n is fixed for one number of workers and of processes, but to start at n all before it is read again.
    """

    def __init__(
        self,
        stream: Iterable[Any],
        encode: Callable[[Any, int], Any],
        collate: Collate,
        batch_size: int,
        keep: Callable[[Any], bool],
    ) -> None:
        self.stream, self.encode, self.collate, self.batch_size, self.keep = stream, encode, collate, batch_size, keep
        self.rank, self.stride, self.skip = 0, 1, 0  # this process, of how many, and the batches to drop at first

    def __iter__(self) -> Iterator[Fetched]:
        worker = get_worker_info()
        worker_id, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        items, skipped, failures = [], [], 0
        skip = self.skip // num_workers  # the loader drops the remainder
        for number, sample in enumerate(self._samples()):
            if number % self.stride != self.rank:
                continue
            item = self.encode(sample, number * num_workers + worker_id)
            if isinstance(item, Skipped):
                skipped.append(item)
                failures += 1
                if failures == MAX_TRIES:
                    yield Fetched(None, skipped, 0, unusable=True)
                    return
                continue
            failures = 0
            items.append(item)
            if len(items) == self.batch_size:
                if skip == 0:
                    yield _fetched(items, skipped, self.collate)
                skip = max(0, skip - 1)
                items, skipped = [], []

    def _samples(self) -> Iterator[Any]:
        for epoch in itertools.count():
            if hasattr(self.stream, "set_epoch"):
                self.stream.set_epoch(epoch)
            empty = True
            for sample in self.stream:
                if self.keep(sample):
                    empty = False
                    yield sample
            if empty:
                return


class Loader:
    """Iterates over batches; endless for training, one pass for validation.

    Attributes:
        skipped: every sample that could not be used, once each, with its reason.
        num_truncated: how often a sample was cut to max_length.

    Raises, while iterating: ValueError if sample after sample is unusable.
    """

    def __init__(self, batches: MapBatches | StreamBatches, num_workers: int = 0) -> None:
        self.batches = batches
        self.num_workers = num_workers
        self.skipped: list[Skipped] = []
        self.num_truncated = 0
        self._seen: set[int] = set()
        self._start, self._stride = 0, 1
        self._numbers = _Numbers()
        self._loader: DataLoader | None = None

    def __len__(self) -> int:
        """Batches per epoch."""
        if isinstance(self.batches, StreamBatches):
            raise TypeError("A stream does not know its length: set the number of training steps instead.")
        return len(self.batches.order)

    def set_start(self, batch: int, stride: int = 1) -> None:
        """Let the next iteration give batches batch, batch + stride, batch + 2 stride …; stride is for processes that
        share the data, each with its own start."""
        self._start, self._stride = batch, stride

    def __iter__(self) -> Iterator[Batch]:
        is_stream = isinstance(self.batches, StreamBatches)
        fetched = iter(self._data_loader())
        # Workers of a stream take turns: they dropped whole rounds, this is what remains.
        rest = self.batches.skip % max(self.num_workers, 1) if is_stream else 0
        for one in itertools.islice(fetched, rest, None):
            self._count(one)
            if one.batch is not None:
                yield one.batch
        if is_stream:
            raise ValueError("The stream holds no sample to train on beside those held out for validation (val_size).")

    def _data_loader(self) -> DataLoader:
        options: dict[str, Any] = {
            "batch_size": None,
            "collate_fn": _as_it_is,
            "num_workers": self.num_workers,
            "pin_memory": torch.cuda.is_available(),
            "worker_init_fn": _leave_interrupts_to_the_main_process,
            "generator": torch.Generator().manual_seed(0),  # else every pass would draw from the global generator
        }
        if isinstance(self.batches, StreamBatches):
            self.batches.rank, self.batches.stride = self._start % self._stride, self._stride
            self.batches.skip = self._start // self._stride
            return DataLoader(self.batches, **options)
        endless = self.batches.endless
        self._numbers.numbers = (
            itertools.count(self._start, self._stride) if endless else range(self._start, len(self), self._stride)
        )
        if self._loader is None:  # workers stay from one pass to the next
            self._loader = DataLoader(
                self.batches, sampler=self._numbers, persistent_workers=self.num_workers > 0, **options
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
        if fetched.unusable:
            reasons = "; ".join(map(str, fetched.skipped[:3])) or "there is none"
            raise ValueError(f"Not one usable sample among the last {len(fetched.skipped)} of the data: {reasons}.")


class _Numbers:
    """Batch numbers as a sampler, read anew at every pass."""

    def __init__(self) -> None:
        self.numbers: Iterable[int] = ()

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)


def _fetched(items: list[Any], skipped: list[Skipped], collate: Collate) -> Fetched:
    return Fetched(collate(items) if items else None, skipped, sum(item["truncated"] for item in items))


def _as_it_is(fetched: Fetched) -> Fetched:
    return fetched


def _leave_interrupts_to_the_main_process(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgrp"):  # not on Windows
        os.setpgrp()  # torchrun and timeout send SIGTERM to the whole group: out of it, only the loader ends a worker
