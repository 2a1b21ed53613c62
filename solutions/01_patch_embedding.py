# %% [markdown]
# # 01 Exercises: from pixels to patches
#
# Nine exercises and a challenge. By the end you have written the first part of your own model, which turns a picture
# into a sequence of vectors that know their places.

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
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from nanovlm.config import ViTConfig
from nanovlm.course import check

# %% [markdown] tags=["stamped"]
# ## Exercise 1.1 · From bytes to the model's range
# `patches.normalize` · difficulty ●○○ · about 4 minutes
#
# **Why it matters.** A model's weights belong to the range of numbers that it was trained on. With another
# range it raises no error and still answers, but it answers worse.

# %% [markdown] tags=["exercise"]
# A picture arrives as bytes: a tensor of dtype `uint8`, from 0 (black) to 255 (full intensity). SigLIP expects floats
# from -1 to 1. So 0 becomes -1, 255 becomes 1, and the values between them follow a straight line:
#
# ```
# 0  51  204  255    ->    -1  -0.6  0.6  1
# ```
#
# The shape does not change; it is `[3, height, width]`, or the same with a batch in front. The result is `float32`.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Which value does 0 become, and which does 255? Two points determine a straight line, so you need one factor
# and one shift.
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
# ## Exercise 1.2 · Mend it: a picture on its way into the model
# `patches.prepare` · difficulty ●●○ · about 10 minutes
#
# **Why it matters.** Code like this is in countless scripts. It runs without an error on most pictures, and the
# model then answers about a picture that nobody has seen.

# %% [markdown] tags=["exercise"]
# **Mend it.** The following function prepares a picture for the pocket model. It was copied from one script into the
# next, and it has four faults:
#
# ```python
# def prepare(image, size):
#     x = torch.from_numpy(np.array(image.resize((size, size), Image.Resampling.BICUBIC)))
#     x = x.reshape(3, size, size)
#     return x / 255
# ```
#
# The symptoms: a grey picture raises an error, and so does a transparent one. For a colour picture the model answers
# as if it were shown noise. Mend the function, so that any picture of PIL becomes `[1, 3, size, size]` in the range
# from -1 to 1. Keep the resizing as it is, and let `convert("RGB")` deal with transparency, for which chapter 07
# finds a better way. The picture that you receive must not be changed.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Follow one red pixel through the three lines. Which of them assumes something about the picture, and which one
# only makes the shape right?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# There are four faults: a grey or transparent picture has another number of channels, the channels are moved by
# the wrong function, the range is that of another model, and the batch is missing.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# image = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
# x = torch.from_numpy(np.array(image))          # [row, column, channel], bytes
# x = move the channels to the front             # which function moves axes?
# return x in the range of the model, with a batch of one in front
# ```
#
# </details>


# %%
def prepare(image: Image.Image, size: int) -> Tensor:
    """A picture of any mode and size -> float32 [1, 3, size, size], from -1 to 1."""
    # SOLUTION
    resized = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    x = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
    return x[None] / 127.5 - 1
    # END SOLUTION


# %%
check("patches.prepare", prepare)

# %% [markdown] tags=["stamped"]
# ## Exercise 1.3 · Cut a picture into patches
# `patches.patchify` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** It turns a picture into a sequence of vectors, which is all that a transformer can read. A
# plain reshape gives the right shape too, but its patches are strips of pixels that do not belong together.

# %% [markdown] tags=["exercise"]
# Cut each picture of a batch into squares of `patch_size` x `patch_size` pixels, and flatten each square into one
# vector, so that `[batch, channels, height, width]` becomes `[batch, num_patches, channels * patch_size ** 2]`.
#
# The patches are in reading order, which means along the rows. Inside a patch, all of channel 0 comes first, row by
# row, then all of channel 1, and so on. Here is one channel of 4 x 4 pixels, with `patch_size = 2`:
#
# ```
#  0  1 |  2  3
#  4  5 |  6  7         0  1  4  5      patch 0, at the top left
# ------+------   ->    2  3  6  7      patch 1
#  8  9 | 10 11         8  9 12 13      patch 2
# 12 13 | 14 15        10 11 14 15      patch 3
# ```
#
# A picture may be wider than high, and both sides are multiples of `patch_size`. Reshape and permute are enough, so
# you need no loop.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# A patch consists of p rows of p pixels, in each of three channels. In memory these rows are not adjacent,
# because the rest of the picture's row is between them.
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
    x = images.reshape(
        batch, channels, rows, patch_size, columns, patch_size
    )  # [B, channel, row, p, column, p]
    x = x.permute(0, 2, 4, 1, 3, 5)  # [B, row, column, channel, p, p]
    return x.reshape(batch, rows * columns, channels * patch_size**2)
    # END SOLUTION


