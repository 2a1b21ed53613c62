"""Weights that are used more than once, at as many operations as before.

Over layers, one block takes the place of all (Universal Transformer, Dehghani et al. 2018, arXiv:1807.03819; ALBERT,
Lan et al. 2019, arXiv:1909.11942). Over modalities, picture and text share their attention and keep MLPs of their own
(VLMo, Bao et al. 2021, arXiv:2111.02358).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from nanovlm.config import VLMConfig
from nanovlm.models.language_model import DecoderBlock, GroupedQueryAttention, LanguageModel
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


class OpenAttention(nn.Module):
    """A decoder's attention for patches: everyone sees everyone, and nothing is rotated, since a patch has its position
    added already. [B, N, dim] -> [B, N, dim]"""

    def __init__(self, lender: GroupedQueryAttention) -> None:
        super().__init__()
        self.lender = (lender,)  # in a tuple: the weights stay the decoder's, and are saved and counted once

    def forward(self, x: Tensor) -> Tensor:
        (attention,) = self.lender
        num_patches = x.shape[1]
        still = x.new_ones(1, 1, num_patches, attention.head_dim)
        everyone = torch.ones(1, 1, num_patches, num_patches, dtype=torch.bool, device=x.device)
        return attention(x, (still, torch.zeros_like(still)), everyone)


class BorrowingViT(ViT):
    """An encoder whose blocks use the attention of the decoder's, the first that of the first, and so on from the start
    again. [P, 3, image_size, image_size] -> [P, num_patches, hidden_dim]"""

    def __init__(self, config: VLMConfig, decoder: LanguageModel) -> None:
        super().__init__(config.vision)
        if config.vision.hidden_dim != config.language.hidden_dim:
            raise ValueError(
                f"Encoder and decoder share their attention, so they need one width; they have "
                f"{config.vision.hidden_dim} and {config.language.hidden_dim}."
            )
        for number, block in enumerate(self.blocks):
            block.attn = OpenAttention(decoder.blocks[number % len(decoder.blocks)].attn)


def shared_attention(config: VLMConfig) -> dict[str, nn.Module]:
    """Encoder and decoder, one set of attention weights."""
    decoder = LanguageModel(config.language)
    return {"vision_encoder": BorrowingViT(config, decoder), "decoder": decoder}
