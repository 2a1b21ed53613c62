"""--batch-size auto: bisection that never tries too much, and a run that takes what fits."""

from __future__ import annotations

import pytest
import torch

from nanovlm.config import TrainConfig
from nanovlm.device import Precision
from nanovlm.training import largest_batch as room
from nanovlm.training.loop import train
from tests.training.tiny_run import new_model, recipe

CPU, FP32 = torch.device("cpu"), Precision("fp32", "a test")


@pytest.mark.parametrize("holds", [0, 1, 2, 3, 37, 63, 64, 65, 500])
def test_the_largest_that_fits_is_found_and_nothing_is_tried_in_vain(holds: int) -> None:
    tried: list[int] = []

    def fits(rows: int) -> bool:
        tried.append(rows)
        return rows <= holds

    assert room.largest_batch(fits, 64) == min(holds, 64)
    assert len(set(tried)) == len(tried) <= 13 and max(tried) <= max(1, 2 * holds)


def test_what_is_found_fits_into_the_free_memory(monkeypatch) -> None:
    monkeypatch.setattr(room, "step_bytes", lambda model, config, rows, *rest: 1_000 + 100 * rows)
    monkeypatch.setattr(room, "free_bytes", lambda: 1_350 / 0.9)
    config, said = TrainConfig(max_length=24, batch_size="auto"), []
    assert room.find_batch_size(new_model(), config, FP32, CPU, said.append) == 3 and "3 rows" in said[0]
    monkeypatch.setattr(room, "free_bytes", lambda: 1_000.0)
    with pytest.raises(ValueError, match="Not even one row of 24 tokens"):
        room.find_batch_size(new_model(), config, FP32, CPU, said.append)


def test_a_step_needs_more_for_more_rows_and_less_with_adapters_and_the_model_stays() -> None:
    model = new_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    one, two, adapters = (
        room.step_bytes(model, TrainConfig(max_length=24, lora_rank=rank), rows, FP32, CPU)
        for rows, rank in ((1, 0), (2, 0), (1, 1))
    )
    assert adapters < one < two
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_a_run_takes_the_batch_that_was_found(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(room, "step_bytes", lambda model, config, rows, *rest: rows)
    monkeypatch.setattr(room, "free_bytes", lambda: 2.5 / 0.9)
    run = train(recipe(tmp_path, max_steps=1, batch_size="auto"), new_model())
    assert run.step == 1
    with pytest.raises(ValueError, match="batch_size"):
        TrainConfig(batch_size="many")
    with pytest.raises(ValueError, match="at least 1"):
        TrainConfig(batch_size=0)
