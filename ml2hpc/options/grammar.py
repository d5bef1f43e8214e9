"""The grammar of options: words, names, values and the stripping of numbers.

A name is one or two dashes and a letter; the word after it is its value unless that word is a name. So `-1e-3`, `-.5`,
`-inf` and `-nan` are values, and `-name=value` passes a value that looks like a name. Names are case-insensitive.

>>> [(s.name, s.value) for s in statements(split("-snes_view -snes_atol -1e-3 -o=-x  # note"), "command line")]
[('snes_view', None), ('snes_atol', '-1e-3'), ('o', '-x')]
>>> variants("sub_3_snes_max_it")
('sub_3_snes_max_it', 'sub_snes_max_it')
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

from ml2hpc.errors import OptionsError

# A comma ends the hope of a name: `-inf,1` is a list of numbers.
_NAME = re.compile(r"--?(?P<name>[A-Za-z][^=\s,]*)(?:=(?P<value>.*))?", re.DOTALL)
_NEGATIVE_WORDS = ("-inf", "-nan")
_TOKEN = re.compile(r"""\s+|\#[^\n]*|(?P<word>(?:"[^"]*"|'[^']*'|[^\s"'])+)""")
_QUOTED = re.compile(r""""([^"]*)"|'([^']*)'""")


class Statement(NamedTuple):
    """One name with its value, as written."""

    name: str  # without dashes, case as written
    value: str | None  # none for a flag
    where: str  # for messages: "command line" or "file F, line 3"


@dataclass(frozen=True)
class Entry:
    """One option of the database."""

    name: str  # what look-ups compare: full prefix, lower case, aliases resolved, no dash
    given: str  # as the user gave it: full prefix, one dash
    value: str | None  # none for a flag
    source: str  # "command line", "environment", "code" or "file F"
    required: bool = True  # whether leaving it unread is an error


def split(text: str) -> list[str]:
    """Split a text into words; quotes keep spaces, a word that begins with `#` opens a comment. Not collective.

    Raises
    ------
    ValueError
        If a quote is not closed.
    """
    words = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"a quote is not closed: {text[position:]}")
        if match["word"] is not None:
            words.append(_QUOTED.sub(lambda quoted: quoted[1] or quoted[2] or "", match["word"]))
        position = match.end()
    return words


def _match_name(word: str) -> re.Match[str] | None:
    return None if word.lower() in _NEGATIVE_WORDS else _NAME.fullmatch(word)


def is_name(word: str) -> bool:
    """Tell whether a word is the name of an option rather than a value. Not collective."""
    return _match_name(word) is not None


def statements(words: Iterable[str], where: str) -> list[Statement]:
    """Pair names with values. Not collective.

    Raises
    ------
    OptionsError
        If a word is neither a name nor the value of one.
    """
    result: list[Statement] = []
    takes_value = False
    for word in words:
        name = _match_name(word)
        if name is not None:
            result.append(Statement(name["name"], name["value"], where))
            takes_value = name["value"] is None
        elif takes_value:
            result[-1] = result[-1]._replace(value=word)
            takes_value = False
        else:
            raise OptionsError(f"stray argument {word!r} ({where}); write options as -name value")
    return result


@lru_cache(maxsize=65536)
def variants(name: str) -> tuple[str, ...]:
    """List the names that answer a look-up, the most specific first. Not collective.

    Every part `_<digits>_` may be left out, in any combination: fewest left out first, then the one that keeps the
    leftmost numbers, which belong to the outermost solver.
    """
    parts = name.split("_")
    numbers = [i for i in range(len(parts) - 2, 0, -1) if parts[i].isdecimal()]
    dropped = (set(drop) for count in range(len(numbers) + 1) for drop in combinations(numbers, count))
    return tuple(dict.fromkeys("_".join(p for i, p in enumerate(parts) if i not in drop) for drop in dropped))


def normalise(name: str) -> str:
    """Bring a name to the form that look-ups compare: no dash in front, lower case. Not collective."""
    return name.lstrip("-").lower()
