# %% [markdown]
# # 04 Exercises: the decoder
#
# Eight of them, from one line to a class. By the end you have written a Llama: every part of the language model that
# reads the picture's tokens and writes the answer.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [the chapter](../chapters/04_rope_decoder.ipynb) ·
# [the solutions](../solutions/04_rope_decoder.ipynb)
#
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/exercises/04_rope_decoder.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/exercises/04_rope_decoder.ipynb

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
import torch.nn.functional as F
from torch import Tensor, nn

from nanovlm.config import LMConfig
from nanovlm.course import check, use

# %% [markdown] tags=["stamped"]
# ## Exercise 4.1 · Every vector to the same size
# `decoder.rms_norm` · difficulty ●○○ · about 8 minutes
#
# **Why it matters.** It stands twice in every block and once behind the last. It sees each vector that the
# decoder works with, so what it gets wrong, half precision above all, is wrong everywhere.

# %% [markdown] tags=["exercise"]
# Scale each vector of `x` so that its root mean square is 1, then multiply by a learned weight, one number for each
# place of the vector. With $n$ numbers $x_1 \dots x_n$:
#
# $$y_i = w_i \cdot \frac{x_i}{\sqrt{\frac{1}{n}(x_1^2 + \dots + x_n^2) + \epsilon}}$$
#
# `[..., dim]` stays `[..., dim]`. A weight of ones makes `[3, 4]` into about `[0.85, 1.13]`: the mean square is 12.5.
#
# Name the parameter `weight`. Compute the root in float32, also when `x` comes in half precision, and give back the
# type that came in. (`x` and the weight have the same type.) Write it out, or look for what torch has.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Read the name backwards: square, mean, root. The mean runs over the numbers of one vector, the last axis.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Work in float32: half precision cannot hold the square of 300. Divide x by the root of (mean of squares +
# eps), go back to the type that came in, multiply by the weight.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# wide = x.float()
# scale = torch.rsqrt(mean over the last axis of wide ** 2, keepdim=True, + eps)
# return (wide * scale) in x's dtype, times self.weight
# ```
#
# </details>


# %%
class RMSNorm(nn.Module):
    """Scale each vector to root mean square 1, then by a learned weight. [..., dim] -> [..., dim]"""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        raise NotImplementedError("decoder.rms_norm")

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError("decoder.rms_norm")


# %%
check("decoder.rms_norm", RMSNorm)

# %% [markdown] tags=["stamped"]
# ## Exercise 4.2 · A gate in the MLP
# `decoder.swiglu` · difficulty ●○○ · about 6 minutes
#
# **Why it matters.** Three quarters of SmolLM2's weights inside its blocks are in here. gate_proj and up_proj
# have one shape, so the one in the other's place raises nothing, and loaded weights answer wrongly.

# %% [markdown] tags=["exercise"]
# The MLP of Llama. Three linear layers without bias, named `gate_proj` and `up_proj` (`config.hidden_dim` to
# `config.inter_dim`) and `down_proj` (back again). The gate goes through SiLU, `silu(x) = x * sigmoid(x)`, and is
# multiplied with what `up_proj` gives, number by number. `down_proj` reads the product.
#
# `[batch, length, dim]` stays `[batch, length, dim]`. torch has `F.silu`.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Two layers go up to inter_dim, one comes down. Only one of the two that go up passes through the activation.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# The gate passes through SiLU and is multiplied, number by number, with what up_proj gives. down_proj reads the
# product.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# in __init__: gate_proj and up_proj: hidden_dim -> inter_dim; down_proj: back; all with bias=False
# in forward:  down_proj(F.silu(gate) * up)
# ```
#
# </details>


# %%
class SwiGLU(nn.Module):
    """The gated MLP. [B, T, dim] -> [B, T, dim]"""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        raise NotImplementedError("decoder.swiglu")

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError("decoder.swiglu")


# %%
check("decoder.swiglu", SwiGLU)

# %% [markdown] tags=["stamped"]
# ## Exercise 4.3 · How far does each pair turn?
# `rope.angles` · difficulty ●●○ · about 10 minutes
#
# **Why it matters.** Attention itself does not know in which order the tokens stand, or how far apart. These
# angles tell it, in every block.

