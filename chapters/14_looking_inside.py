# %% [markdown]
# # 14 Looking inside
#
# What happens inside the model: attention over the picture, experiments that pull explanations apart, heads taken away,
# attention followed through all blocks, and a decoder whose layers are read as words. Three quarters of an hour; the code
# runs in a minute.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [← 13 High resolution and many pictures](13_high_resolution.ipynb) ·
# [15 Your own pictures →](15_own_pictures.ipynb) ·
# [exercises](../exercises/14_looking_inside.ipynb) ·
# [notation and terms](notation.md)
#
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/chapters/14_looking_inside.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/chapters/14_looking_inside.ipynb

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
import math

import torch
from PIL import Image, ImageOps
from torch import nn

from nanovlm import VisionLanguageModel
from nanovlm.assets import asset_path
from nanovlm.course import Cells, budget, expect_shape, lever, quiz, use
from nanovlm.inference.prompts import prepare_prompt
from nanovlm.models.vision_transformer import ViT, ViTBlock
from nanovlm.viz.pixel_shuffle import images_row

# %% [markdown]
# **After this chapter you can**
#
# 1. draw what a patch attends to, and test by experiment what a head responds to,
# 2. find out by ablation whether a model needs a part, and say why a map alone cannot tell,
# 3. read the vectors in the middle of a decoder with the logit lens.
#
# You need chapters 02, 04 and 06. Of that time, about half is reading and half is code; the exercises come on top.

# %% [markdown]
# ## Attention over the picture
#
# The pocket model's encoder has two blocks of four heads and is 128 wide. We want the attention weights inside it,
# which `attend` does not return.

# %%
model = VisionLanguageModel.from_pretrained(asset_path("pocket")).eval()
encoder = model.vision_encoder
photo = Image.open(asset_path("images/shapes.png")).convert("RGB")
model.generate(image=photo, prompt="Where is the red star?")

# %% [markdown]
# So we walk through the encoder once more and keep the weights. (`split_heads` is yours, if you have solved exercise 2.2.)

# %%
split_heads = use("vit.split_heads")


# %%
def attention_maps(encoder, images):
    """Each patch's attention weights. [num_blocks, B, num_heads, N, N]"""
    x, maps = encoder.patch_embedding(images), []
    for block in encoder.blocks:
        qkv = block.attn.qkv_proj(block.ln1(x))
        q, k, _ = split_heads(qkv, block.attn.num_heads)
        maps.append((q @ k.mT / math.sqrt(q.shape[-1])).softmax(dim=-1))
        x = block(x)
    return torch.stack(maps)


# %% tags=["nbval-check-output"]
_, pixels = prepare_prompt(
    model, "Where is the red star?", photo
)  # the picture as a tensor, [1, 3, 64, 64]
with torch.inference_mode():
    maps = attention_maps(encoder, pixels)
assert torch.allclose(maps.sum(dim=-1), torch.tensor(1.0))
expect_shape(maps, "2 1 4 64 64")

# %% [markdown]
# Each block and head has a table of 64 x 64 weights, which is too much to read. So we choose a patch and paint its row
# over the picture. Patches are counted from 0 in reading order, eight in a row.
#
# With which head should we begin? This picture has a shape in each quarter. Take the four patches in the middle of a
# shape: how much of their attention goes to which quarter? An even share would be 25 %. Some heads keep little for their
# own quarter and give most of it to one of the others. We call the head that does so most of all the **seeker**.


# %%
def by_quarter(maps):
    """The shares of the picture's quarters, in reading order. [..., N] -> [..., 4]"""
    return maps.unflatten(-1, (2, 4, 2, 4)).sum(dim=(-3, -1)).flatten(-2)


