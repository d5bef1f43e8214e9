"""The rules of the house, read from the syntax trees of all sources: floors, walls, lengths, docstrings.

A rule is a function from a source to its complaints. Each has broken examples below that it must find, and every rule
must stay silent on the good example.
"""

from __future__ import annotations

import ast
import configparser
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import pytest

# A file imports from its own floor or below. A new room, a folder or a file directly in ml2hpc/, gets its line here.
FLOORS = {
    "__init__": 0,
    "errors": 0,
    "options": 0,
    "comm": 0,
    "log": 0,
    "kernels": 0,
    "userfile": 0,
    "vec": 1,
    "io": 1,
    "monitor": 1,
    "problem": 2,
    "dm": 2,
    "ksp": 3,
    "linesearch": 3,
    "trustregion": 3,
    "snes": 4,
    "petsc": 4,
    "run": 5,
    "apps": 6,
}
# In these rooms each file is a type, which imports no other type; the modules of SHARED are what types have in common.
ROOMS_OF_TYPES = {"snes", "linesearch", "ksp"}
SHARED = {"__init__", "interface", "method", "registry", "factory", "loop", "reasons", "convergence", "npc", "view"}
SHARED |= {"secant", "limited", "dense", "newton", "sr1", "mixing", "subspace", "levels", "nested", "coarse"}
# Solvers see a problem through its interface: no network, engine or sampler.
SOLVERS = {"ksp", "linesearch", "trustregion", "snes"}
PROBLEM_FOR_SOLVERS = {"interface"}
# Where a name may be used: prefixes of paths.
ONLY_IN = {
    "h5py": ("ml2hpc/io/", "tests/"),
    "petsc4py": ("ml2hpc/vec/petsc.py", "tests/"),
    "matplotlib": ("apps/", "tests/"),
    "COMM_WORLD": ("ml2hpc/comm.py", "ml2hpc/comm/", "apps/", "tests/conftest.py"),
}
LONGEST_FILE = 600  # lines
LONGEST_FUNCTION = 100  # lines
VAGUE_NAMES = {"trainer", "manager", "handler", "helper", "helpers", "util", "utils", "common", "misc"}
UNFINISHED = ("TO" + "DO", "FIX" + "ME", "XX" + "X")

ROOT = Path(__file__).parents[1]
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Source:
    """A Python file: its path in the checkout and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """The syntax tree."""
        return ast.parse(self.text, self.path)

    @cached_property
    def module(self) -> tuple[str, ...]:
        """The dotted name, in parts; apps/ is installed as ml2hpc.apps, and a package's own file ends in __init__."""
        parts = PurePosixPath(self.path).with_suffix("").parts
        return ("ml2hpc", *parts) if parts[0] == "apps" else parts

    @cached_property
    def room(self) -> str:
        """The folder or file directly in ml2hpc/."""
        return self.module[1]

    @cached_property
    def installed(self) -> bool:
        """Whether the file is part of the package."""
        return self.module[0] == "ml2hpc"

    def imports(self) -> Iterator[tuple[int, list[str]]]:
        """Yield line and dotted name, in parts, of everything imported, down to the names taken out of a module."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield node.lineno, alias.name.split(".")
            elif isinstance(node, ast.ImportFrom):
                start = list(self.module[: -node.level]) if node.level else []
                for alias in node.names:
                    yield node.lineno, [*start, *(node.module.split(".") if node.module else []), alias.name]

    def imports_by_name(self) -> Iterator[tuple[int, str]]:
        """Yield line and text of each module that importlib.import_module is called with."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
                name = node.args[0]
                if isinstance(name, ast.Constant) and isinstance(name.value, str):
                    yield node.lineno, name.value

    def imports_of_rooms(self) -> Iterator[tuple[int, str, str]]:
        """Yield line, room and module (or a name of the room's package) of each import from ml2hpc."""
        for line, parts in self.imports():
            if parts[0] == "ml2hpc" and len(parts) > 1:
                room = "__init__" if parts[1].startswith("__") else parts[1]
                yield line, room, parts[2] if len(parts) > 2 else "__init__"


def check_floors(source: Source) -> Iterator[str]:
    """A file imports only from its own floor or below."""
    if not source.installed:
        return
    for line, room in [(1, source.room), *((line, room) for line, room, _ in source.imports_of_rooms())]:
        if room not in FLOORS:
            yield f"{line}: room {room} has no floor yet: add it to FLOORS in tests/test_house.py"
        elif FLOORS[room] > FLOORS.get(source.room, 0):
            yield f"{line}: {source.room} (floor {FLOORS.get(source.room)}) imports {room} (floor {FLOORS[room]})"


