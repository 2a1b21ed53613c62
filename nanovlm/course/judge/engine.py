"""The ladder: one check that says what is wrong, not only that it is wrong.

Not written yet -> raised, with the learner's own line -> None or a wrong type -> shape, with axis names -> dtype, or an
input changed in place -> one hand-sized example, number by number -> properties. On every rung that fails, the outputs
are compared with those of the known wrong versions, so that the likely thought behind them can be named.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from nanovlm.course.judge.differences import Mismatch, first_difference, in_words, kind, same
from nanovlm.course.judge.exercise import Case, Complaint, Exercise
from nanovlm.course.judge.guard import (
    STEPS,
    Clock,
    Outcome,
    OutOfTime,
    call_within,
    input_names,
    learners_place,
    not_returned,
    own_randomness,
    parameter_names,
    run_case,
)
from nanovlm.course.judge.verdict import Result

ENDLESS = (
    f"It did not end: it went on for as long as a Python loop takes for {STEPS // 1_000_000} million steps, or waited "
    "for something that never came, on inputs of a few numbers. Is there a loop that never ends, or a loop over every "
    "element where one tensor operation would do?"
)


def judge(exercise: Exercise, learner: Any) -> Result:
    """The ladder alone: nothing is remembered."""

    def result(rung: str, message: str, **more: Any) -> Result:
        return Result(exercise.id, exercise.title, rung, message, **more)

    wanted = "class" if isinstance(exercise.reference, type) else "function"
    # A module that is already built can be called, but not built again.
    if not callable(learner) or (wanted == "class" and isinstance(learner, nn.Module)):
        name = getattr(exercise.reference, "__name__", "your_function")
        came = f"an instance of {type(learner).__name__}" if isinstance(learner, nn.Module) else kind(learner)
        return result(
            "not_callable",
            f'This is {came}, not a {wanted}: hand over the {wanted} itself, as in check("{exercise.id}", {name}), '
            f"not what it {'builds' if wanted == 'class' else 'returns'}.",
        )
    watched = not_returned(learner)
    clock = Clock()
    cases = list(exercise.cases())
    finding = _signature(exercise, learner, cases[0])
    if finding is not None:
        return result(finding.rung, finding.message)
    outcomes: list[Outcome] = []
    for i, case in enumerate(cases):
        outcomes.append(run_case(exercise, watched, case, clock, quiet=i > 0))
        error = outcomes[-1].error
        if isinstance(error, NotImplementedError) and str(error) in ("", exercise.id):
            return result(
                "not_written",
                f"Write the body where it raises NotImplementedError, then run this again. "
                f'Stuck? hint("{exercise.id}")',
            )
        if isinstance(error, OutOfTime):
            return result("too_slow", ENDLESS, place=_place(error))

    for i, (case, outcome) in enumerate(zip(cases, outcomes, strict=True)):
        finding = _climb(exercise, i, case, outcome)
        if finding is not None:
            note = f"Seen with {case.note}." if case.note else ""
            if i > 0:
                note = f"The first example is right. {note or f'Seen with example {i + 1}.'}"
            return result(
                finding.rung,
                finding.message,
                mistake=recognise(exercise, cases, outcomes) or likely(exercise, finding, cases[: i + 1], outcomes),
                place=_place(outcome.error),
                grid=finding.grid,
                lists=_lists(exercise, case, finding),
                note=note,
            )
    facts: list[str] = []
    for fact in exercise.properties:
        error = _test(fact.test, watched, clock)
        if error is None:
            facts.append(fact.name)
            continue
        about = f'The examples are right, but this does not hold: "{fact.name}".'
        if isinstance(error, OutOfTime):
            return result("too_slow", ENDLESS, place=_place(error), facts=facts, note=about)
        said = str(error) if isinstance(error, Complaint) else _raised(error)
        rung = "property" if isinstance(error, Complaint) else "raised"
        place = "" if isinstance(error, Complaint) else _place(error)
        return result(rung, said, place=place, facts=facts, note=about)
    return result(
        "passed", f"All {len(cases)} examples agree." if len(cases) > 1 else "The example agrees.", facts=facts
    )


def _climb(exercise: Exercise, number: int, case: Case, outcome: Outcome) -> Mismatch | None:
    """The first rung that this outcome does not reach."""
    if isinstance(outcome.error, Complaint):
        return Mismatch("complaint", str(outcome.error))
    if outcome.error is not None:
        return Mismatch("raised", _raised(outcome.error))
    right = _known(exercise, exercise.reference, number, case)
    if right.error is not None:
        raise right.error
    finding = first_difference(right.value, outcome.value, exercise.axes, exercise.tolerance)
    changed = [name for name in outcome.changed if name not in right.changed]
    if changed and (finding is None or finding.rung == "values"):
        return Mismatch(
            "in_place",
            f"It changes its input {', '.join(changed)} in place: whoever called it still needs that. "
            f"{_new(_inputs(exercise, case)[changed[0]])}.",
        )
    return finding


def _inputs(exercise: Exercise, case: Case) -> dict[str, Any]:
    return dict(zip(input_names(exercise, len(case.args)), case.args, strict=True)) | case.kwargs


def _new(value: Any) -> str:
    """What to do instead of changing this in place."""
    if isinstance(value, list):
        return "Make a new list instead (x = x + [1], not x += [1], x.append(1) or x[…] = …)"
    if isinstance(value, dict):
        return "Make a new dict instead (x = {**x, key: 1}, not x[key] = 1)"
    return "Make a new tensor instead (x = x + 1, not x += 1 or x[…] = …)"


def _lists(exercise: Exercise, case: Case, finding: Mismatch) -> list[tuple[str, str]]:
    """Lists that differ, behind the input that they were made from."""
    if not finding.lists:
        return []
    given = ", ".join(f"{name} = {_input(value)}" for name, value in _inputs(exercise, case).items())
    return [*([("input", given)] if given else []), *finding.lists]


def _input(value: Any) -> str:
    if isinstance(value, Tensor):
        return str(value.tolist()) if value.numel() <= 32 else f"a tensor {list(value.shape)}"
    return value.__name__ if inspect.isfunction(value) else in_words(value)


def recognise(exercise: Exercise, cases: list[Case], outcomes: list[Outcome]) -> str | None:
    """The sentence of the first known wrong version that does the same as the learner's on every case."""
    for mistake in exercise.mistakes:
        if all(
            _alike(outcome, _known(exercise, mistake.version, number, case), exercise.tolerance)
            for number, (case, outcome) in enumerate(zip(cases, outcomes, strict=True))
        ):
            return mistake.sentence
    return None


