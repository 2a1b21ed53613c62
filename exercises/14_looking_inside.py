# %% [markdown]
# # 14 Exercises: looking inside
#
# Six of them: take a head away, mend a lens, follow attention through all blocks, swap a vector between two pictures,
# read what a vector contains, and measure a sink.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [the chapter](../chapters/14_looking_inside.ipynb) ·
# [the solutions](../solutions/14_looking_inside.ipynb) ·
# [notation and terms](../chapters/notation.md)
#
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/exercises/14_looking_inside.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/exercises/14_looking_inside.ipynb

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
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanovlm.course import check
from nanovlm.models.language_model import LanguageModel
from nanovlm.models.vision_transformer import ViTAttention

# %% [markdown] tags=["stamped"]
# ## Exercise 14.1 · Take one head away
# `inside.ablate_head` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** A map shows what a head attends to, and not whether the model needs it. Only taking the
# head away tells, provided that nothing else changes with it.

# %% [markdown] tags=["exercise"]
# Return what an attention module would give for `x` without one of its heads. The module is chapter 02's, with
# `qkv_proj`, `out_proj` and `num_heads`. A head is taken away by setting its mixture, what `out_proj` reads of it, to
# zero. Everything else stays, the bias of `out_proj` included, and the module itself must not change.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# A head's contribution is what out_proj reads of it. What if that were zero?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Run the module's forward by hand: qkv_proj, split into heads, attend. Set the mixture of this one head to
# zero, merge the heads again and apply out_proj with its bias.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# q, k, v = split_heads(attention.qkv_proj(x), attention.num_heads)
# mixed = attend(q, k, v)                    # [B, num_heads, N, head_dim]
# mixed = mixed with …
# return attention.out_proj(mixed.transpose(1, 2).flatten(2))
# ```
#
# </details>


# %%
def ablate_head(attention: ViTAttention, x: Tensor, head: int) -> Tensor:
    """The module's output without this head. [B, N, dim] -> [B, N, dim]"""
    raise NotImplementedError("inside.ablate_head")


# %%
check("inside.ablate_head", ablate_head)

# %% [markdown] tags=["stamped"]
# ## Exercise 14.2 · Mend it: a lens without its norm
# `inside.logit_lens` · difficulty ●●○ · about 10 minutes
#
# **Why it matters.** The logit lens reads a vector in the middle of the decoder as a word. Without the final
# norm it shows words as well, and they are the wrong ones.

# %% [markdown] tags=["exercise"]
# **Mend it.** This lens reads the states of a decoder as tokens:
#
# ```python
# def logit_lens(states, decoder):
#     return torch.stack([decoder.head(state).argmax(dim=-1) for state in states])
# ```
#
# The symptom: its last row agrees with the model's predictions, and the rows before show words that have little to do
# with the answer, even one block before the end. `states` are what `output_hidden_states=True` returns: the input of
# every block, and last the decoder's output, which `decoder.norm` has normalised already. Return the token ids,
# `[states, batch, positions]`.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# What happens to a vector between the last block and the logits? The lens should do the same to every state.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# head(norm(state)) for the input of every block. The last entry of `states` is the decoder's output, to which
# the norm has been applied already. Then take the largest logit of each vector.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# normed = [decoder.norm(state) for state in …] + [states[-1]]
# return decoder.head(torch.stack(normed)).argmax(dim=…)
# ```
#
# </details>


# %%
def logit_lens(states: list[Tensor], decoder: LanguageModel) -> Tensor:
    """Which token each vector would become, if the decoder stopped there. [states, B, T]"""
    raise NotImplementedError("inside.logit_lens")


# %%
check("inside.logit_lens", logit_lens)

# %% [markdown] tags=["stamped"]
# ## Exercise 14.3 · Attention through all blocks
# `inside.rollout` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** After the first block, attending to patch 10 no longer means attending to what patch 10
# shows. Rollout follows the weights back to the pixels, with assumptions that one has to know.

# %% [markdown] tags=["exercise"]
# Attention rollout. `maps` are the attention weights of an encoder for one picture, `[num_blocks, num_heads, N, N]`; a
# row belongs to the patch that attends. Take each block for one matrix: the mean of its heads, with the identity added
# for the residual connection, and halved, so that rows sum to 1. Multiply the matrices of all blocks, so that row i of
# the result says how much of output i comes from each *input* patch.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# In one block a vector keeps itself, by the residual connection, and receives a mixture of the others. Which
# matrix says both?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Average the heads. Add the identity for the residual connection and halve, so that rows sum to 1. The second
# block reads what the first one gave, so its matrix is multiplied from the left.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# flow = torch.eye(N)
# for block in maps:
#     step = …                     # rows sum to 1
#     flow = step @ flow
# return flow
# ```
#
# </details>


