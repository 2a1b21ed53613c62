"""Cards of questions with their answers, and the proof that a model looks."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple
from unicodedata import east_asian_width

from PIL import Image

from nanovlm.viz.style import Figure, circle, line, path, png_bytes, raster, rect, svg_figure, text

WIDTH = 700
PHOTO = 192  # pixels: the longer side of a picture on a card


def answer_card(image: Image.Image, question: str, answer: str, image_size: int, writing: bool = False) -> Figure:
    """A picture, what the model gets of it, what was asked, and what it says.

    Args:
        image_size: pixels along a side of the square that the model's image processor makes of the picture.
        writing: the answer is not finished yet.
    """
    question, answer = printable(question), printable(answer)
    asked = wrapped(question, 15, 300)
    said = wrapped(answer or ("" if writing else "(nothing)"), 20, 270)  # bold letters are wider
    left, top = 384, 34
    body = [
        *_photo(image, 16, 16, PHOTO),
        raster(228, 16, 128, 128, png_bytes(image.convert("RGB").resize((image_size, image_size)))),
        text(228, 162, "what the model gets:", 12, "muted"),
        text(228, 178, f"{image_size} × {image_size} pixels", 12, "muted"),
        text(left, top, "You ask", 12, "muted"),
    ]
    y = top + 4
    for words in asked:
        y += 20
        body.append(text(left, y, words, 15))
    y += 34
    body.append(text(left, y, "The model says", 12, "muted"))
    y += 4
    for i, words in enumerate(said):
        y += 26
        body.append(text(left, y, words + ("▍" if writing and i == len(said) - 1 else ""), 20, font_weight="bold"))
    says = "is saying" if writing else "says"
    alt = f"A picture of {image.width} × {image.height} pixels. Asked “{question}”, the model {says} “{answer}”."
    return svg_figure(WIDTH, max(PHOTO + 32, y + 20), body, alt)


def sample_card(image: Image.Image, turns: Sequence[tuple[str, str]] = (), alt: str = "A picture.") -> Figure:
    """A picture, and beside it the questions that go with it and their true answers. alt: what the picture shows."""
    left, middle, y = PHOTO + 40, PHOTO + 310, 16.0
    body = _photo(image, 16, 16, PHOTO)
    for question, answer in turns:
        columns = (left, "muted", wrapped(question, 13, 260)), (middle, "ink", wrapped(answer, 13, 190))
        for x, colour, lines in columns:
            body += [text(x, y + 14 + 17 * i, words, 13, colour) for i, words in enumerate(lines)]
        y += 17 * max(len(lines) for _, _, lines in columns) + 7
    told = " ".join(printable(part) for turn in turns for part in turn)
    about = f" Questions and answers that go with it: {told}" if told else ""
    return svg_figure(WIDTH if turns else PHOTO + 32, max(PHOTO + 32, y + 9), body, alt + about)


def answers_row(question: str, images: Sequence[Image.Image], answers: Sequence[str], truth: Sequence[str]) -> Figure:
    """The same question about each of a few pictures (at most four): what the model says, and whether it is so."""
    question, side, lines = printable(question), 150, 1
    body, told = [text(16, 32, f"“{question if len(question) < 70 else question[:68] + '…'}”", 15)], []
    for i, (image, answer, right) in enumerate(zip(images, answers, truth, strict=True)):
        answer, right = printable(answer), printable(right)
        x, is_right = 16 + i * (side + 22), answer == right
        body += _photo(image, x, 48, side)
        said = wrapped(answer or "(nothing)", 15, side - 30)[:3]
        lines = max(lines, len(said))
        body += _mark(x + 9, 48 + side + 20, is_right)
        body += [text(x + 24, 48 + side + 25 + 19 * k, words, 15, font_weight="bold") for k, words in enumerate(said)]
        if not is_right:
            body.append(text(x + 24, 48 + side + 25 + 19 * len(said), f"in truth: {right}", 12, "muted"))
        told.append(f"picture {i + 1}: “{answer}”, {'right' if is_right else f'in truth “{right}”'}")
    alt = f"The question “{question}” about {len(told)} pictures. " + "; ".join(told) + "."
    return svg_figure(max(320, 10 + len(told) * (side + 22)), 48 + side + 44 + 19 * lines, body, alt)


class Scored(NamedTuple):
    """Shares of right answers, 0 to 1: with the picture asked about, with another one, and by a blind guesser."""

    kind: str
    right: float
    blind: float
    chance: float


def seeing_bars(groups: dict[str, Sequence[Scored]]) -> Figure:
    """Per kind of question, how often the answer is right: with its own picture, and with another one's."""
    x0, full, pitch = 196, 420, 32
    body = [
        rect(x0, 18, 26, 9, "blue", rx=2),
        text(x0 + 32, 27, "its own picture", 12),
        rect(x0 + 140, 18.5, 26, 8, "none", "orange", rx=2, stroke_width=1.5),
        text(x0 + 172, 27, "another one's picture", 12),
        line(x0 + 316, 15, x0 + 316, 31, "ink", 2),
        text(x0 + 323, 27, "guessing", 12),
    ]
    y = 42.0
    told = []
    for group, rows in groups.items():
        y += 14
        body.append(text(16, y + 10, group, 13, font_weight="bold"))
        for row in rows:
            name = f"{group} {row.kind}"
            told.append(f"{name}: {row.right:.0%} with its own picture, {row.blind:.0%} with another one's")
            body += [
                text(x0 - 12, y + 12, row.kind, 13, anchor="end"),
                rect(x0, y, max(full * row.right, 1), 10, "blue", rx=2),
                rect(x0, y + 12.5, max(full * row.blind, 1), 8, "none", "orange", rx=2, stroke_width=1.5),
                line(x0 + full * row.chance, y - 3, x0 + full * row.chance, y + 24, "ink", 2),
                text(x0 + full + 12, y + 9, f"{row.right:.0%}", 12),
                text(x0 + full + 12, y + 22, f"{row.blind:.0%}", 12, "muted"),
            ]
            y += pitch
    return svg_figure(WIDTH, y + 10, body, "How often the answer is right, per kind of question. " + "; ".join(told))


