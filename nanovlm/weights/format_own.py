"""This package's own model directories, as save_pretrained writes them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nanovlm.config import VLMConfig
from nanovlm.data.tiling import load_image_processor, make_image_processor
from nanovlm.files import read_tensors, tie_head
from nanovlm.weights.processors import Processors, load_tokenizer

if TYPE_CHECKING:
    from nanovlm.models.vision_language_model import VisionLanguageModel


def recognises(values: dict[str, Any]) -> bool:
    return values.get("model_type") == "nanovlm-course"


def read_config(values: dict[str, Any], directory: Path) -> VLMConfig:
    return VLMConfig.from_dict(values)


def read_weights(directory: Path, model: VisionLanguageModel) -> dict[str, Tensor]:
    tensors = read_tensors(directory)
    if model.config.language.tie_weights:
        tie_head(tensors, "decoder.token_embedding.weight", "decoder.head.weight", directory)
    return tensors


def load_processors(config: VLMConfig, directory: Path, values: dict[str, Any]) -> Processors:
    stored = (directory / "processor_config.json").is_file()
    image_processor = load_image_processor(directory) if stored else make_image_processor(config)
    return Processors(load_tokenizer(directory, config.tokenizer), image_processor)
