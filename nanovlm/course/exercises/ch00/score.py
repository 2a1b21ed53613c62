"""Chapter 00: how checks work, on the first thing that one needs: a score."""

from __future__ import annotations

from nanovlm.course.judge.exercise import Case, Exercise, expect


def share_right(answers: list[str], expected: list[str]) -> float:
    """The share of answers that are, letter for letter, the expected ones; 0.0 if there are none."""
    right = 0
    for i in range(len(answers)):
        if answers[i] == expected[i]:
            right += 1
    return right / len(answers) if answers else 0.0


SCORE = Exercise(
    id="start.score",
    chapter="00",
    title="How many are right?",
    difficulty=1,
    minutes=5,
    why="Every claim about a model rests on a number like this one. If you count too generously, a model that sees "
    "nothing looks capable.",
    hints=(
        "The two lists belong together, so go through both at the same time: zip does that.",
        "Count the pairs whose two texts are equal, then divide by how many pairs there are. Look after the empty list "
        "before you divide.",
        "if there are no answers: return 0.0\nright = how many pairs (a, e) of zip(answers, expected) have a == e\n"
        "return …",
    ),
    reference=share_right,
    cases=lambda: [
        Case(
            ["top left", "blue", "4", "yes"],
            ["top left", "red", "4", "yes"],
            note="four answers, of which the second is wrong",
        ),
        Case(
            ["14", "top left corner", "red", "Yes", "blue star"],
            ["4", "top left", "red", "yes", "blue"],
            note="answers that hold the right one, or nearly are it, and are not it",
        ),
        Case(["", "left", "yes"], ["no", "top left", "yes"], note="an empty answer, and half of one"),
        Case(["yes", "no"], ["no", "yes"], note="the right answers, to each other's questions"),
        Case(["yes", "no", "yes"], ["yes", "yes", "yes"], note="three questions with the same right answer"),
        Case(["red"], ["red"], note="one answer, and it is right"),
        Case([], [], note="no questions at all, which is 0.0"),
    ],
)


@SCORE.property("all right is 1")
def _(score) -> None:
    expect(score(["a", "b", "c"], ["a", "b", "c"]) == 1, "Three right answers out of three should score 1.")


@SCORE.property("the order of the questions does not matter")
def _(score) -> None:
    pairs = [("a", "a"), ("b", "x"), ("c", "c"), ("d", "y"), ("e", "z")]
    forwards, backwards = (score([a for a, _ in p], [e for _, e in p]) for p in (pairs, pairs[::-1]))
    expect(forwards == backwards, "The same questions in another order give another score.")


def _pairs(answers, expected):
    return list(zip(answers, expected, strict=True))


def _share(right, answers):
    return sum(right) / len(answers) if answers else 0.0


@SCORE.mistake("This is how many are right. Divide by how many there are: a count of 30 says nothing without its 40.")
def _(answers, expected):
    return sum(a == e for a, e in _pairs(answers, expected))


@SCORE.mistake("This is per cent. A share lies between 0 and 1; the % sign belongs to the printing.")
def _(answers, expected):
    return 100 * _share([a == e for a, e in _pairs(answers, expected)], answers)


@SCORE.mistake("This is the share of wrong answers: turn the comparison round.")
def _(answers, expected):
    return _share([a != e for a, e in _pairs(answers, expected)], answers)


@SCORE.mistake(
    'You look for the right answer inside of what was said. Then "14" is right where 4 was asked for, and a model that '
    "recites every colour knows them all. Right means equal."
)
def _(answers, expected):
    return _share([e in a for a, e in _pairs(answers, expected)], answers)


@SCORE.mistake(
    "You look for what was said inside of the right answer. Then an empty answer is always right. Right means equal."
)
def _(answers, expected):
    return _share([a in e for a, e in _pairs(answers, expected)], answers)


@SCORE.mistake(
    "You look for an answer anywhere in the list of expected ones. Each answer has one expected answer: its own."
)
def _(answers, expected):
    return _share([a in expected for a in answers], answers)


@SCORE.mistake('You take "Yes" for "yes". Here right means equal, letter for letter.')
def _(answers, expected):
    return _share([a.lower() == e.lower() for a, e in _pairs(answers, expected)], answers)


@SCORE.mistake(
    "Every score but a perfect one is 0, so this is all or nothing: either // throws the fraction away, or the two lists "
    "are compared as wholes. Compare pair by pair, and divide with /."
)
def _(answers, expected):
    return sum(a == e for a, e in _pairs(answers, expected)) // len(answers) if answers else 0


@SCORE.mistake("You divide by the number of answers, and one of the examples has none: return 0.0 for it first.")
def _(answers, expected):
    return sum(a == e for a, e in _pairs(answers, expected)) / len(answers)


@SCORE.mistake(
    'You look only at how an answer begins. Then "blue star" is right where "blue" was asked for. Right means equal.'
)
def _(answers, expected):
    return _share([a.startswith(e) for a, e in _pairs(answers, expected)], answers)


@SCORE.mistake(
    "You compare the two lists as sets, which forget whose answer each one is and how often it was given. Compare each "
    "answer with the expected one at the same place."
)
def _(answers, expected):
    return len(set(answers) & set(expected)) / len(answers) if answers else 0.0


@SCORE.mistake(
    "You sort the lists before you compare them, so that answers meet the questions of others. Keep the order."
)
def _(answers, expected):
    return _share([a == e for a, e in _pairs(sorted(answers), sorted(expected))], answers)


@SCORE.mistake("The score of no answers at all should be 0.0. With no answers, yours is 1, as if all had been right.")
def _(answers, expected):
    return _share([a == e for a, e in _pairs(answers, expected)], answers) if answers else 1.0


@SCORE.mistake("The score of no answers at all should be 0.0; yours is nan, which spoils every mean that it enters.")
def _(answers, expected):
    return _share([a == e for a, e in _pairs(answers, expected)], answers) if answers else float("nan")


@SCORE.mistake("With no answers nothing is returned, so the result is None. Return 0.0 there.")
def _(answers, expected):
    return _share([a == e for a, e in _pairs(answers, expected)], answers) if answers else None


@SCORE.mistake("Only the first pair counts: the return stands inside the loop. Move it to the left, behind the loop.")
def _(answers, expected):
    return float(answers[0] == expected[0]) / len(answers) if answers else 0.0


@SCORE.mistake("The last pair is left out: range(len(answers)) already ends before len(answers), so take nothing off.")
def _(answers, expected):
    return _share([a == e for a, e in _pairs(answers, expected)[:-1]], answers)


@SCORE.mistake("You divide by how many different answers there are. Two questions with the same answer are still two.")
def _(answers, expected):
    return sum(a == e for a, e in _pairs(answers, expected)) / max(1, len(set(expected)))


@SCORE.mistake("You leave the questions with an empty answer out. A model that says nothing has not answered rightly.")
def _(answers, expected):
    pairs = [(a, e) for a, e in _pairs(answers, expected) if a]
    return sum(a == e for a, e in pairs) / max(1, len(pairs))
