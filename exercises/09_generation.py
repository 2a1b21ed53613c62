# %% [markdown]
# # 09 Exercises: generation
#
# Ten exercises: the loop, the cache and a test of it, three ways to choose a token, beams, streaming, the rule behind
# speculative decoding, and a measurement. What passes becomes a part of the model that `yours()` builds, and writes its
# answers.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [the chapter](../chapters/09_generation.ipynb) ·
# [the solutions](../solutions/09_generation.ipynb) ·
# [notation and terms](../chapters/notation.md)
#
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/exercises/09_generation.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/exercises/09_generation.ipynb

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
import statistics

import torch
import torch.nn.functional as F
from torch import Tensor

from nanovlm.course import check, use
from nanovlm.course.exercises.ch09.cache import in_pieces, without_cache
from nanovlm.models.language_model import apply_rope

# %% [markdown] tags=["stamped"]
# ## Exercise 9.1 · The loop that writes
# `generation.greedy` · difficulty ●○○ · about 12 minutes
#
# **Why it matters.** Every answer of every language model comes out of this loop. One pass too many for each
# answer is a tenth of the time on answers of ten tokens; a forgotten end is text that nobody asked for.

# %% [markdown] tags=["exercise"]
# Write the loop in which every answer is written. It does not know the model. It gets
#
# - `logits` `[rows, vocab_size]`, the model's scores behind the prompt, a row for each answer;
# - `step(tokens)`, which reads one token for each row, `[rows]`, and returns the next logits;
# - `choose(logits)`, which returns one token for each row (with `argmax` in it, decoding is *greedy*);
# - `ends`, a list of token ids, each of which ends a row; and `max_new_tokens`, the most that it may write.
#
# Return the tokens `[rows, new]`, the end tokens among them. A row that has ended holds `ends[0]` from there on, while
# the others write. Stop when all rows have ended or `max_new_tokens` are written, and do not call `step` for logits
# that nobody will use: the model is the expensive part.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Choose, keep, look for the end, read on. The first logits are given, so the first choice needs no step.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Keep a tensor finished [rows] of False. After each choice put ends[0] where a row was finished before, append,
# then mark the rows that wrote an end token. Leave the loop before step when all are finished or the answer is
# long enough. torch.isin(tokens, torch.tensor(ends)) knows several end tokens at once.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# while True:
#     tokens = choose(logits), with ends[0] in finished rows
#     written.append(tokens)
#     finished = finished | …
#     if all are finished, or len(written) == max_new_tokens:
#         return torch.stack(written, dim=1)
#     logits = step(tokens)
# ```
#
# </details>


# %%
def decode(logits, step, choose, ends: list[int], max_new_tokens: int) -> Tensor:
    """logits [rows, vocab_size] -> tokens [rows, new]"""
    raise NotImplementedError("generation.greedy")


# %%
check("generation.greedy", decode)

# %% [markdown] tags=["stamped"]
# ## Exercise 9.2 · Mend it: the cache that forgets what it turned
# `generation.cached_attention` · difficulty ●●○ · about 15 minutes
#
# **Why it matters.** With a cache each token is read once. A cache that is wrong raises nothing: the first
# token is right, and the rest of the answer is noise, or a little worse than it should be, which is harder to
# see.

# %% [markdown] tags=["exercise"]
# A colleague added a cache to the attention of chapter 04. The first token of every answer is right. From the second on
# the answers are words without sense, and with a prompt of several tokens that follows a cached one it crashes:
#
# ```python
# def cached_attention(q, k, v, rope, cache, mask=None):
#     k, v = cache.update(k, v)
#     q, k = apply_rope(q, *rope), apply_rope(k, *rope)
#     groups = q.shape[1] // k.shape[1]
#     k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
#     return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None)
# ```
#
# `q` `[batch, num_heads, new, head_dim]` and `k`, `v` `[batch, num_kv_heads, new, head_dim]` belong to the new tokens;
# `rope` holds the cosines and sines of *their* positions. `cache.update(k, v)` stores keys and values behind what is
# there, and returns all of them, `[batch, num_kv_heads, seen, head_dim]`. `mask` `[batch, 1, new, seen]` is True where
# a query may look; None means causal. Mend it. There are two faults.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Print what each line works on, for one new token after three old ones. How many angles does rope hold, and how
# many keys are turned by them? Which keys does is_causal=True let one single query see?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Two faults. A key is turned once, by its own position, before it is stored; what the cache holds is turned
# already. And is_causal=True lines up the first query with the first key, while your queries are the *last* of
# the keys: build the mask yourself where mask is None.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# q, k = apply_rope(q, *rope), apply_rope(k, *rope)
# k, v = cache.update(k, v)
# if mask is None:
#     mask = torch.ones(new, seen, dtype=torch.bool).tril(…)    # query i is key seen - new + i
# k, v = both with each head repeated for the query heads that share it
# return F.scaled_dot_product_attention(q, k, v, mask)
# ```
#
# </details>


