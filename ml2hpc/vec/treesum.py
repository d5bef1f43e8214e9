"""A sum over numbered parts whose bits do not depend on how the parts are dealt to ranks.

Floating-point addition is not associative, so an Allreduce over 3 ranks and one over 4 give different last digits, and
hundreds of quasi-Newton steps amplify them until the runs have nothing in common. Here the order of additions belongs
to the parts: a binary tree over 0..n-1 that splits each range at the largest power of two. A rank adds the whole
subtrees inside its own range; one Allgather brings the subtrees together and every rank finishes the same tree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from ml2hpc.comm import Communicator
from ml2hpc.vec.space import CPU

Range = tuple[int, int]
_Leaf: TypeAlias = tuple[int, int, int]
Part: TypeAlias = Callable[[int, Tensor], None]

_ALIGNMENT = 64  # bytes; where a vector starts decides the order of additions inside BLAS
_LONGEST = 2**24  # bytes received at once: longer vectors are exchanged in slices, or all ranks would fill the memory


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
        by_rank = [_subtrees(0, self.n, bounds[r], bounds[r + 1]) for r in range(comm.size)]
        self.parts = range(bounds[comm.rank], bounds[comm.rank + 1])
        self._most = max(len(trees) for trees in by_rank)
        self._orders = [_order(low, high, 0) for low, high in by_rank[comm.rank]]
        self._depth = max((level for order in self._orders for _, level, _ in order), default=0)
        rows = {tree: r * self._most + i for r, trees in enumerate(by_rank) for i, tree in enumerate(trees)}
        self._joins: list[tuple[int, int]] = []
        self._root = _join(rows, 0, self.n, self._joins)
        self._spaces: dict[tuple[int, torch.dtype, torch.device], _Space] = {}

    def __call__(self, part: Part, length: int, dtype: torch.dtype, device: torch.device = CPU) -> Tensor:
        """Return sum_i part_i, shape (length,), the same bits on every rank. Collective.

        Parameters
        ----------
        part
            `part(i, out)` writes part i over `out`, shape (length,), which starts at a multiple of 64 bytes.
        device
            Where the parts are written and added; the ranks' sums go through the host's memory.
        """
        key = length, dtype, device
        if key not in self._spaces:
            self._spaces[key] = _Space(length, dtype, device, self._most, self._depth, self.comm.size)
        space = self._spaces[key]
        total = torch.empty(length, dtype=dtype, device=device)
        if self.comm.size == 1:
            _add(part, self._orders[0], [total, *space.partial])
            return total
        for order, row in zip(self._orders, space.send, strict=False):
            _add(part, order, [row, *space.partial])
        for columns in space.slices:
            self._finish(space, columns, total)
        return total

    def _finish(self, space: _Space, columns: slice, total: Tensor) -> None:
        """Add the subtrees of all ranks over some columns. Collective."""
        send = space.packed[:, columns].contiguous().cpu()  # itself where the columns are all, and on the host
        received = space.received[: self.comm.size * send.numel()].view(-1, send.shape[1])
        self.comm.allgather(send.numpy(), received.numpy().reshape(self.comm.size, *send.shape))
        for left, right in self._joins:
            received[left].add_(received[right])
        found = total[columns]
        found.copy_(received[self._root, : len(found)])


class _Space:
    """The memory of sums of one length and type, kept from one sum to the next."""

    def __init__(self, length: int, dtype: torch.dtype, device: torch.device, rows: int, depth: int, size: int) -> None:
        aligned = -(-length * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT // dtype.itemsize
        self.partial = [torch.empty(length, dtype=dtype, device=device) for _ in range(depth)]
        rows *= size > 1  # alone, nothing is sent
        lines = max(_LONGEST // (size * max(rows, 1) * _ALIGNMENT), 1)
        width = lines * (_ALIGNMENT // dtype.itemsize)
        self.slices = [slice(k, min(k + width, aligned)) for k in range(0, aligned, width)]
        self.packed = torch.zeros(rows, aligned, dtype=dtype, device=device)
        self.send = [row[:length] for row in self.packed]
        self.received = torch.empty(size * rows * min(width, aligned), dtype=dtype, device=CPU)


def _add(part: Part, order: Sequence[_Leaf], rows: Sequence[Tensor]) -> None:
    """Add a subtree into rows[0]; rows[k] holds what waits for its right neighbour at depth k."""
    for leaf, level, joins in order:
        part(leaf, rows[level])
        for k in range(level, level - joins, -1):
            rows[k - 1].add_(rows[k])


def _order(low: int, high: int, level: int) -> list[_Leaf]:
    """The leaves of [low, high): number, depth, and how many sums are complete after it.

    >>> _order(0, 3, 0)
    [(0, 0, 0), (1, 1, 1), (2, 1, 1)]
    """
    if high - low == 1:
        return [(low, level, 0)]
    middle = _middle(low, high)
    *before, (leaf, depth, joins) = _order(middle, high, level + 1)
    return [*_order(low, middle, level), *before, (leaf, depth, joins + 1)]


def _join(rows: dict[Range, int], low: int, high: int, joins: list[tuple[int, int]]) -> int:
    """Append the additions (to, from) that make [low, high) out of the rows of subtrees; return the row it ends in."""
    if (low, high) in rows:
        return rows[low, high]
    middle = _middle(low, high)
    pair = _join(rows, low, middle, joins), _join(rows, middle, high, joins)
    joins.append(pair)
    return pair[0]


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
