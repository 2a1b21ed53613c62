"""Two processes are one: the same step, the same run, and they stop together."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

import nanovlm.training.loop
from nanovlm.training import parallel as distributed
from nanovlm.training.checkpoint import checkpoints, load_checkpoint
from nanovlm.training.optimizer import Optimizers
from tests.training import children
from tests.training.tiny_run import batches, items, max_difference, metrics, new_model, recipe, run, step, weights

pytestmark = pytest.mark.skipif(os.name == "nt", reason="several processes train together on Linux and macOS only")
GENTLE = {"optimizer": "adamw", "lr_backbones": 1e-4, "lr_projector": 1e-3}


def rows(with_images_in_the_second_half: bool) -> list:
    all_items = items(32)
    return all_items if with_images_in_the_second_half else all_items[:16] + items(32, with_images=False)[16:]


def one_step(rank: int, directory: Path, with_images: bool) -> None:
    world = distributed.start()[1]
    model = new_model()
    own = rows(with_images)[32 // world * rank : 32 // world * (rank + 1)]
    wrapped = distributed.wrap(model, "ddp", torch.device("cpu"))
    loss = step(wrapped, batches(own, 8), Optimizers(model, recipe(directory, **GENTLE)))
    torch.save((loss, weights(model)), directory / f"{world}_{rank}.pt")
    distributed.stop()


@pytest.mark.long
@pytest.mark.parametrize("with_images", [True, False])
def test_two_processes_of_sixteen_are_one_of_thirty_two(tmp_path, with_images):
    """Of unequal lengths; and where the second process sees no picture, so that its encoder has no gradient."""
    one_step(0, tmp_path, with_images)
    children.together(2, one_step, tmp_path, with_images)
    (loss, one), *two = (torch.load(tmp_path / name) for name in ("1_0.pt", "2_0.pt", "2_1.pt"))
    for loss_2, after in two:
        assert loss_2 == pytest.approx(loss, abs=1e-6)
        without_key_bias = [
            {n: w for n, w in state.items() if not n.endswith("qkv_proj.bias")} for state in (one, after)
        ]
        assert max_difference(*without_key_bias) < 1e-6
    assert max_difference(two[0][1], two[1][1]) == 0, "the processes agree bitwise"


def a_run(rank: int, directory: Path) -> None:
    # The clock might tell them different seconds.
    nanovlm.training.loop.get_run_name = lambda *_: f"named-by-{rank}"
    config = recipe(directory, **GENTLE, run_name=None, batch_size=2, max_steps=3)
    done = nanovlm.training.loop.train(config, new_model(seed=rank))  # even if they start from different weights
    torch.save(weights(done.model), directory / f"{rank}.pt")


def test_a_run_of_two_is_a_run_of_one(tmp_path):
    children.together(2, a_run, tmp_path)
    both = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert max_difference(*both) == 0
    alone = run(tmp_path, **GENTLE, batch_size=4, max_steps=3)
    assert max_difference(both[0], weights(alone.model)) < 1e-5
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["named-by-0", "run"]
    lines, own = metrics(tmp_path / "named-by-0"), metrics(alone.directory)
    assert [line["step"] for line in lines] == [line["step"] for line in own] == [1, 2, 3, 3]
    assert [line.get("val_loss") for line in lines] == pytest.approx([line.get("val_loss") for line in own], abs=1e-4)


def stopped(rank: int, directory: Path) -> None:
    real, calls = nanovlm.training.loop.train_step, 0

    def noticed(*arguments):
        nonlocal calls
        calls += 1
        if rank == 1 and calls == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)

    nanovlm.training.loop.train_step = noticed
    done = nanovlm.training.loop.train(recipe(directory, batch_size=2, max_steps=50), new_model())
    assert done.interrupted and done.step == 2


def test_processes_stop_together(tmp_path):
    """Ctrl-C reaches one a step before the other: nobody is left waiting."""
    children.together(2, stopped, tmp_path)
    newest = checkpoints(tmp_path / "run" / "checkpoints")[-1]
    assert load_checkpoint(newest)["step"] == 2
