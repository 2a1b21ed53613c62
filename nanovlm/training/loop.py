"""The training loop: a run that can be watched, stopped, killed and resumed."""

from __future__ import annotations

import math
import random
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from tqdm.auto import tqdm

from nanovlm.adapt.freeze import choose_trained
from nanovlm.adapt.lora import save_adapter
from nanovlm.config import TrainConfig
from nanovlm.data.loading import get_dataloaders
from nanovlm.device import choose_precision, find_device
from nanovlm.models.vision_language_model import VisionLanguageModel
from nanovlm.training import parallel
from nanovlm.training.checkpoint import (
    Background,
    changed_settings,
    checkpoints,
    drop_old,
    find_run,
    get_run_name,
    load_checkpoint,
    put_back,
    random_state,
    replace_directory,
    restore_random_state,
    save_checkpoint,
    taking_over,
)
from nanovlm.training.interrupt import Interrupt
from nanovlm.training.largest_batch import find_batch_size
from nanovlm.training.optimizer import Optimizers
from nanovlm.training.plan import does_not_fit
from nanovlm.training.run_log import MetricsLog, Throughput, Watch
from nanovlm.training.sharded import ShardedSaver
from nanovlm.training.step import get_lr, train_step
from nanovlm.training.validation import answer_accuracy, look_ahead, short_questions, validation_loss


@dataclass
class Progress:
    """How far a run has come; a checkpoint holds it beside weights and optimizers."""

    step: int = 0
    samples: int = 0  # drawn from the data, by all processes
    best_val_loss: float = math.inf
    seconds: float = 0.0  # of training, evaluations included


@dataclass
class Run:
    """What `train` hands back."""

    directory: Path
    model: VisionLanguageModel  # the last weights, in the type that was computed in; the best ones lie in `best/`
    step: int
    best_val_loss: float
    seconds: float
    interrupted: bool = False


def train(config: TrainConfig, model: VisionLanguageModel, watch: Watch | None = None) -> Run:
    """Train `model` (with its tokenizer and image processor attached) as `config` says.

    `model` itself is changed: in the end it holds the last weights, on the device and in the dtype of the run.
    The best ones, in float32, lie in `directory / "best"`, for VisionLanguageModel.from_pretrained.

    watch: called in the first process with (step, values) wherever the run writes a line of metrics, to draw it, say.
    """
    rank, world = parallel.start()
    with parallel.one_for_all():
        return _train(config, model, watch, rank, world)


