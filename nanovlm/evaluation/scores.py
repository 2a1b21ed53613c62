"""Does it see? Exact answers per kind of question, beside a model that is shown the wrong picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from nanovlm.data.thimble.multiple_choice import INSTRUCTION

if TYPE_CHECKING:
    from nanovlm.models.vision_language_model import VisionLanguageModel


def interval(correct: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share (Wilson 1927). Unlike mean ± 2 errors it stays within [0, 1]."""
    if total == 0:
        return 0.0, 1.0
    share = correct / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def exact(answer: str, expected: str) -> bool:
    """The expected text and nothing else."""
    return answer == expected.strip()


def percentage(share: float) -> str:
    """One decimal, and 100 % for all alone: one mistake in thousands is not rounded away."""
    return f"{share if share == 1 else min(share, 0.999):.1%}"


@dataclass
class Score:
    correct: int = 0
    total: int = 0

    @property
    def accuracy(self) -> float:
        return self.correct / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        return interval(self.correct, self.total)

    def add(self, right: bool) -> None:
        self.correct += right
        self.total += 1


@dataclass
class Question:
    """One question about the pictures of one sample."""

    sample: int
    images: list[Any]
    text: str
    answer: str
    kind: str


@dataclass
class Evaluation:
    """Scores per kind, the blind scores beside them, and every answer for a closer look."""

    scores: dict[str, Score] = field(default_factory=dict)
    blind: dict[str, Score] = field(default_factory=dict)
    answers: list[tuple[Question, str]] = field(default_factory=list)
    right: Callable[[str, str], bool] = exact  # (answer, expected): the rule that the scores were counted by

    @staticmethod
    def _mean(scores: dict[str, Score]) -> float:
        return sum(s.accuracy for s in scores.values()) / len(scores) if scores else 0.0

    @property
    def accuracy(self) -> float:
        """The mean over kinds: each kind counts the same, however often it is asked."""
        return self._mean(self.scores)

    @property
    def blind_accuracy(self) -> float:
        return self._mean(self.blind)

    def to_dict(self) -> dict[str, Any]:
        def rows(scores: dict[str, Score]) -> dict[str, Any]:
            return {
                kind: {"accuracy": s.accuracy, "interval": list(s.interval), "correct": s.correct, "total": s.total}
                for kind, s in scores.items()
            }

        return {
            "accuracy": self.accuracy,
            "blind_accuracy": self.blind_accuracy if self.blind else None,
            "kinds": rows(self.scores),
            "blind": rows(self.blind),
        }

    def table(self, chance: dict[str, float] | None = None) -> str:
        """The scores as text: right, 95 % interval, blind, and chance where it is known."""
        lines = [f"{'kind':<12}{'right':>8}{'95 % interval':>17}{'blind':>9}{'chance':>9}{'questions':>11}"]
        for kind, score in self.scores.items():
            low, high = score.interval
            blind = f"{self.blind[kind].accuracy:8.1%}" if kind in self.blind else f"{'':8}"
            by_chance = f"{chance[kind]:8.1%}" if chance and kind in chance else f"{'':8}"
            right, spread = percentage(score.accuracy), f"{low:.1%} - {high:.1%}"
            lines.append(f"{kind:<12}{right:>8}{spread:>17} {blind} {by_chance}{score.total:11,}")
        blind = f"{self.blind_accuracy:8.1%}" if self.blind else f"{'':8}"
        known = chance and self.scores.keys() <= chance.keys()
        by_chance = f"{sum(chance[k] for k in self.scores) / len(self.scores):8.1%}" if known else f"{'':8}"
        lines.append(f"{'mean':<12}{percentage(self.accuracy):>8}{'':17} {blind} {by_chance}")
        return "\n".join(lines)


def questions_of(samples: Iterable[dict[str, Any]], skip: Sequence[str] = ("caption",)) -> list[Question]:
    """Every turn of every sample as a question of its own, so that no earlier answer gives it away."""
    questions = []
    for i, sample in enumerate(samples):
        for turn in sample["texts"]:
            kind = turn["source"].rsplit("/", 1)[-1]
            if kind not in skip:
                questions.append(Question(i, sample["images"], turn["user"], turn["assistant"], kind))
    return questions


