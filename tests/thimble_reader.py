"""An independent reading of the Thimble: scenes from pixels and from captions, and answers from scenes."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
from PIL import Image

COLOURS = {
    "red": (209, 38, 48),
    "green": (38, 164, 104),
    "blue": (38, 104, 214),
    "yellow": (248, 210, 46),
    "purple": (112, 48, 160),
    "orange": (245, 136, 28),
}
CELLS = ("top left", "top right", "bottom left", "bottom right")


def _only(items: list):
    assert len(items) == 1, f"not unambiguous: {items}"
    return items[0]


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def answer(subset: str, caption: str, question: str) -> str:
    """The answer to a question about the scene that the caption describes; fails where it is ambiguous."""
    return {"shapes": _about_shapes, "charts": _about_charts, "glyphs": _about_glyphs}[subset](caption, question)


def _about_shapes(caption: str, question: str) -> str:
    read = re.findall(r"(top|bottom) (left|right): (\w+)(?: (\w+))?\.", caption)
    assert [f"{row} {column}" for row, column, *_ in read] == list(CELLS)
    objects = [(colour, shape, row, column) for row, column, colour, shape in read if colour != "nothing"]

    def find(words: str) -> tuple[str, str, str, str]:
        return _only([thing for thing in objects if set(words.split()) - {"shape", "at", "the"} <= set(thing)])

    if found := re.fullmatch(r"What colour is the (.+)\?", question):
        return find(found[1])[0]
    if found := re.fullmatch(r"Which shape is (?:at the )?(.+)\?", question):
        return find(found[1])[1]
    if found := re.fullmatch(r"How many (.+) are there\?", question):
        wanted = {word.removesuffix("s") for word in found[1].split()} - {"shape"}
        return str(sum(wanted <= set(thing) for thing in objects))
    if found := re.fullmatch(r"Is (?:there an?|anything) (.+)\?", question):
        return _yes(any(set(found[1].split()) <= set(thing) for thing in objects))
    if found := re.fullmatch(r"Where is the (.+)\?", question):
        return " ".join(find(found[1])[2:])
    if found := re.fullmatch(r"Is the (.+) (left of|above) the (.+)\?", question):
        part, order = (3, ("left", "right")) if found[2] == "left of" else (2, ("top", "bottom"))
        places = find(found[1])[part], find(found[3])[part]
        assert places[0] != places[1], f"not decided: {question}"
        return _yes(places == order)
    found = re.fullmatch(r"Are there more (\w+)s than (\w+)s\?", question)
    number = Counter(thing[1] for thing in objects)
    return _yes(number[found[1]] > number[found[2]])


def _about_charts(caption: str, question: str) -> str:
    bars = {colour: int(height) for colour, height in re.findall(r"(\w+) (\d)[,.]", caption)}
    assert caption.startswith(f"{len(bars)} bars: ") and len(set(bars.values())) == len(bars)
    if found := re.fullmatch(r"Which bar is the (tallest|shortest)\?", question):
        return (max if found[1] == "tallest" else min)(bars, key=bars.get)
    if found := re.fullmatch(r"How tall is the (\w+) bar\?", question):
        return str(bars[found[1]])
    if found := re.fullmatch(r"Is the (\w+) bar taller than the (\w+) bar\?", question):
        return _yes(bars[found[1]] > bars[found[2]])
    assert question == "How many bars are there?"
    return str(len(bars))


def _about_glyphs(caption: str, question: str) -> str:
    number, text = re.fullmatch(r"An? \w+ sign with (\d) characters: ([A-Z0-9]+)\.", caption).groups()
    assert int(number) == len(text)
    if found := re.fullmatch(r"Is there an? (.)\?", question):
        return _yes(found[1] in text)
    return {
        "What does the sign say?": text,
        "What is the first character?": text[0],
        "What is the last character?": text[-1],
        "How many characters are there?": number,
    }[question]


def _colour_of(pixels: np.ndarray) -> str:
    """The nearest palette colour to the middle of these pixels [n, 3]."""
    middle = np.median(pixels, axis=0)
    return min(COLOURS, key=lambda name: float(np.abs(middle - COLOURS[name]).sum()))


def _vivid(image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.asarray(image).astype(int)
    return pixels, np.ptp(pixels, axis=-1) > 60


def see_shapes(image: Image.Image) -> str:
    """The caption of a shapes picture, from its pixels."""
    pixels, vivid = _vivid(image)
    half = image.width // 2
    said = []
    for i, cell in enumerate(CELLS):
        part = (slice(half * (i // 2), half * (i // 2 + 1)), slice(half * (i % 2), half * (i % 2 + 1)))
        mask = vivid[part]
        if mask.sum() < 20:
            said.append(f"{cell}: nothing.")
            continue
        ys, xs = np.nonzero(mask)
        box = mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
        said.append(f"{cell}: {_colour_of(pixels[part][mask])} {_shape_of(box)}.")
    return " ".join(said)


def _shape_of(box: np.ndarray) -> str:
    """By what is inside a shape's bounding box: its corners, and the middle of its top and bottom edges."""
    height, width = box.shape

    def inside(x: float, y: float) -> bool:
        return bool(box[int(y * (height - 1)), int(x * (width - 1))])

    if inside(0.07, 0.07) and inside(0.93, 0.93):
        return "square"
    if inside(0.1, 0.96):
        return "triangle"
    if not inside(0.5, 0.94):
        return "star"
    return "circle" if inside(0.5, 0.04) else "heart"


def see_charts(image: Image.Image) -> str:
    """The caption of a chart, from its pixels."""
    pixels, vivid = _vivid(image)
    columns = np.concatenate([[False], vivid.sum(axis=0) > image.width / 20, [False]]).astype(int)
    starts, ends = np.nonzero(np.diff(columns) == 1)[0], np.nonzero(np.diff(columns) == -1)[0]
    bars = []
    for start, end in zip(starts, ends, strict=True):
        mask = vivid[:, start:end]
        height = np.median(mask.sum(axis=0)) / image.width * 6.4
        bars.append(f"{_colour_of(pixels[:, start:end][mask])} {round(float(height))}")
    return f"{len(bars)} bars: {', '.join(bars)}."
