# %% [markdown]
# # 15 Your own pictures
#
# You teach the pocket model something that is not in its data: handwriting. It learns, and forgets what it knew. You
# measure both, bring the old skills back, train a hundredth of the weights with adapters that you write by hand, and keep
# the rest in four bits. Fifty minutes; the code runs in a minute.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [← 14 Looking inside](14_looking_inside.ipynb) ·
# [16 Small and fast →](16_small_and_fast.ipynb) ·
# [exercises](../exercises/15_own_pictures.ipynb) ·
# [notation and terms](notation.md)
#
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/chapters/15_own_pictures.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/chapters/15_own_pictures.ipynb

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

# %% [markdown]
# **After this chapter you can**
#
# 1. put pictures of your own into a form that trains a model, and split them so that the score means something,
# 2. fine-tune a model, measure what it forgets, and choose among replay, frozen parts and adapters by numbers,
# 3. write LoRA and a 4-bit base, merge and share an adapter, and find the largest batch that fits.
#
# **You need** chapters 06, 08 and 10. **Time**: about twenty minutes of reading, fifteen for the code, and fifteen for six
# quizzes and two levers; the exercises take a further hour and three quarters.

# %%
import copy
import tempfile
from itertools import islice
from pathlib import Path

import torch
from torch import nn

# %%
from nanovlm import VisionLanguageModel
from nanovlm.assets import asset_path
from nanovlm.course import budget, expect_shape, lever, quiz, use
from nanovlm.course.runs import stored_runs
from nanovlm.data.digits import SPLITS, digit_samples, scans, write_cards
from nanovlm.data.own_data import read_own_data
from nanovlm.data.thimble import Thimble
from nanovlm.evaluation.scores import evaluate, interval
from nanovlm.viz.own_pictures import before_after_figure, skills_figure
from nanovlm.viz.pixel_shuffle import images_row

# %% [markdown]
# ## The question: what does the model do with pictures that it has never seen?
#
# We want real data that come without a download. The library scikit-learn brings 1,797 scans of handwritten digits, eight
# by eight numbers each. Here they become cards of 64 pixels, in the form in which you would bring your own photos: a
# folder with pictures and a file `metadata.jsonl`, with one row for each picture. If the library is missing, one sentence
# says so, and drawn digits take the place of the written ones.

# %%
folder = write_cards(Path(tempfile.mkdtemp()) / "cards", "test")
print(*(folder / "metadata.jsonl").read_text().splitlines()[:2], sep="\n")
print(f"{len(read_own_data(folder))} cards in the test part")

# %%
train, val, test = (digit_samples(split) for split in SPLITS)
shown = [test[i] for i in (0, 5, 8)]
images_row(
    [sample["images"][0] for sample in shown],
    [f"the answer: {sample['texts'][0]['assistant']}" for sample in shown],
)

# %% [markdown]
# The pocket model reads printed characters on coloured signs, digits among them. What will it make of these cards?

# %%
quiz("ch15.zero_shot")

# %%
from collections import Counter

model = VisionLanguageModel.from_pretrained(asset_path("pocket")).eval()
asked = test[: budget().pick(ci=60, laptop=200)]
result = evaluate(model, asked)
low, high = interval(sum(s.correct for s in result.scores.values()), len(asked))
print(
    f"right {result.accuracy:.0%} (95 % interval {low:.0%} to {high:.0%}), blind {result.blind_accuracy:.0%}"
)
said = Counter(answer for _, answer in result.answers)
print("most frequent answers:", said.most_common(5))

# %% tags=["claim"]
assert high < 0.25

# %% [markdown]
# Guessing among ten digits gives 10 %, so the model has nothing to offer here, although it has learnt to read digits on
# signs. Most of its answers are not even digits. This is the number that fine-tuning has to be compared with, together
# with the blind score, which says how much of it is read off the question.

# %% [markdown]
# ## Neighbours in the file are one person's, so a shuffled split flatters
#
# Before any training, look at where the data come from. The scans are the test part of a collection of [Alpaydin and
# Kaynak](https://doi.org/10.24432/C50P49), written by thirteen people. The file does not say who wrote what, but the
# [tests of scikit-learn](https://github.com/scikit-learn/scikit-learn/blob/1.5.0/sklearn/model_selection/tests/test_split.py)
# note that the samples are apparently grouped by writer. Does it matter how you split? Let a nearest neighbour answer.

# %%
ink, digits = scans()
ink, digits = torch.tensor(ink).flatten(1).float(), torch.tensor(digits)  # [1797, 64], [1797]


def neighbour(train: torch.Tensor, test: torch.Tensor) -> float:
    """The share of test scans whose nearest training scan shows the same digit."""
    nearest = torch.cdist(ink[test], ink[train]).argmin(dim=1)
    return (digits[train][nearest] == digits[test]).float().mean().item()


# %%
quiz("ch15.split")

# %%
order = torch.randperm(len(ink), generator=torch.Generator().manual_seed(0))
stretches = torch.arange(len(ink))
for name, places in (("shuffled", order), ("stretches of the file", stretches)):
    share = neighbour(places[:1200], places[1400:])  # the 200 between them are for validation
    print(f"{name:22} {share:.1%} right")

