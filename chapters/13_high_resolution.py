# %% [markdown]
# # 13 High resolution and many pictures
#
# You cut a large picture into tiles, encode each of them, and say in the text where it was. You measure what this gains
# and what it costs, and check the result against transformers. About fifty-five minutes; the code runs in two.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [← 12 Shape tracing](12_shape_tracing.ipynb) ·
# [14 Looking inside →](14_looking_inside.ipynb) ·
# [exercises](../exercises/13_high_resolution.ipynb) ·
# [notation and terms](notation.md)
#
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/chapters/13_high_resolution.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/chapters/13_high_resolution.ipynb

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
import tempfile
import time

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from nanovlm import VisionLanguageModel
from nanovlm.assets import asset_path
from nanovlm.course import budget, expect_shape, lever, quiz, use
from nanovlm.course.chapter_13 import at_resolution, one_letter, probe, random_smolvlm
from nanovlm.data.thimble import chance, thimble_sample
from nanovlm.inference.prompts import prepare_prompts
from nanovlm.viz.tiles import image_figure, shrunk_row

# %% [markdown]
# **After this chapter you can**
#
# 1. say what a resize costs, with a measurement instead of an impression,
# 2. cut a picture into tiles by the rules of SmolVLM and of nanoVLM, and write the text that goes with them,
# 3. calculate what a picture costs in tokens and in FLOPs, and check a loader by comparing logits.

# %% [markdown]
# You need chapters 03 (groups of patches), 05 (tokens) and 06 (the fusion). A *group* is a square of patches that pixel
# shuffle joins, and a *tile* is a piece of a large picture. If you are short of time, leave out "Back to one map", "The
# other direction: export" and "Check what is written about a model".

# %% [markdown]
# ## An encoder of one size loses small print
#
# An encoder takes pictures of one size: 64 x 64 pixels for the pocket model, 224 x 224 for the 222M model, 512 x 512
# for SmolVLM-256M. Whatever you send is resized to that first. For a cat on a sofa this is enough, but what happens to
# a page of text? Here is one: 64 signs of the Thimble, each 64 pixels wide, so that the page measures 512 x 512 and a
# letter is 12 or 13 pixels tall.

