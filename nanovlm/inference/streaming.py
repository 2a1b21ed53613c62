"""The answer as it is written, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor


def ready_text(ids: Sequence[int], shown: str, decode: Callable[[Sequence[int]], str]) -> str:
    """What can be shown now of an answer of these ids, beyond `shown`. Held back: bytes that are not yet a whole
    character, and white space, with which the answer may end."""
    return decode(ids).rstrip("\ufffd").strip()[len(shown) :]


class TextStream:
    """Turns tokens into text pieces that join to the answer."""

    def __init__(self, decode: Callable[[Sequence[int]], str], on_text: Callable[[str], Any]) -> None:
        self.decode, self.on_text = decode, on_text
        self.ids: list[int] = []
        self.shown = ""

    def __call__(self, tokens: Tensor) -> None:
        self.ids.append(int(tokens[0]))
        self.show(ready_text(self.ids, self.shown, self.decode))

    def finish(self, answer: str) -> None:
        """Show what was held back to the end."""
        self.show(answer[len(self.shown) :])

    def show(self, piece: str) -> None:
        if piece:
            self.on_text(piece)
            self.shown += piece
