# %% [markdown]
# # 06 Exercises: the vision-language model
#
# Eight exercises from image tokens to a whole model: put pictures among words in both ways, learn from answers alone,
# run it all in one forward pass, measure what an answer owes to the picture, mend a fault that was published, and write
# the test that finds eight others.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [the chapter](../chapters/06_vision_language_model.ipynb) ·
# [the exercises](../exercises/06_vision_language_model.ipynb) ·
# [notation and terms](../chapters/notation.md)
#
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/solutions/06_vision_language_model.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/solutions/06_vision_language_model.ipynb

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

from nanovlm.config import VLMConfig
from nanovlm.course import check, use
from nanovlm.models.vision_language_model import VLMOutput

# %% [markdown] tags=["stamped"]
# ## Exercise 6.1 · Pictures among words
# `fusion.merge_image_tokens` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** This is the fusion of most small VLMs of today: from here on the decoder cannot tell a
# picture from a word. If counts disagree and nobody counts, one conversation reads half of another one's
# picture.

# %% [markdown] tags=["exercise"]
# Put image tokens where the placeholders are. `embeddings` `[batch, length, dim]` are the vectors of a batch of texts,
# `image_tokens` `[images, num_image_tokens, dim]` all pictures of the batch in reading order, and `is_placeholder`
# `[batch, length]` is True where an image token belongs. A row may hold several pictures, or none.
#
# One row of five, one picture of two tokens:
#
# ```
# embeddings        1    0    0    2    3
# is_placeholder    -   yes  yes   -    -
# image_tokens          100  101
# result            1   100  101   2    3
# ```
#
# Return a new tensor `[batch, length, dim]` in the dtype of `embeddings`; leave the inputs alone. Raise `ValueError` if
# a row's placeholders are not whole pictures (`count % num_image_tokens`), or if there are more or fewer of them in all
# than image tokens.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# First count, then write. A batch may have the right number of placeholders in all and still be wrong: look at
# each row alone.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# The sum of the mask along its rows gives the counts. Each must divide by num_image_tokens, and all of them
# together must make as many image tokens as there are. Then fill the places in reading order:
# Tensor.masked_scatter does just that, with a mask that has an axis more, of size 1, and leaves its input
# alone.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# counts = is_placeholder.sum(dim=1).tolist()
# raise ValueError if any count % num_image_tokens, or if the total is not num_images * num_image_tokens
# return embeddings.masked_scatter(…, the image tokens in the dtype of embeddings)
# ```
#
# </details>


# %%
def merge_image_tokens(embeddings: Tensor, image_tokens: Tensor, is_placeholder: Tensor) -> Tensor:
    """[B, T, dim], [P, num_image_tokens, dim] and bool [B, T] -> [B, T, dim]"""
    # SOLUTION
    num_images, num_image_tokens = image_tokens.shape[:2]
    counts = is_placeholder.sum(dim=1).tolist()
    if any(count % num_image_tokens for count in counts):
        raise ValueError(
            f"Each picture needs {num_image_tokens} placeholders in one row; the rows have {counts}."
        )
    if sum(counts) != num_images * num_image_tokens:
        raise ValueError(
            f"There are {sum(counts)} placeholders for {num_images} pictures of {num_image_tokens}."
        )
    return embeddings.masked_scatter(is_placeholder[:, :, None], image_tokens.to(embeddings.dtype))
    # END SOLUTION


# %%
check("fusion.merge_image_tokens", merge_image_tokens)

# %% [markdown] tags=["stamped"]
# ## Exercise 6.2 · Both ways to join
# `fusion.embed` · difficulty ●●● · about 15 minutes
#
# **Why it matters.** One method serves two generations of models and every kind of batch: pictures in their
# places, pictures in front, several of them, none. Where a picture goes in front, the attention mask must grow
# in front as well: if it grows at its end, the zeros that mark padding fall on image tokens, and the decoder
# never looks at these.