# %%
def rollout(maps: Tensor) -> Tensor:
    """[num_blocks, num_heads, N, N] -> [N, N], rows sum to 1"""
    raise NotImplementedError("inside.rollout")


# %%
check("inside.rollout", rollout)

# %% [markdown] tags=["stamped"]
# ## Exercise 14.4 · Swap a vector between two pictures
# `inside.patch_activation` · difficulty ●●● · about 15 minutes
#
# **Why it matters.** Reading a vector shows what it contains. Only putting it into another run shows what the
# model does with it.

# %% [markdown] tags=["exercise"]
# Activation patching. Run the decoder on the embeddings `into`, but let block `block` find the vectors that a run on
# `source` has at its input, at `positions` and nowhere else. Both are `[B, T, dim]`, as `model.embed` gives them.
# Return the decoder's output, `[B, T, dim]`, and leave the decoder as it was. `decoder(x, hidden_states=states)` fills
# the list `states` with the input of every block.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# You need two runs. The first one only delivers the vectors of `source` at the input of the block.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Run the decoder on `source` with hidden_states=[] and keep entry `block`. Then run it on `into`, with a
# forward pre-hook on decoder.blocks[block] that returns the block's arguments with the vectors at `positions`
# replaced. Remove the hook, also where the run raises.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# states = []
# decoder(source, hidden_states=states)
#
# def swap(module, args):
#     x = args[0].clone()
#     x[:, positions] = …
#     return (x, *args[1:])
#
# handle = decoder.blocks[block].register_forward_pre_hook(swap)
# try:
#     return decoder(into)
# finally:
#     handle.remove()
# ```
#
# </details>


# %%
def patch_activation(
    decoder: LanguageModel, into: Tensor, source: Tensor, block: int, positions: list[int]
) -> Tensor:
    """The output for `into`, with these vectors of `source` at this block's input. [B, T, dim]"""
    raise NotImplementedError("inside.patch_activation")


# %%
check("inside.patch_activation", patch_activation)

# %% [markdown] tags=["stamped"]
# ## Exercise 14.5 · A linear probe
# `inside.probe` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** A probe asks what can be read from a vector by one linear layer. It is only fair if
# nothing of the test vectors has gone into it.

# %% [markdown] tags=["exercise"]
# A linear probe, by least squares with a penalty (*ridge regression*). Fit a linear layer with a bias from the vectors
# `train`, `[N, dim]`, to their `labels`, `[N]`, as one-hot targets of `num_classes` numbers. The penalty is `ridge`
# times the sum of the squared weights, without the bias; for this, centre both sides. Return the scores of the vectors
# `test`, `[M, num_classes]`.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# For each class the target is a 1 or a 0, and a linear layer should come as near to it as it can.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Subtract the training vectors' mean from both sets, and the targets' mean from the one-hot targets. Solve (XᵀX
# + ridge · 1) W = XᵀY. The scores of the test vectors are their centred vectors times W, plus the targets'
# mean.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# mean = train.mean(dim=0)
# x, y = train - mean, F.one_hot(labels, num_classes).float()
# w = torch.linalg.solve(…, x.T @ (y - y.mean(dim=0)))
# return (test - mean) @ w + y.mean(dim=0)
# ```
#
# </details>


# %%
def probe(train: Tensor, labels: Tensor, test: Tensor, num_classes: int, ridge: float) -> Tensor:
    """Scores of the test vectors. [N, dim], [N], [M, dim] -> [M, num_classes]"""
    raise NotImplementedError("inside.probe")


# %%
check("inside.probe", probe)

# %% [markdown] tags=["stamped"]
# ## Exercise 14.6 · Measure it: how much goes to the first position?
# `inside.sink_share` · difficulty ●○○ · about 8 minutes
#
# **Why it matters.** A head that has nothing to look for still has to spend 100 %. In many language models it
# spends them on the first position, and a map then shows a bright spot that means nothing.

# %% [markdown] tags=["exercise"]
# **Measure it.** `weights` are the attention weights of a causal decoder, `[blocks, heads, T, T]`; a row belongs to the
# position that attends. How much of their attention do the other positions give to position 0? Return the mean over all
# queries except the first, for each block and head. Then compare with an even share: what would it be for a query that
# divides its attention equally among all that it may attend to?

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Of which position is a row of the weights, the one that attends or the one that is attended to?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Take column 0, leave out the row of the first position, and average over the rows that are left.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# return weights[:, :, …, 0].mean(dim=-1)
#
# </details>


# %%
def sink_share(weights: Tensor) -> Tensor:
    """[blocks, heads, T, T] -> [blocks, heads]"""
    raise NotImplementedError("inside.sink_share")


# %%
check("inside.sink_share", sink_share)
