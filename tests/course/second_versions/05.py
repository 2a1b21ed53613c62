"""Chapter 05 once more, written in other ways."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from functools import reduce
from itertools import accumulate, chain, groupby, pairwise, takewhile

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def bpe_step(words: list[list[str]]) -> list[list[str]]:
    """Two passes over each word: count in a dict by hand, then glue into a growing stack."""
    counts: dict[tuple[str, str], int] = {}
    for word in words:
        for i in range(1, len(word)):
            pair = (word[i - 1], word[i])
            counts[pair] = counts.get(pair, 0) + 1
    best, most = (None, None), 0
    for pair, number in counts.items():
        if number > most:
            best, most = pair, number
    out = []
    for word in words:
        stack: list[str] = []
        glued = True  # whether the top of the stack is used up
        for token in word:
            if not glued and (stack[-1], token) == best:
                stack[-1] += token
                glued = True
            else:
                stack.append(token)
                glued = False
        out.append(stack)
    return out


TEMPLATE = {"user": "<|user|>{}", "system": "<|system|>{}", "assistant": "<|assistant|>{}<|end|>"}


def render_chat(messages, add_generation_prompt=False) -> str:
    """One form for each role."""
    parts = [TEMPLATE[m["role"]].format(m["content"]) for m in messages]
    return "".join([*parts, *["<|assistant|>"][: int(add_generation_prompt)]])


def expand_placeholders(ids, image_token_id, num_image_tokens):
    """torch repeats each element as often as it is told."""
    line = torch.tensor(ids)
    times = torch.where(line == image_token_id, num_image_tokens, 1)
    return line.repeat_interleave(times).tolist()


def encode_chat(messages, special, encode):
    """A list of lists, then one."""
    pieces = [
        [[special["<|" + m["role"] + "|>"]], encode(m["content"]), [special["<|end|>"]] * (m["role"] == "assistant")]
        for m in messages
    ]
    return list(chain.from_iterable(chain.from_iterable(pieces)))


def build_labels(ids, assistant_id, end_id):
    """An answer is open where, before this token, more answers have begun than ended."""
    state = accumulate(ids, lambda on, t: True if t == assistant_id else (on and t != end_id), initial=False)
    return [token if on else -100 for token, on in zip(ids, state, strict=False)]


def shift_once(labels: Tensor) -> Tensor:
    """Append a column, drop the first."""
    nothing = labels.new_full((len(labels), 1), -100)
    return torch.cat([labels, nothing], dim=1)[:, 1:]


def count_supervised(labels, max_length=None):
    rows = (row if max_length is None else row[:max_length] for row in labels.tolist())
    return [len(row) - row.count(-100) for row in rows]


# -- text.bpe_step -----------------------------------------------------------------------------------------------------


def bpe_by_deletion(words):
    counts = Counter(chain.from_iterable(pairwise(word) for word in words))
    if not counts:
        return [list(word) for word in words]
    (first, second), _ = counts.most_common(1)[0]
    out = []
    for word in words:
        tokens, i = list(word), 0
        while i < len(tokens) - 1:
            if tokens[i] == first and tokens[i + 1] == second:
                tokens[i] += tokens.pop(i + 1)
            i += 1
        out.append(tokens)
    return out


def bpe_by_reduce(words):
    counts = defaultdict(int)
    for word in words:
        for pair in pairwise(word):
            counts[pair] += 1
    best = sorted(counts, key=lambda pair: -counts[pair])[:1]

    def add(done, token):
        last, used = done[-1] if done else (None, True)
        if not used and [(last, token)] == best:
            return [*done[:-1], (last + token, True)]
        return [*done, (token, False)]

    return [[token for token, _ in reduce(add, word, [])] for word in words]


def bpe_recursive(words):
    counts = Counter(p for w in words for p in pairwise(w))
    best = max(counts.items(), key=lambda item: item[1])[0] if counts else None

    def glue(word):
        if len(word) < 2:
            return list(word)
        return [word[0] + word[1], *glue(word[2:])] if (word[0], word[1]) == best else [word[0], *glue(word[1:])]

    return [glue(word) for word in words]


def bpe_by_places(words):
    counts = Counter()
    for word in words:
        counts.update(pairwise(word))
    best = max(counts, key=counts.get) if counts else ()
    out = []
    for word in words:
        cut, i = [], 0
        while i < len(word):
            cut.append(i)
            i += 1 + (tuple(word[i : i + 2]) == best)
        out.append(tuple("".join(word[a:b]) for a, b in pairwise([*cut, len(word)])))
    return out


# -- text.split_digits -------------------------------------------------------------------------------------------------


def digits_by_hand(text):
    pieces, i = [], 0
    while i < len(text):
        start = i
        if text[i] == " " and i + 1 < len(text) and not text[i + 1].isspace():
            i += 1
        if text[i].isalpha():
            while i < len(text) and text[i].isalpha():
                i += 1
        else:
            i += 1
        pieces.append(text[start:i])
    return pieces


def digits_by_groups(text):
    """Runs of letters, single others; then each space moves to what follows it."""
    units = []
    for letters, run in groupby(text, str.isalpha):
        part = "".join(run)
        units += [part] if letters else list(part)
    out = []
    for unit in units:
        if out and out[-1] == " " and not unit.isspace():
            out[-1] += unit
        else:
            out.append(unit)
    return out


def digits_by_marks(text):
    marked = re.sub(r"( ?)(\d|[^\w\s]|_)", "\x00\\1\\2\x00", text)
    out = []
    for part in marked.split("\x00"):
        while part:
            word = re.match(r" ?[^\W\d_]+", part)
            cut = word.end() if word else 2 if part[0] == " " and len(part) > 1 and not part[1].isspace() else 1
            out.append(part[:cut])
            part = part[cut:]
    return out


def digits_by_finditer(text):
    return [m.group() for m in re.finditer(r"\s(?=\s|$)|[^\S ]| ?(?:[^\W\d_]+|\S)", text)]


def digits_recursive(text):
    if not text:
        return []
    space = " " if text[0] == " " and text[1:2].strip() else ""
    rest = text[len(space) :]
    word = "".join(takewhile(str.isalpha, rest)) or rest[0]
    return [space + word, *digits_recursive(rest[len(word) :])]


# -- text.render_chat --------------------------------------------------------------------------------------------------


def chat_by_jinja(messages, add_generation_prompt=False):
    import jinja2

    form = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
        "{% if m.role == 'assistant' %}<|end|>{% endif %}{% endfor %}{% if ask %}<|assistant|>{% endif %}"
    )
    return (
        jinja2.Environment(keep_trailing_newline=True)
        .from_string(form)
        .render(messages=messages, ask=add_generation_prompt)
    )


def chat_by_reduce(messages, add_generation_prompt=False):
    ends = {"assistant": "<|end|>"}
    text = reduce(lambda t, m: t + "<|%s|>%s%s" % (m["role"], m["content"], ends.get(m["role"], "")), messages, "")  # noqa: UP031
    return text + ("<|assistant|>" if add_generation_prompt else "")


def chat_by_match(messages, add_generation_prompt=False):
    text = ""
    for message in messages:
        match message:
            case {"role": "assistant", "content": content}:
                text += "<|assistant|>" + content + "<|end|>"
            case {"role": role, "content": content}:
                text += "<|" + role + "|>" + content
    if add_generation_prompt:
        text += "<|assistant|>"
    return text


def chat_with_an_open_turn(messages, add_generation_prompt=False):
    turns = [*messages, {"role": "assistant", "content": None}] if add_generation_prompt else messages
    pieces = []
    for turn in turns:
        pieces += ["<|", turn["role"], "|>"]
        if turn["content"] is not None:
            pieces += [turn["content"], "<|end|>" if turn["role"] == "assistant" else ""]
    return "".join(pieces)


# -- text.image_placeholders -------------------------------------------------------------------------------------------


def places_backwards(ids, image_token_id, num_image_tokens):
    out = list(ids)
    for i in reversed(range(len(out))):
        if out[i] == image_token_id:
            out[i : i + 1] = [image_token_id] * num_image_tokens
    return out


def places_by_chain(ids, image_token_id, num_image_tokens):
    return list(chain.from_iterable((t,) * (num_image_tokens if t == image_token_id else 1) for t in ids))


def places_by_numpy(ids, image_token_id, num_image_tokens):
    line = np.array(ids)
    return np.repeat(line, np.where(line == image_token_id, num_image_tokens, 1)).tolist()


def places_as_a_tuple(ids, image_token_id, num_image_tokens):
    return tuple(t for t in ids for _ in range(num_image_tokens if t == image_token_id else 1))


# -- text.safe_user_text -----------------------------------------------------------------------------------------------


def safe_by_sum(messages, special, encode):
    def one(message):
        end = [special["<|end|>"]] if message["role"] == "assistant" else []
        return [special[f"<|{message['role']}|>"], *encode(message["content"]), *end]

    return reduce(lambda done, message: [*done, *one(message)], messages, [])


def safe_by_generator(messages, special, encode):
    def tokens():
        for message in messages:
            yield special["<|{}|>".format(message["role"])]
            yield from encode(message["content"])
            if message["role"] == "assistant":
                yield special["<|end|>"]

    return list(tokens())


def safe_by_table(messages, special, encode):
    opens = {role: special[f"<|{role}|>"] for role in ("user", "assistant", "system")}
    closes = {"assistant": (special["<|end|>"],)}
    ids = ()
    for m in messages:
        ids += (opens[m["role"]], *encode(m["content"]), *closes.get(m["role"], ()))
    return ids


def safe_by_pieces(messages, special, encode):
    """Pieces that say what they are; turned into ids at the end."""
    pieces = []
    for m in messages:
        pieces += [("special", f"<|{m['role']}|>"), ("text", m["content"])]
        pieces += [("special", "<|end|>")] * (m["role"] == "assistant")
    return [i for what, text in pieces for i in ([special[text]] if what == "special" else encode(text))]


# -- text.build_labels -------------------------------------------------------------------------------------------------


def labels_by_index(ids, assistant_id, end_id):
    labels, start = [-100] * len(ids), 0
    while assistant_id in ids[start:]:
        start = ids.index(assistant_id, start) + 1
        stop = ids.index(end_id, start) + 1 if end_id in ids[start:] else len(ids)
        labels[start:stop] = ids[start:stop]
        start = stop
    return labels


def labels_by_last_seen(ids, assistant_id, end_id):
    out = []
    for i, token in enumerate(ids):
        before = [t for t in ids[:i] if t in (assistant_id, end_id)]
        out.append(token if before and before[-1] == assistant_id else -100)
    return out


def labels_by_tensor(ids, assistant_id, end_id):
    line = torch.tensor(ids)
    opened = (line == assistant_id).cumsum(0) - (line == assistant_id).long()
    ended = (line == end_id).cumsum(0) - (line == end_id).long()
    return torch.where(opened > ended, line, -100).tolist()


def labels_as_a_tuple(ids, assistant_id, end_id):
    on, out = False, ()
    for token in ids:
        out = (*out, token if on else -100)
        if token in (assistant_id, end_id):
            on = token == assistant_id
    return out


# -- text.test_labels --------------------------------------------------------------------------------------------------


def check_by_parts(build):
    ids = [20, 4, 9, 11, 0, 12, 20, 9, 11, 5, 6]
    labels = build(ids, 11, 12)
    assert len(labels) == len(ids)
    for place, (token, label) in enumerate(zip(ids, labels, strict=True)):
        assert label == (token if place in (4, 5, 9, 10) else -100)


def check_by_random(build):
    for cut in (False, True):
        ids = [7, 30, 31, 8, 0, 40, 9, 7, 32, 8, 41, *([] if cut else [9])]
        want = [-100] * 4 + [0, 40, 9] + [-100] * 3 + [41, *([] if cut else [9])]
        if list(build(list(ids), 8, 9)) != want:
            raise AssertionError(f"cut: {cut}")


check_by_parts.__test__ = check_by_random.__test__ = False

# -- text.shift_once ---------------------------------------------------------------------------------------------------


def shift_by_pad(labels):
    return F.pad(labels[:, 1:], (0, 1), value=-100)


def shift_by_loop(labels):
    return torch.tensor([[*row[1:], -100] for row in labels.tolist()])


def shift_by_roll(labels):
    out = labels.roll(-1, dims=1)
    out[:, -1] = -100
    return out


def shift_by_gather(labels):
    wide = torch.cat([labels, torch.full((labels.shape[0], 1), -100)], dim=1)
    index = torch.arange(1, labels.shape[1] + 1).expand_as(labels)
    return wide.gather(1, index)


# -- text.mend_supervised ----------------------------------------------------------------------------------------------


def mended_by_get(messages, apply_template, prefix):
    flags = []
    for m in messages:
        out = apply_template([m])
        ids = out.get("input_ids") if hasattr(out, "get") else out
        flags.extend(m["role"] == "assistant" and i >= prefix for i in range(len(ids)))
    return flags


def mended_by_slices(messages, apply_template, prefix):
    flags = []
    for m in messages:
        out = apply_template([m])
        length = len(out["input_ids"] if isinstance(out, dict) else out)
        learn = m["role"] == "assistant"
        flags += [False] * prefix + [learn] * (length - prefix)
    return flags


def mended_by_growth(messages, apply_template, prefix):
    """Renders longer and longer beginnings."""

    def length(n):
        out = apply_template(messages[:n])
        return len(out["input_ids"]) if isinstance(out, dict) else len(out)

    flags = [False] * length(len(messages))
    for n, m in enumerate(messages):
        if m["role"] == "assistant":
            for place in range(length(n) + prefix, length(n + 1)):
                flags[place] = True
    return flags


def mended_as_a_tuple(messages, apply_template, prefix):
    def ids(m):
        try:
            return apply_template([m])["input_ids"]
        except TypeError:
            return apply_template([m])

    return tuple(m["role"] == "assistant" and i >= prefix for m in messages for i, _ in enumerate(ids(m)))


def mended_by_tensor(messages, apply_template, prefix):
    parts = []
    for m in messages:
        out = apply_template([m])
        ids = torch.as_tensor(out["input_ids"] if isinstance(out, dict) else out)
        parts.append((torch.arange(len(ids)) >= prefix) & (m["role"] == "assistant"))
    return torch.cat(parts).tolist()


# -- text.count_supervised ---------------------------------------------------------------------------------------------


def count_by_numpy(labels, max_length=None):
    return np.count_nonzero(labels.numpy()[:, :max_length] + 100, axis=1).tolist()


def count_by_tuple(labels, max_length=None):
    return tuple(int((row[:max_length] != -100).sum()) for row in labels)


def count_by_position(labels, max_length=None):
    kept = torch.arange(labels.shape[1]) < (labels.shape[1] if max_length is None else max_length)
    return [int(n) for n in ((labels != -100) & kept).sum(-1)]


def count_by_ne(labels, max_length=None):
    cut = labels if max_length is None else labels.narrow(1, 0, min(max_length, labels.shape[1]))
    return torch.count_nonzero(cut.ne(-100), dim=1).tolist()


# -- text.measure_fertility --------------------------------------------------------------------------------------------


def fertility_by_loop(encode, texts):
    out = {}
    for name in texts:
        tokens = characters = 0
        for text in texts[name]:
            tokens += len(encode(text))
            characters += len(text)
        out[name] = tokens / characters
    return out


def fertility_by_numpy(encode, texts):
    return {k: float(np.sum([len(encode(t)) for t in v]) / np.sum([len(t) for t in v])) for k, v in texts.items()}


def fertility_by_join(encode, texts):
    return {k: sum(len(encode(t)) for t in v) / len("".join(v)) for k, v in texts.items()}


def fertility_by_weights(encode, texts):
    """A mean of ratios, weighted by length."""
    return {k: sum(len(t) * (len(encode(t)) / len(t)) for t in v) / sum(len(t) for t in v) for k, v in texts.items()}


def fertility_by_tensor(encode, texts):
    counts = {k: torch.tensor([[len(encode(t)), len(t)] for t in v]).sum(0) for k, v in texts.items()}
    return {k: (c[0] / c[1]).item() for k, c in counts.items()}


VERSIONS = {
    "text.bpe_step": (bpe_step, bpe_by_deletion, bpe_by_reduce, bpe_recursive, bpe_by_places),
    "text.split_digits": (digits_by_hand, digits_by_groups, digits_by_marks, digits_by_finditer, digits_recursive),
    "text.render_chat": (render_chat, chat_by_jinja, chat_by_reduce, chat_by_match, chat_with_an_open_turn),
    "text.image_placeholders": (
        expand_placeholders,
        places_backwards,
        places_by_chain,
        places_by_numpy,
        places_as_a_tuple,
    ),
    "text.safe_user_text": (encode_chat, safe_by_sum, safe_by_generator, safe_by_table, safe_by_pieces),
    "text.build_labels": (build_labels, labels_by_index, labels_by_last_seen, labels_by_tensor, labels_as_a_tuple),
    "text.test_labels": (check_by_parts, check_by_random),
    "text.shift_once": (shift_once, shift_by_pad, shift_by_loop, shift_by_roll, shift_by_gather),
    "text.mend_supervised": (
        mended_by_get,
        mended_by_slices,
        mended_by_growth,
        mended_as_a_tuple,
        mended_by_tensor,
    ),
    "text.count_supervised": (count_supervised, count_by_numpy, count_by_tuple, count_by_position, count_by_ne),
    "text.measure_fertility": (
        fertility_by_loop,
        fertility_by_numpy,
        fertility_by_join,
        fertility_by_weights,
        fertility_by_tensor,
    ),
}
