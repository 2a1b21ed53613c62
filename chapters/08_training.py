# %% [markdown]
# # 08 Training
#
# You build every part of a training loop, find out what each of them is for by breaking it, and train a model until it
# provably sees. Afterwards you can (1) tell from curves what is wrong with a run, (2) write the schedule, the optimizer,
# the step and the resume yourself, and (3) say whether a change helped, with an interval. You need chapters 05 and 06.
# About an hour to read, the long run not counted, and two hours for the exercises.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [← 07 Data](07_data.ipynb) ·
# [09 Generation →](09_generation.ipynb) ·
# [exercises](../exercises/08_training.ipynb) ·
# [notation and terms](notation.md)
#
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/chapters/08_training.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/chapters/08_training.ipynb

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
import math
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from nanovlm.assets import asset_path
from nanovlm.bench.training_runs import all_small, small_recipe, small_vlm
from nanovlm.course import budget, lever, quiz, use, yours
from nanovlm.course.runs import pocket_logs, stored_runs

# %%
from nanovlm.data.loading import get_dataloaders
from nanovlm.training.probe import mean
from nanovlm.viz.start_here import sample_card
from nanovlm.viz.training import curves_figure, gallery_figure, intervals_figure, smooth
from nanovlm.weights.from_preset import from_scratch

# %% [markdown]
# ## A loss that falls does not show that the model sees
#
# Here is the loss of a training run: a small vision-language model with random weights, which learns to answer questions
# about coloured shapes in 300 steps of 32 conversations. (`python -m nanovlm.bench.training_runs` makes all stored curves
# of this chapter.) The training loss and the validation loss, which is measured on pictures that are never trained on,
# fall together.

# %%
gallery = stored_runs("08_gallery")
some_run = gallery["pictures_shuffled"]
seconds = some_run["evaluations"][-1]["seconds"]
print(f"{some_run['parameters']:,} parameters; {some_run['machine']}; {seconds:.0f} s")
curves_figure(
    "The loss of one run",
    {
        "training": list(enumerate(smooth(some_run["loss"]), start=1)),
        "validation": [(e["step"], e["val_loss"]) for e in some_run["evaluations"]],
    },
    log=True,
)

# %%
quiz("ch08.does_it_see")

# %% [markdown]
# There is one way to find out: ask the same questions about other pictures. If the answers are as often right as before,
# then the model has read them off the question. This is a **blind baseline** as well: in chapter 07 we counted answers,
# and here the model itself has to answer without its picture. Here it is for the run above, and for another one whose
# loss you have not seen.


# %%
def right_and_blind(run: dict) -> dict[str, list[tuple[float, float]]]:
    """The two curves of a stored run, each a mean over the kinds of question."""
    names, evaluations = ("accuracy", "blind"), run["evaluations"]
    return {name: [(e["step"], mean(e[name])) for e in evaluations] for name in names}


healthy = gallery["healthy"]
both = {
    f"{name}, {what}": points
    for name, run in (("run above", some_run), ("other", healthy))
    for what, points in right_and_blind(run).items()
}
curves_figure("Right answers", both, y_label="share", y_range=(0, 0.7))

# %% [markdown]
# In the run above every conversation had its neighbour's picture. The model learnt how questions are answered, where an
# answer ends and how often each answer is right, and all of that lowered the loss. In the other run, in which the
# pictures are the right ones, the accuracy leaves the blind curve. Its loss ends lower as well, but no loss tells by
# itself that it is too high.

# %%
for name, run in (("neighbour's pictures", some_run), ("right pictures", healthy)):
    last = run["evaluations"][-1]
    right, blind = mean(last["accuracy"]), mean(last["blind"])
    print(f"{name:20} validation loss {last['val_loss']:.2f}, right {right:.0%}, blind {blind:.0%}")
    print(" " * 20, ", ".join(f"{kind} {share:.0%}" for kind, share in last["accuracy"].items()))

# %% [markdown]
# Look at the kinds of the second run. What can be read off the objects one by one (colour, shape, count) is well above
# guessing after 300 steps. What needs two steps, such as finding an object and then saying *where* it is, has not begun;
# longer runs learn it later. With 240 questions, 40 of a kind, a mean is known to about 6 points and a single kind to
# about 15.

# %% [markdown]
# ### The loss of each kind tells what the mean hides
#
# Split the validation loss by kind of question, and ask each question twice, with its own picture and with another one.
# A guesser who knows that two answers are equally frequent has a loss of $\ln 2 = 0.69$, and with four answers
# $\ln 4 = 1.39$. Here is the second run, made once more with these losses. Which kinds stop at a guesser's loss?

# %%
from nanovlm.viz.training import panels_figure, rates_figure

by_kind = stored_runs("08_kinds")["healthy"]["evaluations"][2:]  # from step 50 on
panels_figure(
    "Loss of an answer, by kind of question",
    {
        kind: {
            name: [(e["step"], e[losses][kind]) for e in by_kind]
            for name, losses in (("own picture", "losses"), ("another picture", "blind_losses"))
        }
        for kind in by_kind[0]["losses"]
    },
)

# %% [markdown]
# *Exists* and *compare* stay at 0.69 and *where* at 1.39 with either picture, so these kinds are guessed as well as
# can be. Colour, shape and count leave the blind curve after about 50 steps, and then their blind loss *rises*, because
# a model that trusts its picture is wrong with confidence about another one. The distance between the two curves is what
# the model gains from looking. Keep such curves for every source of a mixture: a mean can fall although one part has
# stopped.

