"""Chapter cells that answer an exercise: tagged `answer:<id>`, folded, and announced by a line above them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from nanovlm.course.percent import ANSWER_TAG, STAMPED, AuthoringError, Cell, markdown_cell
from nanovlm.course.stamps import wrapped


class Place(NamedTuple):
    """Where an exercise is written."""

    label: str  # "1.2"
    title: str
    stem: str  # of the exercise notebook


def answered(cell: Cell) -> list[str]:
    """The ids of the exercises whose answer the cell shows."""
    return [tag.removeprefix(ANSWER_TAG) for tag in cell.tags if tag.startswith(ANSWER_TAG)]


def announced(cells: list[Cell], places: Mapping[str, Place], path: Path | str) -> list[Cell]:
    """The chapter with a line above each answer that names its exercises and links to them."""
    result: list[Cell] = []
    for cell in cells:
        ids = answered(cell)
        if ids:
            if cell.markdown:
                raise AuthoringError(path, cell.number, f"The tag {ANSWER_TAG}{ids[0]} belongs to a code cell.")
            for exercise_id in ids:
                if exercise_id not in places:
                    raise AuthoringError(
                        path, cell.number, f"The tag {ANSWER_TAG}{exercise_id} names no exercise of solutions/."
                    )
            result.append(_line([places[exercise_id] for exercise_id in ids]))
        result.append(cell)
    return result


def _line(places: list[Place]) -> Cell:
    links = [f"[exercise {place.label}, {place.title}](../exercises/{place.stem}.ipynb)" for place in places]
    which = "this exercise" if len(places) == 1 else "these exercises"
    words = f"**The next cell is folded, because it answers {which}:** {', and '.join(links)}."
    return markdown_cell(wrapped(f"{words} Write yours first, or unfold it."), STAMPED)
