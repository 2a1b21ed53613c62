"""Which module is which: paths in the model, parameters counted once, what torch's layers were built with."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from nanovlm.trace.names import near
from nanovlm.trace.record.frames import BODY, FUNCTION, classify
from nanovlm.trace.rows import Row

SETTINGS = (
    *("in_features", "out_features", "bias", "num_embeddings", "embedding_dim", "in_channels", "out_channels"),
    *("kernel_size", "stride", "padding", "groups", "normalized_shape", "num_features", "num_channels", "num_groups"),
    *("embed_dim", "num_heads", "head_dim", "batch_first", "input_size", "hidden_size", "kdim", "d_model", "nhead"),
)
_WRAPPERS = {"_orig_mod"}  # torch.compile's wrapper stands between a model and its own name


class ModuleIndex:
    """Every module below the given roots. Holds them (and so the model) only until `forget`."""

    def __init__(self, roots: Iterable[tuple[str, nn.Module]]):
        self._modules: dict[int, nn.Module] = {}
        self._paths: dict[int, list[str]] = {}
        self._params: dict[int, int] = {}
        self.tensor_names: dict[int, str] = {}
        self.tied: dict[str, str] = {}  # a parameter's second name -> its first
        self._seen_before: set[int] = set()
        roots = list(roots)
        for prefix, root in roots:
            self._add(root, prefix)
        total: dict[int, int] = {}
        for _, root in roots:
            total |= self._count(root)
        self.num_params = sum(total.values())
        self._roots = [root for _, root in roots]
        self._is_lazy = any(is_lazy(p) for module in self for p in module._parameters.values() if p is not None)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._modules.values())

    def _add(self, root: nn.Module, prefix: str) -> None:
        for path, module in root.named_modules(prefix=prefix, remove_duplicate=False):
            if type(module).__module__.startswith("torch._dynamo"):
                continue
            path = ".".join(part for part in path.split(".") if part not in _WRAPPERS)
            self._modules.setdefault(id(module), module)
            paths = self._paths.setdefault(id(module), [])
            if path not in paths:
                paths.append(path)
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is None:
                    continue
                full = f"{path}.{name}" if path else name
                first = self.tensor_names.setdefault(id(tensor), full)
                if first != full and len(paths) == 1:
                    self.tied[full] = first

    def _count(self, module: nn.Module) -> dict[int, int]:
        """id -> size of each parameter at or below a module, so that a tied one counts once."""
        found = {id(p): _numel(p) for p in module._parameters.values() if p is not None}
        for child in module._modules.values():
            if child is not None:
                found |= self._count(child)
        self._params[id(module)] = sum(found.values())
        return found

    @property
    def hidden(self) -> bool:
        """Whether some modules show nothing of their inside: scripted ones, quantised ones."""
        return any(
            isinstance(module, torch.jit.ScriptModule) or ".quantized" in type(module).__module__ for module in self
        )

    def count_lazy(self, root: Row) -> None:
        """Lazy layers get their sizes at their first call: count again, if there were any."""
        if not self._is_lazy:
            return
        total: dict[int, int] = {}
        for module in self._roots:
            total |= self._count(module)
        self.num_params = sum(total.values())
        sizes = {path: self._params[key] for key, paths in self._paths.items() for path in paths}
        for row in root.walk():
            if row.kind == "module":
                row.params = sizes[row.path]

    def require(self, names: Iterable[str]) -> None:
        """Raise ValueError for a path that no module has."""
        known = [path for paths in self._paths.values() for path in paths]
        for name in names:
            if name not in known:
                found = near(name, known) or known[1:4]
                raise ValueError(
                    f"There is no module {name!r}. Near it: {', '.join(map(repr, found)) or 'none at all'}."
                )

    def paths(self, module: nn.Module) -> list[str]:
        return self._paths.get(id(module), [])

    def fill(self, row: Row, module: nn.Module) -> None:
        """Write path, class and parameters of a module that is being called."""
        paths = self.paths(module)
        above = row.parent.path + "." if row.parent.path else ""
        row.path = next((path for path in paths if path.startswith(above)), paths[0])
        row.name = row.path.rpartition(".")[2] or type(module).__name__
        kind = type(module)
        row.cls = ("torch.nn." if kind.__module__.startswith("torch.") else "") + kind.__name__
        row.params = self._params[id(module)]
        notes = []
        if len(paths) > 1:
            notes.append("shared with " + ", ".join(path for path in paths if path != row.path))
        own = [f"{row.path}.{name}" for name, _ in module._parameters.items()]  # a scripted module's is no real dict
        ties = [self.tied[name] for name in own if name in self.tied]
        notes += [f"tied to {first}" for first in ties]
        row.note = "; ".join(notes) or None

    def settings(self, path: str) -> dict[str, Any]:
        """What the torch layer at a path was built with, for the explanation of an error."""
        for key, paths in self._paths.items():
            if path in paths:
                module = self._modules[key]
                found = {name: getattr(module, name) for name in SETTINGS if name in module.__dict__}
                attention = getattr(next(iter(getattr(module, "layers", ())), module), "self_attn", None)
                if isinstance(attention, nn.MultiheadAttention):  # a transformer's layer knows its sizes by its parts
                    names = ("embed_dim", "num_heads", "batch_first")
                    found |= {name: getattr(attention, name) for name in names}
                found["attributes"] = [
                    name for name, value in module.__dict__.items() if isinstance(value, int) and name[0] != "_"
                ]
                return found
        return {}

    def forget(self) -> None:
        self._modules.clear()
        self._roots.clear()
        self._params.clear()


def _numel(parameter: nn.Parameter) -> int:
    try:
        return parameter.numel()
    except (RuntimeError, ValueError):  # a lazy layer's parameter has no size before its first call
        return 0


def find_modules(
    fn: Any, args: Iterable[Any] = (), kwargs: dict[str, Any] | None = None
) -> list[tuple[str, nn.Module]]:
    """(prefix, module) of the models that a callable uses: itself, a bound method's owner, in its arguments, its
    closure, or the global names in its code. One model needs no prefix; several get their variables' names."""
    found: dict[int, tuple[str, nn.Module]] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, nn.Module):
            found.setdefault(id(value), (name, value))

    while isinstance(fn, functools.partial):
        for value in (*fn.args, *fn.keywords.values()):
            add("argument", value)
        fn = fn.func
    add("model", fn)
    owner = getattr(fn, "__self__", None)
    add("model", owner)
    for name, value in vars(owner).items() if hasattr(owner, "__dict__") and not isinstance(owner, nn.Module) else ():
        add(name, value)
    for i, value in enumerate(args):
        add(f"argument {i}", value)
    for name, value in kwargs.items():
        add(name, value)
    _in_scope(fn, add, set())
    inside = {id(child) for _, module in found.values() for child in module.modules() if child is not module}
    roots = [(name, module) for key, (name, module) in found.items() if key not in inside]
    return [("", roots[0][1])] if len(roots) == 1 else roots


def _in_scope(fn: Any, add: Callable[[str, Any], None], seen: set[int]) -> None:
    """Add the modules that a function's code names, and those that the functions it names use."""
    if isinstance(fn, nn.Module) or not callable(fn) or id(fn) in seen or len(seen) > 50:
        return
    seen.add(id(fn))
    inner = inspect.unwrap(fn)
    inner = getattr(inner, "__func__", inner)
    if not inspect.isfunction(inner) or classify(inner.__code__) not in (BODY, FUNCTION):
        return
    scope = inspect.getclosurevars(inner)
    for name, value in (*scope.nonlocals.items(), *scope.globals.items()):
        add(name, value)
        if inspect.isfunction(value):
            _in_scope(value, add, seen)
