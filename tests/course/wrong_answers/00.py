"""Chapter 00: answers as people write them, wrong in ways that people are wrong, and what they should be told."""

from __future__ import annotations


def counts(answers, expected):
    return sum(a == e for a, e in zip(answers, expected, strict=True))


def per_cent(answers, expected):
    return 100.0 * counts(answers, expected) / max(1, len(answers))


def share_of_wrong(answers, expected):
    wrong = 0
    for a, e in zip(answers, expected, strict=True):
        if a != e:
            wrong += 1
    return wrong / len(answers) if answers else 0.0


def contained(answers, expected):
    return sum(e in a for a, e in zip(answers, expected, strict=True)) / max(1, len(answers))


def begins_alike(answers, expected):
    return sum(a.startswith(e) for a, e in zip(answers, expected, strict=True)) / max(1, len(answers))


def contained_the_other_way(answers, expected):
    return sum(a in e for a, e in zip(answers, expected, strict=True)) / max(1, len(answers))


def anywhere(answers, expected):
    return sum(a in expected for a in answers) / max(1, len(answers))


def as_sets(answers, expected):
    return len(set(answers) & set(expected)) / max(1, len(answers))


def sorted_first(answers, expected):
    return counts(sorted(answers), sorted(expected)) / max(1, len(answers))


def ignores_case(answers, expected):
    return counts([a.lower() for a in answers], [e.lower() for e in expected]) / max(1, len(answers))


def floor_division(answers, expected):
    return counts(answers, expected) // max(1, len(answers))


def no_empty_list(answers, expected):
    return counts(answers, expected) / len(answers)


def empty_is_one(answers, expected):
    return counts(answers, expected) / len(answers) if answers else 1.0


def empty_is_nan(answers, expected):
    return counts(answers, expected) / len(answers) if answers else float("nan")


def empty_is_none(answers, expected):
    if answers:
        return counts(answers, expected) / len(answers)
    return None


def all_or_nothing(answers, expected):
    return float(answers == expected and bool(answers))


def returns_in_the_loop(answers, expected):
    right = 0
    for a, e in zip(answers, expected, strict=True):
        right += a == e
        return right / len(answers)
    return 0.0


def leaves_the_last_out(answers, expected):
    right = 0
    for i in range(len(answers) - 1):
        right += answers[i] == expected[i]
    return right / max(1, len(answers))


def divides_by_the_different_ones(answers, expected):
    return counts(answers, expected) / max(1, len(set(expected)))


def skips_empty_answers(answers, expected):
    pairs = [(a, e) for a, e in zip(answers, expected, strict=True) if a]
    return sum(a == e for a, e in pairs) / max(1, len(pairs))


WRONG = {
    "start.score": [
        (counts, "how many are right"),
        (per_cent, "per cent"),
        (share_of_wrong, "share of wrong"),
        (contained, "inside of what was said"),
        (begins_alike, "how an answer begins"),
        (contained_the_other_way, "inside of the right answer"),
        (anywhere, "anywhere in the list"),
        (as_sets, "sets"),
        (sorted_first, "sort"),
        (ignores_case, '"Yes" for "yes"'),
        (floor_division, "throws the fraction away"),
        (no_empty_list, "return 0.0 for it first"),
        (empty_is_one, "no answers"),
        (empty_is_nan, "no answers"),
        (empty_is_none, "no answers"),
        (all_or_nothing, "all or nothing"),
        (returns_in_the_loop, "first pair"),
        (leaves_the_last_out, "last pair"),
        (divides_by_the_different_ones, "different"),
        (skips_empty_answers, "empty answer"),
    ]
}
