"""The chain rule of jets through a pointwise nonlinearity, for any order, and its two linearisations.

By Faà di Bruno, a derivative of y = sigma(z) is

    y_a = sigma' z_a + sum_(m >= 2) sigma^(m) p_am,   p_am = sum over partitions of a into m blocks of w prod_b z_b

with multiplicities w; for an operator L = sum_ik c_ik D_ik, p_L2 = sum_ik c_ik z_i z_k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ml2hpc.problem.jet import Carried, Operator, order, partitions

Product = tuple[float, tuple[int, ...]]
"""A factor and the places of the derivatives that are multiplied."""


@dataclass(frozen=True)
class Part:
    """One p_am: the place of a, m, and the products that it is the sum of."""

    place: int
    m: int
    products: tuple[Product, ...]

    def value(self, z: Sequence[Tensor]) -> Tensor:
        """Return p_am from the jets z, each (width, n)."""
        return _sum([_product(factor, [z[b] for b in blocks]) for factor, blocks in self.products])

    def tangent(self, z: Sequence[Tensor], dz: Sequence[Tensor]) -> Tensor:
        """Return the derivative of p_am along dz."""
        return _sum(
            [
                _product(factor, [z[b] for b in blocks[:k]] + [dz[blocks[k]]] + [z[b] for b in blocks[k + 1 :]])
                for factor, blocks in self.products
                for k in range(self.m)
            ]
        )


class Chain:
    """Jets of sigma(z) from jets of z. Shapes (width, jets, n), and (width, n) for s[m] = sigma^(m)(z).

    Attributes
    ----------
    order
        Highest order carried: the jets need s[0..order], their linearisations s[1..order + 1].
    """

    def __init__(self, indices: Sequence[Carried]) -> None:
        place = {index: j for j, index in enumerate(indices)}
        self.order = max(order(index) for index in indices)
        self.parts = [
            Part(place[index], m, products)
            for index in indices
            for m in range(2, order(index) + 1)
            if (products := _products(index, m, place))
        ]

    def jets(self, s: Sequence[Tensor], z: Tensor) -> Tensor:
        """Return the jets of y, differentiable by autograd."""
        each = z.unbind(1)
        y = [s[0], *(s[1] * z_j for z_j in each[1:])]
        for part in self.parts:
            y[part.place] = torch.addcmul(y[part.place], s[part.m], part.value(each))
        return torch.stack(y, 1)

    def push_forward(self, s: Sequence[Tensor], z: Tensor, dz: Tensor) -> Tensor:
        """Return the derivative of y's jets along dz."""
        dy = dz * s[1][:, None]
        if self.order == 0:
            return dy
        zs, ds = z.unbind(1), dz.unbind(1)
        dy[:, 1:].addcmul_(z[:, 1:], (s[2] * ds[0])[:, None])
        for part in self.parts:
            out = dy[:, part.place]
            out.addcmul_(s[part.m], part.tangent(zs, ds))
            out.addcmul_(s[part.m + 1] * ds[0], part.value(zs))
        return dy

    def pull_back(self, s: Sequence[Tensor], z: Tensor, g: Tensor, out: Tensor) -> None:
        """Write the cotangent of z's jets over `out` from that of y's, g."""
        torch.mul(g, s[1][:, None], out=out)
        if self.order == 0:
            return
        zs, gs, gz = z.unbind(1), g.unbind(1), out.unbind(1)
        gz[0].addcmul_((g[:, 1:] * z[:, 1:]).sum(1), s[2])
        for part in self.parts:
            weight = gs[part.place] * s[part.m]
            gz[0].addcmul_(gs[part.place] * s[part.m + 1], part.value(zs))
            for factor, blocks in part.products:
                for k, b in enumerate(blocks):
                    others = [zs[c] for c in blocks[:k] + blocks[k + 1 :]]
                    gz[b].addcmul_(weight, _product(1.0, others), value=factor)


def _products(index: Carried, m: int, place: dict[Carried, int]) -> tuple[Product, ...]:
    if isinstance(index, Operator):
        return tuple((factor, (place[i,], place[k,])) for (i, k), factor in index.terms)
    return tuple((float(w), tuple(place[b] for b in blocks)) for blocks, w in partitions(index) if len(blocks) == m)


def _product(factor: float, tensors: Sequence[Tensor]) -> Tensor:
    total = tensors[0] if factor == 1.0 else factor * tensors[0]
    for other in tensors[1:]:
        total = total * other
    return total


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    total = tensors[0]
    for other in tensors[1:]:
        total = total + other
    return total
