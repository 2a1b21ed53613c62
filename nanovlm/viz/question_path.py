"""The path of a question through a vision-language model: picture, patches, vectors, image tokens, words, answer."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import pairwise

from PIL import Image

from nanovlm.viz.start_here import printable
from nanovlm.viz.style import Figure, arrow, path, png_bytes, raster, rect, svg_figure, text

MIDDLE = 350


def path_figure(
    image: Image.Image, before: Sequence[str], after: Sequence[str], answer: Sequence[str], grid: int, factor: int
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
    image = image.convert("RGB").resize((side, side))
    strip, found = _strip(before, num_image_tokens, after, 186)
    body = [
        raster(16, top, side, side, png_bytes(image)),
        *_caption(60, top + side, "the picture"),
        arrow(108, middle, 124, middle),
        raster(128, top, side, side, _cut(image, grid)),
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
        arrow(MIDDLE, 216, MIDDLE, 232),
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
    said = " ".join(printable(piece).strip() for piece in answer)
    alt = (
        f"The path of a question: the picture is cut into {num_patches} patches; the vision encoder makes a vector of "
        f"each; the projector makes {num_image_tokens} image tokens of those; they stand among the "
        f"{len(before) + len(after)} other tokens of the prompt; the decoder reads the line and writes the answer, "
        f"token by token: {said}."
    )
    return svg_figure(720, 344, body, alt)


def _cut(image: Image.Image, grid: int) -> bytes:
    """The picture with gaps between its patches, which let the page shine through."""
    side = 4 * image.width
    large = image.resize((side, side), Image.Resampling.BOX)
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
    return 12 + 7.3 * len(printable(piece) or " ")


def _token(x: float, y: float, width: float, piece: str, colour: str) -> list[str]:
    return [
        rect(x, y, width, 26, "soft", colour, rx=4, stroke_width=1.5),
        text(x + width / 2, y + 17, printable(piece) or "␣", 12, anchor="middle", mono=True),
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
