"""Figures of chapter 10: they say their numbers, stay on the card and take extreme states."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from nanovlm.viz.evaluation import Share, calibration_figure, selection_figure, share_rows, two_intervals
from nanovlm.viz.style import Figure

FIGURES = {
    "shares": share_rows("Scores", [Share("a", 0.5, 0.4, 0.6), Share("b", 1.0, 0.9, 1.0, "red")], chance=0.25),
    "small shares": share_rows("Scores", [Share("a", 0.3, 0.28, 0.33)], highest=0.5),
    "no questions": two_intervals(0, 0, (0.0, 1.0), (0.0, 1.0)),
    "outside": two_intervals(1, 20, (-0.05, 0.15), (0.01, 0.24)),
    "calibration": calibration_figure([(0.9, 0.8, 5), (0.5, 0.5, 1)], [0.5, 1.0], [0.0, 0.25]),
    "nothing wrong": calibration_figure([(1.0, 1.0, 5)], [0.5, 1.0], [0.0, 0.0]),
    "selection": selection_figure(0.33, [0.32, 0.33, 0.34], [0.35, 0.36, 0.37], 40),
}


@pytest.mark.parametrize("figure", FIGURES.values(), ids=FIGURES)
def test_a_figure_is_sound_and_its_marks_are_on_the_card(figure: Figure) -> None:
    root = ET.fromstring(figure.markup)
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for mark in root.iter():
        for name, end in (("x", width), ("x1", width), ("x2", width), ("cx", width), ("y", height), ("cy", height)):
            if mark.get(name) is not None:
                assert 0 <= float(mark.get(name, 0)) <= end, ET.tostring(mark)
    sizes = [float(size) for size in re.findall(r'font-size="([\d.]+)"', figure.markup)]
    assert min(sizes) >= 13


def test_alt_text_says_the_numbers() -> None:
    assert "a 50.0%, interval 40.0% to 60.0%" in FIGURES["shares"].alt
    assert "-5.0%" in FIGURES["outside"].alt and "36.0%" in FIGURES["selection"].alt


def test_a_better_score_is_drawn_further_right() -> None:
    points = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', FIGURES["shares"].markup)]
    assert points[0] < points[1]
