"""What a forward pass keeps: the same on the meta device and in memory, and in proportion to the rows."""

from __future__ import annotations

import torch
from torch import nn

from nanovlm.bench.memory import activation_bytes, saved_bytes
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
