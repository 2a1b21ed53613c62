"""The comparison of chapter 17 is one at equal cost."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch

from nanovlm.bench import designs
from nanovlm.bench.designs import SIZES, Captions, Data, batches_of, cells, forward_flops, things_and_places
from nanovlm.bench.frozen_encoders import TwoTowers, make, recalls
from nanovlm.bench.training_runs import small_vlm
from nanovlm.designs.registry import DESIGNS


@cache
def standard_flops() -> int:
    return forward_flops("standard", small_vlm())


@pytest.mark.parametrize("name", DESIGNS)
def test_every_design_takes_the_operations_of_the_standard_one_within_5_percent(name: str) -> None:
    config = small_vlm(**SIZES.get(name, {}))
    assert config.language == small_vlm().language
    assert forward_flops(name, config) == pytest.approx(standard_flops(), rel=0.05)


def test_what_is_counted_is_what_the_training_rows_hold() -> None:
    model, _ = designs.make_design("standard", seed=0)
    batch = batches_of(model, Captions("train", 16), 16)[0]
    assert batch["input_ids"].shape[1] == model.config.num_image_tokens + designs.WORDS
    assert (batch["targets"] != designs.IGNORE).sum(dim=1).max() == designs.SUPERVISED
    assert all(len(model.tokenizer.encode(f" {word}")) == 1 for word in designs.CONTENT)
    assert {model.tokenizer.decode([i]).strip() for i in designs.content_ids(model.tokenizer)} == designs.CONTENT


def test_a_thing_counts_anywhere_and_in_its_place() -> None:
    right = "top left: red circle. top right: blue star. bottom left: nothing. bottom right: red star."
    assert cells(right) == {"top left": "red circle", "top right": "blue star", "bottom right": "red star"}
    swapped = "top left: blue star. top right: red circle. bottom left: nothing. bottom right: red star."
    twice = "top left: red star. top right: red star. bottom left: red star. bottom right: red star."
    for said, expected in ((right, (1, 1)), (swapped, (1, 1 / 3)), (twice, (1 / 3, 1 / 3)), ("a red: b.", (0, 0))):
        assert things_and_places([said], [right]) == pytest.approx(expected)


def test_recall_counts_those_that_are_more_similar_in_both_directions() -> None:
    table = torch.tensor([[0.9, 0.8, 0.0], [0.95, 0.5, 0.1], [0.2, 0.1, 0.3]])
    found = recalls(table)
    assert found["caption of a picture, first 1"] == pytest.approx(2 / 3, abs=1e-3)
    assert found["picture of a caption, first 1"] == pytest.approx(1 / 3, abs=1e-3)
    assert found["picture of a caption, first 5"] == 1


def test_runs_are_kept_and_a_frozen_encoder_stays_as_contrastive_training_left_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(designs, "HELD_OUT", 4)
    monkeypatch.setattr(designs, "forward_flops", lambda name, config: 1)
    data, made, out = Data(steps=1, batch_size=4), [], tmp_path / "runs.json"
    fresh, _ = designs.make_design("standard", seed=0)

    def run(seed: int) -> tuple:
        torch.manual_seed(0)
        model, told = make("contrastive, frozen", data, seed)
        made.append((model.vision_encoder, {name: p.clone() for name, p in model.vision_encoder.named_parameters()}))
        return model, told

    for _ in range(2):
        designs.run_all({"frozen": run}, [0], out, data)
    assert len(made) == 1, "a seed that the file holds is not run again"
    assert "recall" in json.loads(out.read_text())["frozen"]["seeds"]["0"]
    encoder, before = made[0]
    assert all(torch.equal(p, before[name]) for name, p in encoder.named_parameters())
    assert any(not torch.equal(p, before[name]) for name, p in fresh.vision_encoder.named_parameters())


def test_the_sigmoid_loss_falls_where_pairs_agree() -> None:
    towers = TwoTowers(designs.make_design("standard", seed=0)[0].vision_encoder, small_vlm())
    towers.forward = lambda images, captions: (images, captions)  # the loss alone
    pairs = torch.eye(3)
    assert towers.loss(pairs, pairs) < towers.loss(pairs, pairs.roll(1, dims=0))
