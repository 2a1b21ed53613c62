"""Chapter 13's pictures in default and extreme states, and its quizzes' numbers."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from itertools import combinations

import pytest
import torch
from PIL import Image

from nanovlm.config import TilingConfig
from nanovlm.data.thimble.drawing import stamp
from nanovlm.data.thimble.glyphs import CHARACTERS, outline
from nanovlm.data.tiling import TiledImageProcessor
from nanovlm.viz.style import MAX_WIDTH, PALETTE, Figure
from nanovlm.viz.tiles import Plan, cost_figure, image_figure, plan_figure, share_bars, shrunk_row, tiles_figure

SVG = "{http://www.w3.org/2000/svg}"
SIZES = [(64, 64), (1920, 1080), (4000, 300), (300, 4000), (1, 1)]


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
        if element.tag == f"{SVG}text":
            letter = 0.68 if element.get("font-weight") == "bold" else 0.6
            wide = letter * float(element.get("font-size", 0)) * len("".join(element.itertext()))
            ahead = {"start": 0.0, "middle": 0.5, "end": 1.0}[str(element.get("text-anchor"))] * wide
            start = float(element.get("x", 0)) - ahead
            assert start >= -6 and start + wide <= width + 12, "".join(element.itertext())
    return root


def words(root: ElementTree.Element) -> str:
    return " ".join("".join(element.itertext()) for element in root.iter(f"{SVG}text"))


def plan(size: tuple[int, int], upscale: bool, whole_first: bool = False) -> Plan:
    processor = TiledImageProcessor(512, tiling=TilingConfig(max_side=2048, upscale=upscale))
    rows, columns = processor.grid(size)
    return Plan(size, (columns * 512, rows * 512), rows, columns, whole_first, 64, 2 * rows * columns + 3)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("upscale", [True, False])
@pytest.mark.parametrize("whole_first", [True, False])
def test_a_plan_says_views_and_tokens(size, upscale, whole_first) -> None:
    this = plan(size, upscale, whole_first)
    root = drawn(plan_figure(this, 8192))
    assert f"{this.tokens:,} tokens" in words(root)
    views = [e for e in root.iter(f"{SVG}rect") if e.get("fill") in (PALETTE["sky"], PALETTE["orange"])]
    assert len(views) == this.views
    marked = [i for i, e in enumerate(views) if e.get("fill") == PALETTE["orange"]]
    assert marked == [0 if whole_first or this.views == 1 else this.views - 1]


def test_a_plan_beyond_the_context_says_so() -> None:
    assert "too many" in words(drawn(plan_figure(plan((64, 64), True), 100)))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 2), (2, 1), (4, 4), (1, 4), (4, 1)])
@pytest.mark.parametrize("whole_first", [True, False])
def test_tiles_stand_in_reading_order(rows, columns, whole_first) -> None:
    count = rows * columns + (rows * columns > 1)
    shades = torch.linspace(-1, 1, max(count, 2))[:count]
    root = drawn(tiles_figure(shades.view(-1, 1, 1, 1).expand(count, 3, 8, 8), rows, columns, whole_first))
    assert len(list(root.iter(f"{SVG}image"))) == count
    numbers = [int(word) for word in words(root).split() if word.isdigit() and len(word) < 3]
    turns = list(range(1, count + 1))
    if count > 1:
        tiles = turns[1:] if whole_first else turns[:-1]
        assert numbers[-count:-1] == tiles


def test_views_that_do_not_fit_the_grid_are_said_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="2 x 2 tiles and a view of the whole are not 4 views"):
        tiles_figure(torch.zeros(4, 3, 8, 8), 2, 2)


def test_a_row_of_shrunk_images_has_its_captions() -> None:
    images = [Image.new("RGB", (n, n)) for n in (512, 64, 32, 8)]
    root = drawn(shrunk_row(images, ["512 pixels", "64 pixels", "32 pixels", "8 pixels"]))
    assert words(root) == "512 pixels 64 pixels 32 pixels 8 pixels"
    two = [Image.new("RGB", (64, 64))] * 2
    assert shrunk_row(two, ["an A", "a B"]).alt.startswith("The same picture with ever fewer pixels, from left")
    assert shrunk_row(two, ["an A", "a B"], "Two letters").alt == "Two letters, from left to right: an A; a B."


@pytest.mark.parametrize("size", [(8, 8), (512, 512), (4000, 30)], ids=str)
def test_a_image_alone_keeps_its_shape(size) -> None:
    (shown,) = drawn(image_figure(Image.new("RGB", size), "nothing")).iter(f"{SVG}image")
    assert float(shown.get("width", 0)) / float(shown.get("height", 1)) == pytest.approx(size[0] / size[1], rel=0.02)


@pytest.mark.parametrize("most", [1, 1123, 90_000])
def test_cost_curves(most) -> None:
    root = drawn(cost_figure({"one rule": [(64, most), (2048, most)], "another rule": [(64, 1), (2048, most)]}))
    assert "one rule" in words(root) and "another rule" in words(root)


@pytest.mark.parametrize("margin", [0.0, 0.05])
def test_bars_are_as_long_as_their_shares(margin) -> None:
    root = drawn(share_bars({"all of them": 1.0, "a half": 0.5, "none at all": 0.0}, 1 / 33, margin))
    bars = [float(e.get("width", 0)) for e in root.iter(f"{SVG}rect") if e.get("fill") == PALETTE["blue"]]
    assert bars[0] == 2 * bars[1] and bars[2] < 1
    assert "100%" in words(root) and "chance 3%" in words(root)


def test_the_quiz_about_the_icon_is_right() -> None:
    from nanovlm.course.judge.exercise import load_exercises
    from nanovlm.course.quizzes import QUIZZES

    load_exercises()
    quiz = QUIZZES["ch13.icon"]
    assert int(quiz.choices[quiz.right]) == plan((64, 64), True).views
    assert plan((64, 64), False).views == 1


@pytest.mark.parametrize("tall", [12, 13])
def test_the_characters_whose_left_halves_are_equal_are_those_that_the_chapter_names(tall) -> None:
    """Drawn as the chapter's probe sees them, the seam in the middle."""

    def left_half(character: str) -> bytes:
        canvas = Image.new("RGB", (64, 64))
        stamp(canvas, outline(character, 0.55), 32, 32, tall / 6, (252, 252, 252), rim=False)
        return canvas.crop((0, 0, 32, 64)).tobytes()

    halves = {character: left_half(character) for character in CHARACTERS}
    twins = {"".join(sorted(pair)) for pair in combinations(CHARACTERS, 2) if halves[pair[0]] == halves[pair[1]]}
    assert twins == {"BE", "FP", "9S"}
