"""Narrower dense networks: every `factor` neurons of a hidden layer become one."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ml2hpc.errors import UnsupportedError
from ml2hpc.problem.network import DenseNetwork
from ml2hpc.problem.transfer import Coarsening, Part, Width, width


def narrowed(network: nn.Module, how: Coarsening, device: torch.device) -> tuple[DenseNetwork, Width]:
    """Return the structure of the narrower network, and the transfer of parameters. Not collective.

    Raises
    ------
    UnsupportedError
        If the network is none that `DenseNetwork` describes, or has one neuron in each layer.
    """
    if not isinstance(network, DenseNetwork):
        raise UnsupportedError(f"{type(network).__name__} cannot be coarsened in width; use -dm_hierarchy samples")
    wide = network.options.width
    if wide == 1:
        raise UnsupportedError("a network of one neuron in each layer cannot be coarsened in width: use fewer levels")
    weight = network.stack[0].weight
    options = replace(network.options, width=width(wide, how.factor))
    narrow = DenseNetwork(weight.shape[1], network.stack[-1].weight.shape[0], options, 0, weight.dtype).to(device)
    parts = []
    for k, layer in enumerate(network.stack):
        hidden, from_hidden = k + 1 < len(network.stack), k > 0
        for name, parameter in layer.named_parameters():
            shape = tuple(parameter.shape)
            parts.append(Part(shape, hidden and bool(shape), from_hidden and name == "weight"))
    return narrow, Width(parts, how, weight.dtype, device)
