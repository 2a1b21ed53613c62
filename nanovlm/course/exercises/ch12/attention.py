"""Chapter 12: one word's attention as a map of patches, and the chapter's quizzes."""

from __future__ import annotations

import torch
from torch import Tensor

from nanovlm.course.exercises.common import as_wide_as, noise
from nanovlm.course.judge.exercise import Case, Exercise, expect
from nanovlm.models.modality_projector import pixel_shuffle
from nanovlm.trace import patch_map

# -- trace.word_attention ----------------------------------------------------------------------------------------------


def looks(weights: Tensor, word: int, first_image_token: int, grid: int, factor: int) -> Tensor:
    """The tracer's own map of tokens to patches, and its spread."""
    tokens = patch_map(lambda x: pixel_shuffle(x, factor), grid=grid)
    row = weights[:, word].mean(0)
    return tokens.spread(row[first_image_token : first_image_token + len(tokens)])


def _by_hand() -> Tensor:
    """Two heads of a line of six: a word, four image tokens, the word that looks. Its row is what matters."""
    weights = torch.full((2, 6, 6), 1 / 6)
    weights[0, 5] = torch.tensor([0.0, 0.8, 0.0, 0.0, 0.2, 0.0])
    weights[1, 5] = torch.tensor([0.2, 0.0, 0.0, 0.0, 0.8, 0.0])
    return weights


WORD_ATTENTION = Exercise(
    id="trace.word_attention",
    chapter="12",
    title="Where does this word look?",
    difficulty=2,
    minutes=12,
    why="Many a glowing patch in a paper or a demo is drawn by such a function. It can be wrong in several ways and "
    "glow just as nicely.",
    hints=(
        "One row of the weights belongs to your word: who looks stands first, who is looked at stands last.",
        "Mean over heads. The word's row. Of it, the (grid / r)² columns of the image tokens. As a grid of tokens. "
        "Then each token becomes an r x r tile of patches that share its weight.",
        "side = grid // factor\n"
        "tokens = weights.mean(0)[word, first : first + side * side].reshape(side, side)\n"
        "patches = each row and each column of tokens, factor times in a row (repeat_interleave, twice)\n"
        "return patches / factor**2",
    ),
    reference=looks,
    cases=lambda: [
        Case(_by_hand(), 5, 1, 4, 2, note="two heads; the last of six looks at four image tokens of a 4x4 grid, r = 2"),
        Case(noise(3, 12, 12).softmax(-1), 10, 2, 6, 2, note="three heads, a 6x6 grid, r = 2"),
        Case(noise(2, 9, 9, seed=1).softmax(-1), 2, 4, 6, 3, note="a 6x6 grid, r = 3: tiles of nine patches"),
        Case(noise(4, 8, 8, seed=2).softmax(-1), 7, 3, 2, 1, note="r = 1: a token is a patch"),
    ],
    axes="row column",
    call=lambda fn, weights, *more: as_wide_as(weights, fn(weights, *more)),
)


@WORD_ATTENTION.property("the map sums to what the word spends on the picture")
def _(fn) -> None:
    weights = noise(2, 20, 20, seed=3).softmax(-1)
    total, wanted = float(fn(weights.clone(), 19, 3, 8, 2).sum()), float(weights.mean(0)[19, 3:19].sum())
    expect(abs(total - wanted) < 1e-5, f"The word spends {wanted:.3f} on the picture; your map sums to {total:.3f}.")


