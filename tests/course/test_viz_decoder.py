"""Chapter 04's pictures in default and extreme states, and its quizzes' numbers."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest
import torch

from nanovlm.config import LMConfig
from nanovlm.models.language_model import LanguageModel, RotaryEmbedding, apply_rope, attention_layout
from nanovlm.viz.decoder import heads_figure, mask_figure, relative_figure, rotation_figure
from nanovlm.viz.decoder_block import bus_figure, decoder_block_figure
from nanovlm.viz.style import MAX_WIDTH, PALETTE, Figure

SVG = "{http://www.w3.org/2000/svg}"
FREQUENCIES = [100 ** (-2 * i / 8) for i in range(4)]


def drawn(figure: Figure) -> ElementTree.Element:
    """The drawing, parsed: well-formed, not too wide, and all of it on the card."""
    root = ElementTree.fromstring(figure.markup)
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    assert width <= MAX_WIDTH and figure.alt
    for element in root.iter():
        if element.tag in (f"{SVG}text", f"{SVG}rect"):
            x, y = float(element.get("x", 0)), float(element.get("y", 0))
            assert 0 <= x <= width and 0 <= y <= height
            assert x + float(element.get("width", 0)) <= width and y + float(element.get("height", 0)) <= height
        if element.tag == f"{SVG}text" and element.get("text-anchor") == "start" and not element.get("transform"):
            letter = 0.68 if element.get("font-weight") == "bold" else 0.6
            wide = letter * float(element.get("font-size", 0)) * len("".join(element.itertext()))
            assert float(element.get("x", 0)) + wide <= width + 12, "".join(element.itertext())
    return root


def words(root: ElementTree.Element) -> str:
    return " ".join("".join(element.itertext()) for element in root.iter(f"{SVG}text"))


def rotated(x: torch.Tensor, length: int) -> torch.Tensor:
    """x [8] at the positions 0 … length - 1, turned: [length, 8]"""
    cos, sin = RotaryEmbedding(8, 100.0)(torch.arange(length)[None])
    return apply_rope(x.expand(1, 1, length, 8), cos, sin)[0, 0]


# -- RoPE --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 12, 8191])
@pytest.mark.parametrize("distance", [-5, 0, 12])
def test_the_dials_add_up_to_the_models_product(position: int, distance: int) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 8)
    root = drawn(rotation_figure(q.tolist(), k.tolist(), FREQUENCIES, position, distance))
    cos, sin = RotaryEmbedding(8, 100.0)(torch.tensor([[position, position - distance]]))
    q_turned, k_turned = apply_rope(torch.stack([q, k])[None, None], cos, sin)[0, 0]
    shown = re.search(r"q · k = ([+-][\d.]+)", words(root))
    assert shown and float(shown[1]) == pytest.approx(float(q_turned @ k_turned), abs=0.006)


def test_moving_both_keeps_the_products_and_turns_the_arrows() -> None:
    q = [1.0] * 8
    here, there = (rotation_figure(q, q, FREQUENCIES, position, 3) for position in (3, 40))
    products = [re.findall(r"product [+-][\d.]+", words(drawn(figure))) for figure in (here, there)]
    assert products[0] == products[1] and len(products[0]) == 4
    assert here.markup != there.markup


def test_the_map_knows_whether_only_the_distance_counts() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 8)
    turned = relative_figure((rotated(q, 9) @ rotated(k, 9).mT).tolist(), "RoPE")
    places = torch.randn(9, 8)
    added = relative_figure(((q + places) @ (k + places).mT).tolist(), "added")
    assert "equal along each diagonal" in turned.alt and "different along each diagonal" in added.alt
    for figure in (turned, added):
        cells = [e for e in drawn(figure).iter(f"{SVG}rect") if e.find(f"{SVG}title") is not None]
        assert len(cells) == 81
        assert len(list(drawn(figure).iter(f"{SVG}circle"))) == 81


@pytest.mark.parametrize("length", [2, 40])
def test_the_map_in_extreme_states(length: int) -> None:
    drawn(relative_figure([[0.0] * length for _ in range(length)], "nothing"))
    drawn(relative_figure([[float(i == j) * 1e6 for j in range(length)] for i in range(length)], "only itself"))


# -- masks and heads ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("real", [[1, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0, 1, 1, 1, 1, 1], [1], [0, 1] * 6])
def test_as_many_dots_as_the_mask_has_places(real: list[int]) -> None:
    row = torch.tensor([real])
    positions, mask = attention_layout(row, None, len(real), row.device)
    names = [f"<token{i}>" for i in range(len(real))]
    figure = mask_figure(names, positions[0].tolist(), [bool(r) for r in real], mask[0, 0].tolist())
    dots = list(drawn(figure).iter(f"{SVG}circle"))
    assert len(dots) == int(mask.sum()) + 2  # the legend's
    assert f"<token0> (0{'' if real[0] else ', padding'}) attends to 0" in figure.alt


@pytest.mark.parametrize(("num_kv_heads", "kept"), [(1, 7_680), (3, 23_040), (9, 69_120)])
def test_heads_share_and_what_is_kept_shrinks(num_kv_heads: int, kept: int) -> None:
    root = drawn(heads_figure(9, num_kv_heads, 64, 30))
    assert f"{kept:,} bytes of 69,120" in words(root)
    boxes = [e for e in root.iter(f"{SVG}rect") if e.get("height") == "34"]
    assert len(boxes) == num_kv_heads
    (bar,) = [e for e in root.iter(f"{SVG}rect") if e.get("fill") == PALETTE["green"]]
    assert float(bar.get("width", 0)) == pytest.approx((62 * 9 - 18) * kept / 69_120, abs=0.01)


# -- quizzes -----------------------------------------------------------------------------------------------------------


def test_the_quizzes_about_sizes_are_right() -> None:
    from nanovlm.course.judge.exercise import load_exercises
    from nanovlm.course.quizzes import QUIZZES

    load_exercises()  # their modules hold the quizzes too
    config = LMConfig()
    with torch.device("meta"):
        tied = sum(p.numel() for p in LanguageModel(config).parameters())
        untied = sum(p.numel() for p in LanguageModel(LMConfig(tie_weights=False)).parameters())
    head, cache = QUIZZES["ch04.tied"], QUIZZES["ch04.cache"]
    assert f"{untied - tied:,}" in head.because[head.right]
    said = re.search(r"about (\d+) million", head.choices[head.right])
    assert said and int(said[1]) == round((untied - tied) / 1e6)
    assert head.choices[3] == f"about {round(tied / 1e6)} million"
    times = re.search(r"\d+", cache.choices[cache.right])
    assert times and int(times[0]) == config.num_heads // config.num_kv_heads


# -- the block and the stream ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(576, 1536, 9, 3, 64), (4096, 14336, 32, 8, 128), (8, 12, 1, 1, 8)])
def test_the_block_shows_every_shape(sizes: tuple[int, int, int, int, int]) -> None:
    dim, inter, heads, kv_heads, head_dim = sizes
    shown = words(drawn(decoder_block_figure(*sizes)))
    assert shown.count(f"[T, {inter:,}]") >= 3 and shown.count(f"[T, {dim:,}]") >= 5
    assert f"{heads} × [T, {head_dim}]" in shown and f"{kv_heads} × [T, {head_dim}]" in shown


@pytest.mark.parametrize(("num_blocks", "shown_blocks"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (30, [0, 1, 29])])
def test_the_bus_counts_its_sub_layers(num_blocks: int, shown_blocks: list[int]) -> None:
    shown = words(drawn(bus_figure(576, num_blocks, 49152)))
    assert f"{2 * num_blocks} sub-layers" in shown and ("…" in shown) == (num_blocks > 3)
    assert [int(n) for n in re.findall(r"block (\d+)", shown)] == shown_blocks
