"""`--batch-size auto`: the most rows a forward that fit, found by trying."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable

import torch
from torch import nn

from nanovlm.adapt.freeze import choose_trained
from nanovlm.config import TrainConfig, VLMConfig
from nanovlm.device import Precision
from nanovlm.models.vision_language_model import VisionLanguageModel
from nanovlm.training import parallel
from nanovlm.training.live_bytes import LiveBytes
from nanovlm.training.optimizer import Optimizers
from nanovlm.training.step import train_step

MOST = 512  # rows: more make a step neither faster nor better for models that anyone trains on one machine
LEFT_FREE = 0.1  # share of the room, for what else needs memory: the data, the libraries, other programs
FIRST_WORD = 6  # ids below are special tokens


def largest_batch(fits: Callable[[int], bool], most: int = MOST) -> int:
    """The largest n from 1 to `most` for which fits(n); 0 if there is none. No n is tried twice, or is more than double
    of what fits."""
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def free_bytes() -> float:
    """Main memory that is free now."""
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # Windows, macOS
        return 4e9


def find_batch_size(
    model: VisionLanguageModel,
    recipe: TrainConfig,
    precision: Precision,
    device: torch.device,
    report: Callable[[str], None],
) -> int:
    """Tries steps of random rows of full length with a picture each, on a copy of the model. On a GPU a batch fits that
    raises no OutOfMemoryError; elsewhere, where a machine would swap instead, all tensors together must stay within
    nine tenths of the memory that is free.

    Raises: ValueError where not even one row fits, or several processes would have to agree.
    """
    if parallel.num_processes() > 1:
        raise ValueError("batch_size auto tries batches in one process: under torchrun name a number.")
    room = free_bytes() * (1 - LEFT_FREE)

    def fits(rows: int) -> bool:
        try:
            used = step_bytes(model, recipe, rows, precision, device)
        except torch.OutOfMemoryError:
            return False
        finally:
            if device.type == "cuda":
                torch.cuda.empty_cache()
        if device.type == "cuda":
            return used <= torch.cuda.get_device_properties(device).total_memory * (1 - LEFT_FREE)
        return used <= room

    found = largest_batch(fits)
    if not found:
        raise ValueError(
            f"Not even one row of {recipe.max_length} tokens fits into the free memory: take --gradient-checkpointing "
            "True, shorter rows (--max-length), or adapters on a base of four bits (--lora-rank 8 --lora-4bit True)."
        )
    report(f"batch      {found} rows a step are the most that fit" + (", or that are tried" if found == MOST else ""))
    return found


def step_bytes(model: nn.Module, recipe: TrainConfig, rows: int, precision: Precision, device: torch.device) -> int:
    """The peak of a step, after one of a single row that has made the optimizer's state: bytes of all tensors that live
    at one time."""
    tried = copy.deepcopy(model)
    choose_trained(tried, recipe)
    tried.to(device, precision.weights).train()
    tried.gradient_checkpointing(recipe.gradient_checkpointing)
    optimizers, scaler = Optimizers(tried, recipe), precision.scaler(device)
    with LiveBytes([*tried.parameters(), *tried.buffers()]) as memory:
        for size in (1, rows):
            batch = random_batch(tried.config, size, recipe.max_length)
            train_step(tried, [batch], optimizers, scaler, precision, device, recipe.max_grad_norm)
    return memory.peak


def random_batch(config: VLMConfig, rows: int, length: int) -> dict[str, torch.Tensor]:
    """Random words, all supervised, behind a picture a row: nothing that data can bring needs more."""
    generator, in_front = torch.Generator().manual_seed(0), config.image_token_id is None
    length -= config.num_image_tokens if in_front else 0
    ids = torch.randint(FIRST_WORD, config.language.vocab_size, (rows, length), generator=generator)
    if not in_front:
        ids[:, : config.num_image_tokens] = config.image_token_id
    side = config.vision.image_size
    return {"input_ids": ids, "targets": ids.clone(), "images": torch.zeros(rows, 3, side, side)}
