"""An error's message, rewritten: what was wrong in the learner's own terms, where, with which shapes, what to do.

The text goes into the message itself, because notes (PEP 678) do not show in Colab's IPython 7. The type stays.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nanovlm.trace.explain import rules_layers as layers
from nanovlm.trace.explain import rules_losses as losses
from nanovlm.trace.explain import rules_places as places
from nanovlm.trace.explain import rules_products as products
from nanovlm.trace.explain import rules_shapes as shapes
from nanovlm.trace.explain import rules_values as values
from nanovlm.trace.explain.failed_call import Advice, FailedCall, is_torchs_module, shape
from nanovlm.trace.record.frames import BODY, FUNCTION, classify, leave_out_machinery
from nanovlm.trace.rows import Row, show
from nanovlm.trace.show.fold import is_plain_layer
from nanovlm.trace.source import Source, locate, operands

if TYPE_CHECKING:
    from nanovlm.trace.result import Trace

Rule = Callable[[FailedCall], Advice | None]

_STEPS_SHOWN = 6
_BY_NAME: dict[str, Rule] = {
    "linear": products.linear,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv"), products.matmul),
    **{f"conv{kind}{n}d": products.convolution for kind in ("", "_transpose") for n in (1, 2, 3)},
    "scaled_dot_product_attention": products.attention,
    "einsum": products.einsum,
    **dict.fromkeys(("cat", "stack", "hstack", "vstack"), shapes.cat),
    **dict.fromkeys(("view", "reshape", "view_", "unflatten"), shapes.view),
    **dict.fromkeys(("expand", "broadcast_to"), shapes.expand),
    **dict.fromkeys(("split", "split_with_sizes"), shapes.split),
    "embedding": values.ids,
    **dict.fromkeys(("getitem", "setitem", "index_put", "index_put_"), values.index),
    **dict.fromkeys(("masked_scatter", "masked_scatter_"), values.placed),
    **dict.fromkeys(("layer_norm", "rms_norm", "batch_norm", "group_norm"), values.norm),
    **losses.RULES,
    **places.RULES,
}
_ALWAYS: tuple[Rule, ...] = (values.dtype, shapes.dims, shapes.broadcasting)


def advise(row: Row, said: str) -> Advice | None:
    """The first rule that recognises what went wrong."""
    return _explained(row, said)[0]


def _explained(row: Row, said: str) -> tuple[Advice | None, FailedCall]:
    """What to say, and the call whose arguments it is about: the step's, or that of the layer of torch around it."""
    for layer in reversed(_layers_around(row)):  # the outermost is what the learner called
        rule = layers.RULES.get((layer.cls or "").removeprefix("torch.nn."))
        if rule is not None and (advice := rule(call := FailedCall(layer, said))) is not None:
            return advice, call
    call = FailedCall(row, said)
    if row.kind == "module":
        rule = layers.RULES.get((row.cls or "").removeprefix("torch.nn."), layers.wants_a_tensor)
        return rule(call), call
    own = _BY_NAME.get(row.name)
    for rule in (values.device, *([own] if own else []), *_ALWAYS):
        if rule is shapes.broadcasting and not re.search(r"must match the size|broadcast|shape mismatch", said):
            continue
        advice = rule(call)
        if advice is not None:
            return advice, call
    return None, call


def _layers_around(row: Row) -> list[Row]:
    """torch's own layers whose inside a step is, the innermost first."""
    found: list[Row] = []
    above = row.parent
    while is_torchs_module(above) or (above is not None and above.kind == "op"):  # an op: torch's attention function
        if above.kind == "module":
            found.append(above)
        above = above.parent
    return found


def explain(error: Exception, trace: Trace) -> None:
    """Put the explanation into the error's message and the trace on the error."""
    if getattr(error, "trace", None) is not None:  # explained already, by a trace inside this one
        return
    said = str(error).strip()
    message = explanation(error, trace)
    if trace.failed is not None:  # a step of the model; anything else may be the tracer's own fault, and should show
        leave_out_machinery(error.__traceback__)
    with suppress(AttributeError):  # an exception class with __slots__
        error.trace = trace
    error.args = (message, *error.args[1:])
    if said and said in str(error) and message not in str(error) and hasattr(error, "add_note"):
        error.add_note(message)  # a class that builds its message itself


def explanation(error: Exception, trace: Trace) -> str:
    said, row = str(error).strip(), trace.failed
    if row is None:
        return _own_error(error, said, trace)
    advice, call = _explained(row, said)
    lines = [advice.wrong if advice else said]
    lines += _place(call.source, call.layer_name if call.layer is not None else row.name, call.place)
    operands = call.operands()
    width = max([4, *(len(text) for text, _ in operands)])
    for text, info in operands:
        origin = _origin(info.uid, row, trace) if call.is_named else ""
        lines.append(f"  {text:<{width}}  {info!r}{origin}")
    if advice and advice.fix:
        lines.append(f"  Try: {advice.fix}")
    lines += _way(row, trace)
    if advice:
        lines.append("  torch said: " + " ".join(said.split())[:300])
    return "\n".join(lines)


def _place(source: Source | None, step: str, path: str) -> list[str]:
    if source is None:
        return [f"  in {path or 'the model'}, at {step}"]
    line = " ".join(source.statement.split())
    return [f"  {source.place}, in {source.function}{f' of {path}' if path else ''}:  {line}"]


