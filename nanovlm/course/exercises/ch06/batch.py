"""Chapter 06: a row that depends on its batch, and the test of merge_image_tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanovlm.course.exercises import common
from nanovlm.course.exercises.ch06.merge import MERGE, numbered_images, places, words
from nanovlm.course.judge.exercise import Case, Exercise, expect
from nanovlm.models.language_model import attention_layout
from nanovlm.models.vision_language_model import merge_image_tokens

# -- fusion.batch_positions --------------------------------------------------------------------------------------------


def joint_positions(attention_mask: Tensor, num_image_tokens: int) -> tuple[Tensor, Tensor]:
    """The package's own: positions count real tokens."""
    mask = F.pad(attention_mask, (num_image_tokens, 0), value=1)
    return mask, attention_layout(mask, None, mask.shape[1], mask.device)[0]


def run_positions(fn: Any, attention_mask: Tensor, num_image_tokens: int) -> Any:
    """What a padding token's position is does not matter, nor how wide the whole numbers are."""
    out = fn(attention_mask, num_image_tokens)
    if not (isinstance(out, (tuple, list)) and len(out) == 2 and all(isinstance(x, Tensor) for x in out)):
        return out
    mask, positions = out
    expect(not positions.is_floating_point(), "The positions are fractions; they should be whole numbers.")
    if positions.shape != mask.shape:
        return mask, positions.long()
    return mask, positions.long() * (mask != 0)


BATCH_POSITIONS = Exercise(
    id="fusion.batch_positions",
    chapter="06",
    title="Mend it: an answer that depends on its neighbours",
    difficulty=2,
    minutes=10,
    why="A published VLM had this fault. Nothing fails and most answers stay right, but what a model says to one "
    "question should not depend on the length of another.",
    hints=(
        "The mask is right: no token attends to padding. What else does the decoder take from the place of a token in "
        "the row?",
        "A token's position is the number of real tokens in front of it. A running sum over the mask counts real "
        "tokens up to and including each one.",
        "mask = F.pad(attention_mask, (num_image_tokens, 0), value=1)\n"
        "positions = the running sum of the mask along each row, less …",
    ),
    reference=joint_positions,
    cases=lambda: [
        Case(
            torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]]),
            2,
            note="two image tokens; a row of four words, and one of two words that is padded on the left",
        ),
        Case(torch.tensor([[0, 1, 1], [0, 0, 1], [1, 1, 1]]), 3, note="three rows, three image tokens"),
        Case(torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]), 1, note="padding on the right"),
        Case(torch.ones(1, 3, dtype=torch.long), 4, note="a row alone, without padding"),
    ],
    axes={"mask": "batch sequence", "positions": "batch sequence"},
    call=run_positions,
)


@BATCH_POSITIONS.property("a row has the same positions alone and in a batch")
def _(fn) -> None:
    alone = fn(torch.ones(1, 2, dtype=torch.long), 3)[1]
    batched = fn(torch.tensor([[0, 0, 0, 1, 1], [1] * 5]), 3)[1]
    kept = [*batched[0, :3].tolist(), *batched[0, -2:].tolist()]
    expect(kept == alone[0].tolist(), f"Alone the row's positions are {alone[0].tolist()}, and in a batch {kept}.")


def _grown(mask: Tensor, n: int) -> Tensor:
    return F.pad(mask, (n, 0), value=1)


