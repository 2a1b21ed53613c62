"""Chapter 09: one step of beam search."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nanovlm.course.exercises.common import noise
from nanovlm.course.judge.exercise import Case, Exercise, expect
from nanovlm.inference.sampling import beam_step

# -- generation.beam_step ----------------------------------------------------------------------------------------------

TWO = torch.tensor([[2.0, 0.5, 1.0, -1.0], [3.0, 2.9, -2.0, 0.0]])  # two beams, a vocabulary of four


def flags(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)


STEP = Exercise(
    id="generation.beam_step",
    chapter="09",
    title="One step of beam search",
    difficulty=3,
    minutes=20,
    why="The bookkeeping is where beam searches go wrong: a beam that goes on from another beam's past, a finished "
    "answer that pays for every step in which others go on. Both give fluent text.",
    hints=(
        "All continuations of all beams compete: lay the table of scores [beams, vocabulary] out flat and take the best "
        "of it. Which two numbers does an index into the flat table stand for?",
        "Log-probabilities; in finished beams -inf, but 0 for end: they go on as they are, at no cost. Sums: totals plus "
        "those. Lengths grow by one in beams that run. Rank by sums / lengths ** length_penalty, but return the sums.",
        "log_probs = logits.log_softmax(dim=-1)\n"
        "log_probs[finished] = …; log_probs[finished, end] = …\n"
        "sums, lengths = totals[:, None] + log_probs, lengths + ~finished\n"
        "best = (sums / lengths[:, None] ** length_penalty).flatten().topk(len(totals)).indices\n"
        "beams = best // …\n"
        "return best % …, beams, sums.flatten()[best], lengths[beams]",
    ),
    reference=beam_step,
    cases=lambda: [
        Case(TWO, torch.tensor([-1.0, -1.5]), torch.tensor([2, 2]), flags(0, 0), 0, 0.0, note="two beams, four tokens"),
        Case(
            TWO,
            torch.tensor([-1.0, -1.2]),
            torch.tensor([4, 2]),
            flags(0, 1),
            0,
            0.0,
            note="the second beam is finished",
        ),
        Case(
            noise(3, 7),
            torch.tensor([-1.0, -2.0, -2.5]),
            torch.tensor([1, 3, 5]),
            flags(1, 0, 1),
            2,
            1.5,
            note="three beams, two of them finished at different lengths, length_penalty 1.5",
        ),
        Case(
            noise(4, 3, seed=1) * 3,
            torch.tensor([-0.5, -0.6, -4.0, -9.0]),
            torch.tensor([2, 2, 2, 2]),
            flags(0, 0, 0, 0),
            1,
            1.0,
            note="four beams, more than there are tokens",
        ),
    ],
    axes={"tokens": "beams", "beams": "beams", "totals": "beams", "lengths": "beams"},
)


@STEP.property("one beam is greedy decoding")
def _(step) -> None:
    logits = torch.randn(1, 11)
    tokens, beams, _, lengths = step(logits, torch.zeros(1), torch.tensor([3]), flags(0), 0, 1.0)
    right = int(tokens[0]) == int(logits.argmax()) and int(beams[0]) == 0 and int(lengths[0]) == 4
    expect(right, "With a single beam the token should be the likeliest one.")


@STEP.property("finished beams alone stay as they are")
def _(step) -> None:
    totals, lengths = torch.tensor([-1.0, -3.0]), torch.tensor([2, 3])
    tokens, _, sums, grown = step(torch.randn(2, 5), totals.clone(), lengths.clone(), flags(1, 1), 4, 1.0)
    expect(tokens.tolist() == [4, 4], "A finished beam can only go on with end.")
    same = torch.allclose(sums.sort().values, totals.sort().values) and sorted(grown.tolist()) == [2, 3]
    expect(same, "The total or the length of a finished beam changed.")


def _step(
    gain: Callable[[Tensor], Tensor] = lambda x: x.log_softmax(-1),
    frozen: str = "free",
    grows: bool = False,
    rank: Callable[[Tensor, Tensor, float], Tensor] = lambda sums, lengths, a: sums / lengths[:, None] ** a,
    keep_scores: bool = False,
    width: Callable[[int, int], int] = lambda beams, vocab: vocab,
    each: bool = False,
    stale: bool = False,
):
    def step(logits, totals, lengths, finished, end, length_penalty):
        gains = gain(logits)
        if frozen != "running":
            at_end = gains[finished, end] if frozen == "paid" else 0.0
            gains = gains.masked_fill(finished[:, None], float("-inf"))
            gains[finished, end] = at_end
        sums = totals[:, None] + gains
        grown = lengths + (1 if grows or frozen == "running" else (~finished).long())
        scores = rank(sums, grown, length_penalty)
        if each:
            values, tokens = scores.max(-1)
            return tokens, torch.arange(len(totals)), totals + gains.gather(1, tokens[:, None])[:, 0], grown
        best = scores.flatten().topk(len(totals)).indices
        size = width(len(totals), logits.shape[1])
        beams = (best // size).clamp(max=len(totals) - 1)
        values = (scores if keep_scores else sums).flatten()[best]
        return best % size, beams, values, grown if stale else grown[beams]

    return step


STEP.mistake("Logits are added up. Sums of log-probabilities are what can be compared between beams: log_softmax.")(
    _step(gain=lambda x: x.clone())
)
STEP.mistake("Probabilities are added up. They would have to be multiplied, so add log-probabilities: log_softmax.")(
    _step(gain=lambda x: x.softmax(-1))
)
STEP.mistake("A finished beam goes on with any token: rule out (-inf) all but end in its row.")(_step(frozen="running"))
STEP.mistake("A finished beam pays for its end again, at every step. It goes on at no cost: its log-probability is 0.")(
    _step(frozen="paid")
)
STEP.mistake("The length of a finished beam grows on, and with it the divisor: only running beams become longer.")(
    _step(grows=True)
)
STEP.mistake(
    "The index into the flat table is divided by the number of beams. A row of the table is as long as the vocabulary."
)(_step(width=lambda beams, vocab: beams))
STEP.mistake(
    "Each beam keeps its own best continuation. The best of all beams together go on, even if all come from one beam."
)(_step(each=True))
STEP.mistake("The ranking does not see the length: divide the sums by lengths ** length_penalty.")(
    _step(rank=lambda sums, lengths, a: sums)
)
STEP.mistake("The sums are multiplied by lengths ** length_penalty instead of divided.")(
    _step(rank=lambda sums, lengths, a: sums * lengths[:, None] ** a)
)
STEP.mistake("The totals that come back are divided by the length. Keep the sum: it grows in the next step.")(
    _step(keep_scores=True)
)
STEP.mistake("The lengths stay where they were: they belong to the beams, so take lengths[beams].")(_step(stale=True))


@STEP.part
def _(code, learner) -> None:
    def step(logits, totals, lengths, finished, end, length_penalty):
        """The learner's step, prompt by prompt. Before the first token all lengths are 0."""
        prompts = zip(logits, totals, lengths, finished, strict=True)
        steps = [learner(*prompt, end, length_penalty) for prompt in prompts]
        return tuple(torch.stack(part) for part in zip(*steps, strict=True))

    code.sampling.beam_step = step
