"""Where a model looked while it wrote each word of an answer: the picture, dark where no weight went."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from nanovlm.models.vision_language_model import VisionLanguageModel

SIDE = 384  # pixels of a shaded picture
DARKEST = 0.85


@dataclass(frozen=True)
class Look:
    word: str
    share: float  # of the word's attention: what went to the picture
    shaded: Image.Image


def word_looks(model: VisionLanguageModel, image: Image.Image, question: str, answer: str) -> list[Look]:
    """One Look for each word of the answer, averaged over all blocks and heads, and over the word's tokens.

    Empty where the picture is not one square of tokens in the decoder's sequence: tiles, cross-attention, no answer.
    """
    from nanovlm.inference.prompts import answer_ids, prepare_prompt
    from nanovlm.trace import trace

    if not answer.strip():
        return []
    prompt, pixels = prepare_prompt(model, question, image)
    written = answer_ids(model, answer)
    num_image_tokens, image_token_id = model.config.num_image_tokens, model.config.image_token_id
    side = math.isqrt(num_image_tokens)
    if pixels is None or len(pixels) != 1 or side * side != num_image_tokens:
        return []
    weight = model.decoder.token_embedding.weight
    blocks = [f"decoder.blocks.{i}" for i in range(len(model.decoder.blocks))]
    with torch.inference_mode():
        ids = torch.tensor([prompt + written], device=weight.device)
        seen = trace(model, ids, pixels.to(weight.device, weight.dtype), attention=blocks).attention
    rows = [seen[block][0][0].mean(0) for block in blocks if seen.get(block)]  # of each block [T, T]
    first, length = 0 if image_token_id is None else prompt.index(image_token_id), len(prompt) + len(written)
    ahead = num_image_tokens if image_token_id is None else 0  # image tokens that have no placeholder
    if len(rows) != len(blocks) or any(row.shape != (ahead + length, ahead + length) for row in rows):
        return []
    mean = torch.stack(rows).mean(0)[:, first : first + num_image_tokens]  # [T, num_image_tokens]
    looks = []
    for word, tokens in words(model.tokenizer.decode, written):
        # A token is chosen at the position before its own.
        on_image = mean[[ahead + len(prompt) + token - 1 for token in tokens]].mean(0)
        looks.append(Look(word, float(on_image.sum()), shade(image, on_image.view(side, side))))
    return looks


def words(decode: Callable[[Sequence[int]], str], ids: Sequence[int]) -> list[tuple[str, list[int]]]:
    """The words of a text, split at white space, each with the indices of its tokens."""
    found: list[tuple[str, list[int]]] = []
    before = ""
    for i in range(len(ids)):
        text = decode(ids[: i + 1])
        piece, before = text[len(before) :], text
        if not found or piece[:1].isspace():
            found.append((piece.strip(), [i]))
        else:
            word, tokens = found[-1]
            found[-1] = word + piece.rstrip(), [*tokens, i]
    return found


def shade(image: Image.Image, weights: Tensor) -> Image.Image:
    """weights: [side, side], of the model's square. Light is relative to the largest; the picture keeps its shape."""
    shown = image.convert("RGB")
    scale = SIDE / max(shown.size)
    shown = shown.resize([max(1, round(edge * scale)) for edge in shown.size])
    light = (1 - DARKEST * (1 - weights / weights.max().clamp(min=1e-9))).mul(255).round().to(torch.uint8)
    mask = Image.fromarray(light.cpu().numpy()).resize(shown.size, Image.Resampling.NEAREST)
    return Image.composite(shown, Image.new("RGB", shown.size), mask)
