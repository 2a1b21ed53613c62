# %% [markdown]
# # 01 From pixels to patches
#
# You build the first part of your own model, which turns a picture into a sequence of vectors with positions.
# Afterwards you can (1) cut a picture into patches and undo it, (2) say why the same operation is written as a
# convolution in code and as a linear layer in papers, and (3) predict what a model loses when its pixel range or its
# positions are wrong. You need chapter 00. About fifty minutes of reading; the code runs in half a minute.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [← 00 Start here](00_start_here.ipynb) ·
# [02 The vision transformer →](02_vision_transformer.ipynb) ·
# [exercises](../exercises/01_patch_embedding.ipynb) ·
# [notation and terms](notation.md)
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
from nanovlm.course.holes import clouds
from nanovlm.viz.patches import numbers_figure, patch_grid_figure, similarity, similarity_figure
from nanovlm.viz.pixel_shuffle import images_row

# %% [markdown]
# ## The question: how can a transformer read a picture?
#
# A transformer reads a *sequence* of vectors. A text becomes such a sequence in a natural way, because its tokens
# already have an order and each of them is looked up in a table of vectors.

# %% [markdown]
# A picture has no words and no first or last element, and it contains far more numbers than a sentence contains
# letters. In this chapter you make a sequence of vectors out of it. Everything that the model can know about a
# picture has to pass through this sequence, so its construction matters.

# %% [markdown]
# ## A picture is an array of numbers
#
# Here is the picture of chapter 00, scaled down to the size that the pocket model receives. The figure marks a small
# window in the picture and shows, beside it, the numbers that the window consists of.

# %%
image = Image.open(asset_path("images/shapes.png")).convert("RGB")
small = image.resize((64, 64), Image.Resampling.BICUBIC)

numbers_figure(small, row=14, column=22)

# %% [markdown]
# Each pixel has three numbers, which say how much red, green and blue it contains, as bytes from 0 to 255. At the
# edge of the star the numbers jump.
#
# The picture contains nothing else: the model does not receive a star or an edge, but 3 × 64 × 64 numbers.

# %% tags=["nbval-check-output"]
colour_last = torch.from_numpy(np.array(small))  # [row, column, channel], as PIL and NumPy have it
pixels = colour_last.permute(2, 0, 1)  # [channel, row, column], as PyTorch's layers want it
print(pixels.dtype, expect_shape(pixels, "3 64 64"))
print("the pixel in row 14, column 22:", pixels[:, 14, 22].tolist())

# %% [markdown]
# The `permute` in this cell is needed because PIL stores a picture pixel by pixel, each with its red, green and blue,
# while PyTorch wants all red values first, then all green and then all blue ones. Instead of `permute`, you could
# write `reshape(3, 64, 64)`, which returns the same shape. The next cell shows what it makes of the picture.


# %%
def to_image(x):
    """[3, H, W], bytes -> a picture"""
    return Image.fromarray(x.permute(1, 2, 0).contiguous().numpy())


images_row(
    [to_image(pixels), to_image(colour_last.reshape(3, 64, 64))],
    ["permute(2, 0, 1)", "reshape(3, 64, 64)"],
)

# %% [markdown]
# The second picture has the right shape, the right dtype and every number of the original, but the numbers are in the
# wrong places. **`permute` reorders the axes, while `reshape` keeps the numbers in their order in memory and only
# cuts this order into new rows.** You will meet this pair in every chapter, because a shape alone does not prove the
# contents.

# %% [markdown]
# ## The weights belong to one range of pixel values
#
# Bytes run from 0 to 255. SigLIP, whose encoder we build, was trained on numbers from -1 to 1: its [image
# processor](https://github.com/huggingface/transformers/blob/15ea02a2add1672acbeee158a9448720d6093de1/src/transformers/models/siglip/image_processing_siglip.py)
# divides by 255, subtracts the mean 0.5 and divides by the standard deviation 0.5. This step is called
# **normalising**.

# %% [markdown]
# At the start of training it helps because random weights are scaled for inputs around zero with a size of about one.
# After training there is a stronger reason: the weights have adapted to the range that they were trained on.

# %% [markdown] tags=["stamped"]
# **The next cell is folded, because it answers this exercise:** [exercise 1.1, From bytes to the model's
# range](../exercises/01_patch_embedding.ipynb). Write yours first, or unfold it.


# %% tags=["answer:patches.normalize"]
def normalize(pixels: Tensor) -> Tensor:
    """Bytes 0..255 -> float32 from -1 to 1, of the same shape."""
    return pixels / 127.5 - 1


# %%
normalize = use("patches.normalize", normalize)
normalize(torch.tensor([0, 51, 204, 255], dtype=torch.uint8))

# %% [markdown]
# Now break it. Before you run the experiment, predict what happens if somebody forgets this step:

# %%
quiz("ch01.range")

# %% [markdown]
# We measure it with the pocket model. We ask it about test pictures of the Thimble: which colour, which shape, how
# many, whether there is one, where it is, and of which there are more. The first cell measures the accuracy for each
# kind of question; the second does the same while another function makes the model's input out of the bytes.

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
    return {
        kind: score.accuracy for kind, score in evaluate(model, samples, blind=False).scores.items()
    }


