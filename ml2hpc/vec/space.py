"""Vector spaces: all that a solver knows about how vectors are stored.

`Replicated`: every rank holds the whole vector; inner products need no communication. `Sharded`: every rank holds a
contiguous slice, so that the memory of quasi-Newton methods is split over the ranks; inner products are summed in rank
order, the same number on every rank. `Partitioned`: every rank holds the unknowns that it owns, such as those of its
box of a grid, and what it needs of others comes by `vec.Scatter`.

Vectors live on one device per rank. Ranks exchange numbers through the host's memory; what comes back is on the device.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from ml2hpc.comm import Communicator

CPU = torch.device("cpu")


class VectorSpace(ABC):
    """Vectors of global length n, stored as tensors of shape (n_local,) on one device."""

    def __init__(self, n: int, dtype: torch.dtype, device: torch.device = CPU) -> None:
        self.n = n
        self.dtype = dtype
        self.device = device

    def restored(self, values: NDArray[Any]) -> Tensor:
        """Return this rank's part of a whole vector out of a checkpoint, shape (n_local,). Not collective."""
        return self.local(torch.from_numpy(values)).to(self.device, copy=True)

    @property
    @abstractmethod
    def n_local(self) -> int:
        """Number of entries that this rank stores."""

    @property
    @abstractmethod
    def rows(self) -> slice | Tensor:
        """Which entries of a whole vector this rank stores."""

    @abstractmethod
    def total(self, part: Tensor) -> Tensor:
        """Return the sum of what each rank found from its slices, in rank order. Collective if sharded."""

    @abstractmethod
    def gather(self, x: Tensor) -> Tensor:
        """Return the whole, shape (n,) or (n, m), from slices (n_local,) or (n_local, m). Collective if sharded."""

    @abstractmethod
    def wholes(self, *vectors: Tensor) -> tuple[Tensor, ...]:
        """Return whole vectors (n,) from slices (n_local,), in one exchange. Collective if sharded."""

    def zeros(self) -> Tensor:
        """Return the zero vector. Not collective."""
        return torch.zeros(self.n_local, dtype=self.dtype, device=self.device)

    def local(self, x: Tensor) -> Tensor:
        """Return this rank's slice of a whole vector (n,). Not collective."""
        return x[self.rows]

    def mdot(self, left: Tensor, right: Tensor) -> Tensor:
        """Return left @ right for left (k, n_local) and right (n_local,) or (n_local, m). Collective if sharded."""
        return self.total(left @ right)

    def dot(self, x: Tensor, y: Tensor) -> float:
        """Return <x, y>. Collective if sharded."""
        return float(self.mdot(x[None], y)[0])

    def dots(self, *pairs: tuple[Tensor, Tensor]) -> list[float]:
        """Return <x, y> of each pair, in one reduction. Collective if sharded."""
        found: list[float] = self.total(torch.stack([torch.dot(x, y) for x, y in pairs])).tolist()
        return found

    def norm(self, x: Tensor) -> float:
        """Return the 2-norm. Collective if sharded."""
        return math.sqrt(self.dot(x, x))

    def one_norm(self, x: Tensor) -> float:
        """Return the sum of the entries' absolute values. Collective if sharded."""
        return float(self.gather(x).abs().sum())


class Replicated(VectorSpace):
    """Every rank holds the whole vector and computes the same numbers."""

    @property
    def n_local(self) -> int:
        return self.n

    @property
    def rows(self) -> slice:
        return slice(0, self.n)

    def total(self, part: Tensor) -> Tensor:
        return part

    def dot(self, x: Tensor, y: Tensor) -> float:
        return float(torch.dot(x, y))

    def gather(self, x: Tensor) -> Tensor:
        return x

    def wholes(self, *vectors: Tensor) -> tuple[Tensor, ...]:
        return vectors


class Sharded(VectorSpace):
    """Every rank holds a contiguous slice; lengths differ by at most one."""

    def __init__(self, comm: Communicator, n: int, dtype: torch.dtype, device: torch.device = CPU) -> None:
        super().__init__(n, dtype, device)
        self.comm = comm
        bounds = [r * n // comm.size for r in range(comm.size + 1)]
        self._sizes = [b - a for a, b in pairwise(bounds)]
        self._rows = slice(bounds[comm.rank], bounds[comm.rank + 1])

    @property
    def n_local(self) -> int:
        return self._sizes[self.comm.rank]

    @property
    def rows(self) -> slice:
        return self._rows

    def total(self, part: Tensor) -> Tensor:
        parts = self.comm.allgather(part.cpu().numpy())
        return torch.from_numpy(parts).sum(0).to(self.device)

    def gather(self, x: Tensor) -> Tensor:
        columns = x.shape[1:].numel()
        parts = self.comm.allgather_parts(x.reshape(-1).cpu().numpy(), [n * columns for n in self._sizes])
        return torch.from_numpy(parts).view(-1, *x.shape[1:]).to(self.device)

    def wholes(self, *vectors: Tensor) -> tuple[Tensor, ...]:
        columns = self.gather(torch.stack(vectors, 1))
        return tuple(column.clone() for column in columns.unbind(1))


class Partitioned(VectorSpace):
    """Every rank holds the unknowns that it owns, a range of a numbering of its own for each number of ranks.

    Rank r owns the numbers bounds[r]..bounds[r+1]-1. Whole vectors are in an order that does not depend on the ranks,
    the natural one of a grid: they are for files, and for what keeps n^2 numbers anyway.

    Parameters
    ----------
    sizes
        How many unknowns each rank owns.
    rows
        The places of this rank's unknowns in whole vectors, shape (sizes[rank],).
    """

    def __init__(
        self, comm: Communicator, sizes: Sequence[int], rows: Tensor, dtype: torch.dtype, device: torch.device = CPU
    ) -> None:
        super().__init__(sum(sizes), dtype, device)
        assert rows.shape == (sizes[comm.rank],) and len(sizes) == comm.size
        self.comm = comm
        self.bounds = [0, *accumulate(sizes)]
        self._sizes = list(sizes)
        self._rows = rows.to(device)

    @property
    def n_local(self) -> int:
        return self._sizes[self.comm.rank]

    @property
    def rows(self) -> Tensor:
        return self._rows

    def total(self, part: Tensor) -> Tensor:
        if self.comm.size == 1:
            return part
        parts = self.comm.allgather(part.cpu().numpy())
        return torch.from_numpy(parts).sum(0).to(self.device)

    def one_norm(self, x: Tensor) -> float:
        return float(self.comm.allgather(x.abs().sum().cpu().numpy()).sum())

    def gather(self, x: Tensor) -> Tensor:
        if self.comm.size == 1:
            parts = x
        else:
            columns = x.shape[1:].numel()
            flat = self.comm.allgather_parts(x.reshape(-1).cpu().numpy(), [n * columns for n in self._sizes])
            parts = torch.from_numpy(flat).view(-1, *x.shape[1:]).to(self.device)
        whole = torch.empty_like(parts)
        whole[self._places] = parts
        return whole

    def wholes(self, *vectors: Tensor) -> tuple[Tensor, ...]:
        columns = self.gather(torch.stack(vectors, 1))
        return tuple(column.clone() for column in columns.unbind(1))

    @cached_property
    def _places(self) -> Tensor:
        """The places of all ranks' unknowns in whole vectors, end to end. Collective."""
        if self.comm.size == 1:
            return self._rows
        return torch.from_numpy(self.comm.allgather_parts(self._rows.cpu().numpy(), self._sizes)).to(self.device)
