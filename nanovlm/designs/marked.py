"""A decoder that knows which of its inputs are image tokens: what several designs stand on.

The seam hands a decoder vectors [B, S, dim], and a vector does not say where it came from. But the decoder's own
`token_embedding` has looked the ids up just before, so that it can note where the placeholders are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nanovlm.config import LMConfig, VLMConfig
from nanovlm.models.language_model import BlockCache, DecoderBlock, KVCache, LanguageModel, Rope

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
    padding and of the same document. start: the first of the S new ones. mask: whom these look at, as visible."""

    kinds: Tensor
    inputs: Tensor
    visible: Tensor
    start: int
    num_image_tokens: int
    mask: Tensor

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


class SeeingBlock(DecoderBlock):
    """A decoder block that gets, in the place of its mask, all that is seen. [B, S, dim] -> [B, S, dim]

    fusion: a module that runs in front, with x, the inputs [B, keys, dim] and where x may look at images.
    """

    def __init__(self, config: LMConfig, fusion: nn.Module | None = None) -> None:
        super().__init__(config)
        self.fusion = fusion

    def forward(self, x: Tensor, rope: Rope, seen: Seen, cache: BlockCache | None = None) -> Tensor:
        if self.fusion is not None:
            x = self.fusion(x, seen.inputs, seen.images)
        return super().forward(x, rope, seen.mask, cache)


class MarkedLanguageModel(LanguageModel):
    """[B, S, dim] -> [B, S, dim]. A design overrides `mask`, or puts other blocks in."""

    def __init__(self, config: VLMConfig) -> None:
        super().__init__(config.language)
        self.num_image_tokens = config.num_image_tokens
        self.token_embedding = MarkingEmbedding(config)
        if config.language.tie_weights:
            self.head.weight = self.token_embedding.weight
        self.blocks = nn.ModuleList(SeeingBlock(config.language) for _ in self.blocks)

    def mask(self, seen: Seen) -> Tensor:
        """Who looks at whom in self-attention: bool [B or 1, 1, S, keys]."""
        return seen.visible

    def layout(
        self, x: Tensor, attention_mask: Tensor | None, document_ids: Tensor | None, cache: KVCache | None
    ) -> tuple[Tensor, Seen]:
        start, end = 0 if cache is None else cache.length, x.shape[1] + (0 if cache is None else cache.length)
        positions, visible = super().layout(x, attention_mask, document_ids, cache)
        kinds, inputs = self.token_embedding.take(x), x
        if cache is not None:
            if not isinstance(cache.blocks[-1], Memory):
                cache.blocks.append(Memory(cache, x))
            memory = cache.blocks[-1]
            memory.keys[:, start:end], memory.values[:, start:end] = kinds, x
            kinds, inputs = memory.keys[:, :end], memory.values[:, :end]  # views: what is dropped stays dropped
        if visible is None:
            keys = torch.arange(end, device=x.device)
            visible = (keys[start:, None] >= keys[None, :])[None, None]
        seen = Seen(kinds, inputs, visible, start, self.num_image_tokens, mask=visible)
        seen.mask = self.mask(seen)
        return positions, seen
