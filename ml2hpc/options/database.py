"""The database of options: look-up, what has been read, what is left.

A look-up of `-sub_3_snes_max_it` also finds `-sub_snes_max_it`, so one option serves all subdomains or levels. All
names that a look-up may find count as read: what is left in the end was misspelt or belongs to a solver that is not
there. `has` and `has_prefix` only ask and mark nothing.

>>> db = Database.from_string("-sub_snes_max_it 5 -snes_typ qn")
>>> db.has("snes_max_it", prefix="sub_3_"), db.has_prefix("npc_")
(True, False)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from ml2hpc.errors import OptionsError
from ml2hpc.options.closest import closest
from ml2hpc.options.grammar import Entry, normalise, variants
from ml2hpc.options.help import Block, Row, help_text, view_text, written
from ml2hpc.options.schema import Field, fields_of, option, parse
from ml2hpc.options.sources import DIRECTIVES, collect, collect_mapping, collect_string
from ml2hpc.options.values import boolean, text

T = TypeVar("T")
_NUMBER_FIRST = re.compile(r"\d+_")
_NUMBERS = re.compile(r"_(\d+)(?=_)")


@dataclass(frozen=True)
class Options:
    """Options of the database itself."""

    left: Literal["error", "warn", "no"] = option(
        "error", "what to do about options that nothing has read", aliases={"false": "no", "0": "no"}
    )


class Database:
    """All options of a run. It holds plain data only, so it can be broadcast."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = tuple(entries)  # the weakest first
        self._in_force = {entry.name: entry for entry in self._entries}
        self._read = {*DIRECTIVES, "options_left"}  # names that a look-up may find
        self._values: dict[str, str] = {}  # name -> value, of all that has been read
        self._canonical: dict[str, str] = {}  # name of an entry -> its value as a schema writes it
        self._blocks: dict[tuple[type, str, str], Block] = {}

    @classmethod
    def from_sources(cls, *, argv: Sequence[str], environment: Mapping[str, str]) -> Database:
        """Read ML2HPC_OPTIONS, the command line and the option files that they name. Not collective.

        Parameters
        ----------
        argv
            The command line without the program: sys.argv[1:].
        environment
            The environment: os.environ.

        Raises
        ------
        OptionsError
            If a word, a file or a prefix cannot be understood.
        """
        return cls(collect(argv, environment))

    @classmethod
    def from_string(cls, content: str) -> Database:
        """Read options as on the command line; `#` opens a comment. Not collective."""
        return cls(collect_string(content))

    @classmethod
    def from_dict(cls, mapping: Mapping[str, object]) -> Database:
        """Read options from a nested mapping, as from a YAML file. Not collective."""
        return cls(collect_mapping(mapping))

    def under(self, mapping: Mapping[str, object], source: str) -> Database:
        """Return a database with weaker options put under these, which nobody needs to read. Not collective.

        Parameters
        ----------
        mapping
            What `given` returned, in the run that goes on.
        source
            Where they come from, for messages and -options_view.
        """
        weaker = [replace(entry, source=source, required=False) for entry in collect_mapping(mapping)]
        return Database([*weaker, *self._entries])

    def given(self) -> dict[str, str]:
        """Return the options that somebody set, by name without dash, as `from_dict` takes them. Not collective."""
        # A name alone is true for a switch, empty for a viewer: what it stood for where it was read.
        return {
            name: self._canonical.get(name, "true") if entry.value is None else entry.value
            for name, entry in self._in_force.items()
        }

    def read(
        self,
        schema: type[T],
        *,
        prefix: str = "",
        stem: str = "",
        title: str | None = None,
        defaults: Mapping[str, object] | None = None,
        listed: bool = True,
    ) -> T:
        """Fill a dataclass of options; its fields are the options `-<prefix><stem><field>`. Not collective.

        Parameters
        ----------
        schema
            A dataclass whose fields are declared by `option`.
        title
            Headline in the help, the name of the class if none.
        defaults
            Values in the place of the class's own, by field; what the user gave wins over them.
        listed
            Whether the help shows these options; one of many solvers alike is enough.

        Raises
        ------
        OptionsError
            If a value is missing, of the wrong kind or out of range.
        TypeError
            If the schema, or a name in `defaults`, is wrong.
        """
        fields = fields_of(schema)
        defaults = defaults or {}
        unknown = set(defaults) - {field.name for field in fields}
        if unknown:
            raise TypeError(f"{schema.__qualname__} has no option {' '.join(sorted(unknown))}")
        values = {field.name: self._value(field, f"{prefix}{stem}{field.option}", defaults) for field in fields}
        if listed:
            rows = tuple(_row(field, f"{prefix}{stem}{field.option}", values[field.name]) for field in fields)
            self._blocks[schema, prefix.lower(), stem.lower()] = Block(title or schema.__qualname__, rows)
        return schema(**values)

    def _value(self, field: Field, name: str, defaults: Mapping[str, object]) -> object:
        default = field.default
        if field.name in defaults:
            default = parse(field.kind, text(defaults[field.name]), f"-{normalise(name)}", "default of the program")
        entry = self._look_up(name)
        value = default if entry is None else parse(field.kind, entry.value, entry.given, entry.source)
        self._values[normalise(name)] = text(value)
        if entry is not None:
            self._canonical[entry.name] = text(value)
        return value

    def _look_up(self, name: str) -> Entry | None:
        """Find the entry that answers to a name and mark every name that might have."""
        self._read.update(variants(normalise(name)))
        return self._find(name)

    def _find(self, name: str) -> Entry | None:
        found = (self._in_force.get(variant) for variant in variants(normalise(name)))
        return next((entry for entry in found if entry is not None), None)

    def flag(self, name: str, *, prefix: str = "") -> bool:
        """Read a switch that belongs to no schema, off unless given. Not collective."""
        entry = self._look_up(f"{prefix}{normalise(name)}")
        return entry is not None and bool(parse(boolean(), entry.value, entry.given, entry.source))

    def has(self, name: str, prefix: str = "") -> bool:
        """Tell whether an option is set. Not collective."""
        return self._find(f"{prefix}{normalise(name)}") is not None

    def has_prefix(self, prefix: str) -> bool:
        """Tell whether any option begins with a prefix, or with it less its numbers. Not collective."""
        exact, *stripped = variants(normalise(prefix))
        if any(name.startswith(exact) for name in self._in_force):
            return True
        # For the prefix sub_1_, the option -sub_2_snes_type belongs to another subdomain.
        return any(
            name.startswith(start) and not _NUMBER_FIRST.match(name, len(start))
            for name in self._in_force
            for start in stripped
        )

    def foreign(self, prefix: str) -> dict[str, str]:
        """Return the options that begin with a prefix, by the name behind it, for a library that reads them itself.

        They count as read: the library tells what it does not know. An option without a value has an empty one. As in
        a look-up, `-sub_petsc_...` also serves the prefix `sub_3_petsc_`. Not collective.
        """
        found: dict[str, str] = {}
        for start in reversed(variants(normalise(prefix))):
            for name, entry in self._in_force.items():
                if name.startswith(start):
                    found[name.removeprefix(start)] = entry.value or ""
                    self._canonical[name] = entry.value or ""
                    self._read.add(name)
        return found

    def check_unused(self) -> str:
        """Complain about options that nothing has read, as `-options_left` says. Not collective.

        Returns
        -------
        str
            What to print under `-options_left warn`; empty if nothing is left, or under `no`.

        Raises
        ------
        OptionsError
            If an option is left, unless `-options_left` is warn or no.
        """
        action = self.read(Options, stem="options_", title="Options database").left
        left = [entry for entry in self._entries if entry.required and entry.name not in self._read]
        message = "\n".join(dict.fromkeys(self._complaint(entry) for entry in left))
        if message and action == "error":
            raise OptionsError(message)
        return message if action == "warn" else ""

    def _complaint(self, entry: Entry) -> str:
        alias = f", alias of -{entry.name}" if entry.name != normalise(entry.given) else ""
        near = self._closest(entry.name)
        hint = f"; did you mean -{near}?" if near else ""
        return f"unknown option {written(entry.given[1:], entry.value)} ({entry.source}{alias}){hint}"

    def _closest(self, name: str) -> str | None:
        # Thousands of subdomains have read the same names; one with the same numbers is what was meant.
        numbers, bare = _NUMBERS.findall(name), variants(name)[-1]
        same = closest(name, (read for read in self._read if _NUMBERS.findall(read) == numbers))
        return same or (closest(bare, (read for read in self._read if not _NUMBERS.search(read))) if numbers else None)

    def help_text(self) -> str:
        """Write the help of all schemas read so far, in this order. Not collective."""
        return help_text(self._blocks.values())

    def view_text(self) -> str:
        """Write the options in force, sorted by name, with their sources. Not collective."""
        entries = sorted(self._in_force.values(), key=lambda entry: entry.name)
        return view_text((e.name, e.value and self._canonical.get(e.name, e.value), e.source) for e in entries)

    def effective(self) -> dict[str, str]:
        """Give the value of every option read or given so far, defaults included, sorted by name. Not collective.

        `Database.from_dict` of it repeats the run.
        """
        return dict(sorted({**self.given(), **self._canonical, **self._values}.items()))


def _row(field: Field, name: str, value: object) -> Row:
    return Row(normalise(name), text(value), text(field.default), field.help, field.kind.limits, field.kind.choices)
