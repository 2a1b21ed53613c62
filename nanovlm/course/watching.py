"""A training run that draws itself while it goes on: the package's own loop, and a figure that is replaced in place."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from nanovlm.viz.training import live_figure

if TYPE_CHECKING:
    from nanovlm.config import TrainConfig
    from nanovlm.models.vision_language_model import VisionLanguageModel
    from nanovlm.training.loop import Run
    from nanovlm.viz.style import Figure


class Watched:
    """What was seen of a run: `losses` (step, loss), `accuracy` (step, kind -> share), `blind` (step, mean share)."""

    def __init__(self, model: VisionLanguageModel, config: TrainConfig, images: int) -> None:
        from nanovlm.data.thimble import Thimble
        from nanovlm.training.probe import Probe

        split = Thimble("shapes", "val", images, image_size=model.config.vision.image_size)
        self.probe = Probe(model, [split[i] for i in range(images)])
        self.model, self.end = model, config.max_steps
        self.losses: list[tuple[float, float]] = []
        self.accuracy: list[tuple[float, dict[str, float]]] = []
        self.blind: list[tuple[float, float]] = []
        self.run: Run | None = None

    def figure(self) -> Figure:
        return live_figure(self.losses, self.accuracy, self.blind, self.end)

    def ask(self, step: int) -> None:
        """The probe's questions, about their own pictures and blind."""
        from nanovlm.training.probe import mean

        self.accuracy.append((step, self.probe.accuracy(self.model)))
        self.blind.append((step, mean(self.probe.accuracy(self.model, blind=True))))

    def note(self, step: int, values: dict[str, Any]) -> None:
        """What the loop calls: take the loss, and ask where the loop evaluates."""
        if "batch_loss" in values:
            self.losses.append((step, values["batch_loss"]))
        if "val_loss" in values:
            self.ask(step)


BESIDE = 1.3  # a step with its optimizer, its data and its part of the evaluations, over its two passes: measured


def minutes_needed(config: TrainConfig, model: VisionLanguageModel) -> float:
    """About how long a run will take on the processor at hand: from the fastest of three passes over one batch."""
    from nanovlm.data.loading import get_dataloaders

    batch = next(iter(get_dataloaders(config, model.config, model.tokenizer, model.image_processor)[0]))
    taken = []
    for _ in range(3):
        began = perf_counter()
        model(batch["input_ids"], batch["images"], targets=batch["targets"]).loss.backward()
        taken.append(perf_counter() - began)
    model.zero_grad()
    return min(taken) * BESIDE * config.max_steps / 60


def numbers_in(value: Any) -> int:
    """How many numbers the tensors inside of nested dicts and lists hold: of a checkpoint, say."""
    from torch import Tensor

    if isinstance(value, Tensor):
        return value.numel()
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return sum(map(numbers_in, inside))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What a run prints is left out, where a figure or a line of the notebook says it."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def train_and_watch(config: TrainConfig, model: VisionLanguageModel, images: int = 32) -> Watched:
    """Train as `nanovlm train` does, in a directory that is thrown away, with a figure instead of messages.

    images: so many of the validation split are asked about at each evaluation, with their own picture and blind.
    """
    from IPython.display import display

    from nanovlm.training.loop import train

    watched = Watched(model, config, images)
    handle = display(watched.figure(), display_id=True)

    def note(step: int, values: dict[str, Any]) -> None:
        watched.note(step, values)
        if handle is not None:  # None: nobody looks, outside of a notebook
            handle.update(watched.figure())

    with tempfile.TemporaryDirectory() as directory, quiet():
        watched.run = train(replace(config, output_dir=directory, accuracy_images=0), model, watch=note)
    if watched.run.interrupted:  # between two evaluations, perhaps before the first
        watched.ask(watched.run.step)
    return watched
