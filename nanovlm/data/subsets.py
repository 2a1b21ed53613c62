"""The subsets that a run asks for, opened: from the Hub or from files. What is left out is said."""

from __future__ import annotations

import glob
import re
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from nanovlm.config import TrainConfig
from nanovlm.data.datasets import VQADataset, check_columns
from nanovlm.data.streaming import what_went_wrong
from nanovlm.files import check_disk
from nanovlm.settings import first_line

TRAINING = {"train", "training"}
OTHER_SPLITS = {"validation", "valid", "val", "dev", "test", "testing", "eval"}


class Subset(NamedTuple):
    """data: anything with len() and [index], or a stream; size: its samples, where that is known."""

    name: str
    data: Any
    size: int | None
    weight: float | None  # as the recipe gives it
    files: Sequence[Path] = ()  # of a directory


def open_subsets(config: TrainConfig) -> list[Subset]:
    """The subsets that can be opened, with pictures undecoded: a bad one then spoils only its sample.

    Of several, one that cannot be opened is left out with a warning. Raises: ValueError, FileNotFoundError,
    ConnectionError or ImportError, with one sentence, where none can be had.
    """
    try:
        import datasets
    except ImportError:
        raise ImportError('Reading data sets needs the datasets library: pip install "nanovlm[data]".') from None
    path, names = config.dataset_path, config.dataset_names
    if not names:
        raise ValueError('dataset_names is empty: name a subset, or "all".')
    directory = Path(path).expanduser()
    if directory.is_dir():
        find = partial(_parquet_files, directory, names == ("all",))
        found = _folders(directory) if names == ("all",) else names
        load = [(name, partial(_load_parquet, find, name)) for name in found]
    elif path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise FileNotFoundError(f"There is no directory {path}, and it is no Hub id (owner/name).")
    else:
        if names == ("all",):
            names = _from_hub(path, partial(datasets.get_dataset_config_names, path, revision=config.revision))
        load = [(name, partial(_load_hub, path, name, config.revision)) for name in names]
        if not config.stream:
            _check_room(path, names, config.revision)
    wanted = (*VQADataset.columns, *(f"{rating}_ratings" for rating in config.min_ratings))
    weights = config.dataset_weights or [None] * len(load)
    opened, left_out = [], []
    for (name, open_one), weight in zip(load, weights, strict=True):
        try:
            data, size, files = _from_hub(path, partial(open_one, split="train", streaming=config.stream))
            check_columns(data, wanted)
        except (ValueError, FileNotFoundError) as error:
            if len(load) == 1:
                raise
            left_out.append((name, error))
            continue
        opened.append(Subset(name or directory.name, _as_it_travels(data, wanted), size, weight, files))
    if not opened:
        raise left_out[0][1]
    if left_out:
        warnings.warn(
            f"{len(left_out)} of {len(load)} subsets cannot be opened and are left out: "
            + "; ".join(f"{name} ({str(error).rstrip('.')})" for name, error in left_out)
            + ".",
            stacklevel=2,
        )
    return opened


def shares(subsets: Sequence[Subset]) -> list[float]:
    """What each subset weighs in the mixture: as the recipe says, else in proportion to its size."""
    if all(subset.weight is not None for subset in subsets):
        return [subset.weight for subset in subsets]
    unknown = [subset.name for subset in subsets if subset.size is None]
    if unknown and len(subsets) > 1:
        warnings.warn(
            f"The size of {len(unknown)} subsets is not known ({', '.join(unknown[:3])}), so all are mixed in equal "
            "parts. Give dataset_weights for another mixture.",
            stacklevel=2,
        )
    return [1.0 if unknown else float(subset.size) for subset in subsets]


def _as_it_travels(data: Any, wanted: Sequence[str]) -> Any:
    columns = getattr(data, "column_names", None)  # a stream may not know them
    if columns is not None:
        data = data.select_columns([name for name in columns if name in wanted])
    if data.features is not None:
        data = data.cast_column("images", undecoded(data.features["images"]))
    return data


def _check_room(path: str, names: Sequence[str], revision: str | None) -> None:
    """Raises: OSError where the disk is too small for the subsets that are not here yet."""
    import datasets

    needed = 0
    for name in names:
        try:
            builder = datasets.load_dataset_builder(path, name, revision=revision)
        except Exception:  # opening it comes next, and says what is wrong
            continue
        if not Path(builder.cache_dir).is_dir():  # the files, and the tables that are made of them
            needed += (builder.info.download_size or 0) + (builder.info.dataset_size or 0)
    check_disk(needed, Path(datasets.config.HF_DATASETS_CACHE), path, "read it with --stream")


