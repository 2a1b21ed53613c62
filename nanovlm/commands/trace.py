"""`nanovlm trace`: the shapes of a model from picture to answer, without its weights or its memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanovlm.commands.options import parse
from nanovlm.settings import LARGEST


@dataclass
class TraceOptions:
    """Follow the shapes through a model: the main stages, then every module with its parameters and FLOPs.

    It runs on the meta device, which computes shapes and no values, so a model of any size needs no weights or memory.
    """

    preset: Literal["pocket", "222m"] = "pocket"
    batch: int = 1  # rows, with one picture each
    text: int = 16  # tokens of text per row
    depth: int = 1  # levels of modules below the model
    symbolic: bool = False  # shapes as formulas of B (rows) and T (tokens)
    html: Path | None = None  # write the whole trace, foldable, to this file

    def __post_init__(self) -> None:
        if not 1 <= min(self.batch, self.text) <= max(self.batch, self.text) <= LARGEST or self.depth < 0:
            raise ValueError(f"A trace needs a batch and a text of 1 to {LARGEST:,}, and a depth of 0 or more.")


def main(arguments: Sequence[str]) -> None:
    options = parse(TraceOptions, "trace", arguments)
    import torch

    from nanovlm.commands.score_report import check_output
    from nanovlm.config import VLMConfig, pocket_vlm
    from nanovlm.models.vision_language_model import VisionLanguageModel
    from nanovlm.trace import trace

    check_output(options.html, ".html")
    config = pocket_vlm() if options.preset == "pocket" else VLMConfig()
    with torch.device("meta"):
        model = VisionLanguageModel(config).eval()
        images = torch.empty(options.batch, 3, config.vision.image_size, config.vision.image_size)
    input_ids = torch.zeros(options.batch, options.text, dtype=torch.long)
    if config.image_token_id is not None:
        placeholders = input_ids.new_full((options.batch, config.num_image_tokens), config.image_token_id)
        input_ids = torch.cat([placeholders, input_ids], dim=1)
    dims = None
    if options.symbolic:  # dim by dim: a size alone would also name a picture's side that happens to be as long
        dims = {"input_ids": "B T", "images": f"B 3 {config.vision.image_size} {config.vision.image_size}"}
    traced = trace(model, input_ids, images, device="meta", dims=dims)
    print(traced.stages())
    print(f"\n{traced.table(options.depth)}")
    if options.html:
        options.html.write_text(traced.html(), encoding="utf-8")
        print(f"\nwhole trace  {options.html}")
