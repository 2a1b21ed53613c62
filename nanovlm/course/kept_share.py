"""The challenge of chapter 03: how much of an encoder's output can be read off a connector's tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nanovlm.assets import asset_path
from nanovlm.data.thimble import thimble_sample
from nanovlm.models.modality_projector import pixel_shuffle


def encoded_images(split: str, count: int) -> Tensor:
    """What the pocket model's encoder gives for Thimble pictures. [count, 64, 128]"""
    from nanovlm import VisionLanguageModel

    model = VisionLanguageModel.from_pretrained(asset_path("pocket")).eval()
    pictures = [thimble_sample("shapes", split, i, image_size=64)["images"][0] for i in range(count)]
    with torch.no_grad():
        return model.vision_encoder(model.image_processor(pictures))


def kept_share(connector: Callable[[Tensor], Tensor], train: Tensor, test: Tensor, ridge: float = 1e-3) -> float:
    """The share of variance of each group's four vectors that a linear readout of its token recovers on `test`.

    connector: [B, 64, 128] -> [B, 16, 128]. The readout, one matrix for all groups, is fitted to `train` by ridge
    regression.
    """
    tables = []
    for x in (train, test):
        tokens = connector(x)
        if tokens.shape != (len(x), 16, 128):
            raise ValueError(f"A connector gives [{len(x)}, 16, 128] here; yours gives {list(tokens.shape)}.")
        tables.append((tokens.flatten(0, 1).double(), pixel_shuffle(x, 2).flatten(0, 1).double()))
    (tokens, wanted), (test_tokens, test_wanted) = tables
    centre, mean = tokens.mean(0), wanted.mean(0)
    tokens = tokens - centre
    square = tokens.T @ tokens
    square = square + ridge * square.diagonal().mean() * torch.eye(128, dtype=torch.float64)
    readout = torch.linalg.solve(square, tokens.T @ (wanted - mean))
    missed = test_wanted - mean - (test_tokens - centre) @ readout
    return 1 - (missed.square().sum() / (test_wanted - mean).square().sum()).item()
