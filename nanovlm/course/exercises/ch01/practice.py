"""Chapter 01: a function to mend, and a number to measure."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nanovlm.course.exercises.ch01.patches import numbered
from nanovlm.course.exercises.common import noise
from nanovlm.course.judge.exercise import Case, Exercise, expect

# -- patches.prepare ---------------------------------------------------------------------------------------------------


def prepared(image: Image.Image, size: int) -> Tensor:
    """Three colours, one size, channels first, -1 to 1, a batch of one."""
    resized = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None] / 127.5 - 1


def photo(mode: str, width: int, height: int, seed: int = 0) -> Image.Image:
    """Random colours that change slowly, so that resizing keeps them apart."""
    coarse = (noise(4, 4, 3, seed=seed).clamp(-2, 2) + 2).mul(63).to(torch.uint8).numpy()
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)
    if mode == "RGBA":
        image.putalpha(Image.new("L", image.size, 200))
        return image
    return image.convert(mode)


PREPARE = Exercise(
    id="patches.prepare",
    chapter="01",
    title="Mend it: a picture on its way into the model",
    difficulty=2,
    minutes=10,
    why="Code like this is in countless scripts. It runs without an error on most pictures, and the model then answers "
    "about a picture that nobody has seen.",
    hints=(
        "Follow one red pixel through the three lines. Which of them assumes something about the picture, and which one "
        "only makes the shape right?",
        "There are four faults: a grey or transparent picture has another number of channels, the channels are moved by "
        "the wrong function, the range is that of another model, and the batch is missing.",
        'image = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)\n'
        "x = torch.from_numpy(np.array(image))          # [row, column, channel], bytes\n"
        "x = move the channels to the front             # which function moves axes?\n"
        "return x in the range of the model, with a batch of one in front",
    ),
    reference=prepared,
    cases=lambda: [
        Case(photo("RGB", 4, 4), 4, note="a colour picture that has the right size already"),
        Case(photo("RGB", 12, 7, seed=1), 6, note="a colour picture that is wider than high"),
        Case(photo("L", 8, 8, seed=2), 4, note="a grey picture, with a single channel"),
        Case(photo("RGBA", 6, 6, seed=3), 6, note="a picture with a fourth channel, its transparency"),
    ],
    axes="batch channel row column",
    tolerance=1e-4,
)


@PREPARE.property("the picture itself stays as it was")
def _(prepare) -> None:
    image = photo("RGB", 9, 9)
    before = image.tobytes()
    prepare(image, 4)
    expect(image.size == (9, 9) and image.tobytes() == before, "The picture that was handed in has changed.")


def _rgb(image: Image.Image, size: int, how=Image.Resampling.BICUBIC) -> Tensor:
    return torch.from_numpy(np.array(image.convert("RGB").resize((size, size), how)))


@PREPARE.mistake(
    "The channels come to the front by a reshape, which moves no number: each channel is then a third of the picture's "
    "rows. Move the axes with permute."
)
def _(image, size):
    return _rgb(image, size).reshape(1, 3, size, size) / 127.5 - 1


@PREPARE.mistake("The range is 0 to 1. The pocket model, as SigLIP, was trained on -1 to 1.")
def _(image, size):
    return _rgb(image, size).permute(2, 0, 1)[None] / 255


@PREPARE.mistake(
    "The reshape is still there, and the range is 0 to 1: two of the faults are left. Move the axes with permute, and "
    "bring the numbers to -1 to 1."
)
def _(image, size):
    return _rgb(image, size).reshape(1, 3, size, size) / 255


@PREPARE.mistake("The batch is missing: the model wants [1, 3, size, size], one picture being a batch of one.")
def _(image, size):
    return _rgb(image, size).permute(2, 0, 1) / 127.5 - 1


@PREPARE.mistake("The channels are still last. PyTorch's layers want [batch, channel, row, column].")
def _(image, size):
    return _rgb(image, size)[None] / 127.5 - 1


@PREPARE.mistake("Rows and columns are swapped as well: permute(2, 1, 0) turns the picture. Take permute(2, 0, 1).")
def _(image, size):
    return _rgb(image, size).permute(2, 1, 0)[None] / 127.5 - 1


@PREPARE.mistake("Red and blue are swapped: OpenCV stores pictures as blue, green, red, but PIL does not.")
def _(image, size):
    return _rgb(image, size).permute(2, 0, 1).flip(0)[None] / 127.5 - 1


@PREPARE.mistake(
    "A picture that is grey or transparent has one channel or four, and raises here. Convert every picture first: "
    'image.convert("RGB").'
)
def _(image, size):
    if image.mode != "RGB":
        raise RuntimeError
    return prepared(image, size)


@PREPARE.mistake("The picture is resized with the nearest pixels, which loses thin lines. Use BICUBIC, as in training.")
def _(image, size):
    return _rgb(image, size, Image.Resampling.NEAREST).permute(2, 0, 1)[None] / 127.5 - 1


@PREPARE.mistake(
    "The picture is resized bilinearly. The model was trained with BICUBIC; a picture is part of its input."
)
def _(image, size):
    return _rgb(image, size, Image.Resampling.BILINEAR).permute(2, 0, 1)[None] / 127.5 - 1


@PREPARE.mistake("The picture was not resized. The encoder takes pictures of size x size pixels only.")
def _(image, size):
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None] / 127.5 - 1


@PREPARE.mistake("The numbers are still bytes. Divide them by 127.5 and subtract 1.")
def _(image, size):
    return _rgb(image, size).permute(2, 0, 1)[None]


# -- patches.where_over_what -------------------------------------------------------------------------------------------


def ratio(what: Tensor, where: Tensor) -> float:
    """Average distance from the mean, of the positions over the patches."""
    patches, places = what.flatten(0, 1), where.flatten(0, 1)
    around = [(v - v.mean(dim=0)).pow(2).sum(dim=1).sqrt().mean() for v in (places, patches)]
    return (around[0] / around[1]).item()


WHERE_OVER_WHAT = Exercise(
    id="patches.where_over_what",
    chapter="01",
    title="Measure it: where beside what",
    difficulty=2,
    minutes=8,
    why="Positions at the wrong scale cost the pocket model 700 steps without progress, and no error said so. One number, "
    "measured before the training, would have.",
    hints=(
        "What is the same for all patches says nothing about any of them. How do you take it off?",
        "For the patches and for the positions alike: subtract the mean vector, take the length of what is left of each "
        "vector, and average the lengths. Then divide.",
        "flat = vectors with batch and patches merged      # [everything, dim]\n"
        "spread = the mean length of flat - (its mean over the first axis)\n"
        "return spread of where / spread of what, as a number",
    ),
    reference=ratio,
    cases=lambda: [
        Case(
            torch.tensor([[[5.0, 4.0], [5.0, 0.0]]]),
            torch.tensor([[[3.0, 0.0], [1.0, 0.0]]]),
            note="two patches that are 4 apart, two positions that are 2 apart: 0.5",
        ),
        Case(noise(3, 4, 5) * 2 + 7, noise(1, 4, 5, seed=1) - 2, note="three pictures of four patches, far from zero"),
        Case(numbered(2, 4, 2), noise(1, 4, 2, seed=2) * 0.02, note="positions at 0.02"),
    ],
)


@WHERE_OVER_WHAT.property("adding the same vector everywhere changes nothing")
def _(measure) -> None:
    what, where = noise(2, 4, 3), noise(1, 4, 3, seed=1)
    moved = measure(what + 3, where - 5)
    expect(abs(moved - measure(what, where)) < 1e-3, "A vector that all patches share changes your ratio.")


def _length(x: Tensor) -> Tensor:
    return x.pow(2).sum(dim=-1).sqrt()


@WHERE_OVER_WHAT.mistake(
    "These are the lengths themselves. What all vectors share says nothing: subtract the mean vector."
)
def _(what, where):
    return (_length(where).mean() / _length(what).mean()).item()


@WHERE_OVER_WHAT.mistake("The ratio is upside down: it should be where over what.")
def _(what, where):
    return 1 / ratio(what, where)


@WHERE_OVER_WHAT.mistake(
    "You subtract one number, the mean over everything. Each dimension has a mean of its own: dim=0."
)
def _(what, where):
    a, b = ((v - v.mean()).flatten(0, 1) for v in (where, what))
    return (_length(a).mean() / _length(b).mean()).item()


@WHERE_OVER_WHAT.mistake(
    "You subtract the mean of each vector's own numbers (the last axis). The mean runs over the patches: what do they share?"
)
def _(what, where):
    a, b = ((v - v.mean(dim=-1, keepdim=True)).flatten(0, 1) for v in (where, what))
    return (_length(a).mean() / _length(b).mean()).item()


@WHERE_OVER_WHAT.mistake(
    "You subtract a mean for each picture. The patches of all pictures are one set: merge batch and patches first."
)
def _(what, where):
    a, b = (_length(v - v.mean(dim=1, keepdim=True)).mean() for v in (where, what))
    return (a / b).item()


@WHERE_OVER_WHAT.mistake("This is the ratio of squared lengths. Take the root before you average.")
def _(what, where):
    a, b = ((v.flatten(0, 1) - v.flatten(0, 1).mean(0)).pow(2).sum(1).mean() for v in (where, what))
    return (a / b).item()


@WHERE_OVER_WHAT.mistake(
    "This is the root of the mean square. Here the lengths are averaged themselves: root first, then mean."
)
def _(what, where):
    a, b = ((v.flatten(0, 1) - v.flatten(0, 1).mean(0)).pow(2).sum(1).mean().sqrt() for v in (where, what))
    return (a / b).item()


@WHERE_OVER_WHAT.mistake("These are absolute values instead of lengths. Square, add up over dim, take the root.")
def _(what, where):
    a, b = ((v.flatten(0, 1) - v.flatten(0, 1).mean(0)).abs().mean() for v in (where, what))
    return (a / b).item()


@WHERE_OVER_WHAT.mistake(
    "This is the ratio of the standard deviations of all numbers. Here a distance is the length of a whole vector: take "
    "the mean vector off, then the length of each row, then the average."
)
def _(what, where):
    return (where.std() / what.std()).item()


@WHERE_OVER_WHAT.mistake("The lengths are added up, and there are more patches than positions. Average them.")
def _(what, where):
    a, b = (_length(v.flatten(0, 1) - v.flatten(0, 1).mean(0)).sum() for v in (where, what))
    return (a / b).item()


@WHERE_OVER_WHAT.mistake("Only the first picture counts. Merge batch and patches first.")
def _(what, where):
    return ratio(what[:1], where)


@WHERE_OVER_WHAT.mistake("This is the difference of the two. Divide one by the other.")
def _(what, where):
    a, b = (_length(v.flatten(0, 1) - v.flatten(0, 1).mean(0)).mean() for v in (where, what))
    return (a - b).item()
