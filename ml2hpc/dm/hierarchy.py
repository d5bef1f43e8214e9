"""Hierarchies of problems: fewer residual blocks, neurons, samples or grid lines from level to level.

Level 0 is the coarsest one. Each level has a problem and the transfer to the next finer one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ml2hpc.errors import OptionsError
from ml2hpc.options import option
from ml2hpc.problem.interface import Cost, Problem, Restriction
from ml2hpc.problem.rescaled import Rescaled
from ml2hpc.problem.transfer import Chained, Coarsening, Hierarchy, Projection, Scaled, Transfer
from ml2hpc.vec import Replicated

_LINEAR = ("depth", "grid")  # what linear interpolation has a meaning for


@dataclass(frozen=True)
class HierarchyOptions:
    """Options `-dm_*` of the solver with levels."""

    hierarchy: tuple[Hierarchy, ...] = option(
        ("depth",),
        "what is coarsened from level to level: residual blocks, neurons, samples, grid lines, or several of them",
    )
    # As RMTR for residual networks; one level is the solver of the coarsest level alone.
    levels: int = option(3, "number of levels", at_least=1)
    coarsening: int = option(2, "how many blocks, neurons, samples or grid lines become one", at_least=2)
    prolongation: Literal["default", "constant", "linear"] = option(
        "default", "between blocks or grid lines; default: constant for blocks, as published, linear for grids"
    )
    # Averages need the coupling of the levels to converge, injection does not: 10 of 10 runs on circles.
    projection: Projection = option("injection", "of the unknowns to a coarser level: keep some, or take averages")
    # Gradients of blocks vanish with their step in time; in the metric of functions of time they do not.
    metric: Literal["euclidean", "function"] = option(
        "euclidean", "of steps on all levels: of the numbers, or of the functions on [0, T] or on a grid that they are"
    )
    coarse_ranks: tuple[int, ...] = option(
        (),
        "ranks that evaluate level 0, 1, ... together, all such groups computing the same; none given: all ranks",
        at_least=1,
    )

    def check(self, prefix: str) -> None:
        """Refuse options that contradict each other. Not collective.

        Raises
        ------
        OptionsError
            If a kind is named twice, or linear interpolation is asked for where it means nothing.
        """
        if not self.hierarchy or len(set(self.hierarchy)) < len(self.hierarchy):
            raise OptionsError(f"-{prefix}dm_hierarchy {','.join(self.hierarchy)}: name one or more kinds, each once")
        if self.prolongation == "linear" and not set(self.hierarchy) & set(_LINEAR):
            raise OptionsError(
                f"-{prefix}dm_prolongation linear: {','.join(self.hierarchy)} has nothing to interpolate; "
                f"use it with -{prefix}dm_hierarchy {' or '.join(_LINEAR)}"
            )
        if len(self.coarse_ranks) >= self.levels:
            raise OptionsError(
                f"-{prefix}dm_coarse_ranks: {len(self.coarse_ranks)} numbers for {self.levels - 1} coarse level(s); "
                f"the finest one is on all ranks"
            )

    def coarsenings(self) -> list[Coarsening]:
        """Return what happens from a level to the next coarser one, in order. Not collective."""
        linear = {"default": False, "constant": False, "linear": True}[self.prolongation]
        return [
            Coarsening(
                kind,
                self.coarsening,
                linear or (kind == "grid" and self.prolongation == "default"),
                self.projection == "average",
            )
            for kind in self.hierarchy
        ]


@dataclass(frozen=True)
class Level:
    """One level.

    Attributes
    ----------
    problem
        L on this level, as a function of `scale` times the problem's own unknowns.
    transfer
        To the next finer level; None on the finest.
    scale
        The root of the metric, shape (n_local,); None where it is euclidean.
    spokes
        Whether this rank's group is the first of those that evaluate it.
    """

    problem: Problem
    transfer: Transfer | None
    scale: Tensor | None
    spokes: bool = True


@dataclass(frozen=True)
class Levels:
    """All levels, the coarsest first."""

    options: HierarchyOptions
    levels: tuple[Level, ...]

    def __getitem__(self, level: int) -> Level:
        return self.levels[level]

    def transfer(self, level: int) -> Transfer:
        """Return the transfer from a level to the next finer one. Not collective."""
        transfer = self.levels[level].transfer
        assert transfer is not None, "the finest level has no finer one"
        return transfer

    def view(self, unit: Cost) -> list[str]:
        """Return a table for -snes_view: a gradient's cost is counted in `unit`. Not collective."""
        o = self.options
        how = f"prolongation {o.prolongation}, projection {o.projection}, metric {o.metric}"
        lines = [
            f"{o.levels} levels by {' and '.join(o.hierarchy)}, coarsening {o.coarsening}, {how}",
            "  level   layers   unknowns    samples    gradient   ranks",
        ]
        for k, level in reversed(list(enumerate(self.levels))):
            p = level.problem
            share = p.cost.gradient / unit.gradient
            lines.append(
                f"  {k:5d}   {len(p.layers):6d}   {p.space.n:8d}   {p.samples:8d}   {share:9.4f}   {p.comm.size:5d}"
            )
        return lines


