"""Shapes are claimed by code, so that they stay true."""

from __future__ import annotations

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
