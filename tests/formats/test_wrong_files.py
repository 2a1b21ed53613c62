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
from nanovlm.data.chat import ChatTokenizer
from nanovlm.data.processors import ImageProcessor
from tests.formats import oracle
from tests.formats.local import characters, fixture
from tests.tiny import tiny_model
from tests.tiny_tokenizer import tiny_tokenizer

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
        ("lm_n_heads", "four", "lm_n_heads must be a whole number"),
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
def test_wrong_image_settings_of_smolvlm(tmp_path, settings, words):
    path = oracle.save(tmp_path, oracle.model(8, 2, False))
    (path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert words in sentence(path)


def test_wrong_keys_of_our_own(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    edit_config(tmp_path, lambda config: config["vision"].update({"depth": 3}))
    assert "no setting named 'depth'" in sentence(tmp_path)


NONSENSE = [True, 1.5, "x", [], {}, -1, 0, 10**12, float("nan"), float("inf")]
OWN_SIZES = [
    ("language", "num_blocks"),
    ("language", "max_positions"),
    ("vision", "hidden_dim"),
    ("vision", "num_heads"),
]


@pytest.mark.parametrize("value", NONSENSE, ids=repr)
@pytest.mark.parametrize(("part", "key"), OWN_SIZES)
def test_sizes_that_are_none_are_refused_by_name(tmp_path, part, key, value):
    tiny_model().save_pretrained(tmp_path)
    edit_config(tmp_path, lambda config: config[part].update({key: value}))
    assert key in sentence(tmp_path)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        *[("language", "rope_base", value) for value in (0, -1.0, float("nan"), float("inf"), True, "x", [1])],
        *[("language", "rms_norm_eps", value) for value in (-1e-5, float("nan"), {})],
        *[(None, "image_token_id", value) for value in (True, 1.5, "x", [4], 10**12, -1)],
        *[(None, "eos_token_id", value) for value in (None, "x", [2], -1)],
        *[(None, "tokenizer", value) for value in (5, [], {})],
        *[(None, "tiling", value) for value in (5, "x", [], True)],
    ],
)
def test_a_config_of_nonsense_does_not_load(tmp_path, part, key, value):
    tiny_model().save_pretrained(tmp_path)
    edit_config(tmp_path, lambda config: (config[part] if part else config).update({key: value}))
    assert key in sentence(tmp_path)


def test_a_model_that_no_memory_holds(tmp_path):
    """Its first matrix would take 2^50 bytes."""
    tiny_model().save_pretrained(tmp_path)

    def change(config: dict) -> None:
        config["vision"]["hidden_dim"] = config["projector"]["vision_dim"] = 2**23

    edit_config(tmp_path, change)
    assert "does not fit into memory" in sentence(tmp_path)


@pytest.mark.parametrize("number", [3, 10**7])
def test_more_blocks_than_there_are_weights(directory, number):
    """Refused before they are built: ten million would take an hour and all of the memory."""
    kind, path = directory

    def change(config: dict) -> None:
        if kind == "own":
            config["language"]["num_blocks"] = number
        elif kind == "nanovlm":
            config["lm_n_blocks"] = number
        else:
            config["text_config"]["num_hidden_layers"] = number

    edit_config(path, change)
    text = sentence(path)
    assert "blocks" in text or "layers.2" in text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_no_numbers(directory, value, dtype):
    kind, path = directory
    name = NAMES[kind][0]

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensors[name].to(dtype)
        tensors[name][-1, -1] = value

    edit(path, spoil)
    assert f"{name} in {path / 'model.safetensors'} holds NaN or infinity" in sentence(path)


def test_large_weights_are_numbers(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    edit(tmp_path, lambda tensors: tensors["projector.proj.weight"].fill_(torch.finfo(torch.float32).max))
    VisionLanguageModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "processor_config.json"])
@pytest.mark.parametrize(
    "text", ["[]", "null", '"x"', "{", "{}x", "[" * 100_000, '{"a":' * 100_000, '{"a": ' + "9" * 5000 + "}", "\xff"]
)
def test_files_that_hold_no_settings(tmp_path, name, text):
    model = tiny_model()
    model.tokenizer, model.image_processor = tiny_tokenizer(), ImageProcessor(16)
    model.config.language.vocab_size = 48
    model.save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    assert name in sentence(tmp_path)


@pytest.mark.parametrize("key", ["eos_token", "pad_token", "image_token", "chat_template"])
@pytest.mark.parametrize("value", [5, [1], {"a": 1}, True, "no such token"], ids=repr)
def test_tokenizer_settings_of_the_wrong_type(tmp_path, key, value):
    tokenizer = characters()
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    if key == "chat_template" and not isinstance(value, int | dict):
        return  # a template without a word in it is found out when it is used
    with pytest.raises(ValueError, match=f"{key}|no token 'no such token'"):
        ChatTokenizer.from_pretrained(tmp_path)


def test_a_tokenizer_larger_than_the_vocabulary(tmp_path):
    model = tiny_model()
    model.tokenizer = tiny_tokenizer()
    model.save_pretrained(tmp_path)
    assert "this is not the tokenizer of the model in" in sentence(tmp_path)


def test_images_of_another_size_than_the_encoders(tmp_path):
    model = tiny_model()
    model.image_processor = ImageProcessor(24)
    model.save_pretrained(tmp_path)
    assert "makes pictures of 24 pixels; the encoder takes 16" in sentence(tmp_path)


def test_an_index_that_names_the_wrong_file(tmp_path):
    path = oracle.save(tmp_path / "model", oracle.model(8, 2, False), max_shard_size="50KB")
    file = path / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    name, shard = next(iter(index["weight_map"].items()))
    index["weight_map"][name] = next(other for other in index["weight_map"].values() if other != shard)
    file.write_text(json.dumps(index))
    assert f"holds {name}, which it does not" in sentence(path)


@pytest.mark.parametrize("value", [5, None, [], {"lm_head.weight": 5}])
def test_an_index_of_the_wrong_type(tmp_path, value):
    path = oracle.save(tmp_path / "model", oracle.model(8, 2, False), max_shard_size="50KB")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": value}))
    with pytest.raises(ValueError, match=r"weight_map|do not fit|tensors"):
        VisionLanguageModel.from_pretrained(path)
