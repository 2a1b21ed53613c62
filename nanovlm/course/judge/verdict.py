"""What the learner sees: HTML in notebooks, text elsewhere, the same words in both."""

from __future__ import annotations

import html
from dataclasses import dataclass, field

from torch import Tensor

from nanovlm.course.judge.differences import Grid, number
from nanovlm.course.showing import ShowsItself
from nanovlm.viz.style import PALETTE, diverging, heat, ink_on


@dataclass
class Result(ShowsItself):
    """The end of a check.

    rung: passed, not_written, not_run (the cell failed: the function is the one of before), not_callable, signature,
    raised, too_slow, none, type, shape, dtype, in_place, values, complaint, property, unknown, or checker (our own
    fault).
    """

    id: str
    title: str
    rung: str
    message: str
    mistake: str | None = None  # the sentence of the mistake table, where the outputs were recognised
    place: str = ""  # the learner's own line
    grid: Grid | None = None
    lists: list[tuple[str, str]] = field(default_factory=list)  # (input, expected or yours; the same in words)
    facts: list[str] = field(default_factory=list)  # what was seen to hold
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.rung == "passed"

    @property
    def headline(self) -> str:
        verdict = {"passed": "passed", "not_written": "not written yet"}.get(self.rung, "not yet")
        return f"{self.title or self.id} · {verdict}"

    @property
    def sentences(self) -> list[str]:
        """In the order in which they are read: what it probably is, what was seen, where, and what to try."""
        place = [f"In your code, {self.place}"] if self.place else []
        mistake = [self.mistake] if self.mistake else []
        return [*mistake, self.message, *place, *([self.note] if self.note else [])]

    def __str__(self) -> str:
        mark = "✓" if self.passed else "○" if self.rung == "not_written" else "✗"
        lines = [f"{mark} {self.headline}", *(f"  {sentence}" for sentence in self.sentences)]
        lines += [f"  ✓ {fact}" for fact in self.facts]
        if self.lists:
            lines += ["", *(f"  {name:8}  {words}" for name, words in self.lists)]
        if self.grid is not None:
            lines += ["", *_text_grids(self.grid)]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        mark, colour = (
            ("✓", "green") if self.passed else ("○", "sky") if self.rung == "not_written" else ("✗", "orange")
        )
        parts = [f"<b>{mark} {html.escape(self.headline)}</b>"]
        for i, sentence in enumerate(self.sentences):
            words = html.escape(sentence)
            if self.place and sentence.endswith(self.place):
                words = f"In your code, <code>{html.escape(self.place)}</code>"
            parts.append(f"<div>{f'<b>{words}</b>' if i == 0 and self.mistake else words}</div>")
        parts += [f'<div style="opacity:.8">✓ {html.escape(fact)}</div>' for fact in self.facts]
        if self.lists:
            rows = (f"<tr><td>{name}</td><td><code>{html.escape(w)}</code></td></tr>" for name, w in self.lists)
            parts.append(f'<table style="margin:.4em 0 0;text-align:left">{"".join(rows)}</table>')
        if self.grid is not None:
            parts.append(_html_grids(self.grid))
        return (
            f'<div style="border-left:4px solid {PALETTE[colour]};padding:.3em .9em;line-height:1.5">'
            f"{''.join(parts)}</div>"
        )


def _tables(grid: Grid) -> list[tuple[str, Tensor]]:
    return [("expected", grid.expected), ("yours", grid.yours), ("difference", grid.yours - grid.expected)]


def _text_grids(grid: Grid) -> list[str]:
    blocks = []
    for name, values in _tables(grid):
        cells = [[number(v) for v in row] for row in values.tolist()]
        width = max((len(c) for row in cells for c in row), default=1)
        rows = ["  ".join(c.rjust(width) for c in row) for row in cells]
        wide = max([len(name), *map(len, rows)])
        blocks.append([name.ljust(wide), *(row.ljust(wide) for row in rows)])
    side_by_side = ["   | ".join(parts).rstrip() for parts in zip(*blocks, strict=True)]
    if max(map(len, side_by_side)) > 110:
        side_by_side = [line.rstrip() for block in blocks for line in block]
    return [f"  {line}" for line in ([grid.title] if grid.title else []) + side_by_side]


def _html_grids(grid: Grid) -> str:
    finite = grid.expected[grid.expected.isfinite()].abs()
    scale = max(float(finite.max()) if finite.numel() else 1.0, 1e-12)
    signed = bool((grid.expected < 0).any())
    tables = []
    for name, values in _tables(grid):
        rows = []
        for row in values.tolist():
            cells = ""
            for value in row:
                share = value / scale if value == value else 0.0
                if name == "difference":
                    colour = heat(0) if abs(share) < 1e-6 else diverging(1.0 if share > 0 else -1.0)
                else:
                    colour = diverging(0.7 * share) if signed else heat(0.75 * share)
                cells += (
                    f'<td style="background:{colour};color:{ink_on(colour)};text-align:right;padding:1px 6px;'
                    f'border:1px solid #8884">{number(value)}</td>'
                )
            rows.append(f"<tr>{cells}</tr>")
        tables.append(
            f'<div style="display:inline-block;vertical-align:top;margin:.4em 1.2em 0 0"><div>{name}</div>'
            f'<table style="border-collapse:collapse;font-size:85%">{"".join(rows)}</table></div>'
        )
    title = f"<div>{html.escape(grid.title)}</div>" if grid.title else ""
    return f'<div style="overflow-x:auto;margin-top:.4em">{title}{"".join(tables)}</div>'
