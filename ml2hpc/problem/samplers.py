"""Collocation points in a box: random, Latin hypercube, and the low-discrepancy sets Halton, Hammersley and Sobol.

Every set is first drawn in the unit cube and then mapped to the bounds. A set is a function of its name, size,
dimension and seed alone: each rank that asks for the same set gets the same points, with no communication.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

import numpy as np

from ml2hpc.errors import UserError

_SOBOL_MAX_LOG2 = 30  # scipy's Sobol engine holds 30 bits per coordinate


def sample(name: str, n: int, bounds: Sequence[tuple[float, float]], seed: int) -> np.ndarray:
    """Draw n points of the set called name in the box given by bounds.

    Not collective. The same arguments give the same points on every rank.

    Parameters
    ----------
    name : one of `NAMES`.
    n : number of points, at least 1.
    bounds : one pair (low, high) per coordinate, low < high.
    seed : non-negative integer. Random sets start their stream from it, scrambled sets their scrambling. For
        `hammersley`, 0 gives the classical point set and any other seed shifts it (see `_hammersley`).

    Returns
    -------
    points : float64, (n, d)

    Raises
    ------
    UserError
        If an argument is not allowed.

    Examples
    --------
    >>> sample("hammersley", 4, [(0.0, 1.0), (0.0, 8.0)], seed=0).tolist()
    [[0.125, 4.0], [0.375, 2.0], [0.625, 6.0], [0.875, 1.0]]
    """
    if name not in _SAMPLERS:
        raise UserError(f"sampler {name!r} is unknown; choose one of {', '.join(NAMES)}")
    count = _integer("number of points", n, least=1)
    stream = _integer("seed", seed, least=0)
    low, high = _box(bounds)
    unit = _SAMPLERS[name](count, len(low), stream)
    points: np.ndarray = np.clip(low + (high - low) * unit, low, high)  # rounding may overshoot high
    return points


def _integer(what: str, value: int, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError as error:
        raise UserError(f"{what} is {value!r}; give an integer of at least {least}") from error
    if number < least:
        raise UserError(f"{what} is {number}; give an integer of at least {least}")
    return number


def _box(bounds: Sequence[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    try:
        box = np.array(bounds, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"bounds are {bounds!r}; give one pair (low, high) per coordinate") from error
    if box.ndim != 2 or box.shape[0] == 0 or box.shape[1] != 2:
        raise UserError(f"bounds are {bounds!r}; give one pair (low, high) per coordinate")
    for axis, (low, high) in enumerate(box):
        if not (np.isfinite(low) and np.isfinite(high) and low < high):
            raise UserError(f"bounds of coordinate {axis} are ({low}, {high}); give finite numbers with low < high")
    return box[:, 0], box[:, 1]


def _uniform(n: int, dim: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((n, dim))


def _latin_hypercube(n: int, dim: int, seed: int) -> np.ndarray:
    """Put one point, at a random place, into each of the n slices of every coordinate."""
    rng = np.random.default_rng(seed)
    slices = rng.permuted(np.tile(np.arange(n), (dim, 1)), axis=1).T
    unit: np.ndarray = (slices + rng.random((n, dim))) / n
    return unit


def _halton(n: int, dim: int, seed: int) -> np.ndarray:
    """Draw the Halton set with randomly permuted digits (the plain one is correlated from dimension 4 or so on)."""
    from scipy.stats import qmc  # here, since it is a fifth of the start of apps that do not need it

    unit: np.ndarray = qmc.Halton(dim, scramble=True, rng=np.random.default_rng(seed)).random(n)
    return unit


def _hammersley(n: int, dim: int, seed: int) -> np.ndarray:
    """Set coordinate 0 of point i to (i + 1/2)/n and coordinate k to the radical inverse of i + 1 in the k-th prime.

    The half step and the start at 1 keep the points off the boundary. Seed 0 stops here: it is the set that the
    literature uses. Another seed moves all points by one random vector modulo 1 (Cranley-Patterson rotation), which
    preserves the equal spacing of every coordinate.
    """
    unit = np.empty((n, dim))
    unit[:, 0] = (np.arange(n) + 0.5) / n
    for axis, prime in enumerate(_primes(dim - 1), start=1):
        unit[:, axis] = _radical_inverse(np.arange(1, n + 1), prime)
    return unit if seed == 0 else (unit + np.random.default_rng(seed).random(dim)) % 1.0


def _sobol(n: int, dim: int, seed: int) -> np.ndarray:
    """Draw the first n points of the scrambled Sobol sequence.

    The engine is asked for the next power of two, the only sizes it gives without a warning; balance in the strict
    sense holds when n is a power of two.
    """
    from scipy.stats import qmc

    log2 = (n - 1).bit_length()
    if log2 > _SOBOL_MAX_LOG2:
        raise UserError(f"{n} points are too many for sobol; ask for at most {2**_SOBOL_MAX_LOG2} or use halton")
    if dim > qmc.Sobol.MAXDIM:
        raise UserError(f"{dim} dimensions are too many for sobol; at most {qmc.Sobol.MAXDIM}, or use halton")
    unit: np.ndarray = qmc.Sobol(dim, scramble=True, rng=np.random.default_rng(seed)).random_base2(log2)[:n]
    return unit


def _radical_inverse(
    index: np.ndarray,  # (n,) integers
    base: int,
) -> np.ndarray:
    """Mirror the digits of index in the base at the radix point (van der Corput)."""
    inverse = np.zeros(len(index))
    rest, weight = index.copy(), 1.0 / base
    while rest.any():
        inverse += weight * (rest % base)
        rest //= base
        weight /= base
    return inverse


def _primes(count: int) -> list[int]:
    primes: list[int] = []
    candidate = 2
    while len(primes) < count:
        if all(candidate % prime for prime in primes):
            primes.append(candidate)
        candidate += 1
    return primes


_SAMPLERS: dict[str, Callable[[int, int, int], np.ndarray]] = {
    "uniform": _uniform,
    "latin_hypercube": _latin_hypercube,
    "halton": _halton,
    "hammersley": _hammersley,
    "sobol": _sobol,
}
NAMES = tuple(_SAMPLERS)
