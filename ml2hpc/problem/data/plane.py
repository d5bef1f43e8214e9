"""Sets drawn in the plane: concentric circles and spirals, both classes in turn."""

from __future__ import annotations

import numpy as np

from ml2hpc.problem.data.pool import Array, Pool

_RADIUS = 3.0  # of everything drawn here


def circles(n: int, seed: int) -> Pool:
    """Return a disk r < 1 inside a ring 2 <= r < 3, each uniform in area. Not collective.

    The gap between them lets a network reach accuracy 1.
    """
    generator, labels = np.random.default_rng(seed), _in_turn(n)
    u = generator.random(n)
    return _polar(np.sqrt(np.where(labels == 0, u, 4 + 5 * u)), 2 * np.pi * generator.random(n), labels)


def disk(n: int, seed: int) -> Pool:
    """Return a disk r < 2 inside a ring 2 <= r < 3 without a gap, together uniform in area. Not collective."""
    generator = np.random.default_rng(seed)
    r = _RADIUS * np.sqrt(generator.random(n))
    return _polar(r, 2 * np.pi * generator.random(n), (r >= 2).astype(np.int64))


def spirals(n: int, seed: int, turns: float = 1.5) -> Pool:
    """Return two interleaved spirals r = 3 s, angle = 2 pi turns s + pi class for s uniform in [0.1, 1].

    Not collective. The more turns, the longer is the way that an ODE has to take samples to pull them apart.
    """
    generator, labels = np.random.default_rng(seed), _in_turn(n)
    s = 0.1 + 0.9 * generator.random(n)
    return _polar(_RADIUS * s, 2 * np.pi * turns * s + np.pi * labels, labels, ("first", "second"))


def _in_turn(n: int) -> Array:
    return np.arange(n, dtype=np.int64) % 2


def _polar(r: Array, angle: Array, labels: Array, classes: tuple[str, str] = ("inside", "outside")) -> Pool:
    return Pool(np.stack([r * np.cos(angle), r * np.sin(angle)], 1), labels, classes)