MIDDLES = [
    [9, 10, 17, 18],
    [13, 14, 21, 22],
    [41, 42, 49, 50],
    [45, 46, 53, 54],
]  # four patches in each quarter
from_shapes = by_quarter(maps[1, 0])[:, MIDDLES].mean(
    dim=2
)  # [num_heads, 4 that look, 4 that are looked at]
at_home = from_shapes.diagonal(dim1=1, dim2=2).mean(dim=1)
elsewhere = (
    (from_shapes * (1 - torch.eye(4))).amax(dim=2).mean(dim=1)
)  # what the favourite among the others gets
seeker = elsewhere.argmax().item()
assert elsewhere[seeker] > 0.55 and at_home[seeker] < 0.2
print(f"{'block 1':8} {'own quarter':>12} {'favourite other':>16}")
for head, (own, other) in enumerate(zip(at_home.tolist(), elsewhere.tolist(), strict=True)):
    print(
        f"head {head:<3} {own:12.0%} {other:16.0%}" + ("   <- the seeker" if head == seeker else "")
    )

# %%
from nanovlm.viz.vit import patch_attention


def looks(block, head, patch):
    return patch_attention(photo, maps[:, 0], block, head, patch)


lever(
    looks,
    block=[0, 1],
    head=[0, 1, 2, 3],
    patch=Cells(photo, 8),
    start={"block": 1, "head": seeker, "patch": 17},
)

# %% [markdown]
# Patch 17 is a piece of the star. In block 0 its four heads spread their attention widely, while in block 1 the seeker
# attends to one of the other shapes. Click on the star's other patches, then on the other shapes: which shape attends to
# which? Then click on the empty parts, from which the same head spreads its attention widely.
#
# The table gives the same in numbers, over the four patches in the middle of the star and over all patches that show
# nothing but background.


# %%
def is_background(image, patch):
    """Whether all pixels of the patch are nearly white."""
    row, column = divmod(patch, 8)
    crop = image.resize((64, 64)).crop((8 * column, 8 * row, 8 * column + 8, 8 * row + 8))
    return min(low for low, _ in crop.getextrema()) > 200  # of 255


PLACES = ("top left", "top right", "bottom left", "bottom right")
THERE = ("red star", "yellow triangle", "blue circle", "purple square")
star = MIDDLES[PLACES.index("top left")]
empty = [patch for patch in range(64) if is_background(photo, patch)]
from_star, from_empty = (by_quarter(maps[1, 0, seeker, rows]).mean(dim=0) for rows in (star, empty))
target = from_star.argmax().item()  # the quarter that the star looks at
assert THERE[target] != "red star" and from_star[target] > 0.5 > 0.4 > from_empty.max()
assert maps[0, 0, :, 17].max() < 0.1  # block 0 looks widely about
print(f"{'':31} {'star':>5} {'background':>11}")
for place, shape, of_star, of_empty in zip(
    PLACES, THERE, from_star.tolist(), from_empty.tolist(), strict=True
):
    print(f"to {place:12} {shape:15} {of_star:5.0%} {of_empty:11.0%}")

# %% [markdown]
# What does this head respond to, seen from the star?

# %%
quiz("ch14.head")

# %% [markdown]
# Experiments can pull the explanations apart. We begin with the place and mirror the picture, so that the star is at the
# top right. Does its attention stay where it went, or does it follow the shape?


# %%
def maps_of(*images):
    pixels = torch.cat([prepare_prompt(model, "?", each)[1] for each in images])
    with torch.inference_mode():
        return attention_maps(encoder, pixels)


mirrored = ImageOps.mirror(photo)
in_mirror = maps_of(mirrored)[:, 0]
from_star = by_quarter(in_mirror[1, seeker, MIDDLES[PLACES.index("top right")]]).mean(dim=0)
across = (1, 0, 3, 2)[target]  # where the shape has gone to
assert from_star.argmax() == across and from_star[across] > 0.45
print(f"from the star to the {THERE[target]}, now at the {PLACES[across]}: {from_star[across]:.0%}")
patch_attention(mirrored, in_mirror, block=1, head=seeker, patch=22)

# %% [markdown]
# It follows the shape, so it is not the place. Is it shape or colour? To decide, we need pictures in which one of the two
# changes and nothing else. The Thimble, the data set that comes with the course, draws any scene that we describe. So we
# describe the same four shapes, find what the star attends to, and put others in its place: first the other shapes in
# the same colour, then the same shape in the other colours.

# %%
from nanovlm.data.thimble.drawing import PALETTE, Draws
from nanovlm.data.thimble.shapes import SHAPES, Scene, draw


