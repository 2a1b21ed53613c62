"""Other people's implementations, small and with random weights, to compare ours with."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def small_llama(seed: int = 0) -> Any:
    """transformers' Llama with three blocks, 9 query heads, 3 key/value heads and a vocabulary of 70.

    Its weights are larger than usual, so that a mistake cannot hide below a tolerance. Raises ModuleNotFoundError where
    transformers is missing.
    """
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        raise ModuleNotFoundError("This comparison needs transformers: pip install transformers") from None
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=54,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=70,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    for name, p in model.named_parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=0.5 if "embed" in name else p.shape[1] ** -0.5)
    return model
