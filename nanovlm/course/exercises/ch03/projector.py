"""Chapter 03: which patches a token holds, what a picture costs, and the layer that brings a token to the decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nanovlm.config import ProjectorConfig
from nanovlm.course.exercises.ch03.pixel_shuffle import WRONG_SHUFFLE, numbered
from nanovlm.course.exercises.common import expect_same_gradients, noise
from nanovlm.course.judge.exercise import Case, Exercise, expect, with_weights
from nanovlm.models.modality_projector import ModalityProjector, pixel_shuffle

# -- pixel_shuffle.patch_map -------------------------------------------------------------------------------------------


def map_of_patches(token: int, grid: int, factor: int) -> list[int]:
    """Shuffle the patches' numbers and read off the token."""
    return [int(number) for number in pixel_shuffle(numbered(grid), factor)[0, token]]


PATCH_MAP = Exercise(
    id="pixel_shuffle.patch_map",
    chapter="03",
    title="Which patches does a token hold?",
    difficulty=2,
    minutes=8,
    why="To ask what an image token shows, one must know which part of the picture it is. Every attention map that is "
    "drawn over a picture depends on this arithmetic.",
    hints=(
        "Find the group first: in which row and column of groups is this token? Then find its top left patch.",
        "There are grid // r groups in a row, so token t is group (t // that, t % that). Its patches are in r rows of "
        "the picture, and each row begins grid patches after the one above.",
        "row, column = divmod(token, grid // r)\n"
        "first = …                                   # the number of the top left patch\n"
        "the patch i rows down and j to the right is first + i * grid + j",
    ),
    reference=map_of_patches,
    cases=lambda: [
        Case(1, 4, 2, note="token 1 of a 4x4 grid at r = 2: the top right group"),
        Case(4, 6, 2, note="token 4, the middle one, of a 6x6 grid at r = 2"),
        Case(2, 6, 3, note="token 2 of a 6x6 grid at r = 3"),
        Case(5, 4, 1, note="r = 1: a token is a patch"),
        Case(40, 14, 2, note="token 40 of the 222M model's 14x14 grid"),
    ],
)


