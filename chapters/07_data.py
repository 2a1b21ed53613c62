# %% [markdown]
# # 07 Data
#
# What a vision-language model is fed, from a file on a disk to a batch: samples and their turns, broken pictures,
# splits that do not leak, padding, packing, and an order that survives a restart. About an hour; the code runs in a
# minute.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [← 06 The vision-language model](06_vision_language_model.ipynb) ·
# [08 Training →](08_training.ipynb) ·
# [exercises](../exercises/07_data.ipynb) ·
# [notation and terms](notation.md)
#
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/chapters/07_data.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/chapters/07_data.ipynb

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
import io
import json
from collections import Counter, defaultdict
from timeit import timeit

import pyarrow.parquet as parquet
import torch
from PIL import Image

from nanovlm import VisionLanguageModel
from nanovlm.assets import asset_path
from nanovlm.course import budget, expect_shape, lever, quiz, use
from nanovlm.data.thimble import Thimble

# %% [markdown]
# **After this chapter you can**
#
# 1. turn the samples of a large public data set into batches, and say at each step what can go wrong without an error,
# 2. measure, before any training, how much of a data set can be answered without looking at its pictures,
# 3. test a data pipeline for leaks: between training and validation, and between samples that share a row.

# %% [markdown]
# You need chapters 05 (tokens and targets) and 06 (the whole model), and the masks of chapter 04. The exercises come on
# top of the hour.

# %% [markdown]
# ## One model, two pipelines, two results
#
# Two runs of one small model are stored with the course. They have the same parts, the same first weights, the same
# pictures in the same order and the same number of steps, and both end without an error or a warning. The only
# difference is in the code that makes batches out of the data, and yet one run ends far below the other. Before you look
# at the curves: which of the following could explain such a gap?

# %%
stored = json.loads(asset_path("runs/07_data_runs.json").read_text(encoding="utf-8"))
curves = stored["runs"].items()
runs = {name: [(p["step"], p["accuracy"]) for p in points] for name, points in curves}
for key in ("command", "machine", "model", "data"):
    print(f"{key:8} {stored[key]}")

# %%
quiz("ch07.suspects")

# %%
from nanovlm.data.thimble import chance
from nanovlm.evaluation.scores import interval
from nanovlm.viz.data import curves_figure


def accuracies(title: str, shown: dict[str, list]):
    """Runs beside the blind baseline; the bar at the end of each is a 95 % interval."""
    blind = chance("charts").values()
    best = max(curve[-1][1] for curve in shown.values())
    low, high = interval(round(best * stored["questions"]), stored["questions"])
    return curves_figure(title, shown, chance=sum(blind) / len(blind), half=(high - low) / 2)


both = {"run A": runs["right"], "run B": runs["first turn only"]}
accuracies("Right answers about unseen charts", both)

# %%
a, b = runs["right"][-1][1], runs["first turn only"][-1][1]
print(f"run A ends at {a:.0%}, run B at {b:.0%}")
print(f"the bars are 95 % intervals over {stored['questions']} questions")

# %% [markdown]
# The gap is far larger than the intervals, so it is no accident of the questions. We now walk through a data pipeline
# from its beginning to its end, and you will meet the cause of run B very soon.

# %% [markdown]
# ## A sample is a list of pictures and a list of turns
#
# Most open models of this kind are trained on collections in one common form, which Hugging Face's
# [the_cauldron](https://huggingface.co/datasets/HuggingFaceM4/the_cauldron) made popular: 50 data sets, brought to two
# columns. A **sample** is one row. Its column `images` is a list, since a sample may have several pictures or none.
# Its column `texts` is a list of **turns**, each with a question (`user`), an answer (`assistant`) and its `source`.

# %% [markdown]
# The course ships a file with three samples in that form. They come from the Thimble, the world of drawn pictures that
# the pocket model was trained on (chapter 00), so that you can open one without downloading a hundred gigabytes.

# %% tags=["nbval-check-output"]
the_cauldron = parquet.read_table(asset_path("samples/the_cauldron.parquet")).to_pylist()
sample = the_cauldron[0]
print(len(the_cauldron), "samples, with the columns", ", ".join(sample))
print(
    "images:",
    [{key: type(value).__name__ for key, value in image.items()} for image in sample["images"]],
)
for turn in sample["texts"][:3]:
    print("texts: ", turn)

# %% [markdown]
# A picture is stored as the bytes of its file, not as pixels. The data loader has to decode it, once an epoch, and it
# will meet files that cannot be decoded. What a row does *not* have matters as well: it has no id, no split into
# training and test, no size of the picture and no licence.
#
# Here are the three samples to look at.

# %%
from nanovlm.data.images import open_image
from nanovlm.viz.data import sample_card


def card(number):
    sample = the_cauldron[number]
    turns = [(turn["user"], turn["assistant"], turn["source"], True) for turn in sample["texts"]]
    image = open_image(sample["images"][0])
    return sample_card(image, turns, f"sample {number} of the_cauldron.parquet")


lever(card, number=[0, 1, 2])

# %% [markdown]
# ## All turns of a picture are worth training on
#
# Chapter 05 turned a conversation into token ids and targets: only the answers, and the token that ends each of them,
# are supervised. Do that for this sample twice, with all of its turns and with its first turn alone.

# %%
from nanovlm.data.datasets import messages_of as package_messages_of

