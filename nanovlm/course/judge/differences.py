"""Expected against yours: the first rung on which they differ, in one sentence, with the numbers to look at."""

from __future__ import annotations

import numbers
import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Two small tables of numbers, [rows, columns] each, and what they are."""

    title: str
    expected: Tensor
    yours: Tensor


@dataclass(frozen=True)
class Mismatch:
    rung: str
    message: str
    grid: Grid | None = None
    lists: tuple[tuple[str, str], ...] = ()  # (what it is, a short list in words)


@dataclass(frozen=True)
class Leaf:
    """One comparable piece of the output; name is "" where the output is a single thing."""

    name: str
    expected: Any
    yours: Any
    axes: str


def first_difference(expected: Any, yours: Any, axes: str | dict[str, str], tolerance: float) -> Mismatch | None:
    """Rung by rung over the whole output: types before shapes, shapes before dtypes, dtypes before values."""
    finding = _first_difference(expected, yours, axes, tolerance)
    if finding is None or not (_is_plain_list(expected) and isinstance(yours, (list, tuple))):
        return finding
    theirs, own = _lists_in_words(expected, yours)
    return replace(finding, lists=(("expected", theirs), ("yours", own)))


def _first_difference(expected: Any, yours: Any, axes: str | dict[str, str], tolerance: float) -> Mismatch | None:
    pieces: list[Leaf] = []
    for piece in _leaves(expected, yours, axes, ""):
        if isinstance(piece, Mismatch):
            return piece
        pieces.append(piece)
    for rung in (_type, _shape, _dtype):
        for leaf in pieces:
            finding = rung(leaf)
            if finding is not None:
                return finding
    for leaf in pieces:
        finding = _values(leaf, tolerance)
        if finding is not None:
            return finding
    return None


def same(a: Any, b: Any, tolerance: float) -> bool:
    """Whether two outputs agree in type, shape and value (not in dtype)."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or a.device != b.device or a.layout != b.layout:
            return False
        a, b = a.detach(), b.detach()
        if not (a.is_floating_point() or b.is_floating_point()):
            return torch.equal(a, b)
        # The expected one comes second: its size is what the tolerance is relative to, here and in _values.
        return torch.allclose(b.double(), a.double(), rtol=tolerance, atol=tolerance, equal_nan=True)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return set(a) == set(b) and all(same(a[key], b[key], tolerance) for key in a)
    if _is_whole(a) and _is_whole(b):
        return bool(a == b)  # a count that is nearly right is wrong
    if _is_number(a) and _is_number(b):
        try:
            a, b = float(a), float(b)
        except OverflowError:
            return False
        return a == b or abs(a - b) <= tolerance * max(1.0, abs(a)) or (a != a and b != b)
    return type(a) is type(b) and isinstance(a, (str, bool, int, types.NoneType)) and a == b


def kind(value: Any) -> str:
    """In words: "a tensor", "a numpy array", "a generator" …"""
    if isinstance(value, types.GeneratorType):
        return "a generator (use return, not yield)"
    if isinstance(value, types.CoroutineType):
        return "a coroutine (use def, not async def)"
    if isinstance(value, BaseException):
        return f"a {type(value).__name__} (raise it, do not return it)"
    if isinstance(value, type):
        return f"the class {value.__name__} itself"
    names = {Tensor: "a tensor", bool: "True or False", int: "a whole number", float: "a number", str: "a string"}
    names |= {tuple: "a tuple", list: "a list", dict: "a dict", types.NoneType: "None"}
    for cls, name in names.items():
        if isinstance(value, cls):
            return name
    if type(value).__module__ == "numpy":
        return "a numpy array"
    article = "an" if type(value).__name__[:1].lower() in "aeiou" else "a"
    return f"{article} {type(value).__name__}"


def axis_names(axes: str, shape: Any) -> str:
    """[2, 49, 768] with names where they are known: batch 2 · tokens 49 · dim 768."""
    names = axes.split()
    if len(names) != len(shape):
        return str(list(shape))
    return f"{list(shape)} ({' · '.join(f'{n} {s}' if n != str(s) else n for n, s in zip(names, shape, strict=True))})"


