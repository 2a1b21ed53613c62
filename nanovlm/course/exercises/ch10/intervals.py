"""Chapter 10: how sure is a number?"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from nanovlm.course.exercises.common import noise
from nanovlm.course.judge.exercise import Case, Exercise, expect
from nanovlm.evaluation.scores import interval

# -- evaluation.wilson -----------------------------------------------------------------------------------------------------

WILSON = Exercise(
    id="evaluation.wilson",
    chapter="10",
    title="An interval that survives 500 of 500",
    difficulty=1,
    minutes=10,
    why="The textbook interval, share ± 1.96 standard errors, has no width at 500 of 500 and goes below 0 at 1 of 20. "
    "Those are the places where small models and small tests live.",
    hints=(
        "Every piece of the formula has the same denominator, 1 + z² / n. Compute that first.",
        "share = correct / total; the centre is (share + z² / 2n) / (1 + z² / n); the half width is z / (1 + z² / n) times "
        "the root of share (1 - share) / n + z² / 4n². Without any question nothing is known: (0, 1).",
        "if total == 0: return 0.0, 1.0\n"
        "below = 1 + z * z / total\n"
        "centre = (share + z * z / (2 * total)) / below\n"
        "half = z / below * math.sqrt(variance of the share + a term with total squared)\n"
        "return centre - half and centre + half, not outside 0 and 1",
    ),
    reference=interval,
    cases=lambda: [
        Case(7, 20, note="7 of 20"),
        Case(500, 500, note="500 of 500"),
        Case(1, 20, note="1 of 20"),
        Case(0, 3, note="0 of 3"),
        Case(530, 1500, note="530 of 1,500, MMStar's size"),
        Case(7, 20, z=1.0, note="7 of 20 with z = 1, a 68 % interval"),
        Case(13, 37, z=2.58, note="13 of 37 with z = 2.58, a 99 % interval"),
        Case(0, 0, note="no question at all"),
    ],
    axes={"low": "", "high": ""},
    tolerance=1e-6,
)


@WILSON.property("stays between 0 and 1")
def _(wilson) -> None:
    for correct, total in ((0, 1), (1, 1), (0, 7), (7, 7), (1, 100), (999, 1000)):
        low, high = wilson(correct, total)
        expect(0 <= low <= high <= 1, f"For {correct} of {total} it gives ({low:.4f}, {high:.4f}).")


@WILSON.property("four times as many questions, about half the width")
def _(wilson) -> None:
    widths = [high - low for low, high in (wilson(100, 400), wilson(400, 1600))]
    expect(1.9 < widths[0] / widths[1] < 2.1, f"The widths at 400 and 1,600 questions are {widths}.")


@WILSON.property("right and wrong exchanged give the mirror image")
def _(wilson) -> None:
    (low, high), (other_low, other_high) = wilson(3, 11), wilson(8, 11)
    expect(abs(low - (1 - other_high)) < 1e-6 and abs(high - (1 - other_low)) < 1e-6, "3 of 11 and 8 of 11 disagree.")


def _parts(
    correct: int,
    total: int,
    z: float = 1.96,
    *,
    use_z: bool = True,
    shift: bool = True,
    below: bool = True,
    below_half: bool = True,
    extra: str = "square",
    clip: bool = True,
    none: tuple[float, float] | None = (0.0, 1.0),
    scale: float = 1.0,
    square: bool = True,
) -> tuple[float, float]:
    if total == 0 and none is not None:
        return none
    share = correct / total
    z = z if use_z else 1.96
    zz = z * z if square else z
    divisor = 1 + zz / total
    centre = (share + (zz / (2 * total) if shift else 0)) / (divisor if below else 1)
    term = {"square": zz / (4 * total * total), "linear": zz / (4 * total), "none": 0.0}[extra]
    half = z / (divisor if below_half else 1) * math.sqrt(share * (1 - share) / total + term)
    low, high = centre - half, centre + half
    return (max(0.0, low) * scale, min(1.0, high) * scale) if clip else (low * scale, high * scale)


def _wilson_mistake(sentence: str, **options) -> None:
    WILSON.mistake(sentence)(lambda correct, total, z=1.96: _parts(correct, total, z, **options))


@WILSON.mistake(
    "This is Wald's interval, share ± z standard errors. It has no width at 500 of 500 and goes below 0 at 1 of 20."
)
def _(correct, total, z=1.96):
    if total == 0:
        return 0.0, 1.0
    share = correct / total
    half = z * math.sqrt(share * (1 - share) / total)
    return share - half, share + half


@WILSON.mistake("This is Wald's interval cut off at 0 and 1: at 500 of 500 it still has no width at all.")
def _(correct, total, z=1.96):
    if total == 0:
        return 0.0, 1.0
    share = correct / total
    half = z * math.sqrt(share * (1 - share) / total)
    return max(0.0, share - half), min(1.0, share + half)


_wilson_mistake(
    "z is not used: 1.96 stands where z should, so the 68 % and the 99 % interval are the 95 % one.", use_z=False
)
_wilson_mistake("z stands where z² should: square it inside the centre and inside the root.", square=False)
_wilson_mistake(
    "The centre stays at the share. It is pulled towards one half: add z² / 2n before dividing.", shift=False
)
_wilson_mistake("The centre is not divided by 1 + z² / n.", below=False)
_wilson_mistake("The half width is not divided by 1 + z² / n.", below_half=False)
_wilson_mistake("Neither the centre nor the half width is divided by 1 + z² / n.", below=False, below_half=False)
_wilson_mistake("The root lacks its second term, z² / 4n². It is what keeps a width at 500 of 500.", extra="none")
_wilson_mistake("The second term of the root is z² / 4n² with n squared; yours divides by n only once.", extra="linear")
_wilson_mistake("With no question you divide by zero. Nothing is known then: return (0.0, 1.0) first.", none=None)
_wilson_mistake("With no question nothing is known: that is the interval (0, 1), not (0, 0).", none=(0.0, 0.0))
_wilson_mistake("These are per cent. A share lies between 0 and 1.", scale=100.0, none=(0.0, 100.0))


# -- evaluation.paired_bootstrap -------------------------------------------------------------------------------------------


class Paired(NamedTuple):
    difference: float
    low: float
    high: float


def paired_bootstrap(first: Tensor, second: Tensor, drawn: Tensor) -> Paired:
    """One resample at a time."""
    gains = (second - first).tolist()
    means = [sum(gains[i] for i in row) / len(row) for row in drawn.tolist()]
    low, high = torch.tensor(means).quantile(torch.tensor([0.025, 0.975])).tolist()
    return Paired(sum(gains) / len(gains), low, high)


def _scores(questions: int, gap: float, seed: int) -> tuple[Tensor, Tensor]:
    """Two models that mostly fail on the same questions."""
    hard = noise(questions, seed=seed)
    first = (hard + 0.4 * noise(questions, seed=seed + 1) < 0.3).float()
    second = (hard + 0.4 * noise(questions, seed=seed + 2) < 0.3 + gap).float()
    return first, second


def _drawn(resamples: int, questions: int, seed: int = 0) -> Tensor:
    return torch.randint(questions, (resamples, questions), generator=torch.Generator().manual_seed(seed))


BOOTSTRAP = Exercise(
    id="evaluation.paired_bootstrap",
    chapter="10",
    title="Is the second model better?",
    difficulty=2,
    minutes=15,
    why="Two overlapping intervals do not say that two models are equal. Asked the same questions they fail on the same "
    "hard ones, and the interval of the difference is then much narrower than either of their own.",
    hints=(
        "What is one thing that you can resample, if both models answered the same questions? The question.",
        "For each row of `drawn`: the mean score of the second model on the drawn questions minus the mean of the first "
        "on the *same* ones. Then the 2.5 % and 97.5 % quantiles of these differences.",
        "gains = one number for each question\n"
        "means = gains of the drawn questions, averaged over each row      # [resamples]\n"
        "low, high = torch.quantile(means, the two tails of 95 %).tolist()\n"
        "return gains.mean().item(), low, high",
    ),
    reference=paired_bootstrap,
    cases=lambda: [
        Case(
            torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0]),
            torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0]),
            torch.tensor([[0, 1, 2, 3, 4], [2, 2, 2, 0, 1], [0, 0, 1, 3, 3], [4, 2, 3, 2, 1]]),
            note="five questions, four resamples; the second model gains question 2",
        ),
        Case(*_scores(40, 0.5, 3), _drawn(300, 40), note="40 questions, 300 resamples"),
        Case(*_scores(60, 0.0, 7), _drawn(200, 60, 1), note="60 questions, models of equal strength"),
        Case(*_scores(50, -0.6, 11), _drawn(200, 50, 2), note="50 questions, the second model is worse"),
        Case(
            noise(30, seed=5).sigmoid(), noise(30, seed=6).sigmoid(), _drawn(150, 30, 3), note="scores between 0 and 1"
        ),
    ],
    axes={"difference": "", "low": "", "high": ""},
)


@BOOTSTRAP.property("a model compared with itself differs by exactly 0")
def _(bootstrap) -> None:
    scores, _ = _scores(30, 0.0, 5)
    difference, low, high = bootstrap(scores, scores.clone(), _drawn(100, 30))
    expect(
        abs(difference) < 1e-6 and abs(low) < 1e-6 and abs(high) < 1e-6,
        f"A model against itself gives {difference:.3f} with an interval from {low:.3f} to {high:.3f}: the two are "
        "resampled separately.",
    )


@BOOTSTRAP.property("exchanging the models turns the interval round")
def _(bootstrap) -> None:
    first, second = _scores(40, 0.5, 9)
    drawn = _drawn(200, 40)
    one, other = bootstrap(first, second, drawn), bootstrap(second, first, drawn)
    expect(
        abs(one[0] + other[0]) < 1e-5 and abs(one[1] + other[2]) < 1e-3,
        "Second minus first is not the opposite of first minus second.",
    )


def _ends(values: Tensor, low: float = 0.025, high: float = 0.975) -> tuple[float, float]:
    a, b = values.quantile(torch.tensor([low, high], dtype=values.dtype)).tolist()
    return a, b


@BOOTSTRAP.mistake("This is first minus second. A positive difference is to mean that the second model is better.")
def _(first, second, drawn):
    gains = first - second
    return gains.mean().item(), *_ends(gains[drawn].mean(dim=1))


@BOOTSTRAP.mistake(
    "You subtract the ends of two separate intervals. That is the unpaired comparison: it adds the spread that both "
    "models share, the difficulty of the questions, twice."
)
def _(first, second, drawn):
    (a, b), (c, d) = _ends(first[drawn].mean(dim=1)), _ends(second[drawn].mean(dim=1))
    return (second.mean() - first.mean()).item(), c - b, d - a


@BOOTSTRAP.mistake(
    "The two models get different draws, so that a question that one is asked need not be asked of the other. Draw "
    "questions, and take both models' scores of those."
)
def _(first, second, drawn):
    means = second[drawn.flip(0)].mean(dim=1) - first[drawn].mean(dim=1)
    return (second.mean() - first.mean()).item(), *_ends(means)


@BOOTSTRAP.mistake("These tails of 5 % each leave an interval of 90 %. For 95 % it is 2.5 % on either side.")
def _(first, second, drawn):
    gains = second - first
    return gains.mean().item(), *_ends(gains[drawn].mean(dim=1), 0.05, 0.95)


@BOOTSTRAP.mistake("One-sided: the upper end is the largest resample. Cut off 2.5 % on either side.")
def _(first, second, drawn):
    means = (second - first)[drawn].mean(dim=1)
    return (second - first).mean().item(), _ends(means)[0], means.max().item()


@BOOTSTRAP.mistake("These are the smallest and the largest resample, which spread further the more you draw.")
def _(first, second, drawn):
    means = (second - first)[drawn].mean(dim=1)
    return (second - first).mean().item(), means.min().item(), means.max().item()


@BOOTSTRAP.mistake(
    "The mean runs over the wrong axis: over resamples, for each place in a row. Average over the questions of each row."
)
def _(first, second, drawn):
    gains = second - first
    return gains.mean().item(), *_ends(gains[drawn].mean(dim=0))


@BOOTSTRAP.mistake(
    "This is the spread of single questions, not of means. Average over each resample before taking quantiles."
)
def _(first, second, drawn):
    gains = second - first
    return gains.mean().item(), *_ends(gains[drawn].flatten())


@BOOTSTRAP.mistake(
    "You divide the bootstrap's standard deviation by the root of the number of questions once more. The resampled means "
    "already spread as a mean does."
)
def _(first, second, drawn):
    gains = second - first
    means = gains[drawn].mean(dim=1)
    half = 1.96 * means.std().item() / len(gains) ** 0.5
    return gains.mean().item(), gains.mean().item() - half, gains.mean().item() + half


@BOOTSTRAP.mistake(
    "This is mean ± 1.96 standard deviations. It assumes a symmetric bell; the percentiles of the resamples do not."
)
def _(first, second, drawn):
    gains = second - first
    half = 1.96 * gains[drawn].mean(dim=1).std().item()
    return gains.mean().item(), gains.mean().item() - half, gains.mean().item() + half


@BOOTSTRAP.mistake("The difference is the mean of the resamples. It is the difference on the questions themselves.")
def _(first, second, drawn):
    means = (second - first)[drawn].mean(dim=1)
    return means.mean().item(), *_ends(means)


# -- evaluation.selection_gain ---------------------------------------------------------------------------------------------


def selection_gain(share: float, questions: int, looks: int) -> float:
    """Exact: the expectation of the highest of `looks` binomial counts, from their distribution function."""
    k = torch.arange(questions + 1, dtype=torch.float64)
    n = torch.tensor(float(questions), dtype=torch.float64)
    log_choose = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    below = (log_choose + k * math.log(share) + (n - k) * math.log(1 - share)).exp().cumsum(dim=0).clamp(max=1.0)
    return float((1 - below[:-1] ** looks).sum() / questions - share)


SELECTION = Exercise(
    id="evaluation.selection_gain",
    chapter="10",
    title="Measure what choosing buys",
    difficulty=2,
    minutes=12,
    why="A checkpoint that was chosen because it scored highest on a test reports more than it can do, even if all "
    "checkpoints are equally good. You cannot see that in the number; you can measure how large it is.",
    hints=(
        "The model is the same at every look: only the questions that it happens to get right differ. Which distribution "
        "has the number of right answers?",
        "Simulate: for 2,000 trials draw `looks` binomial counts, divide by the number of questions, keep the highest of "
        "each trial, average over the trials, subtract the true share.",
        "n = torch.full((2000, looks), float(questions))\n"
        "scores = torch.binomial(n, torch.full_like(n, share)) / questions\n"
        "return (something over dim=1, then the mean) - share",
    ),
    reference=selection_gain,
    cases=lambda: [
        Case(0.33, 1500, 40, note="a true share of 33 %, 1,500 questions, 40 looks"),
        Case(0.33, 1500, 1, note="a single look"),
        Case(0.25, 300, 40, note="300 questions"),
        Case(0.6, 400, 10, note="60 %, 400 questions, 10 looks"),
        Case(0.33, 1500, 131, note="131 looks"),
    ],
    tolerance=2.5e-3,
)


@SELECTION.property("a larger test leaves less to gain")
def _(gain) -> None:
    few, many = gain(0.4, 200, 20), gain(0.4, 5000, 20)
    expect(many < few / 3, f"With 200 questions you measure {few:.4f}, with 5,000 {many:.4f}.")


def _simulated(share: float, questions: int, looks: int, seed: int = 1) -> Tensor:
    n = torch.full((2000, looks), float(questions))
    return torch.binomial(n, torch.full_like(n, share), generator=torch.Generator().manual_seed(seed)) / questions


@SELECTION.mistake("This is the score that would be reported. The gain is what it has above the true share.")
def _(share, questions, looks):
    return selection_gain(share, questions, looks) + share


@SELECTION.mistake("These are points of a hundred. Return the gain as a share: 0.026, not 2.6.")
def _(share, questions, looks):
    return 100 * selection_gain(share, questions, looks)


@SELECTION.mistake("You average over the looks instead of keeping the best: then there is nothing to gain.")
def _(share, questions, looks):
    return 0.0


@SELECTION.mistake(
    "The best of all trials together is the luckiest of thousands of looks. Keep the best of each trial, then average."
)
def _(share, questions, looks):
    return (_simulated(share, questions, looks).max() - share).item()


@SELECTION.mistake("This is one standard error of a single look. The highest of many looks lies further out.")
def _(share, questions, looks):
    return math.sqrt(share * (1 - share) / questions)


@SELECTION.mistake("This is half the width of a 95 % interval, whatever the number of looks. Use `looks`.")
def _(share, questions, looks):
    return 1.96 * math.sqrt(share * (1 - share) / questions)


@SELECTION.mistake(
    "More looks do not average here: you divide the standard error by their root. Keep the highest look."
)
def _(share, questions, looks):
    return math.sqrt(share * (1 - share) / (questions * looks))


@SELECTION.mistake("You take the best question by question, as if each look could be combined with the others.")
def _(share, questions, looks):
    return 1 - (1 - share) ** looks - share


@SELECTION.mistake("This is highest minus lowest. Compare the highest with the true share.")
def _(share, questions, looks):
    scores = _simulated(share, questions, looks)
    return (scores.amax(dim=1) - scores.amin(dim=1)).mean().item()


@SELECTION.mistake("This is the worst look, not the best: take the maximum.")
def _(share, questions, looks):
    return -selection_gain(1 - share, questions, looks)
