# %% [markdown]
# # 01 From pixels to patches
#
# The first part of your own model: a picture becomes a line of vectors that know where they came from. You cut it by
# hand, find that a convolution does the same, and see what is left of a model that does not know its places.
# Forty minutes; the code runs in half a minute.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [← 00 Start here](00_start_here.ipynb) ·
# [02 The vision transformer →](02_vision_transformer.ipynb) ·
# [exercises](../exercises/01_patch_embedding.ipynb)
#
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/chapters/01_patch_embedding.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/chapters/01_patch_embedding.ipynb

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
import copy
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from nanovlm import VisionLanguageModel, VLMConfig
from nanovlm.assets import asset_path
from nanovlm.config import ViTConfig
from nanovlm.course import budget, expect_shape, lever, quiz, use
from nanovlm.viz.patches import numbers_figure, patch_grid_figure, similarity, similarity_figure
from nanovlm.viz.pixel_shuffle import images_row

# %% [markdown]
# ## The question: how does one read a picture?
#
# A transformer reads a *line of vectors*. A sentence makes such a line by itself: one word after the other, each looked
# up in a table of vectors.
#
# A picture does not. It has no words, no first and no last, and far more numbers than a sentence has letters. This
# chapter makes a line of vectors out of it. Everything that the model will ever know of the picture goes through that
# line.

# %% [markdown]
# ## A picture is numbers
#
# Here is the picture of chapter 00, made as small as the pocket model gets it. A small window is marked. Next to it
# stand the numbers that the window is made of.

# %%
image = Image.open(asset_path("images/shapes.png")).convert("RGB")
small = image.resize((64, 64), Image.Resampling.BICUBIC)

numbers_figure(small, row=14, column=22)

# %% [markdown]
# Three numbers for each pixel: how much red, green and blue, as bytes from 0 to 255. Where the star ends, the numbers
# jump.
#
# There is nothing else. No star, no edge: 3 x 64 x 64 numbers.

# %% tags=["nbval-check-output"]
colour_last = torch.from_numpy(np.array(small))  # [row, column, channel], as PIL and NumPy have it
pixels = colour_last.permute(2, 0, 1)  # [channel, row, column], as PyTorch's layers want it
print(pixels.dtype, expect_shape(pixels, "3 64 64"))
print("the pixel in row 14, column 22:", pixels[:, 14, 22].tolist())

# %% [markdown]
# Note the `permute`. PIL stores a picture pixel by pixel: red, green, blue, and on to the next pixel. PyTorch wants
# all of red, then all of green, then all of blue. `reshape(3, 64, 64)` has the same shape. Look at what it makes:


# %%
def to_image(x):
    """[3, H, W], bytes -> a picture"""
    return Image.fromarray(x.permute(1, 2, 0).contiguous().numpy())


images_row([to_image(pixels), to_image(colour_last.reshape(3, 64, 64))], ["permute(2, 0, 1)", "reshape(3, 64, 64)"])

# %% [markdown]
# The right picture has the right shape, the right type, and every number of the original. Only their places are wrong.
# **`permute` moves axes. `reshape` moves nothing: it cuts the same line of numbers anew.** You will meet this pair in
# every chapter.

# %% [markdown]
# ## The range
#
# Bytes run from 0 to 255. SigLIP, whose encoder we build, was trained on numbers from -1 to 1: its [settings
# file](https://huggingface.co/google/siglip-base-patch16-224/blob/main/preprocessor_config.json) says mean 0.5 and
# standard deviation 0.5, after a division by 255. This is called **normalising**.
#
# Why? A layer multiplies and adds. Numbers around zero, of about size one, are what its random weights are made for
# at the start: neither too loud nor all of one sign. After training there is a stronger reason: *the weights belong to
# the range*.
#
# (It is one line, and it is [exercise 1.1](../exercises/01_patch_embedding.ipynb). Try it before you read on.)


# %% tags=["nbval-check-output"]
def normalize(pixels: Tensor) -> Tensor:
    """Bytes 0..255 -> float32 from -1 to 1, of the same shape."""
    return pixels / 127.5 - 1


normalize(torch.tensor([0, 51, 204, 255], dtype=torch.uint8))

# %% [markdown]
# Now break it. What happens if somebody forgets? Say what you think:

# %%
quiz("ch01.range")

# %% [markdown]
# The pocket model can tell. We ask it about test pictures of the Thimble, the drawn pictures of chapter 00: which
# colour, which shape, how many, is there one, where is it, are there more of these than of those. The next cell says
# how to measure. The one after it does so, with other pixels each time, and takes some seconds.

# %%
from nanovlm.data.processors import ImageProcessor
from nanovlm.data.thimble import chance, thimble_sample
from nanovlm.evaluation.scores import evaluate
from nanovlm.viz.fusion import score_table

model = VisionLanguageModel.from_pretrained(asset_path("pocket")).eval()
num_images = budget().pick(ci=40, laptop=60)


