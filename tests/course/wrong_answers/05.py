"""Chapter 05: answers as people write them, wrong in ways that people are wrong, and what they should be told."""

from __future__ import annotations

import html
import re
from collections import Counter
from itertools import pairwise

import torch


def fn(name, function):
    function.__name__ = name
    return function


# -- text.bpe_step -----------------------------------------------------------------------------------------------------


def _glue(word, pair):
    out, i = [], 0
    while i < len(word):
        wide = 2 if tuple(word[i : i + 2]) == pair else 1
        out.append("".join(word[i : i + wide]))
        i += wide
    return out


def _best(counts):
    return max(counts, key=counts.__getitem__, default=None)


def bpe(name, count=None, best=_best, glue=_glue):
    def step(words):
        counts = (count or (lambda ws: Counter(p for w in ws for p in pairwise(w))))(words)
        return [glue(word, best(counts)) for word in words]

    return fn(name, step)


def _pair_not_consumed(word, pair):
    out = []
    for i, token in enumerate(word):
        if tuple(word[i : i + 2]) == pair:
            out.append(token + word[i + 1])
        elif not (i and (word[i - 1], token) == pair):
            out.append(token)
    return out


def _second_stays(word, pair):
    out = []
    for i, token in enumerate(word):
        out.append(token + word[i + 1] if tuple(word[i : i + 2]) == pair else token)
    return out


def _first_only(word, pair):
    for i in range(len(word) - 1):
        if (word[i], word[i + 1]) == pair:
            return [*word[:i], word[i] + word[i + 1], *word[i + 2 :]]
    return list(word)


def _last_only(word, pair):
    for i in reversed(range(len(word) - 1)):
        if (word[i], word[i + 1]) == pair:
            return [*word[:i], word[i] + word[i + 1], *word[i + 2 :]]
    return list(word)


def _from_the_right(word, pair):
    if pair is None:
        return list(word)
    return [token[::-1] for token in _glue([t[::-1] for t in word[::-1]], (pair[1][::-1], pair[0][::-1]))][::-1]


def _by_replace(word, pair):
    if pair is None:
        return list(word)
    return " ".join(word).replace(" ".join(pair), "".join(pair)).split(" ")


def _until_one(words):
    while any(len(w) > 1 for w in words):
        counts = Counter(p for w in words for p in pairwise(w))
        words = [_glue(w, _best(counts)) for w in words]
    return words


def _in_place(words):
    pair = _best(Counter(p for w in words for p in pairwise(w)))
    for word in words:
        i = 0
        while i < len(word) - 1:
            if (word[i], word[i + 1]) == pair:
                word[i : i + 2] = [word[i] + word[i + 1]]
            i += 1
    return words


def _only_changed(words):
    pair = _best(Counter(p for w in words for p in pairwise(w)))
    return [_glue(w, pair) for w in words if pair in pairwise(w)]


BPE = [
    (bpe("set_of_pairs", lambda ws: Counter(p for w in ws for p in dict.fromkeys(pairwise(w)))), "once for each word"),
    (
        bpe("different_words_once", lambda ws: Counter(p for w in dict.fromkeys(map(tuple, ws)) for p in pairwise(w))),
        "different word counts once",
    ),
    (bpe("across_words", lambda ws: Counter(pairwise([t for w in ws for t in w]))), "across the border"),
    (bpe("least_frequent", best=lambda c: min(c, key=c.__getitem__, default=None)), "least frequent"),
    (bpe("ties_by_alphabet", best=lambda c: max(sorted(c), key=c.__getitem__, default=None)), "alphabet"),
    (bpe("ties_by_last", best=lambda c: max(c, key=lambda p: (c[p], p), default=None)), "alphabet"),
    (bpe("ties_later", best=lambda c: max(reversed(list(c)), key=c.__getitem__, default=None)), "take the last"),
    (bpe("raises_at_the_end", best=lambda c: max(c, key=c.__getitem__)), "no pair is left"),
    (bpe("pair_not_consumed", glue=_pair_not_consumed), "used twice"),
    (bpe("second_stays", glue=_second_stays), "second token"),
    (bpe("first_only", glue=_first_only), "first place"),
    (bpe("last_only", glue=_last_only), "last place"),
    (bpe("from_the_right", glue=_from_the_right), "from the right"),
    (bpe("by_replace", glue=_by_replace), "whole tokens"),
    (fn("until_one", _until_one), "one pair"),
    (fn("in_place", _in_place), "in place"),
    (fn("only_changed", _only_changed), "words without the pair"),
    (fn("the_pair", lambda ws: _best(Counter(p for w in ws for p in pairwise(w)))), "expected a list"),
    (bpe("unordered_pairs", lambda ws: Counter(tuple(sorted(p)) for w in ws for p in pairwise(w))), "order of the two"),
]

