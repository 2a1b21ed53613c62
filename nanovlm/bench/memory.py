"""What a forward pass keeps for its backward pass, measured without computing anything: on the meta device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from nanovlm.config import VLMConfig
from nanovlm.models.vision_language_model import VisionLanguageModel


def saved_bytes(model: nn.Module, run: Callable[[], Any]) -> int:
    """Bytes that autograd keeps while `run()`'s output lives. Weights are left out, shared memory counts once."""
    weights = {p.untyped_storage()._cdata for p in model.parameters()}  # on the meta device all addresses are 0
    kept: dict[int, tuple[int, Tensor]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes(), tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        alive = run()
    del alive
    return sum(size for size, _ in kept.values())


def activation_bytes(config: VLMConfig, rows: int, length: int, supervised: int, dtype: torch.dtype) -> int:
    """Of a batch with a picture in each of `rows` rows of `length` tokens (the image tokens included), and so many
    supervised tokens a row. An upper bound: on the meta device attention keeps its probabilities, which fused kernels
    on a GPU compute again."""
    with torch.device("meta"):
        model = VisionLanguageModel(config).to(dtype).train()
        size = config.vision.image_size
        images = torch.empty(rows, 3, size, size, dtype=dtype)
        x = torch.empty(rows, length, config.language.hidden_dim, dtype=dtype)
        answers = torch.empty(rows * supervised, config.language.hidden_dim, dtype=dtype)
        targets = torch.empty(rows * supervised, dtype=torch.long)
        return (
            saved_bytes(model, lambda: model.projector(model.vision_encoder(images)))
            + saved_bytes(model, lambda: model.decoder(x))
            + saved_bytes(model, lambda: F.cross_entropy(model.decoder.head(answers).float(), targets))
        )
