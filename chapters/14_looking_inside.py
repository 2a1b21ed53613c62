# %% [markdown]
# # 14 Looking inside
#
# What happens inside the model: attention of patches and words, experiments that pull explanations apart, heads taken
# away, vectors swapped between two pictures, probes, and a decoder whose layers are read as words. Fifty minutes; the
# code runs in about a minute.

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

from nanovlm import VisionLanguageModel
from nanovlm.assets import asset_path
from nanovlm.course import Cells, budget, expect_shape, lever, quiz, use
from nanovlm.course import chapter_14 as measure
from nanovlm.data.thimble import thimble_sample
from nanovlm.data.thimble.drawing import PALETTE
from nanovlm.data.thimble.shapes import CELLS, SHAPES
from nanovlm.inference.prompts import prepare_prompt
from nanovlm.models.vision_transformer import ViTBlock
from nanovlm.viz.looking_inside import share_tables
from nanovlm.viz.pixel_shuffle import images_row

# %% [markdown]
# **After this chapter you can**
#
# 1. draw what a patch or a word attends to, and test by experiment what a head responds to,
# 2. find out by ablation and by patching what a model needs, and say why a map alone cannot tell,
# 3. read what a vector in the middle of a model contains, with a probe and with the logit lens.
#
# You need chapters 02, 04 and 06. About a third of the time is reading and a half is code; the exercises come on top.

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
@torch.inference_mode()
def maps_of(*images):
    """Each patch's attention weights. [num_blocks, B, num_heads, N, N]"""
    x, maps = encoder.patch_embedding(model.image_processor(list(images))), []
    for block in encoder.blocks:
        qkv = block.attn.qkv_proj(block.ln1(x))
        q, k, _ = split_heads(qkv, block.attn.num_heads)
        maps.append((q @ k.mT / math.sqrt(q.shape[-1])).softmax(dim=-1))
        x = block(x)
    return torch.stack(maps)


# %%
maps = maps_of(photo)
expect_shape(maps, "2 1 4 64 64")

# %% tags=["claim"]
assert torch.allclose(maps.sum(dim=-1), torch.tensor(1.0))

# %% [markdown]
# Each block and head has a table of 64 x 64 weights, which is too much to read. So we choose a patch and paint its row
# over the picture. Patches are counted from 0 in reading order, eight in a row.

# %% [markdown]
# With which head should we begin? This picture has a shape in each quarter. Take the four patches in the middle of a
# shape: how much of their attention goes to which quarter? An even share would be 25 %. Some heads keep little for their
# own quarter and give most of it to one of the others. We call the head that does so most of all the **seeker**.

# %%
# [num_heads, 4 that attend, 4 attended to]
between = measure.by_quarter(maps[1, 0])[:, measure.MIDDLES].mean(dim=2)
own = between.diagonal(dim1=1, dim2=2).mean(dim=1)
other = (between * (1 - torch.eye(4))).amax(dim=2).mean(dim=1)  # the favourite among the others
seeker = other.argmax().item()
heads = [f"head {head}" for head in range(4)]
print(f"the seeker is head {seeker}")
share_tables(
    {"from a shape": torch.stack([own, other])}, ["to its own quarter", "to its favourite"], heads
)

# %% tags=["claim"]
assert other[seeker] > 0.55 and own[seeker] < 0.2

# %%
from nanovlm.viz.vit import patch_attention


def looks(block, head, patch):
    return patch_attention(photo, maps[:, 0], block, head, patch)


start = {"block": 1, "head": seeker, "patch": 17}
lever(looks, block=[0, 1], head=[0, 1, 2, 3], patch=Cells(photo, 8), start=start)

# %% [markdown]
# Patch 17 is a piece of the star. In block 0 its four heads spread their attention widely, while in block 1 the seeker
# attends to one of the other shapes. Click on the star's other patches, then on the other shapes: which shape attends to
# which? Then click on the empty parts, from which the same head spreads its attention widely.

# %%
THERE = ["red star", "yellow triangle", "blue circle", "purple square"]
star = measure.MIDDLES[CELLS.index("top left")]
empty = [patch for patch in range(64) if measure.is_background(photo, patch)]
rows = torch.stack(
    [measure.by_quarter(maps[1, 0, seeker, rows]).mean(dim=0) for rows in (star, empty)]
)
target = rows[0].argmax().item()  # the quarter that the star attends to
share_tables({"the seeker's attention": rows}, ["from the star", "from background"], THERE)

# %% tags=["claim"]
assert THERE[target] != "red star" and rows[0, target] > 0.5 > 0.4 > rows[1].max()
assert maps[0, 0, :, 17].max() < 0.1  # block 0 attends widely

