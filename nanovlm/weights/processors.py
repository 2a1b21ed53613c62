"""The tokenizer and the image processor that belong to a model's weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

from nanovlm.config import VLMConfig
from nanovlm.data.chat import ChatTokenizer
from nanovlm.data.processors import ImageProcessor
from nanovlm.files import TOKENIZER_FILES, find_directory


class Processors(NamedTuple):
    """What a model directory holds beside config and weights."""

    tokenizer: ChatTokenizer | None  # None: the model takes tensors only
    image_processor: ImageProcessor
    eos_token_id: int | None = None  # where the tokenizer knows better than the config which token ends an answer


def load_tokenizer(directory: Path, hub_id: str | None) -> ChatTokenizer | None:
    """The directory's own tokenizer, else the Hub's; without one the model takes tensors only, and says so."""
    from nanovlm.data.chat import ChatTokenizer

    if not (directory / "tokenizer.json").is_file():
        if hub_id is None:
            return None
        try:
            directory = find_directory(hub_id, TOKENIZER_FILES)
        except (ConnectionError, FileNotFoundError) as error:
            warnings.warn(f"Loaded without a tokenizer, so the model takes tensors only. {error}", stacklevel=4)
            return None
    return ChatTokenizer.from_pretrained(directory)


def check_processors(found: Processors, config: VLMConfig, directory: Path) -> None:
    """Tokenizer and image processor belong to the model, or a ValueError says which does not."""
    if found.image_processor.image_size != config.vision.image_size:
        raise ValueError(
            f"The image processor in {directory} makes pictures of {found.image_processor.image_size} pixels; the "
            f"encoder takes {config.vision.image_size}."
        )
    if found.tokenizer is not None and found.tokenizer.vocab_size > config.language.vocab_size:
        raise ValueError(
            f"The tokenizer has {found.tokenizer.vocab_size} tokens and the model only {config.language.vocab_size}: "
            f"this is not the tokenizer of the model in {directory}."
        )


def stop_token_id(tokenizer: ChatTokenizer) -> int:
    """The token that closes an answer: what the chat template writes there, else end-of-sequence."""
    end = tokenizer.end_of_turn_id() if tokenizer.settings.get("chat_template") else None
    return tokenizer.eos_token_id if end is None else end
