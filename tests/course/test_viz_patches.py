"""Chapter 01's pictures in default and extreme states, and its quizzes' numbers."""

from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from nanovlm.assets import asset_path
from nanovlm.viz.patches import MARK, numbers_figure, patch_grid_figure, similarity, similarity_figure
from nanovlm.viz.style import MAX_WIDTH, Figure, diverging

SVG = "{http://www.w3.org/2000/svg}"
# A pixel's red is its row, its green its column.
ROWS, COLUMNS = np.indices((64, 64))
IMAGE = Image.fromarray(np.stack([ROWS, COLUMNS, np.full((64, 64), 7)], -1).astype(np.uint8))


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


def words(root: ElementTree.Element) -> list[str]:
    return ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]


def pixels(root: ElementTree.Element) -> list[np.ndarray]:
    links = [element.get("href", "") for element in root.iter(f"{SVG}image")]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2])))) for link in links]


# -- a picture is numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "column"), [(0, 0), (14, 22), (63, 63)])
def test_the_numbers_are_those_of_the_window(row: int, column: int) -> None:
    numbers = [int(w) for w in words(drawn(numbers_figure(IMAGE, row, column))) if w.isdigit()]
    top, left = min(row, 58), min(column, 58)
    window = np.asarray(IMAGE)[top : top + 6, left : left + 6]
    assert numbers == window.transpose(2, 0, 1).flatten().tolist()


def test_a_wide_image_keeps_its_shape() -> None:
    root = drawn(numbers_figure(IMAGE.resize((64, 32))))
    shown = next(root.iter(f"{SVG}image"))
    assert float(shown.get("width", 0)) == 2 * float(shown.get("height", 0))


def test_a_image_smaller_than_the_window_is_said_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="4 × 4 pixels is smaller than the window"):
        numbers_figure(IMAGE.resize((4, 4)))


# -- patches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch_size", [1, 4, 16, 32, 64])
def test_the_line_begins_with_the_patches_in_reading_order(patch_size: int) -> None:
    figure = patch_grid_figure(IMAGE, patch_size)
    whole, *line = pixels(drawn(figure))
    grid = 64 // patch_size
    assert np.array_equal(whole, np.asarray(IMAGE)) and len(line) == min(grid**2, 18)
    for k, patch in enumerate(line):
        row, column = divmod(k, grid)
        assert patch.shape == (patch_size, patch_size, 3)
        assert patch[0, 0].tolist() == [row * patch_size, column * patch_size, 7]
    shown = " ".join(words(drawn(figure)))
    assert f"{grid} × {grid} = {grid**2:,}" in shown and f"= {3 * patch_size**2:,}" in shown
    assert f"= {grid**4:,}" in shown and f"{grid**2:,} patches" in figure.alt


def test_the_real_size_is_drawn() -> None:
    image = Image.open(asset_path("images/shapes.png")).resize((224, 224))
    for patch_size in (16, 4, 8, 32, 56, 112, 224):
        drawn(patch_grid_figure(image, patch_size))


@pytest.mark.parametrize(("size", "patch_size"), [((64, 32), 8), ((64, 64), 7)])
def test_a_image_that_does_not_divide_is_said_in_a_sentence(size: tuple[int, int], patch_size: int) -> None:
    with pytest.raises(ValueError, match=f"{size[0]} × {size[1]} pixels does not divide"):
        patch_grid_figure(Image.new("RGB", size), patch_size)


# -- positions ---------------------------------------------------------------------------------------------------------


def test_similarity_forgets_what_all_positions_share() -> None:
    positions = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    alike = similarity(positions)
    torch.testing.assert_close(alike, similarity(3 * positions + 100), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(alike.diagonal(), torch.ones(16))
    opposite = similarity(torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]))
    assert opposite.round().tolist() == [[1, -1, 0, 0], [-1, 1, 0, 0], [0, 0, 1, -1], [0, 0, -1, 1]]


def test_the_map_holds_the_patchs_own_row_of_the_similarities() -> None:
    positions = torch.randn(1, 64, 16, generator=torch.Generator().manual_seed(0))
    row, column = 2, 5
    root = drawn(similarity_figure(positions, row, column, "some model"))
    alike = similarity(positions[0])[row * 8 + column]
    numbers = [float(w) for w in words(root) if re.fullmatch(r"-?\d\.\d", w)]
    torch.testing.assert_close(torch.tensor(numbers), alike, rtol=0, atol=0.051)
    assert "some model, row 2, column 5" in words(root)
    small = pixels(root)[0][row * 9 : row * 9 + 8, column * 9 : column * 9 + 8]  # its map in the overview
    assert small.shape == (8, 8, 3)
    step = round(float(alike[0]) * 50) / 50
    assert "#" + "".join(f"{v:02x}" for v in small[0, 0]) == diverging(step)


@pytest.mark.parametrize("grid", [1, 2, 8, 14, 16])
def test_the_mark_moves_and_stays_on_the_grid(grid: int) -> None:
    positions = torch.randn(grid * grid, 8, generator=torch.Generator().manual_seed(0))
    for place in (0, grid - 1, 99):
        root = drawn(similarity_figure(positions, place, place))
        marks = [e for e in root.iter(f"{SVG}rect") if e.get("stroke") == MARK]
        assert len(marks) == 2
        assert float(marks[0].get("x", 0)) == pytest.approx(15 + min(place, grid - 1) * 304 / grid, abs=0.1)


def test_positions_that_are_all_equal_are_drawn() -> None:
    drawn(similarity_figure(torch.zeros(16, 4), 0, 0))


def test_positions_that_are_no_square_are_said_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="15 positions are not a square grid"):
        similarity_figure(torch.zeros(15, 4), 0, 0)


# -- quizzes -----------------------------------------------------------------------------------------------------------


def test_the_quiz_about_pairs_is_right() -> None:
    from nanovlm.course.judge.exercise import load_exercises
    from nanovlm.course.quizzes import QUIZZES

    load_exercises()  # their modules hold the quizzes too
    quiz = QUIZZES["ch01.pairs"]
    said = int("".join(re.findall(r"\d", quiz.choices[quiz.right])))
    assert said == (224**2) ** 2 // ((224 // 16) ** 2) ** 2


def test_the_quiz_about_neighbours_is_right() -> None:
    """No two of the pocket model's places are alike, near or far."""
    from safetensors.torch import load_file

    weights = load_file(asset_path("pocket") / "model.safetensors")
    name = next(n for n in weights if n.endswith("position_embedding"))
    alike = similarity(weights[name][0].float()).reshape(8, 8, 8, 8)
    beside = torch.stack([alike[r, c, r, c + 1] for r in range(8) for c in range(7)])
    corners = torch.stack([alike[0, 0, 7, 7], alike[0, 7, 7, 0]])
    assert beside.mean().abs() < 0.1 and corners.mean().abs() < 0.2
