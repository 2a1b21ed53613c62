"""What a training run will take, before it begins: parameters, operations, hours, memory, disk and money.

Formulas over the configs alone: no weights, no torch, in a millisecond. The operations are those that the tracer and
torch's FlopCounterMode count, the memory is what autograd keeps (tests/training/test_plan.py holds both against it).
"""

from __future__ import annotations

from dataclasses import dataclass

from nanovlm.config import LMConfig, TrainConfig, ViTConfig, VLMConfig, presets
from nanovlm.training.formulas import decoder_flops, head_flops, patch_flops, projector_flops, vision_flops

# What a run cannot know of its data beforehand: assumptions, not measurements.
SUPERVISED_SHARE = 20 / 128  # of a row's tokens: those of the answers
IMAGE_SHARE = 0.6  # of a packed row's tokens: those of pictures
BYTES_PER_SAMPLE = 100_000  # of a download: a picture of some 500 pixels, and its turns
KNOWN_SAMPLES = {"HuggingFaceM4/the_cauldron": 1_700_000}
UTILISATIONS = {  # share of the peak that training reaches
    0.08: "measured: the published 222M, 390 samples/s on one H100",
    0.25: "assumed: a loader that keeps up, without torch.compile",
    0.35: "assumed: compiled, with fused attention",
    0.45: "assumed: large batches of long, packed rows",
}
KEPT_CHECKPOINTS = 3  # two, and the one that is being written
FIXED_BYTES = 1.0e9  # of a GPU: CUDA's context, libraries, what the allocator holds back


@dataclass(frozen=True)
class Machine:
    """Peak in TFLOP/s of dense matrix products in `precision` (the makers' data sheets), memory in GB, and a rough
    price in dollars an hour to rent one (2026; yours will differ)."""

    name: str
    tflops: float
    memory_gb: float
    dollars_per_hour: float
    precision: str = "bf16"


MACHINES = {
    machine.name: machine
    for machine in (
        Machine("T4", 65, 15, 0.35, "fp16"),
        Machine("L4", 121, 24, 0.70),
        Machine("3090", 71, 24, 0.25),
        Machine("4090", 165, 24, 0.45),
        Machine("A100", 312, 80, 1.60),
        Machine("H100", 989, 80, 2.50),
        Machine("H200", 989, 141, 3.20),
        Machine("M3 Max", 14, 48, 0.0, "fp32"),
        Machine("laptop CPU", 0.1, 16, 0.0, "fp32"),  # two cores without AVX512-BF16, as measured
    )
}


def this_cpu() -> Machine:
    """This machine's processor, its peak measured with one matrix product (a tenth of a second)."""
    import os
    import time

    import torch

    a = torch.randn(1024, 1024)
    a @ a
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < 0.1:
        a @ a
        count += 1
    tflops = 2 * 1024**3 * count / (time.perf_counter() - start) / 1e12
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 16e9
    return Machine("this CPU", tflops, pages / 1e9, 0.0, "fp32")


def find_machine(name: str) -> Machine:
    """Raises: ValueError for one that is not in the list."""
    if name.lower() == "this cpu":
        return this_cpu()
    known = {key.lower(): machine for key, machine in MACHINES.items()}
    if name.lower() not in known:
        raise ValueError(f"There is no machine {name!r} in the list: {', '.join(MACHINES)}, this CPU.")
    return known[name.lower()]


