# %% [markdown]
# # 04 The decoder
#
# You build the language model that reads the picture's tokens and writes the answer, part by part, until it gives the
# same logits as transformers' Llama. Afterwards you can (1) write RMSNorm, rotary positions, masks and grouped-query
# attention, (2) say from a symptom which of them is broken, and (3) test any decoder for leaks. You need chapter 02.
# About an hour; the code runs in a minute.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [← 03 Pixel shuffle and the projector](03_pixel_shuffle_and_projector.ipynb) ·
# [05 Text, tokens and labels →](05_text_tokens.ipynb) ·
# [exercises](../exercises/04_rope_decoder.ipynb) ·
# [notation and terms](notation.md)
#
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/chapters/04_rope_decoder.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/chapters/04_rope_decoder.ipynb

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
from unittest import mock

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from nanovlm import VisionLanguageModel
from nanovlm.assets import asset_path
from nanovlm.config import LMConfig
from nanovlm.course import budget, expect_shape, lever, quiz, use
from nanovlm.inference.prompts import prepare_prompts

# %% [markdown]
# ## A decoder predicts the next token, after every token
#
# A language model answers one question: given a sequence of tokens, which token comes next? A token is a word or a piece
# of one, and it has a number, its id. For each token of the vocabulary the model returns one number, a **logit**, and a
# softmax turns the logits into probabilities.

# %% [markdown]
# To write an answer, the model is asked again and again: the likeliest token is appended, and the longer sequence goes
# in once more. Here the pocket model of chapter 00 does that. (Its prompt also holds the picture's 16 tokens, which are
# the subject of chapter 06.)

# %%
pocket = VisionLanguageModel.from_pretrained(asset_path("pocket")).eval()
prompt = prepare_prompts(
    pocket, ["Where is the red star?"], [Image.open(asset_path("images/shapes.png"))]
)

# %% tags=["nbval-check-output"]
ids = prompt["input_ids"]  # [1, T]
for _ in range(3):
    with torch.no_grad():
        logits = pocket(ids, prompt["images"]).logits  # [1, T, vocab_size]
    probabilities = logits[0, -1].softmax(dim=-1)
    best = probabilities.argmax()
    written = pocket.tokenizer.decode([int(best)])
    print(f"{ids.shape[1]} tokens -> {written!r}, probability {probabilities[best]:.0%}")
    ids = torch.cat([ids, best[None, None]], dim=1)

# %% [markdown]
# The last answer looks empty, because it is the token that ends an answer. The logits have the shape
# `[1, T, vocab_size]`, so there is a prediction after *every* token and not only after the last one. In training, this
# turns a text of a thousand tokens into a thousand questions with known answers.

# %% [markdown]
# Two requirements follow, and they shape the whole decoder. A prediction must not depend on later tokens, because one of
# them is its answer. And the order of the tokens must count. Does the attention of chapter 02 meet the second one?

# %%
quiz("ch04.order")

# %%
torch.manual_seed(0)
tokens = torch.randn(3, 4)  # A, B and C: three vectors of four numbers


def plain_attention(x: Tensor) -> Tensor:
    """Queries, keys and values are the vectors themselves. [T, dim] -> [T, dim]"""
    return (x @ x.T / x.shape[1] ** 0.5).softmax(dim=-1) @ x


swapped = plain_attention(tokens[[1, 0, 2]])  # B, A, C
unchanged = torch.allclose(plain_attention(tokens)[2], swapped[2])
print("C's output is the same in both orders:", unchanged)

# %% [markdown]
# It does not. So a decoder needs two additions, the *mask* and the *positions*, which fill most of this chapter. We begin
# with a simpler part that comes before both.

# %% [markdown]
# ## RMSNorm keeps the vectors at one size
#
# Each block of a decoder *adds* its result to the vectors, so the vectors grow from block to block. The next cell
# measures by how much. The size here is the **root mean square**: the square root of the mean of the squared numbers.

# %%
with torch.no_grad():
    states = pocket(**prompt, output_hidden_states=True).hidden_states  # five of [1, T, dim]
sizes = [x.pow(2).mean(dim=-1).sqrt()[0] for x in states]  # five of [T]
of_image = prompt["input_ids"][0] == pocket.config.image_token_id  # [T]
for i, size in enumerate(sizes):
    text, image = size[~of_image], size[of_image]
    name = f"into block {i}" if i < 4 else "after the norm"
    print(
        f"{name:15} text {text.min():5.2f} to {text.max():5.2f}, picture {image.min():5.2f} to {image.max():5.2f}"
    )

# %% tags=["claim"]
growth = sizes[3] / sizes[0]
assert sizes[0][of_image].min() > 2 * sizes[0][~of_image].max()
assert (growth > 1).float().mean() > 0.9 and growth[~of_image].max() > 5

# %% [markdown]
# The vectors of the text start small, those of the picture start several times as large, and both grow. A linear layer
# that was trained on numbers of one size does not work on numbers ten times as large, so each half of a block first
# brings its input to size 1. (The last row is below 1 because the norm also multiplies by weights, which are learned.)

# %% [markdown]
# The encoder used LayerNorm for that, which subtracts the mean, divides by the standard deviation, multiplies by a weight
# and adds a bias. Llama's **RMSNorm** only divides by the root mean square and multiplies by a weight ([Zhang and Sennrich
# 2019](https://arxiv.org/abs/1910.07467)). Predict what follows from that:

# %%
quiz("ch04.norm")

# %% tags=["nbval-check-output"]
x = torch.tensor([10.0, 10.0, 10.0, 10.0])
print("LayerNorm:", nn.LayerNorm(4)(x).tolist())
print("RMSNorm:  ", [round(v, 3) for v in (x / x.pow(2).mean().sqrt()).tolist()])

