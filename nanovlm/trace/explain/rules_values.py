"""Rules that need more than shapes: dtypes, devices, ids out of range, masks that pick another number of places."""

from __future__ import annotations

import re

from nanovlm.trace.explain.failed_call import Advice, FailedCall, ordinal, shape
from nanovlm.trace.rows import TensorInfo


def device(call: FailedCall) -> Advice | None:
    places = {info.device for _, info in call.operands() if info.ndim}
    if len(places) < 2:
        return None
    listed = ", ".join(f"{text} {shape(info.shape)} is on {info.device}" for text, info in call.operands() if info.ndim)
    weights = [(text, info) for text, info in call.operands() if info.name]
    moved = next(((text, info) for text, info in call.operands() if not info.name and info.ndim), None)
    target = weights[0][1].device if weights else call.operands()[0][1].device
    if moved is None or moved[1].device == target:
        return Advice(f"{listed}.", "bring them to one device: tensor.to(other.device).")
    if target == "meta":
        return Advice(f"{listed}.", "the model has no values: trace(…, device='meta') runs the input without them too.")
    if moved[1].device == "meta":
        return Advice(f"{listed}.", f"{moved[0]} has no values: make it on the model's device, device={target!r}.")
    return Advice(f"{listed}.", f"bring it to the model: {moved[0]}.to({target!r}), or the model with model.to(…).")


def dtype(call: FailedCall) -> Advice | None:
    """Different floating types, or a type that this step does not take."""
    found = [(text, info) for text, info in call.operands()]
    listed = ", ".join(f"{text} {shape(info.shape)} is {info.dtype_name}" for text, info in found)
    if call.name == "embedding" and found and found[0][1].dtype.is_floating_point:
        return Advice(f"{listed}: an embedding looks rows up by whole numbers.", f"use {found[0][0]}.long().")
    types = {info.dtype_name for _, info in found}
    if not re.search(r"dtype|scalar type|not implemented for|nput type|type [A-Z]\w+", call.said) or not found:
        return None
    text, info = found[0]
    weight = next(((t, i) for t, i in found if i.name), None)
    if len(types) > 1:
        real = [pair for pair in found if pair[1].dtype.is_floating_point]
        if weight is None and not info.dtype.is_floating_point and real:
            return Advice(f"{listed}.", f"bring it to the same type: {text}.to(torch.{real[-1][1].dtype_name}).")
        target = (weight or (real or found)[-1])[1].dtype_name
        text, info = next(((t, i) for t, i in found if i.dtype_name != target), (text, info))
        if not info.dtype.is_floating_point:
            scale = " / 255" if info.dtype_name == "uint8" else ""
            return Advice(f"{listed}.", f"make it a floating-point tensor first: {text}.to(torch.{target}){scale}.")
        owner = f", or the model with model.to(torch.{info.dtype_name})" if weight else ""
        return Advice(f"{listed}.", f"bring it to the same type: {text}.to(torch.{target}){owner}.")
    if not info.dtype.is_floating_point:
        return Advice(f"{listed}, which {call.name} does not take.", f"use {text}.float().")
    return None


def ids(call: FailedCall) -> Advice | None:
    """Embedding: ids outside of the table."""
    x, weight = call.info(0, "input"), call.info(1, "weight")
    low, high = call.facts.get("low"), call.facts.get("high")
    if x is None or weight is None or low is None:
        return None
    rows, text = weight.shape[0], call.text(0, "input")
    if low >= 0 and high < rows:
        return None
    wrong = (
        f"{text} {shape(x.shape)} holds ids from {low} to {high}, but {call.layer_name} has {rows} rows "
        f"{shape(weight.shape)}: 0 to {rows - 1}."
    )
    if low < 0:
        kind = " (-100 marks targets that are not scored)" if low == -100 else ""
        return Advice(wrong, f"negative ids{kind}: pass the input ids, not the labels.")
    if high == (x.shape[-1] if x.shape else 0) - 1 and low == 0:
        return Advice(
            wrong,
            f"these are positions: cut the sequence to {rows} tokens, or build the table with {high + 1} rows.",
        )
    if high == rows:
        return Advice(wrong, f"one row short: build it with {high + 1} rows, or let the ids start at 0.")
    return Advice(
        wrong, f"tokenizer and model disagree: build it with at least {high + 1} rows, or use its own tokenizer."
    )


