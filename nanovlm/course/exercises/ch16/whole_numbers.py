"""Chapter 16: weights as whole numbers, and training that sees them so."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nanovlm.compress import int8, qat
from nanovlm.course.exercises.common import noise
from nanovlm.course.judge.exercise import Case, Exercise, expect

# -- compress.int8_rowwise ---------------------------------------------------------------------------------------------


def int8_rowwise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The package's, in eight bits."""
    return int8.quantise_rows(weight, 8)


def run_int8(quantise: Callable[[Tensor], tuple[Tensor, Tensor]], weight: Tensor) -> tuple[Tensor, Tensor]:
    """A row of zeros may have any scale: it is compared as 1."""
    out = quantise(weight)
    expect(
        isinstance(out, (tuple, list)) and len(out) == 2 and all(isinstance(x, Tensor) for x in out),
        "Return two tensors: the whole numbers and the scales.",
    )
    numbers, scales = out
    expect(
        tuple(scales.shape) == (len(weight), 1),
        f"The scales have the shape {list(scales.shape)}. Each row of the {len(weight)} has one, kept as an axis that "
        "broadcasts: [rows, 1].",
    )
    expect(numbers.dtype == torch.int8, f"The numbers are {numbers.dtype}: an int8 is what takes one byte.")
    empty = ~weight.any(dim=1, keepdim=True)
    expect(not numbers[empty[:, 0]].any(), "A row of zeros does not stay zeros: its scale is 0, and 0 / 0 is NaN.")
    expect(scales.isfinite().all(), "A scale is NaN or infinite. What is it for a row of zeros?")
    expect(
        scales.any(dim=1).all(),
        "The scale of a row of zeros is 0, and 0 / 0 is NaN: what int8 makes of that depends on the processor.",
    )
    return numbers, scales.float().masked_fill(empty, 1.0)


ROWS = torch.tensor([[0.5, -1.5, 0.2], [30.0, 12.0, -6.0], [0.0, 0.0, 0.0], [-0.02, 0.004, 0.0111]])

ROWWISE = Exercise(
    id="compress.int8_rowwise",
    chapter="16",
    title="A row in whole numbers",
    difficulty=1,
    minutes=10,
    why="A quarter of the bytes, and no entry off by more than half a step. All of quantisation is this function and the "
    "question of who shares a scale.",
    hints=(
        "The entry of the largest size in a row becomes 127 or -127. What is every entry divided by, then?",
        "Scales [rows, 1]: the largest absolute value of each row (amax with keepdim=True) over 127, kept above zero. "
        "Divide, round, convert to torch.int8. Return both.",
        "scales = (weight.abs().amax(dim=1, keepdim=True) / …).clamp(min=1e-12)\n"
        "return (weight / scales).….to(torch.int8), scales",
    ),
    reference=int8_rowwise,
    cases=lambda: [
        Case(ROWS, note="four rows of very different sizes, one of zeros"),
        Case(noise(3, 9, seed=1) - 0.7, note="nine numbers a row, mostly negative"),
        Case(noise(2, 5, seed=2) * 1e3 + 2e3, note="numbers that are all positive"),
    ],
    axes={"numbers": "rows dim", "scales": "rows 1"},
    call=run_int8,
)


@ROWWISE.property("no entry is off by more than half a step of its row")
def _(quantise) -> None:
    weight = noise(16, 33, seed=3) * torch.logspace(-3, 3, 16)[:, None]
    numbers, scales = quantise(weight)
    off = ((numbers.float() * scales - weight).abs() / scales).max()
    expect(off <= 0.501, f"An entry is off by {float(off):.2f} steps.")


