"""Planning and watching a full run: hours by machine, memory by part, two ranks that train as one, logs to diagnose."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from nanovlm.viz.style import Figure, arrow, ink_on, line, path, rect, svg_figure, text

WIDTH = 700
PARTS = ("weights", "gradients", "optimizer", "activations")
COLOURS = {"weights": "blue", "gradients": "green", "optimizer": "orange", "activations": "pink"}


def hours_figure(hours: Mapping[str, float], title: str, rule: str, limit: float | None = None) -> Figure:
    """A bar for each machine on a logarithmic axis from one minute up; `limit` hours is a line to stay left of."""
    left, right, top, pitch = 120.0, 610.0, 84.0, 32.0
    lowest = 1 / 60
    highest = max(24.0, *hours.values(), limit or 0.0) * 1.3
    ticks = {
        1 / 60: "1 min",
        1 / 6: "10 min",
        1.0: "1 h",
        4.0: "4 h",
        24.0: "1 day",
        240.0: "10 days",
        2400.0: "100 days",
    }
    bottom = top + pitch * len(hours)

    def at(value: float) -> float:
        share = math.log(max(value, lowest) / lowest) / math.log(highest / lowest)
        return left + (right - left) * share

    body = [text(16, 27, title, 15, font_weight="bold"), text(16, 51, rule, 13, "muted")]
    for value, name in ticks.items():
        if value <= highest:
            body += [
                line(at(value), top - 6, at(value), bottom, "line"),
                text(at(value), bottom + 20, name, 13, "muted", "middle"),
            ]
    for i, (name, value) in enumerate(hours.items()):
        y = top + i * pitch
        over = limit is not None and value > limit
        body += [
            text(left - 10, y + 17, name, 13, "ink", "end"),
            rect(left, y + 3, max(at(value) - left, 2.0), 20, "grey" if over else "blue", rx=3),
            text(at(value) + 8, y + 18, in_time(value), 13, "ink"),
        ]
    if limit is not None:
        body += [
            line(at(limit), top - 8, at(limit), bottom, "red", 2.5),
            text(at(limit), top - 12, f"{limit:g} h", 13, "ink", "middle"),
        ]
    told = "; ".join(f"{name} {in_time(value)}" for name, value in hours.items())
    return svg_figure(WIDTH, bottom + 36, body, f"{title}. {rule}. {told}.")


def in_time(hours: float) -> str:
    """Minutes below two hours, days above two days."""
    if hours < 2:
        return f"{hours * 60:,.0f} min"
    return f"{hours:,.1f} h" if hours < 48 else f"{hours / 24:,.1f} days"


def memory_figure(plans: Mapping[str, Sequence[float]], title: str, limit: float, limit_name: str) -> Figure:
    """A stacked bar for each plan, in GiB: weights, gradients, optimizer, activations. `limit`: what the card has."""
    left, right, top, pitch = 150.0, 640.0, 96.0, 38.0
    highest = max(limit, *(sum(plan) for plan in plans.values())) * 1.08
    bottom = top + pitch * len(plans)

    def at(value: float) -> float:
        return left + (right - left) * value / highest

    body = [text(16, 27, title, 15, font_weight="bold")]
    for i, part in enumerate(PARTS):
        x = 16 + 150 * i
        body += [rect(x, 40, 14, 14, COLOURS[part], rx=3), text(x + 21, 52, part, 13)]
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100) if highest / s <= 9)
    for value in range(0, int(highest) + 1, step):
        body += [
            line(at(value), top - 6, at(value), bottom, "line"),
            text(at(value), bottom + 20, value, 13, "muted", "middle"),
        ]
    body.append(text((left + right) / 2, bottom + 40, "GiB", 13, "muted", "middle"))
    told = []
    for i, (name, plan) in enumerate(plans.items()):
        y, start = top + i * pitch, 0.0
        body.append(text(left - 10, y + 20, name, 13, "ink", "end"))
        for part, value in zip(PARTS, plan, strict=True):
            body.append(rect(at(start), y + 4, max(at(start + value) - at(start), 0.5), 24, COLOURS[part]))
            start += value
        body.append(text(at(start) + 6, y + 21, f"{start:.1f}", 13, "ink"))
        parts = ", ".join(f"{part} {value:.1f}" for part, value in zip(PARTS, plan, strict=True))
        told.append(f"{name}: {start:.1f} GiB ({parts})")
    body += [
        line(at(limit), top - 10, at(limit), bottom, "red", 2.5),
        text(at(limit), top - 14, limit_name, 13, "ink", "middle"),
    ]
    return svg_figure(WIDTH, bottom + 52, body, f"{title}. {limit_name}: {limit:g} GiB. {'; '.join(told)}.")


def ranks_figure(ranks: Sequence[tuple[float, int]], title: str) -> Figure:
    """Ranks with (mean loss, supervised tokens): what DDP's mean makes of their means, and the mean over all tokens."""
    total = sum(count for _, count in ranks)
    naive = sum(mean for mean, _ in ranks) / len(ranks)
    right = sum(mean * count for mean, count in ranks) / total
    box, top, pitch = 250.0, 64.0, 92.0
    height = top + pitch * max(len(ranks), 2) + 34
    middle = top + (pitch * len(ranks) - 18) / 2
    body = [text(16, 27, title, 15, font_weight="bold")]
    told = []
    for i, (mean, count) in enumerate(ranks):
        y = top + i * pitch
        body += [
            rect(16, y, box, 74, "soft", "line", rx=6),
            text(30, y + 24, f"rank {i}: the whole model", 13, font_weight="bold"),
            text(30, y + 44, f"{count} supervised tokens", 13),
            text(30, y + 63, f"their mean loss: {mean:g}", 13),
            arrow(16 + box + 6, y + 37, 372, middle),
        ]
        told.append(f"rank {i} has {count} supervised tokens of mean loss {mean:g}")
    body += [
        rect(376, middle - 34, 76, 68, "blue", rx=6),
        text(414, middle - 4, "mean of", 13, ink_on("blue"), "middle"),
        text(414, middle + 14, "gradients", 13, ink_on("blue"), "middle"),
        text(470, middle - 26, "from means:", 13, "muted"),
        text(470, middle - 7, f"{naive:.2f}, each rank counts alike", 13),
        text(470, middle + 24, "by tokens (times 2 / all):", 13, "muted"),
        text(470, middle + 43, f"{right:.2f}, each token counts alike", 13),
        text(
            16, height - 12, "Then every rank takes the same step, so the copies of the model stay equal.", 13, "muted"
        ),
    ]
    alt = f"{title}: {'; '.join(told)}. The mean of the means is {naive:.2f}, the mean over all tokens {right:.2f}."
    return svg_figure(WIDTH, height, body, alt)


