# %% [markdown]
# # 09 Generation
#
# A trained model gives probabilities, and a reader wants words. You write the loop between the two, make it fast with a
# cache, choose tokens in six ways, and find out what each of them costs. About an hour; the code runs in two minutes.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [← 08 Training](08_training.ipynb) ·
# [10 Evaluation →](10_evaluation.ipynb) ·
# [exercises](../exercises/09_generation.ipynb) ·
# [notation and terms](notation.md)
#
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/chapters/09_generation.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/chapters/09_generation.ipynb

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

# %% [markdown]
# **After this chapter you can**
#
# 1. write a decode loop with a key/value cache that stops where it should, and test that the cache changes nothing;
# 2. say what temperature, top-k, top-p, min-p, a repetition penalty, beams and constraints do to a distribution, and
#    choose among them for a purpose;
# 3. make generation faster (cache, batches, speculative decoding) and measure whether it became so.

# %% [markdown]
# **You need** the decoder of chapter 04 (attention, RoPE, the mask) and the model of chapter 06. **Time**: twenty
# minutes of text, twenty-five for the code, ten for seven quizzes and three levers; the exercises take two hours more.

# %%
import math
from collections import Counter
from functools import partial

import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance
from torch import Tensor

# %%
from nanovlm import VisionLanguageModel
from nanovlm.assets import asset_path
from nanovlm.course import budget, expect_shape, lever, quiz, use, yours
from nanovlm.course.chapter_09 import seconds
from nanovlm.data.thimble import Thimble
from nanovlm.evaluation.scores import answer_all, interval, questions_of
from nanovlm.inference.prompts import prepare_prompts

# %% [markdown]
# ## The question: does one model give one answer?
#
# You ask the pocket model to describe a picture, five times. The next token is *drawn* each time, with the probability
# that the model gives it.

# %%
quiz("ch09.five_answers")

# %%
pocket = VisionLanguageModel.from_pretrained(asset_path("pocket")).eval()
image = Image.open(asset_path("images/shapes.png")).convert("RGB")
describe = "Describe the picture."

for name, shown in (("with the picture", image), ("without a picture", None)):
    answers = pocket.generate(
        image=shown, prompt=describe, num_generations=5, temperature=1.0, seed=0
    )
    different = list(dict.fromkeys(answers))
    print(f"{name}: {len(different)} different among {len(answers)} answers")
    print("    " + "\n    ".join(different))

# %% [markdown]
# With the picture all five agree, because at every step one token has nearly all of the probability, so that the draw
# has no choice. Without a picture the model must guess, and its five guesses differ.
#
# So the model gives a *distribution* over answers, one token at a time, and what you read depends on how you choose from
# it. Before that choice comes the loop around it.

# %% [markdown]
# ## The loop reads, chooses, and reads again
#
# The model reads a sequence and gives logits for the token that follows. Choose a token by them, append it to the
# sequence, and begin again. With the likeliest token at every step this is called **greedy decoding**. Here it is
# without any refinement:

# %%
prompt = prepare_prompts(pocket, [describe], [image])
ids, images = prompt["input_ids"], prompt["images"]  # [1, length], [1, 3, 64, 64]
end, words = pocket.config.eos_token_id, pocket.tokenizer.decode
length = ids.shape[1]

with torch.no_grad():
    for _ in range(30):
        logits = pocket(ids, images).logits[:, -1]  # [1, vocab_size]
        ids = torch.cat([ids, logits.argmax(dim=-1, keepdim=True)], dim=1)
written = ids[0, length:].tolist()
print(words(written))
print(f"{written}; the end token, {end}, is token {written.index(end) + 1} of them")

# %% [markdown]
# The answer is right, and then it goes on. The model did write its end token, but the loop took no notice, and behind
# an end the model has learnt nothing: whatever comes there is noise.

# %% [markdown]
# A loop therefore stops for one of three reasons:
#
# - the model wrote an **end token**. There may be several: chat models end a turn with one and a document with another;
# - it wrote **max_new_tokens**, your limit for the case that no end comes;
# - its text contains a **stop string** of your choice. A string may be spread over several tokens, so one looks for it
#   in the decoded text.

# %%
print(pocket.generate(image=image, prompt=describe, max_new_tokens=7))
print(pocket.generate(image=image, prompt=describe, stop=". bottom"))

# %% [markdown]
# In a batch, rows end at different steps. A row that has ended is filled with the end token while the others write, and
# the loop stops when all have ended, not when the first one has. You write this loop in [exercise
# 9.1](../exercises/09_generation.ipynb), without the model in it: it gets a function `step`, which reads one token for
# each row, and a function `choose`. From here on the chapter uses your version if it passes.

# %%
decode = use("generation.greedy")

# %% [markdown]
# ## Without a cache every step reads the whole sequence again
#
# The loop above hands the *whole* sequence to the model in every step, the picture too, although nothing of it has
# changed but the last token.

# %%
quiz("ch09.work")

# %%
from nanovlm.viz.generation import beams_figure, guesses_figure, lines_figure

steps = list(range(1, 61))
again = [sum(30 + i for i in range(step)) for step in steps]  # read 30, then 31, then 32, …
once = [30 + step - 1 for step in steps]
print(f"60 tokens: {again[-1]:,} read without a cache, {once[-1]} with one")
reading = {"without a cache": again, "with a cache": once}
axes = "tokens of the answer", "tokens that the decoder has read"
lines_figure(steps, reading, "What a cache saves", *axes)

# %% [markdown]
# One line grows with the square of the answer's length, the other with the length. What makes the second one possible?
# A decoder is causal: what it computes for a token depends on that token and on earlier ones. Nothing that comes later
# can change it. Of an earlier token later ones need two things only, its key and its value, in every block.

