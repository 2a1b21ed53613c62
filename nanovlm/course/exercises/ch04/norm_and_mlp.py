"""Chapter 04: the parts of a decoder block that see one token at a time, RMSNorm and SwiGLU."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanovlm.config import LMConfig
from nanovlm.course.exercises.common import expect_gradients, noise
from nanovlm.course.judge.exercise import Case, Exercise, expect, with_weights
from nanovlm.models.language_model import RMSNorm, SwiGLU

# No number of it is a usual default, so that one that is written into an answer shows.
SMALL = LMConfig(
    hidden_dim=24,
    inter_dim=20,
    num_blocks=2,
    num_heads=4,
    num_kv_heads=2,
    vocab_size=7,
    max_positions=16,
    rope_base=70.0,
    rms_norm_eps=0.02,
)

# -- decoder.rms_norm --------------------------------------------------------------------------------------------------


def run_norm(cls, x: Tensor, eps: float) -> Tensor:
    dim = x.shape[-1]
    return with_weights(cls(dim, eps), like=RMSNorm(dim, eps)).to(x.dtype)(x)


RMS_NORM = Exercise(
    id="decoder.rms_norm",
    chapter="04",
    title="Bring every vector to one size",
    difficulty=1,
    minutes=8,
    why="RMSNorm is used twice in every block and once after the last one, so every vector of the decoder passes through "
    "it, and what it gets wrong, above all in half precision, is wrong everywhere.",
    hints=(
        "Read the name backwards: square, mean, root. The mean runs over the numbers of one vector, which is the last "
        "axis.",
        "Work in float32, because half precision cannot hold the square of 300. Divide x by the root of (mean of the "
        "squares + eps), return to the dtype that came in, and multiply by the weight.",
        "wide = x.float()\nscale = torch.rsqrt(… + self.eps)      # [..., 1]: keepdim=True\n"
        "return (wide * scale).to(x.dtype) * self.weight",
    ),
    reference=RMSNorm,
    cases=lambda: [
        Case(
            torch.tensor([[[1.0, -1.0, 1.0, -1.0], [6.0, 6.0, 6.0, 6.0], [1.0, 3.0, 0.0, 4.0]]]),
            0.05,
            note="three vectors of four numbers, eps 0.05, and a weight that is not quite 1",
        ),
        Case(noise(2, 5, 6) + 1, 0.3, note="two rows of five vectors whose mean is not 0, eps 0.3"),
        Case(
            torch.tensor([[[300.0, -300.0, 300.0, 150.0]]], dtype=torch.float16),
            0.05,
            note="a vector in float16 whose squares float16 cannot hold",
        ),
    ],
    axes="batch length dim",
    call=run_norm,
    tolerance=2e-3,  # float16 has 11 bits, and right versions round in different places
)


@RMS_NORM.property("eps counts where the vector is small")
def _(cls) -> None:
    x = 0.01 * noise(1, 3, 6)
    for eps in (4e-4, 2e-6):
        same = torch.allclose(run_norm(cls, x, eps), run_norm(RMSNorm, x, eps), rtol=1e-2)
        expect(same, f"With small vectors and eps={eps} the result is wrong: eps is built in. Use the argument.")


@RMS_NORM.property("it starts as no scaling at all: a weight of ones")
def _(cls) -> None:
    weight = cls(8, 1e-5).weight
    expect(bool((weight == 1).all()), "A fresh RMSNorm should start with a weight of ones: torch.ones(dim).")


@RMS_NORM.property("gradients reach the input and the weight")
def _(cls) -> None:
    module, right = with_weights(cls(6, 0.1)), with_weights(RMSNorm(6, 0.1))
    expect_gradients(lambda norm, x: norm(x), module, right, noise(1, 3, 6))


class _Norm(nn.Module):
    """An RMSNorm to build wrong versions from."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def scale(self, x: Tensor) -> Tensor:
        return (x.pow(2).mean(dim=-1, keepdim=True) + self.eps).rsqrt()

    def forward(self, x: Tensor) -> Tensor:
        return (x.float() * self.scale(x.float())).to(x.dtype) * self.weight


def _wrong_norm(sentence: str, forward: Callable[..., Tensor] | None = None, scale=None) -> None:
    members = {name: given for name, given in (("forward", forward), ("scale", scale)) if given is not None}
    RMS_NORM.mistake(sentence)(type("Norm", (_Norm,), members))


