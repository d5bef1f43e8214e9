"""A CUDA driver that runs the CUDA source on the processor: compiled as C++, started thread by thread.

With `install` in place of the driver, everything but the compilation for a GPU is what a GPU would get: the source with
its definitions, the module, the grid, the packed arguments.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from ml2hpc.kernels import cuda

_BEFORE = """
#include <math.h>
#define __device__
#define __global__
#define __forceinline__ inline
#define __restrict__
static struct { long x, y; } blockIdx, threadIdx, gridDim, blockDim;
"""
_AFTER = """
extern "C" void set_thread(long block_x, long block_y, long thread, long grid_x, long threads)
{ blockIdx = {block_x, block_y}; threadIdx = {thread, 0}; gridDim = {grid_x, 1}; blockDim = {threads, 1}; }
"""
_KINDS = {"neurons_forward": "pppppi", "neurons_reverse": "ppppi"}


class Driver:
    """The functions of libcuda that `ml2hpc.kernels.cuda` calls.

    Attributes
    ----------
    started
        Names of the kernels that were started.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._modules: dict[int, Any] = {}
        self._functions: dict[int, tuple[Any, str]] = {}
        self.started: list[str] = []

    def cuModuleLoadData(self, module: Any, image: bytes) -> int:
        number = len(self._modules) + 1
        source = self._folder / f"module{number}.cc"
        source.write_text(_BEFORE + image.decode() + _AFTER)
        library = source.with_suffix(".so")
        command = ["g++", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-w", str(source), "-o", str(library)]
        subprocess.run(command, check=True)
        self._modules[number] = ctypes.CDLL(str(library))
        module._obj.value = number
        return 0

    def cuModuleGetFunction(self, function: Any, module: ctypes.c_void_p, name: bytes) -> int:
        assert module.value is not None
        number = len(self._functions) + 1
        self._functions[number] = (self._modules[module.value], name.decode())
        function._obj.value = number
        return 0

    def cuLaunchKernel(self, function: ctypes.c_void_p, *numbers: Any) -> int:
        assert function.value is not None
        grid_x, grid_y, grid_z, threads, one, other, shared, _, addresses, extra = numbers
        assert (grid_z, one, other, shared, extra) == (1, 1, 1, 0, None)
        library, name = self._functions[function.value]
        self.started.append(name)
        types = [ctypes.c_void_p if kind == "p" else ctypes.c_longlong for kind in _KINDS[name]]
        arguments = [kind.from_address(addresses[k]) for k, kind in enumerate(types)]
        for y in range(grid_y):
            for x in range(grid_x):
                for thread in range(threads):
                    library.set_thread(*map(ctypes.c_long, (x, y, thread, grid_x, threads)))
                    library[name](*arguments)
        return 0


def install(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Driver:
    """Put the emulated driver in place of CUDA's and return it; images are sources."""
    found = Driver(folder)

    class Stream:
        cuda_stream = 0

    cuda.load.cache_clear()
    monkeypatch.setattr(cuda, "driver", lambda: found)
    monkeypatch.setattr(cuda, "translate", lambda text, architecture: text.encode())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    return found


def definitions(text: str) -> dict[str, str]:
    """Return what a source defines before anything else."""
    return dict(re.findall(r"^#define (\w+) (.+)$", text.split("/*")[0], re.MULTILINE))
