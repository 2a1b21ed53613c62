"""A masked head is one whose columns are zero; the heads that stay are those that matter."""

from __future__ import annotations

import pytest
import torch

from nanovlm.compress.heads import head_losses, head_sizes, keep_heads, mask_heads, num_heads
from nanovlm.compress.int8 import size_in_bytes
from tests.tiny import max_difference, random_images, tiny_model

IDS = torch.tensor([[4, 4, 4, 4, 7, 8, 9]])
BATCH = {"input_ids": IDS, "images": random_images(1), "targets": IDS.roll(-1, 1)}
HEAD_DIM = 8


def test_a_masked_head_is_one_whose_columns_are_zero() -> None:
    masked, plain, zeroed = tiny_model(), tiny_model(), tiny_model()
    kept = {name: torch.arange(4) != 2 for name in num_heads(masked)}
    assert list(kept) == [f"{part}.blocks.{i}.attn" for part in ("vision_encoder", "decoder") for i in range(2)]
    handles = mask_heads(masked, kept)
    for name in kept:
        zeroed.get_submodule(name).out_proj.weight.data[:, 2 * HEAD_DIM : 3 * HEAD_DIM] = 0
    before, one, other = (m(IDS, BATCH["images"]).logits.detach() for m in (plain, masked, zeroed))
    assert max_difference(one, other) < 1e-5 and max_difference(one, before) > 1e-2
    assert size_in_bytes(masked) == size_in_bytes(plain)
    masked(**BATCH).loss.backward()
    gradient = masked.decoder.blocks[0].attn.out_proj.weight.grad.view(32, 4, HEAD_DIM).abs().sum(dim=(0, 2))
    assert (gradient > 0).tolist() == [True, True, False, True], "training on leaves it off"
    for handle in handles:
        handle.remove()
    assert torch.equal(masked(IDS, BATCH["images"]).logits, before)


def test_heads_are_ranked_by_size_and_by_what_the_loss_becomes_without_them() -> None:
    model = tiny_model()
    for name in num_heads(model):
        model.get_submodule(name).out_proj.weight.data[:, :HEAD_DIM] = 0
    loss = model(**BATCH).loss.item()
    sizes, losses = head_sizes(model), head_losses(model, [BATCH, BATCH])
    for name in num_heads(model):
        assert sizes[name][0] == 0 < sizes[name][1:].min()
        assert losses[name][0].item() == pytest.approx(loss, abs=1e-6)
        assert (losses[name][1:] - loss).abs().min() > 1e-4
    assert model(**BATCH).loss.item() == loss, "all masks are off again"


def test_the_highest_scores_stay_and_one_head_at_least() -> None:
    scores = {"a": torch.tensor([3.0, 1.0, 2.0, 0.5]), "b": torch.tensor([0.0, 1.0])}
    kept = keep_heads(scores, 0.5)
    assert kept["a"].tolist() == [True, False, True, False] and kept["b"].tolist() == [False, True]
    assert all(keep_heads(scores, 0.0)["a"])
    for share in (1.0, -1.0):
        with pytest.raises(ValueError, match="leave out less"):
            keep_heads(scores, share)
