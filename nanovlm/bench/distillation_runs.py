"""A student of half the pocket model's width, trained alone and with what the teacher knows: chapter 16's runs.

    python -m nanovlm.bench.distillation_runs --out assets/runs/16_distillation.json

Every run has the same pictures (a fixed pool of the Thimble's charts, over which the teacher goes once), the same
steps, and for one seed the same first weights and the same order; what differs is the loss. The feature, attention and
distribution losses are divided by their value at the first step, so that each starts at 1; the loss on logits keeps its
own size. One thread, about a minute a run.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nanovlm.assets import asset_path
from nanovlm.compress.distill import FeatureLoss, attention_loss, distribution_loss, kd_loss, student_config
from nanovlm.config import TrainConfig
from nanovlm.data.collators import Batch
from nanovlm.data.loading import get_dataloaders
from nanovlm.data.thimble import Thimble
from nanovlm.device import processor
from nanovlm.models.vision_language_model import VisionLanguageModel
from nanovlm.training.optimizer import Optimizers
from nanovlm.training.probe import Probe, mean
from nanovlm.training.step import get_lr
from nanovlm.weights.from_preset import from_scratch

SUBSET, BATCH, POOL, STEPS, TEMPERATURE = "charts", 16, 96, 320, 2.0  # POOL and STEPS in batches
TEST_IMAGES = 200
ARMS: dict[str, tuple[str, ...]] = {
    "alone": (),
    "logits": ("logits",),
    "features": ("features",),
    "attention": ("attention",),
    "distribution": ("distribution",),
    "together": ("logits", "features", "attention", "distribution"),
    "logits, reverse": ("logits, reverse",),
}


@contextmanager
def listening(model: VisionLanguageModel) -> Iterator[dict[str, Any]]:
    """What a forward pass says on its way: "tokens", the projector's [B, num_image_tokens, dim], and "qkv", a list."""
    heard: dict[str, Any] = {"qkv": []}
    hooks = [model.projector.register_forward_hook(lambda module, args, out: heard.update(tokens=out))]
    for block in model.vision_encoder.blocks:
        hooks.append(block.attn.qkv_proj.register_forward_hook(lambda module, args, out: heard["qkv"].append(out)))
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


def maps(qkv: list[Tensor], num_heads: int) -> Tensor:
    """The encoder's attention weights, the mean over heads, since student and teacher have different numbers of them:
    [B, num_blocks, num_patches, num_patches]"""
    found = []
    for x in qkv:  # [B, N, 3 * dim]
        q, k, _ = (part.unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in x.chunk(3, dim=-1))
        found.append((q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1).mean(dim=1))
    return torch.stack(found, dim=1)


def read(model: VisionLanguageModel, batch: Batch) -> dict[str, Any]:
    """Loss, logits of the supervised tokens, image tokens and attention maps."""
    with listening(model) as heard:
        out = model(batch["input_ids"], batch["images"], targets=batch["targets"])
    return {
        "loss": out.loss,
        "logits": out.logits,
        "tokens": heard["tokens"],
        "maps": maps(heard["qkv"], model.config.vision.num_heads),
    }


def lessons(name: str, batch: Batch, student: dict[str, Any], teacher: dict[str, Any], project: nn.Module) -> Tensor:
    """One of the distillation losses."""
    if name.startswith("logits"):
        labels = batch["targets"][batch["targets"] != -100]
        return kd_loss(student["logits"], teacher["logits"], labels, TEMPERATURE, reverse=name.endswith("reverse"))
    if name == "features":
        return project(student["tokens"], teacher["tokens"])
    if name == "attention":
        return attention_loss(student["maps"], teacher["maps"])
    mine = project.projection(student["tokens"])  # type: ignore[operator]
    return distribution_loss(mine.flatten(0, 1), teacher["tokens"].flatten(0, 1))


def train(arm: str, seed: int, teacher: VisionLanguageModel, pool: list[Batch], told: list[dict[str, Any]], steps: int):
    """One student. Returns it and its losses on the answers."""
    torch.manual_seed(seed)
    student = from_scratch(student_config(teacher.config)).train()
    student.add_module(
        "lessons", FeatureLoss(student.config.language.hidden_dim, teacher.config.language.hidden_dim)
    )  # behind the student's first weights, which are the same in all runs of a seed
    recipe = TrainConfig(optimizer="muon", weight_decay=0.1, lr_projector=2e-3, lr_backbones=2e-3)
    optimizers, losses, sizes = Optimizers(student, recipe), [], {}
    order = torch.Generator().manual_seed(seed)
    queue: list[int] = []
    for step in range(steps):
        queue = queue or torch.randperm(len(pool), generator=order).tolist()
        place = queue.pop()
        out = read(student, pool[place])
        loss = out["loss"]
        for name in ARMS[arm]:
            lesson = lessons(name, pool[place], out, told[place], student.lessons)
            sizes.setdefault(name, 1.0 if name.startswith("logits") else lesson.item())
            loss = loss + lesson / sizes[name]
        optimizers.zero_grad()
        loss.backward()
        optimizers.fill_gradients()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizers.set_lr(get_lr(step, 1.0, steps, min_lr_fraction=0.02))
        for optimizer in optimizers.all:
            optimizer.step()
        losses.append(out["loss"].item())
    del student.lessons
    return student.eval(), losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file; runs that it holds already are kept")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    teacher = VisionLanguageModel.from_pretrained(asset_path("pocket"), torch.float32).eval()
    data = TrainConfig(dataset_names=(SUBSET,), dataset_size=20_000, val_size=BATCH, batch_size=BATCH)
    loader, _ = get_dataloaders(data, teacher.config, teacher.tokenizer, teacher.image_processor)
    pool = [batch for batch, _ in zip(loader, range(POOL), strict=False)]
    began = time.process_time()
    with torch.no_grad():
        told = [read(teacher, batch) for batch in pool]
    once = time.process_time() - began
    probe = Probe(teacher, list(Thimble(SUBSET, "test", TEST_IMAGES)))
    result: dict[str, Any] = {
        "command": f"python -m nanovlm.bench.distillation_runs --out {options.out}",
        "machine": f"{processor()}, one thread, float32",
        "pictures": BATCH * POOL,
        "steps": options.steps,
        "batch": BATCH,
        "temperature": TEMPERATURE,
        "questions": len(probe.kinds),
        "teacher": {
            "parameters": sum(p.numel() for p in teacher.parameters()),
            "right": round(mean(probe.accuracy(teacher)), 4),
            "seconds": round(once, 1),
        },
        "runs": {},
    }
    if options.out.exists():
        result["runs"] = json.loads(options.out.read_text(encoding="utf-8"))["runs"]
    for seed in options.seeds:
        for arm in options.only:
            if str(seed) in result["runs"].get(arm, {}):
                continue
            began = time.process_time()
            student, losses = train(arm, seed, teacher, pool, told, options.steps)
            seconds = time.process_time() - began
            right = probe.accuracy(student)
            result["student_parameters"] = sum(p.numel() for p in student.parameters())
            result["runs"].setdefault(arm, {})[str(seed)] = {
                "right": {kind: round(share, 4) for kind, share in right.items()},
                "blind": round(mean(probe.accuracy(student, blind=True)), 4),
                "loss": [
                    round(sum(losses[i : i + 16]) / len(losses[i : i + 16]), 4) for i in range(0, len(losses), 16)
                ],
                "seconds": round(seconds, 1),
            }
            print(f"seed {seed}, {arm:16} {mean(right):.3f} right, {seconds:.0f} s", flush=True)
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
