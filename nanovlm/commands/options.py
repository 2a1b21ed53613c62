"""Command-line options from typed functions and dataclasses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

T = TypeVar("T")
REGISTRY = ConstructorRegistry()
SPELLINGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@REGISTRY.primitive_rule
def _switch(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[bool] | None:
    """`--compile False` is false (with `type=bool` it would be true), and `--compile` alone is true."""
    if info.type is not bool:
        return None

    def read(words: list[str]) -> bool:
        if len(words) > 1 or (words and words[0].lower() not in SPELLINGS):
            raise ValueError(f"expected True or False, not {' '.join(words)}")
        return SPELLINGS[words[0].lower()] if words else True

    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="[{True,False}]",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    )


@REGISTRY.primitive_rule
def _optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """`INT | None` is shown as INT: None is what stands where the option is left out."""
    kinds = [kind for kind in get_args(info.type) if kind is not NoneType]
    if NoneType not in get_args(info.type) or len(kinds) != 1 or kinds[0] not in (int, float, str, Path):
        return None
    (kind,) = kinds
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=kind.__name__.upper(),
        instance_from_str=lambda words: None if words[0] == "None" else kind(words[0]),
        is_instance=lambda value: value is None or isinstance(value, kind),
        str_from_instance=lambda value: [str(value)],
    )


def parse(what: Callable[..., T], name: str, arguments: Sequence[str], **more: Any) -> T:
    """Call `what`, a function or a dataclass, with the options in `arguments`; `more` goes to tyro.cli.

    An option that does not exist, or a value that does not fit, ends the process with status 2.
    """
    return tyro.cli(
        what,
        prog=f"nanovlm {name}",
        args=list(arguments),
        registry=REGISTRY,
        config=(tyro.conf.FlagConversionOff, tyro.conf.OmitArgPrefixes),
        **more,
    )
