"""What training keeps in memory: of a forward pass (on the meta device, nothing is computed), and of a whole step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from nanovlm.bench.sizes import make_batch
from nanovlm.config import TrainConfig, VLMConfig
from nanovlm.device import Precision
from nanovlm.models.vision_language_model import VisionLanguageModel
from nanovlm.training.live_bytes import LiveBytes
from nanovlm.training.optimizer import Optimizers
from nanovlm.training.step import train_step


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


def step_bytes(config: VLMConfig, recipe: TrainConfig) -> int:
    """The peak of a training step of random rows with a picture each, after one that has made the optimizer's state."""
    device, precision = torch.device("cpu"), Precision("fp32", "a measurement")
    model = VisionLanguageModel(config).train()
    model.gradient_checkpointing(recipe.gradient_checkpointing)
    optimizers, scaler = Optimizers(model, recipe), precision.scaler(device)
    batches = [
        make_batch(config, recipe.batch_size, recipe.max_length) for _ in range(recipe.gradient_accumulation_steps)
    ]
    with LiveBytes(model.parameters()) as memory:
        for _ in range(2):
            memory.peak = memory.now
            train_step(model, batches, optimizers, scaler, precision, device, recipe.max_grad_norm)
    return memory.peak