# %% [markdown]
# ## A cache keeps keys and values, and gives the same numbers
#
# Here is one head with five tokens. Token by token, we keep each key and value, and let the new query attend to all of
# them. No mask is needed, because a key that has not been computed yet cannot be attended to.

# %%
torch.manual_seed(0)
q, k, v = torch.randn(5, 4), torch.randn(5, 4), torch.randn(5, 4)  # five tokens, head_dim 4
keys, values, outputs = [], [], []
for t in range(5):
    keys.append(k[t])
    values.append(v[t])
    weights = (torch.stack(keys) @ q[t] / math.sqrt(4)).softmax(dim=0)  # [t + 1]
    outputs.append(weights @ torch.stack(values))

whole = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
torch.testing.assert_close(torch.stack(outputs), whole)
print("token by token and all at once:", expect_shape(whole, "5 4"), "with the same numbers")

# %% [markdown]
# The package does this for all heads and blocks in `KVCache`, in memory that is reserved once. Reading the prompt is
# the **prefill**: many tokens in one pass. Then comes **decoding**: one token a pass. Two details matter: RoPE turns a
# key by its own position *before* it is stored, and the positions of new tokens go on counting behind the prompt.

# %%
from nanovlm.models.language_model import KVCache

with torch.no_grad():
    x, _, _ = pocket.embed(prompt["input_ids"], images, None)  # no mask: [1, length, dim]
    cache = KVCache(pocket.config.language, batch_size=1, max_length=length + 40, like=x)
    logits = pocket.decoder.head(pocket.decoder(x, cache=cache)[:, -1])  # the prefill
reserved = sum(block.keys.nbytes + block.values.nbytes for block in cache.blocks)
print(f"{cache.length} tokens are in the cache; logits: {expect_shape(logits, '1 444')}")
print(f"the cache takes {reserved // (length + 40):,} bytes a token")


# %%
def step(tokens: Tensor) -> Tensor:
    """Read one token a row, [rows] -> logits [rows, vocab_size]"""
    with torch.no_grad():
        new = pocket.decoder.token_embedding(tokens)[:, None]  # [rows, 1, dim]
        return pocket.decoder.head(pocket.decoder(new, cache=cache)[:, -1])


answer = decode(logits, step, lambda logits: logits.argmax(dim=-1), [end], 40)[0].tolist()
print(words(answer))

# %% tags=["claim"]
assert answer == written[: len(answer)]

# %% [markdown]
# The tokens are the same, and this time the loop has stopped at the end. (What a token takes in the cache is a key and
# a value for each key/value head of each block, which chapter 04 counts for a larger model.) How much time was saved?


# %%
@torch.no_grad()
def without_cache() -> None:
    for i in range(len(answer)):
        pocket(ids[:, : length + i], images)


slow, fast = (1000 * seconds(run) for run in (without_cache, partial(pocket.generate, **prompt)))
print(f"{slow:.0f} ms without a cache, {fast:.0f} ms with one: {slow / fast:.1f} times as fast")

# %% [markdown]
# The saving in time is smaller than the one in tokens, because a pass over one token costs far more than a fortieth of
# a pass over forty: starting each operation and reading the weights cost the same for both. That fixed cost returns
# later in the chapter, where it explains why batches and guesses help.

# %% [markdown]
# ## A wrong cache answers in whole sentences
#
# Here are four mistakes that people make in a cache. Each of them runs without an error on this model:
#
# - **turned on every read**: a key is turned by the newest token's angle, instead of once by its own;
# - **is_causal with one query**: PyTorch then lines up the first query with the first key, so that a single new query
#   attends to the first key alone;
# - **stores over the last**: each new key replaces the one before;
# - **no mask**: in the prefill, tokens attend to later ones.
#
# The first token of an answer comes from the prefill, which finds the cache empty: which of the four spoil even that
# one?

# %%
from nanovlm.models.language_model import apply_rope


def faulty(q, k, v, rope, cache, mask=None, fault=""):
    q, turned, old = apply_rope(q, *rope), apply_rope(k, *rope), cache.length
    if fault == "turned on every read":
        k, v = cache.update(k, v)
        k = apply_rope(k, *rope)
    else:
        k, v = cache.update(turned, v)
    if fault == "stores over the last" and old:
        cache.length = old
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    single = q.shape[2] == 1 and fault != "is_causal with one query"
    return F.scaled_dot_product_attention(q, k, v, is_causal=not single and fault != "no mask")


# %%
FAULTS = "turned on every read", "is_causal with one query", "stores over the last", "no mask"
test = Thimble("shapes", "test")
questions = questions_of([test[i] for i in range(budget().pick(ci=6, laptop=20))])
for fault in ("no fault", *FAULTS):
    model = yours(replace={"generation.cached_attention": partial(faulty, fault=fault)})
    right = sum(a == q.answer for a, q in zip(answer_all(model, questions), questions, strict=True))
    print(f"{fault.upper()}: {right} of {len(questions)} right")
    print("   ", model.generate(image=image, prompt=describe, max_new_tokens=30), "\n")

# %% [markdown]
# Compare the share of right answers with the captions. Most questions have an answer of one token, which comes
# straight out of the prefill, so a cache that ruins every caption may leave most of the score. Only the last fault
# touches the prefill. It changes neither the score nor the caption here, although from the second block on the keys and
# values of the whole prompt are others. A benchmark of short answers would pass two of these caches, and take the others
# for weaker models.

