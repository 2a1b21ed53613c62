"""solutions/NN.py, the only home of an exercise -> the same stamped, and the exercises with the bodies out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from nanovlm.course.judge.exercise import Exercise
from nanovlm.course.percent import AuthoringError, Cell
from nanovlm.course.stamps import exercise_head, exercise_hints

BEGIN, END = "# SOLUTION", "# END SOLUTION"
CHECK = re.compile(r"""\bcheck\(\s*["']([^"']+)["']\s*,\s*([A-Za-z_]\w*)\s*\)""")


@dataclass
class Group:
    """One exercise's cells within the solution file: the prompt, the code, the check."""

    exercise_id: str
    name: str  # of the function or class
    cells: list[Cell]
    line: int


def groups(cells: list[Cell], path: Path | str) -> tuple[list[Cell], list[Group]]:
    """(the cells in front of the first exercise, the exercises)"""
    head: list[Cell] = []
    found: list[Group] = []
    for cell in cells:
        if "exercise" in cell.tags:
            if not cell.markdown:
                raise AuthoringError(path, cell.number, "The tag exercise belongs to the markdown cell of the prompt.")
            found.append(Group("", "", [cell], cell.number))
        elif found:
            found[-1].cells.append(cell)
        else:
            head.append(cell)
    for cell in head:
        for i, line in enumerate(cell.lines, start=1):
            if line.strip() in (BEGIN, END) or CHECK.search(line):
                raise AuthoringError(
                    path, cell.number + i, "A solution or check outside an exercise: tag the prompt's cell exercise."
                )
    for group in found:
        _name(group, path)
    return head, found


def _name(group: Group, path: Path | str) -> None:
    calls = [
        (match[1], match[2], cell.number + 1 + cell.words()[: match.start()].count("\n"))
        for cell in group.cells
        if not cell.markdown
        for match in CHECK.finditer(cell.words())
    ]
    if len(calls) != 1:
        where = calls[1][2] if calls else group.line
        raise AuthoringError(path, where, f'An exercise needs one call check("id", name); this one has {len(calls)}.')
    group.exercise_id, group.name, _ = calls[0]
    blocks = sum(_count_blocks(cell, path) for cell in group.cells if not cell.markdown)
    if not blocks:
        raise AuthoringError(path, group.line, f"{group.exercise_id} has no {BEGIN} … {END}: nothing is left to write.")


def _count_blocks(cell: Cell, path: Path | str) -> int:
    """How many solution blocks; unbalanced marks are errors."""
    opened: int | None = None
    blocks = 0
    for number, line in enumerate(cell.lines, start=cell.number + 1):
        mark = line.strip()
        if mark == BEGIN:
            if opened is not None:
                raise AuthoringError(path, number, f"{BEGIN} again, while the one of line {opened} is still open.")
            opened = number
        elif mark == END:
            if opened is None:
                raise AuthoringError(path, number, f"{END} without {BEGIN} before it.")
            opened, blocks = None, blocks + 1
        elif mark.upper().replace(" ", "") in ("#SOLUTION", "#ENDSOLUTION", "#SOLUTIONEND"):
            raise AuthoringError(path, number, f"{mark!r} looks like a marker; write exactly {BEGIN} or {END}.")
    if opened is not None:
        raise AuthoringError(path, opened, f"{BEGIN} without {END} in the same cell.")
    return blocks


def unsolved(cell: Cell, exercise_id: str) -> Cell:
    """The cell with each solution block replaced by `raise NotImplementedError(id)`."""
    if cell.markdown:
        return cell
    lines: list[str] = []
    inside = False
    for line in cell.lines:
        if line.strip() == BEGIN:
            inside = True
            lines.append(f'{line[: len(line) - len(line.lstrip())]}raise NotImplementedError("{exercise_id}")')
        elif line.strip() == END:
            inside = False
        elif not inside:
            lines.append(line)
    return Cell(False, lines, cell.tags, cell.number)


def check_ids(found: list[Group], chapter: str, exercises: dict[str, Exercise], path: Path | str) -> None:
    seen: dict[str, int] = {}
    for group in found:
        name = group.exercise_id
        if name in seen:
            raise AuthoringError(path, group.line, f"{name} is already the exercise of line {seen[name]}.")
        seen[name] = group.line
        if name not in exercises:
            raise AuthoringError(path, group.line, f"{name} is registered nowhere in nanovlm/course/exercises/.")
        if exercises[name].chapter != chapter:
            raise AuthoringError(
                path, group.line, f"{name} is registered for chapter {exercises[name].chapter}, not {chapter}."
            )
    for name, exercise in exercises.items():
        if exercise.chapter == chapter and name not in seen:
            raise AuthoringError(path, 1, f"{name} ({exercise.where}) has no solution here.")


def stamped_groups(found: list[Group], exercises: dict[str, Exercise]) -> list[Cell]:
    """Each exercise with its head in front of the prompt and its hints behind it."""
    cells: list[Cell] = []
    for number, group in enumerate(found, start=1):
        exercise = exercises[group.exercise_id]
        prompt, *rest = group.cells
        cells += [exercise_head(exercise, number), prompt, exercise_hints(exercise), *rest]
    return cells
