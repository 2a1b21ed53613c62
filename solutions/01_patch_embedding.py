# %% [markdown]
# # 01 Exercises: from pixels to patches
#
# Six short ones. By the end you have written the first part of your own model: a picture goes in, a line of vectors
# that know their places comes out.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [the chapter](../chapters/01_patch_embedding.ipynb) ·
# [the exercises](../exercises/01_patch_embedding.ipynb) ·
# [notation and terms](../chapters/notation.md)
#
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/solutions/01_patch_embedding.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/solutions/01_patch_embedding.ipynb

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
import torch.nn.functional as F
from torch import Tensor, nn

from nanovlm.config import ViTConfig
from nanovlm.course import check

# %% [markdown] tags=["stamped"]
# ## Exercise 1.1 · From bytes to the model's range
# `patches.normalize` · difficulty ●○○ · about 4 minutes
#
# **Why it matters.** A model's weights belong to the range of numbers that it was trained on. Feed it another
# one and nothing raises: it answers, only worse.

# %% [markdown] tags=["exercise"]
# A picture comes as bytes: a tensor of type `uint8`, from 0 (black) to 255 (full). SigLIP wants floats from -1 to 1.
# Black becomes -1, full becomes 1, and what lies between follows a straight line:
#
# ```
# 0  51  204  255    ->    -1  -0.6  0.6  1
# ```
#
# The shape stays what it is, `[3, height, width]` or with a batch in front. The result is `float32`.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Where must 0 go, and where 255? Two points make a straight line: one factor and one shift.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Bytes cannot hold fractions or minus signs, so the result must be a float tensor. Divide first: dividing bytes
# by a number makes floats of them.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# the bytes, divided by half of 255, are between 0 and 2
# shift them so that they begin at -1
# ```
#
# </details>


# %%
def normalize(pixels: Tensor) -> Tensor:
    """Bytes 0..255 -> float32 from -1 to 1, of the same shape."""
    # SOLUTION
    return pixels / 127.5 - 1
    # END SOLUTION


# %%
check("patches.normalize", normalize)

# %% [markdown] tags=["stamped"]
# ## Exercise 1.2 · Cut a picture into patches
# `patches.patchify` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** It makes a line of vectors out of a picture, which is all that a transformer can read. A
# plain reshape gives the right shape too, and strips of pixels that belong together nowhere.

# %% [markdown] tags=["exercise"]
# Cut each picture of a batch into squares of `patch_size` x `patch_size` pixels, and lay each square out as one vector:
# `[batch, channels, height, width]` becomes `[batch, num_patches, channels * patch_size ** 2]`.
#
# The patches come in reading order, along the rows. Inside a patch, all of channel 0 comes first, row by row, then all
# of channel 1, and so on. One channel of 4 x 4 pixels, with `patch_size = 2`:
#
# ```
#  0  1 |  2  3
#  4  5 |  6  7         0  1  4  5      patch 0, at the top left
# ------+------   ->    2  3  6  7      patch 1
#  8  9 | 10 11         8  9 12 13      patch 2
# 12 13 | 14 15        10 11 14 15      patch 3
# ```
#
# A picture may be wider than high. Both sides divide by `patch_size`. Reshape and permute are enough; no loops needed.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# A patch is p rows of p pixels, in each of three channels. In memory its rows do not stand next to each other:
# between two of them lies the rest of the picture's row.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Unfold each side in two: the rows into (row of patches, row inside the patch), the columns likewise. Bring the
# two that count patches to the front, then merge: two axes into the patches, three into the vector.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# x = images.reshape(batch, channels, height // p, p, width // p, p)
# x = permute it to [batch, patch row, patch column, channel, row inside, column inside]
# return x.reshape(batch, number of patches, channels * p * p)
# ```
#
# </details>


# %%
def patchify(images: Tensor, patch_size: int) -> Tensor:
    """[B, channels, H, W] -> [B, H / p * W / p, channels * p * p], with p = patch_size"""
    # SOLUTION
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    x = images.reshape(batch, channels, rows, patch_size, columns, patch_size)  # [B, channel, row, p, column, p]
    x = x.permute(0, 2, 4, 1, 3, 5)  # [B, row, column, channel, p, p]
    return x.reshape(batch, rows * columns, channels * patch_size**2)
    # END SOLUTION


# %%
check("patches.patchify", patchify)

