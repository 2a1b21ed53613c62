# %% [markdown]
# # 02 The vision transformer
#
# Let the patches exchange information: attention by hand on three patches, then heads, the MLP, the block and the whole of
# SigLIP's encoder, checked against transformers, and a minute of the training that such encoders come from. An hour; the
# code runs in two minutes.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [← 01 From pixels to patches](01_patch_embedding.ipynb) ·
# [03 Pixel shuffle and the projector →](03_pixel_shuffle_and_projector.ipynb) ·
# [exercises](../exercises/02_vision_transformer.ipynb) ·
# [notation and terms](notation.md)
#
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/chapters/02_vision_transformer.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/chapters/02_vision_transformer.ipynb

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
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from nanovlm.assets import asset_path
from nanovlm.config import ViTConfig
from nanovlm.course import budget, expect_shape, lever, quiz, use

# %% [markdown]
# **After this chapter you can**
#
# 1. write attention, the transformer block and SigLIP's encoder from memory, and say why each part is there,
# 2. find mistakes that no shape shows, by permuting patches and by comparing with another implementation,
# 3. explain why vision-language models take their encoder from contrastive training, and write its loss.
#
# You need chapter 01. Of the hour, about twenty minutes go into the prose and thirty into understanding the code; the
# rest is for quizzes and levers. The exercises come on top.

# %% [markdown]
# ## One patch cannot know what it belongs to
#
# Chapter 01 cut the picture into patches and made a vector of each. Here is a picture as the pocket model receives it, 64
# pixels wide, and one of its 64 patches. Which shape does the patch belong to?

# %%
photo = Image.open(asset_path("images/shapes.png")).convert("RGB")

from nanovlm.viz.pixel_shuffle import images_row

image = photo.resize((64, 64))
patch = image.crop((16, 8, 24, 16))  # row 1, column 2: patch 10
images_row([image, patch], ["the picture", "patch 10"])

# %% [markdown]
# The patch is red with one corner cut out, which fits a star as well as a heart. To decide between them, the patch needs
# information from its neighbours. This chapter builds the part that moves such information: an **encoder**, in which the
# patches exchange what they know, layer after layer, until each vector describes its patch *in the picture*. The
# operation that does the moving is called **attention**.

# %% [markdown]
# ## Attention by hand, on three patches
#
# Take three patches: the *middle* of a star, its *tip*, and a piece of the *background*. Each of them makes three vectors
# of its own, and each vector has one role:
#
# - the **query** says what the patch is looking for,
# - the **key** says what the patch has to offer,
# - the **value** is what the patch passes on to those that attend to it.

# %% [markdown]
# In a model these vectors are learned. Here we write them ourselves, with four numbers each. The first number means
# *red*, the second *grey*, the third *pointed*, and the fourth is not used.

# %%
names = ["middle", "tip", "background"]

q = torch.tensor([[0.0, 0, 4, 0], [2, 0, 0, 0], [0, 2, 0, 0]])  # looks for: pointed; red; grey
k = torch.tensor([[2.0, 0, 0, 0], [2, 0, 2, 0], [0, 2, 0, 0]])  # offers: red; red and pointed; grey
v = torch.tensor([[10.0, 0, 0, 0], [0, 10, 0, 0], [0, 0, 10, 0]])

# %% [markdown]
# **Step 1: scores.** How well a query fits a key is measured by their dot product: multiply number by number and add up.
# This is the score of the middle's query with the tip's key.

# %% tags=["nbval-check-output"]
sum(a * b for a, b in zip(q[0].tolist(), k[1].tolist(), strict=True))

# %% [markdown]
# All pairs together are one matrix product. A row of the result belongs to the patch that asks, and a column to the patch
# that is asked.

# %% tags=["nbval-check-output"]
scores = q @ k.T
scores

# %% [markdown]
# The table is not symmetrical, because queries and keys are different vectors. The middle looks for the tip alone,
# whereas the tip looks for anything red and finds two such patches, the middle and itself.
#
# **Step 2: scale.** Divide the scores by the square root of the vectors' length, which is √4 = 2 here. The reason
# follows below.

# %% tags=["nbval-check-output"]
scaled = scores / math.sqrt(4)
scaled

# %% [markdown]
# **Step 3: weights.** Scores can be any numbers, but a mixture needs weights that are positive and sum to 1. The softmax
# makes them: it takes `exp` of every score and divides by the sum. The question is over which entries of the table that
# sum should run.

# %%
quiz("ch02.axis")

# %% tags=["nbval-check-output"]
weights = scaled.softmax(dim=-1)
torch.set_printoptions(precision=2, sci_mode=False)
weights

# %% [markdown]
# The last axis, `dim=-1`, holds the keys, so each row sums to 1. The middle puts an **attention weight** of 96 % on the
# tip.
#
# **Step 4: mix.** Each patch receives the weighted sum of the values. The values above were chosen so that you can read
# the weights off the result, multiplied by ten.

# %% tags=["nbval-check-output"]
mixed = weights @ v
mixed

# %% [markdown]
# The first row is the middle's new vector, and nearly all of it comes from the tip. So the middle now carries the
# information that a tip is near, which is how a star begins to be recognised.
#
# That is all of attention: two matrix products, a scale and a softmax. Move the levers below. What happens to the weights
# when you divide by more or by less, and what if the softmax runs over the other axis?

