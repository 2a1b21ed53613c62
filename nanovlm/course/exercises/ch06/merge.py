"""Chapter 06: image tokens among words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nanovlm.course.judge.exercise import Case, Complaint, Exercise, expect
from nanovlm.models.vision_language_model import merge_image_tokens


def must_refuse(run: Callable[[], Any], sentence: str) -> str:
    """Whether run() raises ValueError; if it goes through, the sentence. Other errors go on their way."""
    try:
        run()
    except ValueError:
        return "refused"
    except AssertionError:
        raise Complaint(
            "An assert refuses it here. Python leaves assert statements out when it runs with -O, so what checks an "
            "input raises an error instead: raise ValueError."
        ) from None
    raise Complaint(sentence)


def words(*rows: list[float]) -> Tensor:
    """Rows of word embeddings whose two numbers are alike: [B, T, 2]"""
    return torch.tensor(rows, dtype=torch.float32)[:, :, None].expand(-1, -1, 2).clone()


def numbered_images(count: int, num_image_tokens: int) -> Tensor:
    """Image tokens that hold their own number, from 100: [count, num_image_tokens, 2]"""
    numbers = torch.arange(100.0, 100 + count * num_image_tokens)
    return numbers.reshape(count, num_image_tokens, 1).expand(-1, -1, 2).clone()


def places(*rows: str) -> Tensor:
    """ "w##w" -> False True True False"""
    return torch.tensor([[letter == "#" for letter in row] for row in rows])


# -- fusion.merge_image_tokens -----------------------------------------------------------------------------------------

NOT_EVEN = (
    "Row 0 has placeholders for a picture and a half, row 1 for half a picture. It went through: the second picture "
    "began in one conversation and ended in the other. Count per row, and raise ValueError."
)
TOO_MANY = (
    "There were placeholders for one picture, and two pictures came. It went through, so one picture was dropped in "
    "silence. Raise ValueError."
)
TOO_FEW = (
    "There were placeholders for two pictures, and one picture came. It went through, and the second picture's places "
    "hold something else. Raise ValueError."
)


def run_merge(merge: Any, embeddings: Tensor, image_tokens: Tensor, is_placeholder: Tensor, refuse: str = "") -> Any:
    if refuse:
        return must_refuse(lambda: merge(embeddings, image_tokens, is_placeholder), refuse)
    out = merge(embeddings, image_tokens, is_placeholder)
    if isinstance(out, Tensor) and out.shape == embeddings.shape:
        expect(
            out.dtype == embeddings.dtype,
            f"embeddings came in {_dtype(embeddings)} and image_tokens in {_dtype(image_tokens)}; the result is "
            f"{_dtype(out)}. Whoever reads the sequence next expects it in the dtype of embeddings.",
        )
    return out


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


MERGE = Exercise(
    id="fusion.merge_image_tokens",
    chapter="06",
    title="Pictures among words",
    difficulty=2,
    minutes=12,
    why="This is the fusion of most small VLMs of today: from here on the decoder cannot tell a picture from a word. "
    "If counts disagree and nobody counts, one conversation reads half of another one's picture.",
    hints=(
        "First count, then write. A batch may have the right number of placeholders in all and still be wrong: look "
        "at each row alone.",
        "The sum of the mask along its rows gives the counts. Each must divide by num_image_tokens, and all of them "
        "together must make as many image tokens as there are. Then fill the places in reading order: "
        "Tensor.masked_scatter does just that, with a mask that has an axis more, of size 1, and leaves its input "
        "alone.",
        "counts = is_placeholder.sum(dim=1).tolist()\n"
        "raise ValueError if any count % num_image_tokens, or if the total is not num_images * num_image_tokens\n"
        "return embeddings.masked_scatter(…, the image tokens in the dtype of embeddings)",
    ),
    reference=merge_image_tokens,
    cases=lambda: [
        Case(words([1, 90, 90, 2, 3]), numbered_images(1, 2), places("w##ww"), note="one picture of two image tokens"),
        Case(
            words([1, 90, 90, 2, 90, 90], [90, 90, 3, 4, 5, 6]),
            numbered_images(3, 2),
            places("w##w##", "##wwww"),
            note="two rows, with two pictures and with one",
        ),
        Case(words([1, 2, 3]), numbered_images(0, 2), places("www"), note="no picture at all"),
        Case(
            words([7, 8], [90, 90]),
            numbered_images(1, 2).bfloat16(),
            places("ww", "##"),
            note="image tokens in bfloat16 (as autocast leaves them) among embeddings in float32",
        ),
        Case(
            words([7, 90, 90, 8]).bfloat16(),
            numbered_images(1, 2),
            places("w##w"),
            note="embeddings in bfloat16, image tokens in float32",
        ),
        Case(
            words([90, 90, 90, 1], [2, 90, 3, 4]),
            numbered_images(2, 2),
            places("###w", "w#ww"),
            refuse=NOT_EVEN,
            note="3 placeholders in one row and 1 in the other, for two pictures: this must raise ValueError",
        ),
        Case(
            words([1, 90, 90]),
            numbered_images(2, 2),
            places("w##"),
            refuse=TOO_MANY,
            note="placeholders for one picture, and two pictures: this must raise ValueError",
        ),
        Case(
            words([1, 90, 90, 90, 90]),
            numbered_images(1, 2),
            places("w####"),
            refuse=TOO_FEW,
            note="placeholders for two pictures, and one picture: this must raise ValueError",
        ),
    ],
    axes="batch length dim",
    call=run_merge,
)


@MERGE.property("gradients flow to the words and to the pictures")
def _(merge) -> None:
    embeddings, image_tokens = words([1, 90, 90, 2]).requires_grad_(), numbered_images(1, 2).requires_grad_()
    out = merge(embeddings, image_tokens, places("w##w"))
    expect(out.requires_grad, "The output is cut off from its inputs: no gradient can flow.")
    out.sum().backward()
    kept = embeddings.grad is not None and embeddings.grad[0, :, 0].tolist() == [1, 0, 0, 1]
    expect(kept, "A word's gradient should be what its place gets; a placeholder's should be 0.")
    expect(image_tokens.grad is not None and bool((image_tokens.grad == 1).all()), "Some image tokens get no gradient.")


@MERGE.mistake(
    "You count over the whole batch only. The sum fits while a row holds a picture and a half: count each row."
)
def _(embeddings, image_tokens, is_placeholder):
    if int(is_placeholder.sum()) != image_tokens.shape[0] * image_tokens.shape[1]:
        raise ValueError
    return embeddings.masked_scatter(is_placeholder[:, :, None], image_tokens.to(embeddings.dtype))


@MERGE.mistake(
    "You refuse too few placeholders, but not too many: raise ValueError wherever the two counts are not equal."
)
def _(embeddings, image_tokens, is_placeholder):
    size = image_tokens.shape[1]
    if is_placeholder.sum() < len(image_tokens) * size or (is_placeholder.sum(dim=1) % size).any():
        raise ValueError
    return embeddings.masked_scatter(is_placeholder[:, :, None], image_tokens.to(embeddings.dtype))


@MERGE.mistake("Nothing is counted: masked_scatter drops what is left over, and never says so.")
def _(embeddings, image_tokens, is_placeholder):
    return embeddings.masked_scatter(is_placeholder[:, :, None], image_tokens.to(embeddings.dtype))


def _checked(embeddings, image_tokens, is_placeholder) -> None:
    merge_image_tokens(embeddings, image_tokens, is_placeholder)


@MERGE.mistake(
    "Every row begins with the first picture again. The pictures of a batch come one after the other: the second row "
    "goes on where the first ended."
)
def _(embeddings, image_tokens, is_placeholder):
    _checked(embeddings, image_tokens, is_placeholder)
    line = image_tokens.flatten(0, 1).to(embeddings.dtype)
    rows = zip(embeddings, is_placeholder, strict=True)
    return torch.stack([row.masked_scatter(mask[:, None], line) for row, mask in rows])


@MERGE.mistake("You give row i picture i. A row may hold several pictures, or none.")
def _(embeddings, image_tokens, is_placeholder):
    _checked(embeddings, image_tokens, is_placeholder)
    out = embeddings.clone()
    for row in range(len(out)):
        out[row][is_placeholder[row]] = image_tokens[row].to(out.dtype)
    return out


@MERGE.mistake(
    "You add the image tokens to what stands in the places. A placeholder only reserves a place: its own vector goes."
)
def _(embeddings, image_tokens, is_placeholder):
    merged = merge_image_tokens(embeddings, image_tokens, is_placeholder)
    return torch.where(is_placeholder[:, :, None], merged + embeddings, merged)


@MERGE.mistake(
    "The pictures stand in front of the words, and the placeholders are still there. That is the other way of joining; "
    "here the length stays what it was."
)
def _(embeddings, image_tokens, is_placeholder):
    _checked(embeddings, image_tokens, is_placeholder)
    return torch.cat([image_tokens.to(embeddings.dtype), embeddings], dim=1)


def _filled(embeddings, image_tokens, is_placeholder):
    """The right answer, with no second look at what came in."""
    return embeddings.masked_scatter(is_placeholder[:, :, None], image_tokens.to(embeddings.dtype))


@MERGE.mistake(
    "The places are filled position by position: first the first position of all rows. The image tokens come in "
    "reading order, so finish one row before you begin the next."
)
def _(embeddings, image_tokens, is_placeholder):
    _checked(embeddings, image_tokens, is_placeholder)
    return _filled(embeddings.transpose(0, 1), image_tokens, is_placeholder.T).transpose(0, 1)


@MERGE.mistake("The places still hold the placeholders' own vectors: nothing was written into them.")
def _(embeddings, image_tokens, is_placeholder):
    _checked(embeddings, image_tokens, is_placeholder)
    return embeddings.clone()


@MERGE.mistake("The first picture fills the places of all pictures. Each has its own, in reading order.")
def _(embeddings, image_tokens, is_placeholder):
    _checked(embeddings, image_tokens, is_placeholder)
    return _filled(embeddings, image_tokens[:1].expand_as(image_tokens), is_placeholder)


@MERGE.mistake("The last picture comes first: picture 1 stands where picture 0 belongs.")
def _(embeddings, image_tokens, is_placeholder):
    _checked(embeddings, image_tokens, is_placeholder)
    return _filled(embeddings, image_tokens.flip(0), is_placeholder)


@MERGE.mistake("Inside each picture the tokens run backwards: its last token stands in its first place.")
def _(embeddings, image_tokens, is_placeholder):
    _checked(embeddings, image_tokens, is_placeholder)
    return _filled(embeddings, image_tokens.flip(1), is_placeholder)


@MERGE.mistake(
    "The words are replaced and the placeholders are kept: is_placeholder is True where an image token goes."
)
def _(embeddings, image_tokens, is_placeholder):
    _checked(embeddings, image_tokens, is_placeholder)
    enough = torch.cat([image_tokens] * 9)
    return _filled(embeddings, enough, ~is_placeholder)


for sentence, places_off in (
    ("Each image token stands one place too late: the first lands behind the first placeholder.", 1),
    ("Each image token stands one place too early: the first lands in front of the first placeholder.", -1),
):

    @MERGE.mistake(sentence)
    def _(embeddings, image_tokens, is_placeholder, places_off=places_off):
        _checked(embeddings, image_tokens, is_placeholder)
        return _filled(embeddings, image_tokens, is_placeholder.roll(places_off, 1))


@MERGE.mistake("The dtypes differ, and masked_scatter converts nothing: image_tokens.to(embeddings.dtype).")
def _(embeddings, image_tokens, is_placeholder):
    _checked(embeddings, image_tokens, is_placeholder)
    return embeddings.masked_scatter(is_placeholder[:, :, None], image_tokens)


@MERGE.part
def _(code, learner) -> None:
    code.vision_language_model.merge_image_tokens = learner