for sentence, positions in (
    (
        "The positions still count padding, as they did: a padded row's words have moved away from their picture.",
        lambda mask, n: torch.arange(n + mask.shape[1]).expand(len(mask), -1),
    ),
    (
        "The positions begin at 1. The first image token stands at position 0.",
        lambda mask, n: _grown(mask, n).cumsum(1),
    ),
    (
        "The words begin again at 0. Picture and text are one sequence: go on counting behind the picture.",
        lambda mask, n: torch.cat([torch.arange(n).expand(len(mask), -1), (mask.cumsum(1) - 1).clamp(min=0)], dim=1),
    ),
    (
        "All image tokens stand at one position, so that the decoder cannot tell the first from the last by it.",
        lambda mask, n: torch.cat([torch.zeros(len(mask), n).long(), mask.cumsum(1)], dim=1),
    ),
    (
        "The words have positions and the picture has none: count the image tokens as well.",
        lambda mask, n: torch.cat([torch.zeros(len(mask), n).long(), (mask.cumsum(1) - 1).clamp(min=0)], dim=1),
    ),
    (
        "Every row has the positions of the first one. Each row has padding of its own.",
        lambda mask, n: (_grown(mask, n).cumsum(1) - 1)[:1].expand(len(mask), -1),
    ),
    (
        "The running sum goes down the batch. It runs along each row, dim 1.",
        lambda mask, n: _grown(mask, n).cumsum(0) - 1,
    ),
    (
        "The positions count from the end of the row. Position 0 is the first image token's.",
        lambda mask, n: _grown(mask, n).flip(1).cumsum(1).flip(1) - 1,
    ),
    (
        "The padding is taken off the whole row, so that the picture of a padded row has moved instead of its words.",
        lambda mask, n: torch.arange(n + mask.shape[1]) - (mask == 0).sum(1, keepdim=True),
    ),
    (
        "The mask itself comes back in place of the positions: 0 and 1 are no positions.",
        lambda mask, n: _grown(mask, n),
    ),
):
    BATCH_POSITIONS.mistake(sentence)(lambda mask, n, positions=positions: (_grown(mask, n), positions(mask, n)))


@BATCH_POSITIONS.mistake("The mask has not grown: the image tokens need ones, in front. That part was right.")
def _(mask, n):
    return mask, _grown(mask, n).cumsum(1) - 1


@BATCH_POSITIONS.mistake("The mask grew at its end, but the image tokens are in front. That part was right.")
def _(mask, n):
    return F.pad(mask, (0, n), value=1), _grown(mask, n).cumsum(1) - 1


@BATCH_POSITIONS.mistake("The mask grew at its end, and the positions with it. The image tokens are in front.")
def _(mask, n):
    mask = F.pad(mask, (0, n), value=1)
    return mask, (mask.cumsum(1) - 1).clamp(min=0)


@BATCH_POSITIONS.mistake("The mask says 0 for the image tokens, so nothing attends to them. That part was right.")
def _(mask, n):
    return F.pad(mask, (n, 0)), _grown(mask, n).cumsum(1) - 1


@BATCH_POSITIONS.mistake("The two come in another order: the mask first, then the positions.")
def _(mask, n):
    return joint_positions(mask, n)[::-1]


# -- fusion.test_merge -------------------------------------------------------------------------------------------------


def planted() -> dict[str, Callable[..., Tensor]]:
    """What is wrong -> a wrong merge_image_tokens: those of exercise 6.1."""
    beginnings = {
        "nothing is counted": "Nothing is counted",
        "counted over the batch, not for each row": "You count over the whole batch",
        "a picture too few goes through": "You refuse too few",
        "every row begins with the first picture": "Every row begins",
        "row i gets picture i": "You give row i",
        "image tokens are added to the placeholders": "You add the image tokens",
        "the pictures come in reverse": "The last picture comes first",
        "the tokens of a picture come in reverse": "Inside each picture",
    }
    return {
        name: next(m.version for m in MERGE.mistakes if m.sentence.startswith(begin))
        for name, begin in beginnings.items()
    }


def refuses(merge: Callable[..., Any], *inputs: Tensor) -> None:
    try:
        merge(*inputs)
    except ValueError:
        return
    raise AssertionError("this must raise ValueError")


def check_merge(merge: Callable[..., Tensor]) -> None:
    """Two rows with two pictures and one, and three batches that must be refused."""
    embeddings, images = words([1, 9, 9, 2, 9, 9], [9, 9, 3, 4, 5, 6]), numbered_images(3, 2)
    out = merge(embeddings, images, places("w##w##", "##wwww"))
    assert out[:, :, 0].tolist() == [[1, 100, 101, 2, 102, 103], [104, 105, 3, 4, 5, 6]]
    refuses(merge, words([9, 9, 9, 1], [2, 9, 3, 4]), numbered_images(2, 2), places("###w", "w#ww"))
    refuses(merge, words([1, 9, 9]), numbered_images(2, 2), places("w##"))
    refuses(merge, words([1, 9, 9, 9, 9]), numbered_images(1, 2), places("w####"))


def caught(test: Callable[[Any], None]) -> int:
    """How many of the planted versions make the learner's test fail, after it has passed with the right one."""
    return common.caught(test, merge_image_tokens, planted(), "merge_image_tokens")


