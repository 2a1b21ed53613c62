"""`import nanovlm` stays cheap: heavy packages are imported where they are used."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys

import pytest

import nanovlm

HEAVY = ("transformers", "datasets", "pyarrow", "pandas", "matplotlib", "ipywidgets", "IPython", "wandb", "torchvision")
SCRIPT = """
import json, sys
import torch
before = set(sys.modules)
"""


def imported(*imports: str) -> list[list[str]]:
    """After each of the imports, the modules that they and those before them bring beyond torch."""
    brought = "\nprint(json.dumps(sorted(set(sys.modules) - before)))\n"
    command = [sys.executable, "-c", SCRIPT + "".join(line + brought for line in imports)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()[-len(imports) :]]


def heavy(modules: list[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules} & set(HEAVY)


def test_modules_of_the_core_bring_little_beyond_torch() -> None:
    names = [module.name for module in pkgutil.walk_packages(nanovlm.__path__, "nanovlm.")]
    drawing = ("nanovlm.viz", "nanovlm.course", "nanovlm.__main__")
    core = [name for name in names if not name.startswith(drawing) and not name.endswith("__main__")]
    assert {"nanovlm.models.language_model", "nanovlm.data.datasets", "nanovlm.training.loop"} <= set(core)
    model, all_of_it = imported(
        "import nanovlm; nanovlm.VisionLanguageModel; nanovlm.TrainConfig",
        "\n".join(f"import {name}" for name in core),
    )
    assert heavy(model) == set()
    assert "torch._dynamo" not in model, "half as dear as torch itself, and needed to compile only"
    assert len(model) < 100
    assert heavy(all_of_it) == set()


def test_import_alone_brings_not_even_torch() -> None:
    code = "import sys, nanovlm; assert nanovlm.__version__; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", nanovlm.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(nanovlm, name).__name__ == name


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'nanovlm' has no attribute 'Transformer'"):
        nanovlm.Transformer  # noqa: B018
