"""What a user writes to train a PINN: a domain, a residual, conditions and, if there is one, a reference solution.

    class Heat(PDE):
        coordinates, domain = "xt", {"x": (0.0, 1.0), "t": (0.0, 0.5)}

        def residual(self, p, u):
            return u.t - 0.1 * u.xx

        def conditions(self):
            start = dirichlet("t", 0, lambda p: torch.sin(math.pi * p.x))
            return [start, dirichlet("x", 0, 0.0), dirichlet("x", 1, 0.0)]

Conditions are hard where u = lifting(p) + distance(p) N(features(p)) meets them for any network N, else soft: terms of
the loss. Periodic and zero-flux (Neumann) directions are hard by `features`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ml2hpc.problem.jet import Jet, Points

Value = float | Callable[[Points], Tensor]


@dataclass(frozen=True)
class Condition:
    """A soft condition on a face of the domain.

    Attributes
    ----------
    name
        Its name in the loss table.
    axis, end
        The face: coordinate letter and 0 for the lower, 1 for the upper end.
    residual
        `residual(p, *fields)` on the face; with `periodic`, `residual(p, *fields_here, *fields_at_the_other_end)`.
    weight
        Factor of the mean square in the loss.
    periodic
        Whether points come in pairs, one on each end.
    """

    name: str
    axis: str
    end: int
    residual: Callable[..., Any]
    weight: float = 1.0
    periodic: bool = False


class PDE(ABC):
    """A boundary value problem for one or several fields. Not collective.

    Attributes
    ----------
    coordinates
        One letter each, 1 to 4 of them.
    domain
        Bounds by coordinate.
    fields
        Names of the unknown fields; the residual gets one jet for each.
    title
        For plots and views.
    """

    coordinates: str
    domain: dict[str, tuple[float, float]]
    fields: tuple[str, ...] = ("u",)
    title: str = ""
    hard: bool = True  # set from -pinn_conditions before anything is evaluated

    # Arguments are open for type checkers: a class writes `residual(self, p, u)` or `residual(self, p, u, v)`.
    @abstractmethod
    def residual(self, *args: Any, **kwargs: Any) -> Any:
        """Return `residual(p, *fields)` at points p, a tensor (n,) or a tuple of them; 0 where the PDE holds."""

    def lifting(self, p: Points) -> Any:
        """Return the part of u that carries the hard conditions, a tensor (n,) (a tuple for several fields) or None."""
        return None

    def distance(self, p: Points) -> Any:
        """Return the factor of the network, zero where conditions are hard; a tensor (n,), a tuple, or None for 1."""
        return None

    def features(self, x: Tensor) -> Tensor:
        """Map coordinates (d, n) to network inputs (features, n). The default scales the domain to [-1, 1]."""
        low = torch.tensor([self.domain[c][0] for c in self.coordinates], dtype=x.dtype, device=x.device)[:, None]
        high = torch.tensor([self.domain[c][1] for c in self.coordinates], dtype=x.dtype, device=x.device)[:, None]
        return (x - low) / (high - low) * 2 - 1

    def conditions(self) -> Sequence[Condition]:
        """Return all conditions; those that the trial function meets by construction take no part in the loss."""
        return ()

    def reference(self, points: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Return the exact or reference solution at points (n, d), shape (n,) or (n, fields), or None."""
        return None

    @property
    def bounds(self) -> list[tuple[float, float]]:
        """Bounds in coordinate order."""
        return [self.domain[c] for c in self.coordinates]


def _value(value: Value, p: Points) -> Tensor | float:
    return value(p) if callable(value) else value


def _name(axis: str, end: int | str, kind: str, field: int) -> str:
    return f"{axis}{end}_{kind}" + (f"_{field}" if field else "")


def dirichlet(axis: str, end: int, value: Value, *, field: int = 0, weight: float = 1.0) -> Condition:
    """Return the soft condition u = value on a face; for a time coordinate's lower end, an initial condition."""
    return Condition(_name(axis, end, "value", field), axis, end, lambda p, *u: u[field] - _value(value, p), weight)


def neumann(axis: str, end: int, slope: Value, *, field: int = 0, weight: float = 1.0) -> Condition:
    """Return the soft condition du/d(axis) = slope on a face (along the coordinate, not along the outer normal)."""
    name = _name(axis, end, "slope", field)
    return Condition(name, axis, end, lambda p, *u: getattr(u[field], axis) - _value(slope, p), weight)


def periodic(axis: str, *, field: int = 0, weight: float = 1.0) -> Condition:
    """Return the soft condition that value and slope agree on the two ends of a coordinate."""

    def residual(p: Points, *u: Jet) -> tuple[Tensor, Tensor]:
        here, there = u[field], u[field + len(u) // 2]
        return here.value - there.value, getattr(here, axis) - getattr(there, axis)

    return Condition(_name(axis, "", "periodic", field), axis, 0, residual, weight, periodic=True)


def periodic_feature(s: Tensor, bounds: tuple[float, float], modes: int = 1) -> Tensor:
    """Return cos and sin of a coordinate, shape (2 modes, n): any network of them is periodic, a hard condition."""
    angle = 2 * math.pi * (s - bounds[0]) / (bounds[1] - bounds[0])
    return torch.stack([f(k * angle) for k in range(1, modes + 1) for f in (torch.cos, torch.sin)])


def zero_flux_feature(s: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Return cos(pi s') with s' in [0, 1], shape (1, n): any smooth network of it has zero slope at both ends."""
    return torch.cos(math.pi * (s - bounds[0]) / (bounds[1] - bounds[0]))[None]