_wrong_norm(
    "The squares are computed in half precision, where 300 * 300 is infinite, so the vector becomes 0. Go to float32 "
    "first, and back at the end.",
    forward=lambda self, x: x * self.scale(x) * self.weight,
)
_wrong_norm(
    "You subtract the mean first. That is LayerNorm; RMSNorm leaves the mean where it is and only scales.",
    forward=lambda self, x: F.layer_norm(x.float(), x.shape[-1:], None, None, self.eps).to(x.dtype) * self.weight,
)
_wrong_norm(
    "You divide by the vector's length, the root of the *sum* of squares. RMSNorm takes the root of their *mean*: your "
    "result is sqrt(dim) too small.",
    scale=lambda self, x: x.pow(2).sum(dim=-1, keepdim=True).rsqrt(),
)
_wrong_norm(
    "You divide by the root of the *sum* of squares (and of eps). RMSNorm takes the root of their *mean*.",
    scale=lambda self, x: (x.pow(2).sum(dim=-1, keepdim=True) + self.eps).rsqrt(),
)
_wrong_norm(
    "You divide by the standard deviation, which measures the distance from the mean. RMSNorm leaves the mean alone: "
    "take the root of the mean of the squares.",
    scale=lambda self, x: 1 / (x.std(dim=-1, keepdim=True) + self.eps),
)
_wrong_norm(
    "eps is added behind the root. It belongs under it: sqrt(mean + eps), not sqrt(mean) + eps.",
    scale=lambda self, x: 1 / (x.pow(2).mean(dim=-1, keepdim=True).sqrt() + self.eps),
)
_wrong_norm(
    "The root is missing: you divide by the mean square itself, which is the size squared.",
    scale=lambda self, x: 1 / (x.pow(2).mean(dim=-1, keepdim=True) + self.eps),
)
_wrong_norm(
    "The mean runs over the tokens of a row. Each vector is scaled by itself, over its last axis; otherwise the size of "
    "a token would depend on tokens that come later.",
    scale=lambda self, x: (x.pow(2).mean(dim=1, keepdim=True) + self.eps).rsqrt(),
)
_wrong_norm(
    "The mean runs over all numbers of a row, tokens and vectors together. Each vector is scaled by itself: the mean "
    "runs over the last axis alone.",
    scale=lambda self, x: (x.pow(2).mean(dim=(1, 2), keepdim=True) + self.eps).rsqrt(),
)
_wrong_norm(
    "One mean is taken over all of x, so that the size of every vector depends on all others. Each vector is scaled by "
    "itself: the mean runs over the last axis alone.",
    scale=lambda self, x: (x.pow(2).mean() + self.eps).rsqrt(),
)
_wrong_norm(
    "eps is left out, or eps is built in as a small number of your own. Use the eps that is given, under the root: it "
    "counts for small vectors.",
    scale=lambda self, x: (x.pow(2).mean(dim=-1, keepdim=True) + 1e-6).rsqrt(),
)
_wrong_norm(
    "The scaling is right, but the learned weight is not used: multiply by self.weight at the end.",
    forward=lambda self, x: (x.float() * self.scale(x.float())).to(x.dtype),
)
_wrong_norm(
    "The weight is multiplied in before the size is measured, so that it changes the size and is divided out again. "
    "Scale first, then multiply.",
    forward=lambda self, x: (x * self.weight).float().mul(self.scale((x * self.weight).float())).to(x.dtype),
)
_wrong_norm(
    "The numbers are right, but they have not come back to the type that came in: a model in half precision would go on "
    "in float32.",
    forward=lambda self, x: x.float() * self.scale(x.float()) * self.weight.float(),
)


@RMS_NORM.part
def _(code, learner) -> None:
    code.language_model.RMSNorm = learner


# -- decoder.swiglu ----------------------------------------------------------------------------------------------------


def run_mlp(cls, x: Tensor, config: LMConfig) -> Tensor:
    return with_weights(cls(config), like=SwiGLU(config))(x)


SWIGLU = Exercise(
    id="decoder.swiglu",
    chapter="04",
    title="An MLP with a gate",
    difficulty=1,
    minutes=6,
    why="Three quarters of the weights in SmolLM2's blocks belong to this MLP. gate_proj and up_proj have the same shape, "
    "so exchanging them raises no error, and loaded weights give wrong answers.",
    hints=(
        "Two layers go up to inter_dim and one comes down. Only one of the two that go up passes through the "
        "activation.",
        "The gate passes through SiLU and is multiplied, number by number, with the output of up_proj. down_proj reads "
        "the product.",
        "in __init__: gate_proj and up_proj: hidden_dim -> inter_dim; down_proj: back; all with bias=False\n"
        "in forward:  return self.down_proj(…)      # F.silu on one of the two, then a product",
    ),
    reference=SwiGLU,
    cases=lambda: [
        Case(torch.eye(24)[None, :2] * 3, SMALL, note="two tokens, each with a single number"),
        Case(3 * noise(2, 3, 24), SMALL, note="two rows of three tokens"),
    ],
    axes="batch length dim",
    call=run_mlp,
)


