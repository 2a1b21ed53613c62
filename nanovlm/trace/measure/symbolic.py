"""Names the dims that depend on the inputs' sizes: [12, 128, 576] -> [B, 49+T, 576].

Not by matching values (with B = 12 the 12 heads would be called B): the model is run again on the meta device with
other sizes, and each dim is fitted as a formula of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from nanovlm.trace.measure.formula import Formulas, Sizes
from nanovlm.trace.names import NO_OPS
from nanovlm.trace.rows import Row, TensorInfo


def bind(inputs: dict[str, Any], dims: dict[str, Any]) -> dict[tuple, dict[int, str]]:
    """Which dim of which input tensor has which name: {("input_ids",): {0: "B", 1: "T"}}.

    dims: sizes by name ({"B": 12, "T": 79}: every dim of that size, from the left), or patterns by argument
    ({"input_ids": "B T"}), which decide where sizes are ambiguous.
    """
    leaves = dict(_leaves(inputs))
    bound: dict[tuple, dict[int, str]] = {}
    patterns = {name: value for name, value in dims.items() if isinstance(value, str)}
    for name, pattern in patterns.items():
        tensor = leaves.get((name,))
        words = pattern.split()
        if tensor is None or len(words) != tensor.ndim:
            shape = list(tensor.shape) if tensor is not None else f"arguments {', '.join(map(repr, inputs))}"
            raise ValueError(f"dims: the pattern {name!r}: {pattern!r} does not fit; there is {shape}.")
        bound[(name,)] = {i: word for i, word in enumerate(words) if not word.isdigit()}
    sizes = {name: value for name, value in dims.items() if not isinstance(value, str)}
    for path, tensor in leaves.items():
        if path not in bound:
            taken: dict[int, str] = {}
            for i, size in enumerate(tensor.shape):
                name = next((n for n, s in sizes.items() if s == size and (n not in taken.values())), None)
                if name is not None:
                    taken[i] = name
            bound[path] = taken
    found = {name for names in bound.values() for name in names.values()}
    for name, size in sizes.items():
        if name not in found:
            shapes = ", ".join(f"{'.'.join(map(str, path))} {list(t.shape)}" for path, t in leaves.items())
            raise ValueError(f"dims: no input has a dim of size {name} = {size}. The inputs are: {shapes}.")
    return bound


def base_sizes(inputs: dict[str, Any], bound: dict[tuple, dict[int, str]]) -> Sizes:
    sizes: Sizes = {}
    for path, tensor in _leaves(inputs):
        for i, name in bound.get(path, {}).items():
            if sizes.setdefault(name, tensor.shape[i]) != tensor.shape[i]:
                raise ValueError(f"dims: {name} is {sizes[name]} in one input and {tensor.shape[i]} in another.")
    return sizes


def resize(value: Any, bound: dict[tuple, dict[int, str]], sizes: Sizes, path: tuple = ()) -> Any:
    """The inputs with named dims grown to `sizes` by repeating the last slice (so placeholders keep their number)."""
    if isinstance(value, Tensor):
        for i, name in bound.get(path, {}).items():
            extra = sizes[name] - value.shape[i]
            if extra > 0:
                last = value.narrow(i, value.shape[i] - 1, 1)
                value = torch.cat([value, *[last] * extra], dim=i)
        return value
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(resize(part, bound, sizes, (*path, i)) for i, part in enumerate(value))
    if isinstance(value, dict):
        return {key: resize(part, bound, sizes, (*path, key)) for key, part in value.items()}
    return value


def probe_sizes(base: Sizes) -> list[Sizes]:
    """Every name grown alone, every pair together, and all by other amounts as a check of the formulas."""
    steps = (5, 7, 11, 13, 17)
    grown = {name: base[name] + steps[i % 5] for i, name in enumerate(base)}
    probes = [{**base, name: grown[name]} for name in base]
    probes += [{**base, a: grown[a], b: grown[b]} for a, b in itertools.combinations(base, 2)]
    return [*probes, {name: size + 2 * (i + 1) for i, (name, size) in enumerate(base.items())}]


def name_rows(root: Row, run: Callable[[Sizes], Row], base: Sizes) -> str | None:
    """Fit all names, or else those at whose other sizes the model runs; returns what a reader should know of it."""
    try:
        return fit_rows(root, run, base)
    except Exception as error:  # whatever the model raises
        reason = _first_line(error)
    failing: dict[str, str] = {}
    for name, sizes in zip(base, probe_sizes(base), strict=False):  # the first probes grow one name each
        try:
            run(sizes)
        except Exception as error:
            failing[name] = _first_line(error)
    working = {name: size for name, size in base.items() if name not in failing}
    if failing and working:
        with suppress(Exception):
            remark = fit_rows(root, lambda sizes: run({**base, **sizes}), working)
            kept = f"no symbolic {', '.join(failing)}: at other sizes the model fails ({next(iter(failing.values()))})"
            return f"{kept}; {remark}" if remark else kept
    return f"no symbolic dims: at other sizes the model fails ({reason})"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def fit_rows(root: Row, run: Callable[[Sizes], Row], base: Sizes) -> str | None:
    """Write `dims` into every tensor of the trace; returns a remark where the steps themselves depend on the sizes."""
    probes = probe_sizes(base)
    others = [_steps(run(sizes)) for sizes in probes]
    formulas = Formulas([base, *probes])
    for i, row in enumerate(_steps(root)):
        same = [rows[i] for rows in others if i < len(rows) and (rows[i].kind, rows[i].name) == (row.kind, row.name)]
        if len(same) < len(others):
            return f"symbolic dims end at step {i} ({row.name}): from there on the steps depend on the sizes"
        for infos in zip(_described(row), *map(_described, same), strict=False):
            if infos[0].dims is None and len({info.ndim for info in infos}) == 1:
                sizes = zip(*(info.shape for info in infos), strict=True)
                infos[0].dims = tuple(formulas.fit(values) for values in sizes)
    for row in root.walk():
        if _is_conversion(row) and row.inputs and row.outs and row.outs[0].shape == row.inputs[0].shape:
            row.outs[0].dims = row.outs[0].dims or row.inputs[0].dims
    return None


def _steps(root: Row) -> list[Row]:
    """The rows, without conversions: whether `to` or `contiguous` has something to do may differ on meta."""
    return [row for row in root.walk() if not _is_conversion(row)]


def _is_conversion(row: Row) -> bool:
    if row.kind == "function":
        return all(_is_conversion(child) for child in row.children)
    return row.kind == "op" and row.name in NO_OPS


def _described(row: Row) -> list[TensorInfo]:
    return [*row.outs, *row.inputs]


def _leaves(value: Any, path: tuple = ()):
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _leaves(part, (*path, key))
    elif isinstance(value, (list, tuple)):
        for i, part in enumerate(value):
            yield from _leaves(part, (*path, i))
