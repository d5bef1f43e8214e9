"""Jets: a field and its derivatives at points, as a PDE residual reads them.

A user writes `u.t + u * u.x - nu * u.xx`; a jet hands out the tensors. Which derivatives a residual reads is found by
running it once on `RecordingJet`s, so only those are propagated through the network.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain, combinations
from math import comb
from typing import Any

import torch
from torch import Tensor

Index = tuple[int, ...]
"""A derivative: the coordinates' numbers, sorted; () is the value, (0, 0) the second derivative in coordinate 0."""


@dataclass(frozen=True)
class Operator:
    """A fixed linear combination of second derivatives, carried through a network as one jet.

    Attributes
    ----------
    terms
        Pairs of a second derivative and its factor.
    """

    terms: tuple[tuple[Index, float], ...]

    def of(self, derivative: Callable[[Index], Tensor]) -> Tensor:
        """Return the combination of the second derivatives that `derivative` returns."""
        (first, factor), *others = self.terms
        total = factor * derivative(first)
        for index, factor in others:
            total = total + factor * derivative(index)
        return total


Carried = Index | Operator
"""What one place on the jet axis holds."""


def order(carried: Carried) -> int:
    """Return the order of a derivative, 2 for an operator."""
    return 2 if isinstance(carried, Operator) else len(carried)


