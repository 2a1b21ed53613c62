"""A run as people see it: what it says, measures, keeps, refuses, and how it stops."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import nanovlm.data.thimble
import nanovlm.training.checkpoint
import nanovlm.training.loop
import nanovlm.training.run_log
from nanovlm.data.datasets import VQADataset
from nanovlm.models.vision_language_model import VisionLanguageModel
from nanovlm.training.checkpoint import checkpoints, load_checkpoint
from tests.training.tiny_run import equal, max_difference, metrics, new_model, recipe, run, weights


class ChangedLoader:
    """A training loader whose batches go through `change(number, batch)`, counted from 1."""

    def __init__(self, loader, change):
        self.loader, self.change = loader, change

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def __iter__(self):
        for number, batch in enumerate(self.loader, start=1):
            yield self.change(number, batch)


@pytest.fixture
def change_batches(monkeypatch):
    real = nanovlm.training.loop.get_dataloaders

    def use(change, which=0):
        def get_dataloaders(*arguments, **options):
            loaders = list(real(*arguments, **options))
            loaders[which] = ChangedLoader(loaders[which], change)
            return loaders

        monkeypatch.setattr(nanovlm.training.loop, "get_dataloaders", get_dataloaders)

    return use


@pytest.fixture
def before_step(monkeypatch):
    """Call something right before step number n of a run."""
    real = nanovlm.training.loop.train_step

    def use(number, action):
        calls = 0

        def train_step(model, *arguments):
            nonlocal calls
            calls += 1
            if calls == number:
                action(model)
            return real(model, *arguments)

        monkeypatch.setattr(nanovlm.training.loop, "train_step", train_step)

    return use


# What it says and measures


def test_it_says_where_and_how_it_computes(tmp_path, capsys):
    run(tmp_path, max_steps=1, precision="bf16")
    out = capsys.readouterr().out
    assert f"run        {tmp_path / 'run'}" in out
    assert "precision  bf16: you asked for it" in out
    assert "val_loss" in out and "accuracy" in out and "skipped" not in out
    with pytest.raises(ValueError, match=r"fp16 training needs a CUDA GPU"):
        run(tmp_path / "elsewhere", precision="fp16")
    assert not (tmp_path / "elsewhere").exists()


def test_the_log_has_every_metric_as_json(tmp_path):
    lines = metrics(run(tmp_path, max_steps=7, log_every=2, eval_every=3).directory)
    assert [line["step"] for line in lines if "batch_loss" in line] == [2, 4, 6, 7]
    assert [line["step"] for line in lines if "val_loss" in line] == [3, 6, 7]
    for line in lines:
        if "batch_loss" in line:
            assert {"lr_scale", "seconds", "samples_per_second", "tokens_per_second"} <= line.keys()
        else:
            assert 0 <= line["accuracy"] <= 1 and line["skipped"] == 0
        assert all(math.isfinite(value) for value in line.values())
    seconds = [line["seconds"] for line in lines if "seconds" in line]
    assert seconds == sorted(seconds)


def test_who_watches_is_told_every_line_of_the_log(tmp_path):
    told = []
    done = nanovlm.training.loop.train(
        recipe(tmp_path), new_model(), watch=lambda step, values: told.append({"step": step, **values})
    )
    assert told == metrics(done.directory)


def test_speed_is_measured_on_the_wall_clock_with_the_wait_for_data(tmp_path, change_batches, monkeypatch):
    clock = SimpleNamespace(now=100.0, perf_counter=lambda: clock.now, strftime=time.strftime)
    monkeypatch.setattr(nanovlm.training.loop, "time", clock)
    monkeypatch.setattr(nanovlm.training.run_log, "time", clock)
    tokens = []

    def slow(_, batch):
        clock.now += 2.0
        tokens.append(int(batch["attention_mask"].sum()))
        batch["input_ids"] = nn.functional.pad(batch["input_ids"], (0, 9))  # padding is no work done
        batch["targets"] = nn.functional.pad(batch["targets"], (0, 9), value=-100)
        batch["attention_mask"] = nn.functional.pad(batch["attention_mask"], (0, 9))
        return batch

    change_batches(slow)
    done = run(tmp_path, max_steps=4, log_every=2, gradient_accumulation_steps=2)
    lines = [line for line in metrics(done.directory) if "batch_loss" in line]
    for line, taken in zip(lines, (tokens[:4], tokens[4:]), strict=True):
        assert line["samples_per_second"] == pytest.approx(4 * 4 / 8)
        assert line["tokens_per_second"] == pytest.approx(sum(taken) / 8)
    assert [line["seconds"] for line in lines] == [8, 16] and done.seconds == 16


def test_the_logged_rate_is_the_one_used(tmp_path):
    done = run(tmp_path, max_steps=3)
    saved = load_checkpoint(checkpoints(done.directory / "checkpoints")[-1])
    scale = metrics(done.directory)[2]["lr_scale"]
    assert scale == nanovlm.training.step.get_lr(2, 1.0, 3)
    for group in (group for state in saved["optimizers"] for group in state["param_groups"]):
        assert group["lr"] == pytest.approx(group["peak_lr"] * scale)


def test_wandb_offline_gets_the_same_values(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is an extra of the package")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-home"))
    (tmp_path / "wandb-home").mkdir()
    import wandb

    sent = []
    real = wandb.sdk.wandb_run.Run.log
    monkeypatch.setattr(
        wandb.sdk.wandb_run.Run, "log", lambda self, data, step: (sent.append((step, data)), real(self, data, step))
    )
    done = run(tmp_path, max_steps=2, wandb=True)
    assert [{"step": step, **data} for step, data in sent] == metrics(done.directory)
    (kept,) = (done.directory / "wandb").glob("offline-run-*/run-*.wandb")
    assert wandb.run is None, "finished"
    wandb.teardown()  # ends wandb's own process, which may still be writing
    assert b"batch_loss" in kept.read_bytes()


def test_skipped_and_cut_samples_are_counted_and_said(tmp_path, monkeypatch, capsys):
    real = VQADataset._encode

    def encode(self, sample, index):
        if index % 8 == 3:
            raise ValueError("it is torn")
        return real(self, sample, index)

    monkeypatch.setattr(VQADataset, "_encode", encode)
    with pytest.warns(UserWarning, match="it is torn"):
        done = run(tmp_path, max_steps=16, eval_every=16)  # 64 samples, all of them once
    out = capsys.readouterr().out
    assert metrics(done.directory)[-1]["skipped"] == 8 + 1, "of the training data, and of the validation data"
    assert "skipped    9 samples that could not be used, first: sample" in out and "it is torn" in out
    assert "cut        samples to 160 tokens, 64 times" in out


# The best model


def test_the_best_checkpoint_is_the_one_with_the_lowest_validation_loss(tmp_path, monkeypatch):
    losses, seen = iter([3.0, 1.0, 2.0]), []

    def validation_loss(model, *_):
        seen.append(weights(model))
        return next(losses)

    monkeypatch.setattr(nanovlm.training.loop, "validation_loss", validation_loss)
    done = run(tmp_path, max_steps=3, eval_every=1)
    best = weights(VisionLanguageModel.from_pretrained(done.directory / "best"))
    assert done.best_val_loss == 1.0
    assert equal(best, seen[1]) and not equal(best, seen[2])
    assert sorted(path.name for path in done.directory.iterdir()) == ["best", "checkpoints", "metrics.jsonl"]


def test_a_run_reads_training_and_validation_data_only(tmp_path, monkeypatch):
    opened = set()

    class Watched(nanovlm.data.thimble.Thimble):
        def __init__(self, subset, split, *arguments, **named):
            opened.add(split)
            super().__init__(subset, split, *arguments, **named)

    monkeypatch.setattr(nanovlm.data.thimble, "Thimble", Watched)
    run(tmp_path, max_steps=1)
    assert opened == {"train", "val"}


def test_the_best_model_of_a_bfloat16_run_is_float32_and_answers(tmp_path):
    done = run(tmp_path, max_steps=3, precision="bf16")
    best = VisionLanguageModel.from_pretrained(done.directory / "best")
    assert all(p.dtype == torch.float32 for p in best.parameters())
    assert any(not torch.equal(p, p.bfloat16().float()) for p in best.parameters()), "not rounded"
    assert max_difference(weights(best), {n: p.float() for n, p in done.model.named_parameters()}) < 0.01
    image = nanovlm.data.thimble.thimble_sample("shapes", "val", 0)["images"][0]
    assert isinstance(best.generate(image=image, prompt="Which shape?", max_new_tokens=2), str)


def test_validation_loss_is_the_mean_over_tokens(tmp_path):
    """Not over batches, of which the last one is smaller."""
    one, other = (run(tmp_path, max_steps=1, val_size=5, run_name=str(size), batch_size=size) for size in (4, 5))
    del other
    model, config = one.model, recipe(tmp_path)
    arguments = (model.config, model.tokenizer, model.image_processor)
    losses = []
    for size in (4, 5):
        _, loader = nanovlm.training.loop.get_dataloaders(recipe(tmp_path, val_size=5, batch_size=size), *arguments)
        precision = nanovlm.training.loop.choose_precision(config.precision, torch.device("cpu"))
        losses.append(nanovlm.training.validation.validation_loss(model, loader, precision, torch.device("cpu")))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert metrics(one.directory)[-1]["val_loss"] == pytest.approx(losses[0], abs=1e-5)


def test_validation_without_a_usable_sample_is_an_error(tmp_path, monkeypatch):
    real = VQADataset.__getitem__

    def getitem(self, index):
        return nanovlm.data.datasets.Skipped(index, "torn") if len(self) == 4 else real(self, index)

    monkeypatch.setattr(VQADataset, "__getitem__", getitem)
    with (
        pytest.warns(UserWarning, match="torn"),
        pytest.raises(ValueError, match="Not one validation sample can be used"),
    ):
        run(tmp_path, max_steps=1)


# Stopping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_ctrl_c_saves_and_says_how_to_go_on(number, tmp_path, before_step, monkeypatch, capfd):
    whole = run(tmp_path / "whole")
    handler = signal.getsignal(number)
    before_step(3, lambda _: signal.raise_signal(number))
    stopped = run(tmp_path)
    said = capfd.readouterr()
    assert "Ctrl-C again stops at once" in said.err
    assert stopped.interrupted and stopped.step == 3
    assert "stopped    at step 3, saved. Go on with the same command and" in said.out
    assert checkpoints(stopped.directory / "checkpoints")[-1].name == "step_000003.pt"
    assert signal.getsignal(number) is handler, "afterwards Ctrl-C does what it did before"
    monkeypatch.undo()
    resumed = run(tmp_path, resume=True)
    assert not resumed.interrupted and equal(weights(resumed.model), weights(whole.model))


def test_the_second_ctrl_c_stops_at_once(tmp_path, before_step):
    def twice(_):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    before_step(3, twice)
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, in a script's background job
    try:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert checkpoints(tmp_path / "run" / "checkpoints")[-1].name == "step_000002.pt"


def test_a_run_outside_of_the_main_thread(tmp_path):
    """As in a notebook's background job: there is no Ctrl-C, and no error for that."""
    done = []
    thread = threading.Thread(target=lambda: done.append(run(tmp_path, max_steps=1)))
    thread.start()
    thread.join()
    assert done[0].step == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_stops_with_step_samples_and_a_good_checkpoint(bad, tmp_path, change_batches, monkeypatch):
    whole = run(tmp_path / "whole")
    given = {}

    def poison(number, batch):
        given[number] = batch["sample_indices"]
        if number == 4:
            batch["images"] = batch["images"].float()
            batch["images"][1] = bad
        return batch

    change_batches(poison)
    with pytest.raises(FloatingPointError) as caught:
        run(tmp_path)
    message = str(caught.value)
    assert message.startswith("Step 4: the loss is nan") and str(given[4]) in message
    good = tmp_path / "run" / "checkpoints" / "step_000002.pt"
    assert f"Last good checkpoint: {good}." in message and "learning rate" in message
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    monkeypatch.undo()
    assert equal(weights(run(tmp_path, resume=True).model), weights(whole.model))


