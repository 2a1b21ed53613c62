"""Chapter 17's pictures in default and extreme states."""

from __future__ import annotations

import torch

from nanovlm.viz.designs import Row, chart_figure, masks_figure
from tests.course.test_viz_decoder import drawn, words


def test_the_best_design_comes_first_with_cost_and_parameters() -> None:
    rows = {"standard": Row(1.0, 300_000, [0.5, 0.7]), "no_eyes": Row(0.97, 123_456, [1.0]), "far": Row(9.0, 10, [0.0])}
    figure = chart_figure("All", rows, "right words", blind=0.2)
    told = words(drawn(figure))
    assert all(part in told for part in ("no eyes", "standard", "123 k", "blind: 20%", "equal"))
    assert figure.alt.index("no eyes 100%") < figure.alt.index("standard 60% (50% to 70%, cost +0.0%")
    drawn(chart_figure("One", {"standard": Row(1.0, 1, [0.0])}, "right words"))


def test_a_mask_is_counted() -> None:
    masks = {"causal": torch.ones(4, 4).tril().bool(), "nobody": torch.zeros(4, 4).bool()}
    figure = masks_figure(masks, "wiiw")
    assert all(name in words(drawn(figure)) for name in masks)
    assert "causal: 10 of 16 pairs; nobody: 0 of 16 pairs" in figure.alt
