"""Chapter 00: write the test that tells a model that looks from models that do so only in part."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image

from nanovlm.course.exercises import common
from nanovlm.course.exercises.ch00.guessing import COLOUR, COLOURS, Ask, guesses, picture, sees
from nanovlm.course.judge.exercise import Case, Exercise

Test = Callable[[Ask, Callable[[str], Image.Image]], None]


def test_looks(ask: Ask, picture: Callable[[str], Image.Image]) -> None:
    """Every colour, with the question for its name and one yes-or-no question for each colour."""
    for colour in COLOURS:
        assert ask(picture(colour), COLOUR) == colour
        for other in COLOURS:
            assert ask(picture(colour), f"Is it {other}?") == ("yes" if other == colour else "no")


test_looks.__test__ = False  # type: ignore[attr-defined]  # no test of ours: pytest would call it


def _asks_for_a_name(question: str) -> bool:
    return not question.startswith("Is it ")


def _always(word: str) -> Ask:
    return lambda image, question: sees(image, question) if _asks_for_a_name(question) else word


def _takes(colour: str, other: str) -> Ask:
    return lambda image, question: sees(picture(other) if sees(image, COLOUR) == colour else image, question)


def _hears_red(image: Image.Image | None, question: str) -> str:
    return sees(image, question if _asks_for_a_name(question) else "Is it red?")


def _knows_no_names(image: Image.Image | None, question: str) -> str:
    return "red" if _asks_for_a_name(question) else sees(image, question)


def _mixes_up_names(image: Image.Image | None, question: str) -> str:
    answer = sees(image, question)
    return {"red": "blue", "blue": "red"}.get(answer, answer)


PLANTED: dict[str, Ask] = {
    "a model that ignores the picture": guesses,
    'one that answers every yes-or-no question with "yes"': _always("yes"),
    'one that answers every yes-or-no question with "no"': _always("no"),
    "one that takes red for green": _takes("red", "green"),
    "one that takes green for blue": _takes("green", "blue"),
    "one that takes blue for red": _takes("blue", "red"),
    'one that hears "Is it red?" whatever colour you name': _hears_red,
    'one that says "red" whenever it is asked for the name': _knows_no_names,
    'one that sees right, and swaps the names "red" and "blue"': _mixes_up_names,
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
        "Go through all three colours. For the picture of each, ask for the name, and ask a yes-or-no question about "
        "each of the three, so that sometimes yes and sometimes no is right.",
        'for colour in ("red", "green", "blue"):\n'
        '    assert ask(picture(colour), "What colour is it?") == …\n'
        "    for other in the same three colours:\n"
        '        assert ask(picture(colour), f"Is it {other}?") == …',
    ),
    reference=test_looks,
    cases=lambda: [Case(note=f"your test, on a model that looks and on {len(PLANTED)} that do not look properly")],
    call=caught,
)


for _colour in COLOURS:

    @TEST_LOOKS.mistake(
        f'Your test asks about a single picture. A model that always says "{_colour}" passes: take pictures whose right '
        "answers differ."
    )
    def _(ask, picture, colour=_colour):
        assert ask(picture(colour), COLOUR) == colour


for _shown in (("red", "blue"), tuple(COLOURS)):

    @TEST_LOOKS.mistake(
        f"Your test asks whether the answers about {len(_shown)} pictures differ, and not whether they are right. Compare "
        "each with the one that it should be."
    )
    def _(ask, picture, shown=_shown):
        assert len({ask(picture(colour), COLOUR) for colour in shown}) == len(shown)


@TEST_LOOKS.mistake(
    "Your test never asks a yes-or-no question, so a model that always says the same there gets through."
)
def _(ask, picture):
    for colour in COLOURS:
        assert ask(picture(colour), COLOUR) == colour


@TEST_LOOKS.mistake(
    'Your test lets wrong names through. Ask "What colour is it?" about every picture as well: another kind of question is '
    "another skill. One wrong answer is enough to fail."
)
def _(ask, picture):
    for colour in COLOURS:
        for other in COLOURS:
            assert ask(picture(colour), f"Is it {other}?") == ("yes" if other == colour else "no")


for _colour in COLOURS:

    @TEST_LOOKS.mistake(
        f"Your test leaves {_colour} out, and a model that cannot see it gets through. Take all three colours."
    )
    def _(ask, picture, unseen=_colour):
        shown = COLOURS.keys() - {unseen}
        for colour in shown:
            assert ask(picture(colour), COLOUR) == colour
            for other in shown:
                assert ask(picture(colour), f"Is it {other}?") == ("yes" if other == colour else "no")


@TEST_LOOKS.mistake(
    'The right answer to all your yes-or-no questions is "yes". Ask about colours that are not there, too.'
)
def _(ask, picture):
    for colour in COLOURS:
        assert ask(picture(colour), COLOUR) == colour
        assert ask(picture(colour), f"Is it {colour}?") == "yes"


@TEST_LOOKS.mistake(
    'Your test only asks yes-or-no questions, and the right answer to all of them is "yes". Ask about colours that are '
    "not there, too, and for the name."
)
def _(ask, picture):
    for colour in COLOURS:
        assert ask(picture(colour), f"Is it {colour}?") == "yes"


@TEST_LOOKS.mistake(
    'The right answer to all your yes-or-no questions is "no". Ask about the colour that is there, too.'
)
def _(ask, picture):
    for colour in COLOURS:
        assert ask(picture(colour), COLOUR) == colour
        for other in set(COLOURS) - {colour}:
            assert ask(picture(colour), f"Is it {other}?") == "no"


@TEST_LOOKS.mistake(
    "All your yes-or-no questions name the same colour, so a model that does not listen to the name gets through."
)
def _(ask, picture):
    for colour in COLOURS:
        assert ask(picture(colour), COLOUR) == colour
        assert ask(picture(colour), "Is it red?") == ("yes" if colour == "red" else "no")


@TEST_LOOKS.mistake(
    "Your test passes with every model. Compare what ask returns with the right answer, and let one wrong answer be enough "
    "to fail."
)
def _(ask, picture):
    for colour in COLOURS:
        ask(picture(colour), COLOUR)


@TEST_LOOKS.mistake("Your test returns True or False. pytest, and everybody else, waits for an AssertionError.")
def _(ask, picture):
    return True


@TEST_LOOKS.mistake(
    'Your test asks for something that a model that looks does not do. It knows "What colour is it?" and "Is it red?" (or '
    'green, or blue), written exactly so, and answers with a lower-case word: a colour, "yes" or "no".'
)
def _(ask, picture):
    raise AssertionError