def _leaves(expected: Any, yours: Any, axes: str | dict[str, str], name: str) -> Iterator[Leaf | Mismatch]:
    where = f" for {name}" if name else ""
    if isinstance(expected, (list, tuple)):
        names = list(axes) if isinstance(axes, dict) and len(axes) == len(expected) else None
        if not isinstance(yours, (list, tuple)):
            parts = f"{len(expected)} things ({', '.join(names)})" if names else kind(expected)
            yield Mismatch("none" if yours is None else "type", f"It returned {kind(yours)}{where}; expected {parts}.")
        elif len(yours) != len(expected):
            count = f"{len(yours)} thing{'s' if len(yours) != 1 else ''}"
            yield Mismatch("type", f"It returned {count}{where}; expected {len(expected)}.")
        else:
            for i, (e, y) in enumerate(zip(expected, yours, strict=True)):
                label = names[i] if names else f"{name}[{i}]"
                inner = axes[label] if isinstance(axes, dict) and label in axes else axes if not names else ""
                yield from _leaves(e, y, inner, label)
    elif isinstance(expected, dict):
        if not isinstance(yours, dict):
            yield Mismatch(
                "type", f"It returned {kind(yours)}{where}; expected a dict with {', '.join(map(str, expected))}."
            )
        elif set(map(str, yours)) != set(map(str, expected)):
            mine, wanted = ", ".join(map(str, yours)) or "nothing", ", ".join(map(str, expected))
            yield Mismatch("type", f"The dict holds {mine}{where}; expected {wanted}.")
        else:
            for key in expected:
                inner = axes.get(str(key), "") if isinstance(axes, dict) else axes
                yield from _leaves(expected[key], yours[key], inner, str(key))
    else:
        yield Leaf(name, expected, yours, axes if isinstance(axes, str) else "")


def _of(leaf: Leaf) -> str:
    return f"{leaf.name} " if leaf.name else "The result "


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_plain_list(value: Any) -> bool:
    """A list of numbers and strings, or of such lists."""
    return isinstance(value, (list, tuple)) and all(
        item is None or isinstance(item, (str, bool)) or _is_number(item) or _is_plain_list(item) for item in value
    )


def _type(leaf: Leaf) -> Mismatch | None:
    expected, yours = leaf.expected, leaf.yours
    if isinstance(expected, Tensor):
        fits = isinstance(yours, Tensor)
    elif isinstance(expected, (bool, str)) or expected is None:
        fits = type(yours) is type(expected)
    elif isinstance(expected, int):
        fits = _is_whole(yours)
    elif _is_number(expected):
        fits = _is_number(yours)
    else:
        fits = isinstance(yours, type(expected))
    if fits:
        return None
    if yours is None:
        what = "returned None" if not leaf.name else f"gave None for {leaf.name}"
        return Mismatch("none", f"It {what}; expected {kind(expected)}. Is a `return` missing?")
    more = ""
    if isinstance(yours, Tensor) and yours.numel() == 1 and _is_number(expected):
        more = " Take the number out of the tensor with .item()."
    elif isinstance(expected, int) and isinstance(yours, float):
        more = " A count is a whole number: divide with // instead of /, and leave out float()."
    elif isinstance(expected, Tensor) and type(yours).__module__ == "numpy":
        more = " Stay in torch: gradients end where numpy begins."
    return Mismatch("type", f"{_of(leaf)}is {kind(yours)}; expected {kind(expected)}.{more}")


def _shape(leaf: Leaf) -> Mismatch | None:
    if not isinstance(leaf.expected, Tensor) or leaf.expected.shape == leaf.yours.shape:
        return None
    e, y = list(leaf.expected.shape), list(leaf.yours.shape)
    if len(e) != len(y):
        change = "missing" if len(y) < len(e) else "too many"
        count = abs(len(e) - len(y))
        more = f" {count} {'axis is' if count == 1 else 'axes are'} {change}."
    elif sorted(e) == sorted(y):
        swapped = [i for i in range(len(e)) if e[i] != y[i]]
        names = leaf.axes.split()
        which = " and ".join(names[i] for i in swapped) if len(names) == len(e) else f"{swapped}"
        more = f" The sizes are right, in another order: look at {which}."
    elif leaf.expected.numel() == leaf.yours.numel():
        more = " The number of values is right, so they are only grouped in another way."
    else:
        more = ""
    return Mismatch("shape", f"{_of(leaf)}has shape {y}; expected {axis_names(leaf.axes, e)}.{more}")


