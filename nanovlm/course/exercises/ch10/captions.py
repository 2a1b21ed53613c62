"""Chapter 10: descriptions, and finding one among many."""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor

from nanovlm.course.exercises.common import noise
from nanovlm.course.judge.exercise import Case, Exercise, expect
from nanovlm.evaluation.captions import bleu, ngrams

# -- evaluation.bleu -------------------------------------------------------------------------------------------------------

_PAIRS = (
    ["a red circle above a blue square", "two green stars and a heart", "nothing at the top"],
    [
        ["a red circle is above a blue square", "there is a red circle above one blue square"],
        ["two yellow stars and a heart here", "a heart and two stars"],
        ["nothing is at the top of it", "the top holds nothing at the top"],
    ],
)

BLEU = Exercise(
    id="evaluation.bleu",
    chapter="10",
    title="BLEU by hand",
    difficulty=3,
    minutes=25,
    why="It is still reported for captions, and five choices hide in four letters: what is clipped, what is added up over "
    "the set, which mean, which reference length, which direction of the penalty.",
    hints=(
        "Take it apart: for one n, how many of the candidates' n-grams are found, and how many are there? Add both over "
        "all candidates before you divide.",
        "An n-gram counts at most as often as in the reference that has it most (the maximum of Counters is |, the minimum "
        "is &). Geometric mean of the precisions for 1 … max_n; if one of them is 0, so is BLEU. Penalty exp(1 - r / c) if "
        "c < r, where r adds up each candidate's closest reference length (the shorter one in a tie).",
        "for each n: found += (own & most).total(); possible += own.total()\n"
        "     with own = ngrams(candidate words, n), most = the | of the references' ngrams\n"
        "if some found is 0: return 0.0\n"
        "return math.exp(mean over n of log(found / possible) + the smaller of 0 and (1 - r / c))",
    ),
    reference=bleu,
    cases=lambda: [
        Case(
            ["the red red red"], [["the red circle is red"]], max_n=1, note="one candidate, single words, “red” thrice"
        ),
        Case(*_PAIRS, max_n=2, note="three candidates with two references each, up to pairs"),
        Case(["a red star"], [["a red star at the top left"]], max_n=2, note="right and too short"),
        Case(["a red star at the top left now"], [["a red star"]], max_n=1, note="right and too long"),
        Case(*_PAIRS, max_n=3, note="the same three, up to triples"),
        Case(["one two three four five"], [["one two three four five"]], note="equal, up to runs of four"),
        Case(["one two"], [["three four"]], max_n=2, note="nothing in common"),
        Case(["red red blue", "a a b"], [["red green blue"], ["a b b"]], max_n=1, note="repeated words"),
        Case(["red red pink pink"], [["red star pink", "a red heart"]], max_n=1, note="a word in both references"),
        Case(["a b c d e f"], [["a b c", "a b c d e f g h"]], max_n=2, note="one shorter and one longer reference"),
    ],
    tolerance=1e-6,
)


@BLEU.property("between 0 and 1, and 1 for a copy")
def _(score) -> None:
    text = "top left red circle top right nothing"
    expect(abs(score([text], [[text]]) - 1) < 1e-6, f"A copy of the reference scores {score([text], [[text]])}.")
    expect(0 <= score(["top left"], [[text]], max_n=1) <= 1, "A score is not between 0 and 1.")


@BLEU.property("more references never lower the clipped counts")
def _(score) -> None:
    one = score(["a b c d"], [["a b x y"]], max_n=1)
    two = score(["a b c d"], [["a b x y", "c d x y"]], max_n=1)
    expect(two >= one, f"With a second reference of the same length the score fell from {one:.3f} to {two:.3f}.")


