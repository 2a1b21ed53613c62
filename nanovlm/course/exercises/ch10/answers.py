"""Chapter 10: when is an answer right?"""

from __future__ import annotations

import re
from collections import Counter

from nanovlm.course.judge.exercise import Case, Complaint, Exercise, expect
from nanovlm.evaluation.answers import ARTICLES, NUMBERS, normalise_answer, vqa_accuracy

# -- evaluation.normalise_answer -----------------------------------------------------------------------------------------

NORMALISE = Exercise(
    id="evaluation.normalise_answer",
    chapter="10",
    title="Two answers that mean the same",
    difficulty=1,
    minutes=10,
    why="Exact match counts “Two.” as wrong where “2” was expected. Each rule of a normalisation moves the score, so two "
    "papers that normalise differently do not report the same quantity.",
    hints=(
        "Write down the order first. Which rule has to run before you can recognise “The” or “(the)” as an article?",
        "Lower case; commas between digits vanish; points that are not between two digits and all other marks but the "
        "apostrophe become spaces; split into words; drop articles; replace number words; join with single spaces.",
        'text = re.sub(a comma with a digit on each side, "", text.lower())\n'
        'text = re.sub(a point without a digit on one of its sides, " ", text)\n'
        'words = re.sub(everything that is no letter, digit, space, point or apostrophe, " ", text).split()\n'
        "return the words that are no article, number words as digits, joined by one space",
    ),
    reference=normalise_answer,
    cases=lambda: [
        Case("The Two Red Circles.", note="“The Two Red Circles.”"),
        Case("top-left", note="a hyphen: “top-left”"),
        Case("A banana at a bar", note="articles, and words that hold an “a”"),
        Case("1,250 metres", note="a comma between digits: “1,250 metres”"),
        Case("about 2.5 km.", note="a point between digits and one at the end: “about 2.5 km.”"),
        Case("Yes, (the) tone of someone", note="a comma after a word, an article in parentheses, “one” inside words"),
        Case("it's  ten   o'clock!", note="apostrophes and double spaces"),
        Case("blue/green, an apple", note="a slash: “blue/green, an apple”"),
        Case("seven,eight", note="a comma between words without a space"),
        Case("None", note="“None” is the number word for 0 in VQA's table"),
        Case("a.", note="nothing but an article"),
    ],
)


@NORMALISE.property("normalising twice changes nothing more")
def _(normalise) -> None:
    for text in ("The Two Red Circles.", "1,250 m", "a (b) c.", "it's 2.5!"):
        once = normalise(text)
        expect(normalise(once) == once, f"{text!r} becomes {once!r} and then {normalise(once)!r}.")


@NORMALISE.property("different answers stay different")
def _(normalise) -> None:
    texts = ["top left", "top right", "2", "12", "2.5", "25", "red", "green"]
    expect(len({normalise(text) for text in texts}) == len(texts), "Two different answers became the same text.")


def _normal(
    text: str,
    *,
    lower: bool = True,
    commas: bool = True,
    points: str = "ends",
    filler: str = " ",
    keep: str = "'",
    articles: str = "words",
    numbers: str = "words",
    tight: bool = True,
) -> str:
    """The rules, each of which can be got wrong."""
    if articles == "first":
        text = " ".join(word for word in text.split() if word not in ARTICLES)
    if lower:
        text = text.lower()
    if articles == "lower":
        text = " ".join(word for word in text.split() if word not in ARTICLES)
    if articles == "letters":
        for article in ("the", "an", "a"):
            text = text.replace(article, "")
    if commas:
        text = re.sub(r"(?<=\d),(?=\d)", "", text)
    if points == "ends":
        text = re.sub(r"(?<!\d)\.|\.(?!\d)", " ", text)
    elif points == "all":
        text = text.replace(".", filler)
    text = re.sub(rf"[^\w\s.{keep}]|_", filler, text)
    words = text.split() if tight else text.split(" ")
    digits = {word: str(number) for number, word in enumerate(NUMBERS)} | {"none": "0"}
    if numbers == "words":
        words = [digits.get(word, word) for word in words]
    elif numbers == "some":
        words = [digits.get(word, word) if word != "none" else word for word in words]
    elif numbers == "letters":
        words = [_replaced(word, digits) for word in words]
    if articles == "words":
        words = [word for word in words if word not in ARTICLES]
    return " ".join(words)


