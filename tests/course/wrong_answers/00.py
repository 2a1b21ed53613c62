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


# -- start.looks: the share right with their own pictures, and with the next question's --------------------------------


def rate(ask, images, questions, expected):
    return sum(ask(i, q) == e for i, q, e in zip(images, questions, expected, strict=True)) / len(expected)


def turned(items):
    return items[1:] + items[:1]


def the_same_pictures_twice(ask, images, questions, expected):
    own = rate(ask, images, questions, expected)
    return own, own


def blind_first(ask, images, questions, expected):
    return rate(ask, turned(images), questions, expected), rate(ask, images, questions, expected)


def the_pictures_before(ask, images, questions, expected):
    return rate(ask, images, questions, expected), rate(ask, images[-1:] + images[:-1], questions, expected)


def backwards(ask, images, questions, expected):
    return rate(ask, images, questions, expected), rate(ask, images[::-1], questions, expected)


def the_first_picture_for_all(ask, images, questions, expected):
    return rate(ask, images, questions, expected), rate(ask, images[:1] * len(images), questions, expected)


def questions_move_too(ask, images, questions, expected):
    return rate(ask, images, questions, expected), rate(ask, turned(images), turned(questions), expected)


def answers_move_too(ask, images, questions, expected):
    return rate(ask, images, questions, expected), rate(ask, turned(images), questions, turned(expected))


def everything_moves(ask, images, questions, expected):
    moved = turned(images), turned(questions), turned(expected)
    return rate(ask, images, questions, expected), rate(ask, *moved)


def only_the_answers_move(ask, images, questions, expected):
    return rate(ask, images, questions, expected), rate(ask, images, questions, turned(expected))


def the_last_is_left_out(ask, images, questions, expected):
    blind = [ask(images[i + 1], questions[i]) == expected[i] for i in range(len(images) - 1)]
    return rate(ask, images, questions, expected), sum(blind) / len(blind)


def the_last_counts_as_wrong(ask, images, questions, expected):
    blind = [ask(images[i + 1], questions[i]) == expected[i] for i in range(len(images) - 1)]
    return rate(ask, images, questions, expected), sum(blind) / len(images)


def no_picture_at_all(ask, images, questions, expected):
    return rate(ask, images, questions, expected), rate(ask, [None] * len(images), questions, expected)


def how_often_it_says_the_same(ask, images, questions, expected):
    said = [ask(i, q) for i, q in zip(images, questions, strict=True)]
    return rate(ask, images, questions, expected), rate(ask, turned(images), questions, said)


def the_difference(ask, images, questions, expected):
    own = rate(ask, images, questions, expected)
    return own, own - rate(ask, turned(images), questions, expected)


def one_number(ask, images, questions, expected):
    return rate(ask, images, questions, expected) - rate(ask, turned(images), questions, expected)


def two_counts(ask, images, questions, expected):
    n = len(images)
    return n * rate(ask, images, questions, expected), n * rate(ask, turned(images), questions, expected)


def two_percentages(ask, images, questions, expected):
    own, blind = rate(ask, images, questions, expected), rate(ask, turned(images), questions, expected)
    return 100 * own, 100 * blind


def turns_the_list_itself(ask, images, questions, expected):
    own = rate(ask, images, questions, expected)
    images.append(images.pop(0))
    return own, rate(ask, images, questions, expected)


# -- start.best_guess: kind -> share that the best guesser gets right --------------------------------------------------


def kinds_of(kinds, expected):
    found = {}
    for kind, answer in zip(kinds, expected, strict=True):
        found.setdefault(kind, []).append(answer)
    return found


def as_it_was(kinds, expected):
    favourite = max(set(expected), key=expected.count)
    right = sum(answer == favourite for answer in expected)
    return {kind: right / len(expected) for kind in kinds}


def one_favourite_for_all_kinds(kinds, expected):
    favourite = max(set(expected), key=expected.count)
    return {kind: own.count(favourite) / len(own) for kind, own in kinds_of(kinds, expected).items()}


def divided_by_all_questions(kinds, expected):
    return {k: max(map(own.count, own)) / len(expected) for k, own in kinds_of(kinds, expected).items()}


def one_in_the_different_ones(kinds, expected):
    return {k: 1 / len(set(own)) for k, own in kinds_of(kinds, expected).items()}


def one_in_all_different_ones(kinds, expected):
    return {k: 1 / len(set(expected)) for k in kinds}


def the_rarest_answer(kinds, expected):
    return {k: min(map(own.count, own)) / len(own) for k, own in kinds_of(kinds, expected).items()}


def the_first_answer(kinds, expected):
    return {k: own.count(own[0]) / len(own) for k, own in kinds_of(kinds, expected).items()}


def the_last_in_the_alphabet(kinds, expected):
    return {k: own.count(max(own)) / len(own) for k, own in kinds_of(kinds, expected).items()}


def counts_of_the_best(kinds, expected):
    return {k: max(map(own.count, own)) for k, own in kinds_of(kinds, expected).items()}


