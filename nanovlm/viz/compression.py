"""Making a model small: numbers on the steps of a few bits, scores by kind of question, variants side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from nanovlm.viz.style import Figure, circle, heat, ink_on, line, rect, svg_figure, text

WIDTH = 700


def steps_figure(values: Sequence[float], rounded: Sequence[float], step: float, title: str) -> Figure:
    """A row of weights above the steps that its bits have, and where each is moved to. step: between two of them."""
    most = max(*map(abs, values), *map(abs, rounded))
    left, right, above, below = 40.0, WIDTH - 40.0, 84.0, 170.0

    def at(value: float) -> float:
        return left + (right - left) * (value + most) / (2 * most)

    body = [text(16, 28, title, 15, font_weight="bold"), text(16, 54, "the weights", 13, "muted")]
    count = round(most / step)
    used = {round(value / step) for value in rounded}
    for i in range(-count, count + 1):
        tall, tone = (12, "blue") if i in used else (6, "muted")
        if 2 * count <= 130 or i in used:
            body.append(line(at(i * step), below - tall, at(i * step), below + tall, tone, 1.5))
    body.append(line(left, below, right, below, "muted"))
    off = 0.0
    for value, place in zip(values, rounded, strict=True):
        body += [
            line(at(value), above, at(place), below, "line", 1.2),
            circle(at(value), above, 5, "orange", title=f"{value:.3f}"),
            circle(at(place), below, 4, "blue", title=f"{place:.3f}"),
        ]
        off = max(off, abs(value - place))
    told = f"{len(values)} weights on {2 * count + 1} steps, of which {len(used)} are used; none is off by more than"
    body.append(text(16, below + 44, f"{told} {off:.3f}", 13, "muted"))
    return svg_figure(WIDTH, below + 60, body, f"{title}. {told} {off:.3f}.")


def kinds_figure(title: str, rows: Mapping[str, Mapping[str, float]], row_label: str) -> Figure:
    """Shares of right answers: a row for each variant, a column for each kind of question; the highest is darkest."""
    kinds = list(next(iter(rows.values())))
    x0, y0, tall = 170.0, 108.0, 34.0
    wide = (WIDTH - 16 - x0) / len(kinds)
    body = [text(16, 28, title, 15, font_weight="bold"), text(16, y0 - 12, row_label, 13, "muted")]
    for j, kind in enumerate(kinds):
        x = x0 + (j + 0.5) * wide
        body.append(text(x, y0 - 12, kind, 13, anchor="start", transform=f"rotate(-40 {x:.1f} {y0 - 12:.1f})"))
    for i, (name, shares) in enumerate(rows.items()):
        y = y0 + i * tall
        body.append(text(16, y + 22, name, 13))
        for j, kind in enumerate(kinds):
            colour = heat(shares[kind])
            body.append(rect(x0 + j * wide + 1, y + 1, wide - 2, tall - 2, colour, rx=3))
            body.append(text(x0 + (j + 0.5) * wide, y + 22, f"{100 * shares[kind]:.0f}", 13, ink_on(colour), "middle"))
    bottom = y0 + len(rows) * tall
    body.append(text(x0, bottom + 22, "percent right", 13, "muted"))
    told = "; ".join(
        f"{name}: " + ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items())
        for name, shares in rows.items()
    )
    return svg_figure(WIDTH, bottom + 36, body, f"{title}. {told}.")


def probabilities_figure(words: Sequence[str], shares: Sequence[float], title: str, told: str) -> Figure:
    """The likeliest tokens with their probabilities, the likeliest first. told: a line below the title."""
    top, tall, left, wide = 76.0, 26.0, 130.0, 440.0
    body = [text(16, 28, title, 15, font_weight="bold"), text(16, 54, told, 13, "muted")]
    for i, (word, share) in enumerate(zip(words, shares, strict=True)):
        y = top + i * tall
        body += [
            text(left - 10, y + 15, word, 14, "ink", "end"),
            rect(left, y + 3, max(wide * share, 0.5), 16, "blue", rx=2),
            text(left + wide * share + 8, y + 16, f"{share:.1%}", 13, "muted"),
        ]
    each = ", ".join(f"{word} {share:.1%}" for word, share in zip(words, shares, strict=True))
    return svg_figure(WIDTH, top + len(words) * tall + 12, body, f"{title} {told}: {each}.")


class Variant(NamedTuple):
    """One row of the chapter's table."""

    name: str
    megabytes: float
    right: float  # share of right answers
    speed: float | None  # float32's time over its time, None where it was not measured
    worst: str  # the kind of question that lost most, "" if none


def variants_figure(title: str, variants: Sequence[Variant]) -> Figure:
    """A row for each variant: its megabytes and its score as bars, its speed and what it loses in words."""
    top, tall = 78.0, 30.0
    columns = {"name": 16.0, "mb": 236.0, "right": 386.0, "speed": 560.0, "worst": 604.0}
    wide, largest = 86.0, max(v.megabytes for v in variants)
    body = [text(16, 28, title, 15, font_weight="bold")]
    for x, words in zip(list(columns.values())[1:], ("MB", "right", "speed", "loses most"), strict=True):
        body.append(text(x, top - 14, words, 13, "muted", "middle" if words == "speed" else "start"))
    told = []
    for i, v in enumerate(variants):
        y = top + i * tall
        speed = "" if v.speed is None else f"{v.speed:.2f}"
        body += [
            text(columns["name"], y + 15, v.name, 13),
            rect(columns["mb"], y + 3, wide * v.megabytes / largest, 15, "blue", rx=2),
            text(columns["mb"] + wide * v.megabytes / largest + 6, y + 15, f"{v.megabytes:.2f}", 13),
            rect(columns["right"], y + 3, wide * v.right, 15, "green", rx=2),
            text(columns["right"] + wide * v.right + 6, y + 15, f"{v.right:.1%}", 13),
            text(columns["speed"], y + 15, speed, 13, anchor="middle"),
            text(columns["worst"], y + 15, v.worst, 13, "muted"),
        ]
        fast = f", {speed} times float32's speed" if speed else ""
        told.append(f"{v.name}: {v.megabytes:.2f} MB, {v.right:.1%} right{fast}, loses most at {v.worst or 'nothing'}")
    return svg_figure(WIDTH, top + len(variants) * tall + 12, body, f"{title}. {'; '.join(told)}.")
