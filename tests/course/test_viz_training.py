"""Chapter 08's pictures in default and extreme states."""

from __future__ import annotations

import math

import pytest

from nanovlm.viz.training import (
    curves_figure,
    gallery_figure,
    intervals_figure,
    live_figure,
    panels_figure,
    rates_figure,
    smooth,
)
from tests.course.test_viz_decoder import drawn, words

RUN = {
    "max_steps": 50,
    "loss": [19.0, 5.0, 1.0, 0.5],
    "evaluations": [
        {
            "step": 1,
            "val_loss": 18.0,
            "accuracy": {"colour": 0.0, "where": 0.0},
            "blind": {"colour": 0.1, "where": 0.0},
        },
        {
            "step": 50,
            "val_loss": 0.4,
            "accuracy": {"colour": 1.0, "where": 0.5},
            "blind": {"colour": 0.2, "where": 0.25},
        },
    ],
}


@pytest.mark.parametrize("log", [False, True])
def test_curves_are_named_and_told(log: bool) -> None:
    curves = {f"run {i}": [(0.0, 10.0 + i), (100.0, 1.0 + i)] for i in range(9)}
    figure = curves_figure("Nine runs", curves, log=log, marks={"guessing": 6.1})
    told = words(drawn(figure))
    assert all(name in told for name in (*curves, "guessing", "step", "loss"))
    assert "run 3: from 13 to 4" in figure.alt


@pytest.mark.parametrize(
    "points", [[], [(1.0, 2.0)], [(0.0, 1.0), (1.0, math.nan), (2.0, math.inf)], [(0.0, 1.0), (5.0, 1.0)]]
)
def test_odd_curves_are_drawn(points: list) -> None:
    drawn(curves_figure("Odd", {"one": points}))


def test_a_run_is_watched_from_before_its_first_step() -> None:
    drawn(live_figure([], [], [], 60))
    figure = live_figure([(1, 19.0), (20, 2.0)], [(20, {"colour": 0.5, "where": 0.25})], [(20, 0.3)], 60)
    told = words(drawn(figure))
    assert "colour" in told and "blind" in told
    assert (
        figure.alt == "Step 20 of 60: the loss is 2. Right answers: colour 50%, where 25%; blind, over all kinds: 30%."
    )


@pytest.mark.parametrize("kinds", [1, 3, 7])
def test_panels_are_named_and_share_their_legend(kinds: int) -> None:
    curves = {"own": [(25.0, 3.0), (300.0, 0.5)], "other": [(25.0, 3.0), (300.0, 2.5)]}
    figure = panels_figure("By kind", {f"kind {i}": curves for i in range(kinds)})
    told = words(drawn(figure))
    assert all(f"kind {i}" in told for i in range(kinds)) and "own" in told and "other" in told
    assert figure.alt.count("own ends at 0.5") == kinds


def test_the_gallery_tells_each_run() -> None:
    figure = gallery_figure(dict.fromkeys("ABCDEFGH", RUN))
    drawn(figure)
    assert figure.alt.count("validation loss 0.4") == 8
    assert "right answers 75%, blind 22%" in figure.alt


def test_the_lowest_loss_is_the_darkest() -> None:
    figure = rates_figure(
        "Rates", "projector", "backbones", {("a", "x"): 2.0, ("a", "y"): 1.0, ("b", "x"): 9.0, ("b", "y"): math.inf}
    )
    root = drawn(figure)
    fills = [e.get("fill") for e in root.iter() if e.tag.endswith("rect") and e.get("rx") == "4"]
    assert fills[1] == "#0d4585" and fills[2] == "#f1f5f9"


def test_intervals_across_zero_are_grey() -> None:
    figure = intervals_figure("Ablations", {"sure": (0.2, 0.1, 0.3), "unsure": (0.1, -0.1, 0.3)}, "change")
    root = drawn(figure)
    circles = [e.get("fill") for e in root.iter() if e.tag.endswith("circle")]
    assert len(set(circles)) == 2
    assert "unsure +10.0%, from -10.0% to +30.0%" in figure.alt


def test_smoothing_starts_at_once() -> None:
    assert smooth([3.0, 1.0, 2.0], width=2) == [3.0, 2.0, 1.5]
