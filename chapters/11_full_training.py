# %% [markdown]
# # 11 Full training
#
# You take the course's code from a laptop to a free T4 or a rented H100: the sums to do before a run, trained backbones
# that really arrive, a run that survives a disconnect, several GPUs that train like one, and a card that can be believed.
# About an hour; the code runs in two minutes on a laptop, with small stand-ins for the real backbones.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [← 10 Evaluation](10_evaluation.ipynb) ·
# [12 Shape tracing →](12_shape_tracing.ipynb) ·
# [exercises](../exercises/11_full_training.ipynb) ·
# [notation and terms](notation.md)
#
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/chapters/11_full_training.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/chapters/11_full_training.ipynb

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
# 1. say before a run what it takes in hours, memory, disk and money, and compare what happened with what you said;
# 2. start from SigLIP and SmolLM2, prove that their weights arrived, and run on a T4, an H100 or several GPUs, through
#    disconnects, without changing what is computed;
# 3. diagnose a run from its log, and publish a model with numbers that hold.

# %% [markdown]
# **You need** the model of chapter 06; training (08), evaluation (10) and the tracer's FLOPs (12) help and are named
# where they are needed. **Time**: an hour; the exercises take a little more than two, and the capstone project at their
# end days.

# %%
import math
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F

# %%
from nanovlm import VisionLanguageModel
from nanovlm.assets import asset_path
from nanovlm.config import Preset, TrainConfig, VLMConfig, presets
from nanovlm.course import budget, lever, quiz, use

folder = Path(tempfile.mkdtemp())  # where this chapter's runs and models go
print(f"{budget().name}: {budget().reason}")

# %% [markdown]
# On `ci` and `laptop` the backbones are small ones with random weights and the data is the Thimble. On `t4` and `h100`
# the same cells fetch the real ones, and run the first steps of the real training.
#
# ## The question: what can you afford?
#
# You have a free T4 for four hours, or an H100 for a few dollars an hour. What can be trained in that time?

# %%
quiz("ch11.four_hours")

# %% [markdown]
# ## Four lines of arithmetic give the hours
#
# A training step is matrix products, and their number is known before anything runs. The tracer of chapter 12 counts
# them on the meta device, where tensors have a shape and no memory. Here are the FLOPs (floating-point operations) of
# one sample of the published model, nanoVLM-222M: one picture of 224 pixels and a row of 128 tokens.

# %%
from nanovlm.trace import trace

large = VLMConfig()  # SigLIP-B/16 at 224 pixels, SmolLM2-135M
with torch.device("meta"):  # shapes without memory
    whole = VisionLanguageModel(large)
    image, tokens = torch.empty(1, 3, 224, 224), torch.empty(1, 128, 576)
vision = trace(lambda x: whole.projector(whole.vision_encoder(x)), image).flops
text = trace(lambda x: whole.decoder.head(whole.decoder(x)), tokens).flops
sample_flops = vision + text
for name, flops in (("picture", vision), ("text", text), ("forward", sample_flops)):
    print(f"{name:8}{flops / 1e9:6.1f} GFLOP")

# %% [markdown]
# The backward pass computes two products for each one of the forward pass, one for the gradient of the input and one for
# that of the weight. Training therefore costs three times the forward pass, and a run is
#
# $$\text{hours} = \frac{3 \cdot \text{FLOPs per sample} \cdot \text{samples}}{\text{peak} \cdot \text{utilisation} \cdot 3600}$$

# %% [markdown]
# The **peak** is what the GPU's tensor cores can do, from its data sheet. The **utilisation** is the share of it that
# the run reaches. Only the utilisation is in your hands. The published run took about six hours on one H100 for 1.7
# million samples, by nanoVLM's [README at v0.1](https://github.com/huggingface/nanoVLM/blob/v0.1/README.md), but [its
# curve](https://github.com/huggingface/nanoVLM/blob/v0.1/assets/nanoVLM-222M-loss.png) goes on to step 32,700, which at
# 256 samples a step is about five epochs of them.

# %%
quiz("ch11.utilisation")

# %%
published = 32_700 * 256  # steps times batch, from the published training curve
six_hours = 6 * 3600 * 989e12  # what an H100 could have done, dense bfloat16
share = 3 * sample_flops * published / six_hours
rate = published / 6 / 3600
print(f"{published / 1e6:.1f} M samples in 6 h: {rate:.0f} samples/s, {share:.1%} of the peak")

# %% [markdown]
# The peaks below are the *dense* ones of NVIDIA's data sheets, in float16 on the T4, which has no bfloat16, and in
# bfloat16 elsewhere. The sheets also print one for sparse products, twice as high. The function is exercise 11.1; the
# chapter takes yours if it passes.

# %%
PEAK = {"T4": 65, "3090": 71, "L4": 121, "4090": 165, "A100": 312, "H100": 989}  # TFLOP/s, dense
training_hours = use("full.flops_to_hours")


def hours(samples: int, utilisation: float) -> dict[str, float]:
    token = text / 128
    sample = (vision, token, 128, samples)
    return {gpu: training_hours(*sample, peak, False, utilisation) for gpu, peak in PEAK.items()}


# %%
from nanovlm.viz.full_training import hours_figure, logs_figure, memory_figure, ranks_figure

AMOUNTS = {
    "256 k (a taste)": 256_000,
    "1.7 M (one epoch)": 1_700_000,
    "8.4 M (published)": published,
}


def hours_image(samples: str, utilisation: float):
    rule = f"{samples} samples of 222M at {utilisation:.0%} of the peak: an estimate"
    return hours_figure(hours(AMOUNTS[samples], utilisation), "Hours on one card", rule, limit=4)


lever(hours_image, samples=list(AMOUNTS), utilisation=[0.25, 0.08, 0.35, 0.45])

# %% [markdown]
# The red line is your four hours. Move the utilisation: between 8 % and 35 % lies more than between an A100 and an
# H100.
#
# All of these are estimates: a utilisation of 25 % on your machine is a hope until you have measured it.

