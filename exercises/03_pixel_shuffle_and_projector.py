# %% [markdown]
# # 03 Exercises: pixel shuffle and the projector
#
# Eight of them. After the first five you have written the projector between vision encoder and decoder, and its
# inverse. The others measure what tiles save, mend a shuffle and test one.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [the chapter](../chapters/03_pixel_shuffle_and_projector.ipynb) ·
# [the solutions](../solutions/03_pixel_shuffle_and_projector.ipynb) ·
# [notation and terms](../chapters/notation.md)
#
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/exercises/03_pixel_shuffle_and_projector.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/exercises/03_pixel_shuffle_and_projector.ipynb

# %% tags=["stamped"]
# @title Set-up: the nanovlm that is installed; Colab installs it first.
import subprocess
import sys
from importlib import import_module

try:
    import_module("nanovlm.course")
except ImportError:
    package = "nanovlm[notebook] @ git+https://github.com/nanovlm-course/nanovlm@main"
    if "google.colab" not in sys.modules:
        advice = f'In a clone run `make lab`, elsewhere pip install "{package}".'
        raise ModuleNotFoundError(f"This kernel has no nanovlm. {advice}") from None
    if subprocess.run([sys.executable, "-m", "pip", "install", "-q", package]).returncode:
        raise RuntimeError("pip could not install nanovlm (see above). Run this again.") from None
    import_module("nanovlm.course")

# %%
import torch
from torch import Tensor, nn

from nanovlm.config import ProjectorConfig, ViTConfig
from nanovlm.course import check, use

# %% [markdown] tags=["stamped"]
# ## Exercise 3.1 · Groups of patches become tokens
# `pixel_shuffle.shuffle` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** It makes a picture four times shorter for the decoder at r = 2, without throwing a number
# away. With the wrong order every shape still fits and nothing complains, and weights trained for groups see a
# scrambled picture.

# %% [markdown] tags=["exercise"]
# The encoder returns one vector for each patch, in reading order. Make one token of every group of `factor` x `factor`
# neighbouring patches: the group's vectors, laid end to end, row by row.
#
# `[batch, grid * grid, dim]` becomes `[batch, (grid / factor) ** 2, dim * factor ** 2]`. Patches that hold their own
# number, on a 4 x 4 grid with `factor = 2`:
#
# ```
#  0  1 |  2  3
#  4  5 |  6  7         0  1  4  5      token 0, the group at the top left
# ------+------   ->    2  3  6  7      token 1
#  8  9 | 10 11         8  9 12 13      token 2
# 12 13 | 14 15        10 11 14 15      token 3
# ```
#
# The grid is square, and `factor` divides its side.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# A group is r rows of r neighbours. In reading order its patches do not follow each other: between the first
# row of a group and its second comes the rest of the picture's row.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Split the one patch axis into four: row of groups, row inside the group, column of groups, column inside the
# group. Bring the two inner axes together. Then merge: two axes into tokens, three into the new, wider dim.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# x = x.reshape(batch, grid // r, r, grid // r, r, dim)
# x = x.transpose(…)                                     # [batch, row, column, r, r, dim]
# return x.reshape(batch, number of groups, r * r * dim)
# ```
#
# </details>


# %%
def pixel_shuffle(x: Tensor, factor: int) -> Tensor:
    """Trade length for width. [B, grid * grid, dim] -> [B, (grid / factor) ** 2, dim * factor ** 2]"""
    raise NotImplementedError("pixel_shuffle.shuffle")


# %%
check("pixel_shuffle.shuffle", pixel_shuffle)

# %% [markdown] tags=["stamped"]
# ## Exercise 3.2 · And back again
# `pixel_shuffle.unshuffle` · difficulty ●●○ · about 8 minutes
#
# **Why it matters.** An operation that can be undone has lost nothing. And with the inverse one can see what a
# wrong shuffle does to a picture, which the chapter draws.

# %% [markdown] tags=["exercise"]
# Pixel shuffle loses nothing, so it can be undone. Take its tokens apart again and put every patch back where it was:
# `[batch, side * side, dim * factor ** 2]` becomes `[batch, (side * factor) ** 2, dim]`, in reading order.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Read your pixel_shuffle from the last line to the first and undo each step.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Split the tokens into rows and columns of groups, and the wide dim into r, r and dim. Then bring row next to
# row and column next to column.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# side = round(num_tokens ** 0.5)
# x = x.reshape(batch, side, side, …)
# x = x.transpose(2, 3)
# return x.reshape(batch, number of patches, dim)
# ```
#
# </details>


# %%
def pixel_unshuffle(x: Tensor, factor: int) -> Tensor:
    """Undo pixel_shuffle. [B, side * side, dim * factor ** 2] -> [B, (side * factor) ** 2, dim]"""
    raise NotImplementedError("pixel_shuffle.unshuffle")


