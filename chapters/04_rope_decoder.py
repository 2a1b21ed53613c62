# %% [markdown]
# # 04 The decoder
#
# The language model that reads the picture's tokens and writes the answer: a small Llama, part by part. Norms that keep
# numbers in size, rotations that say where a token stands, a mask that hides the future, heads that share. At the end
# it gives the same logits as transformers' Llama. Forty-five minutes; the code runs in seconds.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [← 03 Pixel shuffle and the projector](03_pixel_shuffle_and_projector.ipynb) ·
# [05 Text, tokens and labels →](05_text_tokens.ipynb) ·
# [exercises](../exercises/04_rope_decoder.ipynb)
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
from unittest.mock import patch

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from nanovlm import VisionLanguageModel
from nanovlm.assets import asset_path
from nanovlm.config import LMConfig
from nanovlm.course import budget, expect_shape, lever, quiz
from nanovlm.inference.prompts import prepare_prompts

# %% [markdown]
# ## The question: what comes next?
#
# A language model answers one question only: *given these tokens, which token comes next?* A token is a word or a piece
# of one, and it has a number, its id. The model gives each id of its vocabulary a score, a **logit**, and a softmax
# makes probabilities of them.
#
# To write an answer, ask again and again. Take the likeliest token, put it behind the others, ask for the next. Here is
# the pocket model of chapter 00 at it. (Its prompt holds the picture's 16 tokens as well: chapter 06.)

# %%
pocket = VisionLanguageModel.from_pretrained(asset_path("pocket")).eval()
image = Image.open(asset_path("images/shapes.png"))
prompt = prepare_prompts(pocket, ["Where is the red star?"], [image])

# %% tags=["nbval-check-output"]
ids = prompt["input_ids"]  # [1, length]
for _ in range(3):
    with torch.no_grad():
        logits = pocket(ids, prompt["images"]).logits  # [1, length, vocab_size]
    probabilities = logits[0, -1].softmax(dim=-1)
    best = probabilities.argmax()
    print(f"{ids.shape[1]} tokens -> {pocket.tokenizer.decode([int(best)])!r}, {probabilities[best]:.0%} sure")
    ids = torch.cat([ids, best[None, None]], dim=1)

# %% [markdown]
# The last one looks empty: it is the token that says *the answer ends here*.
#
# Look at the shape of the logits: `[1, length, vocab_size]`. There is a prediction after *every* token, not only after
# the last. In training this is what makes a text of a thousand tokens a thousand questions with known answers.
#
# Two things follow, and they shape the whole decoder:
#
# 1. A prediction must not see the tokens that come later. One of them is its answer.
# 2. The order counts. "The dog bites the man" is not "the man bites the dog".
#
# What does plain attention, as in chapter 02, know of order?

# %%
quiz("ch04.order")

# %%
torch.manual_seed(0)
tokens = torch.randn(3, 4)  # A, B and C: three vectors of four numbers


def plain_attention(x: Tensor) -> Tensor:
    """Queries, keys and values are the vectors themselves. [length, dim] -> [length, dim]"""
    return (x @ x.T / x.shape[1] ** 0.5).softmax(dim=-1) @ x


a_b_c = plain_attention(tokens)
b_a_c = plain_attention(tokens[[1, 0, 2]])
torch.testing.assert_close(a_b_c[2], b_a_c[2])  # C's output: the same

# %% [markdown]
# Nothing. So both have to be built in: the *mask* and the *positions*. They are most of this chapter. First something
# simple that stands in front of everything.

# %% [markdown]
# ## RMSNorm: keep the numbers in size
#
# In a decoder each block *adds* something to the vectors. So they grow. How much? The pocket model, before each of its
# four blocks, and behind the last norm. The size here is the **root mean square**: square the numbers, take the mean,
# take the root.

# %%
with torch.no_grad():
    states = pocket(**prompt, output_hidden_states=True).hidden_states  # five of [1, length, dim]
sizes = [x.pow(2).mean(dim=-1).sqrt()[0] for x in states]  # five of [length]
of_image = prompt["input_ids"][0] == pocket.config.image_token_id  # [length]
for i, size in enumerate(sizes):
    name = f"into block {i}" if i < 4 else "behind the norm"
    text, image = size[~of_image], size[of_image]
    print(f"{name:16} text {text.min():5.2f} to {text.max():5.2f}, picture {image.min():5.2f} to {image.max():5.2f}")
growth = sizes[3] / sizes[0]  # [length]
for name, grown in (("text", growth[~of_image]), ("picture", growth[of_image])):
    print(f"from block 0 to block 3, {name:7} tokens grow {grown.min():.1f} to {grown.max():.1f} times as large")
assert sizes[0][of_image].min() > 2 * sizes[0][~of_image].max()
assert (growth > 1).float().mean() > 0.9 and growth[~of_image].max() > max(5, growth[of_image].max())

# %% [markdown]
# The text starts small, the picture's tokens start several times as large, and both grow, some tokens of the text most of
# all (the last two lines). A linear layer that was trained on numbers of one size cannot work with numbers many
# times as large. So each part first brings its input to size 1.
#
# The vision encoder did that with LayerNorm: subtract the mean, divide by the standard deviation, multiply by a weight,
# add a bias. Llama leaves out half of it: **RMSNorm** divides by the root mean square and multiplies by a weight, that
# is all ([Zhang and Sennrich 2019](https://arxiv.org/abs/1910.07467)). Predict what that means:

# %%
quiz("ch04.norm")

# %% tags=["nbval-check-output"]
x = torch.tensor([10.0, 10.0, 10.0, 10.0])
print("LayerNorm:", nn.LayerNorm(4)(x).tolist())
print("RMSNorm:  ", [round(v, 3) for v in (x / x.pow(2).mean().sqrt()).tolist()])

# %% [markdown]
# torch has it as a function, so the package's class is short. (This is [exercise 4.1](../exercises/04_rope_decoder.ipynb). To write it yourself, do so before you read on.)