# %% [markdown]
# ### Money and energy follow from the hours
#
# Prices change every week, so put in your own. The power is the limit on the cards' data sheets.

# %%
price = {"T4": 0.35, "A100": 1.60, "H100": 2.50}  # dollars an hour: examples, look up yours
watts = {"T4": 70, "A100": 400, "H100": 700}
for gpu, per_hour in price.items():
    time_needed = hours(published, 0.25)[gpu]
    energy = time_needed * watts[gpu] / 1000
    cost = time_needed * per_hour
    print(f"{gpu:5} {time_needed:5.1f} h   {cost:6.2f} $   {energy:5.1f} kWh at most")

# %% [markdown]
# At equal utilisation and at these prices the most expensive card gives the cheapest run, and it takes the least
# energy. On an H100 an equal utilisation is harder to reach, because the same loader has to feed a card that is fifteen
# times as fast as a T4.

# %% [markdown]
# ## Memory has four parts, and one of them grows with the batch
#
# Weights, gradients and the optimizer's state do not depend on the batch. Activations do: they are what the forward pass
# keeps for the backward pass.

# %%
quiz("ch11.memory")

# %% [markdown]
# How much is kept can be measured without computing anything. On the **meta device** tensors have a shape and no
# memory, and autograd has a hook that sees every tensor that it keeps. You write this measurement in exercise 11.3;
# here is the package's, on the full model. It assumes that twenty of a row's 128 tokens belong to answers, for which
# alone the model computes its 49,152 logits.

# %%
from nanovlm.bench.memory import activation_bytes

row = {}
for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
    row[name] = activation_bytes(large, rows=2, length=128, supervised=20, dtype=dtype) // 2
    print(f"{name}: a row keeps {row[name] / 2**20:.0f} MiB")

# %%
memory_plan = use("full.memory_plan")
with torch.device("meta"):
    models = {name: VisionLanguageModel(large).to(getattr(torch, name)) for name in row}


def plans(rows: int) -> dict[str, tuple[float, float, float, float]]:
    return {f"{name}, {rows} rows": memory_plan(models[name], rows, row[name]) for name in row}


def memory_image(rows: int):
    title = "Training 222M with AdamW, by the plan"
    return memory_figure(plans(rows), title, 15.0, "what a T4 leaves you")


assert sum(plans(16)["float32, 16 rows"]) < 15 < sum(plans(48)["float32, 48 rows"])
lever(memory_image, rows=[16, 4, 32, 48, 64])

# %% [markdown]
# Sixteen rows in float32 fit into a T4, forty-eight do not. (A T4 has 16 GB. About 15 GiB are there for programs, and
# CUDA's own context is among them, so stay a GiB below that.) On a T4 the products run in float16 under autocast, so
# what is kept of a row is between the two. Autocast also keeps a float16 copy of each matrix for the step, 0.4 GiB
# here, which neither bar contains. The attention on the meta device keeps its probabilities, which a fused kernel
# computes again, so the true number is lower.

# %% [markdown]
# Weights, gradients and moments can be counted after one real step, on any machine; we do it with the pocket model.

# %%
one_step = VisionLanguageModel.from_pretrained(asset_path("pocket"))
optimizer = torch.optim.AdamW(one_step.parameters())
parameters = list(one_step.parameters())
for p in parameters:
    p.grad = torch.zeros_like(p)
optimizer.step()
state = [t for s in optimizer.state.values() for name, t in s.items() if name.startswith("exp_avg")]

# %%
gradients = [p.grad for p in parameters]
counted = [sum(t.nbytes for t in ts) / 2**20 for ts in (parameters, gradients, state)]
planned = [1024 * part for part in memory_plan(one_step, 1, 0)[:3]]
for part, a, b in zip(("weights", "gradients", "optimizer"), planned, counted, strict=True):
    print(f"{part:10} planned {a:6.2f} MiB, counted {b:6.2f} MiB")
    assert math.isclose(a, b, rel_tol=1e-6)

# %% [markdown]
# ### Gradient checkpointing keeps less and computes more
#
# Where a batch does not fit there are three ways out: smaller batches with more accumulation (chapter 08), gradient
# checkpointing, and fewer trained weights, which comes below.
#
# **Gradient checkpointing** ([Chen et al. 2016](https://arxiv.org/abs/1604.06174)) keeps only the input of each block,
# and computes the block a second time when the backward pass reaches it. Predict what that does to memory, work and
# gradient. We measure one step of the small model of chapter 08, and plan the 222M model:

# %%
from nanovlm.bench.memory import step_bytes
from nanovlm.bench.training_runs import small_recipe, small_vlm
from nanovlm.training.plan import activation_numbers

for again in (False, True):
    step = small_recipe(optimizer="adamw", max_length=128, gradient_checkpointing=again)
    measured = step_bytes(small_vlm(), step) / 2**20
    planned = 4 * activation_numbers(large, 128, checkpointing=again) / 2**20
    print(f"checkpointing {again!s:6} the small model's step: {measured:5.1f} MiB at the peak,")
    print(f"    a row of 222M keeps {planned:4.0f} MiB by the plan")

# %%
from collections import Counter

from nanovlm.bench.sizes import make_batch

tiny, batch = VisionLanguageModel(small_vlm()).train(), make_batch(small_vlm(), 4, 64)
passes, gradients = Counter(), []
for block in (*tiny.vision_encoder.blocks, *tiny.decoder.blocks):
    block.register_forward_pre_hook(lambda *_: passes.update(["begun"]))
for again in (False, True):
    passes.clear()
    tiny.zero_grad()
    tiny.gradient_checkpointing(again)
    tiny(batch["input_ids"], batch["images"], targets=batch["targets"]).loss.backward()
    gradients.append(torch.cat([p.grad.flatten() for p in tiny.parameters()]))
    print(f"checkpointing {again!s:6} blocks computed: {passes.total()}")
print("the gradients are equal to the last bit:", torch.equal(*gradients))

# %% tags=["claim"]
assert torch.equal(*gradients)

