# %% [markdown]
# # 16 Small and fast
#
# A trained model is made smaller in five ways: fewer bits for each weight, training that knows about it, a smaller
# model that learns from the large one, channels that are cut out, and an export that needs no PyTorch. Each is measured
# beside doing nothing. You need chapters 02, 04, 08 and 09. An hour; the code runs in two minutes.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [← 15 Your own pictures](15_own_pictures.ipynb) ·
# [17 Other designs →](17_other_designs.ipynb) ·
# [exercises](../exercises/16_small_and_fast.ipynb) ·
# [notation and terms](notation.md)
#
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/chapters/16_small_and_fast.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/chapters/16_small_and_fast.ipynb

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

import torch
from PIL import Image

from nanovlm import VisionLanguageModel
from nanovlm.assets import asset_path
from nanovlm.course import budget, expect_shape, lever, quiz, use
from nanovlm.course.runs import stored_runs
from nanovlm.data.thimble import Thimble
from nanovlm.training.probe import Probe, mean

# %% [markdown]
# **After this chapter you can**
#
# 1. say what one answer costs in bytes and in operations, and which of the two a method makes smaller;
# 2. quantise, distil and prune a model by hand, and measure for each what it saves and which questions it loses;
# 3. export a decoder whose cache goes in and comes out, prove that its answers are the same, and measure its latency as
#    a camera would feel it.
#
# **You need** the MLPs of chapters 02 and 04, the training step of chapter 08 and the cache of chapter 09. **Time**:
# twenty minutes of text, twenty-nine for the code and ten for quizzes and levers; the exercises take an hour and a
# half more.

# %% [markdown]
# ## The question: what would you have to make small?
#
# To write one token, a decoder reads each of its weights from memory once, and multiplies it once. To read a prompt of
# a hundred tokens it also fetches each weight once, and multiplies it a hundred times. So the same weights are used at
# two very different rates, and a method that saves bytes need not help where operations are the limit.

# %%
quiz("ch16.int8_gain")

# %% tags=["nbval-check-output"]
from nanovlm.config import VLMConfig
from nanovlm.models.language_model import LanguageModel
from nanovlm.training.formulas import decoder_flops

language = VLMConfig().language  # the decoder of the 222M model
with torch.device("meta"):
    weights = sum(p.numel() for p in LanguageModel(language).blocks.parameters())
for name, tokens in (("a prompt of 128 tokens", 128), ("one more token", 1)):
    flops = decoder_flops(language, tokens, 128)
    for bits in (32, 8, 4):
        print(f"{name:24}{bits:3} bits a weight: {flops / (weights * bits / 8):6.1f} FLOP a byte")
print(f"{'an H100, 16 bits':24} can do {989e12 / 3.35e12:.0f} FLOP in the time of a byte")

# %% [markdown]
# A processor can do some tens or hundreds of operations in the time in which it fetches one byte. How many depends on
# the machine; the last line divides two figures of a data sheet. A prompt is near such a number or above it, so that
# operations decide how long it takes. A token is far below it, and there bytes decide.
#
# All that follows is measured on the pocket model, which answers in milliseconds, with scores from questions about test
# pictures. These are the questions of this notebook; longer measurements are stored, with the command that made them.

# %%
pocket = VisionLanguageModel.from_pretrained(asset_path("pocket"), torch.float32).eval()
few = budget().pick(ci=3, laptop=15)
samples = [
    Thimble(name, "test", few)[i] for name in ("shapes", "charts", "glyphs") for i in range(few)
]
probe = Probe(pocket, samples)
print(f"{len(probe.kinds)} questions, {mean(probe.accuracy(pocket)):.1%} right")
print(f"another picture than the right one: {mean(probe.accuracy(pocket, blind=True)):.1%}")

# %% [markdown]
# ## At real size, the answer waits for memory
#
# How much of an answer is the writing? Take the 222M model, one picture, a prompt of 128 tokens with the picture in it,
# and an answer of 20 tokens. First the operations:

# %% tags=["nbval-check-output"]
from nanovlm.training.formulas import head_flops, projector_flops, vision_flops

model = VLMConfig()
work = {
    "the picture (encoder, projector)": vision_flops(model.vision) + projector_flops(model),
    "the prompt, 128 tokens": decoder_flops(language, 128, 128),
    "19 more tokens": sum(decoder_flops(language, 1, 128 + i) for i in range(1, 20)),
    "the head, 20 times": head_flops(language, 20),
}
for name, flops in work.items():
    print(f"{name:34}{flops / 1e9:6.1f} GFLOP {flops / sum(work.values()):5.0%}")

# %% [markdown]
# By operations, the picture and the prompt are nearly everything. But a token takes at least the time in which all the
# decoder's weights are fetched, which is their bytes over the memory's bandwidth, while a prompt can use the arithmetic
# units to the full. The peaks below are those of NVIDIA's data sheets for the T4 and the H100 SXM, in 16 bits without
# sparsity. Nobody reaches them, and we have measured neither.

# %% tags=["nbval-check-output"]
fetched = 2 * (weights + language.vocab_size * language.hidden_dim)  # bytes: blocks and head
first = work["the picture (encoder, projector)"] + work["the prompt, 128 tokens"]
for name, peak, bandwidth in (("T4", 65e12, 320e9), ("H100", 989e12, 3.35e12)):
    prefill, token = 1e3 * first / peak, 1e3 * fetched / bandwidth
    print(
        f"{name:5}at least {prefill:.2f} ms for picture and prompt, {19 * token:.2f} ms for 19 tokens"
    )
    print(
        f"     at most {1e3 / token:,.0f} tokens/s for one row in 16 bits, {2e3 / token:,.0f} in int8"
    )

