"""Chapter 01's challenge: its baseline, and a better way within the same budget."""

from __future__ import annotations

import pytest
import torch

from nanovlm.course.holes import by_positions, score


def two_heads(batches):
    """Attention minus attention: with positive weights alone one can only average. 2 x 64 x 16 numbers."""
    near, far = ((torch.randn(64, 16) * 0.02).requires_grad_() for _ in range(2))

    def predict(colours, hidden):
        weights = [(p @ p.T).masked_fill(hidden[:, None], float("-inf")).softmax(dim=-1) for p in (near, far)]
        return (1.5 * weights[0] - 0.5 * weights[1]) @ colours

    optimizer = torch.optim.Adam([near, far], lr=0.03)
    for colours, hidden in batches:
        loss = (predict(colours, hidden) - colours)[hidden].pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return predict


def test_the_challenge_has_a_baseline_and_a_better_answer() -> None:
    baseline, better = score(by_positions), score(two_heads)
    assert 0.14 < baseline < 0.18 and better < 0.135, (baseline, better)


def test_hidden_colours_are_not_shown_and_a_wrong_shape_is_named() -> None:
    copied = score(lambda batches: lambda colours, hidden: colours)
    assert copied > 0.5, "whoever returns what is given is not right in the holes"
    with pytest.raises(ValueError, match=r"should return \[200, 64, 3\]"):
        score(lambda batches: lambda colours, hidden: colours[:, 0])
