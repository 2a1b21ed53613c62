"""Chapter 16: what a student learns from a teacher's probabilities."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from nanovlm.compress import distill
from nanovlm.config import IGNORE
from nanovlm.course.exercises.common import as_wide_as, noise
from nanovlm.course.judge.exercise import Case, Exercise, expect

# -- compress.kd_loss --------------------------------------------------------------------------------------------------


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The package's, in one direction."""
    return distill.kd_loss(student_logits, teacher_logits, labels, temperature)


def run_kd(loss: Callable[..., Tensor], student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    return as_wide_as(student, loss(student, teacher, labels, temperature))


TWO = torch.tensor([[[1.0, 0.0, -1.0], [0.5, 2.0, 0.0]]])
TAUGHT = torch.tensor([[[2.0, 1.0, -1.0], [0.0, -3.0, 3.0]]])

KD = Exercise(
    id="compress.kd_loss",
    chapter="16",
    title="What the teacher would have said",
    difficulty=2,
    minutes=12,
    why="The answer says which token is right. The teacher's probabilities also say how wrong each other token is, which "
    "is the larger part of what a student can learn. Five details have to agree, and no error tells you that one does not.",
    hints=(
        "Two distributions over the vocabulary at each supervised position, both softened by the temperature. Which of "
        "the two weights the logarithms?",
        "Keep the supervised positions, labels != -100. Divide both logits by the temperature, log_softmax each, and "
        "detach the teacher's. The sum over the vocabulary of p (log p - log q), with p the teacher's, then the mean over "
        "positions. Last comes the factor that makes up for the temperature in the gradient.",
        "keep = labels != -100                                           # [batch, length]\n"
        "log_q = (student_logits[keep] / temperature).log_softmax(-1)    # [positions, vocab_size]\n"
        "log_p = the teacher's, likewise, detached\n"
        "divergence = (log_p.exp() * (…)).sum(-1)                        # [positions]\n"
        "return divergence.mean() * …",
    ),
    reference=kd_loss,
    cases=lambda: [
        Case(TWO, TAUGHT, torch.tensor([[2, IGNORE]]), 3.0, note="one of two positions is supervised, three tokens"),
        Case(
            noise(2, 5, 7, seed=1) * 2,
            noise(2, 5, 7, seed=2) * 2,
            torch.tensor([[IGNORE, 3, 1, IGNORE, IGNORE], [0, 6, IGNORE, 2, 5]]),
            1.5,
            note="two rows with two and four supervised positions",
        ),
        Case(noise(1, 3, 4, seed=3), noise(1, 3, 4, seed=4), torch.tensor([[1, 0, 3]]), 1.0, note="temperature 1"),
    ],
    axes="",
    call=run_kd,
)


@KD.property("nothing is left to learn from an equal, and nothing is ever below that")
def _(loss) -> None:
    x, labels = noise(1, 4, 6, seed=5), torch.tensor([[1, IGNORE, 2, 3]])
    expect(float(loss(x, x.clone(), labels, 2.5)) < 1e-5, "For a student that equals its teacher, the loss is not 0.")


@KD.property("the student learns, and the teacher does not")
def _(loss) -> None:
    student, teacher = noise(1, 3, 5, seed=6).requires_grad_(), noise(1, 3, 5, seed=7).requires_grad_()
    out = loss(student, teacher, torch.tensor([[IGNORE, 2, 4]]), 2.0)
    expect(out.requires_grad, "No gradient comes back from the loss, so that the student learns nothing.")
    out.backward()
    expect(student.grad is not None and student.grad[0, 1:].any(), "No gradient reaches the student's logits.")
    expect(
        teacher.grad is None or not teacher.grad.any(),
        "A gradient reaches the teacher's logits: the teacher would move towards the student. Detach them.",
    )
    wanted = 2.0 * ((student / 2).softmax(-1) - (teacher / 2).softmax(-1))[0, 1:] / 2
    close = torch.allclose(student.grad[0, 1:], wanted.detach(), atol=1e-4)
    expect(close, "The student's gradient is not T (q - p) over the number of positions.")


def _kd(
    student_t: float = 1.0,
    teacher_t: float = 1.0,
    factor: Callable[[float], float] = lambda t: t**2,
    everywhere: bool = False,
    per: Callable[[Tensor, Tensor], Tensor] = lambda each, labels: each.mean(),
    each: Callable[[Tensor, Tensor], Tensor] = lambda p, q: (p.exp() * (p - q)).sum(-1),
) -> Callable[..., Tensor]:
    """kd_loss, with one thing at a time to get wrong; student_t, teacher_t: powers of the temperature."""

    def loss(student, teacher, labels, temperature):
        if not everywhere:
            keep = labels != IGNORE
            student, teacher = student[keep], teacher[keep]
        q = (student / temperature**student_t).log_softmax(-1)
        p = (teacher.detach() / temperature**teacher_t).log_softmax(-1)
        return per(each(p, q), labels) * factor(temperature)

    return loss


def _mean_over_the_vocabulary(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).mean(-1)


def _probabilities(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q.exp())).sum(-1)


