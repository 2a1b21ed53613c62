"""The pictures of chapter 00: a question with its answer, the path between them, and the proof that a model looks."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from PIL import Image

from nanovlm.viz.style import Figure, arrow, circle, image, line, path, png_bytes, rect, svg_figure, text

WIDTH = 700
PHOTO = 192  # pixels: the longer side of a picture on a card


def answer_card(picture: Image.Image, question: str, answer: str, image_size: int, writing: bool = False) -> Figure:
    """A picture, what the model gets of it, what was asked, and what it says.

    Args:
        image_size: pixels along a side of the square that the model's image processor makes of the picture.
        writing: the answer is not finished yet.
    """
    question, answer = _printable(question), _printable(answer)
    asked = _wrapped(question, 15, 300)
    said = _wrapped(answer or ("" if writing else "(nothing)"), 20, 270)  # bold letters are wider
    left, top = 384, 34
    body = [
        *_photo(picture, 16, 16, PHOTO),
        image(228, 16, 128, 128, png_bytes(picture.convert("RGB").resize((image_size, image_size)))),
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
    alt = f"A picture of {picture.width} × {picture.height} pixels. Asked “{question}”, the model {says} “{answer}”."
    return svg_figure(WIDTH, max(PHOTO + 32, y + 20), body, alt)


def answers_row(question: str, pictures: Sequence[Image.Image], answers: Sequence[str], truth: Sequence[str]) -> Figure:
    """The same question about each of a few pictures (at most four): what the model says, and whether it is so."""
    question, side, lines = _printable(question), 150, 1
    body, told = [text(16, 32, f"“{question if len(question) < 70 else question[:68] + '…'}”", 15)], []
    for i, (picture, answer, right) in enumerate(zip(pictures, answers, truth, strict=True)):
        answer, right = _printable(answer), _printable(right)
        x, is_right = 16 + i * (side + 22), answer == right
        body += _photo(picture, x, 48, side)
        said = _wrapped(answer or "(nothing)", 15, side - 30)[:3]
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
                rect(x0, y, max(full * row.right, 1), 10, "blue", rx=2, title=f"{name}, its own picture"),
                rect(
                    x0,
                    y + 12.5,
                    max(full * row.blind, 1),
                    8,
                    "none",
                    "orange",
                    rx=2,
                    stroke_width=1.5,
                    title=f"{name}, another one's picture",
                ),
                line(x0 + full * row.chance, y - 3, x0 + full * row.chance, y + 24, "ink", 2),
                text(x0 + full + 12, y + 9, f"{row.right:.0%}", 12),
                text(x0 + full + 12, y + 22, f"{row.blind:.0%}", 12, "muted"),
            ]
            y += pitch
    return svg_figure(WIDTH, y + 10, body, "How often the answer is right, per kind of question. " + "; ".join(told))


def path_figure(
    picture: Image.Image, before: Sequence[str], after: Sequence[str], answer: Sequence[str], grid: int, factor: int
) -> Figure:
    """From a picture and a question to an answer, with the numbers of a real model.

    Args:
        before, after: the tokens of the prompt in front of the image tokens, and behind them.
        answer: the tokens that the model wrote.
        grid: patches along a side of the picture. factor: of the pixel shuffle.
    """
    num_patches, num_image_tokens = grid**2, (grid // factor) ** 2
    top, side = 22, 88
    middle = top + side / 2
    picture = picture.convert("RGB").resize((side, side))
    strip, found = _strip(before, num_image_tokens, after, 186)
    body = [
        image(16, top, side, side, png_bytes(picture)),
        *_caption(60, top + side, "the picture"),
        arrow(108, middle, 124, middle),
        image(128, top, side, side, _cut(picture, grid)),
        *_caption(172, top + side, f"{num_patches} patches"),
        arrow(220, middle, 236, middle),
        *_box(240, middle - 32, 116, 64, "sky", "vision encoder", "patches look", "at each other"),
        arrow(360, middle, 376, middle),
        *_cells(380, top, side, grid, "blue"),
        *_caption(424, top + side, f"{num_patches} vectors"),
        arrow(472, middle, 488, middle),
        *_box(492, middle - 32, 124, 64, "yellow", "projector", f"{factor} × {factor} vectors", "become one token"),
        arrow(620, middle, 636, middle),
        *_cells(644, middle - 25, 50, grid // factor, "orange"),
        text(706, top + side + 17, f"{num_image_tokens} image tokens", 12, anchor="end"),
        path(f"M669 {top + side + 24}V160H{found:.0f}V180", stroke="orange", width=1.5),
        path(f"M{found - 4:.0f} 173L{found:.0f} 180L{found + 4:.0f} 173", stroke="orange", width=1.5),
        text(found + 12, 177, "the prompt: words and image tokens in one line", 12, "muted"),
        *strip,
        arrow(WIDTH / 2, 216, WIDTH / 2, 232),
        *_box(16, 236, 688, 44, "sky", "decoder", "reads the line from left to right and says which token comes next"),
        arrow(60, 282, 60, 298),
        text(704, 315, "each new token joins the line,", 12, "muted", "end"),
        text(704, 330, "and the decoder reads on", 12, "muted", "end"),
    ]
    x = 16.0
    for piece in _shortened(answer, 12):
        wide = _token_width(piece)
        if x + wide > 490:
            body.append(text(x + 2, 320, "…", 13))
            break
        body += _token(x, 302, wide, piece, "green")
        x += wide + 4
    said = " ".join(_printable(piece).strip() for piece in answer)
    alt = (
        f"The path of a question: the picture is cut into {num_patches} patches; the vision encoder makes a vector of "
        f"each; the projector makes {num_image_tokens} image tokens of those; they stand among the "
        f"{len(before) + len(after)} other tokens of the prompt; the decoder reads the line and writes the answer, "
        f"token by token: {said}."
    )
    return svg_figure(720, 344, body, alt)


# -- pieces of the above -----------------------------------------------------------------------------------------------


def _printable(words: str) -> str:
    """Without characters that no page can show, which would break the drawing."""
    return "".join(c if c.isprintable() else " " for c in words).strip()


def _wrapped(words: str, size: float, width: float) -> list[str]:
    """Lines of about this many pixels, by the letters of a wide font."""
    return textwrap.wrap(words, max(4, int(width / (0.6 * size)))) or [""]


def _photo(picture: Image.Image, x: float, y: float, side: int) -> list[str]:
    """The whole picture, smooth, in a square of `side` pixels, with a thin frame."""
    scale = side / max(picture.size)
    width, height = (max(1, round(scale * s)) for s in picture.size)
    # Twice as many pixels as the page has: sharp on fine screens too.
    pixels = png_bytes(picture.convert("RGB").resize((min(2 * width, picture.width), min(2 * height, picture.height))))
    x, y = x + (side - width) / 2, y + (side - height) / 2
    frame = rect(x, y, width, height, "none", "line")
    return [image(x, y, width, height, pixels).replace("image-rendering:pixelated", ""), frame]


def _mark(x: float, y: float, right: bool) -> list[str]:
    """A tick or a cross: told apart by form, not only by colour."""
    stroke = f"M{x - 4} {y}l3 3l5 -6" if right else f"M{x - 3} {y - 3}l6 6m0 -6l-6 6"
    return [circle(x, y, 9, "green" if right else "red"), path(stroke, stroke="#ffffff", width=2)]


def _cut(picture: Image.Image, grid: int) -> bytes:
    """The picture with gaps between its patches, which let the page shine through."""
    side = 4 * picture.width
    large = picture.resize((side, side), Image.Resampling.BOX)
    out = Image.new("RGBA", (side, side))
    edges = [round(i * side / grid) for i in range(grid + 1)]
    gap = max(1, side // grid // 14)
    for top, bottom in pairwise(edges):
        for left, right in pairwise(edges):
            box = (left + gap, top + gap, right - gap, bottom - gap)
            out.paste(large.crop(box), box[:2])
    buffer = io.BytesIO()
    out.quantize(64).save(buffer, "PNG")
    return buffer.getvalue()


def _cells(x: float, y: float, side: float, grid: int, colour: str) -> list[str]:
    pitch = side / grid
    gap = min(2.0, pitch / 4)
    return [
        rect(x + column * pitch + gap / 2, y + row * pitch + gap / 2, pitch - gap, pitch - gap, colour, rx=1)
        for row in range(grid)
        for column in range(grid)
    ]


def _caption(middle: float, bottom: float, words: str) -> list[str]:
    return [text(middle, bottom + 17, words, 12, anchor="middle")]


def _box(x: float, y: float, width: float, height: float, colour: str, name: str, *about: str) -> list[str]:
    """A part of the model: a frame in its colour, its name, and what it does."""
    first = y + (height - 15 * len(about)) / 2 + 4
    return [
        rect(x, y, width, height, "soft", colour, rx=8, stroke_width=2),
        text(x + width / 2, first, name, 13, anchor="middle", font_weight="bold"),
        *(text(x + width / 2, first + 15 * (i + 1), words, 11, "muted", "middle") for i, words in enumerate(about)),
    ]


def _token_width(piece: str) -> float:
    return 12 + 7.3 * len(_printable(piece) or " ")


def _token(x: float, y: float, width: float, piece: str, colour: str) -> list[str]:
    return [
        rect(x, y, width, 26, "soft", colour, rx=4, stroke_width=1.5),
        text(x + width / 2, y + 17, _printable(piece) or "␣", 12, anchor="middle", mono=True),
    ]


def _shortened(pieces: Sequence[str], limit: int) -> list[str]:
    """The first and the last of many pieces, each of at most 14 letters."""
    cut = [piece if len(piece) <= 14 else piece[:13] + "…" for piece in pieces]
    return cut if len(cut) <= limit else [*cut[: limit // 2], "…", *cut[-(limit - limit // 2 - 1) :]]


def _strip(before: Sequence[str], num_image_tokens: int, after: Sequence[str], y: float) -> tuple[list[str], float]:
    """The prompt as a row of boxes, and the x of the middle of its image tokens."""
    limit = 12
    while True:  # fewer words, until the row fits the page
        words = [*_shortened(before, 3), None, *_shortened(after, limit)]
        taken = sum(_token_width(piece) + 4 for piece in words if piece is not None)
        room = 688 - taken
        if room >= 100 or limit <= 3:
            break
        limit -= 1
    pitch = max(1.0, min(11.0, room / num_image_tokens))
    body, x, middle = [], 16.0, 0.0
    for piece in words:
        if piece is None:
            middle = x + pitch * num_image_tokens / 2
            gap = min(2.0, pitch / 4)
            body += [
                rect(x + i * pitch, y, pitch - gap, 26, "orange", rx=1, title=f"image token {i}")
                for i in range(num_image_tokens)
            ]
            x += pitch * num_image_tokens + 4
        else:
            wide = _token_width(piece)
            body += _token(x, y, wide, piece, "grey")
            x += wide + 4
    return body, middle
