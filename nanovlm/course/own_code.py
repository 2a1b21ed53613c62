"""Keep a learner's function or class as source that runs by itself: its imports, its helpers, its constants."""

from __future__ import annotations

import ast
import builtins
import inspect
import linecache
import re
import sys
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any


class CannotKeep(Exception):
    """Says in one sentence why."""


def own_code(thing: Any) -> tuple[str, str]:
    """(name, source): running the source defines `name`. Raises CannotKeep."""
    keeper = _Keeper()
    name = getattr(thing, "__name__", "")
    if not isinstance(thing, (FunctionType, type)) or not name.isidentifier():
        raise CannotKeep("only a function or class that was written with def or class can be kept.")
    keeper.keep(name, thing)
    return name, keeper.source()


def revive(name: str, source: str, title: str) -> tuple[Any, dict[str, Any]]:
    """The thing that own_code kept, and the names that it lives among; `title` stands for the file name in error
    messages."""
    filename = f"<{title}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    space: dict[str, Any] = {"__name__": f"your {title}"}
    exec(compile(source, filename, "exec", dont_inherit=True), space)
    return space[name], space


class _Keeper:
    def __init__(self) -> None:
        self.imports: dict[str, str] = {}  # name -> statement
        self.definitions: dict[str, str] = {}  # name -> source, helpers first

    def source(self) -> str:
        # Annotations stay words: what only they name need not be there.
        head = ["from __future__ import annotations", *sorted(set(self.imports.values()))]
        return "\n".join(head) + "\n\n\n" + "\n\n\n".join(self.definitions.values()) + "\n"

    def keep(self, name: str, thing: Any) -> None:
        """Add whatever makes `name` mean `thing`."""
        if name in self.imports or name in self.definitions:
            return
        if isinstance(thing, ModuleType):
            self.imports[name] = f"import {thing.__name__}" + (f" as {name}" if thing.__name__ != name else "")
            return
        home = _home(thing)
        if home is not None:
            module, original = home
            self.imports[name] = f"from {module} import {original}" + (f" as {name}" if original != name else "")
        elif isinstance(thing, (FunctionType, type)):
            self._keep_definition(name, thing)
        elif _is_plain(thing):
            self.definitions[name] = f"{name} = {thing!r}"
        else:
            raise CannotKeep(f"it uses {name}, which another cell made. Make it an argument, or create it inside.")

    def _keep_definition(self, name: str, thing: Any) -> None:
        node, code, space = definition_of(thing)
        self.definitions[name] = ""  # so that a function that calls itself is not followed for ever
        for used in sorted(_loaded_names(node)):
            if used != name and used in space and not hasattr(builtins, used):
                self.keep(used, space[used])
        del self.definitions[name]  # behind its helpers
        if node.name != name:
            code += f"\n\n\n{name} = {node.name}"
        self.definitions[name] = code


def definition_of(thing: Any) -> tuple[Any, str, dict[str, Any]]:
    """Syntax tree, source text and globals of a function or class; works for notebook cells, where inspect does not
    find classes."""
    functions = [thing] if isinstance(thing, FunctionType) else list(_methods(thing))
    if not functions:
        raise CannotKeep(
            f"the source of {thing.__name__} is not at hand: a class needs a method of its own to be found."
        )
    code = inspect.unwrap(functions[0]).__code__
    lines = linecache.getlines(code.co_filename)
    name = thing.__name__
    try:
        tree = ast.parse("".join(lines))
    except SyntaxError:
        lines = []
    if not lines:
        raise CannotKeep(f"the source of {name} is not at hand.")
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for node in ast.walk(tree):
        if (
            isinstance(node, kinds)
            and node.name == name
            and node.lineno
            <= code.co_firstlineno + len(node.decorator_list)
            <= (node.end_lineno or 0) + len(node.decorator_list)
        ):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            if node.col_offset:
                raise CannotKeep(f"{name} is defined inside something else: move it to the top of a cell.")
            return node, "".join(lines[first - 1 : node.end_lineno]).rstrip(), functions[0].__globals__
    raise CannotKeep(f"the source of {name} is not at hand (a lambda? write it with def).")


def failed_since(learner: Any) -> str | None:
    """In a notebook: a cell that should have defined `learner` again, after the one that did, and failed. The sentence
    that says so, or None."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    functions = [learner] if isinstance(learner, FunctionType) else []
    if isinstance(learner, type):
        functions = list(_methods(learner))
    if shell is None or not functions:
        return None
    own = "".join(linecache.getlines(inspect.unwrap(functions[0]).__code__.co_filename)).strip()
    cells = [cell.strip() for cell in shell.user_ns.get("In", ())]
    if not own or own not in cells:
        return None
    name = learner.__name__
    last = len(cells) - 1 - cells[::-1].index(own)
    for cell in reversed(cells[last + 1 :]):
        if not re.search(rf"\b{re.escape(name)}\b", cell):
            continue
        try:
            ast.parse(shell.transform_cell(cell))
            why = ""
        except SyntaxError as error:
            why = f" ({type(error).__name__} in its line {error.lineno}: {error.msg})"
        if why or re.search(rf"^(?:async +)?(?:def|class) +{re.escape(name)}\b", cell, re.MULTILINE):
            return f"The cell that defines {name} failed{why}: {name} is still the one of before. Mend that cell first."
    return None


def _methods(cls: type) -> Iterator[FunctionType]:
    for member in vars(cls).values():
        member = getattr(member, "__func__", getattr(member, "fget", member))
        if isinstance(member, FunctionType):
            yield member


def _home(thing: Any) -> tuple[str, str] | None:
    """(module, name) from which it can be imported again."""
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module == "__main__":
        return None
    found = sys.modules.get(module)
    if found is None or getattr(found, "__spec__", None) is None or getattr(found, name, None) is not thing:
        return None
    return module, name


def _is_plain(thing: Any) -> bool:
    try:
        return type(ast.literal_eval(repr(thing))) is type(thing)
    except Exception:
        return False


def _loaded_names(node: ast.AST) -> set[str]:
    """Names that the definition reads when it runs: all but those in annotations."""
    names: set[str] = set()

    def visit(part: ast.AST) -> None:
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load):
            names.add(part.id)
        for field, value in ast.iter_fields(part):
            if field in ("annotation", "returns"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    visit(child)

    visit(node)
    return names