def drawn(colour=None, shape=None):
    """The scene, with another colour or shape at the target."""
    cells = [tuple(each.split()) for each in THERE]
    cells[target] = (colour or cells[target][0], shape or cells[target][1])
    return draw(
        Scene(tuple(cells), "any"), Draws("chapter 02"), 64
    )  # the same key: the same places, the same light


def looked_at(image):
    """What the target gets from the star."""
    return by_quarter(maps_of(image)[1, 0, seeker, star]).mean(dim=0)[target].item()


target = by_quarter(maps_of(drawn())[1, 0, seeker, star]).mean(dim=0).argmax().item()
colour, shape = THERE[target].split()
with_shape = {each: looked_at(drawn(shape=each)) for each in SHAPES}
with_colour = {each: looked_at(drawn(colour=each)) for each in PALETTE}
other_shape = next(each for each in SHAPES if each not in (shape, "star"))
other_colour = min(with_colour, key=with_colour.get)
images = {
    f"{colour} {shape}: {with_shape[shape]:.0%}": drawn(),
    f"{colour} {other_shape}: {with_shape[other_shape]:.0%}": drawn(shape=other_shape),
    f"{other_colour} {shape}: {with_colour[other_colour]:.0%}": drawn(colour=other_colour),
}
images_row(list(images.values()), list(images))

# %% [markdown]
# Below each picture is the share of attention that its changed shape gets from the star. Here are all of them.

# %%
print(f"{colour}, as a  " + "  ".join(f"{each} {share:.0%}" for each, share in with_shape.items()))
print(f"a {shape}, in  " + "  ".join(f"{each} {share:.0%}" for each, share in with_colour.items()))
by_shape, by_colour = (
    max(each.values()) - min(each.values()) for each in (with_shape, with_colour)
)
assert by_colour > 2 * by_shape and by_colour > 0.2
print(
    f"\nmost and least: {by_shape:.0%} apart between the shapes, {by_colour:.0%} between the colours"
)

# %% [markdown]
# Another shape in that place changes little, and another colour can change much. So the head responds to colour, as seen
# from this star. But this is one scene, whatever we change in it, so we repeat the measurement on many pictures. A patch
# in the middle of a shape attends to the three other quarters: how much does a quarter get, by what it contains? If the
# head did not respond to the contents, it would get 25 %.

# %%
import re

from nanovlm.data.thimble import thimble_sample
from nanovlm.viz.vit import share_bars

samples = [
    thimble_sample("shapes", "test", i, image_size=64)
    for i in range(budget().pick(ci=120, laptop=400))
]
contents = [
    dict(re.findall(r"(\w+ \w+): (\w+ \w+|nothing)\.", sample["texts"][-1]["assistant"]))
    for sample in samples
]
block_1 = maps_of(*(sample["images"][0] for sample in samples))[1]  # [pictures, num_heads, N, N]
shares = by_quarter(block_1)[:, :, MIDDLES].mean(
    dim=3
)  # [pictures, num_heads, 4 that look, 4 that are looked at]


def mean_shares(head):
    """How much a quarter with this in it gets, on average over all shapes in other quarters that look."""
    found = {name: {} for name in ("shape", "colour", "place")}
    for content, table in zip(contents, shares[:, head].tolist(), strict=True):
        for i, asking in enumerate(PLACES):
            for j, place in enumerate(PLACES):
                if i == j or content[asking] == "nothing":
                    continue
                colour, _, shape = content[place].partition(" ")  # "red star", or "nothing"
                for kind, name in (
                    ("shape", shape or "nothing"),
                    ("colour", colour),
                    ("place", place),
                ):
                    if name != "nothing" or kind == "shape":
                        found[kind].setdefault(name, []).append(table[i][j])
    return {
        kind: {name: sum(each) / len(each) for name, each in sorted(names.items())}
        for kind, names in found.items()
    }


def tells(head):
    means = mean_shares(head)
    return share_bars(
        means["shape"] | means["colour"] | means["place"], tick=0.25, tick_name="an even share"
    )


lever(tells, head=[0, 1, 2, 3], start={"head": seeker})

