"""Chapter 06 once more, written another way."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from nanovlm.models.vision_language_model import VLMOutput


def merge_image_tokens(embeddings: Tensor, image_tokens: Tensor, is_placeholder: Tensor) -> Tensor:
    """Place by place, with a counter."""
    size = image_tokens.shape[1]
    line = list(image_tokens.flatten(0, 1))
    rows = []
    for vectors, mask in zip(embeddings, is_placeholder.tolist(), strict=True):
        if sum(mask) % size or sum(mask) > len(line):
            raise ValueError("This row's placeholders and the pictures do not fit.")
        row = [line.pop(0).to(vectors.dtype) if taken else vector for vector, taken in zip(vectors, mask, strict=True)]
        rows.append(torch.stack(row))
    if line:
        raise ValueError("There are more pictures than placeholders.")
    return torch.stack(rows)


def embed(self, input_ids: Tensor, images: Tensor | None, attention_mask: Tensor | None):
    """No placeholder is the case of an id that no token has; a new line is filled from both ends."""
    words = self.decoder.token_embedding(input_ids)
    marker = -1 if self.config.image_token_id is None else self.config.image_token_id
    holds = input_ids.eq(marker)
    count = 0 if images is None else len(images)
    if not count:
        if int(holds.sum()):
            raise ValueError("Where is the picture?")
        return words, attention_mask, 0
    tokens = self.projector(self.vision_encoder(images))
    if int(holds.sum()):
        return merge_image_tokens(words, tokens, holds), attention_mask, 0
    batch, length, dim = words.shape
    n = tokens.shape[1]
    line = words.new_zeros(batch, n + length, dim)
    line[:, :n], line[:, n:] = tokens, words
    if attention_mask is not None:
        attention_mask = torch.cat([attention_mask.new_ones(batch, n), attention_mask], 1)
    return line, attention_mask, n


def answer_loss(head, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """One position after the other."""
    num_prefix = x.shape[1] - targets.shape[1]
    logits, losses = [], []
    for row, places in enumerate(targets.tolist()):
        for position, target in enumerate(places):
            if target >= 0:
                logits.append(head(x[row, num_prefix + position]))
                losses.append(-logits[-1].log_softmax(0)[target])
    if not losses:
        raise ValueError("Nothing to learn from.")
    return torch.stack(logits), torch.stack(losses).mean()


def forward(
    self,
    input_ids,
    images=None,
    attention_mask=None,
    targets=None,
    document_ids=None,
    output_hidden_states=False,
    cache=None,
):
    """The states are always collected; the loss comes from the loop above."""
    x, mask, num_prefix = embed(self, input_ids, images, attention_mask)
    if num_prefix > 0 and document_ids is not None:
        raise ValueError("Whose picture is it?")
    states: list[Tensor] = []
    x = self.decoder(x, attention_mask=mask, document_ids=document_ids, cache=cache, hidden_states=states)
    logits, loss = (self.decoder.head(x), None) if targets is None else answer_loss(self.decoder.head, x, targets)
    return VLMOutput(logits=logits, loss=loss, hidden_states=states if output_hidden_states else None)


def moved(logits: Tensor, other: Tensor) -> Tensor:
    """What did not move is what the two have in common."""
    return 1 - torch.minimum(logits.softmax(1), other.softmax(1)).sum(1)


def parameters_by_part(config) -> dict[str, int]:
    """Every tensor as its shape."""
    v, m, p = config.vision, config.language, config.projector
    d, i = v.hidden_dim, v.inter_dim
    block = [(3 * d, d), (3 * d,), (d, d), (d,), (i, d), (i,), (d, i), (d,), *[(d,)] * 4]
    vision = [(d, 3, v.patch_size, v.patch_size), (d,), (v.grid_size**2, d), *block * v.num_blocks, (d,), (d,)]
    d, i, kv = m.hidden_dim, m.inter_dim, m.hidden_dim * m.num_kv_heads // m.num_heads
    block = [(d, d), (kv, d), (kv, d), (d, d), (i, d), (i, d), (d, i), (d,), (d,)]
    decoder = [(m.vocab_size, d), *block * m.num_blocks, (d,), *([] if m.tie_weights else [(m.vocab_size, d)])]
    factor = p.pixel_shuffle_factor
    parts = {"vision_encoder": vision, "projector": [(d, p.vision_dim, factor, factor)], "decoder": decoder}
    return {name: sum(map(prod, shapes)) for name, shapes in parts.items()}


VERSIONS = {
    "fusion.merge_image_tokens": merge_image_tokens,
    "fusion.embed": embed,
    "fusion.answer_loss": answer_loss,
    "fusion.forward": forward,
    "fusion.moved": moved,
    "fusion.parameters_222m": parameters_by_part,
}