# %% [markdown]
# The gradient is the same, at the price of a second forward pass, which is a third more work. The option of `nanovlm
# train` is `--gradient-checkpointing True`.

# %% [markdown]
# ### Disk and main memory run out as well
#
# A checkpoint holds the weights and both moments in float32. The course keeps two, writes a third before it drops the
# older one, and keeps the best model beside them. Data takes either disk (the_cauldron is some 170 GB by the plan's
# guess) or, as a stream, main memory for a shuffle buffer.

# %%
million = sum(p.numel() for p in whole.parameters()) / 1e6
checkpoint, best = 12 * million / 1000, 4 * million / 1000  # GB
print(f"{million:.0f} M weights: checkpoints of {checkpoint:.1f} GB, a best model of {best:.1f} GB")
print(f"three checkpoints and the best model: {3 * checkpoint + best:.1f} GB")

# %% [markdown]
# `nanovlm plan` says 9.8 GB, because it counts a new best model beside the old one, which goes only when the new one is
# whole. Google's free Drive has 15 GB, and what a program deletes in a mounted Drive still counts, because it goes to
# Drive's bin ([an issue that describes it](https://github.com/minimaxir/gpt-2-simple/issues/155)). A whole run of the
# preset `colab` writes thirteen checkpoints, 35 GB, so empty the bin while it goes on.
#
# ## Trained parts come under other names
#
# A vision-language model need not begin from nothing. SigLIP has seen pictures with captions, SmolLM2 has read text,
# and only the projector between them has everything to learn. Their tensors have other names than ours. On a laptop,
# two small ones stand in for them.

# %%
from nanovlm.course.small_backbones import compare, small_llama, small_siglip

siglip = budget().pick(ci=str(small_siglip(folder / "siglip")), t4="google/siglip-base-patch16-224")
llama = budget().pick(ci=str(small_llama(folder / "llama")), t4="HuggingFaceTB/SmolLM2-135M")

# %%
from nanovlm.files import find_directory, read_tensors

stored = {
    "siglip": read_tensors(find_directory(siglip)),
    "llama": read_tensors(find_directory(llama)),
}
for kind, tensors in stored.items():
    shown = [name for name in tensors if "layers.0.self_attn" in name and "weight" in name]
    print(kind, len(tensors), "tensors, among them")
    print("\n".join(f"    {name} {list(tensors[name].shape)}" for name in shown))

# %% [markdown]
# Three of SigLIP's tensors, for queries, keys and values, are one of ours, stacked; all others only change their names.
# You write this mapping in exercise 11.4. What can go wrong with it? PyTorch offers `strict=False`, with which loading
# never fails. Here is what it does with names that do not fit:

# %%
from nanovlm.models.vision_transformer import ViT
from nanovlm.weights.backbones import load_language_backbone, load_vision_backbone

encoder = load_vision_backbone(siglip)
victim = ViT(encoder.config)
before = [p.clone() for p in victim.parameters()]
report = victim.load_state_dict(stored["siglip"], strict=False)
changed = sum(not torch.equal(a, b) for a, b in zip(before, victim.parameters(), strict=True))
print(f"loaded without an error; parameters that changed: {changed} of {len(before)}")
print(f"(the return value, which nobody looks at, names {len(report.missing_keys)} missing keys)")

# %% [markdown]
# Not one number arrived, and the run would begin. Its loss would fall, too, because the rest of the model learns. The
# package loads strictly and names what is missing, left over or of another shape.
#
# ### Strict names are not enough, so compare the features
#
# A tensor in the wrong place has the right shape. The proof that a backbone arrived is that it computes what the library
# computes, from the same files, before the first step.

# %%
torch.manual_seed(0)
size = encoder.config.image_size
print(compare("siglip", str(find_directory(siglip)), encoder, torch.randn(2, 3, size, size)))
language = load_language_backbone(llama)
print(compare("llama", str(find_directory(llama)), language, torch.randint(0, 400, (2, 9))))

# %% [markdown]
# Now exchange queries and keys in one block, which changes no name and no shape.

# %%
swapped = load_vision_backbone(siglip)
with torch.no_grad():
    weight = swapped.blocks[0].attn.qkv_proj.weight
    q, k, v = weight.chunk(3)
    weight.copy_(torch.cat([k, q, v]))
print(compare("siglip", str(find_directory(siglip)), swapped, torch.randn(2, 3, size, size)))

# %% [markdown]
# The test that would have noticed is exercise 11.5. For another size of picture the positions are resized, as in
# chapter 01: `load_vision_backbone(…, image_size=512)`.

# %% [markdown]
# ## A new token should be an average one
#
# The decoder's vocabulary has no image placeholder. It needs a row more, in the embedding and in the head, which for
# SmolLM2 are the same matrix. What should be in it?

# %%
quiz("ch11.new_rows")

# %%
rows = language.token_embedding.weight.detach()  # [vocab_size, dim]
start = torch.randint(0, 400, (8, 24), generator=torch.Generator().manual_seed(1))
with torch.no_grad():
    x = language(language.token_embedding(start))[:, :-1].flatten(0, 1)  # [tokens, dim]
wanted = start[:, 1:].flatten()

# %%
print(f"without new rows: loss {F.cross_entropy(x @ rows.T, wanted):.2f}")
for name, new in (
    ("the mean", rows.mean(dim=0, keepdim=True)),
    ("random, deviation 1", torch.randn(1, rows.shape[1])),
):
    logits = x @ torch.cat([rows, new]).T  # [tokens, vocab_size + 1]
    taken = logits.softmax(dim=-1)[:, -1]
    loss = F.cross_entropy(logits, wanted)
    print(f"{name:20} loss {loss:6.2f}; the new token takes {taken.mean():.1%} on average")

# %% [markdown]
# A token that nobody has asked for takes a share of the probability from all others, for no reason but the length of its
# row. The mean of the old rows gives it the logit of an average token
# ([Hewitt 2021](https://nlp.stanford.edu/~johnhew/vocab-expansion.html) bounds the harm). Exercise 11.6 adds the rows,
# keeps tied what was tied, and rounds up to a multiple of 64, which the matrix units of a GPU prefer.

