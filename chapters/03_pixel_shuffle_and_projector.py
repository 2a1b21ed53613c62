# %% [markdown]
# # 03 Pixel shuffle and the projector
#
# The projector between eye and language: fold every tile of patches into one token, which makes the line four to sixteen
# times shorter, then bring it to the width of a word with one linear layer. Thirty minutes; the code runs in seconds.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [← 02 The vision transformer](02_vision_transformer.ipynb) ·
# [04 The decoder →](04_rope_decoder.ipynb) ·
# [exercises](../exercises/03_pixel_shuffle_and_projector.ipynb)
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
from nanovlm.config import LMConfig, ProjectorConfig, VLMConfig
from nanovlm.course import expect_shape, lever, quiz, use

# %% [markdown]
# ## The question: who pays for a picture?
#
# The encoder of chapter 02 hands over one vector for each patch. The nanoVLM of 222 million parameters makes 14 x 14 =
# 196 of them. SmolVLM-256M encodes pictures of 512 pixels, in patches of 16: that makes 32 x 32 = 1,024
# ([Marafioti et al. 2025](https://arxiv.org/abs/2504.05299)).
#
# Your question is a few dozen tokens long. So nearly all that the decoder reads would be picture. What does that cost?
#
# A decoder does two kinds of products:
#
# - **linear layers**: each token goes through the same matrices. Twice the tokens, twice the work.
# - **attention**: each token meets each other one. Twice the tokens, four times the work. (Chapter 04 hides the future,
#   which is half of the pairs. We count all of them, as PyTorch's counter does.)
#
# That is easy to count. A product of `[n, a]` and `[a, b]` needs `n * a * b` multiplications and as many additions.


# %%
def decoder_flops(num_tokens: int, config: LMConfig) -> tuple[int, int]:
    """Floating-point operations of one forward pass: in the linear layers, and in attention."""
    dim, kv_dim = config.hidden_dim, config.num_kv_heads * config.head_dim
    weights = 2 * dim * dim + 2 * dim * kv_dim + 3 * dim * config.inter_dim  # q and out; k and v; the MLP
    linear = 2 * num_tokens * weights
    attention = 2 * 2 * num_tokens * num_tokens * dim  # scores, then the weighted sum
    return config.num_blocks * linear, config.num_blocks * attention


# %% [markdown]
# You build these layers in chapter 04, so take their sizes on trust for now. Do not take the count on trust. PyTorch
# can count as well, while a real decoder runs on the device `meta`, where tensors have shapes but no numbers. The
# decoder is SmolLM2-135M, which both the 222M model and SmolVLM-256M have.

# %% tags=["nbval-check-output"]
from torch.utils.flop_counter import FlopCounterMode

from nanovlm.models.language_model import LanguageModel

smollm = LMConfig()  # the defaults are SmolLM2-135M's sizes
with torch.device("meta"):
    decoder, line_of_tokens = LanguageModel(smollm), torch.zeros(1, 1024 + 64, smollm.hidden_dim)
with FlopCounterMode(display=False) as counter:
    decoder(line_of_tokens)

linear, attention = decoder_flops(1024 + 64, smollm)
assert counter.get_total_flops() == linear + attention
print(f"{linear / 1e9:.0f} billion in linear layers, {attention / 1e9:.0f} billion in attention")

# %% [markdown]
# That is one picture and a question of 64 tokens, before the first word of the answer. (The two kinds are all that we
# count. Norms and activations are cheap, and the head runs on few positions.)
#
# What if the same picture came in 64 tokens? Predict:

# %%
quiz("ch03.cost")

# %% tags=["nbval-check-output"]
for num_image_tokens in (1024, 256, 64):
    linear, attention = decoder_flops(num_image_tokens + 64, smollm)
    print(f"{num_image_tokens:5,} image tokens: {(linear + attention) / 1e9:6.1f} billion")

# %% [markdown]
# So fewer tokens it is. But how? We could keep every fourth patch, or average four. Both throw away what the encoder
# found out. There is a way that throws nothing away.