# %% [markdown]
# The shuffled split asks about people whose writing is in the training part as well. To know how the model does with a new
# person's hand, you have to hold out people, and the nearest to it that this file allows is to hold out a stretch. The same
# is true of your photos: hold out *another day*, *another room*, *another camera*, and not every fifth picture.

# %% [markdown]
# A **data card** of a few lines keeps such facts together: what the pictures show, who made them and when, who may use
# them, how they were split and why, and what is missing. Here that is who wrote which card, numbers of more than one
# digit, and anything but ink on paper.

# %% [markdown]
# ## Fine-tuning learns the cards and forgets the signs
#
# Now train all weights on the cards alone, with the loop and the optimizer of chapter 08 (Muon for the matrices, AdamW for
# the rest). The learning rates are lower than those of the run from which the model came, because its weights are worth
# something already.

# %%
quiz("ch15.forgetting")

# %%
from nanovlm.config import TrainConfig
from nanovlm.data.mixing import mixed_loader
from nanovlm.device import choose_precision
from nanovlm.training.optimizer import Optimizers
from nanovlm.training.probe import Probe, mean
from nanovlm.training.step import get_lr, train_step

CPU, FP32 = torch.device("cpu"), choose_precision("fp32", torch.device("cpu"))


# %%
def train_on(model, tasks, weights, steps, **changes):
    """Steps of 16 samples, of each task its part by weight. Changes the model, returns the losses.

    tasks: a list of samples each; changes: of the learning rates below."""
    gentle = {"lr_muon": 0.006, "lr_projector": 6e-4, "lr_backbones": 6e-4, "weight_decay": 0.1}
    config = TrainConfig(**{"optimizer": "muon", **gentle, **changes})
    parts = (model.config, model.tokenizer, model.image_processor)
    loader = mixed_loader(tasks, weights, *parts, batch_size=16)
    optimizers, losses, max_norm = Optimizers(model.train(), config), [], 1.0
    for step, batch in enumerate(islice(loader, steps)):
        optimizers.set_lr(get_lr(step, 1.0, steps, warmup_fraction=0.1, min_lr_fraction=0.05))
        losses.append(train_step(model, [batch], optimizers, FP32.scaler(CPU), FP32, CPU, max_norm))
    return losses


# %%
tuned = copy.deepcopy(model)
losses = train_on(tuned, [train], [1.0], steps=budget().pick(ci=30, laptop=100))
print(f"{len(losses)} steps: the loss fell from {losses[0]:.2f} to {losses[-1]:.2f}")

# %% [markdown]
# Ask it about cards of writers whom it has not seen, and about signs, the Thimble's subset `glyphs`, which no sample of
# this run showed. (`Probe` asks as `evaluate` does, in one pass for each batch, and `mean` averages over the kinds of
# questions.)

# %%
signs = Thimble("glyphs", "test")
about_digits = Probe(model, asked)
about_signs = Probe(model, [signs[i] for i in range(budget().pick(ci=20, laptop=60))])
for name, each in (("before", model), ("after", tuned)):
    shares = (mean(probe.accuracy(each)) for probe in (about_digits, about_signs))
    print("{:7} digits {:5.0%}   signs {:5.0%}".format(name, *shares))

# %% [markdown]
# A few seconds were enough for most of the digits. The longer run below was made once and stored: 100 steps, evaluated
# every 20, on one thread of the machine that the next cell names (`python -m nanovlm.bench.own_pictures --only replay`).

# %%
replay, SKILLS = stored_runs("15_replay"), ("digits", "shapes", "charts", "glyphs")
print(replay["machine"])

# %%
from nanovlm.viz.training import curves_figure


def over_time(run, start):
    """What a stored run can do every 20 steps, from a few questions: skill -> points (step, share)."""
    return {
        skill: [(0, start[skill]), *((e["step"], e[skill]) for e in run["evaluations"])]
        for skill in SKILLS
    }


alone = replay["0"]["seeds"]
curves_figure(
    "Trained on cards alone",
    over_time(alone["0"], replay["before"]["during"]),
    y_label="right answers",
    y_range=(0.0, 1.0),
)

# %%
from nanovlm.bench.own_pictures import at_the_end, intervals_of

before = replay["before"]["end"]
lost = {skill: before[skill] - at_the_end(replay["0"])[skill] for skill in SKILLS[1:]}
for seed, run in alone.items():
    print(f"seed {seed}:", ", ".join(f"{skill} {share:.0%}" for skill, share in run["end"].items()))
print("lost, in points:", ", ".join(f"{skill} {100 * share:.0f}" for skill, share in lost.items()))

# %% tags=["claim"]
assert at_the_end(replay["0"])["digits"] > 0.85
assert lost["glyphs"] > 0.2 and lost["glyphs"] == max(lost.values())

# %% [markdown]
# This is **catastrophic forgetting** ([McCloskey and Cohen 1989](https://doi.org/10.1016/S0079-7421(08)60536-8)). Nothing
# in the data contradicted what the model knew, and still all old skills fall. The signs suffer most, probably because the
# weights that read characters there are the ones that read digits here. The training loss shows nothing of it and falls
# all the while. Had we looked at the digits alone, the run would have been a success.

