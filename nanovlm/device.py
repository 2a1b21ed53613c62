"""Which device and dtype to compute in, and why."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch


def find_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def peak_memory(device: torch.device) -> float:
    """Bytes: the most that the process has held in main memory or, on a GPU, its tensors there. NaN on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)  # macOS counts bytes, Linux KiB


def processor() -> str:
    """The processor's name and cores, and torch's version: what a measurement has to say of where it was made."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux: what platform knows will do
    if torch.cuda.is_available():
        name = f"{torch.cuda.get_device_name()}, {name}"
    return f"{name}, {os.cpu_count()} cores, torch {torch.__version__.split('+')[0]}"


def _cpu_multiplies_bf16() -> bool:
    """Whether this CPU has bfloat16 matrix instructions (AVX512-BF16 or AMX); without them bfloat16 is emulated."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe()) if probe is not None else False


@dataclass(frozen=True)
class Precision:
    """weights: the model's own type (float32 master copies stay with the optimizer where it is bfloat16).
    autocast: the type that matrix products are cast to on the way (float16 on older GPUs), or None."""

    name: str
    reason: str
    weights: torch.dtype = torch.float32
    autocast: torch.dtype | None = None

    def context(self, device: torch.device) -> AbstractContextManager[object]:
        return nullcontext() if self.autocast is None else torch.autocast(device.type, dtype=self.autocast)

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """float16 cannot hold small gradients: scale the loss up, the gradients down. Elsewhere this does nothing."""
        return torch.amp.GradScaler(device.type, enabled=self.autocast == torch.float16)


def choose_precision(wanted: str, device: torch.device) -> Precision:
    """`auto` takes what this device does best; anything else is taken at its word, or refused with the reason."""
    if wanted not in ("auto", "fp32", "bf16", "fp16"):
        raise ValueError(f"precision must be one of auto, fp32, bf16, fp16; it is {wanted!r}.")
    if wanted == "auto":
        if device.type == "cuda":
            wanted = "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
            reason = f"{torch.cuda.get_device_name(device)} " + (
                "multiplies bfloat16" if wanted == "bf16" else "has no bfloat16 units: float16 with a gradient scaler"
            )
        elif device.type == "cpu" and _cpu_multiplies_bf16():
            wanted, reason = "bf16", "this CPU multiplies bfloat16 faster than float32"
        else:
            wanted, reason = "fp32", f"no faster format is safe on this {device.type.upper()}"
    else:
        reason = "you asked for it"
    if wanted == "fp32":
        return Precision("fp32", reason)
    if wanted == "bf16":
        return Precision("bf16", reason, weights=torch.bfloat16)
    if device.type != "cuda":
        raise ValueError(f"fp16 training needs a CUDA GPU; this is {device.type}. Use --precision auto.")
    return Precision("fp16", reason, autocast=torch.float16)