def accuracies(model: VisionLanguageModel, count: int = num_images) -> dict[str, float]:
    """Share of right answers for each kind of question, about so many pictures."""
    size = model.config.vision.image_size
    samples = [thimble_sample("shapes", "test", i, image_size=size) for i in range(count)]
    return {kind: score.accuracy for kind, score in evaluate(model, samples, blind=False).scores.items()}


def with_pixels(scale) -> dict[str, float]:
    """The same, but `scale` makes the model's numbers out of bytes."""
    processor, model.image_processor = model.image_processor, ImageProcessor(64)
    model.image_processor.to_tensor = lambda opened: scale(processor.to_raw(opened).float())
    scores = accuracies(model)
    model.image_processor = processor
    return scores


# %%
imagenet_mean = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
imagenet_std = torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)
by_range = {
    "-1 to 1, as trained": with_pixels(normalize),
    "0 to 1": with_pixels(lambda pixels: pixels / 255),
    "0 to 255": with_pixels(lambda pixels: pixels),
    "ImageNet's mean and std": with_pixels(lambda pixels: (pixels / 255 - imagenet_mean) / imagenet_std),
}


def mean(scores: dict[str, float]) -> float:
    return sum(scores.values()) / len(scores)


def hardest_hit(before: dict[str, float], after: dict[str, float]) -> str:
    """The kind of question that loses most."""
    return max(before, key=lambda kind: before[kind] - after[kind])


def least_hit(before: dict[str, float], after: dict[str, float]) -> str:
    return min(before, key=lambda kind: before[kind] - after[kind])


as_trained, zero_to_one, raw_bytes, imagenet = by_range.values()
assert mean(raw_bytes) < mean(chance("shapes")) + 0.1  # guessing
for name, scores in (("0 to 1", zero_to_one), ("ImageNet's", imagenet)):
    assert mean(raw_bytes) + 0.2 < mean(scores) < mean(as_trained) - 0.04
    kept, hit = least_hit(as_trained, scores), hardest_hit(as_trained, scores)
    for kind in (kept, hit):
        print(f"{name:11} {kind:8} {as_trained[kind]:4.0%} before, {scores[kind]:4.0%} now")
    assert scores[kept] > as_trained[kept] - 0.1 and scores[hit] < as_trained[hit] - 0.1

score_table(by_range, chance("shapes"))

# %% [markdown]
# (*By guessing* is what one reaches who reads the question and never looks. Each number stands on few questions, so do
# not read much into a few points.)
#
# Bytes leave nothing: the model guesses. But look at the two rows around it. Most answers are still right, and the
# loss is uneven. The printed lines say how: one kind of question is answered as well as before, or nearly so, and
# another pays for it. *Those* are the dangerous rows. Nothing raises, and a demo that asks the first kind looks fine.
# ImageNet's numbers belong to another model's processor. They lie around zero as well, only wider, and they cost all the
# same.
#
# It happens to the best. [nanoVLM's processor](https://github.com/huggingface/nanoVLM/blob/main/data/processors.py)
# resizes and makes tensors from 0 to 1, and never normalises, though its encoder comes from SigLIP. Its training then
# had to get the encoder used to that. So nanoVLM's published weights want 0 to 1, and SigLIP's want -1 to 1. There is
# no right range, only the one that *these* weights have seen. That is why it is stored with the model:

# %% tags=["nbval-check-output"]
print(model.image_processor)
torch.testing.assert_close(normalize(pixels), model.image_processor(small)[0])

# %% [markdown]
# "Signed" is the package's word for -1 to 1.

# %% [markdown]
# ## Why not pixel by pixel?
#
# We have numbers in the right range. To make a line of them, the simplest way is one token for each pixel. What would
# that cost? In attention (chapter 02) each token meets each other one. Predict:

# %%
quiz("ch01.pairs")

