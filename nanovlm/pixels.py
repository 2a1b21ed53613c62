"""Pixels on their way: a quarter of the bytes as uint8, scaled to the model's range where the model is."""

from __future__ import annotations

import torch
from torch import Tensor


def scale_pixels(pixels: Tensor, pixel_range: str) -> Tensor:
    """uint8 0..255 -> float32, "signed": [-1, 1] or "unit": [0, 1]. Anything else is scaled already, and returned."""
    if pixels.dtype != torch.uint8:
        return pixels
    if pixel_range == "signed":
        return pixels.float().div_(127.5).sub_(1.0)
    return pixels.float().div_(255.0)