# %% [markdown]
# What notices is a comparison: the same tokens with a cache and without one must give the same numbers, however the
# sequence is cut into pieces. In exercise 9.2 you mend such a cache, and in 9.3 you write the test that would have
# caught it.

# %% [markdown]
# ## Temperature sets how much a difference counts
#
# Now to the choice. We need a distribution with something to choose, and a clear picture gives none. So we ask about a
# picture without showing one. *Which bar is the shortest?* The model has to guess a colour:


# %%
@torch.no_grad()
def next_logits(question: str, image: Image.Image | None = None, said: str = "") -> Tensor:
    """The logits of the token that follows, [vocab_size]"""
    batch = prepare_prompts(pocket, [question], [image])
    begun = torch.tensor([pocket.tokenizer.encode(said)], dtype=torch.long)
    ids = torch.cat([batch["input_ids"], begun], dim=1)
    return pocket(ids, batch["images"]).logits[0, -1].float()


def name_of(token: Tensor | int) -> str:  # (bytes): a token that is no whole character
    return words([int(token)]).strip() or ("(end)" if int(token) == end else "(bytes)")


guess = next_logits("Which bar is the shortest?")
expect_shape(guess, "444")
for p, token in zip(*guess.softmax(dim=-1).topk(7), strict=True):
    print(f"{name_of(token):12}{p:7.1%}")

# %% [markdown]
# The six colours share nearly all of the probability. The **temperature** $T$ divides the logits before the softmax:
#
# $$p_i \propto e^{z_i / T} = \left(e^{z_i}\right)^{1/T}$$
#
# At $T = 1$ these are the model's own probabilities, which training has fitted to the data. Below 1, differences
# between logits grow and the likeliest gains; as $T$ goes to 0 it takes all, which is greedy decoding. Above 1 the
# distribution becomes flat.

# %%
quiz("ch09.temperature")

# %%
from nanovlm.inference.sampling import keep_top_k

keep_top_p, keep_min_p = use("generation.top_p"), use("generation.min_p")
FILTERS = {
    "none": lambda logits: logits,
    "top-k 3": partial(keep_top_k, k=3),
    "top-p 0.8": partial(keep_top_p, p=0.8),
    "min-p 0.2": partial(keep_min_p, p=0.2),
}

# %%
from nanovlm.viz.generation import next_token_figure


def bars(title: str, logits: Tensor, temperature: float, rule: str = "none", shown: int = 10):
    return next_token_figure(title, logits, temperature, rule, FILTERS[rule], name_of, shown)


heat = [0.25, 0.5, 1.0, 1.5, 2.0, 4.0]
lever(partial(bars, "The shortest bar is …", guess), start={"temperature": 1.0}, temperature=heat)

# %% [markdown]
# How undecided is such a distribution? Its **entropy**, in bits, is the number of yes-or-no questions that it takes on
# average to find out what was drawn: 1 bit for a fair coin, $\log_2 6 = 2.58$ bits for a die.

# %%
for temperature in (0.25, 0.5, 1.0, 2.0, 4.0):
    p = (guess / temperature).softmax(dim=-1)
    bits = -(p * p.clamp(min=1e-12).log2()).sum()
    other = 1 - p.topk(6).values.sum()
    print(f"temperature {temperature:4}: {bits:5.2f} bits; no colour at all: {other:6.1%}")

# %% [markdown]
# Look at the last column. At temperature 4 the answer is often not a colour: the vocabulary has hundreds of tokens that
# are each nearly impossible, and together they are not. This **tail** is the trouble with sampling, and the reason why
# there are filters.

# %% [markdown]
# ## Top-k, top-p and min-p cut the tail in different places
#
# A question with a longer tail is *What does the sign say?*, again without a picture. All three rules keep the
# likeliest tokens and rule out the others. They differ in where they cut:
#
# - **top-k** keeps a fixed number, however sure the model is;
# - **top-p** keeps the fewest tokens that together reach the probability `p`;
# - **min-p** keeps whatever has at least `p` times the probability of the best.

# %%
quiz("ch09.min_p")

# %%
sign = next_logits("What does the sign say?")
lever(
    partial(bars, "The sign says …", sign, shown=12),
    start={"rule": "min-p 0.2", "temperature": 1.0},
    rule=list(FILTERS),
    temperature=[0.5, 1.0, 2.0],
)

# %% [markdown]
# How many tokens does each rule leave where the model is sure, and where it is not?

# %%
sure = next_logits("Which shape is at the top left?", image)
columns = ("rule", "sure", "colours", "sign", "sign, T = 2")
print("".join(f"{name:>12}" for name in columns))
for rule, keep in FILTERS.items():
    left = [int(keep(x[None]).isfinite().sum()) for x in (sure, guess, sign, sign / 2)]
    print(f"{rule:>12}" + "".join(f"{count:12}" for count in left))

# %% [markdown]
# Where the model is sure of one token, top-k lets two others in nevertheless. Top-p and min-p follow the model. When the
# temperature rises, top-p opens wide, since a flat distribution needs many tokens to reach 0.8, while min-p stays close
# to the best ([Nguyen et al. 2024](https://arxiv.org/abs/2407.01082) propose it for this reason; [Holtzman et al.
# 2020](https://arxiv.org/abs/1904.09751) proposed top-p).
#
# Exercises 9.4 and 9.5 are min-p and top-p, and 9.6 is the draw itself.

# %% [markdown]
# ## The order of filter and temperature changes what is kept
#
# Temperature first, then the filter, or the other way round? One place to look is nanoVLM, Hugging Face's project,
# whose `generate` of October 2025 [filters
# first](https://github.com/huggingface/nanoVLM/blob/4e0c0961846135c2217f95e54cb4c2d66eb55e42/models/vision_language_model.py#L120-L121)
# and divides by the temperature afterwards. In a few lines, on the colours:


# %%
def shares(logits: Tensor) -> str:
    p = logits.softmax(dim=-1)[0]
    return ", ".join(f"{name_of(t)} {p[t]:.0%}" for t in p.argsort(descending=True) if p[t] > 0.001)


for temperature in (0.5, 1.5):
    print(f"temperature {temperature}, top-p 0.6")
    print("    temperature first:", shares(keep_top_p(guess[None] / temperature, 0.6)))
    print("    filter first:     ", shares(keep_top_p(guess[None], 0.6) / temperature))

# %% [markdown]
# When it is cold, filtering first keeps tokens that the cold distribution no longer needs; when it is hot, it keeps
# fewer. Neither order is forbidden, but a setting such as "temperature 0.5, top-p 0.9" means different things in the
# two, so a paper's numbers cannot be repeated with the other one. Transformers and the package divide first.

# %% [markdown]
# The same project has two more of this chapter's stories. Its
# [top-p](https://github.com/huggingface/nanoVLM/blob/4e0c0961846135c2217f95e54cb4c2d66eb55e42/models/utils.py) drops
# the token with which the sum crosses `p`, and its loop always runs for `max_new_tokens` steps and cuts the rows at
# their ends afterwards, so that every answer takes the time of the longest possible one.


# %%
def without_the_crossing(logits: Tensor, p: float) -> Tensor:
    ordered, order = logits.sort(dim=-1, descending=True)
    out = ordered.softmax(dim=-1).cumsum(dim=-1) > p
    out[:, 0] = False  # the likeliest always stays
    return logits.masked_fill(out.scatter(1, order, out), float("-inf"))


for p in (0.5, 0.7, 0.8):
    print(f"top-p {p}: {shares(keep_top_p(guess[None], p))}   without the crossing token: ", end="")
    print(shares(without_the_crossing(guess[None], p)))

# %% [markdown]
# ## For short answers sampling costs accuracy
#
# Sampling makes stories lively. What does it do to answers that are right or wrong? On clear pictures nothing, because
# the model is sure. So we reduce the pictures' contrast to 30 %, where it is right about three times in four.


# %%
def pale(image: Image.Image, contrast: float) -> Image.Image:
    return ImageEnhance.Contrast(image.convert("RGB")).enhance(contrast)


hard = questions_of([test[i] for i in range(budget().pick(ci=10, laptop=30))])
asked = {"prompt": [q.text for q in hard], "image": [pale(q.images[0], 0.3) for q in hard]}
asked["max_new_tokens"] = 8


def count_right(**options) -> int:
    answers = pocket.generate(**asked, **options)
    return sum(answer == q.answer for answer, q in zip(answers, hard, strict=True))


# %%
temperatures = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0]
right = {
    name: [count_right(temperature=t, seed=0, **options) for t in temperatures]
    for name, options in (("no cut", {}), ("min-p 0.2", {"min_p": 0.2}))
}

# %%
lines_figure(
    temperatures,
    {name: [count / len(hard) for count in row] for name, row in right.items()},
    f"Right answers of {len(hard)}, pictures at 30 % contrast",
    "temperature",
    "share of right answers, with a 95 % interval",
    {name: [interval(count, len(hard)) for count in row] for name, row in right.items()},
    percent=True,
)

# %% [markdown]
# Greedy decoding is the leftmost point. A draw can only move away from the token that the model holds to be the
# likeliest, so a rising temperature costs accuracy, and a cut gives most of it back. The intervals are wide, because
# there are few questions: up to temperature 1.5 the figure shows no difference, and only the fall of the uncut curve at
# its right end is larger than its intervals. (All points share the same questions, which a paired test would use:
# chapter 10.)

# %% [markdown]
# ### Five answers say how sure the model is
#
# Drawing has a use even here. Ask five times at temperature 1: how often do the answers agree, and is the majority
# right?

# %%
drawn = pocket.generate(**asked, temperature=1.0, num_generations=5, seed=0)
groups = [Counter(drawn[5 * i : 5 * i + 5]).most_common(1)[0] for i in range(len(hard))]
for agree in (5, 4, 3, 2, 1):
    those = [answer == q.answer for (answer, n), q in zip(groups, hard, strict=True) if n == agree]
    if those:
        low, high = interval(sum(those), len(those))
        share = sum(those) / len(those)
        print(f"{agree} of 5 agree: {len(those):3} questions, {share:4.0%} right", end=" ")
        print(f"({low:.0%} to {high:.0%})")

# %%
vote = sum(answer == q.answer for (answer, _), q in zip(groups, hard, strict=True))
print(f"right: the majority {vote} times, greedy decoding {count_right()} times, of {len(hard)}")

# %% [markdown]
# Where all five agree, the model is right more often than where they differ, as far as the few others can tell (look at
# their intervals): agreement is a measure of confidence that needs no logits. The majority itself
# (**self-consistency**) is hardly better than greedy decoding here. It helps where an answer follows a chain of
# reasoning that can be reached in several ways; "red" has no such chain.

# %% [markdown]
# ## Greedy decoding can repeat itself without end
#
# At 20 % contrast, one picture makes the model do this:

# %%
faint = pale(test[10]["images"][0], 0.2)
question = "Which shape is at the bottom left?"
print(pocket.generate(image=faint, prompt=question, max_new_tokens=14))

# %% [markdown]
# The answer "nothing nothing" occurs nowhere in training. How probable is one more *nothing*, after each number of them?

