"""From rows to what is shown: repeated blocks once, steps of torch's own layers inside their layer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from nanovlm.trace.rows import Row, TensorInfo, tensors

_LONGEST_PERIOD = 48  # a decoding loop of transformers takes 17 steps a token


class Node:
    """A row as it is shown. `times` runs of the same structure stand behind it; with `varies`, of other sizes too.

    Of a group of siblings that repeats together, the first node has the whole `period`, the others are its rest.
    `same_as` names an earlier node with the very same inside, which is then not shown again.
    """

    __slots__ = ("children", "last", "period", "row", "same_as", "times", "varies")

    def __init__(self, row: Row):
        self.row = row
        self.children: list[Node] = []
        self.times = 1
        self.period = 1
        self.varies = False
        self.last: Row | None = None
        self.same_as: str | None = None

    @property
    def params(self) -> int | None:
        return self.row.params

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Node]]:
        yield depth, self
        for child in self.children:
            yield from child.walk(depth + 1)


def fold(root: Row, repeats: bool = True) -> Node:
    """The shown tree below a row. repeats=False: nothing is folded away."""
    return _Folder(repeats).node(root)


class _Folder:
    def __init__(self, repeats: bool):
        self.repeats = repeats
        self.exact: dict[int, Any] = {}
        self.loose: dict[int, Any] = {}
        self.shown: dict[Any, str] = {}
        self.failed: dict[int, bool] = {}

    def node(self, row: Row) -> Node:
        node = Node(row)
        if not row.children or (self.repeats and is_plain_layer(row)):
            return node
        if self.repeats and row.kind in ("module", "function"):
            key = (self._inside(row), row.cls if row.kind == "module" else row.name)
            if not self._failed(row):
                if key in self.shown:
                    node.same_as = self.shown[key]
                    return node
                self.shown[key] = row.name if not row.name.isdigit() else row.path
        node.children = self._fold(row.children)
        return node

    def _fold(self, rows: list[Row]) -> list[Node]:
        nodes: list[Node] = []
        i = 0
        while i < len(rows):
            period, times, varies = self._repetition(rows, i)
            for k in range(period):
                node = self.node(rows[i + k])
                node.times, node.varies, node.period = times, varies, period if k == 0 else 1
                repeats = rows[i + k : i + k + period * times : period]
                other = (row for row in reversed(repeats) if row.shape != repeats[0].shape)
                node.last = next(other, repeats[-1])  # sizes that differ only in the middle are shown too
                nodes.append(node)
            i += period * times
        return nodes

    def _repetition(self, rows: list[Row], start: int) -> tuple[int, int, bool]:
        """(period, times, sizes vary) of what repeats from `start` on; (1, 1, False) if nothing does."""
        if not self.repeats:
            return 1, 1, False
        for signature, least, varies in ((self._exact, 2, False), (self._loose, 3, True)):
            for period in range(1, min(_LONGEST_PERIOD, (len(rows) - start) // 2) + 1):
                times = 1
                while all(
                    start + (times + 1) * period <= len(rows)
                    and signature(rows[start + k]) == signature(rows[start + times * period + k])
                    for k in range(period)
                ):
                    times += 1
                has_steps = any(row.children for row in rows[start : start + period])
                # One add after another is no repetition worth a fold; a block of several steps is.
                if times >= least and (has_steps or (times >= 4 and not varies)):
                    return period, times, varies
        return 1, 1, False

    def _exact(self, row: Row) -> Any:
        if id(row) not in self.exact:
            shapes = tuple((info.shape, info.dtype) for info in tensors(row.out))
            head = (row.kind, row.cls, _label(row), row.params, shapes)
            self.exact[id(row)] = (head, id(row) if self._failed(row) else self._inside(row))
        return self.exact[id(row)]

    def _inside(self, row: Row) -> Any:
        ins = tuple((info.shape, info.dtype) for info in row.inputs if info.name is None)
        return (ins, tuple(hash(self._exact(child)) for child in row.children))

    def _loose(self, row: Row) -> Any:
        if id(row) not in self.loose:
            ranks = tuple(info.ndim for info in tensors(row.out))
            inside = tuple(hash(self._loose(child)) for child in row.children)
            head = (row.kind, row.cls, _label(row), row.params, ranks)
            self.loose[id(row)] = (head, id(row) if self._failed(row) else inside)
        return self.loose[id(row)]

    def _failed(self, row: Row) -> bool:
        """Whether an error stands in this row or below: such a row is never folded away."""
        if id(row) not in self.failed:
            self.failed[id(row)] = row.error is not None or any(self._failed(child) for child in row.children)
        return self.failed[id(row)]


def _label(row: Row) -> str:
    """blocks.0 and blocks.1 are of one kind; k_proj and v_proj are not, though they look the same inside."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "#", row.label)


def is_plain_layer(row: Row) -> bool:
    """One of torch's own layers whose single step says nothing that the layer does not (Linear, LayerNorm)."""
    return (
        row.kind == "module"
        and (row.cls or "").startswith("torch.nn.")
        and row.error is None
        and all(child.kind == "op" and child.error is None and not child.children for child in row.children)
        and len(row.children) <= 1
    )


def varying(first: TensorInfo, last: TensorInfo) -> str:
    """`[2, 69…88, 8]`: the sizes of the first of repeated steps, and of the last that has others."""
    if first.ndim != last.ndim:
        return str(first)
    pairs = zip(first.dims or first.shape, last.dims or last.shape, strict=True)
    return "[" + ", ".join(str(a) if a == b else f"{a}…{b}" for a, b in pairs) + "]"
