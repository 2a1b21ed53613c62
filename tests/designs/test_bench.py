"""The comparison of chapter 17 is one at equal cost."""

from __future__ import annotations

from functools import cache

import pytest

from nanovlm.bench.designs import SIZES, forward_flops
from nanovlm.bench.training_runs import small_vlm
from nanovlm.designs.registry import DESIGNS


@cache
def standard_flops() -> int:
    return forward_flops("standard", small_vlm())


@pytest.mark.parametrize("name", DESIGNS)
def test_every_design_takes_the_operations_of_the_standard_one_within_5_percent(name: str) -> None:
    config = small_vlm(**SIZES.get(name, {}))
    assert config.language == small_vlm().language
    assert forward_flops(name, config) == pytest.approx(standard_flops(), rel=0.05)
