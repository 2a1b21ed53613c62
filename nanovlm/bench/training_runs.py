"""The stored training curves of chapter 08: small runs, healthy and broken, that anyone can make again.

    python -m nanovlm.bench.training_runs --only healthy --out assets/runs/08_gallery.json
    python -m nanovlm.bench.training_runs --only healthy --out assets/runs/08_kinds.json
    python -m nanovlm.bench.training_runs --seeds 0 1 2 --only healthy one_block --out assets/runs/08_seeds.json

Every run trains a model of 0.3 M parameters on the Thimble's `shapes` for some hundred steps of 32 samples, in float32,
on one thread. Beside the loss it writes down the gradient norm, the validation loss, and by kind of question the share
of right answers and the loss of an answer, with the right picture and blind (`08_gallery.json` was made before there
were losses by kind; `08_kinds.json` is its healthy run with them). With `--seeds` each run is made once for each seed,
and only its last evaluation is kept, which is what an ablation compares.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nanovlm.config import LMConfig, ProjectorConfig, TrainConfig, ViTConfig, VLMConfig
from nanovlm.data.collators import Batch
from nanovlm.data.loading import get_dataloaders
from nanovlm.data.thimble import Thimble
from nanovlm.device import choose_precision, processor
from nanovlm.models.vision_language_model import IGNORE, VisionLanguageModel
from nanovlm.training.optimizer import Optimizers
from nanovlm.training.probe import Probe, mean
from nanovlm.training.step import get_lr, train_step
from nanovlm.training.validation import validation_loss
from nanovlm.weights.from_preset import from_scratch

PROBED = 40  # validation pictures whose questions are asked at each evaluation
EVERY = 25  # steps between evaluations


def small_vlm(vision_blocks: int = 2, factor: int = 4, patch_size: int = 8, vision_inter: int = 192) -> VLMConfig:
    """64-pixel pictures in 64 patches, pixel shuffle to 4 image tokens: one for each cell of the Thimble's grid."""
    return VLMConfig(
        ViTConfig(64, vision_inter, vision_blocks, num_heads=2, image_size=64, patch_size=patch_size),
        ProjectorConfig(64, 64, factor),
        LMConfig(64, 192, 2, num_heads=2, num_kv_heads=2, vocab_size=444, max_positions=512, rope_base=10_000.0),
        image_token_id=4,
        eos_token_id=1,
    )


def small_recipe(**changes: Any) -> TrainConfig:
    recipe = TrainConfig(
        dataset_size=20_000,
        val_size=64,
        batch_size=32,
        max_steps=300,
        optimizer="muon",
        weight_decay=0.1,
        lr_projector=2e-3,
        lr_backbones=2e-3,
        min_lr_fraction=0.02,
        precision="fp32",
    )
    return replace(recipe, **changes)


@dataclass(frozen=True)
class Run:
    """One run: what differs from the healthy one, and in a few words why it is here."""

    about: str
    recipe: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[VisionLanguageModel], None] = lambda model: None
    spoil: Callable[[Batch], Batch] = lambda batch: batch
    probe_training: bool = False  # evaluate on training pictures
    restart_at: int | None = None  # a resume that restores the weights alone
    model_class: Callable[[VLMConfig], VisionLanguageModel] = VisionLanguageModel


def unshifted(batch: Batch) -> Batch:
    """The target at t is the token at t, which the decoder has just read."""
    targets = batch["targets"].roll(1, dims=1)
    targets[:, 0] = IGNORE
    return {**batch, "targets": targets}


def wrong_images(batch: Batch) -> Batch:
    return {**batch, "images": batch["images"].roll(1, dims=0)}


def black_images(batch: Batch) -> Batch:
    """What is left to learn from is the text."""
    return {**batch, "images": torch.full_like(batch["images"], -1.0)}


def one_question(batch: Batch) -> Batch:
    """Only the first answer of each conversation is supervised."""
    targets = batch["targets"].clone()
    supervised = targets != IGNORE
    ended = ((targets == 1) & supervised).cumsum(dim=1) - ((targets == 1) & supervised).long()
    targets[ended > 0] = IGNORE
    return {**batch, "targets": targets}


@torch.no_grad()
def quiet_positions(model: VisionLanguageModel) -> None:
    _positions(model).mul_(0.02 / 0.5)


@torch.no_grad()
def no_positions(model: VisionLanguageModel) -> None:
    _positions(model).zero_().requires_grad_(False)


def _positions(model: VisionLanguageModel) -> torch.Tensor:
    return next(p for name, p in model.vision_encoder.named_parameters() if name.endswith("position_embedding"))


@torch.no_grad()
def all_small(model: VisionLanguageModel) -> None:
    """Every matrix and embedding at a standard deviation of 0.02, GPT-2's."""
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.02)


