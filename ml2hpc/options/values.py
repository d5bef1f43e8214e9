"""The kinds of option values: how a text becomes a typed value and how a value is written.

A kind parses one text and raises ValueError with half a sentence, which the schema completes with the name and the
source. `text` is the inverse: a kind reads what `text` writes and gives the same value.

>>> integer().parse("1e4")
10000
>>> choice(("none", "secant"), {"l2": "secant"}).parse("L2")
'secant'
>>> text((1.0, float("inf")))
'1.0,inf'
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ml2hpc.options.closest import closest

_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")
_EXACT = 2.0**53  # float64 holds every integer up to here; larger ones have to be written out in digits


@dataclass(frozen=True)
class Kind:
    """One kind of value."""

    what: str  # with its article, for messages
    parse: Callable[[str], object]
    alone: str | None = None  # what a flag without a value stands for; none if it needs one
    choices: tuple[str, ...] = ()
    limits: str = ""  # the bounds in words


@dataclass(frozen=True)
class Bounds:
    """An interval: open at `above` and `below`, closed at `at_least` and `at_most`."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None

    def describe(self) -> str:
        """Say what is allowed; empty when everything is. Not collective."""
        named = (("above", self.above), ("at least", self.at_least), ("below", self.below), ("at most", self.at_most))
        return " and ".join(f"{word} {bound:g}" for word, bound in named if bound is not None)

    def check(self, value: float, written: str) -> None:
        """Raise ValueError for a value outside. Not collective."""
        inside = (
            (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.below is None or value < self.below)
            and (self.at_most is None or value <= self.at_most)
        )
        if not inside:
            raise ValueError(f"{written!r} is out of range, must be {self.describe()}")


ANY = Bounds()


def text(value: object) -> str:
    """Write a value as an option text that reads back exactly. Not collective."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        return ",".join(text(item) for item in value)
    return repr(float(value)) if isinstance(value, float) else str(value)


def integer(bounds: Bounds = ANY) -> Kind:
    """Build the kind of whole numbers; `1e4` is one too. Not collective."""

    def parse(written: str) -> int:
        value = _integer(written)
        if value is None:
            raise ValueError(f"{written!r} is not an integer")
        bounds.check(value, written)
        return value

    return Kind("an integer", parse, limits=bounds.describe())


def number(bounds: Bounds = ANY) -> Kind:
    """Build the kind of float64 numbers; infinity is one, NaN is not. Not collective."""

    def parse(written: str) -> float:
        value = _number(written)
        if value is None:
            raise ValueError(f"{written!r} is not a number")
        bounds.check(value, written)
        return value

    return Kind("a number", parse, limits=bounds.describe())


def _integer(written: str) -> int | None:
    digits = written[1:] if written[:1] in ("+", "-") else written
    if digits.isdecimal():
        return int(written)
    value = _number(written)
    return int(value) if value is not None and value.is_integer() and abs(value) <= _EXACT else None


def _number(written: str) -> float | None:
    try:
        value = float(written)
    except ValueError:
        return None
    return None if math.isnan(value) or "_" in written else value


def boolean() -> Kind:
    """Build the kind of switches; the name alone turns one on. Not collective."""
    what = "a boolean (true/false, yes/no, on/off, 1/0)"

    def parse(written: str) -> bool:
        word = written.lower()
        if word not in _TRUE + _FALSE:
            raise ValueError(f"{written!r} is not {what}")
        return word in _TRUE

    return Kind(what, parse, alone="true")


def word() -> Kind:
    """Build the kind of any text. Not collective."""
    return Kind("a text", str)


def choice(words: tuple[str, ...], aliases: Mapping[str, str] | None = None) -> Kind:
    """Build the kind of some words, in any case, given back as they are spelled here. Not collective.

    Parameters
    ----------
    aliases
        Other spellings: {other: word}.
    """
    what = f"one of {' '.join(words)}"
    spellings = {other.lower(): canonical for other, canonical in (aliases or {}).items()}
    spellings.update((canonical.lower(), canonical) for canonical in words)

    def parse(written: str) -> str:
        spelling = written.lower()
        if spelling not in spellings:
            near = closest(spelling, spellings)
            hint = f"; did you mean {near}?" if near else ""
            raise ValueError(f"{written!r} is not available, must be {what}{hint}")
        return spellings[spelling]

    return Kind(what, parse, choices=words)


def several(item: Kind) -> Kind:
    """Build the kind of comma lists; the empty text is the empty list. Not collective."""

    def parse(written: str) -> tuple[object, ...]:
        return tuple(item.parse(part.strip()) for part in written.split(",")) if written.strip() else ()

    return Kind(f"a comma list, each {item.what}", parse, choices=item.choices, limits=item.limits)


def maybe(inner: Kind) -> Kind:
    """Build the kind of values of another kind, or `none`. Not collective."""

    def parse(written: str) -> object:
        return None if written.lower() == "none" else inner.parse(written)

    choices = (*inner.choices, "none") if inner.choices else ()
    return Kind(f"{inner.what} or none", parse, inner.alone, choices, inner.limits)
