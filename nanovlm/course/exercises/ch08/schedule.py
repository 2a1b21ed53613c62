"""Chapter 08: the learning rate of each step, and clipping by the norm of all gradients together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nanovlm.course.exercises.common import noise
from nanovlm.course.judge.exercise import Case, Exercise, expect
from nanovlm.training.step import get_lr

# -- training.get_lr ---------------------------------------------------------------------------------------------------


def whole_schedule(get_lr: Any, max_lr: float, max_steps: int, warmup: float, floor: float) -> Tensor:
    """The rates of all steps, and of the three after the end."""
    rates = [get_lr(step, max_lr, max_steps, warmup, floor) for step in range(max_steps + 3)]
    return torch.tensor([float(rate) for rate in rates], dtype=torch.float64)


GET_LR = Exercise(
    id="training.get_lr",
    chapter="08",
    title="The learning rate of a step",
    difficulty=1,
    minutes=10,
    why="A schedule is wrong in silence: a run whose rate never comes down, or comes down too early, ends a few points "
    "lower than it could, and no message says why.",
    hints=(
        "Three stretches: up in a straight line, down along half a cosine, and flat after the end. Which step is the "
        "first of each?",
        "Count the warm-up steps first: round(warmup_fraction * max_steps), at least 1. Step 0 gets 1 / warmup of the "
        "peak, the last step of the warm-up gets all of it. From there, progress runs from 0 to 1 at max_steps and "
        "stays at 1; the cosine of pi * progress runs from 1 to -1.",
        "warmup = max(1, round(…))\n"
        "if step < warmup: return max_lr * (step + 1) / warmup\n"
        "progress = min(1.0, steps since the warm-up / steps that follow the warm-up)\n"
        "share = a number that is 1 at progress 0 and 0 at progress 1, by the cosine\n"
        "return max_lr * (min_lr_fraction + the rest of the way * share)",
    ),
    reference=get_lr,
    cases=lambda: [
        Case(1.0, 8, 0.25, 0.2, note="8 steps, 2 of them warm-up, peak 1, floor 0.2, and three steps after the end"),
        Case(0.03, 20, 0.2, 0.0, note="20 steps, 4 of them warm-up, peak 0.03, floor 0"),
        Case(2.0, 6, 0.0, 0.5, note="no warm-up asked for: it is one step long all the same"),
        Case(0.5, 10, 0.9, 0.1, note="9 of 10 steps are warm-up"),
    ],
    axes="step",
    call=whole_schedule,
    tolerance=1e-6,
)


@GET_LR.property("it never rises above the peak, nor falls below the floor after the warm-up")
def _(get_lr) -> None:
    rates = whole_schedule(get_lr, 0.7, 40, 0.1, 0.25)
    expect(rates.max() <= 0.7 + 1e-6, f"The highest rate is {rates.max():.3g}, and the peak is 0.7.")
    expect(rates[4:].min() >= 0.7 * 0.25 - 1e-6, f"The lowest rate after the warm-up is {rates[4:].min():.3g}.")


@GET_LR.property("it depends on the step alone: any step can be asked for first")
def _(get_lr) -> None:
    late = get_lr(30, 0.7, 40, 0.1, 0.25)
    early = get_lr(2, 0.7, 40, 0.1, 0.25)
    expect(late == get_lr(30, 0.7, 40, 0.1, 0.25), "Step 30 gets another rate when it is asked for a second time.")
    expect(early == get_lr(2, 0.7, 40, 0.1, 0.25), "Step 2 gets another rate when it is asked for a second time.")


def _lr(step, max_lr, max_steps, warmup_fraction, min_lr_fraction, wrong=""):
    """get_lr, with one thing at a time to get wrong."""
    warmup = round(warmup_fraction * max_steps)
    if wrong != "no least":
        warmup = max(1, warmup)
    if wrong == "no warm-up":
        warmup = 0
    if step < warmup or (wrong == "late" and step <= warmup):
        return max_lr * (step + (0 if wrong == "from zero" else 1)) / warmup
    start = 0 if wrong == "from the start" else warmup
    progress = (step - start) / max(1, max_steps - start)
    if wrong == "last step":
        progress = (step - start) / max(1, max_steps - 1 - start)
    if wrong != "rises again":
        progress = min(1.0, progress)
    cosine = {
        "upwards": math.cos(math.pi * (1 - progress)),
        "quarter": 2 * math.cos(math.pi / 2 * progress) - 1,
        "degrees": math.cos(180 * progress),
        "whole": math.cos(2 * math.pi * progress),
        "linear": 1 - 2 * progress,
    }.get(wrong, math.cos(math.pi * progress))
    share = 0.5 * (1 + cosine)
    floor = min_lr_fraction
    if wrong == "no floor":
        return max_lr * share
    if wrong == "floor on top":
        return max_lr * (floor + share)
    if wrong == "floor as a rate":
        return floor + (max_lr - floor) * share
    if wrong == "not halved":
        return max_lr * (floor + (1 - floor) * (1 + cosine))
    if wrong == "cut off":
        return max_lr * max(floor, share)
    return max_lr * (floor + (1 - floor) * share)


for sentence, wrong in (
    (
        "The first step gets a learning rate of 0: it computes a gradient and changes nothing. Step 0 is the first of "
        "the warm-up, so give it 1 / warmup of the peak.",
        "from zero",
    ),
    ("The warm-up is one step too long, and its last step is above the peak: it lasts while step < warmup.", "late"),
    ("There is no warm-up: the first step gets the peak.", "no warm-up"),
    ("The cosine counts from step 0. It begins where the warm-up ends, or the rate jumps there.", "from the start"),
    ("The cosine runs upwards: at progress 0 it is cos(0) = 1, and it ends at cos(pi) = -1.", "upwards"),
    ("This is a quarter of a wave, cos(pi / 2 * progress). Half a wave is flat at both ends.", "quarter"),
    ("math.cos takes radians: half a turn is math.pi, not 180.", "degrees"),
    ("This is a whole wave: the rate comes back to the peak at the end. Half a turn is math.pi.", "whole"),
    ("It comes down in a straight line. A cosine was asked for.", "linear"),
    ("After the last step the cosine rises again. Keep progress at 1 from there on.", "rises again"),
    ("The floor is left out: the rate ends at 0 instead of min_lr_fraction of the peak.", "no floor"),
    (
        "The floor is added on top, so that the peak is overshot: only the *rest* of the way, 1 - min_lr_fraction, "
        "follows the cosine.",
        "floor on top",
    ),
    ("min_lr_fraction is a share of max_lr, not a learning rate: multiply it by max_lr.", "floor as a rate"),
    ("The cosine runs from 1 to -1, so 1 + cosine runs from 2 to 0: take half of it.", "not halved"),
    (
        "The cosine runs down to 0 and is cut off at the floor. It should end at the floor: scale it to the rest of "
        "the way.",
        "cut off",
    ),
    (
        "The warm-up has no least length. With a fraction of 0 it is still one step: max(1, …).",
        "no least",
    ),
    (
        "The floor is reached one step early, at max_steps - 1. Progress is 1 at max_steps: divide by the number of "
        "steps that follow the warm-up.",
        "last step",
    ),
):
    GET_LR.mistake(sentence)(lambda *args, wrong=wrong: _lr(*args, wrong=wrong))


# -- training.clip_by_norm ---------------------------------------------------------------------------------------------


def clip_by_norm(gradients: Sequence[Tensor], max_norm: float) -> tuple[list[Tensor], Tensor]:
    """Gradients, scaled down together where their common norm is above max_norm; and that norm before."""
    norm = torch.stack([g.float().pow(2).sum() for g in gradients]).sum().sqrt()
    scale = min(1.0, max_norm / (float(norm) + 1e-6))
    return [(g.float() * scale).to(g.dtype) for g in gradients], norm


def run_clip(clip: Any, *args: Any) -> Any:
    out = clip(*args)
    if isinstance(out, tuple) and len(out) == 2:
        clipped, norm = out
        norm = norm.item() if isinstance(norm, Tensor) and norm.numel() == 1 else norm
        return list(clipped) if isinstance(clipped, tuple) else clipped, norm
    return out


CLIP = Exercise(
    id="training.clip_by_norm",
    chapter="08",
    title="One norm for all gradients",
    difficulty=1,
    minutes=10,
    why="One strange sample can push every weight far from where it was. Clipping bounds what a step can do and keeps "
    "its direction, but only if all gradients are scaled by the same number.",
    hints=(
        "Think of all gradients as one long vector. What is its length, and by which one number must it shrink?",
        "Square every number of every tensor, add all of it up, take one root. If that norm is above max_norm, multiply "
        "every tensor by max_norm / norm, else leave them as they are. Square in float32: float16 ends at 65,504.",
        "norm = root of the sum, over all gradients, of g.float().pow(2).sum()\n"
        "scale = the smaller one of 1 and max_norm / (norm + 1e-6)\n"
        "return [g times scale, in g's dtype, for each gradient], norm",
    ),
    reference=clip_by_norm,
    cases=lambda: [
        Case([torch.tensor([3.0]), torch.tensor([[0.0, 4.0]])], 1.0, note="two gradients whose common norm is 5"),
        Case([noise(4, 3), 0.1 * noise(5, seed=1), noise(2, 2, 2, seed=2)], 0.7, note="three gradients, to 0.7"),
        Case([0.01 * noise(4, 3), 0.01 * noise(5, seed=1)], 2.0, note="small gradients, which need no clipping"),
        Case([torch.zeros(3), torch.zeros(2, 2)], 1.0, note="gradients of zeros"),
        Case([torch.tensor([300.0, -300.0], dtype=torch.float16), torch.tensor([100.0])], 5.0, note="one in float16"),
    ],
    axes={"gradients": "", "norm": ""},
    call=run_clip,
    tolerance=1e-3,
)


@CLIP.property("the direction stays: every gradient shrinks by the same factor")
def _(clip) -> None:
    gradients = [noise(3, 2) + 3, noise(4, seed=1) + 3]
    clipped, _ = clip([g.clone() for g in gradients], 0.5)
    factors = torch.cat([(c / g).flatten() for c, g in zip(clipped, gradients, strict=True)])
    expect(factors.max() - factors.min() < 1e-4, "Some numbers shrink more than others.")


def _clip(gradients, max_norm, wrong=""):
    """clip_by_norm, with one thing at a time to get wrong."""
    wide = [g if wrong == "half" else g.float() for g in gradients]
    norms = [g.pow(2).sum().sqrt() for g in wide]
    norm = torch.stack([n.float() for n in norms]).pow(2).sum().sqrt()
    if wrong == "max":
        norm = torch.stack([g.abs().max() for g in wide]).max()
    if wrong == "sum":
        norm = torch.stack(norms).sum()
    if wrong == "no root":
        norm = norm**2
    if wrong == "mean":
        norm = torch.cat([g.flatten() for g in wide]).pow(2).mean().sqrt()
    if wrong == "one":
        norm = torch.cat([g.flatten() for g in wide]).abs().sum()
    scale = max_norm / (norm + 1e-6)
    if wrong not in ("always", "no eps"):
        scale = scale.clamp(max=1.0)
    if wrong == "no eps":
        scale = (max_norm / norm) if norm > max_norm or norm == 0 else 1.0
    if wrong == "upside down":
        scale = (norm / max_norm).clamp(min=1.0) if norm > max_norm else 1.0
    out = [(g.float() * scale).to(g.dtype) for g in gradients]
    if wrong == "each":
        out = [
            (g.float() * (max_norm / (n + 1e-6)).clamp(max=1.0)).to(g.dtype) for g, n in zip(wide, norms, strict=True)
        ]
        out = [o.to(g.dtype) for o, g in zip(out, gradients, strict=True)]
    if wrong == "numbers":
        out = [g.clamp(-max_norm, max_norm) for g in gradients]
    if wrong == "after":
        norm = norm * scale
    return out, norm


for sentence, wrong in (
    ("Each gradient is clipped by its own norm: that turns the step. Take one norm over all of them.", "each"),
    ("The numbers are clamped one by one, which turns the step. Scale all of them by the same factor.", "numbers"),
    ("Small gradients are scaled *up* to max_norm. Clipping only shrinks: the factor is at most 1.", "always"),
    ("The norm is the largest number. Here it is the root of the sum of all squares.", "max"),
    ("You add the norms of the tensors. Add their squares, and take the root of that sum once.", "sum"),
    ("The root is missing: this is the squared norm.", "no root"),
    ("You take the mean of the squares. The norm is the root of their *sum*.", "mean"),
    ("You add absolute values. The norm is the root of the sum of squares.", "one"),
    ("The norm that you return was measured after clipping. Return the one before: that is what a log needs.", "after"),
    ("The squares are computed in half precision, where 300 * 300 is infinite. Go to float32 first.", "half"),
    ("Where every gradient is 0 you divide 0 by 0. Add 1e-6 below, or compare first.", "no eps"),
    ("The factor is upside down: long gradients grow. It is max_norm / norm.", "upside down"),
):
    CLIP.mistake(sentence)(lambda *args, wrong=wrong: _clip(*args, wrong=wrong))