# %% [markdown] tags=["stamped"]
# ## Exercise 1.3 · Put the picture back together
# `patches.unpatchify` · difficulty ●●○ · about 8 minutes
#
# **Why it matters.** What can be undone has lost nothing. And whenever you want to see what a model did to its
# patches, this is the way back to a picture.

# %% [markdown] tags=["exercise"]
# The way back: `[batch, num_patches, channels * patch_size ** 2]` becomes the pictures again,
# `[batch, channels, height, width]`. The picture is a square, so the number of patches tells its side, and the width
# of a patch tells the number of channels. `unpatchify(patchify(images, p), p)` is `images` again.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Read your patchify from the last line to the first and undo each step.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# The patches form a square grid, so its side is the root of their number. Unfold: patches into grid rows and
# grid columns, the vector into channel, row and column. Then bring row to row and column to column.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# x = patches.reshape(batch, grid, grid, channels, p, p)
# x = permute it to [batch, channel, grid row, row inside, grid column, column inside]
# return x.reshape(batch, channels, grid * p, grid * p)
# ```
#
# </details>


# %%
def unpatchify(patches: Tensor, patch_size: int) -> Tensor:
    """Undo patchify for square pictures. [B, grid * grid, channels * p * p] -> [B, channels, grid * p, grid * p]"""
    # SOLUTION
    batch, num_patches, wide = patches.shape
    grid, channels = round(num_patches**0.5), wide // patch_size**2
    x = patches.reshape(batch, grid, grid, channels, patch_size, patch_size)  # [B, row, column, channel, p, p]
    x = x.permute(0, 3, 1, 4, 2, 5)  # [B, channel, row, p, column, p]
    return x.reshape(batch, channels, grid * patch_size, grid * patch_size)
    # END SOLUTION


# %%
check("patches.unpatchify", unpatchify)

# %% [markdown] tags=["stamped"]
# ## Exercise 1.4 · A convolution that is a linear layer
# `patches.conv_equals_linear` · difficulty ●●○ · about 8 minutes
#
# **Why it matters.** Models store the patch embedding as a convolution, papers draw it as a linear layer. Who
# knows that both are the same numbers can read both, and can load the one into the other.

# %% [markdown] tags=["exercise"]
# You get a convolution that cuts pictures into patches: kernel and stride are both `p`, and it has 3 input channels.
# Return an `nn.Linear` that does the same to patches that are cut already, as `patchify` cuts them:
#
# ```
# linear_from_conv(conv)(patchify(images, p))    is    conv(images), with its grid laid out as a line
# ```
#
# Carry the convolution's numbers over, and leave the convolution as it is. It may come without a bias
# (`conv.bias is None`): then the layer has none either.
#
# (To write into a parameter: `with torch.no_grad(): linear.weight.copy_(…)`.)

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# The convolution's weight is [dim, 3, p, p]: for each output number one small colour picture. The linear
# layer's weight is [dim, 3 * p * p]: for each output number one row. What turns the one into the other?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Make nn.Linear(3 * p * p, dim), then put the weight in, flattened but for its first axis, and the bias as it
# is. If there is no bias, make the layer without one. Write into parameters under torch.no_grad().
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# linear = nn.Linear(channels * p * p, dim, bias=conv.bias is not None)
# with torch.no_grad():
#     linear.weight.copy_(conv.weight, with all axes but the first merged)
#     and the bias, if there is one
# ```
#
# </details>


# %%
def linear_from_conv(conv: nn.Conv2d) -> nn.Linear:
    """Conv2d(3, dim, p, stride=p) -> Linear(3 * p * p, dim) with the same weights."""
    # SOLUTION
    dim, channels, p, _ = conv.weight.shape
    linear = nn.Linear(channels * p * p, dim, bias=conv.bias is not None)
    with torch.no_grad():
        linear.weight.copy_(conv.weight.reshape(dim, channels * p * p))
        if conv.bias is not None:
            linear.bias.copy_(conv.bias)
    return linear
    # END SOLUTION


# %%
check("patches.conv_equals_linear", linear_from_conv)

# %% [markdown] tags=["stamped"]
# ## Exercise 1.5 · The whole patch embedding
# `patches.add_positions` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** This is the first part of your own model: everything that the encoder will ever know about
# where a patch was comes from the vectors that are added here.