# %% [markdown]
# What does this head respond to, seen from the star?

# %%
quiz("ch14.head")

# %% [markdown]
# Experiments can pull the explanations apart. We begin with the place and mirror the picture, so that the star is at the
# top right. Does its attention stay where it went, or does it follow the shape?

# %%
mirrored = ImageOps.mirror(photo)
in_mirror = maps_of(mirrored)[:, 0]
star_there = measure.MIDDLES[CELLS.index("top right")]
from_star = measure.by_quarter(in_mirror[1, seeker, star_there]).mean(dim=0)
across = (1, 0, 3, 2)[target]  # where the shape has gone to
print(f"from the star to the {THERE[target]}, now at the {CELLS[across]}: {from_star[across]:.0%}")
patch_attention(mirrored, in_mirror, block=1, head=seeker, patch=22)

# %% tags=["claim"]
assert from_star.argmax() == across and from_star[across] > 0.45

# %% [markdown]
# It follows the shape, so it is not the place. Is it shape or colour? To decide, we need pictures in which one of the two
# changes and nothing else. The Thimble, the data set that comes with the course, draws any scene that we describe. So we
# keep the other three shapes and put others in the place of the one that the star attends to: first other shapes in
# the same colour, then the same shape in other colours.


# %%
def with_target(description):
    return measure.drawn([*THERE[:target], description, *THERE[target + 1 :]])


def gets(description):
    """The share of the star's attention that this shape gets in the target's place."""
    return (
        measure.by_quarter(maps_of(with_target(description))[1, 0, seeker, star])
        .mean(dim=0)[target]
        .item()
    )


colour, shape = THERE[target].split()
by_shape = {f"{colour} {each}": gets(f"{colour} {each}") for each in SHAPES}
by_colour = {f"{each} {shape}": gets(f"{each} {shape}") for each in PALETTE}
as_it_is = by_shape[THERE[target]]
changes = [THERE[target]]
for by in (by_shape, by_colour):
    changes.append(max(by, key=lambda each: abs(by[each] - as_it_is)))
images_row([with_target(each) for each in changes], changes)

# %% [markdown]
# The picture in the middle has another shape in the target's place and the right one another colour, each the one that
# changes the star's attention most. Here are the shares of all of them.

# %%
for shares in (by_shape, by_colour):
    apart = max(shares.values()) - min(shares.values())
    for each, share in shares.items():
        print(f"{each:16}{share:4.0%}")
    print(f"at most {apart:.0%} apart\n")

# %% tags=["claim"]
apart_by_shape, apart_by_colour = (
    max(each.values()) - min(each.values()) for each in (by_shape, by_colour)
)
assert apart_by_colour > 2 * apart_by_shape and apart_by_colour > 0.2

# %% [markdown]
# Another shape in that place changes much less than another colour can. So the head responds to colour, as seen
# from this star. But this is one scene, whatever we change in it, so we repeat the measurement on many pictures. A patch
# in the middle of a shape attends to the three other quarters: how much does a quarter get, by what it contains? If the
# head did not respond to the contents, it would get 25 %.

# %%
from nanovlm.viz.vit import share_bars

num_images = budget().pick(ci=120, laptop=400)
samples = [thimble_sample("shapes", "test", i, image_size=64) for i in range(num_images)]
contents = [measure.contents_of(sample) for sample in samples]
block_1 = maps_of(*(sample["images"][0] for sample in samples))[1]  # [pictures, num_heads, N, N]
# [pictures, num_heads, 4 that attend, 4 attended to]
shares = measure.by_quarter(block_1)[:, :, measure.MIDDLES].mean(dim=3)
means = [measure.shares_by(contents, shares[:, head]) for head in range(4)]


def tells(head):
    found = means[head]["shape"] | means[head]["colour"] | means[head]["place"]
    return share_bars(found, tick=0.25, tick_name="an even share")


lever(tells, head=[0, 1, 2, 3], start={"head": seeker})

# %% [markdown]
# The bars show the shapes (with *nothing*, an empty quarter, among them), then the colours, then the places. Which of the
# three makes the largest difference? Try the other heads too. The table then has all heads: how far the most attended and
# the least attended are apart.

# %%
apart = torch.zeros(4, 3)
for head in range(4):
    for i, names in enumerate(means[head].values()):
        found = [share for name, share in names.items() if name != "nothing"]
        apart[head, i] = max(found) - min(found)
