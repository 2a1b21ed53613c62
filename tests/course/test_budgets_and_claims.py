"""Sizes by machine, shapes by claim, and "this is the package's own code"."""

from __future__ import annotations

import types

import pytest
import torch

from nanovlm.course import budget, expect_shape
from nanovlm.course.budgets import Budget
from nanovlm.course.claims import difference_from_package


def test_the_variable_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOVLM_BUDGET", "t4")
    assert budget().name == "t4"
    monkeypatch.setenv("NANOVLM_BUDGET", "huge")
    with pytest.raises(ValueError, match="'huge'; it must be one of ci, laptop, t4, h100"):
        budget()


MACHINES = [(None, None, "laptop"), (15, (7, 5), "t4"), (24, (8, 9), "t4"), (80, (9, 0), "h100")]


@pytest.mark.parametrize(("memory", "capability", "name"), MACHINES)
def test_the_machine_decides_otherwise(
    memory: int | None, capability: tuple[int, int] | None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: memory is not None)
    device = types.SimpleNamespace(name="A GPU", total_memory=(memory or 0) * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: device)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    assert budget().name == name and budget().reason


def test_pick_falls_back_to_the_next_smaller_one() -> None:
    assert Budget("h100", "").pick(ci=1, laptop=2) == 2
    assert Budget("laptop", "").pick(ci=1, t4=3) == 1
    assert Budget("t4", "").pick(ci=1, laptop=2, t4=3, h100=4) == 3
    with pytest.raises(ValueError, match="does not know colab"):
        Budget("ci", "").pick(ci=1, colab=2)
    with pytest.raises(ValueError, match="needs a value for ci"):
        Budget("h100", "").pick(h100=2)


def test_a_shape_that_holds_is_shown() -> None:
    assert expect_shape(torch.zeros(2, 196, 768), "batch 196 768") == "batch=2 × 196 × 768"
    assert expect_shape(torch.zeros(4, 4, 3), "side side 3") == "side=4 × side=4 × 3"
    assert expect_shape(torch.zeros(()), "") == "a single number"


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        ("batch 196 576", "axis 2 is 768, not 576"),
        ("batch tokens", "2 axes; the shape is .*3 axes"),
        ("n n 768", "axis 1 n, which is 2 before, is 196"),
    ],
)
def test_a_shape_that_does_not_hold_is_one_sentence(claim: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        expect_shape(torch.zeros(2, 196, 768), claim)


def test_only_tensors_have_shapes() -> None:
    with pytest.raises(TypeError, match="this is list"):
        expect_shape([1, 2], "2")


def test_docstrings_annotations_comments_and_layout_do_not_count() -> None:
    dotted = "nanovlm.course.outline.chapter"
    body = "return next(\n        (c for c in CHAPTERS if c.number == number),\n        None\n    )"
    same = f"def chapter(number: str) -> Chapter | None:\n    # a comment\n    {body}"
    assert difference_from_package(same, dotted) is None
    assert difference_from_package(f"import torch\n\n{same}", dotted) is None
    assert difference_from_package(same.replace(": str", "").replace(" -> Chapter | None", ""), dotted) is None
    assert "differs: here" in (difference_from_package(same.replace("  None\n", "  0\n"), dotted) or "")
    assert "does not define 'chapter'" in (difference_from_package("x = 1", dotted) or "")
    assert "defines no 'nothing'" in (difference_from_package(same, "nanovlm.course.outline.nothing") or "")
    assert "no module 'nanovlm.gone'" in (difference_from_package(same, "nanovlm.gone.chapter") or "")
