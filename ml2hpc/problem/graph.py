"""An evaluation recorded once and replayed: on a GPU, hundreds of small operations become one launch.

What is recorded reads and writes fixed memory, so the argument is copied into a buffer of its own and the result out of
one. On the CPU there is nothing to record: the same buffers, and the function is called again.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ml2hpc.errors import UserError

Function = Callable[[Tensor, Tensor], None]
"""`function(argument, result)` writes over the result; else it keeps to memory that stays where it is."""

_WARM_UP = 3  # calls before the recording: libraries choose algorithms and take their workspaces in the first ones


class Recorded:
    """A function of one vector that writes another one. Not collective.

    Parameters
    ----------
    function
        It must not wait for the device: no numbers read back.
    argument, result
        Of the shapes, types and devices that all calls will have; their values are of no account.
    refused
        Told why, where a GPU cannot record the function; then it is called each time.

    Raises
    ------
    UserError
        As the function does; it is called here, before it is recorded.
    """

    def __init__(
        self, function: Function, argument: Tensor, result: Tensor, refused: Callable[[Exception], None]
    ) -> None:
        self._function = function
        self._argument, self._result = argument.clone(), torch.zeros_like(result)
        self._replay: Callable[[], None] = self._call
        if argument.is_cuda:
            self._warm_up()
            stream = torch.cuda.current_stream()
            try:
                self._replay = self._record()
            except (RuntimeError, UserError) as error:  # torch's, or the same out of a user's residual
                torch.cuda.set_stream(stream)  # a recording that ends badly leaves its own stream behind
                torch.cuda.synchronize()
                refused(error)

    def __call__(self, argument: Tensor, result: Tensor) -> None:
        """Write function(argument) over `result`."""
        self._argument.copy_(argument)
        self._replay()
        result.copy_(self._result)

    def _call(self) -> None:
        self._function(self._argument, self._result)

    def _warm_up(self) -> None:
        """Call on a stream of its own, as torch asks before a recording."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                self._call()
        torch.cuda.current_stream().wait_stream(stream)

    def _record(self) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._call()
        replay: Callable[[], None] = graph.replay
        return replay