is_colour_head = (apart[:, 1] > 0.12) & (apart[:, 1] > 1.5 * apart[:, [0, 2]].amax(dim=1))
colour_heads = is_colour_head.nonzero().flatten().tolist()
print(f"for heads {colour_heads} the colours make the largest difference")
share_tables({"most and least are apart by": apart}, heads, ["shape", "colour", "place"])

# %% tags=["claim"]
favourites = [max(each["colour"], key=each["colour"].get) for each in means]
assert seeker in colour_heads and len(colour_heads) > 1
assert len({favourites[head] for head in colour_heads}) > 1

# %% [markdown]
# For the seeker the colours make the largest difference, well above shapes and places. Other heads respond to colours
# too, and not all to the same ones, which is what several heads are good for. The names are ours, however: training found
# these roles by itself, and another training may find others.
#
# The first picture alone would have suggested one shape, or one place. Keep that in mind for the attention maps that you
# see in papers.

# %% [markdown]
# ### The same head answers differently to different queries
#
# Go back to the star's picture, and click on the shape that the star attends to. Others attend to it, but does it attend
# to itself? The head and the keys are the same, but each patch has a query of its own. So here are the seeker's colours
# again, with a row for each colour that asks.

# %%
asked, to_same, to_other = measure.shares_by_asker(contents, shares[:, seeker])
print(f"a shape that can choose: {to_same:.0%} to its own colour, {to_other:.0%} to another one")
share_tables({"attention to a shape that is": asked}, list(PALETTE), list(PALETTE), ("from", ""))

# %% tags=["claim"]
assert (asked.amax(dim=1) > 1.3 * asked.diagonal()).all()  # no colour attends most to its own
assert 1.5 * to_same < to_other

# %% [markdown]
# Follow the diagonal: no row has its largest number there. Where a shape can choose, one of its own colour gets much less
# attention than one of another. So a patch inside a shape attends to a shape of *another colour*, and which one depends on
# its own. That is what the query is for.

# %% [markdown]
# ### One head attends almost evenly
#
# Go back to the bars and try the other heads once more: one of them has bars that differ little. We find it by the
# weight of the strongest patch.

# %%
filled = torch.tensor([[content[place] != "nothing" for place in CELLS] for content in contents])
strongest = block_1.amax(dim=-1)[:, :, measure.MIDDLES].mean(dim=-1)  # [pictures, num_heads, 4]
strongest = torch.stack([strongest[:, head][filled].mean() for head in range(4)])
even = strongest.argmin().item()
print(f"the most even is head {even}; a wholly even share is {1 / 64:.1%}")
share_tables({"the strongest patch gets": strongest[None]}, ["from a shape"], heads)

# %% tags=["claim"]
assert even not in colour_heads
assert strongest[even] < 0.7 * strongest.sort().values[1] and strongest[even] < 0.12
assert all(abs(s - 0.25) < 0.1 for names in means[even].values() for s in names.values())

# %% [markdown]
# What such a head passes on is close to the average of the whole picture, whichever patch asks, as in chapter 02 when you
# divided the scores by a large number. Does the model need that average, or could it do without the head? Its map is the
# same in both cases.

# %% [markdown]
# ## Words attend to the picture too
#
# The decoder has attention of its own, from each word to the picture and to the words before it. Chapter 12's tracer
# records it. A row of weights now belongs to a *word*; the image tokens are at positions 1 to 16, and each of them
# stands for 2 x 2 patches.

# %%
from nanovlm.models.modality_projector import pixel_shuffle
from nanovlm.trace import patch_map, trace

ids, pixels = prepare_prompt(model, "Where is the red star?", photo)
ids = torch.tensor([ids])
blocks = [f"decoder.blocks.{i}" for i in range(4)]
seen = trace(model, ids, pixels, attention=blocks).attention
weights = torch.stack([seen[block][0][0] for block in blocks])  # [num_blocks, num_heads, T, T]
on_image = weights[:, :, -1, 1:17]  # of the position that writes the answer, to the image tokens
on_star = on_image[..., measure.QUARTERS[0]].sum(dim=-1)
block, head = divmod(on_star.argmax().item(), 4)  # the head that gives the star the most

# %%
from nanovlm.viz.attention import attention_over_image

words = [model.tokenizer.decode([i], skip_special_tokens=False) for i in ids[0].tolist()]
tokens = patch_map(lambda x: pixel_shuffle(x, 2), grid=8).tokens
positions = {word: i for i, word in enumerate(words) if word != "<|image|>"}


def look(block, head, word):
    row, note = weights[block, head, positions[word]], f"block {block}, head {head}"
    return attention_over_image(photo, row, words, positions[word], tokens, 1, note)


