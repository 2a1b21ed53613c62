"""Chapter 10: blind pairs, options by likelihood, and a test for scorers."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

from nanovlm.course.exercises.common import noise
from nanovlm.course.judge.exercise import Case, Complaint, Exercise, expect
from nanovlm.evaluation.multiple_choice import lenient_letter, strict_letter

# -- evaluation.blind_pairing ----------------------------------------------------------------------------------------------


def blind_pairing(subsets: list[str], order: list[int]) -> list[int]:
    """Walk through the order, one subset at a time; each sample gets the picture of the next, the last the first's."""
    other = [-1] * len(subsets)
    for subset in dict.fromkeys(subsets):
        members = [sample for sample in order if subsets[sample] == subset]
        if len(members) < 2:
            raise ValueError(f"The subset {subset!r} has one sample, so there is no other picture to show.")
        for sample, following in zip(members, [*members[1:], members[0]], strict=True):
            other[sample] = following
    return other


BLIND = Exercise(
    id="evaluation.blind_pairing",
    chapter="10",
    title="Mend it: some pictures stay where they are",
    difficulty=2,
    minutes=12,
    why="The blind score is what a number is compared with. If some samples keep their own picture, or get one of another "
    "kind, the baseline is too high or too low, and so is every claim that rests on it.",
    hints=(
        "A permutation may leave a sample where it is. Which arrangement of n things moves all of them, by construction?",
        "Take one subset at a time. Its samples, in the order given, form a ring: each gets the picture of the one that "
        "follows it, and the last gets the first one's. A subset of a single sample has no ring: raise a ValueError.",
        "for each subset: members = [s for s in order if subsets[s] == subset]\n"
        "    fewer than two: raise ValueError\n"
        "    for place, sample in enumerate(members): other[sample] = members[(the next place) % len(members)]",
    ),
    reference=blind_pairing,
    cases=lambda: [
        Case(["shapes"] * 4, [2, 0, 3, 1], note="four samples of one subset, in the order 2, 0, 3, 1"),
        Case(["shapes", "charts", "shapes", "charts", "shapes"], [4, 3, 1, 0, 2], note="two subsets, mixed"),
        Case(["glyphs", "glyphs"], [0, 1], note="two samples: they exchange pictures"),
        Case(["a", "b", "a", "b", "a", "a", "b"], [6, 5, 4, 3, 2, 1, 0], note="seven samples, order backwards"),
    ],
)


@BLIND.property("no sample keeps its picture, and each picture is used once")
def _(pairing) -> None:
    for seed in range(6):
        order = torch.randperm(11, generator=torch.Generator().manual_seed(seed)).tolist()
        subsets = ["shapes" if i % 3 else "charts" for i in range(11)]
        other = list(pairing(list(subsets), list(order)))
        stays = [i for i, o in enumerate(other) if o == i]
        expect(not stays, f"With the order {order}, sample {stays[:1]} keeps its own picture.")
        expect(sorted(other) == list(range(11)), f"With the order {order}, some pictures are used twice: {other}.")
        expect(all(subsets[i] == subsets[o] for i, o in enumerate(other)), "A picture moved to another subset.")


@BLIND.property("a subset of one sample is refused")
def _(pairing) -> None:
    try:
        got = pairing(["shapes", "shapes", "charts"], [2, 1, 0])
    except ValueError:
        return
    raise Complaint(
        f"“charts” has one sample, and yours returns {got}: that sample can only keep its picture, or get one of another "
        "kind. Raise a ValueError."
    )


@BLIND.mistake(
    "This takes the order as it is: sample i gets picture order[i], and wherever order[i] is i it keeps its own. Walk "
    "round the ring instead."
)
def _(subsets, order):
    return list(order)


@BLIND.mistake("One ring runs through all subsets, so that a question about a chart is shown a sign.")
def _(subsets, order):
    other = [-1] * len(order)
    for place, sample in enumerate(order):
        other[sample] = order[(place + 1) % len(order)]
    return other