# %% [markdown] tags=["exercise"]
# From ids and pixels to what the decoder reads. This is a method of the model, so `self` is the model. You need:
#
# - `self.decoder.token_embedding(input_ids)`: ids `[B, T]` to vectors `[B, T, dim]`,
# - `self.vision_encoder(images)`, then `self.projector(…)`: pictures `[P, 3, H, W]` to `[P, num_image_tokens, dim]`,
# - `self.config.image_token_id`: the placeholder's id, or `None` for a model that has no placeholder.
#
# Return three things: the vectors, the attention mask that goes with them (`None` if none came in), and how many image
# tokens stand in front.
#
# | pictures | placeholders in the ids | return |
# |---|---|---|
# | none (`None`, or a tensor of length 0) | no | the words as they are, the mask as it is, 0 |
# | none | yes | raise `ValueError` |
# | some | yes | words and pictures merged, the mask as it is, 0 |
# | one for each row | no | `[image tokens, words]` in one sequence, the mask with as many ones in front, their number |
#
# In a mask `[B, T]`, 1 is a real token and 0 is padding. The cell below takes your `merge_image_tokens` if it passes.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Four cases: no picture; placeholders and pictures; pictures without placeholders; placeholders without a
# picture. Write the one that ends soonest first.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Look up the words. Are there placeholders? (image_token_id may be None: then there are none.) Without pictures
# you are done, or it is an error. Else encode and project the pictures, and merge them or put them in front
# with torch.cat. What comes in front needs ones in the mask, if there is a mask.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# embeddings = self.decoder.token_embedding(input_ids)
# image_tokens = self.projector(self.vision_encoder(images))
# placeholders: return merge_image_tokens(…), attention_mask, 0
# none: the mask grows by …, if there is a mask
#       return torch.cat([image_tokens, embeddings], dim=1), the mask, num_image_tokens
# ```
#
# </details>

# %%
merge_image_tokens = use("fusion.merge_image_tokens", merge_image_tokens)


# %%
def embed(
    self, input_ids: Tensor, images: Tensor | None, attention_mask: Tensor | None
) -> tuple[Tensor, Tensor | None, int]:
    """ids [B, T], pictures [P, 3, H, W] -> vectors [B, S, dim], their mask [B, S], how many came in front"""
    # SOLUTION
    embeddings = self.decoder.token_embedding(input_ids)  # [B, T, dim]
    image_token_id = self.config.image_token_id
    has_placeholder = image_token_id is not None and bool((input_ids == image_token_id).any())
    if images is None or images.shape[0] == 0:
        if has_placeholder:
            raise ValueError("The text has image placeholders, but no picture was given.")
        return embeddings, attention_mask, 0
    image_tokens = self.projector(self.vision_encoder(images))  # [P, num_image_tokens, dim]
    if has_placeholder:
        return (
            merge_image_tokens(embeddings, image_tokens, input_ids == image_token_id),
            attention_mask,
            0,
        )
    num_prefix = image_tokens.shape[1]
    if attention_mask is not None:
        attention_mask = F.pad(attention_mask, (num_prefix, 0), value=1)
    return (
        torch.cat([image_tokens.to(embeddings.dtype), embeddings], dim=1),
        attention_mask,
        num_prefix,
    )
    # END SOLUTION


# %%
check("fusion.embed", embed)

# %% [markdown] tags=["stamped"]
# ## Exercise 6.3 · Learn from the answer alone
# `fusion.answer_loss` · difficulty ●●○ · about 10 minutes
#
# **Why it matters.** The prompt is given and the picture has no words to predict, so only answers teach. And at
# 49,152 words the head costs as much as eight decoder blocks: run it where a target stands, and nowhere else.

# %% [markdown] tags=["exercise"]
# The loss, on the answer's tokens alone. `x` `[B, S, dim]` is what the decoder gives, `head` makes logits of vectors
# (`[…, dim]` to `[…, vocab_size]`), and `targets` `[B, T]` hold at each position the id of the token that should come
# next, or -100 where nothing is asked.
#
# If image tokens came in front, x is longer than the targets: these belong to the **last** T positions.
#
# Run the head on the supervised positions only. Return the logits there, `[supervised, vocab_size]`, row by row, and
# the mean cross-entropy over all of them. Raise `ValueError` if no position is supervised.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Pick first, multiply then: which positions have a target that is not -100?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# x may be longer than targets: then image tokens came in front, and the targets belong to the last T positions.
# A mask [B, T] as an index picks the supervised vectors of all rows in one go, [n, dim]. The mean over all n of
# them is what F.cross_entropy gives.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# supervised = targets != -100
# logits = head(…)                       # of the last T positions, the supervised ones
# raise ValueError if there is none
# return logits, F.cross_entropy(logits, targets at the same places)
# ```
#
# </details>


