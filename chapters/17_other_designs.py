# %% [markdown]
# # 17 Other designs
#
# You have built one vision-language model. Here you exchange its parts, one at a time: a convolutional encoder,
# cross-attention, learned queries, no encoder at all, shared weights, cheaper attention, experts. Each design is trained
# beside the standard one at equal cost, so that the measurement decides. Forty-five minutes; the code runs in a minute.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [← 16 Small and fast](16_small_and_fast.ipynb) ·
# [exercises](../exercises/17_other_designs.ipynb) ·
# [notation and terms](notation.md)
#
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/chapters/17_other_designs.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/chapters/17_other_designs.ipynb

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
# 1. write the parts that papers put in the place of yours (depthwise convolutions, gated cross-attention, a resampler,
#    routing) and hand them to an unchanged model;
# 2. compare designs at equal cost, with several seeds and a blind score, and say what such a comparison cannot show;
# 3. check what a published model really contains, instead of believing an article about it.
#
# **You need** the encoder of chapter 02, pixel shuffle from 03, the decoder of 04 and the model of 06. **Time**: twenty
# minutes of text, eighteen for the code, eight for six quizzes and two levers; the exercises take an hour and three
# quarters more.

# %%
from statistics import mean

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# %%
from nanovlm.bench.designs import forward_flops, make_design
from nanovlm.bench.training_runs import small_vlm
from nanovlm.course import budget, expect_shape, lever, quiz, use
from nanovlm.course.runs import stored_runs
from nanovlm.designs.registry import DESIGNS, build
from nanovlm.viz.designs import Row, chart_figure, masks_figure

# %% [markdown]
# ## The question: which parts have to be as they are?
#
# A vision transformer, pixel shuffle, one linear layer, a causal decoder: you have built these because nanoVLM and
# SmolVLM consist of them. Papers offer something else for each one, and articles about small models mix all of it up.

# %%
quiz("ch17.article")

# %% [markdown]
# You need not believe anybody here. transformers has SmolVLM's code, so we let it build the model without weights, on
# the device `meta`, and count the kinds of its modules.

# %%
from collections import Counter

from transformers import SmolVLMConfig, SmolVLMModel

with torch.device("meta"):
    smolvlm = SmolVLMModel(
        SmolVLMConfig(
            vision_config={"num_hidden_layers": 2},
            text_config={"model_type": "llama", "num_hidden_layers": 2, "pad_token_id": 2},
        )
    )
kinds = Counter(type(module).__name__ for module in smolvlm.modules())
for kind, count in sorted(kinds.items()):
    print(f"{count:3} {kind}")

# %% tags=["claim"]
names = [name for name, _ in smolvlm.named_parameters()]
assert not any("cross" in name or name.endswith("gate") for name in names)
assert kinds["Conv2d"] == 1, "the patch embedding is the only convolution"

# %% [markdown]
# There is one convolution, and it is the patch embedding. There is one attention for the encoder and one for the decoder,
# and no third that joins them; no gate; no module that two others share. The picture enters where yours does:
# [`inputs_merger`](https://github.com/huggingface/transformers/blob/v4.56.0/src/transformers/models/smolvlm/modeling_smolvlm.py)
# puts projected image tokens into the sequence, and the paper ([Marafioti et al.
# 2025](https://arxiv.org/abs/2504.05299)) says the same. So whatever these techniques are worth, SmolVLM does not show it.
# This chapter measures them.

# %% [markdown]
# ## A design is a few parts, and the model stays as it is
#
# `VisionLanguageModel(config, vision_encoder=…, projector=…, decoder=…)` takes any module that follows the protocol.
# `build(name, config)` hands it the parts of a design, and a saved design names itself in its `config.json`.

# %%
torch.manual_seed(0)
for name in ("standard", "cnn", "resampler", "cross_attention"):
    model = build(name, small_vlm())
    parts = (model.vision_encoder, model.projector, model.decoder)
    print(f"{name:16}", " -> ".join(type(part).__name__ for part in parts))
print(f"{len(DESIGNS)} designs in all")

# %% [markdown]
# ## Equal cost has to be counted, not assumed
#
# A design that is better and twice as expensive has shown nothing. So all of them get the same pictures in the same
# order, the same steps, the same decoder sizes, and the same number of floating-point operations in a forward pass,
# within 5 %. Where a part is cheaper or dearer than the standard one, the encoder has more or fewer blocks, or wider or
# narrower ones. The tracer counts:

# %%
standard = forward_flops("standard", small_vlm())
for blocks in (2, 4, 6):
    cost = forward_flops("cnn", small_vlm(vision_blocks=blocks))
    print(f"a CNN with {blocks} blocks: {cost / standard:.0%} of the standard design's operations")

