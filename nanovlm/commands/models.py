"""Which model a command is about."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nanovlm.models.vision_language_model import VisionLanguageModel


def load_model(name: str) -> VisionLanguageModel:
    """A model directory or Hub id; "pocket" is the one that ships. On this machine's best device, ready to answer."""
    from nanovlm.assets import asset_path
    from nanovlm.models.vision_language_model import VisionLanguageModel
    from nanovlm.precision import find_device

    shipped = name == "pocket" and not Path(name).is_dir()
    model = VisionLanguageModel.from_pretrained(asset_path("pocket") if shipped else name)
    return model.to(find_device()).eval()