for sentence, wrong in (
    (
        "The temperature squared is missing. The gradient of the softened loss shrinks by about T^2, so that a warm "
        "teacher would hardly be heard beside the labels.",
        _kd(factor=lambda t: 1.0),
    ),
    ("You multiply by the temperature once. The gradient shrinks with its square: T^2.", _kd(factor=lambda t: t)),
    ("The temperature divides the student's logits alone. Both distributions are softened.", _kd(teacher_t=0)),
    ("The temperature divides the teacher's logits alone. Both distributions are softened.", _kd(student_t=0)),
    (
        "Probabilities of the student, where log-probabilities are wanted: kl_div takes log_softmax as its first input.",
        _kd(each=_probabilities),
    ),
    (
        "This is KL(student || teacher), the other direction. Here the teacher's probabilities are the weights; in "
        "kl_div the student comes first.",
        _kd(each=lambda p, q: (q.exp() * (q - p)).sum(-1)),
    ),
    (
        "The mean is over every position, also those without a label. What follows a prompt is not to be learnt: keep "
        "labels != -100.",
        _kd(everywhere=True),
    ),
    (
        "The mean is over the vocabulary as well. A divergence is a sum over the vocabulary; the mean is over positions "
        "(kl_div calls that batchmean).",
        _kd(each=_mean_over_the_vocabulary),
    ),
    (
        "This is the sum over positions: a long answer would count more than a short one. Take the mean.",
        _kd(per=lambda each, labels: each.sum()),
    ),
    (
        "The sum over supervised positions is divided by all positions, so that padding makes the loss small.",
        _kd(per=lambda each, labels: each.sum() / labels.numel()),
    ),
    (
        "This is the cross-entropy to the teacher's probabilities. Its gradient is the same, but it is larger by the "
        "teacher's own entropy, and not 0 for an equal: subtract log p.",
        _kd(each=lambda p, q: -(p.exp() * q).sum(-1)),
    ),
    ("The divergence is divided by the temperature squared. Multiply by it.", _kd(factor=lambda t: t**-2)),
    ("The logits are multiplied by the temperature, which sharpens them. Divide.", _kd(student_t=-1, teacher_t=-1)),
):
    KD.mistake(sentence)(wrong)


@KD.mistake("This is the cross-entropy to the labels, which the student has already. The teacher is not asked.")
def _(student, teacher, labels, temperature):
    return F.cross_entropy(student.flatten(0, 1), labels.flatten())


@KD.mistake(
    "You compare the logits themselves. Adding a constant to all logits of a position changes no probability, and "
    "would count here."
)
def _(student, teacher, labels, temperature):
    keep = labels != IGNORE
    return F.mse_loss(student[keep], teacher[keep])