def logs_figure(runs: Mapping[str, Sequence[float | None]], healthy: Sequence[float], title: str) -> Figure:
    """A small plot for each run on one logarithmic axis, the healthy run behind it in grey. None is NaN."""
    columns, width, high, top = 2, 326, 178, 52
    finite = [v for run in [*runs.values(), healthy] for v in run if v is not None]
    steps, low = len(healthy), -3  # losses below 10^-3 lie on the axis
    most = max(math.ceil(math.log10(max(finite))), low + 1)
    body, told = [text(16, 27, title, 15, font_weight="bold")], []
    for i, (name, losses) in enumerate(runs.items()):
        x0, y0 = 16 + (i % columns) * (width + 16), top + (i // columns) * (high + 24)
        left, right, up, down = x0 + 48, x0 + width, y0 + 22, y0 + high - 24

        def place(step: int, loss: float, left=left, right=right, up=up, down=down) -> str:
            share = (math.log10(max(loss, 10.0**low)) - low) / (most - low)
            return f"{left + (right - left) * step / (steps - 1):.1f} {down - (down - up) * share:.1f}"

        body += [
            text(x0, y0 + 12, f"log {name}", 14, font_weight="bold"),
            line(left, down, right, down, "muted"),
            line(left, up, left, down, "muted"),
            *(
                text(
                    left - 6,
                    down - (down - up) * (power - low) / (most - low) + 5,
                    f"{10.0**power:g}",
                    13,
                    "muted",
                    "end",
                )
                for power in range(low, most + 1)
            ),
            text(right, down + 18, f"step {steps}", 13, "muted", "end"),
        ]
        for run, colour, thick in ((healthy, "grey", 1.5), (losses, "blue", 2.2)):
            known = [(step, loss) for step, loss in enumerate(run) if loss is not None]
            if known:
                body.append(path("M" + "L".join(place(*point) for point in known), stroke=colour, width=thick))
        lost = next((step for step, loss in enumerate(losses) if loss is None), None)
        last = next((loss for loss in reversed(losses) if loss is not None), 0.0)
        if lost is not None:
            x = left + (right - left) * lost / (steps - 1)
            body += [line(x, up, x, down, "red", 2), text(x + 6, up + 14, "nan from here", 13)]
        told.append(f"log {name}: from {losses[0]:.2f} to {'nan' if lost is not None else f'{last:.2f}'}")
    height = top + math.ceil(len(runs) / columns) * (high + 24) + 12
    body.append(
        text(
            16,
            height - 10,
            "loss on a logarithmic axis; blue: this run, grey: a run with which nothing is wrong",
            13,
            "muted",
        )
    )
    return svg_figure(WIDTH, height, body, f"{title}. {'; '.join(told)}; the healthy run ends at {healthy[-1]:.2f}.")
