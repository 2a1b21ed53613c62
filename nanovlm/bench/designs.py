"""Every design of chapter 17 trained for equally many steps on the same data, at equal cost.

    python -m nanovlm.bench.designs --seeds 0 1 2 --out assets/runs/17_designs.json
    python -m nanovlm.bench.designs --only cnn resampler --seeds 3 --out assets/runs/17_designs.json

Each run teaches a model of 0.3 M parameters (`nanovlm.bench.training_runs.small_vlm`) to caption the Thimble's
`shapes`, in float32 on one thread. Nothing but captions: they say what is where, and 150 steps are enough to learn
that. The decoder's sizes are the same everywhere. The encoder's are chosen (SIZES) so that a forward pass of every
design takes the floating-point operations of the standard one, within 5 %, counted by the tracer; a test holds them to
it. Masked attention counts in full, as it is computed.

The file is written after each run, and a run that it holds already is not made again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanovlm.bench.training_runs import Watched, small_recipe, small_vlm
from nanovlm.config import IGNORE, VLMConfig
from nanovlm.data.chat import ChatTokenizer
from nanovlm.data.collators import Batch, VQACollator
from nanovlm.data.datasets import VQADataset
from nanovlm.data.thimble import Thimble, answers
from nanovlm.designs.registry import DESIGNS, build
from nanovlm.device import choose_precision, processor
from nanovlm.models.vision_language_model import VisionLanguageModel
from nanovlm.trace import trace
from nanovlm.training.step import get_lr, train_step
from nanovlm.weights.from_preset import from_scratch

WORDS, SUPERVISED = 31, 25  # tokens of a row, those of its picture aside, and those the head answers for: as trained
HELD_OUT, EVERY = 100, 25  # validation pictures; steps between evaluations
CONTENT = {*answers("shapes", "colour"), *answers("shapes", "shape"), "nothing"}  # the words that need the picture

SIZES: dict[str, dict[str, int]] = {  # what differs from small_vlm's; where nothing stands, nothing does
    "cnn": {"vision_blocks": 6},
    "cnn_pooled": {"vision_blocks": 7},
    "cross_attention": {"vision_inter": 128},
    "early_fusion": {"factor": 1, "patch_size": 9},  # no encoder: 49 image tokens instead of 4
}


def forward_flops(name: str, config: VLMConfig) -> int:
    """Operations of one training row forward through a whole model of this design; with the backward pass three times
    as many."""
    model = build(name, config).eval()
    side, num_image_tokens = config.vision.image_size, config.num_image_tokens
    placeholder, word = config.image_token_id, config.image_token_id + 1
    ids = torch.tensor([[placeholder] * num_image_tokens + [word] * WORDS])
    targets = torch.full_like(ids, IGNORE)
    targets[:, -SUPERVISED:] = word
    with torch.no_grad():
        return trace(model, ids, torch.zeros(1, 3, side, side), targets=targets).flops


class Captions:
    """The Thimble's `shapes` with nothing but the caption, `size` samples from `start` on."""

    def __init__(self, split: str, size: int, start: int = 0) -> None:
        self.samples, self.start, self.size = Thimble("shapes", split, start + size), start, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.samples[self.start + index]
        return {**sample, "texts": sample["texts"][-1:]}


def batches_of(model: VisionLanguageModel, data: Captions, batch_size: int) -> list[Batch]:
    encoded = VQADataset(data, model.tokenizer, model.image_processor, model.config, max_length=192)
    collate = VQACollator(model.tokenizer.pad_token_id)
    return [collate([encoded[i] for i in range(at, at + batch_size)]) for at in range(0, len(data), batch_size)]


@torch.no_grad()
def content_accuracy(model: VisionLanguageModel, batch: Batch, images: Tensor) -> float:
    """Share of colours, shapes and "nothing" that are the likeliest token behind the right ones before them."""
    training = model.training
    targets = batch["targets"]
    logits = model.eval()(batch["input_ids"], images, targets=targets).logits
    model.train(training)
    wanted = targets[targets != IGNORE]
    needs_image = torch.isin(wanted, torch.tensor(content_ids(model.tokenizer)))
    return float((logits.argmax(dim=-1) == wanted)[needs_image].float().mean())


@cache
def content_ids(tokenizer: ChatTokenizer) -> list[int]:
    """The tokens of the content words, which are one each."""
    return [token for token in range(tokenizer.vocab_size) if tokenizer.decode([token]).strip() in CONTENT]


def cells(caption: str) -> dict[str, str]:
    """{"top left": "red circle", …}, without empty places and without what has no place."""
    pairs = (part.split(":", 1) for part in caption.split(".") if ":" in part)
    return {where.strip(): what.strip() for where, what in pairs if what.strip() != "nothing"}


