"""The picture beside the text instead of in it: gated cross-attention, and a fusion module on one pooled vector.

In both, self-attention sees words only. The image tokens keep their places in the sequence, because that is where the
seam puts them; no word attends to them there, and their own outputs are used by nobody.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from nanovlm.config import LMConfig, VLMConfig
from nanovlm.designs.marked import MarkedLanguageModel, Seen
from nanovlm.models.attention import attend
from nanovlm.models.language_model import RMSNorm, SwiGLU


class GatedCrossAttention(nn.Module):
    """Words ask, image tokens answer (Flamingo, Alayrac et al. 2022, arXiv:2204.14198, section 2.2).

    x [B, S, dim], inputs [B, keys, dim], images bool [B, 1, S, keys] -> [B, S, dim]

    What is added is multiplied by tanh of a gate that starts at 0: at first the decoder is exactly what it was without
    pictures, and a pretrained one is not disturbed. A word sees every picture before it (Flamingo's: the last one).
    """

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.norm1 = RMSNorm(config.hidden_dim, config.rms_norm_eps)
        self.norm_images = RMSNorm(config.hidden_dim, config.rms_norm_eps)
        self.q_proj = nn.Linear(config.hidden_dim, config.num_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_dim, config.num_kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_dim, config.num_kv_heads * config.head_dim, bias=False)
        self.out_proj = nn.Linear(config.hidden_dim, config.hidden_dim, bias=False)
        self.norm2 = RMSNorm(config.hidden_dim, config.rms_norm_eps)
        self.mlp = SwiGLU(replace(config, inter_dim=config.hidden_dim))  # narrower than a block's, to stay light
        self.attention_gate, self.mlp_gate = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, inputs: Tensor, images: Tensor) -> Tensor:
        sees_any = images.any(dim=-1, keepdim=True)  # [B, 1, S, 1]
        attended = self.attend(self.norm1(x), self.norm_images(inputs), images | ~sees_any)  # no row of nothing: 0 / 0
        opened = sees_any[:, 0]  # [B, S, 1]: where there is no picture yet, nothing is added
        x = x + torch.tanh(self.attention_gate) * attended * opened
        return x + torch.tanh(self.mlp_gate) * self.mlp(self.norm2(x)) * opened

    def attend(self, x: Tensor, inputs: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            layer(of).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [B, heads, S or keys, head_dim]
            for layer, of in ((self.q_proj, x), (self.k_proj, inputs), (self.v_proj, inputs))
        )
        return self.out_proj(attend(q, k, v, mask).transpose(1, 2).flatten(2))


class WordsOnly(MarkedLanguageModel):
    """Self-attention among words; an image token sees itself and the words before it."""

    def mask(self, seen: Seen) -> Tensor:
        return (seen.visible & ~seen.is_image[:, None, None, :]) | seen.oneself


class CrossAttentionDecoder(WordsOnly):
    """A gated cross-attention in front of every second block, from the first on. [B, S, dim] -> [B, S, dim]

    Each one costs about as much as a block of the decoder, so that Flamingo, too, has fewer of them where it is large.
    """

    def __init__(self, config: VLMConfig, every: int = 2) -> None:
        super().__init__(config)
        for block in self.blocks[::every]:
            block.fusion = GatedCrossAttention(config.language)


class PooledFusion(nn.Module):
    """A weighted sum of each word and the mean of the image tokens before it, with learned weights.

    x [B, S, dim], inputs [B, keys, dim], images bool [B, 1, S, keys] -> [B, S, dim]

    The two weights are a softmax of learned numbers, as in the weighted fusion of feature maps by Tan et al. 2019
    (BiFPN, arXiv:1911.09070), who compare it with cheaper normalisations. Where no picture came yet, x stays.
    """

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.proj = nn.Linear(config.hidden_dim, config.hidden_dim, bias=False)
        self.weights = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor, inputs: Tensor, images: Tensor) -> Tensor:
        images = images[:, 0]  # [B, S, keys]
        count = images.sum(dim=-1, keepdim=True)  # [B, S, 1]
        pooled = images.to(inputs.dtype) @ inputs / count.clamp(min=1)  # [B, S, dim]
        of_words, of_images = self.weights.softmax(dim=0)
        return torch.where(count > 0, of_words * x + of_images * self.proj(pooled), x)


class PooledFusionDecoder(WordsOnly):
    """The fusion module once, in front of the first block. [B, S, dim] -> [B, S, dim]"""

    def __init__(self, config: VLMConfig) -> None:
        super().__init__(config)
        self.blocks[0].fusion = PooledFusion(config.language)
