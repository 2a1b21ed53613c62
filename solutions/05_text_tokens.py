# %% [markdown]
# # 05 Exercises: text, tokens and labels
#
# Eleven exercises, among them code to mend, something to measure and a test to write. Together they are the way from
# a conversation to what a model trains on. A challenge without a solution is at the end.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [the chapter](../chapters/05_text_tokens.ipynb) ·
# [the exercises](../exercises/05_text_tokens.ipynb) ·
# [notation and terms](../chapters/notation.md)
#
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/solutions/05_text_tokens.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/solutions/05_text_tokens.ipynb

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
import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from nanovlm.course import budget, check, use

# %% [markdown] tags=["stamped"]
# ## Exercise 5.1 · One step of byte-pair encoding
# `text.bpe_step` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** Repeating this step builds a vocabulary by counting alone. The tokenizers of GPT-2 and
# SmolLM2 were made in this way, and so was the pocket model's.

# %% [markdown] tags=["exercise"]
# `words` is a text: a list of words, each of which is a list of tokens. A word that occurs three times is in the list
# three times. Find the pair of neighbouring tokens that occurs most often inside the words. If several occur equally
# often, take the one that comes first when you go through the words in order. Merge that pair wherever it occurs,
# from left to right, and return the words with the longer tokens:
#
# ```
# r e d,  r e d,  g r e e n      the pair r e occurs three times
# re d,   re d,   g re e n
# ```
#
# A token is used once, so `a a a` becomes `aa a`. If no pair is left, return the words as they are.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# There are two jobs. First find the pair of neighbours that occurs most often, then walk through each word and
# merge it.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Count the pairs of all words into one dict. max with the counts as key gives the first of equal ones. Merging
# is a walk with an index: at the pair, append the two joined and go on by two; otherwise copy one and go on by
# one.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# counts = Counter(pair for word in words for pair in …)
# best = max(counts, key=counts.get, default=None)
# for each word: i = 0; while i < len(word):
#     if tuple(word[i : i + 2]) == best: append both joined, i += …
#     else: append word[i], i += 1
# ```
#
# </details>


# %%
def bpe_step(words: list[list[str]]) -> list[list[str]]:
    """Merge the most frequent pair of neighbours, everywhere."""
    # SOLUTION
    counts = Counter(pair for word in words for pair in pairwise(word))
    best = max(counts, key=counts.get, default=None)
    merged = []
    for word in words:
        tokens, i = [], 0
        while i < len(word):
            width = 2 if tuple(word[i : i + 2]) == best else 1
            tokens.append("".join(word[i : i + width]))
            i += width
        merged.append(tokens)
    return merged
    # END SOLUTION


# %%
check("text.bpe_step", bpe_step)

# %% [markdown] tags=["stamped"]
# ## Exercise 5.2 · A pre-tokenizer that keeps digits apart
# `text.split_digits` · difficulty ●●○ · about 10 minutes
#
# **Why it matters.** If 705 is one token, 706 is another one that has nothing in common with it. Small models
# read and compute numbers better digit by digit, which is why SmolLM2's tokenizer splits them.

# %% [markdown] tags=["exercise"]
# Before any merge, a tokenizer cuts its text into pieces that merges never cross. Write such a **pre-tokenizer**,
# which keeps the digits of a number apart. A piece is one of these:
#
# - letters that follow each other, of any script, with the space in front of them if there is one;
# - one digit, or one other mark such as `?`, with the space in front of it if there is one;
# - one white space that belongs to none of them, such as a newline or the first of two spaces.
#
# The pieces, joined, are the text again. `"Is it 705?"` becomes `["Is", " it", " 7", "0", "5", "?"]`.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Describe one piece at a time: a run of letters, one digit, or one mark, each with at most one space before it.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# re.findall with alternatives: an optional space and letters; an optional space and one digit; an optional
# space and one other character; and white space that is left over. In Python [^\W\d_] is a letter of any
# script.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# re.findall(r" ?[^\W\d_]+| ?…| ?[^\w\s]| ?_|\s", text)
#
# </details>