# %%
def answer_loss(head: nn.Module, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """x [B, S, dim], targets [B, T] of its last T positions -> logits [supervised, vocab_size], mean loss"""
    # SOLUTION
    supervised = targets != -100  # [B, T]
    logits = head(x[:, x.shape[1] - targets.shape[1] :][supervised])  # [supervised, vocab_size]
    if logits.shape[0] == 0:
        raise ValueError("No token is supervised: every target is -100, so there is no mean loss.")
    return logits, F.cross_entropy(logits.float(), targets[supervised])
    # END SOLUTION


# %%
check("fusion.answer_loss", answer_loss)

# %% [markdown] tags=["stamped"]
# ## Exercise 6.4 · From ids and pixels to a loss
# `fusion.forward` · difficulty ●●○ · about 8 minutes
#
# **Why it matters.** With it the whole model is in your hands: this method runs the shipped weights at the end
# of the chapter, and chapter 08 trains it.

# %% [markdown] tags=["exercise"]
# The forward pass of the whole model, another method. What is plumbing is given: `embed` is called, a picture in front
# of packed documents is refused (chapter 07), and `hidden_states` is a list that the decoder fills, or `None`. Write
# what is left.
#
# - Call the decoder, `self.decoder(x, attention_mask, document_ids, cache, hidden_states)`: vectors `[B, S, dim]` in,
#   vectors out. Which of the two masks does it need, the one that came in or the one that `embed` returned?
# - `self.decoder.head` makes logits. Without targets they are wanted at every position, and the loss is `None`. With
#   targets, return what `answer_loss` gives.
#
# Return `VLMOutput(logits, loss, hidden_states)`, a tuple with names. The cell below takes your `answer_loss` if it
# passes.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Three steps are left, and you have written the last one already: decoder, head, loss.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# embed has returned the vectors and the mask that goes with them; the mask that came in may be too short.
# Without targets the head runs at every position and the loss is None.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# x = self.decoder(x, the mask of the joint sequence, document_ids, cache, hidden_states)
# no targets: VLMOutput(self.decoder.head(x), None, hidden_states)
# else:       VLMOutput(…, hidden_states), with what answer_loss gives
# ```
#
# </details>

# %%
answer_loss = use("fusion.answer_loss", answer_loss)


# %%
def forward(
    self,
    input_ids: Tensor,
    images: Tensor | None = None,
    attention_mask: Tensor | None = None,
    targets: Tensor | None = None,
    document_ids: Tensor | None = None,
    output_hidden_states: bool = False,
    cache=None,
) -> VLMOutput:
    """ids, pictures, mask, targets -> logits, the mean loss over supervised tokens, hidden states"""
    x, joint_mask, num_prefix = self.embed(input_ids, images, attention_mask)
    if document_ids is not None and num_prefix:
        raise ValueError(
            "Packed rows need image placeholders: a picture as prefix would belong to every document."
        )
    hidden_states: list[Tensor] | None = [] if output_hidden_states else None
    # SOLUTION
    x = self.decoder(x, joint_mask, document_ids, cache, hidden_states)  # [B, S, dim]
    if targets is None:
        return VLMOutput(self.decoder.head(x), None, hidden_states)
    logits, loss = answer_loss(self.decoder.head, x, targets)
    return VLMOutput(logits, loss, hidden_states)
    # END SOLUTION


# %%
check("fusion.forward", forward)

# %% [markdown] tags=["stamped"]
# ## Exercise 6.5 · Measure it: how far did the answer move?
# `fusion.moved` · difficulty ●○○ · about 6 minutes
#
# **Why it matters.** Right or wrong says little about one question. How much probability moves when the picture
# changes says whether the model looked, even where the answer stays the same.

# %% [markdown] tags=["exercise"]
# **Measure it.** You get two rows of logits for the same questions, with two different pictures: `[batch, vocab_size]`
# each. How much probability has moved? Return one number for each question, `[batch]`, between 0 (the same answer, just
# as sure) and 1 (all the probability went elsewhere).
#
# With the probabilities 0.5, 0.3, 0.2 before and 0.2, 0.3, 0.5 after, 0.3 has moved from the first word to the last.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Logits are no probabilities yet, and two sets of logits that differ by a constant mean the same.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Make probabilities of both. What one word loses another one gains: the absolute differences count every bit of
# moved probability twice.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# p, q = softmax of each, over the words
# half of …
# ```
#
# </details>


# %%
def moved(logits: Tensor, other: Tensor) -> Tensor:
    """[B, vocab_size] twice -> [B], the share of the probability that moved"""
    # SOLUTION
    difference = logits.softmax(dim=-1) - other.softmax(dim=-1)
    return difference.abs().sum(dim=-1) / 2  # what left one word arrived at another
    # END SOLUTION


# %%
check("fusion.moved", moved)

# %% [markdown] tags=["stamped"]
# ## Exercise 6.6 · 222 million, counted
# `fusion.parameters_222m` · difficulty ●●○ · about 15 minutes
#
# **Why it matters.** If you can count a model, you know it: every matrix, which of them have biases, and what
# is shared. It is also the first check of any checkpoint, because a count that is off by one matrix shows a
# part that you did not know.

# %% [markdown] tags=["exercise"]
# How many parameters does a model of these sizes have? Calculate it, without building the model. Return a dict with the
# keys `vision_encoder`, `projector` and `decoder`. For `VLMConfig()`, the 222M model, they add up to 222 million; the
# formula must hold for any config.
#
# The sizes are called `config.vision.hidden_dim`, `.inter_dim`, `.num_blocks`, `.patch_size`, `.num_patches`;
# `config.projector.vision_dim`, `.language_dim`, `.pixel_shuffle_factor`; `config.language.hidden_dim`, `.inter_dim`,
# `.num_blocks`, `.num_kv_heads`, `.head_dim`, `.vocab_size`, `.tie_weights`.
#
# What has what: everything in the vision encoder has a bias (the patch convolution, all linear layers, LayerNorms).
# Nothing in the projector and the decoder has one. The encoder ends in a LayerNorm, the decoder in an RMSNorm. Where
# `tie_weights` is true the head *is* the token embedding.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Walk through each part once, as a vector does, and write down every layer on its way with its sizes.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Vision: Linear layers and LayerNorms have biases. Decoder: nothing has a bias, keys and values are narrower
# than queries (num_kv_heads), the MLP has three matrices, an RMSNorm has one weight for each dimension. The
# tied head is the token embedding: counted once.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# conv: 3 * patch * patch * dim + dim       positions: num_patches * dim
# ViT block: qkv (dim -> 3 dim) and out (dim -> dim) with biases, two MLP layers with biases, two LayerNorms
# ViT: conv + positions + blocks + one LayerNorm
# decoder block: q and out dim * dim, k and v dim * kv_dim, three times dim * inter_dim, two RMSNorms
# decoder: vocab_size * dim + blocks + one RMSNorm, and another vocab_size * dim if not tied
# projector: vision_dim * r * r * language_dim
# ```
#
# </details>


# %%
def parameters_by_part(config: VLMConfig) -> dict[str, int]:
    """Parameters of vision_encoder, projector and decoder; a shared one counts once."""
    # SOLUTION
    vision, projector, language = config.vision, config.projector, config.language

    dim, inter = vision.hidden_dim, vision.inter_dim
    norm = 2 * dim
    attention = (dim * 3 * dim + 3 * dim) + (dim * dim + dim)
    mlp = (dim * inter + inter) + (inter * dim + dim)
    patches = 3 * vision.patch_size**2 * dim + dim + vision.num_patches * dim
    encoder = patches + vision.num_blocks * (attention + mlp + 2 * norm) + norm

    dim, inter, kv_dim = (
        language.hidden_dim,
        language.inter_dim,
        language.num_kv_heads * language.head_dim,
    )
    attention = 2 * dim * dim + 2 * dim * kv_dim  # q and out; k and v
    block = attention + 3 * dim * inter + 2 * dim  # gate, up and down; two norms
    words = language.vocab_size * dim * (1 if language.tie_weights else 2)
    return {
        "vision_encoder": encoder,
        "projector": projector.vision_dim
        * projector.pixel_shuffle_factor**2
        * projector.language_dim,
        "decoder": words + language.num_blocks * block + dim,
    }
    # END SOLUTION


# %%
check("fusion.parameters_222m", parameters_by_part)

# %% [markdown] tags=["stamped"]
# ## Exercise 6.7 · Mend it: an answer that depends on its neighbours
# `fusion.batch_positions` · difficulty ●●○ · about 10 minutes
#
# **Why it matters.** A published VLM had this fault. Nothing fails and most answers stay right, but what a
# model says to one question should not depend on the length of another.

# %% [markdown] tags=["exercise"]
# **Mend it.** This is how the first release of nanoVLM counted positions, where pictures stand in front:
#
# ```python
# def joint_positions(attention_mask, num_image_tokens):        # [B, T]; 0 is padding
#     mask = F.pad(attention_mask, (num_image_tokens, 0), value=1)
#     positions = torch.arange(mask.shape[1]).expand_as(mask)
#     return mask, positions
# ```
#
# The symptom: a question gets other logits in a batch than alone, if the batch has a longer question. Mend it. Return
# the mask of picture and text, `[B, num_image_tokens + T]`, and the position of each token, of the same shape: whole
# numbers from 0. A token's position must not depend on how much padding its row has. Which position a padding token
# gets does not matter.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# The mask is right: no token attends to padding. What else does the decoder take from the place of a token in
# the row?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# A token's position is the number of real tokens in front of it. A running sum over the mask counts real tokens
# up to and including each one.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# mask = F.pad(attention_mask, (num_image_tokens, 0), value=1)
# positions = the running sum of the mask along each row, less …
# ```
#
# </details>


# %%
def joint_positions(attention_mask: Tensor, num_image_tokens: int) -> tuple[Tensor, Tensor]:
    """The text's mask [B, T] -> the mask and the positions of picture and text, [B, num_image_tokens + T] each"""
    # SOLUTION
    mask = F.pad(attention_mask, (num_image_tokens, 0), value=1)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)  # how many real tokens come before
    return mask, positions
    # END SOLUTION


