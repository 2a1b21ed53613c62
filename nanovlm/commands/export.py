"""`nanovlm export`: a model for other people's tools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanovlm.commands.options import parse


@dataclass
class ExportOptions:
    """Write a model in another format: smolvlm for transformers' AutoModelForImageTextToText, nanovlm for nanoVLM."""

    out: Path  # the directory to write
    to: Literal["smolvlm", "nanovlm"] = "smolvlm"
    model: str = "pocket"  # a model directory or a Hub id; pocket: the model that ships


def main(arguments: Sequence[str]) -> None:
    options = parse(ExportOptions, "export", arguments)
    from nanovlm.commands.models import find_model
    from nanovlm.weights.export import export_model

    directory = export_model(find_model(options.model), options.to, options.out)
    print(f"wrote {directory}")