def test_a_nan_gradient_under_a_finite_loss_stops_before_it_is_saved(tmp_path, before_step):
    def poison(model):
        model.decoder.blocks[0].norm1.weight.register_hook(lambda gradient: gradient * math.nan)

    before_step(4, poison)
    with pytest.raises(FloatingPointError, match=r"Step 4: the loss is \d.*gradient norm nan.*step_000003\.pt"):
        run(tmp_path, save_every=1)
    saved = load_checkpoint(checkpoints(tmp_path / "run" / "checkpoints")[-1])
    assert saved["step"] == 3 and all(weight.isfinite().all() for weight in saved["weights"].values())


def test_a_nan_on_validation_data_stops_too(tmp_path, change_batches):
    def poison(_, batch):
        batch["images"] = batch["images"].float()
        batch["images"][0] = math.nan
        return batch

    change_batches(poison, which=1)
    with pytest.raises(
        FloatingPointError, match=r"Step 3: the loss is nan on the validation samples \[0, .*step_000002\.pt"
    ):
        run(tmp_path)
    assert not (tmp_path / "run" / "best").exists()


# Directories and disks


def test_rows_longer_than_the_model_can_read_are_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="max_length 257 exceeds the model's 256 positions"):
        run(tmp_path, max_length=257)
    assert not any(tmp_path.iterdir())


