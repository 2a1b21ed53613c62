"""The command line: what it does, what it says when something is wrong, and what it costs."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints
from unittest.mock import Mock

import pytest
import safetensors.torch
import torch
from PIL import Image

from nanovlm.assets import asset_path
from nanovlm.cli import COMMANDS, main
from nanovlm.commands import train as train_command
from nanovlm.commands.model_card import write_card
from nanovlm.commands.options import parse
from nanovlm.config import TrainConfig, presets
from nanovlm.weights.from_preset import build_model
from tests.tiny import loud

Run = Callable[..., tuple[int, str, str]]
SWITCHES = [f.name for f in fields(TrainConfig) if f.type == "bool"]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Words of a command line -> exit status, what it printed, what it complained about."""

    def run(*words: object) -> tuple[int, str, str]:
        try:
            status = main([str(word) for word in words])
        except SystemExit as error:
            status = error.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with random weights: it answers, and what it says is noise."""
    preset = presets()["pocket"]
    preset.vlm.language.num_blocks = preset.vlm.vision.num_blocks = 1
    model = loud(build_model(preset))
    model.decoder.token_embedding.weight.data.mul_(0.1)  # tied: no token is nearly certain
    return model.save_pretrained(tmp_path_factory.mktemp("random") / "model")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.new("RGB", (80, 60), "red").save(path := tmp_path / "red.png")
    return path


def recipe(*words: str) -> train_command.TrainOptions:
    return parse(train_command.TrainOptions, "train", words, default=train_command.default_options(words))


# -- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_help_lists_every_command(run: Run, words: tuple[str, ...]) -> None:
    status, out, _ = run(*words)
    assert status == 0
    assert all(re.search(rf"^  {name} ", out, re.MULTILINE) for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(run: Run, command: str) -> None:
    status, out, _ = run(command, "--help")
    assert status == 0
    assert f"nanovlm {command}" in out
    assert len(out.splitlines()) > 4


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize(
    ("words", "value"), [(("False",), False), (("false",), False), (("True",), True), ((), True), (("0",), False)]
)
def test_a_switch_is_what_its_value_says(switch: str, words: tuple[str, ...], value: bool) -> None:
    given = recipe(
        f"--{switch.replace('_', '-')}", *words, "--seed", "3", "--lora-rank", "4"
    ).recipe  # which lora_4bit needs
    assert getattr(given, switch) is value
    assert given.seed == 3


@pytest.mark.parametrize("name", presets())
def test_a_preset_brings_its_recipe_and_options_change_it(name: str) -> None:
    assert recipe("--preset", name).recipe == presets()[name].train
    changed = recipe("--batch-size", "7", f"--preset={name}", "--dataset-names", "charts", "glyphs")
    assert changed.preset == name
    assert (changed.recipe.batch_size, changed.recipe.dataset_names) == (7, ("charts", "glyphs"))
    assert changed.recipe.optimizer == presets()[name].train.optimizer


def test_every_preset_is_offered(run: Run) -> None:
    assert get_args(get_type_hints(train_command.TrainOptions)["preset"]) == tuple(presets())
    assert "{pocket,colab,h100,460m}" in run("train", "--help")[1]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("train", "--batchsize", "3"), "Unrecognized options: --batchsize"),
        (("train", "--batch-size", "many"), "--batch-size"),
        (("train", "--compile", "perhaps"), "expected True or False, not perhaps"),
        (("train", "--batch-size", "0"), "batch_size must be at least 1"),
        (("train", "--lr-muon", "-1"), "lr_muon is 0 or more"),
        (("train", "--data-cutoff-idx", "0"), "data_cutoff_idx is a number of samples"),
        (("train", "--preset", "huge"), "invalid choice 'huge'"),
        (("train", "--preset"), "--preset"),
        (("generate", "--temprature", "1"), "Unrecognized options: --temprature"),
        (("evaluate", "--split", "train"), "invalid choice 'train'"),
        (("evaluate", "--size", "1"), "size of at least 2"),
        (("generate", "--stream", "--generations", "2"), "--stream writes one answer"),
        (("generate", "--draft-blocks", "1", "--top-k", "3"), "leave the filters out"),
        (("generate", "--draft-blocks", "1", "--choices", "yes"), "leave --stream, --batch, --num-beams, --choices"),
        (("export",), "--out"),
        (("train", "--run-name", "../../escape"), "names no directory in output_dir"),
        (("train", "--run-name", ""), "names no directory in output_dir"),
        (("train", "--run-name", ".."), "names no directory in output_dir"),
        (("train", "--run-name", "a\0b"), "names no directory in output_dir"),
        (("train", "--batch-size", 10**12), "batch_size is 16,777,216 at most"),
        (("train", "--dataset-size", 10**12), "dataset_size is 268,435,456 at most"),
        (("train", "--seed", 10**30), "seed is a whole number"),
        (("train", "--lr-muon", "1e300"), "lr_muon is 0 or more, and 1e6 at most"),
        (("train", "--weight-decay", "inf"), "weight_decay must be a number"),
        (("generate", "--batch", ""), "--batch is empty"),
        (("evaluate", "--size", 10**12), "at most 1,000,000"),
        (("trace", "--batch", 10**12), "a batch and a text of 1 to"),
        (("bench", "--sizes"), "--sizes is empty"),
        (("bench", "--steps", "-1"), "--steps is 1 to"),
        (("plan", "--price", "nan"), "--price is a number of dollars"),
    ],
)
def test_an_option_that_does_not_fit(run: Run, words: tuple[str, ...], sentence: str) -> None:
    status, _, err = run(*words)
    assert status == 2
    assert sentence in " ".join(err.replace("│", " ").split())


# -- what goes wrong --------------------------------------------------------------------------------------------------


def complaint(result: tuple[int, str, str]) -> str:
    """The one sentence of a command that failed."""
    status, _, err = result
    assert status == 2
    lines = [line for line in err.splitlines() if line.startswith("nanovlm: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err and "Errno" not in err
    return lines[0]


def test_a_command_that_does_not_exist(run: Run) -> None:
    assert "no command 'draw'. Choose from train" in complaint(run("draw"))


def test_images_and_prompts_that_cannot_be_used(run: Run, directory: Path, image: Path, tmp_path: Path) -> None:
    ask = ("generate", "--model", directory, "--image")
    assert "No such picture" in complaint(run(*ask, tmp_path / "none.png"))
    (tmp_path / "words.png").write_text("not a picture")
    assert "not a picture" in complaint(run(*ask, tmp_path / "words.png"))
    (tmp_path / "half.png").write_bytes(image.read_bytes()[:60])
    assert "cut short or damaged" in complaint(run(*ask, tmp_path / "half.png"))
    assert "is a directory" in complaint(run(*ask, tmp_path))
    assert "is a web address" in complaint(run(*ask, "https://example.org/a.jpg"))
    assert "prompt is empty" in complaint(run(*ask, image, "--prompt", " "))
    assert "exceed the model's 512 positions" in complaint(run(*ask, image, "--prompt", "circle " * 600))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--temperature", "-1"), "temperature must be"),
        (("--top-p", "2"), "top_p must be"),
        (("--top-k", "0"), "top_k must be"),
        (("--generations", "0"), "must be at least 1"),
        (("--max-new-tokens", "0"), "must be at least 1"),
        (("--num-beams", "2", "--temperature", "1"), "Beam search is deterministic"),
        (("--temperature", "inf"), "and finite"),
        (("--generations", 10**12), "more than the 65,536 rows"),
        (("--num-beams", 10**12), "more than the 65,536 rows"),
        (("--seed", 10**30), "A seed is a whole number"),
        (("--repetition-penalty", "inf"), "and finite"),
    ],
)
def test_settings_that_make_no_sense(
    run: Run, directory: Path, image: Path, words: tuple[str, ...], sentence: str
) -> None:
    assert sentence in complaint(run("generate", "--model", directory, "--image", image, *words))


def test_models_that_cannot_be_loaded(run: Run, directory: Path, tmp_path: Path, monkeypatch) -> None:
    def ask(model: object) -> str:
        return complaint(run("generate", "--model", model))

    assert "no directory ./nowhere" in ask("./nowhere")
    assert "no config.json" in ask(tmp_path)
    assert "is a file" in ask(asset_path("images/shapes.png"))
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        (broken / name).write_bytes((directory / name).read_bytes())
    assert f"Did you mean {broken}?" in ask(tmp_path)
    assert "no model.safetensors" in ask(broken)
    (broken / "model.safetensors").write_bytes((directory / "model.safetensors").read_bytes()[:-100])
    assert "not a whole safetensors file" in ask(broken)
    config = json.loads((directory / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "colour": "red"}))
    assert "'colour'" in ask(broken)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "cannot be reached" in ask("nobody/at-all")


def test_places_that_cannot_be_written(run: Run, image: Path, directory: Path) -> None:
    evaluate = ("evaluate", "--model", directory)
    assert "no directory" in complaint(run(*evaluate, "--json", image.parent / "none" / "scores.json"))
    assert "end in .png" in complaint(run(*evaluate, "--sheet", image.parent / "sheet.doc"))
    assert "output" in complaint(run("train", "--output-dir", image / "runs"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--dataset-path", "./no-such-place"), "no directory ./no-such-place"),
        (("--dataset-names", "icons"), "no subset 'icons'"),
        (("--resume",), "nothing to resume"),
        (("--precision", "fp16"), "fp16 training needs a CUDA GPU"),
    ],
)
def test_recipes_that_cannot_be_run(run: Run, tmp_path: Path, words: tuple[str, ...], sentence: str) -> None:
    if "fp16" in words and torch.cuda.is_available():
        pytest.skip("this machine has the GPU whose absence is complained about")
    assert sentence in complaint(run("train", "--output-dir", tmp_path, *words))


def test_a_missing_package_names_the_extra_that_brings_it(run: Run, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "nanovlm.commands.environment", None)
    monkeypatch.setattr("nanovlm.cli.EXTRAS", {"nanovlm": "data"})
    assert 'pip install "nanovlm[data]"' in complaint(run("doctor"))


def test_ctrl_c(run: Run, monkeypatch) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("nanovlm.commands.doctor.main", interrupted)
    status, _, err = run("doctor")
    assert (status, err.strip()) == (130, "nanovlm: stopped.")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipe that breaks like this one")
def test_a_reader_that_has_seen_enough() -> None:
    """`nanovlm plan | head -1`"""
    command = [sys.executable, "-m", "nanovlm", "plan"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize("words", [["--help"], ["plan"], ["train", "--help"]])
def test_a_full_device_is_one_sentence(words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "nanovlm", *words], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr.strip()) == (2, "nanovlm: No space left on device")


def test_memory_that_runs_out_is_a_sentence_and_a_mistake_of_ours_is_not(run: Run, monkeypatch) -> None:
    for error, told in (
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), True),
        (RuntimeError("size mismatch"), False),
    ):
        monkeypatch.setattr("nanovlm.commands.plan.main", Mock(side_effect=error))
        if told:
            assert "does not fit into the memory" in complaint(run("plan"))
        else:
            with pytest.raises(RuntimeError, match="size mismatch"):
                run("plan")


def test_more_workers_than_a_machine_can_feed_are_not_started(run: Run, tmp_path: Path) -> None:
    words = ("train", "--output-dir", tmp_path, "--dataset-size", 8, "--val-size", 4, "--num-workers", 10**5)
    assert "num_workers 100,000 is more than this machine can feed" in complaint(run(*words))


def test_the_traceback_on_request(run: Run, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NANOVLM_DEBUG", "1")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        run("generate", "--model", tmp_path)


# -- what goes right --------------------------------------------------------------------------------------------------


def answers(out: str) -> list[str]:
    """What `generate` printed below picture and prompt: each answer as often as it was drawn."""
    drawn = re.findall(r"^(\d+) of \d+ samples: (.*)$", out, re.MULTILINE)
    return [answer for times, answer in drawn for _ in range(int(times))] or [out.split("\n\n", 1)[1].strip()]


def test_generate_draws_five_answers(run: Run, directory: Path, image: Path) -> None:
    ask = ("generate", "--model", directory, "--image", image, "--max-new-tokens", 8, "--seed", 3)
    status, out, _ = run(*ask)
    assert status == 0
    assert "Describe the picture." in out
    assert len(set(answers(out))) == 5
    assert run(*ask)[1] == out, "the same seed draws the same answers"
    assert len(answers(run(*ask, "--generations", 2)[1])) == 2


def test_equal_answers_are_one_line(run: Run, directory: Path, image: Path) -> None:
    ask = ("generate", "--model", directory, "--image", image, "--max-new-tokens", 2, "--generations", 3)
    lines = run(*ask, "--top-k", 1)[1].splitlines()
    assert lines[2] == "" and lines[3].startswith("3 of 3 samples: ") and len(lines) == 4


def test_a_image_that_is_not_there_is_told_before_a_model_is_loaded(run: Run, tmp_path: Path) -> None:
    said = complaint(run("generate", "--model", tmp_path / "none", "--image", tmp_path / "none.png"))
    assert "none.png" in said


def test_help_shows_the_kind_of_value_that_an_option_takes(run: Run) -> None:
    out = run("generate", "--help")[1]
    assert "--temperature FLOAT" in out and "{None}" not in out


def test_a_trace_fits_a_terminal(run: Run) -> None:
    assert max(map(len, run("trace")[1].splitlines())) <= 100


def test_generate_gives_the_most_likely_answer(run: Run, directory: Path, image: Path) -> None:
    ask = ("generate", "--model", directory, "--image", image, "--max-new-tokens", 8)
    greedy = answers(run(*ask, "--temperature", 0)[1])
    assert len(greedy) == 1
    assert answers(run(*ask, "--generations", 1)[1]) == greedy
    assert len(answers(run(*ask, "--num-beams", 3)[1])) == 1
    assert run(*ask, "--stream")[1].splitlines()[-1].strip() == greedy[0]


def test_generate_filters_and_constrains_what_is_written(run: Run, directory: Path, image: Path) -> None:
    ask = ("generate", "--model", directory, "--image", image, "--max-new-tokens", 8)
    greedy = answers(run(*ask, "--temperature", 0)[1])[0]
    drawn = answers(run(*ask, "--temperature", 1, "--min-p", 1.0, "--seed", 3)[1])
    assert drawn == [greedy] * 5, "with min-p 1 only the likeliest token is left to draw"
    assert answers(run(*ask, "--temperature", 0, "--repetition-penalty", 1e6)[1]) != [greedy]
    allowed = ("--choices", "yes", "--choices", "no", "--temperature", 1, "--generations", 9, "--seed", 3)
    assert set(answers(run(*ask, *allowed)[1])) == {"yes", "no"}
    middle = greedy[len(greedy) // 2 :][:3]
    assert answers(run(*ask, "--temperature", 0, "--stop", middle)[1]) == [greedy[: greedy.index(middle)].strip()]


def test_generate_speculates(run: Run, directory: Path) -> None:
    ask = ("generate", "--prompt", "How many shapes are there?", "--max-new-tokens", 8)
    status, out, err = run(*ask, "--draft-blocks", 1)
    assert status == 0 and answers(out) == answers(run(*ask, "--temperature", 0)[1])
    tokens, passes, accepted, proposed = map(int, re.findall(r"\d+", err))
    assert tokens <= 8 and 1 <= passes <= tokens and accepted <= proposed
    assert "fewer than the decoder" in complaint(run("generate", "--model", directory, "--draft-blocks", 1))


def test_generate_takes_several_images_and_brings_one_of_its_own(run: Run, directory: Path, image: Path) -> None:
    ask = ("generate", "--model", directory, "--max-new-tokens", 2)
    status, out, _ = run(*ask, "--image", image, "--image", asset_path("images/charts.png"))
    assert status == 0 and "charts.png" in out and "red.png" in out
    status, out, _ = run(*ask)
    assert status == 0 and "shapes.png" in out


def test_generate_asks_about_every_image_of_a_folder(run: Run, directory: Path, image: Path) -> None:
    (image.parent / "broken.png").write_bytes(image.read_bytes()[:60])
    ask = ("generate", "--model", directory, "--max-new-tokens", 2, "--batch", image.parent)
    status, out, err = run(*ask)
    rows = {Path(row["image"]).name: row for row in map(json.loads, out.splitlines())}
    assert status == 0
    assert {row["prompt"] for row in rows.values()} == {"Describe the picture."}
    assert isinstance(rows["red.png"]["answer"], str) and "cut short" in rows["broken.png"]["error"]
    assert "1 answered, 1 skipped" in err
    run(*ask, "--out", image.parent / "answers.jsonl")
    assert (image.parent / "answers.jsonl").read_text(encoding="utf-8") == out
    assert "no picture" in complaint(run("generate", "--model", directory, "--batch", directory))
    assert run(*ask, "--stream")[0] == 2


@pytest.mark.parametrize(
    ("preset", "combined"),
    [("pocket", "[2, 16+9, 128]"), pytest.param("222m", "[2, 49+9, 576]", marks=pytest.mark.long)],
)
def test_trace_shows_the_way_from_image_to_logits(run: Run, tmp_path: Path, preset: str, combined: str) -> None:
    ask = ("trace", "--preset", preset, "--batch", 2, "--text", 9)
    status, out, _ = run(*ask, "--html", tmp_path / "trace.html")
    assert status == 0
    total = re.sub(r"(\d+)\+(\d+)", lambda sum_: str(int(sum_[1]) + int(sum_[2])), combined)
    assert re.search(rf"^combined +{re.escape(total)}$", out, re.MULTILINE)
    assert "vision_encoder" in out and "FLOPs" in out
    assert (tmp_path / "trace.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert re.search(r"^combined +\[B, (49\+)?T, \d+\]$", run(*ask, "--symbolic")[1], re.MULTILINE)


def test_trace_names_a_text_that_is_as_long_as_a_image_is_wide(run: Run) -> None:
    out = run("trace", "--text", 48, "--symbolic")[1]  # and 16 image tokens: 64
    assert re.search(r"^image +\[B, 3, 64, 64\]\n(.+\n)+combined +\[B, T, 128\]$", out, re.MULTILINE)
    assert "Remark" not in out


def test_evaluate_writes_scores_and_images(run: Run, directory: Path, tmp_path: Path) -> None:
    scores, sheet = tmp_path / "scores.json", tmp_path / "sheet.png"
    status, out, _ = run(
        "evaluate", "--model", directory, "--subsets", "shapes", "glyphs", "--split", "unseen", "--size", 3,
        "--multiple-choice", "--captions", "--american", "--json", scores, "--sheet", sheet,
    )  # fmt: skip
    assert status == 0
    assert all(word in out for word in ("shapes, unseen", "glyphs, unseen", "where", "blind", "multiple choice"))
    written = json.loads(scores.read_text())
    assert written["unseen"]["shapes"]["kinds"]["where"]["total"] == 3
    assert written["unseen"]["shapes"]["blind"].keys() == written["unseen"]["shapes"]["kinds"].keys()
    assert "multiple choice" in written
    assert written["American spelling"]["kinds"]["colour"]["total"] == 3
    assert "captions, unseen" in out and written["captions"]["kinds"]["charts"]["total"] == 3
    assert Image.open(sheet).width > 1000


@pytest.mark.parametrize("protocol", ["exact", "vqa", "letter", "lenient", "likelihood"])
def test_evaluate_scores_by_the_protocol_that_is_asked_for(run: Run, directory: Path, protocol: str) -> None:
    status, out, _ = run("evaluate", "--model", directory, "--subsets", "shapes", "--size", 3, "--protocol", protocol)
    assert status == 0
    by_options = protocol not in ("exact", "vqa")
    assert (f"multiple choice by {protocol}, test" in out) == by_options
    assert ("shapes, test" in out) != by_options


def test_train_ends_with_the_proof(run: Run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(train_command, "TEST_IMAGES", 2)
    status, out, _ = run(
        "train", "--max-steps", 2, "--batch-size", 2, "--val-size", 2, "--dataset-size", 8, "--output-dir", tmp_path,
        "--run-name", "short", "--dataset-names", "charts", "--precision", "fp32", "--compile", "False",
    )  # fmt: skip
    assert status == 0
    assert "charts, test" in out and "charts, unseen" in out and "blind" in out
    results = json.loads((tmp_path / "short" / "results.json").read_text())
    assert results["recipe"]["dataset_names"] == ["charts"]
    assert results["test"]["charts"]["kinds"].keys() == results["unseen"]["charts"]["kinds"].keys()
    Image.open(tmp_path / "short" / "answers.png").load()
    status, out, _ = run("generate", "--model", tmp_path / "short" / "best", "--max-new-tokens", 2)
    assert status == 0, "the command that train names at its end works"


def test_train_goes_on_from_a_model(run: Run, tmp_path: Path, monkeypatch) -> None:
    """The second run starts with the weights that the first one ended with, and its scores say where it came from."""
    monkeypatch.setattr(train_command, "TEST_IMAGES", 2)
    words = ("train", "--batch-size", 2, "--val-size", 2, "--dataset-size", 8, "--precision", "fp32", "--max-steps", 1)
    words = (*words, "--output-dir", tmp_path)
    assert run(*words, "--run-name", "first", "--dataset-names", "charts", "--seed", 5)[0] == 0
    best = tmp_path / "first" / "best"
    still = ("--lr-muon", 0, "--lr-projector", 0, "--lr-backbones", 0)
    assert run(*words, "--run-name", "second", "--model", best, *still)[0] == 0
    weights = "best/model.safetensors"
    before, after = (safetensors.torch.load_file(tmp_path / name / weights) for name in ("first", "second"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    first, second = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("first", "second"))
    assert "started_from" not in first
    told = ("step", "seconds", "machine", "recipe")
    assert second["started_from"] == {"model": str(best), **{key: first[key] for key in told}}
    card = write_card(second, [])
    assert "--dataset-names charts --dataset-size 8" in card and f"--preset pocket --model {best}" in card


def test_train_refuses_a_model_that_is_not_there(run: Run, tmp_path: Path) -> None:
    status, _, err = run("train", "--model", tmp_path / "best", "--output-dir", tmp_path)
    assert status == 2 and "best" in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(("subset", "title"), [("choice", "multiple choice"), ("captions", "captions")])
def test_a_run_on_choices_or_captions_alone_is_scored_on_them(
    run: Run, tmp_path: Path, monkeypatch, subset: str, title: str
) -> None:
    monkeypatch.setattr(train_command, "TEST_IMAGES", 2)
    words = ("train", "--max-steps", 1, "--batch-size", 2, "--val-size", 2, "--dataset-size", 8, "--precision", "fp32")
    run_name = ("--output-dir", tmp_path, "--run-name", "letters", "--dataset-names", subset)
    status, out, _ = run(*words, *run_name)
    assert status == 0 and f"{title}, test" in out
    assert title in json.loads((tmp_path / "letters" / "results.json").read_text())
    assert not (tmp_path / "letters" / "answers.png").exists()


def test_export(run: Run, directory: Path, tmp_path: Path) -> None:
    status, out, _ = run("export", "--model", directory, "--out", tmp_path / "smolvlm")
    assert status == 0 and str(tmp_path / "smolvlm") in out
    assert json.loads((tmp_path / "smolvlm" / "config.json").read_text())["model_type"] == "smolvlm"


# -- what it costs ----------------------------------------------------------------------------------------------------

COST = """
import sys
from nanovlm.models.vision_transformer import ViT
seen, forward = [], ViT.forward
ViT.forward = lambda encoder, images: seen.append(len(images)) or forward(encoder, images)
from nanovlm.cli import main
status = main(["generate"])
print("cost", status, seen, *(name for name in {heavy} if name in sys.modules))
"""
HEAVY = ("transformers", "datasets", "matplotlib", "ipywidgets", "wandb", "pandas", "torchvision", "pyarrow")
HEAVY += ("torch._dynamo", "sympy")  # torch's compiler takes as long to import as torch


def test_an_answer_needs_no_heavy_package_and_one_look_at_the_image() -> None:
    out = subprocess.run(
        [sys.executable, "-c", COST.format(heavy=HEAVY)],
        check=True,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"},
    ).stdout
    assert len(answers(out)) == 5
    assert re.search(r"^cost (.*)$", out, re.MULTILINE)[1] == "0 [1]"


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("module", ["nanovlm"])
def test_the_modules_are_commands_too(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module(module, run_name="__main__")
    assert not end.value.code
    assert f"usage: {module.replace('.', ' ')}" in capsys.readouterr().out
