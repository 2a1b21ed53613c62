# %% [markdown]
# # 05 Exercises: text, tokens and labels
#
# Seven short ones. By the end you have written the way from a conversation to what a model trains on.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [the chapter](../chapters/05_text_tokens.ipynb) ·
# [the solutions](../solutions/05_text_tokens.ipynb)
#
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/exercises/05_text_tokens.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/exercises/05_text_tokens.ipynb

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
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from nanovlm.course import check

# %% [markdown] tags=["stamped"]
# ## Exercise 5.1 · One step of byte-pair encoding
# `text.bpe_step` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** Repeat this step, and a vocabulary grows out of nothing but counting. The tokenizers of
# GPT-2 and SmolLM2 were made in this way, and so was the pocket model's.

# %% [markdown] tags=["exercise"]
# `words` is a text: a list of words, each of which is a list of tokens. A word that occurs three times stands in it
# three times. Find the pair of neighbouring tokens that occurs most often inside the words. If several occur equally
# often, take the one that you meet first, going through the words in order. Glue that pair together wherever it stands,
# from left to right, and return the words with the longer tokens:
#
# ```
# r e d,  r e d,  g r e e n      the pair r e occurs three times
# re d,   re d,   g re e n
# ```
#
# A token is used once: `a a a` becomes `aa a`. If there is no pair left, return the words as they are.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Two jobs, one after the other. First find out which pair of neighbours occurs most often; then walk through
# each word and glue.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Count the pairs of each word into one dict. max with the counts as key gives the first of equal ones. Gluing
# is a walk with an index: at the pair, write the two joined and go on by two; else copy and go on by one.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# counts = Counter(pair for word in words for pair in pairwise(word))  # from itertools
# best = max(counts, key=counts.get, default=None)
# for each word: i = 0; while i < len(word):
#     if (word[i], word[i + 1]) is the best pair (mind the end of the word): append both joined, i += 2
#     else: append word[i], i += 1
# ```
#
# </details>


# %%
def bpe_step(words: list[list[str]]) -> list[list[str]]:
    """Glue the most frequent pair of neighbours, everywhere."""
    raise NotImplementedError("text.bpe_step")


# %%
check("text.bpe_step", bpe_step)

# %% [markdown] tags=["stamped"]
# ## Exercise 5.2 · The chat template by hand
# `text.render_chat` · difficulty ●○○ · about 8 minutes
#
# **Why it matters.** A model has only seen conversations in one spelling. One newline more than in training,
# and the pocket model gets nearly every question wrong.

# %% [markdown] tags=["exercise"]
# Write a conversation in the form that the pocket model was trained on. A message is a dict with `"role"` (`"user"`,
# `"assistant"` or `"system"`) and `"content"`. One question and its answer become
#
# ```
# <|user|>Where is the red star?<|assistant|>top left<|end|>
# ```
#
# A system message is `<|system|>` and its content. With `add_generation_prompt` the text goes on to where the next
# answer begins: `<|user|>Where is the red star?<|assistant|>`. The content is somebody's text: change nothing in it.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Read the example from left to right: which parts come from the messages, and which are always there?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Each message is the token of its role, then its content as it is. Only an answer gets an end token: nobody
# needs to be told that a question is over.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# for message in messages: text += "<|" + role + "|>" + content, and "<|end|>" behind an assistant's
# behind the loop: "<|assistant|>" if add_generation_prompt
# ```
#
# </details>


# %%
def render_chat(messages: list[dict[str, str]], add_generation_prompt: bool = False) -> str:
    """Messages -> one string, in the pocket model's format."""
    raise NotImplementedError("text.render_chat")


# %%
check("text.render_chat", render_chat)

# %% [markdown] tags=["stamped"]
# ## Exercise 5.3 · A place for each image token
# `text.image_placeholders` · difficulty ●○○ · about 6 minutes
#
# **Why it matters.** The model puts image tokens exactly where it finds this id. One place too few, and it
# refuses the batch; a place elsewhere, and the question is read before the picture.

# %% [markdown] tags=["exercise"]
# In the text a picture is one token. The model needs a place for each of the picture's image tokens. Return the ids
# with every `image_token_id` repeated `num_image_tokens` times, where it stands. With image token 4 and three image
# tokens for a picture, `[2, 4, 93, 42, 3]` becomes `[2, 4, 4, 4, 93, 42, 3]`.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Walk along the ids. All but the image tokens go on as they are.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Build a new list: where the id is the image token's, add it num_image_tokens times, else once.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# for token in ids:
#     out += [token] * (how often?)
# ```
#
# </details>


# %%
def expand_placeholders(ids: list[int], image_token_id: int, num_image_tokens: int) -> list[int]:
    """One id for each picture -> num_image_tokens ids for each picture."""
    raise NotImplementedError("text.image_placeholders")


# %%
check("text.image_placeholders", expand_placeholders)

# %% [markdown] tags=["stamped"]
# ## Exercise 5.4 · User text stays text
# `text.safe_user_text` · difficulty ●●○ · about 10 minutes
#
# **Why it matters.** Whoever can type a special token can end your assistant's turn, speak in its name, or
# claim a picture that is not there and stop the server. It is SQL injection once more, with the same cure:
# never mix code and data.