# %% [markdown]
# ## Replay: some old samples in each batch keep the old skill
#
# The simplest remedy is to go on training on the old data, a little. If a share $s$ of each batch consists of old samples,
# what remains of the old skills, and what does it cost? [Exercise 15.5](../exercises/15_own_pictures.ipynb) has the trap
# in it: a tenth of a batch of four is less than one sample, and rounding makes it none.

# %%
replay_mix = use("adapt.replay_mix")

# %% tags=["nbval-check-output"]
new, old = torch.arange(8), torch.arange(100, 104)
batches = replay_mix(new, old, share=0.1875, batch_size=4, num_batches=5)
print(batches)
print("old samples:", int((batches >= 100).sum()), "of", batches.numel())

# %% [markdown]
# Here are the stored runs, of 100 steps where nothing else is said. The old samples come from the Thimble's training part, the
# scores from its test part and from the test cards. The bars' lines are 95 % intervals of that many questions.

# %%
NAMES = {
    "0": "cards alone",
    "0.1": "a tenth old",
    "0.25, longer": "a quarter, 200 steps",
    "0.5, gently": "a half, gently",
}
rows = {"before": before} | {name: at_the_end(replay[key]) for key, name in NAMES.items()}
skills_figure("What is left, and what is new", rows, intervals_of(rows, replay["questions"]))

# %%
for key in ("0.25, longer", "0.5, gently"):
    run = replay[key]["seeds"]["0"]
    moved = {skill: 100 * (run["end"][skill] - before[skill]) for skill in SKILLS[1:]}
    print(
        f"{key}: digits {run['end']['digits']:.1%} after {run['seconds'] / 60:.1f} minutes, in points:"
    )
    print("   ", ", ".join(f"{skill} {points:+.1f}" for skill, points in moved.items()))

# %% tags=["claim"]
assert run["end"]["digits"] >= 0.9 and run["seconds"] < 240
assert min(moved.values()) >= -2

# %% [markdown]
# A tenth of old samples already saves most of the signs. A quarter, for twice as many steps, still loses some points of the
# shapes. With half of the samples old, and all learning rates lowered to two thirds (the last row, 250 steps), the old
# skills stay within two points, and more than nine of ten digits are right. These are single seeds of a few hundred
# questions, so a difference of a point means nothing.

# %% [markdown]
# The price is time: a replayed sample has several questions and is longer than a card, and each of them is a card less.

# %% [markdown]
# Where the old data are not to be had, as with most models from the Hub, people replay something like them, or answers
# that the old model itself gives. And where neither is at hand, there is a way that cannot lose the old weights at all:
# leave them alone.

# %% [markdown]
# ## Freezing a part decides where the new skill has to fit
#
# LLaVA is trained in stages ([Liu et al. 2023](https://arxiv.org/abs/2304.08485)): first the projector alone, with encoder
# and decoder frozen, then projector and decoder. Freezing is one line, `part.requires_grad_(False)`, and `nanovlm train
# --freeze vision_encoder` does it for you. What has to be proved is that it holds: [exercise
# 15.4](../exercises/15_own_pictures.ipynb) is to write that test. Here is what each part alone makes of the cards, in 100
# steps without replay.

# %%
parts = stored_runs("15_parts") | {"all": replay["0"]}  # all weights, cards alone: the run above
TRAINED = ("projector", "encoder", "decoder", "all")
rows = {"before": before} | {name: at_the_end(parts[name]) for name in TRAINED}
skills_figure("Only this part is trained", rows, intervals_of(rows, parts["questions"]))

# %% tags=["claim"]
assert 0.5 < rows["projector"]["digits"] < rows["encoder"]["digits"] < rows["all"]["digits"]
assert min(rows["projector"][skill] for skill in SKILLS[1:]) > 0.975
assert rows["encoder"]["shapes"] < rows["projector"]["shapes"] - 0.02
assert rows["decoder"]["digits"] > rows["encoder"]["digits"] + 0.1
assert rows["decoder"]["glyphs"] > rows["all"]["glyphs"] + 0.1

# %% [markdown]
# The projector, with a twentieth of the weights, learns more than half of the digits and forgets next to nothing. The
# encoder alone learns little more and damages the shapes, because its vectors go into every answer: a decoder that has
# not changed then reads something else than it was trained on. So a frozen part does not protect an old skill by itself.
# The decoder alone, with about two thirds of the weights, comes within the interval of training everything, and keeps
# far more of the signs: most of what handwriting needs, the old encoder sees already.
#
# LLaVA's first stage is for a projector that is new, and whose random vectors would disturb a trained decoder. Ours is not
# new, so there are no stages here.
#
# Sometimes one row of a matrix is enough. Chapter 05 shows how the pocket model learned to read `color`: 128 numbers were
# trained, `nanovlm train --trainable-tokens` kept every other weight as it was, and no old answer changed.

# %% [markdown]
# ## LoRA trains a difference of low rank
#
# A fine-tuned matrix is the old one plus a difference. **LoRA** ([Hu et al. 2021](https://arxiv.org/abs/2106.09685))
# writes that difference as a product of two thin matrices, $B$ with r columns and $A$ with r rows, and trains them alone:
#
# $$y = x W^\top + \frac{\alpha}{r}\, x A^\top B^\top$$
#
# The factor $\alpha / r$ sets how much the difference counts: $\alpha$ is chosen once, and dividing by r is meant to let you
# change the rank without looking for another learning rate. For a matrix of 128 by 128 and $r = 4$ the two have 1,024
# numbers instead of 16,384. How should A and B begin?

