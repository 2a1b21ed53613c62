"""The pictures of chapter 15: what they say is what they were given."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from nanovlm.viz.own_pictures import before_after_figure, skills_figure


def test_every_run_has_a_bar_for_every_skill() -> None:
    rows = {"before": {"digits": 0.04, "signs": 1.0}, "after": {"digits": 0.91, "signs": 0.62}}
    figure = skills_figure("Scores", rows, {"after": {"digits": (0.88, 0.94), "signs": (0.5, 0.7)}})
    assert "after: digits 91%, signs 62%" in figure.alt
    words = [element.text for element in ElementTree.fromstring(figure.markup).iter("{http://www.w3.org/2000/svg}text")]
    assert {"4%", "100%", "91%", "62%"} <= set(words)


def test_few_values_are_left_and_the_error_is_told() -> None:
    figure = before_after_figure([0.1, 0.2, -0.2, 5.0], [0.2, 0.2, -0.2, 5.0], "One block", 1.0)
    assert "3 numbers up to ±1; 2 different values are left; mean error 20.0% of their size" in figure.alt
