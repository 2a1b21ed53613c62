"""Chapter 17: experts that take turns, a test for dropped image tokens, and a comparison at equal cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from nanovlm.course.exercises.common import noise
from nanovlm.course.judge.exercise import Case, Exercise, expect, with_weights
from nanovlm.trace import trace

# -- designs.route -----------------------------------------------------------------------------------------------------

Expert = Callable[[Tensor], Tensor]


def route(x: Tensor, router: Tensor, experts: Sequence[Expert]) -> tuple[Tensor, Tensor]:
    """Token by token."""
    chances = (x @ router).softmax(dim=-1)
    chosen = chances.argmax(dim=-1).tolist()
    rows = [chances[i, e] * experts[e](x[i : i + 1])[0] for i, e in enumerate(chosen)]
    shares = [chosen.count(e) / len(chosen) for e in range(len(experts))]
    balance = sum(share * chances[:, e].mean() for e, share in enumerate(shares))
    return torch.stack(rows), len(experts) * balance


class Counting(nn.Module):
    """An expert that counts the tokens that it is handed."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layer, self.tokens = nn.Linear(dim, dim), 0

    def forward(self, x: Tensor) -> Tensor:
        self.tokens += x.numel() // x.shape[-1]
        return torch.tanh(self.layer(x))


def experts_of(dim: int, count: int) -> list[Counting]:
    torch.manual_seed(dim)
    whole = with_weights(nn.ModuleList(Counting(dim) for _ in range(count)))
    return list(whole)  # type: ignore[arg-type]