# -- text.split_digits -------------------------------------------------------------------------------------------------

DIGITS = [
    (fn("numbers_whole", lambda t: re.findall(r" ?[A-Za-z]+| ?\d+| ?[^\sA-Za-z\d]|\s", t)), "number stays whole"),
    (fn("drops_spaces", lambda t: re.findall(r"[A-Za-z]+|\d|[^\sA-Za-z\d]", t)), "spaces are lost"),
    (fn("str_split", lambda t: t.split()), "spaces are lost"),
    (fn("split_on_space", lambda t: t.split(" ")), "spaces are lost"),
    (fn("space_behind", lambda t: re.findall(r"[A-Za-z]+ ?|\d ?|[^\sA-Za-z\d] ?|\s", t)), "in front of"),
    (fn("space_alone", lambda t: re.findall(r"[A-Za-z]+|\d|[^\sA-Za-z\d]|\s", t)), "piece of its own"),
    (fn("drops_marks", lambda t: re.findall(r" ?[A-Za-z]+| ?\d|\s", t)), "marks are lost"),
    (fn("drops_other_letters", lambda t: re.findall(r" ?[A-Za-z]+| ?\d| ?[?!.,:;]|\s", t)), "outside a to z"),
    (fn("characters", lambda t: list(t)), "Words fall apart"),
    (fn("marks_with_words", lambda t: re.findall(r" ?[^\s\d]+| ?\d|\s", t)), "mark clings"),
    (fn("digits_dropped", lambda t: re.findall(r" ?[A-Za-z]+| ?[^\sA-Za-z\d]|\s", t)), "digits are lost"),
    (fn("pairs_of_digits", lambda t: re.findall(r" ?[A-Za-z]+| ?\d{1,2}| ?[^\sA-Za-z\d]|\s", t)), "two at a time"),
    (fn("threes", lambda t: re.findall(r" ?[A-Za-z]+| ?\d{1,3}| ?[^\sA-Za-z\d]|\s", t)), "three at a time"),
    (fn("lower_case", lambda t: re.findall(r" ?[a-z]+| ?\d| ?[^\sa-z\d]|\s", t.lower())), "capitals"),
    (
        fn("marks_together", lambda t: re.findall(r" ?[A-Za-zÀ-ÿ写真]+| ?\d| ?[^\sA-Za-zÀ-ÿ写真\d]+|\s", t)),
        "Marks that follow",
    ),
]

# -- text.render_chat --------------------------------------------------------------------------------------------------


def chat(
    name,
    user="<|user|>{}",
    system="<|system|>{}",
    assistant="<|assistant|>{}<|end|>",
    join="",
    ask="<|assistant|>",
    when=lambda ms, on: on,
):
    forms = {"user": user, "system": system, "assistant": assistant}

    def render(messages, add_generation_prompt=False):
        text = join.join(forms[m["role"]].format(m["content"]) for m in messages)
        return text + (ask if when(messages, add_generation_prompt) else "")

    return fn(name, render)


def _no_default(messages, add_generation_prompt):
    return "".join(messages)


