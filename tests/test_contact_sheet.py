"""The sheet of answered pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops

from nanovlm.commands import score_report
from nanovlm.commands.score_report import in_turns
from nanovlm.evaluation.answers import same_answer
from nanovlm.evaluation.scores import Evaluation, Question, Score
from nanovlm.viz.contact_sheet import ANSWER, CARD, AnsweredImage, _Sheet, contact_sheet, sheet_figure

RED = Image.new("RGB", (8, 8), "red")


def card(answer: str = "red", expected: str = "red", question: str = "What colour is it?") -> AnsweredImage:
    return AnsweredImage(RED, question, answer, expected)


def test_a_sheet_grows_with_its_scale_and_its_rows() -> None:
    small, large = (contact_sheet("Title", "Note", [card()] * 5, columns=2, scale=scale) for scale in (1, 3))
    assert large.size == (3 * small.width, pytest.approx(3 * small.height, abs=60))
    assert contact_sheet("Title", "Note", [card()] * 2, columns=2, scale=1).height < small.height - 2 * CARD


def test_right_and_wrong_differ_in_more_than_colour() -> None:
    right, wrong = (contact_sheet("", "", [card("red", said)], scale=1).convert("L") for said in ("red", "blue"))
    assert wrong.height > right.height, "a wrong answer comes with the right one"
    box = ImageChops.difference(right, wrong.crop((0, 0, *right.size))).getbbox()
    assert box is not None and box[1] >= CARD, "below the picture"


def test_an_answer_of_nothing_is_shown_as_such() -> None:
    nothing, blank = (contact_sheet("", "", [card(said)], scale=1) for said in ("", " "))
    assert nothing.size == blank.size
    assert not card("").right


@given(words=st.text(st.characters(codec="utf-8", exclude_categories=("C",)), max_size=200), width=st.integers(40, 200))
def test_text_is_broken_to_fit_and_nothing_is_lost(words: str, width: int) -> None:
    sheet = _Sheet(1)
    lines = sheet.wrap(words, ANSWER, width)
    assert "".join("".join(lines).split()) == "".join(words.split())
    assert all(len(line) == 1 or sheet.fits(line, ANSWER, width) for line in lines if line)


def test_nothing_to_show() -> None:
    with pytest.raises(ValueError, match="at least one answered picture"):
        contact_sheet("", "", [])


def evaluation(kinds: str, images: int) -> Evaluation:
    answers = [(Question(i, [RED], "?", "yes", kind), "no") for i in range(images) for kind in kinds]
    return Evaluation({kind: Score(0, images) for kind in kinds}, {}, answers)


def test_the_marks_follow_the_rule_that_the_scores_were_counted_by(tmp_path: Path, monkeypatch) -> None:
    drawn = []
    monkeypatch.setattr(score_report, "contact_sheet", lambda title, note, cards, columns: drawn.extend(cards) or RED)
    by_vqa = Evaluation(
        {"a": Score(1, 2)}, {}, [(Question(i, [RED], "?", "2", "a"), said) for i, said in enumerate(("Two.", "5"))]
    )
    by_vqa.right = same_answer
    score_report.write_sheet(tmp_path / "sheet.png", "", {"shapes": by_vqa})
    assert [card.right for card in drawn] == [True, False]


def test_subsets_and_kinds_take_turns_and_no_image_comes_twice() -> None:
    shown = in_turns({"shapes": evaluation("abc", 5), "charts": evaluation("xy", 5)}, 6)
    assert "".join(question.kind for question, _ in shown) == "axbycx"
    assert [question.sample for question, _ in shown] == [0, 0, 1, 1, 2, 2]
    assert len(in_turns({"shapes": evaluation("abc", 5)}, 50)) == 5


def test_a_sheet_in_a_notebook_says_what_it_shows() -> None:
    figure = sheet_figure("Turned", "1 failure.", [card("blue")])
    assert figure.alt == "Turned. 1 failure. What colour is it? blue, expected red."
    assert "data:image/png;base64," in figure.markup