@dataclass(frozen=True)
class Plan:
    """One run on one kind of machine. Bytes, seconds and operations are plain numbers."""

    machine: Machine
    num_gpus: int
    utilisation: float
    parameters: int
    samples: int  # rows trained on
    flops_per_sample: float  # forward and backward, without what checkpointing computes again
    hours: float
    samples_per_second: float
    memory: dict[str, float]  # bytes a GPU, by what holds them
    largest_batch: int  # rows a forward that fit into a GPU; 0: not even one
    disk_bytes: float  # checkpoints and the best model
    download_bytes: float | None  # None: nothing, or not known
    dollars: float

    @property
    def memory_bytes(self) -> float:
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        return self.memory_bytes <= self.machine.memory_gb * 1e9

    def __str__(self) -> str:
        gb = {name: f"{size / 1e9:.1f}" for name, size in self.memory.items()}
        verdict = "fits" if self.fits else f"does not fit: at most {self.largest_batch} rows a forward do"
        if not self.fits and not self.largest_batch:
            verdict = "does not fit, not even with one row: deal the model out to several GPUs (--parallel fsdp)"
        lines = {
            "parameters": f"{self.parameters / 1e6:,.1f} M",
            "operations": f"{self.flops_per_sample / 1e9:,.1f} GFLOP a sample, "
            f"{self.flops_per_sample * self.samples / 1e18:,.3g} EFLOP in all",
            "time": f"{hours_in_words(self.hours)} for {self.samples:,} samples on {self.num_gpus} x "
            f"{self.machine.name} at {self.utilisation:.0%} of its {self.machine.tflops:.3g} TFLOP/s, that is "
            f"{self.samples_per_second:,.{0 if self.samples_per_second >= 10 else 2}f} a second",
            "memory": f"{self.memory_bytes / 1e9:.1f} of {self.machine.memory_gb:.3g} GB a GPU ({verdict}): "
            + ", ".join(f"{name} {size}" for name, size in gb.items()),
            "disk": f"{self.disk_bytes / 1e9:,.1f} GB for checkpoints"
            + (f", {self.download_bytes / 1e9:,.0f} GB for data" if self.download_bytes else ""),
            "cost": f"about ${self.dollars:,.2f} at ${self.machine.dollars_per_hour:.2f} a GPU and hour",
        }
        return "\n".join(f"{name:<11}{text}" for name, text in lines.items())


def plan(
    vlm: VLMConfig,
    recipe: TrainConfig,
    machine: Machine,
    num_gpus: int = 1,
    utilisation: float = 0.25,
    dollars_per_hour: float | None = None,
) -> Plan:
    """Raises: ValueError where utilisation is no share, or there is no GPU."""
    if not 0 < utilisation <= 1:
        raise ValueError(f"utilisation is a share of the peak, between 0 and 1; it is {utilisation}.")
    if num_gpus < 1:
        raise ValueError(f"A run needs at least one machine, not {num_gpus}.")
    parameters = sum(num_parameters(vlm).values())
    samples = recipe.max_steps * recipe.batch_size * recipe.gradient_accumulation_steps * num_gpus
    flops = flops_per_sample(vlm, recipe)
    again = 4 / 3 if recipe.gradient_checkpointing else 1.0  # the forward pass once more, which teaches nothing
    speed = num_gpus * machine.tflops * 1e12 * utilisation / (flops * again)
    fixed, per_row = memory_by_part(vlm, recipe, machine, num_gpus)
    memory = fixed | {name: size * recipe.batch_size for name, size in per_row.items()}
    room = machine.memory_gb * 1e9 - sum(fixed.values())
    hours = samples / speed / 3600
    known = KNOWN_SAMPLES.get(recipe.dataset_path)
    price = machine.dollars_per_hour if dollars_per_hour is None else dollars_per_hour
    return Plan(
        machine,
        num_gpus,
        utilisation,
        parameters,
        samples,
        flops,
        hours,
        speed,
        memory,
        max(0, int(room / sum(per_row.values()))),
        parameters * (KEPT_CHECKPOINTS * (4 + 8) + 2 * 4),
        None if known is None or recipe.stream else known * BYTES_PER_SAMPLE,
        hours * num_gpus * price,
    )


