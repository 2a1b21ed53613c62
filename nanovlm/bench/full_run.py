"""How fast a preset trains on this machine, with what limits it: generated JPEGs and random weights, no network."""

from __future__ import annotations

import io
import itertools
import time
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from nanovlm.assets import asset_path
from nanovlm.config import Preset, TrainConfig, VLMConfig, pocket_vlm, presets
from nanovlm.data.batches import BatchOrder, Loader, MapBatches
from nanovlm.data.chat import ChatTokenizer
from nanovlm.data.collators import PackingCollator, VQACollator
from nanovlm.data.datasets import VQADataset
from nanovlm.data.tiling import make_image_processor
from nanovlm.device import choose_precision, find_device, peak_memory
from nanovlm.models.vision_language_model import VisionLanguageModel
from nanovlm.training.optimizer import Optimizers
from nanovlm.training.plan import flops_per_sample
from nanovlm.training.step import train_step

IMAGE_SIZES = ((640, 480), (500, 375), (427, 640), (1024, 768))  # as they are common in the_cauldron
Result = dict[str, Any]


@dataclass(frozen=True)
class Rung:
    """One thing after the other that makes a run faster; each rung has those below it as well."""

    name: str
    workers: bool = False
    raw_pixels: bool = False
    precision: str = "fp32"
    compile: bool = False
    packing: bool = False


RUNGS = (
    Rung("one process, float32"),
    Rung("+ workers", workers=True),
    Rung("+ uint8 pixels", workers=True, raw_pixels=True),
    Rung("+ bfloat16", workers=True, raw_pixels=True, precision="auto"),
    Rung("+ compile", workers=True, raw_pixels=True, precision="auto", compile=True),
    Rung("+ packed rows", workers=True, raw_pixels=True, precision="auto", compile=True, packing=True),
)


@lru_cache(maxsize=64)  # the same ones for every rung of the ladder
def jpeg(size: tuple[int, int], seed: int) -> bytes:
    """A picture that takes about as long to decode as a photograph: gradients, edges and some noise."""
    draw = np.random.default_rng(seed)
    width, height = size
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / draw.uniform(9, 60) + draw.uniform(0, 6)) + np.cos(y / draw.uniform(9, 60)) for _ in range(3)]
    pixels = 127 + 50 * np.stack(waves, axis=-1) + draw.normal(0, 8, (height, width, 3))
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def generated_samples(count: int = 64) -> list[dict[str, Any]]:
    """In the_cauldron's schema, undecoded: a picture, and one to three turns of a few words."""
    words = ("how", "many", "red", "round", "shapes", "are", "there", "what", "does", "the", "sign", "say")
    samples = []
    for number in range(count):
        draw = np.random.default_rng(number)
        turns = [
            {"user": " ".join(draw.choice(words, 7)) + "?", "assistant": " ".join(draw.choice(words, 3))}
            for _ in range(1 + number % 3)
        ]
        image = {"bytes": jpeg(IMAGE_SIZES[number % len(IMAGE_SIZES)], number), "path": None}
        samples.append({"images": [image], "texts": turns})
    return samples


def tiny(preset: Preset) -> Preset:
    """The same recipe on the pocket model with few rows: what a test can run."""
    config = pocket_vlm()
    train = replace(preset.train, batch_size=4, max_length=192, gradient_accumulation_steps=1, compile=False)
    return Preset(config, replace(train, num_workers=min(1, train.num_workers), max_images=None))