# %% [markdown]
# Six blocks of the convolutional encoder cost about as much as two of the transformer, so six is what it gets
# ([exercise 17.6](../exercises/17_other_designs.ipynb) finds such numbers). Operations are not time: a convolution with
# few operations may run slowly, and here it does. We come back to that at the end.

# %% [markdown]
# ### What is trained, and what is counted as right
#
# Each run teaches a model of about 0.3 M parameters to caption the shapes of the Thimble. Nothing but captions, because
# a caption says *what* is *where* in every place at once, so that a model can learn it within seconds:

# %%
from nanovlm.bench.designs import Captions, cells
from nanovlm.viz.start_here import sample_card

example = Captions("val", 2)[1]
caption = example["texts"][0]["assistant"]
print(caption)
print(cells(caption))
sample_card(example["images"][0], [("Describe the picture.", caption)], alt=caption)

# %% [markdown]
# We score the words that need the picture, which are colours, shapes and "nothing", on pictures that were not trained
# on: how many are the likeliest token behind the right words before them? The **blind** score is the same with
# another picture's tokens. At the end the model writes whole captions, and two more numbers come from these: the share
# of *things* that are named anywhere, and the share that are named in *their place*.

# %%
runs = stored_runs("17_designs")
steps, seeds = runs["standard"]["steps"], list(runs["standard"]["seeds"])
size = runs["standard"]["batch_size"]
print(
    f"{len(runs)} designs, {steps} steps of {size} pictures, {runs['standard']['held_out']} held out"
)
print(f"seeds of the standard design: {', '.join(seeds)}")
print(runs["standard"]["machine"])
blind = mean(run["blind"] for run in runs["standard"]["seeds"].values())


