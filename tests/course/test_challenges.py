"""The scores of the open exercises: their baselines, what raises them, and what they refuse."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from torch import Tensor

from nanovlm import VisionLanguageModel
from nanovlm.assets import asset_path
from nanovlm.compress.int8 import quantise_linear
from nanovlm.course.challenges import far_score, guessable, pixels_needed, size_score, tokens_needed
from nanovlm.models.language_model import RotaryEmbedding


def test_a_larger_base_and_a_window_answer_far_questions() -> None:
    pocket = VisionLanguageModel.from_pretrained(asset_path("pocket")).eval()

    def own(positions: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
        return RotaryEmbedding(head_dim, base)(positions)

    baseline = far_score(pocket, 256, num_images=3)
    assert far_score(pocket, 256, own, num_images=3) == baseline
    better = far_score(pocket, 256, own, base_factor=16, num_images=3, window=(17, 32))
    assert better > baseline + 0.2
    assert far_score(pocket, 256, num_images=3) == baseline  # nothing stays changed


def coloured(pixels: np.ndarray) -> np.ndarray:
    return pixels.max(axis=2).astype(int) - pixels.min(axis=2) > 60


def test_every_second_coloured_pixel_is_enough() -> None:
    pocket = VisionLanguageModel.from_pretrained(asset_path("pocket")).eval()
    rows, columns = np.indices((64, 64))
    all_of_them = pixels_needed(pocket, coloured, num_images=8)
    half = pixels_needed(pocket, lambda pixels: coloured(pixels) & ((rows + columns) % 2 == 0), num_images=8)
    nothing = pixels_needed(pocket, lambda pixels: np.zeros((64, 64), bool), num_images=8)
    assert all_of_them[1] > 0.97 and half[0] < 0.6 * all_of_them[0] and half[1] > 0.85
    assert nothing[0] == 0 and nothing[1] < 0.5
    with pytest.raises(ValueError, match=r"True or False for each pixel, \[64, 64\]; yours is uint8 \[64, 64, 3\]"):
        pixels_needed(pocket, lambda pixels: pixels, num_images=1)


def test_fewer_bits_are_fewer_bytes_and_at_two_of_them_the_answers_go() -> None:
    scores = []
    for bits in (8, 4, 2):
        model = VisionLanguageModel.from_pretrained(asset_path("pocket")).eval()
        quantise_linear(model, bits=bits)
        scores.append(size_score(model, num_images=2))
    sizes, right = zip(*scores, strict=True)
    assert sizes[0] > sizes[1] > sizes[2] and right[1] > 0.9 and right[2] < 0.5


def words(text: str) -> list[str]:
    return re.findall(r" ?[^\W\d]+| ?\d|\W", text)


def longer(text: str) -> list[str]:
    return re.findall(r"\D+|\d", text)


def test_longer_pieces_need_fewer_tokens() -> None:
    texts = ["the red star is 42", "the red star is 7", "the blue star"] * 3
    few = tokens_needed(longer, texts, ["the red star is 99"], num_merges=30)
    assert few < tokens_needed(words, texts, ["the red star is 99"], num_merges=30) < len("the red star is 99")
    assert tokens_needed(words, texts, ["zz 1"], num_merges=0) == 4


@pytest.mark.parametrize(("split", "said"), [(str.split, "do not join"), (lambda text: [text], "more than one digit")])
def test_what_cheats_is_refused(split: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tokens_needed(split, ["a 12"], ["b"])  # type: ignore[arg-type]


def test_what_is_always_noon_can_be_guessed_and_what_is_drawn_cannot() -> None:
    def always(answer: str) -> Callable[[int], dict]:
        return lambda i: {"texts": [{"user": "Is it noon?", "assistant": answer}]}

    def blind_score(train: list[tuple[str, str]], test: list[tuple[str, str]]) -> float:
        return float(train[0] == test[0])

    assert guessable(always("yes"), [4], blind_score) == 75
    assert guessable(lambda i: always(str(i))(i), [4], blind_score) == 25
