"""Operations of a training row by formula, from the config alone and in no time: `flops.py` counts, on meta.

tests/training/test_plan.py holds the formulas against the tracer. A multiplication and an addition are two; only matrix
products count (norms, activations and softmax are about one percent of a transformer).
"""

from __future__ import annotations

from nanovlm.config import LMConfig, ViTConfig, VLMConfig


def _attention(num_queries: int, num_keys: int, dim: int) -> int:
    """Scores and weighted sum; every query meets every key, whether or not a mask hides it."""
    return 2 * 2 * num_queries * num_keys * dim


def patch_flops(config: ViTConfig) -> int:
    """Cutting one picture into patch vectors."""
    return 2 * config.num_patches * 3 * config.patch_size**2 * config.hidden_dim


def vision_flops(config: ViTConfig) -> int:
    """One picture through all blocks."""
    n, dim = config.num_patches, config.hidden_dim
    products = 2 * n * (4 * dim * dim + 2 * dim * config.inter_dim)
    return config.num_blocks * (products + _attention(n, n, dim))


def projector_flops(config: VLMConfig) -> int:
    """One picture's patches to image tokens."""
    widened = config.projector.vision_dim * config.projector.pixel_shuffle_factor**2
    return 2 * config.num_image_tokens * widened * config.projector.language_dim


def decoder_flops(config: LMConfig, num_tokens: int, num_keys: int) -> int:
    """`num_tokens` of one row through all blocks, each looking at `num_keys` (its own included)."""
    dim, kv_dim = config.hidden_dim, config.num_kv_heads * config.head_dim
    products = 2 * num_tokens * (2 * dim * dim + 2 * dim * kv_dim + 3 * dim * config.inter_dim)
    return config.num_blocks * (products + _attention(num_tokens, num_keys, dim))


def head_flops(config: LMConfig, num_tokens: int) -> int:
    return 2 * num_tokens * config.hidden_dim * config.vocab_size
