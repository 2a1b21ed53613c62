"""Pictures with their captions as tensors, for the contrastive training of chapter 02."""

from __future__ import annotations

import re

import torch
from PIL import Image
from torch import Tensor

from nanovlm.data.processors import ImageProcessor
from nanovlm.data.thimble import thimble_sample

SIZE = 32  # pixels: a quarter of the patches of the pocket model's pictures


def _words(caption: str) -> list[str]:
    return re.findall(r"\w+", caption)


class CaptionPairs:
    """Scenes of the Thimble, each with its caption.

    images: [count, 3, 32, 32]; captions: [count, words], whole numbers, 0 behind the end; texts, pictures: to show.
    """

    def __init__(self, split: str, count: int, vocabulary: dict[str, int] | None = None) -> None:
        samples = [thimble_sample("shapes", split, i, image_size=SIZE) for i in range(count)]
        self.texts: list[str] = [sample["texts"][-1]["assistant"] for sample in samples]
        self.pictures: list[Image.Image] = [sample["images"][0] for sample in samples]
        self.images: Tensor = ImageProcessor(SIZE)(self.pictures)
        words = sorted({word for text in self.texts for word in _words(text)})
        self.vocabulary = vocabulary or {word: number for number, word in enumerate(words, start=1)}
        longest = 16  # four places of two words, each with two words or one
        self.captions = torch.zeros(count, longest, dtype=torch.long)
        for row, text in zip(self.captions, self.texts, strict=True):
            numbers = [self.vocabulary[word] for word in _words(text)]
            row[: len(numbers)] = torch.tensor(numbers)
