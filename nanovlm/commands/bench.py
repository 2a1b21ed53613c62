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

    Both have the same random weights and the same inputs, and it first checks that they give the same logits. The
    settings are float32 (on a CPU with bfloat16 products also bfloat16 and autocast), eager and compiled, and two kinds
    of attention. The fastest ones of each side are timed in turn, on the CPU, so nothing else should run. This takes
    about half an hour, most of it for compiling; with --quick --compile False it takes about two minutes.
    """

    sizes: tuple[Literal["pocket", "quarter"], ...] = ("pocket", "quarter")  # quarter: the 222M model at half widths
    quick: bool = False  # fewer rounds
    compile: bool = True  # also try torch.compile, on both sides
    growth: bool = False  # also measure how time grows with batch and length, and memory over 1,000 steps
    json: Path | None = None  # write all measurements to this file
    preset: Literal["pocket", "colab", "h100", "460m"] | None = None  # instead: train so, for --steps
    ladder: bool = False  # with --preset: workers, uint8, bfloat16, compile, packing, one after the other
    steps: int = 100
    loader: bool = False  # instead: pictures a second on one core, beside plain PIL
    gpu_report: Path | None = None  # instead: all that a GPU has to show, in this file, within seven minutes
    small: bool = False  # of these three: a tiny model and few steps, to see them work

    def __post_init__(self) -> None:
        if not self.sizes:
            raise ValueError("--sizes is empty: name pocket, quarter or both.")
        if not 1 <= self.steps <= 1_000_000:
            raise ValueError(f"--steps is 1 to 1,000,000; it is {self.steps}.")


def main(arguments: Sequence[str]) -> None:
    options = parse(BenchOptions, "bench", arguments)
    if options.gpu_report or options.loader or options.preset:
        return full_run(options)
    from nanovlm.bench.contest import run_bench
    from nanovlm.bench.results_table import table
    from nanovlm.commands import score_report
    from nanovlm.files import write_json

    score_report.check_output(options.json, ".json")
    results = run_bench(options.sizes, options.quick, options.compile, options.growth)
    print("\n" + table(results))
    if options.json:
        write_json(results, options.json)
        print(f"\nmeasurements   {options.json}")


def full_run(options: BenchOptions) -> None:
    """The measurements of `nanovlm.bench.full_run`: they are of this package alone, on whatever device is there."""
    from nanovlm.bench.full_run import ladder, measure_loader, measure_steps, table
    from nanovlm.bench.gpu_report import gpu_report
    from nanovlm.commands import score_report
    from nanovlm.config import presets
    from nanovlm.files import write_json

    file = options.gpu_report or options.json
    score_report.check_output(file, ".json")
    if options.gpu_report:
        results = gpu_report(options.small)
        print("\n" + table(results["ladder"]))
    elif options.loader:
        results = measure_loader(presets()[options.preset or "h100"].vlm)
        print("\n".join(f"{name.replace('_', ' '):22}{value:,.2f}" for name, value in results.items()))
    else:
        steps, warmup = (2, 1) if options.small else (options.steps, 10)
        if options.ladder:
            made = ladder(options.preset, steps, warmup, options.small)
        else:
            made = [measure_steps(options.preset, steps=steps, warmup=warmup, small=options.small)]
        results = {"ladder": made}
        print(table(made))
    if file:
        write_json(results, file)
        print(f"\nmeasurements   {file}")
