"""No chapter shows the answer to an exercise unfolded: one under the exercise's own name, or most of its lines."""

from __future__ import annotations

import ast
import contextlib
import io
import re
from functools import cache
from typing import Any

import pytest

from nanovlm.course.answers import answered
from nanovlm.course.exercise_files import groups
from nanovlm.course.judge.engine import judge
from nanovlm.course.judge.exercise import load_exercises
from nanovlm.course.outline import CHAPTERS, chapter
from nanovlm.course.percent import Cell, parse
from tests.course.learners import ROOT
from tests.course.rewritten import REWRITTEN

SHARED = 0.6  # of the lines of an answer
DEFINITIONS = (ast.FunctionDef, ast.ClassDef)


def cells_of(folder: str, number: str) -> list[Cell]:
    place = chapter(number)
    assert place is not None
    path = ROOT / folder / f"{place.stem}.py"
    return [cell for cell in parse(path.read_text(encoding="utf-8"), path) if not cell.stamped]


@cache
def statements(code: str) -> frozenset[str]:
    """The lines that do something, whatever their layout, docstrings and annotations."""
    lines = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.stmt) and not isinstance(node, DEFINITIONS):
            if isinstance(node, ast.AnnAssign) and node.value is not None:
                node = ast.Assign([node.target], node.value, lineno=0)
            if isinstance(node, (ast.Import, ast.ImportFrom, ast.Pass)) or isinstance(
                getattr(node, "value", None), ast.Constant
            ):
                continue
            lines.add(ast.unparse(node).split("\n")[0])
    return frozenset(lines)


def answers(number: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Exercise id -> (name of the function or class, its lines)."""
    found = {}
    for group in groups(cells_of("solutions", number), f"solutions/{number}")[1]:
        code = "\n".join(cell.words() for cell in group.cells if not cell.markdown)
        defined = [n for n in ast.parse(code).body if isinstance(n, DEFINITIONS) and n.name == group.name]
        found[group.exercise_id] = (group.name, statements(ast.unparse(defined[-1])) if defined else frozenset())
    return found


@cache
def defined(code: str) -> frozenset[str]:
    return frozenset(node.name for node in ast.parse(code).body if isinstance(node, DEFINITIONS))


def code_of(cell: Cell) -> str:
    """As Python reads it, without the notebook's own commands."""
    if cell.lines[0].startswith("%%"):
        return ""
    return re.sub(r"^[%!](?:.*\\\n)*.*$", "pass", cell.words(), flags=re.MULTILINE)


def definitions_before(cells: list[Cell], last: Cell) -> dict[str, Any]:
    """What the chapter has imported, defined and named up to this cell, as far as that runs by itself."""
    space: dict[str, Any] = {"__name__": "chapter"}
    for cell in cells[: cells.index(last) + 1]:
        if cell.markdown:
            continue
        for node in ast.parse(code_of(cell)).body:
            if isinstance(node, (ast.Import, ast.ImportFrom, *DEFINITIONS)):
                with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
                    exec(compile(ast.Module([node], []), "chapter", "exec"), space)
    return space


def shown_answers(number: str) -> list[str]:
    cells = cells_of("chapters", number)
    found = []
    for exercise_id, (name, lines) in answers(number).items():
        for cell in cells:
            if cell.markdown or exercise_id in answered(cell):
                continue
            here = statements(code_of(cell))
            if lines and len(lines & here) >= SHARED * len(lines):
                found.append(f"{exercise_id}: line {cell.number} shares {len(lines & here)} of {len(lines)} lines")
            elif name in defined(code_of(cell)):
                learner = definitions_before(cells, cell).get(name)
                if learner is not None and judge(load_exercises()[exercise_id], learner).passed:
                    found.append(f"{exercise_id}: {name} in line {cell.number} passes")
    return found


@pytest.mark.parametrize("number", [c.number for c in CHAPTERS if c.number in REWRITTEN])
def test_no_answer_is_shown_unfolded(number: str) -> None:
    found = shown_answers(number)
    assert not found, f"Tag the cell answer:<id>, or show less: {'; '.join(found)}"
