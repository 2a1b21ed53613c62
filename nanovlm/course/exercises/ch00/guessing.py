"""Chapter 00: a model against itself with the wrong pictures, and against the best guesser."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from PIL import Image

from nanovlm.course.exercises.ch00.score import share_right
from nanovlm.course.judge.exercise import Case, Exercise, expect

# -- start.looks -------------------------------------------------------------------------------------------------------

Ask = Callable[[Image.Image | None, str], str]
Sample = tuple[Ask, list[Image.Image], list[str], list[str]]


def looks(ask: Ask, images: list[Image.Image], questions: list[str], expected: list[str]) -> tuple[float, float]:
    """Question by question, with its own picture and with the next one."""
    own, blind = [], []
    for i in range(len(questions)):
        own.append(ask(images[i], questions[i]))
        blind.append(ask(images[(i + 1) % len(images)], questions[i]))
    return share_right(own, expected), share_right(blind, expected)


COLOURS = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255)}


def picture(colour: str) -> Image.Image:
    """A picture of one colour. Raises: ValueError where it is none of the three."""
    if colour not in COLOURS:
        raise ValueError(f"picture makes {', '.join(COLOURS)}, and not {colour!r}")
    return Image.new("RGB", (2, 2), COLOURS[colour])


def sees(image: Image.Image | None, question: str) -> str:
    """Names the colour, and answers "Is it red?"; says nothing where there is no picture, or no such colour."""
    shown = None if image is None else image.getpixel((0, 0))
    colour = next((name for name, value in COLOURS.items() if value == shown), "")
    if colour and question.startswith("Is it "):
        return "yes" if colour in question else "no"
    return colour


def guesses(image: Image.Image | None, question: str) -> str:
    """Ignores the picture."""
    return "no" if question.startswith("Is it ") else "red"


COLOUR, RED, BLUE = "What colour is it?", "Is it red?", "Is it blue?"
LOOKS = Exercise(
    id="start.looks",
    chapter="00",
    title="Measure it: does the model look?",
    difficulty=2,
    minutes=8,
    why="One score cannot tell a model that sees from one that guesses well. Two scores can, provided that nothing but "
    "the picture differs between them.",
    hints=(
        "Each question is asked twice. What has to be different the second time, and what must stay the same?",
        "Make a second list of pictures that starts with the second one and ends with the first. Then score the answers "
        "to the same questions with both lists, against the same expected answers.",
        "others = …\n"
        "own = [ask(image, question) for image, question in zip(images, questions)]\n"
        "blind = the same with others\n"
        "return share(own, expected), share(blind, expected)",
    ),
    reference=looks,
    cases=lambda: [
        Case(
            sees,
            [picture(colour) for colour in ("red", "red", "green", "blue")],
            [COLOUR, RED, BLUE, COLOUR],
            ["red", "yes", "no", "blue"],
            note="a model that sees, and four questions",
        ),
        Case(
            guesses,
            [picture(colour) for colour in ("blue", "red", "green", "red", "blue")],
            [COLOUR, COLOUR, RED, RED, RED],
            ["blue", "red", "no", "yes", "no"],
            note="a model that ignores the picture, and five questions",
        ),
        Case(
            sees,
            [picture(colour) for colour in ("red", "green", "blue", "red", "red")],
            [COLOUR, BLUE, BLUE, RED, COLOUR],
            ["red", "no", "yes", "yes", "green"],
            note="a model that sees, and five questions, of which the last has a wrong expected answer",
        ),
    ],
    axes={"own": "", "blind": ""},
)


@LOOKS.property("a model that ignores the picture scores the same twice")
def _(measure) -> None:
    images = [picture(colour) for colour in ("red", "blue", "green")]
    own, blind = measure(guesses, images, [COLOUR, RED, COLOUR], ["red", "no", "green"])
    expect(own == blind, f"The model ignores the picture, and yet you measure {own:.3g} and {blind:.3g}.")


@LOOKS.property("the list of pictures stays as it was")
def _(measure) -> None:
    images = [picture(colour) for colour in ("red", "blue", "green")]
    given = list(images)
    measure(sees, given, [COLOUR] * 3, ["red", "red", "green"])
    same = len(given) == len(images) and all(one is other for one, other in zip(given, images, strict=True))
    expect(same, "The list of pictures that was handed in is changed in place. Make a second list.")


def _rate(ask: Ask, images: list, questions: list, expected: list) -> float:
    return sum(map(lambda i, q, e: ask(i, q) == e, images, questions, expected)) / len(expected)


def _next(items: list) -> list:
    return [*items[1:], items[0]]


@LOOKS.mistake(
    "Each question meets its own picture both times, so nothing was taken away from the model. Give it the picture of "
    "the next question the second time."
)
def _(*sample):
    return _rate(*sample), _rate(*sample)


@LOOKS.mistake(
    "Each question meets its own picture both times; only the expected answers have moved. Move the pictures, and "
    "nothing else."
)
def _(ask, images, questions, expected):
    return _rate(ask, images, questions, expected), _rate(ask, images, questions, _next(expected))


@LOOKS.mistake(
    "The two numbers have changed places: first the share with its own picture, then the one with the wrong picture."
)
def _(*sample):
    return looks(*sample)[::-1]


@LOOKS.mistake(
    "You take the picture of the question before. Any wrong picture would do, but here it should be that of the next one."
)
def _(ask, images, questions, expected):
    before = images[-1:] + images[:-1]
    return _rate(ask, images, questions, expected), _rate(ask, before, questions, expected)


@LOOKS.mistake(
    "The list of pictures is turned round. In a list of odd length the middle one then stays where it is, with its own "
    "question."
)
def _(ask, images, questions, expected):
    return _rate(ask, images, questions, expected), _rate(ask, images[::-1], questions, expected)


@LOOKS.mistake(
    "All questions meet the same picture, the first one, which belongs to one of them. Give each the picture of the next."
)
def _(ask, images, questions, expected):
    return _rate(ask, images, questions, expected), _rate(ask, images[:1] * len(images), questions, expected)


@LOOKS.mistake(
    "The questions have moved together with the pictures, so each picture still meets its own question, and is compared "
    "with another one's answer. Move the pictures alone."
)
def _(ask, images, questions, expected):
    return _rate(ask, images, questions, expected), _rate(ask, _next(images), _next(questions), expected)


@LOOKS.mistake(
    "The second time you compare with the answer that belongs to the other picture's question. What is right stays the "
    "same; only the picture is wrong."
)
def _(ask, images, questions, expected):
    return _rate(ask, images, questions, expected), _rate(ask, _next(images), questions, _next(expected))


@LOOKS.mistake("You leave the last question out of the second score. The next picture after the last is the first one.")
def _(ask, images, questions, expected):
    return _rate(ask, images, questions, expected), _rate(ask, images[1:], questions[:-1], expected[:-1])


@LOOKS.mistake(
    "The last question counts as wrong in the second score, because no picture follows its own. Give it the first one."
)
def _(ask, images, questions, expected):
    blind = _rate(ask, images[1:], questions[:-1], expected[:-1]) * (len(images) - 1) / len(images)
    return _rate(ask, images, questions, expected), blind


@LOOKS.mistake(
    "No picture is not a wrong picture: the model was never trained without one, so its score may fall for that reason "
    "alone. Give it the picture of the next question."
)
def _(ask, images, questions, expected):
    return _rate(ask, images, questions, expected), _rate(ask, [None] * len(images), questions, expected)


@LOOKS.mistake(
    "The second number says how many answers stay the same. Compare them with the expected ones instead, as for the first."
)
def _(ask, images, questions, expected):
    said = list(map(ask, images, questions))
    return _rate(ask, images, questions, expected), _rate(ask, _next(images), questions, said)


@LOOKS.mistake("The second number is the difference of the two scores. Return the second score itself.")
def _(*sample):
    own, blind = looks(*sample)
    return own, own - blind


@LOOKS.mistake("Return two numbers, the two scores. A difference hides whether both are high or both are low.")
def _(*sample):
    own, blind = looks(*sample)
    return own - blind


@LOOKS.mistake("These are counts. Divide both by the number of questions.")
def _(ask, images, questions, expected):
    own, blind = looks(ask, images, questions, expected)
    return own * len(images), blind * len(images)


@LOOKS.mistake("These are per cent. A share lies between 0 and 1.")
def _(*sample):
    own, blind = looks(*sample)
    return 100 * own, 100 * blind


# -- start.best_guess --------------------------------------------------------------------------------------------------


def best_guess(kinds: list[str], expected: list[str]) -> dict[str, float]:
    """Kind by kind, the share of its most frequent answer."""
    counts = {kind: Counter(e for k, e in zip(kinds, expected, strict=True) if k == kind) for kind in kinds}
    return {kind: max(count.values()) / sum(count.values()) for kind, count in counts.items()}


GUESS = Exercise(
    id="start.best_guess",
    chapter="00",
    title="Mend it: a guesser who is too bad",
    difficulty=2,
    minutes=8,
    why="A score means something only beside what guessing gives. If the guesser is too bad, every model looks as if it "
    "could see.",
    hints=(
        "Which questions does the code look at when it chooses the guess, and which ones when it counts?",
        "The guesser hears the question, so there is one favourite answer for each kind. Choose it among the answers of "
        "that kind, and divide by how many questions of that kind there are.",
        "for each kind:\n"
        "    own = the expected answers of the questions of this kind\n"
        "    favourite = max(set(own), key=own.count)\n"
        "    shares[kind] = …",
    ),
    reference=best_guess,
    cases=lambda: [
        Case(
            ["colour", "exists", "exists", "colour", "exists", "colour", "exists"],
            ["blue", "yes", "no", "red", "yes", "blue", "yes"],
            note="three questions about colours and four with yes or no",
        ),
        Case(
            ["left", "right", "left", "right", "where", "right", "left", "right", "left", "right"],
            ["red", "red", "blue", "blue", "top", "blue", "red", "red", "red", "blue"],
            note="the colours of the left and of the right shape, and one question about a place",
        ),
        Case(["a"] * 7, ["x", "z", "y", "y", "x", "y", "z"], note="a single kind with three different answers"),
    ],
)


@GUESS.property("the order of the questions does not matter")
def _(guess) -> None:
    kinds, expected = ["a", "b", "a", "b", "a"], ["x", "y", "z", "y", "z"]
    expect(
        guess(kinds, expected) == guess(kinds[::-1], expected[::-1]),
        "The same questions in another order give other shares.",
    )


def _of_kinds(kinds: list[str], expected: list[str]) -> dict[str, list[str]]:
    return {kind: [e for k, e in zip(kinds, expected, strict=True) if k == kind] for kind in kinds}


for _sentence, _share in {
    "This is the code as it was: one guess for all questions, and one share, whichever kind is asked.": (
        lambda own, every: max(map(every.count, every)) / len(every)
    ),
    "There is one favourite for all kinds, so the guesser answers a question about colours with yes. Choose it among the "
    "answers of each kind.": lambda own, every: own.count(max(set(every), key=every.count)) / len(own),
    "You divide by the number of all questions. Divide by how many there are of this kind.": (
        lambda own, every: max(map(own.count, own)) / len(every)
    ),
    "One divided by the number of different answers is right only if all of them are equally frequent. Take the share of "
    "the most frequent one.": lambda own, every: 1 / len(set(own)),
    "One divided by the number of different answers is right only if all of them are equally frequent, and here the "
    "answers of all kinds are counted together. Take the share of the most frequent one of each kind.": (
        lambda own, every: 1 / len(set(every))
    ),
    "The guesser takes the rarest answer. The best one takes the most frequent.": (
        lambda own, every: min(map(own.count, own)) / len(own)
    ),
    "The guesser repeats the first answer of each kind. The best one takes the most frequent.": (
        lambda own, every: own.count(own[0]) / len(own)
    ),
    "max without a key takes the last answer in the alphabet. The best guesser takes the most frequent: key=own.count.": (
        lambda own, every: own.count(max(own)) / len(own)
    ),
    "This is how many are right. Divide by how many questions of this kind there are.": (
        lambda own, every: max(map(own.count, own))
    ),
    "These are per cent. A share lies between 0 and 1.": lambda own, every: 100 * max(map(own.count, own)) / len(own),
    "These are the favourite answers themselves. Return the share of the questions for which each is right.": (
        lambda own, every: max(set(own), key=own.count)
    ),
    "This is how often each kind is asked. Count the most frequent answer among the questions of the kind.": (
        lambda own, every: len(own) / len(every)
    ),
    "You count the favourite answer among the questions of other kinds as well, and divide by all. Count and divide "
    "inside the kind.": lambda own, every: every.count(max(set(own), key=own.count)) / len(every),
    "You count the favourite answer among the questions of other kinds as well. Count inside the kind.": (
        lambda own, every: every.count(max(set(own), key=own.count)) / len(own)
    ),
    "This guesser gives each answer as often as it occurs. One who always gives the most frequent answer is right more "
    "often.": lambda own, every: sum((own.count(a) / len(own)) ** 2 for a in set(own)),
}.items():

    @GUESS.mistake(_sentence)
    def _(kinds, expected, share=_share):
        return {kind: share(own, list(expected)) for kind, own in _of_kinds(kinds, expected).items()}
