"""The stored runs of chapter 17 are those of the designs in the code, at equal cost and with equal steps."""

from __future__ import annotations

from nanovlm.bench.designs import make_design
from nanovlm.bench.frozen_encoders import ENCODERS
from nanovlm.course.runs import stored_runs
from nanovlm.designs.registry import DESIGNS


def test_every_design_was_run_as_it_is_now() -> None:
    runs = stored_runs("17_designs")
    assert set(runs) == set(DESIGNS)
    for key in ("steps", "batch_size", "held_out"):
        assert len({run[key] for run in runs.values()}) == 1
    for name in ("standard", "cnn", "early_fusion"):  # the ones whose sizes differ most
        model, told = make_design(name, seed=0)
        assert runs[name]["forward_flops"] == told["forward_flops"]
        assert runs[name]["parameters"] == sum(p.numel() for p in model.parameters())


def test_every_encoder_was_run() -> None:
    runs = stored_runs("17_encoders")
    assert set(runs) == set(ENCODERS)
    for name, (contrastive, _) in ENCODERS.items():
        assert all(("recall" in run) == contrastive for run in runs[name]["seeds"].values())
