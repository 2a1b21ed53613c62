"""Rules for losses: targets of another shape, type or range than the predictions ask for."""

from __future__ import annotations

from nanovlm.trace.explain.failed_call import Advice, FailedCall, shape


def classes(call: FailedCall) -> Advice | None:
    """Cross entropy: one class id for each row of logits."""
    logits, target = call.info(0, "input"), call.info(1, "target")
    if logits is None or target is None or not logits.ndim:
        return None
    a, b = call.text(0, "logits"), call.text(1, "targets")
    both = f"{a} is {shape(logits.shape)} and {b} is {shape(target.shape)}"
    number = logits.shape[1] if logits.ndim > 1 else logits.shape[0]
    places = (*logits.shape[:1], *logits.shape[2:]) if logits.ndim > 1 else ()
    weight = call.info(2, "weight")
    if weight is not None and weight.shape != (number,):
        wrong = f"{a} is {shape(logits.shape)} and {call.text(2, 'weight')} is {shape(weight.shape)}: "
        return Advice(f"{wrong}there are {number} classes.", f"give {number} weights, one for each class.")
    if logits.ndim == 3 and target.shape == logits.shape[:2]:
        return Advice(
            f"{both}: {call.name} takes dim 1 as the classes, not the last.",
            f"one row a token: {a}.flatten(0, 1) is {shape((logits.shape[0] * logits.shape[1], logits.shape[2]))}, and "
            f"{b}.flatten() is {shape((target.numel,))}.",
        )
    if target.shape == logits.shape and not target.dtype.is_floating_point:
        wrong = f"{both}, whole numbers: one class id for each of {shape(places)} is wanted, or probabilities."
        return Advice(wrong, f"if they are one-hot, {b}.argmax(1); if they are probabilities, {b}.float().")
    if target.ndim == logits.ndim > 1 and target.shape == (places[0], 1, *places[1:]):
        return Advice(f"{both}: the targets of {number} classes are {shape(places)}.", f"{b}.squeeze(1).")
    if logits.ndim == 4 and target.ndim == 3 and logits.shape[0] == target.shape[0] and target.shape != places:
        size = target.shape[1:]
        wrong = f"{both}: the pictures are {shape(places[1:])} and {shape(size)}."
        return Advice(wrong, f"F.interpolate({a}, size={tuple(size)}) is {shape((*logits.shape[:2], *size))}.")
    if target.shape[:1] != logits.shape[:1] and logits.ndim == 2 and target.ndim == 1:
        wrong = f"{both}: {logits.shape[0]} rows of logits against {target.shape[0]} targets."
        is_shifted = "[:, :-1]" in a and "[:, 1:]" not in b
        return Advice(
            wrong, f"{a} leaves out the last: cut {b} with [:, 1:] in the same place." if is_shifted else None
        )
    if target.shape != places and not target.dtype.is_floating_point:
        return Advice(f"{both}: with {number} classes (dim 1) the targets must be {shape(places)}.")
    low, high = call.facts.get("low"), call.facts.get("high")
    if high is not None and (high >= number or low < 0):
        wrong = (
            f"{b} holds classes from {low} to {high}, but {a} {shape(logits.shape)} has {number}: 0 to {number - 1}."
        )
        if low == 1 and high == number:
            return Advice(wrong, f"if they count from 1, {b} - 1; else give the head {high + 1} outputs.")
        return Advice(
            wrong,
            f"give the head at least {high + 1} outputs." if high >= number else "mark what is not scored with -100.",
        )
    return None


def elementwise(call: FailedCall) -> Advice | None:
    """Losses of pairs of numbers: BCE, MSE, L1, KL."""
    x, target = call.info(0, "input"), call.info(1, "target")
    if x is None or target is None:
        return None
    a, b = call.text(0, "input"), call.text(1, "target")
    both = f"{a} is {shape(x.shape)} and {b} is {shape(target.shape)}"
    if x.shape == target.shape:
        if target.dtype.is_floating_point or not x.dtype.is_floating_point:
            return None
        listed = f"{a} {shape(x.shape)} is {x.dtype_name}, {b} {shape(target.shape)} is {target.dtype_name}."
        return Advice(listed, f"{b}.float().")
    if x.shape[-1:] == (1,) and x.shape[:-1] == target.shape:
        return Advice(f"{both}: the last dim of 1 is too many.", f"{a}.squeeze(-1) is {shape(target.shape)}.")
    if target.shape[-1:] == (1,) and target.shape[:-1] == x.shape:
        return Advice(f"{both}: the last dim of 1 is too many.", f"{b}.squeeze(-1) is {shape(x.shape)}.")
    if "binary" in call.name and not target.dtype.is_floating_point and x.shape[:-1] == target.shape:
        wrong = f"{both}: a number for each of {x.shape[-1]} classes is wanted, not the class's id."
        return Advice(wrong, f"F.one_hot({b}, {x.shape[-1]}).float(), or F.cross_entropy for one class of many.")
    wrong = f"{both}, but the two must have one shape."
    if x.ndim == target.ndim and x.shape[:-1] == target.shape[:-1] and call.name in _REGRESSION:
        return Advice(wrong, f"give the head {target.shape[-1]} outputs, or targets of {x.shape[-1]} numbers.")
    return Advice(wrong)


def speech(call: FailedCall) -> Advice | None:
    """CTC: the time stands first."""
    x, lengths = call.info(0, "log_probs"), call.info(2, "input_lengths")
    if x is None or lengths is None or x.ndim != 3 or lengths.ndim != 1 or x.shape[1] == lengths.shape[0]:
        return None
    text = call.text(0, "log_probs")
    wrong = (
        f"{text} is {shape(x.shape)}, [T, B, classes] for ctc_loss, so that the batch is {x.shape[1]}, but "
        f"{call.text(2, 'input_lengths')} is {shape(lengths.shape)}."
    )
    return Advice(wrong, f"{text}.transpose(0, 1)." if x.shape[0] == lengths.shape[0] else None)


_REGRESSION = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
RULES = {
    **dict.fromkeys(("cross_entropy", "nll_loss"), classes),
    **dict.fromkeys(("binary_cross_entropy", "binary_cross_entropy_with_logits", "kl_div", *_REGRESSION), elementwise),
    "ctc_loss": speech,
}