# %%
check("patches.patchify", patchify)

# %% [markdown] tags=["stamped"]
# ## Exercise 1.4 · Write the test: which patchify is right?
# `patches.test_patchify` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** All these wrong versions have been written by people, and nearly all of them return the
# right shape for a square picture of one colour. A test finds them only if its example is unkind enough.

# %% [markdown] tags=["exercise"]
# **Write the test.** The check runs your test on a `patchify` that is right, where it has to pass, and on every wrong
# version that the check of the exercise before this one can name, where it has to fail. It tells you how many you
# catch.
#
# A test calls the function that it receives with a small example and compares the result by `assert`. It returns
# nothing. Some of the wrong versions raise an error for your example, which counts as caught.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# A picture of zeros cannot tell any two versions apart. Which numbers can?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Take a picture whose numbers are all different (torch.arange), with two pictures in the batch, two channels,
# and more columns than rows. Work out the first patches by hand. One more example needs several rows of
# patches.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# images = torch.arange(64.0).reshape(2, 2, 2, 8)      # 2 pictures, 2 channels, 2 rows, 8 columns
# out = patchify(images, 2)
# assert out.shape == …
# assert out[0, 0].tolist() == …      # channel 0: two rows of two, then channel 1
# and the same for another patch, for picture 1, and for a picture with two rows of patches
# ```
#
# </details>


# %%
def test_patchify(patchify) -> None:
    """Raises AssertionError if patchify(images, patch_size) is wrong."""
    # SOLUTION
    images = torch.arange(96.0).reshape(2, 2, 4, 6)
    out = patchify(images, 2)
    assert out.shape == (2, 6, 8), "two pictures of 2 x 3 patches"
    assert out[0, 0].tolist() == [0, 1, 6, 7, 24, 25, 30, 31], (
        "the patch at the top left, channel by channel"
    )
    assert out[0, 1].tolist() == [2, 3, 8, 9, 26, 27, 32, 33], "the next patch in the same row"
    assert out[0, 3].tolist() == [12, 13, 18, 19, 36, 37, 42, 43], (
        "the first patch of the second row"
    )
    assert torch.equal(out[1], out[0] + 48), "the second picture"
    # END SOLUTION


# %%
check("patches.test_patchify", test_patchify)

# %% [markdown] tags=["stamped"]
# ## Exercise 1.5 · Put the picture back together
# `patches.unpatchify` · difficulty ●●○ · about 8 minutes
#
# **Why it matters.** A step that can be undone has lost nothing. You also need this function whenever you want
# to see as a picture what a model did to its patches.

# %% [markdown] tags=["exercise"]
# Write the inverse of `patchify`: `[batch, num_patches, channels * patch_size ** 2]` becomes the pictures again,
# `[batch, channels, height, width]`. The pictures are squares, so the number of patches determines their side, and
# the width of a patch determines the number of channels. `unpatchify(patchify(images, p), p)` has to equal `images`.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Read your patchify from its last line to its first, and undo each step in this order.
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
    x = patches.reshape(
        batch, grid, grid, channels, patch_size, patch_size
    )  # [B, row, column, channel, p, p]
    x = x.permute(0, 3, 1, 4, 2, 5)  # [B, channel, row, p, column, p]
    return x.reshape(batch, channels, grid * patch_size, grid * patch_size)
    # END SOLUTION


# %%
check("patches.unpatchify", unpatchify)

# %% [markdown] tags=["stamped"]
# ## Exercise 1.6 · A convolution that is a linear layer
# `patches.conv_equals_linear` · difficulty ●●○ · about 8 minutes
#
# **Why it matters.** Models store the patch embedding as a convolution, while papers draw it as a linear layer.
# Both have the same weights, so you can read both and load one into the other.

# %% [markdown] tags=["exercise"]
# You receive a convolution that cuts pictures into patches: its kernel size and its stride are both `p`, and it has
# three input channels. Return an `nn.Linear` that computes the same from patches that `patchify` has already cut:
#
# ```
# linear_from_conv(conv)(patchify(images, p))    equals    conv(images), with its grid flattened into a sequence
# ```
#
# Copy the convolution's weights and leave the convolution unchanged. It may have no bias (`conv.bias is None`), and
# then the layer must have none either. To write into a parameter, use `with torch.no_grad(): linear.weight.copy_(…)`.

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
# ## Exercise 1.7 · The whole patch embedding
# `patches.add_positions` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** This is the first part of your own model. Everything that the encoder can know about the
# place of a patch comes from the vectors that you add here.

