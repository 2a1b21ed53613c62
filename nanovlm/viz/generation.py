"""Choosing tokens: bars of probabilities and what a filter leaves, lines over steps, a tree of beams, guesses kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from nanovlm.viz.style import CYCLE, Figure, circle, ink_on, line, path, rect, svg_figure, text

WIDTH = 700


def bars_figure(
    words: Sequence[str], probabilities: Sequence[float], kept: Sequence[bool], title: str, rule: str
) -> Figure:
    """The likeliest tokens and their probabilities, in falling order. kept: which of them can be drawn, and with what
    probability then (kept ones share what the others lose); rule: in words, what decided."""
    total = sum(p for p, stays in zip(probabilities, kept, strict=True) if stays) or 1.0
    top, pitch, left, most = 78, 27, 130, 400
    scale = most / max([*(p / total for p, k in zip(probabilities, kept, strict=True) if k), *probabilities])
    body = [
        text(16, 26, title, 15, font_weight="bold"),
        text(16, 50, rule, 13, "muted"),
        rect(468, 15, 13, 13, "blue", rx=2),
        text(487, 26, "drawn with this probability", 13),
        rect(468, 39, 13, 13, "none", "ink", rx=2, stroke_width=1.5),
        text(487, 50, "before the cut", 13),
    ]
    told = []
    for i, (word, p, stays) in enumerate(zip(words, probabilities, kept, strict=True)):
        y, drawn = top + i * pitch, p / total if stays else 0.0
        body += [
            text(left - 10, y + 15, word, 14, "ink" if stays else "muted", "end", mono=True),
            rect(left, y + 2, max(drawn * scale, 0.5), 18, "blue" if stays else "none", rx=2),
            rect(left, y + 2, max(p * scale, 0.5), 18, "none", "ink" if stays else "muted", rx=2, stroke_width=1.2),
            text(left + max(drawn, p) * scale + 8, y + 16, f"{drawn:.1%}" if stays else "ruled out", 13, "muted"),
        ]
        told.append(f"{word} {p:.1%}, {f'drawn with {drawn:.1%}' if stays else 'ruled out'}")
    cut = next((i for i, stays in enumerate(kept) if not stays), None)
    if cut is not None and not any(kept[cut:]):
        y = top + cut * pitch - 2.5
        body.append(line(16, y, WIDTH - 16, y, "orange", 2.5))
    alt = f"{title}. {rule}. {'; '.join(told)}."
    return svg_figure(WIDTH, top + len(words) * pitch + 14, body, alt)


def next_token_figure(
    title: str,
    logits: Tensor,
    temperature: float,
    rule: str,
    keep: Callable[[Tensor], Tensor],
    name_of: Callable[[int], str],
    shown: int = 10,
) -> Figure:
    """The likeliest tokens at a temperature, and what a cut leaves of them.

    logits [vocab_size]; keep: [1, vocab_size], same out with -inf where a token is ruled out; rule: the cut's name.
    """
    scaled = logits[None] / temperature
    probabilities, order = scaled.softmax(dim=-1)[0].sort(descending=True)
    kept = keep(scaled)[0, order].isfinite()
    names = [name_of(token) for token in order[:shown].tolist()]
    told = f"temperature {temperature:g}, cut: {rule}; {int(kept.sum())} of {len(kept)} left"
    return bars_figure(names, probabilities[:shown].tolist(), kept[:shown].tolist(), title, told)


def speed_up(kept: float, cost: float, guesses: int) -> float:
    """Of speculative decoding: tokens a round over its cost in passes of the whole model, where a share `kept` of the
    guesses stays at each place and a guess costs `cost` passes."""
    return sum(kept**i for i in range(guesses + 1)) / (1 + guesses * cost)


def speed_up_figure(guesses: int) -> Figure:
    """How many times as fast as plain decoding, against the cost of a guess, for four shares of guesses kept."""
    costs = [0.02, 0.1, 0.25, 0.5, 0.75]
    curves = {"no gain": [1.0] * len(costs)}
    for kept in (0.9, 0.7, 0.5, 0.3):
        curves[f"{kept:.0%} kept"] = [speed_up(kept, cost, guesses) for cost in costs]
    axes = "cost of a drafted token / cost of a pass", "times as fast"
    return lines_figure(costs, curves, f"Speed-up with {guesses} guesses a round", *axes)


def lines_figure(
    x: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    title: str,
    x_label: str,
    y_label: str,
    intervals: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    percent: bool = False,
) -> Figure:
    """One line for each name, over the same x; with intervals, a bar (low, high) at each of its points."""
    intervals = intervals or {}
    left, top, right, bottom = 84, 62, 520, 300
    ends = [v for values in lines.values() for v in values] + [
        v for all_ in intervals.values() for b in all_ for v in b
    ]
    step = _round_step(max(ends) - (min(ends) if percent else min(0.0, *ends)))
    low = math.floor((min(ends) if percent else min(0.0, *ends)) / step) * step
    high = math.ceil(max(ends) / step - 1e-9) * step
    span_x = (max(x) - min(x)) or 1.0

    def at(value: float) -> float:
        return left + (right - left) * (value - min(x)) / span_x

    def up(value: float) -> float:
        return bottom - (bottom - top) * (value - low) / ((high - low) or 1.0)

    def show(value: float) -> str:
        return f"{value:.0%}" if percent else f"{value:,.3g}" if value < 100 else f"{value:,.0f}"

    body = [
        text(16, 26, title, 15, font_weight="bold"),
        text(16, 48, y_label, 13, "muted"),
        line(left, bottom, right, bottom, "muted"),
        text((left + right) / 2, bottom + 40, x_label, 13, "muted", "middle"),
    ]
    for i in range(round((high - low) / step) + 1):
        value = low + step * i
        body += [
            line(left, up(value), right, up(value), "line"),
            text(left - 8, up(value) + 5, show(value), 13, "muted", "end"),
        ]
    ticks = list(x) if len(x) <= 8 else [x[0], x[len(x) // 2], x[-1]]
    body += [text(at(v), bottom + 20, f"{v:g}", 13, "muted", "middle") for v in ticks]
    names = sorted(lines, key=lambda name: -lines[name][-1])
    places = _apart([up(lines[name][-1]) for name in names], 19, bottom)
    told = []
    for name, values in lines.items():
        colour = CYCLE[list(lines).index(name) % len(CYCLE)]
        aside = 5 * (list(lines).index(name) - (len(lines) - 1) / 2)  # so that intervals do not cover each other
        for v, (a, b) in zip(x, intervals.get(name, ()), strict=False):
            body.append(line(at(v) + aside, up(a), at(v) + aside, up(b), colour, 2, opacity=0.6))
        steps = "L".join(f"{at(v):.1f} {up(y):.1f}" for v, y in zip(x, values, strict=True))
        body.append(path("M" + steps, stroke=colour, width=2.5))
        if len(x) <= 12:
            body += [circle(at(v), up(y), 4, colour) for v, y in zip(x, values, strict=True)]
        body += [
            circle(right + 16, places[names.index(name)], 5, colour),
            text(right + 27, places[names.index(name)] + 5, name, 13),
        ]
        told.append(f"{name}: from {show(values[0])} at {x[0]:g} to {show(values[-1])} at {x[-1]:g}")
    return svg_figure(WIDTH, bottom + 56, body, f"{title}: {y_label} against {x_label}. {'; '.join(told)}.")


def beams_figure(steps: Sequence[Sequence[tuple[str, int, float, bool]]], title: str) -> Figure:
    """A beam search, step by step from left to right. A step holds its candidates, the best first: (word, the beam of
    the step before that it continues, sum of log-probabilities, whether it is one of the beams that go on)."""
    top, pitch, box, gap = 66, 50, 118, 56
    left = (WIDTH - len(steps) * box - (len(steps) - 1) * gap) / 2
    body, told = [text(16, 26, title, 15, font_weight="bold")], []
    kept: list[float] = [top + 40]  # where the beams of the step before are
    for number, candidates in enumerate(steps):
        x, places = left + number * (box + gap), []
        body.append(text(x + box / 2, top - 14, f"token {number + 1}", 13, "muted", "middle"))
        for i, (word, beam, total, stays) in enumerate(candidates):
            y = top + i * pitch
            if number:
                stroke, width = ("blue", 2.5) if stays else ("line", 1.2)
                body.append(line(x - gap, kept[beam], x, y + 20, stroke, width))
            body += [
                rect(x, y, box, 40, "blue" if stays else "soft", None if stays else "line", rx=5),
                text(x + box / 2, y + 17, word, 13, ink_on("blue") if stays else "muted", "middle", mono=True),
                text(x + box / 2, y + 34, f"{total:.2f}", 13, ink_on("blue") if stays else "muted", "middle"),
            ]
            if stays:
                places.append(y + 20)
            fate = "goes on" if stays else "is dropped"
            told.append(f"token {number + 1}: {word} behind beam {beam + 1}, {total:.2f}, {fate}")
        kept = places
    height = top + max(map(len, steps)) * pitch + 30
    body.append(text(16, height - 12, "the number: sum of log-probabilities; blue: the beams that go on", 13, "muted"))
    return svg_figure(WIDTH, height, body, f"{title}. {'; '.join(told)}.")


def guesses_figure(rounds: Sequence[Sequence[tuple[str, str]]], title: str) -> Figure:
    """Speculative decoding, a row for each pass of the large model: (word, what became of it), which is "kept",
    "rejected" or "own", the token that the large model adds itself."""
    colours = {"kept": "green", "own": "blue", "rejected": "none"}
    top, pitch, left = 84, 36, 96
    widest = max(len(row) for row in rounds)
    box = min(108.0, (WIDTH - left - 16) / widest - 8)
    body = [text(16, 26, title, 15, font_weight="bold")]
    for i, (fate, words) in enumerate(
        (("kept", "guess kept"), ("rejected", "guess rejected"), ("own", "chosen by the whole model"))
    ):
        x = 16 + 150 * i
        body += [rect(x, 42, 16, 16, colours[fate], "muted", rx=3), text(x + 24, 55, words, 13)]
    told = []
    for i, row in enumerate(rounds):
        y = top + i * pitch
        body.append(text(16, y + 19, f"pass {i + 1}", 13, "muted"))
        for j, (word, fate) in enumerate(row):
            x, fill = left + j * (box + 8), colours[fate]
            body += [
                rect(x, y, box, 28, fill, "muted" if fate == "rejected" else None, rx=5),
                text(
                    x + box / 2, y + 19, word, 13, "muted" if fate == "rejected" else ink_on(fill), "middle", mono=True
                ),
            ]
        told.append(f"pass {i + 1}: " + ", ".join(f"{word.strip()} {fate}" for word, fate in row))
    return svg_figure(WIDTH, top + len(rounds) * pitch + 8, body, f"{title}. {'; '.join(told)}.")


def _round_step(span: float) -> float:
    """1, 2 or 5 times a power of ten, for three to six steps over the span."""
    power = 10.0 ** math.floor(math.log10(span or 1.0))
    return next(m * power for m in (0.2, 0.5, 1.0, 2.0) if (span or 1.0) / (m * power) <= 5.5)


def _apart(places: Sequence[float], least: float, most: float) -> list[float]:
    """The same places, in rising order, moved until neighbours are `least` apart and none is beyond `most`."""
    out: list[float] = []
    for place in places:
        out.append(max(place, out[-1] + least) if out else place)
    limits = [most - least * i for i in range(len(out))][::-1]
    return [min(place, limit) for place, limit in zip(out, limits, strict=True)]
