"""Space to depth, the patches that one token holds, and what a picture's tokens cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from nanovlm.viz.style import Figure, arrow, line, png_bytes, raster, rect, svg_figure, text

WIDTH = 700


def stages_figure(image: Image.Image, factors: Sequence[int] = (1, 2, 4, 8)) -> Figure:
    """One grey picture, shuffled by each factor: from one large channel to many small ones. At most four factors."""
    grey = _grey(image, factors)
    side, panel, body, told = len(grey), 152, [], []
    for i, r in enumerate(factors):
        x = 16 + i * (panel + 20)
        shape = f"{side // r} × {side // r} × {r * r}"
        body += [
            text(x, 30, shape, 15, font_weight="bold"),
            *_channels(grey, r, x, 42, panel),
            text(x, 42 + panel + 20, f"r = {r}: {r * r} channel{'s' * (r > 1)}", 13),
            text(x, 42 + panel + 37, f"{(side // r) ** 2:,} places × {r * r} = {side * side:,}", 13, "muted"),
        ]
        told.append(f"r = {r}: {shape}")
    alt = (
        f"One grey picture as space to depth leaves it. {'; '.join(told)}. Each channel is a small copy of the whole "
        "picture, made of every r-th pixel; the area in all is the same."
    )
    return svg_figure(WIDTH, 42 + panel + 52, body, alt)


def shuffle_figure(image: Image.Image, r: int, row: int = 3, column: int = 3) -> Figure:
    """A grey picture with one r x r group marked, and its channels, with the group's place marked in each.

    row, column: of the group; a place outside of the picture becomes the nearest one inside.
    """
    grey = _grey(image, (r,))
    side, panel, top = len(grey), 296, 44
    row, column = min(row, side // r - 1), min(column, side // r - 1)
    size, left = panel * r / side, 384  # pixels of a group on the page; where the channels begin
    cell = panel / r
    place = cell / (side // r)  # one value of a channel, on the page
    body = [
        text(16, 30, f"{side} × {side} × 1", 15, font_weight="bold"),
        raster(16, top, panel, panel, png_bytes(np.stack([grey] * 3, -1))),
        rect(16 + column * size, top + row * size, size, size, "none", "orange", stroke_width=3),
        arrow(326, top + panel / 2, 370, top + panel / 2),
        text(348, top + panel / 2 - 10, f"r = {r}", 13, anchor="middle"),
        text(left, 30, f"{side // r} × {side // r} × {r * r}", 15, font_weight="bold"),
        *_channels(grey, r, left, top, panel),
    ]
    for i in range(r):
        for j in range(r):
            x, y = left + j * cell + column * place, top + i * cell + row * place
            mark = max(place, 4)  # a mark as small as a value of r = 1 would not be seen
            body.append(rect(x, y, mark, mark, "none", "orange", stroke_width=1.5))
    count = "1 number" if r == 1 else f"{r * r} numbers"
    body += [
        text(16, top + panel + 22, f"The marked group is {r} × {r} pixels.", 13),
        text(left, top + panel + 22, f"It becomes one place with {count}.", 13),
    ]
    alt = (
        f"Pixel shuffle with r = {r}. Left, a picture of {side} × {side} with one group of {r} × {r} marked. Right, "
        f"{r * r} channel(s) of {side // r} × {side // r}; the group is the marked place, one number in each channel."
    )
    return svg_figure(WIDTH, top + panel + 38, body, alt)


def token_figure(image: Image.Image, tokens: Sequence[Sequence[int]], token: int) -> Figure:
    """Which part of a picture is one image token?

    Args:
        tokens: for each token its patches, counted in reading order, as `nanovlm.trace.show.patch_map(…).tokens`.
        token: the one to show; beyond the last one, the last.
    """
    num_patches = sum(map(len, tokens))
    grid = round(num_patches**0.5)
    if grid * grid != num_patches:
        raise ValueError(f"The tokens hold {num_patches} patches in all, which is no square grid.")
    token = min(token, len(tokens) - 1)
    held, panel, left, top = list(tokens[token]), 272, 324, 16
    image = image.convert("RGB").resize((panel, panel), Image.Resampling.BICUBIC)
    size = panel / grid
    corner = {p: (16 + p % grid * size, top + p // grid * size) for p in held}
    body = [raster(16, top, panel, panel, png_bytes(image))]
    for i in range(grid + 1):
        body += [line(16 + i * size, top, 16 + i * size, top + panel, "card", 1)]
        body += [line(16, top + i * size, 16 + panel, top + i * size, "card", 1)]
    body += [rect(x, y, size, size, "none", "orange", stroke_width=3) for x, y in corner.values()]
    per_row, pitch = (8, 45) if len(held) <= 16 else (16, 22.5)
    body += [
        text(left, top + 14, f"Token {token} of {len(tokens)}, counted from 0", 15, font_weight="bold"),
        text(left, top + 36, "holds these patches, end to end:" if len(held) > 1 else "holds this patch:", 13, "muted"),
    ]
    y = top + 46.0
    for k, patch in enumerate(held):
        x, y = left + k % per_row * pitch, top + 46 + k // per_row * (pitch + 16 * (per_row == 8))
        px, py = round(patch % grid * size), round(patch // grid * size)
        crop = image.crop((px, py, round(px + size), round(py + size)))
        wide = pitch - 4
        body += [raster(x, y, wide, wide, png_bytes(crop)), rect(x, y, wide, wide, "none", "orange")]
        if per_row == 8:
            body.append(text(x + wide / 2, y + wide + 12, patch, 13, "muted", "middle"))
    y = max(y + pitch + 34, top + 166)
    side, small = round(len(tokens) ** 0.5), 96
    body.append(text(left, y, f"The sequence of {len(tokens)} image tokens, as a grid:", 13, "muted"))
    for t in range(len(tokens)):
        x0, y0 = left + t % side * small / side, y + 10 + t // side * small / side
        fill, gap = ("orange" if t == token else "soft"), min(2, small / side / 4)
        body.append(rect(x0, y0, small / side - gap, small / side - gap, fill, "line", stroke_width=0.5))
    alt = (
        f"A picture of {grid} × {grid} patches. Token {token} of {len(tokens)} holds "
        f"{'patch' if len(held) == 1 else 'patches'} {', '.join(map(str, held))}, which are outlined."
    )
    return svg_figure(WIDTH, max(top + panel + 16, y + small + 26), body, alt)


def images_row(images: Sequence[Image.Image], captions: Sequence[str]) -> Figure:
    """Small pictures side by side (at most three), pixels enlarged, each with a line of words below."""
    side, body = 208, []
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x = 16 + i * (side + 22)
        body += [raster(x, 16, side, side, png_bytes(image.convert("RGB"))), text(x, 16 + side + 20, caption, 13)]
    return svg_figure(WIDTH, side + 52, body, "Pictures from left to right: " + "; ".join(captions) + ".")


class Cost(NamedTuple):
    """What the decoder does for one prompt, in floating-point operations."""

    r: int
    image_tokens: int
    linear: float  # in the linear layers
    attention: float  # in scores and weighted sums


def cost_bars(costs: Sequence[Cost], text_tokens: int) -> Figure:
    """For each r, the decoder's operations: linear layers and attention, and how many times less than the first."""
    x0, full = 172, 330
    most = max(cost.linear + cost.attention for cost in costs)
    body = [
        rect(x0, 18, 26, 10, "blue", rx=2),
        text(x0 + 32, 27, "linear layers", 13),
        rect(x0 + 140, 18, 26, 10, "orange", rx=2),
        text(x0 + 172, 27, "attention", 13),
    ]
    told = []
    for i, cost in enumerate(costs):
        y, total = 48 + i * 46, cost.linear + cost.attention
        wide, first = full * cost.linear / most, costs[0].linear + costs[0].attention
        times = "" if i == 0 else f"{first / total:.1f} times less" if total else "nothing"
        body += [
            text(16, y + 13, f"r = {cost.r}", 14, font_weight="bold"),
            text(16, y + 29, f"{cost.image_tokens:,} + {text_tokens:,} tokens", 13, "muted"),
            rect(x0, y, max(wide, 0.5), 22, "blue", rx=2),
            rect(x0 + wide, y, max(full * cost.attention / most, 0.5), 22, "orange", rx=2),
            text(x0 + full * total / most + 10, y + 10, f"{total / 1e9:,.1f} billion", 13, font_weight="bold"),
            text(x0 + full * total / most + 10, y + 26, times, 13, "muted"),
        ]
        share = cost.attention / total if total else 0
        told.append(
            f"r = {cost.r}: {cost.image_tokens:,} image tokens, {total / 1e9:,.1f} billion, "
            f"of which attention {share:.0%}"
        )
    alt = f"The decoder's operations for one picture and {text_tokens:,} text tokens. " + "; ".join(told) + "."
    return svg_figure(WIDTH, 48 + 46 * len(costs) + 4, body, alt)