# %% [markdown] tags=["stamped"]
# **The next cell is folded, because it answers this exercise:** [exercise 4.1, Bring every vector to one
# size](../exercises/04_rope_decoder.ipynb). Write yours first, or unfold it.


# %% tags=["package:nanovlm.models.language_model.RMSNorm", "answer:decoder.rms_norm"]
class RMSNorm(nn.Module):
    """Scale each vector to root mean square 1, then by a learned weight. [..., dim] -> [..., dim]"""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


# %%
RMSNorm = use("decoder.rms_norm", RMSNorm)

# %% [markdown]
# The small number `eps` is added under the root, so that a vector of zeros is not divided by 0.
#
# ### The root is computed in float32, because half precision cannot hold the squares
#
# Large models run in 16 bits. A float16 ends at 65,504, and in trained models single numbers of these vectors reach the
# hundreds and more ([Sun et al. 2024](https://arxiv.org/abs/2402.17762)). RMSNorm squares them:

# %% tags=["nbval-check-output"]
x = torch.tensor([300.0, -300.0, 300.0, 300.0], dtype=torch.float16)
print("squares in float16:   ", x.pow(2).tolist())
print("normalised in float16:", (x / (x.pow(2).mean() + 1e-5).sqrt()).tolist())
print("normalised in float32:", RMSNorm(4, eps=1e-5).half()(x).tolist())

# %% [markdown]
# The square of 300 is infinite in float16, and a number divided by infinity is 0. The token is erased without any error.
# So the norm computes in float32 and returns the dtype that came in.

# %% [markdown]
# ### What breaks: no norm, and a norm that subtracts the mean
#
# Which of the two does more harm? Guess, and then test it on the pocket model, with pictures that training did not show.
# `mock.patch.object(module, name, other)` puts `other` in the place of `name` until the `with` block ends.

# %%
from nanovlm.data.thimble import Thimble
from nanovlm.evaluation.scores import answer_all, questions_of
from nanovlm.models import language_model

shapes = Thimble("shapes", "test")
pictures = [shapes[i] for i in range(budget().pick(ci=10, laptop=25))]
questions = questions_of(pictures)


def score(what: str) -> float:
    """The share of right answers, printed with the first three."""
    answers = answer_all(pocket, questions)
    right = sum(a == q.answer for a, q in zip(answers, questions, strict=True)) / len(answers)
    print(f"{what:34}{right:5.0%} right of {len(answers)}, for example {answers[:3]}")
    return right


as_shipped = score("the pocket model")


# %%
def only_the_weight(self: nn.Module, x: Tensor) -> Tensor:
    return x * self.weight


def without_the_mean(self: nn.Module, x: Tensor) -> Tensor:
    x = x - x.mean(dim=-1, keepdim=True)
    return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


with mock.patch.object(language_model.RMSNorm, "forward", only_the_weight):
    no_norm = score("no norm")
with mock.patch.object(language_model.RMSNorm, "forward", without_the_mean):
    no_mean = score("the mean subtracted, as LayerNorm")

# %% tags=["claim"]
assert as_shipped > 0.9 and no_norm < 0.1 and no_mean > 0.9

# %% [markdown]
# Without the norm the model answers nothing. Subtracting the mean, which the model was *not* trained with, changes next
# to nothing. The reason is in the vectors: compare their mean with their size.

# %%
shares = torch.cat(
    [(x.mean(dim=-1).abs() / x.pow(2).mean(dim=-1).sqrt()).flatten() for x in states[:4]]
)
print(f"the mean is {shares.mean():.0%} of the size on average, and {shares.max():.0%} at most")

# %% [markdown]
# There is little to subtract. This agrees with the claim of the paper that the scaling helps and the centring is not
# needed.

# %% [markdown]
# ## RoPE turns a position into an angle
#
# Chapter 01 added a learned vector to each patch, one for each place in the picture. A decoder could do the same. In a
# text, however, it matters little that a word is the 5th or the 105th, and it matters much which word is *two tokens
# before it*.

# %% [markdown]
# Attention compares queries with keys by products. **Rotary position embedding**, RoPE ([Su et al.
# 2021](https://arxiv.org/abs/2104.09864)), takes two numbers of a query or a key as an arrow in the plane, and turns it
# by its position: at position 7, by 7 radians. The product of two arrows depends on their lengths and on the angle
# between them.


# %%
def turn(pair: Tensor, angle: float) -> Tensor:
    """An arrow (a, b), turned counter-clockwise by an angle in radians."""
    (a, b), cos, sin = pair, math.cos(angle), math.sin(angle)
    return torch.stack([a * cos - b * sin, b * cos + a * sin])


q, k = torch.tensor([1.0, 0.5]), torch.tensor([0.8, -0.3])

# %% [markdown]
# Take a query at position 10 and a key at position 7, and the same two vectors at 110 and 107. Predict the products
# before you look at them:

# %%
quiz("ch04.relative")

# %% tags=["nbval-check-output"]
for q_position, k_position in ((10, 7), (110, 107), (3, 0), (10, 6)):
    product = turn(q, q_position) @ turn(k, k_position)
    print(
        f"query at {q_position:3}, key at {k_position:3}, distance {q_position - k_position}: {product:+.4f}"
    )

# %% [markdown]
# At distance 3 the product is the same everywhere, and at distance 4 it is another one. Turning both arrows further leaves
# the angle between them as it was, so the product depends on how far apart query and key are, and not on where they are.

# %% [markdown]
# ### Several pairs turn at different speeds
#
# One pair is not enough, because 6.28 radians are a full turn, so that distance 1 and distance 7.28 look alike. A clock
# solves this with several hands. RoPE cuts a vector of `head_dim` numbers into `head_dim / 2` pairs, number `i` with
# number `i + head_dim / 2`, and each pair turns more slowly than the one before:
#
# $$\text{pair } i \text{ turns by } \text{base}^{-2i / \text{head\_dim}} \text{ radians for each step}$$

