"""Scores with their intervals, calibration, and what choosing the best of many looks does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from nanovlm.viz.style import Figure, circle, line, path, rect, svg_figure, text

WIDTH = 700


class Share(NamedTuple):
    """A share of right answers, 0 to 1, and its interval."""

    name: str
    share: float
    low: float
    high: float
    colour: str = "blue"


def share_rows(title: str, rows: Sequence[Share], chance: float | None = None, highest: float = 1.0) -> Figure:
    """One row for each score: a point, its 95 % interval, and a dashed line where guessing would be."""
    x0, full, pitch, top = 250, 350, 30, 74
    body = [text(16, 28, title, 16, font_weight="bold")]
    for tick in range(6):
        value = highest * tick / 5
        x = x0 + full * tick / 5
        body += [
            line(x, top - 12, x, top + pitch * len(rows)),
            text(x, top - 18, f"{value:.0%}", 13, "muted", "middle"),
        ]
    for i, row in enumerate(rows):
        y = top + pitch * i + 14
        left, right = (x0 + full * min(end, highest) / highest for end in (row.low, row.high))
        body += [
            text(x0 - 12, y + 5, row.name, 13, anchor="end"),
            line(left, y, right, y, row.colour, 3),
            line(left, y - 5, left, y + 5, row.colour, 2),
            line(right, y - 5, right, y + 5, row.colour, 2),
            circle(x0 + full * min(row.share, highest) / highest, y, 5.5, row.colour),
            text(x0 + full + 14, y + 5, f"{row.share:.1%}", 13),
        ]
    bottom = top + pitch * len(rows)
    if chance is not None:
        x = x0 + full * chance / highest
        body += [
            line(x, top - 8, x, bottom + 4, "ink", 1.5, stroke_dasharray="5 4"),
            text(x, bottom + 20, f"guessing, {chance:.0%}", 13, anchor="middle"),
        ]
    told = "; ".join(f"{row.name} {row.share:.1%}, interval {row.low:.1%} to {row.high:.1%}" for row in rows)
    return svg_figure(WIDTH, bottom + (14 if chance is None else 32), body, f"{title}. {told}.")


def two_intervals(correct: int, total: int, wald: tuple[float, float], wilson: tuple[float, float]) -> Figure:
    """The textbook interval and Wilson's for the same count, on an axis that shows what lies outside of 0 to 1."""
    x0, full = 150, 440

    def place(share: float) -> float:
        return x0 + full * min(max(share, -0.1), 1.1)

    body = [
        text(16, 28, f"{correct} of {total} right", 16, font_weight="bold"),
        rect(x0, 44, full, 96, "soft"),
    ]
    body += [text(x0 + full * t / 4, 160, f"{t / 4:.0%}", 13, "muted", "middle") for t in range(5)]
    for y, name, (low, high), colour in ((72, "Wald", wald, "orange"), (114, "Wilson", wilson, "blue")):
        body += [
            text(x0 - 14, y + 5, name, 14, anchor="end"),
            line(place(low), y, place(high), y, colour, 4),
            line(place(low), y - 8, place(low), y + 8, colour, 3),
            line(place(high), y - 8, place(high), y + 8, colour, 3),
            text(place(0.5), y - 12, f"{low:.1%} to {high:.1%}", 13, anchor="middle"),
        ]
        if total:
            body.append(circle(place(correct / total), y, 5, "ink"))
    alt = (
        f"{correct} of {total} right: Wald's interval goes from {wald[0]:.1%} to {wald[1]:.1%}, Wilson's from "
        f"{wilson[0]:.1%} to {wilson[1]:.1%}."
    )
    return svg_figure(WIDTH, 176, body, alt)


