"""Four runs that go wrong on purpose, and one that does not: the logs of chapter 11's gallery.

    python -m nanovlm.bench.failure_runs --out assets/runs/11_failures.json

The pocket model's trained encoder and decoder, joined by a new projector, on the Thimble's shapes: some minutes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from nanovlm.assets import asset_path
from nanovlm.config import TrainConfig
from nanovlm.data.loading import get_dataloaders
from nanovlm.device import processor
from nanovlm.models.vision_language_model import IGNORE, VisionLanguageModel, init_weights
from nanovlm.training.optimizer import param_groups
from nanovlm.training.step import get_lr

Batch = dict[str, Any]
BATCH, PEAK = 16, 3e-3


def joined() -> VisionLanguageModel:
    """The pocket model with a projector that has yet to learn: what joining two trained backbones gives."""
    model = VisionLanguageModel.from_pretrained(asset_path("pocket")).train()
    init_weights(model.projector)
    return model


def adamw(model: VisionLanguageModel) -> torch.optim.Optimizer:
    config = TrainConfig(lr_projector=PEAK, lr_backbones=PEAK / 10)
    groups = [{**group, "peak": group["lr"]} for group in param_groups(model, config)]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95))


def run(
    steps: int,
    spoil: Callable[[int, Batch], Batch] = lambda step, batch: batch,
    forget_at: int | None = None,
    careless: bool = False,
) -> list[float]:
    """The losses of one run.

    spoil: what is done to a batch before the model sees it. forget_at: at this step the run goes on from its weights
    alone, with a new optimizer and the schedule from its start. careless: the masked mean by hand, which is 0 / 0 over
    no token.
    """
    torch.manual_seed(0)
    model = joined()
    data = TrainConfig(dataset_size=20_000, val_size=32, batch_size=BATCH)
    loader, _ = get_dataloaders(data, model.config, model.tokenizer, model.image_processor)
    optimizer, begun, losses = adamw(model), 0, []
    for step, batch in enumerate(itertools.islice(loader, steps)):
        if step == forget_at:
            optimizer, begun = adamw(model), step
        for group in optimizer.param_groups:
            group["lr"] = get_lr(step - begun, group["peak"], steps)
        batch = spoil(step, dict(batch))
        if careless:
            logits = model(batch["input_ids"], batch["images"]).logits.flatten(0, 1)
            targets = batch["targets"].flatten()
            every = cross_entropy(logits, targets.clamp(min=0), reduction="none")
            loss = (every * (targets != IGNORE)).sum() / (targets != IGNORE).sum()  # 0 / 0 where nothing is asked
        else:
            loss = model(batch["input_ids"], batch["images"], targets=batch["targets"]).loss
        optimizer.zero_grad()
        loss.backward()
        if not careless:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def no_images(step: int, batch: Batch) -> Batch:
    return {**batch, "images": torch.zeros_like(batch["images"])}


def not_shifted(step: int, batch: Batch) -> Batch:
    """Each answer token is asked for at its own place, where the model can read it."""
    targets = batch["targets"].roll(1, dims=1)
    targets[:, 0] = IGNORE
    return {**batch, "targets": targets}


def nothing_asked(at: int) -> Callable[[int, Batch], Batch]:
    """One batch of which no token is supervised: what a chat template that changed its form can do to labels."""

    def spoil(step: int, batch: Batch) -> Batch:
        return {**batch, "targets": torch.full_like(batch["targets"], IGNORE)} if step == at else batch

    return spoil


def all_runs(steps: int) -> dict[str, dict[str, Any]]:
    settings: dict[str, dict[str, Any]] = {
        "healthy": {},
        "A": {"spoil": no_images},
        "B": {"spoil": not_shifted},
        "C": {"forget_at": 2 * steps // 3},
        "D": {"spoil": nothing_asked(steps // 2), "careless": True},
    }
    causes = {
        "healthy": "nothing is wrong",
        "A": "every picture is black before the model sees it",
        "B": "the labels are not shifted",
        "C": "a resume from the weights alone: new optimizer, schedule from its start",
        "D": "a batch without a supervised token, and a mean that divides by their number",
    }
    runs = {}
    for name, options in settings.items():
        start = time.perf_counter()
        losses = run(steps, **options)
        runs[name] = {"cause": causes[name], "losses": [round(loss, 4) if loss == loss else None for loss in losses]}
        print(f"{name:8} {time.perf_counter() - start:6.0f} s, last loss {losses[-1]:.3f}", flush=True)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=160)
    options = parser.parse_args()
    runs = all_runs(options.steps)
    about = {
        "command": f"python -m nanovlm.bench.failure_runs --out {options.out} --steps {options.steps}",
        "machine": processor(),
        "steps": options.steps,
        "batch": BATCH,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"about": about, "runs": runs}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
