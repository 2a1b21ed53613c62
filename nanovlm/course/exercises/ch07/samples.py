"""Chapter 07: what a sample says, which of it is kept, and what could be guessed from it with closed eyes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from nanovlm.course.judge.exercise import Case, Exercise, expect
from nanovlm.data.datasets import messages_of

# -- data.messages_of --------------------------------------------------------------------------------------------------


def _sample(*turns: tuple[str, str], **ratings: list[int | None] | None) -> dict[str, Any]:
    texts = [{"user": user, "assistant": assistant} for user, assistant in turns]
    return {"images": [], "texts": texts, **{f"{name}_ratings": given for name, given in ratings.items()}}


COLOUR, SUM, WHERE = ("What colour is the car?", "green"), ("What is 2 + 3?", "5"), ("Where is the cat?", "at the left")
COUNT = "How many wheels are there?", "4"

MESSAGES_OF = Exercise(
    id="data.messages_of",
    chapter="07",
    title="Which turns are worth learning?",
    difficulty=1,
    minutes=10,
    why="FineVision rates every turn of its conversations. Throw away too much and the pictures were downloaded for "
    "nothing; separate a question from its answer, and the model is taught to answer what nobody asked.",
    hints=(
        "A rating belongs to a turn, and a turn is a question and its answer. Decide for each turn by its number.",
        "Loop over the turns with enumerate. A turn stays unless one of the ratings that you were given a minimum for "
        "is a number below that minimum. None is no number: nobody rated this turn, so nothing speaks against it. The "
        "column can be missing, or be None as a whole: use sample.get.",
        'for number, turn in enumerate(sample["texts"]):\n'
        "    good = True\n"
        "    for name, lowest in min_ratings.items():\n"
        '        ratings = sample.get(f"{name}_ratings")\n'
        "        if ratings is not None and …: good = False\n"
        "    if good: append the question with role user, the answer with role assistant\n"
        "if there are no messages: raise ValueError",
    ),
    reference=messages_of,
    cases=lambda: [
        Case(
            _sample(COLOUR, WHERE, SUM, COUNT, visual_dependency=[4, None, 1, 5]),
            {"visual_dependency": 3},
            note="four turns, rated 4, not at all, 1 and 5",
        ),
        Case(
            _sample(SUM, COLOUR, WHERE, visual_dependency=[1, 5, 4], relevance=[5, 3, 2]),
            {"visual_dependency": 4, "relevance": 3},
            note="two ratings, and a turn that reaches both minimums exactly or better",
        ),
        Case(
            _sample(COLOUR, WHERE, relevance=[2, 1], formatting=[5, 5]),
            {"formatting": 5},
            note="a rating that is not asked for is low",
        ),
        Case(_sample(WHERE, SUM), {"relevance": 5}, note="no ratings at all, as in the_cauldron"),
        Case(
            _sample(WHERE, SUM, relevance=None, formatting=[None, 2]),
            {"relevance": 2, "formatting": 2},
            note="a column that is None as a whole",
        ),
    ],
)


@MESSAGES_OF.property("a sample of which nothing is left raises ValueError")
def _(fn) -> None:
    try:
        left = fn(_sample(SUM, SUM, visual_dependency=[1, 2]), {"visual_dependency": 3})
    except ValueError:
        return
    expect(
        False,
        f"Every turn is rated below the minimum, and it returned {left!r}. A sample without a conversation must not go "
        "on: raise ValueError, so that it is skipped and counted.",
    )


@MESSAGES_OF.property("the sample itself is left as it was")
def _(fn) -> None:
    sample = _sample(COLOUR, SUM, visual_dependency=[4, 1])
    fn(sample, {"visual_dependency": 3})
    expect(
        sample == _sample(COLOUR, SUM, visual_dependency=[4, 1]),
        "It changes the sample: in the next epoch a turn would be gone and the ratings would not fit any more.",
    )


def _filtered(sample: Mapping[str, Any], min_ratings: Mapping[str, int], keeps=None, across=all, unrated=True):
    """messages_of to build wrong versions from. keeps(rating, minimum)."""
    keeps = keeps or (lambda rating, lowest: rating >= lowest)

    def good(number: int) -> bool:
        found = [(sample.get(f"{name}_ratings"), lowest) for name, lowest in min_ratings.items()]
        verdicts = [
            unrated if ratings[number] is None else keeps(ratings[number], lowest)
            for ratings, lowest in found
            if ratings is not None
        ]
        return across(verdicts) if verdicts else True

    return [good(number) for number in range(len(sample["texts"]))]


def _messages(sample: Mapping[str, Any], keep: Sequence[bool]) -> list[dict[str, str]]:
    return [
        {"role": role, "content": turn[role]}
        for turn, kept in zip(sample["texts"], keep, strict=True)
        if kept
        for role in ("user", "assistant")
    ]


@MESSAGES_OF.mistake("All turns come through. A turn with a rating below its minimum has to go.")
def _(sample, min_ratings):
    return _messages(sample, [True] * len(sample["texts"]))


@MESSAGES_OF.mistake(
    "Turns without a rating are thrown away, as if None were 0. Nobody has rated them, which is no reason to drop them."
)
def _(sample, min_ratings):
    return _messages(sample, _filtered(sample, min_ratings, unrated=False))


@MESSAGES_OF.mistake("A rating that equals the minimum is thrown away. The minimum is the lowest value to keep: >=.")
def _(sample, min_ratings):
    return _messages(sample, _filtered(sample, min_ratings, lambda rating, lowest: rating > lowest))


@MESSAGES_OF.mistake(
    "One good rating is enough for you. Each rating is a requirement of its own: a turn has to reach all of them."
)
def _(sample, min_ratings):
    return _messages(sample, _filtered(sample, min_ratings, across=any))


@MESSAGES_OF.mistake("The comparison is the wrong way round: you keep the turns that are rated too low.")
def _(sample, min_ratings):
    return _messages(sample, _filtered(sample, min_ratings, lambda rating, lowest: rating < lowest))


@MESSAGES_OF.mistake(
    "One low turn throws the whole conversation away. The others are fine, and their picture is paid for: drop the "
    "turn, keep the sample."
)
def _(sample, min_ratings):
    keep = _filtered(sample, min_ratings)
    return _messages(sample, keep) if all(keep) else []


@MESSAGES_OF.mistake(
    "One low turn makes you refuse the whole conversation. The others are fine, and their picture is paid for: drop the "
    "turn, keep the sample."
)
def _(sample, min_ratings):
    keep = _filtered(sample, min_ratings)
    if not all(keep):
        raise ValueError
    return _messages(sample, keep)


@MESSAGES_OF.mistake("The first low turn ends the conversation for you (break). Those behind it may be fine: continue.")
def _(sample, min_ratings):
    keep = _filtered(sample, min_ratings)
    return _messages(sample, [all(keep[: i + 1]) for i in range(len(keep))])


@MESSAGES_OF.mistake(
    "The question of a low turn stays and only its answer goes. Then two questions follow each other, and the answer "
    "to the second stands behind both: a turn is a question and its answer."
)
def _(sample, min_ratings):
    keep = _filtered(sample, min_ratings)
    messages = _messages(sample, [True] * len(keep))
    return [m for i, m in enumerate(messages) if keep[i // 2] or m["role"] == "user"]


@MESSAGES_OF.mistake(
    "The answer of a low turn stays and only its question goes. The model would learn to answer what nobody asked."
)
def _(sample, min_ratings):
    keep = _filtered(sample, min_ratings)
    messages = _messages(sample, [True] * len(keep))
    return [m for i, m in enumerate(messages) if keep[i // 2] or m["role"] == "assistant"]


@MESSAGES_OF.mistake(
    "The first rating of the list decides about the whole conversation. There is one rating for each turn: take the "
    "one with the turn's number."
)
def _(sample, min_ratings):
    first = _filtered(sample, min_ratings)[0]
    return _messages(sample, [first] * len(sample["texts"]))


@MESSAGES_OF.mistake(
    "Only the first turn is used, as in nanoVLM v0.1. The others cost nothing: same picture, more to learn."
)
def _(sample, min_ratings):
    keep = _filtered(sample, min_ratings)
    return _messages(sample, [kept and i == keep.index(True) for i, kept in enumerate(keep)])


@MESSAGES_OF.mistake(
    "A rating of None is compared with a number, which raises TypeError. Ask first: rating is not None."
)
def _(sample, min_ratings):
    return _messages(
        sample,
        [
            all(
                sample[f"{n}_ratings"][i] >= lowest
                for n, lowest in min_ratings.items()
                if sample.get(f"{n}_ratings") is not None
            )
            for i in range(len(sample["texts"]))
        ],
    )


LOOKED_UP = (
    'The column of a rating is looked up with sample["…"]. the_cauldron has none: sample.get("…") gives None there.'
)


@MESSAGES_OF.mistake(LOOKED_UP)
def _(sample, min_ratings):
    for name in min_ratings:
        sample[f"{name}_ratings"]
    return _messages(sample, _filtered(sample, min_ratings))


@MESSAGES_OF.mistake(f"{LOOKED_UP} And where it is None as a whole, it has no entries.")
def _(sample, min_ratings):
    for name in min_ratings:
        sample[f"{name}_ratings"][0]
    return _messages(sample, _filtered(sample, min_ratings))


@MESSAGES_OF.mistake(
    "You delete the low turns from the sample itself, which changes it for the next epoch. Build a new list."
)
def _(sample, min_ratings):
    keep = _filtered(sample, min_ratings)
    sample["texts"][:] = [turn for turn, kept in zip(sample["texts"], keep, strict=True) if kept]
    return _messages(sample, [True] * len(sample["texts"]))


# -- data.blind_score --------------------------------------------------------------------------------------------------

Turns = Sequence[tuple[str, str]]  # question, answer


def blind_score(train: Turns, test: Turns) -> float:
    """The share of test answers that the most frequent training answer to the same question gets right; to a question
    that training never asked, the most frequent answer of all. Of equally frequent answers the earliest counts."""
    by_question: dict[str, Counter[str]] = defaultdict(Counter)
    for question, answer in train:
        by_question[question][answer] += 1
    overall = Counter(answer for _, answer in train)
    guesses = [
        by_question[q].most_common(1)[0][0] if q in by_question else overall.most_common(1)[0][0] for q, _ in test
    ]
    return sum(guess == answer for guess, (_, answer) in zip(guesses, test, strict=True)) / len(test)


BLIND_SCORE = Exercise(
    id="data.blind_score",
    chapter="07",
    title="Measure what closed eyes score",
    difficulty=1,
    minutes=10,
    why="An accuracy says nothing until you know what counting gets without the picture. In popular data sets that is "
    "often half of all answers.",
    hints=(
        "Somebody who has read all training questions and answers, and never sees a picture: what would they say?",
        "Count answers for each question separately, on the training turns only. Guess the most frequent one for each "
        "test turn. For a question that was never asked, guess the most frequent answer of all training turns.",
        "counts = {}            # question -> Counter of its answers\n"
        "overall = Counter(answer for _, answer in train)\n"
        "for question, answer in test:\n"
        "    guess = … if question in counts else overall.most_common(1)[0][0]\n"
        "    right += guess == answer\n"
        "return right / len(test)",
    ),
    reference=blind_score,
    cases=lambda: [
        Case(
            [("What colour?", "red"), ("What colour?", "red"), ("What colour?", "blue"), ("How many?", "3")],
            [("What colour?", "red"), ("What colour?", "blue"), ("How many?", "3"), ("How many?", "1")],
            note="two questions; each is asked twice in the test",
        ),
        Case(
            [("a?", "yes"), ("b?", "no"), ("b?", "no"), ("b?", "yes"), ("c?", "yes"), ("c?", "yes")],
            [("a?", "yes"), ("a?", "yes"), ("a?", "yes"), ("b?", "yes"), ("b?", "no"), ("d?", "yes"), ("d?", "no")],
            note="b? is mostly answered with no, everything else with yes; d? is new",
        ),
        Case(
            [("x?", "3"), ("x?", "2"), ("x?", "2"), ("x?", "1"), ("y?", "4")],
            [("x?", "1"), ("x?", "1"), ("x?", "2"), ("y?", "4"), ("y?", "4"), ("y?", "4"), ("y?", "4")],
            note="what is frequent in training is rare in the test",
        ),
        Case([("q?", "b"), ("q?", "a")], [("q?", "b"), ("q?", "b"), ("q?", "a")], note="two answers as frequent"),
    ],
)


@BLIND_SCORE.property("a question with one answer is always guessed right")
def _(fn) -> None:
    turns = [("How many eyes?", "2")] * 5
    expect(fn(turns, turns) == 1.0, "Every answer in training and test is the same, and the score is not 1.")


def _scored(guess):
    """Decorator's helper: a wrong version from guess(train, test, question) -> answer."""

    def score(train: Turns, test: Turns) -> float:
        return sum(guess(train, test, q) == a for q, a in test) / len(test)

    return score


