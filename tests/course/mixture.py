"""A learner who has solved every second exercise, so that chapters meet their own parts beside the package's.

    NANOVLM_HOME=FOLDER python -m tests.course.mixture        every second exercise
    NANOVLM_HOME=FOLDER python -m tests.course.mixture all    all of them

writes the solutions into FOLDER, as `check` would have kept them. They are not judged again here, which the two-sided
tests do.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from nanovlm.course.checking import record_check
from nanovlm.course.judge.exercise import REGISTRY, load_exercises
from nanovlm.course.judge.verdict import Result
from nanovlm.course.outline import CHAPTERS
from nanovlm.course.progress import home
from tests.course.learners import handed_in


def half() -> list[str]:
    """Every second exercise of each chapter, in the order of the exercise notebooks."""
    numbers = [place.number for place in CHAPTERS]
    load_exercises()
    return [name for number in numbers for name in list(handed_in("solutions", number))[::2] if name in REGISTRY]


def keep(exercise_ids: Iterable[str]) -> None:
    """Keep these solutions in NANOVLM_HOME. RuntimeError names one that cannot be kept."""
    for name in exercise_ids:
        exercise = load_exercises()[name]
        problem = record_check(
            Result(name, exercise.title, "passed", ""), handed_in("solutions", exercise.chapter)[name]
        )
        if problem:
            raise RuntimeError(problem)


if __name__ == "__main__":
    solved = list(load_exercises()) if sys.argv[1:] == ["all"] else half()
    keep(solved)
    print(f"{len(solved)} of {len(REGISTRY)} solutions are kept in {home()}.")
