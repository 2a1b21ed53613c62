"""Fine-tuning in pictures: what each run can do afterwards, and what few bits leave of a matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nanovlm.viz.style import CYCLE, Figure, circle, line, rect, svg_figure, text

WIDTH = 700


def skills_figure(
    title: str,
    rows: Mapping[str, Mapping[str, float]],
    intervals: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
) -> Figure:
    """One row for each run, one column for each skill: a bar for the share of right answers, and its interval.

    rows: run -> skill -> share in [0, 1]; all runs have the skills of the first.
    """
    intervals, skills = intervals or {}, list(next(iter(rows.values())))
    left, top, pitch = 208, 78, 34
    column = (WIDTH - left - 12) / len(skills)
    full = column - 56
    body = [text(16, 28, title, 15, font_weight="bold")]
    body += [text(left + i * column, 60, skill, 13, "muted") for i, skill in enumerate(skills)]
    told = []
    for number, (name, shares) in enumerate(rows.items()):
        y = top + number * pitch
        body.append(text(left - 12, y + 14, name, 13, anchor="end"))
        for i, skill in enumerate(skills):
            x, share = left + i * column, shares[skill]
            body += [
                rect(x, y, full, 18, "soft"),
                rect(x, y, max(full * share, 0.5), 18, CYCLE[i % len(CYCLE)]),
                text(x + full + 6, y + 14, f"{share:.0%}", 13),
            ]
            if name in intervals:
                low, high = intervals[name][skill]
                body.append(line(x + full * low, y + 9, x + full * high, y + 9, "ink", 2))
        told.append(f"{name}: " + ", ".join(f"{skill} {share:.0%}" for skill, share in shares.items()))
    return svg_figure(WIDTH, top + len(rows) * pitch + 8, body, f"{title}. {'; '.join(told)}.")


def before_after_figure(before: Sequence[float], after: Sequence[float], title: str, limit: float) -> Figure:
    """Each number of a matrix before (from left to right) and after it was kept in few bits (from below), up to
    ±limit: on the diagonal nothing has changed, and a flat piece is numbers that have become the same."""
    left, top, side = 84, 62, 300

    def at(value: float) -> float:
        return min(max(value / limit, -1.0), 1.0)

    body = [
        text(16, 28, title, 15, font_weight="bold"),
        text(16, 50, "after", 13, "muted"),
        rect(left, top, side, side, "soft"),
        line(left, top + side, left + side, top, "muted", 1.2, stroke_dasharray="4 4"),
        text(left + side / 2, top + side + 40, "before", 13, "muted", "middle"),
    ]
    for value in (-limit, 0.0, limit):
        x, y = left + side * (at(value) + 1) / 2, top + side * (1 - at(value)) / 2
        body += [
            text(x, top + side + 20, f"{value:g}", 13, "muted", "middle"),
            text(left - 8, y + 5, f"{value:g}", 13, "muted", "end"),
        ]
    pairs = [(x, y) for x, y in zip(before, after, strict=True) if abs(x) <= limit]
    for x, y in pairs:
        body.append(circle(left + side * (at(x) + 1) / 2, top + side * (1 - at(y)) / 2, 2.2, "blue", opacity=0.55))
    levels = len({round(y, 6) for _, y in pairs})
    error = sum(abs(x - y) for x, y in pairs) / len(pairs) / (sum(abs(x) for x, _ in pairs) / len(pairs))
    notes = [
        f"{len(pairs)} numbers up to ±{limit:g}",
        f"{levels} different values are left",
        f"mean error {error:.1%} of their size",
    ]
    body += [text(left + side + 28, top + 40 + 26 * i, note, 14) for i, note in enumerate(notes)]
    return svg_figure(WIDTH, top + side + 56, body, f"{title}. {'; '.join(notes)}.")
