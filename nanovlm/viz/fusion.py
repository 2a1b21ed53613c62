"""Pictures among words: the decoder's sequence, what an answer owes to the picture, and scores by kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from nanovlm.viz.decoder import mask_figure
from nanovlm.viz.start_here import printable
from nanovlm.viz.style import Figure, circle, heat, ink_on, line, path, png_bytes, raster, rect, svg_figure, text

WIDTH = 700
IMAGES = ("orange", "sky", "green", "pink")  # whose image token it is; its letter says it too


class Piece(NamedTuple):
    """One position of a sequence. owner: the number of the picture whose image token it is, or "word", "placeholder"
    (its picture has not come yet) or "padding"."""

    label: str
    owner: int | str


def image_pieces(image: int, count: int) -> list[Piece]:
    """The image tokens of one picture: a0 a1 a2 …, of the next one b0 b1 b2 …"""
    return [Piece(f"{'abcd'[image % 4]}{i}", image) for i in range(count)]


def lines_figure(lines: Sequence[tuple[str, Sequence[Piece]]]) -> Figure:
    """Sequences of tokens, each below its heading: words, image tokens by picture, placeholders, padding."""
    body, told, y = [], [], 12.0
    for heading, pieces in lines:
        y += 18
        body.append(text(16, y, heading, 13, "muted"))
        x, y = 16.0, y + 8
        for piece in pieces:
            wide = _width(piece)
            if x + wide > WIDTH - 16:
                x, y = 16.0, y + 32
            body += _piece(x, y, wide, piece)
            x += wide + 3
        y += 36
        told.append(f"{heading}: {' '.join(printable(piece.label) or '·' for piece in pieces) or '(nothing)'}")
    kinds = {piece.owner if isinstance(piece.owner, str) else "picture" for _, pieces in lines for piece in pieces}
    legend = {"word": "a word", "picture": "an image token", "placeholder": "a placeholder", "padding": "padding"}
    x, y = 16.0, y + 12
    for kind in (k for k in legend if k in kinds):
        owner: int | str = 0 if kind == "picture" else kind
        body += _piece(x, y, 26, Piece({"word": "w", "picture": "a0", "placeholder": "", "padding": ""}[kind], owner))
        body.append(text(x + 34, y + 17, legend[kind], 13, "muted"))
        x += 150
    alt = "Sequences of tokens; a0, a1 … are the image tokens of picture a. " + ". ".join(told) + "."
    return svg_figure(WIDTH, y + 40, body, alt)


def pieces(row: str) -> list[Piece]:
    """Words, and among them "a0" (an image token of picture a), "_" (a placeholder) and "-" (padding)."""
    kinds: dict[str, Piece] = {"_": Piece("", "placeholder"), "-": Piece("", "padding")}
    kinds |= {piece.label: piece for image in range(4) for piece in image_pieces(image, 10)}
    return [kinds.get(word, Piece(word, "word")) for word in row.split()]


def joined_figure(way: str, images: int) -> Figure:
    """The text and the sequence that it becomes, with four image tokens a picture. way: where these come."""
    tokens, question = [piece for i in range(images) for piece in image_pieces(i, 4)], pieces("Where is the red star ?")
    user, places = pieces("user"), pieces("_ " * 4 * images)
    if way == "in front":
        return lines_figure([("the text", user + question), ("the sequence", tokens + user + question)])
    return lines_figure([("the text", user + places + question), ("the sequence", user + tokens + question)])


PREFIXES = {"causal": 0, "the picture is a prefix": 3, "picture and question are a prefix": 5}


def prefix_figure(prefix: str) -> Figure:
    """Which of three image tokens, two of a question and two of an answer attend to which. prefix: one of PREFIXES."""
    length, kinds = PREFIXES[prefix], ["picture"] * 3 + ["question"] * 2 + ["answer"] * 2
    sees = [[key <= query or max(key, query) < length for key in range(7)] for query in range(7)]
    return mask_figure([f"{kind} {i}" for i, kind in enumerate(kinds)], list(range(7)), [True] * 7, sees)


class Chance(NamedTuple):
    """The probability of one answer, now and with the right picture, 0 to 1."""

    answer: str
    now: float
    own: float


def ablation_figure(
    shown: Image.Image, what: str, question: str, chances: Sequence[Chance], truth: str, moved: float
) -> Figure:
    """A question, what the decoder gets for a picture, and what it holds of each answer, beside what it held when it
    saw the right picture.

    Args:
        shown: what it gets; what: that in words. truth: the answer in the right picture.
        moved: the share of the probability that moved, 0 to 1.
    """
    left, top, side, x0, full = 16, 54, 160, 340, 250
    said = max(chances, key=lambda chance: chance.now).answer
    body = [
        text(16, 32, f"“{printable(question)}”", 16, font_weight="bold"),
        text(x0 + full + 14, 57, "probability", 13, "muted"),
        raster(left, top, side, side, png_bytes(shown.convert("RGB"))),
        rect(left, top, side, side, "none", "line"),
        text(left, top + side + 20, what, 13),
        rect(x0, 48, 22, 9, "blue", rx=2),
        text(x0 + 28, 57, "now", 13),
        line(x0 + 80, 45, x0 + 80, 60, "ink", 2),
        text(x0 + 88, 57, "with its own picture", 13),
    ]
    y = 74.0
    for chance in chances:
        mark = "✓ " if chance.answer == truth else ""
        body += [
            text(x0 - 10, y + 12, mark + chance.answer, 13, anchor="end"),
            rect(x0, y, max(full * chance.now, 1), 16, "blue", rx=2),
            line(x0 + full * chance.own, y - 3, x0 + full * chance.own, y + 19, "ink", 2),
            text(x0 + full + 14, y + 13, f"{chance.now:.0%}", 13),
        ]
        y += 26
    y += 22
    verdict = f"Likeliest: “{said}”, which is right." if said == truth else f"Likeliest: “{said}”, not “{truth}”."
    body += [
        *_mark(x0 + 7, y - 5, said == truth),
        text(x0 + 24, y, verdict, 13),
        text(x0 + 24, y + 19, f"{moved:.0%} of the first word's probability moved.", 13, "muted"),
    ]
    held = ", ".join(f"{c.answer} {c.now:.0%} (with its own picture {c.own:.0%})" for c in chances)
    alt = (
        f"“{printable(question)}” asked with {what}. The model holds: {held}. {verdict} "
        f"{moved:.0%} of the probability moved."
    )
    return svg_figure(WIDTH, max(y + 34, top + side + 36), body, alt)


def score_table(rows: Mapping[str, Mapping[str, float]], guessing: Mapping[str, float] | None = None) -> Figure:
    """Shares of right answers, one line for each model or picture, one column for each kind of question, and the mean.

    guessing: what one reaches who sees nothing, by kind: the last line.
    """
    kinds = list(dict.fromkeys(kind for scores in rows.values() for kind in scores))
    lines = {**rows, **({"by guessing": guessing} if guessing else {})}
    x0, pitch = 216.0, min(66.0, 462.0 / (len(kinds) + 1))
    body = [text(16, 30, "right answers to", 13, "muted")] + [
        text(x0 + i * pitch + pitch / 2, 30, kind, 13, "muted", "middle") for i, kind in enumerate([*kinds, "mean"])
    ]
    y, told = 42.0, []
    for name, scores in lines.items():
        guess = name not in rows
        mean = sum(scores[kind] for kind in kinds if kind in scores) / max(len(scores), 1)
        body.append(text(16, y + 19, name, 13, "muted" if guess else "ink"))
        for i, share in enumerate([*(scores.get(kind) for kind in kinds), mean]):
            x = x0 + i * pitch + (5 if i == len(kinds) else 0)
            if share is None:
                continue
            fill = "none" if guess else heat(share)
            body += [
                rect(x + 1, y, pitch - 2, 28, fill, "line" if guess else None, rx=3),
                text(
                    x + pitch / 2,
                    y + 19,
                    f"{share:.0%}",
                    13,
                    "muted" if guess else ink_on(fill),
                    "middle",
                    font_weight="bold" if i == len(kinds) else "normal",
                ),
            ]
        told.append(f"{name}: {', '.join(f'{k} {s:.0%}' for k, s in scores.items())}, mean {mean:.0%}")
        y += 32
    return svg_figure(WIDTH, y + 12, body, "Shares of right answers by kind of question. " + "; ".join(told) + ".")


def groups_shuffled(image: Image.Image, shuffled: Callable[[Tensor], Tensor], side: int = 4) -> Image.Image:
    """For a reader: the picture's side x side groups of patches in the order in which `shuffled` puts image tokens
    [1, side * side, dim]."""
    size = 64 // side
    pixels = torch.frombuffer(bytearray(image.resize((64, 64)).tobytes()), dtype=torch.uint8)
    groups = pixels.reshape(side, size, side, size, 3).transpose(1, 2).reshape(1, side * side, size, size, 3)
    pixels = shuffled(groups).reshape(side, side, size, size, 3).transpose(1, 2).reshape(64, 64, 3)
    return Image.fromarray(pixels.numpy())


# -- pieces of the above -----------------------------------------------------------------------------------------------


def _width(piece: Piece) -> float:
    if piece.owner == "word":
        return 14 + 7.9 * len(printable(piece.label))
    return 26 if len(piece.label) < 4 else 32


def _piece(x: float, y: float, width: float, piece: Piece) -> list[str]:
    label = printable(piece.label)
    if isinstance(piece.owner, int):
        colour = IMAGES[piece.owner % len(IMAGES)]
        return [
            rect(x, y, width, 26, colour, rx=4),
            text(x + width / 2, y + 17, label, 13, ink_on(colour), "middle", mono=True),
        ]
    dashes = {"placeholder": "2 3", "padding": "5 3"}.get(piece.owner)
    frame = rect(
        x,
        y,
        width,
        26,
        "none" if dashes else "soft",
        "muted",
        rx=4,
        stroke_dasharray=dashes or "none",
        stroke_width=1.2,
    )
    marks = [path(f"M{x + 7} {y + 19}L{x + width - 7} {y + 7}", stroke="muted")] if piece.owner == "padding" else []
    return [frame, *marks, text(x + width / 2, y + 17, label, 13, "ink", "middle", mono=True)]


def _mark(x: float, y: float, right: bool) -> list[str]:
    """A tick or a cross: told apart by form, not only by colour."""
    stroke = f"M{x - 4} {y}l3 3l5 -6" if right else f"M{x - 3} {y - 3}l6 6m0 -6l-6 6"
    return [circle(x, y, 8, "green" if right else "red"), path(stroke, stroke="#ffffff", width=2)]
