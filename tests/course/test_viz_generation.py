"""The pictures of chapter 09: what they say is what they were given."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest
import torch

from nanovlm.viz.generation import (
    bars_figure,
    beams_figure,
    guesses_figure,
    lines_figure,
    next_token_figure,
    speed_up,
    speed_up_figure,
)
from nanovlm.viz.style import Figure


def words_of(figure: Figure) -> str:
    root = ElementTree.fromstring(figure.markup)
    return " | ".join(element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text"))


def test_kept_bars_share_what_the_others_lose() -> None:
    figure = bars_figure(["red", "blue", "green"], [0.5, 0.3, 0.2], [True, True, False], "Which colour?", "top-p 0.7")
    words = words_of(figure)
    assert "62.5%" in words and "37.5%" in words and "ruled out" in words
    assert "green 20.0%, ruled out" in figure.alt


def test_the_next_token_is_shown_at_its_temperature_and_behind_the_cut() -> None:
    logits = torch.tensor([0.1, 0.6, 0.3]).log()

    def two(x: torch.Tensor) -> torch.Tensor:
        assert x.shape == (1, 3)
        return x.masked_fill(x < x.median(), float("-inf"))

    alt = next_token_figure("The next token", logits, 0.5, "two", two, "abc".__getitem__).alt
    assert "temperature 0.5, cut: two; 2 of 3 left" in alt  # the squares are as 1 to 36 to 9
    assert "b 78.3%, drawn with 80.0%; c 19.6%, drawn with 20.0%; a 2.2%, ruled out" in alt


def test_guesses_pay_if_they_are_kept_and_cheap() -> None:
    assert speed_up(kept=1.0, cost=0.0, guesses=3) == 4
    assert speed_up(kept=0.5, cost=0.5, guesses=1) == 1
    assert "30% kept" in speed_up_figure(2).alt


@pytest.mark.parametrize("kept", [[True, True], [False, True], [True, False]])
def test_the_cut_is_drawn_where_everything_below_it_is_ruled_out(kept: list[bool]) -> None:
    figure = bars_figure(["a", "b"], [0.9, 0.1], kept, "t", "r")
    assert ("#e08b1a" in figure.markup.split("</style>")[1]) == (kept == [True, False])


def test_lines_name_their_ends_and_labels_do_not_overlap() -> None:
    figure = lines_figure([1, 2, 3], {"slow": [1, 2, 30], "fast": [1, 1.5, 29.5]}, "Time", "step", "ms")
    assert "slow: from 1 at 1 to 30 at 3" in figure.alt and "Time" in words_of(figure)
    places = sorted(float(y) for y in re.findall(r'x="547" y="([\d.]+)"', figure.markup))
    assert len(places) == 2 and places[1] - places[0] >= 18


def test_lines_of_shares_and_intervals() -> None:
    figure = lines_figure([0, 1], {"all": [0.5, 0.75]}, "t", "x", "y", {"all": [(0.4, 0.6), (0.7, 0.8)]}, percent=True)
    assert "80%" in words_of(figure) and "from 50% at 0 to 75% at 1" in figure.alt


def test_beams_and_guesses_say_what_became_of_each() -> None:
    steps = [[("a", 0, -0.1, True), ("b", 0, -0.2, True)], [("c", 1, -0.3, True), ("d", 0, -0.9, False)]]
    figure = beams_figure(steps, "Two beams")
    assert "c behind beam 2, -0.30, goes on" in figure.alt and "d behind beam 1, -0.90, is dropped" in figure.alt
    rounds = [[(" red", "kept"), (" star", "rejected"), (" circle", "own")], [(".", "own")]]
    figure = guesses_figure(rounds, "Guesses")
    assert "pass 1: red kept, star rejected, circle own" in figure.alt and "pass 2" in words_of(figure)