def calibration_figure(
    bins: Sequence[tuple[float, float, int]], coverage: Sequence[float], risk: Sequence[float]
) -> Figure:
    """Left: accuracy against confidence, one circle for each bin, its area by the answers in it. Right: the share of
    wrong answers among those given, against the share of questions answered."""
    side, left, right, top = 230, 70, 420, 56
    total = max(sum(count for _, _, count in bins), 1)
    worst = max([0.05, *risk])

    def frame(x: float, title: str, across: str, up: str, highest: float) -> list[str]:
        marks = [rect(x, top, side, side, "soft"), text(x, 30, title, 15, font_weight="bold")]
        for t in range(3):
            marks.append(text(x + side * t / 2, top + side + 20, f"{t / 2:.0%}", 13, "muted", "middle"))
            marks.append(text(x - 8, top + side * (1 - t / 2) + 5, f"{highest * t / 2:.0%}", 13, "muted", "end"))
        marks.append(text(x + side / 2, top + side + 42, across, 13, anchor="middle"))
        marks.append(text(x + 6, top + 18, up, 13, "muted"))
        return marks

    body = frame(left, "Is 90 % sure 90 % right?", "confidence", "accuracy", 1.0)
    body.append(line(left, top + side, left + side, top, "muted", 1.5, stroke_dasharray="5 4"))
    for confidence, accuracy, count in bins:
        radius = 4 + 16 * (count / total) ** 0.5
        body.append(circle(left + side * confidence, top + side * (1 - accuracy), radius, "blue", fill_opacity=0.75))
    body += frame(right, "Answer only the sure ones", "questions answered", "wrong answers among them", worst)
    points = [
        f"{'M' if i == 0 else 'L'}{right + side * c:.1f} {top + side * (1 - r / worst):.1f}"
        for i, (c, r) in enumerate(zip(coverage, risk, strict=True))
    ]
    body.append(path("".join(points), stroke="orange", width=2.5))
    told = "; ".join(f"confidence {c:.0%}, accuracy {a:.0%}, {n} answers" for c, a, n in bins)
    end = f" With all questions answered {risk[-1]:.0%} are wrong." if len(risk) else ""
    return svg_figure(WIDTH, top + side + 58, body, f"Calibration: {told}.{end}")


def selection_figure(share: float, single: Sequence[float], best: Sequence[float], looks: int) -> Figure:
    """Histograms of one evaluation's score and of the best of many, of a model whose true share is known."""
    low, high, bars = min(single), max(best), 44
    width = (high - low) / bars or 1.0
    x0, full, base, tall = 40, 620, 210, 140

    def place(value: float) -> float:
        return x0 + full * (value - low) / (bars * width)

    body = [text(16, 28, f"One look, and the best of {looks} looks", 16, font_weight="bold")]
    for values, colour, name, x in ((single, "sky", "one look", 420), (best, "orange", f"best of {looks}", 540)):
        counts = [0] * bars
        for value in values:
            counts[min(int((value - low) / width), bars - 1)] += 1
        most = max(counts)
        body += [
            rect(x0 + full * i / bars, base - tall * n / most, full / bars, tall * n / most, colour, fill_opacity=0.7)
            for i, n in enumerate(counts)
            if n
        ]
        body += [rect(x, 17, 14, 12, colour), text(x + 20, 28, name, 13)]
    mean = sum(best) / len(best)
    for value, words, anchor in ((share, f"true: {share:.1%}", "end"), (mean, f"reported: {mean:.1%}", "start")):
        body += [line(place(value), 44, place(value), base, "ink", 1.5, stroke_dasharray="5 4")]
        body.append(text(place(value) + (6 if anchor == "start" else -6), 56, words, 13, anchor=anchor))
    ticks = [low + (high - low) * t / 4 for t in range(5)]
    body += [text(place(tick), base + 20, f"{tick:.1%}", 13, "muted", "middle") for tick in ticks]
    body.append(text(x0 + full / 2, base + 42, "score on the test", 13, anchor="middle"))
    alt = (
        f"A model that is right {share:.1%} of the time: the best of {looks} evaluations reports {mean:.1%} on average."
    )
    return svg_figure(WIDTH, base + 56, body, alt)