# %% [markdown]
# Here are a query and a key of four pairs. Move **position**, and all arrows turn while no product changes. Then move
# **distance**.

# %%
from nanovlm.viz.decoder import rotation_figure

ones = [1.0] * 4 + [0.0] * 4


def dials(position, distance, base):
    return rotation_figure(ones, ones, [base ** (-2 * i / 8) for i in range(4)], position, distance)


lever(
    dials,
    position=(12, 64),
    distance=(0, 12),
    base=[10, 100, 10_000],
    start={"distance": 3, "base": 100},
)

# %% [markdown]
# The fast pair tells neighbours apart, and the slow pairs tell near from far. SmolLM2 has a base of 100,000 and 32
# pairs. How often does each of them turn round within the 8,192 positions that the model can read?

# %% tags=["nbval-check-output"]
smollm = LMConfig()  # the defaults are SmolLM2-135M's sizes
for pair in (0, 1, 15, 31):
    frequency = smollm.rope_base ** (-2 * pair / smollm.head_dim)
    turns = frequency * smollm.max_positions / (2 * math.pi)
    print(
        f"pair {pair:2}: {frequency:.6f} radians a step, {turns:8.3f} turns in {smollm.max_positions:,} positions"
    )

# %% [markdown]
# The slowest pairs do not complete one turn, so for them no two positions look alike.
#
# In code, a class computes the angles, and a function turns queries and keys by them. The angles are computed in float32,
# because bfloat16 rounds position 257 to 256. All heads turn alike, so the angles have an axis of size 1 for the heads.

# %% [markdown] tags=["stamped"]
# **The next cell is folded, because it answers this exercise:** [exercise 4.2, How far does each pair
# turn?](../exercises/04_rope_decoder.ipynb). Write yours first, or unfold it.


# %% tags=["package:nanovlm.models.language_model.RotaryEmbedding", "answer:rope.angles"]
class RotaryEmbedding(nn.Module):
    """The angles: positions [B, T] -> cos and sin, each [B, 1, T, head_dim]"""

    def __init__(self, head_dim: int, base: float) -> None:
        super().__init__()
        self.head_dim, self.base = head_dim, base

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        # float32 whatever the model's type: in bfloat16 position 257 would be position 256. No buffer, for the same
        # reason: model.to(bfloat16) would round it.
        pairs = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=positions.device)
        frequencies = self.base ** (-pairs / self.head_dim)  # [head_dim / 2]
        angles = positions[:, None, :, None].float() * frequencies  # [B, 1, T, head_dim / 2]
        angles = torch.cat([angles, angles], dim=-1)  # [B, 1, T, head_dim]
        return angles.cos(), angles.sin()


# %% [markdown] tags=["stamped"]
# **The next cell is folded, because it answers this exercise:** [exercise 4.3, Turn queries and
# keys](../exercises/04_rope_decoder.ipynb). Write yours first, or unfold it.


# %% tags=["package:nanovlm.models.language_model.apply_rope", "answer:rope.apply"]
def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (x[i], x[i + head_dim / 2]) by its position's angle. [B, num_heads, T, head_dim], same out."""
    first, second = x.chunk(2, dim=-1)
    rotated = torch.cat([-second, first], dim=-1)
    return x * cos.to(x.dtype) + rotated * sin.to(x.dtype)


# %%
RotaryEmbedding, apply_rope = use("rope.angles", RotaryEmbedding), use("rope.apply", apply_rope)

# %% tags=["nbval-check-output"]
cos, sin = RotaryEmbedding(head_dim=8, base=100.0)(torch.arange(16)[None])
print(expect_shape(cos, "batch 1 length 8"))

# %% [markdown]
# ### The product depends on the distance, and it decays for equal vectors only
#
# The map shows the product of one query and one key at all pairs of 16 positions. If only the distance counts, all
# products along a diagonal are equal. Change **positions** to see a map where they are not, and **vectors** for two random
# ones.

# %%
from nanovlm.viz.decoder import relative_figure

generator = torch.Generator().manual_seed(1)
learned = torch.randn(16, 8, generator=generator) / 2  # as if trained: one vector for each position
pairs = {
    "equal": (torch.tensor(ones), torch.tensor(ones)),
    "random": torch.randn(2, 8, generator=generator),
}


def products(positions, vectors):
    q, k = (v.expand(1, 1, 16, 8) for v in pairs[vectors])
    added = (q + learned) @ (k + learned).mT
    scores = apply_rope(q, cos, sin) @ apply_rope(k, cos, sin).mT if positions == "RoPE" else added
    return relative_figure(scores[0, 0].tolist(), f"{positions}: q · k at all pairs of positions")


lever(products, positions=["RoPE", "learned vectors, added"], vectors=["equal", "random"])

# %% [markdown]
# For an equal query and key, the product is highest at distance 0 and falls in waves. One often reads that RoPE therefore
# makes attention decay with distance. That holds for equal queries and keys only: with "random" the highest point is
# elsewhere. Over many random pairs the mean product is 0 at every distance ([Barbero et al.
# 2024](https://arxiv.org/abs/2410.06205)), so a trained head can put its peak where it needs it.

# %%
q, k = torch.randn(2, 2000, 1, 16, 8, generator=generator)
scores = apply_rope(q[:, :, :1], cos[:, :, :1], sin[:, :, :1]) @ apply_rope(k, cos, sin).mT
print(
    "mean product at distance 0, 1, 5 and 15:",
    [round(float(scores.mean((0, 1, 2))[d]), 2) for d in (0, 1, 5, 15)],
)

