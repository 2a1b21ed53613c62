from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of their own: to number the next one, pytest reads the names of all that lie beside it."""
    return tmp_path_factory.mktemp("homes")


@pytest.fixture(autouse=True)
def own_home(homes: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the progress of whoever runs it."""
    home = Path(tempfile.mkdtemp(dir=homes))
    monkeypatch.setenv("NANOVLM_HOME", str(home))
    monkeypatch.delenv("NANOVLM_BUDGET", raising=False)
    return home


@pytest.fixture(scope="session")
def solved_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all workers: whoever needs it first makes it, and the others wait."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with FileLock(folder / "solved.lock"):
        if not (folder / "solved").exists():
            _solve(tmp_path_factory.mktemp("solving")).rename(folder / "solved")
    return folder / "solved"


def _solve(home: Path) -> Path:
    from nanovlm.course import check
    from nanovlm.course.judge.exercise import REGISTRY
    from nanovlm.course.your_parts import part_ids
    from tests.course.learners import solution

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOVLM_HOME", str(home))
        for exercise_id in part_ids():
            result = check(exercise_id, solution(REGISTRY[exercise_id]))
            assert result.passed and result.note == "", f"a solution must be kept without remarks: {result}"
    return home


@pytest.fixture
def solved(solved_home: Path, own_home: Path) -> None:
    """Somebody who has solved every part of the model. Checked once for all tests."""
    shutil.copytree(solved_home, own_home, dirs_exist_ok=True)
