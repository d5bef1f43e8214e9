"""The user's own file: what it holds is found, and what is wrong with it is told with its line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml2hpc.errors import UserError
from ml2hpc.userfile import load

GOOD = """
import math
from pathlib import Path
COUNT = []
COUNT.append(1)
class Heat:
    pass
def step(problem, x, r):
    return x
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def complaint(text: str) -> str:
    with pytest.raises(UserError) as caught:
        load(text, "-pinn_problem")
    return str(caught.value)


def test_a_file_is_read_once_however_it_is_spelt(folder: Path) -> None:
    (folder / "mine.py").write_text(GOOD)
    (folder / "inner").mkdir()
    kind = load("mine.py:Heat", "-pinn_problem")
    assert kind.__name__ == "Heat"
    assert load(f"{folder}/mine.py:Heat", "-p") is load("inner/../mine.py:Heat", "-p") is kind
    assert load("mine.py:COUNT", "-p") == [1]
    assert load("mine.py:step", "-p")(None, 3, 4) == 3


def test_a_module(folder: Path) -> None:
    (folder / "package").mkdir()
    (folder / "package" / "own.py").write_text(GOOD)
    assert load("package.own:Heat", "-p").__module__ == "package.own"
    assert load("math:pi", "-p") == 3.141592653589793
    assert complaint("package.owl:Heat") == (
        "-pinn_problem package.owl:Heat: cannot import package.owl: ModuleNotFoundError: No module named 'package.owl'"
    )


@pytest.mark.parametrize("text", ["mine.py", ":Heat", "mine.py:", ""])
def test_a_name_is_needed(text: str) -> None:
    assert complaint(text) == f"-pinn_problem {text}: expected file.py:name or package.module:name"


def test_a_missing_file(folder: Path) -> None:
    assert complaint("mine.py:Heat") == f"-pinn_problem mine.py:Heat: there is no file {folder}/mine.py"
    (folder / "folder.py").mkdir()
    assert complaint("folder.py:Heat").endswith(f"there is no file {folder}/folder.py")


def test_a_missing_name(folder: Path) -> None:
    (folder / "mine.py").write_text(GOOD)
    assert complaint("mine.py:heat") == "-pinn_problem mine.py:heat: no 'heat' in mine.py, did you mean Heat?"
    # What the file only imports is not offered.
    assert complaint("mine.py:Wave") == "-pinn_problem mine.py:Wave: no 'Wave' in mine.py; it has COUNT, Heat, step"
    (folder / "empty.py").write_text("")
    assert complaint("empty.py:Heat").endswith("no 'Heat' in empty.py; it has nothing")


@pytest.mark.parametrize("place", ["mine.py", "{folder}/mine.py"])
@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("x = 1\ny = (\n", "SyntaxError: '(' was never closed (line 2)"),
        ("x = 1\n\n1 / 0\n", "ZeroDivisionError: division by zero (line 3)"),
        ("def f():\n    return [][1]\n\nf()\n", "IndexError: list index out of range (line 2)"),
        ("import math\nmath.sqrt(-1)\n", "ValueError: "),
        ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module' (line 1)"),
        ("\nimport sys\nsys.exit(3)\n", "SystemExit: 3 (line 3)"),
    ],
)
def test_a_file_that_fails_is_told_with_its_line(folder: Path, place: str, code: str, what: str) -> None:
    place = place.format(folder=folder)
    (folder / "mine.py").write_text(code)
    for _ in range(2):  # a failed file is not taken for a read one
        assert complaint(f"{place}:Heat").startswith(f"-pinn_problem {place}:Heat: {place} failed: {what}")
    (folder / "mine.py").write_text(GOOD + "#" * len(code))
    assert load(f"{place}:Heat", "-p").__name__ == "Heat"


def test_an_error_in_a_file_that_it_imports_names_both_places(folder: Path) -> None:
    (folder / "other.py").write_text("x = 1\n\ny = = 2\n")
    (folder / "mine.py").write_text("\nimport other\n")
    assert complaint("mine.py:Heat").endswith("mine.py failed: SyntaxError: invalid syntax (other.py, line 3) (line 2)")
