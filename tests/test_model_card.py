"""The shipped model is what its card says: the card comes from its log and scores, and the scores can be had again."""

from __future__ import annotations

import json

import pytest

from nanovlm.assets import asset_path
from nanovlm.data.thimble import SUBSETS, Thimble
from nanovlm.evaluate import evaluate
from nanovlm.model_card import CARD, FIRST_LOG, LOG, RESULTS, command, read_log, release, write_card
from nanovlm.models.vision_language_model import VisionLanguageModel

MB = 1_000_000


@pytest.fixture(scope="module")
def pocket():
    return asset_path("pocket")


@pytest.fixture(scope="module")
def results(pocket):
    return json.loads((pocket / RESULTS).read_text(encoding="utf-8"))


def test_the_card_is_made_from_the_log_and_the_scores(pocket, results):
    card = write_card(results, read_log(pocket / LOG), read_log(pocket / FIRST_LOG))
    assert (pocket / CARD).read_text(encoding="utf-8") == card


def test_the_log_and_the_scores_are_of_one_run(pocket, results):
    log = read_log(pocket / LOG)
    assert log[-1]["step"] == results["step"] == results["recipe"]["max_steps"]
    assert min(row["val_loss"] for row in log if "val_loss" in row) == results["best_val_loss"]
    assert read_log(pocket / FIRST_LOG)[-1]["step"] == results["started_from"]["step"]


def test_the_commands_name_what_differs_from_the_preset(results):
    names = "shapes shapes charts glyphs glyphs"
    before = results["started_from"]
    assert command(before["recipe"]).startswith(f"nanovlm train --preset pocket --dataset-names {names} ")
    second = command(results["recipe"], before["model"])
    assert second.startswith(f"nanovlm train --preset pocket --model {before['model']} --dataset-names {names} ")


def test_the_whole_directory_is_at_most_8_mb(pocket):
    assert sum(file.stat().st_size for file in pocket.iterdir()) <= 8 * MB


def test_it_looks(results):
    """On every subset it is far above what it gets with the wrong picture."""
    test = results["test"]
    assert set(test) == set(SUBSETS)
    assert sum(result["accuracy"] for result in test.values()) / len(test) >= 0.95
    for result in test.values():
        assert result["accuracy"] >= 0.98
        assert result["blind_accuracy"] <= 0.45


@pytest.mark.parametrize("subset", SUBSETS)
def test_the_shipped_weights_score_as_recorded(pocket, results, subset):
    """On 60 of the recorded 500 pictures: the recorded share must lie where so many answers can tell."""
    samples = [Thimble(subset, "test", 60)[i] for i in range(60)]
    measured = evaluate(VisionLanguageModel.from_pretrained(pocket), samples, blind=False)
    right = sum(score.correct for score in measured.scores.values())
    total = sum(score.total for score in measured.scores.values())
    recorded = results["test"][subset]["kinds"].values()
    share = sum(row["correct"] for row in recorded) / sum(row["total"] for row in recorded)
    spread = (share * (1 - share) / total) ** 0.5
    assert abs(right / total - share) <= 4 * spread + 1 / total


def test_a_card_tells_of_every_run_that_led_to_the_model(results):
    """A third run that went on from this model does not begin with random weights twice."""
    told = {key: results[key] for key in ("step", "seconds", "recipe", "started_from")}
    third = {**results, "started_from": {"model": "runs/stage2/best", **told}}
    card = write_card(third, [])
    commands = [line for line in card.splitlines() if line.startswith("nanovlm train")]
    assert len(commands) == 3 and card.count("From random weights") == 1
    assert "--model runs/stage1/best" in commands[1] and "--model runs/stage2/best" in commands[2]


@pytest.mark.parametrize("name", ["pocket", "stage1/best"])
def test_a_run_that_went_on_is_released_from_a_run_or_a_released_model(name, pocket, results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for directory in (tmp_path / "stage1" / "best", tmp_path / "run" / "best"):
        directory.mkdir(parents=True)
    told = {key: results[key] for key in ("step", "seconds", "recipe")}
    third = {**results, "started_from": {"model": name, **told}}
    (tmp_path / "run" / RESULTS).write_text(json.dumps(third), encoding="utf-8")
    log = (pocket / LOG).read_text(encoding="utf-8")
    for directory in ("run", "stage1"):
        (tmp_path / directory / "metrics.jsonl").write_text(log, encoding="utf-8")
    release(tmp_path / "run", tmp_path / "out")
    assert (tmp_path / "out" / FIRST_LOG).read_text(encoding="utf-8") == log
    card = (tmp_path / "out" / CARD).read_text(encoding="utf-8")
    assert ("--run-name stage1" in card) == (name != "pocket") and "--run-name \n" not in card