# %%
from nanovlm.viz.vit import attention_tables


def by_hand(divide_by, over):
    table = q @ k.T / divide_by
    return attention_tables(table, table.softmax(dim=-1 if over == "keys" else 0), names, over)


lever(by_hand, divide_by=[0.5, 1, 2, 8, 100], over=["keys", "queries"], start={"divide_by": 2})

# %% [markdown]
# With a large divisor all weights become equal, so that every patch receives the average of everything. With a small
# one, the largest score takes nearly all of the weight. Training needs the region in between, where a small change of a
# score changes the mixture.
#
# The wrong axis is a mistake that people make, and nothing reports it. With `over = queries` the columns sum to 1 and the
# rows do not, but every shape stays as it was.

# %% [markdown]
# ### The same in one function
#
# The function below works for any number of patches and with any axes in front, which will be batch and heads.

# %% [markdown] tags=["stamped"]
# **The next cell is folded, because it answers this exercise:** [exercise 2.1, Attention in three
# lines](../exercises/02_vision_transformer.ipynb). Write yours first, or unfold it.


# %% tags=["answer:vit.attention"]
def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √head_dim) v. [..., num_queries, head_dim] -> the same shape"""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # [..., num_queries, num_keys]
    return scores.softmax(dim=-1) @ v


# %%
attend = use("vit.attention", attend)
torch.testing.assert_close(attend(q, k, v), mixed)

# %% [markdown]
# PyTorch has attention built in. It chooses among several versions by device, dtype and mask. The fused ones are faster
# and need less memory, because they never store the whole table of scores; how that is possible is exercise 2.9.

# %%
torch.testing.assert_close(F.scaled_dot_product_attention(q, k, v), attend(q, k, v))

# %% [markdown]
# ## The square root keeps scores at a standard deviation of one
#
# A score is a sum of `head_dim` products, so longer vectors can give larger sums. How much larger?

# %%
quiz("ch02.scale")

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
deviations = {}
for head_dim in (4, 16, 64, 256):
    random_scores = (torch.randn(4000, head_dim) * torch.randn(4000, head_dim)).sum(dim=-1)
    deviations[head_dim] = random_scores.std().item()
    by_root = deviations[head_dim] / math.sqrt(head_dim)
    print(f"head_dim {head_dim:3}: standard deviation {deviations[head_dim]:4.1f},", end=" ")
    print(f"by the root {by_root:.1f}")

# %% [markdown]
# The standard deviation grows with the square root of the length, so dividing by that root brings scores of any length
# to a standard deviation of 1. This is the reason that the transformer's authors give ([Vaswani et al.
# 2017](https://arxiv.org/abs/1706.03762), section 3.2.1).
#
# What happens without it? The figure shows one random query and eight random keys, none of which deserves more weight
# than another.

# %%
from nanovlm.viz.vit import weight_bars


def with_and_without(head_dim):
    generator = torch.Generator().manual_seed(3)
    query, keys = (
        torch.randn(head_dim, generator=generator),
        torch.randn(8, head_dim, generator=generator),
    )
    scores = keys @ query
    return weight_bars(
        {
            "not scaled": scores.softmax(0).tolist(),
            "scaled": (scores / math.sqrt(head_dim)).softmax(0).tolist(),
        }
    )


lever(with_and_without, head_dim=[4, 16, 64, 256], start={"head_dim": 64})

# %% [markdown]
# Without the scale one or two keys take all of the weight by accident, and the model can barely unlearn it. Where one
# weight is close to 1 and the others are close to 0, a small change of the scores changes nothing, so almost no gradient
# comes back. The next cell measures the length of the gradient that reaches a query, for the median of 2,000 queries.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
for head_dim in (16, 256):
    queries, keys, values = (
        torch.randn(2000, 1, head_dim),
        torch.randn(2000, head_dim, 8),
        torch.randn(2000, 8, 1),
    )
    queries.requires_grad_()
    for divide_by in (1, math.sqrt(head_dim)):
        out = (queries @ keys / divide_by).softmax(dim=-1) @ values
        (gradient,) = torch.autograd.grad(out.sum(), queries)  # [2000, 1, head_dim]
        length = gradient.norm(dim=-1).median().item()
        print(f"head_dim {head_dim:3}, divided by {divide_by:2.0f}: gradient {length:.2f}")

# %% [markdown]
# With the root, long queries receive the same gradient as short ones. Without it most of the long queries receive close
# to nothing, and a few receive a great deal, namely those whose two best keys happen to have similar scores.

# %% [markdown]
# ## Several heads let a patch ask several questions
#
# One softmax gives one set of weights, but a patch has more than one question. The middle of the star may need to know
# whether there is a tip *and* where the background begins. With one set of weights it would receive a blend of the two
# answers.

# %% [markdown]
# So each vector is cut into pieces, the **heads**, and each head attends on its own, with its own scores and weights.
# SigLIP-B cuts 768 numbers into 12 heads of 64. What does that cost?

# %%
quiz("ch02.heads")

# %% [markdown]
# ### Cutting a vector takes two steps
#
# We want `[batch, num_patches, dim]` as `[batch, num_heads, num_patches, head_dim]`. With the heads in front, they behave
# like a second batch axis, and `attend` needs no change. The example has two patches and two heads of two numbers; the
# numbers of patch 1 start at 10.

# %% tags=["nbval-check-output"]
x = torch.tensor([[[0, 1, 2, 3], [10, 11, 12, 13]]])  # [1, 2 patches, 4]
unfolded = x.view(
    1, 2, 2, 2
)  # [batch, patch, head, head_dim]: the last axis becomes two; no number moves
heads = unfolded.transpose(1, 2)  # [batch, head, patch, head_dim]: this step moves them
print("head 0:", heads[0, 0].tolist())
print("head 1:", heads[0, 1].tolist())

# %% [markdown]
# Head 0 holds the first half of each patch and head 1 the second half. Would one step not be enough?

# %%
quiz("ch02.reshape")

# %% tags=["nbval-check-output"]
wrong = x.reshape(1, 2, 2, 2)  # straight to [batch, head, patch, head_dim]
print("head 0:", wrong[0, 0].tolist())
print("head 1:", wrong[0, 1].tolist())

# %% [markdown]
# The shape is right, but head 0 holds all of patch 0 and nothing of patch 1. What it treats as two patches are the two
# halves of one, so here no information would ever move between patches.
#
# On the way back, the heads of a patch are laid end to end again, by the same steps in reverse order. The transpose cannot
# be left out there either.

# %%
assert heads.transpose(1, 2).reshape(1, 2, 4).equal(x)
assert not heads.reshape(1, 2, 4).equal(x)

# %% [markdown]
# ### The module
#
# Queries, keys and values each come from a linear layer that is applied to every patch. In code one wide layer makes all
# three, `3 * dim` numbers for each patch: first all of q, then k, then v. A last linear layer, `out_proj`, mixes what the
# heads have found.

# %% [markdown] tags=["stamped"]
# **The next cell is folded, because it answers this exercise:** [exercise 2.3, Every patch attends to every
# patch](../exercises/02_vision_transformer.ipynb). Write yours first, or unfold it.


# %% tags=["package:nanovlm.models.vision_transformer.ViTAttention", "answer:vit.attention_module"]
class ViTAttention(nn.Module):
    """Every patch attends to every patch. [B, N, dim] -> [B, N, dim]"""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv_proj = nn.Linear(config.hidden_dim, 3 * config.hidden_dim)
        self.out_proj = nn.Linear(config.hidden_dim, config.hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, num_patches, dim = x.shape
        qkv = self.qkv_proj(x).view(batch, num_patches, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, num_heads, N, head_dim]
        x = attend(q, k, v)  # [B, num_heads, N, head_dim]
        return self.out_proj(x.transpose(1, 2).reshape(batch, num_patches, dim))


# %%
ViTAttention = use("vit.attention_module", ViTAttention)

# %% tags=["nbval-check-output"]
config = (
    ViTConfig()
)  # the defaults are SigLIP-B/16 at 224 pixels: 768 wide, 12 heads, 14 x 14 patches
attention = ViTAttention(config)
x = torch.randn(1, 196, 768)
expect_shape(attention(x), "batch 196 768")

# %% [markdown]
# ### A permutation finds what no shape shows
#
# Attention compares *what* the patches hold and never asks *where* they are, since the position is part of the vector
# (chapter 01 added it). So if the patches come in another order, the outputs must be the same, in that order: attention
# is **permutation-equivariant**. The two wrong ways of cutting and merging fail this test.


# %%
class WrongSplit(ViTAttention):
    def forward(self, x):
        batch, num_patches, dim = x.shape
        parts = self.qkv_proj(x).chunk(3, dim=-1)
        q, k, v = (
            part.reshape(batch, self.num_heads, num_patches, -1) for part in parts
        )  # no transpose
        return self.out_proj(attend(q, k, v).reshape(batch, num_patches, dim))


class WrongMerge(ViTAttention):
    def forward(self, x):
        batch, num_patches, dim = x.shape
        qkv = self.qkv_proj(x).view(batch, num_patches, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return self.out_proj(attend(q, k, v).reshape(batch, num_patches, dim))  # no transpose


# %% tags=["nbval-check-output"]
order = torch.randperm(196)
for cls in (ViTAttention, WrongSplit, WrongMerge):
    module = cls(config)
    module.num_heads = config.num_heads
    module.load_state_dict(attention.state_dict())
    same = torch.allclose(module(x[:, order]), module(x)[:, order], atol=1e-5)
    print(
        f"{cls.__name__:13} {expect_shape(module(x), 'batch 196 768')}, permutation-equivariant: {same}"
    )

# %% [markdown]
# ## The MLP works on each patch alone
#
# After the patches have exchanged information, each of them processes what it has received, on its own. The **MLP** is two
# linear layers with an activation between them: four times wider, then back.
#
# The activation is GELU, a smooth relative of ReLU ([Hendrycks and Gimpel 2016](https://arxiv.org/abs/1606.08415)).
# Three functions go by that name in practice: the exact one, an approximation by tanh, which SigLIP was trained with,
# and the *quick* GELU, `x * sigmoid(1.702 x)`, of [CLIP's
# code](https://github.com/openai/CLIP/blob/0845fc462666c43bda82243874b66a0071464510/clip/model.py).

# %% tags=["nbval-check-output"]
for point in (-2.0, -1.0, 0.0, 1.0, 2.0):
    x = torch.tensor(point)
    exact, by_tanh, quick = F.gelu(x), F.gelu(x, approximate="tanh"), x * torch.sigmoid(1.702 * x)
    print(f"x {point:4.0f}   exact {exact:7.4f}   tanh {by_tanh:7.4f}   quick {quick:7.4f}")

# %% [markdown]
# The first two differ in the fourth decimal, and the quick one in the second. For the answers of a model the fourth
# decimal rarely matters. But an implementation that is right to three decimals in float32 contains a mistake, and you
# cannot know how large the next one is. So we will ask for five decimals. (Compare in float32: bfloat16 keeps only two to
# three significant digits, so that in it a mistake of this size cannot be told from rounding.)

# %% [markdown] tags=["stamped"]
# **The next cell is folded, because it answers this exercise:** [exercise 2.4, Each patch on its
# own](../exercises/02_vision_transformer.ipynb). Write yours first, or unfold it.


# %% tags=["package:nanovlm.models.vision_transformer.ViTMLP", "answer:vit.mlp"]
class ViTMLP(nn.Module):
    """Each patch on its own: widen, bend, narrow. [B, N, dim] -> [B, N, dim]"""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_dim, config.inter_dim)
        self.fc2 = nn.Linear(config.inter_dim, config.hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


# %%
ViTMLP = use("vit.mlp", ViTMLP)

# %% [markdown]
# ## A block adds to the residual stream
#
# Attention and MLP together make a **block**, and two more things hold it together.

# %% [markdown]
# The first is the **residual connection** ([He et al. 2015](https://arxiv.org/abs/1512.03385)). A sub-layer does not
# replace the vector but adds an update to it: `x + attention(x)`. So what a patch already knew is kept. The second is the
# **layer norm** ([Ba et al. 2016](https://arxiv.org/abs/1607.06450)). Before a sub-layer reads a vector, its numbers are
# brought to mean 0 and standard deviation 1, then multiplied by learned weights and shifted by a learned bias, so that
# the sub-layer does not depend on how long the vector has grown.

# %%
x = 5 * torch.randn(2, 3, 8) + 1
norm = nn.LayerNorm(8, eps=1e-6)
by_formula = (x - x.mean(-1, keepdim=True)) / (
    x.var(-1, keepdim=True, unbiased=False) + 1e-6
).sqrt()
torch.testing.assert_close(norm(x), by_formula * norm.weight + norm.bias)

# %% [markdown]
# Each patch has a mean and a standard deviation of its own, so no patch and no picture influences another one here. The
# small number `eps` prevents a division by zero for a vector whose numbers are all equal. SigLIP has 1e-6, while torch's
# default is 1e-5.
#
# The figure shows the order of the steps. The vertical path that runs through all blocks, and that is only ever added to,
# is called the **residual stream**: the sub-layers read a normalised copy of it and write their update back.

# %%
from nanovlm.viz.blocks import block_figure

block_figure()

# %% [markdown] tags=["stamped"]
# **The next cell is folded, because it answers this exercise:** [exercise 2.5, Normalise, transform, add
# back](../exercises/02_vision_transformer.ipynb). Write yours first, or unfold it.


# %% tags=["package:nanovlm.models.vision_transformer.ViTBlock", "answer:vit.block"]
class ViTBlock(nn.Module):
    """Pre-norm: normalise, transform, add back. [B, N, dim] -> [B, N, dim]"""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(config.hidden_dim, eps=config.layer_norm_eps)
        self.attn = ViTAttention(config)
        self.ln2 = nn.LayerNorm(config.hidden_dim, eps=config.layer_norm_eps)
        self.mlp = ViTMLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


# %%
ViTBlock = use("vit.block", ViTBlock)

# %% [markdown]
# ### With the norm in another place a deep stack does not train
#
# In this block the norm comes *before* each sub-layer, and the path from one addition to the next is left alone. He et al.
# found that such a clean path, an *identity mapping*, lets a signal pass forward and a gradient pass back through any
# number of blocks ([2016](https://arxiv.org/abs/1603.05027)). In transformers this order is called **pre-norm**, and the
# vision transformer and SigLIP have it ([Dosovitskiy et al. 2020](https://arxiv.org/abs/2010.11929)).

# %% [markdown]
# The first transformer normalised the sum after each addition, which is called **post-norm**. Here are that order and a
# block that adds nothing back.


# %%
class PostNorm(ViTBlock):
    def forward(self, x):
        x = self.ln1(x + self.attn(x))
        return self.ln2(x + self.mlp(x))


class NoResidual(ViTBlock):
    def forward(self, x):
        x = self.attn(self.ln1(x))
        return self.mlp(self.ln2(x))


# %% [markdown]
# The task needs attention and little else. Each of nine patches has one of four colours, patch 0 carries a mark, and every
# patch must name the colour of the marked one. We stack 24 blocks and train with a learning rate of 0.003 from the first
# step on. There are four runs of some seconds each; the last is post-norm once more, with a third of that learning rate.


# %%
def train(block_class, learning_rate=3e-3, seed=0):
    """The loss at each step, from new weights."""
    torch.manual_seed(seed)
    sizes = ViTConfig(
        hidden_dim=32, inter_dim=64, num_blocks=24, num_heads=2, image_size=24, patch_size=8
    )
    net = nn.Sequential(
        *(block_class(sizes) for _ in range(sizes.num_blocks)), nn.LayerNorm(32), nn.Linear(32, 4)
    )
    optimizer, losses = torch.optim.AdamW(net.parameters(), lr=learning_rate), []
    for _ in range(budget().pick(ci=48, laptop=60)):
        colours = torch.randint(4, (32, 9))
        patches = torch.zeros(32, 9, 32)
        patches[..., :4] = 3 * F.one_hot(colours, 4)
        patches[:, 0, 4] = 3  # the mark
        loss = F.cross_entropy(net(patches).flatten(0, 1), colours[:, :1].expand(-1, 9).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# %%
losses = {"pre-norm": train(ViTBlock), "post-norm": train(PostNorm)}

# %%
losses |= {
    "no residual": train(NoResidual),
    "post-norm, 0.001": train(PostNorm, learning_rate=1e-3),
}

# %%
from nanovlm.viz.vit import loss_curves

loss_curves(losses, chance=math.log(4))

# %% tags=["claim"]
assert losses["pre-norm"][-1] < 0.5 < 1 < min(losses["post-norm"][-1], losses["no residual"][-1])

# %% [markdown]
# Pre-norm learns the task, and without the residual connection nothing gets through 24 blocks. Post-norm does not learn
# at this learning rate and does with a third of it. It needs a more careful start, because at the beginning of training the
# gradients of its last layers are large ([Xiong et al. 2020](https://arxiv.org/abs/2002.04745)), and a warm-up of the
# learning rate provides that. One small task shows the effect and not how large it is elsewhere.

# %% [markdown]
# ## The encoder is a stack of blocks
#
# The patches go through one block after another and then through a last norm. That norm is needed because a pre-norm
# block never normalises what it passes on, so the vectors grow from block to block.
#
# One line below concerns memory, not the result. With `gradient_checkpointing` on, a block's inner values are discarded in
# the forward pass and computed again when the gradient needs them. It is off by default.

# %%
from torch.utils.checkpoint import checkpoint

from nanovlm.models.vision_transformer import PatchEmbedding  # chapter 01

# %% [markdown] tags=["stamped"]
# **The next cell is folded, because it answers this exercise:** [exercise 2.6, The whole
# encoder](../exercises/02_vision_transformer.ipynb). Write yours first, or unfold it.


# %% tags=["package:nanovlm.models.vision_transformer.ViT", "answer:vit.encoder"]
class ViT(nn.Module):
    """Pictures to patch vectors. [B, 3, image_size, image_size] -> [B, num_patches, hidden_dim]"""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = PatchEmbedding(config)
        self.blocks = nn.ModuleList(ViTBlock(config) for _ in range(config.num_blocks))
        self.layer_norm = nn.LayerNorm(config.hidden_dim, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embedding(images)
        for block in self.blocks:
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return self.layer_norm(x)


# %%
ViT = use("vit.encoder", ViT)

# %% tags=["nbval-check-output"]
siglip = ViT(ViTConfig()).eval()
with torch.inference_mode():
    patches = siglip(torch.randn(2, 3, 224, 224))
expect_shape(patches, "batch 196 768")

# %% [markdown]
# So 196 patches go in and 196 vectors come out. There is no **class token**, the extra vector in which the vision
# transformer of Dosovitskiy et al. collects what a classifier needs. SigLIP has none ([Zhai et al.
# 2023](https://arxiv.org/abs/2303.15343)): for comparing pictures with texts, a small head pools the patches. A
# vision-language model leaves that head away and keeps every patch, because it has to tell where things are.

# %% [markdown]
# ### Equal to transformers' SigLIP to five decimals
#
# The cells from here to *Your encoder sees* ask transformers' own code, which the course itself does not need. Without
# it (`pip install transformers`) skip all of them; nothing after that heading depends on them. Random weights are carried
# over into our class, and both get the same pictures. `siglip_tensors` renames the tensors, and it stacks the separate
# layers that transformers has for q, k and v into our one.

# %%
from transformers import SiglipVisionConfig, SiglipVisionModel

from nanovlm.weights.backbones import siglip_config, siglip_tensors

theirs = SiglipVisionModel(
    SiglipVisionConfig(
        hidden_size=96,
        intermediate_size=200,
        num_hidden_layers=4,
        num_attention_heads=6,
        image_size=48,
        patch_size=8,
    )
).eval()
torch.manual_seed(0)
with torch.no_grad():
    for (
        parameter
    ) in theirs.parameters():  # a new model is full of zeros and ones, which would hide mistakes
        parameter.add_(0.1 * torch.randn(parameter.shape))
tensors = {
    name.removeprefix("vision_model."): tensor for name, tensor in theirs.state_dict().items()
}
tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("head.")}

# %% tags=["nbval-check-output"]
ours = ViT(siglip_config(theirs.config.to_dict())).eval()
ours.load_state_dict(
    siglip_tensors(tensors, num_blocks=4, prefix="")
)  # strict: a missing name would raise

images = torch.randn(2, 3, 48, 48)
with torch.inference_mode():
    mine, reference = ours(images), theirs(pixel_values=images).last_hidden_state
torch.testing.assert_close(mine, reference, atol=1e-5, rtol=1e-5)
expect_shape(mine, "batch 36 96")

# %% [markdown]
# Both agree to five decimals. Would the comparison have noticed a small mistake, such as one of the other two GELUs?

# %%
others = {"exact": F.gelu, "quick": lambda x: x * torch.sigmoid(1.702 * x)}
for name, gelu in others.items():
    for block in ours.blocks:
        block.mlp.forward = lambda x, mlp=block.mlp, gelu=gelu: mlp.fc2(gelu(mlp.fc1(x)))
    with torch.inference_mode():
        error = (ours(images) - reference).abs().max().item()
    assert error > 1e-4
    print(f"{name} GELU: largest difference {error:.5f}")

# %% [markdown]
# It would. A difference as small as that of the exact GELU is easily taken for rounding, but here rounding stays below the
# fifth decimal. In exercise 2.12 you mend a block that loads every weight and has this fault and two others.
#
# For one part of theirs there is no place in ours, the pooling head. If you read elsewhere that this
# encoder has 93 million parameters, that head is included.

# %% tags=["nbval-check-output"]
with torch.device("meta"):  # shapes without numbers
    whole = SiglipVisionModel(SiglipVisionConfig())
pooling = sum(p.numel() for name, p in whole.named_parameters() if "head." in name)
rest = sum(p.numel() for p in siglip.parameters())
print(f"{rest:,} + {pooling:,} = {sum(p.numel() for p in whole.parameters()):,}")

# %% [markdown]
# ### Two thirds of the weights are in the MLPs
#
# You can count those parameters by hand, and exercise 2.7 asks you to. A linear layer from a to b has a · b weights and b
# biases, and a norm over d numbers has d of each.


# %% tags=["nbval-check-output"]
def share(word):
    return sum(p.numel() for name, p in siglip.named_parameters() if word in name) / rest


for word in ("mlp", "attn", "patch_embedding", "ln"):
    print(f"{word:16} {share(word):6.1%}")

# %% [markdown]
# The number of heads changes nothing here, because heads only cut a vector, and the size of the picture changes only the
# positions.

# %% [markdown]
# ### Your encoder sees
#
# The pocket model's encoder has two blocks of four heads and is 128 wide. Our class takes its weights and answers with
# them.

# %%
from nanovlm import VisionLanguageModel

model = VisionLanguageModel.from_pretrained(asset_path("pocket")).eval()
encoder = ViT(model.config.vision).eval()
encoder.load_state_dict(model.vision_encoder.state_dict())

model.vision_encoder = encoder
model.generate(image=photo, prompt="Where is the red star?")

# %% [markdown]
# How much does each sub-layer add to the residual stream? For each patch, divide the length of the update by the length of
# the vector that it is added to; you write that measurement in exercise 2.8. The figure draws the stream as a line on
# which the sub-layers act, with their mean update beside each.

# %%
from nanovlm.viz.blocks import stream_figure

update_sizes = use("vit.update_sizes")
pixels = model.image_processor(photo)
stream_figure(update_sizes(encoder, pixels[:1]))

# %% [markdown]
# An update of 100 % is as long as the vector that it changes. What the heads attend to inside these blocks, and whether
# the model needs it, is a subject of its own: [chapter 14](14_looking_inside.ipynb) looks inside.

# %% [markdown]
# ## The encoder was trained on pictures with their texts
#
# A new encoder has random weights, and yet nanoVLM-222M was trained on no more than about 1.7 million samples
# ([README at v0.1](https://github.com/huggingface/nanoVLM/blob/v0.1/README.md)). That is enough, because its encoder had
# already been trained on far more pictures: SigLIP on WebLI, a collection of pictures from the web with the text beside
# them ([Zhai et al. 2023](https://arxiv.org/abs/2303.15343)). Which task turns such pairs into an encoder that *describes*
# pictures?

# %% [markdown]
# One could train it to name one of a thousand classes. But a label such as "tabby cat" says nothing about colours,
# numbers, places or text in the picture, so an encoder trained in that way may discard them. A caption mentions
# whatever people find worth saying. So **contrastive** training asks: which of the texts in this batch belongs to this
# picture?

# %% [markdown]
# ### Two encoders, one space
#
# A second transformer reads the text, and it needs nothing new: a caption is a sequence of token embeddings, and our
# blocks do not care where a sequence comes from. Both encoders average their outputs to one vector, and the training
# makes the two vectors of a pair similar.
#
# Our pairs are the Thimble's scenes with their captions, in pictures of 32 pixels, so that a minute is enough.

# %%
from nanovlm.course.caption_pairs import CaptionPairs

num_pairs = budget().pick(ci=200, laptop=1000)
pairs = CaptionPairs("train", num_pairs)
held_out = CaptionPairs("test", 100, pairs.vocabulary)
print(pairs.texts[0])
print(pairs.captions[0].tolist())

# %%
sizes = ViTConfig(
    hidden_dim=64, inter_dim=128, num_blocks=2, num_heads=4, image_size=32, patch_size=8
)


class TwoEncoders(nn.Module):
    """Pictures and captions -> [B, 64] each. Positions, blocks and norm are the ViT's in both."""

    def __init__(self, num_words: int) -> None:
        super().__init__()
        self.vision, self.text = ViT(sizes), ViT(sizes)
        self.text.patch_embedding = nn.Embedding(
            num_words + 1, sizes.hidden_dim
        )  # words in place of patches
        self.places = nn.Parameter(0.02 * torch.randn(16, sizes.hidden_dim))
        self.text.patch_embedding.register_forward_hook(
            lambda module, args, words: words + self.places
        )
        self.log_scale, self.bias = (
            nn.Parameter(torch.tensor(math.log(10))),
            nn.Parameter(torch.tensor(-10.0)),
        )

    def forward(self, images: Tensor, captions: Tensor) -> tuple[Tensor, Tensor]:
        return self.vision(images).mean(dim=1), self.text(captions).mean(dim=1)