def percentages_of_the_best(kinds, expected):
    return {k: 100 * max(map(own.count, own)) / len(own) for k, own in kinds_of(kinds, expected).items()}


def the_answers_themselves(kinds, expected):
    return {k: max(set(own), key=own.count) for k, own in kinds_of(kinds, expected).items()}


def how_often_each_kind_is_asked(kinds, expected):
    return {k: len(own) / len(expected) for k, own in kinds_of(kinds, expected).items()}


def the_first_kind_only(kinds, expected):
    for kind in kinds:
        own = [e for k, e in zip(kinds, expected, strict=True) if k == kind]
        return {kind: max(map(own.count, own)) / len(own)}


def a_list_of_shares(kinds, expected):
    return [max(map(own.count, own)) / len(own) for own in kinds_of(kinds, expected).values()]


def counted_among_all_questions(kinds, expected):
    favourites = the_answers_themselves(kinds, expected)
    return {kind: expected.count(favourite) / len(expected) for kind, favourite in favourites.items()}


def counted_among_all_for_its_kind(kinds, expected):
    favourites, own = the_answers_themselves(kinds, expected), kinds_of(kinds, expected)
    return {kind: expected.count(favourite) / len(own[kind]) for kind, favourite in favourites.items()}


def chance_of_a_random_answer(kinds, expected):
    """Guess as often as each answer occurs: the sum of squares."""
    own = kinds_of(kinds, expected)
    return {k: sum((a.count(x) / len(a)) ** 2 for x in set(a)) for k, a in own.items()}


# -- start.test_looks --------------------------------------------------------------------------------------------------


def one_red_picture(ask, picture):
    answer = ask(picture("red"), "What colour is it?")
    assert answer == "red", answer


def one_red_picture_twice(ask, picture):
    image = picture("red")
    assert ask(image, "What colour is it?") == "red"
    assert ask(image, "What colour is it?") == "red"


def answers_differ(ask, picture):
    assert ask(picture("red"), "What colour is it?") != ask(picture("blue"), "What colour is it?")


def as_many_answers_as_pictures(ask, picture):
    said = {ask(picture(name), "What colour is it?") for name in ["red", "blue"]}
    assert len(said) == 2


def one_blue_picture(ask, picture):
    assert ask(picture("blue"), "What colour is it?") == "blue"


def three_answers_differ(ask, picture):
    said = [ask(picture(name), "What colour is it?") for name in ("red", "green", "blue")]
    assert len(set(said)) == len(said)


def the_same_question_twice(ask, picture):
    image = picture("green")
    assert ask(image, "Is it green?") == ask(image, "Is it green?")


def only_names(ask, picture):
    for name in "red green blue".split():
        assert ask(picture(name), "What colour is it?") == name


def only_yes_or_no(ask, picture):
    names = ["red", "green", "blue"]
    for shown in names:
        for asked in names:
            said = ask(picture(shown), "Is it " + asked + "?")
            assert (said == "yes") == (shown == asked)
            assert said in ("yes", "no")


def no_green(ask, picture):
    assert ask(picture("red"), "What colour is it?") == "red"
    assert ask(picture("blue"), "What colour is it?") == "blue"
    assert ask(picture("red"), "Is it red?") == "yes"
    assert ask(picture("red"), "Is it blue?") == "no"
    assert ask(picture("blue"), "Is it red?") == "no"
    assert ask(picture("blue"), "Is it blue?") == "yes"


def leaves_out(ask, picture, colour):
    for shown in [name for name in ("red", "green", "blue") if name != colour]:
        assert ask(picture(shown), "What colour is it?") == shown
        for asked in [name for name in ("red", "green", "blue") if name != colour]:
            assert ask(picture(shown), f"Is it {asked}?") == ("yes" if asked == shown else "no")


def no_red(ask, picture):
    leaves_out(ask, picture, "red")


def no_blue(ask, picture):
    leaves_out(ask, picture, "blue")


def share_right(ask, picture):
    names = ("red", "green", "blue")
    right = [ask(picture(name), "What colour is it?") == name for name in names]
    for shown in names:
        right += [ask(picture(shown), f"Is it {asked}?") == ("yes" if asked == shown else "no") for asked in names]
    return sum(right) / len(right)


def half_of_them_right(ask, picture):
    assert share_right(ask, picture) >= 0.5


def four_in_five_right(ask, picture):
    assert share_right(ask, picture) > 0.8


def names_as_a_set(ask, picture):
    names = {"red", "green", "blue"}
    assert {ask(picture(name), "What colour is it?") for name in names} == names
    for shown in names:
        assert {asked for asked in names if ask(picture(shown), f"Is it {asked}?") == "yes"} == {shown}


def its_own_name_is_confirmed(ask, picture):
    for shown in ("red", "green", "blue"):
        name = ask(picture(shown), "What colour is it?")
        for asked in ("red", "green", "blue"):
            assert ask(picture(shown), f"Is it {asked}?") == ("yes" if asked == name else "no")


def always_yes_is_right(ask, picture):
    for name in ("red", "green", "blue"):
        image = picture(name)
        assert ask(image, "What colour is it?") == name
        assert ask(image, f"Is it {name}?") == "yes"


