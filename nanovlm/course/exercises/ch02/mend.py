"""Chapter 02: a block that took over SigLIP's weights without an error, and disagrees with SigLIP."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanovlm.config import ViTConfig
from nanovlm.course.exercises.common import as_wide_as, noise
from nanovlm.course.judge.exercise import Case, Exercise, expect
from nanovlm.models.vision_transformer import ViTBlock

Weights = dict[str, Tensor]


def checkpoint(dim: int, inter: int, seed: int) -> Weights:
    """Random weights of one block under the names that they have in a SigLIP checkpoint of transformers."""
    sizes = {f"self_attn.{name}_proj": (dim, dim) for name in ("q", "k", "v", "out")}
    sizes |= {"mlp.fc1": (inter, dim), "mlp.fc2": (dim, inter)}
    weights: Weights = {}
    for i, (name, size) in enumerate(sizes.items()):
        weights[f"{name}.weight"] = 1.5 * noise(*size, seed=seed + i) / size[1] ** 0.5
        weights[f"{name}.bias"] = noise(size[0], seed=seed + 10 + i) / 2
    for i in (1, 2):
        weights[f"layer_norm{i}.weight"] = 1 + noise(dim, seed=seed + 20 + i) / 4
        weights[f"layer_norm{i}.bias"] = noise(dim, seed=seed + 30 + i) / 4
    return weights


def run_block(weights: Weights, num_heads: int, eps: float, x: Tensor) -> Tensor:
    """The package's block, with the three matrices stacked into one."""
    dim = x.shape[-1]
    size = {"hidden_dim": dim, "inter_dim": len(weights["mlp.fc1.weight"]), "num_blocks": 1, "num_heads": num_heads}
    block = ViTBlock(ViTConfig(**size, image_size=8, patch_size=4, layer_norm_eps=eps))
    own = {}
    for kind in ("weight", "bias"):
        own[f"attn.qkv_proj.{kind}"] = torch.cat([weights[f"self_attn.{name}_proj.{kind}"] for name in "qkv"])
        own[f"attn.out_proj.{kind}"] = weights[f"self_attn.out_proj.{kind}"]
        own |= {f"ln{i}.{kind}": weights[f"layer_norm{i}.{kind}"] for i in (1, 2)}
        own |= {f"mlp.{name}.{kind}": weights[f"mlp.{name}.{kind}"] for name in ("fc1", "fc2")}
    block.load_state_dict(own)
    return block(x).detach()


MEND = Exercise(
    id="vit.mend_block",
    chapter="02",
    title="Mend it: every weight loads, and the features are wrong",
    difficulty=3,
    minutes=15,
    why="Strict loading compares names and shapes. What is done with the weights is in no checkpoint, so a model can load "
    "without an error and still be another one.",
    hints=(
        "There are three faults, and each symptom belongs to one of them. Which lines could mix up patches, which depend "
        "on how much the numbers of a patch differ, and which is the activation?",
        "view(batch, num_heads, num_patches, …) cuts the sequence and not the vectors. layer_norm takes eps as its last "
        "argument. SigLIP's GELU is the one by tanh.",
        "layer_norm(…, weights[…], weights[…], eps)\n"
        "q, k, v: view(batch, num_patches, num_heads, -1).…\n"
        "mixed = …                                # back to [batch, num_patches, dim]\n"
        "F.gelu(…, approximate=…)",
    ),
    reference=run_block,
    cases=lambda: [
        Case(checkpoint(4, 6, 0), 2, 0.02, noise(1, 3, 4), note="three patches, width 4, two heads, eps 0.02"),
        Case(checkpoint(6, 10, 50), 3, 0.003, noise(2, 5, 6, seed=1) / 4, note="two pictures, width 6, three heads"),
        Case(checkpoint(6, 8, 90), 1, 0.3, 2 * noise(2, 4, 6, seed=2), note="one head, eps 0.3"),
    ],
    axes="batch num_patches dim",
    call=lambda fn, weights, num_heads, eps, x: as_wide_as(x, fn(weights, num_heads, eps, x)),
    tolerance=2e-5,
)


@MEND.property("patches in another order give the same vectors in that order")
def _(fn) -> None:
    weights, x, order = checkpoint(6, 8, 90), noise(1, 5, 6), torch.tensor([3, 0, 4, 1, 2])
    moved, out = fn(weights, 3, 0.02, x[:, order]), fn(weights, 3, 0.02, x)
    expect(torch.allclose(moved, out[:, order], atol=1e-4), "Another order of the patches gives other vectors.")


