"""The list of planted bugs: each a model with one mistake, and what may and may not be said about it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn


class Planted(NamedTuple):
    """shapes: parts of the message, both sides of the mismatch. right: parts of advice of which each would mend the
    model; empty where only the author can know. line: the failing statement, where it is not ours to mark `# here`."""

    name: str
    build: Callable[[], nn.Module]
    given: tuple[Any, ...]
    shapes: tuple[str, ...]
    right: tuple[str, ...]
    line: str | None


PLANTED: list[Planted] = []


def planted(given: tuple, shapes: tuple[str, ...], right: tuple[str, ...] = (), line: str | None = None):
    def add(build: Callable[[], nn.Module]):
        PLANTED.append(Planted(build.__name__, build, given, shapes, right, line))
        return build

    return add


def floats(*sizes: int) -> torch.Tensor:
    return torch.zeros(*sizes)


def ids(*sizes: int, high: int = 5) -> torch.Tensor:
    return torch.arange(torch.Size(sizes).numel()).reshape(sizes) % high