# %% [markdown]
# ### Two conventions for the pairs, and trained weights know only one
#
# Which two numbers are a pair? The paper and Meta's code ([model.py at
# 8fac8be](https://github.com/meta-llama/llama/blob/8fac8befd776bc03242fe7bc2236cdb41b6c609c/llama/model.py)) pair
# *neighbours*, 0 with 1 and 2 with 3. transformers pairs *halves*, number i with number i + head_dim / 2, and so do
# nanoVLM and this course. Both are right for a model that is trained with them. With the other one, no shape changes and
# nothing raises an error:


# %%
def apply_rope_to_neighbours(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    cos, sin = (
        t[..., :half].repeat_interleave(2, dim=-1) for t in (cos, sin)
    )  # a b a b -> a a b b
    return x * cos + torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2) * sin


with mock.patch.object(language_model, "apply_rope", apply_rope_to_neighbours):
    wrong_pairs = score("neighbours instead of halves")
with mock.patch.object(language_model, "apply_rope", lambda x, cos, sin: x):
    no_positions = score("no rotation at all")

# %% tags=["claim"]
assert all(0.3 < right < as_shipped - 0.08 for right in (wrong_pairs, no_positions))

# %% [markdown]
# Both models give wrong answers that were right before, and neither is dead. Many of these questions do not need the
# order of the words, the image tokens know their places from the encoder, and the mask reveals some of the order:
# decoders without any positions learn from it where a token is ([Haviv et al. 2022](https://arxiv.org/abs/2203.16634)).
# A model that is half broken looks like one that needs more training.

# %% [markdown]
# ### Distances that training never showed
#
# We put tokens without a meaning between the picture and its question, so that their distance grows beyond what training
# showed, once with the base as it is and once with one 16 times as large.

# %%
from nanovlm.course.challenges import far_score

far = {}
for between in (0, 128):
    for factor in (1, 16):
        far[between, factor] = far_score(pocket, between, base_factor=factor)
        print(f"{between:3} tokens between, base x {factor:2}: {far[between, factor]:4.0%} right")

# %% tags=["claim"]
assert far[0, 16] > 0.9 and far[128, 1] < far[0, 1] - 0.05 and far[128, 16] > far[128, 1]

# %% [markdown]
# A larger base turns the slow pairs more slowly, so that a distance of 128 gives them angles that they know from training,
# while the fast pairs hardly change. Without any training this wins back a part of the answers. An earlier way divides
# every position by one factor ([Chen et al. 2023](https://arxiv.org/abs/2306.15595)), which also moves neighbours closer
# together. Larger models change the base with more care ([Peng et al. 2023](https://arxiv.org/abs/2309.00071)), and the
# challenge asks for more.

# %% [markdown]
# ## The mask hides the future
#
# After token 3 the model predicts token 4. If it could attend to token 4, it would learn nothing but to copy. So each
# query may attend to itself and to earlier tokens only. In a table with a row for each query and a column for each key,
# that is the lower triangle. The rest is hidden *before* the softmax: a score of minus infinity gets a weight of exactly
# 0, and the row still sums to 1.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
q, k, v = torch.randn(3, 4, 8)  # [T, head_dim] each
lower = torch.ones(4, 4, dtype=torch.bool).tril()  # [query, key]
weights = (q @ k.T / 8**0.5).masked_fill(~lower, float("-inf")).softmax(dim=-1)
in_one_call = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
torch.testing.assert_close(in_one_call, weights @ v)
[[round(w, 2) for w in row] for row in weights.tolist()]

# %% [markdown]
# `F.scaled_dot_product_attention` does all of this in one call. `is_causal=True` is the triangle, and `attn_mask` takes
# any other mask of bools, in which True means *may attend*. What does the triangle mean for the predictions?

# %%
quiz("ch04.future")

# %% [markdown]
# ### Padding is hidden, and it has no position
#
# A batch is a rectangle, but texts differ in length. The short ones are filled up with **padding**, and an
# `attention_mask` says which tokens are real. A query may attend to a key if the key is not later *and* real. Positions
# count real tokens only, so that padding does not move a text.

# %% [markdown]
# There is one catch. A padding token in front may attend to nothing, and a softmax over nothing is 0 / 0. So every token
# may attend to itself: what comes out of padding is never read, but it has to be a number.

# %% [markdown] tags=["stamped"]
# **The next cell is folded, because it answers this exercise:** [exercise 4.4, Padding has no
# position](../exercises/04_rope_decoder.ipynb). Write yours first, or unfold it.


# %% tags=["answer:decoder.positions"]
def real_positions(attention_mask: Tensor) -> Tensor:
    """How many real tokens come before each token. [B, T] -> [B, T]"""
    return (attention_mask.bool().cumsum(dim=1) - 1).clamp(min=0)


# %% [markdown] tags=["stamped"]
# **The next cell is folded, because it answers this exercise:** [exercise 4.5, Which tokens may a token attend
# to?](../exercises/04_rope_decoder.ipynb). Write yours first, or unfold it.


# %% tags=["answer:decoder.who_sees_whom"]
def who_sees_whom(attention_mask: Tensor) -> Tensor:
    """Which keys each query may attend to. [B, T] -> bool [B, 1, T, T]"""
    index = torch.arange(attention_mask.shape[1])
    causal = index[:, None] >= index[None, :]  # [query, key]
    mask = causal & attention_mask.bool()[:, None, :]  # [B, query, key]
    return (mask | (index[:, None] == index[None, :]))[:, None]


# %%
real_positions = use("decoder.positions", real_positions)
who_sees_whom = use("decoder.who_sees_whom", who_sees_whom)

