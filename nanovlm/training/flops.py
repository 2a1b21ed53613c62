"""Floating-point operations of a training step and of an answer, counted by the tracer on the meta device; and of the
parts by formula, for sums over configs alone.

A multiplication and an addition are two; only matrix products count, as in torch's FlopCounterMode and in papers
(norms, activations and softmax are about one percent of a transformer).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nanovlm.config import LMConfig, ViTConfig, VLMConfig
from nanovlm.models.language_model import KVCache
from nanovlm.models.vision_language_model import VisionLanguageModel
from nanovlm.trace import trace


def _attention(num_queries: int, num_keys: int, dim: int) -> int:
    """Scores and weighted sum; every query meets every key, whether or not a mask hides it."""
    return 2 * 2 * num_queries * num_keys * dim


def patch_flops(config: ViTConfig) -> int:
    """Cutting one picture into patch vectors."""
    return 2 * config.num_patches * 3 * config.patch_size**2 * config.hidden_dim


def vision_flops(config: ViTConfig) -> int:
    """One picture through all blocks."""
    n, dim = config.num_patches, config.hidden_dim
    products = 2 * n * (4 * dim * dim + 2 * dim * config.inter_dim)
    return config.num_blocks * (products + _attention(n, n, dim))


def projector_flops(config: VLMConfig) -> int:
    """One picture's patches to image tokens."""
    widened = config.projector.vision_dim * config.projector.pixel_shuffle_factor**2
    return 2 * config.num_image_tokens * widened * config.projector.language_dim


def decoder_flops(config: LMConfig, num_tokens: int, num_keys: int) -> int:
    """`num_tokens` of one row through all blocks, each looking at `num_keys` (its own included)."""
    dim, kv_dim = config.hidden_dim, config.num_kv_heads * config.head_dim
    products = 2 * num_tokens * (2 * dim * dim + 2 * dim * kv_dim + 3 * dim * config.inter_dim)
    return config.num_blocks * (products + _attention(num_tokens, num_keys, dim))


def head_flops(config: LMConfig, num_tokens: int) -> int:
    return 2 * num_tokens * config.hidden_dim * config.vocab_size


def training_flops(config: VLMConfig, batch_size: int, length: int, num_supervised: int) -> int:
    """One step: forward, and twice as much backward (for the inputs and for the weights; no one asks for the gradient
    of a picture). `num_supervised`: tokens of the whole batch that the head must answer for."""
    model = _on_meta(config)
    images, embeddings = _inputs(model, batch_size, length)
    forward = _count(model.vision_encoder, images)
    forward += _count(lambda: model.projector(_features(config, batch_size)))
    forward += _count(model.decoder, embeddings) + _count(
        model.decoder.head, embeddings.new_empty(num_supervised, 1, embeddings.shape[-1])
    )
    return 3 * forward - _count(model.vision_encoder.patch_embedding, images)


def generation_flops(config: VLMConfig, batch_size: int, prompt_length: int, new_tokens: int) -> int:
    """One picture and prompt a row, then tokens one by one; the head answers once for each new token."""
    model = _on_meta(config)
    images, prompt = _inputs(model, batch_size, prompt_length)

    def step(keys: int) -> int:
        """One token a row beside `keys - 1` others in the cache."""
        cache = KVCache(config.language, batch_size, keys, like=prompt)
        with torch.no_grad():
            model.decoder(prompt[:, :1].expand(-1, keys - 1, -1), cache=cache)
        return _count(lambda: model.decoder(prompt[:, :1], cache=cache))

    total = _count(model.vision_encoder, images) + _count(lambda: model.projector(_features(config, batch_size)))
    total += _count(model.decoder, prompt)
    if new_tokens > 1:  # a step's operations grow by equal amounts with each key: the first and the last tell the sum
        total += (new_tokens - 1) * (step(prompt_length + 1) + step(prompt_length + new_tokens - 1)) // 2
    return total + new_tokens * _count(model.decoder.head, prompt[:, :1])


def _on_meta(config: VLMConfig) -> VisionLanguageModel:
    with torch.device("meta"):
        return VisionLanguageModel(config)


def _inputs(model: VisionLanguageModel, batch_size: int, length: int) -> tuple[Tensor, Tensor]:
    """Pictures [B, 3, H, W] and embeddings [B, length, dim], without memory."""
    side, dim = model.config.vision.image_size, model.config.language.hidden_dim
    images = torch.empty(batch_size, 3, side, side, device="meta")
    return images, torch.empty(batch_size, length, dim, device="meta")


def _features(config: VLMConfig, batch_size: int) -> Tensor:
    return torch.empty(batch_size, config.vision.num_patches, config.vision.hidden_dim, device="meta")


def _count(run: Callable[..., Any], *inputs: Tensor) -> int:
    return trace(run, *inputs).flops