# %% [markdown]
# ## The loop has six lines, and each of them can be missing
#
# This is a model of the same size, and a loop that trains it. It is all that a run needs as long as nothing goes wrong.
# (`small_vlm` and `small_recipe` are the sizes and the settings of the stored runs.)

# %%
from nanovlm.models.vision_language_model import VisionLanguageModel


def loaders_for(model: VisionLanguageModel, **changes):
    """The training and the validation batches of the small recipe."""
    recipe = small_recipe(**changes)
    return get_dataloaders(recipe, model.config, model.tokenizer, model.image_processor)


# %%
torch.manual_seed(0)
model = from_scratch(small_vlm()).train()
train_loader, _ = loaders_for(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
batches, losses = iter(train_loader), []

# %%
for _ in range(budget().pick(ci=15, laptop=60)):
    batch = next(batches)
    loss = model(batch["input_ids"], batch["images"], targets=batch["targets"]).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())

print(f"{len(losses)} steps: the loss went from {losses[0]:.1f} to {losses[-1]:.2f}")

# %% [markdown]
# What happens if a line is left out?
#
# | without | what you see |
# |---|---|
# | `train()` | a model with dropout trains without it (ours has none, so here nothing changes) |
# | `targets=` | there is no loss, and `backward()` fails: the only mistake in this table that says so |
# | `zero_grad()` | each step adds all gradients since the start, so the steps grow until the loss does |
# | `backward()` | no gradient, no change: the loss is a flat, noisy line |
# | `step()` | the same flat line, at the full cost of the backward pass |
# | `.item()` | each stored loss keeps a part of its graph alive, and the memory grows with every step |

# %% [markdown]
# ## Three tests that take a minute and save a day
#
# ### 1. The first loss is known before you train

# %%
quiz("ch08.first_loss")

# %%
torch.manual_seed(0)
fresh = from_scratch(small_vlm()).train()
eight = next(iter(loaders_for(fresh, batch_size=8)[0]))
inputs = {name: eight[name] for name in ("input_ids", "images", "targets")}
with torch.no_grad():
    first = fresh(**inputs)
vocab_size = fresh.config.language.vocab_size
print(f"ln {vocab_size} = {math.log(vocab_size):.2f}, and the first loss is {first.loss:.2f}")

# %% [markdown]
# That is three times the loss of a model that knows nothing, so this one must be sure of something that is wrong. When a
# first loss surprises you, look at what the model says:

# %%
supervised = inputs["targets"] != -100
guesses = first.logits.argmax(dim=-1)
repeated = (guesses == inputs["input_ids"][supervised]).float().mean()
print(f"{repeated:.0%} of its guesses are the token that it has just read")

# %% [markdown]
# The head is tied to the token embedding (chapter 04), the blocks add almost nothing at first, and our embeddings start
# with a standard deviation of 0.3, which is large. So each token's vector arrives at the head as it was, and its product
# with itself is the largest of all: the model repeats its input. Our models start like this on purpose (see below), and
# the first twenty steps undo it. With a standard deviation of 0.02 everywhere, as in GPT-2, the prediction holds
# (`all_small` sets the weights so):

# %%
small_weights = copy.deepcopy(fresh)
torch.manual_seed(0)
all_small(small_weights)
with torch.no_grad():
    print(f"every weight at 0.02: the first loss is {small_weights(**inputs).loss:.2f}")

# %% [markdown]
# A first loss far above the logarithm of the vocabulary has a reason that you should know: a large initialisation as
# here, pretrained weights that were not loaded, or labels that do not belong to the inputs.
#
# ### 2. The gradient reaches every parameter

# %%
fresh(**inputs).loss.backward()
without = [name for name, p in fresh.named_parameters() if p.grad is None or not p.grad.any()]
count = sum(1 for _ in fresh.parameters())
print(f"{count} parameters, of which {len(without)} have no gradient {without or ''}")
fresh.zero_grad()

# %% [markdown]
# A parameter with no gradient is not connected to the loss. That may be meant, for a frozen encoder, and it is the first
# sign of a `detach()` or a `no_grad()` too many.
#
# ### 3. It can learn one batch by heart
#
# Train on the same eight conversations again and again, which takes a few seconds. A model that cannot learn eight by
# heart will not learn a million. But what does it prove if it can?

# %%
quiz("ch08.memorise")


# %%
def memorise(images: Tensor, num_steps: int) -> list[float]:
    """The losses of a copy of the fresh model that trains on one batch of eight."""
    twin = copy.deepcopy(fresh)
    optimizer, losses = torch.optim.AdamW(twin.parameters(), lr=1e-2), []
    for _ in range(num_steps):
        loss = twin(inputs["input_ids"], images, targets=inputs["targets"]).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 1.0)  # bounds the step; more of that below
        optimizer.step()
        losses.append(loss.item())
    return losses


# %%
steps = budget().pick(ci=30, laptop=80)
by_heart = {
    "own pictures": memorise(inputs["images"], steps),
    "exchanged": memorise(inputs["images"].roll(1, dims=0), steps),
    "black": memorise(torch.full_like(inputs["images"], -1.0), steps),
}
curves_figure(
    "One batch, learnt by heart",
    {name: list(enumerate(v)) for name, v in by_heart.items()},
    log=True,
)

