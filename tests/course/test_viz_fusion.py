"""Chapter 06's pictures in default and extreme states."""

from __future__ import annotations

import pytest
from PIL import Image

from nanovlm.viz.fusion import (
    PREFIXES,
    Chance,
    Piece,
    ablation_figure,
    groups_shuffled,
    image_pieces,
    joined_figure,
    lines_figure,
    pieces,
    prefix_figure,
    score_table,
)
from nanovlm.viz.style import PALETTE
from tests.course.test_viz_pixel_shuffle import SVG, drawn, words

IMAGE = Image.new("RGB", (64, 64), (200, 30, 30))


def bars(root, colour: str) -> list[float]:
    rects = (e for e in root.iter(f"{SVG}rect") if e.get("fill") == PALETTE[colour])
    return [float(e.get("width", 0)) for e in rects]


# -- lines of tokens ---------------------------------------------------------------------------------------------------


def test_image_tokens_are_told_apart_by_letter_and_colour() -> None:
    figure = lines_figure([("the line", [Piece("user", "word"), *image_pieces(0, 2), *image_pieces(1, 2)])])
    root = drawn(figure)
    assert words(root).startswith("the line user a0 a1 b0 b1")
    assert len(bars(root, "orange")) == 2 + 1 and len(bars(root, "sky")) == 2  # one orange box is the legend's
    assert "a0 a1 b0 b1" in figure.alt


def test_the_legend_names_what_is_there_and_nothing_else() -> None:
    every = [Piece("w", "word"), Piece("", "placeholder"), Piece("", "padding"), *image_pieces(2, 1)]
    shown = words(drawn(lines_figure([("all", every)])))
    assert all(name in shown for name in ("a word", "a placeholder", "padding", "an image token"))
    assert "padding" not in words(drawn(lines_figure([("words", [Piece("w", "word")])])))


@pytest.mark.parametrize("images", [0, 1, 3, 9])
def test_long_lines_are_wrapped(images: int) -> None:
    tokens = [piece for i in range(images) for piece in image_pieces(i, 16)]
    drawn(lines_figure([("a line", [*tokens, *[Piece("word", "word")] * 10]), ("nothing", [])]))


def test_letters_that_a_page_cannot_show_do_not_break_it() -> None:
    drawn(lines_figure([("odd", [Piece("a\x00<&", "word")])]))


# -- ablation ----------------------------------------------------------------------------------------------------------


def test_bars_are_as_long_as_the_probabilities_and_the_answer_is_judged() -> None:
    chances = [Chance("top left", 0.2, 0.9), Chance("top right", 0.8, 0.1)]
    figure = ablation_figure(IMAGE, "grey", "Where is it?", chances, "top left", 0.7)
    root = drawn(figure)
    _, first, second = bars(root, "blue")  # the first one is the legend's
    assert second / first == pytest.approx(4)
    assert "✓ top left" in words(root) and "Likeliest: “top right”, not “top left”." in words(root)
    assert "70% of the first word's probability" in words(root) and "grey" in figure.alt
    right = ablation_figure(IMAGE, "its own picture", "Where is it?", chances, "top right", 0.0)
    assert "“top right”, which is right." in words(drawn(right))


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("count", [1, 8])
def test_ablation_in_extreme_states(share: float, count: int) -> None:
    chances = [Chance(f"answer {i}", share, 1 - share) for i in range(count)]
    drawn(ablation_figure(IMAGE, "tokens out of order", "Which one?", chances, "answer 0", share))


# -- scores ------------------------------------------------------------------------------------------------------------


def test_the_mean_of_a_line_is_over_its_kinds() -> None:
    root = drawn(score_table({"mine": {"colour": 1.0, "where": 0.5}}, guessing={"colour": 0.2, "where": 0.2}))
    assert words(root) == "right answers to colour where mean mine 100% 50% 75% by guessing 20% 20% 20%"


def test_a_kind_that_a_line_lacks_stays_empty() -> None:
    shown = words(drawn(score_table({"one": {"colour": 1.0}, "two": {"where": 0.0}})))
    assert shown == "right answers to colour where mean one 100% 100% two 0% 0%"


def test_wide_tables_keep_to_the_page() -> None:
    kinds = dict.fromkeys(["colour", "shape", "count", "exists", "where", "compare", "caption"], 1.0)
    drawn(score_table({"a name of twenty-five cha": kinds}, kinds))


def test_groups_are_moved_as_wholes() -> None:
    half = Image.new("RGB", (64, 64), "white")
    half.paste((0, 0, 0), (0, 0, 32, 64))
    turned = groups_shuffled(half, lambda tokens: tokens.flip(1))
    assert turned.getpixel((0, 0)) == (255, 255, 255) and turned.getpixel((63, 63)) == (0, 0, 0)
    assert groups_shuffled(half, lambda tokens: tokens).tobytes() == half.tobytes()


# -- the two ways, and the prefixes ------------------------------------------------------------------------------------


def test_a_row_of_words_is_read_as_pieces() -> None:
    assert pieces("b1 _ - user") == [
        Piece("b1", 1),
        Piece("", "placeholder"),
        Piece("", "padding"),
        Piece("user", "word"),
    ]


@pytest.mark.parametrize("images", [0, 3])
def test_placeholders_stand_only_where_the_text_has_them(images: int) -> None:
    placed, front = (joined_figure(way, images) for way in ("in their places", "in front"))
    assert ("a placeholder" in words(drawn(placed))) == (images > 0)
    assert "a placeholder" not in words(drawn(front))


def test_a_longer_prefix_lets_more_positions_attend() -> None:
    figures = [prefix_figure(prefix) for prefix in PREFIXES]
    assert len({figure.alt for figure in figures}) == 3
    drawn(figures[-1])
