"""Chapter 02: the loss that SigLIP's encoder was trained with, and how much each sub-layer adds."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nanovlm.config import ViTConfig
from nanovlm.course.exercises.common import expect_same_gradients, noise
from nanovlm.course.judge.exercise import Case, Exercise, expect, with_weights
from nanovlm.models.vision_transformer import ViT

# -- vit.siglip_loss ---------------------------------------------------------------------------------------------------


def _logits(images: Tensor, texts: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    return F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).mT * log_scale.exp() + bias


def siglip_loss(images: Tensor, texts: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    """torch's binary cross-entropy over all pairs, summed, and divided by the number of pictures."""
    logits = _logits(images, texts, log_scale, bias)
    return F.binary_cross_entropy_with_logits(logits, torch.eye(len(images)), reduction="sum") / len(images)


def _case(n: int, dim: int, scale: float, bias: float, seed: int, note: str) -> Case:
    given = noise(n, dim, seed=seed), noise(n, dim, seed=seed + 1)
    return Case(*given, torch.tensor(math.log(scale)), torch.tensor(bias), note=note)


SIGLIP_LOSS = Exercise(
    id="vit.siglip_loss",
    chapter="02",
    title="The loss that made the encoder",
    difficulty=2,
    minutes=12,
    why="Two lines of loss decide what an encoder pays attention to. This one needs no softmax over the batch, so a "
    "batch can be spread over many machines; a wrong sign or a missing pair trains to nothing without an error.",
    hints=(
        "Every picture meets every text of the batch, so there is a table of logits. Which entries of it are pairs "
        "that belong together?",
        "Normalise both, multiply, scale by exp(log_scale) and add the bias: [batch, batch]. The target is +1 on the "
        "diagonal and -1 elsewhere. Sum -logsigmoid(target * logit) over the table and divide by the batch size.",
        "logits = F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T * log_scale.exp() + bias\n"
        "targets = 2 * torch.eye(len(images)) - 1\n"
        "return …",
    ),
    reference=siglip_loss,
    cases=lambda: [
        _case(3, 2, 3.0, -1.5, 0, "three pictures and three texts, two numbers each"),
        _case(5, 6, 7.0, -4.0, 2, "five pairs, six numbers each"),
        _case(1, 4, 2.0, 0.5, 4, "a single pair"),
    ],
)


@SIGLIP_LOSS.property("pictures and texts play the same part")
def _(fn) -> None:
    a, b, t, bias = noise(4, 3), noise(4, 3, seed=1), torch.tensor(1.0), torch.tensor(-2.0)
    expect(torch.allclose(fn(a, b, t, bias), fn(b, a, t, bias), atol=1e-5), "With both swapped the loss is another.")


@SIGLIP_LOSS.property("large logits do no harm")
def _(fn) -> None:
    loss = fn(noise(4, 3), noise(4, 3, seed=1), torch.tensor(7.0), torch.tensor(-10.0))
    expect(
        loss.isfinite(),
        "With logits in the thousands the loss is not finite: log(sigmoid(x)) is log(0). F.logsigmoid is not.",
    )


@SIGLIP_LOSS.property("gradients reach the vectors, the scale and the bias")
def _(fn) -> None:
    given = noise(4, 3), noise(4, 3, seed=1), torch.tensor(1.0), torch.tensor(-2.0)
    expect_same_gradients(lambda *x: fn(*x)[None], lambda *x: siglip_loss(*x)[None], *given)


def _signed(logits: Tensor) -> Tensor:
    return -F.logsigmoid((2 * torch.eye(len(logits)) - 1) * logits)


