"""The benchmark's results as a table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nanovlm.bench.growth import straightness

ROW = "  {:<13} {:>10} {:>9} {:>9} {:>7}   {}"


def table(results: dict[str, Any]) -> str:
    return "\n".join(lines(results))


def lines(results: dict[str, Any]) -> Iterator[str]:
    machine = results["machine"]
    rates = machine["matmul_rate"]
    yield f"{machine['threads']} threads, torch {machine['torch']}, transformers {machine['transformers']}"
    yield "matrix product: " + ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in rates.items())
    for name, size in results["sizes"].items():
        yield ""
        yield (
            f"{name}: {size['what']}; {size['parameters'] / 1e6:.1f} M parameters; the two models' logits are equal to "
            f"{size['difference']:.0e} of the largest"
        )
        yield (
            f"a step is {size['batch_size']} rows of {size['length']} tokens, {size['supervised']} of them supervised; "
            f"generate writes {size['new_tokens']} tokens after {size['prompt_length']}"
        )
        for result in size["results"]:
            yield ""
            yield f"{result['what']}, {result['flops'] / 1e9:.1f} GFLOP"
            yield ROW.format("", "median", "spread", "GFLOP/s", "share", "best setting")
            for who in ("nanovlm", "transformers"):
                yield _row(who, result[who], result["flops"], rates)
            yield "  " + verdict(result)
    if results["growth"]:
        yield ""
        yield from _growth(results["growth"])


def _row(who: str, side: dict[str, Any], flops: int, rates: dict[str, float]) -> str:
    """The share is of the rate of the format that the matrix products are in."""
    rate = flops / side["median_s"]
    share = rate / rates["fp32" if side["precision"] == "fp32" else "bf16"]
    return ROW.format(
        who, duration(side["median_s"]), f"{side['spread']:.1%}", f"{rate / 1e9:.1f}", f"{share:.1%}", side["setting"]
    )


def verdict(result: dict[str, Any]) -> str:
    text = f"nanovlm is {result['ratio']:.2f} times as fast"
    target = result["target"]
    if target is None:
        return text + "."
    return f"{text}; the target is {target:.1f}: {'met' if result['ratio'] >= target else 'missed'}."


def _growth(grown: dict[str, Any]) -> Iterator[str]:
    yield f"growth, {grown['size']}"
    for key, what, unit in (
        ("training_step_s", "a training step", "rows"),
        ("generate_s", "generate", "new tokens"),
    ):
        seconds = {int(value): time for value, time in grown[key].items()}
        each = ", ".join(f"{value} {unit} {duration(time)}" for value, time in seconds.items())
        yield f"  {what}: {each}; the last doubling costs {straightness(seconds):.2f} times a straight line"
    memory = grown["memory"]
    if memory["bytes_before"] is None:
        yield "  memory: not measured, this system does not say what a process holds"
    else:
        change = (memory["bytes_after"] - memory["bytes_before"]) / 2**20
        yield f"  memory: {change:+.1f} MiB from step 100 to step {memory['steps']}"


def duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"