RENDER = [
    (chat("end_after_questions", user="<|user|>{}<|end|>"), "Questions end"),
    (chat("end_after_everything", user="<|user|>{}<|end|>", system="<|system|>{}<|end|>"), "Questions end"),
    (chat("no_end", assistant="<|assistant|>{}"), "No answer ends"),
    (chat("newlines", join="\n"), "newline"),
    (
        chat("newline_behind_role", user="<|user|>\n{}", system="<|system|>\n{}", assistant="<|assistant|>\n{}<|end|>"),
        "newline stands behind",
    ),
    (
        chat("space_behind_role", user="<|user|> {}", system="<|system|> {}", assistant="<|assistant|> {}<|end|>"),
        "space stands",
    ),
    (chat("ignores_the_flag", when=lambda ms, on: False), "ignored"),
    (chat("always_asks", when=lambda ms, on: True), "always stands"),
    (chat("flag_inverted", when=lambda ms, on: not on), "wrong way round"),
    (chat("asks_after_a_question", when=lambda ms, on: ms[-1]["role"] == "user"), "nobody asked for"),
    (chat("ask_as_user", ask="<|user|>"), "<|user|>"),
    (chat("no_system", system=""), "system message is left out"),
    (chat("system_as_user", system="<|user|>{}"), "system message is rendered as a question"),
    (
        chat(
            "chatml",
            user="<|im_start|>user\n{}<|im_end|>\n",
            system="<|im_start|>system\n{}<|im_end|>\n",
            assistant="<|im_start|>assistant\n{}<|im_end|>\n",
            ask="<|im_start|>assistant\n",
        ),
        "ChatML",
    ),
    (
        fn(
            "strips",
            lambda ms, add_generation_prompt=False: (
                "".join(f"<|{m['role']}|>{m['content'].strip()}" + "<|end|>" * (m["role"] == "assistant") for m in ms)
                + "<|assistant|>" * add_generation_prompt
            ),
        ),
        "strip",
    ),
    (
        fn(
            "strips_system",
            lambda ms, add_generation_prompt=False: (
                "".join(
                    f"<|{m['role']}|>{m['content'].strip() if m['role'] == 'system' else m['content']}"
                    + "<|end|>" * (m["role"] == "assistant")
                    for m in ms
                )
                + "<|assistant|>" * add_generation_prompt
            ),
        ),
        "strip",
    ),
    (
        fn(
            "skips_empty",
            lambda ms, add_generation_prompt=False: (
                "".join(
                    f"<|{m['role']}|>{m['content']}" + "<|end|>" * (m["role"] == "assistant")
                    for m in ms
                    if m["content"]
                )
                + "<|assistant|>" * add_generation_prompt
            ),
        ),
        "empty",
    ),
    (
        fn("list_of_parts", lambda ms, add_generation_prompt=False: [f"<|{m['role']}|>{m['content']}" for m in ms]),
        "expected a string",
    ),
    (
        fn(
            "first_turn",
            lambda ms, add_generation_prompt=False: (
                f"<|user|>{ms[0]['content']}<|assistant|>{ms[1]['content']}<|end|>"
                if len(ms) > 1
                else f"<|user|>{ms[0]['content']}<|assistant|>"
            ),
        ),
        "two messages",
    ),
    (
        fn(
            "escapes",
            lambda ms, add_generation_prompt=False: (
                "".join(
                    f"<|{m['role']}|>{html.escape(m['content'])}" + "<|end|>" * (m["role"] == "assistant") for m in ms
                )
                + "<|assistant|>" * add_generation_prompt
            ),
        ),
        "escape",
    ),
]

# -- text.image_placeholders -------------------------------------------------------------------------------------------


def _insert_at(ids, i, n, where):
    return [t for t in ids if t != i][:where] + [i] * (n * ids.count(i)) + [t for t in ids if t != i][where:]


