"""Which setting is each side's best: try them, keep the fastest."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nanovlm.bench.contenders import Setting
from nanovlm.bench.timing import Timing, interleave
from nanovlm.device import choose_precision

Start = Callable[[Setting], Callable[[], Any]]  # makes a contender ready in a setting


@dataclass
class Trial:
    setting: Setting
    timing: Timing | None
    failure: str | None = None  # why there is no timing


def forget_compiled() -> None:
    """Graphs of one trial would count against the next one's limit of recompilations."""
    torch._dynamo.reset()
    gc.collect()


def try_setting(start: Start, setting: Setting, rounds: int) -> Trial:
    if setting.compiled != "eager":
        forget_compiled()
    try:
        run = start(setting)
        for _ in range(2):  # compiles, and meets every shape
            run()
    except Exception as error:  # one that does not run cannot be the best; which and why is in the report
        return Trial(setting, None, ": ".join([type(error).__name__, *str(error).splitlines()[:1]]))
    return Trial(setting, interleave({"it": run}, rounds)["it"])


def best(trials: Sequence[Trial]) -> Setting:
    timed = [trial for trial in trials if trial.timing is not None]
    if not timed:
        raise RuntimeError("No setting could be timed: " + "; ".join(f"{t.setting}: {t.failure}" for t in trials))
    return min(timed, key=lambda trial: trial.timing.median).setting


def bfloat16_pays() -> bool:
    """Without instructions for products of bfloat16 numbers, a step in them takes many times that of float32."""
    return choose_precision("auto", torch.device("cpu")).name == "bf16"


def our_settings(compiled: bool) -> list[Setting]:
    """float32, which `nanovlm generate` takes on a CPU, and what `nanovlm train` takes there; and with `--compile`
    where that is asked for."""
    names = ("fp32", "bf16") if bfloat16_pays() else ("fp32",)
    ways = ("eager", "parts") if compiled else ("eager",)
    return [Setting(name, way) for way in ways for name in names]


def search_theirs(start: Start, ways: Iterable[str], rounds: int, note: Callable[[Trial], Any]) -> list[Trial]:
    """All of fp32, and bf16 and autocast where they pay, with both kinds of attention, eagerly; then each precision
    compiled (`ways`: blocks, whole) with the attention that was faster."""
    precisions = ("fp32", "bf16", "autocast") if bfloat16_pays() else ("fp32",)
    trials: list[Trial] = []

    def attempt(setting: Setting) -> None:
        trials.append(try_setting(start, setting, rounds))
        note(trials[-1])

    for precision in precisions:
        for attention in ("sdpa", "eager"):
            attempt(Setting(precision, "eager", attention))
    for way in ways:
        for precision in precisions:
            eager = [t for t in trials if (t.setting.precision, t.setting.compiled) == (precision, "eager")]
            if any(t.timing is not None for t in eager):
                attempt(Setting(precision, way, best(eager).attention))
    return trials
