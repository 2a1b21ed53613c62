"""Bugs planted in models from outside: how often the line, the shapes and a right fix are said."""

import functools
import inspect
import os
import re
from typing import NamedTuple

import pytest

from nanovlm.trace import trace
from tests.trace.planted import PLANTED
from tests.trace.planted.cases import Planted

pytestmark = pytest.mark.filterwarnings("ignore")  # of the models, about what they are about to fail at

# They say that two sizes must be one, which is true and mends nothing: counted as no advice.
_SAY_NOTHING = (
    "the same size in both, or 1.",
    "must be the same size, or 1.",
    "must be one size.",
    "to one size first.",
)


class Judged(NamedTuple):
    line: bool
    shapes: bool
    fix: str  # "right", "none" or "wrong"
    message: str


def place_of(bug: Planted) -> tuple[str, str]:
    """`losses.py:31` and the text of the failing line."""
    if bug.line is not None:
        return "modeling_", bug.line
    lines, start = inspect.getsourcelines(bug.build)
    at = next(i for i, line in enumerate(lines) if line.rstrip().endswith("# here"))
    text = lines[at].strip().removesuffix("# here").strip()
    return f"{os.path.basename(inspect.getsourcefile(bug.build))}:{start + at}", text


@functools.cache
def judge(bug: Planted) -> Judged:
    model = bug.build()
    with pytest.raises(Exception) as caught:  # any type: torch, einops and Python each have their own
        trace(model, *bug.given)
    message = str(caught.value)
    place, text = place_of(bug)
    said = re.search(r"^ *Try: (.*)", message, re.MULTILINE)
    if said is None or said[1].endswith(_SAY_NOTHING):
        fix = "none"
    else:
        fix = "right" if any(part in said[1] for part in bug.right) else "wrong"
    explained = message.partition("The way there")[0]
    return Judged(place in message and text in message, all(part in explained for part in bug.shapes), fix, message)


@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: bug.name)
def test_no_advice_is_wrong(bug):
    judged = judge(bug)
    assert judged.fix != "wrong", judged.message


@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: bug.name)
def test_what_the_advice_makes_has_the_shape_that_it_says(bug):
    """`Try: … x.transpose(0, 1) is [2, 3]`: run where the bug is."""
    with pytest.raises(Exception) as caught:
        trace(bug.build(), *bug.given)
    said = re.search(r"^ *Try: (.*?) is (\[[\d, ]+\])", str(caught.value), re.MULTILINE)
    if said is None:
        return
    frame = next(entry.frame for entry in reversed(caught.traceback) if "site-packages" not in str(entry.path))
    made = eval(said[1].rpartition(": ")[2], frame.f_globals, frame.f_locals)
    assert str(list(made.shape)) == said[2]


def test_line_shapes_and_fix_in_most():
    judged = [judge(bug) for bug in PLANTED]
    assert len(judged) >= 60
    count = len(judged)
    unsaid = [bug.name for bug, j in zip(PLANTED, judged, strict=True) if not (j.line and j.shapes)]
    assert sum(j.line for j in judged) >= 0.95 * count and sum(j.shapes for j in judged) >= 0.95 * count, unsaid
    assert sum(j.fix == "right" for j in judged) >= 0.60 * count