def _bleu(
    candidates: list[str],
    references: list[list[str]],
    max_n: int = 4,
    *,
    clip: str = "most",
    mean: str = "geometric",
    penalty: str = "brevity",
    closest: str = "closest",
    orders: str = "all",
    pool: bool = True,
    recall: bool = False,
    zero: bool = True,
) -> float:
    if not pool:
        each = [_bleu([c], [r], max_n, clip=clip, mean=mean, penalty=penalty) for c, r in zip(candidates, references)]  # noqa: B905
        return sum(each) / len(each)
    found, possible, length, other_length = [0] * max_n, [0] * max_n, 0, 0
    for candidate, texts in zip(candidates, references, strict=True):
        words, others = candidate.split(), [text.split() for text in texts]
        length += len(words)
        lengths = [len(other) for other in others]
        other_length += {
            "closest": min(lengths, key=lambda n: (abs(n - len(words)), n)),
            "shortest": min(lengths),
            "longest": max(lengths),
            "first": lengths[0],
            "sum": sum(lengths),
            "mean": sum(lengths) / len(lengths),
        }[closest]
        for n in range(1, max_n + 1):
            own = ngrams(words, n)
            most: Counter = Counter()
            for other in others[: 1 if clip == "first" else None]:
                most = most + ngrams(other, n) if clip == "sum" else most | ngrams(other, n)
            if clip == "none":
                hits = sum(count for gram, count in own.items() if gram in most)
            elif clip == "set":
                hits = len(own.keys() & most.keys())
            else:
                hits = (own & most).total()
            found[n - 1] += hits
            possible[n - 1] += most.total() if recall else len(own) if clip == "set" else own.total()
    used = list(zip(found, possible, strict=True))
    used = used[-1:] if orders == "last" else used[:1] if orders == "first" else used
    shares = [f / p if p else 0.0 for f, p in used]
    if mean == "arithmetic":
        score = sum(shares) / len(shares)
    elif mean == "product":
        score = math.prod(shares)
    else:
        if 0 in shares and zero:
            return 0.0
        score = math.exp(sum(math.log(share) for share in shares) / len(shares))
    ratio = other_length / length
    factor = {
        "brevity": math.exp(min(0.0, 1 - ratio)),
        "none": 1.0,
        "inverted": math.exp(min(0.0, 1 - 1 / ratio)),
        "always": math.exp(1 - ratio),
        "ratio": min(1.0, 1 / ratio),
    }[penalty]
    return score * factor


def _bleu_mistake(sentence: str, **options) -> None:
    BLEU.mistake(sentence)(lambda candidates, references, max_n=4: _bleu(candidates, references, max_n, **options))


_bleu_mistake(
    "Nothing is clipped: “red red red” scores as if each “red” were in the reference. Count an n-gram at most as often as "
    "the reference that has it most.",
    clip="none",
)
_bleu_mistake("You count each n-gram once, however often it occurs. Counts, not sets.", clip="set")
_bleu_mistake(
    "You add the references' counts up. An n-gram may count as often as in the *one* reference that has it most: the "
    "maximum of Counters is |.",
    clip="sum",
)
_bleu_mistake("Only the first reference is used for counting.", clip="first")
_bleu_mistake("This is the arithmetic mean of the precisions. BLEU takes the geometric mean.", mean="arithmetic")
_bleu_mistake("This is the product of the precisions: the root is missing. Average the logarithms.", mean="product")
_bleu_mistake("The brevity penalty is missing: a single right word would be perfect.", penalty="none")
_bleu_mistake("The brevity penalty is inverted: it punishes candidates that are too long.", penalty="inverted")
_bleu_mistake(
    "The penalty also rewards: a candidate longer than its reference is multiplied by more than 1. It applies only where "
    "c < r.",
    penalty="always",
)
_bleu_mistake("The penalty is exp(1 - r / c), and not the ratio c / r.", penalty="ratio")
_bleu_mistake(
    "Reference lengths of one candidate are added up. Take the length closest to the candidate's.", closest="sum"
)
_bleu_mistake("You take the shortest reference's length. Take the one closest to the candidate's.", closest="shortest")
_bleu_mistake("You take the longest reference's length. Take the one closest to the candidate's.", closest="longest")
_bleu_mistake("You take the first reference's length. Take the one closest to the candidate's.", closest="first")
_bleu_mistake("You take the mean of the reference lengths. Take the one closest to the candidate's.", closest="mean")
_bleu_mistake("Only runs of max_n words are counted. BLEU averages over 1 to max_n.", orders="last")
_bleu_mistake("Only single words are counted: `max_n` is not used.", orders="first")
_bleu_mistake(
    "This is the mean of each sentence's own BLEU. Counts and lengths are added over the whole set before dividing.",
    pool=False,
)
_bleu_mistake("You divide by the references' n-grams: that is recall. BLEU is a precision.", recall=True)
_bleu_mistake("Where nothing is found you take the logarithm of 0. BLEU is then 0.", zero=False)


# -- evaluation.recall_at_k ------------------------------------------------------------------------------------------------


class Recall(NamedTuple):
    image_to_text: float
    text_to_image: float


def recall_at_k(scores: Tensor, k: int) -> Recall:
    """Count by hand: how many candidates are at least as good as the right one?"""
    n = len(scores)
    rows = [sum(bool(scores[i, j] >= scores[i, i]) for j in range(n)) <= k for i in range(n)]
    columns = [sum(bool(scores[i, j] >= scores[j, j]) for i in range(n)) <= k for j in range(n)]
    return Recall(sum(rows) / n, sum(columns) / n)


