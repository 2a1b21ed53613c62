"""A small clone of the repository with one chapter, for the tests of the builder."""

from __future__ import annotations

import ast
import atexit
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from nanovlm.course.builder import Report, build
from tests.course.learners import ROOT

STEM = "03_pixel_shuffle_and_projector"
CHAPTER = """\
# %% [markdown]
# # 03 Pixel shuffle and the projector
#
# You build the fusion. 30 minutes.

# %%
from __future__ import annotations

import numpy as np

x = np.zeros([2, 3])

# %% tags=["nbval-check-output"]
print(list(x.shape))


# %% tags=["package:nanovlm.models.modality_projector.pixel_shuffle"]
{definition}


# %% [markdown]
# The end.
"""


def package_definition() -> str:
    source = (ROOT / "nanovlm/models/modality_projector.py").read_text()
    tree = ast.parse(source)
    node = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "pixel_shuffle")
    return ast.get_source_segment(source, node) or ""


def make_clone(root: Path) -> Path:
    """A built clone: what the first call of this process made, copied."""
    shutil.copytree(_built_once(), root)
    return root


@cache
def _built_once() -> Path:
    kept = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, kept, ignore_errors=True)
    return _build_clone(Path(kept) / "clone")


def _build_clone(root: Path) -> Path:
    for folder in ("chapters", "solutions"):
        (root / folder).mkdir(parents=True)
    for name in ("pyproject.toml", "CITATION.cff"):
        shutil.copy(ROOT / name, root)
    shutil.copy(ROOT / "solutions" / f"{STEM}.py", root / "solutions")
    (root / "chapters" / f"{STEM}.py").write_text(CHAPTER.format(definition=package_definition()))
    clone = "```bash\ngit clone https://github.com/nanovlm-course/nanovlm\ncd nanovlm\n```\n"
    (root / "README.md").write_text(f"# A course\n\n{clone}\n<!-- chapters -->\n<!-- end chapters -->\n\nMore.\n")
    assert not of_chapter_03(build(root=root)).problems
    return root


def of_chapter_03(report: Report) -> Report:
    """Without what the other chapters' exercises lack in this small clone."""
    return Report(report.written, [p for p in report.problems if "has no solution" not in p])


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def edit(path: Path, change: Callable[[str], str]) -> None:
    before = path.read_text()
    path.write_text(change(before))
    assert path.read_text() != before, "the edit changed nothing"
