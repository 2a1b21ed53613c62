# %% [markdown]
# # 02 Exercises: the vision transformer
#
# Seven short ones. By the end you have written an encoder that takes SigLIP's weights, and the pocket model's.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [the chapter](../chapters/02_vision_transformer.ipynb) ·
# [the solutions](../solutions/02_vision_transformer.ipynb)
#
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/exercises/02_vision_transformer.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/exercises/02_vision_transformer.ipynb

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
import torch.nn.functional as F
from torch import Tensor, nn

from nanovlm.config import ViTConfig
from nanovlm.course import check, use

# %% [markdown] tags=["stamped"]
# ## Exercise 2.1 · Attention in three lines
# `vit.attention` · difficulty ●●○ · about 10 minutes
#
# **Why it matters.** It is the only place in a transformer where one patch learns anything about another. A
# softmax over the wrong axis, or a forgotten scale, runs without an error, and no shape gives it away.

# %% [markdown] tags=["exercise"]
# Attention, from its three inputs. Every query scores every key; a softmax turns its scores into shares that sum to 1;
# the output is the values, mixed by those shares:
#
# ```
# q [..., num_queries, head_dim]   k, v [..., num_keys, head_dim]   ->   [..., num_queries, head_dim]
# ```
#
# The score of a query and a key is their dot product over √head_dim. In front of the last two axes there may be any
# others: none, or batch and heads. Write it with `@` and `softmax` (PyTorch has a function that does it all; here you
# build it). A tiny example with `head_dim` 1: query `[[1]]`, keys `[[5], [5]]`. The scores are equal, so the shares are
# ½ and ½, and values `[[10], [20]]` give `[[15]]`.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Three steps: how well does each query fit each key, how much of each value does that earn, and the mixture.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Scores: queries times keys, [num_queries, num_keys], divided by the square root of a query's length. Each row
# belongs to one query, and each row should sum to 1 after the softmax. Then rows times values.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# scores = q @ (k with its last two axes swapped) / head_dim ** 0.5
# weights = softmax of the scores over the keys, the last axis
# return weights @ v
# ```
#
# </details>