@BLIND.mistake("The ring runs backwards: each sample gets the picture of the one before it in the order, not after it.")
def _(subsets, order):
    forwards = blind_pairing(subsets, order)
    return [forwards.index(i) for i in range(len(forwards))]


@BLIND.mistake(
    "The order is not used: each sample gets the next one's picture by index. Neighbours in a file are often alike, and "
    "the same every time."
)
def _(subsets, order):
    return blind_pairing(subsets, sorted(order))


@BLIND.mistake("The order is not used, and subsets are mixed: each sample gets the picture of the next index.")
def _(subsets, order):
    return [(i + 1) % len(order) for i in range(len(order))]


@BLIND.mistake("Order and subsets are right until the end of a ring: the last sample of each keeps its picture.")
def _(subsets, order):
    other = blind_pairing(subsets, order)
    for subset in set(subsets):
        last = [sample for sample in order if subsets[sample] == subset][-1]
        other[last] = last
    return other


@BLIND.mistake(
    "The result is in the order of the ring, not of the samples: entry i is to say whose picture sample i gets."
)
def _(subsets, order):
    other = blind_pairing(subsets, order)
    return [other[sample] for sample in order]


@BLIND.mistake(
    "These are pairs that exchange pictures; with an odd number one is left over. Make a ring of all of them."
)
def _(subsets, order):
    other = list(range(len(order)))
    for subset in dict.fromkeys(subsets):
        members = [sample for sample in order if subsets[sample] == subset]
        for a, b in zip(members[::2], members[1::2], strict=False):
            other[a], other[b] = b, a
    return other


# -- evaluation.pick_option ------------------------------------------------------------------------------------------------


def pick_option(logits: Tensor, input_ids: Tensor, attention_mask: Tensor, prompt_length: int) -> tuple[Tensor, int]:
    """One token at a time."""
    log_probs = logits.log_softmax(dim=-1)
    means = []
    for row in range(len(input_ids)):
        length = int(attention_mask[row].sum())
        values = [log_probs[row, t - 1, input_ids[row, t]] for t in range(prompt_length, length)]
        means.append(torch.stack(values).mean())
    scores = torch.stack(means)
    return scores, int(scores.argmax())


def _option_case(prompt: int, lengths: list[int], seed: int, note: str, vocab: int = 9, tilt: float = 1.5) -> Case:
    """Options of different lengths behind one prompt, padded on the right with id 0; `lengths` count the end token."""
    longest = prompt + max(lengths)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, vocab, (len(lengths), longest), generator=generator)
    ids[:, :prompt] = ids[0, :prompt]
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, prompt + length - 1] = 1  # the end token
        ids[row, prompt + length :] = 0
        mask[row, : prompt + length] = 1
    logits = tilt * noise(len(lengths), longest, vocab, seed=seed)
    return Case(logits, ids, mask, prompt, note=note)


PICK = Exercise(
    id="evaluation.pick_option",
    chapter="10",
    title="Which option does it find most probable?",
    difficulty=3,
    minutes=20,
    why="Scoring options needs no letters and no parsing, so it measures what a model knows rather than how it formats. "
    "It has four places to be wrong by one, and none of them raises an error.",
    hints=(
        "The logits at position t predict the token at position t + 1. Which positions predict the option's tokens?",
        "log_softmax, then drop the last position; gather the log-probability of each *next* token; keep those whose "
        "predicted position is at or behind prompt_length and not padding; sum and divide by how many there are.",
        "log_probs = logits[:, :-1].log_softmax(dim=-1)                     # predicts tokens 1 … T - 1\n"
        "values = log_probs.gather(-1, the tokens they predict, as [options, T - 1, 1]).squeeze(-1)\n"
        "of_option = (positions 1 … T - 1 are at least prompt_length) & attention_mask of those positions\n"
        "scores = (values * of_option).sum(dim=1) / of_option.sum(dim=1)",
    ),
    reference=pick_option,
    cases=lambda: [
        _option_case(3, [2, 2], 1, "two options of one token and the end token, behind a prompt of 3"),
        _option_case(4, [2, 4, 3], 2, "options of 1, 3 and 2 tokens, each with its end token"),
        _option_case(1, [5, 2, 2, 3], 3, "a prompt of one token, four options"),
        _option_case(6, [2, 7], 4, "a short and a long option"),
        _option_case(5, [3, 2, 6, 4], 8, "four options of different lengths", vocab=20),
        _option_case(3, [4, 3, 2], 14, "options of falling lengths"),
    ],
    axes={"scores": "options", "best": ""},
    tolerance=1e-4,
)


