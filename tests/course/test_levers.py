"""Levers move the state of a pure function; without a front end the default state is the output."""

from __future__ import annotations

import re
import sys
import types
from xml.dom import minidom

import pytest
from PIL import Image

from nanovlm.course import Cells, lever
from nanovlm.course.levers import VIEW, Lever
from nanovlm.viz.style import (
    CYCLE,
    PALETTE,
    TONES,
    Figure,
    arrow,
    circle,
    diverging,
    from_matplotlib,
    heat,
    image,
    ink_on,
    line,
    path,
    png_bytes,
    rect,
    svg_figure,
    text,
)


def squares(count: int = 2, colour: str = "blue", filled: bool = True, label: str = "x") -> Figure:
    body = [rect(10 + 20 * i, 10, 15, 15, colour if filled else "none", "ink") for i in range(count)]
    return svg_figure(200, 60, [*body, text(10, 50, label)], alt=f"{count} {colour} squares")


def all_levers() -> Lever:
    return lever(squares, count=(1, 5, 1, 3), colour=["blue", "orange"], filled=True, label="<b>")


def test_the_default_state_is_the_first_of_a_list_and_the_start_of_a_slider() -> None:
    assert all_levers().defaults == {"count": 3, "colour": "blue", "filled": True, "label": "<b>"}
    assert lever(squares, count=(1, 5)).defaults == {"count": 1}


def test_every_extreme_state_renders() -> None:
    made = all_levers()
    for name, scale in made.levers.items():
        for value in scale.extremes():
            assert "<svg" in made.show(**{name: value})


def test_the_output_holds_the_default_state_for_readers_without_a_kernel() -> None:
    bundle = all_levers()._repr_mimebundle_()
    assert bundle["image/svg+xml"] == squares(3, label="<b>").markup
    assert bundle["text/plain"] == "3 blue squares"
    assert re.fullmatch(r"[0-9a-f]{32}", bundle[VIEW]["model_id"])


def test_without_ipywidgets_the_picture_is_there_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    assert set(all_levers()._repr_mimebundle_()) == {"image/svg+xml", "text/html", "text/plain"}


def test_colab_gets_the_widget_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    assert set(all_levers()._repr_mimebundle_()) == {VIEW, "text/plain"}


def test_moving_a_control_changes_the_picture() -> None:
    box = all_levers().widget()
    controls, picture = box.children[0].children, box.children[1]
    assert picture.value == squares(3, label="<b>").markup
    for control, value in zip(controls, (5, "orange", False, "new"), strict=True):
        before = picture.value
        control.value = value
        assert picture.value != before
    assert picture.value == squares(5, "orange", False, "new").markup


def test_a_click_on_a_cell_of_a_picture_sets_the_lever() -> None:
    picture = Image.new("RGB", (30, 30), "white")
    picture.paste((200, 0, 0), (20, 10, 30, 20))  # the last cell of the second row

    made = lever(lambda cell: f"cell {cell}", cell=Cells(picture, 3, start=4))
    assert made.defaults == {"cell": 4} and made.levers["cell"].extremes() == [0, 8]
    box = made.widget()
    slider, cells = box.children[0].children[0].children
    colours = [button.style.button_color for button in cells.children]
    assert colours == ["#ffffff"] * 5 + ["#c80000"] + ["#ffffff"] * 3
    outlined = [button.layout.border for button in cells.children]
    assert outlined.count(outlined[4]) == 1

    cells.children[5].click()
    assert (slider.value, box.children[1].value) == (5, "cell 5")
    moved = [button.layout.border for button in cells.children]
    assert moved[5] == outlined[4] and moved.count(moved[5]) == 1
    slider.value = 7  # the keyboard's way
    assert box.children[1].value == "cell 7"


def test_a_state_that_cannot_be_drawn_is_told_in_the_pictures_place() -> None:
    def picky(n: int) -> str:
        if n > 1:
            raise ValueError("only <one>")
        return "<p>one</p>"

    box = lever(picky, n=(1, 3)).widget()
    box.children[0].children[0].value = 2
    assert "only &lt;one&gt;" in box.children[1].value
    box.children[0].children[0].value = 1
    assert box.children[1].value == "<p>one</p>"


def test_many_choices_become_a_menu_and_fractions_a_slider() -> None:
    import ipywidgets

    def draw(**state: object) -> str:
        return str(state)

    box = lever(draw, few=[1, 2], many=list(range(9)), real=(0.0, 1.0)).widget()
    kinds = [type(control) for control in box.children[0].children]
    assert kinds == [ipywidgets.ToggleButtons, ipywidgets.Dropdown, ipywidgets.FloatSlider]


