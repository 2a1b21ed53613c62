"""Presets become models: from nothing with the shipped tokenizer, or from two trained backbones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nanovlm.commands.train import TrainOptions, pinned
from nanovlm.config import Preset, TrainConfig, presets
from nanovlm.models.vision_language_model import VisionLanguageModel
from nanovlm.weights.from_preset import ROWS_MULTIPLE, build_model
from tests.small_backbones import small_backbones
from tests.tiny import max_difference, tiny_config


@pytest.fixture
def backbones(tmp_path: Path) -> Preset:
    return small_backbones(tmp_path)


def test_the_pocket_preset_comes_with_its_tokenizer_and_answers() -> None:
    model = build_model(presets()["pocket"])
    assert model.tokenizer.vocab_size <= model.config.language.vocab_size
    assert model.tokenizer.image_token_id == model.config.image_token_id
    assert model.tokenizer.eos_token_id == model.config.eos_token_id
    assert model.image_processor.image_size == model.config.vision.image_size
    assert isinstance(model.generate(prompt="What is this?", max_new_tokens=2), str)


def test_backbones_are_joined_as_they_are(backbones: Preset, tmp_path: Path) -> None:
    model = build_model(backbones)
    assert model.started_from == {str(tmp_path / name): name for name in ("siglip", "llama")}
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


def test_the_revisions_of_the_backbones_are_those_that_are_asked_for() -> None:
    preset = pinned(TrainOptions(TrainConfig(), "h100", vision_revision="0a1b", language_revision="v1"))
    assert preset.vision_backbone == "google/siglip-base-patch16-224@0a1b"
    assert preset.language_backbone == "HuggingFaceTB/SmolLM2-135M@v1"
    with pytest.raises(ValueError, match="starts from random weights"):
        pinned(TrainOptions(TrainConfig(), "pocket", vision_revision="0a1b"))
