"""Chapter 08: going on where a run was stopped, and what a difference between recipes is worth."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanovlm.course.exercises.common import noise, optimizers_ready
from nanovlm.course.judge.exercise import Case, Complaint, Exercise, expect

# -- training.resume ---------------------------------------------------------------------------------------------------

STOP = 6


def lr_of(step: int) -> float:
    return 0.1 / (1 + step)


def batch_of(step: int) -> tuple[Tensor, Tensor]:
    """Batch number `step`: inputs [5, 3] and what should come out, [5]."""
    x = noise(5, 3, seed=step)
    return x, x.sum(dim=1)


def new_model() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.3), nn.Linear(4, 1))
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(0.5 * noise(*p.shape, seed=10 + i))
    return model


def train_until(
    stop: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch_of: Callable[[int], tuple[Tensor, Tensor]],
    lr_of: Callable[[int], float],
    saved: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train up to step `stop`, from the start or from what an earlier call returned."""
    first = 0
    if saved is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["random"])
        first = saved["step"]
    for step in range(first, stop):
        for group in optimizer.param_groups:
            group["lr"] = lr_of(step)
        x, y = batch_of(step)
        loss = F.mse_loss(model(x).squeeze(1), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {
        "step": stop,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
    }


def run_until(train_until: Any, stops: Sequence[int]) -> dict[str, Tensor]:
    """Weights behind the last of several calls. Between two calls lies a file, and everything is built anew; the
    random numbers of the new process start somewhere else."""
    saved, model = None, new_model()
    for number, stop in enumerate(stops):
        model = new_model()
        optimizer = torch.optim.Adam(model.parameters(), lr=1.0)
        torch.manual_seed(100 + number)
        out = train_until(stop, model, optimizer, batch_of, lr_of, saved)
        if not isinstance(out, dict):
            raise Complaint("Return a dict: all that the next call needs to go on.")
        file = io.BytesIO()
        torch.save(out, file)
        file.seek(0)
        saved = torch.load(file, weights_only=False)
    return {name: p.detach().clone() for name, p in model.named_parameters()}


RESUME = Exercise(
    id="training.resume",
    chapter="08",
    title="Mend it: a resume that loses something",
    difficulty=3,
    minutes=20,
    why="Runs are stopped: Colab disconnects, machines are taken back. A resume that restores the weights alone goes on, "
    "prints no error and is another run.",
    hints=(
        "Compare with a run that was not stopped: at step 3, what does it know besides its weights?",
        "Four things go into the state and come out of it: the step, the weights, the optimizer's own state (Adam's two "
        "moments and its count), and the state of the random numbers, from which dropout draws. Learning rate and batch "
        "follow from the step, if you count on from where the state says.",
        "if saved: load_state_dict of model and of optimizer; torch.set_rng_state(…); first = saved step\n"
        "for step in range(first, stop): as before, with lr_of(step) and batch_of(step)\n"
        'return {"step": …, "model": …, "optimizer": …, "random": torch.get_rng_state()}',
    ),
    reference=train_until,
    cases=lambda: (
        optimizers_ready()
        or [
            Case([STOP], note="six steps without a stop"),
            Case([3, STOP], note="stopped after step 3, saved to a file, and gone on with"),
            Case([1, 2, 5, STOP], note="stopped three times"),
            Case([3, 3, STOP], note="stopped, started and stopped again before the first step"),
        ]
    ),
    call=run_until,
    tolerance=1e-6,
)


@RESUME.property("stopped or not, the weights are equal to the last bit")
def _(train_until) -> None:
    whole, halves = run_until(train_until, [5]), run_until(train_until, [2, 5])
    same = all(torch.equal(whole[name], halves[name]) for name in whole)
    expect(same, "The weights of the run that was stopped differ in their last bits.")


def _until(stop, model, optimizer, batch_of, lr_of, saved=None, wrong=""):
    """train_until, with one thing at a time to get wrong."""
    first = 0
    if saved is not None:
        if wrong != "weights":
            model.load_state_dict(saved["model"])
        if wrong not in ("optimizer", "only weights"):
            optimizer.load_state_dict(saved["optimizer"])
        if wrong not in ("random", "only weights"):
            torch.set_rng_state(saved["random"])
        if wrong not in ("step", "only weights"):
            first = saved["step"] + (1 if wrong == "one too far" else -1 if wrong == "one again" else 0)
    if wrong == "seeded":
        torch.manual_seed(0)
    for step in range(max(first, 0), stop):
        for group in optimizer.param_groups:
            if wrong != "no schedule":
                group["lr"] = lr_of(step - first if wrong == "schedule" else step)
        x, y = batch_of(step - first if wrong == "batches" else step)
        loss = F.mse_loss(model(x).squeeze(1), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    random = torch.get_rng_state()
    return {"step": stop, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "random": random}


for sentence, wrong in (
    ("The weights are not restored: the second half trains a fresh model.", "weights"),
    (
        "The optimizer starts anew: its moments are 0 and its count of steps is 1 again, so the first steps after the "
        "stop are far too long.",
        "optimizer",
    ),
    (
        "Only the weights are restored. Without step, optimizer and random numbers this is a new run that begins with "
        "old weights.",
        "only weights",
    ),
    ("The random numbers start anew, so dropout drops other numbers than it would have.", "random"),
    ("The run is seeded again at every start, so dropout repeats what it drew at first.", "seeded"),
    ("It counts from step 0 again and trains the first steps a second time.", "step"),
    ("The schedule starts anew: lr_of takes the step of the whole run, not the one since the stop.", "schedule"),
    ("The data starts anew: the first batches come twice. batch_of takes the step of the whole run.", "batches"),
    (
        'One step is left out at each stop: state["step"] steps are done, so that is the number of the next one.',
        "one too far",
    ),
    ("One step is trained twice at each stop.", "one again"),
    ("The learning rate is never set: every step runs at the rate that the optimizer was built with.", "no schedule"),
):
    RESUME.mistake(sentence)(lambda *args, wrong=wrong: _until(*args, wrong=wrong))


# -- training.paired_difference ----------------------------------------------------------------------------------------

# Student's t at 97.5 %, by degrees of freedom
T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def paired_difference(before: Sequence[float], after: Sequence[float]) -> tuple[float, float, float]:
    """Mean of the differences over seeds, and the ends of its 95 % interval by Student's t."""
    differences = [b - a for a, b in zip(before, after, strict=True)]
    n = len(differences)
    mean = sum(differences) / n
    spread = math.sqrt(sum((d - mean) ** 2 for d in differences) / (n - 1))
    half = T_975[n - 1] * spread / math.sqrt(n)
    return mean, mean - half, mean + half


PAIRED = Exercise(
    id="training.paired_difference",
    chapter="08",
    title="Measure it: is the difference real?",
    difficulty=2,
    minutes=12,
    why="Two runs of one recipe differ by their seeds alone. Whoever compares one run with one run publishes noise half "
    "of the time.",
    hints=(
        "Seed by seed: what both runs of a seed share, a hard order of the data say, drops out of their difference.",
        "Take the differences, their mean, and their standard deviation with n - 1 below the sum. The error of the mean "
        "is that divided by the root of n. With few seeds the factor is not 1.96: T_975[n - 1] has Student's.",
        "differences = [after - before, seed by seed]\n"
        "spread = root of (sum of squared deviations from their mean / (n - 1))\n"
        "half = T_975[…] * the error of the mean\n"
        "return mean, mean - half, mean + half",
    ),
    reference=paired_difference,
    cases=lambda: [
        Case([0.5, 0.6, 0.7], [0.6, 0.7, 0.9], note="three seeds: two up by 0.1 and one by 0.2"),
        Case([0.91, 0.95, 0.89, 0.97, 0.90], [0.93, 0.96, 0.92, 0.97, 0.94], note="five seeds, which differ a lot"),
        Case([0.8, 0.7], [0.75, 0.68], note="two seeds, both down"),
    ],
    axes={"mean": "", "low": "", "high": ""},
    tolerance=1e-4,
)


@PAIRED.property("what all runs gain alike widens nothing")
def _(paired) -> None:
    mean, low, high = paired([0.1, 0.5, 0.9], [0.2, 0.6, 1.0])
    expect(high - low < 1e-6 and abs(mean - 0.1) < 1e-6, "Every seed gains 0.1, so the interval has no width.")


def _paired(before, after, wrong=""):
    """paired_difference, with one thing at a time to get wrong."""
    n = len(before)
    differences = [b - a for a, b in zip(before, after, strict=True)]
    if wrong == "absolute":
        differences = [abs(d) for d in differences]
    if wrong == "direction":
        differences = [-d for d in differences]
    mean = sum(differences) / n

    def variance(values: Sequence[float], less: int = 1) -> float:
        middle = sum(values) / n
        return sum((v - middle) ** 2 for v in values) / (n - less)

    spread = math.sqrt(variance(differences, 0 if wrong == "population" else 1))
    if wrong == "unpaired":
        spread = math.sqrt(variance(before) + variance(after))
    if wrong == "variance":
        spread = spread**2
    factor = {"1.96": 1.96, "n": T_975[n], "none": 1.0}.get(wrong, T_975[n - 1])
    half = factor * spread / (1 if wrong == "no root" else n if wrong == "n below" else math.sqrt(n))
    return mean, mean - half, mean + half


for sentence, wrong in (
    ("You treat the runs as if they had nothing in common. Take differences seed by seed first.", "unpaired"),
    ("1.96 is right for many seeds. With so few, Student's factor is far larger: T_975[n - 1].", "1.96"),
    ("n seeds leave n - 1 degrees of freedom: T_975[n - 1].", "n"),
    ("The deviations are divided by n. With n - 1 the spread is not underestimated.", "population"),
    ("This is the spread of single runs. The mean of n of them errs by the root of n less.", "no root"),
    ("The spread is divided by n: the error of a mean falls with the *root* of n.", "n below"),
    ("The difference points the other way: after less before.", "direction"),
    ("You take absolute differences: then even noise is always a gain.", "absolute"),
    (
        "This is one standard error to each side, which covers about 58 % with three seeds. Multiply by T_975[n - 1].",
        "none",
    ),
    ("The spread is the root of the variance.", "variance"),
):
    PAIRED.mistake(sentence)(lambda *args, wrong=wrong: _paired(*args, wrong=wrong))
