"""Start from trained parts: SigLIP encoders and Llama decoders in transformers' format."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from nanovlm.config import LMConfig, ViTConfig
from nanovlm.files import (
    check_blocks,
    check_tensors,
    extend_rows,
    find_directory,
    load_strictly,
    read_json,
    read_tensors,
    tie_head,
)
from nanovlm.models.language_model import LanguageModel
from nanovlm.models.vision_transformer import ViT, resize_positions
from nanovlm.settings import setting, shown
from nanovlm.weights.tensor_names import llama_slots, siglip_slots, to_ours

M = TypeVar("M", ViT, LanguageModel)
# What a full SigLIP checkpoint holds beside the patch encoder: the text tower and the pooling head.
SIGLIP_UNUSED = ("text_model.", "logit_scale", "logit_bias", "vision_model.head.")


# Encoders that compute what our ViT computes, and decoders that compute what our LanguageModel computes, where every
# setting below has its neutral value.
ENCODER_TYPES = ("siglip", "siglip_vision_model", "smolvlm_vision", "idefics3", "idefics3_vision")
DECODER_TYPES = ("llama", "mistral")
# Settings of other decoders, and the value with which each changes nothing. null is always neutral: it means unset.
NEUTRAL = {
    "hidden_act": "silu",
    "hidden_activation": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "qkv_bias": False,
    "is_causal": True,
    "sliding_window": None,
    "attention_chunk_size": None,
    "no_rope_layers": 1,  # a list has one entry a layer
    "layer_types": "full_attention",
    "partial_rotary_factor": 1.0,
    "rotary_pct": 1.0,
    "rope_interleaved": False,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
    "logit_scale": 1.0,
    "scale_emb": 1.0,
    "scale_depth": None,
    "dim_model_base": None,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
    "logits_soft_cap": None,
    "clip_qkv": None,
    "qk_norm": False,
    "use_qk_norm": False,
    "qk_layernorm": False,
    "qk_layer_norms": False,
    "use_parallel_residual": False,
    "parallel_attn": False,
    "num_local_experts": None,
    "num_experts": None,
    "quantization_config": None,
}
ROPE_KEYS = ("rope_type", "type", "rope_theta", "partial_rotary_factor")


def siglip_config(values: dict[str, Any]) -> ViTConfig:
    """ViTConfig from transformers' SiglipVisionConfig (or a SiglipConfig that holds one)."""
    kind = setting(values, "model_type", str | None, None) or "siglip"
    if kind not in ENCODER_TYPES:
        raise ValueError(f"This is not the config of a SigLIP encoder: its model_type is {shown(kind)}.")
    values = setting(values, "vision_config", dict, values)
    activation = setting(values, "hidden_act", str, "gelu_pytorch_tanh")
    if activation != "gelu_pytorch_tanh":
        raise ValueError(f"This ViT uses gelu_pytorch_tanh as SigLIP does; the checkpoint wants {activation}.")
    return ViTConfig(  # transformers leaves out what equals its defaults, which are those of SigLIP-B/16-224
        hidden_dim=setting(values, "hidden_size", int, 768),
        inter_dim=setting(values, "intermediate_size", int, 3072),
        num_blocks=setting(values, "num_hidden_layers", int, 12),
        num_heads=setting(values, "num_attention_heads", int, 12),
        image_size=setting(values, "image_size", int, 224),
        patch_size=setting(values, "patch_size", int, 16),
        layer_norm_eps=setting(values, "layer_norm_eps", float, 1e-6),
    )


def siglip_tensors(tensors: dict[str, Tensor], num_blocks: int, prefix: str = "vision_model.") -> dict[str, Tensor]:
    """transformers' names -> ours, q, k and v stacked by rows. What is not known keeps its name, so that strict
    loading reports it."""
    position_ids = f"{prefix}embeddings.position_ids"  # older files store it; it is 0, 1, 2 …
    return to_ours(siglip_slots(num_blocks, prefix), {n: t for n, t in tensors.items() if n != position_ids})


def llama_config(values: dict[str, Any]) -> LMConfig:
    """LMConfig from transformers' LlamaConfig, of version 4 (rope_theta) or 5 (rope_parameters).

    Raises: ValueError that names the setting with which the decoder would compute something else than a Llama.
    """
    needed = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    if missing := [key for key in needed if key not in values]:
        raise ValueError(f"This is not the config of a Llama-style decoder: it lacks {', '.join(missing)}.")
    hidden_dim, inter_dim, num_blocks, num_heads, vocab_size = (setting(values, key, int) for key in needed)
    num_kv_heads = setting(values, "num_key_value_heads", int | None, None) or num_heads
    head_dim = setting(values, "head_dim", int | None, None) or hidden_dim // max(num_heads, 1)
    if head_dim * num_heads != hidden_dim:
        raise ValueError(f"head_dim {head_dim} times {num_heads} heads is not hidden_size.")
    _refuse_other_decoders(values, head_dim)
    return LMConfig(
        hidden_dim=hidden_dim,
        inter_dim=inter_dim,
        num_blocks=num_blocks,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        vocab_size=vocab_size,
        max_positions=setting(values, "max_position_embeddings", int, 2048),
        rope_base=_rope_base(values),
        rms_norm_eps=setting(values, "rms_norm_eps", float, 1e-6),
        tie_weights=setting(values, "tie_word_embeddings", bool, False),
    )