# %% [markdown]
# ### Softmax or sigmoid?
#
# In a batch of B pairs every picture meets every caption, which gives a table of B × B similarities. CLIP ([Radford et al.
# 2021](https://arxiv.org/abs/2103.00020)) treats each row as a classification, *which caption belongs to this picture?*,
# and each column likewise, with a softmax.

# %% [markdown]
# SigLIP asks a smaller question of each entry: *do these two belong together?* That is a sigmoid for each pair. What does
# this difference mean for a batch that is spread over several machines?

# %%
quiz("ch02.sigmoid")

# %% [markdown]
# The sum of a row's softmax runs over all captions of the batch, while an entry of the sigmoid loss depends on no other.
#
# With B pairs there are B right answers and B² − B wrong ones, so at the start the loss would be dominated by the wrong
# pairs. A learned bias, which begins at −10, says "no" to all of them from the first step on, and a learned scale, which
# begins at 10, turns a cosine between −1 and 1 into logits that a sigmoid can tell apart ([Zhai et al.
# 2023](https://arxiv.org/abs/2303.15343), section 3.2).

# %% [markdown] tags=["stamped"]
# **The next cell is folded, because it answers this exercise:** [exercise 2.10, The loss that made the
# encoder](../exercises/02_vision_transformer.ipynb). Write yours first, or unfold it.


