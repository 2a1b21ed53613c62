"""From an instruction to the expression that the learner typed. Resolved only when something is shown."""

from __future__ import annotations

import ast
import linecache
import os
import textwrap
from functools import lru_cache
from itertools import takewhile
from types import CodeType

from nanovlm.trace.rows import Where

_NAMESPACES = {"torch", "F", "nn", "functional", "einops", "np", "math", "Tensor"}


class Source:
    """A place in the learner's code. `text` is the exact sub-expression (before Python 3.11: the line), `line` its
    number, `statement` the whole line or lines around it."""

    __slots__ = ("file", "function", "line", "statement", "text")

    def __init__(self, file: str, function: str, line: int, text: str, statement: str):
        self.file = file
        self.function = function
        self.line = line
        self.text = text
        self.statement = statement

    @property
    def place(self) -> str:
        """`model.py:31`, or `cell [4]:2` in a notebook."""
        name = self.file
        if name.startswith("<ipython-input-"):
            name = "cell [" + name.split("-")[2] + "]"
        elif f"{os.sep}ipykernel_" in name:
            name = "cell"
        else:
            name = os.path.basename(name)
        return f"{name}:{self.line}"

    @property
    def short(self) -> str:
        return " ".join(self.text.split())


@lru_cache(maxsize=4096)
def _positions(code: CodeType) -> list[tuple[int | None, int | None, int | None, int | None]]:
    """(line, end line, column, end column) of every two bytes of instructions; columns need Python 3.11."""
    if hasattr(code, "co_positions"):
        return list(code.co_positions())
    found: list[tuple[int | None, int | None, int | None, int | None]] = []
    for start, end, line in code.co_lines():
        found += [(line, line, None, None)] * ((end - start) // 2)
    return found


def locate(where: Where | None) -> Source | None:
    """The source of a place, or None where there is none to read (code made by `exec`, a C function)."""
    if where is None:
        return None
    code, instruction = where
    positions = _positions(code)
    if not 0 <= instruction // 2 < len(positions):
        return None
    line, end_line, column, end_column = positions[instruction // 2]
    if line is None:
        return None
    lines = linecache.getlines(code.co_filename)
    if not 0 < line <= len(lines):
        return Source(code.co_filename, code.co_name, line, "", "")
    statement = textwrap.dedent("".join(lines[line - 1 : end_line or line])).strip()
    text = statement
    if column is not None and end_column is not None and end_line is not None:
        part = [row.encode() for row in lines[line - 1 : end_line]]  # columns count bytes
        part[-1] = part[-1][:end_column]
        part[0] = part[0][column:]
        text = b"".join(part).decode(errors="replace")
    return Source(code.co_filename, code.co_name, line, text.strip(), statement)


def operands(source: Source | None, name: str, is_module: bool = False) -> tuple[list[str], dict[str, str]]:
    """What the learner wrote for the arguments of a step: `q @ k` -> ["q", "k"], `x.view(2, 3)` -> ["x", "2", "3"].

    is_module: the step is a layer's call, `self.proj(x)`, so that what stands before the dot is no argument.
    """
    node = _find(source, name) if source is not None else None
    if name == "setitem" and isinstance(node, ast.Subscript) and source is not None:
        value = _assigned(source.statement)
        return [written(node.value), ast.unparse(node.slice), *([value] if value else [])], {}
    if isinstance(node, ast.BinOp):
        return [written(node.left), written(node.right)], {}
    if isinstance(node, ast.AugAssign):
        return [written(node.target), written(node.value)], {}
    if isinstance(node, ast.Subscript):
        return [written(node.value), ast.unparse(node.slice)], {}
    if not isinstance(node, ast.Call):
        return [], {}
    given = [written(arg) for arg in takewhile(lambda arg: not isinstance(arg, ast.Starred), node.args)]
    if isinstance(node.func, ast.Attribute) and not is_module and not _is_namespace(node.func.value):
        given.insert(0, written(node.func.value))
    return given, {word.arg: written(word.value) for word in node.keywords if word.arg}


def written(node: ast.AST) -> str:
    """An expression as it can be put into another one: a sum in parentheses."""
    text = ast.unparse(node)
    return f"({text})" if isinstance(node, _LOOSE) else text


def _is_namespace(node: ast.AST) -> bool:
    """`torch`, `nn.functional`: a module's name, so that what stands before the dot is no tensor."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name) and node.id in _NAMESPACES


def elements(text: str) -> list[str]:
    """The parts of a written list or tuple: "[a, b]" -> ["a", "b"]; [] for anything else."""
    try:
        node = ast.parse(text, mode="eval").body
    except SyntaxError:
        return []
    return [written(part) for part in node.elts] if isinstance(node, (ast.List, ast.Tuple)) else []


def _find(source: Source, name: str) -> ast.AST | None:
    """The syntax node of a step: the exact expression, or else the one node in the line that can be it."""
    for text in (source.text, source.statement):
        try:
            body = ast.parse(textwrap.dedent(text)).body
        except SyntaxError:
            continue
        if len(body) != 1:
            continue
        if isinstance(body[0], ast.Expr) and isinstance(body[0].value, (ast.BinOp, ast.Call, ast.Subscript)):
            return body[0].value
        nodes = [node for node in ast.walk(body[0]) if _can_be(node, name)]
        if len(nodes) == 1:
            return nodes[0]
    return None


def _assigned(statement: str) -> str | None:
    try:
        node = ast.parse(statement).body[0]
    except (SyntaxError, IndexError):
        return None
    return ast.unparse(node.value) if isinstance(node, ast.Assign) else None


_LOOSE = (ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Lambda, ast.NamedExpr)
_OPERATORS = {"add": ast.Add, "sub": ast.Sub, "mul": ast.Mult, "div": ast.Div, "matmul": ast.MatMult, "pow": ast.Pow}


def _can_be(node: ast.AST, name: str) -> bool:
    if isinstance(node, ast.Call):
        return ast.unparse(node.func).rpartition(".")[2] == name
    if isinstance(node, (ast.BinOp, ast.AugAssign)):
        return isinstance(node.op, _OPERATORS.get(name.rstrip("_"), ast.BitXor))
    return isinstance(node, ast.Subscript) and name in ("getitem", "setitem")
