"""What notebooks import: checks, hints, quizzes, your parts, the map, levers. Nothing is loaded before it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nanovlm.course.budgets import budget
    from nanovlm.course.checking import check
    from nanovlm.course.claims import expect_shape
    from nanovlm.course.hints import hint
    from nanovlm.course.levers import Cells, lever
    from nanovlm.course.overview import course_map, report
    from nanovlm.course.quizzes import quiz
    from nanovlm.course.your_parts import use, yours

# No function shares its name with a module of this package: importing the module would replace the function.
_HOMES = {
    "Cells": "levers",
    "budget": "budgets",
    "check": "checking",
    "course_map": "overview",
    "expect_shape": "claims",
    "hint": "hints",
    "lever": "levers",
    "quiz": "quizzes",
    "report": "overview",
    "use": "your_parts",
    "yours": "your_parts",
}
__all__ = ["Cells", "budget", "check", "course_map", "expect_shape", "hint", "lever", "quiz", "report", "use", "yours"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'nanovlm.course' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"nanovlm.course.{_HOMES[name]}"), name)
