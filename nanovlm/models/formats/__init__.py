"""Other people's model directories. Each module here reads (and writes the config of) one format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from nanovlm.config import VLMConfig

if TYPE_CHECKING:
    from nanovlm.models.vision_language_model import VisionLanguageModel


class Format(Protocol):
    """What a module of this package offers."""

    def recognises(self, values: dict[str, Any]) -> bool:
        """Whether these values of a config.json are this format's."""

    def read_config(self, values: dict[str, Any], directory: Path) -> VLMConfig: ...

    def read_weights(self, directory: Path, model: VisionLanguageModel) -> dict[str, Tensor]:
        """All weights under our names, checked under theirs; of `model` only names and shapes are used."""

    def attach_processors(self, model: VisionLanguageModel, directory: Path, values: dict[str, Any]) -> None:
        """Set model.tokenizer and model.image_processor."""


def recognise(values: dict[str, Any], directory: Path) -> Format:
    """The format of a config.json, or an error that says what it is instead."""
    from nanovlm.models.formats import nanovlm, own, smolvlm

    for module in (own, nanovlm, smolvlm):
        if module.recognises(values):
            return module
    kind = values.get("model_type") or ", ".join(values.get("architectures") or []) or "an unknown kind of model"
    raise ValueError(
        f"{directory / 'config.json'} describes {kind}. This package reads its own models, nanoVLM's "
        "(lusxvr/nanoVLM-…) and SmolVLM's (model_type smolvlm or idefics3)."
    )
