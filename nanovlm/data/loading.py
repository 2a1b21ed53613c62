"""The data that a training run asks for: found, split, shuffled and batched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import ConcatDataset

from nanovlm.config import TrainConfig, VLMConfig
from nanovlm.data.batches import BatchOrder, Loader, MapBatches, StreamBatches, WeightedOrder
from nanovlm.data.chat import ChatTokenizer
from nanovlm.data.collators import PackingCollator, VQACollator
from nanovlm.data.datasets import VQADataset
from nanovlm.data.own_data import is_own_data, read_own_data
from nanovlm.data.processors import ImageProcessor
from nanovlm.data.streaming import Mixture, NotAmong, Source, StreamReader
from nanovlm.data.subsets import open_subsets, shares
from nanovlm.data.tiling import make_image_processor

SPLIT_SEED = 0  # of no run: see split_indices


def get_dataloaders(
    train_cfg: TrainConfig,
    vlm_cfg: VLMConfig,
    tokenizer: ChatTokenizer | None = None,
    image_processor: ImageProcessor | None = None,
    raw_pixels: bool = False,
) -> tuple[Loader, Loader]:
    """(training loader, validation loader) for a run.

    The training loader is endless; `train_loader.set_start(n)` makes it begin at sample n. The validation loader makes
    one pass per iteration. With packing, batch_size samples share fewer rows, so that a step sees the same samples with
    and without it.

    Args:
        tokenizer: default: the one that vlm_cfg names, else the pocket tokenizer.
        image_processor: default: what vlm_cfg says.
        raw_pixels: uint8, a quarter of the bytes; `training.step.forward` scales them where the model is.
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
        min_ratings=train_cfg.min_ratings,
        raw_pixels=raw_pixels,
        max_images=train_cfg.max_images,
    )
    if train_cfg.packing:
        collate = PackingCollator(tokenizer.pad_token_id, train_cfg.max_length)
    else:
        collate = VQACollator(tokenizer.pad_token_id)
    own = is_own_data(Path(train_cfg.dataset_path).expanduser())
    if train_cfg.min_ratings and (own or train_cfg.dataset_path == "thimble"):
        raise ValueError("min_ratings is for data sets with FineVision's columns of ratings: leave it out here.")
    if train_cfg.stream and train_cfg.dataset_path != "thimble" and not own:
        return _stream_loaders(train_cfg, prepare, collate)

    train, val, train_indices, val_indices, weights = _open_splits(train_cfg, vlm_cfg.vision.image_size)
    if weights:
        ends = torch.tensor(train.cumulative_sizes)
        owners = torch.bucketize(train_indices, ends, right=True)
        subsets = [train_indices[owners == number] for number in range(len(ends))]
        train_order = WeightedOrder(subsets, weights, train_cfg.batch_size, train_cfg.seed)
    else:
        train_order = BatchOrder(train_indices, train_cfg.batch_size, train_cfg.seed)
    val_order = BatchOrder(val_indices, train_cfg.batch_size, train_cfg.seed, shuffle=False)
    return (
        Loader(MapBatches(prepare(train), train_order, collate, endless=True), train_cfg.num_workers),
        Loader(MapBatches(prepare(val), val_order, collate, endless=False), train_cfg.num_workers),
    )


def split_indices(
    size: int, val_ratio: float, cutoff: int | None, max_val: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Deal `size` samples into training and validation indices: shuffled, cut off, then divided.

    The same samples are held out whatever the run's seed: a run that goes on from another's weights with a new seed
    must not be validated on what those weights were trained on.

    Raises: ValueError if that leaves either side empty.
    """
    order = torch.randperm(size, generator=torch.Generator().manual_seed(SPLIT_SEED))[:cutoff]
    num_val = min(max(1, round(val_ratio * len(order))), max_val or size)
    if num_val >= len(order):
        raise ValueError(
            f"{len(order)} samples cannot be split with val_ratio {val_ratio}: training and validation need one each."
        )
    return order[num_val:], order[:num_val]


def _open_splits(
    train_cfg: TrainConfig, image_size: int
) -> tuple[ConcatDataset, ConcatDataset, torch.Tensor, torch.Tensor, Sequence[float]]:
    """Data with random access: (training data, validation data, the indices of each that take part, weights of the
    subsets). No weights: each sample once an epoch, which mixes the subsets in proportion to their sizes."""
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
        return train, val, order[:cutoff].sort().values, torch.arange(len(val)), train_cfg.dataset_weights
    path = Path(train_cfg.dataset_path).expanduser()
    subsets = [] if is_own_data(path) else open_subsets(train_cfg)
    data = ConcatDataset([subset.data for subset in subsets] or [read_own_data(path)])
    train_indices, val_indices = split_indices(len(data), train_cfg.val_ratio, cutoff, train_cfg.max_val_samples)
    weights = shares(subsets) if train_cfg.dataset_weights and subsets else ()
    return data, data, train_indices, val_indices, weights


def _stream_loaders(train_cfg: TrainConfig, prepare: Any, collate: Any) -> tuple[Loader, Loader]:
    """Streams: validation samples are read once, from the start of each subset, and kept out of training by content."""
    size, cutoff = train_cfg.val_size, train_cfg.data_cutoff_idx
    if size < 1:
        raise ValueError(f"A stream needs samples to validate on: val_size is 1 or more, not {size}.")
    if cutoff is not None and cutoff <= size:
        raise ValueError(
            f"data_cutoff_idx {cutoff} leaves nothing to train on: of a stream, {size} samples are for validation. "
            "Raise it, or lower val_size."
        )
    subsets = open_subsets(train_cfg)
    weights = shares(subsets)
    per_subset = -(-min(size, train_cfg.max_val_samples) // len(subsets))
    sources = []
    for subset, weight in zip(subsets, weights, strict=True):
        limit = cutoff and max(1, math.ceil(cutoff * weight / sum(weights)))
        sources.append(Source(subset.name, subset.data, weight, limit, subset.files))
    val = [sample for source in sources for sample in source.first(per_subset)]
    reader = StreamReader(Mixture(sources, NotAmong(val)), train_cfg.seed, train_cfg.shuffle_buffer_mb * 1e6)
    batches = StreamBatches(reader, prepare([]).encode, collate, train_cfg.batch_size)
    val_order = BatchOrder(torch.arange(len(val)), train_cfg.batch_size, train_cfg.seed, shuffle=False)
    return (
        Loader(batches, train_cfg.num_workers),
        Loader(MapBatches(prepare(val), val_order, collate, endless=False)),
    )


def _find_tokenizer(vlm_cfg: VLMConfig) -> ChatTokenizer:
    if vlm_cfg.tokenizer is not None:
        from nanovlm.files import find_directory

        return ChatTokenizer.from_pretrained(find_directory(vlm_cfg.tokenizer))
    from nanovlm.assets import asset_path

    return ChatTokenizer.from_pretrained(asset_path("pocket"))
