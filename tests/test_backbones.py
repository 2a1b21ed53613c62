"""Trained parts from transformers' directories: SigLIP encoders and Llama decoders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file
from transformers import (
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from nanovlm.files import extend_rows
from nanovlm.models.vision_transformer import resize_positions
from nanovlm.weights.backbones import llama_config, load_language_backbone, load_vision_backbone, siglip_config
from tests.tiny import loud, max_difference

VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "max_position_embeddings": 64,
}


def vision_model() -> SiglipVisionModel:
    return loud(SiglipVisionModel(SiglipVisionConfig(**VISION)))


def llama_directory(directory: Path, **changes: object) -> tuple[LlamaForCausalLM, Path]:
    model = loud(LlamaForCausalLM(LlamaConfig(**LLAMA | changes)))
    model.save_pretrained(directory)
    return model, directory


@torch.no_grad()
def test_a_siglip_encoder_alone(tmp_path: Path) -> None:
    theirs = vision_model()
    theirs.save_pretrained(tmp_path)
    images = torch.randn(2, 3, 32, 32)
    assert max_difference(load_vision_backbone(tmp_path)(images), theirs(images).last_hidden_state) < 1e-5


@torch.no_grad()
def test_the_encoder_of_a_full_siglip(tmp_path: Path) -> None:
    """google/siglip-* hold a text tower and a pooling head too."""
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    theirs = loud(SiglipModel(SiglipConfig(text_config={**text, "vocab_size": 20}, vision_config=VISION)))
    theirs.save_pretrained(tmp_path)
    images = torch.randn(2, 3, 32, 32)
    assert max_difference(load_vision_backbone(tmp_path)(images), theirs.vision_model(images).last_hidden_state) < 1e-5


@pytest.mark.parametrize("image_size", [16, 48, 32])
@torch.no_grad()
def test_another_image_size_stretches_the_positions_as_transformers_does(tmp_path: Path, image_size: int) -> None:
    theirs = vision_model()
    theirs.save_pretrained(tmp_path)
    ours = load_vision_backbone(tmp_path, image_size)
    images = torch.randn(2, 3, image_size, image_size)
    expected = theirs(images, interpolate_pos_encoding=True).last_hidden_state
    assert ours.config.image_size == image_size
    assert max_difference(ours(images), expected) < 1e-5


def test_stretched_positions_keep_their_place() -> None:
    """Row and column numbers stay row and column numbers: between the old ones, in order, and not transposed."""
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    positions = torch.stack([rows, columns], dim=-1).view(1, 16, 2)
    assert resize_positions(positions, 4) is positions
    grid = resize_positions(positions, 8).view(8, 8, 2)
    assert grid.shape == (8, 8, 2)
    assert max_difference(grid[..., 0], grid[..., 1].T) < 1e-6
    assert (grid[1:, :, 0] - grid[:-1, :, 0] > 0).all() and max_difference(grid[:, 0, 0], grid[:, 5, 0]) < 1e-6


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_a_llama_decoder(tmp_path: Path, tied: bool, dtype: torch.dtype) -> None:
    """SmolLM2 is stored in bfloat16; its numbers fit into float32 exactly."""
    stored = loud(LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings=tied))).to(dtype)
    stored.save_pretrained(tmp_path)
    theirs = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ours = load_language_backbone(tmp_path)
    assert (ours.head.weight is ours.token_embedding.weight) is tied
    ids = torch.randint(0, 50, (2, 9))
    assert max_difference(ours.head(ours(ours.token_embedding(ids))), theirs(ids).logits) < 1e-5


@torch.no_grad()
def test_a_sharded_llama_decoder(tmp_path: Path) -> None:
    theirs, _ = llama_directory(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    parts = [load_language_backbone(tmp_path / name).parameters() for name in ("whole", "shards")]
    assert all(torch.equal(p, q) for p, q in zip(*parts, strict=True))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@torch.no_grad()
def test_rows_for_new_tokens(tmp_path: Path, tied: bool) -> None:
    _, directory = llama_directory(tmp_path, tie_word_embeddings=tied)
    before, after = load_language_backbone(directory), load_language_backbone(directory, vocab_size=53)
    for old, new in ((before.token_embedding, after.token_embedding), (before.head, after.head)):
        assert torch.equal(new.weight[:50], old.weight), "a known token keeps its row"
        assert max_difference(new.weight[50:], old.weight.mean(0).expand(3, -1)) < 1e-6
    assert (after.head.weight is after.token_embedding.weight) is tied
    ids = torch.randint(0, 50, (1, 6))
    logits = [model.head(model(model.token_embedding(ids))) for model in (before, after)]
    assert max_difference(logits[1][..., :50], logits[0]) < 1e-5
    padded = load_language_backbone(directory, vocab_size=40)
    assert torch.equal(padded.token_embedding.weight, before.token_embedding.weight), "all rows are kept"


def test_extending_by_nothing_changes_nothing() -> None:
    weight = torch.randn(5, 3)
    assert torch.equal(extend_rows(weight, 5), weight)


# -- what this package does not do is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "rope_type 'linear'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic'"),
        ({"attention_bias": True}, "attention_bias=False"),
        ({"mlp_bias": True}, "mlp_bias=False"),
        ({"hidden_act": "gelu"}, "hidden_act=silu"),
        ({"head_dim": 16}, "head_dim 16 times 4 heads is not hidden_size"),
        ({"hidden_size": None}, "it lacks hidden_size"),
    ],
    ids=str,
)
def test_a_decoder_that_would_compute_something_else_is_refused(changes: dict, sentence: str) -> None:
    values = {key: value for key, value in {**LLAMA, **changes}.items() if value is not None}
    with pytest.raises(ValueError, match=sentence):
        llama_config(values)


OTHER_DECODERS = {
    "embedding_multiplier": (GraniteForCausalLM, GraniteConfig(**LLAMA, embedding_multiplier=12.0)),
    "sliding_window": (MistralForCausalLM, MistralConfig(**LLAMA, sliding_window=8)),
    "model_type": (GraniteForCausalLM, GraniteConfig(**LLAMA, attention_multiplier=8**-0.5)),
}


@pytest.mark.parametrize("setting", OTHER_DECODERS)
def test_decoders_with_the_tensors_of_a_llama_that_are_none(tmp_path: Path, setting: str) -> None:
    """All of their tensors have Llama's names and shapes: only the config tells."""
    make, config = OTHER_DECODERS[setting]
    make(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=setting):
        load_language_backbone(tmp_path)


