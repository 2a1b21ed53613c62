"""A failed step, with everything a rule needs to explain it in the learner's own terms."""

from __future__ import annotations

import inspect
from itertools import takewhile
from typing import Any, NamedTuple

import torch

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
        self.layer: Row | None = row if row.kind == "module" else above if is_torchs_module(above) else None
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
            elif self.layer is not None and (row is not self.layer or is_torchs_module(above)):
                self._written, self._keywords = self._of_the_layer(self.layer)

    def _of_the_layer(self, layer: Row) -> tuple[list[str], dict[str, str]]:
        """What is written for the step's arguments where the learner called the layer: the same tensors' texts."""
        outermost = layer
        while is_torchs_module(outermost.parent):
            outermost = outermost.parent
        texts = {
            info.uid: text
            for value, text in zip(outermost.args, self._written, strict=False)
            for info, text in _texts(value, text)
        }
        for name, value in outermost.kwargs.items():
            texts |= {info.uid: text for info, text in _texts(value, self._keywords.get(name, name))}
        found = [texts.get(value.uid, "") if isinstance(value, TensorInfo) else "" for value in self.row.args]
        while found and not found[-1]:
            found.pop()
        return found, {n: texts[v.uid] for n, v in self.row.kwargs.items() if getattr(v, "uid", None) in texts}

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
        if name in self._keywords:
            return self._keywords[name]
        if position < len(self._written) and self._written[position]:
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
        roles = self._roles()
        for i, value in enumerate(self.row.args):
            if isinstance(value, TensorInfo):
                found.append((self.text(i, roles[i] if i < len(roles) else f"argument {i}"), value))
            elif isinstance(value, (list, tuple)) and any(isinstance(part, TensorInfo) for part in value):
                found += self.parts(i)
        for name, value in self.row.kwargs.items():
            if isinstance(value, TensorInfo):
                found.append((self.text(len(self.row.args) + 9, name), value))
        return list({(text, info.uid): (text, info) for text, info in found}.values())

    def _roles(self) -> list[str]:
        """The names of the step's arguments, where torch wrote them down."""
        if self.row.kind == "module":
            layer = getattr(torch.nn, (self.row.cls or "").removeprefix("torch.nn."), None)
            return list(inspect.signature(layer.forward).parameters)[1:] if layer is not None else []
        if self.name in _ROLES:
            return _ROLES[self.name]
        function = getattr(torch.nn.functional, self.name, None)
        return list(inspect.signature(function).parameters) if inspect.isfunction(function) else []

    @property
    def place(self) -> str:
        """Path of the module whose code the line is in: of the layer's owner, where torch wrote the layer."""
        row: Row | None = self.row
        while row is not None and (row.kind != "module" or (row.cls or "").startswith("torch.nn.")):
            row = row.parent
        return row.path if row is not None else ""


_PRODUCT, _PLACING = ["input", "weight", "bias"], ["input", "dim", "index", "source"]
_ROLES = {
    "scaled_dot_product_attention": ["query", "key", "value", "attn_mask"],
    "cross_entropy": ["logits", "targets", "weight"],
    "nll_loss": ["log_probs", "targets", "weight"],
    "linear": _PRODUCT,
    **{f"conv{kind}{n}d": _PRODUCT for kind in ("", "_transpose") for n in (1, 2, 3)},
    **dict.fromkeys(("gather", "scatter", "scatter_add", "index_add", "index_copy", "index_select"), _PLACING),
    **{f"{kind}_cell": ["input", "state"] for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
}


def is_torchs_module(row: Row | None) -> bool:
    return row is not None and row.kind == "module" and (row.cls or "").startswith("torch.nn.")


def _texts(value: Any, text: str) -> list[tuple[TensorInfo, str]]:
    """An argument's tensors with what is written for each: of a tuple that is written out, for each of its parts."""
    if isinstance(value, TensorInfo):
        return [(value, text)]
    parts = elements(text)
    if isinstance(value, (list, tuple)) and len(parts) == len(value):
        return [(info, part) for info, part in zip(value, parts, strict=True) if isinstance(info, TensorInfo)]
    return []


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
    if len(given) != len(direct.args):
        return []
    both = zip(given, row.args, direct.args, strict=False)
    is_same = ([i.uid for i in tensors(own)] == [i.uid for i in tensors(outer)] for _, own, outer in both)
    return given[: sum(takewhile(bool, is_same))]


def _before(layer: Row | None) -> str | None:
    """The layer in front, for one that nn.Sequential calls: what goes in has no name that somebody wrote."""
    above = layer.parent if layer is not None else None
    if above is None or above.cls != "torch.nn.Sequential":
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
