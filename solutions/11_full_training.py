# %% [markdown]
# # 11 Exercises: full training
#
# Ten exercises: the two sums to do before a run, a measurement, trained parts and a test that they arrived, two GPUs
# that train like one, adapters, the resume cell, and the numbers of a model card. Behind them stand a challenge and the
# capstone project.

# %%
import math
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from nanovlm.course import check

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


# %%
def training_hours(
    vision_flops: float, token_flops: float, tokens: int, samples: int, tflops: float, sparse: bool, utilisation: float
) -> float:
    """Hours on one GPU."""
    # SOLUTION
    forward = vision_flops + token_flops * tokens
    peak = tflops * 1e12 / (2 if sparse else 1)
    return 3 * forward * samples / (peak * utilisation) / 3600
    # END SOLUTION


# %%
check("full.flops_to_hours", training_hours)

# %% [markdown] tags=["exercise"]
# What does training `model` with AdamW take, in GiB ($2^{30}$ bytes)? Return four numbers, `(weights, gradients,
# optimizer, activations)`:
#
# - **weights** as they are stored, each once, whether or not it is trained;
# - **gradients** in float32 for every weight that is trained (the course adds them up in float32 always);
# - **optimizer**: AdamW's two moments in float32 for every trained weight, and where a trained weight is narrower than
#   float32, the float32 copy that the optimizer moves;
# - **activations**: `rows` rows in a batch, of which each keeps `row_bytes`.


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

# %% [markdown] tags=["exercise"]
# The last of the four numbers needs a measurement. Between the forward and the backward pass autograd keeps tensors,
# and `torch.autograd.graph.saved_tensors_hooks(pack, unpack)` calls `pack` with each of them.
#
# Return the bytes that `model(x)` keeps. Leave out the weights, which are there anyway, and count each piece of memory
# once, although several operations may keep it. A view keeps the whole piece of memory behind it alive.


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
    ours = {"patch_embedding.position_embedding": left.pop("vision_model.embeddings.position_embedding.weight")[None]}
    for part in ("weight", "bias"):
        for theirs, name in pairs.items():
            ours[f"{name}.{part}"] = left.pop(f"vision_model.{theirs}.{part}")
        for i in range(num_blocks):
            three = [f"vision_model.encoder.layers.{i}.self_attn.{which}_proj.{part}" for which in "qkv"]
            if all(name in left for name in three):
                ours[f"blocks.{i}.attn.qkv_proj.{part}"] = torch.cat([left.pop(name) for name in three])
    if left:
        raise ValueError(f"These tensors have no place in the encoder: {', '.join(left)}.")
    return ours
    # END SOLUTION


# %%
check("full.map_names", map_names)

# %% [markdown] tags=["exercise"]
# Strict names are not enough: a tensor in the wrong place has the right shape. Write the test that compares two
# encoders, `ours` and `theirs`, both of which take pictures `[batch, 3, 8, 8]` and return features
# `[batch, patches, dim]`. Return True if they compute the same features, up to rounding, and else False.
#
# The check runs your test on two right encoders, of which one computes in float64, and on six wrong ones.


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

# %% [markdown] tags=["exercise"]
# A vocabulary gains `new_tokens`. Return a new embedding and a new head whose number of rows is the old one plus
# `new_tokens`, rounded up to a `multiple` (matrix products on a GPU are fastest for multiples of 64):
#
# - old rows stay as they are, and the modules that came in are not changed;
# - each new row is the mean of the old rows of its own matrix;
# - where the head's weight *is* the embedding's (tied), it is so afterwards; where it is not, neither is it afterwards;
# - both can be trained.


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
    out.weight = larger.weight if head.weight is embedding.weight else nn.Parameter(longer(head.weight))
    return larger, out
    # END SOLUTION


# %%
check("full.extend_embeddings", extend_embeddings)

# %% [markdown] tags=["exercise"]
# With two GPUs the loss curve is another one than with one GPU and twice the batch. Each rank (each process) computes
# its loss like this, and DDP then replaces all gradients by their mean over the ranks:
#
# ```python
# def rank_loss(means, counts, all_reduce, world):
#     return means.mean()
# ```
#
# `means` [micro-batches] are the mean losses of this rank's micro-batches, and `counts` their numbers of supervised
# tokens. `all_reduce(x)` returns the sum of `x` over all ranks, and `world` is how many there are. Mend it, so that
# DDP's mean is the mean over all supervised tokens of all ranks.


# %%
def rank_loss(means: Tensor, counts: Tensor, all_reduce: Callable[[Tensor], Tensor], world: int) -> Tensor:
    """This rank's loss, a single number to call backward() on."""
    # SOLUTION
    total = all_reduce(counts.sum())
    return (means * counts).sum() * world / total  # DDP divides by world
    # END SOLUTION


# %%
check("full.ddp_loss_scale", rank_loss)

# %% [markdown] tags=["exercise"]
# Write LoRA: a frozen Linear layer `base`, whose output gains $\frac{\alpha}{r} \, x A^\top B^\top$. `A` `[rank, in]`
# begins with random numbers and `B` `[out, rank]` with zeros, both as `nn.Parameter`. `merge()` returns a new
# `nn.Linear` that computes the same as the layer does, and leaves `base` unchanged.


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
        merged = nn.Linear(self.base.in_features, self.base.out_features, bias=self.base.bias is not None)
        with torch.no_grad():
            merged.weight.copy_(self.base.weight + self.scale * self.B @ self.A)
            if self.base.bias is not None:
                merged.bias.copy_(self.base.bias)
        return merged
        # END SOLUTION


# %%
check("full.lora_linear", LoRALinear)

# %% [markdown] tags=["exercise"]
# The notebook was disconnected, and what is in the mounted Drive is a folder with, perhaps: whole checkpoints
# `step_<number>.pt`; one that was cut off; an empty one; `step_750.pt.partial` from the kill in the middle of writing;
# `step_500 (1).pt`, a second copy that the synchronisation made; other files; and dates that say when a file was
# synchronised, not when it was written.
#
# Return the state (a dict) of the checkpoint with the highest step that can be read, or None where there is none. Load
# with `weights_only=True`, which runs no code from the file. Change nothing in the folder.


# %%
def newest_state(folder: Path) -> dict | None:
    """The newest checkpoint that is whole."""
    # SOLUTION
    found = {int(m[1]): path for path in folder.iterdir() if (m := re.fullmatch(r"step_(\d+)\.pt", path.name))}
    for step in sorted(found, reverse=True):
        try:
            return torch.load(found[step], map_location="cpu", weights_only=True)
        except Exception as error:
            print(f"{found[step].name} cannot be read ({type(error).__name__}); trying the one before it")
    return None
    # END SOLUTION


# %%
check("full.resume_after_disconnect", newest_state)

# %% [markdown] tags=["exercise"]
# What goes on the card? `scores` maps each kind of question to `(right, total)`, and `blind` does the same for the
# model that was shown other pictures. Return for each kind `(share, low, high, blind share)`, with Wilson's 95 % interval
# (z = 1.96, chapter 10).
#
# Raise `ValueError` where `chosen_on`, the split on which the checkpoint was chosen, is `scored_on`, and where a kind
# has no blind score.


# %%
def card_numbers(
    scores: dict[str, tuple[int, int]], blind: dict[str, tuple[int, int]], chosen_on: str, scored_on: str
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
        half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
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
