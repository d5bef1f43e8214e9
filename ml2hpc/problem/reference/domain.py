"""The box on which a reference solution is defined, and the check that the points asked for lie in it."""

from __future__ import annotations

import numpy as np

from ml2hpc.errors import UserError

_SLACK = 1e-12  # relative to the side: lets through points that rounding put just outside


def coordinates(
    points: np.ndarray,  # (n, d)
    bounds: tuple[tuple[float, float], ...],
) -> np.ndarray:  # (d, n)
    """Check points against bounds and return one float64 row per coordinate.

    Not collective.

    Raises
    ------
    UserError
        If the shape is not (n, d), or a point is not finite or lies outside the box.
    """
    array = np.asarray(points)
    if array.ndim != 2 or array.shape[1] != len(bounds) or array.dtype.kind not in "fiu":
        raise UserError(
            f"points have shape {array.shape} and type {array.dtype}; give real numbers of shape (n, {len(bounds)})"
        )
    rows = np.array(array.T, dtype=np.float64, order="C")
    for axis, (low, high) in enumerate(bounds):
        slack = _SLACK * (high - low)
        inside = (rows[axis] >= low - slack) & (rows[axis] <= high + slack)  # False for nan
        if not inside.all():
            point = array[int(np.argmin(inside))].tolist()
            raise UserError(f"the reference holds for coordinate {axis} in [{low}, {high}]; point {point} is outside")
        np.clip(rows[axis], low, high, out=rows[axis])
    return rows