# %% tags=["package:nanovlm.models.language_model.RMSNorm"]
class RMSNorm(nn.Module):
    """Scale each vector to root mean square 1, then by a learned weight. [..., dim] -> [..., dim]"""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


# %%
x = torch.randn(2, 5, 8)
by_hand = x / (x.pow(2).mean(dim=-1, keepdim=True) + 1e-5).sqrt()
torch.testing.assert_close(RMSNorm(8, eps=1e-5)(x), by_hand)

# %% [markdown]
# `eps`, a very small number, keeps a vector of zeros from being divided by 0.
#
# ### Why in float32
#
# Large models run in half precision: 16 bits a number. A float16 ends at 65,504. In such models single numbers of these
# vectors reach the hundreds and more ([Sun et al. 2024](https://arxiv.org/abs/2402.17762)), and RMSNorm *squares* them:

# %% tags=["nbval-check-output"]
x = torch.tensor([300.0, -300.0, 300.0, 300.0], dtype=torch.float16)
print("the largest float16:", torch.finfo(torch.float16).max)
print("squares in float16: ", x.pow(2).tolist())
print("normalised in float16:", (x / (x.pow(2).mean() + 1e-5).sqrt()).tolist())
print("normalised in float32:", (x.float() / (x.float().pow(2).mean() + 1e-5).sqrt()).half().tolist())

# %% [markdown]
# 300 squared is infinite in float16, and a number divided by infinity is 0. The token is wiped out without any error.
# (bfloat16 reaches as far as float32, but has 8 bits of precision; a mean over hundreds of squares deserves more.) So
# the norm goes to float32 inside and back at the end. `F.rms_norm` does so by itself:

# %%
assert RMSNorm(4, eps=1e-5).half()(x).tolist() == [1.0, -1.0, 1.0, 1.0]

# %% [markdown]
# ### What breaks without it
#
# Let us put it to the test. The pocket model answers questions about pictures that it has not seen in training. Then we
# swap one of its functions and ask again. (`patch.object(module, name, other)` puts `other` in the place of `name`, and
# the old one back when the `with` block ends.)

# %%
from nanovlm.data.thimble import Thimble
from nanovlm.evaluation.scores import answer_all, questions_of
from nanovlm.models import language_model

shapes = Thimble("shapes", "test")
questions = questions_of([shapes[i] for i in range(budget().pick(ci=12, laptop=30))])


def score(what: str) -> float:
    """The share of right answers, printed with the first three."""
    answers = answer_all(pocket, questions)
    right = sum(answer == question.answer for answer, question in zip(answers, questions, strict=True)) / len(answers)
    print(f"{what:34}{right:5.0%} right of {len(answers)}, for example {answers[:3]}")
    return right


as_shipped = score("the pocket model")
assert as_shipped > 0.9


# %%
def only_the_weight(self: nn.Module, x: Tensor) -> Tensor:
    return x * self.weight


def without_the_mean(self: nn.Module, x: Tensor) -> Tensor:
    x = x - x.mean(dim=-1, keepdim=True)
    return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


with patch.object(language_model.RMSNorm, "forward", only_the_weight):
    assert score("no norm") < 0.1
with patch.object(language_model.RMSNorm, "forward", without_the_mean):
    assert score("the mean subtracted, as LayerNorm") > 0.9

# %% [markdown]
# Without the norm the model is dead. But subtract the mean, which it was *not* trained with, and next to nothing
# happens. Why?
# Look at how large the mean is, beside the root mean square, in the vectors that the norms read:

# %%
shares = torch.cat([(x.mean(dim=-1).abs() / x.pow(2).mean(dim=-1).sqrt()).flatten() for x in states[:4]])
print(f"the mean is {shares.mean():.0%} of the size on average, {shares.max():.0%} at most")
assert shares.mean() < 0.2

# %% [markdown]
# There is little to subtract. That is the paper's claim, too: the scaling is what helps, the centring is not needed.

# %% [markdown]
# ## RoPE: a position is an angle
#
# Chapter 01 added a learned vector to each patch: "I am patch 5". A decoder could do the same with "I am token 5". But
# in a text it matters little that a word is the 5th or the 105th. What matters is what stands *two tokens before it*.
#
# Attention compares queries with keys, by products. So the wish is: let the product of a query and a key depend on
# how far apart they are, and not on where they stand. **Rotary position embedding**, RoPE, grants it with an old fact
# of geometry ([Su et al. 2021](https://arxiv.org/abs/2104.09864)).
#
# ### One pair by hand
#
# Take vectors of two numbers: arrows on a sheet of paper. The product of two arrows depends on their lengths and on
# the *angle between them*. Now turn both by the same angle. The angle between them stays, and so does the product.
#
# So: turn each arrow by its position. One radian for each step, say.


# %%
def turn(pair: Tensor, angle: float) -> Tensor:
    """An arrow (a, b), turned counter-clockwise by an angle in radians."""
    a, b = pair
    return torch.stack([a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle)])


q, k = torch.tensor([1.0, 0.5]), torch.tensor([0.8, -0.3])

# %% [markdown]
# A query at position 10 and a key at position 7. The same two at 110 and 107. Predict, then look:

# %%
quiz("ch04.relative")

# %% tags=["nbval-check-output"]
for q_position, k_position in ((10, 7), (110, 107), (3, 0), (10, 6)):
    product = turn(q, q_position) @ turn(k, k_position)
    print(f"query at {q_position:3}, key at {k_position:3}, distance {q_position - k_position}: {product:+.4f}")