def _recall_cases() -> list[Case]:
    tied = torch.tensor([[0.9, 0.9, 0.1], [0.2, 0.5, 0.4], [0.3, 0.8, 0.3]])
    hub = noise(7, 7, seed=5) + 1.2 * torch.eye(7)
    hub[:, 2] += 1.5  # one text that is like every picture
    return [
        Case(
            torch.tensor([[0.9, 0.3, 0.1, 0.2], [0.8, 0.5, 0.4, 0.1], [0.2, 0.6, 0.7, 0.3], [0.4, 0.9, 0.3, 0.2]]),
            1,
            note="four pictures (rows) and texts (columns), k = 1",
        ),
        Case(tied, 1, note="ties"),
        Case(tied, 2, note="ties, k = 2"),
        Case(hub, 1, note="seven pairs and a text that suits every picture"),
        Case(hub, 3, note="the same seven, k = 3"),
        Case(noise(9, 9, seed=8) + torch.eye(9), 5, note="nine pairs, k = 5"),
        Case(torch.zeros(4, 4), 1, note="all scores equal"),
        Case(noise(6, 6, seed=12) - 30, 2, note="log-probabilities: all scores negative"),
    ]


RECALL = Exercise(
    id="evaluation.recall_at_k",
    chapter="10",
    title="Is its own text among the first k?",
    difficulty=2,
    minutes=12,
    why="Retrieval tests whether a model tells pictures apart without generating anything. A tie counted in the model's "
    "favour makes a model that scores everything equally perfect.",
    hints=(
        "The right text of picture i is text i: its score is on the diagonal. How many scores in its row are at least as "
        "high?",
        "rank = the number of scores in the row that are >= the diagonal's, itself included; recall is the share of ranks "
        "that are at most k. For the other direction the same on the transpose.",
        "def one_way(scores): rank = (scores >= the diagonal as a column).sum(dim=1); return the mean of rank <= k\n"
        "return one_way(scores), one_way(scores.T)",
    ),
    reference=recall_at_k,
    cases=_recall_cases,
    axes={"picture to text": "", "text to picture": ""},
)


@RECALL.property("k as large as the number of candidates finds everything")
def _(recall) -> None:
    forth, back = recall(noise(6, 6), 6)
    expect(forth == 1 and back == 1, f"With 6 candidates and k = 6 it finds {forth} and {back}.")


@RECALL.property("the transpose exchanges the two directions")
def _(recall) -> None:
    scores = noise(8, 8, seed=3)
    one, other = tuple(recall(scores, 2)), tuple(recall(scores.T.clone(), 2))
    expect(one == other[::-1], f"The scores give {one}, their transpose {other}.")


def _way(scores: Tensor, k: int, strict: bool = False, off: int = 0, largest: bool = True) -> float:
    right = scores.diagonal()[:, None]
    if not largest:
        scores, right = -scores, -right
    better = (scores > right).sum(dim=1) + 1 if strict else (scores >= right).sum(dim=1)
    return (better + off <= k).double().mean().item()


def _recall_mistake(sentence: str, **options) -> None:
    RECALL.mistake(sentence)(lambda scores, k: (_way(scores, k, **options), _way(scores.T, k, **options)))


_recall_mistake(
    "Ties count for the model: you count only scores that are strictly higher. A model that scores everything equally is "
    "then perfect. Count scores that are at least as high, itself included.",
    strict=True,
)
_recall_mistake("Ranks start at 0 here and are compared with k, so that k + 1 candidates count.", off=-1)
_recall_mistake("The rank must be at most k; yours has to be below it.", off=1)
_recall_mistake("The lowest scores win here. Higher is better.", largest=False)


@RECALL.mistake("topk keeps as many as k whatever ties there are, and may keep the right one by luck. Count the ranks.")
def _(scores, k):
    def one_way(s):
        return (s.topk(k, dim=1).indices == torch.arange(len(s))[:, None]).any(dim=1).double().mean().item()

    return one_way(scores), one_way(scores.T)


@RECALL.mistake("Both numbers are picture to text. For the other direction, look down the columns.")
def _(scores, k):
    return _way(scores, k), _way(scores, k)


@RECALL.mistake("Both numbers are text to picture. For the first, look along the rows.")
def _(scores, k):
    return _way(scores.T, k), _way(scores.T, k)


@RECALL.mistake("The two directions are exchanged: rows are pictures, so picture to text looks along a row.")
def _(scores, k):
    return _way(scores.T, k), _way(scores, k)


@RECALL.mistake("`k` is not used: this is recall at 1.")
def _(scores, k):
    return _way(scores, 1), _way(scores.T, 1)


@RECALL.mistake("These are counts. Divide by the number of pairs.")
def _(scores, k):
    return _way(scores, k) * len(scores), _way(scores.T, k) * len(scores)


@RECALL.mistake("This is the mean of both directions, twice. Report them apart: they can differ a lot.")
def _(scores, k):
    mean = (_way(scores, k) + _way(scores.T, k)) / 2
    return mean, mean
