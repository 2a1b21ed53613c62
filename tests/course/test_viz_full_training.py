"""The pictures of chapter 11: what they say is what they were given."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from nanovlm.viz.full_training import hours_figure, in_time, logs_figure, memory_figure, ranks_figure
from nanovlm.viz.style import Figure


def words_of(figure: Figure) -> str:
    root = ElementTree.fromstring(figure.markup)
    return " | ".join(element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text"))


@pytest.mark.parametrize(("hours", "words"), [(0.5, "30 min"), (3.0, "3.0 h"), (96.0, "4.0 days"), (0.01, "1 min")])
def test_times_in_words(hours: float, words: str) -> None:
    assert in_time(hours) == words


@pytest.mark.parametrize("hours", [1e-4, 5.0, 9e4])
def test_hours_stay_on_the_card(hours: float) -> None:
    figure = hours_figure({"T4": hours, "H100": 1.5}, "Hours", "at 25 %", limit=4)
    assert in_time(hours) in words_of(figure) and f"T4 {in_time(hours)}" in figure.alt
    root = ElementTree.fromstring(figure.markup)
    for element in root.iter("{http://www.w3.org/2000/svg}rect"):
        assert float(element.get("x", 0)) + float(element.get("width", 0)) <= 700


def test_memory_adds_up() -> None:
    figure = memory_figure({"fp32": (0.8, 0.8, 1.7, 5.0)}, "Memory", 15.0, "T4")
    assert "8.3" in words_of(figure) and "activations 5.0" in figure.alt and "T4: 15 GiB" in figure.alt


def test_two_ranks() -> None:
    figure = ranks_figure([(1.0, 10), (3.0, 90)], "Two ranks")
    assert "2.00" in words_of(figure) and "2.80" in words_of(figure)


def test_logs_say_where_a_run_is_lost() -> None:
    figure = logs_figure({"A": [3.0, 2.0, 1.5], "B": [3.0, None, None]}, [3.0, 1.0, 0.5], "Logs")
    assert "log A: from 3.00 to 1.50" in figure.alt and "log B: from 3.00 to nan" in figure.alt
    assert "nan from here" in words_of(figure)
