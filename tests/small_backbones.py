"""Trained parts as a hub has them, small and of random weights."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel

from nanovlm.config import Preset, ProjectorConfig, TrainConfig, ViTConfig, VLMConfig
from tests.tiny_tokenizer import SETTINGS, raw_tokenizer


def small_backbones(directory: Path) -> Preset:
    """A SigLIP, a Llama, and a tokenizer that knows no picture, saved in `directory`."""
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    SiglipVisionModel(SiglipVisionConfig(**vision, image_size=32, patch_size=8)).save_pretrained(directory / "siglip")
    tokenizer = raw_tokenizer("chatml")
    llama = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = LlamaConfig(**llama, num_key_value_heads=2, vocab_size=tokenizer.get_vocab_size())
    LlamaForCausalLM(config).save_pretrained(directory / "llama")
    tokenizer.save(str(directory / "llama" / "tokenizer.json"))
    settings = {name: value for name, value in SETTINGS["chatml"].items() if name != "image_token"}
    (directory / "llama" / "tokenizer_config.json").write_text(json.dumps(settings))
    vlm = VLMConfig(vision=ViTConfig(image_size=48, patch_size=8), projector=ProjectorConfig(pixel_shuffle_factor=3))
    return Preset(vlm, TrainConfig(), str(directory / "siglip"), str(directory / "llama"))