pocket = VisionLanguageModel.from_pretrained(asset_path("pocket")).eval()
tokenizer, image_tokens = pocket.tokenizer, pocket.config.num_image_tokens
for name, turns in (("all turns", None), ("first turn", 1)):
    messages = package_messages_of({"texts": sample["texts"][:turns]})
    ids, supervised = tokenizer.encode_chat(messages, num_images=1, num_image_tokens=image_tokens)
    counts = f"{image_tokens} of the picture, {sum(supervised)} supervised"
    print(f"{name:11} {len(ids):4} tokens, {counts}")

# %% [markdown]
# The picture costs the same in both cases: it is decoded, resized and encoded once. With all turns it teaches many
# times as many answer tokens. Run B took `texts[0]` where it should have taken `texts`, so it trained on the first
# question of each conversation and dropped the others without a message.
#
# ### From the wild: the first turn, and a black picture
#
# Run B is no invention. Hugging Face's nanoVLM v0.1, whose published model has 222 million parameters, had [these
# lines](https://github.com/huggingface/nanoVLM/blob/v0.1/data/datasets.py#L17-L53) in its data set:


# %%
def as_in_v01(item: dict) -> tuple[str, str]:
    """The same decisions as the code of that release."""
    image, turn = item["images"][0], item["texts"][0]  # the first picture, the first turn
    whole = isinstance(image, Image.Image)
    shown = "its picture" if whole else "torch.zeros, a black picture"  # and training goes on
    return shown, f"Question: {turn['user']} Answer: {turn['assistant']}"


for image in (open_image(sample["images"][0]), None):  # None: it could not be opened
    print(as_in_v01({**sample, "images": [image]}))

# %% [markdown]
# Two decisions are hidden here. All turns but one are dropped, and what cannot be opened becomes a black picture under
# the same answer. Later versions use all turns, and raise an error where a picture cannot be opened. The two curves
# measure what the first decision costs a small model, and we come to the second one with the broken files.

# %% [markdown]
# ## FineVision rates every turn from 1 to 5
#
# [FineVision](https://arxiv.org/abs/2510.17269) is the_cauldron's successor: 17.3 million pictures, 24.3 million
# samples and 88.9 million turns from 185 subsets. Its schema adds columns with **ratings**, given by a large model:
# `relevance` (does the answer answer the question?), `image_correspondence` (does it fit the picture?),
# `visual_dependency` (must one look to answer?) and `formatting`. Each is a list with one number from 1 to 5 for each
# turn, or `None` where the turn was not rated.

# %% tags=["nbval-check-output"]
finevision = parquet.read_table(asset_path("samples/finevision.parquet")).to_pylist()
rated = finevision[0]
print("columns:", ", ".join(rated))
for number in (0, 1, 2):
    turn = rated["texts"][number]
    print(turn["user"], turn["assistant"])
    print("   ", {name: rated[name][number] for name in rated if name.endswith("_ratings")})

# %% [markdown]
# (The samples are the Thimble's again. We added turns of the kinds that automatic pipelines leave behind, and gave the
# ratings ourselves, by rule.) The second turn, a sum, needs no picture at all, so its visual dependency is 1, and
# whether it fits the picture was not rated. The third turn claims something that the picture shows to be wrong.

# %% [markdown]
# What should a filter do with a turn that is rated 1, with one that is rated exactly at the minimum, and with one that
# is not rated? You write that filter in [exercise 7.1](../exercises/07_data.ipynb), and the cells below use your version
# once it passes.

# %%
quiz("ch07.unrated")

# %%
from nanovlm.viz.data import rated_card

messages_of = use("data.messages_of")


def filtered(number, visual_dependency, image_correspondence):
    sample = finevision[number]
    low = {"visual_dependency": visual_dependency, "image_correspondence": image_correspondence}
    return rated_card(open_image(sample["images"][0]), sample, messages_of(sample, low), list(low))


# %%
start, ratings = {"visual_dependency": 3}, (1, 5)
lever(filtered, start, number=[0, 1, 2], visual_dependency=ratings, image_correspondence=ratings)

# %% [markdown]
# Does filtering help? FineVision's authors trained models on what is left at each minimum, and report that removing
# samples hurt more than training on them, even where they had been judged to be of low quality. Others chose samples
# from another collection by a whole pipeline of curation, and gained 11.7 points on average over 20 benchmarks
# ([arXiv:2605.11405](https://arxiv.org/abs/2605.11405v2)). So neither *more* nor *cleaner* is a law. A rating is the
# opinion of a model: use it to look at data, and measure before you throw any away, for example with `nanovlm train
# --min-ratings visual_dependency 3`.

# %% [markdown]
# ## Counting answers shows what can be guessed without a picture
#
# Looking at samples before the first training step takes a minute, and it finds mistakes that no tool looks for. Here
# are ten, each with one of its questions:

# %%
from nanovlm.viz.data import samples_figure

train = Thimble("shapes", "train")
seen = [train[i] for i in range(10)]
samples_figure(
    [s["images"][0] for s in seen],
    [(t["user"], t["assistant"]) for t in (s["texts"][0] for s in seen)],
)

# %% [markdown]
# How long are the answers? The loss is a mean over *tokens*, so a kind of question weighs in it by its share of the
# supervised tokens, and not of the turns. Each of these pictures has seven turns, of which one describes it. Guess the
# weight of that one; words instead of tokens will do for a first look.

