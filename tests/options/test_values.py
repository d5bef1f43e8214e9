"""Every kind of value: what it takes, what it refuses, and that `text` is its inverse."""

from __future__ import annotations

import math

import pytest

from ml2hpc.options.values import Bounds, Kind, boolean, choice, integer, maybe, number, several, text, word


def refusal(kind: Kind, written: str) -> str:
    with pytest.raises(ValueError, match="is ") as caught:
        kind.parse(written)
    return str(caught.value)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("7", 7),
        ("-7", -7),
        ("+7", 7),
        (" 7 ", 7),
        ("1e4", 10000),
        ("2.0", 2),
        ("-12345678901234567891", -12345678901234567891),
    ],
)
def test_integer(written: str, value: int) -> None:
    parsed = integer().parse(written)
    assert parsed == value
    assert type(parsed) is int


@pytest.mark.parametrize("written", ["ten", "", "1.5", "inf", "nan", "1_000", "1e300", "1e16", "true"])
def test_no_integer(written: str) -> None:
    assert refusal(integer(), written) == f"{written!r} is not an integer"


def test_number() -> None:
    read = number().parse
    assert [read(w) for w in ("1e-3", "-.5", "2", "inf", "-INF")] == [1e-3, -0.5, 2.0, math.inf, -math.inf]
    assert type(read("2")) is float
    for written in ("ten", "", "nan", "-nan", "1_000"):
        assert refusal(number(), written) == f"{written!r} is not a number"


@pytest.mark.parametrize("written", ["true", "YES", "On", "1"])
def test_boolean_on(written: str) -> None:
    assert boolean().parse(written) is True


@pytest.mark.parametrize("written", ["false", "NO", "Off", "0"])
def test_boolean_off(written: str) -> None:
    assert boolean().parse(written) is False


def test_no_boolean() -> None:
    assert refusal(boolean(), "maybe") == "'maybe' is not a boolean (true/false, yes/no, on/off, 1/0)"


def test_choice_is_case_insensitive_and_canonical() -> None:
    kind = choice(("additiveOptimal", "none"), {"Optimal": "additiveOptimal"})
    assert [kind.parse(w) for w in ("ADDITIVEOPTIMAL", "optimal", "None")] == ["additiveOptimal"] * 2 + ["none"]
    assert kind.choices == ("additiveOptimal", "none")


def test_choice_refuses_with_what_is_available_and_the_closest() -> None:
    kind = choice(("lbfgs", "bfgs"))
    assert refusal(kind, "lbfsg") == "'lbfsg' is not available, must be one of lbfgs bfgs; did you mean lbfgs?"
    assert refusal(kind, "adam") == "'adam' is not available, must be one of lbfgs bfgs"


def test_list() -> None:
    assert several(number()).parse("1, -.5,inf") == (1.0, -0.5, math.inf)
    assert several(integer()).parse(" ") == ()
    assert several(word()).parse("a, b") == ("a", "b")
    assert refusal(several(integer()), "1,,2") == "'' is not an integer"
    assert refusal(several(number(Bounds(at_most=1))), "1,2") == "'2' is out of range, must be at most 1"
    assert several(choice(("qn", "fas"))).choices == ("qn", "fas")


def test_maybe() -> None:
    assert maybe(integer()).parse("None") is None
    assert maybe(integer()).parse("3") == 3
    assert maybe(integer()).what == "an integer or none"
    assert maybe(choice(("qn",))).choices == ("qn", "none")
    assert maybe(integer()).choices == ()


def test_only_switches_stand_alone() -> None:
    assert boolean().alone == maybe(boolean()).alone == "true"
    assert integer().alone is number().alone is word().alone is several(boolean()).alone is None


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "words"),
    [
        (Bounds(above=0), ["1e-300"], ["0", "-1"], "above 0"),
        (Bounds(at_least=0), ["0"], ["-1e-300"], "at least 0"),
        (Bounds(below=1), ["0.9"], ["1", "inf"], "below 1"),
        (Bounds(at_most=1), ["1"], ["1.1"], "at most 1"),
        (Bounds(above=0, at_most=0.5), ["0.5"], ["0", "0.6"], "above 0 and at most 0.5"),
    ],
)
def test_bounds(bounds: Bounds, inside: list[str], outside: list[str], words: str) -> None:
    kind = number(bounds)
    assert kind.limits == words
    for written in inside:
        kind.parse(written)
    for written in outside:
        assert refusal(kind, written) == f"{written!r} is out of range, must be {words}"
    assert refusal(integer(Bounds(at_least=1)), "0") == "'0' is out of range, must be at least 1"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (integer(), -3),
        (number(), 0.1),
        (number(), 1e-300),
        (number(), -math.inf),
        (boolean(), False),
        (word(), "a b"),
        (several(number()), (1.0, 2.5)),
        (several(boolean()), (True, False)),
        (several(integer()), ()),
        (maybe(integer()), None),
    ],
)
def test_text_is_the_inverse(kind: Kind, value: object) -> None:
    assert kind.parse(text(value)) == value
