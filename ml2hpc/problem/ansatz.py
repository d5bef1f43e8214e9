"""The trial function u = lifting + distance * network, with its jets, and the points of one term of a PINN's loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ml2hpc.errors import UserError
from ml2hpc.problem.jet import Index, Jet, Points, RecordingJet, closure, derivatives, product
from ml2hpc.problem.pde import PDE
from ml2hpc.problem.samplers import sample

Factors = dict[Index, Tensor]
"""Derivatives of a known function at points, each (fields, n)."""


@dataclass(frozen=True)
class Term:
    """weight * mean over its points of the squared residuals.

    Attributes
    ----------
    points, partner
        Shape (d, n); `partner` holds the other ends of periodic pairs, or is None.
    residual
        Called with `Points` and one jet per field (two per field with `partner`).
    indices
        Derivatives that the network has to carry for it.
    """

    name: str
    weight: float
    points: Tensor
    partner: Tensor | None
    residual: Callable[..., Any]
    indices: tuple[Index, ...]

    @property
    def n(self) -> int:
        """Number of points (of pairs)."""
        return self.points.shape[1]

    def part(self, rows: Tensor | slice) -> Term:
        """Return the term over some of its points."""
        partner = None if self.partner is None else self.partner[:, rows]
        return replace(self, points=self.points[:, rows], partner=partner)

    def all_points(self) -> Tensor:
        """Return points and partners side by side, shape (d, n) or (d, 2 n)."""
        return self.points if self.partner is None else torch.cat([self.points, self.partner], 1)


class Trial:
    """Jets of u at fixed points from jets of the network there.

    Parameters
    ----------
    pde
        Supplies lifting and distance.
    x
        Points, shape (d, n).
    indices
        Closed set of derivatives, in the engine's order.
    """

    def __init__(self, pde: PDE, x: Tensor, indices: tuple[Index, ...]) -> None:
        self.pde = pde
        self.place = {index: j for j, index in enumerate(indices)}
        self.lifting = _known(pde, pde.lifting, x, indices) if pde.hard else None
        self.distance = _known(pde, pde.distance, x, indices) if pde.hard else None

    def jets(self, network: Tensor, columns: slice) -> list[Jet]:
        """Return one jet per field over some of the points, from network jets (fields, jets, n)."""
        return [self._jet(network, k, columns) for k in range(len(self.pde.fields))]

    def _jet(self, network: Tensor, field: int, columns: slice) -> Jet:
        def raw(index: Index) -> Tensor:
            return network[field, self.place[index], columns]

        def lookup(index: Index) -> Tensor:
            value = raw(index)
            if self.distance is not None:
                factor = self.distance
                value = product(index, lambda i: factor[i][field, columns], raw)
            return value if self.lifting is None else value + self.lifting[index][field, columns]

        return Jet(self.pde.coordinates, lookup)


def _known(pde: PDE, function: Callable[[Points], Any], x: Tensor, indices: Sequence[Index]) -> Factors | None:
    """Return a function's derivatives at the points, each (fields, n); None if it returns None."""

    def stacked(y: Tensor) -> Tensor:
        values = function(Points(pde.coordinates, y))
        parts = values if isinstance(values, tuple) else (values,) * len(pde.fields)
        return torch.stack([torch.as_tensor(v, dtype=y.dtype).expand(y.shape[1]) for v in parts])

    if function(_probe(pde, x)) is None:
        return None
    return {index: value.detach() for index, value in derivatives(stacked, x, indices).items()}


def residuals(values: Any) -> tuple[Tensor, ...]:
    """Return a residual's value as a tuple of tensors."""
    return tuple(values) if isinstance(values, tuple | list) else (values,)


def collocate(
    pde: PDE, *, n: int, n_face: int, sampler: str, seed: int, dtype: torch.dtype, weight: float
) -> list[Term]:
    """Return the terms of a PINN's loss on freshly drawn points, the same on every rank. Not collective.

    Parameters
    ----------
    n, n_face
        Numbers of points inside and for each condition.
    sampler
        A name of `ml2hpc.problem.samplers`.
    weight
        Factor of all conditions' own weights.

    Raises
    ------
    UserError
        If the user's residual or conditions fail, with the reason.
    """
    inside = torch.as_tensor(sample(sampler, n, pde.bounds, seed).T.copy(), dtype=dtype)
    terms = [_term(pde, "residual", 1.0, inside, None, pde.residual)]
    # What lifting and distance impose by construction needs no term.
    imposed = pde.hard and (
        pde.lifting(_probe(pde, inside)) is not None or pde.distance(_probe(pde, inside)) is not None
    )
    for number, condition in enumerate([] if imposed else _guarded(pde, "conditions", pde.conditions)):
        if condition.axis not in pde.coordinates or condition.end not in (0, 1):
            raise UserError(
                f"condition {condition.name}: no face {condition.axis!r} end {condition.end}; "
                f"the coordinates are {pde.coordinates}, the ends 0 and 1"
            )
        axis = pde.coordinates.index(condition.axis)
        others = [b for k, b in enumerate(pde.bounds) if k != axis]
        here = torch.empty(len(pde.bounds), n_face if others else 1, dtype=dtype)
        if others:
            drawn = sample(sampler, n_face, others, seed + 1 + number)
            here[[k for k in range(len(pde.bounds)) if k != axis]] = torch.as_tensor(drawn.T.copy(), dtype=dtype)
        here[axis] = pde.bounds[axis][condition.end]
        there = None
        if condition.periodic:
            there = here.clone()
            there[axis] = pde.bounds[axis][1 - condition.end]
        terms.append(_term(pde, condition.name, weight * condition.weight, here, there, condition.residual))
    return terms


def _probe(pde: PDE, x: Tensor) -> Points:
    return Points(pde.coordinates, x[:, :1])


def _term(
    pde: PDE, name: str, weight: float, points: Tensor, partner: Tensor | None, residual: Callable[..., Any]
) -> Term:
    few = points[:, :2]
    jets = [RecordingJet(pde.coordinates, few[0]) for _ in range(len(pde.fields) * (1 if partner is None else 2))]
    for value in residuals(_guarded(pde, name, residual, Points(pde.coordinates, few), *jets)):
        if not isinstance(value, Tensor) or value.shape != few[0].shape:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise UserError(f"{type(pde).__name__}.{name} must return one number per point, shape (n,); got {shape}")
    return Term(name, weight, points, partner, residual, closure(set().union(*(j.read for j in jets))))


def _guarded(pde: PDE, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call user code; turn its exception into one clear error that says where it happened."""
    try:
        return function(*arguments)
    except Exception as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "?"
        raise UserError(f"{type(pde).__name__}.{name} failed: {type(error).__name__}: {error} ({where})") from error
