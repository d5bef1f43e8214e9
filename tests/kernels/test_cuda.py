"""The CUDA sources: compiled by NVRTC for the architectures in use, without memory for what belongs in registers."""

from __future__ import annotations

import ctypes
import re
from itertools import combinations_with_replacement

import pytest
import torch

from ml2hpc.errors import UnsupportedError
from ml2hpc.kernels import cuda
from ml2hpc.problem.jet import Carried, Operator, closure
from ml2hpc.problem.plan import ACTIVATIONS, plan_of

needs_nvrtc = pytest.mark.skipif(cuda.compiler() is None, reason="no NVRTC library")
WAVE = Operator((((0, 0), 1.5), ((0, 1), -0.5), ((1, 1), 2.0)))
SETS: dict[str, tuple[Carried, ...]] = {
    "value": ((),),
    "burgers": ((0, 0), (1,)),
    "mixed": ((0, 1),),
    "operator": (WAVE,),
    "seconds": tuple(combinations_with_replacement(range(3), 2)),
    "fourth": ((0, 0, 0, 0), (1,)),
    "four_of_four": ((0, 1, 2, 3),),
}
TYPES = (torch.float64, torch.float32)


def source(name: str, activation: str, dtype: torch.dtype) -> str:
    return cuda.source(dtype, plan_of(closure(SETS[name]), activation))


@needs_nvrtc
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", TYPES)
def test_kernels_compile(activation: str, dtype: torch.dtype) -> None:
    """To machine code for the GPUs of 2020 and 2022, and with local memory for what sincos needs only."""
    for architecture in ("sm_80", "sm_90"):
        assert cuda.translate(source("burgers", activation, dtype), architecture)[:4] == b"\x7fELF"
    ptx = cuda.translate(source("burgers", activation, dtype), "compute_80").decode()
    assert set(re.findall(r"\.entry (\w+)\(", ptx)) == {"neurons_forward", "neurons_reverse"}
    local = [int(n) for n in re.findall(r"\.local .*\[(\d+)\];", ptx)]
    assert max(local, default=0) <= (40 if activation == "sin" else 0)
    if dtype == torch.float32 and activation != "sin":
        assert ".f64" not in ptx


@needs_nvrtc
@pytest.mark.parametrize("name", SETS)
def test_any_set_of_jets_compiles(name: str) -> None:
    for dtype in TYPES:
        assert cuda.translate(source(name, "tanh", dtype), "sm_90")[:4] == b"\x7fELF"


@needs_nvrtc
def test_a_source_that_does_not_compile_is_told() -> None:
    with pytest.raises(UnsupportedError, match=r"(?s)does not compile the kernels for sm_90.*nowhere"):
        cuda.translate("int f() { return nowhere; }", "sm_90")


def test_without_nvrtc_the_user_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "compiler", lambda: None)
    with pytest.raises(UnsupportedError, match="install torch with CUDA, or use -pinn_engine jets"):
        cuda.translate("/* no such source */", "sm_90")


def test_a_refusal_of_the_driver_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        @staticmethod
        def cuModuleLoadData(module: ctypes.c_void_p, image: bytes) -> int:
            return 209

    monkeypatch.setattr(cuda, "driver", Broken)
    with pytest.raises(RuntimeError, match=r"cuModuleLoadData.*209"):
        cuda.Module(b"")