PLACES = [
    (fn("one_more", lambda ids, i, n: [x for t in ids for x in [t] * (n + 1 if t == i else 1)]), "one place too many"),
    (fn("one_less", lambda ids, i, n: [x for t in ids for x in [t] * (n - 1 if t == i else 1)]), "one place too few"),
    (
        fn(
            "first_only",
            lambda ids, i, n: ids if i not in ids else ids[: ids.index(i)] + [i] * n + ids[ids.index(i) + 1 :],
        ),
        "first picture",
    ),
    (fn("raises_without", lambda ids, i, n: ids[: ids.index(i)] + [i] * n + ids[ids.index(i) + 1 :]), "index finds"),
    (fn("to_the_front", lambda ids, i, n: _insert_at(ids, i, n, 0)), "front"),
    (fn("to_the_end", lambda ids, i, n: [t for t in ids if t != i] + [i] * n * ids.count(i)), "end"),
    (fn("behind_the_first", lambda ids, i, n: _insert_at(ids, i, n, 1)), "second place"),
    (fn("nested", lambda ids, i, n: [[i] * n if t == i else t for t in ids]), "list inside the list"),
    (fn("every_token", lambda ids, i, n: [x for t in ids for x in [t] * n]), "Every token"),
    (fn("id_four", lambda ids, i, n: [x for t in ids for x in [t] * (n if t == 4 else 1)]), "built in"),
    (fn("sixteen", lambda ids, i, n: [x for t in ids for x in [t] * (16 if t == i else 1)]), "16"),
    (
        fn("counting_up", lambda ids, i, n: [x for t in ids for x in ([i + j for j in range(n)] if t == i else [t])]),
        "count up",
    ),
    (
        fn(
            "runs_are_one",
            lambda ids, i, n: [
                x
                for j, t in enumerate(ids)
                for x in ([i] * n if t == i and (j == 0 or ids[j - 1] != i) else [] if t == i else [t])
            ],
        ),
        "side by side",
    ),
    (fn("drops_pictures", lambda ids, i, n: [t for t in ids if t != i]), "removed"),
    (fn("zeros", lambda ids, i, n: [x for t in ids for x in ([i] + [0] * (n - 1) if t == i else [t])]), "0"),
    (
        fn(
            "in_place",
            lambda ids, i, n: (ids.__setitem__(slice(None), [x for t in ids for x in [t] * (n if t == i else 1)]), ids)[
                1
            ],
        ),
        "in place",
    ),
]

# -- text.safe_user_text -----------------------------------------------------------------------------------------------

NAMES = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|image|>", "<|system|>")
SPELLING = re.compile("(" + "|".join(map(re.escape, NAMES)) + ")")


def _safe(
    messages,
    special,
    encode,
    clean=lambda m: m["content"],
    skip=lambda m: False,
    parse=lambda m: False,
    end=lambda m: m["role"] == "assistant",
):
    ids = []
    for m in messages:
        if skip(m):
            continue
        ids.append(special[f"<|{m['role']}|>"])
        text = clean(m)
        if parse(m):
            for piece in SPELLING.split(text):
                ids += [special[piece]] if piece in special else encode(piece)
        else:
            ids += encode(text)
        if end(m):
            ids.append(special["<|end|>"])
    return ids


def safe(name, **more):
    return fn(name, lambda messages, special, encode: _safe(messages, special, encode, **more))


def whole_string(messages, special, encode):
    text = "".join(f"<|{m['role']}|>{m['content']}" + "<|end|>" * (m["role"] == "assistant") for m in messages)
    return [i for piece in SPELLING.split(text) for i in ([special[piece]] if piece in special else encode(piece))]


def everything_is_text(messages, special, encode):
    return encode("".join(f"<|{m['role']}|>{m['content']}" + "<|end|>" * (m["role"] == "assistant") for m in messages))


SAFE = [
    (whole_string, "unsafe way"),
    (everything_is_text, "template's own tokens"),
    (safe("broken_by_a_space", clean=lambda m: m["content"].replace("<|", "< |")), "space is put into"),
    (safe("deleted", clean=lambda m: SPELLING.sub("", m["content"])), "removed"),
    (safe("escaped", clean=lambda m: html.escape(m["content"])), "escape"),
    (safe("skips_empty", skip=lambda m: not m["content"]), "empty"),
    (safe("strips", clean=lambda m: m["content"].strip()), "strip"),
    (safe("parses_system", parse=lambda m: m["role"] == "system"), "system text"),
    (safe("parses_answers", parse=lambda m: m["role"] == "assistant"), "Questions are safe"),
    (safe("parses_questions", parse=lambda m: m["role"] == "user"), "Answers are safe"),
    (safe("no_end", end=lambda m: False), "No answer ends"),
    (safe("every_end", end=lambda m: True), "Every message ends"),
    (safe("nothing_but", parse=lambda m: m["content"] in NAMES), "exactly"),
    (safe("lower", clean=lambda m: m["content"].lower()), "lower case"),
    (safe("bars_dropped", clean=lambda m: m["content"].replace("|", "")), "| is dropped"),
    (
        fn("own_bytes", lambda ms, special, encode: _safe(ms, special, lambda t: [b + 6 for b in t.encode()])),
        "bytes are built in",
    ),
    (fn("own_table", lambda ms, special, encode: _safe(ms, {n: i for i, n in enumerate(NAMES)}, encode)), "built in"),
    (fn("nested", lambda ms, special, encode: _safe(ms, special, lambda t: [encode(t)])), "list inside the list"),
]

