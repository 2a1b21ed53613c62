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
        code = compile(path.read_text(encoding="utf-8"), str(path), "exec")
        exec(code, {"__name__": f"{folder}_{number}"})
    return given


@cache
def second_versions(number: str) -> dict[str, tuple[Any, ...]]:
    """Exercise id -> its other right versions: one of them, or a tuple, in the file."""
    path = FOLDER / "second_versions" / f"{number}.py"
    spec = importlib.util.spec_from_file_location(f"second_versions_{number}", path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {name: v if isinstance(v, tuple) else (v,) for name, v in module.VERSIONS.items()}


def solution(exercise: Exercise) -> Any:
    return handed_in("solutions", exercise.chapter)[exercise.id]


def starter(exercise: Exercise) -> Any:
    return handed_in("exercises", exercise.chapter)[exercise.id]
