"""One optimizer step: learning rate, forward and backward pass over several batches, clipping, update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nanovlm.device import Precision
from nanovlm.models.vision_language_model import IGNORE, VLMOutput
from nanovlm.training import parallel
from nanovlm.training.optimizer import Optimizers


def get_lr(
    step: int, max_lr: float, max_steps: int, warmup_fraction: float = 0.03, min_lr_fraction: float = 0.1
) -> float:
    """Learning rate of step 0 … max_steps - 1: a straight line up to max_lr, then a cosine down to a share of it."""
    warmup = max(1, round(warmup_fraction * max_steps))
    if step < warmup:
        return max_lr * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, max_steps - warmup))
    return max_lr * (min_lr_fraction + (1 - min_lr_fraction) * 0.5 * (1 + math.cos(math.pi * progress)))


def forward(model: nn.Module, batch: dict[str, Any], device: torch.device) -> VLMOutput:
    """Logits and mean loss of a batch's supervised tokens. Rows are padded on the right, where causal attention keeps
    padding out of sight without a mask; packed rows bring their documents."""
    on_cuda = device.type == "cuda"  # elsewhere a copy that is not waited for may read memory that is already freed
    moved = {k: v.to(device, non_blocking=on_cuda) for k, v in batch.items() if isinstance(v, Tensor)}
    images = moved.get("images")
    if images is not None and images.is_floating_point():
        images = images.to(next(model.parameters()).dtype)
    return model(moved["input_ids"], images, targets=moved["targets"], document_ids=moved.get("document_ids"))


def train_step(
    model: nn.Module,
    batches: Sequence[dict[str, Any]],
    optimizers: Optimizers,
    scaler: torch.amp.GradScaler,
    precision: Precision,
    device: torch.device,
    max_grad_norm: float,
) -> float:
    """One optimizer step over several batches. Returns the mean loss over all of their supervised tokens.

    Each batch counts by its number of supervised tokens, in this process and in all of them: a mean of means would
    give the tokens of short batches more weight.

    Raises: FloatingPointError, with the weights as they were, if the loss or its gradient is NaN or infinite.
    """
    counts = [float((batch["targets"] != IGNORE).sum()) for batch in batches]
    total = parallel.all_sum(torch.tensor(sum(counts), device=device))
    world = parallel.num_processes()  # over which the gradients are averaged, where a sum is wanted
    mean_loss = torch.zeros((), device=device)
    for number, (batch, count) in enumerate(zip(batches, counts, strict=True), start=1):
        with parallel.only_the_last(model, number == len(batches)):
            with precision.context(device):
                loss = forward(model, batch, device).loss * (count / total)
            scaler.scale(loss * world).backward()
        optimizers.collect_gradients()
        mean_loss += loss.detach()
    optimizers.fill_gradients()
    norm = optimizers.clip(max_grad_norm, scaler)
    loss, norm = torch.stack([parallel.all_sum(mean_loss), norm]).tolist()
    # A scaled float16 gradient may overflow: the scaler then skips this step, and scales less from here on.
    finite = math.isfinite(loss) and math.isfinite(norm)
    optimizers.step(scaler, skip_step=not finite)
    if not math.isfinite(loss) or (not finite and scaler.get_scale() <= 1):
        samples = [i for batch in batches for i in batch.get("sample_indices", ())]
        raise FloatingPointError(f"the loss is {loss}, its gradient norm {norm}, on the samples {samples}")
    return loss