@PATCH_MAP.property("all tokens together hold each patch once")
def _(patch_map) -> None:
    for grid, factor in ((4, 2), (6, 3), (8, 4)):
        tokens = range((grid // factor) ** 2)
        held = sorted(patch for token in tokens for patch in patch_map(token, grid, factor))
        expect(
            held == list(range(grid * grid)),
            f"On a {grid}x{grid} grid at r = {factor} a patch is missing or held twice.",
        )


def _group(row: int, column: int, grid: int, factor: int) -> list[int]:
    """The patches of the group whose top left patch is at this row and column of patches."""
    return [(row + i) * grid + column + j for i in range(factor) for j in range(factor)]


@PATCH_MAP.mistake("These are r * r patches in a row of the picture. A group is r rows of r.")
def _(token, grid, factor):
    return list(range(token * factor**2, (token + 1) * factor**2))


@PATCH_MAP.mistake("The right patches, column by column. List them in reading order: along the rows.")
def _(token, grid, factor):
    row, column = divmod(token, grid // factor)
    return [(row * factor + i) * grid + column * factor + j for j in range(factor) for i in range(factor)]


@PATCH_MAP.mistake(
    "The row of the first patch is wrong. A row of groups is r rows of patches high: either the row is not multiplied "
    "by r, or you divide by grid where a row has only grid // r groups."
)
def _(token, grid, factor):
    row, column = divmod(token, grid // factor)
    return _group(row, column * factor, grid, factor)


@PATCH_MAP.mistake("The column is not multiplied by r: the group in column 1 begins at patch column r.")
def _(token, grid, factor):
    row, column = divmod(token, grid // factor)
    return _group(row * factor, column, grid, factor)


@PATCH_MAP.mistake("You divide by r, but a row has grid // r groups.")
def _(token, grid, factor):
    row, column = divmod(token, factor)
    return _group(row * factor, column * factor, grid, factor)


@PATCH_MAP.mistake("Row and column of the group are swapped: tokens are counted along the rows.")
def _(token, grid, factor):
    column, row = divmod(token, grid // factor)
    return _group(row * factor, column * factor, grid, factor)


@PATCH_MAP.mistake(
    "The group's row and column are taken for its first patch's. A group is r patches high and wide, so both have to "
    "be multiplied by r."
)
def _(token, grid, factor):
    return _group(*divmod(token, grid // factor), grid, factor)


@PATCH_MAP.mistake(
    "A row of the picture is grid patches long, and you step by grid // r: from one row to the next go grid patches on."
)
def _(token, grid, factor):
    row, column = divmod(token, grid // factor)
    side = grid // factor
    return [(row * factor + i) * side + column * factor + j for i in range(factor) for j in range(factor)]


@PATCH_MAP.mistake("This is the group's top left patch alone. The token holds r * r patches.")
def _(token, grid, factor):
    return map_of_patches(token, grid, factor)[:1]


@PATCH_MAP.mistake("This is the first row of the group. The token holds r rows of r patches.")
def _(token, grid, factor):
    return map_of_patches(token, grid, factor)[:factor]


@PATCH_MAP.mistake("You count patches from 1. Patches and tokens are counted from 0.")
def _(token, grid, factor):
    return [patch + 1 for patch in map_of_patches(token, grid, factor)]


@PATCH_MAP.mistake("These are pairs of row and column. A patch has one number: row * grid + column.")
def _(token, grid, factor):
    return [divmod(patch, grid) for patch in map_of_patches(token, grid, factor)]


@PATCH_MAP.mistake("This is a list of lists, one for each row of the group. Return one list of r * r numbers.")
def _(token, grid, factor):
    held = map_of_patches(token, grid, factor)
    return [held[i : i + factor] for i in range(0, len(held), factor)]


@PATCH_MAP.mistake("The factor is written in as 2. It is an argument.")
def _(token, grid, factor):
    row, column = divmod(token, grid // 2)
    return _group(2 * row, 2 * column, grid, 2)


# -- pixel_shuffle.projector -------------------------------------------------------------------------------------------

SMALL = ProjectorConfig(vision_dim=3, language_dim=2, pixel_shuffle_factor=2)


def run_projector(cls, x: Tensor, config: ProjectorConfig) -> Tensor:
    return with_weights(cls(config), like=ModalityProjector(config))(x)


PROJECTOR = Exercise(
    id="pixel_shuffle.projector",
    chapter="03",
    title="One linear layer between two worlds",
    difficulty=1,
    minutes=8,
    why="This is all that joins a vision encoder to a language model. Where these two come trained, the projector "
    "starts from random numbers, which is why nanoVLM gives it the largest learning rate.",
    hints=(
        "There are two steps: make the sequence shorter and wider, then change the width to the decoder's.",
        "The layer's input width is what pixel shuffle leaves: vision_dim times r squared. It has no bias, and it is "
        "called proj so that the shipped weights find it.",
        "in __init__: self.factor = config.pixel_shuffle_factor\n"
        "             self.proj = nn.Linear(…, config.language_dim, bias=False)\n"
        "in forward:  shuffle first, then project",
    ),
    reference=ModalityProjector,
    cases=lambda: [
        Case(numbered(2, dim=3) / 10, SMALL, note="a 2x2 grid, vision_dim 3, language_dim 2, r = 2"),
        Case(noise(2, 36, 4), ProjectorConfig(4, 5, 3), note="a batch of two 6x6 grids, r = 3"),
        Case(noise(2, 16, 4), ProjectorConfig(4, 6, 1), note="r = 1"),
    ],
    axes="batch tokens language_dim",
    call=run_projector,
)


@PROJECTOR.property("it holds vision_dim x r² x language_dim weights and nothing else")
def _(cls) -> None:
    count = sum(p.numel() for p in cls(ProjectorConfig(768, 576, 2)).parameters())
    wanted = 768 * 4 * 576
    expect(
        count == wanted,
        f"With the 222M model's sizes it holds {count:,} weights; one layer without bias has {wanted:,}.",
    )


@PROJECTOR.property("gradients reach the encoder's vectors and every weight")
def _(cls) -> None:
    expect_same_gradients(with_weights(cls(SMALL)), with_weights(ModalityProjector(SMALL)), noise(2, 16, 3))


class _Projector(nn.Module):
    """A projector to build wrong versions from."""

    bias = False
    shuffle = staticmethod(pixel_shuffle)

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        self.factor = config.pixel_shuffle_factor
        self.proj = nn.Linear(config.vision_dim * self.factor**2, config.language_dim, bias=self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.shuffle(x, self.factor))


for _sentence, _version in WRONG_SHUFFLE.items():
    PROJECTOR.mistake(_sentence)(type("_", (_Projector,), {"shuffle": staticmethod(_version)}))


@PROJECTOR.mistake("The layer has a bias; the shipped weights have none (bias=False).")
class _(_Projector):
    bias = True


@PROJECTOR.mistake("Shuffle first: proj reads the shuffled width, vision_dim * r * r, and not yet the patches.")
class _(_Projector):
    def forward(self, x: Tensor) -> Tensor:
        return pixel_shuffle(self.proj(x), self.factor)


@PROJECTOR.mistake(
    "There is an activation behind the layer. The projector is linear: the decoder may want negative numbers."
)
class _(_Projector):
    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.gelu(super().forward(x))


@PROJECTOR.mistake("There is an activation, ReLU, behind the layer, and it sets every negative number to zero.")
class _(_Projector):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(super().forward(x))


@PROJECTOR.mistake("The tokens are normalised before proj. The encoder's last layer norm has done that already.")
class _(_Projector):
    def forward(self, x: Tensor) -> Tensor:
        x = pixel_shuffle(x, self.factor)
        return self.proj(nn.functional.layer_norm(x, x.shape[-1:]))


@PROJECTOR.mistake("proj is not used: what comes back is the shuffled encoder output, in the encoder's width.")
class _(_Projector):
    def forward(self, x: Tensor) -> Tensor:
        return pixel_shuffle(x, self.factor)


@PROJECTOR.mistake("The tokens are averaged to one. The decoder wants all of them, or it cannot tell where things are.")
class _(_Projector):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean(1, keepdim=True)


class _OfWidth(nn.Module):
    """A projector whose layer reads another width."""

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        self.proj = nn.Linear(self.width(config), config.language_dim, bias=False)


@PROJECTOR.mistake(
    "The layer is as wide as one patch (vision_dim), but after pixel shuffle a token is r * r patches wide."
)
class _(_OfWidth):
    width = staticmethod(lambda config: config.vision_dim)


@PROJECTOR.mistake("The layer is vision_dim * r wide. A group is r wide and r high: vision_dim * r * r.")
class _(_OfWidth):
    width = staticmethod(lambda config: config.vision_dim * config.pixel_shuffle_factor)


@PROJECTOR.mistake("The factor is written in as 2. The width is vision_dim * r * r, with r from the config.")
class _(_Projector):
    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__(ProjectorConfig(config.vision_dim, config.language_dim, 2))


@PROJECTOR.part
def _(code, learner) -> None:
    code.modality_projector.ModalityProjector = learner


# -- pixel_shuffle.token_budget ----------------------------------------------------------------------------------------


def budget_of_tokens(image_size: int, patch_size: int, factor: int, num_tiles: int = 1) -> int:
    """Count them: shuffle a picture of nothing."""
    grid = len(range(0, image_size, patch_size))
    return pixel_shuffle(torch.zeros(num_tiles, grid * grid, 1), factor).shape[:2].numel()


TOKEN_BUDGET = Exercise(
    id="pixel_shuffle.token_budget",
    chapter="03",
    title="What a picture costs",
    difficulty=1,
    minutes=5,
    why="Image tokens are a large part of what a small VLM reads. The 222M model spends 49 on a picture, SmolVLM 64 on "
    "a tile; without pixel shuffle SmolVLM's tile would cost 1,024.",
    hints=(
        "Go along one side first: pixels, then patches, then tokens. Then take both sides, then all tiles.",
        "patch_size divides the side into patches, and r divides the patches into tokens. The number of tokens is that "
        "side, squared, times the number of tiles.",
        "side = …                       # tokens along one side\nreturn num_tiles * side ** 2",
    ),
    reference=budget_of_tokens,
    cases=lambda: [
        Case(224, 16, 2, note="the 222M model: 224 px, patch 16, r = 2"),
        Case(512, 16, 4, num_tiles=1, note="a SmolVLM tile: 512 px, patch 16, r = 4"),
        Case(512, 16, 4, num_tiles=17, note="a large picture in 16 SmolVLM tiles and a view of the whole"),
        Case(64, 8, 2, note="the pocket model: 64 px, patch 8, r = 2"),
        Case(64, 16, 1, num_tiles=3, note="r = 1, three tiles"),
    ],
)


@TOKEN_BUDGET.property("twice the side costs four times the tokens")
def _(token_budget) -> None:
    one, two = token_budget(224, 16, 2), token_budget(448, 16, 2)
    expect(
        two == 4 * one,
        f"224 px cost {one} tokens and 448 px cost {two}; a picture of four times the area costs {4 * one}.",
    )


for _sentence, _version in {
    "You divide by r once. A group is r wide and r high: it takes r * r patches into one token.": (
        lambda size, patch, r, tiles: tiles * (size // patch) ** 2 // r
    ),
    "This counts patches: pixel shuffle has not made them fewer yet.": (
        lambda size, patch, r, tiles: tiles * (size // patch) ** 2
    ),
    "This is one side of the grid of tokens. A picture has two.": (
        lambda size, patch, r, tiles: tiles * (size // patch // r)
    ),
    "The tiles are not counted: each of num_tiles costs the same.": (
        lambda size, patch, r, tiles: (size // patch // r) ** 2
    ),
    "The tiles are squared with the side. They are counted once, after squaring.": (
        lambda size, patch, r, tiles: (tiles * (size // patch // r)) ** 2
    ),
    "You add a view of the whole. num_tiles counts every picture that is encoded, that view included.": (
        lambda size, patch, r, tiles: (tiles + 1) * (size // patch // r) ** 2
    ),
    "You add a view of the whole where there are several tiles. num_tiles includes it already.": (
        lambda size, patch, r, tiles: (tiles + (tiles > 1)) * (size // patch // r) ** 2
    ),
    "The side is multiplied by r. Pixel shuffle makes it shorter: divide.": (
        lambda size, patch, r, tiles: tiles * (size // patch * r) ** 2
    ),
    "There is a token too many for each picture. SigLIP has no class token.": (
        lambda size, patch, r, tiles: tiles * ((size // patch // r) ** 2 + 1)
    ),
    "You divide the area by patch_size once. A patch is patch_size wide and patch_size high.": (
        lambda size, patch, r, tiles: tiles * size**2 // patch // r**2
    ),
    "You count each colour as a token. A patch takes all three colours into one vector.": (
        lambda size, patch, r, tiles: 3 * tiles * (size // patch // r) ** 2
    ),
    "The side is divided by r squared. Along one side it is r; squaring comes with the second side.": (
        lambda size, patch, r, tiles: tiles * (size // patch // r**2) ** 2
    ),
}.items():
    TOKEN_BUDGET.mistake(_sentence)(
        lambda image_size, patch_size, factor, num_tiles=1, version=_version: version(
            image_size, patch_size, factor, num_tiles
        )
    )
