"""Training runs that were made once and stored, so that a chapter shows real curves beside short live ones."""

from __future__ import annotations

import json
from typing import Any

from nanovlm.assets import asset_path


def stored_runs(name: str) -> dict[str, dict[str, Any]]:
    """assets/runs/NAME.json: name of the run -> what `python -m nanovlm.bench.training_runs` wrote down."""
    return json.loads(asset_path(f"runs/{name}.json").read_text(encoding="utf-8"))


def pocket_logs() -> dict[str, list[dict[str, Any]]]:
    """The logs of the four runs that made the pocket model, in their order: "run 1" -> a row for each step logged. (The
    fifth trained the embedding of one token.)"""
    logs = {}
    for number in range(1, 5):
        lines = asset_path(f"pocket/train_log_{number}.jsonl").read_text(encoding="utf-8").splitlines()
        logs[f"run {number}"] = [json.loads(line) for line in lines]
    return logs
