"""Chapter 06: how far an answer moves with the picture, and how large the model is."""

from __future__ import annotations

import torch
from torch import Tensor

from nanovlm.config import LMConfig, ProjectorConfig, ViTConfig, VLMConfig, pocket_vlm
from nanovlm.course.exercises.common import as_wide_as, noise
from nanovlm.course.judge.exercise import Case, Exercise, expect

# -- fusion.moved ------------------------------------------------------------------------------------------------------


def moved(logits: Tensor, other: Tensor) -> Tensor:
    """Total variation distance of two next-token distributions. [B, vocab_size] twice -> [B], between 0 and 1"""
    return (logits.softmax(dim=-1) - other.softmax(dim=-1)).abs().sum(dim=-1) / 2


MOVED = Exercise(
    id="fusion.moved",
    chapter="06",
    title="Measure it: how far did the answer move?",
    difficulty=1,
    minutes=6,
    why="Right or wrong says little about one question. How much probability moves when the picture changes says "
    "whether the model looked, even where the answer stays the same.",
    hints=(
        "Logits are no probabilities yet, and two sets of logits that differ by a constant mean the same.",
        "Make probabilities of both. What one word loses another one gains: the absolute differences count every bit "
        "of moved probability twice.",
        "p, q = softmax of each, over the words\nhalf of …",
    ),
    reference=moved,
    cases=lambda: [
        Case(
            torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]).log(),
            torch.tensor([[0.2, 0.3, 0.5], [0.5, 0.3, 0.2]]).log(),
            note="three words, of which the first and the last swap their 0.5 and 0.2; then a row that stays as it is",
        ),
        Case(noise(4, 6), noise(4, 6, seed=1) * 3, note="four pairs of random logits, six words"),
        Case(noise(2, 5), noise(2, 5) + 7, note="the same logits, all of them higher by 7"),
    ],
    axes="batch",
    call=lambda fn, logits, other: as_wide_as(logits, fn(logits, other)),
)


@MOVED.property("from one certain answer to another is 1")
def _(fn) -> None:
    certain = torch.tensor([[100.0, 0.0, 0.0]])
    far = fn(certain, certain.flip(1)).float()
    expect(
        far.isfinite().all(),
        "Logits of 100 overflow: exp(100) is no float32 number. softmax subtracts the largest first.",
    )
    expect(torch.allclose(far, torch.ones(1)), f"All the probability moved, and the result is {float(far.mean()):.3g}.")


@MOVED.property("both directions are the same distance")
def _(fn) -> None:
    a, b = noise(3, 5), noise(3, 5, seed=1)
    expect(torch.allclose(fn(a.clone(), b.clone()), fn(b, a)), "There and back are not equally far.")


@MOVED.mistake("Twice too large: what left one word arrived at another, and you counted both.")
def _(logits, other):
    return (logits.softmax(-1) - other.softmax(-1)).abs().sum(-1)


@MOVED.mistake("These are differences of logits. Logits that are all higher by 7 mean the same answer: softmax first.")
def _(logits, other):
    return (logits - other).abs().sum(-1) / 2


@MOVED.mistake(
    "The softmax runs over the batch. The probabilities of one answer sum to 1 over the words, the last axis."
)
def _(logits, other):
    return (logits.softmax(0) - other.softmax(0)).abs().sum(-1) / 2


@MOVED.mistake("This is the Kullback-Leibler divergence: it has no upper end, and differs with the direction.")
def _(logits, other):
    return (logits.softmax(-1) * (logits.log_softmax(-1) - other.log_softmax(-1))).sum(-1)


