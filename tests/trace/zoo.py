"""Small models of many makes: everything that is traced here was written by somebody who knew nothing of the tracer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torch.utils.checkpoint import checkpoint


def pixel_shuffle(x, factor):
    batch, length, dim = x.shape
    grid = int(length**0.5)
    x = x.view(batch, grid // factor, factor, grid // factor, factor, dim).transpose(2, 3)
    return x.reshape(batch, length // factor**2, dim * factor**2)


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def attend(self, x):
        q, k, v = rearrange(self.qkv(x), "b t (three h d) -> three b h t d", three=3, h=self.heads)
        return self.out(rearrange(F.scaled_dot_product_attention(q, k, v), "b h t d -> b t (h d)"))

    def forward(self, x):
        x = x + self.attend(self.norm(x))
        return x + self.mlp(x)


class Encoder(nn.Module):
    def __init__(self, dim=32, heads=2, size=16, patch=4, depth=3):
        super().__init__()
        self.conv = nn.Conv2d(3, dim, patch, patch)
        self.position = nn.Parameter(torch.randn(1, (size // patch) ** 2, dim))
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))

    def forward(self, images):
        x = self.conv(images).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        return x


class Decoder(nn.Module):
    def __init__(self, dim=24, heads=2, vocabulary=50, depth=4):
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.head = nn.Linear(dim, vocabulary, bias=False)
        self.head.weight = self.token_embedding.weight

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Projector(nn.Module):
    def __init__(self, dim=32, language_dim=24, factor=2):
        super().__init__()
        self.factor = factor
        self.proj = nn.Linear(dim * factor**2, language_dim, bias=False)

    def forward(self, x):
        x = pixel_shuffle(x, self.factor)
        return self.proj(x)


class MiniVLM(nn.Module):
    """A picture in front of a text, as in the first generation of small VLMs."""

    def __init__(self):
        super().__init__()
        self.vision_encoder = Encoder()
        self.MP = Projector()
        self.decoder = Decoder()

    def forward(self, image, ids):
        image = self.MP(self.vision_encoder(image))
        tokens = self.decoder.token_embedding(ids)
        combined = torch.cat((image, tokens), dim=1)
        return {"logits": self.decoder(combined), "num_image_tokens": image.shape[1]}


class CNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 16, 3, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        self.up(self.features[0](x))
        return self.head(self.features(x))


class Swallows(nn.Module):
    """Tries one branch, and takes another when it fails."""

    def __init__(self):
        super().__init__()
        self.wrong, self.right, self.last = nn.Linear(5, 2), nn.Linear(4, 2), nn.Linear(2, 3)

    def forward(self, x):
        try:
            x = self.wrong(x)
        except RuntimeError:
            x = self.right(x)
        return self.last(x)


class Shares(nn.Module):
    """One layer under two names, called twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.again = self.first

    def forward(self, x):
        return self.again(F.relu(self.first(x)))


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block(8, 2) for _ in range(2))
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return self.head(x)


@dataclass
class Entry:
    """A model (random weights, eval) and the inputs of one call."""

    name: str
    build: Callable[[], nn.Module]
    args: Callable[[], tuple]
    kwargs: Callable[[], dict[str, Any]] = dict

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return self.build().eval()


def seeded(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def token_ids(*shape: int, high: int = 50) -> torch.Tensor:
    return torch.randint(3, high, shape, generator=torch.Generator().manual_seed(2))


def siglip() -> nn.Module:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8
    )
    return SiglipVisionModel(config)


def _llama_config() -> dict[str, Any]:
    return {
        **{"vocab_size": 60, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
        **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    }


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_llama_config(), tie_word_embeddings=True))


def smolvlm() -> nn.Module:
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    vision = {
        **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"image_size": 32, "patch_size": 8},
    }
    text = {"model_type": "llama", **_llama_config()}
    config = SmolVLMConfig(vision_config=vision, text_config=text, scale_factor=2, image_token_id=5, pad_token_id=0)
    return SmolVLMForConditionalGeneration(config)


def smolvlm_inputs() -> dict[str, Any]:
    ids = token_ids(2, 10, high=50).clamp(min=6)
    ids[:, 1:5] = 5  # a 4x4 grid of patches, shuffled by 2: four image tokens
    return {
        **{"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        "pixel_values": seeded(2, 1, 3, 32, 32),
        "pixel_attention_mask": torch.ones(2, 1, 32, 32, dtype=torch.bool),
    }


def padded() -> dict[str, Any]:
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[0, :3] = 0
    return {"attention_mask": mask}


ZOO = [
    Entry("mini VLM", MiniVLM, lambda: (seeded(2, 3, 16, 16), token_ids(2, 5))),
    Entry("CNN", CNN, lambda: (seeded(2, 3, 16, 16),)),
    Entry("einops block", lambda: Block(8, 2), lambda: (seeded(2, 5, 8),)),
    Entry(
        "nn.Transformer",
        lambda: nn.Transformer(16, 2, 2, 2, 32, batch_first=True),
        lambda: (seeded(2, 5, 16), seeded(2, 4, 16)),
    ),
    Entry(
        "nn.MultiheadAttention",
        lambda: nn.MultiheadAttention(16, 2, batch_first=True),
        lambda: (seeded(2, 5, 16), seeded(2, 7, 16), seeded(2, 7, 16)),
    ),
    Entry("swallows an exception", Swallows, lambda: (seeded(3, 4),)),
    Entry("shared module", Shares, lambda: (seeded(3, 4),)),
    Entry("checkpointed", Checkpointed, lambda: (seeded(2, 5, 8),)),
    Entry("SigLIP", siglip, lambda: (seeded(2, 3, 32, 32),)),
    Entry("Llama", llama, lambda: (token_ids(2, 7),)),
    Entry("Llama, padded", llama, lambda: (token_ids(2, 7),), padded),
    Entry("SmolVLM", smolvlm, tuple, smolvlm_inputs),
]