# %% [markdown]
# By time it is the other way round: the nineteen tokens take longest. This is what the methods have in common. A batch
# fetches the weights once for all its rows, speculative decoding (chapter 09) once for several tokens, int8 halves what
# is fetched, and shared key/value heads keep small what is fetched besides. `torch.compile` and a static cache shorten
# another part, the time between operations.

# %% [markdown]
# ### A server gives the place of an ended row to the next prompt
#
# In a batch, one long answer keeps all other rows waiting, which is the weakness of **static batching**. Servers such
# as vLLM use **continuous batching**: a row that has ended gives its place to the next prompt in the queue at once
# ([Kwon et al. 2023](https://arxiv.org/abs/2309.06180)). Here are both with room for four rows, for sixteen answers of
# the pocket model: a letter for each prompt, a column for each step, a dot where a row waits.

# %%
from nanovlm.course.chapter_16 import schedule
from nanovlm.inference.prompts import prepare_prompts

prompts = ["Describe the picture."] + ["Which shape is at the top left?"] * 15
pictures = [Thimble("shapes", "test")[i]["images"][0] for i in range(16)]
rows = pocket.generate(**prepare_prompts(pocket, prompts, pictures))  # [16, new]
lengths = ((rows != pocket.config.eos_token_id).sum(dim=1) + 1).tolist()
for name in ("static", "continuous"):
    drawn = schedule(lengths, 4, continuous=name == "continuous")
    print(f"{name}: {max(map(len, drawn))} steps", *drawn, sep="\n    ")

# %% [markdown]
# ## Eight bits keep every answer
#
# A weight in float32 takes four bytes. As a whole number from -127 to 127 it takes one, if something remembers how
# large a step is. Take one number for each row of a matrix, its **scale**, which is the row's largest absolute value
# divided by 127: then no weight is moved by more than half a step. You write this in
# [exercise 16.2](../exercises/16_small_and_fast.ipynb).

# %% [markdown] tags=["stamped"]
# **The next cell is folded, because it answers this exercise:** [exercise 16.2, A row in whole
# numbers](../exercises/16_small_and_fast.ipynb). Write yours first, or unfold it.


