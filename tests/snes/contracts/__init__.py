"""What a solver type states for its contract, one module for each, of the type's name.

TREES
    One or more trees of the type: {name: (options, iterations allowed on the quadratic, factor of the gradient norm)}.
CHANGES
    For every option of the type, a tree and a value that change what it does: {option: (options, value)}.
NEEDS
    A library that the type needs and the package does not; without it the contract is skipped, and says so.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import pytest

from ml2hpc.snes import TYPES

_MODULES = {name: import_module(f"{__name__}.{name}") for name in TYPES}
TREES: dict[str, tuple[str, int, float]] = {
    name: tree for module in _MODULES.values() for name, tree in module.TREES.items()
}
CHANGES: dict[str, dict[str, tuple[str, str]]] = {name: module.CHANGES for name, module in _MODULES.items()}
_NEEDS = {
    name: module.NEEDS
    for kind, module in _MODULES.items()
    if hasattr(module, "NEEDS")
    for name in (kind, *module.TREES)
}


def needs(name: str) -> list[pytest.MarkDecorator]:
    """Return marks that skip a type, or a tree, whose library is not installed."""
    library = _NEEDS.get(name)
    if library is None or find_spec(library) is not None:
        return []
    return [pytest.mark.skip(reason=f"needs {library}")]
