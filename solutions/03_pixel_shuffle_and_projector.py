# %% [markdown]
# # 03 Exercises: pixel shuffle and the projector
#
# Five short ones. By the end you have written the projector between vision encoder and decoder, and its way back.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [the chapter](../chapters/03_pixel_shuffle_and_projector.ipynb) ·
# [the exercises](../exercises/03_pixel_shuffle_and_projector.ipynb)
#
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/solutions/03_pixel_shuffle_and_projector.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/solutions/03_pixel_shuffle_and_projector.ipynb

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
from torch import Tensor, nn

from nanovlm.config import ProjectorConfig
from nanovlm.course import check, use

# %% [markdown] tags=["stamped"]
# ## Exercise 3.1 · Tiles to tokens
# `pixel_shuffle.shuffle` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** It makes a picture four times shorter for the decoder at r = 2, without throwing a number
# away. Get the order wrong and every shape still fits, nothing complains, and weights trained for tiles see a
# scrambled picture.

# %% [markdown] tags=["exercise"]
# The encoder hands over one vector for each patch, in reading order. Make every `factor` x `factor` tile of
# neighbouring patches into one token: the tile's vectors, laid end to end, row by row.
#
# `[batch, grid * grid, dim]` becomes `[batch, (grid / factor) ** 2, dim * factor ** 2]`. Patches that hold their own
# number, on a 4 x 4 grid with `factor = 2`:
#
# ```
#  0  1 |  2  3
#  4  5 |  6  7         0  1  4  5      token 0, the top left tile
# ------+------   ->    2  3  6  7      token 1
#  8  9 | 10 11         8  9 12 13      token 2
# 12 13 | 14 15        10 11 14 15      token 3
# ```
#
# The grid is square, and `factor` divides its side.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# A tile is r rows of r neighbours. In reading order its patches do not stand next to each other: between the
# first row of a tile and its second lies the rest of the picture's row.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Unfold the one patch axis into four: tile row, row inside the tile, tile column, column inside the tile. Bring
# the two 'inside' axes together. Then merge: two axes into tokens, three into the new, wider dim.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# x = x.reshape(batch, grid // r, r, grid // r, r, dim)
# x = swap the axes 2 and 3, so that it reads [batch, row, column, r, r, dim]
# return x.reshape(batch, number of tiles, r * r * dim)
# ```
#
# </details>


# %%
def pixel_shuffle(x: Tensor, factor: int) -> Tensor:
    """Trade length for width. [B, grid * grid, dim] -> [B, (grid / factor) ** 2, dim * factor ** 2]"""
    # SOLUTION
    batch, num_patches, dim = x.shape
    grid = round(num_patches**0.5)
    side = grid // factor
    x = x.reshape(batch, side, factor, side, factor, dim)  # [B, row, r, column, r, dim]
    x = x.transpose(2, 3)  # [B, row, column, r, r, dim]
    return x.reshape(batch, side * side, factor * factor * dim)
    # END SOLUTION


# %%
check("pixel_shuffle.shuffle", pixel_shuffle)

# %% [markdown] tags=["stamped"]
# ## Exercise 3.2 · And back again
# `pixel_shuffle.unshuffle` · difficulty ●●○ · about 8 minutes
#
# **Why it matters.** An operation that can be undone has lost nothing. And with the inverse one can see what a
# wrong shuffle does to a picture: the chapter draws it.

# %% [markdown] tags=["exercise"]
# Nothing was lost, so it can be undone. Take the tokens of `pixel_shuffle` apart again and put every patch back where
# it was: `[batch, side * side, dim * factor ** 2]` becomes `[batch, (side * factor) ** 2, dim]`, in reading order.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Read your pixel_shuffle from the last line to the first and undo each step.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Unfold tokens into tile rows and tile columns, and the wide dim into r, r and dim. Then bring row next to row
# and column next to column.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# side = round(num_tokens ** 0.5)
# x = x.reshape(batch, side, side, r, r, dim)
# x = swap the axes 2 and 3 again
# return x.reshape(batch, number of patches, dim)
# ```
#
# </details>


