"""A failed step, with everything a rule needs to explain it in the learner's own terms."""

from __future__ import annotations

from itertools import takewhile
from typing import Any, NamedTuple

from nanovlm.trace.rows import Row, TensorInfo, tensors
from nanovlm.trace.source import Source, elements, locate, operands


class Advice(NamedTuple):
    """One sentence that says what is wrong, with both sizes, and one that says what to do."""

    wrong: str
    fix: str | None = None


class FailedCall:
    """row: the step that failed. said: torch's message. layer: the torch.nn layer around it, if it is one's inside.

    `text(i)` is what the learner wrote for argument i, `info(i)` its shape.
    """

    def __init__(self, row: Row, said: str):
        self.row = row
        self.name = row.name
        self.said = said
        self.facts: dict[str, Any] = row.settings or {}  # least and largest ids, number of True
        self.source: Source | None = locate(row.where)
        above = row.parent
        inside = above is not None and above.kind == "module" and (above.cls or "").startswith("torch.nn.")
        self.layer: Row | None = above if inside else None
        self._written: list[str] = []
        self._keywords: dict[str, str] = {}
        before = _before(self.layer)
        self.is_named = before is None  # whether the input has a name that can be written into a fix
        if before is not None:
            self._written = [f"the output of {before}"]
        elif above is None or above.kind != "op":  # inside a function of torch nothing is the learner's writing
            direct = _traced_directly(row)
            called = "trace" if direct else self.layer.name if self.layer is not None else self.name
            is_module = direct is not None or self.layer is not None
            self._written, self._keywords = operands(self.source, called, is_module)
            if direct is not None:
                self._written = _handed_on(self._written, row, direct)

    @property
    def layer_name(self) -> str:
        """`projector.proj (Linear)`, or the function's name."""
        if self.layer is None:
            return self.name
        kind = (self.layer.cls or "").removeprefix("torch.nn.")
        return f"{self.layer.path} ({kind})" if self.layer.path else kind

    def value(self, position: int, name: str, default: Any = None) -> Any:
        """An argument of the step, given by position or by name."""
        row = self.row
        return row.args[position] if len(row.args) > position else row.kwargs.get(name, default)

    def info(self, position: int, name: str) -> TensorInfo | None:
        value = self.value(position, name)
        return value if isinstance(value, TensorInfo) else None

    def text(self, position: int, name: str) -> str:
        """What the learner wrote for an argument; else its parameter's name, or the argument's own."""
        info = self.info(position, name)
        if self.layer is None or position == 0:
            if name in self._keywords:
                return self._keywords[name]
            if position < len(self._written):
                return self._written[position]
        return info.name if info is not None and info.name else name

    def parts(self, position: int = 0) -> list[tuple[str, TensorInfo]]:
        """(text, shape) of each tensor in an argument that is a list, as in torch.cat([a, b])."""
        infos = [info for info in self.row.args[position] if isinstance(info, TensorInfo)] if self.row.args else []
        texts = elements(self._written[position]) if position < len(self._written) else []
        if len(texts) != len(infos):
            texts = [f"tensor {i}" for i in range(len(infos))]
        return list(zip(texts, infos, strict=True))

    def operands(self) -> list[tuple[str, TensorInfo]]:
        """(text, shape) of every tensor of the step, in order."""
        found: list[tuple[str, TensorInfo]] = []
        for i, value in enumerate(self.row.args):
            if isinstance(value, TensorInfo):
                found.append((self.text(i, _ROLES.get((self.name, i), f"argument {i}")), value))
            elif isinstance(value, (list, tuple)) and any(isinstance(part, TensorInfo) for part in value):
                found += self.parts(i)
        for name, value in self.row.kwargs.items():
            if isinstance(value, TensorInfo):
                found.append((self.text(len(self.row.args) + 9, name), value))
        return list({(text, info.uid): (text, info) for text, info in found}.values())

    @property
    def place(self) -> str:
        """Path of the module whose code the line is in: of the layer's owner, where torch wrote the layer."""
        row: Row | None = self.row
        while row is not None and (row.kind != "module" or (row.cls or "").startswith("torch.nn.")):
            row = row.parent
        return row.path if row is not None else ""


_ROLES = {
    ("scaled_dot_product_attention", 0): "query",
    ("scaled_dot_product_attention", 1): "key",
    ("scaled_dot_product_attention", 2): "value",
    ("cross_entropy", 0): "logits",
    ("cross_entropy", 1): "targets",
    **{(name, 0): "input" for name in ("linear", "conv1d", "conv2d", "conv3d", "embedding", "layer_norm", "rms_norm")},
}


def _traced_directly(row: Row) -> Row | None:
    """The layer or function of torch that trace() itself called, where the step is written in no other line."""
    top = row
    while top.parent is not None and top.parent.kind != "root":
        top = top.parent
    is_written_there = top.parent is not None and top.parent.where is not None and top.parent.where == row.where
    return top if is_written_there else None


def _handed_on(written: list[str], row: Row, direct: Row) -> list[str]:
    """Of trace(layer, x, ...) what is written for the arguments that the step itself takes; the layer is none."""
    given = written[1:]
    if len(given) != len(direct.args) or any(text.startswith("*") for text in given):
        return []
    both = zip(given, row.args, direct.args, strict=False)
    is_same = ([i.uid for i in tensors(own)] == [i.uid for i in tensors(outer)] for _, own, outer in both)
    return given[: sum(takewhile(bool, is_same))]


def _before(layer: Row | None) -> str | None:
    """The layer in front, for one that nn.Sequential calls: what goes in has no name that somebody wrote."""
    above = layer.parent if layer is not None else None
    if above is None or above.kind != "module" or not (above.cls or "").startswith("torch.nn."):
        return None
    at = above.children.index(layer)
    if at == 0:
        return None
    return f"{above.children[at - 1].path} ({(above.children[at - 1].cls or '').removeprefix('torch.nn.')})"


def shape(sizes: Any) -> str:
    return "[" + ", ".join(str(size) for size in sizes) + "]"


def ordinal(dim: int, ndim: int) -> str:
    """How a person calls a dim: "the last dim", "dim 1"."""
    return "the last dim" if dim in (-1, ndim - 1) else f"dim {dim % ndim}"


def ordinal_of_both(dim: int, a: TensorInfo, b: TensorInfo) -> str:
    """The same for two tensors, `dim` counted in the larger one: of unequal ranks only places from the right agree."""
    ndim = max(a.ndim, b.ndim)
    words = ("", "last", "second-to-last", "third-to-last", "fourth-to-last")
    from_right = ndim - dim
    return ordinal(dim, ndim) if a.ndim == b.ndim or from_right >= len(words) else f"the {words[from_right]} dim"


def broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape that two shapes broadcast to, or None."""
    n = max(len(a), len(b))
    a, b = (1,) * (n - len(a)) + tuple(a), (1,) * (n - len(b)) + tuple(b)
    if any(x != y and 1 not in (x, y) for x, y in zip(a, b, strict=True)):
        return None
    return tuple(max(x, y) if 0 not in (x, y) else 0 for x, y in zip(a, b, strict=True))