# %%
nothing = pocket.tokenizer.encode(" nothing")[-1]
for count in (0, 1, 2, 3, 5, 8, 12):
    p = next_logits(question, faint, " nothing" * count).softmax(dim=-1)
    print(f"after {count:2} × nothing: {p[nothing]:6.1%} for one more, {p[end]:6.1%} for the end")

# %% [markdown]
# After the first *nothing* one more is the likeliest token at every length that we look at. In training every *nothing*
# was followed by a full stop and never by itself, so the model has not learnt how to leave such a sequence, and greedy
# decoding, which always takes the likeliest token, does not leave it.
#
# A **repetition penalty** makes tokens that the answer holds already less likely: positive logits are divided by it,
# negative ones multiplied ([Keskar et al. 2019](https://arxiv.org/abs/1909.05858)).

# %%
asked_again = {"image": faint, "prompt": question, "max_new_tokens": 14}
for penalty in (1.0, 1.3, 2.0):
    answer = pocket.generate(**asked_again, repetition_penalty=penalty)
    print(f"penalty {penalty}: {answer!r}")

# %% [markdown]
# The loop ends, but the answer is still wrong, since the model does not see the shape: a penalty treats the symptom. It
# has a side effect as well. A right caption repeats itself, *top left: … top right: …*, and two of its shapes may have
# the same colour. How many captions of clear pictures does a penalty leave intact?

# %%
captions = [test[i]["texts"][-1]["assistant"] for i in range(12)]
clear = {"image": [test[i]["images"][0] for i in range(12)], "prompt": [describe] * 12}
for penalty in (1.0, 2.0, 3.0):
    answers = pocket.generate(**clear, repetition_penalty=penalty)
    wrong = [answer for answer, caption in zip(answers, captions, strict=True) if answer != caption]
    print(f"penalty {penalty}: {12 - len(wrong):2} of 12 right")
    print("".join(f"  not right: {answer}\n" for answer in wrong[:2]), end="")

# %% [markdown]
# Up to a point the model is so sure of its words that the penalty does not matter. Beyond it, words are exchanged for
# others *because* they are right twice. For answers like ours leave the penalty off.

# %% [markdown]
# ## Beam search finds answers that greedy decoding walks past
#
# Greedy decoding commits itself at every step. What if the best beginning is only the second-best token?

# %%
quiz("ch09.beams")

# %%
faint_sign = Thimble("glyphs", "test")[7]
dim = pale(faint_sign["images"][0], 0.3)
print("the true caption:", faint_sign["texts"][-1]["assistant"])

# %%
from nanovlm.evaluation.likelihood import answer_log_probs

for num_beams in (1, 2):
    answer = pocket.generate(image=dim, prompt=describe, num_beams=num_beams, length_penalty=0.0)
    total, _ = answer_log_probs(pocket, [describe], [[dim]], [answer])
    print(f"beams: {num_beams}, log-probability {total.item():.2f}  {answer}")

# %% [markdown]
# On this faint picture of a sign greedy decoding begins with "2", as if it had been asked to count, and from there
# every continuation is bad, so that the caption turns into another kind of picture half-way. Two beams keep a second
# beginning alive, and end in a caption that the model holds to be likelier. (Its characters are wrong all the same: a
# search finds what the model believes.) Step by step, with all candidates that compete:

# %%
beams: list[tuple[list[int], float]] = [([], 0.0)]
drawing = []
for _ in range(4):
    options = []  # (sum of log-probabilities, beam, its tokens)
    for beam, (said, total) in enumerate(beams):
        best = next_logits(describe, dim, words(said)).log_softmax(dim=-1).topk(2)
        for p, token in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            options.append((total + p, beam, [*said, token]))
    options.sort(key=lambda option: option[0], reverse=True)
    ranked = enumerate(options)
    drawing.append([(name_of(said[-1]), beam, total, i < 2) for i, (total, beam, said) in ranked])
    beams = [(said, total) for total, _, said in options[:2]]
beams_figure(drawing, "Two beams, four tokens")

# %% [markdown]
# At every step all continuations of all beams compete, and the best two go on, even if both come from one beam.

# %% [markdown]
# Three details make it work, and exercise 9.7 asks for each of them:
#
# - sums of **log-probabilities** are compared, because logits of different steps have no common scale;
# - a **finished** beam stays in the competition as it is, at no further cost;
# - every token lowers the sum, so that short answers win unfairly. Dividing by $\text{length}^a$, with the **length
#   penalty** $a$, corrects for that; $a = 0$ does not, and $a = 1$ compares means.

# %% [markdown]
# The cache must follow: a beam that goes on from another one's past takes over that one's keys and values. Beams help
# where one answer is right and long, in translation or in reading text. In open-ended text they give dull answers, since
# the likeliest text is not the most natural one (Holtzman et al. show it well).

# %% [markdown]
# ## Scoring an answer needs no generation
#
# `answer_log_probs` above adds up the log-probabilities of a *given* answer's tokens. One pass is enough for an answer of
# any length, because in a causal model all positions are computed at once. So we can ask about answers that we wrote:

# %%
three = ["red", "blue", "green"]
question = "What colour is the shape at the top left?"
sums, _ = answer_log_probs(pocket, [question] * 3, [[image]] * 3, three)
print({colour: round(p, 4) for colour, p in zip(three, sums.exp().tolist(), strict=True)})

# %% [markdown]
# This makes a multiple-choice test possible for a model that has never learnt to answer with a letter. Chapter 10 does
# so, and asks what is fair when the options differ in length.

# %% [markdown]
# ## Only allowed answers: form without knowledge
#
# Sometimes you know which answers are possible. Then rule out every token that leads to none of them. The allowed
# answers form a tree, a **trie**, whose edges are tokens; each row walks from the root to an end, and at each node only
# the tokens below it may be chosen.

