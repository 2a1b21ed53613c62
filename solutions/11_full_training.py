# %% [markdown]
# # 11 Exercises: full training
#
# Ten exercises: the two sums to do before a run, a measurement, trained parts and a test that they arrived, two GPUs
# that train like one, adapters, the resume cell, and the numbers of a model card. Behind them stand a challenge and the
# capstone project.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [the chapter](../chapters/11_full_training.ipynb) ·
# [the exercises](../exercises/11_full_training.ipynb) ·
# [notation and terms](../chapters/notation.md)
#
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/solutions/11_full_training.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/solutions/11_full_training.ipynb

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
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from nanovlm.course import check

# %% [markdown] tags=["stamped"]
# ## Exercise 11.1 · From operations to hours
# `full.flops_to_hours` · difficulty ●○○ · about 10 minutes
#
# **Why it matters.** Four lines of arithmetic decide whether a run is worth starting. Each of its usual errors
# is a factor of two or three, which is the difference between an afternoon and a lost weekend.

# %% [markdown] tags=["exercise"]
# How many hours does a run take? You know
#
# - `vision_flops`: the FLOPs of the encoder and the projector, forward, for **one picture**;
# - `token_flops`: the FLOPs of the decoder and its head, forward, for **one token**; `tokens` in a sample (one picture
#   a sample), and `samples` in the whole run;
# - `tflops`: what the GPU's data sheet says, in TFLOP/s; where `sparse` is True, the sheet counts products in which
#   half of the numbers are zero, and a dense product reaches half of it;
# - `utilisation`: the share of the dense peak that the run really does.
#
# Return the hours of *training*, in which the backward pass costs twice as much as the forward pass.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Write down the units of every input. Which of them are per picture, which per token, which per second?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Forward FLOPs of a sample, then three times as many for training it (the backward pass costs twice the forward
# pass), then all samples. Divide by what the GPU does in a second: its dense peak times the utilisation.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# forward = vision_flops + …
# peak = tflops * 1e12, halved where the sheet counts sparse products
# seconds = 3 * forward * samples / (peak * …)
# return seconds / 3600
# ```
#
# </details>


# %%
def training_hours(
    vision_flops: float,
    token_flops: float,
    tokens: int,
    samples: int,
    tflops: float,
    sparse: bool,
    utilisation: float,
) -> float:
    """Hours on one GPU."""
    # SOLUTION
    forward = vision_flops + token_flops * tokens
    peak = tflops * 1e12 / (2 if sparse else 1)
    return 3 * forward * samples / (peak * utilisation) / 3600
    # END SOLUTION


# %%
check("full.flops_to_hours", training_hours)

# %% [markdown] tags=["stamped"]
# ## Exercise 11.2 · Will it fit?
# `full.memory_plan` · difficulty ●●○ · about 15 minutes
#
# **Why it matters.** Out of memory after forty minutes of download and loading is the usual way to learn this
# sum. It takes one second on paper, and it shows which of the four parts to make smaller.

# %% [markdown] tags=["exercise"]
# What does training `model` with AdamW take, in GiB ($2^{30}$ bytes)? Return four numbers, `(weights, gradients,
# optimizer, activations)`:
#
# - **weights** as they are stored, each once, whether or not it is trained;
# - **gradients** in float32 for every weight that is trained (the course adds them up in float32 always);
# - **optimizer**: AdamW's two moments in float32 for every trained weight, and where a trained weight is narrower than
#   float32, the float32 copy that the optimizer moves;
# - **activations**: `rows` rows in a batch, of which each keeps `row_bytes`.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Go through model.parameters(). For each one ask: how many numbers, of how many bytes, and is it trained at
# all?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Weights: numel times element_size. Gradients: 4 bytes for each number that is trained. Optimizer: two moments
# of 4 bytes, and 4 more for a float32 copy where the weight itself is narrower. Activations: rows times
# row_bytes. parameters() gives a shared tensor once, state_dict() does not.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# trained = [p for p in model.parameters() if …]
# weights = sum(p.numel() * p.element_size() for p in model.parameters())
# gradients = sum(4 * p.numel() for p in trained)
# optimizer = sum((8, or … where p.element_size() < 4) * p.numel() for p in trained)
# return each of them, and rows * row_bytes, in GiB
# ```
#
# </details>


