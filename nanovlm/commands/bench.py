"""`nanovlm bench`: this package against transformers' SmolVLM class, on the same weights and inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanovlm.commands.options import parse


@dataclass
class BenchOptions:
    """Time a training step and `generate` here and in transformers' SmolVLM class, each in its best setting.

    Both have the same random weights and the same inputs, and are first checked to give the same logits. Settings:
    float32, on a CPU with bfloat16 products also bfloat16 and autocast, eager and compiled, two kinds of attention. The
    fastest of each side are timed in turn. All on the CPU; nothing else should run. About half an hour, most of it
    spent compiling; with --quick --compile False about two minutes.
    """

    sizes: tuple[Literal["pocket", "quarter"], ...] = ("pocket", "quarter")  # quarter: the 222M model at half widths
    quick: bool = False  # fewer rounds
    compile: bool = True  # also try torch.compile, on both sides
    growth: bool = False  # also measure how time grows with batch and length, and memory over 1,000 steps
    json: Path | None = None  # write all measurements to this file


def main(arguments: Sequence[str]) -> None:
    options = parse(BenchOptions, "bench", arguments)
    from nanovlm.bench.report import table
    from nanovlm.bench.run import run_bench
    from nanovlm.commands import report
    from nanovlm.files import write_json

    report.check_output(options.json, ".json")
    results = run_bench(options.sizes, options.quick, options.compile, options.growth)
    print("\n" + table(results))
    if options.json:
        write_json(results, options.json)
        print(f"\nmeasurements   {options.json}")
