# %% [markdown]
# # 12 Shape tracing
#
# Record every step of a model's run: find the statement that a shape error comes from, read shapes and FLOPs of any
# model, claim them in tests, and see which faults no shape shows. About forty minutes; the code runs in one.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [← 11 Full training](11_full_training.ipynb) ·
# [13 High resolution and many pictures →](13_high_resolution.ipynb) ·
# [exercises](../exercises/12_shape_tracing.ipynb) ·
# [notation and terms](notation.md)
#
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/chapters/12_shape_tracing.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/chapters/12_shape_tracing.ipynb

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
from torch import Tensor, nn

from nanovlm import VisionLanguageModel
from nanovlm.assets import asset_path
from nanovlm.config import VLMConfig
from nanovlm.course import expect_shape, lever, quiz, use
from nanovlm.inference.prompts import prepare_prompt
from nanovlm.models.modality_projector import ModalityProjector
from nanovlm.trace import ShapeMismatch, patch_map, trace, tracing

# %% [markdown]
# **After this chapter you can**
#
# 1. find the statement and the tensor of a shape error from one traced run, and name the operand that is wrong,
# 2. read shapes, parameters and FLOPs of any PyTorch model, and claim them as formulas that hold for every batch,
# 3. tell which faults no shape shows, and which test finds them.
#
# You need the parts of chapters 01 to 06. Of the time, half is reading and half is code.

# %% [markdown]
# ## One error, and the statement that made it
#
# Here is a small module. It is meant to put a picture's tokens in front of the words, as the 222M model does. Find the
# bug by reading, if you can.


# %%
class Fusion(nn.Module):
    """patches [B, N, image_dim], ids [B, T] -> [B, N + T, dim]"""

    def __init__(self, vocab_size: int = 20, dim: int = 8, image_dim: int = 12) -> None:
        super().__init__()
        self.image = nn.Linear(image_dim, dim)
        self.words = nn.Embedding(vocab_size, dim)

    def forward(self, patches: Tensor, ids: Tensor) -> Tensor:
        return torch.cat([self.image(patches), self.words(ids)], dim=-1)


# %% tags=["raises-exception"]
torch.manual_seed(0)
patches, ids = torch.randn(1, 4, 12), torch.tensor([[3, 1, 4, 1, 5]])
Fusion()(patches, ids)

# %% [markdown]
# The message says *Expected size 4 but got size 5*, and not of which tensor, nor in which line. In a model of sixty
# layers you would now write print statements, run the model again, move them, and delete them at the end. The other way
# is to run it once under a tracer, which records every step.

# %% tags=["raises-exception"]
trace(Fusion(), patches, ids)

# %% [markdown]
# Read the last part of the message, from its first line down. It contains
#
# 1. **what is wrong**, with your own expressions and both shapes;
# 2. **where**: the line of your code (`cell:10` is line 10 of a cell; in a file it would be the file's name);
# 3. **each operand**, with its shape and where it came from;
# 4. **what to try**;
# 5. **the way there**, the last steps before the failing one;
# 6. and what torch itself said.

# %% [markdown]
# The bug is `dim=-1`, because the two sequences should follow each other along dim 1. The error is still a
# `RuntimeError`, so code that catches it still does. Python's usual list of calls comes above it; `%xmode Minimal`
# makes Jupyter leave that out.

# %% [markdown]
# ## A trace has one row for each step
#
# The ordinary use is to look at a model that works. Here are the pocket model and a question, as tensors. (Chapter 05
# explains how the question becomes ids.)

# %% tags=["nbval-check-output"]
model = VisionLanguageModel.from_pretrained(asset_path("pocket")).eval()
image = Image.open(asset_path("images/shapes.png")).convert("RGB")

ids, pixels = prepare_prompt(model, "Where is the red star?", image)
ids = torch.tensor([ids])
print(expect_shape(ids, "1 length"), "|", expect_shape(pixels, "1 3 64 64"))

