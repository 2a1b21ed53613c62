"""What is measured: two models, and batches for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nanovlm.config import LMConfig, ProjectorConfig, ViTConfig, VLMConfig, pocket_vlm
from nanovlm.models.vision_language_model import IGNORE

SUPERVISED = (20, 40)  # tokens in a row that training on answers alone asks for: fewest, most
FIRST_WORD = 6  # ids below are special tokens


@dataclass
class Size:
    """A model and the batches it is measured with."""

    name: str
    what: str
    config: VLMConfig
    batch_size: int  # rows of a training step
    length: int = 128  # tokens of a training row, image tokens included
    prompt_length: int = 32  # tokens of a prompt, image tokens included
    generation_batches: tuple[int, ...] = (1, 16)
    new_tokens: int = 64


def quarter_vlm() -> VLMConfig:
    """nanoVLM's 222M model at half its widths: a quarter of the parameters of every block."""
    return VLMConfig(
        vision=ViTConfig(hidden_dim=384, inter_dim=1536, num_blocks=12, num_heads=6),
        projector=ProjectorConfig(vision_dim=384, language_dim=288),
        language=LMConfig(hidden_dim=288, inter_dim=768, num_blocks=30, num_heads=9, num_kv_heads=3),
        image_token_id=4,
    )


def sizes() -> dict[str, Size]:
    """Name -> what is measured under it."""
    found = (
        Size("pocket", "the model of `make train`", pocket_vlm(), batch_size=64),
        Size("quarter", "the 222M model at half its widths, as deep", quarter_vlm(), batch_size=8, prompt_length=64),
    )
    return {size.name: size for size in found}


def make_prompts(config: VLMConfig, batch_size: int, length: int, seed: int = 0) -> dict[str, Tensor]:
    """Random words after one random picture a row: input_ids [B, T], images [B, 3, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(FIRST_WORD, config.language.vocab_size, (batch_size, length), generator=generator)
    ids[:, 1 : 1 + config.num_image_tokens] = config.image_token_id
    side = config.vision.image_size
    return {"input_ids": ids, "images": torch.rand(batch_size, 3, side, side, generator=generator) * 2 - 1}


def make_batch(config: VLMConfig, batch_size: int, length: int, seed: int = 0) -> dict[str, Tensor]:
    """Prompts with an answer of 20 to 40 tokens at the end of each row; its tokens and no others are supervised."""
    batch = make_prompts(config, batch_size, length, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    room = length - 1 - config.num_image_tokens
    answers = torch.randint(SUPERVISED[0], SUPERVISED[1] + 1, (batch_size, 1), generator=generator).clamp(max=room)
    following = batch["input_ids"].roll(-1, dims=1)
    index = torch.arange(length)
    asked = (index >= length - 1 - answers) & (index < length - 1)
    return {**batch, "targets": following.masked_fill(~asked, IGNORE)}
