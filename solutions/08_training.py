# %% [markdown]
# # 08 Exercises: training
#
# Eight of them: the schedule, the optimizer, the step, a test of your own, a resume to mend, and a difference to
# measure. By the end every part of a training loop is in your hands, and the chapter trains with them.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [the chapter](../chapters/08_training.ipynb) ·
# [the exercises](../exercises/08_training.ipynb) ·
# [notation and terms](../chapters/notation.md)
#
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/solutions/08_training.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/solutions/08_training.ipynb

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
import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanovlm.course import check, use

# %% [markdown] tags=["stamped"]
# ## Exercise 8.1 · The learning rate of a step
# `training.get_lr` · difficulty ●○○ · about 10 minutes
#
# **Why it matters.** A schedule is wrong in silence: a run whose rate never comes down, or comes down too
# early, ends a few points lower than it could, and no message says why.

# %% [markdown] tags=["exercise"]
# Give the learning rate of step 0, 1, 2 … of a run of `max_steps` steps.
#
# - The **warm-up** takes `round(warmup_fraction * max_steps)` steps, and at least one. It is a straight line: with four
#   steps of warm-up, steps 0, 1, 2 and 3 get a quarter, a half, three quarters and all of `max_lr`.
# - After it, half a **cosine** leads down. The first step after the warm-up still gets `max_lr`, and at step
#   `max_steps` the rate is `min_lr_fraction * max_lr`.
# - From `max_steps` on the rate stays there.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Three stretches: up in a straight line, down along half a cosine, and flat after the end. Which step is the
# first of each?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Count the warm-up steps first: round(warmup_fraction * max_steps), at least 1. Step 0 gets 1 / warmup of the
# peak, the last step of the warm-up gets all of it. From there, progress runs from 0 to 1 at max_steps and
# stays at 1; the cosine of pi * progress runs from 1 to -1.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# warmup = max(1, round(…))
# if step < warmup: return max_lr * (step + 1) / warmup
# progress = min(1.0, steps since the warm-up / steps that follow the warm-up)
# share = a number that is 1 at progress 0 and 0 at progress 1, by the cosine
# return max_lr * (min_lr_fraction + the rest of the way * share)
# ```
#
# </details>


# %%
def get_lr(
    step: int,
    max_lr: float,
    max_steps: int,
    warmup_fraction: float = 0.03,
    min_lr_fraction: float = 0.1,
) -> float:
    """Learning rate of a step: a line up to max_lr, then a cosine down to a share of it."""
    # SOLUTION
    warmup = max(1, round(warmup_fraction * max_steps))
    if step < warmup:
        return max_lr * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, max_steps - warmup))
    share = 0.5 * (1 + math.cos(math.pi * progress))  # 1 at first, 0 in the end
    return max_lr * (min_lr_fraction + (1 - min_lr_fraction) * share)
    # END SOLUTION


# %%
check("training.get_lr", get_lr)

# %% [markdown] tags=["stamped"]
# ## Exercise 8.2 · One norm for all gradients
# `training.clip_by_norm` · difficulty ●○○ · about 10 minutes
#
# **Why it matters.** One strange sample can push every weight far from where it was. Clipping bounds what a
# step can do and keeps its direction, but only if all gradients are scaled by the same number.

# %% [markdown] tags=["exercise"]
# Think of all gradients as one long vector. If its norm, the root of the sum of all squares, is above `max_norm`, scale
# every gradient by the same factor, so that the norm becomes `max_norm`. If it is not, leave them as they are.
#
# Return the list of new gradients, each in the dtype that it came in, and the norm *before* clipping, as a tensor. Do
# not change the tensors that came in. Gradients of zeros must stay zeros, and the square of a float16 gradient of 300
# must not become infinite.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Think of all gradients as one long vector. What is its length, and by which one number must it shrink?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Square every number of every tensor, add all of it up, take one root. If that norm is above max_norm, multiply
# every tensor by max_norm / norm, else leave them as they are. Square in float32: float16 ends at 65,504.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# norm = root of the sum, over all gradients, of g.float().pow(2).sum()
# scale = the smaller one of 1 and max_norm / (norm + 1e-6)
# return [g times scale, in g's dtype, for each gradient], norm
# ```
#
# </details>


# %%
def clip_by_norm(gradients: list[Tensor], max_norm: float) -> tuple[list[Tensor], Tensor]:
    """Gradients, scaled down together where their norm is above max_norm; and that norm before."""
    # SOLUTION
    norm = torch.sqrt(sum(g.float().pow(2).sum() for g in gradients))
    scale = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    return [(g.float() * scale).to(g.dtype) for g in gradients], norm
    # END SOLUTION


# %%
check("training.clip_by_norm", clip_by_norm)

