# %% [markdown]
# # 12 Shape tracing
#
# Watch every step that a tensor takes through a model, without a print statement in it: read shapes, find bugs, count
# the work, and follow one word's look over the picture. The tool works on your own models too. Forty minutes.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [← 11 Full training](11_full_training.ipynb) ·
# [13 High resolution and many pictures →](13_high_resolution.ipynb) ·
# [exercises](../exercises/12_shape_tracing.ipynb)
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
from itertools import combinations

import torch
from PIL import Image
from torch import Tensor, nn

from nanovlm import VisionLanguageModel
from nanovlm.assets import asset_path
from nanovlm.config import VLMConfig
from nanovlm.course import expect_shape, lever, quiz, use
from nanovlm.inference.prompts import prepare_prompt
from nanovlm.models.modality_projector import ModalityProjector, pixel_shuffle
from nanovlm.trace import ShapeMismatch, patch_map, trace, tracing

# %% [markdown]
# ## The question: which line, which tensor?
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
# *Expected size 4 but got size 5.* Of what? In a model of sixty layers you would now write print statements, run it
# again, move them, run it again. Then you would delete them.
#
# There is another way: run it once, and let somebody take notes.

# %% tags=["raises-exception"]
trace(Fusion(), patches, ids)

# %% [markdown]
# Read the last part, from its first line down:
#
# 1. **what is wrong**, with your own expressions and both shapes;
# 2. **where**: the line of your code. `cell:10` is line 10 of a cell; in a file it would be the file's name;
# 3. **each operand**, with its shape and where it came from;
# 4. **what to try**;
# 5. **the way there**: the last steps before the failing one;
# 6. what torch said.
#
# The bug is `dim=-1`. The two should stand one behind the other, along dim 1. The error is still a `RuntimeError`, so
# code that catches it still does. (What stands above it is Python's usual list of calls; your line is at its
# end. `%xmode Minimal` in a cell makes Jupyter leave the list out.)
#
# That is the emergency. Now the ordinary use: looking at a model that works.

# %% [markdown]
# ## Reading a trace
#
# The pocket model and a question, as tensors. (How the question becomes ids is chapter 05.)

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
# One line is one step. Open `vision_encoder`, then `blocks.0`, then `attn`. What a line tells:
#
# - the **name**: a module with its class, or a function;
# - the **shape** that came out;
# - its **parameters**, and its **FLOPs** (floating-point operations; only products count);
# - the **expression** in the source. Hold the mouse over it for the file and the line.
#
# *×2, first shown* stands for two blocks with the same steps. A model of thirty blocks is as short as one of two.
#
# Most of it you want to see once. What you want to see often is this:

# %% tags=["nbval-check-output"]
print(t.stages())

# %% [markdown]
# Read it aloud. A picture of 64 x 64 pixels in three colours. The encoder makes 64 vectors of 128 numbers, one for each
# patch. Pixel shuffle folds every 2 x 2 of them into one token, four times as wide (chapter 03). A linear layer brings
# these 16 tokens to the decoder's width. The prompt holds 16 placeholders among its 24 tokens, and the image tokens take
# their places (`combined`). At the end each position has a score for each of 444 words.
#
# It is the list that tutorials print by hand, from inside the model. Nobody has touched the model here.
#
# Look at `pixel_shuffle`. In the package it is a *function*. Most tools of this kind hang a hook on every module and
# write down what comes out. Predict:

# %%
quiz("ch12.hooks")

# %% [markdown]
# ### How does it see functions?
#
# PyTorch has a place to listen: a *mode* through which every torch function passes on its way. This is a tracer in ten
# lines:

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
# Pixel shuffle is a reshape, a transpose and a reshape, then comes the linear layer. The real tracer adds what makes
# it readable: hooks for the tree of modules, the functions that *you* wrote as lines of their own, your source, folding,
# and what happens when a step fails. It keeps shapes and never a tensor, so that it needs next to no memory.
#
# ### Asking it
#
# A trace is an object. What you can read, a test can read too.

# %% tags=["nbval-check-output"]
print("by path:    ", t["projector.proj"].out, "from", t["projector.proj"].inputs[0])
print("by function:", len(t.find("scaled_dot_product_attention")), "attentions, one in each block of both parts")
print("by pattern: ", len(t.find("decoder.blocks.*.mlp")), "MLPs in the decoder")

