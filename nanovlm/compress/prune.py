"""Leaving weights out: single ones by a mask, whole MLP channels by smaller matrices.

A mask saves no byte and no product. A channel that is left out makes the matrices before and behind it smaller.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor, nn

from nanovlm.compress.int8 import own_linear
from nanovlm.models.language_model import SwiGLU
from nanovlm.models.vision_language_model import VisionLanguageModel


@torch.no_grad()
def prune_magnitude(model: nn.Module, share: float) -> None:
    """Set the smallest `share` of each linear layer's weights to zero, in place (Han et al. 2015, arXiv:1506.02626)."""
    _check_share(share)
    for layer in own_linear(model).values():
        smallest = layer.weight.abs().flatten().argsort()[: round(share * layer.weight.numel())]
        layer.weight.view(-1)[smallest] = 0


def importance(weight: Tensor, first_order: bool = False) -> Tensor:
    """|w|, or |w * gradient|: what the loss would change by, to first order (Molchanov et al. 2019, arXiv:1906.10771).

    Raises: ValueError where a gradient is wanted and there is none.
    """
    if first_order and weight.grad is None:
        raise ValueError("First-order importance needs gradients: call backward() on a loss first.")
    return (weight * weight.grad).abs().detach() if first_order else weight.abs().detach()


def mlp_layers(mlp: nn.Module) -> tuple[list[nn.Linear], nn.Linear]:
    """The layers that give an MLP its channels, and the one that takes them."""
    return ([mlp.gate_proj, mlp.up_proj], mlp.down_proj) if isinstance(mlp, SwiGLU) else ([mlp.fc1], mlp.fc2)


def kept_channels(mlp: nn.Module, keep: int, first_order: bool = False) -> Tensor:
    """The `keep` most important channels of an MLP, in their old order: [keep]"""
    into, out = mlp_layers(mlp)
    scores = importance(out.weight, first_order).sum(dim=0)  # [inter_dim]
    for layer in into:
        scores = scores + importance(layer.weight, first_order).sum(dim=1)
    return scores.topk(keep).indices.sort().values


@torch.no_grad()
def prune_channels(model: VisionLanguageModel, share: float, first_order: bool = False) -> VisionLanguageModel:
    """A new model without `share` of the channels of each MLP, the least important ones of each block.

    Every block loses equally many: the config has one inter_dim for all, and so the model saves and loads as any other.
    """
    _check_share(share)
    config = model.config
    vision, language = (part.inter_dim - round(share * part.inter_dim) for part in (config.vision, config.language))
    if not vision or not language:
        raise ValueError(f"A share of {share} leaves an MLP without channels; prune less.")
    small = VisionLanguageModel(
        replace(
            deepcopy(config),
            vision=replace(config.vision, inter_dim=vision),
            language=replace(config.language, inter_dim=language),
        )
    )
    weights = model.state_dict()
    for part, keep in (("vision_encoder", vision), ("decoder", language)):
        for i, block in enumerate(model.get_submodule(part).blocks):
            kept = kept_channels(block.mlp, keep, first_order)
            into, out = mlp_layers(block.mlp)
            names = {layer: f"{part}.blocks.{i}.mlp.{name}" for name, layer in block.mlp.named_children()}
            for layer in into:
                weights[f"{names[layer]}.weight"] = layer.weight[kept]
                if layer.bias is not None:
                    weights[f"{names[layer]}.bias"] = layer.bias[kept]
            weights[f"{names[out]}.weight"] = out.weight[:, kept]
    small.load_state_dict(weights)
    small.tokenizer, small.image_processor = model.tokenizer, model.image_processor
    like = next(model.parameters())
    return small.to(like.device, like.dtype).train(model.training)


def _check_share(share: float) -> None:
    if not 0 <= share < 1:
        raise ValueError(f"The share to leave out is at least 0 and less than 1; it is {share}.")