def run_route(fn, x: Tensor, router: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    experts = experts_of(x.shape[1], router.shape[1])
    out = fn(x, router, experts)
    expect(isinstance(out, tuple) and len(out) == 2, "Return two things: the tokens, and the balance loss.")
    balance = torch.as_tensor(out[1])
    expect(balance.numel() == 1, f"The balance loss is one number; yours has the shape {list(balance.shape)}.")
    return out[0], balance.reshape(()), [expert.tokens for expert in experts]


ROUTE = Exercise(
    id="designs.route",
    chapter="17",
    title="Each token to one expert",
    difficulty=3,
    minutes=20,
    why="A mixture of experts has the weights of several MLPs at the cost of one. Two details make it train: the factor "
    "that carries the router's gradient, and the loss that keeps one expert from taking everything.",
    hints=(
        "An expert should be handed its own tokens and no others. What would a router learn from, if its choice were only "
        "an index?",
        "Softmax of x @ router over the experts; the largest chance and its index for each token. For each expert, pick "
        "its rows, run it, multiply by their chance and put them back in place. The balance loss: experts times the sum "
        "over experts of (share of tokens, a count) times (mean chance).",
        "chances = (x @ router).softmax(dim=-1)\n"
        "chance, chosen = chances.max(dim=-1)\n"
        "out = torch.zeros_like(x)\n"
        "for e, expert in enumerate(experts):\n"
        "    own = (chosen == e).nonzero()[:, 0]\n"
        "    out = out.index_add(0, own, …)\n"
        "shares = torch.bincount(chosen, minlength=len(experts)) / len(x)\n"
        "return out, len(experts) * (shares * …).sum()",
    ),
    reference=route,
    cases=lambda: [
        Case(noise(4, 2), 2 * noise(2, 2, seed=1), note="four tokens of two numbers, two experts"),
        Case(noise(7, 4, seed=2), noise(4, 3, seed=3), note="seven tokens, three experts"),
        Case(noise(3, 3, seed=4), noise(3, 4, seed=8), note="more experts than tokens: some get none"),
    ],
    axes={"tokens": "token dim", "balance loss": "", "tokens that each expert was handed": "expert"},
    call=run_route,
)


@ROUTE.property("the router learns from the output and from the balance loss")
def _(fn) -> None:
    x, router = noise(9, 4, seed=5), noise(4, 3, seed=6)
    for number, what in enumerate(("tokens", "balance loss")):
        grads = []
        for version in (fn, route):
            leaf = router.clone().requires_grad_()
            out = version(x, leaf, experts_of(4, 3))[number]
            grads.append(_gradient((out * noise(*out.shape, seed=7)).sum(), leaf))
        expect(grads[0] is not None, f"No gradient reaches the router from the {what}: it is cut off (detach, item).")
        expect(
            torch.allclose(grads[0], grads[1], atol=1e-5),
            f"The gradient that reaches the router from the {what} is another one. A share is a count and has no "
            "gradient; the mean chance has one, and so has the chance that multiplies the expert's output.",
        )


def _gradient(out: Tensor, leaf: Tensor) -> Tensor | None:
    return torch.autograd.grad(out, leaf, allow_unused=True)[0] if out.requires_grad else None


def _routed(
    weight: Callable[[Tensor, Tensor], Tensor] = lambda chances, chosen: chances.gather(1, chosen[:, None]),
    balance: Callable[[Tensor, Tensor], Tensor] = lambda shares, means: len(means) * (shares * means).sum(),
    choose: Callable[[Tensor], Tensor] = lambda chances: chances.argmax(dim=-1),
    softmax: int = -1,
    everyone: bool = False,
    order: bool = True,
):
    def version(x, router, experts):
        chances = (x @ router).softmax(dim=softmax)
        chosen = choose(chances)
        out = torch.zeros_like(x)
        parts = []
        for e, expert in enumerate(experts):
            own = (chosen == e).nonzero()[:, 0]
            y = expert(x)[own] if everyone else expert(x[own]) if len(own) else x[own]
            parts.append(weight(chances, chosen)[own] * y)
            out = out.index_add(0, own, parts[-1])
        shares = torch.bincount(chosen, minlength=len(experts)) / len(x)
        return (out if order else torch.cat(parts)), balance(shares, chances.mean(dim=0))

    return version


for _sentence, _version in {
    "The expert's output is not multiplied by the chance of the choice, so no gradient reaches the router through it.": (
        _routed(weight=lambda c, e: torch.ones(len(e), 1))
    ),
    "Every expert runs over all tokens and most of it is thrown away: hand each expert its own rows only.": (
        _routed(everyone=True)
    ),
    "Each token goes to the expert that the router likes least: argmax, not argmin.": (
        _routed(choose=lambda c: c.argmin(dim=-1))
    ),
    "All tokens go to one expert, the one with the largest mean chance. Each token has a choice of its own.": (
        _routed(choose=lambda c: c.mean(0).argmax().expand(len(c)))
    ),
    "All tokens go to the first expert: argmax over the last axis, the experts.": (
        _routed(choose=lambda c: torch.zeros(len(c), dtype=torch.long))
    ),
    "The softmax runs over the tokens. A token's chances of the experts sum to 1.": _routed(softmax=0),
    "The results come back in the order of the experts. Put each token back in its own place.": _routed(order=False),
    "The balance loss is not multiplied by the number of experts, which makes it 1 where all is even.": (
        _routed(balance=lambda s, m: (s * m).sum())
    ),
    "The balance loss is a mean over the experts. It is a sum, times their number.": (
        _routed(balance=lambda s, m: (s * m).mean())
    ),
    "The balance loss has the mean chances twice. One factor is the share of tokens, a count.": (
        _routed(balance=lambda s, m: len(m) * (m * m).sum())
    ),
    "The balance loss has the shares twice. Counts have no gradient, so nothing would be learned from it.": (
        _routed(balance=lambda s, m: len(m) * (s * s).sum())
    ),
}.items():
    ROUTE.mistake(_sentence)(_version)


@ROUTE.mistake("The shares are numbers of tokens. Divide them by the number of tokens.")
def _(x, router, experts):
    out, balance = route(x, router, experts)
    return out, balance * len(x)


@ROUTE.mistake("Every token goes through all experts, weighted by their chances. That costs all of them: choose one.")
def _(x, router, experts):
    chances = (x @ router).softmax(dim=-1)
    chosen = chances.argmax(dim=-1)
    shares = torch.bincount(chosen, minlength=len(experts)) / len(x)
    out = sum(chances[:, e, None] * expert(x) for e, expert in enumerate(experts))
    return out, len(experts) * (shares * chances.mean(0)).sum()


@ROUTE.mistake("What multiplies the output is the logit. Take the chance, behind the softmax.")
def _(x, router, experts):
    return _routed(weight=lambda c, e: (x @ router).gather(1, e[:, None]))(x, router, experts)


# -- designs.drop_test -------------------------------------------------------------------------------------------------

Drop = Callable[[Tensor, Tensor, int], Tensor]


def drop(scores: Tensor, is_image: Tensor, keep: int) -> Tensor:
    """What stays: all words, and of each row's image tokens the `keep` with the highest scores. bool [B, S]"""
    ranked = scores.masked_fill(~is_image, -torch.inf)
    better = (ranked[:, None, :] > ranked[:, :, None]).sum(dim=-1)  # [B, S]
    return ~is_image | (better < keep)


def drop_by_sorting(scores: Tensor, is_image: Tensor, keep: int) -> Tensor:
    stays = ~is_image
    for row in range(len(scores)):
        places = is_image[row].nonzero()[:, 0].tolist()
        best = sorted(places, key=lambda place: -float(scores[row, place]))[:keep]
        stays[row, best] = True
    return stays


def _keeps(choose: Callable[[Tensor, Tensor, int], Tensor]) -> Drop:
    return lambda scores, is_image, keep: ~is_image | choose(scores, is_image, keep)


DROPS: dict[str, Drop] = {
    "a version that keeps the lowest scores": lambda s, i, k: drop(-s, i, k),
    "a version that drops words as well": lambda s, i, k: drop_by_sorting(s, torch.ones_like(i), k),
    "a version that drops the last word as well": lambda s, i, k: (
        drop(s, i, k) & (i | (torch.arange(s.shape[1]) < s.shape[1] - 1))
    ),
    "a version that keeps one token too many": lambda s, i, k: drop(s, i, k + 1),
    "a version that keeps the first tokens, whatever their scores": _keeps(
        lambda s, i, k: i & (i.long().cumsum(1) <= k)
    ),
    "a version that takes the choice of the first row for all rows": lambda s, i, k: (
        ~i | drop_by_sorting(s[:1], i[:1], k).expand_as(i)
    ),
    "a version that keeps the best of the whole batch": lambda s, i, k: (
        ~i | drop_by_sorting(s.flatten()[None], i.flatten()[None], k * len(s)).view_as(i)
    ),
    "a version that drops nothing": lambda s, i, k: torch.ones_like(i),
    "a version that drops every image token": lambda s, i, k: ~i,
}


def drop_is_right(version: Drop) -> bool:
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        scores = torch.randn(3, 8, generator=generator)
        is_image = torch.zeros(3, 8, dtype=torch.bool)
        for row, start in enumerate((0, 1, 3)):
            is_image[row, start : start + 4] = True
        if not torch.equal(version(scores, is_image, 2), drop_by_sorting(scores, is_image, 2)):
            return False
    return True


DROP_TEST = Exercise(
    id="designs.drop_test",
    chapter="17",
    title="Write the test: which image tokens stay?",
    difficulty=2,
    minutes=15,
    why="A model that drops the wrong image tokens still answers, only worse, and nobody knows why. Each of the wrong "
    "versions is a line that somebody would write.",
    hints=(
        "What has to stay in any case, how many image tokens of each row stay, and which ones? Three rows that differ "
        "tell more than one.",
        "Random scores for three rows whose pictures stand in different places. Ask for 2 of 4 image tokens and check for "
        "each row: all words stay; exactly two image tokens stay; each of these has a higher score than each that is "
        "dropped.",
        "stays = drop(scores, is_image, 2)\n"
        "for row in range(len(scores)):\n"
        "    words_stay = stays[row, ~is_image[row]].all()\n"
        "    kept, dropped = scores[row, is_image[row] & stays[row]], scores[row, …]\n"
        "    if not words_stay or len(kept) != 2 or kept.min() < …:\n"
        "        return False\n"
        "return True",
    ),
    reference=drop_is_right,
    cases=lambda: [
        Case(drop, note="a right version"),
        Case(drop_by_sorting, note="a right version in another style"),
        *(Case(version, note=note) for note, version in DROPS.items()),
    ],
)


def _test(rows: int = 3, words: bool = True, count: bool = True, order: bool = True):
    def test(version: Drop) -> bool:
        scores, is_image = noise(rows, 8, seed=3), torch.zeros(rows, 8, dtype=torch.bool)
        for row, start in enumerate((0, 1, 3)[:rows]):
            is_image[row, start : start + 4] = True
        stays = version(scores, is_image, 2)
        for row in range(rows):
            kept, lost = scores[row, is_image[row] & stays[row]], scores[row, is_image[row] & ~stays[row]]
            if words and not stays[row, ~is_image[row]].all():
                return False
            if count and len(kept) != 2:
                return False
            if order and len(kept) and len(lost) and kept.min() < lost.max():
                return False
        return True

    return test


DROP_TEST.mistake("It accepts every version: return False where what stays is not what should.")(lambda version: True)
DROP_TEST.mistake("It refuses every version, the right ones too. What does it ask for that nobody promised?")(
    lambda version: False
)
DROP_TEST.mistake("It counts what stays, and not which: compare the scores of those that stay and those that go.")(
    _test(order=False)
)
DROP_TEST.mistake(
    "It looks at the scores, and not at the number: dropping nothing, or one token too few, gets through. Count them."
)(_test(count=False))
DROP_TEST.mistake("It looks at one row only. Some versions are right for the first row and wrong for the others.")(
    _test(rows=1)
)
DROP_TEST.mistake("It never asks whether all words stay.")(_test(words=False))


# -- designs.equal_cost ------------------------------------------------------------------------------------------------

Build = Callable[[int], nn.Module]


def blocks_at_equal_cost(build: Build, x: Tensor, target: int, most: int = 8) -> int | None:
    costs = {count: trace(build(count).eval(), x).flops for count in range(1, most + 1)}
    best = min(costs, key=lambda count: abs(costs[count] - target))
    return best if abs(costs[best] - target) <= 0.05 * target else None


class Stack(nn.Module):
    """Blocks of one matrix each, and a last layer that is always there."""

    def __init__(self, dim: int, count: int, shared: bool = False) -> None:
        super().__init__()
        one = nn.Linear(dim, dim)
        self.blocks = nn.ModuleList([one] * count if shared else (nn.Linear(dim, dim) for _ in range(count)))
        self.head = nn.Linear(dim, 3 * dim)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.head(x)


def stacks(dim: int, shared: bool = False) -> Build:
    return lambda count: Stack(dim, count, shared)


def _cost(build: Build, x: Tensor, count: int, factor: float = 1.0) -> int:
    return round(factor * trace(build(count).eval(), x).flops)


def _cost_case(build: Build, x: Tensor, count: int, factor: float, note: str) -> Case:
    return Case(build, x, _cost(build, x, count, factor), note=note)


EQUAL_COST = Exercise(
    id="designs.equal_cost",
    chapter="17",
    title="Measure it: how many blocks cost the same?",
    difficulty=2,
    minutes=12,
    why="A design that is better and twice as expensive has shown nothing. Equal parameters are not equal cost either: "
    "shared weights and long inputs come apart from the count.",
    hints=(
        "Nobody has to know the formula of a module to know what it costs: run it once and count.",
        "trace(module, x).flops counts the floating-point operations of one forward pass. Do so for every number of blocks "
        "from 1 to 8, take the one that comes closest to the target, and return it if it is within 5 % of the target, "
        "otherwise None.",
        "costs = {n: trace(build(n), x).flops for n in range(1, 9)}\n"
        "best = min(costs, key=lambda n: …)\n"
        "return best if abs(costs[best] - target) <= … else None",
    ),
    reference=blocks_at_equal_cost,
    cases=lambda: [
        _cost_case(stacks(4), torch.zeros(2, 4), 5, 1.02, "the cost of five blocks and 2 % more"),
        _cost_case(stacks(6), torch.zeros(1, 7, 6), 2, 0.97, "a little less than two blocks, on seven tokens"),
        _cost_case(stacks(8, shared=True), torch.zeros(3, 8), 6, 1.0, "one block, run through six times"),
        _cost_case(stacks(5), torch.zeros(2, 5), 1, 1.12, "12 % more than one block: nothing comes within 5 %"),
        _cost_case(stacks(40), torch.zeros(1, 40), 8, 0.96, "a little less than eight wide blocks, on one token"),
    ],
)


@EQUAL_COST.property("it is measured, whatever the module is made of")
def _(fn) -> None:
    build = lambda count: nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(count)))  # noqa: E731
    x = torch.zeros(1, 3, 5, 5)
    found = fn(build, x, _cost(build, x, 4))
    expect(found == 4, f"For a stack of convolutions that costs as much as four of them, it says {found}.")


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _costs(build: Build, x: Tensor, numbers=range(1, 9)) -> dict[int, int]:
    return {count: trace(build(count).eval(), x).flops for count in numbers}


