"""The environment check finds what is missing and says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

import nanovlm.commands.environment as doctor
from nanovlm import assets
from nanovlm.cli import main
from nanovlm.config import presets
from nanovlm.weights.from_preset import build_model


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of random weights in place of the one that ships."""
    directory = build_model(presets()["pocket"]).save_pretrained(tmp_path / "pocket")
    real = assets.asset_path
    monkeypatch.setattr(assets, "asset_path", lambda name: directory if name == "pocket" else real(name))
    return directory


def requirements(monkeypatch: pytest.MonkeyPatch, *texts: str) -> dict[str, doctor.Finding]:
    monkeypatch.setattr("importlib.metadata.requires", lambda _: list(texts))
    return {finding.subject: finding for finding in doctor.packages()}


def test_a_sound_environment(
    shipped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.metadata.requires", lambda _: ["torch>=2.6", 'pytest>=8; extra == "dev"'])
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "Everything that the course needs is here." in out
    subjects = ("Python", "machine", "memory", "disk", "progress", "budget", "dependencies", "nanovlm[dev]", "device")
    for subject in (*subjects, "pocket model"):
        assert f"  {subject} " in out
    assert "!!" not in out


def test_a_home_that_cannot_be_written_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOVLM_HOME", str(tmp_path / "not" / "there" / "yet"))
    assert doctor.progress().state == "ok"
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("NANOVLM_HOME", str(tmp_path / "a file" / "below"))
    found = doctor.progress()
    assert found.state == "problem" and "NANOVLM_HOME" in found.advice
    assert not (tmp_path / "not").exists(), "looking writes nothing"


def test_a_budget_that_does_not_exist_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOVLM_BUDGET", "laptop")
    assert doctor.notebook_sizes().found == "laptop: set by NANOVLM_BUDGET"
    monkeypatch.setenv("NANOVLM_BUDGET", "huge")
    found = doctor.notebook_sizes()
    assert found.state == "problem" and "'huge'" in found.found and "Unset it" in found.advice


def test_a_missing_or_old_package_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    found = requirements(monkeypatch, "torch>=2.6", "no-such-package>=1", "pytest>=900")["dependencies"]
    assert found.state == "problem"
    assert "no-such-package is missing" in found.found
    assert ">=900" in found.found and "torch" not in found.found
    assert found.advice == 'For the package: pip install "nanovlm"'


def test_a_missing_extra_is_only_worth_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    found = requirements(monkeypatch, "torch>=2.6", 'no-such-package>=1; extra == "lab"')["nanovlm[lab]"]
    assert found.state == "note"
    assert found.advice == 'For JupyterLab: pip install "nanovlm[lab]"'


def test_problems_end_with_status_1_and_are_marked(
    shipped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.metadata.requires", lambda _: ["no-such-package"])
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "!!  dependencies" in out and "1 to mend" in out
    assert "pocket model" not in out, "without its packages the model is not asked"


def test_long_lines_wrap_between_words() -> None:
    names = [f"package-{i}" for i in range(30)]
    text = doctor.report([doctor.Finding("dependencies", ", ".join(names))], columns=60)
    assert max(map(len, text.splitlines())) <= 60
    assert all(name in text for name in names), "none is cut in two"


def test_a_damaged_model_is_a_problem(shipped: Path) -> None:
    (shipped / "model.safetensors").write_bytes(b"")
    found = doctor.pocket_model()
    assert found.state == "problem"
    assert "not a whole safetensors file" in found.found


def test_little_memory_disk_and_python_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "NEEDED_MEMORY", 2**60)
    monkeypatch.setattr(doctor, "NEEDED_DISK", 2**60)
    monkeypatch.setattr(doctor, "OLDEST_PYTHON", (4, 0))
    assert [f.state for f in (doctor.memory(), doctor.disk(), doctor.python())] == ["note", "note", "problem"]
    assert all(f.advice for f in (doctor.memory(), doctor.disk(), doctor.python()))
