"""Presets become models: from nothing with the shipped tokenizer, or from two trained backbones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel

from nanovlm.config import Preset, ProjectorConfig, TrainConfig, ViTConfig, VLMConfig, presets
from nanovlm.models.vision_language_model import VisionLanguageModel
from nanovlm.weights.from_preset import ROWS_MULTIPLE, build_model
from tests.tiny import max_difference, tiny_config
from tests.tiny_tokenizer import SETTINGS, raw_tokenizer


@pytest.fixture
def backbones(tmp_path: Path) -> Preset:
    """A SigLIP and a Llama of random weights, and a tokenizer that knows no picture."""
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    SiglipVisionModel(SiglipVisionConfig(**vision, image_size=32, patch_size=8)).save_pretrained(tmp_path / "siglip")
    tokenizer = raw_tokenizer("chatml")
    llama = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = LlamaConfig(**llama, num_key_value_heads=2, vocab_size=tokenizer.get_vocab_size())
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    tokenizer.save(str(tmp_path / "llama" / "tokenizer.json"))
    settings = {name: value for name, value in SETTINGS["chatml"].items() if name != "image_token"}
    (tmp_path / "llama" / "tokenizer_config.json").write_text(json.dumps(settings))
    vlm = VLMConfig(vision=ViTConfig(image_size=48, patch_size=8), projector=ProjectorConfig(pixel_shuffle_factor=3))
    return Preset(vlm, TrainConfig(), str(tmp_path / "siglip"), str(tmp_path / "llama"))


def test_the_pocket_preset_comes_with_its_tokenizer_and_answers() -> None:
    model = build_model(presets()["pocket"])
    assert model.tokenizer.vocab_size <= model.config.language.vocab_size
    assert model.tokenizer.image_token_id == model.config.image_token_id
    assert model.tokenizer.eos_token_id == model.config.eos_token_id
    assert model.image_processor.image_size == model.config.vision.image_size
    assert isinstance(model.generate(prompt="What is this?", max_new_tokens=2), str)


def test_backbones_are_joined_as_they_are(backbones: Preset, tmp_path: Path) -> None:
    model = build_model(backbones)
    config, rows = model.config, LlamaForCausalLM.from_pretrained(tmp_path / "llama").get_input_embeddings().weight
    assert (config.projector.vision_dim, config.projector.language_dim) == (32, 48)
    assert config.vision.image_size == 48, "the preset's picture size, with positions stretched to it"
    assert config.num_image_tokens == 4
    assert config.language.vocab_size % ROWS_MULTIPLE == 0
    assert model.tokenizer.vocab_size <= config.language.vocab_size
    assert torch.equal(model.decoder.token_embedding.weight[: rows.shape[0]], rows)
    assert model.tokenizer.decode([config.eos_token_id], skip_special_tokens=False) == "<|im_end|>"


@pytest.mark.parametrize("more", [1, 62, 600])
def test_a_padded_vocabulary_keeps_its_rows(backbones: Preset, tmp_path: Path, more: int) -> None:
    """Published decoders have more rows than their tokenizers have tokens."""
    config = LlamaConfig.from_pretrained(tmp_path / "llama")
    config.vocab_size += more
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    model = build_model(backbones)
    rows = LlamaForCausalLM.from_pretrained(tmp_path / "llama").get_input_embeddings().weight
    assert model.config.language.vocab_size >= max(rows.shape[0], model.tokenizer.vocab_size)
    assert torch.equal(model.decoder.token_embedding.weight[: rows.shape[0]], rows)


def test_a_joined_model_is_told_of_its_image_and_comes_back_from_its_directory(
    backbones: Preset, tmp_path: Path
) -> None:
    model = build_model(backbones).eval()
    ids = model.tokenizer.encode_prompt("What is this?", 1, model.config)
    assert ids.count(model.config.image_token_id) == model.config.num_image_tokens
    again = VisionLanguageModel.from_pretrained(model.save_pretrained(tmp_path / "joined"))
    image = torch.rand(1, 3, 48, 48)
    with torch.no_grad():
        assert max_difference(again(torch.tensor([ids]), image).logits, model(torch.tensor([ids]), image).logits) == 0
    assert again.tokenizer.encode_prompt("What is this?", 1, again.config) == ids


def test_parts_that_do_not_fit_are_refused(backbones: Preset) -> None:
    backbones.language_backbone = None
    with pytest.raises(ValueError, match="both backbones or from neither"):
        build_model(backbones)
    with pytest.raises(ValueError, match="tokens, the model only 48 embeddings"):
        build_model(Preset(tiny_config(), TrainConfig()))
