"""Chapter 02's pictures in default and extreme states, and the numbers that its checks and quizzes take for granted."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from nanovlm.config import ViTConfig
from nanovlm.course.exercises.ch02.parameters import count_parameters
from nanovlm.models.vision_transformer import ViT
from nanovlm.viz.style import PALETTE
from nanovlm.viz.vit import attention_tables, loss_curves, patch_attention, share_bars, weight_bars
from tests.course.test_viz_pixel_shuffle import SVG, drawn, marked, pixels, words

IMAGE = Image.new("RGB", (96, 64), "#d04020")
NAMES = ["middle", "tip", "background"]


def bars(root: ElementTree.Element, colour: str) -> list[float]:
    rects = [e for e in root.iter(f"{SVG}rect") if e.get("fill") == PALETTE[colour]]
    return [max(float(e.get("width", 0)), float(e.get("height", 0))) for e in rects]


# -- tables ------------------------------------------------------------------------------------------------------------


def test_the_tables_hold_scores_weights_and_both_sums() -> None:
    scores = torch.tensor([[0.0, 4, 0], [2, 2, 0], [0, 0, 2]])
    figure = attention_tables(scores, scores.softmax(-1), NAMES)
    said = words(drawn(figure))
    assert "4.00" in said and "0.96" in said and "1.54" in said  # a score, its weight, the tip's column
    assert said.count("1.00") == 3 and "over the keys" in said
    assert "middle attends to middle 0.02, tip 0.96" in figure.alt


@pytest.mark.parametrize("scale", [0.0, -300.0, 1e4])
def test_tables_in_extreme_states(scale: float) -> None:
    scores = scale * torch.ones(3, 3).tril()
    said = words(drawn(attention_tables(scores, scores.softmax(0), NAMES, "queries")))
    assert "over the queries" in said and "-0.00" not in said


def test_a_table_of_another_size_is_said() -> None:
    with pytest.raises(ValueError, match=r"3 patches .* \[2, 3\]"):
        attention_tables(torch.zeros(2, 3), torch.zeros(2, 3), NAMES)


# -- bars and curves ---------------------------------------------------------------------------------------------------


def test_weight_bars_are_as_tall_as_the_weights() -> None:
    root = drawn(weight_bars({"not scaled": [0.75, 0.25], "scaled": [0.5, 0.5]}))
    tall = [float(e.get("height", 0)) for e in root.iter(f"{SVG}rect") if e.get("fill") == PALETTE["blue"]]
    assert tall[0] == pytest.approx(3 * tall[1], rel=0.01) and "75%" in words(root) and "largest 50.0%" in words(root)
    drawn(weight_bars({"one": [1.0] + [0.0] * 19, "even": [0.05] * 20}))


def test_share_bars_are_as_long_as_the_shares() -> None:
    figure = share_bars({"none": 0.0, "half": 0.5, "all": 1.0}, tick=0.25, tick_name="an even share")
    none, half, whole = bars(drawn(figure), "blue")
    assert half == pytest.approx(whole / 2) and none <= 18 and "an even share 25%" in words(drawn(figure))
    assert "half 50%" in figure.alt and "tick, an even share, is at 25%" in figure.alt


def test_a_falling_loss_ends_below_the_line_of_guessing() -> None:
    figure = loss_curves({"learns": [1.5, 0.1], "does not": [1.5, 1.4]}, chance=1.39)
    root = drawn(figure)
    ends = {e.get("stroke"): float(e.get("d", "").split()[-1]) for e in root.iter(f"{SVG}path")}
    learns, stays = ends[PALETTE["blue"]], ends[PALETTE["orange"]]
    dashed = next(e for e in root.iter(f"{SVG}line") if e.get("stroke-dasharray"))
    assert learns > float(dashed.get("y1", 0)) > 0  # further down on the page
    assert abs(stays - float(dashed.get("y1", 0))) < 3
    assert "learns from 1.50 to 0.10" in figure.alt
    drawn(loss_curves({name: [1e9, float(i)] for i, name in enumerate(["a", "b", "c", "d"])}, chance=1.39))


# -- where a patch looks -----------------------------------------------------------------------------------------------


def maps(num_blocks: int = 2, num_heads: int = 4, num_patches: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (4 * torch.randn(num_blocks, num_heads, num_patches, num_patches, generator=generator)).softmax(-1)


def test_the_patch_that_is_looked_at_is_lit() -> None:
    weights = maps()
    weights[1, 2, 5] = 0.0
    weights[1, 2, 5, 10] = 1.0
    figure = patch_attention(IMAGE, weights, block=1, head=2, patch=5)
    root = drawn(figure)
    large = pixels(root)[0].astype(float).mean(-1)
    light = large.reshape(4, 16, 4, 16).mean(axis=(1, 3)).flatten()
    assert light.argmax() == 10 and np.delete(light, 10).max() < 0.5 * light[10]
    assert "patch 10, in row 2 and column 2" in figure.alt and "block 1, head 2" in words(root)
    assert len(pixels(root)) == 1 + 8 and len(marked(root)) == 1 + 8


@pytest.mark.parametrize(("block", "head", "patch"), [(0, 0, 0), (1, 3, 15), (0, 3, 12)])
def test_each_state_of_the_lever_is_another_image(block: int, head: int, patch: int) -> None:
    figure = patch_attention(IMAGE, maps(), block, head, patch)
    drawn(figure)
    assert figure.markup != patch_attention(IMAGE, maps(), 1, 1, 7).markup


def test_the_largest_that_fits_is_drawn_and_more_is_said() -> None:
    drawn(patch_attention(IMAGE, maps(4, 8, 196), 3, 7, 195))
    with pytest.raises(ValueError, match="4 blocks of 8 heads, not for 12 of 12"):
        patch_attention(IMAGE, maps(12, 12, 4), 0, 0, 0)


@pytest.mark.parametrize(("block", "head", "patch"), [(2, 0, 0), (0, 4, 0), (0, 0, 16), (-1, 0, 0)])
def test_a_place_that_does_not_exist_is_said(block: int, head: int, patch: int) -> None:
    with pytest.raises(ValueError, match="2 blocks, 4 heads and 16 patches"):
        patch_attention(IMAGE, maps(), block, head, patch)


def test_a_grid_that_is_no_square_is_said() -> None:
    with pytest.raises(ValueError, match="no square grid"):
        patch_attention(IMAGE, maps(1, 1, 15), 0, 0, 0)


# -- the check's own arithmetic ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [ViTConfig(8, 12, 3, 2, 20, 5), ViTConfig(128, 512, 2, 4, 64, 8)])
def test_the_reference_counts_what_the_encoder_holds(config: ViTConfig) -> None:
    assert count_parameters(config) == sum(p.numel() for p in ViT(config).parameters())
