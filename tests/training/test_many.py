"""Two and four processes on one machine: the curve of one, a checkpoint for any number, one end for all."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import nanovlm.training.loop
from nanovlm.training.checkpoint import checkpoints, load_checkpoint
from nanovlm.training.sharded import ShardedSaver, one_sentence
from tests.training import children
from tests.training.tiny_run import equal, max_difference, metrics, new_model, recipe

pytestmark = pytest.mark.skipif(os.name == "nt", reason="several processes train together on Linux and macOS only")
ROWS, STEPS = 8, 6  # of one step, whoever computes them


def config(directory: Path, world: int, steps: int = STEPS, **changes):
    changes = {"optimizer": "adamw", "lr_backbones": 1e-3, "val_size": 4, "accuracy_images": 4, **changes}
    rows = ROWS // world // changes.get("gradient_accumulation_steps", 1)
    return recipe(directory, batch_size=min(rows, ROWS), max_steps=steps, save_every=3, eval_every=3, **changes)


def train(rank: int, directory: Path, world: int, kind: str, steps: int = STEPS, resume=False, **changes) -> None:
    changed = {"dataset_size": 64, "parallel": kind, "resume": resume, **changes}
    nanovlm.training.loop.get_lr = lambda *_: 1.0  # the schedule would know how many steps there will be
    nanovlm.training.loop.train(config(directory, world, steps, **changed), new_model(seed=rank))


def curve(directory: Path) -> list[float]:
    lines = metrics(directory / "run")
    return [line["batch_loss"] for line in lines if "batch_loss" in line] + [
        line[name] for line in lines for name in ("val_loss", "accuracy") if name in line
    ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    directory = tmp_path_factory.mktemp("alone")
    assert children.wait(children.start(train, 0, directory, 1, "ddp")) == 0
    return directory


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """(how many processes, in which way) -> the directory of their run, which nothing disturbs"""
    done: dict[tuple[int, str], Path] = {}

    def get(world: int, kind: str) -> Path:
        if (world, kind) not in done:
            done[world, kind] = tmp_path_factory.mktemp("many")
            children.together(world, train, done[world, kind], world, kind)
        return done[world, kind]

    return get


@pytest.mark.parametrize(
    ("world", "kind"),
    [(2, "ddp"), (2, "fsdp"), *(pytest.param(4, kind, marks=pytest.mark.long) for kind in ("ddp", "fsdp"))],
)
def test_many_have_the_curve_of_one(world, kind, alone, many):
    directory = many(world, kind)
    assert curve(directory) == pytest.approx(curve(alone), abs=1e-5)
    ends = [load_checkpoint(checkpoints(d / "run" / "checkpoints")[-1]) for d in (alone, directory)]
    assert ends[0]["samples"] == ends[1]["samples"] == ROWS * STEPS
    assert {name: w.shape for name, w in ends[1]["weights"].items()} == {
        name: w.shape for name, w in ends[0]["weights"].items()
    }


def accumulated(rank: int, directory: Path) -> None:
    train(rank, directory, 2, "ddp", gradient_accumulation_steps=2)


def test_accumulated_batches_are_summed_once(alone, tmp_path):
    children.together(2, accumulated, tmp_path)
    assert curve(tmp_path) == pytest.approx(curve(alone), abs=1e-5)


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def of_two(request, tmp_path_factory):
    """How two processes trained, and where they stopped: after half the steps."""
    directory = tmp_path_factory.mktemp("two")
    children.together(2, train, directory, 2, request.param, 3)
    return request.param, directory


@pytest.mark.parametrize("after", [1, pytest.param(4, marks=pytest.mark.long)])
def test_a_checkpoint_of_two_goes_on_in_one_and_in_four(of_two, after, alone, tmp_path):
    kind, stopped = of_two
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    assert checkpoints(tmp_path / "run" / "checkpoints")[-1].is_dir() == (kind == "fsdp")
    if after == 1:
        assert children.wait(children.start(train, 0, tmp_path, 1, "ddp", STEPS, True)) == 0
    else:
        children.together(after, train, tmp_path, after, kind, STEPS, True)
    assert curve(tmp_path)[:STEPS] == pytest.approx(curve(alone)[:STEPS], abs=1e-5)
    ends = [load_checkpoint(checkpoints(d / "run" / "checkpoints")[-1]) for d in (alone, tmp_path)]
    assert ends[1]["samples"] == ends[0]["samples"]
    without = [{n: w for n, w in end["weights"].items() if not n.endswith("qkv_proj.bias")} for end in ends]
    assert max_difference(*without) < 1e-4


def in_the_background(rank: int, directory: Path) -> None:
    nanovlm.training.loop.ShardedSaver = lambda _, drop_old: ShardedSaver(True, drop_old)
    train(rank, directory, 2, "fsdp")


@pytest.mark.long
def test_parts_written_in_the_background_are_those_of_their_step(many, tmp_path):
    folders = [many(2, "fsdp"), tmp_path]
    children.together(2, in_the_background, folders[1])
    for one, other in zip(*(checkpoints(folder / "run" / "checkpoints") for folder in folders), strict=True):
        assert one.name == other.name
        assert equal(load_checkpoint(one)["weights"], load_checkpoint(other)["weights"])
    assert not list(tmp_path.rglob("*.partial*"))


def test_parts_that_cannot_be_written_or_read_are_one_sentence(tmp_path):
    said = r"Could not write the checkpoint of step 7 .*\(no space\); the one before it"
    with pytest.raises(OSError, match=said), one_sentence(tmp_path, 7):
        raise RuntimeError("CheckpointException ranks:dict_keys([0])\nno space")
    (tmp_path / "step_000001").mkdir()
    with pytest.raises(ValueError, match="step_000001 cannot be read"):
        load_checkpoint(tmp_path / "step_000001")


def killed(rank: int, directory: Path) -> None:
    real, calls = nanovlm.training.loop.train_step, 0

    def step(*arguments):
        nonlocal calls
        calls += 1
        if rank == 1 and calls == 2:
            children.die()
        return real(*arguments)

    nanovlm.training.loop.train_step = step
    try:
        train(rank, directory, 2, "ddp")
    except ConnectionError as error:
        (directory / f"reason {rank}").write_text(str(error))
        raise SystemExit(3) from error


def test_one_killed_process_ends_all_with_a_reason(tmp_path):
    started = children.gather(2, killed, tmp_path)
    codes = [children.wait(process) for process in started]
    assert codes == [3, children.KILLED]
    assert "Process 0 of 2 stops, because another one has ended" in (tmp_path / "reason 0").read_text()


def test_one_process_has_nothing_to_deal_out(tmp_path):
    with pytest.raises(ValueError, match="Muon looks at whole matrices"):
        config(tmp_path, 2, parallel="fsdp", optimizer="muon")
    with pytest.raises(ValueError, match="start them with torchrun"):
        nanovlm.training.loop.train(config(tmp_path, 1, parallel="fsdp"), new_model())


def test_nobody_reads_a_sample_twice(tmp_path):
    """Case 07: another batch size, or several batches a step: a run goes on behind what it saw."""
    shown: list[int] = []
    real = nanovlm.training.loop.train_step

    def watched(model, batches, *rest):
        shown.extend(i for batch in batches for i in batch["sample_indices"])
        return real(model, batches, *rest)

    nanovlm.training.loop.train_step = watched
    try:
        pairs = [
            ({"batch_size": 4, "max_steps": 6}, {"batch_size": 8, "max_steps": 9}),
            ({"batch_size": 8, "max_steps": 3}, {"batch_size": 4, "max_steps": 9}),
            ({"batch_size": 4, "max_steps": 6}, {"batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 9}),
        ]
        for number, (first, then) in enumerate(pairs):
            shown.clear()
            base = recipe(tmp_path, dataset_size=48, val_size=2, eval_every=100, accuracy_images=0)
            base = replace(base, run_name=f"pair {number}")
            nanovlm.training.loop.train(replace(base, **first), new_model())
            nanovlm.training.loop.train(replace(base, resume=True, **then), new_model())
            assert sorted(shown) == list(range(48))
    finally:
        nanovlm.training.loop.train_step = real


def test_float32_sums_under_bfloat16():
    from nanovlm.device import Precision
    from nanovlm.training import parallel

    precision = Precision("bf16", "a test", weights=torch.bfloat16)
    assert parallel.precision_for_many(precision) is precision, "one process needs no sums"
