"""What trace() returns: the tree of steps, and the questions that can be asked about it."""

from __future__ import annotations

import fnmatch
import json
from html import escape
from typing import Any

from torch import Tensor

from nanovlm.trace.measure.flops import count_flops
from nanovlm.trace.names import near
from nanovlm.trace.rows import Row
from nanovlm.trace.show.diff import Diff, diff, expect
from nanovlm.trace.show.flow import finish
from nanovlm.trace.show.graph import mermaid, svg
from nanovlm.trace.show.html import render_html
from nanovlm.trace.show.stages import Stages, find_stages
from nanovlm.trace.show.tables import Table, as_json, module_table
from nanovlm.trace.show.text import render_tree, with_remark


class Trace:
    """Every step of one run. Prints as a folded tree; shows as foldable HTML in a notebook.

    inputs: what went in, by name. num_params: each parameter once.
    failed: the step that raised, or None. attention: weights by the module paths that were asked for.
    dims: the named sizes. remark: what a reader of the trace should know, or None.
    """

    def __init__(self, root: Row, num_params: int = 0):
        self._root = root
        self._is_finished = True
        self.num_params = num_params
        self.inputs: dict[str, Any] = {}
        self.failed: Row | None = None
        self.attention: dict[str, list[Tensor]] = {}
        self.dims: dict[str, int] = {}
        self.remark: str | None = None

    @property
    def root(self) -> Row:
        """The outermost row: the model's, or the function's."""
        if not self._is_finished:
            self._is_finished = True
            self._complete()
        return self._root

    def ended(self) -> None:
        """The run is over. What follows from its rows is worked out when somebody looks at them."""
        self._is_finished = False

    def add_remark(self, sentence: str | None) -> None:
        self.remark = "; ".join(filter(None, (self.remark, sentence))) or None

    def _complete(self) -> None:
        root = self._root
        only = root.children[0] if len(root.children) == 1 else None
        if only is not None and self.inputs and (only.kind == "module" or only.name == root.name):
            if only.out is None:
                only.out = root.out
            if only.kind == "function":
                only.args, only.kwargs = root.args, {}
            only.parent, self._root = None, only
        finish(self._root)
        count_flops(self._root)

    @property
    def rows(self) -> list[Row]:
        return list(self.root.walk())

    @property
    def flops(self) -> int:
        return self.root.flops

    def stages(self) -> Stages:
        """The few lines that matter: inputs, top modules, changes of shape between them, where streams meet."""
        return find_stages(self.root, self.inputs, self.remark)

    def find(self, name: str) -> list[Row]:
        """All rows with this function name, module path, module class or pattern ("blocks.*.attn"), in order."""
        return [row for row in self.rows if _matches(row, name)]

    def __getitem__(self, name: str) -> Row:
        """The first row of that name: a module path, else the outermost function or class of that name."""
        found = [row for row in self.rows if row.kind == "module" and row.path == name] or self.find(name)
        if not found:
            paths = sorted({row.path for row in self.rows if row.kind == "module" and row.path})
            shown = ", ".join(paths[:8]) + (", …" if len(paths) > 8 else "")
            like = ", ".join(map(repr, near(name, [*paths, *(own for row in self.rows for own in _names(row))])))
            hint = f"Near it: {like}. " if like else ""
            raise KeyError(f"The trace has no step named {name!r}. {hint}Modules that ran: {shown or 'none'}.")
        return min(found, key=_depth)

    def text(self, depth: int | None = None, fold: bool = True) -> str:
        """The tree as text. depth: levels below the root; fold=False shows every repetition."""
        return with_remark(render_tree(self.root, depth, fold), self.remark)

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return render_html(self.root, self.remark)

    def html(self) -> str:
        """A whole page, to be written to a file."""
        title = self.root.cls or self.root.name
        return f'<!doctype html><meta charset="utf-8"><title>{escape(title)}</title>{self._repr_html_()}'

    def table(self, depth: int | None = None) -> Table:
        """One line a module: shapes in and out, parameters, FLOPs, bytes. depth: levels below the model."""
        return module_table(self.root, depth, self.num_params, self.flops)

    def expect(self, patterns: dict[str, str]) -> None:
        """Check shapes: {"vision_encoder": "B 196 768", "cat": "B 49+T 576"}. A name is one size everywhere.

        Raises ShapeMismatch with what was expected, what came, and the first step that differs.
        """
        expect(self.__getitem__, patterns, self.dims)

    def diff(self, other: Trace) -> Diff:
        """What the other trace has differently: other shapes or dtypes (!), steps gone (-), steps added (+)."""
        return diff(self.root, other.root)

    def first_nan(self) -> Row | None:
        """The first step in which a NaN appears (needs values=True)."""
        return self._first("nan")

    def first_inf(self) -> Row | None:
        """The first step in which an infinity appears (needs values=True). Masks with -inf are meant to."""
        return self._first("inf")

    def _first(self, kind: str) -> Row | None:
        rows = [row for row in self.rows if row.kind == "op"]
        if not any(row.stats for row in rows):
            raise ValueError("This trace holds no values: trace with values=True, and not on the meta device.")
        return next((row for row in rows if row.stats and row.stats[kind]), None)

    def to_json(self, indent: int | None = None) -> str:
        """Everything as JSON: nested rows with names, shapes, parameters, FLOPs and source places."""
        head = {"num_params": self.num_params, "flops": self.flops, "dims": self.dims, "remark": self.remark}
        return json.dumps(head | {"root": as_json(self.root)}, indent=indent)

    def mermaid(self) -> str:
        """A flow chart of the main parts in Mermaid's language."""
        return mermaid(self.root, self.inputs)

    def svg(self) -> str:
        """The flow chart as a static SVG picture."""
        return svg(self.root, self.inputs)


def _matches(row: Row, name: str) -> bool:
    return any(fnmatch.fnmatchcase(own, name) for own in _names(row))


def _names(row: Row) -> list[str]:
    names = [row.name, row.cls or "", (row.cls or "").removeprefix("torch.nn.")]
    if row.kind == "module":
        names.append(row.path)
    return [name for name in names if name]


def _depth(row: Row) -> int:
    depth = 0
    while row.parent is not None:
        row, depth = row.parent, depth + 1
    return depth