# %% [markdown]
# ## Joined, and before the first step
#
# `build_model` does all of this: both backbones, strictly; the new rows; a projector that has yet to learn.

# %%
from nanovlm.weights.from_preset import build_model

small = Preset(
    VLMConfig(tokenizer=str(asset_path("pocket"))),
    TrainConfig(dataset_size=200, val_size=16, batch_size=4),
)
small.vlm.vision.image_size = 64
small.vision_backbone, small.language_backbone = siglip, llama
preset = budget().pick(ci=small, t4=presets()["colab"])
torch.manual_seed(0)
model = build_model(preset)
for name, part in model.named_children():
    print(f"{name:16}{sum(p.numel() for p in part.parameters()) / 1e6:8.2f} M")

# %% [markdown]
# Then the sanity ladder of chapter 08: it takes a minute, and a wrong run takes a night. First: the loss at step 0. A
# model that knows nothing has $\ln V$ (for SmolLM2 $\ln 49{,}152 = 10.8$); trained text weights should be better than
# that, and never much worse.

# %%
from nanovlm.data.loading import get_dataloaders
from nanovlm.device import find_device
from nanovlm.training.step import forward

sanity = TrainConfig(dataset_size=8, val_size=4, batch_size=4)  # the Thimble, in this model's size
loader, _ = get_dataloaders(sanity, model.config, model.tokenizer, model.image_processor)
batch, device = next(iter(loader)), find_device()
model.to(device)
first = forward(model, batch, device).loss
expected = math.log(model.config.language.vocab_size)
print(f"loss at step 0: {first.item():.2f}; ln V = {expected:.2f}")

# %%
first.backward()
untouched = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
print("without a gradient:", untouched or "none")

# %% [markdown]
# (With stand-ins it may be above.) Second: every parameter has a gradient. Third: can it learn a
# handful of samples by heart?

# %%
adam, steps = torch.optim.AdamW(model.parameters(), lr=budget().pick(ci=3e-3, t4=1e-4)), 25
for _ in range(steps):
    loss = forward(model, batch, device).loss
    adam.zero_grad()
    loss.backward()
    adam.step()
print(f"the same four samples: {first.item():.2f} before, {loss.item():.2f} after {steps} steps")

# %% [markdown]
# It falls far below what it was. That proves no seeing (chapter 08), only that gradients, labels and optimizer are
# connected.

# %% [markdown]
# ## On a Colab T4, from end to end
#
# Open this notebook in Colab with the badge above, choose *Runtime → Change runtime type → T4*, and mount your Drive, so
# that checkpoints outlive the machine. The cells marked "not executed" are for you to run.

# %% tags=["skip-execution", "nbval-skip"]
from google.colab import drive

drive.mount("/content/drive")

# %% [markdown]
# **Smoke run first.** Before the real run, do everything that it does, once: load, train, validate, save, resume, answer.
# The command below does all but the resume. For that, run it a second time with `--max-steps 30 --resume`.

# %% tags=["skip-execution", "nbval-skip"]
# !nanovlm train --preset colab --max-steps 20 --eval-every 10 --save-every 10 --data-cutoff-idx 5000 \
#     --output-dir /content/drive/MyDrive/nanovlm --run-name smoke

# %% [markdown]
# On the machine in front of you the same thing is a call of `train`:

# %%
from nanovlm.training.loop import train

smoke = preset.train
smoke.max_steps, smoke.eval_every, smoke.save_every, smoke.log_every = budget().pick(
    ci=(4, 4, 2, 2), t4=(20, 10, 10, 5)
)
smoke.accuracy_images, smoke.output_dir, smoke.run_name = 0, str(folder), "smoke"
run = train(smoke, model)
print(f"step {run.step}, best validation loss {run.best_val_loss:.2f}")
print("saved:", *sorted(p.name for p in (run.directory / "checkpoints").iterdir()))

# %% [markdown]
# **The real run.** The preset `colab` makes batches of 16 rows and adds up 16 of them, which are the published 256
# samples a step, and reads the data as a stream. Its 3,000 steps are about a tenth of the published ones. `nanovlm plan
# --preset colab --machine T4` does all the sums of this chapter, and `nanovlm train --preset colab --estimate --machine T4`
# does them for the run that you are about to start, with any option that you change.

# %%
from nanovlm.training.plan import MACHINES, UTILISATIONS, plan

colab = presets()["colab"]
estimate = plan(colab.vlm, colab.train, MACHINES["T4"], utilisation=0.25)
print(estimate)
assert estimate.memory_bytes < 15e9 and estimate.disk_bytes + (estimate.download_bytes or 0) < 70e9

# %%
for utilisation, what in UTILISATIONS.items():
    there = plan(colab.vlm, colab.train, MACHINES["T4"], utilisation=utilisation)
    print(f"{utilisation:4.0%} {there.hours:6.1f} h   {what}")

# %% [markdown]
# By the plan the run stays under 15 GB of GPU memory and far under 70 GB of disk. Nobody has made this run on a T4 yet:
# these are sums.

# %% [markdown]
# The plan does not say whether the loader keeps up. At 25 % the two CPU cores of a free Colab have to fetch, decode and
# resize 84 pictures a second. `nanovlm bench --loader` measures how many one core decodes, and the smoke run writes its
# samples per second into `metrics.jsonl`: divide 768,000 by *that* number to know the seconds. If the session is shorter,
# the run goes on in the next one, as below.
#
# Before you start, delete the smoke run, which takes 6 GB of your Drive, and empty the bin. Restart the session, because
# this notebook still occupies part of the GPU's memory, mount the Drive again, and run the next cell alone.

# %% tags=["skip-execution", "nbval-skip"]
# !nanovlm train --preset colab --output-dir /content/drive/MyDrive/nanovlm --run-name first

