"""Training runs that were made once and stored, so that a chapter shows real curves beside short live ones."""

from __future__ import annotations

import json
from typing import Any

from nanovlm.assets import asset_path


def stored_runs(name: str) -> dict[str, dict[str, Any]]:
    """assets/runs/NAME.json: name of the run -> what `python -m nanovlm.bench.training_runs` wrote down."""
    return json.loads(asset_path(f"runs/{name}.json").read_text(encoding="utf-8"))
