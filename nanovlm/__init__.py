"""nanoVLM, the course: a small vision-language model, from scratch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from nanovlm.config import LMConfig, ProjectorConfig, TrainConfig, ViTConfig, VLMConfig
    from nanovlm.models.vision_language_model import VisionLanguageModel

_HOMES = {
    "VisionLanguageModel": "nanovlm.models.vision_language_model",
    **dict.fromkeys(("ViTConfig", "ProjectorConfig", "LMConfig", "VLMConfig", "TrainConfig"), "nanovlm.config"),
}
__all__ = ["LMConfig", "ProjectorConfig", "TrainConfig", "VLMConfig", "ViTConfig", "VisionLanguageModel"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import nanovlm` costs next to nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'nanovlm' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