def check_types(source: Source) -> Iterator[str]:
    """A solver type imports no other type."""
    if not source.installed or source.room not in ROOMS_OF_TYPES or source.module[2] in SHARED:
        return
    for line, room, module in source.imports_of_rooms():
        if room == source.room and module not in SHARED | {source.module[2]}:
            yield f"{line}: type {source.module[2]} imports {module}, which is not in SHARED of tests/test_house.py"


def check_solvers(source: Source) -> Iterator[str]:
    """A solver knows the interface of a problem only."""
    if not source.installed or source.room not in SOLVERS:
        return
    for line, room, module in source.imports_of_rooms():
        if room == "problem" and module not in PROBLEM_FOR_SOLVERS:
            yield f"{line}: a solver imports {module} of problem/; it may import {', '.join(PROBLEM_FOR_SOLVERS)}"


def check_places(source: Source) -> Iterator[str]:
    """Some libraries and the world communicator are used in one place."""
    used = [(line, name) for line, parts in source.imports() for name in parts]
    used += [(node.lineno, node.attr) for node in ast.walk(source.tree) if isinstance(node, ast.Attribute)]
    used += [(line, name) for line, text in source.imports_by_name() for name in text.split(".")]
    for line, name in used:
        if name in ONLY_IN and not source.path.startswith(ONLY_IN[name]):
            yield f"{line}: {name} belongs in {' '.join(ONLY_IN[name])}"


def check_lengths(source: Source) -> Iterator[str]:
    """Files and functions have an end."""
    lines = source.text.count("\n")
    if lines > LONGEST_FILE:
        yield f"1: {lines} lines, more than {LONGEST_FILE}"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > LONGEST_FUNCTION:
                yield f"{node.lineno}: {node.name} has {lines} lines, more than {LONGEST_FUNCTION}"


def check_excepts(source: Source) -> Iterator[str]:
    """An except names what it catches."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"{node.lineno}: bare except"


def check_docstrings(source: Source) -> Iterator[str]:
    """Modules, public classes and functions have docstrings, and methods unless they may override a documented one."""
    if source.tree.body and ast.get_docstring(source.tree) is None:
        yield "1: no docstring"
    if not source.installed:
        return
    for node in find_public(source.tree.body):
        if ast.get_docstring(node) is None:
            yield f"{node.lineno}: {node.name} has no docstring"
        if isinstance(node, ast.ClassDef) and not node.bases:
            for method in find_public(node.body):
                if ast.get_docstring(method) is None:
                    yield f"{method.lineno}: {node.name}.{method.name} has no docstring"


def find_public(body: list[ast.stmt]) -> Iterator[Definition]:
    """Yield the definitions of public names, without overloads and the setters of a documented property."""
    for node in body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            marks = {ast.unparse(decorator).split(".")[-1] for decorator in node.decorator_list}
            if not marks & {"setter", "deleter", "overload"}:
                yield node


def check_words(source: Source) -> Iterator[str]:
    """Nothing is left unfinished, and a file is named by what it holds."""
    if PurePosixPath(source.path).stem in VAGUE_NAMES or PurePosixPath(source.path).parent.name in VAGUE_NAMES:
        yield "1: a name that says nothing about the contents"
    for number, line in enumerate(source.text.splitlines(), 1):
        for word in UNFINISHED:
            if word in line:
                yield f"{number}: {word}"


RULES: list[Callable[[Source], Iterator[str]]] = [
    check_floors,
    check_types,
    check_solvers,
    check_places,
    check_lengths,
    check_excepts,
    check_docstrings,
    check_words,
]


def read_sources() -> list[Source]:
    """Read every Python file of the checkout."""
    paths = [path for folder in ("ml2hpc", "apps", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
    return [Source(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in paths]


@pytest.mark.parametrize("rule", RULES)
def test_house_keeps_the_rule(rule: Callable[[Source], Iterator[str]]) -> None:
    sources = read_sources()
    assert {"ml2hpc", "tests"} <= {source.module[0] for source in sources}
    complaints = [f"{source.path}:{complaint}" for source in sources for complaint in dict.fromkeys(rule(source))]
    assert not complaints, "\n" + "\n".join(complaints)


def test_setup_lists_every_room() -> None:
    """A room that setup.cfg forgets works in an editable installation and is missing from a real one."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = setup["options"]["packages"].split()
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "ml2hpc").rglob("*.py")}
    assert sorted(listed) == sorted(found | {"ml2hpc.apps"}), "packages in setup.cfg are not the folders of ml2hpc/"


