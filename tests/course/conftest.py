from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the progress of whoever runs it."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("NANOVLM_HOME", str(home))
    monkeypatch.delenv("NANOVLM_BUDGET", raising=False)
    return home
