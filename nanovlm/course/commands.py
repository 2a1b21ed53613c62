"""`nanovlm course …`: build, progress, report, trust. Each function is a command; its parameters are the options."""

from __future__ import annotations

import sys


def build(check: bool = False, execute: bool = False, only: tuple[str, ...] = ()) -> int:
    """Build notebooks, exercises and the index from chapters/ and solutions/.

    Args:
        check: Write nothing; name what is stale or wrong.
        execute: Run the chapters whose outputs are stale (NANOVLM_BUDGET sets the sizes) and store the outputs.
        only: Chapter numbers, for example 03.
    """
    try:
        from nanovlm.course.builder import build as build_all

        result = build_all(check=check, execute=execute, only=only or None)
    except ModuleNotFoundError as error:
        print(f'Building notebooks needs {error.name}: pip install "nanovlm[lab]"', file=sys.stderr)
        return 1
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    for name in result.written:
        print(f"wrote {name}")
    for problem in result.problems:
        print(problem, file=sys.stderr)
    if not result.problems:
        print("Everything is up to date." if not result.written else f"{len(result.written)} files written.")
    return 1 if result.problems else 0


def progress() -> int:
    """Show which exercises you have solved."""
    from nanovlm.course.overview import course_map

    print(course_map())
    return 0


def report() -> int:
    """List every exercise with its difficulty, minutes, hints, and the mistakes that its check can name."""
    from nanovlm.course.overview import report as table

    print(table())
    return 0


def trust() -> int:
    """Let answers run here that were written on another machine or by another user. Read them first."""
    from nanovlm.course import progress as kept
    from nanovlm.course.my_vlm import folders

    problem = kept.trust()
    print(problem or f"The code in {folders()[-1]} may run here from now on.")
    return 1 if problem else 0


COMMANDS = {"build": build, "progress": progress, "report": report, "trust": trust}


def course_cli(arguments: list[str]) -> int:
    """The commands, from a list of words; returns the exit code."""
    import tyro

    return tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="nanovlm course", args=arguments)


if __name__ == "__main__":
    sys.exit(course_cli(sys.argv[1:]))