# %%
t = trace(model, ids, pixels)
t

# %% [markdown]
# One row is one step. Open `vision_encoder`, then `blocks.0`, then `attn`. A row shows the **name** (a module with its
# class, or a function), the **shape** that came out, its **parameters** and its **FLOPs**, of which only products have
# any, and the **expression** in the source, whose file and line appear when you hold the mouse over it. The note *×2,
# first shown* stands for two blocks with the same steps, so that a model of thirty blocks is as short as one of two.

# %% [markdown]
# You will want to see the whole tree once, and this summary often:

# %% tags=["nbval-check-output"]
print(t.stages())

# %% [markdown]
# From top to bottom: a picture of 64 x 64 pixels in three colours becomes 64 vectors of 128 numbers, one for each
# patch. Pixel shuffle joins every group of 2 x 2 of them into one token, four times as wide (chapter 03), and a linear
# layer brings these 16 tokens to the decoder's width.

# %% [markdown]
# The prompt has 16 placeholders among its 24 tokens, and the image
# tokens take their places (`combined`). At the end each position has logits for 444 tokens. Tutorials print such a list
# by hand, from inside the model; here nobody has changed the model.

# %% [markdown]
# Look at `pixel_shuffle`, which is a *function* in the package. Most tools of this kind put a hook on every module and
# record what comes out. Predict:

# %%
quiz("ch12.hooks")

# %% [markdown]
# ### Functions are seen through a torch function mode
#
# PyTorch offers a *mode* through which every torch function passes on its way. With it, a tracer takes ten lines:

# %% tags=["nbval-check-output"]
from torch.overrides import TorchFunctionMode


