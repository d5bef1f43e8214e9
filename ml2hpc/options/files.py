"""Option files: plain text, YAML and JSON, and the same nested keys as a Python mapping.

A plain file has lines `-name value` (several per line allowed), `alias -new -old` and comments. In YAML and JSON the
keys are joined: `npc: {snes: {type: nasm}}` is `-npc_snes_type nasm`; a list is a comma list and null makes a flag.

>>> [(s.name, s.value) for s in nested({"npc": {"snes": {"type": "nasm", "monitor": None}}, "w": [1, 0.5]}, "code")]
[('npc_snes_type', 'nasm'), ('npc_snes_monitor', None), ('w', '1,0.5')]
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import yaml  # type: ignore[import-untyped, unused-ignore]

from ml2hpc.errors import OptionsError
from ml2hpc.options.grammar import Statement, normalise, split, statements
from ml2hpc.options.values import text

_YAML_SUFFIXES = (".yaml", ".yml", ".json")
_NULL = "tag:yaml.org,2002:null"
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_MAX_DEPTH = 50  # a solver tree is far shallower; an anchor that holds itself is endless


class OptionFile(NamedTuple):
    """The content of one option file."""

    statements: list[Statement]
    aliases: list[tuple[str, str, str]]  # (new name, old name, where)


def read_file(path: Path, *, as_yaml: bool, where: str) -> OptionFile:
    """Read one option file, YAML by request or by its suffix. Not collective.

    Raises
    ------
    OptionsError
        If the file cannot be read or a line of it cannot be understood.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise OptionsError(f"option file {path} cannot be read: {error.strerror} ({where})") from error
    except UnicodeDecodeError as error:
        line = 1 + error.object[: error.start].count(b"\n")
        raise OptionsError(f"option file {path}, line {line}: not a UTF-8 text ({where})") from error
    if as_yaml or path.suffix.lower() in _YAML_SUFFIXES:
        # Tabs between JSON tokens are legal, YAML refuses them; inside a JSON string a tab is written \t.
        content = content.replace("\t", " ") if path.suffix.lower() == ".json" else content
        return OptionFile(_read_yaml(content, path), [])
    return _read_plain(content, path)


def _read_plain(content: str, path: Path) -> OptionFile:
    result = OptionFile([], [])
    for number, line in enumerate(content.splitlines(), start=1):
        where = f"file {path}, line {number}"
        try:
            words = split(line)
        except ValueError as error:
            raise OptionsError(f"{error} ({where})") from error
        if words and words[0].lower() == "alias":
            names = [s.name for s in statements(words[1:], where) if s.value is None]
            if len(names) != 2 or len(words) != 3:
                raise OptionsError(f"an alias is written: alias -new -old ({where})")
            result.aliases.append((normalise(names[0]), normalise(names[1]), where))
        else:
            result.statements.extend(statements(words, where))
    return result


def _read_yaml(content: str, path: Path) -> list[Statement]:
    try:
        root = yaml.compose(content, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = 1 + (error.problem_mark.line if error.problem_mark else 0)
        raise OptionsError(f"option file {path}, line {line}: {error.problem}") from error
    except yaml.reader.ReaderError as error:
        line = 1 + content.count("\n", 0, error.position)
        raise OptionsError(f"option file {path}, line {line}: {error.reason}") from error
    if root is None or (isinstance(root, yaml.ScalarNode) and root.tag == _NULL):
        return []
    if not isinstance(root, yaml.MappingNode):
        raise OptionsError(f"option file {path}, line 1: the top must be a mapping of names to values")
    return list(_walk(root, "", path, 0))


def _walk(node: yaml.MappingNode, prefix: str, path: Path, depth: int) -> Iterator[Statement]:
    """Yield the leaves in order of writing. Nodes, unlike loaded values, keep spelling, lines and repeated keys."""
    for key, value in node.value:
        where = f"file {path}, line {1 + key.start_mark.line}"
        if depth == _MAX_DEPTH:
            raise OptionsError(f"keys are nested more than {_MAX_DEPTH} deep ({where})")
        if not isinstance(key, yaml.ScalarNode):
            raise OptionsError(f"a key must be a name ({where})")
        name = _join(prefix, key.value)
        if isinstance(value, yaml.MappingNode):
            yield from _walk(value, name, path, depth + 1)
        elif isinstance(value, yaml.SequenceNode):
            if not all(isinstance(item, yaml.ScalarNode) for item in value.value):
                raise OptionsError(f"option -{name}: a list holds plain values only ({where})")
            yield _leaf(name, ",".join(item.value for item in value.value), where)
        else:
            yield _leaf(name, None if value.tag == _NULL else value.value, where)


def nested(mapping: Mapping[str, object], where: str) -> list[Statement]:
    """Flatten a nested mapping: keys joined by `_`, sequences as comma lists, none as a flag. Not collective.

    Raises
    ------
    OptionsError
        If a joined key is not an option name or a value is not a plain one.
    """

    def leaves(branch: Mapping[str, object], prefix: str) -> Iterator[Statement]:
        for key, value in branch.items():
            name = _join(prefix, str(key))
            if isinstance(value, Mapping):
                yield from leaves(value, name)
                continue
            items = value if isinstance(value, list | tuple) else [value]
            if not all(isinstance(item, bool | int | float | str) or value is None for item in items):
                raise OptionsError(f"option -{name}: a {type(value).__name__} is not a plain value ({where})")
            yield _leaf(name, None if value is None else ",".join(text(item) for item in items), where)

    return list(leaves(mapping, ""))


def _join(prefix: str, key: str) -> str:
    key = key.lstrip("-")
    return key if not prefix else f"{prefix}{key}" if prefix.endswith("_") else f"{prefix}_{key}"


def _leaf(name: str, value: str | None, where: str) -> Statement:
    if not _KEY.fullmatch(name):
        raise OptionsError(f"{name!r} is not an option name ({where})")
    return Statement(name, value, where)