# %% tags=["answer:compress.int8_rowwise"]
def int8_rowwise(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scales = (weight.abs().amax(dim=1, keepdim=True) / 127).clamp(min=1e-12)
    return (weight / scales).round().to(torch.int8), scales


# %%
int8_rowwise = use("compress.int8_rowwise", int8_rowwise)

# %%
matrix = pocket.decoder.blocks[0].mlp.up_proj.weight.detach()  # [inter_dim, dim]
numbers, scales = int8_rowwise(matrix)
expect_shape(numbers, "384 128")
expect_shape(scales, "384 1")
print("the first row begins with", numbers[0, :8].tolist(), "x", f"{scales[0, 0]:.5f}")
off = (numbers * scales - matrix).norm() / matrix.norm()
print(f"what comes back is off by {off:.2%} of the matrix's norm")

# %% [markdown]
# How many bits are enough? With `b` bits, of which one is the sign, a row has the steps from $-(2^{b-1}-1)$ to
# $2^{b-1}-1$. Move the lever and watch a piece of that first row.

# %%
from nanovlm.compress.int8 import quantise_linear, quantise_rows, size_in_bytes
from nanovlm.viz.compression import steps_figure


def on_steps(bits: int):
    row = matrix[:1, :24]
    whole, scale = quantise_rows(row, bits)
    places = (whole * scale)[0].tolist()
    return steps_figure(row[0].tolist(), places, float(scale), f"24 weights in {bits} bits")


lever(on_steps, bits=[2, 3, 4, 6, 8], start={"bits": 4})

# %% [markdown]
# ### Whoever shares a scale shares an outlier
#
# One large weight makes the step large for everybody who shares its scale. With one scale for the whole matrix that is
# everybody; with one for each row it is a row; with one for each group of 32 it is 32 weights, at the price of more
# scales. Here one weight of the matrix is made a hundred times as large:

# %%
spoilt = matrix.clone()
spoilt[0, 0] = 100 * spoilt.abs().max()
shared = {
    "the whole matrix": spoilt.reshape(1, -1),
    "a row": spoilt,
    "32 weights": spoilt.view(-1, 32),
}
for name, groups in shared.items():
    back, scale = quantise_rows(groups, 4)
    error = (back * scale).view_as(matrix) - spoilt
    print(f"one scale for {name:17} off by {error.norm() / matrix.norm():7.1%}")

# %% [markdown]
# ### All the linear layers at once
#
# The package replaces each linear layer of a model. What stays in floats is the embedding, which is the head as well
# (chapter 04), the patches' convolution, the positions and the norms. This is why eight bits make the pocket model less
# than four times as small.

# %%
small = copy.deepcopy(pocket)
names = quantise_linear(small)
before, after = (f"{size_in_bytes(model) / 1e6:.2f} MB" for model in (pocket, small))
print(f"{len(names)} linear layers: {before} -> {after}")
rest = size_in_bytes(small) - sum(small.get_submodule(n).numbers.numel() for n in names)
print(
    f"{rest / 1e6:.2f} MB of them are not in whole numbers; {mean(probe.accuracy(small)):.1%} right"
)

# %% [markdown]
# The score is the same. So take bits away until something breaks. What goes first?

# %%
quiz("ch16.first_to_go")

# %%
for bits in (4, 3, 2):
    small = copy.deepcopy(pocket)
    quantise_linear(small, bits=bits)
    print(f"{bits} bits: {mean(probe.accuracy(small)):6.1%} right")

# %% [markdown]
# A few questions show the fall, and not which kind falls first. For that there is a stored measurement with more of
# them.

# %%
from nanovlm.viz.compression import kinds_figure

stored = stored_runs("16_small_and_fast")
variants = stored["variants"]
print(f"{stored['questions']} questions, {stored['machine']}")
print(stored["command"])
shown = ("float32", "int8", "int4", "int3", "int3, groups of 32", "int2, groups of 32", "int2")
kinds_figure("Right answers, by kind", {n: variants[n]["kinds"] for n in shown}, "weights")

# %%
for name in shown:
    points, low, high = variants[name]["points"]
    row = f"{name:20}{variants[name]['bytes'] / 1e6:6.2f} MB {variants[name]['right']:7.1%} right"
    print(f"{row}, {points:+6.1f} points to float32 ({low:+.1f} to {high:+.1f})")

# %% [markdown]
# Eight bits, four bits and even three cost nothing that these questions could show. Two bits with one scale for each
# row leave a model that answers next to nothing. In groups of 32 the same two bits still answer two thirds, and the
# table shows what has gone: reading a sign needs several characters to be right, each of them one of many, while one of
# six colours has a wide margin.
#
# Do not take this for a law. A model that is right nearly always has wide margins everywhere, and a test at 100 %
# cannot see a loss before it is large (chapter 10). A model that is right half of the time would show it earlier.

# %% [markdown]
# ### Dynamic: the activations in whole numbers as well
#
# Weight-only int8 saves bytes, and still multiplies floats. To multiply whole numbers, the input has to be quantised as
# well, row by row, when it arrives; this is called **dynamic** quantisation. The sums of products of whole numbers are
# exact, so both scales can be applied after the sum. That works because a scale belongs to a whole row of each operand.

# %%
from nanovlm.compress.int8 import integer_product

x = torch.randn(5, 128, generator=torch.Generator().manual_seed(0))  # [tokens, dim]
x_numbers, x_scales = quantise_rows(x)
sums = integer_product(x_numbers, numbers)  # [tokens, inter_dim], exact
y = sums * x_scales * scales.T
off = (y - x @ matrix.T).norm() / (x @ matrix.T).norm()
print(f"off by {off:.2%}; the largest sum is {sums.abs().max():,.0f}")

# %% [markdown]
# The word *exact* needs care. An older x86 processor adds pairs of products in 16 bits, which 2 · 255 · 127 overflows
# without an error ([the report](https://github.com/pytorch/pytorch/issues/136746)). `integer_product` therefore tries
# its kernel once on the largest numbers, and our ONNX files keep their weights unsigned.

# %% [markdown]
# ### Is it faster?

# %%
quiz("ch16.faster")

# %%
for name, speed in stored["speeds"].items():
    print(
        f"{name:26} an answer {speed['answer']:.2f} times, a batch {speed['batch']:.2f} times as fast"
    )

# %% [markdown]
# Every variant of our own is slower than floats. Restoring a matrix costs more than fetching it, as long as the matrix
# fits into the processor's cache, and turning activations into whole numbers costs as much again. Pruned channels are
# the one exception: smaller matrices need no kernel of their own. So int8 saves memory at once, and time only through a
# kernel that reads the small numbers on its way into the product. Libraries such as torchao and onnxruntime bring such
# kernels.

# %%
try:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_
except ImportError:
    print('torchao is not installed here: pip install "nanovlm[compress]" to compare with it.')
else:
    theirs = copy.deepcopy(pocket)
    quantize_(theirs, Int8WeightOnlyConfig())
    print(f"torchao, int8 weight-only: {mean(probe.accuracy(theirs)):.1%} right")

# %% [markdown]
# ## Rounding has no gradient, and training can go round it
#
# Where bits are too few, one can train on, with weights that are already rounded in the forward pass. This is
# **quantisation-aware training** ([Jacob et al. 2017](https://arxiv.org/abs/1712.05877)). But rounding is a staircase:
# it is flat almost everywhere, and its derivative is zero there. What arrives at the weights?

# %%
weight = torch.tensor([[0.9, -0.31, 0.1, 0.42]], requires_grad=True)
scales = weight.abs().amax(dim=-1, keepdim=True) / 3  # three bits
((weight / scales).round() * scales).sum().backward()
print("the true gradient:", [round(g, 3) for g in weight.grad[0].tolist()])

# %% [markdown]
# The only weight that gets a gradient is the largest one, and it gets it through the scale. All others stay for ever as
# they are. The way out is to lie to the backward pass: the forward pass gets the rounded weight, and the gradient is
# handed to the weight as though nothing had been rounded. It is called a **straight-through estimator** ([Bengio et al.
# 2013](https://arxiv.org/abs/1308.3432)). You mend it into a broken version in
# [exercise 16.3](../exercises/16_small_and_fast.ipynb).

# %% [markdown] tags=["stamped"]
# **The next cell is folded, because it answers this exercise:** [exercise 16.3, Mend it: training that cannot
# feel its weights](../exercises/16_small_and_fast.ipynb). Write yours first, or unfold it.


# %% tags=["answer:compress.fake_quant"]
def fake_quant(weight: torch.Tensor, bits: int) -> torch.Tensor:
    scales = weight.abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 1)
    rounded = (weight / scales).round() * scales
    return weight + (rounded - weight).detach()


# %%
fake_quant = use("compress.fake_quant", fake_quant)
weight.grad = None
fake_quant(weight, 3).sum().backward()
print("straight through: ", [round(g, 3) for g in weight.grad[0].tolist()])

# %% [markdown]
# Two bits in groups of 32 broke the model. Training on for a few steps with rounded weights may bring answers back. But
# more training might do so without any rounding, so the fair comparison is the *same* training in floats, with the
# rounding afterwards.

# %%
quiz("ch16.qat")