# %%
check("pixel_shuffle.unshuffle", pixel_unshuffle)

# %% [markdown] tags=["stamped"]
# ## Exercise 3.3 · Which patches does a token hold?
# `pixel_shuffle.patch_map` · difficulty ●●○ · about 8 minutes
#
# **Why it matters.** To ask what an image token shows, one must know which part of the picture it is. Every
# attention map that is drawn over a picture depends on this arithmetic.

# %% [markdown] tags=["exercise"]
# Which patches does one image token hold? Return their numbers as a list of `factor ** 2` ints, in the order that they
# have in the token. Patches and tokens are both counted from 0 in reading order. On a 4 x 4 grid with `factor = 2`,
# token 1 holds `[2, 3, 6, 7]`.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Find the group first: in which row and column of groups is this token? Then find its top left patch.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# There are grid // r groups in a row, so token t is group (t // that, t % that). Its patches are in r rows of
# the picture, and each row begins grid patches after the one above.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# row, column = divmod(token, grid // r)
# first = …                                   # the number of the top left patch
# the patch i rows down and j to the right is first + i * grid + j
# ```
#
# </details>


# %%
def patch_map(token: int, grid: int, factor: int) -> list[int]:
    """The patches of one token. grid: patches along one side of the picture."""
    raise NotImplementedError("pixel_shuffle.patch_map")


# %%
check("pixel_shuffle.patch_map", patch_map)

# %% [markdown] tags=["stamped"]
# ## Exercise 3.4 · One linear layer between two worlds
# `pixel_shuffle.projector` · difficulty ●○○ · about 8 minutes
#
# **Why it matters.** This is all that joins a vision encoder to a language model. Where these two come trained,
# the projector starts from random numbers, which is why nanoVLM gives it the largest learning rate.

# %% [markdown] tags=["exercise"]
# Write the projector: pixel shuffle, then one linear layer without bias, called `proj`, from the shuffled width to the
# decoder's. The config has `vision_dim`, `language_dim` and `pixel_shuffle_factor`.
#
# The cell below takes your `pixel_shuffle` if it passes its check, and the package's otherwise.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# There are two steps: make the sequence shorter and wider, then change the width to the decoder's.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# The layer's input width is what pixel shuffle leaves: vision_dim times r squared. It has no bias, and it is
# called proj so that the shipped weights find it.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# in __init__: self.factor = config.pixel_shuffle_factor
#              self.proj = nn.Linear(…, config.language_dim, bias=False)
# in forward:  shuffle first, then project
# ```
#
# </details>

# %%
pixel_shuffle = use("pixel_shuffle.shuffle", pixel_shuffle)


# %%
class ModalityProjector(nn.Module):
    """[B, num_patches, vision_dim] -> [B, num_patches / factor ** 2, language_dim]"""

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        raise NotImplementedError("pixel_shuffle.projector")

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError("pixel_shuffle.projector")


# %%
check("pixel_shuffle.projector", ModalityProjector)

# %% [markdown] tags=["stamped"]
# ## Exercise 3.5 · What a picture costs
# `pixel_shuffle.token_budget` · difficulty ●○○ · about 5 minutes
#
# **Why it matters.** Image tokens are a large part of what a small VLM reads. The 222M model spends 49 on a
# picture, SmolVLM 64 on a tile; without pixel shuffle SmolVLM's tile would cost 1,024.

# %% [markdown] tags=["exercise"]
# How many tokens does the decoder read for a picture of `image_size` x `image_size` pixels, cut into patches of
# `patch_size` pixels and shuffled by `factor`? Some models cut a large picture into `num_tiles` tiles of that size and
# encode each of them: count them all. `num_tiles` counts every picture that is encoded, the view of the whole included.
# 224 pixels in patches of 16 with `factor = 2` cost 49.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Go along one side first: pixels, then patches, then tokens. Then take both sides, then all tiles.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# patch_size divides the side into patches, and r divides the patches into tokens. The number of tokens is that
# side, squared, times the number of tiles.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# side = …                       # tokens along one side
# return num_tiles * side ** 2
# ```
#
# </details>


# %%
def token_budget(image_size: int, patch_size: int, factor: int, num_tiles: int = 1) -> int:
    """Image tokens of one picture. image_size and patch_size in pixels; everything divides evenly."""
    raise NotImplementedError("pixel_shuffle.token_budget")


# %%
check("pixel_shuffle.token_budget", token_budget)

# %% [markdown] tags=["stamped"]
# ## Exercise 3.6 · Measure it: sixteen times less of what?
# `pixel_shuffle.tile_savings` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** A factor is only as good as what it counts. Tiles save an encoder pairs of patches, and a
# blog post that quotes this factor as the saving of compute promises four times too much.

