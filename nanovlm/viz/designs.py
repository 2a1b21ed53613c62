"""Chapter 17: who sees whom in each design, and all designs in one chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING

from nanovlm.viz.style import Figure, circle, line, rect, svg_figure, text

if TYPE_CHECKING:
    from torch import Tensor

WIDTH = 700
KINDS = {"words": "blue", "image": "orange"}


@dataclass(frozen=True)
class Row:
    """A design: operations as a share of the standard's, parameters, and one score a seed in [0, 1]."""

    cost: float
    parameters: int
    scores: Sequence[float]


def chart_figure(title: str, rows: Mapping[str, Row], score: str, blind: float | None = None) -> Figure:
    """One line a design, the best first: its cost beside the standard's, its parameters, a dot for each seed.

    blind: the score with another one's picture, as a dashed line.
    """
    order = sorted(rows, key=lambda name: -mean(rows[name].scores))
    top, step, cost_at, score_at, wide = 92, 26, 196.0, 416.0, 256.0
    bottom = top + step * len(order)
    body = [
        text(16, 28, title, 15, font_weight="bold"),
        text(cost_at, 56, "cost, against standard", 13, "muted", "middle"),
        text(326, 56, "parameters", 13, "muted", "middle"),
        text(score_at + wide / 2, 56, score, 13, "muted", "middle"),
        rect(cost_at - 50, top - 12, 100, bottom - top + 4, "soft"),
        line(cost_at, top - 12, cost_at, bottom - 8),
    ]
    for at, name in ((cost_at - 50, "-5 %"), (cost_at, "equal"), (cost_at + 50, "+5 %")):
        body.append(text(at, 76, name, 13, "muted", "middle"))
    for percent in range(0, 101, 25):
        x = score_at + wide * percent / 100
        body += [line(x, top - 12, x, bottom - 8), text(x, 76, f"{percent} %", 13, "muted", "middle")]
    if blind is not None:
        x = score_at + wide * blind
        body.append(line(x, top - 12, x, bottom + 4, "muted", 1.5, stroke_dasharray="3 4"))
        body.append(text(x, bottom + 18, f"blind: {blind:.0%}", 13, "muted", "middle"))
    told = []
    for number, name in enumerate(order):
        row, y = rows[name], top + step * number
        colour = "orange" if name == "standard" else "blue"
        off = max(-0.06, min(0.06, row.cost - 1))
        body += [
            text(16, y + 4.5, name.replace("_", " "), 13, font_weight="bold" if name == "standard" else "normal"),
            circle(cost_at + 1000 * off, y, 4, colour),
            text(326, y + 4.5, f"{row.parameters / 1e3:.0f} k", 13, "muted", "middle"),
        ]
        ends = [score_at + wide * value for value in (min(row.scores), max(row.scores))]
        body.append(line(ends[0], y, ends[1], y, colour, 2))
        body += [circle(score_at + wide * value, y, 4, colour, fill_opacity="0.75") for value in row.scores]
        told.append(
            f"{name.replace('_', ' ')} {mean(row.scores):.0%} ({min(row.scores):.0%} to {max(row.scores):.0%}, cost "
            f"{row.cost - 1:+.1%}, {row.parameters:,} parameters)"
        )
    floor = f" Blind: {blind:.0%}." if blind is not None else ""
    return svg_figure(WIDTH, bottom + 30, body, f"{title}. {score}, mean and range: {'; '.join(told)}.{floor}")


def masks_figure(masks: Mapping[str, Tensor], kinds: str) -> Figure:
    """Who looks at whom in several designs: a filled cell where the row's token attends to the column's.

    masks: name -> bool [S, S]. kinds: a letter a token, "w" a word and "i" an image token.
    """
    cell, gap, top = 20, 34, 64
    size = cell * len(kinds)
    columns = max(1, (WIDTH - 16) // (size + gap))
    body, told = [text(16, 26, "Row: who looks. Column: at whom.", 13, "muted")], []
    for i, kind in enumerate(KINDS):
        body += [rect(290 + 130 * i, 15, 12, 12, KINDS[kind]), text(308 + 130 * i, 26, kind, 13, "muted")]
    for number, (name, mask) in enumerate(masks.items()):
        x, y = 28 + number % columns * (size + gap), top + number // columns * (size + 54)
        body.append(text(x, y - 14, name, 13, font_weight="bold"))
        for i, kind in enumerate(kinds):
            colour = KINDS["image" if kind == "i" else "words"]
            body.append(rect(x + i * cell, y - 6, cell - 1, 4, colour))
            body.append(rect(x - 8, y + i * cell, 4, cell - 1, colour))
            for j in range(len(kinds)):
                seen = bool(mask[i, j])
                target = KINDS["image" if kinds[j] == "i" else "words"]
                body.append(rect(x + j * cell, y + i * cell, cell - 1, cell - 1, target if seen else "soft"))
        told.append(f"{name}: {int(mask.sum())} of {mask.numel()} pairs")
    rows = -(-len(masks) // columns)
    return svg_figure(
        WIDTH,
        top + rows * (size + 54) - 30,
        body,
        f"Who looks at whom, for the tokens {kinds} (w: word, i: image). {'; '.join(told)}.",
    )