# %%
def told(name: str) -> None:
    """Print a design's stored scores, the mean over its seeds and their range."""
    found = list(runs[name]["seeds"].values())
    half = [word_score(run, steps // 2) for run in found]
    last = [word_score(run, steps) for run in found]
    print(f"{name}: right words {mean(half):.0%} half-way and {mean(last):.0%} at the end", end="")
    print(f" (seeds: {', '.join(f'{score:.0%}' for score in last)}),")
    things, places = (mean(run[key] for run in found) for key in ("things", "places"))
    print(f"    {things:.0%} of the things named, {places:.0%} in their place")


def word_score(run: dict, step: int) -> float:
    return dict(run["curve"])[step]


told("standard")
print(f"blind: {blind:.0%} of the words")

# %% [markdown]
# The standard design reaches the end of this task, so what distinguishes designs is how far they are half-way. Keep in
# mind what that measures: how fast a very small model *learns* a very simple task. Nothing here says how a design does
# with a million pictures.

# %% [markdown]
# ## A light CNN mixes places and channels separately
#
# Convolutional encoders for telephones save by splitting one product in two (MobileNet, [Howard et al.
# 2017](https://arxiv.org/abs/1704.04861)). A full 3x3 kernel lets nine places and all channels meet at once. Instead, a
# **depthwise** kernel lets places meet within each channel, and a **pointwise** matrix lets channels meet at each place.

# %%
quiz("ch17.kernel")

# %% [markdown] tags=["stamped"]
# **The next cell is folded, because it answers this exercise:** [exercise 17.1, A convolution in two cheap
# halves](../exercises/17_other_designs.ipynb). Write yours first, or unfold it.


# %% tags=["answer:designs.depthwise_separable"]
def depthwise_separable(x: Tensor, depthwise: Tensor, pointwise: Tensor) -> Tensor:
    """x [B, C, H, W], depthwise [C, 3, 3], pointwise [D, C] -> [B, D, H, W]"""
    x = F.conv2d(x, depthwise[:, None], padding=1, groups=x.shape[1])  # each channel its own kernel
    return F.conv2d(x, pointwise[:, :, None, None])


# %%
depthwise_separable = use("designs.depthwise_separable", depthwise_separable)

# %% tags=["nbval-check-output"]
x, depthwise, pointwise = torch.randn(2, 64, 8, 8), torch.randn(64, 3, 3), torch.randn(64, 64)
out = depthwise_separable(x, depthwise, pointwise)
full = pointwise[:, :, None, None] * depthwise[None]  # the full kernel that does the same
torch.testing.assert_close(out, F.conv2d(x, full, padding=1), rtol=1e-3, atol=1e-2)
print(expect_shape(out, "2 64 8 8"), "from", depthwise.numel() + pointwise.numel(), "weights")
print("a full kernel has", full.numel())

# %% [markdown]
# What is given up shows in the line with `full`: of all 3x3 kernels only those can be had that are one spatial pattern
# for each input channel, times a matrix. The package's block widens the channels, runs the depthwise kernel, scales each
# channel by what the whole picture says (squeeze and excitation), and narrows again through a matrix of low rank.

# %% [markdown]
# ### A picture can be lost before the first step
#
# Our first CNN learned nothing: after 150 steps it was as good as blind. The cause was not the design. Send 32 pictures
# through an encoder that has not been trained, and ask how much its outputs differ from picture to picture:

# %%
from nanovlm.bench.designs import batches_of


def differences(encoder: nn.Module) -> float:
    """How much the outputs differ between pictures, as a share of how much they vary at all."""
    with torch.no_grad():
        features = encoder(pictures)  # [32, 64, 64]
    return float(features.std(dim=0).mean() / features.std())


torch.manual_seed(0)
cnn, _ = make_design("cnn", seed=0)
pictures = batches_of(cnn, Captions("val", 32), 32)[0]["images"]
as_built = differences(cnn.vision_encoder)

# %%
for module in cnn.vision_encoder.modules():
    if isinstance(module, nn.Conv2d):
        module.reset_parameters()  # torch's own start
as_torch = differences(cnn.vision_encoder)
print(f"started for convolutions: {as_built:.1%} of the variation is between pictures")
print(f"torch's own start:        {as_torch:.1%}")

# %% tags=["claim"]
assert as_torch < 0.02 < 0.5 < as_built

# %% [markdown]
# torch draws a layer's weights so that the variance shrinks to a third behind each of them, and gives it a random bias.
# After a handful of convolutions the bias is all that is left, a LayerNorm makes it large again, and every picture looks
# the same. With weights that keep the variance ([He et al. 2015](https://arxiv.org/abs/1502.01852)) and no bias, most of
# the variation is the picture's. A comparison with the first version would have called a bug a result.

# %%
told("cnn")

# %% [markdown]
# ### Pooled to one vector
#
# Classifiers average the last map, and CNNs made for them come with that average. A vision-language model can take the
# one vector, and repeat it at each of its image tokens. Predict:

# %%
quiz("ch17.pooled")

# %%
told("cnn_pooled")
told("cnn")

# %% [markdown]
# Compare the last two numbers of each. With the map, nearly everything that is named is named in its place. With the
# average, little is named, and much of that in a wrong place. A map keeps for each place what is there; an
# average is a sum over places, in which a shape's colour, form and position have to survive beside those of three other
# shapes. Large models do learn this, with wide vectors and long training: CLIP matches captions by such a vector.

# %% tags=["claim"]
for run in runs["cnn_pooled"]["seeds"].values():
    assert run["places"] < 0.8 * run["things"]
assert all(run["places"] > 0.9 * run["things"] for run in runs["cnn"]["seeds"].values())

# %% [markdown]
# ## Cross-attention keeps the picture out of the sequence
#
# In your model, image tokens are in the sequence and words attend to them with the decoder's own attention. **Flamingo**
# ([Alayrac et al. 2022](https://arxiv.org/abs/2204.14198)) and Llama 3.2 Vision ([Meta 2024,
# section 7](https://arxiv.org/abs/2407.21783)) keep them out: new layers between the decoder's blocks let words look at
# the picture from the side. The decoder's weights can then stay frozen, and a text without a picture is processed as before.

# %% [markdown] tags=["stamped"]
# **The next cell is folded, because it answers this exercise:** [exercise 17.2, Words ask, image tokens
# answer](../exercises/17_other_designs.ipynb). Write yours first, or unfold it.


# %% tags=["answer:designs.cross_attention"]
def cross_attention(words, image, w_q, w_k, w_v, real, num_heads):
    """words [B, T, dim], image [B, N, dim], w_* [dim, dim], real bool [B, N] -> [B, T, dim]"""
    q, k, v = (
        part.unflatten(-1, (num_heads, -1)).transpose(1, 2)  # [B, num_heads, T or N, head_dim]
        for part in (words @ w_q, image @ w_k, image @ w_v)
    )
    has_image = real.any(dim=1, keepdim=True)  # [B, 1]
    seen = (real | ~has_image)[:, None, None]  # a softmax over nothing would be NaN
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~seen, -torch.inf)
    return (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2) * has_image[:, :, None]


# %%
cross_attention = use("designs.cross_attention", cross_attention)

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
words, image = torch.randn(2, 5, 8), torch.randn(2, 3, 8)
real = torch.tensor([[True, True, False], [False, False, False]])  # padded, and no picture
mixed = cross_attention(words, image, *torch.randn(3, 8, 8), real, num_heads=2)
print(expect_shape(mixed, "2 5 8"), "and the row without a picture is", mixed[1].abs().max().item())

# %% [markdown]
# Who looks at whom? The tokens of a row are two words, a picture of four image tokens, and three words. Left, the
# decoder that you know. In the middle, self-attention under cross-attention: no word sees an image token, because the
# picture comes in from the side. Right, a mask that comes later in this chapter.


# %%
def mask_of(name: str) -> Tensor:
    """Who attends to whom in self-attention, [9, 9], for two words, four image tokens, three words."""
    model, seen = build(name, small_vlm()), []
    layout = model.decoder.layout
    model.decoder.layout = lambda *given: seen.append(layout(*given)) or seen[-1]
    placeholder = model.config.image_token_id
    ids = torch.tensor([[7, 8, *[placeholder] * 4, 9, 10, 11]])
    with torch.no_grad():
        model(ids, torch.zeros(1, 3, 64, 64))
    mask = getattr(seen[0][1], "mask", None)
    return torch.ones(9, 9, dtype=torch.bool).tril() if mask is None else mask[0, 0]


names = {"standard": "causal", "cross_attention": "cross-attention", "prefix": "prefix"}
masks_figure({label: mask_of(name) for name, label in names.items()}, "wwiiiiwww")

# %% [markdown]
# ### A gate starts closed and still learns
#
# The new layers have random weights, and a trained decoder in front of random layers forgets what it knew. So what they
# add is multiplied by tanh of a **gate** that starts at 0. It is tempting to be safe twice:

# %%
quiz("ch17.gate")

# %% [markdown] tags=["stamped"]
# **The next cell is folded, because it answers this exercise:** [exercise 17.3, Mend it: a door that disturbs,
# and a door that never opens](../exercises/17_other_designs.ipynb). Write yours first, or unfold it.


# %% tags=["answer:designs.gate"]
class Gated(nn.Module):
    """x [B, T, dim], image [B, N, dim] -> [B, T, dim]; at first x itself."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.gate = layer, nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        return x + torch.tanh(self.gate) * self.layer(x, image)


# %%
Gated = use("designs.gate", Gated)


class Adds(nn.Linear):
    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        return super().forward(image.mean(dim=1, keepdim=True)).expand_as(x)


for zeros in (False, True):
    torch.manual_seed(1)
    gated = Gated(Adds(8, 8, bias=False))
    if zeros:
        nn.init.zeros_(gated.layer.weight)
    optimizer, target = torch.optim.SGD(gated.parameters(), lr=0.5), torch.randn(2, 5, 8)
    for _ in range(100):
        optimizer.zero_grad()
        F.mse_loss(gated(words, image), target).backward()
        optimizer.step()
    opened = torch.tanh(gated.gate).item()
    print(f"layer of zeros: {zeros}; after 100 steps tanh(gate) is {opened:+.3f}")

# %% [markdown]
# One zero in a product is a start; two are a standstill. (LoRA of chapter 15 has the same rule: A is random and B is
# zero.) Now the stored runs. In ours, the decoder is not pretrained, so the gates protect nothing, and words have to
# learn to look while the doors are still opening.

# %%
told("cross_attention")

# %% [markdown]
# ### Fusion by two learned weights on one vector
#
# The article's fusion module is simpler: the picture as one pooled vector, projected, and added to every word with two
# learned weights, which a softmax makes into shares (as [Tan et al. 2019](https://arxiv.org/abs/1911.09070) do between
# feature maps of one network). It is cheap, and the argument against a pooled vector holds for it as well.

# %%
told("pooled_fusion")
fusion = build("pooled_fusion", small_vlm()).decoder.blocks[0].fusion
x, inputs = torch.randn(1, 6, 64), torch.randn(1, 6, 64)
behind = torch.zeros(1, 1, 6, 6, dtype=torch.bool)
behind[..., 1:4] = True  # every token may look at the image tokens 1, 2 and 3
turned = inputs[:, [0, 3, 1, 2, 4, 5]]
same = torch.allclose(fusion(x, inputs, behind), fusion(x, turned, behind), atol=1e-5)
print("image tokens in another order give the same words:", same)

# %% [markdown]
# The mean hides the order of the image tokens, but what is averaged has been through a transformer with position
# embeddings, so a place can be written into the numbers before. Compare the two shares above, *named* and *in their
# place*, with those of the pooled CNN.

# %% [markdown]
# ## A resampler chooses the number of tokens
#
# Pixel shuffle makes 64 patches into 4 tokens by the grid: each token is one corner of the picture. A **resampler**
# ([Jaegle et al. 2021](https://arxiv.org/abs/2103.03206)) has learned queries instead, which attend to the patches.
# Their number is free of the grid, which helps with pictures of any size; in return each query has to learn where to look.

# %% [markdown] tags=["stamped"]
# **The next cell is folded, because it answers this exercise:** [exercise 17.4, Learned queries instead of a
# grid](../exercises/17_other_designs.ipynb). Write yours first, or unfold it.


# %% tags=["answer:designs.resampler"]
class Resampler(nn.Module):
    """[P, N, dim] -> [P, num_queries, dim]"""

    def __init__(self, dim: int, num_queries: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_queries, dim))
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        scores = self.queries @ self.k_proj(features).mT / features.shape[-1] ** 0.5
        return self.queries + scores.softmax(dim=-1) @ self.v_proj(features)


# %%
Resampler = use("designs.resampler", Resampler)

# %% tags=["nbval-check-output"]
for patches in (64, 49, 400):
    tokens = Resampler(64, num_queries=4)(torch.randn(2, patches, 64))
    print(patches, "patches ->", expect_shape(tokens, "2 4 64"))

# %%
told("resampler")
told("standard")

# %% [markdown]
# Both give four tokens. In this task the grid of pixel shuffle is the answer's own grid, four corners, so the comparison
# favours it: say so when you quote the numbers. Idefics2 had a resampler, and its successor Idefics3 [removed
# it](https://github.com/huggingface/transformers/blob/v4.57.0/docs/source/en/model_doc/idefics3.md) for pixel shuffle
# ([Laurençon et al. 2024](https://arxiv.org/abs/2408.12637)). SmolVLM's code is built on that of Idefics3.

# %% [markdown]
# ## No encoder at all
#
# Why not hand patches to the decoder and let it learn to see (**early fusion**; [EVE, Diao et al.
# 2024](https://arxiv.org/abs/2406.11832))? One linear layer for each patch, no pixel shuffle, and 49 image tokens in
# place of 4, at the same cost: what the encoder does not spend, the longer sequence does.

# %%
told("early_fusion")
for name in ("standard", "early_fusion"):
    print(f"{name}: {runs[name]['parameters']:,} parameters")

# %% [markdown]
# Notice two costs that operations do not show. Forty-nine image tokens stay in the KV cache for as long as a conversation
# lasts, in place of four. And there is no trained encoder to start from, so all seeing has to be learned from
# captions. At large scale, that is the price which such models report.

# %% [markdown]
# ## Shared weights save memory, not work
#
# One block can be run through several times, as in the Universal Transformer ([Dehghani et al.
# 2018](https://arxiv.org/abs/1807.03819)) and ALBERT ([Lan et al. 2019](https://arxiv.org/abs/1909.11942)).

# %%
quiz("ch17.sharing")

# %%
for name in ("standard", "shared_blocks"):
    cost = runs[name]["forward_flops"] / runs["standard"]["forward_flops"]
    print(f"{name}: {runs[name]['parameters']:,} parameters, {cost:.0%} of the operations")
told("shared_blocks")

# %% [markdown]
# Here, layers share: all blocks of the encoder have one set of weights, and all blocks of the decoder another. The article
# means something else, weights that *picture and text* share. VLMo ([Bao et al.
# 2021](https://arxiv.org/abs/2111.02358)) sends patches and words through the same attention and leaves each of them an
# MLP of its own. Our design `shared_attention` does so too: each block of the encoder borrows the attention matrices of the
# decoder's block with its number, and uses them without the mask and without rotation.

# %%
joint = build("shared_attention", small_vlm())
for number, block in enumerate(joint.vision_encoder.blocks):
    own = joint.decoder.blocks[number].attn
    print(
        f"block {number}: the decoder's attention is also the encoder's: {block.attn.lender[0] is own}"
    )
cost = runs["shared_attention"]["forward_flops"] / runs["standard"]["forward_flops"]
print(f"{runs['shared_attention']['parameters']:,} parameters, {cost:.0%} of the operations")
told("shared_attention")
told("standard")

# %% [markdown]
# Here this costs nothing. With a tenth fewer weights and the same operations, all three seeds end where those of the
# standard design end, and half-way their ranges overlap. In a model of this size, patches and words do not seem to need an
# attention each.
#
# Keep in mind how little was shared: MLPs, norms and embeddings are separate, and both parts were trained together from
# their first step. Two pretrained parts could not share it without more training, because each has learnt its own.
# SmolVLM joins two such parts, and the list of its modules above shows none that picture and text share.

# %% tags=["claim"]
halves = {
    name: [word_score(run, steps // 2) for run in runs[name]["seeds"].values()]
    for name in ("standard", "shared_attention")
}
assert min(halves["shared_attention"]) < max(halves["standard"])
assert max(halves["shared_attention"]) > min(halves["standard"])
assert all(word_score(run, steps) > 0.98 for run in runs["shared_attention"]["seeds"].values())

# %% [markdown]
# ## Cheaper attention pays behind a length
#
# Softmax attention compares every query with every key, which is T² work. **Linear attention** ([Katharopoulos et al.
# 2020](https://arxiv.org/abs/2006.16236)) replaces exp(q·k) by φ(q)·φ(k). Then the sum over keys can be taken once:

# %%
from nanovlm.designs.cheap_attention import attend_linearly, feature_map

torch.manual_seed(0)
q, k, v = torch.randn(3, 1, 1, 6, 4)  # one head, six tokens, head_dim 4
state, total, rows = torch.zeros(4, 4), torch.zeros(4), []
for t in range(6):
    key, query = feature_map(k[0, 0, t]), feature_map(q[0, 0, t])
    state, total = state + key[:, None] * v[0, 0, t], total + key
    rows.append(query @ state / (query @ total))
torch.testing.assert_close(torch.stack(rows), attend_linearly(q, k, v)[0, 0])
print("a state of", state.numel(), "numbers in place of a cache that grows")

# %% [markdown]
# The state has head_dim² numbers, whatever the length, and so has the work for each token. Against T keys of head_dim
# numbers, that pays behind T = head_dim. Move the lever:


# %%
def attention_work(head_dim: int):
    from nanovlm.viz.generation import lines_figure

    lengths = [16, 64, 128, 256, 512]
    work = {
        "softmax": [2 * 2 * t * t * head_dim / 1e6 for t in lengths],
        "linear": [2 * 2 * t * head_dim**2 / 1e6 for t in lengths],
        "window of 64": [2 * 2 * t * min(t, 64) * head_dim / 1e6 for t in lengths],
    }
    axes = "tokens", "million operations a head"
    return lines_figure(lengths, work, f"head_dim {head_dim}", *axes)


lever(attention_work, head_dim=[32, 64, 128], start={"head_dim": 64})

# %% [markdown]
# A caption with its picture has 35 tokens here and heads of 32 numbers, so there is nothing to gain; the question is only
# what is lost. The other way is a **window**: the last 16 keys, and the first 4 tokens as sinks ([Xiao et al.
# 2023](https://arxiv.org/abs/2309.17453)). The row begins with the start of the turn and the four image tokens, so three
# of these are sinks, and the words of the last corner have lost direct sight of the fourth.

# %%
told("linear_attention")
told("local_attention")

# %% [markdown]
# The window names about three things of four, nearly all in their place: the three corners that its sinks leave in
# sight. Linear attention forgets nothing, and learns more slowly. Its weights are positive and smooth, so that a query
# cannot pick one key among many as sharply as a softmax does.

# %% tags=["claim"]
for run in runs["local_attention"]["seeds"].values():
    assert 0.6 < run["places"] < 0.9

# %% [markdown]
# ## A picture has no reading direction
#
# The causal mask lets image token 3 see 1 and 2, and not 4, although a picture is not written from left to right. A
# **prefix mask** opens the picture to itself: in the figure above, on the right. PaliGemma ([Beyer et al.
# 2024](https://arxiv.org/abs/2407.07726)) does so, and opens the question as well. You wrote this mask in
# [exercise 4.6](../exercises/04_rope_decoder.ipynb).

# %%
told("prefix")

# %% [markdown]
# The encoder's attention is open already, so each of the four image tokens knows of the others before the decoder begins.
# The mask adds six pairs to the 630 that a causal row of 35 tokens has.

# %% [markdown]
# ## Experts take turns
#
# A mixture of experts has several MLPs, of which each token uses one ([Fedus et al.
# 2021](https://arxiv.org/abs/2101.03961)): twice the weights at the work of one.

# %%
quiz("ch17.experts")

# %% [markdown] tags=["stamped"]
# **The next cell is folded, because it answers this exercise:** [exercise 17.7, Each token to one
# expert](../exercises/17_other_designs.ipynb). Write yours first, or unfold it.


# %% tags=["answer:designs.route"]
def route(x, router, experts):
    """x [tokens, dim], router [dim, E] -> ([tokens, dim], the balance loss)"""
    chances = (x @ router).softmax(dim=-1)  # [tokens, E]
    chance, chosen = chances.max(dim=-1)
    out = torch.zeros_like(x)
    for number, expert in enumerate(experts):
        own = (chosen == number).nonzero()[:, 0]
        if len(own):
            out = out.index_add(0, own, chance[own, None] * expert(x[own]))
    shares = torch.bincount(chosen, minlength=len(experts)) / len(x)
    return out, len(experts) * (shares * chances.mean(dim=0)).sum()


# %%
route = use("designs.route", route)


def shares_after(weight: float, steps: int) -> list[float]:
    """Four experts on a toy task, the balance loss with this weight: shares of tokens at the end."""
    torch.manual_seed(1)
    experts, router = [nn.Linear(8, 8) for _ in range(4)], nn.Parameter(0.5 * torch.randn(8, 4))
    x = 1.0 + torch.randn(256, 8)  # tokens have something in common, as embeddings have
    optimizer = torch.optim.Adam([router, *(p for e in experts for p in e.parameters())], lr=0.02)
    for _ in range(steps):
        out, balance = route(x, router, experts)
        loss = F.mse_loss(out, torch.tanh(2 * x)) + weight * balance
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    chosen = (x @ router).argmax(dim=-1)
    return [float((chosen == e).float().mean()) for e in range(4)]


for weight in (0.0, 0.1):
    shares = shares_after(weight, steps=budget().pick(ci=60, laptop=100))
    print(f"balance loss x {weight}:", ", ".join(f"{share:.0%}" for share in shares))

# %% [markdown]
# How one-sided it gets depends on the first weights: with other seeds of this toy, an expert ends with between a half and
# nearly all of the tokens, and with tokens that have nothing in common no expert wins. The balance loss pulls towards
# even shares in each case, at little cost. In the model:

# %%
told("experts")
print(f"{runs['experts']['parameters']:,} parameters for the same operations")

# %% [markdown]
# ### Image tokens that are dropped
#
# Sparse in another way: image tokens that nobody looks at can go ([FastV, Chen et al.
# 2024](https://arxiv.org/abs/2403.06764)). Ours drops half of them behind the first block, those that the picture's own
# tokens attend to least. Which ones go depends on the picture; how many does not. With 2 of 4 tokens left, and each the
# only one that stands for its corner, one might expect half of the things to be lost:

# %%
told("dropped_tokens")

# %% [markdown]
# It loses less than that. Words have seen all four tokens in the first block, and the encoder's attention has let each
# token know of the others. FastV drops half of *576* tokens of a trained model; here we drop half of 4. The implementation
# masks them, so it saves no work yet; taking them out of the sequence would, at the price of rows of different lengths.
# In [exercise 17.5](../exercises/17_other_designs.ipynb) you write the test for the choice.

# %% [markdown]
# ## Where the encoder comes from counts as well
#
# The encoders of nanoVLM and SmolVLM were not new: they come from contrastive training, whose loss you wrote in chapter
# 02. What does that buy? The standard design again, with an encoder that has first seen the same pictures beside their
# captions, for one pass of SigLIP's loss. It is then frozen, or trained on. Beside both is the same with a new encoder.
# The contrastive pass is extra work, so this table is *not* at equal cost.

# %%
encoders = stored_runs("17_encoders")
for name, run in encoders.items():
    found = list(run["seeds"].values())
    half, last = (mean(word_score(one, step) for one in found) for step in (steps // 2, steps))
    print(
        f"{name:20} right words {half:4.0%} half-way, {last:4.0%} at the end ({len(found)} seeds)"
    )
held_out = runs["standard"]["held_out"]
recall = [one["recall"] for one in encoders["contrastive"]["seeds"].values()]
for way in recall[0]:
    guessing = int(way[-1]) / held_out
    print(f"{way}: {mean(one[way] for one in recall):.0%} of {held_out} (guessing: {guessing:.0%})")

# %% [markdown]
# An encoder that was never trained does nearly as well as one that was: the projector reads sixteen patches with a
# matrix of its own, and random features of a few coloured shapes keep most of what it needs. And contrastive training,
# which does find the caption of a picture among others far more often than guessing, has bought nothing here: with each
# seed, its encoder ends behind the new one. Its loss asks for one averaged vector a picture, while a decoder reads
# patches; whether that is the reason we have not examined. The seeds are few, so read the table as "no gain".
#
# So this table does not say that contrastive training is useless. It says that a task which random features solve cannot
# measure an encoder. SigLIP saw billions of pairs, and there a frozen random encoder would answer nothing.

# %% tags=["claim"]
last = {
    name: mean(word_score(one, steps) for one in run["seeds"].values())
    for name, run in encoders.items()
}
assert last["new"] - 0.1 < last["new, frozen"] and last["contrastive, frozen"] < last["new"]
pairs = zip(*(encoders[name]["seeds"].values() for name in ("contrastive", "new")), strict=True)
assert all(word_score(one, steps) < word_score(other, steps) for one, other in pairs)
assert mean(one["caption of a picture, first 1"] for one in recall) > 0.1

# %% [markdown]
# ## All designs in one chart
#
# Cost against the standard's on the left, parameters, and the score on the right; each dot is a seed. The lever moves
# between the words half-way, the words at the end, and the things that a written caption names in their place.


# %%
def chart(score: str):
    take = {
        "right words half-way": lambda run: word_score(run, steps // 2),
        "right words at the end": lambda run: word_score(run, steps),
        "things in their place": lambda run: run["places"],
    }[score]
    rows = {
        name: Row(
            run["forward_flops"] / runs["standard"]["forward_flops"],
            run["parameters"],
            [take(one) for one in run["seeds"].values()],
        )
        for name, run in runs.items()
    }
    floor = blind if "words" in score else None
    return chart_figure(f"{len(rows)} designs, {steps} steps, equal cost", rows, score, floor)


choices = ["right words half-way", "right words at the end", "things in their place"]
lever(chart, score=choices, start={"score": "right words half-way"})

# %% tags=["claim"]
costs = [run["forward_flops"] / runs["standard"]["forward_flops"] for run in runs.values()]
assert all(0.95 <= cost <= 1.05 for cost in costs) and len(runs) == len(DESIGNS)

# %% [markdown]
# Read it in three groups. Designs that leave the short way from patch to word as it was (shared weights, experts, the
# prefix mask) learn as fast as the standard one. Those that take information away (pooled vectors, dropped tokens, a
# window) or put an encoder that is harder to train in front are behind. And those that put something *to be learned*
# between patch and word (a query's aim, a gate, an encoder inside the decoder) are behind as well, after so few steps.

# %% tags=["claim"]
ends = {
    name: mean(word_score(one, steps) for one in run["seeds"].values())
    for name, run in runs.items()
}
as_fast = ("standard", "prefix", "shared_blocks", "shared_attention", "experts")
assert min(ends[name] for name in as_fast) > 0.93
assert max(ends[name] for name in ("resampler", "cross_attention", "pooled_fusion")) < 0.93
assert max(ends[name] for name in ("early_fusion", "cnn_pooled", "linear_attention")) < 0.93

# %% [markdown]
# Where ranges overlap, these seeds do not tell two designs apart. Look at the dots of the CNN: with one seed alone you
# would have reported another number, and perhaps another rank. Equal operations are not equal time either. These are
# the same runs by the seconds of processor time that they took on one thread:

# %%
own = mean(one["seconds"] for one in runs["standard"]["seeds"].values())
for name in ("cnn", "linear_attention", "early_fusion", "experts", "resampler"):
    took = mean(one["seconds"] for one in runs[name]["seeds"].values())
    print(f"{name:18}{took / own:.1f} times the standard design's time")

# %% [markdown]
# ## What this comparison does not show
#
# - **Scale.** 0.3 M parameters, 2,400 pictures of 64 pixels, one task. Cross-attention and experts were made for models
#   a thousand times as large, and a gate protects a decoder that has something to lose.
# - **Tuning.** All designs have the standard design's recipe. Its learning rates were chosen for it, and Muon, which
#   trains its matrices, does not take convolution kernels; those are left to AdamW. A design that trails here may trail
#   for that reason.
# - **The task's grid.** Four image tokens for four corners suit pixel shuffle.
#
# An honest sentence about such a chart names all three.

# %% [markdown]
# ## Where this lives in the package
#
# In `nanovlm/designs/`: one file for each idea, `registry.py` with `build` and `load`, and `marked.py`, a decoder that
# knows which of its inputs are image tokens. The chart is `python -m nanovlm.bench.designs --seeds 0 1 2 --out FILE`,
# the table of encoders `python -m nanovlm.bench.frozen_encoders --seeds 0 1 2 --out FILE`. A test holds every design to
# the 5 %, and to saving and loading bit by bit.
#
# What you take along:
#
# - Change one part, keep data, steps and cost, and report seeds. Count the cost, because parameters are not work.
# - A part that learns nothing may be broken rather than bad: look at what it gives before the first step.
# - Whatever is averaged over places has to have its place written in before.
# - A gate starts at zero, and nothing behind it does.
# - SmolVLM has none of these designs. It is a plain model with good data, and its code says so in a minute.
#
# In the wild: [Llama 3.2 Vision's gated
# layers](https://github.com/huggingface/transformers/blob/v4.56.0/src/transformers/models/mllama/modeling_mllama.py) and
# [Idefics2's
# resampler](https://github.com/huggingface/transformers/blob/v4.56.0/src/transformers/models/idefics2/modeling_idefics2.py).
#
# **A challenge**, without a solution: a design of your own that costs no more and sees more after 150 steps. It is
# at the end of the exercises.

# %% [markdown] tags=["stamped"]
# ## Your turn
#
# [Open the exercises](../exercises/17_other_designs.ipynb) ([in Colab][exercises]): 7 of them, about 1.7 hours.
#
# [exercises]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/exercises/17_other_designs.ipynb
#
# | | exercise | difficulty | minutes |
# |---|---|---|---|
# | 17.1 | A convolution in two cheap halves (`designs.depthwise_separable`) | ●○○ | 10 |
# | 17.2 | Words ask, image tokens answer (`designs.cross_attention`) | ●●○ | 18 |
# | 17.3 | Mend it: a door that disturbs, and a door that never opens (`designs.gate`) | ●●○ | 12 |
# | 17.4 | Learned queries instead of a grid (`designs.resampler`) | ●●○ | 15 |
# | 17.5 | Write the test: which image tokens stay? (`designs.drop_test`) | ●●○ | 15 |
# | 17.6 | Measure it: how many blocks cost the same? (`designs.equal_cost`) | ●●○ | 12 |
# | 17.7 | Each token to one expert (`designs.route`) | ●●● | 20 |
