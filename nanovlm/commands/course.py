"""`nanovlm course build | progress | report`: the course package has its own commands."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    from nanovlm.course.commands import course_cli

    return course_cli(list(arguments))
