"""Runs a model on the meta device without touching it: shapes without weights, memory or arithmetic.

Every parameter is replaced by a stand-in as it enters a torch function. Inputs stay real until they meet a stand-in,
because models read them: `if (ids == image_token).any()`, `mask.sum()`, `(pixels == 0).all()`.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_READS = {"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "numpy", "nonzero"}
_MOVES = {"to", "cpu", "cuda"}
_FACTORIES = {"arange", "zeros", "ones", "full", "eye", "tensor"}


class MetaMode(TorchFunctionMode):
    """While it is active, whatever meets a parameter or a meta tensor is computed on the meta device."""

    def __init__(self, modules: Iterable[tuple[str, nn.Module]] = ()) -> None:
        super().__init__()
        self.assumed = False  # whether a mask without values was met, and taken to pick everything
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
            if name in _MOVES and not args[0].is_floating_point():
                args, kwargs = _stay(args, kwargs)
            elif name in _FACTORIES and kwargs.get("device") is not None and _is_whole(name, args, kwargs):
                kwargs = {**kwargs, "device": "cpu"}
            elif args and id(args[0]) in self._buffers and (name[-1:] == "_" or name == "__setitem__"):
                args = (args[0].clone(), *args[1:])  # a run without values must not count batches
            return func(*args, **kwargs)
        if name in _READS and isinstance(args[0], Tensor) and args[0].is_meta:
            raise RuntimeError(
                f"On the meta device tensors have no values, and `{name.strip('_')}` needs them. If the values come "
                "from token ids or a mask, pass those as ordinary tensors; otherwise trace with device=None."
            )
        if name in ("cpu", "cuda") and args[0].is_meta:
            return args[0]
        if name in _MOVES:
            args, kwargs = _stay(args, kwargs)
        elif name in ("__getitem__", "__setitem__"):
            args = (args[0], self._positions(args[1]), *args[2:])
            if not _meets_meta(args):
                return func(*args, **kwargs)
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

    def _positions(self, index: Any) -> Any:
        """A bool mask as the positions it picks; one without values is taken to pick everything."""
        if isinstance(index, Tensor) and index.dtype is torch.bool:
            self.assumed |= index.is_meta
            real = torch.ones(index.shape, dtype=torch.bool) if index.is_meta else index
            return real.nonzero(as_tuple=True)
        if isinstance(index, tuple):
            found: list[Any] = []
            for part in index:
                part = self._positions(part)
                found += part if isinstance(part, tuple) else [part]
            return tuple(found)
        return index

    def _tensor(self, tensor: Tensor) -> Tensor:
        known = self._stand_ins.get(id(tensor))
        if known is not None and known[0] is tensor:
            return known[1]
        with torch._C.DisableTorchFunction():
            meta = tensor.detach().to("meta").requires_grad_(tensor.requires_grad)
        if isinstance(tensor, nn.Parameter) or tensor.numel() > 1:
            self._stand_ins[id(tensor)] = (tensor, meta)
        return meta


def meta_inputs(value: Any, has_parameters: bool) -> Any:
    """A copy of the inputs for a run without values. Where there are parameters, tensors stay real until they meet
    one (some models count the pictures that are not all zeros); else nothing would ever turn the floats into meta."""
    if isinstance(value, Tensor):
        copy = value.detach().clone() if has_parameters or not value.is_floating_point() else value.detach().to("meta")
        return copy.requires_grad_(value.requires_grad)
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(meta_inputs(part, has_parameters) for part in value)
    if type(value) is dict:
        return {key: meta_inputs(part, has_parameters) for key, part in value.items()}
    if isinstance(value, nn.Module) or callable(value):
        return value
    with suppress(Exception):  # a cache that the call would fill; what cannot be copied is passed as it is
        return deepcopy(value)
    return value


def _meets_meta(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_meta or isinstance(value, nn.Parameter)
    if isinstance(value, (list, tuple)):
        return any(_meets_meta(part) for part in value)
    if isinstance(value, dict):
        return any(_meets_meta(part) for part in value.values())
    return False


def _stay(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """`x.to("cuda")`, `mask.to(x.device)`: a stand-in stays a stand-in, and a mask keeps its values."""
    place = args[0].device

    def stay(value: Any) -> Any:
        is_place = isinstance(value, torch.device) or (isinstance(value, (str, int)) and not isinstance(value, bool))
        return place if is_place else value

    return (args[0], *map(stay, args[1:])), {k: stay(v) if k == "device" else v for k, v in kwargs.items()}


def _is_whole(name: str, args: tuple, kwargs: dict) -> bool:
    """Whether a factory makes positions or a mask, whose values a model may want to read."""
    dtype = kwargs.get("dtype")
    if dtype is None:
        return name == "arange" and all(isinstance(value, int) for value in args)
    return not dtype.is_floating_point and not dtype.is_complex
