"""Wrong answers that were written before the checks: none is accepted, and nine in ten are told their cause."""

from __future__ import annotations

import runpy
from typing import Any

import pytest

from nanovlm.course.judge.engine import judge
from nanovlm.course.judge.exercise import load_exercises
from tests.course.learners import FOLDER

FILES = sorted((FOLDER / "wrong_answers").glob("[0-9]*.py"))


def answers(path: Any) -> dict[str, list[tuple[Any, str]]]:
    """Exercise id -> (wrong answer, a part of the sentence that it should be told)."""
    return runpy.run_path(str(path))["WRONG"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_wrong_answer_is_accepted_and_nine_in_ten_are_told_why(path: Any) -> None:
    exercises, told, untold = load_exercises(), 0, []
    for exercise_id, wrong in answers(path).items():
        assert len(wrong) >= 5, f"{exercise_id} has {len(wrong)} wrong answers; write at least five"
        for answer, part in wrong:
            result = judge(exercises[exercise_id], answer)
            assert not result.passed, f"{exercise_id} accepts {answer.__name__}"
            if part in f"{result.mistake} {result.message}":
                told += 1
            else:
                untold.append(f"{exercise_id} {answer.__name__}: {result.mistake or result.message}")
    assert told >= 9 * len(untold), "\n".join(untold)
