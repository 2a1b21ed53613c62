"""What is remembered, and what happens when it cannot be."""

from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path

import pytest

from nanovlm.course import check, course_map, hint, quiz, report
from nanovlm.course.exercises.ch03.pixel_shuffle import SHUFFLE
from nanovlm.course.judge.exercise import load_exercises
from nanovlm.course.outline import CHAPTERS
from nanovlm.course.progress import home, load, passed_ids, progress_file, save


def test_home_is_the_variable_then_drive_then_the_home_folder(
    own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert home() == own_home
    monkeypatch.delenv("NANOVLM_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert home() == tmp_path / ".nanovlm"
    monkeypatch.setattr("nanovlm.course.progress.COLAB_DRIVE", tmp_path)
    assert home() == tmp_path / ".nanovlm"  # a folder of that name alone does not make it Colab
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    assert home() == tmp_path / "nanovlm"


@pytest.mark.parametrize(
    "words",
    [
        "",
        "{",
        "[]",
        "null",
        '{"version": 99}',
        '{"version": 1, "exercises": [], "quizzes": {}}',
        "\x00\xff",
        "[" * 100_000,
    ],
)
def test_a_corrupt_file_is_set_aside_and_never_fatal(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = progress_file()
    path.write_text(words, encoding="latin-1")
    assert passed_ids() == set()
    assert "kept as progress.json.broken-1" in capsys.readouterr().out
    assert path.with_name("progress.json.broken-1").read_text(encoding="latin-1") == words
    assert check(SHUFFLE.id, SHUFFLE.reference).passed and passed_ids() == {SHUFFLE.id}
    path.write_text(words, encoding="latin-1")
    load()
    assert path.with_name("progress.json.broken-2").exists()


def test_strange_records_are_mended(capsys: pytest.CaptureFixture[str]) -> None:
    save({"version": 1, "exercises": {SHUFFLE.id: {"checks": "many", "hints": None, "passed": 1}}, "quizzes": {}})
    assert not check(SHUFFLE.id, lambda x, factor: x).passed
    assert load()["exercises"][SHUFFLE.id]["checks"] == 1


def test_a_write_that_fails_leaves_the_old_file(monkeypatch: pytest.MonkeyPatch) -> None:
    save({"version": 1, "exercises": {"a.b": {"passed": True}}, "quizzes": {}})
    before = progress_file().read_text()

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        problem = save({"version": 1, "exercises": {}, "quizzes": {}})
        assert problem is not None and "No space left" in problem and "NANOVLM_HOME" in problem
        assert passed_ids() == set()  # this session goes by what it knows
    assert progress_file().read_text() == before
    assert save({"version": 1, "exercises": {"c.d": {"passed": True}}, "quizzes": {}}) is None
    assert passed_ids() == {"c.d"}


def test_a_home_that_cannot_be_made_is_said_in_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("NANOVLM_HOME", str(tmp_path / "file" / "home"))
    result = check(SHUFFLE.id, SHUFFLE.reference)
    assert result.passed and "could not be written" in result.note
    assert passed_ids() == {SHUFFLE.id}


def test_hints_come_one_by_one() -> None:
    for number, words in enumerate(SHUFFLE.hints, start=1):
        shown = hint(SHUFFLE.id)
        assert f"Hint {number} of 3" in repr(shown) and words in repr(shown)
    assert "solutions/03" in repr(hint(SHUFFLE.id)) and SHUFFLE.hints[2] in repr(hint(SHUFFLE.id))
    assert load()["exercises"][SHUFFLE.id]["hints"] == 3
    assert "Did you mean 'pixel_shuffle.shuffle'" in repr(hint("pixel_shuffle.shufle"))
    assert "<pre" in hint(SHUFFLE.id)._repr_html_() and "monospace" in hint(SHUFFLE.id)._repr_html_()


def test_a_quiz_reads_without_a_kernel_and_explains_every_choice() -> None:
    shown = quiz("ch03.tokens")
    assert shown._repr_html_().count("<details>") == 4 and shown._repr_html_().count("Right.") == 1
    assert "quiz('ch03.tokens', 'a')" in repr(shown)
    assert "Not this one" in repr(quiz("ch03.tokens", "a")) and "Right." in repr(quiz("ch03.tokens", "C"))
    assert load()["quizzes"]["ch03.tokens"] == {"tries": 2, "right": True}
    assert "one of a, b, c, d" in repr(quiz("ch03.tokens", "z"))
    assert "one of a, b, c, d" in repr(quiz("ch03.tokens", ""))
    assert "no quiz 'ch99'" in repr(quiz("ch99"))


def test_the_map_shows_solved_tried_and_new() -> None:
    check(SHUFFLE.id, SHUFFLE.reference)
    check("pixel_shuffle.unshuffle", lambda x, factor: x)
    line = next(line for line in repr(course_map()).splitlines() if line.startswith("03"))
    assert line.count("●") == 1 and line.count("◐") == 1 and line.count("○") >= 3
    assert "07  Data                              not written yet" in repr(course_map())
    page = course_map()._repr_html_()
    assert page.count("<tr>") == len(CHAPTERS) and str(progress_file()) in page


def test_the_report_lists_every_exercise() -> None:
    words, page = repr(report()), report()._repr_html_()
    for exercise in load_exercises().values():
        assert exercise.id in words and exercise.id in page


def test_the_file_is_plain_json() -> None:
    check(SHUFFLE.id, SHUFFLE.reference)
    record = json.loads(progress_file().read_text())["exercises"][SHUFFLE.id]
    assert record["passed"] and record["name"] == "pixel_shuffle"
    assert not list(progress_file().parent.glob("*.partial"))
