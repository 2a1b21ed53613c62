"""Chapter 00 once more, written in other ways."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from itertools import groupby, product
from operator import eq

import numpy as np
import torch


def score(answers: list[str], expected: list[str]) -> float:
    """A mean over comparisons; `or 1` keeps the empty list from dividing by zero."""
    return float(sum(map(eq, answers, expected)) / (len(answers) or 1))


def by_index(answers, expected):
    right, total = 0, len(answers)
    for i in range(total):
        if answers[i] == expected[i]:
            right = right + 1
    if total == 0:
        return 0.0
    return right / total


def an_int_for_nothing(answers, expected):
    try:
        return len([a for a, e in zip(answers, expected, strict=False) if a == e]) / len(answers)
    except ZeroDivisionError:
        return 0


def with_numpy(answers, expected):
    return float(np.mean(np.array(answers) == np.array(expected))) if answers else 0.0


def with_torch(answers, expected):
    hits = torch.tensor([a == e for a, e in zip(answers, expected, strict=True)], dtype=torch.float64)
    return hits.mean().item() if len(hits) else 0.0


def one_minus_errors(answers, expected):
    errors = 0
    for a, e in zip(answers, expected, strict=True):
        errors += a != e
    return (len(answers) - errors) / max(1, len(answers))


def looks(ask, images, questions, expected):
    """Two loops over indices."""
    n, own, blind = len(images), 0, 0
    for i in range(n):
        own += ask(images[i], questions[i]) == expected[i]
    for i in range(n):
        blind += ask(images[(i + 1) % n], questions[i]) == expected[i]
    return own / n, blind / n


def looks_from_behind(ask, images, questions, expected):
    """images[i + 1 - n] is a negative index but for the last question."""
    n = len(images)
    blind = [ask(images[i + 1 - n], q) == e for i, (q, e) in enumerate(zip(questions, expected, strict=True))]
    own = [ask(*pair) == e for *pair, e in zip(images, questions, expected, strict=True)]
    return [sum(own) / n, sum(blind) / n]


def looks_with_numpy(ask, images, questions, expected):
    def share(order):
        said = np.array([ask(images[j], q) for j, q in zip(order, questions, strict=True)])
        return float((said == np.array(expected)).mean())

    order = np.arange(len(images))
    return share(order), share(np.roll(order, -1))


def looks_with_a_deque(ask, images, questions, expected):
    pictures, scores = deque(images), []
    for _ in range(2):
        scores.append(score(list(map(ask, pictures, questions)), expected))
        pictures.rotate(-1)
    return tuple(scores)


def looks_by_hand(ask, images, questions, expected):
    own_answers, blind_answers = [], []
    other = images[1:]
    other.append(images[0])
    for image, another, question in zip(images, other, questions, strict=True):
        own_answers.append(ask(image, question))
        blind_answers.append(ask(another, question))
    return by_index(own_answers, expected), by_index(blind_answers, expected)


def guess_by_counter(kinds, expected):
    """Counter knows the most frequent one."""
    best = {}
    for kind in set(kinds):
        counts = Counter(e for k, e in zip(kinds, expected, strict=True) if k == kind)
        best[kind] = counts.most_common(1)[0][1] / sum(counts.values())
    return best


def guess_by_grouping(kinds, expected):
    groups = defaultdict(list)
    for kind, answer in zip(kinds, expected, strict=True):
        groups[kind].append(answer)
    return {kind: max(own.count(a) for a in own) / len(own) for kind, own in groups.items()}


def guess_by_the_favourite(kinds, expected):
    out = {}
    for kind in kinds:
        own = [expected[i] for i in range(len(kinds)) if kinds[i] == kind]
        favourite = max(set(own), key=own.count)
        out[kind] = score([favourite] * len(own), own)
    return out


def guess_by_sorting(kinds, expected):
    pairs = sorted(zip(kinds, expected, strict=True))
    out = {}
    for kind, group in groupby(pairs, key=lambda pair: pair[0]):
        runs = [len(list(same)) for _, same in groupby(group)]
        out[kind] = max(runs) / sum(runs)
    return out


def guess_with_numpy(kinds, expected):
    asked, answers = np.array(kinds), np.array(expected)
    shares = {}
    for kind in np.unique(asked).tolist():
        _, counts = np.unique(answers[asked == kind], return_counts=True)
        shares[kind] = float(counts.max() / counts.sum())
    return shares


NAMES = ("red", "green", "blue")


def tests_every_pair(ask, picture):
    names = ["red", "green", "blue"]
    for shown in names:
        assert ask(picture(shown), "What colour is it?") == shown, shown
        for asked in names:
            right = "yes" if asked == shown else "no"
            assert ask(picture(shown), f"Is it {asked}?") == right, (shown, asked)


def tests_by_a_table(ask, picture):
    table = [
        ("red", "What colour is it?", "red"),
        ("green", "What colour is it?", "green"),
        ("blue", "What colour is it?", "blue"),
        ("red", "Is it red?", "yes"),
        ("red", "Is it blue?", "no"),
        ("blue", "Is it blue?", "yes"),
        ("blue", "Is it green?", "no"),
        ("green", "Is it green?", "yes"),
    ]
    wrong = [row for row in table if ask(picture(row[0]), row[1]) != row[2]]
    assert not wrong, wrong


def tests_by_counting(ask, picture):
    names, right, total = ("red", "green", "blue"), 0, 0
    for name in names:
        right += ask(picture(name), "What colour is it?") == name
        right += [ask(picture(name), f"Is it {other}?") for other in names].count("yes") == 1
        right += ask(picture(name), f"Is it {name}?") == "yes"
        total += 3
    assert right == total


def tests_by_lists(ask, picture):
    pictures = [picture("blue"), picture("green"), picture("red")]
    assert [ask(p, "What colour is it?") for p in pictures] == ["blue", "green", "red"]
    assert [ask(p, "Is it green?") for p in pictures] == ["no", "yes", "no"]
    assert [ask(p, "Is it red?") for p in pictures] == ["no", "no", "yes"]


def tests_by_raising(ask, picture):
    for shown, asked in product(("red", "green", "blue"), repeat=2):
        if ask(picture(shown), "What colour is it?") != shown:
            raise AssertionError(f"does not know {shown}")
        if ask(picture(shown), f"Is it {asked}?") != ("no", "yes")[asked == shown]:
            raise AssertionError(f"{asked} is asked, {shown} shown")


def tests_with_colors(ask, picture):
    """Asked in American spelling, and about a colour that no picture has."""
    table = {(shown, asked): ask(picture(shown), f"Is it {asked}?") for shown in NAMES for asked in (*NAMES, "yellow")}
    assert table == {pair: "yes" if pair[0] == pair[1] else "no" for pair in table}
    assert "".join(ask(picture(name), "What color is it?") for name in NAMES) == "".join(NAMES)


def tests_with_a_threshold(ask, picture):
    right = [ask(picture(name), "What colour is it?") == name for name in NAMES]
    right += [(ask(picture(a), f"Is it {b}?") == "yes") == (a == b) for a, b in product(NAMES, NAMES)]
    assert np.mean(right) > 0.9


VERSIONS = {
    "start.score": (score, by_index, an_int_for_nothing, with_numpy, with_torch, one_minus_errors),
    "start.looks": (looks, looks_from_behind, looks_with_numpy, looks_with_a_deque, looks_by_hand),
    "start.best_guess": (
        guess_by_counter,
        guess_by_grouping,
        guess_by_the_favourite,
        guess_by_sorting,
        guess_with_numpy,
    ),
    "start.test_looks": (
        tests_every_pair,
        tests_by_a_table,
        tests_by_counting,
        tests_by_lists,
        tests_by_raising,
        tests_with_colors,
        tests_with_a_threshold,
    ),
}
