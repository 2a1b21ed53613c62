"""Chapter 14's tables: shares by block and head, by layer, or by what is asked and what is found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from nanovlm.viz.style import Figure, heat, ink_on, rect, svg_figure, text

WIDTH, HIGH, LEFT, TOP = 700, 30, 16, 62


def share_tables(
    tables: Mapping[str, Tensor], rows: Sequence[str], columns: Sequence[str], axes: tuple[str, str] = ("", "")
) -> Figure:
    """Tables of shares side by side, each [rows, columns] of numbers between 0 and 1; the darker, the larger.

    axes: what the rows and the columns are. A number that is NaN leaves its place empty.
    """
    shape = [len(rows), len(columns)]
    if not tables or any(list(table.shape) != shape for table in tables.values()):
        given = ", ".join(f"{name} {list(table.shape)}" for name, table in tables.items()) or "no table"
        raise ValueError(
            f"Rows and columns have {shape[0]} and {shape[1]} names, so each table is {shape}; got {given}."
        )
    names = 18 + 7.2 * max(len(name) for name in (*rows, axes[0]))
    gap = 26
    cell = min((WIDTH - 2 * LEFT - names - gap * (len(tables) - 1)) / (len(tables) * len(columns)), 132)
    body = [text(LEFT, TOP - 8, axes[0], 13, "muted")]
    body += [text(LEFT, TOP + i * HIGH + 20, name, 13) for i, name in enumerate(rows)]
    told = []
    for k, (title, table) in enumerate(tables.items()):
        left = LEFT + names + k * (len(columns) * cell + gap)
        body.append(text(left, 26, title, 14, font_weight="bold"))
        for j, name in enumerate(columns):
            body.append(text(left + (j + 0.5) * cell - 1, TOP - 8, name, 13, "muted", "middle"))
            for i in range(len(rows)):
                share = float(table[i, j])
                if share != share:
                    continue
                x, y, colour = left + j * cell, TOP + i * HIGH, heat(share)
                body += [
                    rect(x, y, cell - 2, HIGH - 2, colour, rx=2),
                    text(x + cell / 2 - 1, y + 19, f"{share:.0%}", 13, ink_on(colour), "middle"),
                ]
        lines = (
            f"{name} {', '.join(f'{column} {share:.0%}' for column, share in zip(columns, row, strict=True))}"
            for name, row in zip(rows, table.tolist(), strict=True)
        )
        told.append(f"{title}: {'; '.join(lines)}")
    bottom = TOP + len(rows) * HIGH
    if axes[1]:
        body.append(text(LEFT + names, bottom + 18, axes[1], 13, "muted"))
    return svg_figure(WIDTH, bottom + (28 if axes[1] else 10), body, f"Shares. {'. '.join(told)}.")
