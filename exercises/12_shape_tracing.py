# %% [markdown]
# # 12 Exercises: shape tracing
#
# Nine: read a trace by code, repair three modules that somebody left broken and a model from elsewhere, write shapes as
# formulas, measure where the FLOPs go, draw where a word looks, and test a counter of FLOPs.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [the chapter](../chapters/12_shape_tracing.ipynb) ·
# [the solutions](../solutions/12_shape_tracing.ipynb) ·
# [notation and terms](../chapters/notation.md)
#
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/exercises/12_shape_tracing.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/exercises/12_shape_tracing.ipynb

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

from nanovlm import VisionLanguageModel
from nanovlm.config import LMConfig, ProjectorConfig, ViTConfig, VLMConfig
from nanovlm.course import check
from nanovlm.models.modality_projector import pixel_shuffle
from nanovlm.trace import Trace, trace

# %% [markdown] tags=["stamped"]
# ## Exercise 12.1 · Ask a trace
# `trace.read_trace` · difficulty ●○○ · about 8 minutes
#
# **Why it matters.** A trace is no picture but an object: what you can read off it with your eyes, a test can
# read off it every night.

# %% [markdown] tags=["exercise"]
# **Measure it.** You get the `Trace` of a small model that read one picture and a text; the picture's tokens stand in
# front. Return five numbers, read off the trace (not off a config, which you do not get):
#
# - `patches`: how many vectors the vision encoder hands over;
# - `image_tokens`: how many of them are left behind the projector;
# - `sequence`: how many positions the decoder reads;
# - `decoder_blocks`: how many blocks the decoder has;
# - `kv_heads`: how many key/value heads its attention has.
#
# What you need: `t["module.path"]` is a row (the first step of that name); `t.find("name")` is the list of all rows
# with that function name, module path or class name. A row has `.shape` (of what came out) and `.inputs` (of what went
# in: a list, each with a `.shape`). `scaled_dot_product_attention` gets `[B, heads, length, head_dim]` three times:
# queries, keys, values. The next cell prints such a trace, with all names. For it the answer is 16, 4, 9, 3 and 2.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Each of the five is the size of one dim of one tensor, or a count of rows. Which step's tensor? Look at the
# printed tree.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Module paths: t["vision_encoder"], t["projector"], t["decoder"]. What goes *into* a step is row.inputs. For
# the blocks, find them by their class; for the heads, take attention inside the decoder, not the encoder's.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# t["vision_encoder"].shape[1], and the projector in the same way
# t["decoder"].inputs[0].shape[1]
# len(t.find("DecoderBlock"))
# q, k, v = t.find("scaled_dot_product_attention")[-1].inputs      # [B, heads, length, head_dim]
# ```
#
# </details>

# %%
vision = ViTConfig(
    hidden_dim=12, inter_dim=24, num_blocks=2, num_heads=2, image_size=16, patch_size=4
)
language = LMConfig(
    hidden_dim=24, inter_dim=40, num_blocks=3, num_heads=4, num_kv_heads=2, vocab_size=23
)
projector = ProjectorConfig(vision_dim=12, language_dim=24, pixel_shuffle_factor=2)
example_model = VisionLanguageModel(VLMConfig(vision, projector, language))
example = trace(example_model, torch.zeros(1, 5, dtype=torch.long), torch.zeros(1, 3, 16, 16))
print(example)


# %%
def read_trace(t: Trace) -> dict[str, int]:
    """patches, image_tokens, sequence, decoder_blocks, kv_heads."""
    raise NotImplementedError("trace.read_trace")


# %%
check("trace.read_trace", read_trace)

# %% [markdown] tags=["stamped"]
# ## Exercise 12.2 · Bug 1: the projector
# `trace.bug_projector` · difficulty ●○○ · about 6 minutes
#
# **Why it matters.** torch names two flattened matrices that nobody wrote. With the input's real shape and the
# layer's sizes side by side, the bug is arithmetic.

# %% [markdown] tags=["exercise"]
# **Mend it.** Somebody wrote this projector: a norm, pixel shuffle, one linear layer. It fails. The cell traces it and
# prints the explained error. Read the message first, from its first line down.
#
# Then write `Projector`: copy the two bodies and mend the bug. Keep the names `norm` and `proj`. Change only what is
# wrong: the steps are meant as they are.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# The explained message has two numbers in its first line. Where does each of them come from?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# How wide is a token after pixel shuffle, by vision_dim and factor? How wide does __init__ think it is?
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# A tile has factor rows of factor patches.
# self.proj = nn.Linear(vision_dim * ???, language_dim)
# ```
#
# </details>