# ---- the rules find what they are for --------------------------------------------------------------------------------

GOOD = '''"""Quasi-Newton."""
import torch
from ml2hpc import __version__
from ml2hpc.snes.interface import Options
from ml2hpc.problem.interface import Problem
from ..linesearch import interface
from .registry import create


def solve(x):
    """Solve."""
    return x.comm
'''
BROKEN = [
    (check_floors, "ml2hpc/vec/norm.py", "from ml2hpc.snes.interface import Options"),
    (check_floors, "ml2hpc/vec/norm.py", "from ml2hpc import snes"),
    (check_floors, "ml2hpc/vec/norm.py", "import ml2hpc.problem"),
    (check_floors, "ml2hpc/vec/norm.py", "from ..snes.loop import solve"),
    (check_floors, "ml2hpc/problem/pinn.py", "def f():\n    from ml2hpc.linesearch import bt"),
    (check_floors, "ml2hpc/run.py", "from ml2hpc.apps import pinn"),
    (check_floors, "ml2hpc/cellar/wine.py", "x = 1"),
    (check_floors, "ml2hpc/run.py", "import ml2hpc.cellar"),
    (check_types, "ml2hpc/snes/qn.py", "from ml2hpc.snes.nasm import Nasm"),
    (check_types, "ml2hpc/snes/qn.py", "from ml2hpc.snes import nasm"),
    (check_types, "ml2hpc/snes/qn.py", "from .nasm import Nasm"),
    (check_types, "ml2hpc/snes/qn/memory.py", "from ..nasm import Nasm"),
    (check_types, "ml2hpc/linesearch/bt.py", "from . import wolfe"),
    (check_solvers, "ml2hpc/snes/qn.py", "from ml2hpc.problem.networks import Network"),
    (check_solvers, "ml2hpc/trustregion.py", "from ml2hpc.problem import Network"),
    (check_places, "ml2hpc/snes/qn.py", "import h5py"),
    (check_places, "apps/pinn.py", "from petsc4py import PETSc"),
    (check_places, "ml2hpc/snes/petsc.py", "import petsc4py"),
    (check_places, "ml2hpc/vec/space.py", "import importlib\nimportlib.import_module('petsc4py')"),
    (check_places, "ml2hpc/io/store.py", "from mpi4py import MPI\ncomm = MPI.COMM_WORLD"),
    (check_places, "tests/test_x.py", "from mpi4py.MPI import COMM_WORLD as comm"),
    (check_lengths, "ml2hpc/vec/norm.py", "x = 1\n" * (LONGEST_FILE + 1)),
    (check_lengths, "tests/test_x.py", "def f():\n" + "    x = 1\n" * LONGEST_FUNCTION),
    (check_excepts, "tests/test_x.py", "try:\n    x = 1\nexcept:\n    x = 2"),
    (check_docstrings, "ml2hpc/vec/norm.py", "x = 1"),
    (check_docstrings, "ml2hpc/vec/norm.py", '"""Norms."""\ndef norm(): ...'),
    (check_docstrings, "apps/pinn.py", '"""PINN."""\nclass Job: ...'),
    (check_docstrings, "apps/pinn.py", '"""PINN."""\nclass Job:\n    """Job."""\n    def run(self): ...'),
    (check_words, "apps/pinn.py", "x = 1  # " + UNFINISHED[0]),
    (check_words, "ml2hpc/vec/utils.py", "x = 1"),
]


@pytest.mark.parametrize("rule", RULES)
def test_rule_is_silent_on_good_code(rule: Callable[[Source], Iterator[str]]) -> None:
    assert list(rule(Source("ml2hpc/snes/qn.py", GOOD))) == []


@pytest.mark.parametrize(("rule", "path", "text"), BROKEN)
def test_rule_finds_broken_code(rule: Callable[[Source], Iterator[str]], path: str, text: str) -> None:
    assert len(list(rule(Source(path, text)))) == 1


def test_every_rule_has_a_broken_example() -> None:
    assert {rule for rule, _, _ in BROKEN} == set(RULES)


@pytest.mark.parallel(1, 2, 3, 4)
def test_ranks_of_a_run_reach_each_other(comm) -> None:
    assert comm.size in {1, 2, 3, 4}
    assert sorted(comm.allgather(comm.rank)) == list(range(comm.size))
