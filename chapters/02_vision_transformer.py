# %% [markdown]
# # 02 The vision transformer
#
# Let the patches look at each other: attention by hand on three patches, then heads, the MLP, the block, and the whole
# of SigLIP's encoder, checked against transformers. Forty minutes; the code runs in half a minute.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [← 01 From pixels to patches](01_patch_embedding.ipynb) ·
# [03 Pixel shuffle and the projector →](03_pixel_shuffle_and_projector.ipynb) ·
# [exercises](../exercises/02_vision_transformer.ipynb)
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
from PIL import Image, ImageOps
from torch import Tensor, nn

from nanovlm.assets import asset_path
from nanovlm.config import ViTConfig
from nanovlm.course import Cells, budget, expect_shape, lever, quiz, use
from nanovlm.inference.prompts import prepare_prompt

# %% [markdown]
# ## The question: what can one patch know?
#
# Chapter 01 cut the picture into patches and made a vector of each. Here is a picture as the pocket model gets it, 64
# pixels wide, and one of its 64 patches. What shape does the patch belong to?

# %%
photo = Image.open(asset_path("images/shapes.png")).convert("RGB")

from nanovlm.viz.pixel_shuffle import images_row

image = photo.resize((64, 64))
patch = image.crop((16, 8, 24, 16))  # row 1, column 2: patch 10
images_row([image, patch], ["the picture", "patch 10"])

# %% [markdown]
# Red, with a corner cut out. A star has such a patch, and so has a heart. To know more, it must ask the
# others. That is what this chapter builds: an *encoder* in which patches ask each other, layer after layer, until each
# vector knows where it belongs.
#
# The way to ask is called **attention**.

# %% [markdown]
# ## Attention by hand
#
# Three patches: the *middle* of a star, its *tip*, and a piece of the *background*. Each of them makes three vectors of
# its own:
#
# - a **query**: what am I looking for?
# - a **key**: what have I got to offer?
# - a **value**: what do I hand over to whoever wants me?
#
# In a model they are learned. Here we write them ourselves, four numbers each. Say that the first number stands for
# *red*, the second for *grey*, the third for *pointed*; the fourth is not used.

# %%
names = ["middle", "tip", "background"]

q = torch.tensor([[0.0, 0, 4, 0], [2, 0, 0, 0], [0, 2, 0, 0]])  # looks for: pointed; red; grey
k = torch.tensor([[2.0, 0, 0, 0], [2, 0, 2, 0], [0, 2, 0, 0]])  # offers: red; red and pointed; grey
v = torch.tensor([[10.0, 0, 0, 0], [0, 10, 0, 0], [0, 0, 10, 0]])

# %% [markdown]
# **Step 1: scores.** How well does a query fit a key? Multiply number by number and add up: the dot product. The middle
# asks the tip:

# %% tags=["nbval-check-output"]
sum(a * b for a, b in zip(q[0].tolist(), k[1].tolist(), strict=True))

# %% [markdown]
# All pairs at once are one matrix product. A row belongs to the patch that asks, a column to the one that is asked.

# %% tags=["nbval-check-output"]
scores = q @ k.T
assert scores[0, 1] == 8
scores

# %% [markdown]
# It is not symmetrical. The middle wants the tip very much. The tip wants anything red: the middle, or itself.
#
# **Step 2: scale.** Divide by the square root of the vectors' length. Why, we see in a moment; √4 is 2.

# %% tags=["nbval-check-output"]
scores = scores / math.sqrt(4)
scores

# %% [markdown]
# **Step 3: shares.** Scores can be any numbers. We want shares: positive, and 100 % in all. The softmax makes them: it
# takes `exp` of every score and divides by the sum. But the sum over what?

# %%
quiz("ch02.axis")

# %% tags=["nbval-check-output"]
weights = scores.softmax(dim=-1)
assert torch.allclose(weights.sum(dim=-1), torch.ones(3))
torch.set_printoptions(precision=2, sci_mode=False)
weights

# %% [markdown]
# `dim=-1` is the last axis, the keys: each row sums to 1. The middle spends 96 % of its attention on the tip.
#
# **Step 4: mix.** Each patch takes the others' values, by its shares. The values above are chosen so that you can read
# the shares off the result: ten times each.

# %% tags=["nbval-check-output"]
mixed = weights @ v
mixed

# %% [markdown]
# The first row is the middle's new vector. It consists nearly all of what the tip handed over. The middle now knows
# that there is a tip: a star begins to show.
#
# That is all of attention: two matrix products, a scale and a softmax. Move the levers. What happens to the shares when
# you divide by more, or by less? And what if the softmax runs over the other axis?

# %%
from nanovlm.viz.vit import attention_tables


def by_hand(divide_by, over):
    table = q @ k.T / divide_by
    return attention_tables(table, table.softmax(dim=-1 if over == "keys" else 0), names, over)


lever(by_hand, divide_by=[0.5, 1, 2, 8, 100], over=["keys", "queries"], start={"divide_by": 2})

# %% [markdown]
# Divide by much, and all shares become equal: everybody takes the average of everything. Divide by little, and the
# largest score takes it all. In between lies a choice that can be learned.
#
# The wrong axis is a real mistake, and a quiet one. With `over = queries` the columns sum to 1 and the rows do not. The
# shapes stay as they were, and nothing raises.
#
# ### In one function
#
# The same for any number of patches, with any axes in front:


# %%
def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √head_dim) v. [..., num_queries, head_dim] -> the same shape"""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # [..., num_queries, num_keys]
    return scores.softmax(dim=-1) @ v


assert attend(q, k, v).equal(mixed)

# %% [markdown]
# PyTorch has it built in, in versions that are faster and need less memory, because they never keep the whole table of
# scores:

# %%
torch.testing.assert_close(F.scaled_dot_product_attention(q, k, v), attend(q, k, v))

# %% [markdown]
# ## Why the square root?
#
# A score adds up `head_dim` products. The longer the vectors, the larger the sum can get. How much larger?

# %%
quiz("ch02.scale")

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
spreads = {}
for head_dim in (4, 16, 64, 256):
    random_scores = (torch.randn(4000, head_dim) * torch.randn(4000, head_dim)).sum(dim=-1)
    spreads[head_dim] = random_scores.std().item()
    scaled = spreads[head_dim] / math.sqrt(head_dim)
    print(f"head_dim {head_dim:3}: spread {spreads[head_dim]:4.1f}, divided by the root {scaled:.1f}")
assert all(abs(spread / head_dim**0.5 - 1) < 0.1 for head_dim, spread in spreads.items())

# %% [markdown]
# The spread is the square root of the length. Dividing by it brings scores of any length to spread 1. That is the whole
# reason, and it is given in the paper that brought the transformer ([Vaswani et al.
# 2017](https://arxiv.org/abs/1706.03762), section 3.2.1).
#
# What if we leave it out? Eight keys, all random, none of them better than the others:

# %%
from nanovlm.viz.vit import weight_bars


def with_and_without(head_dim):
    generator = torch.Generator().manual_seed(3)
    query, keys = torch.randn(head_dim, generator=generator), torch.randn(8, head_dim, generator=generator)
    return weight_bars(
        {
            "not scaled": (keys @ query).softmax(dim=0).tolist(),
            "scaled": (keys @ query / math.sqrt(head_dim)).softmax(dim=0).tolist(),
        }
    )


lever(with_and_without, head_dim=[4, 16, 64, 256], start={"head_dim": 64})

# %% [markdown]
# Without the scale one or two keys win by accident, and take everything. Worse: the model can hardly unlearn it. Where
# one share is nearly 100 % and the others are nearly 0, a small change of the scores changes nothing, so almost no
# gradient comes back. Measured: the length of the gradient that reaches a query, for the middle one of 2,000 queries.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
flow = {}
for head_dim in (16, 256):
    queries, keys, values = torch.randn(2000, 1, head_dim), torch.randn(2000, head_dim, 8), torch.randn(2000, 8, 1)
    queries.requires_grad_()
    for divide_by in (1, math.sqrt(head_dim)):
        mixed = (queries @ keys / divide_by).softmax(dim=-1) @ values
        (gradient,) = torch.autograd.grad(mixed.sum(), queries)  # [2000, 1, head_dim]
        flow[head_dim, divide_by] = gradient.norm(dim=-1).median().item()
        print(f"head_dim {head_dim:3}, divided by {divide_by:2.0f}: gradient {flow[head_dim, divide_by]:.2f}")
assert flow[256, 1] < 0.1 * flow[256, 16] and abs(flow[256, 16] - flow[16, 4]) < 0.1

# %% [markdown]
# With the root, long queries get the gradient that short ones get. Without it, most of the long ones get next to nothing.
# (A few get a great deal: those whose two best keys happen to be close.)

# %% [markdown]
# ## Several heads
#
# One softmax gives one set of shares. But a patch has more than one question. The middle of the star may want to know
# *is there a tip?* and *where does the background begin?* With one set of shares it would have to split its attention,
# and would get the two answers blurred into one.
#
# So the vector is cut into pieces, the **heads**. Each attends on its own: own scores, own softmax, own shares. SigLIP-B
# cuts 768 numbers into 12 heads of 64. What does it cost?

# %%
quiz("ch02.heads")

# %% [markdown]
# ### Cutting
#
# We want `[batch, num_patches, dim]` as `[batch, num_heads, num_patches, head_dim]`: the head stands in front, like a
# second batch, and `attend` needs no change. Two patches, two heads of two numbers; the numbers of patch 1 start at 10:

# %% tags=["nbval-check-output"]
x = torch.tensor([[[0, 1, 2, 3], [10, 11, 12, 13]]])  # [1, 2 patches, 4]
unfolded = x.view(1, 2, 2, 2)  # [batch, patch, head, head_dim]: the last axis becomes two; no number moves
heads = unfolded.transpose(1, 2)  # [batch, head, patch, head_dim]: this step moves them
print("head 0:", heads[0, 0].tolist())
print("head 1:", heads[0, 1].tolist())

# %% [markdown]
# Head 0 holds the first half of each patch, head 1 the second half. Two steps. Would one not do?

# %%
quiz("ch02.reshape")

# %% tags=["nbval-check-output"]
wrong = x.reshape(1, 2, 2, 2)  # straight to [batch, head, patch, head_dim]
print("head 0:", wrong[0, 0].tolist())
print("head 1:", wrong[0, 1].tolist())

# %% [markdown]
# The shape is right. But head 0 holds all of patch 0, and nothing of patch 1: what it takes for two patches are the two
# halves of one. Here no patch would ever look at another; with more patches and heads, scraps of some would look at
# scraps of others. We come back to this.
#
# ### And back
#
# Afterwards the heads of a patch are laid end to end again: the same steps, backwards. Here too the transpose cannot be
# left out.

# %%
merged = heads.transpose(1, 2).reshape(1, 2, 4)
assert merged.equal(x)
assert not heads.reshape(1, 2, 4).equal(x)

# %% [markdown]
# ### The module
#
# Where do queries, keys and values come from? Each is a linear layer applied to every patch. In code it is one wide
# layer that makes all three, `3 * dim` numbers for each patch: first all of q, then k, then v. A last linear layer,
# `out_proj`, lets the heads' findings mix.


# %% tags=["package:nanovlm.models.vision_transformer.ViTAttention"]
class ViTAttention(nn.Module):
    """Every patch looks at every patch. [B, N, dim] -> [B, N, dim]"""

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


# %% tags=["nbval-check-output"]
config = ViTConfig()  # the defaults are SigLIP-B/16 at 224 pixels: 768 wide, 12 heads, 14 x 14 patches
attention = ViTAttention(config)
x = torch.randn(1, 196, 768)
expect_shape(attention(x), "batch 196 768")

# %% [markdown]
# ### A test that no shape can give
#
# Attention asks *what* a patch holds and never *where* it is. (The place is in the vector: chapter 01 added it.) So if
# the patches come in another order, the answers must be the same, in that order. The wrong ways of cutting and merging
# fail here:


# %%
class WrongSplit(ViTAttention):
    def forward(self, x):
        batch, num_patches, dim = x.shape
        parts = self.qkv_proj(x).chunk(3, dim=-1)
        q, k, v = (part.reshape(batch, self.num_heads, num_patches, -1) for part in parts)  # no transpose
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
    module.load_state_dict(attention.state_dict())
    expect_shape(module(x), "batch 196 768")
    same = torch.allclose(module(x[:, order]), module(x)[:, order], atol=1e-5)
    print(f"{cls.__name__:13} shape right; another order gives the same answers in that order: {same}")

# %% [markdown]
# ## Alone again: the MLP
#
# After the patches have looked at each other, each thinks about what it has got, on its own. Two linear layers with a
# bend between them: four times wider, then back.
#
# The bend is GELU, a smooth relative of ReLU ([Hendrycks and Gimpel 2016](https://arxiv.org/abs/1606.08415)). It comes
# in two versions: an exact one, and an approximation by tanh. SigLIP has the second.

# %% tags=["nbval-check-output"]
points = torch.tensor([-2.0, -1, 0, 1, 2])
exact, by_tanh = F.gelu(points), F.gelu(points, approximate="tanh")
for row in zip(points.tolist(), exact.tolist(), by_tanh.tolist(), strict=True):
    print("x {:4.0f}   exact {:7.4f}   tanh {:7.4f}".format(*row))

# %% [markdown]
# They differ in the fourth decimal. Does that matter? For the answers, hardly ever. But a copy of a model that is right
# to three decimals is a copy with a mistake in it, and you do not know how large the next one is. We will ask for five.


# %% tags=["package:nanovlm.models.vision_transformer.ViTMLP"]
class ViTMLP(nn.Module):
    """Each patch on its own: widen, bend, narrow. [B, N, dim] -> [B, N, dim]"""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_dim, config.inter_dim)
        self.fc2 = nn.Linear(config.inter_dim, config.hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


# %% [markdown]
# ## The block
#
# Attention and MLP make a **block**, and two more things hold it together.
#
# **The residual connection.** A sub-layer does not replace the vector. It *adds* something to it: `x + attention(x)`.
# So what a patch already knew is kept, and a gradient finds a straight way back through all blocks ([He et al.
# 2015](https://arxiv.org/abs/1512.03385)).
#
# **The layer norm.** Before a sub-layer reads a vector, its numbers are brought to mean 0 and spread 1, then weighed by
# a learned number each, and a learned bias is added ([Ba et al. 2016](https://arxiv.org/abs/1607.06450)). So it does not
# matter how large the vector has grown. By hand:

# %%
x = 5 * torch.randn(2, 3, 8) + 1
norm = nn.LayerNorm(8, eps=1e-6)
by_formula = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
torch.testing.assert_close(norm(x), by_formula * norm.weight + norm.bias)

# %% [markdown]
# Each patch has its own mean and spread; no patch and no picture influences another's. The small number `eps` keeps a
# vector without any spread from a division by zero. SigLIP has 1e-6, torch's default is 1e-5.
#
# Normalise, transform, add back. Twice:


# %% tags=["package:nanovlm.models.vision_transformer.ViTBlock"]
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


# %% [markdown]
# ### Before or after? What breaks
#
# The norm stands *before* each sub-layer, and nothing stands on the way from one addition to the next. This is called
# **pre-norm**; the vision transformer has it ([Dosovitskiy et al. 2020](https://arxiv.org/abs/2010.11929)), and so has
# SigLIP. The first transformer had it the other way round: add, then normalise the sum, **post-norm**.
#
# It looks like a matter of taste. Here are both, and a third that adds nothing back:


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
# The task needs attention and little else. Nine patches, each with one of four colours; patch 0 carries a mark. Every
# patch must say the colour of the marked one. We stack 24 blocks and train with a learning rate of 0.003 from the first
# step on. Four runs, some seconds each; the last is post-norm once more, with a third of that rate.


# %%
def train(block_class, learning_rate=3e-3, seed=0):
    """The loss at each step, from new weights."""
    torch.manual_seed(seed)
    sizes = ViTConfig(hidden_dim=32, inter_dim=64, num_blocks=24, num_heads=2, image_size=24, patch_size=8)
    net = nn.Sequential(*(block_class(sizes) for _ in range(sizes.num_blocks)), nn.LayerNorm(32), nn.Linear(32, 4))
    optimizer, losses = torch.optim.AdamW(net.parameters(), lr=learning_rate), []
    for _ in range(60):
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
losses = {"pre-norm": train(ViTBlock)}

# %%
losses["post-norm"] = train(PostNorm)

# %%
losses["no residual"] = train(NoResidual)

# %%
losses["post-norm, 0.001"] = train(PostNorm, learning_rate=1e-3)

# %%
from nanovlm.viz.vit import loss_curves

assert losses["pre-norm"][-1] < 0.5 < 1 < min(losses["post-norm"][-1], losses["no residual"][-1])
loss_curves(losses, chance=math.log(4))

# %% [markdown]
# Pre-norm learns. Without the residual nothing gets through 24 blocks. Post-norm gets nowhere at this rate, and learns
# well with a third of it: it needs a more careful start, since at the beginning of training the gradients of its last
# layers are large ([Xiong et al. 2020](https://arxiv.org/abs/2002.04745)). That is what a warm-up of the learning rate
# is for. One small task shows the effect, not its size elsewhere. Try another seed, and fewer blocks.

# %% [markdown]
# ## The encoder
#
# Patches in, blocks one after another, a last norm. Why that one? In a pre-norm stack nobody ever normalises what is
# handed on, and each block adds to it. So it is done once, at the end.
#
# One line below is about memory, not about what is computed. With `gradient_checkpointing` on, a block's inner values
# are thrown away in the forward pass and computed again when the gradient needs them. It is off unless somebody
# switches it on.

# %%
from torch.utils.checkpoint import checkpoint

from nanovlm.models.vision_transformer import PatchEmbedding  # chapter 01


# %% tags=["package:nanovlm.models.vision_transformer.ViT"]
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


# %% tags=["nbval-check-output"]
siglip = ViT(ViTConfig()).eval()
with torch.inference_mode():
    patches = siglip(torch.randn(2, 3, 224, 224))
expect_shape(patches, "batch 196 768")

# %% [markdown]
# 196 patches in, 196 vectors out. There is no **class token**: the vision transformer of Dosovitskiy et al. has an
# extra vector that collects what a classifier needs. SigLIP has none ([Zhai et al.
# 2023](https://arxiv.org/abs/2303.15343)). For comparing pictures with texts it was trained with a small head that pools
# the patches, and a VLM leaves that head away: it wants each patch, so that it can tell where things are.

# %% [markdown]
# ### Is this SigLIP?
#
# The next cells ask transformers' own code: random weights, carried over into our class, and the same picture. (They
# need transformers: `pip install transformers`. Skip them if you have none; nothing below depends on them.)
#
# transformers has separate layers for q, k and v. We stack them by rows, in this order.

# %%
from transformers import SiglipVisionConfig, SiglipVisionModel

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
    for parameter in theirs.parameters():  # a new model is full of zeros and ones, which would hide mistakes
        parameter.add_(0.1 * torch.randn(parameter.shape))


def carried_over(state, num_blocks):
    """transformers' tensors under our names."""
    state = {name.removeprefix("vision_model."): tensor for name, tensor in state.items()}
    ours = {"patch_embedding.position_embedding": state["embeddings.position_embedding.weight"][None]}
    names = {"embeddings.patch_embedding": "patch_embedding.conv", "post_layernorm": "layer_norm"}
    for i in range(num_blocks):
        for there, here in {
            "layer_norm1": "ln1",
            "layer_norm2": "ln2",
            "self_attn.out_proj": "attn.out_proj",
            "mlp.fc1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2",
        }.items():
            names[f"encoder.layers.{i}.{there}"] = f"blocks.{i}.{here}"
    for kind in ("weight", "bias"):
        ours |= {f"{here}.{kind}": state[f"{there}.{kind}"] for there, here in names.items()}
        for i in range(num_blocks):
            parts = [state[f"encoder.layers.{i}.self_attn.{which}_proj.{kind}"] for which in "qkv"]
            ours[f"blocks.{i}.attn.qkv_proj.{kind}"] = torch.cat(parts)
    return ours


