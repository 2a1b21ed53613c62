"""When is an answer right? Normalised text, several annotators, and partly right readings."""

from __future__ import annotations

import re
from collections.abc import Sequence

ARTICLES = frozenset({"a", "an", "the"})
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(NUMBERS)} | {"none": "0"}


def normalise_answer(text: str) -> str:
    """Lower case, no punctuation, digits for number words, no articles, single spaces.

    After the answer processing of VQA (Antol et al. 2015, arXiv:1505.00468), without its table of contractions. A comma
    between digits vanishes ("1,000" is "1000"), a point between digits stays ("2.5"); any other mark but the apostrophe
    becomes a space.
    """
    text = re.sub(r"(?<=\d),(?=\d)", "", text.lower())
    text = re.sub(r"(?<!\d)\.|\.(?!\d)", " ", text)
    words = re.sub(r"[^\w\s.']|_", " ", text).split()
    return " ".join(_DIGITS.get(word, word) for word in words if word not in ARTICLES)


def same_answer(answer: str, expected: str) -> bool:
    """Whether two answers are equal once both are normalised."""
    return normalise_answer(answer) == normalise_answer(expected)


def vqa_accuracy(answer: str, human_answers: Sequence[str]) -> float:
    """VQA's accuracy of one answer (Antol et al. 2015): min(matches / 3, 1), averaged over leaving each annotator out.

    Both sides are normalised. Raises: ValueError with fewer than two annotators, since one is always left out.
    """
    if len(human_answers) < 2:
        raise ValueError(f"VQA accuracy leaves one annotator out, so it needs at least two; got {len(human_answers)}.")
    given = normalise_answer(answer)
    matches = [normalise_answer(human) == given for human in human_answers]
    total = sum(matches)
    return sum(min((total - own) / 3, 1.0) for own in matches) / len(matches)


def edit_distance(a: str, b: str) -> int:
    """Levenshtein's distance: the fewest insertions, deletions and substitutions of characters that make b of a."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


def character_error_rate(answers: Sequence[str], expected: Sequence[str]) -> float:
    """Edits per expected character, over all answers together: 0 is perfect, and more than 1 is possible."""
    characters = sum(map(len, expected))
    if characters == 0:
        raise ValueError("The expected texts hold no character, so there is no rate of errors per character.")
    return sum(edit_distance(a, e) for a, e in zip(answers, expected, strict=True)) / characters


def anls(answer: str, accepted: Sequence[str], threshold: float = 0.5) -> float:
    """Average normalised Levenshtein similarity of one answer (Biten et al. 2019, arXiv:1905.13648): 1 - edits / the
    longer length, for the closest accepted text, and 0 where that is below the threshold."""
    given = answer.lower().strip()
    best = 0.0
    for text in (text.lower().strip() for text in accepted):
        longest = max(len(given), len(text))
        best = max(best, 1 - edit_distance(given, text) / longest if longest else 1.0)
    return best if best >= threshold else 0.0