def _dtype(leaf: Leaf) -> Mismatch | None:
    expected, yours = leaf.expected, leaf.yours
    if not isinstance(expected, Tensor):
        return None
    if (expected.device, expected.layout) != (yours.device, yours.layout):
        e, y = (f"{str(t.layout).removeprefix('torch.')} on {t.device}" for t in (expected, yours))
        return Mismatch("dtype", f"{_of(leaf)}is {y}; expected {e}.")
    if expected.dtype == yours.dtype:
        return None
    e, y = (str(t.dtype).removeprefix("torch.") for t in (expected, yours))
    return Mismatch("dtype", f"{_of(leaf)}is {y}; expected {e}: the shape is right, the number type is not.")


def _values(leaf: Leaf, tolerance: float) -> Mismatch | None:
    expected, yours = leaf.expected, leaf.yours
    if same(expected, yours, tolerance):
        return None
    if not isinstance(expected, Tensor):
        own, wanted = apart(yours, expected)
        return Mismatch("values", f"{_of(leaf)}is {own}; expected {wanted}{_too_many(leaf)}.")
    e, y = expected.detach(), yours.detach()
    wide = torch.complex128 if e.is_complex() else torch.float64
    e, y = e.to(wide), y.to(wide)
    if y.isnan().any() and not e.isnan().any():
        message = (
            f"{_of(leaf)}holds NaN in {int(y.isnan().sum())} of {y.numel()} places (0 / 0, or infinity minus infinity)."
        )
        return Mismatch("values", message, _grid(leaf, e, y, _first(y.isnan())))
    if expected.is_floating_point():
        off = ~torch.isclose(y, e, rtol=tolerance, atol=tolerance, equal_nan=True)
    else:
        off = yours != expected
    place = _first(off)
    spot = f"[{', '.join(map(str, place))}]" if place else "the only number"
    of_what = f" of {leaf.name}" if leaf.name else ""
    own, wanted = apart(*(int(v) if isinstance(v, bool) else v for v in (yours[place].item(), expected[place].item())))
    message = (
        f"{int(off.sum())} of {off.numel()} numbers{of_what} differ; the first at {spot}: "
        f"yours {own}, expected {wanted}.{_pattern(e, y, tolerance)}"
    )
    return Mismatch("values", message, _grid(leaf, e, y, place))


def _first(mask: Tensor) -> tuple[int, ...]:
    return tuple(mask.nonzero()[0].tolist()) if mask.ndim else ()


def _pattern(e: Tensor, y: Tensor, tolerance: float) -> str:
    """A regularity that says more than the numbers do."""

    def close(a: Tensor, b: Tensor) -> bool:
        return a.shape == b.shape and torch.allclose(a, b, rtol=10 * tolerance, atol=10 * tolerance)

    if not (e.isfinite().all() and y.isfinite().all()) or e.is_complex():
        return ""
    if close(y, e):
        return ""  # then nearly every regularity would hold
    if not y.any():
        return " All of yours are zero."
    if close(y, -e):
        return " Only the sign is wrong."
    largest = e.abs().argmax()
    if e.flatten()[largest] != 0:
        factor = float(y.flatten()[largest] / e.flatten()[largest])
        if abs(factor - 1) > 1e-3 and close(y, factor * e):
            return f" All of yours are {factor:.4g} times the expected ones."
    if close(y - e, (y - e).mean().expand_as(e)):
        return f" All of yours are off by the same {float((y - e).mean()):.4g}."
    for axis in range(e.ndim):
        if e.shape[axis] > 1 and close(y, e.flip(axis)):
            return f" Axis {axis} runs backwards."
    if e.ndim >= 2 and close(y, e.transpose(-1, -2)):
        return " It is the transpose of the expected one."
    if close(y.flatten().sort().values, e.flatten().sort().values):
        return " The numbers are the right ones, in the wrong places."
    return ""


