"""Mixtures of tasks: parts by size, temperature and loss, and batches that keep to them."""

from __future__ import annotations

import json
import sys
from collections import Counter
from itertools import islice

import pytest

from nanovlm.assets import asset_path
from nanovlm.config import pocket_vlm
from nanovlm.data import digits
from nanovlm.data.chat import ChatTokenizer
from nanovlm.data.mixing import loss_weights, mixed_loader, replay_weights, task_weights
from nanovlm.data.own_data import read_own_data
from nanovlm.data.tiling import make_image_processor


def test_parts_by_size_and_temperature() -> None:
    assert task_weights([30, 90, 280]) == pytest.approx([0.075, 0.225, 0.7])
    assert task_weights([200, 1800], 2.0) == pytest.approx([0.25, 0.75])
    assert task_weights([1, 10**9], 0.01) == pytest.approx([0, 1])
    with pytest.raises(ValueError, match="more than 0"):
        task_weights([3, 0])


def test_parts_by_loss_have_a_floor() -> None:
    assert loss_weights([3.0, 1.0, 0.0], 0.1) == pytest.approx([0.625, 0.275, 0.1])
    assert loss_weights([0.0, 0.0]) == pytest.approx([0.5, 0.5])
    with pytest.raises(ValueError, match="floors"):
        loss_weights([1.0, 1.0], 0.5)


def test_the_replayed_share() -> None:
    assert replay_weights(500, [100, 300], 0.2) == pytest.approx([0.8, 0.05, 0.15])
    assert replay_weights(500, [], 0.0) == [1.0]
    with pytest.raises(ValueError, match="nothing to replay"):
        replay_weights(500, [], 0.2)


def test_batches_keep_to_the_parts(monkeypatch) -> None:
    cards = digits.drawn_scans(40)
    monkeypatch.setattr(digits, "scans", lambda: cards)
    monkeypatch.setattr(digits, "SPLITS", {"train": (0, 10), "val": (10, 40)})
    few, many, config = digits.digit_samples("train"), digits.digit_samples("val"), pocket_vlm()
    parts = (config, ChatTokenizer.from_pretrained(asset_path("pocket")), make_image_processor(config))
    batches = list(islice(mixed_loader([few, many, many], [3, 1, 0], *parts, batch_size=8), 10))
    owners = Counter(int(i) < 10 for batch in batches for i in batch["sample_indices"])
    assert owners == {True: 60, False: 20}


def test_cards_are_own_data(tmp_path, monkeypatch) -> None:
    cards = digits.drawn_scans(12)
    monkeypatch.setattr(digits, "scans", lambda: cards)
    monkeypatch.setattr(digits, "SPLITS", {"train": (0, 8), "test": (8, 12)})
    folder = digits.write_cards(tmp_path / "cards", "test")
    assert len(json.loads((folder / "metadata.jsonl").read_text().splitlines()[0])) == 3
    samples = read_own_data(folder)
    assert [sample["texts"][0]["assistant"] for sample in samples] == ["8", "9", "0", "1"]


def test_without_scikit_learn_a_sentence_and_drawn_digits(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.setattr(digits, "drawn_scans", lambda: "drawn")
    with pytest.warns(UserWarning, match="pip install scikit-learn"):
        assert digits.scans() == "drawn"
