"""A decoder that knows which of its inputs are image tokens: what several designs stand on.

The seam hands a decoder vectors [B, S, dim], and a vector does not say where it came from. But the decoder's own
`token_embedding` has looked the ids up just before, so that it can note where the placeholders are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nanovlm.config import VLMConfig
from nanovlm.models.language_model import BlockCache, KVCache, LanguageModel, Rope, attention_layout

TEXT, IMAGE, DROPPED = 0, 1, 2  # kinds of input; DROPPED: an image token that later tokens no longer see


class MarkingEmbedding(nn.Embedding):
    """Token ids -> vectors, as nn.Embedding; the kinds of the last ids wait in `kinds` until the decoder takes them."""

    def __init__(self, config: VLMConfig) -> None:
        super().__init__(config.language.vocab_size, config.language.hidden_dim)
        self.image_token_id = config.image_token_id
        self.kinds: Tensor | None = None

    def forward(self, ids: Tensor) -> Tensor:
        # One id a row, [rows], is a token that was just generated: it is text whatever its id.
        placeholder = -1 if self.image_token_id is None else self.image_token_id
        self.kinds = (ids == placeholder).to(torch.int8) if ids.ndim == 2 else None
        return super().forward(ids)

    def take(self, x: Tensor) -> Tensor:
        """x [B, S, dim] -> kinds int8 [B, S]. What stands in front of the noted ids is a picture without placeholders;
        vectors that come from no ids are text."""
        noted, self.kinds = self.kinds, None
        batch, length = x.shape[:2]
        if noted is None or noted.shape[0] != batch or noted.shape[1] > length:
            return torch.full((batch, length), TEXT, dtype=torch.int8, device=x.device)
        in_front = torch.full((batch, length - noted.shape[1]), IMAGE, dtype=torch.int8, device=x.device)
        return torch.cat([in_front, noted], dim=1)


class Memory:
    """The kinds and the input vectors of all positions of a KVCache. It stands among the cache's blocks, under the same
    two names, so that beam search rearranges it with them."""

    def __init__(self, cache: KVCache, x: Tensor) -> None:
        batch, max_length = cache.real.shape
        self.keys = torch.full((batch, max_length), TEXT, dtype=torch.int8, device=x.device)
        self.values = x.new_zeros(batch, max_length, x.shape[2])


@dataclass
class Seen:
    """All inputs up to now. kinds [B, keys], inputs [B, keys, dim], visible [B or 1, 1, S, keys]: the past that is no
    padding and of the same document. start: the first of the S new ones."""

    kinds: Tensor
    inputs: Tensor
    visible: Tensor
    start: int
    num_image_tokens: int

    @property
    def is_image(self) -> Tensor:
        return self.kinds != TEXT  # [B, keys]

    @property
    def same_image(self) -> Tensor:
        """bool [B, S, keys]: both are tokens of one picture."""
        number = (self.is_image.long().cumsum(dim=1) - 1) // self.num_image_tokens
        number = torch.where(self.is_image, number, -1)
        return (number[:, self.start :, None] == number[:, None, :]) & self.is_image[:, None, :]

    @property
    def oneself(self) -> Tensor:
        """bool [S, keys]"""
        keys = torch.arange(self.kinds.shape[1], device=self.kinds.device)
        return keys[self.start :, None] == keys[None, :]

    @property
    def images(self) -> Tensor:
        """bool [B, 1, S, keys]: the image tokens that each new position may look at."""
        return self.visible & self.is_image[:, None, None, :]


class MarkedLanguageModel(LanguageModel):
    """[B, S, dim] -> [B, S, dim]. A design overrides `mask`, `run_block` or both."""

    def __init__(self, config: VLMConfig) -> None:
        super().__init__(config.language)
        self.num_image_tokens = config.num_image_tokens
        self.token_embedding = MarkingEmbedding(config)
        if config.language.tie_weights:
            self.head.weight = self.token_embedding.weight

    def mask(self, seen: Seen) -> Tensor:
        """Who looks at whom in self-attention: bool [B or 1, 1, S, keys]."""
        return seen.visible

    def run_block(self, i: int, x: Tensor, rope: Rope, mask: Tensor, seen: Seen, cache: BlockCache | None) -> Tensor:
        """x [B, S, dim] -> [B, S, dim]"""
        return self.blocks[i](x, rope, mask, cache)

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: KVCache | None = None,
        hidden_states: list[Tensor] | None = None,
    ) -> Tensor:
        """As LanguageModel's, with the same arguments and errors."""
        start, length = 0 if cache is None else cache.length, x.shape[1]
        if start + length > self.config.max_positions:
            raise ValueError(
                f"The sequence is longer than this model's {self.config.max_positions} positions. Shorten the prompt."
            )
        if cache is None:
            positions, visible = attention_layout(attention_mask, document_ids, length, x.device)
        elif document_ids is None:
            positions, visible = cache.layout(attention_mask, length)
        else:
            raise ValueError("A cache goes on with one document a row: give document_ids or a cache, not both.")
        seen = self._see(x, visible, start, cache)
        rope, mask = self.rotary_embedding(positions), self.mask(seen)
        for i in range(len(self.blocks)):
            if hidden_states is not None:
                hidden_states.append(x)
            block_cache = None if cache is None else cache.blocks[i]
            if self.gradient_checkpointing and self.training and cache is None:
                x = checkpoint(self.run_block, i, x, rope, mask, seen, None, use_reentrant=False)
            else:
                x = self.run_block(i, x, rope, mask, seen, block_cache)
        x = self.norm(x)
        if hidden_states is not None:
            hidden_states.append(x)
        return x

    def _see(self, x: Tensor, visible: Tensor | None, start: int, cache: KVCache | None) -> Seen:
        kinds, inputs, end = self.token_embedding.take(x), x, start + x.shape[1]
        if cache is not None:
            if not isinstance(cache.blocks[-1], Memory):
                cache.blocks.append(Memory(cache, x))
            memory = cache.blocks[-1]
            memory.keys[:, start:end], memory.values[:, start:end] = kinds, x
            kinds, inputs = memory.keys[:, :end], memory.values[:, :end]  # views: what is dropped stays dropped
        if visible is None:
            keys = torch.arange(end, device=x.device)
            visible = (keys[start:, None] >= keys[None, :])[None, None]
        return Seen(kinds, inputs, visible, start, self.num_image_tokens)
