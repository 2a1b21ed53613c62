"""Chapter 07: samples of unequal length become a batch, and a test that notices when they do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nanovlm.course.exercises import common
from nanovlm.course.exercises.common import noise
from nanovlm.course.judge.exercise import Case, Exercise, expect
from nanovlm.data.collators import VQACollator

Batch = tuple[Tensor, Tensor, Tensor, Tensor]
Rows = list[Tensor]

# -- data.pad_batch ----------------------------------------------------------------------------------------------------


def pad_batch(ids: Rows, targets: Rows, images: Rows, pad_id: int) -> Batch:
    """Through the package's collator."""
    samples = zip(ids, targets, images, strict=True)
    items = [{"input_ids": i, "targets": t, "images": p, "index": n} for n, (i, t, p) in enumerate(samples)]
    batch = VQACollator(pad_id)(items)
    return batch["input_ids"], batch["attention_mask"], batch["targets"], batch["images"]


def _rows(
    *lengths: int, num_images: Sequence[int], pad_inside: int | None = None, seed: int = 0
) -> tuple[Rows, Rows, Rows]:
    """Samples whose tokens count on from 11, with pictures of 3 x 2 x 2 numbers."""
    ids = [torch.arange(11 + 10 * n, 11 + 10 * n + length) for n, length in enumerate(lengths)]
    if pad_inside is not None:
        for row in ids:
            row[-1] = pad_inside
    targets = [torch.cat([row[1:], row.new_tensor([-100])]) for row in ids]
    for row in targets:
        row[: len(row) // 2] = -100
    images = [noise(number, 3, 2, 2, seed=seed + n) for n, number in enumerate(num_images)]
    return ids, targets, images


PAD_BATCH = Exercise(
    id="data.pad_batch",
    chapter="07",
    title="Rows of one length",
    difficulty=2,
    minutes=12,
    why="Every batch of training passes through this function. Padding that is supervised teaches the model to write "
    "padding; one picture out of step gives all that follow the wrong text.",
    hints=(
        "Three rectangles of one shape, each filled with its own value before the rows are written into it; and the "
        "pictures, which need no rectangle.",
        "The length is that of the longest row. ids are filled with pad_id, the mask with 0, targets with -100; the "
        "row begins at the left. The mask says where a row is, and cannot be read off the ids. The pictures of all "
        "samples follow each other along the first dim: torch.cat.",
        "length = max(len(row) for row in ids)\n"
        "input_ids = torch.full((len(ids), length), pad_id)\n"
        "for b, row in enumerate(ids):\n"
        "    input_ids[b, : len(row)] = row\n"
        "    attention_mask[b, …] = 1\n"
        "    padded_targets[b, : len(row)] = targets[b]\n"
        "return input_ids, attention_mask, padded_targets, torch.cat(images)",
    ),
    reference=pad_batch,
    cases=lambda: [
        Case(*_rows(3, 5, num_images=(1, 1)), 9, note="two samples of 3 and 5 tokens, a picture each"),
        Case(
            *_rows(4, 2, 6, num_images=(2, 0, 1), pad_inside=1, seed=5),
            1,
            note="three samples of 2, 0 and 1 pictures; each ends with token 1, which is the padding's id too",
        ),
        Case(*_rows(3, 3, num_images=(0, 1), seed=9), 0, note="two samples of equal length"),
    ],
    axes={
        "input_ids": "batch length",
        "attention_mask": "batch length",
        "targets": "batch length",
        "images": "pictures channel height width",
    },
)


@PAD_BATCH.property("a sample on its own is not padded")
def _(fn) -> None:
    ids, mask, _, _ = fn(*_rows(4, num_images=(1,)), 9)
    expect(ids.shape == (1, 4) and bool(mask.all()), "One sample of 4 tokens needs no padding, and there is some.")


@PAD_BATCH.property("the rows that came in are not written into")
def _(fn) -> None:
    given = _rows(3, 5, num_images=(1, 1))
    ids, _, targets, images = fn(*given, 9)
    for out in (ids, targets, images):
        out.fill_(0)
    fresh = _rows(3, 5, num_images=(1, 1))
    same = all(torch.equal(a, b) for one, two in zip(given, fresh, strict=True) for a, b in zip(one, two, strict=True))
    expect(same, "A change to the batch reaches the samples that it was made of: they share memory.")


def _padded(rows: Rows, value: int, left: bool = False, length: int | None = None) -> Tensor:
    length = length or max(map(len, rows))
    fillings = [row.new_full((length - len(row),), value) for row in rows]
    return torch.stack([torch.cat([f, r] if left else [r, f]) for f, r in zip(fillings, rows, strict=True)])


def _mask(ids: Rows, left: bool = False, length: int | None = None) -> Tensor:
    return _padded([torch.ones_like(row) for row in ids], 0, left, length)


# What each wrong version says of itself; write_the_test plants the same ones.
SUPERVISED_PADDING = (
    "The targets are padded with pad_id, so that the model is trained to write padding. What is not to be learned is "
    "-100."
)
MASK_FROM_IDS = (
    "The mask is read off the ids (ids != pad_id). Where padding and the end of a turn share an id, as in many "
    "tokenizers, real tokens get lost: take it from the lengths."
)
LEFT = (
    "The padding is on the left. That is right for generation, where rows have to end together; in training the rows "
    "begin at the left, and causal attention alone keeps padding out of sight."
)
IMAGES_SHUFFLED = (
    "The pictures are in another order than their texts. The n-th picture of the batch has to be the n-th in reading "
    "order."
)
SAME_FILLING = "All three are filled with one value. ids take pad_id, the mask 0, targets -100."
CUT = "Long rows are cut to the shortest one. The batch is as long as its longest row."


@PAD_BATCH.mistake(SUPERVISED_PADDING)
def targets_with_pad_id(ids, targets, images, pad_id):
    return _padded(ids, pad_id), _mask(ids), _padded(targets, pad_id), torch.cat(images)


@PAD_BATCH.mistake(MASK_FROM_IDS)
def mask_from_ids(ids, targets, images, pad_id):
    padded = _padded(ids, pad_id)
    return padded, (padded != pad_id).long(), _padded(targets, -100), torch.cat(images)


@PAD_BATCH.mistake(LEFT)
def on_the_left(ids, targets, images, pad_id):
    return _padded(ids, pad_id, True), _mask(ids, True), _padded(targets, -100, True), torch.cat(images)


@PAD_BATCH.mistake(IMAGES_SHUFFLED)
def images_backwards(ids, targets, images, pad_id):
    return _padded(ids, pad_id), _mask(ids), _padded(targets, -100), torch.cat(images[::-1])


@PAD_BATCH.mistake(SAME_FILLING)
def zeros_everywhere(ids, targets, images, pad_id):
    return _padded(ids, 0), _mask(ids), _padded(targets, 0), torch.cat(images)


@PAD_BATCH.mistake(CUT)
def cut_to_the_shortest(ids, targets, images, pad_id):
    short = min(map(len, ids))
    ids, targets = ([row[:short] for row in rows] for rows in (ids, targets))
    return _padded(ids, pad_id), _mask(ids), _padded(targets, -100), torch.cat(images)


@PAD_BATCH.mistake(
    "The mask is 1 everywhere. Where a row has ended it is 0, or whoever counts tokens counts the padding."
)
def mask_of_ones(ids, targets, images, pad_id):
    padded = _padded(ids, pad_id)
    return padded, torch.ones_like(padded), _padded(targets, -100), torch.cat(images)


@PAD_BATCH.mistake("The mask marks the padding. It should mark the real tokens with 1, and padding with 0.")
def mask_inverted(ids, targets, images, pad_id):
    return _padded(ids, pad_id), 1 - _mask(ids), _padded(targets, -100), torch.cat(images)


@PAD_BATCH.mistake("The mask says where something is learned (targets != -100). It should say where a token is.")
def mask_from_targets(ids, targets, images, pad_id):
    padded = _padded(targets, -100)
    return _padded(ids, pad_id), (padded != -100).long(), padded, torch.cat(images)


@PAD_BATCH.mistake(
    "The ids are padded with 0, or with -100: both are something else than pad_id, and -100 is no token at all."
)
def ids_with_ignore(ids, targets, images, pad_id):
    return _padded(ids, -100), _mask(ids), _padded(targets, -100), torch.cat(images)


@PAD_BATCH.mistake(
    "The pictures are padded to equally many a sample, [batch, pictures, …]. The model wants those that there are, one "
    "behind the other: torch.cat, not stack."
)
def images_per_row(ids, targets, images, pad_id):
    most = max(map(len, images))
    blank = [torch.cat([i, i.new_zeros(most - len(i), 3, 2, 2)]) for i in images]
    return _padded(ids, pad_id), _mask(ids), _padded(targets, -100), torch.stack(blank)


@PAD_BATCH.mistake(
    "The pictures of the samples are stacked, which only works while all samples have equally many, and gives the model an axis "
    "too many: torch.cat."
)
def stacked(ids, targets, images, pad_id):
    return _padded(ids, pad_id), _mask(ids), _padded(targets, -100), torch.stack(images)


@PAD_BATCH.mistake("The mask is of another type than the ids: here it is a whole number, 1 or 0, not True or False.")
def mask_of_bools(ids, targets, images, pad_id):
    return _padded(ids, pad_id), _mask(ids).bool(), _padded(targets, -100), torch.cat(images)


@PAD_BATCH.mistake(
    "Only the first picture of each sample comes along. A sample can have several, and its text has a place for each."
)
def first_images(ids, targets, images, pad_id):
    return _padded(ids, pad_id), _mask(ids), _padded(targets, -100), torch.cat([i[:1] for i in images])


# -- data.test_pad_batch -----------------------------------------------------------------------------------------------

PLANTED = {
    "padding that is learned": targets_with_pad_id,
    "a mask read off the ids": mask_from_ids,
    "padding on the left": on_the_left,
    "pictures in another order than their texts": images_backwards,
    "0 in place of every filling": zeros_everywhere,
    "long rows cut to the shortest": cut_to_the_shortest,
    "a mask of 1 on padding, too": mask_of_ones,
}


def test_pad_batch(collate: Callable[..., Batch]) -> None:
    """Two unequal samples with everything that can go wrong in them, and the answer written down by hand."""
    ids, targets = (
        [torch.tensor([5, 1]), torch.tensor([6, 7, 1])],
        [torch.tensor([1, -100]), torch.tensor([-100, 1, -100])],
    )
    images = [torch.full((1, 3, 1, 1), 2.0), torch.full((2, 3, 1, 1), 3.0)]
    padded, mask, learned, stacked = collate(ids, targets, images, 1)
    assert padded.tolist() == [[5, 1, 1], [6, 7, 1]]
    assert mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert learned.tolist() == [[1, -100, -100], [-100, 1, -100]]
    assert stacked[:, 0, 0, 0].tolist() == [2.0, 3.0, 3.0]


test_pad_batch.__test__ = False  # type: ignore[attr-defined]  # no test of ours: pytest would call it


def caught(test: Callable[[Any], None]) -> int:
    """How many of the planted versions make the learner's test fail, after it has passed with a right one."""
    return common.caught(test, pad_batch, PLANTED, "pad_batch")


TEST_PAD_BATCH = Exercise(
    id="data.test_pad_batch",
    chapter="07",
    title="Write the test that would have told",
    difficulty=2,
    minutes=12,
    why="None of these mistakes raises an error, and each costs a training run. A test of ten lines finds them in a "
    "millisecond, provided that its example is unkind enough.",
    hints=(
        "A test is an example small enough to write the right answer down by hand. What must the example contain, so "
        "that each kind of mistake shows?",
        "Two rows of unequal length; a real token with the id of the padding, and a pad_id that is not 0; several "
        "pictures that can be told apart. Write the four expected results as lists, and compare with .tolist().",
        "ids = [torch.tensor([5, 1]), torch.tensor([6, 7, 1])]          # pad_id 1, and 1 is a real token too\n"
        "images = two pictures filled with 2.0 and 3.0, [1, 3, 1, 1] each\n"
        "padded, mask, learned, stacked = pad_batch(ids, targets, images, 1)\n"
        "assert padded.tolist() == [[5, 1, …], [6, 7, 1]]\n"
        "assert mask.tolist() == …      # and the two others",
    ),
    reference=test_pad_batch,
    cases=lambda: [Case(note=f"your test, on a right pad_batch and on {len(PLANTED)} wrong ones")],
    call=caught,
)


def _shapes_alone(collate) -> None:
    ids, targets, images = _rows(3, 5, num_images=(1, 1))
    padded, mask, learned, _ = collate(ids, targets, images, 9)
    assert padded.shape == mask.shape == learned.shape == (2, 5)


def _same_lengths(collate) -> None:
    ids, targets, images = _rows(4, 4, num_images=(1, 1))
    padded, mask, learned, stacked = collate(ids, targets, images, 9)
    assert torch.equal(padded, torch.stack(ids)) and torch.equal(learned, torch.stack(targets))
    assert mask.all() and torch.equal(stacked, torch.cat(images))


@TEST_PAD_BATCH.mistake(
    "Your test looks at shapes alone, and nearly every wrong version has the right shapes. Compare the numbers, written "
    "down by hand."
)
def _(collate):
    _shapes_alone(collate)


@TEST_PAD_BATCH.mistake(
    "Your test passes with everything. Either no assert in it can fail, or its example is too kind: rows of one length, "
    "pictures all alike."
)
def _(collate):
    ids, targets, images = _rows(3, 5, num_images=(1, 1))
    collate(ids, targets, images, 9)


@TEST_PAD_BATCH.mistake(
    "The rows of your example are equally long, so that nothing is padded: make them unequal, or the padding is not "
    "tested."
)
def _(collate):
    _same_lengths(collate)


@TEST_PAD_BATCH.mistake(
    "Your example uses a pad_id that none of its tokens has, so that a mask read off the ids looks right. Let a real "
    "token have the id of the padding."
)
def _(collate):
    given = _rows(3, 5, num_images=(1, 2))
    for out, right in zip(collate(*given, 9), pad_batch(*given, 9), strict=True):
        assert torch.equal(out, right)


@TEST_PAD_BATCH.mistake(
    "Your pad_id is 0, and your test does not look at the targets: a version that fills everything with 0 looks right "
    "then. Take another id, and compare all four results."
)
def _(collate):
    given = _rows(3, 5, num_images=(1, 2), pad_inside=0)
    ids, mask, _, stacked = collate(*given, 0)
    right = pad_batch(*given, 0)
    assert torch.equal(ids, right[0]) and torch.equal(mask, right[1]) and torch.equal(stacked, right[3])


@TEST_PAD_BATCH.mistake(
    "Your test looks at the ids alone. The mask, the targets and the pictures can be wrong as well."
)
def _(collate):
    given = _rows(3, 5, num_images=(1, 2), pad_inside=1)
    assert torch.equal(collate(*given, 1)[0], pad_batch(*given, 1)[0])


@TEST_PAD_BATCH.mistake(
    "Your test never looks at the pictures, or its pictures are all alike: then their order is free."
)
def _(collate):
    given = _rows(3, 5, num_images=(1, 1), pad_inside=1)
    for out, right in zip(collate(*given, 1)[:3], pad_batch(*given, 1)[:3], strict=True):
        assert torch.equal(out, right)


@TEST_PAD_BATCH.mistake("Your test never looks at the targets, and padding that is learned gets through.")
def _(collate):
    given = _rows(3, 5, num_images=(1, 2), pad_inside=1)
    out, right = collate(*given, 1), pad_batch(*given, 1)
    assert all(torch.equal(out[i], right[i]) for i in (0, 1, 3))


@TEST_PAD_BATCH.mistake("Your test says True or False. pytest, and everybody else, waits for an AssertionError.")
def _(collate):
    return True


@TEST_PAD_BATCH.mistake(
    "Your test asks for something that a right pad_batch does not do. Read once more what it promises."
)
def _(collate):
    raise AssertionError
