"""Chapter 00: write the test that tells a model that looks from models that do so only in part."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image

from nanovlm.course.exercises import common
from nanovlm.course.exercises.ch00.guessing import COLOUR, COLOURS, Ask, guesses, picture, sees
from nanovlm.course.judge.exercise import Case, Exercise

Test = Callable[[Ask, Callable[[str], Image.Image]], None]


def test_looks(ask: Ask, picture: Callable[[str], Image.Image]) -> None:
    """Every colour, with the question for its name and one question with yes or no for each colour."""
    for colour in COLOURS:
        assert ask(picture(colour), COLOUR) == colour
        for other in COLOURS:
            assert ask(picture(colour), f"Is it {other}?") == ("yes" if other == colour else "no")


test_looks.__test__ = False  # type: ignore[attr-defined]  # no test of ours: pytest would call it


def _asks_for_a_name(question: str) -> bool:
    return not question.startswith("Is it ")


def _always(word: str) -> Ask:
    return lambda image, question: sees(image, question) if _asks_for_a_name(question) else word


def _sees_no_green(image: Image.Image | None, question: str) -> str:
    same = image is not None and image.getpixel((0, 0)) == COLOURS["green"]
    return sees(picture("blue") if same else image, question)


def _swaps_red_and_blue(image: Image.Image | None, question: str) -> str:
    return sees(image and Image.merge("RGB", image.split()[::-1]), question)


def _hears_red(image: Image.Image | None, question: str) -> str:
    return sees(image, question if _asks_for_a_name(question) else "Is it red?")


def _knows_no_names(image: Image.Image | None, question: str) -> str:
    return "red" if _asks_for_a_name(question) else sees(image, question)


PLANTED: dict[str, Ask] = {
    "a model that ignores the picture": guesses,
    'one that answers every question with yes or no by "yes"': _always("yes"),
    'one that answers every question with yes or no by "no"': _always("no"),
    "one that takes green for blue": _sees_no_green,
    "one that takes red for blue, and blue for red": _swaps_red_and_blue,
    'one that hears "Is it red?" whatever colour you name': _hears_red,
    'one that calls everything "red" when it is asked for the name': _knows_no_names,
}


def caught(test: Test) -> int:
    """How many of these models make the learner's test fail, after it has passed with one that looks."""
    return common.caught(lambda ask: test(ask, picture), sees, PLANTED, "model")


TEST_LOOKS = Exercise(
    id="start.test_looks",
    chapter="00",
    title="Write the test: does this model look?",
    difficulty=2,
    minutes=10,
    why="A demonstration shows a model where it is right. A test is written to find the model that only seems to look, "
    "and it is worth as much as the wrong models that it catches.",
    hints=(
        "Think of a model that would pass your test without looking. Which further question would give it away?",
        "Go through all three colours. For the picture of each, ask for the name, and ask with yes or no about every "
        "one of the three, so that sometimes yes and sometimes no is right.",
        'for colour in ("red", "green", "blue"):\n'
        '    assert ask(picture(colour), "What colour is it?") == …\n'
        "    for other in the same three colours:\n"
        '        assert ask(picture(colour), f"Is it {other}?") == …',
    ),
    reference=test_looks,
    cases=lambda: [Case(note=f"your test, on a model that looks and on {len(PLANTED)} that do not look properly")],
    call=caught,
)


@TEST_LOOKS.mistake(
    "Your test asks about a single picture. A model that always gives this one answer passes: take pictures whose right "
    "answers differ."
)
def _(ask, picture):
    assert ask(picture("red"), COLOUR) == "red"


@TEST_LOOKS.mistake(
    "Your test asks whether the answer changes with the picture, and not whether it is right. Compare each answer with the "
    "one that it should be."
)
def _(ask, picture):
    assert ask(picture("red"), COLOUR) != ask(picture("blue"), COLOUR)


@TEST_LOOKS.mistake(
    "Your test never asks a question with yes or no, so a model that always says the same there gets through."
)
def _(ask, picture):
    for colour in COLOURS:
        assert ask(picture(colour), COLOUR) == colour


@TEST_LOOKS.mistake(
    'Your test only asks questions with yes or no. Ask "What colour is it?" as well: another kind of question is another '
    "skill."
)
def _(ask, picture):
    for colour in COLOURS:
        for other in COLOURS:
            assert ask(picture(colour), f"Is it {other}?") == ("yes" if other == colour else "no")


@TEST_LOOKS.mistake("Your test leaves green out, and a model that cannot see it gets through. Take all three colours.")
def _(ask, picture):
    for colour in ("red", "blue"):
        assert ask(picture(colour), COLOUR) == colour
        for other in ("red", "blue"):
            assert ask(picture(colour), f"Is it {other}?") == ("yes" if other == colour else "no")


@TEST_LOOKS.mistake(
    'The right answer to all your questions with yes or no is "yes". Ask about colours that are not there, too.'
)
def _(ask, picture):
    for colour in COLOURS:
        assert ask(picture(colour), COLOUR) == colour
        assert ask(picture(colour), f"Is it {colour}?") == "yes"


@TEST_LOOKS.mistake(
    'Your test only asks questions with yes or no, and the right answer to all of them is "yes". Ask about colours that are '
    "not there, too, and for the name."
)
def _(ask, picture):
    for colour in COLOURS:
        assert ask(picture(colour), f"Is it {colour}?") == "yes"


@TEST_LOOKS.mistake(
    'The right answer to all your questions with yes or no is "no". Ask about the colour that is there, too.'
)
def _(ask, picture):
    for colour in COLOURS:
        assert ask(picture(colour), COLOUR) == colour
        for other in set(COLOURS) - {colour}:
            assert ask(picture(colour), f"Is it {other}?") == "no"


@TEST_LOOKS.mistake(
    "All your questions with yes or no name the same colour, so a model that does not listen to the name gets through."
)
def _(ask, picture):
    for colour in COLOURS:
        assert ask(picture(colour), COLOUR) == colour
        assert ask(picture(colour), "Is it red?") == ("yes" if colour == "red" else "no")


@TEST_LOOKS.mistake(
    "Your test passes with every model. No assert in it can fail: compare what ask returns with the right answer."
)
def _(ask, picture):
    for colour in COLOURS:
        ask(picture(colour), COLOUR)


@TEST_LOOKS.mistake("Your test says True or False. pytest, and everybody else, waits for an AssertionError.")
def _(ask, picture):
    return True


@TEST_LOOKS.mistake(
    "Your test asks for something that a model that looks does not do. The answers are lower-case words: a colour, yes or "
    "no."
)
def _(ask, picture):
    raise AssertionError
