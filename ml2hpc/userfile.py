"""Objects from a user's file or module: `my_file.py:MyProblem` or `package.module:name`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ml2hpc.errors import UserError


def load(text: str, option: str) -> Any:
    """Return the object that `text` names. Not collective: every rank reads the same file.

    Raises
    ------
    UserError
        If the file is missing, fails while it is read, or has no such name; says where.
    """
    place, separator, name = text.rpartition(":")
    if not separator or not place or not name:
        raise UserError(f"{option} {text}: expected file.py:name or package.module:name")
    module = _from_file(place, option, text) if place.endswith(".py") else _imported(place, option, text)
    if not hasattr(module, name):
        public = ", ".join(n for n in vars(module) if not n.startswith("_")) or "nothing"
        raise UserError(f"{option} {text}: no '{name}' in {place}; it has {public}")
    return getattr(module, name)


def _from_file(place: str, option: str, text: str) -> ModuleType:
    path = Path(place)
    if not path.is_file():
        raise UserError(f"{option} {text}: there is no file {path.resolve()}")
    # One module per file, however it is spelt, so that it is executed once.
    key = f"ml2hpc_user_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    if key in sys.modules:
        return sys.modules[key]
    spec = importlib.util.spec_from_file_location(key, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[key]
        raise UserError(f"{option} {text}: {path} failed: {_describe(error, path)}") from error
    return module


def _imported(place: str, option: str, text: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except Exception as error:
        raise UserError(f"{option} {text}: cannot import {place}: {type(error).__name__}: {error}") from error


def _describe(error: Exception, path: Path) -> str:
    line = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename) == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"{type(error).__name__}: {error}" + (f" (line {line})" if line else "")
