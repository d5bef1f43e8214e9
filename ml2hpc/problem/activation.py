"""Activations with the derivatives that jet propagation needs.

A jet through y = sigma(z) needs sigma', sigma'' going forward and sigma''' on the way back. `fill` writes the first two
beside the value, `third` the last one, all in place: on these small networks every pass over memory counts.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

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

    @staticmethod
    def _normal(z: Tensor) -> tuple[Tensor, Tensor]:
        distribution = 0.5 * (1 + torch.erf(z / math.sqrt(2.0)))
        return distribution, torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


ACTIVATIONS: dict[str, type[Activation]] = {"tanh": Tanh, "sin": Sine, "silu": SiLU, "gelu": GELU}
