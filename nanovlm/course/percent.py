"""The percent format: a Python file whose cells begin with `# %%`. Parsed with line numbers: errors say where."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

STAMPED = "stamped"  # the tag of cells that the builder owns

MARKER = re.compile(r"^# %%(?P<rest>.*)$")
REST = re.compile(r"^(?: (?P<markdown>\[markdown\]))?(?: tags=(?P<tags>\[.*\]))?$")


class AuthoringError(Exception):
    """file:line: what is wrong and what to do."""

    def __init__(self, path: Path | str, line: int, sentence: str) -> None:
        super().__init__(f"{path}:{line}: {sentence}")


@dataclass
class Cell:
    """`lines`: what follows the marker, as in the file (markdown keeps its "# "); `number`: the marker's line."""

    markdown: bool
    lines: list[str]
    tags: list[str] = field(default_factory=list)
    number: int = 0

    @property
    def stamped(self) -> bool:
        return STAMPED in self.tags

    def words(self) -> str:
        """Markdown without the comment signs; code as it is."""
        if not self.markdown:
            return "\n".join(self.lines)
        return "\n".join(line[2:] if line.startswith("# ") else line.removeprefix("#") for line in self.lines)


def parse(text: str, path: Path | str) -> list[Cell]:
    cells: list[Cell] = []
    for number, line in enumerate(text.splitlines(), start=1):
        marker = MARKER.match(line)
        if marker is None:
            if not cells:
                if line.strip():
                    raise AuthoringError(path, number, "The file must begin with a cell: # %% [markdown]. No header.")
                continue
            cells[-1].lines.append(line)
            continue
        rest = REST.match(marker["rest"].rstrip())
        if rest is None:
            raise AuthoringError(
                path, number, f'Cannot read {line!r}. A cell begins with # %%, then [markdown], then tags=["…"].'
            )
        cells.append(Cell(rest["markdown"] is not None, [], _tags(rest["tags"], path, number), number))
    for cell in cells:
        while cell.lines and not cell.lines[-1].strip():
            cell.lines.pop()
        while cell.lines and not cell.lines[0].strip():
            cell.lines.pop(0)
            cell.number += 1
        if not cell.lines:
            raise AuthoringError(path, cell.number, "This cell is empty.")
        for i, line in enumerate(cell.lines, start=1):
            if cell.markdown and not line.startswith("#"):
                raise AuthoringError(path, cell.number + i, "A line of a markdown cell must begin with #.")
    return cells


def _tags(words: str | None, path: Path | str, number: int) -> list[str]:
    if words is None:
        return []
    try:
        tags = json.loads(words)
    except json.JSONDecodeError:
        tags = None
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise AuthoringError(path, number, f'Cannot read the tags {words}; write tags=["one", "two"].')
    return tags


def render(cells: Iterable[Cell]) -> str:
    """The file's text. Two blank lines stand before a cell that begins, and after one that ends, with a definition, as
    the formatter wants them."""
    parts: list[str] = []
    before: Cell | None = None
    for cell in cells:
        if before is not None:
            parts.append("\n\n" if _ends_in_definition(before) or _begins_with_definition(cell) else "\n")
        marker = "# %%" + (" [markdown]" if cell.markdown else "")
        if cell.tags:
            marker += f" tags={json.dumps(cell.tags, ensure_ascii=False)}"
        parts.append("\n".join([marker, *cell.lines]) + "\n")
        before = cell
    return "".join(parts)


def _begins_with_definition(cell: Cell) -> bool:
    return not cell.markdown and cell.lines[0].startswith(("def ", "class ", "@", "async def "))


def _ends_in_definition(cell: Cell) -> bool:
    return not cell.markdown and cell.lines[-1].startswith(" ") and _last_statement_is_definition(cell.lines)


def _last_statement_is_definition(lines: list[str]) -> bool:
    top = [line for line in lines if line[:1] not in ("", " ", "#", ")", "]", "}")]
    return bool(top) and top[-1].startswith(("def ", "class ", "async def "))


def markdown_cell(words: str, *tags: str) -> Cell:
    return Cell(True, [f"# {line}".rstrip() for line in words.split("\n")], list(tags))


def code_cell(code: str, *tags: str) -> Cell:
    return Cell(False, code.split("\n"), list(tags))
