# %% [markdown]
# # 02 Exercises: the vision transformer
#
# Twelve of them. After the first seven you have written an encoder that takes SigLIP's weights, and the pocket model's.
# In the others you measure it, test it, mend another one, make its attention small, and write the loss that such
# encoders are trained with.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [the chapter](../chapters/02_vision_transformer.ipynb) ·
# [the solutions](../solutions/02_vision_transformer.ipynb) ·
# [notation and terms](../chapters/notation.md)
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
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanovlm.config import ViTConfig
from nanovlm.course import check, use

# %% [markdown] tags=["stamped"]
# ## Exercise 2.1 · Attention in three lines
# `vit.attention` · difficulty ●●○ · about 10 minutes
#
# **Why it matters.** Attention is the only place in a transformer where one patch learns anything about
# another. A softmax over the wrong axis or a forgotten scale runs without an error, and no shape gives it away.

# %% [markdown] tags=["exercise"]
# Write attention from its three inputs. Every query gets a score with every key, a softmax turns these scores into
# weights that sum to 1, and the output is the sum of the values with those weights:
#
# ```
# q [..., num_queries, head_dim]   k, v [..., num_keys, head_dim]   ->   [..., num_queries, head_dim]
# ```
#
# The score of a query and a key is their dot product over √head_dim. In front of the last two axes there may be any
# others: none, or batch and heads. Write it with `@` and `softmax`, although PyTorch has a function for it: here you
# build it. As an example with `head_dim` 1, take the query `[[1]]` and the keys `[[5], [5]]`. The scores are equal, so
# the weights are ½ and ½, and the values `[[10], [20]]` give `[[15]]`.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# There are three steps: how well each query fits each key, which weight each value earns by that, and the
# weighted sum of the values.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# The scores are queries times keys, [num_queries, num_keys], divided by the square root of head_dim. A row of
# the table belongs to one query, and after the softmax each row must sum to 1. The output is that table times
# the values.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# scores = q @ k.transpose(-2, -1) / head_dim ** 0.5
# weights = scores.softmax(dim=…)
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
# numbers gives each head pieces of several patches, and weights that somebody else has trained lose their
# meaning.

# %% [markdown] tags=["exercise"]
# One linear layer makes queries, keys and values at once, for all heads: `[batch, num_patches, 3 * dim]`. Take them
# apart and return a tuple `(q, k, v)`, each `[batch, num_heads, num_patches, head_dim]`, where `head_dim` is
# `dim / num_heads`.
#
# The last axis holds all of q, then all of k, then all of v. Inside each of the three, head 0 comes first, then head 1,
# and so on. This is one patch with `dim` 4 and two heads:
#
# ```
#  0  1 |  2  3 ||  4  5 |  6  7 ||  8  9 | 10 11
#  head 0 head 1    head 0 head 1    head 0 head 1
#       q                k                v
# ```

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# The last axis holds three things at once: which of q, k and v; which head; and which number inside the head.
# The prompt says in which order they vary.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Split the last axis into three axes. A view can do that, because it moves nothing. Then move the axes: q, k, v
# in front, so that you can take them apart, and heads before patches. Only transpose or permute does that.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# x = qkv.view(batch, num_patches, 3, num_heads, head_dim)
# x = x.permute(…)               # [3, batch, num_heads, num_patches, head_dim]
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
# ## Exercise 2.3 · Every patch attends to every patch
# `vit.attention_module` · difficulty ●●○ · about 10 minutes
#
# **Why it matters.** This is a part of your own vision encoder, and it runs the shipped weights. The way back
# from heads to one vector is easy to get wrong without any sign of it, because the shape fits either way.

# %% [markdown] tags=["exercise"]
# Write the attention of a block, which takes `[batch, N, dim]` and returns the same shape, in four steps:
#
# 1. one linear layer `qkv_proj`, from `dim` to `3 * dim`,
# 2. split into heads, and attend in each of them,
# 3. back: the heads of a patch end to end, head 0 first, so that it is `[batch, N, dim]` again,
# 4. one linear layer `out_proj`, from `dim` to `dim`.
#
# Both layers have a bias, as `nn.Linear` has by default. The config gives `hidden_dim`, which is `dim`, and
# `num_heads`. The names matter, because the shipped weights are stored under them.
#
# The cell below takes your `attend` and `split_heads` if they pass their checks, and the course's otherwise. You may
# use them or do without.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Go there and back: one wide layer, cut into heads, attend, put the heads together, one more layer.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# qkv_proj makes 3 * dim numbers out of dim. After attention you hold [batch, num_heads, N, head_dim], and you
# want [batch, N, dim] with a patch's heads end to end. So patches must come before heads again before you
# merge.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# in __init__: self.num_heads, self.qkv_proj = nn.Linear(dim, 3 * dim), self.out_proj = nn.Linear(dim, dim)
# in forward:  q, k, v = split_heads(self.qkv_proj(x), self.num_heads)
#              mixed = attend(q, k, v)
#              return self.out_proj(mixed.….reshape(x.shape))
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
# **Why it matters.** Two thirds of a block's weights are in the MLP. Which of the GELUs it has cannot be seen
# in a shape, but weights are trained with one of them and give other numbers with another.