# %% [markdown]
# ### A prefix may see itself in both directions
#
# A causal mask has a price in a vision-language model: the first image token is computed without knowing the others, and
# all of them without knowing the question. A **prefix language model** lets picture and question attend to each other in
# both directions, and only the answer is causal. PaliGemma is trained in this way ([Beyer et al.
# 2024](https://arxiv.org/abs/2407.07726)).
#
# Most models, nanoVLM and SmolVLM among them, stay causal. Chapter 06 gives the reasons.

# %% [markdown] tags=["stamped"]
# **The next cell is folded, because it answers this exercise:** [exercise 4.6, A prefix that sees itself in
# both directions](../exercises/04_rope_decoder.ipynb). Write yours first, or unfold it.


# %% tags=["answer:decoder.prefix_mask"]
def prefix_mask(attention_mask: Tensor, prefix: Tensor) -> Tensor:
    """attention_mask and prefix [B, T] -> bool [B, 1, T, T]"""
    index = torch.arange(attention_mask.shape[1])
    inside = prefix.bool()
    mask = (index[:, None] >= index[None, :]) | (inside[:, :, None] & inside[:, None, :])
    mask = mask & attention_mask.bool()[:, None, :]
    return (mask | (index[:, None] == index[None, :]))[:, None]


# %% [markdown]
# Move **padding** and watch the positions. Then choose the prefix mask, and compare the rows of picture and question
# with those of the answer.

# %%
from nanovlm.viz.decoder import mask_figure

prefix_mask = use("decoder.prefix_mask", prefix_mask)
words = ["<img>", "<img>", "where", "is", "it", "top", "left"]
PAD = ["<pad>", "<pad>"]
rows = {
    "none": words,
    "left": PAD + words,
    "right": words + PAD,
    "in the middle": words[:2] + PAD + words[2:],
}


def masks(padding, mask):
    row = rows[padding]
    real = torch.tensor([[word != "<pad>" for word in row]])
    prefix = torch.tensor([[word not in ("top", "left", "<pad>") for word in row]])
    made = who_sees_whom(real) if mask == "causal" else prefix_mask(real, prefix)
    places = [
        p if r else "–"
        for p, r in zip(real_positions(real)[0].tolist(), real[0].tolist(), strict=True)
    ]
    return mask_figure(row, places, real[0].tolist(), made[0, 0].tolist())


lever(masks, padding=list(rows), mask=["causal", "prefix"])

# %% [markdown]
# Padding on the left would do no harm if it *was* counted, because RoPE sees distances only, and every real token moves
# by the same number of steps. In the middle it does harm: it moves the text away from the picture. nanoVLM v0.1, with the
# picture in front of texts that were padded on the left, [counted the padding in the
# positions](https://github.com/huggingface/nanoVLM/blob/v0.1/models/language_model.py#L241). Chapter 06 measures what
# that costs.

# %% [markdown]
# ### A mask of numbers turns into NaN in half precision
#
# Many programs *add* a mask to the scores: 0 where a query may attend, and the smallest number of float32 where it may
# not. It works until somebody runs the model in half precision.

# %% tags=["nbval-check-output"]
smallest = torch.finfo(torch.float32).min
print("float32:", smallest, " as float16:", torch.tensor(smallest).half().item())
x = torch.ones(2, 3, requires_grad=True)
hidden = torch.tensor([[True, True, True], [False, False, True]])
weights = x.masked_fill(hidden, float("-inf")).softmax(
    dim=-1
)  # row 0 is padding, which sees nothing
out = weights @ x.T
out[1].sum().backward()  # row 0 is not used
print("the row that is used:", out[1].tolist())
print("its gradient:", x.grad.tolist())

# %% [markdown]
# The row that is used is fine, and its gradient is NaN. On the way back the unused row's weights, which are NaN, are
# multiplied with a gradient of 0, and 0 times NaN is NaN. The next optimizer step writes it into every weight. Exercise
# 4.7 asks you to mend such a mask.

# %% [markdown]
# ### `attn_mask` and `is_causal` exclude each other
#
# It is tempting to give the padding as `attn_mask` and the triangle as `is_causal=True`. torch's
# [documentation](https://docs.pytorch.org/docs/2.9/generated/torch.nn.functional.scaled_dot_product_attention.html) calls
# that an error. Whether you see the error depends on the kernel that torch chooses; nanoVLM v0.1 [gives
# both](https://github.com/huggingface/nanoVLM/blob/v0.1/models/language_model.py#L134-L141).

# %%
from torch.nn.attention import SDPBackend, sdpa_kernel

q, k, v = torch.randn(3, 1, 1, 4, 8)
padding = torch.tensor([False, True, True, True])[None, None, None].expand(1, 1, 4, 4)


def both(*kernels) -> str:
    try:
        with sdpa_kernel(list(kernels)):
            F.scaled_dot_product_attention(q, k, v, attn_mask=padding, is_causal=True)
    except RuntimeError as error:
        return f"RuntimeError: {str(error).splitlines()[0][:70]}"
    return "no error"


print("plain kernel: ", both(SDPBackend.MATH))
print("fused kernels:", both(SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION))

# %% [markdown]
# `is_causal` has a second trap. In generation only one query is new, and it may attend to all keys, because it is the last
# token. But torch lines up query 0 with key 0, so that with `is_causal=True` the query sees the first key only. A single
# query therefore goes without it:

# %% tags=["nbval-check-output"]
out = F.scaled_dot_product_attention(q[:, :, -1:], k, v, is_causal=True)  # one query, four keys
print("it saw only the first key:", torch.allclose(out, v[:, :, :1]))

# %% [markdown]
# The package's `attention_layout` returns positions and mask together. It puts padding and triangle into one mask, or
# returns None where the triangle is all there is to hide, because on a GPU the fastest kernel takes no mask.

