"""A cache of one shape writes the tokens of the package's."""

from __future__ import annotations

import torch

from nanovlm.bench.static_cache import StaticStep
from nanovlm.models.language_model import KVCache
from tests.tiny import max_difference, tiny_model


@torch.no_grad()
def test_a_static_step_is_a_step_of_the_package() -> None:
    decoder = tiny_model().decoder
    cache = KVCache(decoder.config, 1, 9, like=decoder.token_embedding.weight)
    decoder(torch.randn(1, 4, 32), cache=cache)
    step, token = StaticStep(decoder, cache), torch.tensor([[7]])
    for _ in range(5):
        expected = decoder.head(decoder(decoder.token_embedding(token), cache=cache)).argmax(dim=-1)
        token = step(token)
        assert torch.equal(token, expected)
    for mine, theirs in zip(step.caches, cache.blocks, strict=True):
        assert max_difference(mine.keys, theirs.keys) < 1e-5