# %%
def with_pixels(scale) -> dict[str, float]:
    """The same, but `scale` makes the model's numbers out of bytes."""
    processor, model.image_processor = model.image_processor, ImageProcessor(64)
    model.image_processor.to_tensor = lambda opened: scale(processor.to_raw(opened).float())
    scores = accuracies(model)
    model.image_processor = processor
    return scores


# %% [markdown]
# The experiment uses four ranges: the one of the training, two that forget a part of the normalisation, and the means
# and standard deviations of ImageNet, which many other vision models use. It takes some seconds.

# %%
imagenet_mean = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
imagenet_std = torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)
by_range = {
    "-1 to 1, as trained": with_pixels(normalize),
    "0 to 1": with_pixels(lambda pixels: pixels / 255),
    "0 to 255": with_pixels(lambda pixels: pixels),
    "ImageNet's mean and std": with_pixels(
        lambda pixels: (pixels / 255 - imagenet_mean) / imagenet_std
    ),
}
score_table(by_range, chance("shapes"))

# %% [markdown]
# The row *by guessing* gives the accuracy of somebody who reads the question and cannot see the picture. Which kinds
# of question lost most, and which least?


# %%
def mean(scores: dict[str, float]) -> float:
    return sum(scores.values()) / len(scores)


def by_loss(before: dict[str, float], after: dict[str, float]) -> list[str]:
    """The kinds of question, from the one that lost least to the one that lost most."""
    return sorted(before, key=lambda kind: before[kind] - after[kind])


as_trained, zero_to_one, raw_bytes, imagenet = by_range.values()
for name, scores in (("0 to 1", zero_to_one), ("ImageNet's", imagenet)):
    for kind in (by_loss(as_trained, scores)[0], by_loss(as_trained, scores)[-1]):
        print(f"{name:11} {kind:8} {as_trained[kind]:4.0%} before, {scores[kind]:4.0%} now")

# %% tags=["claim"]
assert mean(raw_bytes) < mean(chance("shapes")) + 0.1  # guessing
for scores in (zero_to_one, imagenet):
    assert mean(raw_bytes) + 0.2 < mean(scores) < mean(as_trained) - 0.04
    kept, hit = by_loss(as_trained, scores)[0], by_loss(as_trained, scores)[-1]
    assert scores[kept] > as_trained[kept] - 0.1 and scores[hit] < as_trained[hit] - 0.1

# %% [markdown]
# With raw bytes the model only guesses. The two other wrong ranges are more dangerous, because most answers are still
# right and the loss is uneven: one kind of question is answered as well as before, while another loses many points.
# Nothing raises an error, and a demonstration that happens to ask the first kind looks fine. ImageNet's numbers are
# also centred around zero, but they are wider, and that is enough to cost accuracy.

# %% [markdown]
# This also happens in well-known code. [nanoVLM's
# processor](https://github.com/huggingface/nanoVLM/blob/fc71839aa2c3483ba3f16aa03d7c901534c868c1/data/processors.py)
# resizes the picture and converts it to numbers from 0 to 1, but it does not normalise, although its encoder comes
# from SigLIP. The encoder then has to adapt during nanoVLM's own training.
#
# So nanoVLM's published weights expect 0 to 1, and SigLIP's expect -1 to 1. No range is right in itself; what counts
# is the range that *these* weights have seen, which is why the range is stored with the model:

# %% tags=["nbval-check-output"]
print(model.image_processor)
torch.testing.assert_close(normalize(pixels), model.image_processor(small)[0])

# %% [markdown]
# In the package's configuration, the word for the range from -1 to 1 is "signed". Exercise 1.2 gives you a function
# from picture to tensor that has four faults, the range among them.

# %% [markdown]
# ## A token for each pixel would be too expensive
#
# The numbers are in the right range now. The simplest way to make a sequence of them is one token for each pixel. In
# attention, which you build in chapter 02, each token is compared with each other one, so the cost grows with the
# number of pairs. Predict how large the difference is:

# %%
quiz("ch01.pairs")