# %% [markdown]
# ## Grouped queries: several heads share keys and values
#
# When the model writes, it needs the keys and values of all earlier tokens at each step. They do not change, so they are
# kept in the **KV cache**, which chapter 09 opens. Each block holds one key and one value for each token and head.
# Queries are not kept. So several query heads can share one key and one value: **grouped-query attention** ([Ainslie et
# al. 2023](https://arxiv.org/abs/2305.13245)). SmolLM2-135M has 9 query heads and 3 key/value heads. Predict what that
# saves:

# %%
quiz("ch04.cache")

# %%
from nanovlm.viz.decoder import heads_figure


def heads(key_value_heads):
    return heads_figure(smollm.num_heads, key_value_heads, smollm.head_dim, smollm.num_blocks)


lever(heads, key_value_heads=[1, 3, 9], start={"key_value_heads": 3})

# %% [markdown]
# With a single head for all, *multi-query attention* ([Shazeer 2019](https://arxiv.org/abs/1911.02150)), the cache is
# smallest, and by the measurements of Ainslie et al. the answers are worse.
#
# Query heads that follow each other share: with 4 query heads and 2 key/value heads, heads 0 and 1 use the first, and 2
# and 3 the second. `repeat_interleave` gives that order, 0 0 1 1. `repeat` gives 0 1 0 1, in the same shape. The pocket
# model has exactly these heads:


# %%
def attend_in_the_wrong_order(
    q: Tensor, k: Tensor, v: Tensor, mask=None, is_causal: bool = False
) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat(1, groups, 1, 1), v.repeat(1, groups, 1, 1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)


with mock.patch.object(language_model, "attend", attend_in_the_wrong_order):
    wrong_order = score("shared in the wrong order")

# %% tags=["claim"]
assert wrong_order < as_shipped - 0.3

# %% [markdown]
# The class puts it all together: project, cut into heads, turn queries and keys, attend, join the heads, project. Values
# are not turned, because they are only summed and never compared. `attend` is the package's attention of chapter 02, which
# shares the heads by itself.

# %%
from nanovlm.models.attention import attend

# %% [markdown] tags=["stamped"]
# **The next cell is folded, because it answers this exercise:** [exercise 4.8, Heads that share keys and
# values](../exercises/04_rope_decoder.ipynb). Write yours first, or unfold it.


# %% tags=["package:nanovlm.models.language_model.GroupedQueryAttention", "answer:decoder.gqa"]
class GroupedQueryAttention(nn.Module):
    """Causal attention in which groups of query heads share one key/value head. [B, T, dim] -> [B, T, dim]"""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.hidden_dim, config.num_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(
            config.hidden_dim, config.num_kv_heads * config.head_dim, bias=False
        )
        self.v_proj = nn.Linear(
            config.hidden_dim, config.num_kv_heads * config.head_dim, bias=False
        )
        self.out_proj = nn.Linear(config.hidden_dim, config.hidden_dim, bias=False)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache=None
    ) -> Tensor:
        """mask: bool [B, 1, T, keys], True where a query may look; None: causal, with nothing else to hide."""
        batch, length, dim = x.shape
        q = (
            self.q_proj(x).view(batch, length, -1, self.head_dim).transpose(1, 2)
        )  # [B, num_heads, T, head_dim]
        k = (
            self.k_proj(x).view(batch, length, -1, self.head_dim).transpose(1, 2)
        )  # [B, num_kv_heads, T, head_dim]
        v = self.v_proj(x).view(batch, length, -1, self.head_dim).transpose(1, 2)
        q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        if cache is not None:
            k, v = cache.update(k, v)  # [B, num_kv_heads, all positions so far, head_dim]
        x = attend(q, k, v, mask, is_causal=False if length == 1 else mask is None)
        return self.out_proj(x.transpose(1, 2).reshape(batch, length, dim))


# %%
GroupedQueryAttention = use("decoder.gqa", GroupedQueryAttention)
attention = GroupedQueryAttention(smollm)
rope = RotaryEmbedding(smollm.head_dim, smollm.rope_base)(torch.arange(10)[None])
print(expect_shape(attention(torch.randn(2, 10, 576), rope, None), "batch length 576"))

# %% [markdown]
# ## SwiGLU: the MLP has a gate
#
# The encoder's MLP widens the vectors, applies GELU and narrows them again. Llama's has *two* layers that widen. One of
# them passes through an activation and becomes a **gate**, with which the other is multiplied, number by number ([Shazeer
# 2020](https://arxiv.org/abs/2002.05202)). Where the gate is near 0, nothing passes, whatever the other layer says. The
# paper tries many such combinations and finds most of them better than a plain MLP; it offers no reason.

# %% [markdown]
# The activation is SiLU, `x * sigmoid(x)`, which is near 0 for negative numbers and near x for positive ones.

# %% [markdown] tags=["stamped"]
# **The next cell is folded, because it answers this exercise:** [exercise 4.9, An MLP with a
# gate](../exercises/04_rope_decoder.ipynb). Write yours first, or unfold it.


