"""The few lines that a tutorial would print by hand: where the picture, the text and both together have which shape."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from nanovlm.trace.rows import Row, TensorInfo, tensors
from nanovlm.trace.show.flow import ancestry
from nanovlm.trace.show.html import preformatted
from nanovlm.trace.show.text import with_remark

_JOINS = {"cat", "masked_scatter", "masked_scatter_", "index_put", "index_put_", "setitem", "where", "hstack"}


class Stage(NamedTuple):
    label: str
    info: TensorInfo
    row: Row | None  # None: an input

    @property
    def shape(self) -> tuple[int, ...]:
        return self.info.shape


class Stages(list):
    """A list of `Stage` that prints as one line each, and the trace's remark below them."""

    def __init__(self, stages: Iterable[Stage] = (), remark: str | None = None):
        super().__init__(stages)
        self.remark = remark

    def __str__(self) -> str:
        width = max([20, *(len(stage.label) for stage in self)]) + 7
        return with_remark("\n".join(f"{stage.label:<{width}}{stage.info}" for stage in self), self.remark)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return preformatted(str(self))


def find_stages(root: Row, inputs: dict[str, Any], remark: str | None = None) -> Stages:
    """Inputs, the top modules, shape-changing functions between them, and the step where two inputs' streams meet."""
    floats = {name: info for name, value in inputs.items() for info in tensors(value) if info.dtype.is_floating_point}
    ids = {name: info for name, value in inputs.items() for info in tensors(value) if not info.dtype.is_floating_point}
    shown = {name: info for name, info in (floats or dict(list(ids.items())[:1])).items() if info.ndim > 1}
    origin = ancestry(root, inputs)

    def streams(info: TensorInfo | None) -> frozenset[str]:
        return origin.get(info.uid, frozenset()) if info is not None else frozenset()

    before: dict[frozenset[str], list[Stage]] = {}  # each stream's stages, until two of them meet
    for name, info in shown.items():
        before[frozenset([name])] = [Stage(_input_label(name, info), info, None)]
    after: list[Stage] = []
    vocabulary = {row.inputs[1].shape[0] for row in root.walk() if row.name == "embedding" and len(row.inputs) > 1}
    for row in visible(root):
        target: list[Stage] = after
        info = row.outs[0] if row.outs else None
        meeting = None if after else _meeting(row, streams)
        if meeting is None and not after:
            target = before.setdefault(streams(info or (row.inputs or [None])[0]), [])
        if meeting is not None:
            target.append(Stage("combined", meeting.outs[0], meeting))
        elif row.kind == "function":
            source = next((i for i in row.inputs if i.dtype.is_floating_point), None)
            if source is not None and info is not None and source.shape != info.shape:
                target.append(Stage(f"before {row.name}", source, row))
                target.append(Stage(f"after {row.name}", info, row))
        elif row.kind == "module" and info is not None:
            embedding = next((r for r in row.walk() if r.name == "embedding" and r.kind == "op"), None)
            if embedding is not None and len(row.children) <= 1:
                target.append(Stage("token embeddings", info, row))
            else:
                target.append(Stage(_module_label(row, info, vocabulary), info, row))
    images_first = sorted(before.items(), key=lambda item: not item[0] & floats.keys())
    every = [stage for _, found in images_first for stage in found] + after
    once: dict[tuple[str, str], Stage] = {}
    for stage in every:  # a decoding loop says the same for each token
        once.setdefault((stage.label, str(stage.info)), stage)
    return Stages(once.values(), remark)


def _input_label(name: str, info: TensorInfo) -> str:
    return "image" if info.ndim == 4 and info.shape[1] in (1, 3) else name


def _module_label(row: Row, info: TensorInfo, vocabulary: set[int]) -> str:
    if vocabulary and info.shape[-1:] and info.shape[-1] in vocabulary and len(row.children) <= 1:
        return "logits"
    head, _, tail = row.path.rpartition(".")
    return f"after {head.rpartition('.')[2]}.{tail}" if tail.isdigit() and head else f"after {tail or row.cls}"


def visible(row: Row) -> Iterator[Row]:
    for child in row.children:
        if child.error is None and _opens(child):
            yield from visible(child)
        else:
            yield child


def _opens(row: Row) -> bool:
    """Whether the picture gets clearer by showing what is inside instead of the row itself."""
    if row.kind == "function":
        return any(inner.kind == "module" for inner in row.walk())
    if row.kind != "module" or (row.cls or "").startswith("torch.nn."):
        return False
    if not row.path:
        return True
    rows = list(row.walk())
    if len(_stacks(rows)) > 1:  # several backbones inside
        return True
    changes = [r for r in row.children if r.kind == "function" and r.inputs and r.outs and r.inputs[0].shape != r.shape]
    return bool(changes) and len(rows) <= 16


def _stacks(rows: list[Row]) -> set[str]:
    """The lists of repeated blocks: {"vision_encoder.blocks", "decoder.blocks"}; a stack inside a stack is no other."""
    found = set()
    for row in rows:
        match = re.match(r"(.*?)\.\d+(\.|$)", row.path) if row.kind == "module" else None
        if match:
            found.add(match.group(1))
    return found


def _meeting(row: Row, streams) -> Row | None:
    """The step in this row that joins tensors of different inputs along the sequence, if there is one."""
    for step in row.walk():
        if step.kind != "op" or step.name not in _JOINS or not step.outs or step.outs[0].ndim < 3:
            continue
        if not step.outs[0].dtype.is_floating_point:
            continue
        parts = [streams(info) for info in step.inputs if info.dtype.is_floating_point and streams(info)]
        if any(not a & b for a in parts for b in parts):
            return step
    return None