class Jet:
    """A field's derivatives by name. Stands for its value in arithmetic and in torch functions.

    Parameters
    ----------
    coordinates
        One letter per coordinate, such as "xt".
    lookup
        Returns the tensor of a derivative, shape (n,).

    Examples
    --------
    >>> u = Jet("xt", lambda index: torch.tensor([float(len(index))]))
    >>> u.xx, u * u.x, u.tx is not None
    (tensor([2.]), tensor([0.]), True)
    """

    def __init__(self, coordinates: str, lookup: Callable[[Index], Tensor]) -> None:
        self._coordinates = coordinates
        self._lookup = lookup

    def derivative(self, *axes: int) -> Tensor:
        """Return the derivative in the coordinates numbered `axes`, shape (n,)."""
        return self._lookup(tuple(sorted(axes)))

    @property
    def value(self) -> Tensor:
        """The field itself, shape (n,)."""
        return self._lookup(())

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("_") or any(letter not in self._coordinates for letter in name):
            raise AttributeError(f"no derivative '{name}': the coordinates are {', '.join(self._coordinates)}")
        return self.derivative(*(self._coordinates.index(letter) for letter in name))

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*(_plain(a) for a in args), **{k: _plain(a) for k, a in (kwargs or {}).items()})

    def __add__(self, other: Any) -> Tensor:
        return _apply(operator.add, self, other)

    def __sub__(self, other: Any) -> Tensor:
        return _apply(operator.sub, self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return _apply(operator.sub, other, self)

    def __mul__(self, other: Any) -> Tensor:
        return _apply(operator.mul, self, other)

    def __truediv__(self, other: Any) -> Tensor:
        return _apply(operator.truediv, self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return _apply(operator.truediv, other, self)

    def __pow__(self, power: Any) -> Tensor:
        return _apply(operator.pow, self, power)

    def __rpow__(self, base: Any) -> Tensor:
        return _apply(operator.pow, base, self)

    def __neg__(self) -> Tensor:
        return -self.value

    __radd__ = __add__
    __rmul__ = __mul__


def _apply(function: Callable[[Any, Any], Any], left: Any, right: Any) -> Tensor:
    result: Tensor = function(_plain(left), _plain(right))
    return result


def _plain(value: Any) -> Any:
    """Jets replaced by their values, also inside a list as `torch.stack` takes it."""
    if type(value) in (list, tuple):
        return type(value)(_plain(v) for v in value)
    return value.value if isinstance(value, Jet) else value


class RecordingJet(Jet):
    """A jet of ones that remembers which derivatives were read."""

    def __init__(self, coordinates: str, like: Tensor) -> None:
        self.read: set[Index] = set()

        def lookup(index: Index) -> Tensor:
            self.read.add(index)
            return torch.ones_like(like)

        super().__init__(coordinates, lookup)


class Points:
    """Coordinates of points by letter: `p.x`, `p.t`, each of shape (n,); `p.all` is (d, n)."""

    def __init__(self, coordinates: str, all_: Tensor) -> None:
        self._coordinates = coordinates
        self.all = all_

    def __getattr__(self, name: str) -> Tensor:
        if len(name) != 1 or name not in self._coordinates:
            raise AttributeError(f"no coordinate '{name}': the coordinates are {', '.join(self._coordinates)}")
        return self.all[self._coordinates.index(name)]


def closure(wanted: Iterable[Carried]) -> tuple[Carried, ...]:
    """Return derivatives with all their sub-indices, by order, then operators: what a propagation has to carry.

    >>> closure([(0, 0), (1,)])
    ((), (0,), (1,), (0, 0))
    >>> closure([Operator((((0, 0), 1.0), ((1, 1), -1.0)))])
    ((), (0,), (1,), Operator(terms=(((0, 0), 1.0), ((1, 1), -1.0))))
    """
    wanted = list(wanted)
    operators = [w for w in wanted if isinstance(w, Operator)]
    indices = [w for w in wanted if not isinstance(w, Operator)]
    indices += [(axis,) for o in operators for index, _ in o.terms for axis in index]
    every = chain.from_iterable(combinations(i, k) for i in indices for k in range(len(i) + 1))
    return (*sorted({(), *every}, key=lambda i: (len(i), i)), *dict.fromkeys(operators))


def partitions(index: Index) -> list[tuple[tuple[Index, ...], int]]:
    """Return all ways to share the derivatives of `index` among factors, with multiplicities (Faà di Bruno).

    The derivative of sigma(z) is the sum over them of multiplicity * sigma^(number of factors) * product of factors.

    >>> partitions((0, 0))
    [(((0, 0),), 1), (((0,), (0,)), 1)]
    >>> partitions((0, 0, 1))[1:3]
    [(((0,), (0, 1)), 2), (((0, 0), (1,)), 1)]
    """
    ways: dict[tuple[Index, ...], int] = {(): 1}
    for axis in index:
        grown: dict[tuple[Index, ...], int] = {}
        for blocks, times in ways.items():
            longer = [(*blocks[:k], tuple(sorted((*b, axis))), *blocks[k + 1 :]) for k, b in enumerate(blocks)]
            for way in (*longer, (*blocks, (axis,))):
                key = tuple(sorted(way))
                grown[key] = grown.get(key, 0) + times
        ways = grown
    return sorted(ways.items(), key=lambda item: (len(item[0]), item[0]))


def splits(index: Carried) -> list[tuple[Carried, Carried, float]]:
    """Return all ways to share a derivative between two factors, with their multiplicities (Leibniz).

    An operator L = sum_ik c_ik D_ik splits into (1, L), (L, 1) and products of first derivatives.

    >>> splits((0, 0))
    [((), (0, 0), 1.0), ((0,), (0,), 2.0), ((0, 0), (), 1.0)]
    """
    if isinstance(index, Operator):
        crossed: dict[tuple[Carried, Carried], float] = {((), index): 1.0, (index, ()): 1.0}
        for (i, k), factor in index.terms:
            for left, right in (((i,), (k,)), ((k,), (i,))):
                crossed[left, right] = crossed.get((left, right), 0.0) + factor
        return [(left, right, factor) for (left, right), factor in crossed.items()]
    ways: list[tuple[Index, Index, float]] = [((), (), 1.0)]
    for axis in sorted(set(index)):
        m = index.count(axis)
        ways = [(a + (axis,) * k, b + (axis,) * (m - k), w * comb(m, k)) for a, b, w in ways for k in range(m + 1)]
    return list(ways)


def derivatives(function: Callable[[Tensor], Tensor], x: Tensor, wanted: Iterable[Carried]) -> dict[Carried, Tensor]:
    """Differentiate an ordinary torch function of the points by nested reverse mode.

    Parameters
    ----------
    function
        Maps coordinates (d, n) to values (..., n), point by point.
    x
        Coordinates, shape (d, n).
    wanted
        Derivatives and operators.

    Returns
    -------
    dict
        Each of them -> tensor (..., n); zero where the function does not depend on a coordinate. Differentiable.
    """
    if not x.requires_grad:
        x = x.detach().requires_grad_()
    with torch.enable_grad():
        found: dict[Index, Tensor] = {(): function(x)}

        def derivative(index: Index) -> Tensor:
            if index not in found:
                found[index] = _partial(derivative(index[:-1]), x, index[-1])
            return found[index]

        def carried(what: Carried) -> Tensor:
            if isinstance(what, Operator):
                return what.of(derivative)
            return derivative(what)

        return {what: carried(what) for what in wanted}


def _partial(values: Tensor, x: Tensor, axis: int) -> Tensor:
    if not values.requires_grad:
        return torch.zeros_like(values)
    rows = values.reshape(-1, values.shape[-1])
    # Row by row: a row at point j depends on point j only, so the gradient of its sum is the derivative at each point.
    slopes = [torch.autograd.grad(r.sum(), x, create_graph=True, materialize_grads=True)[0][axis] for r in rows]
    return torch.stack(slopes).reshape(values.shape)
