"""Files of model directories: found, read with care, checked, and written whole or not at all."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanovlm.settings import setting

if TYPE_CHECKING:  # torch takes a second to import, and the tokenizer's files need none of it
    from torch import Tensor, nn

TOKENIZER_FILES = ("tokenizer*.json", "chat_template.*")
FILES = ("*.json", "*.safetensors", "*.jinja", "README.md")


def find_directory(path_or_hub_id: str | Path, files: Sequence[str] = FILES) -> Path:
    """A local directory as it is; anything else is a Hub id, fetched (or found in the local cache).

    An id may name a commit, tag or branch: owner/name@revision. The directory of what was fetched is called for its
    commit.
    """
    path = Path(path_or_hub_id).expanduser()
    if path.is_dir():
        return path
    name = str(path_or_hub_id)
    if path.is_file():
        raise NotADirectoryError(f"{name} is a file. Give the directory that holds config.json and model.safetensors.")
    repository, _, revision = name.partition("@")
    if name.startswith((".", "/", "~")) or repository.count("/") != 1 or "\\" in name:
        raise FileNotFoundError(f"There is no directory {name}, and it does not look like a Hub id (owner/name).")
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    needed = _download_size(repository, revision or None, files)
    check_disk(needed, Path(HF_HUB_CACHE), repository, "take a smaller model")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(files)))
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"The Hub's {repository} has no commit, tag or branch {revision}.") from error
    except GatedRepoError as error:
        raise PermissionError(
            f"The Hub shows {name} only to those who accepted its terms: do so on its page, then `hf auth login`."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise FileNotFoundError(
            f"There is no directory {name}, and the Hub has no model of that name (if it is private: `hf auth login`)."
        ) from error
    except OSError as error:  # all of the Hub's own errors are OSErrors too
        if error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS):
            raise OSError(f"Cannot store {name}: {error}. Make room, or let HF_HOME name another place.") from error
        raise ConnectionError(
            f"{name} is neither a directory here nor in the local cache, and the Hub cannot be reached. "
            "Connect to the network once, name a mirror in the environment variable HF_ENDPOINT, or give a model "
            "directory."
        ) from error


def _download_size(repository: str, revision: str | None, files: Sequence[str]) -> int:
    """Bytes that are not in the cache yet; 0 where nobody tells."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return 0
    try:
        told = HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=10).siblings or ()
    except Exception:  # of many kinds; snapshot_download comes next, and its errors become sentences
        return 0
    blobs = Path(HF_HUB_CACHE, f"models--{repository.replace('/', '--')}", "blobs")
    have = {blob.name for blob in blobs.glob("*")}
    wanted = [file for file in told if any(fnmatch(file.rfilename, pattern) for pattern in files)]
    return sum(file.size or 0 for file in wanted if (file.lfs.sha256 if file.lfs else file.blob_id) not in have)


