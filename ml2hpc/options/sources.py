"""From what the user wrote to the entries of the database: option files, prefixes, aliases, precedence.

`-options_file f`, `-prefix_push p_` and `-prefix_pop` are consumed here. Files count less than the environment, which
counts less than the command line, wherever the file is named. An alias of any file holds for all sources.

>>> [(e.given, e.value, e.source) for e in collect(["-prefix_push", "npc_", "-snes_type", "qn", "-prefix_pop"], {})]
[('-npc_snes_type', 'qn', 'command line')]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ml2hpc.errors import OptionsError
from ml2hpc.options.files import nested, read_file
from ml2hpc.options.grammar import Entry, Statement, normalise, split, statements

VARIABLE = "ML2HPC_OPTIONS"
DIRECTIVES = ("options_file", "prefix_push", "prefix_pop")

_ENVIRONMENT = "environment"
_COMMAND_LINE = "command line"
_CODE = "code"
_DIRECT = (_ENVIRONMENT, _COMMAND_LINE, _CODE)  # whatever is not direct comes from a file


class Sources:
    """Turn statements into entries and remember the aliases of the files on the way."""

    def __init__(self) -> None:
        self.aliases: dict[str, str] = {}

    def expand(
        self,
        listed: Iterable[Statement],
        source: str,
        *,
        prefix: str = "",
        opened: tuple[Path, ...] = (),
    ) -> list[Entry]:
        """Carry out the directives; the content of an option file stands in the place of its name. Not collective.

        Parameters
        ----------
        opened
            The option files being read, outermost first; the last one is where the statements come from.

        Raises
        ------
        OptionsError
            If a push has no pop, a file cannot be read or files include each other.
        """
        prefixes = [prefix]
        entries: list[Entry] = []
        for statement in listed:
            directive = statement.name.lower()
            if directive == "prefix_push":
                prefixes.append(prefixes[-1] + _value(statement, "a prefix"))
            elif directive == "prefix_pop":
                if statement.value is not None:
                    raise OptionsError(f"option -prefix_pop: takes no value ({statement.where})")
                if len(prefixes) == 1:
                    raise OptionsError(f"option -prefix_pop: no -prefix_push before it ({statement.where})")
                prefixes.pop()
            elif directive == "options_file":
                entries.extend(self._load(statement, prefixes[-1], opened))
            else:
                full = prefixes[-1] + statement.name
                entries.append(Entry(normalise(full), f"-{full}", statement.value, source))
        if len(prefixes) > 1:
            raise OptionsError(f"option -prefix_push: no -prefix_pop for {prefixes[-1]!r} ({source})")
        return entries

    def _load(self, statement: Statement, prefix: str, opened: tuple[Path, ...]) -> list[Entry]:
        written = _value(statement, "a file name")
        name = written.removesuffix(":yaml")
        folder = opened[-1].parent if opened else Path()
        path = folder / Path(name).expanduser()
        if path.resolve() in [other.resolve() for other in opened]:
            chain = " -> ".join(str(other) for other in (*opened, path))
            raise OptionsError(f"option files include each other: {chain} ({statement.where})")
        content = read_file(path, as_yaml=name != written, where=statement.where)
        for new, old, where in content.aliases:
            self.aliases[new] = old
            if self._target(new) is None:
                raise OptionsError(f"alias -{new} leads back to itself ({where})")
        return self.expand(content.statements, f"file {path}", prefix=prefix, opened=(*opened, path))

    def _target(self, name: str) -> str | None:
        """Follow the aliases from a name; none if they go round in a circle."""
        seen = {name}
        while name in self.aliases:
            name = self.aliases[name]
            if name in seen:
                return None
            seen.add(name)
        return name

    def order(self, entries: Iterable[Entry]) -> list[Entry]:
        """Resolve the aliases and put the entries of files first, where they are weakest. Not collective."""
        ordered = sorted(entries, key=lambda entry: entry.source in _DIRECT)  # stable: the rest keeps its order
        return [replace(entry, name=self._target(entry.name) or entry.name) for entry in ordered]


def collect(argv: Sequence[str], environment: Mapping[str, str]) -> list[Entry]:
    """Read the environment variable, the command line and the files that they name. Not collective."""
    sources = Sources()
    listed = statements(_split(environment.get(VARIABLE, ""), _ENVIRONMENT), _ENVIRONMENT)
    entries = sources.expand(listed, _ENVIRONMENT)
    entries += sources.expand(statements(argv, _COMMAND_LINE), _COMMAND_LINE)
    return sources.order(entries)


def collect_string(content: str) -> list[Entry]:
    """Read options from a text that the program holds. Not collective."""
    sources = Sources()
    return sources.order(sources.expand(statements(_split(content, _CODE), _CODE), _CODE))


def collect_mapping(mapping: Mapping[str, object]) -> list[Entry]:
    """Read options from a nested mapping that the program holds. Not collective."""
    sources = Sources()
    return sources.order(sources.expand(nested(mapping, _CODE), _CODE))


def _split(content: str, where: str) -> list[str]:
    try:
        return split(content)
    except ValueError as error:
        raise OptionsError(f"{error} ({where})") from error


def _value(statement: Statement, what: str) -> str:
    directive = statement.name.lower()
    if not statement.value or (directive == "prefix_push" and not statement.value[0].isalpha()):
        raise OptionsError(f"option -{directive}: needs {what} ({statement.where})")
    return statement.value
