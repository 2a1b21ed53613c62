"""The vision-language model: pictures become tokens among the words of a text, and the decoder reads both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanovlm.config import IGNORE, VLMConfig
from nanovlm.models.language_model import KVCache, LanguageModel
from nanovlm.models.modality_projector import ModalityProjector
from nanovlm.models.vision_transformer import ViT
from nanovlm.tensor_types import Bool, Float, Int, Shaped

if TYPE_CHECKING:
    from nanovlm.protocols import Decoder, ImageProcessor, Projector, Tokenizer, VisionEncoder


class VLMOutput(NamedTuple):
    logits: Tensor  # [B, S, vocab_size]; with targets: [supervised tokens, vocab_size]
    loss: Tensor | None  # the mean over supervised tokens
    hidden_states: list[Tensor] | None  # the input of every block, then the output: num_blocks + 1 of [B, S, dim]


def merge_image_tokens(
    embeddings: Float[Tensor, "batch length dim"],
    image_tokens: Float[Tensor, "images num_image_tokens dim"],
    is_placeholder: Bool[Tensor, "batch length"],
) -> Float[Tensor, "batch length dim"]:
    """Put image tokens [P, num_image_tokens, dim] where is_placeholder [B, T] is True in embeddings [B, T, dim]."""
    num_images, num_image_tokens = image_tokens.shape[:2]
    counts = is_placeholder.sum(dim=1).tolist()  # per row: the sum alone would let a picture run on into the next row
    for row, count in enumerate(counts):
        if count % num_image_tokens:
            raise ValueError(
                f"Row {row} has {count} image placeholders; each of its pictures needs {num_image_tokens} of them."
            )
    if sum(counts) != num_images * num_image_tokens:
        raise ValueError(
            f"The text has placeholders for {sum(counts) // num_image_tokens} pictures ({num_image_tokens} each), but "
            f"{num_images} were given. Make the two equal."
        )
    return embeddings.masked_scatter(is_placeholder[:, :, None], image_tokens.to(embeddings.dtype))


class VisionLanguageModel(nn.Module):
    """ViT -> pixel shuffle and linear -> decoder.

    `tokenizer` and `image_processor` come along with a model directory; the tensor form needs neither.
    """

    def __init__(
        self,
        config: VLMConfig,
        vision_encoder: VisionEncoder | None = None,
        projector: Projector | None = None,
        decoder: Decoder | None = None,
    ) -> None:
        """Parts that are handed in keep their weights; those that are built here start at random."""
        super().__init__()
        self.config = config
        self.vision_encoder = ViT(config.vision) if vision_encoder is None else vision_encoder
        self.projector = ModalityProjector(config.projector) if projector is None else projector
        self.decoder = LanguageModel(config.language) if decoder is None else decoder
        self.tokenizer: Tokenizer | None = None
        self.image_processor: ImageProcessor | None = None
        for part, given in zip(self.children(), (vision_encoder, projector, decoder), strict=True):
            if given is None:
                init_weights(part)

    def gradient_checkpointing(self, on: bool = True) -> None:
        """Forget activations in the forward pass and recompute them in the backward: less memory, a third more time."""
        self.vision_encoder.gradient_checkpointing = self.decoder.gradient_checkpointing = on

    def compile_parts(self) -> None:
        """torch.compile of the encoder and of the decoder. What joins them depends on the data, and stays as it is."""
        self.vision_encoder.compile()
        self.decoder.compile()

    def embed(
        self,
        input_ids: Int[Tensor, "batch length"],
        images: Float[Tensor, "images 3 height width"] | None,
        attention_mask: Shaped[Tensor, "batch length"] | None,
    ) -> tuple[Float[Tensor, "batch sequence dim"], Shaped[Tensor, "batch sequence"] | None, int]:
        """ids [B, T], pictures [P, 3, H, W] -> embeddings [B, S, dim], their mask [B, S], length of the image prefix.

        With placeholders in the ids, S = T. Without any, each row begins with its picture: S = num_image_tokens + T.
        """
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask {list(attention_mask.shape)} needs the shape of input_ids, {list(input_ids.shape)}."
            )
        vocab_size = self.config.language.vocab_size
        outside = (input_ids < 0) | (input_ids >= vocab_size)
        if not input_ids.is_cuda and bool(outside.any()):  # on a GPU, asking would wait; loaders check their ids
            raise ValueError(f"Token id {int(input_ids[outside][0])} is outside the vocabulary of {vocab_size}.")
        embeddings = self.decoder.token_embedding(input_ids)  # [B, T, dim]
        image_token_id = self.config.image_token_id
        is_placeholder = None if image_token_id is None else input_ids == image_token_id
        has_placeholder = is_placeholder is not None and bool(is_placeholder.any())
        if images is None or images.shape[0] == 0:
            if has_placeholder:
                raise ValueError("The text has image placeholders, but no picture was given.")
            return embeddings, attention_mask, 0
        image_tokens = self.projector(self.vision_encoder(images))  # [P, num_image_tokens, dim]
        if has_placeholder:
            return merge_image_tokens(embeddings, image_tokens, is_placeholder), attention_mask, 0
        if image_tokens.shape[0] != input_ids.shape[0]:
            raise ValueError(
                f"Without placeholders each of the {input_ids.shape[0]} rows needs exactly one picture; "
                f"got {image_tokens.shape[0]}."
            )
        combined = torch.cat([image_tokens.to(embeddings.dtype), embeddings], dim=1)  # [B, num_image_tokens + T, dim]
        if attention_mask is not None:
            attention_mask = F.pad(attention_mask, (image_tokens.shape[1], 0), value=1)
        return combined, attention_mask, image_tokens.shape[1]

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"],
        images: Float[Tensor, "images 3 height width"] | None = None,
        attention_mask: Shaped[Tensor, "batch length"] | None = None,
        targets: Int[Tensor, "batch length"] | None = None,
        document_ids: Int[Tensor, "batch length"] | None = None,
        output_hidden_states: bool = False,
        cache: KVCache | None = None,
    ) -> VLMOutput:
        """
        input_ids [B, T]; images [P, 3, H, W], all pictures of the batch in reading order, or None.
        attention_mask [B, T]: 0 marks padding, on whichever side.
        targets [B, T]: the token that should follow each input token, -100 where nothing is asked.
        document_ids [B, T]: packed rows; tokens see only their own document. -1 marks padding.
        """
        x, attention_mask, num_prefix = self.embed(input_ids, images, attention_mask)
        if document_ids is not None and num_prefix:
            raise ValueError("Packed rows need image placeholders: a picture as prefix would belong to every document.")
        hidden_states: list[Tensor] | None = [] if output_hidden_states else None
        x = self.decoder(x, attention_mask, document_ids, cache, hidden_states)  # [B, S, dim]
        if targets is None:
            return VLMOutput(self.decoder.head(x), None, hidden_states)
        if targets.shape != input_ids.shape:
            raise ValueError(f"targets {list(targets.shape)} needs the shape of input_ids, {list(input_ids.shape)}.")
        targets = targets.flatten()
        supervised = (targets != IGNORE).nonzero()[:, 0]  # where, in B * T: found once, since a GPU is waited for here
        logits = self.decoder.head(x[:, num_prefix:].flatten(0, 1)[supervised])  # [supervised tokens, vocab_size]
        if logits.shape[0] == 0:
            raise ValueError("No token of this batch is supervised: every target is -100, so there is no mean loss.")
        loss = F.cross_entropy(logits.float(), targets[supervised])
        return VLMOutput(logits, loss, hidden_states)

    def generate(self, *args: Any, **options: Any) -> str | list[str] | Tensor:
        """An answer to a question about pictures, or token ids: see `nanovlm.inference.generate.generate`."""
        from nanovlm.inference.generate import generate

        return generate(self, *args, **options)

    @classmethod
    def from_pretrained(cls, path_or_hub_id: str | Path, dtype: torch.dtype | None = None) -> VisionLanguageModel:
        """A model directory or Hub id, with tokenizer and image processor: see `nanovlm.weights.pretrained.load`."""
        from nanovlm.weights.pretrained import load

        return load(path_or_hub_id, dtype, cls)

    def save_pretrained(self, directory: str | Path, weights: Mapping[str, Tensor] | None = None) -> Path:
        """Write all that from_pretrained needs: see `nanovlm.weights.pretrained.save`."""
        from nanovlm.weights.pretrained import save

        return save(self, directory, weights)

    def push_to_hub(self, repo_id: str, private: bool = False) -> str:
        """Upload the model directory: see `nanovlm.weights.pretrained.push`."""
        from nanovlm.weights.pretrained import push

        return push(self, repo_id, private)


def init_weights(part: nn.Module) -> None:
    """Random weights from which training starts to see soonest.

    Measured on the pocket preset (LOG.md): with every weight at 0.02, "where" was at chance after 600 steps.
    """
    for name, weight in part.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(weight)
        elif name.endswith("position_embedding"):
            nn.init.normal_(weight, std=0.5)  # as large as the patch: where it is counts as much as what it shows
        elif name.endswith("token_embedding.weight"):
            nn.init.normal_(weight, std=0.3)  # AdamW's step does not shrink with the weight: a small one is only noise
        elif name.endswith(("out_proj.weight", "fc2.weight", "down_proj.weight")):
            nn.init.normal_(weight, std=0.002)  # a block adds next to nothing at first
        elif weight.ndim > 1:
            nn.init.normal_(weight, std=0.02)
