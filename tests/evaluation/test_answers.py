"""Normalised answers, several annotators, and texts that are nearly right."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanovlm.evaluation.answers import (
    anls,
    character_error_rate,
    edit_distance,
    normalise_answer,
    same_answer,
    vqa_accuracy,
)

short = st.text("abcd", max_size=6)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Two red Circles.", "2 red circles"),
        ("1,000.5 m", "1000.5 m"),
        ("top-left", "top left"),
        ("banana", "banana"),
        ("(The) a.", ""),
        ("it's nine", "it's 9"),
        (".5", "5"),
    ],
)
def test_normal_forms(text: str, normal: str) -> None:
    assert normalise_answer(text) == normal


@given(st.text(max_size=30))
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    once = normalise_answer(text)
    assert normalise_answer(once) == once


def test_vqa_accuracy_leaves_each_annotator_out() -> None:
    assert vqa_accuracy("red", ["red"] * 2 + ["pink"] * 8) == pytest.approx(0.6)
    assert vqa_accuracy("two", ["2"] * 4 + ["3"] * 6) == 1
    assert same_answer("Two.", "2") and not same_answer("12", "2")
    with pytest.raises(ValueError, match="at least two"):
        vqa_accuracy("red", ["red"])


@given(short, short, short)
def test_the_edit_distance_is_a_distance(a: str, b: str, c: str) -> None:
    assert edit_distance(a, b) == edit_distance(b, a)
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert edit_distance(a, a + "x") == 1


def test_rates_of_characters() -> None:
    assert character_error_rate(["MXJ", "8"], ["MXK", "B"]) == pytest.approx(0.5)
    assert anls("MXJ", ["MXK"]) == pytest.approx(2 / 3)
    assert anls("AAA", ["MXK"]) == 0 and anls("Yes ", ["no", "yes"]) == 1
    with pytest.raises(ValueError, match="no character"):
        character_error_rate(["a"], [""])
