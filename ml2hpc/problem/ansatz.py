"""The trial function u = lifting + distance * network, with its jets, and the points of one term of a PINN's loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ml2hpc.errors import UserError
from ml2hpc.problem import guard
from ml2hpc.problem.jet import Carried, Index, Jet, Operator, Points, RecordingJet, closure, derivatives, splits
from ml2hpc.problem.pde import PDE, Condition
from ml2hpc.problem.samplers import sample

_SIZES = (1e-2, 1.0, 10.0, 1e3)  # of random jets: residuals may change their form where a derivative is large or small


@dataclass(frozen=True)
class Term:
    """factor * sum over its points of the squared residuals.

    Attributes
    ----------
    factor
        weight / n for a mean over the n points; a sample of the points carries more each.
    points, partner
        Shape (d, n); `partner` holds the other ends of periodic pairs, or is None.
    residual
        Called with `Points` and one jet per field (two per field with `partner`).
    indices
        Derivatives and operators that the network has to carry for it.
    """

    name: str
    factor: float
    points: Tensor
    partner: Tensor | None
    residual: Callable[..., Any]
    indices: tuple[Carried, ...]

    @property
    def n(self) -> int:
        """Number of points (of pairs)."""
        return self.points.shape[1]

    def part(self, rows: Tensor | slice, scale: float = 1.0) -> Term:
        """Return the term over some of its points, times `scale`."""
        partner = None if self.partner is None else self.partner[:, rows]
        return replace(self, factor=scale * self.factor, points=self.points[:, rows], partner=partner)

    def to(self, device: torch.device) -> Term:
        """Return the term with its points on a device."""
        partner = None if self.partner is None else self.partner.to(device)
        return replace(self, points=self.points.to(device), partner=partner)

    def all_points(self) -> Tensor:
        """Return points and partners side by side, shape (d, n) or (d, 2 n)."""
        return self.points if self.partner is None else torch.cat([self.points, self.partner], 1)


class Trial:
    """Jets of u at fixed points from jets of the network there: an affine map, point by point.

    By Leibniz, with multi-indices, D^i u = D^i lifting + sum_(j <= i) binom(i, j) D^(i-j) distance D^j N; an operator
    L = sum_ik c_ik D_ik gives L(d N) = N L d + sum_ik c_ik (d_i N_k + d_k N_i) + d L N.

    Parameters
    ----------
    pde
        Supplies lifting and distance.
    x
        Points, shape (d, n), partners included.
    indices
        Closed set of derivatives and operators, in the engine's order.
    """

    def __init__(self, pde: PDE, x: Tensor, indices: tuple[Carried, ...]) -> None:
        self._pde = pde
        self._place = {index: j for j, index in enumerate(indices)}
        # A second derivative that an operator stands for, by what it is divided by; the operator's others are zero.
        self._carriers = {o.terms[0][0]: (self._place[o], o.terms[0][1]) for o in indices if isinstance(o, Operator)}
        self._absent = {i for o in indices if isinstance(o, Operator) for i, _ in o.terms[1:]}
        self._zero = x.new_zeros(x.shape[1])
        self._lifting: Tensor | None = None  # (fields, jets, n)
        self._distance: Tensor | None = None  # (fields, 1, n)
        self._bent: Tensor | None = None  # (fields, jets - 1, n): the distance's derivatives, the factors of N's value
        self._mixed: list[tuple[int, int, Tensor]] = []  # (i, j, factor of D^j N in D^i u) for other j < i
        if not pde.hard:
            return
        lifting, distance = _known(pde, "lifting", x, indices), _known(pde, "distance", x, indices)
        if lifting is not None:
            self._lifting = torch.stack([lifting[i] for i in indices], 1)
        if distance is not None:
            self._distance = distance[()][:, None]
            self._share(indices, distance)

    def _share(self, indices: tuple[Carried, ...], distance: dict[Carried, Tensor]) -> None:
        """Keep the factors that a derivative of the distance gives to the network's lower derivatives."""
        bent = torch.stack([distance[i] for i in indices], 1)[:, 1:]
        if bent.any():
            self._bent = bent
        for index in indices:
            for left, right, times in splits(index):
                if left and right and distance[left].any():
                    self._mixed.append((self._place[index], self._place[right], times * distance[left]))

    def jets(self, network: Tensor) -> Tensor:
        """Return the jets of u, shape (fields, jets, n), from the network's."""
        if self._distance is None:
            return network if self._lifting is None else network + self._lifting
        if self._lifting is None:
            return self._add_lower(network * self._distance, network)
        return self._add_lower(torch.addcmul(self._lifting, network, self._distance), network)

    def push_forward(self, network: Tensor) -> Tensor:
        """Return the derivative of u's jets along the network's, shape (fields, jets, n): `jets` without lifting."""
        return network if self._distance is None else self._add_lower(network * self._distance, network)

    def _add_lower(self, u: Tensor, network: Tensor) -> Tensor:
        if self._bent is not None:
            u[:, 1:].addcmul_(self._bent, network[:, :1])
        for i, j, factor in self._mixed:
            u[:, i].addcmul_(factor, network[:, j])
        return u

    def pull_back(self, cotangent: Tensor) -> Tensor:
        """Return the cotangent of the network's jets, shape (fields, jets, n), from that of u's."""
        if self._distance is None:
            return cotangent
        network = cotangent * self._distance
        if self._bent is not None:
            network[:, 0].add_((self._bent * cotangent[:, 1:]).sum(1))
        for i, j, factor in self._mixed:
            network[:, j].addcmul_(factor, cotangent[:, i])
        return network

    def fields(self, u: Tensor, *, pairs: bool = False) -> list[Jet]:
        """Return one jet per field from u's jets; with `pairs`, the fields at the points and then at their partners.

        Where an operator is carried, its first second derivative stands for all of it, see `_operator`.
        """
        planes = [field.unbind() for field in u.unbind()]
        if not pairs:
            return [self._jet(field) for field in planes]
        n = u.shape[2] // 2
        return [self._jet([p[rows] for p in field]) for rows in (slice(0, n), slice(n, None)) for field in planes]

    def _jet(self, planes: Any) -> Jet:
        def lookup(index: Index) -> Tensor:
            place, factor = self._place.get(index), 1.0
            if place is None and index in self._carriers:
                place, factor = self._carriers[index]
            if place is not None:
                value: Tensor = planes[place]
                return value if factor == 1.0 else value / factor
            if index in self._absent:
                return self._zero[: len(planes[0])]
            raise _unread(self._pde, index)

        return Jet(self._pde.coordinates, lookup)


