# %% [markdown]
# # 13 High resolution and many pictures
#
# Cut a large picture into tiles, show each to the encoder, and say in the text where it was: how SmolVLM and nanoVLM
# read small print, what that costs, and how to check it against transformers. Forty minutes; the code runs in seconds.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [← 12 Shape tracing](12_shape_tracing.ipynb) ·
# [exercises](../exercises/13_high_resolution.ipynb)
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

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from nanovlm import VisionLanguageModel
from nanovlm.assets import asset_path
from nanovlm.course import budget, expect_shape, lever, quiz, use
from nanovlm.data.thimble import chance, thimble_sample
from nanovlm.inference.prompts import prepare_prompts
from nanovlm.viz.tiles import image_figure, shrunk_row

# %% [markdown]
# ## The question: where did the small print go?
#
# An encoder takes pictures of one size: 64 x 64 pixels for the pocket model, 224 x 224 for the 222M model, 512 x 512
# for SmolVLM-256M. Whatever you send is resized to that first. For a cat on a sofa this is enough. What about a page of
# text?
#
# Here is a page: 64 signs of the Thimble, each 64 pixels wide, so 512 x 512 in all. Letters are 12 or 13 pixels tall.

# %%
signs = [thimble_sample("glyphs", "test", i)["images"][0] for i in range(64)]
page = Image.new("RGB", (512, 512))
for i, sign in enumerate(signs):
    page.paste(sign, (i % 8 * 64, i // 8 * 64))
image_figure(page, "A page of 8 x 8 coloured signs with two to four characters each, all easy to read.")

# %% [markdown]
# Now shrink the page, and look at its top left corner, four signs out of 64. The last picture is what an encoder of 64
# pixels gets of them.


# %%
def corner_at(side):
    return page.resize((side, side), Image.Resampling.LANCZOS).crop((0, 0, side // 4, side // 4))


shrunk_row([corner_at(side) for side in (512, 256, 128, 64)], [f"the page at {side}" for side in (512, 256, 128, 64)])

# %%
quiz("ch13.read")

# %% [markdown]
# ## How much is really lost?
#
# Your eye says: at 64 pixels nothing can be read. Eyes can be fooled. Grey levels between the strokes still carry
# something, and a network may read what you cannot. So measure it.
#
# The pocket model reads signs of 64 pixels. Give it the same signs shrunk by 2, by 4 and by 8. The processor enlarges
# them to 64 again, so a letter keeps its size and its place in the view. Only the detail is gone. Say a number for each
# before you run it.

# %%
pocket = VisionLanguageModel.from_pretrained(asset_path("pocket")).eval()
asked = "What does the sign say?"
texts = [thimble_sample("glyphs", "test", i)["texts"][0]["assistant"] for i in range(64)]  # of the page, in order


def answers_to(questions: list[str], images: Tensor) -> list[str]:
    """One view [3, 64, 64] for each question -> what the pocket model says."""
    batch = prepare_prompts(pocket, questions, [Image.new("RGB", (64, 64))] * len(questions))
    batch["images"] = images  # in place of the empty pictures
    return [pocket.tokenizer.decode(ids).strip() for ids in pocket.generate(**batch, max_new_tokens=8).tolist()]


def read_signs(views: Tensor) -> float:
    """The share of the 64 signs that are read right, from one view [3, 64, 64] of each."""
    said = answers_to([asked] * len(views), views)
    return sum(answer == text for answer, text in zip(said, texts, strict=True)) / len(views)


def lose_detail(sign: Image.Image, shrink: int) -> Image.Image:
    return sign.resize((64 // shrink, 64 // shrink), Image.Resampling.LANCZOS)


read = {n: read_signs(pocket.image_processor([lose_detail(sign, n) for sign in signs])) for n in (1, 2, 4, 8)}
assert read[1] > 0.9 and read[2] > 0.8 and read[4] < 0.5 and read[8] < 0.1
for shrink, share in read.items():
    print(f"shrunk by {shrink}: {share:4.0%} of the signs are read")

# %% [markdown]
# By 2 costs little, by 4 more than half, by 8 all, or all but a few. But two things are mixed here. Is the letter *gone*
# from the pixels? Or has the pocket model just never learned from blurred ones? (And a sign counts only if all its
# letters are right.) So we train something that is made for the question: a **probe**, a small network that looks at
# one letter and says which of the Thimble's 33 characters it is. One probe for each resolution, all of the same size,
# with the same number of steps. Each learns at its own resolution, so none is surprised by blur.
#
# First the letters: signs of one character, of the Thimble's own strokes, 12 or 13 pixels tall as on the page.

# %%
from nanovlm.data.thimble.drawing import COLOURS, INK, PALETTE, Draws, backdrop, rectangle, stamp, vary
from nanovlm.data.thimble.glyphs import CHARACTERS, outline

many = 1980


def one_letter(number: int) -> Image.Image:
    """64 x 64 grey pixels, a sign near the middle."""
    draws = Draws("probe", number)
    canvas = backdrop(draws, 64)
    x, y, colour = 30 + draws.below(4), 30 + draws.below(4), draws.pick(COLOURS)
    stamp(canvas, rectangle(16, 23, 4.0), x, y, 1.0, vary(draws, PALETTE[colour]))
    ink = INK if colour in ("yellow", "orange") else (252, 252, 252)
    strokes = outline(CHARACTERS[number % 33], 0.55)
    stamp(canvas, strokes, x, y, (12 + draws.below(2)) / 6, ink, rim=False)
    return canvas.convert("L")


letters = [one_letter(number) for number in range(many + 660)]  # the last 660 are for the test
labels = torch.arange(many + 660) % 33
shrunk_row(letters[:4], [f"the character {CHARACTERS[i]}" for i in range(4)], "Four grey signs of 64 x 64 pixels")


# %%
def at_resolution(shrink: int) -> Tensor:
    """All letters, shrunk so many times and enlarged again: [letters, 1, 32, 32] in [-1, 1]."""
    small = [letter.resize((64 // shrink, 64 // shrink), Image.Resampling.LANCZOS) for letter in letters]
    large = [letter.resize((64, 64), Image.Resampling.BICUBIC).crop((16, 16, 48, 48)) for letter in small]
    return torch.from_numpy(np.stack(large)).float()[:, None] / 127.5 - 1


def probe(views: Tensor, steps: int) -> float:
    """Train on all but the last 660, return the share of those that it reads."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=5, stride=2, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 8 * 8, 33),
    )
    optimizer = torch.optim.AdamW(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    for _ in range(steps):
        batch = torch.randint(many, (64,))
        loss = F.cross_entropy(network(views[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return (network(views[many:]).argmax(dim=1) == labels[many:]).float().mean().item()


# %% [markdown]
# First the two ends: full size, and shrunk by 8, which is the page at 64 pixels. There a letter is a pixel and a half
# tall. Say a number for it before you run the cell. (Some seconds.)

# %%
steps = budget().pick(ci=150, laptop=400)
reads = {shrink: probe(at_resolution(shrink), steps) for shrink in (1, 8)}
print(f"full size: {reads[1]:.0%} of the letters are read; shrunk by 8: {reads[8]:.0%}; chance: {1 / 33:.0%}")

# %% [markdown]
# And in between?

# %%
from nanovlm.viz.tiles import share_bars

reads |= {shrink: probe(at_resolution(shrink), steps) for shrink in (2, 4)}
in_the_table = budget().pick(ci=(0.79, 0.15), laptop=(0.95, 0.28))  # of the text below: a quarter, an eighth
assert reads[2] > max(reads[4], 0.9) and reads[4] - reads[8] > reads[1] - reads[4] > 0
assert abs(reads[4] - in_the_table[0]) < 0.08 and abs(reads[8] - in_the_table[1]) < 0.08
assert read[4] < reads[4] ** 3

print(f"{steps} steps. Three letters in a row, shrunk by 4: {reads[4] ** 3:.0%}; ", end="")
print(f"the pocket model's signs: {read[4]:.0%}")
names = {1: "full size, 12 px tall", 2: "1/2, 6 px", 4: "1/4, 3 px", 8: "1/8, 1.5 px"}
share_bars({name: reads[shrink] for shrink, name in names.items()}, chance=1 / 33, margin=660**-0.5)

# %% [markdown]
# **Your eye is too strict.** A letter three pixels tall is mush to you, and the probe still reads most of them. To shrink
# by 2 costs it next to nothing; the step from a quarter to an eighth costs most. But how much? That depends on how long
# the probe has trained:
#
# | steps | shrunk by 4 | shrunk by 8 | who runs it |
# |---|---|---|---|
# | 150 | 79 % | 15 % | the stored page (`NANOVLM_BUDGET=ci`) |
# | 400 | 95 % | 28 % | your machine |
# | 1,500 | 98 % | 56 % | we, once, with the same seed, 0 |
#
# The pixels are the same in each row. So a bar does not say how much is *left* in few pixels. It says how much this
# probe has learned to get out of them, and what is left is at least that. With more training it gets out more.
#
# **And the pocket model's fall?** A sign has three letters on average, and all must be right. So the cell cubes the
# probe's share: 49 % after 150 steps, 85 % after 400. The pocket model, which never saw a sign shrunk, reads fewer
# than either: the cell prints its share beside the probe's. Some of its fall is lost detail, and some is blur that it
# never learned from. How much of each, this page cannot say. It can for the probe, which did learn from blur: what that
# misses is detail that it could not get out in so many steps.
#
# Be careful with such numbers. The probe's letters are clean, alone, and it knows where they are. (The thin line at a
# bar's end: with 660 letters, such a share is sure to 4 points.)
#
# ## Two ways out
#
# **A larger picture for the encoder.** SigLIP's positions can be resized (chapter 01). But attention in the encoder
# compares each patch with each other one. The cell counts those pairs for a picture of 2,048 pixels, in patches of 16:
# once as a whole, once as 16 tiles of 512.

# %% tags=["nbval-check-output"]
whole_pairs = (2048 // 16) ** 4
tile_pairs = 16 * (512 // 16) ** 4
print(f"as a whole: {whole_pairs:,} pairs; as 16 tiles: {tile_pairs:,}; {whole_pairs // tile_pairs} times less")

# %% [markdown]
# **Tiles.** Cut the picture into squares of the encoder's own size. Each is an ordinary picture to it, with no new
# positions. The decoder reads one tile after the other, and learns in training what that means. SmolVLM and nanoVLM do
# this.
#
# Does it help? Take 16 pages of 2 x 2 signs, 128 pixels wide, and read them in two ways:
#
# - **squashed**: the page becomes one view of 64 pixels, and you ask once. We count a sign as read if the answer is its
#   text, whichever of the four it is.
# - **tiles**: four views of 64 pixels, and you ask "What does the sign say?" of each.

# %%
from nanovlm.config import TilingConfig
from nanovlm.data.tiling import TiledImageProcessor

tiler = TiledImageProcessor(64, tiling=TilingConfig(max_side=256))  # tiles of 64 pixels, at most 4 x 4 of them

pages = [Image.new("RGB", (128, 128)) for _ in range(16)]
for i, sign in enumerate(signs):
    pages[i // 4].paste(sign, (i % 2 * 64, i // 2 % 2 * 64))
squashed = pocket.image_processor(pages)  # [16, 3, 64, 64]
tiles = torch.cat([tiler(page_of_four)[:4] for page_of_four in pages])  # [64, 3, 64, 64], without the whole
shrunk_row([pages[0], pages[0].resize((64, 64), Image.Resampling.LANCZOS)], ["four tiles", "one view"])

# %%
start = time.perf_counter()
said = answers_to([asked] * len(squashed), squashed)
between = time.perf_counter()
by_tile = read_signs(tiles)
end = time.perf_counter()

by_page = sum(answer in texts[4 * i : 4 * i + 4] for i, answer in enumerate(said)) / len(signs)
assert by_tile > 0.9 and by_page < 0.1
tokens = pocket.config.num_image_tokens
print(f"squashed: {by_page:4.0%} of 64 signs read, {tokens:2} image tokens a page, {between - start:.2f} s")
print(f"tiles:    {by_tile:4.0%} of 64 signs read, {4 * tokens:2} image tokens a page, {end - between:.2f} s")

# %% [markdown]
# From next to none to nearly all of them, for four times the tokens. The time grows as well (the seconds are this
# machine's). What that means for real sizes comes at the end.
#
# ### Wait: was it the pixels?
#
# You have a reason to doubt. Most signs shrunk by 2 were read above, and squashing a page of 128 to 64 shrinks by 2 as
# well. The detail is there! So test it: cut each quarter out of the squashed page and enlarge it to 64. These are the
# same few pixels, in the size of a tile. And a second doubt: the question does not say which of four signs is meant. So
# squash pages with *one* sign, too. Then repeat both with pages of 4 x 4 places, which lose more.


# %%
def squash_alone(number: int, side: int) -> tuple[Image.Image, Image.Image]:
    """A page of side x side places with one sign, squashed to one view; and the sign's place cut out of that view."""
    column, row = number % side, number // side % side
    sheet = Image.new("RGB", (64 * side, 64 * side), (244, 244, 242))
    sheet.paste(signs[number], (64 * column, 64 * row))
    view, place = sheet.resize((64, 64), Image.Resampling.LANCZOS), 64 // side
    return view, view.crop((column * place, row * place, (column + 1) * place, (row + 1) * place))


by_view = {}
for side in (2, 4):
    views, places = zip(*(squash_alone(number, side) for number in range(64)), strict=True)
    by_view[f"{side} x {side}, squashed"] = read_signs(pocket.image_processor(list(views)))
    by_view[f"{side} x {side}, its place enlarged"] = read_signs(pocket.image_processor(list(places)))
by_view["its own tile"] = by_tile

small, enlarged, smaller, blurred, _ = by_view.values()
assert max(small, smaller) < 0.1 and enlarged > 0.8 and blurred < 0.5 and abs(blurred - read[4]) < 0.15
share_bars(by_view, chance("glyphs")["read"])

# %% [markdown]
# So it is not that simple. The question was not the trouble: alone on its page a sign is not read either. But the pixels
# were not the only trouble:
#
# - On a page of 2 x 2 the pixels suffice for most signs: enlarged, these are read. In the squashed view the letters are
#   half as tall as any that the model learned from, and the sign has a quarter of the image tokens. What is missing is
#   **size and tokens**, and hardly detail. (Training on small letters would mend a part of that. The probe above did
#   train on its resolution, but it always saw the letter enlarged.)
# - On a page of 4 x 4 that is not enough. Enlarged, fewer than half of the signs come back. But for their edges, these are
#   the signs shrunk by 4 of above: some **detail** is missing, and what is left is blur that the model never learned from.
#
# A tile gives all of it: detail, a size that the encoder knows, and its own tokens.
#
# ## What a tile does not see
#
# Now the other way round. Draw scenes with shapes at 128 pixels and cut them into 2 x 2 tiles. A tile sees its quarter
# sharply. Ask it about the whole scene; then ask the small view of the whole.

# %%
samples = [thimble_sample("shapes", "test", i, image_size=128) for i in range(48)]
turns = [sample["texts"][i % 6] for i, sample in enumerate(samples)]  # one of six kinds of questions each
views = torch.stack([tiler(sample["images"][0]) for sample in samples])
print(expect_shape(views, "images 5 3 64 64"))


def accuracy(images: Tensor) -> float:
    said = answers_to([turn["user"] for turn in turns], images)
    return sum(answer == turn["assistant"] for answer, turn in zip(said, turns, strict=True)) / len(turns)


one_tile, the_whole = accuracy(views[:, 0]), accuracy(views[:, -1])
guessing = sum(chance("shapes").values()) / len(chance("shapes"))
assert the_whole > 0.9 and one_tile < 0.65
sure_to = len(turns) ** -0.5  # about 95 % of such samples lie no further off
share_bars({"the top left tile alone": one_tile, "the view of the whole": the_whole}, guessing, sure_to)

# %% [markdown]
# That is why both are shown: **tiles** for what is small, and **the whole**, shrunk, for what is large. Four tiles and
# one whole are the five views in the shape above.
#
# ## How many tiles? SmolVLM's rule
#
# A picture can have any shape. SmolVLM's processor resizes it twice before it cuts
# ([transformers' code](https://github.com/huggingface/transformers/blob/main/src/transformers/models/smolvlm/image_processing_smolvlm.py)).
# First, the longer side becomes `longest`. The shorter side keeps the shape, and is made even.


# %% tags=["package:nanovlm.data.tiling.scale_to_longest"]
def _even(length: float) -> int:
    return int(length) + int(length) % 2


def scale_to_longest(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """SmolVLM's rule: the longer side becomes `longest`, the shorter one keeps the shape, rounded up to even."""
    width, height = size
    shape = width / height
    if width >= height:
        return longest, max(_even(longest / shape), 1)
    return max(_even(longest * shape), 1), longest


# %% [markdown]
# Second, both sides become multiples of the tile. This stretches the picture a little, rather than cutting off a rest
# or padding with grey.

# %% tags=["package:nanovlm.data.tiling.fill_tiles"]
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
# SmolVLM-256M has tiles of 512 and a longest side of 2,048
# ([its settings](https://huggingface.co/HuggingFaceTB/SmolVLM2-256M-Video-Instruct/blob/main/preprocessor_config.json)).
# A screenshot, a banner, the banner upright:

# %% tags=["nbval-check-output"]
for size in ((1920, 1080), (4000, 300), (300, 4000)):
    first = scale_to_longest(size, 2048)
    width, height = fill_tiles(first, 512)
    print(f"{size} -> {first} -> {(width, height)}: {height // 512} rows, {width // 512} columns")

# %% [markdown]
# Look at the banner. Its 300 pixels of height become 154, then 512: stretched more than three times. The weights
# were trained with this rule, so keep to it. But a circle on a banner is no circle in its tiles. (You write both steps
# in exercise 13.1.)
#
# Predict, before you go on:

# %%
quiz("ch13.icon")

# %% [markdown]
# Not everybody enlarges. **nanoVLM** resizes once: the longer side goes up to the next multiple of the tile (or down to
# `max_side`), the shorter one keeps the shape and is rounded up to a multiple. **Our default** is SmolVLM's rule, but a
# picture whose longer side is at most `max_side` skips the first step.
#
# Now move the sliders: width and height of the picture, and whose rule. Find a picture that costs as few tokens as
# possible under each; the next section has the answer. (Without a kernel you see an icon of 64 x 64 under SmolVLM's rule.)

# %%
from nanovlm.viz.tiles import Plan, plan_figure

RULES = {
    "SmolVLM": TilingConfig("smolvlm", max_side=2048, upscale=True),
    "nanoVLM": TilingConfig("nanovlm", max_side=2048),
    "our default": TilingConfig(),
}


def plan(width, height, rule):
    tiling = RULES[rule]
    rows, columns = TiledImageProcessor(512, tiling=tiling).grid((width, height))
    num_tiles = rows * columns if rows * columns > 1 else 0
    smolvlm = tiling.layout == "smolvlm"
    special = num_tiles * (2 if smolvlm else 1) + (3 if smolvlm else 1)
    return Plan((width, height), (columns * 512, rows * 512), rows, columns, not smolvlm, 64, special)


def draw_plan(width, height, rule):
    return plan_figure(plan(width, height, rule), context=8192)


lever(draw_plan, width=(64, 4096, 64), height=(64, 4096, 64), rule=list(RULES))

# %% [markdown]
# ## An icon in 17 tiles
#
# SmolVLM's rule *always* enlarges. An icon of 64 x 64 becomes 2,048 x 2,048: 16 tiles and the whole, each of which
# shows nothing that was not in the 4,096 pixels before. The cost is the same for a postage stamp and for a newspaper.
#
# So the cheapest picture is not a small one but a thin one: a strip, four times as long as wide or more, is one row of
# four tiles and the whole, 331 tokens. Under the other two rules it is any picture up to 512 x 512: one view.

# %% tags=["nbval-check-output"]
print("views of a square picture")
for name in RULES:
    counts = [f"{side} px: {plan(side, side, name).views:2}" for side in (64, 512, 513, 1024, 2048, 4000)]
    print(f"{name:>11}  {'   '.join(counts)}")

lengths = range(64, 4097, 64)
fewest = {name: min(plan(width, height, name).tokens for width in lengths for height in lengths) for name in RULES}
assert fewest["SmolVLM"] == plan(256, 64, "SmolVLM").tokens == plan(64, 4096, "SmolVLM").tokens == 331
assert plan(1499, 1000, "nanoVLM")[2:4] == (3, 3) and plan(1499, 1000, "our default")[2:4] == (2, 3)
assert all(fewest[name] == plan(512, 512, name).tokens == plan(64, 64, name).tokens for name in list(RULES)[1:])
print("fewest tokens of any picture:", ", ".join(f"{name} {tokens}" for name, tokens in fewest.items()))

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
# Under our own default (`TilingConfig()`) an icon stays one view, and a picture of 513 pixels becomes 2 x 2 tiles and
# the whole. It is one setting, `upscale`, and it must be what the model was trained with: load SmolVLM, and `upscale`
# is on, because that is what its weights know. (nanoVLM's row is equal here. But 1,499 x 1,000 is 3 x 3 tiles to it
# and 2 x 3 to us: it does not cut lengths down to whole pixels in between.)
#
# ## Cut
#
# Cutting is the unfolding of chapter 03 with pixels for patches. Twenty-four pixels, tiles of 2 x 2:

# %% tags=["nbval-check-output"]
pixels = torch.arange(24).reshape(1, 4, 6)  # [channels, height, width]
tiles = pixels.reshape(1, 2, 2, 3, 2)  # channels, row of tiles, row in the tile, column of tiles, column in the tile
tiles = tiles.permute(1, 3, 0, 2, 4).reshape(6, 1, 2, 2)
assert tiles[1].equal(pixels[:, 0:2, 2:4])
tiles[1]

# %% [markdown]
# You write it in exercise 13.2, with the view of the whole behind. The cell takes yours if you have solved that.

# %%
split_image = use("tiles.split")
expect_shape(split_image(torch.rand(3, 1536, 2048), 512), "13 3 512 512")

# %% [markdown]
# The package's processor does all of it: resize, cut, resize the whole. Here is our page under SmolVLM's rule, scaled
# down by eight: tiles of 64, longest side 256. The numbers are the order in which the decoder reads.

# %%
from nanovlm.viz.tiles import tiles_figure

small_smolvlm = TiledImageProcessor(64, tiling=TilingConfig("smolvlm", max_side=256, upscale=True))
tiles_figure(small_smolvlm(page), *small_smolvlm.grid(page.size))

# %% [markdown]
# Back to the probe. Shrunk from 512 to 256, a letter in a tile is half its size. In the whole it is an eighth. So the
# two bars of above, 1/2 and 1/8, are what this probe gets from a tile and from the whole.

# %%
print(f"letters that the probe reads: {reads[2]:.0%} in a tile, {reads[8]:.0%} in the view of the whole")
assert reads[2] > reads[8] + 0.15

# %% [markdown]
# ### What cutting costs: the seam
#
# Tiles do not overlap. What lies on a border is cut in two, and the encoder never sees the halves side by side: only
# the decoder can join them. How much does half a letter tell?

# %%
quiz("ch13.cut")

# %%
halves = at_resolution(2)
halves[..., 16:] = 0  # the right half lies in the neighbouring tile
half = probe(halves, steps)
print(f"whole letters: {reads[2]:.0%}; left halves alone: {half:.0%}")
assert 0.6 < half < reads[2] - 0.05

# %% [markdown]
# Worse, and yet far from nothing. B and E have the same left half here, F and P as well, and 9 and S: no training tells
# those apart. The view of the whole has no seams, which is one more reason to keep it.
#
# ### And back to one map
#
# Sometimes you want the tiles' tokens in one map: to draw what the decoder looks at over the *picture*, say. It is
# cutting backwards, without the whole, and you write it in exercise 13.5. To see that it works, take something that you
# can check for a token: the mean colour of 8 x 8 pixels.

# %%
from nanovlm.pixels import scale_pixels

rejoin = use("tiles.rejoin")

views = small_smolvlm(page)  # [17, 3, 64, 64]
tokens = F.avg_pool2d(views, 8).flatten(2).transpose(1, 2)  # [17, 64, 3]
one_map = rejoin(tokens, 4, 4)

resized = small_smolvlm.pixels(page.resize((256, 256), Image.Resampling.LANCZOS))  # uint8 [3, 256, 256]
at_256 = scale_pixels(resized, small_smolvlm.pixel_range)
assert torch.allclose(one_map, F.avg_pool2d(at_256, 8).permute(1, 2, 0), atol=1e-5)
expect_shape(one_map, "32 32 3")

# %% [markdown]
# ## What stands in the text
#
# The encoder gets a batch of squares. It does not know which is which: each tile has the same positions, 1 to 1,024. So
# *the text* says where a tile was. SmolVLM writes a token for the place in front of each tile, and the whole comes
# last:

# %% tags=["package:nanovlm.data.tiling._smolvlm_text"]
FAKE, SMOLVLM_GLOBAL = "<fake_token_around_image>", "<global-img>"


def place_token(row: int, column: int) -> str:
    return f"<row_{row + 1}_col_{column + 1}>"


def _smolvlm_text(rows: int, columns: int, tile: str) -> str:
    whole = f"{FAKE}{SMOLVLM_GLOBAL}{tile}{FAKE}"
    if rows * columns == 1:
        return whole
    lines = ("".join(FAKE + place_token(r, c) + tile for c in range(columns)) + "\n" for r in range(rows))
    return "".join(lines) + "\n" + whole


# %% tags=["nbval-check-output"]
print(_smolvlm_text(2, 2, "<image>" * 3))

# %% [markdown]
# (You write this in exercise 13.3.) Three image tokens a tile here, 64 in SmolVLM-256M. `<fake_token_around_image>`
# marks that a tile begins; the name is inherited from the Idefics models. Each `<row_1_col_1>` is *one* token in the
# vocabulary, with an embedding of its own. Spelled out as text it would be many:

# %% tags=["nbval-check-output"]
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

raw = Tokenizer(models.BPE({letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
raw.decoder = decoders.ByteLevel()
spelled = len(raw.encode("<row_1_col_1>").tokens)

places = [place_token(row, column) for row in range(4) for column in range(4)]
names = ["<|im_start|>", "<|im_end|>", "<image>", "<end_of_utterance>", FAKE, SMOLVLM_GLOBAL, *places]
raw.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
print(f"letter by letter: {spelled} tokens; as a token of its own: {len(raw.encode('<row_1_col_1>').tokens)}")

# %% [markdown]
# (This toy tokenizer has no merges, so it goes letter by letter; a trained one needs fewer, but more than one.) It is
# not only a matter of length. The authors of SmolVLM report that with spelled-out places their small models got
# stuck in learning to read text, and that learned place tokens cured it
# ([Marafioti et al. 2025](https://arxiv.org/abs/2504.05299), on learned positional tokens).
#
# ### nanoVLM's way
#
# nanoVLM (450M, [code](https://github.com/huggingface/nanoVLM)) cuts as well, by the rule that you met at the sliders.
# Its text is another one, too: **the whole first**, no fake tokens, no line breaks.

# %% tags=["nbval-check-output"]
nanovlm_style = TiledImageProcessor(64, tiling=TilingConfig("nanovlm", max_side=256))
print(nanovlm_style.image_texts([Image.new("RGB", (128, 70))], "<|image|>", 3)[0])

# %% [markdown]
# Which is better? Nobody has shown it, as far as we know. But for trained weights it is not a matter of taste. Predict:

# %%
quiz("ch13.order")

# %% [markdown]
# We need SmolVLM to answer that. For the order its trained weights do not matter, so its *code* is enough: build a
# small one with random weights, and save it as transformers saves it. (These cells need transformers 5: `pip install
# transformers`.)

# %%
from transformers import Idefics3Processor, PreTrainedTokenizerFast, SmolVLMConfig, SmolVLMForConditionalGeneration
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.utils import logging

logging.disable_progress_bar()
torch.manual_seed(0)
theirs = SmolVLMForConditionalGeneration(
    SmolVLMConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 4,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "vocab_size": raw.get_vocab_size(),
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
            "pad_token_id": raw.token_to_id("<|im_end|>"),
        },
        scale_factor=4,
        image_token_id=raw.token_to_id("<image>"),
        pad_token_id=raw.token_to_id("<|im_end|>"),
    )
).eval()
with torch.no_grad():  # louder than a fresh model, so that a difference would show
    for weight in theirs.parameters():
        if weight.ndim > 1:
            weight.normal_(std=weight.shape[-1] ** -0.5)

# %% [markdown]
# Its processor: the same class and the same rules as SmolVLM-256M's, with tiles of 32 pixels. The chat template is a
# short one, written here.

# %%
TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}: "
    "{% for part in message['content'] %}{{ part['text'] if part['type'] == 'text' else '<image>' }}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
their_processor = Idefics3Processor(
    Idefics3ImageProcessorPil(size={"longest_edge": 4 * 32}, max_image_size={"longest_edge": 32}),
    PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<end_of_utterance>",
        pad_token="<|im_end|>",
        extra_special_tokens={"image_token": "<image>"},
    ),
    image_seq_len=4,
    chat_template=TEMPLATE,
)
directory = tempfile.mkdtemp()
theirs.save_pretrained(directory)
_ = their_processor.save_pretrained(directory)

# %% [markdown]
# ## Is this SmolVLM?
#
# Now load that directory with *our* model. `from_pretrained` reads transformers' names, and fails on a missing or
# unexpected tensor. Then ask both the same question about the same picture, which is cut into several tiles.

# %% tags=["nbval-check-output"]
ours = VisionLanguageModel.from_pretrained(directory).eval()

question, image = "How many signs are red?", page.crop((0, 0, 512, 300))
messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
prompt = their_processor.apply_chat_template(messages, add_generation_prompt=True)
their_inputs = their_processor(text=prompt, images=[image], return_tensors="pt")
our_inputs = prepare_prompts(ours, [question], [image])

assert our_inputs["images"].equal(their_inputs["pixel_values"][0])  # the same pixels, bit by bit
assert our_inputs["input_ids"].equal(their_inputs["input_ids"])  # the same text
with torch.no_grad():
    expected, logits = theirs(**their_inputs).logits, ours(**our_inputs).logits
assert expected.std() > 0.5
torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
print(f"{len(our_inputs['images'])} views of {expect_shape(our_inputs['images'][0], '3 32 32')}:", end=" ")
print(f"equal pixels, equal ids, equal logits, {expect_shape(logits, '1 tokens vocabulary')}")

# %% [markdown]
# Tiles, text, encoder, pixel shuffle, projector, decoder: all of it is SmolVLM's computation. Nothing is left to trust
# but the weights.
#
# ## What breaks: the right tiles in the wrong order
#
# Now the quiz. Put the pixels of the whole first, and leave the text as it is. Then swap two neighbouring tiles.

# %% tags=["nbval-check-output"]
right_order = our_inputs["images"]
whole_first = right_order.roll(1, dims=0)
swapped = right_order[[1, 0, *range(2, len(right_order))]]
with torch.no_grad():
    for name, images in (("right", right_order), ("whole first", whole_first), ("two tiles swapped", swapped)):
        changed = ours(**{**our_inputs, "images": images}).logits
        moved = bool((changed[0, -1] - expected[0, -1]).abs().max() > 1e-3)
        print(f"{name}: {expect_shape(changed, '1 tokens vocabulary')}, last logits {'moved' if moved else 'the same'}")

# %% [markdown]
# No error, no NaN, and all shapes fit. But the text says `<row_1_col_1>`, and the pixels behind it are of another place.
# Only a comparison of numbers shows it, which is why every loader needs a cell like the one above.
#
# ## What a picture costs
#
# Tokens first. You counted one picture in the lever; here are SmolVLM-256M's parts: 64 image tokens for each view, two
# special tokens for each tile, three for the whole.

# %% tags=["nbval-check-output"]
for rows, columns in ((1, 1), (2, 2), (3, 4), (4, 4)):
    text = _smolvlm_text(rows, columns, "<image>" * 64)
    special = text.count("<") - text.count("<image>")
    print(f"{rows} x {columns}: {text.count('<image>'):5,} image tokens, {special:2} special")

# %% [markdown]
# The line breaks come on top, one or two tokens a row. Exercise 13.4 counts a whole prompt.
#
# Then time. Encode 1, 5 and 17 views with the pocket model's encoder. The views are one batch, so a GPU would do them
# side by side; a processor core does them one by one.

# %%
with torch.no_grad():
    for num_views in (1, 5, 17):
        x = torch.randn(num_views, 3, 64, 64)
        start = time.perf_counter()
        for _ in range(5):
            pocket.vision_encoder(x)
        seconds = (time.perf_counter() - start) / 5
        print(
            f"{num_views:2} views: {1000 * seconds:6.1f} ms, {num_views * pocket.config.num_image_tokens} image tokens"
        )

# %% [markdown]
# Those are this machine's milliseconds, and they will be others on yours. What does not depend on the machine is the
# number of operations. With SmolVLM-256M's sizes, on the device `meta`, for 64 tokens of text:

# %% tags=["nbval-check-output"]
from torch.utils.flop_counter import FlopCounterMode

from nanovlm.config import LMConfig, ViTConfig
from nanovlm.models.language_model import LanguageModel
from nanovlm.models.vision_transformer import ViT

with torch.device("meta"):
    encoder, decoder = ViT(ViTConfig(image_size=512)), LanguageModel(LMConfig())
    for num_views in (1, 5, 17):
        num_tokens = num_views * 64 + 64
        with FlopCounterMode(display=False) as seeing:
            encoder(torch.zeros(num_views, 3, 512, 512))
        with FlopCounterMode(display=False) as reading:
            decoder(torch.zeros(1, num_tokens, 576))
        see, speak = (counter.get_total_flops() / 1e9 for counter in (seeing, reading))
        print(f"{num_views:2} views: encoder {see:5,.0f} billion, decoder {speak:3,.0f} billion")

# %% [markdown]
# Surprised? Before the first word of the answer, *seeing* costs far more than *reading*. Tokens are what people count,
# since they fill the context. The encoder's work is what you wait for. An icon in 17 views pays it 17 times.
#
# ## Several pictures
#
# Nothing new is needed: each picture has its own tiles, its own text, and the texts stand where the pictures stand in
# the prompt. The model gets one batch of all views, in order. Two pictures with our small SmolVLM:

# %% tags=["nbval-check-output"]
two = [page.crop((0, 0, 512, 120)), page.crop((0, 0, 64, 64))]
batch = prepare_prompts(ours, ["What differs?"], [two])
views_of = [ours.image_processor.num_tiles(image.size) for image in two]
placeholders = int((batch["input_ids"] == ours.config.image_token_id).sum())
assert len(batch["images"]) == sum(views_of) and placeholders == sum(views_of) * ours.config.num_image_tokens
print(
    f"{views_of[0]} + {views_of[1]} views, {placeholders} image tokens in {batch['input_ids'].shape[1]} of the prompt"
)

# %% [markdown]
# The first picture is a strip of a page, the second a single sign of 64 pixels. The sign costs more: SmolVLM's rule
# again. To compare ten icons, switch the splitting off (`split=False`; transformers calls it
# `do_image_splitting`).
#
# nanoVLM numbers the pictures in the text, so that a question can name them:

# %% tags=["nbval-check-output"]
print(nanovlm_style.image_texts([Image.new("RGB", (64, 64))] * 2, "<|image|>", 2))

# %% [markdown]
# How many fit? SmolLM2-135M has 8,192 positions:

# %% tags=["nbval-check-output"]
for rows, columns in ((1, 1), (3, 4), (4, 4)):
    one = sum(_smolvlm_text(rows, columns, "<image>" * 64).count(word) for word in ("<", "\n"))
    print(f"{rows} x {columns}: {one:5,} tokens each, {8192 // one} pictures fit, before any question")

# %% [markdown]
# (A line break is counted as one token.) Fitting is not understanding: a model compares pictures only if its training
# data did so. The pocket model's did not. Give it two pictures and it answers about something; do not believe it.
#
# ## Out into the world
#
# The other direction works as well. Here the pocket model becomes a SmolVLM directory, which transformers loads by
# itself, with nothing of ours installed:

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
    difference = as_smolvlm(**inputs).logits - pocket(**prepare_prompts(pocket, [question], [scene])).logits
assert difference.abs().max() < 1e-3
answer = as_smolvlm.generate(**inputs, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
their_answer = as_processor.decode(answer, skip_special_tokens=True)
our_answer = pocket.generate(image=scene, prompt=question)
assert their_answer == our_answer
print(f"{question} {type(as_smolvlm).__name__}: {their_answer}. The pocket model: {our_answer}.")

# %% [markdown]
# On the command line: `nanovlm export --model pocket --to smolvlm --out DIR`.
#
# ## What people write about SmolVLM, and how to check
#
# You hold the whole model in your hands now, so you need not believe what is written about it. Five claims, each with
# where we found it. We do not list them to blame: they are easy to repeat and easy to test.
#
# 1. The encoder is "a lightweight convolutional or transformer-based backbone (e.g., Swin Transformer)", and its output
#    goes through "adaptive pooling" ([an article of January
#    2025](https://uv020.medium.com/smolvlm-a-small-yet-mighty-vision-language-model-3660a119319e), the part that is free).
# 2. There are "cross-attention layers in the text decoder" ([the documentation of another
#    engine](https://mintlify.wiki/kvark/meganeura/models/smolvlm2), of SmolVLM2).
# 3. The projector is an MLP (the caption of the [paper's own](https://arxiv.org/abs/2504.05299) figure, and [others
#    after it](https://markbyun.blogspot.com/2025/05/smolvlm-redefining-small-and-efficient.html)).
# 4. A picture's longest edge becomes "4512 pixels by default" ([transformers'
#    documentation](https://huggingface.co/docs/transformers/model_doc/smolvlm)).
# 5. The encoder is frozen ([the same blog](https://markbyun.blogspot.com/2025/05/smolvlm-redefining-small-and-efficient.html)).
#
# The first three are about the architecture, so ask transformers' code, which is what runs the published weights:

# %% tags=["nbval-check-output"]
kinds = {type(module).__name__ for module in theirs.modules()}
print("Swin, or pooling:  ", sorted(kind for kind in kinds if "swin" in kind.lower() or "pool" in kind.lower()))
print("cross-attention:   ", [name for name, _ in theirs.named_modules() if "cross" in name.lower()])
print("decoder block:     ", [name for name, _ in theirs.model.text_model.layers[0].named_children()])
connector = theirs.model.connector.modality_projection
print("projector:         ", type(connector).__name__, "=", [type(m).__name__ for m in list(connector.modules())[1:]])

# %% [markdown]
# No Swin, no pooling. No cross-attention: the decoder has self-attention only, over text and picture mixed. And
# the projector is *called* an MLP in the code too, but holds a single linear layer. (The names of classes could
# mislead once more. The parity cell cannot: our model has no such parts, and its logits are equal.)
#
# A Swin encoder would look through windows, each patch at its neighbours. Change one corner and see how far it reaches
# in a single layer:

# %% tags=["nbval-check-output"]
vision = theirs.model.vision_model
hidden = torch.randn(1, 64, 32)  # 8 x 8 patches
nudged = hidden.clone()
nudged[0, 0] = torch.randn(32)
with torch.no_grad():
    layer = vision.encoder.layers[0]
    before, after = (layer(x, attention_mask=None) for x in (hidden, nudged))
    before, after = (x[0] if isinstance(x, tuple) else x for x in (before, after))
reached = int(((before - after).abs().amax(dim=-1) > 1e-7).sum())
print(f"one patch changed, {reached} of 64 moved")

# %% [markdown]
# The fourth claim is about a default, so ask for the default. And for what the page meant:

# %% tags=["nbval-check-output"]
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

defaults = SmolVLMImageProcessorPil()
print("longest edge:", defaults.size["longest_edge"], "tile:", defaults.max_image_size["longest_edge"])
print("what the page meant:", 4 * 512)

# %% [markdown]
# The page, in the copy that we read, has lost an asterisk: 4*512 is meant. Even that is not the default of the code
# that you have just asked: 364 is the tile of Idefics3, SmolVLM's ancestor. In practice it does not matter, because
# each checkpoint brings its own settings: 2,048 and 512 for SmolVLM2-256M, 1,536 and 384 for the 2.2B
# ([here](https://huggingface.co/HuggingFaceTB/SmolVLM-Instruct/blob/main/preprocessor_config.json)). It matters when
# you build a processor by hand: read the numbers from the checkpoint.
#
# The fifth claim no code can decide: a file of weights does not say which of them were trained. What we can say is that
# the [configuration of
# SmolVLM2-2.2B](https://huggingface.co/HuggingFaceTB/SmolVLM2-2.2B-Instruct/blob/refs%2Fpr%2F21/config.json) names the
# checkpoint it came from, `final-visionUnfrozen-balanced`. That is a hint against it and not a proof. Somebody with
# both files could compare the encoder's weights with SigLIP's.
#
# So the recipe. For the **architecture**: list the modules, and compare logits. For **defaults**: print them. For the
# **training**: look for the authors' words, and say so where there are none.

# %% [markdown]
# ## Where this lives in the package
#
# - `nanovlm/data/tiling.py`: the rules for sizes, cutting, and the text; `scale_to_longest`, `fill_tiles` and the text
#   of this page are that file's own, and the builder checks it.
# - `nanovlm/config.py`: `TilingConfig`, the five settings. A model without one squashes every picture to one view.
# - `nanovlm/models/formats/`: SmolVLM's and nanoVLM's files, read; `nanovlm/weights/export.py`: written.
#
# What you take along:
#
# - A resize drops detail, and how much can still be read depends on who was trained to read it. Tiles keep the detail, and
#   show it in a size that the encoder knows, with tokens of its own. The view of the whole keeps what is larger than a
#   tile.
# - The text says where a tile was. The wrong order fits every shape.
# - Tokens fill the context, but the encoder's work is what you wait for. Do not enlarge what has nothing to show.
# - Do not believe an article, nor us. Load both, and compare the numbers.

# %% [markdown] tags=["stamped"]
# ## Your turn
#
# [Open the exercises](../exercises/13_high_resolution.ipynb) ([in Colab][exercises]): 5 of them, about 48 minutes.
#
# [exercises]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/exercises/13_high_resolution.ipynb
#
# | | exercise | difficulty | minutes |
# |---|---|---|---|
# | 13.1 | How many rows, how many columns? (`tiles.grid`) | ●●○ | 10 |
# | 13.2 | Cut a picture into tiles (`tiles.split`) | ●●○ | 10 |
# | 13.3 | What stands for a picture in the text (`tiles.tokens`) | ●●○ | 12 |
# | 13.4 | What the pictures of a prompt cost (`tiles.cost`) | ●○○ | 6 |
# | 13.5 | One map from many tiles (`tiles.rejoin`) | ●●○ | 10 |
