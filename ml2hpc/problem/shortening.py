"""Shallower residual networks: `factor` blocks of step length h become one of length factor h."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ml2hpc.errors import UnsupportedError
from ml2hpc.problem.network import DenseNetwork
from ml2hpc.problem.transfer import Coarsening, Depth
from ml2hpc.vec import Layout


def shortened(network: nn.Module, how: Coarsening, device: torch.device) -> tuple[DenseNetwork, Depth]:
    """Return the structure of the shallower network, and the transfer of parameters. Not collective.

    Raises
    ------
    UnsupportedError
        If the network has no steps of a discretisation, or none that `factor` divides.
    """
    if not isinstance(network, DenseNetwork) or network.options.type != "resnet":
        raise UnsupportedError(
            "the layers of a plain network have no step length: two of them are not approximately one; "
            "use -net_type resnet, or -dm_hierarchy width or samples"
        )
    fine = network.options
    blocks = fine.depth - 1
    count, left = divmod(blocks, how.factor)
    if left or not count:
        raise UnsupportedError(
            f"-net_depth {fine.depth}: {blocks} residual blocks after the first layer cannot be coarsened by "
            f"{how.factor}; choose -net_depth 1 more than a multiple, or fewer levels"
        )
    weight = network.stack[0].weight
    options = replace(fine, depth=1 + count, step=how.factor * fine.step)
    coarse = DenseNetwork(weight.shape[1], network.stack[-1].weight.shape[0], options, 0, weight.dtype).to(device)
    layers = Layout(network).layers
    return coarse, Depth(slice(layers[1].start, layers[-1].start), count, how, weight.dtype, device)
