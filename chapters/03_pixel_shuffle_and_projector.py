# %% [markdown]
# # 03 Pixel shuffle and the projector
#
# You build the projector, the part between vision encoder and decoder. It joins the vectors of neighbouring patches to
# one image token, so that the sequence becomes four to sixteen times shorter, and a linear layer brings each token to
# the width of a word embedding. Forty minutes; the code runs in seconds.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [← 02 The vision transformer](02_vision_transformer.ipynb) ·
# [04 The decoder →](04_rope_decoder.ipynb) ·
# [exercises](../exercises/03_pixel_shuffle_and_projector.ipynb) ·
# [notation and terms](notation.md)
#
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/chapters/03_pixel_shuffle_and_projector.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/chapters/03_pixel_shuffle_and_projector.ipynb

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
import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from nanovlm.assets import asset_path
from nanovlm.config import LMConfig, ProjectorConfig, ViTConfig, VLMConfig
from nanovlm.course import expect_shape, lever, quiz, use

# %% [markdown]
# **After this chapter you can**
#
# 1. shorten a sequence of patches without losing a number, and undo it,
# 2. find a rearrangement that has the right shape and the wrong contents,
# 3. calculate what image tokens cost, and compare the connectors of other models.
#
# You need chapter 02. Of the forty minutes, about twenty are reading, ten are code, and ten are quizzes and sliders;
# the exercises come on top. If you are short of time, leave out "The right groups in another order", "Equal to
# SmolVLM's connector" and "Other connectors", since nothing later depends on them.

# %% [markdown]
# ## Image tokens are most of what a decoder reads
#
# The encoder of chapter 02 returns one vector for each patch. The nanoVLM of 222 million parameters has 14 x 14 = 196
# of them, and SmolVLM-256M, which encodes pictures of 512 pixels in patches of 16, has 32 x 32 = 1,024 ([Marafioti et
# al. 2025](https://arxiv.org/abs/2504.05299)). A question is a few dozen tokens long, so nearly all that the decoder
# reads would be picture. What does that cost?

# %% [markdown]
# Nearly all of a decoder's work is matrix products, of two kinds:
#
# - In the **linear layers** each token goes through the same matrices, so twice the tokens take twice the work.
# - In **attention** each token is compared with each other one, so twice the tokens take four times the work. (The
#   decoder of chapter 04 masks the later tokens, which is half of the pairs. We count all of them, as PyTorch's counter
#   does.)
#
# A product of `[n, a]` and `[a, b]` needs `n * a * b` multiplications and as many additions.


# %%
def decoder_flops(num_tokens: int, config: LMConfig) -> tuple[int, int]:
    """Floating-point operations of one forward pass: in the linear layers, and in attention."""
    dim, kv_dim = config.hidden_dim, config.num_kv_heads * config.head_dim
    weights = (
        2 * dim * dim + 2 * dim * kv_dim + 3 * dim * config.inter_dim
    )  # q and out; k and v; the MLP
    linear = 2 * num_tokens * weights
    attention = 2 * 2 * num_tokens * num_tokens * dim  # scores, then the weighted sum
    return config.num_blocks * linear, config.num_blocks * attention


# %% [markdown]
# You build these layers in chapter 04, so take their sizes on trust for now. The count you need not trust, because
# PyTorch can count as well, while a real decoder runs on the device `meta`, where tensors have shapes but no numbers.
# The decoder is SmolLM2-135M, which both the 222M model and SmolVLM-256M have.

# %% tags=["nbval-check-output"]
from torch.utils.flop_counter import FlopCounterMode

from nanovlm.models.language_model import LanguageModel

smollm = LMConfig()  # the defaults are SmolLM2-135M's sizes
with torch.device("meta"):
    decoder, sequence = LanguageModel(smollm), torch.zeros(1, 1024 + 64, smollm.hidden_dim)
with FlopCounterMode(display=False) as counter:
    decoder(sequence)

