"""Chapter 05: one step of byte-pair encoding, and the chat template by hand."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

from nanovlm.course.judge.exercise import Case, Exercise, expect

# The pocket tokenizer's special tokens, and for the checks a tokenizer below them that knows bytes and no merges.
NAMES = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|image|>", "<|system|>")
SPECIAL = {name: number for number, name in enumerate(NAMES)}
PAD, END, USER, ASSISTANT, IMAGE, SYSTEM = SPECIAL.values()
SPELLING = re.compile("(" + "|".join(map(re.escape, NAMES)) + ")")

Words = list[list[str]]
Messages = list[dict[str, str]]
Encode = Callable[[str], list[int]]


def encode_bytes(text: str) -> list[int]:
    """UTF-8 bytes as ids, behind the six special tokens: "a" is 103."""
    return [byte + len(NAMES) for byte in text.encode()]


def say(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


# -- text.bpe_step -----------------------------------------------------------------------------------------------------


def count(words: Words) -> Counter[tuple[str, str]]:
    return Counter(pair for word in words for pair in pairwise(word))


def replace(word: list[str], pair: tuple[str, str] | None) -> list[str]:
    out: list[str] = []
    i = 0
    while i < len(word):
        here = i + 1 < len(word) and (word[i], word[i + 1]) == pair
        out.append(word[i] + word[i + 1] if here else word[i])
        i += 2 if here else 1
    return out


def step(words: Words) -> Words:
    counts = count(words)
    best = max(counts, key=counts.__getitem__, default=None)  # of equal ones, the first
    return [replace(word, best) for word in words]


BPE_STEP = Exercise(
    id="text.bpe_step",
    chapter="05",
    title="One step of byte-pair encoding",
    difficulty=2,
    minutes=12,
    why="Repeat this step, and a vocabulary grows out of nothing but counting. The tokenizers of GPT-2 and SmolLM2 "
    "were made in this way, and so was the pocket model's.",
    hints=(
        "Two jobs, one after the other. First find out which pair of neighbours occurs most often; then walk through "
        "each word and glue.",
        "Count the pairs of each word into one dict. max with the counts as key gives the first of equal ones. Gluing "
        "is a walk with an index: at the pair, write the two joined and go on by two; else copy and go on by one.",
        "counts = Counter(pair for word in words for pair in pairwise(word))  # from itertools\n"
        "best = max(counts, key=counts.get, default=None)\n"
        "for each word: i = 0; while i < len(word):\n"
        "    if (word[i], word[i + 1]) is the best pair (mind the end of the word): append both joined, i += 2\n"
        "    else: append word[i], i += 1",
    ),
    reference=step,
    cases=lambda: [
        Case([list("red"), list("red"), list("green")], note="red, red and green: r and e stand together three times"),
        Case([list("aaa"), list("aaaa")], note="aaa and aaaa, whose pairs overlap"),
        Case([["x", "ta", "b"], ["a", "b"], ["a", "b"]], note='the pair is ("a", "b"), and "ta" is another token'),
        Case([["a"], ["b"], ["a"], ["b"], ["c", "d"]], note="words of a single token beside one of two"),
        Case([list("pq"), list("st")], note="a tie: the pair that comes first wins"),
        Case([list("st"), list("pq")], note="a tie again, with the later letters first"),
        Case(
            [list("hi"), list("lo"), list("lo"), list("lo"), list("hit")], note="lo three times, hi and hit once each"
        ),
        Case([["red"], ["a"]], note="nothing left to merge"),
    ],
)


@BPE_STEP.property("the text stays the same")
def _(learner) -> None:
    words = [list(word) for word in ("banana", "bandana", "nab", "a")]
    for number in range(1, 4):
        words = learner([list(word) for word in words])
        whole = ["".join(word) for word in words]
        expect(
            whole == ["banana", "bandana", "nab", "a"],
            f"After {number} step(s) the tokens of each word join to {whole}: a merge only glues, it loses nothing.",
        )


@BPE_STEP.mistake(
    "You count pairs across the border of two words, as if all words were one line. The last token of a word and the "
    "first of the next one are no neighbours."
)
def _(words):
    line = [token for word in words for token in word]
    counts = Counter(pairwise(line))
    return [replace(word, max(counts, key=counts.__getitem__, default=None)) for word in words]


@BPE_STEP.mistake(
    "Each different word counts once here. A word that occurs three times counts three times: that is what frequent "
    "means."
)
def _(words):
    counts = count([list(word) for word in dict.fromkeys(map(tuple, words))])
    return [replace(word, max(counts, key=counts.__getitem__, default=None)) for word in words]


@BPE_STEP.mistake(
    "Joining the tokens with spaces and replacing text goes wrong where a longer token ends as the pair begins: "
    '"ta b" holds the letters "a b", but not the token "a". Compare whole tokens.'
)
def _(words):
    counts = count(words)
    if not counts:
        return words
    a, b = max(counts, key=counts.__getitem__)
    return [" ".join(word).replace(f"{a} {b}", a + b).split(" ") for word in words]


@BPE_STEP.mistake("Only the first place in each word is merged. Walk on to its end.")
def _(words):
    counts = count(words)
    best = max(counts, key=counts.__getitem__, default=None)
    out = []
    for word in words:
        at = next((i for i in range(len(word) - 1) if (word[i], word[i + 1]) == best), None)
        out.append(word if at is None else [*word[:at], word[at] + word[at + 1], *word[at + 2 :]])
    return out


@BPE_STEP.mistake(
    'A token is used twice: "aaa" holds the pair a, a in two places that share the middle a. Once merged it is gone, '
    "so go on behind it."
)
def _(words):
    counts = count(words)
    best = max(counts, key=counts.__getitem__, default=None)
    out = []
    for word in words:
        hits = [i for i in range(len(word) - 1) if (word[i], word[i + 1]) == best]
        kept = [i for i in range(len(word)) if i in hits or i - 1 not in hits]
        out.append([word[i] + word[i + 1] if i in hits else word[i] for i in kept])
    return out


@BPE_STEP.mistake("Of pairs that occur equally often you take the last. Agree on the one that is met first.")
def _(words):
    counts = dict(reversed(count(words).items()))
    return [replace(word, max(counts, key=counts.__getitem__, default=None)) for word in words]


@BPE_STEP.mistake(
    "Of pairs that occur equally often you take the first of the alphabet. Take the one that is met first in the text."
)
def _(words):
    counts = count(words)
    return [replace(word, max(sorted(counts), key=counts.__getitem__, default=None)) for word in words]


@BPE_STEP.mistake(
    "Of equal pairs you take the first of the alphabet, not of the text; and where no pair is left, max raises."
)
def _(words):
    counts = count(words)
    return [replace(word, max(sorted(counts), key=counts.__getitem__)) for word in words]


@BPE_STEP.mistake(
    "Of pairs that occur equally often you take the last of the alphabet, as max does with (count, pair). Compare "
    "nothing but the counts."
)
def _(words):
    counts = count(words)
    best = max(counts, key=lambda pair: (counts[pair], pair), default=None)
    return [replace(word, best) for word in words]


@BPE_STEP.mistake("It merges until nothing is left to merge. One call is one step: one pair.")
def _(words):
    while count(words):
        words = step(words)
    return words


# -- text.render_chat --------------------------------------------------------------------------------------------------


def rendered(messages: Messages, add_generation_prompt: bool = False) -> str:
    text = ""
    for message in messages:
        text += "<|" + message["role"] + "|>" + message["content"]
        if message["role"] == "assistant":
            text += "<|end|>"
    return text + "<|assistant|>" if add_generation_prompt else text


TALK = [say("user", "Where is the red star?"), say("assistant", "top left")]

RENDER = Exercise(
    id="text.render_chat",
    chapter="05",
    title="The chat template by hand",
    difficulty=1,
    minutes=8,
    why="A model has only seen conversations in one spelling. One newline more than in training, and the pocket model "
    "gets nearly every question wrong.",
    hints=(
        "Read the example from left to right: which parts come from the messages, and which are always there?",
        "Each message is the token of its role, then its content as it is. Only an answer gets an end token: nobody "
        "needs to be told that a question is over.",
        'for message in messages: text += "<|" + role + "|>" + content, and "<|end|>" behind an assistant\'s\n'
        'behind the loop: "<|assistant|>" if add_generation_prompt',
    ),
    reference=rendered,
    cases=lambda: [
        Case(TALK, note="one question with its answer"),
        Case(TALK[:1], True, note="a question to be answered now"),
        Case(
            [say("system", "Be brief."), *TALK, say("user", "And the blue one?"), say("assistant", "nowhere")],
            note="a system message and two turns",
        ),
        Case([say("user", " two  spaces \n"), say("assistant", " yes ")], note="spaces and a newline in the content"),
        Case([*TALK, say("user", "And the blue one?")], True, note="a second question to be answered now"),
    ],
)


@RENDER.property("what was rendered stays as it is when the conversation goes on")
def _(learner) -> None:
    more = [say("user", "Is there a heart?"), say("assistant", "no")]
    expect(
        learner(TALK + more) == learner(TALK) + learner(more),
        "Two turns together are not the first turn followed by the second: each turn stands for itself.",
    )


@RENDER.property("a prompt is the beginning of what training showed")
def _(learner) -> None:
    expect(
        learner(TALK).startswith(learner(TALK[:1], True)),
        "The prompt of a question is no beginning of the same question with its answer: the model would be asked in a "
        "form that it never saw.",
    )


@RENDER.mistake("Questions end with <|end|> too. In this template only answers do.")
def _(messages, add_generation_prompt=False):
    text = "".join(f"<|{m['role']}|>{m['content']}<|end|>" for m in messages)
    return text + "<|assistant|>" * add_generation_prompt


@RENDER.mistake("No answer ends. Without <|end|> a model never learns to stop.")
def _(messages, add_generation_prompt=False):
    return rendered(messages, add_generation_prompt).replace("<|end|>", "")


@RENDER.mistake("A newline stands between the messages, as in other templates (ChatML). This one has none.")
def _(messages, add_generation_prompt=False):
    parts = [rendered([m]) for m in messages] + ["<|assistant|>"] * add_generation_prompt
    return "\n".join(parts)


@RENDER.mistake("A space stands between the role's token and the content. For the tokenizer that is other text.")
def _(messages, add_generation_prompt=False):
    return rendered([say(m["role"], " " + m["content"]) for m in messages], add_generation_prompt)


@RENDER.mistake("add_generation_prompt is ignored: with it the text ends where the answer begins.")
def _(messages, add_generation_prompt=False):
    return rendered(messages)


@RENDER.mistake("The token <|assistant|> always stands at the end, even if the last answer is already there.")
def _(messages, add_generation_prompt=False):
    return rendered(messages, True)


@RENDER.mistake("The prompt's <|assistant|> stands behind every message. It comes once, behind the loop over them.")
def _(messages, add_generation_prompt=False):
    return "".join(rendered([m], add_generation_prompt) for m in messages)


@RENDER.mistake("The prompt's <|assistant|> stands behind every question, answered or not. It comes once, at the end.")
def _(messages, add_generation_prompt=False):
    return "".join(rendered([m], add_generation_prompt and m["role"] == "user") for m in messages)


@RENDER.mistake("Only the first question and its answer are rendered. Every turn of the conversation belongs to it.")
def _(messages, add_generation_prompt=False):
    first = next(i for i, m in enumerate(messages) if m["role"] == "user")
    return rendered(messages[: first + 2], add_generation_prompt)


@RENDER.mistake("You strip the content. The white space is the user's; leave the text as it is.")
def _(messages, add_generation_prompt=False):
    return rendered([say(m["role"], m["content"].strip()) for m in messages], add_generation_prompt)
