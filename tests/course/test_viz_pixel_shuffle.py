"""Chapter 03's pictures in default and extreme states, and its quizzes' numbers."""

from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from nanovlm.config import LMConfig
from nanovlm.models.modality_projector import pixel_shuffle
from nanovlm.trace import patch_map
from nanovlm.viz.pixel_shuffle import Cost, cost_bars, images_row, shuffle_figure, stages_figure, token_figure
from nanovlm.viz.style import MAX_WIDTH, PALETTE, Figure

SVG = "{http://www.w3.org/2000/svg}"
# A pixel holds its own number, but for the 256 values that a grey pixel has.
IMAGE = Image.fromarray(np.arange(64 * 64, dtype=np.uint32).astype(np.uint8).reshape(64, 64))


def drawn(figure: Figure) -> ElementTree.Element:
    """The drawing, parsed: well-formed, not too wide, and all of it on the card."""
    root = ElementTree.fromstring(figure.markup)
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    assert width <= MAX_WIDTH and figure.alt
    for element in root.iter():
        if element.tag in (f"{SVG}text", f"{SVG}image", f"{SVG}rect"):
            x, y = float(element.get("x", 0)), float(element.get("y", 0))
            assert x >= 0 and y >= 0
            assert x + float(element.get("width", 0)) <= width and y + float(element.get("height", 0)) <= height
        if element.tag == f"{SVG}text" and element.get("text-anchor") == "start":
            # By the letters of DejaVu Sans, a wide font; bold ones are wider still.
            letter = 0.68 if element.get("font-weight") == "bold" else 0.6
            wide = letter * float(element.get("font-size", 0)) * len("".join(element.itertext()))
            assert float(element.get("x", 0)) + wide <= width + 12, "".join(element.itertext())
    return root


def words(root: ElementTree.Element) -> str:
    return " ".join("".join(element.itertext()) for element in root.iter(f"{SVG}text"))


def marked(root: ElementTree.Element) -> list[ElementTree.Element]:
    """The rectangles with an orange outline and no filling."""
    rects = root.iter(f"{SVG}rect")
    return [e for e in rects if e.get("stroke") == PALETTE["orange"] and e.get("fill") == "none"]


def pixels(root: ElementTree.Element) -> list[np.ndarray]:
    """The pictures in the drawing, grey."""
    links = [element.get("href", "") for element in root.iter(f"{SVG}image")]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2])))) for link in links]


# -- space to depth ----------------------------------------------------------------------------------------------------


def test_the_stages_are_the_channels_of_pixel_shuffle() -> None:
    root = drawn(stages_figure(IMAGE))
    assert all(shape in words(root) for shape in ("64 × 64 × 1", "32 × 32 × 4", "16 × 16 × 16", "8 × 8 × 64"))
    grey = np.asarray(IMAGE)
    for r, shown in zip((1, 2, 4, 8), pixels(root), strict=True):
        side = 64 // r
        for channel in (0, r - 1, r * r - 1):
            i, j = divmod(channel, r)
            small = shown[i * side : (i + 1) * side, j * side : (j + 1) * side, 0]
            assert np.array_equal(small, _shuffled(grey, r)[..., channel])


def _shuffled(grey: np.ndarray, r: int) -> np.ndarray:
    import torch

    side = len(grey) // r
    x = torch.tensor(grey.astype(np.float32)).reshape(1, -1, 1)
    return pixel_shuffle(x, r).reshape(side, side, r * r).numpy().astype(np.uint8)


@pytest.mark.parametrize("r", [1, 2, 4, 8, 64])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (3, 3), (15, 15), (63, 0)])
def test_a_tile_is_marked_once_and_once_in_each_channel(r: int, row: int, column: int) -> None:
    figure = shuffle_figure(IMAGE, r, row, column)
    assert len(marked(drawn(figure))) == 1 + r * r
    assert f"{64 // r} × {64 // r} × {r * r}" in words(drawn(figure))


def test_moving_the_tile_moves_the_marks() -> None:
    assert shuffle_figure(IMAGE, 4, 0, 0).markup != shuffle_figure(IMAGE, 4, 0, 1).markup