# %% [markdown]
# At distance 3 it is always the same, to the last digit. At distance 4 it is another number. Position 0 turns nothing.
#
# ### Many pairs
#
# One pair is not enough: 6.28 radians are a full turn, so distance 1 and distance 7.28 look alike. A clock has the same
# problem and solves it with several hands. RoPE cuts a vector of `head_dim` numbers into `head_dim / 2` pairs, and each
# pair turns more slowly than the one before:
#
# $$\text{pair } i \text{ turns by } \text{base}^{-2i / \text{head\_dim}} \text{ radians for each step}$$
#
# The first pair turns by 1 for each step, whatever the base; the last one hardly moves. Below: a query and a key of
# eight numbers each, four pairs, base 100. All eight arrows point to the right at position 0. Move **position**: all
# arrows turn, and no product changes. Then move **distance**.

# %%
from nanovlm.viz.decoder import rotation_figure

ones = [1.0] * 4 + [0.0] * 4


def dials(position, distance, base):
    return rotation_figure(ones, ones, [base ** (-2 * i / 8) for i in range(4)], position, distance)


lever(dials, position=(12, 64), distance=(0, 12), base=[10, 100, 10_000], start={"distance": 3, "base": 100})

# %% [markdown]
# The fast pair tells neighbours apart. The slow pairs tell near from far. SmolLM2 has a base of 100,000 and 32 pairs.
# How far does each go over the 8,192 positions that it can read?

# %% tags=["nbval-check-output"]
smollm = LMConfig()  # the defaults are SmolLM2-135M's sizes
for pair in (0, 1, 15, 31):
    frequency = smollm.rope_base ** (-2 * pair / smollm.head_dim)
    turns = frequency * smollm.max_positions / (2 * math.pi)
    print(f"pair {pair:2}: {frequency:.6f} radians a step, {turns:8.3f} turns in {smollm.max_positions:,} positions")

# %% [markdown]
# The slowest pairs do not get round once: for them no two positions look alike.
#
# In code, first the angles. Each angle is laid down twice, since both numbers of a pair need it. B is the batch, T the
# length of the text, and the axis of size 1 is for the heads: all of them turn alike. (This is [exercise 4.3](../exercises/04_rope_decoder.ipynb). To write it yourself, do so before you read on.) The rotation itself,
# `apply_rope`, is exercise 4.4.


# %% tags=["package:nanovlm.models.language_model.RotaryEmbedding"]
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


# %% tags=["nbval-check-output"]
rotary = RotaryEmbedding(head_dim=8, base=100.0)
cos, sin = rotary(torch.arange(16)[None])
print(expect_shape(cos, "batch 1 length 8"))
print("position 257 in bfloat16:", int(torch.tensor(257.0).bfloat16()))

# %% [markdown]
# Then the rotation. `turn` above made `(a cos - b sin, b cos + a sin)`. For a whole vector that is two terms: the vector
# times the cosines, and the vector with its pairs swapped, one sign changed, times the sines.


# %% tags=["package:nanovlm.models.language_model.apply_rope"]
def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (x[i], x[i + head_dim / 2]) by its position's angle. [B, num_heads, T, head_dim], same out."""
    first, second = x.chunk(2, dim=-1)
    rotated = torch.cat([-second, first], dim=-1)
    return x * cos.to(x.dtype) + rotated * sin.to(x.dtype)


# %%
x = torch.randn(1, 1, 16, 8)  # one head, 16 positions
turned = apply_rope(x, cos, sin)
pair = turn(x[0, 0, 5, [1, 5]], 5 * 100 ** (-2 / 8))  # position 5, pair 1: numbers 1 and 5
torch.testing.assert_close(turned[0, 0, 5, [1, 5]], pair)
torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))  # a rotation makes no vector longer

# %% [markdown]
# ### See it
#
# One query and one key, at all pairs of 16 positions. If only the distance counts, all products along a diagonal of the
# map are equal. Choose the other way, learned vectors that are added, to see a map where that is not so. (Without a
# kernel you see RoPE.)

# %%
from nanovlm.viz.decoder import relative_figure

generator = torch.Generator().manual_seed(1)
learned = torch.randn(16, 8, generator=generator) / 2  # as if trained: one vector for each position
vectors = {"alike": (torch.tensor(ones), torch.tensor(ones)), "random": torch.randn(2, 8, generator=generator)}


def products(positions, vector):
    q, k = (v.expand(1, 1, 16, 8) for v in vectors[vector])
    if positions == "RoPE":
        scores = apply_rope(q, cos, sin) @ apply_rope(k, cos, sin).mT
    else:
        scores = (q + learned) @ (k + learned).mT
    return relative_figure(scores[0, 0].tolist(), f"{positions}: q · k at all pairs of positions")


lever(products, positions=["RoPE", "learned vectors, added"], vector=["alike", "random"])

# %% [markdown]
# On the right, the same 256 products against the distance. With RoPE they fall onto one curve. For a query and a key
# that are alike it is highest at distance 0 and then falls, in waves: near tokens count more, unless training finds
# better.
#
# ### Two conventions, and weights do not carry over
#
# Which two numbers are a pair? There are two answers in use, and this is worth knowing before you load somebody's
# weights:
#
# - **neighbours**: 0 with 1, 2 with 3. So the paper draws it, and so does Meta's own Llama code
#   ([model.py](https://github.com/meta-llama/llama/blob/main/llama/model.py)).
# - **halves**: number i with number i + head_dim / 2. So transformers has it, and therefore SmolLM2's weights as you
#   find them on the Hub, nanoVLM's, and ours.


# %%
def apply_rope_to_neighbours(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    cos, sin = (t[..., :half].repeat_interleave(2, dim=-1) for t in (cos, sin))  # a b a b -> a a b b
    rotated = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    return x * cos + rotated * sin


# %% [markdown]
# Are they really different? Both turn the same number of pairs by the same angles. Only the places differ. So if you
# deal out the places anew before turning, one becomes the other:

# %%
q, k = torch.randn(2, 1, 1, 16, 8)
places = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])  # the first partners of all pairs, then the second ones
neighbours = apply_rope_to_neighbours(q, cos, sin) @ apply_rope_to_neighbours(k, cos, sin).mT
halves = apply_rope(q[..., places], cos, sin) @ apply_rope(k[..., places], cos, sin).mT
torch.testing.assert_close(neighbours, halves)

