"""Predict first: a question with choices, and a reason for each of them. Readable with no kernel."""

from __future__ import annotations

import html
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nanovlm.course.progress import record_quiz
from nanovlm.course.showing import ShowsItself

LETTERS = "abcdefgh"
QUIZZES: dict[str, Quiz] = {}


@dataclass
class Quiz:
    """right: the index of the right choice; because: one explanation for each choice, the wrong ones included.

    Where the right choice is shown follows from the id, so that no letter is a good guess; the others keep their order.
    """

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
        place = zlib.crc32(self.id.encode()) % len(self.choices)
        order = [i for i in range(len(self.choices)) if i != self.right]
        order.insert(place, self.right)
        self.choices, self.because = [self.choices[i] for i in order], [self.because[i] for i in order]
        self.right = place
        QUIZZES[self.id] = self

    def verdict(self, index: int) -> str:
        return f"{'Right.' if index == self.right else 'Not this one.'} {self.because[index]}"


class Shown(ShowsItself):
    """What a notebook displays: HTML there, text elsewhere."""

    def __init__(self, html: str, text: str) -> None:
        self.html, self.text = html, text

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


class Question(Shown):
    """A quiz to answer: radio buttons that remember the answer where there are widgets; elsewhere, and in the stored
    notebook, each choice unfolds into its verdict."""

    def __init__(self, asked: Quiz) -> None:
        super().__init__(_question_html(asked), _question_text(asked))
        self.asked = asked

    def _ipython_display_(self) -> None:
        from IPython.display import display

        bundle: dict[str, Any] = {"text/plain": self.text, "text/html": self.html}
        try:
            box = radio_buttons(self.asked)
        except ImportError:
            display(bundle, raw=True)
            return
        if "google.colab" in sys.modules:  # offered both, it need not choose the buttons
            display(box)
            return
        view = {"version_major": 2, "version_minor": 0, "model_id": box.model_id}
        display({**bundle, "application/vnd.jupyter.widget-view+json": view}, raw=True)


def radio_buttons(asked: Quiz) -> Any:
    """An ipywidgets box: the question, a button for each choice, and the verdict on the one that is chosen."""
    import ipywidgets

    options = [(f"{LETTERS[i]}) {choice}", i) for i, choice in enumerate(asked.choices)]
    buttons = ipywidgets.RadioButtons(options=options, index=None, layout=ipywidgets.Layout(width="auto"))
    said = ipywidgets.HTML()

    def answer(change: Any) -> None:
        if change["new"] is None:
            return
        record_quiz(asked.id, change["new"] == asked.right)
        said.value = f"<p>{html.escape(asked.verdict(change['new']))}</p>"

    buttons.observe(answer, names="value")
    # Long choices wrap: the widget's own labels are one line high.
    style = "<style>.nanovlm-quiz .widget-radio-box label{height:auto;white-space:normal;line-height:1.5}</style>"
    box = ipywidgets.VBox([ipywidgets.HTML(style + _asked_html(asked)), buttons, said])
    box.add_class("nanovlm-quiz")
    return box


def quiz(quiz_id: str, answer: str | None = None) -> Shown:
    """The question; with an answer ("b"), what is right or wrong about it."""
    from nanovlm.course.judge.exercise import load_exercises

    load_exercises()  # the chapters' modules hold their quizzes too
    if quiz_id not in QUIZZES:
        return Shown(*_both(f"There is no quiz {quiz_id!r}. There are: {', '.join(sorted(QUIZZES))}."))
    asked = QUIZZES[quiz_id]
    if answer is None:
        return Question(asked)
    letters = LETTERS[: len(asked.choices)]
    letter = str(answer).strip().lower()[:1]
    if not letter or letter not in letters:
        return Shown(
            *_both(f"Answer with one of {', '.join(letters)}, for example quiz({quiz_id!r}, {letters[0]!r}).")
        ).show()
    index = letters.index(letter)
    record_quiz(quiz_id, index == asked.right)
    return Shown(*_both(f"{letter}) {asked.choices[index]}: {asked.verdict(index)}")).show()


def _both(sentence: str) -> tuple[str, str]:
    return f"<p>{html.escape(sentence)}</p>", sentence


def _asked_html(asked: Quiz) -> str:
    return f"<p><b>Predict first.</b> {html.escape(asked.question)}</p>"


def _question_html(asked: Quiz) -> str:
    rows = [
        f"<details><summary>{LETTERS[i]}) {html.escape(choice)}</summary>"
        f"<p>{html.escape(asked.verdict(i))}</p></details>"
        for i, choice in enumerate(asked.choices)
    ]
    return f"<div>{_asked_html(asked)}{''.join(rows)}</div>"


def _question_text(asked: Quiz) -> str:
    choices = "\n".join(f"  {LETTERS[i]}) {choice}" for i, choice in enumerate(asked.choices))
    return f"Predict first. {asked.question}\n{choices}\nTo answer: quiz({asked.id!r}, LETTER), the letter in quotes."
