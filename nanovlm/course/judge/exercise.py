"""What an exercise is: everything about it but its text and its solution, which live in solutions/."""

from __future__ import annotations

import difflib
import re
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

REGISTRY: dict[str, Exercise] = {}


class Complaint(Exception):
    """One sentence for the learner; raised by properties and by `call`, shown by the engine."""


def expect(condition: object, sentence: str) -> None:
    if not condition:
        raise Complaint(sentence)


class Case:
    """Inputs of one call. `note` says what they are, in a few words."""

    def __init__(self, *args: Any, note: str = "", **kwargs: Any) -> None:
        self.args, self.kwargs, self.note = args, kwargs, note


@dataclass(frozen=True)
class Mistake:
    """A known wrong version. Whoever's outputs equal its outputs is told the sentence."""

    sentence: str
    version: Callable[..., Any]


@dataclass(frozen=True)
class Property:
    """A fact that a right version has, and a test that raises Complaint where it has not."""

    name: str
    test: Callable[[Any], None]


@dataclass
class Exercise:
    """One exercise.

    Args:
        id: "topic.name", for ever: progress and notebooks refer to it.
        chapter: "03".
        difficulty: 1 (a line or two), 2 (think), 3 (think twice).
        minutes: for somebody who knows some PyTorch.
        why: one or two sentences: what it buys, or what breaks without it.
        hints: three, rising: a nudge, a plan, almost code.
        reference: a right version: from the package, a torch built-in, or plain loops. Never from solutions/.
        cases: makes the inputs; the first case is the hand-sized example that the learner sees.
        axes: names of the output's axes ("batch tokens dim"); for a tuple, a dict of name -> axes.
        call: turns the learner's object into an output, where calling it with the case's inputs is not enough.
        tolerance: absolute and relative.
    """

    id: str
    chapter: str
    title: str
    difficulty: int
    minutes: int
    why: str
    hints: Sequence[str]
    reference: Any
    cases: Callable[[], Sequence[Case]]
    axes: str | dict[str, str] = ""
    call: Callable[..., Any] | None = None
    tolerance: float = 1e-5
    properties: list[Property] = field(default_factory=list)
    mistakes: list[Mistake] = field(default_factory=list)
    install: Callable[[Any, Any], None] | None = None
    where: str = ""  # file:line of the registration

    def __post_init__(self) -> None:
        caller = sys._getframe(2)  # the module that makes it
        self.where = f"{caller.f_code.co_filename}:{caller.f_lineno}"
        problems = [f"{name} is empty" for name in ("id", "chapter", "title", "why") if not getattr(self, name).strip()]
        if self.difficulty not in (1, 2, 3):
            problems.append(f"difficulty is {self.difficulty}, not 1, 2 or 3")
        if not 1 <= self.minutes <= 60:
            problems.append(f"minutes is {self.minutes}, not between 1 and 60")
        if len(self.hints) != 3 or not all(isinstance(h, str) and h.strip() for h in self.hints):
            problems.append("hints must be three: a nudge, a plan, almost code")
        if self.id in REGISTRY and REGISTRY[self.id].where != self.where:
            problems.append(f"the id is taken by {REGISTRY[self.id].where}")
        if problems:
            raise ValueError(f"{self.where}: exercise {self.id!r}: {'; '.join(problems)}.")
        REGISTRY[self.id] = self

    def run(self, learner: Any, case: Case) -> Any:
        """One call with this case's inputs (not copied here)."""
        if self.call is None:
            return learner(*case.args, **case.kwargs)
        return self.call(learner, *case.args, **case.kwargs)

    def mistake(self, sentence: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorator: a wrong version, and what to tell the learner who wrote it."""

        def add(version: Callable[..., Any]) -> Callable[..., Any]:
            self.mistakes.append(Mistake(sentence, version))
            return version

        return add

    def property(self, name: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
        """Decorator: test(learner's object) raises Complaint (use `expect`) where the fact `name` does not hold."""

        def add(test: Callable[[Any], None]) -> Callable[[Any], None]:
            self.properties.append(Property(name, test))
            return test

        return add

    def part(self, install: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
        """Decorator: install(code, learner's object) puts it into a private copy of the model code (see your_parts)."""
        self.install = install
        return install


def with_weights(module: nn.Module, like: nn.Module | None = None) -> nn.Module:
    """Fill every parameter with small numbers that depend on its name and shape only, so that two modules with the
    same parameters compute the same thing. With `like`, parameters that differ from it are a Complaint that names
    them."""
    if not isinstance(module, nn.Module):
        raise Complaint(f"This should build an nn.Module; it built {type(module).__name__}.")
    own = {name: list(p.shape) for name, p in module.named_parameters()}
    if like is not None:
        wanted = {name: list(p.shape) for name, p in like.named_parameters()}
        for name, shape in wanted.items():
            expect(name in own, f"The module has no parameter {name} {shape}; it has {_listed(own)}.")
            expect(own[name] == shape, f"The parameter {name} has shape {own[name]}; it should be {shape}.")
        for name, shape in own.items():
            expect(name in wanted, f"The parameter {name} {shape} is not needed; expected {_listed(wanted)}.")
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            values = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(values / max(parameter.shape[-1], 1) ** 0.5 if parameter.ndim > 1 else 1 + values / 4)
    return module


def _listed(names: dict[str, list[int]]) -> str:
    first, more = sorted(names)[:3], len(names) - 3  # sorted, as the order of __init__ is free
    return ", ".join(first) + (f" and {more} more" if more > 0 else "") if names else "none"


def no_such_exercise(exercise_id: object) -> str:
    """What to say to an id that no exercise has; people also write the number that is in the title, such as "7.1"."""
    asked = str(exercise_id)[:80]
    near = difflib.get_close_matches(asked, REGISTRY, n=1)
    number = re.fullmatch(r"(\d+)\.\d+", asked)
    chapter = number[1].zfill(2) if number else ""
    ids = [exercise.id for exercise in REGISTRY.values() if exercise.chapter == chapter]
    if near:
        advice = f"Did you mean {near[0]!r}?"
    elif ids:
        advice = f"Write the id that is below its title. Those of chapter {chapter} are: {', '.join(ids)}."
    else:
        advice = "Write the id that is below the exercise's title, for example 'rope.apply'."
    return f"There is no exercise {asked!r}. {advice}"


BROKEN: dict[str, Exception] = {}  # module -> why it cannot be imported: one chapter's fault must not stop the others


def load_exercises() -> dict[str, Exercise]:
    """All exercises, by id: every module of this package is imported once."""
    import pkgutil
    from importlib import import_module

    # By name: exercises know the judge, and the judge knows no exercise.
    room = import_module("nanovlm.course.exercises")
    for module in sorted(m.name for m in pkgutil.walk_packages(room.__path__, f"{room.__name__}.")):
        if module in BROKEN:
            continue
        try:
            import_module(module)
        except Exception as error:
            BROKEN[module] = error
    return REGISTRY