def _train(config: TrainConfig, model: VisionLanguageModel, watch: Watch | None, rank: int, world: int) -> Run:
    log = tqdm.write if rank == 0 else lambda _: None
    device = find_device()
    precision = parallel.precision_for_many(choose_precision(config.precision, device))
    longest = model.config.language.max_positions
    if config.max_length > longest:
        raise ValueError(f"max_length {config.max_length} exceeds the model's {longest} positions.")
    if config.batch_size == "auto":
        config = replace(config, batch_size=find_batch_size(model, config, precision, device, log))
    torch.manual_seed(config.seed)
    random.seed(config.seed)
    name = get_run_name(config, sum(p.numel() for p in model.parameters()))
    directory = parallel.broadcast_object(lambda: find_run(config, name))
    if rank == 0:
        put_back(directory / "best")
    log(f"run        {directory}")
    log(f"precision  {precision.name}: {precision.reason}")
    if said := choose_trained(model, config):
        log(f"trained    {said}")

    model.to(device, precision.weights).train()
    model.gradient_checkpointing(config.gradient_checkpointing)
    if config.compile:
        model.compile_parts()
    trained = parallel.wrap(model, config.parallel, device)
    optimizers = Optimizers(model, config)
    scaler = precision.scaler(device)
    processors = (model.tokenizer, model.image_processor)
    train_loader, val_loader = get_dataloaders(config, model.config, *processors, raw_pixels=True)
    val_loader.set_start(0, rank, world)
    questions = short_questions(val_loader, config.accuracy_images)
    if said := look_ahead(val_loader):
        log(f"data       {said}")

    progress, clock = Progress(), time.perf_counter()
    saved, position = checkpoints(directory / "checkpoints"), None
    if config.resume and saved:
        state = load_checkpoint(saved[-1], optimizers.own_tensors(model))
        with taking_over(saved[-1]):
            optimizers.restore(model, state, saved[-1], scaler)
            restore_random_state(state["random"])
        progress = Progress(*(state[field.name] for field in fields(Progress)))
        position = state["position"]
        log(f"resumed    at step {progress.step} from {saved[-1].name}")
        if changed := changed_settings(state["config"], asdict(config)):
            log(f"changed    {', '.join(changed)}")

    dealt = world > 1 and config.parallel == "fsdp"
    save_in_parts = ShardedSaver(device.type == "cuda", drop_old) if dealt else None
    in_background = Background(device)

    def save() -> None:
        nonlocal clock
        now = time.perf_counter()
        progress.seconds, clock = progress.seconds + now - clock, now
        state = {**asdict(progress), **optimizers.state(model, scaler, dealt), "random": random_state()}
        state |= {"position": train_loader.position, "config": asdict(config)}
        state["started_from"] = getattr(model, "started_from", {})  # the backbones, with their commits
        if save_in_parts:
            save_in_parts(directory / "checkpoints", progress.step, state)
        elif rank == 0:
            in_background(save_checkpoint, directory / "checkpoints", progress.step, state)

    per_step = config.gradient_accumulation_steps
    train_loader.set_start(progress.samples, rank, world, position)
    batches = iter(train_loader)
    if not (config.resume and saved):
        if config.resume:
            log("resumed    at the start: this run had saved nothing yet")
        save()  # so that a kill in the first steps costs nothing, and a full disk shows before the work is done

    metrics = MetricsLog(directory, config, progress.step, watch) if rank == 0 else None
    throughput = Throughput(world)
    bar = tqdm(total=config.max_steps, initial=progress.step, desc="training", disable=None if rank == 0 else True)
    stopping = False
    try:
        with bar, Interrupt() as interrupt:
            while progress.step < config.max_steps and not stopping:
                group = [next(batches) for _ in range(per_step)]
                lr = get_lr(progress.step, 1.0, config.max_steps, config.warmup_fraction, config.min_lr_fraction)
                optimizers.set_lr(lr)
                progress.step += 1
                progress.samples += config.batch_size * per_step * world
                loss = train_step(trained, group, optimizers, scaler, precision, device, config.max_grad_norm)
                throughput.count(group)
                bar.update()
                step, last = progress.step, progress.step == config.max_steps
                # Several processes stop together, so they have to ask each other, which takes time.
                if world == 1 or step % config.log_every == 0:
                    stopping = parallel.any_rank(interrupt.asked, device)
                if metrics and (step % config.log_every == 0 or last):
                    speed = throughput.read()
                    bar.set_postfix_str(f"loss {loss:.3f}, {speed['samples_per_second']:,.0f} samples/s")
                    seconds = progress.seconds + time.perf_counter() - clock
                    metrics.write(step, batch_loss=loss, lr_scale=lr, seconds=seconds, **speed)
                if step % config.eval_every == 0 or last:
                    values = {"val_loss": validation_loss(trained, val_loader, precision, device)}
                    if questions:
                        values["accuracy"] = answer_accuracy(trained, questions[rank::world], precision, device)
                    if metrics:
                        metrics.write(step, **values, skipped=len(train_loader.skipped + val_loader.skipped))
                    log(f"step {step:>6}  loss {loss:.4f}  " + "  ".join(f"{k} {v:.4f}" for k, v in values.items()))
                    if values["val_loss"] < progress.best_val_loss:
                        progress.best_val_loss = values["val_loss"]
                        weights = optimizers.weights(model)
                        if rank == 0:
                            best = model.save_pretrained(directory / "best.new", weights)
                            replace_directory(best, directory / "best")
                            if config.lora_rank:
                                save_adapter(model, directory / "adapter", weights)
                if step % config.save_every == 0 or last or stopping:
                    save()
    except FloatingPointError as error:
        raise FloatingPointError(
            f"Step {progress.step}: {error}. Last good checkpoint: {checkpoints(directory / 'checkpoints')[-1]}. "
            "Lower the learning rate, or look at those samples."
        ) from error
    except torch.OutOfMemoryError as error:
        room = torch.cuda.get_device_properties(device).total_memory / 1e9
        raise ValueError(does_not_fit(model.config, config, room, precision.name, world)) from error
    for saver in filter(None, (save_in_parts, in_background)):
        saver.finish()
    progress.seconds += time.perf_counter() - clock
    if skipped := train_loader.skipped + val_loader.skipped:
        log(f"skipped    {len(skipped)} samples that could not be used, first: {skipped[0]}")
    if train_loader.num_truncated:
        log(f"cut        samples to {config.max_length} tokens, {train_loader.num_truncated} times")
    interrupted = progress.step < config.max_steps
    if interrupted:
        log(f"stopped    at step {progress.step}, saved. Go on with the same command and")
        log(f"           --resume --run-name {directory.name}")
    if metrics:
        metrics.close()
    del trained  # a wrapper that outlives its process group may wait for ever when it goes
    parallel.stop()
    return Run(directory, model, progress.step, progress.best_val_loss, progress.seconds, interrupted)