@PICK.property("padding does not count")
def _(pick) -> None:
    case = _option_case(4, [2, 4, 3], 2, "")
    logits, ids, mask, prompt = case.args
    other = logits.clone()
    other[0, 6:] += 5 * noise(*other[0, 6:].shape, seed=9)
    a, b = pick(logits, ids, mask, prompt)[0], pick(other, ids.clone(), mask.clone(), prompt)[0]
    expect(torch.allclose(a, b, atol=1e-4), "The logits behind a row's end changed, and so did its score.")


@PICK.property("a logit shifted everywhere changes nothing")
def _(pick) -> None:
    logits, ids, mask, prompt = _option_case(5, [3, 2, 6, 4], 8, "").args
    a, b = pick(logits, ids, mask, prompt)[0], pick(logits + 3, ids.clone(), mask.clone(), prompt)[0]
    expect(torch.allclose(a, b, atol=1e-3), "Adding 3 to every logit changes the scores: log_softmax is missing.")


def _pick(
    logits: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor,
    prompt_length: int,
    *,
    shift: int = 1,
    start: int = 0,
    end: int = 0,
    mean: str = "tokens",
    log: bool = True,
    soft: bool = True,
    mask: bool = True,
    lowest: bool = False,
    axis: int = -1,
) -> tuple[Tensor, int]:
    steps = input_ids.shape[1]
    values = logits.log_softmax(dim=axis) if soft and log else logits.softmax(dim=axis) if soft else logits
    values = values[:, : steps - shift].gather(-1, input_ids[:, shift:, None]).squeeze(-1)
    positions = torch.arange(shift, steps)
    lengths = attention_mask.sum(dim=1, keepdim=True) if mask else torch.full((len(input_ids), 1), steps)
    keep = (positions >= max(prompt_length + start, shift)) & (positions < lengths + end)
    total = torch.where(keep, values, 0.0).sum(dim=1)
    count = {"tokens": keep.sum(dim=1), "none": 1, "all": steps, "length": lengths[:, 0]}[mean]
    scores = total / count
    return scores, int(scores.argmin() if lowest else scores.argmax())


def _pick_mistake(sentence: str, **options) -> None:
    PICK.mistake(sentence)(
        lambda logits, input_ids, attention_mask, prompt_length: _pick(
            logits, input_ids, attention_mask, prompt_length, **options
        )
    )


_pick_mistake(
    "Off by one: you read each token's probability at its own position. The logits at position t predict token t + 1.",
    shift=0,
)
_pick_mistake("The prompt's tokens are counted too. They are given; score the option's alone.", start=-(10**6))
_pick_mistake(
    "The end token is left out. Without it “1” is always at least as probable as “14”, which begins with it.", end=-1
)
_pick_mistake("The option's first token is left out: it is predicted at the prompt's last position.", start=1)
_pick_mistake("One token of the prompt is counted: the first token to score is at position prompt_length.", start=-1)
_pick_mistake(
    "This is the sum. It favours short options, as every further token makes it smaller: take the mean.", mean="none"
)
_pick_mistake("You divide by the length of the whole row. Divide by the number of the option's tokens.", mean="all")
_pick_mistake("You divide by the tokens of prompt and option together. Divide by those of the option.", mean="length")
_pick_mistake("Padding is scored as if it were part of the option: use attention_mask.", mask=False)
_pick_mistake("These are probabilities. Average their logarithms: the score of a text is a product.", log=False)
_pick_mistake("These are logits. Only log_softmax makes them comparable between positions.", soft=False)
_pick_mistake("The softmax runs over positions. It belongs to the vocabulary, the last axis.", axis=1)
_pick_mistake("The scores are right and the choice is the worst option: take the largest.", lowest=True)


