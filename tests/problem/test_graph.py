"""Recorded evaluations: the bits of unrecorded ones, and the order of what torch asks for on a GPU."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ml2hpc import kernels
from ml2hpc.errors import UserError
from ml2hpc.problem.graph import Recorded
from ml2hpc.problem.interface import Block
from ml2hpc.problem.pinn import PinnProblem
from tests.problem.small import Pair, pinn, random

ENGINES = ["jets", pytest.param("device", marks=pytest.mark.skipif(not kernels.built(), reason="no C compiler"))]


def recorded(problem: PinnProblem) -> PinnProblem:
    return PinnProblem(problem.comm, replace(problem.model, graph=True), problem.loss_terms)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_recorded_evaluation_has_the_same_bits(engine: str) -> None:
    plain, x = pinn(engine=engine, adaptive=True)
    other = recorded(plain)
    for shift in (0.0, 0.3, 0.0):
        want, got = (p.value_and_gradient(x + shift) for p in (plain, other))
        assert want[0] == got[0] and torch.equal(want[1], got[1])
    assert plain.objective(x) == other.objective(x)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_new_prefix_is_seen_by_what_was_recorded(engine: str) -> None:
    plain, x = pinn(engine=engine)
    block = Block(slice(plain.layers[1].start, plain.layers[2].stop), "")
    pair = [p.restrict(block) for p in (plain, recorded(plain))]
    for shift in (0.0, 0.2):
        want, got = ((p.rebase(x + shift), p.value_and_gradient(x[block.indices] + shift))[1] for p in pair)
        assert want[0] == got[0] and torch.equal(want[1], got[1])


def test_arguments_and_results_are_copied() -> None:
    """A later call changes neither the result of an earlier one nor its argument."""

    def square(x: Tensor, out: Tensor) -> None:
        torch.mul(x, x, out=out)
        x.zero_()

    x, out = random(5, 1), [torch.empty(5, dtype=torch.float64) for _ in range(2)]
    kept = x.clone()
    function = Recorded(square, x, out[0], refused)
    function(x, out[0])
    function(2 * x, out[1])
    assert torch.equal(x, kept)
    assert torch.equal(out[0], kept * kept) and torch.equal(out[1], 4 * kept * kept)


def refused(error: Exception) -> None:
    pytest.fail(str(error))


class Gpu:
    """What `Recorded` asks torch.cuda for, in order; a graph replays the calls of its recording."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.did: list[str] = []
        self.refuses = False
        self.recording = False
        for name in ("Stream", "stream", "current_stream", "set_stream", "CUDAGraph", "graph", "synchronize"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(Tensor, "is_cuda", True)

    def Stream(self) -> Gpu:
        return self

    def current_stream(self) -> Gpu:
        return self

    def set_stream(self, other: Gpu) -> None:
        self.did.append("back")

    def wait_stream(self, other: Gpu) -> None:
        self.did.append("wait")

    @contextmanager
    def stream(self, other: Gpu) -> Any:
        self.did.append("aside")
        yield

    def synchronize(self) -> None:
        self.did.append("synchronize")

    def CUDAGraph(self) -> Gpu:
        return self

    @contextmanager
    def graph(self, graph: Gpu) -> Any:
        self.did.append("record")
        self.recording = True
        try:
            yield
        finally:
            self.recording = False
        if self.refuses:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")

    def replay(self) -> None:
        self.did.append("replay")


def test_a_gpu_warms_up_records_once_and_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, calls = Gpu(monkeypatch), []
    x, out = torch.zeros(2), torch.zeros(3)
    function = Recorded(lambda a, b: calls.append((a.data_ptr(), b.data_ptr())), x, out, refused)
    for _ in range(2):
        function(x, out)
    assert gpu.did == ["wait", "aside", "wait", "record", "replay", "replay"]
    assert len(calls) == 4 and len(set(calls)) == 1  # three to warm up, one to record: always the same buffers


def test_what_cannot_be_recorded_is_told_and_called(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    problem, x = pinn()
    want = problem.value_and_gradient(x)
    gpu = Gpu(monkeypatch)
    gpu.refuses = True
    got = recorded(problem).value_and_gradient(x)
    assert want[0] == got[0] and torch.equal(want[1], got[1])
    told = capsys.readouterr().out.splitlines()
    assert "Pair.residual cannot be recorded for the GPU and runs step by step: operation not permitted when" in told[0]
    assert gpu.did[3:6] == ["record", "back", "synchronize"]
    assert "replay" not in gpu.did


def test_an_error_of_the_user_is_the_user_s(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Pair):
        works = True

        def residual(self, p: Any, u: Any, v: Any) -> Any:
            if not self.works:
                raise ValueError("no more")
            return super().residual(p, u, v)

    problem, x = pinn(Broken())
    Gpu(monkeypatch)
    Broken.works = False
    with pytest.raises(UserError, match=r"Broken\.residual failed: ValueError: no more"):
        recorded(problem).value_and_gradient(x)
