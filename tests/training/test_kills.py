"""From two backbones and parquet files to an answer, with kill -9 in ten steps on the way: bitwise the same weights."""

from __future__ import annotations

import os
import random
import traceback
from pathlib import Path
from typing import Any

import pytest

import nanovlm.data.thimble
import nanovlm.training.loop
from nanovlm.config import Preset
from nanovlm.evaluation.scores import evaluate
from nanovlm.models.vision_language_model import VisionLanguageModel
from nanovlm.training.checkpoint import checkpoints, load_checkpoint
from nanovlm.weights.from_preset import build_model
from tests.small_backbones import small_backbones
from tests.test_streaming import quiet_cache  # noqa: F401
from tests.training import children
from tests.training.tiny_run import equal, metrics, parquet_subsets, recipe

pytestmark = [pytest.mark.skipif(os.name == "nt", reason="Windows cannot fork"), pytest.mark.long]
STEPS, KILLS = 22, 10
MEASURED = {"seconds", "samples_per_second", "tokens_per_second"}
WAYS = {
    "map-style, packed, a worker": {"num_workers": 1, "packing": True, "gradient_accumulation_steps": 2},
    "a stream, padded, a worker": {"num_workers": 1, "stream": True},
}  # the other two: test_resume.py (map-style, padded) and test_stream_run.py (a stream, packed)


def train_until(step: int | None, preset: Preset, directory: Path, changes: dict[str, Any]) -> None:
    """The run, or the rest of it; killed in that step, before the weights move or after."""
    reached, real, real_lr = 0, nanovlm.training.loop.train_step, nanovlm.training.loop.get_lr

    def get_lr(number: int, *rest: Any) -> float:
        nonlocal reached
        reached = number
        return real_lr(number, *rest)

    def train_step(*arguments: Any) -> float:
        if reached == step and step % 2:
            children.die()
        loss = real(*arguments)
        if reached == step:
            children.die()
        return loss

    nanovlm.training.loop.get_lr, nanovlm.training.loop.train_step = get_lr, train_step
    resume = (directory / "run" / "checkpoints").is_dir()
    nanovlm.training.loop.train(recipe(directory, resume=resume, **changes), build_model(preset))


def runs(preset: Preset, directory: Path, changes: dict[str, Any], kills: list[int]) -> None:
    """In one process that has imported all there is: it forks for each run, which costs nothing."""
    import datasets  # noqa: F401

    for place, ends in (("undisturbed", [None]), ("killed", [*kills, None])):
        for step in ends:
            child = os.fork()
            if child == 0:
                try:
                    train_until(step, preset, directory / place, changes)
                except BaseException:
                    (directory / "error").write_text(traceback.format_exc())
                    os._exit(1)
                os._exit(0)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert code == (0 if step is None else children.KILLED), (step, code)


@pytest.mark.parametrize("way", WAYS)
def test_killed_in_ten_steps(way: str, tmp_path: Path) -> None:
    changes = {
        **parquet_subsets(tmp_path / "data"),
        **{"optimizer": "adamw", "max_steps": STEPS, "save_every": 3, "eval_every": 11, "val_size": 4},
        **WAYS[way],
    }
    kills = sorted(random.Random(way).sample(range(STEPS), KILLS))
    child = children.start(runs, small_backbones(tmp_path), tmp_path, changes, kills)
    code = children.wait(child)
    assert code == 0, (tmp_path / "error").read_text() if (tmp_path / "error").exists() else code
    whole, killed = tmp_path / "undisturbed" / "run", tmp_path / "killed" / "run"
    ends = [load_checkpoint(checkpoints(run / "checkpoints")[-1]) for run in (whole, killed)]
    assert ends[0]["step"] == ends[1]["step"] == STEPS and ends[0]["samples"] == ends[1]["samples"]
    assert equal(ends[0]["weights"], ends[1]["weights"])
    assert set(ends[1]["started_from"].values()) == {"siglip", "llama"}
    logs = [[{k: v for k, v in line.items() if k not in MEASURED} for line in metrics(run)] for run in (whole, killed)]
    assert logs[0] == logs[1]
    assert (whole / "best" / "model.safetensors").read_bytes() == (killed / "best" / "model.safetensors").read_bytes()
    model = VisionLanguageModel.from_pretrained(killed / "best")
    sample = nanovlm.data.thimble.thimble_sample("shapes", "val", 0)
    assert evaluate(model, [sample], blind=False).scores
    image, prompt = sample["images"][0], sample["texts"][0]["user"]
    answer = model.generate(image=image, prompt=prompt, max_new_tokens=4)
    again = VisionLanguageModel.from_pretrained(model.save_pretrained(tmp_path / "again"))
    assert again.generate(image=image, prompt=prompt, max_new_tokens=4) == answer