linear, attention = decoder_flops(1024 + 64, smollm)
assert counter.get_total_flops() == linear + attention
print(f"{linear / 1e9:.0f} billion in linear layers, {attention / 1e9:.0f} billion in attention")

# %% [markdown]
# That is for one picture and a question of 64 tokens, before the first word of the answer. (Norms and activations are
# cheap, and the head runs on few positions, so we leave them out.)
#
# What if the same picture came in fewer tokens? Let a square of `r` x `r` neighbouring patches share one token. With
# r = 4 that is one token for sixteen patches, and 64 tokens for the picture.

# %%
quiz("ch03.cost")

# %% tags=["nbval-check-output"]
full = sum(decoder_flops(1024 + 64, smollm))
for num_image_tokens in (1024, 256, 64):
    total = sum(decoder_flops(num_image_tokens + 64, smollm))
    less = f"{full / total:4.1f} times less"
    print(f"{num_image_tokens:5,} image tokens: {total / 1e9:6.1f} billion, {less}")

# %% [markdown]
# So fewer tokens are worth having. We could keep every fourth patch or average four of them, but both discard what the
# encoder has found. Pixel shuffle makes the sequence shorter and discards nothing.

# %% [markdown]
# ## Pixel shuffle trades length for width
#
# Take a group of 2 x 2 neighbouring patches. Instead of averaging their four vectors, *lay them end to end*: this gives
# one vector that is four times as wide. The sequence becomes four times shorter, and every number is still there.
#
# We call such a square of `r` x `r` patches a *group*. There are `r * r` times fewer tokens than patches, each `r * r`
# times wider. The operation is called **pixel shuffle** or *space to depth*.

# %%
quiz("ch03.tokens")

# %% [markdown]
# ### By hand, on sixteen patches
#
# Each of these sixteen patches, four in a row, holds a single number, its own.

# %% tags=["nbval-check-output"]
patches = torch.arange(16).reshape(4, 4)
patches

# %% [markdown]
# The group at the top left is a slice. Flattened, it is the first token.

# %% tags=["nbval-check-output"]
patches[0:2, 0:2].flatten()

# %% [markdown]
# To take all groups at once, without a loop, split each axis in two. You know this from `patchify` in chapter 01, where
# the entries were pixels. A row number from 0 to 3 says *which row of groups* (0 or 1) and *which row inside the group*
# (0 or 1), and the same holds for columns, so two axes become four.

# %% tags=["nbval-check-output"]
unfolded = patches.reshape(2, 2, 2, 2)
expect_shape(unfolded, "row inner_row column inner_column")

# %% [markdown]
# This has only renamed the places, and no number has moved. The next step moves them: it brings the two inner axes
# together.

# %% tags=["nbval-check-output"]
grouped = unfolded.transpose(1, 2)
expect_shape(grouped, "row column inner_row inner_column")

# %% [markdown]
# Then the outer axes are merged into "which token" and the inner ones into "what it holds".

# %% tags=["nbval-check-output"]
tokens = grouped.reshape(4, 4)
assert tokens[0].equal(patches[0:2, 0:2].flatten())
tokens

# %% [markdown]
# Each row is a token. Compare one with the grid above: token 1 should be the group at the top right.
#
# ### With vectors and a batch
#
# The encoder returns `[batch, num_patches, dim]`, with one axis for all patches and a vector for each. So one axis is
# split into four, and the vector stays whole at the end.

# %% [markdown] tags=["stamped"]
# **The next cell is folded, because it answers this exercise:** [exercise 3.1, Groups of patches become
# tokens](../exercises/03_pixel_shuffle_and_projector.ipynb). Write yours first, or unfold it.


