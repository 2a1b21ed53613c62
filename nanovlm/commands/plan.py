"""`nanovlm plan`: what a preset's run will take, on this machine or another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nanovlm.commands.options import parse


@dataclass
class Options:
    """Compute what a preset's run needs: operations, hours, memory, disk and money.

    Without --machine, it prints a line for each machine in the list. To change the recipe itself, for example with a
    smaller batch or fewer steps, use nanovlm train --preset NAME --estimate --machine NAME.
    """

    preset: Literal["pocket", "colab", "h100", "460m"] = "h100"
    machine: str | None = None  # T4, L4, 3090, 4090, A100, H100, H200, M3 Max, laptop CPU, or this CPU, measured now
    gpus: int = 1
    utilisation: float = 0.25  # share of the peak that training reaches; 0.08: as published
    price: float | None = None  # dollars a GPU and hour; None: a rough one

    def __post_init__(self) -> None:
        if self.price is not None and not 0 <= self.price < float("inf"):
            raise ValueError(f"--price is a number of dollars; it is {self.price}.")


def main(arguments: Sequence[str]) -> None:
    options = parse(Options, "plan", arguments)
    from nanovlm.config import presets
    from nanovlm.training.plan import MACHINES, UTILISATIONS, find_machine, hours_in_words, plan

    preset = presets()[options.preset]
    some = [find_machine(options.machine)] if options.machine is not None else list(MACHINES.values())
    plans = [plan(preset.vlm, preset.train, one, options.gpus, options.utilisation, options.price) for one in some]
    if options.machine is not None:
        print(plans[0])
    else:
        print(f"{options.preset}: {plans[0].samples:,} samples at a utilisation of {options.utilisation:.0%}\n")
        print(f"{'machine':12}{'time':>14}{'samples/s':>12}{'memory':>10}{'of':>8}  {'cost':>10}")
        for one in plans:
            memory = f"{one.memory_bytes / 1e9:.1f} GB"
            line = f"{one.machine.name:12}{hours_in_words(one.hours):>14}{one.samples_per_second:>12,.1f}{memory:>10}"
            rest = "" if one.fits else f"  does not fit: batches of {one.largest_batch} rows do"
            print(f"{line}{one.machine.memory_gb:>5g} GB  {f'${one.dollars:,.2f}':>10}{rest}")
    print("\nutilisation: the share of the machine's peak that training reaches (--utilisation)")
    for share, what in UTILISATIONS.items():
        print(f"{share:>5.0%}  {what}")