# %% [markdown]
# And a claim, which is silent where it holds. A name such as `T` must mean one size everywhere.

# %%
t.expect({"vision_encoder": "B 64 128", "pixel_shuffle": "B 16 512", "projector": "B 16 128", "decoder": "B T 128"})

# %% [markdown]
# Where it does not hold, it names the first step that differs, in the order of execution:

# %% tags=["nbval-check-output"]
try:
    t.expect({"decoder.head": "B T 444", "projector": "B 64 128", "vision_encoder": "B 64 128"})
except ShapeMismatch as error:
    print("\n".join(line for line in str(error).splitlines()[1:]))

# %% [markdown]
# ## Where does the work go?
#
# The table has one line a module. Its parameters are those that it holds. Its FLOPs are added up from the steps that
# run inside it.

# %% tags=["nbval-check-output"]
print(t.table(depth=1))

# %% [markdown]
# The two need not go together. The decoder holds the head, so its 844 k parameters include the head's 56.8 k (which are
# the token embedding's: one matrix, tied). But the head runs behind the decoder, not in it: its 2.73 M FLOPs stand in
# its own line and are not in the decoder's 38.9 M.
#
# Do not take the FLOPs on trust. The projector's linear layer takes 16 tokens from 512 numbers to 128. Each of its
# weights costs a multiplication and an addition for each token. And in attention each position meets each other one,
# twice: for the scores, and for the weighted sum.

# %% tags=["nbval-check-output"]
parts = ("vision_encoder", "projector", "decoder")
assert sum(t[name].params for name in parts) == t.num_params  # the decoder's include the head's
assert sum(t[name].flops for name in parts) + t["decoder.head"].flops == t.flops  # the decoder's do not
assert t["projector"].flops == 2 * 16 * 512 * 128
q = t.find("attend")[-1].inputs[0]  # attend is the package's function around attention; [B, heads, length, head_dim]
heads, length, head_dim = q.shape[1:]
assert t.find("attend")[-1].flops == 2 * (2 * heads * length * length * head_dim)
print(f"{t['projector'].flops:,} in the projector, {t.find('attend')[-1].flops:,} in one attention of the decoder")

# %% [markdown]
# Now the 222M model. Do you need its weights for that? No: shapes are enough. On the device `meta` tensors have shapes
# and no numbers, and a model of any size takes no memory. First, predict:

# %%
quiz("ch12.work")

# %%
from nanovlm.viz.shape_tracing import Part, parts_figure

with torch.device("meta"):
    large = VisionLanguageModel(VLMConfig())


def work(text_tokens):
    t = trace(large, torch.zeros(1, text_tokens, dtype=torch.long), torch.zeros(1, 3, 224, 224), device="meta")
    encoder, projector, decoder, head = (t[n] for n in ("vision_encoder", "projector", "decoder", "decoder.head"))
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
# The encoder has 38.6 % of the parameters and does half of the work: it runs on 196 patches, the decoder on 49 + 79
# positions. Move the lever to longer texts and watch it turn round.
#
# The head is a surprise too. It is *one* matrix, and a tenth of the work. In training you need it only where a token is
# supervised, which is why this package runs it on those alone (chapter 06).

# %% tags=["nbval-check-output"]
t222 = trace(large, torch.zeros(1, 79, dtype=torch.long), torch.zeros(1, 3, 224, 224), device="meta")
print(f"encoder: {t222['vision_encoder'].params / t222.num_params:.1%} of the parameters, ", end="")
print(
    f"{t222['vision_encoder'].flops / t222.flops:.1%} of the FLOPs; head: {t222['decoder.head'].flops / t222.flops:.1%}"
)
print(f"{t222.flops / 1e9:.1f} billion in all")

# %% [markdown]
# The same without any model, from the config alone: that is exercise 12.6. If you have solved it already, this cell
# takes your formula. It should agree with the trace.

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
# ## Shapes with names
#
# The decoder of the 222M model gets a tensor of shape `[12, 128, 576]`. You have met its 128: it is the number of
# positions, 49 of the picture and 79 of the text. But that stands nowhere in the number 128. With a text of 100 tokens it
# would be another number, and which one you could not tell from this shape. Is it any better with the 12?

# %%
quiz("ch12.names")

