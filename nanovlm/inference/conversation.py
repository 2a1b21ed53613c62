"""Prefix caching: a cache that outlives an answer, so that of a longer sequence only its new part is read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import torch
from PIL import Image
from torch import Tensor

from nanovlm.models.language_model import KVCache
from nanovlm.models.vision_language_model import VisionLanguageModel


class PrefixReader:
    """Reads sequences about one picture, and of each only what follows the part that it has read before.

    The placeholders of all pictures have one id, so a reader must not be used for a second picture.
    `images_encoded` and `tokens_read` count what all sequences together took.
    """

    def __init__(self, model: VisionLanguageModel, image: Image.Image, room: int = 256) -> None:
        self.model, self.images = model, model.image_processor([image])
        self.cache = KVCache(model.config.language, batch_size=1, max_length=room, like=self.images)
        self.seen: list[int] = []
        self.images_encoded = self.tokens_read = 0

    @torch.no_grad()
    def read(self, ids: Sequence[int]) -> Tensor:
        """All ids of a sequence -> the logits behind it, [1, vocab_size]"""
        pairs = zip(self.seen, ids[:-1], strict=False)  # the last token is read in any case, for its logits
        known = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        for block in self.cache.blocks:
            block.length = known  # forgets what lies behind the first difference
        rest, self.seen = list(ids[known:]), list(ids)
        with_image = self.model.config.image_token_id in rest
        self.images_encoded += with_image
        self.tokens_read += len(rest)
        x, _, _ = self.model.embed(torch.tensor([rest]), self.images if with_image else None, None)
        return self.model.decoder.head(self.model.decoder(x, cache=self.cache)[:, -1])