# %% [markdown]
# ### A T4 has no bfloat16, and float16 loses small gradients
#
# On a T4 `choose_precision` takes float16, which holds nothing between zero and about $6 \cdot 10^{-8}$. So the
# **gradient scaler** of chapter 08 multiplies the loss, and with it every gradient, by a large number, and divides before
# the step.

# %%
gradients = torch.tensor([1e-3, 1e-6, 3e-8, 1e-9])
print("float16:          ", gradients.half().tolist())
print("scaled by 65,536: ", (gradients * 65_536).half().float().div(65_536).tolist())
print(
    "too large a loss: ",
    (torch.tensor(2.0).half() * 65_536).item(),
    "- the scaler skips this step and halves the scale",
)

# %% [markdown]
# Steps that are skipped at the beginning are the scaler finding its scale.

# %% [markdown]
# ## A disconnect must change nothing
#
# A free notebook can end at any moment, without a signal. Let us end one on purpose. A small run, as a process of its
# own, first without a disturbance:

# %%
from nanovlm.course.small_run import SAVE_EVERY, launch

undisturbed = launch(folder / "whole")
print(f"{len(undisturbed)} steps, a checkpoint every {SAVE_EVERY}")

# %% [markdown]
# Then the same run again, which is killed (`kill -9`) as soon as its log shows step 7, in the middle of whatever it is
# doing, and then started again with `--resume`.

# %%
cut = launch(folder / "cut", kill_at=7)
print(f"killed when the log had reached step {max(cut)}; on disk:")
left = folder / "cut" / "small" / "checkpoints"
print(*sorted(p.name for p in left.iterdir()))
print("it can go on from step", use("full.resume_after_disconnect")(left)["step"])

# %%
resumed = launch(folder / "cut", resume=True)
print(f"{'step':>5}{'undisturbed':>14}{'killed, resumed':>18}")
for step in (4, 5, 8, 9, max(undisturbed)):
    print(f"{step:5}{undisturbed[step]:14.6f}{resumed[step]:18.6f}")
assert resumed == undisturbed

# %% [markdown]
# All losses are equal, to the last bit. For that a checkpoint holds all that chapter 08 lists, and is renamed when it
# is whole. This was a CPU. On a GPU some operations add in an order that changes from one run to the next ([PyTorch's
# notes](https://docs.pytorch.org/docs/2.13/notes/randomness.html)), so there compare two undisturbed runs first: a
# resumed one may differ by as much as they do.
#
# In a mounted Drive things are less tidy: files arrive in part, twice, or with the date of the synchronisation. The
# resume cell for that is exercise 11.9. Here is what a later session runs:

# %% tags=["skip-execution", "nbval-skip"]
# !nanovlm train --preset colab --output-dir /content/drive/MyDrive/nanovlm --run-name first --resume

# %% [markdown]
# ## On an H100 the loader may be too slow
#
# **Nobody has run this path to its end in this project.** What follows is how to do it and how to measure. The command
# is one line. Without `--stream True` it first downloads the data, by the plan's guess 170 GB. The ladder below is a
# plan for a morning:

# %% tags=["skip-execution", "nbval-skip"]
# !nanovlm train --preset h100 --output-dir runs --run-name published

# %% [markdown]
# | step of the ladder | what it removes | measured by this project |
# |---|---|---|
# | 1. count the time in which the GPU waits for data | guessing | on CPUs only |
# | 2. as many workers as cores; pictures as 8-bit numbers up to the GPU | decoding in the way of the step | no |
# | 3. bfloat16 with float32 copies of the weights | half of the memory traffic | no |
# | 4. the fused optimizer | thousands of small kernels a step | no |
# | 5. `--compile` | time between operations | no |
# | 6. `--packing`, with document boundaries | computing on padding | no |
#
# The preset `h100` begins high on this ladder: of these only `--packing` is off. `nanovlm bench --preset h100 --ladder`
# begins at the bottom, with generated pictures and random weights, and prints the samples per second of each step. Step
# 1 needs no GPU. How much of a step here is waiting for data, and which share of this processor's peak, measured with
# one large product of matrices, does the rest reach?

# %%
pocket = VisionLanguageModel.from_pretrained(asset_path("pocket"))
timing = TrainConfig(dataset_size=400, val_size=16, batch_size=8)
loader, _ = get_dataloaders(timing, pocket.config, pocket.tokenizer, pocket.image_processor)
batches, waited, computed = iter(loader), 0.0, 0.0
next(batches)
for _ in range(4):
    start = time.perf_counter()
    batch = next(batches)
    middle = time.perf_counter()
    pocket(batch["input_ids"], batch["images"], targets=batch["targets"]).loss.backward()
    waited, computed = waited + middle - start, computed + time.perf_counter() - middle
print(f"waiting for data {waited / (waited + computed):.0%} of the time, without workers")

# %%
from nanovlm.training.plan import this_cpu
from nanovlm.training.step_cost import training_flops

answers = int((batch["targets"] != -100).sum())
flops = 4 * training_flops(pocket.config, *batch["input_ids"].shape, answers)  # four such steps
print(f"{flops / computed / 1e9:.0f} GFLOP/s while it computes, ", end="")
print(f"{flops / computed / this_cpu().tflops / 1e12:.0%} of the peak")

# %% [markdown]
# By the plan's list of machines an H100 has ten thousand times the peak of two laptop cores, while the pictures are
# decoded by CPU cores in both cases. That is one way in which a run comes to 8 %. Whether it was this run's way we do
# not know, since it published no log.
#
# A story from nanoVLM's code: its `train.py` [declares `--compile` with
# `type=bool`](https://github.com/huggingface/nanoVLM/blob/03ecd8c3436a81840ed7eb4e7677988b199cdc30/train.py). What does
# `--compile False` do there?

# %%
print("bool('False') is", bool("False"))

# %% [markdown]
# ### `torch.compile` sees the whole graph
#
# So `--compile False` turns the option on there. (Here it does what it says.) What is it that it turns on? PyTorch
# starts one operation after the other, and each of them reads its input from memory and writes its output back. A
# compiler gets all of them at once, as a graph, and can join neighbours. The "compiler" below only writes down what it
# is given. What happens when the length of the sequence changes?