def _rows(
    over: Callable[[Tensor], Tensor] = lambda w: w.abs().amax(dim=1, keepdim=True),
    largest: float = 127,
    tidy: Callable[[Tensor], Tensor] = torch.round,
    floor: float = 1e-12,
    kept: Callable[[Tensor], Tensor] = lambda s: s,
    clamp: bool = False,
    dtype: torch.dtype = torch.int8,
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def quantise(weight):
        scales = (over(weight) / largest).clamp(min=floor)
        numbers = tidy(weight / scales)
        return (numbers.clamp(-largest, 127) if clamp else numbers).to(dtype), kept(scales.expand(len(weight), 1))

    return quantise


SHARED = "One scale serves the whole matrix, so that a row of small numbers has few steps left, or none. Each row has its own."
TO_128 = (
    "You divide by 128 steps, and int8 ends at 127: the largest positive entry becomes -128, or is cut off. 127 is on "
    "both sides."
)
for sentence, wrong in (
    (SHARED, _rows(over=lambda w: w.abs().max())),
    (
        "The numbers are cut off and not rounded: an entry may be off by a whole step instead of half.",
        _rows(tidy=torch.trunc),
    ),
    ("The numbers are rounded down (floor), which makes every row smaller on average. Round.", _rows(tidy=torch.floor)),
    (TO_128, _rows(largest=128)),
    (f"{TO_128} Cutting it off spoils the largest entry of the row.", _rows(largest=128, clamp=True)),
    (
        "It is the largest absolute value that has to fit: a row whose largest size is negative would wrap round.",
        _rows(over=lambda w: w.amax(dim=1, keepdim=True)),
    ),
    (
        "It is the largest absolute value that has to fit: here the most negative entries are cut off at -127.",
        _rows(over=lambda w: w.amax(dim=1, keepdim=True), clamp=True),
    ),
    (
        "The scales are upside down: what comes back multiplies the whole numbers to give the weight.",
        _rows(kept=lambda s: 1 / s),
    ),
    ("255 steps are all that eight bits have, with both signs: 127 on either side.", _rows(largest=255)),
):
    ROWWISE.mistake(sentence)(wrong)


@ROWWISE.mistake(
    "The scales are one for each column: what is summed in a product is a row of the weight, so that only a scale a row can "
    "be taken out of the sum. Return [rows, 1]."
)
def _(weight):
    scales = (weight.abs().amax(dim=0, keepdim=True) / 127).clamp(min=1e-12)
    return (weight / scales).round().to(torch.int8), scales


@ROWWISE.mistake(
    "You map the least entry to -128 and the largest to 127. That needs a zero point beside the scale, or the weight does not "
    "come back; here the largest absolute value becomes 127, and zero stays zero."
)
def _(weight):
    low, high = weight.amin(dim=1, keepdim=True), weight.amax(dim=1, keepdim=True)
    scales = ((high - low) / 255).clamp(min=1e-12)
    return ((weight - low) / scales - 128).round().clamp(-128, 127).to(torch.int8), scales


# -- compress.fake_quant -----------------------------------------------------------------------------------------------


def fake_quant(weight: Tensor, bits: int) -> Tensor:
    """The package's, one scale a row."""
    return qat.fake_quant(weight, bits)


def run_fake(quantise: Callable[[Tensor, int], Tensor], weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """What the forward pass sees, and the gradient of a weighted sum of it."""
    weight = weight.clone().requires_grad_()
    out = quantise(weight, bits)
    expect(isinstance(out, Tensor), f"It returned {type(out).__name__}: return the rounded weight, a tensor.")
    expect(out.shape == weight.shape, f"A weight {list(weight.shape)} came back as {list(out.shape)}.")
    towards = noise(*weight.shape, seed=8)
    (gradient,) = (
        torch.autograd.grad((out.float() * towards).sum(), weight, allow_unused=True) if out.requires_grad else (None,)
    )
    if gradient is None or not gradient.any():
        expect(
            False,
            "No gradient comes back: everything is detached or rounded on the way. Only the *difference* that rounding makes "
            "is to be constant.",
        )
    return out.detach().to(weight.dtype), gradient


FAKE = Exercise(
    id="compress.fake_quant",
    chapter="16",
    title="Mend it: training that cannot feel its weights",
    difficulty=2,
    minutes=12,
    why="Rounding is flat almost everywhere, so its true gradient is zero. One line gives the forward pass the rounded weight "
    "and the backward pass the weight itself, and a model that rounding has ruined can be trained again.",
    hints=(
        "Print the gradient of the colleague's version. Which entry of each row gets one, and by which way? Then count how "
        "many different values a row has with bits = 2.",
        "Two faults. With a sign, b bits reach up to 2^(b - 1) - 1 on either side. And the rounded weight is the weight plus "
        "a difference: let the gradient see the first part alone, and detach the second.",
        "largest = …\n"
        "scales = weight.abs().amax(dim=-1, keepdim=True) / largest\n"
        "rounded = (weight / scales).round() * scales\n"
        "return weight + (…).detach()",
    ),
    reference=fake_quant,
    cases=lambda: [
        Case(
            torch.tensor([[0.9, -0.31, 0.1], [-2.0, 1.2, 3.0]]), 3, note="two rows of three, 3 bits: steps from -3 to 3"
        ),
        Case(noise(4, 6, seed=1), 4, note="4 bits"),
        Case(noise(2, 5, seed=2) * 10, 2, note="2 bits: one step on either side"),
    ],
    axes={"rounded": "rows dim", "gradient": "rows dim"},
    call=run_fake,
)


@FAKE.property("training moves a rounded weight to where it should be")
def _(quantise) -> None:
    weight, target = torch.full((1, 4), 0.1), torch.tensor([[1.0, -1.0, 0.0, 1.0]])
    weight = (weight + torch.tensor([[0.05, 0.0, 0.0, 0.0]])).requires_grad_()
    for _ in range(60):
        loss = (quantise(weight, 2) - target).square().sum()
        (gradient,) = torch.autograd.grad(loss, weight)
        weight = (weight.detach() - 0.05 * gradient).requires_grad_()
    loss = float(loss.detach())
    expect(loss < 0.3, f"After 60 steps of descent the loss is {loss:.2f}; it should fall below 0.3.")


def _fake(
    largest: Callable[[int], int] = lambda bits: 2 ** (bits - 1) - 1,
    out: Callable[[Tensor, Tensor], Tensor] = lambda weight, rounded: weight + (rounded - weight).detach(),
    over: Callable[[Tensor], Tensor] = lambda w: w.abs().amax(dim=-1, keepdim=True),
    tidy: Callable[[Tensor], Tensor] = torch.round,
) -> Callable[[Tensor, int], Tensor]:
    def quantise(weight, bits):
        scales = over(weight) / largest(bits)
        return out(weight, tidy(weight / scales) * scales)

    return quantise


def _unsigned(bits: int) -> int:
    return 2**bits - 1


for sentence, wrong in (
    (
        "Both faults are still there: the range has no place for a sign, and the only gradient is the one of the scale, which "
        "goes to the largest entry of each row.",
        _fake(_unsigned, lambda weight, rounded: rounded),
    ),
    (
        "The gradient is still the true one, which rounding makes zero; what is left comes through the scale, to the largest "
        "entry of each row.",
        _fake(out=lambda weight, rounded: rounded),
    ),
    (
        "One bit is the sign: b bits reach up to 2^(b - 1) - 1 on either side. The gradient is right now.",
        _fake(_unsigned),
    ),
    (
        "The range ends at 2^(bits - 1), one more than a signed number has on its positive side: 2^(bits - 1) - 1.",
        _fake(lambda bits: 2 ** (bits - 1)),
    ),
    (
        "Nothing is rounded: what comes back is the weight itself. Add the difference that rounding makes, detached.",
        _fake(out=lambda weight, rounded: weight + 0),
    ),
    (
        "The weight is in the result twice: add the *difference* of rounded and weight, detached.",
        _fake(out=lambda weight, rounded: weight + rounded.detach()),
    ),
    (
        "One scale serves the whole matrix: each row has its own (dim=-1, keepdim=True).",
        _fake(over=lambda w: w.abs().max()),
    ),
    ("The numbers are rounded down: round to the nearest.", _fake(tidy=torch.floor)),
    (
        "The sign of the difference is wrong: weight + (rounded - weight) is rounded.",
        _fake(out=lambda weight, rounded: weight - (rounded - weight).detach()),
    ),
):
    FAKE.mistake(sentence)(wrong)


@FAKE.mistake(
    "The gradient passes the rounding, but goes through the scale as well, so that the largest entry of each row gets a part "
    "of all the others'. To the gradient, the whole function is the weight."
)
def _(weight, bits):
    scales = weight.abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 1)
    steps = weight / scales
    return (steps + (steps.round() - steps).detach()) * scales
