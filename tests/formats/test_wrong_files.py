"""Every wrong file gives one sentence that names the tensor or key, under the name that the file has for it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanovlm import VisionLanguageModel
from tests.formats import oracle
from tests.formats.local import characters, fixture
from tests.tiny import tiny_model

# The projector's weight, and a tensor of every encoder block, as each format names them.
NAMES = {
    "own": ("projector.proj.weight", "vision_encoder.blocks.1.attn.qkv_proj.weight"),
    "nanovlm": ("MP.proj.weight", "vision_encoder.blocks.1.attn.qkv_proj.weight"),
    "smolvlm": (
        "model.connector.modality_projection.proj.weight",
        "model.vision_model.encoder.layers.1.self_attn.k_proj.weight",
    ),
}


@pytest.fixture(params=NAMES)
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    if request.param == "own":
        tiny_model().save_pretrained(tmp_path / "model")
    elif request.param == "nanovlm":
        fixture(tmp_path / "model", "nanovlm_222m_format_tiny", characters())
    else:
        oracle.save(tmp_path / "model", oracle.model(8, 2, False))
    VisionLanguageModel.from_pretrained(tmp_path / "model")  # it is whole so far
    return request.param, tmp_path / "model"


def sentence(directory: Path, kind: type[Exception] = ValueError) -> str:
    with pytest.raises(kind) as caught:
        VisionLanguageModel.from_pretrained(directory)
    text = str(caught.value)
    assert "\n" not in text and text.endswith("."), text
    return text


def edit(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", {"decoder.token_embedding.weight": "decoder.head.weight"})


def edit_config(directory: Path, change: Callable[[dict], object]) -> None:
    config = json.loads((directory / "config.json").read_text())
    change(config)
    (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("which", [0, 1])
def test_missing_tensor(directory, which):
    kind, path = directory
    edit(path, lambda tensors: tensors.pop(NAMES[kind][which]))
    assert f"missing {NAMES[kind][which]} [" in sentence(path)


def test_unexpected_tensor(directory):
    _, path = directory
    edit(path, lambda tensors: tensors.update({"decoder.blocks.0.attn.q_norm.weight": torch.ones(3)}))
    assert "unexpected decoder.blocks.0.attn.q_norm.weight [3]" in sentence(path)


@pytest.mark.parametrize("which", [0, 1])
def test_wrong_shape(directory, which):
    kind, path = directory
    name = NAMES[kind][which]
    edit(path, lambda tensors: tensors.update({name: tensors[name][:-1].clone()}))
    rows = load_file(path / "model.safetensors")[name].shape[0]
    assert f"{name} has shape [{rows}, " in sentence(path)
    assert f"expected [{rows + 1}, " in sentence(path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
def test_wrong_dtype(directory, dtype):
    kind, path = directory
    edit(path, lambda tensors: tensors.update({NAMES[kind][1]: tensors[NAMES[kind][1]].to(dtype)}))
    assert f"{NAMES[kind][1]} holds {dtype}, expected floating point" in sentence(path)


def test_too_few_embedding_rows_are_not_filled_up(directory):
    kind, path = directory
    names = {"own": "decoder.token_embedding.weight", "nanovlm": "decoder.head.weight"}
    name = names.get(kind, "model.text_model.embed_tokens.weight")
    edit(path, lambda tensors: tensors.update({name: tensors[name][:-4].clone()}))
    assert "embed" in sentence(path)


def test_a_tied_head_that_differs(tmp_path):
    path = fixture(tmp_path / "model", "nanovlm_222m_format_tiny", characters())
    edit(path, lambda tensors: tensors.update({"decoder.token_embedding.weight": tensors["decoder.head.weight"] + 1}))
    assert "decoder.head.weight is decoder.token_embedding.weight, but the weights of the two differ" in sentence(path)


def test_rotary_frequencies_of_another_base(tmp_path):
    path = fixture(tmp_path / "model", "nanovlm_222m_format_tiny", characters(), lm_re_base=10_000)
    assert "decoder.rotary_embd.inv_freq" in sentence(path) and "lm_re_base 10000" in sentence(path)


@pytest.mark.parametrize("keep", [0, 5, 300, -10])
def test_truncated_file(directory, keep):
    file = directory[1] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert f"{file} is not a whole safetensors file" in sentence(directory[1])


def test_pickle_under_the_name_of_safetensors(directory):
    file = directory[1] / "model.safetensors"
    torch.save({"weight": torch.ones(2)}, file)
    assert "is not a whole safetensors file" in sentence(directory[1])
    file.write_bytes(pickle.dumps({"weight": [1.0] * 100}))
    assert "pickle" in sentence(directory[1])


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "checkpoint.pth"])
def test_pickle_instead_of_safetensors(directory, name):
    (directory[1] / "model.safetensors").unlink()
    torch.save({}, directory[1] / name)
    text = sentence(directory[1], FileNotFoundError)
    assert "has no model.safetensors" in text and name in text and "could run any code" in text


def test_missing_shard(tmp_path):
    path = oracle.save(tmp_path, oracle.model(8, 2, False), max_shard_size="50KB")
    shard = sorted(path.glob("*.safetensors"))[1]
    shard.unlink()
    assert f"has no {shard.name}" in sentence(path, FileNotFoundError)


def test_an_index_that_points_elsewhere(tmp_path):
    path = oracle.save(tmp_path / "model", oracle.model(8, 2, False), max_shard_size="50KB")
    index = json.loads((path / "model.safetensors.index.json").read_text())
    index["weight_map"]["lm_head.weight"] = "../other.safetensors"
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "points outside of its directory" in sentence(path)


def test_unknown_architectures(tmp_path):
    for config, name in (
        ({"model_type": "llava"}, "llava"),
        ({"architectures": ["QwenForCausalLM"]}, "QwenForCausalLM"),
        ({}, "an unknown kind of model"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert f"describes {name}" in sentence(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("surprise", 1, "settings that this package does not know: surprise"),
        ("vit_hidden_dim", None, "lacks vit_hidden_dim"),
        ("lm_n_heads", "four", "lm_n_heads in"),
        ("vit_cls_flag", True, "vit_cls_flag in"),
        ("lm_attn_scaling", 2.0, "lm_attn_scaling in"),
        ("mp_pixel_shuffle_factor", 3, "cannot be shuffled by 3"),
        ("vlm_extra_tokens", {"r1c1": "<row_1_col_1>"}, "names no image_token"),
    ],
)
def test_wrong_keys_of_nanovlm(tmp_path, key, value, words):
    assert words in sentence(fixture(tmp_path / "m", "nanovlm_222m_format_tiny", characters(), **{key: value}))


def test_wrong_number_of_image_tokens(tmp_path):
    path = fixture(tmp_path / "m", "nanovlm_450m_format_tiny", characters(), mp_image_token_length=64)
    assert "wants 64 image tokens; its sizes give 4" in sentence(path)


@pytest.mark.parametrize("key", ["lm_eos_token_id", "hf_repo_name", "lm_dropout"])
def test_retired_keys_are_no_error(tmp_path, key):
    VisionLanguageModel.from_pretrained(fixture(tmp_path / "a", "nanovlm_450m_format_tiny", characters(), **{key: 0}))
    VisionLanguageModel.from_pretrained(
        fixture(tmp_path / "b", "nanovlm_450m_format_tiny", characters(), **{key: None})
    )


@pytest.mark.parametrize(
    ("part", "key", "value", "words"),
    [
        ("text_config", "model_type", "mistral", "the decoder in"),
        ("text_config", "hidden_act", "gelu", "hidden_act"),
        ("text_config", "attention_bias", True, "attention_bias"),
        ("text_config", "rope_parameters", {"rope_type": "llama3", "rope_theta": 1e5}, "rope_type 'llama3'"),
        ("text_config", "qk_layer_norms", True, "qk_layer_norms"),
        ("vision_config", "hidden_act", "gelu", "gelu_pytorch_tanh"),
        ("vision_config", "num_channels", 1, "1 channels"),
        ("vision_config", "image_size", [32, 64], "image_size"),
        (None, "quantization_config", {"quant_method": "bitsandbytes"}, "quantization_config"),
        (None, "scale_factor", 5, "cannot be shuffled by 5"),
    ],
)
def test_wrong_keys_of_smolvlm(tmp_path, part, key, value, words):
    path = oracle.save(tmp_path, oracle.model(8, 2, False))
    edit_config(path, lambda config: (config[part] if part else config).update({key: value}))
    assert words.lower() in sentence(path).lower()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"image_mean": [0.48, 0.46, 0.41]}, "image_mean"),
        ({"do_rescale": False}, "does not divide pixels by 255"),
        ({"max_image_size": {"longest_edge": 64}}, "tiles in"),
        ({"resample": 5}, "filter 5"),
        ({"size": {"longest_edge": 5000}}, "4096"),
    ],
)
def test_wrong_picture_settings_of_smolvlm(tmp_path, settings, words):
    path = oracle.save(tmp_path, oracle.model(8, 2, False))
    (path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert words in sentence(path)


def test_wrong_keys_of_our_own(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    edit_config(tmp_path, lambda config: config["vision"].update({"depth": 3}))
    assert "no setting named 'depth'" in sentence(tmp_path)
