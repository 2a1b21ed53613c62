"""Rules for torch's layers that are more than one step: recurrent ones, their cells, attention, transformers.

They look at the layer's own call, which the learner wrote; the step inside that failed has other names and shapes.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from nanovlm.trace.explain.failed_call import Advice, FailedCall, shape
from nanovlm.trace.rows import TensorInfo


def wants_a_tensor(call: FailedCall) -> Advice | None:
    """A layer that is given another one's whole tuple, as an LSTM returns it."""
    given = call.value(0, "input")
    if "must be Tensor, not tuple" not in call.said or not isinstance(given, tuple) or not given:
        return None
    text, first, wanted = call.text(0, "input"), given[0], (call.row.settings or {}).get("in_features")
    if not isinstance(first, TensorInfo):
        return None
    wrong = (
        f"{text} is a tuple of {len(given)}, of which the first is {shape(first.shape)}, but {call.layer_name} takes "
    )
    fits = wanted is None or wanted == first.shape[-1]
    return Advice(wrong + "one tensor.", f"take the first: {text}[0]." if fits and call.is_named else None)


def recurrent(call: FailedCall) -> Advice | None:
    """nn.LSTM, nn.GRU, nn.RNN."""
    x, built = call.info(0, "input"), call.row.settings or {}
    if x is None or "input_size" not in built:
        return None
    text, size, batch_first = call.text(0, "input"), built["input_size"], built.get("batch_first")
    kind = (call.row.cls or "").rpartition(".")[2]
    order = "[B, T, " if batch_first else "[T, B, "
    have = f"{text} is {shape(x.shape)}"
    if x.ndim not in (2, 3):
        wrong = f"{have}: {x.ndim} dims, but {call.layer_name} takes {order}{size}]."
        if x.ndim == 4 and x.shape[1] == size:
            how = ".flatten(2).transpose(1, 2)" if batch_first else ".flatten(2).permute(2, 0, 1)"
            return Advice(wrong, f"each place of the picture as a step of the sequence: {text}{how}.")
        return Advice(wrong)
    if x.shape[-1] != size:
        wrong = f"{have}: its last dim is {x.shape[-1]}, but {call.layer_name} was built with input_size = {size}."
        if x.ndim == 3 and x.shape[1] == size:
            return Advice(wrong, f"dim 1 has that size: {text}.transpose(1, 2).")
        rest = f"nn.{kind}({x.shape[-1]}, {built.get('hidden_size')}, …)"
        return Advice(wrong, f"build it as {rest}, or bring the last dim of {text} to {size}.")
    match = re.search(r"Expected hidden.*size \(([\d, ]+)\), got \[([\d, ]+)\]", call.said)
    if match is None:
        return None
    wanted, got = ([int(part) for part in group.split(",") if part.strip()] for group in match.groups())
    states = [(t, i) for t, i in call.operands() if list(i.shape) == got]
    name = states[0][0] if states else "the state"
    wrong = f"{have} and {name} is {shape(got)}, but for this input {call.layer_name} needs a state of {shape(wanted)}."
    if x.ndim == 3 and len(got) == 3 and not batch_first and got[1] == x.shape[0] != x.shape[1]:
        fix = f"if the batch stands first in {text}, build it with batch_first=True, or pass {text}.transpose(0, 1)."
        return Advice(wrong, fix)
    return Advice(wrong, f"give a state of {shape(wanted)}: layers x directions, batch, hidden_size.")


def cell(call: FailedCall) -> Advice | None:
    """nn.LSTMCell, nn.GRUCell, nn.RNNCell."""
    x, built = call.info(0, "input"), call.row.settings or {}
    if x is None or "input_size" not in built:
        return None
    text, size, hidden = call.text(0, "input"), built["input_size"], built["hidden_size"]
    kind = (call.row.cls or "").rpartition(".")[2]
    if x.shape[-1] != size:
        wrong = f"{text} is {shape(x.shape)}: its last dim is {x.shape[-1]}, but {call.layer_name} was built with "
        fix = f"build it as nn.{kind}({x.shape[-1]}, {hidden}), or bring the last dim of {text} to {size}."
        return Advice(wrong + f"input_size = {size}.", fix)
    wanted = (*x.shape[:-1], hidden)
    for name, state in call.operands():
        if state.uid == x.uid or state.shape == wanted:
            continue
        both = f"{text} is {shape(x.shape)} and {name} is {shape(state.shape)}"
        if state.shape[-1:] != (hidden,):
            wrong = f"{both}: its last dim is {state.shape[-1]}, but {call.layer_name} was built with hidden_size = "
            fix = f"build it as nn.{kind}({size}, {state.shape[-1]}), or give a state of {shape(wanted)}."
            return Advice(f"{wrong}{hidden}.", fix)
        return Advice(f"{both}: one state for each row of the input.", f"give a state of {shape(wanted)}.")
    return None