# %% [markdown] tags=["exercise"]
# Write the other half of a block, which treats each patch alone: a linear layer `fc1` from `hidden_dim` to
# `inter_dim`, SigLIP's activation, and a linear layer `fc2` back. Both have a bias. The activation is GELU *by the
# tanh formula*; see the arguments of
# [`F.gelu`](https://docs.pytorch.org/docs/2.6/generated/torch.nn.functional.gelu.html).

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Make the vector wider, apply the activation, make it narrow again: three calls.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# fc1 goes from hidden_dim to inter_dim, and fc2 goes back. Between them is the GELU that SigLIP was trained
# with, by the tanh formula. F.gelu has an argument for it.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# in __init__: self.fc1 = nn.Linear(hidden_dim, inter_dim); self.fc2 = the other way round
# in forward:  return self.fc2(F.gelu(…))
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
# **Why it matters.** The order of these few operations decides whether weights fit and whether a deep stack
# trains. With the norm in another place the pocket model falls back to guessing, and no shape tells you.

# %% [markdown] tags=["exercise"]
# Write one pre-norm block. Attention reads a normalised copy of x, and its result is added to x. Then the MLP reads a
# normalised copy of that sum, and its result is added as well.
#
# Call the parts `ln1` and `attn`, `ln2` and `mlp`. The norms are `nn.LayerNorm` over `hidden_dim`, with `eps` from the
# config (`layer_norm_eps`).
#
# The cell below takes your attention and your MLP if they pass their checks, and the package's otherwise.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# The residual stream is only ever added to. What is normalised is a copy of it, for the sub-layer to read.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# There are two steps of the same form: x plus the sub-layer of the normalised x. The second step starts from
# the result of the first.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# in __init__: self.ln1 = nn.LayerNorm(hidden_dim, eps=config.layer_norm_eps)
#              self.attn = ViTAttention(config), self.ln2 the same again, self.mlp = ViTMLP(config)
# in forward:  x = x + …        # attention
#              return x + …     # MLP
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
# **Why it matters.** This is SigLIP's encoder. With the published numbers in its parameters, your class gives
# what the published model gives, and the pocket model sees through it.

# %% [markdown] tags=["exercise"]
# Write the whole encoder. It takes pictures, `[batch, 3, image_size, image_size]`, and returns one vector for each
# patch, `[batch, num_patches, hidden_dim]`. It has three parts: `patch_embedding` (the package's
# `PatchEmbedding(config)`, which does what you wrote in chapter 01: cut, project and add positions), then `blocks`, as
# many as `config.num_blocks`, then a `layer_norm`, built like those in the block.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# The encoder has three parts, one after another: one that makes vectors, a stack of equal blocks, one norm.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# The blocks must be in an nn.ModuleList, or PyTorch does not know that they have parameters. Each of them is a
# block of its own, and each reads what the one before it gave.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# in __init__: self.patch_embedding = PatchEmbedding(config)
#              self.blocks = nn.ModuleList(… for _ in range(config.num_blocks))
#              self.layer_norm = nn.LayerNorm(hidden_dim, eps=config.layer_norm_eps)
# in forward:  x = self.patch_embedding(images)
#              for block in self.blocks: …
#              return self.layer_norm(x)
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
# **Why it matters.** Memory, download size and much of the compute follow from this number. Whoever can count
# it by hand has understood each part, and notices a layer that was not loaded.

# %% [markdown] tags=["exercise"]
# How many parameters does an encoder have? Count them from its config and return a whole number. The patch embedding
# is a linear layer on the numbers of a patch (three colours), with a bias, and one learned vector for each patch's
# position. Then come the blocks, with all that you have just put into them, and the last layer norm. The config has
# `hidden_dim`, `inter_dim`, `num_blocks`, `patch_size` and `num_patches`. A norm over `dim` numbers has a weight and a
# bias for each of them.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# A linear layer from a to b holds a * b weights and b biases. A layer norm over d numbers holds 2 * d.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# The patch embedding is one linear layer from 3 * patch_size ** 2 numbers, and a vector for each patch's
# position. A block has two norms, qkv_proj, out_proj, fc1 and fc2. One more norm follows the blocks.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# embedding = linear(3 * p * p, d) + num_patches * d
# block = 2 * (2 * d) + linear(d, 3 * d) + …
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

