"""Chapter 07: any picture file to the RGB that a person would see, and pictures to one side of a split."""

from __future__ import annotations

import builtins
import io
import random
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from nanovlm.course.judge.exercise import Case, Exercise, expect
from nanovlm.data.images import open_image
from nanovlm.data.splits import split_by_image

# -- data.open_image -------------------------------------------------------------------------------------------------


def png(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def _plain() -> Image.Image:
    """Six pixels, no two alike: three wide, two high."""
    values = [[(200, 30, 40), (20, 150, 60), (40, 60, 190)], [(240, 220, 60), (120, 60, 150), (10, 10, 10)]]
    return Image.fromarray(np.array(values, dtype=np.uint8))


def _turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return png(_plain(), exif=exif)


def _with_alpha() -> bytes:
    """The upper row visible; below, whatever a drawing program left there: invisible, or half."""
    image = _plain().convert("RGBA")
    for x, (colour, alpha) in enumerate((((0, 0, 0), 0), ((255, 0, 0), 0), ((0, 0, 0), 128))):
        image.putpixel((x, 1), (*colour, alpha))
    return png(image)


def _palette() -> bytes:
    image = _plain().quantize(8)
    return png(image, transparency=image.getpixel((1, 0)))


def _deep_grey() -> bytes:
    return png(Image.fromarray(np.array([[0, 300, 9000], [30000, 52000, 65535]], dtype=np.uint16)))


def _cmyk() -> bytes:
    buffer = io.BytesIO()
    _plain().convert("CMYK").save(buffer, "TIFF")
    return buffer.getvalue()


def pixels_of(open_image: Callable[[bytes], Image.Image], content: bytes) -> Tensor:
    """[height, width, 3], 0 to 1"""
    image = open_image(content)
    expect(isinstance(image, Image.Image), f"It should return a PIL picture; it returned {type(image).__name__}.")
    expect(image.mode == "RGB", f'The picture that it returned has mode {image.mode!r}; the model takes "RGB" alone.')
    return torch.from_numpy(np.array(image)).float() / 255


OPEN_IMAGE = Exercise(
    id="data.open_image",
    chapter="07",
    title="Any file, as a person would see it",
    difficulty=2,
    minutes=15,
    why="A picture that is opened wrongly raises nothing. It only teaches the model a world that lies on its side, or "
    "in which every logo stands on black.",
    hints=(
        "Four things to do, in order: open and decode, turn upright, deal with what has more than 8 bits or is "
        "transparent, convert to RGB. And around the first of them, a try.",
        "PIL.ImageOps.exif_transpose turns a picture upright. Transparency is in the mode (RGBA, LA) or in "
        'image.info["transparency"]: go to RGBA, then lay it over white with Image.alpha_composite. A mode that starts '
        'with "I;16" holds 0..65535: divide by 257 in numpy. image.load() is what notices a truncated file.',
        "try:\n"
        "    image = Image.open(io.BytesIO(content))\n"
        "    image.load()\n"
        "except Exception as error:\n"
        "    raise ValueError(one sentence) from error\n"
        "image = ImageOps.exif_transpose(image)\n"
        'if image.mode.startswith("I;16"): image = Image.fromarray of its array, scaled to 0..255, as uint8\n'
        'if image.mode in ("RGBA", "LA") or "transparency" in image.info:\n'
        '    image = image.convert("RGBA")\n'
        "    image = …                      # over white\n"
        'return image.convert("RGB")',
    ),
    reference=open_image,
    cases=lambda: [
        Case(_turned(6), note="a PNG of 3 x 2 pixels whose EXIF block says: turn me a quarter to the right"),
        Case(png(_plain()), note="a plain PNG of 3 x 2 pixels"),
        Case(_with_alpha(), note="transparent pixels in the lower row, the last one half transparent"),
        Case(_palette(), note="a palette with one transparent colour"),
        Case(_deep_grey(), note="16-bit grey, from 0 to 65535"),
        Case(_cmyk(), note="four channels of ink"),
        Case(_turned(3), note="a picture that stands on its head"),
    ],
    axes="height width channel",
    call=pixels_of,
    tolerance=0.01,  # 257 or 256, rounded or cut: two levels of 255
)


def _refused(open_image, content: bytes, what: str) -> None:
    try:
        image = open_image(content)
    except ValueError:
        return
    except Exception as error:
        expect(
            False,
            f"{what} raises {type(error).__name__}. Whoever reads a million files catches one kind of error: catch it "
            "round open and load, and raise ValueError with a sentence.",
        )
    black = isinstance(image, Image.Image) and not np.asarray(image.convert("RGB")).any()
    what_came = "a black picture" if black else "a picture"
    expect(
        False,
        f"{what} gave {what_came}. A picture in its place teaches answers to what cannot be seen: raise ValueError, so "
        "that the sample is skipped and counted.",
    )


@OPEN_IMAGE.property("a truncated file raises ValueError")
def _(fn) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    content = png(Image.fromarray(noise))
    _refused(fn, content[: len(content) // 2], "A file that is cut in half")


@OPEN_IMAGE.property("what is no picture raises ValueError")
def _(fn) -> None:
    _refused(fn, b"<!DOCTYPE html><title>404</title>", "A web page")
    _refused(fn, b"", "An empty file")


def _opened(content: bytes, turn=None, alpha="white", deep="scale", convert=True) -> Image.Image:
    """open_image to build wrong versions from."""
    image = Image.open(io.BytesIO(content))
    orientation = image.getexif().get(ExifTags.Base.Orientation)
    turns = {6: Image.Transpose.ROTATE_270, 3: Image.Transpose.ROTATE_180} if turn is None else turn
    if deep == "scale" and image.mode.startswith("I;16"):
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    if alpha and (image.mode in ("RGBA", "LA") or "transparency" in image.info):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, alpha), image)
    if convert:
        image = image.convert("RGB")
    return image.transpose(turns[orientation]) if orientation in turns else image


@OPEN_IMAGE.mistake(
    "The EXIF orientation is not applied: pictures from telephones lie on their side. ImageOps.exif_transpose turns "
    "them, before convert, which forgets where the picture came from."
)
def _(content):
    return _opened(content, turn={})


@OPEN_IMAGE.mistake(
    "Transparent pixels show the colour that is hidden under them, most often black: convert('RGB') drops the alpha "
    "channel. Lay the picture over white first."
)
def _(content):
    return _opened(content, alpha=None)


@OPEN_IMAGE.mistake("The picture is laid over black. Paper, and the pages that most pictures come from, are white.")
def _(content):
    return _opened(content, alpha="black")


@OPEN_IMAGE.mistake(
    "16-bit grey is clipped: everything above 255 of 65535 has become white. Divide by 257 before you convert."
)
def _(content):
    return _opened(content, deep="clip")


@OPEN_IMAGE.mistake(
    "You open and convert to RGB, and nothing else: pictures from telephones lie on their side, transparent pixels show "
    "hidden colours, and 16-bit grey is clipped."
)
def _(content):
    return Image.open(io.BytesIO(content)).convert("RGB")


@OPEN_IMAGE.mistake(
    "The picture comes back as it was opened, in whatever mode: convert it to RGB, with all that needs."
)
def _(content):
    return Image.open(io.BytesIO(content))


@OPEN_IMAGE.mistake(
    "The picture is turned the wrong way. Orientation 6 means a quarter to the *right*; PIL's rotate counts the other "
    "way round. ImageOps.exif_transpose knows."
)
def _(content):
    return _opened(content, turn={6: Image.Transpose.ROTATE_90, 3: Image.Transpose.ROTATE_180})


@OPEN_IMAGE.mistake("Only orientation 6 is handled. There are eight; ImageOps.exif_transpose knows all of them.")
def _(content):
    return _opened(content, turn={6: Image.Transpose.ROTATE_270})


@OPEN_IMAGE.mistake(
    "A palette's transparent colour is not seen: such a picture has mode P, and says in image.info['transparency'] "
    "which colour it is."
)
def _(content):
    image = Image.open(io.BytesIO(content))
    return _opened(content, alpha=None if image.mode == "P" else "white")


@OPEN_IMAGE.mistake(
    "16-bit grey is stretched from its own darkest to its own lightest value… or cut to its lower byte. Its white is "
    "65535: divide by 257."
)
def _(content):
    image = Image.open(io.BytesIO(content))
    if image.mode.startswith("I;16"):
        return Image.fromarray(np.asarray(image).astype(np.uint8)).convert("RGB")
    return _opened(content)


# -- data.split_by_image ---------------------------------------------------------------------------------------------

FACTS = (
    "each sample on one side",
    "equal pictures on one side",
    "about the share asked for",
    "the same again",
    "the same in another process",
    "no one moves when others come",
    "another seed deals anew",
)
Split = Callable[[Sequence[bytes], float, int], tuple[Sequence[int], Sequence[int]]]


def facts_of(split: Split, images: list[bytes], val_share: float, seed: int) -> dict[str, bool]:
    """What holds of a split, whatever rule made it."""

    def val(given: list[bytes], with_seed: int = seed) -> list[int]:
        out = split(list(given), val_share, with_seed)
        expect(isinstance(out, (tuple, list)) and len(out) == 2, "It should return two lists: training, validation.")
        return sorted(int(i) for i in out[1])

    out = split(list(images), val_share, seed)
    expect(
        isinstance(out, (tuple, list)) and len(out) == 2 and all(hasattr(side, "__iter__") for side in out),
        "It should return two lists of indices: training, then validation.",
    )
    train, held_out = ([int(i) for i in side] for side in out)
    expect(
        all(0 <= i < len(images) for i in train + held_out),
        "It should return indices into the list; there is one that the list does not have.",
    )
    share = len(held_out) / len(images)
    original = builtins.hash  # salted anew in each process: here, a second process
    with mock.patch.object(builtins, "hash", lambda thing: original(("another process", thing))):
        elsewhere = val(images)
    newcomers = [b"new %d" % i for i in range(len(images) // 2)]
    facts = (
        sorted(train + held_out) == list(range(len(images))),
        not {images[i] for i in train} & {images[i] for i in held_out},
        abs(share - val_share) < 0.12,
        val(images) == sorted(held_out),
        elsewhere == sorted(held_out),
        [i for i in val(images + newcomers) if i < len(images)] == sorted(held_out),
        val(images, seed + 1) != sorted(held_out),
    )
    return dict(zip(FACTS, facts, strict=True))


def _images(count: int, turns: int) -> list[bytes]:
    """`count` samples; each picture comes `turns` times, spread over the list."""
    return [b"picture %d" % (i % (count // turns)) for i in range(count)]


SPLIT = Exercise(
    id="data.split_by_image",
    chapter="07",
    title="No picture on both sides",
    difficulty=2,
    minutes=12,
    why="With one picture in training and in validation, the model can remember instead of see, and the score goes up "
    "for the wrong reason. Nothing else about the run will tell you.",
    hints=(
        "Let the content of the picture alone decide, as a coin would that always falls the same way for one picture.",
        "Take a hash of the bytes and the seed that is the same in every process: hashlib, not hash(). Read it as a "
        "number between 0 and 1, and compare that with val_share.",
        'digest = hashlib.blake2b(f"{seed}:".encode() + picture, digest_size=8).digest()\n'
        'number = int.from_bytes(digest, "big") / 2**64        # 0 to 1\n'
        "the sample is for validation if …",
    ),
    reference=split_by_image,
    cases=lambda: [
        Case(_images(1200, 4), 0.3, 7, note="1,200 samples about 300 pictures; 30 % for validation"),
        Case(_images(400, 1), 0.2, 0, note="400 samples, 400 pictures; 20 % for validation"),
    ],
    call=facts_of,
)


def _dealt(images: Sequence[bytes], number: Callable[[int, bytes], float], val_share: float):
    val = [i for i, image in enumerate(images) if number(i, image) < val_share]
    return [i for i in range(len(images)) if i not in set(val)], val


@SPLIT.mistake(
    "The samples are shuffled and cut, so a picture with several questions lands on both sides. Let the picture decide, "
    "not its place in the list."
)
def _(images, val_share, seed):
    order = list(range(len(images)))
    random.Random(seed).shuffle(order)
    cut = round(val_share * len(order))
    return sorted(order[cut:]), sorted(order[:cut])


@SPLIT.mistake(
    "Every sample throws a coin of its own, so a picture with several questions lands on both sides. Let the picture "
    "decide, not its place in the list."
)
def _(images, val_share, seed):
    rng = random.Random(seed)
    return _dealt(images, lambda i, p: rng.random(), val_share)


@SPLIT.mistake(
    "The pictures are shuffled as a list and cut. Equal ones stay together, but a picture's side depends on which "
    "others are there: add some, and what was held out is trained on. Decide for each picture alone, by a hash."
)
def _(images, val_share, seed):
    unique = sorted(set(images))
    random.Random(seed).shuffle(unique)
    held_out = set(unique[: round(val_share * len(unique))])
    return _dealt(images, lambda i, p: -1.0 if p in held_out else 2.0, val_share)


@SPLIT.mistake(
    "The built-in hash() of bytes is salted anew in every process, so that after a restart other pictures are held "
    "out. hashlib gives the same everywhere."
)
def _(images, val_share, seed):
    return _dealt(images, lambda i, p: (hash((seed, p)) % 10_007) / 10_007, val_share)


@SPLIT.mistake(
    "The seed does not reach the hash: there is only one way to deal. Hash the seed together with the picture."
)
def _(images, val_share, seed):
    return split_by_image(images, val_share, 0)


@SPLIT.mistake("The two sides are swapped: training comes first, and val_share is the share of the second.")
def _(images, val_share, seed):
    return split_by_image(images, val_share, seed)[::-1]


@SPLIT.mistake(
    "Equal pictures are taken once and their other samples are lost. They are other questions about the picture: keep "
    "them, on the same side."
)
def _(images, val_share, seed):
    first = {image: i for i, image in reversed(list(enumerate(images)))}
    return tuple([i for i in side if first[images[i]] == i] for side in split_by_image(images, val_share, seed))


@SPLIT.mistake(
    "The order of the list decides: its end is held out. Data are often sorted by source, and the seed does nothing."
)
def _(images, val_share, seed):
    cut = round((1 - val_share) * len(images))
    return list(range(cut)), list(range(cut, len(images)))


@SPLIT.mistake(
    "The random numbers are not seeded, so that each call deals anew and a resumed run trains on what it was tested "
    "with."
)
def _(images, val_share, seed):
    coins = {image: random.random() for image in sorted(set(images))}
    return _dealt(images, lambda i, p: coins[p], val_share)
