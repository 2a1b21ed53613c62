"""Checkpoints of a run that is dealt out to several processes (parallel fsdp), through torch.distributed.checkpoint.

A directory step_NNNNNN: each process writes its own part of every tensor, and no process needs memory for the whole. It
is read by any number of processes, dealt out or not: each reads what its own tensors need. Beside the parts lies
rest.pt, all that is no tensor of weights or optimizers. A run of whole weights has one file instead: checkpoint.py.

The library's index of the parts is a pickle, which could run code when it is read: only what describes tensors may be
in it.
"""

from __future__ import annotations

import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

REST = "rest.pt"
UNFINISHED = "unfinished.partial.parts"
INDEX = ".metadata"  # the library's name
DESCRIPTIONS = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},  # a layout by its name
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},  # Python 3.13
}


class IndexReader(pickle.Unpickler):
    """Refuses whatever does not describe tensors. Reading it this way first makes the library's own reading safe."""

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and name not in DESCRIPTIONS.get(module, ()):
            raise pickle.UnpicklingError(f"its index names {module}.{name}")
        return super().find_class(module, name)


def flattened(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A checkpoint's state -> (its tensors by name: "weights/NAME", "optimizers/NUMBER/PARAMETER/NAME"; the rest)."""
    tensors = {f"weights/{name}": weight for name, weight in state["weights"].items()}
    optimizers = []
    for number, optimizer in enumerate(state["optimizers"]):
        for parameter, values in optimizer["state"].items():
            tensors |= {f"optimizers/{number}/{parameter}/{name}": value for name, value in values.items()}
        optimizers.append({**optimizer, "state": {}})
    return tensors, {**state, "weights": {}, "optimizers": optimizers}


def put_together(tensors: Mapping[str, Tensor], rest: dict[str, Any]) -> dict[str, Any]:
    """The reverse."""
    for name, tensor in tensors.items():
        kind, _, place = name.partition("/")
        if kind == "weights":
            rest["weights"][place] = tensor
        else:
            number, parameter, key = place.split("/")
            rest["optimizers"][int(number)]["state"].setdefault(int(parameter), {})[key] = tensor
    return rest


class ShardedSaver:
    """Called by all processes together. In the background (async_save) the parts are copied to the CPU's memory first,
    and the directory gets its name at the next call, or in `finish`: until then the one before it is the newest."""

    def __init__(self, background: bool, drop_old: Callable[[Path], None]) -> None:
        self.drop_old = drop_old
        # The thread that writes talks to those of the other processes, and must not mix with the gradients' sums.
        self.group = dist.new_group(backend="gloo") if background else None
        self.pending: tuple[Any, Path, int] | None = None

    def __call__(self, directory: Path, step: int, state: Mapping[str, Any]) -> None:
        import torch.distributed.checkpoint as dcp

        self.finish()
        tensors, rest = flattened(state)
        unfinished = directory / UNFINISHED
        if dist.get_rank() == 0:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            torch.save(rest, unfinished / REST)
        dist.barrier()
        if self.group is not None:
            self.pending = dcp.async_save(tensors, checkpoint_id=unfinished, process_group=self.group), directory, step
            return
        with one_sentence(directory, step):
            dcp.save(tensors, checkpoint_id=unfinished)
        self._name(directory, step)

    def finish(self) -> None:
        if self.pending is not None:
            (written, directory, step), self.pending = self.pending, None
            with one_sentence(directory, step):
                written.result()
            self._name(directory, step)

    def _name(self, directory: Path, step: int) -> None:
        """Once every process has written its part, the whole gets its name in one move."""
        dist.barrier()
        if dist.get_rank() == 0:
            path = directory / f"step_{step:06d}"
            shutil.rmtree(path, ignore_errors=True)
            (directory / UNFINISHED).replace(path)
            self.drop_old(directory)
        dist.barrier()


@contextmanager
def one_sentence(directory: Path, step: int) -> Iterator[None]:
    """The library gathers the errors of all processes into one of its own, over many lines."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise OSError(
            f"Could not write the checkpoint of step {step} into {directory} ({reason}); the one before it is "
            "untouched. Free some space or choose another --output-dir, then go on with --resume."
        ) from error


def load_sharded(path: Path, own: Mapping[str, Tensor]) -> dict[str, Any]:
    """The state, with tensors dealt out as those of `own` are ("weights/NAME", "optimizers/NUMBER/PARAMETER"); whole
    where it has none of the name and shape."""
    import torch.distributed.checkpoint as dcp

    with (path / INDEX).open("rb") as file:
        IndexReader(file).load()
    reader = dcp.FileSystemReader(path)
    tensors = {}
    for name, told in reader.read_metadata().state_dict_metadata.items():
        like = own.get(name, own.get(name.rpartition("/")[0]))
        fits = like is not None and like.shape == told.size
        tensors[name] = torch.empty_like(like) if fits else torch.empty(told.size, dtype=told.properties.dtype)
    with warnings.catch_warnings():  # in one process: that it is one process
        warnings.simplefilter("ignore")
        dcp.load(tensors, storage_reader=reader)
    return put_together(tensors, torch.load(path / REST, map_location="cpu", weights_only=True))