# -- pieces of the above -----------------------------------------------------------------------------------------------


def printable(words: str) -> str:
    """Without characters that no page can show, which would break the drawing."""
    return "".join(c if c.isprintable() else " " for c in words).strip()


def wrapped(words: str, size: float, width: float) -> list[str]:
    """Lines of about this many pixels, by the letters of a wide font; Chinese letters, say, are wider still."""
    words = printable(words)
    letter = 1.1 if any(c == "\ufffd" or east_asian_width(c) in "WF" for c in words) else 0.6
    return textwrap.wrap(words, max(4, int(width / (letter * size)))) or [""]


def _photo(image: Image.Image, x: float, y: float, side: int) -> list[str]:
    """The whole picture, smooth, in a square of `side` pixels, with a thin frame."""
    scale = side / max(image.size)
    width, height = (max(1, round(scale * s)) for s in image.size)
    # Twice as many pixels as the page has: sharp on fine screens too.
    pixels = png_bytes(image.convert("RGB").resize((min(2 * width, image.width), min(2 * height, image.height))))
    x, y = x + (side - width) / 2, y + (side - height) / 2
    frame = rect(x, y, width, height, "none", "line")
    return [raster(x, y, width, height, pixels).replace("image-rendering:pixelated", ""), frame]


def _mark(x: float, y: float, right: bool) -> list[str]:
    """A tick or a cross: told apart by form, not only by colour."""
    stroke = f"M{x - 4} {y}l3 3l5 -6" if right else f"M{x - 3} {y - 3}l6 6m0 -6l-6 6"
    return [circle(x, y, 9, "green" if right else "red"), path(stroke, stroke="#ffffff", width=2)]
