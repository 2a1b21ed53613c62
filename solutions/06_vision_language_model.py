# %% [markdown]
# # 06 Exercises: the vision-language model
#
# Six steps from image tokens to a whole model: put pictures among words, both ways, learn from answers alone, and run
# it all in one forward pass. With it you hold every part of the model.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [the chapter](../chapters/06_vision_language_model.ipynb) ·
# [the exercises](../exercises/06_vision_language_model.ipynb)
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
# Tensor.masked_scatter does just that, and leaves its input alone.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# counts = is_placeholder.sum(dim=1).tolist()
# raise ValueError if any count % num_image_tokens, or if the total is not num_images * num_image_tokens
# return embeddings.masked_scatter(the mask with an axis more, the image tokens in the dtype of embeddings)
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
        raise ValueError(f"Each picture needs {num_image_tokens} placeholders in one row; the rows have {counts}.")
    if sum(counts) != num_images * num_image_tokens:
        raise ValueError(f"There are {sum(counts)} placeholders for {num_images} pictures of {num_image_tokens}.")
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
# | one for each row | no | `[image tokens, words]` in one line, the mask with as many ones in front, their number |
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
# none: the mask becomes F.pad(attention_mask, (num_image_tokens, 0), value=1)
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
        return merge_image_tokens(embeddings, image_tokens, input_ids == image_token_id), attention_mask, 0
    num_prefix = image_tokens.shape[1]
    if attention_mask is not None:
        attention_mask = F.pad(attention_mask, (num_prefix, 0), value=1)
    return torch.cat([image_tokens.to(embeddings.dtype), embeddings], dim=1), attention_mask, num_prefix
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
# logits = head(the last T positions of x, at supervised)
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
# `fusion.forward` · difficulty ●●● · about 15 minutes
#
# **Why it matters.** With it the whole model is in your hands: this method runs the shipped weights at the end
# of the chapter, and chapter 08 trains it.

# %% [markdown] tags=["exercise"]
# The forward pass of the whole model. `self` is the model again; `self.embed(input_ids, images, attention_mask)` is the
# method of exercise 6.2, and the decoder is called as `self.decoder(x, attention_mask, document_ids, cache,
# hidden_states)`: vectors `[B, S, dim]` in, vectors out. `self.decoder.head` makes logits.
#
# - `document_ids` and `cache` are for chapters 07 and 09. Hand them on to the decoder. But if `document_ids` came and
#   image tokens stand in front, raise `ValueError`: several documents share a row, so whose picture would it be?
# - `output_hidden_states`: give the decoder an empty list, and it fills it. Otherwise give it `None`.
# - Without targets: logits at every position, loss `None`. With targets: what `answer_loss` gives.
#
# Return `VLMOutput(logits, loss, hidden_states)`, a tuple with names. The cell below takes your `answer_loss` if it
# passes.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Four steps, and you have written the first and the last already: embed, decoder, head, loss.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# embed gives the vectors, the mask that goes with them (not the one that came in) and how many stand in front.
# The decoder takes vectors, mask, document_ids, cache and the list for hidden states. Without targets the head
# runs everywhere and the loss is None.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# x, attention_mask, num_prefix = self.embed(…)
# document_ids and num_prefix: ValueError
# hidden_states = [] if asked for, else None
# x = self.decoder(x, attention_mask, document_ids, cache, hidden_states)
# no targets: VLMOutput(self.decoder.head(x), None, hidden_states)
# else:       VLMOutput(*answer_loss(self.decoder.head, x, targets), hidden_states)
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
    # SOLUTION
    x, attention_mask, num_prefix = self.embed(input_ids, images, attention_mask)
    if document_ids is not None and num_prefix:
        raise ValueError("Packed rows need image placeholders: a picture as prefix would belong to every document.")
    hidden_states: list[Tensor] | None = [] if output_hidden_states else None
    x = self.decoder(x, attention_mask, document_ids, cache, hidden_states)  # [B, S, dim]
    if targets is None:
        return VLMOutput(self.decoder.head(x), None, hidden_states)
    logits, loss = answer_loss(self.decoder.head, x, targets)
    return VLMOutput(logits, loss, hidden_states)
    # END SOLUTION


# %%
check("fusion.forward", forward)

# %% [markdown] tags=["stamped"]
# ## Exercise 6.5 · How far did the answer move?
# `fusion.moved` · difficulty ●○○ · about 6 minutes
#
# **Why it matters.** Right or wrong says little about one question. How much probability moves when the picture
# changes says whether the model looked, even where the answer stays the same.

# %% [markdown] tags=["exercise"]
# Two rows of logits for the same questions, with two different pictures: `[batch, vocab_size]` each. How much
# probability has moved? Return one number for each question, `[batch]`, between 0 (the same answer, just as sure) and 1
# (all the probability went elsewhere).
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
# half of the sum of |p - q|, over the words
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
# **Why it matters.** Who can count a model knows it: every matrix, which of them have biases, what is shared.
# It is also the first check of any checkpoint that you meet: a count that is off by one matrix shows a part
# that you did not know.

# %% [markdown] tags=["exercise"]
# How many parameters has a model of these sizes? Do not build it: calculate. Return a dict with the keys
# `vision_encoder`, `projector` and `decoder`. For `VLMConfig()`, the 222M model, they add up to 222 million; the
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

    dim, inter, kv_dim = language.hidden_dim, language.inter_dim, language.num_kv_heads * language.head_dim
    attention = 2 * dim * dim + 2 * dim * kv_dim  # q and out; k and v
    block = attention + 3 * dim * inter + 2 * dim  # gate, up and down; two norms
    words = language.vocab_size * dim * (1 if language.tie_weights else 2)
    return {
        "vision_encoder": encoder,
        "projector": projector.vision_dim * projector.pixel_shuffle_factor**2 * projector.language_dim,
        "decoder": words + language.num_blocks * block + dim,
    }
    # END SOLUTION


# %%
check("fusion.parameters_222m", parameters_by_part)
