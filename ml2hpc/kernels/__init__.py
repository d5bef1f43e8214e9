"""Floor 0: compiled kernels, built with the package where there is a C compiler, chosen by instruction set at run time.

lib = kernels.load()                       None where they were not built
function = lib.function("sweep", torch.float64)
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch

from ml2hpc.errors import UserError

_ABI = 6  # the same number as in native.c
_TYPES = {torch.float64: "f64", torch.float32: "f32"}


class Library:
    """The functions of one instruction set.

    Attributes
    ----------
    instruction_set
        avx512, avx2, neon or generic.
    """

    def __init__(self, handle: ctypes.CDLL, instruction_set: str) -> None:
        self._handle = handle
        self.instruction_set = instruction_set

    def function(self, name: str, dtype: torch.dtype, result: Any = None) -> Any:
        """Return a kernel for a floating-point type as a ctypes function; `result` is its ctypes return type."""
        found = self._handle[f"{name}_{_TYPES[dtype]}_{self.instruction_set}"]
        found.restype = result
        return found


def _path() -> Path | None:
    candidates = (Path(__file__).parent / f"native{suffix}" for suffix in EXTENSION_SUFFIXES)
    return next((path for path in candidates if path.exists()), None)


def built() -> bool:
    """Tell whether the package was built with the kernels. Not collective."""
    return _path() is not None


@cache
def load(instruction_set: str | None = None) -> Library | None:
    """Return the kernels for this processor, or None where the package was built without a compiler. Not collective.

    Parameters
    ----------
    instruction_set
        Another one than the best that the processor has.

    Raises
    ------
    UserError
        If the library was built from other sources than these.
    """
    path = _path()
    if path is None:
        return None
    handle = ctypes.CDLL(str(path))
    if handle.ml2hpc_abi() != _ABI:
        raise UserError(f"{path} was built from older sources; run pip install -e . again")
    handle.ml2hpc_instruction_set.restype = ctypes.c_char_p
    return Library(handle, instruction_set or handle.ml2hpc_instruction_set().decode())
