"""The benchmark: who is how fast at training and at generation, in one run."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from nanovlm.bench.contenders import (
    Setting,
    our_generation,
    our_training_step,
    their_generation,
    their_training_step,
)
from nanovlm.bench.growth import growth
from nanovlm.bench.peer import build_peer, peer_labels
from nanovlm.bench.search import (
    Start,
    Trial,
    best,
    bfloat16_pays,
    forget_compiled,
    our_settings,
    search_theirs,
    try_setting,
)
from nanovlm.bench.sizes import Size, make_batch, make_prompts, sizes
from nanovlm.bench.timing import Timing, interleave, matmul_rate, median_ratio
from nanovlm.models.vision_language_model import IGNORE, VisionLanguageModel
from nanovlm.training.step_cost import generation_flops, training_flops

TOLERANCE = 1e-4  # of logits, in float32, as a share of the largest
# How many times as fast as transformers this package means to be.
TARGETS = {
    ("pocket", "training step"): 1.5,
    ("pocket", "generate, batch 1"): 1.5,
    ("pocket", "generate, batch 16"): 1.2,
    ("quarter", "training step"): 1.5,
    ("quarter", "generate, batch 1"): 1.0,
    ("quarter", "generate, batch 16"): 1.0,
}


def check_equal(model: VisionLanguageModel, batch: dict[str, torch.Tensor]) -> float:
    """The largest difference of logits as a share of the largest logit; an error where the two compute different
    things, for then there is nothing to compare."""
    peer = build_peer(model, "sdpa")
    ids, images, targets = batch["input_ids"][:2], batch["images"][:2], batch["targets"][:2]
    with torch.no_grad():
        theirs = peer(input_ids=ids, pixel_values=images[:, None], labels=peer_labels(targets))
        ours = model(ids, images).logits
        loss = model(ids, images, targets=targets).loss
    difference = ((ours - theirs.logits).abs().max() / theirs.logits.abs().max()).item()
    if difference > TOLERANCE or abs(loss.item() - theirs.loss.item()) > TOLERANCE * max(1.0, theirs.loss.item()):
        raise RuntimeError(
            f"The two models disagree by {difference:.1e} of the largest logit (loss {loss:.5f} and {theirs.loss:.5f})."
        )
    return difference


def compare(
    what: str, ours: Start, theirs: Start, ways: Sequence[str], flops: int, quick: bool, say: Callable[[str], Any]
) -> dict[str, Any]:
    """Find each side's best setting, then time the two in turn."""
    rounds = 3 if quick else 5

    def note(who: str, trial: Trial) -> None:
        result = trial.failure if trial.timing is None else f"{1000 * trial.timing.median:9.1f} ms"
        say(f"    {who:<12} {trial.setting!s:<36} {result}")

    say(f"  {what}")
    mine = []
    for setting in our_settings(compiled=bool(ways)):
        mine.append(try_setting(ours, setting, rounds))
        note("nanovlm", mine[-1])
    peers = search_theirs(theirs, ways, rounds, partial(note, "transformers"))
    forget_compiled()
    contenders = {"nanovlm": ours(best(mine)), "transformers": theirs(best(peers))}
    for run in (*contenders.values(), *contenders.values()):
        run()
    timings = interleave(contenders, rounds if quick else 3 * rounds)
    ratio = median_ratio(timings["transformers"], timings["nanovlm"])
    return {
        "what": what,
        "flops": flops,
        "ratio": ratio,
        "nanovlm": summary(best(mine), timings["nanovlm"], mine),
        "transformers": summary(best(peers), timings["transformers"], peers),
    }


def summary(setting: Setting, timing: Timing, trials: Sequence[Trial]) -> dict[str, Any]:
    return {
        "setting": str(setting),
        "precision": setting.precision,
        "median_s": timing.median,
        "spread": timing.spread,
        "tried": [
            {"setting": str(t.setting), "median_s": t.timing.median if t.timing else None, "failure": t.failure}
            for t in trials
        ],
    }


def run_size(size: Size, quick: bool, compiled: bool, say: Callable[[str], Any]) -> dict[str, Any]:
    torch.manual_seed(0)
    model = VisionLanguageModel(size.config).eval()
    batch = make_batch(size.config, size.batch_size, size.length)
    num_supervised = int((batch["targets"] != IGNORE).sum())
    parameters = sum(p.numel() for p in model.parameters())
    difference = check_equal(model, batch)
    say(f"{size.name}: {size.what}, {parameters / 1e6:.1f} M parameters")
    say(f"  logits equal to {difference:.0e} of the largest, in float32")
    results = [
        compare(
            "training step",
            partial(our_training_step, model, batch),
            partial(their_training_step, model, batch),
            ("blocks", "whole") if compiled else (),
            training_flops(size.config, size.batch_size, size.length, num_supervised),
            quick,
            say,
        )
    ]
    for batch_size in size.generation_batches:
        prompts = make_prompts(size.config, batch_size, size.prompt_length)
        results.append(
            compare(
                f"generate, batch {batch_size}",
                partial(our_generation, model, prompts, size.new_tokens),
                partial(their_generation, model, prompts, size.new_tokens),
                ("whole",) if compiled else (),
                generation_flops(size.config, batch_size, size.prompt_length, size.new_tokens),
                quick,
                say,
            )
        )
    return {
        "what": size.what,
        "parameters": parameters,
        "difference": difference,
        "batch_size": size.batch_size,
        "length": size.length,
        "supervised": num_supervised,
        "prompt_length": size.prompt_length,
        "new_tokens": size.new_tokens,
        "results": [{**r, "target": TARGETS.get((size.name, r["what"]))} for r in results],
    }


def run_bench(
    names: Sequence[str] = ("pocket", "quarter"),
    quick: bool = False,
    compiled: bool = True,
    with_growth: bool = False,
    say: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """Compare at the named sizes. quick: fewer rounds. compiled: also try torch.compile, on both sides.

    The result is made of dicts, lists and numbers, ready for JSON; `report.table` shows it.
    """
    known = sizes()
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"There is no size {unknown[0]!r} to measure. Choose from {', '.join(known)}.")
    if not bfloat16_pays():
        say("This CPU has no instructions for products of bfloat16 numbers: only float32 is tried.")
    before = machine()
    results = {name: run_size(known[name], quick, compiled, say) for name in names}
    grown = None
    if with_growth:
        size = known[names[0]]
        grown = {"size": size.name, **growth(size, our_settings(compiled=False)[-1], rounds=3 if quick else 5)}
    after = machine()
    # The rates at the end may be lower: a machine that is warm or shared. The better one is what it can do.
    rates = {name: max(rate, after["matmul_rate"][name]) for name, rate in before["matmul_rate"].items()}
    return {"machine": {**before, "matmul_rate": rates}, "sizes": results, "growth": grown}


def machine() -> dict[str, Any]:
    """Where this was measured. Rates: floating-point operations a second of a 2048 x 2048 matrix product."""
    import transformers

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16} if bfloat16_pays() else {"fp32": torch.float32}
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "matmul_rate": {name: matmul_rate(dtype) for name, dtype in dtypes.items()},
    }
