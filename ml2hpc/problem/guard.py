"""Calls of user code: whatever goes wrong there becomes one clear error with the user's own file and line."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ml2hpc.errors import UserError

# Frames between the caller and the user's line, or below it: jets, conditions, torch.
_HERE = Path(__file__).parent
_INNER = [str(_HERE / name) for name in ("ansatz.py", "guard.py", "jet.py", "pde.py")] + [
    str(Path(torch.__file__).parent)
]


def call(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return function(*arguments). Not collective.

    Parameters
    ----------
    name
        What failed, for the message, such as "Heat.residual".

    Raises
    ------
    UserError
        If it raises, with the innermost line that is the user's.
    """
    try:
        return function(*arguments)
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        theirs = [f for f in frames if not f.filename.startswith((*_INNER, "<"))] or frames
        where = f"{theirs[-1].filename}:{theirs[-1].lineno}"
        raise UserError(f"{name} failed: {type(error).__name__}: {error} ({where})") from error


def columns(name: str, values: Any, count: int, like: Tensor) -> Tensor:
    """Return numbers or tensors (n,), one or a tuple of them, stacked to (count, n). Not collective.

    Parameters
    ----------
    like
        A tensor of the expected shape (n,) and type.

    Raises
    ------
    UserError
        If the number of values or a shape is wrong.
    """
    parts = list(values) if isinstance(values, tuple | list) else [values] * count
    if len(parts) != count:
        raise UserError(f"{name} must return one value for each of {count} fields; got {len(parts)}")
    for part in parts:
        if isinstance(part, Tensor) and part.shape in (like.shape, torch.Size()):
            continue
        if not isinstance(part, int | float):
            raise UserError(f"{name} must return one number per point, shape (n,); got {describe(part)}")
    return torch.stack(
        [torch.as_tensor(part, dtype=like.dtype, device=like.device).expand(like.shape) for part in parts]
    )


def describe(value: Any) -> str:
    """Return a tensor's shape or another object's type, for messages. Not collective."""
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
