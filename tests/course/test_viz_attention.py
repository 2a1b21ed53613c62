"""Chapter 12's picture of attention in default and extreme states, and the way there from a trace."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
import torch
from PIL import Image

from nanovlm.inference.prompts import prepare_prompt
from nanovlm.models.modality_projector import pixel_shuffle
from nanovlm.trace import patch_map
from nanovlm.viz.attention import attention_over_image
from nanovlm.viz.style import PALETTE
from tests.course.test_viz_pixel_shuffle import SVG, drawn, words

IMAGE = Image.new("RGB", (96, 64), "#d04020")
TILES = patch_map(lambda x: pixel_shuffle(x, 2), grid=4).tokens  # four image tokens
LINE = ["<user>", "img", "img", "img", "img", "where", "star"]


def shades(root: ElementTree.Element) -> list[float]:
    """How dark each patch is, in the order in which they were drawn: token by token."""
    return [float(e.get("fill-opacity", 1)) for e in root.iter(f"{SVG}rect") if e.get("fill") == "#0b0e11"]


def outline(root: ElementTree.Element) -> list[str]:
    return [e.get("d", "") for e in root.iter(f"{SVG}path") if e.get("stroke") == PALETTE["orange"]]


def test_what_is_looked_at_is_lit_and_the_rest_is_dark() -> None:
    figure = attention_over_image(IMAGE, [0, 0.1, 0.6, 0, 0.1, 0.2, 0], LINE, 6, TILES, 1, "layer 3, head 1")
    root = drawn(figure)
    dark = shades(root)
    assert len(dark) == 16 and dark[4:8] == [0, 0, 0, 0]  # token 1, the strongest
    assert dark[0] == dark[15] < dark[8]  # a little light for a little weight
    assert len(outline(root)) == 1 and outline(root)[0].count("M") == 8  # round a tile of 2 x 2
    assert "60%" in words(root) and "“star” looks" in words(root) and "layer 3, head 1" in words(root)
    assert "80% on the picture's 4 tokens" in figure.alt and "token 1, patches 2, 3, 6, 7" in figure.alt


def test_the_bars_hold_the_whole_weight() -> None:
    row = torch.tensor([0.05, 0.1, 0.2, 0.3, 0.1, 0.2, 0.05])
    root = drawn(attention_over_image(IMAGE, row, LINE, 5, TILES, 1))
    wide = [
        float(e.get("width", 0)) for e in root.iter(f"{SVG}rect") if e.get("fill") in (PALETTE["blue"], PALETTE["grey"])
    ]
    assert sum(wide) == pytest.approx(160, abs=0.1) and wide[0] == pytest.approx(0.7 * 160, abs=0.1)


def test_a_word_that_does_not_look_leaves_the_image_dark() -> None:
    root = drawn(attention_over_image(IMAGE, [1, 0, 0, 0, 0, 0, 0], LINE, 6, TILES, 1))
    assert min(shades(root)) > 0.8 and not outline(root) and "no image token" in words(root)


def test_a_faint_look_is_not_blown_up() -> None:
    root = drawn(attention_over_image(IMAGE, [0.9, 0.1, 0, 0, 0, 0, 0], LINE, 6, TILES, 1))
    assert min(shades(root)) > 0.4  # a tenth is less than an even share of four tokens


@pytest.mark.parametrize("word", [0, 48, 49, 400])
def test_a_long_line_fits(word: int) -> None:
    tokens = patch_map(lambda x: x.reshape(1, 49, -1), grid=14).tokens  # strips, some torn apart
    row = torch.rand(449, generator=torch.Generator().manual_seed(0))
    texts = ["img"] * 49 + [f"a very long word, number {i} <&>" for i in range(400)]
    root = drawn(attention_over_image(IMAGE, row / row.sum(), texts, word, tokens))
    assert "389 others" in words(root)


def test_one_token_may_be_the_whole_image() -> None:
    drawn(attention_over_image(IMAGE, [1.0], ["img"], 0, [[0]]))


@pytest.mark.parametrize(
    ("weights", "word", "first", "said"),
    [
        ([0.1] * 6, 6, 1, "6 weights, 7 words"),
        ([0.1] * 7, 7, 1, "word 7"),
        ([0.1] * 7, 6, 4, "from position 4 on"),
        ([-3.0] + [0.1] * 6, 6, 1, "before the softmax"),
        ([float("nan")] + [0.1] * 6, 6, 1, "before the softmax"),
    ],
)
def test_what_does_not_fit_is_said_in_a_sentence(weights: list[float], word: int, first: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        attention_over_image(IMAGE, weights, LINE, word, TILES, first)


def test_a_trace_of_the_pocket_model_becomes_a_image_for_each_lever() -> None:
    """The way that chapter 14 goes: weights of each layer and head, from each word."""
    from nanovlm import VisionLanguageModel
    from nanovlm.assets import asset_path
    from nanovlm.trace import trace

    model = VisionLanguageModel.from_pretrained(asset_path("pocket")).eval()
    ids, pixels = prepare_prompt(model, "Where is the red star?", Image.open(asset_path("images/shapes.png")))
    layers = [f"decoder.blocks.{i}" for i in range(model.config.language.num_blocks)]
    seen = trace(model, torch.tensor([ids]), pixels, attention=layers).attention
    line = [model.tokenizer.decode([i], skip_special_tokens=False) for i in ids]
    tokens, first = patch_map(lambda x: pixel_shuffle(x, 2), grid=8).tokens, line.index("<|image|>")
    unseen, last_word = {0.82}, []
    for layer in layers:
        for head in range(model.config.language.num_heads):
            for word in (0, first + len(tokens), len(line) - 1):
                figure = attention_over_image(IMAGE, seen[layer][0][0, head, word], line, word, tokens, first)
                assert len(shades(drawn(figure))) == 64
            last_word.append(set(shades(drawn(figure))))
    assert any(shades_seen != unseen for shades_seen in last_word), "in some head the last word looks at the picture"


def test_tokens_give_their_weight_to_their_patches() -> None:
    spread = patch_map(lambda x: pixel_shuffle(x, 2), grid=4).spread(torch.tensor([[0.4, 0.0, 0.2, 0.4], [1, 0, 0, 0]]))
    assert spread.shape == (2, 4, 4)
    torch.testing.assert_close(spread.sum((1, 2)), torch.ones(2))
    torch.testing.assert_close(spread[0, :2, :2], torch.full((2, 2), 0.1))
    torch.testing.assert_close(spread[0, 2:, :2], torch.full((2, 2), 0.05))
    with pytest.raises(ValueError, match="4 tokens"):
        patch_map(lambda x: pixel_shuffle(x, 2), grid=4).spread(torch.zeros(5))
