"""A training run small enough for tests: 16-pixel pictures, a model of 30,000 weights, some milliseconds a step."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nanovlm.config import TrainConfig, VLMConfig
from nanovlm.data.processors import ImageProcessor
from nanovlm.models.vision_language_model import VisionLanguageModel
from nanovlm.train import Run, train
from tests.tiny import tiny_config
from tests.tiny_tokenizer import tiny_tokenizer

VOCAB_SIZE = 400


def vlm_config() -> VLMConfig:
    return tiny_config(vocab_size=VOCAB_SIZE, max_positions=256)


def new_model(seed: int = 0) -> VisionLanguageModel:
    torch.manual_seed(seed)
    model = VisionLanguageModel(vlm_config())
    model.tokenizer = tiny_tokenizer()
    model.image_processor = ImageProcessor(model.config.vision.image_size)
    return model


def recipe(output_dir: Path, **changes: Any) -> TrainConfig:
    config = TrainConfig(
        dataset_names=("shapes",),
        dataset_size=64,
        val_size=4,
        max_length=160,
        batch_size=4,
        max_steps=6,
        optimizer="muon",
        lr_projector=3e-3,
        lr_backbones=3e-3,
        precision="fp32",
        log_every=1,
        eval_every=3,
        save_every=2,
        accuracy_pictures=2,
        output_dir=str(output_dir),
        run_name="run",
    )
    return replace(config, **changes)


def run(output_dir: Path, **changes: Any) -> Run:
    return train(recipe(output_dir, **changes), new_model())


def metrics(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def weights(model: VisionLanguageModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bitwise"""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def max_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max((a[name] - b[name]).abs().max().item() for name in a)