# %% [markdown]
# The bars show the shapes (with *nothing*, an empty quarter, among them), then the colours, then the places. Which of the
# three makes the largest difference? Try the other heads too. The table then has all heads: how far the most attended and
# the least attended are apart, and which two colours are attended to most.

# %%
differences, favourites = [], []
print(f"{'block 1':8}{'shapes':>8}{'colours':>9}{'places':>8}   looked at most")
for head in range(4):
    means = mean_shares(head)
    nothing = means["shape"].pop("nothing")
    differences.append(
        {kind: max(names.values()) - min(names.values()) for kind, names in means.items()}
    )
    favourites.append(sorted(means["colour"], key=means["colour"].get, reverse=True)[:2])
    apart = "".join(
        f"{each:{width}.0%}"
        for each, width in zip(differences[head].values(), (8, 9, 8), strict=True)
    )
    print(
        f"head {head:<3}{apart}   {' and '.join(favourites[head])}"
        + ("   <- the seeker" if head == seeker else "")
    )
colour_heads = [
    head
    for head, apart in enumerate(differences)
    if apart["colour"] > 0.12 and apart["colour"] > 1.5 * max(apart["shape"], apart["place"])
]
assert seeker in colour_heads and len(colour_heads) > 1
assert (
    len({favourites[head][0] for head in colour_heads}) > 1
)  # not all of them have the same favourite
print(f"for heads {', '.join(map(str, colour_heads))} the colours make the largest difference")

# %% [markdown]
# For the seeker the colours make the largest difference, well above shapes and places. Other heads respond to colours
# too, and not all to the same ones, which is what several heads are good for. The names are ours, however: training found
# these roles by itself, and another training may find others.
#
# The first picture alone would have suggested one shape, or one place. Keep that in mind for the attention maps that you
# see in papers.
#
# ### The same head answers differently to different queries
#
# Go back to the star's picture, and click on the shape that the star attends to. Others attend to it, but does it attend
# to itself? The head and the keys are the same, but each patch has a query of its own. So here are the seeker's colours
# again, with a row for each colour that asks.

# %%
asked, same, different = {}, [], []
for content, table in zip(contents, shares[:, seeker].tolist(), strict=True):
    filled = {
        i: content[place].split()[0]
        for i, place in enumerate(PLACES)
        if content[place] != "nothing"
    }
    for i, mine in filled.items():
        others = {j: theirs for j, theirs in filled.items() if j != i}
        for j, theirs in others.items():
            asked.setdefault((mine, theirs), []).append(table[i][j])
            if (
                mine in others.values() and len(set(filled.values())) > 1
            ):  # it has both to choose from
                (same if theirs == mine else different).append(table[i][j])

mean_asked = {pair: sum(each) / len(each) for pair, each in asked.items()}
print("who asks  " + "".join(f"{theirs:>8}" for theirs in PALETTE))
for mine in PALETTE:
    print(
        f"{mine:10}"
        + "".join(f"{mean_asked.get((mine, theirs), math.nan):8.0%}" for theirs in PALETTE)
    )
for mine in PALETTE:  # no colour looks most at its own
    assert (
        max(share for (asks, _), share in mean_asked.items() if asks == mine)
        > 1.3 * mean_asked[mine, mine]
    )
favourite = favourites[seeker][0]
from_others = [mean_asked[mine, favourite] for mine in PALETTE if mine != favourite]
assert sum(from_others) / len(from_others) > 1.5 * mean_asked[favourite, favourite]
same, different = sum(same) / len(same), sum(different) / len(different)
assert 1.5 * same < different
print(
    f"\nto {favourite}: {sum(from_others) / len(from_others):.0%} from the others, "
    f"{mean_asked[favourite, favourite]:.0%} from {favourite} itself"
)
print(
    f"with both in the picture: to a shape of its own colour {same:.0%}, to one of another colour {different:.0%}"
)

# %% [markdown]
# Follow the diagonal: no row has its largest number there. Where a shape can choose, one of its own colour gets much less
# attention than one of another. So a patch inside a shape attends to a shape of *another colour*, and which one depends on
# its own. That is what the query is for.
#
# ### One head attends almost evenly
#
# Go back to the bars and try the other heads once more: one of them has bars that differ little. We find it by the
# weight of the strongest patch. (A weight is `exp` of a score, divided by a sum, so the standard deviation of the scores
# can be computed from the weights' logarithms.)

