# %% [markdown]
# # 00 Start here
#
# You ask a tiny vision-language model about a picture, test whether it really uses the picture, and follow one
# question from its pixels to its answer. Afterwards you can (1) tell a model that sees from one that guesses, (2)
# name the parts of a vision-language model, and (3) use the checks, hints and quizzes of this course. You need a
# little PyTorch. About twenty-five minutes; the code runs in half a minute.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [01 From pixels to patches →](01_patch_embedding.ipynb) ·
# [exercises](../exercises/00_start_here.ipynb) ·
# [notation and terms](notation.md)
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
# ## You will build this model yourself
#
# This course comes with a small vision-language model, a **VLM**, which takes a picture and a question and returns an
# answer in words. In the chapters that follow you write every part of it with your own hands, and from chapter 06 on
# your parts run the weights that the course ships.

# %% [markdown]
# In this chapter you only use the model. Everything runs on a laptop's CPU without a network. You should have met
# tensors, `nn.Module` and a training loop before; the chapters explain everything else where you need it.

# %%
import torch
from PIL import Image

from nanovlm import VisionLanguageModel
from nanovlm.assets import asset_path
from nanovlm.inference.prompts import prepare_prompt

model = VisionLanguageModel.from_pretrained(asset_path("pocket")).eval()

# %% [markdown]
# We call it the *pocket model*, because it is very small. For comparison, the smallest SmolVLM has 256 million
# parameters and is made for phones and other small devices ([Marafioti et al.
# 2025](https://arxiv.org/abs/2504.05299)). The next cell counts the parameters of ours.

# %% tags=["nbval-check-output"]
print(f"{sum(p.numel() for p in model.parameters()):,} parameters")

# %% [markdown]
# ## One line of code asks it
#
# Here is a picture that the model did not see in training. Before you ask the model, answer for yourself where the
# red star is.

# %%
from nanovlm.viz.start_here import sample_card

image = Image.open(asset_path("images/shapes.png"))
sample_card(
    image,
    alt="A red star, and to the right of it a yellow triangle; below, a blue circle and a purple square.",
)

# %% [markdown]
# Now ask the model the same question. The method `generate` takes the picture and the question, and returns the
# answer.

# %%
question = "Where is the red star?"
model.generate(image=image, prompt=question)

# %% [markdown]
# Compare its answer with yours. The model does not produce the answer all at once: it writes one **token** after the
# other, where a token is a word or a piece of a word. You can watch it do so. In the next cell it reads a sign, each
# character of which is a token, and a bar marks where a token ends.

# %%
sign = Image.open(asset_path("images/glyphs.png"))
written = model.generate(
    image=sign,
    prompt="What does the sign say?",
    on_text=lambda piece: print(piece, end="|", flush=True),
)
sample_card(sign, alt="A sign with a few letters and digits.")

# %% [markdown]
# Now it is your turn: run the next cell, choose a picture, type a question and press Enter. "Describe the picture."
# works as well, and you can upload a picture of your own. On a page without a kernel, such as GitHub, you see the
# first question with its answer, and the controls are missing.

# %%
from nanovlm.course.asking import ask

ask(model)

# %% [markdown]
# ### Four limits that you should know
#
# If you uploaded a photo, you probably got an answer about shapes, bars or signs, whatever the photo shows.
# The model has four limits that explain this:
#
# - **It knows one small world.** It was trained on the *Thimble*: pictures that this package draws itself, with
#   questions and answers that belong to them. There was no photo among them.
# - **Its resolution is low.** Every picture is scaled down to the small square on the card before it enters the
#   model.

# %% [markdown]
# - **It answers questions as they were asked in training.** It can name the tallest bar, but if you ask for the
#   *second* tallest, it names the tallest again.
# - **It never says "I don't know".** No training example contained that answer, and generation always picks some
#   token, even when all of them are unlikely.

# %% [markdown]
# The same code also builds a model of realistic size, the one with 222 million parameters that you meet in chapter
# 06. That model learns from photos at a higher resolution, so the first two limits become weaker, but the last two do
# not disappear with size alone.

# %% [markdown]
# ## A VLM is a language model with image vectors in its sequence
#
# A language model reads a **sequence** of tokens and predicts which token comes next. It cannot read a picture,
# because a picture does not consist of tokens.

