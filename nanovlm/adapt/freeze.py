"""Which weights a run moves: whole parts are frozen, or everything but low-rank adapters."""

from __future__ import annotations

from torch import nn

from nanovlm.adapt.blocks import quantise_base
from nanovlm.adapt.lora import add_lora
from nanovlm.config import TrainConfig


def choose_trained(model: nn.Module, config: TrainConfig) -> str:
    """Freeze what the recipe freezes and add the adapters that it asks for, in place. Returns a sentence for the log.

    Raises: ValueError if nothing is left to train.
    """
    if config.lora_rank:
        add_lora(model, config.lora_rank, config.lora_alpha, config.lora_modules)
        if config.lora_4bit:
            quantise_base(model)
    for part in config.freeze:
        model.get_submodule(part).requires_grad_(False)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if not trained:
        raise ValueError(f"With {', '.join(config.freeze)} frozen nothing is left to train: leave out one of freeze.")
    total = sum(p.numel() for p in model.parameters())
    return f"{trained:,} of {total:,} weights, {trained / total:.1%}"