@SWIGLU.property("tokens do not see each other")
def _(cls) -> None:
    module, x = with_weights(cls(SMALL)), noise(1, 4, 24)
    changed = x.clone()
    changed[:, 2] += 1
    moved = (module(x) - module(changed)).abs().sum(dim=-1)[0] > 0
    expect(moved.tolist() == [False, False, True, False], "Changing token 2 changes other tokens' results as well.")


@SWIGLU.property("gradients reach the input and every weight")
def _(cls) -> None:
    module, right = with_weights(cls(SMALL)), with_weights(SwiGLU(SMALL))
    expect_gradients(lambda mlp, x: mlp(x), module, right, noise(1, 3, 24))


class _MLP(nn.Module):
    """A SwiGLU to build wrong versions from."""

    bias = False

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_dim, config.inter_dim, bias=self.bias)
        self.up_proj = nn.Linear(config.hidden_dim, config.inter_dim, bias=self.bias)
        self.down_proj = nn.Linear(config.inter_dim, config.hidden_dim, bias=self.bias)

    def inner(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * up

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.inner(self.gate_proj(x), self.up_proj(x)))


def _wrong_mlp(sentence: str, inner: Callable[[Tensor, Tensor], Tensor]) -> None:
    SWIGLU.mistake(sentence)(type("MLP", (_MLP,), {"inner": lambda self, gate, up: inner(gate, up)}))


_wrong_mlp(
    "The activation is on the wrong branch: it belongs to gate_proj, and up_proj stays as it is.",
    lambda gate, up: gate * F.silu(up),
)
_wrong_mlp(
    "Both branches pass through SiLU. Only the gate does; up_proj stays as it is.",
    lambda gate, up: F.silu(gate) * F.silu(up),
)
_wrong_mlp(
    "There is no activation: the gate passes through SiLU before it is multiplied with the output of up_proj.",
    lambda gate, up: gate * up,
)
_wrong_mlp(
    "A plain sigmoid gate is the older GLU. SiLU is x * sigmoid(x): the gate lets its own size through as well.",
    lambda gate, up: gate.sigmoid() * up,
)
_wrong_mlp(
    "A plain sigmoid is used for SiLU, which is x * sigmoid(x), and it stands on the wrong branch: the gate is "
    "gate_proj.",
    lambda gate, up: up.sigmoid() * gate,
)
_wrong_mlp(
    "GELU is the vision encoder's activation (with a gate: GEGLU). Llama's weights were trained with SiLU.",
    lambda gate, up: F.gelu(gate) * up,
)
_wrong_mlp(
    "GELU (the tanh form) is SigLIP's activation. Llama's weights were trained with SiLU.",
    lambda gate, up: F.gelu(gate, approximate="tanh") * up,
)
_wrong_mlp("ReLU cuts off what SiLU lets through below 0: use F.silu.", lambda gate, up: F.relu(gate) * up)
_wrong_mlp(
    "The gate passes through a softmax, so that its numbers compete. Each number of the gate opens by itself: F.silu.",
    lambda gate, up: gate.softmax(dim=-1) * up,
)
_wrong_mlp(
    "The two branches are added. A gate multiplies: where it is near 0, nothing passes.",
    lambda gate, up: F.silu(gate) + up,
)
_wrong_mlp(
    "up_proj is not used: this is an ordinary MLP with one hidden layer. Multiply the gate with up_proj(x).",
    lambda gate, up: F.silu(gate),
)
_wrong_mlp("gate_proj is not used: up_proj goes through SiLU alone.", lambda gate, up: F.silu(up))
_wrong_mlp(
    "The product goes through the activation. SiLU works on the gate alone, before the product.",
    lambda gate, up: F.silu(gate * up),
)


@SWIGLU.mistake("x is added to the result. The block adds, not the MLP.")
class _(_MLP):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


@SWIGLU.mistake(
    "down_proj is applied to each branch, and the results are multiplied. down_proj reads the product of the branches."
)
class _(_MLP):
    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x))) * self.down_proj(self.up_proj(x))


@SWIGLU.mistake("The layers have biases; Llama's have none (bias=False), and its weights would not fit.")
class _(_MLP):
    bias = True


@SWIGLU.part
def _(code, learner) -> None:
    code.language_model.SwiGLU = learner
