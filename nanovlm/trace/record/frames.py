"""Whose code is this? Sorts stack frames into the learner's own and the libraries'."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import sys
import warnings
from collections.abc import Iterator
from types import CodeType, FrameType, TracebackType

import torch

LIBRARY, WRAPPER, BODY, FUNCTION, EINOPS = range(5)
"""What a frame means to the tree: nothing (torch, this tracer) · a decorator's wrapper, nothing either · a line of the
learner's that needs no row of its own (a `forward` has its module's) · a function of the learner's: a row · an einops
function: a row, whose line is the caller's."""

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_LIBRARIES = (
    os.path.dirname(os.path.abspath(torch.__file__)) + os.sep,
    _HERE,
    contextlib.__file__,
    functools.__file__,
    warnings.__file__,
    f"{os.sep}jaxtyping{os.sep}",
    f"{os.sep}beartype{os.sep}",
    "<@beartype",
    "<frozen ",
)
_EINOPS = f"{os.sep}einops{os.sep}"
_VARIADIC = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS
TORCH = _LIBRARIES[0]
_MACHINERY = (_HERE, os.path.join(TORCH, "nn", "modules", "module.py"), os.path.join(TORCH, "overrides.py"))


def classify(code: CodeType) -> int:
    """One of the five kinds above."""
    file = code.co_filename
    if any(part in file for part in _LIBRARIES):
        return LIBRARY
    if _EINOPS in file:
        return LIBRARY if code.co_name.startswith("_") or code.co_name == "forward" else EINOPS
    if code.co_name == "forward" or code.co_name.startswith("<"):
        return BODY
    if code.co_freevars and (code.co_flags & _VARIADIC == _VARIADIC or code.co_name in ("wrapper", "wrapped")):
        return WRAPPER  # def wrapper(*args, **kwargs): return fn(*args, **kwargs)
    return FUNCTION


def leave_out_machinery(tb: TracebackType | None) -> None:
    """Unlink from a traceback (but for its first) the frames that only hand a call on: the tracer's, and torch's own
    around each module. The learner's lines are left, and what of torch they called."""
    while tb is not None:
        following = kept = tb.tb_next
        while kept is not None and kept.tb_frame.f_code.co_filename.startswith(_MACHINERY):
            kept = kept.tb_next
        tb.tb_next = kept
        tb = following  # also those left out: contextlib goes back to one of them as the head


def function_name(code: CodeType) -> str:
    """A function's name; of a plain object's `__call__` or `__init__` that of its class (Python 3.10 does not tell)."""
    if code.co_name in ("__call__", "__init__") and hasattr(code, "co_qualname"):
        owner = code.co_qualname.split(".")[-2:-1]
        if owner and owner[0].isidentifier():  # not "<locals>", as in the __init__ that a dataclass writes
            return owner[0]
    return code.co_name


def line_of(frame: FrameType | None) -> tuple[CodeType, int] | None:
    """The instruction of the first frame, going outwards, that is not a library's."""
    while frame is not None and classify(frame.f_code) not in (BODY, FUNCTION):
        frame = frame.f_back
    return (frame.f_code, frame.f_lasti) if frame is not None else None


@contextlib.contextmanager
def warnings_at_their_line() -> Iterator[None]:
    """A warning from inside a torch function points at the learner's line, not at ours that handed the call on."""
    before = warnings.showwarning

    def show(message, category, filename, lineno, file=None, line=None):
        frame: FrameType | None = sys._getframe(1) if filename.startswith(_HERE) else None
        while frame is not None and classify(frame.f_code) not in (BODY, FUNCTION):
            frame = frame.f_back
        if frame is not None:
            filename, lineno = frame.f_code.co_filename, frame.f_lineno
        before(message, category, filename, lineno, file, line)

    warnings.showwarning = show
    try:
        yield
    finally:
        if warnings.showwarning is show:
            warnings.showwarning = before


class Chain:
    """Walks from a frame up to a boundary frame and keeps the learner's frames, outermost first.

    Verdicts are kept by id with their code object, because hashing a code object reads all of its bytes.
    """

    def __init__(self) -> None:
        self._verdicts: dict[int, tuple[CodeType, int]] = {}

    def kind(self, code: CodeType) -> int:
        verdict = self._verdicts.get(id(code))
        if verdict is None:
            verdict = self._verdicts[id(code)] = (code, classify(code))
        return verdict[1]

    def walk(self, frame: FrameType | None, boundary: FrameType | None) -> list[tuple[FrameType, int]]:
        """(frame, kind) of the learner's frames between the two. The boundary itself only lends its line."""
        found: list[tuple[FrameType, int]] = []
        verdicts = self._verdicts
        while frame is not None:
            code = frame.f_code
            verdict = verdicts.get(id(code))
            kind = verdict[1] if verdict is not None else self.kind(code)
            if frame is boundary:
                if kind > WRAPPER:
                    found.append((frame, BODY))
                break
            if kind > WRAPPER:
                if kind == EINOPS and found and found[-1][1] == EINOPS:
                    found.pop()  # einops functions call one another; the outermost is what the learner wrote
                found.append((frame, kind))
            frame = frame.f_back
        else:
            # The boundary is not on this stack (another thread, a callback): the lines are right, the nesting is not.
            found = [(f, BODY) for f, _ in found[:1]]
        found.reverse()
        return found


def is_running(frame: FrameType) -> bool:
    """Whether the caller was called from it, directly or not."""
    above: FrameType | None = sys._getframe(1)
    while above is not None and above is not frame:
        above = above.f_back
    return above is not None
