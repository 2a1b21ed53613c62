"""The shipped model is what its card says: the card comes from its log and scores, and the scores can be had again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import nanovlm
from nanovlm.assets import asset_path
from nanovlm.commands.model_card import (
    CARD,
    EARLIER_LOG,
    LOG,
    RESULTS,
    command,
    earlier_runs,
    read_log,
    release,
    write_card,
)
from nanovlm.data.thimble import SUBSETS, Thimble
from nanovlm.evaluation.scores import evaluate
from nanovlm.models.vision_language_model import VisionLanguageModel

MB = 1_000_000


@pytest.fixture(scope="module")
def pocket():
    return asset_path("pocket")


@pytest.fixture(scope="module")
def results(pocket):
    return json.loads((pocket / RESULTS).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def earlier_logs(pocket, results):
    return [read_log(pocket / EARLIER_LOG.format(number + 1)) for number in range(len(earlier_runs(results)))]


def test_the_card_is_made_from_the_logs_and_the_scores(pocket, results, earlier_logs):
    card = write_card(results, read_log(pocket / LOG), earlier_logs)
    assert (pocket / CARD).read_text(encoding="utf-8") == card


def test_make_pocket_gives_the_commands_of_the_card(results):
    makefile = (Path(nanovlm.__file__).parents[1] / "Makefile").read_text(encoding="utf-8")
    recipe = makefile.partition("\npocket:")[2].partition("\n\n")[0]
    runs = [*earlier_runs(results), results]
    commands = [command(run["recipe"], run.get("started_from", {}).get("model")) for run in runs]
    given = [line.partition("$(BIN)/")[2] for line in recipe.splitlines() if "$(BIN)/nanovlm train" in line]
    assert [line.partition(" --run-name ")[0] for line in given] == commands
    started = [run["started_from"]["model"] for run in runs[1:]]
    assert [f"runs/{line.partition(' --run-name ')[2]}/best" for line in given[:-1]] == started


def test_the_logs_and_the_scores_are_of_the_same_runs(pocket, results, earlier_logs):
    log = read_log(pocket / LOG)
    assert log[-1]["step"] == results["step"] == results["recipe"]["max_steps"]
    assert min(row["val_loss"] for row in log if "val_loss" in row) == results["best_val_loss"]
    assert [earlier[-1]["step"] for earlier in earlier_logs] == [run["step"] for run in earlier_runs(results)]


def test_a_command_names_what_differs_from_the_preset(results):
    first = earlier_runs(results)[0]
    names = "shapes shapes charts glyphs glyphs"
    assert command(first["recipe"]).startswith(f"nanovlm train --preset pocket --dataset-names {names} ")
    on = command(first["recipe"], "runs/a/best")
    assert on.startswith(f"nanovlm train --preset pocket --model runs/a/best --dataset-names {names} ")


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


def test_it_understands_american_spelling(pocket, results):
    assert results["American spelling"]["accuracy"] >= 0.98 >= 0.9 >= results["American spelling"]["blind_accuracy"]
    model, (british, american) = (
        VisionLanguageModel.from_pretrained(pocket),
        ([Thimble(name, "test", 30)[i] for i in range(30)] for name in ("shapes", "american")),
    )
    answers = [[answer for _, answer in evaluate(model, each, blind=False).answers] for each in (british, american)]
    assert answers[0] == answers[1]


def test_the_last_run_moved_the_embedding_of_one_token_alone(results):
    assert results["recipe"]["trainable_tokens"] == [" colo"]


def gone_on_from(results, model):
    """A run that went on from the one of `results`, whose weights are in `model`."""
    told = {key: results[key] for key in ("step", "seconds", "machine", "recipe", "started_from") if key in results}
    return {**results, "started_from": {"model": model, **told}}


def test_a_card_tells_of_every_run_that_led_to_the_model(results):
    first = {key: value for key, value in results.items() if key != "started_from"}
    third = gone_on_from(gone_on_from(first, "runs/Stage1/best"), "runs/Stage2/best")
    card = write_card(third, [], [[], []])
    commands = [line for line in card.splitlines() if line.startswith("nanovlm train")]
    assert len(commands) == 3 and card.count("From random weights") == 1
    assert commands[0].endswith("--run-name Stage1") and commands[1].endswith("--run-name Stage2")
    assert "--model runs/Stage1/best" in commands[1] and "--model runs/Stage2/best" in commands[2]


def test_a_run_that_went_on_from_another_run_is_released_with_both_logs(pocket, results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = {key: value for key, value in results.items() if key != "started_from"}
    logs = {"stage1": (pocket / EARLIER_LOG.format(1)), "run": pocket / LOG}
    for name, log in logs.items():
        (tmp_path / name / "best").mkdir(parents=True)
        shutil.copy(log, tmp_path / name / "metrics.jsonl")
    (tmp_path / "run" / RESULTS).write_text(json.dumps(gone_on_from(first, "stage1/best")), encoding="utf-8")
    release(tmp_path / "run", tmp_path / "out")
    assert read_log(tmp_path / "out" / EARLIER_LOG.format(1)) == read_log(logs["stage1"])
    assert "--run-name stage1" in (tmp_path / "out" / CARD).read_text(encoding="utf-8")


def test_a_run_that_went_on_from_a_released_model_is_released_with_all_logs(
    pocket, results, earlier_logs, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "best").mkdir(parents=True)
    (tmp_path / "run" / RESULTS).write_text(json.dumps(gone_on_from(results, "pocket")), encoding="utf-8")
    shutil.copy(pocket / LOG, tmp_path / "run" / "metrics.jsonl")
    release(tmp_path / "run", tmp_path / "out")
    number = len(earlier_logs) + 1
    copied = [read_log(tmp_path / "out" / EARLIER_LOG.format(i)) for i in range(1, number + 1)]
    assert copied == [*earlier_logs, read_log(pocket / LOG)]
    card = (tmp_path / "out" / CARD).read_text(encoding="utf-8")
    assert "--model pocket" in card and "--run-name \n" not in card
