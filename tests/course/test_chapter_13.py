"""Chapter 13's checks: shortcuts that once passed, and where a long text is told to be wrong."""

from __future__ import annotations

import math

from nanovlm.course.exercises.ch13.texts import FAKE, REJOIN, TOKENS, parting, written
from nanovlm.course.exercises.ch13.tiles import GRID
from nanovlm.course.judge.engine import judge


def test_one_resize_in_place_of_two_is_found_and_named() -> None:
    def grid(width, height, tile=512, longest=2048):
        s = longest / max(width, height)
        return math.ceil(height * s / tile), math.ceil(width * s / tile)

    result = judge(GRID, grid)
    assert grid(929, 3711) == (4, 2) and GRID.reference(929, 3711) == (4, 1)
    assert not result.passed and "resized once" in str(result.mistake)


def test_a_wrong_text_is_shown_from_the_first_token_that_differs() -> None:
    assert (
        parting("<a><b>", "<a><c>")
        == "The first 3 characters are right; then comes '<c>', but yours goes on with '<b>'."
    )
    assert "yours ends there (3 characters in all, expected 6)" in parting("<a>", "<a><c>")
    assert "the text is at its end, but yours goes on with '\\n'" in parting("<a>\n", "<a>")
    assert parting("", "<a>").startswith("It differs from the start; then comes '<a>'")
    words = str(judge(TOKENS, lambda rows, columns, n: written(rows, columns, n).replace("_col", "-col")))
    assert f"The first {len(FAKE)} characters are right; then comes '<row_1_col_1>" in words and len(words) < 400
    assert "takes (rows, columns)" in str(judge(TOKENS, lambda rows, columns: ""))


def test_the_view_of_the_whole_among_the_tiles_is_told() -> None:
    def rejoin(features, rows, columns):
        _, tokens, dim = features.shape
        side = math.isqrt(tokens)
        squares = features.reshape(rows, columns, side, side, dim)
        return squares.transpose(1, 2).reshape(rows * side, columns * side, dim)

    assert "the view of the whole is still there" in judge(REJOIN, rejoin).message

    def viewed(features, rows, columns):  # torch stops this one for another reason
        _, tokens, dim = features.shape
        side = math.isqrt(tokens)
        squares = features[: rows * columns].view(rows, columns, side, side, dim)
        return squares.transpose(1, 2).view(rows * side, columns * side, dim)

    assert judge(REJOIN, viewed).rung == "raised"
