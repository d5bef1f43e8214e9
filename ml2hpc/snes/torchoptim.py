"""Any optimiser of torch.optim by name, as a solver type: a step, or an epoch of steps on batches, per iteration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from ml2hpc.errors import OptionsError, UnsupportedError
from ml2hpc.options import option
from ml2hpc.problem.interface import Problem
from ml2hpc.snes.interface import SNES, Method, Point, Step, Tree
from ml2hpc.vec import Sharded

# Optimisers whose update of an entry reads that entry only, so that they may work on slices of a vector.
_ELEMENTWISE = ("ASGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")


class TorchOptim(Method):
    """x <- optimiser(x, r). Steps are not globalised: the optimiser's own rule decides, and L may rise.

    References
    ----------
    The torch.optim documentation, for the optimisers and their arguments.
    """

    @dataclass(frozen=True)
    class Options:
        """Options `-snes_torchoptim_*`."""

        name: str = option("Adam", "class in torch.optim")
        lr: float = option(1e-3, "learning rate", above=0.0)
        arguments: str = option("{}", "further arguments as a YAML mapping, such as {betas: [0.9, 0.99]}")
        decay: float = option(1.0, "factor of the learning rate per 1000 steps", above=0.0, at_most=1.0)
        batch: int = option(
            0,
            "samples of a step, one part after the other of all in an order drawn anew for each iteration and epoch; 0 "
            "takes all",
            at_least=0,
        )
        # L after every step on a batch would cost many times the step.
        steps: int = option(
            0,
            "steps in an iteration, at whose end L is evaluated; 0 makes an epoch, the samples over the batch",
            at_least=0,
        )
        seed: int = option(0, "seed of the orders", at_least=0)
        recycle: bool = option(True, "keep the optimiser's state from one solve to the next")

    name = "torchoptim"
    title = "Optimiser of torch.optim (torchoptim)"
    sides = ("right",)
    defaults = {"stol": 0.0}

    def set_up(self, solver: SNES) -> None:
        self._x = nn.Parameter(solver.problem.space.zeros())
        self._make(solver)
        batch, samples = self.options.batch, solver.problem.samples
        if batch > samples:
            raise OptionsError(f"-{solver.prefix}snes_torchoptim_batch {batch}: there are {samples} samples")

        if isinstance(solver.problem.space, Sharded) and type(self._optimiser).__name__ not in _ELEMENTWISE:
            raise UnsupportedError(
                f"-vec_type sharded: torch's {type(self._optimiser).__name__} reduces over its own slice only; "
                f"use -vec_type replicated, or one of {', '.join(_ELEMENTWISE)}"
            )

    def _make(self, solver: SNES) -> None:
        o = self.options
        option_name = f"-{solver.prefix}snes_torchoptim_"
        known = {
            n.lower(): n for n in dir(torch.optim) if isinstance(getattr(torch.optim, n), type) and n != "SparseAdam"
        }
        kind = getattr(torch.optim, known.get(o.name.lower(), ""), None) if o.name.lower() in known else None
        if kind is None or not issubclass(kind, torch.optim.Optimizer) or kind is torch.optim.Optimizer:
            listed = ", ".join(sorted(set(known.values()) - {"Optimizer"}))
            raise OptionsError(f"{option_name}name {o.name}: torch.optim has {listed}")
        try:
            arguments: dict[str, Any] = yaml.safe_load(o.arguments) or {}
            self._optimiser = kind([self._x], lr=o.lr, **arguments)
        except (TypeError, ValueError, yaml.YAMLError) as error:
            raise OptionsError(f"{option_name}arguments {o.arguments}: {error}") from error
        self._steps = 0
        self._generator = torch.Generator().manual_seed(o.seed)

    def begin(self, solver: SNES) -> None:
        if not self.options.recycle:
            self._make(solver)

    def step(self, solver: SNES, point: Point) -> Step:
        evaluated: list[
            tuple[Tensor, float, Tensor]
        ] = []  # x, L and gradient of the last evaluation away from the start
        sampled: Problem | None = None
        calls = 0

        def closure() -> float:
            nonlocal calls
            calls += 1
            x = self._x.detach().clone()
            if sampled is not None:
                solver.work.add("gradients", sampled.cost.gradient / solver.unit.gradient)
                f, g = sampled.value_and_gradient(x)
            elif calls == 1:  # optimisers ask first for the point where they are
                f, g = point.f, point.r
            else:
                f, g = solver.gradient(x)
                evaluated[:] = [(x, f, g)]
            self._x.grad = g.clone()
            return f

        with torch.no_grad():
            self._x.copy_(point.x)
        batches: Iterator[Tensor | None] = (
            self._batches(solver.problem) if self.options.batch else itertools.repeat(None)
        )
        for rows in itertools.islice(batches, self._count(solver.problem)):
            sampled = None if rows is None else solver.problem.sample(rows)
            for group in self._optimiser.param_groups:
                group["lr"] = self.options.lr * self.options.decay ** (self._steps / 1000)
            self._optimiser.step(closure)
            self._steps += 1
        x = self._x.detach().clone()
        ended = [(f, g) for at, f, g in evaluated if solver.problem.space.norm(at - x) == 0.0]
        new = solver.point(x, *(ended[0] if ended else solver.gradient(x)))
        return Step(new) if new.finite else Step.broken(point, "after the optimiser's step")

    def _count(self, problem: Problem) -> int:
        """Return the number of steps in an iteration. Not collective."""
        epoch = math.ceil(problem.samples / self.options.batch) if self.options.batch else 1
        return self.options.steps or epoch

    def _batches(self, problem: Problem) -> Iterator[Tensor]:
        """Yield the samples of one batch after the other, each sample once an epoch, for ever. Not collective."""
        while True:
            order = torch.randperm(problem.samples, generator=self._generator, device=self._generator.device)
            yield from (rows.sort().values for rows in order.split(self.options.batch))

    def state(self, solver: SNES) -> Tree:
        gather = solver.problem.space.gather
        tree: Tree = {"steps": self._steps, "generator": self._generator.get_state().numpy()}
        for key, value in self._optimiser.state.get(self._x, {}).items():
            whole = isinstance(value, Tensor) and value.shape == self._x.shape
            tree[f"state_{key}"] = _plain(gather(value) if whole else value)
        return tree

    def load(self, solver: SNES, state: Tree) -> None:
        self._steps = int(state["steps"])
        self._generator.set_state(torch.from_numpy(state["generator"]))
        local = solver.problem.space.local
        for key, value in state.items():
            if key.startswith("state_"):
                tensor = _restored(value, self._x.device)
                whole = isinstance(tensor, Tensor) and tensor.shape == (solver.problem.space.n,)
                self._optimiser.state[self._x][key.removeprefix("state_")] = local(tensor).clone() if whole else tensor

    def brief(self) -> str:
        return f"torchoptim({type(self._optimiser).__name__})"

    def view(self) -> list[str]:
        o = self.options
        batch = f"batches of {o.batch}" if o.batch else "full batch"
        return [f"{type(self._optimiser).__name__}, lr={o.lr:g}, decay={o.decay:g} per 1000 steps, {batch}"]


def _plain(value: Any) -> Any:
    """Return an optimiser's state entry as leaves that a file can hold."""
    if isinstance(value, Tensor):
        return value.cpu().numpy()
    if isinstance(value, list):
        return {"list": {str(k): _plain(v) for k, v in enumerate(value)}}
    return value


def _restored(value: Any, device: torch.device) -> Any:
    """The state entry of a leaf: vectors on the device, single numbers, which count steps, on the host."""
    if isinstance(value, dict):
        return [_restored(value["list"][str(k)], device) for k in range(len(value["list"]))]
    if not isinstance(value, np.ndarray):
        return value
    tensor = torch.from_numpy(np.array(value))
    return tensor.to(device) if tensor.dim() else tensor
