"""Equations by name, and the user's own from a file."""

from __future__ import annotations

import difflib

from ml2hpc.errors import UserError
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
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(
                f"{option} {name}: no such problem{hint} There are {', '.join(EQUATIONS)}, or file.py:Class"
            )
        return known()
    kind = load(name, option)
    if not (isinstance(kind, type) and issubclass(kind, PDE)):
        raise UserError(f"{option} {name}: must be a subclass of ml2hpc.problem.pde.PDE")
    try:
        pde = kind()
    except Exception as error:
        raise UserError(f"{option} {name}: cannot be made: {type(error).__name__}: {error}") from error
    _check(pde, option, name)
    return pde


def _check(pde: PDE, option: str, name: str) -> None:
    letters = getattr(pde, "coordinates", "")
    domain = getattr(pde, "domain", {})
    if not (isinstance(letters, str) and 1 <= len(letters) <= 4 and len(set(letters)) == len(letters)):
        raise UserError(f"{option} {name}: coordinates must be 1 to 4 different letters such as 'xt', got {letters!r}")
    if not letters.isalpha():
        raise UserError(f"{option} {name}: coordinates {letters!r} must be letters")
    if not isinstance(domain, dict) or set(domain) != set(letters):
        raise UserError(
            f"{option} {name}: domain must give (low, high) for each of {', '.join(letters)}, got {domain!r}"
        )
    for letter in letters:
        low, high = domain[letter]
        if not low < high:
            raise UserError(f"{option} {name}: domain of {letter}: low {low} must be below high {high}")