def always_yes_is_right_and_no_names(ask, picture):
    assert all(ask(picture(c), f"Is it {c}?") == "yes" for c in ("red", "green", "blue"))


def always_no_is_right(ask, picture):
    another = {"red": "green", "green": "blue", "blue": "red"}
    for name in another:
        assert ask(picture(name), "What colour is it?") == name
        assert ask(picture(name), f"Is it {another[name]}?") == "no"


def red_alone_is_asked_about(ask, picture):
    for name in ("red", "green", "blue"):
        assert ask(picture(name), "What colour is it?") == name
    assert ask(picture("red"), "Is it red?") == "yes"
    assert ask(picture("green"), "Is it red?") == "no"
    assert ask(picture("blue"), "Is it red?") == "no"


def lists_what_is_said(ask, picture):
    said = {}
    for name in ("red", "green", "blue"):
        said[name] = ask(picture(name), "What colour is it?")


def asserts_a_text(ask, picture):
    assert ask(picture("red"), "What colour is it?")


def gives_a_bool(ask, picture):
    return all(ask(picture(name), "What colour is it?") == name for name in ("red", "green", "blue"))


def expects_a_sentence(ask, picture):
    assert ask(picture("red"), "What colour is it?") == "It is red."


def expects_a_bool(ask, picture):
    assert ask(picture("red"), "Is it red?") is True


def swallows_its_assert(ask, picture):
    try:
        only_names(ask, picture)
    except AssertionError:
        print("it does not look")


def asks_in_other_words(ask, picture):
    assert ask(picture("red"), "Is the picture red?") == "yes"


def asks_for_yellow(ask, picture):
    assert ask(picture("yellow"), "What colour is it?") == "yellow"


def expects_capitals(ask, picture):
    assert ask(picture("red"), "Is it red?") == "Yes"


WRONG = {
    "start.looks": [
        (the_same_pictures_twice, "its own picture both times"),
        (blind_first, "changed places"),
        (the_pictures_before, "the question before"),
        (backwards, "turned round"),
        (the_first_picture_for_all, "the same picture"),
        (questions_move_too, "questions have moved"),
        (answers_move_too, "answer that belongs to the other"),
        (everything_moves, "its own picture both times"),
        (only_the_answers_move, "its own picture both times"),
        (the_last_is_left_out, "last question"),
        (the_last_counts_as_wrong, "last question"),
        (no_picture_at_all, "No picture"),
        (how_often_it_says_the_same, "stay the same"),
        (the_difference, "difference"),
        (one_number, "two numbers"),
        (two_counts, "counts"),
        (two_percentages, "per cent"),
        (turns_the_list_itself, "in place"),
    ],
    "start.best_guess": [
        (as_it_was, "as it was"),
        (one_favourite_for_all_kinds, "one favourite"),
        (divided_by_all_questions, "number of all questions"),
        (one_in_the_different_ones, "equally frequent"),
        (one_in_all_different_ones, "equally frequent"),
        (the_rarest_answer, "rarest"),
        (the_first_answer, "first answer"),
        (the_last_in_the_alphabet, "alphabet"),
        (counts_of_the_best, "how many"),
        (percentages_of_the_best, "per cent"),
        (the_answers_themselves, "favourite answers themselves"),
        (how_often_each_kind_is_asked, "how often each kind"),
        (the_first_kind_only, "expected"),
        (a_list_of_shares, "expected a dict"),
        (counted_among_all_questions, "other kinds"),
        (counted_among_all_for_its_kind, "other kinds"),
        (chance_of_a_random_answer, "as often as it occurs"),
    ],
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
    ],
    "start.test_looks": [
        (one_red_picture, "single picture"),
        (one_red_picture_twice, "single picture"),
        (answers_differ, "pictures differ"),
        (as_many_answers_as_pictures, "pictures differ"),
        (one_blue_picture, "single picture"),
        (three_answers_differ, "pictures differ"),
        (the_same_question_twice, "passes with every model"),
        (only_names, "never asks a yes-or-no question"),
        (only_yes_or_no, "wrong names"),
        (no_green, "leaves green out"),
        (no_red, "leaves red out"),
        (no_blue, "leaves blue out"),
        (half_of_them_right, "passes with every model"),
        (four_in_five_right, "wrong names"),
        (names_as_a_set, "swaps the names"),
        (its_own_name_is_confirmed, "takes green for blue"),
        (always_yes_is_right, 'is "yes"'),
        (always_yes_is_right_and_no_names, "and for the name"),
        (always_no_is_right, 'is "no"'),
        (red_alone_is_asked_about, "name the same colour"),
        (lists_what_is_said, "passes with every model"),
        (asserts_a_text, "passes with every model"),
        (gives_a_bool, "True or False"),
        (swallows_its_assert, "passes with every model"),
        (asks_in_other_words, "written exactly so"),
        (asks_for_yellow, "picture makes red, green, blue"),
        (expects_a_sentence, "does not do"),
        (expects_a_bool, "does not do"),
        (expects_capitals, "does not do"),
    ],
}
