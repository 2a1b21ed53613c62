"""What notebooks store can be read where styles are stripped, in the dark, and by ear."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nanovlm.course.overview import MARKS
from nanovlm.trace import trace
from nanovlm.trace.show import html as render_html
from nanovlm.viz.style import PALETTE, svg_figure
from tests.course.learners import ROOT
from tests.course.test_levers import contrast

NOTEBOOKS = sorted(
    path for folder in ("chapters", "exercises", "solutions") for path in (ROOT / folder).glob("*.ipynb")
)
PAGES = {"light": "#ffffff", "dark": "#111111"}  # of JupyterLab


def stripped(markup: str) -> str:
    """As GitHub shows it: no style, no script."""
    markup = re.sub(r"<(style|script)\b.*?</\1>", "", markup, flags=re.DOTALL)
    return re.sub(r"\s(?:style|class)=(?:\"[^\"]*\"|'[^']*')", "", markup)


def outputs(path: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(data, metadata) of everything shown."""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", ()):
            data = {kind: "".join(words) for kind, words in output.get("data", {}).items()}
            yield data, output.get("metadata", {})


def assert_reads_without_styles(markup: str) -> None:
    plain = stripped(markup)
    assert not re.search(r"<(s|strike|del|u)\b", plain), "struck out or underlined where styles are stripped"
    run_together = re.search(r"\w</(b|i|span|code)><(b|i|span|code)\b[^>]*>\w", plain)
    assert run_together is None, f"words run together: {run_together[0]}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: f"{path.parent.name}/{path.stem[:2]}")
def test_stored_outputs_read_without_styles_and_images_have_words(path: Path) -> None:
    for data, metadata in outputs(path):
        markup = data.get("text/html", "")
        assert_reads_without_styles(markup)
        for image in re.findall(r"<img\b[^>]*>", markup):
            assert re.search(r"\balt=.[^\"']", image), image[:100]
        for drawing in re.findall(r"<svg\b[^>]*>", markup + data.get("image/svg+xml", "")):
            assert "aria-label" in drawing, drawing[:100]
        if "image/png" in data:
            assert metadata.get("image/png", {}).get("alt"), "a picture without words: show it with sample_card"


def test_a_trace_reads_without_styles() -> None:
    markup = trace(nn.Sequential(nn.Linear(4, 3), nn.GELU()), torch.zeros(2, 4)).html()
    assert_reads_without_styles(markup)
    words = " ".join(re.sub(r"<[^>]*>", "", stripped(markup)).split())
    assert "Linear [2, 3] 15 params" in words


def of_theme(theme: str) -> dict[str, str]:
    """The trace's colours in a theme of JupyterLab."""
    light = str(theme == "light").lower()
    (block,) = re.findall(rf"^\[data-jp-theme-light={light}\] .vlm-trace{{(.*)}}$", render_html._STYLE, re.MULTILINE)
    return dict(re.findall(r"--(\w+):(#\w+)", block))


def full(colour: str) -> str:
    return colour if len(colour) == 7 else "#" + "".join(2 * digit for digit in colour[1:])


@pytest.mark.parametrize("theme", PAGES)
def test_colours_stand_out_in_both_themes_of_jupyterlab(theme: str) -> None:
    colours = {name: full(colour) for name, colour in of_theme(theme).items()}
    assert contrast(colours["bad"], colours["on"]) >= 4.5
    assert contrast(colours["shape"], PAGES[theme]) >= 4.5
    for _, colour in MARKS.values():
        assert contrast(PALETTE[colour], PAGES[theme]) >= 3


def test_a_figure_has_the_theme_of_jupyterlab_whatever_the_system_has() -> None:
    style = re.search("<style>(.*)</style>", svg_figure(10, 10, "", alt="x").markup)[1]
    for light, colour in (("true", "#fcfcfb"), ("false", "#1d2126")):
        assert f"[data-jp-theme-light={light}] .nv-card{{fill:{colour}}}" in style
    assert style.index("prefers-color-scheme") < style.index("data-jp-theme-light")