# %% tags=["nbval-check-output"]
for patch_size in (1, 16):
    tokens = (224 // patch_size) ** 2
    print(f"patches of {patch_size:2} x {patch_size:2}: {tokens:6,} tokens, {tokens**2:13,} pairs")

# %% [markdown]
# With a token for each pixel, every layer would compare two and a half billion pairs for one small picture. A token
# therefore has to cover more than a pixel. The vision transformer uses squares, which are called **patches**: "An
# image is worth 16x16 words" ([Dosovitskiy et al. 2020](https://arxiv.org/abs/2010.11929)). SigLIP-B/16 does the same
# with pictures of 224 pixels.
#
# Move the lever and watch the three numbers. Without a kernel you see patches of 16 pixels.

# %%
large = image.resize((224, 224), Image.Resampling.BICUBIC)


def cut_into(patch_size):
    return patch_grid_figure(large, patch_size)


lever(cut_into, patch_size=[4, 8, 16, 32, 56, 112], start={"patch_size": 16})

# %% [markdown]
# The lever shows a trade-off. Small patches give many tokens, and the number of pairs grows with the fourth power of
# the grid's side. Large patches give few tokens, but then one linear layer has to summarise everything inside a
# patch, because patches can attend to each other while the pixels inside a patch cannot.
#
# The size 16 has a simple consequence in SigLIP-B/16: a patch consists of 16 × 16 × 3 = 768 numbers, and 768 is also
# the width of the encoder's vectors.

# %% [markdown]
# ## Two reshapes and a permute cut the picture into patches
#
# A single patch is a slice of the picture. The pocket model uses patches of 8 pixels, so patch 1, the second patch of
# the top row, is the slice in the next cell. Flattened, it becomes a vector:

# %% tags=["nbval-check-output"]
x = normalize(pixels)[None]  # [1, 3, 64, 64]: a batch of one
patch_1 = x[0, :, 0:8, 8:16]
print(expect_shape(patch_1, "3 8 8"), " -> ", expect_shape(patch_1.flatten(), "192"))

# %% [markdown]
# Next we cut all patches at once and without a loop. To see what happens, we first do it with sixteen numbers and
# patches of 2 × 2:

# %% tags=["nbval-check-output"]
numbers = torch.arange(16).reshape(4, 4)
numbers

# %% [markdown]
# A row index from 0 to 3 contains two pieces of information: the *row of patches* (0 or 1) and the *row inside the
# patch* (0 or 1). The same holds for the columns. A `reshape` gives each of the four its own axis, and no number
# moves:

# %% tags=["nbval-check-output"]
unfolded = numbers.reshape(2, 2, 2, 2)
expect_shape(unfolded, "patch_row inner_row patch_column inner_column")

# %% [markdown]
# Then `permute` brings the two axes that count patches to the front and the two that count pixels to the end, and a
# second `reshape` merges them in pairs. In the result each row is a patch; compare row 1 with the square at the top
# right of the sixteen numbers.

# %% tags=["nbval-check-output"]
patches = unfolded.permute(0, 2, 1, 3).reshape(4, 4)
assert patches[1].equal(numbers[0:2, 2:4].flatten())
patches

# %% [markdown]
# A real picture also has an axis for the channels and one for the batch, but the idea is the same.

# %% [markdown] tags=["stamped"]
# **The next cell is folded, because it answers this exercise:** [exercise 1.3, Cut a picture into
# patches](../exercises/01_patch_embedding.ipynb). Write yours first, or unfold it.


# %% tags=["answer:patches.patchify"]
def patchify(images: Tensor, patch_size: int) -> Tensor:
    """[B, channels, H, W] -> [B, H / p * W / p, channels * p * p], with p = patch_size"""
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    x = images.reshape(
        batch, channels, rows, patch_size, columns, patch_size
    )  # [B, channel, row, p, column, p]
    x = x.permute(0, 2, 4, 1, 3, 5)  # [B, row, column, channel, p, p]
    return x.reshape(batch, rows * columns, channels * patch_size**2)


# %%
patchify = use("patches.patchify", patchify)

# %% tags=["nbval-check-output"]
patches = patchify(x, 8)
assert patches[0, 1].equal(patch_1.flatten())
print(expect_shape(patches, "1 64 192"))
print("SigLIP-B/16:", expect_shape(patchify(torch.zeros(2, 3, 224, 224), 16), "batch 196 768"))

# %% [markdown]
# Does this step lose anything? It does not, and the proof is a function that undoes it. You write it in [exercise
# 1.5](../exercises/01_patch_embedding.ipynb), and the next cell uses your version if it has passed.

# %%
unpatchify = use("patches.unpatchify")

assert unpatchify(patchify(x, 8), 8).equal(x)

# %% [markdown]
# ### What breaks: a single reshape has the right shape and the wrong contents
#
# You could go from `[1, 3, 64, 64]` to `[1, 64, 192]` with a single `reshape`, which returns the right shape. To see
# what it puts into a patch, we put its patches back into a picture:

# %%
wrong = x.reshape(1, 64, 192)
assert wrong.shape == patchify(x, 8).shape


def to_bytes(x):
    return ((x + 1) * 127.5).round().to(torch.uint8)


seen = [to_image(to_bytes(unpatchify(p, 8)[0])) for p in (patchify(x, 8), wrong)]
images_row(seen, ["patchify, put back", "reshape, put back"])

# %% [markdown]
# The result is the same as with the colours above: all numbers are present, in a shape that fits, but in meaningless
# places. A "patch" of the second kind consists of three rows of a single colour channel. In exercise 1.4 you write the
# test that tells such versions from the right one.

# %% [markdown]
# ## One linear layer embeds all patches, and a convolution is the same layer
#
# A patch consists of 192 raw numbers, while the pocket model's encoder works with vectors of 128. A linear layer
# converts one into the other, and **every patch passes through the same weights**. The reason is that a corner of a
# star looks the same wherever it is, so what the layer learns about it in one place should hold in all places.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
linear = nn.Linear(192, 128)
expect_shape(linear(patchify(x, 8)), "1 64 128")

# %% [markdown]
# Papers draw this step as a linear layer. In code, such as transformers' SigLIP or nanoVLM, you find a convolution
# instead: `nn.Conv2d(3, 128, kernel_size=8, stride=8)`.
#
# A convolution places a small window on the picture, multiplies the pixels in it by its weights, adds the products
# up, and moves the window on. Here the window is as large as a patch and moves by a whole patch, which is called the
# *stride*. So it processes every patch exactly once, and for each it computes the same sum as the linear layer.

# %% [markdown]
# If this is true, the weights can be copied from one to the other. A convolution's weight has the shape `[dim, 3, 8,
# 8]`: a small colour picture for each output number. The linear layer's weight has the shape `[dim, 192]`. Here is
# the trained convolution of the pocket model:

# %% tags=["nbval-check-output"]
conv = model.vision_encoder.patch_embedding.conv
print(conv)
print("conv:  ", expect_shape(conv.weight, "dim 3 8 8"))
print("linear:", expect_shape(linear.weight, "dim 192"))

# %% [markdown] tags=["stamped"]
# **The next cell is folded, because it answers this exercise:** [exercise 1.6, A convolution that is a linear
# layer](../exercises/01_patch_embedding.ipynb). Write yours first, or unfold it.


# %% tags=["answer:patches.conv_equals_linear"]
def linear_from_conv(conv: nn.Conv2d) -> nn.Linear:
    """Conv2d(3, dim, p, stride=p) -> Linear(3 * p * p, dim) with the same weights."""
    dim, channels, p, _ = conv.weight.shape
    linear = nn.Linear(channels * p * p, dim, bias=conv.bias is not None)
    with torch.no_grad():
        linear.weight.copy_(conv.weight.reshape(dim, channels * p * p))
        if conv.bias is not None:
            linear.bias.copy_(conv.bias)
    return linear


# %%
linear_from_conv = use("patches.conv_equals_linear", linear_from_conv)

# %% tags=["nbval-check-output"]
by_linear = linear_from_conv(conv)(patchify(x, 8))  # [1, 64, 128]
by_conv = conv(x)  # [1, 128, 8, 8]: dim comes second, and the patches are a grid
print(expect_shape(by_linear, "1 64 128"), "and", expect_shape(by_conv, "1 128 8 8"))

torch.testing.assert_close(by_linear, by_conv.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-4)

# %% [markdown]
# Both give the same numbers, up to rounding. After the convolution two steps remain: `flatten(2)` merges its grid
# into a sequence, and `transpose(1, 2)` brings the width to the end. A `reshape(1, 64, 128)` instead of them would be
# the old mistake again.

# %% [markdown]
# The copy only works because `patchify` arranges a patch in the order of the weight: channel, row, column. With the
# colours last, all shapes would fit as well, and the results would be meaningless. From here on we use the
# convolution, because it does the cutting and the projection in one call and makes no copy of the picture.

# %% [markdown]
# ## Does an encoder know the order of the patches?
#
# The picture is a sequence of vectors now, but one thing got lost on the way, and it is easy to overlook.
#
# Attention makes each vector a weighted mean of all vectors, where the weights express how well two vectors match.
# You build it in chapter 02, and here we use PyTorch's function. It expects the vectors three times, in three roles,
# and for this experiment all three are the same. Predict:

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
# Attention is **permutation-equivariant**: if you permute its inputs, its outputs are permuted in the same way and
# are otherwise unchanged. All other parts of an encoder work on each vector by itself, so the whole encoder has this
# property. To see what it means for a picture, we put the patches of ours into a random order:

# %%
deal = torch.randperm(64, generator=torch.Generator().manual_seed(0))
dealt = unpatchify(patchify(x, 8)[:, deal], 8)

images_row(
    [small, to_image(to_bytes(dealt[0]))], ["the picture", "the same patches in another order"]
)

# %% [markdown]
# For you these are two different pictures. For an encoder that only receives the contents of the patches they are the
# same set of patches. We test this with the pocket model's encoder, after replacing its position embeddings by zeros:

# %% tags=["nbval-check-output"]
without = copy.deepcopy(model.vision_encoder)
with torch.no_grad():
    without.patch_embedding.position_embedding.zero_()
    torch.testing.assert_close(without(dealt), without(x)[:, deal], rtol=1e-3, atol=1e-3)
    moved = (model.vision_encoder(dealt) - model.vision_encoder(x)[:, deal]).abs().max()

print("without positions: each patch has the same output, wherever it was")
print("with positions: does the output change?", bool(moved > 1))

# %% [markdown]
# ## A learned vector for each place tells it
#
# The remedy is to give each place of the grid a vector of its own and to add it to whatever patch is there. These
# **position embeddings** are weights like all others: they start as random numbers and are learned.

# %% [markdown]
# Adding keeps the vectors as wide as they were, whereas appending would make them wider. It works because a space of
# 128 or 768 dimensions has enough room for *what* and *where* in the same vector, and the next layer can learn to
# separate them. With this, the part is complete: it cuts, projects and adds.

# %% [markdown] tags=["stamped"]
# **The next cell is folded, because it answers this exercise:** [exercise 1.7, The whole patch
# embedding](../exercises/01_patch_embedding.ipynb). Write yours first, or unfold it.


# %% tags=["package:nanovlm.models.vision_transformer.PatchEmbedding", "answer:patches.add_positions"]
class PatchEmbedding(nn.Module):
    """Cut the picture into patches, project each one, add its position. [B, 3, H, W] -> [B, num_patches, dim]"""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        # A convolution whose stride is its kernel size is one linear layer applied to every patch.
        self.conv = nn.Conv2d(3, config.hidden_dim, config.patch_size, stride=config.patch_size)
        self.position_embedding = nn.Parameter(
            torch.randn(1, config.num_patches, config.hidden_dim) * 0.02
        )

    def forward(self, images: Tensor) -> Tensor:
        size = self.config.image_size
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise ValueError(
                f"The ViT expects pictures of shape [B, 3, {size}, {size}]; got {list(images.shape)}."
            )
        x = self.conv(images)  # [B, dim, grid, grid]
        x = x.flatten(2).transpose(1, 2)  # [B, num_patches, dim]
        return x + self.position_embedding


# %% [markdown]
# The next cell loads the pocket model's weights into this class and compares the outputs. Then it builds the same
# class in the size of SigLIP-B/16 and lists its weights.

# %%
PatchEmbedding = use("patches.add_positions", PatchEmbedding)

# %% tags=["nbval-check-output"]
embedding = PatchEmbedding(model.config.vision)
embedding.load_state_dict(model.vision_encoder.patch_embedding.state_dict())
torch.testing.assert_close(embedding(x), model.vision_encoder.patch_embedding(x))
print("pocket model:", expect_shape(embedding(x), "1 64 128"))

siglip = PatchEmbedding(ViTConfig())  # the defaults are SigLIP-B/16's sizes
print("SigLIP-B/16: ", expect_shape(siglip(torch.zeros(1, 3, 224, 224)), "1 196 768"))
for name, weight in siglip.named_parameters():
    print(f"{name:20} {list(weight.shape)!s:18} {weight.numel():7,}")

# %% [markdown]
# ### What breaks: the model without its positions
#
# The pocket model learned with positions. We take them away and ask it everything once more. Which kind of question
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


# %%
by_place = {
    "as trained": by_range["-1 to 1, as trained"],
    "no positions (zeros)": with_positions(torch.zeros_like(trained)),
    "shuffled positions": with_positions(trained[:, deal]),
}
score_table(by_place, chance("shapes"))

# %% tags=["claim"]
for condition in ("no positions (zeros)", "shuffled positions"):
    assert by_loss(by_place["as trained"], by_place[condition])[-1] == "where"
    assert by_place[condition]["where"] < chance("shapes")["where"] + 0.2  # not far from guessing
    assert by_place[condition]["exists"] > 0.85
assert mean(by_place["shuffled positions"]) < mean(by_place["no positions (zeros)"]) + 0.02

# %% [markdown]
# Read the table by columns:
#
# - **where** loses most and falls to about what guessing among four answers gives.
# - **exists** loses little, because "Is there a star?" needs no places.
# - The other kinds are in between: to say which colour the star has, its patches have to find each other by their
#   places.
# - Shuffled positions are no better than none: the model relies on them although they are wrong.

# %% [markdown]
# The decoder receives the image tokens in order, and it knows that order by its own means, which you meet in chapter
# 04. It could have used the order to say where things are. The table shows that this model did not learn to: it
# relies on the positions that the encoder adds.

# %% [markdown]
# ### A position needs the right scale beside the patch
#
# Since a position is *added* to a patch, one can drown the other. What matters is not the size of the vectors but how
# much they *differ* from patch to patch, because what is the same everywhere carries no information. We measure this
# as the average distance of the vectors from their mean, which generalises the standard deviation to vectors, and
# divide that of the positions by that of the patches.

# %% [markdown] tags=["stamped"]
# **The next cell is folded, because it answers this exercise:** [exercise 1.8, Measure it: where beside
# what](../exercises/01_patch_embedding.ipynb). Write yours first, or unfold it.


# %% tags=["answer:patches.where_over_what"]
def where_over_what(what: Tensor, where: Tensor) -> float:
    """How much positions vary, relative to patches. what [B, N, dim], where [1, N, dim]"""

    def spread(vectors: Tensor) -> Tensor:
        """Average distance of the vectors from their mean. [B, N, dim]"""
        vectors = vectors.flatten(0, 1)
        return (vectors - vectors.mean(dim=0)).norm(dim=-1).mean()

    return (spread(where) / spread(what)).item()


# %% [markdown]
# We compare four embeddings: the class above as it starts, the start of the pocket model's own training with
# positions at a standard deviation of 0.02 and of 0.5, and the end of that training. (The first two rows differ
# because a new model sets all its weights once more, by the recipe, and the class alone keeps PyTorch's.)

# %%
where_over_what = use("patches.where_over_what", where_over_what)

images = [thimble_sample("shapes", "test", i, image_size=64)["images"][0] for i in range(40)]
batch = model.image_processor(images)  # [40, 3, 64, 64]

torch.manual_seed(0)
plain = PatchEmbedding(model.config.vision)
recipe = VisionLanguageModel(model.config).vision_encoder.patch_embedding
small_positions = copy.deepcopy(recipe)
small_positions.position_embedding.data *= 0.02 / 0.5
embeddings = {
    "the class as it starts": plain,
    "the recipe, but 0.02": small_positions,
    "the pocket recipe: 0.5": recipe,
    "after training": embedding,
}
ratios = {}
for name, part in embeddings.items():
    what = part.conv(batch).flatten(2).transpose(1, 2)  # [40, 64, 128]
    ratios[name] = where_over_what(what.detach(), part.position_embedding.detach())
    print(f"{name:23} {ratios[name]:5.2f}")

# %% tags=["claim"]
assert ratios["the class as it starts"] < 0.25 and ratios["the recipe, but 0.02"] < 0.25
assert ratios["the pocket recipe: 0.5"] > 2 and ratios["after training"] < 0.5

# %% [markdown]
# In the first two rows, positions start with a standard deviation of 0.02, and vary less than a quarter as much as the
# patches. The third row is how the pocket model really started: its positions begin at 0.5, and vary more than twice as
# much as the patches. In the last row, at the end of training, the patches vary more again.

# %% [markdown]
# This detail decided whether the model learned. The course's log ([LOG.md](../LOG.md), "The pocket recipe") records
# that with positions at 0.02, "where" questions stayed at chance for 700 steps, whatever else was tried, while with
# 0.5 the same recipe reached 96 % over all kinds after 600 steps. Each is a single seed.

# %% [markdown]
# The log also knows one way around it. If the decoder receives only four image tokens, one for each quarter of the
# picture (chapter 03), their order alone says where a thing is, and positions at 0.02 were enough for 97 % after 900
# steps. Otherwise a patch has to carry its place at about the same scale as its content.

# %% [markdown]
# ## What learned positions look like
#
# The pocket model has 64 places with a vector of 128 numbers for each. You cannot look at 128 dimensions, but you can
# ask how *similar* two of the vectors are, by the cosine of the angle between them: 1 means the same direction, 0 a
# right angle and -1 the opposite direction. We subtract the mean of all positions first. Predict:

# %%
quiz("ch01.neighbours")

# %%
similarity_figure(trained, row=3, column=3, title="pocket model")

# %% [markdown]
# The left side shows how similar the marked place is to each other place, and the right side shows the same small map
# for all 64 places. There is no pattern: each place is similar to itself and to no other, not even to its neighbours.
# The next cell confirms this with numbers and compares with random vectors.

# %%
rows, columns = torch.arange(64) // 8, torch.arange(64) % 8
distance = torch.maximum(
    (rows[:, None] - rows).abs(), (columns[:, None] - columns).abs()
)  # [64, 64]


def by_distance(positions: Tensor) -> list[float]:
    """Mean similarity of places that are 1, 2, … 7 patches apart."""
    alike = similarity(positions)
    return [round(float(alike[distance == d].mean()), 2) for d in range(1, 8)]


print("pocket model:  ", by_distance(trained[0]))
print(
    "random numbers:", by_distance(torch.randn(64, 128, generator=torch.Generator().manual_seed(0)))
)

# %% tags=["claim"]
assert max(map(abs, by_distance(trained[0]))) < 0.1

# %% [markdown]
# The pocket model's positions are like random vectors. They are not a map of the picture but *names*: 64 vectors that
# are easy to tell apart, and the layers have learned what each of them means. For 64 places that never change, names
# are enough.
#
# In large vision transformers, the position embeddings of neighbours are similar, and rows and columns become visible
# (see Figure 7 of [Dosovitskiy et al. 2020](https://arxiv.org/abs/2010.11929)). These models were not told that patch
# 15 is below patch 1, so how do they find out?

# %% [markdown]
# ### A map emerges where neighbours help to predict each other
#
# Here is the smallest model that has a reason to learn a map. It receives pictures with holes and has to fill the
# holes, and its *only* weights are position embeddings. To fill a hole, it attends to the patches that are visible,
# with large weights where the position is similar to that of the hole. That is attention reduced to places.

# %% [markdown]
# The pictures are soft clouds of colour, with one colour for each of 8 × 8 patches. They share one property with
# photos: neighbouring patches have similar colours.


# %%
def fill(positions: Tensor, colours: Tensor, hidden: Tensor) -> Tensor:
    """Guess every patch from the visible ones. positions [N, dim], colours [B, N, 3], hidden [B, N]"""
    scores = positions @ positions.T  # [N, N]: how similar two places are
    scores = scores.expand(len(colours), -1, -1).masked_fill(
        hidden[:, None], float("-inf")
    )  # holes are not visible
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

# %%
test, hidden = (
    clouds(200, seed=1),
    torch.rand(200, 64, generator=torch.Generator().manual_seed(1)) < 0.5,
)
print(
    f"error before: {error(untrained, test, hidden):.2f}, after: {error(learned, test, hidden):.2f}"
)
print("similarity by distance:", by_distance(learned))

# %% tags=["claim"]
assert error(learned, test, hidden) < error(untrained, test, hidden) / 2
assert by_distance(learned)[0] > 0.5

# %% [markdown]
# Before training, all places are alike to the model, so it predicts the mean colour of the visible patches. After
# training its error is less than half as large, and its positions form a map. Move the levers over the patches and
# compare the three sets of positions.

# %%
maps = {"filled holes": learned, "pocket model": trained[0], "before training": untrained}


def alike(positions, row, column):
    return similarity_figure(maps[positions], row, column, title=positions)


lever(alike, positions=list(maps), row=(0, 7), column=(0, 7), start={"row": 3, "column": 3})

# %% [markdown]
# The grid appears although nothing in the code contains it: to the model, the 64 places came as a list without order.
# It found out which places are neighbours because neighbours have similar colours, and because this knowledge lowers
# the loss.
#
# Position maps therefore reflect what is worth knowing about places in the pictures that a model was trained on.
# Distant corners may also come out as similar, since anything that helps to fill holes, or does no harm, is allowed.

# %% [markdown]
# ## A learned map can be resized to another grid
#
# The encoder of the 222M nanoVLM reads pictures of 224 pixels, with a grid of 14 × 14 and 196 positions. That of
# SmolVLM-256M reads 512 pixels, with a grid of 32 × 32 and 1,024 positions ([Marafioti et al.
# 2025](https://arxiv.org/abs/2504.05299)). If you have the first and want the second, the convolution needs no
# change, but 828 positions are missing.

# %% [markdown]
# The positions that you have are a grid of vectors. Read it as a *picture* with dim channels, and resize it as one
# resizes pictures; the authors of the vision transformer did so ([Dosovitskiy et al.
# 2020](https://arxiv.org/abs/2010.11929), section 3.2).

# %% [markdown] tags=["stamped"]
# **The next cell is folded, because it answers this exercise:** [exercise 1.9, Positions for another
# grid](../exercises/01_patch_embedding.ipynb). Write yours first, or unfold it.


# %% tags=["package:nanovlm.models.vision_transformer.resize_positions", "answer:patches.resize_positions"]
def resize_positions(positions: Tensor, grid_size: int) -> Tensor:
    """Stretch learned positions to another grid: [1, old * old, dim] -> [1, grid_size * grid_size, dim]."""
    _, num_patches, dim = positions.shape
    old = round(num_patches**0.5)
    if old == grid_size:
        return positions
    grid = positions.reshape(1, old, old, dim).permute(0, 3, 1, 2)  # [1, dim, old, old]
    grid = F.interpolate(grid, size=(grid_size, grid_size), mode="bicubic", align_corners=False)
    return grid.flatten(2).transpose(1, 2)  # [1, grid_size * grid_size, dim]


# %%
resize_positions = use("patches.resize_positions", resize_positions)

# %% tags=["nbval-check-output"]
expect_shape(resize_positions(siglip.position_embedding, 32), "1 1024 768")

# %% [markdown]
# To test it, we use the model that filled holes. It was trained on 8 × 8 patches; now it receives the same kind of
# pictures with 16 × 16 patches, and its 64 positions become 256 in several ways:

# %%
finer, holes = (
    clouds(200, grid=16, seed=2),
    torch.rand(200, 256, generator=torch.Generator().manual_seed(2)) < 0.5,
)
plane = learned.reshape(1, 32, 8, 8)  # the wrong reshape again
ways = {
    "resized as a grid": resize_positions(learned[None], 16)[0],
    "resized as a sequence": F.interpolate(learned.T[None], size=256, mode="linear").transpose(
        1, 2
    )[0],
    "each used four times": learned.repeat(4, 1),
    "reshape for permute": F.interpolate(plane, size=(16, 16), mode="bicubic").flatten(2)[0].T,
    "all places alike": torch.zeros(256, 32),
}
errors = {name: float(error(positions, finer, holes)) for name, positions in ways.items()}
for name, value in errors.items():
    print(f"{name:22} {value:5.2f}")

# %% tags=["claim"]
assert (
    errors["resized as a grid"]
    < min(value for name, value in errors.items() if name != "resized as a grid") / 2
)

# %% [markdown]
# Resized as a grid, the positions work for a grid that the model has never seen. All other ways return the right
# shape and at least twice the error. Compare the numbers of this table only with each other, because in finer
# pictures neighbours are more similar, so holes are easier to fill.

# %% [markdown]
# ### What breaks: positions that are names cannot be interpolated
#
# A new place lies between old ones and receives a blend of their vectors, which is a good guess *if the vectors of
# neighbours are similar*. In the pocket model they are not, and a blend of two names is not a name. So what happens
# to it at 96 pixels, with a grid of 12 × 12? The function runs, the weights load, and the model answers:

# %%
wider = VisionLanguageModel(
    replace(model.config, vision=replace(model.config.vision, image_size=96))
)
weights = dict(model.state_dict())
weights["vision_encoder.patch_embedding.position_embedding"] = resize_positions(trained, 12)
wider.load_state_dict(weights)
wider.tokenizer, wider.image_processor = model.tokenizer, ImageProcessor(96)

at_96 = accuracies(wider.eval(), num_images // 2)  # more patches take longer
score_table({"64 pixels": by_place["as trained"], "96 pixels, resized": at_96}, chance("shapes"))

# %% tags=["claim"]
assert mean(chance("shapes")) + 0.05 < mean(at_96) < 0.65
assert (model.config.num_image_tokens, wider.config.num_image_tokens) == (16, 36)

# %% [markdown]
# About half of the answers are right, where almost all were before. Two other things have changed as well: shapes now
# cover more patches than any shape in training, and the decoder receives 36 image tokens instead of 16. This table
# cannot say which of the three matters most.
#
# It does show how resizing is meant to be used: **it is a start for further training, not a replacement for it.** The
# authors of the vision transformer also continued training after they had changed the size.

# %% [markdown]
# ## The result equals SigLIP's
#
# The next cell compares with transformers' own code: the same weights give the same output, also at another size. It
# needs transformers, which the course itself does not (`pip install transformers`). If you do not have it, skip the
# cell, since nothing below depends on it.

# %%
from transformers import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipVisionEmbeddings

theirs = SiglipVisionEmbeddings(
    SiglipVisionConfig(hidden_size=32, image_size=64, patch_size=8)
).eval()
ours = PatchEmbedding(ViTConfig(hidden_dim=32, num_heads=4, image_size=64, patch_size=8))
names = {"conv.weight": theirs.patch_embedding.weight, "conv.bias": theirs.patch_embedding.bias}
ours.load_state_dict({**names, "position_embedding": theirs.position_embedding.weight[None]})
torch.testing.assert_close(ours(x), theirs(x))

at_96_pixels = torch.randn(1, 3, 96, 96)
resized = ours.conv(at_96_pixels).flatten(2).transpose(1, 2) + resize_positions(
    ours.position_embedding, 12
)
torch.testing.assert_close(resized, theirs(at_96_pixels, interpolate_pos_encoding=True))

# %% [markdown]
# ## Where this is in the package
#
# `PatchEmbedding` and `resize_positions` are defined in `nanovlm/models/vision_transformer.py`, and the builder of
# this notebook fails if the folded cells differ from that file. Normalising is in `nanovlm/data/processors.py`. When
# a SigLIP encoder is loaded for another picture size, `nanovlm/weights/backbones.py` calls `resize_positions`.
#
# In the model with 222 million parameters, the patch embedding is the first step:

# %% tags=["nbval-check-output"]
from nanovlm.trace import trace

with torch.device("meta"):  # shapes without numbers
    nanovlm_222m = VisionLanguageModel(VLMConfig())
question = torch.zeros(1, 79, dtype=torch.long)  # 79 tokens of text, whichever they are
steps = trace(nanovlm_222m, question, torch.zeros(1, 3, 224, 224), device="meta")
steps.expect({"vision_encoder.patch_embedding": "1 196 768", "vision_encoder": "1 196 768"})

held = sum(p.numel() for p in nanovlm_222m.vision_encoder.patch_embedding.parameters())
print(
    f"{held:,} weights, {held / sum(p.numel() for p in nanovlm_222m.parameters()):.1%} of the model"
)

# %% [markdown]
# ## What you take along
#
# - A model belongs to the range of pixel values that it was trained on. A wrong range raises no error.
# - `permute` reorders axes, while `reshape` cuts the same order of numbers into new rows.
# - A convolution whose stride equals its kernel size is one linear layer for every patch.
# - An encoder is permutation-equivariant unless you add positions, at a scale that the next layers can use.
# - Positions can be interpolated if, and only if, neighbours have similar vectors.

# %% [markdown]
# Two links lead further: the paper on the vision transformer ([Dosovitskiy et al.
# 2020](https://arxiv.org/abs/2010.11929)), and one that replaces the single convolution by several small ones and
# measures what this gains ([Xiao et al. 2021](https://arxiv.org/abs/2106.14881)). The exercises end with a challenge:
# fill the holes with less error than the map of this chapter, within the same budget.

# %% [markdown]
# So far the patches do not exchange information, which is the subject of chapter 02. Before you go on, write the
# folded answers yourself in the exercises, because you will remember what you have written.

# %% [markdown] tags=["stamped"]
# ## Your turn
#
# [Open the exercises](../exercises/01_patch_embedding.ipynb) ([in Colab][exercises]): 9 of them, about 84 minutes.
#
# [exercises]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/exercises/01_patch_embedding.ipynb
#
# | | exercise | difficulty | minutes |
# |---|---|---|---|
# | 1.1 | From bytes to the model's range (`patches.normalize`) | ●○○ | 4 |
# | 1.2 | Mend it: a picture on its way into the model (`patches.prepare`) | ●●○ | 10 |
# | 1.3 | Cut a picture into patches (`patches.patchify`) | ●●○ | 12 |
# | 1.4 | Write the test: which patchify is right? (`patches.test_patchify`) | ●●○ | 12 |
# | 1.5 | Put the picture back together (`patches.unpatchify`) | ●●○ | 8 |
# | 1.6 | A convolution that is a linear layer (`patches.conv_equals_linear`) | ●●○ | 8 |
# | 1.7 | The whole patch embedding (`patches.add_positions`) | ●●○ | 12 |
# | 1.8 | Measure it: where beside what (`patches.where_over_what`) | ●●○ | 8 |
# | 1.9 | Positions for another grid (`patches.resize_positions`) | ●●○ | 10 |
#
# Next: [02 The vision transformer](02_vision_transformer.ipynb)
