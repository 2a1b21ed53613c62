"""What a torch function is called, and which ones are no step at all."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from types import FunctionType
from typing import Any

from torch.nn import functional as F

_PROPERTIES = {"T", "mT", "H", "mH", "real", "imag"}  # the property getters that make a new tensor
_REVERSED = {"radd": "add", "rmul": "mul", "rsub": "rsub", "rtruediv": "rdiv", "rpow": "rpow"}
_PLAIN = {"truediv": "div", "iadd": "add_", "isub": "sub_", "imul": "mul_", "itruediv": "div_", "invert": "logical_not"}
_ALIASES = {**_REVERSED, **_PLAIN, "true_divide": "div", "multiply": "mul", "concat": "cat", "concatenate": "cat"}

QUIET = frozenset(
    {
        *("size", "dim", "numel", "nelement", "ndimension", "len", "stride", "storage_offset", "data_ptr"),
        *("element_size", "get_device", "is_contiguous", "is_floating_point", "is_complex", "is_signed", "is_pinned"),
        *("is_tensor", "repr", "format", "hash", "register_hook", "requires_grad_", "retain_grad", "untyped_storage"),
        *("is_inference", "_set_grad_enabled"),
    }
)
NO_OPS = frozenset({"to", "contiguous", "float", "half", "bfloat16", "double", "type_as", "type", "cpu", "cuda"})
"""Functions that hand their own argument back when there is nothing to do. Then they are no step."""


def op_name(func: Any) -> str | None:
    """`__matmul__` -> "matmul", `Tensor.mT.__get__` -> "mT"; None for what is no step (reading `shape`, `device`)."""
    name = getattr(func, "__name__", None) or str(func)
    if not name.startswith("__"):
        return _ALIASES.get(name, name)
    if name == "__get__":
        name = func.__self__.__name__
        return name if name in _PROPERTIES else None
    if name in ("__set__", "__delete__"):
        return None
    name = name.strip("_")
    return _ALIASES.get(name, name)


def near(name: str, known: Iterable[str]) -> list[str]:
    """Up to three known names that somebody who wrote `name` may have meant, the likeliest first."""
    known = list(dict.fromkeys(known))
    small = {own.lower(): own for own in reversed(known)}
    close = [small[own] for own in difflib.get_close_matches(name.lower(), small, n=3)]
    ends = [own for own in known if own.endswith(("." + name, "_" + name))]  # a path whose beginning was left out
    return list(dict.fromkeys([*close, *ends]))[:3]


_CHECKS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


def opened_up(func: Any) -> Any:
    """For the one Python function of torch whose inside is worth seeing (multi-head attention), a private copy of it
    that does not hand itself to the mode again; None for all others. torch's own function stays as it is."""
    if func is not F.multi_head_attention_forward:
        return None
    scope = {**func.__globals__, **dict.fromkeys(_CHECKS, lambda *_: False)}
    return FunctionType(func.__code__, scope, func.__name__, func.__defaults__, func.__closure__)