# %% [markdown] tags=["exercise"]
# RoPE turns pairs of numbers. By how much? A vector of `head_dim` numbers holds `head_dim / 2` pairs. Pair `i` turns by
# `base ** (-2 * i / head_dim)` radians for each step of position. A token at position `p` is turned `p` times as far.
#
# From positions `[batch, length]` (whole numbers) make the cosine and the sine of all angles. Both partners of a pair
# need the same angle, and number `i` is the partner of number `i + head_dim / 2`: so lay the angles twice, end to end.
# With an axis of size 1 for the heads, each result is `[batch, 1, length, head_dim]`.
#
# With `head_dim = 4` and `base = 100` there are two pairs, which turn by 1 and by 0.1. At position 2 the angles are
# `[2, 0.2, 2, 0.2]`.
#
# Compute everything in `forward`, in float32. A model in bfloat16 would round whatever is stored.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Three steps: one frequency for each pair, an angle for each position and pair, then cosine and sine.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# The frequencies are base ** (-2 i / head_dim) for i = 0 … head_dim / 2 - 1, in float32. Position times
# frequency is the angle. Lay the angles twice end to end: both partners of a pair need the same.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# pairs = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device)   # this is 2 i
# angles = positions as [B, 1, T, 1], in float32, times base ** (-pairs / head_dim)
# angles = torch.cat([angles, angles], dim=-1)
# return angles.cos(), angles.sin()
# ```
#
# </details>


# %%
class RotaryEmbedding(nn.Module):
    """The angles of RoPE: positions [B, T] -> cos and sin, each [B, 1, T, head_dim]"""

    def __init__(self, head_dim: int, base: float) -> None:
        super().__init__()
        self.head_dim, self.base = head_dim, base

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("rope.angles")


# %%
check("rope.angles", RotaryEmbedding)

# %% [markdown] tags=["stamped"]
# ## Exercise 4.4 · Turn queries and keys
# `rope.apply` · difficulty ●●○ · about 10 minutes
#
# **Why it matters.** It puts the position into queries and keys in such a way that their product depends only
# on how far apart two tokens are. Pair the numbers in the other way that is in use, and somebody's weights turn
# into noise.

# %% [markdown] tags=["exercise"]
# Turn the vectors. Number `i` of a vector and number `i + head_dim / 2` are a pair `(a, b)`. Turned by an angle, it is
# `(a * cos - b * sin, b * cos + a * sin)`.
#
# `x` is `[batch, num_heads, length, head_dim]`, queries or keys. `cos` and `sin` are `[batch, 1, length, head_dim]`, as
# your `RotaryEmbedding` makes them, with each angle at both partners' places. The result has the shape and the type of
# `x`: a model in bfloat16 stays in bfloat16.
#
# With one pair, `[1, 0]` turned by a quarter (cosine 0, sine 1) is `[0, 1]`.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Turning (a, b) by an angle gives (a cos - b sin, b cos + a sin). Write the whole vector as two terms: one with
# cos, one with sin.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Number i and number i + head_dim / 2 are a pair. So cut the vector in two halves, a and b. The term with sin
# needs -b where a stands, and a where b stands.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# a, b = x.chunk(2, dim=-1)
# turned = torch.cat([-b, a], dim=-1)
# return x * cos + turned * sin, in x's dtype
# ```
#
# </details>


# %%
def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (x[i], x[i + head_dim / 2]) by its position's angle. [B, num_heads, T, head_dim], same out."""
    raise NotImplementedError("rope.apply")


# %%
check("rope.apply", apply_rope)

# %% [markdown] tags=["stamped"]
# ## Exercise 4.5 · Who may look at whom
# `decoder.masks` · difficulty ●●● · about 15 minutes
#
# **Why it matters.** One future token that can be seen, and the model learns to copy it: the loss is wonderful,
# the model useless. One padding token that can be seen, and an answer depends on what else was in the batch.

# %% [markdown] tags=["exercise"]
# Who stands where, and who may look at whom? `attention_mask` is `[batch, length]`, nonzero where a token is real and 0
# where it is padding. It may also be None: then all tokens are real. From it make two things:
#
# - `mask`, bool, `[batch, query, key]`, True where a query may look. A query sees itself and what stands before it, and
#   only real tokens. A padding token's row follows the same rule: at the end of a row it sees the real tokens before
#   it. One exception: every token may look at itself, padding too, so that no row is empty.
# - `positions`, whole numbers, `[batch, length]`. A real token's position is the number of real tokens before it. What
#   you give a padding token does not matter.
#
# One row `[0, 1, 1, 1]`, padded in front, gives the positions `[_, 0, 1, 2]` and the mask
#
# ```
# key:       0  1  2  3
# query 0    T  .  .  .      padding: itself, by exception
# query 1    .  T  .  .
# query 2    .  T  T  .
# query 3    .  T  T  T
# ```
#
# The function has other arguments that later chapters need: `document_ids` for packed rows (chapter 07) and `start` for
# generation with a cache (chapter 09). The lines for them are given, and so is the last line, which adds an axis of
# size 1 for the heads. You write what stands round them. Before the lines for `document_ids`: `mask`, without the
# exception. Behind them: the exception, and `positions`, counted from `mask`; their order does not matter. Without an
# `attention_mask` the batch axis of both has size 1.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Two conditions, both of which must hold: the key is not later than the query, and the key is a real token.
# Compare index with itself, as a column and as a row.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# mask[b, query, key] = (query >= key) and the key is real, as [1, T, T] and [B, 1, T]. A query sees as many
# tokens as are real up to itself: that count, less 1, is its position. Behind the given lines, let each token
# see itself, padding too.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# mask = (index[:, None] >= index[None, :])[None]
# if attention_mask is not None: mask = mask & attention_mask.bool()[:, None, :]
# positions = sum of mask over the keys - 1
# mask = mask | (index[:, None] == index[None, :])
# ```
#
# </details>


