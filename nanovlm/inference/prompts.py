"""Questions and pictures -> the batch that generation reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nanovlm.models.vision_language_model import VisionLanguageModel


def prepare_prompts(
    model: VisionLanguageModel, prompts: Sequence[str], images: Sequence[Any]
) -> dict[str, Tensor | None]:
    """One entry of `images` (None, a picture, or a list of them) for each prompt -> a left-padded batch."""
    if not prompts:
        raise ValueError("There is no prompt: the list is empty.")
    return collate_prompts(model, [prepare_prompt(model, *each) for each in zip(prompts, images, strict=True)])


def prepare_prompt(model: VisionLanguageModel, text: str, image: Any) -> tuple[list[int], Tensor | None]:
    """A question and its picture, list of pictures or None -> ids, and [tiles, 3, H, W] or None."""
    if not isinstance(text, str):
        raise TypeError(f"A prompt is text; this one is {text!r}.")
    if not text.strip():
        raise ValueError('The prompt is empty. Ask something, for example "Describe the picture.".')
    entry = [] if image is None else list(image) if isinstance(image, (list, tuple)) else [image]
    if not entry:
        return model.tokenizer.encode_prompt(text, 0, model.config), None
    # How a picture is cut into tiles decides what stands for it in the text.
    pixels, texts = model.image_processor.prepare(entry, model.tokenizer.image_token, model.config.num_image_tokens)
    return model.tokenizer.encode_prompt(text, len(entry), model.config, texts), pixels


def collate_prompts(
    model: VisionLanguageModel, prompts: Sequence[tuple[list[int], Tensor | None]]
) -> dict[str, Tensor | None]:
    """What prepare_prompt gave -> input_ids and attention_mask [B, T], padded on the left, and all pictures."""
    embedding = model.decoder.token_embedding.weight
    longest = max(len(ids) for ids, _ in prompts)
    padding = [longest - len(ids) for ids, _ in prompts]
    pad = model.tokenizer.pad_token_id
    rows = [[pad] * number + ids for number, (ids, _) in zip(padding, prompts, strict=True)]
    real = [[0] * number + [1] * (longest - number) for number in padding]
    tensors = [pixels for _, pixels in prompts if pixels is not None]
    return {
        "input_ids": torch.tensor(rows, device=embedding.device),
        "images": torch.cat(tensors).to(embedding.device, embedding.dtype) if tensors else None,
        "attention_mask": torch.tensor(real, device=embedding.device),
    }


def answer_ids(model: VisionLanguageModel, answer: str) -> list[int]:
    """The tokens that the model was trained to write for this answer, without the one that ends it."""
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError(f"An answer is text, and not empty; this one is {answer!r}.")
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    ids, supervised = model.tokenizer.encode_chat(turns, prompt_format=model.config.prompt_format)
    ids = [token for token, wanted in zip(ids, supervised, strict=True) if wanted]
    return ids[:-1] if ids[-1] == model.config.eos_token_id else ids
