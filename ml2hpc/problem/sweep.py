"""Engine `compiled` of residual networks: one sweep through all blocks and back (`ml2hpc/kernels/sweep.h`).

Strips of samples go through the whole network while their states are in the cache; checkpoints and recomputation keep
what the way back needs there too. Opening layers are matrix products of torch; second derivatives are the torch
engine's.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from ml2hpc import kernels
from ml2hpc.errors import UnsupportedError
from ml2hpc.problem.classification import LOSSES
from ml2hpc.problem.compiled import ARENA, aligned
from ml2hpc.problem.control import ACTIVATIONS, Architecture
from ml2hpc.problem.propagation import Batch, Propagation, Unrolled

# With 3 to 32 neurons, strips of 128 to 512 and 8 to 64 blocks between checkpoints are within 10 % of each other.
_LONGEST_STRIP = 256  # samples; shorter ones spend their time on the sums at a strip's end
_CHECKPOINT = 16  # blocks between two checkpoints
_TAPE_BYTES = 2**21  # states and sigma of so many blocks, for one strip: twice a second-level cache


class Plan(ctypes.Structure):
    """What the kernels are told: `SweepPlan` of sweep.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("width", "classes", "blocks", "verlet", "activation", "loss")),
        *((name, ctypes.c_int64) for name in ("first", "last", "head", "samples", "strip", "checkpoint", "threads")),
        ("step", ctypes.c_double),
    ]