# %%
signs = [thimble_sample("glyphs", "test", i)["images"][0] for i in range(64)]
page = Image.new("RGB", (512, 512))
for i, sign in enumerate(signs):
    page.paste(sign, (i % 8 * 64, i // 8 * 64))
image_figure(
    page, "A page of 8 x 8 coloured signs with two to four characters each, all easy to read."
)

# %% [markdown]
# Shrink the page, and look at its top left corner with four of the 64 signs. An encoder of 64 pixels receives the page
# as the last picture shows it.


# %%
def corner_at(side):
    return page.resize((side, side), Image.Resampling.LANCZOS).crop((0, 0, side // 4, side // 4))


shrunk_row(
    [corner_at(side) for side in (512, 256, 128, 64)],
    [f"the page at {side}" for side in (512, 256, 128, 64)],
)

# %%
quiz("ch13.read")

# %% [markdown]
# ## Measure what is lost, because an impression misleads
#
# At 64 pixels you can read nothing. But grey levels between the strokes still carry information, and a network may read
# what you cannot, so measure it. The pocket model reads signs of 64 pixels. Give it the same signs shrunk by 2, by 4
# and by 8. The processor enlarges them to 64 again, so that only detail is lost, while each letter keeps its size and
# its place. What share of the signs will it read in each case? Write down three numbers before you go on.

# %%
pocket = VisionLanguageModel.from_pretrained(asset_path("pocket")).eval()
asked = "What does the sign say?"
texts = [
    thimble_sample("glyphs", "test", i)["texts"][0]["assistant"] for i in range(64)
]  # of the page, in order


def answers_to(questions: list[str], images: Tensor) -> list[str]:
    """One view [3, 64, 64] for each question -> what the pocket model says."""
    batch = prepare_prompts(pocket, questions, [Image.new("RGB", (64, 64))] * len(questions))
    batch["images"] = images  # in place of the empty pictures
    return [
        pocket.tokenizer.decode(ids).strip()
        for ids in pocket.generate(**batch, max_new_tokens=8).tolist()
    ]


def read_signs(views: Tensor) -> float:
    """The share of the 64 signs that are read right, from one view [3, 64, 64] of each."""
    said = answers_to([asked] * len(views), views)
    return sum(answer == text for answer, text in zip(said, texts, strict=True)) / len(views)


# %%
def lose_detail(sign: Image.Image, shrink: int) -> Image.Image:
    return sign.resize((64 // shrink, 64 // shrink), Image.Resampling.LANCZOS)


read = {
    n: read_signs(pocket.image_processor([lose_detail(sign, n) for sign in signs]))
    for n in (1, 2, 4, 8)
}
for shrink, share in read.items():
    print(f"shrunk by {shrink}: {share:4.0%} of the signs are read")

# %% tags=["claim"]
assert read[1] > 0.9 and read[2] > 0.8 and read[4] < 0.5 and read[8] < 0.1

# %% [markdown]
# Shrinking by 2 costs few of the signs, by 4 most of them, and by 8 nearly all. But two causes are mixed in this
# result: the letter may be *gone* from the pixels, or it may still be there, in a blur from which the pocket model
# never learnt.

# %% [markdown]
# A network that is made for this question helps to tell the two causes apart. A **probe** is a small network that
# receives one letter and says which of the Thimble's 33 characters it is. There is one probe for each resolution, all
# of the same size and with the same number of steps, and each learns at its own resolution, so that none is surprised
# by blur. (The letters and the probe, forty lines, are in `nanovlm/course/chapter_13.py`.)

# %%
from nanovlm.data.thimble.glyphs import CHARACTERS

letters = [one_letter(number) for number in range(4)]
shrunk_row(
    letters,
    [f"the character {CHARACTERS[i]}" for i in range(4)],
    "Four grey signs of 64 x 64 pixels",
)

# %% [markdown]
# Train the two ends first: full size, and shrunk by 8, where a letter is a pixel and a half tall. Predict the second
# number before you run the cell, which takes some seconds; the next one adds what is in between.

# %%
steps = budget().pick(ci=150, laptop=400)
reads = {shrink: probe(at_resolution(shrink), steps) for shrink in (1, 8)}
print(f"full size: {reads[1]:.0%} of the letters are read; shrunk by 8: {reads[8]:.0%}")
print(f"chance: {1 / 33:.0%}")

# %%
from nanovlm.viz.tiles import share_bars

reads |= {shrink: probe(at_resolution(shrink), steps) for shrink in (2, 4)}
print(f"{steps} steps. Three letters in a row, shrunk by 4: {reads[4] ** 3:.0%}; ", end="")
print(f"the pocket model's signs: {read[4]:.0%}")
names = {1: "full size, 12 px tall", 2: "1/2, 6 px", 4: "1/4, 3 px", 8: "1/8, 1.5 px"}
share_bars({name: reads[shrink] for shrink, name in names.items()}, chance=1 / 33, margin=660**-0.5)

# %% tags=["claim"]
in_the_text = budget().pick(ci=(0.79, 0.15), laptop=(0.95, 0.28))  # a quarter, an eighth
assert reads[2] > max(reads[4], 0.9) and reads[4] - reads[8] > reads[1] - reads[4] > 0
assert abs(reads[4] - in_the_text[0]) < 0.08 and abs(reads[8] - in_the_text[1]) < 0.08
assert read[4] < reads[4] ** 3

# %% [markdown]
# Letters three pixels tall are hard to read by eye, and the probe still reads most of them. The step from a quarter to
# an eighth costs most. How much it costs depends on how long the probe has trained, as three runs with the same seed
# show (your own shares may differ from the second row by a few points):

# %% [markdown]
# | steps | shrunk by 4 | shrunk by 8 | where |
# |---|---|---|---|
# | 150 | 79 % | 15 % | with `NANOVLM_BUDGET=ci` |
# | 400 | 95 % | 28 % | with the budget of this page, `laptop` |
# | 1,500 | 98 % | 56 % | a longer run, measured once |

# %% [markdown]
# The pixels are the same in each row of the table. So a bar does not say how much information is *left* in few pixels;
# it says how much this probe has learnt to get out of them, and what is left is at least that.

# %% [markdown]
# The pocket model reads whole signs, which have three letters on average. If it read letters as well as the probe,
# three in a row would be right with the cube of the probe's share, which the cell has printed. The pocket model never
# saw a shrunk sign, and reads far fewer. So part of its loss is lost detail and part is unfamiliar blur, and this
# experiment cannot say how much of each. The thin line at a bar's end is the interval: with 660 letters, a share is
# certain to four points.

# %% [markdown]
# ## Three ways out: a larger input, tiles, or native resolution
#
# **A larger input for the encoder.** SigLIP's position embeddings can be resized (chapter 01), but attention compares
# each patch with every other. Chapter 03 calculated by a formula what that costs for a picture of 2,048 pixels in
# patches of 16, once as a whole and once as 16 tiles of 512. Here PyTorch counts all operations of the encoder itself
# (a TFLOP is a trillion of them).

# %% tags=["nbval-check-output"]
from torch.utils.flop_counter import FlopCounterMode

from nanovlm.config import ViTConfig
from nanovlm.models.vision_transformer import ViT


def encoder_tflops(views: int, side: int) -> float:
    """SigLIP-B/16 on so many views of side x side pixels."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        ViT(ViTConfig(image_size=side))(torch.zeros(views, 3, side, side))
    return counter.get_total_flops() / 1e12


pairs = {views: views * (side // 16) ** 4 for views, side in ((1, 2048), (16, 512))}
flops = {views: encoder_tflops(views, side) for views, side in ((1, 2048), (16, 512))}
print(
    f"pairs: {pairs[1]:,} as a whole, {pairs[16]:,} in tiles, {pairs[1] // pairs[16]} times fewer"
)
print(
    f"TFLOP: {flops[1]:.1f} as a whole, {flops[16]:.1f} in tiles, {flops[1] / flops[16]:.1f} times less"
)

# %% [markdown]
# Tiles save 16 times in pairs and less than four times in all, because the linear layers cost the same for every patch,
# whichever tile it is in.

# %% [markdown]
# **Tiles.** Cut the picture into squares of the encoder's own size. To the encoder each is an ordinary picture, with no
# new positions. The decoder receives one tile after the other, and learns in training what that means. SmolVLM and
# nanoVLM do this, and so does LLaVA-NeXT under the name **AnyRes**: it chooses the grid that fits the picture's shape
# best from a short list (described in the paper of its successor, LLaVA-OneVision,
# [arXiv:2408.03326](https://arxiv.org/abs/2408.03326)).

# %% [markdown]
# **Native resolution** is the third way: the encoder is trained on pictures of any size. Qwen2-VL
# ([arXiv:2409.12191](https://arxiv.org/abs/2409.12191)) uses RoPE in two dimensions in place of a table of positions,
# and NaViT ([arXiv:2307.06304](https://arxiv.org/abs/2307.06304)) packs pictures of several sizes into one sequence.
# Nothing is cut at the border of a tile, and nothing has to be stretched to a grid of tiles. The price is that the
# encoder has to be trained for it, which SigLIP was not, and that attention runs over the whole picture at once.

# %% [markdown]
# ### Do tiles help, and why?
#
# This chapter continues with tiles. Take 16 pages of 2 x 2 signs, 128 pixels wide, and read them in two
# ways. **Squashed**: the page becomes one view of 64 pixels, you ask once, and a sign counts as read if the answer is
# its text. **Tiles**: four views of 64 pixels, each with the question "What does the sign say?".

# %%
from nanovlm.config import TilingConfig
from nanovlm.data.tiling import TiledImageProcessor

tiler = TiledImageProcessor(
    64, tiling=TilingConfig(max_side=256)
)  # tiles of 64 pixels, at most 4 x 4 of them

pages = [Image.new("RGB", (128, 128)) for _ in range(16)]
for i, sign in enumerate(signs):
    pages[i // 4].paste(sign, (i % 2 * 64, i // 2 % 2 * 64))
squashed = pocket.image_processor(pages)  # [16, 3, 64, 64]
tiles = torch.cat(
    [tiler(page_of_four)[:4] for page_of_four in pages]
)  # [64, 3, 64, 64], without the whole
shrunk_row(
    [pages[0], pages[0].resize((64, 64), Image.Resampling.LANCZOS)], ["four tiles", "one view"]
)

# %%
start = time.perf_counter()
said = answers_to([asked] * len(squashed), squashed)
between = time.perf_counter()
by_tile = read_signs(tiles)
end = time.perf_counter()

by_page = sum(answer in texts[4 * i : 4 * i + 4] for i, answer in enumerate(said)) / len(signs)
tokens = pocket.config.num_image_tokens
for name, share, length, seconds in (
    ("squashed", by_page, tokens, between - start),
    ("tiles", by_tile, 4 * tokens, end - between),
):
    print(f"{name:8} {share:4.0%} of 64 signs, {length:2} image tokens a page, {seconds:.2f} s")

# %% tags=["claim"]
assert by_tile > 0.9 and by_page < 0.1

# %% [markdown]
# From tiles the model reads nearly all signs, for four times the tokens, and from squashed pages nearly none. Is that
# because squashing loses detail? There is a reason to doubt it: most signs that were shrunk by 2 were read above, and
# squashing a page of 128 to 64 shrinks by 2 as well, so enough detail is there.

# %% [markdown]
# To find out, cut a sign's quarter out of the squashed page and enlarge it to 64 pixels, so that the same few pixels
# have the size of a tile. To make sure that the question is not ambiguous, put only *one* sign on each page. Then
# repeat both with pages of 4 x 4 places, which lose more. What do you expect of the four numbers?


# %%
def squash_alone(number: int, side: int) -> tuple[Image.Image, Image.Image]:
    """A page of side x side places with one sign, squashed to one view; and the sign's place in it."""
    column, row = number % side, number // side % side
    sheet = Image.new("RGB", (64 * side, 64 * side), (244, 244, 242))
    sheet.paste(signs[number], (64 * column, 64 * row))
    view, place = sheet.resize((64, 64), Image.Resampling.LANCZOS), 64 // side
    return view, view.crop((column * place, row * place, (column + 1) * place, (row + 1) * place))


# %%
by_view = {}
for side in (2, 4):
    views, places = zip(*(squash_alone(number, side) for number in range(64)), strict=True)
    by_view[f"{side} x {side}, squashed"] = read_signs(pocket.image_processor(list(views)))
    by_view[f"{side} x {side}, its place enlarged"] = read_signs(
        pocket.image_processor(list(places))
    )
by_view["its own tile"] = by_tile

share_bars(by_view, chance("glyphs")["read"])

# %% tags=["claim"]
small, enlarged, smaller, blurred, _ = by_view.values()
assert max(small, smaller) < 0.1 and enlarged > 0.8
assert blurred < 0.5 and abs(blurred - read[4]) < 0.15

# %% [markdown]
# So the cause has two parts.
#
# - On a page of 2 x 2 the pixels suffice for most signs, which are read once they are enlarged. In the squashed view a
#   letter is half as tall as any that the model learnt from, and the sign has a quarter of the image tokens. What is
#   missing is **size and tokens**.

# %% [markdown]
# - On a page of 4 x 4, fewer than half of the signs come back when they are enlarged. Here **detail** is missing too,
#   and what is left is blur that the model never learnt from.

# %% [markdown]
# A tile gives all three: detail, a size that the encoder knows, and tokens of its own.

# %% [markdown]
# ## A tile does not see the whole
#
# Now the other way round. Draw scenes with shapes at 128 pixels and cut them into 2 x 2 tiles, each of which shows its
# quarter sharply. Ask a tile about the whole scene, and then ask the small view of the whole.

# %%
samples = [thimble_sample("shapes", "test", i, image_size=128) for i in range(48)]
turns = [
    sample["texts"][i % 6] for i, sample in enumerate(samples)
]  # one of six kinds of questions each
views = torch.stack([tiler(sample["images"][0]) for sample in samples])
print(expect_shape(views, "images 5 3 64 64"))


def accuracy(images: Tensor) -> float:
    said = answers_to([turn["user"] for turn in turns], images)
    return sum(answer == turn["assistant"] for answer, turn in zip(said, turns, strict=True)) / len(
        turns
    )


one_tile, the_whole = accuracy(views[:, 0]), accuracy(views[:, -1])
guessing = sum(chance("shapes").values()) / len(chance("shapes"))
sure_to = len(turns) ** -0.5  # about 95 % of such samples lie no further off
share_bars(
    {"the top left tile alone": one_tile, "the view of the whole": the_whole}, guessing, sure_to
)

# %% tags=["claim"]
assert the_whole > 0.9 and one_tile < 0.65

# %% [markdown]
# For this reason both are shown: **tiles** for what is small, and **the whole**, shrunk, for what is large. Four tiles
# and the whole are the five views in the shape above.

# %% [markdown]
# ## How many tiles? SmolVLM's rule resizes twice
#
# A picture can have any shape. SmolVLM's processor resizes it twice before it cuts ([transformers
# v5.0.0](https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/smolvlm/image_processing_smolvlm.py)).
# First the longer side becomes `longest`, and the shorter side follows so that the picture keeps its shape, up to a
# rounding to an even number. Then both sides become multiples of the tile, which stretches the picture instead of
# cutting off a rest or padding it.

# %% [markdown] tags=["stamped"]
# **The next cell is folded, because it answers this exercise:** [exercise 13.1, How many rows, how many
# columns?](../exercises/13_high_resolution.ipynb). Write yours first, or unfold it.


# %% tags=["package:nanovlm.data.tiling.scale_to_longest", "answer:tiles.grid"]
def _even(length: float) -> int:
    return int(length) + int(length) % 2


def scale_to_longest(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """SmolVLM's rule: the longer side becomes `longest`, the shorter one follows, rounded up to even."""
    width, height = size
    shape = width / height
    if width >= height:
        return longest, max(_even(longest / shape), 1)
    return max(_even(longest * shape), 1), longest


# %% [markdown] tags=["stamped"]
# **The next cell is folded, because it answers this exercise:** [exercise 13.1, How many rows, how many
# columns?](../exercises/13_high_resolution.ipynb). Write yours first, or unfold it.

# %% tags=["package:nanovlm.data.tiling.fill_tiles", "answer:tiles.grid"]
import math


def fill_tiles(size: tuple[int, int], tile: int) -> tuple[int, int]:
    """SmolVLM's rule: both sides become multiples of the tile, the longer one first."""
    width, height = size
    shape = width / height
    if width >= height:
        width = math.ceil(width / tile) * tile
        height = math.ceil(int(width / shape) / tile) * tile
    else:
        height = math.ceil(height / tile) * tile
        width = math.ceil(int(height * shape) / tile) * tile
    return max(width, tile), max(height, tile)


# %% [markdown]
# SmolVLM-256M has tiles of 512 and a longest side of 2,048. Here are a screenshot, a banner, and the banner upright, by
# your own function if it has passed.

# %%
smolvlm_grid = use("tiles.grid")

# %% tags=["nbval-check-output"]
for size in ((1920, 1080), (4000, 300), (300, 4000)):
    first = scale_to_longest(size, 2048)
    grid = tuple(smolvlm_grid(*size))
    print(f"{size} -> {first} -> {fill_tiles(first, 512)}: rows and columns {grid}")

# %% [markdown]
# The banner's 300 pixels of height become 154 and then 512, so that it is stretched more than three times, and a circle
# on a banner is no circle in its tiles. Keep to the rule all the same if you load SmolVLM's weights, because they were
# trained with it. Now predict for a small picture:

# %%
quiz("ch13.icon")

# %% [markdown]
# **nanoVLM** resizes once: the longer side becomes `max_img_size`, 2,048, and the shorter one keeps the shape and is
# rounded up to a multiple of the tile. Since 15 August 2025 its default enlarges every picture, as SmolVLM does
# (`resize_to_max_side_len = True`, [the
# commit](https://github.com/huggingface/nanoVLM/commit/772d07c1eda59bf13eefacda90ad086eb3b2ae18)); its first tiles, [of
# July](https://github.com/huggingface/nanoVLM/commit/1bdd6916cbb04f425954bd642e4f2398b2821205), left small pictures
# small. **The course's default** is SmolVLM's rule, except that a picture whose longer side is at most `max_side` skips
# the first step.

# %% [markdown]
# Move the sliders, and find a picture that costs as few tokens as possible under each rule. The next section has the
# answer.

# %%
from nanovlm.viz.tiles import Plan, plan_figure

RULES = {
    "SmolVLM": TilingConfig("smolvlm", max_side=2048, upscale=True),
    "nanoVLM": TilingConfig("nanovlm", max_side=2048, upscale=True),
    "our default": TilingConfig(),
}


def plan(width, height, rule):
    tiling = RULES[rule]
    rows, columns = TiledImageProcessor(512, tiling=tiling).grid((width, height))
    num_tiles = rows * columns if rows * columns > 1 else 0
    smolvlm = tiling.layout == "smolvlm"
    special = num_tiles * (2 if smolvlm else 1) + (3 if smolvlm else 1)
    return Plan(
        (width, height), (columns * 512, rows * 512), rows, columns, not smolvlm, 64, special
    )


def draw_plan(width, height, rule):
    return plan_figure(plan(width, height, rule), context=8192)


lever(draw_plan, width=(64, 4096, 64), height=(64, 4096, 64), rule=list(RULES))

# %% [markdown]
# ## An icon in 17 views
#
# Both published rules *always* enlarge. An icon of 64 x 64 becomes 2,048 x 2,048, which gives 16 tiles and the whole,
# and no tile shows anything that the icon did not. The cheapest picture is therefore not a small one but a thin one: a
# strip that is at least four times as long as wide is one row of four tiles and the whole. Under the course's default
# the cheapest is a picture of up to 512 x 512, in one view.

# %% tags=["nbval-check-output"]
print("views of a square picture")
for name in RULES:
    counts = [
        f"{side} px: {plan(side, side, name).views:2}" for side in (64, 512, 513, 1024, 2048, 4000)
    ]
    print(f"{name:>11}  {'   '.join(counts)}")

lengths = range(64, 4097, 64)
fewest = {name: min(plan(w, h, name).tokens for w in lengths for h in lengths) for name in RULES}
print(
    "fewest tokens of any picture:",
    ", ".join(f"{name} {tokens}" for name, tokens in fewest.items()),
)

# %% tags=["claim"]
thin = (plan(256, 64, "SmolVLM"), plan(64, 4096, "SmolVLM"))
assert {fewest["SmolVLM"], *(one.tokens for one in thin)} == {331}

# %%
from nanovlm.viz.tiles import cost_figure

sides = [64, 512, 513, 1024, 1025, 1536, 1537, 2048, 3072]  # and nothing changes between these
cost_figure(
    {
        "SmolVLM: all are enlarged": [(side, plan(side, side, "SmolVLM").tokens) for side in sides],
        "our default: none is": [(side, plan(side, side, "our default").tokens) for side in sides],
    }
)

# %% [markdown]
# The setting is called `upscale`, and it must be what the model was trained with. If you load SmolVLM, it is on,
# because that is what these weights know.
#
# ## Cutting is pixel shuffle's first half
#
# Cutting splits height and width into two axes each, as chapter 03 did, with pixels in place of patches. You write it
# in exercise 13.2, where the view of the whole follows the tiles.

# %% [markdown] tags=["stamped"]
# **The next cell is folded, because it answers this exercise:** [exercise 13.2, Cut a picture into
# tiles](../exercises/13_high_resolution.ipynb). Write yours first, or unfold it.

# %% tags=["nbval-check-output", "answer:tiles.split"]
pixels = torch.arange(24).reshape(1, 4, 6)  # [channels, height, width]
tiles = pixels.reshape(
    1, 2, 2, 3, 2
)  # channels, row of tiles, row in the tile, column of tiles, column in the tile
tiles = tiles.permute(1, 3, 0, 2, 4).reshape(6, 1, 2, 2)
assert tiles[1].equal(pixels[:, 0:2, 2:4])
tiles[1]

# %%
split_image = use("tiles.split")
expect_shape(split_image(torch.rand(3, 1536, 2048), 512), "13 3 512 512")

# %% [markdown]
# The package's processor resizes, cuts, and resizes the whole. Here is the page under SmolVLM's rule, scaled down by
# eight, with tiles of 64 pixels. The numbers give the order in which the decoder receives the views.

# %%
from nanovlm.viz.tiles import tiles_figure

small_smolvlm = TiledImageProcessor(64, tiling=TilingConfig("smolvlm", max_side=256, upscale=True))
tiles_figure(small_smolvlm(page), *small_smolvlm.grid(page.size))

# %% [markdown]
# Since the page is shrunk from 512 to 256, a letter in a tile has half its size, and in the view of the whole, which is
# shrunk to 64, an eighth. So the probe's bars for 1/2 and 1/8 say how much it reads from a tile and from the whole.
#
# ### What cutting costs: a seam
#
# Tiles do not overlap. What lies on a border is cut in two, and the encoder never receives the halves together, so that
# only the decoder can join them. How much can be read from half a letter?

# %%
quiz("ch13.cut")

# %%
halves = at_resolution(2)
halves[..., 16:] = 0  # the right half lies in the neighbouring tile
half = probe(halves, steps)
print(f"whole letters: {reads[2]:.0%}; left halves alone: {half:.0%}")

# %% tags=["claim"]
assert 0.6 < half < reads[2] - 0.05

# %% [markdown]
# Half letters are read worse than whole ones, and far better than by chance. B and E have the same left half here, as
# have F and P, and 9 and S, so no training tells those apart. Tiles that overlap would cut fewer letters, but they
# would be more, and so would the tokens; SmolVLM and nanoVLM do not overlap them. The view of the whole has no seams,
# which is one more reason to keep it.

# %% [markdown]
# ### Back to one map
#
# To draw what the decoder attends to over the *picture*, you need the tiles' tokens in one map. This is cutting
# backwards, without the view of the whole, and you write it in exercise 13.5. As a check, take a token whose value you
# know: the mean colour of 8 x 8 pixels.

# %%
from nanovlm.pixels import scale_pixels

rejoin = use("tiles.rejoin")

views = small_smolvlm(page)  # [17, 3, 64, 64]
tokens = F.avg_pool2d(views, 8).flatten(2).transpose(1, 2)  # [17, 64, 3]
one_map = rejoin(tokens, 4, 4)

resized = small_smolvlm.pixels(
    page.resize((256, 256), Image.Resampling.LANCZOS)
)  # uint8 [3, 256, 256]
at_256 = scale_pixels(resized, small_smolvlm.pixel_range)
assert torch.allclose(one_map, F.avg_pool2d(at_256, 8).permute(1, 2, 0), atol=1e-5)
expect_shape(one_map, "32 32 3")

# %% [markdown]
# ## The text says where a tile was
#
# The encoder gets a batch of squares and cannot know where each was cut, because all have the same 1,024 positions. So
# *the text* says where a tile was. SmolVLM writes a token for the place in front of each tile, and puts the whole last.

# %% [markdown] tags=["stamped"]
# **The next cell is folded, because it answers this exercise:** [exercise 13.3, What stands for a picture in
# the text](../exercises/13_high_resolution.ipynb). Write yours first, or unfold it.

# %% tags=["package:nanovlm.data.tiling._smolvlm_text", "answer:tiles.tokens"]
FAKE, SMOLVLM_GLOBAL = "<fake_token_around_image>", "<global-img>"


def place_token(row: int, column: int) -> str:
    return f"<row_{row + 1}_col_{column + 1}>"


def _smolvlm_text(rows: int, columns: int, tile: str) -> str:
    whole = f"{FAKE}{SMOLVLM_GLOBAL}{tile}{FAKE}"
    if rows * columns == 1:
        return whole
    lines = (
        "".join(FAKE + place_token(r, c) + tile for c in range(columns)) + "\n" for r in range(rows)
    )
    return "".join(lines) + "\n" + whole


# %%
image_text = use("tiles.tokens")

# %% tags=["nbval-check-output"]
print(image_text(2, 2, 3))

# %% [markdown]
# There are three image tokens to a tile here, and 64 in SmolVLM-256M. `<fake_token_around_image>` marks the beginning
# of a tile; the name is inherited from the Idefics models. Each `<row_1_col_1>` is *one* token of the vocabulary, with
# a learned embedding. Spelled out as text it would be several tokens. The authors of SmolVLM report that with places
# spelled out, their small models got stuck in learning to read text, and that the learned tokens cured this
# ([arXiv:2504.05299](https://arxiv.org/abs/2504.05299), on learned positional tokens).

# %% [markdown]
# ### nanoVLM puts the whole first
#
# nanoVLM's tiled models, 230M-8k and 460M-8k, write another text ([its
# code](https://github.com/huggingface/nanoVLM/blob/4e0c0961846135c2217f95e54cb4c2d66eb55e42/data/processors.py)): **the
# whole first**, no fake tokens, and no line breaks. (The 450M model, which came before, shows one view of 256 pixels
# and no tiles.)

# %% tags=["nbval-check-output"]
nanovlm_style = TiledImageProcessor(64, tiling=TilingConfig("nanovlm", max_side=256))
print(nanovlm_style.image_texts([Image.new("RGB", (128, 70))], "<|image|>", 3)[0])

# %% [markdown]
# We know of no experiment that shows which order is better. Trained weights, however, need the order that they were
# trained with. What happens if pixels and text disagree about it?

# %%
quiz("ch13.order")

# %% [markdown]
# SmolVLM itself can answer that. Which tile the code puts where does not depend on the weights, so a small SmolVLM with
# *random* weights is enough, saved as transformers saves it, with a processor of the same rules and tiles of 32 pixels.
# First we have to show that our model computes the same as theirs. (This needs transformers 5; `random_smolvlm` is in
# `nanovlm/course/chapter_13.py`.)

# %% [markdown]
# ## Is this SmolVLM? Compare the logits
#
# Load the saved SmolVLM with *our* model. `from_pretrained` reads transformers' names, and raises an error on a missing
# or an unexpected tensor. Then ask both the same question about the same picture, which is cut into several tiles.

# %%
directory = tempfile.mkdtemp()
theirs, their_processor = random_smolvlm(directory)
ours = VisionLanguageModel.from_pretrained(directory).eval()

question, image = "How many signs are red?", page.crop((0, 0, 512, 300))
messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
prompt = their_processor.apply_chat_template(messages, add_generation_prompt=True)
their_inputs = their_processor(text=prompt, images=[image], return_tensors="pt")
our_inputs = prepare_prompts(ours, [question], [image])

# %% tags=["nbval-check-output"]
assert our_inputs["images"].equal(their_inputs["pixel_values"][0])  # the same pixels, bit by bit
assert our_inputs["input_ids"].equal(their_inputs["input_ids"])  # the same text
with torch.no_grad():
    expected, logits = theirs(**their_inputs).logits, ours(**our_inputs).logits
assert expected.std() > 0.5
torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
print(
    f"{len(our_inputs['images'])} views of {expect_shape(our_inputs['images'][0], '3 32 32')}:",
    end=" ",
)
print(f"equal pixels, equal ids, equal logits, {expect_shape(logits, '1 tokens vocabulary')}")

# %% [markdown]
# From the tiles and the text through encoder, pixel shuffle, projector and decoder, our model computes what SmolVLM
# computes. With the published weights only the numbers differ.
#
# ## What breaks: the right tiles in the wrong order
#
# Now back to the quiz's question. Put the pixels of the whole first, and leave the text as it is. Then, in a second
# experiment, swap two neighbouring tiles.

# %% tags=["nbval-check-output"]
right_order = our_inputs["images"]
whole_first = right_order.roll(1, dims=0)
swapped = right_order[[1, 0, *range(2, len(right_order))]]
with torch.no_grad():
    for name, images in (
        ("right", right_order),
        ("whole first", whole_first),
        ("two tiles swapped", swapped),
    ):
        changed = ours(**{**our_inputs, "images": images}).logits
        moved = bool((changed[0, -1] - expected[0, -1]).abs().max() > 1e-3)
        shape = expect_shape(changed, "1 tokens vocabulary")
        print(f"{name}: {shape}, last logits {'moved' if moved else 'the same'}")

# %% [markdown]
# There is no error and no NaN, and all shapes fit. But the text says `<row_1_col_1>`, and the pixels behind it are of
# another place. Only a comparison of numbers shows it, which is why every loader needs a cell like the one above.
#
# ## What a picture costs
#
# We count tokens first. SmolVLM-256M has 64 image tokens for each view, two special tokens for each tile and three for
# the whole. Exercise 13.4 counts a whole prompt. SmolLM2-135M has 8,192 positions, which limits how many pictures fit.

# %% tags=["nbval-check-output"]
for rows, columns in ((1, 1), (2, 2), (3, 4), (4, 4)):
    text = image_text(rows, columns, 64)
    special, one = text.count("<") - text.count("<image>"), text.count("<") + text.count("\n")
    tokens = text.count("<image>")
    print(f"{rows} x {columns}: {tokens:5,} image tokens, {special:2} special, {8192 // one:3} fit")

# %% [markdown]
# A line break is counted as one token here. Now we count operations, with SmolVLM-256M's sizes, on the device `meta`,
# for a prompt with 64 tokens of text.

# %% tags=["nbval-check-output"]
from nanovlm.config import LMConfig
from nanovlm.models.language_model import LanguageModel

for num_views in (1, 5, 17):
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        LanguageModel(LMConfig())(torch.zeros(1, num_views * 64 + 64, 576))
    encoder, decoder = encoder_tflops(num_views, 512), counter.get_total_flops() / 1e12
    print(f"{num_views:2} views: encoder {encoder:.1f} TFLOP, decoder {decoder:.1f}")

# %% [markdown]
# Before the first word of the answer, the encoder costs far more than the decoder. Tokens are what people count,
# because they fill the context. But until that first word it is mostly the encoder's work that you wait for, and for an
# icon in 17 views it is done 17 times.

# %% [markdown]
# ## Several pictures need nothing new
#
# Each picture has its own tiles and its own text, which is put where the picture belongs in the prompt, and the model
# receives all views in one batch, in order. Here are two pictures with the small SmolVLM: a strip of the page, and a
# single sign of 64 pixels.

# %% tags=["nbval-check-output"]
two = [page.crop((0, 0, 512, 120)), page.crop((0, 0, 64, 64))]
batch = prepare_prompts(ours, ["What differs?"], [two])
views_of = [ours.image_processor.num_tiles(image.size) for image in two]
placeholders = int((batch["input_ids"] == ours.config.image_token_id).sum())
assert (
    len(batch["images"]) == sum(views_of)
    and placeholders == sum(views_of) * ours.config.num_image_tokens
)
length = batch["input_ids"].shape[1]
print(f"{views_of[0]} + {views_of[1]} views, {placeholders} image tokens in {length} of the prompt")

# %% [markdown]
# The sign costs more, again because of SmolVLM's rule. To compare ten icons, switch the splitting off (`split=False`;
# transformers calls it `do_image_splitting`). nanoVLM also numbers the pictures in the text, so that a question can
# name them:

# %% tags=["nbval-check-output"]
print(nanovlm_style.image_texts([Image.new("RGB", (64, 64))] * 2, "<|image|>", 2))

# %% [markdown]
# That several pictures fit does not mean that the model understands them together. It has to learn from samples in
# which pictures are compared, and the pocket model's training data contains none. Given two pictures it does answer,
# but you have no reason to believe it.
#
# ## The other direction: export
#
# Here the pocket model becomes a SmolVLM directory, which transformers loads by itself, with nothing of ours installed.
# On the command line this is `nanovlm export --model pocket --to smolvlm --out DIR`. The export warns you that the
# pocket model was not trained with tiles and the tokens around them. transformers runs it all the same, but programs
# that always arrange a picture as SmolVLM does, such as llama.cpp, cannot.

# %%
from transformers import AutoModelForImageTextToText, AutoProcessor

from nanovlm.weights.export import export_smolvlm

exported = export_smolvlm(pocket, tempfile.mkdtemp())
as_smolvlm = AutoModelForImageTextToText.from_pretrained(exported)
as_processor = AutoProcessor.from_pretrained(exported)

question, scene = asked, signs[0]
messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
prompt = as_processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = as_processor(text=prompt, images=[scene], return_tensors="pt")
with torch.no_grad():
    difference = (
        as_smolvlm(**inputs).logits - pocket(**prepare_prompts(pocket, [question], [scene])).logits
    )
assert difference.abs().max() < 1e-3
answer = as_smolvlm.generate(**inputs, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
their_answer = as_processor.decode(answer, skip_special_tokens=True)
our_answer = pocket.generate(image=scene, prompt=question)
assert their_answer == our_answer
print(f"{question} {type(as_smolvlm).__name__}: {their_answer}. The pocket model: {our_answer}.")

# %% [markdown]
# ## Check what is written about a model
#
# Suppose you read that SmolVLM's encoder is convolutional or a Swin transformer, that its decoder has cross-attention,
# or that its projector is an MLP. You need not believe any of it, because the published weights run in transformers'
# code, and you can list the modules of that code:

# %% tags=["nbval-check-output"]
kinds = {type(module).__name__ for module in theirs.modules()}
print(
    "Swin, or pooling:  ",
    sorted(kind for kind in kinds if "swin" in kind.lower() or "pool" in kind.lower()),
)
print(
    "cross-attention:   ", [name for name, _ in theirs.named_modules() if "cross" in name.lower()]
)
print(
    "decoder block:     ", [name for name, _ in theirs.model.text_model.layers[0].named_children()]
)
connector = theirs.model.connector.modality_projection
print(
    "projector:         ",
    type(connector).__name__,
    "=",
    [type(m).__name__ for m in list(connector.modules())[1:]],
)

# %% [markdown]
# There is no Swin block, no pooling and no cross-attention. The projector is *called* an MLP, in the paper's figure and
# in the code, and contains a single linear layer. Names of classes could mislead once more, but the comparison of
# logits cannot: our model has no such parts, and gives the same numbers.

# %% [markdown]
# Training is another matter, because a file of weights does not say which of them were trained. And scores need their
# baseline. MMMU, on which such models are often compared, is mostly multiple choice: random choice reaches 22.1 % of
# its validation questions and always choosing the most frequent answer 26.8 %
# ([arXiv:2311.16502](https://arxiv.org/abs/2311.16502v4), table 2). So the 29 to 42 % that are reported for the three
# sizes of SmolVLM ([arXiv:2504.05299](https://arxiv.org/abs/2504.05299)) are 2 to 15 points above a choice of the most
# frequent answer, which needs no model.

# %% [markdown]
# For the **architecture**, then, list the modules and compare logits; for **defaults**, print them; for **training**,
# look for the authors' words; and beside every **score**, write what chance reaches.

# %% [markdown]
# ## What you take along
#
# - A resize drops detail, and a model that was trained on blurred letters reads more of them than one that was not.
#   Tiles keep detail, in a size that the encoder knows and with tokens of their own; the view of the whole keeps what
#   is larger than a tile.
# - The text says where a tile was; the wrong order fits every shape.
# - Tokens fill the context, but the encoder's work is most of the wait for the first word. Do not enlarge a picture
#   that has no more to show.
# - To know whether two implementations agree, load both and compare the logits.

# %% [markdown]
# In the package, `nanovlm/data/tiling.py` has the rules for sizes, the cutting and the text, and `TilingConfig` in
# `nanovlm/config.py` the five settings. `nanovlm/models/formats/` reads other projects' files, and
# `nanovlm/weights/export.py` writes them.

# %% [markdown]
# ## Challenge: the best grids under a budget of tokens
#
# Four pictures have to share 2,000 tokens. Which grid should each get? A view costs 66 tokens, and a picture that is
# cut has a view of the whole besides. The score is the detail that is kept. For each picture, `detail` takes the share
# of its pixels for which the grid has room and divides it by how much the grid stretches the picture; the score is the
# mean of the four.

# %% [markdown]
# The function below gives each a quarter of the budget and takes the largest square grid that fits. Beat it; a score of
# 0.69 is possible.

# %%
SIZES = [
    (1920, 1080),
    (600, 2400),
    (3000, 2000),
    (320, 240),
]  # a screenshot, a receipt, a photograph, an icon


def tokens_of(rows: int, columns: int) -> int:
    return 66 * (rows * columns + (rows * columns > 1)) + 1


def detail(size: tuple[int, int], rows: int, columns: int, tile: int = 512) -> float:
    """Between 0 and 1."""
    width, height = size
    kept = min(columns * tile / width, 1) * min(rows * tile / height, 1)
    stretched = (columns / rows) / (width / height)
    return kept / max(stretched, 1 / stretched)


def choose_grids(sizes: list[tuple[int, int]], budget: int) -> list[tuple[int, int]]:
    """Replace this: (rows, columns) for each picture."""
    side = max(n for n in range(1, 9) if tokens_of(n, n) <= budget // len(sizes))
    return [(side, side)] * len(sizes)


# %%
grids = choose_grids(SIZES, 2000)
used = sum(tokens_of(*grid) for grid in grids)
score = sum(detail(size, *grid) for size, grid in zip(SIZES, grids, strict=True)) / len(SIZES)
print(
    f"{score:.3f} with {used:,} tokens of 2,000" if used <= 2000 else f"too many tokens: {used:,}"
)

# %% [markdown] tags=["stamped"]
# ## Your turn
#
# [Open the exercises](../exercises/13_high_resolution.ipynb) ([in Colab][exercises]): 7 of them, about 1.2 hours.
#
# [exercises]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/exercises/13_high_resolution.ipynb
#
# | | exercise | difficulty | minutes |
# |---|---|---|---|
# | 13.1 | How many rows, how many columns? (`tiles.grid`) | ●●○ | 10 |
# | 13.2 | Cut a picture into tiles (`tiles.split`) | ●●○ | 10 |
# | 13.3 | What stands for a picture in the text (`tiles.tokens`) | ●●○ | 12 |
# | 13.4 | Measure it: what the pictures of a prompt cost (`tiles.cost`) | ●○○ | 6 |
# | 13.5 | One map from many tiles (`tiles.rejoin`) | ●●○ | 10 |
# | 13.6 | Mend it: an icon in 17 views (`tiles.views`) | ●●○ | 10 |
# | 13.7 | Write the test that no check of shapes can replace (`tiles.test_split`) | ●●○ | 10 |
#
# Next: [14 Looking inside](14_looking_inside.ipynb)