# %% tags=["nbval-check-output"]
from nanovlm.inference.logits_processors import Choices

places = ["top left", "top right", "bottom left", "bottom right", "no"]
tree = Choices([pocket.tokenizer.encode(place) for place in places], end)


def show(node: dict, depth: int = 0) -> None:
    for token, below in node.items():
        print("    " * depth + (repr(words([token])) if token != end else "(end)"))
        show(below, depth + 1)


show(tree.root)

# %%
quiz("ch09.constrained")

# %%
colours = ["red", "blue", "green", "yellow", "purple", "orange"]
about = [q for q in questions_of([test[i] for i in range(40)]) if q.kind == "colour"]
texts = [q.text for q in about]
for contrast in (1.0, 0.1):
    views = [pale(q.images[0], contrast) for q in about]
    for name, choices in (("free", ()), ("six colours", colours)):
        answers = pocket.generate(prompt=texts, image=views, choices=choices, max_new_tokens=12)
        right = sum(a == q.answer for a, q in zip(answers, about, strict=True))
        outside = sum(a not in colours for a in answers)
        print(f"contrast {contrast:4.0%}, {name:12} {right:2} of {len(about)} right,", end=" ")
        print(f"{outside} answers are no colour")

# %% [markdown]
# The constraint makes every answer usable by a program, and that is worth having. But look at the row of 10 % contrast:
# an answer that is no colour is a sign that the model is lost, and the mask removes the sign, not the loss. Report
# accuracy with the constraint beside chance (here one in six), or beside the probability that the model gave to all
# forbidden tokens together.

# %% [markdown]
# ## A batch shares the cost of a pass
#
# A pass over one token leaves most of the machine idle, so one answers many prompts in one batch. Prompts differ in
# length. The padding goes to the **left**, so that every row ends in its last real token, behind which the first new
# one belongs.

# %%
asked_two = ["How many?", "What colour is the shape at the top left?"]
two = prepare_prompts(pocket, asked_two, [None, None])
for row, real in zip(two["input_ids"], two["attention_mask"], strict=True):
    tokens = [repr(words([int(t)]))[1:-1] if r else "·" for t, r in zip(row, real, strict=True)]
    print(" ".join(tokens))

# %% [markdown]
# How much faster is a batch, and how much of its work goes to rows that have ended already?

# %%
sixteen = [test[i]["images"][0] for i in range(16)]
mixed = [describe] + ["Which shape is at the top left?"] * 15  # one long answer among short ones


def in_batches_of(size: int) -> None:
    for i in range(0, 16, size):
        pocket.generate(image=sixteen[i : i + size], prompt=mixed[i : i + size])


alone, together = (1000 * seconds(partial(in_batches_of, size)) for size in (1, 16))
print(
    f"{alone:.0f} ms one by one, {together:.0f} ms together: {alone / together:.1f} times as fast"
)

# %%
rows = pocket.generate(**prepare_prompts(pocket, mixed, sixteen))  # [16, new]
idle = ((rows == end).sum() - 16) / rows.numel()
print(f"{rows.numel()} places in the batch, {idle:.0%} of them behind the row's end")

# %% [markdown]
# The one long answer keeps all other rows waiting. The package therefore sorts prompts by their work, and a server lets
# the next prompt take the place of a row that has ended, which [chapter 16](16_small_and_fast.ipynb) draws. (Tokens a
# second are easily measured wrongly: [exercise 9.10](../exercises/09_generation.ipynb) is to measure them.)
#
# One trap is left. If rows draw from one common generator, what a row gets depends on its neighbours, and another batch
# size gives other answers. So the package gives each row a generator of its own.

# %% [markdown]
# ## Streaming: tokens are bytes, readers want characters
#
# A reader would rather watch the answer grow than wait for it. But a token is a piece of a sequence of *bytes*, and one
# character may have several bytes. Decode after each token, and this happens:

# %%
pieces = pocket.tokenizer.encode("20 °C 🙂")
for count in range(1, len(pieces) + 1):
    print(repr(words(pieces[:count])))

# %% [markdown]
# The sign � stands for bytes that are not a character yet. Nor can one decode each token alone and join the results:
# half a character plus half a character is two � and not one °. So decode *all* ids, hold back what may still change,
# and show the rest of what is new. Exercise 9.8 does so in three lines. Here it is at work:

# %%
shown = []
pocket.generate(image=image, prompt="Where is the red star?", on_text=shown.append)
print(shown)

# %% [markdown]
# ## Speculative decoding: guess cheaply, check exactly
#
# A pass over four tokens takes little longer than a pass over one, because either starts each operation and fetches
# each weight once. So let a small **draft** model guess three tokens, and let the large one read them all in one pass.
# Behind each guess it says what it would have written itself. Guesses that agree stay; at the first that does not, its
# own token takes the place, and the rest is thrown away.

# %%
quiz("ch09.speculative")

# %% [markdown]
# For a draft we need no second model. The first three of the pocket decoder's four blocks, with the same norm and head,
# are an **early exit** that often gives the same token:

# %%
from nanovlm.inference.speculative import early_exit, generate_speculatively

exit_3 = early_exit(pocket.decoder, 3)


@torch.no_grad()
def likeliest(decoder, ids: Tensor) -> Tensor:
    """What greedy decoding would write behind each token, [length]"""
    x, _, _ = pocket.embed(ids, images, None)
    return decoder.head(decoder(x))[0].argmax(dim=-1)


