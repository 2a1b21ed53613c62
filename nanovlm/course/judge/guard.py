"""Run somebody else's function: bounded in time, on copies, with its own random numbers, whatever it does."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import functools
import inspect
import io
import linecache
import random
import re
import signal
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor

from nanovlm.course.judge.exercise import Complaint


class OutOfTime(BaseException):
    """Not an Exception, so that the learner's `except Exception` does not swallow it."""


@dataclass
class Outcome:
    """What one call did: gave `value`, or ended in `error`; `changed` names the inputs that it wrote into."""

    value: Any = None
    error: BaseException | None = None
    changed: tuple[str, ...] = ()


TICK = 0.05  # seconds between two looks at the clock
STEPS = 30_000_000  # of a Python loop: the work that all calls of a check have together, some seconds
FREE = 2.0  # seconds of work in which nobody asks how fast the machine is
LATE = 5  # looks at which too much has been done, before a call is stopped
PATIENCE = 200  # looks at which next to nothing had been computed since the last: ten seconds or more
TORCH = str(Path(torch.__file__).parent)


class Clock:
    """How much all of a check's calls have worked, and how often they only waited.

    A slow or busy machine fails nobody. Work is compared with that of a loop which is timed at the same moments, on the
    same machine; its slowest time counts, because a busy machine is not slow at every moment. Waiting is counted in
    looks: a process that gets no turn does not look either.
    """

    def __init__(self) -> None:
        self.work, self.waits, self.last, self.step, self.late = 0.0, 0, 0.0, 0.0, 0

    def start(self) -> None:
        """A call begins: what was done since the last one was the check's own work."""
        self.last = time.process_time()

    def expired(self, frame: FrameType | None = None) -> bool:
        """`frame`: where the call is. What torch's own Python code does (it builds modules, and computes shapes on the
        meta device) counts a tenth: it is slow, and no loop of the learner's."""
        done = time.process_time() - self.last
        self.work += done / 10 if frame is not None and frame.f_code.co_filename.startswith(TORCH) else done
        self.waits += done < 0.02 * TICK
        if self.work > FREE:
            self.step = max(self.step, seconds_per_step())
            self.late += self.work > STEPS * self.step
        self.start()
        return self.waits > PATIENCE or self.late >= LATE


def seconds_per_step(steps: int = 100_000) -> float:
    """How long a step of a loop takes, here and now, in processor time: what others do meanwhile is not in it. The wall
    clock decides where processor time comes in ticks too coarse to see the loop."""
    wall, work = time.perf_counter(), time.process_time()
    total = 0
    for i in range(steps):
        total += i
    return (time.process_time() - work or time.perf_counter() - wall) / steps


def call_within(clock: Clock, function: Callable[[], Any]) -> Any:
    """function(), or OutOfTime. Pure Python that never ends is stopped; one endless call into C cannot be."""
    clock.start()
    if hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread():
        return _call_with_alarm(clock, function)
    return _call_in_thread(clock, function)


def importing(frame: FrameType | None) -> bool:
    """Whether the call that is looked at is importing a module: to break that off would leave half a module for the
    rest of the session, and its seconds are not the caller's. (torch's first step on the meta device imports sympy.)"""
    while frame is not None and frame.f_code is not _call_with_alarm.__code__:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _call_with_alarm(clock: Clock, function: Callable[[], Any]) -> Any:
    def look(signum: int, frame: FrameType | None) -> None:
        if importing(frame):
            clock.start()
        elif clock.expired(frame):  # at every tick again: a bare `except:` in the learner's loop must not win
            raise OutOfTime

    before = signal.signal(signal.SIGALRM, look)
    others_left, others_interval = signal.setitimer(signal.ITIMER_REAL, TICK, TICK)
    try:
        return function()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if others_left:
            signal.setitimer(signal.ITIMER_REAL, others_left, others_interval)


def _call_in_thread(clock: Clock, function: Callable[[], Any]) -> Any:
    box: dict[str, Any] = {}

    def work() -> None:
        try:
            box["value"] = function()
        except BaseException as error:
            box["error"] = error

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(TICK)
    while thread.is_alive():
        frame = sys._current_frames().get(thread.ident or 0)
        if importing(frame):
            clock.start()
        elif clock.expired(frame):
            break
        thread.join(TICK)
    for _ in range(3):
        if thread.is_alive() and not importing(sys._current_frames().get(thread.ident or 0)):
            stop = ctypes.c_ulong(thread.ident or 0), ctypes.py_object(OutOfTime)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(*stop)
            thread.join(TICK)
    if thread.is_alive():
        raise OutOfTime
    if "error" in box:
        raise box["error"]
    return box.get("value")


@contextlib.contextmanager
def own_randomness(seed: int = 0) -> Iterator[None]:
    """Random numbers start at `seed` inside and go on outside as if nothing had happened."""
    python_state = random.getstate()
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy is not None else None
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed formats the stack for each kind of GPU, too
        random.seed(seed)
        if numpy is not None:
            numpy.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            if numpy is not None:
                numpy.random.set_state(numpy_state)