# %% [markdown] tags=["stamped"]
# ## Exercise 8.3 · AdamW by hand
# `training.adamw_step` · difficulty ●●○ · about 15 minutes
#
# **Why it matters.** Nearly every transformer was trained with these five lines. Who has written them knows
# what the optimizer's state is, why a checkpoint needs it, and what weight decay is multiplied by.

# %% [markdown] tags=["exercise"]
# One step of AdamW for one tensor of weights `p`. `m` and `v` are the two running means from the step before (zeros at
# first), `step` counts from 1, and `betas` are two numbers.
#
# $$m \leftarrow \beta_1 m + (1 - \beta_1)\, g \qquad v \leftarrow \beta_2 v + (1 - \beta_2)\, g^2$$
#
# $$p \leftarrow p - \text{lr} \cdot \text{decay} \cdot p - \text{lr} \cdot
# \frac{m / (1 - \beta_1^{step})}{\sqrt{v / (1 - \beta_2^{step})} + \epsilon}$$
#
# Return the new `p`, `m` and `v`, and leave those that came in as they are.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Two running means: of the gradients, and of their squares. Both start at 0, so both are too small at first.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Update m with beta1 and v with beta2. Divide each by 1 - beta ** step, which makes up for the start at 0. The
# update is the first divided by the root of the second plus eps. Decay is apart from all that: it shrinks the
# weight itself, by lr * weight_decay.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# m = beta1 * m + the rest of the weight * grad;  v likewise with beta2 and grad squared
# m_hat, v_hat = each divided by its correction
# p = p shrunk by lr * weight_decay of itself, less lr * (m_hat over root of v_hat, eps outside of the root)
# return p, m, v
# ```
#
# </details>


