"""GGUF, the files of llama.cpp: written by its own converter, from the directory that transformers reads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nanovlm.files import whole_directory
from nanovlm.weights.export import export_smolvlm

if TYPE_CHECKING:
    from nanovlm.models.vision_language_model import VisionLanguageModel

SMOLLM2_VOCABULARY = 49_152  # tokens of SmolLM2, before those that a VLM adds
# The decoder; the encoder with its projector, to whose name some of the converter's versions add mmproj-.
FILES = {"text.gguf": (), "mmproj.gguf": ("--mmproj",)}
HOW = (  # llama.cpp's own list of requirements would exchange torch for another version
    "llama.cpp's converter writes GGUF: run `git clone https://github.com/ggml-org/llama.cpp`, then `pip install "
    "sentencepiece`, and export again with `--converter llama.cpp/convert_hf_to_gguf.py`."
)


def export_gguf(model: VisionLanguageModel, out_dir: str | Path, converter: Path | None) -> Path:
    """out_dir/text.gguf and out_dir/mmproj.gguf, beside the SmolVLM directory that they are made from.

    Raises: ValueError for a model that llama.cpp cannot serve, or where the converter fails; FileNotFoundError without
    the converter.
    """
    check_servable(model)
    if converter is None or not converter.is_file():
        missing = "" if converter is None else f"There is no file {converter}. "
        raise FileNotFoundError(missing + HOW)
    with whole_directory(out_dir) as directory:
        source = export_smolvlm(model, directory / "smolvlm")
        for name, options in FILES.items():
            words = [sys.executable, str(converter), str(source), "--outfile", str(directory / name), *options]
            run = subprocess.run(words, capture_output=True, text=True, check=False)
            written = [path for path in directory.glob("*.gguf") if path.name not in FILES]  # under a name of its own
            if written and not run.returncode:
                written[0].rename(directory / name)
            if run.returncode or not (directory / name).is_file():
                last = (run.stderr.strip() or run.stdout.strip() or "it said nothing").splitlines()[-1]
                missing = f". {HOW}" if "ModuleNotFoundError" in last else ""
                raise ValueError(f"{converter} wrote no {name}: {last}{missing}")
    return Path(out_dir)


def check_servable(model: VisionLanguageModel) -> None:
    """llama.cpp knows SmolVLM: SmolLM2's tokenizer, and a picture laid out in tiles with tokens around them."""
    config, tokenizer = model.config, model.tokenizer
    if config.language.vocab_size < SMOLLM2_VOCABULARY or tokenizer is None or tokenizer.eos_token != "<|im_end|>":
        raise ValueError(
            "llama.cpp serves only models on SmolLM2's decoder and tokenizer, and this model has others "
            f"({config.language.vocab_size:,} tokens): export it with --to onnx."
        )
    if config.tiling is None or config.tiling.layout != "smolvlm":
        raise ValueError(
            "llama.cpp lays pictures out in SmolVLM's tiles, which this model was not trained with: export it with "
            "--to onnx, or train with tiling in the smolvlm layout."
        )