# %% [markdown] tags=["exercise"]
# Now write the part itself, which turns pictures `[batch, 3, image_size, image_size]` into vectors `[batch,
# num_patches, hidden_dim]`, with the patches in reading order. It has two weights:
#
# - `conv`: a convolution from 3 channels to `hidden_dim`, with bias, whose kernel and stride are `patch_size`.
# - `position_embedding`: a learned vector for each place, `[1, num_patches, hidden_dim]`, which starts as small
#   random numbers (`torch.randn` times 0.02) and is added to the patch at that place.
#
# Keep these two names, because trained weights are loaded by name. `config` has `patch_size`, `hidden_dim` and
# `num_patches`. The lines of `forward` that refuse a picture of the wrong size are already there.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Two things are learned: a convolution that turns each patch into a vector, and a further vector for each place
# of the grid.
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
        self.position_embedding = nn.Parameter(
            torch.randn(1, config.num_patches, config.hidden_dim) * 0.02
        )
        # END SOLUTION

    def forward(self, images: Tensor) -> Tensor:
        size = self.config.image_size
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise ValueError(
                f"The ViT expects pictures of shape [B, 3, {size}, {size}]; got {list(images.shape)}."
            )
        # SOLUTION
        x = self.conv(images)  # [B, dim, grid, grid]
        x = x.flatten(2).transpose(1, 2)  # [B, num_patches, dim]
        return x + self.position_embedding
        # END SOLUTION


# %%
check("patches.add_positions", PatchEmbedding)

# %% [markdown] tags=["stamped"]
# ## Exercise 1.8 · Measure it: where beside what
# `patches.where_over_what` · difficulty ●●○ · about 8 minutes
#
# **Why it matters.** Positions at the wrong scale cost the pocket model 700 steps without progress, and no
# error said so. One number, measured before the training, would have.

# %% [markdown] tags=["exercise"]
# **Measure it.** How much do positions differ from each other, compared with how much patches do? Write this
# measurement as one number: the average distance of the positions from their mean vector, divided by the average
# distance of the patch vectors from theirs.
#
# `what` contains the patch vectors before positions are added, `[B, num_patches, dim]`, and all of them form one set.
# `where` contains the positions, `[1, num_patches, dim]`. A distance is the length of the difference of two vectors.
# The chapter's next cell measures four embeddings in this way.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# What is the same for all patches says nothing about any of them. How do you take it off?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# For the patches and for the positions alike: subtract the mean vector, take the length of what is left of each
# vector, and average the lengths. Then divide.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# flat = vectors with batch and patches merged      # [everything, dim]
# spread = the mean length of flat - (its mean over the first axis)
# return spread of where / spread of what, as a number
# ```
#
# </details>


# %%
def where_over_what(what: Tensor, where: Tensor) -> float:
    """How much the positions vary, relative to the patches."""
    # SOLUTION
    spreads = []
    for vectors in (where, what):
        flat = vectors.flatten(0, 1)
        spreads.append((flat - flat.mean(dim=0)).norm(dim=-1).mean())
    return (spreads[0] / spreads[1]).item()
    # END SOLUTION


# %%
check("patches.where_over_what", where_over_what)

# %% [markdown] tags=["stamped"]
# ## Exercise 1.9 · Positions for another grid
# `patches.resize_positions` · difficulty ●●○ · about 10 minutes
#
# **Why it matters.** Positions are learned for one grid. Without resizing them, an encoder that was trained at
# 224 pixels could not even start its training at 512, because most places would have no vector.

# %% [markdown] tags=["exercise"]
# Position embeddings were learned for one grid, for example for 14 x 14 = 196 places, and your pictures are larger
# and need a grid of 32 x 32. Resize the positions, so that `[1, old * old, dim]` becomes `[1, grid_size * grid_size,
# dim]`.
#
# Treat the positions as a picture with `dim` channels and resize it with `F.interpolate`, using `mode="bicubic"` and
# `align_corners=False`. Both grids are square. If the grid already has the right size, return the positions as they
# are.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Read the sequence of vectors as a small picture, with one pixel for each place and dim channels.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Pictures are resized with F.interpolate, which wants [batch, channels, rows, columns]. So unfold the sequence
# into a grid, bring dim to the front, resize, and go back the same way.
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

# %% [markdown]
# ## A challenge without a solution: fill the holes
#
# The chapter fills the holes of soft pictures by attention whose only weights are 64 positions of 32 numbers. The
# next cell gives the score of this baseline, the mean squared error in the holes of 200 new pictures. It is about
# 0.16, and smaller is better.
#
# **Challenge.** Stay below the baseline with at most 2,048 learned numbers and the same 300 steps of 32 pictures.
# Your function receives the batches and returns `predict(colours, hidden)`. An error below 0.13 can be reached in
# this way. One question helps: in `fill`, each prediction is a mean of visible colours with positive weights. What
# could you express if some of the weights were negative?

# %%
from nanovlm.course.holes import by_positions, score

print(f"baseline: {score(by_positions):.3f}")
