"""A watched module that is copied or pickled, by the model itself or beside it: the copy carries no hook of ours."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from typing import Any

from torch import nn

_HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
)


@contextmanager
def copies_left_alone(hook_ids: set[int]) -> Iterator[None]:
    """While it is active, copy and pickle see modules without the hooks of these ids.

    Both ask nn.Module for its state through `__getstate__`, so that is exchanged for as long as the trace runs: the
    hooks lead to the recorder, and that to stack frames, which nobody can copy.
    """
    before = nn.Module.__getstate__

    def state(module: nn.Module) -> dict[str, Any]:
        found = before(module)
        for name in _HOOKS:
            if name in found:
                found[name] = OrderedDict((key, hook) for key, hook in found[name].items() if key not in hook_ids)
        return found

    nn.Module.__getstate__ = state
    try:
        yield
    finally:
        nn.Module.__getstate__ = before


def with_own_state(fn: Any) -> Any:
    """A module, or a module's method, whose Python state (a cache, a counter) is a copy; its weights are the same."""
    owner = fn if isinstance(fn, nn.Module) else getattr(fn, "__self__", None)
    if not isinstance(owner, nn.Module):
        return fn
    shared = {id(tensor): tensor for tensor in (*owner.parameters(), *owner.buffers())}
    with suppress(Exception):  # what cannot be copied is run as it is
        copy = deepcopy(owner, shared)
        return copy if owner is fn else getattr(copy, fn.__name__)
    return fn
