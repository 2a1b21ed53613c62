"""Weights in four bits a number, block by block: the frozen base of QLoRA (Dettmers et al. 2023, arXiv:2305.14314)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanovlm.adapt.lora import LoRALinear, lora_layers

# NormalFloat: sixteen numbers from -1 to 1 between which a standard normal variable falls about equally often, with an
# exact zero. From appendix E of the paper.
NF4 = torch.tensor(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]
)  # fmt: skip
BLOCK = 64  # numbers that share one scale


def quantise_blocks(weight: Tensor, block: int = BLOCK, code_book: Tensor = NF4) -> tuple[Tensor, Tensor]:
    """Any tensor -> (codes uint8 [numbers], scales [blocks]), in reading order.

    Each block is divided by its largest absolute value, and each number then replaced by the nearest entry of the code
    book. One scale for the whole tensor would let a single outlier flatten all the rest.
    """
    flat = weight.detach().float().flatten()
    rows = F.pad(flat, (0, -len(flat) % block)).view(-1, block)  # [blocks, block]
    scales = rows.abs().amax(dim=1)
    scaled = rows / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    midpoints = (code_book[1:] + code_book[:-1]) / 2  # [15]: between two of them lies one entry's ground
    codes = torch.bucketize(scaled, midpoints.to(scaled.device))
    return codes.flatten()[: len(flat)].to(torch.uint8), scales


def dequantise_blocks(codes: Tensor, scales: Tensor, shape: torch.Size | tuple[int, ...], block: int = BLOCK) -> Tensor:
    """(codes [numbers], scales [blocks]) -> float32 of `shape`."""
    values = NF4.to(codes.device)[codes.long()]
    return (values * scales.repeat_interleave(block)[: len(values)]).view(shape)


def pack(codes: Tensor) -> Tensor:
    """Two codes a byte: [numbers] -> [ceil(numbers / 2)], the first in the upper four bits."""
    pairs = F.pad(codes, (0, len(codes) % 2)).view(-1, 2)
    return pairs[:, 0] << 4 | pairs[:, 1]


def unpack(packed: Tensor, count: int) -> Tensor:
    return torch.stack([packed >> 4, packed & 15], dim=1).flatten()[:count]


class QLoRALinear(LoRALinear):
    """LoRALinear whose frozen matrix is kept in four bits and restored for each product: slower, and an eighth of
    float32's bytes. A gradient goes through it to the layers before."""

    def __init__(self, layer: LoRALinear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.rank, self.alpha, self.dropout = layer.rank, layer.alpha, layer.dropout
        self.lora_a, self.lora_b, self.bias = layer.lora_a, layer.lora_b, layer.bias
        codes, scales = quantise_blocks(layer.weight)
        self.register_buffer("codes", pack(codes))
        self.register_buffer("scales", scales)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """[out_features, in_features], restored"""
        codes = unpack(self.codes, self.out_features * self.in_features)
        restored = dequantise_blocks(codes, self.scales, (self.out_features, self.in_features))
        return restored.to(self.lora_a.dtype)


def quantise_base(model: nn.Module) -> None:
    """The matrices below the adapters in four bits, in place."""
    for name, layer in lora_layers(model).items():
        model.set_submodule(name, QLoRALinear(layer))
