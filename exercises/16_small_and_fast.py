# %% [markdown]
# # 16 Exercises: small and fast
#
# Six exercises: a student's loss, a row in whole numbers, training that sees rounded weights, channels that are really
# gone, a test of an exported decoder, and the latency of the slow answers. An open challenge stands at the end.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [the chapter](../chapters/16_small_and_fast.ipynb) ·
# [the solutions](../solutions/16_small_and_fast.ipynb) ·
# [notation and terms](../chapters/notation.md)
#
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/exercises/16_small_and_fast.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/exercises/16_small_and_fast.ipynb

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

from nanovlm.course import check, use
from nanovlm.course.exercises.ch16.graphs import prefill, whole

# %% [markdown] tags=["stamped"]
# ## Exercise 16.1 · What the teacher would have said
# `compress.kd_loss` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** The answer says which token is right. The teacher's probabilities also say how wrong each
# other token is, which is the larger part of what a student can learn. Five details have to agree, and no error
# tells you that one does not.

# %% [markdown] tags=["exercise"]
# A student is to learn what a teacher says. Both have read the same batch and give logits `[batch, length,
# vocab_size]`; `labels` `[batch, length]` hold the right token, or -100 where nothing is asked. Return one number:
#
# - at each supervised position the divergence $\mathrm{KL}(p \,\|\, q) = \sum_v p_v (\log p_v - \log q_v)$ of the
#   teacher's distribution $p$ and the student's $q$, both with their logits divided by `temperature`;
# - of that the mean over the supervised positions of the whole batch;
# - times `temperature` squared, because softening shrinks the gradient by about as much.
#
# The teacher is not trained: no gradient may reach its logits.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Two distributions over the vocabulary at each supervised position, both softened by the temperature. Which of
# the two weights the logarithms?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Keep the supervised positions, labels != -100. Divide both logits by the temperature, log_softmax each, and
# detach the teacher's. The sum over the vocabulary of p (log p - log q), with p the teacher's, then the mean
# over positions. Last comes the factor that makes up for the temperature in the gradient.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# keep = labels != -100                                           # [batch, length]
# log_q = (student_logits[keep] / temperature).log_softmax(-1)    # [positions, vocab_size]
# log_p = the teacher's, likewise, detached
# divergence = (log_p.exp() * (…)).sum(-1)                        # [positions]
# return divergence.mean() * …
# ```
#
# </details>


# %%
def kd_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float
) -> Tensor:
    """logits [batch, length, vocab_size], labels [batch, length] -> a number"""
    raise NotImplementedError("compress.kd_loss")


# %%
check("compress.kd_loss", kd_loss)

# %% [markdown] tags=["stamped"]
# ## Exercise 16.2 · A row in whole numbers
# `compress.int8_rowwise` · difficulty ●○○ · about 10 minutes
#
# **Why it matters.** A quarter of the bytes, and no entry off by more than half a step. All of quantisation is
# this function and the question of who shares a scale.

# %% [markdown] tags=["exercise"]
# Turn a weight `[rows, dim]` into whole numbers of eight bits. Return two tensors, `numbers` (`torch.int8`, `[rows,
# dim]`) and `scales` (`[rows, 1]`), such that `numbers * scales` is as near to the weight as it can be:
#
# - the largest absolute value of each row becomes 127 or -127, and zero stays zero (this is called *symmetric*);
# - numbers are rounded to the nearest;
# - a row of zeros stays zeros, and its scale is any finite number above 0.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# The entry of the largest size in a row becomes 127 or -127. What is every entry divided by, then?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Scales [rows, 1]: the largest absolute value of each row (amax with keepdim=True) over 127, kept above zero.
# Divide, round, convert to torch.int8. Return both.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# scales = (weight.abs().amax(dim=1, keepdim=True) / …).clamp(min=1e-12)
# return (weight / scales).….to(torch.int8), scales
# ```
#
# </details>


