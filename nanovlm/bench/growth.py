"""How cost grows: a step with its batch, an answer with its tokens, memory with nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nanovlm.bench.contenders import Setting, our_generation, our_training_step
from nanovlm.bench.sizes import Size, make_batch, make_prompts
from nanovlm.bench.timing import interleave
from nanovlm.models.vision_language_model import VisionLanguageModel

STATM = Path("/proc/self/statm")


def resident_bytes() -> int | None:
    """Memory that this process holds; None where the system does not say (it does on Linux)."""
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if STATM.is_file() else None


def seconds_by_size(make: Callable[[int], Callable[[], Any]], values: tuple[int, ...], rounds: int) -> dict[int, float]:
    """The median time of each value's run, all of them timed in turn."""
    runs = {str(value): make(value) for value in values}
    for run in runs.values():
        run()
    timings = interleave(runs, rounds)
    return {value: timings[str(value)].median for value in values}


def memory_over_steps(step: Callable[[], Any], steps: int, settle: int = 100) -> dict[str, Any]:
    """Memory after `settle` steps and after `steps`: what the first ones reserve is not growth."""
    for _ in range(settle):
        step()
    before = resident_bytes()
    for _ in range(steps - settle):
        step()
    after = resident_bytes()
    return {"steps": steps, "bytes_before": before, "bytes_after": after}


def growth(size: Size, setting: Setting, rounds: int = 5, steps: int = 1_000) -> dict[str, Any]:
    """Seconds of a training step by batch size, of `generate` by new tokens, and memory over many small steps."""
    torch.manual_seed(0)
    model = VisionLanguageModel(size.config).eval()
    batches = tuple(max(1, size.batch_size // part) for part in (8, 4, 2, 1))
    tokens = tuple(size.new_tokens * times for times in (1, 2, 4))
    prompts = make_prompts(size.config, 1, size.prompt_length)
    small = make_batch(size.config, 2, size.config.num_image_tokens + 32)
    return {
        "training_step_s": seconds_by_size(
            lambda rows: our_training_step(model, make_batch(size.config, rows, size.length), setting), batches, rounds
        ),
        "generate_s": seconds_by_size(partial(_generation, model, prompts), tokens, rounds),
        "memory": memory_over_steps(our_training_step(model, small, setting), steps),
    }


def _generation(model: VisionLanguageModel, prompts: dict[str, torch.Tensor], new_tokens: int) -> Callable[[], Any]:
    return our_generation(model, prompts, new_tokens, Setting("fp32"))


def straightness(seconds: dict[int, float]) -> float:
    """Time per unit at the largest value over that at the one before: 1 is a straight line through nothing, less a
    fixed cost that spreads, more a cost that grows faster than its cause."""
    *_, before, last = seconds
    return (seconds[last] / last) / (seconds[before] / before)
