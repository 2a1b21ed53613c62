"""Own data in three formats give what the same data give in the_cauldron's schema; wrong rows are named and counted."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from nanovlm.data.own_data import read_own_data
from tests.test_loading import first, loaders
from tests.test_streaming import quiet_cache  # noqa: F401

COLOURS = ("red", "green", "blue", "white", "black", "orange", "purple", "grey")


def rows_of(kind):
    """Eight pictures with two turns each."""
    for colour in COLOURS:
        name, second = f"images/{colour}.png", f"It is {colour}."
        turns = [("Which colour?", colour), ("Say it in a sentence.", second)]
        if kind == "llava":
            talk = [{"from": who, "value": text} for q, a in turns for who, text in (("human", q), ("gpt", a))]
            talk[0]["value"] = "<image>\n" + talk[0]["value"]
            yield {"id": colour, "image": name, "conversations": talk}
        elif kind == "chat":
            messages = [{"role": w, "content": text} for q, a in turns for w, text in (("user", q), ("assistant", a))]
            question = {"type": "text", "text": messages[0]["content"]}
            messages[0]["content"] = [{"type": "image", "image": name}, question]
            yield {"messages": messages}
        else:
            talk = [{"role": w, "content": text} for q, a in turns for w, text in (("user", q), ("assistant", a))]
            yield {"file_name": name, "messages": talk}


def write(folder, kind, rows=None):
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for colour in COLOURS:
        Image.new("RGB", (20, 20), colour).save(folder / "images" / f"{colour}.png")
    rows = list(rows_of(kind)) if rows is None else rows
    if kind == "folder":
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
        return folder
    file = folder / f"{kind}.json"
    file.write_text(json.dumps(rows) if kind == "llava" else "\n".join(map(json.dumps, rows)))
    return file


def cauldron(folder):
    import datasets

    text = {name: datasets.Value("string") for name in ("user", "assistant")}
    features = datasets.Features({"images": [datasets.Image()], "texts": [text]})
    (folder / "all").mkdir(parents=True)
    rows = [
        {
            "images": [{"bytes": (folder.parent / "own" / "images" / f"{c}.png").read_bytes(), "path": None}],
            "texts": [
                {"user": "Which colour?", "assistant": c},
                {"user": "Say it in a sentence.", "assistant": f"It is {c}."},
            ],
        }
        for c in COLOURS
    ]
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "all" / "train.parquet")
    return folder


@pytest.mark.parametrize("kind", ["folder", "llava", "chat"])
def test_the_same_batches_as_in_the_cauldrons_schema(kind, tmp_path):
    own, _ = loaders(dataset_path=str(write(tmp_path / "own", kind)), val_ratio=0.2)
    known, _ = loaders(dataset_path=str(cauldron(tmp_path / "known")), dataset_names=("all",), val_ratio=0.2)
    for a, b in zip(first(own, 3), first(known, 3), strict=True):
        assert a["sample_indices"] == b["sample_indices"]
        assert all(torch.equal(a[key], b[key]) for key in ("input_ids", "targets", "images"))


WRONG = [
    (
        {"image": "gone.png", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        "no pict",
    ),
    ({"image": "images/red.png"}, "it has none of conversations, messages"),
    ({"conversations": [{"from": "human", "value": "q"}]}, "do not alternate"),
    ({"conversations": [{"from": "robot", "value": "q"}]}, "message 0 has no from that is known"),
    ({"question": "q", "answer": " "}, "turn 0 has no answer"),
    ({"file_name": "http://a.b/c.png", "text": "a"}, "is a link: download it"),
    ({"messages": []}, "its conversation is empty"),
    (7, "it is a int, not an object"),
]


@pytest.mark.parametrize(("row", "sentence"), WRONG)
def test_a_wrong_row_is_left_out_and_named(row, sentence, tmp_path):
    good = list(rows_of("llava"))
    file = write(tmp_path, "llava", [good[0], row, *good[1:]])
    with pytest.warns(UserWarning, match=f"1 of 9 rows of .*llava.json cannot be used .* row 1: .*{sentence}"):
        assert len(read_own_data(file)) == 8
    with pytest.raises(ValueError, match=f"1 of 1 rows .*{sentence}"):
        read_own_data(write(tmp_path, "llava", [row]))


def test_captions_and_lines_that_are_no_json(tmp_path):
    folder = write(tmp_path, "folder", [{"file_name": "images/red.png", "text": "a red square"}])
    (sample,) = read_own_data(folder)
    assert sample["texts"] == [{"user": "Describe the picture.", "assistant": "a red square"}]
    with (folder / "metadata.jsonl").open("a") as file:
        file.write("{torn\n")
    with pytest.warns(UserWarning, match=r"1 of 2 rows .* line 2: it is not valid JSON"):
        read_own_data(folder)


def test_nothing_there_is_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        loaders(dataset_path=str(tmp_path / "none.json"))
    (tmp_path / "images").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no parquet files, nor a metadata\.jsonl"):
        loaders(dataset_path=str(tmp_path / "images"), dataset_names=("all",))