@pytest.mark.parametrize(
    ("levers", "words"),
    [
        ({}, "at least one parameter"),
        ({"size": [1]}, "no parameter size"),
        ({"count": (5, 1)}, "low <= start <= high"),
        ({"count": (1, 5, 0)}, "a step above 0"),
        ({"count": []}, "must be a list"),
        ({"count": 3}, "must be a list"),
        ({"count": Cells(Image.new("RGB", (4, 4)), 2, start=4)}, "starts at cell 4 of 0 to 3"),
    ],
)
def test_wrong_levers_are_explained(levers: dict, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(words)):
        lever(squares, **levers)


def test_a_render_function_that_returns_nothing_to_see_is_an_error() -> None:
    with pytest.raises(TypeError, match="must return a Figure or HTML; it returned int"):
        lever(lambda n: n, n=[1]).show()


# -- style -------------------------------------------------------------------------------------------------------------


def test_a_figure_is_well_formed_and_tells_what_it_shows() -> None:
    body = [
        rect(0, 0, 5, 5, "red", "line", title="a <b>"),
        circle(5, 5, 2, heat(0.3)),
        line(0, 0, 9, 9, "muted", dash="2"),
        path("M0 0L1 1", stroke="blue"),
        arrow(0, 0, 10, 10),
        text(1, 1, "a < b & c", mono=True, font_weight=600),
        image(0, 0, 4, 4, png_bytes([[[0, 0, 0], [255, 255, 255]]]), "two pixels"),
    ]
    figure = svg_figure(300, 100, body, alt='A "test" of <everything>')
    root = minidom.parseString(figure.markup).documentElement
    assert root.getAttribute("aria-label") == figure.alt == repr(figure)
    assert root.getAttribute("viewBox") == "0 0 300 100"
    data, metadata = figure._repr_mimebundle_()
    assert data["text/plain"] == figure.alt and metadata["image/svg+xml"]["alt"] == figure.alt
    assert "prefers-color-scheme:dark" in figure.markup


def test_a_figure_needs_alt_text_and_fits_the_page() -> None:
    with pytest.raises(ValueError, match="alt text"):
        svg_figure(10, 10, "", alt=" ")
    with pytest.raises(ValueError, match="at most 720"):
        svg_figure(800, 10, "", alt="wide")


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_letters_can_be_read_on_every_colour_and_in_both_lights() -> None:
    scales = [heat(i / 20) for i in range(21)] + [diverging(i / 10 - 1) for i in range(21)]
    for colour in [*PALETTE.values(), *scales]:
        assert contrast(colour, ink_on(colour)) >= 4, colour
    for light_or_dark in (0, 1):
        card = TONES["card"][light_or_dark]
        assert contrast(TONES["ink"][light_or_dark], card) >= 7 and contrast(TONES["muted"][light_or_dark], card) >= 4.5


def as_seen_without_red_cones(colour: str) -> tuple[float, ...]:
    """Protanopia after Viénot et al. 1999, in linear light."""
    r, g, b = ((int(colour[i : i + 2], 16) / 255) ** 2.2 for i in (1, 3, 5))
    return 0.112 * r + 0.888 * g, 0.112 * r + 0.888 * g, 0.004 * r - 0.004 * g + b


def test_the_colours_of_the_palette_stay_apart_for_colour_blind_readers() -> None:
    for i, one in enumerate(CYCLE):
        for other in CYCLE[:i]:
            pairs = zip(as_seen_without_red_cones(one), as_seen_without_red_cones(other), strict=True)
            assert sum((a - b) ** 2 for a, b in pairs) ** 0.5 > 0.06, (one, other)


def test_scales_run_from_end_to_end_and_clip() -> None:
    assert heat(-1) == heat(0) != heat(1) == heat(2)
    assert diverging(-9) == diverging(-1) == PALETTE["blue"] != diverging(1)
    assert luminance(heat(0)) > luminance(heat(0.5)) > luminance(heat(1))


def test_a_matplotlib_figure_is_the_same_bytes_each_time() -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="the notebook extra is not installed")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    def draw() -> Figure:
        figure, axes = plt.subplots(figsize=(2, 1))
        axes.plot([0, 1])
        return from_matplotlib(figure, "A line.")

    first = draw()
    assert first == draw() and first._repr_mimebundle_()[0]["image/png"] == first.png
    assert not plt.get_fignums()
