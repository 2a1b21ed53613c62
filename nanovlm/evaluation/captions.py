"""How good is a description? n-gram overlap (BLEU, CIDEr-D), and the facts that it states."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

NGram = tuple[str, ...]
CELLS = ("top left", "top right", "bottom left", "bottom right")


def ngrams(words: Sequence[str], n: int) -> Counter[NGram]:
    """How often each run of n words occurs."""
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def bleu(candidates: Sequence[str], references: Sequence[Sequence[str]], max_n: int = 4) -> float:
    """BLEU of a whole set, from 0 to 1 (Papineni et al. 2002), on words split at spaces, unsmoothed.

    references: one or more for each candidate. Counts are added over the whole set before dividing: precisions of
    1- to max_n-grams, each n-gram counted at most as often as in the reference that has it most; their geometric
    mean; times exp(1 - r / c) where the candidates' length c is below r, the sum of the closest reference lengths.
    """
    found, possible = [0] * max_n, [0] * max_n
    length = closest = 0
    for candidate, texts in zip(candidates, references, strict=True):
        words, others = candidate.split(), [text.split() for text in texts]
        if not others:
            raise ValueError(f"The candidate {candidate!r} has no reference to compare it with.")
        length += len(words)
        closest += min((abs(len(other) - len(words)), len(other)) for other in others)[1]
        for n in range(1, max_n + 1):
            own = ngrams(words, n)
            most: Counter[NGram] = Counter()
            for other in others:
                most |= ngrams(other, n)
            found[n - 1] += (own & most).total()
            possible[n - 1] += own.total()
    if 0 in found:
        return 0.0
    mean_log = sum(math.log(f / p) for f, p in zip(found, possible, strict=True)) / max_n
    return math.exp(mean_log + min(0.0, 1 - closest / length))


def cider(candidates: Sequence[str], references: Sequence[Sequence[str]], max_n: int = 4, sigma: float = 6.0) -> Tensor:
    """CIDEr-D of each candidate, from 0 to 10 (Vedantam et al. 2015, arXiv:1411.5726): [candidates].

    The cosine between tf-idf vectors of n-grams, clipped, with a Gaussian penalty on the difference of lengths,
    averaged over n and references. n-grams that all pictures' references share weigh nothing. Written here, because
    the kept implementation, pycocoevalcap, comes with 100 MB of Java; a test compares the two where it is installed.
    """
    kept = [[text.split() for text in texts] for texts in references]
    orders = range(1, max_n + 1)
    seen: Counter[NGram] = Counter()
    for texts in kept:
        seen.update({gram for text in texts for n in orders for gram in ngrams(text, n)})

    def vector(words: list[str], n: int) -> dict[NGram, float]:
        return {g: k * (math.log(len(kept)) - math.log(max(1, seen[g]))) for g, k in ngrams(words, n).items()}

    def size(weights: dict[NGram, float]) -> float:
        return math.sqrt(sum(w * w for w in weights.values()))

    scores = torch.zeros(len(kept), dtype=torch.float64)
    for i, (candidate, texts) in enumerate(zip(candidates, kept, strict=True)):
        words = candidate.split()
        for text in texts:
            # Lengths are counted in pairs of words, as the published code does.
            short = max(len(words) - 1, 0) - max(len(text) - 1, 0)
            for n in orders:
                own, other = vector(words, n), vector(text, n)
                product = sum(min(w, other.get(g, 0.0)) * other.get(g, 0.0) for g, w in own.items())
                lengths = size(own) * size(other)
                if lengths:
                    scores[i] += product / lengths * math.exp(-(short**2) / (2 * sigma**2))
        scores[i] *= 10 / (max_n * len(texts))
    return scores


def caption_facts(caption: str) -> set[tuple[str, str, str]]:
    """A caption of the Thimble's `shapes` -> (place, "colour" or "shape", value). A place that holds nothing gives
    (place, "shape", "nothing")."""
    facts = set()
    for place, named in re.findall(rf"({'|'.join(CELLS)}): ([a-z ]+)\.", caption):
        words = named.split()
        facts.add((place, "shape", words[-1]))
        if len(words) == 2:
            facts.add((place, "colour", words[0]))
    return facts


def fact_f1(captions: Sequence[str], references: Sequence[str]) -> float:
    """F1 of stated facts over a whole set: right facts against stated ones and true ones."""
    right = stated = true = 0
    for caption, reference in zip(captions, references, strict=True):
        own, wanted = caption_facts(caption), caption_facts(reference)
        right, stated, true = right + len(own & wanted), stated + len(own), true + len(wanted)
    return 2 * right / (stated + true) if stated + true else 0.0
