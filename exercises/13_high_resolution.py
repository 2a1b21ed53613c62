# %% [markdown]
# # 13 Exercises: high resolution and many pictures
#
# Seven of them. After the first five you can say for any picture into how many tiles SmolVLM cuts it, cut it yourself,
# write the text that stands for it, say what it costs, and put the tiles' tokens together again. The other two mend a
# rule that costs too much and test a function that cuts.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [the chapter](../chapters/13_high_resolution.ipynb) ·
# [the solutions](../solutions/13_high_resolution.ipynb) ·
# [notation and terms](../chapters/notation.md)
#
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/exercises/13_high_resolution.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/exercises/13_high_resolution.ipynb

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
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from nanovlm.course import check

# %% [markdown] tags=["stamped"]
# ## Exercise 13.1 · How many rows, how many columns?
# `tiles.grid` · difficulty ●●○ · about 10 minutes
#
# **Why it matters.** The grid decides what a picture costs and what can be read in it. If you round in another
# way than the processor, you count another number of tiles, and the placeholders in the text do not match them.

# %% [markdown] tags=["exercise"]
# Into how many rows and columns of tiles does SmolVLM cut a picture of `width` x `height` pixels? Its processor resizes
# the picture twice:
#
# 1. The longer side becomes `longest`, whether it was larger or smaller before. The shorter side follows so that the
#    picture keeps its shape: compute it, cut it down to a whole number with `int`, add 1 if it is odd (and never let it
#    be 0).
# 2. Both sides become multiples of `tile`. The longer one is rounded up first. The shorter one is computed from the new
#    longer side and the shape that the picture has *after step 1*, cut down with `int`, then rounded up too.
#
# Return `(rows, columns)`. Compute with `shape = width / height`, as the processor does, so that your roundings agree
# with the processor's. If both sides are equal, the width counts as the longer one. A screenshot of 1920 x 1080 becomes
# 2048 x 1152 pixels in step 1 and 2048 x 1536 in step 2: 3 rows, 4 columns.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Two steps, and in both the longer side comes first. The shorter one follows from it by the picture's shape,
# width / height.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Step 1: the longer side is `longest`, always. Shorter side: from the shape, with int(), made even. Step 2:
# take the shape anew, round the longer side up to a multiple, derive the shorter one, round it up too.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# shape = width / height
# if width >= height: width, height = longest, even(int(longest / shape))
# else:               width, height = even(int(longest * shape)), longest
# then the same once more with up(…) = math.ceil(… / tile) * tile for each side, and divide both by tile
# ```
#
# </details>


# %%
def smolvlm_grid(width: int, height: int, tile: int = 512, longest: int = 2048) -> tuple[int, int]:
    """(rows, columns) of tiles. All lengths in pixels; the defaults are SmolVLM-256M's."""
    raise NotImplementedError("tiles.grid")


# %%
check("tiles.grid", smolvlm_grid)

# %% [markdown] tags=["stamped"]
# ## Exercise 13.2 · Cut a picture into tiles
# `tiles.split` · difficulty ●●○ · about 10 minutes
#
# **Why it matters.** The encoder takes squares of one size, and this makes them out of any picture. An error in
# the order changes no shape: the model then looks for the top right corner at the bottom left.

# %% [markdown] tags=["exercise"]
# Cut a picture `[channels, rows * tile, columns * tile]` into tiles, `[rows * columns + 1, channels, tile, tile]`: the
# tiles in reading order, then the view of the whole. Pixels that hold their own number, with `tile = 2`:
#
# ```
#  0  1 |  2  3 |  4  5
#  6  7 |  8  9 | 10 11
# ------+-------+------       tile 0: 0 1 / 6 7     tile 1: 2 3 / 8 9     tile 2: 4 5 / 10 11     …
# 12 13 | 14 15 | 16 17       and last the whole, in 2 x 2 pixels
# 18 19 | 20 21 | 22 23
# ```
#
# A picture that *is* one tile is returned alone, `[1, channels, tile, tile]`. For the view of the whole use
# `whole_view`, which is given. (Processors use finer filters for it, such as Lanczos; the mean will do here.)

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# It is pixel shuffle's first half, with pixels: name the row of tiles and the row inside the tile, then bring
# together what belongs to one tile.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Unfold height into (rows, tile) and width into (columns, tile). Order the axes so that rows and columns come
# first and the picture's channels follow. Merge rows and columns. Put the view of the whole behind.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# x = picture.reshape(channels, rows, tile, columns, tile)
# x = x.permute(…)                 # rows, columns, channels, tile, tile
# tiles = x.reshape(rows * columns, channels, tile, tile)
# if there is more than one: torch.cat([tiles, whole_view(picture, tile)[None]])
# ```
#
# </details>