# %%
ids, rounds = prompt["input_ids"], []
while int(ids[0, -1]) != end:
    ahead = ids
    for _ in range(3):
        ahead = torch.cat([ahead, likeliest(exit_3, ahead)[None, -1:]], dim=1)
    truth = likeliest(pocket.decoder, ahead)[ids.shape[1] - 1 :]  # four places in one pass
    guesses = ahead[0, ids.shape[1] :]
    kept = int((guesses == truth[:3]).long().cumprod(dim=0).sum())
    fates = ["kept"] * kept + ["rejected"] * (3 - kept) + ["own"]
    shown = map(name_of, [*guesses, truth[kept]])
    rounds.append(list(zip(shown, fates, strict=True)))
    ids = torch.cat([ids, guesses[None, :kept], truth[None, kept : kept + 1]], dim=1)

# %%
new = ids.shape[1] - length
guesses_figure(rounds, f"{new} tokens in {len(rounds)} passes of the whole decoder")

# %% [markdown]
# The text is that of greedy decoding, token by token, because every token that stays is one that the whole model chose.
#
# ### The rule for drawn tokens
#
# At a temperature above 0 "agrees" has no meaning: both models draw. Take one place and three tokens. The draft draws
# from $q$, and we want a token from $p$:

# %% tags=["nbval-check-output"]
q = torch.tensor([0.6, 0.3, 0.1])  # the draft
p = torch.tensor([0.3, 0.5, 0.2])  # the whole model
for name, a, b in zip("ABC", q, p, strict=True):
    print(f"{name}: drafted {a:.0%}, wanted {b:.0%}")

# %% [markdown]
# The draft proposes A twice as often as it should, so an A may stay only half of the time, that is with probability
# $p/q$. B and C it proposes too seldom, so these always stay. What is then missing is exactly what $p$ has more of than
# $q$: so after a rejection draw from $\max(p - q, 0)$, divided by its sum
# ([Leviathan et al. 2023](https://arxiv.org/abs/2211.17192)). Add it up:

# %% tags=["nbval-check-output"]
stays = (p / q).clamp(max=1)
rest = (p - q).clamp(min=0)
rest = rest / rest.sum()
rejected = (q * (1 - stays)).sum()
for name, kept, drawn in zip("ABC", q * stays, rejected * rest, strict=True):
    print(f"{name}: {kept:.0%} from guesses that stay, {drawn:.0%} after a rejection,", end=" ")
    print(f"{kept + drawn:.0%} together")
torch.testing.assert_close(q * stays + rejected * rest, p)

# %% [markdown]
# The sum is exactly $p$, and it would be so for any draft. Exercise 9.9 asks for this rule over several
# guesses. The tests of the package check in the same way that the distribution is the model's own.

# %% [markdown]
# ### Is it faster?

# %%
views = [test[i]["images"][0] for i in range(budget().pick(ci=2, laptop=8))]
batches = [prepare_prompts(pocket, [describe], [view]) for view in views]


def plainly() -> int:
    return sum(pocket.generate(**batch).shape[1] for batch in batches)


total = plainly()
print(f"plain: {total} tokens, {total} passes of the decoder, {seconds(plainly, times=2):.2f} s")


# %%
def drafted(blocks: int) -> list:
    run = partial(generate_speculatively, pocket, early_exit(pocket.decoder, blocks))
    return [run(batch["input_ids"], batch["images"]) for batch in batches]


for blocks in (1, 2, 3):
    results, took = drafted(blocks), seconds(partial(drafted, blocks), times=2)
    kept = sum(r.accepted for r in results) / sum(r.proposed for r in results)
    passes = sum(r.passes for r in results)
    print(f"{blocks} of 4 blocks draft: {passes} passes, {kept:.0%} of guesses kept, {took:.2f} s")

# %% [markdown]
# The passes of the whole decoder fall, to about a third with the best draft. The time does not fall with them, because
# three blocks of four are not a cheap draft. When does it pay? With $k$ guesses a round, of which a share $a$ is kept
# at each place, a round gives $1 + a + a^2 + \dots + a^k$ tokens. It costs one pass and $k$ drafted tokens, each of
# which costs a part $c$ of a pass:

# %%
from nanovlm.viz.generation import speed_up_figure

lever(speed_up_figure, guesses=[1, 2, 3, 5, 8], start={"guesses": 3})

# %% [markdown]
# Where half of the guesses are kept, a draft that costs a quarter of a pass gains next to nothing, and one that costs a
# half loses. An early exit of a four-block model cannot be cheap enough. A 30-block decoder whose exit is after three
# blocks and *trained* for it could be, and so could a 135M model that drafts for a 1.7B one with the same tokenizer.

# %% [markdown]
# In a large model a token takes at least the time in which all weights are fetched from memory, for two operations each.
# A batch fetches them once for all its rows, and a speculative pass once for several tokens. [Chapter
# 16](16_small_and_fast.ipynb) counts this for the 222M model, and makes the weights smaller.

# %% [markdown]
# ## A conversation about one picture encodes it once
#
# For a second question about the same picture `generate` reads the whole conversation again, the picture too, although
# the cache has just held its keys and values. So keep the cache *between* answers: compare each new sequence with what
# the cache has read, forget what lies behind the first difference, and read only the rest. This is **prefix caching**,
# and the package's `PrefixReader` does it in a dozen lines. What remains is the loop of a chat: every turn adds two
# messages, the template of chapter 05 makes ids out of them all, and your `decode` writes the answer.

# %%
from nanovlm.inference.conversation import PrefixReader


