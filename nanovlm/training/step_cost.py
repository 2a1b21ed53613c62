"""Floating-point operations of a training step and of an answer, counted by the tracer on the meta device.

A multiplication and an addition are two; only matrix products count, as in torch's FlopCounterMode and in papers
(norms, activations and softmax are about one percent of a transformer).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nanovlm.config import VLMConfig
from nanovlm.models.language_model import KVCache
from nanovlm.models.vision_language_model import VisionLanguageModel
from nanovlm.trace import trace


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