# %%
lengths_of = defaultdict(list)
for i in range(200):
    for turn in train[i]["texts"]:
        lengths_of[turn["source"].rsplit("/", 1)[-1]].append(len(turn["assistant"].split()))
total = sum(map(sum, lengths_of.values()))
for kind, lengths in sorted(lengths_of.items()):
    shortest, longest = min(lengths), max(lengths)
    print(f"{kind:8} {len(lengths):4} answers of {shortest:2} to {longest:2} words,", end="")
    print(f"{sum(lengths) / total:4.0%} of all words")

# %% [markdown]
# Two thirds of all words are in descriptions. A loss that falls may therefore say little about the other kinds, and
# where these matter more, their share has to be raised on purpose.
#
# Now count the *answers*. A model can learn which answer is frequent for which question without ever looking at a
# picture, and will do so first, because it is the easiest thing to learn. The accuracy of a guesser that only counts is
# the **blind baseline**.

# %% [markdown]
# The Thimble balances the answers of each question. To show what unbalanced data look like, we make some: with
# `lopsided`, the function below loses nine of ten turns about the Thimble's charts whose answer is "no", "1" or "2".


# %%
def turns_of(data: Thimble, count: int, lopsided: bool = False) -> list[tuple[str, str]]:
    """(question, answer) of all turns but the descriptions, which come last."""
    pairs = [(t["user"], t["assistant"]) for i in range(count) for t in data[i]["texts"][:-1]]
    lost = ("no", "1", "2") if lopsided else ()
    return [(q, a) for i, (q, a) in enumerate(pairs) if i % 10 == 0 or a not in lost]


num_samples = budget().pick(ci=400, laptop=1500)
charts, held_out = Thimble("charts", "train"), Thimble("charts", "test")
fair, lopsided = (turns_of(charts, num_samples, lopsided=what) for what in (False, True))

# %%
from nanovlm.viz.data import answers_figure

counts = defaultdict(Counter)
for question, answer in lopsided:
    counts[question][answer] += 1
shown = ["Is the red bar taller than the blue bar?", "How tall is the red bar?"]
shown += ["Which bar is the tallest?", "How many bars are there?"]
answers_figure({question: counts[question] for question in shown if counts[question]})

# %% [markdown]
# In each bar the blue piece is the most frequent answer to that question. Predict the score of a guesser that has read
# all of these turns, never sees a picture, and always gives that answer.

# %%
quiz("ch07.blind")