# %% tags=["nbval-check-output"]
for patch_size in (1, 16):
    tokens = (224 // patch_size) ** 2
    print(f"patches of {patch_size:2} x {patch_size:2}: {tokens:6,} tokens, {tokens**2:13,} pairs")

# %% [markdown]
# Two and a half billion pairs, in every layer, several times over, for one small picture. So a token has to be more than a
# pixel. The vision transformer takes squares, **patches**: "An image is worth 16x16 words" ([Dosovitskiy et al.
# 2020](https://arxiv.org/abs/2010.11929)). SigLIP-B/16 does the same with 224 pixels.
#
# Move the lever and watch the three numbers. (Without a kernel you see patches of 16.)

# %%
large = image.resize((224, 224), Image.Resampling.BICUBIC)


def cut_into(patch_size):
    return patch_grid_figure(large, patch_size)


lever(cut_into, patch_size=[4, 8, 16, 32, 56, 112], start={"patch_size": 16})

# %% [markdown]
# Small patches: many tokens, and the pairs explode. Large patches: few tokens, and a great deal in each. All that one
# patch holds goes through a single linear layer, as you will see. Patches can look at each other. What is inside one
# patch cannot look at anything.
#
# Note one thing about 16: 16 x 16 x 3 = 768, and 768 is also the width of SigLIP-B's vectors. A patch goes in and a
# vector of as many numbers comes out.

# %% [markdown]
# ## Cut by hand
#
# One patch is easy. It is a slice. The pocket model has patches of 8 pixels, so patch 1, the second of the top row, is
# this. Flattened, it is a vector:

# %% tags=["nbval-check-output"]
x = normalize(pixels)[None]  # [1, 3, 64, 64]: a batch of one
patch_1 = x[0, :, 0:8, 8:16]
print(expect_shape(patch_1, "3 8 8"), " -> ", expect_shape(patch_1.flatten(), "192"))

# %% [markdown]
# Now all of them at once, without a loop. We do it on sixteen numbers first, with patches of 2 x 2:

# %% tags=["nbval-check-output"]
numbers = torch.arange(16).reshape(4, 4)
numbers

# %% [markdown]
# A row number from 0 to 3 is two things: *which row of patches* (0 or 1), and *which row inside the patch* (0 or 1).
# The same holds for columns. `reshape` gives each of the four its own axis. No number moves:

# %% tags=["nbval-check-output"]
unfolded = numbers.reshape(2, 2, 2, 2)
expect_shape(unfolded, "patch_row inner_row patch_column inner_column")

# %% [markdown]
# Now `permute` moves: what counts patches to the front, what counts pixels inside to the back. Then merge two and two.

# %% tags=["nbval-check-output"]
patches = unfolded.permute(0, 2, 1, 3).reshape(4, 4)
assert patches[1].equal(numbers[0:2, 2:4].flatten())
patches

# %% [markdown]
# Each line is a patch. Compare line 1 with the square at the top right above.
#
# A real picture has a channel axis and a batch axis more. The idea is the same. If you want to write it yourself, now is
# the time: [exercise 1.2](../exercises/01_patch_embedding.ipynb). What follows is the answer.


# %%
def patchify(images: Tensor, patch_size: int) -> Tensor:
    """[B, channels, H, W] -> [B, H / p * W / p, channels * p * p], with p = patch_size"""
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    x = images.reshape(batch, channels, rows, patch_size, columns, patch_size)  # [B, channel, row, p, column, p]
    x = x.permute(0, 2, 4, 1, 3, 5)  # [B, row, column, channel, p, p]
    return x.reshape(batch, rows * columns, channels * patch_size**2)


# %% tags=["nbval-check-output"]
patches = patchify(x, 8)
assert patches[0, 1].equal(patch_1.flatten())
print(expect_shape(patches, "1 64 192"))

# %% [markdown]
# And at the size of SigLIP-B/16, two pictures of 224 pixels:

# %% tags=["nbval-check-output"]
expect_shape(patchify(torch.zeros(2, 3, 224, 224), 16), "batch 196 768")

# %% [markdown]
# Is anything lost? The proof that nothing is lost is a way back. It is [exercise
# 1.3](../exercises/01_patch_embedding.ipynb). If you have solved it, this cell takes yours.

# %%
unpatchify = use("patches.unpatchify")

assert unpatchify(patchify(x, 8), 8).equal(x)

# %% [markdown]
# ### What breaks: one reshape
#
# From `[1, 3, 64, 64]` to `[1, 64, 192]`: would a plain `reshape` not do? It has the right shape. To see what it puts
# into a patch, put the patches where they belong, with the way back:

# %%
wrong = x.reshape(1, 64, 192)
assert wrong.shape == patchify(x, 8).shape


def to_bytes(x):
    return ((x + 1) * 127.5).round().to(torch.uint8)


seen = [to_image(to_bytes(unpatchify(p, 8)[0])) for p in (patchify(x, 8), wrong)]
images_row(seen, ["patchify, put back", "reshape, put back"])

# %% [markdown]
# The same thing as with colours: the numbers are all there, in a shape that fits, in places that mean nothing. A wrong
# patch here is three rows of one colour.

# %% [markdown]
# ## One linear layer for all patches
#
# A patch is 192 raw numbers. The encoder wants vectors as wide as its layers, 128 in the pocket model. One linear layer
# makes the one of the other: **each patch goes through the same weights**. A star's tip looks the same wherever it is,
# so what is learned about it in one place should hold in all.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
linear = nn.Linear(192, 128)
expect_shape(linear(patchify(x, 8)), "1 64 128")

# %% [markdown]
# That is how papers draw it. But open any code, such as transformers' SigLIP or nanoVLM's, and you find a convolution:
# `nn.Conv2d(3, 128, kernel_size=8, stride=8)`. Why?
#
# A convolution lays a small window on the picture, multiplies, adds up, and moves the window on. Here the window is as
# large as a patch, and it moves on by a whole patch (that is the *stride*). So it looks at patch 0, then at patch 1, and
# so on: every patch once, none twice. For each it multiplies and adds up. That *is* the linear layer.
#
# Is it? Then the numbers can be carried over. A convolution's weight is `[dim, 3, 8, 8]`, for each output number one
# small colour picture. The linear layer's is `[dim, 192]`. Here are the pocket model's trained ones:

# %% tags=["nbval-check-output"]
conv = model.vision_encoder.patch_embedding.conv
print(conv)
print("conv:  ", expect_shape(conv.weight, "dim 3 8 8"))
print("linear:", expect_shape(linear.weight, "dim 192"))

# %% [markdown]
# From the convolution into the linear layer: flatten all axes but the first. (This is [exercise
# 1.4](../exercises/01_patch_embedding.ipynb).)

# %% tags=["nbval-check-output"]
with torch.no_grad():
    linear.weight.copy_(conv.weight.flatten(1))
    linear.bias.copy_(conv.bias)

by_linear = linear(patchify(x, 8))  # [1, 64, 128]
by_conv = conv(x)  # [1, 128, 8, 8]: dim comes second, and the patches are a grid
print(expect_shape(by_linear, "1 64 128"), "and", expect_shape(by_conv, "1 128 8 8"))

torch.testing.assert_close(by_linear, by_conv.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-4)

# %% [markdown]
# The same numbers, up to rounding. Note what the convolution leaves to do: merge its grid into a line (`flatten(2)`), and
# bring dim to the end (`transpose(1, 2)`). Both steps are needed. `reshape(1, 64, 128)` would be the old trap.
#
# And the other way round, from a linear layer into a convolution:

# %%
back = nn.Conv2d(3, 128, kernel_size=8, stride=8)
with torch.no_grad():
    back.weight.copy_(linear.weight.unflatten(1, (3, 8, 8)))
    back.bias.copy_(linear.bias)

assert back.weight.equal(conv.weight) and back(x).equal(conv(x))

# %% [markdown]
# This works because `patchify` lays a patch out as the weight is laid out: channel, row, column. Had we put the colour
# last, the shapes would fit as well, and the numbers would be nonsense.
#
# So the convolution is no second idea. It is the same layer with the cutting built in: one call, and no copy of the
# picture in between. From here on, we use it.

# %% [markdown]
# ## Where was it?
#
# Now the picture is a line of vectors. Are we done? One thing got lost on the way, and it is easy to overlook.
#
# Attention is what lets vectors look at each other. Each vector comes out as a weighted sum of all of them, and the
# weights say how well two of them match. You build it in chapter 02; for now, PyTorch has it. (It takes the vectors
# three times, in three roles. Here they are the same.) Predict:

# %%
quiz("ch01.order")

# %% tags=["nbval-check-output"]
four = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(1))
order = [2, 0, 3, 1]
straight = F.scaled_dot_product_attention(four, four, four)
shuffled = F.scaled_dot_product_attention(four[:, order], four[:, order], four[:, order])