def test_an_earlier_run_is_not_overwritten(tmp_path):
    done = run(tmp_path, max_steps=2)
    kept = {path: path.read_bytes() for path in done.directory.rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match=r"holds an earlier run\. Add --resume .* or choose another --run-name"):
        run(tmp_path, max_steps=2)
    assert kept == {path: path.read_bytes() for path in done.directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", [None, "unheard-of"])
def test_nothing_to_resume(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=r"There is nothing to resume: .* without --resume\."):
        run(tmp_path, resume=True, run_name=name)


def test_without_a_name_the_newest_run_goes_on(tmp_path):
    for age, name in enumerate(("newer", "older")):
        done = run(tmp_path, max_steps=1, run_name=name)
        os.utime(done.directory / "checkpoints", (1e9 - age, 1e9 - age))
    with pytest.raises(ValueError, match="no subset 'cubes'"):
        run(tmp_path, dataset_names=("cubes",), run_name="not begun")
    assert run(tmp_path, max_steps=2, run_name=None, resume=True).directory.name == "newer"


def test_an_unwritable_output_directory(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"Cannot write to .*file.run: .*\. Choose another --output-dir\."):
        run(tmp_path / "file")


@contextlib.contextmanager
def files_of_at_most(size):
    """The system refuses larger ones: as near to a full disk as a test comes."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("how", ["refused by the system", "no space left"])
def test_a_full_disk_leaves_the_last_checkpoint_and_says_so(how, tmp_path, monkeypatch):
    done = run(tmp_path, max_steps=2)
    newest = checkpoints(done.directory / "checkpoints")[-1]
    before = newest.read_bytes()
    limit = contextlib.nullcontext()
    if how == "refused by the system":
        pytest.importorskip("resource", reason="Windows has no limits on a process's files")
        limit = files_of_at_most(len(before) // 2)
    else:

        def full(state, path):
            Path(path).write_bytes(b"as much as fitted")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(nanovlm.training.checkpoint.torch, "save", full)
    with (
        limit,
        pytest.raises(OSError, match=r"Could not write the checkpoint .*step_000004\.pt .*step_000002\.pt") as e,
    ):
        run(tmp_path, max_steps=4, eval_every=10, resume=True)
    assert "is untouched. Free some space" in str(e.value) and "\n" not in str(e.value)
    assert newest.read_bytes() == before
    assert [path.name for path in newest.parent.iterdir()] in (
        ["step_000000.pt", newest.name],
        [newest.name, "step_000000.pt"],
    )
    monkeypatch.undo()
    assert run(tmp_path, max_steps=4, resume=True).step == 4


def test_a_disk_that_fills_up_under_the_log(tmp_path, capsys):  # what it prints goes to no file
    pytest.importorskip("resource", reason="Windows has no limits on a process's files")
    done = run(tmp_path, max_steps=2)
    log = done.directory / "metrics.jsonl"
    with (
        files_of_at_most(log.stat().st_size + 5),
        pytest.raises(
            OSError, match=r"Could not write .*metrics\.jsonl: .*\. Free some space, then go on with --resume"
        ),
    ):
        run(tmp_path, max_steps=4, resume=True)
    assert run(tmp_path, max_steps=4, resume=True).step == 4
    assert [line["step"] for line in metrics(done.directory) if "batch_loss" in line] == [1, 2, 3, 4]


def test_a_full_disk_shows_before_the_work(tmp_path, monkeypatch, before_step):
    def full(state, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nanovlm.training.checkpoint.torch, "save", full)
    before_step(1, lambda _: pytest.fail("a step was taken"))
    with pytest.raises(OSError, match=r"No space left on device.*Free some space"):
        run(tmp_path)


# Switches


def test_gradient_checkpointing_ends_with_the_same_weights(tmp_path):
    plain, saving = (run(tmp_path, max_steps=2, gradient_checkpointing=on, run_name=str(on)) for on in (False, True))
    assert saving.model.decoder.gradient_checkpointing
    assert max_difference(weights(plain.model), weights(saving.model)) < 1e-6


@pytest.mark.long
def test_a_compiled_run_ends_with_the_same_weights(tmp_path, monkeypatch):
    """Traced for real; the graphs run as Python, and tests/test_compile.py compiles them."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("eager")
    compile_module = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: compile_module(module, backend=graphs))
    plain, compiled = (
        nanovlm.training.loop.train(
            recipe(tmp_path, max_steps=2, compile=on, run_name=str(on)), new_model(num_blocks=1)
        )
        for on in (False, True)
    )
    assert graphs.frame_count >= 2
    assert max_difference(weights(plain.model), weights(compiled.model)) < 1e-4
    assert VisionLanguageModel.from_pretrained(compiled.directory / "best")
    torch._dynamo.reset()