class Listening(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            print(f"{func.__name__:10}{list(out.shape)}")
        return out


vectors = torch.randn(1, 64, 128)
with Listening():
    model.projector(vectors)

# %% [markdown]
# Pixel shuffle is a reshape, a transpose and a reshape, and then comes the linear layer. The real tracer adds what
# makes this readable: hooks for the tree of modules, rows for the functions that *you* wrote, the source, folding, and
# what happens when a step fails. It keeps shapes and never a tensor, so that it needs next to no memory.

# %% [markdown]
# ### A trace is an object that a test can ask
#
# What you can read off a trace, a test can read too. It can also make a claim, which is silent where it holds. A name
# such as `T` has to mean one size everywhere.

# %% tags=["nbval-check-output"]
print("by path:    ", t["projector.proj"].out, "from", t["projector.proj"].inputs[0])
print(
    "by function:",
    len(t.find("scaled_dot_product_attention")),
    "attentions, one in each block of both parts",
)
print("by pattern: ", len(t.find("decoder.blocks.*.mlp")), "MLPs in the decoder")

# %%
t.expect(
    {
        "vision_encoder": "B 64 128",
        "pixel_shuffle": "B 16 512",
        "projector": "B 16 128",
        "decoder": "B T 128",
    }
)

# %% [markdown]
# Where a claim does not hold, the error names the first step that differs, in the order of execution:

# %% tags=["nbval-check-output"]
try:
    t.expect({"decoder.head": "B T 444", "projector": "B 64 128", "vision_encoder": "B 64 128"})
except ShapeMismatch as error:
    print("\n".join(line for line in str(error).splitlines()[1:]))

# %% [markdown]
# ## FLOPs do not follow the parameters
#
# The table has one row for each module. Its parameters are those that the module contains, and its FLOPs are added up
# from the steps that run inside it.

# %% tags=["nbval-check-output"]
print(t.table(depth=1))

# %% [markdown]
# The two need not go together. The decoder contains the head, so its 844 k parameters include the head's 56.8 k (which
# are the token embedding's, since the two are tied). But the head runs behind the decoder and not in it, so that its
# 2.73 M FLOPs are in its own row.

# %% [markdown]
# You can check the numbers by hand: each weight of the projector costs a
# multiplication and an addition for each of the 16 tokens, and in attention each position meets every other twice, for
# the scores and for the weighted sum.

# %% tags=["nbval-check-output"]
parts = ("vision_encoder", "projector", "decoder")
assert sum(t[name].params for name in parts) == t.num_params  # the decoder's include the head's
assert (
    sum(t[name].flops for name in parts) + t["decoder.head"].flops == t.flops
)  # the decoder's do not
assert t["projector"].flops == 2 * 16 * 512 * 128
attend = t.find("attend")[-1]  # the package's function around attention
heads, length, head_dim = attend.inputs[0].shape[1:]  # of q, [B, heads, length, head_dim]
assert attend.flops == 2 * (2 * heads * length * length * head_dim)
print(
    f"{t['projector'].flops:,} in the projector, {attend.flops:,} in one attention of the decoder"
)

# %% [markdown]
# For the 222M model you do not need the weights, because shapes are enough. On the device `meta` tensors have shapes
# and no numbers, and a model of any size takes no memory. Predict first:

# %%
quiz("ch12.work")

# %%
from nanovlm.viz.shape_tracing import Part, parts_figure

with torch.device("meta"):
    large = VisionLanguageModel(VLMConfig())


def work(text_tokens):
    t = trace(
        large,
        torch.zeros(1, text_tokens, dtype=torch.long),
        torch.zeros(1, 3, 224, 224),
        device="meta",
    )
    encoder, projector, decoder, head = (
        t[n] for n in ("vision_encoder", "projector", "decoder", "decoder.head")
    )
    return parts_figure(
        [
            Part("vision encoder", encoder.params, encoder.flops),
            Part("projector", projector.params, projector.flops),
            Part("decoder blocks", decoder.params - head.params, decoder.flops),
            Part("embedding, head", head.params, head.flops),  # one matrix for both: they are tied
        ],
        f"222M model, one picture and {text_tokens} text tokens",
    )


lever(work, text_tokens=[1, 20, 79, 400, 1600], start={"text_tokens": 79})

# %% [markdown]
# The encoder has 38.6 % of the parameters and does half of the work, because it runs on 196 patches and the decoder on
# 49 + 79 positions. With longer texts, which the lever shows, it is the other way round. The head is *one* matrix and a
# tenth of the work. In training it is needed only where a token is supervised, which is why the package runs it on
# those alone (chapter 06).

# %% tags=["nbval-check-output"]
t222 = trace(
    large, torch.zeros(1, 79, dtype=torch.long), torch.zeros(1, 3, 224, 224), device="meta"
)
print(f"encoder: {t222['vision_encoder'].params / t222.num_params:.1%} of the parameters, ", end="")
encoder, head = (t222[name].flops / t222.flops for name in ("vision_encoder", "decoder.head"))
print(f"{encoder:.1%} of the FLOPs; head: {head:.1%}")
print(f"{t222.flops / 1e9:.1f} billion in all")

# %% [markdown]
# Exercise 12.7 calculates the same shares from the config alone, without any model. The cell takes your formula if it
# has passed, and compares it with the trace. Other counters count other things, for example a multiplication and an
# addition as one, and in exercise 12.9 you write the test that tells them apart.

# %%
flops_shares = use("trace.flops")

by_formula = flops_shares(VLMConfig(), 79)
for part, path in (
    ("vision_encoder", "vision_encoder"),
    ("projector", "projector"),
    ("decoder", "decoder"),
    ("head", "decoder.head"),
):
    assert abs(by_formula[part] - t222[path].flops / t222.flops) < 1e-6

# %% [markdown]
# ## Named sizes are found by changing them
#
# The decoder of the 222M model gets a tensor of shape `[12, 128, 576]`. Its 128 is the number of positions, 49 of the
# picture and 79 of the text, but the number itself does not say so, and with a text of 100 tokens it would be another
# one. Is it better with the 12?

# %%
quiz("ch12.names")

# %% [markdown]
# Numbers cannot be matched with names, then. The tracer does what a physicist would do, and changes one quantity to see
# what changes with it. It runs the model a few more times on meta, with another batch and another length, and fits a
# formula to each dim. You only say which sizes of the inputs have names.

# %% tags=["nbval-check-output"]
named = trace(
    large,
    torch.zeros(12, 79, dtype=torch.long),
    torch.zeros(12, 3, 224, 224),
    device="meta",
    dims={"B": 12, "T": 79},
)
print(named.stages())

# %% [markdown]
# The shape `[B, 49+T, 576]` shows 49 image tokens and then the text. The heads keep their number, which is a 12 that is
# no batch. A claim like the last one holds in a test for every batch and every question, and not only for those that
# you happened to try.

# %% tags=["nbval-check-output"]
print(named.find("attend")[0].inputs[0], "are the queries in the encoder")
named.expect({"cat": "B 49+T 576", "decoder.head": "B 49+T 49152"})

# %% [markdown]
# ## The first NaN shows where a fault began
#
# When the loss is `nan`, everything else soon is, because a NaN makes NaN of whatever it meets. The question is in
# which step it began. Here is attention with a mask for padding on the left, written as in many tutorials.


# %%
class Attention(nn.Module):
    """x [B, T, dim], real [B, T] (False: padding) -> [B, T, dim]"""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        scores = self.q(x) @ self.k(x).transpose(-2, -1) / x.shape[-1] ** 0.5
        past = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        allowed = past & real[:, None, :]  # [B, T, T]
        weights = scores.masked_fill(~allowed, float("-inf")).softmax(dim=-1)
        return self.out(weights @ self.v(x))


# %%
x = torch.randn(2, 5, 8)
real = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], dtype=torch.bool)
Attention()(x, real)[0, :, 0]  # the first row's five positions, one number of each

