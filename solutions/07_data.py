# %% [markdown]
# # 07 Exercises: data
#
# Nine exercises on the road from a file on a disk to a batch that a model can learn from. Each of these functions
# fails without an error message when it is wrong, which is why one of the exercises is to write a test.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [the chapter](../chapters/07_data.ipynb) ·
# [the exercises](../exercises/07_data.ipynb) ·
# [notation and terms](../chapters/notation.md)
#
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/solutions/07_data.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/solutions/07_data.ipynb

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
import hashlib
import io
from collections import Counter, defaultdict

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from nanovlm.course import check, use

# %% [markdown] tags=["stamped"]
# ## Exercise 7.1 · Which turns are worth learning?
# `data.messages_of` · difficulty ●○○ · about 10 minutes
#
# **Why it matters.** FineVision rates every turn of its conversations. Throw away too much and the pictures
# were downloaded for nothing; separate a question from its answer, and the model is taught to answer what
# nobody asked.

# %% [markdown] tags=["exercise"]
# A sample is a dict. Its `"texts"` is a list of turns, `{"user": question, "assistant": answer}`. In FineVision's
# schema it also has up to four lists with one rating a turn, from 1 to 5: `"relevance_ratings"`,
# `"visual_dependency_ratings"` and so on. A rating of `None` means that the turn was not rated; in the_cauldron's
# schema the lists are missing.
#
# `min_ratings` maps the name of a rating to the lowest value to keep, for example `{"visual_dependency": 3}`. Return
# the turns that reach every minimum as chat messages, `{"role": "user", "content": question}` followed by `{"role":
# "assistant", "content": answer}`, in their order. A turn that was not rated is kept. If no turn is left, raise
# `ValueError`.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# A rating belongs to a turn, and a turn is a question and its answer. Decide for each turn by its number.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Loop over the turns with enumerate. A turn stays unless one of the ratings that you were given a minimum for
# is a number below that minimum. None is no number: nobody rated this turn, so nothing speaks against it. The
# column can be missing, or be None as a whole: use sample.get.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# for number, turn in enumerate(sample["texts"]):
#     good = True
#     for name, lowest in min_ratings.items():
#         ratings = sample.get(f"{name}_ratings")
#         if ratings is not None and …: good = False
#     if good: append the question with role user, the answer with role assistant
# if there are no messages: raise ValueError
# ```
#
# </details>


# %%
def messages_of(sample: dict, min_ratings: dict[str, int]) -> list[dict[str, str]]:
    """The turns of a sample that are rated high enough, as chat messages."""
    # SOLUTION
    messages = []
    for number, turn in enumerate(sample["texts"]):
        good = True
        for name, lowest in min_ratings.items():
            ratings = sample.get(f"{name}_ratings")
            if ratings is not None and ratings[number] is not None and ratings[number] < lowest:
                good = False
        if good:
            messages.append({"role": "user", "content": turn["user"]})
            messages.append({"role": "assistant", "content": turn["assistant"]})
    if not messages:
        raise ValueError("no turn of this sample is rated high enough")
    return messages
    # END SOLUTION


# %%
check("data.messages_of", messages_of)

# %% [markdown] tags=["stamped"]
# ## Exercise 7.2 · Measure what closed eyes score
# `data.blind_score` · difficulty ●○○ · about 10 minutes
#
# **Why it matters.** An accuracy says nothing until you know what counting gets without the picture. In popular
# data sets that is often half of all answers.

# %% [markdown] tags=["exercise"]
# Measure what somebody scores who has read all training questions and answers, and never sees a picture. `train` and
# `test` are lists of `(question, answer)`.
#
# To a test question that was asked in training, the guesser gives the answer that was most frequent *to that
# question*. To a question that was never asked, it gives the most frequent answer of all training turns. Where two
# answers are equally frequent, the one that came first in training counts (`Counter.most_common` does so). Return the
# share of test turns that are guessed right, between 0 and 1.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Somebody who has read all training questions and answers, and never sees a picture: what would they say?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Count answers for each question separately, on the training turns only. Guess the most frequent one for each
# test turn. For a question that was never asked, guess the most frequent answer of all training turns.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# counts = {}            # question -> Counter of its answers
# overall = Counter(answer for _, answer in train)
# for question, answer in test:
#     guess = … if question in counts else overall.most_common(1)[0][0]
#     right += guess == answer
# return right / len(test)
# ```
#
# </details>


