"""Runs a model on the meta device without touching it: shapes without weights, memory or arithmetic.

Every parameter and floating-point input is replaced by a stand-in as it enters a torch function. Integer and bool
tensors stay real until they meet a stand-in, because models read them: `if (ids == image_token).any()`, `mask.sum()`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_READS = {"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "numpy", "nonzero"}
_MOVES = {"to", "cpu", "cuda"}


class MetaMode(TorchFunctionMode):
    """While it is active, whatever meets a parameter or a meta tensor is computed on the meta device."""

    def __init__(self, modules: Iterable[tuple[str, nn.Module]] = ()) -> None:
        super().__init__()
        self._stand_ins: dict[int, tuple[Tensor, Tensor]] = {}
        self._buffers = {id(buffer) for _, module in modules for buffer in module.buffers()}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":
            # The model must believe that its weights are where its inputs are.
            if isinstance(args[0], nn.Parameter) and func.__self__.__name__ == "device":
                return torch.device("meta")
            return func(*args, **kwargs)
        if not _meets_meta((args, kwargs)):
            if args and id(args[0]) in self._buffers and (name[-1:] == "_" or name == "__setitem__"):
                args = (args[0].clone(), *args[1:])  # a run without values must not count batches
            return func(*args, **kwargs)
        if name in _READS and isinstance(args[0], Tensor) and args[0].is_meta:
            raise RuntimeError(
                f"On the meta device tensors have no values, and `{name.strip('_')}` needs them. If the values come "
                "from token ids or a mask, pass those as ordinary tensors; otherwise trace with device=None."
            )
        if name in _MOVES:
            args, kwargs = _stay(args, kwargs)
        elif name in ("__getitem__", "__setitem__"):
            args = (args[0], _positions(args[1]), *args[2:])
        return func(*self.stand_in(args), **self.stand_in(kwargs))

    def __exit__(self, *exc):
        self._stand_ins.clear()
        return super().__exit__(*exc)

    def stand_in(self, value: Any) -> Any:
        """The structure with a meta tensor in each tensor's place."""
        if isinstance(value, Tensor):
            return value if value.is_meta else self._tensor(value)
        if isinstance(value, (list, tuple)):
            parts = [self.stand_in(part) for part in value]
            if hasattr(value, "_fields"):
                return type(value)(*parts)
            return parts if isinstance(value, list) else tuple(parts)
        if isinstance(value, dict):
            return {key: self.stand_in(part) for key, part in value.items()}
        return value

    def _tensor(self, tensor: Tensor) -> Tensor:
        known = self._stand_ins.get(id(tensor))
        if known is not None and known[0] is tensor:
            return known[1]
        with torch._C.DisableTorchFunction():
            meta = tensor.detach().to("meta").requires_grad_(tensor.requires_grad)
        if isinstance(tensor, nn.Parameter) or tensor.numel() > 1:
            self._stand_ins[id(tensor)] = (tensor, meta)
        return meta


def to_meta(value: Any) -> Any:
    """Inputs for a meta run: floating-point tensors lose their values, integers and bools keep them."""
    if isinstance(value, Tensor):
        return value.detach().to("meta").requires_grad_(value.requires_grad) if value.is_floating_point() else value
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(to_meta(part) for part in value)
    if isinstance(value, dict):
        return {key: to_meta(part) for key, part in value.items()}
    return value


def _meets_meta(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_meta or isinstance(value, nn.Parameter)
    if isinstance(value, (list, tuple)):
        return any(_meets_meta(part) for part in value)
    if isinstance(value, dict):
        return any(_meets_meta(part) for part in value.values())
    return False


def _positions(index: Any) -> Any:
    """A real bool mask as the positions it picks: their number cannot be known from a mask without values."""
    if isinstance(index, Tensor) and index.dtype is torch.bool and not index.is_meta:
        return index.nonzero(as_tuple=True)
    if isinstance(index, tuple):
        found: list[Any] = []
        for part in index:
            part = _positions(part)
            found += part if isinstance(part, tuple) else [part]
        return tuple(found)
    return index


def _stay(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """`x.to("cuda")`, `x.to(weight.device)`: a stand-in stays where it is."""

    def meta(value: Any) -> Any:
        is_place = isinstance(value, torch.device) or (isinstance(value, (str, int)) and not isinstance(value, bool))
        return torch.device("meta") if is_place else value

    return (args[0], *map(meta, args[1:])), {k: meta(v) if k == "device" else v for k, v in kwargs.items()}