def _grid(leaf: Leaf, e: Tensor, y: Tensor, place: tuple[int, ...]) -> Grid | None:
    """The last two axes round the first difference."""
    if e.is_complex():
        return None
    lead = place[:-2]
    e, y = e[lead], y[lead]
    e, y = (t.reshape(1, -1) if t.ndim < 2 else t for t in (e, y))
    row = place[-2] if len(place) >= 2 else 0
    column = place[-1] if place else 0
    # Long rows of fractions cannot be read: of those a small corner says as much.
    whole = bool((e == e.round()).all() and (y == y.round()).all())
    high, wide = (8, 12) if whole or e.numel() <= 32 else (4, 4)
    top = max(0, min(row - high // 2, e.shape[0] - high))
    left = max(0, min(column - wide // 2, e.shape[1] - wide))
    window = (slice(top, top + high), slice(left, left + wide))
    names = leaf.axes.split() if len(leaf.axes.split()) == len(place) else [f"axis {i}" for i in range(len(place))]
    parts = [leaf.name] if leaf.name else []
    parts += [f"{name} {index}" for name, index in zip(names, lead, strict=False)]
    if len(place) >= 2:
        parts.append(f"down: {names[-2]}, across: {names[-1]}")
    if e[window].shape != e.shape:
        parts.append(f"from row {top}, column {left}")
    title = " · ".join(parts)
    return Grid(title, e[window], y[window])


def number(value: Any) -> str:
    value = float(value)
    if value != value or value in (float("inf"), float("-inf")):
        return str(value)
    return str(int(value)) if value == int(value) and abs(value) < 1e6 else f"{value:.3g}"


def apart(yours: Any, expected: Any) -> tuple[str, str]:
    """Both in words, with as much of them as it takes to tell them apart."""
    own, wanted = short(yours), short(expected)
    if own != wanted:
        return own, wanted
    if isinstance(yours, str) and isinstance(expected, str):
        start = max(0, first_apart(yours, expected) - 40)
        return short("…" + yours[start:]), short("…" + expected[start:])
    if _is_number(yours) and _is_number(expected):
        for digits in range(4, 18):
            own, wanted = f"{float(yours):.{digits}g}", f"{float(expected):.{digits}g}"
            if own != wanted:
                break
    return own, wanted


def first_apart(a: Any, b: Any) -> int:
    """The first place where two lists, or two strings, differ."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if not same(x, y, 0)), min(len(a), len(b)))


def _too_many(leaf: Leaf) -> str:
    """How far a count is off; an item of a list may be an id, which is not too many of anything."""
    expected, yours = leaf.expected, leaf.yours
    if "[" in leaf.name or not (_is_whole(expected) and _is_whole(yours) and expected >= 0 and yours >= 0):
        return ""
    return f" ({short(abs(yours - expected))} too {'few' if yours < expected else 'many'})"


def _lists_in_words(expected: Any, yours: Any) -> tuple[str, str]:
    """Long ones are cut to the items round the first difference."""
    start = max(0, first_apart(expected, yours) - 6) if max(len(expected), len(yours)) > ITEMS else 0
    return in_words(expected, start), in_words(yours, start)


ITEMS = 16  # of a list that are shown


def in_words(value: Any, start: int = 0) -> str:
    if isinstance(value, (list, tuple)):
        items = ", ".join(_item(v, 100) for v in value[start : start + ITEMS])
        words = f"{'… ' if start else ''}{items}{' …' if len(value) > start + ITEMS else ''}"
        return f"[{words}]" if isinstance(value, list) else f"({words})"
    return _item(value, 60)


def _item(value: Any, length: int) -> str:
    """Without the commas in whole numbers, which would look like those between the items of a list."""
    return short(value, length).replace(",", "") if _is_whole(value) else short(value, length)


def short(value: Any, length: int = 200) -> str:
    try:
        if _is_whole(value):
            words = f"{value:,}"
        else:
            words = number(value) if _is_number(value) else repr(value)
    except Exception:
        words = kind(value)
    return words if len(words) <= length else words[: length - 1] + "…"
