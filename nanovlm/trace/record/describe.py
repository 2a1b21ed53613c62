"""Turns what goes in and out of a step into metadata, and knows a tensor again when it comes by a second time."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor

from nanovlm.trace.rows import Opaque, Ragged, TensorInfo

_PLAIN = frozenset(
    {int, float, bool, complex, str, bytes, slice, type, type(None), type(...), torch.dtype, torch.device}
)
_LONG = 64


class Describer:
    """Call it with any structure; tensors become `TensorInfo`, plain values stay, the rest becomes a type's name.

    `count` is the number of tensors described so far. Tensors are known by weak references only.
    """

    def __init__(self, names: dict[int, str], device: str | None = None):
        self.count = 0
        self.remarks: dict[str, None] = {}
        self._names = names
        self._device = device
        self._seen: dict[int, tuple[weakref.ref, TensorInfo]] = {}
        self._devices: dict[torch.device, str] = {}
        self._next = 0

    def __call__(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value)
        if type(value) in _PLAIN:
            return value
        if isinstance(value, (list, tuple)):
            if len(value) > _LONG and not isinstance(value[0], Tensor):
                return Opaque(f"{type(value).__name__} of {len(value)}")
            fields = getattr(value, "_fields", None)
            if fields:
                return {name: self(part) for name, part in zip(fields, value, strict=True)}
            parts = [self(part) for part in value]
            return parts if type(value) is list else tuple(parts)
        if isinstance(value, Mapping):
            return {str(key): self(part) for key, part in value.items()}
        if dataclasses.is_dataclass(value):
            return {field.name: self(getattr(value, field.name, None)) for field in dataclasses.fields(value)}
        return Opaque(type(value).__name__)

    def same(self, known: Any, other: Any) -> None:
        """Take the tensors of `other` for those of `known`, one by one."""
        for a, b in zip(tensors_in(known), tensors_in(other), strict=True):
            self._seen[id(b)] = (weakref.ref(b), self._tensor(a))

    def forget(self) -> None:
        self._seen.clear()
        self._names = {}

    def _ragged(self, tensor: Tensor) -> tuple[int, ...]:
        self.remarks["the ragged sizes of nested tensors count as nothing in FLOPs and bytes"] = None
        if tensor.layout is torch.jagged:
            return tuple(size if isinstance(size, int) else Ragged(str(size)) for size in tensor.shape)
        sizes: list[int] = []
        for dim in range(tensor.dim()):
            try:
                sizes.append(tensor.size(dim))
            except RuntimeError:  # irregular
                sizes.append(Ragged("j"))
        return tuple(sizes)

    def _tensor(self, tensor: Tensor) -> TensorInfo:
        self.count += 1
        key = id(tensor)
        shape = tensor.shape if not tensor.is_nested else self._ragged(tensor)
        seen = self._seen.get(key)
        if seen is not None and seen[0]() is tensor:
            info = seen[1]
            if info.shape == shape:
                return info
            uid = info.uid  # changed in place, by x.unsqueeze_(0)
        else:
            uid = self._next = self._next + 1
        device = self._device or self._devices.get(tensor.device)
        if device is None:
            device = self._devices[tensor.device] = str(tensor.device)
        if is_batchedtensor(tensor):
            self.remarks["inside torch.func.vmap shapes and FLOPs are those of one sample"] = None
        info = TensorInfo(tuple(shape), tensor.dtype, device, uid, tensor.requires_grad, self._names.get(key))
        self._seen[key] = (weakref.ref(tensor), info)
        return info


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for part in value for tensor in tensors_in(part)]
    return []


def facts(args: tuple, kwargs: dict) -> dict[str, int]:
    """What only the values can tell about a step that failed: the least and largest id, the number of True."""
    found: dict[str, int] = {}
    for tensor in (*args, *kwargs.values()):
        if not isinstance(tensor, Tensor) or tensor.is_meta or not tensor.numel() or tensor.is_floating_point():
            continue
        if tensor.dtype is torch.bool and "true" not in found:
            over = args[0].shape if args and isinstance(args[0], Tensor) else tensor.shape
            fits = tensor.ndim <= len(over)
            found["true"] = int((tensor.expand(over) if fits else tensor).sum())
        elif not tensor.is_complex() and "low" not in found:
            scored = tensor[tensor != kwargs.get("ignore_index", -100)] if "ignore_index" in kwargs else tensor
            if scored.numel():
                found["low"], found["high"] = int(scored.min()), int(scored.max())
    return found