# %% [markdown]
# ## Space to depth
#
# Take a tile of 2 x 2 neighbouring patches. Do not average the four vectors: *lay them end to end*. One vector, four
# times as wide. The line becomes four times shorter, and every number is still there.
#
# The same with tiles of `r` x `r`: `r * r` times fewer tokens, `r * r` times wider. Its name is **pixel shuffle**, or
# *space to depth*. Before you go on:

# %%
quiz("ch03.tokens")

# %% [markdown]
# ### By hand
#
# Sixteen patches, four in a row. Each holds a single number, its own.

# %% tags=["nbval-check-output"]
patches = torch.arange(16).reshape(4, 4)
patches

# %% [markdown]
# The tile at the top left is a slice. Flattened, it is the first token:

# %% tags=["nbval-check-output"]
patches[0:2, 0:2].flatten()

# %% [markdown]
# Now all tiles at once, without a loop. You know the trick from `patchify` in chapter 01, where it was pixels; what is
# new is only that each entry will be a whole vector. Give each step its own axis. A row number from 0 to 3 is *which
# tile row* (0 or 1) and *which row inside the tile* (0 or 1). The same holds for columns. So two axes unfold to four:

# %% tags=["nbval-check-output"]
unfolded = patches.reshape(2, 2, 2, 2)
expect_shape(unfolded, "row inner_row column inner_column")

# %% [markdown]
# No number has moved: this only names them anew. Now bring the two inner axes together. *This* is the step that moves
# them.

# %% tags=["nbval-check-output"]
tiles = unfolded.transpose(1, 2)
expect_shape(tiles, "row column inner_row inner_column")

# %% [markdown]
# Merge the outer axes into "which token", the inner ones into "what it holds":

# %% tags=["nbval-check-output"]
tokens = tiles.reshape(4, 4)
assert tokens[0].equal(patches[0:2, 0:2].flatten())
tokens

# %% [markdown]
# Each line is a token. Check one against the grid above: token 1 should be the tile at the top right.
#
# ### With vectors and a batch
#
# The encoder gives `[batch, num_patches, dim]`: one patch axis in place of rows and columns, and a vector for each
# patch. So we unfold one axis into four, and the vector stays in one piece at the end.