# %%
def split_digits(text: str) -> list[str]:
    """The pieces that no merge crosses; a number is as many pieces as it has digits."""
    # SOLUTION
    return re.findall(r" ?[^\W\d_]+| ?\d| ?[^\w\s]| ?_|\s", text)
    # END SOLUTION


# %%
check("text.split_digits", split_digits)

# %% [markdown] tags=["stamped"]
# ## Exercise 5.3 · Measure it: what a language costs
# `text.measure_fertility` · difficulty ●○○ · about 8 minutes
#
# **Why it matters.** A model's context is counted in tokens, and so is its price. Where a language needs four
# times the tokens, its speakers get a quarter of the context, and nothing in the model says so.

# %% [markdown] tags=["exercise"]
# How much does a language cost? `texts` gives a list of texts for each language, and `encode` turns a text into ids.
# Return a dict with, for each language, how many tokens one character costs: all tokens of its texts, divided by all
# characters of its texts. A space is a character too.
#
# With a tokenizer that makes each byte of UTF-8 a token, English costs 1.0 and Chinese 3.0.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Count the tokens of all texts of a language, and the characters of the same texts.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Add up first and divide once, so that a long text counts more than a short one. len of a string counts
# characters, not bytes.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# return {name: sum(…) / sum(…) for name, some in texts.items()}
#
# </details>


# %%
def fertility(encode: Callable[[str], list[int]], texts: dict[str, list[str]]) -> dict[str, float]:
    """Language -> tokens for each character."""
    # SOLUTION
    return {
        name: sum(len(encode(text)) for text in some) / sum(map(len, some))
        for name, some in texts.items()
    }
    # END SOLUTION


# %%
check("text.measure_fertility", fertility)

# %% [markdown] tags=["stamped"]
# ## Exercise 5.4 · The chat template by hand
# `text.render_chat` · difficulty ●○○ · about 8 minutes
#
# **Why it matters.** A model has seen conversations in one form only. With one newline more than in training,
# the pocket model gets more than nine of ten questions wrong.

# %% [markdown] tags=["exercise"]
# Write a conversation in the form on which the pocket model was trained. A message is a dict with `"role"` (`"user"`,
# `"assistant"` or `"system"`) and `"content"`. One question and its answer become
#
# ```
# <|user|>Where is the red star?<|assistant|>top left<|end|>
# ```
#
# A system message is `<|system|>` and its content. With `add_generation_prompt` the text continues to the place where
# the next answer begins: `<|user|>Where is the red star?<|assistant|>`. The content is somebody's text, so change
# nothing in it.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Read the example from left to right: which parts come from the messages, and which are always there?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Each message is the token of its role and then its content, unchanged. Only an answer gets an end token,
# because the model has to learn where its own answers end.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# for message in messages:
#     text += f"<|{…}|>{…}"
#     if …: text += "<|end|>"
# after the loop: add "<|assistant|>" if add_generation_prompt
# ```
#
# </details>


# %%
def render_chat(messages: list[dict[str, str]], add_generation_prompt: bool = False) -> str:
    """Messages -> one string, in the pocket model's format."""
    # SOLUTION
    text = ""
    for message in messages:
        text += f"<|{message['role']}|>{message['content']}"
        if message["role"] == "assistant":
            text += "<|end|>"
    if add_generation_prompt:
        text += "<|assistant|>"
    return text
    # END SOLUTION


# %%
check("text.render_chat", render_chat)

# %% [markdown] tags=["stamped"]
# ## Exercise 5.5 · A place for each image token
# `text.image_placeholders` · difficulty ●○○ · about 6 minutes
#
# **Why it matters.** The model puts image tokens exactly where it finds this id. With one placeholder too few
# it refuses the batch, and with placeholders elsewhere the question is read before the picture.

