"""Stand-ins for SigLIP and SmolLM2: random weights, small, in transformers' files and names. No network, no library."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from nanovlm.config import LMConfig, ViTConfig
from nanovlm.files import make_directory, write_json, write_safetensors
from nanovlm.models.language_model import LanguageModel
from nanovlm.models.vision_transformer import ViT
from nanovlm.weights.tensor_names import llama_slots, siglip_slots, to_theirs

VISION = ViTConfig(hidden_dim=64, inter_dim=192, num_blocks=2, num_heads=4, image_size=64, patch_size=8)
LANGUAGE = LMConfig(
    hidden_dim=64,
    inter_dim=192,
    num_blocks=2,
    num_heads=4,
    num_kv_heads=2,
    vocab_size=443,
    max_positions=256,
    rope_base=10_000.0,
)


@torch.no_grad()
def loud(model: nn.Module, seed: int) -> nn.Module:
    """Random weights of the size that trained ones have, so that every tensor matters to the output."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if p.ndim == 1:
            p.copy_(0.1 * noise + (name.endswith("weight")))
        else:
            p.copy_(noise * (0.1 if "embedding" in name else p[0].numel() ** -0.5))
    return model


def small_siglip(folder: Path) -> Path:
    """A directory as `SiglipVisionModel.save_pretrained` writes it."""
    tensors = dict(loud(ViT(VISION), seed=1).state_dict())
    write_safetensors(to_theirs(siglip_slots(VISION.num_blocks), tensors), make_directory(folder) / "model.safetensors")
    values = {
        "model_type": "siglip_vision_model",
        "architectures": ["SiglipVisionModel"],
        "hidden_size": VISION.hidden_dim,
        "intermediate_size": VISION.inter_dim,
        "num_hidden_layers": VISION.num_blocks,
        "num_attention_heads": VISION.num_heads,
        "image_size": VISION.image_size,
        "patch_size": VISION.patch_size,
        "vision_use_head": False,
    }
    write_json(values, folder / "config.json")
    return folder


def small_llama(folder: Path) -> Path:
    """A directory as `LlamaForCausalLM.save_pretrained` writes it, with a tied head."""
    tensors = to_theirs(llama_slots(LANGUAGE.num_blocks), dict(loud(LanguageModel(LANGUAGE), seed=2).state_dict()))
    del tensors["lm_head.weight"]  # tied: files hold it once
    write_safetensors(tensors, make_directory(folder) / "model.safetensors")
    values = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": LANGUAGE.hidden_dim,
        "intermediate_size": LANGUAGE.inter_dim,
        "num_hidden_layers": LANGUAGE.num_blocks,
        "num_attention_heads": LANGUAGE.num_heads,
        "num_key_value_heads": LANGUAGE.num_kv_heads,
        "vocab_size": LANGUAGE.vocab_size,
        "max_position_embeddings": LANGUAGE.max_positions,
        "rms_norm_eps": LANGUAGE.rms_norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": LANGUAGE.rope_base},
        "tie_word_embeddings": True,
    }
    write_json(values, folder / "config.json")
    return folder


@torch.no_grad()
def compare(kind: str, source: str, ours: nn.Module, inputs: Tensor) -> str:
    """In words: how far our part's output is from that of transformers, loaded from the same files.

    kind: "siglip", inputs are pictures [B, 3, H, W]; or "llama", inputs are ids [B, T].
    """
    try:
        import transformers
    except ImportError:
        return f"{kind}: not compared, because transformers is not installed here (pip install transformers)."
    if kind == "siglip":
        theirs = transformers.SiglipVisionModel.from_pretrained(source, dtype=torch.float32).eval()
        expected, found = theirs(inputs).last_hidden_state, ours(inputs)
    else:
        theirs = transformers.LlamaForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
        expected, found = theirs(inputs).logits, ours.head(ours(ours.token_embedding(inputs)))
    found = found[..., : expected.shape[-1]]  # rows for new tokens are ours alone
    return (
        f"{kind}: the largest difference is {(found - expected).abs().max():.1e}, "
        f"where the numbers go up to {expected.abs().max():.1f}"
    )
