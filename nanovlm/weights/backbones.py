"""Start from trained parts: SigLIP encoders and Llama decoders in transformers' format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from nanovlm.config import LMConfig, ViTConfig
from nanovlm.files import extend_rows, find_directory, load_strictly, read_json, read_tensors, tie_head
from nanovlm.models.language_model import LanguageModel
from nanovlm.models.vision_transformer import ViT, resize_positions
from nanovlm.weights.tensor_names import llama_slots, siglip_slots, to_ours

# What a full SigLIP checkpoint holds beside the patch encoder: the text tower and the pooling head.
SIGLIP_UNUSED = ("text_model.", "logit_scale", "logit_bias", "vision_model.head.")


def siglip_config(values: dict[str, Any]) -> ViTConfig:
    """ViTConfig from transformers' SiglipVisionConfig (or a SiglipConfig that holds one)."""
    kind = values.get("model_type", "siglip")
    if "vision_config" not in values and "siglip" not in kind and "vision" not in kind:
        raise ValueError(f"This is not the config of a SigLIP encoder: its model_type is {kind}.")
    values = values.get("vision_config", values)
    activation = values.get("hidden_act", "gelu_pytorch_tanh")
    if activation != "gelu_pytorch_tanh":
        raise ValueError(f"This ViT uses gelu_pytorch_tanh as SigLIP does; the checkpoint wants {activation}.")
    return ViTConfig(  # transformers leaves out what equals its defaults, which are those of SigLIP-B/16-224
        hidden_dim=values.get("hidden_size", 768),
        inter_dim=values.get("intermediate_size", 3072),
        num_blocks=values.get("num_hidden_layers", 12),
        num_heads=values.get("num_attention_heads", 12),
        image_size=values.get("image_size", 224),
        patch_size=values.get("patch_size", 16),
        layer_norm_eps=values.get("layer_norm_eps", 1e-6),
    )


def siglip_tensors(tensors: dict[str, Tensor], num_blocks: int, prefix: str = "vision_model.") -> dict[str, Tensor]:
    """transformers' names -> ours, q, k and v stacked by rows. What is not known keeps its name, so that strict
    loading reports it."""
    position_ids = f"{prefix}embeddings.position_ids"  # older files store it; it is 0, 1, 2 …
    return to_ours(siglip_slots(num_blocks, prefix), {n: t for n, t in tensors.items() if n != position_ids})


def llama_config(values: dict[str, Any]) -> LMConfig:
    """LMConfig from transformers' LlamaConfig, of version 4 (rope_theta) or 5 (rope_parameters)."""
    needed = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    if missing := [key for key in needed if key not in values]:
        raise ValueError(f"This is not the config of a Llama-style decoder: it lacks {', '.join(missing)}.")
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"This decoder has plain RoPE; the checkpoint wants rope_type {kind!r}.")
    for key, plain in (("attention_bias", False), ("mlp_bias", False), ("hidden_act", "silu")):
        if values.get(key, plain) != plain:
            raise ValueError(f"This decoder has {key}={plain}, as SmolLM2; the checkpoint wants {values[key]}.")
    head_dim = values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"]
    if head_dim * values["num_attention_heads"] != values["hidden_size"]:
        raise ValueError(f"head_dim {head_dim} times {values['num_attention_heads']} heads is not hidden_size.")
    return LMConfig(
        hidden_dim=values["hidden_size"],
        inter_dim=values["intermediate_size"],
        num_blocks=values["num_hidden_layers"],
        num_heads=values["num_attention_heads"],
        num_kv_heads=values.get("num_key_value_heads") or values["num_attention_heads"],
        vocab_size=values["vocab_size"],
        max_positions=values.get("max_position_embeddings", 2048),
        rope_base=float(values.get("rope_theta") or rope.get("rope_theta") or 10_000.0),
        rms_norm_eps=values.get("rms_norm_eps", 1e-6),
        tie_weights=values.get("tie_word_embeddings", False),
    )


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
    stored = {n: t for n, t in read_tensors(directory).items() if not n.startswith(SIGLIP_UNUSED)}
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in stored) else ""
    tensors = siglip_tensors({n: t for n, t in stored.items() if not n.startswith("head.")}, config.num_blocks, prefix)
    name = "patch_embedding.position_embedding"
    if image_size is not None and name in tensors:
        config = ViTConfig(**{**vars(config), "image_size": image_size})
        tensors[name] = resize_positions(tensors[name].float(), config.grid_size)
    model = ViT(config)
    load_strictly(model, tensors, directory)
    return model


def load_language_backbone(path_or_hub_id: str | Path, vocab_size: int | None = None) -> LanguageModel:
    """A Llama-style decoder, for example HuggingFaceTB/SmolLM2-135M; `vocab_size` adds rows for new tokens."""
    directory = find_directory(path_or_hub_id)
    config = llama_config(read_json(directory / "config.json"))
    tensors = llama_tensors(read_tensors(directory), config)
    if vocab_size is not None:
        config = LMConfig(**{**vars(config), "vocab_size": vocab_size})
        for name in tensors.keys() & {"token_embedding.weight", "head.weight"}:
            tensors[name] = extend_rows(tensors[name], vocab_size)
    model = LanguageModel(config)
    load_strictly(model, tensors, directory)
    return model
