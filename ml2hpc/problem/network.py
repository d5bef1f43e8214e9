"""Dense networks whose structure an engine can read: plain and residual stacks, fixed or adaptive slope.

Hidden layer l computes y_l = sigma(k_l (W_l y_{l-1} + b_l)), in a residual stack from the second layer on
y_l = y_{l-1} + h sigma(...), an Euler step of length h; k_l = 1, or k_l = 10 a_l with a_l trained (adaptive slope,
started at 1/10). Output layer: W y + b.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from ml2hpc.options import option
from ml2hpc.problem.activation import ACTIVATIONS

SLOPE = 10.0  # k = SLOPE * a: the scale of Jagtap et al., J. Comput. Phys. 404 (2020), kept by the SPQN experiments

STREAM = 2**32  # added to a seed below it, for a stream of its own


@dataclass(frozen=True)
class NetworkOptions:
    """Options `-net_*`."""

    type: Literal["mlp", "resnet"] = option("mlp", "plain stack, or residual blocks y + h sigma(W y + b)")
    # As published; deeper networks that are finer discretisations of the same function have a shorter one.
    step: float = option(1.0, "step length h of residual blocks", above=0.0)
    depth: int = option(8, "hidden layers", at_least=1)
    width: int = option(20, "neurons in a hidden layer", at_least=1)
    activation: Literal["tanh", "sin", "silu", "gelu"] = option("tanh", "nonlinearity of the hidden layers")
    adaptive: bool = option(False, "train one slope per hidden layer")
    fourier_modes: int = option(
        0,
        "random Fourier features cos Bx, sin Bx of the inputs: rows of B; 0, none, is the published setting",
        at_least=0,
    )
    fourier_scale: float = option(
        1.0, "standard deviation of B: about the solution's highest wave number on [-1, 1]; 1 is smooth", above=0.0
    )


class FourierFeatures:
    """Random Fourier features cos B f, sin B f of input features f, shape (2 modes, n); B is fixed, not trained.

    What f makes periodic or symmetric stays so.

    Parameters
    ----------
    features
        f: maps coordinates (d, n) to (inputs, n).
    inputs
        Number of f's rows.
    options
        Number of modes and scale of the normally distributed B.
    seed
        Of B; the same on every rank, apart from the weights' stream.

    References
    ----------
    Tancik et al., Fourier features let networks learn high frequency functions in low dimensional domains, 2020;
    Wang, Wang and Perdikaris, On the eigenvector bias of Fourier feature networks, 2021.
    """

    def __init__(
        self, features: Callable[[Tensor], Tensor], inputs: int, options: NetworkOptions, seed: int, dtype: torch.dtype
    ) -> None:
        self._features = features
        generator = torch.Generator().manual_seed(seed + STREAM)
        draw = torch.randn(options.fourier_modes, inputs, dtype=torch.float64, generator=generator)
        self.matrix = (options.fourier_scale * draw).to(dtype)  # B

    def __call__(self, x: Tensor) -> Tensor:
        """Return the features of coordinates (d, n)."""
        angles = self.matrix.to(x) @ self._features(x)
        return torch.cat([torch.cos(angles), torch.sin(angles)])


class DenseLayer(nn.Module):
    """W, b and, in a hidden layer with adaptive slope, a.

    Attributes
    ----------
    weight, bias, slope
        Shapes (out, in), (out,), () or None.
    residual
        Whether the layer's input is added to `step` times its output.
    step
        h there, else 1.
    """

    def __init__(
        self, inputs: int, outputs: int, *, residual: bool, adaptive: bool, dtype: torch.dtype, step: float = 1.0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(outputs, dtype=dtype))
        self.slope = nn.Parameter(torch.full((), 1.0 / SLOPE, dtype=dtype)) if adaptive else None
        self.residual = residual
        self.step = step if residual else 1.0

    def linear(self, x: Tensor) -> Tensor:
        """Return k (W x + b) for x of shape (in, n)."""
        z = self.weight @ x + self.bias[:, None]
        return z if self.slope is None else SLOPE * self.slope * z


class DenseNetwork(nn.Module):
    """A feature-major network: inputs (features, n), outputs (outputs, n). Not collective.

    Its layers, hidden ones first, are `stack`.

    Parameters
    ----------
    inputs, outputs
        Numbers of input features and of output fields.
    options
        Type, depth, width, activation.
    seed
        Of the Xavier-uniform weights; biases start at zero. The same on every rank.
    """

    def __init__(self, inputs: int, outputs: int, options: NetworkOptions, seed: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.options = options
        self.activation = ACTIVATIONS[options.activation]()
        sizes = [inputs, *[options.width] * options.depth]
        residual = options.type == "resnet"
        layers = [
            DenseLayer(a, b, residual=residual and i > 0, adaptive=options.adaptive, dtype=dtype, step=options.step)
            for i, (a, b) in enumerate(pairwise(sizes))
        ]
        layers.append(DenseLayer(options.width, outputs, residual=False, adaptive=False, dtype=dtype))
        self.layers = nn.ModuleList(layers)
        self.stack = tuple(layers)
        generator = torch.Generator().manual_seed(seed)
        for layer in layers:
            # Drawn in float64 and rounded, so that float32 starts from the same network.
            weight = torch.empty(layer.weight.shape, dtype=torch.float64)
            nn.init.xavier_uniform_(weight, generator=generator)
            layer.weight.data.copy_(weight)

    def forward(self, x: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """Return the outputs (outputs, n) for features x (features, n), or layers first..last-1 of what enters them."""
        for layer in self.stack[first:last]:
            y = layer.linear(x)
            if layer is not self.stack[-1]:
                y = self.activation.value(y)
            x = x + layer.step * y if layer.residual else y
        return x
