"""Chapter 15: a low-rank adapter beside a frozen layer, and back into it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nanovlm.adapt.lora import LoRALinear
from nanovlm.course.exercises.common import noise
from nanovlm.course.judge.exercise import Case, Exercise, expect, with_weights

# -- adapt.lora_linear -------------------------------------------------------------------------------------------------


def built(cls, in_features: int, out_features: int, rank: int, alpha: float, bias: bool = True):
    """(the frozen layer, the adapted one), with the parameters that were asked for."""
    base = with_weights(nn.Linear(in_features, out_features, bias=bias))
    layer = cls(base, rank, alpha)
    expect(isinstance(layer, nn.Module), f"This should build an nn.Module; it built {type(layer).__name__}.")
    parameters = dict(layer.named_parameters())
    for name, shape in (("lora_a", [rank, in_features]), ("lora_b", [out_features, rank])):
        expect(
            name in parameters,
            f"The module has no parameter {name}: keep an nn.Parameter under that name, or no optimizer finds it.",
        )
        found = list(parameters[name].shape)
        expect(found == shape, f"{name} has shape {found}; it should be {shape}.")
    return base, layer


def opened(layer):
    """As after some training: B is no longer zero."""
    with torch.no_grad():
        layer.lora_a.copy_(noise(*layer.lora_a.shape, seed=3))
        layer.lora_b.copy_(noise(*layer.lora_b.shape, seed=4))
    return layer


def run_lora(cls, x: Tensor, out_features: int, rank: int, alpha: float, bias: bool = True) -> Tensor:
    return opened(built(cls, x.shape[-1], out_features, rank, alpha, bias)[1])(x)


LORA = Exercise(
    id="adapt.lora_linear",
    chapter="15",
    title="A trained difference beside a frozen matrix",
    difficulty=2,
    minutes=15,
    why="A hundredth of the weights is enough to teach a model something new, and the other ninety-nine stay what they "
    "were, bit for bit. One line in it decides whether training can begin at all.",
    hints=(
        "Which of A and B may be zero at the start, so that the output is the base's and a gradient still arrives?",
        "Keep the base and set requires_grad of its parameters to False. lora_a [rank, in] is random and small, lora_b "
        "[out, rank] zero, both nn.Parameter. The forward pass adds alpha / rank times what x becomes behind A and B.",
        "self.base = base.requires_grad_(False)\n"
        "self.lora_a = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)\n"
        "self.lora_b = nn.Parameter(…)\n"
        "…\n"
        "return self.base(x) + self.scale * …",
    ),
    reference=LoRALinear,
    cases=lambda: [
        Case(noise(2, 3), 4, 1, 3.0, note="two vectors of 3 numbers, 4 outputs, rank 1, alpha 3"),
        Case(noise(2, 5, 6, seed=1), 3, 4, 10.0, note="a batch of sequences, rank 4, alpha 10"),
        Case(noise(3, 5, seed=2), 7, 2, 0.5, bias=False, note="a base without a bias"),
    ],
    axes="batch out_features",
    call=run_lora,
)


@LORA.property("a new adapter changes nothing")
def _(cls) -> None:
    base, layer = built(cls, 6, 5, 2, 3.0)
    x = noise(4, 6)
    expect(
        torch.allclose(layer(x), base(x), atol=1e-6),
        "Before any training the output is other than the base's: start from a difference of zero, with B zero.",
    )


@LORA.property("both matrices can learn")
def _(cls) -> None:
    layer = built(cls, 6, 5, 2, 3.0)[1]
    expect(
        layer.lora_a.any() or layer.lora_b.any(),
        "A and B are both zero. Each one's gradient is multiplied by the other, so neither will ever move.",
    )
    expect(
        layer.lora_a.any(),
        "A is zero and B random. That would train as well; keep to the papers' order, A random and B zero, so that your "
        "adapters begin as peft's do.",
    )


@LORA.property("the base is frozen")
def _(cls) -> None:
    base, layer = built(cls, 6, 5, 2, 3.0)
    trained = {name for name, p in layer.named_parameters() if p.requires_grad} - {"lora_a", "lora_b"}
    trained |= {name for name, p in base.named_parameters() if p.requires_grad}
    expect(not trained, f"{', '.join(sorted(trained))} would be trained as well: only lora_a and lora_b are.")
    expect(layer.lora_a.requires_grad and layer.lora_b.requires_grad, "lora_a and lora_b are frozen; they are trained.")


@LORA.property("gradients reach A, B and the layers before")
def _(cls) -> None:
    grads = []
    for each in (cls, LoRALinear):
        layer, x = opened(built(each, 6, 5, 2, 3.0)[1]), noise(4, 6).requires_grad_()
        out = layer(x)
        expect(out.requires_grad, "No gradient comes back from the output: no_grad or detach cuts the way.")
        wanted = [x, layer.lora_a, layer.lora_b]
        grads.append(torch.autograd.grad((out * noise(4, 5, seed=9)).sum(), wanted, allow_unused=True))
    for name, own, right in zip(("the input", "lora_a", "lora_b"), *grads, strict=True):
        expect(
            own is not None and torch.allclose(own, right, rtol=1e-3, atol=1e-5),
            f"The gradient that reaches {name} is not the whole one. The base is frozen, but the gradient still has to "
            "pass through it to the layers before: no no_grad and no detach in forward.",
        )


class _Lora(nn.Module):
    """The reference, with one thing at a time to get wrong."""

    wrong = ""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.randn(rank, base.in_features) * 0.1)
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))
        self.scale = {"none": 1.0, "alpha": alpha, "upside down": rank / alpha}.get(self.wrong, alpha / rank)
        self.scale = alpha / rank**0.5 if self.wrong == "root" else self.scale

    def forward(self, x: Tensor) -> Tensor:
        out = 0 if self.wrong == "alone" else self.base(x)
        out = x @ self.base.weight.T if self.wrong == "bias" else out
        out = out * self.scale if self.wrong == "all" else out
        return out + self.scale * (x @ self.lora_a.T @ self.lora_b.T)


for _name, _sentence in {
    "none": "The scale is missing: the difference counts alpha / rank.",
    "alpha": "The difference counts alpha; it is alpha divided by the rank, so that a rank of 16 starts no louder than 4.",
    "root": "You divide by the root of the rank, as rank-stabilised LoRA does. Here the scale is alpha / rank.",
    "upside down": "The scale is upside down: alpha / rank.",
    "alone": "This is the difference alone. The base's own output is missing.",
    "bias": "The base's bias is lost: call the base, not its matrix alone.",
    "all": "The base's output is scaled as well. Only the difference is.",
}.items():
    LORA.mistake(_sentence)(type(f"_{_name.title().replace(' ', '')}", (_Lora,), {"wrong": _name}))


# -- adapt.merge_lora --------------------------------------------------------------------------------------------------


def merge_lora(weight: Tensor, lora_a: Tensor, lora_b: Tensor, alpha: float) -> Tensor:
    """Computed in float32, rounded once."""
    difference = alpha / len(lora_a) * (lora_b.float() @ lora_a.float())
    return (weight.float() + difference).to(weight.dtype)


MERGE = Exercise(
    id="adapt.merge_lora",
    chapter="15",
    title="Mend it: a merge that fits square matrices only",
    difficulty=2,
    minutes=10,
    why="A merged adapter costs nothing when the model answers. A wrong merge raises no error on square matrices, which "
    "most of a decoder's are, and the model answers in whole, wrong sentences.",
    hints=(
        "Write down the shapes of weight, lora_a and lora_b. Which product of the two has the shape of weight?",
        "A linear layer computes x W^T, the adapter x A^T B^T = x (B A)^T. So what is added to W is B A, times alpha / "
        "rank, and the rank is the number of A's rows. Return a new tensor: whoever keeps several adapters needs the "
        "base again.",
        "rank = len(…)\n"
        "difference = alpha / rank * (….float() @ ….float())\n"
        "return (weight.float() + difference).to(…)",
    ),
    reference=merge_lora,
    cases=lambda: [
        Case(noise(3, 3), noise(1, 3, seed=1), noise(3, 1, seed=2), 2.0, note="a square matrix, rank 1, alpha 2"),
        Case(noise(4, 6, seed=3), noise(2, 6, seed=4), noise(4, 2, seed=5), 3.0, note="4 outputs, 6 inputs, rank 2"),
        Case(noise(5, 5, seed=6), noise(3, 5, seed=7), noise(5, 3, seed=8), 4.5, note="a square matrix, rank 3"),
    ],
    axes="out_features in_features",
)


@MERGE.property("merged and unmerged give the same")
def _(fn) -> None:
    weight, a, b, x = noise(5, 7), noise(2, 7, seed=1), noise(5, 2, seed=2), noise(4, 7, seed=3)
    beside = x @ weight.T + 1.5 / 2 * (x @ a.T @ b.T)
    expect(torch.allclose(x @ fn(weight, a, b, 1.5).T, beside, atol=1e-4), "Merged, the layer answers other numbers.")


@MERGE.property("16 bits are rounded once")
def _(fn) -> None:
    weight, a, b = noise(8, 5, seed=6).bfloat16(), noise(3, 5, seed=7), noise(8, 3, seed=8)
    out = fn(weight, a, b, 4.5)
    expect(
        out.dtype == weight.dtype,
        f"A weight in {weight.dtype} comes back in {out.dtype}: round to its dtype at the end.",
    )
    expect(
        torch.equal(out, merge_lora(weight, a, b, 4.5)),
        "With a weight in 16 bits, something is rounded on the way. Compute in float32, and round once at the end.",
    )


def _merged(scale=lambda a, b, alpha: alpha / len(a), product=lambda a, b: b @ a, join=torch.add):
    def version(weight: Tensor, lora_a: Tensor, lora_b: Tensor, alpha: float) -> Tensor:
        difference = scale(lora_a, lora_b, alpha) * product(lora_a.float(), lora_b.float())
        return join(weight.float(), difference.reshape(weight.shape)).to(weight.dtype)

    return version


for _sentence, _version in {
    "The difference is transposed: a square matrix hides it. What is added to W is B A, with B's rows for the outputs.": (
        _merged(product=lambda a, b: a.T @ b.T)
    ),
    "The scale is missing: alpha / rank.": _merged(scale=lambda a, b, alpha: 1.0),
    "The difference counts alpha; it is alpha / rank.": _merged(scale=lambda a, b, alpha: alpha),
    "You divide by the number of outputs. The rank is the number of A's rows.": (
        _merged(scale=lambda a, b, alpha: alpha / len(b))
    ),
    "You divide by the number of inputs. The rank is the number of A's rows, not of its columns.": (
        _merged(scale=lambda a, b, alpha: alpha / a.shape[1])
    ),
    "This is the difference alone; add the weight.": _merged(join=lambda w, d: d),
    "The difference is added twice.": _merged(join=lambda w, d: w + 2 * d),
    "The difference is taken away, which undoes a merge. Add it.": _merged(join=torch.sub),
    "The weight is multiplied with 1 + the difference. The adapter's output is added, so its matrix is, too.": (
        _merged(join=lambda w, d: w * (1 + d))
    ),
    "The weight comes back as it was: nothing is merged.": _merged(join=lambda w, d: w),
}.items():
    MERGE.mistake(_sentence)(_version)