# %%
trained = stored["trained"]
print(f"{stored['steps']} steps of {stored['batch']} pictures")
before = variants["int2, groups of 32"]["right"]
print(f"rounded at once: {before:.1%}")
for name in ("int2, trained, then rounded", "int2, trained rounded"):
    for seed, run in trained[name].items():
        back = (run["right"] - before) / (variants["float32"]["right"] - before)
        print(f"{name}, seed {seed}: {run['right']:.1%} right, {back:.0%} of what was lost")

# %% [markdown]
# Training that sees the rounding brings back most of what was lost, although three values and a scale for 32 weights
# are all that a matrix has. The same steps in floats bring back nothing with either seed, and with one of them cost
# some more, because they improve weights that are not the ones in use. The package's `prepare_qat` puts your function
# into every linear layer, and `finish` keeps the whole numbers.
#
# You will read that this recovers what int8 or int4 loses. Here these lose nothing, so there was nothing to recover,
# and two bits are where the method shows.

# %% [markdown]
# ## A student can learn from probabilities instead of answers
#
# Another way to a small model is to train one. A **student** of half the width has about a quarter of the weights. What
# can the pocket model, its **teacher**, tell it that the labels do not? Look at what the teacher gives to the wrong
# answers, when a temperature makes it visible.

# %%
from nanovlm.course.chapter_16 import next_logits
from nanovlm.data.thimble.charts import COLOURS
from nanovlm.viz.compression import probabilities_figure

chart = Thimble("charts", "test", 3)[2]
question = next(t["user"] for t in chart["texts"] if "allest" in t["user"])
logits = next_logits(pocket, question, chart["images"][0])
expect_shape(logits, "444")


def softened(temperature: float):
    p, order = (logits / temperature).softmax(dim=-1).sort(descending=True)
    names = [pocket.tokenizer.decode([int(token)]).strip() or "(other)" for token in order[:8]]
    return probabilities_figure(names, p[:8].tolist(), question, f"temperature {temperature:g}")


lever(softened, temperature=[1.0, 2.0, 4.0, 8.0], start={"temperature": 4.0})

# %% [markdown]
# At temperature 1 there is nothing to see but the answer. One would hope that the softened distribution says which
# wrong answers are nearly right, the other colours before words that are none. How much do the colours have?

# %%
colours = [pocket.tokenizer.encode(colour)[0] for colour in COLOURS]
for temperature in (1.0, 4.0, 8.0):
    p = (logits / temperature).softmax(dim=-1)
    best = p.max()
    others = p[colours].sum() - best
    rest = 1 - best - others
    print(
        f"T = {temperature:g}: the answer {best:.1%}, other colours {others:.2%}, the rest {rest:.1%}"
    )

# %% [markdown]
# What the temperature brings up is for the greater part the noise of some hundred tokens that answer nothing. The
# pocket model was trained until it was certain, and a teacher that is certain says little more than the label does.
# Keep this in mind for the result. A teacher that is often in doubt, such as a large language model, has more to tell.
#
# [Hinton et al. 2015](https://arxiv.org/abs/1503.02531) train the student on the softened distribution, beside the
# labels. The loss is the Kullback-Leibler divergence of the student's distribution from the teacher's.

# %% [markdown] tags=["stamped"]
# **The next cell is folded, because it answers this exercise:** [exercise 16.1, What the teacher would have
# said](../exercises/16_small_and_fast.ipynb). Write yours first, or unfold it.