# %%
def cached_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rope,
    cache,
    mask: Tensor | None = None,
) -> Tensor:
    """Attention of the new tokens over all that was seen: [batch, num_heads, new, head_dim]"""
    raise NotImplementedError("generation.cached_attention")


# %%
check("generation.cached_attention", cached_attention)

# %% [markdown] tags=["stamped"]
# ## Exercise 9.3 · Write the test: is this cache right?
# `generation.cache_test` · difficulty ●●○ · about 15 minutes
#
# **Why it matters.** A wrong cache answers in whole sentences. The one thing that shows it is a comparison with
# the same computation without a cache, on the cuts of the text at which caches break.

# %% [markdown] tags=["exercise"]
# How would you have noticed? Write a test that takes an attention as in the exercise before and returns True if its
# cache is right, else False. You have two helpers:
#
# - `in_pieces(attention, q, k, v, sizes)` hands the tokens over in pieces, through a fresh cache, and returns all
#   outputs: with `sizes=[3, 1, 2]` first three tokens, then one, then two;
# - `without_cache(q, k, v)` computes the same attention in one pass with torch alone, causal, with RoPE.
#
# Here `q` is `[batch, num_heads, length, head_dim]`, `k` and `v` are `[batch, num_kv_heads, length, head_dim]`; take
# random numbers, for example 4 heads that share 2 key/value heads, of 8 numbers each. The check runs your test on two
# right versions and on six wrong ones, and tells you which one gets through. Some wrong versions raise a `RuntimeError`
# instead of returning something wrong: your test has to return False for those as well.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# You have two ways to the same numbers: in_pieces, and without_cache. When should they agree, and for which
# cuts?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Random q, k and v of six tokens. Compare in_pieces with without_cache for three cuts: all at once, one by one,
# and a prefix followed by several at once. Use a tolerance: a sum in another order has other last bits. A
# version that raises is wrong, too.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# q, k, v = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8), torch.randn(2, 2, 6, 8)
# for sizes in three lists, each with the sum 6:
#     try:
#         same = torch.allclose(in_pieces(attention, q, k, v, sizes), …, atol=1e-4)
#     except RuntimeError:
#         same = False
#     if not same:
#         return False
# return True
# ```
#
# </details>


# %%
def cache_is_right(attention) -> bool:
    """Whether attention(q, k, v, rope, cache) gives what it would give without a cache."""
    raise NotImplementedError("generation.cache_test")


# %%
check("generation.cache_test", cache_is_right)

# %% [markdown] tags=["stamped"]
# ## Exercise 9.4 · A threshold that moves with the best
# `generation.min_p` · difficulty ●○○ · about 8 minutes
#
# **Why it matters.** Where the model is sure, a token with a tenth of the best one's probability is noise;
# where it is not, it is a fair guess. One number serves both, because it is a share and no amount.

# %% [markdown] tags=["exercise"]
# Min-p: rule out every token whose probability is below `p` times the probability of the likeliest token of its row.
# To rule out means to set the logit to minus infinity; the other logits stay as they are.
#
# With the probabilities 0.1, 0.5, 0.36 and 0.04 and `p = 0.25` the threshold is 0.125, and the first and the last token
# go. `[rows, vocab_size]` stays `[rows, vocab_size]`.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Compare probabilities, not logits. What does each one have to reach, in a row whose best has probability 0.8
# when p is 0.1?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# A softmax over the last axis; the largest of each row, with keepdim=True; rule out what is below p times that,
# in the logits, with -inf.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# probabilities = logits.softmax(dim=-1)
# return logits.masked_fill(probabilities < …, float("-inf"))
# ```
#
# </details>