for _sentence, _version in {
    "The loss is averaged over all pairs. SigLIP's is summed over the table and divided by the number of pictures.": (
        lambda a, b, t, c: _signed(_logits(a, b, t, c)).mean()
    ),
    "The loss is summed and not divided. Divide by the number of pictures, or it grows with the batch.": (
        lambda a, b, t, c: _signed(_logits(a, b, t, c)).sum()
    ),
    "Only the pairs that belong together are counted (the diagonal). Without the others every vector may be the same.": (
        lambda a, b, t, c: _signed(_logits(a, b, t, c)).diagonal().mean()
    ),
    "The vectors are not normalised, so the loss can be lowered by their length alone.": (
        lambda a, b, t, c: _signed(a @ b.mT * t.exp() + c).sum() / len(a)
    ),
    "Only one of the two is normalised. Both need length 1 for the product to be a cosine.": (
        lambda a, b, t, c: _signed(F.normalize(a, dim=-1) @ b.mT * t.exp() + c).sum() / len(a)
    ),
    "The vectors are normalised over the batch (dim=0). Each vector of its own needs length 1: dim=-1.": (
        lambda a, b, t, c: _signed(F.normalize(a, dim=0) @ F.normalize(b, dim=0).mT * t.exp() + c).sum() / len(a)
    ),
    "log_scale is used as it is. It is a logarithm, so that the scale stays positive: multiply by its exp().": (
        lambda a, b, t, c: _signed((_logits(a, b, t, c) - c) / t.exp() * t + c).sum() / len(a)
    ),
    "The logits are divided by the scale. Multiply by exp(log_scale).": (
        lambda a, b, t, c: _signed(_logits(a, b, -t, c)).sum() / len(a)
    ),
    "The bias is missing.": lambda a, b, t, c: _signed(_logits(a, b, t, 0 * c)).sum() / len(a),
    "The bias is subtracted. It is added, and it is learned to be negative, since most pairs do not belong together.": (
        lambda a, b, t, c: _signed(_logits(a, b, t, -c)).sum() / len(a)
    ),
    "The bias is scaled too. Scale the cosine first, then add the bias.": (
        lambda a, b, t, c: _signed(_logits(a, b, t, c * t.exp())).sum() / len(a)
    ),
    "The targets are 0 and 1 in a formula for -1 and +1, so that pairs that do not belong together are never pushed "
    "apart.": lambda a, b, t, c: -F.logsigmoid(torch.eye(len(a)) * _logits(a, b, t, c)).sum() / len(a),
    "The signs are the wrong way round: pairs are pushed apart, and the others together.": (
        lambda a, b, t, c: -F.logsigmoid((1 - 2 * torch.eye(len(a))) * _logits(a, b, t, c)).sum() / len(a)
    ),
    "The minus is missing: this grows when the model gets better.": (
        lambda a, b, t, c: -_signed(_logits(a, b, t, c)).sum() / len(a)
    ),
    "This is CLIP's loss, a softmax over the texts and one over the pictures. SigLIP judges each pair by itself.": (
        lambda a, b, t, c: (
            (
                F.cross_entropy(_logits(a, b, t, c), torch.arange(len(a)))
                + F.cross_entropy(_logits(a, b, t, c).mT, torch.arange(len(a)))
            )
            / 2
        )
    ),
    "This is a softmax over the texts. SigLIP judges each pair by itself, with a sigmoid.": (
        lambda a, b, t, c: F.cross_entropy(_logits(a, b, t, c), torch.arange(len(a)))
    ),
}.items():
    SIGLIP_LOSS.mistake(_sentence)(_version)


# -- vit.update_sizes --------------------------------------------------------------------------------------------------


def update_sizes(encoder: ViT, images: Tensor) -> list[float]:
    """Forward hooks note what goes into a block and what its two parts give."""
    sizes: list[float] = []
    with torch.no_grad():
        x = encoder.patch_embedding(images)
        for block in encoder.blocks:
            for norm, layer in ((block.ln1, block.attn), (block.ln2, block.mlp)):
                update = layer(norm(x))
                sizes.append((update.norm(dim=-1) / x.norm(dim=-1)).mean().item())
                x = x + update
    return sizes


def run_update_sizes(fn, images: Tensor, config: ViTConfig) -> list[float]:
    return fn(with_weights(ViT(config)).eval(), images)


UPDATE_SIZES = Exercise(
    id="vit.update_sizes",
    chapter="02",
    title="Measure it: how much does a sub-layer add?",
    difficulty=2,
    minutes=12,
    why="The residual stream is only ever added to. How large the additions are tells you which blocks do the work, and "
    "a block whose update is near zero can be left out, which is a way to make models smaller.",
    hints=(
        "Walk through the encoder by hand: the patch embedding, then each block's two steps, x plus an update.",
        "Before each addition you hold x and the update, both [batch, patches, dim]. Take the length of each patch's "
        "vector (norm over the last axis), divide, and average over patches and pictures.",
        "x = encoder.patch_embedding(images)\n"
        "for block in encoder.blocks:\n"
        "    for norm, layer in ((block.ln1, block.attn), (block.ln2, block.mlp)):\n"
        "        update = layer(norm(x))\n"
        "        sizes.append(…)\n"
        "        x = x + update",
    ),
    reference=update_sizes,
    cases=lambda: [
        Case(
            noise(1, 3, 8, 8),
            ViTConfig(6, 10, num_blocks=1, num_heads=2, image_size=8, patch_size=4, layer_norm_eps=0.02),
            note="one picture of four patches, one block",
        ),
        Case(
            noise(2, 3, 12, 12, seed=1),
            ViTConfig(12, 20, num_blocks=3, num_heads=3, image_size=12, patch_size=4, layer_norm_eps=0.02),
            note="two pictures of nine patches, three blocks",
        ),
    ],
    call=run_update_sizes,
)