# %% [markdown]
# A model that is trained from scratch can learn with either. But trained weights know their own convention. To go from
# one to the other you reorder the rows of the query and key projections, and the
# [script](https://github.com/huggingface/transformers/blob/main/src/transformers/models/llama/convert_llama_weights_to_hf.py)
# that brings Meta's weights to transformers does just that. What if you forget? No shape changes, nothing raises. Ask
# the pocket model:

# %%
with patch.object(language_model, "apply_rope", apply_rope_to_neighbours):
    wrong_pairs = score("neighbours instead of halves")
with patch.object(language_model, "apply_rope", lambda x, cos, sin: x):
    no_positions = score("no rotation at all")
assert all(0.3 < right < as_shipped - 0.08 for right in (wrong_pairs, no_positions))

# %% [markdown]
# Answers that were right are wrong now, with the wrong pairs and with no rotation alike. Yet neither model is dead, and
# that is the trap: many of these questions do not need the order of the words, and the image tokens know their places in
# the picture from the encoder. (The mask, which comes next, gives away some of the order as well: decoders trained without
# any positions learn from it where a token stands, [Haviv et al. 2022](https://arxiv.org/abs/2203.16634).) A model that
# is *half* broken does not look broken. It looks like a model that needs more training.

# %% [markdown]
# ## The mask: the future is hidden
#
# Now the other thing that plain attention lacks. After token 3 the model predicts token 4. If it can look at token 4,
# it need not learn anything but to copy.
#
# Four tokens, and the scores of each query (row) with each key (column). Each query may look at itself and at what
# stands before it: the lower triangle.

# %% tags=["nbval-check-output"]
index = torch.arange(4)
may_look = index[:, None] >= index[None, :]  # [query, key]
may_look.int()

# %% [markdown]
# Hide the rest *before* the softmax: a score of minus infinity gets a weight of exactly 0, and the row still sums to 1.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
q, k, v = torch.randn(3, 4, 8)  # [length, head_dim] each
scores = q @ k.T / 8**0.5
weights = scores.masked_fill(~may_look, float("-inf")).softmax(dim=-1)
assert torch.allclose(weights.sum(dim=-1), torch.ones(4))
[[round(w, 2) for w in row] for row in weights.tolist()]

# %% [markdown]
# `F.scaled_dot_product_attention` does all of this in one call, division by the root of head_dim and softmax included.
# `is_causal=True` is the triangle; `attn_mask` takes any other mask, where True means *may look*.

# %%
in_one_call = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
torch.testing.assert_close(in_one_call, weights @ v)

# %% [markdown]
# ### Padding
#
# A batch is a rectangle, but texts differ in length. The short ones are filled up with **padding**, and a second tensor,
# the `attention_mask`, says which tokens are real. Nobody may look at padding. So a query may look at a key if the key
# is *not later* and *real*.
#
# And positions? They count real tokens only. Padding on the left of a text must not move it.
#
# There is one catch. A padding token at the very left may look at nothing: not at the future, not at itself. A softmax
# over nothing is 0 / 0. So we make an exception: every token may look at itself. What comes out of padding is never
# read, but it must be a number.
#
# This is the package's function. It has more arguments than you need now. `document_ids` is for texts that share a row
# (chapter 07), and `start` for generation with a cache (chapter 09). (This is [exercise 4.5](../exercises/04_rope_decoder.ipynb). To write it yourself, do so before you read on.)


# %% tags=["package:nanovlm.models.language_model.attention_layout"]
def attention_layout(
    attention_mask: Tensor | None,
    document_ids: Tensor | None,
    length: int,
    device: torch.device,
    start: int = 0,
) -> tuple[Tensor, Tensor | None]:
    """Who stands where, and who may look at whom: positions [B or 1, T], and the mask, bool [B or 1, 1, T, length], or
    None where plain causal attention says it all."""
    index = torch.arange(length, device=device)
    if attention_mask is None and document_ids is None and (start == 0 or start == length - 1):
        return index[None, start:], None
    mask = (index[start:, None] >= index[None, :])[None]  # [1, T, length]: the past and oneself
    if attention_mask is not None:
        mask = mask & attention_mask.bool()[:, None, :]
    if document_ids is not None:
        mask = mask & (document_ids[:, start:, None] == document_ids[:, None, :]) & (document_ids >= 0)[:, None, :]
    positions = (mask.sum(dim=2) - 1).clamp(min=0)
    # A padding token may see itself: a row with nothing to look at would be 0 / 0.
    mask = mask | (index[start:, None] == index[None, :])
    return positions, mask[:, None]


# %% [markdown]
# Look at the line with `positions`. A query sees all real tokens up to itself, so *how many it sees*, less one, is its
# position. Move the padding:

# %%
from nanovlm.viz.decoder import mask_figure

rows = {
    "on the left": ["<pad>", "<pad>", "<img>", "<img>", "where", "is", "it", "?"],
    "none": ["<img>", "<img>", "where", "is", "it", "?"],
    "on the right": ["<img>", "<img>", "where", "is", "it", "?", "<pad>", "<pad>"],
    "in the middle": ["<img>", "<img>", "<pad>", "<pad>", "where", "is", "it", "?"],
}


def who_sees_whom(padding):
    real = torch.tensor([[word != "<pad>" for word in rows[padding]]])
    positions, mask = attention_layout(real, None, real.shape[1], real.device)
    shown = [p if r else "–" for p, r in zip(positions[0].tolist(), real[0].tolist(), strict=True)]
    return mask_figure(rows[padding], shown, real[0].tolist(), mask[0, 0].tolist())


lever(who_sees_whom, padding=list(rows))