# %% [markdown]
# So matching numbers with names cannot work. The tracer does what a physicist would do: it changes one quantity and
# sees what changes with it. It runs the model a few more times on meta, with another batch, another length, and fits a
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
# `[B, 49+T, 576]`: 49 image tokens, then the text. And the heads keep their number, which is a 12 that is no batch:

# %% tags=["nbval-check-output"]
print(named.find("attend")[0].inputs[0], "are the queries in the encoder")
named.expect({"cat": "B 49+T 576", "decoder.head": "B 49+T 49152"})

# %% [markdown]
# Such a claim in a test holds for every batch and every question, not for the ones that you happened to try.

# %% [markdown]
# ## Values: where does the first NaN come from?
#
# Your loss is `nan`. By then everything is: one NaN poisons whatever it meets. The question is where it began.
#
# Here is attention with a mask for padding on the left. It was written by hand, as it stands in many tutorials.


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
# Two positions are NaN. Which step made them? Predict:

# %%
quiz("ch12.nan")

# %% tags=["nbval-check-output"]
watched = trace(Attention(), x, real, values=True)
first = watched.first_nan()
print(first.name, "gives", first.out, "with", int(first.stats["nan"]), "NaN")

# %% [markdown]
# The mask put `-inf` there, and that was meant. But the two padding positions see nobody: the past is padding, they are
# padding. A row of nothing but `-inf` has no softmax: it is 0 divided by 0.
#
# Two positions of padding, and nobody looks at padding. Is it so bad? Put a second layer behind it:

# %% tags=["nbval-check-output"]
attention = Attention()
one_layer = attention(x, real)
two_layers = attention(one_layer, real)
for name, y in (("one layer", one_layer), ("two layers", two_layers)):
    print(f"{name}: {y[0].isnan().any(-1).sum()} of 5 positions are NaN")

# %% [markdown]
# In the second layer the padding has weight 0 for everybody. But 0 times NaN is NaN, and now all positions are. A trace
# with values shows how it spreads. Look at the numbers behind the shapes, mean ± standard deviation, and where they turn
# into a count of NaN:

# %%
watched

# %% [markdown]
# Two ways to mend it: let every token see at least itself, or give rows that see nobody a zero. The second is what
# `F.scaled_dot_product_attention` does.

# %%
allowed = torch.ones(5, 5, dtype=torch.bool).tril() & real[:, None, :]
assert not nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=allowed).isnan().any()
assert not torch.zeros(2, 5, 5).masked_fill(~(allowed | torch.eye(5).bool()), float("-inf")).softmax(-1).isnan().any()

# %% [markdown]
# ## What changed?
#
# Yesterday the model was right. Today somebody tidied it up. `diff` compares two traces: other shapes (`!`), steps that
# are gone (`-`), steps that are new (`+`).
#
# This tidy-up replaced pixel shuffle by one line:


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
# Three steps are gone. Nothing was added, and there is no `!`: no shape has changed. Every claim still holds:

# %%
after.expect({"vision_encoder": "B 64 128", "projector": "B 16 128", "decoder": "B T 128", "decoder.head": "B T 444"})

# %% [markdown]
# ### The bug that no shape shows
#
# But ask both models:

# %%
from nanovlm.data.thimble import thimble_sample
from nanovlm.evaluation.scores import evaluate

samples = [thimble_sample("shapes", "test", i, image_size=64) for i in range(20)]


def share_right(model):
    scores = evaluate(model, samples, blind=False).scores.values()
    return sum(score.correct for score in scores) / sum(score.total for score in scores)


as_it_was, tidied_up = share_right(model), share_right(tidy)
assert as_it_was > 0.9 and tidied_up < as_it_was - 0.25
print(f"as it was: {as_it_was:.0%} right; tidied up: {tidied_up:.0%} right")

# %% [markdown]
# Nothing raised, nothing is NaN, all shapes are right. Which of the tools finds it? Predict:

# %%
quiz("ch12.finds")

# %% [markdown]
# Push each patch's own number through the suspect, and see where it comes out. `patch_map` does that. It must not meet
# the linear layer, which would mix the numbers, so we put an `Identity` in its place:


# %% tags=["nbval-check-output"]
def without_linear(projector):
    bare = copy.deepcopy(projector)
    bare.proj = nn.Identity()
    return bare


print(patch_map(without_linear(model.projector), grid=8))
print()
print(patch_map(without_linear(tidy.projector), grid=8))

