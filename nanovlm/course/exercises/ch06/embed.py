"""Chapter 06: the way that ids and pictures take to the decoder."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanovlm.config import LMConfig, ProjectorConfig, ViTConfig, VLMConfig
from nanovlm.course.exercises.ch06.merge import must_refuse
from nanovlm.course.judge.exercise import Case, Exercise, expect
from nanovlm.models.vision_language_model import VisionLanguageModel, merge_image_tokens

IMAGE = 4  # the placeholder's id in all cases


def _encode(images: Tensor) -> Tensor:
    expect(
        len(images) > 0,
        "The encoder was called without a picture: images is a tensor of length 0 here. A text alone may come with "
        "None or with an empty tensor; ask for both before you encode.",
    )
    return F.avg_pool2d(images[:, :2], 2).flatten(2).transpose(1, 2)


def toy(image_token_id: int | None) -> Any:
    """Something with the parts of a VisionLanguageModel that one can follow by hand: the vector of token 7 is
    [7, 7, 7, 7]. The encoder makes two numbers of a quarter of a picture, the mean of its red and of its green pixels;
    the projector makes four of them, all of them the red one + 100."""
    config = VLMConfig(
        ViTConfig(hidden_dim=2, inter_dim=2, num_blocks=1, num_heads=1, image_size=4, patch_size=2),
        ProjectorConfig(vision_dim=2, language_dim=4, pixel_shuffle_factor=1),
        LMConfig(hidden_dim=4, inter_dim=2, num_blocks=1, num_heads=1, num_kv_heads=1, vocab_size=20),
        image_token_id=image_token_id,
    )
    numbers = torch.arange(20.0)[:, None].expand(-1, 4).clone()
    return SimpleNamespace(
        config=config,
        vision_encoder=_encode,
        projector=lambda x: x[:, :, :1].expand(-1, -1, 4) + 100,
        decoder=SimpleNamespace(token_embedding=nn.Embedding.from_pretrained(numbers)),
    )


def toy_images(count: int) -> Tensor:
    """Picture 0 becomes the image tokens 100, 101, 102, 103, picture 1 becomes 104 …  [count, 3, 4, 4]"""
    tokens = torch.arange(4.0 * count).reshape(count, 1, 2, 2)
    return tokens.repeat_interleave(2, 2).repeat_interleave(2, 3).expand(-1, 3, -1, -1).clone()


def run_embed(
    embed: Any,
    input_ids: Tensor,
    images: Tensor | None,
    attention_mask: Tensor | None,
    image_token_id: int | None = IMAGE,
    refuse: str = "",
) -> Any:
    model = toy(image_token_id)
    if refuse:
        return must_refuse(lambda: embed(model, input_ids, images, attention_mask), refuse)
    out = embed(model, input_ids, images, attention_mask)
    if attention_mask is None and isinstance(out, (tuple, list)) and len(out) == 3:
        expect(
            out[1] is None, "no mask came in, and one came out. Without a mask there is nothing to grow: return None."
        )
    return out


NO_IMAGE = (
    "The text has placeholders and no picture came. It went through: the decoder would read the placeholder's own "
    "vector, which nobody trained. Raise ValueError."
)
WITH_IMAGE = torch.tensor([[2, IMAGE, IMAGE, IMAGE, IMAGE, 7]])
EMBED = Exercise(
    id="fusion.embed",
    chapter="06",
    title="Both ways to join",
    difficulty=3,
    minutes=15,
    why="One method serves two generations of models and every kind of batch: pictures in their places, pictures in "
    "front, several of them, none. Where a picture goes in front, the attention mask must grow in front as well: if "
    "it grows at its end, the zeros that mark padding fall on image tokens, and the decoder never looks at these.",
    hints=(
        "Four cases: no picture; placeholders and pictures; pictures without placeholders; placeholders without a "
        "picture. Write the one that ends soonest first.",
        "Look up the words. Are there placeholders? (image_token_id may be None: then there are none.) Without "
        "pictures you are done, or it is an error. Else encode and project the pictures, and merge them or put them "
        "in front with torch.cat. What comes in front needs ones in the mask, if there is a mask.",
        "embeddings = self.decoder.token_embedding(input_ids)\n"
        "image_tokens = self.projector(self.vision_encoder(images))\n"
        "placeholders: return merge_image_tokens(…), attention_mask, 0\n"
        "none: the mask grows by …, if there is a mask\n"
        "      return torch.cat([image_tokens, embeddings], dim=1), the mask, num_image_tokens",
    ),
    reference=VisionLanguageModel.embed,
    cases=lambda: [
        Case(WITH_IMAGE, toy_images(1), None, note="a picture with placeholders, and no mask"),
        Case(
            torch.tensor([[2, 7, 8], [0, 2, 9]]),
            toy_images(2),
            torch.tensor([[1, 1, 1], [0, 1, 1]]),
            image_token_id=None,
            note="no placeholders: each row's picture goes in front, and the mask grows",
        ),
        Case(
            torch.tensor([[2, *[IMAGE] * 8, 7], [2, *[IMAGE] * 4, 7, 8, 9, 9, 0]]),
            toy_images(3),
            torch.tensor([[1] * 10, [1] * 9 + [0]]),
            note="two pictures in one row and one in the other, with a mask",
        ),
        Case(
            torch.tensor([[2, 7, 8, 9, 9], [2, *[IMAGE] * 4]]),
            toy_images(1),
            None,
            note="a row without a picture above one with a picture",
        ),
        Case(torch.tensor([[2, 7, 8]]), None, torch.ones(1, 3, dtype=torch.long), note="no picture: images is None"),
        Case(torch.tensor([[2, 7]]), toy_images(0), None, note="no picture: images holds none"),
        Case(
            torch.tensor([[2, 7]]),
            toy_images(1),
            None,
            note="a model that has a placeholder, in a text that holds none: in front, and no mask",
        ),
        Case(WITH_IMAGE, None, None, refuse=NO_IMAGE, note="placeholders, and no picture: this must raise ValueError"),
    ],
    axes={"embeddings": "batch sequence dim", "attention_mask": "batch sequence", "num_prefix": ""},
    call=run_embed,
)


@EMBED.property("gradients flow back to the words, to the projector and to the encoder")
def _(embed) -> None:
    for token_id, row in ((IMAGE, [2, *[IMAGE] * 4, 7]), (None, [2, 7])):
        model = toy(token_id)
        model.decoder.token_embedding.weight.requires_grad_()
        images = toy_images(1).requires_grad_()  # behind the encoder and the projector
        x = embed(model, torch.tensor([row]), images, None)[0]
        expect(x.requires_grad, "The vectors are cut off from where they came from: no gradient can flow.")
        x.sum().backward()
        way = "where placeholders hold its places" if token_id else "in front"
        expect(images.grad is not None and images.grad.any(), f"No gradient reaches the encoder of a picture {way}.")
        words = model.decoder.token_embedding.weight.grad
        expect(words is not None and words[7].any(), f"No gradient reaches the words beside a picture {way}.")


def _embed(
    self,
    ids,
    images,
    mask,
    *,
    before=True,
    merges=True,
    pad=(1, 0),
    value=1,
    counts=True,
    careful=True,
    projects=True,
    may_be_none=True,
    number=lambda tokens: tokens.shape[1],
    when_merged=lambda mask, n: (mask, 0),
    only_row_0=False,
    front=True,
    words=True,
    pictures=True,
):
    """embed, with one thing at a time to get wrong."""
    embeddings = self.decoder.token_embedding(ids)
    token_id = self.config.image_token_id
    where = ids[:1] if only_row_0 else ids
    has_placeholder = not (may_be_none and token_id is None) and bool((where == token_id).any())
    if images is None or len(images) == 0:
        if has_placeholder and careful:
            raise ValueError
        return embeddings, mask, 0
    image_tokens = self.vision_encoder(images)
    if projects:
        image_tokens = self.projector(image_tokens)
    if has_placeholder and merges:
        merged = merge_image_tokens(embeddings, image_tokens, ids == self.config.image_token_id)
        return merged, *when_merged(mask, image_tokens.shape[1])
    if not front:
        raise ValueError
    both = [image_tokens, embeddings] if before else [embeddings, image_tokens]
    n = image_tokens.shape[1]
    if mask is not None and pad:
        mask = F.pad(mask, (pad[0] * n, pad[1] * n), value=value)
    both = [part for part, there in zip(both, (pictures, words), strict=True) if there]
    return torch.cat(both, dim=1), mask, number(image_tokens) if counts else 0


for sentence, wrong in (
    (
        "The image tokens go in front even where placeholders reserve their places. Look for placeholders.",
        {"merges": False},
    ),
    (
        "The picture stands behind the text. A decoder attends to earlier positions only, so the question "
        "could not use it.",
        {"before": False},
    ),
    ("The sequence got longer and the mask did not: the image tokens need ones in it, in front.", {"pad": ()}),
    ("The mask grew at its end, but the image tokens are in front: padding and words are mixed up.", {"pad": (0, 1)}),
    ("The mask says 0 for the image tokens, so nothing may attend to them. 1 means real.", {"value": 0}),
    ("How many came in front is 0 here, but image tokens did: the loss will read the wrong places.", {"counts": False}),
    ("Placeholders without a picture go through in silence. Raise ValueError.", {"careful": False}),
    (
        "The image tokens always go in front, and placeholders without a picture go through. Look for placeholders "
        "before you choose the way.",
        {"merges": False, "careful": False},
    ),
    (
        "The pictures reach the words in the encoder's width: after the encoder the projector makes image tokens as "
        "wide as the words.",
        {"projects": False},
    ),
    (
        "image_token_id may be None, and comparing a tensor with None gives a plain False, not a mask: ask for None "
        "first.",
        {"may_be_none": False},
    ),
    (
        "The number in front is that of the whole batch. Each row has one picture in front: return how many tokens a "
        "row got.",
        {"number": lambda tokens: tokens.shape[0] * tokens.shape[1]},
    ),
    ("The number in front counts pictures. Count their tokens: projector output, dim 1.", {"number": len}),
    (
        "You return a number in front for merged pictures too. Their tokens took the placeholders' places, so none "
        "stands in front: 0.",
        {"when_merged": lambda mask, n: (mask, n)},
    ),
    (
        "The mask grows although the pictures were merged. The sequence did not grow, because the placeholders were in "
        "it already.",
        {"when_merged": lambda mask, n: (mask if mask is None else F.pad(mask, (n, 0), value=1), 0)},
    ),
    (
        "You look for placeholders in the first row alone. A batch may begin with a row that has no picture.",
        {"only_row_0": True},
    ),
    (
        "A picture without a placeholder is refused. That is the other way of joining: it goes in front of the row.",
        {"front": False},
    ),
    ("The words are gone: only the image tokens are left where a picture goes in front.", {"words": False}),
    ("The image tokens are gone: only the words are left where a picture goes in front.", {"pictures": False}),
):
    EMBED.mistake(sentence)(lambda self, ids, images, mask, wrong=wrong: _embed(self, ids, images, mask, **wrong))


@EMBED.mistake("A text without a picture is ordinary: images may be None. Ask before you encode.")
def _(self, ids, images, mask):
    image_tokens = self.projector(self.vision_encoder(images))
    if self.config.image_token_id is not None and bool((ids == self.config.image_token_id).any()):
        embeddings = self.decoder.token_embedding(ids)
        return merge_image_tokens(embeddings, image_tokens, ids == self.config.image_token_id), mask, 0
    return _embed(self, ids, images, mask)


@EMBED.part
def _(code, learner) -> None:
    code.vision_language_model.VisionLanguageModel.embed = learner