# %% tags=["package:nanovlm.models.modality_projector.pixel_shuffle"]
def pixel_shuffle(x: Tensor, factor: int) -> Tensor:
    """Trade length for width. [B, grid * grid, dim] -> [B, (grid / factor) ** 2, dim * factor ** 2]"""
    batch, num_patches, dim = x.shape
    grid = round(num_patches**0.5)
    if grid * grid != num_patches or grid % factor:
        raise ValueError(f"{num_patches} patches are not a square grid that divides into {factor}x{factor} tiles.")
    x = x.reshape(batch, grid // factor, factor, grid // factor, factor, dim)  # [B, row, r, column, r, dim]
    x = x.transpose(2, 3)  # [B, row, column, r, r, dim]: the tile's patches side by side
    return x.reshape(batch, (grid // factor) ** 2, factor * factor * dim)


# %% [markdown]
# einops says the same in one line. Read it as a sentence: on the left `row`, `i`, `column`, `j` are folded into one
# axis, on the right `i` and `j` have gone to the vector.

# %%
torch.manual_seed(0)
x = torch.randn(2, 144, 5)  # two pictures of 12 x 12 patches
in_one_line = rearrange(x, "b (row i column j) d -> b (row column) (i j d)", row=6, column=6, i=2, j=2)
assert pixel_shuffle(x, 2).equal(in_one_line)

# %% [markdown]
# A grid of 12 divides by 1, 2, 3 and 4. Watch the two numbers trade places:

# %% tags=["nbval-check-output"]
for r in (1, 2, 3, 4):
    y = pixel_shuffle(x, r)
    assert y.numel() == x.numel()
    print(f"r = {r}:", expect_shape(y, f"batch {(12 // r) ** 2} {5 * r * r}"))

# %% [markdown]
# Now real sizes. Each line is what an encoder hands over, and what the decoder gets:
#
# - **nanoVLM-222M**, the first one ([weights](https://huggingface.co/lusxvr/nanoVLM-222M)): SigLIP-B/16 at 224 pixels,
#   r = 2. (nanoVLM's code has gone on to larger sizes since.)
# - **SmolVLM-256M**: SigLIP-B/16 at 512 pixels, r = 4.
# - **SmolVLM-2.2B** ([blog](https://huggingface.co/blog/smolvlm)): SigLIP-SO400M at 384 pixels, 27 x 27 patches of 14
#   pixels, r = 3. (27 x 14 is 378: the convolution leaves out the last 6 pixels. And 27 is odd, so r = 2 cannot be.)

# %% tags=["nbval-check-output"]
for name, grid, dim, r in (("nanoVLM-222M", 14, 768, 2), ("SmolVLM-256M", 32, 768, 4), ("SmolVLM-2.2B", 27, 1152, 3)):
    before = torch.empty(1, grid * grid, dim, device="meta")
    after = pixel_shuffle(before, r)
    print(f"{name}: {expect_shape(before, f'1 {grid**2} {dim}')}  ->  {expect_shape(after, '1 tokens wide')}")

# %% [markdown]
# ## See it
#
# The name comes from pictures, so look at one. A grey picture of 64 x 64 pixels is a grid with one number in each
# place: 64 x 64 x 1. With r = 2 it becomes 32 x 32 x 4: four *channels*, each a small picture.

# %%
from nanovlm.viz.pixel_shuffle import stages_figure

image = Image.open(asset_path("images/shapes.png")).convert("RGB").resize((64, 64))
stages_figure(image)

# %% [markdown]
# The area is the same in all four. Only the way of cutting differs. Each small picture holds every r-th pixel of the
# large one, so it looks like a coarse copy of the whole. All of them together are the picture.
#
# Where does one tile go? Move the lever. (Without a kernel you see r = 4.)

# %%
from nanovlm.viz.pixel_shuffle import shuffle_figure


def one_tile(r, row, column):
    return shuffle_figure(image, r, row, column)


lever(one_tile, r=[1, 2, 4, 8], row=(0, 15), column=(0, 15), start={"r": 4, "row": 3, "column": 3})

# %% [markdown]
# One number of the tile in each channel, all at the same place. That is why it is called space to depth: what was
# spread over the picture now lies on top of each other.
#
# In the model the numbers are not pixels but the encoder's vectors, 768 numbers for each patch. The moves are the same.

# %% [markdown]
# ## Nothing is lost
#
# Is it? Say what you think first:

# %%
quiz("ch03.lost")

# %% [markdown]
# The proof that nothing is lost is a way back. You write it in exercise 3.2. If you have solved that already, this
# cell takes yours.

# %%
pixel_unshuffle = use("pixel_shuffle.unshuffle")

for r in (1, 2, 3, 4):
    assert pixel_unshuffle(pixel_shuffle(x, r), r).equal(x)

# %% [markdown]
# A word about names. PyTorch's `F.pixel_shuffle` goes the *other* way, from depth to space, as in the paper that gave
# it the name, where a network makes small pictures large ([Shi et al. 2016](https://arxiv.org/abs/1609.05158)). What
# VLMs call pixel shuffle is PyTorch's `F.pixel_unshuffle`. Almost: we come to that.

# %% [markdown]
# ## What breaks: the right shape with the wrong tokens
#
# All that reshaping and transposing to get from `[1, 196, 768]` to `[1, 49, 3072]`. Is a single `reshape` not enough?
# Predict:

# %%
quiz("ch03.reshape")


# %%
def wrong_shuffle(x: Tensor, factor: int) -> Tensor:
    batch, num_patches, dim = x.shape
    return x.reshape(batch, num_patches // factor**2, dim * factor**2)


# %% [markdown]
# Here is the trap. Every check of shapes passes:

# %% tags=["nbval-check-output"]
x = torch.randn(1, 196, 768)
for shuffle in (pixel_shuffle, wrong_shuffle):
    print(shuffle.__name__, expect_shape(shuffle(x, 2), "batch 49 3072"))

# %% [markdown]
# A shape cannot tell the two apart. Numbers can. `patch_map` pushes each patch's own number through a function and
# reads off where it came out:

# %% tags=["nbval-check-output"]
from nanovlm.trace import patch_map

right = patch_map(lambda x: pixel_shuffle(x, 2), grid=8)
wrong = patch_map(lambda x: wrong_shuffle(x, 2), grid=8)
print(right)
print()
print(wrong)

# %% [markdown]
# Tiles, and strips: a row of four patches instead of a 2 x 2 tile. On the 222M model's grid it is worse. 14 does not
# divide by 4, so some strips run over the edge: half of the token is at the right end of a row, the other half at the
# left end of the next.

# %% tags=["nbval-check-output"]
large = patch_map(lambda x: wrong_shuffle(x, 2), grid=14)
torn = [token for token in range(len(large)) if large.shape_of(token) == "scattered patches"]
print(f"{len(torn)} of {len(large)} tokens are torn apart, such as token {torn[0]}: patches {large[torn[0]]}")

# %% [markdown]
# What would a trained model see? Its linear layer was trained on tiles: it takes the second quarter of a token for the
# patch *to the right* and the third for the patch *below*. So put the patches where the layer believes them to be. That
# is what the way back does.

# %%
from nanovlm.viz.pixel_shuffle import images_row


def to_patches(image):
    pixels = torch.from_numpy(np.array(image))  # [64, 64, 3]
    return rearrange(pixels, "(row i) (column j) c -> 1 (row column) (i j c)", i=8, j=8)


def to_image(patches):
    pixels = rearrange(patches, "1 (row column) (i j c) -> (row i) (column j) c", row=8, i=8, j=8)
    return Image.fromarray(pixels.numpy())


seen = [to_image(pixel_unshuffle(shuffle(to_patches(image), 2), 2)) for shuffle in (pixel_shuffle, wrong_shuffle)]
images_row([image, *seen], ["the picture", "as tiles: unharmed", "as strips: what the layer believes"])

# %% [markdown]
# Nothing raises, nothing is NaN, all shapes fit. In chapter 06 you put this version into the pocket model and ask it
# where things are.
#
# To be fair: a model that is trained *with* strips from the start can learn to use them, since each token always holds
# the same four patches. But a strip joins patches that lie further apart than those of a tile, and nobody else's
# weights will fit. How much worse it would be, we have not measured.
#
# ### The right tiles in another order
#
# Now PyTorch's `F.pixel_unshuffle`. It wants the picture as `[batch, dim, row, column]`. Four patches with two numbers
# each; `31` is number 1 of patch 3:

# %% tags=["nbval-check-output"]
four_patches = torch.tensor([[[0, 1], [10, 11], [20, 21], [30, 31]]])
as_image = rearrange(four_patches, "b (row column) d -> b d row column", row=2)
torchs = nn.functional.pixel_unshuffle(as_image, 2).flatten(2).transpose(1, 2)
print("ours:   ", pixel_shuffle(four_patches, 2).tolist())
print("torch's:", torchs.tolist())

# %% [markdown]
# The same tile, the same numbers. But ours goes patch by patch, and PyTorch's goes channel by channel. For a model
# trained from scratch it makes no difference: the linear layer behind it weighs the numbers in any order. For weights
# that somebody has trained it makes all the difference. nanoVLM's and SmolVLM's were trained patch by patch.

# %%
assert rearrange(torchs, "b n (d p) -> b n (p d)", p=4).equal(pixel_shuffle(four_patches, 2))

# %% [markdown]
# ## Which part of the picture is token 5?
#
# Pixel shuffle mixes no tiles, so each image token belongs to one part of the picture. (The encoder has let the patches
# look at each other, so a token knows something of the rest as well.) Later, when the decoder attends to token 5, you
# can say where it looks. Move the lever over the tokens. Watch the order of the patches.

# %%
from nanovlm.viz.pixel_shuffle import token_figure


def which_patches(token, r):
    tokens = patch_map(lambda x: pixel_shuffle(x, r), grid=8).tokens
    return token_figure(image, tokens, token)


lever(which_patches, token=(0, 15), r=[1, 2, 4], start={"token": 5, "r": 2})

# %% [markdown]
# `patch_map` found the patches by trying. There is also a formula, and you write it in exercise 3.3.

# %% [markdown]
# ## One linear layer
#
# A token is now 3,072 numbers wide. The decoder's words are 576 wide. One linear layer makes the one of the other, and
# that is the whole **projector**. It has no bias and no activation.


# %% tags=["package:nanovlm.models.modality_projector.ModalityProjector"]
class ModalityProjector(nn.Module):
    """[B, num_patches, vision_dim] -> [B, num_patches / factor ** 2, language_dim]"""

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        self.factor = config.pixel_shuffle_factor
        self.proj = nn.Linear(config.vision_dim * self.factor**2, config.language_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(pixel_shuffle(x, self.factor))


# %% tags=["nbval-check-output"]
projector = ModalityProjector(ProjectorConfig(vision_dim=768, language_dim=576, pixel_shuffle_factor=2))
print(expect_shape(projector(torch.randn(2, 196, 768)), "batch 49 576"))
print(f"{sum(p.numel() for p in projector.parameters()):,} weights")

# %% [markdown]
# Why is so little enough? The encoder has already found out what is in the picture, and the decoder already knows what
# to do with vectors. The layer only translates. The first LLaVA was built in the same way ([Liu et al.
# 2023](https://arxiv.org/abs/2304.08485)). Others take two layers with an activation between them, as LLaVA-1.5 does
# ([Liu et al. 2023](https://arxiv.org/abs/2310.03744)).
#
# In nanoVLM encoder and decoder come trained, and this layer starts from random numbers. It has the most to learn.
# That is why nanoVLM gives it a much higher learning rate than theirs: 0.00512 beside 0.00005 in its present
# [settings](https://github.com/huggingface/nanoVLM/blob/main/models/config.py).
#
# Does the layer mix tokens? Predict, then try:

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
# ### Here something *is* lost
#
# Pixel shuffle keeps everything. The layer behind it cannot: 3,072 numbers go in and 576 come out. With r = 4 it is
# 12,288 into 576.

# %% tags=["nbval-check-output"]
for r in (1, 2, 4):
    wide = 768 * r * r
    print(f"r = {r}: {wide:6,} numbers -> 576, {wide / 576:4.1f} to 1, {wide * 576:9,} weights")

# %% [markdown]
# So r is a bargain. A large r makes the decoder cheap and squeezes more of the picture into each token. The authors of
# SmolVLM report that their small models gain from r = 4, and warn that high ratios can hurt where exact places count,
# as in reading text ([Marafioti et al. 2025](https://arxiv.org/abs/2504.05299), on pixel shuffle).
#
# ### Is this SmolVLM's?
#
# The next cell asks transformers' own code: the same weights, the same answer. (It needs transformers, which the course
# itself does not: `pip install transformers`. Skip the cell if you have none; nothing below depends on it.)

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
# ## Tokens against cost
#
# Back to the first question, now with levers. SmolVLM cuts a large picture into tiles, at most 4 x 4 of them here, and
# adds a view of the whole: 17 encoded pictures in one prompt. Move the text, the size, the tiles.

# %%
from nanovlm.viz.pixel_shuffle import Cost, cost_bars


def cost(pixels, tiles, text_tokens):
    grid = pixels // 16  # patches of 16 pixels
    rows = []
    for r in (r for r in (1, 2, 4, 7) if grid % r == 0):
        image_tokens = tiles * (grid // r) ** 2
        rows.append(Cost(r, image_tokens, *decoder_flops(image_tokens + text_tokens, smollm)))
    return cost_bars(rows, text_tokens)


lever(cost, pixels=[224, 512], tiles=[1, 17], text_tokens=(0, 512, 32), start={"pixels": 512, "text_tokens": 64})

# %% [markdown]
# Three things to find:
#
# - With one tile, **attention** (orange) is the smaller part. With 17 tiles and r = 1 it is the larger one by far: it
#   grows with the square.
# - With **more text** the gain gets smaller. Pixel shuffle shortens pictures only.
# - The **222M model**, 224 pixels and r = 2, goes from 196 image tokens to 49.
#
# There is a wall too. SmolLM2-135M was made for 8,192 positions:

# %% tags=["nbval-check-output"]
for r in (1, 2, 4):
    num_image_tokens = 17 * (32 // r) ** 2
    print(f"17 tiles, r = {r}: {num_image_tokens:6,} tokens of {smollm.max_positions:,}")

# %% [markdown]
# Without pixel shuffle such a picture would not even fit.
#
# What the bars leave out: the vision encoder. It reads all the patches, whatever r is, so its bill stays. Why not give
# it larger patches then, and be done? SigLIP was trained with patches of 16 pixels, so its weights would not fit. And
# small patches can look at each other in the encoder, while the numbers inside one large patch cannot. So the encoder
# works on fine patches, and only its result is folded.

# %% [markdown]
# ## Where this lives in the package
#
# Both definitions are the package's, in `nanovlm/models/modality_projector.py`. The builder of this notebook compares
# them with that file and fails if they differ. In the whole model the projector stands between encoder and decoder:

# %% tags=["nbval-check-output"]
from nanovlm import VisionLanguageModel
from nanovlm.trace import trace

config = VLMConfig()  # the 222M model
with torch.device("meta"):
    model = VisionLanguageModel(config)
steps = trace(model, torch.zeros(1, 79, dtype=torch.long), torch.zeros(1, 3, 224, 224), device="meta")
steps.expect({"vision_encoder": "1 196 768", "pixel_shuffle": "1 49 3072", "projector.proj": "1 49 576"})

share = sum(p.numel() for p in model.projector.parameters()) / sum(p.numel() for p in model.parameters())
print(f"{config.num_image_tokens} image tokens; the projector holds {share:.1%} of the weights")

# %% [markdown]
# The same file serves every size. In chapter 06 your version of it carries the pocket model's weights.
#
# What you take along:
#
# - Tokens cost. Pixel shuffle trades length for width and loses nothing.
# - The shape does not prove the tokens. Push numbers through and look.
# - The linear layer translates each token alone. What is squeezed out is squeezed out there.
#
# Now close this page and write it yourself. The code above is the answer to two of the exercises, and it is worth more
# if it comes out of your own head.

# %% [markdown] tags=["stamped"]
# ## Your turn
#
# [Open the exercises](../exercises/03_pixel_shuffle_and_projector.ipynb) ([in Colab][exercises]): 5 of them, about 41 minutes.
#
# [exercises]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/exercises/03_pixel_shuffle_and_projector.ipynb
#
# | | exercise | difficulty | minutes |
# |---|---|---|---|
# | 3.1 | Tiles to tokens (`pixel_shuffle.shuffle`) | ●●○ | 12 |
# | 3.2 | And back again (`pixel_shuffle.unshuffle`) | ●●○ | 8 |
# | 3.3 | Which patches does a token hold? (`pixel_shuffle.patch_map`) | ●●○ | 8 |
# | 3.4 | One linear layer between two worlds (`pixel_shuffle.projector`) | ●○○ | 8 |
# | 3.5 | What a picture costs (`pixel_shuffle.token_budget`) | ●○○ | 5 |
#
# Next: [04 The decoder](04_rope_decoder.ipynb)