# %%
def memory_plan(model: nn.Module, rows: int, row_bytes: int) -> tuple[float, float, float, float]:
    """(weights, gradients, optimizer, activations) in GiB."""
    # SOLUTION
    trained = [p for p in model.parameters() if p.requires_grad]
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    gradients = sum(4 * p.numel() for p in trained)
    optimizer = sum((12 if p.element_size() < 4 else 8) * p.numel() for p in trained)
    return weights / 2**30, gradients / 2**30, optimizer / 2**30, rows * row_bytes / 2**30
    # END SOLUTION


# %%
check("full.memory_plan", memory_plan)

# %% [markdown] tags=["stamped"]
# ## Exercise 11.3 · Measure it: what the forward pass keeps
# `full.activation_bytes` · difficulty ●●○ · about 15 minutes
#
# **Why it matters.** Activations are the one part of the memory that grows with the batch, and the one that no
# formula from a paper gets right for your code. Measured on one row, they say how many rows fit.

# %% [markdown] tags=["exercise"]
# The last of the four numbers needs a measurement. Between the forward and the backward pass autograd keeps tensors,
# and `torch.autograd.graph.saved_tensors_hooks(pack, unpack)` calls `pack` with each of them.
#
# Return the bytes that `model(x)` keeps. Leave out the weights, which are there anyway, and count each piece of memory
# once, although several operations may keep it. A view keeps the whole piece of memory behind it alive.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# torch.autograd.graph.saved_tensors_hooks(pack, unpack) calls pack with every tensor that is kept for the
# backward pass. Which of those would be there without a forward pass, too?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# In pack, look at the tensor's untyped_storage(): data_ptr() says which memory it is, nbytes() how much. Leave
# out the memory of the parameters, and note each address once, in a dict. Return the tensor from pack and keep
# the output in a variable until you are done.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
# kept = {}
# def keep(tensor):
#     storage = tensor.untyped_storage()
#     if …:
#         kept[storage.data_ptr()] = storage.nbytes()
#     return tensor
# with saved_tensors_hooks(keep, lambda tensor: tensor):
#     output = model(x)
# return sum(kept.values())
# ```
#
# </details>


