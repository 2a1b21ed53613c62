"""`shapes`: up to four coloured shapes in a 2x2 grid, after CLEVR (Johnson et al., 2017, arXiv:1612.06890).

No picture holds the same colour and shape twice, so "the red circle" always names one object. Each picture is built
around its counting question (the theme): the count is drawn first, hence every count is equally frequent for every
question text.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

from PIL import Image

from nanovlm.data.thimble.drawing import COLOURS, PALETTE, Draws, Outline, backdrop, bucket_split, stamp, vary

SHAPES = ("circle", "square", "triangle", "star", "heart")
CELLS = ("top left", "top right", "bottom left", "bottom right")
NUMBERS = ("1", "2", "3", "4")
YES_NO = ("yes", "no")
KINDS: dict[str, tuple[str, ...] | None] = {
    "colour": COLOURS,
    "shape": SHAPES,
    "count": NUMBERS,
    "exists": YES_NO,
    "where": CELLS,
    "compare": YES_NO,
}
# "where" needs the whole chain (find the object, then say where it is) and is learnt last, so it is asked most.
# Shares come out less steep: objects run out of fresh questions, and comparisons fill the rest.
TRAIN_WEIGHTS = {"colour": 1.0, "shape": 1.0, "exists": 2.4, "where": 2.4, "compare": 0.7}
TRAIN_TURNS = 6
TRAIN_COUNT_SHARE = 0.7  # pictures that are asked their one counting question

Item = tuple[str, str]  # colour, shape
UNSEEN: tuple[Item, ...] = (("red", "triangle"), ("green", "heart"), ("blue", "star"), ("yellow", "square"))
VALUES = (COLOURS, SHAPES)
ALL_ITEMS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
SEEN = tuple(item for item in ALL_ITEMS if item not in UNSEEN)


def _item_weights() -> dict[Item, float]:
    """Weights for which each colour and each shape is equally frequent although some pairs are held out (Sinkhorn)."""
    weights = {item: 1.0 if item in SEEN else 0.0 for item in ALL_ITEMS}
    for _ in range(60):
        for part, names in ((0, COLOURS), (1, SHAPES)):
            for name in names:
                total = sum(weight for item, weight in weights.items() if item[part] == name)
                for item in ALL_ITEMS:
                    if item[part] == name:
                        weights[item] /= total * len(names)
    return weights


SEEN_WEIGHTS = _item_weights()


class Scene(NamedTuple):
    """Four cells in reading order, each (colour, shape) or None; the theme is what the counting question counts."""

    cells: tuple[Item | None, ...]
    theme: str  # a colour, a shape, or "any"

    @property
    def items(self) -> list[Item]:
        return [item for item in self.cells if item]


def caption(scene: Scene) -> str:
    named = (" ".join(item) if item else "nothing" for item in scene.cells)
    return " ".join(f"{cell}: {name}." for cell, name in zip(CELLS, named, strict=True))


def scene_split(scene: Scene) -> str:
    """The one of train, val and test that owns what is to be seen, whichever question it was made for."""
    return bucket_split(caption(scene))


def make_scene(draws: Draws, split: str) -> Scene:
    """Draw a scene that belongs to `split`."""
    unseen = split == "unseen"
    attribute = draws.weighted((None, 0, 1), (1, 2, 2))  # count everything, a colour, or a shape
    theme = "any" if attribute is None else draws.pick(UNSEEN)[attribute] if unseen else draws.pick(VALUES[attribute])
    count = 1 + draws.below(4)
    fewest = count if attribute is None else max(count, 2)
    number = fewest if attribute is None else fewest + draws.below(5 - fewest)
    while True:
        items: list[Item] = []
        for i in range(number):
            pool = [
                item
                for item in (ALL_ITEMS if unseen else SEEN)
                if item not in items and (attribute is None or (item[attribute] == theme) == (i < count))
            ]
            items.append(draws.weighted(pool, [1.0 if unseen else SEEN_WEIGHTS[item] for item in pool]))
        cells: list[Item | None] = [None] * 4
        for cell, item in zip(draws.some(range(4), number), items, strict=True):
            cells[cell] = item
        scene = Scene(tuple(cells), theme)
        # One held-out pair must be missing too, for the questions whose answer is "no".
        if 0 < sum(item in UNSEEN for item in items) < len(UNSEEN) if unseen else scene_split(scene) == split:
            return scene


def make_turns(scene: Scene, draws: Draws, split: str) -> list[tuple[str, str, str]]:
    """(kind, question, answer) turns: six of mixed kinds for training, one of each kind otherwise.

    An object that a training question has named is not asked about again in a way that its name would answer.
    """
    fresh = set(scene.items)
    if split == "train":
        turns: list[tuple[str, str, str]] = []
        count = draws.coin(TRAIN_COUNT_SHARE)  # whatever the scene, so that the counts stay uniform
        while len(turns) < TRAIN_TURNS - count:
            kind = draws.weighted(list(TRAIN_WEIGHTS), list(TRAIN_WEIGHTS.values()))
            turn = _ask(kind, scene, draws, fresh, SEEN)
            if turn and all(turn[0] != question for _, question, _ in turns):
                turns.append((kind, *turn))
                told = " ".join(turn).replace("?", "").split()
                fresh -= {item for item, cell in _placed(scene) if set(item) <= set(told) or cell in turn[0]}
        if count:
            turns.insert(draws.below(TRAIN_TURNS), ("count", *_ask("count", scene, draws, fresh, SEEN)))
        return turns
    if split != "unseen":
        return [(kind, *_ask(kind, scene, draws, fresh, SEEN)) for kind in KINDS]
    return [(kind, *_ask(kind, scene, draws, fresh & set(UNSEEN), UNSEEN)) for kind in KINDS]


def _placed(scene: Scene) -> list[tuple[Item, str]]:
    return [(item, cell) for item, cell in zip(scene.cells, CELLS, strict=True) if item]


def _ask(kind: str, scene: Scene, draws: Draws, focus: set[Item], askable: tuple[Item, ...]) -> tuple[str, str] | None:
    """One question and its answer about an object in `focus`, or None where this scene has no fair one.

    The answer is drawn before the question wherever it could otherwise be guessed from the question.
    """
    items, placed = scene.items, _placed(scene)
    if kind == "count":
        question = {"any": "shapes"} | {c: f"{c} shapes" for c in COLOURS} | {s: f"{s}s" for s in SHAPES}
        counted = sum(scene.theme in ("any", *item) for item in items)
        return f"How many {question[scene.theme]} are there?", str(counted)
    if kind == "compare":
        return _compare(items, placed, draws, focus)
    if kind == "exists":
        return _exists(items, draws, focus, askable)
    if kind == "where":
        item, cell = draws.pick([(item, cell) for item, cell in placed if len(askable) == len(SEEN) or item in focus])
        return f"Where is the {' '.join(item)}?", cell
    if not focus:
        return None
    item, cell = draws.pick([(item, cell) for item, cell in placed if item in focus])
    colour, shape = item
    by_place = draws.coin()
    if kind == "colour":
        alone = sum(other[1] == shape for other in items) == 1
        name = f"the {shape}" if alone and not by_place else f"the shape at the {cell}"
        return f"What colour is {name}?", colour
    alone = sum(other[0] == colour for other in items) == 1
    return f"Which shape is {colour if alone and not by_place else f'at the {cell}'}?", shape


def _exists(items: list[Item], draws: Draws, focus: set[Item], askable: tuple[Item, ...]) -> tuple[str, str] | None:
    form = draws.weighted(("item", "shape", "colour"), (3, 1, 1)) if askable is SEEN else "item"
    if form == "item":
        present = [item for item in items if item in focus]
        absent = [item for item in askable if item not in items]
        # Half of the absent objects have a colour and a shape that are both in the picture, on different objects.
        tempting = [(c, s) for c, s in absent if any(c == i[0] for i in items) and any(s == i[1] for i in items)]
        if tempting and draws.coin():
            absent = tempting
        names = [" ".join(item) for item in present], [" ".join(item) for item in absent]
    else:
        part = 1 if form == "shape" else 0
        told = {item[part] for item in items if item not in focus}
        in_focus = {item[part] for item in focus} - told
        names = (
            [v for v in VALUES[part] if v in in_focus],
            [v for v in VALUES[part] if all(v != item[part] for item in items)],
        )
    if not names[0] or not names[1]:
        return None
    answer = draws.pick(YES_NO)
    name = draws.pick(names[YES_NO.index(answer)])
    if form == "colour":
        return f"Is anything {name}?", answer
    return f"Is there {'an' if name.startswith('o') else 'a'} {name}?", answer


def _compare(items: list[Item], placed: list[tuple[Item, str]], draws: Draws, focus: set[Item]) -> tuple[str, str]:
    answer = draws.pick(YES_NO)
    if draws.coin(0.25):
        ordered = [
            (a, word, b)
            for a, at in placed
            for b, other in placed
            for word, before, after in (("left of", "left", "right"), ("above", "top", "bottom"))
            if before in at and after in other and (a in focus or b in focus)
        ]
        if ordered:
            first, word, second = draws.pick(ordered)
            if answer == "no":
                first, second = second, first
            return f"Is the {' '.join(first)} {word} the {' '.join(second)}?", answer
    number = Counter(shape for _, shape in items)
    more = [(a, b) for a in SHAPES for b in SHAPES if number[a] > number[b]]
    ties = [(a, b) for a in SHAPES for b in SHAPES if a != b and number[a] == number[b] > 0]
    first, second = draws.pick(more if answer == "yes" else [(b, a) for a, b in more] + ties)
    return f"Are there more {first}s than {second}s?", answer


def _ring(count: int, radii: tuple[float, ...], turn: float = 0.0) -> tuple[tuple[float, float], ...]:
    angles = (2 * math.pi * (i / count + turn) for i in range(count))
    return tuple(
        (round(radii[i % len(radii)] * math.sin(a), 4), round(-radii[i % len(radii)] * math.cos(a), 4))
        for i, a in enumerate(angles)
    )


def _heart() -> tuple[tuple[float, float], ...]:
    turns = (2 * math.pi * i / 40 for i in range(40))
    return tuple(
        (
            round(1.02 * math.sin(t) ** 3, 4),
            round(-(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 15.5 - 0.08, 4),
        )
        for t in turns
    )


# In units of the object's radius, so that all look equally large.
OUTLINES = {
    "circle": Outline((((0.0, 0.0),),), 0.96),
    "square": Outline((_ring(4, (1.08,), 0.125),), 0.1),
    "triangle": Outline((tuple((x, y + 0.2) for x, y in _ring(3, (1.1,))),), 0.1),
    "star": Outline((tuple((x, y + 0.06) for x, y in _ring(10, (1.16, 0.5))),), 0.06),
    "heart": Outline((_heart(),), 0.06),
}


def draw(scene: Scene, draws: Draws, image_size: int) -> Image.Image:
    """Render the scene; place, size and light vary a little."""
    unit = image_size / 64
    canvas = backdrop(draws, image_size)
    for i, item in enumerate(scene.cells):
        if item:
            x = 16 + 32 * (i % 2) + draws.below(5) - 2
            y = 16 + 32 * (i // 2) + draws.below(5) - 2
            radius = 9.5 + 0.5 * draws.below(6)
            stamp(canvas, OUTLINES[item[1]], x * unit, y * unit, radius * unit, vary(draws, PALETTE[item[0]]))
    return canvas
