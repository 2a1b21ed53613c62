"""The block, the residual stream, and what two encoders find in each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from nanovlm.viz.style import Figure, arrow, heat, ink_on, line, png_bytes, raster, rect, svg_figure, text

WIDTH = 700


def block_figure() -> Figure:
    """A pre-norm block: the stream from left to right, and two detours that are added to it."""
    y, body = 150, [text(16, 28, "One pre-norm block", 15, font_weight="bold")]
    body += [line(60, y, 640, y, "blue", 6), arrow(640, y, 672, y, "blue", 6), text(16, y + 5, "x", 15, "blue")]
    for start, norm, part, does in (
        (110, "ln1", "attention", "moves information"),
        (390, "ln2", "MLP", "each patch alone"),
    ):
        body += [
            line(start, y, start, 86, "muted", 1.5),
            arrow(start, 86, start + 16, 86),
            rect(start + 18, 70, 46, 32, "soft", "line", rx=4),
            text(start + 41, 91, norm, 13, anchor="middle"),
            arrow(start + 64, 86, start + 82, 86),
            rect(start + 84, 70, 92, 32, "orange", rx=4),
            text(start + 130, 91, part, 13, ink_on("#e08b1a"), "middle"),
            text(start + 130, 60, does, 13, "muted", "middle"),
            line(start + 176, 86, start + 200, 86, "muted", 1.5),
            arrow(start + 200, 86, start + 200, y - 12),
            rect(start + 189, y - 11, 22, 22, "card", "blue", rx=11),
            text(start + 200, y + 5, "+", 16, "blue", "middle"),
        ]
    body += [
        text(60, y + 32, "The residual stream (blue) is only ever added to: no norm and no weight is on it.", 13),
        text(60, y + 52, "A sub-layer reads a normalised copy and adds its update.", 13, "muted"),
    ]
    alt = (
        "A pre-norm block. The residual stream runs from left to right. First a copy of it goes through ln1 and "
        "attention and is added back; then a copy goes through ln2 and the MLP and is added back."
    )
    return svg_figure(WIDTH, y + 68, body, alt)


def stream_figure(sizes: Sequence[float]) -> Figure:
    """The residual stream with the sub-layers on it, each with the size of its update.

    sizes: for each block, attention's and the MLP's mean update, as a share of the vector that it is added to.
    """
    left, step, top, high = 90, min(120.0, 540 / len(sizes)), 44, 130
    base, most = top + high, max(*sizes, 1e-6)
    body = [
        text(16, 26, "How much each sub-layer adds to the residual stream", 15, font_weight="bold"),
        line(left - 20, base + 6, left + step * len(sizes), base + 6, "blue", 6),
        arrow(left + step * len(sizes), base + 6, left + step * len(sizes) + 26, base + 6, "blue", 6),
        text(16, base + 11, "stream", 13, "blue"),
        text(16, top + 12, "length of", 13, "muted"),
        text(16, top + 28, "the update", 13, "muted"),
    ]
    told = []
    for i, size in enumerate(sizes):
        x, tall = left + i * step, high * 0.85 * size / most
        part = "attention" if i % 2 == 0 else "MLP"
        body += [
            rect(x, base - tall, step * 0.6, tall, "orange" if i % 2 == 0 else "green", rx=2),
            text(x + step * 0.3, base - tall - 6, f"{size:.0%}", 13, anchor="middle", font_weight="bold"),
            text(x + step * 0.3, base + 30, part, 13, anchor="middle"),
        ]
        if i % 2 == 0:
            body.append(text(x + step * 0.8, base + 50, f"block {i // 2}", 13, "muted", "middle"))
        told.append(f"block {i // 2} {part} {size:.0%}")
    alt = f"The mean length of each update, beside the vector that it is added to: {', '.join(told)}."
    return svg_figure(WIDTH, base + 62, body, alt)


def retrieval_figure(pictures: Sequence[Image.Image], captions: Sequence[str], table: Tensor) -> Figure:
    """Similarities of pictures (rows) and captions (columns), at most eight, the largest of each row outlined."""
    n, cell, left, top = len(pictures), 60, 120, 66
    low, span = float(table.min()), max(float(table.max() - table.min()), 1e-6)
    best = table.argmax(dim=1).tolist()
    right = sum(b == i for i, b in enumerate(best))
    body = [
        text(16, 26, "Cosine of each picture with each caption", 15, font_weight="bold"),
        text(left, top - 10, "caption of picture …", 13, "muted"),
    ]
    for i, picture in enumerate(pictures):
        y = top + 20 + i * cell
        body += [
            text(16, y + cell / 2 + 4, i, 13),
            raster(40, y + 3, cell - 6, cell - 6, png_bytes(picture.convert("RGB"))),
            text(left + i * cell + cell / 2, top + 12, i, 13, anchor="middle"),
        ]
        for j in range(n):
            colour = heat((float(table[i, j]) - low) / span)
            x = left + j * cell
            body.append(rect(x, y, cell - 2, cell - 2, colour, rx=2))
            body.append(text(x + cell / 2, y + cell / 2 + 4, f"{float(table[i, j]):.2f}", 13, ink_on(colour), "middle"))
            if j == best[i]:
                body.append(rect(x + 1, y + 1, cell - 4, cell - 4, "none", "orange", stroke_width=3, rx=2))
    bottom = top + 20 + n * cell
    body.append(text(left, bottom + 18, f"outlined: the largest of each row; {right} of {n} are the picture's own", 13))
    told = "; ".join(f"picture {i} is most similar to caption {b}" for i, b in enumerate(best))
    alt = f"A table of {n} pictures and their {n} captions. {told}. {right} of {n} are right."
    return svg_figure(WIDTH, bottom + 30, body, alt)


def search_figure(caption: str, found: Sequence[tuple[Image.Image, str, bool]]) -> Figure:
    """The pictures found for a caption, best first: picture, similarity, whether it is the one that it belongs to."""
    side, body = 150, [text(16, 26, caption, 13, font_weight="bold")]
    for i, (picture, similarity, right) in enumerate(found):
        x = 16 + i * (side + 18)
        body.append(raster(x, 40, side, side, png_bytes(np.asarray(picture.convert("RGB")))))
        if right:
            body.append(rect(x, 40, side, side, "none", "orange", stroke_width=4))
        words = f"{similarity}, its own picture" if right else similarity
        body.append(text(x, 40 + side + 20, words, 13))
    places = [i + 1 for i, (_, _, right) in enumerate(found) if right]
    place = f"its own picture is number {places[0]}" if places else "its own picture is not among them"
    return svg_figure(WIDTH, side + 72, body, f"Pictures found for the caption {caption!r}, best first; {place}.")