# -- pieces of the above -----------------------------------------------------------------------------------------------


def _grey(image: Image.Image, factors: Sequence[int]) -> np.ndarray:
    grey = np.asarray(image.convert("L"))
    if grey.shape[0] != grey.shape[1] or any(grey.shape[0] % r for r in factors):
        wanted = ", ".join(map(str, factors))
        raise ValueError(
            f"A picture of {grey.shape[1]} × {grey.shape[0]} pixels is not a square that divides by {wanted}."
        )
    return grey


def _channels(grey: np.ndarray, r: int, x: float, y: float, panel: float) -> list[str]:
    """The r * r channels of a shuffled picture as small pictures, channel 0 top left, in reading order."""
    side = len(grey) // r
    apart = grey.reshape(side, r, side, r).transpose(1, 3, 0, 2)  # [r, r, row, column]
    mosaic = apart.transpose(0, 2, 1, 3).reshape(r * side, r * side)
    cell = panel / r
    lines = []
    for i in range(1, r):
        lines += [line(x + i * cell, y, x + i * cell, y + panel, "card", 2)]
        lines += [line(x, y + i * cell, x + panel, y + i * cell, "card", 2)]
    return [raster(x, y, panel, panel, png_bytes(np.stack([mosaic] * 3, -1))), *lines]
