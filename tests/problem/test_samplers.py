"""Point sets: bounds, reproducibility, stratification, and a discrepancy far below that of random points."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import qmc

from ml2hpc.errors import UserError
from ml2hpc.problem.samplers import NAMES, sample

BOX = [(-1.0, 1.0), (0.0, 12.0), (5.0, 5.5), (-3.0, -2.0)]


def test_names_are_the_documented_ones() -> None:
    assert NAMES == ("uniform", "latin_hypercube", "halton", "hammersley", "sobol")


@pytest.mark.parametrize("dim", [1, 2, 3, 4])
@pytest.mark.parametrize("n", [1, 2, 100, 128])
@pytest.mark.parametrize("name", NAMES)
def test_shape_type_bounds_and_spread(name: str, n: int, dim: int) -> None:
    points = sample(name, n, BOX[:dim], seed=3)
    low, high = np.array(BOX[:dim]).T
    assert points.shape == (n, dim)
    assert points.dtype == np.float64
    assert np.all(points >= low)
    assert np.all(points <= high)
    assert len(np.unique(points, axis=0)) == n
    if n >= 100:
        assert np.all(points.min(axis=0) < low + 0.1 * (high - low))
        assert np.all(points.max(axis=0) > high - 0.1 * (high - low))


@pytest.mark.parametrize("name", NAMES)
def test_seed_decides_and_global_seed_does_not(name: str) -> None:
    first = sample(name, 50, BOX[:2], seed=7)
    before = str(np.random.get_state())  # noqa: NPY002  the library must leave this legacy state alone
    assert np.array_equal(first, sample(name, 50, BOX[:2], seed=7))
    assert str(np.random.get_state()) == before  # noqa: NPY002
    for other in (0, 8):
        assert not np.any(np.all(first == sample(name, 50, BOX[:2], seed=other), axis=1))


@pytest.mark.parametrize("dim", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ["halton", "hammersley", "sobol"])
def test_discrepancy_far_below_random(name: str, seed: int, dim: int) -> None:
    unit = [(0.0, 1.0)] * dim
    random = np.mean([qmc.discrepancy(sample("uniform", 500, unit, seed=s)) for s in range(10)])
    ratio = np.sqrt(qmc.discrepancy(sample(name, 500, unit, seed=seed)) / random)  # scipy returns the square
    assert ratio < 0.25


def test_discrepancy_of_latin_hypercube_in_the_plane() -> None:
    unit = [(0.0, 1.0)] * 2
    latin, random = (
        np.mean([qmc.discrepancy(sample(name, 500, unit, seed=s)) for s in range(10)])
        for name in ("latin_hypercube", "uniform")
    )
    assert np.sqrt(latin / random) < 0.4


@pytest.mark.parametrize("n", [1, 7, 200])
def test_latin_hypercube_has_one_point_per_slice(n: int) -> None:
    points = sample("latin_hypercube", n, [(0.0, 1.0)] * 4, seed=5)
    slices = np.sort(np.floor(points * n).astype(int), axis=0)
    assert np.array_equal(slices, np.tile(np.arange(n)[:, None], (1, 4)))
    if n == 200:
        correlation = np.corrcoef(points.T) - np.eye(4)
        assert np.abs(correlation).max() < 0.3  # the coordinates are shuffled independently


def test_sobol_is_a_net_for_powers_of_two() -> None:
    points = sample("sobol", 64, [(0.0, 1.0)] * 2, seed=2)
    for columns in (1, 2, 4, 8, 16, 32, 64):
        cells = np.floor(points[:, 0] * columns) * (64 // columns) + np.floor(points[:, 1] * (64 // columns))
        assert np.array_equal(np.sort(cells), np.arange(64))


def test_sobol_is_extensible() -> None:
    assert np.array_equal(sample("sobol", 100, BOX[:2], seed=2), sample("sobol", 1000, BOX[:2], seed=2)[:100])


def test_hammersley_classical_set() -> None:
    points = sample("hammersley", 5, [(0.0, 1.0)] * 3, seed=0)
    expected = [[0.1, 1 / 2, 1 / 3], [0.3, 1 / 4, 2 / 3], [0.5, 3 / 4, 1 / 9], [0.7, 1 / 8, 4 / 9], [0.9, 5 / 8, 7 / 9]]
    np.testing.assert_allclose(points, expected, rtol=1e-15)


def test_hammersley_shift_is_one_vector_modulo_one() -> None:
    unit = [(0.0, 1.0)] * 3
    shift = (sample("hammersley", 40, unit, seed=9) - sample("hammersley", 40, unit, seed=0)) % 1.0
    np.testing.assert_allclose(shift, np.broadcast_to(shift[0], shift.shape), atol=1e-15)
    assert np.all(shift[0] > 1e-3)


def test_bounds_only_map_the_unit_cube() -> None:
    unit = sample("halton", 30, [(0.0, 1.0)] * 2, seed=1)
    np.testing.assert_allclose(sample("halton", 30, [(-1.0, 3.0), (2.0, 2.5)], seed=1), unit * [4.0, 0.5] + [-1.0, 2.0])


@pytest.mark.parametrize(
    ("name", "n", "bounds", "seed", "message"),
    [
        ("grid", 4, [(0, 1)], 0, "sampler 'grid' is unknown; choose one of uniform, latin_hypercube"),
        ("Sobol", 4, [(0, 1)], 0, "sampler 'Sobol' is unknown"),
        ("sobol", 0, [(0, 1)], 0, "number of points is 0; give an integer of at least 1"),
        ("sobol", 2.5, [(0, 1)], 0, "number of points is 2.5"),
        ("sobol", 2**30 + 1, [(0, 1)], 0, "too many for sobol"),
        ("sobol", 4, [(0, 1)] * 30000, 0, "30000 dimensions are too many for sobol"),
        ("uniform", 4, [(0, 1)], -1, "seed is -1; give an integer of at least 0"),
        ("uniform", 4, [(0, 1)], None, "seed is None"),
        ("uniform", 4, [], 0, "one pair"),
        ("uniform", 4, [(0, 1, 2)], 0, "one pair"),
        ("uniform", 4, (0, 1), 0, "one pair"),
        ("uniform", 4, [(0, 1), (2,)], 0, "one pair"),
        ("uniform", 4, [("a", "b")], 0, "one pair"),
        ("uniform", 4, [(0, 1), (1, 1)], 0, r"coordinate 1 are \(1.0, 1.0\)"),
        ("uniform", 4, [(0, float("nan"))], 0, "finite numbers"),
        ("uniform", 4, [(0, float("inf"))], 0, "finite numbers"),
    ],
)
def test_bad_input_is_named(name: str, n: int, bounds: list[tuple[float, float]], seed: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sample(name, n, bounds, seed)
