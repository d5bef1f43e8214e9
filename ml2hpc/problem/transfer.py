"""Transfers between the vectors of a problem and of a coarser one.

    prolong   e -> I e     a coarse correction on the fine level
    restrict  g -> I' g    a fine gradient on the coarse level: the exact transpose
    project   x -> P x     the unknowns themselves; by injection P I is the identity
    lift      x -> I x     the other way round

All are cheap and linear; no matrix is stored. The entries of I are not negative.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ml2hpc.vec import VectorSpace

Hierarchy = Literal["depth", "width", "samples", "grid"]
Projection = Literal["injection", "average"]


@dataclass(frozen=True)
class Coarsening:
    """How a problem is coarsened.

    Attributes
    ----------
    kind
        What there is less of: residual blocks, neurons in a layer, samples, or grid lines.
    factor
        How many become one.
    linear
        Interpolate linearly, else by constants.
    average
        Project by averages, else by injection.
    """

    kind: Hierarchy
    factor: int = 2
    linear: bool = False
    average: bool = False


class Transfer(ABC):
    """I, I' and P between two levels; vectors have the shapes (n_local,) of their spaces."""

    @abstractmethod
    def prolong(self, e: Tensor) -> Tensor:
        """Return I e on the fine level. Collective."""

    @abstractmethod
    def restrict(self, g: Tensor) -> Tensor:
        """Return I' g on the coarse level. Collective."""

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """Return P x on the coarse level. Collective."""

    def lift(self, x: Tensor) -> Tensor:
        """Return coarse unknowns as fine ones. Collective."""
        return self.prolong(x)

    def norms(self, coarse: VectorSpace, fine: VectorSpace) -> tuple[float, float]:
        """Return bounds of |I| in the 2-norm, exact where I' I is diagonal, and in the maximum norm. Collective.

        |I|_inf is the largest row sum, and |I|_2^2 = |I' I|_2 <= |I' I|_inf.
        """
        ones = self.prolong(torch.ones_like(coarse.zeros()))
        return math.sqrt(float(coarse.gather(self.restrict(ones)).max())), float(fine.gather(ones).max())


class Identity(Transfer):
    """Both levels have the same unknowns."""

    def prolong(self, e: Tensor) -> Tensor:
        return e.clone()

    def restrict(self, g: Tensor) -> Tensor:
        return g.clone()

    def project(self, x: Tensor) -> Tensor:
        return x.clone()


class Chained(Transfer):
    """Several coarsenings, from the fine level on."""

    def __init__(self, transfers: Sequence[Transfer]) -> None:
        self._down = tuple(transfers)
        self._up = tuple(reversed(self._down))

    def prolong(self, e: Tensor) -> Tensor:
        for transfer in self._up:
            e = transfer.prolong(e)
        return e

    def restrict(self, g: Tensor) -> Tensor:
        for transfer in self._down:
            g = transfer.restrict(g)
        return g

    def project(self, x: Tensor) -> Tensor:
        for transfer in self._down:
            x = transfer.project(x)
        return x

    def lift(self, x: Tensor) -> Tensor:
        for transfer in self._up:
            x = transfer.lift(x)
        return x


class Scaled(Transfer):
    """Between unknowns D x: D_f I D_c^-1, and D_c P D_f^-1.

    Parameters
    ----------
    coarse, fine
        The diagonals, shapes (n_local,).
    """

    def __init__(self, inner: Transfer, coarse: Tensor, fine: Tensor) -> None:
        self._inner, self._coarse, self._fine = inner, coarse, fine

    def prolong(self, e: Tensor) -> Tensor:
        return self._fine * self._inner.prolong(e / self._coarse)

    def restrict(self, g: Tensor) -> Tensor:
        return self._inner.restrict(self._fine * g) / self._coarse

    def project(self, x: Tensor) -> Tensor:
        return self._coarse * self._inner.project(x / self._fine)

    def lift(self, x: Tensor) -> Tensor:
        return self._fine * self._inner.lift(x / self._coarse)


