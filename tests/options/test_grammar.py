"""Words, names, values, number stripping."""

from __future__ import annotations

import pytest

from ml2hpc.errors import OptionsError
from ml2hpc.options.grammar import is_name, split, statements, variants


def pairs(line: str) -> list[tuple[str, str | None]]:
    return [(s.name, s.value) for s in statements(line.split(), "command line")]


@pytest.mark.parametrize("word", ["-snes_type", "--snes_type", "-H", "-a=1", "-infinite", "-inf_tol", "-a=b,c"])
def test_names(word: str) -> None:
    assert is_name(word)


@pytest.mark.parametrize(
    "word", ["-5", "-.5", "-1e-3", "-inf", "-nan", "-INF", "-inf,1", "x", "-", "--", "---a", "-_a", ""]
)
def test_values(word: str) -> None:
    assert not is_name(word)


def test_pairing() -> None:
    assert pairs("-a 1 -b -c -1e-3 --d x") == [("a", "1"), ("b", None), ("c", "-1e-3"), ("d", "x")]
    assert pairs("-a -inf -b -nan -c -.5") == [("a", "-inf"), ("b", "-nan"), ("c", "-.5")]
    assert pairs("-a=1 -b=-c -d=x=y -e=") == [("a", "1"), ("b", "-c"), ("d", "x=y"), ("e", "")]


@pytest.mark.parametrize("line", ["foo -a", "-a 1 foo", "-a=1 foo"])
def test_stray_argument(line: str) -> None:
    with pytest.raises(OptionsError, match=r"^stray argument 'foo' \(command line\); write options as -name value$"):
        pairs(line)


def test_infinity_is_stray_where_no_value_may_stand() -> None:
    with pytest.raises(OptionsError, match="stray argument '-inf'"):
        pairs("-inf")


def test_split_quotes_and_comments() -> None:
    assert split("-a 'x y' -b \"it's\" -c=\"1 2\" # -d 'open\n-e") == ["-a", "x y", "-b", "it's", "-c=1 2", "-e"]
    assert split("-a x#y -b '#z' -c ''") == ["-a", "x#y", "-b", "#z", "-c", ""]
    with pytest.raises(ValueError, match=r"^a quote is not closed: 'x$"):
        split("-a 'x")


def test_variants_strip_any_subset_the_most_specific_first() -> None:
    assert variants("snes_type") == ("snes_type",)
    assert variants("a_12_b") == ("a_12_b", "a_b")
    assert variants("a_1_b_2_c") == ("a_1_b_2_c", "a_1_b_c", "a_b_2_c", "a_b_c")
    assert variants("a_1_2_c") == ("a_1_2_c", "a_1_c", "a_2_c", "a_c")


def test_variants_leave_other_digits_alone() -> None:
    assert variants("snes_l2_type") == ("snes_l2_type",)
    assert variants("a_12") == ("a_12",)
    assert variants("sub_3_") == ("sub_3_", "sub_")
