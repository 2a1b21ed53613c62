"""Chapter 09: which guesses of a draft may stay."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nanovlm.course.exercises.common import noise
from nanovlm.course.judge.exercise import Case, Exercise, expect
from nanovlm.inference.speculative import accept

# -- generation.speculative_accept -------------------------------------------------------------------------------------

DRAFT = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.7, 0.2]])
TARGET = torch.tensor([[0.4, 0.5, 0.1], [0.3, 0.3, 0.4], [0.2, 0.2, 0.6]])


def chances(rows: int, seed: int, vocab_size: int = 5) -> Tensor:
    return (noise(rows, vocab_size, seed=seed) * 1.5).softmax(dim=-1)


ACCEPT = Exercise(
    id="generation.speculative_accept",
    chapter="09",
    title="Which guesses may stay?",
    difficulty=3,
    minutes=20,
    why="The rule that makes a fast decoder an exact one: whatever the draft proposes, the text has the probabilities of "
    "the large model. A rule that is nearly right changes the model, and no single answer shows it.",
    hints=(
        "Where the draft gives a token more probability than the target does, it proposes it too often: keep it only as "
        "often as makes up for that. What is then missing is what the target has more of.",
        "Token i stays if its coin is below target / draft. Count until the first that does not: later ones were guessed "
        "behind a wrong token. After a rejection the next token comes from (target - draft), negative parts set to 0, "
        "divided by its sum, both of the rejected place. If all stay, from the target's last row.",
        "count = 0\n"
        "while count < len(proposed) and coins[count] < target[count, proposed[count]] / …:\n"
        "    count += 1\n"
        "if count == len(proposed):\n"
        "    return count, target[count]\n"
        "rest = (… - …).clamp(min=0)\n"
        "return count, rest / rest.sum()",
    ),
    reference=accept,
    cases=lambda: [
        Case(
            DRAFT, TARGET, torch.tensor([0, 1]), torch.tensor([0.7, 0.5]), note="the first guess stays, the second goes"
        ),
        Case(DRAFT, TARGET, torch.tensor([0, 1]), torch.tensor([0.9, 0.1]), note="the first guess goes"),
        Case(DRAFT, TARGET, torch.tensor([1, 2]), torch.tensor([0.99, 0.99]), note="both stay"),
        Case(
            chances(4, 1),
            chances(5, 2),
            torch.tensor([2, 0, 4, 1]),
            torch.tensor([0.02, 0.9, 0.01, 0.01]),
            note="four guesses, five tokens",
        ),
        Case(DRAFT, TARGET, torch.tensor([2, 0]), torch.tensor([0.45, 0.95]), note="other guesses, other coins"),
    ],
    axes={"count": "", "following": "vocabulary"},
)


@ACCEPT.property("over all guesses and coins, the next token has exactly the target's probabilities")
def _(rule) -> None:
    draft, target = chances(1, 3, 4), chances(2, 4, 4)
    coins = (torch.arange(40) + 0.5) / 40
    total = torch.zeros(4)
    for guess in range(4):
        for coin in coins:
            count, following = rule(draft.clone(), target.clone(), torch.tensor([guess]), coin[None].clone())
            outcome = torch.eye(4)[guess] if count == 1 else following
            total += draft[0, guess] * outcome / len(coins)
    furthest = float((total - target[0]).abs().max())
    expect(furthest < 0.02, f"A token comes {furthest:.0%} more or less often than the target model would write it.")


@ACCEPT.property("a draft that is the target itself is always right")
def _(rule) -> None:
    target = chances(4, 5)
    count, following = rule(target[:3].clone(), target.clone(), torch.tensor([4, 0, 2]), torch.full((3,), 0.999))
    expect(int(count) == 3, f"Draft and target agree, but only {count} of 3 guesses stay.")
    expect(torch.allclose(following, target[3]), "After all guesses comes a token from the target's last row.")


def _rule(
    stays: Callable[..., bool] = lambda p, q, coin: bool(coin < p / q),
    every: bool = False,
    rest: Callable[[Tensor, Tensor], Tensor] = lambda p, q: (p - q).clamp(min=0),
    normalise: bool = True,
    row: int = 0,
    last: int = 0,
    clever: bool = False,
):
    def rule(draft, target, proposed, coins):
        keep = [
            int(target[i].argmax()) == int(t) if clever else stays(target[i, t], draft[i, t], coins[i])
            for i, t in enumerate(proposed.tolist())
        ]
        count = sum(keep) if every else (keep + [False]).index(False)
        if count == len(proposed):
            return count, target[count - last]
        place = min(count + row, len(draft) - 1)
        left = rest(target[place], draft[place])
        return count, left / left.sum() if normalise else left

    return rule


ACCEPT.mistake(
    "A guess stays where it is the target's argmax. That is right for greedy decoding alone: compare the coin with "
    "target / draft."
)(_rule(clever=True))
ACCEPT.mistake(
    "A guess stays with the target's probability alone. The draft has drawn it already: the coin is compared with "
    "target / draft."
)(_rule(stays=lambda p, q, coin: bool(coin < p)))
ACCEPT.mistake("The ratio is upside down: target / draft, so that a guess the draft makes too often goes more often.")(
    _rule(stays=lambda p, q, coin: bool(coin < q / p))
)
ACCEPT.mistake("A guess stays where its coin is above the ratio: it stays with probability target / draft, so below.")(
    _rule(stays=lambda p, q, coin: bool(coin > p / q))
)
ACCEPT.mistake(
    "It counts guesses behind the first rejection. They continue a token that is not there: stop at the first."
)(_rule(every=True))
ACCEPT.mistake(
    "After a rejection the next token is drawn from the target itself. What the draft proposed often enough already "
    "would then come too often: draw from (target - draft), negative parts set to 0."
)(_rule(rest=lambda p, q: p))
ACCEPT.mistake(
    "After a rejection the next token is drawn from the draft. Draw from (target - draft), set to 0 below 0."
)(_rule(rest=lambda p, q: q))
ACCEPT.mistake("(target - draft) is not divided by its sum: a distribution has to sum to 1.")(_rule(normalise=False))
ACCEPT.mistake("The negative parts of (target - draft) are turned positive instead of set to 0: clamp, not abs.")(
    _rule(rest=lambda p, q: (p - q).abs())
)
ACCEPT.mistake("After a rejection it looks at the next row: target and draft of the rejected place count.")(
    _rule(row=1)
)
ACCEPT.mistake("If all guesses stay, the next token comes from the target's last row, k, which no guess has used yet.")(
    _rule(last=1)
)


@ACCEPT.mistake("After a rejection it takes the target's last row, which is the place behind all guesses.")
def _(draft, target, proposed, coins):
    return accept(draft, target, proposed, coins)[0], target[-1]
