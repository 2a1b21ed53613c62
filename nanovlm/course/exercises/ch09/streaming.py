"""Chapter 09: text that appears while it is written."""

from __future__ import annotations

from collections.abc import Sequence

from nanovlm.course.judge.exercise import Case, Exercise, expect
from nanovlm.inference.streaming import ready_text

# -- generation.stream_text --------------------------------------------------------------------------------------------

PLAIN = [b"top", b" left", b":", b" a", b" red", b" star", b"."]
BYTES = [b" It", b" is", b" 20", b"\xc2", b"\xb0", b"C", b" ", b"\xf0\x9f", b"\x99", b"\x82", b"!"]
SPACES = [b"  ", b"yes", b",", b" ", b" ", b"two", b"  ", b"\n"]
HOLE = [b"a", b"\xff", b"b", b" ", b"c"]  # a byte that never becomes a character


def run_stream(ready, pieces: Sequence[bytes]) -> list[str]:
    """What is shown after each token."""

    def decode(ids: Sequence[int]) -> str:
        return b"".join(pieces[i] for i in ids).decode("utf-8", errors="replace")

    shown, said = "", []
    for count in range(1, len(pieces) + 1):
        said.append(ready(list(range(count)), shown, decode))
        expect(isinstance(said[-1], str), f"It returned {type(said[-1]).__name__}: return a string, empty if need be.")
        shown += said[-1]
    return said


STREAM = Exercise(
    id="generation.stream_text",
    chapter="09",
    title="What can be shown already?",
    difficulty=2,
    minutes=12,
    why="Tokens are bytes, and readers want characters. Every chat window has this function, and where it is wrong the "
    "reader sees � or the same word twice.",
    hints=(
        "Decode all ids, not the last one. What of that text may still change when the next token comes?",
        "Two things may change: an � at the end, which is half a character, and white space at the end, which the "
        "finished answer will not have. Take both off (white space at the front, too), then leave out what was shown.",
        'text = decode(ids) without "\\ufffd" at its end, then without white space on both sides\n'
        "return the part of text behind the first …",
    ),
    reference=ready_text,
    cases=lambda: [
        Case(PLAIN, note="seven tokens, whole words"),
        Case(BYTES, note="characters of two and four bytes, in several tokens"),
        Case(SPACES, note="white space at both ends and in the middle"),
        Case(HOLE, note="a byte that is no character, in the middle"),
    ],
    call=run_stream,
)


@STREAM.property("the pieces join to the whole answer, whatever the tokens are")
def _(ready) -> None:
    text = "Größe 🙂🙃, 漢字 und naïve"
    for size in (1, 2, 3):
        data = text.encode()
        pieces = [data[i : i + size] for i in range(0, len(data), size)]
        joined = "".join(run_stream(ready, pieces))
        expect(joined == text, f"With tokens of {size} bytes the pieces join to {joined!r}, not to {text!r}.")


def _mistake(sentence: str):
    return STREAM.mistake(sentence)


@_mistake(
    "It shows half a character: as long as the text ends in \\ufffd, the last bytes are not complete. Hold them back."
)
def _(ids, shown, decode):
    return decode(ids).strip()[len(shown) :]


@_mistake("It decodes the last token alone. A character may be spread over several tokens: decode all ids.")
def _(ids, shown, decode):
    return decode(ids[-1:])


@_mistake("It decodes the last token alone, and strips it: decode all ids, and take the part that is new.")
def _(ids, shown, decode):
    return decode(ids[-1:]).rstrip("\ufffd").strip()


@_mistake("It shows everything again with each token: return only the part behind what was shown.")
def _(ids, shown, decode):
    return decode(ids).rstrip("\ufffd").strip()


@_mistake(
    "It loses the spaces between words: strip the whole text, then take the new part, and not the other way round."
)
def _(ids, shown, decode):
    return decode(ids).rstrip("\ufffd").strip()[len(shown) :].strip()


@_mistake("It loses the spaces between words: the new part was stripped, and what was shown no longer fits its length.")
def _(ids, shown, decode):
    return decode(ids).rstrip("\ufffd")[len(shown) :].strip()


@_mistake("White space at the end is shown at once. The answer may end there, so it is held back until a word follows.")
def _(ids, shown, decode):
    return decode(ids).rstrip("\ufffd").lstrip()[len(shown) :]


@_mistake(
    "All that is decoded is shown at once. What may still change has to be held back: \\ufffd at the end, and white space."
)
def _(ids, shown, decode):
    return decode(ids)[len(shown) :]


@_mistake(
    "White space is taken off before \\ufffd, so that the space in front of half a character is shown: \\ufffd first."
)
def _(ids, shown, decode):
    return decode(ids).strip().rstrip("\ufffd")[len(shown) :]


@_mistake(
    "White space is taken off before \\ufffd, and \\ufffd in the middle, too: first take \\ufffd off the end, by rstrip."
)
def _(ids, shown, decode):
    return decode(ids).strip().replace("\ufffd", "")[len(shown) :]


@_mistake("White space is taken off nowhere: the answer may begin and end with some, which is not shown.")
def _(ids, shown, decode):
    return decode(ids).rstrip("\ufffd")[len(shown) :]


@_mistake("It takes out \\ufffd in the middle as well. Only at the end is it half a character: rstrip, not replace.")
def _(ids, shown, decode):
    return decode(ids).replace("\ufffd", "").strip()[len(shown) :]


@_mistake("It shows whole words only, and so never the last one: nobody says when the answer is over.")
def _(ids, shown, decode):
    text = decode(ids).rstrip("\ufffd").strip()
    return text[: max(text.rfind(" "), 0)].strip()[len(shown) :]


@STREAM.part
def _(code, learner) -> None:
    code.streaming.ready_text = learner