# %% tags=["nbval-check-output"]
ours = ViT(ViTConfig(hidden_dim=96, inter_dim=200, num_blocks=4, num_heads=6, image_size=48, patch_size=8)).eval()
ours.load_state_dict(carried_over(theirs.state_dict(), num_blocks=4))  # strict: a missing name would raise

images = torch.randn(2, 3, 48, 48)
with torch.inference_mode():
    mine, reference = ours(images), theirs(pixel_values=images).last_hidden_state
torch.testing.assert_close(mine, reference, atol=1e-5, rtol=1e-5)
expect_shape(mine, "batch 36 96")

# %% [markdown]
# Equal to five decimals. Would it have noticed a small mistake? Put the exact GELU in:

# %%
for block in ours.blocks:
    block.mlp.forward = lambda x, mlp=block.mlp: mlp.fc2(F.gelu(mlp.fc1(x)))
with torch.inference_mode():
    error = (ours(images) - reference).abs().max().item()
assert error > 1e-4
print(f"largest difference {error:.5f}")

# %% [markdown]
# It would. A difference so small is easy to take for rounding. It is not: rounding stays below the fifth decimal here.
#
# One part of theirs found no place in ours, the pooling head. If you read elsewhere that this encoder has 93 million
# parameters, that head is counted in:

# %% tags=["nbval-check-output"]
with torch.device("meta"):  # shapes without numbers
    whole = SiglipVisionModel(SiglipVisionConfig())
pooling = sum(p.numel() for name, p in whole.named_parameters() if "head." in name)
rest = sum(p.numel() for p in siglip.parameters())
assert sum(p.numel() for p in whole.parameters()) == rest + pooling
print(f"{rest:,} + {pooling:,} = {rest + pooling:,}")

# %% [markdown]
# ## Where the weights are
#
# How many parameters has SigLIP-B/16? Count them by hand, part by part. A linear layer from a to b has a · b weights and
# b biases; a norm over d numbers has d of each.

# %% tags=["nbval-check-output"]
dim, inter, num_patches = 768, 3072, 196


def linear(inputs, outputs):
    return inputs * outputs + outputs


by_part = {
    "patch embedding": linear(3 * 16 * 16, dim),
    "positions": num_patches * dim,
    "attention": 12 * (linear(dim, 3 * dim) + linear(dim, dim)),
    "MLPs": 12 * (linear(dim, inter) + linear(inter, dim)),
    "norms": (12 * 2 + 1) * 2 * dim,
}
total = sum(by_part.values())
for part, count in by_part.items():
    print(f"{part:16} {count:11,}  {count / total:5.1%}")
print(f"{'together':16} {total:11,}")
assert total == sum(p.numel() for p in siglip.parameters())

# %% [markdown]
# The MLPs hold two thirds, attention one third, and all the rest is small change. Notice what does not matter: the
# number of heads, and (but for the positions) the size of the picture.
#
# ## See it: where a patch looks
#
# Time to look at an encoder that has learned something. The pocket model's has two blocks of four heads, 128 wide. Our
# class takes its weights:

# %%
from nanovlm import VisionLanguageModel

model = VisionLanguageModel.from_pretrained(asset_path("pocket")).eval()
encoder = ViT(model.config.vision).eval()
encoder.load_state_dict(model.vision_encoder.state_dict())

model.vision_encoder = encoder
model.generate(image=photo, prompt="Where is the red star?")

# %% [markdown]
# That was the chapter's code, seeing. Now we want the weights of its attention, which `attend` does not give away. So
# walk through the encoder once more, and keep the shares. (`split_heads` is yours, if you have solved exercise 2.2.)

# %%
split_heads = use("vit.split_heads")


# %%
def attention_maps(encoder, images):
    """Each patch's shares. [num_blocks, B, num_heads, N, N]"""
    x, maps = encoder.patch_embedding(images), []
    for block in encoder.blocks:
        qkv = block.attn.qkv_proj(block.ln1(x))
        q, k, _ = split_heads(qkv, block.attn.num_heads)
        maps.append((q @ k.mT / math.sqrt(q.shape[-1])).softmax(dim=-1))
        x = block(x)
    return torch.stack(maps)


# %% tags=["nbval-check-output"]
_, pixels = prepare_prompt(model, "Where is the red star?", photo)  # the picture as a tensor, [1, 3, 64, 64]
with torch.inference_mode():
    maps = attention_maps(encoder, pixels)
assert torch.allclose(maps.sum(dim=-1), torch.tensor(1.0))
expect_shape(maps, "2 1 4 64 64")

# %% [markdown]
# For each block and head a table of 64 x 64: too much to read. So choose a patch, and paint its row over the picture.
# Patches are counted in reading order, eight in a row; so are blocks and heads, from 0.
#
# With which head do we begin? This picture has a shape in each quarter. Take the four patches in the middle of a shape:
# how much of their attention goes to which quarter? An even share would be 25 %. Some heads keep little for their own
# quarter, and give most of it to one of the others. The one that does so most of all seems to look for something. We
# call it the **seeker**.


# %%
def by_quarter(maps):
    """The shares of the picture's quarters, in reading order. [..., N] -> [..., 4]"""
    return maps.unflatten(-1, (2, 4, 2, 4)).sum(dim=(-3, -1)).flatten(-2)