class Sweep(Propagation):
    """Dense residual networks of any width on the CPU.

    Raises
    ------
    UnsupportedError
        If the kernels were not built, or the network is convolutional.
    """

    def __init__(
        self, architecture: Architecture, loss: str, dtype: torch.dtype, first: int = 0, last: int | None = None
    ) -> None:
        super().__init__(architecture, loss, dtype, first, last)
        library = kernels.load()
        if library is None:
            raise UnsupportedError(
                "-resnet_engine compiled: the package was built without a C compiler; install one and run "
                "pip install again, or use -resnet_engine torch"
            )
        if architecture.layers != "dense":
            raise UnsupportedError("-resnet_engine compiled: it has no convolutions; use -resnet_engine torch")
        self.description = f"compiled ({library.instruction_set})"
        self._twin = Unrolled(architecture, loss, dtype, first, last)
        self._functions(library)
        a = architecture
        self._halves = 2 if a.scheme == "verlet" else 1
        below = max(self.first - 1, 0)
        self._plan = Plan(
            width=a.width,
            classes=a.classes,
            blocks=a.blocks,
            verlet=a.scheme == "verlet",
            activation=ACTIVATIONS.index(a.activation),
            loss=list(LOSSES).index(loss),
            first=below,
            last=min(max(self.last - 1, below), a.blocks),
            head=self.last == a.blocks + 2,
            strip=self._strip(),
            checkpoint=min(_CHECKPOINT, a.blocks),
            step=a.step,
        )
        groups = a.groups
        self._opening = groups["opening"].stop
        self._blocks, self._head = groups["blocks"].start, groups["classification"].start

    def _functions(self, library: kernels.Library) -> None:
        pointer = ctypes.c_void_p
        self._network: Any = library.function("sweep_network", self.dtype)
        self._network.argtypes = [pointer] * 8 + [ctypes.c_int] + [pointer] * 4
        self._scratch: Any = library.function("sweep_scratch", self.dtype, ctypes.c_long)
        self._scratch.argtypes = [pointer]
        self._quantum = int(library.function("sweep_quantum", self.dtype, ctypes.c_long)())

    def _strip(self) -> int:
        """Samples that go together: whole register blocks whose tape stays in the cache."""
        sample = 2 * self._halves * self.architecture.width * _CHECKPOINT * self.dtype.itemsize
        strip = min(_TAPE_BYTES // sample, _LONGEST_STRIP)
        return max(strip // self._quantum, 1) * self._quantum

    def batch(self, x: Tensor, labels: Tensor, weight: float) -> Batch:
        """Return samples filled up to whole register blocks by zeros of weight zero."""
        if x.device.type != "cpu":
            raise UnsupportedError("-resnet_engine compiled: it computes on the CPU; with -device cuda use torch")
        n, a = len(x), self.architecture
        samples, targets, weights = (self._zeros(rows, n) for rows in (a.inputs[0], a.classes, 1))
        samples[:, :n] = x.reshape(n, -1).T
        targets[labels, torch.arange(n)] = 1.0
        weights[0, :n] = weight
        return Batch(samples, targets, weights[0])

    def _zeros(self, rows: int, n: int) -> Tensor:
        """Return room for n samples in whole register blocks."""
        columns = -(-n // self._quantum) * self._quantum
        return aligned(rows * columns, self.dtype).view(rows, columns)

    def freeze(self, parameters: Tensor, batch: Batch) -> None:
        if self.first == 0:
            return
        entered = self._enter(parameters, batch)
        if batch.below is None:
            batch.below = self._zeros(entered[:, :, 0].numel(), entered.shape[-1]).view(entered.shape)
        plan = Plan.from_buffer_copy(self._plan)
        plan.first, plan.blocks = 0, self.first - 1
        self._sweep(plan, parameters, batch, entered, end=batch.below)

    def loss(self, parameters: Tensor, batch: Batch, out: Tensor) -> None:
        self._sweep(self._plan, parameters, batch, self._entering(parameters, batch), out=out)

    def loss_and_gradient(self, parameters: Tensor, batch: Batch, out: Tensor) -> None:
        y = self._entering(parameters, batch)
        if self.first > 0:
            self._sweep(self._plan, parameters, batch, y, out=out, back=True)
            return
        a = self.architecture
        gy = ARENA.take("gy", y[0].numel(), self.dtype)[: y[0].numel()].view(y[0].shape)
        self._sweep(self._plan, parameters, batch, y, out=out[self._opening :], back=True, gy=gy)
        if a.opening == "tanh":
            gy *= 1 - y[0] ** 2
        elif a.opening == "relu":
            gy *= y[0] > 0
        features = a.inputs[0]
        torch.mm(gy, batch.x.T, out=out[: a.width * features].view(a.width, features))
        torch.sum(gy, 1, out=out[a.width * features : self._opening])

    def logits(self, parameters: Tensor, batch: Batch) -> Tensor:
        n = batch.weight.numel()
        z = torch.empty(self.architecture.classes, n, dtype=self.dtype)
        out = torch.empty(2, dtype=self.dtype)
        self._sweep(self._plan, parameters, batch, self._entering(parameters, batch), out=out, logits=z)
        return z

    def hessian_action(self, parameters: Tensor, v: Tensor, batch: Batch, out: Tensor) -> None:
        self._twin.hessian_action(parameters, v, batch, out)

    def gauss_newton_action(self, parameters: Tensor, v: Tensor, batch: Batch, out: Tensor) -> None:
        self._twin.gauss_newton_action(parameters, v, batch, out)

    def gauss_newton_root(self, parameters: Tensor, batch: Batch) -> Tensor:
        return self._twin.gauss_newton_root(parameters, batch)

    # ------------------------------------------------------------------------------------------------------------

    def _enter(self, parameters: Tensor, batch: Batch) -> Tensor:
        """Return what the opening layer makes of the samples, (1 or 2, width, n): y, and z = 0 of Verlet's scheme."""
        a = self.architecture
        features = a.inputs[0]
        size = a.width * batch.x.shape[1]
        state = ARENA.take("state", self._halves * size, self.dtype)[: self._halves * size]
        y = state[:size].view(a.width, -1)
        weight = parameters[: a.width * features].view(a.width, features)
        torch.addmm(parameters[a.width * features : self._opening, None], weight, batch.x, out=y)
        if a.opening == "tanh":
            y.tanh_()
        elif a.opening == "relu":
            y.relu_()
        state[size:].zero_()
        return state.view(self._halves, a.width, -1)

    def _entering(self, parameters: Tensor, batch: Batch) -> Tensor:
        """Return the state that enters the first block of the window."""
        if self.first == 0:
            return self._enter(parameters, batch)
        assert batch.below is not None, "freeze comes first"
        return batch.below

    def _sweep(
        self,
        plan: Plan,
        parameters: Tensor,
        batch: Batch,
        y: Tensor,
        *,
        out: Tensor | None = None,
        back: bool = False,
        gy: Tensor | None = None,
        logits: Tensor | None = None,
        end: Tensor | None = None,
    ) -> None:
        """Call the kernel; `out` takes gradient (with `back`), loss and number of correct samples."""
        plan = Plan.from_buffer_copy(plan)  # problems share an engine, and may be evaluated by several threads
        plan.samples, plan.threads = batch.weight.numel(), torch.get_num_threads()
        address = ctypes.addressof(plan)
        strips = -(-plan.samples // plan.strip)
        scratch = ARENA.take("sweep", plan.threads * self._scratch(address), self.dtype)
        sums = ARENA.take("sums", strips * (2 if out is None else len(out)), self.dtype)
        tensors = (parameters[self._blocks :], parameters[self._head :], y, batch.targets, batch.weight, scratch, sums)
        assert all(t.is_contiguous() for t in tensors), "kernels read consecutive numbers"
        given = (None if t is None else t.data_ptr() for t in (gy, logits, end, out))
        self._network(address, *(t.data_ptr() for t in tensors), int(back), *given)
