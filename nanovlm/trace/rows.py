"""The record: what one step did. Metadata only; no tensor is ever held here."""

from __future__ import annotations

from collections.abc import Iterator
from types import CodeType
from typing import Any

Where = tuple[CodeType, int]  # a code object and the index of the instruction that was running: resolved when shown


class Ragged(int):
    """A size that differs within a nested tensor: shown as torch does (j1), counted as nothing."""

    text: str

    def __new__(cls, text: str) -> Ragged:
        made = super().__new__(cls, 0)
        made.text = text
        return made

    def __repr__(self) -> str:
        return self.text


class TensorInfo:
    """Shape, dtype and device of a tensor that passed by. `uid` is the same for the same tensor object.

    `name` is the parameter's or buffer's name in the model, if it has one; `dims` its symbolic shape, if fitted.
    """

    __slots__ = ("device", "dims", "dtype", "name", "requires_grad", "shape", "uid")

    def __init__(self, shape, dtype, device, uid=0, requires_grad=False, name=None):
        self.shape: tuple[int, ...] = shape
        self.dtype = dtype
        self.device: str = device
        self.uid: int = uid
        self.requires_grad: bool = requires_grad
        self.name: str | None = name
        self.dims: tuple[str, ...] | None = None

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def numel(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def nbytes(self) -> int:
        """Size in bytes as a dense tensor (a view shares its memory with another tensor)."""
        return self.numel * self.dtype.itemsize

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def __str__(self) -> str:
        return "[" + ", ".join(str(d) for d in (self.dims or self.shape)) + "]"

    def __repr__(self) -> str:
        return f"{self} {self.dtype_name}"


class Opaque:
    """Stands for an argument that is neither a tensor nor a plain value (a config, a cache): only its type's name."""

    __slots__ = ("text",)

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text


class Row:
    """One step: a module's call, a call of the learner's own function, or a torch function.

    `kind` is "module", "function", "op", "aten", "backward", "optimizer" or "root".
    `args`, `kwargs` and `out` have the structure of the real ones, with a `TensorInfo` in each tensor's place.
    """

    __slots__ = (
        "args",
        "children",
        "cls",
        "error",
        "flops",
        "index",
        "kind",
        "kwargs",
        "name",
        "note",
        "out",
        "params",
        "parent",
        "path",
        "seconds",
        "settings",
        "stats",
        "where",
    )

    def __init__(self, kind: str, name: str, parent: Row | None, where: Where | None = None, path: str = ""):
        self.kind = kind
        self.name = name
        self.parent = parent
        self.where = where
        self.path = path  # of a module: its own; of anything else: that of the module around it
        self.args: Any = ()
        self.kwargs: dict[str, Any] = {}
        self.out: Any = None
        self.children: list[Row] = []
        self.cls: str | None = None  # class of a module, and in front of it "torch.nn." where torch wrote it
        self.params: int | None = None
        self.settings: dict[str, Any] | None = None  # what a module of torch was built with: in_features = 144
        self.error: str | None = None
        self.seconds: float | None = None
        self.stats: dict[str, float] | None = None
        self.note: str | None = None
        self.flops = 0  # of the products in this row (measure/flops.py); a multiplication and an addition are two
        self.index = 0

    def walk(self) -> Iterator[Row]:
        """This row and everything inside it, in the order of execution."""
        yield self
        for child in self.children:
            yield from child.walk()

    @property
    def inputs(self) -> list[TensorInfo]:
        return tensors((self.args, self.kwargs))

    @property
    def outs(self) -> list[TensorInfo]:
        return tensors(self.out)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of the first tensor that came out, or None."""
        outs = self.outs
        return outs[0].shape if outs else None

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that came out of this row."""
        return sum(info.nbytes for info in self.outs)

    @property
    def label(self) -> str:
        """The name as it stands in the tree: a module's path below the row it is shown in."""
        if self.kind != "module":
            return self.name
        above = self.parent
        while above is not None and above.kind != "module":
            above = above.parent
        base = above.path + "." if above is not None and above.path else ""
        if not self.path:
            return self.cls.removeprefix("torch.nn.") if self.cls else self.name
        return self.path.removeprefix(base)

    def __repr__(self) -> str:
        result = show(self.out) if self.error is None else f"failed: {self.error}"
        return f"{self.path or self.name if self.kind == 'module' else self.name} {show_inputs(self)} -> {result}"


def tensors(structure: Any) -> list[TensorInfo]:
    """All `TensorInfo` in a nested structure, in order."""
    if isinstance(structure, TensorInfo):
        return [structure]
    if isinstance(structure, dict):
        structure = structure.values()
    elif not isinstance(structure, (list, tuple)):
        return []
    return [info for part in structure for info in tensors(part)]


def show(structure: Any, limit: int = 4) -> str:
    """A structure in one line: `[2, 3]`, `([2, 3], [2])`, `{logits [2, 3], loss []}`, `6 tensors [2, 3]`."""
    if isinstance(structure, dict):
        parts = [f"{key} {show(value, 2)}" for key, value in structure.items() if value is not None]
        if len(parts) > limit:
            parts = [*parts[:limit], f"{len(parts) - limit} more"]
        return "{" + ", ".join(parts) + "}"
    if isinstance(structure, (list, tuple)):
        infos = tensors(structure)
        if len(infos) == len(structure) > 1 and len({str(info) for info in infos}) == 1:
            return f"{len(infos)} × {infos[0]}"
        parts = [show(part, 2) for part in structure if part is not None]
        if len(parts) > limit:
            parts = [*parts[:limit], f"{len(parts) - limit} more"]
        return parts[0] if len(parts) == 1 else "(" + ", ".join(parts) + ")"
    return str(structure)


def show_inputs(row: Row) -> str:
    """The tensors that went in, parameters aside, in one line."""
    own = [info for info in row.inputs if info.name is None] or row.inputs
    parts = [str(info) for info in own]
    if len(parts) > 4:
        parts = [*parts[:3], f"{len(parts) - 3} more"]
    return " ".join(parts)
