"""Losses of several tasks in one batch, and weights for them that are learned along with the model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanovlm.config import IGNORE


def task_losses(logits: Tensor, targets: Tensor, tasks: Tensor, num_tasks: int) -> tuple[Tensor, Tensor]:
    """The mean loss over the supervised tokens of each task, [num_tasks], and which tasks there are, bool [num_tasks];
    the loss of a task without tokens is 0.

    logits [supervised tokens, vocab_size], targets [B, T] with IGNORE, tasks [B]: whose row it is.
    """
    supervised = targets != IGNORE
    owners = tasks[supervised.nonzero()[:, 0]]  # [supervised tokens]
    losses = F.cross_entropy(logits.float(), targets[supervised], reduction="none")
    counts = torch.bincount(owners, minlength=num_tasks)
    return losses.new_zeros(num_tasks).index_add(0, owners, losses) / counts.clamp(min=1), counts > 0


class UncertaintyWeights(nn.Module):
    """losses [num_tasks], present bool [num_tasks] -> the sum of exp(-s) loss + s / 2 over the present tasks.

    Each s is the logarithm of a variance, and is learned; without s / 2 all weights would go to zero. Where it has
    settled, the weight is 1 / (2 loss): a task with a large loss counts as a noisy one, and is turned down.
    Source: Kendall et al. 2018 (arXiv:1705.07115), in their form for answers that come from a softmax.
    """

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.log_variances = nn.Parameter(torch.zeros(num_tasks))

    @property
    def weights(self) -> Tensor:
        return (-self.log_variances).exp()

    def forward(self, losses: Tensor, present: Tensor) -> Tensor:
        return (self.weights * losses + self.log_variances / 2)[present].sum()