def likely(exercise: Exercise, finding: Mismatch, cases: list[Case], outcomes: list[Outcome]) -> str | None:
    """The one sentence of the wrong versions that do the same up to the case that fails: a first try often has a second
    fault, which shows further on. Where several sentences would do, none is told."""
    if finding.rung not in ("values", "shape", "type"):
        return None
    sentences = {
        mistake.sentence
        for mistake in exercise.mistakes
        if all(
            _alike(outcome, known := _known(exercise, mistake.version, number, case), exercise.tolerance)
            and type(outcome.value) is type(known.value)  # a float in the place of an int is a fault of its own
            for number, (case, outcome) in enumerate(zip(cases, outcomes, strict=False))
        )
    }
    return sentences.pop() if len(sentences) == 1 else None


# By exercise, version (the reference, or a wrong one) and number of the case, for the next answer: the cases are the
# same each time. Exercise and version are kept, too, or another object might get the same id.
_OUTCOMES: dict[tuple[int, int, int], tuple[Exercise, Any, Outcome]] = {}


def _known(exercise: Exercise, version: Any, number: int, case: Case) -> Outcome:
    key = (id(exercise), id(version), number)
    if key not in _OUTCOMES:
        _OUTCOMES[key] = (exercise, version, run_case(exercise, version, case, clock=None))
    return _OUTCOMES[key][2]


def _alike(yours: Outcome, wrong: Outcome, tolerance: float) -> bool:
    if yours.error is not None or wrong.error is not None:
        if type(yours.error) is not type(wrong.error):
            return False
        return not isinstance(yours.error, Complaint) or str(yours.error) == str(wrong.error)
    return same(wrong.value, yours.value, tolerance) and yours.changed == wrong.changed


def _signature(exercise: Exercise, learner: Any, case: Case) -> Mismatch | None:
    """A wrong number of parameters, said before Python says it."""
    if exercise.call is not None:
        return None
    try:
        own = inspect.signature(learner)
    except (TypeError, ValueError):
        return None
    try:
        own.bind(*case.args, **case.kwargs)
    except TypeError:
        wanted = ", ".join(parameter_names(exercise.reference, len(case.args)) + list(case.kwargs))
        return Mismatch(
            "signature",
            f"It is called with ({wanted}), but yours takes {own}. Keep the first line of the exercise as it was.",
        )
    return None


def _test(test: Any, learner: Any, clock: Clock) -> BaseException | None:
    import contextlib
    import io

    try:
        with own_randomness(), contextlib.redirect_stdout(io.StringIO()):
            call_within(clock, lambda: test(learner))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return error
    return None


def _raised(error: BaseException) -> str:
    words = str(error).strip().split("\n\n")[0]
    words = " ".join(words.split())
    return f"It raised {type(error).__name__}{': ' if words else ''}{words[:300]}{'…' if len(words) > 300 else ''}"


def _place(error: BaseException | None) -> str:
    place = learners_place(error.__traceback__) if error is not None else None
    return str(place) if place is not None else ""
