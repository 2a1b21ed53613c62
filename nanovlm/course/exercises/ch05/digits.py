"""Chapter 05: a pre-tokenizer that keeps digits apart."""

from __future__ import annotations

import re

from nanovlm.course.judge.exercise import Case, Exercise, expect

# -- text.split_digits -------------------------------------------------------------------------------------------------

PIECE = re.compile(r" ?[^\W\d_]+| ?\d| ?[^\w\s]| ?_|\s")


def split_digits(text: str) -> list[str]:
    return PIECE.findall(text)


DIGITS = Exercise(
    id="text.split_digits",
    chapter="05",
    title="A pre-tokenizer that keeps digits apart",
    difficulty=2,
    minutes=10,
    why="If 705 is one token, 706 is another one that has nothing in common with it. Small models read and compute numbers "
    "better digit by digit, which is why SmolLM2's tokenizer splits them.",
    hints=(
        "Describe one piece at a time: a run of letters, one digit, or one mark, each with at most one space before it.",
        "re.findall with alternatives: an optional space and letters; an optional space and one digit; an optional space "
        "and one other character; and white space that is left over. In Python [^\\W\\d_] is a letter of any script.",
        're.findall(r" ?[^\\W\\d_]+| ?…| ?[^\\w\\s]| ?_|\\s", text)',
    ),
    reference=split_digits,
    cases=lambda: [
        Case("Is it 705?", note="words, a number and a mark"),
        Case("1234 and 56,7", note="a longer number, and one with a comma"),
        Case("Straße 写真 12", note="letters outside a to z"),
        Case("wait...  what?!", note="marks in a row, and two spaces"),
        Case("line\nTwo 2", note="a newline"),
        Case("", note="nothing"),
    ],
)


@DIGITS.property("the pieces join to the text")
def _(split) -> None:
    for text in ("What does the sign say? 705 SIGN", "a  b\n\n9", "x_y = 3.14;  # π"):
        pieces = split(text)
        expect("".join(pieces) == text, f"The pieces of {text!r} join to {''.join(pieces)!r}: nothing may be lost.")


def _pattern(sentence: str, pattern: str, prepare=lambda text: text) -> None:
    DIGITS.mistake(sentence)(lambda text: re.findall(pattern, prepare(text)))


_LETTER = r"[^\W\d_]"
_pattern("A number stays whole: match one digit at a time (\\d, not \\d+).", rf" ?{_LETTER}+| ?\d+| ?[^\w\s]|\s")
_pattern(
    "A number stays whole, and letters outside a to z are split: one digit at a time (\\d, not \\d+).",
    r" ?[A-Za-z]+| ?\d+| ?[^\sA-Za-z\d]|\s",
)
_pattern("Digits come two at a time: match one.", rf" ?{_LETTER}+| ?\d{{1,2}}| ?[^\w\s]|\s")
_pattern(
    "Digits come two at a time, and letters outside a to z by themselves.", r" ?[A-Za-z]+| ?\d{1,2}| ?[^\sA-Za-z\d]|\s"
)
_pattern("Digits come three at a time: match one.", rf" ?{_LETTER}+| ?\d{{1,3}}| ?[^\w\s]|\s")
_pattern(
    "Digits come three at a time, and letters outside a to z by themselves.",
    r" ?[A-Za-z]+| ?\d{1,3}| ?[^\sA-Za-z\d]|\s",
)
_pattern(
    "The spaces are lost: a piece keeps the space in front of it, so that the text can be put together again.",
    rf"{_LETTER}+|\d|[^\w\s]",
)
_pattern("The spaces are lost, and so are letters outside a to z.", r"[A-Za-z]+|\d|[^\sA-Za-z\d]")
DIGITS.mistake("The spaces are lost, and numbers stay whole: split() removes white space.")(lambda text: text.split())
DIGITS.mistake("The spaces are lost: split(' ') removes them, and it leaves numbers and marks at their words.")(
    lambda text: text.split(" ")
)
_pattern(
    "A piece keeps the space behind it. It is the one in front of it that belongs to a word.",
    rf"{_LETTER}+ ?|\d ?|[^\w\s] ?|\s",
)
_pattern(
    "A piece keeps the space behind it, not in front of it, and letters outside a to z are by themselves.",
    r"[A-Za-z]+ ?|\d ?|[^\sA-Za-z\d] ?|\s",
)
_pattern(
    "A space is a piece of its own. It belongs to the word behind it, which saves a token for each word.",
    rf"{_LETTER}+|\d|[^\w\s]|\s",
)
_pattern("A space is a piece of its own, and letters outside a to z are too.", r"[A-Za-z]+|\d|[^\sA-Za-z\d]|\s")
_pattern("Punctuation marks are lost. Every character has to be in some piece.", rf" ?{_LETTER}+| ?\d|\s")
_pattern("Punctuation marks are lost, and letters outside a to z.", r" ?[A-Za-z]+| ?\d|\s")
_pattern("Letters outside a to z are lost: a letter of any script is [^\\W\\d_].", r" ?[A-Za-z]+| ?\d| ?[?!.,:;]|\s")
_pattern(
    "Letters outside a to z are pieces of their own. A letter of any script is [^\\W\\d_].",
    r" ?[A-Za-z]+| ?\d| ?[^\sA-Za-z\d]|\s",
)
DIGITS.mistake("Words fall apart into characters. Letters that follow each other stay together.")(list)
_pattern("A mark clings to its word: letters and marks are different pieces.", r" ?[^\s\d]+| ?\d|\s")
_pattern("The digits are lost.", rf" ?{_LETTER}+| ?[^\w\s]|\s")
_pattern("The digits are lost, and letters outside a to z are by themselves.", r" ?[A-Za-z]+| ?[^\sA-Za-z\d]|\s")
_pattern("The text is changed to lower case, so capitals are lost.", r" ?[a-z]+| ?\d| ?[^\sa-z\d]|\s", str.lower)
_pattern("The text is changed to lower case: the capitals are lost.", rf" ?{_LETTER}+| ?\d| ?[^\w\s]|\s", str.lower)
_pattern("Marks that follow each other are one piece. Take one at a time.", rf" ?{_LETTER}+| ?\d| ?[^\w\s]+|\s")