def _origin(uid: int, failed: Row, trace: Trace) -> str:
    """Where a tensor came from: `   from self.proj(x) (model.py:12)`."""
    for name, value in trace.inputs.items():
        if getattr(value, "uid", None) == uid:
            return f"   the input {name!r}"
    found = None
    for row in trace.root.walk():
        if row.index < failed.index and row.kind == "op" and any(info.uid == uid for info in row.outs):
            found = row
    source = locate(found.where) if found is not None else None
    return f"   from {source.short} ({source.place})" if source is not None and source.short else ""


def _way(failed: Row | None, trace: Trace) -> list[str]:
    """The last steps before the failing one."""
    steps: list[Row] = []

    def collect(row: Row) -> bool:
        for child in row.children:
            if child is failed:
                return True
            leaf = child.kind != "module" and not child.children
            if (leaf or is_plain_layer(child)) and child.error is None:
                steps.append(child)
            elif collect(child):
                return True
        return False

    collect(trace.root)
    if not steps:
        return []
    last = steps[-_STEPS_SHOWN:]
    names = [row.path if row.kind == "module" else f"{row.path}: {row.name}" if row.path else row.name for row in last]
    width, out = max(map(len, names)), max(len(show(row.out)) for row in last)
    lines = [f"  The way there (last {len(last)} of {len(steps)} steps; all of them: error.trace):"]
    for name, row in zip(names, last, strict=True):
        source = locate(row.where)
        lines.append(f"    {name:<{width}}  {show(row.out):<{out}}  {source.short[:70] if source else ''}".rstrip())
    return lines


def _own_error(error: Exception, said: str, trace: Trace) -> str:
    """An error that no torch function raised: a check in the model, an unpacking, einops."""
    tb, found = error.__traceback__, None
    while tb is not None:
        if classify(tb.tb_frame.f_code) in (BODY, FUNCTION):
            found = tb
        tb = tb.tb_next
    source = locate((found.tb_frame.f_code, found.tb_lasti)) if found is not None else None
    lines = [said or type(error).__name__]
    if source is not None:
        lines += _place(source, "", "")
        lines += [f"  {text}" for text in _unpacking(error, said, source, found) or _rearranging(said, source)]
    return "\n".join(lines + _way(None, trace))


def _rearranging(said: str, source: Source) -> list[str]:
    """einops: an axis that does not divide, another number of dims."""
    given = re.search(r'pattern "(.*?)".*?Input tensor shape: torch\.Size\(\[([\d, ]*)\]\)', said, re.DOTALL)
    if given is None:
        return []
    axes, sizes = given[1].partition("->")[0], [int(size) for size in given[2].split(",") if size.strip()]
    called = (source.text.partition("(")[0] or "rearrange").rpartition(".")[2]
    written = operands(source, called)[0]
    text = written[0] if written else "the tensor"
    have = f"{text} is {shape(sizes)}"
    if match := re.search(r"can't divide axis of length (\d+) in chunks of (\d+)", said):
        length, chunk = map(int, match.groups())
        lines = [f"{have}: {length} is {length // chunk} x {chunk} and {length % chunk} more."]
        if length % chunk == 1 and len(sizes) == 3 and sizes[1] == length and axes.strip()[:3] in ("b (", "n ("):
            lines.append(f"Try: leave 1 out, if it is a class token: {text}[:, 1:].")
        return lines
    if match := re.search(r"expected (\d+) dims\. Received (\d+)-dim tensor", said):
        wanted, got = map(int, match.groups())
        lines = [f"{have}: {got} dims, and {axes.strip()!r} names {wanted}."]
        if wanted == got + 1 and axes.split()[:1] in (["b"], ["batch"], ["n"]):
            lines.append(f"Try: add the batch dim: {text}.unsqueeze(0) is {shape((1, *sizes))}.")
        return lines
    return []


def _unpacking(error: Exception, said: str, source: Source, tb: TracebackType) -> list[str]:
    """`B, C, H, W = x.shape` of a tensor with another number of dims."""
    match = re.search(r"(?:expected|too many values to unpack \(expected) (\d+)", said)
    if not isinstance(error, ValueError) or "unpack" not in said or match is None:
        return []
    try:
        node = ast.parse(textwrap.dedent(source.statement)).body[0]
    except (SyntaxError, IndexError):
        return []
    value = getattr(node, "value", None)
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == "size":
        value = value.func
    tensor: Any = None
    if isinstance(value, ast.Attribute) and value.attr in ("shape", "size") and isinstance(value.value, ast.Name):
        tensor = tb.tb_frame.f_locals.get(value.value.id)
    if not isinstance(tensor, Tensor):
        return []
    wanted, name = int(match.group(1)), value.value.id
    lines = [f"{name} is {shape(tensor.shape)}: {tensor.ndim} dims, and the line takes {wanted} apart."]
    if tensor.ndim == wanted - 1:
        lines.append(f"Try: add the batch dim before: {name}.unsqueeze(0) is {shape((1, *tensor.shape))}.")
    else:
        lines.append(f"Try: give the model a tensor of {wanted} dims, or take {tensor.ndim} apart.")
    return lines
