"""Chapter 01: pixels, their range, and patches cut out of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nanovlm.course.exercises.common import noise
from nanovlm.course.judge.exercise import Case, Exercise, expect


def numbered(*shape: int) -> Tensor:
    """Pixels that hold their own number: 0 1 2 3 … in reading order."""
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)


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
    why="A model's weights belong to the range of numbers that it was trained on. Feed it another one and nothing "
    "raises: it answers, only worse.",
    hints=(
        "Where must 0 go, and where 255? Two points make a straight line: one factor and one shift.",
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


@NORMALIZE.mistake("128 is not half of 255: white ends at 0.99 instead of 1. Half of 255 is 127.5.")
def _(pixels):
    return (pixels.float() - 128) / 128


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


# -- patches.patchify --------------------------------------------------------------------------------------------------


def cut(images: Tensor, patch_size: int) -> Tensor:
    return F.unfold(images, patch_size, stride=patch_size).transpose(1, 2)


PATCHIFY = Exercise(
    id="patches.patchify",
    chapter="01",
    title="Cut a picture into patches",
    difficulty=2,
    minutes=12,
    why="It makes a line of vectors out of a picture, which is all that a transformer can read. A plain reshape gives "
    "the right shape too, and strips of pixels that belong together nowhere.",
    hints=(
        "A patch is p rows of p pixels, in each of three channels. In memory its rows do not stand next to each other: "
        "between two of them lies the rest of the picture's row.",
        "Unfold each side in two: the rows into (row of patches, row inside the patch), the columns likewise. Bring "
        "the two that count patches to the front, then merge: two axes into the patches, three into the vector.",
        "x = images.reshape(batch, channels, height // p, p, width // p, p)\n"
        "x = permute it to [batch, patch row, patch column, channel, row inside, column inside]\n"
        "return x.reshape(batch, number of patches, channels * p * p)",
    ),
    reference=cut,
    cases=lambda: [
        Case(numbered(1, 1, 4, 4), 2, note="one grey picture of 4x4 pixels that hold their own number, patches of 2"),
        Case(noise(2, 3, 6, 6), 3, note="two colour pictures of 6x6 pixels, patches of 3"),
        Case(noise(1, 3, 4, 8), 2, note="a picture that is wider than high"),
        Case(noise(1, 2, 3, 3), 1, note="patches of one pixel"),
    ],
    axes="batch patches numbers",
)


@PATCHIFY.property("every number of the picture is kept")
def _(patchify) -> None:
    x = noise(2, 3, 8, 8)
    same = torch.equal(patchify(x.clone(), 4).flatten().sort().values, x.flatten().sort().values)
    expect(same, "Some numbers of the picture are missing, or appear twice. Only their places may change.")


@PATCHIFY.property("a patch is a square of the picture")
def _(patchify) -> None:
    x = noise(1, 3, 8, 8)
    expect(
        torch.equal(patchify(x.clone(), 4)[0, 1], x[0, :, 0:4, 4:8].flatten()),
        "Patch 1 of an 8x8 picture should be the square at the top right: x[:, 0:4, 4:8], flattened.",
    )


@PATCHIFY.mistake(
    "The shape is right and the patches are wrong: a plain reshape takes numbers as they lie in memory, long strips of "
    "one channel, instead of squares of three."
)
def _(images, patch_size):
    return images.reshape(images.shape[0], -1, images.shape[1] * patch_size**2)


@PATCHIFY.mistake(
    "The right squares, but each is laid out colour last: red, green, blue of the first pixel, then of the second. A "
    "convolution's weight goes channel by channel, and so does this exercise."
)
def _(images, patch_size):
    x = cut(images, patch_size).unflatten(2, (images.shape[1], patch_size**2))
    return x.transpose(2, 3).flatten(2)


@PATCHIFY.mistake("The right patches, but they come column by column. Patches are in reading order: along the rows.")
def _(images, patch_size):
    _, _, height, width = images.shape
    x = cut(images, patch_size).unflatten(1, (height // patch_size, width // patch_size))
    return x.transpose(1, 2).flatten(1, 2)


@PATCHIFY.mistake("The right patches, but inside each of them you go down the columns first. Go along the rows.")
def _(images, patch_size):
    x = cut(images, patch_size).unflatten(2, (images.shape[1], patch_size, patch_size))
    return x.transpose(3, 4).flatten(2)


@PATCHIFY.mistake(
    "These are pixels from all over the picture, every so many apart. In the unfolded axes the *first* of each pair "
    "counts patches and the *second* counts pixels inside."
)
def _(images, patch_size):
    batch, channels, height, width = images.shape
    x = images.reshape(batch, channels, patch_size, height // patch_size, patch_size, width // patch_size)
    return x.permute(0, 3, 5, 1, 2, 4).reshape(batch, -1, channels * patch_size**2)