def things_and_places(written: Sequence[str], right: Sequence[str]) -> tuple[float, float]:
    """Shares of the things in the pictures that the captions name anywhere, and that they name in their place."""
    anywhere = placed = total = 0
    for said, truth in zip(map(cells, written), map(cells, right), strict=True):
        total += len(truth)
        anywhere += sum((Counter(said.values()) & Counter(truth.values())).values())
        placed += sum(said.get(where) == what for where, what in truth.items())
    return anywhere / total, placed / total


def train(model: VisionLanguageModel, batches: Sequence[Batch], held_out: Batch) -> dict[str, Any]:
    """One pass over the batches. Returns the curve [step, content accuracy], and at the end the content accuracy with
    another one's picture ("blind") and what a greedy caption names."""
    device, steps = torch.device("cpu"), len(batches)
    recipe = small_recipe(max_steps=steps)
    precision = choose_precision("fp32", device)
    optimizers, scaler = Watched(model.train(), recipe), precision.scaler(device)
    images = held_out["images"]
    losses, curve, began = [], [], time.process_time()
    for step, batch in enumerate(batches, start=1):
        optimizers.set_lr(get_lr(step - 1, 1.0, steps, recipe.warmup_fraction, recipe.min_lr_fraction))
        losses.append(round(train_step(model, [batch], optimizers, scaler, precision, device, recipe.max_grad_norm), 4))
        if step % EVERY == 0 or step == steps:
            curve.append([step, round(content_accuracy(model, held_out, images), 4)])
    seconds = time.process_time() - began
    val = Captions("val", HELD_OUT)
    asked = [val[i] for i in range(HELD_OUT)]
    written = model.eval().generate(
        prompt=[sample["texts"][0]["user"] for sample in asked],
        image=[sample["images"][0] for sample in asked],
        max_new_tokens=SUPERVISED,
    )
    things, places = things_and_places(written, [sample["texts"][0]["assistant"] for sample in asked])
    return {
        "curve": curve,
        "blind": round(content_accuracy(model, held_out, images.roll(1, dims=0)), 4),
        "things": round(things, 4),
        "places": round(places, 4),
        "loss": losses[-1],
        "seconds": round(seconds, 1),
    }


class Data:
    """Batches of a seed, made once for all designs that lay rows out alike."""

    def __init__(self, steps: int, batch_size: int) -> None:
        self.steps, self.batch_size = steps, batch_size
        self.made: dict[tuple[int, int], tuple[list[Batch], Batch]] = {}

    def of(self, model: VisionLanguageModel, seed: int) -> tuple[list[Batch], Batch]:
        key = (seed, model.config.num_image_tokens)
        if key not in self.made:
            self.made = {k: v for k, v in self.made.items() if k[0] == seed}  # the last seed's are not needed again
            count = self.steps * self.batch_size
            training = batches_of(model, Captions("train", count, start=seed * count), self.batch_size)
            self.made[key] = training, batches_of(model, Captions("val", HELD_OUT), HELD_OUT)[0]
        return self.made[key]


def run_all(
    runs: dict[str, Callable[[int], tuple[VisionLanguageModel, dict[str, Any]]]],
    seeds: Sequence[int],
    out: Path,
    data: Data,
) -> None:
    """Each run with each seed, a seed of all runs first. A run makes a model, and tells what else is to be kept.

    The file: {name: {…, "seeds": {"0": {"curve": …}, …}}, …}.
    """
    torch.set_num_threads(1)
    out.parent.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        for name, make in runs.items():
            kept = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
            if str(seed) in kept.get(name, {}).get("seeds", {}):
                continue
            torch.manual_seed(seed)
            model, told = make(seed)
            result = {**train(model, *data.of(model, seed)), **told.pop("of this seed", {})}
            kept.setdefault(name, {**told, **common(model, data), "seeds": {}})["seeds"][str(seed)] = result
            out.write_text(json.dumps(kept) + "\n", encoding="utf-8")
            print(
                f"{name}, seed {seed}: content {result['curve'][-1][1]:.3f}, blind {result['blind']:.3f}, things "
                f"{result['things']:.3f}, places {result['places']:.3f}, {result['seconds']} s",
                flush=True,
            )


def common(model: VisionLanguageModel, data: Data) -> dict[str, Any]:
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": data.steps,
        "batch_size": data.batch_size,
        "held_out": HELD_OUT,
        "machine": f"{processor()}, one thread, float32",
    }


def make_design(name: str, seed: int) -> tuple[VisionLanguageModel, dict[str, Any]]:
    config = small_vlm(**SIZES.get(name, {}))
    return from_scratch(config, partial(build, name)), {"forward_flops": forward_flops(name, config)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=DESIGNS, default=list(DESIGNS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="SEED")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; runs that it holds already are kept")
    options = parser.parse_args()
    runs = {name: partial(make_design, name) for name in options.only}
    run_all(runs, options.seeds, options.out, Data(steps=150, batch_size=16))


if __name__ == "__main__":
    main()
