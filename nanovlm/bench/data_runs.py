"""Training runs that differ in nothing but their data pipeline: the curves that open chapter 07.

`python -m nanovlm.bench.data_runs --out assets/runs/07_data_runs.json` trains one after another, a few minutes each on
one thread, and writes their curves with the command, the machine and the sizes. `--only NAME …` trains some of them and
keeps the others that the file has.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from nanovlm.assets import asset_path
from nanovlm.config import LMConfig, ProjectorConfig, TrainConfig, ViTConfig, VLMConfig
from nanovlm.data.batches import BatchOrder, Loader, MapBatches
from nanovlm.data.chat import ChatTokenizer
from nanovlm.data.collators import Batch, PackingCollator, VQACollator
from nanovlm.data.datasets import Skipped, VQADataset
from nanovlm.data.thimble import Thimble
from nanovlm.data.tiling import make_image_processor
from nanovlm.device import choose_precision
from nanovlm.models.vision_language_model import VisionLanguageModel
from nanovlm.training.optimizer import Optimizers
from nanovlm.training.step import get_lr, train_step
from nanovlm.training.validation import answer_accuracy, short_questions

SUBSET = "charts"
STEPS, BATCH, EVAL_EVERY, VAL_IMAGES = 700, 32, 70, 80
WIDTH, VISION_BLOCKS, LANGUAGE_BLOCKS, ROW = 64, 2, 2, 512
BAD_SHARE = 0.1  # of the pictures that cannot be read, in the run that drops them
CPU = torch.device("cpu")
COMMAND = "python -m nanovlm.bench.data_runs --out assets/runs/07_data_runs.json"


def small_vlm(width: int = WIDTH) -> VLMConfig:
    """The pocket model at half its width, with two blocks on either side."""
    return VLMConfig(
        vision=ViTConfig(width, 4 * width, VISION_BLOCKS, num_heads=2, image_size=64, patch_size=8),
        projector=ProjectorConfig(width, width, pixel_shuffle_factor=2),
        language=LMConfig(width, 3 * width, LANGUAGE_BLOCKS, 2, 1, vocab_size=444, max_positions=512, rope_base=1e4),
        image_token_id=4,
        eos_token_id=1,
    )


class FirstTurn:
    """Every sample with its first question alone, as nanoVLM v0.1 read them."""

    def __init__(self, data: Thimble) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.data[index]
        return {**sample, "texts": sample["texts"][:1]}


class LosesImages:
    """A tenth of the pictures cannot be read. Their texts stay, so the pictures behind them move up by one."""

    def __init__(self, collate: VQACollator) -> None:
        self.collate = collate

    def __call__(self, items: Sequence[dict[str, Any] | Skipped]) -> Batch:
        batch = self.collate(items)
        numbers = torch.tensor(batch["sample_indices"])
        readable = numbers % round(1 / BAD_SHARE) != 0
        left = batch["images"][readable]
        batch["images"] = torch.cat([left, torch.zeros_like(batch["images"][~readable])])
        return batch


class WithoutBoundaries(PackingCollator):
    """Samples share rows, and each reads those before it."""

    def __call__(self, items: Sequence[dict[str, Any] | Skipped]) -> Batch:
        batch = super().__call__(items)
        del batch["document_ids"]
        return batch


# Name -> (how the data are read, how items become a batch).
Pipeline = tuple[Callable[[Thimble], Any], Callable[[int], Any]]
PIPELINES: dict[str, Pipeline] = {
    "right": (lambda data: data, VQACollator),
    "first turn only": (FirstTurn, VQACollator),
    "pictures out of step": (lambda data: data, lambda pad: LosesImages(VQACollator(pad))),
    "packed, with boundaries": (lambda data: data, lambda pad: PackingCollator(pad, ROW)),
    "packed, no boundaries": (lambda data: data, lambda pad: WithoutBoundaries(pad, ROW)),
}


def loader(data: Any, collate: Any, batch_size: int = BATCH, shuffle: bool = False) -> Loader:
    """Batches of `data` for the small model, in order and once, or shuffled and for ever."""
    config = small_vlm()
    tokenizer = ChatTokenizer.from_pretrained(asset_path("pocket"))
    samples = VQADataset(data, tokenizer, make_image_processor(config), config, ROW)
    order = BatchOrder(torch.arange(len(data)), batch_size, seed=0, shuffle=shuffle)
    return Loader(MapBatches(samples, order, collate(tokenizer.pad_token_id), endless=shuffle))


def questions() -> list[Batch]:
    """The short questions about the validation pictures, each on its own."""
    return short_questions(loader(Thimble(SUBSET, "val", VAL_IMAGES), VQACollator), VAL_IMAGES)


def train(name: str, steps: int = STEPS, report: Callable[[str], None] = print) -> list[dict[str, float]]:
    """One run. Returns a point every EVAL_EVERY steps: step, loss (mean since the last point), accuracy."""
    torch.manual_seed(0)
    model = VisionLanguageModel(small_vlm()).train()
    recipe = TrainConfig(optimizer="muon", weight_decay=0.1, lr_projector=2e-3, lr_backbones=2e-3)
    optimizers, precision = Optimizers(model, recipe), choose_precision("fp32", CPU)
    scaler, asked = precision.scaler(CPU), questions()
    read, collate = PIPELINES[name]
    batches = iter(loader(read(Thimble(SUBSET, "train", 50_000)), collate, shuffle=True))
    points, losses = [], []
    for step in range(1, steps + 1):
        optimizers.set_lr(get_lr(step - 1, 1.0, steps))
        losses.append(train_step(model, [next(batches)], optimizers, scaler, precision, CPU, recipe.max_grad_norm))
        if step % EVAL_EVERY == 0 or step == steps:
            accuracy = answer_accuracy(model, asked, precision, CPU)
            points.append({"step": step, "loss": sum(losses) / len(losses), "accuracy": accuracy})
            report(f"{name}: step {step}, loss {points[-1]['loss']:.3f}, accuracy {accuracy:.3f}")
            losses = []
    return points


def record(runs: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """What is stored: the curves, and what one has to know to make them again."""
    return {
        "command": COMMAND,
        "machine": f"{platform.machine()}, one thread, torch {torch.__version__.split('+')[0]}, float32",
        "model": f"width {WIDTH}, {VISION_BLOCKS} encoder and {LANGUAGE_BLOCKS} decoder blocks",
        "data": f"Thimble, {SUBSET}: {BATCH} pictures a step; validation: {VAL_IMAGES} pictures",
        "questions": sum(len(batch["input_ids"]) for batch in questions()),
        "runs": {
            name: [{key: round(value, 4) for key, value in point.items()} for point in runs[name]]
            for name in PIPELINES
            if name in runs
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m nanovlm.bench.data_runs", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--only", nargs="+", choices=PIPELINES, default=list(PIPELINES), metavar="NAME")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = json.loads(options.out.read_text())["runs"] if options.out.exists() else {}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        runs[name] = train(name)
        options.out.write_text(json.dumps(record(runs), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
