# %% [markdown]
# # 01 Exercises: from pixels to patches
#
# Nine exercises and a challenge. By the end you have written the first part of your own model, which turns a picture
# into a sequence of vectors that know their places.

# %%
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from nanovlm.config import ViTConfig
from nanovlm.course import check

# %% [markdown] tags=["exercise"]
# A picture arrives as bytes: a tensor of dtype `uint8`, from 0 (black) to 255 (full intensity). SigLIP expects floats
# from -1 to 1. So 0 becomes -1, 255 becomes 1, and the values between them follow a straight line:
#
# ```
# 0  51  204  255    ->    -1  -0.6  0.6  1
# ```
#
# The shape does not change; it is `[3, height, width]`, or the same with a batch in front. The result is `float32`.


# %%
def normalize(pixels: Tensor) -> Tensor:
    """Bytes 0..255 -> float32 from -1 to 1, of the same shape."""
    # SOLUTION
    return pixels / 127.5 - 1
    # END SOLUTION


# %%
check("patches.normalize", normalize)

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

# %% [markdown] tags=["exercise"]
# **Write the test.** The check runs your test on a `patchify` that is right, where it has to pass, and on every wrong
# version that the check of the exercise before this one can name, where it has to fail. It tells you how many you
# catch.
#
# A test calls the function that it receives with a small example and compares the result by `assert`. It returns
# nothing. Some of the wrong versions raise an error for your example, which counts as caught.


# %%
def test_patchify(patchify) -> None:
    """Raises AssertionError if patchify(images, patch_size) is wrong."""
    # SOLUTION
    images = torch.arange(96.0).reshape(2, 2, 4, 6)
    out = patchify(images, 2)
    assert out.shape == (2, 6, 8), "two pictures of 2 x 3 patches"
    assert out[0, 0].tolist() == [0, 1, 6, 7, 24, 25, 30, 31], "the patch at the top left, channel by channel"
    assert out[0, 1].tolist() == [2, 3, 8, 9, 26, 27, 32, 33], "the next patch in the same row"
    assert out[0, 3].tolist() == [12, 13, 18, 19, 36, 37, 42, 43], "the first patch of the second row"
    assert torch.equal(out[1], out[0] + 48), "the second picture"
    # END SOLUTION


# %%
check("patches.test_patchify", test_patchify)

# %% [markdown] tags=["exercise"]
# Write the inverse of `patchify`: `[batch, num_patches, channels * patch_size ** 2]` becomes the pictures again,
# `[batch, channels, height, width]`. The pictures are squares, so the number of patches determines their side, and
# the width of a patch determines the number of channels. `unpatchify(patchify(images, p), p)` has to equal `images`.


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

# %% [markdown] tags=["exercise"]
# **Measure it.** The chapter compares how much patches differ from each other with how much positions do. Write this
# measurement as one number: the average distance of the positions from their mean vector, divided by the average
# distance of the patch vectors from theirs.
#
# `what` contains the patch vectors before positions are added, `[B, num_patches, dim]`, and all of them form one set.
# `where` contains the positions, `[1, num_patches, dim]`. A distance is the length of the difference of two vectors.
# When the check has passed, measure the three embeddings of the chapter: which of them would you train?


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

# %% [markdown] tags=["exercise"]
# Position embeddings were learned for one grid, for example for 14 x 14 = 196 places, and your pictures are larger
# and need a grid of 32 x 32. Resize the positions, so that `[1, old * old, dim]` becomes `[1, grid_size * grid_size,
# dim]`.
#
# Treat the positions as a picture with `dim` channels and resize it with `F.interpolate`, using `mode="bicubic"` and
# `align_corners=False`. Both grids are square. If the grid already has the right size, return the positions as they
# are.


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