class Whole(Transfer):
    """Between sharded vectors, which are gathered and cut."""

    def __init__(self, inner: Transfer, coarse: VectorSpace, fine: VectorSpace) -> None:
        self._inner, self._coarse, self._fine = inner, coarse, fine

    def prolong(self, e: Tensor) -> Tensor:
        return self._of(self._inner.prolong, e, self._coarse, self._fine)

    def restrict(self, g: Tensor) -> Tensor:
        return self._of(self._inner.restrict, g, self._fine, self._coarse)

    def project(self, x: Tensor) -> Tensor:
        return self._of(self._inner.project, x, self._fine, self._coarse)

    def lift(self, x: Tensor) -> Tensor:
        return self._of(self._inner.lift, x, self._coarse, self._fine)

    @staticmethod
    def _of(operator: Callable[[Tensor], Tensor], x: Tensor, of: VectorSpace, to: VectorSpace) -> Tensor:
        return to.local(operator(of.gather(x))).clone()


class Depth(Transfer):
    """Between stacks of equal blocks that are steps in time; what lies around them is the same on both levels.

    By constants, a coarse block's correction goes to the blocks of its interval. Linearly, coarse block K is fine block
    c K, and between two of them lie weighted means; what follows the last one is constant.

    Parameters
    ----------
    blocks
        Place of all blocks in the fine vector.
    count
        Number of coarse blocks.
    """

    def __init__(self, blocks: slice, count: int, how: Coarsening, dtype: torch.dtype, device: torch.device) -> None:
        self._start, self._count, self._how = blocks.start, count, how
        self._length = (blocks.stop - blocks.start) // (count * how.factor)
        weights = torch.arange(how.factor, dtype=dtype, device=device) / how.factor
        self._ahead = weights[:, None] if how.linear else torch.zeros_like(weights)[:, None]

    def prolong(self, e: Tensor) -> Tensor:
        first, rows, last = self._split(e, self._count)
        following = torch.cat([rows[1:], rows[-1:]])
        between = (1 - self._ahead) * rows[:, None] + self._ahead * following[:, None]
        return torch.cat([first, between.reshape(-1), last])

    def restrict(self, g: Tensor) -> Tensor:
        first, rows, last = self._split(g, self._count * self._how.factor)
        of_coarse = rows.view(self._count, self._how.factor, -1)
        found = ((1 - self._ahead) * of_coarse).sum(1)
        if self._how.linear:
            ahead = (self._ahead * of_coarse).sum(1)
            found[1:] += ahead[:-1]
            found[-1] += ahead[-1]
        return torch.cat([first, found.reshape(-1), last])

    def project(self, x: Tensor) -> Tensor:
        first, rows, last = self._split(x, self._count * self._how.factor)
        of_coarse = rows.view(self._count, self._how.factor, -1)
        found = of_coarse.mean(1) if self._how.average else of_coarse[:, 0]
        return torch.cat([first, found.reshape(-1), last])

    def _split(self, v: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """What lies before the blocks, `count` blocks as rows, and what follows."""
        stop = self._start + count * self._length
        return v[: self._start], v[self._start : stop].view(count, self._length), v[stop:]


@dataclass(frozen=True)
class Part:
    """One parameter tensor (out, in, ...) or (out,), or a number, in the fine vector.

    Attributes
    ----------
    rows, columns
        Whether these are neurons that are coarsened.
    """

    shape: tuple[int, ...]
    rows: bool
    columns: bool


class Width(Transfer):
    """Between layers of different width: a coarse neuron is split into `factor` fine ones, the last into what is left.

    The parts have the neuron's own weights and unequal shares of its outgoing ones, so that both networks are the same
    function. Equal shares would give the parts equal gradients for ever.

    Parameters
    ----------
    parts
        The tensors of the fine vector, in order.
    """

    def __init__(self, parts: Sequence[Part], how: Coarsening, dtype: torch.dtype, device: torch.device) -> None:
        self._parts, self._how = tuple(parts), how
        self._dtype, self._device = dtype, device
        self._groups = {n: self._group(n) for n in {n for part in parts for n in part.shape}}
        self._lengths = [math.prod(part.shape) for part in parts]
        self._coarse_shapes = [self._coarse(part) for part in parts]
        self._coarse_lengths = [math.prod(shape) for shape in self._coarse_shapes]

    def _group(self, n: int) -> tuple[Tensor, Tensor]:
        """The coarse neuron of each of n, and its share of that one's outgoing weights."""
        group = torch.arange(n, device=self._device) // self._how.factor
        place = (1 + torch.arange(n, device=self._device) % self._how.factor).to(self._dtype)
        total = torch.zeros(width(n, self._how.factor), dtype=self._dtype, device=self._device)
        return group, place / total.index_add_(0, group, place)[group]

    def _coarse(self, part: Part) -> tuple[int, ...]:
        shape = list(part.shape)
        for axis, coarsened in enumerate((part.rows, part.columns)):
            if coarsened:
                shape[axis] = width(shape[axis], self._how.factor)
        return tuple(shape)

    def prolong(self, e: Tensor) -> Tensor:
        pieces = zip(e.split(self._coarse_lengths), self._coarse_shapes, self._parts, strict=True)
        return torch.cat([self._spread(v.view(shape), part).reshape(-1) for v, shape, part in pieces])

    def restrict(self, g: Tensor) -> Tensor:
        pieces = zip(g.split(self._lengths), self._parts, strict=True)
        return torch.cat([self._gathered(v.view(part.shape), part).reshape(-1) for v, part in pieces])

    def project(self, x: Tensor) -> Tensor:
        pieces = zip(x.split(self._lengths), self._parts, strict=True)
        return torch.cat([self._merged(v.view(part.shape), part).reshape(-1) for v, part in pieces])

    def _spread(self, v: Tensor, part: Part) -> Tensor:
        if part.columns:
            group, share = self._groups[part.shape[1]]
            v = v[:, group] * _along(share, 1, v)
        return v[self._groups[part.shape[0]][0]] if part.rows else v

    def _gathered(self, v: Tensor, part: Part) -> Tensor:
        if part.rows:
            v = self._summed(v, 0)
        return self._summed(v * _along(self._groups[part.shape[1]][1], 1, v), 1) if part.columns else v

    def _merged(self, v: Tensor, part: Part) -> Tensor:
        if part.columns:  # all that the parts of a neuron give goes on
            v = self._summed(v, 1)
        if part.rows and self._how.average:
            n = part.shape[0]
            counts = self._summed(torch.ones(n, dtype=v.dtype, device=v.device), 0)
            return self._summed(v, 0) / _along(counts, 0, v)
        return v[:: self._how.factor] if part.rows else v

    def _summed(self, v: Tensor, axis: int) -> Tensor:
        """Sums over the parts of each coarse neuron."""
        n, shape = v.shape[axis], list(v.shape)
        shape[axis] = width(n, self._how.factor)
        return v.new_zeros(shape).index_add_(axis, self._groups[n][0], v)


def width(n: int, factor: int) -> int:
    """Return the number of neurons that n become.

    >>> [width(n, 2) for n in (1, 2, 5, 20)]
    [1, 1, 3, 10]
    """
    return -(-n // factor)


def _along(factors: Tensor, axis: int, v: Tensor) -> Tensor:
    """Factors in the shape in which they multiply an axis of v."""
    return factors.view(*(-1 if k == axis else 1 for k in range(v.dim())))


class Embedded(Transfer):
    """Between blocks of the unknowns of two levels, the others frozen: E_f' I E_c.

    Parameters
    ----------
    coarse, fine
        Indices of the blocks in the whole vectors.
    n_coarse, n_fine
        Lengths of these.
    freeze
        Called with the whole projected vector, at every projection: the coarse problem is frozen there.
    whole, coarse_whole
        Return the whole fine, and the whole coarse vector from their blocks' unknowns.
    """

    def __init__(
        self,
        inner: Transfer,
        coarse: slice | Tensor,
        fine: slice | Tensor,
        lengths: tuple[int, int],
        freeze: Callable[[Tensor], Tensor],
        whole: Callable[[Tensor], Tensor],
        coarse_whole: Callable[[Tensor], Tensor],
    ) -> None:
        self._inner, self._coarse, self._fine = inner, coarse, fine
        self._lengths, self._freeze, self._whole, self._coarse_whole = lengths, freeze, whole, coarse_whole

    def prolong(self, e: Tensor) -> Tensor:
        full = e.new_zeros(self._lengths[0])
        full[self._coarse] = e
        return self._inner.prolong(full)[self._fine].clone()

    def restrict(self, g: Tensor) -> Tensor:
        full = g.new_zeros(self._lengths[1])
        full[self._fine] = g
        return self._inner.restrict(full)[self._coarse].clone()

    def lift(self, x: Tensor) -> Tensor:
        return self._inner.lift(self._coarse_whole(x))[self._fine].clone()

    def project(self, x: Tensor) -> Tensor:
        return self._freeze(self._inner.project(self._whole(x)))
