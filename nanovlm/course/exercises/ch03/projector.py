"""Chapter 03: what a token holds, what it costs, and the layer that brings it to the decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nanovlm.config import ProjectorConfig
from nanovlm.course.judge.exercise import Case, Exercise, expect, with_weights
from nanovlm.course.exercises.ch03.pixel_shuffle import numbered
from nanovlm.course.exercises.common import noise
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
    why="To ask what an image token looks at, one must know which part of the picture it is. Every attention map drawn "
    "over a picture stands on this small piece of arithmetic.",
    hints=(
        "Find the tile first: in which row and column of tiles is this token? Then its top left patch.",
        "There are grid // r tiles in a row. Token t is tile (t // that, t % that). Its patches lie in r picture rows, "
        "each grid patches further on than the one above.",
        "row, column = divmod(token, grid // r)\n"
        "first = (row * r) * grid + column * r\n"
        "the patch i rows down and j to the right is first + i * grid + j",
    ),
    reference=map_of_patches,
    cases=lambda: [
        Case(1, 4, 2, note="token 1 of a 4x4 grid at r = 2: the top right tile"),
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


@PATCH_MAP.mistake("These are r * r patches in a row of the picture. A tile is r rows of r.")
def _(token, grid, factor):
    return list(range(token * factor**2, (token + 1) * factor**2))


@PATCH_MAP.mistake("The right patches, column by column. List them in reading order: along the rows.")
def _(token, grid, factor):
    row, column = divmod(token, grid // factor)
    rows, columns = range(row * factor, (row + 1) * factor), range(column * factor, (column + 1) * factor)
    return [r * grid + c for c in columns for r in rows]


@PATCH_MAP.mistake("You divide by grid, but a row of tiles has only grid // r of them: the token is in another tile.")
def _(token, grid, factor):
    row, column = divmod(token, grid)
    rows, columns = range(row * factor, (row + 1) * factor), range(column * factor, (column + 1) * factor)
    return [r * grid + c for r in rows for c in columns]


@PATCH_MAP.mistake("Row and column of the tile are swapped: tokens are counted along the rows.")
def _(token, grid, factor):
    column, row = divmod(token, grid // factor)
    rows, columns = range(row * factor, (row + 1) * factor), range(column * factor, (column + 1) * factor)
    return [r * grid + c for r in rows for c in columns]


@PATCH_MAP.mistake(
    "The tile's row and column are taken for its first patch's. A tile is r patches high and wide: the tile at column "
    "1 begins at patch column r."
)
def _(token, grid, factor):
    row, column = divmod(token, grid // factor)
    return [(row + i) * grid + column + j for i in range(factor) for j in range(factor)]


@PATCH_MAP.mistake("This is the tile's top left patch alone. The token holds r * r patches.")
def _(token, grid, factor):
    row, column = divmod(token, grid // factor)
    return [row * factor * grid + column * factor]


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
    why="This is all that joins a vision encoder to a language model. Where these two come trained, it is the only "
    "part that starts from random numbers, which is why nanoVLM gives it the largest learning rate.",
    hints=(
        "Two steps: make the sequence shorter and wider, then change the width to the decoder's.",
        "The layer's input width is what pixel shuffle leaves: vision_dim times r squared. It has no bias, and it is "
        "called proj so that the shipped weights find it.",
        "in __init__: self.factor = config.pixel_shuffle_factor\n"
        "             self.proj = nn.Linear(vision_dim * factor ** 2, language_dim, bias=False)\n"
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


@PROJECTOR.property("every weight gets a gradient")
def _(cls) -> None:
    module = with_weights(cls(SMALL))
    module(noise(1, 16, 3)).sum().backward()
    idle = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    expect(not idle, f"No gradient reaches {', '.join(idle)}.")


class _Projector(nn.Module):
    """A projector to build wrong versions from."""

    bias = False

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        self.factor = config.pixel_shuffle_factor
        self.proj = nn.Linear(config.vision_dim * self.factor**2, config.language_dim, bias=self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(pixel_shuffle(x, self.factor))


@PROJECTOR.mistake("The layer has a bias; the shipped weights have none (bias=False).")
class _(_Projector):
    bias = True


@PROJECTOR.mistake("The patches reach the layer by a plain reshape: strips of a row for tiles. Use pixel shuffle.")
class _(_Projector):
    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x.reshape(x.shape[0], -1, self.proj.in_features))


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


@PROJECTOR.mistake(
    "The layer is as wide as one patch (vision_dim), but after pixel shuffle a token is r * r patches wide."
)
class _(nn.Module):
    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        self.factor = config.pixel_shuffle_factor
        self.proj = nn.Linear(config.vision_dim, config.language_dim, bias=False)


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
        "Along one side: pixels -> patches -> tokens. Then both sides, then all tiles.",
        "patch_size divides the side into patches; r divides the patches into tokens; the number of tokens is that "
        "side, squared, times the number of tiles.",
        "side = image_size // patch_size // factor\nreturn … * side ** 2",
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


@TOKEN_BUDGET.mistake("You divide by r once. A tile is r wide and r high: it takes r * r patches into one token.")
def _(image_size, patch_size, factor, num_tiles=1):
    return num_tiles * (image_size // patch_size) ** 2 // factor


@TOKEN_BUDGET.mistake("This counts patches: pixel shuffle has not made them fewer yet.")
def _(image_size, patch_size, factor, num_tiles=1):
    return num_tiles * (image_size // patch_size) ** 2


@TOKEN_BUDGET.mistake("This is one side of the grid of tokens. A picture has two.")
def _(image_size, patch_size, factor, num_tiles=1):
    return num_tiles * (image_size // patch_size // factor)


@TOKEN_BUDGET.mistake("The tiles are not counted: each of num_tiles costs the same.")
def _(image_size, patch_size, factor, num_tiles=1):
    return (image_size // patch_size // factor) ** 2


@TOKEN_BUDGET.mistake("The tiles are squared with the side. They are counted once, after squaring.")
def _(image_size, patch_size, factor, num_tiles=1):
    return (num_tiles * (image_size // patch_size // factor)) ** 2
