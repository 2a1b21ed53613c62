"""Values from a file that a stranger wrote: each has the type that is wanted, or a sentence names it. No torch here."""

from __future__ import annotations

import dataclasses
import reprlib
import sys
from collections.abc import Mapping
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

REQUIRED = object()
LARGEST = 2**24  # of any size of a model: beyond the largest vocabulary and context there are, and products fit 64 bits
PLAIN: dict[Any, tuple[type, str]] = {
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    bool: (bool, "true or false"),
    str: (str, "a text"),
    bytes: (bytes, "bytes"),
    list: (list, "a list"),
    dict: (Mapping, "an object of settings"),
    type(None): (type(None), "null"),
}
_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 80


def shown(value: Any) -> str:
    """A value for a sentence: on one line and short, whatever it is."""
    return " ".join(_short.repr(value).split())


def first_line(error: BaseException) -> str:
    """What an error says, on one line; some say nothing, and then their names do."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is what an annotation says, as JSON means it: true is no number, and numbers are finite."""
    if get_origin(hint) in (Union, UnionType):
        return any(fits(value, part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return isinstance(value, str | int) and value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, list | tuple) and all(fits(entry, get_args(hint)[0]) for entry in value)
    if get_origin(hint) is dict:
        keys, values = get_args(hint)
        return isinstance(value, Mapping) and all(fits(k, keys) and fits(v, values) for k, v in value.items())
    if dataclasses.is_dataclass(hint):
        return isinstance(value, hint)
    if hint is float and isinstance(value, Real):  # a JSON file can hold NaN, Infinity and 1e999
        return not isinstance(value, bool) and -sys.float_info.max <= value <= sys.float_info.max
    return isinstance(value, PLAIN[hint][0]) and (hint is bool or not isinstance(value, bool))


def words(hint: Any) -> str:
    """What an annotation asks for."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(words, get_args(hint)))
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(repr, get_args(hint)))}"
    if get_origin(hint) is tuple:
        return "a list"
    if get_origin(hint) is dict:
        keys, values = get_args(hint)
        return f"an object that maps {words(keys)} to {words(values)}"
    if dataclasses.is_dataclass(hint):
        return f"the settings of a {hint.__name__}"
    return PLAIN[hint][1]


def setting(values: Mapping[str, Any], key: str, hint: Any, default: Any = REQUIRED) -> Any:
    """values[key], which is what the annotation `hint` says. Raises ValueError that names the key."""
    if key not in values:
        if default is REQUIRED:
            raise ValueError(f"The setting {key} is missing.")
        return default
    if not fits(values[key], hint):
        raise ValueError(f"{key} must be {words(hint)}; it is {shown(values[key])}.")
    return values[key]
