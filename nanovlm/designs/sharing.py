"""One block for all layers (Universal Transformer, Dehghani et al. 2018, arXiv:1807.03819; ALBERT, Lan et al. 2019,
arXiv:1909.11942): as many operations as before, and the weights of one block."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from nanovlm.config import VLMConfig
from nanovlm.models.language_model import DecoderBlock, LanguageModel
from nanovlm.models.vision_transformer import ViT, ViTBlock


class Repeated(nn.Module):
    """One block that is run through `times` times. Where an nn.ModuleList of blocks stood, this takes its place."""

    def __init__(self, block: nn.Module, times: int) -> None:
        super().__init__()
        self.block, self.times = block, times

    def __len__(self) -> int:
        return self.times

    def __iter__(self) -> Iterator[nn.Module]:
        return (self.block for _ in range(self.times))

    def __getitem__(self, index: int) -> nn.Module:
        return self.block


class SharedViT(ViT):
    """[P, 3, image_size, image_size] -> [P, num_patches, hidden_dim]"""

    def __init__(self, config: VLMConfig) -> None:
        super().__init__(config.vision)
        self.blocks = Repeated(ViTBlock(config.vision), config.vision.num_blocks)


class SharedLanguageModel(LanguageModel):
    """[B, S, dim] -> [B, S, dim]. Each pass has keys and values of its own, so that the KV cache does not shrink."""

    def __init__(self, config: VLMConfig) -> None:
        super().__init__(config.language)
        self.blocks = Repeated(DecoderBlock(config.language), config.language.num_blocks)
