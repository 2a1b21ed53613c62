"""`nanovlm export`: a model for other people's tools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanovlm.commands.options import parse


@dataclass
class ExportOptions:
    """Write a model in another format: smolvlm for transformers' AutoModelForImageTextToText, nanovlm for nanoVLM,
    onnx for onnxruntime, gguf for llama.cpp."""

    out: Path  # the directory to write
    to: Literal["smolvlm", "nanovlm", "onnx", "gguf"] = "smolvlm"
    model: str = "pocket"  # a model directory or a Hub id; pocket: the model that ships
    int8: bool = False  # onnx: 8-bit weights
    converter: Path | None = None  # gguf: llama.cpp's convert_hf_to_gguf.py

    def __post_init__(self) -> None:
        if self.int8 and self.to != "onnx":
            raise ValueError(f"--int8 belongs to --to onnx; --to {self.to} writes the weights as they are.")
        if self.converter is not None and self.to != "gguf":
            raise ValueError(f"--converter belongs to --to gguf; --to {self.to} needs none.")


def main(arguments: Sequence[str]) -> None:
    options = parse(ExportOptions, "export", arguments)
    from nanovlm.commands.models import find_model
    from nanovlm.weights.export import check_target, export_model

    model = find_model(options.model)
    if options.to in ("smolvlm", "nanovlm"):
        directory = export_model(model, options.to, options.out)
    else:
        from nanovlm.models.vision_language_model import VisionLanguageModel

        check_target(model, options.out)
        loaded = VisionLanguageModel.from_pretrained(model)
        if options.to == "onnx":
            from nanovlm.inference.onnx_graphs import export_onnx

            directory = export_onnx(loaded, options.out, options.int8)
        else:
            from nanovlm.weights.gguf import export_gguf

            directory = export_gguf(loaded, options.out, options.converter)
    print(f"wrote {directory}")