# %% [markdown] tags=["exercise"]
# Now the part itself: pictures `[batch, 3, image_size, image_size]` become vectors `[batch, num_patches, hidden_dim]`,
# the patches in reading order.
#
# - `conv`: a convolution from 3 channels to `hidden_dim`, with bias, whose kernel and stride are `patch_size`.
# - `position_embedding`: a learned vector for each place, `[1, num_patches, hidden_dim]`, that starts as small random
#   numbers (`torch.randn` times 0.02) and is added to the patch at that place.
#
# The names must be these two, so that trained weights find them. `config` has `patch_size`, `hidden_dim` and
# `num_patches`. In `forward`, the lines that refuse a picture of the wrong size are there already.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Two things are learned: a convolution that makes a vector of each patch, and one more vector for each place of
# the grid.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# The convolution's stride is its kernel size. Its output is a grid, [batch, dim, rows, columns]; merge rows and
# columns, and bring dim to the end. Then add the positions, which are the same for every picture.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# in __init__: self.conv = nn.Conv2d(3, dim, p, stride=p)
#              self.position_embedding = nn.Parameter(small random numbers [1, num_patches, dim])
# in forward:  x = the convolution of the images
#              x = x.flatten(the two grid axes), then swap the axes 1 and 2
#              return x + the positions
# ```
#
# </details>


# %%
class PatchEmbedding(nn.Module):
    """Cut the picture into patches, project each one, add its position. [B, 3, H, W] -> [B, num_patches, dim]"""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        # SOLUTION
        self.conv = nn.Conv2d(3, config.hidden_dim, config.patch_size, stride=config.patch_size)
        self.position_embedding = nn.Parameter(torch.randn(1, config.num_patches, config.hidden_dim) * 0.02)
        # END SOLUTION

    def forward(self, images: Tensor) -> Tensor:
        size = self.config.image_size
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise ValueError(f"The ViT expects pictures of shape [B, 3, {size}, {size}]; got {list(images.shape)}.")
        # SOLUTION
        x = self.conv(images)  # [B, dim, grid, grid]
        x = x.flatten(2).transpose(1, 2)  # [B, num_patches, dim]
        return x + self.position_embedding
        # END SOLUTION


# %%
check("patches.add_positions", PatchEmbedding)

# %% [markdown] tags=["stamped"]
# ## Exercise 1.6 · Positions for another grid
# `patches.resize_positions` · difficulty ●●○ · about 10 minutes
#
# **Why it matters.** Positions are learned for one grid. Without this, an encoder that learned at 224 pixels
# could not even begin to learn at 512: a thousand places would have no vector.

# %% [markdown] tags=["exercise"]
# Positions were learned for one grid, say 14 x 14 = 196 places. Your pictures are larger and make a grid of 32 x 32.
# Stretch the positions to it: `[1, old * old, dim]` becomes `[1, grid_size * grid_size, dim]`.
#
# Treat the positions as a picture with `dim` channels and resize that with `F.interpolate`: `mode="bicubic"`, and
# `align_corners=False`. Both grids are square. If the grid has the right size already, the positions come back as they
# are.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Read the line of vectors as a small picture: one pixel for each place, and dim channels.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Pictures are resized with F.interpolate, which wants [batch, channels, rows, columns]. So unfold the line into
# a grid, bring dim to the front, resize, and go back the same way.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# grid = positions.reshape(1, old, old, dim), permuted to [1, dim, old, old]
# grid = F.interpolate(grid, size=(grid_size, grid_size), mode="bicubic", align_corners=False)
# return grid with rows and columns merged and dim at the end
# ```
#
# </details>


# %%
def resize_positions(positions: Tensor, grid_size: int) -> Tensor:
    """[1, old * old, dim] -> [1, grid_size * grid_size, dim]"""
    # SOLUTION
    _, num_patches, dim = positions.shape
    old = round(num_patches**0.5)
    if old == grid_size:
        return positions
    grid = positions.reshape(1, old, old, dim).permute(0, 3, 1, 2)  # [1, dim, old, old]
    grid = F.interpolate(grid, size=(grid_size, grid_size), mode="bicubic", align_corners=False)
    return grid.flatten(2).transpose(1, 2)  # [1, grid_size * grid_size, dim]
    # END SOLUTION


# %%
check("patches.resize_positions", resize_positions)