@pytest.mark.parametrize("size", [(64, 32), (63, 63)])
def test_a_image_that_does_not_divide_is_said_in_a_sentence(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"{size[0]} × {size[1]} pixels is not a square"):
        shuffle_figure(Image.new("L", size), 2)


# -- tokens and patches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("r", [1, 2, 4, 8])
@pytest.mark.parametrize("token", [0, 15, 63])
def test_a_token_outlines_its_own_patches(r: int, token: int) -> None:
    tokens = patch_map(lambda x: pixel_shuffle(x, r), grid=8).tokens
    figure = token_figure(IMAGE, tokens, token)
    shown = min(token, len(tokens) - 1)
    assert len(marked(drawn(figure))) == 2 * r * r  # on the picture, and side by side
    assert f"Token {shown} of {len(tokens)}" in words(drawn(figure))
    assert ", ".join(map(str, tokens[shown])) in figure.alt


def test_a_tile_and_a_strip_look_different() -> None:
    tile = patch_map(lambda x: pixel_shuffle(x, 2), grid=4).tokens
    strip = patch_map(lambda x: x.reshape(1, 4, -1), grid=4).tokens
    places = [
        {(e.get("x"), e.get("y")) for e in marked(drawn(token_figure(IMAGE, tokens, 0)))} for tokens in (tile, strip)
    ]
    assert places[0] != places[1]


def test_the_real_grids_are_drawn() -> None:
    for grid, r in ((14, 2), (27, 3), (32, 4)):
        drawn(token_figure(IMAGE, patch_map(lambda x, r=r: pixel_shuffle(x, r), grid=grid).tokens, 7))


def test_tokens_that_are_no_square_are_said_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="3 patches in all"):
        token_figure(IMAGE, [[0, 1], [2]], 0)


def test_a_row_of_images_has_its_captions() -> None:
    root = drawn(images_row([IMAGE] * 3, ["one", "two", "three"]))
    assert words(root) == "one two three" and len(pixels(root)) == 3
    with pytest.raises(ValueError):
        images_row([IMAGE], ["one", "two"])


# -- cost --------------------------------------------------------------------------------------------------------------


def bars(root: ElementTree.Element, colour: str) -> list[float]:
    rects = (e for e in root.iter(f"{SVG}rect") if e.get("fill") == PALETTE[colour])
    return [float(e.get("width", 0)) for e in rects][1:]  # the first is the legend's


def test_bars_are_as_long_as_the_costs() -> None:
    root = drawn(cost_bars([Cost(1, 1024, 6e9, 2e9), Cost(2, 256, 1.5e9, 0.5e9)], 64))
    blue, orange = bars(root, "blue"), bars(root, "orange")
    assert blue[0] / blue[1] == pytest.approx(4, rel=0.01) and blue[0] / orange[0] == pytest.approx(3, rel=0.01)
    assert "8.0 billion" in words(root) and "4.0 times less" in words(root) and "1,024 + 64 tokens" in words(root)


@pytest.mark.parametrize("image_tokens", [1, 17 * 1024])
@pytest.mark.parametrize("text_tokens", [0, 512])
def test_bars_in_extreme_states(image_tokens: int, text_tokens: int) -> None:
    drawn(cost_bars([Cost(1, image_tokens, 3.7e12, 2.1e13), Cost(7, 1, 2e8, 1e3)], text_tokens))
    drawn(cost_bars([Cost(1, image_tokens, 1, 0)], text_tokens))


def test_the_quiz_about_cost_is_right() -> None:
    """About 11 times less: counted once more, from the decoder's own weights."""
    import torch

    from nanovlm.course.judge.exercise import load_exercises
    from nanovlm.course.quizzes import QUIZZES
    from nanovlm.models.language_model import LanguageModel

    config = LMConfig()
    with torch.device("meta"):
        blocks = LanguageModel(config).blocks
    weights = sum(p.numel() for p in blocks.parameters() if p.ndim == 2)
    long, short = (2 * n * weights + 4 * n * n * config.hidden_dim * config.num_blocks for n in (1024 + 64, 64 + 64))
    load_exercises()  # their modules hold the quizzes too
    quiz = QUIZZES["ch03.cost"]
    said = re.search(r"\d+", quiz.choices[quiz.right])
    assert said and int(said[0]) == round(long / short)