MIDDLES = [[9, 10, 17, 18], [13, 14, 21, 22], [41, 42, 49, 50], [45, 46, 53, 54]]  # four patches in each quarter
from_shapes = by_quarter(maps[1, 0])[:, MIDDLES].mean(dim=2)  # [num_heads, 4 that look, 4 that are looked at]
at_home = from_shapes.diagonal(dim1=1, dim2=2).mean(dim=1)
elsewhere = (from_shapes * (1 - torch.eye(4))).amax(dim=2).mean(dim=1)  # what the favourite among the others gets
seeker = elsewhere.argmax().item()
assert elsewhere[seeker] > 0.55 and at_home[seeker] < 0.2
print(f"{'block 1':8} {'own quarter':>12} {'favourite other':>16}")
for head, (own, other) in enumerate(zip(at_home.tolist(), elsewhere.tolist(), strict=True)):
    print(f"head {head:<3} {own:12.0%} {other:16.0%}" + ("   <- the seeker" if head == seeker else ""))

# %%
from nanovlm.viz.vit import patch_attention


def looks(block, head, patch):
    return patch_attention(photo, maps[:, 0], block, head, patch)


lever(
    looks,
    block=[0, 1],
    head=[0, 1, 2, 3],
    patch=Cells(photo, 8),
    start={"block": 1, "head": seeker, "patch": 17},
)

# %% [markdown]
# Patch 17 is a piece of the star. In block 0 its four heads look widely about. In block 1 the seeker knows what it
# wants: one of the other shapes. Click on the star's other patches, then on the other shapes. Which shape is looked at
# from where? At last click on the empty parts: from there the same head looks widely about.
#
# In numbers, over the four patches in the middle of the star, and over all that show nothing but background:


# %%
def is_background(image, patch):
    """Whether all pixels of the patch are nearly white."""
    row, column = divmod(patch, 8)
    crop = image.resize((64, 64)).crop((8 * column, 8 * row, 8 * column + 8, 8 * row + 8))
    return min(low for low, _ in crop.getextrema()) > 200  # of 255


PLACES = ("top left", "top right", "bottom left", "bottom right")
THERE = ("red star", "yellow triangle", "blue circle", "purple square")
star = MIDDLES[PLACES.index("top left")]
empty = [patch for patch in range(64) if is_background(photo, patch)]
from_star, from_empty = (by_quarter(maps[1, 0, seeker, rows]).mean(dim=0) for rows in (star, empty))
target = from_star.argmax().item()  # the quarter that the star looks at
assert THERE[target] != "red star" and from_star[target] > 0.5 > 0.4 > from_empty.max()
assert maps[0, 0, :, 17].max() < 0.1  # block 0 looks widely about
print(f"{'':31} {'star':>5} {'background':>11}")
for place, shape, of_star, of_empty in zip(PLACES, THERE, from_star.tolist(), from_empty.tolist(), strict=True):
    print(f"to {place:12} {shape:15} {of_star:5.0%} {of_empty:11.0%}")

# %% [markdown]
# From the star, what does this head look for?

# %%
quiz("ch02.head")

# %% [markdown]
# Pull the explanations apart. First the place: mirror the picture, so that left is right. The star is at the top right
# now. Does its attention stay where it went, or does it follow the shape?


# %%
def maps_of(*images):
    pixels = torch.cat([prepare_prompt(model, "?", each)[1] for each in images])
    with torch.inference_mode():
        return attention_maps(encoder, pixels)


mirrored = ImageOps.mirror(photo)
in_mirror = maps_of(mirrored)[:, 0]
from_star = by_quarter(in_mirror[1, seeker, MIDDLES[PLACES.index("top right")]]).mean(dim=0)
across = (1, 0, 3, 2)[target]  # where the shape has gone to
assert from_star.argmax() == across and from_star[across] > 0.45
print(f"from the star to the {THERE[target]}, now at the {PLACES[across]}: {from_star[across]:.0%}")
patch_attention(mirrored, in_mirror, block=1, head=seeker, patch=22)

# %% [markdown]
# It follows. So it is not the place. Shape or colour? For that we need pictures in which one of the two changes, and
# nothing else. The Thimble, the data set that comes with the course, draws any scene that we describe to it. So describe
# the same four shapes, and find what the star looks at. Then put others in its place: first the other shapes in the same
# colour, then the same shape in the other colours.

# %%
from nanovlm.data.thimble.drawing import PALETTE, Draws
from nanovlm.data.thimble.shapes import SHAPES, Scene, draw


def drawn(colour=None, shape=None):
    """The scene, with another colour or shape at the target."""
    cells = [tuple(each.split()) for each in THERE]
    cells[target] = (colour or cells[target][0], shape or cells[target][1])
    return draw(Scene(tuple(cells), "any"), Draws("chapter 02"), 64)  # the same key: the same places, the same light


def looked_at(image):
    """What the target gets from the star."""
    return by_quarter(maps_of(image)[1, 0, seeker, star]).mean(dim=0)[target].item()


target = by_quarter(maps_of(drawn())[1, 0, seeker, star]).mean(dim=0).argmax().item()
colour, shape = THERE[target].split()
with_shape = {each: looked_at(drawn(shape=each)) for each in SHAPES}
with_colour = {each: looked_at(drawn(colour=each)) for each in PALETTE}
other_shape = next(each for each in SHAPES if each not in (shape, "star"))
other_colour = min(with_colour, key=with_colour.get)
images = {
    f"{colour} {shape}: {with_shape[shape]:.0%}": drawn(),
    f"{colour} {other_shape}: {with_shape[other_shape]:.0%}": drawn(shape=other_shape),
    f"{other_colour} {shape}: {with_colour[other_colour]:.0%}": drawn(colour=other_colour),
}
images_row(list(images.values()), list(images))

# %% [markdown]
# Below each picture stands what its changed shape gets from the star. All of them:

# %%
print(f"{colour}, as a  " + "  ".join(f"{each} {share:.0%}" for each, share in with_shape.items()))
print(f"a {shape}, in  " + "  ".join(f"{each} {share:.0%}" for each, share in with_colour.items()))
by_shape, by_colour = (max(each.values()) - min(each.values()) for each in (with_shape, with_colour))
assert by_colour > 2 * by_shape and by_colour > 0.2
print(f"\nmost and least: {by_shape:.0%} apart between the shapes, {by_colour:.0%} between the colours")

# %% [markdown]
# Another shape in that place changes little. Another colour can change much. So it is the colour, as seen from this
# star. But one scene is one scene, whatever we change in it.
#
# So ask more widely, of many pictures. A patch in the middle of a shape looks at the three other quarters: how much
# does a quarter get, by what lies in it? If the head did not care, it would get 25 %.

# %%
import re

