"""Which weights a run moves: whole parts are frozen, or everything but low-rank adapters or a few embeddings."""

from __future__ import annotations

import torch
from torch import nn

from nanovlm.adapt.blocks import quantise_base
from nanovlm.adapt.lora import add_lora
from nanovlm.config import TrainConfig


def choose_trained(model: nn.Module, config: TrainConfig) -> str:
    """Freeze what the recipe freezes and add the adapters that it asks for, in place. Returns a sentence for the log,
    empty where everything is trained.

    Raises: ValueError if nothing is left to train, or a trainable token is none.
    """
    if not (config.lora_rank or config.freeze or config.trainable_tokens):
        return ""
    if config.trainable_tokens:
        names = ", ".join(map(repr, config.trainable_tokens))
        ids = [token_id(model, text) for text in config.trainable_tokens]
        return f"the embeddings of {names}, {train_embeddings(model, ids):,} weights"
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


def train_embeddings(model: nn.Module, ids: list[int]) -> int:
    """Freeze `model` but for the embeddings of these token ids, in place. Returns: how many weights are trained.

    The others get a gradient of exactly zero, and embeddings are not decayed, so that they stay bit for bit.
    """
    model.requires_grad_(False)
    weight = model.decoder.token_embedding.weight.requires_grad_()  # [vocab_size, hidden_dim]
    chosen = torch.zeros(len(weight), 1)
    chosen[ids] = 1
    weight.register_hook(lambda grad: grad * chosen.to(grad))
    return len(set(ids)) * weight.shape[1]


def token_id(model: nn.Module, text: str) -> int:
    """The id of the one token that `text` is. Raises: ValueError where it is none or several."""
    ids = model.tokenizer.encode(text)
    if len(ids) != 1:
        pieces = ", ".join(repr(model.tokenizer.decode([each])) for each in ids)
        count = f"{len(ids)} of them: {pieces}. Name those to train." if ids else "none."
        raise ValueError(f"trainable_tokens names tokens of ordinary text, and {text!r} is {count}")
    return ids[0]
