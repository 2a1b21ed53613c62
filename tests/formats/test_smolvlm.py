"""SmolVLM and Idefics3 from transformers' files: the same pixels, ids, logits and greedy tokens as transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nanovlm import VisionLanguageModel
from nanovlm.config import TilingConfig
from nanovlm.data.tiling import TiledImageProcessor
from nanovlm.inference.prompts import prepare_prompts
from nanovlm.weights.export import export_smolvlm
from nanovlm.weights.format_smolvlm import patch_places
from tests.formats import oracle
from tests.tiny import max_difference
from tests.transformers_version import OLD_SMOLVLM, WHY_OLD

QUESTIONS = ["What colour is the circle?", "How many?", "Describe the picture.\nIn one line."]
SHAPES = [
    (1, 1),
    (4000, 300),
    (300, 4000),
    (64, 64),
    (33, 100),
    (512, 512),
    (513, 512),
    (700, 699),
    (17, 2),
    (1023, 77),
]


def random_image(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Noise over a gradient: a shift by one pixel changes all of it."""
    noise = np.random.default_rng(width * 10_000 + height).integers(0, 128, (height, width, 4))
    noise[..., 0] += np.linspace(0, 127, width, dtype=np.int64)[None, :]
    return Image.fromarray(noise.astype(np.uint8), "RGBA").convert(mode)


