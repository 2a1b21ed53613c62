# %% [markdown]
# # 00 Start here
#
# Ask a tiny vision-language model about a picture, see whether it really looks, follow one question from pixels to
# answer, and learn how this course works. Twenty minutes of reading and trying; the code runs in half a minute.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [01 From pixels to patches →](01_patch_embedding.ipynb) ·
# [exercises](../exercises/00_start_here.ipynb)
#
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/chapters/00_start_here.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/chapters/00_start_here.ipynb

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
# ## A model that you will build
#
# This course ships with a small vision-language model, a **VLM**: a picture and a question go in, an answer comes out.
# In the chapters that follow you write every part of it with your own hands.
#
# Today you only use it. Everything here runs on a laptop's CPU, with no network. Bring some PyTorch: tensors,
# `nn.Module`, a training loop seen once. Everything else is explained where it is needed.

# %%
import torch
from PIL import Image

from nanovlm import VisionLanguageModel
from nanovlm.assets import asset_path
from nanovlm.inference.prompts import prepare_prompt

model = VisionLanguageModel.from_pretrained(asset_path("pocket")).eval()

# %% [markdown]
# We call it the pocket model. How large is it? The smallest SmolVLM, which is made for phones and other small devices,
# has 256 million parameters ([Marafioti et al. 2025](https://arxiv.org/abs/2504.05299)). This one has:

# %% tags=["nbval-check-output"]
print(f"{sum(p.numel() for p in model.parameters()):,} parameters")

# %% [markdown]
# ## Ask it
#
# Here is a picture that the model did not see in training. Answer for yourself first: where is the red star?

# %%
from nanovlm.viz.start_here import sample_card

image = Image.open(asset_path("images/shapes.png"))
sample_card(
    image, alt="A red star, and to the right of it a yellow triangle; below, a blue circle and a purple square."
)

# %% [markdown]
# Now the model. One line is enough.

# %%
question = "Where is the red star?"
model.generate(image=image, prompt=question)

# %% [markdown]
# Do you agree with it?
#
# The answer does not come in one go. The model writes one token after the other, and you can watch it write. Here it
# reads a sign, of which each character is a token. (A bar between the pieces shows where one ends.)

# %%
sign = Image.open(asset_path("images/glyphs.png"))
written = model.generate(
    image=sign, prompt="What does the sign say?", on_text=lambda piece: print(piece, end="|", flush=True)
)
sample_card(sign, alt="A sign with a few letters and digits.")

# %% [markdown]
# Your turn. Run the next cell, choose a picture, type a question and press Enter. "Describe the picture." works as well.
# You can also upload a picture of your own. (On a page without a kernel, such as GitHub, you see the first question and
# its answer, and nothing moves.)

# %%
from nanovlm.course.asking import ask

ask(model)

# %% [markdown]
# ### What it cannot do
#
# Did you upload a photo? Then you probably got an answer about coloured shapes, bars or signs, whatever it shows. The
# model has four limits. You should know them:
#
# - **It knows nothing else.** It was trained on the *Thimble*: pictures that this package draws itself, with questions
#   and answers that go with them. No photo was among them.
# - **It sees little.** Every picture is squashed to the small square on the card before it goes in.
# - **It answers what it was asked in training, as it was asked.** It knows which bar is the tallest. Ask which one is the
#   *second* tallest, and it names the tallest again. It knows what colour a star is. Ask "What color is the star?", in
#   American spelling, and most of its answers are no colour at all.
# - **It never says "I don't know".** Nobody taught it to. It always finds some next word more likely than the others,
#   and says it.
#
# The same code builds a model of real size, nanoVLM's 222M (chapter 06). That one learns from photos and sees more of
# them. The last two limits do not go away by themselves.

# %% [markdown]
# ## What a vision-language model is
#
# A language model reads a line of tokens and says which token comes next. (A token is a word, or a piece of one.) That
# is all that it does. It cannot read a picture, because a picture is not made of tokens.
#
# A VLM is a language model with an eye. The eye turns the picture into a few vectors, as wide as the ones that words
# become inside the model. They stand in the line among the words. From there on, nothing is special about them.
#
# The next cell draws that path for your question, with the pocket model's own numbers and tokens.

# %%
from nanovlm.viz.question_path import path_figure


def spell(ids):
    return [model.tokenizer.decode([i], skip_special_tokens=False) for i in ids]


