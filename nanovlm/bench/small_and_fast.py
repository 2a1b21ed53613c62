"""The pocket model made smaller in many ways, and what each costs: chapter 16's table.

    python -m nanovlm.bench.small_and_fast --out assets/runs/16_small_and_fast.json

Whole numbers, quantisation-aware training beside the same training without it, and pruning before and after training
on, of channels and of heads: for each variant its bytes and the share of right answers by kind, and for some how many
times as fast as float32 they answer (in turns, on one thread) and the memory that they take. The questions are those of
the test pictures of the Thimble's shapes, charts and glyphs. Trained variants have a run for each seed. Some minutes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nanovlm.assets import asset_path
from nanovlm.bench.static_cache import static_cache
from nanovlm.bench.timing import interleave, median_ratio
from nanovlm.compress.heads import head_losses, head_sizes, keep_heads, mask_heads
from nanovlm.compress.int8 import quantise_linear, size_in_bytes
from nanovlm.compress.prune import prune_channels, prune_magnitude
from nanovlm.compress.qat import finish, prepare_qat
from nanovlm.config import TrainConfig
from nanovlm.data.collators import Batch
from nanovlm.data.loading import get_dataloaders
from nanovlm.data.thimble import Thimble
from nanovlm.device import choose_precision, processor
from nanovlm.evaluation.statistics import paired_bootstrap
from nanovlm.models.vision_language_model import VisionLanguageModel
from nanovlm.training.live_bytes import LiveBytes
from nanovlm.training.optimizer import Optimizers
from nanovlm.training.probe import Probe
from nanovlm.training.step import get_lr, train_step

SUBSETS = ("shapes", "charts", "glyphs")
TEST_IMAGES, STEPS, BATCH, LR = 50, 60, 16, 5e-4  # pictures a subset; the rest is of training on
CPU = torch.device("cpu")


def pocket() -> VisionLanguageModel:
    return VisionLanguageModel.from_pretrained(asset_path("pocket"), torch.float32).eval()


def test_questions(number: int = TEST_IMAGES) -> Probe:
    return Probe(pocket(), [Thimble(name, "test", number)[i] for name in SUBSETS for i in range(number)])


def train_on(model: VisionLanguageModel, seed: int, steps: int = STEPS) -> None:
    """Some more steps on the data that the model has learnt from, in place."""
    recipe = TrainConfig(
        dataset_names=SUBSETS,
        dataset_size=20_000,
        val_size=BATCH,
        batch_size=BATCH,
        lr_projector=LR,
        lr_backbones=LR,
        seed=seed,
    )
    loader, _ = get_dataloaders(recipe, model.config, model.tokenizer, model.image_processor)
    optimizers, precision, batches = Optimizers(model.train(), recipe), choose_precision("fp32", CPU), iter(loader)
    for step in range(steps):
        optimizers.set_lr(get_lr(step, 1.0, steps))
        train_step(model, [next(batches)], optimizers, precision.scaler(CPU), precision, CPU, 1.0)
    model.eval()


def rounded(bits: int, group: int | None = None, dynamic: bool = False) -> VisionLanguageModel:
    model = pocket()
    quantise_linear(model, dynamic, bits, group)
    return model


def trained_then_rounded(seed: int, bits: int, group: int | None) -> VisionLanguageModel:
    """The control of quantisation-aware training: the same steps, and rounding only behind them."""
    model = pocket()
    train_on(model, seed)
    quantise_linear(model, bits=bits, group=group)
    return model


def trained_rounded(seed: int, bits: int, group: int | None) -> VisionLanguageModel:
    model = pocket()
    prepare_qat(model, bits, group)
    train_on(model, seed)
    finish(model)
    return model


def masked(share: float) -> VisionLanguageModel:
    model = pocket()
    prune_magnitude(model, share)
    return model


def few_batches(model: VisionLanguageModel, number: int = 4) -> list[Batch]:
    """Of the data that the model has learnt from, to ask which of its weights matter."""
    recipe = TrainConfig(dataset_names=SUBSETS, dataset_size=20_000, val_size=BATCH, batch_size=BATCH)
    loader, _ = get_dataloaders(recipe, model.config, model.tokenizer, model.image_processor)
    return [batch for batch, _ in zip(loader, range(number), strict=False)]


def with_gradients() -> VisionLanguageModel:
    """The pocket model, with the gradients of four batches for the first-order importance of its weights."""
    model = pocket()
    for batch in few_batches(model):
        model(batch["input_ids"], batch["images"], targets=batch["targets"]).loss.backward()
    return model


def narrower(share: float, first_order: bool = False, seed: int | None = None) -> VisionLanguageModel:
    model = prune_channels(with_gradients() if first_order else pocket(), share, first_order)
    if seed is not None:
        train_on(model, seed)
    return model


def fewer_heads(share: float, by_loss: bool = False, seed: int | None = None) -> VisionLanguageModel:
    model = pocket()
    scores = head_losses(model, few_batches(model)) if by_loss else head_sizes(model)
    mask_heads(model, keep_heads(scores, share))
    if seed is not None:
        train_on(model, seed)
    return model


FIXED: dict[str, Callable[[], VisionLanguageModel]] = {
    "float32": pocket,
    "int8, dynamic": lambda: rounded(8, dynamic=True),
    "int8": lambda: rounded(8),
    "int4": lambda: rounded(4),
    "int4, groups of 32": lambda: rounded(4, 32),
    "int3": lambda: rounded(3),
    "int3, groups of 32": lambda: rounded(3, 32),
    "int2": lambda: rounded(2),
    "int2, groups of 32": lambda: rounded(2, 32),
    "half of the weights zero": lambda: masked(0.5),
    "75 % of the weights zero": lambda: masked(0.75),
    "half of the channels": lambda: narrower(0.5),
    "25 % of the channels": lambda: narrower(0.75),
    "25 % of the channels, by gradient": lambda: narrower(0.75, first_order=True),
    "half of the heads": lambda: fewer_heads(0.5),
    "half of the heads, by loss": lambda: fewer_heads(0.5, by_loss=True),
    "25 % of the heads": lambda: fewer_heads(0.75),
    "25 % of the heads, by loss": lambda: fewer_heads(0.75, by_loss=True),
    "10 % of the channels": lambda: narrower(0.9),
    "10 % of the channels, by gradient": lambda: narrower(0.9, first_order=True),
}
TRAINED: dict[str, Callable[[int], VisionLanguageModel]] = {
    "int2, trained, then rounded": lambda seed: trained_then_rounded(seed, 2, 32),
    "int2, trained rounded": lambda seed: trained_rounded(seed, 2, 32),
    "25 % of the channels, trained on": lambda seed: narrower(0.75, seed=seed),
    "10 % of the channels, trained on": lambda seed: narrower(0.9, seed=seed),
    "25 % of the heads, trained on": lambda seed: fewer_heads(0.75, by_loss=True, seed=seed),
}
TIMED = ("int8, dynamic", "int8", "int4, groups of 32", "75 % of the weights zero", "25 % of the channels")


def measure(model: VisionLanguageModel, probe: Probe, before: list[bool]) -> dict[str, Any]:
    """before: which questions float32 has right."""
    right = probe.right(model)
    by_kind: dict[str, list[bool]] = {}
    for kind, hit in zip(probe.kinds, right, strict=True):
        by_kind.setdefault(kind, []).append(hit)
    points = paired_bootstrap(torch.tensor(before, dtype=torch.float32), torch.tensor(right, dtype=torch.float32))
    return {
        "bytes": size_in_bytes(model),
        "parameters": sum(p.numel() for p in model.parameters()),
        "right": round(sum(right) / len(right), 4),
        "points": [round(100 * value, 2) for value in points],  # to float32, with its 95 % interval
        "kinds": {kind: round(sum(hits) / len(hits), 4) for kind, hits in by_kind.items()},
    }


def one_answer(model: VisionLanguageModel) -> None:
    model.generate(image=asset_path("images/shapes.png"), prompt="Describe the picture.", max_new_tokens=24)


def timed_tasks() -> tuple[Callable[[VisionLanguageModel], None], ...]:
    """Answering one question, and reading a batch of 32."""
    batch = test_questions(4).batches[0]

    @torch.no_grad()
    def read(model: VisionLanguageModel) -> None:
        model(batch["input_ids"][:32], batch["images"][:32])

    return one_answer, read


def speeds(rounds: int = 15) -> dict[str, dict[str, float]]:
    """Of each task: float32's time over the variant's, the median of rounds."""
    model, tasks = pocket(), timed_tasks()
    found: dict[str, dict[str, float]] = {}

    for name in TIMED:
        other = FIXED[name]()
        one, many = (
            interleave({"float32": partial(task, model), "other": partial(task, other)}, rounds) for task in tasks
        )
        found[name] = {
            "answer": round(median_ratio(one["float32"], one["other"]), 2),
            "batch": round(median_ratio(many["float32"], many["other"]), 2),
        }
        print(f"{name}: {found[name]}", flush=True)
    return found


def second_core(rounds: int = 15) -> dict[str, dict[str, float]]:
    """The same two tasks: a variant's time on one thread over its time on two, each the shortest of the rounds.

    Not the median: two threads wait for each other, and where another program has one of the cores for a moment both
    stand still, so that most rounds of a shared machine measure the neighbours.
    """
    tasks = timed_tasks()
    found: dict[str, dict[str, float]] = {}

    def on(threads: int, task: Callable[[VisionLanguageModel], None], model: VisionLanguageModel) -> None:
        torch.set_num_threads(threads)
        task(model)
        torch.set_num_threads(1)

    for name in ("float32", *TIMED):
        model = FIXED[name]()
        one, many = (
            interleave({"1": partial(on, 1, task, model), "2": partial(on, 2, task, model)}, rounds) for task in tasks
        )
        found[name] = {
            "answer": round(min(one["1"].seconds) / min(one["2"].seconds), 2),
            "batch": round(min(many["1"].seconds) / min(many["2"].seconds), 2),
        }
        print(f"{name}: {found[name]}", flush=True)
    return found


def peaks() -> dict[str, int]:
    """Bytes of all tensors that live at one time while a model answers a question, its weights included."""
    found = {}
    for name in ("float32", *TIMED):
        model = FIXED[name]()
        with LiveBytes([*model.parameters(), *model.buffers()]) as memory:
            one_answer(model)
        found[name] = memory.peak
    return found


COSTS: dict[str, Callable[[], dict[str, Any]]] = {
    "speeds": speeds,
    "second_core": second_core,
    "peaks": peaks,
    "caches": lambda: static_cache(pocket()),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file; variants that it holds already are kept")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help=f"some of them, or {', '.join(COSTS)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    options = parser.parse_args()
    unknown = set(options.only or ()) - {*FIXED, *TRAINED, *COSTS}
    if unknown:
        parser.error(
            f"there is no variant {', '.join(sorted(unknown))}; there are {', '.join([*FIXED, *TRAINED, *COSTS])}"
        )
    torch.set_num_threads(1)
    probe = test_questions()
    before = probe.right(pocket())
    result: dict[str, Any] = {
        "command": f"python -m nanovlm.bench.small_and_fast --out {options.out}",
        "machine": f"{processor()}, one thread, float32",
        "questions": len(probe.kinds),
        "steps": STEPS,
        "batch": BATCH,
        "variants": {},
        "trained": {},
    }
    if options.out.exists():
        kept = json.loads(options.out.read_text(encoding="utf-8"))
        result |= {key: kept[key] for key in ("variants", "trained", *COSTS) if key in kept}

    def keep(name: str, found: dict[str, Any]) -> None:
        print(f"{name}: {found['right']:.3f} right, {found['bytes'] / 1e6:.2f} MB", flush=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result) + "\n", encoding="utf-8")

    for name in options.only or [*FIXED, *COSTS, *TRAINED]:
        if name in COSTS:
            result[name] = COSTS[name]()
        elif name in FIXED and name not in result["variants"]:
            result["variants"][name] = measure(FIXED[name](), probe, before)
            keep(name, result["variants"][name])
        for seed in options.seeds if name in TRAINED else ():
            if str(seed) in result["trained"].setdefault(name, {}):
                continue
            began = time.process_time()
            model = TRAINED[name](seed)
            seconds = round(time.process_time() - began, 1)
            result["trained"][name][str(seed)] = {**measure(model, probe, before), "seconds": seconds}
            keep(f"{name}, seed {seed}", result["trained"][name][str(seed)])
    options.out.write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
