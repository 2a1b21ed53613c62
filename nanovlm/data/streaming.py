"""Streams in an order that can be taken up anywhere: mixed by weight, shuffled in blocks, read by one reader.

The reader runs in the main process and hands whole batches of undecoded samples to the workers, which decode and encode
them. So the order is the same for any number of workers, and a position is a few numbers.
"""

from __future__ import annotations

import hashlib
import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from nanovlm.data.datasets import images_of
from nanovlm.settings import first_line

Position = dict[str, Any]  # plain numbers, texts, lists and dicts: what a checkpoint may hold


class RawBatch(NamedTuple):
    """Samples as the stream gave them, numbered in the order in which they were drawn."""

    samples: list[Any]
    numbers: list[int]


@dataclass
class Source:
    """One subset: anything that can be iterated over again and again. A stream of `datasets` tells where it stands
    (`state_dict`); of anything else what came before is read again."""

    name: str
    stream: Iterable[Any]
    weight: float = 1.0
    limit: int | None = None  # samples of a pass; None: all
    files: Sequence[Path] = ()  # in which to look for the one that is damaged

    def first(self, count: int) -> list[Any]:
        """The samples that a pass begins with."""
        try:
            return list(itertools.islice(self.stream, count))
        except (OSError, ValueError) as error:
            raise self.broken(error, "") from error

    def broken(self, error: Exception, where: str) -> ValueError:
        return ValueError(f"The subset {self.name} cannot be read{where}: {what_went_wrong(error, self.files)}")


def what_went_wrong(error: BaseException, files: Sequence[Path] = ()) -> str:
    """In one line, without a full stop: the damaged parquet file, if one is found, and what was wrong at first
    (`datasets` wraps that in "an error occurred")."""
    while error.__cause__ is not None and type(error) is not ValueError:  # which is a sentence of ours
        error = error.__cause__
    reason = "".join(filter(str.isprintable, first_line(error))).rstrip(" .:")
    damaged = next(filter(_is_damaged, files), None)
    return reason if damaged is None else f"{damaged} is damaged ({reason})"


def _is_damaged(file: Path) -> bool:
    import pyarrow.parquet

    try:
        for _ in pyarrow.parquet.ParquetFile(file).iter_batches():
            pass
    except (OSError, ValueError):
        return True
    return False


class _Passes:
    """A source, pass after pass, for ever. One sample is read ahead, so that the end of a pass is known at its end."""

    def __init__(self, source: Source, keep: Callable[[Any], bool]) -> None:
        self.source, self.keep = source, keep
        self.knows_its_place = hasattr(source.stream, "state_dict")
        self.go_to({"passes": 0, "read": 0, "stream": None})

    def __next__(self) -> Any:
        if self._samples is None:
            self._begin()
        sample = self._upcoming
        self._read_one()
        return sample

    def position(self) -> Position:
        return {"passes": self.passes, "read": self._read, "stream": self._state}

    def go_to(self, position: Position) -> None:
        self.passes, self._read, self._state = position["passes"], position["read"], position["stream"]
        self._samples: Iterator[Any] | None = None
        self._upcoming: Any = None

    def _begin(self) -> None:
        """Open the stream at this position. Two tries: where a pass is at its end, the next one is begun."""
        for _ in range(2):
            if self.knows_its_place:
                self.source.stream.load_state_dict(self._state)
            self._seen = self._read
            self._samples = iter(self.source.stream)
            if self._read and self._state is None:
                next(itertools.islice(self._samples, self._read - 1, None), None)
            self._read_one()
            if self._samples is not None:
                return
        raise ValueError(
            f"The subset {self.source.name} holds no sample to train on beside those held out for validation "
            "(val_size)."
        )

    def _read_one(self) -> None:
        """The next sample of this pass into `_upcoming`; at its end the position is the next pass's beginning."""
        self._read = self._seen
        if self.knows_its_place and self._seen:
            self._state = self.source.stream.state_dict()
        try:
            while self.source.limit is None or self._seen < self.source.limit:
                self._upcoming = next(self._samples)
                self._seen += 1
                if self.keep(self._upcoming):
                    return
        except StopIteration:
            pass
        except (OSError, ValueError) as error:
            raise self.source.broken(error, f" on behind {self._seen} samples of pass {self.passes + 1}") from error
        self.go_to({"passes": self.passes + 1, "read": 0, "stream": None})


class Mixture:
    """Several sources as one: of n samples, source s has given n * weight_s / sum of weights, give or take one."""

    def __init__(self, sources: Sequence[Source], keep: Callable[[Any], bool]) -> None:
        total = sum(source.weight for source in sources)
        self.shares = [source.weight / total for source in sources]
        self.passes = [_Passes(source, keep) for source in sources]
        self.drawn = [0] * len(sources)

    def __next__(self) -> Any:
        following = sum(self.drawn) + 1
        behind = [share * following - drawn for share, drawn in zip(self.shares, self.drawn, strict=True)]
        chosen = behind.index(max(behind))
        self.drawn[chosen] += 1
        return next(self.passes[chosen])

    def position(self) -> Position:
        return {"drawn": list(self.drawn), "sources": [one.position() for one in self.passes]}

    def go_to(self, position: Position) -> None:
        if len(position["sources"]) != len(self.passes):
            raise ValueError(
                f"The checkpoint stands in {len(position['sources'])} subsets, this run has {len(self.passes)}: resume "
                "with the data that it was trained on."
            )
        self.drawn = list(position["drawn"])
        for one, place in zip(self.passes, position["sources"], strict=True):
            one.go_to(place)


