"""Chapter 04: the parts of a decoder block that see one token at a time, RMSNorm and SwiGLU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanovlm.config import LMConfig
from nanovlm.course.judge.exercise import Case, Exercise, expect, with_weights
from nanovlm.course.exercises.common import noise
from nanovlm.models.language_model import RMSNorm, SwiGLU

SMALL = LMConfig(
    hidden_dim=8,
    inter_dim=12,
    num_blocks=2,
    num_heads=4,
    num_kv_heads=2,
    vocab_size=7,
    max_positions=16,
    rope_base=100.0,
)

# -- decoder.rms_norm --------------------------------------------------------------------------------------------------


def run_norm(cls, x: Tensor, eps: float) -> Tensor:
    dim = x.shape[-1]
    return with_weights(cls(dim, eps), like=RMSNorm(dim, eps)).to(x.dtype)(x)


RMS_NORM = Exercise(
    id="decoder.rms_norm",
    chapter="04",
    title="Every vector to the same size",
    difficulty=1,
    minutes=8,
    why="It stands twice in every block and once behind the last. It sees each vector that the decoder works with, so "
    "what it gets wrong, half precision above all, is wrong everywhere.",
    hints=(
        "Read the name backwards: square, mean, root. The mean runs over the numbers of one vector, the last axis.",
        "Work in float32: half precision cannot hold the square of 300. Divide x by the root of (mean of squares + "
        "eps), go back to the type that came in, multiply by the weight.",
        "wide = x.float()\n"
        "scale = torch.rsqrt(mean over the last axis of wide ** 2, keepdim=True, + eps)\n"
        "return (wide * scale) in x's dtype, times self.weight",
    ),
    reference=RMSNorm,
    cases=lambda: [
        Case(
            torch.tensor([[[1.0, -1.0, 1.0, -1.0], [6.0, 6.0, 6.0, 6.0], [0.0, 3.0, 0.0, 4.0]]]),
            1e-5,
            note="three vectors of four numbers, and a weight that is not quite 1",
        ),
        Case(noise(2, 5, 6) + 1, 1e-5, note="two rows of five vectors whose mean is not 0"),
        Case(noise(1, 3, 8) * 1e-3, 1e-5, note="vectors so small that eps counts"),
        Case(
            torch.tensor([[[300.0, -300.0, 300.0, 300.0]]], dtype=torch.float16),
            1e-5,
            note="a vector in float16 whose squares float16 cannot hold",
        ),
    ],
    axes="batch length dim",
    call=run_norm,
    tolerance=1e-3,  # float16 has 11 bits, and right versions round in different places
)


@RMS_NORM.property("a vector and its double come out the same")
def _(cls) -> None:
    x, norm = noise(1, 4, 8), with_weights(cls(8, 1e-8))
    expect(
        torch.allclose(norm(x), norm(2 * x), atol=1e-4),
        "A vector of twice the size gives another result. Only eps may.",
    )


@RMS_NORM.property("it starts as no scaling at all: the weight is made of ones")
def _(cls) -> None:
    weight = cls(8, 1e-5).weight
    expect(bool((weight == 1).all()), "A fresh RMSNorm should start with a weight of ones (nn.Parameter, torch.ones).")


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


@RMS_NORM.mistake(
    "The squares are computed in half precision, where 300 * 300 is infinite: the vector becomes 0. Go to float32 "
    "first, and back at the end."
)
class _(_Norm):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale(x) * self.weight


@RMS_NORM.mistake(
    "You subtract the mean first. That is LayerNorm; RMSNorm leaves the mean where it is and only scales."
)
class _(_Norm):
    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() - x.float().mean(dim=-1, keepdim=True)
        return (wide * self.scale(wide)).to(x.dtype) * self.weight


@RMS_NORM.mistake(
    "You divide by the vector's length, the root of the *sum* of squares. It is the root of their *mean*: the result "
    "is sqrt(dim) too small."
)
class _(_Norm):
    def scale(self, x: Tensor) -> Tensor:
        return (x.pow(2).sum(dim=-1, keepdim=True) + self.eps).rsqrt()


@RMS_NORM.mistake("eps is added behind the root. It belongs under it: sqrt(mean + eps), not sqrt(mean) + eps.")
class _(_Norm):
    def scale(self, x: Tensor) -> Tensor:
        return 1 / (x.pow(2).mean(dim=-1, keepdim=True).sqrt() + self.eps)


@RMS_NORM.mistake("The root is missing: you divide by the mean square itself, which is the size squared.")
class _(_Norm):
    def scale(self, x: Tensor) -> Tensor:
        return 1 / (x.pow(2).mean(dim=-1, keepdim=True) + self.eps)


@RMS_NORM.mistake(
    "The mean runs over the tokens of a row. Each vector is scaled by itself, over its last axis; otherwise a token's "
    "size would depend on tokens to come."
)
class _(_Norm):
    def scale(self, x: Tensor) -> Tensor:
        return (x.pow(2).mean(dim=(1, 2), keepdim=True) + self.eps).rsqrt()


@RMS_NORM.mistake(
    "One mean is taken over all of x, so that every vector's size depends on all the others. Each vector is scaled by "
    "itself: the mean runs over the last axis alone."
)
class _(_Norm):
    def scale(self, x: Tensor) -> Tensor:
        return (x.pow(2).mean() + self.eps).rsqrt()


@RMS_NORM.mistake("eps is left out. It counts for small vectors, and keeps a vector of zeros from becoming 0 / 0.")
class _(_Norm):
    def scale(self, x: Tensor) -> Tensor:
        return x.pow(2).mean(dim=-1, keepdim=True).rsqrt()


@RMS_NORM.mistake("The scaling is right, but the learned weight is not used: multiply by self.weight at the end.")
class _(_Norm):
    def forward(self, x: Tensor) -> Tensor:
        return (x.float() * self.scale(x.float())).to(x.dtype)


@RMS_NORM.part
def _(code, learner) -> None:
    code.language_model.RMSNorm = learner


# -- decoder.swiglu ----------------------------------------------------------------------------------------------------


def run_mlp(cls, x: Tensor, config: LMConfig) -> Tensor:
    return with_weights(cls(config), like=SwiGLU(config))(x)


SWIGLU = Exercise(
    id="decoder.swiglu",
    chapter="04",
    title="A gate in the MLP",
    difficulty=1,
    minutes=6,
    why="Three quarters of SmolLM2's weights inside its blocks are in here. gate_proj and up_proj have one "
    "shape, so the one in the other's place raises nothing, and loaded weights answer wrongly.",
    hints=(
        "Two layers go up to inter_dim, one comes down. Only one of the two that go up passes through the activation.",
        "The gate passes through SiLU and is multiplied, number by number, with what up_proj gives. down_proj reads "
        "the product.",
        "in __init__: gate_proj and up_proj: hidden_dim -> inter_dim; down_proj: back; all with bias=False\n"
        "in forward:  down_proj(F.silu(gate) * up)",
    ),
    reference=SwiGLU,
    cases=lambda: [
        Case(torch.tensor([[[1.0, 0, 0, 0, 0, 0, 0, 0], [0.0, -1, 0, 0, 0, 0, 0, 2]]]), SMALL, note="two tokens"),
        Case(3 * noise(2, 3, 8), SMALL, note="two rows of three tokens"),
    ],
    axes="batch length dim",
    call=run_mlp,
)


@SWIGLU.property("tokens do not see each other")
def _(cls) -> None:
    module, x = with_weights(cls(SMALL)), noise(1, 4, 8)
    changed = x.clone()
    changed[:, 2] += 1
    moved = (module(x) - module(changed)).abs().sum(dim=-1)[0] > 0
    expect(moved.tolist() == [False, False, True, False], "Changing token 2 changes other tokens' results as well.")


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


@SWIGLU.mistake("The activation is on the wrong branch: it belongs to gate_proj, and up_proj stays as it is.")
class _(_MLP):
    def inner(self, gate: Tensor, up: Tensor) -> Tensor:
        return gate * F.silu(up)


@SWIGLU.mistake("Both branches pass through SiLU. Only the gate does; up_proj stays as it is.")
class _(_MLP):
    def inner(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * F.silu(up)


@SWIGLU.mistake("There is no activation: the gate passes through SiLU before it is multiplied with up_proj's numbers.")
class _(_MLP):
    def inner(self, gate: Tensor, up: Tensor) -> Tensor:
        return gate * up


@SWIGLU.mistake(
    "A plain sigmoid gate is the older GLU. SiLU is x * sigmoid(x): the gate lets its own size through as well."
)
class _(_MLP):
    def inner(self, gate: Tensor, up: Tensor) -> Tensor:
        return gate.sigmoid() * up


@SWIGLU.mistake("GELU is the vision encoder's activation (with a gate: GEGLU). Llama's weights were trained with SiLU.")
class _(_MLP):
    def inner(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.gelu(gate) * up


@SWIGLU.mistake("The two branches are added. A gate multiplies: where it is near 0, nothing passes.")
class _(_MLP):
    def inner(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) + up


@SWIGLU.mistake(
    "up_proj is not used: this is an ordinary MLP with one hidden layer. Multiply the gate with up_proj(x)."
)
class _(_MLP):
    def inner(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate)


@SWIGLU.mistake("The product goes through the activation. SiLU works on the gate alone, before the product.")
class _(_MLP):
    def inner(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate * up)


@SWIGLU.mistake("The layers have biases; Llama's have none (bias=False), and its weights would not fit.")
class _(_MLP):
    bias = True


@SWIGLU.part
def _(code, learner) -> None:
    code.language_model.SwiGLU = learner
