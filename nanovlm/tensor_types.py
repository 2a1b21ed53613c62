"""Shapes in signatures, as in `Float[Tensor, "batch length dim"]`: the type, then a name for every axis.

Equal names are equal sizes within one call, `#batch` may also be 1, a number is that size. The tests enforce them with
jaxtyping and beartype. Where jaxtyping is missing, as on Colab, they are there for the reader alone.
"""

from __future__ import annotations

from typing import Any

try:
    from jaxtyping import Bool, Float, Int, Shaped  # Shaped: any dtype
except ImportError:

    class _Named:
        def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
            return item[0]

    Bool = Float = Int = Shaped = _Named

__all__ = ["Bool", "Float", "Int", "Shaped"]