class StreamReader:
    """The samples of a mixture, shuffled in blocks.

    A block is as many samples as fit into half of buffer_bytes, or one pass of all sources where that is less. While a
    block is given out in its random order the next one is read, sample by sample. A position names the beginning of the
    block at hand and how many of it are given out, so that going on there reads at most the buffer again.
    """

    def __init__(self, mixture: Mixture, seed: int, buffer_bytes: int) -> None:
        self.mixture, self.seed, self.block_bytes = mixture, seed, buffer_bytes / 2
        self.num_read = 0  # since this reader was made: what resuming costs can be counted
        self.beginning: Position = {"block": 0, "given": 0, "before": 0, "mixture": mixture.position()}
        self._at = dict(self.beginning)

    def batches(self, batch_size: int, rank: int, world: int) -> Iterator[tuple[RawBatch, Position]]:
        """Of each `world` batches the one that is `rank`'s, and the position behind all of them.

        Every process reads the whole stream, and decodes only its share: what resuming on another number of processes
        without a sample lost or doubled costs.
        """
        samples = self._samples()
        while True:
            own: RawBatch | None = None
            for turn in range(world):
                drawn = list(itertools.islice(samples, batch_size))
                if turn == rank:
                    own = RawBatch([sample for _, sample in drawn], [number for number, _ in drawn])
            yield own, self.position()

    @property
    def passes(self) -> int:
        """Whole passes over the source that has been read least often."""
        return min(one.passes for one in self.mixture.passes)

    def position(self) -> Position:
        return dict(self._at)

    def go_to(self, position: Position) -> None:
        if position.keys() != self.beginning.keys() or position["mixture"].keys() != self.beginning["mixture"].keys():
            raise ValueError("The checkpoint's position in the stream is another version's: start again from best/.")
        self._at = dict(position)

    def skip(self, samples: int) -> None:
        """Where no position is known: read on, and drop."""
        next(itertools.islice(self._samples(), samples - 1, None), None)

    def _samples(self) -> Iterator[tuple[int, Any]]:
        self.mixture.go_to(self._at["mixture"])
        block, given = list(self._fill()), self._at["given"]
        while True:
            following, ahead = self.mixture.position(), self._fill()
            next_block = list(itertools.islice(ahead, given))  # what was read while those were given out
            order = torch.randperm(len(block), generator=torch.Generator().manual_seed(self.seed + self._at["block"]))
            for index in order[given:].tolist():
                next_block.extend(itertools.islice(ahead, 1))
                self._at["given"] += 1
                yield self._at["before"] + self._at["given"] - 1, block[index]
            next_block.extend(ahead)
            before = self._at["before"] + len(block)
            self._at = {"block": self._at["block"] + 1, "given": 0, "before": before, "mixture": following}
            block, given = next_block, 0

    def _fill(self) -> Iterator[Any]:
        """One block's samples in the order of the stream."""
        size, passes = 0, [one.passes for one in self.mixture.passes]
        while size < self.block_bytes:
            sample = next(self.mixture)
            size += num_bytes(sample)
            self.num_read += 1
            yield sample
            if all(one.passes > before for one, before in zip(self.mixture.passes, passes, strict=True)):
                return


def read_ahead(items: Iterator[Any], depth: int = 2) -> Iterator[Any]:
    """The same items, read by a thread, `depth` of them ahead: it waits for disk and network while others compute."""
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
    done = threading.Event()

    def put(item: Any, error: BaseException | None = None) -> None:
        while not done.is_set():
            try:
                return ready.put((item, error), timeout=0.1)
            except queue.Full:
                pass

    def read() -> None:
        try:
            for item in items:
                put(item)
                if done.is_set():
                    return
            put(None, StopIteration())
        except BaseException as error:  # raised again where the item was wanted
            put(None, error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        done.set()
        thread.join(timeout=5)  # one that Python's end meets within a library's code takes the process down


def num_bytes(sample: Any) -> int:
    """About what an undecoded sample takes in memory."""
    size = 1_000
    for image in _images(sample):
        if isinstance(image, Mapping):
            size += len(image.get("bytes") or b"")
        elif isinstance(image, Image.Image):
            size += image.width * image.height * len(image.getbands())
        elif isinstance(image, bytes):
            size += len(image)
    return size


def _images(sample: Any) -> list[Any]:
    """The pictures of a sample, in whichever of the ways its data set holds them; what is none of them, as it is."""
    column = sample.get("images") if isinstance(sample, Mapping) else None
    try:
        return images_of(column)
    except ValueError:  # the data set will say so
        return [repr(column)]


class NotAmong:
    """Whether a sample is none of those held out."""

    def __init__(self, held_out: Iterable[Any]) -> None:
        self.held_out = frozenset(map(fingerprint, held_out))

    def __call__(self, sample: Any) -> bool:
        return fingerprint(sample) not in self.held_out


def fingerprint(sample: Any) -> bytes:
    """16 bytes that tell a stream's samples apart by their texts and pictures (undecoded, or PIL)."""
    digest = hashlib.blake2b(repr(sample.get("texts")).encode(), digest_size=16)
    for image in _images(sample):
        if isinstance(image, Mapping):
            digest.update(image.get("bytes") or str(image.get("path")).encode())
        elif isinstance(image, Image.Image):
            digest.update(image.tobytes())
        else:
            digest.update(image if isinstance(image, bytes) else repr(image).encode())
    return digest.digest()
