"""Frozen dataclasses as the schema of options: one field, one option.

A field is declared by `option(default, help)`; its annotation says what values it takes: int, float, bool, str, a
Literal of words, `tuple[..., ...]` of one of these, or one of all these `| None`. A trailing underscore keeps a field
off a Python keyword and is not part of the option: `lambda_` is `-lambda`.

>>> from dataclasses import dataclass
>>> @dataclass(frozen=True)
... class Options:
...     damping: float = option(1.0, "weight of the correction", above=0.0, at_most=1.0)
>>> Options().damping
1.0
>>> fields_of(Options)[0].kind.limits
'above 0 and at most 1'
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from ml2hpc.errors import OptionsError
from ml2hpc.options.values import (
    ANY,
    Bounds,
    Kind,
    boolean,
    choice,
    integer,
    maybe,
    number,
    several,
    text,
    word,
)

T = TypeVar("T")
_KEY = "ml2hpc.options"


@dataclass(frozen=True)
class _Declaration:
    help: str
    bounds: Bounds
    aliases: Mapping[str, str]
    alone: str | None


@dataclass(frozen=True)
class Field:
    """One option of a schema."""

    name: str  # of the dataclass field
    option: str  # of the option, to be put behind prefix and stem
    kind: Kind
    default: object
    help: str


def option(
    default: T,
    help: str,  # noqa: A002
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    aliases: Mapping[str, str] | None = None,
    alone: str | None = None,
) -> T:
    """Declare a dataclass field as an option. Not collective.

    Parameters
    ----------
    default
        Its value when neither the user nor the caller says otherwise.
    help
        One sentence for `-help`.
    above, at_least, below, at_most
        Bounds of a number, of each number in a list.
    aliases
        Other spellings of an enumeration's words: {other: word}.
    alone
        The value that the option's name stands for when no value follows it; None where a value is needed.
    """
    declaration = _Declaration(help, Bounds(above, at_least, below, at_most), dict(aliases or {}), alone)
    declared: T = dataclasses.field(default=default, metadata={_KEY: declaration})
    return declared


def fields_of(schema: type) -> tuple[Field, ...]:
    """Read a schema. Not collective.

    Raises
    ------
    TypeError
        If it is not a dataclass of options, or a default contradicts its own annotation or bounds.
    """
    return _fields_of(schema)


@cache
def _fields_of(schema: type) -> tuple[Field, ...]:
    if not dataclasses.is_dataclass(schema):
        raise TypeError(f"{schema.__qualname__} is not a dataclass")
    hints = typing.get_type_hints(schema)
    return tuple(_field(schema, declared, hints[declared.name]) for declared in dataclasses.fields(schema))


def _field(schema: type, declared: dataclasses.Field[Any], annotation: object) -> Field:
    label = f"{schema.__qualname__}.{declared.name}"
    declaration = declared.metadata.get(_KEY)
    if declaration is None:
        raise TypeError(f"{label} is not an option, write option(default, help)")
    kind = _kind(annotation, declaration, label)
    try:
        default = kind.parse(text(declared.default))
    except ValueError as error:
        raise TypeError(f"{label}: the default {error}") from error
    if default != declared.default:
        raise TypeError(f"{label}: the default {declared.default!r} would be read back as {default!r}")
    return Field(declared.name, declared.name.removesuffix("_"), kind, default, declaration.help)


def _kind(annotation: object, declaration: _Declaration, label: str) -> Kind:
    arguments = typing.get_args(annotation)
    is_optional = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    inner = [argument for argument in arguments if argument is not type(None)] if is_optional else [annotation]
    kind = _list_or_scalar(inner[0], declaration) if len(inner) == 1 else None
    if kind is None:
        raise TypeError(
            f"{label}: cannot read an option as {annotation}; annotate int, float, bool, str, Literal of words,"
            " tuple[..., ...] of one of these, or one of all these | None"
        )
    if is_optional and "none" in map(str.lower, kind.choices):
        raise TypeError(f"{label}: none is a word of the Literal, so the field cannot be optional")
    if declaration.bounds != ANY and not kind.limits:
        raise TypeError(f"{label}: only numbers have bounds")
    wrong = set(declaration.aliases.values()) - set(kind.choices)
    if wrong:
        raise TypeError(f"{label}: aliases of what is not a word of the Literal: {' '.join(sorted(wrong))}")
    kind = maybe(kind) if is_optional else kind
    return kind if declaration.alone is None else dataclasses.replace(kind, alone=declaration.alone)


def _list_or_scalar(annotation: object, declaration: _Declaration) -> Kind | None:
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is not tuple:
        return _scalar(annotation, declaration)
    item = _scalar(arguments[0], declaration) if arguments[1:] == (Ellipsis,) else None
    return None if item is None else several(item)


def _scalar(annotation: object, declaration: _Declaration) -> Kind | None:
    words = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal and all(isinstance(item, str) for item in words):
        return choice(words, declaration.aliases)
    # A list, since an annotation need not be hashable.
    kinds = [(int, integer(declaration.bounds)), (float, number(declaration.bounds)), (bool, boolean()), (str, word())]
    return next((kind for plain, kind in kinds if annotation is plain), None)


def parse(kind: Kind, written: str | None, name: str, source: str) -> object:
    """Read the value of the option `name`. Not collective.

    Raises
    ------
    OptionsError
        If the value is missing or not of this kind.
    """
    if written is None:
        written = kind.alone
    if written is None:
        raise OptionsError(f"option {name}: needs a value, {kind.what} ({source})")
    try:
        return kind.parse(written)
    except ValueError as error:
        raise OptionsError(f"option {name}: {error} ({source})") from error