from nanovlm.data.thimble import thimble_sample
from nanovlm.viz.vit import share_bars

samples = [thimble_sample("shapes", "test", i, image_size=64) for i in range(budget().pick(ci=120, laptop=400))]
contents = [dict(re.findall(r"(\w+ \w+): (\w+ \w+|nothing)\.", sample["texts"][-1]["assistant"])) for sample in samples]
block_1 = maps_of(*(sample["images"][0] for sample in samples))[1]  # [pictures, num_heads, N, N]
shares = by_quarter(block_1)[:, :, MIDDLES].mean(dim=3)  # [pictures, num_heads, 4 that look, 4 that are looked at]


def mean_shares(head):
    """How much a quarter with this in it gets, on average over all shapes in other quarters that look."""
    found = {name: {} for name in ("shape", "colour", "place")}
    for content, table in zip(contents, shares[:, head].tolist(), strict=True):
        for i, asking in enumerate(PLACES):
            for j, place in enumerate(PLACES):
                if i == j or content[asking] == "nothing":
                    continue
                colour, _, shape = content[place].partition(" ")  # "red star", or "nothing"
                for kind, name in (("shape", shape or "nothing"), ("colour", colour), ("place", place)):
                    if name != "nothing" or kind == "shape":
                        found[kind].setdefault(name, []).append(table[i][j])
    return {
        kind: {name: sum(each) / len(each) for name, each in sorted(names.items())} for kind, names in found.items()
    }


def tells(head):
    means = mean_shares(head)
    return share_bars(means["shape"] | means["colour"] | means["place"], tick=0.25, tick_name="an even share")


lever(tells, head=[0, 1, 2, 3], start={"head": seeker})

# %% [markdown]
# First the shapes (with *nothing*, an empty quarter, among them), then the colours, then the places. Which of the three
# makes the largest difference? Try the other heads, too. Then all of them in one table: how far the most looked-at and
# the least looked-at lie apart, and which two colours are looked at most.

# %%
differences, favourites = [], []
print(f"{'block 1':8}{'shapes':>8}{'colours':>9}{'places':>8}   looked at most")
for head in range(4):
    means = mean_shares(head)
    nothing = means["shape"].pop("nothing")
    differences.append({kind: max(names.values()) - min(names.values()) for kind, names in means.items()})
    favourites.append(sorted(means["colour"], key=means["colour"].get, reverse=True)[:2])
    apart = "".join(f"{each:{width}.0%}" for each, width in zip(differences[head].values(), (8, 9, 8), strict=True))
    print(f"head {head:<3}{apart}   {' and '.join(favourites[head])}" + ("   <- the seeker" if head == seeker else ""))
colour_heads = [
    head
    for head, apart in enumerate(differences)
    if apart["colour"] > 0.12 and apart["colour"] > 1.5 * max(apart["shape"], apart["place"])
]
assert seeker in colour_heads and len(colour_heads) > 1
assert len({favourites[head][0] for head in colour_heads}) > 1  # not all of them have the same favourite
print(f"for heads {', '.join(map(str, colour_heads))} the colours make the largest difference")

# %% [markdown]
# For the seeker the colours make the largest difference, well above shapes and places. It is not the only one: other
# heads look for colours too, and not all for the same ones. That is what several heads are good for. But the names are
# ours: nobody told a head to look for anything, it is what training came upon. Another training may come upon something
# else.
#
# The first picture alone would have had us believe in one shape, or in one place. Keep that in mind for all the
# attention maps that you see in papers.
#
# ### It depends on who asks
#
# Go back to the star's picture, and click on the shape that the star looks at. It is looked at by others, but does it
# look at itself? It is the same head, and the same keys. But each patch asks with a query of its own. So here are the
# seeker's colours again, now a row for each colour that asks:

# %%
asked, same, different = {}, [], []
for content, table in zip(contents, shares[:, seeker].tolist(), strict=True):
    filled = {i: content[place].split()[0] for i, place in enumerate(PLACES) if content[place] != "nothing"}
    for i, mine in filled.items():
        others = {j: theirs for j, theirs in filled.items() if j != i}
        for j, theirs in others.items():
            asked.setdefault((mine, theirs), []).append(table[i][j])
            if mine in others.values() and len(set(filled.values())) > 1:  # it has both to choose from
                (same if theirs == mine else different).append(table[i][j])

mean_asked = {pair: sum(each) / len(each) for pair, each in asked.items()}
print("who asks  " + "".join(f"{theirs:>8}" for theirs in PALETTE))
for mine in PALETTE:
    print(f"{mine:10}" + "".join(f"{mean_asked.get((mine, theirs), math.nan):8.0%}" for theirs in PALETTE))
for mine in PALETTE:  # no colour looks most at its own
    assert max(share for (asks, _), share in mean_asked.items() if asks == mine) > 1.3 * mean_asked[mine, mine]
favourite = favourites[seeker][0]
from_others = [mean_asked[mine, favourite] for mine in PALETTE if mine != favourite]
assert sum(from_others) / len(from_others) > 1.5 * mean_asked[favourite, favourite]
same, different = sum(same) / len(same), sum(different) / len(different)
assert 1.5 * same < different
print(
    f"\nto {favourite}: {sum(from_others) / len(from_others):.0%} from the others, "
    f"{mean_asked[favourite, favourite]:.0%} from {favourite} itself"
)
print(f"with both in the picture: to a shape of its own colour {same:.0%}, to one of another colour {different:.0%}")

# %% [markdown]
# Follow the diagonal: no row has its largest number there. Even the favourite colour is looked at by the others, and
# much less by itself. Where a shape can choose, one of its own colour gets much less than one of another. A patch inside
# a shape looks for a shape of *another colour*, and each colour has its own idea which. That is what the query is for.
#
# ### A head that looks everywhere
#
# Go back to the bars, and try the other heads once more. One has bars that hardly differ. Let us find it by what the
# strongest patch gets when a shape looks, and see why. (A weight is `exp` of a score, over a sum. So the spread of the
# scores can be had from the weights' logarithms.)

# %%
filled = torch.tensor([[content[place] != "nothing" for place in PLACES] for content in contents])
strongest = block_1.amax(dim=-1)[:, :, MIDDLES].mean(dim=-1)  # [pictures, num_heads, 4 that look]
spread = block_1.log().std(dim=-1)[:, :, MIDDLES].mean(dim=-1)
strongest, spread = ([table[:, head][filled].mean().item() for head in range(4)] for table in (strongest, spread))
even = min(range(4), key=strongest.__getitem__)
for head in range(4):
    print(f"head {head}: strongest patch {strongest[head]:4.0%}, spread of the scores {spread[head]:.1f}")
