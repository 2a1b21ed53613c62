"""What a learner has done, in one JSON file that survives the session, the kernel and a crash."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nanovlm.course.judge.result import Result

COLAB_DRIVE = Path("/content/drive/MyDrive")
VERSION = 1

# Where the file cannot be written, this session remembers by itself: path -> state.
_unsaved: dict[Path, dict[str, Any]] = {}


def home() -> Path:
    """NANOVLM_HOME; else the mounted Drive on Colab, whose disk is gone after the session; else ~/.nanovlm."""
    chosen = os.environ.get("NANOVLM_HOME")
    if chosen:
        return Path(chosen).expanduser()
    if "google.colab" in sys.modules and COLAB_DRIVE.is_dir():
        return COLAB_DRIVE / "nanovlm"
    return Path.home() / ".nanovlm"


def progress_file() -> Path:
    return home() / "progress.json"


def load() -> dict[str, Any]:
    """{"version", "exercises": {id: {…}}, "quizzes": {id: {…}}}; a file that cannot be read is set aside, not lost."""
    path = progress_file()
    if path in _unsaved:
        return _unsaved[path]
    empty = {"version": VERSION, "exercises": {}, "quizzes": {}}
    try:
        words = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return empty
    except (OSError, UnicodeDecodeError):
        return _set_aside(path, empty)
    try:
        state = json.loads(words)
    except (json.JSONDecodeError, RecursionError):
        return _set_aside(path, empty)
    if not isinstance(state, dict) or state.get("version") != VERSION:
        return _set_aside(path, empty)
    for part in ("exercises", "quizzes"):
        entries = state.get(part)
        if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
            return _set_aside(path, empty)
    return state


def save(state: dict[str, Any]) -> str | None:
    """Write all or nothing. None, or the sentence that says why it is only remembered in this session."""
    path = progress_file()
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(state, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        _unsaved[path] = state
        return (
            f"Your progress could not be written to {path} ({error.strerror}): it lasts for this session only. "
            "Set NANOVLM_HOME to a folder that you can write to."
        )
    _unsaved.pop(path, None)
    return None


def _set_aside(path: Path, empty: dict[str, Any]) -> dict[str, Any]:
    number = 1
    while (aside := path.with_name(f"{path.name}.broken-{number}")).exists():
        number += 1
    try:
        path.rename(aside)
        print(f"{path} could not be read. It is kept as {aside.name}; progress starts anew.")
    except OSError:
        print(f"{path} could not be read or moved. Progress starts anew.")
    return empty


def entry(state: dict[str, Any], exercise_id: str) -> dict[str, Any]:
    """The exercise's own record, made on first use. `checks`: attempts; `hints`: how many were shown; `source`, `name`:
    the code that passed."""
    fresh = {"passed": False, "checks": 0, "hints": 0, "mistakes": {}}
    record = state["exercises"].setdefault(exercise_id, {})
    for key, value in fresh.items():
        if type(record.get(key)) is not type(value):
            record[key] = value
    return record


def record_check(result: Result, learner: Any) -> str | None:
    """Count the attempt; keep the code of one that passed. Returns a sentence where something could not be kept."""
    if result.rung in ("unknown", "checker", "not_callable", "not_written"):
        return None
    from nanovlm.course.own_code import CannotKeep, own_code

    state, problem = load(), None
    record = entry(state, result.id)
    record["checks"] += 1
    if result.mistake:
        record["mistakes"][result.mistake] = record["mistakes"].get(result.mistake, 0) + 1
    if result.passed:
        record["passed"] = True
        try:
            record["name"], record["source"] = own_code(learner)
        except CannotKeep as error:
            problem = f"It passes, but yours() cannot use it in a later session: {error}"
    return save(state) or problem


def record_hint(exercise_id: str) -> int:
    """Which hint comes next, counted from 0."""
    state = load()
    record = entry(state, exercise_id)
    shown = record["hints"]
    record["hints"] = min(shown + 1, 3)
    save(state)
    return shown


def record_quiz(quiz_id: str, right: bool) -> None:
    state = load()
    record = state["quizzes"].setdefault(quiz_id, {"tries": 0, "right": False})
    record["tries"] = record.get("tries", 0) + 1
    record["right"] = record.get("right", False) or right
    save(state)


def passed_ids() -> set[str]:
    return {name for name, record in load()["exercises"].items() if record.get("passed")}