# %%
check("fusion.batch_positions", joint_positions)

# %% [markdown] tags=["stamped"]
# ## Exercise 6.8 · Write the test that counts
# `fusion.test_merge` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** A fusion that mixes up two pictures has the right shapes and trains without an error. A
# test of ten lines is all that stands between it and a run of several days.

# %% [markdown] tags=["exercise"]
# **Write the test.** The check runs your test on a `merge_image_tokens` that is right, where it has to pass, and on
# eight that are wrong in eight ways, where it has to fail. It tells you how many you catch.
#
# The promises of exercise 6.1 are what you may ask for: image tokens stand in the places of placeholders, in reading
# order, and a batch is refused with `ValueError` if a row's placeholders are not whole pictures, or if there are more
# or fewer of them in all than image tokens. A test calls the function that it is given, compares by `assert`, and
# returns nothing.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Write an example small enough for the right answer by hand, in which every number says where it is from. Then
# think of the batches that have to be refused.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Two rows with two pictures and with one, of two image tokens each, whose numbers are all different, and
# embeddings that are not 0. Three batches must raise ValueError: a row with a picture and a half, a picture too
# many, a picture too few.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# out = merge_image_tokens(embeddings, image_tokens, is_placeholder)
# assert out[:, :, 0].tolist() == [[1, 100, 101, …], […]]
# for each batch that must be refused:
#     try the call; else: raise AssertionError; except ValueError: pass
# ```
#
# </details>


# %%
def test_merge(merge_image_tokens) -> None:
    """Raises AssertionError if merge_image_tokens is wrong."""
    # SOLUTION
    embeddings = torch.tensor([[1.0, 8, 8, 2, 8, 8], [8, 8, 3, 4, 5, 6]])[:, :, None]
    image_tokens = torch.arange(10.0, 16.0).reshape(3, 2, 1)
    out = merge_image_tokens(embeddings, image_tokens, embeddings[:, :, 0] == 8)
    assert out[:, :, 0].tolist() == [[1, 10, 11, 2, 12, 13], [14, 15, 3, 4, 5, 6]], "places"
    uneven = torch.tensor([[8.0, 8, 8, 1], [2, 8, 3, 4]])[:, :, None]
    for texts, count in ((uneven, 2), (embeddings, 4), (embeddings, 2)):
        try:
            merge_image_tokens(texts, torch.zeros(count, 2, 1), texts[:, :, 0] == 8)
        except ValueError:
            continue
        raise AssertionError("a batch that does not fit went through")
    # END SOLUTION


# %%
check("fusion.test_merge", test_merge)
