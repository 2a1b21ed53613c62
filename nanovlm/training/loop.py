"""The training loop: one step, then a run that can be watched, stopped, killed and resumed."""

from __future__ import annotations

import math
import os
import random
import signal
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from nanovlm.config import TrainConfig
from nanovlm.data.loading import get_dataloaders
from nanovlm.device import Precision, choose_precision, find_device
from nanovlm.evaluation.scores import short_questions
from nanovlm.files import check_tensors
from nanovlm.models.vision_language_model import IGNORE, VisionLanguageModel, VLMOutput
from nanovlm.training import parallel as distributed
from nanovlm.training.checkpoint import (
    changed_settings,
    checkpoints,
    find_run,
    load_checkpoint,
    random_state,
    replace_directory,
    restore_random_state,
    save_checkpoint,
)
from nanovlm.training.optimizer import Optimizers
from nanovlm.training.run_log import MetricsLog, Watch


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


def forward(model: VisionLanguageModel, batch: dict[str, Any], device: torch.device) -> VLMOutput:
    """Logits and mean loss of a batch's supervised tokens. Rows are padded on the right, where causal attention keeps
    padding out of sight without a mask; packed rows bring their documents."""
    on_cuda = device.type == "cuda"  # elsewhere a copy that is not waited for may read memory that is already freed
    moved = {k: v.to(device, non_blocking=on_cuda) for k, v in batch.items() if isinstance(v, Tensor)}
    images = moved.get("images")
    if images is not None:
        images = images.to(model.projector.proj.weight.dtype)
    return model(moved["input_ids"], images, targets=moved["targets"], document_ids=moved.get("document_ids"))


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

    Raises: FloatingPointError, with the weights as they were, if the loss or its gradient is NaN or infinite.
    """
    counts = torch.tensor([int((batch["targets"] != IGNORE).sum()) for batch in batches], dtype=torch.float32)
    total = counts.sum().to(device)
    distributed.sum_over_processes([total])
    mean_loss = torch.zeros((), device=device)
    for batch, count in zip(batches, counts, strict=True):
        with precision.context(device):
            loss = forward(model, batch, device).loss * (count / total.cpu()).item()
        scaler.scale(loss).backward()
        optimizers.collect_gradients()
        mean_loss += loss.detach()
    distributed.sum_over_processes([mean_loss, *optimizers.gradients()])
    norm = optimizers.clip(max_grad_norm, scaler)
    loss, norm = torch.stack([mean_loss, norm]).tolist()
    # A scaled float16 gradient may overflow: the scaler then leaves this step out, and scales less from here on.
    finite = math.isfinite(loss) and math.isfinite(norm)
    optimizers.step(scaler, leave_out=not finite)
    if not math.isfinite(loss) or (not finite and scaler.get_scale() <= 1):
        samples = [i for batch in batches for i in batch.get("sample_indices", ())]
        raise FloatingPointError(f"the loss is {loss}, the length of its gradient {norm}, on the samples {samples}")
    return loss


@torch.no_grad()
def validation_loss(
    model: VisionLanguageModel, batches: Iterable[dict[str, Any]], precision: Precision, device: torch.device
) -> float:
    """The mean loss over all supervised tokens of the validation data."""
    model.eval()
    total, tokens = 0.0, 0
    for batch in batches:
        count = int((batch["targets"] != IGNORE).sum())
        with precision.context(device):
            loss = forward(model, batch, device).loss.item()
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} on the validation samples {batch['sample_indices']}")
        total += loss * count
        tokens += count
    model.train()
    if tokens == 0:
        raise ValueError("Not one validation sample can be used, so no checkpoint can be called the best.")
    return total / tokens


@torch.no_grad()
def answer_accuracy(
    model: VisionLanguageModel, batches: Iterable[dict[str, Any]], precision: Precision, device: torch.device
) -> float:
    """The share of rows whose answer greedy decoding would give exactly: each token, the ending included, is the most
    likely one after the right ones before it. One forward pass tells."""
    model.eval()
    right = rows = 0
    for batch in batches:
        with precision.context(device):
            guesses = forward(model, batch, device).logits.argmax(dim=-1).cpu()  # [supervised tokens]
        supervised = batch["targets"] != IGNORE  # [B, T]
        wrong = supervised.nonzero()[:, 0][guesses != batch["targets"][supervised]]  # the rows of wrong tokens
        right += len(supervised) - len(wrong.unique())
        rows += len(supervised)
    model.train()
    return right / rows


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
    """Ctrl-C, or a polite kill, ends the run after the step in hand; the second one ends it at once."""

    def __enter__(self) -> Interrupt:
        self.asked = False
        self.before = {}
        if threading.current_thread() is threading.main_thread():  # nobody can press Ctrl-C elsewhere
            self.before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, *_: object) -> None:
        self.asked = True
        os.write(2, b"\nStopping after this step. Ctrl-C again stops at once.\n")  # print is not safe in a handler
        self.__exit__()

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def train(config: TrainConfig, model: VisionLanguageModel, watch: Watch | None = None) -> Run:
    """Train `model` (with its tokenizer and image processor attached) as `config` says.

    watch: called in the first process with (step, values) wherever the run writes a line of metrics, to draw it, say.
    """
    rank, world = distributed.start()
    device = find_device()
    longest = model.config.language.max_positions
    if config.max_length > longest:
        raise ValueError(f"max_length {config.max_length} exceeds the model's {longest} positions.")
    precision = choose_precision(config.precision, device)
    torch.manual_seed(config.seed)
    random.seed(config.seed)
    name = get_run_name(config, sum(p.numel() for p in model.parameters()))
    directory = distributed.from_first(lambda: find_run(config, name))
    say = tqdm.write if rank == 0 else lambda _: None
    say(f"run        {directory}")
    say(f"precision  {precision.name}: {precision.reason}")

    model.to(device, precision.weights).train()
    distributed.copy_from_first(model.parameters())
    model.gradient_checkpointing(config.gradient_checkpointing)
    if config.compile:
        model.compile_parts()
    optimizers = Optimizers(model, config)
    scaler = precision.scaler(device)
    train_loader, val_loader = get_dataloaders(config, model.config, model.tokenizer, model.image_processor)
    questions = short_questions(val_loader, config.accuracy_pictures) if rank == 0 else []
    step, best, seconds = 0, math.inf, 0.0

    def save() -> None:
        state = {
            "step": step,
            "best_val_loss": best,
            "seconds": seconds + time.perf_counter() - began,
            "weights": optimizers.weights(model),
            "optimizers": optimizers.state_dict(),
            "scaler": scaler.state_dict(),
            "random": random_state(),
            "config": asdict(config),
        }
        save_checkpoint(directory / "checkpoints", step, state)

    def restore(path: Path) -> None:
        nonlocal step, best, seconds
        saved = load_checkpoint(path)
        shapes = {name: weight.shape for name, weight in optimizers.weights(model).items()}
        check_tensors(shapes, saved["weights"], path)
        optimizers.load_weights(model, saved["weights"])
        optimizers.load_state_dict(saved["optimizers"])
        if saved["scaler"]:  # empty where the run before needed none
            scaler.load_state_dict(saved["scaler"])
        restore_random_state(saved["random"])
        step, best, seconds = saved["step"], saved["best_val_loss"], saved["seconds"]
        say(f"resumed    at step {step} from {path.name}")
        if changed := changed_settings(saved["config"], asdict(config)):
            say(f"changed    {', '.join(changed)}")

    began = time.perf_counter()
    found = checkpoints(directory / "checkpoints")
    if config.resume and found:
        restore(found[-1])
    elif rank == 0:
        if config.resume:
            say("resumed    at the start: this run had saved nothing yet")
        save()  # so that a kill in the first steps costs nothing, and a full disk shows before the work is done

    per_step = config.gradient_accumulation_steps
    train_loader.set_start(step * per_step * world + rank, stride=world)
    batches = iter(train_loader)
    log = MetricsLog(directory, config, step, watch) if rank == 0 else None
    began = since = time.perf_counter()
    samples, tokens, stopping = 0, 0, False
    bar = tqdm(total=config.max_steps, initial=step, desc="training", disable=None if rank == 0 else True)
    try:
        with bar as progress, Interrupt() as interrupt:
            while step < config.max_steps and not stopping:
                group = [next(batches) for _ in range(per_step)]
                scale = get_lr(step, 1.0, config.max_steps, config.warmup_fraction, config.min_lr_fraction)
                optimizers.set_lr(scale)
                step += 1
                loss = train_step(model, group, optimizers, scaler, precision, device, config.max_grad_norm)
                samples += world * sum(len(batch["sample_indices"]) for batch in group)
                tokens += world * sum(int(batch["attention_mask"].sum()) for batch in group)
                progress.update()
                last = step == config.max_steps
                if step % config.log_every == 0 or last:
                    now = time.perf_counter()  # the wait for data and evaluations is part of the time
                    speed = {"samples_per_second": samples / (now - since), "tokens_per_second": tokens / (now - since)}
                    progress.set_postfix(
                        loss=f"{loss:.3f}", **{k.split("_")[0] + "/s": f"{v:,.0f}" for k, v in speed.items()}
                    )
                    if log:
                        log.write(step, batch_loss=loss, lr_scale=scale, seconds=seconds + now - began, **speed)
                    since, samples, tokens = now, 0, 0
                stopping = distributed.anywhere(interrupt.asked, device)
                if rank == 0 and (step % config.eval_every == 0 or last):
                    values = {"val_loss": validation_loss(model, val_loader, precision, device)}
                    if questions:
                        values["accuracy"] = answer_accuracy(model, questions, precision, device)
                    skipped = train_loader.skipped + val_loader.skipped
                    log.write(step, **values, skipped=len(skipped))
                    say(f"step {step:>6}  loss {loss:.4f}  " + "  ".join(f"{k} {v:.4f}" for k, v in values.items()))
                    if values["val_loss"] < best:
                        best = values["val_loss"]
                        weights = optimizers.weights(model)
                        replace_directory(model.save_pretrained(directory / "best.new", weights), directory / "best")
                if rank == 0 and (step % config.save_every == 0 or last or stopping):
                    save()
    except FloatingPointError as error:
        raise FloatingPointError(
            f"Step {step}: {error}. Last good checkpoint: {checkpoints(directory / 'checkpoints')[-1]}. "
            "Lower the learning rate, or look at those samples."
        ) from error
    seconds += time.perf_counter() - began
    if skipped := train_loader.skipped + val_loader.skipped:
        say(f"skipped    {len(skipped)} samples that could not be used, first: {skipped[0]}")
    if train_loader.num_truncated:
        say(f"cut        samples to {config.max_length} tokens, {train_loader.num_truncated} times")
    if step < config.max_steps:
        say(f"stopped    at step {step}, saved. Go on with the same command and --resume --run-name {directory.name}")
    if log:
        log.close()
    distributed.stop()
    return Run(directory, model, step, best, seconds, interrupted=step < config.max_steps)