torch.testing.assert_close(shuffled, straight[:, order])
print("shuffle, then attend = attend, then shuffle")

# %% [markdown]
# Attention is blind to order. Everything else in an encoder works on each vector alone, so *the whole encoder* is blind
# to order. What does that mean for a picture? Take the patches of ours and deal them out anew:

# %%
deal = torch.randperm(64, generator=torch.Generator().manual_seed(0))
dealt = unpatchify(patchify(x, 8)[:, deal], 8)

images_row([small, to_image(to_bytes(dealt[0]))], ["the picture", "the same patches, dealt out anew"])

# %% [markdown]
# For you these are two pictures. For an encoder that gets nothing but the patches' contents they are one: the same
# bag of patches. We try it with the pocket model's encoder and put zeros where its knowledge of places is stored:

# %% tags=["nbval-check-output"]
without = copy.deepcopy(model.vision_encoder)
with torch.no_grad():
    without.patch_embedding.position_embedding.zero_()
    torch.testing.assert_close(without(dealt), without(x)[:, deal], rtol=1e-3, atol=1e-3)
    moved = (model.vision_encoder(dealt) - model.vision_encoder(x)[:, deal]).abs().max()

print("without positions: each patch comes out as before, wherever it was")
print("with positions: does it notice?", bool(moved > 1))

# %% [markdown]
# ## A vector for each place
#
# The remedy is simple: give each place of the grid a vector of its own, and add it to whatever patch stands there. These
# **position embeddings** are weights like all others. They start as random numbers, and training shapes them.
#
# Add, not append? Adding keeps the vector as wide as it was. There is room: in 128 or 768 dimensions, *what* and *where*
# can share a vector without getting into each other's way, and the next layer can learn to tell them apart.
#
# With that, the part is complete: cut, project, add. Stop here if you want to write it yourself: [exercise
# 1.5](../exercises/01_patch_embedding.ipynb) becomes part of *your* model.


