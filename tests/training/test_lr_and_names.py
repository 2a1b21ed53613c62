"""The learning rate's shape, and names that tell runs apart."""

from __future__ import annotations

import itertools
import math
import re
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanovlm.config import TrainConfig
from nanovlm.training.checkpoint import get_run_name
from nanovlm.training.step import get_lr

schedules = st.tuples(st.floats(1e-6, 1.0), st.integers(1, 2_000), st.floats(0, 1), st.just(0.0) | st.floats(1e-3, 1))


@given(schedules)
def test_up_in_a_straight_line_then_down_to_the_share(schedule):
    max_lr, max_steps, warmup_fraction, share = schedule
    rates = [get_lr(step, max_lr, max_steps, warmup_fraction, share) for step in range(max_steps + 1)]
    warmup = max(1, round(warmup_fraction * max_steps))
    assert all(0 < rate <= max_lr * (1 + 1e-9) or share == 0 for rate in rates), "the first step moves the weights too"
    for step in range(min(warmup, max_steps)):
        assert rates[step] == pytest.approx(rates[0] * (step + 1))
    if warmup <= max_steps:
        assert rates[warmup - 1] == pytest.approx(max_lr), "the peak is reached"
    after = rates[warmup - 1 :]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(after))
    if warmup < max_steps:
        assert rates[max_steps] == pytest.approx(share * max_lr, abs=1e-12)
        middle = (warmup + max_steps) / 2
        assert get_lr(middle, max_lr, max_steps, warmup_fraction, share) == pytest.approx(max_lr * (1 + share) / 2)
        assert get_lr(10 * max_steps, max_lr, max_steps, warmup_fraction, share) == rates[max_steps], "it stays"


def test_by_hand():
    rates = [get_lr(step, 2.0, 100, warmup_fraction=0.1, min_lr_fraction=0.1) for step in (0, 4, 9, 10, 55, 100)]
    assert rates == pytest.approx([0.2, 1.0, 2.0, 2.0, 1.1, 0.2])
    quarter = get_lr(10 + 90 / 4, 2.0, 100, 0.1, 0.1)
    assert quarter == pytest.approx(0.2 + 1.8 * (1 + math.cos(math.pi / 4)) / 2), "a cosine, not a line"


@given(st.integers(0, 500), st.floats(1e-5, 1), st.floats(0.1, 10))
def test_all_groups_keep_their_ratio(step, max_lr, ratio):
    assert get_lr(step, ratio * max_lr, 400) == pytest.approx(ratio * get_lr(step, max_lr, 400))


def test_run_names_tell_sizes_rates_and_data():
    config = TrainConfig(
        dataset_names=("shapes", "charts"), batch_size=8, gradient_accumulation_steps=4, max_steps=77, lr_projector=3e-3
    )
    name = get_run_name(config, 1_400_000)
    for part in ("1.4M", "shapes+charts", "bs32", "77steps", "lr0.003-0.0001"):
        assert part in name
    assert re.fullmatch(r"[\w.+-]+", name), "a directory name on every system"


@pytest.mark.parametrize(
    "change",
    [
        {"dataset_names": ("charts",)},
        {"data_cutoff_idx": 100},
        {"batch_size": 7},
        {"gradient_accumulation_steps": 3},
        {"max_steps": 3},
        {"lr_projector": 0.5},
        {"lr_backbones": 0.5},
    ],
)
def test_another_recipe_has_another_name(change, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda _: "now")
    config = TrainConfig()
    assert get_run_name(config, 10**6) == get_run_name(replace(config), 10**6)
    assert get_run_name(config, 10**6) != get_run_name(replace(config, **change), 10**6)


def test_another_second_has_another_name(monkeypatch):
    moments = iter([time.localtime(10**9), time.localtime(10**9 + 1)])
    strftime = time.strftime
    monkeypatch.setattr(time, "strftime", lambda form: strftime(form, next(moments)))
    assert get_run_name(TrainConfig(), 10**6) != get_run_name(TrainConfig(), 10**6)