# %%
def activation_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes that are kept for the backward pass."""
    # SOLUTION
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(x)  # in a variable, so that nothing is freed and no address is used twice
    del output
    return sum(kept.values())
    # END SOLUTION


# %%
check("full.activation_bytes", activation_bytes)

# %% [markdown] tags=["stamped"]
# ## Exercise 11.4 · The same tensors under other names
# `full.map_names` · difficulty ●●○ · about 18 minutes
#
# **Why it matters.** A backbone that is loaded under the wrong names raises no error if one asks for
# strict=False: the model trains from random weights, and its loss stays high for a reason that nothing prints.

# %% [markdown] tags=["exercise"]
# A SigLIP file from transformers is to go into our encoder. In block `i`:
#
# | theirs, behind `vision_model.` | ours |
# |---|---|
# | `embeddings.patch_embedding` | `patch_embedding.conv` |
# | `embeddings.position_embedding.weight` [patches, dim] | `patch_embedding.position_embedding` [1, patches, dim] |
# | `encoder.layers.i.layer_norm1`, `.layer_norm2` | `blocks.i.ln1`, `.ln2` |
# | `encoder.layers.i.self_attn.q_proj`, `.k_proj`, `.v_proj` | `blocks.i.attn.qkv_proj`, q, k, v one below the other |
# | `encoder.layers.i.self_attn.out_proj` | `blocks.i.attn.out_proj` |
# | `encoder.layers.i.mlp.fc1`, `.fc2` | `blocks.i.mlp.fc1`, `.fc2` |
# | `post_layernorm` | `layer_norm` |
#
# Every module has a `.weight` and a `.bias`. Known and not needed are names that begin with `text_model.`,
# `logit_scale`, `logit_bias` or `vision_model.head.`. Any other name that is left over, and any part of q, k and v that
# is missing, is a `ValueError` that names the tensors.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Write the pairs for block 0 by hand on paper, all of them. Which three of theirs become one of ours?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Drop what belongs to the text tower and to the pooling head, take each remaining tensor out of a copy of the
# dict as you map it, and raise ValueError with the names that are left at the end. q, k and v are stacked by
# rows, in this order; the position embedding gains a leading dimension of 1.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# left = {name: t for name, t in tensors.items() if not name.startswith(…)}
# for i in range(num_blocks):
#     theirs, block = f'vision_model.encoder.layers.{i}', f'blocks.{i}'
#     for part in ('weight', 'bias'):
#         three = [left.pop(f'{theirs}.self_attn.{w}_proj.{part}') for w in …]
#         ours[f'{block}.attn.qkv_proj.{part}'] = torch.cat(three)
#         …the other five modules of a block, popped one by one
# if left:
#     raise ValueError(…the names…)
# ```
#
# </details>


# %%
def map_names(tensors: dict[str, Tensor], num_blocks: int) -> dict[str, Tensor]:
    """transformers' names -> ours."""
    # SOLUTION
    unused = ("text_model.", "logit_scale", "logit_bias", "vision_model.head.")
    left = {name: tensor for name, tensor in tensors.items() if not name.startswith(unused)}
    pairs = {"embeddings.patch_embedding": "patch_embedding.conv", "post_layernorm": "layer_norm"}
    for i in range(num_blocks):
        theirs, block = f"encoder.layers.{i}", f"blocks.{i}"
        pairs |= {f"{theirs}.layer_norm{j}": f"{block}.ln{j}" for j in (1, 2)}
        pairs |= {f"{theirs}.mlp.fc{j}": f"{block}.mlp.fc{j}" for j in (1, 2)}
        pairs[f"{theirs}.self_attn.out_proj"] = f"{block}.attn.out_proj"
    positions = left.pop("vision_model.embeddings.position_embedding.weight")
    ours = {"patch_embedding.position_embedding": positions[None]}
    for part in ("weight", "bias"):
        for theirs, name in pairs.items():
            ours[f"{name}.{part}"] = left.pop(f"vision_model.{theirs}.{part}")
        for i in range(num_blocks):
            layer = f"vision_model.encoder.layers.{i}.self_attn"
            three = [f"{layer}.{which}_proj.{part}" for which in "qkv"]
            if all(name in left for name in three):
                joined = torch.cat([left.pop(name) for name in three])
                ours[f"blocks.{i}.attn.qkv_proj.{part}"] = joined
    if left:
        raise ValueError(f"These tensors have no place in the encoder: {', '.join(left)}.")
    return ours
    # END SOLUTION


# %%
check("full.map_names", map_names)

# %% [markdown] tags=["stamped"]
# ## Exercise 11.5 · Write the test: did the weights arrive?
# `full.parity_test` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** A backbone with one wrong tensor has the right shapes, trains, and gives a somewhat worse
# model. Comparing features with the library that the weights come from takes a second, before the first step.

# %% [markdown] tags=["exercise"]
# Strict names are not enough: a tensor in the wrong place has the right shape. Write the test that compares two
# encoders, `ours` and `theirs`, both of which take pictures `[batch, 3, 8, 8]` and return features
# `[batch, patches, dim]`. Return True if they compute the same features, up to rounding, and else False.
#
# The check runs your test on two right encoders, of which one computes in float64, and on six wrong ones.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Two encoders with the same weights give the same numbers for the same pictures. For which pictures could two
# different encoders agree by luck?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Random pictures [2, 3, 8, 8]: in a grey picture the channels are alike, in a constant one all patches are.
# Compare all features, not a mean over them, with a tolerance, under torch.no_grad().
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# images = …
# with torch.no_grad():
#     a, b = ours(images), theirs(images)
# return torch.allclose(a, b, atol=1e-4)
# ```
#
# </details>


# %%
def is_loaded(ours: nn.Module, theirs: nn.Module) -> bool:
    """Whether both encoders compute the same features."""
    # SOLUTION
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        return torch.allclose(ours(images), theirs(images), atol=1e-4)
    # END SOLUTION


# %%
check("full.parity_test", is_loaded)

