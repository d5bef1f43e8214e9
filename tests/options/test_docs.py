"""The examples in the docstrings run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import ml2hpc.options

NAMES = ["ml2hpc.options", *(f"ml2hpc.options.{m.name}" for m in pkgutil.iter_modules(ml2hpc.options.__path__))]


@pytest.mark.parametrize("name", NAMES)
def test_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
    assert result.attempted > 0
