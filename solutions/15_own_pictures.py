# %% [markdown]
# # 15 Exercises: your own pictures
#
# Seven of them: an adapter by hand and its merge, a matrix in four bits, a test that tells whether freezing freezes,
# two mixtures of samples, and the largest batch that fits. A challenge without a solution stands at the end.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [the chapter](../chapters/15_own_pictures.ipynb) ·
# [the exercises](../exercises/15_own_pictures.ipynb) ·
# [notation and terms](../chapters/notation.md)
#
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/solutions/15_own_pictures.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/solutions/15_own_pictures.ipynb

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
from torch import Tensor, nn

from nanovlm.course import check, use

# %% [markdown] tags=["stamped"]
# ## Exercise 15.1 · How often each task comes up
# `adapt.task_weights` · difficulty ●○○ · about 10 minutes
#
# **Why it matters.** With a thousand cards beside a million pictures, a mixture by size asks about the cards
# once in a thousand samples. One number moves smoothly between that and every task alike.

# %% [markdown] tags=["exercise"]
# Give the parts of a mixture. `sizes` are the numbers of samples of each task, and each task's part is in proportion to
# $n_i^{1/T}$ with the temperature $T$, so that the parts sum to 1. Return them as a tensor. Sizes go into the millions,
# and the temperature may be as low as 0.15.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Which power of the sizes gives their own proportions, and which gives equal parts?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Each part is size to the power 1 / temperature, divided by the sum of all of them. Sizes of millions, to a
# high power, overflow: a softmax over logarithms says the same and does not.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# logits = torch.tensor(sizes, dtype=torch.float32).log() …
# return logits.softmax(dim=0)
# ```
#
# </details>


# %%
def task_weights(sizes: list[int], temperature: float) -> Tensor:
    """Parts of the tasks in a mixture, [tasks], which sum to 1."""
    # SOLUTION
    logits = torch.tensor(sizes, dtype=torch.float32).log() / temperature
    return logits.softmax(dim=0)
    # END SOLUTION


# %%
check("adapt.task_weights", task_weights)

# %% [markdown] tags=["stamped"]
# ## Exercise 15.2 · A trained difference beside a frozen matrix
# `adapt.lora_linear` · difficulty ●●○ · about 15 minutes
#
# **Why it matters.** A hundredth of the weights is enough to teach a model something new, and the other
# ninety-nine stay what they were, bit for bit. One line in it decides whether training can begin at all.

# %% [markdown] tags=["exercise"]
# Write LoRA's layer: a frozen `nn.Linear` with a trained difference of low rank beside it,
# $x W^\top + b + \frac{\alpha}{r}\, x A^\top B^\top$.
#
# The trained matrices are called `lora_a`, `[rank, in_features]`, and `lora_b`, `[out_features, rank]`. Nothing else is
# trained, and a new layer gives exactly what its base gives. A gradient must still reach the layers before it.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Which of A and B may be zero at the start, so that the output is the base's and a gradient still arrives?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Keep the base and set requires_grad of its parameters to False. lora_a [rank, in] is random and small, lora_b
# [out, rank] zero, both nn.Parameter. The forward pass adds alpha / rank times what x becomes behind A and B.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# self.base = base.requires_grad_(False)
# self.lora_a = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
# self.lora_b = nn.Parameter(…)
# …
# return self.base(x) + self.scale * …
# ```
#
# </details>


# %%
class LoRALinear(nn.Module):
    """A frozen linear layer and a trained difference of low rank: [..., in] -> [..., out]"""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        # SOLUTION
        self.base = base.requires_grad_(False)
        self.scale = alpha / rank
        self.lora_a = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))
        # END SOLUTION

    def forward(self, x: Tensor) -> Tensor:
        # SOLUTION
        return self.base(x) + self.scale * (x @ self.lora_a.T @ self.lora_b.T)
        # END SOLUTION


# %%
check("adapt.lora_linear", LoRALinear)

# %% [markdown] tags=["stamped"]
# ## Exercise 15.3 · Mend it: a merge that fits square matrices only
# `adapt.merge_lora` · difficulty ●●○ · about 10 minutes
#
# **Why it matters.** A merged adapter costs nothing when the model answers. A wrong merge raises no error on
# square matrices, which most of a decoder's are, and the model answers in whole, wrong sentences.

# %% [markdown] tags=["exercise"]
# **Mend it.** This merge puts an adapter back into its matrix:
#
# ```python
# def merge_lora(weight, lora_a, lora_b, alpha):
#     weight += alpha / len(lora_b) * (lora_a.T @ lora_b.T)
#     return weight
# ```
#
# The symptom: it raises an error for a matrix of 64 rows and 128 columns. For a square one it raises none, and the
# merged model answers something else than the unmerged one did. Besides, a second adapter cannot be tried on the same
# base afterwards, because the base has changed.
#
# `lora_a` is `[rank, in]`, `lora_b` is `[out, rank]`, and the layer computes $x W^\top + \frac{\alpha}{r}\, x A^\top
# B^\top$. The weight may be in bfloat16 beside adapters in float32: compute in float32, and round once at the end.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Write down the shapes of weight, lora_a and lora_b. Which product of the two has the shape of weight?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# A linear layer computes x W^T, the adapter x A^T B^T = x (B A)^T. So what is added to W is B A, times alpha /
# rank, and the rank is the number of A's rows. Return a new tensor: whoever keeps several adapters needs the
# base again.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# rank = len(…)
# difference = alpha / rank * (….float() @ ….float())
# return (weight.float() + difference).to(…)
# ```
#
# </details>