# %% tags=["answer:vit.siglip_loss"]
def siglip_loss(images: Tensor, texts: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    """Each of the B * B pairs is judged alone. images, texts: [B, dim]; the sum of the losses / B."""
    logits = (
        F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T * log_scale.exp() + bias
    )  # [B, B]
    targets = 2 * torch.eye(len(images)) - 1  # 1 on the diagonal, -1 elsewhere
    return -F.logsigmoid(targets * logits).sum() / len(images)


# %%
siglip_loss = use("vit.siglip_loss", siglip_loss)


def softmax_loss(images, texts, log_scale, bias):
    logits = F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T * log_scale.exp()
    right = torch.arange(len(images))
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2


# %% [markdown]
# ### A minute of training
#
# Two trainings with equal first weights, batches and steps, one for each loss. They take about half a minute each on a
# laptop. The measure is **recall@1** on 100 scenes that were not trained on: how often the most similar of the 100
# captions is the right one. Guessing gets 1 %.


# %%
@torch.no_grad()
def similarities(net, data):
    """Cosines of each picture with each caption. [pictures, captions]"""
    images, texts = net(data.images, data.captions)
    return F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T


def contrastive_training(loss_of, steps, batch_size=64):
    torch.manual_seed(0)
    net, recalls = TwoEncoders(len(pairs.vocabulary)), []
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    for step in range(steps + 1):
        if step % (steps // 6) == 0:
            found = similarities(net, held_out).argmax(dim=1)
            recalls.append((step, (found == torch.arange(len(found))).float().mean().item()))
        chosen = torch.randperm(num_pairs)[:batch_size]
        loss = loss_of(*net(pairs.images[chosen], pairs.captions[chosen]), net.log_scale, net.bias)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net, recalls


# %%
steps = budget().pick(ci=30, laptop=360)
two_encoders, with_sigmoid = contrastive_training(siglip_loss, steps)

# %%
_, with_softmax = contrastive_training(softmax_loss, steps)

# %%
from nanovlm.viz.data import curves_figure

curves_figure(
    "Recall@1 of captions for unseen pictures",
    {"sigmoid": with_sigmoid, "softmax": with_softmax},
    0.01,
)

# %%
at_the_end = f"sigmoid {with_sigmoid[-1][1]:.0%}, softmax {with_softmax[-1][1]:.0%}"
print(f"after {steps} steps, recall@1: {at_the_end}")
print(
    f"learned scale {two_encoders.log_scale.exp().item():.1f}, bias {two_encoders.bias.item():.1f}"
)

# %% [markdown]
# One run on one small data set does not decide which loss is better. SigLIP's paper reports that the two come close to
# each other at large batches, with the sigmoid ahead at small ones. Beyond that the sigmoid's advantage is in
# engineering: no machine has to hold the whole table, so the loss needs less memory and can be computed in pieces.

# %% [markdown]
# Nothing in the data says what "red" or "top left" means. The encoder has learned it because pictures that differ in it
# have other captions. The table shows eight unseen scenes with all of their captions; where the encoder is right, the
# largest entry of each row is on the diagonal.

# %%
from nanovlm.viz.blocks import retrieval_figure

table = similarities(two_encoders, held_out)[:8, :8]
retrieval_figure(held_out.pictures[:8], held_out.texts[:8], table)

# %% [markdown]
# Move the lever to search all 100 pictures with a caption, which is what such encoders are used for on their own.

# %%
from nanovlm.viz.blocks import search_figure

table = similarities(two_encoders, held_out)


def search(caption):
    best = table[:, caption].topk(4).indices.tolist()
    found = [(held_out.pictures[i], f"{table[i, caption]:.2f}", i == caption) for i in best]
    return search_figure(held_out.texts[caption], found)


lever(search, caption=[0, 1, 2, 3])

# %% [markdown]
# A vision-language model leaves the text encoder away and keeps the other one, with all of its patches. What contrastive
# training cannot give is whatever the captions never mention: if no caption says how many windows a house has, the
# encoder has no reason to count them.

# %% [markdown]
# ## Where this lives in the package
#
# The four classes are the package's, in `nanovlm/models/vision_transformer.py`, and the builder of this notebook compares
# them with that file. `attend` is the plainest form of the package's function in `nanovlm/models/attention.py`, which
# calls PyTorch's attention. That function also takes a mask, so that a token cannot attend to what comes after it. A patch
# may attend to all others, so the encoder needs no mask; chapter 04 builds the decoder's.
#
# If you want an encoder of another size, change `ViTConfig`: the classes read every size from it. Trained weights
# fit only the sizes that they were trained with, except for the positions, which can be resized (chapter 01).

# %% tags=["nbval-check-output"]
from nanovlm.inference.prompts import prepare_prompt
from nanovlm.trace import trace

ids, pixels = prepare_prompt(model, "Where is the red star?", photo)
trace(model, torch.tensor([ids]), pixels).expect(
    {"vision_encoder": "1 64 128", "pixel_shuffle": "1 16 512"}
)
print("64 patches in, 64 vectors out")

# %% [markdown]
# What you take along:
#
# - Attention is two products, a scale and a softmax. The softmax runs over the keys.
# - Heads are a cut and a transpose. A permutation of the patches finds a wrong cut.
# - A pre-norm block only adds to the residual stream. Weights trained with the norm there are useless with it elsewhere.
# - Agreement with somebody else's code to five decimals in float32 is worth more than any number of right shapes.
# - An encoder that describes pictures comes from telling right captions from wrong ones.

# %% [markdown]
# **In the wild.** SigLIP's training code is in
# [big_vision](https://github.com/google-research/big_vision/blob/642c086e68b5e49ec8c48cead8b1c6fb042fc85a/big_vision/trainers/proj/image_text/siglip.py),
# and nanoVLM's encoder is [one file](https://github.com/huggingface/nanoVLM/blob/v0.1/models/vision_transformer.py).

# %% [markdown]
# ## Challenge: attention over 4,096 patches in the least memory
#
# A picture of 1,024 pixels has 4,096 patches, and a table of scores for one head holds 16.8 million numbers. The cell
# below measures the largest tensor that a function makes on the way. The baseline is `attend`. Reach less than 1 MB with
# an equal result; exercise 2.9 is one way to begin, and going below 0.3 MB takes blocks of queries as well.

# %%
from nanovlm.course.largest_tensor import largest_tensor

q, k, v = (torch.randn(1, 1, 4096, 16) for _ in range(3))
out, largest = largest_tensor(attend, q, k, v)  # put your own function in
torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v), atol=1e-4, rtol=1e-4)
print(
    f"largest tensor: {largest * 4 / 1e6:.2f} MB; the output itself has {out.numel() * 4 / 1e6:.2f} MB"
)

