"""Levers move the state of a pure function; without a front end the default state is the output."""

from __future__ import annotations

import re
import sys
import types
from xml.dom import minidom

import pytest
from PIL import Image

from nanovlm.course import Cells, lever
from nanovlm.course.levers import Lever
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
    ink_on,
    line,
    path,
    png_bytes,
    raster,
    rect,
    svg_figure,
    text,
)


def squares(count: int = 2, colour: str = "blue", filled: bool = True, label: str = "x") -> Figure:
    body = [rect(10 + 20 * i, 10, 15, 15, colour if filled else "none", "ink") for i in range(count)]
    return svg_figure(200, 60, [*body, text(10, 50, label)], alt=f"{count} {colour} squares")


def all_levers() -> Lever:
    return lever(squares, count=(1, 5), colour=["orange", "blue"], filled=True, label="<b>", start={"count": 3})


class Page:
    """What a front end shows of a lever: outputs in their order, and those that were updated."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, made: Lever) -> None:
        self.outputs: list[object] = []
        self.updated: list[Figure] = []
        page = self

        class Handle:
            def display(self, shown: Figure) -> None:
                page.outputs.append(shown)

            def update(self, shown: Figure) -> None:
                page.updated.append(shown)

        monkeypatch.setattr("IPython.display.display", self.outputs.append)
        monkeypatch.setattr("IPython.display.DisplayHandle", Handle)
        made._ipython_display_()


def controls_of(box: object) -> list:
    """What stands behind the name in each row."""
    return [row.children[1] for row in box.children if type(row).__name__ == "HBox"]


def test_the_default_state_is_the_first_of_a_list_and_the_low_end_of_a_slider_unless_told() -> None:
    assert all_levers().defaults == {"count": 3, "colour": "orange", "filled": True, "label": "<b>"}
    made = lever(squares, count=(1, 5), colour=["orange", "blue"], start={"colour": "blue"})
    assert made.defaults == {"count": 1, "colour": "blue"}
    menu = controls_of(made.controls(print))[1]
    assert [label for label, _ in menu.options] == ["orange", "blue"] and menu.value == "blue"


def test_every_extreme_state_renders() -> None:
    made = all_levers()
    for name, scale in made.levers.items():
        for value in scale.extremes():
            assert made.figure(**{name: value}).is_svg


def test_the_image_is_an_output_of_its_own_below_the_controls(monkeypatch: pytest.MonkeyPatch) -> None:
    controls, image = Page(monkeypatch, all_levers()).outputs
    assert image == squares(3, "orange", label="<b>")
    assert type(controls).__module__.startswith("ipywidgets")


def test_without_ipywidgets_the_image_is_there_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    assert Page(monkeypatch, all_levers()).outputs == [squares(3, "orange", label="<b>")]


def test_in_colab_the_image_is_a_widget_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    (shown,) = Page(monkeypatch, all_levers()).outputs
    box, image = shown.children
    assert image.value == squares(3, "orange", label="<b>").markup
    controls_of(box)[0].value = 5
    assert image.value == squares(5, "orange", label="<b>").markup


def test_moving_a_control_updates_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page(monkeypatch, all_levers())
    controls = controls_of(page.outputs[0])
    assert len(controls) == 4 and page.updated == [], "the first picture is drawn once"
    for i, (control, value) in enumerate(zip(controls, (5, "blue", False, "new"), strict=True), start=1):
        control.value = value
        assert len(page.updated) == i
    assert page.updated[-1] == squares(5, "blue", False, "new")


def test_a_click_on_a_cell_of_a_image_sets_the_lever() -> None:
    image = Image.new("RGB", (30, 30), "white")
    image.paste((200, 0, 0), (20, 10, 30, 20))  # the last cell of the second row

    made = lever(lambda cell: f"cell {cell}", cell=Cells(image, 3), start={"cell": 4})
    assert made.defaults == {"cell": 4} and made.levers["cell"].extremes() == [0, 8]
    seen: list[Figure] = []
    (row,) = controls_of(made.controls(seen.append))
    slider, cells = row.children
    colours = [button.style.button_color for button in cells.children]
    assert colours == ["#ffffff"] * 5 + ["#c80000"] + ["#ffffff"] * 3
    outlined = [button.layout.border for button in cells.children]
    assert outlined.count(outlined[4]) == 1

    cells.children[5].click()
    assert (slider.value, seen[-1].markup) == (5, "cell 5")
    moved = [button.layout.border for button in cells.children]
    assert moved[5] == outlined[4] and moved.count(moved[5]) == 1
    slider.value = 7  # the keyboard's way
    assert seen[-1].markup == "cell 7"


def test_a_state_that_cannot_be_drawn_is_told_in_the_images_place() -> None:
    def picky(n: int) -> str:
        if n > 1:
            raise ValueError("only <one>")
        return "<p>one</p>"

    seen: list[Figure] = []
    (slider,) = controls_of(lever(picky, n=(1, 3)).controls(seen.append))
    slider.value = 2
    assert "only &lt;one&gt;" in seen[-1].markup and seen[-1].alt == "ValueError: only <one>"
    slider.value = 1
    assert seen[-1].markup == "<p>one</p>"


def test_many_choices_become_a_menu_and_fractions_a_slider() -> None:
    import ipywidgets

    def draw(**state: object) -> str:
        return str(state)

    made = lever(draw, few=[1, 2], many=list(range(9)), real=(0.0, 1.0))
    kinds = [type(control) for control in controls_of(made.controls(print))]
    assert kinds == [ipywidgets.ToggleButtons, ipywidgets.Dropdown, ipywidgets.FloatSlider]


def test_each_lever_stands_behind_its_name_in_a_row_that_wraps() -> None:
    rows = all_levers().controls(print).children[:-1]
    names = [row.children[0] for row in rows]
    assert [name.value for name in names] == ["count", "colour", "filled", "label"]
    assert len({name.layout.width for name in names}) == 1, "they stand in line"
    assert {row.layout.flex_flow for row in rows} == {"row wrap"}
    assert {row.children[1].description for row in rows} == {""}, "the name is there once"


@pytest.mark.parametrize(
    ("levers", "words"),
    [
        ({}, "at least one parameter"),
        ({"size": [1]}, "no parameter size"),
        ({"count": (5, 1)}, "cannot start at 5"),
        ({"count": (1, 5), "start": {"count": 6}}, "cannot start at 6"),
        ({"colour": ["a", "b"], "start": {"colour": "c"}}, "cannot start at 'c'"),
        ({"count": (1, 5), "start": {"colour": "c"}}, "start names colour; the levers are count"),
        ({"count": (1, 5, 0)}, "a step above 0"),
        ({"count": (1, 5, 1, 3)}, "must be a list, (low, high[, step])"),
        ({"count": []}, "must be a list"),
        ({"count": 3}, "must be a list"),
        ({"count": Cells(Image.new("RGB", (4, 4)), 2), "start": {"count": 4}}, "cannot start at 4"),
    ],
)
def test_wrong_levers_are_explained(levers: dict, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(words)):
        lever(squares, **levers)


def test_a_render_function_that_returns_nothing_to_see_is_an_error() -> None:
    with pytest.raises(TypeError, match="must return a Figure or HTML; it returned int"):
        lever(lambda n: n, n=[1]).figure()


# -- style -------------------------------------------------------------------------------------------------------------


def test_a_figure_is_well_formed_and_tells_what_it_shows() -> None:
    body = [
        rect(0, 0, 5, 5, "red", "line", title="a <b>"),
        circle(5, 5, 2, heat(0.3)),
        line(0, 0, 9, 9, "muted", dash="2"),
        path("M0 0L1 1", stroke="blue"),
        arrow(0, 0, 10, 10),
        text(1, 1, "a < b & c", mono=True, font_weight=600),
        raster(0, 0, 4, 4, png_bytes([[[0, 0, 0], [255, 255, 255]]]), "two pixels"),
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
        assert contrast(colour, ink_on(colour)) >= 4.5, colour
    coloured = svg_figure(9, 9, [text(0, 0, "x", fill=name) for name in PALETTE], alt="x").markup
    for dark, light in enumerate(("true", "false")):
        letters = re.findall(rf"\[data-jp-theme-light={light}\] \.nv-t-\w+{{fill:(#\w+)}}", coloured)
        assert len(letters) == len(PALETTE)
        for ground in (TONES["card"][dark], TONES["soft"][dark]):
            assert contrast(TONES["ink"][dark], ground) >= 7
            assert min(contrast(letter, ground) for letter in (*letters, TONES["muted"][dark])) >= 4.5


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