def _block(
    weights: Weights,
    num_heads: int,
    eps: float,
    x: Tensor,
    heads: str = "right",
    norms: tuple[float | None, float | None] = (None, None),
    bend: Any = lambda h: F.gelu(h, approximate="tanh"),
    skips: tuple[str, ...] = (),
    **attention: Any,
) -> Tensor:
    batch, num_patches, dim = x.shape

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], None if "bias" in skips else weights[f"{name}.bias"])

    def norm(i: int, x: Tensor) -> Tensor:
        given = weights[f"layer_norm{i}.weight"], weights[f"layer_norm{i}.bias"]
        return F.layer_norm(x, (dim,), *given, norms[i - 1] or eps)

    def split(x: Tensor) -> Tensor:
        if heads == "as it was":
            return x.view(batch, num_heads, num_patches, -1)
        return x if heads == "one" else x.unflatten(2, (num_heads, -1)).transpose(1, 2)

    def attend(h: Tensor) -> Tensor:
        q, k, v = (split(linear(f"self_attn.{name}_proj", h)) for name in "qkv")
        mixed = F.scaled_dot_product_attention(q, k, v, **attention)
        mixed = mixed.transpose(1, 2) if heads == "right" else mixed
        mixed = mixed.reshape(batch, num_patches, dim)
        return mixed if "out_proj" in skips else linear("self_attn.out_proj", mixed)

    def mlp(h: Tensor) -> Tensor:
        return linear("mlp.fc2", bend(linear("mlp.fc1", h)))

    if "pre" in skips:
        x = norm(1, x + attend(x))
        return norm(2, x + mlp(x))
    h = norm(1, x)
    x = attend(h) + (h if "stream" in skips else 0 if "first" in skips else x)
    h = x if "norm" in skips else norm(2, x)
    return mlp(h) + (h if "stream" in skips else 0 if "second" in skips else x)


_OLD: tuple[float, float] = (1e-5, 1e-5)
_QUICK = 1.702
for _sentence, _how in {
    "This is the code as it was, with all three faults.": {"heads": "as it was", "norms": _OLD, "bend": F.gelu},
    "The heads are right now. Two faults are left: the eps and the GELU.": {"norms": _OLD, "bend": F.gelu},
    "The GELU is right now. Two faults are left: the heads and the eps.": {"heads": "as it was", "norms": _OLD},
    "The eps is right now. Two faults are left: the heads and the GELU.": {"heads": "as it was", "bend": F.gelu},
    "One fault is left: this is the exact GELU, and SigLIP was trained with the one by tanh.": {"bend": F.gelu},
    "One fault is left: without an eps, layer_norm takes 1e-5. The checkpoint's own is given.": {"norms": _OLD},
    "One fault is left: the heads are cut out of the sequence, so that each of them holds a stretch of the patches and "
    "not a stretch of every vector.": {"heads": "as it was"},
    "The second norm still takes 1e-5 as its eps.": {"norms": (None, 1e-5)},
    "The first norm still takes 1e-5 as its eps.": {"norms": (1e-5, None)},
    "The eps is written in as 1e-6, SigLIP's own. Take the one that is given: other checkpoints have others.": {
        "norms": (1e-6, 1e-6)
    },
    "The heads are cut rightly and put back wrongly: transpose heads and patches before the reshape.": {"heads": "cut"},
    "There is one wide head. Cut q, k and v into num_heads.": {"heads": "one"},
    "This is the quick GELU, CLIP's. SigLIP was trained with the one by tanh.": {
        "bend": lambda h: h * torch.sigmoid(_QUICK * h)
    },
    "This is a ReLU. SigLIP was trained with the GELU by tanh.": {"bend": F.relu},
    "Attention is causal. In an encoder every patch attends to every patch.": {"is_causal": True},
    "The scores are not divided by the root of head_dim.": {"scale": 1.0},
    "The norms are behind the addition. SigLIP normalises before each sub-layer.": {"skips": ("pre",)},
    "The update is added to the normalised vector. Add it to x itself.": {"skips": ("stream",)},
    "The residual connection around attention is missing.": {"skips": ("first",)},
    "The residual connection around the MLP is missing.": {"skips": ("second",)},
    "layer_norm2 is missing.": {"skips": ("norm",)},
    "self_attn.out_proj is missing.": {"skips": ("out_proj",)},
    "The biases are missing.": {"skips": ("bias",)},
}.items():

    @MEND.mistake(_sentence)
    def _(weights, num_heads, eps, x, how=_how):
        return _block(weights, num_heads, eps, x, **how)