def index(call: FailedCall) -> Advice | None:
    """x[...] with an index that is not there."""
    x = call.info(0, "input")
    if x is None:
        return None
    text = call.text(0, "tensor")
    match = re.search(r"index (-?\d+) is out of bounds for dimension (\d+) with size (\d+)", call.said)
    if match:
        at, dim, size = map(int, match.groups())
        dim = _indexed(call, size, dim)
        return Advice(
            f"{text} is {shape(x.shape)}: dim {dim} has {size} entries, 0 to {size - 1}, and {at} is asked for.",
            f"the last one is {size - 1} (or -1)."
            if at == size and not isinstance(call.value(1, "index"), tuple)
            else f"keep the index below {size}, or make dim {dim} longer.",
        )
    match = re.search(r"too many indices for tensor of dimension (\d+)", call.said)
    if match:
        return Advice(
            f"{text} is {shape(x.shape)}, {x.ndim} dims, and more are indexed.", f"index at most {x.ndim} dims."
        )
    match = re.search(r"mask \[([\d, ]+)\].* does not match .* tensor \[([\d, ]+)\]", call.said)
    if match:
        return Advice(
            f"the mask is [{match.group(1)}], but {text} is {shape(x.shape)}: a mask has the sizes of the dims that it "
            "picks from.",
        )
    return placed(call)


def _indexed(call: FailedCall, size: int, said: int) -> int:
    """The dim that a tensor picks from in x[:, where]; torch counts the picked dims alone."""
    parts, x = call.value(1, "index"), call.info(0, "input")
    if x is None or not isinstance(parts, (tuple, list)) or not all(isinstance(p, (slice, TensorInfo)) for p in parts):
        return said
    at = [dim for dim, part in enumerate(parts) if isinstance(part, TensorInfo)]
    fits = [dim for dim in at if dim < x.ndim and x.shape[dim] == size]
    return fits[0] if len(fits) == 1 else said


def placed(call: FailedCall) -> Advice | None:
    """x[mask] = values and masked_scatter: as many values as the mask has places."""
    match = re.search(r"value tensor of shape \[([\d, ]+)\] .* indexing result of shape \[([\d, ]+)\]", call.said)
    x = call.info(0, "input")
    if match and x is not None:
        given, places = match.group(1), match.group(2)
        values = call.text(2, "the values")
        return Advice(
            f"{call.text(0, 'tensor')} is {shape(x.shape)} and {call.text(1, 'the index')} picks [{places}] of it, but "
            f"{values} is [{given}].",
            f"give exactly [{places}] values; with image tokens, count the placeholders in the ids.",
        )
    mask, source, true = call.info(1, "mask"), call.info(2, "source"), call.facts.get("true")
    if call.name.startswith("masked_scatter") and mask is not None and source is not None and true is not None:
        values = call.text(2, "source")
        return Advice(
            f"the mask {shape(mask.shape)}, laid over {call.text(0, 'input')} {shape(x.shape)}, has {true} places, but "
            f"{values} {shape(source.shape)} has {source.numel} values.",
            "as many placeholders as image tokens: compare their numbers before.",
        )
    return None


def norm(call: FailedCall) -> Advice | None:
    """layer_norm, rms_norm, batch_norm, group_norm built for another width."""
    x, weight = call.info(0, "input"), next((i for i in call.row.inputs if i.name and i.ndim), None)
    if x is None:
        return None
    text = call.text(0, "input")
    if call.name in ("layer_norm", "rms_norm"):
        wanted = tuple(call.value(1, "normalized_shape") or ())
        if wanted and x.shape[-len(wanted) :] != wanted:
            wrong = f"{text} is {shape(x.shape)}, but {call.layer_name} was built for a last dim of {shape(wanted)}."
            at = next((d for d in range(x.ndim - 1) if wanted == (x.shape[d],)), None)
            if at is not None:
                how = "permute(0, 2, 3, 1)" if x.ndim == 4 and at == 1 else f"transpose({at}, -1)"
                return Advice(wrong, f"dim {at} has that size: {text}.{how} before, and back after.")
            if call.layer is None and len(wanted) == 1:
                return Advice(wrong, f"normalise over {(x.shape[-1],)}, or bring the last dim to {wanted[-1]}.")
            return Advice(wrong, f"build it with {x.shape[-1]}, or bring the last dim to {wanted[-1]}.")
    elif weight is not None and x.ndim > 1 and x.shape[1] != weight.shape[0]:
        wrong = (
            f"{text} is {shape(x.shape)}: dim 1 is {x.shape[1]}, but {call.layer_name} was built for {weight.shape[0]}."
        )
        at = [dim for dim in range(2, x.ndim) if x.shape[dim] == weight.shape[0]]
        if at == [x.ndim - 1]:
            order = ", ".join(map(str, (0, x.ndim - 1, *range(1, x.ndim - 1))))
            how = "transpose(1, 2)" if x.ndim == 3 else f"permute({order})"
            return Advice(wrong, f"{ordinal(at[0], x.ndim)} has that size: {text}.{how} before, and back after.")
        return Advice(wrong, f"build it with {x.shape[1]}, or give it {weight.shape[0]} channels.")
    return None
