"""The data that a training run asks for: found, split, shuffled and batched."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import ConcatDataset

from nanovlm.config import TrainConfig, VLMConfig
from nanovlm.data.batches import BatchOrder, Loader, MapBatches, StreamBatches
from nanovlm.data.chat import ChatTokenizer
from nanovlm.data.collators import PackingCollator, VQACollator
from nanovlm.data.datasets import VQADataset, check_columns
from nanovlm.data.processors import ImageProcessor
from nanovlm.data.tiling import make_image_processor

SHUFFLE_BUFFER = 10_000  # samples of a stream, still encoded, among which the next one is drawn


def get_dataloaders(
    train_cfg: TrainConfig,
    vlm_cfg: VLMConfig,
    tokenizer: ChatTokenizer | None = None,
    image_processor: ImageProcessor | None = None,
) -> tuple[Loader, Loader]:
    """(training loader, validation loader) for a run.

    The training loader is endless; `train_loader.set_start(n)` makes it begin at batch n. The validation loader makes
    one pass per iteration. With packing, batch_size samples share fewer rows, so that a step sees the same samples with
    and without it.

    Args:
        tokenizer: default: the one that vlm_cfg names, else the pocket tokenizer.
        image_processor: default: what vlm_cfg says.
    Raises: ValueError, FileNotFoundError or ConnectionError, with one sentence, if the data cannot be had.
    """
    tokenizer = tokenizer or _find_tokenizer(vlm_cfg)
    image_processor = image_processor or make_image_processor(vlm_cfg)
    prepare = partial(
        VQADataset,
        tokenizer=tokenizer,
        image_processor=image_processor,
        vlm_cfg=vlm_cfg,
        max_length=train_cfg.max_length,
    )
    if train_cfg.packing:
        collate = PackingCollator(tokenizer.pad_token_id, train_cfg.max_length)
    else:
        collate = VQACollator(tokenizer.pad_token_id)
    if train_cfg.stream and train_cfg.dataset_path != "thimble":
        return _stream_loaders(train_cfg, prepare, collate)

    train, val, train_indices, val_indices = _open_splits(train_cfg, vlm_cfg.vision.image_size)
    train_order = BatchOrder(train_indices, train_cfg.batch_size, train_cfg.seed)
    val_order = BatchOrder(val_indices, train_cfg.batch_size, train_cfg.seed, shuffle=False)
    return (
        Loader(MapBatches(prepare(train), train_order, collate, endless=True), train_cfg.num_workers),
        Loader(MapBatches(prepare(val), val_order, collate, endless=False), train_cfg.num_workers),
    )


def split_indices(size: int, val_ratio: float, cutoff: int | None, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Deal `size` samples into training and validation indices: shuffled, cut off, then divided.

    Raises: ValueError if that leaves either side empty.
    """
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:cutoff]
    num_val = max(1, round(val_ratio * len(order)))
    if num_val >= len(order):
        raise ValueError(
            f"{len(order)} samples cannot be split with val_ratio {val_ratio}: training and validation need one each."
        )
    return order[num_val:], order[:num_val]


def _open_splits(train_cfg: TrainConfig, image_size: int) -> tuple[Any, Any, torch.Tensor, torch.Tensor]:
    """Data with random access: (training data, validation data, the indices of each that take part)."""
    cutoff = train_cfg.data_cutoff_idx
    if train_cfg.dataset_path == "thimble":
        from nanovlm.data.thimble import SUBSETS, Thimble

        names = SUBSETS if train_cfg.dataset_names == ("all",) else train_cfg.dataset_names
        sizes = {"train": train_cfg.dataset_size, "val": train_cfg.val_size}
        if 0 in sizes.values() or not names:
            raise ValueError("The Thimble needs a subset, and dataset_size and val_size of at least 1.")
        train, val = (
            ConcatDataset([Thimble(name, split, size, image_size=image_size) for name in names])
            for split, size in sizes.items()
        )
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(train_cfg.seed))
        return train, val, order[:cutoff].sort().values, torch.arange(len(val))
    data = ConcatDataset(_open_subsets(train_cfg))
    return data, data, *split_indices(len(data), train_cfg.val_ratio, cutoff, train_cfg.seed)