# %% [markdown]
# All three go down together. So the test finds weights that do not move and losses that are not connected, and it misses
# whatever is wrong with pictures, because eight conversations can be told apart by their texts. One change makes it
# sharp: the *same* question in every row, with different pictures and answers. You write that test in
# [exercise 8.5](../exercises/08_training.ipynb), and it is tried on models that we have broken.

# %% [markdown]
# ## Initialisation decides when it starts to see
#
# A patch has to say *what* it shows and *where* it is, and both are added up in one vector (chapter 01). Where positions
# have a standard deviation of 0.02, beside patch embeddings that are ten times as large, the place is nearly lost. So
# the recipe starts positions at 0.5, token embeddings at 0.3, and the last matrix of each block at 0.002, so that every
# block begins by adding almost nothing. Predict: what will a run of 300 steps with positions at 0.02 lose?

# %%
initialised = {"recipe": gallery["healthy"], "positions at 0.02": gallery["positions_quiet"]}
curves_figure(
    "Right answers by initialisation",
    {name: right_and_blind(run)["accuracy"] for name, run in initialised.items()},
    y_label="share",
    y_range=(0, 0.7),
)

# %% [markdown]
# The small positions do no harm here, and there is a reason. This small model has a pixel shuffle of 4, which puts each
# of the four cells of the picture into an image token of its own, so the number of the token says *where*.

# %% [markdown]
# The pocket preset shuffles by 2, a cell is spread over four tokens, and there the difference was large: with positions
# at 0.02 the questions about *where* were at 35 % after 700 steps, and with 0.5 the model reached 96 % of all
# questions after 600. With all weights at 0.02 it had 69 % by then (`LOG.md`). What a change is worth holds for the model
# in which it was measured.

# %% [markdown]
# ## The projector and the backbones need different rates
#
# Often the encoder and the decoder (the **backbones**) come trained and the projector between them is new. The new part
# has everything to learn, the old parts have everything to lose. So optimizers take **parameter groups**, each with its
# own learning rate. nanoVLM trains the projector at 0.00512 and both backbones at 0.00005, a hundredth of it ([config.py at
# 4e0c096](https://github.com/huggingface/nanoVLM/blob/4e0c0961846135c2217f95e54cb4c2d66eb55e42/models/config.py)). A
# rate of 0 freezes a part, and LLaVA trains the projector alone in a first stage ([Liu et al.
# 2023](https://arxiv.org/abs/2304.08485)).

# %% [markdown]
# You sort parameters into such groups in [exercise 8.4](../exercises/08_training.ipynb). Our model starts from random
# weights everywhere. Which pair of rates is best here? Guess before you look: 40 steps of AdamW for each pair, and the
# validation loss at the end.

# %%
rates = stored_runs("08_rates")
table = {
    (projector, backbones): rates[f"rates_{projector}_{backbones}"]["evaluations"][-1]["val_loss"]
    for projector in ("2e-4", "2e-2")
    for backbones in ("2e-4", "2e-3", "2e-2")
}
rates_figure("Validation loss after 40 steps", "projector", "backbones", table)

# %% [markdown]
# The loss changes along a row and hardly along a column: with random backbones it is *their* rate that counts, since
# nearly all of the weights are there. With pretrained backbones it is the other way round. And beware: so short a sweep
# prefers high rates, although a fast start need not end well (AdamW at 0.006 was *slower* than at 0.002 in the pocket
# preset, says `LOG.md`). A rate is good for one model, batch size and length only.

# %% [markdown]
# ### One short run can try all rates
#
# Sweeps are slow. An **LR-range test** ([Smith 2015](https://arxiv.org/abs/1506.01186)) is one run of some dozen steps,
# in which the rate grows by the same factor at every step, from one that is far too low to one that is far too high.
# While it is too low, nothing happens; then the loss falls; then it stops falling, or explodes. Choose the peak of a
# schedule where the loss falls most steeply. Predict that place before you run it.


