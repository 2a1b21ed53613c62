"""Large pictures: what is left of them at low resolution, their tiles, and what those cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from nanovlm.viz.style import CYCLE, Figure, line, path, png_bytes, raster, rect, svg_figure, text

WIDTH = 700
DASHES = ("none", "7 5", "2 4")  # beside the colour, to tell lines apart


class Plan(NamedTuple):
    """How a picture is shown to a model. Sizes are (width, height) in pixels."""

    size: tuple[int, int]
    resized: tuple[int, int]
    rows: int
    columns: int
    whole_first: bool
    image_tokens: int  # of one view
    special_tokens: int  # of the whole picture: places, fake tokens

    @property
    def views(self) -> int:
        return self.rows * self.columns + (self.rows * self.columns > 1)

    @property
    def tokens(self) -> int:
        return self.views * self.image_tokens + self.special_tokens


def image_figure(image: Image.Image, alt: str) -> Figure:
    """One picture alone, at most 400 pixels wide on the page."""
    scale = min(400 / max(image.size), 1)
    wide, tall = image.width * scale, image.height * scale
    return svg_figure(wide + 32, tall + 32, raster(16, 16, wide, tall, png_bytes(image.convert("RGB"))), alt)


def shrunk_row(
    images: Sequence[Image.Image], captions: Sequence[str], what: str = "The same picture with ever fewer pixels"
) -> Figure:
    """One to four square pictures, all enlarged to one size, pixels left as squares. what: said of them all."""
    side, body = (WIDTH - 32 - 3 * 14) / 4, []
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x = 16 + i * (side + 14)
        body += [raster(x, 16, side, side, png_bytes(image.convert("RGB"))), text(x, 16 + side + 20, caption, 13)]
    alt = f"{what}, from left to right: " + "; ".join(captions) + "."
    return svg_figure(WIDTH, side + 50, body, alt)


def tiles_figure(views: Tensor, rows: int, columns: int, whole_first: bool = False) -> Figure:
    """The views of one picture, [views, 3, side, side] in [-1, 1], in their places, numbered in their order."""
    num_tiles = rows * columns
    if len(views) != num_tiles + (num_tiles > 1):
        raise ValueError(f"{rows} x {columns} tiles and a view of the whole are not {len(views)} views.")
    pixels = ((views.permute(0, 2, 3, 1) + 1) * 127.5).round().clamp(0, 255).to("cpu").numpy().astype(np.uint8)
    offset = int(whole_first and num_tiles > 1)
    cell, gap, line_gap, top, left = min(112.0, 420 / columns, 380 / rows), 8, 22, 34, 16
    tall = max(rows * (cell + line_gap), 214.0)
    body = [text(left, 22, f"{rows} × {columns} tiles, each the encoder's size", 13, font_weight="bold")]
    if num_tiles == 1:
        body = [text(left, 22, "one view: the picture is not cut", 13, font_weight="bold")]
    for i in range(num_tiles):
        x, y = left + i % columns * (cell + gap), top + i // columns * (cell + line_gap)
        body += [raster(x, y, cell, cell, png_bytes(pixels[i + offset])), _turn(x + cell / 2, y + cell, i + offset + 1)]
    if num_tiles > 1:
        x = 484
        turn = 1 if whole_first else len(views)
        body += [
            text(x, 22, f"and the whole, {'first' if whole_first else 'last'}", 13, font_weight="bold"),
            raster(x, top, 192, 192, png_bytes(pixels[0 if whole_first else -1])),
            _turn(x + 96, top + 192, turn),
        ]
    alt = (
        f"A picture cut into {rows} rows and {columns} columns of tiles, numbered in reading order, "
        f"and a small view of the whole, number {1 if whole_first else len(views)} of {len(views)}."
        if num_tiles > 1
        else "A picture that is one view, not cut."
    )
    return svg_figure(WIDTH, top + tall + 6, body, alt)


def plan_figure(plan: Plan, context: int) -> Figure:
    """A picture's own size against the size that it is brought to, its views in the order of the text, its tokens."""
    (width, height), (wide, tall) = plan.size, plan.resized
    scale, left, top, x = 236 / max(*plan.size, *plan.resized), 20, 40, 292
    side_x, side_y = wide * scale / plan.columns, tall * scale / plan.rows
    body = [text(left, 24, "orange: the picture; grid: its tiles", 13, "muted")]
    body += [
        rect(left + c * side_x, top + r * side_y, max(side_x, 2), max(side_y, 2), "soft", "blue", stroke_width=1.2)
        for r in range(plan.rows)
        for c in range(plan.columns)
    ]
    body.append(
        rect(left, top, max(width * scale, 3), max(height * scale, 3), "none", "orange", stroke_width=2.5, rx=1)
    )
    cut = plan.views > 1
    how = f"{plan.rows} × {plan.columns} tiles + the whole = {plan.views} views" if cut else "one view, not cut"
    body += [
        text(x, 52, f"{width:,} × {height:,} pixels", 15, font_weight="bold"),
        text(x, 76, f"brought to {wide:,} × {tall:,}", 13),
        text(x, 98, how, 13),
        text(x, 134, "the views in the order of the text:", 13, "muted"),
    ]
    box = min(20.0, 384 / plan.views)
    whole = 0 if plan.whole_first or not cut else plan.views - 1
    for i in range(plan.views):
        body.append(rect(x + i * box, 142, box - 2, 18, "orange" if i == whole else "sky", rx=2))
        if i == whole:
            body.append(text(x + i * box + (box - 2) / 2, 156, "W", 13, "#14171a", "middle", font_weight="bold"))
    share = min(plan.tokens / context, 1)
    beyond = " — too many" if plan.tokens > context else ""
    body += [
        text(x, 178, "W: the whole", 13, "muted"),
        text(x, 212, f"{plan.tokens:,} tokens", 15, font_weight="bold"),
        text(x, 232, f"{plan.views} × {plan.image_tokens} for pixels, {plan.special_tokens} special", 13, "muted"),
        rect(x, 244, 384, 12, "soft", "line"),
        rect(x, 244, max(384 * share, 1.5), 12, "blue"),
        text(x, 274, f"{plan.tokens / context:.0%} of {context:,}{beyond}", 13, "muted"),
    ]
    alt = (
        f"A picture of {width:,} by {height:,} pixels is brought to {wide:,} by {tall:,}; "
        f"{plan.views} view{'s' * (plan.views > 1)}, {plan.tokens:,} tokens of {context:,}."
    )
    return svg_figure(WIDTH, 292, body, alt)


