"""Rules for steps that multiply: linear, matmul, convolution, attention."""

from __future__ import annotations

import math

from nanovlm.trace.explain.failed_call import Advice, FailedCall, broadcast, ordinal_of_both, shape
from nanovlm.trace.rows import TensorInfo


def linear(call: FailedCall) -> Advice | None:
    x, weight = call.info(0, "input"), call.info(1, "weight")
    if x is None or weight is None or not x.shape or x.shape[-1] == weight.shape[-1]:
        return None
    text, wanted, got = call.text(0, "input"), weight.shape[-1], x.shape[-1]
    built = f"in_features = {wanted}" if call.layer is not None else f"a weight of shape {shape(weight.shape)}"
    wrong = f"{text} is {shape(x.shape)}: its last dim is {got}, but {call.layer_name} was built with {built}."
    fits = [dim for dim in range(x.ndim - 1) if x.shape[dim] == wanted]
    for start in range(1, x.ndim - 1):
        if math.prod(x.shape[start:]) == wanted:
            flat = (*x.shape[:start], wanted)
            how = f"{text}.flatten({start}) is" if call.is_named else f"nn.Flatten({start}) in front of it gives"
            return Advice(wrong, f"flatten first: {how} {shape(flat)}.")
    if fits and x.ndim > 1:
        if x.ndim == 4 and fits == [1]:
            ways = f"{text}.permute(0, 2, 3, 1) for each place, or {text}.mean((2, 3)) for the whole picture"
            return Advice(wrong, f"dim 1 has that size: {ways}.")
        return Advice(wrong, f"dim {fits[-1]} has that size: {text}.transpose({fits[-1]}, -1).")
    if call.layer is None:
        given = call.text(1, "weight")
        wrong = f"{text} is {shape(x.shape)}: its last dim is {got}, but {given} is {shape(weight.shape)}, [out, in]."
        if weight.shape[0] != got:
            return Advice(wrong)
        other = given[:-2] if given.endswith(".T") else f"{given}.T"
        return Advice(wrong, f"the weight lies the other way: F.linear({text}, {other}).")
    size = f"nn.Linear({got}, {weight.shape[0]})"
    return Advice(wrong, f"build it as {size}, or bring the last dim of {text} to {wanted} first.")


def matmul(call: FailedCall) -> Advice | None:
    a, b = call.info(0, "input"), call.info(1, "other")
    if a is None or b is None or not a.ndim or not b.ndim:
        return None
    left, right = call.text(0, "left"), call.text(1, "right")
    both = f"{left} is {shape(a.shape)} and {right} is {shape(b.shape)}"
    if call.name == "bmm" and (a.ndim, b.ndim) != (3, 3):
        return Advice(
            f"{both}, but bmm takes exactly three dims of each.",
            f"use {left} @ {right}, which takes any number of dims.",
        )
    inner = b.shape[-2] if b.ndim > 1 else b.shape[0]
    if a.shape[-1] != inner:
        rows = f"{inner} rows (its second-to-last dim)" if b.ndim > 1 else f"{inner} numbers"
        wrong = f"{both}: the last dim of {left} is {a.shape[-1]}, but {right} has {rows}."
        first_fits = a.ndim > 1 and a.shape[-2] == inner
        if b.ndim > 1 and b.shape[-1] == a.shape[-1]:
            result = (*(broadcast(a.shape[:-2], b.shape[:-2]) or ()), *a.shape[-2:-1], b.shape[-2])
            fix = f"transpose it: {left} @ {transposed(right)} is {shape(result)}"
            return Advice(wrong, f"{fix} (or the left one: {transposed(left)} @ {right})." if first_fits else f"{fix}.")
        if first_fits:
            return Advice(wrong, f"transpose the left one: {transposed(left)} @ {right}.")
        other = f"the second-to-last of {right}" if b.ndim > 1 else f"the length of {right}"
        return Advice(wrong, f"the last dim of {left} and {other} must be one size.")
    return heads(a, b, left, right, both)