# %%
filled = torch.tensor([[content[place] != "nothing" for place in PLACES] for content in contents])
strongest = block_1.amax(dim=-1)[:, :, MIDDLES].mean(dim=-1)  # [pictures, num_heads, 4 that look]
spread = block_1.log().std(dim=-1)[:, :, MIDDLES].mean(dim=-1)
strongest, spread = (
    [table[:, head][filled].mean().item() for head in range(4)] for table in (strongest, spread)
)
even = min(range(4), key=strongest.__getitem__)
for head in range(4):
    print(
        f"head {head}: strongest patch {strongest[head]:4.0%}, deviation of the scores {spread[head]:.1f}"
    )
others = [head for head in range(4) if head != even]
assert even not in colour_heads and min(spread) == spread[even]
assert strongest[even] < 0.7 * min(strongest[head] for head in others) and strongest[even] < 0.12
assert all(
    abs(share - 0.25) < 0.1 for names in mean_shares(even).values() for share in names.values()
)
print(f"head {even} is the most even; a wholly even share is {1 / 64:.1%}")
patch_attention(photo, maps[:, 0], block=1, head=even, patch=17)

# %% [markdown]
# Its scores differ least, so the softmax gives the most even weights, as it did in chapter 02 when you divided by a large
# number. (The brightness in the picture is relative to the strongest patch, so where all are weak, small differences
# seem large.) What such a head passes on is close to the average of the whole picture, whichever patch asks. Does the
# model need that average, or could it do without the head? Its map is the same in both cases.

# %% [markdown]
# ## An ablation tells what a map cannot
#
# Does the model know what is red *because* some heads respond to colours, and is the even head of no use? That does not
# follow, because a map shows what a head reads and not what the model does with it. To find out, take the part away and
# look at the answers, which is called an **ablation**.
#
# First we take away not one head but all attention of the encoder, in both blocks. The questions are those about shapes
# and those about signs, for which the model must read characters.


# %%
class NoAttention(ViTBlock):
    def forward(self, x):
        return x + self.mlp(self.ln2(x))


# %%
quiz("ch14.ablate")

# %% [markdown]
# The same table has blocks without the MLP, and the two wrong orders of chapter 02, with the weights as they are.


# %%
class NoMLP(ViTBlock):
    def forward(self, x):
        return x + self.attn(self.ln1(x))


class PostNorm(ViTBlock):
    def forward(self, x):
        x = self.ln1(x + self.attn(x))
        return self.ln2(x + self.mlp(x))


class NoResidual(ViTBlock):
    def forward(self, x):
        x = self.attn(self.ln1(x))
        return self.mlp(self.ln2(x))


# %%
quiz("ch14.norm")

# %%
from nanovlm.data.thimble import chance
from nanovlm.evaluation.scores import evaluate

num_images = budget().pick(ci=60, laptop=120)
shapes = samples[:num_images]
signs = [thimble_sample("glyphs", "test", i, image_size=64) for i in range(num_images)]


def with_blocks(block_class):
    """The encoder with other blocks and the same weights."""
    broken = ViT(model.config.vision).eval()
    broken.blocks = nn.ModuleList(block_class(model.config.vision) for _ in encoder.blocks)
    broken.load_state_dict(
        encoder.state_dict()
    )  # strict, and it raises nothing: all names and shapes fit
    return broken


def ask(broken, samples):
    """What the model with this encoder answers."""
    model.vision_encoder = broken
    result = evaluate(model, samples, blind=False)
    model.vision_encoder = encoder
    return result


def scores_of(result):
    """The share of right answers: of all kinds of questions together, and of each kind."""
    by_kind = {
        kind.rpartition("/")[2]: score.correct / score.total
        for kind, score in result.scores.items()
    }
    return {"all": result.accuracy} | by_kind


def guessing(subset):
    return sum(chance(subset).values()) / len(chance(subset))


