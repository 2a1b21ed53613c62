"""Where a learner stands, and what exercises there are."""

from __future__ import annotations

import html

from nanovlm.course.judge.exercise import Exercise, load_exercises
from nanovlm.course.outline import CHAPTERS
from nanovlm.course.progress import load, progress_file
from nanovlm.course.quizzes import Shown
from nanovlm.viz.style import PALETTE

# Told apart by form too, and by 3 to 1 from a white page and a dark one.
MARKS = {"solved": ("●", "green"), "tried": ("◐", "blue"), "new": ("○", "grey")}


def by_chapter() -> dict[str, list[Exercise]]:
    """Chapter number -> its exercises, in the order in which they were registered."""
    found: dict[str, list[Exercise]] = {}
    for exercise in load_exercises().values():
        found.setdefault(exercise.chapter, []).append(exercise)
    return found


def course_map() -> Shown:
    """Every chapter with its exercises: solved, tried, or new."""
    records = load()["exercises"]
    lines, rows = [], []
    solved = total = 0
    for chapter in CHAPTERS:
        marks, dots = "", ""
        for exercise in by_chapter().get(chapter.number, []):
            record = records.get(exercise.id, {})
            state = "solved" if record.get("passed") else "tried" if record.get("checks") else "new"
            mark, colour = MARKS[state]
            marks += mark
            label = html.escape(f"{exercise.title} ({exercise.id}): {state}")
            dots += f'<span style="color:{PALETTE[colour]}" title="{label}" aria-label="{label}">{mark}</span> '
            solved, total = solved + (state == "solved"), total + 1
        lines.append(f"{chapter.number}  {chapter.title:<34}{marks}".rstrip())
        rows.append(
            f'<tr><td style="text-align:left">{chapter.number}</td>'
            f'<td style="text-align:left">{html.escape(chapter.title)}</td><td style="text-align:left">{dots}</td></tr>'
        )
    summary = f"{solved} of {total} exercises solved  (● solved, ◐ tried, ○ new)"
    where = f"kept in {progress_file()}"
    return Shown(
        f"<div><b>{summary}</b><table>{''.join(rows)}</table><small>{html.escape(where)}</small></div>",
        "\n".join([*lines, "", summary, where]),
    )


def report() -> Shown:
    """Every exercise with its difficulty, minutes, hints, and how many mistakes its check can name."""
    exercises = sorted(load_exercises().values(), key=lambda e: e.chapter)
    heads = ("chapter", "exercise", "difficulty", "minutes", "hints", "properties", "mistakes named")
    table = [
        (e.chapter, e.id, e.difficulty, e.minutes, len(e.hints), len(e.properties), len(e.mistakes)) for e in exercises
    ]
    total = f"{len(table)} exercises, {sum(e.minutes for e in exercises)} minutes, " + (
        f"{sum(len(e.mistakes) for e in exercises)} mistakes named"
    )
    widths = [max(len(str(row[i])) for row in [heads, *table]) for i in range(len(heads))]
    lines = [
        "  ".join(str(v).ljust(w) if isinstance(v, str) else str(v).rjust(w) for v, w in zip(row, widths, strict=True))
        for row in [heads, *table]
    ]
    cells = ["".join(f"<td>{html.escape(str(v))}</td>" for v in row) for row in table]
    head = "".join(f"<th>{h}</th>" for h in heads)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return Shown(f"<table><tr>{head}</tr>{body}</table><p>{total}</p>", "\n".join([*lines, "", total]))