def cost_figure(curves: Mapping[str, Sequence[tuple[int, int]]], tick: int = 512) -> Figure:
    """Tokens of a square picture against its side in pixels. Each curve is a list of (side, tokens), at most three.

    tick: pixels between two numbers below.
    """
    left, top, wide, tall = 70, 56, 600, 200
    most_x = max(side for curve in curves.values() for side, _ in curve)
    most_y = max(tokens for curve in curves.values() for _, tokens in curve)
    unit = 10 ** math.floor(math.log10(max(most_y, 1)))
    step = unit if most_y > 5 * unit else unit / 2 if most_y > 2 * unit else unit / 4
    most_y = step * math.ceil(most_y / step)
    body = []
    for i in range(round(most_y / step) + 1):
        y = top + tall * (1 - i * step / most_y)
        body += [line(left, y, left + wide, y), text(left - 8, y + 4, f"{i * step:,g}", 13, "muted", "end")]
    for side in range(0, most_x + 1, tick):
        x = left + wide * side / most_x
        body.append(text(x, top + tall + 18, f"{side:,}", 13, "muted", "middle"))
    told = []
    for i, (name, curve) in enumerate(curves.items()):
        points = [(left + wide * side / most_x, top + tall - tall * tokens / most_y) for side, tokens in curve]
        d = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
        for (_, before), (px, py) in itertools.pairwise(points):
            d += f"L{px:.1f} {before:.1f}L{px:.1f} {py:.1f}"  # steps: a number of tiles is whole
        body.append(path(d, stroke=CYCLE[i], width=2.5, stroke_dasharray=DASHES[i]))
        legend = left + i * 300
        body += [
            line(legend, 26, legend + 34, 26, CYCLE[i], 2.5, stroke_dasharray=DASHES[i]),
            text(legend + 42, 30, name, 13),
        ]
        told.append(f"{name}: {curve[0][1]:,} tokens at {curve[0][0]:,} pixels, {curve[-1][1]:,} at {curve[-1][0]:,}")
    body.append(text(left + wide / 2, top + tall + 40, "side of a square picture, in pixels", 13, "muted", "middle"))
    body.append(text(16, top - 12, "tokens", 13, "muted"))
    return svg_figure(WIDTH, top + tall + 54, body, "Tokens against size. " + "; ".join(told) + ".")


def share_bars(shares: Mapping[str, float], chance: float, margin: float = 0.0) -> Figure:
    """Named shares between 0 and 1 as bars, each with its number, whiskers of +- margin, and a line at chance."""
    x0, full, rows = 250, 360, list(shares.items())
    bottom = 40 + 32 * len(rows)
    body = [
        line(x0 + full * chance, 30, x0 + full * chance, bottom, "muted", 1.5, stroke_dasharray="4 3"),
        text(x0 + full * chance, 22, f"chance {chance:.0%}", 13, "muted", "middle"),
    ]
    for i, (name, share) in enumerate(rows):
        y = 40 + i * 32
        low, high = max(share - margin, 0), min(share + margin, 1)
        body += [
            text(x0 - 12, y + 15, name, 12, anchor="end"),
            rect(x0, y, max(full * share, 0.5), 20, "blue", rx=2),
            text(x0 + full * high + 10, y + 15, f"{share:.0%}", 13, font_weight="bold"),
        ]
        if margin:
            body.append(line(x0 + full * low, y + 10, x0 + full * high, y + 10, "ink", 1.5))
    alt = "; ".join(f"{name}: {share:.0%}" for name, share in rows) + f". Chance is {chance:.0%}."
    return svg_figure(WIDTH, bottom + 12, body, alt)


def _turn(x: float, y: float, number: int) -> str:
    """Which view this is, counted from 1, under the middle of a picture's lower edge."""
    return text(x, y + 14, number, 13, "muted", "middle", font_weight="bold")
