"""Does it see yet? Accuracy and loss by kind of question, with the right picture and with another one's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanovlm.data.collators import VQACollator
from nanovlm.data.datasets import VQADataset
from nanovlm.models.vision_language_model import IGNORE, VisionLanguageModel

LONGEST = 8  # supervised tokens: exact match says little about longer answers, such as captions


class Probe:
    """Single questions about held-out pictures, encoded once, to be asked many times during a run.

    An answer counts as right where each of its tokens, the ending included, is the most likely one after the right ones
    before it: exactly where greedy decoding would give it. `blind` asks about another sample's picture, so that what is
    still right was read off the question.

    Args:
        samples: in the_cauldron's schema with one picture each; the kind of a question is the end of its "source".
    """

    def __init__(self, model: VisionLanguageModel, samples: Sequence[dict[str, Any]], batch_size: int = 96) -> None:
        if len(samples) < 2:
            raise ValueError("A probe shows other pictures to the blind model, so it needs at least two samples.")
        data = VQADataset(samples, model.tokenizer, model.image_processor, model.config)
        items, self.kinds = [], []
        for index, sample in enumerate(samples):
            for turn in sample["texts"]:
                item = data.encode({**sample, "texts": [turn]}, index)
                if isinstance(item, dict) and item["num_supervised"] <= LONGEST:
                    items.append(item)
                    self.kinds.append(turn["source"].rsplit("/", 1)[-1])
        images = {item["index"]: item["images"] for item in items}
        following = dict(zip(images, [*list(images)[1:], next(iter(images))], strict=True))
        collate = VQACollator(model.tokenizer.pad_token_id)
        self.batches = [collate(items[i : i + batch_size]) for i in range(0, len(items), batch_size)]
        self.blind_images = [
            torch.cat([images[following[index]] for index in batch["sample_indices"]]) for batch in self.batches
        ]

    def right(self, model: VisionLanguageModel, blind: bool = False) -> list[bool]:
        """For each question, in the order of `kinds`, whether the answer is right."""
        return self._judged(model, blind, _right_rows)

    def accuracy(self, model: VisionLanguageModel, blind: bool = False) -> dict[str, float]:
        """Kind of question -> share of right answers."""
        return self._by_kind(self._judged(model, blind, _right_rows))

    def losses(self, model: VisionLanguageModel, blind: bool = False) -> dict[str, float]:
        """Kind of question -> the mean loss of an answer, which is the sum over its tokens."""
        return self._by_kind(self._judged(model, blind, _row_losses))

    @torch.no_grad()
    def _judged(
        self, model: VisionLanguageModel, blind: bool, judge: Callable[[Tensor, Tensor, Tensor, int], Tensor]
    ) -> list:
        """judge(rows, logits, wanted, B), which gives a number for each question of a batch, [B], for all of them.
        rows [n]: the row of each supervised token, logits [n, vocab_size] for it, wanted [n]: its id."""
        training, weight = model.training, model.projector.proj.weight
        model.eval()
        judged: list = []
        for batch, other in zip(self.batches, self.blind_images, strict=True):
            images = (other if blind else batch["images"]).to(weight.device, weight.dtype)
            targets = batch["targets"].to(weight.device)
            logits = model(batch["input_ids"].to(weight.device), images, targets=targets).logits
            supervised = targets != IGNORE  # [B, T]
            rows = supervised.nonzero()[:, 0]
            judged += judge(rows, logits, targets[supervised], len(targets)).tolist()
        model.train(training)
        return judged

    def _by_kind(self, judged: Sequence[float]) -> dict[str, float]:
        by_kind: dict[str, list[float]] = {}
        for kind, value in zip(self.kinds, judged, strict=True):
            by_kind.setdefault(kind, []).append(value)
        return {kind: sum(values) / len(values) for kind, values in by_kind.items()}


def _right_rows(rows: Tensor, logits: Tensor, wanted: Tensor, count: int) -> Tensor:
    hits = torch.ones(count, dtype=torch.bool, device=rows.device)
    hits[rows[logits.argmax(dim=-1) != wanted]] = False
    return hits


def _row_losses(rows: Tensor, logits: Tensor, wanted: Tensor, count: int) -> Tensor:
    losses = F.cross_entropy(logits.float(), wanted, reduction="none")  # [n]
    return losses.new_zeros(count).index_add(0, rows, losses)


def mean(accuracy: dict[str, float]) -> float:
    """The mean over kinds: each kind counts the same, however often it is asked."""
    return sum(accuracy.values()) / len(accuracy)
