"""A sum over numbered parts whose bits do not depend on how the parts are dealt to ranks.

Floating-point addition is not associative, so an Allreduce over 3 ranks and one over 4 give different last digits, and
hundreds of quasi-Newton steps amplify them until the runs have nothing in common. Here the order of additions belongs
to the parts: a binary tree over 0..n-1 that splits each range at the largest power of two. A rank adds the whole
subtrees inside its own range; one Allgather brings the subtrees together and every rank finishes the same tree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ml2hpc.comm import Communicator

Range = tuple[int, int]

_ALIGNMENT = 64  # bytes; where a vector starts decides the order of additions inside BLAS


def _middle(low: int, high: int) -> int:
    """Where the tree splits [low, high): after the largest power of two below its length."""
    return low + (1 << ((high - low - 1).bit_length() - 1))


def _subtrees(low: int, high: int, start: int, stop: int) -> list[Range]:
    """The maximal subtrees of [low, high) that lie inside [start, stop), in order."""
    if start >= high or stop <= low:
        return []
    if start <= low and high <= stop:
        return [(low, high)]
    middle = _middle(low, high)
    return _subtrees(low, middle, start, stop) + _subtrees(middle, high, start, stop)


class TreeSum:
    """Sum of n parts, each a vector of the same length, over the ranks of a communicator.

    Parameters
    ----------
    comm
        The ranks that share the parts.
    costs
        One positive cost per part, at least one part; each rank gets a contiguous range of about equal cost.

    Attributes
    ----------
    parts
        The range of parts that this rank evaluates.
    """

    def __init__(self, comm: Communicator, costs: Sequence[float]) -> None:
        assert costs and min(costs) > 0, "a sum has at least one part, and each part costs something"
        self.comm = comm
        self.n = len(costs)
        bounds = _deal(costs, comm.size)
        self._by_rank = [_subtrees(0, self.n, bounds[r], bounds[r + 1]) for r in range(comm.size)]
        self._most = max(len(trees) for trees in self._by_rank)
        self.parts = range(bounds[comm.rank], bounds[comm.rank + 1])
        self._buffers: dict[tuple[int, torch.dtype], list[Tensor]] = {}

    def __call__(self, part: Callable[[int, Tensor], None], length: int, dtype: torch.dtype) -> Tensor:
        """Return sum_i part_i, shape (length,), the same bits on every rank. Collective.

        Parameters
        ----------
        part
            `part(i, out)` writes part i over `out`, shape (length,), which starts at a multiple of 64 bytes.
        """
        mine = self._by_rank[self.comm.rank]
        aligned = -(-length * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT // dtype.itemsize
        packed = torch.zeros(self._most, aligned, dtype=dtype)
        for row, (low, high) in zip(packed, mine, strict=False):
            self._add_subtree(part, low, high, row[:length], 0)
        gathered = torch.from_numpy(self.comm.allgather(packed.numpy()))[..., :length]
        nodes = {tree: gathered[rank, i] for rank, trees in enumerate(self._by_rank) for i, tree in enumerate(trees)}
        return self._finish(nodes, 0, self.n).clone()  # apart from the gathered rows, which it would keep alive

    def _add_subtree(self, part: Callable[[int, Tensor], None], low: int, high: int, out: Tensor, depth: int) -> None:
        if high - low == 1:
            part(low, out)
            return
        middle = _middle(low, high)
        self._add_subtree(part, low, middle, out, depth + 1)
        right = self._buffer(depth, out)
        self._add_subtree(part, middle, high, right, depth + 1)
        out.add_(right)

    def _buffer(self, depth: int, like: Tensor) -> Tensor:
        buffers = self._buffers.setdefault((like.numel(), like.dtype), [])
        while len(buffers) <= depth:
            buffers.append(torch.empty_like(like))
        return buffers[depth]

    def _finish(self, nodes: dict[Range, Tensor], low: int, high: int) -> Tensor:
        if (low, high) in nodes:
            return nodes[low, high]
        middle = _middle(low, high)
        return self._finish(nodes, low, middle) + self._finish(nodes, middle, high)


def _deal(costs: Sequence[float], size: int) -> list[int]:
    """Bounds of `size` contiguous ranges of about equal cost: a part goes where its middle falls.

    >>> _deal([1, 1, 1, 1, 4], 2)
    [0, 4, 5]
    """
    total, before = sum(costs), 0.0
    bounds = [0]
    for i, cost in enumerate(costs):
        owner = min(int((before + 0.5 * cost) / total * size), size - 1)
        bounds += [i] * (owner + 1 - len(bounds))
        before += cost
    return bounds + [len(costs)] * (size + 1 - len(bounds))