# %% [markdown]
# Did you ask yourself whether padding on the left would do any harm if it *was* counted? With RoPE every real token
# moves by the same number of steps. Only distances count. So:

# %% tags=["nbval-check-output"]
q, k = torch.randn(2, 1, 1, 4, 8)


def scores_at(positions: list[int]) -> Tensor:
    angles = rotary(torch.tensor([positions]))
    return apply_rope(q, *angles) @ apply_rope(k, *angles).mT


plain = scores_at([0, 1, 2, 3])
for name, positions in (("two in front", [2, 3, 4, 5]), ("two in the middle", [0, 1, 4, 5])):
    print(f"padding counted, {name}: the same scores? {torch.allclose(plain, scores_at(positions), atol=1e-4)}")

# %% [markdown]
# In front it does no harm. In the middle it does: it tears the text away from the picture. That is a bug that a small VLM
# can easily have: the picture's tokens go in front of a text that is already padded on the left. Counting real tokens is
# right in all cases.

# %% [markdown]
# ### What breaks: masks that bite
#
# Three bugs that are easily made. None of them changes a shape.
#
# **A number instead of a bool.** Many programs *add* a mask: 0 where a query may look, and the smallest number of
# float32 where it may not. Then somebody runs the model in half precision:

# %% tags=["nbval-check-output"]
smallest = torch.finfo(torch.float32).min
print("float32:", smallest, " as float16:", torch.tensor(smallest).half().item())
row = torch.randn(4) + smallest  # a padding token's row: everything is hidden
print("softmax in float32:", row.softmax(dim=-1).tolist())
print("softmax in float16:", (torch.randn(4).half() + torch.tensor(smallest).half()).softmax(dim=-1).tolist())

# %% [markdown]
# In float32 the row was nonsense but finite. In float16 it is NaN. Nobody reads that row, so why care? Because of the
# way back. Here only row 1 is used. Row 0 is thrown away, and still:

# %% tags=["nbval-check-output"]
x = torch.ones(2, 3, requires_grad=True)
hidden = torch.tensor([[True, True, True], [False, False, True]])
weights = x.masked_fill(hidden, float("-inf")).softmax(dim=-1)
out = weights @ x.T  # [2, 2]
out[1].sum().backward()
print("the row that is used:", out[1].tolist())
print("its gradient:", x.grad.tolist())

# %% [markdown]
# The output is fine and the gradient is NaN. On the way back through `weights @ x.T`, row 0's weights, which are NaN,
# are multiplied with the gradient of `out[0]`, which is 0, and summed into every number of x. And 0 times NaN is NaN.
# The next optimiser step writes it into every weight that it touches. That is why each token may look at itself, and
# why the mask is a bool.
#
# `F.scaled_dot_product_attention` has become kinder than the softmax inside of it. Since
# [2024](https://github.com/pytorch/pytorch/pull/133882) a row with nothing to look at comes out as zeros. Attention that
# is written out, as in chapter 02, still makes NaN of it, and nobody's mask should depend on which of the two runs.

# %% tags=["nbval-check-output"]
q, k, v = torch.randn(1, 2, 8), torch.randn(1, 3, 8), torch.randn(1, 3, 8)
may_look = torch.tensor([[False, False, False], [True, True, False]])
print("a hidden row in one call:", F.scaled_dot_product_attention(q, k, v, attn_mask=may_look)[0, 0, :3].tolist())
written_out = (q @ k.mT).masked_fill(~may_look, float("-inf")).softmax(dim=-1) @ v
print("the same, written out:   ", written_out[0, 0, :3].tolist())

# %% [markdown]
# The tempting repair is the smallest number of the type at hand, here float16's. It is not safe either: a score is
# added to it, and the sum can fall out of the range.

# %% tags=["nbval-check-output"]
smallest = torch.finfo(torch.float16).min
print(smallest, "- 50 =", (torch.tensor(smallest).half() - 50).item())

# %% [markdown]
# **`attn_mask` together with `is_causal=True`.** One thinks: here is the padding, and please also the triangle. torch's
# [documentation](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html)
# says that this is an error. Whether you *get* an error depends on the kernel that torch chooses for you:

# %%
from torch.nn.attention import SDPBackend, sdpa_kernel

q, k, v = torch.randn(3, 1, 1, 4, 8)
padding = torch.tensor([False, True, True, True])[None, None, None].expand(1, 1, 4, 4)


def both(*kernels) -> str:
    try:
        with sdpa_kernel(list(kernels)):
            F.scaled_dot_product_attention(q, k, v, attn_mask=padding, is_causal=True)
    except RuntimeError as error:
        return f"RuntimeError: {str(error).splitlines()[0][:90]}"
    return "no error"


print("the plain kernel: ", both(SDPBackend.MATH))
print("the fused kernels:", both(SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION))

# %% [markdown]
# Code that runs on one machine and stops on another, or the other way round. The way out is to give one of the two:
# `attention_layout` puts padding *and* triangle into one mask, or returns None, and then the triangle is `is_causal`. It
# does not always build the mask, because on a GPU the fastest kernel takes none.
#
# **`is_causal` with a single query.** In generation the keys of earlier tokens are kept, and only one query is new. It
# is the last token, and may look at all. But torch lines up query 0 with key 0:

# %% tags=["nbval-check-output"]
newest = q[:, :, -1:]  # one query, four keys
out = F.scaled_dot_product_attention(newest, k, v, is_causal=True)
print("it saw only the first key:", torch.allclose(out, v[:, :, :1]))

# %% [markdown]
# So a single query goes without `is_causal`. You will find that line in the attention below.

# %% [markdown]
# ## Grouped queries: heads that share
#
# When the model writes, it needs the keys and values of all earlier tokens at each step. They do not change, so they are
# kept: that is the **KV cache**, which chapter 09 opens. It costs memory: in each block, for each token, one key and one
# value for each head. Predict:

# %%
quiz("ch04.cache")

