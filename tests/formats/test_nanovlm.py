"""nanoVLM's two generations: expected logits, prompts, tiles, and back again."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from nanovlm import VisionLanguageModel
from nanovlm.config import TilingConfig
from nanovlm.data.tiling import TiledImageProcessor
from nanovlm.inference.prompts import prepare_prompts
from nanovlm.weights.export import export_nanovlm
from tests.formats.local import FIXTURES, characters, fixture
from tests.tiny import max_difference

OLD, NEW = "nanovlm_222m_format_tiny", "nanovlm_450m_format_tiny"


def gradient(width: int, height: int) -> Image.Image:
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([red, green, np.full_like(red, 40)], axis=-1).astype(np.uint8))


@pytest.mark.parametrize("name", [OLD, NEW])
def test_fixtures_give_the_expected_logits(name):
    with pytest.warns(UserWarning, match="Loaded without a tokenizer"):
        model = VisionLanguageModel.from_pretrained(FIXTURES / name)
    expected = load_file(FIXTURES / name / "expected.safetensors")
    with torch.no_grad():
        logits = model(expected["input_ids"], expected["images"]).logits
    assert max_difference(logits, expected["logits"]) < 1e-5
    assert model.tokenizer is None
    assert model.image_processor.pixel_range == "unit"
    with pytest.raises(ValueError, match="no tokenizer"):
        model.generate(prompt="What is this?", image=gradient(8, 8))


def test_the_222m_generation_asks_and_answers(tmp_path):
    model = VisionLanguageModel.from_pretrained(fixture(tmp_path / "m", OLD, characters()))
    assert (model.config.image_token_id, model.config.eos_token_id) == (None, 0)
    batch = prepare_prompts(model, ["What is this?"], [gradient(50, 20)])
    assert model.tokenizer.decode(batch["input_ids"][0]) == "Question: What is this? Answer:"
    square = gradient(50, 20).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.array_equal((batch["images"][0].permute(1, 2, 0) * 255).round().numpy(), np.asarray(square))
    answers = model.generate(image=gradient(50, 20), prompt="What is this?", num_generations=5, temperature=1.0, seed=0)
    assert len(answers) == 5 and len(set(answers)) > 1


def test_the_450m_generation_shows_the_whole_and_then_its_tiles(tmp_path):
    directory = fixture(tmp_path / "m", NEW, characters(), max_img_size=96, resize_to_max_side_len=False)
    model = VisionLanguageModel.from_pretrained(directory)
    assert (model.config.image_token_id, model.config.eos_token_id) == (134, 2)
    tile = "<|image|>" * 4
    batch = prepare_prompts(model, ["Why?"], [gradient(64, 30)])  # 64 x 32 pixels: two tiles beside each other
    assert model.tokenizer.decode(batch["input_ids"][0], skip_special_tokens=False) == (
        f"<|im_start|>user\n<|global_image|>{tile}<row_1_col_1>{tile}<row_1_col_2>{tile}Why?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert batch["images"].shape == (3, 3, 32, 32)
    whole, left, right = batch["images"]
    together = torch.cat([left, right], dim=2)
    assert max_difference(torch.nn.functional.avg_pool2d(together, (1, 2)), whole) < 0.05
    assert left[0, 0, 0] < 0.01 and right[0, 0, -1] > 0.99
    icon = prepare_prompts(model, ["Why?"], [gradient(8, 8)])
    assert icon["images"].shape == (1, 3, 32, 32)
    assert f"<|global_image|>{tile}Why?" in model.tokenizer.decode(icon["input_ids"][0], skip_special_tokens=False)
    two = prepare_prompts(model, ["Why?"], [[gradient(8, 8), gradient(64, 30)]])
    text = model.tokenizer.decode(two["input_ids"][0], skip_special_tokens=False)
    assert f"<image: 0><|global_image|>{tile}<image: 1><|global_image|>{tile}<row_1_col_1>" in text
    assert two["images"].shape[0] == 4
    assert isinstance(model.generate(image=[gradient(8, 8), gradient(64, 30)], prompt="Why?", max_new_tokens=4), str)


def test_tiled_models_without_a_global_token(tmp_path):
    tokens = {"image_token": "<|image|>", **{f"r{r}c{c}": f"<row_{r}_col_{c}>" for r in (1, 2) for c in (1, 2)}}
    model = VisionLanguageModel.from_pretrained(
        fixture(
            tmp_path / "m", NEW, characters(), vlm_extra_tokens=tokens, max_img_size=64, resize_to_max_side_len=None
        )
    )
    batch = prepare_prompts(model, ["Why?", "Why?"], [gradient(64, 64), gradient(9, 9)])
    assert batch["images"].shape[0] == 4 + 1
    text = model.tokenizer.decode(batch["input_ids"][1], skip_special_tokens=False)
    assert "user\n<row_1_col_1>" + "<|image|>" * 4 + "Why?" in text


def test_models_with_a_placeholder_but_no_tiles(tmp_path):
    directory = fixture(
        tmp_path / "m", NEW, characters(), vlm_extra_tokens={"image_token": "<|image|>"}, max_img_size=None
    )
    model = VisionLanguageModel.from_pretrained(directory)
    assert model.config.tiling is None
    batch = prepare_prompts(model, ["Why?"], [gradient(90, 90)])
    text = model.tokenizer.decode(batch["input_ids"][0], skip_special_tokens=False)
    assert "user\n" + "<|image|>" * 4 + "Why?" in text


@pytest.mark.parametrize(
    ("size", "upscale", "grid"),
    [
        ((64, 64), False, (1, 1)),
        ((64, 64), True, (4, 4)),
        ((4000, 300), False, (1, 4)),  # 2048 long, 153.6 high
        ((300, 4000), True, (4, 1)),
        ((600, 300), False, (1, 2)),  # 1024 long, 512 high
        ((600, 320), False, (2, 2)),  # 546.1 high
        ((4000, 3000), False, (3, 4)),
        ((1, 1), False, (1, 1)),
    ],
)
def test_sizes_by_hand(size, upscale, grid):
    processor = TiledImageProcessor(512, "unit", tiling=TilingConfig("nanovlm", 2048, upscale))
    assert processor.grid(size) == grid


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="image token has id 140 in the tokenizer and 134 in the config"):
        VisionLanguageModel.from_pretrained(fixture(tmp_path / "a", NEW, characters(140)))
    with pytest.raises(ValueError, match="The tokenizer has 300 tokens and the model only 200"):
        VisionLanguageModel.from_pretrained(fixture(tmp_path / "b", OLD, characters(300)))


@pytest.mark.parametrize(("name", "changes"), [(OLD, {}), (NEW, {"max_img_size": 256})])
def test_there_and_back_is_bitwise(tmp_path, name, changes):
    model = VisionLanguageModel.from_pretrained(fixture(tmp_path / "m", name, characters(), **changes))
    back = VisionLanguageModel.from_pretrained(export_nanovlm(model, tmp_path / "out"))
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in back.state_dict().items())
    assert back.config == model.config
    theirs, written = (load_file(tmp_path / d / "model.safetensors") for d in ("m", "out"))
    assert written.keys() == theirs.keys()
    assert all(torch.equal(written[key], theirs[key]) for key in theirs if "inv_freq" not in key)
    original, config = (json.loads((tmp_path / d / "config.json").read_text()) for d in ("m", "out"))
    described_otherwise = {"vlm_load_backbone_weights", "vlm_checkpoint_path"}
    both = original.keys() & config.keys() - described_otherwise
    assert {key: config[key] for key in both} == {key: original[key] for key in both}
    args = {"image": gradient(60, 33), "prompt": "Why?", "max_new_tokens": 5}
    assert back.generate(**args) == model.generate(**args)