# %%
def adamw_step(
    p: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    step: int,
    lr: float,
    betas: tuple,
    eps: float,
    weight_decay: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of AdamW. Returns the new weight and both new moments. step counts from 1."""
    # SOLUTION
    beta1, beta2 = betas
    m = beta1 * m + (1 - beta1) * grad
    v = beta2 * v + (1 - beta2) * grad.pow(2)
    m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)  # both means started at 0
    p = p * (1 - lr * weight_decay) - lr * m_hat / (v_hat.sqrt() + eps)
    return p, m, v
    # END SOLUTION


# %%
check("training.adamw_step", adamw_step)

# %% [markdown] tags=["stamped"]
# ## Exercise 8.4 · Which weight learns how fast
# `training.param_groups` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** A projector that starts from nothing and backbones that know a language need different
# rates. A group that is wrong raises nothing: it trains what should be still, or leaves still what should
# learn.

# %% [markdown] tags=["exercise"]
# Sort the parameters of a model into groups for `torch.optim.AdamW`: a list of dicts, each with `"params"` (a list),
# `"lr"` and `"weight_decay"`.
#
# - Every parameter that requires a gradient is in exactly one group, and no other one is in any.
# - Parameters whose names begin with `projector.` learn at `lr_projector`, all others at `lr_backbones`.
# - Decayed are only matrices (two axes) that are part of a block (their name contains `blocks.`) or of the projector.
#   Norms, biases, embeddings and the patch convolution get a decay of 0.
#
# How many groups you make, and in which order, is up to you.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Walk through model.named_parameters(): the name says which part it is, p.ndim whether it is a matrix.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Leave out what does not require a gradient. The rate depends on whether the name starts with "projector."; the
# decay on whether it is a matrix (two axes) of a block or of the projector. named_parameters() names a tied
# weight once.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# groups = {}   # (lr, weight_decay) -> parameters
# for name, p in model.named_parameters():
#     skip it if it is frozen
#     lr = by its name;  decay = weight_decay for matrices of blocks and projector, else 0.0
#     groups.setdefault((lr, decay), []).append(p)
# return [{"params": …, "lr": …, "weight_decay": …} for each of them]
# ```
#
# </details>


# %%
def param_groups(
    model: nn.Module,
    lr_projector: float,
    lr_backbones: float,
    weight_decay: float,
) -> list[dict]:
    """Groups for torch.optim.AdamW: every trained parameter once."""
    # SOLUTION
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        is_projector = name.startswith("projector.")
        lr = lr_projector if is_projector else lr_backbones
        decayed = p.ndim == 2 and (is_projector or "blocks." in name)
        groups.setdefault((lr, weight_decay if decayed else 0.0), []).append(p)
    keys = ("lr", "weight_decay")
    return [
        {"params": params, **dict(zip(keys, key, strict=True))} for key, params in groups.items()
    ]
    # END SOLUTION


# %%
check("training.param_groups", param_groups)

# %% [markdown] tags=["stamped"]
# ## Exercise 8.5 · Write the test: can it learn one batch?
# `training.overfit_one_batch` · difficulty ●●○ · about 15 minutes
#
# **Why it matters.** It takes seconds and finds what hours of training would hide: pictures that do not arrive,
# weights that do not move, a loss that is not connected. But only if its threshold is one that a broken model
# cannot pass.

# %% [markdown] tags=["exercise"]
# **Write the test.** A model that cannot learn one batch by heart cannot learn anything, so this is the first test of
# any training run. Write it: train a *copy* of the model on the batch, about twenty steps of Adam at a rate of 0.1, and
# return `True` if it knows the batch now, else `False`.
#
# `model(batch["input_ids"], batch["images"], targets=batch["targets"]).loss` is the mean loss. The batch holds three
# rows with *one* question, three pictures and three different answers. The check hands your test five models, of which
# four are broken, and looks at which of them it lets through. (They share a second of work, so do not train longer
# than you need to.)

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# A blind model learns something here: that the answer is one of three. How low does its loss get?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Train a copy of the model on the same batch, twenty steps, with Adam at a high rate. Then ask for a loss that
# guessing among three answers, ln 3 = 1.10, cannot reach, and that a healthy model reaches easily. NaN must be
# False.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# model = copy.deepcopy(model)
# optimizer = torch.optim.Adam(those parameters that require a gradient, lr=0.1)
# 20 times: loss of the batch, zero_grad, backward, step
# return bool(loss < a threshold well below what the blind model reaches)
# ```
#
# </details>


# %%
def overfits_one_batch(model: nn.Module, batch: dict[str, Tensor]) -> bool:
    """Whether a copy of the model can learn this one batch by heart."""
    # SOLUTION
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(20):
        loss = model(batch["input_ids"], batch["images"], targets=batch["targets"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return bool(loss < 0.1)  # guessing among three answers costs ln 3 = 1.10; NaN is not below 0.1
    # END SOLUTION


# %%
check("training.overfit_one_batch", overfits_one_batch)

# %% [markdown] tags=["stamped"]
# ## Exercise 8.6 · One step over several batches
# `training.train_step` · difficulty ●●● · about 20 minutes
#
# **Why it matters.** It is the heart of every training run, and what it gets wrong raises nothing: accumulation
# as a mean of means was in transformers until October 2024 and is in nanoVLM today.

# %% [markdown] tags=["exercise"]
# One step of the optimizer over several batches. The result must be the same as with one large batch that holds all of
# their rows: the mean over **all supervised tokens** (targets that are not -100), however they are spread.
#
# `model(batch["input_ids"], batch["images"], targets=batch["targets"]).loss` is the mean over one batch's own
# supervised tokens. Clear old gradients, accumulate, clip the norm of all gradients to `max_norm`
# (`torch.nn.utils.clip_grad_norm_` does it in place), step once, and return the mean loss as a number.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Write down what you want first: one mean over all supervised tokens of all batches. Which share of it does one
# batch bring?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# The model's loss is a mean over its own batch, so give it the weight count / total before backward(): the
# gradients add up by themselves. Old gradients go before the loop; clipping and the optimizer's step come after
# it, once. Return the sum of the weighted losses as a number.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# counts = [number of targets that are not -100, for each batch]
# optimizer.zero_grad()
# for batch, count in zip(batches, counts):
#     loss = model(batch["input_ids"], batch["images"], targets=batch["targets"]).loss, weighted by …
#     loss.backward(), and add loss.item() to the mean
# clip the norm of model.parameters() to max_norm; optimizer.step(); return the mean
# ```
#
# </details>


# %%
def train_step(
    model: nn.Module,
    batches: list[dict[str, Tensor]],
    optimizer: torch.optim.Optimizer,
    max_norm: float,
) -> float:
    """One step of the optimizer over several batches; the mean loss of their supervised tokens."""
    # SOLUTION
    counts = [int((batch["targets"] != -100).sum()) for batch in batches]
    mean_loss = 0.0
    optimizer.zero_grad()
    for batch, count in zip(batches, counts, strict=True):
        loss = model(batch["input_ids"], batch["images"], targets=batch["targets"]).loss
        loss = loss * (count / sum(counts))
        loss.backward()
        mean_loss += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    return mean_loss
    # END SOLUTION


# %%
check("training.train_step", train_step)

# %% [markdown] tags=["stamped"]
# ## Exercise 8.7 · Mend it: a resume that loses something
# `training.resume` · difficulty ●●● · about 20 minutes
#
# **Why it matters.** Runs are stopped: Colab disconnects, machines are taken back. A resume that restores the
# weights alone goes on, prints no error and is another run.

# %% [markdown] tags=["exercise"]
# **Mend it.** This loop can be stopped and gone on with: it returns what the next call needs, which then lies in a file
# until somebody starts the run again. It runs, the loss goes on falling, and yet a run that was stopped ends with other
# weights than one that was not.
#
# ```python
# def train_until(stop, model, optimizer, batch_of, lr_of, saved=None):
#     if saved is not None:
#         model.load_state_dict(saved["model"])
#     for step in range(stop - (saved["step"] if saved else 0)):
#         for group in optimizer.param_groups:
#             group["lr"] = lr_of(step)
#         x, y = batch_of(step)
#         loss = F.mse_loss(model(x).squeeze(1), y)
#         optimizer.zero_grad()
#         loss.backward()
#         optimizer.step()
#     return {"step": stop, "model": model.state_dict()}
# ```
#
# Write it so that both are equal to the last bit. `batch_of(step)` and `lr_of(step)` take the step of the whole run.
# The optimizer is Adam, and the model has a dropout layer, which draws from torch's random numbers
# (`torch.get_rng_state()`, `torch.set_rng_state(…)`). What you return is yours to choose, as long as it is a dict.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Compare with a run that was not stopped: at step 3, what does it know besides its weights?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Four things go into the state and come out of it: the step, the weights, the optimizer's own state (Adam's two
# moments and its count), and the state of the random numbers, from which dropout draws. Learning rate and batch
# follow from the step, if you count on from where the state says.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# if saved: load_state_dict of model and of optimizer; torch.set_rng_state(…); first = saved step
# for step in range(first, stop): as before, with lr_of(step) and batch_of(step)
# return {"step": …, "model": …, "optimizer": …, "random": torch.get_rng_state()}
# ```
#
# </details>


# %%
def train_until(
    stop: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch_of,
    lr_of,
    saved: dict | None = None,
) -> dict:
    """Train up to step `stop`, from the start or from what an earlier call returned."""
    # SOLUTION
    first = 0
    if saved is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["random"])
        first = saved["step"]
    for step in range(first, stop):
        for group in optimizer.param_groups:
            group["lr"] = lr_of(step)
        x, y = batch_of(step)
        loss = F.mse_loss(model(x).squeeze(1), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    states = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
    }
    return {"step": stop, **states}
    # END SOLUTION


# %%
check("training.resume", train_until)

# %% [markdown] tags=["stamped"]
# ## Exercise 8.8 · Measure it: is the difference real?
# `training.paired_difference` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** Two runs of one recipe differ by their seeds alone. Whoever compares one run with one run
# publishes noise half of the time.

# %% [markdown] tags=["exercise"]
# **Measure it.** Two recipes were trained with the same seeds: `before[i]` and `after[i]` are scores of seed `i`. Take
# the differences seed by seed (after less before) and return three numbers: their mean, and the lower and the upper end
# of its 95 % interval.
#
# The interval reaches `t * spread / sqrt(n)` to both sides, where `spread` is the standard deviation of the differences
# (n - 1 below the sum) and `t` is Student's factor for n - 1 degrees of freedom, from the table below.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Seed by seed: what both runs of a seed share, a hard order of the data say, drops out of their difference.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Take the differences, their mean, and their standard deviation with n - 1 below the sum. The error of the mean
# is that divided by the root of n. With few seeds the factor is not 1.96: T_975[n - 1] has Student's.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# differences = [after - before, seed by seed]
# spread = root of (sum of squared deviations from their mean / (n - 1))
# half = T_975[…] * the error of the mean
# return mean, mean - half, mean + half
# ```
#
# </details>

# %%
T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def paired_difference(before: list[float], after: list[float]) -> tuple[float, float, float]:
    """Mean of the differences over seeds, and the ends of its 95 % interval."""
    # SOLUTION
    differences = [b - a for a, b in zip(before, after, strict=True)]
    n = len(differences)
    mean = sum(differences) / n
    spread = math.sqrt(sum((d - mean) ** 2 for d in differences) / (n - 1))
    half = T_975[n - 1] * spread / math.sqrt(n)
    return mean, mean - half, mean + half
    # END SOLUTION


# %%
check("training.paired_difference", paired_difference)

# %% [markdown]
# Now measure. `LOG.md` has three seeds of `make train` before and after its weight decay was raised from 0.01 to 0.1:
# the share of test questions that were answered rightly, and the same for pairs of colour and shape that no training
# picture shows. Before you run the cell: in which of the two rows would you believe the gain?

# %%
paired_difference = use("training.paired_difference", paired_difference)
before_and_after = {
    "test": ([0.976, 0.966, 0.976], [0.978, 0.981, 0.985]),
    "unseen pairs": ([0.940, 0.894, 0.889], [0.955, 0.909, 0.939]),
}
for name, (before, after) in before_and_after.items():
    difference, low, high = paired_difference(before, after)
    print(f"{name:13} {difference:+.1%}, with 95 % confidence between {low:+.1%} and {high:+.1%}")