# %% [markdown]
# A VLM adds a **vision encoder**, which turns the picture into a few vectors. These vectors have the same width as
# the **embeddings**, the vectors that stand for tokens inside the model. So they can be placed in the sequence
# between the embeddings of the text, and from there on the language model treats all of them alike.
#
# The next cell draws this path for your question, with the pocket model's own sizes and tokens.

# %%
from nanovlm.viz.question_path import path_figure


def spell(ids):
    return [model.tokenizer.decode([i], skip_special_tokens=False) for i in ids]


ids, pixels = prepare_prompt(
    model, question, image
)  # a list of token ids, and the picture as a tensor
first = ids.index(model.config.image_token_id)
last = first + model.config.num_image_tokens
written = model.generate(torch.tensor([ids]), pixels, max_new_tokens=12)[0].tolist()

# %%
path_figure(
    image,
    before=spell(ids[:first]),
    after=spell(ids[last:]),
    answer=spell(written),
    grid=model.config.vision.grid_size,
    factor=model.config.projector.pixel_shuffle_factor,
)

# %% [markdown]
# Follow the arrows of the figure, which lead through the parts of the course:
#
# 1. **Patches.** The picture is cut into squares, and each square becomes one vector, just as each token of a text
#    does ([Dosovitskiy et al. 2020](https://arxiv.org/abs/2010.11929)). You build this in chapter 01.

# %% [markdown]
# 2. **Vision encoder.** The patches attend to each other, so that a red patch can take up the information that it
#    belongs to a star. Ours has the design of SigLIP's encoder ([Zhai et al.
#    2023](https://arxiv.org/abs/2303.15343)), with fewer and narrower layers. You build it in chapter 02.
# 3. **Projector.** Neighbouring vectors are joined into one by a *pixel shuffle*, which makes the sequence shorter,
#    and a linear layer brings them to the width of the token embeddings. You build it in chapter 03.

# %% [markdown]
# 4. **Decoder.** This is a language model of the Llama kind, as SmolLM2 is ([Ben Allal et al.
#    2025](https://arxiv.org/abs/2502.02737)). It reads the sequence from left to right: the image tokens, the
#    question, and the part of the answer that it has written so far. You build it in chapter 04.
# 5. **The sequence itself.** Somebody has to write `<|user|>`, to put placeholders where the image tokens go, and to
#    decide which tokens the model learns from. This is the subject of chapters 05 and 06.

# %% [markdown]
# There is no sixth part: nanoVLM and SmolVLM consist of the same parts, with larger sizes. SmolVLM and later versions
# of nanoVLM also cut large pictures into tiles, which is the subject of chapter 13.

# %% [markdown]
# ## One right answer does not prove that it sees
#
# Many questions about pictures can be answered *without* the picture. On MMMU, an exam for VLMs, GeminiPro answered
# 42.9 % of the questions without any picture ([Chen et al. 2024](https://arxiv.org/abs/2403.20330)), where choosing
# at random reaches 22.1 % ([Yue et al. 2023](https://arxiv.org/abs/2311.16502)).
#
# So we test ours. We ask one question about three pictures, in which the red star is in three different places.
# Predict first what a model would do that ignores the picture:

# %%
from nanovlm.course import quiz

quiz("ch00.looks")

# %% [markdown]
# Choose an answer, and the explanation appears below it; your choice is recorded with your progress. In a script you
# can write `quiz("ch00.looks", "a")` instead, and without a kernel each choice unfolds.
#
# Now run the experiment. The list `truth` contains what a person sees, so check it against the pictures.

# %%
from nanovlm.viz.start_here import answers_row

images = [
    Image.open(asset_path(f"images/{name}.png")) for name in ("shapes", "shapes_2", "shapes_3")
]
truth = ["top left", "bottom left", "top right"]
answers = [model.generate(image=each, prompt=question) for each in images]

answers_row(question, images, answers, truth)

# %% [markdown]
# The question was the same each time, and the model always picked its most likely token, so nothing was random. If
# the answers differ, the difference can only have come from the picture, because nothing else was different.

# %% [markdown]
# Three pictures could still be luck. So we now ask hundreds of questions, and ask each of them twice: once with **its
# own picture**, and once with **the picture of another question**, picked at random. The second score is called a
# *blind baseline*: what the model still gets right there came from the question alone, or from luck. Predict it:

