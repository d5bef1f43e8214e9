"""Builds the solver tree from options; the only file that knows all types.

Children get their parent's prefix plus a role word: `npc_` for a preconditioner, `sub_` for subdomain solvers.
"""

from __future__ import annotations

import re
from dataclasses import fields, make_dataclass
from typing import Any, Literal, TypeVar, cast

from ml2hpc import linesearch
from ml2hpc.errors import OptionsError, UnsupportedError
from ml2hpc.options import Database, option
from ml2hpc.snes.anderson import Anderson
from ml2hpc.snes.aspin import Aspin
from ml2hpc.snes.composite import Composite
from ml2hpc.snes.fas import FullApproximation
from ml2hpc.snes.gn import GaussNewton
from ml2hpc.snes.interface import SNES, Method, Options
from ml2hpc.snes.ksponly import KSPOnly
from ml2hpc.snes.nasm import Nasm
from ml2hpc.snes.ncg import ConjugateGradients
from ml2hpc.snes.newtonls import NewtonLS
from ml2hpc.snes.newtontr import NewtonTR
from ml2hpc.snes.ngmres import NGMRES
from ml2hpc.snes.ngs import GaussSeidel
from ml2hpc.snes.nrichardson import NRichardson
from ml2hpc.snes.petsc import Petsc
from ml2hpc.snes.python import Python
from ml2hpc.snes.qn import QuasiNewton
from ml2hpc.snes.rmtr import RecursiveTrustRegion
from ml2hpc.snes.shell import Shell
from ml2hpc.snes.torchoptim import TorchOptim

TYPES: dict[str, type[Method]] = {
    t.name: t
    for t in (
        NewtonLS,
        NewtonTR,
        GaussNewton,
        KSPOnly,
        QuasiNewton,
        ConjugateGradients,
        Anderson,
        NGMRES,
        NRichardson,
        GaussSeidel,
        Nasm,
        Aspin,
        Composite,
        FullApproximation,
        RecursiveTrustRegion,
        TorchOptim,
        Shell,
        Python,
        Petsc,
    )
}

_NAMES: Any = tuple(TYPES)

_Type: Any = make_dataclass("_Type", [("type", Literal[_NAMES], option("qn", "nonlinear solver"))], frozen=True)

_Preconditioner: Any = make_dataclass(
    "_Preconditioner",
    [("snes_type", Literal[("none", *_NAMES)], option("none", "nonlinear preconditioner (NPC)"))],
    frozen=True,
)


T = TypeVar("T")
Defaults = dict[str, Any]

# An NPC makes one step and tests nothing, as in PETSc.
_NPC_DEFAULTS: Defaults = {
    "snes_max_it": 1,
    "snes_rtol": 0.0,
    "snes_atol": 0.0,
    "snes_stol": 0.0,
    "snes_max_funcs": 10**9,
}


def create(
    database: Database, prefix: str = "", level: int = 0, defaults: Defaults | None = None, *, listed: bool = True
) -> SNES:
    """Return the solver tree with an option prefix, ready for `set_up`. Not collective.

    Parameters
    ----------
    defaults
        Option values that the caller prefers, by option name below the prefix: {"snes_max_it": 10,
        "npc_snes_type": "nasm"}. The user's options win.
    listed
        Whether -help shows its options; one of many alike is enough.

    Raises
    ------
    OptionsError, UnsupportedError
        If an option is wrong, or an NPC is asked of a type or side that cannot use one.
    """
    preferred = defaults or {}

    def read(schema: type[T], stem: str, title: str, weaker: Defaults | None = None) -> T:
        wanted = dict(weaker or {}) | {
            f.name: preferred[stem + f.name] for f in fields(cast(Any, schema)) if stem + f.name in preferred
        }
        return database.read(schema, prefix=prefix, stem=stem, title=title, defaults=wanted, listed=listed)

    kind = TYPES[read(_Type, "snes_", "Nonlinear solver (SNES)").type]
    if kind is Python:
        kind = Python.users(read(Python.Options, "snes_python_", Python.title), prefix, TYPES)
    preferred = kind.tree | preferred
    generic = read(Options, "snes_", "Nonlinear solver (SNES)", kind.defaults)
    method = kind(read(kind.Options, f"snes_{kind.stem}_", kind.title))
    search = None
    if kind.linesearch is not None:
        search = linesearch.create(
            read(linesearch.Options, "snes_linesearch_", "Line search (SNESLineSearch)", kind.linesearch)
        )

    def spawn(role: str, weaker: Defaults, *, listed: bool = listed) -> SNES:
        # The options "sub_..." of the caller hold for "sub_0_", "sub_1_", ... too, as in the database.
        roles = (re.sub(r"\d+_", "", role), role)
        inner = {k.removeprefix(r): v for r in roles for k, v in preferred.items() if k.startswith(r)}
        return create(database, prefix + role, level + 1, weaker | inner, listed=listed)

    if generic.error_if_not_converged and level > 0:
        raise OptionsError(
            f"-{prefix}snes_error_if_not_converged: an inner solver may stop where it is asked to; "
            f"use -snes_error_if_not_converged for the outermost one"
        )
    npc = None
    if read(_Preconditioner, "npc_", "Nonlinear preconditioner (NPC)").snes_type != "none":
        _check_side(kind, generic, prefix)
        npc = spawn("npc_", _NPC_DEFAULTS)
        npc.is_inner = True
    elif generic.npc_side != "default":
        raise OptionsError(f"-{prefix}snes_npc_side {generic.npc_side}: there is no -{prefix}npc_snes_type")
    side = kind.sides[0] if npc is not None and generic.npc_side == "default" else generic.npc_side
    if generic.npc_lag > 1 and side != "right":
        raise OptionsError(f"-{prefix}snes_npc_lag {generic.npc_lag}: needs a nonlinear preconditioner on the right")

    def foreign(stem: str) -> dict[str, str]:
        return database.foreign(prefix + stem)

    solver = SNES(method, generic, search, npc, prefix=prefix, level=level, spawn=spawn, read=read, foreign=foreign)
    method.configure(solver)
    return solver


def _check_side(kind: type[Method], generic: Options, prefix: str) -> None:
    name = kind.name
    if not kind.sides:
        able = ", ".join(t.name for t in TYPES.values() if t.sides)
        raise UnsupportedError(f"-{prefix}npc_snes_type: {name} cannot use a nonlinear preconditioner; {able} can")
    if generic.npc_side != "default" and generic.npc_side not in kind.sides:
        able = " and ".join(kind.sides)
        raise UnsupportedError(f"-{prefix}snes_npc_side {generic.npc_side}: {name} supports {able} only")
