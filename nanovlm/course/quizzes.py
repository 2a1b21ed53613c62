"""Predict first: a question with choices, and a reason for each of them. Readable with no kernel."""

from __future__ import annotations

import html
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from nanovlm.course.showing import ShowsItself

LETTERS = "abcdefgh"
QUIZZES: dict[str, Quiz] = {}


@dataclass
class Quiz:
    """right: the index of the right choice; because: one explanation for each choice, the wrong ones included."""

    id: str
    question: str
    choices: Sequence[str]
    right: int
    because: Sequence[str]
    where: str = ""

    def __post_init__(self) -> None:
        caller = sys._getframe(2)  # the module that makes it
        self.where = f"{caller.f_code.co_filename}:{caller.f_lineno}"
        problems = []
        if not 2 <= len(self.choices) <= len(LETTERS):
            problems.append(f"it has {len(self.choices)} choices; give 2 to {len(LETTERS)}")
        if len(self.because) != len(self.choices) or not all(text.strip() for text in self.because):
            problems.append("because must explain every choice")
        if not 0 <= self.right < len(self.choices):
            problems.append(f"right={self.right} is not the index of a choice")
        if self.id in QUIZZES and QUIZZES[self.id].where != self.where:
            problems.append(f"the id is taken by {QUIZZES[self.id].where}")
        if problems:
            raise ValueError(f"{self.where}: quiz {self.id!r}: {'; '.join(problems)}.")
        QUIZZES[self.id] = self


class Shown(ShowsItself):
    """What a notebook displays: HTML there, text elsewhere."""

    def __init__(self, html: str, text: str) -> None:
        self.html, self.text = html, text

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


def quiz(quiz_id: str, answer: str | None = None) -> Shown:
    """The question; with an answer ("b"), what is right or wrong about it."""
    from nanovlm.course.judge.exercise import load_exercises

    load_exercises()  # the chapters' modules hold their quizzes too
    if quiz_id not in QUIZZES:
        return Shown(*_both(f"There is no quiz {quiz_id!r}. There are: {', '.join(sorted(QUIZZES))}."))
    asked = QUIZZES[quiz_id]
    if answer is None:
        return Shown(_question_html(asked), _question_text(asked))
    letters = LETTERS[: len(asked.choices)]
    letter = str(answer).strip().lower()[:1]
    if not letter or letter not in letters:
        return Shown(
            *_both(f"Answer with one of {', '.join(letters)}, for example quiz({quiz_id!r}, {letters[0]!r}).")
        ).show()
    index = letters.index(letter)
    from nanovlm.course.progress import record_quiz

    record_quiz(quiz_id, index == asked.right)
    verdict = "Right." if index == asked.right else "Not this one."
    return Shown(*_both(f"{letter}) {asked.choices[index]}: {verdict} {asked.because[index]}")).show()


def _both(sentence: str) -> tuple[str, str]:
    return f"<p>{html.escape(sentence)}</p>", sentence


def _question_html(asked: Quiz) -> str:
    rows = []
    for i, (choice, because) in enumerate(zip(asked.choices, asked.because, strict=True)):
        verdict = "Right." if i == asked.right else "Not this one."
        rows.append(
            f"<details><summary>{LETTERS[i]}) {html.escape(choice)}</summary>"
            f"<p><b>{verdict}</b> {html.escape(because)}</p></details>"
        )
    return f"<div><p><b>Predict first.</b> {html.escape(asked.question)}</p>{''.join(rows)}</div>"


def _question_text(asked: Quiz) -> str:
    choices = "\n".join(f"  {LETTERS[i]}) {choice}" for i, choice in enumerate(asked.choices))
    return f"Predict first. {asked.question}\n{choices}\nAnswer: quiz({asked.id!r}, 'a')"
