"""Random Fourier features: their law, their seed, and what they leave to the engines and the hard conditions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ml2hpc.apps.pinn import build
from ml2hpc.options import Database
from ml2hpc.problem.ansatz import collocate
from ml2hpc.problem.network import FourierFeatures, NetworkOptions
from tests.problem.small import perturbed, random, relative

OPTIONS: dict[str, Any] = {"net_fourier_modes": 6, "net_fourier_scale": 2.0, "net_depth": 2, "net_width": 5}


def test_features_are_cosine_and_sine_of_a_normal_matrix() -> None:
    options = NetworkOptions(fourier_modes=4000, fourier_scale=3.0)
    features = FourierFeatures(lambda x: 2 * x, 2, options, 5, torch.float64)
    matrix, x = features.matrix, random(2 * 7, 1).view(2, 7)
    assert abs(float(matrix.mean())) < 0.1
    assert float(matrix.std()) == pytest.approx(3.0, rel=0.03)
    found = features(x)
    assert torch.equal(found[:4000], torch.cos(matrix @ (2 * x)))
    assert torch.equal(found[4000:], torch.sin(matrix @ (2 * x)))
    again, single, other = (
        FourierFeatures(lambda x: x, 2, options, seed, dtype).matrix
        for seed, dtype in ((5, torch.float64), (5, torch.float32), (6, torch.float64))
    )
    assert torch.equal(again, matrix)
    assert torch.equal(single, matrix.float())
    assert relative(other, matrix) > 0.5


def test_the_same_options_build_the_same_function() -> None:
    """What a restart and an evaluation rely on."""
    points = random(2 * 9, 3).view(2, 9)
    values = []
    changes: list[dict[str, Any]] = [{}, {}, {"net_fourier_scale": 2.5}, {"net_fourier_modes": 0}]
    for change in changes:
        _, _, model, x = build(Database.from_dict(OPTIONS | change), torch.float64, 4)
        values.append(model.solution(x, points))
    assert torch.equal(values[0], values[1])
    assert relative(values[2], values[0]) > 1e-3
    assert relative(values[3], values[0]) > 1e-3


def test_engines_agree_and_periodicity_stays() -> None:
    gradients = []
    for engine in ("jets", "autograd"):
        settings = OPTIONS | {"pinn_problem": "allen_cahn_periodic", "pinn_engine": engine}
        pde, _, model, _ = build(Database.from_dict(settings), torch.float64, 4)
        terms = collocate(pde, n=11, n_face=5, sampler="sobol", seed=0, dtype=torch.float64, weight=1.0)
        assert [t.name for t in terms] == ["residual"]
        assert model.layout.entries[0].shape == (5, 12)
        x, jets = perturbed(model.layout, model.network), model.engine(terms[0].indices)
        batch = jets.batch(terms[0].points)
        found = jets.forward(x, batch, reverse=True).clone()
        gradients.append(torch.empty(len(x), dtype=torch.float64))
        jets.reverse(x, batch, random(found.numel(), 2).view(found.shape), gradients[-1])
    assert relative(gradients[0], gradients[1]) < 1e-12
