"""Where chat templates run. They are programs from strangers' model directories: they can compute, and no more."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Sized
from datetime import datetime
from functools import wraps
from typing import Any, ClassVar

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

BUDGET = 100_000_000  # characters that one conversation may make; what takes time costs as many as take that time
STEP, CALL = 20, 500  # one round of a loop, one operator or filter; one call of a macro
LONGEST_RANGE = 100_000  # jinja's own limit
_WIDE = re.compile(r"[%{][^%{}]{0,20}\d{5}")  # in a format string: a width that fills the memory


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks answers for transformers; here the block is plain content."""

    tags: ClassVar[set[str]] = {"generation"}

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """jinja's sandbox with what transformers gives templates, and a limit on their steps and on the text they make.

    The sandbox keeps a template from files, modules and Python's insides, but lets it loop for ever or double a text
    forty times. So every loop, call, filter and operator pays from a budget before it runs, for what it can make at
    most.
    """

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        self._spent = threading.local()
        self.restart()
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation], finalize=self._output
        )
        self.filters["tojson"] = lambda value, **options: json.dumps(value, **{"ensure_ascii": False, **options})
        self.filters = {name: self._paid(function) for name, function in self.filters.items()}
        self.globals["raise_exception"] = _raise
        self.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
        del self.globals["lipsum"]

    def restart(self) -> None:
        """A new conversation: the whole budget."""
        self._spent.total = 0

    def spend(self, amount: int) -> None:
        self._spent.total = getattr(self._spent, "total", 0) + amount
        if self._spent.total > BUDGET:
            raise jinja2.TemplateError("it takes too many steps, or makes too much text")

    def looped(self, iterable: Any) -> Any:
        """What a loop goes over, paid for as a whole."""
        items = iterable if isinstance(iterable, Sized) else list(iterable)
        self.spend(STEP * (1 + len(items)))
        return items

    def joined(self, *parts: Any) -> str:
        """`a ~ b`"""
        texts = [str(part) for part in parts]
        self.spend(sum(map(len, texts)))
        return "".join(texts)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        __self.spend(CALL)
        __self._pay(getattr(__obj, "__self__", None), *args, *kwargs.values())
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and not (abs(left) <= 1_000_000 and abs(right) <= 64):
            raise jinja2.TemplateError("it computes a power of too many digits")
        if operator == "+":
            self.spend(STEP + sum(_size(side) or 0 for side in (left, right)))
        else:
            self._pay(left, right)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Any:
        """`"…".format`, for which the sandbox has its own."""
        _refuse_wide(getattr(value, "__self__", None))
        return super().wrap_str_format(value)

    def _paid(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)  # keeps the marks of filters that want the environment or the context first
        def filter_(*args: Any, **kwargs: Any) -> Any:
            self._pay(*args, *kwargs.values())
            return function(*args, **kwargs)

        return filter_

    def _pay(self, *operands: Any) -> None:
        """For the largest result that a text or list can have with these operands: the product of their sizes."""
        amount, sized = 1, False
        for operand in operands:
            _refuse_wide(operand)
            if (size := _size(operand)) is not None:
                amount, sized = amount * (1 + size), True
        for operand in operands:
            if sized and isinstance(operand, int):
                amount *= max(abs(operand), 1)
        self.spend(STEP + amount)

    def _output(self, value: Any) -> Any:
        if isinstance(value, str):
            self.spend(len(value))
        return value

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = _call("looped", [loop.iter])
        _replace_concatenations(tree)
        return tree


def _size(value: Any) -> int | None:
    """How much a text, a list or a filter's output holds; None: it is a single thing."""
    return len(value) if isinstance(value, Sized) else LONGEST_RANGE if isinstance(value, Iterator) else None


def _refuse_wide(value: Any) -> None:
    if isinstance(value, str) and ("%" in value or "{" in value) and _WIDE.search(value):
        raise jinja2.TemplateError("it formats to a width of thousands")


def _call(method: str, arguments: list[nodes.Expr]) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(method), arguments, [], None, None)


def _replace_concatenations(node: nodes.Node) -> None:
    for field, value in node.iter_fields():
        children = value if isinstance(value, list) else [value]
        for i, child in enumerate(children):
            if not isinstance(child, nodes.Node):
                continue
            _replace_concatenations(child)
            if isinstance(child, nodes.Concat):
                paid = _call("joined", child.nodes)
                if isinstance(value, list):
                    value[i] = paid
                else:
                    setattr(node, field, paid)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
