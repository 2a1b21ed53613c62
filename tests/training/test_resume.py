"""kill -9 at any moment, then --resume: the weights end bitwise equal to those of a run that nobody disturbed."""

from __future__ import annotations

import os
import random
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import nanovlm.training.checkpoint
import nanovlm.training.loop
import nanovlm.training.run_log
from nanovlm.device import Precision
from nanovlm.training.checkpoint import CONTENT, checkpoints, load_checkpoint
from tests.training import children
from tests.training.tiny_run import equal, metrics, new_model, recipe, run

STEPS = 10
RECIPES = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},  # refused on a CPU; here it shows that the gradient scaler goes on as well
    "adamw, packed, accumulated": {"optimizer": "adamw", "packing": True, "gradient_accumulation_steps": 2},
}
MEASURED = {"seconds", "samples_per_second", "tokens_per_second"}


def train_in_child(
    output_dir: Path, changes: dict[str, Any], seconds: float | None = None, moment: str | None = None, seed: int = 0
) -> None:
    """A run, or the rest of one. It may be killed after `seconds` of computing, or at a `moment`."""
    started = time.process_time()
    if seconds is not None:
        children.die_after(seconds)
    if moment is not None:
        MOMENTS[moment]()
    real = nanovlm.training.loop.train_step

    def noisy_step(*arguments: Any) -> float:
        """Draws random numbers, as dropout would."""
        with torch.no_grad():
            arguments[0].decoder.norm.weight.mul_(1 + 0.01 * torch.rand(()) * random.random())
        return real(*arguments)

    nanovlm.training.loop.train_step = noisy_step
    if changes.get("precision") == "fp16":
        nanovlm.training.loop.choose_precision = lambda *_: Precision("fp16", "a test", autocast=torch.float16)
    resume = (output_dir / "run" / "checkpoints").is_dir()
    config = recipe(output_dir, max_steps=STEPS, resume=resume, **changes)
    nanovlm.training.loop.train(config, new_model(seed))
    (output_dir / "seconds").write_text(str(time.process_time() - started))


