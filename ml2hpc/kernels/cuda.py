"""The kernels of neurons for NVIDIA GPUs: the same sources, compiled by NVRTC for a set of jets, started by the driver.

module = cuda.load(cuda.source(torch.float64, plan), 0)
module.start("neurons_forward", grid, [bias, z, more, y, None, n])
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ml2hpc.errors import UnsupportedError

THREADS = 128  # of a block: four warps; more would leave fewer registers to each than fourth derivatives need
_TYPES = {torch.float64: "double", torch.float32: "float"}
_OPTIONS = ("--std=c++17", "--diag-suppress=177")  # 177: functions for tangents, which no kernel calls


def source(dtype: torch.dtype, plan: Any) -> str:
    """Return the CUDA source of both kernels. Not collective.

    Parameters
    ----------
    plan
        The structure Plan of plan.h: its jets, kind, activation, terms and factors.
    """
    terms = [plan.term[k] for k in range(plan.terms)]
    rows = (f"{{{t.jet}, {t.degree}, {{{', '.join(map(str, t.of))}}}, {t.factor!r}}}" for t in terms)
    definitions = {
        "T": _TYPES[dtype],
        "IS_DOUBLE": int(dtype == torch.float64),
        "ACTIVATION": plan.activation,
        "JETS": plan.jets,
        "KIND": plan.kind,
        "TERMS": plan.terms,
        "TERM_TABLE": ", ".join(rows) or "{0}",
        "FACTORS": ", ".join(map(repr, plan.diagonal)),
    }
    here = Path(__file__).parent
    text = (here / "device.cu").read_text()
    for name in ("plan.h", "neuron.h"):
        text = text.replace(f'#include "{name}"', (here / name).read_text())
    return "".join(f"#define {name} {value}\n" for name, value in definitions.items()) + text


@cache
def compiler() -> Any | None:
    """Return the NVRTC library: torch's, the one of pip, or the system's; None where there is none. Not collective."""
    return next(filter(None, map(_opened, _candidates())), None)


def _opened(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def _candidates() -> Iterator[str]:
    version = torch.version.cuda
    name = f"libnvrtc.so.{version.split('.')[0]}" if version else "libnvrtc.so.1?"
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        yield from (str(path) for path in sorted(Path(folder).glob(f"*/lib/{name}")))
    yield from (name, "libnvrtc.so")


@cache
def translate(text: str, architecture: str) -> bytes:
    """Return the machine code for an architecture such as sm_90, or PTX for compute_90. Not collective.

    Raises
    ------
    UnsupportedError
        If there is no NVRTC, or it does not know the architecture.
    """
    nvrtc = compiler()
    if nvrtc is None:
        raise UnsupportedError(
            "-pinn_engine device: no NVRTC library; install torch with CUDA, or use -pinn_engine jets"
        )
    program = ctypes.c_void_p()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"neurons.cu", 0, None, None), "NVRTC")
    options = [f"--gpu-architecture={architecture}".encode(), *(o.encode() for o in _OPTIONS)]
    status = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    if status != 0:
        told = _bytes(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).decode(errors="replace")
        raise UnsupportedError(f"-pinn_engine device: NVRTC does not compile the kernels for {architecture}: {told}")
    kind = "CUBIN" if architecture.startswith("sm_") else "PTX"
    code = _bytes(getattr(nvrtc, f"nvrtcGet{kind}Size"), getattr(nvrtc, f"nvrtcGet{kind}"), program)
    _check(nvrtc.nvrtcDestroyProgram(ctypes.byref(program)), "NVRTC")
    return code


def _bytes(size: Any, take: Any, program: ctypes.c_void_p) -> bytes:
    length = ctypes.c_size_t()
    _check(size(program, ctypes.byref(length)), "NVRTC")
    text = ctypes.create_string_buffer(length.value)
    _check(take(program, text), "NVRTC")
    return text.raw


def _check(status: int, who: str) -> None:
    if status != 0:
        raise RuntimeError(f"{who} returned error {status}")


@cache
def driver() -> Any:
    """Return the CUDA driver's library. Not collective."""
    return ctypes.CDLL("libcuda.so.1")


class Module:
    """Kernels in the memory of the current device.

    Parameters
    ----------
    image
        Machine code or PTX.
    """

    def __init__(self, image: bytes) -> None:
        self._module = ctypes.c_void_p()
        _check(driver().cuModuleLoadData(ctypes.byref(self._module), image), "the CUDA driver (cuModuleLoadData)")
        self._functions: dict[str, ctypes.c_void_p] = {}

    def _function(self, name: str) -> ctypes.c_void_p:
        if name not in self._functions:
            found = ctypes.c_void_p()
            status = driver().cuModuleGetFunction(ctypes.byref(found), self._module, name.encode())
            _check(status, f"the CUDA driver (cuModuleGetFunction {name})")
            self._functions[name] = found
        return self._functions[name]

    def start(self, name: str, grid: tuple[int, int], arguments: Sequence[Tensor | int | None]) -> None:
        """Queue a kernel on the current stream. Not collective.

        Parameters
        ----------
        grid
            Blocks along points and neurons.
        arguments
            Tensors and None as addresses, integers as int64_t.
        """
        values = [
            ctypes.c_longlong(a) if isinstance(a, int) else ctypes.c_void_p(None if a is None else a.data_ptr())
            for a in arguments
        ]
        addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        status = driver().cuLaunchKernel(self._function(name), *grid, 1, THREADS, 1, 1, 0, stream, addresses, None)
        _check(status, f"the CUDA driver (cuLaunchKernel {name})")


@cache
def load(text: str, device: int) -> Module:
    """Return the kernels of a source, compiled for a GPU by number and loaded there. Not collective."""
    torch.cuda.synchronize(device)  # makes the device's context the current one
    major, minor = torch.cuda.get_device_capability(device)
    return Module(translate(text, f"sm_{major}{minor}"))