def _nearest(costs: dict[int, int], target: int, allowed: float = 0.05) -> int | None:
    best = min(costs, key=lambda count: abs(costs[count] - target))
    return best if abs(costs[best] - target) <= allowed * target else None


EQUAL_COST.mistake("You compare parameters. A block that is run through six times has the parameters of one.")(
    lambda build, x, target: _nearest({n: _parameters(build(n)) for n in range(1, 9)}, target)
)
EQUAL_COST.mistake("Twice the parameters are the operations of one token, and x may hold many: run the module on x.")(
    lambda build, x, target: _nearest({n: 2 * _parameters(build(n)) for n in range(1, 9)}, target)
)
EQUAL_COST.mistake("The nearest is returned however far away it is. Beyond 5 % return None: it is not equal cost.")(
    lambda build, x, target: _nearest(_costs(build, x), target, allowed=float("inf"))
)
EQUAL_COST.mistake("It takes the most blocks that cost no more than the target. A little more may be nearer.")(
    lambda build, x, target: max((n for n, c in _costs(build, x).items() if c <= target), default=None)
)
EQUAL_COST.mistake("It takes the fewest blocks that reach the target. A little less may be nearer.")(
    lambda build, x, target: min((n for n, c in _costs(build, x).items() if c >= target), default=None)
)
EQUAL_COST.mistake("Blocks are counted from 0 here. A stack has at least one, and at most eight.")(
    lambda build, x, target: {None: None, **{n: n - 1 for n in range(1, 9)}}[_nearest(_costs(build, x), target)]
)
EQUAL_COST.mistake("Eight blocks are never tried: range(1, 9) ends with 8.")(
    lambda build, x, target: _nearest(_costs(build, x, range(1, 8)), target)
)
EQUAL_COST.mistake("The 5 % are of one operation: compare the difference with 0.05 * target.")(
    lambda build, x, target: _nearest(_costs(build, x), target, allowed=0.05 / target)
)


@EQUAL_COST.mistake("This is the cost. Return the number of blocks.")
def _(build, x, target):
    costs = _costs(build, x)
    best = _nearest(costs, target)
    return None if best is None else costs[best]


@EQUAL_COST.mistake(
    "One block is measured and multiplied. What is there once, such as the last layer, is counted often."
)
def _(build, x, target):
    one = trace(build(1).eval(), x).flops
    return _nearest({n: n * one for n in range(1, 9)}, target)
