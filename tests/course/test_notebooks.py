"""Outputs belong to the source that made them, and hold nothing of the machine that ran it."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest

from nanovlm.course.builder import build
from nanovlm.course.notebooks import clean, keep_outputs, source_hashes, to_notebook, to_text
from tests.course.small_clone import STEM, edit, make_clone, of_chapter_03


@pytest.fixture
def course(tmp_path: Path) -> Path:
    return make_clone(tmp_path / "clone")


def test_outputs_are_kept_for_their_own_source_only(course: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = build(check=True, root=course).problems
    assert any("have no output of their present source" in p for p in problems)
    monkeypatch.setenv("NANOVLM_BUDGET", "ci")
    assert not of_chapter_03(build(execute=True, root=course)).problems
    assert not of_chapter_03(build(check=True, root=course)).problems
    target = course / "chapters" / f"{STEM}.ipynb"
    cells = nbformat.read(target, as_version=4).cells
    shown = next(cell for cell in cells if cell.source.startswith("print"))
    assert shown.outputs[0].text == "[2, 3]\n" and shown.execution_count == 3
    assert all("source_hash" in cell.metadata for cell in cells if cell.cell_type == "code")
    before = target.read_bytes()
    build(root=course)
    assert target.read_bytes() == before, "outputs stay when nothing changed"

    # A new address changes the set-up cell, which makes no output stale.
    edit(course / "pyproject.toml", lambda text: text.replace("nanovlm-course/nanovlm", "somebody/fork"))
    build(root=course)
    assert not of_chapter_03(build(check=True, root=course)).problems

    # An edit makes its own output and all later ones stale, and no earlier one.
    edit(course / "chapters" / f"{STEM}.py", lambda text: text.replace("list(x.shape)", "tuple(x.shape)"))
    problems = build(check=True, root=course).problems
    assert any("2 cells, the first is number 5" in p for p in problems), problems
    build(root=course)
    cells = nbformat.read(target, as_version=4).cells
    shown = next(cell for cell in cells if cell.source.startswith("print"))
    assert shown.outputs == [] and shown.execution_count is None
    assert sum("source_hash" in cell.metadata for cell in cells) == 2


def test_a_chapter_that_fails_is_reported_and_keeps_its_outputs(course: Path) -> None:
    edit(
        course / "chapters" / f"{STEM}.py",
        lambda text: text.replace("x = np.zeros([2, 3])", "x = np.zeros([2, '3'])"),
    )
    problems = build(execute=True, root=course).problems
    found = [p for p in problems if p.startswith(f"chapters/{STEM}.py does not run: TypeError")]
    assert found and "from __future__" in found[0] and "\x1b" not in found[0], problems


def test_the_failing_cell_is_named_though_nothing_was_edited(course: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chapter can stop being true because something else changed: here a variable of the environment."""
    fails = "x = np.zeros([2, 3]) * int(__import__('os').environ['FAILS'])"
    edit(course / "chapters" / f"{STEM}.py", lambda text: text.replace("x = np.zeros([2, 3])", fails))
    monkeypatch.setenv("FAILS", "1")
    assert not build(execute=True, only=["03"], root=course).problems
    monkeypatch.setenv("FAILS", "one")
    problems = build(execute=True, only=["03"], root=course).problems
    found = [p for p in problems if p.startswith(f"chapters/{STEM}.py does not run: ValueError")]
    assert found and "from __future__" in found[0], problems


def test_outputs_are_cleaned() -> None:
    view = "application/vnd.jupyter.widget-view+json"
    address = "<Thing at 0x7f3a5c2d1e90>"
    lever = {view: {"model_id": "b"}, "image/svg+xml": "<svg/>", "text/html": "<svg/>", "text/plain": address}
    outputs = [
        nbformat.v4.new_output("stream", name="stdout", text=f"1%\r50%\r100%\n{address}\n"),
        nbformat.v4.new_output("stream", name="stdout", text="in /home/me/clone/chapters\n"),
        nbformat.v4.new_output("display_data", {view: {"model_id": "a"}}),
        nbformat.v4.new_output("display_data", {view: {"model_id": "c"}, "text/plain": "answering: 0%"}),
        nbformat.v4.new_output("execute_result", lever, execution_count=3),
    ]
    cleaned = clean(outputs, {"/home/me/clone": "…"})
    assert [o.output_type for o in cleaned] == ["stream", "execute_result"]
    assert cleaned[0].text == "100%\n<Thing at 0x…>\nin …/chapters\n"
    assert cleaned[1].data == {"image/svg+xml": "<svg/>", "text/plain": "<Thing at 0x…>"}


def test_cell_ids_depend_on_the_source_alone() -> None:
    one = to_notebook("# %%\nx = 1\n\n# %%\nx = 1\n\n# %% [markdown]\n# Words.\n")
    two = to_notebook("# %% [markdown]\n# New.\n\n# %%\nx = 1\n\n# %%\nx = 1\n\n# %% [markdown]\n# Words.\n")
    assert [c.id for c in one.cells] == [c.id for c in two.cells][1:]
    assert to_text(one) == to_text(to_notebook("# %%\nx = 1\n\n# %%\nx = 1\n\n# %% [markdown]\n# Words.\n"))
    assert json.loads(to_text(one))["nbformat"] == 4


def test_cells_that_need_a_gpu_are_asked_for_no_output() -> None:
    notebook = to_notebook('# %%\nx = 1\n\n# %% tags=["skip-execution"]\ntrain()\n')
    assert source_hashes(notebook)[1] is None and keep_outputs(notebook, None) == [0]
