"""A measure of the chapters' prose: `python -m nanovlm.course.prose`.

How long the sentences are, how many are shorter than a thought, whether the field's words stand before their nicknames,
and how long a chapter takes by one rule beside the time that it states.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from nanovlm.course.builder import find_root
from nanovlm.course.outline import CHAPTERS
from nanovlm.course.percent import CLAIM_TAG, Cell, parse

SHORT = 5  # words
WORDS_A_MINUTE, LINES_A_MINUTE = 180, 12
MINUTES = {"quiz": 1.0, "lever": 1.0}  # to answer one, to move one

# The field's word, and what has stood in its place. A printed line and a line of code are lines.
TERMS = {
    "sequence": (
        r"\bsequences?\b",
        r"\blines? of (?:vectors|tokens|words|\d+)|\bthe line\b(?! of code)|\binto? (?:a|one) line\b",
    ),
    "attend": (
        r"\battend(?:s|ed|ing)?\b|\battention\b",
        r"\b(?:patch|patches|tokens?|words?|quer(?:y|ies)|heads?|rows?|places?|each|nobody|everyone|everybody)"
        r" (?:(?:can|may|must|do|does|not|only) )*(?:looks?|sees?) (?:at|back|to|each|only|every|all|nothing|itself)\b",
    ),
    "embedding": (r"\bembed(?:ding|dings|ded|s)?\b", r"\bword vectors?\b"),
    "encoder": (r"\bencoders?\b", r"\beyes?\b"),
    "logits": (r"\blogits?\b", r"\bscores? for (?:every|each|all) tokens?\b"),
    "placeholder": (r"\bplaceholders?\b", r"\b(?:empty )?seats?\b"),
    "standard deviation": (r"\bstandard deviations?\b|\bnorms?\b|\bvariances?\b", r"\bloud(?:er|est|ness)\b"),
    "residual stream": (r"\bresiduals?\b", r"\b(?:bus|highway)\b"),
}

SMALL = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60}
HOURS = {"half an hour": 30, "three quarters of an hour": 45, "an hour and a half": 90, "an hour": 60, "one hour": 60}


@dataclass(frozen=True)
class Measure:
    """Of one chapter. terms: word -> (uses of the word, uses of its nicknames)"""

    number: str
    sentences: tuple[int, ...]  # words of each
    lines: int  # of code
    quizzes: int
    levers: int
    stated: float | None  # minutes
    terms: dict[str, tuple[int, int]]

    @property
    def mean(self) -> float:
        return sum(self.sentences) / max(1, len(self.sentences))

    @property
    def short(self) -> float:
        return sum(n <= SHORT for n in self.sentences) / max(1, len(self.sentences))

    @property
    def minutes(self) -> float:
        return (
            sum(self.sentences) / WORDS_A_MINUTE
            + self.lines / LINES_A_MINUTE
            + self.quizzes * MINUTES["quiz"]
            + self.levers * MINUTES["lever"]
        )

    @property
    def nicknamed(self) -> list[str]:
        """The terms whose nickname occurs as often as the term, or more."""
        return [word for word, (uses, nicknames) in self.terms.items() if nicknames and nicknames >= uses]


def measure(number: str, cells: list[Cell]) -> Measure:
    own = [cell for cell in cells if not cell.stamped]
    words = [plain(cell.words()) for cell in own if cell.markdown]
    code = "\n".join(cell.words() for cell in own if not cell.markdown and CLAIM_TAG not in cell.tags)
    everything = "\n".join(words)
    return Measure(
        number,
        tuple(len(s.split()) for text in words for s in sentences(text)),
        sum(1 for line in code.split("\n") if line.strip() and not line.strip().startswith("#")),
        len(re.findall(r"\bquiz\(", code)),
        len(re.findall(r"\blever\(", code)),
        stated_minutes("\n\n".join(cell.words() for cell in [c for c in own if c.markdown][:3])),
        {
            word: tuple(len(re.findall(pattern, everything, re.IGNORECASE)) for pattern in patterns)
            for word, patterns in TERMS.items()
        },
    )


def plain(markdown: str) -> str:
    """Without code, tables, headings, pictures and addresses, which are no sentences; list items are paragraphs."""
    text = re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"<!--.*?-->|\$\$.*?\$\$", "", text, flags=re.DOTALL)
    text = re.sub(r"^\s*(?:[|#]|\[[^\]]+\]:|<[/!\w]).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^\s*(?:[-*+]|\d+\.)\s+", "\n\n", text, flags=re.MULTILINE)
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
    text = re.sub(r"\[([^\]]+)\](?:\([^)]*\)|\[[^\]]*\])", r"\1", text)
    text = re.sub(r"`[^`]+`", "code", text)
    return text.replace("*", "")


def sentences(text: str) -> list[str]:
    """Of plain text. A colon ends none, nor does the point of a number or of an abbreviation."""
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        paragraph = re.sub(r"\b(et al|e\.g|i\.e|vs|cf|Fig|No|St)\.", r"\1", " ".join(paragraph.split()))
        for sentence in re.split(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*[^a-z\s])", paragraph):
            if re.search(r"[A-Za-z]", sentence):
                found.append(sentence)
    return found


def stated_minutes(text: str) -> float | None:
    """The first time that the chapter's head gives: what the reading takes."""
    words = " ".join(text.lower().split())
    numbers = {word: float(i) for i, word in enumerate(SMALL, start=1)} | TENS
    numbers |= {f"{ten}-{one}": TENS[ten] + i for ten in TENS for i, one in enumerate(SMALL[:9], start=1)}
    amount = "|".join(sorted(numbers, key=len, reverse=True))
    found = re.search(rf"({'|'.join(HOURS)})|\b(\d+|{amount}) minutes", words)
    if found is None:
        return None
    if found[1]:
        return HOURS[found[1]]
    return float(found[2]) if found[2].isdigit() else numbers[found[2]]


def measured(root: Path) -> list[Measure]:
    found = []
    for place in CHAPTERS:
        path = root / "chapters" / f"{place.stem}.py"
        if path.is_file():
            found.append(measure(place.number, parse(path.read_text(encoding="utf-8"), path)))
    return found


def table(measures: list[Measure]) -> str:
    lines = ["chapter  words a sentence  of five or fewer  minutes (stated)  terms: uses/nicknames"]
    for m in measures:
        stated = "none" if m.stated is None else f"{m.stated:.0f}"
        terms = ", ".join(f"{word} {a}/{b}" for word, (a, b) in m.terms.items() if b)
        lines.append(f"{m.number:7}  {m.mean:16.1f}  {m.short:15.1%}  {m.minutes:8.0f} ({stated:>4})  {terms}".rstrip())
    return "\n".join(lines)


def main() -> int:
    print(table(measured(find_root())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