def ask(reader: PrefixReader, messages: list[dict[str, str]], question: str) -> None:
    messages.append({"role": "user", "content": question})
    per_image = pocket.config.num_image_tokens
    ids, _ = pocket.tokenizer.encode_chat(messages, 1, per_image, add_generation_prompt=True)
    written = decode(
        reader.read(ids),
        lambda token: reader.read([*reader.seen, int(token)]),
        lambda logits: logits.argmax(dim=-1),
        [end],
        max_new_tokens=40,
    )
    messages.append({"role": "assistant", "content": words(written[0].tolist()).strip()})


# %% [markdown]
# Predict before you run it: how often does the encoder run in a conversation of three questions, and how many tokens
# does the decoder read, with one reader for all of them and with a new one for each?

# %%
three = ["How many shapes are there?", "Where is the red star?", describe]
talks: dict[int, list] = {1: [], 3: []}  # number of readers -> messages
for count, messages in talks.items():
    readers = [PrefixReader(pocket, image) for _ in range(count)]
    for i, question in enumerate(three):
        ask(readers[i % count], messages, question)
    encoded, read = sum(r.images_encoded for r in readers), sum(r.tokens_read for r in readers)
    print(f"{count} reader(s): {encoded} pictures encoded, {read} tokens read")
for message in talks[1]:
    print(f"{message['role']:10} {message['content']}")

# %% tags=["claim"]
assert talks[1] == talks[3] and encoded == 3

# %% [markdown]
# The answers are the same, and with one reader the picture was encoded once. Two traps are left.
# The placeholders of *all* pictures have one id, so equal ids do not mean equal pictures: a cache belongs to one
# picture, or has to compare a hash of it as well. And an answer is kept as text, which is encoded anew in the next
# turn. Where its tokens differ from those that the model wrote, the comparison notices it and reads them again.

# %% [markdown]
# ## Every way to choose is an option of `generate`
#
# What chooses the tokens above is an option of `generate`, in Python and on the command line:
#
# ```bash
# nanovlm generate --image photo.png --prompt "What colour is the bag?" --choices red --choices blue
# nanovlm generate --image photo.png --temperature 0.7 --min-p 0.1 --generations 5 --seed 1
# nanovlm generate --image photo.png --num-beams 4
# nanovlm generate --image photo.png --stream --stop "."
# ```
#
# | you want | then |
# |---|---|
# | the answer, short and right | greedy: temperature 0 |
# | one of a few known answers | `choices`, with the chance level beside the score |
# | long text that has to be exact | 2 to 4 beams |
# | variety | temperature 0.7 to 1 with min-p 0.05 to 0.1 |
# | to know how sure it is | several draws at temperature 1, or the log-probability |

# %% [markdown]
# What of this travels with a model? Its `config.json` says where an answer ends and in which form questions are asked.
# Temperature and cuts are the reader's choice, but in transformers' format a `generation_config.json` may hold them, so
# look into it before you compare answers.

# %% [markdown]
# ## Where this lives in the package
#
# In `nanovlm/inference/`: `sampling.py` has the filters, the draw and the beams, `generate.py` the loop, `streaming.py`
# the text that can be shown, `logits_processors.py` repetition, choices and stop strings, `speculative.py` the draft
# and its rule, and `conversation.py` the reader. The cache is in `nanovlm/models/language_model.py`.
#
# `yours()` takes your loop, your cached attention, your filters, your draw, your beam step and your streaming as soon
# as they pass, and answers with them:

# %%
own = yours()
print(own.generate(image=image, prompt=describe, temperature=0.8, min_p=0.1, seed=0))

# %% [markdown]
# What you take along:
#
# - A model gives a distribution. Which answer you read is your choice, and it belongs in every report.
# - A cache must not change a number. Compare with the computation without one, at several cuts of the sequence.
# - Temperature first, then the cut; the token that crosses `p` is kept.
# - Greedy is best for short answers, beams for long exact ones, draws for variety and for confidence.
# - A constraint repairs the form, not the knowledge.
# - Decoding waits for memory, which is why batches and guesses help.

# %% [markdown]
# In the wild: the [sampling code of
# transformers](https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/generation/logits_process.py),
# where each filter is a class, and [PagedAttention](https://arxiv.org/abs/2309.06180), the cache of vLLM.
#
# **A challenge**, without a solution: answer 1,000 questions about Thimble pictures as fast as your machine can, with
# not one answer changed. It stands at the end of the exercises.

# %% [markdown] tags=["stamped"]
# ## Your turn
#
# [Open the exercises](../exercises/09_generation.ipynb) ([in Colab][exercises]): 10 of them, about 2.3 hours.
#
# [exercises]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/exercises/09_generation.ipynb
#
# | | exercise | difficulty | minutes |
# |---|---|---|---|
# | 9.1 | The loop that writes (`generation.greedy`) | ●○○ | 12 |
# | 9.2 | Mend it: the cache that forgets what it turned (`generation.cached_attention`) | ●●○ | 15 |
# | 9.3 | Write the test: is this cache right? (`generation.cache_test`) | ●●○ | 15 |
# | 9.4 | A threshold that moves with the best (`generation.min_p`) | ●○○ | 8 |
# | 9.5 | The nucleus (`generation.top_p`) | ●●○ | 12 |
# | 9.6 | Draw a token (`generation.sample`) | ●●○ | 12 |
# | 9.7 | One step of beam search (`generation.beam_step`) | ●●● | 20 |
# | 9.8 | What can be shown already? (`generation.stream_text`) | ●●○ | 12 |
# | 9.9 | Which guesses may stay? (`generation.speculative_accept`) | ●●● | 20 |
# | 9.10 | Measure it: how fast does it write? (`generation.tokens_per_second`) | ●●○ | 12 |
#
# Next: [10 Evaluation](10_evaluation.ipynb)
