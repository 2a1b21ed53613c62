"""The answer as it is written, piece by piece."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from nanovlm.data.chat import ChatTokenizer


class TextStream:
    """Turns tokens into text pieces that join to the answer."""

    def __init__(self, tokenizer: ChatTokenizer, on_text: Callable[[str], Any]) -> None:
        self.tokenizer, self.on_text = tokenizer, on_text
        self.ids: list[int] = []
        self.shown = ""

    def __call__(self, tokens: Tensor) -> None:
        self.ids.append(int(tokens[0]))
        # Held back: bytes that are not yet a whole character, and white space, with which the answer may end.
        self.show(self.tokenizer.decode(self.ids).rstrip("\ufffd").strip())

    def show(self, text: str) -> None:
        if len(text) > len(self.shown):
            self.on_text(text[len(self.shown) :])
            self.shown = text
