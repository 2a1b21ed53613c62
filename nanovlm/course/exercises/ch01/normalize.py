"""Chapter 01: pixels and their range."""

from __future__ import annotations

import torch
from torch import Tensor

from nanovlm.course.judge.exercise import Case, Exercise, expect


def pixels(*shape: int, low: int = 0, high: int = 256, seed: int = 0) -> Tensor:
    """Random bytes from low to high - 1."""
    return torch.randint(low, high, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# -- patches.normalize -------------------------------------------------------------------------------------------------


def scaled(pixels: Tensor) -> Tensor:
    """To [0, 1], then mean 0.5 and standard deviation 0.5, as SigLIP's processor says it."""
    return (pixels.to(torch.float32) / 255 - 0.5) / 0.5


NORMALIZE = Exercise(
    id="patches.normalize",
    chapter="01",
    title="From bytes to the model's range",
    difficulty=1,
    minutes=4,
    why="A model's weights belong to the range of numbers that it was trained on. With another range it raises no "
    "error and still answers, but it answers worse.",
    hints=(
        "Which value does 0 become, and which does 255? Two points determine a straight line, so you need one factor and one "
        "shift.",
        "Bytes cannot hold fractions or minus signs, so the result must be a float tensor. Divide first: dividing "
        "bytes by a number makes floats of them.",
        "the bytes, divided by half of 255, are between 0 and 2\nshift them so that they begin at -1",
    ),
    reference=scaled,
    cases=lambda: [
        Case(
            torch.tensor([[[0, 51], [204, 255]]] * 3, dtype=torch.uint8),
            note="a grey picture of 2x2 pixels: black, dark, light, white",
        ),
        Case(pixels(3, 5, 4, low=10, high=120), note="a dark picture, without black and without white"),
        Case(pixels(2, 3, 4, 4, seed=1), note="a batch of two pictures"),
    ],
    axes="channel row column",
)


@NORMALIZE.property("black is -1 and white is 1, whatever else is in the picture")
def _(normalize) -> None:
    for value, wanted in ((0, -1.0), (255, 1.0)):
        same = normalize(torch.full((3, 2, 2), value, dtype=torch.uint8))
        expect(
            torch.allclose(same, torch.full((3, 2, 2), wanted), atol=1e-5),
            f"A picture that is {value} everywhere should be {wanted:g} everywhere.",
        )


@NORMALIZE.property("brighter stays brighter")
def _(normalize) -> None:
    ramp = normalize(torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)).flatten()
    expect(bool((ramp.diff() > 0).all()), "Over the 256 brightnesses the result should rise at every step.")


@NORMALIZE.mistake("This is [0, 1]: dark pixels should be negative. The range of SigLIP reaches from -1 to 1.")
def _(pixels):
    return pixels / 255


@NORMALIZE.mistake("The middle is at 0 as it should be, but the range is half as wide: -0.5 to 0.5.")
def _(pixels):
    return pixels / 255 - 0.5


@NORMALIZE.mistake(
    "You subtract from bytes, and a byte has no minus sign: 3 - 128 is 131 in uint8. Make floats before you subtract."
)
def _(pixels):
    return (pixels - 128) / 127.5


@NORMALIZE.mistake("2 * 204 does not fit into a byte: it wraps round to 152. Make floats before you multiply.")
def _(pixels):
    return 2 * pixels / 255 - 1


@NORMALIZE.mistake(
    "You multiply and subtract bytes. 2 * 204 does not fit into one and wraps round to 152, and a byte has no minus "
    "sign either. Make floats first."
)
def _(pixels):
    return (2 * pixels - 255) / 255


@NORMALIZE.mistake("The largest byte is 255, not 256, and half of it is 127.5, not 128: white ends at 0.99 instead of 1.")
def _(pixels):
    return (pixels.float() - 128) / 128


@NORMALIZE.mistake("This is from 0 to 2: the scale is right, and the shift is missing. Black should be -1.")
def _(pixels):
    return pixels / 127.5


@NORMALIZE.mistake(
    "The mean 0.5 and the deviation 0.5 are meant for numbers from 0 to 1. Your bytes were not divided by 255 before."
)
def _(pixels):
    return (pixels.float() - 0.5) / 0.5


@NORMALIZE.mistake("The range is centred and not divided: -127.5 to 127.5. Divide by 127.5 as well.")
def _(pixels):
    return pixels.float() - 127.5


@NORMALIZE.mistake("This is a negative of the picture: black has become 1 and white -1. Turn the subtraction round.")
def _(pixels):
    return 1 - pixels / 127.5


@NORMALIZE.mistake(
    "You round to whole numbers, so that only -1, 0 and 1 are left. What lies between them is the picture: keep floats."
)
def _(pixels):
    return (pixels / 127.5 - 1).round()


@NORMALIZE.mistake(
    "You stretch each picture from its own darkest to its own brightest pixel. Then night and day look alike, and the "
    "same red is another number in each picture. Use the range that a byte can have."
)
def _(pixels):
    x = pixels.float()
    return 2 * (x - x.min()) / (x.max() - x.min()) - 1


@NORMALIZE.mistake(
    "You use the mean and deviation of this one picture. What the model expects is the same for every picture: 0.5 and "
    "0.5."
)
def _(pixels):
    x = pixels / 255
    return (x - x.mean()) / x.std()


@NORMALIZE.mistake(
    "These are ImageNet's means and deviations, one for each colour. Many vision models want them; SigLIP has 0.5 for "
    "all."
)
def _(pixels):
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (pixels / 255 - mean[:, None, None]) / std[:, None, None]