def measure_steps(name: str, rung: Rung = RUNGS[-2], steps: int = 100, warmup: int = 10, small: bool = False) -> Result:
    """Optimizer steps of one forward each, after some to warm up: rates, what was waited for, peak memory."""
    preset = tiny(presets()[name]) if small else presets()[name]
    device = find_device()
    precision = choose_precision(rung.precision, device)
    tokenizer = ChatTokenizer.from_pretrained(asset_path("pocket"))
    config = replace(preset.vlm, image_token_id=tokenizer.image_token_id, prompt_format="chat", tiling=None)
    recipe = replace(preset.train, packing=rung.packing, gradient_accumulation_steps=1)
    torch.manual_seed(0)
    model = VisionLanguageModel(config)
    model.to(device, precision.weights).train()
    model.gradient_checkpointing(recipe.gradient_checkpointing)
    if rung.compile and not small:
        model.compile_parts()
    optimizers, scaler = Optimizers(model, recipe), precision.scaler(device)
    loader = _loader(config, recipe, rung, tokenizer)
    batches, waited, rows, tokens, images = iter(loader), 0.0, 0, 0, 0
    started = time.perf_counter()
    for step in range(warmup + steps):
        if step == warmup:
            _finish(device)
            started, waited, rows, tokens, images = time.perf_counter(), 0.0, 0, 0, 0
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        train_step(model, [batch], optimizers, scaler, precision, device, recipe.max_grad_norm)
        rows += len(batch["sample_indices"])
        tokens += int(batch["attention_mask"].sum())
        images += len(batch["images"])
    _finish(device)
    seconds = time.perf_counter() - started
    operations = flops_per_sample(config, replace(recipe, max_length=tokens // rows, packing=False)) * rows
    return {
        "preset": name,
        "rung": rung.name,
        "precision": precision.name,
        "rows_a_step": recipe.batch_size,
        "steps": steps,
        "samples_per_second": rows / seconds,
        "tokens_per_second": tokens / seconds,
        "tflops": operations / seconds / 1e12,
        "share_waiting_for_data": waited / seconds,
        "peak_memory_gb": peak_memory(device) / 1e9,
    }


def ladder(name: str, steps: int = 50, warmup: int = 10, small: bool = False) -> list[Result]:
    return [measure_steps(name, rung, steps, warmup, small) for rung in RUNGS]


def measure_loader(config: VLMConfig, count: int = 200) -> Result:
    """Pictures a second that one core makes, from a JPEG of 640 x 480 to the tensor that the model takes, beside plain
    PIL in turn; and how far the two results lie apart, in levels of 255. Processor time: other work does not count."""
    processor = make_image_processor(replace(config, tiling=None))
    files = [jpeg(IMAGE_SIZES[0], seed) for seed in range(8)]
    side = config.vision.image_size

    def plain(file: bytes) -> torch.Tensor:
        image = Image.open(io.BytesIO(file)).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()

    def ours(file: bytes) -> torch.Tensor:
        return processor.prepare([file], "", 0, raw=True)[0][0]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one core, as a worker has
    apart = max((ours(f).float() - plain(f).float()).abs().mean().item() for f in files)
    seconds = {ours: 0.0, plain: 0.0}
    for file in itertools.islice(itertools.cycle(files), count):
        for make in seconds:
            started = time.process_time()
            make(file)
            seconds[make] += time.process_time() - started
    torch.set_num_threads(threads)
    return {
        "pictures_per_second": count / seconds[ours],
        "plain_pil_per_second": count / seconds[plain],
        "times_plain_pil": seconds[plain] / seconds[ours],
        "levels_apart": apart,
    }


def measure_peak(device: torch.device, dtype: torch.dtype, size: int = 4096, seconds: float = 0.5) -> float:
    """TFLOP/s of a square matrix product."""
    size = size if device.type == "cuda" else 512
    a = torch.randn(size, size, device=device, dtype=dtype)
    for _ in range(3):
        a @ a
    _finish(device)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        a @ a
        count += 1
        if count % 10 == 0:
            _finish(device)
    _finish(device)
    return 2 * size**3 * count / (time.perf_counter() - started) / 1e12


def table(results: list[Result]) -> str:
    lines = ["| rung | samples/s | tokens/s | TFLOP/s | waiting for data | peak memory |", "|---|---|---|---|---|---|"]
    for r in results:
        lines.append(
            f"| {r['rung']} ({r['precision']}) | {r['samples_per_second']:,.1f} | {r['tokens_per_second']:,.0f} | "
            f"{r['tflops']:.3g} | {r['share_waiting_for_data']:.0%} | {r['peak_memory_gb']:.2f} GB |"
        )
    return "\n".join(lines)


def _loader(config: VLMConfig, recipe: TrainConfig, rung: Rung, tokenizer: ChatTokenizer) -> Loader:
    samples = generated_samples()
    data = VQADataset(
        samples, tokenizer, make_image_processor(config), config, recipe.max_length, raw_pixels=rung.raw_pixels
    )
    collate = PackingCollator if rung.packing else partial(lambda pad, _: VQACollator(pad))
    order = BatchOrder(torch.arange(len(samples)), recipe.batch_size, seed=0)
    batches = MapBatches(data, order, collate(tokenizer.pad_token_id, recipe.max_length), endless=True)
    return Loader(batches, recipe.num_workers if rung.workers else 0)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
