"""How chapter 15's runs balance tasks: by parts of the samples, and by weights of the losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nanovlm.adapt.task_loss import UncertaintyWeights, task_losses
from nanovlm.data.mixing import loss_weights, task_weights
from nanovlm.models.vision_language_model import VisionLanguageModel, VLMOutput
from nanovlm.training.optimizer import Optimizers

TEMPERATURE = 5.0
LR_WEIGHTS = 0.1  # of the logarithms of variances, which have to come from 0 to about -4 or 2 within a hundred steps


def mixed(kind: str, sizes: Sequence[int], losses: Sequence[float]) -> list[float]:
    """Each task's part of the samples. losses: on held-out samples, of each task; wanted for kind "loss" alone."""
    if kind == "loss":
        return loss_weights(losses)
    return task_weights(sizes, 1.0 if kind == "size" else TEMPERATURE)


class Weighed(nn.Module):
    """A model whose loss is its tasks' losses with learned weights, to be handed to `train_step` in its place.

    sizes: of the tasks, in the order in which the loader joins them; `next_samples` names those of the next batch.
    """

    def __init__(self, model: VisionLanguageModel, sizes: Sequence[int], optimizers: Optimizers) -> None:
        super().__init__()
        self.module, self.weigh = model, UncertaintyWeights(len(sizes))
        self.ends, self.owners = torch.tensor(sizes).cumsum(0), torch.zeros(0, dtype=torch.long)
        learned = self.weigh.log_variances
        optimizers.pairs.append((learned, learned))
        optimizers.all.append(torch.optim.Adam([{"params": [learned], "peak_lr": LR_WEIGHTS}], lr=LR_WEIGHTS))

    def next_samples(self, indices: Sequence[int]) -> None:
        self.owners = torch.bucketize(torch.tensor(indices), self.ends, right=True)  # [B]

    def forward(self, input_ids: Tensor, images: Tensor, targets: Tensor, document_ids: None = None) -> VLMOutput:
        out = self.module(input_ids, images, targets=targets)
        return out._replace(loss=self.weigh(*task_losses(out.logits, targets, self.owners, len(self.ends))))