def transposed(text: str) -> str:
    """The expression the other way round: what is transposed already, without that."""
    for end in (".T", ".mT", ".transpose(-2, -1)", ".transpose(-1, -2)"):
        if text.endswith(end):
            return text.removesuffix(end)
    return f"{text}.transpose(-2, -1)"


def heads(a: TensorInfo, b: TensorInfo, left: str, right: str, both: str, fix: str = "") -> Advice | None:
    """Batch dims that do not broadcast; a whole multiple is a missing expansion of key/value heads."""
    for dim in range(-3, -1 - min(a.ndim, b.ndim), -1):
        x, y = a.shape[dim], b.shape[dim]
        if x == y or 1 in (x, y):
            continue
        called = ordinal_of_both(dim + max(a.ndim, b.ndim), a, b)
        wrong = f"{both}: {called} is {x} against {y}."
        small, few, many = (right, y, x) if y < x else (left, x, y)
        if few and many % few == 0:
            at = dim + (b if y < x else a).ndim
            advice = f"{fix}repeat the {few} heads of {small}: {small}.repeat_interleave({many // few}, dim={at})."
            return Advice(wrong, advice)
        return Advice(wrong, f"{called} of both must be the same size, or 1.")
    return None


def convolution(call: FailedCall) -> Advice | None:
    x, weight = call.info(0, "input"), call.info(1, "weight")
    if x is None or weight is None:
        return None
    text, planes = call.text(0, "input"), weight.ndim - 2
    is_transposed = "transpose" in call.name
    channels = weight.shape[0] if is_transposed else weight.shape[1] * int(call.value(6, "groups", 1) or 1)
    if x.ndim not in (planes + 1, planes + 2):
        wrong = f"{text} is {shape(x.shape)}, but {call.layer_name} takes {planes + 2} dims: [B, {channels}, …]."
        if x.ndim == 2 and x.shape[1] == channels and is_transposed:
            ends, ones = ", None" * planes, (1,) * planes
            return Advice(wrong, f"one place each: {text}[:, :{ends}] is {shape((*x.shape, *ones))}.")
        if x.ndim == planes + 3 and x.shape[2] == channels:
            flat = (x.shape[0] * x.shape[1], *x.shape[2:])
            return Advice(wrong, f"all pictures as one batch: {text}.flatten(0, 1) is {shape(flat)}.")
        is_grey = x.ndim == planes and channels == 1
        return Advice(wrong, f"add the channels: {text}.unsqueeze(0)." if is_grey else None)
    at = x.ndim - planes - 1
    if x.shape[at] == channels:
        sizes, kernel = x.shape[at + 1 :], weight.shape[2:]
        if any(size < edge for size, edge in zip(sizes, kernel, strict=True)):
            wrong = f"{text} is {shape(x.shape)}: {shape(sizes)} is smaller than the kernel {shape(kernel)}."
            return Advice(wrong, "use a larger picture or a smaller kernel.")
        return None
    wrong = (
        f"{text} is {shape(x.shape)}: dim {at}, the channels, is {x.shape[at]}, "
        f"but {call.layer_name} was built with in_channels = {channels}."
    )
    if x.shape[-1] == channels:
        order = [*range(at), x.ndim - 1, *range(at, x.ndim - 1)]
        moved = [x.shape[i] for i in order]
        dims = ", ".join(map(str, order))
        return Advice(wrong, f"the channels stand last; move them: {text}.permute({dims}) is {shape(moved)}.")
    if x.shape[at] == 1:
        sizes = ", ".join(str(channels) if i == at else "-1" for i in range(x.ndim))
        return Advice(wrong, f"a grey picture: {text}.expand({sizes}), or load it with .convert('RGB').")
    return Advice(wrong, f"build it with in_channels = {x.shape[at]}, or give it {channels} channels.")


