"""A solver tree as -snes_view shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ml2hpc.snes.loop import SNES


def text(solver: SNES) -> str:
    """Return a solver and the tree below it as PETSc prints it. Not collective."""
    o = solver.options
    ranks = solver.problem.comm.size
    lines = [
        f"SNES Object: {f'({solver.prefix}) ' if solver.prefix else ''}{ranks} MPI process{'es' if ranks > 1 else ''}",
        f"  type: {solver.method.name}",
        *(f"    {line}" for line in solver.method.view()),
    ]
    for heading, child in solver.method.inner():
        lines += [f"    {heading}", _indent(child.view(), 6)]
    lines += [
        f"  maximum iterations={o.max_it}, maximum function evaluations={o.max_funcs}",
        f"  tolerances: relative={o.rtol:g}, absolute={o.atol:g}, solution={o.stol:g}",
        f"  total number of function evaluations={solver.work['gradients', 'path']:.0f}",
    ]
    if solver.resets:
        lines.append(f"  memory given up {solver.resets} time{'s' * (solver.resets > 1)} for want of descent")
    if solver.linesearch is not None:
        lines += [
            f"  SNESLineSearch Object: {ranks} MPI process{'es' if ranks > 1 else ''}",
            *(f"    {line}" for line in solver.linesearch.view()),
        ]
    if solver.level == 0:
        lines += [f"  {line}" for line in solver.problem.view()]
    if solver.npc is not None:
        often = f", every {o.npc_lag} iterations" if o.npc_lag > 1 else ""
        lines += [f"  nonlinear preconditioner on the {solver.side}{often}, steps rejected={solver.rejected}"]
        lines += [_indent(solver.npc.view(), 2)]
    return "\n".join(lines)


def _indent(lines: str, blanks: int) -> str:
    return "\n".join(" " * blanks + line for line in lines.split("\n"))