start = {"block": block, "head": head, "word": words[-1]}
lever(look, block=(0, 3), head=(0, 3), word=list(positions), start=start)

# %% [markdown]
# This head of the position that writes the answer puts most of its weight on the red star, which makes a convincing
# picture. It was chosen by the code above, however, as the head with the largest share on the star's quarter, and among
# 4 blocks of 4 heads there is nearly always one that attends to what you hope for. Here are all sixteen.

# %%
in_block = [f"block {i}" for i in range(4)]
tables = {"to the picture": on_image.sum(dim=-1), "to the star's quarter": on_star}
share_tables(tables, in_block, heads)

# %% tags=["claim"]
image_shares = on_image.sum(dim=-1)
assert (image_shares < 0.05).sum() >= 2
assert ((image_shares > 0.3) & (on_star < image_shares / 2)).sum() >= 3  # mostly past the star
assert on_star.max() > 0.5 and (on_star > 0.5).sum() <= 5
spread = (weights[block, :, -1] - weights[block, :, -1].mean(0)).abs().sum(-1) / 2
assert spread.min() > 0.1  # how much each head attends elsewhere than the mean of the heads

# %% [markdown]
# Some heads give next to nothing to the picture, because they attend to a word of the question. Some attend to the
# picture, and mostly to its other three quarters. Few give more than half of their weight to the star. And the mean of
# heads, which many demonstrations draw, mixes heads that do different things into a map that belongs to none of them.

# %% [markdown]
# ### A map is a question, and an experiment answers it
#
# If the picture above showed where the answer comes from, the answer should suffer without the tokens that this head
# attends to. Replace them by the mean of all image tokens, and predict:

# %%
quiz("ch14.removed")

# %%
TOP = model.tokenizer.encode("top")[0]


@torch.no_grad()
def answer_without(removed):
    """The probability of the answer's first word, "top", without some image tokens."""
    x, _, _ = model.embed(ids, pixels, None)
    x[:, [1 + token for token in removed]] = x[:, 1:17].mean(dim=1, keepdim=True)
    return model.decoder.head(model.decoder(x))[0, -1].softmax(dim=-1)[TOP].item()


lit = on_image[block, head].topk(2).indices.tolist()  # the two tokens that the head attends to most
removals = {"nothing": [], f"tokens {lit}, which the head attends to": lit}
names = ("the star's", "the right", "the lower", "the far")
removals |= {f"{name} quarter": q for name, q in zip(names, measure.QUARTERS, strict=True)}
for name, removed in removals.items():
    print(f"without {name}: {answer_without(removed):.2f}")
print(f"without the token that matters most: {min(answer_without([i]) for i in range(16)):.2f}")

# %% tags=["claim"]
assert set(lit) <= set(measure.QUARTERS[0]) and answer_without(lit) > 0.9
assert min(answer_without([i]) for i in range(16)) > 0.9
remains = [answer_without(quarter) for quarter in measure.QUARTERS]
assert remains[0] < 0.5 and min(remains[1:]) > 0.9

# %% [markdown]
# What was lit can go, and the answer stays. No single token matters, and no quarter but the star's. The likely reason is
# that each of the four tokens shows a piece of the star, and that their patches have attended to each other. Be as careful with the experiment: the mean of all tokens is nothing that the model was trained on, and this
# is one picture and one question.

# %% [markdown]
# | the weights show | they do not show |
# |---|---|
# | which positions this head mixed | what was there: the encoder has mixed the patches before |
# | how the weight was shared | how much came of it: a large weight on a small vector moves little ([arXiv:2004.10102](https://arxiv.org/abs/2004.10102)) |
# | whether a head used the picture at all | whether the answer depends on it: that takes an experiment |

# %% [markdown]
# How much attention explains is disputed with good arguments on both sides. Maps that differ can lead to the same answer,
# so a map is no proof of a reason ([Jain and Wallace 2019](https://arxiv.org/abs/1902.10186)); that depends on what one
# calls an explanation, and on the task ([Wiegreffe and Pinter 2019](https://arxiv.org/abs/1908.04626)).

# %% [markdown]
# ### Attention that has to go somewhere: sinks and registers
#
# The weights of a row sum to 1, so a head that has nothing to look for has to put its attention somewhere. Language models
# put it on their first tokens, which are then called **attention sinks** ([Xiao et al.
# 2023](https://arxiv.org/abs/2309.17453)). Does the pocket model have one? You measure it in exercise 14.6.

# %%
sink_share = use("inside.sink_share")