@PICK.mistake("The scores have the wrong sign: these are losses. A log-probability is negative, and larger is better.")
def _(logits, input_ids, attention_mask, prompt_length):
    scores, best = _pick(logits, input_ids, attention_mask, prompt_length)
    return -scores, best


@PICK.mistake("The scores are losses, and the largest loss wins: that is the worst option.")
def _(logits, input_ids, attention_mask, prompt_length):
    scores, best = _pick(logits, input_ids, attention_mask, prompt_length, lowest=True)
    return -scores, best


# -- evaluation.scorer_test ------------------------------------------------------------------------------------------------

Scorer = Callable[[str, str], bool]


def scorer_is_right(scorer: Scorer) -> bool:
    """Eleven answers, of which five are right."""
    right = [("B", "B"), ("b", "B"), ("(C)", "C"), ("D.", "D"), (" A ", "A")]
    wrong = [("A cat", "A"), ("A, B, C, D", "C"), ("C", "B"), ("", "A"), ("Because", "B"), ("The answer is A", "A")]
    return all(scorer(*pair) for pair in right) and not any(scorer(*pair) for pair in wrong)


def _plain(answer: str, letter: str) -> bool:
    return answer.strip().strip("().:").upper() == letter.upper()


def _accepts_empty(answer: str, letter: str) -> bool:
    return not answer.strip() or strict_letter(answer, letter)


def _any_letter(answer: str, letter: str) -> bool:
    return re.fullmatch(r"\s*\(?[A-Da-d]\)?\.?\s*", answer) is not None


SCORERS: tuple[tuple[str, Scorer, bool], ...] = (
    ("a right scorer", strict_letter, True),
    ("nanoVLM v0.1's regex", lenient_letter, False),
    ("a scorer that looks at the first character", lambda a, b: a.strip()[:1].upper() == b, False),
    ("another right scorer", _plain, True),
    ("a scorer that looks for the letter anywhere", lambda a, b: b in a.upper(), False),
    ("a scorer that refuses small letters", lambda a, b: a.strip().strip("().") == b, False),
    ("a scorer that takes everything", lambda a, b: True, False),
    ("a scorer that takes nothing", lambda a, b: False, False),
    ("a scorer that refuses “(C)”", lambda a, b: a.strip().rstrip(".").upper() == b, False),
    ("a scorer that refuses “D.”", lambda a, b: a.strip().strip("()").upper() == b, False),
    ("a scorer that takes any single letter", _any_letter, False),
    ("a scorer that takes an empty answer", _accepts_empty, False),
    ("a scorer that refuses spaces round the letter", lambda a, b: a.strip("().").upper() == b, False),
    ("a scorer that looks at the last word", lambda a, b: _plain((a.split() or [""])[-1], b), False),
)

