"""What every notebook shares, written in one place: links, the setup cell, exercise heads, hints, the index."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

from nanovlm.course.hints import STEPS
from nanovlm.course.judge.exercise import Exercise
from nanovlm.course.outline import Chapter
from nanovlm.course.percent import STAMPED, AuthoringError, Cell, code_cell, markdown_cell

SETUP = """\
# @title Set-up: the nanovlm that is installed; Colab installs it first.
import subprocess
import sys
from importlib import import_module

try:
    import_module("nanovlm.course")
except ImportError:
    package = "{requirement}"
    if "google.colab" not in sys.modules:
        advice = f'In a clone run `make lab`, elsewhere pip install "{{package}}".'
        raise ModuleNotFoundError(f"This kernel has no nanovlm. {{advice}}") from None
    if subprocess.run([sys.executable, "-m", "pip", "install", "-q", package]).returncode:
        raise RuntimeError("pip could not install nanovlm (see above). Run this again.") from None
    import_module("nanovlm.course")"""

BRANCH = "main"
WIDTH = 110  # of wrapped markdown

INDEX_BEGIN, INDEX_END = "<!-- chapters -->", "<!-- end chapters -->"


@dataclass(frozen=True)
class Project:
    """What pyproject.toml says about where this lives."""

    repository: str  # https://github.com/owner/name
    version: str

    @property
    def requirement(self) -> str:
        """The branch that the links open: a notebook gets the package of its own state, released or not."""
        return f"nanovlm[notebook] @ git+{self.repository}@{BRANCH}"

    def colab(self, path: str) -> str:
        slug = self.repository.removeprefix("https://github.com/")
        return f"https://colab.research.google.com/github/{slug}/blob/{BRANCH}/{path}"

    def github(self, path: str) -> str:
        return f"{self.repository}/blob/{BRANCH}/{path}"


def read_project(root: Path) -> Project:
    """Read with two patterns: Python 3.10 has no TOML reader."""
    path = root / "pyproject.toml"
    text = path.read_text(encoding="utf-8")
    found = {}
    for name, pattern in (
        ("version", r'^version = "([^"]+)"$'),
        ("repository", r'^Repository = "(https://github\.com/[^/"]+/[^/"]+)"$'),
    ):
        match = re.search(pattern, text, re.MULTILINE)
        if match is None:
            raise AuthoringError(path.name, 1, f"There is no line {pattern} for the {name} of links and installs.")
        found[name] = match[1]
    return Project(**found)


def links_cell(project: Project, folder: str, chapter: Chapter, links: list[tuple[str, str]]) -> Cell:
    """Ways to Colab, GitHub and the neighbours: (words, relative path). No badge: it is a broken picture offline."""
    path = f"{folder}/{chapter.stem}.ipynb"
    to_notation = "notation.md" if folder == "chapters" else "../chapters/notation.md"
    links = [*links, ("notation and terms", to_notation)]
    ways = ["[Open in Colab][colab]", "[on GitHub][github]", *(f"[{words}]({to})" for words, to in links)]
    targets = {"colab": project.colab(path), "github": project.github(path)}
    lines = [" ·\n".join(ways), "", *(f"[{name}]: {address}" for name, address in targets.items())]
    return markdown_cell("\n".join(lines), STAMPED)


def setup_cell(project: Project) -> Cell:
    return code_cell(SETUP.format(requirement=project.requirement), STAMPED)


def exercise_head(exercise: Exercise, number: int) -> Cell:
    return markdown_cell(
        f"## Exercise {int(exercise.chapter)}.{number} · {exercise.title}\n"
        f"`{exercise.id}` · difficulty {dots(exercise)} · about {exercise.minutes} minutes\n\n"
        + wrapped(f"**Why it matters.** {exercise.why}"),
        STAMPED,
    )


def exercise_hints(exercise: Exercise) -> Cell:
    parts = []
    for number, (step, words) in enumerate(zip(STEPS, exercise.hints, strict=True), start=1):
        body = f"```python\n{words}\n```" if "\n" in words else wrapped(words)
        parts.append(f"<details><summary>Hint {number}: {step}</summary>\n\n{body}\n\n</details>")
    return markdown_cell("\n".join(parts), STAMPED)


def chapter_end(
    project: Project, chapter: Chapter, exercises: list[Exercise], following: Chapter | None
) -> Cell | None:
    """The chapter's exercises, and the way on."""
    lines = []
    if exercises:
        path = f"exercises/{chapter.stem}.ipynb"
        how_many = "there is one" if len(exercises) == 1 else f"{len(exercises)} of them"
        lines += [
            "## Your turn",
            "",
            f"[Open the exercises](../{path}) ([in Colab][exercises]): {how_many}, about {length(exercises)}.",
            "",
            f"[exercises]: {project.colab(path)}",
            "",
            "| | exercise | difficulty | minutes |",
            "|---|---|---|---|",
        ]
        for number, e in enumerate(exercises, start=1):
            lines.append(f"| {int(e.chapter)}.{number} | {e.title} (`{e.id}`) | {dots(e)} | {e.minutes} |")
    if following is not None:
        lines += ["", f"Next: [{following.number} {following.title}]({following.stem}.ipynb)"]
    return markdown_cell("\n".join(lines).strip(), STAMPED) if lines else None


def length(exercises: list[Exercise]) -> str:
    """Of all of them together, no more exact than it is known."""
    minutes = 5 * round(sum(exercise.minutes for exercise in exercises) / 5)
    return f"{minutes} minutes" if minutes < 60 else f"{minutes / 60:.1f} hours".replace(".0 ", " ")


def dots(exercise: Exercise) -> str:
    return "●" * exercise.difficulty + "○" * (3 - exercise.difficulty)


def stamp_index(text: str, rows: list[tuple[Chapter, str]], folder: str, path: str, comment: str = "") -> str:
    """Put the list of chapters between the two index marks. rows: chapter and what it says of itself."""
    begin, end = (re.escape(comment + mark) for mark in (INDEX_BEGIN, INDEX_END))
    if len(re.findall(rf"^{begin}$", text, re.MULTILINE)) != 1 or len(re.findall(rf"^{end}$", text, re.MULTILINE)) != 1:
        raise AuthoringError(path, 1, f"The chapter index needs one line {INDEX_BEGIN} and one line {INDEX_END}.")
    items = [
        wrapped(f"- [{chapter.number} {chapter.title}]({folder}{chapter.stem}.ipynb): {about}", "  ")
        for chapter, about in rows
    ]
    lines = "\n".join([INDEX_BEGIN, "", *items, "", INDEX_END]).split("\n")
    block = "\n".join((comment + line).rstrip() for line in lines)
    return re.sub(rf"^{begin}$.*?^{end}$", lambda _: block, text, flags=re.MULTILINE | re.DOTALL)


def stamp_clone(text: str, project: Project) -> str:
    """The README's commands that fetch the repository."""
    folder = project.repository.rpartition("/")[2]
    return re.sub(
        r"^git clone https://github\.com/\S+\ncd \S+$",
        f"git clone {project.repository}\ncd {folder}",
        text,
        flags=re.MULTILINE,
    )


def stamp_citation(text: str, project: Project) -> str:
    text = re.sub(r"^repository-code: .*$", f"repository-code: {project.repository}", text, flags=re.MULTILINE)
    return re.sub(r"^version: .*$", f"version: {project.version}", text, flags=re.MULTILINE)


def wrapped(words: str, indent: str = "") -> str:
    return fill(words, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
