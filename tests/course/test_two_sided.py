"""Every check, from both sides: right answers pass, wrong ones are told why, and nothing breaks the checker."""

from __future__ import annotations

import contextlib
import copy
import gc
import itertools
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from nanovlm.course.judge import guard
from nanovlm.course.judge.engine import judge
from nanovlm.course.judge.exercise import BROKEN, Exercise, load_exercises
from tests.course.learners import solution, starter

EXERCISES = sorted(load_exercises().values(), key=lambda e: e.chapter)
FEW = 500_000  # calls of functions
each = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: f"{e.chapter}-{e.id}")


def test_every_module_of_checks_can_be_imported() -> None:
    assert not BROKEN


@each
def test_the_solution_passes_a_check_that_calls_few_functions(exercise: Exercise) -> None:
    """A learner waits for it after every attempt. Calls are counted, which every machine does alike."""
    answer, calls = solution(exercise), 0

    def count(frame: Any, event: str, arg: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    # What a first check imports does not count, so that there may be a second; what it computes once does, because
    # nobody has run a copy's reference.
    for _ in range(2):
        anew, calls = copy.copy(exercise), 0
        sys.setprofile(count)
        try:
            result = judge(anew, answer)
        finally:
            sys.setprofile(None)
        assert result.passed, str(result)
        assert len(result.facts) == len(exercise.properties)
        if calls < FEW:
            break
    assert 0 < calls < FEW


@each
def test_the_starter_is_not_written_yet(exercise: Exercise) -> None:
    result = judge(exercise, starter(exercise))
    assert result.rung == "not_written", str(result)


@each
def test_each_mistake_gets_its_own_sentence(exercise: Exercise) -> None:
    sentences = [mistake.sentence for mistake in exercise.mistakes]
    assert len(sentences) >= 3, "name at least three mistakes"
    assert len(set(sentences)) == len(sentences)
    for mistake in exercise.mistakes:
        result = judge(exercise, mistake.version)
        assert not result.passed, f"this listed mistake passes: {mistake.sentence}"
        assert result.mistake == mistake.sentence, f"wanted {mistake.sentence!r}, got:\n{result}"
        assert mistake.sentence in str(result) and mistake.sentence.split()[0] in result._repr_html_()


class HasNoWords:
    """Hostile to whoever looks at it."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no eq")

    __hash__ = None  # type: ignore[assignment]


def raising(*args: Any, **kwargs: Any) -> Any:
    raise KeyError("a\nb" * 1000)


def leaving(*args: Any, **kwargs: Any) -> Any:
    raise SystemExit


def recursing(*args: Any, **kwargs: Any) -> Any:
    return recursing(*args, **kwargs)


def endless_generator(*args: Any, **kwargs: Any) -> Any:
    yield from itertools.count()


async def waiting(*args: Any, **kwargs: Any) -> Any:
    return None


def writing_into_its_inputs(*args: Any, **kwargs: Any) -> Any:
    for thing in args:
        if isinstance(thing, torch.Tensor) and not thing.requires_grad:
            thing.zero_()
        if isinstance(thing, list):
            thing.clear()
    return args[0] if args else None


class EmptyModule(nn.Module):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()


JUNK: dict[str, Any] = {
    "None": None,
    "a number": 3,
    "a tensor": torch.zeros(2),
    "a string": "def f(): pass",
    "a hostile object": HasNoWords(),
    "no parameters": lambda: None,
    "too many parameters": lambda a, b, c, d, e, f, g, h, i: a,
    "returns None": lambda *a, **k: None,
    "returns a hostile object": lambda *a, **k: HasNoWords(),
    "returns a string": lambda *a, **k: "no",
    "returns an empty tuple": lambda *a, **k: (),
    "returns a nested list": lambda *a, **k: [[[]]],
    "returns infinity": lambda *a, **k: float("inf"),
    "returns an integer tensor": lambda *a, **k: torch.zeros(2, 3, dtype=torch.int64),
    "returns a complex tensor": lambda *a, **k: torch.zeros(2, 3, dtype=torch.complex64),
    "returns a meta tensor": lambda *a, **k: torch.zeros(2, 3, device="meta"),
    "returns a sparse tensor": lambda *a, **k: torch.eye(2).to_sparse(),
    "returns an array": lambda *a, **k: torch.zeros(2, 3).numpy(),
    "returns its input": lambda *a, **k: a[0] if a else None,
    "raises": raising,
    "exits": leaving,
    "recurses for ever": recursing,
    "an endless generator": endless_generator,
    "a coroutine": waiting,
    "writes into its inputs": writing_into_its_inputs,
    "a class": object,
    "a module that does nothing": EmptyModule,
    "a built-in": print,
    "a type": int,
}


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What the garbage collector finds at the bottom of an endless recursion pytest could not even report."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@each
@pytest.mark.filterwarnings("ignore:coroutine 'waiting' was never awaited")
@pytest.mark.usefixtures("no_collector")
def test_junk_is_judged_and_never_crashes_the_checker(exercise: Exercise) -> None:
    """A third of the junk each; three neighbours meet all of it."""
    for name, junk in list(JUNK.items())[EXERCISES.index(exercise) % 3 :: 3]:
        result = judge(exercise, junk)
        assert not result.passed, name
        assert result.message and str(result) and result._repr_html_(), name


@each
def test_nearly_right_answers_are_told_apart(exercise: Exercise) -> None:
    """The right numbers in float64, in other memory, or in a list."""
    case = exercise.cases()[0]
    if exercise.call is not None or not isinstance(exercise.reference(*case.args, **case.kwargs), torch.Tensor):
        return
    right = exercise.reference

    def double(*a: Any, **k: Any) -> Any:
        return right(*a, **k).double()

    def other_memory(*a: Any, **k: Any) -> Any:
        out = right(*a, **k)
        return torch.stack([out, out], dim=-1)[..., 0]  # equal, and not contiguous

    expects_float32 = right(*case.args, **case.kwargs).dtype == torch.float32
    assert judge(exercise, double).rung == "dtype" or not expects_float32
    for elsewhere in (lambda *a, **k: right(*a, **k).to("meta"), lambda *a, **k: right(*a, **k).to_sparse()):
        assert judge(exercise, elsewhere).rung == "dtype"
    result = judge(exercise, other_memory)
    assert result.passed, str(result)


@pytest.mark.parametrize("exercise", EXERCISES[:1], ids=lambda e: e.id)
@pytest.mark.parametrize("thread", [False, True], ids=["main thread", "another thread"])
def test_loops_that_never_end_are_stopped(exercise: Exercise, thread: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "FREE", 0.2)
    monkeypatch.setattr(guard, "STEPS", guard.STEPS // 10)

    def loop(*args: Any, **kwargs: Any) -> Any:
        while True:
            with contextlib.suppress(Exception):
                sum(range(1000))

    results: list[Any] = []
    if thread:
        worker = threading.Thread(target=lambda: results.append(judge(exercise, loop)))
        worker.start()
        worker.join()
    else:
        results.append(judge(exercise, loop))
    assert results[0].rung == "too_slow"
    assert "never ends" in results[0].message


@pytest.mark.parametrize("thread", [False, True], ids=["main thread", "another thread"])
def test_one_who_only_waits_is_stopped(thread: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "PATIENCE", 3)
    if thread:
        monkeypatch.delattr(guard.signal, "setitimer", raising=False)  # as on Windows
    released = threading.Event()
    assert judge(EXERCISES[0], lambda *args: released.wait()).rung == "too_slow"
    released.set()


@pytest.fixture
def other_clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The guard's clocks, which a test may set: they count `slower` times as much, and the wall's jumps by `away`."""
    clock = SimpleNamespace(slower=1.0, away=0.0)
    clock.process_time = lambda: clock.slower * time.process_time()
    clock.perf_counter = lambda: clock.slower * time.perf_counter() + clock.away
    clock.monotonic = lambda: clock.slower * time.monotonic() + clock.away
    monkeypatch.setattr(guard, "time", clock)
    return clock


def test_a_slow_machine_is_no_wrong_answer(other_clock: SimpleNamespace) -> None:
    other_clock.slower = 200
    right = EXERCISES[0].reference

    def laborious(*args: Any) -> Any:
        for _ in range(3_000_000):
            pass
        return right(*args)

    assert judge(EXERCISES[0], laborious).passed


def test_a_machine_that_is_busy_or_asleep_is_no_wrong_answer(other_clock: SimpleNamespace) -> None:
    right = EXERCISES[0].reference

    def interrupted(*args: Any) -> Any:
        other_clock.away += 3600
        time.sleep(3 * guard.TICK)  # it gets no turn
        return right(*args)

    assert judge(EXERCISES[0], interrupted).passed


def test_what_the_check_does_between_two_calls_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter((0.0, 1.0, 1.0, 9.0, 9.5, 9.5))
    monkeypatch.setattr(guard, "time", SimpleNamespace(process_time=lambda: next(now)))
    clock = guard.Clock()
    for _ in range(2):
        clock.start()
        assert not clock.expired()
    assert clock.work == 1.5
