"""`check`: judge an answer, remember what came out, and keep the code that passed."""

from __future__ import annotations

from typing import Any

from nanovlm.course import my_vlm
from nanovlm.course.judge.engine import judge
from nanovlm.course.judge.exercise import BROKEN, REGISTRY, load_exercises, no_such_exercise
from nanovlm.course.judge.verdict import Result
from nanovlm.course.own_code import CannotKeep, failed_since, own_code
from nanovlm.course.progress import entry, update


def check(exercise_id: str, learner: Any = None) -> Result:
    """Judge `learner` (a function or a class) as the answer to an exercise. Never raises, always ends."""
    try:
        result = _judge(exercise_id, learner)
    except Exception as error:
        result = Result(
            str(exercise_id),
            "",
            "checker",
            f"The check itself failed: {type(error).__name__}: {error}. Not your fault.",
        )
    return result.show()


def _judge(exercise_id: str, learner: Any) -> Result:
    exercises = load_exercises()
    if exercise_id not in exercises:
        broken = "".join(f" {module} could not be imported: {error}" for module, error in BROKEN.items())
        return Result(str(exercise_id), "", "unknown", no_such_exercise(exercise_id) + broken)
    exercise = exercises[exercise_id]
    failed = failed_since(learner)
    if learner is exercise.reference and exercise_id in my_vlm.standing_in:
        failed = "This is the reference, which use() put in the place of your version. Run the cell with yours again."
    if failed is not None:
        return Result(exercise_id, exercise.title, "not_run", failed)
    result = judge(exercise, learner)
    problem = record_check(result, learner)
    if problem:
        result.note = " ".join(filter(None, [result.note, problem]))
    return result


def record_check(result: Result, learner: Any) -> str | None:
    """Count the attempt; keep the code of one that passed. Returns a sentence where something could not be kept."""
    if result.rung in ("unknown", "checker", "not_callable", "not_written"):
        return None
    name, problem = _keep(result.id, learner) if result.passed else ("", None)

    def change(state: dict[str, Any]) -> None:
        record = entry(state, result.id)
        record["checks"] += 1
        if result.mistake:
            record["mistakes"][result.mistake] = record["mistakes"].get(result.mistake, 0) + 1
        if result.passed:
            record["passed"] = True
        if name:
            record["name"] = name
            record.pop("source", None)  # where earlier versions kept the code

    return update(change) or problem


def _keep(exercise_id: str, learner: Any) -> tuple[str, str | None]:
    """(name, None) of code that is kept now, or ("", why it is not)."""
    if str(getattr(learner, "__module__", "")).partition(".")[0] == my_vlm.PACKAGE:
        return "", None  # it is the kept one
    try:
        name, source = own_code(learner)
        my_vlm.write(exercise_id, source)
        return name, None
    except (CannotKeep, OSError) as error:
        is_part = REGISTRY[exercise_id].install is not None
        user = "yours()" if is_part else f'use("{exercise_id}")'
        return "", f"It passes, but {user} cannot use it in a later session: {error}"
