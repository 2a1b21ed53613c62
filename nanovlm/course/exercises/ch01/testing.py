"""Chapter 01: write the test that tells a right patchify from the recorded wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nanovlm.course.exercises import common
from nanovlm.course.exercises.ch01.patches import PATCHIFY, cut, numbered
from nanovlm.course.judge.exercise import Case, Exercise

# Of each sentence what says what is wrong; how to mend it is for those who write patchify.
PLANTED = {mistake.sentence.partition(". ")[0]: mistake.version for mistake in PATCHIFY.mistakes}


def test_patchify(patchify: Callable[[Tensor, int], Tensor]) -> None:
    """Two pictures, wider than high, with two channels, whose numbers are all different."""
    images = torch.arange(64.0).reshape(2, 2, 2, 8)
    out = patchify(images, 2)
    assert out.shape == (2, 4, 8)
    assert out[0, 0].tolist() == [0, 1, 8, 9, 16, 17, 24, 25]
    assert out[0, 1].tolist() == [2, 3, 10, 11, 18, 19, 26, 27]
    assert torch.equal(out[1], out[0] + 32)
    tall = patchify(torch.arange(16.0).reshape(1, 1, 4, 4), 2)
    assert tall[0, :, 0].tolist() == [0, 2, 8, 10]


test_patchify.__test__ = False  # type: ignore[attr-defined]  # no test of ours: pytest would call it


def caught(test: Callable[[Any], None]) -> int:
    """How many of the recorded wrong versions make the learner's test fail, after it has passed with a right one."""
    return common.caught(test, cut, PLANTED, "patchify")


TEST_PATCHIFY = Exercise(
    id="patches.test_patchify",
    chapter="01",
    title="Write the test: which patchify is right?",
    difficulty=2,
    minutes=12,
    why="All these wrong versions have been written by people, and nearly all of them return the right shape for a square "
    "picture of one colour. A test finds them only if its example is unkind enough.",
    hints=(
        "A picture of zeros cannot tell any two versions apart. Which numbers can?",
        "Take a picture whose numbers are all different (torch.arange), with two pictures in the batch, two channels, and "
        "more columns than rows. Work out the first patches by hand. One more example needs several rows of patches.",
        "images = torch.arange(64.0).reshape(2, 2, 2, 8)      # 2 pictures, 2 channels, 2 rows, 8 columns\n"
        "out = patchify(images, 2)\n"
        "assert out.shape == …\n"
        "assert out[0, 0].tolist() == …      # channel 0: two rows of two, then channel 1\n"
        "and the same for another patch, for picture 1, and for a picture with two rows of patches",
    ),
    reference=test_patchify,
    cases=lambda: [Case(note=f"your test, on a right patchify and on {len(PLANTED)} recorded wrong ones")],
    call=caught,
)


def _square(channels: int = 3) -> Tensor:
    return numbered(2, channels, 8, 8)


@TEST_PATCHIFY.mistake(
    "Your test looks at the shape alone, of a square colour picture. Most wrong versions have the right shape: compare the "
    "numbers."
)
def _(patchify):
    assert patchify(_square(), 4).shape == (2, 4, 48)


@TEST_PATCHIFY.mistake(
    "Your test passes with everything. Either no assert in it can fail, or its picture is the same everywhere, such as zeros."
)
def _(patchify):
    patchify(_square(), 4)


@TEST_PATCHIFY.mistake(
    "Your picture is a square. A version that assumes one gets through: take one that is wider than high."
)
def _(patchify):
    assert torch.equal(patchify(_square(), 4), cut(_square(), 4))
    assert torch.equal(patchify(_square(1), 4), cut(_square(1), 4))


@TEST_PATCHIFY.mistake(
    "Your pictures all have three channels. A version that assumes so gets through: take another number."
)
def _(patchify):
    images = numbered(2, 3, 4, 8)
    assert torch.equal(patchify(images, 2), cut(images, 2))


@TEST_PATCHIFY.mistake(
    "Your pictures have one channel, so the order of channels and pixels inside a patch is not tested. Take two or more."
)
def _(patchify):
    images = numbered(2, 1, 4, 8)
    assert torch.equal(patchify(images, 2), cut(images, 2))


@TEST_PATCHIFY.mistake(
    "Your batch holds one picture, so a version that loses or merges pictures gets through. Take two."
)
def _(patchify):
    images = numbered(1, 2, 4, 8)
    assert torch.equal(patchify(images, 2)[0], cut(images, 2)[0])


@TEST_PATCHIFY.mistake(
    "Your test sorts or sums what it compares, so the places are free. Compare the numbers where they are."
)
def _(patchify):
    images = numbered(2, 2, 4, 8)
    out = patchify(images, 2)
    assert out.shape == (2, 8, 8) and torch.equal(out.flatten().sort().values, images.flatten())


@TEST_PATCHIFY.mistake("Your test says True or False. pytest, and everybody else, waits for an AssertionError.")
def _(patchify):
    return True


@TEST_PATCHIFY.mistake(
    "Your test asks for something that a right patchify does not do. Read once more what it promises."
)
def _(patchify):
    raise AssertionError


@TEST_PATCHIFY.mistake("Your test looks at the first patch alone, and the order of the patches is free.")
def _(patchify):
    images = numbered(2, 2, 4, 8)
    out = patchify(images, 2)
    assert out.shape == (2, 8, 8) and torch.equal(out[:, 0], cut(images, 2)[:, 0])
