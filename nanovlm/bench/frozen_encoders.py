"""What contrastive training of the encoder buys: chapter 17's standard design over four encoders.

    python -m nanovlm.bench.frozen_encoders --seeds 0 1 2 --out assets/runs/17_encoders.json

The model, the data and the steps are those of `nanovlm.bench.designs`. An encoder is new or has been trained with
SigLIP's loss (Zhai et al. 2023, arXiv:2303.15343) on the same pictures and captions, one pass in the same batches;
then it is frozen under the decoder or trained on with it. Contrastive training comes on top: these runs are not at
equal cost, and the file says how many seconds it took.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanovlm.bench.designs import Data, make_design, run_all
from nanovlm.config import IGNORE, VLMConfig
from nanovlm.data.collators import Batch
from nanovlm.models.language_model import LanguageModel
from nanovlm.models.vision_language_model import VisionLanguageModel, init_weights
from nanovlm.models.vision_transformer import ViT

ENCODERS = {  # name -> (contrastive training, frozen)
    "new": (False, False),
    "new, frozen": (False, True),
    "contrastive": (True, False),
    "contrastive, frozen": (True, True),
}


class TwoTowers(nn.Module):
    """Pictures [B, 3, H, W] and captions [B, T] -> [B, dim] each, of unit length. The text tower is a small decoder."""

    def __init__(self, vision: ViT, config: VLMConfig) -> None:
        super().__init__()
        self.vision, self.text = vision, LanguageModel(config.language)
        self.log_scale, self.bias = nn.Parameter(torch.tensor(math.log(10))), nn.Parameter(torch.tensor(-10.0))

    def forward(self, images: Tensor, captions: Tensor) -> tuple[Tensor, Tensor]:
        real = (captions != IGNORE)[:, :, None]
        words = self.text(self.text.token_embedding(captions.clamp(min=0)))  # [B, T, dim]
        text = (words * real).sum(dim=1) / real.sum(dim=1)
        return F.normalize(self.vision(images).mean(dim=1), dim=-1), F.normalize(text, dim=-1)

    def loss(self, images: Tensor, captions: Tensor) -> Tensor:
        """Each of the B * B pairs is judged alone, with a sigmoid."""
        images, texts = self(images, captions)
        logits = images @ texts.mT * self.log_scale.exp() + self.bias
        return F.binary_cross_entropy_with_logits(logits, torch.eye(len(logits)), reduction="sum") / len(logits)


def recalls(similarity: Tensor) -> dict[str, float]:
    """similarity [B, B], pairs on the diagonal -> shares of queries whose partner is among the first k, both ways."""
    found = {}
    for way, table in (("caption of a picture", similarity), ("picture of a caption", similarity.mT)):
        better = (table > table.diagonal()[:, None]).sum(dim=1)
        found |= {f"{way}, first {k}": round(float((better < k).float().mean()), 4) for k in (1, 5)}
    return found


def contrast(model: VisionLanguageModel, batches: Sequence[Batch], held_out: Batch) -> dict[str, Any]:
    """Train the model's encoder against captions, in place. Returns recall on the held-out pairs."""
    began, towers = time.process_time(), TwoTowers(model.vision_encoder.train(), model.config)
    init_weights(towers.text)
    optimizer = torch.optim.AdamW(towers.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    for batch in batches:
        optimizer.zero_grad()
        towers.loss(batch["images"], batch["targets"]).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        images, texts = towers.eval()(held_out["images"], held_out["targets"])
    return {"recall": recalls(images @ texts.mT), "contrastive_seconds": round(time.process_time() - began, 1)}


def make(name: str, data: Data, seed: int) -> tuple[VisionLanguageModel, dict[str, Any]]:
    contrastive, frozen = ENCODERS[name]
    model, told = make_design("standard", seed)
    if contrastive:
        told["of this seed"] = contrast(model, *data.of(model, seed))
    if frozen:
        model.vision_encoder.requires_grad_(False)
    return model, told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ENCODERS, default=list(ENCODERS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="SEED")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; runs that it holds already are kept")
    options = parser.parse_args()
    data = Data(steps=150, batch_size=16)
    run_all({name: partial(make, name, data) for name in options.only}, options.seeds, options.out, data)


if __name__ == "__main__":
    main()
