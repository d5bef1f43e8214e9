"""Activations with the derivatives that jet propagation needs.

A jet through y = sigma(z) needs sigma', sigma'' going forward and sigma''' on the way back. `fill` writes the first two
beside the value, `third` the last one, all in place: on these small networks every pass over memory counts.
`derivatives` returns any number of them, for jets of higher order and for graphs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from itertools import pairwise

import torch
from torch import Tensor


class Activation(ABC):
    """A pointwise nonlinearity. Not collective."""

    @abstractmethod
    def value(self, z: Tensor) -> Tensor:
        """Return sigma(z), differentiable by autograd."""

    @abstractmethod
    def fill(self, z: Tensor, y: Tensor, first: Tensor, second: Tensor | None) -> None:
        """Write sigma(z), sigma'(z) and, unless None, sigma''(z) over the given tensors of z's shape."""

    @abstractmethod
    def third(self, z: Tensor, first: Tensor, out: Tensor) -> None:
        """Write sigma'''(z) over `out`; `first` is what `fill` left."""

    @abstractmethod
    def derivatives(self, z: Tensor, order: int) -> list[Tensor]:
        """Return sigma(z), sigma'(z), ..., sigma^(order)(z) in closed form, differentiable by autograd."""


class Tanh(Activation):
    """tanh: sigma' = 1 - y^2, sigma'' = -2 y sigma', sigma''' = sigma' (4 - 6 sigma')."""

    def value(self, z: Tensor) -> Tensor:
        return torch.tanh(z)

    def fill(self, z: Tensor, y: Tensor, first: Tensor, second: Tensor | None) -> None:
        torch.tanh(z, out=y)
        torch.addcmul(z.new_ones(()), y, y, value=-1.0, out=first)
        if second is not None:
            torch.addcmul(z.new_zeros(()), y, first, value=-2.0, out=second)

    def third(self, z: Tensor, first: Tensor, out: Tensor) -> None:
        torch.mul(first, 4.0, out=out).addcmul_(first, first, value=-6.0)

    def derivatives(self, z: Tensor, order: int) -> list[Tensor]:
        return _tanh(z, order)


class Sine(Activation):
    """sin, as in sinusoidal representation networks."""

    def value(self, z: Tensor) -> Tensor:
        return torch.sin(z)

    def fill(self, z: Tensor, y: Tensor, first: Tensor, second: Tensor | None) -> None:
        torch.sin(z, out=y)
        torch.cos(z, out=first)
        if second is not None:
            torch.neg(y, out=second)

    def third(self, z: Tensor, first: Tensor, out: Tensor) -> None:
        torch.neg(first, out=out)

    def derivatives(self, z: Tensor, order: int) -> list[Tensor]:
        s, c = torch.sin(z), torch.cos(z)
        return [(s, c, -s, -c)[m % 4] for m in range(order + 1)]


class SiLU(Activation):
    """z s(z) with the logistic function s, s' = s (1 - s).

    Derivatives s + z s', s' (2 + z (1 - 2 s)), s' (3 (1 - 2 s) + z (1 - 6 s')).
    """

    def value(self, z: Tensor) -> Tensor:
        return z * torch.sigmoid(z)

    def fill(self, z: Tensor, y: Tensor, first: Tensor, second: Tensor | None) -> None:
        s = torch.sigmoid(z)
        torch.mul(z, s, out=y)
        first.copy_(s + y * (1 - s))
        if second is not None:
            second.copy_(s * (1 - s) * (2 + z * (1 - 2 * s)))

    def third(self, z: Tensor, first: Tensor, out: Tensor) -> None:
        s = torch.sigmoid(z)
        d = s * (1 - s)
        out.copy_(d * (3 * (1 - 2 * s) + z * (1 - 6 * d)))

    def derivatives(self, z: Tensor, order: int) -> list[Tensor]:
        # s = (1 + tanh(z / 2)) / 2 lends s^(m) from tanh^(m).
        logistic = [0.5 ** (m + 1) * t for m, t in enumerate(_tanh(0.5 * z, order))]
        return _times_argument(z, [0.5 + logistic[0], *logistic[1:]])


class GELU(Activation):
    """z Phi(z) with the normal distribution function Phi and density phi.

    Derivatives Phi + z phi, (2 - z^2) phi, (z^3 - 4 z) phi.
    """

    def value(self, z: Tensor) -> Tensor:
        return 0.5 * z * (1 + torch.erf(z / math.sqrt(2.0)))

    def fill(self, z: Tensor, y: Tensor, first: Tensor, second: Tensor | None) -> None:
        distribution, density = self._normal(z)
        torch.mul(z, distribution, out=y)
        torch.addcmul(distribution, z, density, out=first)
        if second is not None:
            second.copy_((2 - z * z) * density)

    def third(self, z: Tensor, first: Tensor, out: Tensor) -> None:
        out.copy_((z * z - 4) * z * self._normal(z)[1])

    def derivatives(self, z: Tensor, order: int) -> list[Tensor]:
        # Phi^(m) = (-1)^(m-1) He_(m-1) phi with Hermite's polynomials He_(m+1) = z He_m - m He_(m-1).
        distribution, density = self._normal(z)
        signed = [density, -z * density][:order]
        for m in range(2, order):
            signed.append(-z * signed[-1] - (m - 1) * signed[-2])
        return _times_argument(z, [distribution, *signed])

    @staticmethod
    def _normal(z: Tensor) -> tuple[Tensor, Tensor]:
        distribution = 0.5 * (1 + torch.erf(z / math.sqrt(2.0)))
        return distribution, torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def _tanh(z: Tensor, order: int) -> list[Tensor]:
    """Derivatives of y = tanh z: y' q_m(y) with q_1 = 1, q_(m+1) = (1 - y^2) q_m' - 2 y q_m."""
    y = torch.tanh(z)
    first = 1 - y * y
    found = [y, first][: order + 1]
    q = [1.0]  # coefficients, lowest power first
    for _ in range(order - 1):
        grown = [0.0] * (len(q) + 1)
        for k, a in enumerate(q):
            grown[k + 1] -= (k + 2) * a
            if k > 0:
                grown[k - 1] += k * a
        q = grown
        found.append(first * _polynomial(q, y))
    return found


def _polynomial(coefficients: list[float], y: Tensor) -> Tensor:
    """Horner's rule, in y^2: these polynomials are even or odd."""
    odd = len(coefficients) % 2 == 0
    leading, *lower = coefficients[::-2]
    total = torch.full_like(y, leading)
    for a in lower:
        total = total * (y * y) + a
    return y * total if odd else total


def _times_argument(z: Tensor, s: list[Tensor]) -> list[Tensor]:
    """Derivatives of z s(z) from those of s: z s^(m) + m s^(m-1)."""
    return [z * s[0], *(z * b + m * a for m, (a, b) in enumerate(pairwise(s), 1))]


ACTIVATIONS: dict[str, type[Activation]] = {"tanh": Tanh, "sin": Sine, "silu": SiLU, "gelu": GELU}
