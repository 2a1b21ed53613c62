"""High resolution: a picture is cut into tiles of the encoder's size, and a view of the whole stands beside them.

Two layouts, each with its own rule for sizes and its own tokens, as published:

- smolvlm (Marafioti et al. 2025, https://arxiv.org/abs/2504.05299; transformers' SmolVLM and Idefics3 processors):
  the tiles row by row, each behind a fake token and its place, then the view of the whole;
- nanovlm (its tiled models, 230M-8k and 460M-8k): the view of the whole first, then the tiles, each behind its place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from nanovlm.config import TilingConfig, VLMConfig, config_from_dict
from nanovlm.data.images import open_image
from nanovlm.data.processors import RESAMPLING, ImageProcessor
from nanovlm.pixels import scale_pixels

FAKE, SMOLVLM_GLOBAL = "<fake_token_around_image>", "<global-img>"
NANOVLM_GLOBAL = "<|global_image|>"
PUBLISHED_RESAMPLING = {"smolvlm": "lanczos", "nanovlm": "bicubic"}
Size = tuple[int, int]  # width, height in pixels, as PIL has it
Grid = tuple[int, int]  # rows, columns of tiles


def place_token(row: int, column: int) -> str:
    return f"<row_{row + 1}_col_{column + 1}>"


def tile_tokens(tiling: TilingConfig, tile_size: int) -> list[str]:
    """The special tokens that a tokenizer needs for this layout, beside the image token."""
    side = math.ceil((tiling.max_side or tile_size) / tile_size)
    places = [place_token(row, column) for row in range(side) for column in range(side)] if tiling.split else []
    if tiling.layout == "smolvlm":
        return [FAKE, SMOLVLM_GLOBAL, *places]
    return [NANOVLM_GLOBAL, *places] if tiling.global_view else places


def _even(length: float) -> int:
    return int(length) + int(length) % 2


def scale_to_longest(size: Size, longest: int) -> Size:
    """SmolVLM's rule: the longer side becomes `longest`, the shorter one keeps the shape, rounded up to even."""
    width, height = size
    shape = width / height
    if width >= height:
        return longest, max(_even(longest / shape), 1)
    return max(_even(longest * shape), 1), longest


def fill_tiles(size: Size, tile: int) -> Size:
    """SmolVLM's rule: both sides become multiples of the tile, the longer one first."""
    width, height = size
    shape = width / height
    if width >= height:
        width = math.ceil(width / tile) * tile
        height = math.ceil(int(width / shape) / tile) * tile
    else:
        height = math.ceil(height / tile) * tile
        width = math.ceil(int(height * shape) / tile) * tile
    return max(width, tile), max(height, tile)


def nanovlm_size(size: Size, tile: int, tiling: TilingConfig) -> Size:
    """nanoVLM's rule: the longer side becomes a multiple of the tile, at most max_side; the shorter is rounded up."""
    width, height = size
    longer, shorter = max(size), min(size)
    target = math.ceil(longer / tile) * tile
    if tiling.max_side is not None:
        target = tiling.max_side if tiling.upscale else min(target, tiling.max_side)
    other = max(math.ceil(shorter * (target / longer) / tile) * tile, tile)
    return (target, other) if width >= height else (other, target)