classes = {
    "as it was trained": ViTBlock,
    "no attention": NoAttention,
    "no MLP": NoMLP,
    "post-norm": PostNorm,
    "no residual": NoResidual,
}
about_shapes = {
    name: ask(with_blocks(block_class), shapes) for name, block_class in classes.items()
}
on_shapes = {name: scores_of(result) for name, result in about_shapes.items()}

# %%
on_signs = {
    name: scores_of(ask(with_blocks(block_class), signs)) for name, block_class in classes.items()
}

print(f"{'':18} {'shapes':>7} {'signs':>7}")
for name in classes:
    print(f"{name:18} {on_shapes[name]['all']:7.0%} {on_signs[name]['all']:7.0%}")
print(f"{'guessing':18} {guessing('shapes'):7.0%} {guessing('glyphs'):7.0%}")
for scores, subset in ((on_shapes, "shapes"), (on_signs, "glyphs")):
    assert scores["no attention"]["all"] > max(0.88, scores["no MLP"]["all"] + 0.08)
    assert max(scores["post-norm"]["all"], scores["no residual"]["all"]) < guessing(subset) + 0.1

# %% [markdown]
# There are two lessons in this table. The first is that the order counts: post-norm has the same parameters under the
# same names, loads without a complaint, and falls to guessing. No shape would have told you.
#
# The second is that the maps explain little here. Without any attention the encoder serves these questions nearly as
# well, reading included. What is lost is lost in one kind of question.

# %%
whole, without = on_shapes["as it was trained"], on_shapes["no attention"]
lost = {kind: whole[kind] - without[kind] for kind in whole if kind != "all"}
worst = max(lost, key=lost.get)
assert (
    worst == "count"
    and lost["count"] > 0.1
    and all(lost[kind] < 0.06 for kind in lost if kind != "count")
)
for kind in lost:
    print(f"{kind:8} {whole[kind]:5.0%} -> {without[kind]:5.0%}")

# %% [markdown]
# The loss is in counting. But some questions ask for all shapes, some for one shape (*How many stars are there?*) and
# some for one colour (*How many green shapes are there?*). Which of them do you expect to suffer, after what you know of
# the heads?


# %%
def counts_of(result):
    """The share of right answers to the counting questions, by what is counted."""
    right = {
        "all shapes": [],
        "a shape": [],
        "a colour": [],
    }  # for each question, whether it was answered right
    for question, answer in result.answers:
        if question.kind == "count":
            word = question.text.split()[2]  # How many ... are there?
            counted = (
                "all shapes" if word == "shapes" else "a colour" if word in PALETTE else "a shape"
            )
            right[counted].append(answer == question.answer)
    return {counted: sum(each) / len(each) for counted, each in right.items()}


whole_counts, without_counts = (
    counts_of(about_shapes[name]) for name in ("as it was trained", "no attention")
)
for counted, share in whole_counts.items():
    print(f"count {counted:10} {share:5.0%} -> {without_counts[counted]:5.0%}")
lost_counts = {counted: whole_counts[counted] - without_counts[counted] for counted in whole_counts}
assert lost_counts["a colour"] > 0.2 + max(lost_counts["all shapes"], lost_counts["a shape"])

# %% [markdown]
# Most of it is in the colours. Counting a colour takes comparing the colours of shapes, and some heads do attend from
# shape to shape, to another colour. So this is the task in which the encoder's attention decides. Does it need all of
# those heads, or only the seeker?
#
# To take a head away, set to zero what `out_proj` reads of it ([exercise 14.1](../exercises/14_looking_inside.ipynb)).
# A single head may make a small difference, so we ask more: in each picture, how many there are of every colour in it.
# What do you expect without the seeker, and without all heads that respond to colours?

# %%
from collections import Counter

from nanovlm.evaluation.scores import Question, answer_all

counting = []
for i, content in enumerate(contents[:num_images]):
    colours = Counter(each.split()[0] for each in content.values() if each != "nothing")
    for colour, number in colours.items():
        question = f"How many {colour} shapes are there?"
        counting.append(Question(i, samples[i]["images"], question, str(number), "count"))


def count_colours(broken):
    """The share of right answers to these questions."""
    model.vision_encoder = broken
    answers = answer_all(model, counting)
    model.vision_encoder = encoder
    return sum(
        answer == question.answer for question, answer in zip(counting, answers, strict=True)
    ) / len(counting)


