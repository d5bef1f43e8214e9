"""Equations by name, and the user's own from a file."""

from __future__ import annotations

import difflib
import math
from pathlib import Path

import torch
from torch import Tensor

from ml2hpc.errors import UserError
from ml2hpc.problem import guard
from ml2hpc.problem.equations.allen_cahn import AllenCahn, AllenCahnPeriodic
from ml2hpc.problem.equations.burgers import Burgers
from ml2hpc.problem.equations.diffusion_advection import DiffusionAdvection
from ml2hpc.problem.equations.klein_gordon import KleinGordon, KleinGordonLeaking
from ml2hpc.problem.pde import PDE
from ml2hpc.userfile import load

EQUATIONS: dict[str, type[PDE]] = {
    "burgers": Burgers,
    "klein_gordon": KleinGordon,
    "klein_gordon_leaking": KleinGordonLeaking,
    "diffusion_advection": DiffusionAdvection,
    "allen_cahn": AllenCahn,
    "allen_cahn_periodic": AllenCahnPeriodic,
}


def canonical(name: str) -> str:
    """Return the name of a problem as any folder and spelling understand it. Not collective."""
    place, separator, kind = name.rpartition(":")
    if not separator:
        return name.lower()
    return f"{Path(place).resolve()}:{kind}" if place.endswith(".py") else name


def equation(name: str, option: str) -> PDE:
    """Return a problem by name, or the class that `file.py:Class` names. Not collective.

    Raises
    ------
    UserError
        If there is no such problem, or the user's class is not a sound `PDE`.
    """
    if ":" not in name:
        known = EQUATIONS.get(name.lower())
        if known is None:
            near = difflib.get_close_matches(name.lower(), EQUATIONS, 1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise UserError(
                f"{option} {name}: no such problem{hint} There are {', '.join(EQUATIONS)}, or file.py:Class"
            )
        return known()
    kind = load(name, option)
    if not (isinstance(kind, type) and issubclass(kind, PDE)):
        raise UserError(f"{option} {name}: must be a subclass of ml2hpc.problem.pde.PDE")
    if missing := sorted(kind.__abstractmethods__):
        raise UserError(f"{option} {name}: the class has no method {', '.join(missing)}; write residual(self, p, u)")
    pde: PDE = guard.call(f"{option} {name}: {kind.__name__}()", kind)
    problem = _fault(pde)
    if problem:
        raise UserError(f"{option} {name}: {problem}")
    return pde


def _fault(pde: PDE) -> str:
    """Say what is wrong with a user's class; nothing where it is sound."""
    letters, domain, fields = (getattr(pde, k, None) for k in ("coordinates", "domain", "fields"))
    if not (isinstance(letters, str) and letters.isalpha() and len(set(letters)) == len(letters) <= 4):
        return f"coordinates must be 1 to 4 different letters such as 'xt', got {letters!r}"
    if not isinstance(domain, dict) or set(domain) != set(letters):
        return f"domain must give (low, high) for each of {', '.join(letters)}, got {domain!r}"
    for letter, bounds in domain.items():
        if not _is_interval(bounds):
            return f"domain of {letter} must be two finite numbers (low, high) with low < high, got {bounds!r}"
    if not (isinstance(fields, tuple) and fields and all(isinstance(f, str) for f in fields)):
        return f"fields must be a tuple of names such as ('u', 'v'), got {fields!r}"
    taken = {*letters, "points", "reference", "error"}
    if len(set(fields)) < len(fields) or not all(f.isidentifier() and f not in taken for f in fields):
        return f"fields must be different names, none of {', '.join(sorted(taken))}, got {fields!r}"
    points = torch.tensor([domain[letter] for letter in letters], dtype=torch.float64)
    features = guard.call(f"{type(pde).__name__}.features", pde.features, points)
    if not isinstance(features, Tensor) or features.dim() != 2 or features.shape[1] != 2:
        return f"features of coordinates (d, n) must have shape (features, n); got {guard.describe(features)} for n = 2"
    return ""


def _is_interval(bounds: object) -> bool:
    numbers = isinstance(bounds, tuple | list) and len(bounds) == 2 and all(isinstance(b, int | float) for b in bounds)
    return numbers and -math.inf < bounds[0] < bounds[1] < math.inf  # type: ignore[index]
