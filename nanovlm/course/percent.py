"""The percent format, read and written by jupytext: a Python file whose cells begin with `# %%`. What jupytext does not
tell is added: in which line of the file a cell stands, so that errors say where."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbformat import NotebookNode

STAMPED = "stamped"  # the tag of cells that the builder owns
ANSWER_TAG = "answer:"  # of a chapter's code cell, followed by the id of the exercise that it answers
CLAIM_TAG = "claim"  # of a chapter's code cell that only asserts what the prose says: for authors, so it is folded
MARKER = "# %%"
WHOLE_MARKER = re.compile(r'# %%( \[markdown\])?( tags=\["[^"]+"(, "[^"]+")*\])?\s*$')

# In text, of all metadata, a cell shows its tags and the notebook none.
FILTERS = {"notebook_metadata_filter": "-all", "cell_metadata_filter": "tags,-all"}


class AuthoringError(Exception):
    """file:line: what is wrong and what to do."""

    def __init__(self, path: Path | str, line: int, sentence: str) -> None:
        super().__init__(f"{path}:{line}: {sentence}")


@dataclass
class Cell:
    """`lines`: the source, markdown without its comment signs; `number`: the line of the file in front of them."""

    markdown: bool
    lines: list[str]
    tags: list[str] = field(default_factory=list)
    number: int = 0

    @property
    def stamped(self) -> bool:
        return STAMPED in self.tags

    def words(self) -> str:
        return "\n".join(self.lines)


@cache
def read(text: str) -> NotebookNode:
    """What jupytext makes of it: leave it alone. Kept, because nothing in a build takes longer, and most texts are
    wanted again: as a notebook, and for the index."""
    import jupytext

    return jupytext.reads(text, fmt="py:percent")


def parse(text: str, path: Path | str) -> list[Cell]:
    file = text.splitlines()
    _refuse_other_cells(file, path)
    cells: list[Cell] = []
    number = 0
    for found in read(text.lstrip()).cells if text.strip() else ():
        # The next marker behind the last cell's source: in a string, the same characters begin no cell.
        number = next(n for n, line in enumerate(file[number:], start=number + 1) if line.startswith(MARKER))
        lines = found.source.split("\n")
        cell = Cell(found.cell_type == "markdown", lines, list(found.metadata.get("tags", [])), number)
        number += len(lines)
        while lines and not lines[-1].strip():
            lines.pop()
        while lines and not lines[0].strip():
            lines.pop(0)
            cell.number += 1
        if not lines:
            raise AuthoringError(path, cell.number, "This cell is empty.")
        for n in range(cell.number + 1, cell.number + 1 + len(lines)):
            if cell.markdown and not file[n - 1].startswith("#"):
                raise AuthoringError(path, n, "A line of a markdown cell must begin with #.")
        cells.append(cell)
    return cells


def _refuse_other_cells(file: list[str], path: Path | str) -> None:
    """jupytext knows more kinds of cells, headers and metadata than the course has."""
    begun = False
    for number, line in enumerate(file, start=1):
        if line.startswith(MARKER):
            begun = True
            if not WHOLE_MARKER.match(line):
                what = "the tags in " if "tags=" in line else ""
                form = '# %%, then [markdown], then tags=["one", "two"]'
                raise AuthoringError(path, number, f"Cannot read {what}{line!r}. A cell begins with {form}.")
        elif line.strip() and not begun:
            raise AuthoringError(path, number, "The file must begin with a cell: # %% [markdown]. No header.")


def render(cells: Iterable[Cell]) -> str:
    """The file's text. Two blank lines stand before a cell that begins, and after one that ends, with a definition, as
    the formatter wants them."""
    import jupytext
    from nbformat import from_dict, v4

    notebook = v4.new_notebook(metadata={"jupytext": FILTERS})
    before: Cell | None = None
    for cell in cells:
        if before is not None:
            apart = _ends_in_definition(before) or _begins_with_definition(cell)
            notebook.cells[-1].metadata["lines_to_next_cell"] = 2 if apart else 1
        new = {"cell_type": "markdown" if cell.markdown else "code", "source": cell.words()}
        notebook.cells.append(from_dict({**new, "metadata": {"tags": cell.tags} if cell.tags else {}}))
        before = cell
    return jupytext.writes(notebook, fmt="py:percent")


def _begins_with_definition(cell: Cell) -> bool:
    return not cell.markdown and cell.lines[0].startswith(("def ", "class ", "@", "async def "))


def _ends_in_definition(cell: Cell) -> bool:
    if cell.markdown or not cell.lines[-1].startswith(" "):
        return False
    top = [line for line in cell.lines if line[:1] not in ("", " ", "#", ")", "]", "}")]
    return bool(top) and top[-1].startswith(("def ", "class ", "async def "))


def markdown_cell(words: str, *tags: str) -> Cell:
    return Cell(True, words.split("\n"), list(tags))


def code_cell(code: str, *tags: str) -> Cell:
    return Cell(False, code.split("\n"), list(tags))
