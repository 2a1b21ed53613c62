"""Prefix caching: what was read once is not read again, and no logit changes."""

from __future__ import annotations

import torch
from PIL import Image

from nanovlm.data.processors import ImageProcessor
from nanovlm.inference.conversation import PrefixReader
from tests.tiny import ONE_IMAGE, ids_of, tiny_model


def test_only_what_follows_the_known_part_is_read_and_the_logits_stay() -> None:
    model = tiny_model()
    model.image_processor = ImageProcessor(16)
    image = Image.linear_gradient("L").convert("RGB")
    reader, pixels = PrefixReader(model, image), model.image_processor([image])
    first = ids_of([ONE_IMAGE, 7, 8])
    for ids in (first, [*first, 9, 10], [*first[:-1], 11], [*first[:-1], 11]):
        with torch.no_grad():
            whole = model(torch.tensor([ids]), pixels).logits[:, -1]
        torch.testing.assert_close(reader.read(ids), whole, atol=1e-4, rtol=1e-4)
    assert reader.images_encoded == 1
    assert reader.tokens_read == len(first) + 2 + 1 + 1