# %% [markdown]
# Tiles of 2 x 2, and strips of 1 x 4. Each linear weight of the projector was trained for one corner of a tile, and now
# gets another patch. (Chapter 03 shows what that does to the picture.)
#
# So keep two kinds of tests for a step that rearranges: its shape, and its map.

# %% [markdown]
# ## Three errors, read aloud
#
# One you have seen. Two more, of kinds that everybody meets. Read torch's own words first (the last line), then the
# rest, and ask: would I have found it?
#
# **Keys that are not turned.** Every query should meet every key:


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
# There is something worse than this error. Give it a line of exactly 8 tokens, and it does not fail:

# %% tags=["nbval-check-output"]
scores, x = Scores(), torch.randn(2, 8, 8)
wrong, right = scores(x), (scores.q(x) @ scores.k(x).transpose(-2, -1)).softmax(dim=-1)
assert (wrong - right).abs().gt(1e-4).all()
print(expect_shape(wrong, "batch 8 8"), "and not one number is right")

# %% [markdown]
# So trace with sizes that are all different, and odd where you can. A batch of 2 with 5 tokens of width 8 hides less
# than one of 8 with 8 tokens of width 8.
#
# **A token that the embedding has no row for.** Somebody added `<image>` to the tokenizer and forgot the model:

# %% tags=["raises-exception"]
trace(Fusion(vocab_size=20), torch.randn(1, 4, 12), torch.tensor([[3, 1, 4, 20]]))

# %% [markdown]
# *index out of range in self* is all that torch says on a CPU. On a GPU it is a `device-side assert`, at some later line
# that has nothing to do with it. The tracer looks at the ids before the call, so it can say which id there was and how
# many rows.
#
# What happens to the trace of a run that failed? The error carries it, up to the step that failed and with the shapes
# that went in there:

# %%
try:
    trace(Scores(), torch.randn(2, 5, 8))
except RuntimeError as error:
    failed = error.trace
failed

# %% [markdown]
# Three more bugs wait for you in the exercises. What the message advises is right in the first, half of the repair in
# the second, and in the third it leaves the choice to you. For each there is also a repair that makes the error go away
# and the result wrong: the checks know several.

# %% [markdown]
# ## Where does a word look?
#
# Attention weights say how much each position took from each other one. But `F.scaled_dot_product_attention`, which most
# models in PyTorch use, never shows them: they are gone before it returns. They can be computed once more from its arguments.
# This is the tracer's own function:


