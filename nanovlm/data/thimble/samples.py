"""Samples of the Thimble by (subset, split, index, seed)."""

from __future__ import annotations

from nanovlm.data.thimble import charts, glyphs, shapes
from nanovlm.data.thimble.drawing import Draws

_MODULES = {"shapes": shapes, "charts": charts, "glyphs": glyphs}
SUBSETS = tuple(_MODULES)
SPLITS = ("train", "val", "test", "unseen")
KINDS = {subset: tuple(module.KINDS) for subset, module in _MODULES.items()}
Scene = shapes.Scene | charts.ChartScene | glyphs.GlyphScene
Turn = tuple[str, str, str]  # kind, question, answer
CAPTION_QUESTION = "Describe the picture."


def answers(subset: str, kind: str) -> tuple[str, ...] | None:
    """Every answer that a question of this kind can have, or None where answers are free text."""
    check(subset, "train", 0)
    if kind not in KINDS[subset]:
        raise ValueError(
            f"The Thimble's {subset!r} has no question kind {kind!r}; choose from {', '.join(KINDS[subset])}."
        )
    return _MODULES[subset].KINDS[kind]


def chance(subset: str) -> dict[str, float]:
    """Per kind, the accuracy of the best guesser that reads the question and does not see the picture.

    Answers are balanced per question text, to within three points for the colours and shapes of `shapes` (the pairs
    that are held out for `unseen` make the others more frequent) and one point elsewhere.
    """
    check(subset, "train", 0)
    free_text = getattr(_MODULES[subset], "FREE_TEXT_CHANCE", {})
    return {kind: 1 / len(choices) if choices else free_text[kind] for kind, choices in _MODULES[subset].KINDS.items()}


def thimble_scene(subset: str, split: str, index: int, seed: int = 0) -> tuple[Scene, list[Turn]]:
    """The scene and its turns without the picture: `(scene, [(kind, question, answer), ...])`, caption last."""
    scene, turns, _ = _generate(subset, split, index, seed)
    return scene, turns


def thimble_sample(subset: str, split: str, index: int, seed: int = 0, image_size: int = 64) -> dict:
    """Sample `index` of a split, with one RGB picture of image_size x image_size pixels.

    Training samples have several questions of mixed kinds and a caption; the other splits have one question of each
    kind and a caption, so that each turn can be asked on its own.
    """
    if image_size < 1:
        raise ValueError(f"A Thimble picture needs an image_size of at least 1 pixel, not {image_size}.")
    scene, turns, draws = _generate(subset, split, index, seed)
    return {
        "images": [_MODULES[subset].draw(scene, draws, image_size)],
        "texts": [
            {"user": question, "assistant": answer, "source": f"thimble/{subset}/{kind}"}
            for kind, question, answer in turns
        ],
    }


def caption_sample(index: int, split: str = "train", seed: int = 0, image_size: int = 64) -> dict:
    """A picture and its caption, nothing else: what teaches to describe a picture unasked. The subsets take turns."""
    sample = thimble_sample(SUBSETS[index % len(SUBSETS)], split, index, seed, image_size)
    return {**sample, "texts": sample["texts"][-1:]}


def american_sample(index: int, split: str = "train", seed: int = 0, image_size: int = 64) -> dict:
    """A sample of shapes, asked in American spelling: "What color is the star?"."""
    sample = thimble_sample("shapes", split, index, seed, image_size)
    texts = [{**turn, "user": turn["user"].replace("colour", "color")} for turn in sample["texts"]]
    return {**sample, "texts": texts}


def _generate(subset: str, split: str, index: int, seed: int) -> tuple[Scene, list[Turn], Draws]:
    check(subset, split, index)
    module = _MODULES[subset]
    draws = Draws("thimble", seed, subset, split, index)
    scene = module.make_scene(draws, split)
    turns = module.make_turns(scene, draws, split)
    return scene, [*turns, ("caption", CAPTION_QUESTION, module.caption(scene))], draws


def check(subset: str, split: str, index: int) -> None:
    if subset not in SUBSETS:
        raise ValueError(f"The Thimble has no subset {subset!r}; choose from {', '.join(SUBSETS)}.")
    if split not in SPLITS:
        raise ValueError(f"The Thimble has no split {split!r}; choose from {', '.join(SPLITS)}.")
    if index < 0:
        raise ValueError(f"A Thimble sample's index counts from 0, not {index}.")
