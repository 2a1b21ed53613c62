"""Which model a command is about."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nanovlm.assets import asset_path

if TYPE_CHECKING:
    from nanovlm.models.vision_language_model import VisionLanguageModel


def find_model(name: str) -> str | Path:
    """What `from_pretrained` takes; "pocket" is the shipped model, unless a directory here has that name."""
    return asset_path("pocket") if name == "pocket" and not Path(name).is_dir() else name


def load_model(name: str) -> VisionLanguageModel:
    """The model on this machine's best device, ready to answer."""
    from nanovlm.inference.many_images import for_inference
    from nanovlm.models.vision_language_model import VisionLanguageModel

    return for_inference(VisionLanguageModel.from_pretrained(find_model(name)))
