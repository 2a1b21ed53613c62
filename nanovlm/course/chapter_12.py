"""What chapter 12's challenge is judged by: decoders of several designs, small enough for the device `meta`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nanovlm.config import LMConfig
from nanovlm.models.language_model import LanguageModel


class Headed(nn.Module):
    """The package's decoder with its head: ids [B, T] -> logits [B, T, vocab_size]"""

    def __init__(self, num_kv_heads: int, tied: bool) -> None:
        super().__init__()
        config = LMConfig(24, 40, 2, 4, num_kv_heads, vocab_size=33, max_positions=64, tie_weights=tied)
        self.inner = LanguageModel(config)

    def forward(self, ids: Tensor) -> Tensor:
        return self.inner.head(self.inner(self.inner.token_embedding(ids)))


class Plain(nn.Module):
    """torch's own blocks, which have neither groups nor gates."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(33, 24), nn.Linear(24, 33, bias=False)
        if tied:
            self.out.weight = self.words.weight
        layer = nn.TransformerEncoderLayer(24, 4, 40, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.body(self.words(ids), is_causal=False))


def decoders() -> list[tuple[Callable[[], nn.Module], Tensor, tuple[bool, bool, bool]]]:
    """(how to make it, ids, (grouped-query attention, gated MLP, tied head))"""
    ids = torch.zeros(1, 7, dtype=torch.long)
    return [
        (lambda: Headed(2, tied=True), ids, (True, True, True)),
        (lambda: Headed(4, tied=False), ids, (False, True, False)),
        (lambda: Plain(tied=False), ids, (False, False, False)),
        (lambda: Plain(tied=True), ids, (False, False, True)),
    ]
