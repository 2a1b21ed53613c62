"""The measurements of a full run, at a tiny size: they run whole, and what they compare agrees."""

from __future__ import annotations

import json

import pytest

from nanovlm.assets import asset_path
from nanovlm.bench.full_run import RUNGS, generated_samples, measure_loader, table
from nanovlm.bench.gpu_report import PATHS, best_rung, readme_table
from nanovlm.cli import main
from nanovlm.config import presets


@pytest.mark.long
def test_the_report_runs_whole_on_a_cpu(tmp_path, capsys):
    file = tmp_path / "report.json"
    assert main(["bench", "--gpu-report", str(file), "--small"]) == 0
    report = json.loads(file.read_text())
    assert [entry["path"] for entry in report["attention"]][: len(PATHS)] == list(PATHS)
    assert all(entry["good"] for entry in report["attention"]) and report["packed_beside_padded"]["good"]
    assert report["blocks_beside_mask"]["good"] and report["blocks_beside_mask"]["milliseconds"] is None
    assert [rung["rung"] for rung in report["ladder"]] == [rung.name for rung in RUNGS]
    assert all(rung["samples_per_second"] > 0 and 0 <= rung["share_waiting_for_data"] <= 1 for rung in report["ladder"])
    assert best_rung(report) in report["ladder"]
    assert f"{best_rung(report)['samples_per_second']:,.0f}" in readme_table([report]).splitlines()[2]
    assert table(report["ladder"]) in capsys.readouterr().out


def test_the_loaders_images_are_those_of_plain_pil():
    measured = measure_loader(presets()["h100"].vlm, count=4)
    assert measured["levels_apart"] < 0.1 and measured["pictures_per_second"] > 0


def test_generated_samples_are_always_the_same():
    assert generated_samples(3) == generated_samples(3)


def test_the_readme_shows_the_gpus_that_reported():
    reports = [json.loads(path.read_text()) for path in sorted(asset_path("runs").glob("gpu_*.json"))]
    readme = (asset_path("runs").parents[1] / "README.md").read_text(encoding="utf-8")
    if reports:
        assert readme_table(reports) in readme, "nanovlm.bench.gpu_report.readme_table"
    else:
        assert "--gpu-report assets/runs/gpu_NAME.json" in readme