class _Takes(NamedTuple):
    """Where a layer's arguments stand: sequences, masks [queries, keys] and paddings [B, tokens] of which sequences."""

    sequences: tuple[tuple[int, str], ...]
    masks: tuple[tuple[int, str, int, int], ...]
    paddings: tuple[tuple[int, str, int], ...]


_ENCODER, _DECODER = ((0, "src"),), ((0, "tgt"), (1, "memory"))
_DECODER_MASKS = ((2, "tgt_mask", 0, 0), (3, "memory_mask", 0, 1))
_DECODER_PADDINGS = ((4, "tgt_key_padding_mask", 0), (5, "memory_key_padding_mask", 1))
_TAKES = {
    "MultiheadAttention": _Takes(
        ((0, "query"), (1, "key"), (2, "value")), ((5, "attn_mask", 0, 1),), ((3, "key_padding_mask", 1),)
    ),
    "Transformer": _Takes(
        ((0, "src"), (1, "tgt")),
        ((2, "src_mask", 0, 0), (3, "tgt_mask", 1, 1), (4, "memory_mask", 1, 0)),
        ((5, "src_key_padding_mask", 0), (6, "tgt_key_padding_mask", 1), (7, "memory_key_padding_mask", 0)),
    ),
    "TransformerEncoder": _Takes(_ENCODER, ((1, "mask", 0, 0),), ((2, "src_key_padding_mask", 0),)),
    "TransformerEncoderLayer": _Takes(_ENCODER, ((1, "src_mask", 0, 0),), ((2, "src_key_padding_mask", 0),)),
    "TransformerDecoder": _Takes(_DECODER, _DECODER_MASKS, _DECODER_PADDINGS),
    "TransformerDecoderLayer": _Takes(_DECODER, _DECODER_MASKS, _DECODER_PADDINGS),
}


def attends(call: FailedCall) -> Advice | None:
    """nn.MultiheadAttention, nn.Transformer and its parts: widths, batches, masks."""
    kind, built = (call.row.cls or "").rpartition(".")[2], call.row.settings or {}
    takes = _TAKES[kind]
    found = [(call.text(i, name), call.info(i, name)) for i, name in takes.sequences]
    given = [(text, info) for text, info in found if info is not None]
    width = built.get("d_model", built.get("embed_dim"))
    if len(given) < len(found) or width is None or any(info.ndim not in (2, 3) for _, info in given):
        return None
    return (
        _widths(call, kind, built, width, given)
        or _batches(call, kind, built, given)
        or _masks(call, takes, built, given)
    )


def _widths(call: FailedCall, kind: str, built: dict[str, Any], width: int, given: list) -> Advice | None:
    for i, (text, info) in enumerate(given):
        named = "d_model" if kind.startswith("Transformer") else "kdim" if i == 1 else "embed_dim"
        wanted = built.get("kdim") or width if named == "kdim" else width
        if (i == 2 and kind == "MultiheadAttention") or info.shape[-1] == wanted:
            continue
        got = info.shape[-1]
        wrong = f"{text} is {shape(info.shape)}: its last dim is {got}, but {call.layer_name} was built with "
        project = f"project it first: nn.Linear({got}, {wanted}) on {text}"
        others = all(other.shape[-1] == got for _, other in given)
        heads = built.get("nhead", built.get("num_heads", 1))
        if named == "kdim":
            return Advice(f"{wrong}kdim = {wanted}.", f"build it with kdim={got}, vdim={got}, or {project}.")
        build = f"nn.MultiheadAttention({got}, …)" if named == "embed_dim" else f"d_model={got}"
        also = f", or build it as {build}" if others and got % heads == 0 else ""
        return Advice(f"{wrong}{named} = {wanted}.", f"{project}{also}.")
    return None