# %% [markdown] tags=["stamped"]
# ## Exercise 2.8 · Measure it: how much does a sub-layer add?
# `vit.update_sizes` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** The residual stream is only ever added to. How large the additions are tells you which
# blocks do the work, and a block whose update is near zero can be left out, which is a way to make models
# smaller.

# %% [markdown] tags=["exercise"]
# **Measure it.** Every sub-layer adds an update to the residual stream. How long is that update, beside the vector
# that it is added to? Walk through an encoder and return two numbers for each block, first attention's, then the
# MLP's: the mean over all patches of all pictures of `|update| / |x|`, where `x` is the patch's vector just before the
# addition.
#
# The encoder has `patch_embedding`, `blocks` with `ln1`, `attn`, `ln2` and `mlp`, and `layer_norm`, which you do not
# need here.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Walk through the encoder by hand: the patch embedding, then each block's two steps, x plus an update.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Before each addition you hold x and the update, both [batch, patches, dim]. Take the length of each patch's
# vector (norm over the last axis), divide, and average over patches and pictures.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# x = encoder.patch_embedding(images)
# for block in encoder.blocks:
#     for norm, layer in ((block.ln1, block.attn), (block.ln2, block.mlp)):
#         update = layer(norm(x))
#         sizes.append(…)
#         x = x + update
# ```
#
# </details>


# %%
def update_sizes(encoder: nn.Module, images: Tensor) -> list[float]:
    """[B, 3, H, W] -> two numbers for each block: the mean share that attention adds, and the MLP."""
    raise NotImplementedError("vit.update_sizes")


# %%
check("vit.update_sizes", update_sizes)

# %% [markdown] tags=["stamped"]
# ## Exercise 2.9 · Attention that never holds all scores
# `vit.streaming_attention` · difficulty ●●● · about 25 minutes
#
# **Why it matters.** The table of scores grows with the square of the sequence, and is what runs out of memory
# first. Every fast attention kernel avoids it with this idea, the online softmax.

# %% [markdown] tags=["exercise"]
# Attention with the same result as `attend`, which never holds the scores of all keys. Read keys and values in blocks
# of `block` (the last block may be smaller), and keep no tensor that is larger than the scores of one block, `[...,
# num_queries, block]`, or than the inputs. The check measures the largest tensor that you make.
#
# This is the **online softmax** ([Milakov and Gimelshein 2018](https://arxiv.org/abs/1805.02867)), on which
# FlashAttention is built ([Dao et al. 2022](https://arxiv.org/abs/2205.14135)). Subtract the largest score so far
# before `exp`, so that large scores do no harm.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Go through the keys block by block. What must you remember of the blocks before, so that a softmax over all
# keys can be finished at the end?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Keep three things for each query: the largest score so far, the sum of exp(score - largest), and the values
# mixed with those weights. When a block brings a larger score, the sum and the mixture so far have to shrink by
# the same factor. Divide at the end.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# for keys, values in blocks:
#     scores = q @ keys.mT / head_dim ** 0.5
#     new = torch.maximum(best, scores.amax(-1, keepdim=True))
#     weights, shrink = (scores - new).exp(), …
#     total = total * shrink + weights.sum(-1, keepdim=True)
#     mixed = mixed * shrink + weights @ values
#     best = new
# return mixed / total
# ```
#
# </details>


# %%
def streaming_attention(q: Tensor, k: Tensor, v: Tensor, block: int) -> Tensor:
    """softmax(q kᵀ / √head_dim) v, a block of keys at a time. [..., num_queries, head_dim] -> the same shape"""
    raise NotImplementedError("vit.streaming_attention")


# %%
check("vit.streaming_attention", streaming_attention)

# %% [markdown] tags=["stamped"]
# ## Exercise 2.10 · The loss that made the encoder
# `vit.siglip_loss` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** Two lines of loss decide what an encoder pays attention to. This one needs no softmax over
# the batch, so a batch can be spread over many machines; a wrong sign or a missing pair trains to nothing
# without an error.

# %% [markdown] tags=["exercise"]
# The sigmoid loss of a batch of pairs. `images` and `texts` are `[batch, dim]`, and row i of both belongs to pair i.
# Bring every vector to length 1. The logit of picture i and text j is their dot product, times `exp(log_scale)`, plus
# `bias`. The target is +1 where i = j and -1 elsewhere. The loss is the sum of `-log(sigmoid(target * logit))` over the
# whole table, divided by the number of pictures (not by the number of pairs).

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Every picture meets every text of the batch, so there is a table of logits. Which entries of it are pairs that
# belong together?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Normalise both, multiply, scale by exp(log_scale) and add the bias: [batch, batch]. The target is +1 on the
# diagonal and -1 elsewhere. Sum -logsigmoid(target * logit) over the table and divide by the batch size.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# logits = F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T * log_scale.exp() + bias
# targets = 2 * torch.eye(len(images)) - 1
# return …
# ```
#
# </details>


