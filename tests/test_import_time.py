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
{imports}
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def imported(imports: str) -> list[str]:
    """The modules that the imports bring beyond torch."""
    command = [sys.executable, "-c", SCRIPT.format(imports=imports)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def heavy(modules: list[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules} & set(HEAVY)


def test_the_model_and_its_recipe_bring_little_beyond_torch() -> None:
    modules = imported("import nanovlm; nanovlm.VisionLanguageModel; nanovlm.TrainConfig")
    assert heavy(modules) == set()
    assert "torch._dynamo" not in modules, "half as dear as torch itself, and needed to compile only"
    assert len(modules) < 100


def test_import_alone_brings_not_even_torch() -> None:
    code = "import sys, nanovlm; assert nanovlm.__version__; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_module_of_the_core_imports_a_heavy_package_by_itself() -> None:
    names = [module.name for module in pkgutil.walk_packages(nanovlm.__path__, "nanovlm.")]
    drawing = ("nanovlm.viz", "nanovlm.course", "nanovlm.__main__")
    core = [name for name in names if not name.startswith(drawing) and not name.endswith("__main__")]
    assert {"nanovlm.models.language_model", "nanovlm.data.datasets", "nanovlm.training.loop"} <= set(core)
    assert heavy(imported("\n".join(f"import {name}" for name in core))) == set()


@pytest.mark.parametrize("name", nanovlm.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(nanovlm, name).__name__ == name


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'nanovlm' has no attribute 'Transformer'"):
        nanovlm.Transformer  # noqa: B018