class TiledImageProcessor(ImageProcessor):
    """Pictures -> one float32 tensor [tiles of all pictures, 3, image_size, image_size], and what stands for each
    picture in the text. Only a picture's size decides how it is cut."""

    def __init__(
        self,
        image_size: int,
        pixel_range: str = "signed",
        resample: str | None = None,
        tiling: TilingConfig | None = None,
    ) -> None:
        self.tiling = tiling or TilingConfig()
        super().__init__(image_size, pixel_range, resample or PUBLISHED_RESAMPLING[self.tiling.layout])
        limit = self.tiling.max_side
        if self.tiling.layout == "nanovlm" and limit is not None and limit % image_size:
            raise ValueError(f"max_side {limit} is not a multiple of the tile, {image_size} pixels.")

    def _sizes(self, size: Size) -> list[Size]:
        """The sizes through which a picture is resized. SmolVLM resizes twice, which is not the same as once."""
        tiling, tile = self.tiling, self.image_size
        if tiling.layout == "nanovlm":
            return [nanovlm_size(size, tile, tiling) if tiling.split else (tile, tile)]
        sizes = []
        if tiling.max_side is not None and (tiling.upscale or max(size) > tiling.max_side):
            sizes.append(scale_to_longest(size, tiling.max_side))
        sizes.append(fill_tiles([size, *sizes][-1], tile) if tiling.split else (tile, tile))
        return sizes

    def grid(self, size: Size) -> Grid:
        """(rows, columns) of tiles for a picture of (width, height). (1, 1): the picture is one tile, not cut."""
        width, height = self._sizes(size)[-1]
        return height // self.image_size, width // self.image_size

    def num_tiles(self, size: Size) -> int:
        """Tiles, the view of the whole included."""
        rows, columns = self.grid(size)
        return rows * columns + (rows * columns > 1 and self.tiling.global_view)

    def open(self, image: Any) -> Image.Image:
        """Anything that `open_image` takes -> RGB at its full size, which decides the tiles."""
        return open_image(image)

    def to_raw(self, opened: Sequence[Image.Image]) -> Tensor:
        """Pictures as `open` gives them -> the tiles of all of them, in order: uint8, but for nanoVLM's layout with a
        view of the whole, which is made of scaled pixels and would not survive the rounding."""
        tiles = [self._tiles(image) for image in opened]
        return torch.cat(tiles) if tiles else super().to_raw([])

    def _tiles(self, image: Image.Image) -> Tensor:
        rows, columns = self.grid(image.size)
        for size in self._sizes(image.size):
            image = image.resize(size, RESAMPLING[self.resample])
        side = self.image_size
        pixels = self.pixels(image)  # [3, rows * side, columns * side]
        if self.tiling.layout == "nanovlm" and self.tiling.global_view:
            pixels = scale_pixels(pixels, self.pixel_range)
        tiles = pixels.view(3, rows, side, columns, side).permute(1, 3, 0, 2, 4).reshape(-1, 3, side, side)
        if len(tiles) == 1 or not self.tiling.global_view:
            return tiles
        if self.tiling.layout == "smolvlm":
            whole = self.pixels(image.resize((side, side), RESAMPLING[self.resample]))
            return torch.cat([tiles, whole[None]])
        whole = F.interpolate(pixels[None], (side, side), mode="bilinear", antialias=True)  # as torchvision's resize
        return torch.cat([whole, tiles])

    def image_texts(self, opened: Sequence[Image.Image], image_token: str, num_image_tokens: int) -> list[str]:
        """What stands for each picture in the text: per tile its place and num_image_tokens image tokens."""
        grids = [self.grid(image.size) for image in opened]
        tile = image_token * num_image_tokens
        if self.tiling.layout == "smolvlm":
            return [_smolvlm_text(*grid, tile) for grid in grids]
        texts = [self._nanovlm_text(*grid, tile) for grid in grids]
        return [f"<image: {i}>{text}" for i, text in enumerate(texts)] if len(texts) > 1 else texts

    def _nanovlm_text(self, rows: int, columns: int, tile: str) -> str:
        if self.tiling.global_view and rows * columns == 1:
            return NANOVLM_GLOBAL + tile
        places = "".join(place_token(row, column) + tile for row in range(rows) for column in range(columns))
        return NANOVLM_GLOBAL + tile + places if self.tiling.global_view else places

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "tiling": vars(self.tiling)}

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> ImageProcessor:
        """Without a "tiling" among the settings they are those of a plain ImageProcessor."""
        tiling = settings.get("tiling")
        plain = ImageProcessor.from_dict({key: value for key, value in settings.items() if key != "tiling"})
        return plain if tiling is None else cls(**plain.to_dict(), tiling=config_from_dict(TilingConfig, tiling))


def _smolvlm_text(rows: int, columns: int, tile: str) -> str:
    whole = f"{FAKE}{SMOLVLM_GLOBAL}{tile}{FAKE}"
    if rows * columns == 1:
        return whole
    lines = ("".join(FAKE + place_token(r, c) + tile for c in range(columns)) + "\n" for r in range(rows))
    return "".join(lines) + "\n" + whole


def load_image_processor(directory: str | Path) -> ImageProcessor:
    """The processor that a model directory's processor_config.json describes."""
    return TiledImageProcessor.from_pretrained(directory)


def make_image_processor(config: VLMConfig) -> ImageProcessor:
    """The processor that a model of this config needs."""
    if config.tiling is None:
        return ImageProcessor(config.vision.image_size, config.pixel_range)
    return TiledImageProcessor(config.vision.image_size, config.pixel_range, tiling=config.tiling)
