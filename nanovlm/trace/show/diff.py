"""Claims about shapes (`expect`) and the difference of two traces (`diff`)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import NamedTuple

from nanovlm.trace.measure.formula import value_of
from nanovlm.trace.rows import Row
from nanovlm.trace.show.html import preformatted
from nanovlm.trace.source import locate


class ShapeMismatch(AssertionError):
    """A step had another shape than expected. `row` is the first such step in the order of execution."""

    def __init__(self, message: str, row: Row):
        super().__init__(message)
        self.row = row


def expect(find: Callable[[str], Row], patterns: dict[str, str], sizes: dict[str, int]) -> None:
    """Compare the first output of each named step with a pattern such as "B 49+T 576" or "B ... 576".

    Names stand for one size each, over all patterns. Raises ShapeMismatch, KeyError (no such step), ValueError (a
    pattern that cannot be read).
    """
    sizes = dict(sizes)
    steps = [(find(name), name, pattern) for name, pattern in patterns.items()]
    steps.sort(key=lambda step: _end(step[0]))
    lines, first = [], None
    width = max((len(name) for name in patterns), default=0)
    for row, name, pattern in steps:
        got = row.shape
        good = got is not None and _fits(pattern, got, sizes)
        if not good and first is None:
            first = row
        mark = "ok" if good else "expected [" + ", ".join(pattern.split()) + "]"
        lines.append(f"  {name:<{width}}  {list(got) if got is not None else 'no tensor'}  {mark}")
    if first is None:
        return
    name = next(name for row, name, _ in steps if row is first)
    source = locate(first.where)
    place = f" ({source.place}: {source.short})" if source is not None else ""
    known = ", ".join(f"{key} = {value}" for key, value in sizes.items())
    head = f"The first step that differs is {name!r}{place}." + (f" With {known}:" if known else "")
    raise ShapeMismatch("\n".join([head, *lines]), first)


def _fits(pattern: str, shape: tuple[int, ...], sizes: dict[str, int]) -> bool:
    """Whether a shape has this pattern; names that are new get their size from it."""
    if not isinstance(pattern, str):
        raise TypeError(f'A pattern is text such as "B 49+T 576" or "2 7 32"; got {pattern!r}.')
    words = pattern.replace(",", " ").strip("[] ").split()
    if "..." in words:
        at = words.index("...")
        rest = len(words) - at - 1
        if len(shape) < len(words) - 1:
            return False
        words = words[:at] + words[at + 1 :]
        shape = shape[:at] + shape[len(shape) - rest :]
    if len(words) != len(shape):
        return False
    found, later = dict(sizes), []
    for word, size in zip(words, shape, strict=True):
        if word.isidentifier():
            if word != "_" and found.setdefault(word, size) != size:
                return False
        else:
            later.append((word, size))  # a formula may use a name that stands to its right
    for word, size in later:
        value = value_of(word, found)
        if value is None:
            raise ValueError(f"The pattern {pattern!r} uses a name whose size is not known; known are {found}.")
        if value != size:
            return False
    sizes.update(found)
    return True


_LINES = 40


class Change(NamedTuple):
    """One difference. `here` or `there` is None where the other trace has a step that this one has not."""

    here: Row | None
    there: Row | None
    times: int
    symbolic: bool = False

    def __str__(self) -> str:
        more = f"   (and {self.times - 1} more like it)" if self.times > 1 else ""
        if self.here is None:
            return f"+ {_name(self.there)}  {_what(self.there, self.symbolic)}{more}"
        if self.there is None:
            return f"- {_name(self.here)}  {_what(self.here, self.symbolic)}{more}"
        return f"! {_name(self.here)}  {_what(self.here, self.symbolic)} -> {_what(self.there, self.symbolic)}{more}"


class Diff(list):
    """A list of `Change`, in the order of execution; empty if the traces agree."""

    @property
    def first(self) -> Change | None:
        """The first step to end with a difference: a step inside comes before the module around it."""
        return min(self, key=lambda change: _end(change.here or change.there), default=None)

    def __str__(self) -> str:
        lines = list(map(str, self[:_LINES]))
        if len(self) > _LINES:
            lines.append(f"… and {len(self) - _LINES} more differences")
        return "\n".join(lines) or "The two traces have the same steps and shapes."

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return preformatted(str(self))


def diff(here: Row, there: Row) -> Diff:
    """Steps that only one trace has, and steps whose outputs differ in shape or dtype. Repeated blocks count once.

    Shapes are compared as formulas where both traces have them.
    """
    mine, theirs = list(here.walk()), list(there.walk())
    symbolic = _is_symbolic(mine) and _is_symbolic(theirs)
    matcher = difflib.SequenceMatcher(None, [_key(row) for row in mine], [_key(row) for row in theirs], autojunk=False)
    found: list[tuple[Row | None, Row | None]] = []
    for tag, i, i_end, j, j_end in matcher.get_opcodes():
        if tag == "equal":
            pairs = zip(mine[i:i_end], theirs[j:j_end], strict=True)
            found += [(a, b) for a, b in pairs if _what(a, symbolic) != _what(b, symbolic)]
        else:
            found += [(row, None) for row in mine[i:i_end]] + [(None, row) for row in theirs[j:j_end]]
    counts: dict[str, list] = {}
    for a, b in found:
        key = re.sub(r"\.\d+(?=[.:\s])", ".#", str(Change(a, b, 1, symbolic)))
        counts.setdefault(key, [a, b, 0])[2] += 1
    return Diff(Change(a, b, times, symbolic) for a, b, times in counts.values())


def _end(row: Row) -> tuple[int, int]:
    """When a step ended, for sorting: inner steps before the module that ends with them."""
    return list(row.walk())[-1].index, -row.index


def _key(row: Row) -> tuple[str, str, str]:
    """What makes a step of one trace the same step in the other: its kind, its place, and (not a module's) name."""
    return row.kind, row.path, "" if row.kind == "module" else row.name


def _name(row: Row) -> str:
    if row.kind == "module":
        return row.path or row.cls or row.name
    return f"{row.path}: {row.name}" if row.path else row.name


def _is_symbolic(rows: list[Row]) -> bool:
    return any(info.dims is not None for row in rows for info in row.outs)


def _what(row: Row, symbolic: bool) -> str:
    if row.error is not None:
        return f"failed ({row.error})"
    kinds = {info.dtype_name for info in row.outs}
    shapes = [str(info) if symbolic else str(list(info.shape)) for info in row.outs]
    return ", ".join([*shapes[:4], *(["…"] if len(shapes) > 4 else []), *sorted(kinds)])
