"""Losses of a classifier as functions of its logits, with what second-order methods need of them.

Logits and targets have shape (classes, n), targets are one-hot, `weight` (n,) holds each sample's share of the mean.

    cross_entropy   l(z, t) = log sum_a exp z_a - <z, t>
    least_squares   l(z, t) = |z - t|^2 / 2
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Loss(ABC):
    """A sum over samples, weight l(z, t). Not collective."""

    @abstractmethod
    def value(self, z: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        """Return the weighted sum, shape (), differentiable by autograd."""

    @abstractmethod
    def curvature(self, z: Tensor, z_dot: Tensor, weight: Tensor) -> Tensor:
        """Return the Hessian in the logits, positive semidefinite, times z_dot, shape (classes, n)."""

    @abstractmethod
    def root(self, z: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
        """Return B with B B' = J' H J for the Hessian H in the logits and rows J' of shape (p, classes, n)."""


class CrossEntropy(Loss):
    """Softmax and cross-entropy: Hessian diag(p) - p p' with p = softmax z."""

    def value(self, z: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        return torch.dot(torch.logsumexp(z, 0) - torch.sum(z * targets, 0), weight)

    def curvature(self, z: Tensor, z_dot: Tensor, weight: Tensor) -> Tensor:
        p = torch.softmax(z, 0)
        return weight * p * (z_dot - torch.sum(p * z_dot, 0))

    def root(self, z: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
        p = torch.softmax(z, 0)
        return torch.sqrt(weight * p) * (rows - torch.sum(p * rows, 1, keepdim=True))


class LeastSquares(Loss):
    """Distance to the one-hot target: Hessian I."""

    def value(self, z: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        return 0.5 * torch.dot(torch.sum((z - targets) ** 2, 0), weight)

    def curvature(self, z: Tensor, z_dot: Tensor, weight: Tensor) -> Tensor:
        return weight * z_dot

    def root(self, z: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
        return torch.sqrt(weight) * rows


LOSSES: dict[str, Loss] = {"cross_entropy": CrossEntropy(), "least_squares": LeastSquares()}  # as in kernels/sweep.h


def count_correct(z: Tensor, targets: Tensor) -> Tensor:
    """Return how many samples have their own class's logit above all others, shape (). A tie is a mistake.

    Not collective.
    """
    own = torch.sum(z * targets, 0)
    others = torch.where(targets > 0, torch.full_like(z, -torch.inf), z)
    return torch.sum(own > others.amax(0)).to(z.dtype)