def without_heads(*heads):
    broken, head_dim = (
        with_blocks(ViTBlock),
        model.config.vision.hidden_dim // model.config.vision.num_heads,
    )
    with torch.no_grad():
        for head in heads:
            broken.blocks[1].attn.out_proj.weight[:, head * head_dim : (head + 1) * head_dim] = 0
    return broken


encoders = {"all heads": encoder}
encoders |= {
    f"without head {head}": without_heads(head) for head in range(model.config.vision.num_heads)
}
encoders |= {
    "without colour heads": without_heads(*colour_heads),
    "no attention": with_blocks(NoAttention),
}
counts = {name: count_colours(broken) for name, broken in encoders.items()}
which = {name: scores_of(ask(broken, shapes))["colour"] for name, broken in encoders.items()}
print(
    f"{'':22} {'count a colour':>15} {'which colour':>13}   ({len(counting)} questions, {num_images} questions)"
)
for name in encoders:
    print(f"{name:22} {counts[name]:15.0%} {which[name]:13.0%}")
print(
    f"the colour heads are {', '.join(map(str, colour_heads))}; the seeker is head {seeker}, the even one head {even}"
)
single = {head: counts["all heads"] - counts[f"without head {head}"] for head in range(4)}
together = counts["all heads"] - counts["without colour heads"]
assert abs(single[even]) < 0.025 and min(single[head] for head in colour_heads) > 0
assert together > 0.25 and max(single.values()) < 0.65 * together
assert counts["without colour heads"] < counts["no attention"] + 0.15
assert min(which.values()) > 0.95

# %% [markdown]
# Without the even head next to nothing changes. Without the seeker some counts of a colour go wrong, but the same is true
# of others, and no single head does the counting, because the rest make up for it. Without all heads that respond to
# colours, nearly as much is lost as without any attention: they share the work. And nothing is lost where a colour is
# *asked for*, whichever head is gone.
#
# So the maps gave one idea that led somewhere (*they attend to other colours*, on which counts of colours depend), one
# that was half true (*the seeker is the one*), and one on which no answer depends (*that is how the model knows what is
# red*). Only the ablation told them apart.

# %% [markdown]
# Why do the other questions not need the encoder's attention? The likely reason is that the pocket model's pictures are
# simple. The projector joins neighbouring patches (chapter 03), and the decoder's own attention reads all of the image
# tokens (chapter 04), so that they can find out what the encoder did not. This is a finding about one small model and
# these questions, and we have not measured it with photographs.
#
# What is known about maps in general:
#
# - Maps that differ can lead to the same answer, so a map is no proof of a reason ([Jain and Wallace
#   2019](https://arxiv.org/abs/1902.10186)). That depends on what one calls an explanation, and on the task ([Wiegreffe
#   and Pinter 2019](https://arxiv.org/abs/1908.04626)).
# - A bright spot need not be something to see. Large vision transformers store information about the whole picture in
#   patches of plain background, and extra *register* tokens give it a place of its own ([Darcet et al.
#   2023](https://arxiv.org/abs/2309.16588)). Language models send spare attention to their first tokens, which are then
#   called *attention sinks* ([Xiao et al. 2023](https://arxiv.org/abs/2309.17453)).
#
# So a map is a good way to get an idea and a bad way to prove one.

# %% [markdown]
# ## Rollout follows attention back to the pixels
#
# The maps above belong to one block each. But in block 1 a key no longer describes one patch, because block 0 has mixed
# them. **Attention rollout** ([Abnar and Zuidema 2020](https://arxiv.org/abs/2005.00928)) follows the weights back. It
# takes a block for the mean of its heads, with half of each vector coming through the residual connection, and multiplies
# the matrices of all blocks. You write it in exercise 14.3.

# %%
rollout = use("inside.rollout")

# %% tags=["nbval-check-output"]
flow = rollout(maps[:, 0])  # [N, N]: of each output, the share that comes from each input patch
assert torch.allclose(flow.sum(dim=-1), torch.ones(64), atol=1e-4)
expect_shape(flow, "64 64")

