"""A picture as numbers, cut into patches, and how alike the positions of the patches are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from nanovlm.viz.style import Figure, diverging, ink_on, line, png_bytes, raster, rect, svg_figure, text

WIDTH = 700
CHANNELS = ("red", "green", "blue")
MARK = "#14171a"  # on the pale colours of a map, which do not turn round in the dark


def numbers_figure(image: Image.Image, row: int = 0, column: int = 0, size: int = 6) -> Figure:
    """A picture with a window of size x size pixels marked, and the window's bytes, channel by channel.

    row, column: of the window's top left pixel; a window that would leave the picture is moved inside.
    """
    rgb = np.asarray(image.convert("RGB"))
    high, wide = rgb.shape[:2]
    if min(high, wide) < size:
        raise ValueError(f"A picture of {wide} × {high} pixels is smaller than the window of {size} × {size}.")
    row, column = max(0, min(row, high - size)), max(0, min(column, wide - size))
    panel, top, cell, left = 176, 40, 25, 216
    scale = panel / max(high, wide)
    body = [
        text(16, 28, f"{wide} × {high} pixels", 13, font_weight="bold"),
        raster(16, top, wide * scale, high * scale, png_bytes(rgb)),
        rect(16 + column * scale, top + row * scale, size * scale, size * scale, "none", "ink", stroke_width=4),
        rect(16 + column * scale, top + row * scale, size * scale, size * scale, "none", "orange", stroke_width=2.5),
    ]
    for channel, name in enumerate(CHANNELS):
        x0 = left + channel * (size * cell + 10)
        body.append(text(x0, 28, f"channel {channel}: {name}", 13, font_weight="bold"))
        for i in range(size):
            for j in range(size):
                value = int(rgb[row + i, column + j, channel])
                colour = f"#{value:02x}{value:02x}{value:02x}"
                x, y = x0 + j * cell, top + i * cell
                body += [
                    rect(x, y, cell - 1, cell - 1, colour, "line", stroke_width=0.5),
                    text(x + (cell - 1) / 2, y + 16, value, 11, ink_on(colour), "middle"),
                ]
    body.append(text(left, top + size * cell + 20, f"the marked pixels: rows {row} to {row + size - 1}, ", 12, "muted"))
    body.append(text(left + 204, top + size * cell + 20, f"columns {column} to {column + size - 1}", 12, "muted"))
    corner = ", ".join(map(str, rgb[row, column].tolist()))
    alt = (
        f"A picture of {wide} × {high} pixels with a window of {size} × {size} marked at row {row}, column {column}, "
        f"and the window's numbers from 0 to 255 in red, green and blue. Its top left pixel is {corner}."
    )
    return svg_figure(WIDTH, top + panel + 18, body, alt)


def patch_grid_figure(image: Image.Image, patch_size: int) -> Figure:
    """A square picture cut into patches, the beginning of their line, and what the cut costs."""
    side = image.width
    if image.height != side or side % patch_size:
        raise ValueError(
            f"A picture of {side} × {image.height} pixels does not divide into a square grid of {patch_size}-pixel "
            "patches."
        )
    rgb = np.asarray(image.convert("RGB"))
    grid, panel, top, left = side // patch_size, 280, 16, 324
    step, gap = panel / grid, min(4.0, max(1.0, panel / grid / 8))
    body = [raster(16, top, panel, panel, png_bytes(rgb))]
    for k in range(1, grid):
        body += [line(16 + k * step, top, 16 + k * step, top + panel, "card", gap)]
        body += [line(16, top + k * step, 16 + panel, top + k * step, "card", gap)]
    count, wide = grid**2, 3 * patch_size**2
    facts = (
        (f"{grid} × {grid} = {count:,}", "patches" if count > 1 else "patch"),
        (f"{patch_size} × {patch_size} × 3 = {wide:,}", "numbers in each"),
        (f"{count:,} × {count:,} = {count**2:,}", "pairs in attention"),
    )
    body.append(text(left, top + 14, f"Patches of {patch_size} × {patch_size} pixels", 15, font_weight="bold"))
    for i, (number, what) in enumerate(facts):
        body += [text(left, top + 44 + 38 * i, number, 15), text(left, top + 60 + 38 * i, what, 12, "muted")]
    shown, small, y0 = min(count, 18), 36, top + 188
    body.append(text(left, y0 - 10, "the line that the transformer reads:", 12, "muted"))
    for k in range(shown):
        row, column = divmod(k, grid)
        square = rgb[row * patch_size : (row + 1) * patch_size, column * patch_size : (column + 1) * patch_size]
        x, y = left + k % 9 * (small + 4), y0 + k // 9 * (small + 4)
        body += [raster(x, y, small, small, png_bytes(square)), rect(x, y, small, small, "none", "line")]
    if count > shown:
        body.append(text(left, y0 + 2 * (small + 4) + 14, f"… and {count - shown:,} more", 12, "muted"))
    alt = (
        f"A picture of {side} × {side} pixels cut into {grid} × {grid} = {count:,} patches of {patch_size} × "
        f"{patch_size} pixels, with {wide:,} numbers each; attention would compare {count**2:,} pairs. Beside it the "
        f"first {shown} patches as a line, in reading order."
    )
    return svg_figure(WIDTH, top + panel + 16, body, alt)


def similarity(positions: Tensor) -> Tensor:
    """Cosine similarity of each position with each, their mean taken off first. [N, dim] -> [N, N], -1 to 1

    What all positions share says nothing about the place, and would only make all of them look alike.
    """
    spread = positions.detach().float() - positions.detach().float().mean(dim=0)
    spread = spread / spread.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return spread @ spread.T


def similarity_figure(positions: Tensor, row: int, column: int, title: str = "") -> Figure:
    """How alike one patch's position vector is to all others, and the same for every patch in small.

    Args:
        positions: [grid * grid, dim] or [1, grid * grid, dim]
        row, column: of the patch; beyond the grid, the last one.
    """
    positions = positions.reshape(-1, positions.shape[-1])
    grid = round(len(positions) ** 0.5)
    if grid * grid != len(positions):
        raise ValueError(f"{len(positions)} positions are not a square grid.")
    row, column = min(row, grid - 1), min(column, grid - 1)
    alike = similarity(positions).reshape(grid, grid, grid, grid)  # [row, column, row, column]
    panel, top, left = 304, 44, 348
    cell = panel / grid
    heading = f"{title}, row {row}, column {column}" if title else f"Row {row}, column {column}"
    body = [text(16, 30, heading, 14, font_weight="bold")]
    for i in range(grid):
        for j in range(grid):
            value = float(alike[row, column, i, j])
            colour, x, y = diverging(value), 16 + j * cell, top + i * cell
            body.append(rect(x, y, cell - 1, cell - 1, colour))
            if cell >= 30:
                shown = f"{value:.1f}".replace("-0.0", "0.0")
                body.append(text(x + (cell - 1) / 2, y + cell / 2 + 4, shown, 11, ink_on(colour), "middle"))
    x, y = 16 + column * cell, top + row * cell
    body += [
        rect(x - 1, y - 1, cell + 1, cell + 1, "none", MARK, stroke_width=3),
        text(left, 30, "the same for every patch", 14, font_weight="bold"),
        raster(left, top, panel, panel, png_bytes(_overview(alike.numpy()))),
    ]
    x, y, small = left + column * panel / grid, top + row * panel / grid, panel / grid
    body += [rect(x, y, small, small, "none", MARK, stroke_width=2)]
    body += _scale(16, top + panel + 14)
    near = [
        float(alike[row, column, i, j])
        for i, j in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1))
        if 0 <= i < grid and 0 <= j < grid
    ]
    mean = sum(near) / len(near) if near else 0.0
    about = f"{title}. " if title else ""
    alt = (
        f"{about}Similarity of the position at row {row}, column {column} with each of the {grid} × {grid} places, "
        f"from -1 to 1. With itself it is 1; with its next neighbours {mean:.2f} on average. Beside it the same map "
        "for every place, in small."
    )
    return svg_figure(WIDTH, top + panel + 44, body, alt)


# -- pieces of the above -----------------------------------------------------------------------------------------------


def _overview(alike: np.ndarray) -> np.ndarray:
    """Every patch's map side by side, one pixel for each number and a pale line between maps: [S, S, 3]"""
    grid = alike.shape[0]
    pitch = grid + 1
    out = np.full((grid * pitch, grid * pitch, 3), 252, dtype=np.uint8)
    colours = {step: _bytes(diverging(step / 50)) for step in range(-50, 51)}
    steps = np.clip(np.rint(alike * 50), -50, 50).astype(int)
    for row, column, i, j in np.ndindex(*alike.shape):
        out[row * pitch + i, column * pitch + j] = colours[steps[row, column, i, j]]
    return out


def _bytes(colour: str) -> Sequence[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def _scale(x: float, y: float) -> list[str]:
    """What the colours mean."""
    parts = [text(x, y + 11, "opposite  -1", 12, "muted")]
    for k in range(21):
        parts.append(rect(x + 82 + k * 9, y, 9, 14, diverging(k / 10 - 1)))
    parts.append(text(x + 280, y + 11, "1  the same", 12, "muted"))
    return [*parts, text(x + 400, y + 11, "white: 0, nothing in common", 12, "muted")]
