"""The designs by name: build one from the config of a model, and load one that was saved.

model = build("resampler", pocket_vlm())
model.save_pretrained("runs/resampler")  # as every model: its config.json names the design
model = load("runs/resampler")
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nanovlm.config import VLMConfig
from nanovlm.designs.cheap_attention import LinearAttentionDecoder, LocalAttentionDecoder
from nanovlm.designs.cnn import LightCNN, PooledProjector
from nanovlm.designs.cross_attention import CrossAttentionDecoder, PooledFusionDecoder
from nanovlm.designs.early_fusion import PatchesOnly
from nanovlm.designs.prefix import PrefixDecoder
from nanovlm.designs.resampler import Resampler
from nanovlm.designs.sharing import SharedLanguageModel, SharedViT, shared_attention
from nanovlm.designs.sparse import DroppingDecoder, ExpertsDecoder
from nanovlm.models.vision_language_model import VisionLanguageModel, init_weights
from nanovlm.settings import shown
from nanovlm.weights import format_own, pretrained
from nanovlm.weights.formats import DESIGN_MODEL
from nanovlm.weights.processors import Processors

Parts = dict[str, nn.Module]  # what VisionLanguageModel takes by keyword; the other parts are the usual ones

DESIGNS: dict[str, Callable[[VLMConfig], Parts]] = {
    "standard": lambda config: {},
    "cnn": lambda config: {"vision_encoder": LightCNN(config)},
    "cnn_pooled": lambda config: {
        "vision_encoder": LightCNN(config, pooled=True),
        "projector": PooledProjector(config),
    },
    "cross_attention": lambda config: {"decoder": CrossAttentionDecoder(config)},
    "pooled_fusion": lambda config: {"decoder": PooledFusionDecoder(config)},
    "resampler": lambda config: {"projector": Resampler(config)},
    "early_fusion": lambda config: {"vision_encoder": PatchesOnly(config)},
    "shared_blocks": lambda config: {"vision_encoder": SharedViT(config), "decoder": SharedLanguageModel(config)},
    "shared_attention": shared_attention,
    "linear_attention": lambda config: {"decoder": LinearAttentionDecoder(config)},
    "local_attention": lambda config: {"decoder": LocalAttentionDecoder(config)},
    "prefix": lambda config: {"decoder": PrefixDecoder(config)},
    "experts": lambda config: {"decoder": ExpertsDecoder(config)},
    "dropped_tokens": lambda config: {"decoder": DroppingDecoder(config)},
}


@dataclass
class DesignConfig(VLMConfig):
    """A model's config with the name of its design, so that whatever saves the config saves the name."""

    design: str = "standard"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.design not in DESIGNS:
            raise ValueError(f"There is no design {shown(self.design)}. There are {', '.join(DESIGNS)}.")

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "model_type": DESIGN_MODEL}


def build(name: str, config: VLMConfig) -> VisionLanguageModel:
    """A model of this design with random weights, of the sizes of `config`. Raises: ValueError for an unknown name."""
    return assemble(DesignConfig(**{**vars(config), "design": name}))


def assemble(config: DesignConfig) -> VisionLanguageModel:
    """The model that a design's config describes, with random weights."""
    parts = DESIGNS[config.design](config)
    for part in parts.values():
        if not isinstance(part, (LightCNN, Resampler)):  # convolutions and queries start as torch draws them
            init_weights(part)
    return VisionLanguageModel(config, **parts)


def load(path_or_hub_id: str | Path, dtype: torch.dtype | None = None) -> VisionLanguageModel:
    """A model that `build` made and `save_pretrained` wrote, strictly, as `nanovlm.weights.pretrained.load`."""
    return pretrained.load(path_or_hub_id, dtype, assemble, _DesignFormat())


class _DesignFormat:
    """This package's own format (weights/formats.py), with a design in its config.json."""

    def recognises(self, values: dict[str, Any]) -> bool:
        return values.get("model_type") == DESIGN_MODEL

    def read_config(self, values: dict[str, Any], directory: Path) -> DesignConfig:
        if not self.recognises(values):
            raise ValueError(f"{directory} names no design: load it with VisionLanguageModel.from_pretrained.")
        return DesignConfig.from_dict(values)

    def read_weights(self, directory: Path, model: VisionLanguageModel) -> dict[str, Tensor]:
        return format_own.read_weights(directory, model)

    def load_processors(self, config: VLMConfig, directory: Path, values: dict[str, Any]) -> Processors:
        return format_own.load_processors(config, directory, values)