def check_disk(needed: int, directory: Path, what: str, instead: str) -> None:
    """Raises: OSError where a download would not fit, before it begins."""
    place = next(path for path in (directory, *directory.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise OSError(
            f"{what} takes {needed / 1e9:,.1f} GB, and the disk of {directory} has {free / 1e9:,.1f} GB left: make "
            f"room, let HF_HOME name another place, or {instead}."
        )


def read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        below = sorted(path.parent.glob(f"*/{path.name}"))  # a run's directory holds best/ and the checkpoints
        meant = f" Did you mean {below[0].parent}?" if below else ""
        raise FileNotFoundError(f"{path.parent} is not a model directory: it has no {path.name}.{meant}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply to be a file of settings. Fetch the file again.") from None
    except ValueError as error:  # no JSON, no UTF-8, or a number of thousands of digits
        raise ValueError(f"{path} is not valid JSON ({error}). Fetch the file again.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a JSON {type(values).__name__} where an object of settings belongs.")
    return values


def weight_files(directory: Path) -> dict[Path, set[str]]:
    """The files that hold the weights, and the tensors that each should hold (none where no index says so).

    model.safetensors before the shards that model.safetensors.index.json lists, as in transformers: save_pretrained
    into a directory of shards leaves these lying.
    """
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file() or not index.is_file():
        return {single: set()}
    files: dict[Path, set[str]] = {}
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{index} has no weight_map, so it does not say where the tensors are.")
    for name, shard in weight_map.items():
        file = directory / setting({"weight_map": shard}, "weight_map", str)
        if file.parent != directory or file.name == "..":
            raise ValueError(f"{index} points outside of its directory, to {file.name}: do not trust this model.")
        files.setdefault(file, set()).add(name)
    return dict(sorted(files.items()))


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of a model directory."""
    tensors: dict[str, Tensor] = {}
    for file, names in weight_files(directory).items():
        found = read_safetensors(file)
        if missing := sorted(names - found.keys()):
            raise ValueError(f"The index in {directory} says that {file.name} holds {missing[0]}, which it does not.")
        tensors.update(found)
    return tensors


def check_blocks(directory: Path, **num_blocks: int) -> None:
    """No part has more blocks than the weights have tensors; from the headers, before anything of that size is built"""
    count = 0
    for file in weight_files(directory):
        with _open_safetensors(file) as source:
            count += len(source.keys())
    for part, number in num_blocks.items():
        if number > count:
            raise ValueError(
                f"The config asks for {number} {part} blocks; the weights in {directory} have {count} tensors."
            )


@contextmanager
def _open_safetensors(file: Path) -> Iterator[Any]:
    """Refuse pickles, and say plainly when a file is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        pickles = [p.name for p in file.parent.glob("*.bin")] + [p.name for p in file.parent.glob("*.pt*")]
        reason = (
            f" It has {', '.join(sorted(pickles))}, a pickle, which could run any code: convert it to safetensors."
            if pickles
            else ""
        )
        raise FileNotFoundError(f"{file.parent} has no {file.name}.{reason}")
    try:
        with safe_open(file, framework="pt") as source:
            yield source
    except SafetensorError as error:
        raise ValueError(
            f"{file} is not a whole safetensors file ({error}). It may be cut off, or a pickle: fetch it again."
        ) from error


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Read one file; NaN or infinity in it is an error that names the tensor."""
    with _open_safetensors(file) as source:
        tensors = {name: source.get_tensor(name) for name in source.keys()}  # noqa: SIM118 (not a dict)
        metadata = source.metadata() or {}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not _is_finite(tensor):
            raise ValueError(
                f"{name} in {file} holds NaN or infinity: its training went wrong, or the file is damaged."
            )
    # A tied tensor is stored once; the metadata tells under which other name it is to be found.
    for name, stored in metadata.items():
        if stored in tensors and name not in tensors:
            tensors[name] = tensors[stored]
    return tensors


def _is_finite(tensor: Tensor) -> bool:
    """One pass and no copy: a sum is finite only if all of its terms are, and no float32 overflows a float64."""
    import torch

    if tensor.dtype.itemsize == 1:  # torch does not add up float8
        tensor = tensor.float()
    return math.isfinite(tensor.sum(dtype=torch.float64))


def tie_head(tensors: dict[str, Tensor], embedding: str, head: str, source: str | Path) -> None:
    """Give a tied pair, of which files hold one or both, both its names."""
    if embedding in tensors and head in tensors and not tensors[embedding].equal(tensors[head]):
        raise ValueError(f"The config in {source} says that {head} is {embedding}, but the weights of the two differ.")
    for name, other in ((embedding, head), (head, embedding)):
        if other in tensors:
            tensors.setdefault(name, tensors[other])


def check_tensors(shapes: Mapping[str, Sequence[int]], tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Anything missing, left over, mis-shaped or not floating point is an error that names it."""
    problems = [f"missing {name} {list(shapes[name])}" for name in shapes if name not in tensors]
    problems += [f"unexpected {name} {list(tensors[name].shape)}" for name in tensors if name not in shapes]
    for name in shapes.keys() & tensors.keys():
        if list(tensors[name].shape) != list(shapes[name]):
            problems.append(f"{name} has shape {list(tensors[name].shape)}, expected {list(shapes[name])}")
        elif not tensors[name].is_floating_point():
            problems.append(f"{name} holds {tensors[name].dtype}, expected floating point")
    if problems:
        more = f", and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"The weights in {source} do not fit this model: {'; '.join(problems[:5])}{more}.")


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Give every parameter its tensor, and have no tensor left over."""
    import torch

    wanted = module.state_dict()
    check_tensors({name: tensor.shape for name, tensor in wanted.items()}, tensors, source)
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(tensors[name])


def extend_rows(weight: Tensor, rows: int) -> Tensor:
    """Add rows to an embedding [V, dim] -> [rows, dim] for new tokens: each starts as the mean of the old rows, so that
    a token that was never trained is neither larger nor rarer than the average one."""
    if rows < weight.shape[0]:
        raise ValueError(f"The checkpoint has {weight.shape[0]} tokens, the model only {rows}: rows cannot be dropped.")
    import torch

    mean = weight.float().mean(dim=0, keepdim=True).to(weight.dtype)
    return torch.cat([weight, mean.expand(rows - weight.shape[0], -1)])


def make_directory(path: str | Path) -> Path:
    directory = Path(path)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"Cannot write to {directory}: {error.strerror}. Choose another output directory.") from error
    return directory


@contextmanager
def whole_directory(path: str | Path) -> Iterator[Path]:
    """A directory to write into, which gets the name `path` at the end; where something fails, nothing is left."""
    path = Path(path)
    make_directory(path.parent)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
        unfinished = make_directory(Path(scratch) / path.name)
        yield unfinished
        if path.exists():
            path.rmdir()  # an empty one, which not every system replaces
        unfinished.rename(path)


def to_the_disk(path: Path) -> None:
    """Or a power loss could leave an empty file under a good name."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_json(values: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_safetensors(tensors: dict[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """All or nothing: a full disk or a kill leaves the old file as it was."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    temporary = path.with_suffix(".partial")
    try:
        save_file(tensors, temporary, metadata={"format": "pt", **(metadata or {})})
        temporary.chmod(path.parent.stat().st_mode & 0o644)  # the library lets the owner alone read it
        to_the_disk(temporary)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise OSError(f"Could not write {path}: {error}. Free some space or choose another directory.") from error
