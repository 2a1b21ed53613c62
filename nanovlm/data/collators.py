"""Items -> batches: padded at their ends, or packed, several to a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nanovlm.data.chat import IGNORE
from nanovlm.data.datasets import Skipped

Item = dict[str, Any]
Batch = dict[str, Any]


def pad(rows: Sequence[Tensor], value: int, length: int) -> Tensor:
    """Rows of unequal lengths -> [B, length], filled up with `value` at their ends."""
    padded = torch.full((len(rows), length), value, dtype=torch.int64)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded


def pack(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """First-fit decreasing: the longest sample first, each into the first row that still has room for it.

    Returns the samples of each row. They are at most 11/9 of the fewest possible, plus 6/9 (Dósa, 2007).
    Raises: ValueError if a sample is longer than a row.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for sample in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if lengths[sample] > max_length:
            raise ValueError(
                f"A sample of {lengths[sample]} tokens does not fit into rows of {max_length}: cut it first."
            )
        row = next((r for r, free in enumerate(room) if free >= lengths[sample]), None)
        if row is None:
            row = len(rows)
            rows.append([])
            room.append(max_length)
        rows[row].append(sample)
        room[row] -= lengths[sample]
    return rows


def _usable(items: Sequence[Item | Skipped]) -> tuple[list[Item], Batch]:
    """Set skipped samples aside; they stay in the batch, under "skipped", for who counts them."""
    good = [item for item in items if not isinstance(item, Skipped)]
    skipped = [item for item in items if isinstance(item, Skipped)]
    if not good:
        reasons = "; ".join(map(str, skipped[:3])) or "it was empty"
        raise ValueError(f"No sample of the batch can be used: {reasons}.")
    return good, {"skipped": skipped} if skipped else {}


def _images(items: Sequence[Item]) -> Tensor | None:
    """All pictures in reading order [P, 3, H, W], or None."""
    images = [item["images"] for item in items if len(item["images"])]
    return torch.cat(images) if images else None


class VQACollator:
    """Items -> {input_ids, attention_mask, targets [B, T], images [P, 3, H, W] or None, sample_indices}.

    T is the longest row of this batch, rounded up to a multiple if that is asked for (fewer shapes to compile).
    """

    def __init__(self, pad_token_id: int, pad_to_multiple_of: int = 1) -> None:
        self.pad_token_id = pad_token_id
        self.multiple = pad_to_multiple_of

    def __call__(self, items: Sequence[Item | Skipped]) -> Batch:
        items, batch = _usable(items)
        length = max(len(item["input_ids"]) for item in items)
        length = -(-length // self.multiple) * self.multiple
        ids = [item["input_ids"] for item in items]
        batch["input_ids"] = pad(ids, self.pad_token_id, length)
        batch["attention_mask"] = pad([torch.ones_like(row) for row in ids], 0, length)
        if "targets" in items[0]:
            batch["targets"] = pad([item["targets"] for item in items], IGNORE, length)
        batch["images"] = _images(items)
        batch["sample_indices"] = [item["index"] for item in items]
        return batch


class PackingCollator:
    """Items -> rows of max_length that hold several samples each, with document_ids [B, T] beside VQACollator's keys.

    document_ids count 0, 1, 2 … along a row, -1 is padding. Without them one sample would read the one before it. A
    sample's last target is unsupervised, so none asks for the next document's first token.
    """

    def __init__(self, pad_token_id: int, max_length: int) -> None:
        self.pad_token_id = pad_token_id
        self.max_length = max_length

    def __call__(self, items: Sequence[Item | Skipped]) -> Batch:
        items, batch = _usable(items)
        rows = [[items[i] for i in row] for row in pack([len(item["input_ids"]) for item in items], self.max_length)]
        in_order = [item for row in rows for item in row]
        documents = [torch.cat([torch.full_like(item["input_ids"], d) for d, item in enumerate(row)]) for row in rows]
        for key, filling in (("input_ids", self.pad_token_id), ("targets", IGNORE)):
            batch[key] = pad([torch.cat([item[key] for item in row]) for row in rows], filling, self.max_length)
        batch["document_ids"] = pad(documents, -1, self.max_length)
        batch["attention_mask"] = (batch["document_ids"] >= 0).long()
        batch["images"] = _images(in_order)
        batch["sample_indices"] = [item["index"] for item in in_order]
        return batch
