"""The example of a new type in CONTRIBUTING.md keeps the contract of all types, as it is printed there."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest

from ml2hpc.userfile import load
from tests.snes import test_contract as contract

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"


def blocks() -> list[str]:
    """The Python code on the page: the type, then its contract."""
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The files of the page."""
    place, before = tmp_path_factory.mktemp("example"), set(sys.modules)
    for name, text in zip(("bb.py", "contract_of_bb.py"), blocks(), strict=True):
        (place / name).write_text(text)
    yield place
    for name in set(sys.modules) - before:
        del sys.modules[name]


def stated(folder: Path) -> ModuleType:
    """The page's contract."""
    spec = importlib.util.spec_from_file_location("contract_of_bb", folder / "contract_of_bb.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def from_file(options: str, folder: Path) -> str:
    """The same tree with the type out of the file."""
    text, count = re.subn(r"-snes_type bb\b", f"-snes_type python -snes_python_type {folder}/bb.py:{NAME}", options)
    assert count == 1
    return text


NAME = "BarzilaiBorwein"


def test_the_type_is_one_file_of_less_than_80_lines():
    code, stated_contract = blocks()
    assert code.count("\n") + stated_contract.count("\n") < 80
    assert all(len(line) <= 120 for line in (code + stated_contract).splitlines())


@pytest.mark.parametrize("check", contract.CHECKS)
def test_the_type_keeps_the_contract(comm, folder, check):
    for options, iterations, factor in stated(folder).TREES.values():
        check(comm, (from_file(options, folder), iterations, factor))


def test_every_option_of_the_type_changes_its_result(comm, folder):
    changes = stated(folder).CHANGES
    for option, (base, value) in changes.items():
        contract.test_an_option_away_from_its_default_changes_the_result(
            comm, "bb", option, from_file(base, folder), value
        )
    kind = load(f"{folder}/bb.py:{NAME}", "-snes_python_type")
    assert {f.name for f in fields(kind.Options)} == set(changes)
