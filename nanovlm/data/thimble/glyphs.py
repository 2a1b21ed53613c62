"""`glyphs`: signs of two to four characters to read.

The letters are strokes drawn here, so no installed font decides a pixel; I, O and Q are left out because 1 and 0 look
too much like them. A tenth of all neighbouring character pairs is held out: `unseen` signs contain at least one of
them, so each character has been read in every place, but never beside this neighbour.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import NamedTuple

from PIL import Image

from nanovlm.data.thimble.drawing import (
    COLOURS,
    INK,
    PALETTE,
    Draws,
    Outline,
    backdrop,
    bucket_split,
    rectangle,
    stable_bucket,
    stamp,
    vary,
)

# Strokes on a grid 4 wide and 6 tall, two digits (x, y) a point; "~" marks a stroke whose corners are rounded off.
STROKES = {
    "A": "06 20 46|14 34",
    "B": "00 06|~00 40 43 03|~03 43 46 06",
    "C": "~41 40 00 06 46 45",
    "D": "00 06|~00 40 46 06",
    "E": "40 00 06 46|03 33",
    "F": "40 00 06|03 33",
    "G": "~41 40 00 06 46 43|43 23",
    "H": "00 06|40 46|03 43",
    "J": "40 44|~44 46 06 04",
    "K": "00 06|40 03 46",
    "L": "00 06 46",
    "M": "06 00 23 40 46",
    "N": "06 00 46 40",
    "P": "00 06|~00 40 43 03",
    "R": "00 06|~00 40 43 03|13 46",
    "S": "~41 40 00 03 43 46 06 05",
    "T": "00 40|20 26",
    "U": "00 04|~04 06 46 44|44 40",
    "V": "00 26 40",
    "W": "00 16 22 36 40",
    "X": "00 46|40 06",
    "Y": "00 23 40|23 26",
    "Z": "00 40 06 46",
    "0": "~20 40 46 26|~20 00 06 26",
    "1": "11 20 26|16 36",
    "2": "~01 00 40 43 06|06 46",
    "3": "~01 00 40 43 23|~23 43 46 06 05",
    "4": "36 30 04 44",
    "5": "40 00 02|~02 42 46 06 05",
    "6": "~41 40 00 06 46 43 03 04",
    "7": "00 40 16",
    "8": "~20 40 43 23|~20 00 03 23|~23 43 46 26|~23 03 06 26",
    "9": "~05 06 46 40 00 03 43 42",
}
CHARACTERS = tuple(STROKES)
NUMBERS = ("2", "3", "4")
YES_NO = ("yes", "no")
KINDS: dict[str, tuple[str, ...] | None] = {
    "read": None,
    "first": CHARACTERS,
    "last": CHARACTERS,
    "count": NUMBERS,
    "exists": YES_NO,
}
# A third of the signs have two characters.
FREE_TEXT_CHANCE = {"read": 1 / (3 * len(CHARACTERS) ** 2)}


class GlyphScene(NamedTuple):
    text: str
    colour: str


@cache
def held_out(pair: str) -> bool:
    """Whether these two neighbours are kept for `unseen`."""
    return stable_bucket(f"neighbours {pair}", 10) == 0


def caption(scene: GlyphScene) -> str:
    return f"A {scene.colour} sign with {len(scene.text)} characters: {scene.text}.".replace("A o", "An o")


def scene_split(scene: GlyphScene) -> str:
    """The one of train, val and test that owns this text, in whatever colour."""
    return bucket_split(scene.text)


def make_scene(draws: Draws, split: str) -> GlyphScene:
    """Draw a sign that belongs to `split`."""
    number, colour = 2 + draws.below(3), draws.pick(COLOURS)
    while True:
        scene = GlyphScene("".join(draws.pick(CHARACTERS) for _ in range(number)), colour)
        if any(held_out(scene.text[i : i + 2]) for i in range(number - 1)):
            if split == "unseen":
                return scene
        elif scene_split(scene) == split:
            return scene


def make_turns(scene: GlyphScene, draws: Draws, split: str) -> list[tuple[str, str, str]]:
    """(kind, question, answer) turns: one of each kind, for training with a second "exists", in random order."""
    turns = [
        ("read", "What does the sign say?", scene.text),
        ("first", "What is the first character?", scene.text[0]),
        ("last", "What is the last character?", scene.text[-1]),
        ("count", "How many characters are there?", str(len(scene.text))),
    ]
    pool = list(CHARACTERS)
    for _ in range(2 if split == "train" else 1):
        answer = draws.pick(YES_NO)
        # The second question is about another character; a sign such as "77" has just one to say yes to.
        choices = [character for character in pool if (character in scene.text) == (answer == "yes")]
        character = draws.pick(choices or pool)
        pool.remove(character)
        article = "an" if character in "AEFHLMNRSX8" else "a"
        turns.append(("exists", f"Is there {article} {character}?", "yes" if character in scene.text else "no"))
    if split != "train":
        return turns
    turns = draws.some(turns, len(turns))
    if draws.below(2):
        turns.sort(key=lambda turn: turn[0] != "exists")  # once the sign was read out, this is asked of the text alone
    return turns


def _rounded(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Chaikin's corner cutting: three rounds come close to a quadratic B-spline through the same ends."""
    for _ in range(3):
        cut = [points[0]]
        for (ax, ay), (bx, by) in itertools.pairwise(points):
            cut += [(0.75 * ax + 0.25 * bx, 0.75 * ay + 0.25 * by), (0.25 * ax + 0.75 * bx, 0.25 * ay + 0.75 * by)]
        points = [*cut, points[-1]]
    return points


@cache
def outline(character: str, half_width: float) -> Outline:
    """The character around its centre, 6 units tall, with strokes of 2 * half_width units."""
    paths = []
    for stroke in STROKES[character].split("|"):
        points = [(0.85 * int(point[0]) - 1.7, int(point[1]) - 3.0) for point in stroke.lstrip("~").split()]
        paths.append(tuple(_rounded(points) if stroke.startswith("~") else points))
    return Outline(tuple(paths), half_width, closed=False)


def draw(scene: GlyphScene, draws: Draws, image_size: int) -> Image.Image:
    """Render the sign. At 64 px characters are 12 or 13 px tall, and each stands, wherever the sign does, inside one
    cell of a grid of 4 x 4: what one of the pocket model's image tokens is made of. Characters that lay across cells
    were not read at all after 1,000 steps of training on them; these are read after 400 (LOG.md)."""
    unit = image_size / 64
    canvas = backdrop(draws, image_size)
    number = len(scene.text)
    column, row = draws.below(5 - number), 1 + draws.below(2)
    first, y = 8.5 + 15 * column + draws.below(3), 16 * row + 7 + draws.below(3)
    tall = 12 + draws.below(2)
    half_width = (0.5, 0.6)[draws.below(2)]
    plate = vary(draws, PALETTE[scene.colour])
    middle = first + 7.5 * (number - 1)
    stamp(canvas, rectangle(15 * number + 1, tall + 10, 4.0), middle * unit, y * unit, unit, plate)
    ink = INK if scene.colour in ("yellow", "orange") else (252, 252, 252)
    for i, character in enumerate(scene.text):
        x = first + 15 * i
        stamp(canvas, outline(character, half_width), x * unit, y * unit, tall / 6 * unit, ink, rim=False)
    return canvas
