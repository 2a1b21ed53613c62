"""Help in three steps, one at a time."""

from __future__ import annotations

import difflib
import html
import re

from nanovlm.course.outline import chapter
from nanovlm.course.progress import record_hint
from nanovlm.course.quizzes import Shown

STEPS = ("a nudge", "a plan", "almost code")


def hint(exercise_id: str) -> Shown:
    """The next hint of an exercise: a nudge, a plan, almost code."""
    from nanovlm.course.judge.exercise import load_exercises

    exercises = load_exercises()
    if exercise_id not in exercises:
        near = difflib.get_close_matches(str(exercise_id), exercises, n=1)
        number = re.match(r"\d+", str(exercise_id))  # "9.1", as the exercise's title counts it
        own = [name for name, each in exercises.items() if number and int(each.chapter) == int(number[0])]
        where = f" Chapter {int(number[0])} has" if number and own else " There are"
        more = f" Did you mean {near[0]!r}?" if near else f"{where}: {', '.join(sorted(own or exercises))}."
        return _shown(f"There is no exercise {str(exercise_id)[:80]!r}.{more}", "").show()
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
