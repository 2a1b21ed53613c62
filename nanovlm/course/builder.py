"""chapters/*.py and solutions/*.py -> every notebook, exercise file and index. Same source, same bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from nanovlm.course import notebooks
from nanovlm.course.answers import Place, announced
from nanovlm.course.claims import difference_from_package
from nanovlm.course.exercise_files import check_ids, groups, stamped_groups, unsolved
from nanovlm.course.judge.exercise import BROKEN, Exercise, load_exercises
from nanovlm.course.outline import CHAPTERS, Chapter, chapter
from nanovlm.course.percent import AuthoringError, Cell, parse, render
from nanovlm.course.stamps import (
    INDEX_BEGIN,
    Project,
    chapter_end,
    length,
    links_cell,
    read_project,
    setup_cell,
    stamp_citation,
    stamp_clone,
    stamp_index,
)

SOURCES = ("chapters", "solutions")
PACKAGE_TAG = "package:"


@dataclass
class Report:
    """written: files that changed; problems: what is wrong or stale, one sentence each, with file and line."""

    written: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def find_root(start: Path | None = None) -> Path:
    """The repository: this folder or the nearest one above it that holds solutions/ and pyproject.toml."""
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "pyproject.toml").is_file() and (folder / "solutions").is_dir():
            return folder
    raise FileNotFoundError(
        f"{start} is not inside a clone of the course (a folder with pyproject.toml and solutions/)."
    )


def build(
    check: bool = False, execute: bool = False, root: Path | None = None, only: Iterable[str] | None = None
) -> Report:
    """Bring everything that is built up to date.

    Args:
        check: write nothing; name what is stale.
        execute: run the chapters whose outputs are stale, and store the outputs. Budget: NANOVLM_BUDGET.
        only: chapter numbers ("03"), instead of all; those are then executed even if nothing is stale.
    """
    builder = _Builder(find_root(root), check, execute, set(only) if only is not None else None)
    builder.build()
    return builder.report


class _Builder:
    def __init__(self, root: Path, check: bool, execute: bool, only: set[str] | None) -> None:
        self.root, self.check, self.execute, self.only = root, check, execute, only
        self.report = Report()
        self.exercises: dict[str, Exercise] = load_exercises()
        self.in_chapter: dict[str, list[Exercise]] = {}  # in the order of the solution files
        self.project: Project | None = None

    def build(self) -> None:
        self._problems(f"{module} cannot be imported: {error}" for module, error in BROKEN.items())
        try:
            self.project = read_project(self.root)
        except AuthoringError as error:
            self._problems([str(error)])
            return
        sources = {folder: sorted((self.root / folder).glob("[0-9]*.py")) for folder in SOURCES}
        present = [c for c in CHAPTERS if self.root / "chapters" / f"{c.stem}.py" in sources["chapters"]]
        for folder in ("solutions", "chapters"):  # chapters list the exercises, so those come first
            for path in sources[folder]:
                try:
                    place = self._place(path)
                    if folder == "solutions":
                        self._solution(path, place)
                    else:
                        self._chapter(path, place, present)
                except AuthoringError as error:
                    self._problems([str(error)])
        if self.only is None:
            self._readme(present)
            self._citation()
            self._orphans(sources)

    def _wanted(self, place: Chapter) -> bool:
        return self.only is None or place.number in self.only

    def _place(self, path: Path) -> Chapter:
        place = chapter(path.stem[:2])
        if place is None or place.stem != path.stem:
            known = f"{place.stem}.py" if place else f"one of {', '.join(c.number for c in CHAPTERS)}"
            raise AuthoringError(self._name(path), 1, f"nanovlm/course/outline.py expects {known}, not {path.name}.")
        return place

    # -- solutions and exercises

    def _solution(self, path: Path, place: Chapter) -> None:
        name = self._name(path)
        cells = self._own_cells(path)
        _title(cells, place.number, name)
        head, found = groups(cells, name)
        check_ids(found, place.number, self.exercises, name)
        self.in_chapter[place.number] = [self.exercises[group.exercise_id] for group in found]
        if not self._wanted(place):
            return
        to_chapter = ("the chapter", f"../chapters/{place.stem}.ipynb")
        for folder, other in (("solutions", "exercises"), ("exercises", "solutions")):
            links = [to_chapter, (f"the {other}", f"../{other}/{place.stem}.ipynb")]
            stamps = [links_cell(self.project, folder, place, links), setup_cell(self.project)]
            body = stamped_groups(found, self.exercises)
            if folder == "exercises":
                ids = {id(cell): group.exercise_id for group in found for cell in group.cells}
                body = [unsolved(cell, ids[id(cell)]) if id(cell) in ids else cell for cell in body]
            text = render([head[0], *stamps, *head[1:], *body])
            self._put(self.root / folder / path.name, text)
            self._put_notebook(self.root / folder / f"{place.stem}.ipynb", notebooks.to_notebook(text))

    # -- chapters

    def _chapter(self, path: Path, place: Chapter, present: list[Chapter]) -> None:
        if not self._wanted(place):
            return
        name = self._name(path)
        cells = self._own_cells(path)
        if _title(cells, place.number, name) != f"# {place.number} {place.title}":
            raise AuthoringError(
                name, cells[0].number + 1, f'The title must be "# {place.number} {place.title}" (outline.py).'
            )
        _about(cells[0], name)
        self._package_claims(cells, name)
        if any(INDEX_BEGIN in line for cell in cells for line in cell.lines):
            cells = parse(stamp_index(render(cells), self._rows(present), "", name, comment="# "), name)
        index = present.index(place)
        around = [
            (present[i], arrow) for i, arrow in ((index - 1, "← {}"), (index + 1, "{} →")) if 0 <= i < len(present)
        ]
        links = [(arrow.format(f"{c.number} {c.title}"), f"{c.stem}.ipynb") for c, arrow in around]
        exercises = self.in_chapter.get(place.number, [])
        if exercises:
            links.append(("exercises", f"../exercises/{place.stem}.ipynb"))
        following = present[index + 1] if index + 1 < len(present) else None
        end = chapter_end(self.project, place, exercises, following)
        stamps = [links_cell(self.project, "chapters", place, links), setup_cell(self.project)]
        body = announced(cells[1:], self._places(), name)
        text = render([cells[0], *stamps, *body, *([end] if end else [])])
        self._put(path, text)
        target = path.with_suffix(".ipynb")
        notebook = notebooks.to_notebook(text)
        stale = notebooks.keep_outputs(notebook, notebooks.read(target))
        if self.execute and not self.check and (stale or self.only is not None):
            stale = self._run(notebook, name)
        if stale and self.check:
            self._problems(
                [
                    f"{self._name(target)}: {len(stale)} cells, the first is number {stale[0] + 1}, have no output of "
                    f"their present source. Run: nanovlm course build --execute"
                ]
            )
        self._put_notebook(target, notebook)

    def _places(self) -> dict[str, Place]:
        """Where each exercise is written; its number is its place in its solution file."""
        return {
            exercise.id: Place(f"{int(number)}.{i}", exercise.title, place.stem)
            for number, exercises in self.in_chapter.items()
            if (place := chapter(number))
            for i, exercise in enumerate(exercises, start=1)
        }

    def _run(self, notebook: notebooks.NotebookNode, name: str) -> list[int]:
        from nbclient.exceptions import CellExecutionError, CellTimeoutError

        print(f"running {name} …", flush=True)
        try:
            notebooks.run(notebook, self.root)
            return []
        except CellExecutionError as error:
            said = f"{error.ename}: {error.evalue}"
        except CellTimeoutError as error:
            said = str(error)
        cell = next(c for c in reversed(notebook.cells) if c.cell_type == "code" and c.execution_count is not None)
        lines = [line for line in cell.source.split("\n") if line.strip() and not line.startswith("#")]
        self._problems([f"{name} does not run: {said.strip()} (in the cell that begins {(lines or [''])[0]!r})"])
        notebook.cells = notebooks.to_notebook(self._read(self.root / name)).cells
        return notebooks.keep_outputs(notebook, notebooks.read((self.root / name).with_suffix(".ipynb")))

    def _package_claims(self, cells: list[Cell], name: str) -> None:
        for cell in cells:
            for tag in cell.tags:
                if tag.startswith(PACKAGE_TAG):
                    problem = difference_from_package(cell.words(), tag.removeprefix(PACKAGE_TAG))
                    if problem:
                        raise AuthoringError(name, cell.number, problem)

    # -- what goes over all chapters

    def _rows(self, present: list[Chapter]) -> list[tuple[Chapter, str]]:
        rows = []
        for place in present:
            path = self.root / "chapters" / f"{place.stem}.py"
            cells = parse(self._read(path), self._name(path))
            rows.append((place, _about(cells[0], self._name(path)) if cells else ""))
        return rows

    def _offers(self, present: list[Chapter]) -> list[tuple[Chapter, str]]:
        """The rows with what a reader of the README wants to know before: the exercises' time, and a way in."""
        rows = []
        for place, about in self._rows(present):
            exercises = [e for e in self.exercises.values() if e.chapter == place.number]
            if exercises:
                how_many = f"{len(exercises)} exercises" if len(exercises) > 1 else "One exercise"
                about += f" {how_many}, about {length(exercises)}."
            badge = f"[![Open in Colab][badge]]({self.project.colab(f'chapters/{place.stem}.ipynb')})"
            rows.append((place, f"{about} {badge}"))
        return rows

    def _readme(self, present: list[Chapter]) -> None:
        path = self.root / "README.md"
        if not path.is_file():
            return
        try:
            text = stamp_index(self._read(path), self._offers(present), "chapters/", "README.md")
            self._put(path, stamp_clone(text, self.project))
        except AuthoringError as error:
            self._problems([str(error)])

    def _citation(self) -> None:
        path = self.root / "CITATION.cff"
        if path.is_file():
            self._put(path, stamp_citation(self._read(path), self.project))

    def _orphans(self, sources: dict[str, list[Path]]) -> None:
        stems = {folder: {path.stem for path in paths} for folder, paths in sources.items()}
        for folder, home in (("chapters", "chapters"), ("solutions", "solutions"), ("exercises", "solutions")):
            for path in sorted((self.root / folder).glob("*")):
                if path.suffix in (".py", ".ipynb") and path.stem not in stems[home]:
                    self._problems([f"{self._name(path)} is an orphan: there is no {home}/{path.stem}.py."])
        solved = {number for number, exercises in self.in_chapter.items() if exercises}
        for exercise in self.exercises.values():
            place = chapter(exercise.chapter)
            if place is None:
                self._problems([f"{exercise.where}: {exercise.id}: there is no chapter {exercise.chapter!r}."])
            elif place.stem not in stems["solutions"] and exercise.chapter not in solved:
                self._problems(
                    [f"{exercise.where}: {exercise.id} has no solution: solutions/{place.stem}.py is missing."]
                )

    # -- files

    def _own_cells(self, path: Path) -> list[Cell]:
        """The author's cells: all but the stamped ones."""
        return [cell for cell in parse(self._read(path), self._name(path)) if not cell.stamped]

    def _put_notebook(self, path: Path, notebook: notebooks.NotebookNode) -> None:
        text = notebooks.to_text(notebook)
        if len(text.encode()) > notebooks.MAX_BYTES:
            size = f"{len(text.encode()):,} bytes; GitHub shows at most {notebooks.MAX_BYTES:,}"
            self._problems([f"{self._name(path)} would be {size}. Draw smaller or fewer pictures."])
        self._put(path, text)

    def _put(self, path: Path, text: str) -> None:
        """Write what differs; in check mode, name it."""
        if path.is_file() and path.read_bytes() == text.encode():
            return
        if self.check:
            state = "is stale" if path.is_file() else "is missing"
            self._problems([f"{self._name(path)} {state}. Run: nanovlm course build"])
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
        self.report.written.append(self._name(path))

    def _read(self, path: Path) -> str:
        return path.read_text(encoding="utf-8")

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _problems(self, sentences: Iterable[str]) -> None:
        self.report.problems.extend(s.replace(f"{self.root}/", "") for s in sentences)


def _title(cells: list[Cell], number: str, name: str) -> str:
    if not cells or not cells[0].markdown or not cells[0].words().startswith(f"# {number} "):
        raise AuthoringError(name, cells[0].number if cells else 1, f"The first cell must be a title: # # {number} …")
    return cells[0].words().split("\n")[0].strip()


def _about(cell: Cell, name: str) -> str:
    """The paragraph below the title, as one line."""
    paragraphs = re.split(r"\n\s*\n", cell.words().strip())
    if len(paragraphs) < 2 or not paragraphs[1].strip():
        raise AuthoringError(name, cell.number, "The title needs a paragraph below it: what one builds, and how long.")
    return " ".join(paragraphs[1].split())
