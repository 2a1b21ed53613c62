"""Does it invent things? Yes/no questions after POPE (Li et al. 2023, arXiv:2305.10355), on the Thimble's shapes.

Half of the questions name an object that is there. The other half name one that is not, chosen in one of three ways:
random, popular (the objects most frequent in the pictures), adversarial (a colour and a shape that are both in the
picture, on different objects).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from nanovlm.data.thimble import thimble_sample, thimble_scene
from nanovlm.data.thimble.shapes import SEEN
from nanovlm.evaluation.scores import Question

NEGATIVES = ("random", "popular", "adversarial")


@dataclass(frozen=True)
class YesNo:
    """A yes/no test's four counts, and what follows from them."""

    true_yes: int
    false_yes: int
    true_no: int
    false_no: int

    @property
    def total(self) -> int:
        return self.true_yes + self.false_yes + self.true_no + self.false_no

    @property
    def accuracy(self) -> float:
        return (self.true_yes + self.true_no) / self.total if self.total else 0.0

    @property
    def precision(self) -> float:
        said = self.true_yes + self.false_yes
        return self.true_yes / said if said else 0.0

    @property
    def recall(self) -> float:
        there = self.true_yes + self.false_no
        return self.true_yes / there if there else 0.0

    @property
    def f1(self) -> float:
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0

    @property
    def yes_share(self) -> float:
        """How often it says yes. Half of the answers are yes: what is above 0.5 is bias."""
        return (self.true_yes + self.false_yes) / self.total if self.total else 0.0


def probes(negatives: str, size: int, split: str = "test", seed: int = 0, image_size: int = 64) -> list[Question]:
    """Two questions about each of `size` pictures: one object that is there, and one that is not."""
    if negatives not in NEGATIVES:
        raise ValueError(f"negatives is one of {', '.join(NEGATIVES)}, not {negatives!r}.")
    draw = random.Random(f"{negatives} {split} {seed}")
    scenes = [thimble_scene("shapes", split, i, seed)[0] for i in range(size)]
    popular = [item for item, _ in Counter(item for scene in scenes for item in scene.items).most_common()]
    questions = []
    for index, scene in enumerate(scenes):
        images = thimble_sample("shapes", split, index, seed, image_size)["images"]
        absent = [item for item in SEEN if item not in scene.items]
        if negatives == "popular":
            absent = [item for item in popular if item in absent][:3] or absent
        elif negatives == "adversarial":
            colours, shapes = {c for c, _ in scene.items}, {s for _, s in scene.items}
            mixed = [(colour, shape) for colour, shape in absent if colour in colours and shape in shapes]
            half = [(colour, shape) for colour, shape in absent if colour in colours or shape in shapes]
            absent = mixed or half or absent
        for item, answer in ((draw.choice(scene.items), "yes"), (draw.choice(absent), "no")):
            name = " ".join(item)
            text = f"Is there {'an' if name.startswith('o') else 'a'} {name}?"
            questions.append(Question(index, images, text, answer, negatives))
    return questions


def yes_no(answers: Sequence[str], expected: Sequence[str]) -> YesNo:
    """Answers that are neither yes nor no count as no, as in POPE's own script; `expected` is "yes" or "no"."""
    pairs = Counter((e == "yes", a.strip().lower() == "yes") for a, e in zip(answers, expected, strict=True))
    return YesNo(pairs[True, True], pairs[False, True], pairs[False, False], pairs[True, False])
