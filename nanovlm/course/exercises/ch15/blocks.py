"""Chapter 15: a matrix in a few bits a number, block by block."""

from __future__ import annotations

import torch
from torch import Tensor

from nanovlm.adapt import blocks
from nanovlm.course.exercises.common import noise
from nanovlm.course.judge.exercise import Case, Exercise, expect

FOUR = torch.tensor([-1.0, -0.3, 0.2, 1.0])
FIVE = torch.tensor([-1.0, -0.45, 0.0, 0.3, 1.0])
EIGHT = torch.tensor([-1.0, -0.6, -0.35, -0.1, 0.0, 0.2, 0.55, 1.0])


def quantise_blocks(weight: Tensor, code_book: Tensor, block: int) -> tuple[Tensor, Tensor]:
    return blocks.quantise_blocks(weight, block, code_book)


QUANTISE = Exercise(
    id="adapt.quantise_blocks",
    chapter="15",
    title="Four bits a number, block by block",
    difficulty=3,
    minutes=20,
    why="A base that is frozen need not be exact: in four bits a number it takes an eighth of float32's memory, so that "
    "a model fits where its float32 weights would not. One scale for all would let a single outlier ruin the rest.",
    hints=(
        "The code book reaches from -1 to 1. By what must a block be divided, so that it does, too?",
        "Flatten, fill the last block up with zeros, view as [blocks, block]. The scale of a row is its largest absolute "
        "value. Divide by it (not where it is zero), find for each number the nearest entry of the code book, and cut "
        "the filling off again.",
        "flat = weight.flatten()\n"
        "rows = F.pad(flat, (0, -len(flat) % block)).view(-1, block)\n"
        "scales = …                                        # [blocks]\n"
        "scaled = rows / scales.clamp(min=1e-30)[:, None]\n"
        "distance = (scaled[:, :, None] - code_book).abs()   # [blocks, block, entries]\n"
        "codes = …\n"
        "return codes.flatten()[: len(flat)].to(torch.uint8), scales",
    ),
    reference=quantise_blocks,
    cases=lambda: [
        Case(torch.tensor([[0.5, -1.0, 0.1, 2.0, 8.0, -3.0]]), FOUR, 3, note="six numbers in two blocks, four entries"),
        Case(noise(4, 5, seed=1), FIVE, 6, note="twenty numbers in blocks of six: the last has two"),
        Case(noise(6, 8, seed=2) * torch.tensor([1.0, 1, 1, 1, 1, 30, 1, 1]), EIGHT, 12, note="some large numbers"),
    ],
    axes={"codes": "number", "scales": "block"},
)


@QUANTISE.property("what is in the code book comes back exactly")
def _(fn) -> None:
    scales = torch.tensor([0.25, 3.0])
    weight = (EIGHT * scales[:, None]).reshape(4, 4)
    codes, found = fn(weight, EIGHT, 8)
    restored = EIGHT[codes.long()] * found.repeat_interleave(8)
    expect(
        torch.equal(restored, weight.flatten()), "Entries of the code book times a scale do not come back as they were."
    )


@QUANTISE.property("a block of zeros stays zeros")
def _(fn) -> None:
    weight = noise(3, 4, seed=5)
    weight[1] = 0
    codes, scales = fn(weight, FIVE, 4)
    expect(
        FIVE[codes.long()][4:8].eq(0).all() and scales[1] == 0 and scales.isfinite().all(),
        "A block of zeros is divided by a scale of zero, which gives NaN and some code or other: keep the divisor above 0.",
    )


def _quantised(scale=lambda rows: rows.abs().amax(1), code=None, turn=False, divide=True, fill=False):
    def version(weight: Tensor, code_book: Tensor, block: int) -> tuple[Tensor, Tensor]:
        flat = (weight.T if turn else weight).flatten()
        rows = torch.cat([flat, flat.new_zeros(-len(flat) % block)]).view(-1, block)
        scales = scale(rows)
        scaled = rows / scales.clamp(min=1e-30)[:, None] if divide else rows
        codes = code(scaled, code_book) if code else (scaled[..., None] - code_book).abs().argmin(-1)
        return codes.flatten()[: None if fill else len(flat)].to(torch.uint8), scales

    return version


for _sentence, _version in {
    "One scale serves the whole tensor. Each block has its own, so that an outlier spoils its own block alone.": (
        _quantised(lambda rows: rows.abs().max().expand(len(rows)).clone())
    ),
    "The scale is the largest number, not the largest absolute value: a block of negative numbers leaves [-1, 1].": (
        _quantised(lambda rows: rows.amax(1))
    ),
    "The scale is half of the range. Take the largest absolute value, so that zero stays zero.": (
        _quantised(lambda rows: (rows.amax(1) - rows.amin(1)) / 2)
    ),
    "The scale is the standard deviation, so that larger numbers leave [-1, 1]. Take the largest absolute value.": (
        _quantised(lambda rows: rows.std(1))
    ),
    "The scale is the mean of the absolute values. Take the largest one.": _quantised(lambda rows: rows.abs().mean(1)),
    "The entry below is taken, not the nearest one.": (
        _quantised(code=lambda s, book: (torch.searchsorted(book, s.contiguous(), right=True) - 1).clamp(min=0))
    ),
    "The entry above is taken, not the nearest one.": (
        _quantised(code=lambda s, book: torch.searchsorted(book, s.contiguous()).clamp(max=len(book) - 1))
    ),
    "You round as if the entries were evenly spaced. They are denser near zero: look for the nearest one.": (
        _quantised(code=lambda s, book: ((s + 1) / 2 * (len(book) - 1)).round().long())
    ),
    "The numbers are compared with the code book as they are. First divide each block by its scale.": (
        _quantised(divide=False)
    ),
    "The numbers are taken column by column. Blocks run in reading order.": _quantised(turn=True),
    "Codes of the filling are returned, too: there is one code for each number of the weight.": _quantised(fill=True),
}.items():
    QUANTISE.mistake(_sentence)(_version)


@QUANTISE.mistake("There is a scale for each row of the matrix. A block is `block` numbers in reading order.")
def _(weight, code_book, block):
    scales = weight.abs().amax(1)
    scaled = weight / scales.clamp(min=1e-30)[:, None]
    return (scaled[..., None] - code_book).abs().argmin(-1).flatten().to(torch.uint8), scales


@QUANTISE.mistake("The numbers after the last whole block are dropped. Fill the last block up with zeros.")
def _(weight, code_book, block):
    return quantise_blocks(weight.flatten()[: weight.numel() // block * block], code_book, block)
