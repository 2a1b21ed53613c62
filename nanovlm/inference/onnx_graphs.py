"""A model as three ONNX graphs: pictures to image tokens, the prompt, and one more token.

The decoder remembers nothing in a graph, so the KV cache goes in and comes out: keys and values of every block, each
[1, num_kv_heads, seen, head_dim]. One question at a time.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nanovlm.files import whole_directory, write_json

if TYPE_CHECKING:
    from nanovlm.models.vision_language_model import VisionLanguageModel

GRAPHS = ("vision", "prefill", "decode")
OPSET = 20
# The largest difference of any logit, as a share of the largest logit: rounding, and rounding to 8 bits.
TOLERANCE = {False: 1e-4, True: 0.2}
LARGEST_FILE = 2**31  # bytes: protobuf's limit for one message


class GrownBlock:
    """BlockCache as a pure function: the new keys and values are joined to the old ones, and nothing is overwritten."""

    def __init__(self, past: tuple[Tensor, Tensor] | None) -> None:
        self.pair = past

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.pair is not None:
            k, v = torch.cat([self.pair[0], k], dim=2), torch.cat([self.pair[1], v], dim=2)
        self.pair = (k, v)
        return self.pair


class GrownCache:
    """What the decoder asks of a KVCache, for one row without padding."""

    def __init__(self, past: list[Tensor], num_blocks: int) -> None:
        pairs = list(zip(past[::2], past[1::2], strict=True)) or [None] * num_blocks
        self.blocks = [GrownBlock(pair) for pair in pairs]
        self.length = past[0].shape[2] if past else 0

    def layout(self, attention_mask: None, length: int) -> tuple[Tensor, None]:
        return torch.arange(self.length, self.length + length)[None], None

    def tensors(self) -> list[Tensor]:
        return [tensor for block in self.blocks for tensor in block.pair]


class Vision(nn.Module):
    """[P, 3, H, W] -> [P * num_image_tokens, dim]"""

    def __init__(self, model: VisionLanguageModel) -> None:
        super().__init__()
        self.vision_encoder, self.projector = model.vision_encoder, model.projector

    def forward(self, images: Tensor) -> Tensor:
        return self.projector(self.vision_encoder(images)).flatten(0, 1)


class Prefill(nn.Module):
    """input_ids [1, T], image_tokens [N, dim] (N = 0: no picture) -> logits [1, vocab_size] and the cache."""

    def __init__(self, model: VisionLanguageModel) -> None:
        super().__init__()
        self.decoder, self.image_token_id = model.decoder, model.config.image_token_id

    def forward(self, input_ids: Tensor, image_tokens: Tensor) -> list[Tensor]:
        x = self.decoder.token_embedding(input_ids)  # [1, T, dim]
        if self.image_token_id is None:
            x = torch.cat([image_tokens[None], x], dim=1)
        else:
            # masked_scatter has no ONNX operator: the n-th placeholder looks up row n; all other tokens row 0, unused.
            is_placeholder = input_ids == self.image_token_id
            rows = torch.cat([torch.zeros_like(x[0, :1]), image_tokens])
            x = torch.where(is_placeholder[:, :, None], rows[is_placeholder.long().cumsum(1) * is_placeholder], x)
        return _read(self.decoder, x, [])


class Decode(nn.Module):
    """token [1, 1] and the cache -> logits [1, vocab_size] and the cache, one position longer."""

    def __init__(self, model: VisionLanguageModel) -> None:
        super().__init__()
        self.decoder = model.decoder

    def forward(self, token: Tensor, past: list[Tensor]) -> list[Tensor]:
        return _read(self.decoder, self.decoder.token_embedding(token), past)


def _read(decoder: Any, x: Tensor, past: list[Tensor]) -> list[Tensor]:
    cache = GrownCache(past, len(decoder.blocks))
    return [decoder.head(decoder(x, cache=cache)[:, -1]), *cache.tensors()]


def cache_names(prefix: str, num_blocks: int) -> list[str]:
    return [f"{prefix}_{block}_{what}" for block in range(num_blocks) for what in ("keys", "values")]


def export_onnx(model: VisionLanguageModel, out_dir: str | Path, int8: bool = False) -> Path:
    """Write the graphs with config, tokenizer and picture settings, and compare them with the model on one sample.

    The weights are written as float32, the decoder's twice (prefill and decode); int8: matrices with 8-bit values,
    activations quantised as they come. `OnnxModel.from_pretrained` reads the directory.
    Raises: ImportError without the extra `onnx`; ValueError where the graphs do not give the model's logits.
    """
    import onnxruntime  # noqa: F401  before the work, so that a missing package is told at once
    import onnxscript  # noqa: F401

    if model.tokenizer is None or model.image_processor is None:
        raise ValueError("This model has no tokenizer or image processor, so its graphs could answer no question.")
    if 4 * sum(p.numel() for p in model.parameters()) > LARGEST_FILE:
        raise ValueError("This model's weights exceed 2 GiB in float32, the limit of one ONNX file: export to gguf.")
    model, out_dir = model.float().eval(), Path(out_dir)
    with tempfile.TemporaryDirectory() as scratch, whole_directory(out_dir) as directory, torch.no_grad():
        for name in GRAPHS:
            with _quiet():
                written = (Path(scratch) if int8 else directory) / f"{name}.onnx"
                _write_graph(model, name, written)
                if int8:
                    _quantise(written, directory / f"{name}.onnx")
        write_json(model.config.to_dict(), directory / "config.json")
        model.tokenizer.save_pretrained(directory)
        model.image_processor.save_pretrained(directory)
        off = difference(model, directory)
        if not off <= TOLERANCE[int8]:
            raise ValueError(
                f"The graphs for {out_dir} are wrong, so nothing was written: their logits differ from the model's by "
                f"{off:.1e} of the largest, and {TOLERANCE[int8]:.0e} is allowed."
                f"{' Export without int8.' if int8 else ''}"
            )
    return out_dir


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporter and quantiser say about themselves: torchvision is not here, names are not kept."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _write_graph(model: VisionLanguageModel, name: str, path: Path) -> None:
    config, num_blocks = model.config, model.config.language.num_blocks
    pictures = torch.export.Dim("pictures", min=1, max=1024)
    present = cache_names("present", num_blocks)
    if name == "vision":
        side = config.vision.image_size
        module, arguments, shapes = Vision(model), (torch.zeros(2, 3, side, side),), ({0: pictures},)
        inputs, outputs = ["images"], ["image_tokens"]
    elif name == "prefill":
        ids = torch.full((1, 2 * config.num_image_tokens + 3), config.image_token_id or 0)
        tokens = torch.zeros(2 * config.num_image_tokens, config.language.hidden_dim)
        automatic = torch.export.Dim.AUTO
        module, arguments, shapes = Prefill(model), (ids, tokens), ({1: automatic}, {0: automatic})
        inputs, outputs = ["input_ids", "image_tokens"], ["logits", *present]
    else:
        lm = config.language
        past = [torch.zeros(1, lm.num_kv_heads, 7, lm.head_dim) for _ in range(2 * num_blocks)]
        seen = torch.export.Dim("seen", min=2, max=lm.max_positions - 1)
        module, arguments = Decode(model), (torch.zeros(1, 1, dtype=torch.long), past)
        shapes = ({}, [{2: seen}] * len(past))
        inputs, outputs = ["token", *cache_names("past", num_blocks)], ["logits", *present]
    torch.onnx.export(
        module.eval(),
        arguments,
        path,
        input_names=inputs,
        output_names=outputs,
        dynamic_shapes=shapes,
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def _quantise(source: Path, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Signed weights beside unsigned activations overflow on processors without VNNI: microsoft/onnxruntime#6004.
    quantize_dynamic(source, target, weight_type=QuantType.QUInt8, per_channel=True)


@torch.no_grad()
def difference(model: VisionLanguageModel, directory: Path) -> float:
    """Prefill and one decoded token, with a picture of noise: the largest difference of a logit, as a share of the
    largest logit."""
    import numpy as np

    from nanovlm.inference.onnx_model import OnnxModel
    from nanovlm.inference.prompts import prepare_prompt

    theirs, side = OnnxModel.from_pretrained(directory), model.config.vision.image_size
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    ids, pixels = prepare_prompt(model, "What is this?", noise)
    logits, cache = theirs.prefill(ids, pixels)
    token = int(logits.argmax())
    both = np.concatenate([logits, theirs.decode(token, cache)[0]])
    ours = model(torch.tensor([[*ids, token]]), pixels).logits[0, -2:]
    return float((torch.from_numpy(both) - ours).abs().max() / ours.abs().max())