# %% [markdown] tags=["stamped"]
# ## Your turn
#
# [Open the exercises](../exercises/02_vision_transformer.ipynb) ([in Colab][exercises]): 12 of them, about 2.2 hours.
#
# [exercises]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/exercises/02_vision_transformer.ipynb
#
# | | exercise | difficulty | minutes |
# |---|---|---|---|
# | 2.1 | Attention in three lines (`vit.attention`) | ●●○ | 10 |
# | 2.2 | One wide vector, many heads (`vit.split_heads`) | ●●○ | 10 |
# | 2.3 | Every patch attends to every patch (`vit.attention_module`) | ●●○ | 10 |
# | 2.4 | Each patch on its own (`vit.mlp`) | ●○○ | 6 |
# | 2.5 | Normalise, transform, add back (`vit.block`) | ●●○ | 8 |
# | 2.6 | The whole encoder (`vit.encoder`) | ●●○ | 8 |
# | 2.7 | Where the weights are (`vit.count_parameters`) | ●●○ | 8 |
# | 2.8 | Measure it: how much does a sub-layer add? (`vit.update_sizes`) | ●●○ | 12 |
# | 2.9 | Attention that never holds all scores (`vit.streaming_attention`) | ●●● | 25 |
# | 2.10 | The loss that made the encoder (`vit.siglip_loss`) | ●●○ | 12 |
# | 2.11 | Write the test that tells attentions apart (`vit.test_attend`) | ●●○ | 12 |
# | 2.12 | Mend it: every weight loads, and the features are wrong (`vit.mend_block`) | ●●● | 15 |
#
# Next: [03 Pixel shuffle and the projector](03_pixel_shuffle_and_projector.ipynb)
