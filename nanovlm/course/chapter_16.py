"""What chapter 16 needs beside the package: a token's logits, differences over seeds, a small export, slides."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from nanovlm.bench.onnx_runtime import MAX_NEW_TOKENS, megabytes, pick_questions
from nanovlm.inference.frames import Frame
from nanovlm.inference.onnx_graphs import export_onnx
from nanovlm.inference.onnx_model import OnnxModel
from nanovlm.inference.prompts import prepare_prompts
from nanovlm.inference.speculative import early_exit
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


def same_answers(model: VisionLanguageModel, folder: str | Path, blocks: int, questions: int) -> tuple[int, int, float]:
    """Export the model with the first `blocks` blocks of its decoder, and ask it and the graphs the same questions.

    Returns: how many answers are the same text, of how many, and the graphs' megabytes. Raises: ImportError without
    onnx, onnxscript or onnxruntime.
    """
    decoder = early_exit(model.decoder, blocks) if blocks < len(model.decoder.blocks) else model.decoder
    config = replace(model.config, language=decoder.config)
    few = VisionLanguageModel(config, model.vision_encoder, model.projector, decoder)
    few.tokenizer, few.image_processor = model.tokenizer, model.image_processor
    directory = export_onnx(few.eval(), Path(folder) / "onnx")
    graphs, same = OnnxModel.from_pretrained(directory, torch.get_num_threads()), 0
    asked = pick_questions(questions, model.config.vision.image_size)
    for question in asked:
        told = few.generate(prompt=question.text, image=question.images, max_new_tokens=MAX_NEW_TOKENS)
        same += graphs.generate(question.text, question.images, MAX_NEW_TOKENS) == told
    return same, len(asked), megabytes(directory)


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