GALLERY = {
    "healthy": Run("the recipe"),
    "lr_too_high": Run(
        "all learning rates 15 times as high", {"lr_muon": 0.3, "lr_projector": 0.03, "lr_backbones": 0.03}
    ),
    "labels_unshifted": Run("the target is the token itself, not the next one", spoil=unshifted),
    "pictures_shuffled": Run("every conversation has its neighbour's picture", spoil=wrong_images),
    "positions_quiet": Run("patch positions start at 0.02 instead of 0.5", prepare=quiet_positions),
    "no_warmup": Run("the learning rate starts at its peak", {"warmup_fraction": 0.0}),
    "data_repeated": Run("96 samples, again and again", {"data_cutoff_idx": 96, "dataset_size": 96}),
    "eval_on_train": Run(
        "96 samples, and the evaluation asks about the same 96",
        {"data_cutoff_idx": 96, "dataset_size": 96},
        probe_training=True,
    ),
    "resumed_wrongly": Run(
        "stopped half-way; optimizer state, schedule and order of the data start anew", restart_at=150
    ),
}
# Chapter 08's letter -> the run that its reader is to diagnose.
EIGHT_RUNS = {
    "A": "data_repeated",
    "B": "lr_too_high",
    "C": "labels_unshifted",
    "D": "positions_quiet",
    "E": "resumed_wrongly",
    "F": "pictures_shuffled",
    "G": "eval_on_train",
    "H": "no_warmup",
}
CHANGES = {
    "no_positions": Run("patches without positions", prepare=no_positions),
    "one_block": Run("one encoder block instead of two", sizes={"vision_blocks": 1}),
    "one_token": Run("pixel shuffle by 8: one image token a picture", sizes={"factor": 8}),
    "one_question": Run("one supervised question a picture", spoil=one_question),
    "text_only": Run("every training picture black", spoil=black_images),
    "init_small": Run("every weight starts at 0.02", prepare=all_small),
}
RATES = {
    f"rates_{projector}_{backbones}": Run(
        f"AdamW, 40 steps: projector {projector}, backbones {backbones}",
        {
            "optimizer": "adamw",
            "weight_decay": 0.01,
            "max_steps": 40,
            "lr_projector": float(projector),
            "lr_backbones": float(backbones),
        },
    )
    for projector in ("2e-4", "2e-2")
    for backbones in ("2e-4", "2e-3", "2e-2")
}
RUNS = {**GALLERY, **CHANGES, **RATES}


class Watched(Optimizers):
    """Remembers the gradient norm of the last step."""

    norm = 0.0

    def clip(self, max_norm: float, scaler: torch.amp.GradScaler) -> torch.Tensor:
        norm = super().clip(max_norm, scaler)
        self.norm = float(norm)
        return norm


def run(what: Run, report: Callable[[str], None] = print, seed: int = 0, every: int = EVERY) -> dict[str, Any]:
    """Train as `what` says. Returns curves: loss and gradient norm of each step, evaluations every `every` steps.

    seed: of the first weights and of the order of the data; the questions of the evaluations are the same.
    """
    recipe, device = small_recipe(**what.recipe, seed=seed), torch.device("cpu")
    torch.manual_seed(recipe.seed)
    model = from_scratch(small_vlm(**what.sizes), what.model_class).train()
    what.prepare(model)
    precision = choose_precision(recipe.precision, device)
    train_loader, val_loader = get_dataloaders(recipe, model.config, model.tokenizer, model.image_processor)
    batches, scaler = iter(train_loader), precision.scaler(device)
    split = Thimble("shapes", "train" if what.probe_training else "val", 96)
    probe = Probe(model, [split[i] for i in range(PROBED)])
    watched_batches = list(val_loader) if not what.probe_training else [next(batches) for _ in range(2)]
    optimizers = Watched(model, recipe)
    losses, norms, evaluations, began, offset = [], [], [], time.process_time(), 0
    for step in range(recipe.max_steps):
        if step == what.restart_at:
            optimizers, offset = Watched(model, recipe), step
            train_loader.set_start(0)
            batches = iter(train_loader)
        optimizers.set_lr(get_lr(step - offset, 1.0, recipe.max_steps, recipe.warmup_fraction, recipe.min_lr_fraction))
        batch = what.spoil(next(batches))
        try:
            losses.append(train_step(model, [batch], optimizers, scaler, precision, device, recipe.max_grad_norm))
        except FloatingPointError:
            break
        norms.append(optimizers.norm)
        if (step + 1) % every == 0 or step in (0, recipe.max_steps - 1):
            values = {
                "step": step + 1,
                "seconds": round(time.process_time() - began, 1),
                "val_loss": round(validation_loss(model, map(what.spoil, watched_batches), precision, device), 4),
                "accuracy": {kind: round(share, 4) for kind, share in probe.accuracy(model).items()},
                "blind": {kind: round(share, 4) for kind, share in probe.accuracy(model, blind=True).items()},
                "losses": {kind: round(loss, 4) for kind, loss in probe.losses(model).items()},
                "blind_losses": {kind: round(loss, 4) for kind, loss in probe.losses(model, blind=True).items()},
            }
            evaluations.append(values)
            report(
                f"step {step + 1:4} loss {losses[-1]:7.3f} val {values['val_loss']:7.3f} right "
                f"{mean(values['accuracy']):.3f} blind {mean(values['blind']):.3f} {values['seconds']} s"
            )
    return {
        "about": what.about,
        "machine": f"{processor()}, one thread, float32",
        "parameters": sum(p.numel() for p in model.parameters()),
        "max_steps": recipe.max_steps,
        "questions": len(probe.kinds),
        "loss": [round(value, 4) for value in losses],
        "norm": [round(value, 4) for value in norms],
        "evaluations": evaluations,
    }


def run_seeds(what: Run, seeds: list[int], report: Callable[[str], None] = print) -> dict[str, Any]:
    """The last evaluation of one run for each seed: {…, "seeds": {"0": {"accuracy": {kind: share}, …}, …}}."""
    results = {str(seed): run(what, report, seed, every=small_recipe(**what.recipe).max_steps) for seed in seeds}
    common = {key: results[str(seeds[0])][key] for key in ("about", "machine", "parameters", "max_steps", "questions")}
    return {**common, "seeds": {seed: result["evaluations"][-1] for seed, result in results.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), metavar="NAME", help=", ".join(RUNS))
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="these seeds, and last evaluations only")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; runs that it holds already are kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.only:
        print(f"{name}: {RUNS[name].about}", flush=True)
        report = partial(print, flush=True)
        result = run_seeds(RUNS[name], options.seeds, report) if options.seeds else run(RUNS[name], report)
        kept = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({**kept, name: result}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