even_share = sum(1 / (t + 1) for t in range(1, len(words))) / (len(words) - 1)
print(f"an even share would be {even_share:.0%}")
share_tables({f"to position 0, {words[0]}": sink_share(weights)}, in_block, heads)

# %% tags=["claim"]
assert sink_share(weights)[1].min() > even_share and sink_share(weights).max() < 0.4

# %% [markdown]
# In block 1 all four heads give the first token more than an even share, which it does not earn by anything that it
# says, since it is the same in every prompt. It is a weak sink: in large models such a token gets most of the attention
# of many heads, so that a window over a long text fails when it drops the token. A bright first token in a map is
# therefore no sign of meaning.

# %% [markdown]
# Something similar happens in large vision transformers that are trained for long. They turn a few patches of plain
# background into places of another use: the vectors of these become much longer than the others, and contain something
# about the whole picture instead of their own patch. Extra tokens, called **registers**, give this a place of its own
# ([Darcet et al. 2023](https://arxiv.org/abs/2309.16588)). Does our small encoder do it too?

# %%
with torch.inference_mode():
    x = encoder.patch_embedding(pixels)
    for each in encoder.blocks:
        x = each(x)
norms = x[0].norm(dim=-1)
print(f"the longest of 64 vectors has {norms.max() / norms.median():.1f} times the median length")

# %% tags=["claim"]
assert norms.max() < 2 * norms.median()

# %% [markdown]
# It does not: no vector stands out.

# %% [markdown]
# ## An ablation tells what a map cannot
#
# Back to the encoder. Does the model know what is red *because* some heads respond to colours, and is the even head of no
# use? That does not follow, because a map shows what a head reads and not what the model does with it. To find out, take
# the part away and look at the answers, which is called an **ablation**.

# %% [markdown]
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
        return self.mlp(self.ln2(self.attn(self.ln1(x))))


# %%
quiz("ch14.norm")

# %%
from nanovlm.data.thimble import chance

