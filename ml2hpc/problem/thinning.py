"""Points in the order of a space-filling curve, and fewer of the same density: representatives of neighbours there.

Every c-th point of a low-discrepancy sequence is none of the sort: its digits repeat with c, so that every fourth Sobol
point lies in the same half or quarter of the box.
"""

from __future__ import annotations

import torch
from torch import Tensor


def thinned(points: Tensor, factor: int) -> Tensor:
    """Return the rows of one point of every `factor` neighbours, ascending. Not collective.

    Neighbours follow each other on Morton's curve through the box that the points span, and the one in their middle is
    kept; fewer than `factor` points have one too.

    Parameters
    ----------
    points
        Shape (d, n).

    Examples
    --------
    >>> thinned(torch.tensor([[0.0, 0.8, 0.1, 0.9], [0.2, 0.7, 0.1, 0.9]]), 2).tolist()
    [0, 3]
    """
    order = along(points)
    return order[min(factor, len(order)) // 2 :: factor].sort().values


def along(points: Tensor) -> Tensor:
    """Return the rows of points, shape (d, n), in the order of Morton's curve. Not collective."""
    return torch.argsort(_places(points.cpu()), stable=True)


def _places(points: Tensor) -> Tensor:
    """The places of points (d, n) on the curve: the digits of their coordinates in turn, shape (n,)."""
    points, d = points.double(), len(points)
    bits = min(60 // d, 30)
    low, high = points.amin(1, keepdim=True), points.amax(1, keepdim=True)
    extent = torch.where(high > low, high - low, torch.ones_like(low))
    cells = ((points - low) / extent * (2**bits - 1)).to(torch.int64)
    found = torch.zeros_like(cells[0])
    for bit in range(bits):
        for k in range(d):
            found |= ((cells[k] >> bit) & 1) << (bit * d + k)
    return found