# %%
def whole_view(image: Tensor, tile: int) -> Tensor:
    """[channels, height, width] -> [channels, tile, tile]: each pixel is the mean of those that it stands for."""
    return F.adaptive_avg_pool2d(image, tile)


# %%
def split_image(image: Tensor, tile: int) -> Tensor:
    """[channels, rows * tile, columns * tile] -> [rows * columns + 1, channels, tile, tile]; one tile stays one."""
    raise NotImplementedError("tiles.split")


# %%
check("tiles.split", split_image)

# %% [markdown] tags=["stamped"]
# ## Exercise 13.3 · What stands for a picture in the text
# `tiles.tokens` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** A tile does not know where it was cut: only the token in front of it says so. And this
# text, not the picture, decides how many embeddings the decoder makes room for.

# %% [markdown] tags=["exercise"]
# Write what stands for a picture of `rows` x `columns` tiles in SmolVLM's prompt. Each *tile* is the fake token, its
# place, counted from 1, and `num_image_tokens` times `<image>`. Each row of tiles ends with a line break. Then comes an
# empty line (one more line break), and then *the whole*: the fake token, `<global-img>`, its image tokens, the fake
# token. For one row of two tiles with 2 image tokens each (shown in several lines; the real line breaks are `\n`):
#
# ```
# <fake_token_around_image><row_1_col_1><image><image>
# <fake_token_around_image><row_1_col_2><image><image>\n
# \n
# <fake_token_around_image><global-img><image><image><fake_token_around_image>
# ```
#
# A picture of one tile is not cut: for it, the whole alone is the answer.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# One loop over the rows, one over the columns, and each tile is written in the same way. What follows a row,
# what follows the last one?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Build the piece for the whole first: it is also the answer for a picture of one tile. Then a row: for each
# column the fake token, the place counted from 1, the image tokens; at its end a line break.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# whole = FAKE + GLOBAL + images + FAKE
# each tile: FAKE + its place + images
# each row ends with "\n"; after the last row there is one more "\n", then whole
# ```
#
# </details>

# %%
FAKE, GLOBAL, IMAGE = "<fake_token_around_image>", "<global-img>", "<image>"


# %%
def image_text(rows: int, columns: int, num_image_tokens: int) -> str:
    """The text of one picture in SmolVLM's layout."""
    raise NotImplementedError("tiles.tokens")


# %%
check("tiles.tokens", image_text)

# %% [markdown] tags=["stamped"]
# ## Exercise 13.4 · Measure it: what the pictures of a prompt cost
# `tiles.cost` · difficulty ●○○ · about 6 minutes
#
# **Why it matters.** The context of SmolLM2-135M holds 8,192 tokens. If you send ten large pictures, you should
# know beforehand that they do not fit.

# %% [markdown] tags=["exercise"]
# **Measure it.** A prompt holds several pictures. `grids` lists the rows and columns of each, `[(3, 4), (1, 1)]` for
# two pictures. How many tokens do they cost together? Count the image tokens and the special ones of the layout above;
# each of `<fake_token_around_image>`, `<row_1_col_1>` and `<global-img>` is one token. Leave out the line breaks: how
# many tokens those are depends on the tokenizer. Remember that a picture of one tile is not cut.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Count for one picture first: how many views, and which tokens stand around each?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# A tile: two special tokens and its image tokens. The whole: three special tokens and its image tokens. A
# picture of one tile is the whole alone.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# tiles = rows * columns if rows * columns > 1 else 0
# one picture: tiles * (…) + (3 + n)
# add them up
# ```
#
# </details>


# %%
def prompt_cost(grids: list[tuple[int, int]], num_image_tokens: int) -> int:
    """Tokens that stand for all pictures of a prompt, without line breaks."""
    raise NotImplementedError("tiles.cost")


# %%
check("tiles.cost", prompt_cost)

# %% [markdown] tags=["stamped"]
# ## Exercise 13.5 · One map from many tiles
# `tiles.rejoin` · difficulty ●●○ · about 10 minutes
#
# **Why it matters.** The decoder receives the tokens tile by tile. To draw over the *picture* what it attends
# to, you need the tokens of all tiles in one map.

