"""Small models with loud random weights: at the usual initialisation a mistake would hide below the tolerance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nanovlm.config import LMConfig, ProjectorConfig, ViTConfig, VLMConfig
from nanovlm.models.vision_language_model import VisionLanguageModel

END, IMAGE = 1, 4  # token ids, as in the pocket tokenizer
FIRST_WORD = 6  # ids below are special
ONE_IMAGE = -1  # one picture in a row of `ids_of`
VOCAB_SIZE = 48


def tiny_vit(**changes: int) -> ViTConfig:
    return ViTConfig(
        **{"hidden_dim": 32, "inter_dim": 48, "num_blocks": 2, "num_heads": 4, "image_size": 16, "patch_size": 4}
        | changes
    )


def tiny_lm(**changes: int | float | bool) -> LMConfig:
    sizes = {"hidden_dim": 32, "inter_dim": 48, "num_blocks": 2, "num_heads": 4, "num_kv_heads": 2}
    return LMConfig(**sizes | {"vocab_size": VOCAB_SIZE, "max_positions": 96, "rope_base": 100.0} | changes)


def tiny_config(image_token_id: int | None = IMAGE, **language: int | float | bool) -> VLMConfig:
    """16-pixel pictures, 4 image tokens each; `image_token_id=None` puts them in front of the text."""
    lm = tiny_lm(**language)
    return VLMConfig(
        tiny_vit(),
        ProjectorConfig(vision_dim=32, language_dim=lm.hidden_dim, pixel_shuffle_factor=2),
        lm,
        image_token_id=image_token_id,
        eos_token_id=END,
    )


@torch.no_grad()
def loud(model: nn.Module, seed: int = 0) -> nn.Module:
    """Seeded weights of ordinary size: matrices keep the scale of what passes through, norms stay near 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in sorted(dict(model.named_parameters()).items()):
        noise = torch.randn(p.shape, generator=generator)
        if p.ndim == 1:
            p.copy_(0.1 * noise + ("norm" in name or ".ln" in name) * name.endswith("weight"))
        else:
            embedding = "embed" in name and "conv" not in name and "patch_embedding.weight" not in name
            p.copy_(noise * (0.5 if embedding else p[0].numel() ** -0.5))
    return model.eval()


def tiny_model(
    image_token_id: int | None = IMAGE, seed: int = 0, **language: int | float | bool
) -> VisionLanguageModel:
    return loud(VisionLanguageModel(tiny_config(image_token_id, **language)), seed)


def random_images(count: int, config: VLMConfig | None = None, seed: int = 0) -> Tensor:
    """[count, 3, image_size, image_size] in [-1, 1]"""
    size = (config or tiny_config()).vision.image_size
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def ids_of(row: Sequence[int], config: VLMConfig | None = None) -> list[int]:
    """A row of words and PICTUREs -> ids with placeholders."""
    n = (config or tiny_config()).num_image_tokens
    return [token for item in row for token in ([IMAGE] * n if item == ONE_IMAGE else [item])]


def max_difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape, f"{list(a.shape)} is not {list(b.shape)}"
    return (a - b).abs().max().item() if a.numel() else 0.0