# %% [markdown] tags=["exercise"]
# In the text a picture is one placeholder. The model needs one for each of the picture's image tokens. Return the ids
# with every `image_token_id` repeated `num_image_tokens` times, in the place where it is. With image token 4 and
# three image tokens for a picture, `[2, 4, 93, 42, 3]` becomes `[2, 4, 4, 4, 93, 42, 3]`.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Walk along the ids. All but the placeholders are copied as they are.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Build a new list: where the id is image_token_id, append it num_image_tokens times, otherwise once.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# for token in ids:
#     out += [token] * (… if … else 1)
# ```
#
# </details>


# %%
def expand_placeholders(ids: list[int], image_token_id: int, num_image_tokens: int) -> list[int]:
    """One id for each picture -> num_image_tokens ids for each picture."""
    # SOLUTION
    expanded = []
    for token in ids:
        expanded += [token] * (num_image_tokens if token == image_token_id else 1)
    return expanded
    # END SOLUTION


# %%
check("text.image_placeholders", expand_placeholders)

# %% [markdown] tags=["stamped"]
# ## Exercise 5.6 · User text stays text
# `text.safe_user_text` · difficulty ●●○ · about 10 minutes
#
# **Why it matters.** Somebody who can type a special token can end the assistant's turn, speak in its name, or
# claim a picture that is not there and stop the server. The cure is that of SQL injection: never mix code and
# data.

# %% [markdown] tags=["exercise"]
# Turn a conversation into ids, in the same format as in exercise 5.4. The difference is that somebody types `<|end|>`
# into a question, and it has to remain seven characters of text.
#
# `special` is a table from the spelling of a special token to its id, such as `{"<|end|>": 1, "<|user|>": 2, …}`.
# `encode` turns text into ids and knows no special tokens: here it takes the UTF-8 bytes of the text and adds 6 to
# each, so that `encode("a")` is `[103]`. The message `{"role": "user", "content": "a<|end|>"}` therefore becomes
#
# ```
#  <|user|>    a   <    |    e    n    d    |   >
# [       2, 103, 66, 130, 107, 116, 106, 130, 68]
# ```

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Where do special tokens come from, and where does text come from? If you keep the two apart from the start,
# nothing needs to be searched for or removed.
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
# for message in messages:
#     ids.append(special[…])
#     ids += …          # the content
#     for the assistant: also the id of <|end|>
# ```
#
# </details>


# %%
def encode_chat(
    messages: list[dict[str, str]], special: dict[str, int], encode: Callable[[str], list[int]]
) -> list[int]:
    """Messages -> ids, with special tokens only where the template puts them."""
    # SOLUTION
    ids = []
    for message in messages:
        ids.append(special[f"<|{message['role']}|>"])
        ids += encode(message["content"])
        if message["role"] == "assistant":
            ids.append(special["<|end|>"])
    return ids
    # END SOLUTION


# %%
check("text.safe_user_text", encode_chat)

# %% [markdown] tags=["stamped"]
# ## Exercise 5.7 · Which tokens are learned?
# `text.build_labels` · difficulty ●●○ · about 10 minutes
#
# **Why it matters.** The loss is the mean over the supervised tokens. Without the end token the model never
# learns to stop, and with the questions among them, a large part of the loss is about asking instead of
# answering.

# %% [markdown] tags=["exercise"]
# Which tokens of a conversation does the model learn to write? The answers, and the end token of each. Return a list
# as long as `ids`, which holds the token itself where it is supervised and -100, which the loss leaves out,
# everywhere else. `assistant_id` is the token that opens an answer, and `end_id` ends it. Both are in the ids only
# where the template has put them.
#
# ```
#   <|user|>  <|image|>  Where  ?     <|assistant|>  top   left  <|end|>
# [ 2,        4,         93,    42,   3,             94,   95,   1    ]
# [-100,     -100,      -100,  -100, -100,           94,   95,   1    ]
# ```
#
# There may be several turns. The last answer may be cut off, so that it has no end token; then the tokens that are
# left are supervised. Nothing is shifted yet.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Read the sequence from left to right, and remember whether you are inside an answer.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# One flag is enough. The assistant's token switches it on, for the tokens behind it; the end token switches it
# off, and is itself still supervised.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# in_answer = False
# for token in ids:
#     labels.append(… if … else -100)
#     then change in_answer: does an answer begin after this token, or end with it?
# ```
#
# </details>


