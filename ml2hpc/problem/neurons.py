"""Rows of neurons by compiled kernels: one call per layer and direction, on the CPU or on a GPU.

    forward    z <- what is kept of sigma at z + b,  y <- jets of sigma(z + b) (+ below)
    reverse    gz <- cotangents of z's jets from those of sigma's, g

Jets are (width, jets, n) with n whole vectors; `more` is (width, planes, n). Of sigma's planes the first takes the
place of z's value; how many others there are depends on the activation.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ml2hpc import kernels
from ml2hpc.errors import UnsupportedError
from ml2hpc.kernels import cuda
from ml2hpc.problem.jet import Carried
from ml2hpc.problem.plan import plan_of

WHOLE = 32  # points: a warp, and at least the longest vector of a processor, 16 numbers
_PLANES = {"tanh": 0, "sin": 1, "silu": 1, "gelu": 2}  # `basis` in neuron.h, less the first


class Neurons(ABC):
    """The kernels for one set of jets, activation and type.

    Attributes
    ----------
    planes
        Of `more`.
    description
        Where they run, for views.
    """

    def __init__(self, activation: str, description: str) -> None:
        self.planes = _PLANES[activation]
        self.description = description

    @abstractmethod
    def forward(self, bias: Tensor, z: Tensor, more: Tensor, y: Tensor, below: Tensor | None) -> None:
        """Carry z + bias, bias (width,), through sigma; `below` has the layout of y. Not collective."""

    @abstractmethod
    def reverse(self, z: Tensor, more: Tensor, g: Tensor, gz: Tensor) -> None:
        """Write gz from g, with z and `more` as `forward` left them. Not collective."""


class HostNeurons(Neurons):
    """By the C library, on the CPU."""

    def __init__(self, carried: tuple[Carried, ...], activation: str, dtype: torch.dtype) -> None:
        library = kernels.load()
        if library is None:
            raise UnsupportedError(
                "-pinn_engine device on the CPU: the package was built without a C compiler; use -pinn_engine jets"
            )
        super().__init__(activation, f"cpu, {library.instruction_set}")
        self._plan = plan_of(carried, activation)
        self._address = ctypes.c_void_p(ctypes.addressof(self._plan))
        self._forward = library.function("neurons_forward", dtype)
        self._reverse = library.function("neurons_reverse", dtype)

    def forward(self, bias: Tensor, z: Tensor, more: Tensor, y: Tensor, below: Tensor | None) -> None:
        tensors = (bias, z, more, y, below)
        self._forward(self._address, ctypes.c_long(len(z)), *map(_address, tensors), ctypes.c_long(z.shape[2]))

    def reverse(self, z: Tensor, more: Tensor, g: Tensor, gz: Tensor) -> None:
        tensors = (z, more, g, gz)
        self._reverse(self._address, ctypes.c_long(len(z)), *map(_address, tensors), ctypes.c_long(z.shape[2]))


class CudaNeurons(Neurons):
    """By CUDA kernels: a thread is a point of a neuron."""

    def __init__(self, carried: tuple[Carried, ...], activation: str, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(activation, str(device))
        self._module = cuda.load(cuda.source(dtype, plan_of(carried, activation)), device.index)

    def forward(self, bias: Tensor, z: Tensor, more: Tensor, y: Tensor, below: Tensor | None) -> None:
        self._module.start("neurons_forward", _grid(z), [bias, z, more, y, below, z.shape[2]])

    def reverse(self, z: Tensor, more: Tensor, g: Tensor, gz: Tensor) -> None:
        self._module.start("neurons_reverse", _grid(z), [z, more, g, gz, z.shape[2]])


def neurons_on(device: torch.device, carried: tuple[Carried, ...], activation: str, dtype: torch.dtype) -> Neurons:
    """Return the kernels of a device. Not collective.

    Raises
    ------
    UnsupportedError
        If they cannot be compiled there.
    """
    if device.type == "cuda":
        return CudaNeurons(carried, activation, dtype, device)
    return HostNeurons(carried, activation, dtype)


def _address(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _grid(z: Tensor) -> tuple[int, int]:
    return -(-z.shape[2] // cuda.THREADS), len(z)