# %%
quiz("ch15.zero_start")

# %%
LoRALinear = use("adapt.lora_linear")

torch.manual_seed(0)
base = nn.Linear(128, 128)
layer, x = LoRALinear(base, rank=4, alpha=8.0), torch.randn(2, 128)
print("a new adapter changes nothing:", torch.equal(layer(x), base(x)))
layer(x).square().sum().backward()
for name in ("lora_a", "lora_b"):
    print(f"a gradient for {name}:", bool(getattr(layer, name).grad.any()))
print("a gradient for the base:", base.weight.grad is not None)

# %% [markdown]
# At the first step only B moves, since A's gradient is multiplied by B. From the second step on both do. Nothing of the
# base moves at all, so that the old model is there whenever the adapter is taken off. That is the sense in which LoRA
# cannot forget; while the adapter is on, it can change old answers as well as any other training.

# %% [markdown]
# ### It is the same as peft
#
# The library `peft` is what most people use. With the same weights it gives the same numbers.

# %%
try:
    import peft
except ImportError:
    print("peft is not installed here (pip install peft); this comparison is left out.")
else:
    settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["0"])
    theirs = peft.get_peft_model(nn.Sequential(copy.deepcopy(base)), settings)
    adapted = theirs.base_model.model[0]
    with torch.no_grad():
        layer.lora_b.normal_()  # as after some training
        adapted.lora_A["default"].weight.copy_(layer.lora_a)
        adapted.lora_B["default"].weight.copy_(layer.lora_b)
    print(f"largest difference: {(theirs(x) - layer(x)).abs().max().item():.1e}")
    assert (theirs(x) - layer(x)).abs().max() < 1e-5

# %% [markdown]
# ### Adapters on the pocket model
#
# `add_lora` gives every linear layer of a chosen name an adapter and freezes the rest. The usual choice is the projections
# for queries and values, where Hu et al. found them to do most at a given number of weights.

# %%
from nanovlm.adapt.lora import add_lora, lora_layers, merge_lora, save_adapter

adapted = copy.deepcopy(model)
torch.manual_seed(0)
names = add_lora(adapted, rank=4, alpha=8.0)
trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
total = sum(p.numel() for p in model.parameters())
print(f"{len(names)} layers, {trained:,} of {total:,} weights are trained: {trained / total:.2%}")

# %%
steps = budget().pick(ci=20, laptop=100)
losses = train_on(adapted, [train], [1.0], steps, lr_projector=4e-3)  # the rate of adapters, too
print(f"the loss fell from {losses[0]:.2f} to {losses[-1]:.2f}")
moved = [
    name
    for (name, p), q in zip(adapted.named_parameters(), adapted.parameters(), strict=True)
    if not name.endswith(("lora_a", "lora_b")) and not torch.equal(q, model.get_parameter(name))
]
print("weights of the base that moved:", len(moved))

# %% tags=["claim"]
assert not moved

# %% [markdown]
# ### Merged, an adapter costs nothing
#
# When the model answers, the two small products beside each layer take time. Since $x W^\top + \frac{\alpha}{r} x A^\top
# B^\top = x (W + \frac{\alpha}{r} B A)^\top$, the difference can be added to the matrix once and for all. [Exercise
# 15.3](../exercises/15_own_pictures.ipynb) is to mend a merge that works for square matrices only. The results are equal
# but for rounding:

# %%
from nanovlm.inference.prompts import prepare_prompts

prompt = prepare_prompts(adapted, ["Which digit is this?"], [test[0]["images"][0]])
with torch.no_grad():
    beside = adapted.eval()(prompt["input_ids"], prompt["images"]).logits
    merged = copy.deepcopy(adapted)
    merge_lora(merged)
    inside = merged(prompt["input_ids"], prompt["images"]).logits
print("layers with an adapter:", len(lora_layers(adapted)), "and", len(lora_layers(merged)))
print(f"the logits differ by {(beside - inside).abs().max().item():.0e} at most")
torch.testing.assert_close(beside, inside, atol=1e-3, rtol=1e-4)

# %% [markdown]
# ### The table: what was trained, and what it took
#
# All rows are 100 steps of 16 cards without replay, one seed, one thread. *Peak* is the memory of all tensors that live at
# one time during a step, with the optimizer's state; the minutes are those of the training steps alone.

# %%
ADAPTERS = [name for name in parts if name.startswith(("LoRA", "QLoRA"))]
print(f"{'trained':27}{'weights':>11}{'minutes':>9}{'peak MB':>9}{'digits':>8}{'signs':>7}")
for name in (*TRAINED, *ADAPTERS):
    run = parts[name]["seeds"]["0"]
    took = f"{run['seconds'] / 60:9.2f}{run['peak_bytes'] / 1e6:9.0f}"
    print(
        f"{name:27}{run['trained']:11,}{took}{run['end']['digits']:8.0%}{run['end']['glyphs']:7.0%}"
    )

# %%
rows = {name: at_the_end(parts[name]) for name in ("all", *ADAPTERS)}
skills_figure("Adapters beside training everything", rows, intervals_of(rows, parts["questions"]))