# %% [markdown]
# Queries are not kept. So let several query heads share one key and one value: **grouped-query attention** ([Ainslie et
# al. 2023](https://arxiv.org/abs/2305.13245)). One for all is *multi-query* attention ([Shazeer
# 2019](https://arxiv.org/abs/1911.02150)), the smallest cache, but by the measurements of Ainslie et al. worse answers.
# SmolLM2-135M has 9 query heads and 3 key/value heads. Move the lever:

# %%
from nanovlm.viz.decoder import heads_figure


def heads(key_value_heads):
    return heads_figure(smollm.num_heads, key_value_heads, smollm.head_dim, smollm.num_blocks)


lever(heads, key_value_heads=[1, 3, 9], start={"key_value_heads": 3})

# %% tags=["nbval-check-output"]
for num_kv_heads in (9, 3, 1):
    numbers = 2 * smollm.num_blocks * num_kv_heads * smollm.head_dim  # keys and values
    full = numbers * 2 * smollm.max_positions  # 2 bytes each
    print(f"{num_kv_heads} key/value heads: {full / 2**20:5.0f} MiB for one text of {smollm.max_positions:,} tokens")

# %% [markdown]
# For scale: the model's own weights take 257 MiB in 16 bits (you count them below). And a cache is needed for *each*
# text of a batch.
#
# ### Who shares with whom
#
# Query heads that follow each other share: with 4 query heads and 2 key/value heads, 0 and 1 take the first, 2 and 3 the
# second. `repeat_interleave` does that. `repeat` is the trap: it lays down the whole set twice.

# %% tags=["nbval-check-output"]
shared = torch.tensor([0, 1])
print("repeat_interleave:", shared.repeat_interleave(2).tolist())
print("repeat:           ", shared.repeat(2).tolist())

# %% [markdown]
# The package's `attend`, whose plainest form is chapter 02's, does the sharing by itself (with torch's `enable_gqa`, which
# need not copy): you hand it fewer key heads than query heads.

# %%
from nanovlm.models.attention import attend

q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)  # 4 query heads, 2 others
copied = attend(q, k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1), is_causal=True)
torch.testing.assert_close(attend(q, k, v, is_causal=True), copied)

# %% [markdown]
# And the trap, in the pocket model, which has 4 query heads and 2 key/value heads:


# %%
def attend_in_the_wrong_order(q: Tensor, k: Tensor, v: Tensor, mask=None, is_causal: bool = False) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat(1, groups, 1, 1), v.repeat(1, groups, 1, 1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)


with patch.object(language_model, "attend", attend_in_the_wrong_order):
    assert score("shared in the wrong order") < as_shipped - 0.3

# %% [markdown]
# Now all of it in one class: project, cut into heads, turn queries and keys, attend, join, project. Values are not
# turned: they are only summed, and nobody compares them. (This is [exercise 4.6](../exercises/04_rope_decoder.ipynb). To write it yourself, do so before you read on.)


# %% tags=["package:nanovlm.models.language_model.GroupedQueryAttention"]
class GroupedQueryAttention(nn.Module):
    """Causal attention in which groups of query heads share one key/value head. [B, T, dim] -> [B, T, dim]"""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.hidden_dim, config.num_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_dim, config.num_kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_dim, config.num_kv_heads * config.head_dim, bias=False)
        self.out_proj = nn.Linear(config.hidden_dim, config.hidden_dim, bias=False)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache=None) -> Tensor:
        """mask: bool [B, 1, T, keys], True where a query may look; None: causal, with nothing else to hide."""
        batch, length, dim = x.shape
        q = self.q_proj(x).view(batch, length, -1, self.head_dim).transpose(1, 2)  # [B, num_heads, T, head_dim]
        k = self.k_proj(x).view(batch, length, -1, self.head_dim).transpose(1, 2)  # [B, num_kv_heads, T, head_dim]
        v = self.v_proj(x).view(batch, length, -1, self.head_dim).transpose(1, 2)
        q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        if cache is not None:
            k, v = cache.update(k, v)  # [B, num_kv_heads, all positions so far, head_dim]
        x = attend(q, k, v, mask, is_causal=False if length == 1 else mask is None)
        return self.out_proj(x.transpose(1, 2).reshape(batch, length, dim))


# %% tags=["nbval-check-output"]
attention = GroupedQueryAttention(smollm)
rope = RotaryEmbedding(smollm.head_dim, smollm.rope_base)(torch.arange(10)[None])
print(expect_shape(attention(torch.randn(2, 10, 576), rope, None), "batch length 576"))
for name, weight in attention.named_parameters():
    print(f"{name:16} {expect_shape(weight, 'out in')}")

# %% [markdown]
# Two lines of it are for generation: the cache, which gives back the keys and values of all tokens so far, and the
# `length == 1` that we met above.

# %% [markdown]
# ## SwiGLU: a gate in the MLP
#
# The encoder's MLP was: widen, GELU, narrow. Llama's has *two* layers that widen. One of them passes through an
# activation and becomes a **gate**; it is multiplied with the other, number by number ([Shazeer
# 2020](https://arxiv.org/abs/2002.05202)). Where the gate is near 0, nothing passes, whatever the other says. The paper
# tries many such pairs and finds most of them better than a plain MLP. It offers no reason.
#
# The activation is SiLU, `x * sigmoid(x)`: near 0 for negative numbers, near x for positive ones. (This is [exercise 4.2](../exercises/04_rope_decoder.ipynb). To write it yourself, do so before you read on.)

# %% tags=["nbval-check-output"]
for x in (-6.0, -1.0, 0.0, 1.0, 6.0):
    print(f"silu({x:4.1f}) = {F.silu(torch.tensor(x)):6.3f}")


