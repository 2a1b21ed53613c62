"""The formats of model directories: this package's own and other people's, a module format_*.py for each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from nanovlm.config import VLMConfig
from nanovlm.settings import setting, shown
from nanovlm.weights.processors import Processors

if TYPE_CHECKING:
    from nanovlm.models.vision_language_model import VisionLanguageModel

DESIGN_MODEL = "nanovlm-design"  # model_type of the directories that designs/registry.py writes and reads


class Format(Protocol):
    """What each format_*.py offers."""

    def recognises(self, values: dict[str, Any]) -> bool:
        """Whether these values of a config.json are this format's."""

    def read_config(self, values: dict[str, Any], directory: Path) -> VLMConfig: ...

    def read_weights(self, directory: Path, model: VisionLanguageModel) -> dict[str, Tensor]:
        """All weights under our names, checked under theirs; of `model` only names and shapes are used."""

    def load_processors(self, config: VLMConfig, directory: Path, values: dict[str, Any]) -> Processors:
        """The tokenizer and the image processor of this directory, and the end token if the tokenizer names it."""


def recognise(values: dict[str, Any], directory: Path) -> Format:
    """The format of a config.json, or an error that says what it is instead."""
    from nanovlm.weights import format_nanovlm as nanovlm
    from nanovlm.weights import format_own as own
    from nanovlm.weights import format_smolvlm as smolvlm

    for module in (own, nanovlm, smolvlm):
        if module.recognises(values):
            return module
    if values.get("model_type") == DESIGN_MODEL:
        raise ValueError(
            f"{directory} holds a model of the design {shown(values.get('design'))}, with parts of its own: "
            "load it with nanovlm.designs.registry.load."
        )
    named = setting(values, "architectures", list | None, None) or []
    kind = setting(values, "model_type", str | None, None) or ", ".join(map(str, named)) or "an unknown kind of model"
    raise ValueError(
        f"{directory / 'config.json'} describes {kind}. This package reads its own models, nanoVLM's "
        "(lusxvr/nanoVLM-…) and SmolVLM's (model_type smolvlm or idefics3)."
    )