# %% [markdown]
# Read the table by its columns. With adapters in queries and values, the number of trained weights falls by a factor of
# nearly two hundred, and the optimizer's state with it. Time and memory fall to less than a half: these adapters are in the
# decoder alone, so that the backward pass ends at its first block and the encoder keeps no activations. They fall no
# further, because the forward pass is the whole model's and the decoder's activations are kept. For a model of billions of
# weights, gradients and the optimizer's state are most of the memory. That is the case for which LoRA was made.

# %% [markdown]
# What changes for a larger model? With AdamW in float32, each weight takes four bytes, and each *trained* weight twelve more
# for its gradient and two moments. Count it for nanoVLM's 222M; nothing is computed on the device `meta`.

# %% tags=["nbval-check-output"]
from nanovlm.config import VLMConfig

with torch.device("meta"):
    large = VisionLanguageModel(VLMConfig())
    everything = sum(p.numel() for p in large.parameters())
    add_lora(large, rank=8, alpha=16.0)
adapters = sum(p.numel() for p in large.parameters() if p.requires_grad)
for name, count in (("all weights", everything), ("LoRA, rank 8", adapters)):
    size = 4 * everything + 12 * count
    print(f"{name:13}{count:12,} trained, {size / 1e9:.2f} GB without activations")

# %% [markdown]
# How much an adapter learns depends on where it sits and on its rank. With rank 4 in queries and values, the old skills stay
# as they were, and learning stops at two thirds of the digits. With rank 16 in the same places and at the same learning
# rate, a tenth more of the digits is right, and a third of the signs is gone. With rank 4 in all matrices, which is four
# per cent of the model's weights, more is learnt and less forgotten than that.

# %% [markdown]
# So LoRA does not protect old skills by itself: while it is on, an adapter forgets as any training does, and its smallness
# limits both. But you can take it off.

# %% tags=["claim"]
small, large = rows["LoRA, rank 4"], rows["LoRA, rank 4, all blocks"]
assert small["digits"] + 0.1 < large["digits"] < rows["all"]["digits"]
assert min(small[skill] for skill in SKILLS[1:]) > 0.98 and large["glyphs"] < 0.95
assert rows["LoRA, rank 16"]["digits"] > small["digits"] + 0.05
assert rows["LoRA, rank 16"]["glyphs"] < 0.72 < large["glyphs"]
assert parts["LoRA, rank 4, all blocks"]["seeds"]["0"]["trained"] < total / 20

# %% [markdown]
# ## Four bits a number: the frozen base need not be exact
#
# A frozen weight is never moved by a small step, so it can be kept coarsely. **QLoRA** ([Dettmers et al.
# 2023](https://arxiv.org/abs/2305.14314)) keeps it in four bits: each weight is replaced by the index of an entry in a **code
# book** of sixteen values from -1 to 1, and what is restored is that entry times a scale. The entries of the paper's code
# book, NF4, are denser near zero, where most weights are. A gradient still goes through the restored matrix to the adapters
# before it.

# %%
quiz("ch15.outlier")

# %%
from nanovlm.adapt.blocks import NF4, dequantise_blocks

quantise_blocks = use("adapt.quantise_blocks")

weight = model.decoder.blocks[0].mlp.up_proj.weight.detach()[:16].clone()  # [16, 128]
weight[0, 0] = 3.0  # an outlier, as large models have them
largest_usual = round(float(weight.flatten()[1:].abs().max()), 2)
expect_shape(weight, "16 128")


# %%
def restored(block: int) -> torch.Tensor:
    codes, scales = quantise_blocks(weight, NF4, block)
    return dequantise_blocks(codes, scales, weight.shape, block)


def staircase(block: int):
    title = "One scale for all" if block == weight.numel() else f"A scale for each {block} numbers"
    numbers = (weight.flatten()[::3].tolist(), restored(block).flatten()[::3].tolist())
    return before_after_figure(*numbers, title, largest_usual)


lever(staircase, block=[16, 64, 256, weight.numel()], start={"block": 64})

# %% [markdown]
# With one scale for all, the outlier takes the code book's ends for itself, and the rest is left with a few values around
# zero. With a scale for each block it spoils its own block alone. The scales cost memory as well:

# %% tags=["nbval-check-output"]
for block in (16, 64, 256):
    print(f"blocks of {block:3}: {4 + 32 / block:.2f} bits a number with float32 scales")

# %% [markdown]
# QLoRA takes blocks of 64 and stores the scales themselves in eight bits, which makes 4.13 bits. The table above has a row
# for it: adapters in all blocks on a base in four bits.

# %%
for name in ("LoRA, rank 4, all blocks", "QLoRA, rank 4, all blocks"):
    run = parts[name]["seeds"]["0"]
    number = parts["questions"]["digits"]
    low, high = interval(round(number * run["end"]["digits"]), number)
    took = f"{run['seconds']:.0f} s, {run['peak_bytes'] / 1e6:.0f} MB at the peak"
    print(f"{name:27} digits {run['end']['digits']:.1%} ({low:.0%} to {high:.0%}), {took}")

