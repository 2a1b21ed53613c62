"""Chapter 08: one optimizer step over several batches, and a test that a model can learn at all."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanovlm.course.exercises.common import optimizers_ready
from nanovlm.course.judge.exercise import Case, Complaint, Exercise, expect
from nanovlm.models.vision_language_model import IGNORE

# -- a model of some hundred weights, with a VLM's interface -------------------------------------------------------------


class Output(NamedTuple):
    logits: Tensor
    loss: Tensor


class TinyVLM(nn.Module):
    """Words and a picture of four numbers in, a loss on supervised words out. `fault`: what is wrong with it."""

    def __init__(self, fault: str = "", vocab_size: int = 6, dim: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, dim)
        self.projector = nn.Linear(4, dim)
        self.mix = nn.Linear(2 * dim, dim)
        self.head = nn.Linear(dim, vocab_size)
        self.fault = fault
        self.calls = 0
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
        if fault == "frozen":
            self.requires_grad_(False)
            self.projector.bias.requires_grad_(True)

    def forward(self, input_ids: Tensor, images: Tensor, targets: Tensor) -> Output:
        """input_ids [B, T], images [B, 4], targets [B, T] -> logits of supervised words, their mean loss"""
        self.calls += 1
        if self.fault == "blind":
            images = torch.zeros_like(images)
        if self.fault == "shuffled":
            images = images.roll(self.calls, dims=0)
        seen = self.projector(images)[:, None].expand(-1, input_ids.shape[1], -1)
        x = torch.tanh(self.mix(torch.cat([self.embedding(input_ids), seen], dim=-1)))  # [B, T, dim]
        supervised = targets != IGNORE
        if self.fault == "detached":
            x = x.detach()
        logits = self.head(x[supervised])
        loss = F.cross_entropy(logits, targets[supervised])
        if self.fault == "nan" and self.calls > 2:
            loss = loss * torch.nan
        return Output(logits, loss)


# -- training.train_step -----------------------------------------------------------------------------------------------


def batch(counts: list[int], seed: int = 0) -> dict[str, Tensor]:
    """Rows with so many supervised words each, at their beginnings."""
    rows, length = len(counts), max(max(counts), 1)
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 6, (rows, length), generator=generator)
    for row, count in enumerate(counts):
        targets[row, count:] = IGNORE
    return {
        "input_ids": torch.randint(0, 6, (rows, length), generator=generator),
        "images": torch.randn(rows, 4, generator=generator),
        "targets": targets,
    }


def train_step(
    model: nn.Module, batches: list[dict[str, Tensor]], optimizer: torch.optim.Optimizer, max_norm: float
) -> float:
    """One step of the optimizer over several batches; the mean loss of their supervised tokens."""
    counts = [int((batch["targets"] != IGNORE).sum()) for batch in batches]
    optimizer.zero_grad()
    mean_loss = 0.0
    for batch, count in zip(batches, counts, strict=True):
        loss = model(batch["input_ids"], batch["images"], targets=batch["targets"]).loss * (count / sum(counts))
        loss.backward()
        mean_loss += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    return mean_loss


def run_steps(train_step: Any, groups: list[list[dict[str, Tensor]]], max_norm: float) -> dict[str, Tensor]:
    """The loss of each step, and weights of the model after the last one."""
    model = TinyVLM()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for batches in groups:
        loss = train_step(model, batches, optimizer, max_norm)
        if loss is None:
            raise Complaint("It returned None; return the mean loss of the step, as a number.")
        losses.append(float(loss.detach() if isinstance(loss, Tensor) else loss))
    return {"losses": torch.tensor(losses), "head": model.head.weight.detach().clone()}


UNEQUAL = [batch([1, 2]), batch([9, 8, 7], seed=1)]
TRAIN_STEP = Exercise(
    id="training.train_step",
    chapter="08",
    title="One step over several batches",
    difficulty=3,
    minutes=20,
    why="It is the heart of every training run, and what it gets wrong raises nothing: accumulation as a mean of means "
    "was in transformers until October 2024 and is in nanoVLM today.",
    hints=(
        "Write down what you want first: one mean over all supervised tokens of all batches. Which share of it does one "
        "batch bring?",
        "The model's loss is a mean over its own batch, so give it the weight count / total before backward(): the "
        "gradients add up by themselves. Old gradients go before the loop; clipping and the optimizer's step come after "
        "it, once. Return the sum of the weighted losses as a number.",
        "counts = [number of targets that are not -100, for each batch]\n"
        "optimizer.zero_grad()\n"
        "for batch, count in zip(batches, counts):\n"
        '    loss = model(batch["input_ids"], batch["images"], targets=batch["targets"]).loss, weighted by …\n'
        "    loss.backward(), and add loss.item() to the mean\n"
        "clip the norm of model.parameters() to max_norm; optimizer.step(); return the mean",
    ),
    reference=train_step,
    cases=lambda: (
        optimizers_ready()
        or [
            Case([UNEQUAL], 100.0, note="two batches with 3 and 24 supervised tokens"),
            Case(
                [[batch([4, 4])], [batch([2, 5], seed=2)], [batch([3, 1], seed=3)]],
                100.0,
                note="three steps of one batch",
            ),
            Case(
                [UNEQUAL, [batch([6], seed=4), batch([1, 1], seed=5)]],
                0.1,
                note="two steps whose gradients need clipping",
            ),
        ]
    ),
    axes={"losses": "step", "head": "vocabulary dim"},
    call=run_steps,
)


@TRAIN_STEP.property("two batches give the step of one that holds both")
def _(train_step) -> None:
    first, second = batch([2, 2]), batch([2, 1], seed=1)
    both = {key: torch.cat([first[key], second[key]]) for key in first}
    apart, together = run_steps(train_step, [[first, second]], 100.0), run_steps(train_step, [[both]], 100.0)
    expect(torch.allclose(apart["head"], together["head"], atol=1e-5), "The weights differ after one step.")


@TRAIN_STEP.property("a frozen weight stays, and clipping ignores it")
def _(train_step) -> None:
    model = TinyVLM()
    model.embedding.requires_grad_(False)
    before = model.embedding.weight.clone()
    trained = [p for p in model.parameters() if p.requires_grad]
    train_step(model, UNEQUAL, torch.optim.SGD(trained, lr=0.5), 1.0)
    expect(torch.equal(before, model.embedding.weight), "The frozen embedding has changed.")


def _step(model, batches, optimizer, max_norm, wrong=""):
    """train_step, with one thing at a time to get wrong."""

    def clip(norm: float = max_norm) -> None:
        if wrong == "values":
            torch.nn.utils.clip_grad_value_(model.parameters(), norm)
        elif wrong != "no clip":
            torch.nn.utils.clip_grad_norm_(model.parameters(), norm)

    counts = [int((batch["targets"] != IGNORE).sum()) for batch in batches]
    if wrong == "rows":
        counts = [len(batch["targets"]) for batch in batches]
    if wrong == "positions":
        counts = [batch["targets"].numel() for batch in batches]
    if wrong == "means":
        counts = [1 for _ in batches]
    total = {"tokens of the last": counts[-1]}.get(wrong, sum(counts))
    if wrong != "never zeroed":
        optimizer.zero_grad()
    losses = []
    for batch, count in zip(batches, counts, strict=True):
        if wrong == "zeroed inside":
            optimizer.zero_grad()
        loss = model(batch["input_ids"], batch["images"], targets=batch["targets"]).loss
        losses.append(loss.item() * (1 if wrong == "sum" else count / total))
        (loss if wrong in ("sum", "log only") else loss * (count / total)).backward()
        if wrong == "clip each":
            clip()
        if wrong == "step each":
            clip()
            optimizer.step()
            optimizer.zero_grad()
    clip()
    if wrong not in ("step each", "no step"):
        optimizer.step()
    if wrong == "last loss":
        return loss.item()
    if wrong == "mean of logs":
        return sum(loss / (count / total) for loss, count in zip(losses, counts, strict=True)) / len(losses)
    return sum(losses)


for sentence, wrong in (
    (
        "This is a mean of means: a batch of 3 tokens weighs as much as one of 24. Weight each batch by its number of "
        "supervised tokens.",
        "means",
    ),
    ("You weight by rows. A row of one token would count as much as one of nine: count supervised tokens.", "rows"),
    ("You count all positions, those without a target too. Count targets that are not -100.", "positions"),
    ("The losses are added without weights: with two batches the gradient is about twice as long.", "sum"),
    ("The loss that you return is weighted, but the one that you call backward() on is not.", "log only"),
    (
        "zero_grad() inside the loop forgets all batches but the last one. Call it once, before the loop.",
        "zeroed inside",
    ),
    ("Old gradients are never cleared: the second step still pushes along the first one's.", "never zeroed"),
    (
        "Each batch is clipped by itself, and clipped sums are not a clipped sum. Clip once, after the last one.",
        "clip each",
    ),
    (
        "The optimizer steps after every batch. That is training with smaller batches: step once, at the end.",
        "step each",
    ),
    ("The gradients are not clipped, or only after the step.", "no clip"),
    ("Single numbers are clamped, which turns the step. Clip the norm of all gradients together.", "values"),
    ("The optimizer never steps: the weights are as they were.", "no step"),
    ("The loss that you return is the last batch's. Return the mean over all supervised tokens.", "last loss"),
    ("The gradient is right, but the loss that you return is a mean of the batches' means.", "mean of logs"),
    ("Each batch is divided by the count of the last one. Divide by the sum of all counts.", "tokens of the last"),
):
    TRAIN_STEP.mistake(sentence)(lambda *args, wrong=wrong: _step(*args, wrong=wrong))


# -- training.overfit_one_batch ----------------------------------------------------------------------------------------

# The same question about three pictures, with three answers: only who sees can know them all.
SAME_QUESTION = {
    "input_ids": torch.tensor([[2, 3], [2, 3], [2, 3]]),
    "images": torch.tensor([[1.0, -1.0, 0.5, 0.0], [-1.0, 1.0, 0.0, 0.5], [0.5, 0.5, -1.0, -1.0]]),
    "targets": torch.tensor([[IGNORE, 0], [IGNORE, 1], [IGNORE, 4]]),
}
PLANTED = {
    "a healthy model": "",
    "a model that never sees the picture": "blind",
    "a model whose pictures change rows at every call": "shuffled",
    "a model in which only a bias is trained": "frozen",
    "a model whose loss becomes NaN": "nan",
}


def overfits_one_batch(model: nn.Module, batch: dict[str, Tensor], num_steps: int = 20) -> bool:
    """Whether a copy of the model can learn this one batch by heart."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(num_steps):
        loss = model(batch["input_ids"], batch["images"], targets=batch["targets"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return bool(loss < 0.1)  # False for NaN, too


def run_overfit(overfits: Any, fault: str) -> bool:
    model = TinyVLM(fault)
    before = [p.detach().clone() for p in model.parameters()]
    verdict = overfits(model, {key: value.clone() for key, value in SAME_QUESTION.items()})
    same = all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    expect(same, "Your test trained the model that it was given. Work on copy.deepcopy(model).")
    if isinstance(verdict, Tensor) and verdict.numel() == 1:
        verdict = verdict.item()
    if verdict not in (True, False):
        raise Complaint("Return True where the model learnt the batch by heart, else False.")
    return bool(verdict)


OVERFIT = Exercise(
    id="training.overfit_one_batch",
    chapter="08",
    title="Write the test: can it learn one batch?",
    difficulty=2,
    minutes=15,
    why="It takes seconds and finds what hours of training would hide: pictures that do not arrive, weights that do not "
    "move, a loss that is not connected. But only if its threshold is one that a broken model cannot pass.",
    hints=(
        "A blind model learns something here: that the answer is one of three. How low does its loss get?",
        "Train a copy of the model on the same batch, twenty steps, with Adam at a high rate. Then ask for a "
        "loss that guessing among three answers, ln 3 = 1.10, cannot reach, and that a healthy model reaches easily. "
        "NaN must be False.",
        "model = copy.deepcopy(model)\n"
        "optimizer = torch.optim.Adam(those parameters that require a gradient, lr=0.1)\n"
        "20 times: loss of the batch, zero_grad, backward, step\n"
        "return bool(loss < a threshold well below what the blind model reaches)",
    ),
    reference=overfits_one_batch,
    cases=lambda: (
        optimizers_ready() or [Case(fault, note=f"{name}: planted to try your test") for name, fault in PLANTED.items()]
    ),
    call=run_overfit,
)


def _memorise(model, batch, steps=20, lr=0.1, optimizer=torch.optim.Adam):
    model = copy.deepcopy(model)
    optimizer = optimizer([p for p in model.parameters() if p.requires_grad], lr=lr)
    losses = []
    for _ in range(steps):
        loss = model(batch["input_ids"], batch["images"], targets=batch["targets"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@OVERFIT.mistake(
    "It says yes to every model, the broken ones included: a test that cannot fail tests nothing. What would the loss of "
    "a blind model be?"
)
def _(model, batch):
    return True


@OVERFIT.mistake(
    "It says no to every model, the healthy one included. Is the threshold within reach, are there enough steps, is the "
    "rate high enough (Adam, 0.1)?"
)
def _(model, batch):
    return False


@OVERFIT.mistake(
    "A blind model passes your test: its loss falls as well, down to ln 3 = 1.10, because guessing among three answers "
    "is better than guessing among six. That a loss falls proves nothing: ask for a loss below 0.1 or so."
)
def _(model, batch):
    losses = _memorise(model, batch)
    return losses[-1] < 0.8 * losses[0]


@OVERFIT.mistake(
    "A loss of NaN passes your test. Every comparison with NaN is False, so `not loss > 0.1` is True: write `loss < 0.1`."
)
def _(model, batch):
    return not _memorise(model, batch)[-1] > 0.1


@OVERFIT.mistake(
    "The threshold is at guessing itself: a blind model reaches a loss of ln 3 = 1.10 on three rows with one question. "
    "Ask for a loss far below that, such as 0.1."
)
def _(model, batch):
    return _memorise(model, batch)[-1] < 1.15


@OVERFIT.mistake(
    "A model in which only a bias is trained passes: its loss halves as well, because it learns which answers come at "
    "all. Ask for a loss below 0.1 or so, not for a fall."
)
def _(model, batch):
    losses = _memorise(model, batch)
    return losses[-1] < losses[0] / 2
