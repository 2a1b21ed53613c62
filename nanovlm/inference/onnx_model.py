"""A directory of `nanovlm export --to onnx`, answered by onnxruntime: no weight of it passes through torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nanovlm.config import VLMConfig
from nanovlm.data.chat import ChatTokenizer
from nanovlm.data.tiling import load_image_processor
from nanovlm.files import read_json
from nanovlm.inference.onnx_graphs import GRAPHS, cache_names
from nanovlm.inference.prompts import prepare_prompt

if TYPE_CHECKING:
    from torch import Tensor

Cache = list[np.ndarray]  # keys and values of every block in turn, [1, num_kv_heads, seen, head_dim] each


class OnnxModel:
    """The three graphs with the tokenizer and the image processor that belong to them. Greedy, one question a time."""

    def __init__(self, directory: Path, threads: int) -> None:
        import onnxruntime

        self.config = VLMConfig.from_dict(read_json(directory / "config.json"))
        self.tokenizer = ChatTokenizer.from_pretrained(directory)
        self.image_processor = load_image_processor(directory)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        self.vision_graph, self.prefill_graph, self.decode_graph = (
            onnxruntime.InferenceSession(str(directory / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])
            for name in GRAPHS
        )

    @classmethod
    def from_pretrained(cls, directory: str | Path, threads: int = 0) -> OnnxModel:
        """threads: 0 leaves the number to onnxruntime. Raises: FileNotFoundError where a graph is missing."""
        directory = Path(directory)
        missing = [name for name in GRAPHS if not (directory / f"{name}.onnx").is_file()]
        if missing:
            raise FileNotFoundError(
                f"{directory} has no {missing[0]}.onnx: write the directory with `nanovlm export --to onnx`."
            )
        return cls(directory, threads)

    def prefill(self, ids: list[int], pixels: Tensor | None) -> tuple[np.ndarray, Cache]:
        """ids [T], pixels [P, 3, H, W] or None -> logits [1, vocab_size] behind the prompt, and the cache."""
        if pixels is None:
            image_tokens = np.zeros((0, self.config.language.hidden_dim), dtype=np.float32)
        else:
            (image_tokens,) = self.vision_graph.run(None, {"images": pixels.float().numpy()})
        logits, *cache = self.prefill_graph.run(
            None, {"input_ids": np.array([ids], dtype=np.int64), "image_tokens": image_tokens}
        )
        return logits, cache

    def decode(self, token: int, cache: Cache) -> tuple[np.ndarray, Cache]:
        """One more token -> logits [1, vocab_size], and the cache with it."""
        past = dict(zip(cache_names("past", self.config.language.num_blocks), cache, strict=True))
        logits, *cache = self.decode_graph.run(None, {"token": np.array([[token]], dtype=np.int64), **past})
        return logits, cache

    def generate(
        self, prompt: str, image: Any = None, max_new_tokens: int = 64, on_token: Callable[[int], Any] | None = None
    ) -> str:
        """The greedy answer. image: a path, PIL picture or array; a list of them; None for none."""
        ids, pixels = prepare_prompt(self, prompt, image)
        in_front = self.config.num_image_tokens * (pixels is not None and self.config.image_token_id is None)
        longest = self.config.language.max_positions
        if len(ids) + in_front + max_new_tokens > longest:
            raise ValueError(
                f"A prompt of {len(ids) + in_front} tokens and max_new_tokens={max_new_tokens} exceed the model's "
                f"{longest} positions. Shorten the prompt or ask for fewer tokens."
            )
        ends = {self.config.eos_token_id, *self.config.stop_token_ids}
        written: list[int] = []
        logits, cache = self.prefill(ids, pixels)
        while True:
            written.append(int(logits.argmax()))
            if on_token is not None:
                on_token(written[-1])
            if written[-1] in ends or len(written) == max_new_tokens:
                break
            logits, cache = self.decode(written[-1], cache)
        return self.tokenizer.decode([token for token in written if token not in ends]).strip()