def _refuse_other_decoders(values: dict[str, Any], head_dim: int) -> None:
    """A decoder may have Llama's tensors and compute something else with them: its settings tell, or its type."""
    scales = {"attention_multiplier": head_dim**-0.5, "query_pre_attn_scalar": head_dim}
    for key, neutral in {**NEUTRAL, **scales}.items():
        value = values.get(key)
        entries = value if isinstance(value, list) else [value]
        if any(entry is not None and entry != neutral for entry in entries):
            plain = f"has {key}={neutral}, as SmolLM2" if neutral is not None else f"has no {key}, as SmolLM2"
            raise ValueError(f"This decoder {plain}; the checkpoint wants {shown(value)}.")
    kind = setting(values, "model_type", str | None, None) or "llama"
    if kind not in DECODER_TYPES:
        raise ValueError(
            f"The decoder's model_type is {shown(kind)}; this package has {' and '.join(DECODER_TYPES)} only."
        )


def _rope_base(values: dict[str, Any]) -> float:
    """The base of plain RoPE, wherever the file says it; two places that disagree are an error."""
    found = {"rope_theta": setting(values, "rope_theta", float | None, None)}
    for place in ("rope_parameters", "rope_scaling"):
        rope = setting(values, place, dict | None, None) or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise ValueError(f"This decoder has plain RoPE; the checkpoint wants rope_type {kind!r}.")
        if other := [key for key in rope if key not in ROPE_KEYS]:
            raise ValueError(
                f"This decoder has plain RoPE; the checkpoint's {place} has {', '.join(map(shown, other[:5]))} too."
            )
        if rope.get("partial_rotary_factor") not in (None, 1):
            raise ValueError(
                f"This decoder rotates whole heads; the checkpoint wants partial_rotary_factor "
                f"{shown(rope['partial_rotary_factor'])}."
            )
        found[f"{place}.rope_theta"] = setting(rope, "rope_theta", float | None, None)
    found = {key: base for key, base in found.items() if base is not None}
    if len(set(found.values())) > 1:
        told = " and ".join(f"{key} {base}" for key, base in found.items())
        raise ValueError(f"The checkpoint's config says {told}: it is not clear which base RoPE has.")
    return next(iter(found.values()), 10_000.0)


def llama_tensors(
    tensors: dict[str, Tensor], config: LMConfig, prefix: str = "model.", head: str = "lm_head.weight"
) -> dict[str, Tensor]:
    """transformers' names -> ours. What is not known keeps its name, so that strict loading reports it."""
    # older files store inv_freq; it is computed
    stored = {name: tensor for name, tensor in tensors.items() if not name.endswith("rotary_emb.inv_freq")}
    ours = to_ours(llama_slots(config.num_blocks, prefix, head), stored)
    if config.tie_weights:
        tie_head(ours, "token_embedding.weight", "head.weight", "the checkpoint")
    return ours


def load_vision_backbone(path_or_hub_id: str | Path, image_size: int | None = None) -> ViT:
    """A SigLIP encoder, for example google/siglip-base-patch16-224; other picture sizes get stretched positions."""
    directory = find_directory(path_or_hub_id)
    config = siglip_config(read_json(directory / "config.json"))
    check_blocks(directory, encoder=config.num_blocks)
    stored = {n: t for n, t in read_tensors(directory).items() if not n.startswith(SIGLIP_UNUSED)}
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in stored) else ""
    tensors = siglip_tensors({n: t for n, t in stored.items() if not n.startswith("head.")}, config.num_blocks, prefix)
    name = "patch_embedding.position_embedding"
    if image_size is not None and name in tensors:
        config = ViTConfig(**{**vars(config), "image_size": image_size})
        tensors[name] = resize_positions(tensors[name].float(), config.grid_size)
    return _filled(ViT, config, tensors, directory)


def load_language_backbone(path_or_hub_id: str | Path, vocab_size: int | None = None) -> LanguageModel:
    """A Llama-style decoder, for example HuggingFaceTB/SmolLM2-135M.

    `vocab_size`: rows are added for new tokens until there are so many. A checkpoint that has more (published ones are
    padded to a multiple of 64 or 128, or keep some for later) keeps them all.
    """
    directory = find_directory(path_or_hub_id)
    config = llama_config(read_json(directory / "config.json"))
    check_blocks(directory, decoder=config.num_blocks)
    tensors = llama_tensors(read_tensors(directory), config)
    if vocab_size is not None and vocab_size > config.vocab_size:
        config = LMConfig(**{**vars(config), "vocab_size": vocab_size})
        for name in tensors.keys() & {"token_embedding.weight", "head.weight"}:
            tensors[name] = extend_rows(tensors[name], vocab_size)
    return _filled(LanguageModel, config, tensors, directory)


def _filled(make: type[M], config: ViTConfig | LMConfig, tensors: dict[str, Tensor], directory: Path) -> M:
    """The part with these weights. Its sizes are compared with theirs before it gets memory."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in make(config).state_dict().items()}
    check_tensors(shapes, tensors, directory)
    model = make(config)
    load_strictly(model, tensors, directory)
    return model