# %% [markdown]
# Two positions are NaN. In which step did they become so? Predict:

# %%
quiz("ch12.nan")

# %% tags=["nbval-check-output"]
watched = trace(Attention(), x, real, values=True)
first = watched.first_nan()
print(first.name, "gives", first.out, "with", int(first.stats["nan"]), "NaN")

# %% [markdown]
# The mask wrote `-inf` there on purpose. But the two padding positions may attend to nothing: the positions before them
# are padding, and so are they. A row that contains nothing but `-inf` has no softmax, because it is 0 divided by 0.
#
# Two positions of padding do no harm by themselves, since nothing attends to them. Put a second layer behind the first,
# however:

# %% tags=["nbval-check-output"]
attention = Attention()
one_layer = attention(x, real)
two_layers = attention(one_layer, real)
for name, y in (("one layer", one_layer), ("two layers", two_layers)):
    print(f"{name}: {y[0].isnan().any(-1).sum()} of 5 positions are NaN")

# %% [markdown]
# In the second layer the padding has the attention weight 0 everywhere. But 0 times NaN is NaN, and now all positions
# are. A trace with values shows how it spreads: mean ± standard deviation beside each shape, and a count where there
# are NaN.

# %%
watched

# %% [markdown]
# There are two remedies. Every token may attend at least to itself, or a row that attends to nothing gives zero, which
# is what `F.scaled_dot_product_attention` does.

# %%
allowed = torch.ones(5, 5, dtype=torch.bool).tril() & real[:, None, :]
assert not nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=allowed).isnan().any()
assert (
    not torch.zeros(2, 5, 5)
    .masked_fill(~(allowed | torch.eye(5).bool()), float("-inf"))
    .softmax(-1)
    .isnan()
    .any()
)

# %% [markdown]
# ## A comparison of two traces shows what changed
#
# Yesterday the model was right, and today somebody has tidied it up. `diff` compares two traces: other shapes (`!`),
# steps that are gone (`-`), steps that are new (`+`). This tidy-up replaced pixel shuffle by one line:


# %%
class TidyProjector(ModalityProjector):
    def forward(self, x: Tensor) -> Tensor:
        batch, num_patches, dim = x.shape
        return self.proj(x.reshape(batch, num_patches // self.factor**2, dim * self.factor**2))


tidy = copy.deepcopy(model)
tidy.projector.__class__ = TidyProjector  # the same weights, another forward
after = trace(tidy, ids, pixels)

# %% tags=["nbval-check-output"]
print(t.diff(after))

# %% [markdown]
# Three steps are gone, nothing was added, and there is no `!`, so no shape has changed. Every claim still holds:

# %%
after.expect(
    {
        "vision_encoder": "B 64 128",
        "projector": "B 16 128",
        "decoder": "B T 128",
        "decoder.head": "B T 444",
    }
)

# %% [markdown]
# ### The fault that no shape shows
#
# Both models answer the same questions, and one of them is wrong much more often:

# %%
from nanovlm.data.thimble import thimble_sample
from nanovlm.evaluation.scores import evaluate

samples = [thimble_sample("shapes", "test", i, image_size=64) for i in range(20)]


def share_right(model):
    scores = evaluate(model, samples, blind=False).scores.values()
    return sum(score.correct for score in scores) / sum(score.total for score in scores)


as_it_was, tidied_up = share_right(model), share_right(tidy)
print(f"as it was: {as_it_was:.0%} right; tidied up: {tidied_up:.0%} right")

# %% tags=["claim"]
assert as_it_was > 0.9 and tidied_up < as_it_was - 0.25

# %% [markdown]
# Nothing raised an error, nothing is NaN, and all shapes are right. Which of the tools finds the fault? Predict:

# %%
quiz("ch12.finds")

# %% [markdown]
# Push each patch's own number through the suspect, and see where it comes out. `patch_map` does that. It must not meet
# the linear layer, which would mix the numbers, so an `Identity` takes its place:


# %% tags=["nbval-check-output"]
def without_linear(projector):
    bare = copy.deepcopy(projector)
    bare.proj = nn.Identity()
    return bare


print(patch_map(without_linear(model.projector), grid=8))
print()
print(patch_map(without_linear(tidy.projector), grid=8))

# %% [markdown]
# One gives groups of 2 x 2, and the other strips of 1 x 4. Each weight of the projector was trained for one corner of a
# group and now meets another patch; chapter 03 shows what this does to a picture. A step that rearranges therefore
# needs two kinds of test: one of its shape, and one of its map.

# %% [markdown]
# ## Two more errors, of kinds that everybody meets
#
# Read torch's own words first, in the last line, and then the rest, and ask yourself whether you would have found it.
#
# **Keys that are not transposed.** Every query should meet every key:


# %%
class Scores(nn.Module):
    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.q(x), self.k(x)
        return (q @ k).softmax(dim=-1)


# %% tags=["raises-exception"]
trace(Scores(), torch.randn(2, 5, 8))

# %% [markdown]
# There is something worse than this error. With a sequence of exactly 8 tokens the module does not fail:

# %% tags=["nbval-check-output"]
scores, x = Scores(), torch.randn(2, 8, 8)
wrong, right = scores(x), (scores.q(x) @ scores.k(x).transpose(-2, -1)).softmax(dim=-1)
assert (wrong - right).abs().gt(1e-4).all()
print(expect_shape(wrong, "batch 8 8"), "and not one number is right")

# %% [markdown]
# So trace with sizes that are all different, and odd where possible. A batch of 2 with 5 tokens of width 8 hides less
# than one of 8 with 8 tokens of width 8.
#
# **A token for which the embedding has no row.** Somebody added `<image>` to the tokenizer and forgot the model:

# %% tags=["raises-exception"]
trace(Fusion(vocab_size=20), torch.randn(1, 4, 12), torch.tensor([[3, 1, 4, 20]]))

# %% [markdown]
# On a CPU torch says *index out of range in self*, and nothing else. On a GPU it is a `device-side assert`, in some
# later line that has nothing to do with it. The tracer looks at the ids before the call, so that it can say which id it
# was and how many rows there are. The error also carries the trace, up to the step that failed and with the shapes that
# went in:

# %%
try:
    trace(Scores(), torch.randn(2, 5, 8))
except RuntimeError as error:
    failed = error.trace
failed

# %% [markdown]
# More bugs wait in the exercises. For each there is also a repair that silences the error and leaves the result wrong,
# and the checks know several of them.

# %% [markdown]
# ## Attention weights are recorded on request
#
# Attention weights say which share each position took from every other. But `F.scaled_dot_product_attention`, which
# most models in PyTorch use, never returns them. The tracer computes them once more from its arguments
# (`attention_weights` in `nanovlm/trace/record/watchers.py`). Name the modules whose attention you want:

# %% tags=["nbval-check-output"]
layers = [f"decoder.blocks.{i}" for i in range(model.config.language.num_blocks)]
seen = trace(model, ids, pixels, attention=layers)
weights = [
    seen.attention[layer][0][0] for layer in layers
]  # of each layer: the first call, the first row of the batch
print(expect_shape(weights[3], "heads length length"))
assert torch.allclose(weights[3].sum(-1), torch.ones(4, 24)) and not weights[3].triu(1).any()

# %% [markdown]
# Each row sums to 1, and no position attends to a later one. In exercise 12.8 you draw such a row over the picture, for
# which you have to know which patches each image token is made of. What a map of this kind can tell and what it cannot is
# the subject of [chapter 14](14_looking_inside.ipynb), which takes away what a head attends to and asks again.

# %% [markdown]
# ## The tracer works on models that nobody here wrote
#
# The tracer needs torch and nothing of this package. Here is the encoder that the 222M model's weights come from, in
# transformers' own code, at full size on meta. (The import takes some seconds.)

# %%
from transformers import SiglipVisionConfig, SiglipVisionModel

with torch.device("meta"):
    siglip = SiglipVisionModel(SiglipVisionConfig()).eval()
theirs = trace(siglip, torch.zeros(2, 3, 224, 224), device="meta", dims={"B": 2})
print(theirs.stages())

# %% [markdown]
# Theirs splits q, k and v into three layers, looks positions up in an embedding, and has a pooling head that VLMs leave
# out. The work of the rest is equal to ours, to the last operation:

# %% tags=["nbval-check-output"]
rows = [theirs.find(name)[0].flops for name in ("SiglipVisionEmbeddings", "SiglipEncoder")]
assert sum(rows) == 2 * t222["vision_encoder"].flops  # a batch of two
print(f"{sum(rows) / 2 / 1e9:.2f} billion FLOPs a picture, theirs and ours")

# %% [markdown]
# If you ask transformers for attention weights, its default (fast) attention gives an empty tuple and no error. The
# tracer finds the weights where they arise:

# %%
sizes = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
little = SiglipVisionModel(SiglipVisionConfig(image_size=64, patch_size=16, **sizes)).eval()
image = torch.randn(1, 3, 64, 64)
layer = trace(little, image).find("SiglipAttention")[0].path
caught = trace(little, image, attention=[layer]).attention[layer][0]
print(
    "transformers:",
    little(image, output_attentions=True).attentions,
    "| the tracer:",
    expect_shape(caught, "1 4 16 16"),
)

# %% [markdown]
# ## In the package
#
# All of it is `nanovlm/trace/`, which imports torch and nothing else, so you can take it along:
#
# | you want | you write |
# |---|---|
# | one run | `trace(model, *inputs)`, also of `model.generate` or any function |
# | several calls, a training step | `with tracing(model) as t: …` |
# | shapes without weights or memory | `device="meta"` |
# | shapes as formulas | `dims={"B": 12, "T": 79}` |
# | NaN, time, attention | `values=True`, `time=True`, `attention=["decoder.blocks.0"]` |
# | to keep it | `t.html()`, `t.to_json()`, `t.mermaid()`, `t.svg()` |
# | in a terminal | `nanovlm trace --preset 222m --batch 12 --text 79` |

# %% [markdown]
# One promise should be checked and not believed: that watching does not change what is watched. The output of a traced
# run is the same to the last bit, and no hook stays behind.

# %%
with torch.no_grad():
    plain = model(ids, pixels).logits
    with tracing(model) as once_more:
        while_watched = model(ids, pixels).logits
assert once_more["projector.proj"].shape == (1, 16, 128)
assert torch.equal(while_watched, plain)
assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())

# %% [markdown]
# (For torch's own `nn.TransformerEncoder` this takes a second call. In eval mode it runs a fused kernel, which torch
# switches off while anything listens. The tracer watches the steps, calls the layer once more unwatched, and hands on
# that result.)

# %% [markdown]
# ## What you take along
#
# - Read the shapes of a model that works before you need them: `stages()` is one line of code.
# - Trace with sizes that are all different, because equal sizes hide bugs.
# - A claim with names (`B 49+T 576`) is worth more than numbers from one run.
# - The shape does not prove the contents. Map patches, and compare values.
# - Attention weights can be recorded from any model. What they prove is another question (chapter 14).

# %% [markdown]
# ## Challenge: the smallest trace that tells
#
# Somebody hands you a model and says that it is "just a Llama". Write a function that decides from *one* trace on the
# device `meta` whether a decoder has grouped-query attention, a gated MLP, and a tied head, whatever its modules are
# called. Your score is the number of right answers over the models below, three answers each; the function that is
# given says yes to everything. Add models from transformers to the list, and see when your rules fail.

# %%
from nanovlm.course.chapter_12 import decoders


def describe(t) -> tuple[bool, bool, bool]:
    """A trace -> grouped-query attention, a gated MLP, a tied head. Replace this."""
    return True, True, True


right = 0
for make, ids_of, truth in decoders():
    with torch.device("meta"):
        decoder = make()
    answers = describe(trace(decoder, ids_of, device="meta"))
    right += sum(a == b for a, b in zip(answers, truth, strict=True))
print(f"{right} of {3 * len(decoders())} answers right")

# %% [markdown] tags=["stamped"]
# ## Your turn
#
# [Open the exercises](../exercises/12_shape_tracing.ipynb) ([in Colab][exercises]): 9 of them, about 1.6 hours.
#
# [exercises]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/exercises/12_shape_tracing.ipynb
#
# | | exercise | difficulty | minutes |
# |---|---|---|---|
# | 12.1 | Ask a trace (`trace.read_trace`) | ●○○ | 8 |
# | 12.2 | Bug 1: the projector (`trace.bug_projector`) | ●○○ | 6 |
# | 12.3 | Bug 2: shared heads (`trace.bug_heads`) | ●●○ | 8 |
# | 12.4 | Bug 3: positions (`trace.bug_positions`) | ●●○ | 8 |
# | 12.5 | Mend it: three bugs in a model from elsewhere (`trace.elsewhere`) | ●●● | 15 |
# | 12.6 | Shapes as formulas (`trace.symbolic_shapes`) | ●●○ | 10 |
# | 12.7 | Measure it: where do the FLOPs go? (`trace.flops`) | ●●● | 15 |
# | 12.8 | Where does this word look? (`trace.word_attention`) | ●●○ | 12 |
# | 12.9 | Write the test: is this FLOP counter right? (`trace.test_counter`) | ●●○ | 12 |
#
# Next: [13 High resolution and many pictures](13_high_resolution.ipynb)