# %%
def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """logits [rows, vocab_size], -inf where a token is ruled out"""
    raise NotImplementedError("generation.min_p")


# %%
check("generation.min_p", keep_min_p)

# %% [markdown] tags=["stamped"]
# ## Exercise 9.5 · The nucleus
# `generation.top_p` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** The default of most servers. Off by one token here, and a model that is 80 % sure of its
# word may never say it at p = 0.75, or says it always.

# %% [markdown] tags=["exercise"]
# Top-p, also called nucleus sampling: of each row keep the fewest likely tokens whose probabilities together reach `p`,
# the token with which they reach it included. Rule out the others with minus infinity.
#
# With the probabilities 0.12, 0.5, 0.08 and 0.3 and `p = 0.7` the tokens with 0.5 and 0.3 stay: 0.5 alone is not yet
# 0.7, and 0.5 + 0.3 is enough. With `p = 1` everything stays, although a sum of many rounded numbers may reach 1 before
# its end.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Line the tokens up from likely to unlikely and add up. When do you have enough? The token with which you reach
# p still belongs to it.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Sort each row in falling order and keep the order. A token is too much when the sum *before* it has reached p:
# cumsum minus its own probability. Then take that yes or no back to the token's own place, with scatter.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# ordered, order = logits.sort(dim=-1, descending=True)
# probabilities = ordered.softmax(dim=-1)
# too_much = …                                                        # [rows, vocabulary], in sorted order
# return logits.masked_fill(too_much.scatter(-1, order, too_much), float("-inf"))
# And p = 1 keeps everything, whatever rounding says.
# ```
#
# </details>


# %%
def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """logits [rows, vocab_size], -inf where a token is ruled out"""
    raise NotImplementedError("generation.top_p")


# %%
check("generation.top_p", keep_top_p)

# %% [markdown] tags=["stamped"]
# ## Exercise 9.6 · Draw a token
# `generation.sample` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** Three lines, and their order matters: the same settings in another order keep other
# tokens. A widely used program filters first and cools afterwards.

# %% [markdown] tags=["exercise"]
# Draw one token for each row of `logits` `[rows, vocab_size]`, and return them, `[rows]`.
#
# `temperature` divides the logits. At temperature 0, by which nothing can be divided, return the likeliest token.
# `keep` is a function such as your top-p: it takes logits and returns logits in which some are minus infinity. It sees
# the logits *at this temperature*. Draw with `torch.multinomial` and the given `generator`, so that a seed decides what
# is drawn. (The check draws 3,000 times and compares how often each token comes.)

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Temperature 0 is a case of its own: nothing can be divided by it. What does a distribution become as the
# temperature goes to 0?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# At temperature 0 the likeliest token. Else divide the logits by the temperature, let keep rule out what it
# wants, make probabilities, and draw one token for each row with torch.multinomial and the given generator.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# if temperature == 0:
#     return the likeliest, over the vocabulary
# logits = keep(…)
# return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator).squeeze(1)
# ```
#
# </details>


# %%
def sample(logits: Tensor, temperature: float, keep, generator: torch.Generator | None) -> Tensor:
    """logits [rows, vocab_size] -> tokens [rows]"""
    raise NotImplementedError("generation.sample")


# %%
check("generation.sample", sample)

# %% [markdown] tags=["stamped"]
# ## Exercise 9.7 · One step of beam search
# `generation.beam_step` · difficulty ●●● · about 20 minutes
#
# **Why it matters.** The bookkeeping is where beam searches go wrong: a beam that goes on from another beam's
# past, a finished answer that pays for every step in which others go on. Both give fluent text.

