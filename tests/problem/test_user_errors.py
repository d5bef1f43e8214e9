"""Bad user files: one clear message that names the user's own file and line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ml2hpc.errors import UserError
from ml2hpc.problem.ansatz import collocate
from ml2hpc.problem.equations import equation
from ml2hpc.problem.pde import PDE
from tests.problem.small import pinn

FILE = """import torch
from ml2hpc.problem.pde import PDE, Condition, dirichlet, neumann

class Heat(PDE):
    coordinates, domain = "xt", {"x": (0.0, 1.0), "t": (0.0, 0.5)}

    def residual(self, p, u):
        return u.t - 0.1 * u.xx

    def conditions(self):
        return [dirichlet("t", 0, 0.0)]

    def lifting(self, p):
        return None
"""
RESIDUAL = "u.t - 0.1 * u.xx"
CONDITIONS = 'dirichlet("t", 0, 0.0)'
LIFTING = "return None"
HEAD = '"xt", {"x": (0.0, 1.0), "t": (0.0, 0.5)}'


def load(folder: Path, text: str, name: str = "Heat") -> tuple[Path, PDE]:
    path = folder / "heat.py"
    path.write_text(text, encoding="utf-8")
    return path, equation(f"{path}:{name}", "-pinn_problem")


def collocated(pde: PDE) -> None:
    collocate(pde, n=8, n_face=4, sampler="uniform", seed=0, dtype=torch.float64, weight=1.0)


def test_a_sound_file(tmp_path: Path) -> None:
    _, pde = load(tmp_path, FILE)
    problem, x = pinn(pde)
    assert [t.name for t in problem.loss_terms] == ["residual", "t0_value"]
    assert problem.objective(x) > 0


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        (RESIDUAL, "1 / 0", 8, "Heat.residual failed: ZeroDivisionError: division by zero"),
        (RESIDUAL, "u.t - u.xz", 8, "Heat.residual failed: AttributeError: no derivative 'xz'.* are x, t"),
        (RESIDUAL, "u.t - p.y", 8, "Heat.residual failed: AttributeError: no coordinate 'y'.* are x, t"),
        (RESIDUAL, "u.t - torch.ones(3) * u.xx", 8, "Heat.residual failed: RuntimeError: The size of tensor"),
        (RESIDUAL, "torch.sin(u.t, u.x, u.xx)", 8, "Heat.residual failed: TypeError"),
        (RESIDUAL, "torch.nn.functional.pad(u.t, 'x')", 8, "Heat.residual failed: "),
        ("self, p, u)", "self, p)", None, "Heat.residual failed: TypeError: .*positional arguments"),
        (RESIDUAL, "u.t.sum()", None, r"Heat.residual must return one number per point, shape \(n,\); got shape \(\)"),
        (RESIDUAL, "(u.t, u.x[:1])", None, r"Heat.residual must return one number .* got shape \(1,\)"),
        (RESIDUAL, "0.5", None, r"Heat.residual must return one number .* got float"),
        (RESIDUAL, "None", None, r"Heat.residual must return one number .* got NoneType"),
        (RESIDUAL, "()", None, r"Heat.residual must return one number .* got NoneType"),
        (RESIDUAL, "p.x", None, "Heat.residual does not depend on u: there is nothing to train"),
        (CONDITIONS, 'dirichlet("y", 0, 0.0)', None, "condition y0_value: no face 'y' end 0; the coordinates are xt"),
        (CONDITIONS, 'dirichlet("xt", 0, 0.0)', None, "no face 'xt' end 0"),
        (CONDITIONS, 'dirichlet("x", 2, 0.0)', None, "no face 'x' end 2; .* the ends 0 and 1"),
        (CONDITIONS, 'dirichlet("x", 0, lambda p: p.x / q)', 11, "Heat.x0_value failed: NameError: name 'q'"),
        (CONDITIONS, 'neumann("x", 0, lambda p: torch.ones(5))', None, "Heat.x0_slope failed: RuntimeError"),
        (CONDITIONS, "1 / 0", 11, "Heat.conditions failed: ZeroDivisionError"),
        (CONDITIONS, '"t0"', None, "Heat.conditions must return a list of Condition; it has str"),
        ("return [dirichlet", "[dirichlet", None, "Heat.conditions failed: TypeError: 'NoneType' object is not iter"),
        (LIFTING, "return p.z", 14, "Heat.lifting failed: AttributeError: no coordinate 'z'"),
        (LIFTING, "return torch.ones(3)", None, r"Heat.lifting must return one number .* got shape \(3,\)"),
        (LIFTING, "return (p.x, p.t)", None, "Heat.lifting must return one value for each of 1 fields; got 2"),
        (LIFTING, "return 'u'", None, r"Heat.lifting must return one number .* got str"),
        ("lifting", "distance", None, ""),
    ],
)
def test_errors_at_collocation(tmp_path: Path, old: str, new: str, line: int | None, message: str) -> None:
    path, pde = load(tmp_path, FILE.replace(old, new))
    if not message:
        collocated(pde)  # a distance of None is 1
        return
    with pytest.raises(UserError, match=message) as caught:
        collocated(pde)
    assert "\n" not in str(caught.value)
    if line is not None:
        assert f"({path}:{line})" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (HEAD, '"xyztw", {}', "coordinates must be 1 to 4 different letters such as 'xt', got 'xyztw'"),
        (HEAD, '"xx", {}', "coordinates must be 1 to 4"),
        (HEAD, '"", {}', "coordinates must be 1 to 4"),
        (HEAD, '"x1", {}', "coordinates must be 1 to 4"),
        (HEAD, '["x"], {}', "coordinates must be 1 to 4"),
        (HEAD, '"xt", {"x": (0, 1)}', "domain must give"),
        (HEAD, '"xt", [(0, 1), (0, 1)]', "domain must give"),
        (HEAD, '"xt", {"x": (0, 1), "t": (1, 0)}', r"domain of t must be two finite .* got \(1, 0\)"),
        (HEAD, '"xt", {"x": (0, 1), "t": 1}', "domain of t must be two finite numbers"),
        (HEAD, '"xt", {"x": (0, float("inf")), "t": (0, 1)}', "domain of x must be two finite numbers"),
        ("coordinates, domain", "coordinate, domain", "coordinates must be 1 to 4 different letters such as 'xt', got"),
        (HEAD, HEAD + "\n    fields = 'uv'", r"fields must be a tuple of names such as \('u', 'v'\), got 'uv'"),
        (HEAD, HEAD + "\n    fields = ()", "fields must be a tuple"),
        ("def residual", "def residuum", r"the class has no method residual; write residual\(self, p, u\)"),
        ("def lifting(self, p)", "def __init__(self, p)", r"Heat\(\) failed: TypeError"),
        ("def lifting(self, p)", "def features(self, x)", r"features of .* must have shape \(features, n\); got None"),
        (LIFTING, LIFTING + "\n    def features(self, x):\n        return x[9]", r"Heat.features failed: .*py:16\)"),
        (LIFTING, LIFTING + "\n    def features(self, x):\n        return x[0]", r"got shape \(2,\) for n = 2"),
        ("import torch", "import torchh", r"heat.py failed: ModuleNotFoundError: .* \(line 1\)"),
        ("return [", "return (", r"heat.py failed: SyntaxError: .* \(line 11\)"),
    ],
)
def test_errors_at_loading(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path, FILE.replace(old, new))
    assert "heat.py" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("burgerz", r"-pinn_problem burgerz: no such problem; did you mean burgers\? There are burgers, klein_gordon"),
        ("xyz", r"-pinn_problem xyz: no such problem\. There are burgers"),
        ("nowhere.py:Heat", r"there is no file .*nowhere\.py"),
        ("nowhere.deep:Heat", "cannot import nowhere.deep"),
        ("math:pi", "must be a subclass of ml2hpc.problem.pde.PDE"),
        ("collections:Counter", "must be a subclass of ml2hpc.problem.pde.PDE"),
        ("ml2hpc.problem.pde:PDE", "no method residual"),
    ],
)
def test_wrong_names(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        equation(name, "-pinn_problem")


def test_a_name_that_the_file_lacks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no 'Cold' in .*heat\.py; it has .*Heat"):
        load(tmp_path, FILE, "Cold")


def test_a_derivative_read_at_some_points_only(tmp_path: Path) -> None:
    _, pde = load(tmp_path, FILE.replace(RESIDUAL, "u.t - (u.xx if (u.value != 1).any() else u.x)"))
    problem, x = pinn(pde)
    with pytest.raises(UserError, match="Heat reads the derivative 'xx' at some points only"):
        problem.objective(x)


def test_type_checkers_accept_any_number_of_fields() -> None:
    class Two(PDE):
        coordinates, domain, fields = "x", {"x": (0.0, 1.0)}, ("u", "v")

        def residual(self, p: object, u: Tensor, v: Tensor) -> Tensor:
            return u + v

    assert Two().reference(torch.zeros(1, 1).double().numpy()) is None