# %% tags=["package:nanovlm.models.vision_transformer.PatchEmbedding"]
class PatchEmbedding(nn.Module):
    """Cut the picture into patches, project each one, add its position. [B, 3, H, W] -> [B, num_patches, dim]"""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        # A convolution whose stride is its kernel size is one linear layer applied to every patch.
        self.conv = nn.Conv2d(3, config.hidden_dim, config.patch_size, stride=config.patch_size)
        self.position_embedding = nn.Parameter(torch.randn(1, config.num_patches, config.hidden_dim) * 0.02)

    def forward(self, images: Tensor) -> Tensor:
        size = self.config.image_size
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise ValueError(f"The ViT expects pictures of shape [B, 3, {size}, {size}]; got {list(images.shape)}.")
        x = self.conv(images)  # [B, dim, grid, grid]
        x = x.flatten(2).transpose(1, 2)  # [B, num_patches, dim]
        return x + self.position_embedding


# %% [markdown]
# Load the pocket model's weights into it and compare. Then the real size:

# %% tags=["nbval-check-output"]
embedding = PatchEmbedding(model.config.vision)
embedding.load_state_dict(model.vision_encoder.patch_embedding.state_dict())
assert embedding(x).equal(model.vision_encoder.patch_embedding(x))
print("pocket model:", expect_shape(embedding(x), "1 64 128"))

siglip = PatchEmbedding(ViTConfig())  # the defaults are SigLIP-B/16's sizes
print("SigLIP-B/16: ", expect_shape(siglip(torch.zeros(1, 3, 224, 224)), "1 196 768"))
for name, weight in siglip.named_parameters():
    print(f"{name:20} {list(weight.shape)!s:18} {weight.numel():7,}")

# %% [markdown]
# ### What breaks without it
#
# The pocket model learned with positions. Take them away, and ask it everything once more. Which kind of question
# suffers most?

# %%
quiz("ch01.blind_to_place")

# %%
trained = model.vision_encoder.patch_embedding.position_embedding.detach().clone()


def with_positions(positions: Tensor) -> dict[str, float]:
    parameter = model.vision_encoder.patch_embedding.position_embedding
    parameter.data.copy_(positions)
    scores = accuracies(model)
    parameter.data.copy_(trained)
    return scores


by_place = {
    "as trained": by_range["-1 to 1, as trained"],
    "no positions (zeros)": with_positions(torch.zeros_like(trained)),
    "shuffled positions": with_positions(trained[:, deal]),
}
for condition in ("no positions (zeros)", "shuffled positions"):
    assert hardest_hit(by_place["as trained"], by_place[condition]) == "where"
    assert by_place[condition]["where"] < chance("shapes")["where"] + 0.2  # not far from guessing
    assert by_place[condition]["exists"] > 0.85
assert mean(by_place["shuffled positions"]) < mean(by_place["no positions (zeros)"]) + 0.02

score_table(by_place, chance("shapes"))

# %% [markdown]
# Read it by columns:
#
# - **where** falls furthest, down to guessing. There are four answers, and the model picks one. If a share lies well
#   *below* guessing, the model is not blind: it is told a wrong place, and believes it.
# - **exists** hardly notices. "Is there a star?" needs no places. A bag of patches holds a star or does not.
# - The others are in between. To say what colour the star is, the patches of the star must find each other, and "next to
#   me" is a matter of place.
# - Wrong positions are no better than none.
#
# One more thing is worth a thought. The decoder gets the image tokens in order, and it knows order by its own means
# (chapter 04). It could have used that to say where things are. This model hardly does: it relies on what the encoder
# tells it.

# %% [markdown]
# ### How loud?
#
# A position is *added* to a patch. So one can drown the other. How large are they beside each other? Not the vectors
# themselves count, but how much they *differ* from patch to patch. What is the same everywhere tells nothing.

# %%
images = [thimble_sample("shapes", "test", i, image_size=64)["images"][0] for i in range(40)]
batch = model.image_processor(images)  # [40, 3, 64, 64]


def loudness(vectors: Tensor) -> float:
    """How far the vectors lie from their mean, on average. [..., dim]"""
    vectors = vectors.detach().flatten(0, -2)
    return float((vectors - vectors.mean(0)).norm(dim=-1).mean())


torch.manual_seed(0)
plain = PatchEmbedding(model.config.vision)
recipe = VisionLanguageModel(model.config).vision_encoder.patch_embedding  # the whole model sets its weights anew
quiet = copy.deepcopy(recipe)
quiet.position_embedding.data *= 0.02 / 0.5
parts = {
    "PatchEmbedding as it is": plain,
    "the recipe, but 0.02": quiet,
    "the pocket recipe: 0.5": recipe,
    "after training": embedding,
}
loud = {}
for name, part in parts.items():
    what = part.conv(batch).flatten(2).transpose(1, 2)  # [40, 64, 128]
    loud[name] = loudness(what), loudness(part.position_embedding)
    print(f"{name:24} what: {loud[name][0]:5.2f}   where: {loud[name][1]:5.2f}")
