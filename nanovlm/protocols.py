"""What a vision-language model asks of the parts that are handed to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from nanovlm.config import VLMConfig


class VisionEncoder(Protocol):
    """An nn.Module: pictures [P, 3, H, W] -> features [P, num_patches, vision_dim]."""

    gradient_checkpointing: bool

    def __call__(self, images: Tensor) -> Tensor: ...


class Projector(Protocol):
    """An nn.Module: features [P, num_patches, vision_dim] -> image tokens [P, num_image_tokens, language_dim]."""

    def __call__(self, features: Tensor) -> Tensor: ...


class Decoder(Protocol):
    """An nn.Module: embeddings [B, S, dim] -> hidden states [B, S, dim], which `head` turns into logits."""

    gradient_checkpointing: bool
    token_embedding: Any
    head: Any

    def __call__(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: Any = None,
        hidden_states: list[Tensor] | None = None,
    ) -> Tensor: ...


class Tokenizer(Protocol):
    """Text -> ids, with the model's chat template; `nanovlm.data.chat.ChatTokenizer` is one."""

    image_token: str | None
    pad_token_id: int
    eos_token_id: int

    def encode_prompt(
        self, text: str, num_images: int, config: VLMConfig, image_texts: Sequence[str] | None = None
    ) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def save_pretrained(self, directory: str | Path) -> None: ...


class ImageProcessor(Protocol):
    """Pictures -> pixels and the text that stands for them; `nanovlm.data.processors.ImageProcessor` is one."""

    def __call__(self, images: Any) -> Tensor: ...

    def prepare(
        self, images: Sequence[Any], image_token: str, num_image_tokens: int, raw: bool = False
    ) -> tuple[Tensor, list[str] | None]: ...

    def save_pretrained(self, directory: str | Path) -> None: ...