# -- text.build_labels -------------------------------------------------------------------------------------------------


def _labels(ids, a, e):
    labels, on = [], False
    for t in ids:
        labels.append(t if on else -100)
        on = True if t == a else on and t != e
    return labels


def _first(ids, a, e):
    start = ids.index(a) + 1
    stop = ids.index(e, start) + 1 if e in ids[start:] else len(ids)
    return [t if start <= i < stop else -100 for i, t in enumerate(ids)]


def _last(ids, a, e):
    start = len(ids) - ids[::-1].index(a)
    stop = ids.index(e, start) + 1 if e in ids[start:] else len(ids)
    return [t if start <= i < stop else -100 for i, t in enumerate(ids)]


def _runs_on(ids, a, e):
    on, labels = False, []
    for t in ids:
        labels.append(t if on else -100)
        on = on or t == a
    return labels


def _complete_only(ids, a, e):
    labels = _labels(ids, a, e)
    return labels if ids[-1] == e else [x if i < len(ids) - ids[::-1].index(a) else -100 for i, x in enumerate(labels)]


LABELS = [
    (fn("everything", lambda ids, a, e: list(ids)), "Every token"),
    (
        fn(
            "images_learned",
            lambda ids, a, e: [
                t if t == 4 or x != -100 else -100 for t, x in zip(ids, _labels(ids, a, e), strict=False)
            ],
        ),
        "image tokens",
    ),
    (
        fn(
            "questions_learned",
            lambda ids, a, e: [-100 if x != -100 else t for t, x in zip(ids, _labels(ids, a, e), strict=False)],
        ),
        "questions are supervised",
    ),
    (fn("all_but_special", lambda ids, a, e: [-100 if t in (2, 3, 4, 5, a) else t for t in ids]), "question"),
    (
        fn("no_end", lambda ids, a, e: [-100 if t == e else x for t, x in zip(ids, _labels(ids, a, e), strict=False)]),
        "end token is not supervised",
    ),
    (
        fn(
            "opening_too", lambda ids, a, e: [t if t == a else x for t, x in zip(ids, _labels(ids, a, e), strict=False)]
        ),
        "assistant's token is supervised",
    ),
    (fn("first_answer", _first), "first answer"),
    (fn("last_answer", _last), "last answer"),
    (fn("runs_on", _runs_on), "later questions"),
    (fn("complete_only", _complete_only), "cut off"),
    (fn("zeros", lambda ids, a, e: [0 if x == -100 else x for x in _labels(ids, a, e)]), "hold 0"),
    (fn("minus_one", lambda ids, a, e: [-1 if x == -100 else x for x in _labels(ids, a, e)]), "-1"),
    (fn("none", lambda ids, a, e: [None if x == -100 else x for x in _labels(ids, a, e)]), "None"),
    (fn("shifted", lambda ids, a, e: [*_labels(ids, a, e)[1:], -100]), "shifted already"),
    (fn("shifted_right", lambda ids, a, e: [-100, *_labels(ids, a, e)[:-1]]), "to the right"),
    (fn("bools", lambda ids, a, e: [x != -100 for x in _labels(ids, a, e)]), "True or False"),
    (fn("answers_only", lambda ids, a, e: [x for x in _labels(ids, a, e) if x != -100]), "as many labels as tokens"),
    (fn("ids_built_in", lambda ids, a, e: _labels(ids, 3, 1)), "built in"),
]

# -- text.test_labels --------------------------------------------------------------------------------------------------


def one_turn(build):
    assert build([2, 4, 9, 3, 7, 1], 3, 1) == [-100, -100, -100, -100, 7, 1]


def lengths_alone(build):
    assert len(build([2, 4, 9, 3, 7, 1, 2, 8, 3, 6, 1], 3, 1)) == 11


def asserts_nothing_here(build):
    build([2, 4, 9, 3, 7, 1], 3, 1)


def a_verdict(build):
    return build([2, 9, 3, 7, 1], 3, 1) == [-100, -100, -100, 7, 1]


