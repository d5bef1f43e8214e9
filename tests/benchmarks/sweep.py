"""How fast a deep narrow residual network's gradient is, beside eager torch and the processor's peak.

    python -m tests.benchmarks.sweep [gradient threads depth] [-rounds 7]

    gradient   loss and gradient of 2048 blocks, compiled against torch.nn modules, float64 and float32
    threads    two threads against one, wall-clock time
    depth      the same samples through fewer blocks: a coarse level should cost its share

One thread but for `threads`. Contenders take turns, so that a noisy machine slows all of them alike; figures are
medians of process time, minima in brackets. Nothing is asserted: targets stand beside what was measured.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from ml2hpc.comm import Communicator
from ml2hpc.problem.control import Activation, Architecture, ResNet
from ml2hpc.problem.resnet import ResNetModel, ResNetProblem, Samples
from ml2hpc.vec import Layout
from tests.benchmarks.engine import DTYPES, fma_peak, interleave

BLOCKS = 2048
CHUNK = 2048  # one chunk holds all samples, for torch and the sweep alike


@dataclass(frozen=True)
class Case:
    """A network and a number of samples."""

    width: int
    samples: int
    activation: Activation

    @property
    def multiply_adds(self) -> float:
        """What no gradient with recomputation can do without, per block and sample: three products with K or K', one
        outer product, and the steps; activations are not in it.
        """
        n = self.width
        return float(BLOCKS * self.samples) * (4 * n * n + 3 * n)


CASES = (Case(3, 2000, "relu"), Case(3, 2000, "tanh"), Case(10, 1000, "relu"), Case(32, 500, "relu"))


class Eager(nn.Module):
    """The network as one writes it for torch: a linear layer per block, samples in rows."""

    def __init__(self, architecture: Architecture, x: Tensor) -> None:
        super().__init__()
        self.step = architecture.step
        self.sigma = getattr(torch, architecture.activation)
        shapes = [(2, architecture.width), *[(architecture.width,) * 2] * architecture.blocks, (architecture.width, 2)]
        self.layers = nn.ModuleList(nn.Linear(a, b, dtype=x.dtype) for a, b in shapes)
        for k, values in zip(self.parameters(), (x[s] for s in architecture.tensor_slices), strict=True):
            k.data.copy_(values.view(k.shape))

    def forward(self, x: Tensor) -> Tensor:
        opening, *blocks, classification = self.layers
        y = opening(x)
        for block in blocks:
            y = y + self.step * self.sigma(block(y))
        return classification(y)


def make(case: Case, dtype: str, blocks: int = BLOCKS) -> tuple[ResNetProblem, Tensor]:
    """Return the compiled problem and parameters a little off the start."""
    generator = torch.Generator().manual_seed(1)
    architecture = Architecture((2,), 2, blocks, case.width, activation=case.activation)
    network = ResNet(architecture, 0, DTYPES[dtype])
    x = Layout(network).flatten(network)
    x = x + 0.05 * torch.randn(len(x), generator=generator, dtype=torch.float64).to(x.dtype)
    points = torch.randn(case.samples, 2, generator=generator, dtype=torch.float64).to(x.dtype)
    samples = Samples(points, torch.randint(2, (case.samples,), generator=generator))
    model = ResNetModel(architecture, "compiled", x.dtype, chunk=CHUNK)
    return ResNetProblem(Communicator.world(), model, samples), x


def eager_of(problem: ResNetProblem, x: Tensor) -> Callable[[], tuple[float, Tensor]]:
    """Return loss and gradient by torch.nn."""
    network, data = Eager(problem.model.architecture, x), problem.data

    def evaluate() -> tuple[float, Tensor]:
        network.zero_grad()
        loss = nn.functional.cross_entropy(network(data.x), data.labels)
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

    return evaluate


def section_gradient(rounds: int) -> None:
    """Compare with eager torch and the limit of multiply-adds."""
    peak = fma_peak()
    print(f"peak of multiply-adds, float64: {peak / 1e9:.0f} GF/s" if peak else "no compiler: no peak measured")
    print(f"gradient of {BLOCKS} blocks; target: 30 times torch at width 3")
    for case in CASES:
        for dtype in DTYPES:
            problem, x = make(case, dtype)
            eager = eager_of(problem, x)
            difference = (eager()[1] - problem.gradient(x)).abs().max() / problem.gradient(x).abs().max()
            contenders: dict[str, Callable[[], object]] = {
                "torch": eager,
                "compiled": lambda problem=problem, x=x: problem.value_and_gradient(x),  # type: ignore[misc]
                "objective": lambda problem=problem, x=x: problem.objective(x),  # type: ignore[misc]
            }
            found = interleave(contenders, rounds)
            rate = 2 * case.multiply_adds / min(found["compiled"].all)
            limit = peak * (2 if dtype == "float32" else 1) if peak else float("nan")
            print(
                f"  width {case.width:2}, {case.samples} samples, {case.activation:4} {dtype}: "
                f"torch {found['torch']}, compiled {found['compiled']}, objective {found['objective']}: "
                f"{found['torch'].median / found['compiled'].median:5.1f} times, {rate / limit:4.0%} of the limit, "
                f"differ by {float(difference):.0e}"
            )


def section_threads(rounds: int) -> None:
    """Compare two threads with one."""
    print("two threads; target: 1.8 times one, on two free cores")
    for case in CASES:
        problem, x = make(case, "float64")

        def gradient(threads: int, problem: ResNetProblem = problem, x: Tensor = x) -> Tensor:
            torch.set_num_threads(threads)
            return problem.gradient(x)

        assert torch.equal(gradient(1), gradient(2))
        contenders: dict[int, Callable[[], object]] = {threads: partial(gradient, threads) for threads in (1, 2)}
        found = interleave(contenders, 10 * rounds, time.perf_counter)
        torch.set_num_threads(1)
        gain, best = found[1].median / found[2].median, min(found[1].all) / min(found[2].all)
        told = f"one {found[1]}, two {found[2]}: {gain:.2f} times ({best:.2f} of the minima)"
        print(f"  width {case.width:2}, {case.samples} samples, {case.activation:4}: {told}")


def section_depth(rounds: int) -> None:
    """Compare the gradient's time with the share of the blocks."""
    case = CASES[0]
    print("coarser levels: time against the share of the blocks")
    problems = {blocks: make(replace(case), "float64", blocks) for blocks in (2048, 512, 128, 32, 8, 1)}
    contenders: dict[int, Callable[[], object]] = {
        blocks: lambda problem=problem, x=x: problem.value_and_gradient(x)  # type: ignore[misc]
        for blocks, (problem, x) in problems.items()
    }
    found = interleave(contenders, 5 * rounds)
    for blocks, times in found.items():
        share = min(times.all) / min(found[2048].all)
        print(f"  {blocks:4} blocks: {times}, {share:.4f} of the finest; share of the blocks {blocks / 2048:.4f}")


SECTIONS = {"gradient": section_gradient, "threads": section_threads, "depth": section_depth}


def main(arguments: Sequence[str]) -> None:
    """Run the sections named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], metavar="section")
    parser.add_argument("-rounds", type=int, default=7, help="times that each contender runs")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name in chosen.sections or SECTIONS:
        print(f"\n{name}: {SECTIONS[name].__doc__}\n", flush=True)
        SECTIONS[name](chosen.rounds)


if __name__ == "__main__":
    if os.environ.get("OMP_NUM_THREADS") != "1":  # read when the libraries start
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.benchmarks.sweep", *sys.argv[1:]],
            os.environ | {"OMP_NUM_THREADS": "1"},
        )
    main(sys.argv[1:])
