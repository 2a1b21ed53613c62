"""The same tensors under two names: transformers' for SigLIP and Llama, and ours. One table serves both directions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slot:
    """Where one of their tensors goes in ours."""

    theirs: str
    ours: str
    third: int | None = None  # 0, 1, 2: it is the q, k or v of our stacked qkv_proj
    grows: bool = False  # ours has a leading dimension of 1 that theirs lacks

    def shape(self, ours: Sequence[int]) -> list[int]:
        """The shape that theirs must have where ours is `ours`."""
        shape = list(ours[1:] if self.grows else ours)
        return shape if self.third is None else [shape[0] // 3, *shape[1:]]


def to_ours(slots: Iterable[Slot], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their names -> ours. What no slot knows, or only two of q, k and v, keeps its name: strict loading reports it."""
    left, ours, thirds = dict(tensors), {}, {}
    for slot in slots:
        if slot.theirs not in left:
            continue
        if slot.third is not None:
            thirds.setdefault(slot.ours, {})[slot.third] = slot.theirs
        else:
            tensor = left.pop(slot.theirs)
            ours[slot.ours] = tensor[None] if slot.grows else tensor
    for name, parts in thirds.items():
        if len(parts) == 3:
            ours[name] = torch.cat([left.pop(parts[i]) for i in range(3)])
    return ours | left


def to_theirs(slots: Iterable[Slot], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names -> theirs, each tensor with memory of its own."""
    theirs = {}
    for slot in slots:
        tensor = tensors[slot.ours]
        tensor = tensor[0] if slot.grows else tensor
        theirs[slot.theirs] = (tensor if slot.third is None else tensor.chunk(3)[slot.third]).clone()
    return theirs


def siglip_slots(num_blocks: int, prefix: str = "vision_model.") -> list[Slot]:
    """SigLIP's vision tower (transformers' SiglipVisionModel, and the encoder of SmolVLM) -> our ViT."""
    names = {"embeddings.patch_embedding": "patch_embedding.conv", "post_layernorm": "layer_norm"}
    slots = [
        Slot(f"{prefix}embeddings.position_embedding.weight", "patch_embedding.position_embedding", grows=True),
    ]
    for i in range(num_blocks):
        layer, block = f"encoder.layers.{i}", f"blocks.{i}"
        names |= {
            f"{layer}.layer_norm1": f"{block}.ln1",
            f"{layer}.layer_norm2": f"{block}.ln2",
            f"{layer}.self_attn.out_proj": f"{block}.attn.out_proj",
            f"{layer}.mlp.fc1": f"{block}.mlp.fc1",
            f"{layer}.mlp.fc2": f"{block}.mlp.fc2",
        }
        for third, which in enumerate("qkv"):
            for part in ("weight", "bias"):
                theirs = f"{prefix}{layer}.self_attn.{which}_proj.{part}"
                slots.append(Slot(theirs, f"{block}.attn.qkv_proj.{part}", third=third))
    for theirs, ours in names.items():
        slots += [Slot(f"{prefix}{theirs}.{part}", f"{ours}.{part}") for part in ("weight", "bias")]
    return slots


def llama_slots(num_blocks: int, prefix: str = "model.", head: str = "lm_head.weight") -> list[Slot]:
    """transformers' Llama -> our LanguageModel."""
    names = {f"{prefix}embed_tokens": "token_embedding", f"{prefix}norm": "norm", head.removesuffix(".weight"): "head"}
    for i in range(num_blocks):
        layer, block = f"{prefix}layers.{i}", f"blocks.{i}"
        names |= {
            f"{layer}.input_layernorm": f"{block}.norm1",
            f"{layer}.post_attention_layernorm": f"{block}.norm2",
            f"{layer}.self_attn.o_proj": f"{block}.attn.out_proj",
        }
        names |= {f"{layer}.self_attn.{which}_proj": f"{block}.attn.{which}_proj" for which in "qkv"}
        names |= {f"{layer}.mlp.{which}_proj": f"{block}.mlp.{which}_proj" for which in ("gate", "up", "down")}
    return [Slot(f"{theirs}.weight", f"{ours}.weight") for theirs, ours in names.items()]


def within(part: str, slots: Iterable[Slot]) -> list[Slot]:
    """The slots of a part (a submodule) as slots of the whole model."""
    return [replace(slot, ours=f"{part}.{slot.ours}") for slot in slots]
