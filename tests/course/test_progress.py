"""What is remembered, and what happens when it cannot be."""

from __future__ import annotations

import html
import json
import os
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest

from nanovlm.course import check, course_map, hint, quiz, report
from nanovlm.course.exercises.ch03.pixel_shuffle import SHUFFLE
from nanovlm.course.judge.exercise import load_exercises
from nanovlm.course.outline import CHAPTERS
from nanovlm.course.progress import home, load, passed_ids, progress_file, record_hint, record_quiz, save
from nanovlm.course.quizzes import LETTERS, QUIZZES, radio_buttons


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


def test_values_edited_by_hand_are_set_aside_and_the_rest_stays(capsys: pytest.CaptureFixture[str]) -> None:
    exercises = {
        SHUFFLE.id: {"passed": True, "checks": -3, "mistakes": {"a": "b"}, "hints": True, "mine": 1},
        "good.one": {"passed": True, "checks": 2},
        "no.record": 5,
    }
    quizzes = {"ch03.tokens": {"tries": "twice", "right": True}}
    state = {"version": 1, "machines": "here", "exercises": exercises, "quizzes": quizzes, "of_mine": [1]}
    progress_file().write_text(json.dumps(state))
    assert passed_ids() == {SHUFFLE.id, "good.one"}
    said = capsys.readouterr().out
    assert "checks of pixel_shuffle.shuffle" in said and "progress.json.broken-1; everything else stays" in said
    assert json.loads(progress_file().with_name("progress.json.broken-1").read_text()) == state
    quiz("ch03.tokens", letters("ch03.tokens")[1])
    check(SHUFFLE.id, lambda x, factor: x)
    hint(SHUFFLE.id)
    assert capsys.readouterr().out.count("belong") == 0, "said once"
    state = load()
    assert state["quizzes"]["ch03.tokens"] == {"tries": 1, "right": True} and state["of_mine"] == [1]
    record = state["exercises"][SHUFFLE.id]
    assert (record["passed"], record["checks"], record["hints"], record["mine"]) == (True, 1, 1, 1)


def test_a_byte_order_mark_is_no_fault(capsys: pytest.CaptureFixture[str]) -> None:
    save({"version": 1, "exercises": {"a.b": {"passed": True}}, "quizzes": {}})
    progress_file().write_bytes(b"\xef\xbb\xbf" + progress_file().read_bytes())
    assert passed_ids() == {"a.b"} and capsys.readouterr().out == ""


def test_a_home_that_cannot_be_searched_lasts_for_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every look into it is refused, as for a user who may not search the folder."""
    home = tmp_path / "closed"
    home.mkdir()
    monkeypatch.setenv("NANOVLM_HOME", str(home))

    def refused(path: Path, *given: object, **more: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    real = os.open
    monkeypatch.setattr(Path, "stat", refused)
    monkeypatch.setattr(Path, "read_text", refused)
    monkeypatch.setattr(
        os, "open", lambda path, *given: refused(path) if str(path).startswith(str(home)) else real(path, *given)
    )
    result = check(SHUFFLE.id, SHUFFLE.reference)
    assert result.passed and "could not be written" in result.note
    assert passed_ids() == {SHUFFLE.id}
    assert capsys.readouterr().out.count("Permission denied") <= 2


def test_no_entry_is_lost_among_threads() -> None:
    threads = [threading.Thread(target=record_quiz, args=(f"quiz{i}", True)) for i in range(50)]
    threads += [threading.Thread(target=record_hint, args=("a.b",)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(load()["quizzes"]) == 50 and load()["exercises"]["a.b"]["hints"] == 2


def test_no_entry_is_lost_among_processes() -> None:
    program = (
        "import sys\nfrom nanovlm.course.progress import record_quiz\n"
        "for i in range(20):\n    record_quiz(sys.argv[1] + str(i), True)"
    )
    processes = [subprocess.Popen([sys.executable, "-c", program, name]) for name in ("a", "b", "c")]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert len(load()["quizzes"]) == 60


def test_nobody_else_can_write_what_is_kept() -> None:
    before = os.umask(0)
    try:
        check(SHUFFLE.id, SHUFFLE.reference)
    finally:
        os.umask(before)
    for path in (progress_file(), progress_file().parent / "my_vlm", *(progress_file().parent / "my_vlm").glob("*.py")):
        assert path.stat().st_mode & 0o077 == 0, path


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
    by_number = repr(hint("3.2"))  # what the title says
    assert "below its title" in by_number and "pixel_shuffle.unshuffle" in by_number and "rope" not in by_number
    assert "<pre" in hint(SHUFFLE.id)._repr_html_() and "monospace" in hint(SHUFFLE.id)._repr_html_()


def letters(quiz_id: str) -> tuple[str, str]:
    """(the right choice, a wrong one)"""
    load_exercises()
    asked = QUIZZES[quiz_id]
    return LETTERS[asked.right], LETTERS[(asked.right + 1) % len(asked.choices)]


def test_no_letter_is_a_good_guess() -> None:
    load_exercises()
    four = [asked.right for asked in QUIZZES.values() if len(asked.choices) == 4]
    counts = [four.count(place) for place in range(4)]
    assert len(four) >= 20 and max(counts) < 0.4 * len(four), counts


def test_radio_buttons_record_the_answer() -> None:
    load_exercises()
    asked = QUIZZES["ch03.tokens"]
    question, buttons, said = radio_buttons(asked).children
    assert asked.question in question.value and len(buttons.options) == 4 and buttons.index is None
    wrong = (asked.right + 1) % 4
    for index, tries, words in ((wrong, 1, "Not this one."), (asked.right, 2, "Right.")):
        buttons.index = index
        assert words in said.value and html.escape(asked.because[index]) in said.value
        assert load()["quizzes"]["ch03.tokens"] == {"tries": tries, "right": index == asked.right}


def test_a_quiz_reads_without_a_kernel_and_explains_every_choice() -> None:
    shown = quiz("ch03.tokens")
    assert shown._repr_html_().count("<details>") == 4 and shown._repr_html_().count("Right.") == 1
    assert "quiz('ch03.tokens', LETTER)" in repr(shown), "a letter in its place would read as the answer"
    right, wrong = letters("ch03.tokens")
    assert "Not this one" in repr(quiz("ch03.tokens", wrong)) and "Right." in repr(quiz("ch03.tokens", right.upper()))
    assert load()["quizzes"]["ch03.tokens"] == {"tries": 2, "right": True}
    assert "one of a, b, c, d" in repr(quiz("ch03.tokens", "z"))
    assert "one of a, b, c, d" in repr(quiz("ch03.tokens", ""))
    assert "no quiz 'ch99'" in repr(quiz("ch99"))


def test_the_map_shows_solved_tried_and_new() -> None:
    check(SHUFFLE.id, SHUFFLE.reference)
    check("pixel_shuffle.unshuffle", lambda x, factor: x)
    line = next(line for line in repr(course_map()).splitlines() if line.startswith("03"))
    assert line.count("●") == 1 and line.count("◐") == 1 and line.count("○") >= 3
    assert all("○" in line for line in repr(course_map()).splitlines()[: len(CHAPTERS)] if line[:2] != "03")
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
