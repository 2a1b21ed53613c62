"""The first cell of every notebook: quiet where nanovlm is installed, one install in Colab, a sentence elsewhere."""

from __future__ import annotations

import subprocess
import sys
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
def run(command, check):
    print(command[1:], check)
    sys.meta_path.remove(hidden)
subprocess.run = run
"""


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)


def test_nothing_happens_where_nanovlm_is_installed(tmp_path: Path) -> None:
    """In a folder that holds nothing."""
    done = run(CELL, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_kernel_without_it_is_told_what_to_do(tmp_path: Path) -> None:
    done = run(HIDE + CELL, tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert "This kernel has no nanovlm" in done.stderr and "make lab" in done.stderr and "pip install" in done.stderr
    assert "During handling of" not in done.stderr, "one error, not two"


def test_colab_installs_this_version_once(tmp_path: Path) -> None:
    done = run(HIDE + COLAB + CELL, tmp_path)
    assert done.returncode == 0, done.stderr
    project = read_project(ROOT)
    wanted = ["-m", "pip", "install", "-q", f"nanovlm[notebook] @ git+{project.repository}@v{project.version}"]
    assert done.stdout.strip() == f"{wanted} True"
