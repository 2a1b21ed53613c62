"""trace() and tracing(): run something, watched."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from nanovlm.trace.explain.advice import explain
from nanovlm.trace.measure import symbolic
from nanovlm.trace.record.copies import with_own_state
from nanovlm.trace.record.frames import line_of
from nanovlm.trace.record.meta import MetaMode, meta_inputs
from nanovlm.trace.record.modules import find_modules
from nanovlm.trace.record.recorder import Recorder
from nanovlm.trace.record.watchers import AttentionCatcher, watch_values
from nanovlm.trace.result import Trace
from nanovlm.trace.rows import Row


def trace(
    fn: Callable[..., Any],
    *args: Any,
    device: str | None = None,
    dims: dict[str, Any] | None = None,
    values: bool = False,
    time: bool = False,
    attention: Iterable[str] | None = None,
    level: str = "function",
    **kwargs: Any,
) -> Trace:
    """Run fn(*args, **kwargs) once and return the `Trace` of every step.

    fn: a module, a bound method (`model.generate`), or any function that uses models.
    device="meta": shapes only, at full size without weights or memory; token ids and masks keep their values.
    dims: names for input sizes, {"B": 12, "T": 79}; the shapes are then formulas of them. The model is run again on
        meta at other sizes, on a copy of its Python state (that of models which a plain function calls is used, and
        changes). Where a size is ambiguous name the dims of an argument: {"images": "B 3 224 224"}.
    values: mean, standard deviation, NaN and Inf of every step. time: seconds of every step.
    attention: module paths whose attention weights are kept, in `t.attention[path]`; `t.remark` names those in which
        none were seen.
    level="aten": also the operations that torch's dispatcher sees, under the step they belong to.

    A model's own keyword arguments of these names go through functools.partial. If the run fails, the error is raised
    again, explained, with the trace so far as its `trace`.

    Results are bitwise those of an untraced run; those of a model under torch.compile are the uncompiled model's. In
    eval mode without gradients nn.TransformerEncoder, its layers and nn.MultiheadAttention run fused kernels, which
    torch switches off while anything watches: their steps are shown as watched, and the result that goes on is that of
    a second, unwatched call (record/fused.py).
    """
    if not callable(fn):
        raise TypeError(f"trace() needs a model or a function to call; got {type(fn).__name__}.")
    if device not in (None, "meta"):
        raise ValueError(f"trace(device=...) is None (where the model is) or 'meta'; got {device!r}.")
    if device == "meta" and (values or time or attention):
        raise ValueError("On the meta device there are no values, times or attention weights: drop device='meta'.")
    _check_level(level)
    call, where = _Call(fn, args, kwargs), line_of(sys._getframe(1))
    modules = find_modules(fn, args, kwargs)
    names = symbolic.bind(call.inputs, dims) if dims else {}
    base = symbolic.base_sizes(call.inputs, names)

    before = with_own_state(fn) if names else fn  # as the model is now, and not after the run

    def on_meta(inputs: dict[str, Any]) -> Trace:
        own = with_own_state(before)
        parts = find_modules(own, args, kwargs)
        with torch.random.fork_rng(devices=[]):
            mode = MetaMode(parts)
            recorder = Recorder(parts, sys._getframe(0), device="meta", modes=[mode], aten=level == "aten", where=where)
            result = call.run(meta_inputs(inputs, recorder.modules.num_params > 0), recorder, own)
        if mode.assumed:
            result.add_remark("a mask computed from values that meta does not have was taken to pick everything")
        return result

    if device == "meta":
        result = on_meta(call.inputs)
    else:
        catcher = AttentionCatcher(attention or ())
        watchers = [watch_values] * bool(values) + [catcher] * bool(attention)
        recorder = Recorder(modules, sys._getframe(0), watchers=watchers, timed=time, aten=level == "aten", where=where)
        recorder.modules.require(filter(None, catcher.names))
        result = call.run(call.inputs, recorder)
        result.attention = catcher.found
        result.add_remark(catcher.remark())
    if names:
        result.dims = base

        def on_other_sizes(sizes: symbolic.Sizes) -> Row:
            return on_meta(symbolic.resize(call.inputs, names, sizes)).root

        result.add_remark(symbolic.name_rows(result.root, on_other_sizes, base))
        if before is fn and isinstance(getattr(fn, "__self__", fn), nn.Module):
            result.add_remark(
                "the model cannot be copied: what it keeps between calls is what the probes for dims left"
            )
    return result


class _Call:
    """A callable with its inputs by name, so that they can be replaced and the call made again."""

    def __init__(self, fn: Callable[..., Any], args: tuple, kwargs: dict[str, Any]):
        self.fn = fn
        self.name = type(fn).__name__ if isinstance(fn, nn.Module) else getattr(fn, "__name__", type(fn).__name__)
        self.num_positional = len(args)
        names = _positional_names(fn.forward if isinstance(fn, nn.Module) else fn, len(args))
        # f(1, a=2) for f(a) stays the error that it is: no keyword takes a positional argument's place.
        names = [f"argument {i}" if name in kwargs else name for i, name in enumerate(names)]
        self.inputs = dict(zip(names, args, strict=True)) | kwargs

    def run(self, inputs: dict[str, Any], recorder: Recorder, own: Callable[..., Any] | None = None) -> Trace:
        """Call, watched; `own` in the callable's place, if given. Raises the call's own error, explained."""
        values = list(inputs.items())
        args, kwargs = [value for _, value in values[: self.num_positional]], dict(values[self.num_positional :])
        result = Trace(recorder.root, recorder.modules.num_params)
        recorder.root.name = self.name
        result.inputs = recorder.root.args = recorder.describer(inputs)
        with _recording(recorder, result):
            recorder.root.out = recorder.describer((own or self.fn)(*args, **kwargs))
        return result


class tracing:
    """`with tracing(model) as t:` watches everything in the block: several calls, a training step, backward.

    models: the modules whose calls become rows (functions are seen anyway). The options are those of `trace`.
    `t` is filled as the block runs.
    """

    def __init__(
        self,
        *models: nn.Module,
        values: bool = False,
        time: bool = False,
        attention: Iterable[str] | None = None,
        level: str = "function",
    ):
        _check_level(level)
        for model in models:
            if not isinstance(model, nn.Module):
                raise TypeError(f"tracing() takes the models to watch; got {type(model).__name__}.")
        self._models = [("" if len(models) == 1 else f"model {i}", model) for i, model in enumerate(models)]
        self._catcher = AttentionCatcher(attention or ())
        self._watchers = [watch_values] * bool(values) + [self._catcher] * bool(attention)
        self._timed, self._aten = time, level == "aten"

    def __enter__(self) -> Trace:
        recorder = Recorder(self._models, sys._getframe(1), watchers=self._watchers, timed=self._timed, aten=self._aten)
        recorder.modules.require(filter(None, self._catcher.names))
        self._trace = Trace(recorder.root, recorder.modules.num_params)
        self._trace.attention = self._catcher.found
        self._context = _recording(recorder, self._trace)
        self._context.__enter__()
        return self._trace

    def __exit__(self, *exc: Any) -> bool | None:
        is_handled = self._context.__exit__(*exc)
        self._trace.add_remark(self._catcher.remark())
        return is_handled


@contextmanager
def _recording(recorder: Recorder, result: Trace) -> Iterator[None]:
    """Watch a block; complete the trace afterwards, whatever happened; explain an error in its own message."""
    try:
        with recorder:
            yield
    except BaseException as error:
        result.ended()
        _complete(result, recorder)
        result.failed = recorder.failed_row(error)
        if isinstance(error, Exception):
            explain(error, result)
        raise
    result.ended()
    _complete(result, recorder)


def _complete(result: Trace, recorder: Recorder) -> None:
    """What only the end of a run tells: what was left out, and the sizes of lazy layers."""
    result.num_params = recorder.modules.num_params
    for remark in recorder.remarks:
        result.add_remark(remark)


def _check_level(level: str) -> None:
    if level not in ("function", "aten"):
        raise ValueError(f"level is 'function' (what you wrote) or 'aten'; got {level!r}.")


def _positional_names(fn: Callable[..., Any], count: int) -> list[str]:
    try:
        kinds = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        kinds = ()
    names = [p.name for p in kinds if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:count]
    return names + [f"argument {i}" for i in range(len(names), count)]