def answer_all(model: VisionLanguageModel, questions: Sequence[Question], batch_size: int = 128) -> list[str]:
    """Greedy answers, in the order of the questions. Questions of like length are answered together.

    An answer has room for the longest right one and its end, so that none is cut that could be right.
    """
    max_new_tokens = max((len(model.tokenizer.encode(question.answer)) for question in questions), default=0) + 1
    order = sorted(range(len(questions)), key=lambda i: len(questions[i].text))
    answers = [""] * len(questions)
    training = model.training
    model.eval()
    for start in tqdm(range(0, len(order), batch_size), desc="answering", leave=False, disable=None):
        chosen = order[start : start + batch_size]
        texts = model.generate(
            prompt=[questions[i].text for i in chosen],
            image=[questions[i].images for i in chosen],
            max_new_tokens=max_new_tokens,
        )
        for i, text in zip(chosen, texts, strict=True):
            answers[i] = text
    model.train(training)
    return answers


def evaluate(
    model: VisionLanguageModel,
    samples: Sequence[dict[str, Any]],
    blind: bool = True,
    batch_size: int = 128,
    seed: int = 0,
    right: Callable[[str, str], bool] = exact,
) -> Evaluation:
    """Greedy answers per kind over every question of the samples; `right(answer, expected)` says which are right.

    `blind` asks again with the pictures dealt out anew, so that none stays with its own questions: what a model still
    gets right it read off the question alone.
    """
    return _score(model, questions_of(samples), [s["images"] for s in samples], blind, batch_size, seed, right=right)


def evaluate_multiple_choice(
    model: VisionLanguageModel,
    samples: Sequence[dict[str, Any]],
    batch_size: int = 128,
    blind: bool = True,
    seed: int = 0,
    right: Callable[[str, str], bool] = exact,
) -> Evaluation:
    """MMStar's schema, scored strictly: the answer is the letter and nothing else. "A cat" is not the answer A.
    Another `right` is another protocol (multiple_choice.py)."""
    questions = [
        Question(i, [s["image"]], s["question"] + INSTRUCTION, s["answer"], s["category"])
        for i, s in enumerate(samples)
    ]
    return _score(model, questions, [[s["image"]] for s in samples], blind, batch_size, seed, right=right)


def evaluate_captions(
    model: VisionLanguageModel, samples: Sequence[dict[str, Any]], batch_size: int = 128
) -> Evaluation:
    """Samples of the Thimble's subset `captions`: a description, asked for at once and exact to the letter. The kind
    is the subset that the picture is from."""
    subsets = [sample["texts"][0]["source"].split("/")[-2] for sample in samples]
    questions = [replace(question, kind=subsets[question.sample]) for question in questions_of(samples, skip=())]
    return _score(model, questions, [s["images"] for s in samples], True, batch_size, 0)


def _score(
    model: VisionLanguageModel,
    questions: Sequence[Question],
    images: Sequence[list[Any]],
    blind: bool,
    batch_size: int,
    seed: int,
    right: Callable[[str, str], bool] = exact,
) -> Evaluation:
    if not questions:
        raise ValueError("There is nothing to evaluate: the samples hold no question.")
    if blind and len(images) < 2:
        raise ValueError("The blind baseline deals out other pictures, so it needs at least two samples.")
    result = Evaluation(right=right)
    for question, answer in zip(questions, answer_all(model, questions, batch_size), strict=True):
        result.scores.setdefault(question.kind, Score()).add(right(answer, question.answer))
        result.answers.append((question, answer))
    if blind:
        # One cycle through a random order: every sample gets the picture of another one.
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
        other = {sample: order[(place + 1) % len(order)] for place, sample in enumerate(order)}
        shuffled = [replace(question, images=images[other[question.sample]]) for question in questions]
        for question, answer in zip(questions, answer_all(model, shuffled, batch_size), strict=True):
            result.blind.setdefault(question.kind, Score()).add(right(answer, question.answer))
    return result
