# %% [markdown]
# # 16 Exercises: small and fast
#
# Six exercises: a student's loss, a row in whole numbers, training that sees rounded weights, channels that are really
# gone, a test of an exported decoder, and the latency of the slow answers. An open challenge stands at the end.

# %%
import math

import torch
from torch import Tensor

from nanovlm.course import check, use
from nanovlm.course.exercises.ch16.graphs import prefill, whole

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


# %%
def kd_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float
) -> Tensor:
    """logits [batch, length, vocab_size], labels [batch, length] -> a number"""
    # SOLUTION
    keep = labels != -100
    log_q = (student_logits[keep] / temperature).log_softmax(dim=-1)  # [positions, vocab_size]
    log_p = (teacher_logits[keep].detach() / temperature).log_softmax(dim=-1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(dim=-1)  # [positions]
    return divergence.mean() * temperature**2
    # END SOLUTION


# %%
check("compress.kd_loss", kd_loss)

# %% [markdown] tags=["exercise"]
# Turn a weight `[rows, dim]` into whole numbers of eight bits. Return two tensors, `numbers` (`torch.int8`, `[rows,
# dim]`) and `scales` (`[rows, 1]`), such that `numbers * scales` is as near to the weight as it can be:
#
# - the largest absolute value of each row becomes 127 or -127, and zero stays zero (this is called *symmetric*);
# - numbers are rounded to the nearest;
# - a row of zeros stays zeros, and its scale is any finite number above 0.


# %%
def int8_rowwise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[rows, dim] -> numbers int8 [rows, dim], scales [rows, 1]"""
    # SOLUTION
    scales = (weight.abs().amax(dim=1, keepdim=True) / 127).clamp(min=1e-12)
    return (weight / scales).round().to(torch.int8), scales
    # END SOLUTION


# %%
check("compress.int8_rowwise", int8_rowwise)

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


# %%
def fake_quant(weight: Tensor, bits: int) -> Tensor:
    """[rows, dim] -> what the whole numbers would give back, [rows, dim]"""
    # SOLUTION
    largest = 2 ** (bits - 1) - 1
    scales = weight.abs().amax(dim=-1, keepdim=True) / largest
    rounded = (weight / scales).round() * scales
    return weight + (rounded - weight).detach()
    # END SOLUTION


# %%
check("compress.fake_quant", fake_quant)

# %% [markdown] tags=["exercise"]
# The gated MLP of the decoder computes `down(silu(gate(x)) * up(x))`. Its weights are `gate` and `up`, `[inter_dim,
# dim]`, and `down`, `[dim, inter_dim]`: channel `i` is row `i` of the first two and column `i` of the third.
#
# Keep the `keep` most important channels and cut out the others. The importance of a channel is the sum of the absolute
# values of all its weights, in all three matrices. Return `gate` and `up` `[keep, dim]` and `down` `[dim, keep]`. The
# channels may come in any order that is the same in all three.


# %%
def prune_channels(
    gate: Tensor, up: Tensor, down: Tensor, keep: int
) -> tuple[Tensor, Tensor, Tensor]:
    """gate, up [inter_dim, dim], down [dim, inter_dim] -> the same with `keep` channels"""
    # SOLUTION
    scores = gate.abs().sum(dim=1) + up.abs().sum(dim=1) + down.abs().sum(dim=0)  # [inter_dim]
    kept = scores.topk(keep).indices.sort().values
    return gate[kept], up[kept], down[:, kept]
    # END SOLUTION


# %%
check("compress.prune_channels", prune_channels)

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


# %%
def check_graph(decode) -> None:
    """decode(token, past) -> logits [11], present"""
    # SOLUTION
    for prompt, answer in (([3, 1], [4, 1, 5]), ([2, 7, 1, 8], [2, 8, 1])):
        ids, past = list(prompt), prefill(prompt)[1]
        for token in answer:
            ids.append(token)
            logits, past = decode(token, past)
            torch.testing.assert_close(logits, whole(ids)[-1], atol=1e-4, rtol=1e-4)
    _, past = prefill([3, 1, 4])
    for token in (5, 9):  # twice from one past
        logits, _ = decode(token, past)
        torch.testing.assert_close(logits, whole([3, 1, 4, token])[-1], atol=1e-4, rtol=1e-4)
    # END SOLUTION


# %%
check("compress.graph_test", check_graph)

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


# %%
def latency(answer, clock, repeats: int, percents: list[int]) -> list[float]:
    """One measured time for each percentage."""
    # SOLUTION
    answer()
    times = []
    for _ in range(repeats):
        start = clock()
        answer()
        times.append(clock() - start)
    ordered = sorted(times)
    return [ordered[math.ceil(p * repeats / 100) - 1] for p in percents]
    # END SOLUTION


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