def coarsen(problem: Problem, options: HierarchyOptions, prefix: str) -> Levels:
    """Return the levels below a problem, and itself as the finest. Collective.

    Raises
    ------
    UnsupportedError
        If the problem cannot be coarsened so.
    OptionsError
        If coarse levels of a problem with distributed vectors are asked for on fewer ranks.
    """
    options.check(prefix)
    problems = [problem]
    transfers: list[Transfer] = []
    for _ in range(options.levels - 1):
        coarse, transfer = _next(problems[0], options.coarsenings())
        problems.insert(0, coarse)
        transfers.insert(0, transfer)
    spokes = [True] * len(problems)
    for k, ranks in enumerate(options.coarse_ranks):
        problems[k], spokes[k] = _on_fewer(problems[k], ranks, prefix)
    scales: Sequence[Tensor | None] = [None] * len(problems)
    if options.metric == "function":
        roots = [p.metric().sqrt() for p in problems]
        problems = [in_metric(p, root) for p, root in zip(problems, roots, strict=True)]
        transfers = [Scaled(t, roots[k], roots[k + 1]) for k, t in enumerate(transfers)]
        scales = roots
    return Levels(options, tuple(map(Level, problems, [*transfers, None], scales, spokes)))


def in_metric(problem: Problem, scale: Tensor | None) -> Problem:
    """Return L as a function of `scale` times the unknowns. Not collective."""
    return problem if scale is None else Rescaled(problem, scale)


def _next(problem: Problem, coarsenings: Sequence[Coarsening]) -> tuple[Problem, Transfer]:
    """The next coarser problem: all coarsenings, one after the other."""
    transfers: list[Transfer] = []
    for how in coarsenings:
        problem, transfer = problem.coarsen(how)
        transfers.append(transfer)
    return problem, transfers[0] if len(transfers) == 1 else Chained(transfers)


def _on_fewer(problem: Problem, ranks: int, prefix: str) -> tuple[Problem, bool]:
    """The same problem on groups of so many ranks, and whether this is the first group."""
    comm = problem.comm
    if ranks > comm.size:
        raise OptionsError(f"-{prefix}dm_coarse_ranks {ranks}: there are only {comm.size} ranks")
    if not isinstance(problem.space, Replicated) or isinstance(problem, Restriction):
        raise OptionsError(
            f"-{prefix}dm_coarse_ranks {ranks}: needs whole vectors on every rank and no frozen unknowns; leave it out"
        )
    # Every group finds the same numbers, to the last bit, so that nothing has to be sent around.
    return problem.on(comm.groups(ranks)), comm.rank < ranks