# %% tags=["package:nanovlm.models.language_model.SwiGLU", "answer:decoder.swiglu"]
class SwiGLU(nn.Module):
    """The gated MLP. [B, T, dim] -> [B, T, dim]"""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_dim, config.inter_dim, bias=False)
        self.up_proj = nn.Linear(config.hidden_dim, config.inter_dim, bias=False)
        self.down_proj = nn.Linear(config.inter_dim, config.hidden_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


# %%
SwiGLU = use("decoder.swiglu", SwiGLU)

# %% tags=["nbval-check-output"]
in_mlp, in_attention = (
    sum(p.numel() for p in part.parameters()) for part in (SwiGLU(smollm), attention)
)
print(
    f"MLP {in_mlp:,}, attention {in_attention:,}: {in_mlp / (in_mlp + in_attention):.0%} of a block are MLP"
)

# %% [markdown]
# Three matrices take the place of two. To keep the number of weights, the inner width is 8/3 times the dim and not 4
# times, since 3 × 8/3 = 2 × 4.
# `gate_proj` and `up_proj` have the same shape, so loading one in the place of the other raises no error:


# %%
def gate_and_up_swapped(self: nn.Module, x: Tensor) -> Tensor:
    return self.down_proj(F.silu(self.up_proj(x)) * self.gate_proj(x))


with mock.patch.object(language_model.SwiGLU, "forward", gate_and_up_swapped):
    gates_swapped = score("gate and up swapped")

# %% tags=["claim"]
assert smollm.inter_dim * 3 == smollm.hidden_dim * 8 and 0.3 < gates_swapped < as_shipped - 0.05

# %% [markdown]
# Many answers stay right. Where both numbers are well above 0, SiLU is close to x, and a product does not depend on the
# order of its factors. Where their signs differ, the swap opens a gate that was closed.

# %% [markdown]
# ## The block adds to a residual stream
#
# A block has two halves. Each reads x through a norm, computes something, and *adds* it to x. The x itself passes from
# the first block to the last without any other change. This **residual stream** is the way on which the gradient reaches
# the early blocks ([Xiong et al. 2020](https://arxiv.org/abs/2002.04745) on why the norm is inside the halves).

# %%
from nanovlm.viz.decoder_block import bus_figure, decoder_block_figure

bus_figure(smollm.hidden_dim, smollm.num_blocks, smollm.vocab_size)

# %% [markdown]
# Here is one of these blocks. Every box in it is a part that you have built in this chapter.

# %%
decoder_block_figure(
    smollm.hidden_dim,
    smollm.inter_dim,
    smollm.num_heads,
    smollm.num_kv_heads,
    smollm.head_dim,
)

# %% [markdown] tags=["stamped"]
# **The next cell is folded, because it answers this exercise:** [exercise 4.10, The
# block](../exercises/04_rope_decoder.ipynb). Write yours first, or unfold it.


# %% tags=["package:nanovlm.models.language_model.DecoderBlock", "answer:decoder.block"]
class DecoderBlock(nn.Module):
    """[B, T, dim] -> [B, T, dim]"""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.hidden_dim, config.rms_norm_eps)
        self.attn = GroupedQueryAttention(config)
        self.norm2 = RMSNorm(config.hidden_dim, config.rms_norm_eps)
        self.mlp = SwiGLU(config)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache=None
    ) -> Tensor:
        x = x + self.attn(self.norm1(x), rope, mask, cache)
        return x + self.mlp(self.norm2(x))


# %%
DecoderBlock = use("decoder.block", DecoderBlock)

# %% [markdown]
# ### One table is used twice
#
# At the bottom of the decoder is the embedding, a table with one row of 576 numbers for each of the 49,152 tokens, which
# turns an id into a vector. At the top is the head, which turns a vector into one logit for each token, by a product with
# a table of the same shape. SmolLM2 uses one table for both: the head is **tied** to the embedding ([Press and Wolf
# 2016](https://arxiv.org/abs/1608.05859)).

# %%
quiz("ch04.tied")

# %% [markdown]
# The decoder takes *vectors* and not ids, because the tokens of a picture are vectors and have no id. Whoever calls it
# embeds the ids before and applies the head after. The package's class has a few more lines than this one, which later
# chapters need.

# %%
from nanovlm.models.language_model import attention_layout

# %% [markdown] tags=["stamped"]
# **The next cell is folded, because it answers this exercise:** [exercise 4.11, The
# decoder](../exercises/04_rope_decoder.ipynb). Write yours first, or unfold it.


