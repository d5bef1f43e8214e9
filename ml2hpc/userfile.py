"""Objects from a user's file or module: `my_file.py:MyProblem` or `package.module:name`."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import sys
import traceback
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
    try:
        return getattr(module, name)
    except AttributeError as error:
        own = [n for n, v in vars(module).items() if not n.startswith("_") and _is_own(v, module)]
        near = difflib.get_close_matches(name, own, 1)
        hint = f", did you mean {near[0]}?" if near else f"; it has {', '.join(own) or 'nothing'}"
        raise UserError(f"{option} {text}: no '{name}' in {place}{hint}") from error


def _is_own(value: object, module: ModuleType) -> bool:
    """Whether a module's name was made there, not imported."""
    return not isinstance(value, ModuleType) and getattr(value, "__module__", module.__name__) == module.__name__


def _from_file(place: str, option: str, text: str) -> ModuleType:
    path = Path(place).resolve()
    if not path.is_file():
        raise UserError(f"{option} {text}: there is no file {path}")
    # One module per file, however it is spelt, so that it is executed once.
    key = f"ml2hpc_user_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if key in sys.modules:
        return sys.modules[key]
    spec = importlib.util.spec_from_file_location(key, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a program calls sys.exit, which would end the job without a word
        del sys.modules[key]
        raise UserError(f"{option} {text}: {place} failed: {_describe(error, path)}") from error
    return module


def _imported(place: str, option: str, text: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except (Exception, SystemExit) as error:
        raise UserError(f"{option} {text}: cannot import {place}: {type(error).__name__}: {error}") from error


def _describe(error: BaseException, path: Path) -> str:
    """Say what failed and in which line of the user's file."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"{type(error).__name__}: {error.msg} (line {error.lineno})"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    return f"{type(error).__name__}: {error}" + (f" (line {lines[-1]})" if lines else "")
