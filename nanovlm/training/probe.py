"""Does it see yet? Accuracy by kind of question, with the right picture and with another one's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from nanovlm.data.collators import Batch, VQACollator
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

    @torch.no_grad()
    def right(self, model: VisionLanguageModel, blind: bool = False) -> list[bool]:
        """For each question, in the order of `kinds`, whether the answer is right."""
        training = model.training
        model.eval()
        right: list[bool] = []
        for batch, other in zip(self.batches, self.blind_images, strict=True):
            right += _right_rows(model, batch, other if blind else batch["images"])
        model.train(training)
        return right

    def accuracy(self, model: VisionLanguageModel, blind: bool = False) -> dict[str, float]:
        """Kind of question -> share of right answers."""
        by_kind: dict[str, list[bool]] = {}
        for kind, hit in zip(self.kinds, self.right(model, blind), strict=True):
            by_kind.setdefault(kind, []).append(hit)
        return {kind: sum(hits) / len(hits) for kind, hits in by_kind.items()}


def _right_rows(model: VisionLanguageModel, batch: Batch, images: torch.Tensor) -> list[bool]:
    weight = model.projector.proj.weight
    targets = batch["targets"].to(weight.device)
    out = model(batch["input_ids"].to(weight.device), images.to(weight.device, weight.dtype), targets=targets)
    supervised = targets != IGNORE  # [B, T]
    wrong = supervised.nonzero()[:, 0][out.logits.argmax(dim=-1) != targets[supervised]]  # the rows of wrong tokens
    hits = torch.ones(len(targets), dtype=torch.bool, device=weight.device)
    hits[wrong] = False
    return hits.tolist()


def mean(accuracy: dict[str, float]) -> float:
    """The mean over kinds: each kind counts the same, however often it is asked."""
    return sum(accuracy.values()) / len(accuracy)