# %% [markdown] tags=["exercise"]
# The encoder has turned every view into `side * side` tokens, in reading order: `features` is
# `[rows * columns + 1, side * side, dim]`, the view of the whole last. Put the tiles' tokens together to one map,
# `[rows * side, columns * side, dim]`, so that each token lies where its part of the picture is. The view of the whole
# is left out. Only for a picture that was not cut (`rows = columns = 1`, one view) that view is the map.
#
# Two tiles of 2 x 2 tokens side by side; tokens hold their place in the map:
#
# ```
# tile 0: 0 1 4 5      tile 1: 2 3 6 7      whole: -1 -1 -1 -1      ->      0 1 2 3
#                                                                           4 5 6 7
# ```

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# It is tiles.split backwards, with tokens for pixels. The view of the whole is no part of the map.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Drop the last view. Unfold tiles into (rows, columns) and tokens into (side, side). Bring row next to row and
# column next to column, then merge. A picture of one view needs no dropping.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# side = round(num_tokens ** 0.5)
# tiles = features[: rows * columns]
# x = tiles.reshape(rows, columns, side, side, dim)
# swap … so that it reads [rows, side, columns, side, dim], and merge
# ```
#
# </details>


# %%
def rejoin(features: Tensor, rows: int, columns: int) -> Tensor:
    """[rows * columns + 1, side * side, dim] -> [rows * side, columns * side, dim]"""
    raise NotImplementedError("tiles.rejoin")


# %%
check("tiles.rejoin", rejoin)

# %% [markdown] tags=["stamped"]
# ## Exercise 13.6 · Mend it: an icon in 17 views
# `tiles.views` · difficulty ●●○ · about 10 minutes
#
# **Why it matters.** The encoder's work grows with the views, and most pictures on the web are small. Under a
# rule that always enlarges, a page of twenty icons costs 340 views and shows what twenty would.

# %% [markdown] tags=["exercise"]
# **Mend it.** This counts the views of a picture by SmolVLM's rule:
#
# ```python
# def views(width, height, tile=512, longest=2048):
#     size = scale_to_longest((width, height), longest)      # step 1 of exercise 13.1
#     wide, high = fill_tiles(size, tile)                    # step 2
#     return (wide // tile) * (high // tile) + 1             # and the whole
# ```
#
# The symptom: an icon of 64 x 64 pixels costs 17 views. Mend it, so that a picture whose longer side is at most
# `longest` skips step 1, and a picture of one tile has one view. `scale_to_longest` and `fill_tiles` are the package's,
# and right.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Two things are wrong. One happens before the grid is computed, the other after it.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Step 1 of the rule brings the longer side to `longest`. When is that needed? And how often is a picture shown
# that is one tile?
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# if max(width, height) > longest: step 1
# rows, columns = step 2, fill_tiles of the size that you have now, divided by tile
# return rows * columns + …
# ```
#
# </details>

# %%
from nanovlm.data.tiling import fill_tiles, scale_to_longest


# %%
def views(width: int, height: int, tile: int = 512, longest: int = 2048) -> int:
    """How many views of tile x tile pixels the encoder gets."""
    raise NotImplementedError("tiles.views")


# %%
check("tiles.views", views)

# %% [markdown] tags=["stamped"]
# ## Exercise 13.7 · Write the test that no check of shapes can replace
# `tiles.test_split` · difficulty ●●○ · about 10 minutes
#
# **Why it matters.** Most wrong ways to cut a picture give the right shape. A test with numbered pixels finds
# them in a millisecond, while a training run only ends with a worse score.

# %% [markdown] tags=["exercise"]
# **Write the test.** The check runs your test on a `split_image` that is right, where it has to pass, and on eight that
# are wrong in eight ways, where it has to fail. It tells you how many you catch. You may ask for what exercise 13.2
# promises. A test calls the function that it is given, compares by `assert`, and returns nothing.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Shapes will not do. Which picture makes every pixel say where it is from?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# torch.arange gives numbered pixels. Take two rows of three tiles, so that rows and columns cannot be confused,
# and write down two tiles and the last view by hand. Then a picture that is one tile.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# image = torch.arange(24.0).reshape(1, 4, 6)
# views = split_image(image, 2)
# assert views[1].flatten().tolist() == …       # the second tile of the first row
# assert the last view is the mean of …, and a picture of one tile gives one view
# ```
#
# </details>


# %%
def test_split(split_image) -> None:
    """Raises AssertionError if split_image is wrong."""
    raise NotImplementedError("tiles.test_split")


# %%
check("tiles.test_split", test_split)
