"""Multiple choice on the Thimble's pictures, in the schema of MMStar (Chen et al., 2024, arXiv:2403.20330)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanovlm.data.thimble.drawing import Draws
from nanovlm.data.thimble.glyphs import CHARACTERS
from nanovlm.data.thimble.samples import SUBSETS, answers, thimble_sample
from nanovlm.data.thimble.tables import png

if TYPE_CHECKING:
    import datasets

LETTERS = "ABCD"


def multiple_choice_sample(index: int, split: str = "test", seed: int = 0, image_size: int = 64) -> dict:
    """Question `index`: the subsets take turns, and each letter is right equally often.

    Returns {"index": int, "question": "...\\nOptions: A: red, B: blue, C: green, D: yellow", "image": PIL.Image,
    "answer": "B", "category": subset, "l2_category": kind, "meta_info": {"source", "split", "image_path"}}.
    """
    subset = SUBSETS[index % len(SUBSETS)]
    sample = thimble_sample(subset, split, index, seed, image_size)
    draws = Draws("thimble", seed, "multiple choice", split, index)
    turns = [(turn, turn["source"].split("/")[-1]) for turn in sample["texts"]]
    turn, kind = draws.pick([(turn, kind) for turn, kind in turns if kind == "read" or _has_options(subset, kind)])
    right = turn["assistant"]
    options = _signs(right, draws) if kind == "read" else draws.some(_others(subset, kind, right), 3)
    place = draws.below(len(LETTERS))
    options.insert(place, right)
    listed = ", ".join(f"{letter}: {option}" for letter, option in zip(LETTERS, options, strict=True))
    return {
        "index": index,
        "question": f"{turn['user']}\nOptions: {listed}",
        "image": sample["images"][0],
        "answer": LETTERS[place],
        "category": subset,
        "l2_category": kind,
        "meta_info": {"source": turn["source"], "split": split, "image_path": f"{subset}/{split}/{seed}/{index}"},
    }


def _has_options(subset: str, kind: str) -> bool:
    return kind != "caption" and len(answers(subset, kind) or ()) >= len(LETTERS)


def _others(subset: str, kind: str, right: str) -> list[str]:
    return [answer for answer in answers(subset, kind) or () if answer != right]


def _signs(right: str, draws: Draws) -> list[str]:
    """Three other texts: right and they are all the mixtures of two characters in two places.

    If each differed from the right one alone in one place, the right one could be told by being most like the others.
    """
    first, second = draws.some(range(len(right)), 2)
    swap = {i: draws.pick([c for c in CHARACTERS if c != right[i]]) for i in (first, second)}
    texts = [
        "".join(swap[i] if i in changed else character for i, character in enumerate(right))
        for changed in ((first,), (second,), (first, second))
    ]
    return draws.some(texts, 3)


def load_multiple_choice(
    size: int = 1_000, split: str = "test", seed: int = 0, image_size: int = 64
) -> datasets.Dataset:
    """`size` questions as a data set with MMStar's columns, in memory."""
    import datasets

    features = {name: datasets.Value("string") for name in ("question", "answer", "category", "l2_category")}
    meta = {name: datasets.Value("string") for name in ("source", "split", "image_path")}
    columns = {"index": datasets.Value("int64"), **features, "image": datasets.Image(), "meta_info": meta}
    rows = [multiple_choice_sample(index, split, seed, image_size) for index in range(size)]
    data = {name: [png(row[name]) if name == "image" else row[name] for row in rows] for name in columns}
    return datasets.Dataset.from_dict(data, datasets.Features(columns))