def two_turns(build):
    assert build([2, 9, 3, 7, 1, 2, 8, 3, 6, 1], 3, 1) == [-100, -100, -100, 7, 1, -100, -100, -100, 6, 1]


def counts_alone(build):
    labels = build([2, 4, 9, 3, 7, 1, 2, 8, 3, 6, 1], 3, 1)
    assert sum(x != -100 for x in labels) == 4


def ends_learned(build):
    labels = build([2, 9, 3, 7, 1, 2, 8, 3, 6, 1], 3, 1)
    assert labels[4] == 1 and labels[9] == 1


def questions_masked(build):
    labels = build([2, 4, 9, 3, 7, 1, 2, 8, 3, 6, 1], 3, 1)
    assert labels[:4] == [-100] * 4 and labels[6:9] == [-100] * 3


def shifted_wanted(build):
    assert build([2, 9, 3, 7, 1], 3, 1) == [-100, -100, 7, 1, -100]


def wants_a_tensor(build):
    assert build([2, 9, 3, 7, 1], 3, 1).tolist() == [-100, -100, -100, 7, 1]


def nothing_cut(build):
    two_turns(build)
    one_turn(build)


def default_ids(build):
    assert build([2, 4, 9, 3, 7, 1, 2, 8, 3, 6], 3, 1) == [-100] * 4 + [7, 1] + [-100] * 3 + [6]


TEST_LABELS = [
    (one_turn, "What gets through"),
    (lengths_alone, "lengths alone"),
    (asserts_nothing_here, "asserts nothing"),
    (a_verdict, "AssertionError"),
    (two_turns, "What gets through"),
    (counts_alone, "What gets through"),
    (ends_learned, "What gets through"),
    (questions_masked, "What gets through"),
    (shifted_wanted, "build_labels that is right"),
    (wants_a_tensor, "build_labels that is right"),
    (nothing_cut, "What gets through"),
    (default_ids, "What gets through"),
]

# -- text.shift_once ---------------------------------------------------------------------------------------------------


def _shift(x, by=1, fill=-100):
    out = torch.full_like(x, fill)
    out[:, :-by] = x[:, by:]
    return out


def _shift_in_place(labels):
    labels[:, :-1] = labels[:, 1:].clone()
    labels[:, -1] = -100
    return labels


SHIFT = [
    (fn("twice", lambda x: _shift(_shift(x))), "twice"),
    (fn("by_two", lambda x: torch.cat([x[:, 2:], torch.full_like(x[:, :2], -100)], 1)), "twice"),
    (fn("never", lambda x: x.clone()), "Nothing has moved"),
    (fn("to_the_right", lambda x: torch.cat([torch.full_like(x[:, :1], -100), x[:, :-1]], 1)), "wrong way"),
    (fn("rolled", lambda x: x.roll(-1, 1)), "torch.roll"),
    (fn("rolled_flat", lambda x: x.roll(-1)), "row to row"),
    (fn("shorter", lambda x: x[:, 1:]), "one shorter"),
    (fn("shorter_at_the_end", lambda x: x[:, :-1]), "one shorter"),
    (fn("rows", lambda x: torch.cat([x[1:], torch.full_like(x[:1], -100)])), "Rows have moved"),
    (fn("last_kept", lambda x: torch.cat([x[:, 1:], x[:, -1:]], 1)), "last place keeps"),
    (fn("last_zero", lambda x: _shift(x, fill=0)), "holds 0"),
    (fn("last_minus_one", lambda x: _shift(x, fill=-1)), "-1"),
    (fn("first_at_the_end", lambda x: torch.cat([x[:, 1:], x[:, :1]], 1)), "torch.roll"),
    (fn("in_place", _shift_in_place), "in place"),
    (fn("a_list", lambda x: [[*row[1:], -100] for row in x.tolist()]), "expected a tensor"),
    (fn("floats", lambda x: _shift(x.float())), "float32"),
    (fn("plus_one", lambda x: torch.where(x == -100, x, x + 1)), "next id"),
    (fn("answers_moved_alone", lambda x: torch.where(_shift(x) == -100, x, _shift(x))), "stays where it was"),
]

# -- text.mend_supervised ----------------------------------------------------------------------------------------------


def _ids(out):
    return list(out["input_ids"]) if isinstance(out, dict) else list(out)


