"""Scores on the Thimble, and how they are shown. Shared by `train`, which ends with them, and `evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from nanovlm.data.thimble import SUBSETS, Thimble, chance, multiple_choice_sample
from nanovlm.evaluation.answers import same_answer
from nanovlm.evaluation.multiple_choice import evaluate_choice
from nanovlm.evaluation.scores import (
    Evaluation,
    Question,
    evaluate,
    evaluate_captions,
    evaluate_multiple_choice,
    exact,
)
from nanovlm.viz.contact_sheet import AnsweredImage, contact_sheet

if TYPE_CHECKING:
    from nanovlm.models.vision_language_model import VisionLanguageModel

COLUMNS = 4
RULES = {"exact": exact, "vqa": same_answer}  # protocols that ask for the answer itself
CHOICE_TITLES = {name: f"multiple choice by {name}" for name in ("letter", "lenient", "likelihood")}
# The same for every kind.
FLAT_CHANCE = {
    "multiple choice": 0.25,
    "captions": 0.0,
    "American spelling": chance("shapes")["colour"],
    **dict.fromkeys(CHOICE_TITLES.values(), 0.25),
}
MISTAKES = 4  # shown at most, after the answers that were not chosen


def score_thimble(
    model: VisionLanguageModel,
    subsets: Sequence[str],
    split: str,
    size: int,
    batch_size: int = 128,
    right: Callable[[str, str], bool] = exact,
) -> dict[str, Evaluation]:
    """subset -> its scores on `size` pictures of a split, blind scores included."""
    side = model.config.vision.image_size
    scores = {}
    for subset in subsets:
        samples = Thimble(subset, split, size, image_size=side)
        scores[subset] = evaluate(model, [samples[i] for i in range(size)], batch_size=batch_size, right=right)
    return scores


def score_choice(
    model: VisionLanguageModel, protocol: str, split: str, size: int, batch_size: int = 128
) -> dict[str, Evaluation]:
    """`size` questions with four options by one protocol of multiple_choice.py, under a title that names it."""
    side = model.config.vision.image_size
    samples = [multiple_choice_sample(index, split, image_size=side) for index in range(size)]
    return {CHOICE_TITLES[protocol]: evaluate_choice(model, samples, protocol, batch_size=batch_size)}


def score_multiple_choice(model: VisionLanguageModel, split: str, size: int, batch_size: int = 128) -> Evaluation:
    """The strict score on `size` questions with four options; the subsets take turns."""
    side = model.config.vision.image_size
    samples = [multiple_choice_sample(index, split, image_size=side) for index in range(size)]
    return evaluate_multiple_choice(model, samples, batch_size)


def score_captions(model: VisionLanguageModel, split: str, size: int, batch_size: int = 128) -> Evaluation:
    """Exact descriptions of `size` pictures of each subset, asked for at once."""
    samples = Thimble("captions", split, len(SUBSETS) * size, image_size=model.config.vision.image_size)
    return evaluate_captions(model, [samples[i] for i in range(len(samples))], batch_size)


def score_american(model: VisionLanguageModel, split: str, size: int, batch_size: int = 128) -> Evaluation:
    """The questions about a colour in `size` pictures of shapes, spelled "color"."""
    data = Thimble("american", split, size, image_size=model.config.vision.image_size)
    samples = [{**sample, "texts": [t for t in sample["texts"] if "color" in t["user"]]} for sample in data]
    return evaluate(model, samples, batch_size=batch_size)


def score_extras(
    model: VisionLanguageModel, subsets: Sequence[str], split: str, size: int, batch_size: int = 128
) -> dict[str, Evaluation]:
    """What "choice", "captions" and "american" teach, where they are among `subsets`: title -> its scores."""
    ways = {
        "choice": ("multiple choice", score_multiple_choice),
        "captions": ("captions", score_captions),
        "american": ("American spelling", score_american),
    }
    wanted = [way for subset, way in ways.items() if subset in subsets]
    return {title: score(model, split, size, batch_size) for title, score in wanted}


def tables(scores: Mapping[str, Evaluation], split: str) -> list[str]:
    """One table per subset, or per title of score_extras."""
    made = []
    for name, result in scores.items():
        by_chance = dict.fromkeys(result.scores, FLAT_CHANCE[name]) if name in FLAT_CHANCE else chance(name)
        made.append(f"{name}, {split}\n{result.table(by_chance)}")
    return made


def check_output(path: Path | None, suffix: str) -> None:
    """Raise before the work is done if its result could not be written."""
    if path is None:
        return
    if path.suffix.lower() != suffix:
        raise ValueError(f"{path} has to end in {suffix}.")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"There is no directory {path.absolute().parent} to write {path.name} into.")


def write_sheet(path: Path, title: str, scores: Mapping[str, Evaluation], count: int = 12) -> None:
    """A PNG of `count` answered pictures, not chosen by how they were answered, and then of some mistakes."""
    shown = in_turns(scores, count)
    known = set(map(id, shown))
    rule = {id(answer): result.right for result in scores.values() for answer in result.answers}
    answered = [answer for result in scores.values() for answer in result.answers if id(answer) not in known]
    wrong = [answer for answer in answered if not rule[id(answer)](answer[1], answer[0].answer)]
    mistakes = wrong[:: max(1, len(wrong) // MISTAKES)][:MISTAKES]
    total = sum(score.total for result in scores.values() for score in result.scores.values())
    right = sum(score.correct for result in scores.values() for score in result.scores.values())
    note = f"{right:,} of {total:,} answers about pictures that it never saw are right."
    if mistakes:
        note += f" The first {len(shown)} are as they came; then come some mistakes."
    cards = [AnsweredImage(a[0].images[0], a[0].text, a[1], a[0].answer, rule[id(a)]) for a in [*shown, *mistakes]]
    contact_sheet(title, note, cards, COLUMNS).save(path)


def in_turns(scores: Mapping[str, Evaluation], count: int) -> list[tuple[Question, str]]:
    """Up to `count` answers: subsets take turns, within them kinds, and each is about another picture."""
    queues = []
    for result in scores.values():
        kinds = {kind: [a for a in result.answers if a[0].kind == kind] for kind in result.scores}
        # The n-th picture with the n-th kind of question, round and round.
        names = list(kinds)
        queues.append([kinds[names[i % len(names)]][i] for i in range(min(map(len, kinds.values())))])
    turns = [answer for group in zip_longest(*queues) for answer in group if answer is not None]
    return turns[:count]