def _batches(call: FailedCall, kind: str, built: dict[str, Any], given: list) -> Advice | None:
    if kind == "MultiheadAttention" and given[1][1].shape[:-1] != given[2][1].shape[:-1]:
        (key, k), (value, v) = given[1:]
        return Advice(f"the key {key} is {shape(k.shape)} and the value {value} is {shape(v.shape)}: one for each key.")
    at = 0 if built.get("batch_first") else 1
    (a, left), (b, right) = given[0], given[min(1, len(given) - 1)]
    if left.ndim != 3 or right.ndim != 3 or left.shape[at] == right.shape[at]:
        return None
    wrong = (
        f"{a} is {shape(left.shape)} and {b} is {shape(right.shape)}: {call.layer_name} takes dim {at} for the batch, "
        f"and that is {left.shape[at]} against {right.shape[at]}."
    )
    fits = at == 1 and left.shape[0] == right.shape[0]
    return Advice(wrong, "dim 0 is the same in both: build it with batch_first=True." if fits else None)


def _masks(call: FailedCall, takes: _Takes, built: dict[str, Any], given: list) -> Advice | None:
    at = 0 if built.get("batch_first") else 1
    heads = built.get("nhead", built.get("num_heads", 1))
    for position, name, queries, keys in takes.masks:
        mask, (a, q), (_, k) = call.info(position, name), given[queries], given[keys]
        if mask is None or q.ndim != 3 or k.ndim != 3:
            continue
        scores = (q.shape[1 - at], k.shape[1 - at])
        batched = (q.shape[at] * heads, *scores)
        if mask.shape in (scores, batched):
            continue
        text = call.text(position, name)
        wrong = (
            f"{text} is {shape(mask.shape)}, but with {a} {shape(q.shape)} {call.layer_name} takes as its {name} "
            f"{shape(scores)}, or {shape(batched)} with one for each head."
        )
        if at == 1 and mask.shape == (q.shape[at], k.shape[at]):
            return Advice(wrong, f"it fits if the batch stands first in {a}: build it with batch_first=True.")
        if mask.shape == (q.shape[at], *scores):
            return Advice(wrong, f"the same for all heads: {text}.repeat_interleave({heads}, dim=0).")
        if mask.ndim == 2 and mask.shape[0] == mask.shape[1] and scores[0] == scores[1]:
            causal = f", for a causal one nn.Transformer.generate_square_subsequent_mask({scores[0]})"
            return Advice(wrong, f"make it for {scores[0]} tokens: {shape(scores)}{causal}.")
        return Advice(wrong)
    for position, name, sequence in takes.paddings:
        mask, (a, x) = call.info(position, name), given[sequence]
        if mask is None or x.ndim != 3:
            continue
        wanted = (x.shape[at], x.shape[1 - at])
        if mask.shape == wanted:
            continue
        text = call.text(position, name)
        wrong = (
            f"{a} is {shape(x.shape)} and {text} is {shape(mask.shape)}, but {call.layer_name} takes as its {name} "
            f"{shape(wanted)}: the batch and its tokens."
        )
        if at == 1 and mask.shape == x.shape[:2] and len({other.shape[0] for _, other in given}) == 1:
            other = f"or, if it stands second, pass {text}.transpose(0, 1)"
            return Advice(wrong, f"if the batch stands first, build it with batch_first=True; {other}.")
        if mask.shape == wanted[::-1]:
            return Advice(wrong, f"it lies the other way: {text}.transpose(0, 1).")
        return Advice(wrong)
    return None


def batch_norm(call: FailedCall) -> Advice | None:
    """nn.BatchNorm1d, 2d and 3d, given another number of dims."""
    x, features = call.info(0, "input"), (call.row.settings or {}).get("num_features")
    match = re.match(r"expected ([\d]D(?: or [\d]D)?) input", call.said)
    if x is None or match is None:
        return None
    wrong = f"{call.text(0, 'input')} is {shape(x.shape)}: {x.ndim} dims, but {call.layer_name} takes "
    wrong += match[1].replace("D", "") + " dims."
    kind = {2: "1d", 3: "1d", 4: "2d", 5: "3d"}.get(x.ndim)
    fits = kind is not None and x.shape[1] == features
    return Advice(wrong, f"use nn.BatchNorm{kind}({features})." if fits else None)


RULES = {
    **dict.fromkeys(("LSTM", "GRU", "RNN"), recurrent),
    **dict.fromkeys(("LSTMCell", "GRUCell", "RNNCell"), cell),
    **dict.fromkeys(("BatchNorm1d", "BatchNorm2d", "BatchNorm3d"), batch_norm),
    **dict.fromkeys(_TAKES, attends),
}