def as_it_was(messages, apply_template, prefix):
    flags = []
    for m in messages:
        n = len(apply_template([m]))
        flags += [m["role"] == "assistant" and place >= prefix for place in range(n)]
    return flags


def mend(name, learn):
    def answer(messages, apply_template, prefix):
        flags = []
        for m in messages:
            flags += learn(m, _ids(apply_template([m])), prefix)
        return flags

    return fn(name, answer)


def keeps_two(messages, apply_template, prefix):
    flags = []
    for m in messages:
        out = apply_template([m])
        n = len(out) if isinstance(out, list) else len(list(out.values()))
        flags += [m["role"] == "assistant" and place >= prefix for place in range(n)]
    return flags


def whole_at_once(messages, apply_template, prefix):
    return [place >= prefix for place in range(len(_ids(apply_template(messages))))]


def dict_only(messages, apply_template, prefix):
    flags = []
    for m in messages:
        n = len(apply_template([m])["input_ids"])
        flags += [m["role"] == "assistant" and place >= prefix for place in range(n)]
    return flags


def first_answer_only(messages, apply_template, prefix):
    flags, done = [], False
    for m in messages:
        n = len(_ids(apply_template([m])))
        learn = m["role"] == "assistant" and not done
        done = done or learn
        flags += [learn and place >= prefix for place in range(n)]
    return flags


def counts_values(messages, apply_template, prefix):
    flags = []
    for m in messages:
        out = apply_template([m])
        n = sum(map(len, out.values())) if isinstance(out, dict) else len(out)
        flags += [m["role"] == "assistant" and place >= prefix for place in range(n)]
    return flags


MEND = [
    (as_it_was, "code that was to be mended"),
    (keeps_two, "number of its keys"),
    (counts_values, "All lists of the dict"),
    (dict_only, "gives a list"),
    (whole_at_once, "conversation as a whole"),
    (first_answer_only, "first answer"),
    (
        mend("no_prefix", lambda m, ids, p: [m["role"] == "assistant"] * len(ids)),
        "beginning of the message is supervised",
    ),
    (
        mend("prefix_off_by_one", lambda m, ids, p: [m["role"] == "assistant" and i > p for i in range(len(ids))]),
        "first token of each answer",
    ),
    (
        mend("prefix_too_short", lambda m, ids, p: [m["role"] == "assistant" and i >= p - 1 for i in range(len(ids))]),
        "last token of the prefix",
    ),
    (
        mend("no_end", lambda m, ids, p: [m["role"] == "assistant" and p <= i < len(ids) - 1 for i in range(len(ids))]),
        "end of an answer",
    ),
    (mend("users_learned", lambda m, ids, p: [i >= p for i in range(len(ids))]), "questions"),
    (
        mend("roles_inverted", lambda m, ids, p: [m["role"] != "assistant" and i >= p for i in range(len(ids))]),
        "questions",
    ),
    (
        mend("prefix_three", lambda m, ids, p: [m["role"] == "assistant" and i >= 3 for i in range(len(ids))]),
        "built in",
    ),
    (
        mend(
            "ids_not_flags",
            lambda m, ids, p: [t if m["role"] == "assistant" and i >= p else -100 for i, t in enumerate(ids)],
        ),
        "flags",
    ),
]

# -- text.count_supervised ---------------------------------------------------------------------------------------------