ids, pixels = prepare_prompt(model, question, image)  # a list of token ids, and the picture as a tensor
first = ids.index(model.config.image_token_id)
last = first + model.config.num_image_tokens
written = model.generate(torch.tensor([ids]), pixels, max_new_tokens=12)[0].tolist()

path_figure(
    image,
    before=spell(ids[:first]),
    after=spell(ids[last:]),
    answer=spell(written),
    grid=model.config.vision.grid_size,
    factor=model.config.projector.pixel_shuffle_factor,
)

# %% [markdown]
# Walk along the arrows:
#
# 1. **Patches.** The picture is cut into squares. Each becomes one vector, as each word of a sentence does
#    ([Dosovitskiy et al. 2020](https://arxiv.org/abs/2010.11929)). You build this in chapter 01.
# 2. **Vision encoder.** The patches look at each other, so that a patch of red can find out that it belongs to a star.
#    Ours is SigLIP's encoder ([Zhai et al. 2023](https://arxiv.org/abs/2303.15343)) with fewer and narrower layers.
#    Chapter 02.
# 3. **Projector.** Neighbouring vectors are joined into one (*pixel shuffle*), which makes the line shorter. One linear
#    layer then brings them to the width of the word vectors. Chapter 03.
# 4. **Decoder.** A language model of the Llama kind, as SmolLM2 is ([Ben Allal et al.
#    2025](https://arxiv.org/abs/2502.02737)). It reads the line from left to right: image tokens, question, and what it
#    has written so far. Chapter 04.
# 5. **The line itself.** Who writes `<|user|>`? Where do the image tokens go? Which tokens does the model learn from?
#    Chapters 05 and 06.
#
# There is no sixth part. nanoVLM and SmolVLM are made of the same parts, only larger. (SmolVLM and later versions of
# nanoVLM also cut large pictures into tiles: chapter 13.)

# %% [markdown]
# ## Does it look?
#
# One right answer proves little, because much can be answered *without* looking. On MMMU, an exam for VLMs, GeminiPro
# reached more than 42 % without being shown a single picture ([Chen et al. 2024](https://arxiv.org/abs/2403.20330)).
#
# So we test it. We ask the same question about three pictures, in which the red star stands in three places. Predict
# first:

# %%
from nanovlm.course import quiz

quiz("ch00.looks")

# %% [markdown]
# Open a choice to see what speaks for it. Or answer in a cell, as in `quiz("ch00.looks", "a")`: then it is kept with
# your progress.
#
# Now the experiment. `truth` is what a person sees. Check it against the pictures.

# %%
from nanovlm.viz.start_here import answers_row

images = [Image.open(asset_path(f"images/{name}.png")) for name in ("shapes", "shapes_2", "shapes_3")]
truth = ["top left", "bottom left", "top right"]
answers = [model.generate(image=each, prompt=question) for each in images]

answers_row(question, images, answers, truth)

# %% [markdown]
# Read it like this. The question was the same each time, and our model, too, always takes the most likely token. If the
# answers differ, the difference came in through the picture: there is no other way in. And suppose that you meant the
# first picture, but by mistake the model was shown the second: then what it says is the answer in the middle.
#
# Three pictures can be luck. So we ask hundreds of questions, and each of them twice:
#
# - once with **its own picture**,
# - once with **another one's picture**, picked at random.
#
# The second is the *blind baseline*. What a model still gets right there, it got from the question alone, or by luck.
# Predict:

# %%
quiz("ch00.blind")

# %% [markdown]
# Where do hundreds of questions with true answers come from? The Thimble draws each picture from a list of objects, so
# it knows what is there. Here is one sample of its test split. Training never shows a scene of the test split.

# %%
from nanovlm.data.thimble import chance, thimble_sample

size = model.config.vision.image_size
sample = thimble_sample("shapes", "test", 610, image_size=size)
turns = [(turn["user"], turn["assistant"]) for turn in sample["texts"]]
sample_card(sample["images"][0], turns, alt="An orange triangle and a blue square; below, a red star.")

# %% [markdown]
# Now the measurement, on all three subsets: shapes, charts, and signs ("glyphs"). It takes some seconds.

# %%
from nanovlm.course import budget
from nanovlm.evaluation.scores import evaluate
from nanovlm.viz.start_here import Scored, seeing_bars

num_images = budget().pick(ci=30, laptop=60)
results = {}
for subset in ("shapes", "charts", "glyphs"):
    samples = [thimble_sample(subset, "test", i, image_size=size) for i in range(num_images)]
    results[subset] = evaluate(model, samples)