# %% [markdown]
# The coarse base costs no digit that could be measured. On this CPU it saves nothing else either: each matrix is restored
# for its product and kept for the backward pass, so that it takes longer than plain LoRA and its peak is the same. On a GPU,
# libraries such as `bitsandbytes` and `torchao` restore inside the product, and there the base is most of the memory. The
# package's code book and blocks are tested against torchao's values.

# %% tags=["claim"]
exact, coarse = (parts[f"{name}, rank 4, all blocks"]["seeds"]["0"] for name in ("LoRA", "QLoRA"))
assert abs(exact["end"]["digits"] - coarse["end"]["digits"]) < 0.03
assert coarse["seconds"] > exact["seconds"] and coarse["peak_bytes"] > 0.95 * exact["peak_bytes"]

# %% [markdown]
# ## Little data: what an augmentation may change, and what it may not
#
# Twelve hundred cards are much. Here are runs on 20, 100 and 500 of them, 60 steps each. Every five steps they were asked
# for the loss on their own cards (up to a hundred of them) and on 200 others, which are validation cards.

# %%
from nanovlm.viz.training import panels_figure

little = stored_runs("15_little")
print(little["command"])


def over_seeds(stored, value, before=None):
    """The mean over the seeds of a stored run: points (step, value) of its evaluations."""
    evaluations = zip(*(run["evaluations"] for run in stored["seeds"].values()), strict=True)
    points = [(each[0]["step"], sum(e[value] for e in each) / len(each)) for each in evaluations]
    return points if before is None else [(0, before[value]), *points]


panels_figure(
    "The loss on a run's own cards, and on others",
    {
        f"{cards} cards": {
            "own": over_seeds(little[f"{cards}, as they are"], "train_loss"),
            "others": over_seeds(little[f"{cards}, as they are"], "val_loss"),
        }
        for cards in (20, 100, 500)
    },
)

# %% [markdown]
# With twenty cards, the loss on these is near zero after 15 steps, and the loss on others rises from there on: the model has
# learnt them by heart, and becomes surer of its mistakes. This is **overfitting**. With a hundred cards the loss on others
# is a fifth of that and rises a little. With five hundred, each of which 60 steps show less than twice, it only levels off.
#
# To stop where the loss on others is lowest is **early stopping**; `nanovlm train` keeps the weights of that step in
# `best/`. How many more digits are right there?

# %%
for cards in (20, 100, 500):
    run = little[f"{cards}, as they are"]["seeds"]["0"]
    early, end = run["early"], run["end"]
    told = f"{early['digits']:.1%} right there, {end['digits']:.1%} at the end"
    print(f"{cards:3} cards: the lowest loss is that of step {early['step']}; {told}")

# %% [markdown]
# None that could be measured. As many cards are wrong at the lowest loss as at the end, so that what came afterwards is
# mostly certainty. Early stopping saves steps, and probabilities that somebody wants to use, and not always answers. It also needs validation cards of which none is trained on, which are hard to spare where there are only twenty.
#
# Where more cards are not to be had, **augmentation** shows each of them a little differently each time it comes. It has
# to change what the answer does *not* depend on.

# %%
quiz("ch15.mirror")

# %%
from nanovlm.bench.own_pictures import mirrored, turned

generator = torch.Generator().manual_seed(3)
card = next(sample for sample in train if sample["texts"][0]["assistant"] == "2")["images"][0]
mirror = next(image for image in (mirrored(card, generator) for _ in range(20)) if image != card)
images_row(
    [card, turned(card, generator), mirror],
    ["a 2", "moved and turned: a 2", "mirrored: what is it?"],
)

# %%
asked_about = little["questions"]["digits"]
for name in ("20, as they are", "20, moved and turned", "100, as they are", "100, mirrored"):
    share = little[name]["seeds"]["0"]["end"]["digits"]
    low, high = interval(round(share * asked_about), asked_about)
    print(f"{name:22}{share:.1%} right, of unseen writers ({low:.0%} to {high:.0%})")

# %% [markdown]
# Moving and turning is worth more than a tenth of all answers with twenty cards. The mirror is worth nothing: its share is
# within the interval of doing nothing. It does not show as harm either, since half of the cards are still right and no test
# card is mirrored. A wrong augmentation may well go unnoticed, which is a reason to look at what it makes.

# %% tags=["claim"]
ends = {name: at_the_end(little[name])["digits"] for name in little if ", " in name}
assert ends["20, moved and turned"] > ends["20, as they are"] + 0.1
assert abs(ends["100, mirrored"] - ends["100, as they are"]) < 0.04
found = {cards: little[f"{cards}, as they are"]["seeds"]["0"] for cards in (20, 100, 500)}
late = {cards: run["evaluations"][-1]["val_loss"] for cards, run in found.items()}
assert late[20] > found[20]["early"]["val_loss"] + 0.5 and found[20]["early"]["step"] == 15
assert late[100] > found[100]["early"]["val_loss"] > 3 * late[500]
assert all(abs(run["early"]["digits"] - run["end"]["digits"]) < 0.03 for run in found.values())

# %% [markdown]
# ## Several tasks: who decides how often each comes?
#
# Replay is a case of a more general question. We have four tasks now: 1,200 cards, and three Thimble subsets of 10,000
# pictures. In proportion to their sizes, digits would be one sample in twenty-six. A **temperature** T moves between that
# and equal parts: the part of a task is proportional to $n_i^{1/T}$.

