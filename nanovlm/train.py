"""The training loop: one step, then a run that can be watched, stopped, killed and resumed."""

from __future__ import annotations

import json
import math
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from nanovlm import distributed
from nanovlm.checkpoint import (
    checkpoints,
    load_checkpoint,
    random_state,
    replace_directory,
    restore_random_state,
    save_checkpoint,
)
from nanovlm.config import TrainConfig
from nanovlm.data.loading import get_dataloaders
from nanovlm.models.vision_language_model import IGNORE, VisionLanguageModel
from nanovlm.optimizer import Optimizers
from nanovlm.precision import Precision, choose_precision, find_device


def get_lr(
    step: int, max_lr: float, max_steps: int, warmup_fraction: float = 0.03, min_lr_fraction: float = 0.1
) -> float:
    """Learning rate of step 0 … max_steps - 1: a straight line up to max_lr, then a cosine down to a share of it."""
    warmup = max(1, round(warmup_fraction * max_steps))
    if step < warmup:
        return max_lr * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, max_steps - warmup))
    return max_lr * (min_lr_fraction + (1 - min_lr_fraction) * 0.5 * (1 + math.cos(math.pi * progress)))


def get_run_name(config: TrainConfig, num_parameters: int) -> str:
    """Sizes, rates and date, so that two runs are told apart by their names."""
    batch = config.batch_size * config.gradient_accumulation_steps
    rates = f"lr{config.lr_projector:g}-{config.lr_backbones:g}"
    data = "+".join(config.dataset_names) + (f"-{config.data_cutoff_idx}" if config.data_cutoff_idx else "")
    date = time.strftime("%m%d-%H%M%S")
    return f"nanovlm-{num_parameters / 1e6:.1f}M_{data}_bs{batch}_{config.max_steps}steps_{rates}_{date}"


def forward_loss(model: VisionLanguageModel, batch: dict[str, Any], device: torch.device) -> Tensor:
    """The mean loss over a batch's supervised tokens. Rows are padded on the right, where causal attention keeps
    padding out of sight without a mask; packed rows bring their documents."""
    moved = {k: v.to(device, non_blocking=True) for k, v in batch.items() if isinstance(v, Tensor)}
    images = moved.get("images")
    if images is not None:
        images = images.to(model.projector.proj.weight.dtype)
    output = model(moved["input_ids"], images, targets=moved["targets"], document_ids=moved.get("document_ids"))
    return output.loss


def train_step(
    model: VisionLanguageModel,
    batches: Sequence[dict[str, Any]],
    optimizers: Optimizers,
    scaler: torch.amp.GradScaler,
    precision: Precision,
    device: torch.device,
    max_grad_norm: float,
) -> float:
    """One optimizer step over several batches. Returns the mean loss over all of their supervised tokens.

    Each batch counts by its number of supervised tokens, in this process and in all of them: a mean of means would
    give the tokens of short batches more weight.
    """
    counts = torch.tensor([int((batch["targets"] != IGNORE).sum()) for batch in batches], dtype=torch.float32)
    total = counts.sum().to(device)
    distributed.sum_over_processes([total])
    mean_loss = torch.zeros((), device=device)
    for batch, count in zip(batches, counts, strict=True):
        with precision.context(device):
            loss = forward_loss(model, batch, device) * (count / total.cpu()).item()
        scaler.scale(loss).backward()
        optimizers.collect_gradients()
        mean_loss += loss.detach()
    distributed.sum_over_processes([mean_loss])
    if not math.isfinite(mean_loss.item()):
        optimizers.zero_grad()
        return mean_loss.item()
    distributed.sum_over_processes(p.grad for p in optimizers.masters if p.grad is not None)
    optimizers.clip(max_grad_norm, scaler)
    optimizers.step(scaler)
    return mean_loss.item()


@torch.no_grad()
def validation_loss(
    model: VisionLanguageModel, batches: Iterator[dict[str, Any]], precision: Precision, device: torch.device
) -> float:
    """The mean loss over all supervised tokens of the validation data."""
    model.eval()
    total, tokens = 0.0, 0
    for batch in batches:
        count = int((batch["targets"] != IGNORE).sum())
        with precision.context(device):
            total += forward_loss(model, batch, device).item() * count
        tokens += count
    model.train()
    return total / max(1, tokens)


@dataclass
class Run:
    """What `train` hands back."""

    directory: Path
    model: VisionLanguageModel
    step: int
    best_val_loss: float
    seconds: float  # of training, evaluations included
    interrupted: bool = False


class Interrupt:
    """Ctrl-C ends the run after the step in hand; a second Ctrl-C ends it at once."""

    def __enter__(self) -> Interrupt:
        self.asked = False
        try:
            self.before = signal.signal(signal.SIGINT, self._note)
        except ValueError:  # not the main thread: nobody can press Ctrl-C here
            self.before = None
        return self

    def _note(self, *_: object) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, self.before or signal.SIG_DFL)

    def __exit__(self, *_: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)


class MetricsLog:
    """One JSON object a line in metrics.jsonl, and wandb where it is asked for."""

    def __init__(self, directory: Path, config: TrainConfig, from_step: int) -> None:
        self.path = directory / "metrics.jsonl"
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= from_step]  # a resumed run writes the rest again
        self.path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self.wandb: Any = None
        if config.wandb:
            import wandb

            self.wandb = wandb.init(project="nanovlm", name=directory.name, config=asdict(config), dir=str(directory))

    def write(self, step: int, **values: float | int | str) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self.wandb is not None:
            self.wandb.log(values, step=step)

    def close(self) -> None:
        if self.wandb is not None:
            self.wandb.finish()


