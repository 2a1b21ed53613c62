"""Chapter 07's figures say what they show, and draw no more and no less."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from PIL import Image

from nanovlm.viz.data import (
    answers_figure,
    curves_figure,
    gallery_figure,
    leak_figure,
    order_figure,
    rated_card,
    rows_figure,
    sample_card,
    samples_figure,
)

RED = Image.new("RGB", (8, 8), "red")


def boxes(figure, colour):
    drawn = ET.fromstring(figure.markup)
    return [e for e in drawn.iter() if e.tag.endswith("rect") and e.get("fill") == colour]


def words(figure):
    return [e.text for e in ET.fromstring(figure.markup).iter() if e.tag.endswith("text")]


def test_curves_end_with_their_names_and_no_two_labels_overlap():
    curves = {"one": [(0, 0.1), (10, 0.5)], "two": [(0, 0.1), (10, 0.51)], "three": [(0, 0.0), (10, 0.5)]}
    figure = curves_figure("Right answers", curves, chance=0.25, half=0.05)
    labels = [
        e for e in ET.fromstring(figure.markup).iter() if e.tag.endswith("text") and e.text.endswith(tuple(curves))
    ]
    places = sorted(float(label.get("y")) for label in labels)
    assert len(labels) == 3 and all(below - above > 19 for above, below in pairwise(places))
    assert "one: from 10% to 50%" in figure.alt and "Blind guessing: 25%" in figure.alt


def test_a_contact_sheet_tells_each_question_and_answer():
    turns = [("How many very long and winding roads are there in this picture?", "2"), ("What?", "a <b> & c")]
    figure = samples_figure([RED, RED], turns)
    assert all(question in figure.alt and answer in figure.alt for question, answer in turns)
    assert "2" in words(figure) and "a <b> & c" in words(figure)


def test_the_widest_piece_is_the_most_frequent_answer():
    figure = answers_figure({"What colour?": {"red": 1, "blue": 3}, "How many?": {"2": 1}})
    assert "What colour? blue (75%)" in figure.alt and "How many? 2 (100%)" in figure.alt
    first, second = (float(box.get("width")) for box in boxes(figure, "#2f6db3"))
    assert first == pytest.approx(0.75 * 384 - 1.5, abs=0.01) and second == pytest.approx(384 - 1.5, abs=0.01)


def test_what_is_refused_is_said():
    figure = gallery_figure([("bomb", "too large", None, None), ("plain", "nothing", RED, RED)])
    assert words(figure).count("refused") == 2
    assert "bomb (too large): convert refuses it, open_image refuses it" in figure.alt


def test_rows_count_their_padding():
    figure = rows_figure("Rows", [[4, 2], [8]], 8)
    assert "2 rows of 8" in figure.alt and "12% of the positions are padding" in figure.alt
    assert len(boxes(figure, "#2f6db3")) == 2 and len(boxes(figure, "#e08b1a")) == 1
    many = rows_figure("Rows", [[8]] * 20, 8)
    assert "and 4 rows more" in words(many)


def test_a_leak_is_what_moves_outside_of_document_0():
    figure = leak_figure([0, 0, 1, 1, -1], {"bad": [0, 9, 0.5, 1, 2], "good": [0, 9, 0, 0, 0]})
    assert "bad: the logits of the other documents move by up to 1" in figure.alt
    assert "good: the logits of the other documents move by up to 0" in figure.alt
    assert sorted(float(box.get("height")) for box in boxes(figure, "#cf5324")) == [31, 62]


def test_an_order_that_is_none_stays_in_place():
    assert "0% of the data away" in order_figure("As it is", range(50)).alt
    assert "away from its place" in order_figure("Backwards", range(49, -1, -1)).alt


def test_a_card_marks_the_turns_that_are_left_out():
    figure = sample_card(RED, [("a?", "<yes>", "5", True), ("b?", "no", "1", False)], "one sample")
    assert "b? no (left out)" in figure.alt and "a? <yes>" in figure.alt
    assert "&lt;yes&gt;" in figure.markup and figure.markup.count("✗") == 1


def test_a_card_marks_what_a_filter_has_left_out():
    sample = {
        "texts": [{"user": "a?", "assistant": "1"}, {"user": "b?", "assistant": "2"}],
        "relevance_ratings": [5, None],
    }
    messages = [{"role": "user", "content": "b?"}, {"role": "assistant", "content": "2"}]
    figure = rated_card(RED, sample, messages, ["relevance"])
    assert "1 of 2 turns are kept" in figure.alt and "a? 1 (left out)" in figure.alt and "b? 2 (left" not in figure.alt
    assert "relevance None" in figure.markup