def _replaced(word: str, digits: dict[str, str]) -> str:
    for name, digit in digits.items():
        word = word.replace(name, digit)
    return word


def _normalise_mistake(sentence: str, **options) -> None:
    NORMALISE.mistake(sentence)(lambda text: _normal(text, **options))


_normalise_mistake(
    "Capitals stay: “The” is then no article, and “Two” no number word. Lower the text first.", lower=False
)
_normalise_mistake(
    "A mark vanishes and joins the words on its two sides: “top-left” becomes “topleft”. Put a space in its place.",
    filler="",
    points="all",
)
_normalise_mistake(
    "A mark vanishes and joins the words on its two sides: “blue/green” becomes “bluegreen”. Put a space in its place; "
    "only the comma between digits vanishes.",
    filler="",
)
_normalise_mistake(
    "You remove the letters of the articles inside words too: “banana” becomes “bnn”. Split into words first, and drop "
    "whole words.",
    articles="letters",
)
_normalise_mistake("You look for articles before lowering the text, so “The” stays. Lower first.", articles="first")
_normalise_mistake(
    "You look for articles before the marks are gone, so “(the)” and “a.” stay. Clear the marks first.",
    articles="lower",
)
_normalise_mistake("Articles stay: drop “a”, “an” and “the”.", articles="none")
_normalise_mistake("A comma between digits becomes a space: “1,250” turns into two numbers.", commas=False)
_normalise_mistake(
    "A point between digits is lost: “2.5” turns into “2 5”. Only points without digits on both sides go.", points="all"
)
_normalise_mistake("The full stop at the end of an answer stays: “red.” is not “red” then.", points="none")
_normalise_mistake("Number words stay: “two” and “2” are the same answer.", numbers="none")
_normalise_mistake("Everything is right but “none”, which is 0 in this table, like “zero”.", numbers="some")
_normalise_mistake(
    "You replace number words inside of other words: “someone” becomes “some1”. Compare whole words.", numbers="letters"
)
_normalise_mistake(
    "This is the normalisation of reading tests (SQuAD): all marks vanish, the point of “2.5” and the hyphen of “top-left” "
    "too, and number words stay. VQA's rules are others.",
    filler="",
    points="all",
    keep="",
    numbers="none",
)
_normalise_mistake(
    "Only the capitals and the articles are done: marks, commas and number words are left as they were.",
    filler=r"\g<0>",
    points="none",
    commas=False,
    articles="words",
    numbers="none",
)
_normalise_mistake("Several spaces in a row stay. split() without an argument swallows them.", tight=False)
_normalise_mistake(
    "The apostrophe becomes a space: “it's” turns into two words. It is the one mark that stays.", keep=""
)


# -- evaluation.vqa_accuracy ---------------------------------------------------------------------------------------------