def _load_hub(path: str, name: str, revision: str | None, **options: Any) -> tuple[Any, int | None, tuple[()]]:
    import datasets

    data = datasets.load_dataset(path, name, revision=revision, **options)
    told = (data.info.splits or {}).get("train")
    return data, told.num_examples or None if told else None, ()


def _load_parquet(find: Callable[[str], list[Path]], name: str, **options: Any) -> tuple[Any, int, list[Path]]:
    import datasets
    import pyarrow.parquet

    paths, rows, columns = find(name), [], []
    for path in paths:
        if not path.is_file():
            raise ValueError(f"{path} is no regular file")
        try:
            file = pyarrow.parquet.ParquetFile(path)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is no whole parquet file: {first_line(error)}") from error
        rows.append(file.metadata.num_rows)
        columns.append(set(file.schema_arrow.names))
    if not any(rows):
        raise ValueError(f"{paths[0]} holds no rows" if len(paths) == 1 else f"its {len(paths)} files hold no rows")
    for path, own in zip(paths, columns, strict=True):  # of unequal files only what is wanted is read
        if not set(VQADataset.columns) <= own and any(set(VQADataset.columns) <= other for other in columns):
            raise ValueError(f"{path} lacks {', '.join(sorted(set(VQADataset.columns) - own))}, which other files have")
    if any(own != columns[0] for own in columns):
        options["columns"] = [name for name in VQADataset.columns if name in columns[0]]
    full = [path for path, number in zip(paths, rows, strict=True) if number]
    try:
        data = datasets.load_dataset("parquet", data_files=[glob.escape(str(path)) for path in full], **options)
    except Exception as error:  # the library has a type for each of its formats
        raise ValueError(what_went_wrong(error, full)) from error
    return data, sum(rows), full


def _words(path: Path) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", str(path).lower()))


def _folders(directory: Path) -> list[str]:
    """Of a tree of parquet files: its first folders, less those that are named for a split; "" is the tree itself."""
    parts = [path.relative_to(directory).parts for path in directory.rglob("*.parquet")]
    folders = sorted({first for first, *rest in parts if rest and not _words(Path(first)) & (TRAINING | OTHER_SPLITS)})
    at_the_top = any(len(names) == 1 or _words(Path(names[0])) & (TRAINING | OTHER_SPLITS) for names in parts)
    return folders + [""] * (at_the_top or not folders)


def _parquet_files(directory: Path, everything: bool, name: str) -> list[Path]:
    """The training files of directory/name. The split is told by a word anywhere in the path below it."""
    root = directory / name
    files = sorted(root.rglob("*.parquet"))
    if everything and not name:  # what lies in no subset's folder
        own = set(_folders(directory)) - {""}
        files = [path for path in files if path.relative_to(directory).parts[0] not in own]
    if not files:
        folders = [folder for folder in _folders(directory) if folder]
        there = (
            f"it has {', '.join(folders)}" if folders else 'for files that lie in it directly, say dataset_names "all"'
        )
        raise FileNotFoundError(f"{root} holds no parquet files, nor a metadata.jsonl; {there}.")
    words = {path: _words(path.relative_to(root)) for path in files}
    training = [path for path in files if words[path] & TRAINING] or [
        path for path in files if not words[path] & OTHER_SPLITS
    ]
    if not training:
        raise FileNotFoundError(f"{root} holds files of other splits only, such as {files[0].name}: none to train on.")
    if len(training) < len(files):
        rest = sorted({word for path in files if path not in training for word in words[path] & OTHER_SPLITS})
        warnings.warn(
            f"{root}: {len(training)} of {len(files)} parquet files are for training; left out are those of "
            f"{', '.join(rest) or 'no named split'}.",
            stacklevel=2,
        )
    return training


def _from_hub(path: str, call: Any) -> Any:
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return call()
    except (ConnectionError, HfHubHTTPError, TimeoutError) as error:
        raise ConnectionError(
            f"{path} is no directory here, and the Hub cannot be reached. Connect to the network once, name a mirror "
            "in the environment variable HF_ENDPOINT, give a directory of parquet files, or train on dataset_path "
            '"thimble", which needs no network.'
        ) from error
    except FileNotFoundError as error:
        if "holds" in str(error):
            raise
        raise FileNotFoundError(f"There is no directory {path}, and the Hub has no data set of that name.") from error
    except Exception as error:  # the library has an exception type for each of its formats
        raise ValueError(f"{path} cannot be read as a data set: {what_went_wrong(error)}") from error


def undecoded(feature: Any) -> Any:
    """A `datasets` feature like this one, with pictures as {"bytes", "path"}."""
    import datasets

    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(feature, list):
        return [undecoded(part) for part in feature]
    if hasattr(feature, "feature"):  # List, Sequence
        return type(feature)(undecoded(feature.feature))
    return feature
