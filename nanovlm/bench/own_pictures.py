"""The stored runs of chapter 15: the pocket model learns handwriting, and what becomes of its old skills.

    python -m nanovlm.bench.own_pictures --only replay --out assets/runs/15_replay.json

Each run starts from the pocket model and trains on cards with handwritten digits, in float32 on one thread, with steps
of 16 samples. It is asked about digits by writers of whom it saw little or nothing, and about the Thimble's three
subsets, which it knew before. `seconds` are those of the processor, training steps alone.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from nanovlm.adapt.freeze import choose_trained
from nanovlm.assets import asset_path
from nanovlm.bench.task_mixes import Weighed, mixed
from nanovlm.config import TrainConfig
from nanovlm.data.collators import VQACollator
from nanovlm.data.datasets import VQADataset
from nanovlm.data.digits import digit_samples
from nanovlm.data.mixing import mixed_loader, replay_weights
from nanovlm.data.thimble import Thimble
from nanovlm.device import choose_precision, processor
from nanovlm.evaluation.scores import interval
from nanovlm.models.vision_language_model import VisionLanguageModel
from nanovlm.training.live_bytes import LiveBytes
from nanovlm.training.optimizer import Optimizers
from nanovlm.training.probe import Probe, mean
from nanovlm.training.step import get_lr, train_step
from nanovlm.training.validation import validation_loss

OLD = ("shapes", "charts", "glyphs")
REMEMBERED = 10_000  # pictures of each old subset that are there to be replayed
BATCH, EVERY = 16, 20  # samples a step; steps between evaluations, and between new mixtures
ADAPTERS = {"lr_projector": 4e-3}
GENTLE = {"lr_muon": 0.004, "lr_projector": 4e-4, "lr_backbones": 4e-4}
MATRICES = ("qkv_proj", "out_proj", "fc1", "fc2", "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Run:
    """One run, and in a few words why it is here."""

    about: str
    share: float = 0.0  # of the samples are old ones
    cards: int = 1200
    augment: Callable[[Image.Image, torch.Generator], Image.Image] | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    mix: str = ""  # how the four tasks share the samples: see `mixed`; "uncertainty": how they share the loss as well
    steps: int = 100
    seeds: tuple[int, ...] = (0,)
    every: int = 0  # steps between evaluations; 0: none
    curves: tuple[str, ...] = ()  # what is asked then, beside the losses
    early_stop: bool = False  # ask the weights with the lowest loss on validation cards as well
    asked: tuple[str, ...] = ("digits", *OLD)  # what is asked at the end


def turned(image: Image.Image, generator: torch.Generator) -> Image.Image:
    """Moved, turned and resized a little: every digit stays what it is."""
    angle, dx, dy, size = (2 * torch.rand(4, generator=generator) - 1).tolist()
    moved = image.rotate(12 * angle, Image.Resampling.BICUBIC, translate=(4 * dx, 4 * dy), fillcolor=(235, 235, 235))
    margin = round(5 * (1 + size) / 2)
    return moved.crop((margin, margin, 64 - margin, 64 - margin)).resize((64, 64), Image.Resampling.BICUBIC)


def mirrored(image: Image.Image, generator: torch.Generator) -> Image.Image:
    """Half of the cards in the mirror, as one does with photographs: a 2 is no 2 any more."""
    flip = torch.rand((), generator=generator) < 0.5
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image


ALL = ("digits", *OLD)
ALL_SKILLS: dict[str, Any] = {"every": EVERY, "curves": ALL}
LITTLE: dict[str, Any] = {"steps": 60, "asked": ("digits",)}
OVERFITTING: dict[str, Any] = {"every": 5, "early_stop": True}
RUNS = {
    "replay": {
        "0": Run("digits alone", seeds=(0, 1), **ALL_SKILLS),
        "0.1": Run("a tenth of the samples are old ones", share=0.1),
        "0.25, longer": Run("a quarter, for 200 steps", share=0.25, steps=200),
        "0.5, gently": Run("a half, for 250 steps at two thirds of the learning rates", 0.5, steps=250, recipe=GENTLE),
    },
    "parts": {
        "LoRA, rank 4": Run("adapters in q_proj and v_proj", recipe={"lora_rank": 4, **ADAPTERS}),
        "LoRA, rank 4, all blocks": Run(
            "adapters in every matrix of every block", recipe={"lora_rank": 4, **ADAPTERS, "lora_modules": MATRICES}
        ),
        "projector": Run("encoder and decoder frozen", recipe={"freeze": ("vision_encoder", "decoder")}),
        "encoder": Run("projector and decoder frozen", recipe={"freeze": ("projector", "decoder")}),
        "decoder": Run("encoder and projector frozen", recipe={"freeze": ("vision_encoder", "projector")}),
        "LoRA, rank 16": Run("adapters in q_proj and v_proj", recipe={"lora_rank": 16, **ADAPTERS}),
        "QLoRA, rank 4, all blocks": Run(
            "the same on a base of four bits",
            recipe={"lora_rank": 4, **ADAPTERS, "lora_modules": MATRICES, "lora_4bit": True},
        ),
    },
    "tasks": {
        "by size": Run("as often as it has samples", mix="size", **ALL_SKILLS),
        "by temperature": Run("sizes to the power of 1 / 5", mix="temperature", **ALL_SKILLS),
        "by loss": Run("what is not yet learned, more often; set anew every 20 steps", mix="loss"),
        "by uncertainty": Run(
            "sampled by temperature, the losses weighted by learned uncertainties", mix="uncertainty", **ALL_SKILLS
        ),
    },
    "little": {
        "20, as they are": Run("", cards=20, **LITTLE, **OVERFITTING),
        "100, as they are": Run("", cards=100, **LITTLE, **OVERFITTING),
        "500, as they are": Run("", cards=500, **LITTLE, **OVERFITTING),
        "20, moved and turned": Run("", cards=20, augment=turned, **LITTLE),
        "100, mirrored": Run("", cards=100, augment=mirrored, **LITTLE),
    },
}


ABOUT = ("command", "machine", "questions", "before")  # what a file of runs holds beside them


class Cards:
    """Cards that look a little different each time they are drawn."""

    def __init__(self, samples: Sequence[dict[str, Any]], change: Callable[..., Image.Image], seed: int) -> None:
        self.samples, self.change, self.generator = samples, change, torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.samples[index]
        return {**sample, "images": [self.change(image, self.generator) for image in sample["images"]]}


def recipe_of(what: Run) -> TrainConfig:
    """Gentler than the recipe that trained the pocket model, which started from nothing."""
    common = {"optimizer": "muon", "weight_decay": 0.1, "lr_muon": 0.006, "lr_projector": 6e-4, "lr_backbones": 6e-4}
    return TrainConfig(**{**common, "warmup_fraction": 0.1, "min_lr_fraction": 0.05, **what.recipe})


class Watcher:
    """What is asked during a run, and at its end of more pictures."""

    def __init__(self, model: VisionLanguageModel) -> None:
        few, many = ([_first(Thimble(name, "test", 400), count) for name in OLD] for count in (12, 60))
        self.few, self.many = (
            {name: Probe(model, samples) for name, samples in zip(ALL, [digits, *old], strict=True)}
            for digits, old in ((digit_samples("val")[:100], few), (digit_samples("test"), many))
        )

    def during(self, model: VisionLanguageModel, names: Sequence[str] = ALL) -> dict[str, float]:
        return {name: _share(model, self.few[name]) for name in names}

    def at_the_end(self, model: VisionLanguageModel, names: Sequence[str] = ALL) -> dict[str, float]:
        return {name: _share(model, self.many[name]) for name in names}


def _share(model: VisionLanguageModel, probe: Probe) -> float:
    return round(mean(probe.accuracy(model)), 4)


def _first(data: Any, count: int) -> list[Any]:
    return [data[i] for i in range(count)]


def pocket() -> VisionLanguageModel:
    return VisionLanguageModel.from_pretrained(asset_path("pocket")).train()


def run(what: Run, seed: int, watcher: Watcher, report: Callable[[str], None] = print) -> dict[str, Any]:
    """One run. Returns its curves, its scores at the end, and what it took."""
    torch.manual_seed(seed)
    model, recipe, device = pocket(), recipe_of(what), torch.device("cpu")
    total = sum(p.numel() for p in model.parameters())
    choose_trained(model, recipe)
    precision = choose_precision("fp32", device)
    scaler, optimizers = precision.scaler(device), Optimizers(model, recipe)
    cards = digit_samples("train")
    order = torch.randperm(len(cards), generator=torch.Generator().manual_seed(seed)).tolist()
    cards = [cards[i] for i in order[: what.cards]]
    new = Cards(cards, what.augment, seed) if what.augment else cards
    tasks = [new, *(Thimble(name, "train", REMEMBERED) for name in OLD)]
    weights = replay_weights(len(new), [REMEMBERED] * len(OLD), what.share)
    seen, unseen = _batches(model, cards[:100]), _batches(model, digit_samples("val"))
    held_out = [unseen[:1], *(_batches(model, _first(Thimble(name, "val", 100), 12)) for name in OLD)]
    losses, evaluations, shares, task_weights, seconds, peak = [], [], [], [], 0.0, 0
    trained, batches, best = model, iter(()), (math.inf, 0, {})
    if what.mix == "uncertainty":
        trained = Weighed(model, [len(task) for task in tasks], optimizers)

    def loss_of(held: list[Any]) -> float:
        return round(validation_loss(model, held, precision, device), 4)

    for step in range(what.steps):
        if step % EVERY == 0:
            if what.mix:
                yet = [loss_of(each) for each in held_out] if what.mix == "loss" else []
                weights = mixed(what.mix, [len(task) for task in tasks], yet)
            shares.append([round(weight, 4) for weight in weights])
            parts = (model.config, model.tokenizer, model.image_processor)
            if what.mix or not step:
                batches = iter(mixed_loader(tasks, weights, *parts, batch_size=BATCH, seed=seed + step))
        batch = next(batches)
        if trained is not model:
            trained.next_samples(batch["sample_indices"])
            if step % EVERY == 0:
                task_weights.append([round(weight, 3) for weight in trained.weigh.weights.tolist()])
        optimizers.set_lr(get_lr(step, 1.0, what.steps, recipe.warmup_fraction, recipe.min_lr_fraction))
        if step == 3:  # with the optimizer's state
            with LiveBytes(_held(model, optimizers)) as memory:
                losses.append(train_step(trained, [batch], optimizers, scaler, precision, device, recipe.max_grad_norm))
            peak = memory.peak
        else:
            start = time.process_time()
            losses.append(train_step(trained, [batch], optimizers, scaler, precision, device, recipe.max_grad_norm))
            seconds += time.process_time() - start
        if what.every and (step + 1) % what.every == 0:
            values = {"step": step + 1, **watcher.during(model, what.curves)}
            values |= {"train_loss": loss_of(seen), "val_loss": loss_of(unseen)}
            evaluations.append(values)
            report(f"   {values}  {seconds:.0f} s")
            if what.early_stop and values["val_loss"] < best[0]:
                best = values["val_loss"], step + 1, {name: w.clone() for name, w in model.state_dict().items()}
    end, more = watcher.at_the_end(model, what.asked), {}
    if what.early_stop:
        model.load_state_dict(best[2])
        more["early"] = {"step": best[1], "val_loss": best[0], **watcher.at_the_end(model, what.asked)}
    if task_weights:
        more["task_weights"] = task_weights
    return {
        "end": end,
        **more,
        "loss": [round(loss, 4) for loss in losses],
        "evaluations": evaluations,
        "shares": shares,
        "seconds": round(seconds, 1),
        "peak_bytes": peak,
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "parameters": total,
    }


def at_the_end(stored: Mapping[str, Any]) -> dict[str, float]:
    """The share of right answers after a stored run: skill -> mean over its seeds."""
    ends = [seed["end"] for seed in stored["seeds"].values()]
    return {skill: sum(end[skill] for end in ends) / len(ends) for skill in ends[0]}


def intervals_of(
    rows: Mapping[str, Mapping[str, float]], questions: Mapping[str, int]
) -> dict[str, dict[str, tuple[float, float]]]:
    """run -> skill -> the 95 % interval of its share, for as many questions as one seed was asked."""
    return {
        name: {skill: interval(round(share * questions[skill]), questions[skill]) for skill, share in shares.items()}
        for name, shares in rows.items()
    }


def _held(model: VisionLanguageModel, optimizers: Optimizers) -> list[torch.Tensor]:
    states = [value for each in optimizers.all for state in each.state.values() for value in state.values()]
    return [*model.parameters(), *model.buffers(), *(value for value in states if isinstance(value, torch.Tensor))]


def _batches(model: VisionLanguageModel, samples: Sequence[dict[str, Any]]) -> list[Any]:
    data = VQADataset(samples, model.tokenizer, model.image_processor, model.config, max_length=128)
    collate = VQACollator(model.tokenizer.pad_token_id)
    return [collate([data[i] for i in range(at, min(at + 50, len(data)))]) for at in range(0, len(data), 50)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=RUNS, required=True, help="which experiment")
    parser.add_argument("--runs", nargs="+", metavar="RUN", help="some of its runs")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="only these of the seeds that a run has")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; runs that it holds already are kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = pocket()
    watcher = Watcher(model)
    kept = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    kept["command"] = f"python -m nanovlm.bench.own_pictures --only {options.only} --out {options.out}"
    if "before" not in kept:
        kept["before"] = {"end": watcher.at_the_end(model), "during": watcher.during(model)}
        kept["machine"] = f"{processor()}, one thread, float32"
        kept["questions"] = {name: len(probe.kinds) for name, probe in watcher.many.items()}
    for name, what in RUNS[options.only].items():
        if options.runs and name not in options.runs:
            continue
        seeds = kept.setdefault(name, {"about": what.about, "seeds": {}})["seeds"]
        for seed in what.seeds if options.seeds is None else set(what.seeds) & set(options.seeds):
            if str(seed) not in seeds:
                print(f"{name}, seed {seed}", flush=True)
                seeds[str(seed)] = run(what, seed, watcher, lambda line: print(line, flush=True))
                print(f"   {seeds[str(seed)]['end']}", flush=True)
                options.out.parent.mkdir(parents=True, exist_ok=True)
                ordered = {name: kept[name] for name in (*ABOUT, *RUNS[options.only]) if name in kept}
                options.out.write_text(json.dumps(ordered) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
