"""Chapter 06: how far an answer moves with the picture, and how large the model is."""

from __future__ import annotations

import torch
from torch import Tensor

from nanovlm.config import LMConfig, ProjectorConfig, ViTConfig, VLMConfig, pocket_vlm
from nanovlm.course.judge.exercise import Case, Exercise, expect
from nanovlm.course.exercises.common import noise

# -- fusion.moved -------------------------------------------------------------------------------------------------------


def moved(logits: Tensor, other: Tensor) -> Tensor:
    """Total variation distance of two next-token distributions. [B, vocab_size] twice -> [B], between 0 and 1"""
    return (logits.softmax(dim=-1) - other.softmax(dim=-1)).abs().sum(dim=-1) / 2


MOVED = Exercise(
    id="fusion.moved",
    chapter="06",
    title="How far did the answer move?",
    difficulty=1,
    minutes=6,
    why="Right or wrong says little about one question. How much probability moves when the picture changes says "
    "whether the model looked, even where the answer stays the same.",
    hints=(
        "Logits are no probabilities yet, and two sets of logits that differ by a constant mean the same.",
        "Make probabilities of both. What one word loses another one gains: the absolute differences count every bit "
        "of moved probability twice.",
        "p, q = softmax of each, over the words\nhalf of the sum of |p - q|, over the words",
    ),
    reference=moved,
    cases=lambda: [
        Case(
            torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]).log(),
            torch.tensor([[0.2, 0.3, 0.5], [0.5, 0.3, 0.2]]).log(),
            note="of three words the first and the last swap their 0.5 and 0.2; then a row that stays as it is",
        ),
        Case(noise(4, 6), noise(4, 6, seed=1) * 3, note="four pairs of random logits, six words"),
        Case(noise(2, 5), noise(2, 5) + 7, note="the same logits, all of them higher by 7"),
    ],
    axes="batch",
)


@MOVED.property("from one certain answer to another is 1")
def _(fn) -> None:
    certain = torch.tensor([[100.0, 0.0, 0.0]])
    far = fn(certain, certain.flip(1))
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


@MOVED.mistake("This is the mean over the words: it gets small with a large vocabulary. Sum over them.")
def _(logits, other):
    return (logits.softmax(-1) - other.softmax(-1)).abs().mean(-1) / 2


# -- fusion.parameters_222m ---------------------------------------------------------------------------------------------


def counted(config: VLMConfig, wrong: str = "") -> dict[str, int]:
    """The formula, with one thing at a time to get wrong."""
    v, p, m = config.vision, config.projector, config.language
    bias = 0 if wrong == "biases" else 1
    layer_norms = 0 if wrong == "norms" else 1
    rms_norms = 0 if wrong in ("norms", "rms norms") else 1
    last_layer_norm = 0 if wrong in ("last layer norm", "last norms") else layer_norms
    last_rms_norm = 0 if wrong in ("last rms norm", "last norms") else rms_norms
    d = v.hidden_dim
    block = 4 * d * d + 4 * bias * d + 2 * d * v.inter_dim + bias * (v.inter_dim + d) + 2 * layer_norms * 2 * d
    positions = 0 if wrong == "positions" else v.num_patches * d
    vision = 3 * v.patch_size**2 * d + bias * d + positions + v.num_blocks * block + last_layer_norm * 2 * d
    d, kv = m.hidden_dim, m.hidden_dim if wrong == "kv" else m.num_kv_heads * m.head_dim
    matrices = 2 if wrong == "gate" else 3
    block = 2 * d * d + 2 * d * kv + matrices * d * m.inter_dim + 2 * rms_norms * d
    tables = 2 if wrong == "twice" or (not m.tie_weights and wrong != "head") else 1
    decoder = tables * m.vocab_size * d + m.num_blocks * block + last_rms_norm * d
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
    why="Who can count a model knows it: every matrix, which of them have biases, what is shared. It is also the first "
    "check of any checkpoint that you meet: a count that is off by one matrix shows a part that you did not know.",
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
):
    PARAMETERS.mistake(sentence)(lambda config, wrong=wrong: counted(config, wrong))
