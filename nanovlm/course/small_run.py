"""A training run of seconds, as a process of its own, so that chapter 11 can kill it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch

from nanovlm.config import LMConfig, ProjectorConfig, TrainConfig, ViTConfig, VLMConfig
from nanovlm.course.processes import PATIENCE, last_words, running
from nanovlm.training.loop import train
from nanovlm.weights.from_preset import from_scratch

STEPS, SAVE_EVERY = 14, 4


def small_vlm() -> VLMConfig:
    """0.25 M parameters, 16 image tokens a picture, the pocket tokenizer's vocabulary."""
    return VLMConfig(
        vision=ViTConfig(hidden_dim=64, inter_dim=192, num_blocks=2, num_heads=4, image_size=64, patch_size=8),
        projector=ProjectorConfig(vision_dim=64, language_dim=64, pixel_shuffle_factor=2),
        language=LMConfig(
            hidden_dim=64,
            inter_dim=192,
            num_blocks=2,
            num_heads=4,
            num_kv_heads=2,
            vocab_size=444,
            max_positions=256,
            rope_base=10_000.0,
        ),
        image_token_id=4,
        eos_token_id=1,
    )


def small_train(folder: str, resume: bool = False) -> TrainConfig:
    return TrainConfig(
        dataset_size=1_000,
        val_size=16,
        batch_size=4,
        max_steps=STEPS,
        log_every=1,
        save_every=SAVE_EVERY,
        eval_every=10_000,
        accuracy_images=0,
        output_dir=folder,
        run_name="small",
        resume=resume,
    )


def losses_of(folder: Path) -> dict[int, float]:
    """step -> loss, as far as the log of the run goes; a line that a kill has torn is left out."""
    path = folder / "small" / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return {row["step"]: row["batch_loss"] for row in rows if "batch_loss" in row}


def launch(folder: Path, resume: bool = False, kill_at: int | None = None) -> dict[int, float]:
    """Run in a process of its own, to the end or until the log shows step `kill_at`: then kill -9, with no chance to
    save. Returns the losses by step. Raises: RuntimeError with the process's last lines where it fails."""
    folder.mkdir(parents=True, exist_ok=True)
    said = folder / "output.txt"
    with running(said, run, str(folder), resume) as process:
        until = time.monotonic() + PATIENCE
        while process.is_alive() and time.monotonic() < until:
            if kill_at is not None and max(losses_of(folder), default=0) >= kill_at:
                process.kill()
            process.join(0.02)
    if kill_at is None and process.exitcode != 0:
        raise RuntimeError(f"The run failed: {last_words(said)}")
    return losses_of(folder)


def run(folder: str, resume: bool) -> None:
    torch.manual_seed(0)
    train(small_train(folder, resume), from_scratch(small_vlm()))
