"""What chapter 16 needs beside the package: logits of a token, differences of students, slides, rows of a batch."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from nanovlm.inference.frames import Frame
from nanovlm.inference.prompts import prepare_prompts
from nanovlm.models.vision_language_model import VisionLanguageModel
from nanovlm.training.probe import mean
from nanovlm.viz.compression import Variant


@torch.no_grad()
def next_logits(model: VisionLanguageModel, question: str, image: Image.Image) -> Tensor:
    """The logits of the answer's first token, [vocab_size]"""
    batch = prepare_prompts(model, [question], [image])
    return model(batch["input_ids"], batch["images"]).logits[0, -1].float()


def gains(runs: Mapping[str, Any]) -> dict[str, tuple[float, float, float]]:
    """Loss and seed -> the difference to the student alone with the same seed, and the ends of its 95 % interval over
    the questions. Shares of right answers, as though both students had been asked different questions."""
    alone, number, found = runs["runs"]["alone"], runs["questions"], {}
    for name, seeds in runs["runs"].items():
        for seed in seeds if name != "alone" else ():
            p, q = mean(seeds[seed]["right"]), mean(alone[seed]["right"])
            half = 1.96 * ((p * (1 - p) + q * (1 - q)) / number) ** 0.5
            found[f"{name}, seed {seed}"] = (p - q, p - q - half, p - q + half)
    return found


class Slides:
    """A source of frames for `watch`: the pictures in turn, one every `every` seconds, without an end."""

    def __init__(self, images: Sequence[Image.Image], every: float) -> None:
        self.images, self.every = images, every
        self.no_images: dict[str, str] = {}

    def frames(self, pause: Callable[[float], bool]) -> Iterator[Frame]:
        for number, image in enumerate(itertools.cycle(self.images)):
            yield Frame(f"slide {number}", image)
            if pause(self.every):
                return

    def close(self) -> None:
        """Nothing is held open."""


def table(stored: Mapping[str, Any]) -> list[Variant]:
    """The rows of `nanovlm.bench.small_and_fast`; of trained variants the mean over seeds."""
    before = stored["variants"]["float32"]["kinds"]
    rows = []
    for name, run in stored["variants"].items():
        rows.append(_row(name, [run], before, stored["speeds"].get(name, {}).get("answer")))
    for name, seeds in stored["trained"].items():
        rows.append(_row(name, list(seeds.values()), before, None))
    return rows


def _row(name: str, runs: Sequence[Mapping[str, Any]], before: Mapping[str, float], speed: float | None) -> Variant:
    kinds = {kind: statistics.mean(run["kinds"][kind] for run in runs) for kind in before}
    lost = max(before, key=lambda kind: before[kind] - kinds[kind])
    worst = lost if before[lost] - kinds[lost] > 0 else ""
    return Variant(name, runs[0]["bytes"] / 1e6, statistics.mean(run["right"] for run in runs), speed, worst)


def schedule(lengths: Sequence[int], places: int, continuous: bool) -> list[str]:
    """A batch with room for `places` rows, drawn: a letter for each prompt, a column for each step, a dot where a row
    that has ended waits. Static batching waits until all rows of a batch have ended, continuous batching does not."""
    drawn = [""] * places
    for prompt, length in enumerate(lengths):
        if prompt % places == 0 and not continuous:
            drawn = [place.ljust(max(map(len, drawn)), "·") for place in drawn]
        free = min(range(places), key=lambda i: len(drawn[i]))
        drawn[free] += chr(ord("A") + prompt) * length
    return drawn
