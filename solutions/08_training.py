# %% [markdown]
# # 08 Exercises: training
#
# Eight of them: the schedule, the optimizer, the step, a test of your own, a resume to mend, and a difference to
# measure. By the end every part of a training loop is in your hands, and the chapter trains with them.

# %%
import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanovlm.course import check, use

# %% [markdown] tags=["exercise"]
# Give the learning rate of step 0, 1, 2 … of a run of `max_steps` steps.
#
# - The **warm-up** takes `round(warmup_fraction * max_steps)` steps, and at least one. It is a straight line: with four
#   steps of warm-up, steps 0, 1, 2 and 3 get a quarter, a half, three quarters and all of `max_lr`.
# - After it, half a **cosine** leads down. The first step after the warm-up still gets `max_lr`, and at step
#   `max_steps` the rate is `min_lr_fraction * max_lr`.
# - From `max_steps` on the rate stays there.


# %%
def get_lr(
    step: int, max_lr: float, max_steps: int, warmup_fraction: float = 0.03, min_lr_fraction: float = 0.1
) -> float:
    """Learning rate of a step: a straight line up to max_lr, then a cosine down to a share of it."""
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

# %% [markdown] tags=["exercise"]
# Think of all gradients as one long vector. If its norm, the root of the sum of all squares, is above `max_norm`, scale
# every gradient by the same factor, so that the norm becomes `max_norm`. If it is not, leave them as they are.
#
# Return the list of new gradients, each in the dtype that it came in, and the norm *before* clipping. Do not change the
# tensors that came in. Gradients of zeros must stay zeros, and a float16 gradient of 300 must not become infinite.


# %%
def clip_by_norm(gradients: list[Tensor], max_norm: float) -> tuple[list[Tensor], Tensor]:
    """Gradients, scaled down together where their common norm is above max_norm; and that norm before."""
    # SOLUTION
    norm = torch.sqrt(sum(g.float().pow(2).sum() for g in gradients))
    scale = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    return [(g.float() * scale).to(g.dtype) for g in gradients], norm
    # END SOLUTION


# %%
check("training.clip_by_norm", clip_by_norm)

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


# %%
def adamw_step(
    p: Tensor, grad: Tensor, m: Tensor, v: Tensor, step: int, lr: float, betas: tuple, eps: float, weight_decay: float
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


# %%
def param_groups(model: nn.Module, lr_projector: float, lr_backbones: float, weight_decay: float) -> list[dict]:
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
    return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]
    # END SOLUTION


# %%
check("training.param_groups", param_groups)

# %% [markdown] tags=["exercise"]
# **Write the test.** A model that cannot learn one batch by heart cannot learn anything, so this is the first test of
# any training run. Write it: train a *copy* of the model on the batch, about twenty steps of Adam at a rate of 0.1, and
# return `True` if it knows the batch now, else `False`.
#
# `model(batch["input_ids"], batch["images"], targets=batch["targets"]).loss` is the mean loss. The batch holds three
# rows with *one* question, three pictures and three different answers. The check hands your test five models, of which
# four are broken, and looks at which of them it lets through. (They share a second of work, so do not train longer
# than you need to.)


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

# %% [markdown] tags=["exercise"]
# One step of the optimizer over several batches. The result must be the same as with one large batch that holds all of
# their rows: the mean over **all supervised tokens** (targets that are not -100), however they are spread.
#
# `model(batch["input_ids"], batch["images"], targets=batch["targets"]).loss` is the mean over one batch's own
# supervised tokens. Clear old gradients, accumulate, clip the norm of all gradients to `max_norm`
# (`torch.nn.utils.clip_grad_norm_` does it in place), step once, and return the mean loss as a number.


# %%
def train_step(
    model: nn.Module, batches: list[dict[str, Tensor]], optimizer: torch.optim.Optimizer, max_norm: float
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


# %%
def train_until(
    stop: int, model: nn.Module, optimizer: torch.optim.Optimizer, batch_of, lr_of, saved: dict | None = None
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
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}
    return {"step": stop, **states}
    # END SOLUTION


# %%
check("training.resume", train_until)

# %% [markdown] tags=["exercise"]
# **Measure it.** Two recipes were trained with the same seeds: `before[i]` and `after[i]` are scores of seed `i`. Take
# the differences seed by seed (after less before) and return three numbers: their mean, and the lower and the upper end
# of its 95 % interval.
#
# The interval reaches `t * spread / sqrt(n)` to both sides, where `spread` is the standard deviation of the differences
# (n - 1 below the sum) and `t` is Student's factor for n - 1 degrees of freedom, from the table below.

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
# Now measure: does a model need to know where its patches are? These are scores of the chapter's stored runs, the same
# seeds with position embeddings and without. Before you run the cell, say what would convince you.

# %%
from nanovlm.course.runs import stored_runs
from nanovlm.training.probe import mean

paired_difference = use("training.paired_difference", paired_difference)
gallery, ablations = stored_runs("08_gallery"), stored_runs("08_ablations")
seeds = [seed for seed in (0, 1, 2) if f"ablation_no_positions_seed{seed}" in ablations]
with_positions = [gallery["healthy"], *(ablations[f"ablation_none_seed{seed}"] for seed in seeds[1:])]
without = [ablations[f"ablation_no_positions_seed{seed}"] for seed in seeds]
scores = [[mean(run["evaluations"][-1]["accuracy"]) for run in runs] for runs in (with_positions, without)]
difference, low, high = paired_difference(*scores)
print(f"{len(seeds)} seeds: {difference:+.1%}, and with 95 % confidence between {low:+.1%} and {high:+.1%}")
