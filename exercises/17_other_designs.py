# %% [markdown]
# # 17 Exercises: other designs
#
# Seven of them, and a challenge without a solution: a convolution in two halves, words that ask a picture, a gate to
# mend, learned queries, experts that take turns, a test for dropped image tokens, and a comparison at equal cost.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [the chapter](../chapters/17_other_designs.ipynb) ·
# [the solutions](../solutions/17_other_designs.ipynb) ·
# [notation and terms](../chapters/notation.md)
#
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/exercises/17_other_designs.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/exercises/17_other_designs.ipynb

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
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanovlm.course import budget, check, use
from nanovlm.trace import trace

# %% [markdown] tags=["stamped"]
# ## Exercise 17.1 · A convolution in two cheap halves
# `designs.depthwise_separable` · difficulty ●○○ · about 10 minutes
#
# **Why it matters.** This pair of products is why a convolutional encoder runs on a telephone: it costs about a
# ninth of a full 3x3 kernel where there are many channels.

# %% [markdown] tags=["exercise"]
# A 3x3 convolution mixes neighbouring places and channels at once. Write it in two cheap halves:
#
# 1. **depthwise**: each channel is convolved with its own 3x3 kernel (as `F.conv2d` does it: not turned), with a border
#    of zeros, so that height and width stay;
# 2. **pointwise**: at each place, the matrix `pointwise` makes the output channels from these.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# One half lets neighbouring places meet and keeps channels apart; the other does the opposite.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# F.conv2d with as many groups as channels runs each channel with its own kernel; a padding of 1 keeps the size.
# Then every place is multiplied by the matrix `pointwise`, which is a convolution with a kernel of 1x1.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# channels = x.shape[1]
# x = F.conv2d(x, depthwise[:, None], padding=1, groups=…)
# return F.conv2d(x, pointwise[:, :, None, None])
# ```
#
# </details>


# %%
def depthwise_separable(x: Tensor, depthwise: Tensor, pointwise: Tensor) -> Tensor:
    """x [B, C, H, W], depthwise [C, 3, 3], pointwise [D, C] -> [B, D, H, W]"""
    raise NotImplementedError("designs.depthwise_separable")


# %%
check("designs.depthwise_separable", depthwise_separable)