# %%
def build_labels(ids: list[int], assistant_id: int, end_id: int) -> list[int]:
    """The token itself where it is supervised, -100 elsewhere."""
    # SOLUTION
    labels, in_answer = [], False
    for token in ids:
        labels.append(token if in_answer else -100)
        if token == assistant_id:
            in_answer = True
        elif token == end_id:
            in_answer = False
    return labels
    # END SOLUTION


# %%
check("text.build_labels", build_labels)

# %% [markdown] tags=["stamped"]
# ## Exercise 5.8 · Write the test for the labels
# `text.test_labels` · difficulty ●●○ · about 10 minutes
#
# **Why it matters.** Labels can be wrong in nine ways that raise no error, and the loss goes down with each of
# them. One well chosen example catches them all.

# %% [markdown] tags=["exercise"]
# **Write the test.** `build` is a function like the one of the previous exercise, written by somebody else. Write a
# test that returns nothing if `build` is right, and raises `AssertionError` if it is wrong.
#
# The check runs your test on a right version, on which it has to pass, and on nine wrong ones, and it counts how many
# it catches. One example is enough, if it is chosen well: think of everything that a conversation may contain. Any
# whole number may be a token's id, 0 included.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Write down a short conversation as ids, and its labels by hand. What must the conversation contain, so that
# each mistake shows?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# It needs two turns, of which the second is cut off before its end token, an assistant_id and an end_id that
# are not the usual 3 and 1, and an answer with a token whose id is 0.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# assert build([2, 4, 9, 8, 0, 6, 2, 9, 8, 5], 8, 6) == [-100, …]      # 8 opens an answer, 6 ends it
#
# </details>


# %%
def test_labels(build) -> None:
    """Raises AssertionError if build(ids, assistant_id, end_id) is wrong."""
    # SOLUTION
    ids = [
        20,
        4,
        93,
        30,
        0,
        95,
        10,
        20,
        93,
        30,
        96,
    ]  # 30 opens an answer, 10 ends it; the second is cut off
    assert list(build(ids, 30, 10)) == [-100, -100, -100, -100, 0, 95, 10, -100, -100, -100, 96]
    # END SOLUTION


# %%
check("text.test_labels", test_labels)

# %% [markdown] tags=["stamped"]
# ## Exercise 5.9 · Shift once
# `text.shift_once` · difficulty ●○○ · about 6 minutes
#
# **Why it matters.** At each place the model predicts the next token. Without a shift it learns to repeat what
# it reads, and with two shifts to leave out a word. In both cases the loss goes down smoothly.

# %% [markdown] tags=["exercise"]
# The decoder predicts at place t which token comes at place t + 1, so its target at t is the label of t + 1. `labels`
# is a tensor of whole numbers, `[batch, length]`, with each label at its own token. Return the targets in the same
# shape: at each place the label of the next one. Nothing follows the last place, so its target is -100. `[-100, -100,
# 94, 1]` becomes `[-100, 94, 1, -100]`.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Write the sequence of tokens on paper, and below each of them the token that should follow it.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Everything moves one place to the left, along the length. Nothing follows the last place, so its target is
# -100.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# targets = torch.full_like(labels, -100)
# targets[:, …] = labels[:, …]
# return targets
# ```
#
# </details>


# %%
def shift_once(labels: Tensor) -> Tensor:
    """Labels at their own tokens -> targets, one place earlier. [batch, length] -> [batch, length]"""
    # SOLUTION
    targets = torch.full_like(labels, -100)
    targets[:, :-1] = labels[:, 1:]
    return targets
    # END SOLUTION


# %%
check("text.shift_once", shift_once)

# %% [markdown] tags=["stamped"]
# ## Exercise 5.10 · Mend it: the labels that vanished
# `text.mend_supervised` · difficulty ●●○ · about 10 minutes
#
# **Why it matters.** A library changed what one of its functions returns, and code that had worked for a year
# trained on nothing: no error, and a loss of NaN.