TEST_MERGE = Exercise(
    id="fusion.test_merge",
    chapter="06",
    title="Write the test that counts",
    difficulty=2,
    minutes=12,
    why="A fusion that mixes up two pictures has the right shapes and trains without an error. A test of ten lines is "
    "all that stands between it and a run of several days.",
    hints=(
        "Write an example small enough for the right answer by hand, in which every number says where it is from. Then "
        "think of the batches that have to be refused.",
        "Two rows with two pictures and with one, of two image tokens each, whose numbers are all different, and "
        "embeddings that are not 0. Three batches must raise ValueError: a row with a picture and a half, a picture "
        "too many, a picture too few.",
        "out = merge_image_tokens(embeddings, image_tokens, is_placeholder)\n"
        "assert out[:, :, 0].tolist() == [[1, 100, 101, …], […]]\n"
        "for each batch that must be refused:\n"
        "    try the call; else: raise AssertionError; except ValueError: pass",
    ),
    reference=check_merge,
    cases=lambda: [Case(note=f"your test, on a right merge_image_tokens and on {len(planted())} wrong ones")],
    call=caught,
)


def _example(merge: Callable[..., Tensor]) -> None:
    out = merge(words([1, 9, 9, 2, 9, 9], [9, 9, 3, 4, 5, 6]), numbered_images(3, 2), places("w##w##", "##wwww"))
    assert out[:, :, 0].tolist() == [[1, 100, 101, 2, 102, 103], [104, 105, 3, 4, 5, 6]]


UNEVEN = (words([9, 9, 9, 1], [2, 9, 3, 4]), numbered_images(2, 2), places("###w", "w#ww"))
ONE_TOO_FEW = (words([1, 9, 9, 9, 9]), numbered_images(1, 2), places("w####"))


@TEST_MERGE.mistake("Your test passes with every version: no assert in it can fail, or its example is too kind.")
def _(merge):
    merge(words([1, 9, 9, 2]), numbered_images(1, 2), places("w##w"))


@TEST_MERGE.mistake(
    "Your test never asks whether a batch is refused. Three versions count badly, and give the right answer to every "
    "batch that is right."
)
def _(merge):
    _example(merge)


@TEST_MERGE.mistake("Your test has one picture in one row: then no order of pictures and rows can be wrong.")
def _(merge):
    out = merge(words([1, 9, 9, 2]), numbered_images(1, 2), places("w##w"))
    assert out[0, :, 0].tolist() == [1, 100, 101, 2]
    refuses(merge, *UNEVEN)
    refuses(merge, *ONE_TOO_FEW)


@TEST_MERGE.mistake(
    "Your test refuses a total that does not fit. A total can fit while one row holds a picture and a half: try 3 and "
    "1 placeholders for two pictures of two tokens."
)
def _(merge):
    _example(merge)
    refuses(merge, *ONE_TOO_FEW)


@TEST_MERGE.mistake("Your test never hands over a picture too few: placeholders are left over then.")
def _(merge):
    _example(merge)
    refuses(merge, *UNEVEN)


@TEST_MERGE.mistake(
    "Your test looks for refusals alone. Versions that put image tokens into wrong places refuse well: compare the "
    "numbers of one good batch."
)
def _(merge):
    refuses(merge, *UNEVEN)
    refuses(merge, *ONE_TOO_FEW)


@TEST_MERGE.mistake("Your test says True or False. pytest, and everybody else, waits for an AssertionError.")
def _(merge):
    return True


@TEST_MERGE.mistake("Your placeholders' embeddings are 0, so that adding to them looks like replacing them.")
def _(merge):
    out = merge(words([1, 0, 0, 2, 0, 0], [0, 0, 3, 4, 5, 6]), numbered_images(3, 2), places("w##w##", "##wwww"))
    assert out[:, :, 0].tolist() == [[1, 100, 101, 2, 102, 103], [104, 105, 3, 4, 5, 6]]
    refuses(merge, *UNEVEN)
    refuses(merge, *ONE_TOO_FEW)


@TEST_MERGE.mistake(
    "Your test asks for something that merge_image_tokens does not promise. Read exercise 6.1 once more."
)
def _(merge):
    raise AssertionError
