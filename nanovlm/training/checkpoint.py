"""Checkpoints that a kill cannot spoil: all of a run's state, written beside the old one and then renamed."""

from __future__ import annotations

import itertools
import random
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from nanovlm.config import TrainConfig
from nanovlm.files import to_the_disk
from nanovlm.settings import first_line
from nanovlm.training.sharded import UNFINISHED, load_sharded

KEEP = 2  # the newest, and the one before it should the disk fail
OF_THE_PLACE = ("output_dir", "run_name", "resume")  # settings that may differ when a run goes on
CONTENT: dict[str, Any] = {  # what a checkpoint holds, and of which type
    "step": int,
    "samples": int,
    "position": (dict, type(None)),
    "best_val_loss": (int, float),
    "seconds": (int, float),
    "weights": dict,
    "optimizers": list,
    "scaler": dict,
    "random": dict,
    "config": dict,
}


def get_run_name(config: TrainConfig, num_parameters: int) -> str:
    """Sizes, rates and date, so that two runs are told apart by their names."""
    batch = config.batch_size * config.gradient_accumulation_steps
    rates = f"lr{config.lr_projector:g}-{config.lr_backbones:g}"
    data = "+".join(config.dataset_names) + (f"-{config.data_cutoff_idx}" if config.data_cutoff_idx else "")
    date = time.strftime("%m%d-%H%M%S")
    return f"nanovlm-{num_parameters / 1e6:.1f}M_{data}_bs{batch}_{config.max_steps}steps_{rates}_{date}"


def find_run(config: TrainConfig, new_name: str) -> Path:
    """The directory of this run: named, or new, or (with resume) the one that wrote last.

    Raises: FileNotFoundError, FileExistsError or OSError where a run cannot go on, or begin, there.
    """
    root = Path(config.output_dir)
    if config.resume and config.run_name is None:
        # A start that failed, for want of its data say, has left a directory without a checkpoint.
        runs = sorted(filter(checkpoints, root.glob("*/checkpoints")), key=lambda path: path.stat().st_mtime)
        if not runs:
            raise FileNotFoundError(f"There is nothing to resume: {root} holds no run. Start one without --resume.")
        return runs[-1].parent
    directory = root / (config.run_name or new_name)
    if config.run_name is None:  # two runs that start in the same second are still two
        names = itertools.chain([new_name], (f"{new_name}-{number}" for number in itertools.count(2)))
        directory = next(root / name for name in names if not (root / name).exists())
    if config.resume and not (directory / "checkpoints").is_dir():
        raise FileNotFoundError(f"There is nothing to resume: {directory} is not a run. Start it without --resume.")
    if not config.resume and checkpoints(directory / "checkpoints"):
        raise FileExistsError(f"{directory} holds an earlier run. Add --resume to go on, or choose another --run-name.")
    try:
        directory.mkdir(parents=True, exist_ok=config.run_name is not None)
        (directory / "checkpoints").mkdir(exist_ok=True)
    except OSError as error:
        raise OSError(f"Cannot write to {directory}: {error.strerror}. Choose another --output-dir.") from error
    return directory


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
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])  # there may be fewer GPUs now


def save_checkpoint(directory: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `state` as directory/step_NNNNNN.pt, whole or not at all, and drop all but the newest KEEP."""
    path = directory / f"step_{step:06d}.pt"
    temporary = directory / "unfinished.partial"  # one name, so that what a kill leaves is written over
    try:
        torch.save(state, temporary)
        to_the_disk(temporary)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        temporary.unlink(missing_ok=True)
        last = checkpoints(directory)
        raise OSError(
            f"Could not write the checkpoint {path} ({first_line(error)}); the last one, "
            f"{last[-1].name if last else 'had there been one'}, is untouched. Free some space or choose another "
            "--output-dir, then go on with --resume."
        ) from error
    drop_old(directory)
    return path


def checkpoints(directory: Path) -> list[Path]:
    """All whole checkpoints, the oldest first: files, or the directories of a run that is dealt out."""
    return sorted(directory.glob("step_*"), key=lambda path: (len(path.stem), path.stem))


def drop_old(directory: Path) -> None:
    """All but the newest KEEP."""
    for old in checkpoints(directory)[:-KEEP]:
        if old.is_dir():
            retired = directory / f"{UNFINISHED}.old"  # half a directory must not look like a whole one
            shutil.rmtree(retired, ignore_errors=True)
            shutil.rmtree(old.rename(retired))
        else:
            old.unlink()


class Background:
    """Calls a function such as save_checkpoint, on a GPU in a thread of its own with a copy of the state: the next
    steps need not wait for the disk. One at a time; an error comes out at the next call, or in `finish`."""

    def __init__(self, device: torch.device) -> None:
        self.pool = ThreadPoolExecutor(1) if device.type == "cuda" else None
        self.pending: Future[Any] | None = None

    def __call__(self, write: Callable[..., Any], directory: Path, step: int, state: dict[str, Any]) -> None:
        if self.pool is None:
            write(directory, step, state)
            return
        self.finish()
        self.pending = self.pool.submit(write, directory, step, _copied(state))

    def finish(self) -> None:
        if self.pending is not None:
            pending, self.pending = self.pending, None
            pending.result()


def _copied(value: Any) -> Any:
    """With every tensor copied to the CPU's memory, as it is now."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(one) for key, one in value.items()}
    return type(value)(map(_copied, value)) if isinstance(value, (list, tuple)) else value


def load_checkpoint(path: Path, own: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
    """own: of a directory, see `sharded.load_sharded`.

    Raises: ValueError if the checkpoint is damaged, or was written by another version.
    """
    try:
        if path.is_dir():
            state = load_sharded(path, own or {})
        else:
            with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
                if damaged := archive.testzip():
                    raise ValueError(f"{damaged} in it is damaged")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = "it holds more than tensors and numbers" if isinstance(error, UnpicklingError) else first_line(error)
        raise ValueError(f"{path} cannot be read ({reason}). Delete it to resume from the one before it.") from error
    strange = [name for name, kind in CONTENT.items() if not isinstance(_entry(state, name), kind)]
    if strange:
        raise _of_another_version(path, ", ".join(strange))
    return state


def _entry(state: Any, name: str) -> Any:
    return state.get(name, ...) if isinstance(state, dict) else ...


@contextmanager
def taking_over(path: Path) -> Iterator[None]:
    """What a checkpoint's content raises where another version, or somebody else, has written it: a ValueError."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise _of_another_version(path, f"what is needed ({first_line(error)})") from error


def _of_another_version(path: Path, what: str) -> ValueError:
    return ValueError(
        f"{path} lacks {what}: another version of this program wrote it. Go on with that one, or start again from the "
        "run's best/ with --model."
    )


def changed_settings(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What a resumed run does differently, for people to read."""
    return [
        f"{name} {saved.get(name)!r} -> {value!r}"
        for name, value in now.items()
        if name not in OF_THE_PLACE and saved.get(name) != value
    ]


def replace_directory(new: Path, old: Path) -> None:
    """Put the directory `new` where `old` is. A kill in between leaves one of the two whole: see put_back."""
    retired = old.with_name(old.name + ".old")
    shutil.rmtree(retired, ignore_errors=True)
    if old.exists():
        old.replace(retired)
    new.replace(old)
    shutil.rmtree(retired, ignore_errors=True)


def put_back(old: Path) -> None:
    """What a kill within replace_directory had set aside."""
    retired = old.with_name(old.name + ".old")
    if retired.exists() and not old.exists():
        retired.replace(old)