# %% [markdown] tags=["exercise"]
# One step of beam search, for one prompt. There are as many beams as `logits` has rows. For each beam you know
# `totals`, the sum of the log-probabilities of its tokens so far; `lengths`, how many tokens these are; and `finished`,
# whether its last token was an end.
#
# A running beam can go on with any token, which adds that token's log-probability to its sum and 1 to its length. A
# finished beam can go on in one way only: with the token `end`, at no cost, and without becoming longer. Of all these
# continuations of all beams together keep the best, as many as there are beams, ranked by
# $\text{sum} / \text{length}^{\text{length\_penalty}}$, the best first.
#
# Return four tensors `[beams]`: the tokens, the numbers of the beams that they continue, the new sums (not divided) and
# the new lengths.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# All continuations of all beams compete: lay the table of scores [beams, vocabulary] out flat and take the best
# of it. Which two numbers does an index into the flat table stand for?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Log-probabilities; in finished beams -inf, but 0 for end: they go on as they are, at no cost. Sums: totals
# plus those. Lengths grow by one in beams that run. Rank by sums / lengths ** length_penalty, but return the
# sums.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# log_probs = logits.log_softmax(dim=-1)
# log_probs[finished] = …; log_probs[finished, end] = …
# sums, lengths = totals[:, None] + log_probs, lengths + ~finished
# best = (sums / lengths[:, None] ** length_penalty).flatten().topk(len(totals)).indices
# beams = best // …
# return best % …, beams, sums.flatten()[best], lengths[beams]
# ```
#
# </details>


