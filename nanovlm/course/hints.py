"""Help in three steps, one at a time."""

from __future__ import annotations

import html

from nanovlm.course.outline import chapter
from nanovlm.course.progress import record_hint
from nanovlm.course.quizzes import Shown

STEPS = ("a nudge", "a plan", "almost code")


def hint(exercise_id: str) -> Shown:
    """The next hint of an exercise: a nudge, a plan, almost code."""
    from nanovlm.course.judge.exercise import load_exercises, no_such_exercise

    exercises = load_exercises()
    if exercise_id not in exercises:
        return _shown(no_such_exercise(exercise_id), "").show()
    exercise = exercises[exercise_id]
    step = record_hint(exercise_id)
    if step < 3:
        left = ("", "One more to come.", "Two more to come.")[2 - step]
        return _shown(
            f"Hint {step + 1} of 3, {STEPS[step]}. {left}".strip(), exercise.hints[step], is_code=step == 2
        ).show()
    home = chapter(exercise.chapter)
    where = f"solutions/{home.stem}.ipynb" if home else "solutions/"
    return _shown(
        f"You have seen all three; {where} holds a solution. The last one again:", exercise.hints[2], True
    ).show()


CODE = "font:13px/1.5 ui-monospace,Menlo,Consolas,monospace;white-space:pre;overflow-x:auto"


def _shown(title: str, words: str, is_code: bool = False) -> Shown:
    style = f"{CODE};color:inherit;background:none;margin:.3em 0" if is_code else "margin:.3em 0"
    tag = "pre" if is_code else "p"
    body = f'<{tag} style="{style}">{html.escape(words)}</{tag}>' if words else ""
    return Shown(f"<div><b>{html.escape(title)}</b>{body}</div>", f"{title}\n{words}".rstrip())