# %%
def merge_lora(weight: Tensor, lora_a: Tensor, lora_b: Tensor, alpha: float) -> Tensor:
    """The matrix of the merged layer, [out, in], in the dtype of weight, which stays as it is."""
    # SOLUTION
    difference = alpha / len(lora_a) * (lora_b.float() @ lora_a.float())
    return (weight.float() + difference).to(weight.dtype)
    # END SOLUTION


# %%
check("adapt.merge_lora", merge_lora)

# %% [markdown] tags=["stamped"]
# ## Exercise 15.4 · Write the test: did only these parts move?
# `adapt.freeze_parts` · difficulty ●●○ · about 15 minutes
#
# **Why it matters.** A part that was to stay and moves, or was to learn and stays, costs a run and raises no
# error. The only proof is to compare the weights themselves, before and after a step.

# %% [markdown] tags=["exercise"]
# **Write the test.** `freeze(model, frozen)` is said to freeze the parts of a model whose names are in `frozen`, and to
# open all others, so that it can be called again for a second stage of training. Your test gets such a function, a
# small model, and `step(model)`, which makes one step of AdamW with weight decay on all parameters that ask for a
# gradient. The model has the parts `encoder`, `decoder` and `decoder_norm`.
#
# Let it pass with a right `freeze`, and raise an AssertionError with a wrong one. The check has eight wrong ones.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# What can you see of a weight before and after a step? And what should be true of the weights that are *not*
# frozen?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Keep a clone of every parameter, freeze, make a step, and compare each with its clone: a frozen part is equal
# to the last bit, every other parameter is not. Then do the same again on the same model with other parts, two
# of them, as in a second stage of training.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# for frozen in (["decoder"], ["encoder", "decoder_norm"]):
#     before = {name: … for name, p in model.named_parameters()}
#     freeze(model, frozen)
#     step(model)
#     for name, p in model.named_parameters():
#         stayed = torch.equal(p, before[name])
#         assert stayed == (name.partition(".")[0] …), name
# ```
#
# </details>


# %%
def test_freeze(freeze, model: nn.Module, step) -> None:
    """AssertionError where freeze(model, names) freezes something else than it should."""
    # SOLUTION
    for frozen in (["decoder"], ["encoder", "decoder_norm"]):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        freeze(model, frozen)
        step(model)
        for name, p in model.named_parameters():
            stayed = torch.equal(p, before[name])
            assert stayed == (name.partition(".")[0] in frozen), name
    # END SOLUTION


# %%
check("adapt.freeze_parts", test_freeze)

# %% [markdown] tags=["stamped"]
# ## Exercise 15.5 · Old samples among the new
# `adapt.replay_mix` · difficulty ●●○ · about 15 minutes
#
# **Why it matters.** A few old samples in each batch keep old skills alive. A share that is rounded batch by
# batch can become none at all, and the run looks exactly like one that replays.

# %% [markdown] tags=["exercise"]
# Mix old samples into the batches of a new task. `new` and `old` are the indices of the samples, to be taken in their
# order, from the beginning again where a list ends. After the first n batches, `n * batch_size * share` old samples
# have come, rounded down; in each batch the new ones stand first. Return the batches, `[num_batches, batch_size]`.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# A quarter of a batch of two is half a sample. Where does the other half go?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Count over the whole run: after n batches n * batch_size * share old samples, rounded down, must have come.
# This batch gets that number minus what came before. Two places, one in each list, go on from batch to batch
# and begin again at the end.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# for n in range(num_batches):
#     of_old = math.floor(…) - math.floor(n * batch_size * share)
#     row = the next batch_size - of_old of new, then the next of_old of old
# # the next of a list that begins again: new[(place + i) % len(new)]
# ```
#
# </details>


# %%
def replay_mix(new: Tensor, old: Tensor, share: float, batch_size: int, num_batches: int) -> Tensor:
    """Which samples make each batch, [num_batches, batch_size]."""
    # SOLUTION
    rows = []
    for n in range(num_batches):
        before, after = (math.floor(k * batch_size * share) for k in (n, n + 1))
        fresh = torch.arange(n * batch_size - before, (n + 1) * batch_size - after)
        known = torch.arange(before, after)
        rows.append(torch.cat([new[fresh % len(new)], old[known % len(old)]]))
    return torch.stack(rows)
    # END SOLUTION


# %%
check("adapt.replay_mix", replay_mix)