num_images = budget().pick(ci=40, laptop=120)
shapes = samples[:num_images]
signs = [thimble_sample("glyphs", "test", i, image_size=64) for i in range(num_images // 2)]
scores, answers = {}, {}
for block_class in (ViTBlock, NoAttention, NoMLP, PostNorm, NoResidual):
    broken = measure.with_encoder(model, measure.with_blocks(model, block_class))
    scores[block_class], answers[block_class] = measure.scores_of(broken, shapes)
    scores[block_class] |= {"signs": measure.scores_of(broken, signs)[0]["all"]}
guessing = [sum(chance(of).values()) / len(chance(of)) for of in ("shapes", "glyphs")]
table = torch.tensor([*([each["all"], each["signs"]] for each in scores.values()), guessing])
names = ["as it was trained", "no attention", "no MLP", "post-norm", "no residual", "guessing"]
share_tables({"right answers about": table}, names, ["shapes", "signs"])

# %% tags=["claim"]
for column, by_guessing in zip(table.T, guessing, strict=True):
    assert column[1] > max(0.88, column[2] + 0.08) and column[3:5].max() < by_guessing + 0.1

# %% [markdown]
# There are two lessons in this table. The first is that the order counts: post-norm has the same parameters under the
# same names, loads without a complaint, and falls to guessing. No shape would have told you.
#
# The second is that the maps explain little here. Without any attention the encoder serves these questions nearly as
# well, reading included. What is lost is lost in one kind of question.

# %%
for kind in scores[ViTBlock]:
    if kind not in ("all", "signs"):
        print(f"{kind:8} {scores[ViTBlock][kind]:5.0%} -> {scores[NoAttention][kind]:5.0%}")

# %% tags=["claim"]
lost = {kind: share - scores[NoAttention][kind] for kind, share in scores[ViTBlock].items()}
assert lost.pop("count") > 0.1 and max(lost.values()) < 0.06

# %% [markdown]
# The loss is in counting. But some questions ask for all shapes, some for one shape (*How many stars are there?*) and
# some for one colour (*How many green shapes are there?*). Which of them do you expect to suffer, after what you know of
# the heads?

# %%
whole, without = (measure.counts_of(answers[each]) for each in (ViTBlock, NoAttention))
for counted, share in whole.items():
    print(f"count {counted:10} {share:5.0%} -> {without[counted]:5.0%}")

# %% tags=["claim"]
lost = {counted: whole[counted] - without[counted] for counted in whole}
assert lost.pop("a colour") > 0.2 + max(lost.values())

# %% [markdown]
# Most of it is in the colours. Counting a colour takes comparing the colours of shapes, and some heads do attend from
# shape to shape, to another colour. So this is a task in which the encoder's attention decides. Does it need all of
# those heads, or only the seeker?

# %% [markdown]
# To take a head away, set to zero what `out_proj` reads of it ([exercise 14.1](../exercises/14_looking_inside.ipynb)).
# A single head may make a small difference, so we ask more: in each picture, how many there are of every colour in it.
# From these counts follows an answer to **"are there two shapes of one colour?"**, which nobody asked in training. What
# do you expect without the seeker, and without all heads that respond to colours?

# %%
encoders = {"all heads": encoder}
encoders |= {f"without {name}": measure.without_heads(model, [i]) for i, name in enumerate(heads)}
encoders["without colour heads"] = measure.without_heads(model, colour_heads)
encoders["no attention"] = measure.with_blocks(model, NoAttention)
counts, which = {}, {}
for name, broken in encoders.items():
    other = measure.with_encoder(model, broken)
    counts[name] = measure.count_colours(other, shapes, contents[:num_images])
    which[name] = measure.share_right(other, shapes, "colour")
rows = [[each.counted, each.repeated, which[name]] for name, each in counts.items()]
of = counts["all heads"]
print(
    f"colour heads {colour_heads}, seeker {seeker}, even head {even}; {of.questions} counts;",
    end=" ",
)
print(f"{of.most:.0%} by always saying the same of the pairs")
share_tables(
    {"right answers": torch.tensor(rows)},
    list(encoders),
    ["counts of a colour", "two of one colour?", "which colour?"],
)

# %% tags=["claim"]
single = [of.counted - counts[f"without {name}"].counted for name in heads]
together = of.counted - counts["without colour heads"].counted
assert abs(single[even]) < 0.025 and min(single[head] for head in colour_heads) > 0
assert together > 0.25 and max(single) < 0.65 * together
assert counts["without colour heads"].counted < counts["no attention"].counted + 0.15
assert min(which.values()) > 0.95

# %% [markdown]
# Without the even head next to nothing changes. Without the seeker some counts of a colour go wrong, but the same is true
# of others, and no single head does the counting, because the rest make up for it. Without all heads that respond to
# colours, nearly as much is lost as without any attention: they share the work. And nothing is lost where a colour is
# *asked for*, whichever head is gone.

# %% [markdown]
# So the maps gave one idea that led somewhere (*they attend to other colours*, on which counts of colours depend), one
# that was half true (*the seeker is the one*), and one on which no answer depends (*that is how the model knows what is
# red*). Only the ablation told them apart.

# %% [markdown]
# Why do the other questions not need the encoder's attention? The likely reason is that the pocket model's pictures are
# simple. The projector joins neighbouring patches (chapter 03), and the decoder's own attention reads all of the image
# tokens (chapter 04), so that they can find out what the encoder did not. This is a finding about one small model and
# these questions, and we have not measured it with photographs.

# %% [markdown]
# ## Activation patching finds where "red" is
#
# An ablation puts something in that means nothing. **Activation patching** puts in something that means something else
# ([Vig et al. 2020](https://arxiv.org/abs/2004.12265); [Meng et al. 2022](https://arxiv.org/abs/2202.05262)). Take two
# pictures that differ in one thing, the colour of the star, and run the model on the green one. At one block, swap some
# vectors for those of the red one. If the answer becomes *red*, then "red" was in these vectors, and the model uses it.

# %%
patch_activation = use("inside.patch_activation")

asked, colours = "What colour is the star?", list(PALETTE)
stars = [measure.drawn([f"{each} star", *THERE[1:]]) for each in colours]
asked_ids = torch.tensor([prepare_prompt(model, asked, photo)[0]])
with torch.inference_mode():
    x, _, _ = model.embed(
        asked_ids.expand(6, -1), model.image_processor(stars), None
    )  # [6, T, dim]
answers = [model.generate(image=each, prompt=asked) for each in stars[:3]]
images_row(stars[:3], answers)

# %%
quiz("ch14.patch")

# %% [markdown]
# One pair of pictures would be an anecdote, so we take all thirty ordered pairs of the six colours in one batch.

# %%
into, source = torch.tensor([(a, b) for a in range(6) for b in range(6) if a != b]).T
colour_ids = torch.tensor([model.tokenizer.encode(each)[0] for each in colours])


@torch.inference_mode()
def taken_over(block, positions):
    """The mean probability of the source's colour, with its vectors at these positions."""
    out = patch_activation(model.decoder, x[into], x[source], block, positions)
    chances = model.decoder.head(out)[:, -1].softmax(dim=-1)
    return chances[range(len(source)), colour_ids[source]].mean().item()


four, last = [1 + token for token in measure.QUARTERS[0]], x.shape[1] - 1
swapped = {"the star's four image tokens": four}
swapped |= {f"of them, position {position}": [position] for position in four}
swapped["the other image tokens"] = [i for i in range(1, 17) if i not in four]
swapped["the words of the question"] = list(range(17, last))
swapped["the last position"] = [last]
table = torch.tensor([[taken_over(block, at) for block in range(4)] for at in swapped.values()])
share_tables(
    {"the other colour's probability": table}, list(swapped), in_block, ("swapped before", "")
)

# %% tags=["claim"]
assert table[0].min() > 0.95 and table[5:].max() < 0.05
assert table[1:5, 0].max() < 0.6 and table[4, 3] > 0.9 and table[1:4, 3].max() < 0.5

# %% [markdown]
# With the star's four image tokens the other colour comes along, at every block and even before the last one. With
# everything else, the other image tokens, the whole question and the last position, nothing comes along. So the colour
# stays with the image tokens of its shape until the last block, in which the last position fetches it.

# %% [markdown]
# The rows of single tokens tell when. Before block 0 no single one is enough, and before block 3 the last of the four
# is, alone. The decoder is causal, and only this token has the other three behind it: on the way, the colour has been
# gathered in it. But a patch that works shows that a vector is *enough*, and not that it is needed: the other three
# still contained the old colour, and were not asked. And the star was at the top left throughout.

# %% [markdown]
# ## A linear probe tells what can be read from a vector
#
# Patching says what the model *uses*. What a vector *contains* is another question, and a **linear probe** asks it: can a
# linear layer, fitted to the vectors of one layer, tell the colour of the shape ([Alain and Bengio
# 2016](https://arxiv.org/abs/1610.01644))?

# %% [markdown]
# We take one vector for each shape in each picture, from each layer on the way: the patches, the encoder's blocks, the
# image tokens behind the projector, the decoder's blocks. We ask for its colour, for its shape, and whether *another*
# shape in the picture has the same colour.

# %% [markdown]
# A probe with many numbers and few examples can learn labels by heart, so a third of the pictures is kept for the test.
# Above the figure you find what always giving the most frequent answer would reach. You write the probe in exercise
# 14.5.

# %%
probe = use("inside.probe")

about = measure.questions_about_shapes(contents)


def readable(model):
    """The share of test shapes whose vector tells the answer. [questions, layers]"""
    states = measure.states_by_quarter(model, [sample["images"][0] for sample in samples])
    shares = [[each.share_right(state, probe) for state in states.values()] for each in about]
    return torch.tensor(shares), list(states)


found, layers = readable(model)
names = [each.name for each in about]
guesses = ", ".join(f"{each.name} {each.most_frequent:.0%}" for each in about)
print(f"by the most frequent answer: {guesses}")
share_tables({"right answers": found}, names, layers)

# %% [markdown]
# The colour can be read from the first block on, and the shape where the projector has joined the patches. Whether there
# is another shape of the same colour cannot be read from the patches, because no patch contains it. The encoder's
# attention brings it, block by block. Now the same with the encoder that has no attention:

# %%
quiz("ch14.probe")

# %%
blind = measure.with_encoder(model, measure.with_blocks(model, NoAttention))
without = readable(blind)[0]
share_tables({"right answers, no attention in the encoder": without}, names, layers)

# %% tags=["claim"]
assert found[0, 1:].min() > 0.95 and found[1, 3:].min() > 0.95
assert found[2, 2] > found[2, 0] + 0.15 and without[2, :4].max() < about[2].most_frequent + 0.08
assert without[2, 4] > without[2, 3] + 0.1

# %% [markdown]
# The last row stays at guessing, as it must, until the *decoder's* first block lets the image tokens attend to each
# other. This is why so few questions needed the encoder's
# attention: the decoder makes up for most of it, one step later. In the counts of colours it did not make up for all.

# %% [markdown]
# A probe finds what is there, and not what is used: the colour can be read in every layer, and the patches have shown that
# the model fetches it in the last block only. ([Belinkov 2021](https://arxiv.org/abs/2102.12452) collects what probes can
# show and what they cannot.)

# %% [markdown]
# ## Rollout follows attention back to the pixels
#
# The maps above belong to one block each. But in block 1 a key no longer describes one patch, because block 0 has mixed
# them. **Attention rollout** ([Abnar and Zuidema 2020](https://arxiv.org/abs/2005.00928)) follows the weights back. It
# takes a block for the mean of its heads, with half of each vector coming through the residual connection, and multiplies
# the matrices of all blocks. You write it in exercise 14.3.

# %%
rollout = use("inside.rollout")

flow = rollout(maps[:, 0])  # [N, N]: of each output, the share that comes from each input patch
for name, table in (("block 1 alone, mean over heads", maps[1, 0].mean(dim=0)), ("rollout", flow)):
    print(f"{name:30}: patch 17 takes {table[17, 17]:5.1%} from itself")

# %% tags=["claim"]
assert torch.allclose(flow.sum(dim=-1), torch.ones(64), atol=1e-4)
assert flow[17, 17] > 0.25

# %% [markdown]
# By this account at least a quarter of what patch 17 holds at the end is its own, because each of the two blocks keeps
# half. The numbers are only as good as their assumptions, though: that all heads count equally, that values and MLPs
# change nothing about who contributes, and that exactly half comes through the residual connection. Exercise 2.8 measures
# that last share, and it is not a half everywhere.

# %% [markdown]
# ## The logit lens reads a layer as words
#
# The decoder's last vectors become words through its final norm and its head. The **logit lens** (an idea of a [blog post
# by nostalgebraist, 2020](https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens)) applies
# the same two to the vectors *between* the blocks: which word would the model say, if it stopped here?

# %%
logit_lens = use("inside.logit_lens")

with torch.inference_mode():
    states = model(ids, pixels, output_hidden_states=True).hidden_states
read = [
    [model.tokenizer.decode([i]) for i in row[0]]
    for row in logit_lens(states, model.decoder).tolist()
]

# %% [markdown]
# Below are the last four positions of the prompt, from the embeddings to the output. At the very last position the answer
# has to appear. In which layer does it?

# %%
print(" " * 16 + "".join(f"{word!r:>16}" for word in words[-4:]))
for layer, row in enumerate(read):
    name = "embeddings" if layer == 0 else f"behind block {layer - 1}"
    print(f"{name:16}" + "".join(f"{word!r:>16}" for word in row[-4:]))

# %% [markdown]
# The row of the embeddings shows that an input token is not yet a prediction. The lens is a way to look, with the limits
# of all of them: the inner layers were never trained to be read by the head, so a word that it shows need not be what
# the next block uses.
#
# What do *image tokens* look like through it? They were never words.

# %%
for name, row in (("embeddings", read[0]), ("output", read[-1])):
    print(name)
    for i in range(1, 17, 4):
        print("".join(f"{word!r:>14}" for word in row[i : i + 4]))

# %% [markdown]
# Nothing in training asks an image token to predict a word, because targets at these positions are not supervised. So
# read what you see here with care: it tells which word embeddings these vectors are near, and not what the model "sees".
# The sign � is a token that holds only some of the bytes of a character in UTF-8, so that it is no text by itself
# (chapter 05).

# %% [markdown]
# ## What you take along
#
# - A map shows what a head attends to. It does not show whether the model needs it.
# - Change one thing at a time: mirror the picture, change the shape, change the colour.
# - Ablate, and measure with questions that the ablation could hurt.
# - A probe shows what a vector contains, and a patch shows what the model uses.
# - A lens applies the model's own last steps to its middle. Without the final norm it shows something else.

# %% [markdown]
# In the package, `output_hidden_states=True` returns the input of every decoder block and the output, and `nanovlm.trace`
# records the attention of each word (chapter 12). What this chapter measures with is in `nanovlm/course/chapter_14.py`.
#
# **Challenge.** Find the smallest set of encoder heads, over both blocks, without which fewer than half of the questions
# that count a colour are answered. Your score is the number of heads; the colour heads of block 1 are the baseline.

# %% [markdown] tags=["stamped"]
# ## Your turn
#
# [Open the exercises](../exercises/14_looking_inside.ipynb) ([in Colab][exercises]): 6 of them, about 1.2 hours.
#
# [exercises]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/exercises/14_looking_inside.ipynb
#
# | | exercise | difficulty | minutes |
# |---|---|---|---|
# | 14.1 | Take one head away (`inside.ablate_head`) | ●●○ | 12 |
# | 14.2 | Mend it: a lens without its norm (`inside.logit_lens`) | ●●○ | 10 |
# | 14.3 | Attention through all blocks (`inside.rollout`) | ●●○ | 12 |
# | 14.4 | Swap a vector between two pictures (`inside.patch_activation`) | ●●● | 15 |
# | 14.5 | A linear probe (`inside.probe`) | ●●○ | 12 |
# | 14.6 | Measure it: how much goes to the first position? (`inside.sink_share`) | ●○○ | 8 |
#
# Next: [15 Your own pictures](15_own_pictures.ipynb)