# %%
from nanovlm.viz.vit import share_bars

task_weights = use("adapt.task_weights")

sizes = {"digits": 1_200, "shapes": 10_000, "charts": 10_000, "glyphs": 10_000}


def mixture(temperature: float):
    parts = task_weights(list(sizes.values()), temperature)
    shares = dict(zip(sizes, parts.tolist(), strict=True))
    return share_bars(shares, 0.25, "an equal part", f"Parts at temperature {temperature:g}")


lever(mixture, temperature=[1.0, 2.0, 5.0, 100.0], start={"temperature": 1.0})

# %% [markdown]
# Another way looks at what is still to be learnt: each task's part is proportional to its loss on held-out samples, with a
# floor below which none falls, and is set anew every 20 steps.
#
# A third way leaves the samples as they are and weighs the *losses*. [Kendall et al.
# 2018](https://arxiv.org/abs/1705.07115) learn a number $s_i$ for each task along with the model, the logarithm of its
# **uncertainty**, and minimise
#
# $$\sum_i e^{-s_i} L_i + \tfrac{1}{2} s_i .$$
#
# The second term keeps the weights $e^{-s_i}$ from going to zero. Set the derivative by $s_i$ to zero, and the weight comes
# out as $1 / (2 L_i)$. So before you look at the runs: what does this do to a task that is new, and whose loss is large?

# %%
from nanovlm.adapt.task_loss import UncertaintyWeights

weigh, task_losses = UncertaintyWeights(4), torch.tensor([3.0, 0.02, 0.02, 0.1])
optimizer = torch.optim.Adam(weigh.parameters(), lr=0.1)
for _ in range(100):
    optimizer.zero_grad()
    weigh(task_losses, present=torch.ones(4, dtype=torch.bool)).backward()
    optimizer.step()
for loss, weight in zip(task_losses.tolist(), weigh.weights.tolist(), strict=True):
    print(f"a loss of {loss:.2f} gets the weight {weight:5.2f}")

# %% [markdown]
# It is turned down: a large loss counts as noise that nobody can learn. The rule was made for tasks that are measured in
# different units, and for those it finds a common one. Here are the four ways in stored runs of 100 steps. The mixture by
# temperature takes T = 5, and the run by uncertainty has the same samples as that.

# %%
tasks = stored_runs("15_tasks")
MIXES = ("by size", "by temperature", "by loss", "by uncertainty")
rows = {name: at_the_end(tasks[name]) for name in MIXES}
skills_figure("Four tasks, four ways to balance them", rows, intervals_of(rows, tasks["questions"]))

# %%
start = replay["before"]["during"]
panels_figure(
    "Each task's questions, while it trains",
    {
        name: {skill: over_seeds(tasks[name], skill, start) for skill in SKILLS}
        for name in MIXES
        if tasks[name]["seeds"]["0"]["evaluations"]
    },
    "right answers",
)

# %%
print("the part of the digits among the samples, every 20 steps")
for name in MIXES[:3]:
    shares = tasks[name]["seeds"]["0"]["shares"]
    print(f"   {name:15}", "  ".join(f"{row[0]:4.0%}" for row in shares))
print("the learned weight of each task's loss, every 20 steps")
learned = zip(*tasks["by uncertainty"]["seeds"]["0"]["task_weights"], strict=True)
for skill, weights in zip(SKILLS, learned, strict=True):
    print(f"   {skill:15}", "  ".join(f"{weight:5.2f}" for weight in weights))

# %% [markdown]
# In proportion to size, a hundred steps contain some sixty cards, and less than half of the digits are right. By temperature
# they are nearly a fifth of the samples from the first step to the last, and three of four digits are right.
#
# By loss, the new task begins with most of the samples and gives them up to the signs as those are forgotten, which makes a
# curriculum of its own: nine of ten digits, at the price of some signs. It needs held-out samples of every task and an
# evaluation every few steps.
#
# The learned weights do what the formula says. The digits are turned down at first and come back, and each old task ends
# with more than ten times its first weight. For the answers this changes little: two points more digits than by
# temperature, and no sign lost. An old task's loss is so small that ten times its gradient is still a small one. All four
# are single seeds, so take two points for nothing, and the order of the digits for something.

# %% tags=["claim"]
digits = {name: row["digits"] for name, row in rows.items()}
assert digits["by size"] < 0.5 < 0.7 < digits["by temperature"] < 0.85 < digits["by loss"]
assert abs(digits["by uncertainty"] - digits["by temperature"]) < 0.05
assert rows["by loss"]["glyphs"] < rows["by size"]["glyphs"] - 0.03

# %% [markdown]
# ## Memory: find the largest batch by trying
#
# How many rows fit? Formulas answer to a few per cent (chapter 11), and a step that is really made answers exactly. With
# `--batch-size auto`, the package doubles the batch until one does not fit and then halves the distance. On a GPU it
# catches the out-of-memory error; on a CPU, where the system would swap instead, it counts the tensors that live at one
# time. [Exercise 15.7](../exercises/15_own_pictures.ipynb) is the search.

# %%
from nanovlm.training.largest_batch import step_bytes

largest_batch = use("adapt.largest_batch")

recipe = TrainConfig(max_length=64)
tried = {}


