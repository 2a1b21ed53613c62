"""The largest tensor that a function makes on the way: memory, measured without a GPU and the same on every machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            # A view or an expanded tensor takes the memory of what lies under it.
            if isinstance(leaf, Tensor):
                self.largest = max(self.largest, leaf.untyped_storage().nbytes() // leaf.element_size())
        return out


def largest_tensor(function: Callable[..., Any], *args: Any) -> tuple[Any, int]:
    """What function(*args) returns, and the numbers in the largest tensor that it made; views of its inputs count as
    large as these."""
    with _Watch() as watch:
        out = function(*args)
    return out, watch.largest
