"""The trace as a picture of boxes: Mermaid text, and a plain SVG. Boxes are modules, functions and joins."""

from __future__ import annotations

from html import escape

from nanovlm.trace.rows import Row, TensorInfo, show, tensors
from nanovlm.trace.show.stages import visible

Edge = tuple[int, int, str]  # from box, to box, shape


def graph(root: Row, inputs: dict) -> tuple[list[tuple[str, str]], list[Edge]]:
    """([(name, shape that comes out)], [(from, to, shape)]): the boxes that the stages speak of, and what flows."""
    boxes: list[tuple[str, str]] = []
    edges: list[Edge] = []
    holder: dict[int, tuple[int, TensorInfo]] = {}  # uid -> the box that a tensor is in, and what came out of it there
    for name, value in inputs.items():
        for info in tensors(value)[:1]:
            holder[info.uid] = (len(boxes), info)
            boxes.append((name, show(info)))
    for row in visible(root):
        sources = {holder[info.uid][0]: holder[info.uid][1] for info in _taken(row) if info.uid in holder}
        is_box = row.kind in ("module", "function", "backward", "optimizer") or len(sources) > 1
        if not is_box:  # a step with one source is part of its source's box
            for source, info in sources.items():
                for out in row.outs:
                    holder[out.uid] = (source, out if out.ndim else info)
            continue
        edges += [(source, len(boxes), str(info)) for source, info in sources.items()]
        for inner in row.walk():
            for info in inner.outs:
                holder[info.uid] = (len(boxes), info)
        name = (row.path or row.cls or row.name) if row.kind == "module" else row.name
        boxes.append((name, "failed" if row.error else show(row.outs[:1]) if row.outs else ""))
    return boxes, edges


def _taken(row: Row) -> list[TensorInfo]:
    return [info for inner in row.walk() for info in inner.inputs]


def mermaid(root: Row, inputs: dict) -> str:
    """A flow chart in Mermaid's language, which GitHub and JupyterLab draw from Markdown."""
    boxes, edges = graph(root, inputs)
    lines = ["flowchart TD"]
    for i, (name, shape) in enumerate(boxes):
        lines.append(f'    n{i}["{_label(name)}<br/>{_label(shape)}"]')
    lines += [f'    n{a} -- "{_label(shape)}" --> n{b}' for a, b, shape in edges]
    return "\n".join(lines)


def _label(text: str) -> str:
    """As words in a chart: Mermaid puts labels into the page as HTML, and a line's end or ``` would end the chart."""
    return " ".join(escape(text).split()).replace("`", "&#96;")


def svg(root: Row, inputs: dict, width: int = 560) -> str:
    """The same chart as a static picture: boxes from top to bottom, each level as deep as its longest way."""
    boxes, edges = graph(root, inputs)
    level = [0] * len(boxes)
    for a, b, _ in edges:  # boxes stand in the order of execution, so one pass is enough
        level[b] = max(level[b], level[a] + 1)
    for i in range(len(boxes) - 1, -1, -1):  # an input stands right above its first use
        after = [level[b] for a, b, _ in edges if a == i]
        if after and not any(b == i for _, b, _ in edges):
            level[i] = min(after) - 1
    rows: dict[int, list[int]] = {}
    for i, at in enumerate(level):
        rows.setdefault(at, []).append(i)
    step, tall = 74, 44
    centre: dict[int, tuple[float, float]] = {}
    for at, members in rows.items():
        for k, i in enumerate(members):
            centre[i] = (width * (k + 0.5) / len(members), at * step + tall / 2 + 8)
    height = (max(level, default=0) + 1) * step
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="ui-monospace,Menlo,monospace" font-size="12" role="img" aria-label="flow of the model">'
    ]
    for a, b, _ in edges:
        (x, y), (u, v) = centre[a], centre[b]
        parts.append(
            f'<path d="M{x:g} {y + tall / 2:g}C{x:g} {y + step / 2:g} {u:g} {v - step / 2:g} {u:g} {v - tall / 2:g}" '
            'fill="none" stroke="#999"/>'
        )
    for i, (name, shape) in enumerate(boxes):
        x, y = centre[i]
        wide = min(width / len(rows[level[i]]) - 8, 8 + 7.4 * max(len(name), len(shape)))
        parts.append(
            f'<rect x="{x - wide / 2:g}" y="{y - tall / 2:g}" width="{wide:g}" height="{tall}" rx="6" fill="#eef4fb" '
            f'stroke="#4e79a7"/><text x="{x:g}" y="{y - 4:g}" text-anchor="middle" font-weight="600" fill="#222">'
            f'{escape(name)}</text><text x="{x:g}" y="{y + 13:g}" text-anchor="middle" fill="#0b6bcb">'
            f"{escape(shape)}</text>"
        )
    return "".join([*parts, "</svg>"])
