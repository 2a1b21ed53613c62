"""Quantisation-aware training: the forward pass sees rounded weights, the gradient passes straight through the rounding
(Bengio et al. 2013, arXiv:1308.3432; Jacob et al. 2018, arXiv:1712.05877)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nanovlm.compress.int8 import Int8Linear, in_groups, own_linear, quantise_rows


def fake_quant(weight: Tensor, bits: int = 8, group: int | None = None) -> Tensor:
    """`weight` [rows, dim] as whole numbers of so many bits would give it back; to the gradient it is `weight` itself.

    Rounding has slope zero almost everywhere: with its true gradient nothing would ever learn.
    """
    numbers, scales = quantise_rows(in_groups(weight, group), bits)
    return weight + ((numbers * scales).flatten(1).to(weight.dtype) - weight).detach()


class FakeQuantLinear(nn.Linear):
    """A linear layer, under its old names, whose forward pass uses the rounded matrix."""

    def __init__(self, layer: nn.Linear, bits: int, group: int | None = None) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would draw weights that nobody needs
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bits, self.group = bits, group
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, fake_quant(self.weight, self.bits, self.group), self.bias)


def prepare_qat(model: nn.Module, bits: int = 8, group: int | None = None) -> list[str]:
    """Round each linear layer's matrix in the forward pass from now on, in place. Returns: their names."""
    layers = own_linear(model)
    for name, layer in layers.items():
        model.set_submodule(name, FakeQuantLinear(layer, bits, group))
    return list(layers)


def finish(model: nn.Module) -> None:
    """Keep the whole numbers that training has prepared for, in place: the outputs stay."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, FakeQuantLinear)}
    for name, layer in layers.items():
        model.set_submodule(name, Int8Linear(layer, bits=layer.bits, group=layer.group))
