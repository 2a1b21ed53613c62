"""What can be looked at while a step runs, on request: values, attention weights, aten operations."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nanovlm.trace.record.describe import tensors_in
from nanovlm.trace.rows import Row


def watch_values(row: Row, func: Any, args: tuple, kwargs: dict, result: Any) -> None:
    """Mean, standard deviation, extremes, and the number of NaN and Inf, of what came out (finite values only)."""
    parts = [t.detach() for t in tensors_in(result) if t.is_floating_point() and not t.is_meta and t.numel()]
    if parts:
        with suppress(RuntimeError):  # inside vmap nobody may look at values; sparse and nested tensors hide theirs
            row.stats = _statistics(
                torch.cat([t.flatten() if t.dtype is torch.float64 else t.flatten().float() for t in parts])
            )


def _statistics(values: Tensor) -> dict[str, float]:
    finite = values[values.isfinite()]
    return {
        "mean": finite.mean().item() if finite.numel() else float("nan"),
        "std": finite.std(correction=0).item() if finite.numel() else float("nan"),
        "min": finite.min().item() if finite.numel() else float("nan"),
        "max": finite.max().item() if finite.numel() else float("nan"),
        "nan": values.isnan().sum().item(),
        "inf": values.isinf().sum().item(),
    }


class AttentionCatcher:
    """Collects the weights of F.scaled_dot_product_attention, which torch never shows, for the modules asked for.

    found[name]: one float32 CPU tensor [B, num_heads, queries, keys] a call. The weights are recomputed from the
    arguments; attention that is written out is caught at its softmax over the last dim of four, torch's own multi-head
    attention also at its softmax of [B * num_heads, queries, keys].
    """

    def __init__(self, names: Iterable[str]):
        if isinstance(names, str) or not isinstance(names, Iterable):
            raise TypeError(
                f'attention= is a list of module paths, as ["decoder.blocks.0"] or [""] for all; got {names!r}.'
            )
        self.names = list(names)
        self.found: dict[str, list[Tensor]] = {name: [] for name in self.names}

    def __call__(self, row: Row, func: Any, args: tuple, kwargs: dict, result: Any) -> None:
        if row.name not in ("scaled_dot_product_attention", "softmax"):
            return
        wanted = [n for n in self.names if row.path == n or row.path.startswith(n + ".") or not n]
        if not wanted:
            return
        with torch.no_grad():
            if row.name == "softmax":
                above = row.parent
                if result.ndim == 3 and above is not None and above.name == "multi_head_attention_forward":
                    num_heads = above.args[4] if len(above.args) > 4 else above.kwargs["num_heads"]
                    result = result.unflatten(0, (-1, num_heads))
                dim = row.args[1] if len(row.args) > 1 else row.kwargs.get("dim")
                if result.ndim != 4 or dim not in (-1, 3):
                    return
                weights = result.detach().float().cpu().clone()  # the model may go on to write into its own
            else:
                weights = attention_weights(*args, **kwargs).cpu()
        for name in wanted:
            self.found[name].append(weights)

    def remark(self) -> str | None:
        """A sentence on the modules in which nothing was caught, if there are such."""
        empty = [repr(name) if name else "the model" for name, found in self.found.items() if not found]
        if not empty:
            return None
        return (
            f"no attention weights were seen in {', '.join(empty)}: no scaled_dot_product_attention ran there, and no "
            "softmax of [B, num_heads, queries, keys]"
        )


def attention_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor | None = None,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The weights behind F.scaled_dot_product_attention(...), same arguments: float32 [..., heads, queries, keys].

    Before dropout. The rows of queries that may look at nothing are zeros, as torch's output is.
    """
    query, key = query.detach().float(), key.detach().float()
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    scores = query @ key.mT * (scale if scale is not None else query.shape[-1] ** -0.5)
    if is_causal:
        queries, keys = scores.shape[-2:]
        attn_mask = torch.ones(queries, keys, dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        if attn_mask.dtype is torch.bool:
            scores = scores.masked_fill(~attn_mask, float("-inf"))
        else:
            scores = scores + attn_mask.detach().float()
    blind = (scores == float("-inf")).all(dim=-1, keepdim=True)
    return scores.softmax(dim=-1).masked_fill(blind, 0.0)


class AtenMode(TorchDispatchMode):
    """Adds a row for every aten operation under the step that it belongs to."""

    def __init__(self, recorder: Any):
        super().__init__()
        self.recorder = recorder

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.recorder.on_aten(func, args, kwargs or {})
