"""How much this machine should be asked for: one word that every notebook takes its sizes and steps from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

NAMES = ("ci", "laptop", "t4", "h100")


@dataclass(frozen=True)
class Budget:
    name: str
    reason: str

    def pick(self, **choices: T) -> T:
        """The value for this budget, or for the next smaller one that is given: pick(ci=20, laptop=600)."""
        unknown = sorted(set(choices) - set(NAMES))
        if unknown or "ci" not in choices:
            what = f"does not know {', '.join(unknown)}" if unknown else "needs a value for ci"
            raise ValueError(f"pick {what}: the budgets are {', '.join(NAMES)}.")
        upto = NAMES[: NAMES.index(self.name) + 1]
        return next(choices[name] for name in reversed(upto) if name in choices)


def budget() -> Budget:
    """NANOVLM_BUDGET (ci, laptop, t4 or h100), else what this machine is."""
    chosen = os.environ.get("NANOVLM_BUDGET")
    if chosen:
        if chosen not in NAMES:
            raise ValueError(f"NANOVLM_BUDGET is {chosen!r}; it must be one of {', '.join(NAMES)}.")
        return Budget(chosen, "set by NANOVLM_BUDGET")
    import torch

    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        gib = device.total_memory / 2**30
        large = torch.cuda.get_device_capability(0) >= (8, 0) and gib > 30
        return Budget("h100" if large else "t4", f"{device.name} with {gib:.0f} GiB")
    return Budget("laptop", f"no CUDA GPU, {os.cpu_count()} CPU cores")