COUNT = [
    (
        fn(
            "set_of_ids", lambda x, max_length=None: [len({t for t in r[:max_length].tolist() if t != -100}) for r in x]
        ),
        "different tokens",
    ),
    (fn("no_cut", lambda x, max_length=None: (x != -100).sum(1).tolist()), "max_length is ignored"),
    (fn("positive", lambda x, max_length=None: (x[:, :max_length] > 0).sum(1).tolist()), "compared with 0"),
    (fn("nonzero", lambda x, max_length=None: (x[:, :max_length] != 0).sum(1).tolist()), "compared with 0"),
    (fn("one_number", lambda x, max_length=None: int((x[:, :max_length] != -100).sum())), "one number"),
    (fn("ignored_ones", lambda x, max_length=None: (x[:, :max_length] == -100).sum(1).tolist()), "left out"),
    (fn("cuts_the_batch", lambda x, max_length=None: (x[:max_length] != -100).sum(1).tolist()), "cuts the batch"),
    (
        fn("keeps_the_end", lambda x, max_length=None: (x[:, -(max_length or 0) :] != -100).sum(1).tolist()),
        "keep the end",
    ),
    (fn("over_the_batch", lambda x, max_length=None: (x[:, :max_length] != -100).sum(0).tolist()), "each place"),
    (
        fn(
            "one_less",
            lambda x, max_length=None: (x[:, : None if max_length is None else max_length - 1] != -100).sum(1).tolist(),
        ),
        "one token too early",
    ),
    (
        fn(
            "one_more",
            lambda x, max_length=None: (x[:, : None if max_length is None else max_length + 1] != -100).sum(1).tolist(),
        ),
        "one token too late",
    ),
    (fn("shares", lambda x, max_length=None: (x[:, :max_length] != -100).float().mean(1).tolist()), "share"),
    (fn("bools", lambda x, max_length=None: (x[:, :max_length] != -100).any(1).tolist()), "True or False"),
    (fn("a_tensor", lambda x, max_length=None: (x[:, :max_length] != -100).sum(1)), "expected a list"),
    (fn("floats", lambda x, max_length=None: (x[:, :max_length] != -100).float().sum(1).tolist()), "whole number"),
    (fn("sum_of_ids", lambda x, max_length=None: x[:, :max_length].clamp(min=0).sum(1).tolist()), "ids are added"),
]

# -- text.measure_fertility --------------------------------------------------------------------------------------------


def fertility(name, one):
    return fn(name, lambda encode, texts: {k: one(encode, v) for k, v in texts.items()})


def _all(encode, texts):
    everything = [t for v in texts.values() for t in v]
    return sum(len(encode(t)) for t in everything) / sum(map(len, everything))


MEASURE = [
    (fertility("mean_of_ratios", lambda e, v: sum(len(e(t)) / len(t) for t in v) / len(v)), "mean of ratios"),
    (fertility("per_byte", lambda e, v: sum(len(e(t)) for t in v) / sum(len(t.encode()) for t in v)), "bytes"),
    (fertility("upside_down", lambda e, v: sum(map(len, v)) / sum(len(e(t)) for t in v)), "upside down"),
    (fertility("per_word", lambda e, v: sum(len(e(t)) for t in v) / sum(len(t.split()) for t in v)), "word"),
    (fertility("per_text", lambda e, v: sum(len(e(t)) for t in v) / len(v)), "for each text"),
    (fertility("first_text", lambda e, v: len(e(v[0])) / len(v[0])), "first text"),
    (
        fertility("different_tokens", lambda e, v: len({i for t in v for i in e(t)}) / sum(map(len, v))),
        "different tokens",
    ),
    (
        fertility("no_spaces", lambda e, v: sum(len(e(t)) for t in v) / sum(len(t.replace(" ", "")) for t in v)),
        "spaces",
    ),
    (fertility("joined", lambda e, v: len(e(" ".join(v))) / len(" ".join(v))), "joined"),
    (fertility("rounded", lambda e, v: round(sum(len(e(t)) for t in v) / sum(map(len, v)))), "rounded"),
    (fertility("whole_division", lambda e, v: sum(len(e(t)) for t in v) // sum(map(len, v))), "//"),
    (fertility("counts", lambda e, v: sum(len(e(t)) for t in v)), "Divide"),
    (fn("one_number", _all), "one number for all"),
    (
        fn("a_list", lambda e, texts: [sum(len(e(t)) for t in v) / sum(map(len, v)) for v in texts.values()]),
        "expected a dict",
    ),
    (fertility("largest", lambda e, v: max(len(e(t)) / len(t) for t in v)), "largest"),
]

for _test, _ in TEST_LABELS:
    _test.__test__ = False  # pytest would take these for tests of ours

WRONG = {
    "text.bpe_step": BPE,
    "text.split_digits": DIGITS,
    "text.render_chat": RENDER,
    "text.image_placeholders": PLACES,
    "text.safe_user_text": SAFE,
    "text.build_labels": LABELS,
    "text.test_labels": TEST_LABELS,
    "text.shift_once": SHIFT,
    "text.mend_supervised": MEND,
    "text.count_supervised": COUNT,
    "text.measure_fertility": MEASURE,
}
