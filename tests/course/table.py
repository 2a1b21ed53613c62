"""The checks from both sides, in numbers: what they make of right answers in other styles, and of wrong ones.

    python -m tests.course.table          every chapter
    python -m tests.course.table 03 12    some; below the table stands each answer that a check took wrongly

Right are the solution, the reference and the versions in second_versions/. Wrong are the answers in wrong_answers/,
which were written before the check, each with a part of the sentence that it should be told; and the mistakes that
an exercise lists itself, of which nothing but the refusal counts here: their sentences are the exercise's own.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from nanovlm.course.judge.engine import judge
from nanovlm.course.judge.exercise import Exercise, load_exercises
from nanovlm.course.judge.verdict import Result
from tests.course.learners import second_versions, solution, wrong_answers

# On these rungs the message itself names the cause: what was returned is of another kind, or a rule was broken.
RUNGS_WITH_A_CAUSE = ("none", "type", "dtype", "complaint", "property", "in_place", "too_slow")


@dataclass
class Row:
    """One chapter. The lists name answers that a check took for something else."""

    chapter: str
    right: int = 0
    wrong: int = 0
    mistakes: int = 0
    refused: list[str] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    unnamed: list[str] = field(default_factory=list)

    @property
    def named(self) -> float:
        """Share of the wrong answers that were told their cause, in [0, 1]."""
        return 1 - len(self.unnamed) / self.wrong if self.wrong else 1.0

    def __add__(self, other: Row) -> Row:
        counts = (getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__ if name != "chapter")
        return Row("all", *counts)

    def __str__(self) -> str:
        named = f"{self.named:.1%}" if self.wrong else "-"
        numbers = (self.right, len(self.refused), self.wrong, self.mistakes, len(self.accepted))
        return f"{self.chapter:>7} " + " ".join(f"{n:>8}" for n in numbers) + f" {named:>8}"


HEAD = f"{'chapter':>7} " + " ".join(f"{w:>8}" for w in ("right", "refused", "wrong", "listed", "accepted", "named"))


def row(chapter: str, own: bool = True) -> Row:
    """Judges the recorded answers to the exercises of a chapter. `own`: the solution and the listed mistakes, too."""
    result = Row(chapter)
    for exercise in exercises_of(chapter):
        for version in right_versions(exercise, own):
            result.right += 1
            verdict = judge(exercise, version)
            if not verdict.passed:
                result.refused.append(line(exercise, version, verdict))
        for version, part in wrong_answers(chapter).get(exercise.id, ()):
            result.wrong += 1
            verdict = judge(exercise, version)
            if verdict.passed:
                result.accepted.append(line(exercise, version, verdict))
            if part not in told(verdict):
                result.unnamed.append(line(exercise, version, verdict))
        for mistake in exercise.mistakes if own else ():
            result.mistakes += 1
            verdict = judge(exercise, mistake.version)
            if verdict.passed:
                result.accepted.append(line(exercise, mistake.version, verdict))
    return result


def exercises_of(chapter: str) -> list[Exercise]:
    return [exercise for exercise in load_exercises().values() if exercise.chapter == chapter]


def right_versions(exercise: Exercise, own: bool) -> Iterator[Any]:
    if own:
        yield solution(exercise)
    yield exercise.reference
    yield from second_versions(exercise.chapter).get(exercise.id, ())


def told(verdict: Result) -> str:
    """What a learner reads about the cause."""
    return verdict.mistake or (verdict.message if verdict.rung in RUNGS_WITH_A_CAUSE else "")


def line(exercise: Exercise, answer: Any, verdict: Result) -> str:
    return f"{exercise.id} {getattr(answer, '__name__', answer)}: {verdict.mistake or verdict.message}"


def main() -> None:
    chapters = sorted({exercise.chapter for exercise in load_exercises().values()})
    parser = argparse.ArgumentParser(prog="python -m tests.course.table", description="The checks, in numbers.")
    parser.add_argument("chapters", nargs="*", metavar="NN", help="chapters; all where none is named")
    args = parser.parse_args()
    if unknown := set(args.chapters) - set(chapters):
        parser.error(f"there are no exercises in {', '.join(sorted(unknown))}; chapters are {' '.join(chapters)}")
    print(HEAD)
    rows = []
    for chapter in args.chapters or chapters:
        rows.append(row(chapter))
        print(rows[-1], flush=True)
    total = sum(rows[1:], rows[0])
    print(total)
    for title in ("refused", "accepted", "unnamed"):
        if answers := getattr(total, title):
            print(f"\n{title}:", *answers, sep="\n  ")


if __name__ == "__main__":
    main()
