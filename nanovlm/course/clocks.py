"""A picture that chapter 08's project begins with: a dial with two hands."""

from __future__ import annotations

import math

from PIL import Image, ImageDraw


def clock_face(hour: int, minute: int, size: int = 64) -> Image.Image:
    """The hour hand is short and thick, and goes on between the hours."""
    image = Image.new("RGB", (size, size), "white")
    draw, middle = ImageDraw.Draw(image), size / 2
    draw.ellipse((3, 3, size - 4, size - 4), outline="black", width=2)
    for turn, length, width in (((hour + minute / 60) / 12, 0.25, 4), (minute / 60, 0.4, 2)):
        angle = 2 * math.pi * turn
        tip = middle + size * length * math.sin(angle), middle - size * length * math.cos(angle)
        draw.line((middle, middle, *tip), fill="black", width=width)
    return image