seeing_bars(
    {
        subset: [
            Scored(kind, score.accuracy, result.blind[kind].accuracy, chance(subset)[kind])
            for kind, score in result.scores.items()
        ]
        for subset, result in results.items()
    }
)

# %% [markdown]
# How to read it, one line for each kind of question:
#
# - The **filled bar** is the score with the right picture. The **black tick** is what the best guesser reaches who
#   reads the question and sees nothing.
# - A filled bar far beyond its tick: the model knows.
# - The **outlined bar** is the same model with the wrong picture. If it ends near the tick, the answers came from the
#   picture: with the wrong one, the model is back to guessing.
# - Two bars of equal length: the answers came from the question, and the picture was decoration.
#
# Nearly every filled bar reaches the end, or almost. The outlined ones end around their ticks, some beyond, some short of
# them. So it looks. Each line stands on few questions, so a few points mean nothing. Here are the means in numbers:

# %%
for subset, result in results.items():
    guessing = sum(chance(subset).values()) / len(chance(subset))
    total = sum(score.total for score in result.scores.values())
    assert result.accuracy > 0.9 and abs(result.blind_accuracy - guessing) < 0.15
    print(
        f"{subset:8} {result.accuracy:6.1%} with its own picture, {result.blind_accuracy:6.1%} with another one's, "
        f"{guessing:6.1%} by guessing ({total} questions)"
    )

# %% [markdown]
# How often is it wrong, then? Careful: a slip that is rare enough seldom shows up among few questions. The model comes
# with a record of a longer test, 500 questions of each kind. Here are the kinds in which it did worst, and how often a
# test as short as ours would have shown *no* mistake in them:

# %%
import json

record = json.loads((asset_path("pocket") / "results.json").read_text(encoding="utf-8"))["test"]
kinds = {f"{subset} {kind}": score for subset, part in record.items() for kind, score in part["kinds"].items()}
worst = sorted(kinds, key=lambda name: kinds[name]["accuracy"])
for name in worst[:3]:
    share = kinds[name]["accuracy"]
    print(
        f"{name:16} {kinds[name]['correct']} of {kinds[name]['total']} right; "
        f"{num_images} questions without a mistake: {share**num_images:.0%} of the time"
    )
assert "shapes count" in worst[:3] and kinds["shapes count"]["accuracy"] < 1

# %% [markdown]
# Find the `count` of the shapes among them. It asks how many shapes there are, or how many red ones, or how many
# hearts. To count *all* shapes is easy for the model. To pick some of them out and count those is two things at once,
# and there it is off by one now and then.
#
# Chapter 10 will be about such numbers, and about the ways in which they mislead.

# %% [markdown]
# ## From pixels to answer, in shapes
#
# Now look inside. Why shapes? Most errors that you will meet in this course are errors of shape. And if you know why
# each number stands where it stands, you know the model. Predict one of them:

# %%
quiz("ch00.tokens")

# %% [markdown]
# `trace` runs the model once and writes down every step. `stages` are the few lines that matter.

# %% tags=["nbval-check-output"]
from nanovlm.trace import trace

steps = trace(model, torch.tensor([ids]), pixels)
print(steps.stages())

# %% [markdown]
# Read it from the top, beside the drawing:
#
# - **image**: one picture, three colours, height, width.
# - **after vision_encoder**: one vector for each patch. The last number is the width of a vector.
# - **before and after pixel_shuffle**: a quarter as many vectors, each four times as wide. No number was lost.
# - **after proj**: as many vectors, now as wide as a word.
# - **token embeddings**: the prompt as vectors, with placeholders where the picture belongs.
# - **combined**: the image tokens have taken the placeholders' places. The shape stays what it was.
# - **after decoder**: each place has read everything to its left.
# - **logits**: at each place, a score for every token of the vocabulary. The last place says what comes next.
#
# In this course, code makes such claims, so that they stay true. The next cell would fail if one of them were wrong.

# %%
steps.expect(
    {
        "vision_encoder": "1 64 128",
        "pixel_shuffle": "1 16 512",
        "projector.proj": "1 16 128",
        "token_embedding": "1 T 128",  # T: any number, but the same wherever it stands
        "decoder": "1 T 128",
    }
)

# %% [markdown]
# And here is every step. Open what you are curious about. On the right stands the code that made the step. You are not
# supposed to understand it yet: in chapter 06 it will be your own.

# %%
steps

