"""Plain, YAML and JSON files, nested mappings, and where their errors point."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml2hpc.errors import OptionsError
from ml2hpc.options.files import nested, read_file


def pairs(path: Path, content: str, *, as_yaml: bool = False) -> list[tuple[str, str | None]]:
    path.write_text(content, encoding="utf-8")
    return [(s.name, s.value) for s in read_file(path, as_yaml=as_yaml, where="command line").statements]


def error(path: Path, content: str) -> str:
    with pytest.raises(OptionsError) as caught:
        pairs(path, content)
    return str(caught.value)


def test_plain_file(tmp_path: Path) -> None:
    content = "# a comment\n\n-snes_type qn -snes_monitor  # another, don't mind\n-title 'a # b'\n"
    assert pairs(tmp_path / "f", content) == [("snes_type", "qn"), ("snes_monitor", None), ("title", "a # b")]


def test_aliases_of_a_plain_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("-a 1\nAlias -New -old\n")
    assert read_file(path, as_yaml=False, where="").aliases == [("new", "old", f"file {path}, line 2")]
    for line in ("alias -a", "alias -a b", "alias -a -b c", "alias -a -b -c", "alias -a=1 -b -c"):
        assert error(path, line) == f"an alias is written: alias -new -old (file {path}, line 1)"


def test_plain_errors_name_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "f"
    assert error(path, "-a 1\n-b 2 c").startswith(f"stray argument 'c' (file {path}, line 2)")
    assert error(path, "\n-a 'b").endswith(f"(file {path}, line 2)")
    assert error(path, "-a\n1").startswith("stray argument '1'")  # a value stands on the line of its name


def test_missing_and_binary_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with pytest.raises(OptionsError) as caught:
        read_file(path, as_yaml=False, where="command line")
    assert str(caught.value) == f"option file {path} cannot be read: No such file or directory (command line)"
    path.write_bytes(b"-a 1\n-b \xff")
    with pytest.raises(OptionsError) as caught:
        read_file(path, as_yaml=False, where="command line")
    assert str(caught.value) == f"option file {path}, line 2: not a UTF-8 text (command line)"


YAML = """
npc:
  snes: {type: nasm, monitor: , view: null}
  sub: {3: {snes_max_it: 5}}
-Snes_rtol: 1e-8   # as written, not as YAML would load it
fas_:
  levels: on
weights: [1, 0.5, -inf]
empty: []
quoted: "null"
"""


@pytest.mark.parametrize(("name", "as_yaml"), [("f.yaml", False), ("f.YML", False), ("f", True)])
def test_yaml_file(tmp_path: Path, name: str, as_yaml: bool) -> None:
    assert pairs(tmp_path / name, YAML, as_yaml=as_yaml) == [
        ("npc_snes_type", "nasm"),
        ("npc_snes_monitor", None),
        ("npc_snes_view", None),
        ("npc_sub_3_snes_max_it", "5"),
        ("Snes_rtol", "1e-8"),
        ("fas_levels", "on"),
        ("weights", "1,0.5,-inf"),
        ("empty", ""),
        ("quoted", "null"),
    ]


def test_repeated_yaml_keys_are_kept(tmp_path: Path) -> None:
    assert pairs(tmp_path / "f.yaml", "npc: {a: 1}\nnpc: {b: 2}\n") == [("npc_a", "1"), ("npc_b", "2")]


def test_json_file_with_tabs(tmp_path: Path) -> None:
    content = '{\n\t"npc": {\t"type": "nasm", "tol": 1e-3},\n\t"keep": false, "path": "a\\/b", "view": null}\n'
    expected = [("npc_type", "nasm"), ("npc_tol", "1e-3"), ("keep", "false"), ("path", "a/b"), ("view", None)]
    assert pairs(tmp_path / "f.Json", content) == expected


@pytest.mark.parametrize("content", ["", "# nothing\n", "null", "{}", "npc: {}"])
def test_empty_yaml(tmp_path: Path, content: str) -> None:
    assert pairs(tmp_path / "f.yaml", content) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: 1\nb: [1, 2\nc: 3\n", "option file {f}, line 3: expected ',' or ']', but got ':'"),
        ("a: 1\nb: \x01\n", "option file {f}, line 2: special characters are not allowed"),
        ("- a\n- b\n", "option file {f}, line 1: the top must be a mapping of names to values"),
        ("just words", "option file {f}, line 1: the top must be a mapping of names to values"),
        ("a: 1\n? [x, y]\n: 2\n", "a key must be a name (file {f}, line 2)"),
        ("a:\n  b: [1, [2]]\n", "option -a_b: a list holds plain values only (file {f}, line 2)"),
        ("a: 1\n3: 2\n", "'3' is not an option name (file {f}, line 2)"),
        ("a b: 1\n", "'a b' is not an option name (file {f}, line 1)"),
        ("a: &again {b: *again}\n", "keys are nested more than 50 deep (file {f}, line 1)"),
    ],
)
def test_yaml_errors_name_file_and_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "f.yaml"
    assert error(path, content) == message.format(f=path)


def test_nested_mapping() -> None:
    tree = {
        "npc": {"snes": {"type": "nasm", "monitor": None}, "keep": True},
        "tol": 1e-6,
        "-w": (1, 2.0),
        "n": {3: {"b": ""}},
    }
    assert [(s.name, s.value) for s in nested(tree, "code")] == [
        ("npc_snes_type", "nasm"),
        ("npc_snes_monitor", None),
        ("npc_keep", "true"),
        ("tol", "1e-06"),
        ("w", "1,2.0"),
        ("n_3_b", ""),
    ]
    with pytest.raises(OptionsError, match=r"^option -a_b: a set is not a plain value \(code\)$"):
        nested({"a": {"b": {1}}}, "code")
