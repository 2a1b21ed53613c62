"""No check refuses a right answer or accepts a wrong one, and nine in ten of the wrong are told why."""

from __future__ import annotations

import pytest

from nanovlm.course.judge.exercise import load_exercises
from tests.course import table
from tests.course.learners import second_versions, wrong_answers

CHAPTERS = sorted({exercise.chapter for exercise in load_exercises().values()})


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_right_answers_pass_and_wrong_ones_are_told_why(chapter: str) -> None:
    row = table.row(chapter, own=False)  # test_two_sided judges the exercise's own, and reads their sentences
    assert not row.refused, "\n".join(row.refused)
    assert not row.accepted, "\n".join(row.accepted)
    assert row.named >= 0.9, "\n".join(row.unnamed)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_exercise_has_its_recorded_answers(chapter: str) -> None:
    ids = {exercise.id for exercise in table.exercises_of(chapter)}
    assert set(second_versions(chapter)) == ids
    wrong = wrong_answers(chapter)
    assert not wrong or set(wrong) == ids
    for exercise_id, answers in wrong.items():
        assert len(answers) >= 5, f"{exercise_id} has {len(answers)} wrong answers; write at least five"
        assert all(part.strip() for _, part in answers), f"{exercise_id}: an empty part is in every sentence"


def test_the_table_counts_what_a_check_took_wrongly() -> None:
    row = table.Row("03", right=10, wrong=20, mistakes=5, refused=["a"], accepted=["b", "c"], unnamed=["b", "c"])
    assert str(row).split() == ["03", "10", "1", "20", "5", "2", "90.0%"]
    total = row + table.Row("04", wrong=20)
    assert (total.wrong, total.named, total.accepted) == (40, 0.95, ["b", "c"])
