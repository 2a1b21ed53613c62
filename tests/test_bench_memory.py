"""What a forward pass keeps, on the meta device and in memory; what a step keeps, and what the plan says of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from nanovlm.bench.memory import activation_bytes, saved_bytes, step_bytes
from nanovlm.config import LMConfig, ProjectorConfig, TrainConfig, ViTConfig, VLMConfig, pocket_vlm
from nanovlm.training.live_bytes import LiveBytes
from nanovlm.training.plan import MACHINES, plan
from tests.tiny import tiny_config


def test_what_is_kept_is_counted_once_and_without_weights() -> None:
    layer, x = nn.Linear(6, 6), torch.randn(5, 6)
    assert saved_bytes(layer, lambda: layer(x)) == x.nbytes
    assert saved_bytes(layer, lambda: layer(x) * layer(x)) == 3 * x.nbytes  # x, and both outputs


def test_the_meta_device_counts_as_the_cpu_does() -> None:
    real, shapes = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 2)), torch.empty(3, 6, device="meta")
    meta = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 2)).to("meta")
    assert saved_bytes(meta, lambda: meta(shapes)) == saved_bytes(real, lambda: real(torch.randn(3, 6)))


def test_activations_grow_with_rows_and_shrink_with_the_format() -> None:
    config = tiny_config()
    two, four = (activation_bytes(config, rows, 24, 5, torch.float32) for rows in (2, 4))
    assert 1.9 < four / two < 2.1
    assert activation_bytes(config, 2, 24, 5, torch.bfloat16) < two


def test_what_lives_is_counted_and_what_is_gone_is_not() -> None:
    weight = torch.ones(1_000, requires_grad=True)
    with LiveBytes([weight]) as memory:
        doubled = weight * 2
        kept = doubled.exp()
        assert memory.now == 3 * weight.nbytes
        view = kept.view(10, 100)
        del doubled, kept
        assert memory.now == 2 * weight.nbytes, "a view holds it, and autograd"
        total = view.sum()
        del view
        total.backward()
        assert weight.grad is not None
    del total
    assert memory.now == 2 * weight.nbytes and memory.peak < 5 * weight.nbytes


MIDDLE = VLMConfig(
    vision=ViTConfig(hidden_dim=192, inter_dim=768, num_blocks=4, num_heads=6, image_size=96, patch_size=8),
    projector=ProjectorConfig(vision_dim=192, language_dim=192, pixel_shuffle_factor=3),
    language=LMConfig(
        hidden_dim=192, inter_dim=512, num_blocks=6, num_heads=6, num_kv_heads=2, vocab_size=2048, max_positions=512
    ),
    image_token_id=4,
)
WIDE = replace(pocket_vlm(), language=replace(pocket_vlm().language, inter_dim=1024, num_blocks=2))


@pytest.mark.parametrize(("config", "rows", "batches"), [(pocket_vlm(), 8, 1), (WIDE, 4, 1), (MIDDLE, 2, 2)])
def test_the_plans_memory_is_the_peak_of_a_step(config: VLMConfig, rows: int, batches: int) -> None:
    recipe = TrainConfig(batch_size=rows, gradient_accumulation_steps=batches, precision="fp32")
    assert plan(config, recipe, MACHINES["laptop CPU"]).memory_bytes == pytest.approx(
        step_bytes(config, recipe), rel=0.15
    )