# %%
def attention_layout(
    attention_mask: Tensor | None,
    document_ids: Tensor | None,
    length: int,
    device: torch.device,
    start: int = 0,
) -> tuple[Tensor, Tensor]:
    """positions [B or 1, T] and the mask, bool [B or 1, 1, T, length], of the last T = length - start tokens."""
    index = torch.arange(length, device=device)
    raise NotImplementedError("decoder.masks")
    if document_ids is not None:  # packed rows: a token sees only its own document, and -1 is padding
        same = document_ids[:, :, None] == document_ids[:, None, :]
        mask = mask & same & (document_ids >= 0)[:, None, :]
    raise NotImplementedError("decoder.masks")
    return positions[:, start:], mask[:, None, start:]


# %%
check("decoder.masks", attention_layout)

# %% [markdown] tags=["stamped"]
# ## Exercise 4.6 · Heads that share
# `decoder.gqa` · difficulty ●●● · about 20 minutes
#
# **Why it matters.** The only place of the decoder where tokens meet. Sharing keys and values makes what is
# kept for each token three times smaller in SmolLM2-135M; sharing them in the wrong order gives every head
# somebody else's.

# %% [markdown] tags=["exercise"]
# Attention whose query heads share. Four linear layers without bias: `q_proj` makes `num_heads` heads of `head_dim`
# numbers, `k_proj` and `v_proj` make `num_kv_heads`, `out_proj` goes from `dim` to `dim`. (`config.head_dim` is
# `hidden_dim / num_heads`.)
#
# In `forward`:
#
# 1. Project `x` and cut the results into heads: `[batch, heads, length, head_dim]`.
# 2. Turn queries and keys with `apply_rope(…, *rope)`. `rope` is the pair (cos, sin).
# 3. Given: `cache.update(k, v)` stores the new keys and values and returns those of all tokens so far. Chapter 09 opens
#    the cache; here you only have to leave the two lines where they are, and generation will work.
# 4. Share: with 4 query heads and 2 key/value heads, query heads 0 and 1 use key/value head 0, and 2 and 3 use 1.
# 5. Attend with `F.scaled_dot_product_attention`, which does the softmax and divides by $\sqrt{head\_dim}$ for you. Its
#    `attn_mask` is the mask, and its `is_causal` must be True when the mask is None, with one exception: a single query
#    (`length == 1`) is the newest token of all and may look at everything. Who passes None? The package's
#    `attention_layout`, where there is nothing to hide but the future; so do the check's examples.
# 6. Join the heads to `[batch, length, dim]` again, and `out_proj`.
#
# The cell below takes your `apply_rope` if it passes its check, and the package's otherwise.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# The order: project, cut into heads, turn queries and keys, (cache), share, attend, join the heads, project.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Cut: [B, T, heads * head_dim] -> [B, T, heads, head_dim] -> [B, heads, T, head_dim], and back the same way.
# Share: each key/value head serves num_heads / num_kv_heads query heads that *follow each other*: 0 0 1 1, not
# 0 1 0 1. A mask of None means causal, but a single new token may look at everything.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# q = self.q_proj(x).view(batch, length, -1, head_dim).transpose(1, 2)      # k and v alike; RoPE on q and k
# k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)                  # v alike
# x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and length > 1)
# return self.out_proj(x.transpose(1, 2).reshape(batch, length, dim))
# ```
#
# </details>

# %%
apply_rope = use("rope.apply", apply_rope)


# %%
class GroupedQueryAttention(nn.Module):
    """Causal attention in which groups of query heads share one key/value head. [B, T, dim] -> [B, T, dim]"""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        raise NotImplementedError("decoder.gqa")

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache=None) -> Tensor:
        """mask: bool [B, 1, T, keys], True where a query may look; None: causal, with nothing else to hide."""
        batch, length, dim = x.shape
        raise NotImplementedError("decoder.gqa")
        if cache is not None:  # generation: the keys and values of earlier tokens come back with the new ones
            k, v = cache.update(k, v)
        raise NotImplementedError("decoder.gqa")


