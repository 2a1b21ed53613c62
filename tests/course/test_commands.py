"""`nanovlm course …`"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nanovlm.course.commands import course_cli
from nanovlm.course.exercises.ch03.pixel_shuffle import SHUFFLE
from nanovlm.course.progress import progress_file, save
from tests.course.learners import ROOT


def test_report_and_progress_print(capsys: pytest.CaptureFixture[str]) -> None:
    assert course_cli(["report"]) == 0
    assert "pixel_shuffle.projector" in capsys.readouterr().out
    save({"version": 1, "exercises": {SHUFFLE.id: {"passed": True}}, "quizzes": {}})
    assert course_cli(["progress"]) == 0
    shown = capsys.readouterr().out
    assert "●" in shown and "1 of" in shown and str(progress_file()) in shown


def test_build_says_what_it_did_and_its_exit_code_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert course_cli(["build", "--check"]) == 1
    assert "not inside a clone" in capsys.readouterr().err
    (tmp_path / "solutions").mkdir()
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copy(ROOT / "solutions" / "03_pixel_shuffle_and_projector.py", tmp_path / "solutions")
    assert course_cli(["build", "--check", "--only", "03"]) == 1
    assert "exercises/03_pixel_shuffle_and_projector.py is missing" in capsys.readouterr().err
    assert course_cli(["build", "--only", "03"]) == 0
    assert "wrote exercises/03_pixel_shuffle_and_projector.ipynb" in capsys.readouterr().out
    assert course_cli(["build", "--check", "--only", "03"]) == 0
    assert "up to date" in capsys.readouterr().out


def test_a_wrong_option_ends_with_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        course_cli(["build", "--chek"])
    assert stopped.value.code == 2
