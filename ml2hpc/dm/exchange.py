"""How vectors come to the subdomains and how corrections come back: E_s W_s c_s for every subdomain s."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ml2hpc.dm.subdomain import Subdomain
from ml2hpc.log import Work
from ml2hpc.problem.interface import Problem

Weighting = Literal["unity", "own", "all"]
"""W_s: a partition of unity, the subdomain's own unknowns only, or 1."""


Start = tuple[Tensor, Tensor | None]
"""What `Local.begin` takes: the state and, if it is of use, the gradient."""


@dataclass
class Solved:
    """What a local solve brings back; the correction is a vector of the local problem's space."""

    correction: Tensor
    work: Work


class Exchange(ABC):
    """The way between the vectors of a problem and its subdomains.

    Parameters
    ----------
    owners
        The rank that speaks for each subdomain.
    here
        Numbers of the subdomains that this rank solves, alone or with others.
    """

    def __init__(self, problem: Problem, owners: Sequence[int], here: Sequence[int]) -> None:
        self.problem = problem
        self.owners = owners
        self.here = here

    @abstractmethod
    def open(self, v: Tensor) -> Tensor:
        """Return v, shape (n_local,), in the form that `fetch` and `add` take; it may share memory. Collective."""

    @abstractmethod
    def fetch(self, x: Tensor, g: Tensor | None) -> list[Start]:
        """Return what every subdomain of `here` starts from, out of an opened x and, if known, g. Collective."""

    @abstractmethod
    def add(self, v: Tensor, corrections: Sequence[Tensor]) -> Tensor:
        """Return v + sum over `here` of E_s c_s for an opened v, with the same `here` on every rank. Collective."""

    @abstractmethod
    def close(self, v: Tensor) -> Tensor:
        """Return an opened v, shape (n_local,), in memory of its own. Not collective."""

    @abstractmethod
    def collect(
        self, solved: Sequence[Solved], weighting: Weighting, *, apart: bool
    ) -> tuple[list[Tensor], list[Work]]:
        """Return corrections of all subdomains, each (n_local,), and the work of each. Collective.

        Parameters
        ----------
        solved
            By `here`.
        apart
            Whether E_s W_s c_s is wanted of every subdomain; else their sum may be all that is returned.
        """


class Gathered(Exchange):
    """Every rank assembles whole vectors, and all corrections come to all ranks in one Allgather."""

    def __init__(
        self, problem: Problem, owners: Sequence[int], here: Sequence[int], subdomains: Sequence[Subdomain]
    ) -> None:
        super().__init__(problem, owners, here)
        self._subdomains = subdomains

    def open(self, v: Tensor) -> Tensor:
        return self.problem.space.gather(v)

    def fetch(self, x: Tensor, g: Tensor | None) -> list[Start]:
        return [(x, g)] * len(self.here)

    def add(self, v: Tensor, corrections: Sequence[Tensor]) -> Tensor:
        v = v.clone()
        for k, correction in zip(self.here, corrections, strict=True):
            v[self._subdomains[k].block.indices] += correction
        return v

    def close(self, v: Tensor) -> Tensor:
        return self.problem.space.local(v).clone()

    def collect(
        self, solved: Sequence[Solved], weighting: Weighting, *, apart: bool
    ) -> tuple[list[Tensor], list[Work]]:
        found = self._all(solved)
        return [self._extend(k, s.correction, weighting) for k, s in enumerate(found)], [s.work for s in found]

    def _all(self, solved: Sequence[Solved]) -> list[Solved]:
        """Bring all corrections and counts to all ranks. Collective."""
        comm, space = self.problem.comm, self.problem.space
        if comm.size == 1:
            return list(solved)
        sizes = [s.block.n + 9 for s in self._subdomains]
        parts = [
            np.concatenate([s.correction.cpu().numpy().astype(np.float64), s.work.counts.ravel()])
            for k, s in zip(self.here, solved, strict=True)
            if self.owners[k] == comm.rank
        ]
        by_rank = [sum(n for n, owner in zip(sizes, self.owners, strict=True) if owner == r) for r in range(comm.size)]
        packed = comm.allgather_parts(np.concatenate(parts) if parts else np.empty(0), by_rank)
        found, start = [], 0
        for n in sizes:
            part = packed[start : start + n]
            correction = torch.from_numpy(part[:-9].copy()).to(space.device, space.dtype)
            found.append(Solved(correction, Work(part[-9:])))
            start += n
        return found

    def _extend(self, k: int, correction: Tensor, weighting: Weighting) -> Tensor:
        """Return this rank's part of E_s W_s c_s."""
        subdomain, space = self._subdomains[k], self.problem.space
        if weighting != "all":
            correction = correction * (subdomain.weights if weighting == "unity" else subdomain.own)
        whole = correction.new_zeros(space.n)
        whole[subdomain.block.indices] = correction
        return space.local(whole)
