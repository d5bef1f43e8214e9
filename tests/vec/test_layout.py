"""Flat layouts: every parameter in its place, layers as consecutive slices, views that alias the vector."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ml2hpc.errors import UnsupportedError
from ml2hpc.problem.network import DenseNetwork, NetworkOptions
from ml2hpc.vec import Layout


class Scaled(nn.Module):
    """A scalar and a vector of its own around two layers that share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.offset = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.second(self.first(x)) + self.offset


def nested() -> nn.Sequential:
    inner = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2, bias=False))
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), inner, nn.BatchNorm1d(2))


def dense(*, adaptive: bool) -> DenseNetwork:
    return DenseNetwork(2, 1, NetworkOptions(depth=2, width=4, adaptive=adaptive), 0, torch.float64)


MODULES = {
    "nested": (nested, [16, 25, 10, 4]),
    "scaled": (Scaled, [4, 12, 3]),
    "dense": (lambda: dense(adaptive=False), [12, 20, 5]),
    "adaptive": (lambda: dense(adaptive=True), [13, 21, 5]),
    "linear": (lambda: nn.Linear(2, 2), [6]),
}


@pytest.mark.parametrize("name", MODULES)
def test_entries_and_layers_fill_the_vector(name: str) -> None:
    make, lengths = MODULES[name]
    module = make()
    layout = Layout(module)
    parameters = dict(module.named_parameters())
    assert [e.name for e in layout.entries] == list(parameters)
    assert [e.shape for e in layout.entries] == [tuple(p.shape) for p in parameters.values()]
    stops = [e.stop for e in layout.entries]
    assert [e.start for e in layout.entries] == [0, *stops[:-1]]
    assert [e.stop - e.start for e in layout.entries] == [p.numel() for p in parameters.values()]
    assert layout.n == stops[-1] == sum(lengths)
    assert [s.stop - s.start for s in layout.layers] == lengths
    assert [s.start for s in layout.layers] == [0, *[s.stop for s in layout.layers[:-1]]]
    for e in layout.entries:
        assert layout.layers[e.layer].start <= e.start
        assert e.stop <= layout.layers[e.layer].stop


@pytest.mark.parametrize("name", MODULES)
def test_views_alias_the_vector_and_give_the_module_back(name: str) -> None:
    module = MODULES[name][0]()
    layout = Layout(module)
    x = layout.flatten(module)
    for key, parameter in module.named_parameters():
        view = layout.views(x)[key]
        assert torch.equal(view, parameter)
        assert view.data_ptr() == x[next(e.start for e in layout.entries if e.name == key) :].data_ptr()
        view.fill_(7.0)
        assert not torch.equal(view, parameter)  # the vector is a copy
    assert torch.equal(x, torch.full_like(x, 7.0))


def test_the_module_computes_with_the_views() -> None:
    module = Scaled().double()
    x = torch.linspace(0.0, 1.0, 3, dtype=torch.float64)
    vector = Layout(module).flatten(module)
    found = torch.func.functional_call(module, Layout(module).views(vector), (x,), tie_weights=True)
    assert torch.equal(found, module(x))


def test_what_has_no_flat_vector_is_refused() -> None:
    mixed = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1).double())
    with pytest.raises(
        UnsupportedError, match=r"^Sequential has parameters of several types: torch\.float32, torch\.f"
    ):
        Layout(mixed).flatten(mixed)
    with pytest.raises(UnsupportedError, match=r"^Tanh has no parameters"):
        Layout(nn.Tanh()).flatten(nn.Tanh())
    assert Layout(nn.Tanh()).layers == ()
