"""Rules that change the logits before a token is chosen: each sees what was chosen, and decides what may come next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class LogitsProcessor(Protocol):
    def __call__(self, logits: Tensor) -> Tensor:
        """logits [R, vocab_size], same out"""
        ...

    def see(self, tokens: Tensor) -> None:
        """The tokens [R] that were chosen from them."""
        ...


class RepetitionPenalty:
    """Makes what an answer has said already less likely: positive logits are divided by `penalty`, negative ones
    multiplied (CTRL, Keskar et al. 2019, https://arxiv.org/abs/1909.05858). The prompt does not count: an answer may
    repeat the question's words."""

    def __init__(self, penalty: float) -> None:
        if not 0 < penalty < float("inf"):
            raise ValueError(f"repetition_penalty must be above 0 (1 changes nothing), and finite; it is {penalty}.")
        self.penalty = penalty
        self.said: list[Tensor] = []  # one [R] a step

    def __call__(self, logits: Tensor) -> Tensor:
        if not self.said:
            return logits
        said = torch.stack(self.said, dim=1)  # [R, steps]
        values = logits.gather(1, said)
        return logits.scatter(1, said, torch.where(values > 0, values / self.penalty, values * self.penalty))

    def see(self, tokens: Tensor) -> None:
        self.said.append(tokens)


class Choices:
    """Lets each row write one of some given answers and nothing else: a tree of their tokens, in which every row
    walks from the root to an end."""

    def __init__(self, answers: Sequence[Sequence[int]], end: int) -> None:
        if not answers or not all(answers):
            raise ValueError("choices needs at least one answer, and none of them empty.")
        self.end = end
        self.root: dict[int, Any] = {}
        for answer in answers:
            node = self.root
            for token in [*answer, end]:
                node = node.setdefault(token, {})
        self.nodes: list[dict[int, Any]] = []  # where each row stands

    def __call__(self, logits: Tensor) -> Tensor:
        self.nodes = self.nodes or [self.root] * logits.shape[0]
        allowed = torch.full_like(logits, float("-inf"))
        for row, node in enumerate(self.nodes):
            tokens = list(node) or [self.end]  # behind the end there is only the end
            allowed[row, tokens] = logits[row, tokens]
        return allowed

    def see(self, tokens: Tensor) -> None:
        self.nodes = [node.get(token, {}) for node, token in zip(self.nodes, tokens.tolist(), strict=True)]


class StopStrings:
    """Ends a row's answer once its text holds one of some strings: the next token is the end token."""

    def __init__(self, strings: Sequence[str], decode: Callable[[Sequence[int]], str], end: int) -> None:
        if not strings or not all(strings):
            raise ValueError("stop needs at least one string, and none of them empty.")
        self.strings, self.decode, self.end = tuple(strings), decode, end
        self.rows: list[list[int]] = []

    def __call__(self, logits: Tensor) -> Tensor:
        met = [any(string in self.decode(ids) for string in self.strings) for ids in self.rows]
        if not any(met):
            return logits
        only_end = torch.full_like(logits, float("-inf"))
        only_end[:, self.end] = 0.0
        return torch.where(torch.tensor(met, device=logits.device)[:, None], only_end, logits)

    def see(self, tokens: Tensor) -> None:
        self.rows = self.rows or [[] for _ in tokens]
        for ids, token in zip(self.rows, tokens.tolist(), strict=True):
            ids.append(token)

    def cut(self, text: str) -> str:
        """The text up to the first stop string, which is left out."""
        return text[: min((text.find(s) for s in self.strings if s in text), default=len(text))]

    def ready(self, text: str) -> str:
        """The part of an unfinished text that can be shown: what may become a stop string is held back."""
        cut = self.cut(text)
        held = [n for s in self.strings for n in range(1, len(s)) if cut.endswith(s[:n])] if cut == text else []
        return cut[: len(cut) - max(held, default=0)]