def _unread(pde: PDE, index: Index) -> UserError:
    """The error of a derivative that is read, but was not when the residual was tried."""
    name = "".join(pde.coordinates[axis] for axis in index)
    return UserError(
        f"{type(pde).__name__} reads the derivative '{name}' at some points only; "
        f"read it outside of any if, so that it is propagated"
    )


def _known(pde: PDE, name: str, x: Tensor, indices: tuple[Carried, ...]) -> dict[Carried, Tensor] | None:
    """Return the derivatives of lifting or distance at the points, each (fields, n); None if it returns None."""
    full_name, function = f"{type(pde).__name__}.{name}", getattr(pde, name)

    def stacked(y: Tensor) -> Tensor:
        values = guard.call(full_name, function, Points(pde.coordinates, y))
        return guard.columns(full_name, values, len(pde.fields), y[0])

    if guard.call(full_name, function, Points(pde.coordinates, x[:, :1])) is None:
        return None
    return {index: value.detach() for index, value in derivatives(stacked, x, indices).items()}


def residuals(values: Any) -> tuple[Tensor, ...]:
    """Return a residual's value as a tuple of tensors. Not collective."""
    return tuple(values) if isinstance(values, tuple | list) else (values,)


def collocate(
    pde: PDE, *, n: int, n_face: int, sampler: str, seed: int, dtype: torch.dtype, weight: float
) -> list[Term]:
    """Return the terms of a PINN's loss on freshly drawn points, the same on every rank. Not collective.

    With hard conditions, a condition that the trial function meets whatever the network is gets no term.

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
        If the user's residual, conditions, lifting, distance or features fail, with the reason.
    """
    inside = torch.as_tensor(sample(sampler, n, pde.bounds, seed).T.copy(), dtype=dtype)
    terms = [_term(pde, "residual", 1.0, inside, None, pde.residual)]
    Trial(pde, inside[:, :2], terms[0].indices)  # user errors before anything is computed
    names = Counter({"residual": 1})
    conditions = _conditions(pde)
    if not pde.hard and not conditions:
        raise UserError(f"soft conditions: {type(pde).__name__}.conditions() lists none, so any solution would do")
    for number, condition in enumerate(conditions):
        here, there = _face(pde, condition, n_face, sampler, seed + 1 + number, dtype)
        names[condition.name] += 1
        name = condition.name if names[condition.name] == 1 else f"{condition.name}_{names[condition.name]}"
        term = _term(pde, name, weight * condition.weight, here, there, condition.residual)
        if not (pde.hard and _met(pde, term)):
            terms.append(term)
    return terms


