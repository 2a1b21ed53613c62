"""The tree as text: for a terminal, a log, an error message."""

from __future__ import annotations

from nanovlm.trace.rows import Row, show, show_inputs
from nanovlm.trace.show.fold import Node, fold, varying
from nanovlm.trace.source import locate

_WIDTH = 132


def human(number: float, unit: str = "") -> str:
    """1234567 -> "1.23 M"; small whole numbers stay as they are."""
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return (
                f"{number / size:.3g} {letter}{unit}"
                if number / size < 999.5
                else f"{number / size:.0f} {letter}{unit}"
            )
    return f"{number:g} {unit}".strip()


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def with_remark(text: str, remark: str | None) -> str:
    return f"{text}\nRemark: {remark}" if remark else text


def node_title(node: Node) -> str:
    """`blocks.0: ViTBlock` with `×12, first shown` behind it where it stands for others."""
    row = node.row
    title = row.label
    if row.kind == "module" and row.cls and row.path:
        title = f"{title}: {row.cls.removeprefix('torch.nn.')}"
    if node.times > 1:
        title += (
            f" ×{node.times}, first shown" if node.period == 1 else f" (with the next {node.period - 1}: ×{node.times})"
        )
    if node.same_as:
        title += f" (steps as in {node.same_as})"
    return title


def node_shape(node: Node) -> str:
    row = node.row
    if row.error is not None:
        return f"✗ {show_inputs(row)}"
    if node.varies and node.last is not None and row.outs and node.last.outs:
        return varying(row.outs[0], node.last.outs[0])
    return show(row.out) if row.outs else ""


def node_notes(node: Node, usual_dtype: str | None) -> str:
    """What else is worth a word: an unusual dtype, a shared or tied module, NaN."""
    row, notes = node.row, []
    if row.outs and usual_dtype and row.outs[0].dtype_name != usual_dtype and row.outs[0].dtype.is_floating_point:
        notes.append(row.outs[0].dtype_name)
    if row.note:
        notes.append(row.note)
    if row.stats:
        bad = [f"{row.stats[kind]:.0f} {kind}" for kind in ("nan", "inf") if row.stats.get(kind)]
        notes += bad or [f"{row.stats['mean']:.3g} ± {row.stats['std']:.3g}"]
    return ", ".join(notes)


def usual_dtype(root: Row) -> str | None:
    """The dtype that most floating-point steps have; only others are mentioned."""
    counts: dict[str, int] = {}
    for row in root.walk():
        for info in row.outs[:1]:
            if info.dtype.is_floating_point:
                counts[info.dtype_name] = counts.get(info.dtype_name, 0) + 1
    return max(counts, key=counts.get) if counts else None


def render_tree(root: Row, depth: int | None = None, repeats: bool = True, source: bool = True) -> str:
    """One line a step: name, shape that came out, parameters, FLOPs (of one, where folded), expression."""
    dtype, timed = usual_dtype(root), any(row.seconds is not None for row in root.walk())
    tree = fold(root, repeats)
    lines: list[tuple[str, ...]] = []
    _collect(tree, "", "", depth, dtype, timed, lines)
    lines.insert(0, ("", "out", "params", "FLOPs", "time" if timed else "", ""))
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    widths[0], widths[1] = min(widths[0], 60), min(widths[1], 36)
    rendered = []
    for line in lines:
        out = line[1] if len(line[1]) <= widths[1] else line[1][: widths[1] - 1] + "…"
        text = f"{line[0]:<{widths[0]}}  {out:<{widths[1]}}  {line[2]:>{widths[2]}}  {line[3]:>{widths[3]}}"
        if timed:
            text += f"  {line[4]:>{widths[4]}}"
        if source and line[5] and len(text) + 4 < _WIDTH:
            room = _WIDTH - len(text) - 2
            text += "  " + (line[5] if len(line[5]) <= room else line[5][: room - 1] + "…")
        rendered.append(text.rstrip())
    return "\n".join(rendered)


def _collect(
    node: Node, lead: str, below: str, depth: int | None, dtype: str | None, timed: bool, lines: list[tuple[str, ...]]
) -> None:
    row = node.row
    own = locate(row.where)
    expression = own.short if own else ""
    notes = node_notes(node, dtype)
    lines.append(
        (
            lead + node_title(node),
            node_shape(node),
            human(row.params) if row.params else "",
            human(row.flops) if row.flops else "",
            milliseconds(row.seconds) if row.seconds is not None else "",
            f"({notes})  {expression}" if notes else expression,
        )
    )
    if depth is not None and depth <= 0:
        return
    for i, child in enumerate(node.children):
        last = i == len(node.children) - 1
        _collect(
            child,
            below + ("└ " if last else "├ "),
            below + ("  " if last else "│ "),
            None if depth is None else depth - 1,
            dtype,
            timed,
            lines,
        )