# %% tags=["package:nanovlm.trace.record.watchers.attention_weights"]
def attention_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor | None = None,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The weights behind F.scaled_dot_product_attention(...), same arguments: float32 [..., heads, queries, keys]."""
    query, key = query.detach().float(), key.detach().float()
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    scores = query @ key.mT * (scale if scale is not None else query.shape[-1] ** -0.5)
    if is_causal:
        queries, keys = scores.shape[-2:]
        attn_mask = torch.ones(queries, keys, dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        if attn_mask.dtype is torch.bool:
            scores = scores.masked_fill(~attn_mask, float("-inf"))
        else:
            scores = scores + attn_mask.detach().float()
    blind = (scores == float("-inf")).all(dim=-1, keepdim=True)
    return scores.softmax(dim=-1).masked_fill(blind, 0.0)


# %% [markdown]
# Is it right? Then weights times values is what torch's function returns:

# %%
q, k, v = torch.randn(1, 4, 7, 8), torch.randn(1, 2, 7, 8), torch.randn(1, 2, 7, 8)
options = {"is_causal": True, "enable_gqa": True}
result = nn.functional.scaled_dot_product_attention(q, k, v, **options)
torch.testing.assert_close(attention_weights(q, k, v, **options) @ v.repeat_interleave(2, dim=1), result)

# %% [markdown]
# Name the modules whose attention you want, and the trace keeps it:

# %% tags=["nbval-check-output"]
layers = [f"decoder.blocks.{i}" for i in range(model.config.language.num_blocks)]
seen = trace(model, ids, pixels, attention=layers)
weights = [seen.attention[layer][0][0] for layer in layers]  # of each layer: the first call, the first row of the batch
print(expect_shape(weights[3], "heads length length"))
assert torch.allclose(weights[3].sum(-1), torch.ones(4, 24)) and not weights[3].triu(1).any()

# %% [markdown]
# Each row sums to 1, and nobody looks ahead. Now a row as a picture. The image tokens stand from position 1 on, and
# `patch_map` knows which patches each of them is. Where the word looks, it is light. We begin with the position that
# writes the answer: what comes behind `<|assistant|>` is the answer's first word, *top*.

# %%
from nanovlm.viz.attention import attention_over_image

words = [model.tokenizer.decode([i], skip_special_tokens=False) for i in ids[0].tolist()]
tokens = patch_map(lambda x: pixel_shuffle(x, 2), grid=8).tokens
first_image_token = words.index("<|image|>")
positions = {word: i for i, word in enumerate(words) if word != "<|image|>"}


def look(block, head, mean_of_heads, word):
    looks = weights[block].mean(0) if mean_of_heads else weights[block][head]  # [T, S]
    note = f"block {block}, {'mean of the heads' if mean_of_heads else f'head {head}'}"
    return attention_over_image(image, looks[positions[word]], words, positions[word], tokens, first_image_token, note)


on_star = [0, 1, 4, 5]  # the image tokens of the star's quarter
last = torch.stack([w[:, -1] for w in weights])  # [blocks, heads, length], of the position that writes the answer
on_image = last[..., first_image_token : first_image_token + 16]  # of that, the image tokens
image_shares, star_shares = on_image.sum(-1), on_image[..., on_star].sum(-1)
block, head = divmod(star_shares.argmax().item(), star_shares.shape[1])
lever(
    look,
    block=(0, 3),
    head=(0, 3),
    mean_of_heads=False,
    word=list(positions),
    start={"block": block, "head": head, "word": list(positions)[-1]},
)

# %% [markdown]
# This head looks at the red star, with most of its weight. It is a wonderful picture.
#
# How did I find it? The code says it: I knew the answer, and took the head with the largest share on the star's quarter.
# That is the first thing to be careful about: with 4 blocks of 4 heads there is nearly always a head that looks where
# you hope. Do you expect the others to look at the star too? Here are all sixteen: how much of its weight each spends
# on the picture, and of that on the star's quarter, and what it looks at most.


# %%
def most(row: Tensor) -> tuple[float, int, str]:
    """The largest weight of a row [T], its position, and what stands there."""
    weight, position = row.max(0)
    token = position.item() - first_image_token
    return (
        weight.item(),
        position.item(),
        f"image token {token}" if 0 <= token < 16 else f"the word {words[position].strip()}",
    )


for i in range(4):
    for k in range(4):
        weight, _, name = most(last[i, k])
        shares = f"the picture {image_shares[i, k]:4.0%}, the star's quarter {star_shares[i, k]:4.0%}"
        print(f"block {i}, head {k}: {shares} | the most: {weight:4.0%} on {name}")

# %% [markdown]
# Go down the list, and move the levers to what surprises you:
#
# - **Some heads hardly look at the picture.** They read a word of the question, such as *Where* or *red*. The picture
#   stays dark, and the bars at the right say why.
# - **Some look at the picture, and mostly past the star**, at its other three quarters. What for?
# - **Few look at the star** with more than half of their weight.
# - **The mean of heads** is what many demos draw. It mixes heads that do different things into a look that none of them
#   has.
#
# Which one *is* where the model looks? The list does not say. The next cell holds these claims to the numbers.

# %%
reads = [most(row)[1] for row in last[image_shares < 0.05]]  # what heads read that hardly look at the picture
assert len(reads) >= 2 and all(first_image_token + 16 <= position < len(words) - 1 for position in reads)
assert ((image_shares > 0.3) & (star_shares < image_shares / 2)).sum() >= 3  # mostly past the star
assert star_shares.max() > 0.5 and (star_shares > 0.5).sum() <= 5
moved = (last[block] - last[block].mean(0)).abs().sum(-1) / 2  # how much of its weight each head has elsewhere
assert moved.min() > 0.1  # than the mean of the four

# %% [markdown]
# ### Does the answer depend on it?
#
# The second thing needs an experiment. If the picture shows where the answer comes from, then without the tokens that
# this head looks at the answer should suffer. So we take them away: the mean of all image tokens goes in their place.
# Predict:

# %%
quiz("ch12.removed")


# %%
@torch.no_grad()
def answer_without(removed: list[int]) -> tuple[float, str]:
    """The probability of the first answer word "top", and the most likely word, without some image tokens."""
    image_tokens = model.projector(model.vision_encoder(pixels))  # [1, 16, 128]
    image_tokens[:, removed] = image_tokens.mean(dim=1, keepdim=True)
    line = model.decoder.token_embedding(ids)
    line[:, 1:17] = image_tokens
    probabilities = model.decoder.head(model.decoder(line, None, None, None, None))[0, -1].softmax(-1)
    top = model.tokenizer.encode("top")[0]
    return probabilities[top].item(), model.tokenizer.decode([probabilities.argmax().item()])


# %%
on_each = {token: on_image[block, head, token].item() for token in on_star}
looked_at = []  # the fewest of the star's tokens that hold four fifths of what the head gives to the star
for token in sorted(on_each, key=on_each.get, reverse=True):
    if sum(on_each[chosen] for chosen in looked_at) < 0.8 * star_shares[block, head]:
        looked_at.append(token)
for name, removed in {"nothing": [], f"{sorted(looked_at)}, which the head looks at": looked_at}.items():
    probability, says = answer_without(removed)
    print(f"without {name}: {probability:.2f}, says {says}")
assert len(looked_at) <= 2 and probability > 0.9

# %% [markdown]
# What was lit can go, and the answer stays. Then which tokens does it depend on? Take away each of the sixteen alone, and
# each quarter:

# %%
at_worst = min(answer_without([token])[0] for token in range(16))
print(f"without whichever single one it needs most: {at_worst:.2f}")
quarters = {"the star's": on_star, "the right": [2, 3, 6, 7], "the lower": [8, 9, 12, 13], "the far": [10, 11, 14, 15]}
remains = {}
for name, removed in quarters.items():
    remains[name], says = answer_without(removed)
    print(f"without {name} quarter, four tokens: {remains[name]:.2f}, says {says}")
assert at_worst > 0.9 and remains.pop("the star's") < 0.5 and min(remains.values()) > 0.9

# %% [markdown]
# No single token matters, and no quarter but the star's. How few of its four tokens does the answer need? Take away each
# two of them, and look at the pair whose loss costs most. Then keep only one of that pair, and none of the other three:

# %%
pair = min(combinations(on_star, 2), key=lambda two: answer_without(list(two))[0])
without_pair, says = answer_without(list(pair))
print(f"without {list(pair)}: {without_pair:.2f}, says {says}")
for kept in pair:
    alone, says = answer_without([token for token in on_star if token != kept])
    print(f"with {kept} as the star's only token: {alone:.2f}, says {says}; the head gives it {on_each[kept]:.0%}")
    assert alone > 0.9
assert without_pair < 0.5 and min(on_each[token] for token in pair) < 0.1

# %% [markdown]
# Without these two the model no longer says *top*, and either of them is enough, even where all others of the star are
# gone. One of them has next to nothing of the weight of our wonderful picture.
#
# The likely reason: in the encoder the patches have looked at each other. What one token knows of the star, a neighbour
# knows too, and attention can take it from there. (Be as careful with the experiment. The mean of all tokens is nothing
# that the model was trained on, and this is one picture and one question. Change both above and run again.) So:
#
# | the picture tells | it does not tell |
# |---|---|
# | which positions this head mixed in | what was there: the encoder has mixed the patches before |
# | how the weight was shared | how much came of it: a large weight on a small vector moves little |
# | whether a head looked at the picture at all | whether the answer depends on it: that takes an experiment |
#
# (The second line is the subject of [Kobayashi et al. 2020](https://arxiv.org/abs/2004.10102).)
#
# How much attention explains is a quarrel with two good sides ([Jain & Wallace
# 2019](https://arxiv.org/abs/1902.10186), [Wiegreffe & Pinter 2019](https://arxiv.org/abs/1908.04626)). Use the picture
# to get an idea. Then remove something and see.

# %% [markdown]
# ## Somebody else's model
#
# The tracer knows nothing of this package. It needs torch. Here is the encoder that the 222M model's weights come from,
# in transformers' own code, at full size on meta. (The cell needs transformers: `pip install transformers`. Skip it if
# you have none. The import takes some seconds.)

# %%
from transformers import SiglipVisionConfig, SiglipVisionModel

with torch.device("meta"):
    siglip = SiglipVisionModel(SiglipVisionConfig()).eval()
theirs = trace(siglip, torch.zeros(2, 3, 224, 224), device="meta", dims={"B": 2})
print(theirs.stages())

# %% [markdown]
# Theirs splits q, k and v into three layers, looks positions up in an embedding, and has a pooling head that VLMs leave
# out. The work of the rest is ours, to the last operation:

# %% tags=["nbval-check-output"]
rows = [theirs.find(name)[0].flops for name in ("SiglipVisionEmbeddings", "SiglipEncoder")]
assert sum(rows) == 2 * t222["vision_encoder"].flops  # a batch of two
print(f"{sum(rows) / 2 / 1e9:.2f} billion FLOPs a picture, theirs and ours")

# %% [markdown]
# And attention. Ask transformers for it, and with its default (fast) attention you get an empty tuple, with no error.
# The tracer finds it where it happens:

# %%
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
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
# PyTorch's own transformer is no model of anybody's, but many start there. (By default it leaves padding out of the
# computation, in eval mode, and hands back 0 there. `enable_nested_tensor=False` makes it compute every position, as a
# traced run does in any case.)

# %%
layer = nn.TransformerEncoderLayer(d_model=32, nhead=4, dim_feedforward=64, batch_first=True)
encoder = nn.TransformerEncoder(layer, num_layers=6, enable_nested_tensor=False).eval()
theirs = trace(encoder, torch.randn(2, 7, 32))
theirs.expect({"TransformerEncoder": "2 7 32", "layers.5.linear1": "2 7 64"})
print(theirs.text(depth=1))

# %% [markdown]
# ## Where this lives in the package
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
#
# One promise should not be taken on trust. Does watching change what is watched? No: the output of the traced run is
# the same to the last bit, and no hook stays behind:

# %%
with torch.no_grad():
    plain = model(ids, pixels).logits
    with tracing(model) as once_more:
        while_watched = model(ids, pixels).logits
assert once_more["projector.proj"].shape == (1, 16, 128)
assert torch.equal(while_watched, plain)
assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())

# %% [markdown]
# For some of torch's own layers that takes a trick. In eval mode without gradients `nn.TransformerEncoder` and
# `nn.MultiheadAttention` run a fused kernel, and torch switches it off while anything listens. The step-by-step path
# rounds otherwise, and it fills padding rows that the kernel leaves at 0. So the tracer watches the steps, then calls
# the layer once more with nobody listening, and hands on that result. Their traces take about twice as long for it.

# %%
import warnings

encoder = nn.TransformerEncoder(layer, num_layers=6).eval()  # as it comes: nested tensors allowed
x, padding = torch.randn(2, 7, 32), torch.arange(7) >= torch.tensor([[5], [7]])  # the first row ends with 2 of padding
with torch.no_grad(), warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch: nested tensors are a prototype
    plain = encoder(x, src_key_padding_mask=padding)
    with tracing(encoder) as fused:
        while_watched = encoder(x, src_key_padding_mask=padding)
assert torch.equal(while_watched, plain) and not plain[padding].any()
print(f"{len(fused.rows)} rows, and a result that is equal bit by bit")

# %% [markdown]
# What you take along:
#
# - Read the shapes of a model that works before you need them. `stages()` is one line of code.
# - Trace with sizes that are all different. Equal sizes hide bugs.
# - A claim with names (`B 49+T 576`) is worth more than numbers from one run.
# - The shape does not prove the content. Map patches, compare values.
# - A picture of attention is a question. The answer is an experiment.

# %% [markdown] tags=["stamped"]
# ## Your turn
#
# [Open the exercises](../exercises/12_shape_tracing.ipynb) ([in Colab][exercises]): 7 of them, about 67 minutes.
#
# [exercises]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/exercises/12_shape_tracing.ipynb
#
# | | exercise | difficulty | minutes |
# |---|---|---|---|
# | 12.1 | Ask a trace (`trace.read_trace`) | ●○○ | 8 |
# | 12.2 | Bug 1: the projector (`trace.bug_projector`) | ●○○ | 6 |
# | 12.3 | Bug 2: shared heads (`trace.bug_heads`) | ●●○ | 8 |
# | 12.4 | Bug 3: positions (`trace.bug_positions`) | ●●○ | 8 |
# | 12.5 | Shapes as formulas (`trace.symbolic_shapes`) | ●●○ | 10 |
# | 12.6 | Where do the FLOPs go? (`trace.flops`) | ●●● | 15 |
# | 12.7 | Where does this word look? (`trace.word_attention`) | ●●○ | 12 |
#
# Next: [13 High resolution and many pictures](13_high_resolution.ipynb)
