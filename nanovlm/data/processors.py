"""Pictures -> tensors: resized to a square and scaled to the model's range."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from nanovlm.data.images import open_image
from nanovlm.files import read_json
from nanovlm.pixels import scale_pixels
from nanovlm.settings import fits, shown

PROCESSOR_FILE = "processor_config.json"
PIXEL_RANGES = ("signed", "unit")
RESAMPLING = {name.lower(): Image.Resampling[name] for name in ("NEAREST", "BOX", "BILINEAR", "BICUBIC", "LANCZOS")}


def resized(image: Image.Image, size: int, resample: str) -> torch.Tensor:
    """A PIL RGB picture -> uint8 [3, size, size].

    torch's bilinear and bicubic of uint8 are Pillow's filters in vector instructions, several times as fast: of the
    time from a JPEG to its tensor, more than half was Pillow's resize. The two differ by one level of 255 where both
    resize along rows first, as SigLIP's training did. Pillow 13 takes columns first where that is less work, which is
    seen only where the filter overshoots black or white.
    """
    if image.size == (size, size):
        return ImageProcessor.pixels(image)
    if resample in ("bilinear", "bicubic"):
        pixels = ImageProcessor.pixels(image)[None]
        return F.interpolate(pixels, (size, size), mode=resample, antialias=True)[0]
    return ImageProcessor.pixels(image.resize((size, size), RESAMPLING[resample]))


class ImageProcessor:
    """Pictures -> one float32 tensor [num_images, 3, image_size, image_size].

    The picture is squashed to a square, as SigLIP and nanoVLM do, and its pixels are scaled to

    - "signed": [-1, 1], that is (x / 255 - 0.5) / 0.5, what SigLIP was trained on;
    - "unit": [0, 1], what nanoVLM's published checkpoints were trained on.

    A model loaded with the wrong range still answers, only worse, so the range belongs to the model directory.
    """

    def __init__(self, image_size: int, pixel_range: str = "signed", resample: str = "bicubic") -> None:
        if not fits(image_size, int) or image_size < 1:
            raise ValueError(f"image_size is a positive whole number of pixels, not {shown(image_size)}.")
        if pixel_range not in PIXEL_RANGES:
            raise ValueError(f"pixel_range is one of {', '.join(PIXEL_RANGES)}, not {shown(pixel_range)}.")
        if not fits(resample, str) or resample not in RESAMPLING:
            raise ValueError(f"resample is one of {', '.join(RESAMPLING)}, not {shown(resample)}.")
        self.image_size = image_size
        self.pixel_range = pixel_range
        self.resample = resample

    def __call__(self, images: Any) -> torch.Tensor:
        """One picture (or anything `open_image` takes) gives [1, 3, H, W]; a list of P pictures [P, 3, H, W]."""
        if not isinstance(images, (list, tuple)):
            images = [images]
        return self.to_tensor([self.open(image) for image in images])

    def prepare(
        self, images: Sequence[Any], image_token: str, num_image_tokens: int, raw: bool = False
    ) -> tuple[torch.Tensor, list[str] | None]:
        """Open each picture once -> the model's pixels (raw: as `to_raw` has them), and `image_texts` of them."""
        opened = [self.open(image) for image in images]
        pixels = self.to_raw(opened) if raw else self.to_tensor(opened)
        return pixels, self.image_texts(opened, image_token, num_image_tokens)

    def to_tensor(self, opened: Sequence[Image.Image]) -> torch.Tensor:
        """Pictures as `open` gives them -> [P, 3, H, W] in the model's range."""
        return scale_pixels(self.to_raw(opened), self.pixel_range)

    def to_raw(self, opened: Sequence[Image.Image]) -> torch.Tensor:
        """The same before `scale_pixels`, uint8: what workers send, since a model scales it anywhere in no time."""
        size = self.image_size
        pixels = torch.empty(len(opened), 3, size, size, dtype=torch.uint8)
        for row, image in zip(pixels, opened, strict=True):
            row.copy_(resized(image, size, self.resample))
        return pixels

    def open(self, image: Any) -> Image.Image:
        """Anything that `open_image` takes -> RGB, decoded no larger than needed."""
        return open_image(image, target_size=self.image_size)

    def image_texts(self, opened: Sequence[Image.Image], image_token: str, num_image_tokens: int) -> list[str] | None:
        """What stands for each picture in the text; None: num_image_tokens image tokens and nothing else."""
        return None

    @staticmethod
    def pixels(image: Image.Image) -> torch.Tensor:
        """A PIL RGB picture -> uint8 [3, H, W]"""
        # bytearray: torch wants memory that it may write to
        array = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        return array.view(image.height, image.width, 3).permute(2, 0, 1)  # [H, W, 3] -> [3, H, W]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in self.to_dict().items())})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageProcessor) and self.to_dict() == other.to_dict()

    __hash__ = None

    def to_dict(self) -> dict[str, Any]:
        return {"image_size": self.image_size, "pixel_range": self.pixel_range, "resample": self.resample}

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> ImageProcessor:
        known = ("image_size", "pixel_range", "resample")
        if unknown := sorted(set(settings) - set(known)):
            raise ValueError(f"Unknown image processor setting {', '.join(unknown[:5])}; known are {', '.join(known)}.")
        if "image_size" not in settings:
            raise ValueError("The image processor settings lack image_size.")
        return cls(**settings)

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Write processor_config.json into a model directory, which is created where needed."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        Path(directory, PROCESSOR_FILE).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike) -> ImageProcessor:
        """Read processor_config.json from a model directory. Raises FileNotFoundError or ValueError."""
        path = Path(directory, PROCESSOR_FILE)
        if not path.is_file():
            raise FileNotFoundError(f"No {PROCESSOR_FILE} in {directory}: it says how the model wants its pictures.")
        return cls.from_dict(read_json(path))