def _tokens(weights: Tensor, word: int, first: int, grid: int, factor: int) -> Tensor:
    return weights.mean(0)[word, first : first + (grid // factor) ** 2]


def _tiles(tokens: Tensor, grid: int, factor: int) -> Tensor:
    side = grid // factor
    whole = tokens.reshape(side, side)
    return whole.repeat_interleave(factor, 0).repeat_interleave(factor, 1) / factor**2


@WORD_ATTENTION.mistake(
    "This is who looks *at* the word: a column of the weights. Each row is one that looks, and sums to 1."
)
def _(weights, word, first_image_token, grid, factor):
    return _tiles(_tokens(weights.transpose(1, 2), word, first_image_token, grid, factor), grid, factor)


@WORD_ATTENTION.mistake(
    "Each token is laid out as a strip of patches that follow each other. A token is an r x r tile: this is the wrong "
    "reshape once more."
)
def _(weights, word, first_image_token, grid, factor):
    tokens = _tokens(weights, word, first_image_token, grid, factor)
    return (tokens.repeat_interleave(factor**2) / factor**2).reshape(grid, grid)


@WORD_ATTENTION.mistake(
    "You take the first columns of the row. The image tokens begin at first_image_token: this map is shifted by so "
    "many tokens."
)
def _(weights, word, first_image_token, grid, factor):
    return _tiles(_tokens(weights, word, 0, grid, factor), grid, factor)


@WORD_ATTENTION.mistake("Every patch gets the whole weight of its token. They share it: r * r patches, so divide.")
def _(weights, word, first_image_token, grid, factor):
    return _tiles(_tokens(weights, word, first_image_token, grid, factor), grid, factor) * factor**2


@WORD_ATTENTION.mistake(
    "Each token's weight is divided by factor. Its tile has two sides, factor * factor patches: divide by factor**2."
)
def _(weights, word, first_image_token, grid, factor):
    return _tiles(_tokens(weights, word, first_image_token, grid, factor), grid, factor) * factor


@WORD_ATTENTION.mistake(
    "repeat lays the whole map of tokens down again, side by side. Here each token grows into a tile: "
    "repeat_interleave, along rows and along columns."
)
def _(weights, word, first_image_token, grid, factor):
    side = grid // factor
    tokens = _tokens(weights, word, first_image_token, grid, factor).reshape(side, side)
    return tokens.repeat(factor, factor) / factor**2


@WORD_ATTENTION.mistake(
    "This takes the largest of the heads for each token. Take their mean: then the map can sum to 1."
)
def _(weights, word, first_image_token, grid, factor):
    most = weights.amax(0, keepdim=True)
    return _tiles(_tokens(most, word, first_image_token, grid, factor), grid, factor)


@WORD_ATTENTION.mistake("This is the first head alone. Take the mean over all of them.")
def _(weights, word, first_image_token, grid, factor):
    return _tiles(_tokens(weights[:1], word, first_image_token, grid, factor), grid, factor)


@WORD_ATTENTION.mistake("The heads are added. Each of them spends 1, so take their mean.")
def _(weights, word, first_image_token, grid, factor):
    return _tiles(_tokens(weights, word, first_image_token, grid, factor), grid, factor) * weights.shape[0]


@WORD_ATTENTION.mistake(
    "The map is stretched so that it sums to 1. Then a word that hardly looks at the picture glows like one that does."
)
def _(weights, word, first_image_token, grid, factor):
    tokens = _tokens(weights, word, first_image_token, grid, factor)
    return _tiles(tokens / tokens.sum(), grid, factor)


@WORD_ATTENTION.mistake("You begin one token late: the first image token is in the column first_image_token itself.")
def _(weights, word, first_image_token, grid, factor):
    return _tiles(_tokens(weights, word, first_image_token + 1, grid, factor), grid, factor)


@WORD_ATTENTION.mistake("This is the last head alone. Take the mean over all of them.")
def _(weights, word, first_image_token, grid, factor):
    return _tiles(_tokens(weights[-1:], word, first_image_token, grid, factor), grid, factor)


@WORD_ATTENTION.mistake(
    "The map is stretched so that its largest is 1. Then a word that spends 1 % on the picture glows like one that "
    "spends all."
)
def _(weights, word, first_image_token, grid, factor):
    tokens = _tokens(weights, word, first_image_token, grid, factor)
    return _tiles(tokens / tokens.max(), grid, factor) * factor**2


@WORD_ATTENTION.mistake("The map is upside down: image tokens are counted from the top row.")
def _(weights, word, first_image_token, grid, factor):
    return _tiles(_tokens(weights, word, first_image_token, grid, factor), grid, factor).flip(0)


@WORD_ATTENTION.mistake("This is the mean over all words. Take the row of the one that is asked for.")
def _(weights, word, first_image_token, grid, factor):
    mean = weights.mean(1, keepdim=True).expand_as(weights)
    return _tiles(_tokens(mean, word, first_image_token, grid, factor), grid, factor)


@WORD_ATTENTION.mistake("Rows and columns are swapped: tokens are counted along the rows of the picture.")
def _(weights, word, first_image_token, grid, factor):
    return _tiles(_tokens(weights, word, first_image_token, grid, factor), grid, factor).T.contiguous()