# %%
def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √head_dim) v. [..., num_queries, head_dim] -> the same shape"""
    raise NotImplementedError("vit.attention")


# %%
check("vit.attention", attend)

# %% [markdown] tags=["stamped"]
# ## Exercise 2.2 · One wide vector, many heads
# `vit.split_heads` · difficulty ●●○ · about 10 minutes
#
# **Why it matters.** Heads are nothing but a way to cut a vector. A cut with the right shape and the wrong
# numbers gives each head pieces of several patches, and weights that somebody else trained mean nothing any
# more.

# %% [markdown] tags=["exercise"]
# One linear layer makes queries, keys and values at once, for all heads: `[batch, num_patches, 3 * dim]`. Take them
# apart: return a tuple `(q, k, v)`, each `[batch, num_heads, num_patches, head_dim]`, with `head_dim` equal to
# `dim / num_heads`.
#
# The last axis holds all of q, then all of k, then all of v. Inside each of the three, head 0 comes first, then head 1,
# and so on. One patch with `dim` 4 and two heads:
#
# ```
#  0  1 |  2  3 ||  4  5 |  6  7 ||  8  9 | 10 11
#  head 0 head 1    head 0 head 1    head 0 head 1
#       q                k                v
# ```

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# The last axis holds three things at once: which of q, k, v; which head; and which number inside the head. The
# order in which they vary is said in the prompt.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Unfold the last axis into three. A view can do that, because it moves nothing. Then move the axes: q, k, v in
# front, so that you can take them apart, and heads before patches. Only a transpose or permute does that.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# x = qkv.view(batch, num_patches, 3, num_heads, head_dim)
# x = permute x to [3, batch, num_heads, num_patches, head_dim]
# return x[0], x[1], x[2]
# ```
#
# </details>


# %%
def split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """[B, N, 3 * dim] -> q, k and v, each [B, num_heads, N, head_dim]"""
    raise NotImplementedError("vit.split_heads")


# %%
check("vit.split_heads", split_heads)

# %% [markdown] tags=["stamped"]
# ## Exercise 2.3 · Every patch looks at every patch
# `vit.attention_module` · difficulty ●●○ · about 10 minutes
#
# **Why it matters.** This is a part of your own vision encoder: it runs the shipped weights. The way back from
# heads to one vector is easy to get wrong in silence: the shape fits either way.

# %% [markdown] tags=["exercise"]
# The attention of a block: `[batch, N, dim]` in, the same shape out. Four steps:
#
# 1. one linear layer `qkv_proj`, from `dim` to `3 * dim`,
# 2. split into heads, and attend in each of them,
# 3. back: the heads of a patch end to end, head 0 first, so that it is `[batch, N, dim]` again,
# 4. one linear layer `out_proj`, from `dim` to `dim`.
#
# Both layers have a bias (as `nn.Linear` has by default). The config gives `hidden_dim`, which is `dim`, and
# `num_heads`. The names matter: the shipped weights look for them.
#
# The cell below takes your `attend` and `split_heads` if they pass their checks, and stand-ins otherwise. You may use
# them, or write it without.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# There and back: one wide layer, cut into heads, attend, put the heads together, one more layer.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# qkv_proj makes 3 * dim numbers of dim. After attention you hold [batch, num_heads, N, head_dim], and want
# [batch, N, dim] with a patch's heads end to end. So patches must stand before heads again, before you merge.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# in __init__: self.num_heads, self.qkv_proj = nn.Linear(dim, 3 * dim), self.out_proj = nn.Linear(dim, dim)
# in forward:  q, k, v = split_heads(self.qkv_proj(x), self.num_heads)
#              mixed = attend(q, k, v)
#              swap heads and patches back, reshape to the shape of x, then out_proj
# ```
#
# </details>

# %%
attend = use("vit.attention", attend)
split_heads = use("vit.split_heads", split_heads)


# %%
class ViTAttention(nn.Module):
    """Every patch looks at every patch. [B, N, dim] -> [B, N, dim]"""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        raise NotImplementedError("vit.attention_module")

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError("vit.attention_module")


# %%
check("vit.attention_module", ViTAttention)

# %% [markdown] tags=["stamped"]
# ## Exercise 2.4 · Each patch on its own
# `vit.mlp` · difficulty ●○○ · about 6 minutes
#
# **Why it matters.** Two thirds of a block's weights sit here. Which of the GELUs it is cannot be seen in a
# shape, but weights are trained with one of them.

# %% [markdown] tags=["exercise"]
# The other half of a block, in which each patch is on its own: a linear layer `fc1` from `hidden_dim` to `inter_dim`,
# SigLIP's activation, and a linear layer `fc2` back. Both have a bias. The activation is GELU *by the tanh formula*:
# see the arguments of [`F.gelu`](https://pytorch.org/docs/stable/generated/torch.nn.functional.gelu.html).

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Wider, bend, narrow again. Three calls.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# fc1 goes from hidden_dim to inter_dim, fc2 back. Between them stands the GELU that SigLIP was trained with:
# the tanh formula. F.gelu has an argument for it.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# in __init__: self.fc1 = nn.Linear(hidden_dim, inter_dim); self.fc2 = the other way round
# in forward:  fc2( F.gelu( fc1(x), approximate="tanh" ) )
# ```
#
# </details>


# %%
class ViTMLP(nn.Module):
    """Each patch on its own: widen, bend, narrow. [B, N, dim] -> [B, N, dim]"""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        raise NotImplementedError("vit.mlp")

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError("vit.mlp")


# %%
check("vit.mlp", ViTMLP)

# %% [markdown] tags=["stamped"]
# ## Exercise 2.5 · Normalise, transform, add back
# `vit.block` · difficulty ●●○ · about 8 minutes
#
# **Why it matters.** The order of these few words decides whether weights fit and whether a deep stack trains:
# with the norm in another place the pocket model falls back to guessing, and no shape tells you.

# %% [markdown] tags=["exercise"]
# One block, pre-norm. Attention reads a normalised copy of x, and what it says is added to x. Then the MLP does the
# same with the sum: it reads a normalised copy, and what it says is added.
#
# Call the parts `ln1` and `attn`, `ln2` and `mlp`. The norms are `nn.LayerNorm` over `hidden_dim`, with `eps` from the
# config (`layer_norm_eps`).
#
# The cell below takes your attention and your MLP if they pass their checks, and the package's otherwise.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# The vector that runs through the block is only ever added to. What is normalised is a copy for the sub-layer.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Two steps of the same form: x plus the sub-layer of the normalised x. The second step starts from the result
# of the first.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# in __init__: self.ln1 = nn.LayerNorm(hidden_dim, eps=config.layer_norm_eps)
#              self.attn = ViTAttention(config), self.ln2 the same again, self.mlp = ViTMLP(config)
# in forward:  x = x + attn of ln1 of x, then the same with mlp and ln2
# ```
#
# </details>

# %%
ViTAttention = use("vit.attention_module", ViTAttention)
ViTMLP = use("vit.mlp", ViTMLP)


# %%
class ViTBlock(nn.Module):
    """Normalise, transform, add back; twice. [B, N, dim] -> [B, N, dim]"""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        raise NotImplementedError("vit.block")

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError("vit.block")


# %%
check("vit.block", ViTBlock)

# %% [markdown] tags=["stamped"]
# ## Exercise 2.6 · The whole encoder
# `vit.encoder` · difficulty ●●○ · about 8 minutes
#
# **Why it matters.** This is SigLIP. With the right numbers in its parameters, your class gives what the
# published model gives, and the pocket model sees through it.

# %% [markdown] tags=["exercise"]
# The whole encoder: pictures `[batch, 3, image_size, image_size]` in, one vector for each patch out,
# `[batch, num_patches, hidden_dim]`. It has three parts: `patch_embedding` (chapter 01's `PatchEmbedding(config)`: it
# cuts, projects and adds positions), then `blocks`, as many as `config.num_blocks`, then a `layer_norm`, built like
# those in the block.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Three parts in a row: one that makes vectors, a stack of equal blocks, one norm.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# The blocks must be in an nn.ModuleList, or PyTorch does not know that they have parameters. Each of them is a
# block of its own. Each reads what the one before it wrote.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# in __init__: self.patch_embedding = PatchEmbedding(config)
#              self.blocks = nn.ModuleList of config.num_blocks times ViTBlock(config)
#              self.layer_norm = nn.LayerNorm(hidden_dim, eps=config.layer_norm_eps)
# in forward:  embed, go through the blocks, normalise
# ```
#
# </details>

# %%
from nanovlm.models.vision_transformer import PatchEmbedding

ViTBlock = use("vit.block", ViTBlock)


# %%
class ViT(nn.Module):
    """Pictures to patch vectors. [B, 3, image_size, image_size] -> [B, num_patches, hidden_dim]"""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        raise NotImplementedError("vit.encoder")

    def forward(self, images: Tensor) -> Tensor:
        raise NotImplementedError("vit.encoder")


# %%
check("vit.encoder", ViT)

# %% [markdown] tags=["stamped"]
# ## Exercise 2.7 · Where the weights are
# `vit.count_parameters` · difficulty ●●○ · about 8 minutes
#
# **Why it matters.** Memory, download and much of the compute follow from this number. Whoever can count it by
# hand has understood each part, and finds the layer that was not loaded.

# %% [markdown] tags=["exercise"]
# How many parameters has an encoder? Count them from its config, with arithmetic only, and return an int. The patch
# embedding is a linear layer on the numbers of a patch (three colours), with a bias, and one learned vector for each
# patch's position. Then the blocks, with all that you have just put into them, and the last layer norm. The config has
# `hidden_dim`, `inter_dim`, `num_blocks`, `patch_size` and `num_patches`.
#
# A norm over `dim` numbers has a weight and a bias for each of them.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# A linear layer from a to b holds a * b weights and b biases. A layer norm over d numbers holds 2 * d.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Patch embedding: one linear layer from 3 * patch_size ** 2, and a vector for each patch's position. A block:
# two norms, qkv, out, fc1, fc2. Then one more norm.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# embedding = linear(3 * p * p, d) + num_patches * d
# block = 2 * (2 * d) + linear(d, 3 * d) + linear(d, d) + linear(d, inter) + linear(inter, d)
# return embedding + num_blocks * block + 2 * d
# ```
#
# </details>


# %%
def count_parameters(config: ViTConfig) -> int:
    """All weights and biases of ViT(config), from its sizes."""

    raise NotImplementedError("vit.count_parameters")


# %%
check("vit.count_parameters", count_parameters)