# %%
def beam_step(
    logits: Tensor,
    totals: Tensor,
    lengths: Tensor,
    finished: Tensor,
    end: int,
    length_penalty: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logits [beams, vocab_size]; totals, lengths, finished [beams]

    Returns: tokens, beams, totals, lengths, each [beams]
    """
    raise NotImplementedError("generation.beam_step")


# %%
check("generation.beam_step", beam_step)

# %% [markdown] tags=["stamped"]
# ## Exercise 9.8 · What can be shown already?
# `generation.stream_text` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** Tokens are bytes, and readers want characters. Every chat window has this function, and
# where it is wrong the reader sees � or the same word twice.

# %% [markdown] tags=["exercise"]
# An answer appears while it is written. After each token this function is called with all `ids` of the answer so far,
# with `shown`, the text that the reader sees already, and with `decode`, which turns a list of ids into text. It
# returns the text that can be added now, which may be empty.
#
# A token need not be whole characters: as long as bytes are missing, `decode` ends in `"\ufffd"` (�). And the finished
# answer has no white space at its ends. So whatever may still change is held back, and nothing is shown that the
# finished answer, `decode(ids).strip()`, will not have.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Decode all ids, not the last one. What of that text may still change when the next token comes?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Two things may change: an � at the end, which is half a character, and white space at the end, which the
# finished answer will not have. Take both off (white space at the front, too), then leave out what was shown.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# text = decode(ids) without "\ufffd" at its end, then without white space on both sides
# return the part of text behind the first …
# ```
#
# </details>


# %%
def ready_text(ids: list[int], shown: str, decode) -> str:
    """The text to add to what is shown"""
    raise NotImplementedError("generation.stream_text")


# %%
check("generation.stream_text", ready_text)

# %% [markdown] tags=["stamped"]
# ## Exercise 9.9 · Which guesses may stay?
# `generation.speculative_accept` · difficulty ●●● · about 20 minutes
#
# **Why it matters.** The rule that makes a fast decoder an exact one: whatever the draft proposes, the text has
# the probabilities of the large model. A rule that is nearly right changes the model, and no single answer
# shows it.

# %% [markdown] tags=["exercise"]
# A draft has proposed the tokens `proposed` `[k]`; token `i` was drawn from the probabilities `draft[i]`, of `draft`
# `[k, vocab_size]`. The large model has read them all in one pass: `target` `[k + 1, vocab_size]` are *its*
# probabilities in the same places, and in the one behind. `coins` `[k]` are random numbers between 0 and 1.
#
# Token `i` stays if its coin is below `target / draft`, both for that token; the first token that does not stay ends
# the run. Then one more token is drawn. After a rejection its probabilities are `target - draft` in the rejected place,
# with negative parts set to 0, divided by their sum; if all stay, they are the target's last row.
#
# Return how many tokens stay, and the probabilities `[vocab_size]` of the one that follows them.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Where the draft gives a token more probability than the target does, it proposes it too often: keep it only as
# often as makes up for that. What is then missing is what the target has more of.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Token i stays if its coin is below target / draft. Count until the first that does not: later ones were
# guessed behind a wrong token. After a rejection the next token comes from (target - draft), negative parts set
# to 0, divided by its sum, both of the rejected place. If all stay, from the target's last row.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# count = 0
# while count < len(proposed) and coins[count] < target[count, proposed[count]] / …:
#     count += 1
# if count == len(proposed):
#     return count, target[count]
# rest = (… - …).clamp(min=0)
# return count, rest / rest.sum()
# ```
#
# </details>


# %%
def accept(draft: Tensor, target: Tensor, proposed: Tensor, coins: Tensor) -> tuple[int, Tensor]:
    """draft [k, vocab_size], target [k + 1, vocab_size], proposed [k], coins [k]

    Returns: how many stay, and the probabilities of the next token, [vocab_size]
    """
    raise NotImplementedError("generation.speculative_accept")


# %%
check("generation.speculative_accept", accept)

# %% [markdown] tags=["stamped"]
# ## Exercise 9.10 · Measure it: how fast does it write?
# `generation.tokens_per_second` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** Tokens a second is the most quoted number about generation, and it can be doubled by
# counting what nobody reads, or halved by counting the first call.

# %% [markdown] tags=["exercise"]
# **Measure it.** `generate()` runs one call of a model and returns its tokens `[rows, new]`; rows that have ended are
# filled up with `end`. `clock()` returns the time in seconds. Return how many tokens a second the model writes:
#
# - the first call is not timed, because it reserves memory and may compile;
# - then `repeats` calls are timed, each on its own, and the **median** of their times counts;
# - a token counts if a row wrote it: all up to the row's first `end`, and that one too. What is filled in behind it
#   does not count.
#
# All calls write the same tokens, and `repeats` is odd. The check brings a machine whose clock is made up.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Three decisions: which calls are timed, which of their times counts, and which tokens were written at all.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Call generate once without looking at the clock. Then, `repeats` times, look at the clock before and after,
# and take the middle one of the sorted differences. Of each row count the tokens up to its first end, and that
# end.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# tokens = generate()                                       # to warm up
# for _ in range(repeats):
#     start = clock(); tokens = generate(); times.append(…)
# ended = (tokens == end).long().cumsum(dim=1)              # 0 before the first end, 1 from it on, …
# count the places where ended is 0, and one more for …
# return count / statistics.median(times)
# ```
#
# </details>


# %%
def tokens_per_second(generate, clock, end: int, repeats: int) -> float:
    """Tokens that one call writes, divided by the median of its times."""
    raise NotImplementedError("generation.tokens_per_second")


# %%
check("generation.tokens_per_second", tokens_per_second)

# %% [markdown]
# Now measure the pocket model, once with one prompt a call and once with sixteen. Predict how many times as many tokens
# a second the batch writes. (On a GPU a clock must wait for the work: call `torch.cuda.synchronize()` before you look.)

# %%
from functools import partial
from time import perf_counter

from nanovlm import VisionLanguageModel
from nanovlm.assets import asset_path
from nanovlm.inference.prompts import prepare_prompts

tokens_per_second = use("generation.tokens_per_second", tokens_per_second)
pocket = VisionLanguageModel.from_pretrained(asset_path("pocket")).eval()
image, end = asset_path("images/shapes.png"), pocket.config.eos_token_id
for rows in (1, 16):
    prompts = prepare_prompts(pocket, ["Describe the picture."] * rows, [image] * rows)
    speed = tokens_per_second(partial(pocket.generate, **prompts), perf_counter, end, 3)
    print(f"{rows:2} rows: {speed:,.0f} tokens a second")

# %% [markdown]
# ## Your own sampler writes
#
# What has passed is used: `yours()` builds the pocket model from your parts, and its answers are chosen by your loop,
# your filters and your draw.

# %%
from nanovlm.course import yours

model = yours()
print(
    model.generate(
        image=asset_path("images/shapes.png"),
        prompt="Describe the picture.",
        temperature=0.7,
        top_p=0.9,
    )
)

# %%
decode = use("generation.greedy", decode)  # your loop, or the reference until it passes
table = torch.eye(5)[[1, 2, 3, 4, 0]]  # after token t comes token t + 1
written = decode(table[:1], lambda tokens: table[tokens], lambda x: x.argmax(-1), [4], 9)
assert written.tolist() == [[1, 2, 3, 4]]

# %% [markdown]
# ## A challenge without a solution
#
# Answer 1,000 questions about Thimble pictures as fast as your machine can, with the pocket model and not one answer
# changed. Measure questions per second, with the wait for pictures counted. What helps: batches of equal length, one
# pass over the picture for all questions about it, a static cache, `torch.compile`. What may not change: compare your
# answers with `model.generate` one by one, and count the differences.
