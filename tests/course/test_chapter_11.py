"""What chapter 11 stands on: stand-ins for backbones, a run that can be killed, two processes, runs that fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nanovlm.assets import asset_path
from nanovlm.bench.failure_runs import no_images, not_shifted, nothing_asked
from nanovlm.course.processes import last_words, running
from nanovlm.course.small_backbones import compare, small_llama, small_siglip
from nanovlm.course.small_run import losses_of
from nanovlm.course.two_ranks import measure
from nanovlm.models.vision_language_model import IGNORE
from nanovlm.weights.backbones import load_language_backbone, load_vision_backbone


def distance(sentence: str) -> float:
    return float(sentence.split("difference is ")[1].split(",")[0])


def test_the_stand_ins_are_what_transformers_reads(tmp_path: Path) -> None:
    siglip, llama = small_siglip(tmp_path / "siglip"), small_llama(tmp_path / "llama")
    encoder, decoder = load_vision_backbone(siglip), load_language_backbone(llama, 448)
    assert distance(compare("siglip", str(siglip), encoder, torch.randn(2, 3, 64, 64))) < 1e-4
    assert distance(compare("llama", str(llama), decoder, torch.randint(0, 443, (2, 9)))) < 1e-4
    with torch.no_grad():
        encoder.layer_norm.weight.mul_(2)
    assert distance(compare("siglip", str(siglip), encoder, torch.randn(2, 3, 64, 64))) > 0.1


def test_without_transformers_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    said = compare("siglip", str(tmp_path), torch.nn.Identity(), torch.zeros(1))
    assert said == "siglip: not compared, because transformers is not installed here (pip install transformers)."


def test_a_line_that_a_kill_has_torn_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    whole = '{"step": 1, "batch_loss": 2.5}\n{"step": 1, "val_loss": 2.0}\n{"step": 2, "batch_l'
    (tmp_path / "small" / "metrics.jsonl").write_text(whole)
    assert losses_of(tmp_path) == {1: 2.5}
    assert losses_of(tmp_path / "nowhere") == {}


def fails(why: str) -> None:
    raise OSError(why)


@pytest.mark.long
def test_the_last_words_of_a_process_that_fails(tmp_path: Path) -> None:
    with running(tmp_path / "said", fails, "there is no gloo here") as process:
        process.join(240)
    assert process.exitcode == 1 and last_words(tmp_path / "said").endswith("OSError: there is no gloo here")


@pytest.mark.long
def test_two_processes_agree_with_one_only_where_tokens_count() -> None:
    error = measure()
    assert error["by tokens"] < 1e-5 and error["mean of means"] > 0.05


def test_how_a_batch_is_spoiled() -> None:
    batch = {"images": torch.ones(1, 3, 2, 2), "targets": torch.tensor([[IGNORE, 7, 8, IGNORE]])}
    assert not no_images(0, batch)["images"].any()
    assert not_shifted(0, batch)["targets"].tolist() == [[IGNORE, IGNORE, 7, 8]]
    assert (nothing_asked(3)(3, batch)["targets"] == IGNORE).all() and nothing_asked(3)(2, batch) is batch


def test_the_stored_runs_show_what_the_chapter_says() -> None:
    stored = json.loads(asset_path("runs/11_failures.json").read_text(encoding="utf-8"))
    runs = {name: run["losses"] for name, run in stored["runs"].items()}
    assert {len(losses) for losses in runs.values()} == {stored["about"]["steps"]}
    assert runs["A"][-1] > 10 * runs["healthy"][-1] > 10 * runs["B"][-1]
    at = runs["D"].index(None)
    assert all(loss is None for loss in runs["D"][at:])