# %%
def blind_score(train: list[tuple[str, str]], test: list[tuple[str, str]]) -> float:
    """The share of test answers that counting gets right."""
    # SOLUTION
    counts = defaultdict(Counter)
    for question, answer in train:
        counts[question][answer] += 1
    overall = Counter(answer for _, answer in train)
    right = 0
    for question, answer in test:
        guesses = counts.get(question, overall)
        right += guesses.most_common(1)[0][0] == answer
    return right / len(test)
    # END SOLUTION


# %%
check("data.blind_score", blind_score)

# %% [markdown] tags=["stamped"]
# ## Exercise 7.3 · Any file, as a person would see it
# `data.open_image` · difficulty ●●○ · about 15 minutes
#
# **Why it matters.** A picture that is opened wrongly raises nothing. It only teaches the model a world that
# lies on its side, or in which every logo stands on black.

# %% [markdown] tags=["exercise"]
# `content` is what a file holds: `bytes`. Return a PIL picture in mode `RGB`, as a person would see it on a white
# page:
#
# - turned upright, where its EXIF block says that it lies on its side,
# - with what is transparent laid over white, also where a palette picture names one colour as transparent
#   (`image.info["transparency"]`),
# - with 16-bit grey (modes that begin with `I;16`, values from 0 to 65,535) scaled to 8 bits, not clipped.
#
# What cannot be opened, or ends in the middle, raises `ValueError`. Pillow itself raises half a dozen other kinds.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Four things to do, in order: open and decode, turn upright, deal with what has more than 8 bits or is
# transparent, convert to RGB. And around the first of them, a try.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# PIL.ImageOps.exif_transpose turns a picture upright. Transparency is in the mode (RGBA, LA) or in
# image.info["transparency"]: go to RGBA, then lay it over white with Image.alpha_composite. A mode that starts
# with "I;16" holds 0..65535: divide by 257 in numpy. image.load() is what notices a truncated file.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# try:
#     image = Image.open(io.BytesIO(content))
#     image.load()
# except Exception as error:
#     raise ValueError(one sentence) from error
# image = ImageOps.exif_transpose(image)
# if image.mode.startswith("I;16"): image = Image.fromarray of its array, scaled to 0..255, as uint8
# if image.mode in ("RGBA", "LA") or "transparency" in image.info:
#     image = image.convert("RGBA")
#     image = …                      # over white
# return image.convert("RGB")
# ```
#
# </details>


