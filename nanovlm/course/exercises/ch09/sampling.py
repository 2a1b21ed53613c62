"""Chapter 09: which tokens may be drawn, and the draw."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from nanovlm.course.judge.exercise import Case, Complaint, Exercise, expect
from nanovlm.inference.sampling import keep_min_p, keep_top_p, sample

OUT = float("-inf")


def logits_of(*rows: list[float]) -> Tensor:
    """Logits with these probabilities. A constant is added to each row: a softmax does not see it."""
    return torch.tensor(rows).log() + torch.arange(1, len(rows) + 1)[:, None] * 1.5


# -- generation.min_p --------------------------------------------------------------------------------------------------

SURE, UNSURE = [0.05, 0.86, 0.06, 0.03], [0.3, 0.28, 0.22, 0.2]

MIN_P = Exercise(
    id="generation.min_p",
    chapter="09",
    title="A threshold that moves with the best",
    difficulty=1,
    minutes=8,
    why="Where the model is sure, a token with a tenth of the best one's probability is noise; where it is not, it is a "
    "fair guess. One number serves both, because it is a share and no amount.",
    hints=(
        "Compare probabilities, not logits. What does each one have to reach, in a row whose best has probability 0.8 "
        "when p is 0.1?",
        "A softmax over the last axis; the largest of each row, with keepdim=True; rule out what is below p times that, "
        "in the logits, with -inf.",
        'probabilities = logits.softmax(dim=-1)\nreturn logits.masked_fill(probabilities < …, float("-inf"))',
    ),
    reference=keep_min_p,
    cases=lambda: [
        Case(logits_of([0.1, 0.5, 0.36, 0.04]), 0.25, note="probabilities 0.1, 0.5, 0.36 and 0.04, p = 0.25"),
        Case(logits_of(SURE, UNSURE), 0.5, note="one row that is sure and one that is not"),
        Case(torch.tensor([[-3.0, -1.0, -9.0], [0.0, 2.0, 1.9]]), 0.1, note="negative logits"),
        Case(logits_of(UNSURE, SURE), 1.0, note="p = 1: the best alone is left"),
    ],
    axes="rows vocabulary",
)


@MIN_P.property("the likeliest token is always left")
def _(keep) -> None:
    logits = torch.randn(50, 30)
    for p in (0.01, 0.5, 1.0):
        best = keep(logits.clone(), p).gather(1, logits.argmax(dim=1, keepdim=True))
        expect(bool(best.isfinite().all()), f"With p = {p} the likeliest token of a row is ruled out.")


@MIN_P.property("adding a constant to all logits changes nothing")
def _(keep) -> None:
    logits = torch.randn(8, 20)
    same = torch.equal(keep(logits.clone(), 0.2).isfinite(), keep(logits + 7, 0.2).isfinite())
    expect(same, "Adding 7 to every logit leaves all probabilities as they are, but it keeps other tokens.")


def _min_p(sentence: str, ruled_out: Callable[[Tensor, float], Tensor]) -> None:
    MIN_P.mistake(sentence)(lambda logits, p: logits.masked_fill(ruled_out(logits, p), OUT))


_min_p(
    "The threshold is absolute: every probability is compared with p. It is p *times the row's largest probability*.",
    lambda x, p: x.softmax(-1) < p,
)
_min_p(
    "The threshold is a share of the largest of the logits. A share has a meaning for probabilities only: softmax first.",
    lambda x, p: x < p * x.amax(-1, keepdim=True),
)
_min_p(
    "The largest probability is taken over the whole batch, so that one sure row decides for all: dim=-1, keepdim=True.",
    lambda x, p: x.softmax(-1) < p * x.softmax(-1).max(),
)
_min_p(
    "It keeps the unlikely tokens and rules out the likely ones: the comparison is the wrong way round.",
    lambda x, p: x.softmax(-1) >= p * x.softmax(-1).amax(-1, keepdim=True),
)
_min_p(
    "With p = 1 it rules out the best token too, and nothing is left to draw: < and not <=.",
    lambda x, p: x.softmax(-1) <= p * x.softmax(-1).amax(-1, keepdim=True),
)
_min_p(
    "The softmax runs over the rows of the batch: over dim=-1, the vocabulary, the probabilities sum to 1.",
    lambda x, p: x.softmax(0) < p * x.softmax(0).amax(-1, keepdim=True),
)


@MIN_P.mistake(
    'What is ruled out has logit 0, which is a probability like any other: its logit is -inf (float("-inf")).'
)
def _(logits, p):
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), 0.0)


@MIN_P.mistake("It returns probabilities. Return the logits, -inf where a token is ruled out: a softmax follows later.")
def _(logits, p):
    probabilities = logits.softmax(-1)
    kept = probabilities * (probabilities >= p * probabilities.amax(-1, keepdim=True))
    return kept / kept.sum(-1, keepdim=True)


@MIN_P.part
def _(code, learner) -> None:
    code.sampling.keep_min_p = learner


# -- generation.top_p --------------------------------------------------------------------------------------------------

TOP_P = Exercise(
    id="generation.top_p",
    chapter="09",
    title="The nucleus",
    difficulty=2,
    minutes=12,
    why="The default of most servers. Off by one token here, and a model that is 80 % sure of its word may never say it "
    "at p = 0.75, or says it always.",
    hints=(
        "Line the tokens up from likely to unlikely and add up. When do you have enough? The token with which you reach "
        "p still belongs to it.",
        "Sort each row in falling order and keep the order. A token is too much when the sum *before* it has reached p: "
        "cumsum minus its own probability. Then take that yes or no back to the token's own place, with scatter.",
        "ordered, order = logits.sort(dim=-1, descending=True)\n"
        "probabilities = ordered.softmax(dim=-1)\n"
        "too_much = …                                                        # [rows, vocabulary], in sorted order\n"
        'return logits.masked_fill(too_much.scatter(-1, order, too_much), float("-inf"))\n'
        "And p = 1 keeps everything, whatever rounding says.",
    ),
    reference=keep_top_p,
    cases=lambda: [
        Case(logits_of([0.12, 0.5, 0.08, 0.3]), 0.7, note="probabilities 0.12, 0.5, 0.08 and 0.3, p = 0.7"),
        Case(logits_of([0.2, 0.1, 0.7], [0.3, 0.36, 0.34]), 0.65, note="a row that is sure and one that is not"),
        Case(torch.tensor([[1.0, 3.0, -2.0, 0.5, 2.9]]), 0.9, note="five logits, p = 0.9"),
        Case(logits_of([0.1, 0.6, 0.3]), 1.0, note="p = 1 keeps everything"),
    ],
    axes="rows vocabulary",
)


@TOP_P.property("what is left reaches p, and without its least likely token it would not")
def _(keep) -> None:
    logits = torch.randn(20, 40)
    for p in (0.2, 0.55, 0.95):
        left = keep(logits.clone(), p).isfinite()
        chances = logits.softmax(dim=-1).masked_fill(~left, 0.0)
        total, least = chances.sum(dim=-1), chances.masked_fill(~left, 2.0).amin(dim=-1)
        expect(bool((total >= p - 1e-5).all()), f"With p = {p} what is left has a probability of {total.min():.3f}.")
        expect(bool((total - least < p + 1e-5).all()), f"With p = {p} it keeps more tokens than it needs.")


@TOP_P.property("p = 1 keeps everything, in a large vocabulary too")
def _(keep) -> None:
    logits = torch.cat([torch.tensor([30.0]), torch.zeros(20_000)])[None]
    left = int(keep(logits, 1.0).isfinite().sum())
    expect(
        left == 20_001, f"Of 20,001 tokens {left} are left: a rounded sum reaches 1 before its end. Treat p = 1 alone."
    )


@TOP_P.mistake(
    "The token that crosses p is dropped. It is the one with which the sum reaches p: compare the sum *before* each "
    "token, cumsum - probability."
)
def _(logits, p):
    ordered, order = logits.sort(dim=-1, descending=True)
    out = ordered.softmax(-1).cumsum(-1) > p
    return logits.masked_fill(out.scatter(-1, order, out), OUT)


@TOP_P.mistake(
    "The token that crosses p is dropped, and p = 1 keeps what rounding leaves. Compare the sum *before* each token."
)
def _(logits, p):
    ordered, order = logits.sort(dim=-1, descending=True)
    out = ordered.softmax(-1).cumsum(-1) >= p
    return logits.masked_fill(out.scatter(-1, order, out), OUT)


@TOP_P.mistake("It begins with the least likely tokens: sort with descending=True.")
def _(logits, p):
    ordered, order = logits.sort(dim=-1)
    probabilities = ordered.softmax(-1)
    out = probabilities.cumsum(-1) - probabilities >= p
    return logits.masked_fill(out.scatter(-1, order, out), OUT)


@TOP_P.mistake("The logits come back in sorted order, so that every id means another token: scatter them back.")
def _(logits, p):
    ordered, _ = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(-1)
    return ordered.masked_fill(probabilities.cumsum(-1) - probabilities >= p, OUT)


@TOP_P.mistake("Which token is too much is known in sorted order, and used in the order of the ids: scatter it back.")
def _(logits, p):
    probabilities = logits.sort(dim=-1, descending=True).values.softmax(-1)
    return logits.masked_fill(probabilities.cumsum(-1) - probabilities >= p, OUT)


@TOP_P.mistake("The probabilities are added up without sorting, in the order of the ids: from likely to unlikely.")
def _(logits, p):
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities.cumsum(-1) - probabilities >= p, OUT)


@TOP_P.mistake("It judges each token on its own: what counts is the sum of all that are likelier.")
def _(logits, p):
    return logits.masked_fill(logits.softmax(-1) < 1 - p, OUT)


@TOP_P.mistake("It returns probabilities. Return the logits, -inf where a token is ruled out: a softmax follows later.")
def _(logits, p):
    kept = keep_top_p(logits, p)
    return kept.softmax(-1)


@TOP_P.mistake("What is ruled out has logit 0, which is a probability like any other: it should be -inf.")
def _(logits, p):
    return keep_top_p(logits, p).nan_to_num(neginf=0.0)


@TOP_P.part
def _(code, learner) -> None:
    code.sampling.keep_top_p = learner


# -- generation.sample -------------------------------------------------------------------------------------------------

DRAWS = 3_000  # the frequency of a fair coin is then right to 0.01, one standard deviation


def everything(logits: Tensor) -> Tensor:
    return logits


def nucleus(logits: Tensor) -> Tensor:
    return keep_top_p(logits, 0.7)


def run_sample(draw, logits: Tensor, temperature: float, keep: Callable[[Tensor], Tensor]) -> Tensor:
    """How often each token is drawn, [rows, vocabulary]."""
    rows, vocab_size = logits.shape
    tokens = draw(logits.repeat(DRAWS, 1), temperature, keep, torch.Generator().manual_seed(0))
    if not isinstance(tokens, Tensor):
        return tokens
    if tokens.shape != (rows * DRAWS,) or tokens.is_floating_point():
        raise Complaint(
            f"For {rows * DRAWS} rows it returned {list(tokens.shape)} {str(tokens.dtype).removeprefix('torch.')}: "
            "return one token for each row, a whole number, [rows]."
        )
    return F.one_hot(tokens, vocab_size).view(DRAWS, rows, vocab_size).float().mean(dim=0)


SAMPLE = Exercise(
    id="generation.sample",
    chapter="09",
    title="Draw a token",
    difficulty=2,
    minutes=12,
    why="Three lines, and their order matters: the same settings in another order keep other tokens. A widely used "
    "program filters first and cools afterwards.",
    hints=(
        "Temperature 0 is a case of its own: nothing can be divided by it. What does a distribution become as the "
        "temperature goes to 0?",
        "At temperature 0 the likeliest token. Else divide the logits by the temperature, let keep rule out what it "
        "wants, make probabilities, and draw one token for each row with torch.multinomial and the given generator.",
        "if temperature == 0:\n"
        "    return the likeliest, over the vocabulary\n"
        "logits = keep(…)\n"
        "return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator).squeeze(1)",
    ),
    reference=sample,
    cases=lambda: [
        Case(logits_of([0.6, 0.3, 0.1]), 1.0, everything, note="temperature 1: the shares of 3,000 draws"),
        Case(logits_of([0.1, 0.3, 0.6], [0.6, 0.3, 0.1]), 0.5, everything, note="two rows at temperature 0.5"),
        Case(logits_of([0.5, 0.3, 0.15, 0.05]), 2.5, nucleus, note="temperature 2.5, and keep is top-p with 0.7"),
        Case(logits_of([0.5, 0.3, 0.2]), 0.4, nucleus, note="temperature 0.4, and keep is top-p with 0.7"),
        Case(logits_of([0.2, 0.5, 0.3], [0.4, 0.3, 0.3]), 0.0, everything, note="temperature 0"),
    ],
    axes="rows vocabulary",
    tolerance=0.05,
    call=run_sample,
)


@SAMPLE.property("the generator alone decides")
def _(draw) -> None:
    logits, drawn = torch.zeros(64, 10), []
    for other in (1, 2):
        torch.manual_seed(other)
        drawn.append(draw(logits.clone(), 1.0, everything, torch.Generator().manual_seed(5)))
    expect(
        torch.equal(*drawn),
        "The same generator gave other tokens: hand generator to the draw, or a seed is worth nothing.",
    )
    again = draw(logits.clone(), 1.0, everything, torch.Generator().manual_seed(6))
    expect(not torch.equal(again, drawn[0]), "Another seed gives the same tokens.")


@SAMPLE.property("each row draws for itself")
def _(draw) -> None:
    drawn = draw(torch.zeros(64, 10), 1.0, everything, torch.Generator().manual_seed(5))
    expect(len(drawn.unique()) > 1, "64 rows with ten equal chances all drew the same token.")


def _multinomial(logits: Tensor, generator: torch.Generator) -> Tensor:
    return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)


@SAMPLE.mistake(
    "keep works before the temperature. What it keeps depends on the temperature: divide first, then call keep."
)
def _(logits, temperature, keep, generator):
    return logits.argmax(-1) if temperature == 0 else _multinomial(keep(logits) / temperature, generator)


@SAMPLE.mistake(
    "The probabilities are divided by the temperature, and a draw does not see a common factor. Divide the logits."
)
def _(logits, temperature, keep, generator):
    return logits.argmax(-1) if temperature == 0 else _multinomial(keep(logits), generator)


@SAMPLE.mistake("The logits are multiplied by the temperature: a low one should make the likeliest likelier.")
def _(logits, temperature, keep, generator):
    return logits.argmax(-1) if temperature == 0 else _multinomial(keep(logits * temperature), generator)


@SAMPLE.mistake("At temperature 0 it divides by 0: return the likeliest token there.")
def _(logits, temperature, keep, generator):
    return _multinomial(keep(logits / temperature), generator)


@SAMPLE.mistake("It does not call keep, so that every token can be drawn.")
def _(logits, temperature, keep, generator):
    return logits.argmax(-1) if temperature == 0 else _multinomial(logits / temperature, generator)


@SAMPLE.mistake("It always takes the likeliest token. Above temperature 0 it should draw: torch.multinomial.")
def _(logits, temperature, keep, generator):
    return logits.argmax(-1)


@SAMPLE.mistake("All rows draw from the probabilities of the first row: hand multinomial all rows, and one draw each.")
def _(logits, temperature, keep, generator):
    if temperature == 0:
        return logits.argmax(-1)
    first = keep(logits / temperature).softmax(-1)[0]
    return torch.multinomial(first, len(logits), replacement=True, generator=generator)


@SAMPLE.mistake("The likeliest token is looked for over the rows: argmax over dim=-1, the vocabulary.")
def _(logits, temperature, keep, generator):
    return logits.argmax(0) if temperature == 0 else _multinomial(keep(logits / temperature), generator)


@SAMPLE.mistake("multinomial takes probabilities, not logits: a softmax is missing.")
def _(logits, temperature, keep, generator):
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial(keep(logits / temperature), 1, generator=generator).squeeze(1)


@SAMPLE.part
def _(code, learner) -> None:
    code.sampling.sample = learner
