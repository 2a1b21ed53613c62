"""A run on a stream: stopped and resumed it ends bitwise where it would have ended; so with checkpoints in a thread."""

from __future__ import annotations

import pytest
import torch

import nanovlm.training.checkpoint
from nanovlm.training.checkpoint import Background, checkpoints, load_checkpoint, save_checkpoint
from tests.test_streaming import quiet_cache  # noqa: F401
from tests.training.tiny_run import equal, parquet_subsets, run, weights


@pytest.fixture
def data(tmp_path):
    return {**parquet_subsets(tmp_path / "data"), "stream": True, "val_size": 4}


@pytest.mark.parametrize("changes", [{}, {"num_workers": 1, "packing": True}])
def test_a_resumed_run_on_a_stream_ends_with_the_same_weights(data, changes, tmp_path):
    whole = run(tmp_path / "whole", max_steps=9, **data, **changes)
    run(tmp_path, max_steps=9, **data, **changes, save_every=4)
    newest = checkpoints(tmp_path / "run" / "checkpoints")[-1]
    newest.unlink()  # as if the end had not been reached
    again = run(tmp_path, max_steps=9, **data, **changes, save_every=4, resume=True)
    assert again.step == 9 and equal(weights(again.model), weights(whole.model))


def test_the_two_kinds_of_reading_share_the_validation_split_over_seeds(tmp_path, data):
    from nanovlm.config import TrainConfig
    from nanovlm.data.loading import get_dataloaders
    from tests.training.tiny_run import new_model

    model, held_out = new_model(), []
    for seed in (0, 1):
        config = TrainConfig(**{**data, "stream": False}, seed=seed, max_length=160)
        _, val = get_dataloaders(config, model.config, model.tokenizer, model.image_processor)
        held_out.append(val.batches.order.indices.tolist())
    assert held_out[0] == held_out[1]


def test_a_checkpoint_in_a_thread_holds_the_state_of_its_moment(tmp_path, monkeypatch):
    monkeypatch.setattr(nanovlm.training.checkpoint, "CONTENT", {"weights": dict})
    background = Background(torch.device("cuda"))
    weight = torch.zeros(3)
    background(save_checkpoint, tmp_path, 1, {"weights": {"w": weight}, "list": [1, (weight, "x")]})
    weight.fill_(7)
    background.finish()
    assert load_checkpoint(checkpoints(tmp_path)[0])["weights"]["w"].tolist() == [0, 0, 0]

    def full(*_):
        raise OSError("no space left")

    background(full, tmp_path, 2, {})
    with pytest.raises(OSError, match="no space left"):
        background.finish()
