"""The text of `-help` and of `-options_view`.

`-help` prints the schemas that the live solver tree has read, so an option appears under the prefix that reaches it.
The option table is itself an option file: reading it back gives the same run.

>>> print(help_text([Block("Solver", (Row("snes_max_it", "5", "50", "most iterations"),))]))
Solver options:
  -snes_max_it <now 5 : formerly 50>: most iterations
>>> print(view_text([("snes_type", "qn", "command line")]))
#ml2hpc Option Table entries:
-snes_type qn # (source: command line)
#End of ml2hpc Option Table entries
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from ml2hpc.options.grammar import is_name

_PLAIN = re.compile(r"""[^\s"'#][^\s"']*""")


class Row(NamedTuple):
    """One option in the help."""

    name: str
    now: str  # the value in force
    formerly: str  # the default of the schema
    help: str
    limits: str = ""
    choices: tuple[str, ...] = ()


class Block(NamedTuple):
    """One schema in the help."""

    title: str
    rows: tuple[Row, ...]


def help_text(blocks: Iterable[Block]) -> str:
    """Write the help of all schemas, in the given order; neighbours of one title share it. Not collective."""
    lines = []
    title = None
    for block in blocks:
        if block.rows and block.title != title:
            lines.append(f"{block.title} options:")
        title = block.title
        lines.extend(_line(row) for row in block.rows)
    return "\n".join(lines)


def _line(row: Row) -> str:
    limits = f" ({row.limits})" if row.limits else ""
    choices = f" (one of) {' '.join(row.choices)}" if row.choices else ""
    values = f"<now {quote(row.now)} : formerly {quote(row.formerly)}>"
    return f"  -{row.name} {values}: {row.help}{limits}{choices}"


def view_text(entries: Iterable[tuple[str, str | None, str]]) -> str:
    """Write the option table from (name, value, source). Not collective."""
    lines = ["#ml2hpc Option Table entries:"]
    lines.extend(f"{written(name, value)} # (source: {source})" for name, value, source in entries)
    return "\n".join([*lines, "#End of ml2hpc Option Table entries"])


def written(name: str, value: str | None) -> str:
    """Write one option so that it reads back as it is. Not collective."""
    if value is None:
        return f"-{name}"
    return f"-{name}={quote(value)}" if is_name(value) else f"-{name} {quote(value)}"


def quote(value: str) -> str:
    """Put a value in quotes where a plain word would not do. Not collective."""
    if _PLAIN.fullmatch(value):
        return value
    # A quote inside one kind of quotes is written in the other kind.
    return "".join(f'"{part}"' if part != '"' else "'\"'" for part in re.split(r'(")', value) if part) or '""'
