"""No encoder: patches go straight into the decoder, which has to learn to see (EVE, Diao et al. 2024,
arXiv:2406.11832, trains such a model)."""

from __future__ import annotations

from torch import Tensor, nn

from nanovlm.config import VLMConfig
from nanovlm.models.vision_transformer import PatchEmbedding


class PatchesOnly(nn.Module):
    """[P, 3, image_size, image_size] -> [P, num_patches, hidden_dim]: each patch through one linear layer, its position
    added, normalised. No patch knows of any other."""

    def __init__(self, config: VLMConfig) -> None:
        super().__init__()
        self.patch_embedding = PatchEmbedding(config.vision)
        self.norm = nn.LayerNorm(config.vision.hidden_dim, eps=config.vision.layer_norm_eps)
        self.gradient_checkpointing = False  # asked for by the seam; there is nothing here to recompute

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.patch_embedding(images))