# %%
def open_image(content: bytes) -> Image.Image:
    """The bytes of a picture file -> RGB, as a person would see it."""
    # SOLUTION
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except Exception as error:
        raise ValueError(f"not a whole picture: {error}") from error
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    if image.mode in ("RGBA", "LA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
    # END SOLUTION


# %%
check("data.open_image", open_image)

# %% [markdown] tags=["stamped"]
# ## Exercise 7.4 · No picture on both sides
# `data.split_by_image` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** With one picture in training and in validation, the model can remember instead of see, and
# the score goes up for the wrong reason. Nothing else about the run will tell you.

# %% [markdown] tags=["exercise"]
# `images` holds the bytes of each sample's picture. Samples about one picture have the same bytes. Return two lists
# of indices: the samples for training, and those for validation, about a share of `val_share` of the pictures.
#
# Let the picture alone decide its side, with the seed: equal pictures land on one side, the same call gives the same
# split in every process, no picture changes its side when others are added, and another seed deals anew. Which rule
# does so is up to you.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Let the content of the picture alone decide, as a coin would that always falls the same way for one picture.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Take a hash of the bytes and the seed that is the same in every process: hashlib, not hash(). Read it as a
# number between 0 and 1, and compare that with val_share.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# digest = hashlib.blake2b(f"{seed}:".encode() + picture, digest_size=8).digest()
# number = int.from_bytes(digest, "big") / 2**64        # 0 to 1
# the sample is for validation if …
# ```
#
# </details>


# %%
def split_by_image(images: list[bytes], val_share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices for training and for validation, with each picture on one side."""
    # SOLUTION
    train, val = [], []
    for index, image in enumerate(images):
        digest = hashlib.sha256(str(seed).encode() + b":" + image).hexdigest()
        number = int(digest[:12], 16) / 16**12
        (val if number < val_share else train).append(index)
    return train, val
    # END SOLUTION


# %%
check("data.split_by_image", split_by_image)

# %% [markdown] tags=["stamped"]
# ## Exercise 7.5 · Rows of one length
# `data.pad_batch` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** Every batch of training passes through this function. Padding that is supervised teaches
# the model to write padding; one picture out of step gives all that follow the wrong text.

# %% [markdown] tags=["exercise"]
# Each sample brings its token ids and its targets, two tensors of one length, and its pictures, `[pictures, 3, height,
# width]`. A sample can have several pictures or none, `[0, 3, height, width]`. Build the batch for training:
#
# - `input_ids`, `[batch, length]`: the rows begin at the left and are filled up with `pad_id` to the longest of them,
# - `attention_mask`, of the same shape and type: 1 where a real token is, 0 on padding,
# - `targets`, of the same shape: filled up with -100,
# - the pictures of all samples in reading order, `[all pictures, 3, height, width]`.
#
# Beware: in some tokenizers the padding has the id of a real token.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Three rectangles of one shape, each filled with its own value before the rows are written into it; and the
# pictures, which need no rectangle.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# The length is that of the longest row. ids are filled with pad_id, the mask with 0, targets with -100; the row
# begins at the left. The mask says where a row is, and cannot be read off the ids. The pictures of all samples
# follow each other along the first dim: torch.cat.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# length = max(len(row) for row in ids)
# input_ids = torch.full((len(ids), length), pad_id)
# for b, row in enumerate(ids):
#     input_ids[b, : len(row)] = row
#     attention_mask[b, …] = 1
#     padded_targets[b, : len(row)] = targets[b]
# return input_ids, attention_mask, padded_targets, torch.cat(images)
# ```
#
# </details>


# %%
def pad_batch(
    ids: list[Tensor], targets: list[Tensor], images: list[Tensor], pad_id: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Samples of unequal length -> input_ids, attention_mask, targets, images."""
    # SOLUTION
    length = max(len(row) for row in ids)
    input_ids = torch.full((len(ids), length), pad_id)
    attention_mask = torch.zeros(len(ids), length, dtype=torch.long)
    padded_targets = torch.full((len(ids), length), -100)
    for b, row in enumerate(ids):
        input_ids[b, : len(row)] = row
        attention_mask[b, : len(row)] = 1
        padded_targets[b, : len(row)] = targets[b]
    return input_ids, attention_mask, padded_targets, torch.cat(images)
    # END SOLUTION


# %%
check("data.pad_batch", pad_batch)

# %% [markdown] tags=["stamped"]
# ## Exercise 7.6 · Write the test that would have told
# `data.test_pad_batch` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** None of these mistakes raises an error, and each costs a training run. A test of ten lines
# finds them in a millisecond, provided that its example is unkind enough.

# %% [markdown] tags=["exercise"]
# **Write the test.** The check runs your test on a `pad_batch` that is right, where it has to pass, and on seven that
# are wrong in seven ways, where it has to fail. It tells you how many you catch, and passes when you catch all of them.
#
# A test calls the function that it is given with a small example and compares the results by `assert`. It returns
# nothing. `pad_batch` has the parameters of the exercise before this one.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# A test is an example small enough to write the right answer down by hand. What must the example contain, so
# that each kind of mistake shows?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Two rows of unequal length; a real token with the id of the padding, and a pad_id that is not 0; several
# pictures that can be told apart. Write the four expected results as lists, and compare with .tolist().
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# ids = [torch.tensor([5, 1]), torch.tensor([6, 7, 1])]          # pad_id 1, and 1 is a real token too
# images = two pictures filled with 2.0 and 3.0, [1, 3, 1, 1] each
# padded, mask, learned, stacked = pad_batch(ids, targets, images, 1)
# assert padded.tolist() == [[5, 1, …], [6, 7, 1]]
# assert mask.tolist() == …      # and the two others
# ```
#
# </details>


# %%
def test_pad_batch(pad_batch) -> None:
    """Raises AssertionError if pad_batch is wrong."""
    # SOLUTION
    ids = [torch.tensor([8, 2, 4]), torch.tensor([6, 2])]
    targets = [torch.tensor([-100, 4, -100]), torch.tensor([2, -100])]
    images = [torch.full((2, 3, 1, 1), 0.5), torch.full((1, 3, 1, 1), 0.25)]
    padded, mask, learned, stacked = pad_batch(ids, targets, images, 2)
    assert padded.tolist() == [[8, 2, 4], [6, 2, 2]], "ids"
    assert mask.tolist() == [[1, 1, 1], [1, 1, 0]], "mask"
    assert learned.tolist() == [[-100, 4, -100], [2, -100, -100]], "targets"
    assert stacked[:, 0, 0, 0].tolist() == [0.5, 0.5, 0.25], "pictures"
    # END SOLUTION


# %%
check("data.test_pad_batch", test_pad_batch)

# %% [markdown] tags=["stamped"]
# ## Exercise 7.7 · Which samples share a row?
# `data.pack` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** Conversations differ in length by a factor of a hundred. Padding each to the longest
# throws more than half of the computation away; this function of ten lines gets nearly all of it back.

# %% [markdown] tags=["exercise"]
# Put samples of `lengths` tokens into as few rows of `max_length` as you can, by **first-fit decreasing**: take the
# longest sample first, and put each into the first row, in the order in which rows were opened, that has room for it.
# If none has, open a new row. Of equally long samples the earlier one comes first.
#
# Return the rows, in the order in which they were opened. Each is a list of sample numbers, in the order in which they
# were put in. A sample longer than `max_length` raises `ValueError`. For lengths `[2, 7, 3]` and rows of 9, the result
# is `[[1, 0], [2]]`.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Think of suitcases: the large things first, the small ones into the gaps.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Sort the sample numbers by length, longest first. For each, look through the rows in the order in which they
# were opened, and take the first with room enough; open a new one where none has.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# rows, room = [], []
# for sample in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
#     if lengths[sample] > max_length: raise ValueError(…)
#     for r in range(len(rows)):
#         if …: break
#     else:
#         open a row: rows.append([]), room.append(max_length), r = len(rows) - 1
#     rows[r].append(sample); room[r] -= lengths[sample]
# ```
#
# </details>


# %%
def pack(lengths: list[int], max_length: int) -> list[list[int]]:
    """The sample numbers of each row."""
    # SOLUTION
    rows, room = [], []
    for sample in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if lengths[sample] > max_length:
            raise ValueError(f"{lengths[sample]} tokens fit into no row of {max_length}")
        for r in range(len(rows)):
            if room[r] >= lengths[sample]:
                break
        else:
            rows.append([])
            room.append(max_length)
            r = len(rows) - 1
        rows[r].append(sample)
        room[r] -= lengths[sample]
    return rows
    # END SOLUTION


# %%
check("data.pack", pack)

# %% [markdown] tags=["stamped"]
# ## Exercise 7.8 · Mend it: a row that reads its neighbour
# `data.document_mask` · difficulty ●●● · about 15 minutes
#
# **Why it matters.** Packing without boundaries raises nothing and trains on. But every answer may be read off
# a conversation about another picture, and the model meets positions that it never sees at use.

# %% [markdown] tags=["exercise"]
# **Mend it.** This is the attention of a packed row as several popular training codes have it:
#
# ```python
# def document_mask(document_ids):                 # [B, T]; -1 on padding
#     T = document_ids.shape[1]
#     causal = torch.ones(T, T, dtype=torch.bool).tril()
#     real = document_ids >= 0
#     mask = causal & real[:, None, :]             # [B, query, key]
#     positions = torch.arange(T).expand_as(document_ids)
#     return mask[:, None], positions
# ```
#
# The symptom: change a word of document 0, and the logits of document 1 move. Mend it. `document_ids` counts the
# documents of each row, `[0, 0, 0, 1, 1, -1]`. Return the mask, bool `[B, 1, T, T]`, True where the query sees the
# key, and the positions `[B, T]`, which begin at 0 in each document. What a padding token sees does not matter, as
# long as it sees something.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# The code says that a key must be real and not later. A third condition is missing, about the documents of the
# two tokens. And where does a document begin?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# mask[b, query, key] needs three things: not later, the same document, and no padding. A query that sees k
# tokens, itself included, stands at position k - 1 of its document: count before you let padding see itself.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# causal = torch.ones(T, T, dtype=torch.bool).tril()
# same = document_ids[:, :, None] == …                # [B, T, T]
# mask = causal & same & (document_ids >= 0)[:, None, :]
# positions = (mask.sum(dim=2) - 1).clamp(min=0)
# mask = mask | torch.eye(T, dtype=torch.bool)
# return mask[:, None], positions
# ```
#
# </details>


# %%
def document_mask(document_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Document numbers [B, T] -> mask [B, 1, T, T] and positions [B, T]."""
    # SOLUTION
    T = document_ids.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    same = document_ids[:, :, None] == document_ids[:, None, :]  # [B, query, key]
    real = document_ids >= 0
    mask = causal & same & real[:, None, :]
    positions = (mask.sum(dim=2) - 1).clamp(min=0)
    mask = mask | torch.eye(T, dtype=torch.bool)
    return mask[:, None], positions
    # END SOLUTION


# %%
check("data.document_mask", document_mask)

# %% [markdown] tags=["stamped"]
# ## Exercise 7.9 · Batch number n, asked alone
# `data.resumable_order` · difficulty ●●● · about 15 minutes
#
# **Why it matters.** A run that is killed at step 4,106 and resumed must go on with batch 4,106: not with the
# first one again, and not with a fresh shuffle in which some samples come twice and others never.

# %% [markdown] tags=["exercise"]
# Which samples make batch number `batch`? There are `size` samples. Each epoch is a new permutation of all of them,
# and the epochs lie end to end, so that every batch is full and may reach from one epoch into the next. A batch can be
# larger than the data.
#
# The answer must be a pure function of its four arguments: the same whenever it is asked, and without having asked for
# the batches before it. Another seed gives another order. Which permutation you take is up to you.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Lay the epochs end to end: one endless list in which each stretch of `size` is a permutation of the samples.
# Batch n is a window of it. Which places does it cover?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Batch n covers the places n * batch_size to (n + 1) * batch_size - 1. Place p is in epoch p // size, at p %
# size. The permutation of an epoch comes from a generator of its own, seeded with the seed and the epoch.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# for place in range(batch * batch_size, (batch + 1) * batch_size):
#     epoch, offset = divmod(place, size)
#     generator = torch.Generator().manual_seed(…)          # from seed and epoch
#     permutation = torch.randperm(size, generator=generator)
#     indices.append(int(permutation[offset]))
# ```
#
# </details>


# %%
def batch_indices(batch: int, size: int, batch_size: int, seed: int) -> list[int]:
    """The samples of one batch: batch_size indices from 0 to size - 1."""
    # SOLUTION
    indices = []
    for place in range(batch * batch_size, (batch + 1) * batch_size):
        epoch, offset = divmod(place, size)
        generator = torch.Generator().manual_seed(seed + 1_000_003 * epoch)
        indices.append(int(torch.randperm(size, generator=generator)[offset]))
    return indices
    # END SOLUTION


# %%
check("data.resumable_order", batch_indices)

# %% [markdown]
# Your own parts, at work together: the order picks samples, their turns become messages, and the rows are packed.

# %%
messages_of, pack, batch_indices = (
    use("data.messages_of", messages_of),
    use("data.pack", pack),
    use("data.resumable_order", batch_indices),
)
lengths = [12, 48, 20, 35, 27, 40, 9, 17, 30, 22]
for batch in range(3):
    chosen = batch_indices(batch, len(lengths), 4, seed=0)
    rows = pack([lengths[i] for i in chosen], 64)
    tokens = sum(lengths[i] for i in chosen)
    print(f"batch {batch}: samples {chosen}, {tokens} tokens in {len(rows)} rows of 64")