def at(call: int, owner: Any, name: str, what: Any) -> None:
    """Let `what` happen in place of call number `call` of owner.name."""
    real, calls = getattr(owner, name), 0

    def instead(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        return (what if calls == call else real)(*arguments, **named)

    setattr(owner, name, instead)


def half_a_checkpoint(state: Any, path: Path) -> None:
    import io

    whole = io.BytesIO()
    TORCH_SAVE(state, whole)
    Path(path).write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    children.die()


def half_a_line(log: Any, step: int, **values: Any) -> None:
    with log.path.open("a") as file:
        file.write(f'{{"step": {step}, "batch_lo')
    children.die()


def nothing_more(*_: Any, **__: Any) -> None:
    children.die()


TORCH_SAVE = torch.save
MOMENTS = {
    "in the first step": lambda: at(1, nanovlm.training.loop, "train_step", nothing_more),
    "within the first checkpoint": lambda: at(1, torch, "save", half_a_checkpoint),
    "within a later checkpoint": lambda: at(4, torch, "save", half_a_checkpoint),
    "between writing and renaming": lambda: at(3, nanovlm.training.loop, "save_checkpoint", _written_not_renamed),
    "within a line of the log": lambda: at(8, nanovlm.training.run_log.MetricsLog, "write", half_a_line),
    "before a new best model is in place": lambda: at(2, nanovlm.training.loop, "replace_directory", nothing_more),
    "when the old best model is set aside": lambda: at(2, nanovlm.training.loop, "replace_directory", _set_aside),
}


def _written_not_renamed(directory: Path, step: int, state: Any) -> None:
    TORCH_SAVE(state, directory / "unfinished.partial")
    children.die()


def _set_aside(new: Path, old: Path) -> None:
    old.replace(old.with_name("best.old"))
    children.die()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """name of a recipe -> the directory of its run"""
    done: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in done:
            done[name] = tmp_path_factory.mktemp("undisturbed")
            assert children.wait(children.start(train_in_child, done[name], RECIPES[name])) == 0
        return done[name]

    return get


def same_ending(one: Path, other: Path) -> None:
    """All that a run leaves: weights, optimizers, random numbers, the best model, the log."""
    ends = [load_checkpoint(checkpoints(d / "run" / "checkpoints")[-1]) for d in (one, other)]
    assert ends[0]["step"] == ends[1]["step"] == STEPS
    assert equal(ends[0]["weights"], ends[1]["weights"])
    for a, b in zip(ends[0]["optimizers"], ends[1]["optimizers"], strict=True):
        assert a["state"].keys() == b["state"].keys()
        assert all(equal(_tensors(a["state"][p]), _tensors(b["state"][p])) for p in a["state"])
    assert ends[0]["scaler"] == ends[1]["scaler"]
    assert torch.equal(ends[0]["random"]["torch"], ends[1]["random"]["torch"])
    assert ends[0]["random"]["python"] == ends[1]["random"]["python"]
    assert ends[0]["best_val_loss"] == ends[1]["best_val_loss"]
    files = [(d / "run" / "best" / "model.safetensors").read_bytes() for d in (one, other)]
    assert files[0] == files[1]
    logs = [[{k: v for k, v in line.items() if k not in MEASURED} for line in metrics(d / "run")] for d in (one, other)]
    assert logs[0] == logs[1]
    steps = [line["step"] for line in logs[0] if "batch_loss" in line]
    assert steps == list(range(1, STEPS + 1)), "each step once"
    left = sorted(path.name for path in (other / "run").rglob("*") if "partial" in path.name)
    assert not left


def _tensors(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.as_tensor(value) for name, value in state.items()}


@pytest.mark.parametrize("name", ["fp32", *(pytest.param(name, marks=pytest.mark.long) for name in list(RECIPES)[1:])])
def test_killed_again_and_again_at_random(name, undisturbed, tmp_path):
    reference = undisturbed(name)
    whole = float((reference / "seconds").read_text())
    draw = random.Random(name)
    for _ in range(3):
        seconds = draw.uniform(0.25, 0.75) * whole
        code = children.wait(children.start(train_in_child, tmp_path, RECIPES[name], seconds))
        assert code in (children.KILLED, 0)
    assert children.wait(children.start(train_in_child, tmp_path, RECIPES[name])) == 0
    same_ending(reference, tmp_path)


ONE_OF_A_KIND = ("within the first checkpoint", "between writing and renaming", "within a line of the log")
ONE_OF_A_KIND += ("when the old best model is set aside",)


@pytest.mark.parametrize(
    "moment", [m if m in ONE_OF_A_KIND else pytest.param(m, marks=pytest.mark.long) for m in MOMENTS]
)
def test_killed_at_the_worst_moment(moment, undisturbed, tmp_path):
    assert children.wait(children.start(train_in_child, tmp_path, {}, None, moment)) == children.KILLED
    # Other weights to start from: what counts is what the checkpoint holds, the one of step 0 included.
    seed = 0 if "first checkpoint" in moment else 1
    assert children.wait(children.start(train_in_child, tmp_path, {}, None, None, seed)) == 0
    same_ending(undisturbed("fp32"), tmp_path)


def test_killed_with_a_worker(undisturbed, tmp_path):
    """Batches that a worker had made ahead are made again."""
    changes = {"num_workers": 1}
    moment = "between writing and renaming"
    assert children.wait(children.start(train_in_child, tmp_path, changes, None, moment)) == children.KILLED
    assert children.wait(children.start(train_in_child, tmp_path, changes)) == 0
    same_ending(undisturbed("fp32"), tmp_path)


def stopped_with_its_workers(output_dir: Path) -> None:
    os.setpgrp()
    real = nanovlm.training.loop.train_step

    def told(*arguments: Any) -> float:
        # Sent by somebody else: from its parent a worker would take it for the end of the data.
        subprocess.run(["kill", "-TERM", "--", f"-{os.getpgrp()}"], start_new_session=True, check=True)
        return real(*arguments)

    at(3, nanovlm.training.loop, "train_step", told)
    done = nanovlm.training.loop.train(recipe(output_dir, max_steps=STEPS, num_workers=1, eval_every=2), new_model())
    assert done.interrupted and done.step == 3


@pytest.mark.skipif(os.name == "nt", reason="Windows has no groups of processes to signal")
def test_a_polite_kill_of_the_whole_group_saves(tmp_path):
    """As timeout and torchrun send it: the workers must not die of it before the step is done."""
    assert children.wait(children.start(stopped_with_its_workers, tmp_path)) == 0
    assert load_checkpoint(checkpoints(tmp_path / "run" / "checkpoints")[-1])["step"] == 3


def test_what_differs_from_the_run_before_is_said_and_holds(tmp_path, capsys):
    run(tmp_path, max_steps=2)
    before = capsys.readouterr().out
    longer = run(tmp_path, max_steps=3, lr_muon=0.5, resume=True)
    out = capsys.readouterr().out
    assert "changed" not in before and "resumed    at step 2 from step_000002.pt" in out
    assert "changed    max_steps 2 -> 3, lr_muon 0.02 -> 0.5" in out
    assert longer.step == 3
    saved = load_checkpoint(checkpoints(longer.directory / "checkpoints")[-1])
    assert {group["peak_lr"] for state in saved["optimizers"] for group in state["param_groups"]} == {0.5, 3e-3}
    lines = [line for line in metrics(longer.directory) if "val_loss" in line]
    assert [line["step"] for line in lines] == [2, 3]


def test_a_finished_run_stays_as_it_is(tmp_path):
    done = run(tmp_path, max_steps=2)
    before = {path: path.read_bytes() for path in done.directory.rglob("*") if path.is_file()}
    again = run(tmp_path, max_steps=2, resume=True)
    assert again.step == 2 and not again.interrupted and again.best_val_loss == done.best_val_loss
    assert before == {path: path.read_bytes() for path in done.directory.rglob("*") if path.is_file()}


def test_a_run_may_go_on_in_another_precision(tmp_path):
    """From Colab to a laptop: the checkpoint holds float32 weights whatever computed them."""
    run(tmp_path, max_steps=2, precision="bf16")
    on = run(tmp_path, max_steps=2, precision="fp32", resume=True)
    saved = load_checkpoint(checkpoints(on.directory / "checkpoints")[-1])
    assert all(weight.dtype == torch.float32 for weight in saved["weights"].values())
    assert equal(saved["weights"], {name: p.detach() for name, p in on.model.named_parameters()})
    assert run(tmp_path, max_steps=3, precision="bf16", resume=True).step == 3


def test_a_run_without_a_gradient_scaler_may_go_on_with_one(tmp_path, monkeypatch):
    """From a laptop to an older GPU, which needs float16."""
    run(tmp_path, max_steps=1)
    fp16 = Precision("fp16", "a test", autocast=torch.float16)
    monkeypatch.setattr(nanovlm.training.loop, "choose_precision", lambda *_: fp16)
    on = run(tmp_path, max_steps=2, resume=True)
    assert load_checkpoint(checkpoints(on.directory / "checkpoints")[-1])["scaler"]["scale"] > 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"optimizer": "adamw"}, "optimizer states belong to another optimizer"),
        ({"model": "wider"}, r"step_000001\.pt do not fit this model: .*has shape"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused(tmp_path, changes, sentence):
    run(tmp_path, max_steps=1)
    model = new_model()
    if changes.pop("model", None):
        model.projector.proj = torch.nn.Linear(7, 7, bias=False)
    with pytest.raises(ValueError, match=sentence):
        nanovlm.training.loop.train(recipe(tmp_path, resume=True, **changes), model)


def test_a_checkpoint_of_another_content_is_one_sentence(tmp_path):
    done = run(tmp_path, max_steps=1)
    path = checkpoints(done.directory / "checkpoints")[-1]
    whole = load_checkpoint(path)
    unread = [{k: v for k, v in whole.items() if k != name} for name in CONTENT]
    unread += [{**whole, name: "x"} for name in CONTENT] + [[], 5, {"model": {}}]
    for state in unread:
        torch.save(state, path)
        with pytest.raises(ValueError, match=r"\.pt lacks .*another version of this program wrote it"):
            load_checkpoint(path)
    weights = dict.fromkeys(whole["weights"], 3)
    for other in ({"weights": weights}, {"weights": {"a": 1}}, {"random": {"a": 1}}, {"optimizers": [5]}):
        torch.save({**whole, **other}, path)
        with pytest.raises(ValueError, match=r"\.pt (lacks|do not fit)") as caught:
            run(tmp_path, max_steps=2, resume=True)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 1500


def test_a_truncated_checkpoint_is_named_and_the_one_before_works(tmp_path):
    done = run(tmp_path, max_steps=4)
    newest, before = checkpoints(done.directory / "checkpoints")[::-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"step_000004\.pt cannot be read .* Delete it to resume") as caught:
        run(tmp_path, max_steps=4, resume=True)
    assert "\n" not in str(caught.value)
    newest.unlink()
    again = run(tmp_path, max_steps=4, resume=True)
    assert before.name == "step_000002.pt" and again.step == 4
    assert equal(dict(again.model.named_parameters()), dict(done.model.named_parameters()))


def test_a_checkpoint_runs_no_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    path = tmp_path / "step_000001.pt"
    torch.save({"weights": Trap()}, path)
    with pytest.raises(ValueError, match="cannot be read") as caught:
        load_checkpoint(path)
    assert not (tmp_path / "sprung").exists() and "\n" not in str(caught.value)


def test_the_newest_two_are_kept_in_order_of_steps(tmp_path):
    for step in (999_998, 999_999, 1_000_000, 1_000_001):
        nanovlm.training.checkpoint.save_checkpoint(tmp_path, step, {"step": step})
    kept = checkpoints(tmp_path)
    assert [torch.load(path)["step"] for path in kept] == [1_000_000, 1_000_001]


def test_a_run_that_had_saved_nothing_begins_at_its_start_and_says_so(tmp_path, capsys):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert run(tmp_path, max_steps=1, resume=True).step == 1
    assert "had saved nothing yet" in capsys.readouterr().out