@UPDATE_SIZES.property("two numbers for each block, all positive")
def _(fn) -> None:
    sizes = run_update_sizes(fn, noise(1, 3, 8, 8), ViTConfig(6, 10, 4, 2, 8, 4))
    expect(len(sizes) == 8 and min(sizes) > 0, f"Four blocks should give eight positive numbers; yours are {sizes}.")


def _walk(encoder: ViT, images: Tensor, size) -> list[float]:
    sizes = []
    with torch.no_grad():
        x = encoder.patch_embedding(images)
        for block in encoder.blocks:
            for norm, layer in ((block.ln1, block.attn), (block.ln2, block.mlp)):
                update = layer(norm(x))
                sizes.append(float(size(x, update, norm)))
                x = x + update
    return sizes


for _sentence, _size in {
    "You divide by the length after the addition. The question is how large the update is beside what was there before.": (
        lambda x, u, norm: (u.norm(dim=-1) / (x + u).norm(dim=-1)).mean()
    ),
    "You divide by the length of the normalised vector. The update is added to x itself, so that is what to compare "
    "it with.": lambda x, u, norm: (u.norm(dim=-1) / norm(x).norm(dim=-1)).mean(),
    "These are the lengths of the updates alone. Divide each by the length of the vector that it is added to.": (
        lambda x, u, norm: u.norm(dim=-1).mean()
    ),
    "The fraction is upside down: how large is the update beside x, not x beside the update.": (
        lambda x, u, norm: (x.norm(dim=-1) / u.norm(dim=-1)).mean()
    ),
    "One length is taken over the whole tensor. Each patch has its own: norm(dim=-1), then the mean.": (
        lambda x, u, norm: u.norm() / x.norm()
    ),
    "You divide the mean lengths. Divide patch by patch first, then take the mean.": (
        lambda x, u, norm: u.norm(dim=-1).mean() / x.norm(dim=-1).mean()
    ),
    "The length is taken over the patches (dim=1). A patch's vector is the last axis: dim=-1.": (
        lambda x, u, norm: (u.norm(dim=1) / x.norm(dim=1)).mean()
    ),
    "This is a mean of absolute values, not a length. Take the norm over the last axis.": (
        lambda x, u, norm: (u.abs().mean(-1) / x.abs().mean(-1)).mean()
    ),
    "This is the sum over the patches. Take the mean.": lambda x, u, norm: (u.norm(dim=-1) / x.norm(dim=-1)).sum(),
    "These are squares of lengths: the root is missing.": (
        lambda x, u, norm: (u.square().sum(-1) / x.square().sum(-1)).mean()
    ),
}.items():
    UPDATE_SIZES.mistake(_sentence)(lambda encoder, images, size=_size: _walk(encoder, images, size))


@UPDATE_SIZES.mistake(
    "x is never changed, so that every block is measured on the patch embedding. Add the update to x."
)
def _(encoder, images):
    sizes = []
    with torch.no_grad():
        x = encoder.patch_embedding(images)
        for block in encoder.blocks:
            for norm, layer in ((block.ln1, block.attn), (block.ln2, block.mlp)):
                sizes.append((layer(norm(x)).norm(dim=-1) / x.norm(dim=-1)).mean().item())
    return sizes


@UPDATE_SIZES.mistake("The sub-layers read x as it is. Each reads a normalised copy: layer(norm(x)).")
def _(encoder, images):
    sizes = []
    with torch.no_grad():
        x = encoder.patch_embedding(images)
        for block in encoder.blocks:
            for layer in (block.attn, block.mlp):
                update = layer(x)
                sizes.append((update.norm(dim=-1) / x.norm(dim=-1)).mean().item())
                x = x + update
    return sizes


@UPDATE_SIZES.mistake("There is one number for each block, of both updates together. Measure attention and MLP apart.")
def _(encoder, images):
    sizes = []
    with torch.no_grad():
        x = encoder.patch_embedding(images)
        for block in encoder.blocks:
            y = block(x)
            sizes.append(((y - x).norm(dim=-1) / x.norm(dim=-1)).mean().item())
            x = y
    return sizes