# %%
quiz("ch00.blind")

# %% [markdown]
# Hundreds of questions need hundreds of true answers. The Thimble has them, because it draws each picture from a list
# of objects and therefore knows what the picture contains. The next cell shows one sample of its test split, whose
# scenes never occur in training.

# %%
from nanovlm.data.thimble import chance, thimble_sample

size = model.config.vision.image_size
sample = thimble_sample("shapes", "test", 610, image_size=size)
turns = [(turn["user"], turn["assistant"]) for turn in sample["texts"]]
sample_card(
    sample["images"][0], turns, alt="An orange triangle and a blue square; below, a red star."
)

# %% [markdown]
# Now measure both scores on all three subsets of the Thimble: shapes, charts, and signs, which are called "glyphs".
# This takes a few seconds.

# %%
from nanovlm.course import budget
from nanovlm.evaluation.scores import evaluate
from nanovlm.viz.start_here import Scored, seeing_bars

num_images = budget().pick(ci=30, laptop=60)
results = {}
for subset in ("shapes", "charts", "glyphs"):
    samples = [thimble_sample(subset, "test", i, image_size=size) for i in range(num_images)]
    results[subset] = evaluate(model, samples)

# %%
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
# Each row of the figure shows one kind of question:
#
# - The **filled bar** is the accuracy with the right picture, and the **black tick** is the accuracy of the best
#   guesser, who knows the question but not the picture. Where the bar ends far to the right of the tick, the model
#   knows something.
# - The **outlined bar** is the accuracy of the same model with a wrong picture. Where it ends near the tick, the
#   right answers came from the picture.

# %% [markdown]
# Two bars of the same length would mean that the answers came from the question, and that the picture changed nothing.
#
# You write this measurement in exercise 0.2, in exercise 0.3 you mend a guesser who is too bad, and in exercise 0.4 you
# write a test that finds models which only seem to look.
#
# In most rows the filled bar reaches the right end or comes close to it, and the outlined bars end around their
# ticks. So the model uses the picture. Each row rests on few questions, so differences of a few points mean nothing.

# %%
for subset, result in results.items():
    guessing = sum(chance(subset).values()) / len(chance(subset))
    total = sum(score.total for score in result.scores.values())
    print(
        f"{subset:8} {result.accuracy:6.1%} with its own picture, {result.blind_accuracy:6.1%} with another one's, "
        f"{guessing:6.1%} by guessing ({total} questions)"
    )

# %% tags=["claim"]
for subset, result in results.items():
    guessing = sum(chance(subset).values()) / len(chance(subset))
    assert result.accuracy > 0.9 and abs(result.blind_accuracy - guessing) < 0.15

# %% [markdown]
# ### A short test does not find rare mistakes
#
# If you see no mistake among sixty questions, the model may still make one in a hundred. The model comes with the
# record of a longer test, which asked 500 questions of each kind. The next cell shows the kinds with the lowest
# accuracy, and how often a test as short as ours would have shown *no* mistake at all.

# %%
import json

record = json.loads((asset_path("pocket") / "results.json").read_text(encoding="utf-8"))["test"]
kinds = {
    f"{subset} {kind}": score
    for subset, part in record.items()
    for kind, score in part["kinds"].items()
}
worst = sorted(kinds, key=lambda name: kinds[name]["accuracy"])
for name in worst[:3]:
    share = kinds[name]["accuracy"]
    print(
        f"{name:16} {kinds[name]['correct']} of {kinds[name]['total']} right; "
        f"{num_images} questions without a mistake: {share**num_images:.0%} of the time"
    )

# %% tags=["claim"]
assert "shapes count" in worst[:3] and kinds["shapes count"]["accuracy"] < 1

# %% [markdown]
# The kind `shapes count` is among them. Such a question asks how many shapes there are, how many red ones, or how
# many hearts. Counting *all* shapes is easy for the model, but selecting some of them and counting only those
# combines two tasks, and there its answer is sometimes off by one.
#
# Chapter 10 is about numbers like these and about the ways in which they mislead.

# %% [markdown]
# ## Every step has a shape, and you can predict it
#
# Now look inside the model. We begin with shapes, because most errors that you will meet in this course are errors of
# shape, and because you understand a model once you can say why each size has the value that it has. Predict one of
# them:

# %%
quiz("ch00.tokens")

# %% [markdown]
# The function `trace` runs the model once and records every step, and `stages` prints the few steps that matter most.

# %% tags=["nbval-check-output"]
from nanovlm.trace import trace

steps = trace(model, torch.tensor([ids]), pixels)
print(steps.stages())

# %% [markdown]
# Read the list from the top and compare it with the figure above:
#
# - **image** has one picture, three colour channels, a height and a width.
# - **after vision_encoder** there is one vector for each patch; the last number is the width of a vector.
# - **before and after pixel_shuffle** the number of vectors falls to a quarter while each becomes four times as wide,
#   so no number is lost.

# %% [markdown]
# - **after proj** there are as many vectors as before, and each is as wide as a token embedding.
# - **combined** is the sequence in which the image tokens have replaced the placeholders, so its shape is that of the
#   token embeddings.
# - **logits** contains one number for each token of the vocabulary, at each position. The last position predicts the
#   next token.

# %% [markdown]
# In this course, code states such claims, so that they stay true when the code changes. The next cell would fail if
# one of these shapes were wrong.

# %%
steps.expect(
    {
        "vision_encoder": "1 64 128",
        "pixel_shuffle": "1 16 512",
        "projector.proj": "1 16 128",
        "token_embedding": "1 T 128",  # T: any number, but the same wherever it occurs
        "decoder": "1 T 128",
    }
)

# %% [markdown]
# The next cell shows every step. Open the ones that you are curious about; the code that made each step appears on
# the right. You do not have to understand this code yet, since by chapter 06 you will have written your own.

# %%
steps

# %% [markdown]
# You may wonder whether all this is a toy. The next cell builds the first nanoVLM, with 222 million parameters, by
# the *same code* with larger sizes: its encoder is SigLIP-B/16 and its decoder SmolLM2-135M. On the device `meta`,
# tensors have shapes but no values, so nothing is downloaded or computed.

# %% tags=["nbval-check-output"]
from nanovlm import VLMConfig

with torch.device("meta"):
    large = VisionLanguageModel(VLMConfig())
question_ids, photo = torch.zeros(1, 79, dtype=torch.long), torch.zeros(1, 3, 224, 224)
large_steps = trace(large, question_ids, photo, device="meta")
print(f"{large_steps.num_params:,} parameters\n\n{large_steps.stages()}")

# %% [markdown]
# Compare the two lists line by line: the steps are the same. Only the fusion differs, because this model puts its
# image tokens in front of the text, while ours has them between the tokens of the text.

# %% [markdown]
# ## How this course works
#
# Each chapter builds one part. You start from a question, predict what will happen, build the part, look at what it
# does, and break it on purpose. Each chapter ends with exercises, most of which are short functions that become parts
# of your model. Here is the map, with the exercises that you have solved. [Notation and terms](notation.md) lists the
# symbols and words that all chapters share.

# %%
from nanovlm.course import course_map

course_map()

# %% [markdown]
# ### A check tells you what is wrong
#
# You write a function and pass it to `check`, which tells you not only *that* something is wrong but also *what*. Try
# it with this chapter's first exercise, the share of answers that are right. The answer below is wrong; try to see why
# before you run the cell.

# %%
from nanovlm.course import check


def score(answers, expected):
    return sum(a == e for a, e in zip(answers, expected, strict=True))


check("start.score", score)

# %% [markdown]
# The first line names the thought that probably led to the mistake. Below it you see the result, the expected result,
# and the example for which they differ. A check never stops your notebook, and you can run it as often as you like.
#
# If you are stuck, `hint` gives you a nudge, then a plan, and then almost the code: each call shows one more.

# %%
from nanovlm.course import hint

hint("start.score")

# %% [markdown]
# Now mend `score` in the cell above until the check passes, or open the [exercise
# notebook](../exercises/00_start_here.ipynb), which contains all exercises in full. There are
# [solutions](../solutions/00_start_here.ipynb) too, which help most after you have tried.

# %% [markdown]
# ### Your answers become your own package
#
# Each answer that passes its check is kept as a file of a small package, `my_vlm`, in the same folder as your
# progress. You can read and edit these files and put them under version control. In any later notebook, `use` returns
# your answer. As long as there is none, `use` returns the reference and prints a line that says so:

# %%
from nanovlm.course import use

my_score = use("start.score")
print(f"{my_score(answers, truth):.0%} of the three answers above are right")

# %% [markdown]
# Later chapters work in the same way: where a chapter has to show the answer to an exercise, that cell is folded, and
# the next cell continues with your version if you have one. From chapter 06 on, `yours()` builds the pocket model out
# of *your* functions and loads the shipped weights into them.

# %% [markdown]
# ### Your progress, and the size of the computations
#
# Your progress is in the folder `.nanovlm` of your home folder or, on Colab, in your Drive if you mount it; the
# environment variable `NANOVLM_HOME` chooses another folder. Code in a folder from another machine is not run before
# you have called `nanovlm course trust`.

# %% [markdown]
# The same notebooks run in a test, on a laptop and on a large GPU. The environment variable `NANOVLM_BUDGET` sets how
# much they compute: it is `ci`, `laptop`, `t4` or `h100`, and if you do not set it, the course chooses one for your
# machine.

# %%
budget()

# %% [markdown]
# ## Check your machine
#
# One call examines your installation; in a terminal, the same check is `nanovlm doctor`. A line that begins with `!!`
# names a problem and says how to solve it.

# %%
from nanovlm.commands.environment import examine, report

print(report(examine()))

# %% [markdown]
# ## What you take along
#
# - A VLM is a language model whose sequence also contains vectors that were made from a picture.
# - A right answer proves nothing by itself. Compare with a blind baseline: the same questions with the wrong
#   pictures.
# - Few questions cannot show rare mistakes.

# %% [markdown]
# Two links lead further: [nanoVLM](https://github.com/huggingface/nanoVLM), whose design this course follows, and
# [Chen et al. 2024](https://arxiv.org/abs/2403.20330) on benchmarks that can be solved without looking.

# %% [markdown]
# From here you can go to the [exercises](../exercises/00_start_here.ipynb) of this chapter and then to chapter 01,
# which turns a picture into a sequence of patches. If you know vision transformers well, begin with chapter 03, and
# if you also know decoders, skip chapter 04: the checks will show you whether you were right. In a terminal, `nanovlm
# generate --prompt "How many shapes are there?"` asks the pocket model, and `nanovlm train` trains one of your own.

# %% [markdown]
# ## Challenge: how few pixels does the model need?
#
# The model looks, but at how much? Write a function `keep` that chooses, for each pixel of a picture, whether the model
# may see it; the others are painted in the colour of the background. Two numbers count: the share of pixels that are
# kept, and the share of right answers to six questions about each picture. The aim is the fewest pixels with which at
# least 90 % of the answers are right.

# %% [markdown]
# The baseline below keeps every pixel that has a colour, which is about a quarter of them, and loses no answer. Replace
# it by something better. (This is the first challenge of the course. It has no solution, only a score to improve, and
# you can come back to it after chapter 01, which shows in what pieces the model reads a picture.)

# %%
from nanovlm.course.challenges import pixels_needed


def keep(pixels):
    """uint8 [64, 64, 3] -> bool [64, 64]: True where the model may see the pixel."""
    brightest, darkest = pixels.max(axis=2).astype(int), pixels.min(axis=2).astype(int)
    return brightest - darkest > 60


kept, right = pixels_needed(model, keep)
print(f"{kept:.1%} of the pixels, {right:.1%} of the answers right")

# %% tags=["claim"]
assert 0.2 < kept < 0.3 and right > 0.97

# %% [markdown] tags=["stamped"]
# ## Your turn
#
# [Open the exercises](../exercises/00_start_here.ipynb) ([in Colab][exercises]): 4 of them, about 31 minutes.
#
# [exercises]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/exercises/00_start_here.ipynb
#
# | | exercise | difficulty | minutes |
# |---|---|---|---|
# | 0.1 | How many are right? (`start.score`) | ●○○ | 5 |
# | 0.2 | Measure it: does the model look? (`start.looks`) | ●●○ | 8 |
# | 0.3 | Mend it: a guesser who is too bad (`start.best_guess`) | ●●○ | 8 |
# | 0.4 | Write the test: does this model look? (`start.test_looks`) | ●●○ | 10 |
#
# Next: [01 From pixels to patches](01_patch_embedding.ipynb)