# %% [markdown] tags=["stamped"]
# ## Exercise 11.6 · Rows for new tokens
# `full.extend_embeddings` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** The image placeholder and the tile tokens are not in SmolLM2's vocabulary. Their rows
# decide how the first steps go: a loud random row disturbs every prediction, and a head that is no longer tied
# is 28 million weights more.

# %% [markdown] tags=["exercise"]
# A vocabulary gains `new_tokens`. Return a new embedding and a new head whose number of rows is the old one plus
# `new_tokens`, rounded up to a `multiple` (matrix products on a GPU are fastest for multiples of 64):
#
# - old rows stay as they are, and the modules that came in are not changed;
# - each new row is the mean of the old rows of its own matrix;
# - where the head's weight *is* the embedding's (tied), it is so afterwards; where it is not, neither is it afterwards;
# - both can be trained.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# How many rows in all? They must hold the old tokens and the new ones, rounded up to a multiple once.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# New rows are the mean of the old ones. Build new modules, copy the old rows, and keep what was tied tied: the
# head's weight is then the embedding's own Parameter, not a copy. An untied head gets the mean of its own rows.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# rows = …round embedding.num_embeddings + new_tokens up to a multiple
# more = weight.mean(dim=…, keepdim=True).expand(rows - len(weight), -1)
# larger = nn.Embedding.from_pretrained(torch.cat([weight, more]), freeze=False)
# out = nn.Linear(dim, rows, bias=False)
# out.weight = larger.weight if … else nn.Parameter(the head's rows and their mean)
# return larger, out
# ```
#
# </details>


# %%
def extend_embeddings(
    embedding: nn.Embedding, head: nn.Linear, new_tokens: int, multiple: int
) -> tuple[nn.Embedding, nn.Linear]:
    """(embedding, head) with more rows."""

    # SOLUTION
    def longer(weight: Tensor) -> Tensor:
        weight = weight.detach()
        return torch.cat([weight, weight.mean(dim=0, keepdim=True).expand(rows - len(weight), -1)])

    rows = math.ceil((embedding.num_embeddings + new_tokens) / multiple) * multiple
    larger = nn.Embedding.from_pretrained(longer(embedding.weight), freeze=False)
    out = nn.Linear(head.in_features, rows, bias=False)
    tied = head.weight is embedding.weight
    out.weight = larger.weight if tied else nn.Parameter(longer(head.weight))
    return larger, out
    # END SOLUTION


# %%
check("full.extend_embeddings", extend_embeddings)

# %% [markdown] tags=["stamped"]
# ## Exercise 11.7 · Mend it: a mean of means, in several processes
# `full.ddp_loss_scale` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** Two GPUs with one sample each should train like one GPU with both. With a mean of means
# they do not, and the more the lengths of answers differ, the more the short ones count.

# %% [markdown] tags=["exercise"]
# With two GPUs the loss curve differs from that of one GPU with twice the batch. Each rank (each process) computes its
# loss like this, and DDP then replaces all gradients by their mean over the ranks:
#
# ```python
# def rank_loss(means, counts, all_reduce, world):
#     return means.mean()
# ```
#
# `means` [micro-batches] are the mean losses of this rank's micro-batches, and `counts` their numbers of supervised
# tokens. `all_reduce(x)` returns the sum of `x` over all ranks, and `world` is how many there are. Mend it, so that
# DDP's mean is the mean over all supervised tokens of all ranks.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Write the loss that one process with all rows would compute, as one fraction. Which parts of it does a rank
# know, and which does it have to ask for?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Numerator: the sum of mean times count over this rank's micro-batches. Denominator: all supervised tokens of
# all ranks, which all_reduce(counts.sum()) returns. DDP will divide the sum of the gradients by world, so
# multiply by world first.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# total = all_reduce(counts.sum())
# return (means * counts).sum() * … / total
# ```
#
# </details>


# %%
def rank_loss(means: Tensor, counts: Tensor, all_reduce: Callable, world: int) -> Tensor:
    """This rank's loss, a single number to call backward() on."""
    # SOLUTION
    total = all_reduce(counts.sum())
    return (means * counts).sum() * world / total  # DDP divides by world
    # END SOLUTION


# %%
check("full.ddp_loss_scale", rank_loss)