assert all(loud[name][0] > 4 * loud[name][1] for name in ("PatchEmbedding as it is", "the recipe, but 0.02"))
assert loud["the pocket recipe: 0.5"][1] > 2 * loud["the pocket recipe: 0.5"][0]
assert loud["after training"][0] > 2 * loud["after training"][1]

# %% [markdown]
# The first line is the class above as it starts: positions with a standard deviation of 0.02. *Where* is hardly there,
# beside *what*. The third line is how the pocket model really started: its positions begin at 0.5, and *where* is the
# louder one. The second differs from it in the positions alone. (The last is where training ended. There *what* is the
# louder one again; what follows is about the start.)
#
# That is no detail. This project's own log ([LOG.md](../LOG.md), "The pocket recipe") records what was tried. With
# positions at 0.02, as in the second line, "where" questions stayed at chance for 700 steps, with every other setting
# that was tried. With positions at 0.5, the same recipe reached 96 % over all kinds after 600 steps. One seed each.
#
# The log knows one way round it: fold the picture into four image tokens, one for each quarter. Then the order of the
# tokens alone tells where a thing is, and quiet positions were enough for 97 % after 900 steps (loud ones, without the
# folding, reached 99 %). Otherwise a patch has to know where it is not much more quietly than what it shows.

# %% [markdown]
# ## What do positions look like?
#
# 64 places, a vector of 128 numbers for each. One cannot look at 128 dimensions, but one can ask how *alike* two of the
# vectors are: the cosine of the angle between them. 1 is the same direction, 0 a right angle, -1 the opposite. (We take
# their common mean off first.) Predict:

# %%
quiz("ch01.neighbours")

# %%
similarity_figure(trained, row=3, column=3, title="pocket model")

# %% [markdown]
# On the left: how alike the marked place is to each of the others. On the right: the same little map for all 64 places.
#
# There is *nothing to see*. Each place is like itself and like no other, neighbours included. We count:

# %%
rows, columns = torch.arange(64) // 8, torch.arange(64) % 8
distance = torch.maximum((rows[:, None] - rows).abs(), (columns[:, None] - columns).abs())  # [64, 64]


def by_distance(positions: Tensor) -> list[float]:
    """Mean similarity of places that are 1, 2, … 7 patches apart."""
    alike = similarity(positions)
    return [round(float(alike[distance == d].mean()), 2) for d in range(1, 8)]


print("pocket model:  ", by_distance(trained[0]))
print("random numbers:", by_distance(torch.randn(64, 128, generator=torch.Generator().manual_seed(0))))
assert max(map(abs, by_distance(trained[0]))) < 0.1

# %% [markdown]
# The pocket model's positions are like random numbers. They have learned no map of the picture. They are *names*: 64
# names that are easy to tell apart, and its layers have learned what each name means. For 64 places that do not change,
# this is enough to be right almost always, as you measured.
#
# In large vision transformers it is different. Neighbours become alike there, rows and columns show in the maps: see
# Figure 7 of [Dosovitskiy et al. 2020](https://arxiv.org/abs/2010.11929). Nobody told those models that patch 15 lies
# below patch 1. How do they find out?

# %% [markdown]
# ### A map that draws itself
#
# Here is the smallest model that has a reason to. It gets pictures with holes, and must fill the holes. Its *only*
# weights are position embeddings. To fill a hole, it looks at the patches that it can see, and looks most at those whose
# position is most like the hole's. That is attention, reduced to places.
#
# The pictures are soft clouds of colour, 8 x 8 patches of one colour each. What makes them like photos is one thing only:
# neighbours have similar colours.


# %%
def clouds(count: int, grid: int = 8, seed: int | None = None) -> Tensor:
    """Soft random pictures, one colour for each patch. -> [count, grid * grid, 3]"""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 5, 5, generator=generator)
    scale, edge = grid * 3 // 2, grid // 4
    soft = F.interpolate(coarse, size=(scale, scale), mode="bicubic", align_corners=False)
    return soft[:, :, edge : edge + grid, edge : edge + grid].flatten(2).transpose(1, 2)


def fill(positions: Tensor, colours: Tensor, hidden: Tensor) -> Tensor:
    """Guess every patch from those that can be seen. positions [N, dim], colours [B, N, 3], hidden [B, N]"""
    scores = positions @ positions.T  # [N, N]: how alike two places are
    scores = scores.expand(len(colours), -1, -1).masked_fill(hidden[:, None], float("-inf"))  # holes show nothing
    return scores.softmax(dim=-1) @ colours


def error(positions: Tensor, colours: Tensor, hidden: Tensor) -> Tensor:
    """Mean squared error in the holes."""
    return (fill(positions, colours, hidden) - colours)[hidden].pow(2).mean()


# %%
torch.manual_seed(0)
untrained = torch.randn(64, 32) * 0.02
learned = untrained.clone().requires_grad_()
optimizer = torch.optim.Adam([learned], lr=0.03)
for _ in range(budget().pick(ci=150, laptop=300)):
    colours, hidden = clouds(32), torch.rand(32, 64) < 0.5
    loss = error(learned, colours, hidden)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
