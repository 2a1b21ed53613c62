"""Checkpoints that a kill cannot spoil: all of a run's state, written beside the old one and then renamed."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import torch

KEEP = 2  # the newest, and the one before it should the disk fail


def random_state() -> dict[str, Any]:
    """The state of every generator that training draws from."""
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def save_checkpoint(directory: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `state` as directory/step_NNNNNN.pt, whole or not at all, and drop all but the newest KEEP."""
    path = directory / f"step_{step:06d}.pt"
    temporary = path.with_suffix(".partial")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        torch.save(state, temporary)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        temporary.unlink(missing_ok=True)
        raise OSError(
            f"Could not write the checkpoint {path}: {error}. The one before it is untouched. "
            "Free some space or choose another --output-dir, then go on with --resume."
        ) from error
    for old in checkpoints(directory)[:-KEEP]:
        old.unlink()
    return path


def checkpoints(directory: Path) -> list[Path]:
    """All whole checkpoints, the oldest first."""
    return sorted(directory.glob("step_*.pt"))


def load_checkpoint(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} cannot be read ({error}). Delete it to resume from the one before it.") from error


def replace_directory(new: Path, old: Path) -> None:
    """Put the directory `new` where `old` is. A kill in between leaves one of the two whole."""
    retired = old.with_name(old.name + ".old")
    shutil.rmtree(retired, ignore_errors=True)
    if old.exists():
        old.replace(retired)
    new.replace(old)
    shutil.rmtree(retired, ignore_errors=True)
