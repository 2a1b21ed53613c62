"""Attention as tables and over the picture, shares as bars, and losses as curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from nanovlm.viz.style import (
    Figure,
    arrow,
    heat,
    ink_on,
    line,
    path,
    png_bytes,
    raster,
    rect,
    svg_figure,
    text,
)

WIDTH = 700


def attention_tables(scores: Tensor, weights: Tensor, names: Sequence[str], over: str = "keys") -> Figure:
    """Scores and the weights that a softmax makes of them, [num_queries, num_keys] each, with the sums of the weights.

    over: "keys" or "queries", along which the softmax ran: only for the caption.
    """
    n, cell, top = len(names), 52, 74
    if list(scores.shape) != [n, n] or list(weights.shape) != [n, n]:
        raise ValueError(
            f"{n} patches need two tables of {n} x {n}; got {list(scores.shape)} and {list(weights.shape)}."
        )
    left, right = 110, 446
    body = [
        text(left, 28, "scores", 15, font_weight="bold"),
        text(right, 28, "weights", 15, font_weight="bold"),
        text(right + 78, 28, f"softmax over the {over}", 13, "muted"),
        arrow(left + n * cell + 30, top + n * cell / 2, left + n * cell + 66, top + n * cell / 2),
        text(WIDTH - 16, top + n * cell + 42, "a column's sum: how much attention that patch gets", 13, "muted", "end"),
    ]
    largest = max(float(scores.abs().max()), 1e-6)
    for x, table, shade in ((left, scores / largest, scores), (right, weights, weights)):
        for i, name in enumerate(names):
            body += [
                text(x - 8, top + i * cell + cell / 2 + 4, name, 13, anchor="end"),
                text(x + i * cell + cell / 2, top - 8, name, 13, "muted", "middle"),
            ]
            for j in range(n):
                colour = heat(float(table[i, j]))
                body += [
                    rect(x + j * cell, top + i * cell, cell - 2, cell - 2, colour, rx=2),
                    text(
                        x + j * cell + cell / 2 - 1,
                        top + i * cell + cell / 2 + 4,
                        _number(float(shade[i, j])),
                        13,
                        ink_on(colour),
                        "middle",
                    ),
                ]
    end = right + n * cell
    body.append(text(end + 12, top - 8, "sum", 13, "muted"))
    for i in range(n):
        y = top + i * cell + cell / 2 + 4
        body.append(text(end + 12, y, f"{float(weights[i].sum()):.2f}", 13, font_weight="bold"))
        x = right + i * cell + cell / 2 - 1
        body.append(text(x, top + n * cell + 18, f"{float(weights[:, i].sum()):.2f}", 13, anchor="middle"))
    body.append(text(right - 8, top + n * cell + 18, "sum", 13, "muted", "end"))
    rows = "; ".join(
        f"{name} attends to {', '.join(f'{other} {float(w):.2f}' for other, w in zip(names, row, strict=True))}"
        for name, row in zip(names, weights, strict=True)
    )
    alt = f"A table of scores and a table of weights, softmax over the {over}, a row for each query: {rows}."
    return svg_figure(WIDTH, top + n * cell + 56, body, alt)


def weight_bars(rows: Mapping[str, Sequence[float]]) -> Figure:
    """For each named row, the weights of one query over its keys, as standing bars."""
    body, told, high, pitch = [], [], 92, 134
    for i, (name, weights) in enumerate(rows.items()):
        base = 40 + i * pitch + high
        wide = min(440 / len(weights), 46)
        body += [
            text(16, base - high + 12, name, 13),
            text(16, base - high + 32, f"largest {max(weights):.1%}", 13, "muted"),
            line(190, base, 190 + wide * len(weights), base),
        ]
        for j, weight in enumerate(weights):
            x, tall = 190 + j * wide, high * weight
            body += [
                rect(x + 3, base - tall, wide - 6, max(tall, 0.5), "blue" if i % 2 == 0 else "orange"),
                text(x + wide / 2, base - tall - 5, f"{weight:.0%}", 13, anchor="middle"),
            ]
        told.append(f"{name}: {', '.join(f'{weight:.0%}' for weight in weights)}")
    alt = f"The weights of one query over its keys. {'; '.join(told)}."
    return svg_figure(WIDTH, 40 + len(rows) * pitch - 14, body, alt)


def patch_attention(image: Image.Image, maps: Tensor, block: int, head: int, patch: int) -> Figure:
    """Where one patch looks: large for one head, small for all of them.

    Args:
        picture: is shown squeezed into a square, as the model gets it.
        maps: [num_blocks, num_heads, N, N], rows of weights that sum to 1; N is a square number.
        patch: the one that looks; patches are counted from 0 in reading order. It is outlined.

    A patch is as bright as its weight, compared with the strongest one of that head.
    """
    num_blocks, num_heads, num_patches, keys = maps.shape
    grid = round(num_patches**0.5)
    if grid * grid != num_patches or keys != num_patches:
        raise ValueError(f"The maps are {num_patches} x {keys}, which is no square grid looking at itself.")
    if not (0 <= block < num_blocks and 0 <= head < num_heads and 0 <= patch < num_patches):
        raise ValueError(
            f"There are {num_blocks} blocks, {num_heads} heads and {num_patches} patches, counted from 0; "
            f"got block {block}, head {head}, patch {patch}."
        )
    if num_blocks > 4 or num_heads > 8:
        raise ValueError(f"There is room for 4 blocks of 8 heads, not for {num_blocks} of {num_heads}: hand over some.")
    pixels = np.asarray(image.convert("RGB").resize((16 * grid,) * 2, Image.Resampling.BICUBIC), dtype=np.float32)
    weights = maps[block, head, patch]
    best, side, top, left = int(weights.argmax()), 304, 44, 356
    body = [
        text(16, 29, f"Patch {patch} attends: block {block}, head {head}", 15, font_weight="bold"),
        *_lit(pixels, weights, grid, patch, 16, top, side),
        text(16, top + side + 20, "outlined: the patch that attends; bright: what it attends to", 13, "muted"),
        text(
            16,
            top + side + 38,
            f"strongest: patch {best} with {float(weights[best]):.0%}; an even share is {1 / num_patches:.1%}",
            12,
            "muted",
        ),
        text(left, 29, "the same patch, all blocks and heads", 13, "muted"),
    ]
    small = min((WIDTH - 16 - left - 8 * (num_heads - 1)) / num_heads, (side - 26 * num_blocks) / num_blocks)
    for b in range(num_blocks):
        for h in range(num_heads):
            x, y = left + h * (small + 8), top + b * (small + 30)
            body += _lit(pixels[::4, ::4], maps[b, h, patch], grid, patch, x, y, small)
            chosen = (b, h) == (block, head)
            body.append(text(x, y + small + 14, f"{b}, {h}", 11, "ink" if chosen else "muted"))
            if chosen:
                body.append(rect(x - 2.5, y - 2.5, small + 5, small + 5, "none", "blue", stroke_width=2, rx=2))
    row, column = divmod(best, grid)
    alt = (
        f"What patch {patch} attends to in block {block}, head {head}: most, with {float(weights[best]):.0%}, to "
        f"patch {best}, in row {row} and column {column}. Beside it the same for all {num_blocks * num_heads} heads."
    )
    return svg_figure(WIDTH, top + side + 52, body, alt)


def share_bars(shares: Mapping[str, float], tick: float | None = None, tick_name: str = "", title: str = "") -> Figure:
    """Named shares between 0 and 1 as lying bars, with one tick for comparison."""
    start, full, pitch, top = 210, 380, 28, 44 if title else 16
    body = [text(16, 26, title, 15, font_weight="bold")] if title else []
    for i, (name, share) in enumerate(shares.items()):
        y = top + i * pitch
        body += [
            text(start - 12, y + 14, name, 13, anchor="end"),
            rect(start, y, full, 18, "soft"),
            rect(start, y, max(full * min(share, 1.0), 0.5), 18, "blue"),
            text(start + full + 12, y + 14, f"{share:.0%}", 13, font_weight="bold"),
        ]
    bottom = top + len(shares) * pitch
    if tick is not None:
        x = start + full * tick
        body += [
            line(x, top - 6, x, bottom - 4, "ink", 2),
            text(x, bottom + 12, f"{tick_name} {tick:.0%}", 13, "muted", "middle"),
        ]
    told = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    alt = f"{title or 'Bars'}: {told}." + (f" The tick, {tick_name}, is at {tick:.0%}." if tick is not None else "")
    return svg_figure(WIDTH, bottom + (24 if tick is not None else 4), body, alt)


def loss_curves(losses: Mapping[str, Sequence[float]], chance: float) -> Figure:
    """Named losses, a number for each step, with a line where guessing would be. At most four."""
    colours, left, top, wide, high = ("blue", "orange", "green", "pink"), 86, 20, 450, 200
    highest = 1.25 * max(chance, 1e-6)
    steps = max(map(len, losses.values()))

    def place(step: int, value: float) -> str:
        return f"{left + wide * step / max(steps - 1, 1):.1f} {top + high * (1 - min(value, highest) / highest):.1f}"

    floor = top + high * (1 - chance / highest)
    body = [
        line(left, top + high, left + wide, top + high),
        line(left, top, left, top + high),
        line(left, floor, left + wide, floor, "muted", 1, stroke_dasharray="4 4"),
        text(left - 8, floor + 4, f"{chance:.2f}", 13, "muted", "end"),
        text(left - 8, top + high + 4, "0", 13, "muted", "end"),
        text(left, top + high + 20, "step 1", 13, "muted"),
        text(left + wide, top + high + 20, f"step {steps}", 13, "muted", "end"),
        text(left - 8, floor + 20, "guessing", 13, "muted", "end"),
    ]
    ends = {name: top + high * (1 - min(values[-1], highest) / highest) for name, values in losses.items()}
    below = -100.0
    for i, name in sorted(enumerate(losses), key=lambda item: ends[item[1]]):
        d = "M" + "L".join(place(step, value) for step, value in enumerate(losses[name]))
        label = max(ends[name] + 4, below + 18)  # labels of curves that end together stand one below the other
        below = label
        body += [
            path(d, stroke=colours[i], width=2, stroke_dasharray=("", "7 3", "2 3", "9 2 2 2")[i] or "none"),
            text(left + wide + 10, label, name, 13, colours[i], font_weight="bold"),
        ]
    told = "; ".join(f"{name} from {values[0]:.2f} to {values[-1]:.2f}" for name, values in losses.items())
    return svg_figure(WIDTH, top + high + 34, body, f"Losses over {steps} steps, guessing {chance:.2f}: {told}.")


def _number(value: float) -> str:
    return f"{value + 0:.2f}" if abs(value) < 100 else f"{value:.0f}"


def _lit(pixels: np.ndarray, weights: Tensor, grid: int, patch: int, x: float, y: float, side: float) -> list[str]:
    """The picture, each patch as bright as its weight, and the patch that looks outlined."""
    cell = len(pixels) // grid
    light = (weights / weights.max()).reshape(grid, grid).numpy()
    light = np.kron(light, np.ones((cell, cell)))[..., None]
    dim = 0.14 * pixels.mean(-1, keepdims=True) + 16  # dark and grey: still to be made out
    lit = light * pixels + (1 - light) * dim
    size = side / grid
    row, column = divmod(patch, grid)
    return [
        raster(x, y, side, side, png_bytes(lit.clip(0, 255))),
        rect(x + column * size, y + row * size, size, size, "none", "orange", stroke_width=max(side / 100, 1.5)),
    ]
