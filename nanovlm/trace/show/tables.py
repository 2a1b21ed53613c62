"""The modules as a table, as torchinfo prints it, and everything as JSON."""

from __future__ import annotations

from html import escape
from typing import Any

from nanovlm.trace.rows import Opaque, Ragged, Row, TensorInfo, show, show_inputs
from nanovlm.trace.show.text import human
from nanovlm.trace.source import locate

_COLUMNS = ("module", "class", "in", "out", "params", "FLOPs", "out bytes")
_IN_TEXT = ("module", "in", "out", "params", "FLOPs")  # what a terminal has room for


class Table(list):
    """A list of dicts with the columns above (numbers as numbers); shows as an HTML table; prints the columns that
    a terminal has room for."""

    def _cells(self, columns: tuple[str, ...] = _COLUMNS) -> list[tuple[str, ...]]:
        return [
            tuple(human(row[key]) if isinstance(row[key], int) else str(row[key]) for key in columns) for row in self
        ]

    def __str__(self) -> str:
        lines = [_IN_TEXT, *self._cells(_IN_TEXT)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(_IN_TEXT))]
        texts = []
        for line in lines:
            left = [f"{cell:<{w}}" for cell, w in zip(line[:3], widths, strict=False)]
            right = [f"{cell:>{w}}" for cell, w in zip(line[3:], widths[3:], strict=True)]
            texts.append("  ".join([*left, *right]).rstrip())
        return "\n".join(texts)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        def line(tag: str, cells: tuple[str, ...]) -> str:  # words to the left, numbers to the right
            sides = ["left"] * 4 + ["right"] * (len(cells) - 4)
            pairs = zip(sides, cells, strict=True)
            return "<tr>" + "".join(f'<{tag} style="text-align:{s}">{escape(c)}</{tag}>' for s, c in pairs) + "</tr>"

        head, body = line("th", _COLUMNS), "".join(line("td", cells) for cells in self._cells())
        return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"


def module_table(root: Row, depth: int | None, num_params: int, flops: int) -> Table:
    """One line a module call down to `depth` levels of modules below the root, and a line with the sums."""
    table = Table()

    def add(row: Row, level: int) -> None:
        if row.kind == "module" or row is root:
            name = row.path or row.name
            table.append(_line(name, (row.cls or "").removeprefix("torch.nn."), row))
            level += 1
        for child in row.children:
            if depth is None or level <= depth:
                add(child, level)

    add(root, 0)
    total = dict.fromkeys(_COLUMNS, "") | {"module": "total (each parameter once)", "params": num_params}
    table.append(total | {"FLOPs": flops})
    return table


def _line(name: str, kind: str, row: Row) -> dict[str, Any]:
    values = (name, kind, show_inputs(row), show(row.out), row.params or 0, row.flops, row.nbytes)
    return dict(zip(_COLUMNS, values, strict=True))


def as_json(row: Row) -> dict[str, Any]:
    """A row and everything inside it, in plain types."""
    source = locate(row.where)
    found: dict[str, Any] = {"kind": row.kind, "name": row.name, "path": row.path, "class": row.cls}
    found |= {"args": _plain(row.args), "kwargs": _plain(row.kwargs), "out": _plain(row.out)}
    found |= {"params": row.params, "flops": row.flops, "bytes": row.nbytes, "seconds": row.seconds}
    found |= {"stats": _plain(row.stats), "error": row.error, "note": row.note}
    if source is not None:
        found["source"] = {"file": source.place.rpartition(":")[0], "line": source.line, "text": source.text}
    found["children"] = [as_json(child) for child in row.children]
    return {key: value for key, value in found.items() if value not in (None, "", [], {}, 0)}


def _plain(value: Any) -> Any:
    if isinstance(value, TensorInfo):
        found = {
            "shape": [str(size) if isinstance(size, Ragged) else size for size in value.shape],
            "dtype": value.dtype_name,
            "device": value.device,
        }
        if value.dims is not None:
            found["dims"] = list(value.dims)
        return found | ({"name": value.name} if value.name else {})
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float) and value != value:
        return "nan"
    if isinstance(value, (int, float, str, bool, type(None))) and value not in (float("inf"), float("-inf")):
        return value
    return repr(value) if not isinstance(value, Opaque) else value.text
