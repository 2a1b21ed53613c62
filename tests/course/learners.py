"""Play the learner: run solution and exercise files, and hand over what they gave to their checks."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from nanovlm.course import checking
from nanovlm.course.judge.exercise import Exercise
from nanovlm.course.judge.verdict import Result
from nanovlm.course.outline import chapter

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).resolve().parent


@cache
def handed_in(folder: str, number: str) -> dict[str, Any]:
    """Exercise id -> the function or class that solutions/NN or exercises/NN gives to check()."""
    place = chapter(number)
    assert place is not None
    path = ROOT / folder / f"{place.stem}.py"
    given: dict[str, Any] = {}

    def remember(exercise_id: str, learner: Any = None) -> Any:
        given[exercise_id] = learner
        return Result(exercise_id, "", "passed", "")

    with (
        tempfile.TemporaryDirectory() as home,
        mock.patch.dict(os.environ, {"NANOVLM_HOME": home, "NANOVLM_BUDGET": "ci"}),
        mock.patch.object(checking, "check", remember),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        code = compile(up_to_the_last_check(path), str(path), "exec")
        exec(code, {"__name__": f"{folder}_{number}"})
    return given


def up_to_the_last_check(path: Path) -> str:
    """Behind it come challenges, whose scores take their time; the notebooks are run whole elsewhere."""
    text = path.read_text(encoding="utf-8")
    end = text.find("\n# %%", text.rindex("\ncheck("))
    return text if end < 0 else text[:end]


@cache
def second_versions(number: str) -> dict[str, tuple[Any, ...]]:
    """Exercise id -> its other right versions: one of them, or a tuple, in the file."""
    versions = _recorded("second_versions", number)["VERSIONS"]
    return {name: v if isinstance(v, tuple) else (v,) for name, v in versions.items()}


@cache
def wrong_answers(number: str) -> dict[str, list[tuple[Any, str]]]:
    """Exercise id -> wrong answers, each with a part of the sentence that it should be told."""
    return _recorded("wrong_answers", number)["WRONG"]


def _recorded(folder: str, number: str) -> dict[str, Any]:
    """What a file of answers defines; a chapter without the file has none."""
    path = FOLDER / folder / f"{number}.py"
    if not path.exists():
        return {"VERSIONS": {}, "WRONG": {}}
    spec = importlib.util.spec_from_file_location(f"{folder}_{number}", path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return vars(module)


def solution(exercise: Exercise) -> Any:
    return handed_in("solutions", exercise.chapter)[exercise.id]


def starter(exercise: Exercise) -> Any:
    return handed_in("exercises", exercise.chapter)[exercise.id]
