"""The two models at work, in each setting: a training step, and generation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nanovlm.bench.peer import build_peer, peer_labels
from nanovlm.config import TrainConfig
from nanovlm.device import choose_precision
from nanovlm.models.vision_language_model import VisionLanguageModel
from nanovlm.training.optimizer import Optimizers
from nanovlm.training.step import train_step

CPU = torch.device("cpu")
RECIPE = TrainConfig(optimizer="adamw", lr_projector=1e-4, lr_backbones=1e-4)  # one rate, as transformers has here


@dataclass(frozen=True)
class Setting:
    """How a model runs. "autocast": float32 weights, matrix products in bfloat16."""

    precision: Literal["fp32", "bf16", "autocast"]
    compiled: Literal["eager", "parts", "blocks", "whole"] = "eager"  # torch.compile; parts: ours, the others theirs
    attention: Literal["sdpa", "eager", ""] = ""  # transformers' attn_implementation; ours has one way

    def __str__(self) -> str:
        ways = {"eager": "eager", "parts": "compiled", "blocks": "blocks compiled", "whole": "compiled whole"}
        return ", ".join(
            [self.precision, ways[self.compiled], *([f"{self.attention} attention"] if self.attention else [])]
        )

    @property
    def weights(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    @property
    def context(self) -> AbstractContextManager[object]:
        return torch.autocast("cpu", torch.bfloat16) if self.precision == "autocast" else nullcontext()


def our_model(model: VisionLanguageModel, setting: Setting) -> VisionLanguageModel:
    """A copy, so that training leaves the original as it is."""
    copy = VisionLanguageModel(deepcopy(model.config))
    copy.load_state_dict(model.state_dict())
    if setting.compiled == "parts":
        copy.compile_parts()
    return copy.to(setting.weights).eval()


def our_training_step(model: VisionLanguageModel, batch: dict[str, Tensor], setting: Setting) -> Callable[[], float]:
    """The step that `nanovlm train` makes: forward, backward, clipping, AdamW. -> a function that gives the loss"""
    model = our_model(model, setting).train()
    optimizers = Optimizers(model, RECIPE)
    precision = choose_precision(setting.precision, CPU)
    scaler = precision.scaler(CPU)
    return lambda: train_step(model, [batch], optimizers, scaler, precision, CPU, RECIPE.max_grad_norm)


def their_training_step(model: VisionLanguageModel, batch: dict[str, Tensor], setting: Setting) -> Callable[[], float]:
    """The same for transformers. Its bfloat16 weights are moved by AdamW themselves: less exact than our float32
    copies, and less work."""
    peer = build_peer(model, setting.attention).to(setting.weights).train()
    if setting.compiled == "whole":
        peer.compile()
    elif setting.compiled == "blocks":
        for block in (*peer.model.vision_model.encoder.layers, *peer.model.text_model.layers):
            block.compile()
    optimizer = torch.optim.AdamW(peer.parameters(), lr=RECIPE.lr_backbones, betas=(0.9, 0.95), fused=True)
    images = batch["images"][:, None].to(setting.weights)  # [B, pictures in a row, 3, H, W]
    labels = peer_labels(batch["targets"])

    def step() -> float:
        with setting.context:
            loss = peer(input_ids=batch["input_ids"], pixel_values=images, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), RECIPE.max_grad_norm, foreach=True)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def our_generation(
    model: VisionLanguageModel, prompts: dict[str, Tensor], new_tokens: int, setting: Setting
) -> Callable[[], Tensor]:
    """-> a function that gives the new tokens, [B, new_tokens]"""
    model = our_model(model, setting)
    model.config.eos_token_id = -1  # no token ends the answer
    images = prompts["images"].to(setting.weights)
    real = torch.ones_like(prompts["input_ids"])
    return lambda: model.generate(prompts["input_ids"], images, real, max_new_tokens=new_tokens)


def their_generation(
    model: VisionLanguageModel, prompts: dict[str, Tensor], new_tokens: int, setting: Setting
) -> Callable[[], Tensor]:
    peer = build_peer(model, setting.attention).to(setting.weights)
    ids, images = prompts["input_ids"], prompts["images"][:, None].to(setting.weights)
    real = torch.ones_like(ids)
    options = {"max_new_tokens": new_tokens, "do_sample": False}
    if setting.compiled == "whole":
        # What transformers recommends: one graph of the step for one token, over a cache of fixed size.
        peer.forward = torch.compile(peer.forward, dynamic=False)
        options["cache_implementation"] = "static"

    def generate() -> Tensor:
        with setting.context:
            tokens = peer.generate(input_ids=ids, pixel_values=images, attention_mask=real, **options)
        return tokens[:, ids.shape[1] :]

    return generate