# %%
graphs = []


def write_down(graph, example_inputs):
    graphs.append([node.name for node in graph.graph.nodes if node.op.startswith("call_")])
    return graph.forward


decoder = VisionLanguageModel(small_vlm()).decoder
decoder.compile(backend=write_down)
for length in (40, 40, 50, 60):
    decoder(torch.randn(2, length, tiny.config.language.hidden_dim))
    print(f"length {length}: {len(graphs)} graphs so far")
products = [name for name in graphs[0] if name.startswith(("linear", "scaled_dot_product"))]
print(f"{len(graphs[0])} operations in a pass, of which {len(products)} are large products")

# %% [markdown]
# The products stay calls of a library; of all others a real compiler makes a few kernels. The second length costs a
# second graph, which is made for *any* length, so the third one costs none. What it is worth has to be measured: the
# pocket model's step went from 327 to 281 milliseconds on two cores (`LOG.md`, "Beside transformers' SmolVLM"), after a
# first step that took far longer.

# %% [markdown]
# ## Several GPUs: gradients have to count by tokens
#
# With **DDP** (distributed data parallel) each process has the whole model and a part of the batch. After the backward
# pass the gradients are averaged over all processes, and all take the same step.

# %%
quiz("ch11.two_ranks")

# %%
ranks_figure([(1.0, 10), (3.0, 90)], "Two processes with answers of different lengths")

# %% [markdown]
# An average of averages gives the tokens of the first rank nine times the weight of the others. nanoVLM's code does
# this: in `train.py` at the commit above, each rank calls `backward()` on its own mean, divided by the number of
# micro-batches. A rank with short answers then decides as much as one with captions.

# %% [markdown]
# The cure is to let each rank multiply by what DDP will divide by, and divide by *all* tokens. It is exercise 11.7.
# Here both versions run in two real processes on this CPU and are compared with one process that has all the data.

# %%
from nanovlm.course.two_ranks import COUNTS, measure

print("supervised tokens of the micro-batches, by rank:", COUNTS)
for name, error in measure().items():
    print(f"{name:15} relative distance from the gradient of one process: {error:.1e}")

# %% [markdown]
# With the counts right, two processes and one give the same gradient, up to the order of additions. Four more rules:
#
# - `no_sync()` while accumulating: gradients are exchanged once a step, not once a micro-batch;
# - every rank draws other samples, from one order that all of them know;
# - every rank leaves a loop at the same step, or the others wait for ever;
# - twice the GPUs are twice the batch. Keep the batch by accumulating less, or find new learning rates for a larger one.
#
# When does a model need more than this, because it does not fit into one GPU?

# %%
per_weight = 2 + 4 + 4 + 8  # bytes: bfloat16 weight, float32 copy, gradient, two moments
most = 80e9 / per_weight / 1e9
print(f"one GPU of 80 GB holds weights, gradients and optimizer of {most:.1f} G weights")

# %% [markdown]
# That leaves no room for activations, so a model has to stay well below it. Then DDP is enough, and 222M is far below.
# Above it **FSDP** (fully sharded data parallel) cuts weights, gradients and moments into as many pieces as there are
# GPUs and collects each block's weights only while they are needed. The command is nearly the same. Both halve the
# accumulation, 16 in the preset, so that two GPUs take the same step as one:
#
# ```bash
# torchrun --nproc-per-node 2 -m nanovlm train --preset colab --gradient-accumulation-steps 8
# torchrun --nproc-per-node 2 -m nanovlm train --preset colab --gradient-accumulation-steps 8 --parallel fsdp
# ```

# %% [markdown]
# ## Train the projector alone, adapters, or all of it?
#
# LLaVA trains in two stages: the projector first, with frozen backbones, then everything
# ([Liu et al. 2023](https://arxiv.org/abs/2304.08485)). **LoRA** is in between: it adds to some of the frozen matrices a
# product of two thin ones ([Hu et al. 2021](https://arxiv.org/abs/2106.09685)), which is exercise 11.8. Here the decoder's
# query and value matrices get them, and the projector is trained as well. We compare the three on something new: the
# pocket model has never answered with the letter of an option.

# %%
LoRALinear = use("full.lora_linear")


def projector_only(model):
    model.requires_grad_(False).projector.requires_grad_(True)


def adapters(model):
    projector_only(model)
    for block in model.decoder.blocks:
        block.attn.q_proj = LoRALinear(block.attn.q_proj, 8, 16.0)
        block.attn.v_proj = LoRALinear(block.attn.v_proj, 8, 16.0)


# %%
choice = TrainConfig(dataset_names=("choice",), dataset_size=2_000, val_size=48, batch_size=16)
loader, held_out = get_dataloaders(choice, pocket.config, pocket.tokenizer, pocket.image_processor)
seen = list(islice(loader, budget().pick(ci=6, laptop=60)))


@torch.no_grad()
def held_out_loss(model) -> float:
    outputs = (model(b["input_ids"], b["images"], targets=b["targets"]) for b in held_out)
    return sum(output.loss.item() for output in outputs) / len(held_out)


# %%
def adapt(prepare, lr: float) -> tuple[int, float]:
    model = VisionLanguageModel.from_pretrained(asset_path("pocket"))
    prepare(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr)
    for batch in seen:
        optimizer.zero_grad()
        model(batch["input_ids"], batch["images"], targets=batch["targets"]).loss.backward()
        optimizer.step()
    return sum(p.numel() for p in trained), held_out_loss(model)


# %%
before = held_out_loss(pocket.eval())
print(f"before: {before:.2f} on held-out questions; then {len(seen)} steps each")
for name, prepare, lr in (
    ("projector", projector_only, 2e-3),
    ("LoRA", adapters, 2e-3),
    ("all", lambda m: None, 5e-4),
):
    count, loss = adapt(prepare, lr)
    print(f"{name:10} {count:9,} trained weights   {loss:5.2f}")

