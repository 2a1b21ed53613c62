"""Multiple choice in MMStar's schema, by three protocols: the strict letter, a lenient regex, and likelihood."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nanovlm.evaluation.likelihood import score_options
from nanovlm.evaluation.scores import Evaluation, Question, Score, answer_all, evaluate_multiple_choice

if TYPE_CHECKING:
    from nanovlm.models.vision_language_model import VisionLanguageModel

INSTRUCTION = "\nAnswer with the letter."
_OPTION = re.compile(r"(?:^|[,;\s])\(?([A-Z])\s?[:.)]\s+")


def split_options(question: str) -> tuple[str, dict[str, str]]:
    """MMStar's question text -> the question alone, and letter -> option.

    Options follow a line that begins with "Options:" or "Choices:", as "A: red, B: blue" or one a line.
    Raises: ValueError where there are not at least two, lettered from A.
    """
    stem, _, listed = re.sub(r"\n\s*(?:Options|Choices)\s*:", "\0", question, count=1).partition("\0")
    parts = _OPTION.split(listed)
    letters, texts = parts[1::2], [text.strip().rstrip(",;").strip() for text in parts[2::2]]
    if len(letters) < 2 or letters != [chr(ord("A") + i) for i in range(len(letters))]:
        raise ValueError(f"No options A, B, … were found in {question[:80]!r}: list them after a line 'Options:'.")
    return stem.strip(), dict(zip(letters, texts, strict=True))


def strict_letter(answer: str, letter: str) -> bool:
    """The letter, in either case, perhaps in parentheses or before a full stop, and nothing else."""
    match = re.fullmatch(r"\s*\(?([A-Za-z])\)?[.:]?\s*", answer)
    return match is not None and match.group(1).upper() == letter.strip().upper()


def lenient_letter(answer: str, letter: str) -> bool:
    """What nanoVLM v0.1 counted as right: the letter anywhere as a word, or anywhere between parentheses.

    The behaviour of `check_multiple_choice_with_regex` at
    https://github.com/huggingface/nanoVLM/blob/v0.1/models/utils.py, kept for comparison: "A cat" is the answer A, and
    "A, B, C, D" is the answer to everything.
    """
    letter = letter.upper()
    patterns = (rf"\b{letter}\b", rf"\b{letter}[.,)]", rf"\(.*{letter}.*\)")
    return any(re.search(pattern, answer) for pattern in patterns)


LETTER_RULES = {"letter": strict_letter, "lenient": lenient_letter}


def rotated(sample: dict[str, Any], by: int) -> dict[str, Any]:
    """The same question with its options moved on by so many places, and the letter of the right one with it."""
    stem, options = split_options(sample["question"])
    letters, texts = list(options), list(options.values())
    moved = [texts[(i - by) % len(texts)] for i in range(len(texts))]
    place = (letters.index(sample["answer"].strip().upper()) + by) % len(letters)
    listed = ", ".join(f"{letter}: {text}" for letter, text in zip(letters, moved, strict=True))
    return {**sample, "question": f"{stem}\nOptions: {listed}", "answer": letters[place]}


def evaluate_choice(
    model: VisionLanguageModel,
    samples: Sequence[dict[str, Any]],
    protocol: str = "likelihood",
    normalise: str = "mean",
    batch_size: int = 64,
) -> Evaluation:
    """Samples in MMStar's schema, scored per category.

    protocol: "letter" and "lenient" generate an answer and look for the letter in it; "likelihood" asks the question
    without its options and takes the option that the model finds most probable (`normalise` as in `score_options`).
    """
    if protocol in LETTER_RULES:
        return evaluate_multiple_choice(model, samples, batch_size, blind=False, right=LETTER_RULES[protocol])
    if protocol != "likelihood":
        raise ValueError(f"protocol is letter, lenient or likelihood, not {protocol!r}.")
    if not samples:
        raise ValueError("There is nothing to evaluate: no sample was given.")
    stems, options = zip(*(split_options(sample["question"]) for sample in samples), strict=True)
    images = [[sample["image"]] for sample in samples]
    scores = score_options(model, stems, images, [list(each.values()) for each in options], normalise, batch_size)
    result = Evaluation(right=strict_letter)
    for i, (sample, letters, score) in enumerate(zip(samples, options, scores, strict=True)):
        question, answer = _question(i, sample), list(letters)[int(score.argmax())]
        result.scores.setdefault(question.kind, Score()).add(strict_letter(answer, question.answer))
        result.answers.append((question, answer))
    return result


def circular_accuracy(
    model: VisionLanguageModel, samples: Sequence[dict[str, Any]], protocol: str = "letter", batch_size: int = 64
) -> float:
    """The share of questions that are answered right in every rotation of their options (CircularEval of MMBench, Liu
    et al. 2023, arXiv:2307.06281): whoever always says A is right in one rotation only."""
    if not samples:
        raise ValueError("There is nothing to evaluate: no sample was given.")
    right = LETTER_RULES[protocol]
    turns = [rotated(sample, by) for sample in samples for by in range(len(split_options(sample["question"])[1]))]
    asked = [replace(_question(i, turn), sample=turn["index"]) for i, turn in enumerate(turns)]
    held: dict[int, bool] = {}
    for question, answer in zip(asked, answer_all(model, asked, batch_size), strict=True):
        held[question.sample] = held.get(question.sample, True) and right(answer, question.answer)
    return sum(held.values()) / len(held)


def _question(index: int, sample: dict[str, Any]) -> Question:
    text = sample["question"] + INSTRUCTION
    return Question(index, [sample["image"]], text, sample["answer"].strip(), sample.get("category", ""))
