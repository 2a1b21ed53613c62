"""transformers' side of the comparisons: small random SmolVLM models with a tokenizer and an image processor."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from nanovlm.data.chat import ChatTokenizer
from nanovlm.data.tiling import FAKE, SMOLVLM_GLOBAL, place_token
from tests.tiny import loud
from tests.tiny_tokenizer import SETTINGS, SMOLVLM, raw_tokenizer

PLACES = [place_token(row, column) for row in range(6) for column in range(6)]
SETTINGS_SMOLVLM = {key: value for key, value in SETTINGS["smolvlm"].items() if key != "chat_template"}


@lru_cache
def tokenizer_json() -> str:
    tokenizer = raw_tokenizer("smolvlm")
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (FAKE, SMOLVLM_GLOBAL)])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in PLACES])
    return tokenizer.to_str()


def chat_tokenizer() -> ChatTokenizer:
    return ChatTokenizer(Tokenizer.from_str(tokenizer_json()), SETTINGS["smolvlm"])


def processor(tile: int, image_seq_len: int, **image_settings: Any) -> Idefics3Processor:
    """Of SmolVLM-256M's kind: longest edge four tiles, Lanczos."""
    image_processor = Idefics3ImageProcessorPil(
        **{"size": {"longest_edge": 4 * tile}, "max_image_size": {"longest_edge": tile}} | image_settings
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer_json()), **SETTINGS_SMOLVLM)
    return Idefics3Processor(image_processor, tokenizer, image_seq_len=image_seq_len, chat_template=SMOLVLM)


def model(
    grid: int, factor: int, tied: bool, kind: str = "smolvlm", patch_size: int = 4, **text: Any
) -> SmolVLMForConditionalGeneration | Idefics3ForConditionalGeneration:
    """Loud random weights; pictures of grid x grid patches; the vocabulary of `tokenizer_json`."""
    tokenizer = Tokenizer.from_str(tokenizer_json())
    config_class, model_class = {
        "smolvlm": (SmolVLMConfig, SmolVLMForConditionalGeneration),
        "idefics3": (Idefics3Config, Idefics3ForConditionalGeneration),
    }[kind]
    config = config_class(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": grid * patch_size,
            "patch_size": patch_size,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "vocab_size": tokenizer.get_vocab_size(),
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
            "pad_token_id": 1,
            **text,
        },
        scale_factor=factor,
        image_token_id=tokenizer.token_to_id("<image>"),
        tie_word_embeddings=tied,
        pad_token_id=1,
    )
    model = loud(model_class(config), seed=grid + factor)
    if tied:  # else every token's likeliest successor would be itself
        with torch.no_grad():
            model.model.text_model.embed_tokens.weight.mul_(0.2)
            model.model.text_model.norm.weight.mul_(5)
    return model


def save(directory: Path, theirs: Any, their_processor: Idefics3Processor | None = None, **options: Any) -> Path:
    theirs.save_pretrained(directory, **options)
    if their_processor is not None:
        their_processor.save_pretrained(directory)
    return directory