learned = learned.detach()

test, hidden = clouds(200, seed=1), torch.rand(200, 64, generator=torch.Generator().manual_seed(1)) < 0.5
print(f"error before: {error(untrained, test, hidden):.2f}, after: {error(learned, test, hidden):.2f}")
print("similarity by distance:", by_distance(learned))
assert error(learned, test, hidden) < error(untrained, test, hidden) / 2
assert by_distance(learned)[0] > 0.5

# %% [markdown]
# Before training, all places look alike to the model, so its guess is the mean colour of what it sees. After training it
# does far better. And look at its map. Move the levers over the patches, and compare.

# %%
maps = {"filled holes": learned, "pocket model": trained[0], "before training": untrained}


def alike(positions, row, column):
    return similarity_figure(maps[positions], row, column, title=positions)


lever(alike, positions=list(maps), row=(0, 7), column=(0, 7), start={"row": 3, "column": 3})

# %% [markdown]
# The grid is there, and nobody put it in. To the model, the 64 places came as a list without order. It found out which
# of them are neighbours because neighbours *look alike*, and it was paid for knowing.
#
# That is the whole secret of those maps: they mirror what is worth knowing about places in the pictures that a model
# saw. (Far corners may come out alike too. Whatever helps to fill holes, or does no harm, is allowed.)

# %% [markdown]
# ## Another size, another grid
#
# The encoder of the 222M nanoVLM reads pictures of 224 pixels: a grid of 14 x 14, with 196 positions. That of
# SmolVLM-256M reads 512 pixels: 32 x 32, that is 1,024 ([Marafioti et al. 2025](https://arxiv.org/abs/2504.05299)).
# Suppose you have the first and want the second. The convolution does not care, it cuts what comes. But 196 vectors are
# not enough for 1,024 places. Where do you get the others?
#
# The positions you have are a grid of vectors. Read that as a *picture* with dim channels, and resize it as one resizes
# pictures. The vision transformer's authors did so ([Dosovitskiy et al. 2020](https://arxiv.org/abs/2010.11929),
# section 3.2).
#
# To write it yourself first: [exercise 1.6](../exercises/01_patch_embedding.ipynb).


# %% tags=["package:nanovlm.models.vision_transformer.resize_positions"]
def resize_positions(positions: Tensor, grid_size: int) -> Tensor:
    """Stretch learned positions to another grid: [1, old * old, dim] -> [1, grid_size * grid_size, dim]."""
    _, num_patches, dim = positions.shape
    old = round(num_patches**0.5)
    if old == grid_size:
        return positions
    grid = positions.reshape(1, old, old, dim).permute(0, 3, 1, 2)  # [1, dim, old, old]
    grid = F.interpolate(grid, size=(grid_size, grid_size), mode="bicubic", align_corners=False)
    return grid.flatten(2).transpose(1, 2)  # [1, grid_size * grid_size, dim]


# %% tags=["nbval-check-output"]
expect_shape(resize_positions(siglip.position_embedding, 32), "1 1024 768")

# %% [markdown]
# Does it work? Ask the model that filled holes. It was trained on 8 x 8 patches. We give it the same kind of pictures in
# 16 x 16, and make its 64 positions into 256 in several ways:

# %%
finer, holes = clouds(200, grid=16, seed=2), torch.rand(200, 256, generator=torch.Generator().manual_seed(2)) < 0.5
ways = {
    "resized as a grid": resize_positions(learned[None], 16)[0],
    "stretched as a line": F.interpolate(learned.T[None], size=256, mode="linear").transpose(1, 2)[0],
    "each used four times": learned.repeat(4, 1),
    "reshape for permute": F.interpolate(learned.reshape(1, 32, 8, 8), size=(16, 16), mode="bicubic").flatten(2)[0].T,
    "all places alike": torch.zeros(256, 32),
}
errors = {name: float(error(positions, finer, holes)) for name, positions in ways.items()}
for name, value in errors.items():
    print(f"{name:22} {value:5.2f}")
assert errors["resized as a grid"] < min(value for name, value in errors.items() if name != "resized as a grid") / 2

# %% [markdown]
# Resized as a grid, the positions work on a grid that they have never seen. All the other ways give the right shape and
# a much larger error. (Compare within this table only. In finer pictures neighbours are more alike, so holes are easier
# to fill than before.)
#
# ### What breaks: names cannot be stretched
#
# Why does it work? A new place lies between old ones, and gets a blend of their vectors. That is a good guess *if
# neighbours are alike*. Now remember the pocket model. Its neighbours have nothing in common. A blend of two names is
# no name. So what will become of it at 96 pixels, a grid of 12 x 12? The function runs, the weights load, the model
# answers:

# %%
wider = VisionLanguageModel(replace(model.config, vision=replace(model.config.vision, image_size=96)))
weights = dict(model.state_dict())
weights["vision_encoder.patch_embedding.position_embedding"] = resize_positions(trained, 12)
wider.load_state_dict(weights)
wider.tokenizer, wider.image_processor = model.tokenizer, ImageProcessor(96)

at_96 = accuracies(wider.eval(), num_images // 2)  # more patches take longer
assert mean(chance("shapes")) + 0.05 < mean(at_96) < 0.65
assert (model.config.num_image_tokens, wider.config.num_image_tokens) == (16, 36)

score_table({"64 pixels": by_place["as trained"], "96 pixels, resized": at_96}, chance("shapes"))

# %% [markdown]
# About half of the answers are right now, where nearly all were. To be fair, positions are not the only thing that
# has changed. Shapes now cover more patches than any in training, and the decoder gets 36 image tokens where it was used
# to 16. This table cannot say which of them weighs most.
#
# But it says what to take from this: **resizing is where training goes on from, not a replacement for it.** Whoever
# takes an encoder to a larger size resizes its positions and then trains on, as the vision transformer's authors did.

# %% [markdown]
# ## Is this SigLIP's?
#
# The next cell asks transformers' own code: same weights, same answer, also at another size. (It needs transformers,
# which the course itself does not: `pip install transformers`. Skip the cell if you have none; nothing below needs it.)

# %%
from transformers import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipVisionEmbeddings

theirs = SiglipVisionEmbeddings(SiglipVisionConfig(hidden_size=32, image_size=64, patch_size=8)).eval()
ours = PatchEmbedding(ViTConfig(hidden_dim=32, num_heads=4, image_size=64, patch_size=8))
ours.load_state_dict(
    {
        "conv.weight": theirs.patch_embedding.weight,
        "conv.bias": theirs.patch_embedding.bias,
        "position_embedding": theirs.position_embedding.weight[None],
    }
)
torch.testing.assert_close(ours(x), theirs(x))

at_96_pixels = torch.randn(1, 3, 96, 96)
resized = ours.conv(at_96_pixels).flatten(2).transpose(1, 2) + resize_positions(ours.position_embedding, 12)
torch.testing.assert_close(resized, theirs(at_96_pixels, interpolate_pos_encoding=True))

# %% [markdown]
# ## Where this lives in the package
#
# `PatchEmbedding` and `resize_positions` are the package's own, in `nanovlm/models/vision_transformer.py`. The builder of
# this notebook compares them with that file and fails if they differ. Normalising is in `nanovlm/data/processors.py`.
# `resize_positions` is called when a SigLIP encoder is loaded for another picture size (`nanovlm/weights/backbones.py`).
#
# In the 222M model it is the first step:

# %% tags=["nbval-check-output"]
from nanovlm.trace import trace

with torch.device("meta"):  # shapes without numbers
    nanovlm_222m = VisionLanguageModel(VLMConfig())
steps = trace(nanovlm_222m, torch.zeros(1, 79, dtype=torch.long), torch.zeros(1, 3, 224, 224), device="meta")
steps.expect({"vision_encoder.patch_embedding": "1 196 768", "vision_encoder": "1 196 768"})

held = sum(p.numel() for p in nanovlm_222m.vision_encoder.patch_embedding.parameters())
print(f"{held:,} weights, {held / sum(p.numel() for p in nanovlm_222m.parameters()):.1%} of the model")

# %% [markdown]
# What you take along:
#
# - A model belongs to the range of its pixels. The wrong one raises nothing and costs much.
# - `permute` moves axes, `reshape` cuts the same line of numbers anew. The shape does not prove the contents.
# - A convolution with stride = kernel is one linear layer for all patches.
# - A transformer does not know where a patch was unless you tell it, loudly enough.
# - Positions can be stretched as far as neighbours are alike.
#
# What the patches do not do yet is look at each other. That is chapter 02.
#
# Now close this page and write it yourself. The answers to some of the exercises stand above, and they are worth more if
# they come out of your own head.

# %% [markdown] tags=["stamped"]
# ## Your turn
#
# [Open the exercises](../exercises/01_patch_embedding.ipynb) ([in Colab][exercises]): 6 of them, about 54 minutes.
#
# [exercises]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/exercises/01_patch_embedding.ipynb
#
# | | exercise | difficulty | minutes |
# |---|---|---|---|
# | 1.1 | From bytes to the model's range (`patches.normalize`) | ●○○ | 4 |
# | 1.2 | Cut a picture into patches (`patches.patchify`) | ●●○ | 12 |
# | 1.3 | Put the picture back together (`patches.unpatchify`) | ●●○ | 8 |
# | 1.4 | A convolution that is a linear layer (`patches.conv_equals_linear`) | ●●○ | 8 |
# | 1.5 | The whole patch embedding (`patches.add_positions`) | ●●○ | 12 |
# | 1.6 | Positions for another grid (`patches.resize_positions`) | ●●○ | 10 |
#
# Next: [02 The vision transformer](02_vision_transformer.ipynb)