# %%
def int8_rowwise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[rows, dim] -> numbers int8 [rows, dim], scales [rows, 1]"""
    raise NotImplementedError("compress.int8_rowwise")


# %%
check("compress.int8_rowwise", int8_rowwise)

# %% [markdown] tags=["stamped"]
# ## Exercise 16.3 · Mend it: training that cannot feel its weights
# `compress.fake_quant` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** Rounding is flat almost everywhere, so its true gradient is zero. One line gives the
# forward pass the rounded weight and the backward pass the weight itself, and a model that rounding has ruined
# can be trained again.

# %% [markdown] tags=["exercise"]
# A colleague wants to train a model whose forward pass already sees rounded weights of `bits` bits, with a scale for
# each row. The model has far too many different values for its bits, and the loss does not move:
#
# ```python
# def fake_quant(weight, bits):
#     largest = 2**bits - 1
#     scales = weight.abs().amax(dim=-1, keepdim=True) / largest
#     return (weight / scales).round() * scales
# ```
#
# Mend it. It should return the rounded weight `[rows, dim]` in floats, with whole numbers from $-(2^{b-1} - 1)$ to
# $2^{b-1} - 1$ behind them. To the gradient, the whole function should be the weight itself: whatever arrives at the
# output is handed to the weight unchanged. There are two faults.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Print the gradient of the colleague's version. Which entry of each row gets one, and by which way? Then count
# how many different values a row has with bits = 2.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Two faults. With a sign, b bits reach up to 2^(b - 1) - 1 on either side. And the rounded weight is the weight
# plus a difference: let the gradient see the first part alone, and detach the second.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# largest = …
# scales = weight.abs().amax(dim=-1, keepdim=True) / largest
# rounded = (weight / scales).round() * scales
# return weight + (…).detach()
# ```
#
# </details>


# %%
def fake_quant(weight: Tensor, bits: int) -> Tensor:
    """[rows, dim] -> what the whole numbers would give back, [rows, dim]"""
    raise NotImplementedError("compress.fake_quant")


# %%
check("compress.fake_quant", fake_quant)

# %% [markdown] tags=["stamped"]
# ## Exercise 16.4 · Channels that are really gone
# `compress.prune_channels` · difficulty ●●○ · about 15 minutes
#
# **Why it matters.** A masked weight still takes its byte and its product. A channel that is cut out of all
# three matrices of an MLP makes them smaller on every machine, with no special kernel.

# %% [markdown] tags=["exercise"]
# The gated MLP of the decoder computes `down(silu(gate(x)) * up(x))`. Its weights are `gate` and `up`, `[inter_dim,
# dim]`, and `down`, `[dim, inter_dim]`: channel `i` is row `i` of the first two and column `i` of the third.
#
# Keep the `keep` most important channels and cut out the others. The importance of a channel is the sum of the absolute
# values of all its weights, in all three matrices. Return `gate` and `up` `[keep, dim]` and `down` `[dim, keep]`. The
# channels may come in any order that is the same in all three.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# One channel is a row of gate, the same row of up and the same column of down. What would the MLP lose with it?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# A score for each channel: the sum of absolute values over its row of gate, its row of up and its column of
# down. topk gives the channels that stay. Index all three with the same indices.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# scores = gate.abs().sum(dim=1) + up.abs().sum(dim=1) + …      # [inter_dim]
# kept = scores.topk(keep).indices
# return gate[kept], up[kept], …
# ```
#
# </details>


# %%
def prune_channels(
    gate: Tensor, up: Tensor, down: Tensor, keep: int
) -> tuple[Tensor, Tensor, Tensor]:
    """gate, up [inter_dim, dim], down [dim, inter_dim] -> the same with `keep` channels"""
    raise NotImplementedError("compress.prune_channels")


# %%
check("compress.prune_channels", prune_channels)

# %% [markdown] tags=["stamped"]
# ## Exercise 16.5 · Write the test: does the graph take its memory from outside?
# `compress.graph_test` · difficulty ●●● · about 18 minutes
#
# **Why it matters.** An exporter follows one example. Whatever it takes for a constant is right for that
# example, and nothing else raises an error: the exported model answers fluently, from another conversation's
# cache.

# %% [markdown] tags=["exercise"]
# An exported decoder cannot keep anything between two calls, so the cache goes in and comes out:
# `logits, present = decode(token, past)`, with one token id, and a list of keys and values `[1, heads, seen, head_dim]`
# of two blocks. Write the test of such a graph. It asserts, and returns nothing. You have
#
# - `prefill(ids)`, which gives the logits behind a prompt and the right `past` for it;
# - `whole(ids)`, the logits `[length, 11]` of the same model without any cache.
#
# Token ids are 0 to 10, and sequences may have up to 32 of them. The check runs your test on a right graph and on seven
# wrong ones, each of which is a mistake that an export can make without an error. One of them gives the right logits at
# every call, and yet it spoils what it was handed.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# You have the model without a cache, whole(ids), and so the right logits for any sequence. On which sequences
# would a graph with a constant in it still agree?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Prompts of two lengths, several steps for each, every one compared with whole(ids)[-1]. The past of one step
# is the input of the next. Then start twice from one past, with two tokens: both have to be right.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# for prompt, answer in (([3, 1], [4, 1, 5]), (…, …)):
#     ids, past = list(prompt), prefill(prompt)[1]
#     for token in answer:
#         ids.append(token)
#         logits, past = decode(token, past)
#         torch.testing.assert_close(logits, …, atol=1e-4, rtol=1e-4)
# and once more from a single past, with two different tokens
# ```
#
# </details>


# %%
def check_graph(decode) -> None:
    """decode(token, past) -> logits [11], present"""
    raise NotImplementedError("compress.graph_test")


# %%
check("compress.graph_test", check_graph)

# %% [markdown] tags=["stamped"]
# ## Exercise 16.6 · Measure it: what do the slow answers take?
# `compress.latency_percentiles` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** A camera waits for the slowest answers, not for the mean one. A percentile that is off by
# one place, or invented between two values, hides exactly those.

# %% [markdown] tags=["exercise"]
# **Measure it.** `answer()` answers one question, and `clock()` gives the time in seconds. Return the latency at each
# of the `percents`, as a list:
#
# - the first call is not timed: it reserves memory, and may compile;
# - then `repeats` calls are timed, each on its own;
# - the $p$-th percentile is the smallest of the measured times that at least $p$ percent of them do not exceed. Of
#   twenty times, the 95th percentile is the nineteenth in rising order, and the 99th is the twentieth.
#
# The check brings a machine whose clock is made up.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Time each call on its own, and leave out the first. Which of the sorted times is it that at least 95 of 100 do
# not exceed?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Sort the times. Of n values the p-th percentile is the value with the rank p n / 100, rounded up, where the
# first rank is 1. Python counts from 0.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# answer()                                          # to warm up
# for _ in range(repeats):
#     start = clock(); answer(); times.append(…)
# ordered = sorted(times)
# return [ordered[math.ceil(…) - 1] for p in percents]
# ```
#
# </details>


# %%
def latency(answer, clock, repeats: int, percents: list[int]) -> list[float]:
    """One measured time for each percentage."""
    raise NotImplementedError("compress.latency_percentiles")


# %%
check("compress.latency_percentiles", latency)

# %% [markdown]
# Now measure the pocket model, as it is and in eight bits. Predict first: is weight-only int8 faster on your machine?

# %%
from time import perf_counter

from nanovlm import VisionLanguageModel
from nanovlm.assets import asset_path
from nanovlm.compress.int8 import quantise_linear
from nanovlm.course import budget

latency = use("compress.latency_percentiles", latency)
image = asset_path("images/shapes.png")
for name in ("float32", "int8"):
    model = VisionLanguageModel.from_pretrained(asset_path("pocket")).eval()
    if name == "int8":
        quantise_linear(model)
    found = latency(
        lambda: model.generate(image=image, prompt="Where is the red star?"),  # noqa: B023
        perf_counter,
        budget().pick(ci=10, laptop=40),
        [50, 95, 99],
    )
    print(f"{name:8}" + "".join(f"{1000 * value:8.1f} ms" for value in found))

# %% [markdown]
# ## A challenge without a solution
#
# Make the pocket model as small as you can while it still answers 95 % of these questions. `size_score` gives the two
# numbers that count: the bytes of a model, packed, and the share of right answers. Weights of fewer bits, fewer
# channels, fewer blocks, a student, and training after any of these are all allowed. The questions of the score are no
# training data.

# %%
from nanovlm.course.challenges import size_score

small = VisionLanguageModel.from_pretrained(asset_path("pocket")).eval()
quantise_linear(small, bits=4)
size, right = size_score(small, num_images=budget().pick(ci=6, laptop=40))
print(f"four bits a weight, as a baseline: {size / 1e6:.2f} MB, {right:.1%} right")
