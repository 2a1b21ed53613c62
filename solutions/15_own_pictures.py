# %% [markdown]
# # 15 Exercises: your own pictures
#
# Seven of them: an adapter by hand and its merge, a matrix in four bits, a test that tells whether freezing freezes,
# two mixtures of samples, and the largest batch that fits. A challenge without a solution stands at the end.

# %%
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanovlm.course import check, use

# %% [markdown] tags=["exercise"]
# Give the parts of a mixture. `sizes` are the numbers of samples of each task, and each task's part is in proportion to
# $n_i^{1/T}$ with the temperature $T$, so that the parts sum to 1. Return them as a tensor. Sizes go into the millions,
# and the temperature may be as low as 0.15.


# %%
def task_weights(sizes: list[int], temperature: float) -> Tensor:
    """Parts of the tasks in a mixture, [tasks], which sum to 1."""
    # SOLUTION
    logits = torch.tensor(sizes, dtype=torch.float32).log() / temperature
    return logits.softmax(dim=0)
    # END SOLUTION


# %%
check("adapt.task_weights", task_weights)

# %% [markdown] tags=["exercise"]
# Write LoRA's layer: a frozen `nn.Linear` with a trained difference of low rank beside it,
# $x W^\top + b + \frac{\alpha}{r}\, x A^\top B^\top$.
#
# The trained matrices are called `lora_a`, `[rank, in_features]`, and `lora_b`, `[out_features, rank]`. Nothing else is
# trained, and a new layer gives exactly what its base gives. A gradient must still reach the layers before it.


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


# %%
def merge_lora(weight: Tensor, lora_a: Tensor, lora_b: Tensor, alpha: float) -> Tensor:
    """The matrix of the merged layer, [out, in], in the dtype of weight, which stays as it is."""
    # SOLUTION
    difference = alpha / len(lora_a) * (lora_b.float() @ lora_a.float())
    return (weight.float() + difference).to(weight.dtype)
    # END SOLUTION


# %%
check("adapt.merge_lora", merge_lora)

# %% [markdown] tags=["exercise"]
# **Write the test.** `freeze(model, frozen)` is said to freeze the parts of a model whose names are in `frozen`, and to
# open all others, so that it can be called again for a second stage of training. Your test gets such a function, a
# small model, and `step(model)`, which makes one step of AdamW with weight decay on all parameters that ask for a
# gradient. The model has the parts `encoder`, `decoder` and `decoder_norm`.
#
# Let it pass with a right `freeze`, and raise an AssertionError with a wrong one. The check has eight wrong ones.


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

# %% [markdown] tags=["exercise"]
# Mix old samples into the batches of a new task. `new` and `old` are the numbers of the samples, to be taken in their
# order, from the beginning again where a list ends. After n batches, the whole part of `n * batch_size * share` old
# samples have come; in each batch the new ones stand first. Return the batches, `[num_batches, batch_size]`.


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

# %% [markdown] tags=["exercise"]
# Keep a matrix in few bits a number. In reading order, every `block` numbers share one scale, their largest absolute
# value (the last block may be shorter). Divided by it, each number is replaced by the nearest entry of the code book,
# which rises from -1 to 1. Return the numbers of the entries, uint8 `[numbers]`, and the scales, float32 `[blocks]`.
# A block of zeros has a scale of 0, and its codes are those of the entry nearest to 0.


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

# %% [markdown] tags=["exercise"]
# **Measure it.** `fits(n)` makes one step with a batch of n rows and says whether it fitted into memory. Find the
# largest n from 1 to `most` that fits, or 0 if not even one row does.
#
# A try costs a step, so that none may be made twice. On a machine without a GPU, a batch that is far too large ends in
# swapping, so never try more than double of what fits. `fits` also counts: double the logarithm of the answer, to the
# base 2, plus three is the most that it allows.


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
# the share of right digits on the test cards, minus all that the means of shapes, charts and signs have lost. What you
# may change: which twenty cards, how each is turned and moved, what is replayed, what is frozen or adapted, and the
# learning rates. What you may not look at is the test.
#
# `nanovlm/bench/own_pictures.py` has a `Run` for all of that; `little` in `assets/runs/15_little.json` is the baseline.
#
# ## A project: twenty photos of your own
#
# Take twenty photos of one thing in your home, in four places or states, write a question and its answer for each into
# a `metadata.jsonl`, and hold out five that were taken on another day. Report, in a card of half a page: what is in the
# photos and who took them; the score before and after, with its interval and the blind score; what the model forgot;
# and one photo on which it fails, with your guess why. A good report says what the number does *not* show.