# %% tags=["answer:compress.kd_loss"]
def kd_loss(student_logits, teacher_logits, labels, temperature: float) -> torch.Tensor:
    keep = labels != -100
    log_q = (student_logits[keep] / temperature).log_softmax(dim=-1)  # [positions, vocab_size]
    log_p = (teacher_logits[keep].detach() / temperature).log_softmax(dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean() * temperature**2


# %%
kd_loss = use("compress.kd_loss", kd_loss)

# %% [markdown]
# Why the square? A temperature divides the logits, so the gradient to them is divided once; and it brings the two
# distributions together, so that their difference shrinks as well. Without the factor a warm teacher would not be heard
# beside the labels:

# %%
labels = torch.zeros(1, 1, dtype=torch.long)
for temperature in (1.0, 2.0, 4.0, 8.0):
    student = torch.zeros(1, 1, 444, requires_grad=True)
    kd_loss(student, logits[None, None] / 10, labels, temperature).backward()
    norm = student.grad.norm()
    print(f"T = {temperature:g}: gradient {norm:.4f} with T^2, {norm / temperature**2:.4f} without")

# %% [markdown]
# (The other direction, $\mathrm{KL}(q \,\|\, p)$, lets a student settle on one of several answers instead of covering
# all of them ([Gu et al. 2023](https://arxiv.org/abs/2306.08543)). The package has it as `reverse=True`, and the runs below
# contain it. And a teacher with dropout must be in `eval()`, or it says something else each time. Ours has none.)
#
# ### Three more things to imitate
#
# A teacher has more to show than its answers. The popular list of losses contains
#
# - **features**: the student's vectors, projected to the teacher's width, should be the teacher's ([FitNets
#   2014](https://arxiv.org/abs/1412.6550)). Here these are the image tokens;
# - **attention**: the weights of the encoder should be the teacher's ([TinyBERT
#   2019](https://arxiv.org/abs/1909.10351)). Two heads cannot equal four, so we compare the means over heads;
# - **distributions**: the mean and the covariance of all image tokens should be the teacher's ([Sun and Saenko
#   2016](https://arxiv.org/abs/1607.01719)), whichever vector is whose.

# %%
from nanovlm.bench.distillation_runs import lessons, read
from nanovlm.compress.distill import FeatureLoss, student_config
from nanovlm.config import TrainConfig
from nanovlm.data.loading import get_dataloaders
from nanovlm.weights.from_preset import from_scratch

torch.manual_seed(0)
student = from_scratch(student_config(pocket.config))
counts = [sum(p.numel() for p in model.parameters()) for model in (pocket, student)]
print("teacher and student: {:,} and {:,} parameters".format(*counts))

# %%
data = TrainConfig(dataset_names=("charts",), dataset_size=64, val_size=4, batch_size=4)
batch = next(
    iter(get_dataloaders(data, pocket.config, pocket.tokenizer, pocket.image_processor)[0])
)
with torch.no_grad():
    theirs = read(pocket, batch)
ours, project = read(student, batch), FeatureLoss(64, 128)
expect_shape(ours["tokens"], "4 16 64")
expect_shape(ours["maps"], "4 2 64 64")
for name in ("logits", "features", "attention", "distribution"):
    print(f"{name:14}{lessons(name, batch, ours, theirs, project).item():10.5f}")

# %% [markdown]
# The four numbers are of very different sizes, so a sum of them is a sum of the largest. The stored runs divide the
# last three by their value at the first step, so that each starts at 1. All runs share their pictures and steps, and
# for each seed also the first weights and the order of the data; only the loss differs.

# %%
quiz("ch16.student")

# %%
from nanovlm.course.chapter_16 import gains
from nanovlm.viz.training import curves_figure, intervals_figure

runs = stored_runs("16_distillation")
print(runs["command"])
print(runs["machine"])
print(f"{runs['steps']} steps of {runs['batch']} from {runs['pictures']} pictures")
print(f"teacher {runs['teacher']['right']:.1%} of {runs['questions']} questions")
for name, seeds in runs["runs"].items():
    shares = " ".join(f"{mean(run['right']):6.1%}" for run in seeds.values())
    print(f"{name:18}{shares}   blind {mean({s: r['blind'] for s, r in seeds.items()}):.1%}")

# %%
about = "share right, 95 % interval"
intervals_figure("More than the student alone", gains(runs), about)

# %% [markdown]
# Each bar is one student beside the student alone with the same seed; grey bars contain zero. Imitating the teacher's
# image tokens helps with all three seeds, by far more than the interval. Imitating its answers helps with none, and the
# likely reason is the figure above: this teacher is so sure that its probabilities say hardly more than the labels. All
# losses together are no better than the features by themselves.
#
# The other direction of the divergence makes the student *worse*, with every seed. It weighs each token by what the
# student gives to it, and a new student gives something to all 444 tokens, of which this teacher all but rules out 443. So
# at first that loss is mostly about tokens that no answer needs. Whether it helps a student that knows the labels
# already has not been measured here.
#
# Look at *attention*: with the first seed it helps as much as the features, with the second it does nothing, and the third
# lies in between. *Distribution* helps with the first seed alone. With one seed this chapter would have told you that both
# work, or that they do not. An interval over questions says nothing about the next seed, so read the bars of a loss together.
#
# So the long list is not the lesson. What a student of this size and age lacks is *seeing*, and a loss on what it sees
# can give it that. Remember what was compared: a few hundred steps on few pictures. With ten times the steps the
# student alone may catch up, since it has the same labels; how far has not been measured here.

# %% tags=["claim"]
shares = {n: [mean(run["right"]) for run in seeds.values()] for n, seeds in runs["runs"].items()}
assert all(len(seeds) == 3 for seeds in shares.values())
assert min(shares["features"]) > max(shares["alone"]) + 0.1
assert mean(dict(enumerate(shares["together"]))) < mean(dict(enumerate(shares["features"])))
assert max(shares["logits, reverse"]) < min(shares["alone"]) - 0.05
assert max(shares["attention"]) - min(shares["attention"]) > 0.1

# %%
first = {name: seeds["0"]["loss"] for name, seeds in runs["runs"].items() if "0" in seeds}
curves_figure(
    "The loss on the answers, seed 0",
    {name: [(16 * (i + 1), y) for i, y in enumerate(loss)] for name, loss in first.items()},
    log=True,
)

# %% [markdown]
# What does it cost? The teacher reads every picture once, and its outputs are stored, since it does not change.

# %%
for name, seeds in runs["runs"].items():
    seconds = [run["seconds"] for run in seeds.values()]
    print(f"{name:18}{sum(seconds) / len(seconds):5.0f} s a run")
print(f"the teacher, once for all runs: {runs['teacher']['seconds']:.0f} s")

# %% [markdown]
# ## A mask saves nothing, a smaller matrix does
#
# The third way is to leave weights out. The simplest rule sets the smallest ones to zero ([Han et al.
# 2015](https://arxiv.org/abs/1506.02626)). A zero is stored and multiplied like any other number, so that model and
# time stay as they were, unless a special format and a special kernel skip zeros.
#
# The other way cuts out whole **channels** of each MLP: a row of `gate_proj` and `up_proj` and the column of
# `down_proj` that belongs to it. All three matrices become smaller, for every machine. You write it in [exercise
# 16.4](../exercises/16_small_and_fast.ipynb).

# %% [markdown] tags=["stamped"]
# **The next cell is folded, because it answers this exercise:** [exercise 16.4, Channels that are really
# gone](../exercises/16_small_and_fast.ipynb). Write yours first, or unfold it.


# %% tags=["answer:compress.prune_channels"]
def prune_channels(gate, up, down, keep: int):
    scores = gate.abs().sum(dim=1) + up.abs().sum(dim=1) + down.abs().sum(dim=0)  # [inter_dim]
    kept = scores.topk(keep).indices.sort().values
    return gate[kept], up[kept], down[:, kept]


# %%
prune_channels = use("compress.prune_channels", prune_channels)
mlp = pocket.decoder.blocks[0].mlp
parts = prune_channels(mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight, 96)
print("of 384 channels, 96:", [list(part.shape) for part in parts])

# %%
quiz("ch16.prune")

# %%
from nanovlm.compress import prune

masked, narrow = copy.deepcopy(pocket), prune.prune_channels(pocket, 0.75)
prune.prune_magnitude(masked, 0.75)
for name, model in (
    ("as it was", pocket),
    ("three quarters zero", masked),
    ("a quarter of channels", narrow),
):
    count = sum(p.numel() for p in model.parameters())
    right = mean(probe.accuracy(model))
    print(
        f"{name:24}{count:10,} parameters {size_in_bytes(model) / 1e6:5.2f} MB {right:6.1%} right"
    )

# %% [markdown]
# `prune.prune_channels` cuts the same share of every block of the encoder and of the decoder, because the config has
# one `inter_dim` for all blocks of a part. So the pruned model saves and loads like any other. Here are the stored
# scores, also for channels chosen by their gradient: $|w \cdot \partial L / \partial w|$ is, to first order, what the
# loss would change by if the weight became zero ([Molchanov et al. 2019](https://arxiv.org/abs/1906.10771)).

# %%
from nanovlm.viz.generation import lines_figure

shares = [0.1, 0.25, 1.0]
cut = [variants[n]["right"] for n in ("10 % of the channels", "25 % of the channels", "float32")]
by_gradient = [variants[f"{s} of the channels, by gradient"]["right"] for s in ("10 %", "25 %")]
on = [
    mean({seed: run["right"] for seed, run in trained[f"{s} of the channels, trained on"].items()})
    for s in ("10 %", "25 %")
]
curves = {
    "by size": cut,
    "by gradient": [*by_gradient, cut[-1]],
    "by size, trained on": [*on, cut[-1]],
}
lines_figure(shares, curves, "Fewer channels", "share of the channels kept", "right", percent=True)

# %% [markdown]
# Half of the channels go for nothing. With a quarter the model still answers most questions, without another step of
# training, and with a tenth it guesses. Then sixty steps of training on bring nearly all of it back, which is less than
# a minute on one thread: pruning without training on says little about what a smaller model can do.
#
# The choice by gradient was *worse* here. It looked at four batches of a model that is nearly always right, and whose
# gradients are therefore nearly zero, so that it ranked channels by noise.
#
# ### Heads can be masked here, and not cut out
#
# **Heads** could go in the same way: a head's rows of the query, key and value projections, and its columns of the output
# projection. But a config gives the number of heads and `hidden_dim`, and takes the size of a head as their quotient. Three
# of four heads would be read as three larger ones. This is so here, and in [transformers'
# SigLIP](https://github.com/huggingface/transformers/blob/v4.56.0/src/transformers/models/siglip/modeling_siglip.py), which
# refuses other sizes, so that a model with fewer heads could be loaded by nobody. What it would give, a mask can tell. The
# heads that stay have the largest columns, or they are those without which the loss on four batches rises most, each tried
# alone ([Michel et al. 2019](https://arxiv.org/abs/1905.10650)).

# %%
total = sum(p.numel() for p in pocket.parameters())
for part in ("attn", "mlp"):
    own = sum(p.numel() for name, p in pocket.named_parameters() if f".{part}." in name)
    print(f"{part:5}{own / total:4.0%} of the weights")
for name in ("half of the heads", "25 % of the heads"):
    by_size, by_loss = (variants[f"{name}{how}"]["right"] for how in ("", ", by loss"))
    print(f"{name}: by size {by_size:.1%} right, by loss {by_loss:.1%}")
after = [f"{run['right']:.1%}" for run in trained["25 % of the heads, trained on"].values()]
print("25 % of the heads, by loss, trained on:", ", ".join(after))

# %% [markdown]
# Compare this with the channels, half of which went for nothing. Half of the heads by size leaves next to no answer, and
# even the better choice loses nearly half of them. Sixty steps of training on bring a quarter of the heads back to half of
# the answers, where a quarter of the channels came back nearly whole (one seed).
#
# An MLP has hundreds of channels that can stand in for one another, and a block of this model has four heads that do
# different things. How large a head's columns are says little about its worth, and a measured loss says more. [Chapter
# 14](14_looking_inside.ipynb) shows what single heads do.

# %% tags=["claim"]
assert (
    variants["half of the heads"]["right"]
    < 0.25
    < 0.5
    < variants["half of the heads, by loss"]["right"]
    < 0.65
)
assert 0.4 < trained["25 % of the heads, trained on"]["0"]["right"] < 0.6

# %% [markdown]
# ## An exported decoder has its cache outside
#
# ONNX is a file format for computations: a graph of operators with its weights, which runs in a browser, on a phone or
# in a server without PyTorch. A graph is a pure function. It cannot remember the last token, so the KV cache has to be
# an input, and the longer cache an output. That takes a cache that joins instead of writing into reserved memory:

# %%
from nanovlm.inference.onnx_graphs import GrownCache

picture = Image.open(asset_path("images/shapes.png")).convert("RGB")
prompt = prepare_prompts(pocket, ["Describe the picture."], [picture])


@torch.no_grad()
def read_more(x: torch.Tensor, past: list[torch.Tensor]) -> tuple[int, list[torch.Tensor]]:
    """x [1, T, dim] and the past -> the likeliest next token, and the past with x"""
    cache = GrownCache(past, len(pocket.decoder.blocks))
    logits = pocket.decoder.head(pocket.decoder(x, cache=cache)[:, -1])
    return int(logits.argmax()), cache.tensors()


# %%
with torch.no_grad():
    x, _, _ = pocket.embed(prompt["input_ids"], prompt["images"], None)
token, past = read_more(x, [])  # prefill
written = []
while token != pocket.config.eos_token_id:
    written.append(token)
    token, past = read_more(pocket.decoder.token_embedding(torch.tensor([[token]])), past)
print(f"{len(past)} tensors in and out, the last time {list(past[0].shape)} each")
assert pocket.tokenizer.decode(written) == pocket.generate(
    image=picture, prompt="Describe the picture."
)
print(pocket.tokenizer.decode(written))

# %% [markdown]
# An exporter runs the function once on example inputs and writes down what happens. Whatever does not depend on an
# input becomes a constant, and here that can be the cache of the example, or its length, and with it the position of
# every token. Nothing raises an error then. [Exercise 16.5](../exercises/16_small_and_fast.ipynb) is the test that
# finds out.

# %%
quiz("ch16.constant")

# %% [markdown]
# `export_onnx` writes three graphs (vision, prefill and decode) and compares their logits with the model's before it
# leaves anything behind. To save time, the test version of this notebook exports the first block of the decoder alone.

# %%
import tempfile

from nanovlm.bench.onnx_runtime import same_answers

blocks = budget().pick(ci=1, laptop=4)
try:
    with tempfile.TemporaryDirectory() as folder:
        asked = budget().pick(ci=4, laptop=60)
        same, total, megabytes = same_answers(pocket, folder, blocks, asked)
    print(f"{blocks} block(s): {same} of {total} answers are the same text; {megabytes:.1f} MB")
except ImportError as error:
    print(f'{error.name} is not installed: pip install "nanovlm[onnx]" to export.')

# %%
onnx = stored_runs("16_onnx")
print(f"{onnx['command']}\n{onnx['questions']} questions, {onnx['machine']}")
for name, row in onnx["contenders"].items():
    size = "" if row["megabytes"] is None else f"{row['megabytes']:.1f} MB"
    score = f"same text {row['same']:6.1%}, right {row['right']:6.1%}"
    speed = f"{row['ms_a_token']:5.2f} ms a token, {row['times_as_fast']:.2f} times torch's speed"
    print(f"{name:10}{score}, {speed} {size}")

# %% [markdown]
# All answers are the same text, in float32 and in int8, so that this test cannot say how much int8 loses; a harder one
# would. The time falls to less than half before a single bit is saved, because onnxruntime joins operators and PyTorch
# starts each of them by itself, which for a model of this size is most of the work. For the same reason int8 adds
# nothing here. The decoder's weights stand in two graphs, prefill and decode, so that the float32 files are larger than
# the model.
#
# The commands for your own model:
#
# ```bash
# nanovlm export --model runs/mine/best --to onnx --out mine-onnx    # float32
# nanovlm export --model runs/mine/best --to onnx --int8 --out mine-int8
# nanovlm export --model runs/mine/best --to gguf --out mine-gguf    # llama.cpp, for SmolLM2
# ```

# %% [markdown]
# ## On the edge, latency counts, and old frames do not
#
# A camera gives 25 frames a second, and a small computer may answer one question a second. If frames wait in a queue,
# the answer is soon about a scene of a minute ago. So `nanovlm watch` keeps the newest frame only, and counts those
# that it dropped. In the next cell a source gives a picture every few milliseconds, while the model takes longer.

# %%
quiz("ch16.queue")

# %%
from nanovlm.course.chapter_16 import Slides
from nanovlm.inference.watching import latency_percentiles, watch

frames = [sample["images"][0] for sample in samples]
asked = budget().pick(ci=6, laptop=30)
source = Slides(frames, every=0.005)
seen = watch(
    source,
    lambda image: pocket.generate(image=image, prompt="Describe the picture."),
    lambda frame, text, seconds: None,
    count=asked,
)
print(f"{seen.seen} frames were offered, {len(seen.latencies)} answered, {seen.dropped} dropped")

# %% [markdown]
# A mean hides what a viewer notices. The 95th **percentile** of the latency is the time that 95 of 100 answers do not
# exceed, and with few answers it is simply one of the slowest. You measure it in
# [exercise 16.6](../exercises/16_small_and_fast.ipynb).

# %%
middle, slow = latency_percentiles(seen.latencies, (50, 95))
print(f"median {1000 * middle:.0f} ms, 95th percentile {1000 * slow:.0f} ms")

# %% [markdown]
# ```bash
# nanovlm watch camera --every 1s --prompt "What is in front of the camera?"
# nanovlm watch film.mp4 --every 500ms --count 20
# nanovlm watch pictures/ --once
# ```
#
# Ctrl-C ends it. A camera and a video need OpenCV (`pip install "nanovlm[watch]"`), a folder needs nothing.

# %% [markdown]
# ### What a phone needs
#
# We have tried neither a phone nor a board, so this is a list and no measurement. A phone needs
#
# - a runtime: onnxruntime has an [Android
#   package](https://central.sonatype.com/artifact/com.microsoft.onnxruntime/onnxruntime-android) that reads our graphs,
#   llama.cpp reads GGUF, and PyTorch's own way is
#   [ExecuTorch](https://docs.pytorch.org/executorch/0.6/getting-started.html), which begins with an export as well;
# - all that stands around the graphs, written once more in the app's language: resizing and scaling of the picture, the
#   tokenizer, the loop with the cache, and the dropping of old frames;
# - memory for the weights, and a connection to it that is fast enough. Each token reads the decoder once, so that
#   bytes a second, divided by the decoder's bytes, is a bound that no runtime can beat:

# %% tags=["nbval-check-output"]
with torch.device("meta"):
    decoder = LanguageModel(VLMConfig().language)  # of the 222M model, its head included
numbers = sum(p.numel() for p in decoder.parameters())
for bits in (16, 8, 4):
    size = numbers * bits / 8
    print(
        f"{bits:2} bits: {size / 1e6:4.0f} MB; at 20 GB/s at most {20e9 / size:4.0f} tokens a second"
    )

# %% [markdown]
# Put in the number of your own device for the 20 GB/s. And measure after ten minutes instead of in the first one, because a
# phone that has become warm slows down.

# %% [markdown]
# ## Everything in one table

# %%
from nanovlm.course.chapter_16 import table
from nanovlm.viz.compression import variants_figure

print(f"{stored['questions']} questions, {stored['machine']}")
print("speed: one answer, float32 is 1")
variants_figure("The pocket model, made smaller", table(stored))

# %%
print("all tensors that live at one time while a model answers, its weights included")
for name, peak in stored["peaks"].items():
    print(f"{name:26}{peak / 1e6:6.2f} MB")

# %% [markdown]
# By size and score together, four bits without training and two bits with it lie in front. They can be combined with
# fewer channels, which the table does not show; the challenge asks for it. The megabytes count numbers of fewer than
# eight bits as packed, which our layers do not do in memory: they keep each in a byte, and only a file or a kernel
# would pack them. So the peak of four bits is that of eight. A mask saves no byte here either.

# %%
print("with a second core, the shortest of fifteen rounds beside the shortest on one")
for name, speed in stored["second_core"].items():
    print(f"{name:26} an answer {speed['answer']:.2f} times, a batch {speed['batch']:.2f} times")

# %% [markdown]
# A second core does nothing for one answer, whose products are too small to share. A batch gains from it, by an amount that
# changed between two measurements by a third. A GPU was not measured.

# %% [markdown]
# Two methods are left, which save time and no byte. **Speculative decoding** was measured in [chapter
# 09](09_generation.ipynb), and gained nothing on a model for which no draft is cheap. A **static cache** has
# one shape for all steps: every step reads all places, a mask hides those that are still empty, and so the whole step can
# be compiled once. The tokens are the same.

# %%
for name, run in stored["caches"].items():
    first = f"the first answer took {run['first_call_seconds']:.0f} s"
    speed = f"{run['ms_a_token']:6.2f} ms a token, {run['times_as_fast']:.2f} times as fast"
    print(f"{name:17}{speed}; {first}")

# %% [markdown]
# By itself a cache of one shape changes nothing, because a step starts as many operators as before. Compiled, the step takes
# less than half of the time: what is saved is the start of each operator, the same that onnxruntime saved above. The first
# answer pays for it with minutes of compiling, on a busy machine, so this is for a process that answers many questions.

# %% tags=["claim"]
caches = {name: run["times_as_fast"] for name, run in stored["caches"].items()}
assert 0.9 < caches["static"] < 1.1 and caches["static, compiled"] > 1.5

# %% [markdown]
# ## What SmolVLM really does
#
# A popular article attributes distillation and parameter sharing to SmolVLM. Its
# [paper](https://arxiv.org/abs/2504.05299) describes neither. The model is small because its parts are small from the
# start (an encoder of 93 M parameters and SmolLM2-135M in the smallest version), and because pixel shuffle by 4 leaves
# 64 image tokens of 1,024 patches (chapter 03). nanoVLM's [training
# script](https://github.com/huggingface/nanoVLM/blob/v0.1/train.py) distils nothing either. The methods of this
# chapter come on top: they are for a model that you have and cannot afford to run.

# %% [markdown]
# ## Where this lives in the package
#
# `nanovlm/compress/` has `distill.py`, `int8.py`, `qat.py`, `prune.py` and `heads.py`, of about a hundred lines each.
# The graphs are in `nanovlm/inference/onnx_graphs.py`, the loop with the camera is in `watching.py` beside it, and three
# modules of `nanovlm/bench/` make the stored numbers again: `small_and_fast`, `distillation_runs` and `onnx_runtime`.

# %% [markdown]
# What you take along:
#
# - Writing a token moves bytes, reading a prompt does arithmetic. Know which of them a method makes smaller.
# - A scale belongs to those who share it. Eight bits with a scale for each row cost nothing here; below that, measure
#   by kind of question.
# - Fewer bytes are not less time. Only a kernel that uses the whole numbers makes them fast.
# - Rounding has no gradient; hand it straight through, and compare with the same training without rounding.
# - A student is compared with the same student trained alone, over seeds.
# - A mask saves nothing. Cut the channels out of all three matrices.
# - An exported cache goes in and comes out, and a test with two conversations shows that it does.
#
# **A challenge**, without a solution: the smallest model that still answers 95 % of the questions. It stands at the end
# of the exercises.

# %% [markdown] tags=["stamped"]
# ## Your turn
#
# [Open the exercises](../exercises/16_small_and_fast.ipynb) ([in Colab][exercises]): 6 of them, about 1.3 hours.
#
# [exercises]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/exercises/16_small_and_fast.ipynb
#
# | | exercise | difficulty | minutes |
# |---|---|---|---|
# | 16.1 | What the teacher would have said (`compress.kd_loss`) | ●●○ | 12 |
# | 16.2 | A row in whole numbers (`compress.int8_rowwise`) | ●○○ | 10 |
# | 16.3 | Mend it: training that cannot feel its weights (`compress.fake_quant`) | ●●○ | 12 |
# | 16.4 | Channels that are really gone (`compress.prune_channels`) | ●●○ | 15 |
# | 16.5 | Write the test: does the graph take its memory from outside? (`compress.graph_test`) | ●●● | 18 |
# | 16.6 | Measure it: what do the slow answers take? (`compress.latency_percentiles`) | ●●○ | 12 |
#
# Next: [17 Other designs](17_other_designs.ipynb)
