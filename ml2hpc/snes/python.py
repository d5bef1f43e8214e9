"""A solver type that the user supplies: `-snes_type python -snes_python_type my_file.py:MyType` or `pkg.mod.MyType`.

The class is a `Method` (or `DirectionMethod`) like every type here. It runs as one: its options `-snes_<name>_*` are in
-help, it stands anywhere in the tree, has views, timers, line search and NPC, and its state is in the checkpoints.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Container
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from ml2hpc.errors import UserError
from ml2hpc.options import option
from ml2hpc.options.schema import fields_of
from ml2hpc.snes.interface import SNES, DirectionMethod, Method, Point, Step
from ml2hpc.snes.interface import Options as Generic
from ml2hpc.userfile import load

_NAME = re.compile(r"[a-z][a-z0-9]*")


class Python(Method):
    """The name under which the user's type is asked for; what runs is the user's type itself."""

    @dataclass(frozen=True)
    class Options:
        """Options `-snes_python_*`."""

        type: str = option("", "the class, as file.py:Class or package.module.Class")

    name = "python"
    title = "User's solver type (python)"

    @classmethod
    def users(cls, options: Any, prefix: str, taken: Container[str]) -> type[Method]:
        """Return the user's type. Not collective: every rank reads the same file.

        Parameters
        ----------
        taken
            Names of types that the user's type may not have: their options would be mixed up.

        Raises
        ------
        UserError
            If there is no such class, or it lacks what a type needs; says what and where.
        """
        given = options.type
        if not given:
            raise UserError(f"-{prefix}snes_type python needs -{prefix}snes_python_type file.py:Class")
        place, separator, name = given.rpartition(".")
        text = f"{place}:{name}" if separator and ":" not in given else given
        found = load(text, f"-{prefix}snes_python_type")
        wrong = _fault(found, taken)
        if wrong:
            raise UserError(f"-{prefix}snes_python_type {given}: {wrong}")
        watch: type[Method] = _Directed if issubclass(found, DirectionMethod) else _Stepped
        return cast(
            type[Method],
            type(found.__name__, (watch, found), {"__doc__": found.__doc__, "__module__": found.__module__}),
        )

    def step(self, solver: SNES, point: Point) -> Step:
        raise AssertionError("the user's type runs in the place of this one")


class _Stepped(Method):
    """Checks what a user's `step` returns."""

    def step(self, solver: SNES, point: Point) -> Step:
        found = super().step(solver, point)  # type: ignore[safe-super]
        if not isinstance(found, Step):
            raise UserError(f"{self.name}: step must return a Step, got {type(found).__name__}")
        _check_vector(found.point.x, point.x, f"{self.name}: the x of the Step")
        return found


class _Directed(DirectionMethod):
    """Checks what a user's `direction` returns."""

    def direction(self, solver: SNES, point: Point) -> Tensor:
        found = super().direction(solver, point)  # type: ignore[safe-super]
        _check_vector(found, point.x, f"{self.name}: direction")
        return found


def _check_vector(found: object, like: Tensor, what: str) -> None:
    """Refuse what is not a vector of the space."""
    if not isinstance(found, Tensor):
        raise UserError(f"{what} must be a tensor, got {type(found).__name__}")
    if found.shape != like.shape or found.dtype != like.dtype:
        raise UserError(
            f"{what} must have the shape {tuple(like.shape)} and type {like.dtype}, "
            f"got {tuple(found.shape)} and {found.dtype}"
        )


def _fault(found: Any, taken: Container[str]) -> str:
    """Say what keeps an object from being a type; nothing if it is one."""
    if not (isinstance(found, type) and issubclass(found, Method)):
        what = "a class that is no Method" if isinstance(found, type) else f"no class but {type(found).__name__}"
        return f"is {what}; derive it from ml2hpc.snes.interface.Method or DirectionMethod"
    missing = [name for name in ("name", "title", "Options") if not hasattr(found, name)]
    if inspect.isabstract(found):
        missing += sorted(found.__abstractmethods__)
    if missing:
        return f"has no {', '.join(missing)}"
    if not isinstance(found.name, str) or not _NAME.fullmatch(found.name):
        return f"name = {found.name!r}: must be a word of small letters and digits, it is part of the options' names"
    if found.name in taken:
        return f"name = {found.name!r}: is the name of another type; choose one of your own"
    return _fault_of_options(found) or _fault_of_attributes(found)


def _fault_of_options(found: type[Method]) -> str:
    if not (dataclasses.is_dataclass(found.Options) and cast(Any, found.Options).__dataclass_params__.frozen):
        return "Options must be a frozen dataclass: @dataclass(frozen=True)"
    try:
        fields_of(found.Options)
    except (TypeError, NameError) as error:
        return str(error)
    return ""


def _fault_of_attributes(found: Any) -> str:
    """Say which class attribute has a wrong value."""
    if not isinstance(found.title, str):
        return f"title = {found.title!r}: must be a text"
    if not isinstance(found.sides, tuple) or not set(found.sides) <= {"left", "right"}:
        return f"sides = {found.sides!r}: must be a tuple of 'left' and 'right'"
    unknown = set(found.defaults) - {field.name for field in fields_of(Generic)}
    if unknown:
        return f"defaults: there is no option {', '.join(sorted(unknown))}"
    if not isinstance(found.linesearch, dict | None):
        return f"linesearch = {found.linesearch!r}: must be a dict of defaults, or None"
    if issubclass(found, DirectionMethod) and found.linesearch is None:
        return 'a DirectionMethod needs a line search: linesearch = {"type": "wolfe"}'
    return ""
