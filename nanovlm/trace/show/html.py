"""The tree as static HTML: <details>, inline CSS, no script; the same in JupyterLab, Colab and on GitHub pages."""

from __future__ import annotations

from html import escape

from nanovlm.trace.rows import Row
from nanovlm.trace.show.fold import Node, fold
from nanovlm.trace.show.text import human, milliseconds, node_notes, node_shape, node_title, usual_dtype
from nanovlm.trace.source import locate

# JupyterLab's theme decides, where it says which it has, elsewhere the system's. Nothing else has a fixed colour.
_STYLE = """<style>
.vlm-trace{font:13px/1.5 ui-monospace,Menlo,Consolas,monospace;overflow-x:auto;--shape:#0b6bcb;--bad:#a00;--on:#fdd}
.vlm-trace details,.vlm-trace p{margin:0 0 0 1.1em;padding:0}
.vlm-trace summary{cursor:pointer;margin-left:-1.1em}
.vlm-trace.vlm-trace p,.vlm-trace summary{padding-left:3em;text-indent:-3em}
.vlm-trace b{font-weight:600}
.vlm-trace span{color:var(--shape);margin:0 .4em}
.vlm-trace i{font-style:normal;opacity:.75;margin-right:.4em}
.vlm-trace.vlm-trace code{color:inherit;opacity:.75;background:none;padding:0;font-size:12px}
.vlm-trace.vlm-trace code{white-space:normal;overflow-wrap:anywhere}
.vlm-trace.vlm-trace .x,.vlm-trace.vlm-trace .x *{background:var(--on);color:var(--bad);opacity:1}
@media(prefers-color-scheme:dark){.vlm-trace{--shape:#6cb2ff;--bad:#ffb4ab;--on:#5c1a16}}
[data-jp-theme-light=true] .vlm-trace{--shape:#0b6bcb;--bad:#a00;--on:#fdd}
[data-jp-theme-light=false] .vlm-trace{--shape:#6cb2ff;--bad:#ffb4ab;--on:#5c1a16}
</style>"""
_OPEN_LEVELS = 2


def preformatted(text: str) -> str:
    """Text whose columns stand, in the colours of the page around it."""
    style = "font:13px/1.5 ui-monospace,Menlo,Consolas,monospace;white-space:pre;overflow-x:auto"
    return f'<pre style="{style};color:inherit;background:none;margin:0">{escape(text)}</pre>'


def render_html(root: Row, remark: str | None = None) -> str:
    """A folded tree. Open: the first levels, and the way to a step that failed."""
    parts: list[str] = []
    _node(fold(root), 0, usual_dtype(root), parts)
    note = f"<p><i>{escape(remark)}</i></p>" if remark else ""
    return f'<div class="vlm-trace">{_STYLE}{"".join(parts)}{note}</div>'


def _node(node: Node, depth: int, dtype: str | None, parts: list[str]) -> None:
    line = _line(node, dtype)
    failed = node.row.error is not None
    mark = ' class="x"' if failed else ""
    if not node.children:
        parts.append(f"<p{mark}>{line}</p>")
        return
    is_open = " open" if depth < _OPEN_LEVELS or failed or any(r.error for r in node.row.walk()) else ""
    parts.append(f"<details{is_open}><summary{mark}>{line}</summary>")
    for child in node.children:
        _node(child, depth + 1, dtype, parts)
    parts.append("</details>")


def _line(node: Node, dtype: str | None) -> str:
    row = node.row
    costs = [f"{human(row.params)} params" if row.params else "", human(row.flops, "FLOP") if row.flops else ""]
    if row.seconds is not None:
        costs.append(milliseconds(row.seconds))
    costs.append(node_notes(node, dtype))
    source = locate(row.where)
    cost = " · ".join(filter(None, costs))
    # Spaces and not only margins: GitHub strips styles, and the words would run together.
    parts = [f"<b>{escape(node_title(node))}</b>", f"<span>{escape(node_shape(node))}</span>"]
    if cost:
        parts.append(f"<i>{escape(cost)}</i>")
    if source is not None and source.short:
        text = source.short if len(source.short) <= 100 else source.short[:99] + "…"
        parts.append(f'<code title="{escape(source.place)}">{escape(text)}</code>')
    return " ".join(parts)
