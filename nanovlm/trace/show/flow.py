"""Follows tensors between rows: what a group of steps took in and gave out, and which input a step descends from."""

from __future__ import annotations

from typing import Any

from nanovlm.trace.rows import Row, TensorInfo, tensors


def finish(root: Row) -> None:
    """Number the rows, remove empty groups, and give the learner's functions their inputs and outputs."""
    _prune(root)
    rows = list(root.walk())
    for i, row in enumerate(rows):
        row.index = i
    born: dict[int, int] = {}  # uid -> the step it first came out of
    used: dict[int, list[int]] = {}  # uid -> the rows that took it in
    left: dict[int, list[Row]] = {}  # uid -> modules that returned it
    for row in rows:
        if row.kind in ("op", "backward", "optimizer"):
            for info in row.inputs:
                used.setdefault(info.uid, []).append(row.index)
            for info in row.outs:
                born.setdefault(info.uid, row.index)
        if row.kind == "module" or row is root:
            for info in row.outs:
                left.setdefault(info.uid, []).append(row)
    stats = {info.uid: row.stats for row in rows if row.stats is not None for info in row.outs[:1]}
    for row in rows:
        if row.kind == "function":
            _bound(row, born, used, left)
        if row.stats is None and row.outs:
            row.stats = stats.get(row.outs[0].uid)


def _prune(row: Row) -> None:
    for child in row.children:
        _prune(child)
    row.children = [child for child in row.children if child.kind != "function" or child.children]


def _bound(group: Row, born: dict[int, int], used: dict[int, list[int]], left: dict[int, list[Row]]) -> None:
    """Inputs: what its steps take that was not born in it. Outputs: what is born in it and used after it."""
    inside = list(group.walk())
    first, last = inside[0].index, inside[-1].index
    ops = [row for row in inside if row.kind == "op"]
    inputs: dict[int, TensorInfo] = {}
    outs: dict[int, TensorInfo] = {}
    for row in ops:
        for info in row.inputs:
            if not first <= born.get(info.uid, -1) <= last and info.name is None:
                inputs.setdefault(info.uid, info)
        for info in row.outs:
            if born.get(info.uid) == row.index and any(index > last for index in used.get(info.uid, ())):
                outs.setdefault(info.uid, info)
    for row in inside:
        for info in row.outs:
            if any(module.index < first for module in left.get(info.uid, ())):
                outs.setdefault(info.uid, info)
    if not group.args:
        group.args = tuple(inputs.values())
    failed = [row for row in ops if row.error is not None]
    if failed:
        group.error = group.error or f"{failed[-1].error.partition(':')[0]} inside"
    elif group.out is None:
        found: Any = list(outs.values()) or (tensors(ops[-1].out)[:1] if ops else [])
        group.out = found[0] if len(found) == 1 else tuple(found)


def ancestry(root: Row, inputs: dict[str, Any]) -> dict[int, frozenset[str]]:
    """uid -> the names of the floating-point or id inputs that a tensor was computed from."""
    origin = {info.uid: frozenset([name]) for name, value in inputs.items() for info in tensors(value)}
    for row in root.walk():
        if row.kind != "op":
            continue
        names: frozenset[str] = frozenset()
        for info in row.inputs:
            names |= origin.get(info.uid, frozenset())
        for info in row.outs:
            origin[info.uid] = origin.get(info.uid, frozenset()) | names
    return origin