# %%
def pixel_unshuffle(x: Tensor, factor: int) -> Tensor:
    """Undo pixel_shuffle. [B, side * side, dim * factor ** 2] -> [B, (side * factor) ** 2, dim]"""
    # SOLUTION
    batch, num_tokens, wide = x.shape
    side, dim = round(num_tokens**0.5), wide // factor**2
    x = x.reshape(batch, side, side, factor, factor, dim)  # [B, row, column, r, r, dim]
    x = x.transpose(2, 3)  # [B, row, r, column, r, dim]
    return x.reshape(batch, (side * factor) ** 2, dim)
    # END SOLUTION


# %%
check("pixel_shuffle.unshuffle", pixel_unshuffle)

# %% [markdown] tags=["stamped"]
# ## Exercise 3.3 · Which patches does a token hold?
# `pixel_shuffle.patch_map` · difficulty ●●○ · about 8 minutes
#
# **Why it matters.** To ask what an image token looks at, one must know which part of the picture it is. Every
# attention map drawn over a picture stands on this small piece of arithmetic.

# %% [markdown] tags=["exercise"]
# Which patches does one image token hold? Return their numbers as a list of `factor ** 2` ints, in the order in which
# they lie in the token. Patches and tokens are both counted from 0 in reading order. On a 4 x 4 grid with `factor = 2`,
# token 1 holds `[2, 3, 6, 7]`.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Find the tile first: in which row and column of tiles is this token? Then its top left patch.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# There are grid // r tiles in a row. Token t is tile (t // that, t % that). Its patches lie in r picture rows,
# each grid patches further on than the one above.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# row, column = divmod(token, grid // r)
# first = (row * r) * grid + column * r
# the patch i rows down and j to the right is first + i * grid + j
# ```
#
# </details>


# %%
def patch_map(token: int, grid: int, factor: int) -> list[int]:
    """The patches of one token. grid: patches along one side of the picture."""
    # SOLUTION
    row, column = divmod(token, grid // factor)
    first = row * factor * grid + column * factor  # the tile's top left patch
    return [first + i * grid + j for i in range(factor) for j in range(factor)]
    # END SOLUTION


# %%
check("pixel_shuffle.patch_map", patch_map)

# %% [markdown] tags=["stamped"]
# ## Exercise 3.4 · One linear layer between two worlds
# `pixel_shuffle.projector` · difficulty ●○○ · about 8 minutes
#
# **Why it matters.** This is all that joins a vision encoder to a language model. Where these two come trained,
# it is the only part that starts from random numbers, which is why nanoVLM gives it the largest learning rate.

# %% [markdown] tags=["exercise"]
# The projector itself: shuffle, then one linear layer without bias, called `proj`, from the shuffled width to the
# decoder's. The config has `vision_dim`, `language_dim` and `pixel_shuffle_factor`.
#
# The cell below takes your `pixel_shuffle` if it passes its check, and the package's otherwise.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Two steps: make the sequence shorter and wider, then change the width to the decoder's.
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
#              self.proj = nn.Linear(vision_dim * factor ** 2, language_dim, bias=False)
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
        # SOLUTION
        self.factor = config.pixel_shuffle_factor
        self.proj = nn.Linear(config.vision_dim * self.factor**2, config.language_dim, bias=False)
        # END SOLUTION

    def forward(self, x: Tensor) -> Tensor:
        # SOLUTION
        return self.proj(pixel_shuffle(x, self.factor))
        # END SOLUTION


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
# Along one side: pixels -> patches -> tokens. Then both sides, then all tiles.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# patch_size divides the side into patches; r divides the patches into tokens; the number of tokens is that
# side, squared, times the number of tiles.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# side = image_size // patch_size // factor
# return … * side ** 2
# ```
#
# </details>


# %%
def token_budget(image_size: int, patch_size: int, factor: int, num_tiles: int = 1) -> int:
    """Image tokens of one picture. image_size and patch_size in pixels; everything divides evenly."""
    # SOLUTION
    side = image_size // patch_size // factor
    return num_tiles * side**2
    # END SOLUTION


# %%
check("pixel_shuffle.token_budget", token_budget)