# %%
def range_test(num_steps: int) -> list[tuple[float, float]]:
    """(logarithm of the rate, loss), for rates from 0.00001 to 1."""
    torch.manual_seed(0)
    model, found = from_scratch(small_vlm()).train(), []
    optimizer = torch.optim.AdamW(model.parameters())
    for step, batch in zip(range(num_steps), loaders_for(model, batch_size=16)[0], strict=False):
        exponent = -5 + 5 * step / (num_steps - 1)
        optimizer.param_groups[0]["lr"] = 10**exponent
        loss = model(batch["input_ids"], batch["images"], targets=batch["targets"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append((exponent, loss.item()))
    return found


# %%
tried = range_test(budget().pick(ci=40, laptop=100))
lowest = min(tried, key=lambda point: point[1])
print(f"lowest loss, {lowest[1]:.2f}, at a rate of {10 ** lowest[0]:.1g}")
curves_figure("LR-range test", {"AdamW": tried}, x_label="log10 of the learning rate", log=True)

# %% [markdown]
# The fall is steepest between about 0.0015 and 0.005, and the recipe's 0.002 lies there. From 0.03 on the curve is flat.
# Nothing explodes, although a rate of 1 is absurd, because AdamW divides the gradient by its size and the blocks
# normalise their inputs. So the lowest point is noise in the flat part: read the slope and not the minimum.

# %% [markdown]
# ## A schedule: a straight rise, then a curve down
#
# At first the optimizer knows nothing of the typical size of a gradient, and a full step could throw the weights far
# away. So the rate rises over a few steps: the **warm-up**. At the end the steps must become short, because a long step
# jumps over the bottom of a valley again and again. Half a **cosine** leads from one to the other. (Some recipes stay
# at the peak and fall in the last fifth only, which lets you decide late when to stop.)

# %% [markdown]
# Move the levers. The function behind the cosine is the one that [exercise 8.1](../exercises/08_training.ipynb) asks
# for.

# %%
get_lr = use("training.get_lr")


def schedules(warmup, floor):
    def down(step):
        return floor + (1 - floor) * (300 - step) / 60

    rules = {
        "cosine": lambda s: get_lr(s, 1.0, 300, warmup, floor),
        "stable, then decay": lambda s: min((s + 1) / (300 * warmup + 1), 1, down(s)),
        "constant": lambda s: 1.0,
    }
    shapes = {name: [(s, rule(s)) for s in range(300)] for name, rule in rules.items()}
    return curves_figure("Share of the peak rate", shapes, y_label="share", y_range=(0, 1.05))


# %%
at_first = {"warmup": 0.09, "floor": 0.1}
lever(schedules, warmup=(0.0, 0.3, 0.03), floor=(0.0, 0.5, 0.05), start=at_first)

# %% [markdown]
# How much does the warm-up matter here? These are the first forty steps of two runs, one with nine steps of warm-up and
# one without:

# %%
warm = {"with warm-up": gallery["healthy"], "without": gallery["no_warmup"]}
curves_figure(
    "The first steps",
    {name: list(enumerate(run["loss"][:40])) for name, run in warm.items()},
    log=True,
)

# %% [markdown]
# In this small model, whose blocks normalise their inputs (pre-norm) and whose steps are clipped, the warm-up is worth
# nothing: the run without it is even ahead by the few steps that the warm-up takes. Deep models can diverge in their
# first hundred steps without one, depending on where their norms are ([Xiong et al.
# 2020](https://arxiv.org/abs/2002.04745)), so nearly every recipe pays for it.

# %% [markdown]
# ## AdamW divides every gradient by its own size
#
# Plain gradient descent takes long steps where gradients are large. But a large gradient does not mean that the weight
# has far to go. Adam keeps two running means for each weight, of its gradients and of their squares, and steps by the
# first divided by the root of the second ([Kingma and Ba 2014](https://arxiv.org/abs/1412.6980)).

# %%
quiz("ch08.adam_size")

# %%
two = nn.Parameter(torch.zeros(2))
adam = torch.optim.AdamW([two], lr=0.01, weight_decay=0.0)
for _ in range(3):
    two.grad = torch.tensor([10.0, 0.001])
    adam.step()
    print([round(value, 4) for value in two.tolist()])

# %% [markdown]
# Both move by the learning rate. So the learning rate of Adam is a *distance per step*, which is why the same numbers,
# 0.0001 to 0.01, serve for very different models.
#
# **Weight decay** pulls every weight a little towards 0. In the first Adam it was added to the gradient (as an *L2*
# penalty) and divided by the gradient's size with it, so that weights with large gradients were hardly decayed. The W in
# AdamW means that it is taken off the weight itself ([Loshchilov and Hutter 2017](https://arxiv.org/abs/1711.05101)):

# %%
for name, kind in (("Adam with L2", torch.optim.Adam), ("AdamW", torch.optim.AdamW)):
    weights = nn.Parameter(torch.ones(2))
    optimizer = kind([weights], lr=0.01, weight_decay=0.5)
    for step in range(50):
        weights.grad = torch.tensor([10.0, 0.1]) * (-1) ** step  # gradients that push to and fro
        optimizer.step()
    print(f"{name:13} weights of 1 after 50 steps: {[round(w, 2) for w in weights.tolist()]}")

# %% [markdown]
# With AdamW both weights shrink alike, with L2 the one whose gradients are large hardly does. Norms, biases and
# embeddings are usually not decayed at all. You write the five lines of AdamW in
# [exercise 8.3](../exercises/08_training.ipynb), and they explain why the optimizer needs twice the memory of the weights.

# %% [markdown]
# ### Muon turns a matrix in all directions alike
#
# The pocket preset uses **Muon** for the matrices inside the blocks ([Jordan et al.
# 2024](https://kellerjordan.github.io/posts/muon/)). The gradient of a matrix is usually dominated by a few directions,
# those of its largest singular values. Muon replaces the update by the nearest matrix whose singular values are all
# about 1, so that rare directions are learnt as fast as common ones. Here are the singular values of one gradient, before
# and after. (Directions in which a batch of eight has no gradient at all stay at 0.)

# %%
from nanovlm.training.optimizer import orthogonalise

fresh(**inputs).loss.backward()
gradient = fresh.decoder.blocks[1].mlp.up_proj.weight.grad
updates = {"gradient": gradient, "Muon": orthogonalise(gradient[None])[0]}
values = {name: torch.linalg.svdvals(update) for name, update in updates.items()}
fresh.zero_grad()

# %%
curves_figure(
    "Singular values of one update",
    {name: list(enumerate((s / s[0]).tolist(), start=1)) for name, s in values.items()},
    x_label="singular value number",
    y_label="size beside the largest",
    y_range=(0, 1.05),
)

# %% [markdown]
# So the length of Muon's step does not depend on the gradient. A matrix that has grown is turned less and less by steps
# of one length, and without enough weight decay it goes on growing. `LOG.md` tells how the pocket model stood still for
# that reason, at 97.7 %, until its decay was raised from 0.01 to 0.1.
#
# ## Small updates vanish in bfloat16

# %%
quiz("ch08.bfloat16")

# %%
weight, master = torch.tensor(1.0, dtype=torch.bfloat16), torch.tensor(1.0)
for _ in range(1000):
    weight = weight + 0.001
    master = master + 0.001
print(f"bfloat16: {weight.item()}, float32: {master.item():.3f}")
print(f"the float32 sum, rounded to bfloat16 once: {master.bfloat16().item()}")

# %% [markdown]
# So the model may compute in bfloat16, and the optimizer works on float32 copies, the **master weights**, which are
# rounded into the model after every step. float16 has more precision but ends at 65,504 and, at the other end, loses
# gradients below about 0.00000006, so there a **gradient scaler** multiplies the loss before `backward()` and divides the
# gradients after it (chapter 11 shows one). Which format would be chosen on this machine?

# %%
from nanovlm.device import choose_precision, find_device

precision = choose_precision("auto", find_device())
print(f"{precision.name}: {precision.reason}")

# %% [markdown]
# ## Accumulation counts tokens, not batches
#
# A batch that does not fit into memory is cut into several, whose gradients are added up before one step. The result
# should be the step of the large batch. But a model's loss is a *mean* over its batch, and a mean of means is not the
# mean, unless all batches have equally many tokens.

# %%
quiz("ch08.accumulate")

# %%
torch.manual_seed(0)
losses_of_5, losses_of_500 = 4 + torch.rand(5), 1 + torch.rand(500)  # short answers, captions
all_tokens = torch.cat([losses_of_5, losses_of_500]).mean()
mean_of_means = (losses_of_5.mean() + losses_of_500.mean()) / 2
print(f"mean over all tokens {all_tokens:.2f}, mean of the two means {mean_of_means:.2f}")

# %% [markdown]
# **From the wild.** This was wrong in transformers' Trainer, and in most loops that were modelled on it, until October
# 2024, when users saw that a run with accumulation did not match a run without it ([pull request
# 34191](https://github.com/huggingface/transformers/pull/34191), and its
# [story](https://huggingface.co/blog/gradient_accumulation)). It is in nanoVLM at the time of writing: a mean over
# tokens, divided by the number of batches ([train.py, line
# 403](https://github.com/huggingface/nanoVLM/blob/4e0c0961846135c2217f95e54cb4c2d66eb55e42/train.py#L402-L403)).

# %% [markdown]
# Here is the bug with the small model: one batch has a single short answer, the other one seven whole conversations. We
# compare the accumulated gradient with that of one batch that holds all eight.


# %%
def gradient_of(parts: list[dict], weights: list[float]) -> Tensor:
    """The gradient of a weighted sum of the parts' losses, as one vector."""
    fresh.zero_grad()
    for part, weight in zip(parts, weights, strict=True):
        (fresh(**part).loss * weight).backward()
    gradient = torch.cat([p.grad.flatten() for p in fresh.parameters()])
    fresh.zero_grad()
    return gradient


# %%
parts = [{name: t[rows] for name, t in inputs.items()} for rows in (slice(0, 1), slice(1, 8))]
one_answer = supervised[:1].cumsum(dim=1) <= 2  # its first two targets: one word, and the end
parts[0]["targets"] = parts[0]["targets"].where(one_answer, -100)
together = {name: torch.cat([part[name] for part in parts]) for name in inputs}
counts = [int((part["targets"] != -100).sum()) for part in parts]
large = gradient_of([together], [1.0])
by_tokens = [count / sum(counts) for count in counts]
for name, weights in (("mean of means", [0.5, 0.5]), ("by tokens", by_tokens)):
    off = (gradient_of(parts, weights) - large).norm() / large.norm()
    print(f"{name:14} {counts} tokens: the gradient is {off:.1%} away from the large batch's")

# %% [markdown]
# No error is raised, the loss would still fall, and the tokens of the short answer weigh far too much. You write the step
# that weighs them rightly in [exercise 8.6](../exercises/08_training.ipynb).

# %% [markdown]
# ## Clipping bounds what one batch can do
#
# Think of all gradients as one long vector. If its norm is above a limit, usually 1, the whole vector is shortened to it
# and keeps its direction. A single strange batch then cannot do more harm than any other. The norm is also the best
# early warning that a log can hold. Two stored runs, of which one has learning rates 15 times too high:

# %%
curves_figure(
    "Gradient norm before clipping",
    {
        name: list(enumerate(gallery[key]["norm"]))
        for name, key in (("recipe", "healthy"), ("rates x 15", "lr_too_high"))
    },
    y_label="norm",
    log=True,
    marks={"limit": 1.0},
)

# %% [markdown]
# Where this curve has a spike, find the batch that made it and look at its samples: that tells more than any average.
# (Where a loss is not even finite, the package's step raises an error that names them.) Clipping by hand is
# [exercise 8.2](../exercises/08_training.ipynb).

# %% [markdown]
# ## Train until it sees
#
# Now all of it together: the package's loop, which is what `make train` runs. The model is the pocket model, made of
# **your own parts** as far as their checks have passed, with random weights. First: how long will it take here?

# %%
from nanovlm.models.vision_language_model import init_weights


def random_again(model: nn.Module, seed: int = 0) -> nn.Module:
    """The same model as before any training."""
    torch.manual_seed(seed)
    for p in model.parameters():
        if p.ndim == 1:
            nn.init.ones_(p)  # norms; biases become 0 below
    init_weights(model)
    return model


pocket = random_again(yours())

# %%
from nanovlm.config import presets
from nanovlm.course.watching import minutes_needed, train_and_watch
from nanovlm.device import processor

recipe = presets()["pocket"].train
short = replace(recipe, batch_size=8, max_steps=30, log_every=2, eval_every=15, val_size=16)
config = budget().pick(ci=short, laptop=replace(recipe, log_every=5, eval_every=40))
images = budget().pick(ci=6, laptop=40)
minutes = minutes_needed(config, pocket)
print(f"{config.max_steps} steps of {config.batch_size} conversations: about {minutes:.1f} minutes")
print("on", processor())

# %% [markdown]
# The estimate comes from this processor: the fastest of three passes forward and backward over one batch, times the
# number of steps, and a third more for the optimizer, the data and the evaluations. On two cores without bfloat16
# arithmetic the whole run takes between ten and twenty-five minutes, with it about five (`LOG.md`).

# %% [markdown]
# The figure below changes while the run goes on. On the left is the loss, on the right the share of right answers by
# kind of question about pictures that are never trained on, and the blind baseline. Ctrl-C, or the stop button, ends the
# run after the step in hand.

# %%
watched = train_and_watch(config, pocket, images)

# %%
last, blind = watched.accuracy[-1][1], watched.blind[-1][1]
took = watched.run.seconds / 60
print(f"step {watched.run.step}: {mean(last):.0%} right, {blind:.0%} blind, in {took:.1f} minutes")

image = Image.open(asset_path("images/shapes.png")).convert("RGB")
for question in ("How many shapes are there?", "Where is the red star?"):
    answer = pocket.eval().generate(prompt=question, image=image, max_new_tokens=8)
    print(f"{question:28} {answer}")

# %% [markdown]
# With the `ci` budget this stops after 30 small steps, where nothing is seen yet. The whole run, at the `laptop` budget
# or by `make train`, ends above 95 %. `LOG.md` has three runs of it in which only the seed differs: 97.8, 98.1 and 98.5 %
# of the test questions about shapes, where blind models have 30 to 31 %. Whoever tries a change once, and finds 98.4
# instead of 97.9, has found a seed.

# %% [markdown]
# ### Your own loop
#
# The package's loop is long because it can be stopped, resumed and shared between processes. What makes the model learn
# is in the exercises: your schedule, your groups and your step, put together.

# %%
param_groups, train_step = use("training.param_groups"), use("training.train_step")
torch.manual_seed(0)
own = from_scratch(small_vlm()).train()
optimizer = torch.optim.AdamW(param_groups(own, 4e-3, 4e-3, 0.01), betas=(0.9, 0.95))
peaks = [group["lr"] for group in optimizer.param_groups]
steps, own_losses, batches = budget().pick(ci=12, laptop=120), [], iter(train_loader)
for step in range(steps):
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        group["lr"] = get_lr(step, peak, steps)
    own_losses.append(train_step(own, [next(batches)], optimizer, 1.0))
print(f"{steps} steps: the loss went from {own_losses[0]:.1f} to {own_losses[-1]:.2f}")

# %% [markdown]
# ## Eight runs: which is which?
#
# Each of these eight runs has one thing wrong with it, or at least changed, and each is stored as it was measured. The
# causes, in another order: *learning rates too high · labels not shifted · pictures shuffled · positions at 0.02 · no
# warm-up · 96 samples again and again · 96 samples, evaluated on the same 96 · resumed from the weights alone, half-way*.
# Match them before you read on. The recipe itself comes first, and two of the eight can hardly be told from it.

# %%
from nanovlm.bench.training_runs import EIGHT_RUNS

eight_runs = {letter: gallery[name] for letter, name in EIGHT_RUNS.items()}
gallery_figure({"the recipe": healthy, **eight_runs})

# %%
quiz("ch08.which_shuffled")

# %% [markdown]
# <details><summary>All eight, with the sign that gives each away</summary>
#
# - **A**, 96 samples again and again: the training loss falls on while the validation loss turns and rises.
# - **B**, rates 15 times too high: the loss stays high and rough, and nothing is learnt after the first drop.
# - **C**, labels not shifted: a loss of 0 from the first step is too good to be true. The decoder is asked for the token
#   that it has just read, which is what it says before any training, and answers no question.
# - **D**, positions at 0.02: no sign at all, for the reason given under *initialisation*.
# - **E**, resumed from the weights alone: the right answers rise late, because the rate is high once more after step 150.
#   Only the gradient norms, which the section on resuming shows, make it certain.
# - **F**, pictures shuffled: both losses are good, and accuracy and blind are one curve.
# - **G**, evaluated on the same 96: as A, but the validation loss follows the training loss.
# - **H**, no warm-up: as good as a healthy run, because not every change does harm.
#
# </details>

# %% [markdown]
# ## The validation loss chooses the checkpoint, the accuracy tells what it is worth
#
# Which of the many states of a run should be kept? The package keeps the one with the lowest validation loss, because
# the loss uses every token and moves smoothly, while an accuracy on 240 questions jumps by chance. Neither of the two may
# be measured on the *test* pictures: whoever picks the best of 40 checkpoints by their test score reports luck as well
# as skill (chapter 10 shows how much).

# %% [markdown]
# ## A resume that restores the weights alone is another run

# %%
quiz("ch08.resume")

# %% [markdown]
# Machines are taken back and laptops are closed, so a run saves a **checkpoint** now and then. What belongs in it? Let us
# crash a run on purpose and look. The package's loop calls `watch` after every step, and ours raises an error in step 5
# of 6, when the last checkpoint is of step 4. Then the same run goes on with `resume=True`, and another one is never
# interrupted.

# %%
import tempfile

from nanovlm.course.watching import numbers_in, quiet
from nanovlm.training.checkpoint import checkpoints, load_checkpoint
from nanovlm.training.loop import train

folder = Path(tempfile.mkdtemp())
sizes = {"batch_size": 4, "max_steps": 6, "val_size": 4, "accuracy_images": 0}
six_steps = small_recipe(**sizes, log_every=1, eval_every=100, save_every=2)


# %%
def short_run(name: str, resume: bool = False, watch=None) -> nn.Module:
    torch.manual_seed(0)
    model = from_scratch(small_vlm())
    recipe = replace(six_steps, output_dir=str(folder), run_name=name, resume=resume)
    with quiet():
        train(recipe, model, watch=watch)
    return model


def power_cut(step: int, values: dict) -> None:
    if step == 5:
        raise RuntimeError("the power is gone")


# %%
try:
    short_run("stopped", watch=power_cut)
except RuntimeError as error:
    print(f"step 5: {error}")
print("there are", [path.name for path in checkpoints(folder / "stopped/checkpoints")])
resumed, whole = short_run("stopped", resume=True), short_run("whole")
pairs = list(zip(resumed.parameters(), whole.parameters(), strict=True))
print("equal to the last bit:", all(torch.equal(a, b) for a, b in pairs))

# %% tags=["claim"]
assert all(torch.equal(a, b) for a, b in pairs)

# %% [markdown]
# What was in the file?

# %%
saved = load_checkpoint(checkpoints(folder / "whole/checkpoints")[-1])
for name, value in saved.items():
    count = numbers_in(value)
    print(f"{name:14} {f'{count:,} numbers' if count else str(value)[:60]}")

# %% [markdown]
# The order of the data is not in it, because it is a pure function of seed and step (chapter 07). Each file is written
# under another name and renamed when it is whole, so that a kill in the middle of saving leaves the one before it.
#
# What does the wrong resume look like? Run E of the gallery restored its weights alone after step 150:

# %%
wrong = gallery["resumed_wrongly"]
for name, run in (("recipe", healthy), ("run E", wrong)):
    before, after = (max(run["norm"][first : first + 20]) for first in (130, 150))
    right = mean(run["evaluations"][-1]["accuracy"])
    print(f"{name:7} largest norm in steps 131 to 150: {before:.1f}, in 151 to 170: {after:.1f}")
    print(f"{'':7} right after 300 steps: {right:.0%}")

# %% [markdown]
# The only sign is a bump in the gradient norm. And the wrong run ends *better*, because its schedule began anew, so that
# its rate stayed high in the second half, where the recipe's was already coming down. That does not make the resume
# right: a score that depends on when a laptop was closed cannot be reached again on purpose.
# [Exercise 8.7](../exercises/08_training.ipynb) has such a resume for you to mend.

# %% [markdown]
# ## An ablation is a difference with an interval
#
# To find out what a part is worth, take it away, change nothing else, and train again: that is an **ablation**. Then there
# are two questions, and they have two intervals. The first: how well is the score of *this run* known? That depends on
# the number of questions. Here are changes of the small model beside its recipe, one run each, 240 questions each:


# %%
def by_questions(run: dict, base: dict) -> tuple[float, float, float]:
    """The difference of two shares of right answers, and its 95 % interval over questions."""
    p, q = (mean(r["evaluations"][-1]["accuracy"]) for r in (run, base))
    half = 1.96 * math.sqrt(p * (1 - p) / run["questions"] + q * (1 - q) / base["questions"])
    return p - q, p - q - half, p - q + half


changes = ("pictures_shuffled", "lr_too_high", "no_warmup", "no_positions", "positions_quiet")
labels = ("pictures shuffled", "rates x 15", "no warm-up", "no positions", "positions at 0.02")
named = dict(zip(labels, changes, strict=True))

# %%
intervals_figure(
    "Changed in one run, beside the recipe",
    {label: by_questions(gallery[name], healthy) for label, name in named.items()},
    "change in right answers",
)

# %% [markdown]
# A grey interval reaches across 0: the effect of the change is not known, which is *not* the same as "it has no effect".
# A blue one says that these two *runs* differ. Would they with other seeds?
#
# That is the second question, and it needs several seeds of both recipes, compared **seed by seed**, because what both
# runs of a seed share drops out of their difference. For three seeds the interval is 4.3 standard errors to each side,
# and not 1.96 as for many. You compute it in [exercise 8.8](../exercises/08_training.ipynb).

# %% [markdown]
# Here are three seeds of the recipe and of a model whose patches have no positions. Look at one pair at a time, and decide
# for each what you would have published with this seed alone.

# %%
paired_difference = use("training.paired_difference")
seeds = stored_runs("08_seeds")
with_positions, without = (
    [mean(evaluation["accuracy"]) for evaluation in seeds[name]["seeds"].values()]
    for name in ("healthy", "no_positions")
)
for seed, pair in enumerate(zip(with_positions, without, strict=True)):
    print(f"seed {seed}: with positions {pair[0]:.1%}, without {pair[1]:.1%}")

# %%
difference, low, high = paired_difference(with_positions, without)
print(f"{difference:+.1%}, with 95 % confidence between {low:+.1%} and {high:+.1%}")
spread = max(with_positions) - min(with_positions)
print(f"the recipe alone moves by {spread:.1%} from seed to seed")

# %% [markdown]
# The pairs do not agree on the sign, and the recipe alone moves by as much from seed to seed as the change does. So
# nothing is known about this change after six runs, except that it is small at 300 steps, for the reason given under
# *initialisation*. In the exercise you decide about the pocket model's weight decay, with numbers from `LOG.md`. That file
# is an example of a laboratory notebook: a line for each thing that was tried, most of which did not help.

# %% [markdown]
# ## The run that shipped
#
# The pocket model that answered in chapter 00 went through four runs, one after the other, and each left its log in
# `assets/pocket`. The first learnt everything from random weights, at a weight decay that was too low for Muon. The
# second raised the decay, the third went on with more shapes, and the fourth learnt to describe pictures, at a low rate.
# (A fifth one only trained the embedding of one token, which chapter 05 tells.)

# %%
stages, offset = {}, 0
for name, rows in pocket_logs().items():
    losses = [(row["step"], row["val_loss"]) for row in rows if "val_loss" in row]
    stages[name] = [(offset + step, loss) for step, loss in losses]
    minutes = max(row.get("seconds", 0) for row in rows) / 60
    steps, ends = losses[-1]
    print(f"{name}: {steps:5,} steps, {minutes:4.0f} minutes, last validation loss {ends:.5f}")
    offset += steps
curves_figure("Validation loss of the run that shipped", stages, log=True)

# %% [markdown]
# The runs had different mixtures of data, so compare the test scores that `LOG.md` gives, and not the heights of the
# curves: 97.7 % on shapes after the first run, 98.3 after the second, 99.5 after the third and 99.8 after the fourth.

# %% [markdown]
# ## Where this lives in the package
#
# `nanovlm/training/`: the loop and its step, the optimizers, checkpoints, and the log; `probe.py` asks by kind and
# blind. What a step costs in operations, time and memory is the topic of chapter 11.

# %% [markdown]
# What you take along:
#
# - A loss cannot tell whether a model sees. Ask again with the wrong pictures, by kind, beside every score.
# - Before you train: the first loss, a gradient everywhere, one batch by heart, with one question and several pictures.
# - Count tokens when you accumulate, clip all gradients together, keep masters in float32.
# - A checkpoint holds weights, optimizer, step and random numbers. Test it by crashing on purpose.
# - A difference without an interval is an anecdote.

# %% [markdown]
# In the wild: Karpathy's [recipe for training neural networks](https://karpathy.github.io/2019/04/25/recipe/), and
# section 2.5 of [OPT](https://arxiv.org/abs/2205.01068) on how a run of 175 billion parameters was stopped, repaired and
# resumed.
#
# **Challenge.** Reach 95 % on `shapes` in under 120 seconds of training on two cores. `nanovlm train --help` shows what
# can be changed, and nothing in the package is sacred. Say which processor, how many seeds, and the blind baseline, and
# add a line to `LOG.md`.

# %% [markdown]
# ## Project: a subset of your own
#
# Teach the model to read clocks. Take your generator from the challenge of chapter 07, or begin with the `clock_face`
# below, train on its samples, and write down what you found on one page.

# %%
from nanovlm.course.clocks import clock_face

turn = {"user": "What time is it?", "assistant": "10:30", "source": "clocks/time"}
sample = {"images": [clock_face(10, 30)], "texts": [turn]}
sample_card(sample["images"][0], alt="A clock that shows half past ten.")

# %% [markdown]
# | | a start | solid | what a reviewer would publish |
# |---|---|---|---|
# | data | one kind of question | three kinds (hour, minute, compare), split by seed | a held-out style of dial, a data card |
# | training | runs to the end | curves with a blind baseline | three seeds |
# | result | an accuracy | by kind, with intervals | an ablation as a paired difference |
# | honesty | says what failed | shows five failures | predicts a failure and checks it |
#
# Now write the loop's parts yourself.

# %% [markdown] tags=["stamped"]
# ## Your turn
#
# [Open the exercises](../exercises/08_training.ipynb) ([in Colab][exercises]): 8 of them, about 1.9 hours.
#
# [exercises]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/exercises/08_training.ipynb
#
# | | exercise | difficulty | minutes |
# |---|---|---|---|
# | 8.1 | The learning rate of a step (`training.get_lr`) | ●○○ | 10 |
# | 8.2 | One norm for all gradients (`training.clip_by_norm`) | ●○○ | 10 |
# | 8.3 | AdamW by hand (`training.adamw_step`) | ●●○ | 15 |
# | 8.4 | Which weight learns how fast (`training.param_groups`) | ●●○ | 12 |
# | 8.5 | Write the test: can it learn one batch? (`training.overfit_one_batch`) | ●●○ | 15 |
# | 8.6 | One step over several batches (`training.train_step`) | ●●● | 20 |
# | 8.7 | Mend it: a resume that loses something (`training.resume`) | ●●● | 20 |
# | 8.8 | Measure it: is the difference real? (`training.paired_difference`) | ●●○ | 12 |
#
# Next: [09 Generation](09_generation.ipynb)
