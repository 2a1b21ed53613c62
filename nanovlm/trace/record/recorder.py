"""Watches a run: torch functions through a mode, module calls through hooks. Leaves nothing behind."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from nanovlm.trace.names import NO_OPS, QUIET, op_name, opened_up
from nanovlm.trace.record.copies import copies_left_alone
from nanovlm.trace.record.describe import Describer, facts
from nanovlm.trace.record.frames import (
    EINOPS,
    FUNCTION,
    TORCH,
    Chain,
    function_name,
    is_running,
    warnings_at_their_line,
)
from nanovlm.trace.record.fused import has_fused_path, unwatched, would_be_fused
from nanovlm.trace.record.modules import ModuleIndex
from nanovlm.trace.record.watchers import AtenMode
from nanovlm.trace.rows import Row, Where

Watcher = Callable[
    [Row, Any, tuple, dict, Any], None
]  # row, function, args, kwargs, result: looks, and keeps no tensor


class _Mode(TorchFunctionMode):
    def __init__(self, recorder: Recorder):
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return self.recorder.on_call(func, args, kwargs or {}, sys._getframe(1))


class Recorder:
    """A context manager that fills `root` with rows.

    modules: (name, module) pairs to watch. boundary: the frame from which the learner's code is called; where: the
    line that asks for the trace. watchers are called after each successful torch function. With `timed` each row gets
    its seconds (the GPU is waited for). `device` overrides the device that is written down. `modes` are active
    underneath. With `aten` the dispatcher's operations become rows too.
    """

    def __init__(
        self,
        modules: Iterable[tuple[str, nn.Module]],
        boundary: FrameType,
        watchers: Iterable[Watcher] = (),
        timed: bool = False,
        device: str | None = None,
        modes: Iterable[Any] = (),
        aten: bool = False,
        where: Where | None = None,
    ):
        self.root = Row("root", "trace", None, where)
        self.modules = ModuleIndex(modules)
        self.watchers = list(watchers)
        self.timed = timed
        self.modes = [*modes, *([AtenMode(self)] if aten else [])]
        self._current: Row | None = None
        self.describer = Describer(self.modules.tensor_names, device)
        self.failed: tuple[int, Row] | None = None  # id of the latest exception, the row it came out of
        self.remarks: dict[str, None] = {}  # what the numbers leave out, each sentence once
        self._thread = threading.get_ident()
        self._left_by: int | None = None  # id of the exception that the latest failing module was left by
        self._chain = Chain()
        self._open: list[tuple[Row, FrameType | None, FrameType | None]] = [(self.root, None, boundary)]
        self._backward_depth = 0
        self._step: FrameType | None = None  # the call of an optimizer's step that is at work
        self._resumed = 0
        self._fused: set[str] = set()  # paths of modules that torch may run through one fused kernel
        self._hook_ids: set[int] = set()
        self._is_blind = False  # while such a module is called once more, unwatched
        self._began: dict[int, float] = {}
        self._handled: dict[int, int] = {}  # id of a row -> id of the exception in whose `except` block it began
        self._stack = ExitStack()

    # -- entering and leaving -------------------------------------------------------------------------------------

    def __enter__(self) -> Recorder:
        with ExitStack() as stack:
            if "torch._dynamo" in sys.modules:  # only then can anything be compiled; importing it takes seconds
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            handles: list[RemovableHandle] = []
            stack.callback(lambda: [handle.remove() for handle in handles])
            fused = [module for module in self.modules if has_fused_path(module)]
            self._fused = {path for module in fused for path in self.modules.paths(module)}
            for module in fused:  # before the model's own hooks, which get what they would get unwatched
                handles.append(module.register_forward_hook(self._as_unwatched, with_kwargs=True, prepend=True))
            for module in self.modules:
                handles += self._hook(module)
            self._hook_ids = {handle.id for handle in handles}
            stack.enter_context(copies_left_alone(self._hook_ids))
            stack.enter_context(warnings_at_their_line())
            if self.modules.hidden:
                self.remarks["scripted and quantised modules hide their steps: their FLOPs are not counted"] = None
            stack.callback(register_optimizer_step_pre_hook(self._before_step).remove)
            stack.callback(register_optimizer_step_post_hook(self._after_step).remove)
            for mode in self.modes:
                stack.enter_context(mode)
            stack.enter_context(_Mode(self))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc) -> None:
        try:
            self._stack.__exit__(*exc)
        finally:
            self._close_down_to(1)
            self.modules.count_lazy(self.root)
            self._open = [(self.root, None, None)]  # frames hold their locals, and those hold tensors
            self.remarks |= self.describer.remarks
            self.describer.forget()
            self._chain, self._step = Chain(), None
            self.modules.forget()
            self.watchers.clear()
            self.modes.clear()

    def _hook(self, module: nn.Module):
        try:
            yield module.register_forward_pre_hook(self._before_module, with_kwargs=True, prepend=True)
            # always_call: without it an exception swallowed inside the model mis-nests every later row.
            yield module.register_forward_hook(self._after_module, with_kwargs=True, always_call=True)
        except RuntimeError:  # a scripted module takes no such hooks: its call is a step without an inside
            return

    # -- torch functions ------------------------------------------------------------------------------------------

    def on_call(self, func: Any, args: tuple, kwargs: dict, frame: FrameType) -> Any:
        """Run a torch function and write its row. The row stands before the call, or a failing one would be missing."""
        name = op_name(func)
        if name is None or name in QUIET or self._is_quiet():
            return func(*args, **kwargs)
        if name == "backward" or (name == "grad" and func is torch.autograd.grad):
            return self._backward(func, args, kwargs, frame)
        row, describer = self._start("op", name, frame), self.describer
        with torch._C.DisableTorchFunction():
            row.args, row.kwargs = describer(args), describer(kwargs)
        self._tick(row)
        self._current = row
        inside = opened_up(func)
        try:
            if inside is None:
                result = func(*args, **kwargs)
            else:
                self._open.append((row, None, sys._getframe(0)))
                with _Mode(self):
                    result = inside(*args, **kwargs)
                self._open.pop()
        except BaseException as error:
            with torch._C.DisableTorchFunction(), suppress(Exception):
                row.settings = facts(args, kwargs)
            self._fail(row, error)
            raise
        self._tick(row)
        with torch._C.DisableTorchFunction():
            before = describer.count
            row.out = describer(result)
            if name.endswith("setitem"):
                row.out = row.args[0]
            elif describer.count == before or (name in NO_OPS and row.out is row.args[0]):  # no new tensor came out
                self._drop(row)
                return result
            for watch in self.watchers:
                watch(row, func, args, kwargs, result)
        return result

    def _backward(self, func: Any, args: tuple, kwargs: dict, frame: FrameType) -> Any:
        self.remarks["FLOPs are those of the forward pass: backward is not counted"] = None
        row = self._start("backward", "backward", frame)
        row.args = self.describer(args)
        self._tick(row)
        self._current = row
        self._backward_depth, self._resumed = self._backward_depth + 1, 0
        try:
            result = func(*args, **kwargs)
        except BaseException as error:
            self._fail(row, error)
            raise
        finally:
            self._backward_depth -= 1
        self._tick(row)
        if self._resumed:
            row.note = f"ran {self._resumed} modules again (activation checkpointing)"
        return result

    def on_aten(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """Run a dispatcher's operation and write its row under the step that called it."""
        if self._is_blind:
            return func(*args, **kwargs)
        above = self._current or self._open[-1][0]
        row = Row("aten", str(func).removesuffix(".default"), above, above.where, above.path)
        row.args, row.kwargs = self.describer(args), self.describer(kwargs)
        above.children.append(row)
        result = func(*args, **kwargs)
        row.out = self.describer(result)
        return result

    # -- modules and optimizers -----------------------------------------------------------------------------------

    def _before_module(self, module: nn.Module, args, kwargs) -> None:
        if self._is_quiet():
            self._resumed += 1
            return
        if threading.get_ident() != self._thread:  # a mode is a thread's own, and one tree cannot hold two at a time
            self.remarks["modules ran in other threads: their steps and FLOPs are not counted"] = None
            return
        frame = sys._getframe(1)
        row = self._start("module", type(module).__name__, frame.f_back)
        self.modules.fill(row, module)
        with torch._C.DisableTorchFunction():
            row.args, row.kwargs = self.describer(args), self.describer(kwargs)
        self._open.append((row, None, frame))
        if (handled := sys.exc_info()[1]) is not None:
            self._handled[id(row)] = id(handled)
        self._tick(row)

    def _after_module(self, module: nn.Module, args, kwargs, result) -> None:
        if self._is_quiet() or threading.get_ident() != self._thread:
            return
        depth = self._depth(module)
        if depth is None:
            return
        row = self._open[depth][0]
        self._close_down_to(depth)
        self._tick(row)
        error, handled = sys.exc_info()[1] if result is None else None, self._handled.pop(id(row), None)
        if error is not None and id(error) != handled:
            row.error = f"{type(error).__name__} inside"
            self._checked_by_torch(row, error)
            return
        with torch._C.DisableTorchFunction():
            row.out = self.describer(result)

    def _depth(self, module: nn.Module) -> int | None:
        for depth in range(len(self._open) - 1, 0, -1):
            row = self._open[depth][0]
            if row.kind == "module" and row.path in self.modules.paths(module):
                return depth
        return None

    def _as_unwatched(self, module: nn.Module, args, kwargs, result) -> Any:
        """What torch's fused kernel gives, in place of what the watched steps gave."""
        depth = self._depth(module)
        if (
            threading.get_ident() != self._thread
            or self._is_quiet()
            or depth is None
            or not would_be_fused(module, result)
        ):
            return None
        if any(row.kind == "module" and row.path in self._fused for row, *_ in self._open[:depth]):
            return None  # the module that this one is part of is called again as a whole
        began = time.perf_counter()
        self._is_blind = True
        try:
            with unwatched(module, self._hook_ids):
                again = module.forward(*args, **kwargs)
        finally:
            self._is_blind = False
        self.describer.same(result, again)
        spent = time.perf_counter() - began
        self._began = {key: start + spent for key, start in self._began.items()}
        return again

    def _before_step(self, optimizer, args, kwargs) -> None:
        self._end_step_that_raised()
        self._step = sys._getframe(1)
        row = self._start("optimizer", f"{type(optimizer).__name__}.step", self._step)
        self._open.append((row, None, self._step))
        self._tick(row)

    def _after_step(self, optimizer, args, kwargs) -> None:
        self._step = None
        self._tick(self._open.pop()[0])

    def _is_quiet(self) -> bool:
        """Whether backward or an optimizer is at work: each has a row of its own, and what is inside is not shown."""
        self._end_step_that_raised()
        return self._backward_depth > 0 or self._step is not None

    def _end_step_that_raised(self) -> None:
        """No hook is called after it: that its frame is gone is all there is to see."""
        if self._step is not None and not is_running(self._step):
            depth = next(i for i, (*_, frame) in enumerate(self._open) if frame is self._step)
            self._open[depth][0].error = "did not finish"
            self._close_down_to(depth)
            self._step = None

    # -- the tree -------------------------------------------------------------------------------------------------

    def _start(self, kind: str, name: str, frame: FrameType | None) -> Row:
        """A new row under what is open now, after opening and closing rows for the learner's own functions."""
        top = len(self._open) - 1
        while self._open[top][1] is not None:  # function rows; below them stands the module they belong to
            top -= 1
        chain = self._chain.walk(frame, self._open[top][2])
        depth, where = top + 1, self._open[top][0].where
        for own, code_kind in chain:
            if code_kind in (FUNCTION, EINOPS):
                if depth < len(self._open) and self._open[depth][1] is own:
                    pass
                else:
                    self._close_down_to(depth)
                    above = self._open[-1][0]
                    group = Row("function", function_name(own.f_code), above, where, above.path)
                    above.children.append(group)
                    self._open.append((group, own, None))
                depth += 1
            if code_kind != EINOPS:
                where = (own.f_code, own.f_lasti)
        self._close_down_to(depth)
        above = self._open[-1][0]
        row = Row(kind, name, above, where, above.path)
        above.children.append(row)
        return row

    def _close_down_to(self, depth: int) -> None:
        del self._open[depth:]

    def _drop(self, row: Row) -> None:
        siblings = row.parent.children
        if siblings and siblings[-1] is row:
            siblings.pop()

    def _fail(self, row: Row, error: BaseException) -> None:
        row.error = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
        if self.failed is None or self.failed[0] != id(error):
            self.failed = (id(error), row)
            for above in self._open:
                if above[0].kind == "module" and above[0].settings is None:
                    above[0].settings = self.modules.settings(above[0].path)
        depth = next((i for i, entry in enumerate(self._open) if entry[0] is row), None)
        if depth is not None:
            self._close_down_to(depth)

    def _checked_by_torch(self, row: Row, error: BaseException) -> None:
        """A layer of torch may refuse its input itself, before any torch function does: then the layer is the step."""
        if id(error) == self._left_by:
            return
        self._left_by = id(error)  # the innermost module; those around it are left by the same error
        tb = error.__traceback__
        while tb is not None and tb.tb_next is not None:
            tb = tb.tb_next
        is_in_torch = tb is not None and tb.tb_frame.f_code.co_filename.startswith(TORCH)
        if is_in_torch and (row.cls or "").startswith("torch.nn.") and (not self.failed or self.failed[0] != id(error)):
            row.settings = self.modules.settings(row.path)
            self.failed = (id(error), row)

    def failed_row(self, error: BaseException) -> Row | None:
        """The step that an error came out of, also where the model raised another one because of it."""
        seen: BaseException | None = error
        while seen is not None:
            if self.failed is not None and self.failed[0] == id(seen):
                return self.failed[1]
            seen = seen.__cause__ or seen.__context__
        return None

    def _tick(self, row: Row) -> None:
        if not self.timed:
            return
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if id(row) in self._began:
            row.seconds = now - self._began.pop(id(row))
        else:
            self._began[id(row)] = now
