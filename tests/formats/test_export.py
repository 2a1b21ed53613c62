"""Our models in transformers' hands: the same ids, pixels, logits and text; and back again, bit by bit."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, SmolVLMForConditionalGeneration

from nanovlm import VisionLanguageModel, VLMConfig
from nanovlm.config import LMConfig, ProjectorConfig, TilingConfig, ViTConfig
from nanovlm.data.tiling import make_image_processor, tile_tokens
from nanovlm.files import find_directory
from nanovlm.inference.prompts import prepare_prompt, prepare_prompts
from nanovlm.weights.export import export_model, export_nanovlm, export_smolvlm
from tests.formats.local import characters
from tests.formats.test_smolvlm import random_image
from tests.tiny import loud, max_difference
from tests.tiny_tokenizer import tiny_tokenizer
from tests.transformers_version import OLD_SMOLVLM, WHY_OLD

TILES = TilingConfig(layout="smolvlm", max_side=128, upscale=True)
NO_UPSCALE = TilingConfig(layout="smolvlm", max_side=128)
NANOVLM_TILES = TilingConfig(layout="nanovlm", max_side=96)


def own_model(
    kind: str = "pocket",
    num_prefix: bool = False,
    prompt_format: str = "chat",
    tied: bool = True,
    pixel_range: str = "signed",
    tiling: TilingConfig | None = None,
) -> VisionLanguageModel:
    tokenizer = characters() if kind == "characters" else tiny_tokenizer(kind)
    if tiling is not None:
        tokenizer.add_tokens(tile_tokens(tiling, 32))
    config = VLMConfig(
        ViTConfig(32, 48, 2, 4, 32, 4),
        ProjectorConfig(32, 48, 2),
        LMConfig(48, 64, 2, 6, 2, tokenizer.vocab_size, 1024, 10_000.0, 1e-5, tied),
        image_token_id=None if num_prefix else tokenizer.image_token_id,
        eos_token_id=tokenizer.eos_token_id,
        prompt_format=prompt_format,
        pixel_range=pixel_range,
        tiling=tiling,
    )
    model = loud(VisionLanguageModel(config))
    with torch.no_grad():  # else a tied model says one token over and over
        model.decoder.token_embedding.weight.mul_(0.2)
        model.decoder.norm.weight.mul_(5)
    model.tokenizer, model.image_processor = tokenizer, make_image_processor(config)
    return model


def transformers_side(directory):
    theirs = AutoModelForImageTextToText.from_pretrained(directory)
    assert isinstance(theirs, SmolVLMForConditionalGeneration)
    return theirs.eval(), AutoProcessor.from_pretrained(directory)


LEVEL = 1 / 127.5  # of 255, in pixels from -1 to 1: their processor resizes with Pillow, ours with torch
KINDS = {
    "the pocket model": {},
    "untied": {"tied": False},
    "a template for strings only": {"kind": "chatml"},
    "a template that trims": {"kind": "trimming"},
    "pixels in [0, 1]": {"pixel_range": "unit"},
    "tiles": {"tiling": TILES},
    "tiles, nothing enlarged": {"tiling": NO_UPSCALE},
    "in front, question and answer": {"num_prefix": True, "prompt_format": "question_answer"},
    "in front, chat": {"num_prefix": True, "kind": "chatml"},
    "in front, no image token yet": {"num_prefix": True, "kind": "characters"},
}


@pytest.mark.skipif(OLD_SMOLVLM, reason=WHY_OLD)
@pytest.mark.filterwarnings("ignore:transformers' processor cannot shrink")
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_computes_what_we_compute(tmp_path, kind):
    ours = own_model(**KINDS[kind])
    theirs, processor = transformers_side(export_smolvlm(ours, tmp_path))
    vocab_size, said = ours.config.language.vocab_size, []
    for question, image in (
        ("What colour is the circle?", random_image(50, 40)),
        ("Where is it?", random_image(9, 70, "RGBA")),
        ("How many?", Image.new("RGB", (40, 40))),  # black: transformers must not take it for padding
    ):
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
        inputs = processor(text=text, images=[image], return_tensors="pt")
        batch = prepare_prompts(ours, [question], [image])
        assert (inputs["pixel_values"][0] - batch["images"]).abs().mean() < LEVEL
        inputs["pixel_values"] = batch["images"][None]  # so that the models are compared, not two roundings
        ids = inputs["input_ids"][0]
        if ours.config.image_token_id is None:
            n = ours.config.num_image_tokens
            assert ids[:n].eq(theirs.config.image_token_id).all()
            ids = ids[n:]
        assert ids.tolist() == batch["input_ids"][0].tolist()
        with torch.no_grad():
            expected = ours(**batch).logits
            assert expected.std() > 0.5
            assert max_difference(theirs(**inputs).logits[..., :vocab_size], expected) < 1e-4
        generated = theirs.generate(**inputs, max_new_tokens=32)[0, inputs["input_ids"].shape[1] :]
        answer = processor.decode(generated, skip_special_tokens=True).strip()
        assert answer == ours.generate(image=image, prompt=question, max_new_tokens=32)
        said.append(answer)
    assert any(said)


@pytest.mark.filterwarnings("ignore:transformers' processor cannot shrink")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "front" not in kind])
def test_there_and_back_is_bitwise(tmp_path, kind):
    ours = own_model(**KINDS[kind])
    back = VisionLanguageModel.from_pretrained(export_smolvlm(ours, tmp_path))
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in back.state_dict().items())
    cut_the_same = {"tiling": back.config.tiling, "tokenizer": None}
    assert vars(back.config) == {**vars(ours.config), **cut_the_same}
    for image in (random_image(50, 40), random_image(8, 8)):
        (ids, pixels), (ids_back, pixels_back) = (prepare_prompt(m, "What?", image) for m in (ours, back))
        assert ids == ids_back and torch.equal(pixels, pixels_back)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "front" in kind])
def test_a_model_with_images_in_front_comes_back_with_placeholders(tmp_path, kind):
    ours = own_model(**KINDS[kind])
    back = VisionLanguageModel.from_pretrained(export_smolvlm(ours, tmp_path))
    image = random_image(50, 40)
    assert back.config.image_token_id is not None
    assert back.generate(image=image, prompt="What?") == ours.generate(image=image, prompt="What?")
    args = (["What?"], [image])
    with torch.no_grad():
        logits, expected = (m(**prepare_prompts(m, *args)).logits for m in (back, ours))
    assert max_difference(logits[..., : expected.shape[-1]], expected) < 1e-4


def test_several_images_and_left_padding_in_transformers_hands(tmp_path):
    ours = own_model()
    theirs, processor = transformers_side(export_smolvlm(ours, tmp_path))
    images = [[random_image(20, 30), random_image(64, 64)], [random_image(33, 8)]]
    questions = ["How many circles are there?", "What?"]
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [*[{"type": "image"}] * len(p), {"type": "text", "text": q}]}],
            add_generation_prompt=True,
        )
        for q, p in zip(questions, images, strict=True)
    ]
    inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")
    batch = prepare_prompts(ours, questions, images)
    assert inputs["input_ids"].tolist() == batch["input_ids"].tolist()
    expected = ours.generate(**batch, max_new_tokens=32).tolist()
    eos = ours.config.eos_token_id
    generated = theirs.generate(**inputs, max_new_tokens=32, pad_token_id=eos)[:, inputs["input_ids"].shape[1] :]
    assert generated.tolist() == expected


def test_written_by_transformers_again_it_still_works(tmp_path):
    """Fine-tuned there and saved there."""
    ours = own_model()
    theirs, processor = transformers_side(export_smolvlm(ours, tmp_path / "ours"))
    theirs.save_pretrained(tmp_path / "theirs")
    processor.save_pretrained(tmp_path / "theirs")
    back = VisionLanguageModel.from_pretrained(tmp_path / "theirs")
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in back.state_dict().items())
    image = random_image(50, 40)
    assert prepare_prompt(back, "What?", image)[0] == prepare_prompt(ours, "What?", image)[0]
    assert back.generate(image=image, prompt="What?") == ours.generate(image=image, prompt="What?")


@pytest.mark.parametrize("pixel_range", ["signed", "unit"])
@pytest.mark.parametrize("kind", ["pocket", "in front", "tiles"])
def test_export_to_nanovlm(tmp_path, pixel_range, kind):
    ours = own_model(
        kind="chatml" if kind == "tiles" else "pocket",
        num_prefix=kind == "in front",
        prompt_format="question_answer" if kind == "in front" else "chat",
        pixel_range=pixel_range,
        tiling=NANOVLM_TILES if kind == "tiles" else None,
    )
    back = VisionLanguageModel.from_pretrained(export_nanovlm(ours, tmp_path))
    assert back.config.pixel_range == "unit"
    back.image_processor.resample = ours.image_processor.resample  # nanoVLM's is not a setting
    for image in (random_image(50, 40), random_image(90, 20)):
        batch, batch_back = (prepare_prompts(m, ["What?"], [image]) for m in (ours, back))
        assert torch.equal(batch["input_ids"], batch_back["input_ids"])
        with torch.no_grad():
            assert max_difference(ours(**batch).logits, back(**batch_back).logits) < 1e-4
    changed = {n for n, t in back.state_dict().items() if not torch.equal(t, ours.state_dict()[n])}
    conv = "vision_encoder.patch_embedding.conv."
    assert changed == (set() if pixel_range == "unit" else {conv + "weight", conv + "bias"})


def test_what_serves_smolvlm_finds_the_decoders_class(tmp_path):
    """llama.cpp's converter chooses by text_config.architectures; the published SmolVLM names this class."""
    export_smolvlm(own_model(tiling=TILES), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["text_config"]["architectures"] == ["VLlama3ForCausalLM"]


def test_the_export_of_a_model_without_tiles_says_what_cannot_serve_it(tmp_path):
    with pytest.warns(UserWarning, match=r"such as llama\.cpp, cannot serve it"):
        export_smolvlm(own_model(), tmp_path / "plain")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_smolvlm(own_model(tiling=TILES), tmp_path / "tiles")


def test_layouts_that_the_other_side_does_not_have(tmp_path):
    with pytest.raises(ValueError, match="whole picture first"):
        export_smolvlm(own_model(tiling=NANOVLM_TILES), tmp_path)
    with pytest.raises(ValueError, match="tiles first"):
        export_nanovlm(own_model(tiling=TILES), tmp_path)
    with pytest.warns(UserWarning, match="Question: … Answer:"):
        export_nanovlm(own_model(num_prefix=True), tmp_path)
    with pytest.warns(UserWarning, match="above 128 pixels"):
        export_smolvlm(own_model(tiling=NO_UPSCALE), tmp_path)


def test_export_model_from_a_directory(tmp_path):
    ours = own_model()
    ours.save_pretrained(tmp_path / "model")
    out = export_model(tmp_path / "model", "smolvlm", tmp_path / "out", torch.bfloat16)
    weights = load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert "lm_head.weight" not in weights
    export_model(out, "nanovlm", tmp_path / "third")
    third = VisionLanguageModel.from_pretrained(tmp_path / "third")
    assert third.generate(image=random_image(8, 8), prompt="What?", max_new_tokens=3) is not None
    with pytest.raises(ValueError, match="to smolvlm or nanovlm, not to 'gguf'"):
        export_model(tmp_path / "model", "gguf", tmp_path / "x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(FileExistsError, match="not empty"):
        export_model(tmp_path / "model", "smolvlm", tmp_path / "full")
    with pytest.raises(ValueError, match="holds the model itself"):
        export_model(tmp_path / "model", "smolvlm", tmp_path / "model")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Choose another output directory"):
        export_model(tmp_path / "model", "smolvlm", tmp_path / "file" / "out")


@pytest.mark.parametrize("export", [export_smolvlm, export_nanovlm])
def test_a_model_in_channels_last_is_exported_like_any_other(export, tmp_path):
    ours = own_model()
    expected = load_file(export(ours, tmp_path / "a") / "model.safetensors")
    found = load_file(export(ours.to(memory_format=torch.channels_last), tmp_path / "b") / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_our_own_format_keeps_tiles(tmp_path):
    ours = own_model(tiling=NANOVLM_TILES)
    ours.save_pretrained(tmp_path)
    back = VisionLanguageModel.from_pretrained(find_directory(tmp_path))
    assert back.config == ours.config and back.image_processor == ours.image_processor
    assert np.array_equal(back.image_processor(random_image(90, 90)), ours.image_processor(random_image(90, 90)))