# %%
blind_score = use("data.blind_score")
for name, turns, test in (
    ("as it is", fair, turns_of(held_out, num_samples // 2)),
    ("lopsided", lopsided, turns_of(held_out, num_samples // 2, lopsided=True)),
):
    print(f"{name}: {blind_score(turns, test):.1%} of {len(test)} test questions without a picture")

# %% [markdown]
# So one and the same accuracy may be worth nothing on one data set and much on another. Write the blind score beside
# every accuracy that you report. It needs no model and no GPU: two dictionaries are enough ([exercise
# 7.2](../exercises/07_data.ipynb)).

# %% [markdown]
# Where one answer makes up 90 % of the answers to a question, that question hardly needs the picture, so the counts are
# a *visual dependency* rating of your own. Chapter 08 makes a sharper one with a model: the loss of each kind of
# question with its own picture, and with another one.

# %% [markdown]
# ## Some picture files are shown wrongly without an error
#
# A collection of millions of files contains every kind of file. The gallery below is made in code, by
# `nanovlm.data.bad_images`. For each file, the left side shows what Pillow's `Image.open(…).convert("RGB")` gives,
# and the right side what `open_image` of the package gives.

# %%
from nanovlm.data.bad_images import odd_images, opened
from nanovlm.viz.data import gallery_figure


def plain_convert(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("RGB")


odd = odd_images()
sides = zip(odd, opened(plain_convert, odd), opened(open_image, odd), strict=True)
gallery_figure([(file.name, file.trouble, plain, careful) for file, plain, careful in sides])

# %% [markdown]
# The dangerous files are those where both sides show a picture and the pictures differ. Telephones store a picture as
# the sensor saw it and write into the **EXIF** block which way is up. A transparent pixel still has a colour, most
# often black, and `convert` brings it to light. Values of 16 bits reach up to 65,535, and `convert` cuts at 255. None
# of these raises an error; the model is simply shown another world.

# %% [markdown]
# The others are refused, and there the question is what the error says and what happens next. Two are worth knowing. A
# **decompression bomb** is a tiny file that claims to be enormous: refuse it by its header, before the memory is full.
# And a long comment in a PNG is no reason to lose the picture, although Pillow thinks so; nanoVLM [raises Pillow's
# limit](https://github.com/huggingface/nanoVLM/blob/4e0c0961846135c2217f95e54cb4c2d66eb55e42/train.py#L47), the
# package drops the comment.
#
# Writing such a function yourself is [exercise 7.3](../exercises/07_data.ipynb).

# %% [markdown]
# ### A picture that cannot be opened is skipped, counted and named
#
# Ending a run of six hours for one broken file would be silly, and hiding the problem would be worse. The package puts
# a `Skipped` in the sample's place, with the reason; the loader takes another sample, counts, and reports the number
# with the first reason.

# %%
from nanovlm.data.datasets import Skipped, VQADataset

broken = [{"images": [o.content], "texts": sample["texts"]} for o in odd]
data = VQADataset(broken, tokenizer, pocket.image_processor, pocket.config)
for item in (data[i] for i in range(len(data))):
    if isinstance(item, Skipped):
        print(item)

# %% [markdown]
# What if we did as v0.1 did, and trained on a black picture instead? The pocket model can tell us what such samples
# would do to a model that already sees. For ordinary pictures and for black ones, compute the loss of the right
# answers:

# %%
quiz("ch07.black")


# %%
def loss_of(samples: list[dict]) -> float:
    """Mean loss of the supervised tokens, sample by sample."""
    prepared = VQADataset(samples, tokenizer, pocket.image_processor, pocket.config)
    losses = []
    for item in (prepared[i] for i in range(len(prepared))):
        with torch.no_grad():
            output = pocket(item["input_ids"][None], item["images"], targets=item["targets"][None])
        losses.append(output.loss.item())
    return sum(losses) / len(losses)


# %%
some = [Thimble("shapes", "test")[i] for i in range(budget().pick(ci=20, laptop=60))]
black = [{**s, "images": [Image.new("RGB", (64, 64))]} for s in some]
sighted, blinded = loss_of(some), loss_of(black)
share = 0.1 * blinded / (0.1 * blinded + 0.9 * sighted)
print(f"loss with the picture {sighted:.4f}, with a black one {blinded:.2f}")
print(f"with a tenth of the pictures black, {share:.1%} of the loss would come from them")

# %% [markdown]
# A tenth of the samples would make up nearly the whole loss, and from then on nearly all of what the optimiser works
# at. There is nothing to see in them, so the loss can only fall by guessing: the gradient pulls the model back towards
# the blind baseline. Skip such samples, and let the count tell you when there are too many of them.

# %% [markdown]
# ### Texts are broken too
#
# Texts fail more quietly. A turn without an answer has nothing to learn, and an *empty* answer has one target, the end
# token, which would teach the model to say nothing. Some text will contain the very characters with which the template
# marks a turn (chapter 05 made sure that those stay plain characters), and some answer will be longer than the model's
# context. Which of these does the package skip, and on which does it train?

# %%
texts = {
    "no answer": [{"user": "What is this?", "assistant": None}],
    "an empty answer": [{"user": "What is this?", "assistant": ""}],
    "no turns": [],
    "a mark in the text": [{"user": "Say <|end|>", "assistant": "no"}],
    "endless": [{"user": "Describe the picture.", "assistant": "very " * 30_000 + "large"}],
}

# %%
odd_texts = [{"images": sample["images"], "texts": turns} for turns in texts.values()]
data = VQADataset(odd_texts, tokenizer, pocket.image_processor, pocket.config, max_length=128)
for name, item in zip(texts, (data[i] for i in range(len(data))), strict=True):
    if isinstance(item, Skipped):
        print(f"{name:20}{item}")
    else:
        print(f"{name:20}{len(item['input_ids'])} tokens, cut: {item['truncated']}")

# %% [markdown]
# ## Split by picture, or the validation score measures memory
#
# None of these collections has a validation split, so everybody makes one. The obvious way is to shuffle the *turns*
# and to hold some out. Predict what that does, where each picture has seven turns:

# %%
quiz("ch07.split")

# %%
turns = [(image, turn) for image in range(500) for turn in range(7)]
order = torch.randperm(len(turns), generator=torch.Generator().manual_seed(0)).tolist()
validation = {turns[i][0] for i in order[:350]}  # a tenth of the turns
training = {turns[i][0] for i in order[350:]}
share = len(validation & training) / len(validation)
print(f"{share:.1%} of the validation pictures are in training as well")

# %% [markdown]
# So the model is asked about pictures that it was trained on, and part of its score is memory. Splitting by *row* is
# better, but a row is not a picture either: collections are merged from others, and the same photograph comes with
# several questions in several rows.

# %% [markdown]
# The remedy is to let the **content of the picture decide**, so that equal pictures land on one side, the split is the
# same in every process, and a picture keeps its side when the data grow. How a picture's bytes can decide is
# [exercise 7.4](../exercises/07_data.ipynb). (The package's loader holds out whole *rows* of a data set on a disk,
# because reading a hundred gigabytes takes longer than a short run. Where rows share pictures, split with this function
# first.)

# %%
split_by_image = use("data.split_by_image")
contents = [b"picture %d" % image for image, _ in turns]
train_indices, val_indices = split_by_image(contents, 0.1, 0)
both = {contents[i] for i in train_indices} & {contents[i] for i in val_indices}
print(f"{len(val_indices)} of {len(turns)} turns are held out")
print(f"{len(both)} pictures are on both sides")
more = split_by_image(contents + [b"new %d" % i for i in range(500)], 0.1, 0)[1]
print(
    "those held out stay held out when data are added:",
    [i for i in more if i < len(contents)] == list(val_indices),
)

# %% [markdown]
# ### Near duplicates need a hash of what one sees
#
# A picture that was saved again, as a JPEG or a little smaller, has other bytes. A **perceptual hash** forgives that:
# shrink the picture to 8 x 8 grey cells, and note for each whether it is lighter than the mean. That makes 64 bits,
# and copies differ in few of them.

# %%
from nanovlm.data.splits import average_hash, bits_apart


def again(image: Image.Image) -> Image.Image:
    """Made smaller, and saved as a JPEG."""
    buffer = io.BytesIO()
    image.resize((50, 50)).save(buffer, "JPEG", quality=60)
    return Image.open(buffer)


# %%
images = [Thimble("glyphs", "train")[i]["images"][0] for i in range(40)]
hashes = [average_hash(image) for image in images]
copies = [bits_apart(a, average_hash(again(b))) for a, b in zip(hashes, images, strict=True)]
others = [bits_apart(hashes[i], hashes[j]) for i in range(40) for j in range(i)]
print(f"a copy differs in {sum(copies) / len(copies):.1f} bits on average, at most {max(copies)}")
print(f"another picture in {sum(others) / len(others):.1f}, at least {min(others)}")

# %% [markdown]
# A threshold between the two averages tells most copies, but the ranges overlap, because drawn pictures of one kind
# resemble each other. Treat equal hashes as a suspicion, and look. FineVision's authors used features of a trained
# network, which tell more pictures apart, and found about 1 % of FineVision's pictures in the 66 benchmarks that they
# searched, and about 3 % of the_cauldron's.

# %% [markdown]
# Some questions need more than new pictures. The Thimble's split `unseen` holds back *combinations*: a colour with a
# shape that no training sample shows or names. A model that answers there has not memorised pairs.

# %% [markdown]
# ## A batch is three rectangles and one stack of pictures
#
# Samples differ in length, and a tensor is a rectangle. So rows are filled up with **padding**. Here it is by hand for
# three samples, before you write the function ([exercise 7.5](../exercises/07_data.ipynb)). Each line shows the ids of
# one sample, the mask that says where they are, and the targets:

# %% tags=["nbval-check-output"]
ids = [[5, 8, 1], [7, 1], [6, 9, 9, 4, 1]]  # 1 ends an answer
targets = [[-100, 1, -100], [1, -100], [-100, 9, 4, 1, -100]]
longest = max(map(len, ids))
for row, learned in zip(ids, targets, strict=True):
    gap = longest - len(row)
    print(row + [0] * gap, [1] * len(row) + [0] * gap, learned + [-100] * gap)

# %% [markdown]
# Each of the three has a filling of its own: an id that exists (here 0), a mask of 0, and targets of -100, which the
# loss leaves out. If the targets were filled with the id of the padding, the model would be trained to write padding.
#
# The mask has to come from the lengths. It is tempting to write `ids != pad_id`, but many tokenizers have no token for
# padding and use the end token in its place. What happens then?

# %% tags=["nbval-check-output"]
pad_id = 1  # the end token serves as padding
row = torch.tensor([*ids[1], pad_id, pad_id, pad_id])
print("from the lengths:", [1, 1, 0, 0, 0])
print("from the ids:    ", (row != pad_id).long().tolist())

# %% [markdown]
# The real end token is masked out as well. In training, causal attention hides the mistake, since no real token attends
# to the padding on its right. It shows where tokens are counted by the mask, or where targets are made from it: then the
# end is never a target, and the model does not learn to stop.

# %% [markdown]
# Rows are padded on the right in training, where they begin together, and on the left for generation, where they must
# end together (chapter 09). The pictures need no padding: those of all samples follow each other in one tensor, in the
# order of their placeholders. If a broken picture is dropped there and its text stays, every text behind it in the
# batch gets the picture of another.

# %%
from nanovlm.data.collators import VQACollator

data = VQADataset([train[i] for i in range(8)], tokenizer, pocket.image_processor, pocket.config)
batch = VQACollator(tokenizer.pad_token_id)([data[i] for i in range(8)])
print("input_ids", expect_shape(batch["input_ids"], "batch length"))
print("targets  ", expect_shape(batch["targets"], "batch length"))
print("images   ", expect_shape(batch["images"], "pictures 3 64 64"))
print(f"padding  : {1 - batch['attention_mask'].float().mean():.0%} of the positions")

# %% [markdown]
# How bad is that? This is run A once more, with a collator that drops one picture in ten and lets those behind it move
# up, while all texts stay.

# %%
both = {"run A": runs["right"], "out of step": runs["pictures out of step"]}
accuracies("Right answers about unseen charts, with pictures out of step", both)

# %%
losses = [point["loss"] for point in stored["runs"]["pictures out of step"]]
print("out of step, loss:", ", ".join(f"{loss:.2f}" for loss in losses))

# %% [markdown]
# About three pictures of each batch of 32 are lost, so nearly every sample comes behind a lost one and is shown the
# picture of another. The model learns which answers are frequent, which is why its loss keeps falling, and nothing
# about pictures. You write a test that notices all this in [exercise 7.6](../exercises/07_data.ipynb).

# %% [markdown]
# ## Most of a padded batch can be padding
#
# The Thimble's conversations are of about one length, so little is lost. Real collections are *long-tailed*: many
# short answers, and a few very long ones, each of which pads all others in its batch. To see that, we draw lengths from
# a log-normal distribution, whose long tail is of the kind that mixtures of captions, tables and documents have.

# %%
from nanovlm.viz.data import rows_figure

generator = torch.Generator().manual_seed(0)
drawn = torch.randn(256, generator=generator).mul(0.8).add(4.6).exp()
lengths = drawn.clamp(20, 1024).round().int().tolist()
print(f"256 samples: the median has {sorted(lengths)[128]} tokens, the longest {max(lengths)}")


def batches_of(batch_size: int, order: str) -> list[list[int]]:
    ranked = sorted(lengths) if order == "sorted by length" else lengths
    return [ranked[start : start + batch_size] for start in range(0, len(ranked), batch_size)]


def waste(batches: list[list[int]]) -> float:
    return 1 - sum(lengths) / sum(len(batch) * max(batch) for batch in batches)


# %%
def padded(batch_size, order):
    batches = batches_of(batch_size, order)
    one = batches[len(batches) // 2]
    title = f"One batch of {batch_size}; over all batches {waste(batches):.0%} is padding"
    return rows_figure(title, [[length] for length in one], max(one))


orders = ["as they come", "sorted by length"]
lever(padded, {"batch_size": 16}, batch_size=[4, 8, 16, 32, 64], order=orders)

# %% [markdown]
# Larger batches waste more, because the longest of many is longer. Sorting by length helps, but it also decides which
# samples meet in a batch: first all short answers, then all long ones, and the gradient drifts with them. Practical
# code sorts within windows of a few hundred samples, and shuffles the batches. Packing wastes almost nothing.

# %% [markdown]
# ## Packing puts several samples into one row
#
# Take rows of a fixed length and fill them like suitcases: the longest sample first, each into the first row that has
# room for it. The method is called **first-fit decreasing**; it never needs more than 11/9 of the fewest possible
# rows, and one more ([Dósa 2007](https://doi.org/10.1007/978-3-540-74450-4_1)). You write it in [exercise
# 7.7](../exercises/07_data.ipynb).

# %%
quiz("ch07.packing")

# %%
pack = use("data.pack")


def packed(row_length):
    rows = pack(lengths, row_length)
    filled = [[lengths[i] for i in row] for row in rows]
    return rows_figure("The same 256 samples, packed", filled, row_length)


lever(packed, row_length=[1024, 2048, 4096])

# %% [markdown]
# The computation for padding is gone. Two things change with it, and one of them is a trap.

# %% [markdown]
# First, a row is no longer a sample. A "batch of 8 rows" now means many more samples and more supervised tokens a
# step, so learning rates do not carry over, and a loss that averages over rows would weigh tokens differently. Count
# tokens (chapter 08). And each sample brings its pictures: a row of fifty short samples has fifty pictures to encode.
# A packer therefore needs a second limit, on the pictures of a row; nanoVLM's has one, of 18.

# %% [markdown]
# ## Without boundaries a sample reads its neighbour
#
# This is the trap. Attention in a decoder is causal: a token sees all tokens before it *in its row*. After packing,
# those include the samples in front of it, with their pictures and their answers. Let us pack two real conversations
# into one row, change one word in the first, and watch the logits of the second.

# %%
from nanovlm.data.collators import PackingCollator

pair = [{**train[i], "texts": train[i]["texts"][:3]} for i in (0, 1)]
items = VQADataset(pair, tokenizer, pocket.image_processor, pocket.config)
row = PackingCollator(tokenizer.pad_token_id, 128)([items[0], items[1]])
documents = row["document_ids"]

# %%
token_counts = {d: int((documents == d).sum()) for d in (0, 1, -1)}
print("document_ids:", expect_shape(documents, "1 128"), "· tokens of each:", token_counts)
changed = row["input_ids"].clone()
changed[0, token_counts[0] - 6] += 1  # some other token, near the end of document 0


# %%
def logits_of(ids: torch.Tensor, **masks: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return pocket(ids, row["images"], **masks).logits[0]  # [length, vocab_size]


moved = {}
for name, masks in (("no boundaries", {}), ("boundaries", {"document_ids": documents})):
    difference = logits_of(changed, **masks) - logits_of(row["input_ids"], **masks)
    moved[name] = difference.abs().amax(dim=-1).tolist()
others = documents[0] == 1
for name, values in moved.items():
    largest = torch.tensor(values)[others].max()
    print(f"{name:14} the logits of document 1 move by up to {largest:.2g}")

# %%
from nanovlm.viz.data import leak_figure

leak_figure(documents[0].tolist(), moved)

# %% [markdown]
# Without boundaries the second conversation depends on the first, although they are about different pictures. The test
# is that of chapter 04, where a late token was changed to see whether an early logit moves: change what must not
# matter, and look. It belongs in the tests of every pipeline that packs.

# %% [markdown]
# The cure is one more condition in the mask. A query sees a key if the key is not later **and belongs to the same
# document**. Positions begin at 0 in each document, as they will when somebody asks a single question.

# %%
document_mask = use("data.document_mask")

# %% tags=["nbval-check-output"]
mask, positions = document_mask(torch.tensor([[0, 0, 0, 1, 1, -1]]))
print(mask[0, 0].int())
print("positions:", positions[0, :5].tolist())

# %% [markdown]
# Two triangles instead of one large one, and the last token, which is padding, sees itself. Mending a mask that has
# one triangle is [exercise 7.8](../exercises/07_data.ipynb). One detail is left: the last token of a document must not
# be asked for the first token of the next. Its target is -100.

# %% [markdown]
# ### From the wild: a row with one mask bit between neighbours
#
# nanoVLM packs [like
# this](https://github.com/huggingface/nanoVLM/blob/4e0c0961846135c2217f95e54cb4c2d66eb55e42/data/advanced_datasets.py#L132-L144)
# in the version of October 2025: it appends a padding token with a mask of 0 to each sample, and puts the samples end
# to end. The mask hides that one token. It hides nothing else, so each sample reads all those before it, and positions
# run on through the row. Here it is on the row from above:

# %%
middle, end = token_counts[0], token_counts[0] + token_counts[1]
gap, visible = torch.ones(1, 1, dtype=torch.long), torch.ones(1, end + 1, dtype=torch.long)
visible[0, middle] = 0  # hides the one token between the samples
before, after = (
    logits_of(torch.cat([ids[:, :middle], gap, ids[:, middle:end]], dim=1), attention_mask=visible)
    for ids in (row["input_ids"], changed)
)
difference = (after - before)[middle + 1 :].abs().max()
print(f"one word of sample 0 changed: the logits of sample 1 move by up to {difference:.2g}")

# %% [markdown]
# Does it matter? A leak that moves logits by less than one may cost little. So we measured it: run A of this chapter's
# beginning, twice more, with several samples in each row of 512 tokens. One run has boundaries, the other has none.

# %%
packed_runs = {"padded": runs["right"], "with boundaries": runs["packed, with boundaries"]}
packed_runs["without"] = runs["packed, no boundaries"]
accuracies("Right answers about unseen charts, padded, and packed in two ways", packed_runs)

# %%
print("; ".join(f"{name}: {curve[-1][1]:.1%}" for name, curve in packed_runs.items()))

# %% [markdown]
# With boundaries, packing gives what padding gave, to within the interval: it is the same computation in fewer rows.
# Without them the model has to find out which of several pictures a question is about, and it is trained at positions
# at which it will never be asked.

# %% [markdown]
# Each curve is one run of one small model from random weights, so the size of the gap is an example and no law. But the
# leak can be tested for at any size, and the right mask is one line longer.

# %% [markdown]
# ## The share of each source is a decision
#
# A mixture of subsets is drawn with weights. Taking every sample once gives a source the share that it happens to
# have, so that ten million captions drown ten thousand charts. Taking all sources equally often repeats the small ones
# many times. In between, weights proportional to a power of the size: 1 is the first rule, 0 the second.

# %%
sizes = {"captions": 10_000_000, "documents": 1_000_000, "charts": 100_000, "counting": 10_000}
steps = 1_000_000  # samples drawn
for power in (1.0, 0.5, 0.0):
    weights = {name: size**power for name, size in sizes.items()}
    drawn = {name: steps * weight / sum(weights.values()) for name, weight in weights.items()}
    print(f"power {power}")
    for name, samples in drawn.items():
        print(f"    {name:10}{samples / steps:6.1%}  {samples / sizes[name]:5.2f} epochs")

# %% [markdown]
# The number of epochs is the one to watch: a source that is seen a hundred times is memorised. There is no formula
# that spares you the measurement. When the pocket model was trained, adding captions made its counting worse, and
# whichever skill came first seemed to stand in the way of the next; the course's
# [log](https://github.com/nanovlm-course/nanovlm/blob/main/LOG.md) has the table. Keep a validation score *for each
# source*, as chapter 08 does for each kind of question, or a rare skill will disappear inside a mean that rises.

# %% [markdown]
# ## The order is a pure function of the seed and the batch's number
#
# Runs are stopped and resumed. If the order of the data lives in the state of a random generator, a resumed run either
# starts the data over or shuffles them anew, and some samples come twice while others never come. So let the order be
# a *function*: batch number *n* of seed *s* is always the same list of samples, whether or not batches 0 to *n* - 1
# were ever made ([exercise 7.9](../exercises/07_data.ipynb)).

# %% tags=["nbval-check-output"]
from nanovlm.data.batches import BatchOrder

order = BatchOrder(torch.arange(10), batch_size=4, seed=0)
batches = [order.batch_indices(n) for n in range(5)]
print("batches 0 to 4, two epochs:", batches)
print("each sample twice:", sorted(i for b in batches for i in b) == sorted([*range(10)] * 2))
again = BatchOrder(torch.arange(10), batch_size=4, seed=0)
print("batch 3 alone, anew:", again.batch_indices(3) == batches[3])

# %% [markdown]
# The epochs lie end to end, so batch 2 takes its last samples from the second epoch. Workers do not change anything:
# each is handed numbers of batches, not a share of the data.
#
# A stream cannot do this, because it has no samples by number. It is shuffled through a **buffer**: hold so many
# samples, give out a random one, put the next in its place. How well does that mix?

# %%
from nanovlm.viz.data import order_figure


def buffered(buffer):
    generator = torch.Generator().manual_seed(0)
    held, out = [], []
    for sample in range(1000):
        held.append(sample)
        if len(held) > buffer:
            out.append(held.pop(int(torch.randint(len(held), (), generator=generator))))
    out += [held[i] for i in torch.randperm(len(held), generator=generator).tolist()]
    return order_figure(f"1,000 samples through a buffer of {buffer}", out)


lever(buffered, {"buffer": 100}, buffer=[1, 10, 100, 300, 999])

# %% [markdown]
# A sample can come late, but never more than a buffer's length early, so the points stay near the diagonal. If the file
# is sorted by source, the model still sees one source after the other. Shuffle once on the disk, or draw from many
# files in turn.

# %% [markdown]
# ## The loader has to be faster than the model
#
# A GPU that waits costs as much as one that works. Measure the parts of a step separately, for one sample, on your
# machine:

# %%
content, photo = the_cauldron[0]["images"][0]["bytes"], io.BytesIO()
noise = Image.effect_noise((200, 150), 60).resize((3200, 2400))  # as large as a photograph
noise.convert("RGB").save(photo, "JPEG", quality=85)
item = VQADataset(the_cauldron, tokenizer, pocket.image_processor, pocket.config)[0]
one = {"images": item["images"], "targets": item["targets"][None]}
messages, ids = package_messages_of(sample), item["input_ids"][None]

# %%
work = {
    "a Thimble PNG: decode and resize": lambda: pocket.image_processor([content]),
    "a photograph: decode in full": lambda: open_image(photo.getvalue()),
    "a photograph: at a reduced size": lambda: open_image(photo.getvalue(), target_size=224),
    "tokenise the conversation": lambda: tokenizer.encode_chat(messages, 1, image_tokens),
    "the model, forward and backward": lambda: pocket(ids, **one).loss.backward(),
}
repeats = budget().pick(ci=3, laptop=10)
for name, run in work.items():
    run()  # the first call is slower than the others
    print(f"{name:40}{1000 * timeit(run, number=repeats) / repeats:8.2f} ms")

# %% [markdown]
# The loader keeps up as long as its time for a sample, divided by the number of workers, is below the time that the
# model needs for it. A JPEG can be decoded at a half, a quarter or an eighth of its size directly, which costs nothing
# and saves most. On a large GPU the model's time is tiny, and the time for the picture decides.
#
# A published example: nanoVLM's 222M model took about six hours on one H100, for 32,700 steps of 256 samples.

# %% tags=["nbval-check-output"]
flops_per_sample = 3 * 70.7e9  # forward and backward, from chapter 12's count
rate = 32_700 * 256 / (6 * 3600)
print(f"{rate:.0f} samples a second, {rate * flops_per_sample / 1e12:.0f} TFLOP/s")
share = rate * flops_per_sample / 989e12
print(f"{share:.0%} of the 989 TFLOP/s that an H100's data sheet gives for bfloat16 products")

# %% [markdown]
# That is less than a tenth of what the chip can do, and a part of the rest is the loader's: a machine that trains on 390
# samples a second has to decode, resize and tokenise as many, which is a task for several cores.

# %% [markdown]
# ## A data card answers four questions
#
# Data come from people. Before you train on a collection, or publish one, answer four questions in writing, on a
# **data card**: where each source is from and under which licence; who may be recognised in it, and whether they
# agreed; what it over- and under-represents; and what you removed, and why. A merged collection such as the_cauldron
# has as many licences as sources, and not all of them allow every use.

# %% [markdown]
# ## What you take along
#
# - A data pipeline fails without errors. Look at samples, count, and test each step with an unkind example.
# - Use all turns; keep what nobody rated; skip broken pictures, count them and say why. Never put another picture there.
# - Write the blind score beside every accuracy.
# - Let the content of a picture decide its split, and let a pure function decide the order.
# - Pack with boundaries: change document 0, and document 1 must not move.

# %% [markdown]
# In the package: `nanovlm/data/datasets.py` (samples), `processors.py` (pictures), `splits.py`, `collators.py`
# (padding, packing), `batches.py` (order, loader), `loading.py` (data sets by name).

# %% [markdown]
# ## Challenge: a data set of your own that cannot be guessed
#
# Draw clock faces. Write a function that makes sample number *i* in the_cauldron's schema: a picture of a clock, and
# three turns about it (the hour, the minutes in steps of five, whether it is before six). Then let the second cell judge
# 200 of them. Your score is the *distance between the blind score and 1 / (number of answers)*, averaged over the three
# kinds of question: below 3 points is good, below 1 is excellent. Chapter 08 can train on it.


# %%
def clock(index: int) -> dict:
    """Replace this: it is always noon, so anybody can guess."""
    turns = [
        ("What hour does the clock show?", "12"),
        ("How many minutes past?", "0"),
        ("Is it before six?", "no"),
    ]
    return {
        "images": [Image.new("RGB", (64, 64), "white")],
        "texts": [{"user": q, "assistant": a} for q, a in turns],
    }


# %%
from nanovlm.course.challenges import guessable

points = guessable(clock, choices=(12, 12, 2), blind_score=blind_score)
print(f"{points:.1f} points above chance")

# %% [markdown] tags=["stamped"]
# ## Your turn
#
# [Open the exercises](../exercises/07_data.ipynb) ([in Colab][exercises]): 9 of them, about 1.9 hours.
#
# [exercises]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/exercises/07_data.ipynb
#
# | | exercise | difficulty | minutes |
# |---|---|---|---|
# | 7.1 | Which turns are worth learning? (`data.messages_of`) | ●○○ | 10 |
# | 7.2 | Measure what closed eyes score (`data.blind_score`) | ●○○ | 10 |
# | 7.3 | Any file, as a person would see it (`data.open_image`) | ●●○ | 15 |
# | 7.4 | No picture on both sides (`data.split_by_image`) | ●●○ | 12 |
# | 7.5 | Rows of one length (`data.pad_batch`) | ●●○ | 12 |
# | 7.6 | Write the test that would have told (`data.test_pad_batch`) | ●●○ | 12 |
# | 7.7 | Which samples share a row? (`data.pack`) | ●●○ | 12 |
# | 7.8 | Mend it: a row that reads its neighbour (`data.document_mask`) | ●●● | 15 |
# | 7.9 | Batch number n, asked alone (`data.resumable_order`) | ●●● | 15 |
#
# Next: [08 Training](08_training.ipynb)
