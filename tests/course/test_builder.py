"""The builder: same source, same bytes; a stale file is named; an authoring error says where."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import nbformat
import pytest

from nanovlm.course.builder import build, find_root
from nanovlm.course.percent import AuthoringError, parse, read, render
from tests.course.learners import ROOT
from tests.course.small_clone import STEM, edit, make_clone, snapshot


@pytest.fixture
def course(tmp_path: Path) -> Path:
    return make_clone(tmp_path / "clone")


def test_building_twice_changes_no_byte(course: Path) -> None:
    before = snapshot(course)
    assert build(root=course).written == []
    assert snapshot(course) == before


def test_a_lost_built_file_comes_back_the_same(course: Path) -> None:
    before = snapshot(course)
    for name in (
        f"solutions/{STEM}.ipynb",
        f"exercises/{STEM}.py",
        f"exercises/{STEM}.ipynb",
        f"chapters/{STEM}.ipynb",
    ):
        (course / name).unlink()
    assert len(build(check=True, root=course).problems) >= 4
    assert not (course / f"exercises/{STEM}.py").exists(), "check must not write"
    build(root=course)
    assert snapshot(course) == before


ONE_CHARACTER = [
    (
        "solutions/{}.py",
        "Eight of them.",
        "Nine of them.",
        "solutions/{0}.ipynb exercises/{0}.py exercises/{0}.ipynb",
    ),
    ("solutions/{}.py", "side * side", "side *  side", "solutions/{}.ipynb"),
    ("chapters/{}.py", "zeros([2, 3])", "zeros([2, 4])", "chapters/{}.ipynb"),
    ("chapters/{}.py", "The end.", "The end!", "chapters/{}.ipynb"),
    ("chapters/{}.py", "Open in Colab", "Open in Colabs", "chapters/{}.py"),
    ("chapters/{}.py", "30 minutes", "31 minutes", "chapters/{}.ipynb README.md"),
    ("exercises/{}.py", "raise Not", "raise  Not", "exercises/{}.py"),
    ("exercises/{}.ipynb", "Groups of patches become tokens", "Groups of patches become token", "exercises/{}.ipynb"),
    ("solutions/{}.ipynb", '"cell_type"', '"cell_type" ', "solutions/{}.ipynb"),
    ("pyproject.toml", '"0.1.0"', '"0.1.1"', "CITATION.cff"),
    (
        "pyproject.toml",
        "nanovlm-course/nanovlm",
        "somebody/fork",
        "chapters/{0}.py solutions/{0}.ipynb exercises/{0}.py README.md CITATION.cff",
    ),
]


@pytest.mark.parametrize(("file", "old", "new", "stale"), ONE_CHARACTER)
def test_an_edit_of_one_character_is_named(course: Path, file: str, old: str, new: str, stale: str) -> None:
    edit(course / file.format(STEM), lambda text: text.replace(old, new, 1))
    problems = build(check=True, root=course).problems
    for name in stale.format(STEM).split():
        assert any(p.startswith(f"{name} is stale") for p in problems), (name, problems)
    build(root=course)
    assert not any("stale" in p for p in build(check=True, root=course).problems)


def test_a_fork_keeps_no_old_address(course: Path) -> None:
    edit(course / "pyproject.toml", lambda text: text.replace("nanovlm-course/nanovlm", "somebody/fork"))
    build(root=course)
    files = [path for path in course.rglob("*") if path.is_file()]
    assert not [path for path in files if b"nanovlm-course/nanovlm" in path.read_bytes()]
    readme = (course / "README.md").read_text()
    assert "git clone https://github.com/somebody/fork\ncd fork\n" in readme
    assert "repository-code: https://github.com/somebody/fork\n" in (course / "CITATION.cff").read_text()


def test_exercises_hold_everything_but_the_answers(course: Path) -> None:
    solution = (course / "solutions" / f"{STEM}.py").read_text()
    exercise = (course / "exercises" / f"{STEM}.py").read_text()
    assert "SOLUTION" in solution and "SOLUTION" not in exercise
    assert exercise.count('raise NotImplementedError("pixel_shuffle.projector")') == 2
    assert exercise.count("raise NotImplementedError") == 9
    assert "divmod(token, grid // factor)" not in exercise.replace("row, column = divmod(token, grid // r)", "")
    assert "def pixel_shuffle(x: Tensor, factor: int) -> Tensor:" in exercise and "Trade length for width" in exercise
    assert exercise.count("<details>") == 24 and "## Exercise 3.5 · What a picture costs" in exercise
    compile(exercise, "exercise", "exec")
    assert "[the solutions](../solutions/" in exercise and "[the exercises](../exercises/" in solution


def test_the_chapter_lists_its_exercises_and_the_readme_the_chapters(course: Path) -> None:
    chapter = (course / "chapters" / f"{STEM}.py").read_text()
    assert "| 3.1 | Groups of patches become tokens (`pixel_shuffle.shuffle`) | ●●○ | 12 |" in chapter
    readme = (course / "README.md").read_text()
    row = f"- [03 Pixel shuffle and the projector](chapters/{STEM}.ipynb): You build the fusion. 30 minutes."
    assert row in " ".join(readme.split())
    assert readme.startswith("# A course") and readme.endswith("More.\n")


def test_notebooks_are_valid_and_open_everywhere(course: Path) -> None:
    for path in course.rglob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        assert notebook.metadata.kernelspec.name == "python3" and "widgets" not in notebook.metadata
        ids = [cell.id for cell in notebook.cells]
        assert len(set(ids)) == len(ids)
        setup = notebook.cells[2]
        assert setup.metadata.tags == ["stamped"] and "@main" in setup.source and setup.metadata.jupyter.source_hidden
        assert "-U" not in setup.source and "chdir" not in setup.source
        assert notebook.cells[0].source.startswith("# 03 ")
        assert f"blob/main/{path.relative_to(course).as_posix()}" in notebook.cells[1].source


def test_the_setup_cell_is_the_same_in_every_notebook(course: Path) -> None:
    setups = {nbformat.read(path, as_version=4).cells[2].source for path in course.rglob("*.ipynb")}
    assert len(setups) == 1


AUTHORING_ERRORS = [
    ("# END SOLUTION\n", "", r"SOLUTION again, while the one of line \d+ is still open|without # END SOLUTION"),
    ("    # SOLUTION\n", "", "# END SOLUTION without # SOLUTION"),
    ("# SOLUTION", "#SOLUTION", "looks like a marker"),
    ('check("pixel_shuffle.shuffle", pixel_shuffle)', "pass", r"needs one call check\(.*has 0"),
    (
        'check("pixel_shuffle.unshuffle", pixel_unshuffle)',
        'check("pixel_shuffle.shuffle", pixel_unshuffle)',
        "is already",
    ),
    ('check("pixel_shuffle.unshuffle", pixel_unshuffle)', 'check("no.such", pixel_unshuffle)', "registered nowhere"),
    (' tags=["exercise"]', "", "outside an exercise"),
    (' tags=["exercise"]', " tags=[exercise]", "Cannot read the tags"),
    ("# %% [markdown] tags", "# %% [raw] tags", "Cannot read"),
    ("# # 03 Exercises", "# # 04 Exercises", "must be a title"),
    ("# Eight of them.", "Eight of them.", "must begin with #"),
    ("# %% [markdown]\n# # 03", "import os\n\n# %% [markdown]\n# # 03", "must begin with a cell"),
]


@pytest.mark.parametrize(("old", "new", "words"), AUTHORING_ERRORS, ids=[e[2][:24] for e in AUTHORING_ERRORS])
def test_authoring_errors_say_where_and_write_nothing(course: Path, old: str, new: str, words: str) -> None:
    edit(course / "solutions" / f"{STEM}.py", lambda text: text.replace(old, new, 1))
    before = snapshot(course)
    problems = build(root=course).problems
    found = [p for p in problems if re.search(words, p)]
    assert found and re.match(rf"solutions/{STEM}\.py:\d+: ", found[0]), problems
    after = snapshot(course)
    assert {k: v for k, v in after.items() if "chapters" not in k} == {
        k: v for k, v in before.items() if "chapters" not in k
    }


def test_the_error_names_the_very_line(course: Path) -> None:
    path = course / "solutions" / f"{STEM}.py"
    edit(path, lambda text: text.replace("# SOLUTION", "#SOLUTION", 1))
    line = path.read_text().split("\n").index("    #SOLUTION") + 1
    assert any(p.startswith(f"solutions/{STEM}.py:{line}: ") for p in build(root=course).problems)


def test_an_exercise_without_a_solution_and_orphans_are_named(course: Path) -> None:
    path = course / "solutions" / f"{STEM}.py"
    edit(path, lambda text: text[: text.index('# %% [markdown] tags=["exercise"]\n# **Write the test.**')])
    (course / "exercises" / "05_gone.py").write_text("")
    (course / "chapters" / "06_old.ipynb").write_text("{}")
    problems = build(root=course).problems
    assert any("pixel_shuffle.test_shuffle" in p and "has no solution here" in p for p in problems)
    assert "exercises/05_gone.py is an orphan: there is no solutions/05_gone.py." in problems
    assert "chapters/06_old.ipynb is an orphan: there is no chapters/06_old.py." in problems


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("# # 03 Pixel shuffle and", "# # 03 Pixel shuffling and", "The title must be"),
        ("#\n# You build the fusion. 30 minutes.\n", "", "needs a paragraph"),
        ("x.transpose(2, 3)", "x.transpose(3, 2)", r"differs: here 'x = x.transpose(3, 2)'"),
        ("modality_projector.pixel_shuffle", "modality_projector.pixel_shuffel", "defines no 'pixel_shuffel'"),
    ],
)  # fmt: skip
def test_chapters_are_held_to_what_they_claim(course: Path, old: str, new: str, words: str) -> None:
    edit(course / "chapters" / f"{STEM}.py", lambda text: text.replace(old, new, 1))
    problems = build(root=course).problems
    assert any(words in p and p.startswith(f"chapters/{STEM}.py:") for p in problems), problems


ANSWER = 'tags=["package:nanovlm.models.modality_projector.pixel_shuffle"'


def test_an_answer_is_folded_and_its_exercise_is_named_above_it(course: Path) -> None:
    path = course / "chapters" / f"{STEM}.py"
    edit(path, lambda text: text.replace(f"{ANSWER}]", f'{ANSWER}, "answer:pixel_shuffle.shuffle"]'))
    build(root=course)
    once = path.read_text()
    build(root=course)
    assert path.read_text() == once
    cells = nbformat.read(path.with_suffix(".ipynb"), as_version=4).cells
    (place,) = (i for i, cell in enumerate(cells) if "answer:pixel_shuffle.shuffle" in cell.metadata.get("tags", []))
    assert cells[place].metadata.jupyter.source_hidden and cells[place].metadata.cellView == "form"
    line = " ".join(cells[place - 1].source.split())
    assert f"[exercise 3.1, Groups of patches become tokens](../exercises/{STEM}.ipynb)" in line and "folded" in line
    hidden = [cell for cell in cells if cell.metadata.get("jupyter", {}).get("source_hidden")]
    assert len(hidden) == 2, "the set-up and the answer, and no other cell"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (f"{ANSWER}]", f'{ANSWER}, "answer:pixel_shuffle.none"]', "pixel_shuffle.none names no exercise"),
        ("# %% [markdown]\n# The end", '# %% [markdown] tags=["answer:x.y"]\n# The end', "belongs to a code cell"),
    ],
)
def test_an_answer_to_no_exercise_is_refused(course: Path, old: str, new: str, words: str) -> None:
    edit(course / "chapters" / f"{STEM}.py", lambda text: text.replace(old, new))
    problems = build(root=course).problems
    assert any(words in p and re.match(rf"chapters/{STEM}\.py:\d+: ", p) for p in problems), problems


def test_a_file_that_the_outline_does_not_know_is_an_error(course: Path) -> None:
    (course / "chapters" / f"{STEM}.py").rename(course / "chapters" / "03_shuffle.py")
    assert any("outline.py expects 03_pixel_shuffle_and_projector.py" in p for p in build(root=course).problems)


def test_percent_text_survives_parsing(course: Path) -> None:
    import jupytext

    for path in [path for folder in ("chapters", "solutions") for path in (ROOT / folder).glob("*.py")]:
        text = path.read_text()
        assert render(parse(text, path)) == text
        notebook = copy.deepcopy(read(text))  # what jupytext.reads() gave, once for all
        notebook.metadata["jupytext"] = {"notebook_metadata_filter": "-all", "cell_metadata_filter": "tags,-all"}
        assert jupytext.writes(notebook, "py:percent") == text, "Jupyter would save this file in another way"


def test_cells_know_their_lines() -> None:
    text = '\n# %% [markdown] tags=["a", "b"]\n# # T\n#\n# - x\n\n# %%\n\ny = """\n# %%\n"""\n%time y\n\n\n# %%\nz'
    cells = parse(text, "f.py")
    assert [cell.words() for cell in cells] == ["# T\n\n- x", 'y = """\n# %%\n"""\n%time y', "z"]
    assert [cell.tags for cell in cells] == [["a", "b"], [], []]
    for cell in cells[1:]:
        assert text.split("\n")[cell.number :][: len(cell.lines) - 1] == cell.lines[:-1]
    assert [cell.number for cell in cells] == [2, 8, 15]
    assert parse("", "f.py") == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# %%\nx\n\n# %%\n\n# %%\ny\n", "f.py:4: This cell is empty"),
        ("# %%\nx\n\n# %% a title\ny\n", "f.py:4: Cannot read '# %% a title'"),
        ("# %% [md]\n# x\n", "f.py:1: Cannot read"),
        ('# %% tags="one"\nx\n', "f.py:1: Cannot read the tags"),
        ("# %% tags=[1]\nx\n", "f.py:1: Cannot read the tags"),
        ("# %%\nx\n\n# %% [markdown]\n# one\ntwo\n", "f.py:6: A line of a markdown cell"),
        ('# %% [markdown]\n"""\none\n"""\n', "f.py:2: A line of"),
        ("# ---\n# title: x\n# ---\n\n# %%\nx\n", "f.py:1: The file must begin with a cell"),
        ("# %%% x\n", "f.py:1: Cannot read"),
    ],
)
def test_what_is_no_cell_of_the_course_is_named_with_its_line(text: str, words: str) -> None:
    with pytest.raises(AuthoringError, match=re.escape(words)):
        parse(text, "f.py")


def test_the_root_is_found_from_below_and_missed_in_words(course: Path, tmp_path: Path) -> None:
    assert find_root(course / "solutions") == course
    with pytest.raises(FileNotFoundError, match="not inside a clone"):
        find_root(tmp_path)


def test_every_notebook_links_the_notation(course: Path) -> None:
    for path in course.rglob("*.ipynb"):
        (target,) = re.findall(r"\[notation and terms\]\((.*)\)", nbformat.read(path, as_version=4).cells[1].source)
        page = (ROOT / path.relative_to(course).parent / target).read_text(encoding="utf-8")
        assert all(f"| {symbol} |" in page for symbol in ("B", "T", "S", "N", "P", "dim", "head_dim", "r"))


def test_this_repository_is_up_to_date() -> None:
    assert build(check=True, root=ROOT).problems == []
