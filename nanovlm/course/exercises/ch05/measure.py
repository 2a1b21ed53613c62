"""Chapter 05: code whose labels vanish, to mend, and how many tokens a language costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nanovlm.course.exercises.ch05.text import encode_bytes, say
from nanovlm.course.judge.exercise import Case, Exercise, expect

Messages = list[dict[str, str]]

# -- text.mend_supervised ----------------------------------------------------------------------------------------------


def ids_of(rendered: Any) -> list[int]:
    return list(rendered["input_ids"]) if isinstance(rendered, Mapping) else list(rendered)


def mended(messages: Messages, apply_template: Callable[[Messages], Any], prefix: int) -> list[bool]:
    flags: list[bool] = []
    for message in messages:
        length = len(ids_of(apply_template([message])))
        flags += [message["role"] == "assistant" and place >= prefix for place in range(length)]
    return flags


def template(returns: str, prefix: int) -> Callable[[Messages], Any]:
    """A ChatML-like template: `prefix` ids in front of each message, its bytes, and two behind it."""

    def apply_template(messages: Messages) -> Any:
        ids = [i for m in messages for i in (*range(300, 300 + prefix), *encode_bytes(m["content"]), 290, 291)]
        return ids if returns == "a list" else {"input_ids": ids, "attention_mask": [1] * len(ids)}

    return apply_template


TALK = [say("user", "Where is it?"), say("assistant", "top"), say("user", "And now?"), say("assistant", "left")]

MEND = Exercise(
    id="text.mend_supervised",
    chapter="05",
    title="Mend it: the labels that vanished",
    difficulty=2,
    minutes=10,
    why="A library changed what one of its functions returns, and code that had worked for a year trained on nothing: no "
    "error, and a loss of NaN.",
    hints=(
        "What is the len of a dict?",
        "Take the ids out of what apply_template returns, whether it is a list or a dict with input_ids, and count those. "
        "The rest of the code is right.",
        "out = apply_template([message])\nids = … if isinstance(out, dict) else out\nlength = len(ids)",
    ),
    reference=mended,
    cases=lambda: [
        Case(TALK[:2], template("a dict", 3), 3, note="a question and an answer, from a template that returns a dict"),
        Case(TALK[:2], template("a list", 3), 3, note="the same from a template that returns a list"),
        Case(TALK, template("a dict", 2), 2, note="two turns, and two tokens in front of each message"),
        Case([say("system", "Be brief."), *TALK[:2]], template("a list", 4), 4, note="a system message"),
    ],
)


@MEND.property("the end of each answer is supervised")
def _(supervised) -> None:
    flags = supervised(TALK[:2], template("a dict", 3), 3)
    expect(
        bool(flags) and bool(flags[-1]), "The last token of the conversation, which ends the answer, is not supervised."
    )


def _mend(sentence: str, learn: Callable[[dict[str, str], int, int, int], bool]) -> None:
    """learn(message, place, prefix, length)"""

    @MEND.mistake(sentence)
    def _(messages, apply_template, prefix):
        flags: list[bool] = []
        for m in messages:
            length = len(ids_of(apply_template([m])))
            flags += [learn(m, place, prefix, length) for place in range(length)]
        return flags


def _by_length(length_of: Callable[[Any], int]):
    def version(messages, apply_template, prefix):
        flags: list[bool] = []
        for m in messages:
            length = length_of(apply_template([m]))
            flags += [m["role"] == "assistant" and place >= prefix for place in range(length)]
        return flags

    return version


def _answer(message: dict[str, str]) -> bool:
    return message["role"] == "assistant"


MEND.mistake(
    "This is still the code that was to be mended: the len of a dict is the number of its keys, so every message counts "
    "two tokens."
)(_by_length(len))
MEND.mistake("All lists of the dict are counted together, input_ids and attention_mask. Count input_ids alone.")(
    _by_length(lambda out: sum(map(len, out.values())) if isinstance(out, Mapping) else len(out))
)
MEND.mistake('A template that gives a list fails now: out["input_ids"] is for the dict only. Accept both.')(
    _by_length(lambda out: len(out["input_ids"]))
)


@MEND.mistake("The conversation as a whole is one message for you, so questions are supervised. Go message by message.")
def _(messages, apply_template, prefix):
    return [place >= prefix for place in range(len(ids_of(apply_template(messages))))]


@MEND.mistake("Only the first answer is supervised. Every turn teaches.")
def _(messages, apply_template, prefix):
    flags, answers = [], 0
    for m in messages:
        answers += _answer(m)
        length = len(ids_of(apply_template([m])))
        flags += [_answer(m) and answers == 1 and place >= prefix for place in range(length)]
    return flags


_mend(
    "The beginning of the message is supervised as well: the template writes it. Leave out the first `prefix` tokens.",
    lambda m, i, p, n: _answer(m),
)
_mend(
    "The first token of each answer is not supervised: place >= prefix, not >.", lambda m, i, p, n: _answer(m) and i > p
)
_mend("The last token of the prefix is supervised: place >= prefix.", lambda m, i, p, n: _answer(m) and i >= p - 1)
_mend(
    "The end of an answer is not supervised, so the model never learns to stop.",
    lambda m, i, p, n: _answer(m) and p <= i < n - 1,
)
_mend("The questions are supervised as well. Only the assistant's messages are.", lambda m, i, p, n: i >= p)
_mend("The questions are supervised, and the answers are not.", lambda m, i, p, n: not _answer(m) and i >= p)
_mend("A prefix of 3 is built in: use the argument.", lambda m, i, p, n: _answer(m) and i >= 3)


@MEND.mistake("These are ids and -100. Return flags, True where a token is supervised.")
def _(messages, apply_template, prefix):
    return [
        token if _answer(m) and place >= prefix else -100
        for m in messages
        for place, token in enumerate(ids_of(apply_template([m])))
    ]


# -- text.measure_fertility --------------------------------------------------------------------------------------------

Encode = Callable[[str], list[int]]
Texts = Mapping[str, Sequence[str]]


def fertility(encode: Encode, texts: Texts) -> dict[str, float]:
    return {name: sum(len(encode(t)) for t in some) / sum(map(len, some)) for name, some in texts.items()}


def encode_words(text: str) -> list[int]:
    """A tokenizer that knows a few English words, each with the space in front of it; all else are bytes."""
    known, ids, i = (" the", " is", "Where", " red", " star"), [], 0
    while i < len(text):
        word = next((w for w in known if text.startswith(w, i)), None)
        ids += [300 + known.index(word)] if word else encode_bytes(text[i])
        i += len(word) if word else 1
    return ids


SOME: Texts = {
    "English": ["Where is the red star?", "Is it the red one?"],
    "German": ["Wo ist der rote Stern?", "Öl"],
    "Chinese": ["红色的星星在哪里？", "是"],
}

MEASURE = Exercise(
    id="text.measure_fertility",
    chapter="05",
    title="Measure it: what a language costs",
    difficulty=1,
    minutes=8,
    why="A model's context is counted in tokens, and so is its price. Where a language needs four times the tokens, its "
    "speakers get a quarter of the context, and nothing in the model says so.",
    hints=(
        "Count the tokens of all texts of a language, and the characters of the same texts.",
        "Add up first and divide once, so that a long text counts more than a short one. len of a string counts "
        "characters, not bytes.",
        "return {name: sum(…) / sum(…) for name, some in texts.items()}",
    ),
    reference=fertility,
    cases=lambda: [
        Case(encode_words, SOME, note="three languages, with a tokenizer that learned from English"),
        Case(encode_bytes, SOME, note="the same, in bytes"),
        Case(encode_words, {"A": ["the the the", "a"], "B": ["写"]}, note="a long text and a short one"),
    ],
    tolerance=1e-4,
)


@MEASURE.property("in bytes, a Chinese character costs three tokens")
def _(measure) -> None:
    found = measure(encode_bytes, {"Chinese": ["星星", "红"]})["Chinese"]
    expect(
        abs(found - 3) < 1e-6, f"Three characters of three bytes each give {found:.3g} tokens for a character, not 3."
    )


def _measure(sentence: str, one: Callable[[Encode, Sequence[str]], Any]) -> None:
    MEASURE.mistake(sentence)(lambda encode, texts: {name: one(encode, some) for name, some in texts.items()})


def _tokens(encode: Encode, some: Sequence[str]) -> int:
    return sum(len(encode(t)) for t in some)


_measure(
    "This is a mean of ratios, in which a short text counts as much as a long one. Add up first, divide once.",
    lambda e, v: sum(len(e(t)) / len(t) for t in v) / len(v),
)
_measure(
    "You divide by bytes. len(text) counts characters.", lambda e, v: _tokens(e, v) / sum(len(t.encode()) for t in v)
)
_measure(
    "It is upside down: tokens for each character, not characters for each token.",
    lambda e, v: sum(map(len, v)) / _tokens(e, v),
)
_measure(
    "You divide by the number of words, and Chinese has no spaces between them. Divide by characters.",
    lambda e, v: _tokens(e, v) / sum(len(t.split()) for t in v),
)
_measure("This is the number of tokens for each text. Divide by characters.", lambda e, v: _tokens(e, v) / len(v))
_measure("Only the first text of each language is measured.", lambda e, v: len(e(v[0])) / len(v[0]))
_measure(
    "You count the different tokens. A token that occurs twice costs twice.",
    lambda e, v: len({i for t in v for i in e(t)}) / sum(map(len, v)),
)
_measure(
    "The spaces are left out of the characters, but not of the tokens. Count all characters.",
    lambda e, v: _tokens(e, v) / sum(len(t.replace(" ", "")) for t in v),
)
_measure(
    "The texts are joined with spaces first, which adds characters. Encode each by itself.",
    lambda e, v: len(e(" ".join(v))) / len(" ".join(v)),
)
_measure(
    "The result is rounded to a whole number. Return the ratio.", lambda e, v: round(_tokens(e, v) / sum(map(len, v)))
)
_measure("// drops the fraction. Divide with /.", lambda e, v: _tokens(e, v) // sum(map(len, v)))
_measure("These are counts of tokens. Divide by the number of characters.", _tokens)
_measure(
    "You return the largest ratio of any text. Measure all texts of a language together.",
    lambda e, v: max(len(e(t)) / len(t) for t in v),
)


@MEASURE.mistake("This is one number for all languages together. Return one for each.")
def _(encode, texts):
    everything = [t for some in texts.values() for t in some]
    return _tokens(encode, everything) / sum(map(len, everything))


@MEASURE.mistake("This is a list; expected a dict, with the name of each language.")
def _(encode, texts):
    return list(fertility(encode, texts).values())