# %% tags=["package:nanovlm.models.language_model.SwiGLU"]
class SwiGLU(nn.Module):
    """The gated MLP. [B, T, dim] -> [B, T, dim]"""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_dim, config.inter_dim, bias=False)
        self.up_proj = nn.Linear(config.hidden_dim, config.inter_dim, bias=False)
        self.down_proj = nn.Linear(config.inter_dim, config.hidden_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


# %% [markdown]
# Three matrices instead of two. To pay for the third, the inner width shrinks from 4 times the dim to 8/3:

# %% tags=["nbval-check-output"]
assert smollm.inter_dim * 3 == smollm.hidden_dim * 8
mlp = SwiGLU(smollm)
print(expect_shape(mlp(torch.randn(2, 10, 576)), "batch length 576"))
in_mlp, in_attention = (sum(p.numel() for p in part.parameters()) for part in (mlp, attention))
assert in_mlp == 2 * 576 * (4 * 576)  # as many as a plain MLP of four times the width
print(f"MLP {in_mlp:,}, attention {in_attention:,}: {in_mlp / (in_mlp + in_attention):.0%} of a block are MLP")

# %% [markdown]
# `gate_proj` and `up_proj` have the same shape. Load one for the other and nothing complains. Until you ask:


# %%
def gate_and_up_swapped(self: nn.Module, x: Tensor) -> Tensor:
    return self.down_proj(F.silu(self.up_proj(x)) * self.gate_proj(x))


with patch.object(language_model.SwiGLU, "forward", gate_and_up_swapped):
    assert 0.3 < score("gate and up swapped") < as_shipped - 0.05

# %% [markdown]
# Some answers are wrong, and many are not. Where both numbers are well above 0, the swap changes little: SiLU is close to x
# there, and a product does not ask which comes first. Where both are well below, hardly anything passes either way. But
# where their signs differ, what was shut is open now.
#
# ## The block, and the decoder
#
# A block has two halves. Each reads x through a norm, works, and *adds* its result to x. The x itself passes through
# untouched, from the first block to the last: on this road the gradient reaches the early blocks ([Xiong et al.
# 2020](https://arxiv.org/abs/2002.04745) on why the norm stands inside). (This is [exercise 4.7](../exercises/04_rope_decoder.ipynb). To write it yourself, do so before you read on.)


# %% tags=["package:nanovlm.models.language_model.DecoderBlock"]
class DecoderBlock(nn.Module):
    """[B, T, dim] -> [B, T, dim]"""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.hidden_dim, config.rms_norm_eps)
        self.attn = GroupedQueryAttention(config)
        self.norm2 = RMSNorm(config.hidden_dim, config.rms_norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache=None) -> Tensor:
        x = x + self.attn(self.norm1(x), rope, mask, cache)
        return x + self.mlp(self.norm2(x))


# %% [markdown]
# ### One table, used twice
#
# At the bottom of the decoder stands the embedding: a table with one row of 576 numbers for each of the 49,152 tokens.
# It turns an id into a vector. At the top stands the head: it turns a vector into one logit for each token, by a product
# with... a table of one row of 576 numbers for each token.
#
# SmolLM2 takes the same table for both: the head is **tied** to the embedding ([Press and Wolf
# 2016](https://arxiv.org/abs/1608.05859)). How much does that save?

# %%
quiz("ch04.tied")

# %% [markdown]
# Now the whole. It takes *vectors*, not ids, because the picture's tokens are vectors and have no id. Who calls it does
# the embedding before and the head after.
#
# (This is [exercise 4.8](../exercises/04_rope_decoder.ipynb). To write it yourself, do so before you read on.) Some lines serve later chapters: `cache` (09), `document_ids` (07), `hidden_states`, which we used above to look at the
# sizes, and `gradient_checkpointing`, which saves memory in training (08).

# %%
from torch.utils.checkpoint import checkpoint


