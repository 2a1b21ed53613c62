"""Samples -> what a model trains on or is asked: token ids, targets and pixels; bad samples are skipped and counted."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from nanovlm.config import VLMConfig
from nanovlm.data.chat import IGNORE, ChatTokenizer, shift_labels
from nanovlm.data.images import UNDECODED_KEYS
from nanovlm.data.processors import ImageProcessor
from nanovlm.settings import fits, shown

# What reading a sample raises where its file is damaged: decoders and data sets each have their own.
DAMAGED = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
IMAGES = (Image.Image, np.ndarray, bytes, bytearray, str, os.PathLike, Mapping)

# FineVision (Wiedmann et al., 2025, arXiv:2510.17269) rates each turn from 1 to 5 in four ways, in a column
# "<name>_ratings": a list with one rating a turn, None where a turn was not rated.
RATINGS = ("relevance", "image_correspondence", "visual_dependency", "formatting")


@dataclass(frozen=True)
class Skipped:
    """Stands for a sample that cannot be used. Collators set it aside, a `Loader` counts it and takes another one."""

    index: int
    reason: str

    def __str__(self) -> str:
        return f"sample {self.index}: {self.reason}"


def check_columns(dataset: Any, wanted: Sequence[str]) -> None:
    """Raise ValueError if a data set that knows its columns (as `datasets.Dataset` does) lacks a wanted one."""
    columns = getattr(dataset, "column_names", None)
    if columns is not None and not set(wanted) <= set(columns):
        raise ValueError(
            f"The data set has the columns {', '.join(columns)}, but {' and '.join(wanted)} are wanted "
            "(the_cauldron's schema, or FineVision's)."
        )


class _Samples(Dataset):
    """What both data sets share: samples by index, and bad ones turned into `Skipped`."""

    columns: tuple[str, ...] = ()
    raw_pixels = False

    def __init__(
        self, dataset: Any, tokenizer: ChatTokenizer, image_processor: ImageProcessor, vlm_cfg: VLMConfig
    ) -> None:
        check_columns(dataset, self.columns)
        self.dataset = dataset
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.vocab_size = vlm_cfg.language.vocab_size
        self.prompt_format = vlm_cfg.prompt_format
        self.num_prefix_tokens = vlm_cfg.num_image_tokens if vlm_cfg.image_token_id is None else 0
        self.num_placeholders = 0 if self.num_prefix_tokens else vlm_cfg.num_image_tokens
        if self.num_placeholders and tokenizer.image_token_id != vlm_cfg.image_token_id:
            raise ValueError(
                f"The tokenizer's image token has id {tokenizer.image_token_id}, the model expects "
                f"{vlm_cfg.image_token_id}: tokenizer and model do not belong together."
            )

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any] | Skipped:
        if not 0 <= index < len(self):
            raise IndexError(f"There is no sample {index} among {len(self)}.")
        try:
            sample = self.dataset[index]
        except DAMAGED as error:  # a damaged file must not end a run of hours
            return Skipped(index, f"cannot be read: {error!r}")
        return self.encode(sample, index)

    def encode(self, sample: Mapping[str, Any], index: int) -> dict[str, Any] | Skipped:
        """One sample -> an item for the collator, or Skipped with the reason."""
        if not isinstance(sample, Mapping) or not set(self.columns) <= set(sample):
            found = (
                " ".join(", ".join(map(str, sample)).split()) if isinstance(sample, Mapping) else type(sample).__name__
            )
            return Skipped(index, f"it has {found[:200]}, but {' and '.join(self.columns)} are wanted")
        try:
            return self._encode(sample, index)
        except (ValueError, OSError) as error:  # sentences of ours; anything else is a mistake in a program
            return Skipped(index, str(error).rstrip("."))

    def _encode(self, sample: Mapping[str, Any], index: int) -> dict[str, Any]:
        raise NotImplementedError

    def _check_images(self, images: Sequence[Any]) -> None:
        if self.num_prefix_tokens and len(images) != 1:
            raise ValueError(f"it has {len(images)} pictures, but this model takes exactly one, in front of the text")

    def _prepare(self, images: Sequence[Any]) -> tuple[torch.Tensor, list[str] | None]:
        """Pixels, and what stands for each picture in the text (how it is cut into tiles decides that)."""
        return self.image_processor.prepare(
            images, self.tokenizer.image_token, self.num_placeholders, raw=self.raw_pixels
        )


class VQADataset(_Samples):
    """Pictures and conversations in the_cauldron's schema -> ids, targets and pixels.

    A sample is {"images": [picture, …], "texts": [{"user": str, "assistant": str, …}, …]} with any number of pictures,
    and in FineVision's schema ratings beside them. All turns are used, but for those that are rated below a minimum;
    only the answers and the tokens that end them are supervised.

    An item is {"input_ids" [T], "targets" [T], "images" [P, 3, H, W], "index", "num_supervised", "truncated"}, with
    P counting tiles where pictures are cut, and T <= max_length less the image tokens that the model puts in front. A
    longer sample is cut at its end, unless that would cut its pictures or leave no supervised token: then it is
    `Skipped`, as one with a bad picture is.

    Args:
        dataset: anything with len() and [index]: a `datasets.Dataset`, a `Thimble`, a list.
        min_ratings: see `messages_of`.
        max_images: skip a sample that has more, tiles counted: memory for pictures knows no rows.
        raw_pixels: leave pixels uint8 where they can be: a quarter of the bytes; `training.step.forward` scales them.
    """

    columns = ("images", "texts")

    def __init__(
        self,
        dataset: Any,
        tokenizer: ChatTokenizer,
        image_processor: ImageProcessor,
        vlm_cfg: VLMConfig,
        max_length: int | None = None,
        min_ratings: Mapping[str, int] | None = None,
        raw_pixels: bool = False,
        max_images: int | None = None,
    ) -> None:
        super().__init__(dataset, tokenizer, image_processor, vlm_cfg)
        self.min_ratings = dict(min_ratings or {})
        if unknown := sorted(set(self.min_ratings) - set(RATINGS)):
            raise ValueError(f"There is no rating called {', '.join(unknown)}; there are {', '.join(RATINGS)}.")
        self.raw_pixels = raw_pixels
        self.max_images = max_images
        self.max_tokens = None if max_length is None else max_length - self.num_prefix_tokens
        if self.max_tokens is not None and self.max_tokens < 2:
            raise ValueError(
                f"max_length {max_length} leaves no room for text beside {self.num_prefix_tokens} image tokens."
            )

    def _encode(self, sample: Mapping[str, Any], index: int) -> dict[str, Any]:
        images = images_of(sample["images"])
        self._check_images(images)
        pixels, image_texts = self._prepare(images)
        if self.max_images is not None and len(pixels) > self.max_images:
            raise ValueError(f"it has {len(pixels)} pictures or tiles, more than max_images {self.max_images}")
        ids, supervised = self.tokenizer.encode_chat(
            messages_of(sample, self.min_ratings),
            num_images=len(images),
            num_image_tokens=self.num_placeholders,
            prompt_format=self.prompt_format,
            image_texts=image_texts,
        )
        if max(ids) >= self.vocab_size:  # here, where the ids are at hand: a GPU would have to be waited for
            raise ValueError(f"token id {max(ids)} is outside the model's vocabulary of {self.vocab_size}")
        truncated = self.max_tokens is not None and len(ids) > self.max_tokens
        if truncated:
            if self.num_placeholders and self.tokenizer.image_token_id in ids[self.max_tokens :]:
                raise ValueError(f"{len(images)} pictures do not fit into {self.max_tokens} tokens")
            ids, supervised = ids[: self.max_tokens], supervised[: self.max_tokens]
        targets = torch.tensor(shift_labels(ids, supervised))
        num_supervised = int((targets != IGNORE).sum())
        if num_supervised == 0:
            raise ValueError(f"no answer within its first {self.max_tokens} tokens" if truncated else "no answer")
        return {
            "input_ids": torch.tensor(ids),
            "targets": targets,
            "images": pixels,
            "index": index,
            "num_supervised": num_supervised,
            "truncated": truncated,
        }


def images_of(column: Any) -> list[Any]:
    """What a data set's column holds -> pictures: a list of them, one alone, a struct of lists, or none (None).

    Raises: ValueError that tells the shape, where it is something else.
    """
    if column is None:
        return []
    if isinstance(column, Mapping) and any(isinstance(value, list) for value in column.values()):
        column = rows_of(column, "images")
    elif isinstance(column, IMAGES):
        column = [column]
    if not isinstance(column, list | tuple):
        raise ValueError(f"its images are pictures or a list of them, not {shown(column)}")
    for number, image in enumerate(column):
        if not _is_image(image):
            raise ValueError(f"picture {number} of {len(column)} is no picture but {shown(image)}")
    return list(column)


def _is_image(value: Any) -> bool:
    if isinstance(value, Mapping):
        known = {"bytes": bytes | None, "path": str | None}
        return set(value) <= UNDECODED_KEYS and all(fits(value[key], known[key]) for key in value)
    return isinstance(value, IMAGES)


def rows_of(column: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """A struct of lists, as older data sets store a list of structs -> the list of structs."""
    lengths = {len(values) for values in column.values() if isinstance(values, list)}
    if len(lengths) != 1 or not all(isinstance(values, list | type(None)) for values in column.values()):
        raise ValueError(f"its {name} are a struct whose lists do not have one length")
    (length,) = lengths
    return [{key: values[i] if values else None for key, values in column.items()} for i in range(length)]


def messages_of(sample: Mapping[str, Any], min_ratings: Mapping[str, int] | None = None) -> list[dict[str, str]]:
    """The turns of a sample (a list, one alone, or a struct of lists) -> chat messages, question and answer in turn.

    Args:
        min_ratings: name of a rating -> the lowest value to keep, as in {"visual_dependency": 3}. A turn is left out,
            question and answer together, if one of its ratings is lower. A turn without a rating is kept.
    Raises: ValueError if there is no turn, one lacks its question or answer, ratings and turns differ in number, or no
        turn is rated high enough.
    """
    turns = sample["texts"]
    if isinstance(turns, Mapping):
        turns = rows_of(turns, "texts") if any(isinstance(text, list) for text in turns.values()) else [turns]
    if turns is not None and not isinstance(turns, list | tuple):
        raise ValueError(f"its texts are a list of turns, not {shown(turns)}")
    if not turns:
        raise ValueError("it has no conversation")
    keep = [True] * len(turns)
    for name, lowest in (min_ratings or {}).items():
        ratings = sample.get(f"{name}_ratings")
        if ratings is None:
            continue
        if not fits(ratings, tuple[float | None, ...]):
            raise ValueError(f"its {name}_ratings are a list of numbers, not {shown(ratings)}")
        if len(ratings) != len(turns):
            raise ValueError(f"it has {len(turns)} turns but {len(ratings)} ratings of {name}")
        keep = [kept and (rating is None or rating >= lowest) for kept, rating in zip(keep, ratings, strict=True)]
    messages = []
    for number, turn in enumerate(turns):
        if not isinstance(turn, Mapping):
            raise ValueError(f"turn {number} is no question with its answer but {shown(turn)}")
        for role in ("user", "assistant"):
            text = turn.get(role)
            if not isinstance(text, str):
                raise ValueError(f"turn {number} has no {role} text")
            if keep[number]:
                messages.append({"role": role, "content": text})
        if keep[number] and not messages[-1]["content"].strip():  # only the token that ends an answer could be learnt
            raise ValueError(f"turn {number} has no answer")
    if not messages:
        raise ValueError(f"none of its {len(turns)} turns is rated high enough")
    return messages