# %% tags=["package:nanovlm.models.modality_projector.pixel_shuffle", "answer:pixel_shuffle.shuffle"]
def pixel_shuffle(x: Tensor, factor: int) -> Tensor:
    """Trade length for width. [B, grid * grid, dim] -> [B, (grid / factor) ** 2, dim * factor ** 2]"""
    batch, num_patches, dim = x.shape
    grid = round(num_patches**0.5)
    if grid * grid != num_patches or grid % factor:
        raise ValueError(
            f"{num_patches} patches are not a square grid that divides into {factor}x{factor} tiles."
        )
    x = x.reshape(
        batch, grid // factor, factor, grid // factor, factor, dim
    )  # [B, row, r, column, r, dim]
    x = x.transpose(2, 3)  # [B, row, column, r, r, dim]: the tile's patches side by side
    return x.reshape(batch, (grid // factor) ** 2, factor * factor * dim)


# %% [markdown]
# einops says the same in one line. On the left `row`, `i`, `column` and `j` are one axis, and on the right `i` and `j`
# have moved to the vector.

# %%
pixel_shuffle = use("pixel_shuffle.shuffle", pixel_shuffle)

torch.manual_seed(0)
x = torch.randn(2, 144, 5)  # two pictures of 12 x 12 patches
in_one_line = rearrange(
    x, "b (row i column j) d -> b (row column) (i j d)", row=6, column=6, i=2, j=2
)
assert pixel_shuffle(x, 2).equal(in_one_line)

# %% [markdown]
# A grid of 12 divides by 1, 2, 3 and 4. As r grows, length and width change in opposite directions.

# %% tags=["nbval-check-output"]
for r in (1, 2, 3, 4):
    y = pixel_shuffle(x, r)
    print(f"r = {r}:", expect_shape(y, f"batch {(12 // r) ** 2} {5 * r * r}"))

# %% [markdown]
# Three real models, with what the encoder returns and what the decoder gets:
#
# - **nanoVLM-222M**, the first nanoVLM ([weights](https://huggingface.co/lusxvr/nanoVLM-222M)): SigLIP-B/16 at 224
#   pixels, r = 2.
# - **SmolVLM-256M**: SigLIP-B/16 at 512 pixels, r = 4.
# - **SmolVLM-2.2B** ([blog](https://huggingface.co/blog/smolvlm)): SigLIP-SO400M at 384 pixels, 27 x 27 patches of 14
#   pixels, r = 3. (27 x 14 is 378, so the convolution leaves out the last 6 pixels; and r = 2 is impossible, since 27
#   is odd.)

# %% tags=["nbval-check-output"]
for name, grid, dim, r in (
    ("nanoVLM-222M", 14, 768, 2),
    ("SmolVLM-256M", 32, 768, 4),
    ("SmolVLM-2.2B", 27, 1152, 3),
):
    before = torch.empty(1, grid * grid, dim, device="meta")
    after = expect_shape(pixel_shuffle(before, r), "1 tokens wide")
    print(f"{name}: {expect_shape(before, f'1 {grid**2} {dim}')}  ->  {after}")

# %% [markdown]
# ## What was spread over the picture becomes depth
#
# The name comes from pictures. A grey picture of 64 x 64 pixels is a grid with one number in each place, 64 x 64 x 1.
# With r = 2 it becomes 32 x 32 x 4: four *channels*, each a small picture.

# %%
from nanovlm.viz.pixel_shuffle import stages_figure

image = Image.open(asset_path("images/shapes.png")).convert("RGB").resize((64, 64))
stages_figure(image)

# %% [markdown]
# The number of values is the same for all four r, and only the arrangement differs. Each channel holds every r-th pixel
# of the large picture, so it resembles a coarse copy of the whole.
#
# Where does one group go? Move the levers; without a kernel you see r = 4.

# %%
from nanovlm.viz.pixel_shuffle import shuffle_figure


def one_group(r, row, column):
    return shuffle_figure(image, r, row, column)


lever(one_group, r=[1, 2, 4, 8], row=(0, 15), column=(0, 15), start={"r": 4, "row": 3, "column": 3})

# %% [markdown]
# The group gives one number to each channel, always at the same place. That is why the operation is called space to
# depth. In the model the entries are not pixels but the encoder's vectors, 768 numbers for each patch, and the moves
# are the same.

# %% [markdown]
# ## What can be undone has lost nothing
#
# The sequence is four times shorter, and yet this chapter claims that nothing is discarded. Choose an answer, and say
# in a sentence why each of the other three is wrong.

# %%
quiz("ch03.lost")

# %% [markdown]
# The proof is the inverse: if an operation can be undone for every input, it has lost nothing. You write the inverse in
# exercise 3.2, and this cell takes yours once it passes.

# %%
pixel_unshuffle = use("pixel_shuffle.unshuffle")

for r in (1, 2, 3, 4):
    assert pixel_unshuffle(pixel_shuffle(x, r), r).equal(x)

# %% [markdown]
# PyTorch's `F.pixel_shuffle` goes the *other* way, from depth to space, as in the paper that introduced the name for a
# network that enlarges pictures ([Shi et al. 2016](https://arxiv.org/abs/1609.05158)). What vision-language models call
# pixel shuffle is close to PyTorch's `F.pixel_unshuffle`; below we see where the two differ.

# %% [markdown]
# ## A plain reshape has the right shape and the wrong tokens
#
# Pixel shuffle leads from `[1, 196, 768]` to `[1, 49, 3072]` in three steps, and a single `reshape` leads there as
# well. But which patches does it put into one token?

# %%
quiz("ch03.reshape")


# %%
def wrong_shuffle(x: Tensor, factor: int) -> Tensor:
    batch, num_patches, dim = x.shape
    return x.reshape(batch, num_patches // factor**2, dim * factor**2)


# %% tags=["nbval-check-output"]
x = torch.randn(1, 196, 768)
for name, shuffle in (("pixel_shuffle", pixel_shuffle), ("wrong_shuffle", wrong_shuffle)):
    print(name, expect_shape(shuffle(x, 2), "batch 49 3072"))

# %% [markdown]
# Every check of shapes passes, because a shape says how many numbers there are and not which. To tell the two apart,
# follow the numbers: `patch_map` sends each patch's own number through a function and reads off where it comes out.

# %% tags=["nbval-check-output"]
from nanovlm.trace import patch_map

right = patch_map(lambda x: pixel_shuffle(x, 2), grid=8)
wrong = patch_map(lambda x: wrong_shuffle(x, 2), grid=8)
print(right)
print()
print(wrong)

# %% [markdown]
# The right version makes groups of 2 x 2 (the printout calls them tiles), and the wrong one makes strips, four patches
# in a row. On the 222M model's grid it is worse. Since 14 does not divide by 4, some strips cross the edge, so that
# half of a token is at the right end of one row and the other half at the left end of the next.

# %% tags=["nbval-check-output"]
large = patch_map(lambda x: wrong_shuffle(x, 2), grid=14)
torn = [token for token in range(len(large)) if large.shape_of(token) == "scattered patches"]
print(f"{len(torn)} of {len(large)} tokens are torn apart,", end=" ")
print(f"such as token {torn[0]}: patches {large[torn[0]]}")

# %% [markdown]
# What would a trained model make of that? Its projector has a linear layer behind pixel shuffle, which was trained on
# groups: it takes the second quarter of a token for the patch *to the right* of the first, and the third for the patch
# *below*. The inverse puts each quarter back to the place where the layer takes it to be, so it shows what the layer
# assumes.

# %%
from nanovlm.viz.pixel_shuffle import images_row


def to_patches(image):
    pixels = torch.from_numpy(np.array(image))  # [64, 64, 3]
    return rearrange(pixels, "(row i) (column j) c -> 1 (row column) (i j c)", i=8, j=8)


def to_image(patches):
    pixels = rearrange(patches, "1 (row column) (i j c) -> (row i) (column j) c", row=8, i=8, j=8)
    return Image.fromarray(pixels.numpy())


seen = [
    to_image(pixel_unshuffle(shuffle(to_patches(image), 2), 2))
    for shuffle in (pixel_shuffle, wrong_shuffle)
]
images_row(
    [image, *seen], ["the picture", "as groups: unharmed", "as strips: what the layer assumes"]
)

# %% [markdown]
# Nothing raises, nothing is NaN and all shapes fit. In chapter 06 you put this version into the pocket model and ask it
# where things are. A model that is trained with strips from the start can learn to use them, since each token always
# holds the same four patches. But a strip joins patches that are further apart, and weights that others have trained do
# not fit. We have not measured how much worse such a model would be.

# %% [markdown]
# ### The right groups in another order
#
# PyTorch's `F.pixel_unshuffle` takes a picture as `[batch, dim, row, column]`. Below are four patches with two numbers
# each, where `31` is number 1 of patch 3.

# %% tags=["nbval-check-output"]
four_patches = torch.tensor([[[0, 1], [10, 11], [20, 21], [30, 31]]])
as_image = rearrange(four_patches, "b (row column) d -> b d row column", row=2)
torchs = nn.functional.pixel_unshuffle(as_image, 2).flatten(2).transpose(1, 2)
print("ours:   ", pixel_shuffle(four_patches, 2).tolist())
print("torch's:", torchs.tolist())

# %% [markdown]
# Both hold the same group, ours patch by patch and PyTorch's channel by channel. For a model that is trained from
# scratch the order makes no difference, because the linear layer behind it weighs the numbers in any order. For weights
# that have been trained it decides everything, and nanoVLM's and SmolVLM's were trained patch by patch.

# %%
assert rearrange(torchs, "b n (d p) -> b n (p d)", p=4).equal(pixel_shuffle(four_patches, 2))

# %% [markdown]
# ## Each image token belongs to one part of the picture
#
# Pixel shuffle never mixes groups, so each image token belongs to one part of the picture. (The encoder has let the
# patches attend to each other, so a token also carries information about the rest.) Later, when the decoder attends to
# token 5, you can say where that is. Move the lever over the tokens and watch the order of the patches.

# %%
from nanovlm.viz.pixel_shuffle import token_figure


def which_patches(token, r):
    tokens = patch_map(lambda x: pixel_shuffle(x, r), grid=8).tokens
    return token_figure(image, tokens, token)


lever(which_patches, token=(0, 15), r=[1, 2, 4], start={"token": 5, "r": 2})

# %% [markdown]
# `patch_map` found the patches by sending numbers through. There is also a formula, which you write in exercise 3.3.

# %% [markdown]
# ## The projector is one linear layer
#
# In the 222M model a token is now 3,072 numbers wide, and the decoder's embeddings are 576 wide. One linear layer maps
# the one to the other, without bias and without an activation, and together with pixel shuffle it is the whole
# **projector**.

# %% [markdown] tags=["stamped"]
# **The next cell is folded, because it answers this exercise:** [exercise 3.4, One linear layer between two
# worlds](../exercises/03_pixel_shuffle_and_projector.ipynb). Write yours first, or unfold it.


# %% tags=["package:nanovlm.models.modality_projector.ModalityProjector", "answer:pixel_shuffle.projector"]
class ModalityProjector(nn.Module):
    """[B, num_patches, vision_dim] -> [B, num_patches / factor ** 2, language_dim]"""

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        self.factor = config.pixel_shuffle_factor
        self.proj = nn.Linear(config.vision_dim * self.factor**2, config.language_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(pixel_shuffle(x, self.factor))


# %%
ModalityProjector = use("pixel_shuffle.projector", ModalityProjector)

# %% tags=["nbval-check-output"]
projector = ModalityProjector(
    ProjectorConfig(vision_dim=768, language_dim=576, pixel_shuffle_factor=2)
)
print(expect_shape(projector(torch.randn(2, 196, 768)), "batch 49 576"))
print(f"{sum(p.numel() for p in projector.parameters()):,} weights")

# %% [markdown]
# How can so little be enough? The encoder already describes the picture, and the decoder already knows what to do with
# vectors in its own space, so the layer has to translate and nothing more. In nanoVLM encoder and decoder come trained,
# while this layer starts from random numbers. That is why nanoVLM gives it a learning rate a hundred times as large,
# 0.00512 beside 0.00005
# ([config.py](https://github.com/huggingface/nanoVLM/blob/03ecd8c3436a81840ed7eb4e7677988b199cdc30/models/config.py)).
#
# Does the projector mix tokens? Predict first, then run the cell.

# %%
quiz("ch03.mix")

# %% tags=["nbval-check-output"]
small = ModalityProjector(ProjectorConfig(vision_dim=3, language_dim=5, pixel_shuffle_factor=2))
x = torch.randn(1, 16, 3)
changed = x.clone()
changed[0, 0] += 1  # patch 0
moved = (small(x) - small(changed)).abs().sum(-1)[0] > 1e-6
print("tokens that changed:", moved.nonzero().flatten().tolist())

# %% [markdown]
# ### The linear layer is where something is lost
#
# Pixel shuffle keeps everything. The layer behind it cannot, because 3,072 numbers go in and 576 come out. With r = 4
# it is 12,288 to 576.

# %% tags=["nbval-check-output"]
for r in (1, 2, 4):
    wide = 768 * r * r
    print(f"r = {r}: {wide:6,} numbers -> 576, {wide / 576:4.1f} to 1, {wide * 576:9,} weights")

# %% [markdown]
# If numbers are lost anyway, why not average the group? An average is one linear layer among many, whose weights are
# fixed. The projector's weights are trained, so training decides which 576 numbers are kept. The challenge at the end
# compares an average with a layer that is not even trained.

# %% [markdown]
# So r is a trade-off: a large r makes the decoder cheap and forces more of the picture into each token. The authors of
# SmolVLM report that their small models gain from r = 4, and warn that high ratios can hurt where exact places count,
# as in reading text ([Marafioti et al. 2025](https://arxiv.org/abs/2504.05299), on pixel shuffle).

# %% [markdown]
# ### Equal to SmolVLM's connector
#
# The next cell asks transformers' own code for the same result with the same weights. (The course itself does not need
# transformers: `pip install transformers`, or skip the cell, since nothing below depends on it.)

# %% tags=["nbval-check-output"]
from transformers import SmolVLMConfig
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMConnector

theirs = SmolVLMConnector(
    SmolVLMConfig(
        vision_config={"hidden_size": 12},
        text_config={"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2},
        scale_factor=4,
    )
)
ours = ModalityProjector(ProjectorConfig(vision_dim=12, language_dim=8, pixel_shuffle_factor=4))
ours.proj.load_state_dict(theirs.modality_projection.proj.state_dict())

x = torch.randn(2, 1024, 12)
torch.testing.assert_close(ours(x), theirs(x))
expect_shape(ours(x), "batch 64 8")

# %% [markdown]
# ## Other connectors
#
# Other models put more between encoder and decoder. The table gives, for one encoded picture, how many vectors the
# encoder returns and how many tokens the decoder reads. The last column says whether each token still belongs to one
# part of the picture. A *learned query* is a trained vector that attends to all of the encoder's vectors and becomes
# one token; chapter 17 builds a connector of this kind, and the cross-attention that Flamingo uses.

# %% [markdown]
# | model | connector | vectors → tokens | positions kept |
# |---|---|---|---|
# | [LLaVA](https://arxiv.org/abs/2304.08485) | one linear layer | 256 → 256 | yes |
# | [LLaVA-1.5](https://arxiv.org/abs/2310.03744) | two linear layers with GELU | 576 → 576 | yes |
# | [PaliGemma](https://arxiv.org/abs/2407.07726) | one linear layer | 256 → 256 | yes |
# | [Qwen2-VL](https://arxiv.org/abs/2409.12191) | 2 x 2 neighbours, two linear layers | N → N / 4 | yes |
# | [InternVL 1.5](https://arxiv.org/abs/2404.16821) | pixel shuffle r = 2, MLP | 1,024 → 256 | yes |
# | SmolVLM, nanoVLM | pixel shuffle, one linear layer | 1,024 → 64, 196 → 49 | yes |
# | [Honeybee](https://arxiv.org/abs/2312.06742) | convolutions and pooling | any number | yes |
# | [Flamingo](https://arxiv.org/abs/2204.14198) | 64 learned queries attend to the vectors; cross-attention | any → 64 | no |
# | [BLIP-2](https://arxiv.org/abs/2301.12597) | Q-Former, 32 learned queries | 257 → 32 | no |

# %% [markdown]
# Learned queries can make any number of tokens, but they have to learn *where* things are, which pixel shuffle gives
# for free. In a comparison at equal data, connectors that keep one token for each vector did better at fine-grained
# perception, and those that compress were about equal at coarse perception and reasoning ([Lin et al.
# 2024](https://arxiv.org/abs/2410.06765)).

# %% [markdown]
# ## Tokens against cost
#
# Back to the first question, now with levers. SmolVLM cuts a large picture into *tiles*, pieces of 512 x 512 pixels
# which are encoded one by one (chapter 13). Here there are at most 4 x 4 of them, and a view of the whole is added,
# which makes 17 encoded pictures in one prompt.

# %%
from nanovlm.viz.pixel_shuffle import Cost, cost_bars


def cost(pixels, tiles, text_tokens):
    grid = pixels // 16  # patches of 16 pixels
    rows = []
    for r in (r for r in (1, 2, 4, 7) if grid % r == 0):
        image_tokens = tiles * (grid // r) ** 2
        rows.append(Cost(r, image_tokens, *decoder_flops(image_tokens + text_tokens, smollm)))
    return cost_bars(rows, text_tokens)


lever(
    cost,
    pixels=[224, 512],
    tiles=[1, 17],
    text_tokens=(0, 512, 32),
    start={"pixels": 512, "text_tokens": 64},
)

# %% [markdown]
# With one tile, **attention** (orange) is the smaller part. With 17 tiles and r = 1 it is more than five times as large
# as the linear layers, because it grows with the square of the length. With **more text** the gain gets smaller,
# because pixel shuffle shortens pictures only.
#
# There is a hard limit too, since SmolLM2-135M was made for 8,192 positions. Do 17 encoded pictures fit?

# %% tags=["nbval-check-output"]
for r in (1, 2, 4):
    num_image_tokens = 17 * (32 // r) ** 2
    print(f"17 tiles, r = {r}: {num_image_tokens:6,} tokens of {smollm.max_positions:,}")

# %% [markdown]
# Without pixel shuffle they do not fit.
#
# The bars leave out the vision encoder, which processes all patches whatever r is. It gains from tiles, though: a
# picture of 2,048 pixels in 16 tiles has 16 times fewer pairs of patches than in one piece. The work in all does not
# become sixteen times less, because the linear layers still process every patch. How much less is it?

# %% tags=["nbval-check-output"]
vit, num_patches = ViTConfig(), 128 * 128  # SigLIP-B; 2,048 pixels in patches of 16
linear = (
    2 * num_patches * (4 * vit.hidden_dim**2 + 2 * vit.hidden_dim * vit.inter_dim) * vit.num_blocks
)
attention = 4 * num_patches**2 * vit.hidden_dim * vit.num_blocks
in_one, in_tiles = linear + attention, linear + attention / 16
print(f"in one piece {in_one / 1e12:.1f} T, in 16 tiles {in_tiles / 1e12:.1f} T:", end=" ")
print(f"{in_one / in_tiles:.1f} times less")

# %% [markdown]
# One question is left: why not give the encoder larger patches, instead of shuffling afterwards? SigLIP was trained
# with patches of 16 pixels, so its weights would not fit. And small patches can attend to each other in the encoder,
# which the numbers inside one large patch cannot. So the encoder works on fine patches, and its result is shortened.

# %% [markdown]
# ## Where this lives in the package
#
# Both definitions are the package's, in `nanovlm/models/modality_projector.py`, and the builder of this notebook
# compares them with that file. In the whole model the projector is between encoder and decoder.

# %% tags=["nbval-check-output"]
from nanovlm import VisionLanguageModel
from nanovlm.trace import trace

config = VLMConfig()  # the 222M model
with torch.device("meta"):
    model = VisionLanguageModel(config)
steps = trace(
    model, torch.zeros(1, 79, dtype=torch.long), torch.zeros(1, 3, 224, 224), device="meta"
)
steps.expect(
    {"vision_encoder": "1 196 768", "pixel_shuffle": "1 49 3072", "projector.proj": "1 49 576"}
)

share = sum(p.numel() for p in model.projector.parameters()) / sum(
    p.numel() for p in model.parameters()
)
print(f"{config.num_image_tokens} image tokens; the projector holds {share:.1%} of the weights")

# %% [markdown]
# What you take along:
#
# - Tokens cost. Pixel shuffle trades length for width and loses nothing.
# - The right shape does not prove that the contents are right. Send numbers through and look where they come out.
# - The linear layer translates each token alone, and what is lost is lost there.
#
# **In the wild.** The same function in
# [nanoVLM](https://github.com/huggingface/nanoVLM/blob/v0.1/models/modality_projector.py), and in transformers'
# [SmolVLM](https://github.com/huggingface/transformers/blob/v4.56.0/src/transformers/models/smolvlm/modeling_smolvlm.py).

# %% [markdown]
# ## Challenge: beat pixel shuffle at equal tokens
#
# A connector turns the pocket encoder's 64 vectors of 128 numbers into 16 tokens of 128. How much of the encoder's
# output is still in the tokens? To score a connector, one linear layer is fitted that computes each group's four
# vectors back from the group's token. The score is the share of the vectors' variance that it recovers on pictures to
# which it was not fitted. The baselines are the mean of each group and pixel shuffle with a random layer. Write a
# better `connector`; it may look at the training vectors.

# %%
from nanovlm.course.kept_share import encoded_images, kept_share

train_vectors, test_vectors = (
    encoded_images("train", 64),
    encoded_images("test", 32),
)  # [pictures, 64, 128]
random_layer = torch.randn(512, 128) / 512**0.5


def mean_of_groups(x):
    return pixel_shuffle(x, 2).unflatten(-1, (4, 128)).mean(dim=2)


def connector(x):
    """[B, 64, 128] -> [B, 16, 128]. Replace the random layer."""
    return pixel_shuffle(x, 2) @ random_layer


for name, function in (
    ("mean of each group", mean_of_groups),
    ("shuffle and a random layer", connector),
):
    print(f"{name:28} {kept_share(function, train_vectors, test_vectors):.1%}")

# %% [markdown] tags=["stamped"]
# ## Your turn
#
# [Open the exercises](../exercises/03_pixel_shuffle_and_projector.ipynb) ([in Colab][exercises]): 8 of them, about 1.2 hours.
#
# [exercises]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/exercises/03_pixel_shuffle_and_projector.ipynb
#
# | | exercise | difficulty | minutes |
# |---|---|---|---|
# | 3.1 | Groups of patches become tokens (`pixel_shuffle.shuffle`) | ●●○ | 12 |
# | 3.2 | And back again (`pixel_shuffle.unshuffle`) | ●●○ | 8 |
# | 3.3 | Which patches does a token hold? (`pixel_shuffle.patch_map`) | ●●○ | 8 |
# | 3.4 | One linear layer between two worlds (`pixel_shuffle.projector`) | ●○○ | 8 |
# | 3.5 | What a picture costs (`pixel_shuffle.token_budget`) | ●○○ | 5 |
# | 3.6 | Measure it: sixteen times less of what? (`pixel_shuffle.tile_savings`) | ●●○ | 12 |
# | 3.7 | Mend it: a shuffle for pictures that are not square (`pixel_shuffle.shuffle_rectangle`) | ●●○ | 10 |
# | 3.8 | Write the test that no wrong shuffle passes (`pixel_shuffle.test_shuffle`) | ●●○ | 10 |
#
# Next: [04 The decoder](04_rope_decoder.ipynb)
