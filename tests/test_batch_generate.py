"""Many pictures, one question: order kept, nothing lost, less work than one by one."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nanovlm import VisionLanguageModel
from nanovlm.config import LMConfig, ProjectorConfig, TilingConfig, ViTConfig, VLMConfig
from nanovlm.data.tiling import make_image_processor, tile_tokens
from nanovlm.inference.many_images import (
    find_images,
    for_inference,
    generate_batch,
    measure_speed_up,
    write_answers,
)
from tests.tiny import loud
from tests.tiny_tokenizer import tiny_tokenizer


def model_of(tiling: TilingConfig | None = None, num_prefix: bool = False, width: int = 48) -> VisionLanguageModel:
    tokenizer = tiny_tokenizer("pocket")
    if tiling is not None:
        tokenizer.add_tokens(tile_tokens(tiling, 32))
    config = VLMConfig(
        ViTConfig(width, 2 * width, 2, 4, 32, 8),
        ProjectorConfig(width, width, 2),
        LMConfig(width, 2 * width, 2, 6, 2, tokenizer.vocab_size, 400, 10_000.0, 1e-5, tie_weights=False),
        image_token_id=None if num_prefix else tokenizer.image_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tiling=tiling,
    )
    model = loud(VisionLanguageModel(config))
    model.tokenizer, model.image_processor = tokenizer, make_image_processor(config)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 pictures of many sizes, four of them broken in different ways, and a file that is none."""
    path, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(30):
        width, height = random.integers(1, 120, 2)
        pixels = random.integers(0, 256, (height, width, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(path / f"{i:02}.{'png' if i % 2 else 'jpg'}")
    (path / "03.png").write_bytes((path / "03.png").read_bytes()[:60])
    (path / "10.jpg").write_bytes(b"")
    (path / "17.png").write_text("not a picture")
    (path / "20.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(50))
    (path / "notes.txt").write_text("sizes and shapes")
    return path


BROKEN = {"03.png", "10.jpg", "17.png", "20.jpg"}
PROMPT = "What colour is the circle?"
pytestmark = pytest.mark.filterwarnings("ignore:1 of the 31 files")  # notes.txt


@pytest.mark.parametrize("tiling", [None, TilingConfig(max_side=96)], ids=["squashed", "tiles"])
def test_order_is_kept_and_nothing_is_lost(folder, tiling):
    model = model_of(tiling)
    with pytest.warns(UserWarning, match=r"1 of the 31 files in .* are left out, .* \(\.txt\)"):
        paths = find_images(folder)
    whole = [path for path in paths if path.name not in BROKEN]
    alone = {str(path): model.generate(image=path, prompt=PROMPT, max_new_tokens=5) for path in whole}
    assert len(set(alone.values())) > 3
    for batch_size in (1, 7, 64):
        rows = list(generate_batch(model, paths, PROMPT, batch_size=batch_size, max_new_tokens=5))
        assert [Path(row["image"]) for row in rows] == paths
        assert {str(row["image"]): row["answer"] for row in rows if "error" not in row} == alone, batch_size
        for row in rows:
            assert "error" not in row or Path(row["image"]).name in row["error"]


def test_a_image_without_a_suffix_is_asked_about_too(tmp_path):
    for name in ("photo", "other.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name, format="png")
    (tmp_path / ".hidden").write_text("what a system leaves behind")
    assert [path.name for path in find_images(tmp_path)] == ["other.png", "photo"]


def test_batches_hold_equal_work(folder, monkeypatch):
    model, seen = model_of(TilingConfig(max_side=96)), []
    embed = model.embed

    def spy(ids, images, real):
        seen.append((len(ids), len(images), real.float().mean().item()))
        return embed(ids, images, real)

    monkeypatch.setattr(model, "embed", spy)
    list(generate_batch(model, find_images(folder), PROMPT, batch_size=20, max_new_tokens=2))
    rows, tiles, real = zip(*seen, strict=True)
    assert sum(rows) == 26 and max(tiles) <= 20
    assert min(tiles[:-1]) > 10, "a batch that is not the last should be nearly full"
    assert min(real) > 0.6, "pictures of unlike length stand in one batch"


@pytest.mark.parametrize("options", [{"temperature": 1.0, "seed": 3}, {"num_generations": 2, "temperature": 1.0}])
def test_options_reach_generation(folder, options):
    rows = list(generate_batch(model_of(), find_images(folder)[:3], PROMPT, max_new_tokens=4, **options))
    number = options.get("num_generations", 1)
    assert all(isinstance(row["answer"], str if number == 1 else list) for row in rows)
    assert number == 1 or all(len(row["answer"]) == 2 for row in rows)
    if "seed" in options:
        again = list(generate_batch(model_of(), find_images(folder)[:3], PROMPT, max_new_tokens=4, **options))
        assert again == rows


def test_models_with_images_in_front(folder):
    rows = list(generate_batch(model_of(num_prefix=True), find_images(folder)[:4], PROMPT, max_new_tokens=3))
    assert sum("answer" in row for row in rows) == 3


def test_a_image_with_too_many_tiles_is_skipped_alone(tmp_path):
    model = model_of(TilingConfig(max_side=320))  # 10 x 10 tiles need more than 400 positions
    Image.new("RGB", (320, 320)).save(tmp_path / "big.png")
    Image.new("RGB", (30, 30)).save(tmp_path / "small.png")
    big, small = generate_batch(model, find_images(tmp_path), PROMPT, max_new_tokens=3)
    assert "positions with its answer; the model has 400" in big["error"]
    assert "answer" in small


def test_bad_calls_are_one_error_not_one_a_image(folder):
    model, paths = model_of(), find_images(folder)
    with pytest.raises(ValueError, match="prompt is empty"):
        generate_batch(model, paths, "  ")  # before anyone opens a file for its answers
    for options, kind, words in (
        ({"prompt": "x", "batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"prompt": "x", "temperature": -1.0}, ValueError, "temperature"),
        ({"prompt": "x", "surprise": 1}, TypeError, "surprise"),
    ):
        with pytest.raises(kind, match=words):
            list(generate_batch(model, paths, **options))
    model.tokenizer = None
    with pytest.raises(ValueError, match="no tokenizer"):
        list(generate_batch(model, paths, PROMPT))
    assert list(generate_batch(model_of(), [], PROMPT)) == []


def test_answers_come_before_the_last_image_is_read(folder, monkeypatch):
    model = model_of()
    rows = generate_batch(model, find_images(folder), PROMPT, batch_size=2, max_new_tokens=2)
    next(rows)
    opened = []
    open_image = model.image_processor.open
    monkeypatch.setattr(model.image_processor, "open", lambda image: opened.append(image) or open_image(image))
    rest = list(rows)
    assert len(rest) == 29 and len(opened) >= 20


def test_json_lines(folder):
    out, reports = io.StringIO(), []
    rows = generate_batch(model_of(), find_images(folder), PROMPT, max_new_tokens=2)
    counts = write_answers(rows, out, reports.append)
    assert (counts.answered, counts.skipped) == (26, 4)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [Path(line["image"]).name for line in lines] == [path.name for path in find_images(folder)]
    assert len(reports) == 4
    for report in reports:  # it names the picture, once
        assert report.startswith("skipped ") and report.count(str(folder)) == 1


def test_a_file_name_that_is_no_text_stops_nothing(tmp_path):
    rows = [{"image": os.fsdecode(b"\xff.png"), "answer": "é"}, {"image": "b.png", "answer": "é"}]
    with (tmp_path / "answers.jsonl").open("w", encoding="utf-8") as out:
        assert write_answers(rows, out, print).answered == 2
    lines = (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert list(map(json.loads, lines)) == rows and "é" in lines[1]


def test_where_images_come_from(folder):
    assert len(find_images(folder)) == 30  # notes.txt is no picture
    assert len(find_images(f"{folder}/*.png")) == 15
    assert len(find_images(f"{folder}/**/0*.*")) == 10
    assert find_images(folder / "00.jpg") == [folder / "00.jpg"]
    for nothing in (folder / "none", f"{folder}/*.gif", folder.parent / "elsewhere"):
        with pytest.raises(FileNotFoundError, match="No picture found"):
            find_images(nothing)


def test_precision_by_device():
    model = for_inference(model_of(), torch.device("cpu"))
    assert next(model.parameters()).dtype == torch.float32
    if torch.cuda.is_available():
        model = for_inference(model)
        assert next(model.parameters()).dtype in (torch.bfloat16, torch.float16)
        assert next(model.parameters()).is_cuda


def test_batches_call_the_model_less_often_than_one_by_one(tmp_path, monkeypatch):
    """How much faster that is depends on machine and answers (LOG.md); that it is fewer calls does not."""
    for i in range(64):
        Image.new("RGB", (40, 40), (4 * i, 0, 0)).save(tmp_path / f"{i:02}.png")
    model, paths, calls = model_of(), find_images(tmp_path), []
    model.decoder.register_forward_hook(lambda *_: calls.append(1))

    def calls_with(batch_size: int) -> int:
        calls.clear()
        assert len(list(generate_batch(model, paths, PROMPT, batch_size=batch_size, max_new_tokens=8))) == 64
        return len(calls)

    assert calls_with(32) <= 2 * 8
    assert calls_with(1) >= 64


def test_the_speed_up_is_the_ratio_of_two_times(folder):
    result = measure_speed_up(model_of(), find_images(folder)[:3], PROMPT, batch_size=2, max_new_tokens=2)
    assert result["speed_up"] == result["one_by_one"] / result["batched"] > 0


def test_what_is_drawn_does_not_depend_on_the_batch_size(folder):
    model, paths = model_of(), sorted(folder.glob("*.png"))[:9]
    options = {"max_new_tokens": 4, "temperature": 3.0, "seed": 11, "num_generations": 2}
    answers = [
        [row.get("answer") for row in generate_batch(model, paths, PROMPT, batch_size=n, **options)] for n in (1, 4)
    ]
    assert answers[0] == answers[1]
    assert len({text for pair in answers[0] if pair for text in pair}) > 3


def test_every_image_gets_one_of_the_choices(folder):
    rows = list(generate_batch(model_of(), sorted(folder.glob("*.png")), PROMPT, batch_size=4, choices=["red", "no"]))
    assert {row["answer"] for row in rows if "answer" in row} <= {"red", "no"}
