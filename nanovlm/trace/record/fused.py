"""torch's fused transformer layers, which torch takes only where nothing watches.

In eval mode without gradients nn.TransformerEncoder, its layers and nn.MultiheadAttention run fused kernels, unless
anything (a hook, a torch-function mode) could look inside. Watched, they take their ordinary path: every step is seen,
but the result differs by rounding, and rows of padding are filled. So after the watched call they are called once more,
unwatched, and this is the result that goes on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import _pop_mode_temporarily

from nanovlm.trace.record.describe import tensors_in

FUSED = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)


def has_fused_path(module: nn.Module) -> bool:
    """Whether torch may run a module through a fused kernel, so that a second call of it changes nothing else: nobody
    overrode its forward, and nothing below it is somebody's own code."""
    if not any(isinstance(module, kind) and type(module).forward is kind.forward for kind in FUSED):
        return False
    below = [child for child in module.modules() if child is not module]
    return all(
        type(child).__module__.startswith("torch.nn.") and not child._forward_hooks and not child._forward_pre_hooks
        for child in below
    )


def would_be_fused(module: nn.Module, result: Any) -> bool:
    """Whether the call that gave `result` may have taken the fused path, had nobody watched it."""
    watched_by_us_alone = torch._C._len_torch_function_stack() == 1
    return watched_by_us_alone and not module.training and not any(t.requires_grad for t in tensors_in(result))


@contextmanager
def unwatched(module: nn.Module, hook_ids: set[int]) -> Iterator[None]:
    """No torch-function mode, and none of our hooks at or below the module."""
    kept = [(child, child._forward_hooks, child._forward_pre_hooks) for child in module.modules()]
    try:
        for child, after, before in kept:
            child._forward_hooks = OrderedDict((k, hook) for k, hook in after.items() if k not in hook_ids)
            child._forward_pre_hooks = OrderedDict((k, hook) for k, hook in before.items() if k not in hook_ids)
        with _pop_mode_temporarily():
            yield
    finally:
        for child, after, before in kept:
            child._forward_hooks, child._forward_pre_hooks = after, before
