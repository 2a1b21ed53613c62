"""Pictures in tiles: every pixel once, in its place, and as many image tokens as tiles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nanovlm.config import TilingConfig, VLMConfig, pocket_vlm
from nanovlm.data.chat import ChatTokenizer
from nanovlm.data.datasets import VQADataset
from nanovlm.data.processors import ImageProcessor
from nanovlm.data.tiling import TiledImageProcessor, load_image_processor, make_image_processor, tile_tokens
from tests.tiny_tokenizer import tiny_tokenizer

TILE = 16
sizes = st.tuples(st.integers(1, 300), st.integers(1, 300))
tilings = st.builds(
    TilingConfig,
    layout=st.sampled_from(["smolvlm", "nanovlm"]),
    max_side=st.sampled_from([16, 32, 64, 96]),
    upscale=st.booleans(),
)


def random_image(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width + 1000 * height).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


@given(sizes, tilings)
def test_as_many_tiles_as_the_grid_and_the_text_say(size, tiling):
    processor = TiledImageProcessor(TILE, tiling=tiling)
    rows, columns = processor.grid(size)
    image = random_image(*size)
    tiles = processor(image)
    assert tiles.shape == (rows * columns + (rows * columns > 1), 3, TILE, TILE)
    assert len(tiles) == processor.num_tiles(size)
    assert max(rows, columns) <= tiling.max_side / TILE
    (text,) = processor.image_texts([image], "<i>", 5)
    assert text.count("<i>") == 5 * len(tiles)
    assert text.count("<row_") == (rows * columns if rows * columns > 1 else 0)
    for token in [word + ">" for word in text.replace("<i>", "").replace("\n", "").split(">") if word]:
        assert token in tile_tokens(tiling, TILE)


@given(sizes, tilings)
def test_tiles_put_together_are_the_image(size, tiling):
    processor = TiledImageProcessor(TILE, tiling=tiling)
    rows, columns = processor.grid(size)
    image = random_image(*size)
    tiles = processor(image)
    if rows * columns > 1:
        tiles = tiles[:-1] if tiling.layout == "smolvlm" else tiles[1:]
    together = torch.cat([torch.cat(list(row), dim=2) for row in tiles.split(columns)], dim=1)
    for size in processor._sizes(image.size):
        image = image.resize(size, Image.Resampling[processor.resample.upper()])
    expected = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    assert torch.equal(((together + 1) * 127.5).round().byte(), expected)


@given(sizes)
def test_our_default_never_blows_up_a_small_image(size):
    """64 x 64 pixels are one tile, and no picture gets more tiles than it has pixels for."""
    processor = TiledImageProcessor(64, tiling=TilingConfig(max_side=256))
    rows, columns = processor.grid(size)
    longest, shortest = max(size), min(size)
    assert max(rows, columns) == min(math.ceil(longest / 64), 4)
    if longest <= 64:
        assert processor.num_tiles(size) == 1
    enlarged = max(rows, columns) * 64 / longest  # by the rest of the longer side's last tile, no more
    assert min(rows, columns) <= math.ceil(shortest * enlarged / 64)


def test_smolvlm_blows_it_up():
    """Which is why our default is another."""
    assert TiledImageProcessor(512, tiling=TilingConfig(max_side=2048, upscale=True)).num_tiles((64, 64)) == 17
    assert TiledImageProcessor(512, tiling=TilingConfig(max_side=2048)).num_tiles((64, 64)) == 1


@pytest.mark.parametrize("layout", ["smolvlm", "nanovlm"])
def test_the_view_of_the_whole_is_where_the_layout_wants_it(layout):
    processor = TiledImageProcessor(TILE, tiling=TilingConfig(layout, max_side=32))
    image = Image.new("RGB", (32, 16), "black")
    image.paste("white", (16, 0, 32, 16))
    tiles = processor(image).mean(dim=(1, 2, 3))
    assert tiles.tolist() == pytest.approx([-1, 1, 0] if layout == "smolvlm" else [0, -1, 1], abs=0.05)


def test_several_images_stand_in_order():
    processor = TiledImageProcessor(TILE, tiling=TilingConfig(max_side=64))
    images = [random_image(64, 20), random_image(5, 5), random_image(30, 64)]
    assert torch.equal(processor(images), torch.cat([processor(image) for image in images]))
    texts = processor.image_texts(images, "<i>", 1)
    assert texts == [processor.image_texts([image], "<i>", 1)[0] for image in images]
    assert processor([]).shape == (0, 3, TILE, TILE)


@pytest.mark.parametrize("split", [True, False])
def test_one_view_when_not_split(split):
    processor = TiledImageProcessor(TILE, tiling=TilingConfig(max_side=64, split=split))
    assert processor.num_tiles((64, 64)) == (17 if split else 1)
    assert ("<row_1_col_1>" in tile_tokens(processor.tiling, TILE)) == split


def test_settings_there_and_back(tmp_path):
    tiled = TiledImageProcessor(TILE, "unit", "bilinear", TilingConfig("nanovlm", 48, upscale=True))
    tiled.save_pretrained(tmp_path / "tiled")
    assert load_image_processor(tmp_path / "tiled") == tiled
    plain = ImageProcessor(TILE)
    plain.save_pretrained(tmp_path / "plain")
    assert load_image_processor(tmp_path / "plain") == plain != tiled
    assert type(load_image_processor(tmp_path / "plain")) is ImageProcessor
    assert repr(tiled).startswith("TiledImageProcessor(")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layout": "grid"}, "smolvlm.*nanovlm.*grid"),
        ({"max_side": None, "upscale": True}, "upscale needs max_side"),
        ({"max_side": 0}, "max_side must be at least 1"),
        ({"max_side": 5000}, "4096"),
        ({"global_view": False}, "smolvlm layout always shows the view"),
        ({"layout": "nanovlm", "split": False, "global_view": False}, "nothing of the picture"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(ValueError, match=words):
        TilingConfig(**settings)


def test_settings_that_do_not_go_together():
    with pytest.raises(ValueError, match="max_side 40 is not a multiple of the tile"):
        TiledImageProcessor(TILE, tiling=TilingConfig("nanovlm", 40))
    with pytest.raises(ValueError, match="set image_token_id"):
        VLMConfig(tiling=TilingConfig())


def tiled_pocket() -> tuple[VLMConfig, ChatTokenizer]:
    config, tokenizer = pocket_vlm(), tiny_tokenizer("pocket")
    config.tiling = TilingConfig(max_side=256)
    tokenizer.add_tokens(tile_tokens(config.tiling, config.vision.image_size))
    config.image_token_id = tokenizer.image_token_id
    return VLMConfig.from_dict(config.to_dict()), tokenizer


def test_training_samples_are_cut_as_prompts_are():
    config, tokenizer = tiled_pocket()
    assert config.tiling == TilingConfig(max_side=256)
    texts = [{"user": "What?", "assistant": "red", "source": "x"}]
    samples = [{"images": [random_image(128, 64), random_image(9, 9)], "texts": texts}, {"images": [], "texts": texts}]
    dataset = VQADataset(samples, tokenizer, make_image_processor(config), config)
    item = dataset[0]
    assert item["images"].shape == (3 + 1, 3, 64, 64)
    ids = item["input_ids"].tolist()
    assert ids.count(tokenizer.image_token_id) == 4 * config.num_image_tokens
    assert tokenizer.decode(ids, skip_special_tokens=False).count("<row_1_col_2>") == 1
    assert tokenizer.decode(item["targets"][item["targets"] >= 0]) == "red"
    assert dataset[1]["images"].shape == (0, 3, 64, 64)


def test_what_a_user_types_is_no_tile():
    config, tokenizer = tiled_pocket()
    processor, image = make_image_processor(config), random_image(128, 64)
    texts = processor.image_texts([image], tokenizer.image_token, config.num_image_tokens)
    typed = "<row_1_col_1><fake_token_around_image><|image|>"
    plain, with_tokens = (tokenizer.encode_prompt(t, 1, config, texts) for t in ("What?", typed + "What?"))
    for token in ("<row_1_col_1>", "<fake_token_around_image>", "<|image|>"):
        number = tokenizer.tokenizer.token_to_id(token)
        assert plain.count(number) == with_tokens.count(number) > 0
    with pytest.raises(ValueError, match="1 pictures need as many image_texts; got 2"):
        tokenizer.encode_prompt("What?", 1, config, texts * 2)
