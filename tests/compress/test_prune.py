"""Pruning: smaller matrices say what zeroed channels said, and are saved and loaded as any model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nanovlm.compress.int8 import own_linear, size_in_bytes
from nanovlm.compress.prune import importance, kept_channels, mlp_layers, prune_channels, prune_magnitude
from nanovlm.models.vision_language_model import VisionLanguageModel
from tests.tiny import max_difference, random_images, tiny_model

IDS = torch.tensor([[4, 4, 4, 4, 7, 8, 9]])


def logits(model: VisionLanguageModel) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, random_images(1)).logits


@pytest.mark.parametrize("first_order", [False, True])
def test_a_pruned_model_is_the_one_with_zeroed_channels(first_order: bool, tmp_path: Path) -> None:
    model = tiny_model()
    if first_order:
        model(IDS, random_images(1), targets=IDS.roll(-1, 1)).loss.backward()
    before = logits(model)
    small = prune_channels(model, 0.25, first_order)
    assert torch.equal(logits(model), before)
    assert small.config.language.inter_dim == small.config.vision.inter_dim == 36
    assert size_in_bytes(small) < size_in_bytes(model)
    for part in (model.vision_encoder, model.decoder):
        for block in part.blocks:
            kept = kept_channels(block.mlp, 36, first_order)
            lost = [i for i in range(48) if i not in kept.tolist()]
            mlp_layers(block.mlp)[1].weight.data[:, lost] = 0
    assert max_difference(logits(small), logits(model)) < 1e-5
    assert max_difference(logits(small), before) > 1e-3
    small.save_pretrained(tmp_path / "small")
    assert torch.equal(logits(VisionLanguageModel.from_pretrained(tmp_path / "small").eval()), logits(small))


def test_magnitude_takes_the_smallest_and_saves_no_byte() -> None:
    model, plain = tiny_model(), tiny_model()
    prune_magnitude(model, 0.5)
    assert size_in_bytes(model) == size_in_bytes(plain)
    for name, layer in own_linear(model).items():
        old = plain.get_submodule(name).weight.abs()
        gone = layer.weight == 0
        assert gone.sum() == layer.weight.numel() // 2
        assert old[gone].max() <= old[~gone].min()


def test_bad_input_gets_a_sentence() -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match=r"call backward\(\)"):
        importance(next(model.parameters()), first_order=True)
    with pytest.raises(ValueError, match="less than 1"):
        prune_channels(model, 1.0)
    with pytest.raises(ValueError, match="without channels"):
        prune_channels(model, 0.999)