def test_packing_sees_the_same_samples_and_counts_them(tmp_path):
    plain, packed = (
        metrics(run(tmp_path, max_steps=2, packing=on, max_length=250, run_name=str(on)).directory)
        for on in (False, True)
    )
    assert packed[0]["batch_loss"] == pytest.approx(plain[0]["batch_loss"], abs=1e-4)
    assert packed[-1]["val_loss"] == pytest.approx(plain[-1]["val_loss"], abs=1e-3)


def test_two_runs_of_a_seed_are_equal_and_of_two_seeds_are_not(tmp_path):
    ends = [
        weights(run(tmp_path, max_steps=2, seed=seed, run_name=name).model)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert equal(ends[0], ends[1]) and not equal(ends[0], ends[2])


def test_memory_stays_flat_over_120_steps(tmp_path, monkeypatch):
    tensors, kilobytes = [], []
    real, status = nanovlm.training.step.train_step, Path("/proc/self/status")

    def train_step(*arguments):
        loss = real(*arguments)
        if len(tensors) < 120:
            tensors.append(None)
        if len(tensors) in (60, 120):  # past the first evaluation
            gc.collect()
            tensors[-1] = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
            if status.exists():
                kilobytes.append(int(status.read_text().split("VmRSS:")[1].split()[0]))
        return loss

    monkeypatch.setattr(nanovlm.training.loop, "train_step", train_step)
    run(tmp_path, max_steps=120, batch_size=1, max_length=40, log_every=10, eval_every=40, save_every=40)
    assert tensors[119] - tensors[59] < 30, "tensors are kept: that is more than one every other step"
    if not kilobytes:
        pytest.skip("no /proc here: the tensors were counted, the memory of the process was not")
    assert kilobytes[1] - kilobytes[0] < 10_000
