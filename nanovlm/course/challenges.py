"""Scores of the open exercises: a number to raise, a baseline, and no solution."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nanovlm.data.thimble import Thimble
from nanovlm.evaluation.scores import answer_all, questions_of
from nanovlm.inference.prompts import collate_prompts

Angles = Callable[[Tensor, int, float], Sequence[Tensor]]  # positions [B, T], head_dim, base -> cos and sin


def pixels_needed(model: Any, keep: Callable[[np.ndarray], np.ndarray], num_images: int = 20) -> tuple[float, float]:
    """(share of pixels that are kept, share of right answers) over test pictures of shapes, six questions each.

    keep: uint8 [H, W, 3] -> bool [H, W]. The other pixels are painted in the picture's median colour.
    ValueError where `keep` gives something else.
    """
    shown, kept = [], 0.0
    for sample in (Thimble("shapes", "test")[i] for i in range(num_images)):
        pixels = np.asarray(sample["images"][0])
        mask = np.asarray(keep(pixels.copy()))
        if mask.dtype != bool or mask.shape != pixels.shape[:2]:
            raise ValueError(
                f"keep returns True or False for each pixel, {list(pixels.shape[:2])}; yours is {mask.dtype} "
                f"{list(mask.shape)}."
            )
        hidden = np.median(pixels.reshape(-1, 3), axis=0).astype(np.uint8)
        shown.append({**sample, "images": [Image.fromarray(np.where(mask[..., None], pixels, hidden))]})
        kept += float(mask.mean())
    questions = questions_of(shown)
    answers = answer_all(model, questions)
    right = sum(answer == q.answer for answer, q in zip(answers, questions, strict=True))
    return kept / num_images, right / len(questions)


def far_score(
    model: Any,
    between: int,
    angles: Angles | None = None,
    base_factor: float = 1.0,
    num_images: int = 10,
    window: tuple[int, int] | None = None,
) -> float:
    """The share of right answers with `between` padding tokens between a picture and its question; no mask hides them.

    Args:
        angles: computes cos and sin, each [B, 1, T, head_dim], in the place of the model's own.
        base_factor: multiplies the base.
        num_images: of the Thimble's test pictures, with six questions each.
        window: (sink, width): a query attends to the first `sink` tokens and to the `width` tokens up to itself.
    """
    from nanovlm.models import language_model

    pictures = [Thimble("shapes", "test")[i] for i in range(num_images)]
    questions, cut = questions_of(pictures), 1 + model.config.num_image_tokens
    pixels = model.image_processor([picture["images"][0] for picture in pictures])
    prompts = []
    for q in questions:
        message = {"role": "user", "content": q.text}
        ids, _ = model.tokenizer.encode_chat([message], 1, model.config.num_image_tokens, add_generation_prompt=True)
        longer = ids[:cut] + [model.tokenizer.pad_token_id] * between + ids[cut:]
        prompts.append((longer, pixels[q.sample][None]))
    rotary, layout = model.decoder.rotary_embedding, language_model.attention_layout

    def own(positions: Tensor) -> Sequence[Tensor]:
        return angles(positions, rotary.head_dim, rotary.base * base_factor) if angles else whole(positions)

    def windowed(attention_mask, document_ids, length, device, start=0):
        positions, mask = layout(attention_mask, document_ids, length, device, start)
        query, key = torch.arange(start, length)[:, None], torch.arange(length)
        seen = (key <= query) & ((key < window[0]) | (query - key < window[1]))  # type: ignore[index]
        return positions, seen[None, None] if mask is None else mask & seen

    whole = rotary.forward
    with (
        mock.patch.object(rotary, "base", rotary.base * (1.0 if angles else base_factor)),
        mock.patch.object(rotary, "forward", own),
        mock.patch.object(language_model, "attention_layout", layout if window is None else windowed),
    ):
        written = model.generate(**collate_prompts(model, prompts), max_new_tokens=6)
    said = [model.tokenizer.decode(row).strip() for row in written]
    return sum(s == q.answer for s, q in zip(said, questions, strict=True)) / len(questions)


def tokens_needed(
    split: Callable[[str], Sequence[str]],
    texts: Sequence[str],
    unseen: Sequence[str],
    num_merges: int = 120,
    weights: Mapping[str, float] | None = None,
) -> int:
    """How many tokens `unseen` takes after `num_merges` merges, which were learned from `texts` cut by `split`.

    ValueError where `split` loses a character, or leaves two digits in one piece.
    """
    from collections import Counter
    from itertools import pairwise

    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(_pieces(split, text))
    words = {piece: list(piece) for piece in counts}
    merges = []
    for _ in range(num_merges):
        pairs: Counter[tuple[str, str]] = Counter()
        for piece, tokens in words.items():
            for pair in pairwise(tokens):
                pairs[pair] += counts[piece]
        if not pairs:
            break
        best = max(pairs, key=pairs.__getitem__)
        merges.append(best)
        words = {piece: _merged(tokens, best) for piece, tokens in words.items()}
    total = 0
    for text in unseen:
        for piece in _pieces(split, text):
            tokens = list(piece)
            for pair in merges:
                tokens = _merged(tokens, pair)
            total += len(tokens)
    return total


def guessable(
    make: Callable[[int], Mapping[str, Any]],
    choices: Sequence[int],
    blind_score: Callable[[list[tuple[str, str]], list[tuple[str, str]]], float],
) -> float:
    """How far a guesser with closed eyes is from chance, in points, averaged over the kinds of question.

    Args:
        make: makes a sample of a number; turn k of each sample is of kind k. 600 are read, and 200 others are asked.
        choices: how many answers each kind has.
        blind_score: (training turns, test turns), each as (question, answer) -> the share that counting gets right.
    """
    read, asked = ([make(i) for i in numbers] for numbers in (range(1000, 1600), range(200)))
    gaps = []
    for kind, number in enumerate(choices):
        turns = ([sample["texts"][kind] for sample in samples] for samples in (read, asked))
        train, test = ([(turn["user"], turn["assistant"]) for turn in side] for side in turns)
        gaps.append(100 * abs(blind_score(train, test) - 1 / number))
    return sum(gaps) / len(gaps)


def _pieces(split: Callable[[str], Sequence[str]], text: str) -> list[str]:
    pieces = list(split(text))
    if "".join(pieces) != text:
        raise ValueError(f"The pieces of {text[:60]!r} do not join to it again: {pieces[:8]}.")
    for piece in pieces:
        if sum(c.isdigit() for c in piece) > 1:
            raise ValueError(f"The piece {piece!r} holds more than one digit.")
    return pieces


def _merged(tokens: list[str], pair: tuple[str, str]) -> list[str]:
    out, i = [], 0
    while i < len(tokens):
        here = i + 1 < len(tokens) and (tokens[i], tokens[i + 1]) == pair
        out.append(tokens[i] + tokens[i + 1] if here else tokens[i])
        i += 2 if here else 1
    return out


def size_score(model: Any, num_images: int = 40) -> tuple[int, float]:
    """(bytes, share of right answers): the size of a model with its numbers packed, and the mean over the kinds of
    questions about so many test pictures of each of the Thimble's shapes, charts and glyphs."""
    from nanovlm.compress.int8 import size_in_bytes
    from nanovlm.training.probe import Probe, mean

    subsets = [Thimble(name, "test", num_images) for name in ("shapes", "charts", "glyphs")]
    probe = Probe(model, [subset[i] for subset in subsets for i in range(num_images)])
    return size_in_bytes(model), mean(probe.accuracy(model))