VQA = Exercise(
    id="evaluation.vqa_accuracy",
    chapter="10",
    title="Ten people, one answer",
    difficulty=1,
    minutes=8,
    why="People disagree about pictures. VQA's accuracy gives full marks where three of nine others agree, and part of "
    "them below; a version without leaving one out reports more than the benchmark would.",
    hints=(
        "Leave out each person in turn. What is the score against those who remain?",
        "Normalise everything. With t matches in all, leaving out a person who agrees leaves t - 1 matches, and leaving "
        "out one who does not leaves t. Score each time min(matches / 3, 1), and take the mean.",
        "given = normalise_answer(answer)\n"
        "matches = [whether normalise_answer(h) == given for h in human_answers]\n"
        "scores = [min(matches that remain without this person / 3, 1) for each person]\n"
        "return the mean of scores",
    ),
    reference=vqa_accuracy,
    cases=lambda: [
        Case("red", ["red"] * 2 + ["orange"] * 8, note="two of ten say “red”"),
        Case("Red.", ["red", "a red", "RED"] + ["orange"] * 7, note="three of ten, spelled in three ways"),
        Case("2", ["two"] * 5 + ["3"] * 5, note="five of ten, as a word"),
        Case("blue", ["red"] * 10, note="nobody agrees"),
        Case("yes", ["yes", "no", "yes", "no", "no"], note="five people, of whom two agree"),
        Case("no", ["yes"] * 9 + ["no"], note="one of ten agrees"),
        Case("dog", ["dog"] * 4 + ["cat"] * 3, note="four of seven agree"),
        Case("pear", ["pear", "fig", "fig"], note="three people, of whom one agrees"),
    ],
)


@VQA.property("one person alone cannot be left out: ValueError")
def _(accuracy) -> None:
    try:
        got = accuracy("red", ["red"])
    except ValueError:
        return
    except ZeroDivisionError:
        raise Complaint(
            "With one person you divide by zero. Raise a ValueError that says at least two are needed."
        ) from None
    raise Complaint(f"With a single person it returns {got!r}; nobody remains to compare with: raise a ValueError.")


@VQA.property("the order of the people does not matter")
def _(accuracy) -> None:
    people = ["red", "red", "blue", "green", "blue", "red", "pink"]
    expect(
        abs(accuracy("red", people) - accuracy("red", people[::-1])) < 1e-9,
        "The same people in another order give another score.",
    )


def _matches(answer, humans, normalise=normalise_answer):
    return [normalise(human) == normalise(answer) for human in humans]


@VQA.mistake(
    "This is min(matches / 3, 1) over all people. The benchmark leaves each person out in turn and takes the mean, which "
    "is lower wherever two or three agree."
)
def _(answer, human_answers):
    return min(sum(_matches(answer, human_answers)) / 3, 1.0)


@VQA.mistake("This is the share of people who agree. VQA's accuracy is already full where three others agree.")
def _(answer, human_answers):
    return sum(_matches(answer, human_answers)) / len(human_answers)


@VQA.mistake("The cap is missing: with more than three matches the score goes above 1. Take min(matches / 3, 1).")
def _(answer, human_answers):
    found = _matches(answer, human_answers)
    return sum((sum(found) - own) / 3 for own in found) / len(found)


@VQA.mistake("You compare the texts as they are. Normalise both sides: “Two.” is “2”.")
def _(answer, human_answers):
    found = _matches(answer, human_answers, str)
    return sum(min((sum(found) - own) / 3, 1.0) for own in found) / len(found)


@VQA.mistake("You normalise the people's answers and not the model's.")
def _(answer, human_answers):
    found = [normalise_answer(human) == answer for human in human_answers]
    return sum(min((sum(found) - own) / 3, 1.0) for own in found) / len(found)


@VQA.mistake("You divide by 10, whoever was asked. Take the mean over the people that there are.")
def _(answer, human_answers):
    found = _matches(answer, human_answers)
    return sum(min((sum(found) - own) / 3, 1.0) for own in found) / 10


@VQA.mistake("This is all or nothing by majority. VQA's accuracy gives part of the marks below three matches.")
def _(answer, human_answers):
    most = Counter(map(normalise_answer, human_answers)).most_common(1)[0][0]
    return float(normalise_answer(answer) == most)


@VQA.mistake("One person who agrees is enough here. Full marks take three others.")
def _(answer, human_answers):
    return float(any(_matches(answer, human_answers)))


@VQA.mistake("You always take one match away, also when the person left out did not agree.")
def _(answer, human_answers):
    return min(max(sum(_matches(answer, human_answers)) - 1, 0) / 3, 1.0)