# %% tags=["package:nanovlm.models.language_model.LanguageModel"]
class LanguageModel(nn.Module):
    """Token vectors in, token vectors out: [B, T, dim] -> [B, T, dim]. `head` turns them into logits."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_dim)
        self.rotary_embedding = RotaryEmbedding(config.head_dim, config.rope_base)
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.num_blocks))
        self.norm = RMSNorm(config.hidden_dim, config.rms_norm_eps)
        self.head = nn.Linear(config.hidden_dim, config.vocab_size, bias=False)
        if config.tie_weights:
            self.head.weight = self.token_embedding.weight
        self.gradient_checkpointing = False

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache=None,
        hidden_states: list[Tensor] | None = None,
    ) -> Tensor:
        if x.shape[1] + (0 if cache is None else cache.length) > self.config.max_positions:
            raise ValueError(
                f"The sequence is longer than this model's {self.config.max_positions} positions. Shorten the prompt."
            )
        if cache is None:
            positions, mask = attention_layout(attention_mask, document_ids, x.shape[1], x.device)
        elif document_ids is None:
            positions, mask = cache.layout(attention_mask, x.shape[1])
        else:
            raise ValueError("A cache goes on with one document a row: give document_ids or a cache, not both.")
        rope = self.rotary_embedding(positions)
        for i, block in enumerate(self.blocks):
            if hidden_states is not None:
                hidden_states.append(x)
            if self.gradient_checkpointing and self.training and cache is None:
                x = checkpoint(block, x, rope, mask, use_reentrant=False)
            else:
                x = block(x, rope, mask, cache.blocks[i] if cache is not None else None)
        x = self.norm(x)
        if hidden_states is not None:
            hidden_states.append(x)
        return x


# %% [markdown]
# SmolLM2-135M, counted. (On the device `meta` tensors have shapes and no numbers, so this takes no memory.)


# %% tags=["nbval-check-output"]
def count(config: LMConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in LanguageModel(config).parameters())  # a tied weight counts once


tied, untied = count(smollm), count(LMConfig(tie_weights=False))
assert untied - tied == smollm.vocab_size * smollm.hidden_dim
print(f"tied: {tied:,} parameters, {tied * 2 / 2**20:.0f} MiB in 16 bits")
print(f"a head of its own: {untied - tied:,} more, {(untied - tied) / tied:.0%}")

# %% [markdown]
# ### A later token changes nothing before it
#
# The promise of the mask, now for the whole decoder. Predict:

# %%
quiz("ch04.future")

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
small = LMConfig(
    hidden_dim=32, inter_dim=48, num_blocks=2, num_heads=4, num_kv_heads=2, vocab_size=70, max_positions=64
)
decoder = LanguageModel(small).eval()


def logits_of(ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """ids [B, T] -> logits [B, T, vocab_size]"""
    return decoder.head(decoder(decoder.token_embedding(ids), attention_mask))


ids = torch.tensor([[3, 14, 15, 9, 26]])
changed = torch.tensor([[3, 14, 15, 9, 53]])
moved = (logits_of(ids) - logits_of(changed)).abs().amax(dim=-1)[0] > 1e-6
print("predictions that changed:", moved.nonzero().flatten().tolist())

# %% [markdown]
# ## Is this Llama?
#
# The hardest check there is: another implementation. transformers builds a small Llama with random weights, we load the
# same weights into the classes above, and ask both. Three texts of different lengths, padded on the left.
#
# The weights are made large on purpose. With the usual, small ones a mistake can hide below the tolerance. (This cell
# and the next need transformers: `pip install transformers`. Skip them if you have none; nothing else depends on them.)

# %% tags=["nbval-check-output"]
from transformers import LlamaConfig, LlamaForCausalLM

from nanovlm.weights.backbones import llama_config, llama_tensors

torch.manual_seed(0)
theirs = LlamaForCausalLM(
    LlamaConfig(
        hidden_size=54,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=70,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
).eval()
for name, p in theirs.named_parameters():
    if p.ndim > 1:
        nn.init.normal_(p, std=0.5 if "embed" in name else p.shape[1] ** -0.5)

config = llama_config(theirs.config.to_dict())
decoder = LanguageModel(config).eval()
decoder.load_state_dict(llama_tensors(theirs.state_dict(), config))

ids = torch.randint(0, 70, (3, 12))
real = torch.arange(12) >= torch.tensor([[0], [2], [7]])  # row 1 has two tokens of padding, row 2 seven
positions = (real.long().cumsum(dim=1) - 1).clamp(min=0)  # transformers wants them from its caller
with torch.no_grad():
    ours = logits_of(ids, real)
    expected = theirs(ids, attention_mask=real.long(), position_ids=positions).logits
assert expected.std() > 0.5  # loud enough
difference = (ours - expected)[real].abs().max()
assert difference < 1e-5
print(f"{expect_shape(ours, 'batch length 70')}: equal to 1e-5")

# %% [markdown]
# Would it have noticed a mistake? Put two of this chapter's into our classes:


# %% tags=["nbval-check-output"]
def still_equal(**mistake) -> bool:
    with patch.dict(globals(), mistake), torch.no_grad():
        return bool((logits_of(ids, real) - expected)[real].abs().max() < 0.1)


print("neighbours for halves:", still_equal(apply_rope=apply_rope_to_neighbours))
print("shared in the wrong order:", still_equal(attend=attend_in_the_wrong_order))
print("as it was:", still_equal())

# %% [markdown]
# Neither comes even close: not to a tenth.
#
# ## What breaks: a decoder that can see its answer
#
# One thing is still owed. What happens if the future is *not* hidden? We train twice on text that nobody can predict:
# random tokens out of 16. The best that an honest model can reach is to guess, and the loss of guessing among 16 is
# log 16. What will the one without a mask reach?


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
        logits = model.head(model.norm(x))  # [32, length, 16]
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


honest = train(None)
peeking = train(torch.ones(1, 1, 16, 16, dtype=torch.bool))
print(f"guessing: {math.log(16):.2f}    with the mask: {honest:.2f}    without: {peeking:.2f}")
print(f"a sixteenth of guessing: {math.log(16) / 16:.2f}")
assert abs(honest - math.log(16)) < 0.05 and peeking < 0.5

# %% [markdown]
# A loss far below what is possible. The model has learnt to look one token to the right and copy. It does not reach 0
# because the last of the 16 tokens has no one to its right: that one it must guess, which costs a sixteenth of log 16 on
# average.
#
# When a loss looks too good, this is the first thing to check. Change a late token and look at the early logits, as you
# did above. It takes four lines.

# %% [markdown]
# ## Where this lives in the package
#
# All of it, in `nanovlm/models/language_model.py`: `RMSNorm`, `RotaryEmbedding`, `apply_rope`, `GroupedQueryAttention`,
# `SwiGLU`, `DecoderBlock`, `attention_layout` and `LanguageModel`. The definitions above are the package's; the builder
# of this notebook compares them with that file and fails if they differ. Only the cache is left out, until chapter 09.
#
# The pocket model's decoder is the same class with smaller numbers. So the shipped weights fit into what you have read:

# %%
own = LanguageModel(pocket.config.language).eval()
own.load_state_dict(pocket.decoder.state_dict())
with torch.no_grad():
    x, mask, _ = pocket.embed(**prompt)
    torch.testing.assert_close(own(x, mask), pocket.decoder(x, mask))

# %% [markdown]
# What you take along:
#
# - A decoder predicts after every token, so the future must be hidden. Test it: change a late token.
# - A position is an angle. Of two places, the product of turned vectors knows the distance and nothing else.
# - Weights carry their conventions with them: which numbers are a pair, which heads share, which matrix is the gate. No
#   shape tells you.
# - Norms and angles are computed in float32, and masks are bools.
#
# Now write it yourself. The first exercises take a few lines, the last is a Llama.

# %% [markdown] tags=["stamped"]
# ## Your turn
#
# [Open the exercises](../exercises/04_rope_decoder.ipynb) ([in Colab][exercises]): 13 of them, about 145 minutes.
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
