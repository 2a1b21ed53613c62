"""What tracing costs, beside torchinfo, in one run: python -m nanovlm.trace.bench

Medians of forwards with and without the tracer, taken in turn so that a busy machine slows all of them alike. Two
models: a large one (--layers scales it), and one whose forward takes about two milliseconds. torchinfo is measured
where it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from nanovlm.trace import trace


class Stack(nn.Module):
    """`layers` pre-norm transformer blocks of one width between an embedding and a head."""

    def __init__(self, layers: int, dim: int, num_heads: int, vocab_size: int):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, dim)
        self.blocks = nn.ModuleList(Block(dim, num_heads) for _ in range(layers))
        self.head = nn.Linear(dim, vocab_size, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids)  # [B, T, dim]
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Block(nn.Module):
    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, dim = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, dim))
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))


class Timing(NamedTuple):
    """Median seconds by the clock, and of processor time (which other programs do not change)."""

    wall: float
    processor: float


def measure(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, Timing]:
    """What each costs, after one unmeasured round."""
    for run in runs.values():
        run()
    seconds: dict[str, list[Timing]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            wall, processor = time.perf_counter(), time.process_time()
            run()
            seconds[name].append(Timing(time.perf_counter() - wall, time.process_time() - processor))
    return {name: Timing(*map(statistics.median, zip(*costs, strict=True))) for name, costs in seconds.items()}


def compare(model: nn.Module, ids: torch.Tensor, repeats: int) -> dict[str, Timing]:
    """A plain forward, a traced one, and torchinfo's summary of one."""
    runs: dict[str, Callable[[], object]] = {"plain": lambda: model(ids), "nanovlm.trace": lambda: trace(model, ids)}
    if importlib.util.find_spec("torchinfo") is not None:
        from torchinfo import summary

        runs["torchinfo"] = lambda: summary(model, input_data=[ids], verbose=0, depth=9)
    with torch.no_grad():
        return measure(runs, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--layers", type=int, default=30, help="blocks of the large model (default 30: 288 M parameters)"
    )
    parser.add_argument("--repeats", type=int, default=7, help="measured rounds of the large model (default 7)")
    args = parser.parse_args()
    torch.manual_seed(0)
    cases = (
        ("large", Stack(args.layers, 768, 12, 49152), torch.randint(0, 49152, (2, 128)), args.repeats),
        ("tiny", Stack(8, 64, 4, 512), torch.randint(0, 512, (2, 32)), 10 * args.repeats),
    )
    for name, model, ids, repeats in cases:
        found = compare(model.eval(), ids, repeats)
        size = sum(p.numel() for p in model.parameters())
        print(f"{name}: {size / 1e6:.1f} M parameters, ids {list(ids.shape)}, median of {repeats}")
        plain = found["plain"]
        for tool, cost in found.items():
            times = f"{cost.wall * 1e3:9.2f} ms {cost.wall / plain.wall:5.2f}x"
            print(f"  {tool:<14} {times}   processor {cost.processor / plain.processor:5.2f}x")


if __name__ == "__main__":
    main()
