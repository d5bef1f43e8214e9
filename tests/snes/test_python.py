"""The user's own type: it runs as any other, and what is wrong with it is said in a line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ml2hpc.errors import UserError
from ml2hpc.options import Database
from ml2hpc.snes import create
from tests.snes.contracts.python import AVERAGED
from tests.snes.problems import quadratic, rosenbrock, tree, world

GOOD = '''
from dataclasses import dataclass
from ml2hpc.options import option
from ml2hpc.snes.interface import DirectionMethod, Method, Step

class Mine(DirectionMethod):
    """Half the gradient."""
    @dataclass(frozen=True)
    class Options:
        """One number."""
        factor: float = option(0.5, "factor of the gradient", above=0.0)
    name = "mine"
    title = "Mine"
    linesearch = {"type": "bt"}
    defaults = {"max_it": 7}
    def direction(self, solver, point):
        return self.options.factor * point.g
'''


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    """What is said about the good file with some words replaced."""

    def complaint(*changes: tuple[str, str], name: str = "Mine") -> str:
        text = GOOD
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        file = tmp_path / f"{abs(hash(text))}.py"
        file.write_text(text)
        with pytest.raises(UserError) as caught:
            create(Database.from_string(f"-snes_type python -snes_python_type {file}:{name}"))
        message = str(caught.value)
        assert message.startswith(f"-snes_python_type {file}:{name}: ")
        assert "\n" not in message
        return message.removeprefix(f"-snes_python_type {file}:{name}: ")

    return complaint


def test_it_runs_under_its_own_name_with_its_own_options_and_defaults(comm, tmp_path):
    (tmp_path / "good.py").write_text(GOOD)
    database = Database.from_string(f"-snes_type python -snes_python_type {tmp_path}/good.py:Mine -snes_mine_factor 2")
    solver = create(database)
    database.check_unused()
    solver.set_up(quadratic(world(comm)))
    text = database.help_text()
    assert "-snes_mine_factor <now 2.0 : formerly 0.5>: factor of the gradient (above 0)" in text
    assert "-snes_python_type <now" in text
    assert (solver.options.max_it, solver.method.options.factor) == (7, 2.0)
    assert "type: mine\n" in solver.view()
    assert solver.brief() == "mine"


@pytest.mark.parametrize("how", ["file.py", "package.module"])
def test_a_type_like_one_here_gives_its_iterates(comm, tmp_path, monkeypatch, how):
    """The gradient's direction is that of nrichardson, bit for bit."""
    (tmp_path / "similar_type.py").write_text(GOOD.replace("option(0.5", "option(1.0"))
    monkeypatch.syspath_prepend(str(tmp_path))
    kind = f"{tmp_path}/similar_type.py:Mine" if how == "file.py" else "similar_type.Mine"
    options = "-snes_max_it 9 -snes_rtol 0 -snes_linesearch_type wolfe"
    x = torch.linspace(-1.0, 1.5, 6, dtype=torch.float64)
    own = tree(f"-snes_type python -snes_python_type {kind} {options}", rosenbrock(world(comm))).solve(x)
    assert torch.equal(own.x, tree(f"-snes_type nrichardson {options}", rosenbrock(world(comm))).solve(x).x)


@pytest.mark.parallel(1, 2)
def test_it_stands_anywhere_in_the_tree(comm):
    """As NPC and as subdomain solver, on any number of ranks."""
    own = AVERAGED.removeprefix("-snes_type python -snes_python_type ")
    options = (
        f"-snes_type qn -snes_max_it 4 -snes_rtol 0 -npc_snes_type python -npc_snes_python_type {own} "
        "-npc_snes_max_it 2 -npc_npc_snes_type nasm -npc_npc_sub_snes_type python -npc_npc_sub_snes_averaged_mu 0.9 "
        f"-npc_npc_sub_snes_python_type {own}"
    )
    x = torch.linspace(-1.0, 1.5, 6, dtype=torch.float64)
    here = tree(options, rosenbrock(world(comm)))
    found = here.solve(x)
    assert torch.equal(found.x, tree(options, rosenbrock(world(comm).alone())).solve(x).x)
    assert found.f < 0.5 * rosenbrock(world(comm)).objective(x)
    assert "type: averaged" in here.view()


def test_what_is_no_type_is_refused(refused):
    assert refused(name="option").startswith("is no class but function; derive it from ml2hpc.snes.interface.Method")
    assert refused(("(DirectionMethod)", "")) == (
        "is a class that is no Method; derive it from ml2hpc.snes.interface.Method or DirectionMethod"
    )
    assert refused(name="Mein").endswith("did you mean Mine?")


def test_what_is_missing_is_named(refused):
    assert refused(("def direction", "def step_along")) == "has no direction"
    assert refused(("    title = ", "    titel = "), ("    name = ", "    nam = ")) == "has no name, title"
    assert refused(("class Options", "class Option")) == "has no Options"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"mine"', '"qn"', "name = 'qn': is the name of another type; choose one of your own"),
        ('"mine"', '"My_type"', "name = 'My_type': must be a word of small letters and digits, it is part of the"),
        ("frozen=True", "frozen=False", "Options must be a frozen dataclass: @dataclass(frozen=True)"),
        ('option(0.5, "factor of the gradient", above=0.0)', "0.5", "Mine.Options.factor is not an option, write"),
        ("factor: float", "factor: list", "Mine.Options.factor: cannot read an option as"),
        ('linesearch = {"type": "bt"}', "", "a DirectionMethod needs a line search"),
        ('linesearch = {"type": "bt"}', 'linesearch = "bt"', "linesearch = 'bt': must be a dict"),
        ('"max_it": 7', '"maxit": 7', "defaults: there is no option maxit"),
        ('title = "Mine"', 'title = "Mine"; sides = ("top",)', "sides = ('top',): must be a tuple of 'left' and"),
    ],
)
def test_what_is_wrong_is_told(refused, old, new, message):
    assert refused((old, new)).startswith(message)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("None", "mine: direction must be a tensor, got NoneType"),
        ("point.g[:-1]", r"mine: direction must have the shape \(8,\) and type torch.float64, got \(7,\)"),
        ("point.g.float()", "got .* torch.float32"),
    ],
)
def test_a_wrong_direction_is_told(comm, tmp_path, returned, message):
    (tmp_path / "wrong.py").write_text(GOOD.replace("self.options.factor * point.g", returned))
    solver = tree(f"-snes_type python -snes_python_type {tmp_path}/wrong.py:Mine", quadratic(world(comm)))
    with pytest.raises(UserError, match=message):
        solver.solve(torch.ones(8, dtype=torch.float64))


def test_a_wrong_step_is_told(comm, tmp_path):
    text = GOOD.replace("(DirectionMethod)", "(Method)").replace("def direction", "def step")
    (tmp_path / "wrong.py").write_text(text)
    solver = tree(f"-snes_type python -snes_python_type {tmp_path}/wrong.py:Mine", quadratic(world(comm)))
    with pytest.raises(UserError, match="mine: step must return a Step, got Tensor"):
        solver.solve(torch.ones(8, dtype=torch.float64))
