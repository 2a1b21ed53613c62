"""What a run asks of the validation data: the mean loss, and the share of short questions answered exactly."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from nanovlm.data.batches import Loader
from nanovlm.data.collators import Batch, VQACollator
from nanovlm.data.datasets import Skipped
from nanovlm.device import Precision
from nanovlm.models.vision_language_model import IGNORE
from nanovlm.training import parallel
from nanovlm.training.step import forward


@torch.no_grad()
def validation_loss(
    model: nn.Module, batches: Iterable[dict[str, Any]], precision: Precision, device: torch.device
) -> float:
    """The mean loss over all supervised tokens of the validation data, of which each process has a share."""
    model.eval()
    total, tokens = 0.0, 0
    for batch, counts in parallel.in_step(batches, device):
        count = int((batch["targets"] != IGNORE).sum()) if counts else 0
        with precision.context(device):
            loss = forward(model, batch, device).loss.item()
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} on the validation samples {batch['sample_indices']}")
        total += loss * count
        tokens += count
    model.train()
    total, tokens = (parallel.summed(value, device) for value in (total, tokens))
    if tokens == 0:
        raise ValueError("Not one validation sample can be used, so no checkpoint can be called the best.")
    return total / tokens


@torch.no_grad()
def answer_accuracy(
    model: nn.Module, batches: Iterable[dict[str, Any]], precision: Precision, device: torch.device
) -> float:
    """The share of rows whose answer greedy decoding would give exactly: each token, the ending included, is the most
    likely one after the right ones before it. One forward pass tells."""
    model.eval()
    right = rows = 0
    for batch, counts in parallel.in_step(batches, device):
        with precision.context(device):
            guesses = forward(model, batch, device).logits.argmax(dim=-1).cpu()  # [supervised tokens]
        supervised = batch["targets"] != IGNORE  # [B, T]
        wrong = supervised.nonzero()[:, 0][guesses != batch["targets"][supervised]]  # the rows of wrong tokens
        right += (len(supervised) - len(wrong.unique())) * counts
        rows += len(supervised) * counts
    model.train()
    return parallel.summed(right, device) / parallel.summed(rows, device)


def short_questions(loader: Loader, images: int, longest: int = 8) -> list[Batch]:
    """Batches of single questions about so many of a validation loader's samples, spread over all of them.

    Left out are answers of more than `longest` tokens, as captions: exact match says little about those.
    """
    data, order = loader.batches.dataset, loader.batches.order
    chosen = order.indices[:: max(1, len(order.indices) // max(1, images))][:images].tolist()
    samples = {index: data.dataset[index] for index in chosen if not isinstance(data[index], Skipped)}
    items = [
        data.encode({**sample, "texts": [turn]}, index) for index, sample in samples.items() for turn in sample["texts"]
    ]
    items = [
        item
        for item in items
        if not isinstance(item, Skipped) and item["num_supervised"] <= longest and not item["truncated"]
    ]
    collate = VQACollator(data.tokenizer.pad_token_id)
    return [collate(items[i : i + order.batch_size]) for i in range(0, len(items), order.batch_size)]


def look_ahead(loader: Loader, samples: int = 64) -> str | None:
    """What the first validation samples say about the run that is to begin, in a sentence; None: nothing is amiss."""
    data, indices = loader.batches.dataset, loader.batches.order.indices[:samples].tolist()
    seen = list(map(data.__getitem__, indices))
    items = [item for item in seen if not isinstance(item, Skipped)]
    said = []
    if skipped := [item for item in seen if isinstance(item, Skipped)]:
        said.append(f"{len(skipped)} of {len(seen)} validation samples cannot be used, first: {skipped[0]}")
    if cut := sum(item["truncated"] for item in items):
        said.append(
            f"{cut} of {len(items)} validation samples are longer than max_length and lose their ends: raise it, if "
            "that matters"
        )
    if items and not any(len(item["images"]) for item in items):
        said.append(f"not one of {len(items)} validation samples has a picture")
    return "; ".join(said) or None