# %% [markdown] tags=["exercise"]
# A conversation becomes ids, in the same format as in 5.2. But now somebody types `<|end|>` into a question, and it has
# to stay seven characters of text.
#
# `special` is a table from a special token's spelling to its id, such as `{"<|end|>": 1, "<|user|>": 2, …}`. `encode`
# turns text into ids and knows no special tokens: here a character is its UTF-8 bytes, each with 6 added, so that
# `encode("a")` is `[103]`. So the message `{"role": "user", "content": "a<|end|>"}` becomes
#
# ```
#  <|user|>    a   <    |    e    n    d    |   >
# [       2, 103, 66, 130, 107, 116, 106, 130, 68]
# ```

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Where do special tokens come from, and where does text come from? Keep the two apart from the start, and
# nothing needs to be searched or removed.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Do not build a string. For each message: the id of its role out of the table, then what encode makes of the
# content, then for an answer the id of the end token.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# ids.append(special["<|" + role + "|>"])
# ids += encode(content)
# for the assistant: also the id of <|end|>
# ```
#
# </details>


# %%
def encode_chat(
    messages: list[dict[str, str]], special: dict[str, int], encode: Callable[[str], list[int]]
) -> list[int]:
    """Messages -> ids, with special tokens only where the template puts them."""
    raise NotImplementedError("text.safe_user_text")


# %%
check("text.safe_user_text", encode_chat)

# %% [markdown] tags=["stamped"]
# ## Exercise 5.5 · Which tokens are learned?
# `text.build_labels` · difficulty ●●○ · about 10 minutes
#
# **Why it matters.** The loss is a mean over supervised tokens and nothing else. Leave out the end token, and
# the model never stops; leave in the questions, and half of what it learns is to ask them.

# %% [markdown] tags=["exercise"]
# Which tokens of a conversation does the model learn to write? The answers, and the end token of each. Return a list
# as long as `ids`: the token itself where it is learned, and -100, which the loss leaves out, where not.
# `assistant_id` is the token that opens an answer. It is in the ids only where the template put it, and so is
# `end_id`.
#
# ```
#   <|user|>  <|image|>  Where  ?     <|assistant|>  top   left  <|end|>
# [ 2,        4,         93,    42,   3,             94,   95,   1    ]
# [-100,     -100,      -100,  -100, -100,           94,   95,   1    ]
# ```
#
# There may be several turns. The last answer may be cut off: then it has no end token, and what is there is learned.
# Nothing is shifted yet.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Read the line from left to right, as a person would, and keep in mind whether an answer is going on.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# One flag is enough. The assistant's token switches it on, for the tokens behind it; the end token switches it
# off, and is itself still learned.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# for token in ids:
#     labels.append(token if in_answer else -100)
#     then look at token: does an answer begin behind it, or end with it?
# ```
#
# </details>


# %%
def build_labels(ids: list[int], assistant_id: int, end_id: int) -> list[int]:
    """The token itself where it is learned, -100 elsewhere."""
    raise NotImplementedError("text.build_labels")


# %%
check("text.build_labels", build_labels)

# %% [markdown] tags=["stamped"]
# ## Exercise 5.6 · Shift once
# `text.shift_once` · difficulty ●○○ · about 6 minutes
#
# **Why it matters.** At each place the model says what comes next. Never shifted, it learns to repeat what it
# reads; shifted twice, it learns to leave out a word. In both cases the loss goes down nicely.

# %% [markdown] tags=["exercise"]
# At place t the model says which token it expects at place t + 1. So what it is asked for at t is the label of t + 1.
# `labels` is a tensor of whole numbers, `[batch, length]`, each label at its own token. Return the targets, of the same
# shape: at each place the label of the next one. Behind the last place there is nothing, so it holds -100.
# `[-100, -100, 94, 1]` becomes `[-100, 94, 1, -100]`.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Write the line of tokens on paper, and below each of them the token that should follow it.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Everything moves one place to the left, along the length. Nothing follows the last place, so it asks nothing.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# targets = a tensor like labels, full of -100
# targets[:, all but the last] = labels[:, all but the first]
# ```
#
# </details>


# %%
def shift_once(labels: Tensor) -> Tensor:
    """Labels at their own tokens -> targets, one place earlier. [batch, length] -> [batch, length]"""
    raise NotImplementedError("text.shift_once")


# %%
check("text.shift_once", shift_once)

# %% [markdown] tags=["stamped"]
# ## Exercise 5.7 · Does this sample teach anything?
# `text.count_supervised` · difficulty ●○○ · about 5 minutes
#
# **Why it matters.** A sample that is cut before its answer has no supervised token. Alone in a batch it makes
# the loss NaN. In chapter 08 the same count makes gradient accumulation exact.

# %% [markdown] tags=["exercise"]
# A long conversation is cut after `max_length` tokens. If its answer was cut off, it teaches nothing and has to go.
# `labels` is `[batch, length]`, with -100 where nothing is learned. Return a list with one whole number for each
# sample: how many of its tokens are learned if only the first `max_length` are kept. With `max_length=None` nothing is
# cut.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# A label teaches if it is not -100. Any other number is a token's id, 0 too.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Cut the length first, then compare with -100 and add up along the length: a number for each sample.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# (labels[:, :max_length] != -100) is True where something is learned; sum over dim 1, then .tolist()
#
# </details>


# %%
def count_supervised(labels: Tensor, max_length: int | None = None) -> list[int]:
    """How many tokens each sample teaches. [batch, length] -> batch numbers"""
    raise NotImplementedError("text.count_supervised")


# %%
check("text.count_supervised", count_supervised)
