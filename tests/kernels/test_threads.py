"""Kernels on several threads: from two threads of Python at once, and in a forked process."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from ml2hpc import kernels
from ml2hpc.problem.compiled import CompiledEngine
from ml2hpc.problem.network import DenseNetwork, NetworkOptions
from ml2hpc.vec import Layout
from tests.problem.small import random

pytestmark = pytest.mark.skipif(not kernels.built(), reason="built without a C compiler")


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def gradients(width: int, times: int) -> list[Tensor]:
    """Evaluate a network of its own some times."""
    network = DenseNetwork(2, 1, NetworkOptions(depth=3, width=width), 0, torch.float64)
    layout = Layout(network)
    parameters = layout.flatten(network)
    engine = CompiledEngine(network, layout, lambda x: x, ((0, 0), (1, 1)))
    batch = engine.batch(random(2 * 300, 1).view(2, 300))
    found = []
    for _ in range(times):
        jets = engine.forward(parameters, batch, reverse=True)
        found.append(torch.empty_like(parameters))
        engine.reverse(parameters, batch, jets, found[-1])
    return found


@pytest.mark.usefixtures("threads")
def test_two_threads_do_not_meet() -> None:
    widths = (17, 24)
    alone = [gradients(width, 1)[0] for width in widths]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(gradients, widths, (60, 60)))
    for want, found in zip(alone, together, strict=True):
        assert all(torch.equal(want, one) for one in found)


@pytest.mark.usefixtures("threads")
def test_a_forked_process_has_threads_of_its_own() -> None:
    want = gradients(17, 2)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the process has threads is the point
        child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)
        os._exit(0 if all(torch.equal(want, one) for one in gradients(17, 5)) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(gradients(17, 1)[0], want)
