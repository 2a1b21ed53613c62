"""A sheet of pictures with what was asked, what the model said, and whether that is right."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from nanovlm.viz.style import PALETTE, TONES, Figure, png_bytes, raster, svg_figure

# Sizes in points; a sheet has `scale` pixels to the point.
CARD, GAP, PADDING, RADIUS = 168, 14, 10, 8
QUESTION, ANSWER, TITLE, NOTE = 12, 15, 22, 13
INK, MUTED, LINE, CARD_FILL = (TONES[name][0] for name in ("ink", "muted", "line", "card"))
PAPER = "#ffffff"
INDENT = 26  # of answers, beside their mark
Lines = tuple[list[str], list[str], list[str]]


@dataclass(frozen=True)
class AnsweredImage:
    image: Image.Image
    question: str
    answer: str  # the model's
    expected: str
    rule: Callable[[str, str], bool] = operator.eq  # (answer, expected): what the answer was scored by

    @property
    def right(self) -> bool:
        return self.rule(self.answer, self.expected.strip())


def contact_sheet(
    title: str, note: str, answered: Sequence[AnsweredImage], columns: int = 4, scale: int = 2
) -> Image.Image:
    """One card per answered picture, in rows of `columns`, under a title and a line of explanation.

    Right and wrong are told apart by the mark's form (tick, cross) and by words, not only by its colour.

    Raises: ValueError if there is nothing to show.
    """
    if not answered or columns < 1 or scale < 1:
        raise ValueError("A contact sheet needs at least one answered picture, one column and a scale of 1 or more.")
    return _Sheet(scale).draw(title, note, answered, columns)


def sheet_figure(title: str, note: str, answered: Sequence[AnsweredImage], columns: int = 4) -> Figure:
    """A contact sheet to show in a notebook, 720 pixels wide."""
    sheet = contact_sheet(title, note, answered, columns, scale=1)
    height = round(720 * sheet.height / sheet.width)
    told = "; ".join(f"{each.question} {each.answer}, expected {each.expected}" for each in answered)
    return svg_figure(720, height, [raster(0, 0, 720, height, png_bytes(sheet))], f"{title}. {note} {told}.")


class _Sheet:
    def __init__(self, scale: int) -> None:
        self.scale = scale
        self.fonts = {size: ImageFont.load_default(size * scale) for size in (QUESTION, ANSWER, TITLE, NOTE)}

    def draw(self, title: str, note: str, answered: Sequence[AnsweredImage], columns: int) -> Image.Image:
        columns = min(columns, len(answered))
        width = columns * CARD + (columns + 1) * GAP
        notes = self.wrap(note, NOTE, width - 2 * GAP)
        top = GAP + TITLE + 8 + len(notes) * (NOTE + 5) + GAP
        cards = [(entry, self.lines(entry)) for entry in answered]
        rows = [cards[i : i + columns] for i in range(0, len(cards), columns)]
        heights = [max(self.height(lines) for _, lines in row) for row in rows]
        self.image = Image.new("RGB", self.points(width, top + sum(heights) + GAP * len(rows)), PAPER)
        self.pen = ImageDraw.Draw(self.image)
        self.text(GAP, GAP, title, TITLE, INK)
        for i, line in enumerate(notes):
            self.text(GAP, GAP + TITLE + 8 + i * (NOTE + 5), line, NOTE, MUTED)
        y = top
        for row, height in zip(rows, heights, strict=True):
            for column, (entry, lines) in enumerate(row):
                self.card(GAP + column * (CARD + GAP), y, height, entry, lines)
            y += height + GAP
        return self.image

    def lines(self, entry: AnsweredImage) -> Lines:
        """Question, answer and correction, each broken into lines."""
        answer_width = CARD - 2 * PADDING - INDENT
        correction = "" if entry.right else f"wrong: should be {entry.expected.strip()}"
        return (
            self.wrap(entry.question, QUESTION, CARD - 2 * PADDING),
            self.wrap(entry.answer or "(no answer)", ANSWER, answer_width),
            self.wrap(correction, QUESTION, answer_width) if correction else [],
        )

    @staticmethod
    def height(lines: Lines) -> int:
        question, answer, correction = map(len, lines)
        return CARD + (question + correction) * (QUESTION + 4) + answer * (ANSWER + 4) + PADDING + 10

    def card(self, x: int, y: int, height: int, entry: AnsweredImage, lines: Lines) -> None:
        corners = self.points(x, y, x + CARD, y + height)
        self.pen.rounded_rectangle(corners, self.scale * RADIUS, CARD_FILL, LINE, self.scale)
        side = CARD - 2 * PADDING
        image = entry.image.convert("RGB").resize(self.points(side, side), Image.Resampling.BICUBIC)
        self.image.paste(image, self.points(x + PADDING, y + PADDING))
        question, answer, correction = lines
        x, y = x + PADDING, y + CARD
        y = self.block(x, y, question, QUESTION, MUTED) + 5
        self.mark(x, y, entry.right)
        y = self.block(x + INDENT, y, answer, ANSWER, INK)
        self.block(x + INDENT, y, correction, QUESTION, MUTED)

    def block(self, x: int, y: int, lines: list[str], size: int, colour: str) -> int:
        """Lines of text below each other; returns where the next one would start."""
        for line in lines:
            self.text(x, y, line, size, colour)
            y += size + 4
        return y

    def mark(self, x: int, y: int, right: bool) -> None:
        """A disc of 18 points with a tick or a cross."""
        self.pen.ellipse(self.points(x, y, x + 18, y + 18), PALETTE["green" if right else "red"])
        strokes = [[(5, 9.5), (8, 12.5), (13, 6)]] if right else [[(6, 6), (12, 12)], [(12, 6), (6, 12)]]
        for stroke in strokes:
            path = [self.points(x + dx, y + dy) for dx, dy in stroke]
            self.pen.line(path, PAPER, 2 * self.scale, joint="curve")

    def text(self, x: int, y: int, words: str, size: int, colour: str) -> None:
        self.pen.text(self.points(x, y), words, fill=colour, font=self.fonts[size])

    def wrap(self, words: str, size: int, width: int) -> list[str]:
        """Break at spaces, and inside a word that is wider than a line."""
        lines = [""]
        for word in words.split():
            if self.fits(f"{lines[-1]} {word}".strip(), size, width):
                lines[-1] = f"{lines[-1]} {word}".strip()
                continue
            lines += [""] if lines[-1] else []
            for character in word:
                if not self.fits(lines[-1] + character, size, width) and lines[-1]:
                    lines.append("")
                lines[-1] += character
        return lines

    def fits(self, words: str, size: int, width: int) -> bool:
        return self.fonts[size].getlength(words) <= width * self.scale

    def points(self, *values: float) -> tuple[int, ...]:
        return tuple(round(value * self.scale) for value in values)
