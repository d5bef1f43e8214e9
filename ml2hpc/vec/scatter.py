"""Scatters: entries of a partitioned vector where they are wanted, by messages between the ranks concerned.

Halo exchange and overlapping subdomains are both scatters. With the 0/1 matrix R of the wanted numbers,

    forward  y = R x,       reverse  x = R' y:   what several ranks give for one unknown is added in rank order.
"""

from __future__ import annotations

from itertools import accumulate, pairwise

import torch
from torch import Tensor

from ml2hpc.vec.space import Partitioned

_Slices = dict[int, slice]


class Scatter:
    """R for the numbers that this rank wants. Collective on the space's ranks.

    Parameters
    ----------
    space
        Where x lives.
    wanted
        Numbers in the space's own numbering, any order, repetitions allowed, shape (m,).
    """

    def __init__(self, space: Partitioned, wanted: Tensor) -> None:
        comm = self.comm = space.comm
        self.space = space
        bounds = torch.tensor(space.bounds)
        owners = torch.searchsorted(bounds[1:], wanted, right=True)
        order = torch.argsort(owners, stable=True)
        counts = torch.bincount(owners, minlength=comm.size).tolist()
        asked = [part - low for part, low in zip(wanted[order].split(counts), space.bounds, strict=False)]
        given = comm.alltoall(asked)
        self._order = order.to(space.device)
        self._given = torch.cat(given).to(space.device)
        self._to, self._own_to = _parts([len(part) for part in given], comm.rank)
        self._from, self._own_from = _parts(counts, comm.rank)

    def forward(self, x: Tensor) -> Tensor:
        """Return R x, shape (m,) or (m, k), from x, shape (n_local,) or (n_local, k). Collective."""
        arrived = self._exchange(x[self._given], self._to, self._from, len(self._order))
        y = torch.empty_like(arrived)
        y[self._order] = arrived
        return y

    def reverse(self, y: Tensor) -> Tensor:
        """Return R' y, shape (n_local,) or (n_local, k), from y, shape (m,) or (m, k). Collective."""
        arrived = self._exchange(y[self._order], self._from, self._to, len(self._given))
        return y.new_zeros(self.space.n_local, *y.shape[1:]).index_add_(0, self._given, arrived)

    def _exchange(self, packed: Tensor, to: _Slices, of: _Slices, count: int) -> Tensor:
        """Send slices of `packed`, sorted by rank, and return what arrives, sorted by rank. Collective."""
        forth = to is self._to
        own_packed, own_arrived = (self._own_to, self._own_from) if forth else (self._own_from, self._own_to)
        host = packed.cpu()
        arrived = torch.empty(count, *packed.shape[1:], dtype=packed.dtype, device="cpu")
        arrived[own_arrived] = host[own_packed]
        self.comm.exchange(
            {rank: host[part].numpy() for rank, part in to.items()},
            {rank: arrived[part].numpy() for rank, part in of.items()},
        )
        return arrived.to(packed.device)


def _parts(counts: list[int], own: int) -> tuple[_Slices, slice]:
    """Return the slices of the other ranks that have any, and this rank's own."""
    slices = [slice(a, b) for a, b in pairwise([0, *accumulate(counts)])]
    return {r: s for r, s in enumerate(slices) if r != own and s.stop > s.start}, slices[own]