@torch.no_grad()
def test_a_mistral_without_a_window_is_a_llama(tmp_path: Path) -> None:
    theirs = loud(MistralForCausalLM(MistralConfig(**LLAMA, sliding_window=None)))
    theirs.save_pretrained(tmp_path)
    ours, ids = load_language_backbone(tmp_path), torch.randint(0, 50, (2, 9))
    assert max_difference(ours.head(ours(ours.token_embedding(ids))), theirs(ids).logits) < 1e-5


@pytest.mark.parametrize(
    ("setting", "changes"),
    [
        ("scale_emb", {"model_type": "minicpm", "scale_emb": 12, "scale_depth": 1.4}),
        ("layer_types", {"layer_types": ["sliding_attention", "full_attention"]}),
        ("final_logit_softcapping", {"final_logit_softcapping": 30.0}),
        ("partial_rotary_factor", {"partial_rotary_factor": 0.5}),
        ("partial_rotary_factor", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}),
        ("rope_interleaved", {"rope_interleaved": True}),
        ("full_attention", {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}}),
        ("is_causal", {"is_causal": False}),
        ("no_rope_layers", {"no_rope_layers": [1, 0]}),
        ("attention_multiplier", {"attention_multiplier": 1 / 64}),
        ("model_type is 'qwen2'", {"model_type": "qwen2"}),
        (
            r"rope_theta 5\.0 and rope_parameters.rope_theta 6",
            {"rope_theta": 5.0, "rope_parameters": {"rope_theta": 6}},
        ),
    ],
)
def test_a_setting_that_llama_does_not_have_is_named(setting: str, changes: dict) -> None:
    with pytest.raises(ValueError, match=setting):
        llama_config({"model_type": "llama", **LLAMA, **changes})


def test_neutral_values_change_nothing() -> None:
    neutral = {"layer_types": ["full_attention"] * 2, "sliding_window": None, "attention_multiplier": 8**-0.5}
    neutral |= {"no_rope_layers": [1, 1], "rope_theta": 7.0, "rope_parameters": {"rope_theta": 7.0}}
    assert llama_config({**LLAMA, **neutral}) == llama_config({**LLAMA, "rope_theta": 7.0})


def test_rope_base_of_transformers_4_and_5() -> None:
    assert llama_config({**LLAMA, "rope_theta": 5.0}).rope_base == 5.0
    assert llama_config({**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 6.0}}).rope_base == 6.0
    assert llama_config({**LLAMA, "rope_scaling": None}).rope_base == 10_000.0


def test_an_encoder_with_another_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="gelu_pytorch_tanh as SigLIP does; the checkpoint wants quick_gelu"):
        siglip_config({"vision_config": {**VISION, "hidden_act": "quick_gelu"}})


def test_an_encoder_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="model_type is 'clip_vision_model'"):
        siglip_config({**VISION, "model_type": "clip_vision_model"})


def test_weights_that_do_not_fit_their_config_are_named(tmp_path: Path) -> None:
    _, directory = llama_directory(tmp_path / "llama", tie_word_embeddings=True)
    file = directory / "model.safetensors"
    weights, config = load(file.read_bytes()), json.loads((directory / "config.json").read_text())
    embedding = weights["model.embed_tokens.weight"]

    def expect(sentence: str, changed_weights: dict, **changed_config: object) -> None:
        save_file(changed_weights, file)
        (directory / "config.json").write_text(json.dumps(config | changed_config))
        with pytest.raises(ValueError, match=sentence):
            load_language_backbone(directory)

    expect(r"unexpected model\.layers\.0\.self_attn\.q_proj\.bias", {**weights, **q_bias()})
    expect(r"unexpected blocks\.1|unexpected model\.layers\.1", weights, num_hidden_layers=1)
    expect(r"missing .*blocks\.2", weights, num_hidden_layers=3)
    expect(r"token_embedding\.weight has shape \[49, 32\]", {**weights, "model.embed_tokens.weight": embedding[:49]})
    expect("the weights of the two differ", {**weights, "lm_head.weight": embedding + 1})


def q_bias() -> dict[str, torch.Tensor]:
    return {"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}


def test_the_wrong_kind_of_directory(tmp_path: Path) -> None:
    vision_model().save_pretrained(tmp_path / "siglip")
    _, llama = llama_directory(tmp_path / "llama")
    with pytest.raises(ValueError, match="not the config of a Llama-style decoder: it lacks vocab_size"):
        load_language_backbone(tmp_path / "siglip")
    with pytest.raises(ValueError, match="not the config of a SigLIP encoder: its model_type is 'llama'"):
        load_vision_backbone(llama)
