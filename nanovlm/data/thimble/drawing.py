"""Anti-aliased pictures from distance fields, and the random numbers behind them.

Every outline (a heart, a bar, a letter) is a set of points, edges or polygons together with a radius. The signed
distance to it, in pixels, gives everything that a pleasant picture needs: coverage (anti-aliasing), a darker rim and a
soft shadow. Distances are computed for the size that is drawn, so 32 px and 512 px are equally crisp, and the masks are
cached, so a picture costs a few pastes. No font file, no system library and no platform decides a pixel.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image

Colour = tuple[int, int, int]
Point = tuple[float, float]
T = TypeVar("T")

# Six hues with six luminances (purple darkest, yellow lightest): hue alone need not tell them apart.
PALETTE: dict[str, Colour] = {
    "red": (209, 38, 48),
    "green": (38, 164, 104),
    "blue": (38, 104, 214),
    "yellow": (248, 210, 46),
    "purple": (112, 48, 160),
    "orange": (245, 136, 28),
}
COLOURS = tuple(PALETTE)
INK: Colour = (58, 62, 74)


class Draws(random.Random):
    """Random draws that are the same on every platform and Python version.

    Python promises stability for string seeds and for `random()` only, hence everything here is built on that.
    """

    def __init__(self, *key: object):
        super().__init__("/".join(map(str, key)))

    def below(self, n: int) -> int:
        return int(self.random() * n)

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self.random() * len(items))]

    def coin(self, probability: float = 0.5) -> bool:
        return self.random() < probability

    def some(self, items: Sequence[T], count: int) -> list[T]:
        """`count` different items in random order (Fisher-Yates on `random()` alone)."""
        pool = list(items)
        for i in range(count):
            j = i + self.below(len(pool) - i)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:count]

    def weighted(self, items: Sequence[T], weights: Sequence[float]) -> T:
        point = self.random() * sum(weights)
        for item, weight in zip(items, weights, strict=True):
            point -= weight
            if point < 0:
                return item
        return items[-1]


def stable_bucket(text: str, buckets: int) -> int:
    """A bucket for `text` that never changes (Python's own `hash` differs from run to run)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=b"thimble").digest(), "big") % buckets


def bucket_split(text: str) -> str:
    """The split that owns this content: 80 % train, 10 % val, 10 % test, whatever the seed."""
    return {0: "test", 1: "val"}.get(stable_bucket(text, 10), "train")


class Outline(NamedTuple):
    """Paths in unit coordinates (y down), thickened or rounded by `radius`; closed paths are filled."""

    paths: tuple[tuple[Point, ...], ...]
    radius: float
    closed: bool = True


def rectangle(width: float, height: float, radius: float) -> Outline:
    """A rectangle around the origin with round corners; width and height include the rounding."""
    x, y = width / 2 - radius, height / 2 - radius
    return Outline((((-x, -y), (x, -y), (x, y), (-x, y)),), radius)


def signed_distance(outline: Outline, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance [height, width] from each point to the outline's border, negative inside."""
    nearest = np.full(x.shape, np.inf)
    inside = np.zeros(x.shape, dtype=bool)
    for path in outline.paths:
        ends = path[1:] + path[:1] if outline.closed or len(path) == 1 else path[1:]
        for (ax, ay), (bx, by) in zip(path, ends, strict=False):
            ex, ey = bx - ax, by - ay
            along = np.clip(((x - ax) * ex + (y - ay) * ey) / max(ex * ex + ey * ey, 1e-12), 0.0, 1.0)
            nearest = np.minimum(nearest, np.sqrt((x - ax - along * ex) ** 2 + (y - ay - along * ey) ** 2))
            if outline.closed and ay != by:
                inside ^= ((ay > y) != (by > y)) & (x < ax + (y - ay) * ex / (by - ay))
    return np.where(inside, -nearest, nearest) - outline.radius


class Masks(NamedTuple):
    left: int
    top: int
    shadow: Image.Image
    rim: Image.Image
    fill: Image.Image


@lru_cache(maxsize=2048)
def masks(outline: Outline, scale: float, phase_x: float, phase_y: float, unit: float) -> Masks:
    """Coverage masks of an outline `scale` pixels per unit, its origin at (phase_x, phase_y) within a pixel.

    `unit` is the picture's size / 64: rims and shadows grow with the picture.
    """
    points = np.array([point for path in outline.paths for point in path])
    reach = (outline.radius * scale) + 3.0 * unit
    left, top = np.floor(points.min(axis=0) * scale - reach).astype(int)
    right, bottom = np.ceil(points.max(axis=0) * scale + reach).astype(int) + 1
    y, x = np.mgrid[top:bottom, left:right] + 0.5

    def field(shift: float) -> np.ndarray:
        return scale * signed_distance(outline, (x - phase_x) / scale, (y - phase_y - shift) / scale)

    def image(coverage: np.ndarray) -> Image.Image:
        return Image.fromarray(np.round(255 * np.clip(coverage, 0.0, 1.0)).astype(np.uint8))

    distance = field(0.0)
    shadow = 0.22 * np.clip(0.5 - field(0.9 * unit) / (2.6 * unit), 0.0, 1.0)
    return Masks(int(left), int(top), image(shadow), image(0.5 - distance), image(0.5 - distance - 0.8 * unit))


def stamp(
    canvas: Image.Image, outline: Outline, x: float, y: float, scale: float, colour: Colour, rim: bool = True
) -> None:
    """Paint an outline with its origin at pixel (x, y): soft shadow, darker rim, flat colour."""
    unit = canvas.width / 64
    # Eighths of a pixel: finer than the eye, few enough to cache.
    x, y = round(8 * x) / 8, round(8 * y) / 8
    cut = masks(outline, scale, x % 1, y % 1, unit)
    corner = (int(x // 1) + cut.left, int(y // 1) + cut.top)
    if rim:
        canvas.paste((40, 40, 60), corner, cut.shadow)
        canvas.paste(tuple(channel * 3 // 4 for channel in colour), corner, cut.rim)
    canvas.paste(colour, corner, cut.fill if rim else cut.rim)


@lru_cache(maxsize=16)
def _vignette(size: int) -> Image.Image:
    axis = (np.arange(size) + 0.5) / size - 0.5
    glow = np.clip(axis[:, None] * 0.9 + 0.35 + 1.2 * (axis[:, None] ** 2 + axis[None, :] ** 2), 0.0, 1.0)
    return Image.fromarray(np.round(255 * glow).astype(np.uint8))


def backdrop(draws: Draws, image_size: int) -> Image.Image:
    """A light, faintly tinted page that darkens a little towards the bottom."""
    level = 240 + draws.below(10)
    tint = tuple(level + draws.below(7) - 1 for _ in range(3))
    canvas = Image.new("RGB", (image_size, image_size), tint)
    canvas.paste(tuple(channel - 14 for channel in tint), (0, 0), _vignette(image_size))
    return canvas


def vary(draws: Draws, colour: Colour, amount: int = 8) -> Colour:
    """The same colour under slightly different light."""
    return tuple(min(255, max(0, channel + draws.below(2 * amount + 1) - amount)) for channel in colour)