others = [head for head in range(4) if head != even]
assert even not in colour_heads and min(spread) == spread[even]
assert strongest[even] < 0.7 * min(strongest[head] for head in others) and strongest[even] < 0.12
assert all(abs(share - 0.25) < 0.1 for names in mean_shares(even).values() for share in names.values())
print(f"head {even} is the most even; a wholly even share is {1 / 64:.1%}")
patch_attention(photo, maps[:, 0], block=1, head=even, patch=17)

# %% [markdown]
# Its scores differ least, so the softmax deals out its shares most evenly: you saw that when you divided by much. (The
# brightness in the picture is measured by the strongest patch. Where all are weak, small differences look large.) What
# such a head hands over is not far from the average of the whole picture, whoever asks. Does the model need that
# average, or is the head out of work? Its map looks the same in both cases.

# %% [markdown]
# ## What attention maps cannot tell
#
# So the model knows what is red *because* some heads look for colours, and the even head is of no use? That does not
# follow. A map shows where a head reads. It does not show what the model does with it. There is only one way to find
# out: take it away, and look at the answers.
#
# First we take away not one head but all attention of the encoder, in both blocks. The questions are those about shapes,
# and also those about signs, where the model must read characters.


# %%
class NoAttention(ViTBlock):
    def forward(self, x):
        return x + self.mlp(self.ln2(x))


# %%
quiz("ch02.ablate")

# %% [markdown]
# Into the same table come blocks without the MLP, and the two wrong orders from above with the weights as they are:


# %%
class NoMLP(ViTBlock):
    def forward(self, x):
        return x + self.attn(self.ln1(x))


# %%
quiz("ch02.norm")

# %%
from nanovlm.data.thimble import chance
from nanovlm.evaluation.scores import evaluate

num_images = budget().pick(ci=60, laptop=120)
shapes = samples[:num_images]
signs = [thimble_sample("glyphs", "test", i, image_size=64) for i in range(num_images)]


def with_blocks(block_class):
    """The encoder with other blocks and the same weights."""
    broken = ViT(model.config.vision).eval()
    broken.blocks = nn.ModuleList(block_class(model.config.vision) for _ in encoder.blocks)
    broken.load_state_dict(encoder.state_dict())  # strict, and it raises nothing: all names and shapes fit
    return broken


def ask(broken, samples):
    """What the model with this encoder answers."""
    model.vision_encoder = broken
    result = evaluate(model, samples, blind=False)
    model.vision_encoder = encoder
    return result


def scores_of(result):
    """The share of right answers: of all kinds of questions together, and of each kind."""
    by_kind = {kind.rpartition("/")[2]: score.correct / score.total for kind, score in result.scores.items()}
    return {"all": result.accuracy} | by_kind


def guessing(subset):
    return sum(chance(subset).values()) / len(chance(subset))


classes = {
    "as it was trained": ViTBlock,
    "no attention": NoAttention,
    "no MLP": NoMLP,
    "post-norm": PostNorm,
    "no residual": NoResidual,
}
about_shapes = {name: ask(with_blocks(block_class), shapes) for name, block_class in classes.items()}
on_shapes = {name: scores_of(result) for name, result in about_shapes.items()}

# %%
on_signs = {name: scores_of(ask(with_blocks(block_class), signs)) for name, block_class in classes.items()}

print(f"{'':18} {'shapes':>7} {'signs':>7}")
for name in classes:
    print(f"{name:18} {on_shapes[name]['all']:7.0%} {on_signs[name]['all']:7.0%}")
print(f"{'guessing':18} {guessing('shapes'):7.0%} {guessing('glyphs'):7.0%}")
for scores, subset in ((on_shapes, "shapes"), (on_signs, "glyphs")):
    assert scores["no attention"]["all"] > max(0.88, scores["no MLP"]["all"] + 0.08)
    assert max(scores["post-norm"]["all"], scores["no residual"]["all"]) < guessing(subset) + 0.1

# %% [markdown]
# Two lessons.
#
# **Order counts.** Post-norm has the same parameters under the same names, loads without a complaint, and falls to
# guessing. No shape would have told you.
#
# **The pretty maps explain very little here.** Without any attention the encoder serves these questions nearly as well.
# Even reading hardly suffers. What is lost is lost in one kind of question:

# %%
whole, without = on_shapes["as it was trained"], on_shapes["no attention"]
lost = {kind: whole[kind] - without[kind] for kind in whole if kind != "all"}
worst = max(lost, key=lost.get)
assert worst == "count" and lost["count"] > 0.1 and all(lost[kind] < 0.06 for kind in lost if kind != "count")
for kind in lost:
    print(f"{kind:8} {whole[kind]:5.0%} -> {without[kind]:5.0%}")

# %% [markdown]
# Counting. But counting what? Some questions ask for all shapes, some for one shape (*How many stars are there?*),
# some for one colour (*How many green shapes are there?*). Which of them do you expect to suffer, after what the
# heads looked for?


# %%
def counts_of(result):
    """The share of right answers to the counting questions, by what is counted."""
    right = {"all shapes": [], "a shape": [], "a colour": []}  # for each question, whether it was answered right
    for question, answer in result.answers:
        if question.kind == "count":
            word = question.text.split()[2]  # How many ... are there?
            counted = "all shapes" if word == "shapes" else "a colour" if word in PALETTE else "a shape"
            right[counted].append(answer == question.answer)
    return {counted: sum(each) / len(each) for counted, each in right.items()}


whole_counts, without_counts = (counts_of(about_shapes[name]) for name in ("as it was trained", "no attention"))
for counted, share in whole_counts.items():
    print(f"count {counted:10} {share:5.0%} -> {without_counts[counted]:5.0%}")
lost_counts = {counted: whole_counts[counted] - without_counts[counted] for counted in whole_counts}
assert lost_counts["a colour"] > 0.2 + max(lost_counts["all shapes"], lost_counts["a shape"])

# %% [markdown]
# Most of it is in the colours. That takes comparing the colours of shapes, and some heads do look from shape to
# shape, for another colour. Are they what counting needs? All of them, or only the seeker?
#
# Take heads away: set to zero what `out_proj` reads of them. A single head may make a small difference, and the
# Thimble asks one counting question for each picture. So we ask more: in each picture, how many there are of every
# colour that it holds. (In training the picture is built around the colour that is counted. Here mostly it is not, so
# they are a little harder for it.) What do you expect without the seeker, and what without all that look for colours?

