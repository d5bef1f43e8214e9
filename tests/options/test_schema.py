"""Dataclass fields as options, and the schemas that are refused."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Optional, Union, cast

import pytest

from ml2hpc.errors import OptionsError
from ml2hpc.options import Database, option
from ml2hpc.options.schema import fields_of, parse


@dataclass(frozen=True)
class Everything:
    m: int = option(10, "an int")
    tol: float = option(1, "a float")
    keep: bool = option(False, "a bool")
    name: str = option("run", "a str")
    type: Literal["lbfgs", "bfgs"] = option("lbfgs", "a Literal", aliases={"broyden": "bfgs"})
    weights: tuple[float, ...] = option((), "floats", at_least=0)
    sizes: tuple[int, ...] = option((2, 3), "ints")
    names: tuple[str, ...] = option(("a",), "strs")
    types: tuple[Literal["qn", "fas"], ...] = option((), "words")
    output: str | None = option(None, "an optional")
    old: Optional[int] = option(3, "an optional", below=9)  # noqa: UP045
    restart: Literal["none", "powell"] = option("none", "a Literal with none")
    lambda_: float = option(math.inf, "a keyword")


def test_fields() -> None:
    fields = fields_of(Everything)
    assert [f.option for f in fields][:3] == ["m", "tol", "keep"]
    assert (fields[-1].name, fields[-1].option) == ("lambda_", "lambda")
    assert {f.name: f.default for f in fields} == asdict(Everything())
    assert fields[0].help == "an int"
    assert type(fields[1].default) is float


@pytest.mark.parametrize(
    ("name", "written", "value"),
    [
        ("m", "3", 3),
        ("tol", "3", 3.0),
        ("keep", "yes", True),
        ("name", "x", "x"),
        ("type", "Broyden", "bfgs"),
        ("weights", "1,2", (1.0, 2.0)),
        ("sizes", "1,2", (1, 2)),
        ("names", "b,c", ("b", "c")),
        ("types", "QN,fas", ("qn", "fas")),
        ("output", "f.h5", "f.h5"),
        ("output", "none", None),
        ("old", "none", None),
        ("restart", "None", "none"),
        ("lambda_", "-inf", -math.inf),
    ],
)
def test_values(name: str, written: str, value: object) -> None:
    kind = next(f.kind for f in fields_of(Everything) if f.name == name)
    parsed = parse(kind, written, f"-{name}", "code")
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("name", "written", "message"),
    [
        ("m", "ten", "option -m: 'ten' is not an integer (command line)"),
        ("m", None, "option -m: needs a value, an integer (command line)"),
        ("type", None, "option -type: needs a value, one of lbfgs bfgs (command line)"),
        ("output", None, "option -output: needs a value, a text or none (command line)"),
        ("weights", "1,-1", "option -weights: '-1' is out of range, must be at least 0 (command line)"),
        ("weights", None, "option -weights: needs a value, a comma list, each a number (command line)"),
        ("old", "9", "option -old: '9' is out of range, must be below 9 (command line)"),
    ],
)
def test_bad_values(name: str, written: str | None, message: str) -> None:
    kind = next(f.kind for f in fields_of(Everything) if f.name == name)
    with pytest.raises(OptionsError) as caught:
        parse(kind, written, f"-{name}", "command line")
    assert str(caught.value) == message


@dataclass(frozen=True)
class Inherited(Everything):
    extra: int = option(0, "one more")


def test_fields_are_inherited() -> None:
    assert [f.name for f in fields_of(Inherited)] == [f.name for f in fields_of(Everything)] + ["extra"]


@pytest.mark.parametrize(
    "annotation",
    [
        dict,
        Any,
        complex,
        list[int],
        tuple[int, int],
        tuple[int],
        tuple,
        tuple[tuple[int, ...], ...],
        tuple[Optional[int], ...],  # noqa: UP045
        Literal[1, 2],
        Union[int, str],  # noqa: UP007
        Union[int, str, None],  # noqa: UP007
        None,
    ],
)
def test_unknown_annotation(annotation: Any) -> None:
    bad = type("Bad", (), {"__annotations__": {"m": annotation}, "m": option(None, "bad")})
    with pytest.raises(
        TypeError, match=r"^Bad\.m: cannot read an option as .*; annotate int, float, bool, str, Literal"
    ):
        fields_of(dataclass(bad))


@dataclass
class NoOption:
    m: int = 3


@dataclass
class PlainField:
    m: int = field(default=3, metadata={"help": "?"})


@dataclass
class WrongDefault:
    m: int = option(cast(Any, "x"), "?")


@dataclass
class OutOfBounds:
    m: float = option(0.0, "?", above=0)


@dataclass
class WrongCase:
    m: Literal["qn"] = option(cast(Any, "QN"), "?")


@dataclass
class BoundedWord:
    m: str = option("", "?", at_least=0)


@dataclass
class AliasedWord:
    m: str = option("", "?", aliases={"a": "b"})


@dataclass
class AliasOfNothing:
    m: Literal["qn"] = option("qn", "?", aliases={"a": "b"})


@dataclass
class TwoNones:
    m: Literal["none", "qn"] | None = option("none", "?")


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (int, "int is not a dataclass"),
        (NoOption, "NoOption.m is not an option, write option(default, help)"),
        (PlainField, "PlainField.m is not an option, write option(default, help)"),
        (WrongDefault, "WrongDefault.m: the default 'x' is not an integer"),
        (OutOfBounds, "OutOfBounds.m: the default '0.0' is out of range, must be above 0"),
        (WrongCase, "WrongCase.m: the default 'QN' would be read back as 'qn'"),
        (BoundedWord, "BoundedWord.m: only numbers have bounds"),
        (AliasedWord, "AliasedWord.m: aliases of what is not a word of the Literal: b"),
        (AliasOfNothing, "AliasOfNothing.m: aliases of what is not a word of the Literal: b"),
        (TwoNones, "TwoNones.m: none is a word of the Literal, so the field cannot be optional"),
    ],
)
def test_wrong_schema(schema: type, message: str) -> None:
    with pytest.raises(TypeError) as caught:
        fields_of(schema)
    assert str(caught.value) == message


def test_an_option_alone_takes_the_declared_value() -> None:
    @dataclass(frozen=True)
    class Monitors:
        monitor: str | None = option(None, "where to print", alone="")

    assert Database.from_string("-monitor -x 1").read(Monitors).monitor == ""
    assert Database.from_string("-monitor :f.txt").read(Monitors).monitor == ":f.txt"
    assert Database.from_string("").read(Monitors).monitor is None


def test_options_that_are_not_listed_are_read_and_not_shown() -> None:
    @dataclass(frozen=True)
    class Some:
        depth: int = option(3, "layers")

    db = Database.from_string("-depth 5")
    assert db.read(Some, listed=False).depth == 5
    assert db.help_text() == ""
    assert db.check_unused() == ""