def fits(rows: int) -> bool:
    tried[rows] = step_bytes(model, recipe, rows, FP32, CPU) / 1e6
    return tried[rows] <= 50  # megabytes, so that the search is short


print("largest:", largest_batch(fits, 64), "rows")
print(", ".join(f"{rows} rows {size:.0f} MB" for rows, size in tried.items()))

# %% [markdown]
# Where the batch that you want does not fit, two things help: **gradient accumulation** (chapter 08) makes one step of
# several small batches, and **gradient checkpointing** (chapter 11) keeps fewer activations and computes them again.

# %%
from dataclasses import replace

rows = 4
ways = {
    "all weights": recipe,
    "with checkpointing": replace(recipe, gradient_checkpointing=True),
    "LoRA, rank 4": replace(recipe, lora_rank=4),
}
for name, each in ways.items():
    print(f"{name:20} {step_bytes(model, each, rows, FP32, CPU) / 1e6:6.1f} MB for {rows} rows")

# %% [markdown]
# ## Share the adapter, and say what the model has forgotten
#
# An adapter is saved alone. Several of them can serve one base: load the base once, and put on the one that is needed.

# %%
where = save_adapter(adapted, Path(tempfile.mkdtemp()) / "digits")
size = sum(file.stat().st_size for file in where.iterdir())
whole = asset_path("pocket/model.safetensors").stat().st_size
print(sorted(file.name for file in where.iterdir()), f"{size / 1e3:.0f} kB")
print(f"{size / whole:.1%} of the base's weights file")

# %% [markdown]
# The card that goes with it should hold what you would want to know of somebody else's adapter: the base and its version,
# the data and how they were split, the score with its interval and the blind score beside it, **and the old skills before
# and after**. A score on the new task alone is half of the truth, as this chapter's first curve has shown.

# %% [markdown]
# On the command line the whole chapter is a few options:
#
# ```bash
# nanovlm train --model pocket --dataset-path cards --lora-rank 8 --lora-alpha 16 --lora-modules q_proj v_proj
# nanovlm train --model pocket --dataset-path cards --freeze vision_encoder --lr-backbones 1e-4
# nanovlm train --model pocket --dataset-path cards --lora-rank 8 --lora-4bit --batch-size auto
# ```

# %% [markdown]
# ## What SmolVLM's notebook does
#
# The [fine-tuning notebook of SmolVLM](https://github.com/huggingface/smollm/blob/c26df8c6257554c22a6153bdbf41cc28a0175466/finetuning/Smol_VLM_FT.ipynb)
# uses what you have built here, through peft and bitsandbytes: NF4 with scales that are themselves quantised, adapters of
# rank 8 with alpha 8 and a dropout of 0.1, in the seven projections of every decoder block. It prints 10.5 of 2,257
# million weights as trained. Its data are split at random, and no old skill is measured afterwards.

# %% [markdown]
# [nanoVLM](https://github.com/huggingface/nanoVLM/blob/340fd5f262314e5bd8598143fe88f35796eac18e/models/config.py) has no
# adapters. It trains all parts, the projector at a rate a hundred times as high as that of the backbones (`lr_mp` and
# `lr_backbones`), which is what our `lr_projector` and `lr_backbones` are.

# %% [markdown]
# ## Where this lives in the package
#
# `nanovlm/adapt/` has the adapters, the 4-bit blocks and the freezing, `nanovlm/data/own_data.py` the formats of your own
# data, `data/mixing.py` the mixtures, `training/largest_batch.py` the search, and `bench/own_pictures.py` all stored runs.

# %% [markdown]
# What you take along:
#
# - Hold out what will be new in use: people, days, rooms. A shuffled split flatters.
# - Fine-tuning forgets, and the training loss does not show it. Measure the old skills, too.
# - Replay keeps them at the price of time; an adapter can be taken off again.
# - LoRA trains few weights, and saves memory first of all: the forward pass stays what it was.
# - A block with its own scale keeps an outlier's damage local.

# %% [markdown]
# **Challenge.** Teach the digits with twenty cards, and lose nothing else. It stands at the end of the exercises, with a
# project: twenty photos of your own.

# %% [markdown] tags=["stamped"]
# ## Your turn
#
# [Open the exercises](../exercises/15_own_pictures.ipynb) ([in Colab][exercises]): 7 of them, about 100 minutes.
#
# [exercises]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/exercises/15_own_pictures.ipynb
#
# | | exercise | difficulty | minutes |
# |---|---|---|---|
# | 15.1 | How often each task comes up (`adapt.task_weights`) | ●○○ | 10 |
# | 15.2 | A trained difference beside a frozen matrix (`adapt.lora_linear`) | ●●○ | 15 |
# | 15.3 | Mend it: a merge that fits square matrices only (`adapt.merge_lora`) | ●●○ | 10 |
# | 15.4 | Write the test: did only these parts move? (`adapt.freeze_parts`) | ●●○ | 15 |
# | 15.5 | Old samples among the new (`adapt.replay_mix`) | ●●○ | 15 |
# | 15.6 | Four bits a number, block by block (`adapt.quantise_blocks`) | ●●● | 20 |
# | 15.7 | Measure it: the largest batch that fits (`adapt.largest_batch`) | ●●● | 15 |
#
# Next: [16 Small and fast](16_small_and_fast.ipynb)
