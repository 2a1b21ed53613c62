"""`nanovlm bench --gpu-report`: all that a GPU has to show, in one run of a few minutes, as one JSON file.

Whoever has a card runs one command and opens a pull request with the file: tables of measurements come from those.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from nanovlm.bench.full_run import RUNGS, ladder, measure_loader, measure_peak
from nanovlm.bench.sizes import make_batch
from nanovlm.config import pocket_vlm, presets
from nanovlm.device import Precision, find_device
from nanovlm.models.flex import attend_in_blocks
from nanovlm.models.language_model import attention_layout
from nanovlm.models.vision_language_model import VisionLanguageModel
from nanovlm.training.plan import MACHINES, plan

Result = dict[str, Any]
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}  # of logits that lie within about +-3


def gpu_report(small: bool = False, say: Callable[[str], None] = print) -> Result:
    """small: tiny models and few steps, which a CPU does in seconds: the report itself can be tested."""
    device = find_device()
    started = time.perf_counter()
    steps, warmup = (2, 1) if small else (50, 10)
    report: Result = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or device.type,
        "torch": torch.__version__,
        "small": small,
        "peak_tflops": {},
    }
    dtypes = [torch.float32] if device.type == "cpu" else [torch.float32, torch.float16, torch.bfloat16]
    for dtype in dtypes:
        report["peak_tflops"][_name(dtype)] = measure_peak(device, dtype, seconds=0.05 if small else 0.5)
    say("attention    each path beside float32 on the CPU")
    report["attention"] = [attention_path(device, dtype, path) for dtype in dtypes for path in PATHS]
    say("packing      packed rows beside padded ones")
    report["packed_beside_padded"] = packed_beside_padded(device)
    report["blocks_beside_mask"] = blocks_beside_mask(device, *((2, 256) if small else (4, 4_096)))
    say("compile      three batches, one compilation")
    report["recompiles"] = None if small else recompiles(device)
    say("loader       pictures a second on one core")
    report["loader"] = measure_loader(presets()["h100"].vlm, 20 if small else 200)
    say("ladder       the 222M recipe, one thing after the other")
    report["ladder"] = ladder("h100", steps, warmup, small)
    for rung in report["ladder"]:
        peak = report["peak_tflops"].get({"bf16": "bfloat16", "fp16": "float16"}.get(rung["precision"], "float32"))
        rung["share_of_peak"] = rung["tflops"] / peak if peak else None
    preset = presets()["h100"]
    report["memory"] = {
        "measured_gb": report["ladder"][-2]["peak_memory_gb"],
        "planned_gb": None if small else plan(preset.vlm, preset.train, MACHINES["H100"]).memory_bytes / 1e9,
    }
    report["seconds"] = time.perf_counter() - started
    return report


def _inputs(path: str) -> Result:
    """A batch of the pocket model that takes this way through attention."""
    batch = make_batch(pocket_vlm(), 4, 64)
    if path == "padded on the left":
        mask = torch.ones_like(batch["input_ids"])
        mask[1:, :9] = 0
        del batch["targets"]
        batch["input_ids"] = batch["input_ids"].roll(9, dims=1)
        batch["attention_mask"] = mask
    if path == "packed":
        batch["document_ids"] = (torch.arange(64) >= 40).long().expand(4, -1)
    return batch


PATHS = ("causal", "padded on the left", "packed")


@torch.no_grad()
def attention_path(device: torch.device, dtype: torch.dtype, path: str) -> Result:
    """The largest difference of a logit from float32 on the CPU."""
    torch.manual_seed(0)
    model = VisionLanguageModel(pocket_vlm()).eval()
    batch = _inputs(path)
    real = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    wanted = _logits(model, batch)
    there = model.to(device, dtype)
    moved = {k: v.to(device, dtype if v.is_floating_point() else None) for k, v in batch.items()}
    found = _logits(there, moved).cpu().float()
    if "targets" not in batch:
        wanted, found = wanted[real], found[real]
    apart = (found - wanted).abs().max().item()
    return {"path": path, "dtype": _name(dtype), "apart": apart, "good": apart <= TOLERANCE[dtype]}


def _logits(model: VisionLanguageModel, batch: Result) -> torch.Tensor:
    return model(**batch).logits


@torch.no_grad()
def packed_beside_padded(device: torch.device) -> Result:
    """Two texts in one row, and each in its own: the same logits."""
    torch.manual_seed(0)
    model = VisionLanguageModel(pocket_vlm()).to(device).eval()
    ids = torch.randint(6, 444, (2, 24), device=device)
    documents = torch.arange(2, device=device).repeat_interleave(24)[None]
    packed = model(ids.reshape(1, 48), document_ids=documents).logits.reshape(2, 24, -1)
    apart = (packed - model(ids).logits).abs().max().item()
    return {"apart": apart, "good": apart <= TOLERANCE[torch.float32]}


def blocks_beside_mask(device: torch.device, rows: int, length: int) -> Result:
    """Attention of the 460m preset over packed rows of ten documents: flex attention's blocks beside the mask, outputs
    and (on a GPU) milliseconds of a forward and backward pass."""
    config = presets()["460m"].vlm.language
    documents = (torch.arange(length, device=device) * 10 // length).expand(rows, -1)
    _, mask = attention_layout(None, documents, length, device)
    grad, dtype = device.type == "cuda", torch.bfloat16 if device.type == "cuda" else torch.float32
    q, k, v = (
        torch.randn(rows, heads, length, config.head_dim, device=device, dtype=dtype, requires_grad=grad)
        for heads in (config.num_heads, config.num_kv_heads, config.num_kv_heads)
    )

    def with_mask() -> torch.Tensor:
        wide = (x.repeat_interleave(config.num_heads // config.num_kv_heads, dim=1) for x in (k, v))
        return F.scaled_dot_product_attention(q, *wide, attn_mask=mask)

    ways = {"mask": with_mask, "blocks": lambda: attend_in_blocks(q, k, v, mask)}
    made = {name: attend() for name, attend in ways.items()}
    apart = (made["blocks"] - made["mask"]).abs().max().item()
    milliseconds = {name: _backward_milliseconds(attend) for name, attend in ways.items()} if grad else None
    return {"apart": apart, "good": apart <= TOLERANCE[dtype], "milliseconds": milliseconds}


def _backward_milliseconds(attend: Callable[[], torch.Tensor], rounds: int = 10) -> float:
    for number in range(rounds + 2):
        if number == 2:
            torch.cuda.synchronize()
            started = time.perf_counter()
        attend().sum().backward()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / rounds * 1e3


def recompiles(device: torch.device) -> int:
    """How often torch.compile had to begin anew for three batches of one shape, after the first."""
    from torch._dynamo.utils import counters

    precision = Precision("fp32", "a report")
    model = VisionLanguageModel(pocket_vlm()).to(device).train()
    model.compile_parts()
    seen = []
    for seed in range(3):
        batch = {k: v.to(device) for k, v in make_batch(pocket_vlm(), 4, 64, seed).items()}
        with precision.context(device):
            model(**batch).loss.backward()
        seen.append(counters["stats"]["unique_graphs"])
    return seen[-1] - seen[0]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def best_rung(report: Result) -> Result:
    """What the README's table shows of a report."""
    names = [rung.name for rung in RUNGS]
    return max(report["ladder"], key=lambda rung: (rung["samples_per_second"], -names.index(rung["rung"])))


def readme_table(reports: Sequence[Result]) -> str:
    """The README's table, a line for each card that has shown what it does."""
    rows = ["| GPU | samples/s | share of peak | waiting for data | memory | with |", "|---|---|---|---|---|---|"]
    for report in sorted(reports, key=lambda one: one["device"]):
        best = best_rung(report)
        cells = [
            report["device"],
            f"{best['samples_per_second']:,.0f}",
            "" if best["share_of_peak"] is None else f"{best['share_of_peak']:.0%}",
            f"{best['share_waiting_for_data']:.0%}",
            f"{best['peak_memory_gb']:.1f} GB",
            f"{best['rung'].removeprefix('+ ')}, {best['precision']}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)