# %%
def siglip_loss(images: Tensor, texts: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    """Each picture with each text is judged alone. [B, dim], [B, dim], scalar, scalar -> scalar"""
    raise NotImplementedError("vit.siglip_loss")


# %%
check("vit.siglip_loss", siglip_loss)

# %% [markdown] tags=["stamped"]
# ## Exercise 2.11 · Write the test that tells attentions apart
# `vit.test_attend` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** Eight wrong attentions have the right shape. A test of a few lines finds all of them,
# provided that its example is unkind: nothing in it may be symmetrical or equal by chance.

# %% [markdown] tags=["exercise"]
# **Write the test.** The check runs your test on an attention that is right, where it has to pass, and on eight that
# are wrong, where it has to fail. All of them return the right shape, and the check tells you how many you catch.
#
# A test calls the function that it is given, `attend(q, k, v)`, with a small example and compares the result by
# `assert`. It returns nothing. Use as many queries as keys; q, k and v may be single matrices.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Which example makes each mistake visible? If all scores are equal, no scale and no axis matters; if values
# equal keys, nobody can tell them apart.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Take random q, k and v of few numbers. Write down what the output should be by another way than the one you
# test: loops over queries and keys, with exp and a sum.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# out = attend(q, k, v)
# for i in range(len(q)):
#     scores = torch.stack([(q[i] * k[j]).sum() for j in range(len(k))]) / …
#     weights = scores.exp() / scores.exp().sum()
#     assert torch.allclose(out[i], …, atol=1e-5)
# ```
#
# </details>


# %%
def test_attend(attend) -> None:
    """Passes where attend is softmax(q kᵀ / √head_dim) v, and fails elsewhere."""
    raise NotImplementedError("vit.test_attend")


# %%
check("vit.test_attend", test_attend)

# %% [markdown] tags=["stamped"]
# ## Exercise 2.12 · Mend it: every weight loads, and the features are wrong
# `vit.mend_block` · difficulty ●●● · about 15 minutes
#
# **Why it matters.** Strict loading compares names and shapes. What is done with the weights is in no
# checkpoint, so a model can load without an error and still be another one.

# %% [markdown] tags=["exercise"]
# **Mend it.** This function runs one block of a SigLIP checkpoint. The `weights` have the names of transformers'
# `SiglipVisionModel`, and `eps` is the checkpoint's `layer_norm_eps`. It has three faults:
#
# ```python
# def run_block(weights, num_heads, eps, x):
#     batch, num_patches, dim = x.shape
#
#     def linear(name, x):
#         return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])
#
#     def norm(name, x):
#         return F.layer_norm(x, (dim,), weights[f"{name}.weight"], weights[f"{name}.bias"])
#
#     h = norm("layer_norm1", x)
#     q, k, v = (
#         linear(f"self_attn.{n}_proj", h).view(batch, num_heads, num_patches, -1) for n in "qkv"
#     )
#     mixed = F.scaled_dot_product_attention(q, k, v).reshape(batch, num_patches, dim)
#     x = x + linear("self_attn.out_proj", mixed)
#     return x + linear("mlp.fc2", F.gelu(linear("mlp.fc1", norm("layer_norm2", x))))
# ```
#
# All weights are found and all shapes are right, so nothing raises an error. Beside transformers' own block there are
# three symptoms. (1) If you swap two patches, the vectors of *other* patches change; with a single head they do not.
# (2) With a single head, a patch whose numbers are all nearly equal is far off. (3) The others still differ, in the
# third or fourth decimal.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# There are three faults, and each symptom belongs to one of them. Which lines could mix up patches, which
# depend on how much the numbers of a patch differ, and which is the activation?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# view(batch, num_heads, num_patches, …) cuts the sequence and not the vectors. layer_norm takes eps as its last
# argument. SigLIP's GELU is the one by tanh.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# layer_norm(…, weights[…], weights[…], eps)
# q, k, v: view(batch, num_patches, num_heads, -1).…
# mixed = …                                # back to [batch, num_patches, dim]
# F.gelu(…, approximate=…)
# ```
#
# </details>


# %%
def run_block(weights: dict[str, Tensor], num_heads: int, eps: float, x: Tensor) -> Tensor:
    """[B, N, dim] -> [B, N, dim], with the weights of one block of a SigLIP checkpoint."""
    raise NotImplementedError("vit.mend_block")


# %%
check("vit.mend_block", run_block)
