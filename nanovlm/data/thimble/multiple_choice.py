"""Multiple choice on the Thimble's pictures, in the schema of MMStar (Chen et al., 2024, arXiv:2403.20330)."""

from __future__ import annotations

from nanovlm.data.thimble.drawing import Draws
from nanovlm.data.thimble.glyphs import CHARACTERS
from nanovlm.data.thimble.samples import SUBSETS, answers, thimble_sample

LETTERS = "ABCD"
INSTRUCTION = "\nAnswer with the letter."  # MMStar's questions come without one
TURNS = 2  # questions about one training picture


def multiple_choice_sample(index: int, split: str = "test", seed: int = 0, image_size: int = 64) -> dict:
    """Question `index`: the subsets take turns, and each letter is right equally often.

    Returns {"index": int, "question": "...\\nOptions: A: red, B: blue, C: green, D: yellow", "image": PIL.Image,
    "answer": "B", "category": subset, "l2_category": kind, "meta_info": {"source", "split", "image_path"}}.
    """
    subset = SUBSETS[index % len(SUBSETS)]
    sample = thimble_sample(subset, split, index, seed, image_size)
    draws = Draws("thimble", seed, "multiple choice", split, index)
    turn, kind = draws.pick(_with_options(subset, sample))
    question, answer = _put(turn, kind, subset, draws)
    return {
        "index": index,
        "question": question,
        "image": sample["images"][0],
        "answer": answer,
        "category": subset,
        "l2_category": kind,
        "meta_info": {"source": turn["source"], "split": split, "image_path": f"{subset}/{split}/{seed}/{index}"},
    }


def choice_sample(index: int, split: str = "train", seed: int = 0, image_size: int = 64) -> dict:
    """Training data for multiple choice, in the_cauldron's schema: up to two questions about one picture.

    The subsets take turns; `source` is "thimble/choice/<subset>". Raises: ValueError as `thimble_sample`.
    """
    subset = SUBSETS[index % len(SUBSETS)]
    sample = thimble_sample(subset, split, index, seed, image_size)
    draws = Draws("thimble", seed, "choice", split, index)
    turns = _with_options(subset, sample)
    if not turns:  # all of its questions are of kinds with too few answers: an ordinary conversation then
        return sample
    texts = []
    for turn, kind in draws.some(turns, min(TURNS, len(turns))):
        question, answer = _put(turn, kind, subset, draws)
        texts.append({"user": question + INSTRUCTION, "assistant": answer, "source": f"thimble/choice/{subset}"})
    return {"images": sample["images"], "texts": texts}


def _with_options(subset: str, sample: dict) -> list[tuple[dict[str, str], str]]:
    """The turns of a sample that four options can be given for, each with its kind."""
    turns = [(turn, turn["source"].split("/")[-1]) for turn in sample["texts"]]
    return [(turn, kind) for turn, kind in turns if kind == "read" or _has_options(subset, kind)]


def _put(turn: dict[str, str], kind: str, subset: str, draws: Draws) -> tuple[str, str]:
    """A turn as a question with four options, and the letter of the right one."""
    right = turn["assistant"]
    options = _signs(right, draws) if kind == "read" else draws.some(_others(subset, kind, right), 3)
    place = draws.below(len(LETTERS))
    options.insert(place, right)
    listed = ", ".join(f"{letter}: {option}" for letter, option in zip(LETTERS, options, strict=True))
    return f"{turn['user']}\nOptions: {listed}", LETTERS[place]


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