# %%
from collections import Counter

from nanovlm.evaluation.scores import Question, answer_all

counting = []
for i, content in enumerate(contents[:num_images]):
    colours = Counter(each.split()[0] for each in content.values() if each != "nothing")
    for colour, number in colours.items():
        question = f"How many {colour} shapes are there?"
        counting.append(Question(i, samples[i]["images"], question, str(number), "count"))


def count_colours(broken):
    """The share of right answers to these questions."""
    model.vision_encoder = broken
    answers = answer_all(model, counting)
    model.vision_encoder = encoder
    return sum(answer == question.answer for question, answer in zip(counting, answers, strict=True)) / len(counting)


def without_heads(*heads):
    broken, head_dim = with_blocks(ViTBlock), model.config.vision.hidden_dim // model.config.vision.num_heads
    with torch.no_grad():
        for head in heads:
            broken.blocks[1].attn.out_proj.weight[:, head * head_dim : (head + 1) * head_dim] = 0
    return broken


encoders = {"all heads": encoder}
encoders |= {f"without head {head}": without_heads(head) for head in range(model.config.vision.num_heads)}
encoders |= {"without colour heads": without_heads(*colour_heads), "no attention": with_blocks(NoAttention)}
counts = {name: count_colours(broken) for name, broken in encoders.items()}
which = {name: scores_of(ask(broken, shapes))["colour"] for name, broken in encoders.items()}
print(f"{'':22} {'count a colour':>15} {'which colour':>13}   ({len(counting)} questions, {num_images} questions)")
for name in encoders:
    print(f"{name:22} {counts[name]:15.0%} {which[name]:13.0%}")
print(
    f"the colour heads are {', '.join(map(str, colour_heads))}; the seeker is head {seeker}, the even one head {even}"
)
single = {head: counts["all heads"] - counts[f"without head {head}"] for head in range(4)}
together = counts["all heads"] - counts["without colour heads"]
assert abs(single[even]) < 0.025 and min(single[head] for head in colour_heads) > 0
assert together > 0.25 and max(single.values()) < 0.65 * together
assert counts["without colour heads"] < counts["no attention"] + 0.15
assert min(which.values()) > 0.95

# %% [markdown]
# The even head can go, and nothing changes, or next to nothing. Without the seeker some counts of a colour go wrong.
# But the same is true of others, and no head alone is the one that counts: the rest make up for it. Take away all that
# look for colours, and nearly as much is lost as without any attention. They share the work. And nothing is lost where
# a colour is *asked for*, whichever head is gone.
#
# So the maps gave us one idea that led somewhere (*they look for other colours*: counts of colours hang on it), one
# that was half true (*the seeker is the one*), and one on which no answer hangs (*so that is how the model knows what is
# red*). Only taking away told them apart.
#
# Why does the rest not need the encoder's attention? The likely reason: the pocket model's pictures are simple, a few
# large plain shapes or a few large characters. The projector joins neighbouring patches (chapter 03), and the decoder's
# own attention reads all of the image tokens (chapter 04). Between them they can find out what the encoder did not. Do
# not conclude that encoders need no attention. This is a finding about one small model and these questions; with photos
# we have not measured it.
#
# What is known about maps in general:
#
# - Maps that look quite different can lead to the same answer, so a map is no proof of a reason ([Jain and Wallace
#   2019](https://arxiv.org/abs/1902.10186)). That depends on what one calls an explanation, and on the task ([Wiegreffe
#   and Pinter 2019](https://arxiv.org/abs/1908.04626)).
# - After the first block a patch's vector holds something of all the others. To look *at patch 10* is no longer to look
#   at what patch 10 shows ([Abnar and Zuidema 2020](https://arxiv.org/abs/2005.00928)).
# - A bright spot need not be something to see. Larger models use some patches of plain background as a place to store
#   things about the whole picture ([Darcet et al. 2023](https://arxiv.org/abs/2309.16588)).
#
# So: a map is a good way to get an idea, and a bad way to prove one.

# %% [markdown]
# ## Where this lives in the package
#
# The four classes are the package's, in `nanovlm/models/vision_transformer.py`; the builder of this notebook compares
# them with that file. `attend` is its plainest form. The package's calls PyTorch's fast version, and it also takes a
# mask, so that a word cannot look at what comes after it. A patch may look everywhere, so the encoder needs none. Masks
# are the decoder's business: chapter 04.
#
# In the whole model the encoder comes first, and hands over what it computed, one vector for each patch:

# %% tags=["nbval-check-output"]
from nanovlm.trace import trace

ids, pixels = prepare_prompt(model, "Where is the red star?", photo)
trace(model, torch.tensor([ids]), pixels).expect({"vision_encoder": "1 64 128", "pixel_shuffle": "1 16 512"})
print("64 patches in, 64 vectors out")

# %% [markdown]
# What you take along:
#
# - Attention is two products, a scale and a softmax. The softmax runs over the keys, the scale is √head_dim.
# - Heads are a cut and a transpose. A wrong cut has the right shape; shuffled patches find it out.
# - A pre-norm block adds to the vector and never rewrites it. Where the norm stands is part of the weights' meaning.
# - Parity with somebody else's code, to five decimals, is worth more than any number of right shapes.
# - Look at maps to find questions. Take parts away to find answers.
#
# Now close this page and write it yourself. Each class that passes its check becomes a part of your own model.

# %% [markdown] tags=["stamped"]
# ## Your turn
#
# [Open the exercises](../exercises/02_vision_transformer.ipynb) ([in Colab][exercises]): 7 of them, about 60 minutes.
#
# [exercises]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/exercises/02_vision_transformer.ipynb
#
# | | exercise | difficulty | minutes |
# |---|---|---|---|
# | 2.1 | Attention in three lines (`vit.attention`) | ●●○ | 10 |
# | 2.2 | One wide vector, many heads (`vit.split_heads`) | ●●○ | 10 |
# | 2.3 | Every patch looks at every patch (`vit.attention_module`) | ●●○ | 10 |
# | 2.4 | Each patch on its own (`vit.mlp`) | ●○○ | 6 |
# | 2.5 | Normalise, transform, add back (`vit.block`) | ●●○ | 8 |
# | 2.6 | The whole encoder (`vit.encoder`) | ●●○ | 8 |
# | 2.7 | Where the weights are (`vit.count_parameters`) | ●●○ | 8 |
#
# Next: [03 Pixel shuffle and the projector](03_pixel_shuffle_and_projector.ipynb)
