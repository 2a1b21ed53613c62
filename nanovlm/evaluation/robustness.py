"""Pictures and questions that differ a little from those of training: what survives is understood."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from PIL import Image, ImageEnhance, ImageFilter

from nanovlm.evaluation.scores import Question

Change = Callable[[Question], Question]


def turned(image: Image.Image, degrees: float) -> Image.Image:
    """Rotated counter-clockwise about the middle; the corners are filled with the colour of the first pixel."""
    return image.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=image.getpixel((0, 0)))


def smaller(image: Image.Image, share: float) -> Image.Image:
    """The same scene on the same canvas, drawn at this share of its size."""
    canvas = Image.new("RGB", image.size, image.getpixel((0, 0)))
    size = tuple(max(1, round(side * share)) for side in image.size)
    canvas.paste(image.resize(size), tuple((a - b) // 2 for a, b in zip(image.size, size, strict=True)))
    return canvas


def _images(change: Callable[[Image.Image], Image.Image]) -> Change:
    return lambda question: replace(question, images=[change(image) for image in question.images])


def _words(change: Callable[[str], str]) -> Change:
    return lambda question: replace(question, text=change(question.text))


CHANGES: dict[str, Change] = {
    "as drawn": _images(lambda p: p),
    "turned by 5°": _images(lambda p: turned(p, 5)),
    "turned by 10°": _images(lambda p: turned(p, 10)),
    "turned by 15°": _images(lambda p: turned(p, 15)),
    "three quarters of the size": _images(lambda p: smaller(p, 0.75)),
    "darker": _images(lambda p: ImageEnhance.Brightness(p).enhance(0.6)),
    "blurred": _images(lambda p: p.filter(ImageFilter.GaussianBlur(2))),
    "grey": _images(lambda p: p.convert("L").convert("RGB")),
    "“colur” for “colour”": _words(lambda text: text.replace("colour", "colur")),
    "without a capital": _words(lambda text: text[:1].lower() + text[1:]),
}


def changed(questions: Sequence[Question], name: str) -> list[Question]:
    """The same questions after one of CHANGES."""
    if name not in CHANGES:
        raise ValueError(f"There is no change {name!r}; choose from {', '.join(CHANGES)}.")
    return [CHANGES[name](question) for question in questions]
