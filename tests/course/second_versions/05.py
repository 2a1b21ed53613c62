"""Chapter 05 once more, written another way."""

from __future__ import annotations

from itertools import accumulate, chain

import torch
from torch import Tensor


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


VERSIONS = {
    "text.bpe_step": bpe_step,
    "text.render_chat": render_chat,
    "text.image_placeholders": expand_placeholders,
    "text.safe_user_text": encode_chat,
    "text.build_labels": build_labels,
    "text.shift_once": shift_once,
    "text.count_supervised": count_supervised,
}