# %% [markdown]
# One seed, one learning rate each, and few steps: that is a demonstration and no ranking. What it does show holds in
# general. LoRA trains a small share of the weights, and needs gradients and moments for that share alone. Whether it
# wins at *equal time* on your task is a question for three seeds and for chapter 15. The options of `nanovlm train` are
# `--freeze vision_encoder decoder` for the first row and `--lora-rank 8` for adapters.

# %% [markdown]
# ## Watch six numbers, and decide beforehand when to stop
#
# | number | alarm | what to do |
# |---|---|---|
# | training loss | NaN, or above its value of an hour ago | stop; look at the samples that the error names |
# | validation loss | rises while the other falls | stop at the best checkpoint |
# | loss of each source | one rises while the mean falls | its share of the mixture (chapters 07 and 08) |
# | gradient norm | a hundred times its usual value, again and again | a sample, or the learning rate |
# | samples per second | falls over hours | the loader, its memory, or the disk |
# | accuracy beside the blind one | equal after a tenth of the run | the picture does not arrive |
#
# A run's `metrics.jsonl` contains the training and validation loss, the accuracy and the samples per second. The other
# numbers you have to add: `train_step` in `training/step.py` computes the gradient norm, and `training/probe.py` asks by
# kind, with the right picture and blind. The last row is easily left out, and it is the one that would have stopped log A:

# %%
import json

failures = json.loads(asset_path("runs/11_failures.json").read_text(encoding="utf-8"))
runs = {name: run["losses"] for name, run in failures["runs"].items()}
healthy = runs.pop("healthy")
print(f"made on purpose, on {failures['about']['machine']}, with\n{failures['about']['command']}")
logs_figure(runs, healthy, "Four runs with a fault each, and one without")

# %% [markdown]
# We made all four ourselves, with the pocket model's trained encoder and decoder behind a new projector. Diagnose them.

# %%
quiz("ch11.gallery_a")

# %%
quiz("ch11.gallery_b")

