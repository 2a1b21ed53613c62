"""How often each of several tasks comes up, and the endless batches that a mixture makes.

A task is a list of samples, or anything with len() and [index]. Weights need not sum to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import ConcatDataset

from nanovlm.config import VLMConfig
from nanovlm.data.batches import Loader, MapBatches, WeightedOrder
from nanovlm.data.chat import ChatTokenizer
from nanovlm.data.collators import VQACollator
from nanovlm.data.datasets import VQADataset
from nanovlm.data.processors import ImageProcessor


def replay_weights(new: int, old: Sequence[int], share: float) -> list[float]:
    """Parts of the new task and of each old one: `share` of all samples are old ones, dealt out by their sizes.

    Raises: ValueError where the share is none, or there is nothing to replay.
    """
    if not 0 <= share < 1:
        raise ValueError(f"The replayed share is at least 0 and less than 1; it is {share}.")
    if share and not sum(old):
        raise ValueError("There is nothing to replay: name a task that the model knows already.")
    return [1 - share, *(share * size / max(1, sum(old)) for size in old)]


def task_weights(sizes: Sequence[float], temperature: float = 1.0) -> list[float]:
    """p_i in proportion to size_i^(1 / T). T = 1: every sample comes equally often; a large T: every task does.

    Source: temperature sampling as for multilingual BERT and T5 (Raffel et al. 2020, arXiv:1910.10683, section 3.5.2).
    Raises: ValueError where a size or the temperature is not positive.
    """
    if temperature <= 0 or min(sizes) <= 0:
        raise ValueError("Sizes and the temperature are all more than 0.")
    logits = torch.tensor(sizes, dtype=torch.float64).log() / temperature  # sizes of millions, to a power, overflow
    return logits.softmax(dim=0).tolist()


def loss_weights(losses: Sequence[float], floor: float = 0.05) -> list[float]:
    """Parts in proportion to what each task has yet to learn, its loss on held-out samples; none falls below `floor`,
    or a task that is learned would be forgotten unseen."""
    if min(losses) < 0 or not 0 <= floor * len(losses) < 1:
        raise ValueError("Losses are 0 or more, and the floors of all tasks together leave something to share out.")
    total = sum(losses)
    even = 1 / len(losses)
    return [floor + (1 - floor * len(losses)) * (loss / total if total else even) for loss in losses]


def mixed_loader(
    tasks: Sequence[Any],
    weights: Sequence[float],
    vlm_cfg: VLMConfig,
    tokenizer: ChatTokenizer,
    image_processor: ImageProcessor,
    batch_size: int = 32,
    seed: int = 0,
    max_length: int = 128,
) -> Loader:
    """Endless batches in which each task has its part by weight, whatever its size; a weight of 0 leaves it out."""
    kept = [(task, weight) for task, weight in zip(tasks, weights, strict=True) if weight > 0]
    data = ConcatDataset([task for task, _ in kept])
    places = torch.arange(len(data)).tensor_split(data.cumulative_sizes[:-1])
    order = WeightedOrder(places, [weight for _, weight in kept], batch_size, seed)
    samples = VQADataset(data, tokenizer, image_processor, vlm_cfg, max_length=max_length)
    return Loader(MapBatches(samples, order, VQACollator(tokenizer.pad_token_id), endless=True))