# %% [markdown] tags=["exercise"]
# **Measure it.** An encoder reads a picture of `num_patches` patches either in one piece, or in `num_tiles` tiles of
# equal size, one after another. Return two factors: how many times fewer pairs of patches attend to each other with
# tiles, and how many times fewer operations one block needs.
#
# Count a multiplication and an addition as two operations. A block has four linear layers, `qkv_proj` (dim to 3 dim),
# `out_proj` (dim to dim), `fc1` (dim to inter) and `fc2` (inter to dim), and in attention the scores and the weighted
# sum. Leave out biases, norms, softmax and activation.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Count two things for the whole picture and for all tiles together: pairs of patches, and operations.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Attention in one block takes 4 * n * n * dim operations for n patches. The linear layers take 2 * n * (4 * dim
# * dim + 2 * dim * inter). With tiles, attention runs num_tiles times on n / num_tiles patches, and the linear
# layers see as many patches as before.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# linear = 2 * n * (4 * dim**2 + 2 * dim * inter)
# whole = linear + 4 * n**2 * dim
# tiled = linear + …
# return n**2 / (num_tiles * (n // num_tiles)**2), whole / tiled
# ```
#
# </details>


# %%
def tile_savings(num_patches: int, num_tiles: int, config: ViTConfig) -> tuple[float, float]:
    """(pairs, operations): how many times fewer with tiles than in one piece."""
    raise NotImplementedError("pixel_shuffle.tile_savings")


# %%
check("pixel_shuffle.tile_savings", tile_savings)

# %% [markdown] tags=["stamped"]
# ## Exercise 3.7 · Mend it: a shuffle for pictures that are not square
# `pixel_shuffle.shuffle_rectangle` · difficulty ●●○ · about 10 minutes
#
# **Why it matters.** Models with native resolution encode pictures as they are, wide or tall. Code that was
# only ever tried on squares hides two kinds of mistakes there.

# %% [markdown] tags=["exercise"]
# **Mend it.** Somebody has generalised pixel shuffle to pictures that are not square:
#
# ```python
# def shuffle_rectangle(x, height, width, factor):
#     batch, _, dim = x.shape
#     x = x.reshape(batch, width // factor, factor, height // factor, factor, dim)
#     x = x.transpose(2, 3)
#     return x.reshape(batch, -1, factor * factor * dim)
# ```
#
# The symptom: with square pictures all tests pass, and with wide ones the model confuses left and right. `x` is
# `[batch, height * width, dim]`, in reading order, and `factor` divides both sides.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# On a square picture rows and columns have the same number. Which of the sizes in the code is which?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# The patch axis is height rows of width patches. Split it in this order: rows of groups, rows inside, columns
# of groups, columns inside. Then bring the inner axes together.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# x = x.reshape(batch, …, factor, …, factor, dim)
# x = x.transpose(2, 3)
# return x.reshape(batch, (height // factor) * (width // factor), factor * factor * dim)
# ```
#
# </details>


# %%
def shuffle_rectangle(x: Tensor, height: int, width: int, factor: int) -> Tensor:
    """[B, height * width, dim] -> [B, height * width / factor ** 2, dim * factor ** 2]; sizes in patches"""
    raise NotImplementedError("pixel_shuffle.shuffle_rectangle")


# %%
check("pixel_shuffle.shuffle_rectangle", shuffle_rectangle)

# %% [markdown] tags=["stamped"]
# ## Exercise 3.8 · Write the test that no wrong shuffle passes
# `pixel_shuffle.test_shuffle` · difficulty ●●○ · about 10 minutes
#
# **Why it matters.** Eight wrong shuffles have the right shape. One small example, with numbers that say where
# they come from, tells all of them apart.

# %% [markdown] tags=["exercise"]
# **Write the test.** The check runs your test on a pixel shuffle that is right, where it has to pass, and on eight
# that are wrong, where it has to fail. All of them return the right shape.
#
# A test calls the function that it is given, `shuffle(x, factor)`, with a small example, compares the result with what
# you have written down by hand, and returns nothing.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# What must an example contain so that each mistake shows: how many pictures, how many numbers in a patch?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Two pictures of 4 x 4 patches with two numbers each, all different: torch.arange. Write down two or three
# tokens by hand, one of them of the second picture.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# x = torch.arange(64.0).view(2, 16, 2)
# tokens = shuffle(x, 2)
# assert tokens[0, 0].tolist() == [0, 1, 2, 3, …]
# and the same for tokens[0, 1] and tokens[1, 2]
# ```
#
# </details>


# %%
def test_shuffle(shuffle) -> None:
    """Passes for pixel_shuffle, and fails for every other rearrangement."""
    raise NotImplementedError("pixel_shuffle.test_shuffle")


# %%
check("pixel_shuffle.test_shuffle", test_shuffle)
