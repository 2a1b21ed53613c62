"""What a learner has done, in one JSON file that survives the session, the kernel and a crash."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

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
    """{"version", "machines": [...], "exercises": {id: {…}}, "quizzes": {id: {…}}}. What cannot be read is set aside,
    not lost."""
    with _alone() if os.path.exists(progress_file()) else contextlib.nullcontext():
        return _load()


def update(change: Callable[[dict[str, Any]], None]) -> str | None:
    """Let `change` change the state, while no other thread or process does; then write it. None, or the sentence that
    says why it is only remembered in this session."""
    with _alone():
        state = _load()
        change(state)
        return save(state)


_one_thread = threading.RLock()


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """One thread and one process at a time; without the process's lock where the home can hold none."""
    from filelock import FileLock

    with _one_thread, contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, NotImplementedError):
            progress_file().parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(progress_file().with_name(".progress.lock"))
            stack.enter_context(lock.acquire(timeout=10, poll_interval=0.01))
        yield


def _load() -> dict[str, Any]:
    path = progress_file()
    if path in _unsaved:
        return _unsaved[path]
    empty = {"version": VERSION, "machines": [this_machine()], "exercises": {}, "quizzes": {}}
    try:
        state = json.loads(path.read_text(encoding="utf-8-sig"))  # some editors put a byte-order mark in front
    except (FileNotFoundError, NotADirectoryError):
        return empty
    except (OSError, ValueError, RecursionError):
        return _set_aside(path, empty)
    if not isinstance(state, dict) or state.get("version") != VERSION:
        return _set_aside(path, empty)
    dropped = _drop_strange(state)
    if dropped:
        return _set_aside(path, state, dropped)
    return state


# What a record may hold, and of which type.
FIELDS = {
    "exercises": {"passed": bool, "checks": int, "hints": int, "mistakes": dict, "name": str, "source": str},
    "quizzes": {"tries": int, "right": bool},
}


def _drop_strange(state: dict[str, Any]) -> list[str]:
    """Take out what has a wrong type or a number below 0, and name it."""
    dropped = []
    for part, fields in FIELDS.items():
        if not isinstance(state.setdefault(part, {}), dict):
            state[part] = {}
            dropped.append(part)
        for name, record in list(state[part].items()):
            if not isinstance(record, dict):
                del state[part][name]
                dropped.append(name)
                continue
            for key, kind in fields.items():
                if key in record and not _is_good(record[key], kind):
                    del record[key]
                    dropped.append(f"{key} of {name}")
    machines = state.setdefault("machines", [])
    if not isinstance(machines, list) or not all(isinstance(machine, str) for machine in machines):
        state["machines"] = []
        dropped.append("machines")
    return dropped


def _is_good(value: Any, kind: type) -> bool:
    if kind is dict:  # how often each mistake was made
        return isinstance(value, dict) and all(_is_good(number, int) for number in value.values())
    return type(value) is kind and (kind is not int or value >= 0)


def save(state: dict[str, Any]) -> str | None:
    """Write all or nothing. None, or the sentence that says why it is only remembered in this session."""
    path = progress_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(state, indent=1, sort_keys=True) + "\n")
    except OSError as error:
        _unsaved[path] = state
        return (
            f"Your progress could not be written to {path} ({error.strerror}): it lasts for this session only. "
            "Set NANOVLM_HOME to a folder that you can write to."
        )
    _unsaved.pop(path, None)
    return None


def write_whole(path: Path, text: str) -> None:
    """All or nothing, and for nobody else to change."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.partial")
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # or a power loss could leave an empty file under the good name
    os.replace(partial, path)


def _set_aside(path: Path, instead: dict[str, Any], dropped: Sequence[str] = ()) -> dict[str, Any]:
    """Keep the file under another name and put `instead` in its place."""
    what = f"{path} could not be read"
    rest = "progress starts anew"
    if dropped:
        what = f"{path} holds values that do not belong there ({', '.join(dropped[:3])}{', …' if dropped[3:] else ''})"
        rest = "everything else stays"
    try:
        number = 1
        while (aside := path.with_name(f"{path.name}.broken-{number}")).exists():
            number += 1
        path.rename(aside)
    except OSError as error:
        _unsaved[path] = instead
        print(f"{what} or moved ({error.strerror}): {rest}, and lasts for this session only.")
        return instead
    print(f"{what}. It is kept as {aside.name}; {rest}.")
    save(instead)
    return instead


def this_machine() -> str:
    """A word for this machine and user that tells nothing about them."""
    if home().is_relative_to(COLAB_DRIVE):
        return "Drive"  # every session is another machine
    try:
        machine = Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        machine = ""
    user = os.geteuid() if hasattr(os, "geteuid") else os.environ.get("USERNAME")
    return hashlib.sha256(f"nanovlm {machine or uuid.getnode()} {user}".encode()).hexdigest()[:16]


def is_from_elsewhere() -> bool:
    """Whether the progress, and the code with it, came from a machine or user that nobody has vouched for here."""
    return this_machine() not in load()["machines"]


def trust() -> str | None:
    """Let the code that came from elsewhere run here. A sentence where that cannot be remembered."""
    return update(lambda state: state["machines"].append(this_machine()))


def entry(state: dict[str, Any], exercise_id: str) -> dict[str, Any]:
    """The exercise's own record, made on first use. `checks`: attempts; `hints`: how many were shown; `name`: what the
    code that passed is called in its file (my_vlm.py)."""
    fresh = {"passed": False, "checks": 0, "hints": 0, "mistakes": {}}
    record = state["exercises"].setdefault(exercise_id, {})
    for key, value in fresh.items():
        record.setdefault(key, value)
    return record


def record_hint(exercise_id: str) -> int:
    """Which hint comes next, counted from 0."""
    shown = 0

    def change(state: dict[str, Any]) -> None:
        nonlocal shown
        record = entry(state, exercise_id)
        shown = record["hints"]
        record["hints"] = min(shown + 1, 3)

    update(change)
    return shown


def record_quiz(quiz_id: str, right: bool) -> None:
    def change(state: dict[str, Any]) -> None:
        record = state["quizzes"].setdefault(quiz_id, {})
        record["tries"] = record.get("tries", 0) + 1
        record["right"] = record.get("right", False) or right

    update(change)


def passed_ids() -> set[str]:
    return {name for name, record in load()["exercises"].items() if record.get("passed")}
