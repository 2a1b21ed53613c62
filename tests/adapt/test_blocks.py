"""Four bits a number: bitsandbytes' values, errors no larger than half a gap, an odd number of anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanovlm.adapt.blocks import NF4, dequantise_blocks, pack, quantise_blocks, unpack

# Made by bitsandbytes 0.50.2 on a CPU: bitsandbytes.functional.quantize_4bit(weight, blocksize=64, quant_type="nf4").
REFERENCE = json.loads((Path(__file__).parent / "nf4.json").read_text())


def weight() -> torch.Tensor:
    """[6, 64], from sines, so that no random number generator decides"""
    x = torch.sin(torch.arange(384, dtype=torch.float64) * 12.9898) * 43758.5453
    return ((x - x.floor()) * 2 - 1).float().view(6, 64)


def test_codes_and_values_are_those_of_bitsandbytes() -> None:
    codes, scales = quantise_blocks(weight())
    assert pack(codes).tolist() == REFERENCE["packed"]
    assert scales.tolist() == pytest.approx(REFERENCE["absmax"], rel=1e-6)
    restored = dequantise_blocks(codes, scales, (6, 64))
    assert restored.flatten().tolist() == pytest.approx(REFERENCE["restored"], abs=1e-6)


@given(st.integers(1, 300), st.integers(1, 80), st.integers(0, 5))
def test_the_error_is_at_most_half_the_widest_gap_of_its_block(count: int, block: int, seed: int) -> None:
    numbers = torch.randn(count, generator=torch.Generator().manual_seed(seed)) * 10
    codes, scales = quantise_blocks(numbers, block)
    assert len(codes) == count and len(scales) == -(-count // block)
    assert torch.equal(unpack(pack(codes), count), codes)
    error = (dequantise_blocks(codes, scales, (count,), block) - numbers).abs()
    assert (error <= scales.repeat_interleave(block)[:count] * (NF4.diff().max() / 2 + 1e-6)).all()


def test_zeros_stay_zeros() -> None:
    codes, scales = quantise_blocks(torch.zeros(3, 50))
    assert not dequantise_blocks(codes, scales, (3, 50)).any()


def test_one_outlier_costs_its_block_alone() -> None:
    numbers = weight().flatten()
    numbers[5] = 1000.0
    codes, scales = quantise_blocks(numbers)
    error = (dequantise_blocks(codes, scales, numbers.shape) - numbers).abs()
    assert error[64:].max() < 0.2 < error[:64].max()
