"""Linear layers in whole numbers: symmetric, one scale a row (LLM.int8(), Dettmers et al. 2022, arXiv:2208.07339)."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def quantise_rows(x: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """[..., dim] -> (whole numbers int8 [..., dim], scales float32 [..., 1]); number * scale is nearly x.

    The largest absolute value of a row becomes 2^(bits - 1) - 1, so no entry is off by more than half a scale. A row
    of zeros stays zero.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"Whole numbers of 2 to 8 bits fit into int8; bits is {bits}.")
    largest = 2 ** (bits - 1) - 1
    x = x.detach().float()
    scales = (x.abs().amax(dim=-1, keepdim=True) / largest).clamp(min=torch.finfo(torch.float32).tiny)
    return (x / scales).round().clamp(-largest, largest).to(torch.int8), scales


def integer_product(a: Tensor, b: Tensor) -> Tensor:
    """int8 [rows, dim] and int8 [columns, dim] -> a b^T, exact, float32 [rows, columns] (each sum then rounded once).

    torch's int8 product where it is right: a GPU's refuses some shapes, and a CPU's returns what was in the memory
    for a dim of 1. Elsewhere the same sums come from float64.
    """
    if a.device.type == "cpu" and a.shape[1] > 1 and _kernel_is_exact():
        return torch._int_mm(a, b.T).float()
    return (a.double() @ b.double().T).float()


@cache
def _kernel_is_exact() -> bool:
    """Without VNNI instructions oneDNN adds pairs of products in 16 bits, which overflow: see pytorch/pytorch#136942.

    torch avoids it by the kind of processor, which misses one whose VNNI is switched off (ONEDNN_MAX_CPU_ISA).
    """
    largest = torch.full((32, 32), 127, dtype=torch.int8)
    return bool((torch._int_mm(largest, largest.T) == 127 * 127 * 32).all())


def in_groups(weight: Tensor, group: int | None) -> Tensor:
    """[rows, dim] -> [rows, dim / group, group], whose last axis shares a scale; None: the whole row shares one."""
    group = group or weight.shape[-1]
    if weight.shape[-1] % group:
        raise ValueError(f"Groups of {group} do not divide a row of {weight.shape[-1]}; take a divisor.")
    return weight.unflatten(-1, (-1, group))


class Int8Linear(nn.Module):
    """x [..., in_features] -> x W^T + b, with W in int8: a quarter of float32's bytes.

    Weight-only restores W for each product; `group` gives each so many numbers of a row a scale of their own. Dynamic
    also turns each row of x into int8 when it comes, and multiplies whole numbers. Neither trains.
    """

    def __init__(self, layer: nn.Linear, dynamic: bool = False, bits: int = 8, group: int | None = None) -> None:
        super().__init__()
        if dynamic and group is not None:
            raise ValueError("A product of whole numbers needs one scale a row: leave the group out, or dynamic.")
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.dynamic, self.bits = dynamic, bits
        numbers, scales = quantise_rows(in_groups(layer.weight, group), bits)
        self.register_buffer("numbers", numbers.flatten(1))  # [out_features, in_features]
        self.register_buffer("scales", scales.squeeze(-1))  # [out_features, groups]
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())

    @property
    def weight(self) -> Tensor:
        """[out_features, in_features], restored"""
        group = self.in_features // self.scales.shape[1]
        return (in_groups(self.numbers, group) * self.scales[:, :, None]).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        if not self.dynamic:
            return F.linear(x, self.weight.to(x.dtype), self.bias)
        numbers, scales = quantise_rows(x.reshape(-1, self.in_features))  # [rows, in_features], [rows, 1]
        y = integer_product(numbers, self.numbers) * scales * self.scales.T  # [rows, out_features]
        y = y.to(x.dtype).view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}"


def own_linear(model: nn.Module) -> dict[str, nn.Linear]:
    """The plain linear layers whose matrix is nobody else's: a head tied to the embedding would be kept twice."""
    owners = [id(p) for _, p in model.named_parameters(remove_duplicate=False)]
    return {
        name: layer
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear and owners.count(id(layer.weight)) == 1
    }


def quantise_linear(model: nn.Module, dynamic: bool = False, bits: int = 8, group: int | None = None) -> list[str]:
    """Each linear layer in whole numbers, in place. Returns: their names."""
    layers = own_linear(model)
    for name, layer in layers.items():
        model.set_submodule(name, Int8Linear(layer, dynamic, bits, group))
    return list(layers)


def size_in_bytes(model: nn.Module) -> int:
    """Weights and buffers, shared ones once. Numbers below eight bits count what they take when they are packed."""
    bits = sum(8 * t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    bits -= sum((8 - m.bits) * m.numbers.numel() for m in model.modules() if isinstance(m, Int8Linear))
    return -(-bits // 8)