# %% [markdown] tags=["stamped"]
# ## Exercise 15.6 · Four bits a number, block by block
# `adapt.quantise_blocks` · difficulty ●●● · about 20 minutes
#
# **Why it matters.** A base that is frozen need not be exact: in four bits a number it takes an eighth of
# float32's memory, so that a model fits where its float32 weights would not. One scale for all would let a
# single outlier ruin the rest.

# %% [markdown] tags=["exercise"]
# Keep a matrix in few bits a number. In reading order, every `block` numbers share one scale, their largest absolute
# value (the last block may be shorter). Divided by it, each number is replaced by the nearest entry of the code book,
# which rises from -1 to 1. Return the codes, which are the indices of these entries, uint8 `[numbers]`, and the
# scales, float32 `[blocks]`. A block of zeros has a scale of 0, and its codes are those of the entry nearest to 0.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# The code book reaches from -1 to 1. By what must a block be divided, so that it does, too?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Flatten, fill the last block up with zeros, view as [blocks, block]. The scale of a row is its largest
# absolute value. Divide by it (not where it is zero), find for each number the nearest entry of the code book,
# and cut the filling off again.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# flat = weight.flatten()
# rows = F.pad(flat, (0, -len(flat) % block)).view(-1, block)
# scales = …                                        # [blocks]
# scaled = rows / scales.clamp(min=1e-30)[:, None]
# distance = (scaled[:, :, None] - code_book).abs()   # [blocks, block, entries]
# codes = …
# return codes.flatten()[: len(flat)].to(torch.uint8), scales
# ```
#
# </details>


# %%
def quantise_blocks(weight: Tensor, code_book: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """codes uint8 [numbers], scales [blocks]"""
    # SOLUTION
    flat = weight.flatten()
    rows = F.pad(flat, (0, -len(flat) % block)).view(-1, block)
    scales = rows.abs().amax(dim=1)
    scaled = rows / scales.clamp(min=1e-30)[:, None]
    codes = (scaled[:, :, None] - code_book).abs().argmin(dim=-1)
    return codes.flatten()[: len(flat)].to(torch.uint8), scales
    # END SOLUTION


# %%
check("adapt.quantise_blocks", quantise_blocks)

# %% [markdown] tags=["stamped"]
# ## Exercise 15.7 · Measure it: the largest batch that fits
# `adapt.largest_batch` · difficulty ●●● · about 15 minutes
#
# **Why it matters.** Formulas for memory leave out what the allocator, the libraries and the neighbours take. A
# dozen tries tell the truth, if each costs one step and none is much too large.

# %% [markdown] tags=["exercise"]
# **Measure it.** `fits(n)` makes one step with a batch of n rows and says whether it fitted into memory. Find the
# largest n from 1 to `most` that fits, or 0 if not even one row does.
#
# A try costs a step, so none may be made twice. On a machine without a GPU, a batch that is far too large ends in
# swapping, so try 1 first, and never more than double of what has fitted. The check counts your calls of `fits`, and
# allows $2 \log_2 n + 3$ of them for the answer n.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Between a batch that fits and one that does not lies the answer. How do you find the first two quickly,
# without ever trying one that is much too large?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Double from 1 until one does not fit, or would be beyond the most; most + 1 counts as not fitting, and needs
# no try. Then halve the distance between the largest that fits and the smallest that does not, until they are
# neighbours. Never ask twice.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# low, high = 0, 1                      # low fits; high is the next to try
# while high <= most and fits(high):
#     low, high = high, …
# high = min(high, most + 1)            # does not fit, or is out of reach
# while …:
#     middle = (low + high) // 2
#     if fits(middle): low = middle
#     else: high = middle
# return low
# ```
#
# </details>


# %%
def largest_batch(fits, most: int) -> int:
    """The largest number of rows, up to most, for which fits(rows)."""
    # SOLUTION
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low
    # END SOLUTION


# %%
check("adapt.largest_batch", largest_batch)

# %%
largest_batch = use("adapt.largest_batch", largest_batch)  # yours, or the reference until it passes
assert largest_batch(lambda rows: rows * 3 <= 1000, 4096) == 333

# %% [markdown]
# ## A challenge without a solution: twenty cards
#
# **Challenge.** Teach the pocket model handwriting with twenty cards, in at most 100 steps of 16 samples. Your score is
# the share of right digits on the test cards, minus what the shares of shapes, charts and signs have lost, added up.
# What you may change: which twenty cards, how each is turned and moved, what is replayed, what is frozen or adapted,
# and the learning rates. What you may not look at is the test.
#
# `nanovlm/bench/own_pictures.py` has a `Run` for all of that; the run `20, as they are` in
# `assets/runs/15_little.json` is the baseline for the digits (it did not measure the old skills, which you have to).
#
# ## A project: twenty photos of your own
#
# Take twenty photos of one thing in your home, in four places or states, write a question and its answer for each into
# a `metadata.jsonl`, and hold out five that were taken on another day. Report, in a card of half a page: what is in the
# photos and who took them; the score before and after, with its interval and the blind score; what the model forgot;
# and one photo on which it fails, with your guess why. A good report says what the number does *not* show.