for sentence, wrong in (
    (
        "This is the Kullback-Leibler divergence, the other way round: it has no upper end. Sum the absolute "
        "differences.",
        lambda p, q: (q * (q.log() - p.log())).sum(-1),
    ),
    (
        "This is the largest change of a single word. Probability may leave one word for several: sum over all words.",
        lambda p, q: (p - q).abs().amax(-1),
    ),
    (
        "You sum squares and take the root. Probability that moves adds up as it is: absolute values.",
        lambda p, q: (p - q).norm(dim=-1),
    ),
    (
        "You sum squares, so that small changes disappear. Probability that moves adds up as it is: absolute values.",
        lambda p, q: (p - q).square().sum(-1) / 2,
    ),
    (
        "You sum squares, so that small changes disappear, and do not halve. Sum absolute values, and halve them.",
        lambda p, q: (p - q).square().sum(-1),
    ),
    (
        "This is a cosine distance: an angle between two lists of probabilities, and no share of them.",
        lambda p, q: 1 - torch.nn.functional.cosine_similarity(p, q),
    ),
    (
        "This says whether the most likely word changed, 0 or 1. The question is how much probability moved.",
        lambda p, q: (p.argmax(-1) != q.argmax(-1)).float(),
    ),
    (
        "You follow the most likely word alone. What the other words win and lose counts too.",
        lambda p, q: (p - q).gather(1, p.argmax(-1, True)).abs()[:, 0],
    ),
    (
        "Gains and losses cancel: both sets of probabilities sum to 1. Take absolute values before you sum.",
        lambda p, q: (p - q).sum(-1) / 2,
    ),
    (
        "These are differences of logarithms. Take the probabilities themselves: softmax, not log_softmax.",
        lambda p, q: (p.log() - q.log()).abs().sum(-1) / 2,
    ),
    (
        "This is the probability that stayed where it was. What moved is the rest, 1 minus it.",
        lambda p, q: torch.minimum(p, q).sum(-1),
    ),
):
    MOVED.mistake(sentence)(lambda logits, other, wrong=wrong: wrong(logits.softmax(-1), other.softmax(-1)))


@MOVED.mistake("This is the mean over the words: it gets small with a large vocabulary. Sum over them.")
def _(logits, other):
    return (logits.softmax(-1) - other.softmax(-1)).abs().mean(-1) / 2


# -- fusion.parameters_222m --------------------------------------------------------------------------------------------


def counted(config: VLMConfig, wrong: str = "") -> dict[str, int]:
    """The formula, with one thing at a time to get wrong."""
    v, p, m = config.vision, config.projector, config.language
    bias = 0 if wrong == "biases" else 1
    norms_a_block = 1 if wrong == "one norm" else 2
    qkv_out = 3 if wrong == "out" else 4
    layer_norms = 0 if wrong == "norms" else 1
    rms_norms = 0 if wrong in ("norms", "rms norms") else 1
    last_layer_norm = 0 if wrong in ("last layer norm", "last norms") else layer_norms
    last_rms_norm = 0 if wrong in ("last rms norm", "last norms") else rms_norms
    d = v.hidden_dim
    block = qkv_out * (d * d + bias * d) + 2 * d * v.inter_dim + bias * (v.inter_dim + d)
    block += norms_a_block * layer_norms * 2 * d
    positions = {"positions": 0, "a side": v.grid_size, "class": v.num_patches + 1}.get(wrong, v.num_patches) * d
    num_blocks = (1, 1) if wrong == "one block" else (v.num_blocks, m.num_blocks)
    vision = (1 if wrong == "grey" else 3) * v.patch_size**2 * d + bias * d + positions
    vision += num_blocks[0] * block + last_layer_norm * 2 * d
    d = m.hidden_dim
    kv = {"kv": d, "narrow kv": m.num_kv_heads, "one kv": m.head_dim}.get(wrong, m.num_kv_heads * m.head_dim)
    matrices = 2 if wrong == "gate" else 3
    block = 2 * d * d + 2 * d * kv + matrices * d * m.inter_dim + 2 * rms_norms * d
    block += (3 * d + 2 * kv + 2 * m.inter_dim) * (wrong == "decoder biases")
    tables = 2 if wrong == "twice" or (not m.tie_weights and wrong != "head") else 1
    decoder = tables * m.vocab_size * d + num_blocks[1] * block + last_rms_norm * d
    wide = p.vision_dim * p.pixel_shuffle_factor ** {"narrow": 0, "not squared": 1}.get(wrong, 2)
    projector = (wide + (wrong == "projector bias")) * p.language_dim
    return {"vision_encoder": vision, "projector": projector, "decoder": decoder}


def parameters_by_part(config: VLMConfig) -> dict[str, int]:
    """By formula; a test holds it to the model (which takes a second to build, even without memory)."""
    return counted(config)


def untied() -> VLMConfig:
    return VLMConfig(
        ViTConfig(hidden_dim=6, inter_dim=10, num_blocks=2, num_heads=2, image_size=12, patch_size=3),
        ProjectorConfig(vision_dim=6, language_dim=8, pixel_shuffle_factor=4),
        LMConfig(
            hidden_dim=8, inter_dim=20, num_blocks=3, num_heads=4, num_kv_heads=1, vocab_size=50, tie_weights=False
        ),
    )