# %%
for name, losses in runs.items():
    excerpt = [f"{loss:.3f}" if loss is not None else "nan" for loss in losses[:: len(losses) // 6]]
    print(f"log {name}: {' '.join(excerpt)}\n       {failures['runs'][name]['cause']}")

# %% [markdown]
# Log C is the resume that kept only weights: the moments are gone and the warm-up begins again. It is the quietest of
# the four:

# %%
at, losses = 2 * len(healthy) // 3, runs["C"]
after, before = (sum(run[at : at + 20]) / 20 for run in (losses, healthy))
print(f"the 20 steps after the resume: mean loss {after:.3f}, without a resume {before:.3f}")

# %% [markdown]
# Only a comparison with the first run shows it. Log D divides by the number of supervised tokens, and one batch had
# none: 0 / 0. It makes every weight NaN in a single step, and no later batch can repair that. The course's step refuses
# such a batch: it raises before the weights have moved, and names the samples.

# %% [markdown]
# ### A real log rings alarms, too
#
# Those four faults were planted. Nobody arranged the logs of the four runs that made the pocket model (in
# `assets/pocket`). Here is an excerpt of the fourth. Which of the six numbers would have rung, and what would you
# have done?

# %%
from nanovlm.course.runs import pocket_logs

logs = pocket_logs()
for row in logs["run 4"]:
    if "batch_loss" in row and 700 <= row["step"] <= 780:
        time_so_far, rate = row["seconds"], row["samples_per_second"]
        print(f"step {row['step']}   loss {row['batch_loss']:.4f}   {time_so_far:4.0f} s", end="")
        print(f"   {rate:5.1f} samples/s")

# %% [markdown]
# Ten steps took up to 74 seconds where they had taken 4, and then they took 4 again. The loss knows nothing of it, so
# it was not the model. Was it other work on the machine (`LOG.md`), or a slow loader? This log cannot tell, since it
# has only the time of a whole step. A log that also counts the time of waiting for data, as a cell above did, can.

# %% [markdown]
# The second excerpt begins the second run, from the weights of the first, with a new optimizer, a new schedule and ten
# times the weight decay.

# %%
before = [row["val_loss"] for row in logs["run 1"] if "val_loss" in row][-1]
print(f"run 1 ended at {before:.4f}")
for row in logs["run 2"]:
    if "val_loss" in row:
        print(f"run 2, step {row['step']:5}   validation loss {row['val_loss']:.4f}")

# %% [markdown]
# At its first evaluation the validation loss is four times as high as where the run began, and only the fifth one is
# lower. The alarm of the table would have stopped this run. It went on, and took the model from 93.3 % of the questions
# on signs to 99.9 % (`LOG.md`). A warm-up back to a high rate undoes some of what was learnt, and shows its worth when
# the rate comes down. So write down before a run what you expect, and by which step.

# %% [markdown]
# ## A score means something under one protocol
#
# Your run is finished and scores 38 % on MMStar. The published model has 35.3 %.

# %%
quiz("ch11.same_protocol")

# %%
from nanovlm.evaluation.scores import interval

for name, share in (("published", 0.353), ("yours", 0.380), ("chance", 0.25)):
    low, high = interval(round(share * 1500), 1500)
    print(f"{name:10}{share:.1%}, 95 % interval {low:.1%} to {high:.1%} at 1,500 questions")

# %% [markdown]
# The two intervals overlap, and the numbers were not made in the same way: the published one was drawn at temperature 1,
# scored by a rule that takes "A cat" for the answer A, and belongs to the checkpoint that was best *on MMStar* of more
# than a hundred looks (chapter 10 tells the story). To compare, one would need

# %% [markdown]
# 1. both models asked about MMStar by one program, the published one as `from_pretrained("lusxvr/nanoVLM-222M")`:
#    `nanovlm.evaluation.lmms` does that (chapter 10), while `nanovlm evaluate` asks about the Thimble;
# 2. the same prompt, the same pictures at the same size, greedy decoding, one strict rule for both;
# 3. a checkpoint chosen on validation data, with a single look at MMStar at the end;
# 4. every answer saved, and a paired test over the same 1,500 questions, with the blind score beside it.

# %% [markdown]
# It needs a trained model of our own, which nobody has yet.

# %% [markdown]
# ## The card carries what a sceptic would ask
#
# Numbers for a card come from the saved scores, never from memory. The pocket model's, through your function of exercise
# 11.10:

# %%
results = json.loads(asset_path("pocket/results.json").read_text(encoding="utf-8"))
shapes = results["test"]["shapes"]


def pairs(name: str) -> dict[str, tuple[int, int]]:
    return {kind: (r["correct"], r["total"]) for kind, r in shapes[name].items()}


# %%
own, blind = pairs("kinds"), pairs("blind")
numbers = use("full.model_card_numbers")(own, blind, "validation", "test")
print(f"{'kind':10}{'right':>9}{'95 % interval':>20}{'blind':>9}")
for kind, (share, low, high, blind) in numbers.items():
    print(f"{kind:10}{share:9.1%}{low:12.1%} to {high:.1%}{blind:9.1%}")

# %% [markdown]
# A card also says what the model is *not* for, names the licences of data and backbones (SigLIP and SmolLM2:
# Apache-2.0; the_cauldron: each subset has its own), and shows failures.
#
# ### To the Hub, and back
#
# A model directory holds weights as safetensors, the config, the tokenizer and the picture settings. It loads without a
# network, which the next cell tests.

# %%
pocket.save_pretrained(folder / "release")
print(*sorted(p.name for p in (folder / "release").iterdir()))
again = VisionLanguageModel.from_pretrained(folder / "release")
assert all(torch.equal(a, b) for a, b in zip(pocket.parameters(), again.parameters(), strict=True))

# %% tags=["skip-execution", "nbval-skip"]
# Not executed: this publishes. First `hf auth login`, in a terminal.
pocket.push_to_hub("your-name/nanovlm-pocket", private=True)

# %% [markdown]
# `nanovlm export --model runs/first/best --out release` writes a trained model in SmolVLM's format, which transformers
# loads without any code of ours (chapter 13); `--to nanovlm`, `onnx` or `gguf` write it for nanoVLM, onnxruntime and
# llama.cpp. How small can the model be?

# %%
for name, size in (
    ("float32", 4.0),
    ("bfloat16", 2.0),
    ("int8", 1.0),
    ("4 bits, with scales", 0.56),
):
    print(f"{name:20} {million * size:6.0f} MB of weights")

# %% [markdown]
# ## What has been run, and what has not
#
# | | state |
# |---|---|
# | the pocket model, from random weights to its scores | run to the end; commands and logs are in `assets/pocket` |
# | this chapter at `ci`, with small stand-ins | run on CPUs, in the tests |
# | parity of both backbones with transformers | tested with random weights |
# | kill and resume, two processes | tested on CPUs |
# | the preset `colab` on a T4 | **not run**: estimates only |
# | the preset `h100` | **not run**: estimates only |
# | a comparison with the published 222M under one protocol | **not made** |
#
# With a card and seven minutes, `nanovlm bench --gpu-report gpu.json` measures what the plan assumes. With an
# afternoon, your run closes one of these lines. [A
# form](https://github.com/nanovlm-course/nanovlm/issues/new?template=full_run.yml) asks for the command, the log, the
# card's name and what the plan had said: a plan that was wrong is as useful to others as a good score.

# %% [markdown]
# ## Where this lives in the package
#
# `training/plan.py` is the plan, `training/loop.py` the run and `training/checkpoint.py` its files;
# `weights/backbones.py` and `weights/from_preset.py` load trained parts; `config.py` has the presets.

# %% [markdown]
# What you take along:
#
# - Do the sum before the run, and the check after it. A utilisation is a measurement or a hope; say which.
# - Weights, gradients and moments are fixed; activations grow with the batch.
# - Load strictly, then compare features with the library. A new row is the mean of the old ones.
# - Smoke run first. Kill it on purpose. Equal losses, to the last bit, are the test.
# - Several processes: divide by all tokens, multiply by what DDP divides by.
# - No number without its interval, its blind baseline and its protocol.

# %% [markdown]
# In the wild: [nanochat](https://github.com/karpathy/nanochat/blob/007f3220a4bf78a5e21c04337a975451d9a4f215/README.md),
# which states time and cost of its full run at the top of its README, and the papers on
# [DDP](https://arxiv.org/abs/2006.15704) and [FSDP](https://arxiv.org/abs/2304.11277) in PyTorch.
#
# **A challenge**, without a solution: the most for one hour of any machine, planned beforehand. It stands behind the
# exercises, together with the **capstone project** and its rubric.

# %% [markdown] tags=["stamped"]
# ## Your turn
#
# [Open the exercises](../exercises/11_full_training.ipynb) ([in Colab][exercises]): 10 of them, about 2.3 hours.
#
# [exercises]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/exercises/11_full_training.ipynb
#
# | | exercise | difficulty | minutes |
# |---|---|---|---|
# | 11.1 | From operations to hours (`full.flops_to_hours`) | ●○○ | 10 |
# | 11.2 | Will it fit? (`full.memory_plan`) | ●●○ | 15 |
# | 11.3 | Measure it: what the forward pass keeps (`full.activation_bytes`) | ●●○ | 15 |
# | 11.4 | The same tensors under other names (`full.map_names`) | ●●○ | 18 |
# | 11.5 | Write the test: did the weights arrive? (`full.parity_test`) | ●●○ | 12 |
# | 11.6 | Rows for new tokens (`full.extend_embeddings`) | ●●○ | 12 |
# | 11.7 | Mend it: a mean of means, in several processes (`full.ddp_loss_scale`) | ●●○ | 12 |
# | 11.8 | LoRA in twenty lines (`full.lora_linear`) | ●●○ | 18 |
# | 11.9 | After a disconnect: the newest checkpoint that is whole (`full.resume_after_disconnect`) | ●●● | 15 |
# | 11.10 | The numbers of a model card (`full.model_card_numbers`) | ●●○ | 12 |
#
# Next: [12 Shape tracing](12_shape_tracing.ipynb)
