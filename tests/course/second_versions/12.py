"""Chapter 12 once more, written another way."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def read_trace(t) -> dict[str, int]:
    """From sizes that stand elsewhere: grids, layers' outputs, parameters' places."""
    grid = t["vision_encoder.patch_embedding.conv"].shape
    logits = next(row for row in t.rows if row.path == "decoder.head")
    q = t["decoder.blocks.0.attn.q_proj"].shape[-1]
    heads = t["decoder.blocks.0.attn"]
    head_dim = q // next(row for row in heads.walk() if row.name == "scaled_dot_product_attention").shape[1]
    return {
        "patches": grid[-1] * grid[-2],
        "image_tokens": t["cat"].inputs[0].shape[1],
        "line": logits.shape[1],
        "decoder_blocks": sum(row.path.startswith("decoder.") for row in t.find("SwiGLU")),
        "kv_heads": t["decoder.blocks.0.attn.k_proj"].shape[-1] // head_dim,
    }


class Projector(nn.Module):
    """F.pixel_unshuffle, and the channels put into our order afterwards."""

    def __init__(self, vision_dim: int, language_dim: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.norm = nn.LayerNorm(vision_dim)
        self.proj = nn.Linear(factor * vision_dim * factor, language_dim)

    def forward(self, x: Tensor) -> Tensor:
        grid, r = round(x.shape[1] ** 0.5), self.factor
        image = self.norm(x).transpose(1, 2).unflatten(2, (grid, grid))
        tiles = F.pixel_unshuffle(image, r).flatten(2).transpose(1, 2)  # channel by channel
        return self.proj(tiles.unflatten(2, (-1, r * r)).transpose(2, 3).flatten(2))


class SharedHeads(nn.Module):
    """torch's own attention knows groups."""

    def __init__(self, dim: int, num_heads: int, num_kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads = num_heads, num_kv_heads
        self.q = nn.Linear(dim, dim, bias=False)
        self.k = nn.Linear(dim, dim // num_heads * num_kv_heads, bias=False)
        self.v = nn.Linear(dim, dim // num_heads * num_kv_heads, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        counts = (self.heads, self.kv_heads, self.kv_heads)
        layers = (self.q, self.k, self.v)
        q, k, v = (f(x).unflatten(-1, (n, -1)).transpose(1, 2) for f, n in zip(layers, counts, strict=True))
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2)


class Line(nn.Module):
    """Each part gets its own stretch of the table before they are joined."""

    def __init__(self, vocab_size: int, dim: int, max_positions: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, dim)
        self.positions = nn.Embedding(max_positions, dim)

    def forward(self, image_tokens: Tensor, ids: Tensor) -> Tensor:
        n, t = image_tokens.shape[1], ids.shape[1]
        table = self.positions.weight
        return torch.cat([image_tokens + table[:n], self.tokens(ids) + table[n : n + t]], dim=1)


def shape_claims(config) -> dict[str, str]:
    """The text first in the sum, and spaces round the words."""
    r = config.projector.pixel_shuffle_factor
    grid = config.vision.grid_size // r
    width, dim = config.vision.hidden_dim, config.language.hidden_dim
    return {
        "vision_encoder": f" B  {(grid * r) ** 2}  {width} ",
        "pixel_shuffle": f"B {grid}*{grid} {width * r * r}",
        "projector.proj": f"B {grid}*{grid} {dim}",
        "cat": f"B T+{grid}*{grid} {dim}",
        "decoder.head": f"B T+{grid}*{grid} {config.language.vocab_size}",
    }


def flops_shares(config, num_text_tokens: int) -> dict[str, float]:
    """A list of products, each as (part, n, a, b), added up."""
    vision, language, r = config.vision, config.language, config.projector.pixel_shuffle_factor
    n, d, width = vision.num_patches, vision.hidden_dim, language.hidden_dim
    line, kv = n // (r * r) + num_text_tokens, language.num_kv_heads * language.head_dim
    products = [("vision_encoder", n, 3 * vision.patch_size**2, d), ("projector", n // (r * r), d * r * r, width)]
    for _ in range(vision.num_blocks):
        products += [("vision_encoder", n, d, d)] * 4 + [("vision_encoder", n, d, vision.inter_dim)] * 2
        products += [("vision_encoder", n, n, d)] * 2
    for _ in range(language.num_blocks):
        products += [("decoder", line, width, width)] * 2 + [("decoder", line, width, kv)] * 2
        products += [("decoder", line, width, language.inter_dim)] * 3 + [("decoder", line, line, width)] * 2
    products.append(("head", line, width, language.vocab_size))
    sums: dict[str, float] = {}
    for part, a, b, c in products:
        sums[part] = sums.get(part, 0) + a * b * c
    return {part: value / sum(sums.values()) for part, value in sums.items()}


def word_attention(weights: Tensor, word: int, first_image_token: int, grid: int, factor: int) -> Tensor:
    """Patch by patch: which token is it in?"""
    out = torch.zeros(grid, grid)
    for row in range(grid):
        for column in range(grid):
            token = row // factor * (grid // factor) + column // factor
            out[row, column] = weights[:, word, first_image_token + token].mean() / factor**2
    return out


VERSIONS = {
    "trace.read_trace": read_trace,
    "trace.bug_projector": Projector,
    "trace.bug_heads": SharedHeads,
    "trace.bug_positions": Line,
    "trace.symbolic_shapes": shape_claims,
    "trace.flops": flops_shares,
    "trace.word_attention": word_attention,
}