# %%
check("decoder.gqa", GroupedQueryAttention)

# %% [markdown] tags=["stamped"]
# ## Exercise 4.7 · The block
# `decoder.block` · difficulty ●○○ · about 8 minutes
#
# **Why it matters.** SmolLM2-135M is thirty of these on top of each other. The two additions are the road on
# which the gradient reaches the first of them.

# %% [markdown] tags=["exercise"]
# One block. It has four parts, named `norm1`, `attn`, `norm2` and `mlp`: an `RMSNorm`, the attention, another `RMSNorm`
# and the MLP. An `RMSNorm` takes `config.hidden_dim` and `config.rms_norm_eps`, the others take the config.
#
# Two steps, each of which adds to `x`: attention, which reads `norm1` of `x`; then the MLP, which reads `norm2` of the
# new `x`. Attention is called with `(…, rope, mask, cache)`.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Two halves of the same kind: normalise, work, add back. In the first the work is attention, in the second the
# MLP.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Each half reads the normalised x and adds its result to the x that was not normalised. The second half works
# on what the first has made.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# x = x + self.attn(self.norm1(x), rope, mask, cache)
# return x + … the same with norm2 and mlp
# ```
#
# </details>

# %%
RMSNorm = use("decoder.rms_norm", RMSNorm)
SwiGLU = use("decoder.swiglu", SwiGLU)
GroupedQueryAttention = use("decoder.gqa", GroupedQueryAttention)


# %%
class DecoderBlock(nn.Module):
    """[B, T, dim] -> [B, T, dim]"""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        raise NotImplementedError("decoder.block")

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache=None) -> Tensor:
        raise NotImplementedError("decoder.block")


# %%
check("decoder.block", DecoderBlock)

# %% [markdown] tags=["stamped"]
# ## Exercise 4.8 · The decoder
# `decoder.language_model` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** With this, everything that stands behind the picture in a vision-language model is your
# own code.

# %% [markdown] tags=["exercise"]
# All of it. `__init__` makes five parts:
#
# - `token_embedding`, an `nn.Embedding` of `vocab_size` rows of `hidden_dim` numbers;
# - `rotary_embedding`, from `config.head_dim` and `config.rope_base`;
# - `blocks`, an `nn.ModuleList` of `num_blocks` blocks;
# - `norm`, an `RMSNorm` with the arguments of exercise 4.7;
# - `head`, a linear layer from `hidden_dim` to `vocab_size` without bias. With `config.tie_weights` its weight *is* the
#   embedding's weight: one parameter with two names.
#
# `forward` takes vectors and gives vectors, `[batch, length, dim]`; who calls it does the embedding before and the head
# after, since a picture's tokens have no id to look up. It runs `x` through the blocks and the last norm. Every block
# is called with `(x, rope, mask, its cache)`, where `rope` comes from the positions, and block `i`'s cache is
# `cache.blocks[i]`, or None without a cache.
#
# If `hidden_states` is a list, even an empty one, append to it the input of every block, and last the output.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# __init__ holds five things: embedding, angles, blocks, a last norm, a head. forward uses three of them: the
# embedding comes before it, the head after it.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Compute the angles once, from the positions, and hand them to every block with the mask and that block's part
# of the cache. Behind the last block comes the norm. Tying: the head's weight *is* the embedding's, one
# Parameter.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.num_blocks))
# if config.tie_weights: self.head.weight = self.token_embedding.weight
# in forward, for i, block in enumerate(self.blocks):
#     keep x in hidden_states, if there is such a list
#     x = block(x, rope, mask, cache.blocks[i] if cache is not None else None)
# then the norm, keep that too, return
# ```
#
# </details>

# %%
RotaryEmbedding = use("rope.angles", RotaryEmbedding)
attention_layout = use("decoder.masks", attention_layout)
DecoderBlock = use("decoder.block", DecoderBlock)


# %%
class LanguageModel(nn.Module):
    """Token vectors in, token vectors out: [B, T, dim] -> [B, T, dim]. `head` turns them into logits."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.config = config
        raise NotImplementedError("decoder.language_model")

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache=None,
        hidden_states: list[Tensor] | None = None,
    ) -> Tensor:
        if cache is None:
            positions, mask = attention_layout(attention_mask, document_ids, x.shape[1], x.device)
        else:  # generation: the positions go on behind the cached ones
            positions, mask = cache.layout(attention_mask, x.shape[1])
        raise NotImplementedError("decoder.language_model")


# %%
check("decoder.language_model", LanguageModel)