# %% [markdown] tags=["stamped"]
# ## Exercise 11.8 · LoRA in twenty lines
# `full.lora_linear` · difficulty ●●○ · about 18 minutes
#
# **Why it matters.** With a rank of 8, a matrix of 576 x 1536 trains 17 thousand numbers instead of 885
# thousand, and gradients and moments shrink with it. After merging nothing of it is left, and the model is as
# fast as before.

# %% [markdown] tags=["exercise"]
# Write LoRA: a frozen Linear layer `base`, whose output gains $\frac{\alpha}{r} \, x A^\top B^\top$. `A` `[rank, in]`
# begins with random numbers and `B` `[out, rank]` with zeros, both as `nn.Parameter`. `merge()` returns a new
# `nn.Linear` that computes the same as the layer does, and leaves `base` unchanged.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# At the first step the layer must compute exactly what base computes, and yet a gradient must flow. Which of
# the two matrices can be zero?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Freeze base. A is [rank, in] and random, B is [out, rank] and zero. forward adds alpha / rank times x A^T B^T.
# merge builds a new Linear with weight W + alpha / rank B A, and copies the bias if there is one.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# self.A = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
# self.B = nn.Parameter(…)
# self.scale = alpha / rank
# forward: base(x) + self.scale * (x @ self.A.T) @ self.B.T
# merge:   merged.weight.copy_(self.base.weight + self.scale * …)
# ```
#
# </details>


# %%
class LoRALinear(nn.Module):
    """A frozen Linear layer and two thin trained matrices beside it."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        # SOLUTION
        self.base = base.requires_grad_(False)
        self.A = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.B = nn.Parameter(torch.zeros(base.out_features, rank))
        self.scale = alpha / rank
        # END SOLUTION

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]"""
        # SOLUTION
        return self.base(x) + self.scale * (x @ self.A.T) @ self.B.T
        # END SOLUTION

    def merge(self) -> nn.Linear:
        """One Linear that computes the same."""
        # SOLUTION
        has_bias = self.base.bias is not None
        merged = nn.Linear(self.base.in_features, self.base.out_features, bias=has_bias)
        with torch.no_grad():
            merged.weight.copy_(self.base.weight + self.scale * self.B @ self.A)
            if self.base.bias is not None:
                merged.bias.copy_(self.base.bias)
        return merged
        # END SOLUTION


# %%
check("full.lora_linear", LoRALinear)

# %% [markdown] tags=["stamped"]
# ## Exercise 11.9 · After a disconnect: the newest checkpoint that is whole
# `full.resume_after_disconnect` · difficulty ●●● · about 15 minutes
#
# **Why it matters.** A free notebook ends without asking. What is then in the mounted Drive is not what you
# wrote: half a file, a second copy, and dates of the synchronisation. The resume cell has to find its way
# alone.

# %% [markdown] tags=["exercise"]
# The notebook was disconnected, and what is in the mounted Drive is a folder with, perhaps: whole checkpoints
# `step_<number>.pt`; one that was cut off; an empty one; `step_750.pt.partial` from the kill in the middle of writing;
# `step_500 (1).pt`, a second copy that the synchronisation made; other files; and dates that say when a file was
# synchronised, not when it was written.
#
# Return the state (a dict) of the checkpoint with the highest step that can be read, or None where there is none. Load
# with `weights_only=True`, which runs no code from the file. Change nothing in the folder.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# List everything that may be in the folder besides whole checkpoints. For each: what must not happen?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Take only names that are exactly step_<number>.pt, order them by the number, the highest first, and return the
# first that torch.load can read, with weights_only=True. A file that cannot be read is not the end. If none is
# left, return None.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# found = {int(m[1]): path for path in folder.iterdir() if (m := re.fullmatch(…, path.name))}
# for step in sorted(found, reverse=True):
#     try:
#         return torch.load(found[step], map_location='cpu', weights_only=True)
#     except Exception:
#         …say which file, and go on
# return None
# ```
#
# </details>


# %%
def newest_state(folder: Path) -> dict | None:
    """The newest checkpoint that is whole."""
    # SOLUTION
    names = {path: re.fullmatch(r"step_(\d+)\.pt", path.name) for path in folder.iterdir()}
    found = {int(match[1]): path for path, match in names.items() if match}
    for step in sorted(found, reverse=True):
        try:
            return torch.load(found[step], map_location="cpu", weights_only=True)
        except Exception as error:
            kind = type(error).__name__
            print(f"{found[step].name} cannot be read ({kind}); trying the one before it")
    return None
    # END SOLUTION


