"""Keep a learner's function or class as source that runs by itself: its imports, its helpers, its constants."""

from __future__ import annotations
import __future__

import ast
import builtins
import dis
import inspect
import linecache
import re
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
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
        own_name, code, space = definition_of(thing)
        self.definitions[name] = ""  # so that a function that calls itself is not followed for ever
        for used in sorted(globals_read(code)):
            if used != name and used in space and not _is_builtin(used, space[used]):
                self.keep(used, space[used])
        del self.definitions[name]  # behind its helpers
        if own_name != name:
            code += f"\n\n\n{name} = {own_name}"
        self.definitions[name] = code


def definition_of(thing: Any) -> tuple[str, str, dict[str, Any]]:
    """Name, source text and globals of a function or class; works for notebook cells, where inspect does not find
    classes."""
    functions = list(_methods(thing)) if isinstance(thing, type) else [_unwrapped(thing)]
    if not functions:
        raise CannotKeep(
            f"the source of {thing.__name__} is not at hand: a class needs a method of its own to be found."
        )
    name, kinds = thing.__name__, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for function in functions:
        lines = linecache.getlines(function.__code__.co_filename)
        try:
            tree = ast.parse("".join(lines))
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            if not isinstance(node, kinds) or node.name != name:
                continue
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            if not first <= function.__code__.co_firstlineno <= (node.end_lineno or 0):
                continue
            if node.col_offset:
                raise CannotKeep(f"{name} is defined inside something else: move it to the top of a cell.")
            return name, "".join(lines[first - 1 : node.end_lineno]).rstrip(), function.__globals__
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
        member = _unwrapped(getattr(member, "__func__", getattr(member, "fget", member)))
        if isinstance(member, FunctionType):
            yield member


def _unwrapped(function: Any) -> Any:
    """Without its decorators' wrappers, which have other source and other globals."""
    inner = inspect.unwrap(function)
    return inner if isinstance(inner, FunctionType) else function


def _home(thing: Any) -> tuple[str, str] | None:
    """(module, name) from which it can be imported again."""
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module == "__main__":
        return None
    found = sys.modules.get(module)
    if found is None or getattr(found, "__spec__", None) is None or getattr(found, name, None) is not thing:
        return None
    return module, name


def _is_builtin(name: str, thing: Any) -> bool:
    """Not where a learner has given the name to something else; but IPython puts a wrapper of `open` into notebooks."""
    return hasattr(builtins, name) and inspect.unwrap(thing) is getattr(builtins, name)


def _is_plain(thing: Any) -> bool:
    try:
        return type(ast.literal_eval(repr(thing))) is type(thing)
    except Exception:
        return False


READS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")


def globals_read(source: str) -> set[str]:
    """The global names that a definition reads, when it is made (decorators, defaults, base classes) and when it runs.

    The compiler has sorted them already: an argument, a local or a comprehension's variable is none, whatever else has
    its name. Annotations stay words, and names such as __name__ belong to the module.
    """
    names: set[str] = set()

    def visit(code: CodeType) -> None:
        own: set[str] = set()  # of a class body, which makes names and reads them again
        for step in dis.get_instructions(code):
            if step.opname == "STORE_NAME":
                own.add(step.argval)
            elif step.opname in READS and (step.opname == "LOAD_GLOBAL" or step.argval not in own):
                names.add(step.argval)
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                visit(constant)

    visit(compile(source, "<definition>", "exec", flags=__future__.annotations.compiler_flag, dont_inherit=True))
    return {name for name in names if not (name.startswith("__") and name.endswith("__"))}