# %%
depthwise_separable = use("designs.depthwise_separable", depthwise_separable)
edge = torch.zeros(1, 1, 5, 5)
edge[..., 3:] = 1.0  # dark on the left, bright on the right
finds_edges = torch.tensor([[[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]])
print(depthwise_separable(edge, finds_edges, torch.eye(1))[0, 0, 2].tolist())

# %% [markdown] tags=["stamped"]
# ## Exercise 17.2 · Words ask, image tokens answer
# `designs.cross_attention` · difficulty ●●○ · about 18 minutes
#
# **Why it matters.** Flamingo and Llama 3.2 Vision leave the picture out of the sequence and let words look at
# it from the side. The mask decides what happens in a batch in which pictures differ in size, or are missing.

# %% [markdown] tags=["exercise"]
# Cross-attention: the words ask and the image tokens answer. Queries are `words @ w_q`; keys and values are
# `image @ w_k` and `image @ w_v`. Cut each of them into `num_heads` heads (a head's numbers lie side by side), attend
# with the usual scale, and join the heads again. There is no output projection.
#
# `real` is True for image tokens that exist: pictures of a batch may have different numbers of tokens, and the rest is
# padding, which no word may look at. A row may have no picture at all; its result is zeros, in the backward pass, too.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# It is the attention of chapter 02 with two sources. Which one asks, and which one answers?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Queries from the words; keys and values from the image tokens. Split each into heads, scale by the root of
# head_dim, hide the tokens that are not real, softmax over the image tokens. A row without any real token has
# nothing to collect: its result is zeros, where a softmax over nothing would give NaN.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# q, k, v = (…).unflatten(-1, (num_heads, -1)).transpose(1, 2)      # for words @ w_q, and two more
# scores = q @ k.mT / q.shape[-1] ** 0.5
# scores = scores.masked_fill(…, -torch.inf)
# out = torch.nan_to_num(scores.softmax(dim=-1)) @ v
# return out.transpose(1, 2).flatten(2)
# ```
#
# </details>


# %%
def cross_attention(
    words: Tensor,
    image: Tensor,
    w_q: Tensor,
    w_k: Tensor,
    w_v: Tensor,
    real: Tensor,
    num_heads: int,
) -> Tensor:
    """words [B, T, dim], image [B, N, dim], w_* [dim, dim], real bool [B, N] -> [B, T, dim]"""
    raise NotImplementedError("designs.cross_attention")


# %%
check("designs.cross_attention", cross_attention)

# %% [markdown] tags=["stamped"]
# ## Exercise 17.3 · Mend it: a door that disturbs, and a door that never opens
# `designs.gate` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** New layers in a trained model have to leave it as it is at the first step, and yet be able
# to learn. Two zeros in a row do the first and prevent the second, without an error.

# %% [markdown] tags=["exercise"]
# **Mend it.** A layer that looks at pictures is put into a trained decoder. It has random weights, so somebody made
# sure that it changes nothing at first:
#
# ```python
# class Gated(nn.Module):
#     def __init__(self, layer):
#         super().__init__()
#         self.layer = layer
#         for parameter in layer.parameters():
#             nn.init.zeros_(parameter)
#         self.gate = nn.Parameter(torch.zeros(1))
#
#     def forward(self, x, image):
#         return x + torch.tanh(self.gate) * self.layer(x, image)
# ```
#
# The symptom: the first loss is that of the model without the layer, as it should be, and after ten thousand steps the
# model still does not look at pictures. Without the loop over the parameters and with `torch.ones(1)`, it learns, but
# the first loss is 6 and the decoder's old skills are damaged. Write it so that the output is `x` exactly at the first
# step, and that the layer can learn. Leave the layer's weights as they are.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# A product of two factors: the derivative with respect to one is the other. What if both are zero?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# One zero is enough. Let the gate start at 0 and leave the layer its weights: the output is x exactly, and the
# gate's gradient is not zero. tanh keeps what is added between minus once and once the layer's output.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# self.layer = layer
# self.gate = nn.Parameter(…)
# ...
# return x + torch.tanh(self.gate) * self.layer(x, image)
# ```
#
# </details>


# %%
class Gated(nn.Module):
    """forward(x [B, T, dim], image [B, N, dim]) -> [B, T, dim], with a parameter `gate`"""

    def __init__(self, layer: nn.Module) -> None:
        raise NotImplementedError("designs.gate")

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        raise NotImplementedError("designs.gate")


# %%
check("designs.gate", Gated)

# %% [markdown] tags=["stamped"]
# ## Exercise 17.4 · Learned queries instead of a grid
# `designs.resampler` · difficulty ●●○ · about 15 minutes
#
# **Why it matters.** With a resampler the number of image tokens is yours to choose, whatever the size of the
# picture. Flamingo and BLIP-2 have one; nanoVLM and SmolVLM decided against it.

# %% [markdown] tags=["exercise"]
# A resampler turns any number of patches into `num_queries` tokens. Its parameters are `queries` `[num_queries, dim]`,
# which no two of start equal, and two linear layers without bias, `k_proj` and `v_proj`, from `dim` to `dim`. Every
# query attends to the projected patches of a picture, with one head and the usual scale, and what it collects is added
# to the query.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# This is attention in which the queries do not come from the input: they are parameters, the same for each
# picture.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Keys and values are projections of the patches. Each query gives its scores over the patches, divided by the
# root of dim, and a softmax over the patches. What it collects is added to the query itself.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# scores = self.queries @ self.k_proj(features).mT / dim**0.5     # [P, num_queries, N]
# collected = scores.softmax(dim=…) @ self.v_proj(features)
# return self.queries + …
# ```
#
# </details>


# %%
class Resampler(nn.Module):
    """forward: [P, N, dim] -> [P, num_queries, dim]"""

    def __init__(self, dim: int, num_queries: int) -> None:
        raise NotImplementedError("designs.resampler")

    def forward(self, features: Tensor) -> Tensor:
        raise NotImplementedError("designs.resampler")


# %%
check("designs.resampler", Resampler)

# %% [markdown] tags=["stamped"]
# ## Exercise 17.5 · Write the test: which image tokens stay?
# `designs.drop_test` · difficulty ●●○ · about 15 minutes
#
# **Why it matters.** A model that drops the wrong image tokens still answers, only worse, and nobody knows why.
# Each of the wrong versions is a line that somebody would write.

# %% [markdown] tags=["exercise"]
# **Write the test.** `drop(scores, is_image, keep)` says which tokens of a batch stay: all words, and of each row's
# image tokens the `keep` with the highest scores. `scores` is `[B, S]`, `is_image` and the result are bool `[B, S]`.
#
# Write `drop_is_right(drop)`, which returns True for a right version and False for a wrong one. The check hands it two
# right versions and nine wrong ones.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# What has to stay in any case, how many image tokens of each row stay, and which ones? Three rows that differ
# tell more than one.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Random scores for three rows whose pictures stand in different places. Ask for 2 of 4 image tokens and check
# for each row: all words stay; exactly two image tokens stay; each of these has a higher score than each that
# is dropped.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# stays = drop(scores, is_image, 2)
# for row in range(len(scores)):
#     words_stay = stays[row, ~is_image[row]].all()
#     kept, dropped = scores[row, is_image[row] & stays[row]], scores[row, …]
#     if not words_stay or len(kept) != 2 or kept.min() < …:
#         return False
# return True
# ```
#
# </details>


# %%
def drop_is_right(drop: Callable[[Tensor, Tensor, int], Tensor]) -> bool:
    raise NotImplementedError("designs.drop_test")


# %%
check("designs.drop_test", drop_is_right)

# %% [markdown] tags=["stamped"]
# ## Exercise 17.6 · Measure it: how many blocks cost the same?
# `designs.equal_cost` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** A design that is better and twice as expensive has shown nothing. Equal parameters are not
# equal cost either: shared weights and long inputs come apart from the count.

# %% [markdown] tags=["exercise"]
# **Measure it.** `build(n)` makes a module with `n` blocks. Find the number of blocks, from 1 to 8, at which a forward
# pass of `x` costs the closest to `target` floating-point operations. Return it if it is within 5 % of the target, and
# None otherwise. `trace(module, x).flops` counts the operations of one pass.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Nobody has to know the formula of a module to know what it costs: run it once and count.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# trace(module, x).flops counts the floating-point operations of one forward pass. Do so for every number of
# blocks from 1 to 8, take the one that comes closest to the target, and return it if it is within 5 % of the
# target, otherwise None.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# costs = {n: trace(build(n), x).flops for n in range(1, 9)}
# best = min(costs, key=lambda n: …)
# return best if abs(costs[best] - target) <= … else None
# ```
#
# </details>


# %%
def blocks_at_equal_cost(build: Callable[[int], nn.Module], x: Tensor, target: int) -> int | None:
    raise NotImplementedError("designs.equal_cost")


# %%
check("designs.equal_cost", blocks_at_equal_cost)

# %% [markdown] tags=["stamped"]
# ## Exercise 17.7 · Each token to one expert
# `designs.route` · difficulty ●●● · about 20 minutes
#
# **Why it matters.** A mixture of experts has the weights of several MLPs at the cost of one. Two details make
# it train: the factor that carries the router's gradient, and the loss that keeps one expert from taking
# everything.

# %% [markdown] tags=["exercise"]
# Routing with one expert a token. `router` `[dim, E]` gives each token its chances, a softmax over the E experts. The
# likeliest expert gets the token and no other one does; its output is multiplied by the chance. An expert is a function
# from `[tokens, dim]` to `[tokens, dim]`; hand it the rows that are its own, and nothing else.
#
# Return the result and the balance loss: E times the sum over experts of (share of the tokens that it got) times (its
# mean chance over all tokens). A share is a count and has no gradient.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# An expert should be handed its own tokens and no others. What would a router learn from, if its choice were
# only an index?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Softmax of x @ router over the experts; the largest chance and its index for each token. For each expert, pick
# its rows, run it, multiply by their chance and put them back in place. The balance loss: experts times the sum
# over experts of (share of tokens, a count) times (mean chance).
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# chances = (x @ router).softmax(dim=-1)
# chance, chosen = chances.max(dim=-1)
# out = torch.zeros_like(x)
# for e, expert in enumerate(experts):
#     own = (chosen == e).nonzero()[:, 0]
#     out = out.index_add(0, own, …)
# shares = torch.bincount(chosen, minlength=len(experts)) / len(x)
# return out, len(experts) * (shares * …).sum()
# ```
#
# </details>


# %%
def route(
    x: Tensor, router: Tensor, experts: Sequence[Callable[[Tensor], Tensor]]
) -> tuple[Tensor, Tensor]:
    """x [tokens, dim], router [dim, E] -> ([tokens, dim], a scalar)"""
    raise NotImplementedError("designs.route")


# %%
check("designs.route", route)

# %% [markdown]
# ## A challenge without a solution: a better model for the same work
#
# Build a design of your own that costs at most what the standard one costs, 5 % aside, and see more of the picture
# after 150 steps. `train` teaches a model to caption the Thimble's shapes, as for the chapter's chart, and returns what
# it sees of 200 pictures. The baseline below is the standard design; every part may be changed, in the encoder, the
# projector and the decoder, as long as `VisionLanguageModel` takes it. Three seeds count, not the best of three.

# %%
from functools import partial

from nanovlm.bench.designs import Data, forward_flops, train
from nanovlm.bench.training_runs import small_vlm
from nanovlm.designs.registry import build
from nanovlm.weights.from_preset import from_scratch

print(f"the budget: {forward_flops('standard', small_vlm()) / 1e6:.1f} million operations")
torch.manual_seed(0)
model = from_scratch(small_vlm(), partial(build, "standard"))
data = Data(steps=budget().pick(ci=2, laptop=150), batch_size=32)
result = train(model, *data.of(model, seed=0))
print(f"right words after the last step: {result['curve'][-1][1]:.1%}")