def _most(answers: Sequence[str]) -> str | None:
    return Counter(answers).most_common(1)[0][0] if answers else None


@BLIND_SCORE.mistake(
    "You guess one answer for every question, the most frequent of all. The question can be read with closed eyes: "
    "count for each question separately."
)
def _(train, test):
    return _scored(lambda tr, te, q: _most([a for _, a in tr]))(train, test)


@BLIND_SCORE.mistake(
    "The counts are of the test turns, so the guesser has seen the answers that it is asked for. Count in training."
)
def _(train, test):
    return _scored(lambda tr, te, q: _most([a for p, a in te if p == q]))(train, test)


@BLIND_SCORE.mistake(
    "A question that training never asked counts as wrong. A guesser would still say something: the most frequent "
    "answer of all."
)
def _(train, test):
    return _scored(lambda tr, te, q: _most([a for p, a in tr if p == q]))(train, test)


@BLIND_SCORE.mistake(
    "Questions that training never asked are left out of the count. They were asked: divide by all test turns."
)
def _(train, test):
    asked = [(q, a) for q, a in test if any(q == p for p, _ in train)]
    return _scored(lambda tr, te, q: _most([a for p, a in tr if p == q]))(train, asked)


@BLIND_SCORE.mistake(
    "You average over the questions, so one that is asked once counts as much as one that is asked a hundred times. "
    "Divide by the number of test turns."
)
def _(train, test):
    shares = []
    for question in dict.fromkeys(q for q, _ in test):
        answers = [a for q, a in test if q == question]
        guess = _most([a for q, a in train if q == question]) or _most([a for _, a in train])
        shares.append(sum(a == guess for a in answers) / len(answers))
    return sum(shares) / len(shares)


@BLIND_SCORE.mistake("Of equally frequent answers you take the last. Take the one that came first in training.")
def _(train, test):
    def last(answers):
        counts = Counter(answers)
        return max(reversed(list(counts)), key=counts.__getitem__) if counts else None

    return _scored(lambda tr, te, q: last([a for p, a in tr if p == q]) or last([a for _, a in tr]))(train, test)


@BLIND_SCORE.mistake("You return how many are right. A score is a share: divide by the number of test turns.")
def _(train, test):
    return blind_score(train, test) * len(test)


@BLIND_SCORE.mistake("This is the score on the training turns. Count there, and score on the test turns.")
def _(train, test):
    return blind_score(train, train)


@BLIND_SCORE.mistake(
    "The first answer that training gives to a question is your guess, not the most frequent one: count them."
)
def _(train, test):
    return _scored(lambda tr, te, q: next((a for p, a in tr if p == q), _most([a for _, a in tr])))(train, test)


@BLIND_SCORE.mistake("The last answer that training gives to a question is your guess: a dict keeps one. Count them.")
def _(train, test):
    known = dict(train)
    return _scored(lambda tr, te, q: known.get(q, _most([a for _, a in tr])))(train, test)