# %% [markdown] tags=["exercise"]
# **Mend it.** This code finds the answers of a conversation. It renders one message after the other, counts the tokens,
# and supervises all tokens of an answer but the first `prefix`, with which every message begins:
#
# ```python
# def supervised(messages, apply_template, prefix):
#     flags = []
#     for message in messages:
#         length = len(apply_template([message]))
#         learn = message["role"] == "assistant"
#         flags += [learn and place >= prefix for place in range(length)]
#     return flags
# ```
#
# The symptom: since the library that provides `apply_template` was updated, the loss is NaN. The function used to
# return a list of ids, and now it returns a dict with `input_ids` and `attention_mask`. Mend it, so that it works
# with both versions. Return one flag for each token of the conversation, True where it is supervised.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# What is the len of a dict?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Take the ids out of what apply_template returns, whether it is a list or a dict with input_ids, and count
# those. The rest of the code is right.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# out = apply_template([message])
# ids = … if isinstance(out, dict) else out
# length = len(ids)
# ```
#
# </details>


# %%
def supervised(messages: list[dict[str, str]], apply_template: Callable, prefix: int) -> list[bool]:
    """One flag for each token of the conversation."""
    # SOLUTION
    flags = []
    for message in messages:
        rendered = apply_template([message])
        length = len(rendered["input_ids"] if isinstance(rendered, dict) else rendered)
        learn = message["role"] == "assistant"
        flags += [learn and place >= prefix for place in range(length)]
    return flags
    # END SOLUTION


# %%
check("text.mend_supervised", supervised)

# %% [markdown] tags=["stamped"]
# ## Exercise 5.11 · Does this sample teach anything?
# `text.count_supervised` · difficulty ●○○ · about 5 minutes
#
# **Why it matters.** A sample that is cut before its answer has no supervised token, and alone in a batch it
# makes the loss NaN. In chapter 08 the same count makes gradient accumulation exact.

# %% [markdown] tags=["exercise"]
# A long conversation is cut after `max_length` tokens. If its answer was cut off, it teaches nothing and has to be
# left out. `labels` is `[batch, length]`, with -100 where nothing is supervised. Return a list with one whole number
# for each sample: how many of its tokens are supervised if only the first `max_length` are kept. With
# `max_length=None` nothing is cut.

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
# (labels[:, …] != -100) is True where a token is supervised; sum over dim 1, then .tolist()
#
# </details>


# %%
def count_supervised(labels: Tensor, max_length: int | None = None) -> list[int]:
    """How many tokens of each sample are supervised. [batch, length] -> batch numbers"""
    # SOLUTION
    return (labels[:, :max_length] != -100).sum(dim=1).tolist()
    # END SOLUTION


# %%
check("text.count_supervised", count_supervised)

# %% [markdown]
# ## A challenge without a solution: fewer tokens, and every digit apart
#
# Write a pre-tokenizer with which 760 unseen texts of the Thimble take as few tokens as possible, after 120 merges that
# are learned from other texts. The pieces have to join to the text again, and no piece may hold two digits;
# `tokens_needed` raises an error where that is not so. The pre-tokenizer of exercise 5.2 needs 4,577 tokens. We reached
# 4,408 by letting pieces grow. Say what a tokenizer loses whose pieces grow too far.

# %%
from nanovlm.course.challenges import tokens_needed
from nanovlm.data.thimble import thimble_sample


def conversations(split: str, number: int) -> list[str]:
    subsets = ("shapes", "charts", "glyphs")
    samples = [thimble_sample(s, split, i, image_size=8) for s in subsets for i in range(number)]
    return [
        turn[role]
        for sample in samples
        for turn in sample["texts"]
        for role in ("user", "assistant")
    ]


pieces = use("text.split_digits")
train, test = budget().pick(ci=(4, 2), laptop=(40, 20))
print(tokens_needed(pieces, conversations("train", train), conversations("test", test)), "tokens")