def find_run(config: TrainConfig, num_parameters: int) -> Path:
    """The directory of this run: named, or new, or (with resume) the newest one."""
    root = Path(config.output_dir)
    if config.run_name is None and config.resume:
        runs = sorted(root.glob("*/checkpoints"), key=lambda path: path.stat().st_mtime)
        if not runs:
            raise FileNotFoundError(f"There is nothing to resume: {root} holds no run with a checkpoint.")
        return runs[-1].parent
    directory = root / (config.run_name or get_run_name(config, num_parameters))
    if not config.resume and checkpoints(directory / "checkpoints"):
        raise FileExistsError(f"{directory} holds an earlier run. Add --resume to go on, or choose another --run-name.")
    try:
        (directory / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"Cannot write to {directory}: {error.strerror}. Choose another --output-dir.") from error
    return directory


def train(config: TrainConfig, model: VisionLanguageModel) -> Run:
    """Train `model` (with its tokenizer and image processor attached) as `config` says."""
    rank, world = distributed.start()
    device = find_device()
    precision = choose_precision(config.precision, device)
    torch.manual_seed(config.seed)
    random.seed(config.seed)
    directory = find_run(config, sum(p.numel() for p in model.parameters()))
    say = tqdm.write if rank == 0 else lambda _: None
    say(f"run        {directory}")
    say(f"precision  {precision.name}: {precision.reason}")

    model.to(device, precision.weights).train()
    model.gradient_checkpointing(config.gradient_checkpointing)
    if config.compile:
        model.compile_blocks()
    optimizers = Optimizers(model, config)
    scaler = precision.scaler(device)
    train_loader, val_loader = get_dataloaders(config, model.config, model.tokenizer, model.image_processor)
    step, best, seconds = 0, math.inf, 0.0

    def state() -> dict[str, Any]:
        return {
            "step": step,
            "best_val_loss": best,
            "seconds": seconds + time.perf_counter() - began,
            "model": model.state_dict(),
            "optimizers": optimizers.state_dict(),
            "scaler": scaler.state_dict(),
            "random": random_state(),
            "config": asdict(config),
        }

    found = checkpoints(directory / "checkpoints")
    if config.resume and found:
        saved = load_checkpoint(found[-1])
        model.load_state_dict(saved["model"])
        optimizers.load_state_dict(saved["optimizers"])
        scaler.load_state_dict(saved["scaler"])
        restore_random_state(saved["random"])
        step, best, seconds = saved["step"], saved["best_val_loss"], saved["seconds"]
        say(f"resumed    at step {step} from {found[-1].name}")
    began = time.perf_counter()

    per_step = config.gradient_accumulation_steps
    train_loader.set_start(step * per_step * world + rank, stride=world)
    batches = iter(train_loader)
    log = MetricsLog(directory, config, step) if rank == 0 else None
    progress = tqdm(total=config.max_steps, initial=step, desc="training", disable=None if rank == 0 else True)
    since, samples, tokens = time.perf_counter(), 0, 0
    with Interrupt() as interrupt:
        while step < config.max_steps and not interrupt.asked:
            group = [next(batches) for _ in range(per_step)]
            scale = get_lr(step, 1.0, config.max_steps, config.warmup_fraction, config.min_lr_fraction)
            optimizers.set_lr(scale)
            loss = train_step(model, group, optimizers, scaler, precision, device, config.max_grad_norm)
            if not math.isfinite(loss):
                last = checkpoints(directory / "checkpoints")
                raise FloatingPointError(
                    f"The loss is {loss} at step {step}. Sample indices of the batch: "
                    f"{[i for batch in group for i in batch['sample_indices']]}. "
                    f"Last good checkpoint: {last[-1] if last else 'none yet'}. Lower the learning rate, or look at "
                    "those samples."
                )
            step += 1
            samples += world * sum(len(batch["sample_indices"]) for batch in group)
            tokens += world * sum(batch["input_ids"].numel() for batch in group)
            progress.update()
            if step % config.log_every == 0 or step == config.max_steps:
                now = time.perf_counter()  # the wait for data and evaluations is part of the time
                speed = {"samples_per_second": samples / (now - since), "tokens_per_second": tokens / (now - since)}
                progress.set_postfix(
                    loss=f"{loss:.3f}", **{k.split("_")[0] + "/s": f"{v:,.0f}" for k, v in speed.items()}
                )
                if log:
                    log.write(step, batch_loss=loss, lr_scale=scale, seconds=seconds + now - began, **speed)
                since, samples, tokens = now, 0, 0
            if rank == 0 and (step % config.eval_every == 0 or step == config.max_steps):
                val_loss = validation_loss(model, val_loader, precision, device)
                log.write(step, val_loss=val_loss, skipped=len(train_loader.skipped))
                say(f"step {step:>6}  loss {loss:.4f}  val_loss {val_loss:.4f}")
                if val_loss < best:
                    best = val_loss
                    weights = optimizers.weights(model)
                    replace_directory(model.save_pretrained(directory / "best.new", weights), directory / "best")
            if rank == 0 and (step % config.save_every == 0 or step == config.max_steps or interrupt.asked):
                save_checkpoint(directory / "checkpoints", step, state())
    progress.close()
    seconds += time.perf_counter() - began
    if train_loader.skipped:
        say(f"skipped    {len(train_loader.skipped)} samples that could not be used, first: {train_loader.skipped[0]}")
    if interrupt.asked and step < config.max_steps:
        say(f"stopped    at step {step}, saved. Go on with: nanovlm train --resume --run-name {directory.name}")
    if log:
        log.close()
    distributed.stop()
    return Run(directory, model, step, best, seconds, interrupted=step < config.max_steps)


if __name__ == "__main__":
    from nanovlm.cli import main

    raise SystemExit(main(["train", *sys.argv[1:]]))