# %%
check("full.resume_after_disconnect", newest_state)

# %% [markdown] tags=["stamped"]
# ## Exercise 11.10 · The numbers of a model card
# `full.model_card_numbers` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** A score without an interval cannot be compared, one without a blind baseline says nothing
# about seeing, and one on the split that chose the checkpoint is too high by construction.

# %% [markdown] tags=["exercise"]
# What goes on the card? `scores` maps each kind of question to `(right, total)`, and `blind` does the same for the
# model that was shown other pictures. Return for each kind `(share, low, high, blind share)`, with Wilson's 95 %
# interval (z = 1.96, chapter 10).
#
# Raise `ValueError` where `chosen_on`, the split on which the checkpoint was chosen, is `scored_on`, and where a kind
# has no blind score.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Which two situations make every number on the card worthless? Those are refused, before anything is computed.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# ValueError where chosen_on is scored_on, and where a kind has no blind score. Then for each kind: right /
# total, the two ends of Wilson's interval (chapter 10), and the blind share, which has a total of its own.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# centre = (share + z * z / (2 * n)) / (1 + z * z / n)
# half = z / (1 + z * z / n) * math.sqrt(…)
# numbers[kind] = (share, centre - half, centre + half, blind_right / blind_total)
# ```
#
# </details>


# %%
def card_numbers(
    scores: dict[str, tuple[int, int]],
    blind: dict[str, tuple[int, int]],
    chosen_on: str,
    scored_on: str,
) -> dict[str, tuple[float, float, float, float]]:
    """kind -> (share, low, high, blind share)"""
    # SOLUTION
    if chosen_on == scored_on:
        raise ValueError(f"The checkpoint was chosen on {chosen_on}: score it on another split.")
    if missing := scores.keys() - blind.keys():
        raise ValueError(f"There is no blind score for {', '.join(sorted(missing))}.")
    z, numbers = 1.96, {}
    for kind, (right, total) in scores.items():
        share = right / total
        centre = (share + z * z / (2 * total)) / (1 + z * z / total)
        spread = math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
        half = z / (1 + z * z / total) * spread
        dark, asked = blind[kind]
        numbers[kind] = (share, max(0.0, centre - half), min(1.0, centre + half), dark / asked)
    return numbers
    # END SOLUTION


# %%
check("full.model_card_numbers", card_numbers)

# %% [markdown]
# ## A challenge, without a solution: the most for one hour
#
# You have one hour of a machine of your choice, a laptop among them, and the pocket model's task (`nanovlm evaluate
# --subsets shapes charts glyphs`). Plan the run before you start it: FLOPs, hours, memory. Then run it once. Your score
# is the mean over the three subsets on the test split, in percent, minus the percentage by which your plan missed the
# hours. A plan that is right counts as much as a model that is good.
#
# ## The capstone project
#
# Train a vision-language model for a task of your own, on whatever machine you have, and publish it with a card that a
# sceptical reader would accept. Ask somebody to grade it with this rubric, two points for each line:
#
# | | 0 | 1 | 2 |
# |---|---|---|---|
# | plan | none | hours or memory | both, written down before the run, with what was measured beside them |
# | data card | none | source and size | also licence, split by picture, what was left out and counted |
# | sanity | none | loss at step 0 | also one batch overfitted and features compared with the library |
# | blind baseline | none | chance | the same model with exchanged pictures, per kind of question |
# | ablation | none | one run each | one change, three seeds, the paired difference with its interval |
# | intervals | none | on the mean | on every number that is compared |
# | selection | on the test split | not said | on a validation split, and the card says so |
# | resume | not tried | resumed | killed on purpose, with the losses of both runs side by side |
# | card | none | scores | scores, limits, failures to look at, commands that repeat it |
# | honesty | numbers from elsewhere as one's own | unclear | what was not done, and what did not work, is on the card |
#
# Fifteen points are a good piece of work. A model that turned out badly can have twenty.