# %%
class BrokenProjector(nn.Module):
    """[B, num_patches, vision_dim] -> [B, num_patches / factor ** 2, language_dim]"""

    def __init__(self, vision_dim: int, language_dim: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.norm = nn.LayerNorm(vision_dim)
        self.proj = nn.Linear(vision_dim * factor, language_dim)

    def forward(self, x: Tensor) -> Tensor:
        tokens = pixel_shuffle(self.norm(x), self.factor)
        return self.proj(tokens)


try:
    trace(BrokenProjector(vision_dim=8, language_dim=6, factor=2), torch.randn(1, 16, 8))
except RuntimeError as error:
    print(error)


# %%
class Projector(nn.Module):
    """[B, num_patches, vision_dim] -> [B, num_patches / factor ** 2, language_dim]"""

    def __init__(self, vision_dim: int, language_dim: int, factor: int) -> None:
        super().__init__()
        raise NotImplementedError("trace.bug_projector")

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError("trace.bug_projector")


# %%
check("trace.bug_projector", Projector)

# %% [markdown] tags=["stamped"]
# ## Exercise 12.3 · Bug 2: shared heads
# `trace.bug_heads` · difficulty ●●○ · about 8 minutes
#
# **Why it matters.** Grouped-query attention is in nearly every decoder of today. Several repairs make the
# error go away, with the same shapes: only one of them gives each head the key of its own group.

# %% [markdown] tags=["exercise"]
# **Mend it.** In this attention groups of query heads share a key/value head: with four query heads and two key/value
# heads, query heads 0 and 1 use key/value head 0, query heads 2 and 3 use head 1. (No mask, so that the example stays
# short.) It fails. The message says what to do with the operand that failed; ask yourself what fails next.
#
# Write `SharedHeads`: copy the bodies and mend the bug. Keep the names `q`, `k` and `v`.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Which dim of the two operands clashes, and what does it count?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Query heads 0 and 1 share key head 0, query heads 2 and 3 share key head 1. So each key head is needed twice,
# and the copies must stand next to each other. The values need the same.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# group = self.num_heads // self.num_kv_heads
# k = k.repeat_???(group, dim=1)      # 0 0 1 1, not 0 1 0 1
# v = the same
# ```
#
# </details>


# %%
class BrokenSharedHeads(nn.Module):
    """[B, T, dim] -> [B, T, dim]"""

    def __init__(self, dim: int, num_heads: int, num_kv_heads: int) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, dim // num_heads
        self.q = nn.Linear(dim, dim, bias=False)
        self.k = nn.Linear(dim, num_kv_heads * self.head_dim, bias=False)
        self.v = nn.Linear(dim, num_kv_heads * self.head_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, dim = x.shape
        q = self.q(x).view(batch, length, self.num_heads, self.head_dim).transpose(1, 2)
        k = self.k(x).view(batch, length, self.num_kv_heads, self.head_dim).transpose(1, 2)
        v = self.v(x).view(batch, length, self.num_kv_heads, self.head_dim).transpose(1, 2)
        scores = q @ k.transpose(-2, -1) / self.head_dim**0.5
        mixed = scores.softmax(dim=-1) @ v
        return mixed.transpose(1, 2).reshape(batch, length, dim)


try:
    trace(BrokenSharedHeads(dim=16, num_heads=4, num_kv_heads=2), torch.randn(1, 5, 16))
except RuntimeError as error:
    print(error)


# %%
class SharedHeads(nn.Module):
    """[B, T, dim] -> [B, T, dim]"""

    def __init__(self, dim: int, num_heads: int, num_kv_heads: int) -> None:
        super().__init__()
        raise NotImplementedError("trace.bug_heads")

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError("trace.bug_heads")


# %%
check("trace.bug_heads", SharedHeads)

# %% [markdown] tags=["stamped"]
# ## Exercise 12.4 · Bug 3: positions
# `trace.bug_positions` · difficulty ●●○ · about 8 minutes
#
# **Why it matters.** A picture in front of the text moves every word. Whoever counts the words alone puts them
# in the wrong place, and there are four ways to make that fit.

# %% [markdown] tags=["exercise"]
# **Mend it.** Some decoders add a learned position to each token instead of turning it (GPT-2 did). This module makes
# such a decoder's input: the image tokens, then the words, and each gets its position, counted from 0 through the whole
# sequence. So with two image tokens the first word stands at position 2. It fails.
#
# Write `InputSequence`: copy the bodies and mend the bug. Keep the names `tokens` and `positions`.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# The message names two lengths on one dim. One of them is the text. What is the other?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# After the picture has been put in front, the line is longer than the text. Count positions of the whole line,
# from 0 at the first image token.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# x = torch.cat([image_tokens, self.tokens(ids)], dim=1)
# positions = torch.arange(the length of x)
# return x + self.positions(positions)
# ```
#
# </details>


# %%
class BrokenSequence(nn.Module):
    """image_tokens [B, N, dim], ids [B, T] -> [B, N + T, dim]"""

    def __init__(self, vocab_size: int, dim: int, max_positions: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, dim)
        self.positions = nn.Embedding(max_positions, dim)

    def forward(self, image_tokens: Tensor, ids: Tensor) -> Tensor:
        positions = self.positions(torch.arange(ids.shape[1]))
        x = torch.cat([image_tokens, self.tokens(ids)], dim=1)
        return x + positions


try:
    trace(
        BrokenSequence(vocab_size=10, dim=8, max_positions=32),
        torch.randn(1, 4, 8),
        torch.tensor([[3, 1, 4]]),
    )
except RuntimeError as error:
    print(error)


# %%
class InputSequence(nn.Module):
    """image_tokens [B, N, dim], ids [B, T] -> [B, N + T, dim]"""

    def __init__(self, vocab_size: int, dim: int, max_positions: int) -> None:
        super().__init__()
        raise NotImplementedError("trace.bug_positions")

    def forward(self, image_tokens: Tensor, ids: Tensor) -> Tensor:
        raise NotImplementedError("trace.bug_positions")


# %%
check("trace.bug_positions", InputSequence)

# %% [markdown] tags=["stamped"]
# ## Exercise 12.5 · Mend it: three bugs in a model from elsewhere
# `trace.elsewhere` · difficulty ●●● · about 15 minutes
#
# **Why it matters.** You will meet more models of others than of your own. One error hides the next here, and
# one of the three raises no error at all if you happen to try it with a batch of one.

# %% [markdown] tags=["exercise"]
# **Mend it.** This captioner is written as in somebody else's repository: other names, a convolution in place of a
# vision transformer, cross-attention in place of a joint sequence. It has three bugs, and the first error hides the
# others. The cell traces it and prints the explained error.
#
# Write `Captioner`: copy the bodies and mend all three bugs. Keep the names of layers and methods, and trace again
# after each repair. The layers' sizes are right; what is wrong is how they are called.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Mend one error, trace again, read the next one. Write down what each dim counts: batch, places, dim, words.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# A convolution gives [B, dim, rows, columns], and attention wants places before dim. nn.MultiheadAttention
# takes the batch from dim 1 unless it is told otherwise. F.cross_entropy wants the classes on dim 1, or all
# positions in one dim.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# memory: self.stem(pixels).flatten(2).…
# cross: nn.MultiheadAttention(dim, heads, …)
# loss: F.cross_entropy(logits.…, targets.…)
# ```
#
# </details>


# %%
class BrokenCaptioner(nn.Module):
    """Pictures [B, 3, H, W] and ids [B, T] -> the loss"""

    def __init__(self, dim: int, heads: int, vocab: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, dim, kernel_size=4, stride=4)
        self.embed = nn.Embedding(vocab, dim)
        self.cross = nn.MultiheadAttention(dim, heads)
        self.head = nn.Linear(dim, vocab)

    def memory(self, pixels: Tensor) -> Tensor:
        return self.stem(pixels).flatten(2)

    def logits(self, memory: Tensor, ids: Tensor) -> Tensor:
        words = self.embed(ids)
        return self.head(words + self.cross(words, memory, memory, need_weights=False)[0])

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets)

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        return self.loss(self.logits(self.memory(pixels), ids[:, :-1]), ids[:, 1:])


try:
    trace(
        BrokenCaptioner(dim=10, heads=2, vocab=20),
        torch.randn(3, 3, 8, 12),
        torch.randint(20, (3, 5)),
    )
except Exception as error:
    print(error)


# %%
class Captioner(nn.Module):
    """Pictures [B, 3, H, W] and ids [B, T] -> the loss"""

    def __init__(self, dim: int, heads: int, vocab: int) -> None:
        super().__init__()
        raise NotImplementedError("trace.elsewhere")

    def memory(self, pixels: Tensor) -> Tensor:
        raise NotImplementedError("trace.elsewhere")

    def logits(self, memory: Tensor, ids: Tensor) -> Tensor:
        raise NotImplementedError("trace.elsewhere")

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        raise NotImplementedError("trace.elsewhere")

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        raise NotImplementedError("trace.elsewhere")


# %%
check("trace.elsewhere", Captioner)

# %% [markdown] tags=["stamped"]
# ## Exercise 12.6 · Shapes as formulas
# `trace.symbolic_shapes` · difficulty ●●○ · about 10 minutes
#
# **Why it matters.** A claim with B and T in it holds for every batch and question, and t.expect checks it
# against any trace. Numbers that you copied from one run hold for that run.

# %% [markdown] tags=["exercise"]
# Write down which shape each of five steps has, as a formula that holds for every batch of `B` and every text of `T`
# tokens. The image tokens stand in front of the text. Return a dict with these keys:
#
# `vision_encoder`, `pixel_shuffle`, `projector.proj`, `cat` (picture and text joined), `decoder.head`.
#
# A claim is a string with one word for each dim. Sizes that follow from the config are numbers; the batch is `B`, the
# text's length is `T`, and a formula has no spaces: `"B 7+T 12"`, without brackets and commas. `t.expect` takes such
# strings. You need `config.vision.num_patches`, `config.vision.hidden_dim`, `config.projector.pixel_shuffle_factor`,
# `config.language.hidden_dim` and `config.language.vocab_size`.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# B comes in with the input and stays. T is the text's length: at which step does it first meet the picture?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Patches: config.vision.num_patches. Tokens: r * r times fewer, r * r times wider. The joined sequence: image
# tokens and text. The head makes a number for each word of the vocabulary.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# tokens = config.vision.num_patches // r**2
# "pixel_shuffle": f"B {tokens} {… * r**2}"
# "cat": f"B {tokens}+T {config.language.hidden_dim}"
# ```
#
# </details>


# %%
def shape_claims(config: VLMConfig) -> dict[str, str]:
    """Step -> shape, such as "B 196 768"."""
    raise NotImplementedError("trace.symbolic_shapes")


# %%
check("trace.symbolic_shapes", shape_claims)

# %% [markdown] tags=["stamped"]
# ## Exercise 12.7 · Measure it: where do the FLOPs go?
# `trace.flops` · difficulty ●●● · about 15 minutes
#
# **Why it matters.** Before you make a model faster you must know which part is slow. The share of each part
# follows from the config alone, before a single weight exists.

# %% [markdown] tags=["exercise"]
# **Measure it.** Which share of the work does each part do? Count the FLOPs of one forward pass by formula, for one
# picture with `num_text_tokens` behind it, and return the shares of `vision_encoder`, `projector`, `decoder` (its
# blocks) and `head`, which sum to 1. Every position of the sequence goes through the head. The last cell measures the
# same shares with the tracer on the model of exercise 12.1, so that you can see where your formula and the measurement
# part.
#
# Count as the tracer does: products only, a multiplication and an addition as two.
#
# - A linear layer from `a` to `b` on `n` tokens: `2 * n * a * b`.
# - Attention of `n` tokens of width `d`: `4 * n * n * d`, whether or not a mask hides half of it.
# - The patch convolution is a linear layer on the `3 * patch_size**2` pixels of each patch.
# - An encoder block has four matrices `dim` x `dim` (q, k, v, out) and two for the MLP.
# - A decoder block has q and out, the narrower k and v (`num_kv_heads * head_dim`), and three for the MLP.
#
# Names: `config.vision` has `num_patches`, `hidden_dim`, `inter_dim`, `num_blocks`, `patch_size`; `config.projector`
# has `pixel_shuffle_factor`; `config.language` has `hidden_dim`, `inter_dim`, `num_blocks`, `num_kv_heads`,
# `head_dim`, `vocab_size`.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Go through a trace's table and look for rows with FLOPs: only products have any. A linear layer from a to b,
# on n tokens, needs 2 * n * a * b.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Encoder: one convolution (2 * patches * dim * 3 * patch_size²), and per block four dim x dim matrices, two of
# the MLP, and attention. Decoder: q and out; k and v, which are narrower; three of the MLP; attention. Every
# token of the sequence goes through the decoder and through the head. Attention of n tokens of width d: 4 * n *
# n * d.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# sequence = n // r**2 + num_text_tokens
# vision = 2*n*d*3*patch_size**2 + num_blocks * (2*n*(4*d*d + 2*d*inter_dim) + 4*n*n*d)
# projector = 2 * tokens * (d * r**2) * width
# weights = …                       # of one decoder block: q, out, k, v, MLP
# decoder = num_blocks * (2*sequence*weights + 4*sequence*sequence*width)
# head = 2 * sequence * width * vocab_size
# ```
#
# </details>


# %%
def flops_shares(config: VLMConfig, num_text_tokens: int) -> dict[str, float]:
    """Part -> share of the FLOPs, from 0 to 1."""
    raise NotImplementedError("trace.flops")


# %%
check("trace.flops", flops_shares)

# %%
measured = {
    "vision_encoder": example["vision_encoder"].flops,
    "projector": example["projector"].flops,
    "decoder": example["decoder"].flops - example["decoder.head"].flops,
    "head": example["decoder.head"].flops,
}
for part, flops in measured.items():
    print(f"{part:15} {flops:9,} FLOPs, {flops / example.flops:6.1%} of the work")

# %% [markdown] tags=["stamped"]
# ## Exercise 12.8 · Where does this word look?
# `trace.word_attention` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** Many a glowing patch in a paper or a demo is drawn by such a function. It can be wrong in
# several ways and glow just as nicely.

# %% [markdown] tags=["exercise"]
# `weights` is `[heads, T, S]`, what one layer's attention did: the first position is who looks (a row, which sums to
# 1), the second whom it looks at. Among the `S` positions the image tokens stand together, from `first_image_token`.
#
# Draw where position `word` looks, as a map of patches `[grid, grid]`: the mean over heads, and each image token's
# weight shared evenly by its `factor` x `factor` patches. Do not rescale: the map sums to what the word spends on the
# picture. With a 4 x 4 grid, `factor = 2` and the four tokens' weights `0.4, 0, 0.2, 0.4`:
#
# ```
# 0.10 0.10 0.00 0.00
# 0.10 0.10 0.00 0.00
# 0.05 0.05 0.10 0.10
# 0.05 0.05 0.10 0.10
# ```

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# One row of the weights belongs to your word: who looks stands first, who is looked at stands last.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Mean over heads. The word's row. Of it, the (grid / r)² columns of the image tokens. As a grid of tokens. Then
# each token becomes an r x r tile of patches that share its weight.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# side = grid // factor
# tokens = weights.mean(0)[word, first : first + side * side].reshape(side, side)
# patches = each row and each column of tokens, factor times in a row (repeat_interleave, twice)
# return patches / factor**2
# ```
#
# </details>


# %%
def word_attention(
    weights: Tensor, word: int, first_image_token: int, grid: int, factor: int
) -> Tensor:
    """[heads, T, S] -> [grid, grid]"""
    raise NotImplementedError("trace.word_attention")


# %%
check("trace.word_attention", word_attention)

# %% [markdown] tags=["stamped"]
# ## Exercise 12.9 · Write the test: is this FLOP counter right?
# `trace.test_counter` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** Papers and libraries count FLOPs in different ways, and a factor of two between them is
# common. Before you compare two numbers, test whether they count the same thing.

# %% [markdown] tags=["exercise"]
# **Write the test.** Somebody hands you a function `count(module, x)`, which is said to return the FLOPs of `module(x)`
# as this course counts them: products only (linear layers, convolutions, matrix products), a multiplication and an
# addition as two. Your test receives such a function and compares it by `assert` with numbers that you have worked out
# by hand. It returns nothing.
#
# The check runs your test on a counter that is right, where it has to pass, and on nine that are wrong, where it has to
# fail. Each of the nine is right for *some* module, so think about what a module can do: a layer may run twice or
# never, be inside of another one, have a bias or a stride, and two tensors can be multiplied without a layer. Modules
# of your own are best defined inside the test.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Which numbers can you work out by hand? A small layer is enough, if its sizes are all different.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# One linear layer on several tokens of several samples. A module of your own with a layer that runs twice
# inside an nn.Sequential, a layer that never runs, and x @ x.mT. A convolution with a stride.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# class Sample(nn.Module): inner = nn.Sequential(nn.Linear(3, 3), nn.ReLU()), and unused = nn.Linear(3, 3)
#     forward: x = self.inner(self.inner(x)), then return x @ x.mT
# assert count(Sample(), torch.zeros(2, 7, 3)) == …
# assert count(nn.Conv2d(3, 4, 2, stride=2), torch.zeros(1, 3, 4, 6)) == …
# ```
#
# </details>


# %%
def test_counter(count) -> None:
    """Passes where count(module, x) counts the products of module(x), and fails elsewhere."""

    raise NotImplementedError("trace.test_counter")


# %%
check("trace.test_counter", test_counter)