def their_prompt(processor, question: str, num_images: int) -> str:
    content = [*[{"type": "image"}] * num_images, {"type": "text", "text": question}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def both(tmp_path: Path, grid: int, factor: int, tied: bool, kind: str = "smolvlm", **image_settings):
    """transformers' model and processor, and ours from their files."""
    theirs = oracle.model(grid, factor, tied, kind)
    processor = oracle.processor(4 * grid, (grid // factor) ** 2, **image_settings)
    return theirs, processor, VisionLanguageModel.from_pretrained(oracle.save(tmp_path, theirs, processor))


def compare(theirs, processor, ours: VisionLanguageModel, questions: list[str], images: list[list]) -> set[int]:
    """Ids, logits and 32 greedy tokens; returns which tokens there were, to see that they say something."""
    prompts = [their_prompt(processor, q, len(p)) for q, p in zip(questions, images, strict=True)]
    inputs = processor(text=prompts, images=images, padding=True, padding_side="left", return_tensors="pt")
    batch = prepare_prompts(ours, questions, images)
    real = inputs["attention_mask"].bool()
    assert torch.equal(batch["attention_mask"].bool(), real)
    assert torch.equal(batch["input_ids"][real], inputs["input_ids"][real])
    with torch.no_grad():
        expected = theirs(**inputs).logits
        assert expected.std() > 0.5, "the weights are too quiet for the comparison to mean anything"
        assert max_difference(ours(**batch).logits[real], expected[real]) < 1e-4
    start = inputs["input_ids"].shape[1]
    eos = ours.config.eos_token_id
    greedy = theirs.generate(**inputs, max_new_tokens=32, do_sample=False, eos_token_id=eos, pad_token_id=eos)
    tokens = ours.generate(**batch, max_new_tokens=32)
    assert tokens.tolist() == greedy[:, start:].tolist()
    return set(tokens.flatten().tolist())


MODELS = [(8, 2, False, "smolvlm"), (9, 3, True, "smolvlm"), (8, 4, False, "idefics3"), (8, 2, True, "idefics3")]


@pytest.mark.parametrize(
    ("grid", "factor", "tied", "kind", "split"),
    [
        *((*model, True) for model in MODELS),
        (*MODELS[0], False),
        *(pytest.param(*model, False, marks=pytest.mark.long) for model in MODELS[1:]),
    ],
)
def test_logits_and_greedy_tokens_are_those_of_transformers(tmp_path, grid, factor, tied, kind, split):
    theirs, processor, ours = both(tmp_path, grid, factor, tied, kind, do_image_splitting=split)
    said = compare(theirs, processor, ours, QUESTIONS[:1], [[random_image(50, 30)]])
    three = [random_image(90, 20), random_image(20, 90), random_image(64, 64)]
    said |= compare(theirs, processor, ours, QUESTIONS, [three, [random_image(70, 40)], [random_image(5, 5)]])  # padded
    assert len(said) > 1, "one token over and over compares little"


@pytest.mark.parametrize("size", SHAPES, ids=str)
@pytest.mark.parametrize(
    "mode", ["RGB", pytest.param("RGBA", marks=pytest.mark.skipif(OLD_SMOLVLM, reason=WHY_OLD)), "L"]
)
def test_pixels_and_ids_are_those_of_transformers(size, mode):
    tile = 64  # an eighth of SmolVLM-256M's, to be quick; the rules do not depend on it
    theirs = oracle.processor(tile, 4)
    image = random_image(*size, mode)
    expected = theirs(text=their_prompt(theirs, "What?", 1), images=[image], return_tensors="pt")
    ours = TiledImageProcessor(tile, resample="lanczos", tiling=TilingConfig(max_side=4 * tile, upscale=True))
    assert torch.equal(ours(image), expected["pixel_values"][0])
    assert ours.num_tiles(image.size) == expected["pixel_values"].shape[1]
    tokenizer = oracle.chat_tokenizer()
    ids, _ = tokenizer.encode_chat(
        [{"role": "user", "content": "What?"}],
        num_images=1,
        add_generation_prompt=True,
        num_image_tokens=4,
        image_texts=ours.image_texts([image], "<image>", 4),
    )
    assert ids == expected["input_ids"][0].tolist()


@pytest.mark.parametrize("size", SHAPES, ids=str)
def test_smolvlm2_has_the_same_rules(size):
    """Its processor class needs num2words and torchvision, for videos; what it does to pictures needs neither."""
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
    from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

    tile, image = 64, random_image(*size)
    theirs = SmolVLMImageProcessorPil(
        size={"longest_edge": 4 * tile}, max_image_size={"longest_edge": tile}, return_row_col_info=True
    )([image], return_tensors="pt")
    ours = TiledImageProcessor(tile, tiling=TilingConfig(max_side=4 * tile, upscale=True))
    assert torch.equal(ours(image), theirs["pixel_values"][0])
    grid = (theirs["rows"][0][0], theirs["cols"][0][0])
    expected = get_image_prompt_string(*grid, 4, "<fake_token_around_image>", "<image>", "<global-img>")
    assert ours.image_texts([image], "<image>", 4) == [expected]


@pytest.mark.parametrize("settings", [{"do_image_splitting": False}, {"do_resize": False}], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (100, 33), (200, 400)], ids=str)
def test_other_settings_of_the_processor(tmp_path, settings, size):
    _, processor, ours = both(tmp_path, 8, 4, True, **settings)
    image = random_image(*size)
    expected = processor(text=their_prompt(processor, "What?", 1), images=[image], return_tensors="pt")
    batch = prepare_prompts(ours, ["What?"], [image])
    assert torch.equal(batch["images"], expected["pixel_values"][0])
    assert torch.equal(batch["input_ids"], expected["input_ids"])


def test_real_sizes_of_smolvlm_256m():
    """512-pixel tiles, longest edge 2048: by hand from the rule."""
    ours = TiledImageProcessor(512, tiling=TilingConfig(max_side=2048, upscale=True))
    grids = {(64, 64): (4, 4), (4000, 300): (1, 4), (300, 4000): (4, 1), (1920, 1080): (3, 4), (1, 1): (4, 4)}
    assert {size: ours.grid(size) for size in grids} == grids
    assert [ours.num_tiles(size) for size in grids] == [17, 5, 5, 13, 17]


def test_sharded_files(tmp_path):
    theirs, processor, ours = both(tmp_path / "one", 8, 2, False)
    sharded = oracle.save(tmp_path / "sharded", theirs, processor, max_shard_size="50KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    for name, tensor in VisionLanguageModel.from_pretrained(sharded).state_dict().items():
        assert torch.equal(tensor, ours.state_dict()[name])


def test_files_of_transformers_4(tmp_path):
    """preprocessor_config.json, rope_theta, the class in processor_config.json, chat_template.json."""
    _, _, ours = both(tmp_path, 8, 2, True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["rope_theta"] = config["text_config"].pop("rope_parameters")["rope_theta"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    settings = json.loads((tmp_path / "processor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings.pop("image_processor")))
    (tmp_path / "processor_config.json").write_text(json.dumps(settings))
    template = (tmp_path / "chat_template.jinja").read_text()
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    again = VisionLanguageModel.from_pretrained(tmp_path)
    assert again.config == ours.config
    assert again.image_processor == ours.image_processor
    args = (["What?"], [random_image(40, 40)])
    assert torch.equal(prepare_prompts(again, *args)["input_ids"], prepare_prompts(ours, *args)["input_ids"])


def test_bfloat16_weights_are_read(tmp_path):
    theirs, processor, _ = both(tmp_path / "float32", 8, 2, False)
    ours = VisionLanguageModel.from_pretrained(oracle.save(tmp_path / "half", theirs.bfloat16(), processor))
    assert ours.projector.proj.weight.dtype == torch.float32
    assert torch.equal(ours.projector.proj.weight, theirs.model.connector.modality_projection.proj.weight.float())
    half = VisionLanguageModel.from_pretrained(tmp_path / "half", torch.bfloat16)
    assert half.projector.proj.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("grid", [25, 40])
def test_grids_in_which_transformers_misplaces_patches(tmp_path, grid):
    places = patch_places(grid)
    assert not torch.equal(places, torch.arange(grid**2)), "transformers has mended it: this can go"
    theirs = oracle.model(grid, 5, True)
    ours = VisionLanguageModel.from_pretrained(oracle.save(tmp_path / "theirs", theirs))
    images, ids = torch.rand(1, 3, 4 * grid, 4 * grid), torch.full((1, ours.config.num_image_tokens + 3), 7)
    ids[0, : ours.config.num_image_tokens] = ours.config.image_token_id
    with torch.no_grad():
        assert max_difference(ours(ids, images).logits, theirs(ids, pixel_values=images[:, None]).logits) < 1e-4
    with pytest.warns(UserWarning, match="without a tokenizer"):
        back = VisionLanguageModel.from_pretrained(export_smolvlm(ours, tmp_path / "back"))
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in back.state_dict().items())


def test_patch_places_are_plain_where_published_models_are():
    for grid in (8, 14, 16, 24, 26, 27, 28, 32):
        assert torch.equal(patch_places(grid), torch.arange(grid**2))


def test_a_image_that_is_no_multiple_of_the_patch(tmp_path):
    """As in SmolVLM 2.2B, where 384 pixels are 27 patches of 14: the rest at the edge is left out."""
    theirs = oracle.model(9, 3, False, patch_size=4)
    theirs.config.vision_config.image_size = 38
    theirs = type(theirs)(theirs.config).eval()
    ours = VisionLanguageModel.from_pretrained(oracle.save(tmp_path, theirs))
    assert ours.config.vision.grid_size == 9
    images, ids = torch.rand(1, 3, 38, 38), torch.full((1, 12), 7)
    ids[0, :9] = ours.config.image_token_id
    with torch.no_grad():
        assert max_difference(ours(ids, images).logits, theirs(ids, pixel_values=images[:, None]).logits) < 1e-4


def test_generate_in_words(tmp_path):
    theirs, processor, ours = both(tmp_path, 8, 4, True)
    image = random_image(60, 40)
    inputs = processor(text=their_prompt(processor, QUESTIONS[0], 1), images=[image], return_tensors="pt")
    eos = ours.config.eos_token_id
    expected = theirs.generate(**inputs, max_new_tokens=20, do_sample=False, eos_token_id=eos, pad_token_id=eos)
    answer = processor.decode(expected[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert answer
    assert ours.generate(image=image, prompt=QUESTIONS[0], max_new_tokens=20) == answer


def test_any_of_several_end_tokens_ends_an_answer(tmp_path):
    """Llama-3's decoders list two or three of them; the end of a turn in the template is one more."""
    theirs, processor, ours = both(tmp_path / "one", 8, 4, True)
    image, single = random_image(60, 40), ours.config.eos_token_id
    prompt = prepare_prompts(ours, [QUESTIONS[0]], [image])
    written = ours.generate(**prompt, max_new_tokens=12)[0].tolist()
    stop = written[len(written) // 2]
    assert len(written) == 12 > written.index(stop) + 1
    where = oracle.save(tmp_path / "several", theirs, processor)
    (where / "generation_config.json").write_text(json.dumps({"eos_token_id": [single, stop]}))
    several = VisionLanguageModel.from_pretrained(where)
    assert several.generate(**prompt, max_new_tokens=12)[0].tolist() == written[: written.index(stop) + 1]
    for name, save in (("own", several.save_pretrained), ("smolvlm", lambda out: export_smolvlm(several, out))):
        save(tmp_path / name)
        again = VisionLanguageModel.from_pretrained(tmp_path / name)
        assert {again.config.eos_token_id, *again.config.stop_token_ids} == {single, stop}


def test_an_end_token_outside_the_vocabulary_is_refused(tmp_path):
    theirs = oracle.model(8, 4, True, "smolvlm")
    where = oracle.save(tmp_path, theirs, oracle.processor(32, 4))
    (where / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 10**6]}))
    with pytest.raises(ValueError, match=r"stop_token_ids .* must be ids of the vocabulary"):
        VisionLanguageModel.from_pretrained(where)