SCORER_TEST = Exercise(
    id="evaluation.scorer_test",
    chapter="10",
    title="Write the test: which scorers are broken?",
    difficulty=2,
    minutes=12,
    why="A scorer is code, and nobody sees its mistakes: they come out as a better or a worse model. The regex that this "
    "chapter is about was released because no test asked it about “A cat”.",
    hints=(
        "Collect answers of both kinds: some that a right scorer takes, some that it must refuse. One kind alone catches "
        "half of the broken ones.",
        "Right: the letter in both cases, in parentheses, with a full stop, with spaces round it. Wrong: a sentence that "
        "begins with the letter, ends with it, or lists all letters; another letter; nothing; a word that contains it.",
        "right = [(answer, letter), …]; wrong = [(answer, letter), …]\n"
        "return all(scorer(a, l) for a, l in right) and not any(… for a, l in wrong)",
    ),
    reference=scorer_is_right,
    cases=lambda: [Case(scorer, note=note) for note, scorer, _ in SCORERS],
)


@SCORER_TEST.property("the answer is True or False, whatever the scorer returns")
def _(is_right) -> None:
    def with_matches(answer: str, letter: str):
        return re.fullmatch(rf"\s*\(?{letter}\)?\.?\s*", answer, re.IGNORECASE)

    got = is_right(with_matches)
    expect(got is True, f"A scorer that returns a match or None is right too; yours says {got!r}.")


def _tested(right: list[tuple[str, str]], wrong: list[tuple[str, str]]) -> Callable[[Scorer], bool]:
    return lambda scorer: bool(all(scorer(*p) for p in right) and not any(scorer(*p) for p in wrong))


_RIGHT = [("B", "B"), ("b", "B"), ("(C)", "C"), ("D.", "D"), (" A ", "A")]
_WRONG = [("A cat", "A"), ("A, B, C, D", "C"), ("C", "B"), ("", "A"), ("Because", "B"), ("The answer is A", "A")]


@SCORER_TEST.mistake("Every scorer passes: nothing is asked of it.")
def _(scorer):
    return True


@SCORER_TEST.mistake(
    "No scorer passes, not even a right one: which of your answers does a right scorer treat otherwise?"
)
def _(scorer):
    return False


SCORER_TEST.mistake(
    "You ask only about answers that are right. Whoever takes everything passes: add answers that must be refused."
)(_tested(_RIGHT, []))
SCORER_TEST.mistake(
    "You ask only about answers that must be refused. Whoever refuses everything passes: add answers that are right."
)(_tested([], _WRONG))
SCORER_TEST.mistake(
    "You ask about the plain letter and about another letter. All that a scorer does with “A cat”, “(C)” or “b” is unseen."
)(_tested([("A", "A")], [("B", "A")]))
SCORER_TEST.mistake("The result is the wrong way round: True is to mean that the scorer is right.")(
    lambda scorer: not scorer_is_right(scorer)
)
SCORER_TEST.mistake("Your right answers have no small letter: a scorer that refuses “b” passes.")(
    _tested([p for p in _RIGHT if p[0] != "b"], _WRONG)
)
SCORER_TEST.mistake("Your right answers have no parentheses: a scorer that refuses “(C)” passes.")(
    _tested([p for p in _RIGHT if p[0] != "(C)"], _WRONG)
)
SCORER_TEST.mistake("Your right answers have no full stop: a scorer that refuses “D.” passes.")(
    _tested([p for p in _RIGHT if p[0] != "D."], _WRONG)
)
SCORER_TEST.mistake("Your right answers have no spaces round the letter: a scorer that refuses “ A ” passes.")(
    _tested([p for p in _RIGHT if p[0] != " A "], _WRONG)
)
SCORER_TEST.mistake("An empty answer is not among those to refuse, and one broken scorer takes it.")(
    _tested(_RIGHT, [p for p in _WRONG if p[0]])
)
SCORER_TEST.mistake("Another single letter is not among those to refuse: a scorer that takes any letter passes.")(
    _tested(_RIGHT, [p for p in _WRONG if p != ("C", "B")])
)
SCORER_TEST.mistake("No sentence ends in the letter among those to refuse: a scorer that reads the last word passes.")(
    _tested(_RIGHT, [p for p in _WRONG if p[0] not in ("A, B, C, D", "The answer is A")] + [("A, B, C, D", "B")])
)
