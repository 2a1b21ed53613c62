"""Curves of training runs: one plot, a run that is watched, a gallery to diagnose, a table of rates, intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nanovlm.viz.style import CYCLE, Figure, circle, heat, ink_on, line, path, rect, svg_figure, text

WIDTH = 700
Points = Sequence[tuple[float, float]]
DASHES = ("none", "7 4", "2 3", "10 3 2 3")


def curves_figure(
    title: str,
    curves: Mapping[str, Points],
    x_label: str = "step",
    y_label: str = "loss",
    y_range: tuple[float, float] | None = None,
    log: bool = False,
    marks: Mapping[str, float] | None = None,
) -> Figure:
    """Curves over one pair of axes, each named at its right end.

    Args:
        curves: name -> (x, y) points; points that are not finite are left out.
        log: a logarithmic y axis. marks: name -> y of a horizontal line to compare with.
    """
    marks = marks or {}
    body = [text(16, 28, title, 15, font_weight="bold"), text(16, 52, y_label, 13, "muted")]
    box = (64.0, 64.0, 450.0, 230.0)
    x_range = _range([x for points in curves.values() for x, _ in points])
    values = [*(y for points in curves.values() for _, y in points), *marks.values()]
    y_range = y_range or _range(values, log)
    body += _axes(box, x_range, y_range, log, x_label)
    ends = []
    for i, (name, points) in enumerate(curves.items()):
        colour, dashes = CYCLE[i % len(CYCLE)], DASHES[(i // 4) % 4]
        kept = [(x, y) for x, y in points if math.isfinite(y) and (y > 0 or not log)]
        body.append(_curve(box, kept, x_range, y_range, log, colour, dashes))
        if kept:
            ends.append((_place(box, *kept[-1], x_range, y_range, log)[1], name, colour, dashes))
    for name, y in marks.items():
        at = _place(box, x_range[0], y, x_range, y_range, log)[1]
        body.append(line(box[0], at, box[0] + box[2], at, "muted", 1.2, stroke_dasharray="4 4"))
        ends.append((at, name, "muted", "4 4"))
    body += _names(ends, box)
    told = [f"{name}: from {points[0][1]:.3g} to {points[-1][1]:.3g}" for name, points in curves.items() if points]
    told += [f"a line for {name} at {y:.3g}" for name, y in marks.items()]
    alt = f"{title}: {y_label} against {x_label}, {x_range[0]:g} to {x_range[1]:g}. {'; '.join(told)}."
    return svg_figure(WIDTH, 340, body, alt)


def live_figure(
    losses: Points, accuracy: Sequence[tuple[float, Mapping[str, float]]], blind: Points, end: int
) -> Figure:
    """A run that is watched: the loss so far, and the share of right answers by kind beside the blind mean.

    accuracy: (step, kind -> share) of each evaluation; blind: (step, mean share); end: the last step of the run.
    """
    left, right, x_range = (56.0, 58.0, 236.0, 210.0), (388.0, 58.0, 214.0, 210.0), (0.0, float(max(end, 1)))
    y_range = _range([y for _, y in losses] or [0.1, 10.0], True)
    body = [
        text(16, 28, "loss", 15, font_weight="bold"),
        text(348, 28, "right answers", 15, font_weight="bold"),
        *_axes(left, x_range, y_range, True, "step"),
        *_axes(right, x_range, (0.0, 1.0), False, "step", percent=True),
        _curve(left, losses, x_range, y_range, True, "blue"),
    ]
    kinds = list(accuracy[-1][1]) if accuracy else []
    ends = []
    for i, kind in enumerate(kinds):
        points = [(step, shares[kind]) for step, shares in accuracy if kind in shares]
        colour, dashes = CYCLE[i % len(CYCLE)], DASHES[(i // 4) % 4]
        body.append(_curve(right, points, x_range, (0.0, 1.0), False, colour, dashes))
        ends.append((_place(right, *points[-1], x_range, (0.0, 1.0), False)[1], kind, colour, dashes))
    if blind:
        body.append(_curve(right, blind, x_range, (0.0, 1.0), False, "muted", "4 4"))
        ends.append((_place(right, *blind[-1], x_range, (0.0, 1.0), False)[1], "blind", "muted", "4 4"))
    body += _names(ends, right)
    step = losses[-1][0] if losses else 0
    told = ", ".join(f"{kind} {share:.0%}" for kind, share in accuracy[-1][1].items()) if accuracy else "none yet"
    mean_blind = f"; blind, over all kinds: {blind[-1][1]:.0%}" if blind else ""
    loss = f"{losses[-1][1]:.3g}" if losses else "not known yet"
    return svg_figure(
        WIDTH, 312, body, f"Step {step:g} of {end}: the loss is {loss}. Right answers: {told}{mean_blind}."
    )


def gallery_figure(runs: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Small multiples of stored runs: above the losses (training blue, validation orange), below right and blind."""
    columns, wide, high = 3, 228.0, 258.0
    body = [
        *_legend(16, 24, (("blue", "training loss", "none"), ("orange", "validation loss", "7 4"))),
        *_legend(330, 24, (("green", "right answers", "none"), ("muted", "blind", "4 4"))),
    ]
    told = []
    for i, (name, run) in enumerate(runs.items()):
        x0, y0 = 8 + (i % columns) * wide, 44 + (i // columns) * high
        evaluations, end = run["evaluations"], float(run["max_steps"])
        above, below, x_range = (x0 + 40, y0 + 28, 172.0, 90.0), (x0 + 40, y0 + 136, 172.0, 72.0), (0.0, end)
        loss = [(step + 1, value) for step, value in enumerate(smooth(run["loss"]))]
        val = [(e["step"], e["val_loss"]) for e in evaluations]
        y_range = (0.01, 30.0)
        right = [(e["step"], _mean(e["accuracy"])) for e in evaluations]
        blind = [(e["step"], _mean(e["blind"])) for e in evaluations]
        body += [
            text(x0 + 40, y0 + 16, name, 14, font_weight="bold"),
            *_axes(above, x_range, y_range, True, "", ticks=(0.01, 0.1, 1.0, 10.0), x_ticks=()),
            _curve(above, loss, x_range, y_range, True, "blue"),
            _curve(above, val, x_range, y_range, True, "orange", "7 4"),
            *_axes(below, x_range, (0.0, 1.0), False, "step", ticks=(0.0, 0.5, 1.0), x_ticks=(0.0, end), percent=True),
            _curve(below, right, x_range, (0.0, 1.0), False, "green"),
            _curve(below, blind, x_range, (0.0, 1.0), False, "muted", "4 4"),
        ]
        last = evaluations[-1]
        told.append(
            f"{name}: after {last['step']} steps the training loss is {run['loss'][-1]:.3g}, the validation loss "
            f"{last['val_loss']:.3g}, right answers {right[-1][1]:.0%}, blind {blind[-1][1]:.0%}"
        )
    rows = -(-len(runs) // columns)
    return svg_figure(WIDTH, 52 + rows * high, body, f"{len(runs)} training runs. {'; '.join(told)}.")


def panels_figure(title: str, panels: Mapping[str, Mapping[str, Points]], y_label: str = "loss") -> Figure:
    """Small multiples over common axes. panels: name -> curve -> (x, y); the curves have the same names in each."""
    columns, wide, high = 3, 228.0, 168.0
    points = [point for curves in panels.values() for curve in curves.values() for point in curve]
    x_range, y_range = _range([x for x, _ in points]), (0.0, max(y for _, y in points if math.isfinite(y)))
    styles = (("blue", "none"), ("muted", "4 4"), ("orange", "7 4"), ("green", "2 3"))
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    keys = tuple((colour, name, dashes) for name, (colour, dashes) in zip(names, styles, strict=False))
    body, told = [text(16, 28, title, 15, font_weight="bold"), *_legend(16, 54, keys)], []
    for i, (panel, curves) in enumerate(panels.items()):
        x0, y0 = 8 + (i % columns) * wide, 68 + (i // columns) * high
        box = (x0 + 40, y0 + 28, 172.0, 88.0)
        body += [
            text(x0 + 40, y0 + 18, panel, 14, font_weight="bold"),
            *_axes(box, x_range, y_range, False, "step", x_ticks=(x_range[1],)),
            *(_curve(box, curves[n], x_range, y_range, False, c, d) for c, n, d in keys if n in curves),
        ]
        told.append(f"{panel}: {', '.join(f'{name} ends at {c[-1][1]:.2g}' for name, c in curves.items() if c)}")
    rows = -(-len(panels) // columns)
    return svg_figure(WIDTH, 76 + rows * high, body, f"{title}: {y_label} against step. {'; '.join(told)}.")


def rates_figure(title: str, rows: str, columns: str, table: Mapping[tuple[str, str], float]) -> Figure:
    """A loss for each pair of learning rates; the lowest is the darkest. table: (row, column) -> loss."""
    row_names, column_names = (list(dict.fromkeys(key[i] for key in table)) for i in (0, 1))
    finite = [v for v in table.values() if math.isfinite(v)]
    low, high = math.log(min(finite)), math.log(max(finite))
    x0, y0, wide, tall = 190, 96, 130, 46
    body = [
        text(16, 28, title, 15, font_weight="bold"),
        text(x0, 60, columns, 13, "muted"),
        text(16, y0 - 8, rows, 13, "muted"),
    ]
    for j, name in enumerate(column_names):
        body.append(text(x0 + (j + 0.5) * wide, y0 - 8, name, 13, anchor="middle"))
    for i, row in enumerate(row_names):
        body.append(text(x0 - 14, y0 + i * tall + 28, row, 13, anchor="end"))
        for j, column in enumerate(column_names):
            value = table[row, column]
            share = 1 - (math.log(value) - low) / max(high - low, 1e-9) if math.isfinite(value) else 0.0
            colour, x, y = heat(share), x0 + j * wide, y0 + i * tall
            body.append(rect(x + 2, y + 2, wide - 4, tall - 4, colour, rx=4))
            body.append(text(x + wide / 2, y + 28, f"{value:.2f}", 14, ink_on(colour), "middle"))
    told = "; ".join(f"{row} and {column}: {value:.2f}" for (row, column), value in table.items())
    return svg_figure(WIDTH, y0 + len(row_names) * tall + 16, body, f"{title}. {rows} by {columns}: {told}.")


def intervals_figure(title: str, rows: Mapping[str, tuple[float, float, float]], x_label: str) -> Figure:
    """Means with the ends of their intervals, beside a line at 0. rows: name -> (mean, low, high)."""
    low, high = min(0.0, *(r[1] for r in rows.values())), max(0.0, *(r[2] for r in rows.values()))
    span = (high - low) or 1.0
    x0, full, top = 250.0, 400.0, 52.0

    def at(value: float) -> float:
        return x0 + full * (value - low) / span

    bottom = top + 36 * len(rows)
    body = [text(16, 28, title, 15, font_weight="bold"), line(at(0), top - 6, at(0), bottom, "muted", 1.2)]
    for i, (name, (mean, lower, upper)) in enumerate(rows.items()):
        y = top + 36 * i + 16
        sure = lower > 0 or upper < 0
        colour = "blue" if sure else "grey"
        body += [
            text(16, y + 5, name, 13),
            line(at(lower), y, at(upper), y, colour, 3),
            *(line(at(v), y - 6, at(v), y + 6, colour, 2) for v in (lower, upper)),
            circle(at(mean), y, 5, colour, title=f"{mean:+.1%}"),
        ]
    ticks = _ticks((low, high), False)
    body += [text(at(v), bottom + 18, f"{100 * v:+.3g} %" if v else "0", 13, "muted", "middle") for v in ticks]
    body.append(text(16, bottom + 18, x_label, 13, "muted"))
    told = "; ".join(f"{name} {m:+.1%}, from {a:+.1%} to {b:+.1%}" for name, (m, a, b) in rows.items())
    return svg_figure(WIDTH, bottom + 34, body, f"{title}. {x_label}: {told}.")


def smooth(values: Sequence[float], width: int = 9) -> list[float]:
    """Running means over the last `width` values."""
    return [sum(values[max(0, i + 1 - width) : i + 1]) / min(i + 1, width) for i in range(len(values))]


# -- pieces of the above -----------------------------------------------------------------------------------------------


def _mean(shares: Mapping[str, float]) -> float:
    return sum(shares.values()) / len(shares)


def _range(values: Sequence[float], log: bool = False) -> tuple[float, float]:
    finite = [v for v in values if math.isfinite(v) and (v > 0 or not log)] or [0.1, 1.0]
    low, high = min(finite), max(finite)
    if log:
        return low * 0.9, high * 1.1
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _place(
    box: tuple[float, float, float, float],
    x: float,
    y: float,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    log: bool,
) -> tuple[float, float]:
    left, top, wide, high = box
    if log:
        y, y_range = math.log(max(y, 1e-12)), (math.log(y_range[0]), math.log(y_range[1]))
    share = (y - y_range[0]) / ((y_range[1] - y_range[0]) or 1.0)
    across = (x - x_range[0]) / ((x_range[1] - x_range[0]) or 1.0)
    return left + wide * min(max(across, 0.0), 1.0), top + high * (1 - min(max(share, 0.0), 1.0))


def _curve(box: Any, points: Points, x_range: Any, y_range: Any, log: bool, colour: str, dashes: str = "none") -> str:
    placed = [_place(box, x, y, x_range, y_range, log) for x, y in points if math.isfinite(y)]
    if not placed:
        return ""
    if len(placed) == 1:
        return circle(*placed[0], 3, colour)
    d = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
    return path(d, stroke=colour, width=2, stroke_dasharray=dashes, stroke_linejoin="round")


def _axes(
    box: tuple[float, float, float, float],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    log: bool,
    x_label: str,
    ticks: Sequence[float] | None = None,
    x_ticks: Sequence[float] | None = None,
    percent: bool = False,
) -> list[str]:
    left, top, wide, high = box
    body = [rect(left, top, wide, high, "none", "line")]
    for value in _ticks(y_range, log) if ticks is None else ticks:
        y = _place(box, x_range[0], value, x_range, y_range, log)[1]
        body.append(line(left, y, left + wide, y, "line", 0.6))
        body.append(text(left - 6, y + 5, f"{value:.0%}" if percent else f"{value:g}", 13, "muted", "end"))
    for value in _ticks(x_range, False) if x_ticks is None else x_ticks:
        x = _place(box, value, y_range[0], x_range, y_range, log)[0]
        body.append(text(x, top + high + 17, f"{value:g}", 13, "muted", "middle"))
    if x_label:
        body.append(text(left + wide / 2, top + high + 34, x_label, 13, "muted", "middle"))
    return body


def _ticks(span: tuple[float, float], log: bool) -> list[float]:
    """At most six round numbers within a range."""
    low, high = span
    if log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        tens = [10.0**k for k in range(first, last + 1)]
        steps = (1, 2, 5) if last - first <= 2 else (1,)
        found = [round(ten * step, 12) for ten in tens for step in steps if low <= ten * step <= high]
        return found or [float(f"{low:.2g}"), float(f"{high:.2g}")]
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(step * k for k in (1, 2, 5, 10) if (high - low) / (step * k) <= 5)
    return [round(k * step, 10) for k in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def _names(ends: Sequence[tuple[float, str, str, str]], box: tuple[float, float, float, float]) -> list[str]:
    """Names at the right ends of curves (y, name, colour, dashes), moved apart where they would touch."""
    gap, ordered = 17.0, sorted(ends)
    places: list[float] = []
    for y, *_ in ordered:
        places.append(max(y, places[-1] + gap) if places else y)
    lowest = box[1] + box[3] + 8
    for i in reversed(range(len(places))):  # the last ones may have been pushed out of the box
        places[i] = min(places[i], lowest - gap * (len(places) - 1 - i))
    body, x = [], box[0] + box[2] + 8
    for at, (_, name, colour, dashes) in zip(places, ordered, strict=True):
        body += [line(x, at, x + 18, at, colour, 2.5, stroke_dasharray=dashes), text(x + 22, at + 5, name, 13)]
    return body


def _legend(x: float, y: float, entries: Sequence[tuple[str, str, str]]) -> list[str]:
    body = []
    for colour, name, dashes in entries:
        body += [line(x, y - 5, x + 26, y - 5, colour, 2.5, stroke_dasharray=dashes), text(x + 32, y, name, 13)]
        x += 52 + 7.6 * len(name)
    return body
