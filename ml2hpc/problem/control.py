"""Residual networks as discretised control problems: their description, parameters and initial values.

    y_0 = sigma_0(K_0 x + b_0)                       opening layer
    y_{k+1} = y_k + dt f(y_k, theta_k), dt = T / n   n residual blocks: the ODE y' = f(y, theta) on [0, T]
    y_n -> logits                                    classification layer

with f(y, theta) = sigma(K y + b), by forward Euler or by Verlet's scheme on the Hamiltonian system of (y, z),

    z_{k+1} = z_k - dt sigma(K_k' y_k + b_k),   y_{k+1} = y_k + dt sigma(K_k z_{k+1} + b_k),   z_0 = 0.

K is a matrix on vectors, or a convolution on images; there the classification layer sees the channels' means. A
network with fewer blocks on the same [0, T] is a coarser discretisation of the same ODE.

References
----------
Haber and Ruthotto, Stable architectures for deep neural networks, Inverse Problems 34, 2018.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from ml2hpc.errors import OptionsError, UnsupportedError
from ml2hpc.options import option
from ml2hpc.problem.interface import Cost, slices

Activation = Literal["tanh", "relu", "identity"]
ACTIVATIONS: tuple[Activation, ...] = ("tanh", "relu", "identity")  # numbered as in kernels/sweep.h
SCHEMES = ("euler", "verlet")  # the same
KERNEL = 3  # a convolution reaches one pixel to each side; images keep their size


@dataclass(frozen=True)
class ArchitectureOptions:
    """Options `-resnet_*` of the network."""

    layers: Literal["dense", "conv"] = option("dense", "K y is a matrix product, or a 3 x 3 convolution on images")
    # Coarsened by 2 again and again it stays whole down to one block.
    blocks: int = option(32, "residual blocks, the steps on [0, T]", at_least=1)
    width: int = option(
        3, "neurons of a block, or channels of a convolutional one; 3 is the circles' setting", at_least=1
    )
    final_time: float = option(1.0, "T: the steps have length T / blocks; 1 as published", above=0.0, below=math.inf)
    scheme: Literal["euler", "verlet"] = option(
        "euler", "forward Euler as published, or Verlet: stable where Euler grows, two half steps for one"
    )
    activation: Activation = option("tanh", "nonlinearity of the blocks; tanh keeps y' bounded")
    opening: Activation = option(
        "identity", "nonlinearity of the opening layer; identity loses nothing of the features"
    )


@dataclass(frozen=True)
class Architecture:
    """A residual network in numbers; two of the same are the same function of their parameters.

    Attributes
    ----------
    inputs
        Shape of a sample: (features,), or (channels, height, width) for convolutions.
    classes
        Number of logits.
    final_time
        T.
    """

    inputs: tuple[int, ...]
    classes: int
    blocks: int = 32
    width: int = 3
    final_time: float = 1.0
    scheme: Literal["euler", "verlet"] = "euler"
    activation: Activation = "tanh"
    opening: Activation = "identity"
    layers: Literal["dense", "conv"] = "dense"

    @classmethod
    def of(cls, options: ArchitectureOptions, inputs: tuple[int, ...], classes: int) -> Architecture:
        """Return the network that the options describe for samples of a shape. Not collective.

        Raises
        ------
        OptionsError
            If convolutions are asked for and samples are no images.
        """
        if options.layers == "conv" and len(inputs) != 3:
            raise OptionsError(
                f"-resnet_layers conv: samples have shape {inputs}, not (channels, height, width); use dense"
            )
        if options.layers == "dense":
            inputs = (math.prod(inputs),)
        return cls(
            inputs,
            classes,
            options.blocks,
            options.width,
            options.final_time,
            options.scheme,
            options.activation,
            options.opening,
            options.layers,
        )

    @property
    def step(self) -> float:
        """The step length dt = T / blocks."""
        return self.final_time / self.blocks

    @property
    def _taps(self) -> int:
        """Entries of the convolution's stencil; 1 for a matrix."""
        return KERNEL**2 if self.layers == "conv" else 1

    @property
    def opening_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of K_0 and b_0."""
        return self._shapes(self.inputs[0])

    @property
    def block_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of K_k and b_k."""
        return self._shapes(self.width)

    def _shapes(self, inputs: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        stencil = (KERNEL, KERNEL) if self.layers == "conv" else ()
        return (self.width, inputs, *stencil), (self.width,)

    @property
    def classification_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of the last matrix and bias."""
        return (self.classes, self.width), (self.classes,)

    @cached_property
    def layer_slices(self) -> tuple[slice, ...]:
        """Places of the opening layer, each block and the classification layer in the flat vector."""
        return slices(
            [
                _numel(self.opening_shapes),
                *[_numel(self.block_shapes)] * self.blocks,
                _numel(self.classification_shapes),
            ]
        )

    @cached_property
    def tensor_slices(self) -> tuple[slice, ...]:
        """Places of single matrices and biases."""
        of_block = [math.prod(s) for s in self.block_shapes]
        first, last = self.opening_shapes, self.classification_shapes
        return slices([*map(math.prod, first), *of_block * self.blocks, *map(math.prod, last)])

    @property
    def groups(self) -> dict[str, slice]:
        """Places of opening, blocks and classification."""
        of = self.layer_slices
        return {
            "opening": of[0],
            "blocks": slice(of[1].start, of[-2].stop),
            "classification": of[-1],
        }

    @property
    def n(self) -> int:
        """Number of parameters."""
        return int(self.layer_slices[-1].stop)

    def cost(self, first: int = 0, last: int | None = None) -> Cost:
        """Return the operations of a sample, with layers below `first` frozen, gradients in first..last-1.

        Not collective.
        """
        last = self.blocks + 2 if last is None else last
        pixels = math.prod(self.inputs[1:])
        halves = 2 if self.scheme == "verlet" else 1
        opening = 2.0 * self._taps * pixels * self.inputs[0] * self.width
        block = 2.0 * halves * self._taps * pixels * self.width**2
        head = 2.0 * self.width * self.classes
        forward = [opening, *[block] * self.blocks, head][first:]
        trained = sum(forward[: last - first])
        pulled = sum(forward[1:])  # the derivative in what enters the lowest layer is of no use
        return Cost(sum(forward), sum(forward) + trained + pulled)

    def coarsen(self, factor: int) -> Architecture:
        """Return the network with a `factor`-th of the blocks on the same [0, T]. Not collective.

        Raises
        ------
        UnsupportedError
            If that is no whole number.
        """
        if factor < 2 or self.blocks % factor:
            raise UnsupportedError(
                f"{self.blocks} residual blocks cannot be coarsened by {factor}: choose -resnet_blocks as a multiple, "
                f"on each level, or fewer -dm_levels"
            )
        return replace(self, blocks=self.blocks // factor)

    def view(self) -> str:
        """Return the network in a line. Not collective."""
        how = f"{self.scheme}, {self.activation}, opening {self.opening}, T {self.final_time:g}"
        return f"{self.layers} {self.blocks} x {self.width}, {how}"


def _numel(shapes: tuple[tuple[int, ...], ...]) -> int:
    return sum(map(math.prod, shapes))


class _Affine(nn.Module):
    """A matrix or stencil and a bias."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias)


class _Blocks(nn.Module):
    """K_k and b_k of all blocks as the rows of one array (blocks, n_k): thousands of tensors would make slow files."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows)


class ResNet(nn.Module):
    """The parameters of a residual network with their initial values, in the order of the flat vector.

    Matrices are Glorot-uniform, biases zero. Drawn in float64 and rounded: float32 starts from the same network.

    Parameters
    ----------
    seed
        Of the weights; the same on every rank.
    """

    def __init__(self, architecture: Architecture, seed: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.architecture = architecture
        generator = torch.Generator().manual_seed(seed)

        def drawn(shape: tuple[int, ...]) -> Tensor:
            weight = torch.empty(shape, dtype=torch.float64)
            return nn.init.xavier_uniform_(weight, generator=generator).to(dtype)

        def affine(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> _Affine:
            return _Affine(drawn(shapes[0]), torch.zeros(shapes[1], dtype=dtype))

        self.opening = affine(architecture.opening_shapes)
        # Before the blocks, so that networks of any depth start with the same outer layers.
        classification = affine(architecture.classification_shapes)
        weight, bias = architecture.block_shapes
        rows = torch.zeros(architecture.blocks, math.prod(weight) + math.prod(bias), dtype=dtype)
        for row in rows[:, : math.prod(weight)]:
            row.copy_(drawn(weight).flatten())
        self.blocks = _Blocks(rows)
        self.classification = classification
