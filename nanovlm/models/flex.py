"""Packed rows on a GPU through flex attention (Dong et al. 2024, https://arxiv.org/abs/2412.05496).

In a row of 4,096 tokens with ten documents nine tenths of all pairs are hidden. A kernel that adds a mask to the scores
computes them all the same; flex attention goes through the mask in blocks of 128 x 128, and leaves out the empty ones.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from nanovlm.tensor_types import Bool, Float

HAS_TRITON = find_spec("triton") is not None
SHORTEST = 1_024  # tokens: below, few blocks are empty, and compiling takes longer than it saves


def blocks_pay(q: Tensor, mask: Tensor) -> bool:
    """Whether a training step with this mask should go through `attend_in_blocks`: long rows, on an NVIDIA GPU from
    Ampere on, where Triton is there to compile it. Anywhere else scaled_dot_product_attention takes the mask."""
    length = mask.shape[-1]
    return q.is_cuda and q.requires_grad and SHORTEST <= length == mask.shape[-2] == q.shape[2] and _can_compile()


def _can_compile() -> bool:
    return HAS_TRITON and torch.cuda.get_device_capability() >= (8, 0)


def attend_in_blocks(
    q: Float[Tensor, "batch num_heads length head_dim"],
    k: Float[Tensor, "batch num_kv_heads length head_dim"],
    v: Float[Tensor, "batch num_kv_heads length head_dim"],
    mask: Bool[Tensor, "batch 1 length length"],
) -> Float[Tensor, "batch num_heads length head_dim"]:
    """`attend` with a mask. On a CPU it runs without a compiler, and without gradients (torch 2.13)."""
    from torch.nn.attention.flex_attention import flex_attention

    inside = torch.compiler.is_compiling()  # of a decoder that is compiled as a whole
    attend = _compiled() if q.is_cuda and not inside else flex_attention
    blocks = _make_blocks(mask) if inside else _blocks(mask)
    return attend(q, k, v, block_mask=blocks, enable_gqa=q.shape[1] > k.shape[1])


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


@lru_cache(maxsize=1)  # all blocks of a decoder share one mask
def _blocks(mask: Bool[Tensor, "batch 1 length length"]) -> Any:
    return _make_blocks(mask)


def _make_blocks(mask: Bool[Tensor, "batch 1 length length"]) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(row: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return mask[row, 0, query, key]

    return create_block_mask(visible, mask.shape[0], None, mask.shape[2], mask.shape[3], device=mask.device)
