"""A training run small enough for tests: 16-pixel pictures, a model of 30,000 weights, some milliseconds a step."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nanovlm.config import TrainConfig, VLMConfig
from nanovlm.data.collators import VQACollator
from nanovlm.data.datasets import VQADataset
from nanovlm.data.processors import ImageProcessor
from nanovlm.data.thimble import thimble_sample
from nanovlm.data.thimble.hub_datasets import png
from nanovlm.device import choose_precision
from nanovlm.models.vision_language_model import VisionLanguageModel
from nanovlm.training.loop import Run, train
from nanovlm.training.optimizer import Optimizers
from nanovlm.training.step import train_step
from tests.tiny import tiny_config
from tests.tiny_tokenizer import tiny_tokenizer

VOCAB_SIZE = 400


def vlm_config(**language: int) -> VLMConfig:
    return tiny_config(vocab_size=VOCAB_SIZE, max_positions=256, **language)


def new_model(seed: int = 0, **language: int) -> VisionLanguageModel:
    torch.manual_seed(seed)
    model = VisionLanguageModel(vlm_config(**language))
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
        accuracy_images=2,
        output_dir=str(output_dir),
        run_name="run",
    )
    return replace(config, **changes)


def run(output_dir: Path, **changes: Any) -> Run:
    return train(recipe(output_dir, **changes), new_model())


def parquet_subsets(directory: Path) -> dict[str, Any]:
    """Two subsets in the_cauldron's schema, and how a recipe names them."""
    import datasets

    text = {name: datasets.Value("string") for name in ("user", "assistant")}
    features = datasets.Features({"images": [datasets.Image()], "texts": [text]})
    for name, start, size in (("one", 0, 30), ("two", 100, 12)):
        rows = []
        for index in range(start, start + size):
            sample = thimble_sample("shapes", "train", index, image_size=16)
            turns = [{key: turn[key] for key in text} for turn in sample["texts"][:2]]
            rows.append({"images": [png(sample["images"][0])], "texts": turns})
        (directory / name).mkdir(parents=True)
        datasets.Dataset.from_list(rows, features=features).to_parquet(directory / name / "train.parquet")
    return {"dataset_path": str(directory), "dataset_names": ("one", "two")}


def metrics(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def weights(model: VisionLanguageModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bitwise"""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def max_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max((a[name] - b[name]).abs().max().item() for name in a)


def items(count: int, with_images: bool = True) -> list[dict[str, Any]]:
    """Encoded samples of very unequal lengths: one question in the first, up to seven turns in the longest."""
    model = new_model()
    data = VQADataset([], model.tokenizer, model.image_processor, model.config)
    samples = [thimble_sample("shapes", "train", i, image_size=16) for i in range(count)]
    for i, sample in enumerate(samples):
        sample["texts"] = sample["texts"][: 1 + i % 7]
        if not with_images:
            sample["images"] = []
    return [data.encode(sample, i) for i, sample in enumerate(samples)]


def batches(items: list[dict[str, Any]], size: int) -> list[dict[str, Any]]:
    collate = VQACollator(tiny_tokenizer().pad_token_id)
    return [collate(items[i : i + size]) for i in range(0, len(items), size)]


def step(
    model: VisionLanguageModel, batches: list[dict[str, Any]], optimizers: Optimizers, max_grad_norm: float = 1.0
) -> float:
    device = torch.device("cpu")
    precision = choose_precision("bf16" if next(model.parameters()).dtype == torch.bfloat16 else "fp32", device)
    return train_step(model, batches, optimizers, precision.scaler(device), precision, device, max_grad_norm)