def _conditions(pde: PDE) -> list[Condition]:
    name = f"{type(pde).__name__}.conditions"
    found = guard.call(name, lambda: list(pde.conditions()))
    for condition in found:
        if not isinstance(condition, Condition):
            raise UserError(f"{name} must return a list of Condition; it has {guard.describe(condition)}")
        if condition.axis not in tuple(pde.coordinates) or condition.end not in (0, 1):
            raise UserError(
                f"condition {condition.name}: no face {condition.axis!r} end {condition.end}; "
                f"the coordinates are {pde.coordinates}, the ends 0 and 1"
            )
    return list(found)


def _face(
    pde: PDE, condition: Condition, n: int, sampler: str, seed: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Draw points on a condition's face, (d, n), and their partners on the opposite one; one point in one dimension."""
    axis = pde.coordinates.index(condition.axis)
    others = [k for k in range(len(pde.coordinates)) if k != axis]
    here = torch.empty(len(pde.coordinates), n if others else 1, dtype=dtype)
    if others:
        here[others] = torch.as_tensor(sample(sampler, n, [pde.bounds[k] for k in others], seed).T.copy(), dtype=dtype)
    here[axis] = pde.bounds[axis][condition.end]
    if not condition.periodic:
        return here, None
    there = here.clone()
    there[axis] = pde.bounds[axis][1 - condition.end]
    return here, there


def _term(
    pde: PDE, name: str, weight: float, points: Tensor, partner: Tensor | None, residual: Callable[..., Any]
) -> Term:
    """Return the term; which derivatives it reads is found by trying its residual on two points."""
    few, full_name = points[:, :2], f"{type(pde).__name__}.{name}"
    jets = [RecordingJet(pde.coordinates, few[0]) for _ in range(len(pde.fields) * (1 if partner is None else 2))]
    values = residuals(guard.call(full_name, residual, Points(pde.coordinates, few), *jets))
    for value in values or (None,):
        if not isinstance(value, Tensor) or value.shape != few[0].shape:
            raise UserError(f"{full_name} must return one number per point, shape (n,); got {guard.describe(value)}")
    read = set().union(*(jet.read for jet in jets))
    if not read:
        raise UserError(f"{full_name} does not depend on {', '.join(pde.fields)}: there is nothing to train")
    term = Term(name, weight / points.shape[1], points, partner, residual, closure(read))
    operator = _operator(pde, full_name, term, read)
    if operator is not None:
        term = replace(term, indices=closure([*(i for i in read if len(i) < 2), operator]))
    return term


def _operator(pde: PDE, full_name: str, term: Term, read: set[Index]) -> Operator | None:
    """Return the operator L = sum_ik c_ik D_ik through which alone a residual depends on second derivatives, or None.

    Every component r has dr / du_ik = a c_ik for each field u, with one c for all and a constant a per component and
    field: found by differentiation at all points, on draws of random jets of different size, to 1e-12. Then r is
    affine in the second derivatives and depends on them through L u only. So it is exact to carry L u in place of
    them and to hand it out as c_ik u_ik for one ik, zero for the others. The values must agree as well: steps and
    detached tensors have no slope. With third derivatives the single second ones are carried anyway.
    """
    seconds = sorted(i for i in read if len(i) == 2)
    if len(seconds) < 2 or max(map(len, read)) > 2:
        return None
    trials = [_Probe(pde, full_name, term, read, size) for size in _SIZES]
    slopes = torch.cat([trial.slopes(seconds) for trial in trials], 2)
    if not len(slopes):
        return None
    first = slopes[:, :, 0]
    row = first[first.abs().amax(1).argmax()]  # a c of the component and field that depends on them most
    tolerance = 1e-12 * float(row.abs().max())
    factors = row / row[0]  # the first second derivative will stand for the whole
    multiples = (first @ row / (row @ row))[:, None] * row
    constant = bool(((slopes - first[:, :, None]).abs() <= tolerance).all())
    proportional = bool(((first - multiples).abs() <= tolerance).all())
    if not (constant and proportional and bool((row.abs() > tolerance).all())):
        return None
    operator = Operator(tuple(zip(seconds, factors.tolist(), strict=True)))
    return operator if all(trial.agrees(operator, float(row.abs().sum())) for trial in trials) else None


class _Probe:
    """A term's residual on random jets of one size at all its points, in float64."""

    def __init__(self, pde: PDE, full_name: str, term: Term, read: set[Index], size: float) -> None:
        self._pde, self._name, self._term, self._size = pde, full_name, term, size
        self._points = Points(pde.coordinates, term.points.to(torch.float64))
        generator = torch.Generator().manual_seed(0)
        self._jets = [
            {i: size * torch.randn(term.n, generator=generator, dtype=torch.float64) for i in sorted(read)}
            for _ in range(len(pde.fields) * (1 if term.partner is None else 2))
        ]

    def _residuals(self, jets: Sequence[dict[Index, Tensor]]) -> tuple[Tensor, ...]:
        def jet(own: dict[Index, Tensor]) -> Jet:
            def lookup(index: Index) -> Tensor:
                if index not in own:
                    raise _unread(self._pde, index)
                return own[index]

            return Jet(self._pde.coordinates, lookup)

        fields = [jet(own) for own in jets]
        return residuals(guard.call(self._name, self._term.residual, self._points, *fields))

    def slopes(self, seconds: Sequence[Index]) -> Tensor:
        """Return dr / du_ik, shape (components * fields, seconds, n)."""
        with torch.enable_grad():
            jets = [{i: v.clone().requires_grad_() for i, v in own.items()} for own in self._jets]
            inputs = [own[i] for own in jets for i in seconds]
            rows = [
                torch.stack(torch.autograd.grad(r.sum(), inputs, retain_graph=True, materialize_grads=True))
                for r in self._residuals(jets)
                if r.requires_grad
            ]
        n = self._term.n
        return torch.cat(rows).view(-1, len(seconds), n) if rows else torch.empty(0, len(seconds), n)

    def agrees(self, operator: Operator, slope: float) -> bool:
        """Tell whether the operator in place of its second derivatives leaves the residual; `slope` is a |c|_1."""
        (carrier, factor), *others = operator.terms
        alone = [own | {carrier: operator.of(own.__getitem__) / factor} for own in self._jets]
        for own in alone:
            own |= {i: torch.zeros_like(own[i]) for i, _ in others}
        return all(
            torch.allclose(r, r_alone, rtol=1e-9, atol=1e-9 * self._size * slope, equal_nan=True)
            for r, r_alone in zip(self._residuals(self._jets), self._residuals(alone), strict=True)
        )


def _met(pde: PDE, term: Term) -> bool:
    """Tell whether the trial function meets a condition whatever the network is: tried on a random one, in float64."""
    x = term.all_points().to(torch.float64)
    generator = torch.Generator().manual_seed(0)

    def network(y: Tensor) -> Tensor:
        features = guard.call(f"{type(pde).__name__}.features", pde.features, y)
        weight = torch.randn(len(pde.fields), len(features), dtype=y.dtype, generator=generator)
        return torch.sin(weight @ features + 1.0)

    found = derivatives(network, x, term.indices)
    trial = Trial(pde, x, term.indices)
    u = trial.jets(torch.stack([found[i].detach() for i in term.indices], 1))
    fields = trial.fields(u, pairs=term.partner is not None)
    values = residuals(term.residual(Points(pde.coordinates, x[:, : term.n]), *fields))
    largest = max(float(value.abs().max()) for value in values)
    return largest <= 1e-10 * (1.0 + float(u.abs().max()))  # rounding of u, some digits to spare
