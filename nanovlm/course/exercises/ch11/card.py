"""Chapter 11: the numbers that a model card owes its readers."""

from __future__ import annotations

import math
from typing import Any

from nanovlm.course.judge.exercise import Case, Exercise, expect
from nanovlm.evaluation.scores import interval

# -- full.model_card_numbers -------------------------------------------------------------------------------------------


def card_numbers(
    scores: dict[str, tuple[int, int]], blind: dict[str, tuple[int, int]], chosen_on: str, scored_on: str
) -> dict[str, tuple[float, float, float, float]]:
    if chosen_on == scored_on:
        raise ValueError(
            f"The checkpoint was chosen on {chosen_on}, so its score there is too high: use another split."
        )
    if missing := scores.keys() - blind.keys():
        raise ValueError(f"There is no blind score for {', '.join(sorted(missing))}.")
    numbers = {}
    for kind, (right, total) in scores.items():
        low, high = interval(right, total)
        numbers[kind] = (right / total, low, high, blind[kind][0] / blind[kind][1])
    return numbers


def run_card(numbers, scores, blind, chosen_on: str, scored_on: str) -> Any:
    try:
        return numbers(scores, blind, chosen_on, scored_on)
    except ValueError:
        refused = chosen_on == scored_on or bool(scores.keys() - blind.keys())
        if not refused:
            raise
        return "refused"


CARD = Exercise(
    id="full.model_card_numbers",
    chapter="11",
    title="The numbers of a model card",
    difficulty=2,
    minutes=12,
    why="A score without an interval cannot be compared, one without a blind baseline says nothing about seeing, and one "
    "on the split that chose the checkpoint is too high by construction.",
    hints=(
        "Which two situations make every number on the card worthless? Those are refused, before anything is computed.",
        "ValueError where chosen_on is scored_on, and where a kind has no blind score. Then for each kind: right / total, "
        "the two ends of Wilson's interval (chapter 10), and the blind share, which has a total of its own.",
        "centre = (share + z * z / (2 * n)) / (1 + z * z / n)\n"
        "half = z / (1 + z * z / n) * math.sqrt(…)\n"
        "numbers[kind] = (share, centre - half, centre + half, blind_right / blind_total)",
    ),
    reference=card_numbers,
    cases=lambda: [
        Case({"count": (45, 50)}, {"count": (30, 60)}, "validation", "test", note="45 of 50 right, blind 30 of 60"),
        Case(
            {"where": (200, 200), "exists": (3, 8)},
            {"where": (50, 200), "exists": (4, 8)},
            "validation",
            "test",
            note="everything right, and very few questions",
        ),
        Case({"count": (45, 50)}, {"count": (30, 60)}, "test", "test", note="a checkpoint chosen on the test split"),
        Case({"count": (9, 10), "colour": (5, 10)}, {"count": (3, 10)}, "validation", "test", note="no blind score"),
    ],
    call=run_card,
)


@CARD.property("every interval lies within 0 and 1 and holds its share")
def _(numbers) -> None:
    kinds = {"none": (0, 20), "one": (1, 20), "all": (20, 20)}
    for kind, row in numbers(kinds, kinds, "validation", "test").items():
        share, low, high, _ = row
        expect(-1e-9 <= low <= share + 1e-9 and share - 1e-9 <= high <= 1 + 1e-9, f"{kind}: {low:.3f} to {high:.3f}.")


def _numbers(
    z: float = 1.96,
    wald: bool = False,
    scale: float = 1.0,
    blind_total: bool = True,
    difference: bool = False,
    selection: bool = True,
    blind_needed: bool = True,
):
    def numbers(scores, blind, chosen_on, scored_on):
        if selection and chosen_on == scored_on:
            raise ValueError(chosen_on)
        if blind_needed and scores.keys() - blind.keys():
            raise ValueError("no blind score")
        out = {}
        for kind, (right, total) in scores.items():
            share = right / total
            half = z * math.sqrt(share * (1 - share) / total)
            low, high = (share - half, share + half) if wald else interval(right, total, z)
            dark, of = blind.get(kind, (0, 1))
            seen = dark / (of if blind_total else total)
            out[kind] = tuple(scale * v for v in (share, low, high, share - seen if difference else seen))
        return out

    return numbers


CARD.mistake(
    "The interval is share ± 1.96 standard errors (Wald), which has no width at 200 of 200. Wilson's stays honest there."
)(_numbers(wald=True))
CARD.mistake("The interval is one standard error wide on each side: for 95 % z is 1.96.")(_numbers(z=1.0))
CARD.mistake("These are percentages. Give shares between 0 and 1, and let the table format them.")(_numbers(scale=100))
CARD.mistake("The blind score is divided by the number of questions of the other score: it has a total of its own.")(
    _numbers(blind_total=False)
)
CARD.mistake("The last number is the distance to the blind score. Give the blind score itself: readers subtract.")(
    _numbers(difference=True)
)
CARD.mistake(
    "It accepts a score on the split that chose the checkpoint. Of many noisy looks the best was kept, so raise "
    "ValueError."
)(_numbers(selection=False))
CARD.mistake("A kind without a blind score counts as 0 blind: raise ValueError, because 0 is a claim.")(
    _numbers(blind_needed=False)
)
CARD.mistake("Neither case is refused: chosen_on equal to scored_on, and a kind without a blind score.")(
    _numbers(selection=False, blind_needed=False)
)
