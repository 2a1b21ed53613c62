"""Rules for picking and placing along a dim: gather, scatter, index_add, packed sequences."""

from __future__ import annotations

import re

from nanovlm.trace.explain.failed_call import Advice, FailedCall, shape


def along(call: FailedCall) -> Advice | None:
    """gather, scatter and the like: an index of as many dims as the tensor."""
    x, index, dim = call.info(0, "input"), call.info(2, "index"), call.value(1, "dim")
    if x is None or index is None or not isinstance(dim, int):
        return None
    a, b = call.text(0, "input"), call.text(2, "index")
    both = f"{a} is {shape(x.shape)} and {b} is {shape(index.shape)}"
    dim %= x.ndim or 1
    if index.ndim != x.ndim:
        wrong = f"{both}: the index of {call.name} must have {x.ndim} dims too."
        fits = index.shape == (*x.shape[:dim], *x.shape[dim + 1 :])
        at = -1 if dim == x.ndim - 1 else dim
        return Advice(wrong, f"{b}.unsqueeze({at}): one a row along dim {dim}." if fits else None)
    source = call.info(3, "src")
    if source is not None and any(i > s for i, s in zip(index.shape, source.shape, strict=False)):
        given = f"{both}, and {call.text(3, 'src')} is {shape(source.shape)}"
        return Advice(f"{given}: for each index there must be a value.")
    low, high = call.facts.get("low"), call.facts.get("high")
    if high is not None and (high >= x.shape[dim] or low < 0):
        has = f"dim {dim} has {x.shape[dim]} entries, 0 to {x.shape[dim] - 1}"
        return Advice(f"{both}: {has}, and the index goes from {low} to {high}.")
    return Advice(f"{both}: outside of dim {dim} the index may not be larger.")


def listed(call: FailedCall) -> Advice | None:
    """index_add, index_copy, index_select: a list of places along one dim."""
    x, index, source, dim = call.info(0, "input"), call.info(2, "index"), call.info(3, "source"), call.value(1, "dim")
    if x is None or index is None or not isinstance(dim, int):
        return None
    b = call.text(2, "index")
    if index.ndim > 1:
        wrong = (
            f"{call.text(0, 'input')} is {shape(x.shape)} and {b} is {shape(index.shape)}: {call.name} takes one list."
        )
        fix = f"one row of it, {b}[0] or {b}[1]." if index.ndim == 2 and index.shape[0] == 2 else None
        return Advice(wrong, fix)
    if source is None or not index.ndim or not source.ndim:
        return None
    size = source.shape[dim]
    if size != index.shape[0]:
        given = (
            f"{call.text(0, 'input')} is {shape(x.shape)}, {b} is {shape(index.shape)} and {call.text(3, 'source')} is "
        )
        return Advice(f"{given}{shape(source.shape)}: {index.shape[0]} places for {size} entries along dim {dim}.")
    return None


def distances(call: FailedCall) -> Advice | None:
    a, b = call.info(0, "x1"), call.info(1, "x2")
    if a is None or b is None or a.shape[-1:] == b.shape[-1:]:
        return None
    left, right, x, y = call.text(0, "x1"), call.text(1, "x2"), a.shape[-1], b.shape[-1]
    wrong = f"{left} is {shape(a.shape)} and {right} is {shape(b.shape)}: the last dim is {x} against {y}."
    return Advice(wrong, f"bring both to one width first, for example nn.Linear({x}, {y}) on {left}.")


def packed(call: FailedCall) -> Advice | None:
    """pack_padded_sequence: one length for each sequence of the batch."""
    x, lengths = call.info(0, "input"), call.info(1, "lengths")
    if x is None or lengths is None or not re.search(r"len\(lengths\).* equal to batch_size", call.said):
        return None
    batch_first = bool(call.value(2, "batch_first", False))
    wrong = (
        f"{call.text(0, 'input')} is {shape(x.shape)} and {call.text(1, 'lengths')} is {shape(lengths.shape)}: dim "
        f"{0 if batch_first else 1} is taken for the batch."
    )
    fits = not batch_first and x.shape[0] == lengths.shape[0]
    return Advice(wrong, "dim 0 is the batch: pass batch_first=True." if fits else None)


def pooled(call: FailedCall) -> Advice | None:
    x, kernel = call.info(0, "input"), call.value(1, "kernel_size")
    if x is None or "Output size is too small" not in call.said:
        return None
    wrong = f"{call.text(0, 'input')} is {shape(x.shape)}: smaller than the kernel of {call.layer_name}, {kernel}."
    return Advice(wrong, "one pooling less, or a larger picture.")


RULES = {
    **dict.fromkeys(("gather", "scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce"), along),
    **dict.fromkeys(("index_add", "index_add_", "index_copy", "index_copy_", "index_select"), listed),
    "cdist": distances,
    "_pack_padded_sequence": packed,
    **dict.fromkeys((f"{kind}_pool{n}d" for kind in ("max", "avg", "lp") for n in (1, 2, 3)), pooled),
}
