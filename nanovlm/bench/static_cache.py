"""A KV cache of one shape for all steps, eager and compiled, beside the package's: chapter 16's milliseconds a token.

The package's cache reserves its memory once as well, but hands out the filled part of it, so that each step has shapes
of its own. Here every step reads all places and a mask hides those to come; such a step is compiled once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from nanovlm.assets import asset_path
from nanovlm.bench.timing import interleave, median_ratio
from nanovlm.inference.prompts import prepare_prompts
from nanovlm.models.language_model import KVCache, LanguageModel
from nanovlm.models.vision_language_model import VisionLanguageModel

NEW_TOKENS, ROUNDS = 24, 15


class StaticBlock:
    """Takes a BlockCache's place: writes at `position` [1], gives all places."""

    def __init__(self, keys: Tensor, values: Tensor, position: Tensor) -> None:
        self.keys, self.values, self.position = keys, values, position

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.keys.index_copy_(2, self.position, k)
        self.values.index_copy_(2, self.position, v)
        return self.keys, self.values


class StaticStep(nn.Module):
    """One token through a decoder, behind what `cache` has seen: [1, 1] -> the likeliest next, [1, 1]"""

    def __init__(self, decoder: LanguageModel, cache: KVCache) -> None:
        super().__init__()
        self.decoder = decoder
        self.position = torch.tensor([cache.length])
        self.places = torch.arange(cache.real.shape[1])
        self.caches = [StaticBlock(b.keys.clone(), b.values.clone(), self.position) for b in cache.blocks]

    def forward(self, token: Tensor) -> Tensor:
        x = self.decoder.token_embedding(token)
        rope = self.decoder.rotary_embedding(self.position[None])
        mask = (self.places <= self.position)[None, None, None]  # [1, 1, 1, places]
        for block, cache in zip(self.decoder.blocks, self.caches, strict=True):
            x = block(x, rope, mask, cache)
        self.position.add_(1)
        return self.decoder.head(self.decoder.norm(x)).argmax(dim=-1)


@torch.no_grad()
def contenders(model: VisionLanguageModel, new_tokens: int) -> dict[str, Callable[[], list[int]]]:
    """Name -> a function that writes so many tokens behind the same prompt, which has been read already."""
    image = Image.open(asset_path("images/shapes.png")).convert("RGB")
    batch, decoder = prepare_prompts(model, ["Describe the picture."], [image]), model.decoder
    x, _, _ = model.embed(batch["input_ids"], batch["images"], None)
    cache = KVCache(decoder.config, 1, x.shape[1] + new_tokens, like=x)
    first, length = decoder.head(decoder(x, cache=cache)[:, -1:]).argmax(dim=-1), x.shape[1]  # [1, 1]

    def reserved(token: Tensor) -> Tensor:
        return decoder.head(decoder(decoder.token_embedding(token), cache=cache)).argmax(dim=-1)

    def write(step: Callable[[Tensor], Tensor], rewind: Callable[[], Any]) -> list[int]:
        rewind()
        token, written = first, []
        for _ in range(new_tokens):
            written.append(int(token))
            token = step(token)
        return written

    def rewind() -> None:
        for block in cache.blocks:
            block.length = length

    steps = {"static": StaticStep(decoder, cache), "static, compiled": StaticStep(decoder, cache)}
    steps["static, compiled"].compile(fullgraph=True)
    found = {"reserved": torch.no_grad()(lambda: write(reserved, rewind))}
    for name, step in steps.items():
        back = step.position.fill_
        found[name] = torch.no_grad()(lambda step=step, back=back: write(step, lambda: back(length)))
    return found


def static_cache(model: VisionLanguageModel) -> dict[str, dict[str, float]]:
    """Name -> milliseconds a token, how many times as fast as the package's cache, and the seconds of the first call,
    in which a step is compiled. All write the same tokens."""
    ways = contenders(model, NEW_TOKENS)
    seconds, written = {}, {}
    for name, way in ways.items():
        began = time.perf_counter()
        written[name] = way()
        seconds[name] = round(time.perf_counter() - began, 1)
    if any(tokens != written["reserved"] for tokens in written.values()):
        raise RuntimeError(f"The caches disagree about the tokens: {written}")
    timings = interleave(ways, ROUNDS)
    return {
        name: {
            "ms_a_token": round(1000 * timing.median / NEW_TOKENS, 2),
            "times_as_fast": round(median_ratio(timings["reserved"], timing), 2),
            "first_call_seconds": seconds[name],
        }
        for name, timing in timings.items()
    }
