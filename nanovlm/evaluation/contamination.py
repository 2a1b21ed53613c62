"""Is the test in the training data? Shared n-grams of texts, and near copies of pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from nanovlm.evaluation.answers import normalise_answer


def shared_ngrams(test: Sequence[str], train: Sequence[str], n: int = 8) -> dict[int, list[int]]:
    """Which test texts share a run of n normalised words with which training texts: test index -> training indices.

    A text shorter than n words counts as one run, so that an exact copy is found too.
    """

    def runs(text: str) -> set[tuple[str, ...]]:
        words = normalise_answer(text).split()
        return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))} if words else set()

    where = defaultdict(set)
    for index, text in enumerate(train):
        for run in runs(text):
            where[run].add(index)
    found = {i: sorted(set().union(*(where.get(run, set()) for run in runs(text)))) for i, text in enumerate(test)}
    return {index: hits for index, hits in found.items() if hits}


def image_hash(image: Any, side: int = 8) -> np.ndarray:
    """A perceptual hash of side * side bits: for each cell of the shrunken grey picture, whether it is brighter than
    the mean. Sizes, compression and a little noise change few bits."""
    from PIL import Image

    grey = np.asarray(image.convert("L").resize((side, side), Image.Resampling.BOX), dtype=np.float32)
    return (grey > grey.mean()).flatten()


def near_copies(test: Sequence[Any], train: Sequence[Any], most: int = 3, side: int = 8) -> dict[int, list[int]]:
    """Which test pictures differ in at most `most` bits of their hash from which training pictures."""
    if not test or not train:
        return {}
    ours, theirs = (np.stack([image_hash(p, side) for p in images]) for images in (test, train))
    apart = (ours[:, None] != theirs[None]).sum(axis=-1)  # [test, train]
    return {i: np.flatnonzero(row <= most).tolist() for i, row in enumerate(apart) if (row <= most).any()}