PARAMETERS = Exercise(
    id="fusion.parameters_222m",
    chapter="06",
    title="222 million, counted",
    difficulty=2,
    minutes=15,
    why="If you can count a model, you know it: every matrix, which of them have biases, and what is shared. It is "
    "also the first check of any checkpoint, because a count that is off by one matrix shows a part that you "
    "did not know.",
    hints=(
        "Walk through each part once, as a vector does, and write down every layer on its way with its sizes.",
        "Vision: Linear layers and LayerNorms have biases. Decoder: nothing has a bias, keys and values are narrower "
        "than queries (num_kv_heads), the MLP has three matrices, an RMSNorm has one weight for each dimension. The "
        "tied head is the token embedding: counted once.",
        "conv: 3 * patch * patch * dim + dim       positions: num_patches * dim\n"
        "ViT block: qkv (dim -> 3 dim) and out (dim -> dim) with biases, two MLP layers with biases, two LayerNorms\n"
        "ViT: conv + positions + blocks + one LayerNorm\n"
        "decoder block: q and out dim * dim, k and v dim * kv_dim, three times dim * inter_dim, two RMSNorms\n"
        "decoder: vocab_size * dim + blocks + one RMSNorm, and another vocab_size * dim if not tied\n"
        "projector: vision_dim * r * r * language_dim",
    ),
    reference=parameters_by_part,
    cases=lambda: [
        Case(VLMConfig(), note="nanoVLM's 222M model"),
        Case(pocket_vlm(), note="the pocket model"),
        Case(untied(), note="a tiny model with r = 4 whose head is a matrix of its own (tie_weights=False)"),
    ],
)


@PARAMETERS.property("together they are 222 million")
def _(count) -> None:
    total = sum(count(VLMConfig()).values())
    expect(round(total / 1e6) == 222, f"For the default config they add up to {total:,}.")


for sentence, wrong in (
    ("The head is counted although it is tied: it *is* the token embedding, the same memory.", "twice"),
    ("An untied head (tie_weights=False) is a matrix of its own, and it is missing.", "head"),
    ("The biases of the vision encoder are missing: SigLIP's linear layers and its convolution have them.", "biases"),
    ("The position embeddings are missing: one vector for each patch, and they are learned.", "positions"),
    ("The norms are missing: small, but learned. A LayerNorm has a weight and a bias, an RMSNorm a weight.", "norms"),
    ("Keys and values are as wide as queries here. Grouped-query attention gives them num_kv_heads only.", "kv"),
    ("The decoder's MLP has two matrices here. SwiGLU has three: gate, up and down.", "gate"),
    ("The projector takes one patch here, but pixel shuffle hands it r * r of them side by side.", "narrow"),
    ("The projector takes r patches here. Pixel shuffle joins a square of them, r * r.", "not squared"),
    ("The projector has a bias here, but it is a matrix alone.", "projector bias"),
    (
        "The decoder's RMSNorms are missing: two in each block and one at the end, with one weight a dimension.",
        "rms norms",
    ),
    ("The encoder's last norm is missing: a LayerNorm stands behind all its blocks.", "last layer norm"),
    ("The decoder's last norm is missing: an RMSNorm stands behind all its blocks.", "last rms norm"),
    ("The norm behind the last block is missing, in the encoder and in the decoder.", "last norms"),
    (
        "Each encoder block is two vectors of hidden_dim short: either one of its two LayerNorms is missing, or the biases "
        "of both are.",
        "one norm",
    ),
    ("The layer that projects attention's output (dim x dim, with a bias) is missing in the encoder's blocks.", "out"),
    (
        "The position embeddings are those of one side of the grid. There is a vector for each patch: num_patches.",
        "a side",
    ),
    ("There is a position more than there are patches. SigLIP has no class token.", "class"),
    ("The patch convolution reads one colour here. Its input has three colours: 3 * patch_size².", "grey"),
    ("Encoder and decoder have one block each here: multiply by num_blocks.", "one block"),
    ("Keys and values have one number a head here. Each head is head_dim wide: num_kv_heads * head_dim.", "narrow kv"),
    ("Keys and values are one head wide here: num_kv_heads * head_dim.", "one kv"),
    ("The decoder's linear layers have biases here. Nothing in the decoder has a bias.", "decoder biases"),
):
    PARAMETERS.mistake(sentence)(lambda config, wrong=wrong: counted(config, wrong))


@PARAMETERS.mistake("These are millions. Return the counts themselves, to the last parameter.")
def _(config):
    return {name: round(count / 1e6) for name, count in counted(config).items()}