def _stream_loaders(train_cfg: TrainConfig, prepare: Any, collate: Any) -> tuple[Loader, Loader]:
    """Streams: validation samples are read once, from the start of each subset, and kept out of training by content."""
    import datasets

    size, cutoff = train_cfg.val_size, train_cfg.data_cutoff_idx
    if size < 1:
        raise ValueError(f"A stream needs samples to validate on: val_size is 1 or more, not {size}.")
    if cutoff is not None and cutoff <= size:
        raise ValueError(
            f"data_cutoff_idx {cutoff} leaves nothing to train on: of a stream, {size} samples are for validation. "
            "Raise it, or lower val_size."
        )
    streams = _open_subsets(train_cfg)
    per_subset = -(-size // len(streams))
    val = [sample for stream in streams for sample in stream.take(per_subset)]
    if cutoff is not None:
        streams = [stream.take(-(-cutoff // len(streams))) for stream in streams]
    # Subsets take turns; a short one starts again until the longest has been read.
    stream = datasets.interleave_datasets(streams, stopping_strategy="all_exhausted") if streams[1:] else streams[0]
    shards = getattr(stream, "num_shards", None) or stream.n_shards
    stream = stream.shuffle(seed=train_cfg.seed, buffer_size=SHUFFLE_BUFFER)
    batches = StreamBatches(
        stream, prepare([]).encode, collate, train_cfg.batch_size, keep=_NotAmong(map(fingerprint, val))
    )
    val_order = BatchOrder(torch.arange(len(val)), train_cfg.batch_size, train_cfg.seed, shuffle=False)
    return (
        Loader(batches, min(train_cfg.num_workers, shards)),  # a worker without a shard would have nothing to do
        Loader(MapBatches(prepare(val), val_order, collate, endless=False)),
    )


class _NotAmong:
    def __init__(self, fingerprints: Any) -> None:
        self.held_out = frozenset(fingerprints)

    def __call__(self, sample: Any) -> bool:
        return fingerprint(sample) not in self.held_out


def fingerprint(sample: Any) -> bytes:
    """16 bytes that tell a stream's samples apart by their texts and pictures (undecoded, or PIL)."""
    digest = hashlib.blake2b(repr(sample.get("texts")).encode(), digest_size=16)
    for image in sample.get("images") or ():
        if isinstance(image, dict):
            digest.update(image.get("bytes") or str(image.get("path")).encode())
        elif isinstance(image, Image.Image):
            digest.update(image.tobytes())
        else:  # no picture: the data set will say so
            digest.update(repr(image).encode())
    return digest.digest()


def _open_subsets(train_cfg: TrainConfig) -> list[Any]:
    """The subsets as `datasets` objects whose pictures are left undecoded: a bad one then spoils only its sample."""
    try:
        import datasets
    except ImportError:
        raise ImportError('Reading data sets needs the datasets library: pip install "nanovlm[data]".') from None
    directory = Path(train_cfg.dataset_path).expanduser()
    if directory.is_dir():
        files = _parquet_files(directory, train_cfg.dataset_names)
        load = [partial(datasets.load_dataset, "parquet", data_files=list(map(str, some))) for some in files]
    elif train_cfg.dataset_path.startswith((".", "/", "~")) or train_cfg.dataset_path.count("/") > 1:
        raise FileNotFoundError(f"There is no directory {train_cfg.dataset_path}, and it is no Hub id (owner/name).")
    else:
        names: Sequence[str] = train_cfg.dataset_names
        if names == ("all",):
            names = _from_hub(
                train_cfg.dataset_path, partial(datasets.get_dataset_config_names, train_cfg.dataset_path)
            )
        load = [partial(datasets.load_dataset, train_cfg.dataset_path, name) for name in names]
    subsets = []
    for open_one in load:
        data = _from_hub(train_cfg.dataset_path, partial(open_one, split="train", streaming=train_cfg.stream))
        check_columns(data, VQADataset.columns)
        features = data.features  # a stream may not know them
        if features is not None:
            data = data.cast_column("images", undecoded(features["images"]))
        subsets.append(data)
    return subsets


def _parquet_files(directory: Path, names: Sequence[str]) -> list[list[Path]]:
    """Per subset, the training files: those of directory/name, or with the name "all" of every folder (or the top)."""
    folders = sorted({path.relative_to(directory).parts[0] for path in directory.glob("*/**/*.parquet")})
    if names == ("all",):
        roots = [directory / folder for folder in folders] or [directory]
    else:
        roots = [directory / name for name in names]
    found = []
    for root in roots:
        files = sorted(root.rglob("*.parquet"))
        if not files:
            there = (
                f"it has {', '.join(folders)}"
                if folders
                else 'for files that lie in it directly, say dataset_names "all"'
            )
            raise FileNotFoundError(f"{root} holds no parquet files; {there}.")
        found.append([file for file in files if file.name.startswith("train")] or files)
    return found


def _from_hub(path: str, call: Any) -> Any:
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return call()
    except (ConnectionError, HfHubHTTPError, TimeoutError) as error:
        raise ConnectionError(
            f"{path} is no directory here, and the Hub cannot be reached. Connect to the network once, give a "
            'directory of parquet files, or train on dataset_path "thimble", which needs no network.'
        ) from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no directory {path}, and the Hub has no data set of that name.") from error
    except Exception as error:  # the library has an exception type for each of its formats
        raise ValueError(f"{path} cannot be read as a data set: {str(error).splitlines()[0]}") from error


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


def _find_tokenizer(vlm_cfg: VLMConfig) -> ChatTokenizer:
    if vlm_cfg.tokenizer is not None:
        from nanovlm.files import find_directory

        return ChatTokenizer.from_pretrained(find_directory(vlm_cfg.tokenizer))
    from nanovlm.assets import asset_path

    return ChatTokenizer.from_pretrained(asset_path("pocket"))