# %% tags=["answer:decoder.language_model"]
class LanguageModel(nn.Module):
    """Token vectors in, token vectors out: [B, T, dim] -> [B, T, dim]. `head` turns them into logits."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_dim)
        self.rotary_embedding = RotaryEmbedding(config.head_dim, config.rope_base)
        self.norm = RMSNorm(config.hidden_dim, config.rms_norm_eps)
        self.head = nn.Linear(config.hidden_dim, config.vocab_size, bias=False)
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.num_blocks))
        if config.tie_weights:
            self.head.weight = self.token_embedding.weight

    def forward(self, x: Tensor, attention_mask=None, document_ids=None, cache=None) -> Tensor:
        if cache is None:
            positions, mask = attention_layout(attention_mask, document_ids, x.shape[1], x.device)
            memories = [None] * self.config.num_blocks
        else:
            positions, mask = cache.layout(attention_mask, x.shape[1])
            memories = cache.blocks
        rope = self.rotary_embedding(positions)
        for block, memory in zip(self.blocks, memories, strict=True):
            x = block(x, rope, mask, memory)
        return self.norm(x)


# %%
LanguageModel = use("decoder.language_model", LanguageModel)

# %% tags=["nbval-check-output"]
with torch.device("meta"):  # shapes without numbers
    tied, untied = (
        sum(p.numel() for p in LanguageModel(LMConfig(tie_weights=tie)).parameters())
        for tie in (True, False)
    )
print(f"tied: {tied:,} parameters, {tied * 2 / 2**20:.0f} MiB in 16 bits")
print(f"a head of its own: {untied - tied:,} more, {(untied - tied) / tied:.0%}")

# %% [markdown]
# ## It is Llama: the logits are equal
#
# The hardest check is another implementation. transformers builds a small Llama with random weights, we load the same
# weights into the classes above, and we ask both. Three texts of different lengths are padded on the left. The weights
# are large on purpose, because with the usual small ones a mistake can stay below the tolerance. (The cell needs
# transformers, and nothing else depends on it.)

# %% tags=["nbval-check-output"]
from nanovlm.course.peers import small_llama
from nanovlm.weights.backbones import llama_config, llama_tensors

theirs = small_llama()
config = llama_config(theirs.config.to_dict())
decoder = LanguageModel(config).eval()
decoder.load_state_dict(llama_tensors(theirs.state_dict(), config))

ids = torch.randint(0, 70, (3, 12))
real = torch.arange(12) >= torch.tensor(
    [[0], [2], [7]]
)  # row 1 has two padding tokens, row 2 seven
with torch.no_grad():
    ours = decoder.head(decoder(decoder.token_embedding(ids), real))
    expected = theirs(ids, attention_mask=real.long(), position_ids=real_positions(real)).logits
difference = (ours - expected)[real].abs().max()
print(f"{expect_shape(ours, 'batch length 70')}: equal to 1e-5: {bool(difference < 1e-5)}")

# %% [markdown]
# The shipped weights of the pocket model's decoder fit into the same class:

# %%
own = LanguageModel(pocket.config.language).eval()
own.load_state_dict(pocket.decoder.state_dict())
with torch.no_grad():
    x, mask, _ = pocket.embed(**prompt)
    torch.testing.assert_close(own(x, mask), pocket.decoder(x, mask))

# %% [markdown]
# ## What breaks: a decoder without its mask
#
# One question is left: what happens if the future is *not* hidden? We train a tiny decoder twice on text that nobody can
# predict, random tokens out of 16. An honest model can only guess, and the loss of guessing among 16 is log 16, which is
# 2.77. What loss does the model without a mask reach? Write down a number before you run the cells.


# %%
def train(mask: Tensor | None, num_steps: int = 150, length: int = 16) -> float:
    """A tiny decoder on random tokens; the last loss. mask None: causal."""
    torch.manual_seed(0)
    sizes = {"hidden_dim": 32, "inter_dim": 64, "num_blocks": 2, "num_heads": 2, "num_kv_heads": 1}
    model = LanguageModel(LMConfig(**sizes, vocab_size=16, max_positions=length, rope_base=100.0))
    nn.init.normal_(model.token_embedding.weight, std=0.3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rope = model.rotary_embedding(torch.arange(length)[None])
    for _ in range(num_steps):
        ids = torch.randint(0, 16, (32, length + 1))
        x = model.token_embedding(ids[:, :-1])
        for block in model.blocks:
            x = block(x, rope, mask)
        logits = model.head(model.norm(x))  # [32, T, 16]
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


# %%
honest, peeking = train(None), train(torch.ones(1, 1, 16, 16, dtype=torch.bool))
print(f"guessing: {math.log(16):.2f}    with the mask: {honest:.2f}    without: {peeking:.2f}")
print(f"a sixteenth of guessing: {math.log(16) / 16:.2f}")

# %% tags=["claim"]
assert abs(honest - math.log(16)) < 0.05 and peeking < 0.5

# %% [markdown]
# The loss without the mask is far below what is possible, because the model has learnt to attend one token to the right
# and to copy. It does not reach 0: the last of the 16 tokens has no neighbour on its right, so it must be guessed, which
# costs a sixteenth of log 16 on average.
#
# When a loss looks too good, change a late token and see whether an early logit moves. In exercise 4.12 you measure in
# this way who sees whom in any model, and 4.13 makes a test of everything that a decoder promises.

# %% [markdown]
# ## What to take along
#
# - A decoder predicts after every token, so the future must be hidden. Test it by changing a late token.
# - With RoPE the product of a query and a key depends on their distance alone. It decays with distance for
#   equal vectors only.
# - Weights carry their conventions with them: which numbers are a pair, which heads share, which matrix is the gate. No
#   shape tells you.
# - Norms and angles are computed in float32, masks are bools, and padding has no position.

# %% [markdown]
# All parts are in the package's `nanovlm/models/language_model.py`. Two links to the wild: nanoVLM's decoder at
# [v0.1](https://github.com/huggingface/nanoVLM/blob/v0.1/models/language_model.py), in which you can now find three of
# this chapter's bugs, and [SmolLM2's paper](https://arxiv.org/abs/2502.02737). The exercises end with a challenge: longer
# sequences without training.

# %% [markdown] tags=["stamped"]
# ## Your turn
#
# [Open the exercises](../exercises/04_rope_decoder.ipynb) ([in Colab][exercises]): 13 of them, about 2.4 hours.
#
# [exercises]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/exercises/04_rope_decoder.ipynb
#
# | | exercise | difficulty | minutes |
# |---|---|---|---|
# | 4.1 | Bring every vector to one size (`decoder.rms_norm`) | ●○○ | 8 |
# | 4.2 | How far does each pair turn? (`rope.angles`) | ●●○ | 10 |
# | 4.3 | Turn queries and keys (`rope.apply`) | ●●○ | 10 |
# | 4.4 | Padding has no position (`decoder.positions`) | ●○○ | 6 |
# | 4.5 | Which tokens may a token attend to? (`decoder.who_sees_whom`) | ●●○ | 10 |
# | 4.6 | A prefix that sees itself in both directions (`decoder.prefix_mask`) | ●●○ | 12 |
# | 4.7 | Mend it: the mask that turns into NaN (`decoder.mend_mask`) | ●●● | 15 |
# | 4.8 | Heads that share keys and values (`decoder.gqa`) | ●●● | 20 |
# | 4.9 | An MLP with a gate (`decoder.swiglu`) | ●○○ | 6 |
# | 4.10 | The block (`decoder.block`) | ●○○ | 8 |
# | 4.11 | The decoder (`decoder.language_model`) | ●●○ | 8 |
# | 4.12 | Measure it: who sees whom? (`decoder.measure_mask`) | ●●○ | 12 |
# | 4.13 | Write the test that every decoder should pass (`decoder.test_decoder`) | ●●● | 20 |
#
# Next: [05 Text, tokens and labels](05_text_tokens.ipynb)
