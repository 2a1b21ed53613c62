"""Each task's own loss, and weights that settle where they should."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nanovlm.adapt.task_loss import UncertaintyWeights, task_losses
from nanovlm.config import IGNORE


def test_each_task_has_the_mean_over_its_own_tokens() -> None:
    targets = torch.tensor([[IGNORE, 3, 1], [2, IGNORE, IGNORE], [IGNORE, 0, IGNORE]])
    logits = torch.randn(4, 5)  # of the supervised tokens, row by row
    losses, present = task_losses(logits, targets, torch.tensor([2, 0, 2]), num_tasks=3)
    assert present.tolist() == [True, False, True]
    assert losses[0] == pytest.approx(F.cross_entropy(logits[2:3], torch.tensor([2])).item())
    assert losses[2] == pytest.approx(F.cross_entropy(logits[[0, 1, 3]], torch.tensor([3, 1, 0])).item())
    assert losses[1] == 0


def test_a_weight_settles_at_half_the_inverse_of_its_loss() -> None:
    weigh, losses = UncertaintyWeights(3), torch.tensor([4.0, 0.1, 7.0])
    present = torch.tensor([True, True, False])
    assert weigh(losses, present).item() == pytest.approx(4.1)
    optimizer = torch.optim.Adam(weigh.parameters(), lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        weigh(losses, present).backward()
        optimizer.step()
    assert weigh.weights.tolist() == pytest.approx([0.125, 5.0, 1.0], rel=0.02)


def test_the_models_gradient_is_weighed() -> None:
    weigh, losses = UncertaintyWeights(2), torch.tensor([1.0, 2.0], requires_grad=True)
    with torch.no_grad():
        weigh.log_variances.copy_(torch.tensor([2.0, 0.5]).log())
    weigh(losses, torch.tensor([True, True])).backward()
    assert losses.grad.tolist() == pytest.approx([0.5, 2.0])
