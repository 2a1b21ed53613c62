"""`charts`: two to four bars over a grid of five lines, read like a chart in FigureQA (Kahou et al., 2017, 1710.07300).

Colours and heights within a chart are all different, so the tallest bar, the shortest bar and every comparison are
decided, and each height is equally frequent. Six of the thirty pairs of neighbouring colours are held out: `unseen`
charts contain at least one of them, so each bar has been read in every place, but never beside this neighbour. (To hold
out heights of a colour would tell a guesser that does not look which heights that colour has.)
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from PIL import Image

from nanovlm.data.thimble.drawing import (
    COLOURS,
    INK,
    PALETTE,
    Colour,
    Draws,
    backdrop,
    bucket_split,
    rectangle,
    stamp,
    vary,
)

HEIGHTS = ("1", "2", "3", "4", "5")
NUMBERS = ("2", "3", "4")
YES_NO = ("yes", "no")
KINDS: dict[str, tuple[str, ...] | None] = {
    "tallest": COLOURS,
    "shortest": COLOURS,
    "height": HEIGHTS,
    "count": NUMBERS,
    "compare": YES_NO,
}
TRAIN_WEIGHTS = {"tallest": 1.0, "shortest": 1.0, "height": 2.0, "compare": 1.5}
TRAIN_TURNS = 6
TRAIN_COUNT_SHARE = 0.5

Bar = tuple[str, str]  # colour, height
# A ring through all colours (left, right), so that each colour stays equally frequent.
UNSEEN = tuple(zip(COLOURS, COLOURS[1:] + COLOURS[:1], strict=True))


class ChartScene(NamedTuple):
    bars: tuple[Bar, ...]  # from left to right

    @property
    def unseen(self) -> list[Bar]:
        """The bars that stand beside a neighbour that is held out."""
        pairs = [pair for pair in pairwise(self.bars) if (pair[0][0], pair[1][0]) in UNSEEN]
        return [bar for bar in self.bars if any(bar in pair for pair in pairs)]


def caption(scene: ChartScene) -> str:
    return f"{len(scene.bars)} bars: {', '.join(' '.join(bar) for bar in scene.bars)}."


def scene_split(scene: ChartScene) -> str:
    """The one of train, val and test that owns these colours with these heights, whichever bar has which height.

    There are few charts of two bars: dealt out one by one, some colours would be the tallest more often in test.
    """
    colours, heights = zip(*scene.bars, strict=True)
    return bucket_split(f"{colours} {sorted(heights)}")


def make_scene(draws: Draws, split: str) -> ChartScene:
    """Draw a chart that belongs to `split`."""
    number = 2 + draws.below(3)
    while True:
        scene = ChartScene(tuple(zip(draws.some(COLOURS, number), draws.some(HEIGHTS, number), strict=True)))
        if scene.unseen:
            if split == "unseen":
                return scene
        elif scene_split(scene) == split:
            return scene


def make_turns(scene: ChartScene, draws: Draws, split: str) -> list[tuple[str, str, str]]:
    """(kind, question, answer) turns: six of mixed kinds for training, one of each kind otherwise."""
    focus = scene.unseen if split == "unseen" else list(scene.bars)
    if split != "train":
        return [(kind, *_ask(kind, scene, draws, focus)) for kind in KINDS]
    turns: list[tuple[str, str, str]] = []
    count = draws.coin(TRAIN_COUNT_SHARE)  # whatever the scene, so that the counts stay uniform
    while len(turns) < TRAIN_TURNS - count:
        kind = draws.weighted(list(TRAIN_WEIGHTS), list(TRAIN_WEIGHTS.values()))
        turn = _ask(kind, scene, draws, focus)
        if all(turn[0] != question for _, question, _ in turns):
            turns.append((kind, *turn))
    if count:
        turns.insert(draws.below(TRAIN_TURNS), ("count", *_ask("count", scene, draws, focus)))
    return turns


def _ask(kind: str, scene: ChartScene, draws: Draws, focus: list[Bar]) -> tuple[str, str]:
    if kind == "count":
        return "How many bars are there?", str(len(scene.bars))
    if kind in ("tallest", "shortest"):
        extreme = (max if kind == "tallest" else min)(scene.bars, key=lambda bar: int(bar[1]))
        return f"Which bar is the {kind}?", extreme[0]
    bar = draws.pick(focus)
    if kind == "height":
        return f"How tall is the {bar[0]} bar?", bar[1]
    answer = draws.pick(YES_NO)
    other = draws.pick([other for other in focus if other != bar])
    high, low = sorted((bar, other), key=lambda bar: -int(bar[1]))
    first, second = (high, low) if answer == "yes" else (low, high)
    return f"Is the {first[0]} bar taller than the {second[0]} bar?", answer


def draw(scene: ChartScene, draws: Draws, image_size: int) -> Image.Image:
    """Render the chart: 10 px per unit of height at 64 px, a line at each unit."""
    unit = image_size / 64
    canvas = backdrop(draws, image_size)
    left, base = 5 + draws.below(3), 57 + draws.below(3)
    line = max(1, round(unit))

    def rule(x: float, y: float, width: float, height: float, colour: Colour) -> None:
        corner = round(x * unit), round(y * unit)
        size = max(line, round(width * unit)), max(line, round(height * unit))
        canvas.paste(colour, (*corner, corner[0] + size[0], corner[1] + size[1]))

    for height in range(1, 6):
        rule(left, base - 10 * height, 60 - left, 0, (196, 200, 208))
    width = 8 + draws.below(4)
    slot = min(13, width + 1 + draws.below(5)) if len(scene.bars) == 4 else width + 3 + draws.below(4)
    start = left + 2 + draws.below(58 - left - slot * len(scene.bars))
    for i, (colour, height) in enumerate(scene.bars):
        tall = 10 * int(height)
        x = start + slot * i + width / 2
        stamp(
            canvas, rectangle(width, tall, 1.0), x * unit, (base - tall / 2) * unit, unit, vary(draws, PALETTE[colour])
        )
    for height in range(1, 6):
        rule(left - 2, base - 10 * height, 2, 0, INK)
    rule(left, base - 53, 0, 53, INK)
    rule(left - 2, base, 62 - left, 0, INK)
    return canvas
