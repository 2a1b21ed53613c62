"""The answer as it is written, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from threading import Event, Thread
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


def pieces(generate: Callable[..., Any], **asked: Any) -> Iterator[str]:
    """The pieces of generate(on_text=…, **asked) as an iterator, for who must pull. The answer is written in a thread;
    what it raises is raised here, and an iterator that is closed stops it at its next piece."""
    written: SimpleQueue[str | BaseException | None] = SimpleQueue()
    stopped = Event()

    def on_text(piece: str) -> None:
        if stopped.is_set():
            raise InterruptedError("Nobody reads on.")
        written.put(piece)

    def run() -> None:
        try:
            generate(on_text=on_text, **asked)
            written.put(None)
        except BaseException as error:
            written.put(error)

    Thread(target=run, daemon=True).start()
    try:
        while (piece := written.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
    finally:
        stopped.set()