# %%
for name, table in (("block 1 alone, mean over heads", maps[1, 0].mean(dim=0)), ("rollout", flow)):
    print(
        f"{name:32} patch 17 takes {table[17, 17]:5.1%} from itself, at most {table[17].max():5.1%} from one patch"
    )

# %% [markdown]
# By this account at least a quarter of what patch 17 holds at the end is its own, because each of the two blocks keeps
# half. The numbers are only as good as their assumptions, though: that all heads count equally, that values and MLPs change nothing about who contributes, and that
# exactly half comes through the residual connection. Exercise 2.8 measures that last share, and it is not a half
# everywhere.
#
# ## The logit lens reads a layer as words
#
# The decoder's last vectors become words through its final norm and its head. The **logit lens** (an idea of a [blog post
# by nostalgebraist, 2020](https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens)) applies
# the same two to the vectors *between* the blocks: which word would the model say, if it stopped here?

# %%
logit_lens = use("inside.logit_lens")

ids, pixels = prepare_prompt(model, "Where is the red star?", photo)
with torch.inference_mode():
    states = model(torch.tensor([ids]), pixels, output_hidden_states=True).hidden_states
words = logit_lens(states, model.decoder)[:, 0]  # [states, positions]

# %% [markdown]
# Below are the last four positions of the prompt, from the embeddings to the output. At the very last position the answer
# has to appear. In which layer does it?

# %%
print(" " * 16 + "".join(f"{model.tokenizer.decode([token])!r:>16}" for token in ids[-4:]))
for layer, row in enumerate(words):
    name = "embeddings" if layer == 0 else f"behind block {layer - 1}"
    print(
        f"{name:16}"
        + "".join(f"{model.tokenizer.decode([int(token)])!r:>16}" for token in row[-4:])
    )

# %% [markdown]
# The row of the embeddings shows that an input token is not yet a prediction. The lens is a way to look, with the limits
# of all of them: the inner layers were never trained to be read by the head, so a word that it shows need not be what
# the next block uses.
#
# What do *image tokens* look like through it? They were never words.

# %%
image_places = [i for i, token in enumerate(ids) if token == model.config.image_token_id]
side = round(len(image_places) ** 0.5)
for layer in (0, len(words) - 1):
    print("embeddings" if layer == 0 else "output")
    row = [model.tokenizer.decode([int(words[layer, i])]) for i in image_places]
    for i in range(0, len(row), side):
        print("   " + "".join(f"{word!r:>14}" for word in row[i : i + side]))

# %% [markdown]
# Nothing in training asks an image token to predict a word, because targets at these positions are not supervised. So
# read what you see here with care: it tells which word vectors these vectors are near, and not what the model "sees".

# %% [markdown]
# ## Where this lives in the package
#
# `output_hidden_states=True` returns the input of every decoder block and the output, and `nanovlm.trace` records the
# attention of each word (chapter 12). The maps are drawn by `nanovlm/viz/vit.py`.
#
# What you take along:
#
# - A map shows what a head attends to. It does not show whether the model needs it.
# - Change one thing at a time: mirror the picture, change the shape, change the colour.
# - Ablate, and measure with questions that the ablation could hurt.
# - A lens applies the model's own last steps to its middle. Without the final norm it shows something else.
#
# **Challenge.** Find the smallest set of encoder heads, over both blocks, without which fewer than half of the questions
# that count a colour are answered. Your score is the number of heads; the colour heads of block 1 are the baseline.

# %% [markdown] tags=["stamped"]
# ## Your turn
#
# [Open the exercises](../exercises/14_looking_inside.ipynb) ([in Colab][exercises]): 3 of them, about 34 minutes.
#
# [exercises]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/exercises/14_looking_inside.ipynb
#
# | | exercise | difficulty | minutes |
# |---|---|---|---|
# | 14.1 | Take one head away (`inside.ablate_head`) | ●●○ | 12 |
# | 14.2 | Mend it: a lens without its norm (`inside.logit_lens`) | ●●○ | 10 |
# | 14.3 | Attention through all blocks (`inside.rollout`) | ●●○ | 12 |
#
# Next: [15 Your own pictures](15_own_pictures.ipynb)
