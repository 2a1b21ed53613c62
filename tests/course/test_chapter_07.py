"""Chapter 07: its stored curves say what its prose says, and the pipelines differ in what they should, no more."""

from __future__ import annotations

import json

import pytest
import torch

from nanovlm.assets import asset_path
from nanovlm.bench.data_runs import PIPELINES, FirstTurn, loader, record
from nanovlm.data.thimble import Thimble, chance
from nanovlm.evaluation.scores import interval

STORED = json.loads(asset_path("runs/07_data_runs.json").read_text(encoding="utf-8"))


def last(name: str) -> float:
    return STORED["runs"][name][-1]["accuracy"]


def test_the_file_is_one_that_the_script_writes() -> None:
    assert list(STORED["runs"]) == list(PIPELINES)
    made = record(STORED["runs"])
    assert {**made, "machine": ""} == {**STORED, "machine": ""}


def test_the_curves_show_what_the_chapter_says() -> None:
    low, high = interval(round(last("right") * STORED["questions"]), STORED["questions"])
    blind = sum(chance("charts").values()) / len(chance("charts"))
    assert low <= last("packed, with boundaries") <= high
    for wrong in ("first turn only", "packed, no boundaries", "pictures out of step"):
        assert last(wrong) < low - 0.15, wrong
    assert last("right") > blind + 0.4


def batch(name: str, size: int = 11) -> dict:
    read, collate = PIPELINES[name]
    return next(iter(loader(read(Thimble("charts", "train", size)), collate, batch_size=size)))


def test_the_first_turn_is_the_first() -> None:
    data = Thimble("charts", "train", 3)
    assert [FirstTurn(data)[i]["texts"] for i in range(3)] == [data[i]["texts"][:1] for i in range(3)]
    assert len(FirstTurn(data)) == 3


def test_packing_differs_in_its_boundaries_alone() -> None:
    packed, leaking = batch("packed, with boundaries"), batch("packed, no boundaries")
    assert set(packed) - set(leaking) == {"document_ids"} and set(leaking) <= set(packed)
    assert all(torch.equal(packed[key], leaking[key]) for key in ("input_ids", "targets", "images"))


def test_what_is_out_of_step_are_the_images_behind_a_broken_one() -> None:
    right, wrong = batch("right"), batch("pictures out of step")
    assert torch.equal(right["input_ids"], wrong["input_ids"]) and torch.equal(right["targets"], wrong["targets"])
    # Samples 0 and 10 of these eleven cannot be read: 1 to 9 move up by one, and two blanks are left at the end.
    assert torch.equal(wrong["images"][:9], right["images"][1:10])
    assert not wrong["images"][9:].any()


def test_loaders_read_alike_each_time() -> None:
    for name in PIPELINES:
        assert torch.equal(batch(name, 4)["input_ids"], batch(name, 4)["input_ids"])


@pytest.mark.parametrize("name", list(PIPELINES))
def test_every_pipeline_supervises_the_same_answers_but_the_first_turn_fewer(name: str) -> None:
    supervised = int((batch(name, 4)["targets"] != -100).sum())
    everything = int((batch("right", 4)["targets"] != -100).sum())
    assert supervised < everything / 3 if name == "first turn only" else supervised == everything
