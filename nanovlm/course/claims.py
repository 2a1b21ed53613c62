"""What a chapter says is claimed by code, so that it stays true: shapes, and "this is the package's own code"."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from typing import Any


def expect_shape(x: Any, claim: str) -> str:
    """Check a shape: numbers must be equal, a name must mean the same size throughout ("batch 196 768").

    Returns the shape in words, "batch=2 × 196 × 768". Raises ValueError where it does not hold.
    """
    words = claim.split()
    shape = getattr(x, "shape", None)
    if shape is None:
        raise TypeError(f"expect_shape needs a tensor; this is {type(x).__name__}.")
    sizes = [int(size) for size in shape]
    if len(words) != len(sizes):
        raise ValueError(f"Claimed [{claim}], {len(words)} axes; the shape is {sizes}, {len(sizes)} axes.")
    known: dict[str, int] = {}
    shown = []
    for axis, (word, size) in enumerate(zip(words, sizes, strict=True)):
        claimed = int(word) if word.isdigit() else known.setdefault(word, size)
        if claimed != size:
            meant = "" if word.isdigit() else f" {word}, which is {claimed} before,"
            raise ValueError(f"Claimed [{claim}]; the shape is {sizes}: axis {axis}{meant} is {size}, not {claimed}.")
        shown.append(word if word.isdigit() else f"{word}={size}")
    return " × ".join(shown) if shown else "a single number"


def difference_from_package(source: str, dotted: str) -> str | None:
    """Whether `source` defines the function or class `dotted` (nanovlm.models.x.name) as the package does: the same
    syntax tree, but for docstrings and annotations (jaxtyping is not everywhere that notebooks run). None, or the
    sentence that says where they differ."""
    module_name, _, name = dotted.rpartition(".")
    try:
        file = import_module(module_name).__file__
    except (ImportError, ValueError):
        return f"There is no module {module_name!r}, of which this cell claims to show {name!r}."
    theirs = _definition(Path(str(file)).read_text(encoding="utf-8"), name)
    ours = _definition(source, name)
    if theirs is None:
        return f"{module_name} defines no {name!r}."
    if ours is None:
        return f"This cell is tagged as the package's {name}, but does not define {name!r}."
    if ours == theirs:
        return None
    pairs = zip([*ours.split("\n"), "(the end)"], [*theirs.split("\n"), "(the end)"], strict=False)
    here, there = next((a.strip(), b.strip()) for a, b in pairs if a != b)
    return f"This cell claims to be {dotted}, but differs: here {here!r}, in the package {there!r}."


def _definition(source: str, name: str) -> str | None:
    """The normalised code of one top-level definition, without docstrings and annotations of functions."""
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
            for inner in ast.walk(node):
                if isinstance(inner, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(inner) is not None:
                    inner.body = inner.body[1:] or [ast.Pass()]
                if isinstance(inner, ast.FunctionDef):
                    inner.returns = None
                if isinstance(inner, ast.arg):
                    inner.annotation = None
                if isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Attribute):
                    inner.annotation = ast.Name("Any")  # self.x: T = value
            return ast.unparse(node)
    return None
