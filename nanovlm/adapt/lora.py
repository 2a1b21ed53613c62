"""Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685): a frozen matrix, a trained difference of low rank beside it.

`add_lora(model, rank=8)` turns some of a model's linear layers into `LoRALinear`. The base keeps its names and its
weights, bit for bit; `merged_weights` gives the plain model's weights with the difference added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanovlm.files import check_tensors, make_directory, read_json, read_safetensors, write_json, write_safetensors

MODULES = ("q_proj", "v_proj")  # where Hu et al. found it to matter most at a given number of weights
SETTINGS, WEIGHTS = "adapter.json", "adapter.safetensors"


class LoRALinear(nn.Linear):
    """x [..., in_features] -> x W^T + b + (alpha / rank) (x A^T) B^T [..., out_features], with W and b frozen.

    A [rank, in_features] starts as a linear layer does, B [out_features, rank] at zero, so that the first forward pass
    gives exactly what the base gives. Where both were zero, neither would ever get a gradient.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float = 0.0) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would draw weights that nobody needs
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight.requires_grad_(False), base.bias
        if self.bias is not None:
            self.bias.requires_grad_(False)
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        like = {"dtype": base.weight.dtype, "device": base.weight.device}
        self.lora_a = nn.Parameter(torch.empty(rank, base.in_features, **like))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank, **like))
        nn.init.kaiming_uniform_(self.lora_a, a=5**0.5)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def forward(self, x: Tensor) -> Tensor:
        dropped = F.dropout(x, self.dropout, self.training)
        return super().forward(x) + self.scale * F.linear(F.linear(dropped, self.lora_a), self.lora_b)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}, alpha={self.alpha}"


def add_lora(
    model: nn.Module, rank: int, alpha: float | None = None, modules: Sequence[str] = MODULES, dropout: float = 0.0
) -> list[str]:
    """Freeze `model`, and give each linear layer whose last name is one of `modules` an adapter, in place.

    alpha: twice the rank where none is given. Returns: the names of the adapted layers.
    Raises: ValueError where nothing has such a name, or the rank is more than the matrix can have.
    """
    if rank < 1:
        raise ValueError(f"The rank of an adapter is 1 or more; it is {rank}.")
    linear = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    chosen = {name: module for name, module in linear.items() if name.rpartition(".")[2] in modules}
    if not chosen:
        known = sorted({name.rpartition(".")[2] for name in linear})
        raise ValueError(f"No linear layer is called {' or '.join(modules)}. This model has {', '.join(known)}.")
    for name, module in chosen.items():
        if rank > min(module.weight.shape):
            raise ValueError(
                f"{name} is a matrix of {list(module.weight.shape)}; a rank of {rank} is more than it has."
            )
    model.requires_grad_(False)
    for name, module in chosen.items():
        model.set_submodule(name, LoRALinear(module, rank, alpha or 2.0 * rank, dropout))
    return list(chosen)


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


@torch.no_grad()
def merged_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the same model without adapters: W + (alpha / rank) B A, computed in float32.

    weights: those of `model` by name (its state dict, or the float32 masters of a run).
    """
    layers = lora_layers(model)
    extra = ("lora_a", "lora_b", "codes", "scales")
    beside = {f"{name}.{part}" for name in layers for part in extra}
    plain = {name: weight for name, weight in weights.items() if name not in beside}
    for name, layer in layers.items():
        base = plain.get(f"{name}.weight", layer.weight)  # a base in four bits is no weight of its own
        difference = layer.scale * (weights[f"{name}.lora_b"].float() @ weights[f"{name}.lora_a"].float())
        plain[f"{name}.weight"] = (base.float() + difference.to(base.device)).to(base.dtype)
    return plain


@torch.no_grad()
def merge_lora(model: nn.Module) -> None:
    """Make the adapted layers plain again, in place, with the difference added to their weights."""
    weights = merged_weights(model, model.state_dict())
    for name, layer in lora_layers(model).items():
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        plain.weight, plain.bias = nn.Parameter(weights[f"{name}.weight"]), layer.bias
        model.set_submodule(name, plain)


def save_adapter(model: nn.Module, directory: str | Path, weights: Mapping[str, Tensor] | None = None) -> Path:
    """Write the adapters alone: a small fraction of the model. weights: as of `merged_weights`."""
    layers = lora_layers(model)
    if not layers:
        raise ValueError("This model has no adapters to save: add_lora comes first.")
    weights, any_layer, directory = (
        weights or model.state_dict(),
        next(iter(layers.values())),
        make_directory(directory),
    )
    names = [f"{name}.{part}" for name in layers for part in ("lora_a", "lora_b")]
    write_safetensors({name: weights[name].detach().cpu().contiguous() for name in names}, directory / WEIGHTS)
    settings = {"rank": any_layer.rank, "alpha": any_layer.alpha, "dropout": any_layer.dropout}
    settings["modules"] = sorted({name.rpartition(".")[2] for name in layers})
    write_json(settings, directory / SETTINGS)
    return directory


def load_adapter(model: nn.Module, directory: str | Path) -> list[str]:
    """Put saved adapters into a plain model, in place; of a model that has some, they take their places.

    Returns: the names of the adapted layers. Raises: ValueError if the adapter was trained on another model.
    """
    directory = Path(directory)
    settings: dict[str, Any] = read_json(directory / SETTINGS)
    known = {"rank": int, "alpha": (int, float), "dropout": (int, float), "modules": list}
    if wrong := [name for name, kind in known.items() if not isinstance(settings.get(name), kind)]:
        raise ValueError(f"{directory / SETTINGS} is no adapter's: {', '.join(wrong)} is missing or no such value.")
    tensors = read_safetensors(directory / WEIGHTS)
    if not lora_layers(model):
        add_lora(model, settings["rank"], settings["alpha"], settings["modules"], settings["dropout"])
    layers = lora_layers(model)
    own = {f"{name}.{part}": getattr(layer, part) for name, layer in layers.items() for part in ("lora_a", "lora_b")}
    check_tensors({name: weight.shape for name, weight in own.items()}, tensors, directory)
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(tensors[name])
    return list(layers)