def attention(call: FailedCall) -> Advice | None:
    q, k, v = (call.info(i, name) for i, name in enumerate(("query", "key", "value")))
    if q is None or k is None or v is None:
        return None
    names = [call.text(i, name) for i, name in enumerate(("query", "key", "value"))]
    all_three = ", ".join(f"{n} is {shape(i.shape)}" for n, i in zip(names, (q, k, v), strict=True))
    mask = call.info(3, "attn_mask")
    if mask is not None and call.value(5, "is_causal"):
        return Advice(
            "attn_mask and is_causal=True are given together, and torch takes only one of them.",
            "put the causal triangle into the mask: "
            "mask & torch.ones(T, T, dtype=torch.bool).tril(), and leave is_causal out.",
        )
    if min(q.ndim, k.ndim, v.ndim) < 2:
        return Advice(f"{all_three}: attention needs at least [tokens, head_dim] of each.")
    if q.shape[-1] != k.shape[-1]:
        return Advice(
            f"{all_three}: head_dim, the last dim, is {q.shape[-1]} for the query and {k.shape[-1]} for the key.",
            "split both into heads of the same head_dim.",
        )
    if k.shape[-2] != v.shape[-2]:
        return Advice(
            f"{all_three}: there are {k.shape[-2]} keys but {v.shape[-2]} values.", "keys and values need one length."
        )
    grouped = bool(call.value(7, "enable_gqa", False))
    both = f"{names[0]} is {shape(q.shape)} and {names[1]} is {shape(k.shape)}"
    if q.shape[:-2] != k.shape[:-2] and not grouped:
        gqa = "pass enable_gqa=True, or " if q.ndim == 4 and k.ndim == 4 else ""
        return heads(q, k, names[0], names[1], both, gqa)
    if mask is None:
        return None
    text, scores = call.text(3, "attn_mask"), (*q.shape[:-2], q.shape[-2], k.shape[-2])
    if not mask.dtype.is_floating_point and mask.dtype_name != "bool":
        return Advice(f"{text} is {mask.dtype_name}; attention takes bool or {q.dtype_name}.", f"use {text}.bool().")
    if broadcast(mask.shape, scores) != scores:
        wrong = f"{text} is {shape(mask.shape)}, but the scores that it is laid over are {shape(scores)}."
        if mask.ndim == 2 and mask.shape == (scores[0], scores[-1]):
            return Advice(wrong, f"it says which keys are real: {text}[:, None, None, :].")
        if mask.ndim == 3 and len(scores) == 4 and broadcast((mask.shape[0], 1, *mask.shape[1:]), scores) == scores:
            return Advice(wrong, f"it has no dim for the heads: {text}[:, None].")
        return Advice(wrong)
    return None


def einsum(call: FailedCall) -> Advice | None:
    equation = call.row.args[0] if call.row.args and isinstance(call.row.args[0], str) else None
    if equation is None:
        return None
    infos = call.row.inputs
    terms = equation.replace(" ", "").split("->")[0].split(",")
    if len(terms) != len(infos):
        return Advice(f"{equation!r} names {len(terms)} operands; {len(infos)} are given.")
    seen: dict[str, tuple[int, str]] = {}
    texts = [call.text(i + 1, f"operand {i}") for i in range(len(infos))]
    for term, info, text in zip(terms, infos, texts, strict=True):
        if "." in term:
            continue
        if len(term) != info.ndim:
            return Advice(
                f"{text} is {shape(info.shape)}, {info.ndim} dims, but {term!r} in {equation!r} names {len(term)}.",
                "one letter for each dim.",
            )
        for letter, size in zip(term, info.shape, strict=True):
            other = seen.setdefault(letter, (size, text))
            if other[0] != size and 1 not in (size, other[0]):
                both = " and ".join(f"{t} is {shape(i.shape)}" for t, i in zip(texts, infos, strict=True))
                return Advice(f"{both}: {letter!r} in {equation!r} is {other[0]} in {other[1]}, but {size} in {text}.")
    return None