def copied(value: Any) -> Any:
    """A copy that the learner may spoil; tensors keep their strides and whether they require a gradient."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, (list, tuple)):
        return type(value)(copied(item) for item in value)
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    try:
        return copy.deepcopy(value)
    except Exception:
        return value


def unchanged(before: Any, after: Any) -> bool:
    if isinstance(before, Tensor):
        return isinstance(after, Tensor) and before.shape == after.shape and bool(_equal(before, after))
    if isinstance(before, (list, tuple)):
        return len(before) == len(after) and all(unchanged(b, a) for b, a in zip(before, after, strict=True))
    if isinstance(before, dict):
        return list(before) == list(after) and all(unchanged(before[key], after[key]) for key in before)
    if isinstance(before, (int, float, str, bool, type(None))):
        return before == after
    return True  # what cannot be compared cheaply is not blamed


def _equal(a: Tensor, b: Tensor) -> bool:
    if a.is_floating_point() and b.is_floating_point():
        return a.dtype == b.dtype and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
    return torch.equal(a, b)


def not_returned(function: Any) -> Any:
    """The same function, but a Complaint where it returns an exception. A class stays as it is."""
    if not inspect.isfunction(function):
        return function

    @functools.wraps(function)
    def watched(*args: Any, **kwargs: Any) -> Any:
        out = function(*args, **kwargs)
        if isinstance(out, BaseException):
            name = type(out).__name__
            raise Complaint(f"It returns a {name}, which stops nobody: write raise {name}(…), not return {name}(…).")
        return out

    return watched


def run_case(exercise: Any, learner: Any, case: Any, clock: Clock | None, quiet: bool = True) -> Outcome:
    """One call on copies of the case's inputs. Only KeyboardInterrupt gets out. No clock: a trusted function."""
    args, kwargs = copied(case.args), copied(case.kwargs)
    given = type(case)(*args, **kwargs)
    silence = contextlib.redirect_stdout(io.StringIO()) if quiet else contextlib.nullcontext()
    try:
        with own_randomness(), silence:
            if clock is None:
                value = exercise.run(learner, given)
            else:
                value = call_within(clock, lambda: exercise.run(learner, given))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return Outcome(error=error)
    if inspect.iscoroutine(value):
        value.close()  # nobody will await it; without this Python complains later, somewhere else
    names = input_names(exercise, len(args))
    changed = [n for n, b, a in zip(names, case.args, args, strict=True) if not unchanged(b, a)]
    changed += [name for name in kwargs if not unchanged(case.kwargs[name], kwargs[name])]
    return Outcome(value=value, changed=tuple(changed))


def input_names(exercise: Any, count: int) -> list[str]:
    """What a case's inputs are called. Where there is a `call`, they are its inputs, behind the learner's object."""
    names = _positional(exercise.reference)
    if exercise.call is not None:
        names = _positional(exercise.call)[1:] or [name for name in names if name != "self"]
    return _filled(names, count)


def parameter_names(function: Any, count: int) -> list[str]:
    """The names of the first `count` parameters, as far as they can be known."""
    return _filled(_positional(function), count)


def _positional(function: Any) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _filled(names: list[str], count: int) -> list[str]:
    return (names + [f"argument {i + 1}" for i in range(len(names), count)])[:count]


_LIBRARIES = tuple(
    str(folder.resolve())
    for folder in (
        Path(sysconfig.get_path("stdlib")),
        Path(sysconfig.get_path("platstdlib")),
        Path(torch.__file__).parent,
        Path(__file__).parents[2],  # this package
    )
)


@cache
def _is_library(filename: str) -> bool:
    if filename.startswith("<frozen") or "site-packages" in filename or "dist-packages" in filename:
        return True
    return str(Path(filename).resolve()).startswith(_LIBRARIES) if Path(filename).is_absolute() else False


@dataclass(frozen=True)
class Place:
    """Where in the learner's own code it happened, and the tensors that the line names."""

    line: int
    code: str
    tensors: str

    def __str__(self) -> str:
        shapes = f"  ({self.tensors})" if self.tensors else ""
        return f"line {self.line}: {self.code}{shapes}"


def _line(trace: TracebackType) -> int:
    """Some instructions, such as a loop's jump back, belong to no line: then the last line before them."""
    number: int | None = trace.tb_lineno
    if number is not None:
        return number
    code = trace.tb_frame.f_code
    before = [line for start, _, line in code.co_lines() if line is not None and start <= trace.tb_lasti]
    return before[-1] if before else code.co_firstlineno


def learners_place(trace: TracebackType | None) -> Place | None:
    """The deepest line of a traceback that is not in a library."""
    found: tuple[FrameType, int] | None = None
    while trace is not None:
        if not _is_library(trace.tb_frame.f_code.co_filename):
            found = trace.tb_frame, _line(trace)
        trace = trace.tb_next
    if found is None:
        return None
    frame, number = found
    code = linecache.getline(frame.f_code.co_filename, number).strip()
    if not code:
        return None
    shapes = [
        f"{name} is {list(value.shape)}"
        for name, value in frame.f_locals.items()
        if isinstance(value, Tensor) and re.search(rf"\b{re.escape(name)}\b", code)
    ]
    return Place(number, code, ", ".join(shapes[:4]))
