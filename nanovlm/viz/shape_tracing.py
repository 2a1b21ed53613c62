"""Where the weights of a model are, and where its work goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from nanovlm.viz.style import Figure, rect, svg_figure, text

WIDTH = 700


class Part(NamedTuple):
    """A part of a model: how many parameters it has, and the FLOPs of one forward pass."""

    name: str
    params: int
    flops: int


def parts_figure(parts: Sequence[Part], note: str = "") -> Figure:
    """Two bars a part: its share of all parameters, and of all FLOPs. At most eight parts."""
    if not parts or min(min(part.params, part.flops) for part in parts) < 0:
        raise ValueError("parts_figure needs at least one part, with parameters and FLOPs of 0 or more.")
    sums = (max(sum(part.params for part in parts), 1), max(sum(part.flops for part in parts), 1))
    start, full, pitch, top = 156, 330, 50, 66
    body = [
        text(16, 30, note or "One forward pass", 15, font_weight="bold"),
        rect(start, 42, 22, 9, "grey"),
        text(start + 28, 51, f"parameters, {_amount(sums[0])} in all", 12),
        rect(start + 220, 42, 22, 9, "blue"),
        text(start + 248, 51, f"FLOPs, {_amount(sums[1])} in all", 12),
    ]
    told = []
    for i, part in enumerate(parts):
        y, shares = top + i * pitch, (part.params / sums[0], part.flops / sums[1])
        body.append(text(start - 12, y + 24, part.name, 14, anchor="end"))
        for k, (value, share, colour) in enumerate(zip(part[1:], shares, ("grey", "blue"), strict=True)):
            body += [
                rect(start, y + 6 + 16 * k, full, 11, "soft"),
                rect(start, y + 6 + 16 * k, max(full * share, 0.01), 11, colour),
                text(start + full + 12, y + 16 + 16 * k, f"{share:.1%}  ·  {_amount(value)}", 12),
            ]
        told.append(f"{part.name}: {shares[0]:.1%} of the parameters, {shares[1]:.1%} of the FLOPs")
    return svg_figure(WIDTH, top + len(parts) * pitch + 8, body, f"{note or 'One forward pass'}. {'; '.join(told)}.")


def _amount(number: float) -> str:
    """1234567 -> "1.23 million"."""
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if number >= size:
            return f"{number / size:.3g} {word}"
    return f"{number:g}"