# %% [markdown]
# Is all this a toy? Here is the first nanoVLM, with 222 million parameters, built by the *same code* with larger
# numbers: SigLIP-B/16 as its eye, SmolLM2-135M as its decoder. On the device `meta` tensors have shapes and no numbers.
# Nothing is downloaded, nothing is computed, and it takes a second.

# %% tags=["nbval-check-output"]
from nanovlm import VLMConfig

with torch.device("meta"):
    large = VisionLanguageModel(VLMConfig())
question_ids, photo = torch.zeros(1, 79, dtype=torch.long), torch.zeros(1, 3, 224, 224)
large_steps = trace(large, question_ids, photo, device="meta")
print(f"{large_steps.num_params:,} parameters\n\n{large_steps.stages()}")

# %% [markdown]
# Compare the two lists, line by line. The steps are the same. Only the fusion differs: this model puts its image tokens
# in front of the text, where ours has them between the words.

# %% [markdown]
# ## How this course works
#
# Each chapter builds one part. You meet the question, predict, build, look, and break it on purpose. At its end stand a
# few exercises: short functions that are the part. Here is the map, with what you have solved.

# %%
from nanovlm.course import course_map

course_map()

# %% [markdown]
# ### Checks
#
# You write a function and hand it to `check`. It tells you not only *that* something is wrong, but *what*. Try it with
# this chapter's exercise: the share of answers that are right. The answer below is wrong. Do you see how?

# %%
from nanovlm.course import check


def score(answers, expected):
    return sum(a == e for a, e in zip(answers, expected, strict=True))


check("start.score", score)

# %% [markdown]
# First comes what you probably thought. Then what came out, what should have, and for which example. A check never
# stops your notebook, and you may be wrong as often as you like.
#
# Stuck? `hint` gives you a nudge, then a plan, then almost the code. You get one more each time you ask.

# %%
from nanovlm.course import hint

hint("start.score")

# %% [markdown]
# Now mend `score` in the cell above until it passes. Or open the [exercise notebook](../exercises/00_start_here.ipynb),
# which tells the exercise in full. The [solutions](../solutions/00_start_here.ipynb) are there too; they help most
# after you have tried.
#
# ### Your own parts
#
# What passes its check is kept, each answer as a file of a small package that is yours: `my_vlm`, beside your progress.
# You can read these files, change them, and put them under git. `use` brings an answer back, in any later notebook. Until
# then the reference stands in, and a line says so:

# %%
from nanovlm.course import use

my_score = use("start.score")
print(f"{my_score(answers, truth):.0%} of the three answers above are right")

# %% [markdown]
# The parts of the model go the same way. From chapter 06 on, `yours()` builds the pocket model out of *your* functions,
# loads the shipped weights into them, and answers with them.
#
# ### Progress, and how much your machine is asked for
#
# Your progress is the folder `.nanovlm` in your home folder. On Colab it is in your Drive, if you mount it. Set
# `NANOVLM_HOME` to keep it elsewhere. Code that comes with a folder from another machine is not run before you have said
# `nanovlm course trust`.
#
# The same notebooks run in a test, on a laptop and on a large GPU. One word sets how much they do: `NANOVLM_BUDGET` is
# `ci`, `laptop`, `t4` or `h100`. If you set nothing, the course looks at your machine and picks one.

# %%
budget()

# %% [markdown]
# ## Is your machine ready?
#
# One call looks. In a terminal it is `nanovlm doctor`. A line with `!!` needs mending, and says how.

# %%
from nanovlm.commands.environment import examine, report

print(report(examine()))

# %% [markdown]
# ## What next
#
# - **Five minutes**: the [exercise](../exercises/00_start_here.ipynb) of this chapter.
# - **The way through**: chapter 01, in which a picture becomes a row of patches. If you know vision transformers well,
#   begin with chapter 03; if you know decoders too, skip 04 as well. The checks will tell you whether you were right.
# - **In a terminal**: `nanovlm generate --prompt "How many shapes are there?"` asks the pocket
#   model. `nanovlm train` trains one of your own on the Thimble, in minutes.

# %% [markdown] tags=["stamped"]
# ## Your turn
#
# [Open the exercises](../exercises/00_start_here.ipynb) ([in Colab][exercises]): there is one, about 5 minutes.
#
# [exercises]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/exercises/00_start_here.ipynb
#
# | | exercise | difficulty | minutes |
# |---|---|---|---|
# | 0.1 | How many are right? (`start.score`) | ●○○ | 5 |
#
# Next: [01 From pixels to patches](01_patch_embedding.ipynb)
