"""Directives, precedence and aliases."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml2hpc.errors import OptionsError
from ml2hpc.options.grammar import Entry
from ml2hpc.options.sources import collect, collect_mapping, collect_string


def pairs(entries: list[Entry]) -> list[tuple[str, str | None]]:
    return [(e.given, e.value) for e in entries]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_precedence_is_file_environment_command_line(here: Path) -> None:
    (here / "f").write_text("-a 1")
    (here / "g").write_text("-a 2")
    (here / "h").write_text("-a 3")
    argv = ["-a", "5", "-options_file", "g", "--Options_File=h"]
    entries = collect(argv, {"ML2HPC_OPTIONS": "-a 4 -options_file f", "OTHER": "-a 6"})
    assert [(e.value, e.source) for e in entries] == [
        ("1", "file f"),
        ("2", "file g"),
        ("3", "file h"),
        ("4", "environment"),
        ("5", "command line"),
    ]


def test_entry_keeps_spelling_beside_the_name() -> None:
    assert collect(["--SNES_Type", "QN"], {}) == [Entry("snes_type", "-SNES_Type", "QN", "command line")]


def test_prefixes_nest_and_concatenate() -> None:
    entries = collect_string("-prefix_push npc_ -a 1 -PREFIX_PUSH sub_ -b -prefix_pop -c -prefix_pop -d")
    assert pairs(entries) == [("-npc_a", "1"), ("-npc_sub_b", None), ("-npc_c", None), ("-d", None)]


def test_prefix_reaches_into_files(here: Path) -> None:
    (here / "f").write_text("-a 1")
    assert pairs(collect_string("-prefix_push npc_ -options_file f -prefix_pop")) == [("-npc_a", "1")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-prefix_push npc_ -a", "option -prefix_push: no -prefix_pop for 'npc_' (code)"),
        ("-prefix_pop", "option -prefix_pop: no -prefix_push before it (code)"),
        ("-prefix_push a_ -prefix_pop b", "option -prefix_pop: takes no value (code)"),
        ("-prefix_push -a", "option -prefix_push: needs a prefix (code)"),
        ("-PREFIX_push=-a_", "option -prefix_push: needs a prefix (code)"),
        ("-prefix_push 3_", "option -prefix_push: needs a prefix (code)"),
        ("-options_file", "option -options_file: needs a file name (code)"),
        ("-Options_File -a", "option -options_file: needs a file name (code)"),
        ("-a 'b", "a quote is not closed: 'b (code)"),
    ],
)
def test_wrong_directives(line: str, message: str) -> None:
    with pytest.raises(OptionsError) as caught:
        collect_string(line)
    assert str(caught.value) == message


def test_files_include_files_in_their_place_and_folder(here: Path) -> None:
    (here / "sub").mkdir()
    (here / "sub" / "f").write_text("-a 1\n-options_file g\n-a 3")
    (here / "sub" / "g").write_text("-a 2")
    entries = collect_string("-options_file sub/f")
    assert [(e.value, e.source) for e in entries] == [("1", "file sub/f"), ("2", "file sub/g"), ("3", "file sub/f")]


def test_home_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here / "home"))
    (here / "home").mkdir()
    (here / "home" / "f").write_text("-a 1")
    assert pairs(collect_string("-options_file ~/f")) == [("-a", "1")]


def test_same_file_twice_is_no_cycle(here: Path) -> None:
    (here / "f").write_text("-a 1")
    assert pairs(collect_string("-options_file f -options_file ./f")) == [("-a", "1"), ("-a", "1")]


def test_cycle_of_files(here: Path) -> None:
    (here / "f").write_text("-options_file g")
    (here / "g").write_text("\n-options_file ./f")
    with pytest.raises(OptionsError) as caught:
        collect_string("-options_file f")
    assert str(caught.value) == "option files include each other: f -> g -> f (file g, line 2)"


def test_yaml_by_request_and_by_suffix(here: Path) -> None:
    for name in ("f", "f.yaml"):
        (here / name).write_text("npc: {a: 1}")
    assert pairs(collect_string("-options_file f:yaml -options_file f.yaml")) == [("-npc_a", "1")] * 2
    (here / "top.yaml").write_text("options_file: f.yaml")
    assert pairs(collect_string("-options_file top.yaml")) == [("-npc_a", "1")]


def test_missing_file_says_who_named_it(here: Path) -> None:
    (here / "f").write_text("\n-options_file none.txt")
    with pytest.raises(OptionsError) as caught:
        collect(["-options_file", "f"], {})
    assert str(caught.value) == "option file none.txt cannot be read: No such file or directory (file f, line 2)"


def test_alias_holds_for_all_sources(here: Path) -> None:
    (here / "f").write_text("-quick 1\nalias -quick -fast\nalias -fast -snes_max_it\n")
    entries = collect(["-QUICK", "3", "-options_file", "f"], {"ML2HPC_OPTIONS": "-fast 2"})
    assert [(e.name, e.given) for e in entries] == [
        ("snes_max_it", "-quick"),
        ("snes_max_it", "-fast"),
        ("snes_max_it", "-QUICK"),
    ]


def test_alias_cycle(here: Path) -> None:
    (here / "f").write_text("alias -a -b\nalias -b -c\nalias -c -a\n")
    with pytest.raises(OptionsError, match=r"^alias -c leads back to itself \(file f, line 3\)$"):
        collect_string("-options_file f")


def test_mapping() -> None:
    assert collect_mapping({"npc": {"a": 1}}) == [Entry("npc_a", "-npc_a", "1", "code")]