def does_not_fit(vlm: VLMConfig, recipe: TrainConfig, memory_gb: float, precision: str, num_gpus: int = 1) -> str:
    """What to do where a GPU ran out of memory: the largest batch that fits by the plan, and the same step in it."""
    machine = Machine("this GPU", 1.0, memory_gb, 1.0, precision)
    largest = min(plan(vlm, recipe, machine, num_gpus).largest_batch, recipe.batch_size // 2)
    said = (
        f"A forward of {recipe.batch_size} rows of {recipe.max_length} tokens does not fit into the GPU's "
        f"{memory_gb:.0f} GB"
    )
    if largest < 1:
        return f"{said}, nor does one row: take --gradient-checkpointing True, shorter rows, or fsdp on several GPUs."
    times = -(-recipe.batch_size * recipe.gradient_accumulation_steps // largest)
    return (
        f"{said}. At most {largest} should: --batch-size {largest} --gradient-accumulation-steps {times} makes the "
        "same step; --gradient-checkpointing True makes room as well."
    )


def images_per_row(vlm: VLMConfig, recipe: TrainConfig) -> float:
    """Pictures, or tiles: one, or as many as fill their part of a packed row."""
    return IMAGE_SHARE * recipe.max_length / vlm.num_image_tokens if recipe.packing else 1.0


def flops_per_sample(vlm: VLMConfig, recipe: TrainConfig) -> float:
    """Forward, and twice as much backward (but no gradient of a picture), for one row of max_length tokens."""
    length = recipe.max_length
    image = 3 * (vision_flops(vlm.vision) + projector_flops(vlm)) + 2 * patch_flops(vlm.vision)
    text = decoder_flops(vlm.language, length, length) + head_flops(vlm.language, round(SUPERVISED_SHARE * length))
    return images_per_row(vlm, recipe) * image + 3 * text


def num_parameters(vlm: VLMConfig) -> dict[str, int]:
    """Of encoder, projector and decoder."""
    v, p, d = vlm.vision, vlm.projector, vlm.language
    block = 4 * v.hidden_dim * (v.hidden_dim + 1) + 2 * v.hidden_dim * v.inter_dim + v.inter_dim + 5 * v.hidden_dim
    patches = v.hidden_dim * (3 * v.patch_size**2 + 1 + v.num_patches)
    kv = d.num_kv_heads * d.head_dim
    layer = 2 * d.hidden_dim * (d.hidden_dim + kv + 1) + 3 * d.hidden_dim * d.inter_dim
    words = d.vocab_size * d.hidden_dim * (1 if d.tie_weights else 2)
    return {
        "encoder": patches + v.num_blocks * block + 2 * v.hidden_dim,
        "projector": p.vision_dim * p.pixel_shuffle_factor**2 * p.language_dim,
        "decoder": words + d.num_blocks * layer + d.hidden_dim,
    }


def memory_by_part(
    vlm: VLMConfig, recipe: TrainConfig, machine: Machine, num_gpus: int = 1
) -> tuple[dict[str, float], dict[str, float]]:
    """Bytes on one GPU: (what does not depend on the batch, what each row of a forward adds).

    Their sum is the peak where several batches make a step, or several processes. With one batch gradients come as
    activations go, and the peak is lower by a part of them (`bench.memory.step_bytes` measures it).
    """
    wanted = machine.precision if recipe.precision == "auto" else recipe.precision
    parameters = sum(num_parameters(vlm).values())
    # One process in bfloat16 computes with bfloat16 weights beside float32 master copies; else weights are float32.
    doubled = wanted == "bf16" and num_gpus == 1
    cast = wanted != "fp32" and not doubled  # autocast keeps a copy of each matrix for the step
    moments = 8 * parameters
    if recipe.optimizer == "muon":  # one momentum for a hidden matrix, two moments for the rest
        moments -= 4 * _hidden_matrices(vlm)
    share = 1 / num_gpus if recipe.parallel == "fsdp" else 1.0
    fixed = {
        "weights": parameters * (6 if doubled else 4) * share + parameters * 2 * cast * share,
        "gradients": parameters * (6 if doubled else 4) * share,
        "optimizer": moments * share,
        "fixed": FIXED_BYTES if machine.memory_gb and machine.dollars_per_hour else 0.0,
    }
    size = 4 if wanted == "fp32" else 2
    kept = activation_numbers(vlm, recipe.max_length, images_per_row(vlm, recipe), recipe.gradient_checkpointing)
    logits = SUPERVISED_SHARE * recipe.max_length * vlm.language.vocab_size
    # Logits, their float32 copy, log-probabilities, and the gradient of both.
    return fixed, {"activations": kept * size, "logits": logits * (2 * size + 8)}


def activation_numbers(vlm: VLMConfig, length: int, images: float = 1.0, checkpointing: bool = False) -> float:
    """How many numbers autograd keeps of one row's forward pass, with a fused attention kernel."""
    v, d = vlm.vision, vlm.language
    encoder = v.num_patches * _kept(v.num_blocks, _vit_block(v), v.hidden_dim, checkpointing)
    # The last norm, the projector's input, the pixels.
    encoder += 2 * v.num_patches * v.hidden_dim + 3 * v.image_size**2
    decoder = length * _kept(d.num_blocks, _decoder_block(d), d.hidden_dim, checkpointing)
    decoder += 2 * length * d.hidden_dim  # the joined embeddings, and the last norm's
    return images * encoder + decoder


def _kept(blocks: int, block: float, dim: int, checkpointing: bool) -> float:
    """A token's numbers: of all blocks, or with checkpointing the input of each and all of the one computed again."""
    return blocks * dim + block if checkpointing else blocks * block


def _vit_block(v: ViTConfig) -> float:
    """Inputs of both norms and their outputs, q, k, v, the attention's output as heads and joined; the MLP's inside."""
    return 9 * v.hidden_dim + 2 * v.inter_dim


def _decoder_block(d: LMConfig) -> float:
    """As above; RoPE keeps no copy of q and k, and the gated MLP has gate, its SiLU, up and their product."""
    kv = d.num_kv_heads * d.head_dim
    return 7 * d.hidden_dim + 2 * kv + 4 * d.inter_dim


def _hidden_matrices(vlm: VLMConfig) -> int:
    v, d = vlm.vision, vlm.language
    kv = d.num_kv_heads * d.head_dim
    blocks = v.num_blocks * (4 * v.hidden_dim**2 + 2 * v.hidden_dim * v.inter_dim)
    blocks += d.num_blocks * (2 * d.hidden_dim * (d.hidden_dim + kv) + 3 * d.hidden_dim * d.inter_dim)
    return blocks + num_parameters(vlm)["projector"]


def hours_in_words(hours: float) -> str:
    for unit, size in (("days", 24), ("hours", 1), ("minutes", 1 / 60)):
        if hours >= 2 * size:
            return f"{hours / size:,.1f} {unit}"
    return f"{hours * 3600:,.0f} seconds"


def presets_table(utilisation: float = 0.25) -> str:
    """The presets on the machines they are meant for, in Markdown: it stands in the README."""
    rows = ["| preset | parameters | GFLOP a sample | on | memory | time | cost |", "|---|---|---|---|---|---|---|"]
    meant = {"pocket": "laptop CPU", "colab": "T4", "h100": "H100", "460m": "H100"}
    for name, preset in presets().items():
        # A laptop's peak was measured with the same products, so that it comes close to it.
        share = 0.5 if meant[name] == "laptop CPU" else utilisation
        made = plan(preset.vlm, preset.train, MACHINES[meant[name]], utilisation=share)
        rows.append(
            f"| `{name}` | {made.parameters / 1e6:,.1f} M | {made.flops_per_sample / 1e9:,.1f} | {made.machine.name} "
            f"at {share:.0%} | {made.memory_bytes / 1e9:.1f} GB | {hours_in_words(made.hours)} | ${made.dollars:,.2f} |"
        )
    return "\n".join(rows)
