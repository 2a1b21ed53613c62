"""The first cell of every notebook: quiet where nanovlm is installed, one install in Colab, a sentence elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from nanovlm.course.stamps import read_project, setup_cell
from tests.course.learners import ROOT

CELL = setup_cell(read_project(ROOT)).words()

HIDE = """
import sys, importlib.abc
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] == "nanovlm":
            raise ModuleNotFoundError(name)
hidden = Hide()
sys.meta_path.insert(0, hidden)
"""
COLAB = """
import sys, types, subprocess
sys.modules["google.colab"] = types.ModuleType("google.colab")
def run(command):
    print(command[1:])
    if CODE == 0:
        sys.meta_path.remove(hidden)
    return types.SimpleNamespace(returncode=CODE)
subprocess.run = run
"""


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=600)


def test_nothing_happens_where_nanovlm_is_installed(tmp_path: Path) -> None:
    """In a folder that holds nothing."""
    done = run(CELL, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_kernel_without_it_is_told_what_to_do(tmp_path: Path) -> None:
    done = run(HIDE + CELL, tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert "This kernel has no nanovlm" in done.stderr and "make lab" in done.stderr and "pip install" in done.stderr
    assert "During handling of" not in done.stderr, "one error, not two"


def test_colab_installs_the_branch_that_its_links_open(tmp_path: Path) -> None:
    """A tag would lack what the notebook needs, until somebody releases it."""
    done = run(HIDE + "CODE = 0" + COLAB + CELL, tmp_path)
    assert done.returncode == 0, done.stderr
    project = read_project(ROOT)
    wanted = ["-m", "pip", "install", "-q", f"nanovlm[notebook] @ git+{project.repository}@main"]
    assert done.stdout.strip() == f"{wanted}"
    assert project.colab("x").endswith("/blob/main/x")


def test_a_failing_install_ends_in_one_sentence_of_ours(tmp_path: Path) -> None:
    done = run(HIDE + "CODE = 1" + COLAB + CELL, tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("pip could not install nanovlm (see above). Run this again.")
    assert "CalledProcessError" not in done.stderr and "During handling of" not in done.stderr


FIRST_CELLS = """
import json, os, sys
from pathlib import Path

site, folders = sys.argv[1], sys.argv[2:]
for folder in folders:
    os.chdir(folder)
    (notebook,) = Path().iterdir()
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    exec("".join(next(cell for cell in cells if cell["cell_type"] == "code")["source"]), {"__name__": "__main__"})

import nanovlm.course
from nanovlm.assets import asset_path

assert nanovlm.__file__.startswith(site), nanovlm.__file__
assert str(asset_path("pocket")).startswith(site) and asset_path("images/shapes.png").is_file()
"""


def test_the_first_cell_of_every_notebook_works_with_a_wheel_and_nothing_else(tmp_path: Path) -> None:
    """Each notebook alone in a folder; the package comes from a wheel that is built here, not from the clone."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "wheel")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    folders = []
    for notebook in (path for name in ("chapters", "exercises", "solutions") for path in (ROOT / name).glob("*.ipynb")):
        folders.append(tmp_path / notebook.parent.name / notebook.stem)
        folders[-1].mkdir(parents=True)
        shutil.copy(notebook, folders[-1])
    assert len(folders) >= 3
    done = subprocess.run(
        [sys.executable, "-c", FIRST_CELLS, str(tmp_path / "site"), *map(str, folders)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
