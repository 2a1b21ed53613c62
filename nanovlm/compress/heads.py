"""Attention heads left out, by a mask on what each hands on: which a model can do without, and not how to save them.

A head cannot be cut out of a model here: a config says how many heads share hidden_dim, and takes their size from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from nanovlm.data.collators import Batch
from nanovlm.models.vision_language_model import VisionLanguageModel


def num_heads(model: VisionLanguageModel) -> dict[str, int]:
    """Name of each block's attention -> its (query) heads."""
    config = {"vision_encoder": model.config.vision, "decoder": model.config.language}
    return {
        f"{part}.blocks.{number}.attn": sizes.num_heads
        for part, sizes in config.items()
        for number in range(sizes.num_blocks)
    }


def mask_heads(model: VisionLanguageModel, kept: Mapping[str, Tensor]) -> list[RemovableHandle]:
    """Multiply what each head hands to `out_proj` by 1 or 0. kept: name of an attention -> bool [num_heads].

    No matrix changes, so no byte and no product is saved. Returns handles whose remove() takes the masks off.
    """
    handles = []
    for name, heads in kept.items():
        out_proj = model.get_submodule(f"{name}.out_proj")
        mask = heads.repeat_interleave(out_proj.in_features // len(heads)).to(out_proj.weight)  # [dim]
        handles.append(out_proj.register_forward_pre_hook(lambda module, inputs, mask=mask: (inputs[0] * mask,)))
    return handles


@torch.no_grad()
def head_sizes(model: VisionLanguageModel) -> dict[str, Tensor]:
    """Name of an attention -> the absolute sum of what `out_proj` has for each head, [num_heads]."""
    columns = {name: model.get_submodule(f"{name}.out_proj").weight.abs().sum(dim=0) for name in num_heads(model)}
    return {name: columns[name].view(heads, -1).sum(dim=1) for name, heads in num_heads(model).items()}


@torch.no_grad()
def head_losses(model: VisionLanguageModel, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Name of an attention -> the mean loss on these batches without each of its heads, [num_heads]."""
    found = {}
    for name, heads in num_heads(model).items():
        losses = []
        for head in range(heads):
            handles = mask_heads(model, {name: torch.arange(heads) != head})
            losses.append(
                sum(model(each["input_ids"], each["images"], targets=each["targets"]).loss.item() for each in batches)
            )
            for handle in handles:
                handle.remove()
        found[name] = torch.tensor(losses) / len(batches)
    return found


def keep_heads(scores: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """All but `share` of each attention's heads, those of the highest scores: name -> bool [num_heads].

    Raises: ValueError where an attention would be left without a head.
    """
    kept = {}
    for name, values in scores.items():
        count = len(values) - round(share * len(values))
        if not 0 < count <= len(values):
            raise ValueError(f"A share of {share} leaves {name} {count} of {len(values)} heads; leave out less.")
        kept[name] = torch.zeros(len(values), dtype=torch.bool).index_fill(0, values.topk(count).indices, True)
    return kept
